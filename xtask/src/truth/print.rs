//! What is shown of a measured combination: rows for people, lines of JSON for programs.

use anyhow::Result;
use serde::Serialize;

use super::cell::{Measured, Outcome, Path, name};
use super::matrix::Cell;
use super::verdict::{Comparison, Matching};

/// One number of `--json`.
#[derive(Serialize)]
struct Number<'a> {
    proxy: String,
    protocol: &'a str,
    connections: u32,
    direction: &'a str,
    #[serde(flatten)]
    comparison: &'a Comparison,
    workers: u32,
    /// Requests a second asked for.
    rate: Option<f64>,
}

/// One combination of the matrix's file.
#[derive(Serialize)]
struct Line<'a> {
    proxy: &'a str,
    workers: u32,
    protocol: &'a str,
    connections: u32,
    /// Requests a second asked for.
    rate: Option<f64>,
    seconds: f64,
    within: bool,
    /// Whether it was outside at first, and measured twice more.
    again: bool,
    /// Requests answered; nothing where it could not be measured.
    requests: Option<u64>,
    /// Messages in the packets, both directions.
    wire: Option<u64>,
    matching: Option<&'a Matching>,
    numbers: Vec<Directed<'a>>,
    failures: &'a [String],
}

#[derive(Serialize)]
struct Directed<'a> {
    proxy: String,
    direction: &'a str,
    #[serde(flatten)]
    comparison: &'a Comparison,
}

/// A combination as one line of JSON.
pub fn line(outcome: &Outcome) -> Result<String> {
    let cell = &outcome.cell;
    let measured = outcome.measured.as_ref().ok();
    let numbers = measured.into_iter().flat_map(Measured::comparisons);
    Ok(serde_json::to_string(&Line {
        proxy: cell.proxy.name(),
        workers: cell.workers,
        protocol: &cell.protocol.to_string(),
        connections: cell.connections,
        rate: cell.rate,
        seconds: cell.duration.as_secs_f64(),
        within: outcome.wrong() == 0,
        again: outcome.again,
        requests: measured.map(|measured| measured.load.requests),
        wire: measured.map(|measured| measured.wire),
        matching: measured.and_then(|measured| measured.matching.as_ref()),
        numbers: numbers
            .map(|(path, comparison)| Directed {
                proxy: name(cell, path.end),
                direction: path.direction.as_str(),
                comparison,
            })
            .collect(),
        failures: outcome.failures(),
    })?)
}

/// The numbers of a combination, each as one line of JSON.
pub fn numbers(cell: &Cell, measured: &Measured) -> Result<Vec<String>> {
    let protocol = cell.protocol.to_string();
    let line = |(path, comparison): (&Path, _)| {
        Ok(serde_json::to_string(&Number {
            proxy: name(cell, path.end),
            protocol: &protocol,
            connections: cell.connections,
            direction: path.direction.as_str(),
            comparison,
            workers: cell.workers,
            rate: cell.rate,
        })?)
    };
    measured.comparisons().map(line).collect()
}

/// What stands above the rows.
pub fn header() -> String {
    format!(
        "{:14} {:>2} {:18} {:>8} {:9} {:6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "proxy", "w", "protocol", "conns", "direction", "us", "count", "mean", "p50", "p90", "p99", "p99.9"
    )
}

/// The rows of a combination: what the packets say, what the agent says, and the difference, for each direction.
pub fn rows(cell: &Cell, measured: &Measured) -> Vec<String> {
    let mut rows = Vec::new();
    for path in &measured.paths {
        let (proxy, comparisons) = (name(cell, path.end), &path.comparisons);
        let mut row = |what: &str, count: &str, value: &dyn Fn(&Comparison) -> String| {
            let values: Vec<_> = comparisons.iter().map(|one| format!("{:>9}", value(one))).collect();
            rows.push(format!(
                "{:14} {:>2} {:18} {:>8} {:9} {what:6} {count:>9} {}",
                proxy,
                cell.workers,
                cell.protocol,
                cell.load(),
                path.direction.as_str(),
                values.join(" ")
            ));
        };
        row("wire", &path.count.to_string(), &|one| format!("{:.1}", one.wire_us));
        if measured.matching.is_none() {
            continue;
        }
        row("agent", "", &|one| one.agent_us.map_or("-".to_owned(), |us| format!("{us:.1}")));
        row("error", "", &|one| {
            let mark = if one.within { ' ' } else { '!' };
            one.error_us().map_or("-!".to_owned(), |us| format!("{us:+.1}{mark}"))
        });
    }
    rows
}

/// How much there was.
pub fn amounts(measured: &Measured) -> String {
    let rate = measured.load.requests as f64 / measured.load.seconds;
    let (requests, wire) = (measured.load.requests, measured.wire);
    let seen = measured.matching.as_ref().map_or_else(String::new, |it| {
        format!(", {} seen by the agent, {} of the proxy's own", it.seen, it.local)
    });
    format!("{requests} requests, {rate:.0} a second; {wire} messages on the wire{seen}")
}
