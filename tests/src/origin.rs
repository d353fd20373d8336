//! A real server with a small static answer: nginx.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::netns::Netns;
use crate::process::Child;
use crate::proxy::nginx;

/// The body of every answer.
pub const BODY: &str = "The quick brown fox jumps over the lazy dog.";

/// A running server; stopped on drop.
#[derive(Debug)]
pub struct Origin {
    child: Child,
}

impl Origin {
    /// Starts a server with one worker inside a namespace and waits until it listens on every address.
    ///
    /// Its configuration and log are written to `dir`, which must exist and be its own.
    ///
    /// # Errors
    /// When nginx is not installed, or ends or hangs before it listens.
    pub fn start(netns: &Netns, listen: &[SocketAddr], dir: &Path) -> Result<Self> {
        let mut server = "server {\n".to_owned();
        for address in listen {
            writeln!(server, "        listen {address};")?;
        }
        write!(server, "        location / {{ return 200 \"{BODY}\"; }}\n    }}")?;
        let command = nginx::command(1, netns, &nginx::http(&server, dir), dir)?;
        let mut child = Child::start("origin", &command, dir)?;
        for address in listen {
            child.wait_for_port(*address, Duration::from_secs(10))?;
        }
        Ok(Self { child })
    }

    /// The server's master process.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Stops it and waits until all its processes are gone.
    ///
    /// # Errors
    /// When one of them is still there after SIGKILL.
    pub fn stop(self) -> Result<()> {
        self.child.stop()
    }
}
