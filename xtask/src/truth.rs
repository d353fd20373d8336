//! `cargo xtask truth`: the agent's hop latencies against those of packets captured on both sides of the proxy.

mod verdict;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bed::capture::{Capture, Vantage};
use bed::load::Tally;
use bed::netns::{Bed, Family};
use bed::process::Child;
use bed::protocol::Protocol;
use bed::proxy::{Proxy, ProxyKind, Spec};
use bed::tools;
use bed::wire::{self, Direction, Latencies, Wire};
use serde::Serialize;

use crate::{cargo, setup};
use verdict::{Comparison, Document, Matching};

/// How long a server may take to listen.
const START_LONGEST: Duration = Duration::from_secs(10);
/// How much longer than the load the agent may take, to attach, drain and write.
const BEYOND_LOAD: Duration = Duration::from_mins(1);

/// What can be chosen.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Which proxies
    #[arg(long, value_delimiter = ',', default_values_t = ProxyKind::OF_MESHES)]
    proxy: Vec<ProxyKind>,
    /// Which protocol on both sides of the proxy
    #[arg(long, default_value_t = Protocol::H1)]
    protocol: Protocol,
    /// How many connections the load generator keeps busy
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 16, 64],
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: Vec<u32>,
    /// How long the load of each combination lasts, in seconds
    #[arg(long, value_name = "S", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Requests per second; without it, as fast as the responses come
    #[arg(long, value_name = "R")]
    rate: Option<f64>,
    /// Worker threads or processes of the proxy
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: u32,
    /// Use IPv6 instead of IPv4
    #[arg(long)]
    ipv6: bool,
    /// One JSON object a line: each number, then the sums
    #[arg(long)]
    json: bool,
    /// Run no agent: only what the packets say, and nothing is judged
    #[arg(long, conflicts_with = "json")]
    wire_only: bool,
}

/// The executables under test.
struct Programs {
    /// Nothing where only the packets are asked.
    agent: Option<PathBuf>,
    bed: PathBuf,
}

/// One line of `--json`.
#[derive(Serialize)]
struct Line<'a> {
    proxy: &'a str,
    protocol: &'a str,
    connections: u32,
    direction: &'a str,
    #[serde(flatten)]
    comparison: &'a Comparison,
}

/// The last line of `--json`: messages, over all combinations.
#[derive(Serialize)]
struct Sums {
    /// By the agent.
    seen: u64,
    /// Exactly or ambiguously.
    matched: u64,
    /// In the packets.
    wire: u64,
}

/// One combination, measured.
struct Cell {
    proxy: ProxyKind,
    connections: u32,
    load: Tally,
    /// In the order of [`Direction::ALL`].
    directions: [(Vec<Comparison>, u64); 2],
    /// Messages on the wire, both directions.
    wire: u64,
    matching: Matching,
    failures: Vec<String>,
}

/// The verb. The exit code is 1 when a number is outside the budget, a message in no class, or the truth itself
/// could not be had.
///
/// # Errors
/// When something cannot be built or started, the agent fails, or a capture is invalid.
pub fn run(options: &Options) -> Result<ExitCode> {
    setup::ensure()?;
    let agent = if options.wire_only { None } else { Some(cargo::agent()?) };
    cargo::run(&["build", "--release", "--package", "smp-agent-tests", "--bins"])?;
    let programs = Programs { agent, bed: tools::target().join("release/bed") };

    let (mut seen, mut matched, mut wire, mut failed) = (0, 0, 0, 0);
    if !options.json {
        println!("{}", header());
    }
    for &proxy in &options.proxy {
        for &connections in &options.connections {
            eprintln!(
                "{proxy}, {} workers, {connections} connections: {} s",
                options.workers, options.seconds
            );
            let cell = measure(options, &programs, proxy, connections)
                .with_context(|| format!("no truth of {proxy} with {connections} connections"))?;
            cell.print(options)?;
            for failure in &cell.failures {
                eprintln!("error: {proxy}, {connections} connections: {failure}");
            }
            seen += cell.matching.seen;
            matched += cell.matching.matched();
            wire += cell.wire;
            failed += cell.failures.len() + cell.outside();
        }
    }
    if options.json {
        println!("{}", serde_json::to_string(&Sums { seen, matched, wire })?);
    } else if options.wire_only {
        println!("{wire} messages on the wire");
    } else {
        println!("{wire} messages on the wire, {seen} seen by the agent, {matched} of them matched");
        println!("{}", if failed == 0 { "within the budget".to_owned() } else { format!("{failed} FAILED") });
    }
    Ok(if failed == 0 || options.wire_only { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure(options: &Options, programs: &Programs, kind: ProxyKind, connections: u32) -> Result<Cell> {
    let dir = tools::workspace().join(format!("target/truth/{kind}-{}-{connections}", options.protocol));
    let family = if options.ipv6 { Family::V6 } else { Family::V4 };
    let (listen, upstream) = (Bed::proxy_address(family), Bed::server_address(family));
    // What an earlier run left must not pass for this one's.
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", dir.display()));
        }
        _ => fs::create_dir_all(dir.join("proxy"))
            .with_context(|| format!("cannot create {}", dir.display()))?,
    }

    let bed = Bed::new()?;
    let mut backend = bed.server.command(&programs.bed);
    backend.args(["backend", "--listen", &upstream.to_string(), "--protocol", &options.protocol.to_string()]);
    let mut backend = Child::start("backend", &backend, &dir)?;
    backend.wait_for_port(upstream, START_LONGEST)?;
    let proxy = Proxy::start(&Spec {
        kind,
        workers: options.workers,
        protocol: options.protocol,
        netns: &bed.proxy,
        listen,
        upstream,
        dir: &dir.join("proxy"),
    })?;
    let capture = Capture::start(Vantage::of(&bed), wire::needs_whole_packets(options.protocol), &dir)?;

    let mut load = bed.client.wrap(&programs.bed);
    load.extend(["load", "--target", &listen.to_string()].map(Into::into));
    load.extend(["--protocol", &options.protocol.to_string()].map(Into::into));
    load.extend(["--connections", &connections.to_string()].map(Into::into));
    load.extend(["--seconds", &options.seconds.to_string()].map(Into::into));
    if let Some(rate) = options.rate {
        load.extend(["--rate", &rate.to_string()].map(Into::into));
    }
    let words = match &programs.agent {
        None => load,
        Some(agent) => {
            let mut words =
                vec![agent.into(), "run".into(), "--proxy".into(), proxy.pid().to_string().into()];
            words.extend(["--out".into(), dir.clone().into(), "--".into()]);
            words.extend(load);
            words
        }
    };
    let load = drive(&words, options, &dir)?;

    let captured = capture.stop()?;
    proxy.stop()?;
    backend.stop()?;
    drop(bed);
    let wire = captured.read(Wire::new(options.protocol))?;
    let latencies = valid(&wire, &load)?;
    let document = programs.agent.as_ref().map(|_| document(&dir)).transpose()?;
    Ok(Cell::judge(kind, connections, load, &latencies, document.as_ref()))
}

/// Runs the load, by way of the agent or not, and finds its tally among what both say.
fn drive(words: &[std::ffi::OsString], options: &Options, dir: &Path) -> Result<Tally> {
    let (program, arguments) = words.split_first().context("no program to run")?;
    let mut command = Command::new(program);
    command.args(arguments);
    let mut child = Child::start("measurement", &command, dir)?;
    let status = child.wait_for(Duration::from_secs(options.seconds.into()) + BEYOND_LOAD)?;
    ensure!(status.success(), "the measurement failed ({status}){}", child.tail());
    let said = child.log().map(fs::read_to_string).transpose()?.unwrap_or_default();
    said.lines()
        .find_map(|line| serde_json::from_str(line.trim()).ok())
        .with_context(|| format!("the load generator said nothing{}", child.tail()))
}

/// The latencies of both directions, if the capture holds every message of the load whole.
fn valid(wire: &Wire, load: &Tally) -> Result<[Latencies; 2]> {
    ensure!(load.requests > 0 && load.errors == 0, "the load failed: {load:?}");
    ensure!(
        wire.repeated == 0 && wire.nameless == 0,
        "the wire is no truth: {} retransmissions, {} messages without an id",
        wire.repeated,
        wire.nameless
    );
    let latencies = Direction::ALL.map(|direction| wire.latencies(direction));
    let expected = [load.requests, load.responses];
    for ((direction, latencies), expected) in Direction::ALL.into_iter().zip(&latencies).zip(expected) {
        ensure!(
            latencies.count() == expected && latencies.one_sided == 0 && latencies.backwards == 0,
            "the wire is no truth: {} {}s crossed, {} were seen on one side only, {} left before they arrived; \
             the load had {expected}",
            latencies.count(),
            direction.as_str(),
            latencies.one_sided,
            latencies.backwards
        );
    }
    Ok(latencies)
}

fn document(dir: &Path) -> Result<Document> {
    let path = dir.join("overhead.json");
    let text = fs::read(&path).with_context(|| format!("the agent left no {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not as expected", path.display()))
}

fn header() -> String {
    format!(
        "{:8} {:>5} {:9} {:6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "proxy", "conns", "direction", "us", "count", "mean", "p50", "p90", "p99", "p99.9"
    )
}

impl Cell {
    fn judge(
        proxy: ProxyKind,
        connections: u32,
        load: Tally,
        latencies: &[Latencies; 2],
        document: Option<&Document>,
    ) -> Self {
        let wire = latencies.iter().map(Latencies::count).sum();
        let matching = document.map(|document| document.matching.clone()).unwrap_or_default();
        let mut failures = document.map(|document| document.matching.failures(wire)).unwrap_or_default();
        let mut direction = |place: usize| {
            let wire = &latencies[place];
            let Some(document) = document else { return (verdict::wire_only(wire), wire.count()) };
            let (comparisons, wrong) = document.compare(Direction::ALL[place], wire);
            failures.extend(wrong);
            (comparisons, wire.count())
        };
        let directions = [direction(0), direction(1)];
        Self { proxy, connections, load, directions, wire, matching, failures }
    }

    /// How many numbers are outside the budget.
    fn outside(&self) -> usize {
        self.directions.iter().flat_map(|(comparisons, _)| comparisons).filter(|one| !one.within).count()
    }

    fn print(&self, options: &Options) -> Result<()> {
        for (direction, (comparisons, count)) in Direction::ALL.into_iter().zip(&self.directions) {
            let name = direction.as_str();
            if options.json {
                for comparison in comparisons {
                    let line = Line {
                        proxy: self.proxy.name(),
                        protocol: &options.protocol.to_string(),
                        connections: self.connections,
                        direction: name,
                        comparison,
                    };
                    println!("{}", serde_json::to_string(&line)?);
                }
                continue;
            }
            let row = |what: &str, count: &str, value: &dyn Fn(&Comparison) -> String| {
                let values: Vec<_> = comparisons.iter().map(|one| format!("{:>9}", value(one))).collect();
                println!(
                    "{:8} {:>5} {name:9} {what:6} {count:>9} {}",
                    self.proxy.name(),
                    self.connections,
                    values.join(" ")
                );
            };
            let agent = |one: &Comparison| one.agent_us.map_or("-".to_owned(), |us| format!("{us:.1}"));
            row("wire", &count.to_string(), &|one| format!("{:.1}", one.wire_us));
            if options.wire_only {
                continue;
            }
            row("agent", "", &agent);
            row("error", "", &|one| {
                let mark = if one.within { ' ' } else { '!' };
                one.agent_us.map_or("-!".to_owned(), |us| format!("{:+.1}{mark}", us - one.wire_us))
            });
        }
        eprintln!(
            "{} requests, {:.0} a second; {} messages on the wire, {} seen by the agent",
            self.load.requests,
            self.load.requests as f64 / self.load.seconds,
            self.wire,
            self.matching.seen
        );
        Ok(())
    }
}
