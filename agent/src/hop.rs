//! What a latency series is about: one proxy, one direction, one segment.

use serde::Serialize;
use smp_agent_abi::layout::HOP_SERIES;

/// Which way a message crosses the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// In on a connection the proxy accepted (downstream), out on one it opened (upstream).
    Request,
    /// In from upstream, out to downstream.
    Response,
}

/// Which part of the crossing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Segment {
    /// departure - arrival: what the proxy added on this path, as the wire sees it.
    Hop,
    /// read - arrival: kernel queue, wake-up, run queue, the event loop being busy.
    Queue,
    /// write - read: the proxy's own work and its event loop's batching.
    Proxy,
    /// departure - write: the stack on the way out, waits for window or qdisc included.
    Egress,
    /// Of requests only, once for each connection that the proxy opened and that carries one: from its connect call to
    /// the write of the first request, with the handshakes of TCP and TLS. Part of that request's `proxy`.
    Connect,
}

impl Direction {
    /// Both, in the kernel's order.
    pub const ALL: [Self; 2] = [Self::Request, Self::Response];

    /// The name in every output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Response => "response",
        }
    }
}

impl Segment {
    /// The name in every output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hop => "hop",
            Self::Queue => "queue",
            Self::Proxy => "proxy",
            Self::Egress => "egress",
            Self::Connect => "connect",
        }
    }
}

/// Every series of a proxy, in the kernel's order.
pub const SERIES: [(Direction, Segment); HOP_SERIES] = [
    (Direction::Request, Segment::Hop),
    (Direction::Request, Segment::Queue),
    (Direction::Request, Segment::Proxy),
    (Direction::Request, Segment::Egress),
    (Direction::Request, Segment::Connect),
    (Direction::Response, Segment::Hop),
    (Direction::Response, Segment::Queue),
    (Direction::Response, Segment::Proxy),
    (Direction::Response, Segment::Egress),
];

/// Place of one of [`SERIES`] among them, in the kernel's map and in
/// [`ProxyWindow`](crate::window::ProxyWindow).
pub const fn series_index(direction: Direction, segment: Segment) -> usize {
    direction as usize * 5 + segment as usize
}

#[cfg(test)]
mod tests {
    use smp_agent_abi::layout;

    use super::*;

    #[test]
    fn every_series_is_in_its_place() {
        for (place, (direction, segment)) in SERIES.into_iter().enumerate() {
            assert_eq!(series_index(direction, segment), place);
        }
        let last = layout::series(layout::Direction::Response, layout::Segment::Egress);
        assert_eq!(layout::series_place(1, last) as usize, layout::SERIES_PER_PROXY + HOP_SERIES - 1);
        let connect = layout::series(layout::Direction::Request, layout::Segment::Connect);
        assert_eq!(connect as usize, series_index(Direction::Request, Segment::Connect));
    }
}
