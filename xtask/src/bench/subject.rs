//! What load passes on its way: nothing, a proxy, or two with mutual TLS between them.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context as _, Result};
use bed::netns::{Family, Netns, PairBed};
use bed::origin::Origin;
use bed::protocol::Protocol;
use bed::proxy::{Pair, ProxyKind};

use crate::scene::{Scene, WORKERS};

/// What can be put under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The server alone, while the agent follows a proxy that has nothing to do: what the rest of a node pays.
    Direct,
    /// One proxy.
    One(ProxyKind),
    /// The sidecars of client and server, mutual TLS between them.
    Mtls(ProxyKind),
}

/// A subject that runs; stopped on drop.
pub enum Stage {
    One { scene: Scene, direct: bool },
    Two { pair: Pair, origin: Origin, bed: PairBed },
}

impl fmt::Display for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => formatter.write_str("direct"),
            Self::One(kind) => write!(formatter, "{kind}"),
            Self::Mtls(kind) => write!(formatter, "{kind}-mtls"),
        }
    }
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        if name == "direct" {
            return Ok(Self::Direct);
        }
        let Some(kind) = name.strip_suffix("-mtls") else { return Ok(Self::One(name.parse()?)) };
        let kind: ProxyKind = kind.parse()?;
        // As the matrix: what takes a pair is spoken by those there is a pair of.
        let there_is = kind.speaks(Protocol::MtlsH1);
        there_is.then_some(Self::Mtls(kind)).ok_or_else(|| format!("there is no pair of {kind}"))
    }
}

impl Subject {
    /// Starts it, with its files in this folder.
    ///
    /// # Errors
    /// When something cannot be built or started.
    pub fn start(self, dir: &Path) -> Result<Stage> {
        match self {
            Self::Direct => Ok(Stage::One { scene: Scene::start(ProxyKind::Envoy, dir)?, direct: true }),
            Self::One(kind) => Ok(Stage::One { scene: Scene::start(kind, dir)?, direct: false }),
            Self::Mtls(kind) => {
                let (proxies, server) = (dir.join("pair"), dir.join("origin"));
                for folder in [&proxies, &server] {
                    fs::create_dir_all(folder)
                        .with_context(|| format!("cannot create {}", folder.display()))?;
                }
                let bed = PairBed::new()?;
                let listen = PairBed::server_address(Family::V4);
                let origin = Origin::start(&bed.server, &[listen], &server)?;
                let pair = Pair::start(kind, WORKERS, Protocol::MtlsH1, &bed, Family::V4, &proxies)?;
                Ok(Stage::Two { pair, origin, bed })
            }
        }
    }
}

impl Stage {
    /// Where load is made.
    pub fn client(&self) -> &Netns {
        match self {
            // Over loopback: its network reaches no further than the proxy's.
            Self::One { scene, direct: true } => &scene.bed.server,
            Self::One { scene, direct: false } => &scene.bed.client,
            Self::Two { bed, .. } => &bed.client,
        }
    }

    /// What load is sent to.
    pub fn target(&self) -> SocketAddr {
        match self {
            Self::One { direct: true, .. } => Scene::server(),
            Self::One { direct: false, .. } => Scene::listen(),
            Self::Two { .. } => PairBed::client_proxy_address(Family::V4),
        }
    }

    /// What the agent follows.
    pub fn proxies(&self) -> Vec<u32> {
        match self {
            Self::One { scene, .. } => vec![scene.proxy.pid()],
            Self::Two { pair, .. } => vec![pair.client.pid(), pair.server.pid()],
        }
    }

    /// Stops all of it: here rather than by drop, so that what cannot be stopped is an error.
    ///
    /// # Errors
    /// When something is still there after SIGKILL.
    pub fn stop(self) -> Result<()> {
        match self {
            Self::One { scene, .. } => scene.stop(),
            Self::Two { pair, origin, bed } => {
                pair.client.stop()?;
                pair.server.stop()?;
                origin.stop()?;
                drop(bed);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_shown() {
        for name in ["direct", "envoy", "nginx", "envoy-mtls", "haproxy-mtls"] {
            assert_eq!(name.parse::<Subject>().unwrap().to_string(), name);
        }
        assert!("nginx-mtls".parse::<Subject>().unwrap_err().contains("no pair of nginx"));
        assert!("squid".parse::<Subject>().unwrap_err().contains("unknown proxy"));
    }
}
