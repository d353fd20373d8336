//! `cargo xtask verify`: every program through the running kernel's verifier, within the budget.

use std::process::ExitCode;

use anyhow::Result;
use bed::verifier::{self, BUDGET};

use crate::{cargo, setup};

/// The verb. The exit code is 1 when a program is over its limit or refused, or program and limit do not pair up.
///
/// # Errors
/// When the agent cannot be built or loads nothing.
pub fn run() -> Result<ExitCode> {
    setup::ensure()?;
    let programs = verifier::programs(&cargo::agent()?)?;
    let limits = verifier::limits(BUDGET)?;
    println!("{:16} {:30} {:>10} {:>10}", "program", "hook", "verified", "limit");
    for program in &programs {
        let hook = format!("{}/{}", program.kind, program.hook);
        let number = |number: Option<u32>| number.map_or("-".to_owned(), |number| number.to_string());
        let (verified, limit) =
            (number(program.verified_instructions), number(limits.get(program.name.as_str()).copied()));
        // Why it was not loaded, if it was not.
        let why = if program.verified_instructions.is_none() { program.why.as_str() } else { "" };
        println!("{}", format!("{:16} {hook:30} {verified:>10} {limit:>10}  {why}", program.name).trim_end());
    }
    let failures = verifier::failures(&programs, BUDGET)?;
    for failure in &failures {
        eprintln!("error: {failure}");
    }
    println!("{}", if failures.is_empty() { "within the budget" } else { "FAILED" });
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
