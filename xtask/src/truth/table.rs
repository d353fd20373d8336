//! The matrix in short, as Markdown: one row for each proxy and protocol.

use bed::protocol::Protocol;
use bed::proxy::ProxyKind;

use super::bounds;
use super::cell::{Outcome, name};
use super::verdict::{Comparison, Matching};

const HEADER: &str = "\
| proxy | protocol | cells within | worst error | of | exact | ambiguous | unmatched, lost |
|---|---|---|---|---|---|---|---|";

/// The table being made.
#[derive(Default)]
pub struct Table {
    /// In the order in which proxies and protocols came.
    rows: Vec<Row>,
}

/// What is known of a proxy with a protocol.
struct Row {
    proxy: ProxyKind,
    protocol: Protocol,
    /// Those that are judged.
    cells: usize,
    within: usize,
    /// Of those within, how many were outside at first.
    again: usize,
    worst: Option<Worst>,
    /// Of all cells together.
    classes: Matching,
}

/// The number that uses most of its bound.
struct Worst {
    /// The error as a share of the bound.
    used: f64,
    error_us: f64,
    /// The error as a share of the truth.
    error_share: f64,
    /// Which number it is.
    number: String,
}

impl Table {
    /// Takes a combination; one that could not be measured counts as not within.
    pub fn add(&mut self, outcome: &Outcome) {
        let (proxy, protocol) = (outcome.cell.proxy, outcome.cell.protocol);
        let known = self.rows.iter().position(|row| (row.proxy, row.protocol) == (proxy, protocol));
        let place = known.unwrap_or_else(|| {
            let classes = Matching::default();
            self.rows.push(Row { proxy, protocol, cells: 0, within: 0, again: 0, worst: None, classes });
            self.rows.len() - 1
        });
        let row = &mut self.rows[place];
        if bounds::judges(&outcome.cell) {
            row.cells += 1;
            row.within += usize::from(outcome.wrong() == 0);
            row.again += usize::from(outcome.wrong() == 0 && outcome.again);
        }
        let Ok(measured) = &outcome.measured else { return };
        if let Some(matching) = &measured.matching {
            row.classes.add(matching);
        }
        let load = format!("{} workers, {} conns", outcome.cell.workers, outcome.cell.load());
        for (path, one) in measured.comparisons() {
            let end = path.end.map_or_else(String::new, |end| format!("{} ", name(&outcome.cell, Some(end))));
            let number = format!("{end}{} {}, {load}", path.direction.as_str(), one.stat);
            let Some(worst) = Worst::new(one, number) else { continue };
            if row.worst.as_ref().is_none_or(|known| known.used < worst.used) {
                row.worst = Some(worst);
            }
        }
    }

    /// The lines of the table, and what its words mean.
    pub fn markdown(&self) -> String {
        let mut lines = vec![HEADER.to_owned()];
        lines.extend(self.rows.iter().map(Row::line));
        lines.extend([String::new(), bounds::in_words()]);
        lines.join("\n")
    }
}

impl Row {
    fn line(&self) -> String {
        let Self { proxy, protocol, cells, within, again, .. } = self;
        let again = if *again == 0 { String::new() } else { format!(", {again} again") };
        let within = match within {
            _ if *cells == 0 => "not judged".to_owned(),
            all if all == cells => format!("{all} of {cells}{again}"),
            some => format!("{some} of {cells}{again} !"),
        };
        let worst = self.worst.as_ref().map_or_else(
            || "- | -".to_owned(),
            |worst| {
                let (us, percent) = (worst.error_us, worst.error_share * 100.0);
                format!("{us:+.1} us ({percent:+.1} %) | {}", worst.number)
            },
        );
        let share = |count: u64| {
            if self.classes.seen == 0 { 0.0 } else { 100.0 * count as f64 / self.classes.seen as f64 }
        };
        let [exact, ambiguous] = [self.classes.exact, self.classes.ambiguous].map(share);
        let causeless = share(self.classes.causeless());
        format!(
            "| {proxy} | {protocol} | {within} | {worst} | {exact:.1} % | {ambiguous:.1} % | \
             {causeless:.3} % |"
        )
    }
}

impl Worst {
    fn new(one: &Comparison, number: String) -> Option<Self> {
        let (error_us, bound_us) = (one.error_us()?, one.bound_us?);
        Some(Self { used: error_us.abs() / bound_us, error_us, error_share: error_us / one.wire_us, number })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bed::load::Tally;
    use bed::netns::Family;
    use bed::wire::Direction;

    use super::*;
    use crate::truth::cell::{Measured, Path};
    use crate::truth::matrix::Cell;

    fn outcome(connections: u32, errors_us: Option<[f64; 2]>) -> Outcome {
        let comparison = |error_us: f64| Comparison {
            stat: "p50",
            wire_us: 100.0,
            agent_us: Some(100.0 + error_us),
            within: error_us.abs() <= 2.0,
            bound_us: Some(2.0),
        };
        let measured = errors_us.map(|errors_us| Measured {
            load: Tally::default(),
            paths: Direction::ALL
                .into_iter()
                .zip(errors_us)
                .map(|(direction, error_us)| Path {
                    end: None,
                    direction,
                    comparisons: vec![comparison(error_us)],
                    count: 100,
                })
                .collect(),
            wire: 200,
            matching: Some(Matching { seen: 200, exact: 150, ambiguous: 50, ..Matching::default() }),
            failures: Vec::new(),
        });
        let cell = Cell {
            proxy: ProxyKind::Envoy,
            workers: 2,
            protocol: Protocol::Tcp,
            connections,
            rate: None,
            duration: Duration::from_secs(3),
            family: Family::V4,
        };
        Outcome { cell, measured: measured.ok_or_else(|| "the wire is no truth".to_owned()), again: false }
    }

    #[test]
    fn a_row_has_the_worst_of_its_cells() {
        let mut table = Table::default();
        for (connections, errors_us) in
            [(1, Some([0.5, -1.0])), (16, Some([1.0, -2.5])), (64, Some([2.0, 0.0]))]
        {
            table.add(&outcome(connections, errors_us));
        }
        let row = "| envoy | tcp | 2 of 3 ! | -2.5 us (-2.5 %) | response p50, 2 workers, 16 conns | 75.0 % | 25.0 % | \
                   0.000 % |";
        assert_eq!(table.markdown(), format!("{HEADER}\n{row}\n\n{}", bounds::in_words()));
    }

    #[test]
    fn what_could_not_be_measured_is_not_within() {
        let mut table = Table::default();
        table.add(&outcome(1, None));
        let row = "| envoy | tcp | 0 of 1 ! | - | - | 0.0 % | 0.0 % | 0.000 % |";
        assert_eq!(table.markdown(), format!("{HEADER}\n{row}\n\n{}", bounds::in_words()));
    }
}
