//! The messages of raw TCP read from a connection's bytes.

use anyhow::{Context as _, Result};

use super::Sighting;
use crate::tcp::{self, MESSAGE_BYTES};

/// One direction of a connection.
#[derive(Debug, Default)]
pub(super) struct Messages {
    /// When the message began of which the last bytes were.
    start_ns: u64,
    /// These bytes, less than a message.
    seen: Vec<u8>,
}

impl Messages {
    pub(super) fn take(&mut self, time_ns: u64, bytes: &[u8], sightings: &mut Vec<Sighting>) -> Result<()> {
        let mut left = bytes;
        while !left.is_empty() {
            if self.seen.is_empty() {
                self.start_ns = time_ns;
            }
            let (here, rest) = left.split_at(left.len().min(MESSAGE_BYTES - self.seen.len()));
            left = rest;
            self.seen.extend_from_slice(here);
            if self.seen.len() == MESSAGE_BYTES {
                let id = tcp::id(&self.seen).context("bytes that are no message")?;
                sightings.push(Sighting { id: Some(id), time_ns: self.start_ns });
                self.seen.clear();
            }
        }
        Ok(())
    }
}
