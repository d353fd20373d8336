//! What the kernel's verifier looked at to accept each program, against the budget that is checked in.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::process;

/// One line for each program: name, and how many instructions at most.
pub const BUDGET: &str = include_str!("../../agent-ebpf/verified.budget");

/// One program, as `smp-agent doctor` tells of it.
#[derive(Clone, Debug, Deserialize)]
pub struct Program {
    /// Its name.
    #[serde(rename = "program")]
    pub name: String,
    /// `tp_btf` or `fentry`.
    pub kind: String,
    /// The tracepoint or function.
    pub hook: String,
    /// What became of it.
    pub verdict: String,
    /// And the reason.
    pub why: String,
    /// How many instructions were looked at; nothing if it was not loaded.
    pub verified_instructions: Option<u32>,
}

/// Loads every program that this kernel takes, needed or not, and says what became of each.
///
/// # Errors
/// When the agent fails or hops cannot be measured.
pub fn programs(agent: &Path) -> Result<Vec<Program>> {
    let said = process::output(Command::new(agent).args(["doctor", "--format", "json"]))?;
    serde_json::from_str(&said).context("the agent's account of its programs is not as expected")
}

/// The most instructions that each program may take, by name.
///
/// # Errors
/// When a line is not a name and a number.
pub fn limits(budget: &str) -> Result<BTreeMap<&str, u32>> {
    let lines = budget.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| match line.split_once(' ').map(|(name, limit)| (name, limit.parse())) {
            Some((name, Ok(limit))) => Ok((name, limit)),
            _ => bail!("the budget's line {line:?} is not a name and a number"),
        })
        .collect()
}

/// What is wrong, one sentence each: a program over its limit or without one, one that should have been accepted and
/// was not, a limit of no program.
///
/// # Errors
/// As [`limits`].
pub fn failures(programs: &[Program], budget: &str) -> Result<Vec<String>> {
    let mut limits = limits(budget)?;
    let mut failures = Vec::new();
    for Program { name, verdict, why, verified_instructions, .. } in programs {
        match (limits.remove(name.as_str()), verified_instructions) {
            (None, _) => failures.push(format!("{name} has no line in the budget")),
            (Some(limit), Some(count)) if *count > limit => {
                failures.push(format!("{name} takes {count} instructions to verify, its limit is {limit}"));
            }
            _ => {}
        }
        if verdict == "failed" {
            failures.push(format!("{name} was refused: {why}"));
        }
    }
    failures
        .extend(limits.keys().map(|name| format!("the budget has a line for {name}, which is no program")));
    Ok(failures)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(name: &str, verdict: &str, verified_instructions: Option<u32>) -> Program {
        let text = || "x".to_owned();
        Program {
            name: name.to_owned(),
            kind: text(),
            hook: text(),
            verdict: verdict.to_owned(),
            why: text(),
            verified_instructions,
        }
    }

    #[test]
    fn within_the_limits_nothing_is_wrong() {
        let programs = [program("a", "attached", Some(10)), program("b", "unsupported", None)];
        assert!(failures(&programs, "# comment\n\na 10\nb 1\n").unwrap().is_empty());
    }

    #[test]
    fn each_way_to_be_wrong_is_told() {
        let programs = [
            program("a", "attached", Some(11)),
            program("b", "not needed", Some(1)),
            program("c", "failed", None),
        ];
        let told = failures(&programs, "a 10\nc 1\nd 1\n").unwrap().join("; ");
        for words in ["a takes 11", "b has no line", "c was refused", "for d"] {
            assert!(told.contains(words), "no {words:?} in: {told}");
        }
        assert!(failures(&programs, "a ten").is_err());
    }

    #[test]
    fn the_budget_that_is_checked_in_can_be_read() {
        assert!(!limits(BUDGET).unwrap().is_empty());
    }
}
