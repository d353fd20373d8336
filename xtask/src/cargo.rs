//! Cargo, run by a verb.

use std::env;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use bed::process::{self, Child};
use bed::tools;
use serde_json::Value;

/// The cargo that runs this verb, in the workspace's folder.
pub fn command() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(tools::workspace());
    // What cargo said about this package is not for the next.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs cargo with its output on the terminal.
///
/// # Errors
/// When it fails; cargo has said why.
pub fn run(arguments: &[&str]) -> Result<()> {
    let mut command = command();
    command.args(arguments);
    eprintln!("$ cargo {}", arguments.join(" "));
    let status = Child::attached("cargo", &command)?.wait()?;
    if !status.success() {
        bail!("`cargo {}` failed ({status}); see above", arguments.join(" "));
    }
    Ok(())
}

/// Builds the agent for release, with its probes, and returns the executable.
///
/// # Errors
/// When it does not build, or builds without probes.
pub fn agent() -> Result<PathBuf> {
    let arguments =
        ["build", "--release", "--package", "smp-agent", "--message-format", "json-render-diagnostics"];
    let mut command = command();
    command.args(arguments);
    eprintln!("$ cargo build --release --package smp-agent");
    let (mut cargo, messages) = Child::piped("cargo", &command)?;
    let mut built = Built::default();
    for line in BufReader::new(messages).lines() {
        built.note(&line.context("cannot read cargo's messages")?);
    }
    let status = cargo.wait()?;
    if !status.success() {
        bail!("`{}` failed ({status}); see above", process::shown(&command));
    }
    if !built.probes {
        bail!(
            "the agent was built without probes and cannot measure: see cargo's warning above for what is missing"
        );
    }
    built.executable.context("cargo built no executable named smp-agent")
}

/// Test executables and what they start.
#[derive(Debug, Default)]
pub struct Tests {
    /// Name and executable of each, in the order asked for.
    pub executables: Vec<(String, PathBuf)>,
    /// The bed's own programs.
    pub programs: Vec<PathBuf>,
    /// Where the tests put their files.
    pub scratch: PathBuf,
}

/// Builds these test executables of the bed, and does not run them.
///
/// # Errors
/// When they do not build, or cargo does not say where they are.
pub fn tests(names: &[&str]) -> Result<Tests> {
    let mut arguments = vec!["test", "--no-run", "--package", "smp-agent-tests"];
    arguments.extend(names.iter().flat_map(|name| ["--test", name]));
    eprintln!("$ cargo {}", arguments.join(" "));
    let mut command = command();
    command.args(arguments).args(["--message-format", "json-render-diagnostics"]);
    let (mut cargo, messages) = Child::piped("cargo", &command)?;
    let mut built = Vec::new();
    for line in BufReader::new(messages).lines() {
        built.extend(executable(&line.context("cannot read cargo's messages")?));
    }
    let status = cargo.wait()?;
    if !status.success() {
        bail!("`{}` failed ({status}); see above", process::shown(&command));
    }
    let find = |name: &&str| {
        let found = built.iter().find(|(kind, found, _)| kind == "test" && found == name);
        found.map(|(_, name, path)| (name.clone(), path.clone())).context("cargo built no such test")
    };
    let executables = names.iter().map(find).collect::<Result<_>>()?;
    let programs = built.iter().filter(|(kind, ..)| kind == "bin").map(|(.., path)| path.clone()).collect();
    // Cargo's `CARGO_TARGET_TMPDIR`.
    Ok(Tests { executables, programs, scratch: tools::target().join("tmp") })
}

/// Kind, name and path of the executable that a message of cargo's tells of.
fn executable(message: &str) -> Option<(String, String, PathBuf)> {
    let message: Value = serde_json::from_str(message).ok()?;
    let target = &message["target"];
    let kind = target["kind"].get(0)?.as_str()?.to_owned();
    Some((kind, target["name"].as_str()?.to_owned(), message["executable"].as_str()?.into()))
}

/// What cargo's messages say of the agent.
#[derive(Debug, Default)]
struct Built {
    /// Whether its build script had probes to include.
    probes: bool,
    executable: Option<PathBuf>,
}

impl Built {
    fn note(&mut self, message: &str) {
        let Ok(message) = serde_json::from_str::<Value>(message) else { return };
        // `path+file:///.../agent#smp-agent@0.1.0`
        if !message["package_id"].as_str().is_some_and(|id| id.contains("/agent#")) {
            return;
        }
        match message["reason"].as_str() {
            Some("build-script-executed") => {
                self.probes |=
                    message["cfgs"].as_array().is_some_and(|cfgs| cfgs.iter().any(|cfg| cfg == "bpf_probes"));
            }
            Some("compiler-artifact") if message["target"]["name"] == "smp-agent" => {
                self.executable =
                    message["executable"].as_str().map(PathBuf::from).or(self.executable.take());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_with_probes_is_told_from_one_without() {
        let package = r#""package_id":"path+file:///w/agent#smp-agent@0.1.0""#;
        let script = |cfgs| format!(r#"{{"reason":"build-script-executed",{package},"cfgs":{cfgs}}}"#);
        let artifact = |executable| {
            format!(
                r#"{{"reason":"compiler-artifact",{package},"target":{{"name":"smp-agent"}},"executable":{executable}}}"#
            )
        };
        let mut built = Built::default();
        for message in [script("[]"), artifact(r#""/t/smp-agent""#), artifact("null"), "not json".to_owned()]
        {
            built.note(&message);
        }
        assert!(!built.probes);
        assert_eq!(built.executable, Some(PathBuf::from("/t/smp-agent")));
        built.note(&script(r#"["bpf_probes"]"#));
        assert!(built.probes);
    }

    #[test]
    fn another_package_with_the_same_flag_is_none() {
        let mut built = Built::default();
        built.note(
            r#"{"reason":"build-script-executed","package_id":"registry#other@1.0.0","cfgs":["bpf_probes"]}"#,
        );
        assert!(!built.probes);
    }
}
