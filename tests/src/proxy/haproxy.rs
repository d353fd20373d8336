//! `HAProxy`'s configuration. [`Config`] takes what follows the addresses of `bind` and `server` from the caller, as
//! TLS needs.

use std::process::Command;

use anyhow::Result;

use super::{IDLE_SECONDS, Layer, Spec, write};
use crate::http::{self, CHECK_ID, ID_HEADER, LOCAL_PATH};
use crate::protocol::{Protocol, SMALL_BODY_BYTES};
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
    /// More lines of `backend`.
    pub(super) backend: &'a str,
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
    let own_body = http::filler(SMALL_BODY_BYTES);
    let local = format!(
        "http-request return status 200 content-type text/plain string {own_body} \
         hdr {ID_HEADER} %[req.hdr({ID_HEADER})] if {{ path {LOCAL_PATH} }}"
    );
    let check = format!(
        "option httpchk\n    http-check send meth GET uri / ver HTTP/1.1 hdr host bed hdr {ID_HEADER} {CHECK_ID:x}"
    );
    let (frontend, backend, server) = match spec.protocol {
        Protocol::H1Local => (local.as_str(), "", codec),
        Protocol::H1Checked => ("", check.as_str(), "check inter 10ms"),
        _ => ("", "", codec),
    };
    command(spec, &Config { mode, bind: codec, server, streams, global: "", frontend, backend })
}

/// The command for `HAProxy`; where and how many is taken from `spec`.
pub(super) fn command(spec: &Spec<'_>, config: &Config<'_>) -> Result<Command> {
    let Spec { workers, netns, listen, dir, .. } = spec;
    let Config { mode, bind, server, streams, global, frontend, backend } = config;
    let reuse = if *mode == "http" { "option http-keep-alive\n    http-reuse always" } else { "" };
    let servers = spec.upstreams().into_iter().enumerate();
    let servers: Vec<_> =
        servers.map(|(number, host)| format!("server upstream-{number} {host} {server}")).collect();
    let servers = servers.join("\n    ");
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
    {backend}
    {servers}
"
    );
    let path = dir.join("haproxy.cfg");
    write(&path, &config)?;
    let mut command = netns.command(tools::haproxy()?);
    command.args(["-W", "-db", "-f"]).arg(path);
    Ok(command)
}
