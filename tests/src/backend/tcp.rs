//! Raw TCP: whatever was received, after a greeting or not.

use std::cell::Cell;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::protocol::Protocol;
use crate::tcp::{self, GREETING};

/// How much is read at a time, bytes.
const READ_BYTES: usize = 64 * 1024;

pub(super) struct Server {
    /// Whether it speaks first.
    greets: bool,
    greetings: Cell<u64>,
}

impl Server {
    pub(super) fn new(protocol: Protocol) -> Self {
        Self { greets: protocol == Protocol::TcpServerFirst, greetings: Cell::new(0) }
    }

    /// Greets, if it does, and echoes until the client is done.
    pub(super) async fn serve(&self, mut stream: TcpStream) -> Result<()> {
        if self.greets {
            self.greetings.set(self.greetings.get() + 1);
            stream.write_all(&tcp::message(GREETING | self.greetings.get())).await?;
        }
        let mut bytes = vec![0; READ_BYTES];
        loop {
            let count = stream.read(&mut bytes).await?;
            if count == 0 {
                return Ok(());
            }
            stream.write_all(&bytes[..count]).await?;
        }
    }
}
