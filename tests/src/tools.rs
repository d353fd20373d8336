//! Where things are: what `cargo xtask setup` installed, and what this workspace builds.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// Names the agent's executable for tests; without it, the release build of this workspace.
pub const AGENT_VARIABLE: &str = "SMP_AGENT";

/// Set inside an emulated machine: everything takes some ten times as long there.
pub const EMULATED_VARIABLE: &str = "BED_EMULATED";

/// The folder of the workspace.
pub fn workspace() -> &'static Path {
    // The package lies directly below it.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// Where cargo builds: `CARGO_TARGET_DIR` (a relative one counts from the workspace), else `target`.
pub fn target() -> PathBuf {
    workspace().join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// Where setup installs. Always `target/tools` of the workspace: `agent/build.rs` looks there too.
pub fn tools() -> PathBuf {
    workspace().join("target/tools")
}

/// Whether this machine is an emulated one.
pub fn emulated() -> bool {
    env::var_os(EMULATED_VARIABLE).is_some()
}

/// How long the agent may take to begin, or to end: most of it is the kernel's verifier.
pub fn longest() -> Duration {
    Duration::from_mins(if emulated() { 10 } else { 1 })
}

/// The release build of the agent.
///
/// # Errors
/// When it is not there.
pub fn agent() -> Result<PathBuf> {
    let path = env::var_os(AGENT_VARIABLE).map_or_else(|| target().join("release/smp-agent"), PathBuf::from);
    present(path, "cargo build --release --package smp-agent")
}

/// bpf-linker; for the build only.
pub fn bpf_linker() -> PathBuf {
    tools().join("bin/bpf-linker")
}

/// Envoy.
///
/// # Errors
/// When it is not there.
pub fn envoy() -> Result<PathBuf> {
    present(tools().join("envoy/envoy"), SETUP)
}

/// The Python interpreter that has `protobuf` and `hdrhistogram`.
///
/// # Errors
/// When it is not there.
pub fn python() -> Result<PathBuf> {
    present(tools().join("python/bin/python"), SETUP)
}

/// nginx.
///
/// # Errors
/// When it is not there.
pub fn nginx() -> Result<PathBuf> {
    present(PathBuf::from("/usr/sbin/nginx"), SETUP)
}

/// `HAProxy`.
///
/// # Errors
/// When it is not there.
pub fn haproxy() -> Result<PathBuf> {
    present(PathBuf::from("/usr/sbin/haproxy"), SETUP)
}

/// One of [`crate::proxy::ProxyKind::FURTHER`].
///
/// # Errors
/// When it is not there.
pub fn further(path: &str) -> Result<PathBuf> {
    present(PathBuf::from(path), "cargo xtask truth --proxy with its name")
}

/// nginx's module for TCP.
pub const NGINX_STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// Where setup builds Go's reverse proxy.
pub fn go_folder() -> PathBuf {
    tools().join("go")
}

/// Go's reverse proxy.
///
/// # Errors
/// When it is not there.
pub fn goproxy() -> Result<PathBuf> {
    present(go_folder().join("goproxy"), SETUP)
}

/// The bed's own proxies: for a test of this package those that cargo has built beside it, for all else the release
/// build.
///
/// # Errors
/// When they are not there.
pub fn bedproxy() -> Result<PathBuf> {
    let me = env::current_exe().context("cannot tell which executable this is")?;
    let folder = match me.parent() {
        Some(deps) if deps.ends_with("deps") => deps.parent().unwrap_or(deps).to_owned(),
        _ => target().join("release"),
    };
    present(folder.join("bedproxy"), "cargo build --release --package smp-agent-tests --bins")
}

/// What sets up redirection.
///
/// # Errors
/// When it is not there.
pub fn nft() -> Result<PathBuf> {
    present(PathBuf::from("/usr/sbin/nft"), SETUP)
}

/// The packet capture.
///
/// # Errors
/// When it is not there.
pub fn tcpdump() -> Result<PathBuf> {
    present(PathBuf::from("/usr/bin/tcpdump"), SETUP)
}

/// The dissector of packets, as a judge of the bed's own.
///
/// # Errors
/// When it is not there.
pub fn tshark() -> Result<PathBuf> {
    present(PathBuf::from("/usr/bin/tshark"), SETUP)
}

/// The kernel's own profiler.
///
/// # Errors
/// When it is not there.
pub fn perf() -> Result<PathBuf> {
    present(PathBuf::from("/usr/bin/perf"), SETUP)
}

/// The load generator wrk.
///
/// # Errors
/// When it is not there.
pub fn wrk() -> Result<PathBuf> {
    present(PathBuf::from("/usr/bin/wrk"), SETUP)
}

const SETUP: &str = "cargo xtask setup";

fn present(path: PathBuf, remedy: &str) -> Result<PathBuf> {
    if !path.exists() {
        bail!("{} is not there: run `{remedy}`", path.display());
    }
    Ok(path)
}
