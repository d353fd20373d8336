//! `cargo xtask bench`: what measuring costs, measured side by side on this machine.

mod daemon;
mod drain;
mod kernel;
mod load;
mod overhead;
mod result;
mod scale;
mod subject;

use std::process::ExitCode;

use anyhow::Result;

/// What can be measured.
#[derive(Debug, clap::Subcommand)]
pub enum Bench {
    /// What the probes cost proxies under load, against programs that return at once and against no agent, in turn
    Overhead(overhead::Options),
    /// What the agent takes of an idle node and of a busy one, by how often it reads the kernel's counters
    Drain(drain::Options),
    /// Whether an event costs the same with many sockets, many proxies, and connections that come and go
    Scale(scale::Options),
    /// Everything, with the defaults of each
    All,
}

/// The verb. Figures are left in target/bench/VERB.json. A missed budget is shown, and is no failure.
///
/// # Errors
/// When something cannot be brought, built, started or measured.
pub fn run(bench: &Bench) -> Result<ExitCode> {
    match bench {
        Bench::Overhead(options) => overhead::run(options)?,
        Bench::Drain(options) => drain::run(options)?,
        Bench::Scale(options) => scale::run(options)?,
        Bench::All => {
            overhead::run(&overhead::Options::default())?;
            drain::run(&drain::Options::default())?;
            scale::run(&scale::Options::default())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
