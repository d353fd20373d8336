//! `cargo xtask bench drain`: what the agent takes of an idle node and of a busy one, by how often it reads the kernel's
//! counters.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use bed::proxy::ProxyKind;
use bed::tools;

use super::daemon::{Daemon, Look};
use super::load::{Load, Pace};
use super::result::{Budget, Figure, Stamp, leave};
use super::subject::{Stage, Subject};
use crate::{cargo, setup};

/// Seconds between two drains.
const INTERVALS: [u32; 2] = [1, 10];
/// Requests a second of a busy node.
const RATE: u32 = 2_000;
const CONNECTIONS: u32 = 16;
/// Before the first look, so that a process that has just begun is not looked for any more.
const SETTLE: Duration = Duration::from_secs(4);

/// CPUs that the agent itself may keep busy, and its memory, MiB.
const MOST_CORES: f64 = 0.005;
const MOST_MIB: f64 = 32.0;

/// What can be chosen.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How often everything is measured
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long each time, in seconds; a multiple of 10 has whole numbers of drains
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(10..=600))]
    seconds: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { rounds: 2, seconds: 20 }
    }
}

/// What was taken in one time.
#[derive(Clone, Copy, Debug)]
struct Sample {
    agent_cores: f64,
    /// CPUs that the programs kept busy.
    bpf_cores: f64,
    agent_mib: f64,
    /// Of the maps in the kernel.
    maps_mib: f64,
}

/// The verb.
///
/// # Errors
/// When something cannot be brought, built, started or measured.
pub fn run(options: &Options) -> Result<()> {
    setup::ensure()?;
    let agent = cargo::agent()?;
    cargo::run(&["build", "--release", "--package", "smp-agent-tests", "--bins"])?;
    let dir = tools::workspace().join("target/bench/log/drain");
    let stamp = Stamp::now();
    let stage = Subject::One(ProxyKind::Envoy).start(&dir)?;
    let mut samples = BTreeMap::<(bool, u32), Vec<Sample>>::new();
    for round in 1..=options.rounds {
        for seconds in INTERVALS {
            eprintln!("[round {round} of {}] a drain each {seconds} s", options.rounds);
            for (busy, sample) in both(options, &agent, &stage, seconds, &dir)? {
                samples.entry((busy, seconds)).or_default().push(sample);
            }
        }
    }
    stage.stop()?;
    let (figures, table) = told(&samples);
    println!("{table}");
    leave("drain", &stamp, &figures)
}

/// An idle time and a busy one.
fn both(
    options: &Options,
    agent: &Path,
    stage: &Stage,
    seconds: u32,
    dir: &Path,
) -> Result<[(bool, Sample); 2]> {
    let daemon = Daemon::start(agent, &stage.proxies(), &[&format!("--drain={seconds}")], dir)?;
    thread::sleep(SETTLE);
    let begun = daemon.look()?;
    thread::sleep(Duration::from_secs(options.seconds.into()));
    let idle = daemon.look()?;
    let load = Load {
        client: stage.client(),
        target: stage.target(),
        connections: CONNECTIONS,
        seconds: options.seconds,
    };
    load.run(Pace::Fixed(RATE))?;
    let busy = daemon.look()?;
    daemon.stop()?;
    Ok([(false, Sample::between(&begun, &idle)), (true, Sample::between(&idle, &busy))])
}

impl Sample {
    fn between(before: &Look, after: &Look) -> Self {
        Self {
            agent_cores: after.cores_since(before),
            bpf_cores: after.bpf_cores_since(before),
            agent_mib: after.rss_mib,
            maps_mib: after.kernel.maps_bytes as f64 / f64::from(1 << 20),
        }
    }
}

/// For machines and for people.
fn told(samples: &BTreeMap<(bool, u32), Vec<Sample>>) -> (Vec<Figure>, String) {
    let mut figures = Vec::new();
    let mut lines = vec![
        "| node | a drain each | agent, CPUs | programs, CPUs | agent, MiB | maps, MiB |".to_owned(),
        "|---|---|---|---|---|---|".to_owned(),
    ];
    for (&(busy, seconds), samples) in samples {
        let node = if busy { format!("{RATE} requests a second") } else { "idle".to_owned() };
        let prefix = format!("drain/{}/{seconds}", if busy { "busy" } else { "idle" });
        let mut add = |what: &str, unit: &'static str, of: fn(&Sample) -> f64, budget: Option<f64>| {
            let values: Vec<f64> = samples.iter().map(of).collect();
            let figure = Figure::new(format!("{prefix}/{what}"), unit, &values, budget.map(Budget::AtMost));
            let missed = if figure.within == Some(false) { " !" } else { "" };
            let digits = if unit == "MiB" { 1 } else { 4 };
            let shown = format!("{:.digits$}{missed}", figure.value);
            figures.push(figure);
            shown
        };
        let agent = add("agent_cpu", "CPUs", |sample| sample.agent_cores, Some(MOST_CORES));
        let programs = add("bpf_cpu", "CPUs", |sample| sample.bpf_cores, None);
        let mib = add("agent_rss", "MiB", |sample| sample.agent_mib, Some(MOST_MIB));
        let maps = add("maps", "MiB", |sample| sample.maps_mib, None);
        lines.push(format!("| {node} | {seconds} s | {agent} | {programs} | {mib} | {maps} |"));
    }
    (figures, lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_and_interval_has_a_line() {
        let sample = Sample { agent_cores: 0.006, bpf_cores: 0.01, agent_mib: 25.0, maps_mib: 70.0 };
        let (figures, table) =
            told(&BTreeMap::from([((false, 1), vec![sample]), ((true, 10), vec![sample])]));
        assert!(table.contains("| idle | 1 s | 0.0060 ! | 0.0100 | 25.0 | 70.0 |"), "{table}");
        assert!(table.contains("| 2000 requests a second | 10 s |"), "{table}");
        assert_eq!(figures[0].name, "drain/idle/1/agent_cpu");
        assert_eq!(figures[0].within, Some(false));
    }
}
