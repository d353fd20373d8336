//! `cargo xtask truth`: the agent's hop latencies against those of packets captured on both sides of the proxy.

mod bounds;
mod cell;
mod matrix;
mod options;
mod pair;
mod print;
mod table;
mod verdict;

use std::collections::BTreeSet;
use std::fmt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use bed::netns::Family;
use bed::process;
use bed::protocol::Protocol;
use bed::proxy::ProxyKind;
use bed::tools;
use serde::Serialize;

use crate::{cargo, files, setup};
use cell::{Outcome, Programs};
use matrix::Cell;
pub use options::Options;
use table::Table;

/// What CI measures: each of the three proxies that meshes run, and each way to carry messages that takes another
/// path through the agent.
const SHORT: [(ProxyKind, Protocol); 22] = [
    (ProxyKind::Envoy, Protocol::H1),
    (ProxyKind::Envoy, Protocol::H1Close),
    (ProxyKind::Envoy, Protocol::H1Body(1 << 10)),
    (ProxyKind::Envoy, Protocol::H1Local),
    (ProxyKind::Envoy, Protocol::H1Hosts),
    (ProxyKind::Envoy, Protocol::Tcp),
    (ProxyKind::Envoy, Protocol::H2(10)),
    (ProxyKind::Envoy, Protocol::MtlsH1),
    (ProxyKind::Envoy, Protocol::MtlsH2),
    (ProxyKind::Nginx, Protocol::H1),
    (ProxyKind::Nginx, Protocol::H1Body(1 << 10)),
    (ProxyKind::Nginx, Protocol::H1Chunked(64 << 10)),
    (ProxyKind::Nginx, Protocol::TcpServerFirst),
    (ProxyKind::Haproxy, Protocol::H1),
    (ProxyKind::Haproxy, Protocol::H1Close),
    (ProxyKind::Haproxy, Protocol::H1Chunked(1 << 10)),
    (ProxyKind::Haproxy, Protocol::H1Local),
    (ProxyKind::Haproxy, Protocol::H1Checked),
    (ProxyKind::Haproxy, Protocol::Tcp),
    (ProxyKind::Go, Protocol::H1),
    (ProxyKind::Hyper, Protocol::H1),
    (ProxyKind::IoUring, Protocol::TcpServerFirst),
];
const SHORT_CONNECTIONS: u32 = 16;
const SHORT_DURATION: Duration = Duration::from_secs(3);

/// The last line of `--json`: messages, over all combinations.
#[derive(Default, Serialize)]
struct Sums {
    /// By the agent.
    seen: u64,
    /// Exactly or ambiguously.
    matched: u64,
    /// In the packets.
    wire: u64,
}

/// What came of the combinations.
#[derive(Default)]
struct Count {
    /// Those whose numbers are judged.
    judged: usize,
    /// Those of them with nothing wrong.
    within: usize,
    /// Those whose numbers are not judged.
    others: usize,
    /// Those of all with something wrong.
    wrong: usize,
}

/// The verb. The exit code is 1 when a number is outside its bound, a message in no class, or the truth itself could
/// not be had; what is wrong with one combination does not keep the others from being measured.
///
/// # Errors
/// When something cannot be built, or a result not be written.
pub fn run(options: &Options) -> Result<ExitCode> {
    let cells = options.cells()?;
    let packages: BTreeSet<_> = cells.iter().filter_map(|cell| cell.proxy.package()).collect();
    setup::ensure_with(&Vec::from_iter(packages))?;
    if options.short {
        let (passed, failed) = short()?;
        println!("{passed} passed, {failed} failed");
        return Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    process::raise_file_limit()?;
    let programs = Programs::build(options.agent()?, options.may_sleep)?;
    // With `--json`, standard output is for programs.
    let say = |text: &str| if options.json { eprintln!("{text}") } else { println!("{text}") };

    let started = Instant::now();
    let (mut sums, mut count, mut table, mut lines) =
        (Sums::default(), Count::default(), Table::default(), Vec::new());
    if !options.json {
        say(&print::header());
    }
    for (done, &cell) in cells.iter().enumerate() {
        eprintln!("{}", progress(done, cells.len(), started.elapsed(), &cell));
        let outcome = if options.all { programs.settle(cell) } else { programs.measure(cell) };
        show(&outcome, options.json)?;
        sums.add(&outcome);
        count.add(&outcome);
        if options.all {
            table.add(&outcome);
            lines.push(print::line(&outcome)?);
            // Anew with every combination: whoever ends this early has what was measured.
            files::write_whole(&tools::workspace().join("target/truth"), "matrix.jsonl", &lines)?;
        }
    }
    if options.json {
        println!("{}", serde_json::to_string(&sums)?);
    }
    if options.all && !options.wire_only {
        say(&format!("\n{}\n", table.markdown()));
    }
    if options.wire_only {
        say(&format!(
            "{} messages on the wire; {} of {} combinations measured",
            sums.wire,
            cells.len() - count.wrong,
            cells.len()
        ));
    } else {
        say(&sums.to_string());
        say(&count.to_string());
    }
    Ok(if count.wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The short form for CI: some combinations for a few seconds each. Says of each whether it passed, as tests do,
/// and returns how many did and how many did not.
///
/// # Errors
/// When something cannot be built.
pub fn short() -> Result<(u64, u64)> {
    process::raise_file_limit()?;
    let programs = Programs::build(Some(cargo::agent()?), false)?;
    let (mut passed, mut failed) = (0, 0);
    for (proxy, protocol) in SHORT {
        let cell = Cell {
            proxy,
            workers: 2,
            protocol,
            connections: SHORT_CONNECTIONS,
            rate: None,
            duration: SHORT_DURATION,
            family: Family::V4,
        };
        let outcome = programs.settle(cell);
        if outcome.wrong() == 0 {
            println!("test truth of {cell} ... ok");
            passed += 1;
        } else {
            show(&outcome, false)?;
            println!("test truth of {cell} ... FAILED");
            failed += 1;
        }
    }
    Ok((passed, failed))
}

/// Shows what came of a combination, and what is wrong with it.
fn show(outcome: &Outcome, json: bool) -> Result<()> {
    if let Ok(measured) = &outcome.measured {
        let lines = if json {
            print::numbers(&outcome.cell, measured)?
        } else {
            print::rows(&outcome.cell, measured)
        };
        println!("{}", lines.join("\n"));
        eprintln!("{}", print::amounts(measured));
    }
    for failure in outcome.failures() {
        eprintln!("error: {}: {failure}", outcome.cell);
    }
    Ok(())
}

/// What is measured next, and how long all of it will take.
fn progress(done: usize, all: usize, elapsed: Duration, cell: &Cell) -> String {
    let left = if done == 0 {
        String::new()
    } else {
        let left = elapsed.div_f64(done as f64).mul_f64((all - done) as f64);
        format!(", {}:{:02} min left", left.as_secs() / 60, left.as_secs() % 60)
    };
    format!("[{} of {all}{left}] {cell}, {} s", done + 1, cell.duration.as_secs())
}

impl Count {
    fn add(&mut self, outcome: &Outcome) {
        let (right, judged) = (outcome.wrong() == 0, bounds::judges(&outcome.cell));
        self.judged += usize::from(judged);
        self.within += usize::from(judged && right);
        self.others += usize::from(!judged);
        self.wrong += usize::from(!right);
    }
}

impl fmt::Display for Count {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { judged, within, others, .. } = self;
        write!(formatter, "{within} of {judged} combinations within their bounds")?;
        if *others > 0 { write!(formatter, ", {others} not judged") } else { Ok(()) }
    }
}

impl Sums {
    fn add(&mut self, outcome: &Outcome) {
        let Ok(measured) = &outcome.measured else { return };
        self.wire += measured.wire;
        if let Some(matching) = &measured.matching {
            self.seen += matching.seen;
            self.matched += matching.matched();
        }
    }
}

impl fmt::Display for Sums {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seen, matched, wire } = self;
        write!(formatter, "{wire} messages on the wire, {seen} seen by the agent, {matched} of them matched")
    }
}
