//! HTTP/2 in one direction of a connection: where messages begin, and their ids.
//!
//! A message begins with the first byte of its HEADERS frame. Its header block can go on in CONTINUATION frames and
//! is decoded when it is whole: every block of the direction is, in order, since each may change the table of the
//! next.

use std::fmt;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use httlib_hpack::Decoder;

use super::units::Units;
use super::{Direction, Sighting};
use crate::http;

/// What a client sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const FRAME_HEADER_BYTES: usize = 9;
const HEADERS: u8 = 0x1;
const PUSH_PROMISE: u8 = 0x5;
const CONTINUATION: u8 = 0x9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// One direction of a connection.
pub(super) struct Messages {
    /// Bytes of the preface that are still to come.
    preface: &'static [u8],
    frames: Units,
    blocks: Blocks,
}

/// Header blocks, put together and decoded.
struct Blocks {
    decoder: Decoder<'static>,
    /// The one that is not whole yet.
    open: Option<Block>,
}

struct Block {
    stream: u32,
    start_ns: u64,
    fragments: Vec<u8>,
}

impl fmt::Debug for Messages {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Messages").field("frames", &self.frames).finish_non_exhaustive()
    }
}

impl Messages {
    pub(super) fn new(direction: Direction) -> Self {
        let preface = match direction {
            Direction::Request => PREFACE,
            Direction::Response => &[],
        };
        Self { preface, frames: Units::default(), blocks: Blocks { decoder: Decoder::default(), open: None } }
    }

    pub(super) fn take(&mut self, time_ns: u64, bytes: &[u8], sightings: &mut Vec<Sighting>) -> Result<()> {
        let (preface, bytes) = bytes.split_at(self.preface.len().min(bytes.len()));
        self.preface = self.preface.strip_prefix(preface).context("no HTTP/2: another preface")?;
        self.frames.push(time_ns, bytes, FRAME_HEADER_BYTES, frame_bytes, |start_ns, frame| {
            sightings.extend(self.blocks.frame(start_ns, frame)?);
            Ok(())
        })
    }
}

/// Length of the frame that begins with this header.
fn frame_bytes(header: &[u8]) -> usize {
    FRAME_HEADER_BYTES + (usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]))
}

impl Blocks {
    fn frame(&mut self, start_ns: u64, frame: &[u8]) -> Result<Option<Sighting>> {
        let (header, payload) = frame.split_at(FRAME_HEADER_BYTES);
        let (kind, flags) = (header[3], header[4]);
        let stream = header[5..].try_into().map(u32::from_be_bytes)? & !(1 << 31);
        match (kind, self.open.take()) {
            (HEADERS, None) => {
                let fragments =
                    fragment(flags, payload).context("a HEADERS frame shorter than its padding")?;
                self.open = Some(Block { stream, start_ns, fragments: fragments.to_vec() });
            }
            (CONTINUATION, Some(mut block)) => {
                ensure!(block.stream == stream, "a CONTINUATION frame of another stream");
                block.fragments.extend_from_slice(payload);
                self.open = Some(block);
            }
            (PUSH_PROMISE, _) => bail!("a PUSH_PROMISE frame, which the bed does not speak"),
            (_, Some(_)) => bail!("a frame of type {kind} within a header block"),
            (CONTINUATION, None) => bail!("a CONTINUATION frame without a header block"),
            (_, None) => return Ok(None),
        }
        if flags & END_HEADERS == 0 {
            return Ok(None);
        }
        self.open.take().map_or(Ok(None), |block| self.decode(&block))
    }

    /// The message that a block begins: nothing for trailers and for interim responses (1xx).
    fn decode(&mut self, block: &Block) -> Result<Option<Sighting>> {
        let (mut fragments, mut headers) = (block.fragments.clone(), Vec::new());
        self.decoder.decode(&mut fragments, &mut headers).map_err(|error| {
            anyhow!("the header block of stream {} cannot be decoded: {error:?}", block.stream)
        })?;
        let (mut begins, mut id) = (false, None);
        for (name, value, _flags) in &headers {
            match name.as_slice() {
                b":method" => begins = true,
                b":status" => begins = !value.starts_with(b"1"),
                name if name == http::ID_HEADER.as_bytes() => id = http::parse_id(value),
                _ => {}
            }
        }
        Ok(begins.then_some(Sighting { id, time_ns: block.start_ns }))
    }
}

/// What a HEADERS frame holds of the header block.
fn fragment(flags: u8, mut payload: &[u8]) -> Option<&[u8]> {
    let mut padding = 0;
    if flags & PADDED != 0 {
        let (length, rest) = payload.split_first()?;
        (padding, payload) = (usize::from(*length), rest);
    }
    if flags & PRIORITY != 0 {
        payload = payload.get(5..)?;
    }
    payload.get(..payload.len().checked_sub(padding)?)
}

#[cfg(test)]
mod tests;
