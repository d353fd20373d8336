//! Hop latencies from packets alone: no socket, no process and no agent is asked.
//!
//! A proxy stands between two interfaces. A request is seen arriving on the downstream one and leaving on the
//! upstream one, its response the other way round; the id in their headers says which packets belong together.

use std::collections::HashMap;

use crate::http;

pub mod http2;
pub mod stream;
pub mod tls;

/// Which of the proxy's interfaces a packet passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Towards the client.
    Downstream,
    /// Towards the server.
    Upstream,
}

/// Which way a message crosses the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

/// What the start of a packet's payload says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// The first packet of the message with this id.
    Message(Direction, u64),
    /// The first packet of a message without an id within the captured bytes.
    Nameless,
    /// Neither a request line nor a status line: a later packet of some message.
    Continuation,
}

/// Where a message begins on one side of the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Which way it goes.
    pub direction: Direction,
    /// When the packet with its first byte was captured, ns.
    pub time_ns: u64,
    /// Its id, if its head has one.
    pub id: Option<u64>,
}

/// The first packets of one message on the two sides, ns.
#[derive(Clone, Copy, Debug, Default)]
struct Crossing {
    downstream_ns: Option<u64>,
    upstream_ns: Option<u64>,
}

/// All message starts of a capture.
#[derive(Debug, Default)]
pub struct Wire {
    requests: HashMap<u64, Crossing>,
    responses: HashMap<u64, Crossing>,
    /// Message starts seen before on the same side: retransmissions.
    pub repeated: u64,
    /// Message starts in which no id was found.
    pub nameless: u64,
    /// Packets that start no message.
    pub continuations: u64,
}

/// The latencies of one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    /// Every message's, ns, ascending.
    sorted_ns: Vec<u64>,
    /// Messages seen on one side only.
    pub one_sided: u64,
    /// Messages that left before they arrived: impossible, so a sign of a wrong capture.
    pub backwards: u64,
}

impl Wire {
    /// Takes one packet's TCP payload, captured when and where it says. The earliest packet of a message counts.
    pub fn observe(&mut self, side: Side, time_ns: u64, payload: &[u8]) {
        let (direction, id) = match start(payload) {
            Start::Message(direction, id) => (direction, id),
            Start::Nameless => {
                self.nameless += 1;
                return;
            }
            Start::Continuation => {
                self.continuations += 1;
                return;
            }
        };
        let messages = match direction {
            Direction::Request => &mut self.requests,
            Direction::Response => &mut self.responses,
        };
        let crossing = messages.entry(id).or_default();
        let stamp = match side {
            Side::Downstream => &mut crossing.downstream_ns,
            Side::Upstream => &mut crossing.upstream_ns,
        };
        match stamp {
            None => *stamp = Some(time_ns),
            Some(first_ns) => {
                self.repeated += 1;
                *first_ns = time_ns.min(*first_ns);
            }
        }
    }

    /// The latencies of one direction: first packet out less first packet in.
    pub fn latencies(&self, direction: Direction) -> Latencies {
        let messages = match direction {
            Direction::Request => &self.requests,
            Direction::Response => &self.responses,
        };
        let mut latencies = Latencies::default();
        for crossing in messages.values() {
            let (Some(downstream_ns), Some(upstream_ns)) = (crossing.downstream_ns, crossing.upstream_ns)
            else {
                latencies.one_sided += 1;
                continue;
            };
            let (in_ns, out_ns) = match direction {
                Direction::Request => (downstream_ns, upstream_ns),
                Direction::Response => (upstream_ns, downstream_ns),
            };
            match out_ns.checked_sub(in_ns) {
                Some(latency_ns) => latencies.sorted_ns.push(latency_ns),
                None => latencies.backwards += 1,
            }
        }
        latencies.sorted_ns.sort_unstable();
        latencies
    }
}

impl Latencies {
    /// Messages seen on both sides.
    pub fn count(&self) -> u64 {
        self.sorted_ns.len() as u64
    }

    /// Arithmetic mean, ns; `None` of nothing.
    pub fn mean_ns(&self) -> Option<f64> {
        let sum_ns: u128 = self.sorted_ns.iter().map(|&latency_ns| u128::from(latency_ns)).sum();
        (!self.sorted_ns.is_empty()).then(|| sum_ns as f64 / self.sorted_ns.len() as f64)
    }

    /// The smallest latency that at least `per_mille` thousandths of the messages do not exceed, ns: the one of
    /// rank `ceil(q * n)`. `None` of nothing.
    pub fn quantile_ns(&self, per_mille: u64) -> Option<u64> {
        let rank = (self.count() * per_mille).div_ceil(1000).max(1);
        self.sorted_ns.get(usize::try_from(rank - 1).ok()?).copied()
    }
}

fn start(payload: &[u8]) -> Start {
    const METHODS: [&[u8]; 5] = [b"GET ", b"POST ", b"PUT ", b"HEAD ", b"DELETE "];
    let direction = if payload.starts_with(b"HTTP/1.") {
        Direction::Response
    } else if METHODS.iter().any(|method| payload.starts_with(method)) {
        Direction::Request
    } else {
        return Start::Continuation;
    };
    // The snap length may have cut the head anywhere, so lines are searched, not a head parsed.
    payload
        .split(|&byte| byte == b'\n')
        .skip(1)
        .take_while(|line| !matches!(line, [] | [b'\r']))
        .find_map(|line| id_of(line.strip_suffix(b"\r").unwrap_or(line)))
        .map_or(Start::Nameless, |id| Start::Message(direction, id))
}

fn id_of(line: &[u8]) -> Option<u64> {
    let (name, rest) = line.split_at_checked(http::ID_HEADER.len())?;
    let value = rest.strip_prefix(b":")?.trim_ascii();
    name.eq_ignore_ascii_case(http::ID_HEADER.as_bytes()).then(|| http::parse_id(value))?
}

#[cfg(test)]
mod tests;
