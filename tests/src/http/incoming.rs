//! Messages read from a connection, one after the other.

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::{FILLER, Head};

/// How much is read at a time, bytes.
const READ_BYTES: usize = 64 * 1024;

/// What comes in on a connection; bytes of a later message are kept for it.
#[derive(Debug)]
pub struct Incoming<S> {
    stream: S,
    received: BytesMut,
}

/// A whole message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// As in [`Head::id`].
    pub id: Option<u64>,
    /// As in [`Head::keep_alive`].
    pub keep_alive: bool,
    /// Content of its body.
    pub body_bytes: u64,
}

impl<S: AsyncRead + Unpin> Incoming<S> {
    /// Nothing was read yet.
    pub fn new(stream: S) -> Self {
        Self { stream, received: BytesMut::new() }
    }

    /// The connection, to write to.
    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Reads one message, whose head `parse` understands; `None` at the end of the connection.
    ///
    /// # Errors
    /// When the connection fails or ends within a message, the bytes are no message, or its body is not of
    /// [`FILLER`].
    pub async fn message(&mut self, parse: fn(&[u8]) -> Result<Option<Head>>) -> Result<Option<Message>> {
        let head = loop {
            if let Some(head) = parse(&self.received)? {
                break head;
            }
            if !self.more().await? {
                ensure!(self.received.is_empty(), "the connection was closed within a head");
                return Ok(None);
            }
        };
        self.received.advance(head.head_bytes);
        let Head { mut body, id, keep_alive, .. } = head;
        let mut body_bytes = 0;
        loop {
            let taken_bytes = body.take(&self.received, &mut |content| {
                ensure!(content.iter().all(|&byte| byte == FILLER), "a body of other bytes than were sent");
                body_bytes += content.len() as u64;
                Ok(())
            })?;
            self.received.advance(taken_bytes);
            if body.is_over() {
                return Ok(Some(Message { id, keep_alive, body_bytes }));
            }
            if !self.more().await? {
                bail!("the connection was closed within a body");
            }
        }
    }

    /// Reads what is there; whether that was anything.
    async fn more(&mut self) -> Result<bool> {
        self.received.reserve(READ_BYTES);
        let count =
            self.stream.read_buf(&mut self.received).await.context("the connection cannot be read")?;
        Ok(count > 0)
    }
}
