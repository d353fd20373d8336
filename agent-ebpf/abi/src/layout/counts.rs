//! What is counted: latencies of messages, and what became of them.

use crate::bucket::PLACES;

/// Latency series of one proxy: five segments of requests, then four of responses, in the order of [`series`].
pub const HOP_SERIES: usize = 9;

/// All series of one proxy: those, then [`WAIT_SERIES`].
pub const SERIES_PER_PROXY: usize = HOP_SERIES + 1;

/// Which way a message crosses the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Direction {
    /// In on an accepted connection, out on an opened one.
    Request = 0,
    /// In on an opened connection, out on an accepted one.
    Response = 1,
}

/// Which part of the crossing, in the order of a proxy's series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Segment {
    /// departure - arrival.
    Hop = 0,
    /// read - arrival.
    Queue = 1,
    /// write - read.
    Proxy = 2,
    /// departure - write.
    Egress = 3,
    /// Of requests only, once for each opened connection that carries one: from the proxy's connect call to the write
    /// of the first request on it, TCP and TLS handshake included.
    Connect = 4,
}

/// Which of a proxy's series it is. There is none of [`Segment::Connect`] of responses.
#[inline(always)]
pub const fn series(direction: Direction, segment: Segment) -> u32 {
    direction as u32 * 5 + segment as u32
}

/// ... of how long its threads were ready to run and did not, each time.
pub const WAIT_SERIES: u32 = HOP_SERIES as u32;

/// Place of a proxy's series in the `SERIES` map.
#[inline(always)]
pub const fn series_place(proxy_slot: u32, series: u32) -> u32 {
    proxy_slot * SERIES_PER_PROXY as u32 + series
}

/// One latency distribution, of all CPUs: one count per bucket, which only grow.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Series {
    /// The counts of [`BUCKETS`](crate::bucket::BUCKETS) buckets; the places behind them stay zero.
    pub counts: [u64; PLACES],
}

/// What is kept exactly of a latency distribution on one CPU, for one [`Share`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Extent {
    /// Sum of all values, ns.
    pub sum_ns: u64,
    /// Largest value, ns, before clamping.
    pub max_ns: u64,
    /// Bitwise complement of the smallest value, ns, so that zero means "no value yet".
    pub min_inverted_ns: u64,
    /// Values above [`HIGHEST_NS`](crate::bucket::HIGHEST_NS), which sit in the last bucket.
    pub clamped: u64,
}

/// Who counts on a CPU. Of each share there is a tally and an extent, so that no program has to fear that an interrupt
/// counts between its load and its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Share {
    /// The programs of receive and send calls.
    Calls = 0,
    /// That of packets that leave, and all others.
    Beside = 1,
}

/// How many shares there are.
pub const SHARES: u32 = 2;

/// Place of a proxy's tally in the `TALLIES` map.
#[inline(always)]
pub const fn tally_place(proxy_slot: u32, share: Share) -> u32 {
    proxy_slot * SHARES + share as u32
}

/// Place of the extent of a proxy's series in the `EXTENTS` map.
#[inline(always)]
pub const fn extent_place(proxy_slot: u32, share: Share, series: u32) -> u32 {
    series_place(tally_place(proxy_slot, share), series)
}

/// Why a message was lost, in the order of [`Tally::lost`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Loss {
    /// Its arrival was not seen: the connection was there before the agent and in use, or a probe run was skipped.
    NoArrival = 0,
    /// It was written, and its socket went on or closed before its first segment was seen leaving.
    NoDeparture = 1,
    /// The thread's pending set was full.
    PendingFull = 2,
    /// There was no room to follow one more proxy thread.
    ThreadsFull = 3,
    /// The kernel refused storage for the socket's state.
    SocketState = 4,
    /// Too many dead entries stood before the oldest live one.
    SearchLimit = 5,
}

/// How many reasons [`Loss`] has.
pub const LOSSES: usize = 6;

/// Names of the reasons in every output, in the order of [`Loss`].
pub const LOSS_NAMES: [&str; LOSSES] =
    ["no_arrival", "no_departure", "pending_full", "threads_full", "socket_state", "search_limit"];

/// Counters of one proxy on one CPU, for one [`Share`]. All only grow but `pending` and `departing`, whose sum over the CPUs is
/// how many there are (a single one may wrap below zero).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tally {
    /// Messages that arrived, and messages that left without a cause.
    pub seen: u64,
    /// Crossings recorded that had one possible cause.
    pub exact: u64,
    /// Crossings recorded that had several possible causes.
    pub ambiguous: u64,
    /// Messages without a counterpart.
    pub unmatched: u64,
    /// Messages that end or begin in the proxy: its own answers and requests, control records. They are counted in
    /// `seen` too.
    pub local: u64,
    /// Messages read and not yet written on.
    pub pending: u64,
    /// Messages written on whose first segment has not left yet.
    pub departing: u64,
    /// Always zero.
    pub reserved: u64,
    /// Messages lost, by [`Loss`].
    pub lost: [u64; LOSSES],
    /// Bytes read from accepted connections and from opened ones: the index is the [`Direction`] of what is read.
    pub read_bytes: [u64; 2],
    /// Bytes written to opened connections and to accepted ones: the index is the [`Direction`] of what is written.
    pub written_bytes: [u64; 2],
    /// Connections that the proxy has opened to other hosts and that have carried a request, without a handshake of TLS.
    pub opened_plain: u64,
    /// ... with one.
    pub opened_tls: u64,
    /// ... with one in which the proxy has shown a certificate, or that goes on with a session in which it did.
    pub opened_mutual_tls: u64,
}

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<Series>() == 8 * PLACES);
    assert!(size_of::<Extent>() == 32);
    assert!(size_of::<Tally>() == 64 + 8 * (LOSSES + 7));
    assert!(offset_of!(Tally, lost) == 64);
};
