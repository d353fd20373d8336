//! Every developer verb, one file each. People, README and CI call only these.

mod bench;
mod cargo;
mod check;
mod demo;
mod files;
mod guest;
mod scene;
mod setup;
mod step;
mod test;
mod truth;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Every developer verb of smp-agent")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Install what building, the demo and the tests need; nothing when it is all there
    Setup,
    /// Check formatting, lints and manifests, and run the tests that need no privileges
    Check,
    /// Set up, then pass every check and every test, the privileged ones included
    Test(test::Options),
    /// Set up, build, and measure a real proxy under load; the results are left in target/demo
    Demo(demo::Options),
    /// Compare the agent with packets captured on both sides of real proxies under load
    Truth(truth::Options),
    /// Set up, build, and measure what measuring costs
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Set up, build, and load every program; how many instructions each takes to verify, against the budget
    Verify,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().verb {
        Verb::Setup => setup::run(),
        Verb::Check => check::run(),
        Verb::Test(options) => test::run(&options),
        Verb::Demo(options) => demo::run(&options),
        Verb::Truth(options) => truth::run(&options),
        Verb::Bench(bench) => bench::run(&bench),
        Verb::Verify => verify::run(),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
