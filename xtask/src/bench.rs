//! `cargo xtask bench`: what measuring costs, measured side by side on this machine.

mod load;
mod overhead;
mod programs;
mod result;

use std::process::ExitCode;

use anyhow::Result;

/// What can be measured.
#[derive(Debug, clap::Subcommand)]
pub enum Bench {
    /// What the probes cost a saturated proxy, against programs that return at once and against no agent, in turn; the
    /// results are left in target/bench/overhead.json
    Overhead(overhead::Options),
}

/// The verb. A missed budget is shown, and is no failure.
///
/// # Errors
/// When something cannot be brought, built, started or measured.
pub fn run(bench: &Bench) -> Result<ExitCode> {
    match bench {
        Bench::Overhead(options) => overhead::run(options)?,
    }
    Ok(ExitCode::SUCCESS)
}
