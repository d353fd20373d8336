//! The proxies that are built here: Go's, and those of [`crate::toy`].

use std::process::Command;

use anyhow::Result;

use super::Spec;
use crate::tools;

/// The command for Go's reverse proxy.
pub(super) fn go(spec: &Spec<'_>) -> Result<Command> {
    let mut command = spec.netns.command(tools::goproxy()?);
    command.arg("-listen").arg(spec.listen.to_string()).arg("-upstream").arg(spec.upstream.to_string());
    command.env("GOMAXPROCS", spec.workers.to_string());
    Ok(command)
}

/// The command for a proxy of the bed's own.
pub(super) fn toy(spec: &Spec<'_>, options: &[&str]) -> Result<Command> {
    let mut command = spec.netns.command(tools::bedproxy()?);
    command.arg(spec.kind.name()).args(options);
    command.arg("--listen").arg(spec.listen.to_string()).arg("--upstream").arg(spec.upstream.to_string());
    command.arg("--workers").arg(spec.workers.to_string());
    Ok(command)
}
