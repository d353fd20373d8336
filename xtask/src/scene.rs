//! A real proxy in front of a real server, each in a network namespace of its own on this machine, and one for clients.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use bed::netns::{Bed, Family};
use bed::origin::Origin;
use bed::protocol::Protocol;
use bed::proxy::{Proxy, ProxyKind, Spec};

use crate::cargo;

/// Worker threads, or processes, of the proxy.
pub const WORKERS: u32 = 2;

/// All of it; stopped on drop.
pub struct Scene {
    pub proxy: Proxy,
    origin: Origin,
    pub bed: Bed,
}

impl Scene {
    /// Starts server and proxy, and waits until they listen. Their files go to `dir`.
    ///
    /// # Errors
    /// When something cannot be built or started.
    pub fn start(kind: ProxyKind, dir: &Path) -> Result<Self> {
        if kind.executable() == "bedproxy" {
            cargo::run(&["build", "--release", "--package", "smp-agent-tests", "--bin", "bedproxy"])?;
        }
        let bed = Bed::new()?;
        let origin = Origin::start(&bed.server, &[Self::server()], &folder(dir.join("origin"))?)?;
        // A proxy for TCP carries the requests all the same.
        let protocol = if kind.speaks(Protocol::H1) { Protocol::H1 } else { Protocol::Tcp };
        let dir = folder(dir.join("proxy"))?;
        let spec = Spec { workers: WORKERS, protocol, ..Spec::in_bed(&bed, Family::V4, kind, &dir) };
        let proxy = Proxy::start(&spec)?;
        Ok(Self { proxy, origin, bed })
    }

    /// Where the proxy listens.
    pub fn listen() -> SocketAddr {
        Bed::proxy_address(Family::V4)
    }

    /// Where the server does.
    pub fn server() -> SocketAddr {
        Bed::server_address(Family::V4)
    }

    /// Stops all of it: here rather than by drop, so that what cannot be stopped is an error.
    ///
    /// # Errors
    /// When something is still there after SIGKILL.
    pub fn stop(self) -> Result<()> {
        self.proxy.stop()?;
        self.origin.stop()
    }
}

fn folder(path: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(path)
}
