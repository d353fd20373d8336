//! HTTP/2 in one direction of a connection: where messages begin, and their ids.
//!
//! A message begins with the first byte of its HEADERS frame. Its header block can go on in CONTINUATION frames and
//! is decoded when it is whole: every block of the direction is, in order, since each may change the table of the
//! next.

use anyhow::{Context as _, Result, bail, ensure};
use loona_hpack::Decoder;

use super::stream::Units;
use super::{Direction, Head};
use crate::http;

/// What a client sends first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const FRAME_HEADER_BYTES: usize = 9;
const HEADERS: u8 = 0x1;
const SETTINGS: u8 = 0x4;
const PUSH_PROMISE: u8 = 0x5;
const CONTINUATION: u8 = 0x9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// Reads one direction.
pub struct Reader {
    /// Bytes of the preface that are still to come.
    preface_left: usize,
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
    started_ns: u64,
    fragments: Vec<u8>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Reader").field("frames", &self.frames).finish_non_exhaustive()
    }
}

impl Reader {
    /// Whether a direction that begins like this is HTTP/2: the client's preface, or a server's SETTINGS. `None`
    /// while that cannot be told.
    pub fn speaks(begin: &[u8]) -> Option<bool> {
        let length = PREFACE.len().min(begin.len());
        if begin[..length] == PREFACE[..length] {
            return (length == PREFACE.len()).then_some(true);
        }
        // A frame of type SETTINGS on stream 0, no longer than the handful of settings there are.
        let begin = begin.get(..FRAME_HEADER_BYTES)?;
        Some(begin[..2] == [0, 0] && begin[3] == SETTINGS && begin[5..] == [0; 4])
    }

    /// A reader of a direction from its beginning, which [`Reader::speaks`] has seen.
    pub fn new(begin: &[u8]) -> Self {
        Self {
            preface_left: if begin.starts_with(PREFACE) { PREFACE.len() } else { 0 },
            frames: Units::default(),
            blocks: Blocks { decoder: Decoder::new(), open: None },
        }
    }

    /// Takes the next bytes, which came at one time, and hands on the heads that are whole now.
    ///
    /// # Errors
    /// When the bytes are no HTTP/2.
    pub fn push(
        &mut self,
        time_ns: u64,
        bytes: &[u8],
        mut found: impl FnMut(Head) -> Result<()>,
    ) -> Result<()> {
        let preface = self.preface_left.min(bytes.len());
        self.preface_left -= preface;
        let blocks = &mut self.blocks;
        self.frames.push(time_ns, &bytes[preface..], FRAME_HEADER_BYTES, frame_bytes, |started_ns, frame| {
            match blocks.frame(started_ns, frame)? {
                Some(head) => found(head),
                None => Ok(()),
            }
        })
    }

    /// Whether the last frame and the last header block came to their end.
    pub fn is_whole(&self) -> bool {
        self.frames.is_whole() && self.blocks.open.is_none()
    }
}

/// Length of the frame that begins with this header.
fn frame_bytes(header: &[u8]) -> usize {
    FRAME_HEADER_BYTES + (usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]))
}

impl Blocks {
    fn frame(&mut self, started_ns: u64, frame: &[u8]) -> Result<Option<Head>> {
        let (header, payload) = frame.split_at(FRAME_HEADER_BYTES);
        let (kind, flags) = (header[3], header[4]);
        let stream = header[5..].try_into().map(u32::from_be_bytes)? & !(1 << 31);
        match (kind, self.open.take()) {
            (HEADERS, None) => {
                let fragments = fragment(flags, payload).context("a HEADERS frame shorter than its padding")?;
                self.open = Some(Block { stream, started_ns, fragments: fragments.to_vec() });
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

    /// The head in a block: nothing for trailers and for interim responses (1xx).
    fn decode(&mut self, block: &Block) -> Result<Option<Head>> {
        let (mut direction, mut id) = (None, None);
        self.decoder
            .decode_with_cb(&block.fragments, |name, value| match name.as_ref() {
                b":method" => direction = Some(Direction::Request),
                b":status" if !value.starts_with(b"1") => direction = Some(Direction::Response),
                name if name == http::ID_HEADER.as_bytes() => id = http::parse_id(&value),
                _ => {}
            })
            .with_context(|| format!("the header block of stream {} cannot be decoded", block.stream))?;
        Ok(direction.map(|direction| Head { direction, time_ns: block.started_ns, id }))
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
