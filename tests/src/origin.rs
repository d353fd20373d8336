//! A real server with a small static answer: nginx.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::http::ID_HEADER;
use crate::netns::Netns;
use crate::process::Child;
use crate::protocol::SMALL_BODY_BYTES;
use crate::proxy::nginx;

/// The body of every answer, as long as what the bed's own load takes for one of [`Protocol::H1`](crate::protocol::Protocol).
pub const BODY: &str = "................................................................";
const _: () = assert!(BODY.len() == SMALL_BODY_BYTES);

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
        // The id of a request that has one.
        writeln!(server, "        add_header {ID_HEADER} $http_{};", ID_HEADER.replace('-', "_"))?;
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
