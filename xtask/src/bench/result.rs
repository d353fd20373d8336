//! Figures of a bench: one JSON array for each verb, each with where and how it was had.

use std::fs;
use std::thread;

use anyhow::Result;
use bed::tools;
use rustix::system::uname;
use serde::Serialize;

use crate::files;

/// One figure, over some repetitions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    pub name: String,
    /// The median.
    pub value: f64,
    pub unit: &'static str,
    /// The smallest and the largest.
    pub spread: [f64; 2],
    pub repetitions: usize,
    /// What it must not be beyond; absent where there is no such limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// Whether it is within that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within: Option<bool>,
}

/// Where figures were had, and how.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stamp {
    machine: String,
    kernel: String,
    command: String,
}

/// A limit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    AtMost(f64),
    AtLeast(f64),
}

impl Figure {
    /// The median of these values, none of which is NaN.
    pub fn new(name: impl Into<String>, unit: &'static str, values: &[f64], budget: Option<Budget>) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let value = match sorted.len() {
            0 => 0.0,
            even if even.is_multiple_of(2) => f64::midpoint(sorted[middle - 1], sorted[middle]),
            _ => sorted[middle],
        };
        let within = budget.map(|budget| match budget {
            Budget::AtMost(most) => value <= most,
            Budget::AtLeast(least) => value >= least,
        });
        let ends = [sorted.first(), sorted.last()].map(|end| end.copied().unwrap_or_default());
        Self { name: name.into(), value, unit, spread: ends, repetitions: values.len(), budget, within }
    }

    /// For a table: `6.51 (6.32 to 6.70)`, and whether that is beyond its budget.
    pub fn shown(&self) -> String {
        let [least, most] = self.spread;
        let missed = if self.within == Some(false) { " !" } else { "" };
        format!("{:.2} ({least:.2} to {most:.2}){missed}", self.value)
    }
}

impl Stamp {
    /// Of this machine and the command that runs.
    pub fn now() -> Self {
        let cpus = thread::available_parallelism().map_or(0, usize::from);
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |line: &str| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim().to_owned());
        let model = info.lines().find_map(field).unwrap_or_else(|| "unknown".to_owned());
        let arguments: Vec<_> = std::env::args().skip(1).collect();
        Self {
            machine: format!("{cpus} CPUs, {model}"),
            kernel: uname().release().to_string_lossy().into_owned(),
            command: format!("cargo xtask {}", arguments.join(" ")),
        }
    }
}

/// Leaves the figures of this verb in `target/bench`, whole.
///
/// # Errors
/// When the file cannot be written.
pub fn leave(verb: &str, stamp: &Stamp, figures: &[Figure]) -> Result<()> {
    #[derive(Serialize)]
    struct Stamped<'a> {
        #[serde(flatten)]
        figure: &'a Figure,
        #[serde(flatten)]
        stamp: &'a Stamp,
    }
    let stamped: Vec<_> = figures.iter().map(|figure| Stamped { figure, stamp }).collect();
    let text = serde_json::to_string_pretty(&stamped)?;
    files::write_whole(&tools::workspace().join("target/bench"), &format!("{verb}.json"), &[text])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_held_against_their_budget() {
        let within = |values: &[f64], budget| Figure::new("f", "us", values, Some(budget)).within;
        assert_eq!(within(&[9.0, 1.0, 2.0], Budget::AtMost(2.0)), Some(true));
        assert_eq!(within(&[9.0, 1.0, 2.0, 3.0], Budget::AtMost(2.0)), Some(false));
        assert_eq!(within(&[0.9, 0.99], Budget::AtLeast(0.98)), Some(false));
        let figure = Figure::new("f", "us", &[3.0, 1.0, 2.0], Some(Budget::AtMost(1.5)));
        assert_eq!(figure.shown(), "2.00 (1.00 to 3.00) !");
        assert_eq!(Figure::new("f", "us", &[2.0], None).shown(), "2.00 (2.00 to 2.00)");
    }

    #[test]
    fn a_figure_says_its_budget() {
        let figure = Figure::new("f", "us", &[1.0], Some(Budget::AtMost(2.0)));
        let json = serde_json::to_value(&figure).unwrap();
        assert_eq!(json["budget"]["at_most"], 2.0);
        assert_eq!(json["within"], true);
    }
}
