//! `HAProxy`'s configuration. [`Config`] takes what follows the addresses of `bind` and `server` from the caller, as
//! TLS needs.

use std::process::Command;

use anyhow::Result;

use super::{IDLE_SECONDS, Layer, Spec, write};
use crate::protocol::Protocol;
use crate::tools;

/// What `HAProxy` lets a client have at a time on an HTTP/2 connection if nothing is said.
pub(super) const STREAMS: u32 = 100;

/// What differs between configurations.
pub(super) struct Config<'a> {
    /// `http` or `tcp`.
    pub(super) mode: &'a str,
    /// Words of `bind` after the address.
    pub(super) bind: &'a str,
    /// Words of `server` after the address.
    pub(super) server: &'a str,
    /// The largest number of HTTP/2 streams at a time on a connection.
    pub(crate) streams: u32,
    /// More lines of `global`.
    pub(crate) global: &'a str,
    /// More lines of `frontend`.
    pub(crate) frontend: &'a str,
}

/// The command for a `HAProxy` between client and server, without TLS.
pub(super) fn proxy(spec: &Spec<'_>, layer: Layer) -> Result<Command> {
    let (mode, codec) = match layer {
        Layer::Tcp => ("tcp", ""),
        Layer::Http1 => ("http", ""),
        Layer::Http2 | Layer::Grpc => ("http", "proto h2"),
    };
    let streams = match spec.protocol {
        Protocol::H2(streams) | Protocol::Grpc(streams) => streams.max(STREAMS),
        _ => STREAMS,
    };
    command(spec, &Config { mode, bind: codec, server: codec, streams, global: "", frontend: "" })
}

/// The command for `HAProxy`; where and how many is taken from `spec`.
pub(super) fn command(spec: &Spec<'_>, config: &Config<'_>) -> Result<Command> {
    let Spec { workers, netns, listen, upstream, dir, .. } = spec;
    let Config { mode, bind, server, streams, global, frontend } = config;
    let reuse = if *mode == "http" { "option http-keep-alive\n    http-reuse always" } else { "" };
    let config = format!(
        "global
    nbthread {workers}
    maxconn 4096
    tune.h2.max-concurrent-streams {streams}
    {global}
defaults
    mode {mode}
    {reuse}
    timeout connect 5s
    timeout client {IDLE_SECONDS}s
    timeout server {IDLE_SECONDS}s
    timeout http-keep-alive {IDLE_SECONDS}s
frontend downstream
    bind {listen} {bind}
    {frontend}
    default_backend upstream
backend upstream
    server upstream {upstream} {server}
"
    );
    let path = dir.join("haproxy.cfg");
    write(&path, &config)?;
    let mut command = netns.command(tools::haproxy()?);
    command.args(["-W", "-db", "-f"]).arg(path);
    Ok(command)
}
