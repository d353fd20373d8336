//! `cargo xtask bench scale`: whether an event costs the same with many sockets, many proxies and many connections that come and
//! go, and what the agent takes then.
//!
//! The load is the same each time: nginx, saturated. Beside it stand programs that hold connections and do nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bed::process::{self, Child};
use bed::proxy::ProxyKind;
use bed::tools;

use super::daemon::{Daemon, Look};
use super::kernel;
use super::load::{Load, Pace, churn};
use super::result::{Budget, Figure, Stamp, leave};
use super::subject::{Stage, Subject};
use crate::{cargo, setup};

/// Sockets that are tracked and rest, and the most of them that one program holds: as many files as it may open.
const SOCKETS: [usize; 3] = [10, 1_000, 20_000];
const MOST_HELD: usize = 10_000;
/// Proxies that are followed, nginx among them; each of the others has four sockets.
const PROXIES: [usize; 3] = [1, 100, 200];
const SOCKETS_EACH: usize = 4;
/// Connections that are opened and closed, half of them before the look in the middle.
const CHURN: u64 = 100_000;
const CONNECTIONS: u32 = 16;

/// What an event may cost with the most of them, as a multiple of with the fewest.
const FLAT: f64 = 1.2;
/// CPUs that the agent itself may keep busy with up to so many proxies, and its memory, MiB.
const MOST_CORES: f64 = 0.005;
const BUDGETED_PROXIES: usize = 100;
const MOST_MIB: f64 = 32.0;

/// How long a program may take to open its connections.
const LONGEST_OPENING: Duration = Duration::from_mins(1);

/// What can be chosen.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How often everything is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long each load lasts, in seconds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { rounds: 3, seconds: 3 }
    }
}

/// What there is many of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Many {
    Sockets,
    Proxies,
    /// Connections that were opened and closed before.
    Churn,
}

/// What one load took.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Time of the programs for each request, us.
    request_us: f64,
    /// ... for each time one ran, ns.
    run_ns: f64,
    agent_cores: f64,
    agent_mib: f64,
    /// Memory of the maps in the kernel, MiB.
    maps_mib: f64,
    /// What the kernel's slabs grew by since before the agent was there, MiB: what it keeps for sockets is in it, and noise.
    slab_mib: f64,
    /// From the agent's start until it measures: it looks at every socket that is there.
    start_ms: f64,
}

type Samples = BTreeMap<(Many, usize), Vec<Sample>>;

/// The verb.
///
/// # Errors
/// When something cannot be brought, built, started or measured.
pub fn run(options: &Options) -> Result<()> {
    setup::ensure()?;
    process::raise_file_limit()?;
    let agent = cargo::agent()?;
    cargo::run(&["build", "--release", "--package", "smp-agent-tests", "--bins"])?;
    let dir = tools::workspace().join("target/bench/log/scale");
    let stamp = Stamp::now();
    let stage = Subject::One(ProxyKind::Nginx).start(&dir)?;
    let mut samples = Samples::new();
    for round in 1..=options.rounds {
        let of = format!("round {round} of {}", options.rounds);
        for sockets in SOCKETS {
            eprintln!("[{of}] {sockets} sockets that rest, {} s", options.seconds);
            let holders = sockets.div_ceil(MOST_HELD);
            let sample = beside(options, &agent, &stage, &vec![sockets / holders; holders], &dir)?;
            samples.entry((Many::Sockets, sockets)).or_default().push(sample);
        }
        for proxies in PROXIES {
            eprintln!("[{of}] {proxies} proxies, {} s", options.seconds);
            let sample = beside(options, &agent, &stage, &vec![SOCKETS_EACH; proxies - 1], &dir)?;
            samples.entry((Many::Proxies, proxies)).or_default().push(sample);
        }
        eprintln!("[{of}] {CHURN} connections that come and go");
        for (before, sample) in coming_and_going(options, &agent, &stage, &dir)? {
            samples.entry((Many::Churn, before)).or_default().push(sample);
        }
    }
    stage.stop()?;
    let (figures, table) = told(&samples);
    println!("{table}");
    leave("scale", &stamp, &figures)
}

/// A load beside programs that hold so many sockets each, all of them followed.
fn beside(options: &Options, agent: &Path, stage: &Stage, sockets: &[usize], dir: &Path) -> Result<Sample> {
    let holders: Vec<Child> = sockets
        .iter()
        .enumerate()
        .map(|(place, &sockets)| hold(place, sockets, dir))
        .collect::<Result<_>>()?;
    let mut proxies = stage.proxies();
    proxies.extend(holders.iter().map(Child::pid));
    let slab_before = kernel::slab_bytes()?;
    let begun = Instant::now();
    let daemon = Daemon::start(agent, &proxies, &["--max-proxies=256"], dir)?;
    let start_ms = begun.elapsed().as_secs_f64() * 1e3;
    let before = daemon.look()?;
    let answered = load(options, stage).run(Pace::Saturating)?;
    let after = daemon.look()?;
    let slab = kernel::slab_bytes()?.saturating_sub(slab_before);
    daemon.stop()?;
    holders.into_iter().try_for_each(Child::stop)?;
    Ok(Sample::between(&before, &after, answered.requests, slab, start_ms))
}

/// A load before any connection came and went, and one after all of them did.
fn coming_and_going(
    options: &Options,
    agent: &Path,
    stage: &Stage,
    dir: &Path,
) -> Result<[(usize, Sample); 2]> {
    let slab_before = kernel::slab_bytes()?;
    let begun = Instant::now();
    let daemon = Daemon::start(agent, &stage.proxies(), &[], dir)?;
    let start_ms = begun.elapsed().as_secs_f64() * 1e3;
    let measured = |churned: usize| -> Result<(usize, Sample)> {
        let before = daemon.look()?;
        let answered = load(options, stage).run(Pace::Saturating)?;
        let after = daemon.look()?;
        let slab = kernel::slab_bytes()?.saturating_sub(slab_before);
        Ok((churned, Sample::between(&before, &after, answered.requests, slab, start_ms)))
    };
    let fresh = measured(0)?;
    churn(stage.client(), stage.target(), CONNECTIONS, CHURN)?;
    let worn = measured(usize::try_from(CHURN)?);
    daemon.stop()?;
    Ok([fresh, worn?])
}

fn load<'a>(options: &Options, stage: &'a Stage) -> Load<'a> {
    Load {
        client: stage.client(),
        target: stage.target(),
        connections: CONNECTIONS,
        seconds: options.seconds,
    }
}

/// Starts a program that holds so many sockets, two for each of its connections to itself, and waits until it has them.
fn hold(place: usize, sockets: usize, dir: &Path) -> Result<Child> {
    let mut command = Command::new(tools::target().join("release/bed"));
    // It may begin at once, has nothing to do, and says so.
    command.args(["burn", "--go=/", &format!("--connections={}", sockets / 2)]);
    let mut holder = Child::start(&format!("holder-{place}"), &command, dir)?;
    holder.until(LONGEST_OPENING, "open its connections", |holder| {
        if let Some(status) = holder.poll()? {
            bail!("it ended with {status}{}", holder.tail());
        }
        Ok(holder.tail().contains("total_ns").then_some(()))
    })?;
    Ok(holder)
}

impl Sample {
    fn between(before: &Look, after: &Look, requests: u64, slab_bytes: u64, start_ms: f64) -> Self {
        const MIB: f64 = (1 << 20) as f64;
        let took_ns = after.bpf_ns_since(before) as f64;
        Self {
            request_us: took_ns / 1e3 / requests.max(1) as f64,
            run_ns: took_ns / after.bpf_runs_since(before).max(1) as f64,
            agent_cores: after.cores_since(before),
            agent_mib: after.rss_mib,
            maps_mib: after.kernel.maps_bytes as f64 / MIB,
            slab_mib: slab_bytes as f64 / MIB,
            start_ms,
        }
    }
}

impl Many {
    const fn name(self) -> &'static str {
        match self {
            Self::Sockets => "sockets",
            Self::Proxies => "proxies",
            Self::Churn => "churn",
        }
    }

    const fn in_words(self) -> &'static str {
        match self {
            Self::Sockets => "sockets that rest",
            Self::Proxies => "proxies",
            Self::Churn => "connections came and went before",
        }
    }

    /// Whether so many are within what the agent's own CPU time has a budget for.
    const fn has_budget(self, count: usize) -> bool {
        !matches!(self, Self::Proxies) || count <= BUDGETED_PROXIES
    }
}

/// For machines and for people.
fn told(samples: &Samples) -> (Vec<Figure>, String) {
    let mut figures = Vec::new();
    let mut lines = vec![
        "| beside nginx under load | BPF, us a request | ns a run | ... times the fewest | agent, CPUs | MiB | maps, MiB | slabs grew, MiB | start, ms |".to_owned(),
        "|---|---|---|---|---|---|---|---|---|".to_owned(),
    ];
    let mut fewest: Option<(Many, &[Sample])> = None;
    for (&(many, count), samples) in samples {
        let base = match fewest {
            Some((of, base)) if of == many => base,
            _ => samples.as_slice(),
        };
        fewest = Some((many, base));
        let prefix = format!("scale/{}/{count}", many.name());
        let mut add = |what: &str, unit: &'static str, values: &[f64], budget: Option<f64>| {
            let figure = Figure::new(format!("{prefix}/{what}"), unit, values, budget.map(Budget::AtMost));
            let digits = if unit == "CPUs" { 4 } else { 2 };
            let missed = if figure.within == Some(false) { " !" } else { "" };
            let shown = format!("{:.digits$}{missed}", figure.value);
            figures.push(figure);
            shown
        };
        let values = |of: fn(&Sample) -> f64| samples.iter().map(of).collect::<Vec<_>>();
        // Of the same round.
        let times: Vec<f64> =
            samples.iter().zip(base).map(|(sample, base)| sample.run_ns / base.run_ns).collect();
        let cores = many.has_budget(count).then_some(MOST_CORES);
        let cells = [
            add("bpf", "us/request", &values(|sample| sample.request_us), None),
            add("bpf_run", "ns", &values(|sample| sample.run_ns), None),
            add("bpf_run/fewest", "1", &times, Some(FLAT)),
            add("agent_cpu", "CPUs", &values(|sample| sample.agent_cores), cores),
            add("agent_rss", "MiB", &values(|sample| sample.agent_mib), Some(MOST_MIB)),
            add("maps", "MiB", &values(|sample| sample.maps_mib), None),
            add("slab", "MiB", &values(|sample| sample.slab_mib), None),
            add("start", "ms", &values(|sample| sample.start_ms), None),
        ];
        lines.push(format!("| {count} {} | {} |", many.in_words(), cells.join(" | ")));
    }
    if figures.iter().any(|figure| figure.within == Some(false)) {
        lines.push(String::new());
        lines.push(format!(
            "! misses its budget: at most {FLAT} times the fewest, {MOST_CORES} CPUs with up to {BUDGETED_PROXIES} proxies, {MOST_MIB} MiB"
        ));
    }
    (figures, lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(run_ns: f64) -> Sample {
        Sample {
            request_us: 4.0,
            run_ns,
            agent_cores: 0.006,
            agent_mib: 25.0,
            maps_mib: 70.0,
            slab_mib: 1.0,
            start_ms: 300.0,
        }
    }

    #[test]
    fn the_most_are_held_against_the_fewest_of_the_same_round() {
        let samples = Samples::from([
            ((Many::Sockets, 10), vec![sample(100.0), sample(200.0)]),
            ((Many::Sockets, 20_000), vec![sample(110.0), sample(300.0)]),
            ((Many::Proxies, 1), vec![sample(50.0)]),
            ((Many::Proxies, 200), vec![sample(75.0)]),
        ]);
        let (figures, table) = told(&samples);
        let of = |name: &str| figures.iter().find(|figure| figure.name == name).unwrap();
        let times = of("scale/sockets/20000/bpf_run/fewest");
        assert!((times.value - 1.3).abs() < 1e-9 && times.within == Some(false));
        assert!((of("scale/proxies/200/bpf_run/fewest").value - 1.5).abs() < 1e-9);
        assert_eq!(of("scale/proxies/1/agent_cpu").within, Some(false));
        assert_eq!(of("scale/proxies/200/agent_cpu").within, None);
        assert!(table.contains("| 20000 sockets that rest | 4.00 | 205.00 | 1.30 ! |"), "{table}");
    }
}
