//! Go's reverse proxy, compiled by Debian's Go from its standard library alone.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use bed::tools;

use super::Part;
use crate::step;

const COMPILER: &str = "/usr/bin/go";

/// The proxy, unless it is there and made of the source as it is now.
pub fn missing() -> Option<Part> {
    let same = || Some(fs::read(source()).ok()? == fs::read(compiled()).ok()?);
    if tools::goproxy().is_ok() && same() == Some(true) {
        return None;
    }
    let what = "Go's reverse proxy, built into target/tools/go (seconds)".to_owned();
    Some(Part { what, install: Box::new(install) })
}

fn source() -> PathBuf {
    tools::workspace().join("tests/proxies/reverse.go")
}

/// A copy of the source that the proxy was compiled from; written last.
fn compiled() -> PathBuf {
    tools::go_folder().join("reverse.go")
}

fn install() -> Result<()> {
    let folder = tools::go_folder();
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let cache = folder.join("cache");
    let mut build = Command::new(COMPILER);
    build.args(["build", "-o"]).arg(folder.join("goproxy")).arg(source());
    // One file and the standard library: no module, so nothing to fetch, and nothing is fetched.
    build.env("GO111MODULE", "off").env("GOPROXY", "off").env("GOFLAGS", "").env("GOENV", "off");
    build.env("GOCACHE", &cache);
    step::run(
        "building Go's reverse proxy",
        "goproxy",
        &build,
        "check the Debian package golang-go, then run `cargo xtask setup` again",
    )?;
    fs::remove_dir_all(&cache).with_context(|| format!("cannot remove {}", cache.display()))?;
    fs::copy(source(), compiled()).map(drop).context("cannot note what Go's reverse proxy was made of")
}
