//! What can be chosen on the command line.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bed::netns::Family;
use bed::protocol::Protocol;
use bed::proxy::ProxyKind;

use super::matrix::{Axes, Cell};
use crate::cargo;

/// What is measured unless chosen otherwise.
const CONNECTIONS: [u32; 3] = [1, 16, 64];
const WORKERS: u32 = 2;
const SECONDS: u32 = 20;
const SECONDS_OF_ALL: u32 = 3;

/// What can be chosen.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct Options {
    /// The whole matrix: every proxy and its numbers of workers, every protocol it speaks, 1 to 256 connections in a
    /// closed loop and 16 in an open one, 3 s each; what else is given narrows it. Ends with a table in Markdown;
    /// all numbers are left in target/truth/matrix.jsonl
    #[arg(long)]
    pub all: bool,
    /// The few combinations of `cargo xtask test`, 3 s each
    #[arg(long, exclusive = true)]
    pub short: bool,
    /// Which proxies [default: envoy, nginx, haproxy]; apache, caddy, lighttpd, nghttpx, socat and varnish too, which are
    /// installed then
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    proxy: Vec<ProxyKind>,
    /// Which protocols on both sides of the proxy [default: h1]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    protocol: Vec<Protocol>,
    /// How many connections the load generator keeps busy [default: 1, 16, 64]
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: Vec<u32>,
    /// Worker threads or processes of the proxy [default: 2]
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: Vec<u32>,
    /// How long the load of each combination lasts, in seconds [default: 20]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: Option<u32>,
    /// Requests per second; without it, as fast as the responses come
    #[arg(long, value_name = "R", value_parser = rate)]
    rate: Option<f64>,
    /// Use IPv6 instead of IPv4
    #[arg(long)]
    ipv6: bool,
    /// Let idle processors sleep, as most machines do; waking up costs the capture some microseconds now and then, which
    /// shows in p99.9 with few connections
    #[arg(long)]
    pub may_sleep: bool,
    /// One JSON object a line: each number, then the sums
    #[arg(long)]
    pub json: bool,
    /// Run no agent: only what the packets say, and nothing is judged
    #[arg(long, conflicts_with = "json")]
    pub wire_only: bool,
    /// Measure this build of the agent and not the workspace's, to compare two
    #[arg(long, value_name = "FILE", conflicts_with = "wire_only")]
    agent: Option<PathBuf>,
}

impl Options {
    /// The agent to measure with, built if it is the workspace's; none if only the packets are asked.
    ///
    /// # Errors
    /// When it cannot be built, or the one that is given is not there.
    pub fn agent(&self) -> Result<Option<PathBuf>> {
        match &self.agent {
            _ if self.wire_only => Ok(None),
            None => cargo::agent().map(Some),
            Some(file) => file
                .canonicalize()
                .map(Some)
                .with_context(|| format!("cannot find the agent {}", file.display())),
        }
    }

    /// The combinations to measure.
    ///
    /// # Errors
    /// When there is none.
    pub fn cells(&self) -> Result<Vec<Cell>> {
        let seconds = self.seconds.unwrap_or(if self.all { SECONDS_OF_ALL } else { SECONDS });
        let given = Axes {
            proxies: self.proxy.clone(),
            protocols: self.protocol.clone(),
            connections: self.connections.clone(),
            workers: self.workers.clone(),
            rate: self.rate,
            duration: Duration::from_secs(seconds.into()),
            family: if self.ipv6 { Family::V6 } else { Family::V4 },
        };
        let cells = if self.all {
            let proxies = or(given.proxies.clone(), &ProxyKind::ALL);
            Axes { proxies, protocols: or(given.protocols.clone(), &Protocol::ALL), ..given }.whole()
        } else {
            Axes {
                proxies: or(given.proxies, &ProxyKind::OF_MESHES),
                protocols: or(given.protocols, &[Protocol::H1]),
                connections: or(given.connections, &CONNECTIONS),
                workers: or(given.workers, &[WORKERS]),
                ..given
            }
            .product()
        };
        ensure!(!cells.is_empty(), "none of the proxies speaks one of the protocols");
        Ok(cells)
    }
}

/// What was given, or else this.
fn or<T: Clone>(given: Vec<T>, default: &[T]) -> Vec<T> {
    if given.is_empty() { default.to_vec() } else { given }
}

fn rate(text: &str) -> Result<f64> {
    let rate: f64 = text.parse()?;
    ensure!(rate.is_finite() && rate > 0.0, "must be a positive number");
    Ok(rate)
}
