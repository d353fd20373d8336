//! `cargo xtask bench overhead`: proxies with and without the probes, saturated and at a fixed rate.
//!
//! Machines are noisy, so what is compared runs in turn, round after round, each between two loads without an agent. What
//! counts is the median of the rounds. BPF time is the kernel's own count, of client, proxies and server on one machine.

mod figures;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use bed::load::Took;
use bed::proxy::ProxyKind;
use bed::tools;

use super::daemon::Daemon;
use super::kernel::{self, Programs};
use super::load::{Answered, Load, Pace};
use super::result::{Figure, Stamp, leave};
use super::subject::{Stage, Subject};
use crate::{cargo, setup};

/// What is measured unless something is chosen.
const SUBJECTS: [Subject; 5] = [
    Subject::Mtls(ProxyKind::Envoy),
    Subject::One(ProxyKind::Envoy),
    Subject::One(ProxyKind::Nginx),
    Subject::One(ProxyKind::Haproxy),
    Subject::Direct,
];

/// The fixed rate as a part of what saturates, and the most that the load generator's one thread sends in time.
const FIXED_PART: u64 = 4;
const FIXED_MOST: u64 = 5_000;

/// What can be chosen.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// What load passes: direct, a proxy as envoy, or a pair with mutual TLS as envoy-mtls; repeatable [without it: envoy-mtls, envoy, nginx, haproxy and direct]
    #[arg(long, value_name = "SUBJECT")]
    subject: Vec<Subject>,
    /// How many connections the load generator keeps busy
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(2..=1000))]
    connections: u32,
    /// How often everything is measured
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long each load lasts, in seconds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=600))]
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
    /// CPU time of the whole machine for each request, us, beyond that without an agent.
    added_cpu_us: f64,
    /// At a fixed rate: how long requests took without an agent and with it.
    took: Option<[Took; 2]>,
    /// CPUs that the agent's threads kept busy.
    agent_cores: f64,
    /// The agent's memory.
    agent_mib: f64,
}

#[derive(Clone, Copy, Default)]
struct PerRequest {
    took_us: f64,
    runs: f64,
}

/// A load, and what it took of the machine.
#[derive(Clone, Copy)]
struct Loaded {
    answered: Answered,
    /// CPU time of the whole machine for each request.
    cpu_us: f64,
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

impl Default for Options {
    fn default() -> Self {
        Self { subject: Vec::new(), connections: 16, rounds: 4, seconds: 3 }
    }
}

/// The verb. What is measured already stays when a later subject fails.
///
/// # Errors
/// When something cannot be brought, built, started or measured.
pub fn run(options: &Options) -> Result<()> {
    setup::ensure()?;
    let agent = cargo::agent()?;
    cargo::run(&["build", "--release", "--package", "smp-agent-tests", "--bins"])?;
    let chosen = if options.subject.is_empty() { &SUBJECTS[..] } else { &options.subject };
    let stamp = Stamp::now();
    let mut figures: Vec<Figure> = Vec::new();
    for (place, subject) in chosen.iter().enumerate() {
        let dir = tools::workspace().join("target/bench/log").join(subject.to_string());
        let stage = subject.start(&dir).with_context(|| format!("{subject}"))?;
        let of = format!("{} of {}, {subject}", place + 1, chosen.len());
        let measured = measure(options, &agent, &stage, &dir, &of);
        let (samples, rate) = measured.with_context(|| format!("{subject}"))?;
        stage.stop()?;
        for (pace, samples) in &samples {
            let name = match pace {
                Pace::Saturating => format!("{subject}/saturated"),
                Pace::Fixed(_) => format!("{subject}/fixed"),
            };
            figures.extend(figures::of(&name, samples));
        }
        println!("{}\n", figures::table(&subject.to_string(), rate, options, &figures));
        leave("overhead", &stamp, &figures)?;
    }
    Ok(())
}

type Samples = BTreeMap<Variant, Vec<Sample>>;

/// All rounds of a subject, saturated and at the fixed rate that it says.
fn measure(
    options: &Options,
    agent: &Path,
    stage: &Stage,
    dir: &Path,
    of: &str,
) -> Result<([(Pace, Samples); 2], u32)> {
    let load = Load {
        client: stage.client(),
        target: stage.target(),
        connections: options.connections,
        seconds: options.seconds,
    };
    // Connections to the server are open from here on.
    let saturated = load.run(Pace::Saturating)?;
    let rate =
        (saturated.requests / u64::from(options.seconds)).clamp(1, FIXED_MOST * FIXED_PART) / FIXED_PART;
    let rate = u32::try_from(rate.max(1))?;
    let mut measured = [Pace::Saturating, Pace::Fixed(rate)].map(|pace| (pace, Samples::new()));
    for (pace, samples) in &mut measured {
        let mut before = loaded(&load, *pace)?;
        for round in 1..=options.rounds {
            // In another order each time: what comes first in a round was seen to take 7 % less than what comes last.
            for place in 0..Variant::EACH.len() {
                let variant = Variant::EACH[(place + round as usize) % Variant::EACH.len()];
                let (name, rounds) = (variant.name(), options.rounds);
                let pace_name = match pace {
                    Pace::Saturating => "saturated".to_owned(),
                    Pace::Fixed(rate) => format!("{rate} requests a second"),
                };
                eprintln!("[{of}, {pace_name}, round {round} of {rounds}] {name}, {} s", options.seconds);
                let mut sample = with_agent(agent, variant, stage, &load, *pace, dir)?;
                let after = loaded(&load, *pace)?;
                sample.against(before, after);
                samples.entry(variant).or_default().push(sample);
                before = after;
            }
        }
    }
    Ok((measured, rate))
}

fn loaded(load: &Load<'_>, pace: Pace) -> Result<Loaded> {
    let before_us = kernel::busy_us()?;
    let answered = load.run(pace)?;
    let cpu_us = (kernel::busy_us()? - before_us) / answered.requests.max(1) as f64;
    Ok(Loaded { answered, cpu_us })
}

/// Load while an agent measures; what is said against loads without one is as of nothing yet.
fn with_agent(
    agent: &Path,
    variant: Variant,
    stage: &Stage,
    load: &Load<'_>,
    pace: Pace,
    dir: &Path,
) -> Result<Sample> {
    let daemon = Daemon::start(agent, &stage.proxies(), variant.arguments(), dir)?;
    let before = daemon.look()?;
    let Loaded { answered, cpu_us } = loaded(load, pace)?;
    let after = daemon.look()?;
    daemon.stop()?;
    Ok(Sample {
        programs: per_request(&before.kernel.programs, &after.kernel.programs, answered.requests),
        share: answered.requests_per_second,
        added_cpu_us: cpu_us,
        took: answered.took.map(|took| [Took::default(), took]),
        agent_cores: after.cores_since(&before),
        agent_mib: after.rss_mib,
    })
}

impl Sample {
    /// Holds it against the loads before and after it.
    fn against(&mut self, before: Loaded, after: Loaded) {
        let between = |of: fn(&Loaded) -> f64| f64::midpoint(of(&before), of(&after));
        self.share /= between(|loaded| loaded.answered.requests_per_second);
        self.added_cpu_us -= between(|loaded| loaded.cpu_us);
        if let (Some([without, _]), Some(before), Some(after)) =
            (&mut self.took, before.answered.took, after.answered.took)
        {
            *without = Took {
                p50_us: f64::midpoint(before.p50_us, after.p50_us),
                p99_us: f64::midpoint(before.p99_us, after.p99_us),
                p999_us: f64::midpoint(before.p999_us, after.p999_us),
            };
        }
    }
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

#[cfg(test)]
mod tests {
    use super::super::kernel::Runs;
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
    fn a_load_is_held_against_its_neighbours() {
        let took = |p99_us| Some(Took { p50_us: 1.0, p99_us, p999_us: 3.0 });
        let load = |requests_per_second, cpu_us, p99_us| Loaded {
            answered: Answered { requests: 1, requests_per_second, took: took(p99_us) },
            cpu_us,
        };
        let mut sample = Sample {
            programs: BTreeMap::new(),
            share: 90.0,
            added_cpu_us: 14.0,
            took: took(25.0).map(|with| [Took::default(), with]),
            agent_cores: 0.0,
            agent_mib: 0.0,
        };
        sample.against(load(80.0, 10.0, 10.0), load(120.0, 12.0, 20.0));
        assert!((sample.share - 0.9).abs() < 1e-9 && (sample.added_cpu_us - 3.0).abs() < 1e-9);
        let [without, with] = sample.took.unwrap();
        assert!((without.p99_us - 15.0).abs() < 1e-9 && (with.p99_us - 25.0).abs() < 1e-9);
    }
}
