//! bpf-linker, built against Debian's LLVM.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};
use bed::{process, tools};

use super::Part;
use crate::{cargo, step};

const VERSION: &str = "0.13.0";
const LLVM: &str = "/usr/lib/llvm-22";

/// The linker, unless this version is there and starts.
pub fn missing() -> Option<Part> {
    let version = process::output(Command::new(tools::bpf_linker()).arg("--version"));
    if version.is_ok_and(|version| version.trim() == format!("bpf-linker {VERSION}")) {
        return None;
    }
    let what = format!("bpf-linker {VERSION} from crates.io, built into target/tools (about a minute)");
    Some(Part { what, install: Box::new(install) })
}

fn install() -> Result<()> {
    let build = tools::tools().join("build");
    let mut command = cargo::command();
    command
        .args(["install", "bpf-linker", "--version", VERSION, "--locked", "--force"])
        .args(["--no-default-features", "--features", "llvm-22", "--root"])
        .arg(tools::tools())
        .arg("--target-dir")
        .arg(&build)
        .env("LLVM_PREFIX", LLVM)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", format!("-L {LLVM}/lib"));
    step::run(
        "building bpf-linker",
        "bpf-linker",
        &command,
        "check that crates.io can be reached, then run `cargo xtask setup` again",
    )?;
    fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))
}
