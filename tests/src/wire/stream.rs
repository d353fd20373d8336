//! The bytes of one direction of a connection, in order, and the messages in them.

use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::{Result, ensure};

use super::tls::{self, KeyLog};
use super::{Direction, Packet, Sighting, http1, http2, tcp};
use crate::protocol::Protocol;

/// A capture with more packets ahead of a missing one will not have it.
const MOST_AHEAD: usize = 1024;

/// What connections carry on one side of the proxy.
#[derive(Clone, Debug)]
pub enum Carried {
    /// HTTP/1.1, whose messages start anywhere.
    Http1,
    /// HTTP/2 from the start.
    Http2,
    /// The bed's messages of raw TCP.
    Tcp,
    /// TLS, whose secrets are known, with something inside.
    Tls(Rc<KeyLog>, Box<Self>),
}

/// Finds the messages in the bytes of one direction of a connection; by family of protocols.
#[derive(Debug)]
pub(super) enum Messages {
    Http1(http1::Messages),
    Http2(http2::Messages),
    Tcp(tcp::Messages),
    Tls(Box<tls::Messages>),
}

/// One direction of a connection.
#[derive(Debug)]
pub(super) struct Stream {
    messages: Messages,
    /// The sequence number of the first byte that was not read; `None` before the first packet.
    next: Option<u32>,
    /// What came from beyond that byte.
    ahead: Vec<Piece>,
}

/// What a packet carries.
#[derive(Debug)]
struct Piece {
    sequence: u32,
    time_ns: u64,
    bytes: Vec<u8>,
}

impl Carried {
    /// What connections of this protocol carry on both sides; `None` where that is not needed, since every message
    /// starts a packet, and where it is not the same on both.
    pub(super) fn by(protocol: Protocol) -> Option<Self> {
        match protocol {
            Protocol::H1Pipelined => Some(Self::Http1),
            Protocol::H2(_) | Protocol::Grpc(_) => Some(Self::Http2),
            Protocol::Tcp | Protocol::TcpServerFirst => Some(Self::Tcp),
            _ => None,
        }
    }

    /// Whether the messages of one connection may be answered in any order.
    pub(super) fn is_multiplexed(&self) -> bool {
        match self {
            Self::Http1 | Self::Tcp => false,
            Self::Http2 => true,
            Self::Tls(_, inner) => inner.is_multiplexed(),
        }
    }

    /// What reads a connection of which nothing was seen, opened by `opener`.
    pub(super) fn messages(&self, direction: Direction, opener: SocketAddr) -> Messages {
        match self {
            Self::Http1 => Messages::Http1(http1::Messages::new(direction)),
            Self::Http2 => Messages::Http2(http2::Messages::new(direction)),
            Self::Tcp => Messages::Tcp(tcp::Messages::default()),
            Self::Tls(keys, inner) => {
                let inner = inner.messages(direction, opener);
                Messages::Tls(Box::new(tls::Messages::new(Rc::clone(keys), opener, inner)))
            }
        }
    }
}

impl Messages {
    /// Takes the connection's next bytes, which passed at this time, and adds the messages whose ids are now known.
    pub(super) fn take(&mut self, time_ns: u64, bytes: &[u8], sightings: &mut Vec<Sighting>) -> Result<()> {
        match self {
            Self::Http1(messages) => messages.take(time_ns, bytes, sightings),
            Self::Http2(messages) => messages.take(time_ns, bytes, sightings),
            Self::Tcp(messages) => messages.take(time_ns, bytes, sightings),
            Self::Tls(messages) => messages.take(time_ns, bytes, sightings),
        }
    }
}

impl Stream {
    pub(super) fn new(messages: Messages) -> Self {
        Self { messages, next: None, ahead: Vec::new() }
    }

    /// Takes a packet, adds the messages whose ids are now known, and returns whether it repeats bytes.
    ///
    /// # Errors
    /// When the bytes are not those of the protocol, or some are missing.
    pub(super) fn take(&mut self, packet: &Packet<'_>, sightings: &mut Vec<Sighting>) -> Result<bool> {
        // The SYN has a number of its own.
        let sequence = packet.sequence.wrapping_add(u32::from(packet.opens));
        let next = *self.next.get_or_insert(sequence);
        if distance(next, sequence) > 0 {
            ensure!(self.ahead.len() < MOST_AHEAD, "bytes are missing behind {next}");
            self.ahead.push(Piece { sequence, time_ns: packet.time_ns, bytes: packet.payload.to_vec() });
            return Ok(false);
        }
        self.read(sequence, packet.time_ns, packet.payload, sightings)?;
        while let Some(place) = self.ahead.iter().position(|piece| self.reaches(piece.sequence)) {
            let piece = self.ahead.swap_remove(place);
            self.read(piece.sequence, piece.time_ns, &piece.bytes, sightings)?;
        }
        Ok(sequence != next && !packet.payload.is_empty())
    }

    /// Whether all bytes before this one were read.
    fn reaches(&self, sequence: u32) -> bool {
        self.next.is_some_and(|next| distance(next, sequence) <= 0)
    }

    /// Reads what is new of bytes before which none is missing.
    fn read(
        &mut self,
        sequence: u32,
        time_ns: u64,
        bytes: &[u8],
        sightings: &mut Vec<Sighting>,
    ) -> Result<()> {
        let next = self.next.unwrap_or(sequence);
        let known_bytes = usize::try_from(distance(sequence, next))?;
        let new = bytes.get(known_bytes..).unwrap_or_default();
        self.next = Some(next.wrapping_add(u32::try_from(new.len())?));
        self.messages.take(time_ns, new, sightings)
    }
}

/// From one sequence number to another; they wrap around.
fn distance(from: u32, to: u32) -> i32 {
    to.wrapping_sub(from).cast_signed()
}
