//! Hop latencies from packets alone: no socket, no process and no agent is asked.
//!
//! A proxy stands between two interfaces. A request is seen arriving on the downstream one and leaving on the
//! upstream one, its response the other way round; the id in each message says which sightings belong together. The
//! time of a message is that of the packet with its first byte.
//!
//! Where every message starts a packet, packets are looked at one by one ([`starts`]), and their beginnings are
//! enough. Elsewhere the bytes of each connection are put in order ([`stream`]) and read by the module of the
//! protocol's family. In HTTP/2 a message begins with its HEADERS frame; in TLS it has the time of the packet with the
//! first byte of the record that carries its first byte.

mod http1;
mod http2;
mod latencies;
mod starts;
mod stream;
mod tcp;
mod tls;
mod units;

use std::collections::HashMap;
use std::net::SocketAddr;

use anyhow::{Context as _, Result};

use crate::http;
use crate::protocol::Protocol;
pub use latencies::Latencies;
pub use stream::Carried;
use stream::Stream;
pub use tls::KeyLog;

/// Which of the proxy's interfaces a packet passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Towards the client.
    Downstream,
    /// Towards the server.
    Upstream,
}

/// Which way a message crosses the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From client to server.
    Request,
    /// From server to client.
    Response,
}

impl Direction {
    /// Both, in the order of every table.
    pub const ALL: [Self; 2] = [Self::Request, Self::Response];

    /// The name in every output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Response => "response",
        }
    }
}

/// One TCP segment, captured when and where it says.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The interface.
    pub side: Side,
    /// Away from the end that opened the connection, or towards it.
    pub direction: Direction,
    /// The address of the end that opened the connection: with `side`, the connection's name.
    pub opener: SocketAddr,
    /// When, ns.
    pub time_ns: u64,
    /// Its sequence number.
    pub sequence: u32,
    /// Whether it is the first of its connection in this direction (SYN).
    pub opens: bool,
    /// What it carries; where [`needs_whole_packets`] permits, the beginning of that is enough.
    pub payload: &'a [u8],
}

/// All messages of a capture.
#[derive(Debug)]
pub struct Wire {
    reading: Reading,
    requests: HashMap<u64, Crossing>,
    responses: HashMap<u64, Crossing>,
    /// Messages that started a second time on the same side: retransmissions where packets are looked at one by one,
    /// an id used twice elsewhere.
    pub repeated: u64,
    /// Packets with bytes that were seen before on the same side, where bytes are put in order: harmless, since
    /// each byte has the time of its first packet.
    pub retransmitted: u64,
    /// Messages in which no id was found.
    pub nameless: u64,
    /// The proxies' own requests to the server, and their responses: no crossings.
    pub checks: u64,
}

/// How messages are found.
#[derive(Debug)]
enum Reading {
    /// At the start of packets.
    Starts,
    /// In the bytes of each connection and direction.
    Streams(Sides, HashMap<(Side, Direction, SocketAddr), Stream>),
}

/// What the connections of each side carry.
#[derive(Clone, Debug)]
pub struct Sides {
    /// Towards the client.
    pub downstream: Carried,
    /// Towards the server.
    pub upstream: Carried,
}

/// Where and when the first byte of a message passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sighting {
    /// The message's name, if it has one.
    id: Option<u64>,
    time_ns: u64,
}

/// The sightings of one message on the two sides, ns.
#[derive(Clone, Copy, Debug, Default)]
struct Crossing {
    downstream: Option<Passed>,
    upstream: Option<Passed>,
}

/// When the first byte of a message passed, and on which connection: the address of the end that opened it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Passed {
    time_ns: u64,
    opener: SocketAddr,
}

/// Whether packets must be captured to their end, and the first packets of connections (SYN) as well.
pub fn needs_whole_packets(protocol: Protocol) -> bool {
    Carried::by(protocol).is_some()
}

impl Wire {
    /// A capture of this protocol of which nothing was seen.
    pub fn new(protocol: Protocol) -> Self {
        Carried::by(protocol).map_or_else(
            || Self::read(Reading::Starts),
            |carried| Self::of_sides(Sides { downstream: carried.clone(), upstream: carried }),
        )
    }

    /// A capture of which nothing was seen, with all of every packet.
    pub fn of_sides(sides: Sides) -> Self {
        Self::read(Reading::Streams(sides, HashMap::new()))
    }

    fn read(reading: Reading) -> Self {
        Self {
            reading,
            requests: HashMap::new(),
            responses: HashMap::new(),
            repeated: 0,
            retransmitted: 0,
            nameless: 0,
            checks: 0,
        }
    }

    /// Takes one packet, in the order of the capture.
    ///
    /// # Errors
    /// When what a connection carries is not the protocol.
    pub fn observe(&mut self, packet: &Packet<'_>) -> Result<()> {
        match &mut self.reading {
            Reading::Starts => {
                if let Some(sighting) = starts::message(packet) {
                    self.see(packet, sighting);
                }
            }
            Reading::Streams(sides, streams) => {
                let carried = match packet.side {
                    Side::Downstream => &sides.downstream,
                    Side::Upstream => &sides.upstream,
                };
                let new = || Stream::new(carried.messages(packet.direction, packet.opener));
                let name = (packet.side, packet.direction, packet.opener);
                let stream = streams.entry(name).or_insert_with(new);
                if packet.opens {
                    // A new connection from an address that was used before.
                    *stream = new();
                }
                let mut sightings = Vec::new();
                let repeats = stream.take(packet, &mut sightings).with_context(|| {
                    format!("the {}s of {} cannot be read", packet.direction.as_str(), packet.opener)
                })?;
                self.retransmitted += u64::from(repeats);
                for sighting in sightings {
                    self.see(packet, sighting);
                }
            }
        }
        Ok(())
    }

    fn see(&mut self, packet: &Packet<'_>, sighting: Sighting) {
        let Some(id) = sighting.id else {
            self.nameless += 1;
            return;
        };
        if id == http::CHECK_ID {
            self.checks += 1;
            return;
        }
        let messages = match packet.direction {
            Direction::Request => &mut self.requests,
            Direction::Response => &mut self.responses,
        };
        let crossing = messages.entry(id).or_default();
        let stamp = match packet.side {
            Side::Downstream => &mut crossing.downstream,
            Side::Upstream => &mut crossing.upstream,
        };
        let passed = Passed { time_ns: sighting.time_ns, opener: packet.opener };
        match stamp {
            None => *stamp = Some(passed),
            Some(first) => {
                self.repeated += 1;
                *first = passed.min(*first);
            }
        }
    }

    /// The latencies of one direction: first byte out less first byte in.
    pub fn latencies(&self, direction: Direction) -> Latencies {
        Latencies::of(self.passages(direction).map(|passage| passage.map(|passed| Some(passed?.time_ns))))
    }

    /// The latencies of one direction by bursts: what came in one packet and left in one packet counts once, however
    /// many messages it was; where it leaves on connections that carry several messages at once too, what came in one
    /// packet counts once for each of those, until the first of it leaves there. Nothing but their contents tells more.
    pub fn bursts(&self, direction: Direction) -> Latencies {
        let mut passages: Vec<_> = self.passages(direction).collect();
        passages.sort_unstable();
        if self.leaves_multiplexed(direction) {
            passages.sort_by_key(|[arrived, left]| (*arrived, left.map(|left| left.opener)));
            passages.dedup_by_key(|[arrived, left]| (*arrived, left.map(|left| left.opener)));
        } else {
            passages.dedup();
        }
        Latencies::of(passages.into_iter().map(|passage| passage.map(|passed| Some(passed?.time_ns))))
    }

    fn leaves_multiplexed(&self, direction: Direction) -> bool {
        let Reading::Streams(sides, _) = &self.reading else { return false };
        let carried = match direction {
            Direction::Request => &sides.upstream,
            Direction::Response => &sides.downstream,
        };
        carried.is_multiplexed()
    }

    /// How each message of one direction came in and went out.
    fn passages(&self, direction: Direction) -> impl Iterator<Item = [Option<Passed>; 2]> {
        let messages = match direction {
            Direction::Request => &self.requests,
            Direction::Response => &self.responses,
        };
        messages.values().map(move |crossing| match direction {
            Direction::Request => [crossing.downstream, crossing.upstream],
            Direction::Response => [crossing.upstream, crossing.downstream],
        })
    }
}

#[cfg(test)]
mod tests;
