//! What a latency series is about: one proxy, one direction, one segment.

use serde::Serialize;

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
    /// All four, in the kernel's order.
    pub const ALL: [Self; 4] = [Self::Hop, Self::Queue, Self::Proxy, Self::Egress];

    /// The name in every output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hop => "hop",
            Self::Queue => "queue",
            Self::Proxy => "proxy",
            Self::Egress => "egress",
        }
    }
}

/// Position of (direction, segment) among a proxy's eight series, in the kernel's map and in
/// [`ProxyWindow`](crate::window::ProxyWindow).
pub const fn series_index(direction: Direction, segment: Segment) -> usize {
    direction as usize * Segment::ALL.len() + segment as usize
}
