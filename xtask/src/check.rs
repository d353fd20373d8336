//! `cargo xtask check`: everything that needs neither root nor a BPF toolchain.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use bed::process;
use serde_json::Value;

use crate::cargo;

/// A check: its name and how to do it.
type Check = (&'static str, fn() -> Result<()>);

/// The checks that `test` makes too.
pub const STATIC: [Check; 3] = [
    ("formatting", || cargo::run(&["fmt", "--all", "--check"])),
    ("lints", || cargo::run(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"])),
    ("manifests", manifests),
];

const TESTS: Check = ("unprivileged tests", || cargo::run(&["test", "--workspace", "--lib", "--bins"]));

/// The verb.
///
/// # Errors
/// When a check cannot be made. One that fails is told and gives the exit code 1.
pub fn run() -> Result<ExitCode> {
    let failed = failed(STATIC.into_iter().chain([TESTS]));
    if failed.is_empty() {
        eprintln!("check: all passed");
        return Ok(ExitCode::SUCCESS);
    }
    bail!("failed: {}", failed.join(", "))
}

/// Makes all of the checks, says why those that fail do, and returns their names.
pub fn failed(checks: impl IntoIterator<Item = Check>) -> Vec<&'static str> {
    let mut failed = Vec::new();
    for (name, check) in checks {
        if let Err(error) = check() {
            eprintln!("error: {name}: {error:#}");
            failed.push(name);
        }
    }
    failed
}

/// A lint table binds only those who say so.
fn manifests() -> Result<()> {
    let mut metadata: Command = cargo::command();
    metadata.args(["metadata", "--no-deps", "--format-version", "1"]);
    let metadata: Value = serde_json::from_str(&process::output(&mut metadata)?)?;
    let members = metadata["packages"].as_array().context("cargo's metadata has no packages")?;
    for member in members {
        let manifest = member["manifest_path"].as_str().context("a package has no manifest")?;
        let text =
            fs::read_to_string(Path::new(manifest)).with_context(|| format!("cannot read {manifest}"))?;
        if !inherits_lints(&text) {
            bail!("{manifest} does not take the workspace's lints: add `lints.workspace = true`");
        }
    }
    Ok(())
}

fn inherits_lints(manifest: &str) -> bool {
    let mut table = "";
    manifest.lines().map(str::trim).any(|line| {
        if line.starts_with('[') {
            table = line;
        }
        let setting = line.replace(' ', "");
        match table {
            "" => setting == "lints.workspace=true",
            "[lints]" => setting == "workspace=true",
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_inherit_count_and_no_other() {
        assert!(inherits_lints("[package]\nname = \"a\"\n\n[lints]\nworkspace = true\n"));
        assert!(inherits_lints("lints.workspace = true\n[package]\n"));
        assert!(!inherits_lints("[package]\nversion.workspace = true\n[dependencies]\nworkspace = true\n"));
        assert!(!inherits_lints("[lints]\nworkspace = false\n"));
    }
}
