//! How near to the packets' the agent's numbers must be, and why not nearer: pure.

use bed::protocol::Protocol;
use bed::proxy::ProxyKind;

use super::matrix::Cell;
use super::verdict::{BEYOND, ERRORS, Matching, STATS};

/// A number this near to the packets' is right whatever its bound is, ns.
const BUDGET_NS: f64 = 2_000.0;
/// The same with fewer messages a second than [`RARE`], ns: the kernel's way from the device to TCP, where a message arrives for the
/// agent, is cold then. By the kernel's own tracepoints, without agent and capture, it is 6.5 us (9 of 10 within 13) with a
/// message each 16 ms, 2 us (3) with one each 0.5 ms: agent/DECISIONS.md, 32.
const RARE_NS: f64 = 10_000.0;
const RARE: f64 = 100.0;
/// Ambiguous messages, of those matched, from which on a protocol that multiplexes has bounds of its own.
const AMBIGUOUS_SHARE: f64 = 0.5;
/// With more connections to a worker, and so large a share ambiguous, event loops have bounds of their own.
const CROWD: u32 = 64;
const CROWDED_SHARE: f64 = 0.9;
/// Bodies of so many bytes take many reads and writes.
const LONG_BYTES: usize = 64 << 10;
/// Where each request opens a TLS connection, so many of each direction may be wrong for each that the load keeps: that
/// many open before it is known that they begin with a handshake, and the responses of those are taken for one another's.
const HANDSHAKES: u64 = 2;
/// With so many streams at a time to a connection one segment brings several requests.
const MANY_STREAMS: u32 = 10;
/// With more streams at a time to a worker each round of its loop takes hundreds of them.
const CROWD_OF_STREAMS: u32 = 512;

/// How far the agent may be from the packets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// Each of [`STATS`], as a share of it.
    pub stats: [f64; 5],
    /// ... or so much, if that is more, ns.
    pub least_ns: f64,
    /// How many there are, as a share of that.
    pub count: f64,
    /// Those that are neither exact nor ambiguous, as a share of those seen.
    pub unmatched: f64,
    /// So many messages of each connection and direction may be wrong beside that: those with which a proxy's habits are
    /// learned.
    learning: u64,
}

impl Bounds {
    /// Where messages come one at a time, so that it can be told which write carries on which read.
    pub const BUDGET: Self =
        Self { stats: [0.01; 5], least_ns: BUDGET_NS, count: 0.001, unmatched: 0.001, learning: 1 };
    /// Where threads hand work over, so that what runs next shows only in part: agent/DECISIONS.md, 17.
    const HANDED_OVER: Self =
        Self { stats: [0.01, 0.02, 0.02, 0.03, 0.11], count: 0.002, unmatched: 0.002, ..Self::BUDGET };
    /// Where a proxy's pool has a stack of free connections for each of several servers, so that none of a turn's messages is foreseen
    /// and they are paired by chance: the mean is exact, the tails are wider. agent/DECISIONS.md, 36.
    const BY_CHANCE: Self = Self { stats: [0.01, 0.02, 0.03, 0.10, 0.35], ..Self::BUDGET };
    /// Where a worker has so many connections that each round of its loop takes a hundred messages: which of them went
    /// first shows only in part. agent/DECISIONS.md, 29.
    const CROWDED: Self =
        Self { stats: [0.05, 0.05, 0.05, 0.10, 0.20], count: 0.002, unmatched: 0.002, ..Self::BUDGET };
    /// The same with twice as many, in one of whose rounds the kernel hands over less than there is.
    const PACKED: Self = Self { stats: [0.20, 0.20, 0.20, 0.45, 0.45], ..Self::CROWDED };
    /// Where a worker has so many connections and each message takes many reads and writes, which interleave with those of
    /// others. agent/DECISIONS.md, 30.
    const LONG: Self = Self { stats: [0.05, 0.15, 0.10, 0.25, 0.45], ..Self::CROWDED };
    /// Where several messages are under way on a connection, which only their contents tell apart: agent/DECISIONS.md, 16.
    const MULTIPLEXED: Self = Self {
        stats: [0.25, 0.25, 0.25, 0.30, f64::INFINITY],
        count: 0.15,
        unmatched: 0.01,
        learning: 4,
        ..Self::BUDGET
    };
    /// The same with so many connections to a worker, or where threads hand work over as well: of hyper's requests with one stream
    /// on each of 16 connections, p99 reads 41 to 54 % short (agent/DECISIONS.md, 34).
    const MULTIPLEXED_CROWD: Self =
        Self { stats: [0.45, 0.45, 0.45, 0.60, f64::INFINITY], ..Self::MULTIPLEXED };
    /// The same of `HAProxy` with more than twice as many connections to a worker: each has settings to acknowledge and so looks as if it carried several
    /// messages at once; a write to one takes what was read for others. agent/DECISIONS.md, 45.
    const MULTIPLEXED_PACKED: Self =
        Self { stats: [0.60, 0.60, 0.60, 0.75, f64::INFINITY], ..Self::MULTIPLEXED };
    /// The same where control records and messages share segments, so that bytes do not tell how many there are:
    /// agent/DECISIONS.md, 30.
    const MIXED: Self = Self { stats: [0.50, 0.50, 0.60, 0.60, f64::INFINITY], ..Self::MULTIPLEXED };
    /// Where only contents tell how many messages there are, or which is one: agent/DECISIONS.md, 29 and 30. The numbers are
    /// not judged, only that the classes add up.
    pub const NOT_JUDGED: Self = Self {
        stats: [f64::INFINITY; 5],
        count: f64::INFINITY,
        unmatched: f64::INFINITY,
        learning: 0,
        ..Self::BUDGET
    };

    /// The bounds of a combination, of whose messages so many were ambiguous.
    pub fn of(cell: &Cell, matching: &Matching) -> Self {
        let ambiguous = matching.ambiguous as f64 / matching.matched().max(1) as f64;
        let full = cell.rate.is_none() && cell.connections >= CROWD * cell.workers;
        let crowded = is_crowd(cell) && ambiguous >= CROWDED_SHARE;
        let packed = cell.connections > 2 * CROWD * cell.workers && ambiguous >= AMBIGUOUS_SHARE;
        let bounds = match cell.protocol {
            _ if !judges(cell) => Self::NOT_JUDGED,
            Protocol::MtlsH2 if cell.proxy == ProxyKind::Haproxy && ambiguous >= AMBIGUOUS_SHARE => {
                Self::MIXED
            }
            protocol if protocol.multiplexes() && ambiguous >= AMBIGUOUS_SHARE => {
                if packed && cell.proxy == ProxyKind::Haproxy {
                    Self::MULTIPLEXED_PACKED
                } else if full || cell.proxy.hands_over() {
                    Self::MULTIPLEXED_CROWD
                } else {
                    Self::MULTIPLEXED
                }
            }
            _ if cell.proxy.hands_over() => Self::HANDED_OVER,
            Protocol::H1Body(bytes) | Protocol::H1Chunked(bytes) if full && bytes >= LONG_BYTES => Self::LONG,
            _ if packed => Self::PACKED,
            _ if crowded => Self::CROWDED,
            Protocol::H1Hosts if cell.proxy == ProxyKind::Envoy && ambiguous >= AMBIGUOUS_SHARE => {
                Self::BY_CHANCE
            }
            _ => Self::BUDGET,
        };
        let rare = cell.rate.is_some_and(|rate| rate < RARE);
        let learning = if cell.protocol == Protocol::MtlsH1Close { HANDSHAKES } else { bounds.learning };
        Self { least_ns: if rare { RARE_NS } else { BUDGET_NS }, learning, ..bounds }
    }

    fn in_words(self) -> String {
        let Self { stats, count, unmatched, learning, .. } = self;
        let stats: Vec<_> = STATS
            .iter()
            .zip(stats)
            .filter(|(_, share)| share.is_finite())
            .map(|(stat, share)| format!("{stat} {:.0} %", share * 100.0))
            .collect();
        let [count, unmatched] = [count, unmatched].map(|share| share * 100.0);
        format!(
            "{}, counts {count:.1} %, unmatched {unmatched:.1} %, beside {learning} a connection and direction (what is learned at first)",
            stats.join(", ")
        )
    }

    /// How many messages of a measurement with so many connections may be wrong beside the shares.
    pub fn learned_with(self, connections: u32) -> u64 {
        self.learning * u64::from(connections)
    }
}

/// More connections to a worker than come one at a time.
fn is_crowd(cell: &Cell) -> bool {
    cell.connections > CROWD * cell.workers
}

/// Whether the numbers of a combination are judged: not where [`UNJUDGED`] says so.
pub fn judges(cell: &Cell) -> bool {
    let closed_loop = cell.rate.is_none();
    match cell.protocol {
        Protocol::H1Pipelined => false,
        Protocol::H2(streams) | Protocol::Grpc(streams) if streams >= MANY_STREAMS => {
            let spread = cell.proxy.hands_over() || cell.proxy == ProxyKind::Nginx;
            let crowd = closed_loop && streams * cell.connections > CROWD_OF_STREAMS * cell.workers;
            !spread && !crowd
        }
        Protocol::MtlsH2 => !is_crowd(cell),
        Protocol::MtlsH1Close => cell.proxy != ProxyKind::Haproxy && !is_crowd(cell),
        _ => true,
    }
}

/// What is not judged, and why not.
const UNJUDGED: &str = "\
Not judged, since only contents tell how many messages there are, or which is one: pipelined HTTP/1.1; ten streams or more \
where the streams of one segment leave on several connections (Go, hyper, nginx); more than 512 streams at a time to a worker, \
or more than 64 on the few connections between two proxies; a pair of HAProxy that opens a TLS connection for each request, \
and one of Envoy with more than 64 connections a worker.";

/// What the table's "within" and "worst" mean.
pub fn in_words() -> String {
    format!(
        "Within: every number as near to the packets' as {} us ({} us with fewer than {RARE} messages a second) or a share of it, whichever is more: {}. A percentile of \
         messages with several possible causes may be {ERRORS} standard errors of its rank further away, since these may have \
         changed places; with fewer than {BEYOND} messages beyond it it is not judged. Where threads hand work to each other (Go, hyper): {}. With more than {CROWD} connections a worker \
         and {:.0} % of the messages ambiguous: {}; with more than {} and {:.0} % ambiguous: {}; with {CROWD} or more and bodies of \
         64 KiB or more: {}. Envoy with several servers, {:.0} % ambiguous: {}. Where a protocol has several messages \
         under way on a connection and {:.0} % of them are ambiguous: {}, of bursts (what came in one packet and left \
         in one, or on one such connection); with {CROWD} connections a worker or more, or where threads hand work to each other: {}; between two HAProxy: {}. With a TLS connection for each request {HANDSHAKES} a connection are learned with. {UNJUDGED} Worst: the number that uses most of its bound.",
        BUDGET_NS / 1e3,
        RARE_NS / 1e3,
        Bounds::BUDGET.in_words(),
        Bounds::HANDED_OVER.in_words(),
        CROWDED_SHARE * 100.0,
        Bounds::CROWDED.in_words(),
        2 * CROWD,
        AMBIGUOUS_SHARE * 100.0,
        Bounds::PACKED.in_words(),
        Bounds::LONG.in_words(),
        AMBIGUOUS_SHARE * 100.0,
        Bounds::BY_CHANCE.in_words(),
        AMBIGUOUS_SHARE * 100.0,
        Bounds::MULTIPLEXED.in_words(),
        Bounds::MULTIPLEXED_CROWD.in_words(),
        Bounds::MIXED.in_words()
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bed::netns::Family;

    use super::*;

    fn cell(proxy: ProxyKind, protocol: Protocol, connections: u32, rate: Option<f64>) -> Cell {
        let duration = Duration::from_secs(1);
        Cell { proxy, workers: 2, protocol, connections, rate, duration, family: Family::V4 }
    }

    #[test]
    fn the_bounds_are_those_of_proxy_protocol_load_and_classes() {
        let bounds = |proxy, protocol, connections, ambiguous| {
            let cell = cell(proxy, protocol, connections, None);
            Bounds::of(&cell, &Matching { exact: 100 - ambiguous, ambiguous, ..Matching::default() })
        };
        assert_eq!(bounds(ProxyKind::Envoy, Protocol::H1, 128, 90), Bounds::BUDGET);
        assert_eq!(bounds(ProxyKind::Envoy, Protocol::H1, 129, 90), Bounds::CROWDED);
        assert_eq!(bounds(ProxyKind::Envoy, Protocol::H1, 129, 89), Bounds::BUDGET);
        assert_eq!(bounds(ProxyKind::Envoy, Protocol::H1Hosts, 16, 50), Bounds::BY_CHANCE);
        assert_eq!(bounds(ProxyKind::Nginx, Protocol::H1Hosts, 16, 50), Bounds::BUDGET);
        assert_eq!(bounds(ProxyKind::Go, Protocol::H1, 129, 90), Bounds::HANDED_OVER);
        assert_eq!(bounds(ProxyKind::Envoy, Protocol::H2(10), 1, 49), Bounds::BUDGET);
        assert_eq!(bounds(ProxyKind::Envoy, Protocol::H2(10), 1, 50), Bounds::MULTIPLEXED);
        assert_eq!(bounds(ProxyKind::Hyper, Protocol::H2(1), 1, 50), Bounds::MULTIPLEXED_CROWD);
        let closing = bounds(ProxyKind::Envoy, Protocol::MtlsH1Close, 16, 50);
        assert_eq!(closing, Bounds { learning: HANDSHAKES, ..Bounds::BUDGET });
        assert_eq!(bounds(ProxyKind::Hyper, Protocol::Grpc(10), 1, 50), Bounds::NOT_JUDGED);
        assert_eq!(bounds(ProxyKind::Haproxy, Protocol::MtlsH2, 128, 50), Bounds::MIXED);
    }

    #[test]
    fn what_only_contents_tell_is_not_judged() {
        let judged = |proxy, protocol, connections| judges(&cell(proxy, protocol, connections, None));
        assert!(!judged(ProxyKind::Nginx, Protocol::H1Pipelined, 1));
        assert!(
            judged(ProxyKind::Nginx, Protocol::Grpc(1), 256)
                && !judged(ProxyKind::Nginx, Protocol::Grpc(10), 1)
        );
        assert!(
            judged(ProxyKind::Envoy, Protocol::H2(10), 102)
                && !judged(ProxyKind::Envoy, Protocol::H2(10), 103)
        );
        assert!(judges(&cell(ProxyKind::Envoy, Protocol::H2(100), 16, Some(2000.0))));
        assert!(
            judged(ProxyKind::Envoy, Protocol::MtlsH2, 128)
                && !judged(ProxyKind::Envoy, Protocol::MtlsH2, 129)
        );
        assert!(judged(ProxyKind::Envoy, Protocol::MtlsH1Close, 128));
        assert!(!judged(ProxyKind::Haproxy, Protocol::MtlsH1Close, 1));
    }

    #[test]
    fn rare_messages_find_the_kernel_cold() {
        let of = |rate| Bounds::of(&cell(ProxyKind::Nginx, Protocol::H1, 1, rate), &Matching::default());
        assert_eq!(of(Some(61.0)), Bounds { least_ns: RARE_NS, ..Bounds::BUDGET });
        assert_eq!([Some(100.0), None].map(of), [Bounds::BUDGET; 2]);
    }
}
