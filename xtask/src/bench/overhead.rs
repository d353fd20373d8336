//! `cargo xtask bench overhead`: a saturated proxy with and without the probes.
//!
//! Machines are noisy, so what is compared runs in turn, round after round, each between two loads without an agent. What
//! counts is the median of the rounds. BPF time is the kernel's own count, of client, proxy and server on one machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use bed::process::Child;
use bed::proxy::ProxyKind;
use bed::tools;

use super::load::{Answered, Load};
use super::programs::{self, Programs};
use super::result::{Budget, Figure, leave};
use crate::scene::Scene;
use crate::{cargo, setup};

/// BPF time of a proxied request, both ways, all hooks on.
const MOST_US: f64 = 2.0;
/// ... as a multiple of programs that return at once.
const MOST_TIMES_EMPTY: f64 = 1.6;
/// Requests per second, as a share of those without an agent.
const LEAST_SHARE: f64 = 0.98;

/// How long the agent may take to load and attach its probes.
const LONGEST_START: Duration = Duration::from_secs(30);

/// What can be chosen.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Which proxy: envoy, nginx, haproxy, go, hyper, tokio-tcp, blocking, io-uring or splice
    #[arg(long, default_value = "envoy")]
    proxy: ProxyKind,
    /// How many connections the load generator keeps busy
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(2..=1000))]
    connections: u32,
    /// How often everything is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long each load lasts, in seconds
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
}

/// What runs beside the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Variant {
    /// All programs, which return at once: what calling them costs.
    Empty,
    /// Latencies without CPU time.
    Hops,
    /// Everything.
    All,
}

/// One load with an agent, against those before and after it.
struct Sample {
    /// Time and runs of each program for each request.
    programs: BTreeMap<String, PerRequest>,
    /// Requests per second, as a share of those without an agent.
    share: f64,
}

#[derive(Clone, Copy, Default)]
struct PerRequest {
    took_us: f64,
    runs: f64,
}

impl Variant {
    const EACH: [Self; 3] = [Self::Empty, Self::Hops, Self::All];

    const fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Hops => "hops",
            Self::All => "all",
        }
    }

    const fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Empty => &["--empty"],
            Self::Hops => &["--without", "switch", "--without", "softirq_begin", "--without", "softirq_end"],
            Self::All => &[],
        }
    }
}

/// The verb.
///
/// # Errors
/// When something cannot be brought, built, started or measured.
pub fn run(options: &Options) -> Result<()> {
    setup::ensure()?;
    let agent = cargo::agent()?;
    let dir = tools::workspace().join("target/bench/log");
    let scene = Scene::start(options.proxy, &dir)?;
    let load = Load {
        client: &scene.bed.client,
        target: Scene::listen(),
        connections: options.connections,
        seconds: options.seconds,
    };
    let mut samples = BTreeMap::<Variant, Vec<Sample>>::new();
    // Connections to the server are open from here on.
    let mut before = load.run()?;
    for round in 1..=options.rounds {
        // In another order each time: what comes first in a round was seen to take 7 % less than what comes last.
        for place in 0..Variant::EACH.len() {
            let variant = Variant::EACH[(place + round as usize) % Variant::EACH.len()];
            eprintln!("[round {round} of {}] {}, {} s", options.rounds, variant.name(), options.seconds);
            let (answered, programs) = with_agent(&agent, variant, scene.proxy.pid(), &load, &dir)?;
            let after = load.run()?;
            let without = f64::midpoint(before.requests_per_second, after.requests_per_second);
            let share = answered.requests_per_second / without;
            samples.entry(variant).or_default().push(Sample { programs, share });
            before = after;
        }
    }
    scene.stop()?;
    let figures = figures(options.proxy, &samples);
    println!("{}", table(options, &figures));
    leave("overhead", &figures)
}

/// Loads the proxy while an agent measures it.
fn with_agent(
    agent: &Path,
    variant: Variant,
    proxy: u32,
    load: &Load<'_>,
    dir: &Path,
) -> Result<(Answered, BTreeMap<String, PerRequest>)> {
    let mut command = Command::new(agent);
    // Port 0: nobody scrapes it.
    command.args(["daemon", "--proxy", &proxy.to_string(), "--metrics", "127.0.0.1:0"]);
    command.args(variant.arguments());
    let mut daemon = Child::start("agent", &command, dir)?;
    daemon.until(LONGEST_START, "measure", |daemon| {
        if let Some(status) = daemon.poll()? {
            bail!("the agent ended with {status}{}", daemon.tail());
        }
        Ok(daemon.tail().contains("measuring 1 prox").then_some(()))
    })?;
    let before = programs::of(daemon.pid())?;
    let answered = load.run()?;
    let after = programs::of(daemon.pid())?;
    daemon.stop()?;
    Ok((answered, per_request(&before, &after, answered.requests)))
}

/// What was counted between two looks, for each of so many requests; of programs that ran.
fn per_request(before: &Programs, after: &Programs, requests: u64) -> BTreeMap<String, PerRequest> {
    let share = |count: u64| count as f64 / requests.max(1) as f64;
    let ran = after.iter().map(|(name, after)| {
        let before = before.get(name).copied().unwrap_or_default();
        let took_us = share(after.took_ns.saturating_sub(before.took_ns)) / 1e3;
        (name.clone(), PerRequest { took_us, runs: share(after.count.saturating_sub(before.count)) })
    });
    ran.filter(|(_, ran)| ran.runs > 0.0).collect()
}

/// Of each variant the whole, then each program.
fn figures(proxy: ProxyKind, samples: &BTreeMap<Variant, Vec<Sample>>) -> Vec<Figure> {
    let whole = |sample: &Sample| sample.programs.values().map(|program| program.took_us).sum::<f64>();
    let empty: Vec<f64> = samples.get(&Variant::Empty).into_iter().flatten().map(whole).collect();
    let mut figures = Vec::new();
    for (variant, samples) in samples {
        let all = *variant == Variant::All;
        let budget = |budget| all.then_some(budget);
        let name = |what: &str| format!("{proxy}/{}/{what}", variant.name());
        let values = |of: &dyn Fn(&Sample) -> f64| samples.iter().map(of).collect::<Vec<_>>();
        let took = values(&whole);
        // Of the same round.
        let times: Vec<f64> = took.iter().zip(&empty).map(|(took, empty)| took / empty).collect();
        let runs = values(&|sample| sample.programs.values().map(|program| program.runs).sum());
        figures.extend([
            Figure::new(name("bpf"), "us/request", &took, budget(Budget::AtMost(MOST_US))),
            Figure::new(name("bpf/empty"), "1", &times, budget(Budget::AtMost(MOST_TIMES_EMPTY))),
            Figure::new(name("runs"), "1/request", &runs, None),
            Figure::new(
                name("requests"),
                "share of those without an agent",
                &values(&|sample| sample.share),
                budget(Budget::AtLeast(LEAST_SHARE)),
            ),
        ]);
        let programs: BTreeSet<_> = samples.iter().flat_map(|sample| sample.programs.keys()).collect();
        figures.extend(programs.into_iter().map(|program| {
            let took = |sample: &Sample| sample.programs.get(program).map_or(0.0, |program| program.took_us);
            Figure::new(name(&format!("bpf/program/{program}")), "us/request", &values(&took), None)
        }));
    }
    figures
}

/// The figures for people: medians, smallest and largest.
fn table(options: &Options, figures: &[Figure]) -> String {
    let Options { proxy, connections, rounds, seconds } = options;
    let shown = |variant: Variant, what: &str| {
        let name = format!("{proxy}/{}/{what}", variant.name());
        figures.iter().find(|figure| figure.name == name).map_or_else(|| "-".to_owned(), Figure::shown)
    };
    let mut lines = vec![
        format!(
            "{proxy}, {connections} connections, {rounds} rounds of {seconds} s: medians (smallest to largest)"
        ),
        String::new(),
        "| probes | BPF, us a request | times empty | runs a request | requests/s of those without |"
            .to_owned(),
        "|---|---|---|---|---|".to_owned(),
    ];
    for variant in Variant::EACH {
        let [took, times, runs, requests] =
            ["bpf", "bpf/empty", "runs", "requests"].map(|what| shown(variant, what));
        lines.push(format!("| {} | {took} | {times} | {runs} | {requests} |", variant.name()));
    }
    lines.push(String::new());
    lines.push("| program | empty, us a request | all |".to_owned());
    lines.push("|---|---|---|".to_owned());
    let prefix = format!("{proxy}/{}/bpf/program/", Variant::All.name());
    // Without those that run for processes and connections, not for messages.
    let frequent = figures.iter().filter(|figure| figure.value >= 0.01);
    for program in frequent.filter_map(|figure| figure.name.strip_prefix(&prefix)) {
        let what = format!("bpf/program/{program}");
        let [empty, all] = [Variant::Empty, Variant::All].map(|variant| shown(variant, &what));
        lines.push(format!("| {program} | {empty} | {all} |"));
    }
    if figures.iter().any(|figure| figure.within == Some(false)) {
        lines.push(String::new());
        lines.push(format!(
            "! misses its budget: at most {MOST_US} us and {MOST_TIMES_EMPTY} times empty, at least {LEAST_SHARE} of the requests"
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::programs::Runs;
    use super::*;

    fn programs(runs: &[(&str, u64, u64)]) -> Programs {
        runs.iter().map(|&(name, took_ns, count)| (name.to_owned(), Runs { took_ns, count })).collect()
    }

    #[test]
    fn what_ran_is_shared_out_among_the_requests() {
        let before = programs(&[("read", 1000, 10), ("state", 50, 1)]);
        let after = programs(&[("read", 9000, 50), ("state", 50, 1), ("write", 4000, 20)]);
        let each = per_request(&before, &after, 10);
        assert_eq!(each.keys().collect::<Vec<_>>(), ["read", "write"]);
        assert!((each["read"].took_us - 0.8).abs() < 1e-9 && (each["read"].runs - 4.0).abs() < 1e-9);
        assert!((each["write"].took_us - 0.4).abs() < 1e-9);
    }

    #[test]
    fn rounds_are_held_against_the_empty_programs_of_the_same() {
        let sample = |took_us: f64| Sample {
            programs: BTreeMap::from([("read".to_owned(), PerRequest { took_us, runs: 4.0 })]),
            share: 0.9,
        };
        let samples = BTreeMap::from([
            (Variant::Empty, vec![sample(1.0), sample(2.0)]),
            (Variant::All, vec![sample(3.0), sample(6.0)]),
        ]);
        let figures = figures(ProxyKind::Envoy, &samples);
        let of = |name: &str| figures.iter().find(|figure| figure.name == name).unwrap();
        assert_eq!((of("envoy/all/bpf/empty").value, of("envoy/all/bpf/empty").spread), (3.0, [3.0, 3.0]));
        assert_eq!(of("envoy/all/requests").within, Some(false));
        assert_eq!(of("envoy/empty/bpf").within, None);
        let options = Options { proxy: ProxyKind::Envoy, connections: 16, rounds: 2, seconds: 4 };
        let table = table(&options, &figures);
        assert!(table.contains("| all | 4.50 (3.00 to 6.00) ! | 3.00 (3.00 to 3.00) ! | 4.00"), "{table}");
        assert!(table.contains("| hops | - |"), "{table}");
    }
}
