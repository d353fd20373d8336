//! `cargo xtask test`: every check and every test, the privileged ones included. What CI runs.

use std::io::{BufRead as _, BufReader};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use bed::process::Child;
use bed::tools;

use crate::{cargo, check, guest, setup, truth};

/// What can be chosen.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Test inside this kernel instead of the running one, in an emulated machine: debian-6.1 (the newest of the series),
    /// debian-6.1.0-50, or all that Debian's suites offer here; repeatable
    #[arg(long, value_name = "KERNEL")]
    kernel: Vec<String>,
}

/// What the lines `test result: ok. 3 passed; 0 failed; 0 ignored; ...` add up to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    pub ignored: u64,
}

impl Tally {
    /// Takes a line of a test executable's output into account.
    pub fn note(&mut self, line: &str) {
        let Some(counts) = line.strip_prefix("test result: ") else { return };
        // The first is behind the verdict: `ok. 3 passed`.
        for count in counts.split([';', '.']) {
            let mut words = count.split_whitespace();
            let (Some(number), Some(what)) =
                (words.next().and_then(|word| word.parse::<u64>().ok()), words.next())
            else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

impl Tally {
    /// Takes what others counted into account.
    pub fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }

    /// Says `N passed, N failed`; a test that was left out is a failure.
    pub fn conclude(&self) -> ExitCode {
        if self.ignored > 0 {
            eprintln!("error: {} tests are marked to be ignored; here every test counts", self.ignored);
        }
        let failed = self.failed + self.ignored;
        println!("{} passed, {failed} failed", self.passed);
        if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// The verb. The last line is `N passed, N failed`: all tests of all executables and the combinations of proxy and
/// protocol that are compared with the wire, where a check (formatting, lints, manifests) that fails, a test that was
/// left out, and an executable that ended without a result are failures.
///
/// # Errors
/// When setting up or building fails: then nothing was tested.
pub fn run(options: &Options) -> Result<ExitCode> {
    if !options.kernel.is_empty() {
        return guest::run(&options.kernel);
    }
    setup::ensure()?;
    let agent = cargo::agent()?;
    let checks = check::failed(check::STATIC);

    let mut command = cargo::command();
    command.args(["test", "--workspace", "--no-fail-fast"]);
    command.env("REQUIRE_BPF", "1").env(tools::AGENT_VARIABLE, &agent);
    // Two measurements at the same time would measure each other.
    command.env("RUST_TEST_THREADS", "1");
    eprintln!("$ cargo test --workspace --no-fail-fast");
    let (mut cargo, output) = Child::piped("cargo", &command)?;
    let mut tally = Tally::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read the tests' output")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        tally.note(&line);
    }
    let status = cargo.wait()?;
    let silent = !status.success() && tally.failed == 0;
    let (passed, failed) = truth::short()?;
    tally.passed += passed;
    tally.failed += failed;

    if !checks.is_empty() {
        eprintln!("error: failed: {}", checks.join(", "));
    }
    if silent {
        eprintln!("error: `cargo test` failed ({status}) beside the tests; see above");
    }
    tally.failed += u64::from(silent) + checks.len() as u64;
    Ok(tally.conclude())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_add_up() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.12s",
            "test result: FAILED. 4 passed; 2 failed; 1 ignored; 0 measured; 5 filtered out; finished in 1.02s",
            "test a ... ok",
        ] {
            tally.note(line);
        }
        assert_eq!(tally, Tally { passed: 7, failed: 2, ignored: 1 });
    }
}
