//! What the packets say against what the agent says: pure.

use std::collections::BTreeMap;

use bed::protocol::Protocol;
use bed::proxy::ProxyKind;
use bed::wire::{Direction, Latencies};
use serde::{Deserialize, Serialize};

use super::matrix::Cell;

/// A number this near to the packets' is right whatever its bound is, ns.
const BUDGET_NS: f64 = 2_000.0;
/// Ambiguous messages, of those matched, from which on a protocol that multiplexes has bounds of its own.
const AMBIGUOUS_SHARE: f64 = 0.5;
/// With more connections to a worker, and so large a share ambiguous, event loops have bounds of their own.
const CROWD: u32 = 64;
const CROWDED_SHARE: f64 = 0.9;
/// Bodies of so many bytes take many reads and writes.
const LONG_BYTES: usize = 64 << 10;
/// With so many streams at a time to a connection one segment brings several requests.
const MANY_STREAMS: u32 = 10;
/// With more streams at a time to a worker each round of its loop takes hundreds of them.
const CROWD_OF_STREAMS: u32 = 512;

/// The statistics, in the order of every table.
const STATS: [&str; 5] = ["mean", "p50", "p90", "p99", "p99.9"];
/// Those after the mean, in thousandths.
const PER_MILLE: [u64; 4] = [500, 900, 990, 999];
/// Messages with several possible causes may have changed places with each other. The mean does not change with that; a
/// percentile may become that of as many messages drawn again, so many standard errors of its rank away (the rank's variance
/// is that of a binomial count, `n q (1 - q)`).
const ERRORS: u64 = 3;
/// A percentile with fewer messages beyond it says where one of them was, and is not judged.
const BEYOND: u64 = 10;
/// One message in so many changes places as well because something came between the capture's stamp and the agent's. Seen
/// with nginx and TCP, every message exact: p99.9 of 47,000 was 85 us off, of 4 ms.
const STAMPED_APART: u64 = 100;

/// How far the agent may be from the packets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// Each of [`STATS`], as a share of it.
    stats: [f64; 5],
    /// How many there are, as a share of that.
    count: f64,
    /// Those that are neither exact nor ambiguous, as a share of those seen.
    unmatched: f64,
    /// So many messages of each connection and direction may be wrong beside that: those with which a proxy's habits are
    /// learned.
    learning: u64,
}

impl Bounds {
    /// Where messages come one at a time, so that it can be told which write carries on which read.
    const BUDGET: Self = Self { stats: [0.01; 5], count: 0.001, unmatched: 0.001, learning: 1 };
    /// Where threads hand work over, so that what runs next shows only in part: agent/DECISIONS.md, 17.
    const HANDED_OVER: Self =
        Self { stats: [0.01, 0.02, 0.02, 0.03, 0.11], count: 0.002, unmatched: 0.002, learning: 1 };
    /// Where a worker has so many connections that each round of its loop takes a hundred messages: which of them went
    /// first shows only in part. agent/DECISIONS.md, 29.
    const CROWDED: Self =
        Self { stats: [0.05, 0.05, 0.05, 0.10, 0.20], count: 0.002, unmatched: 0.002, learning: 1 };
    /// The same with twice as many, in one of whose rounds the kernel hands over less than there is.
    const PACKED: Self = Self { stats: [0.20, 0.20, 0.20, 0.45, 0.45], ..Self::CROWDED };
    /// Where a worker has so many connections and each message takes many reads and writes, which interleave with those of
    /// others. agent/DECISIONS.md, 30.
    const LONG: Self = Self { stats: [0.05, 0.15, 0.10, 0.25, 0.45], ..Self::CROWDED };
    /// Where several messages are under way on a connection, which only their contents tell apart: agent/DECISIONS.md, 16.
    const MULTIPLEXED: Self =
        Self { stats: [0.20, 0.20, 0.20, 0.30, f64::INFINITY], count: 0.10, unmatched: 0.01, learning: 4 };
    /// The same with so many connections to a worker.
    const MULTIPLEXED_CROWD: Self =
        Self { stats: [0.45, 0.45, 0.45, 0.60, f64::INFINITY], ..Self::MULTIPLEXED };
    /// The same where control records and messages share segments, so that bytes do not tell how many there are:
    /// agent/DECISIONS.md, 30.
    const MIXED: Self = Self { stats: [0.50, 0.50, 0.60, 0.60, f64::INFINITY], ..Self::MULTIPLEXED };
    /// Where only contents tell how many messages there are, or which is one: agent/DECISIONS.md, 29 and 30. The numbers are
    /// not judged, only that the classes add up.
    const NOT_JUDGED: Self =
        Self { stats: [f64::INFINITY; 5], count: f64::INFINITY, unmatched: f64::INFINITY, learning: 0 };

    /// The bounds of a combination, of whose messages so many were ambiguous.
    pub fn of(cell: &Cell, matching: &Matching) -> Self {
        let ambiguous = matching.ambiguous as f64 / matching.matched().max(1) as f64;
        let full = cell.rate.is_none() && cell.connections >= CROWD * cell.workers;
        let crowded = is_crowd(cell) && ambiguous >= CROWDED_SHARE;
        let packed = cell.connections > 2 * CROWD * cell.workers && ambiguous >= AMBIGUOUS_SHARE;
        match cell.protocol {
            _ if !judges(cell) => Self::NOT_JUDGED,
            Protocol::MtlsH2 if cell.proxy == ProxyKind::Haproxy && ambiguous >= AMBIGUOUS_SHARE => {
                Self::MIXED
            }
            protocol if protocol.multiplexes() && ambiguous >= AMBIGUOUS_SHARE => {
                if full {
                    Self::MULTIPLEXED_CROWD
                } else {
                    Self::MULTIPLEXED
                }
            }
            _ if cell.proxy.hands_over() => Self::HANDED_OVER,
            Protocol::H1Body(bytes) | Protocol::H1Chunked(bytes) if full && bytes >= LONG_BYTES => Self::LONG,
            _ if packed => Self::PACKED,
            _ if crowded => Self::CROWDED,
            _ => Self::BUDGET,
        }
    }

    fn in_words(self) -> String {
        let Self { stats, count, unmatched, learning } = self;
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
    fn learned_with(self, connections: u32) -> u64 {
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
pub fn bounds_in_words() -> String {
    format!(
        "Within: every number as near to the packets' as {} us or a share of it, whichever is more: {}. A percentile of \
         messages with several possible causes may be {ERRORS} standard errors of its rank further away, since these may have \
         changed places; with fewer than {BEYOND} messages beyond it it is not judged. Where threads hand work to each other (Go, hyper): {}. With more than {CROWD} connections a worker \
         and {:.0} % of the messages ambiguous: {}; with more than {} and {:.0} % ambiguous: {}; with {CROWD} or more and bodies of \
         64 KiB or more: {}. Where a protocol has several messages \
         under way on a connection and {:.0} % of them are ambiguous: {}, of bursts (what came in one packet and left \
         in one, or on one such connection); with {CROWD} connections a worker or more: {}; between two HAProxy: {}. {UNJUDGED} Worst: the number that uses most of its bound.",
        BUDGET_NS / 1e3,
        Bounds::BUDGET.in_words(),
        Bounds::HANDED_OVER.in_words(),
        CROWDED_SHARE * 100.0,
        Bounds::CROWDED.in_words(),
        2 * CROWD,
        AMBIGUOUS_SHARE * 100.0,
        Bounds::PACKED.in_words(),
        Bounds::LONG.in_words(),
        AMBIGUOUS_SHARE * 100.0,
        Bounds::MULTIPLEXED.in_words(),
        Bounds::MULTIPLEXED_CROWD.in_words(),
        Bounds::MIXED.in_words()
    )
}

/// What is read of the agent's `overhead.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Document {
    hops: Vec<Hop>,
    /// How its messages were classified.
    pub matching: Matching,
}

/// One latency series of the agent.
#[derive(Clone, Debug, Deserialize)]
struct Hop {
    pid: u32,
    direction: String,
    segment: String,
    unit: String,
    count: u64,
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
}

/// The agent's classes.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Matching {
    /// Messages seen.
    pub seen: u64,
    /// With one possible cause.
    pub exact: u64,
    /// With several.
    pub ambiguous: u64,
    /// With none.
    pub unmatched: u64,
    /// Of which a part was not seen; by reason.
    pub lost: BTreeMap<String, u64>,
    /// Not yet forwarded.
    pub in_flight: u64,
    /// Beside those seen: messages that end or begin in the proxy.
    pub local: u64,
}

/// One number, twice.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// `mean`, `p50`, `p90`, `p99` or `p99.9`.
    pub stat: &'static str,
    /// From the packets, us.
    pub wire_us: f64,
    /// From the agent, us; nothing where it has no number.
    pub agent_us: Option<f64>,
    /// Whether the two are as near as the bound asks.
    pub within: bool,
    /// How far apart they may be, us, on that side of it; nothing where that is not judged.
    pub bound_us: Option<f64>,
}

impl Comparison {
    /// How far the agent's number is from the packets', us.
    pub fn error_us(&self) -> Option<f64> {
        self.agent_us.map(|agent_us| agent_us - self.wire_us)
    }
}

impl Matching {
    /// Messages with a cause.
    pub fn matched(&self) -> u64 {
        self.exact + self.ambiguous
    }

    /// Adds those of another measurement.
    pub fn add(&mut self, other: &Self) {
        self.seen += other.seen;
        self.exact += other.exact;
        self.ambiguous += other.ambiguous;
        self.unmatched += other.unmatched;
        self.in_flight += other.in_flight;
        self.local += other.local;
        for (reason, count) in &other.lost {
            let sum = self.lost.entry(reason.clone()).or_default();
            *sum = sum.saturating_add(*count);
        }
    }

    /// Messages without a cause.
    pub fn causeless(&self) -> u64 {
        self.lost.values().fold(self.unmatched, |sum, &lost| sum.saturating_add(lost))
    }

    /// Everything that is wrong with the classes, given how many messages were on the wire.
    pub fn failures(&self, wire: u64, connections: u32, bounds: Bounds) -> Vec<String> {
        let sum = self.matched().saturating_add(self.causeless()).saturating_add(self.in_flight);
        let mut failures = Vec::new();
        if sum != self.seen {
            failures.push(format!("the classes sum to {sum}, not to the {} messages seen", self.seen));
        }
        // One in each direction.
        let learning = 2.0 * bounds.learned_with(connections) as f64;
        if self.seen.abs_diff(wire) as f64 > bounds.count * wire as f64 + learning {
            failures.push(format!("the agent saw {} messages, the wire had {wire}", self.seen));
        }
        if (self.seen.saturating_sub(self.matched()) as f64) > bounds.unmatched * self.seen as f64 + learning
        {
            failures.push(format!(
                "only {} of {} messages are matched: {} unmatched, lost {:?}, {} in flight",
                self.matched(),
                self.seen,
                self.unmatched,
                self.lost,
                self.in_flight
            ));
        }
        failures
    }
}

impl Document {
    /// Compares one direction's `hop` of a proxy with the packets at every statistic, and says what else is wrong with it.
    pub fn compare(
        &self,
        pid: u32,
        direction: Direction,
        wire: &Latencies,
        connections: u32,
        bounds: Bounds,
    ) -> (Vec<Comparison>, Vec<String>) {
        let name = direction.as_str();
        let fits = |hop: &&Hop| hop.pid == pid && hop.direction == name && hop.segment == "hop";
        let fitting: Vec<_> = self.hops.iter().filter(fits).collect();
        let (hop, mut failures) = match fitting[..] {
            [hop] if hop.unit == "ns" => (Some(hop), Vec::new()),
            [hop] => (None, vec![format!("the unit of the {name} hop is {}, not ns", hop.unit)]),
            ref several => (None, vec![format!("the agent has {} hops for {name}s", several.len())]),
        };
        if let Some(hop) = hop
            && (hop.count.abs_diff(wire.count()) as f64)
                > bounds.count * wire.count() as f64 + bounds.learned_with(connections) as f64
        {
            failures.push(format!("the agent has {} {name}s, the wire {}", hop.count, wire.count()));
        }
        let Matching { seen, exact, .. } = self.matching;
        let unsure = seen.saturating_sub(exact);
        let judged = Judged {
            shares: bounds.stats,
            moved: (wire.count() * unsure / seen.max(1)).max(wire.count() / STAMPED_APART),
            learned: bounds.learned_with(connections).min(unsure),
        };
        (comparisons(wire, hop, Some(judged)), failures)
    }
}

/// What the packets alone say, where no agent was run.
pub fn wire_only(wire: &Latencies) -> Vec<Comparison> {
    comparisons(wire, None, None)
}

/// How the numbers of one direction are judged.
#[derive(Clone, Copy)]
struct Judged {
    /// Each of [`STATS`], as a share of it.
    shares: [f64; 5],
    /// How many messages may have changed places with others.
    moved: u64,
    /// How many may be wrong: what a proxy's habits are learned with. They are the first ones, when everything is slow, so that
    /// the mean may miss as many of the longest.
    learned: u64,
}

impl Judged {
    /// How far from the packets' a number may be, on the side of the agent's, ns.
    fn bound_ns(self, wire: &Latencies, place: usize, agent_ns: f64) -> Option<f64> {
        let share = self.shares[place];
        let Some(percentile) = place.checked_sub(1) else {
            let learned_ns = wire.longest_ns(self.learned) as f64 / wire.count() as f64;
            return wire.mean_ns().map(|mean_ns| learned_ns + BUDGET_NS.max(mean_ns * share));
        };
        let per_mille = PER_MILLE[percentile];
        if wire.count() * (1000 - per_mille) < BEYOND * 1000 {
            return Some(f64::INFINITY);
        }
        let drawn_again = ERRORS * (self.moved * per_mille * (1000 - per_mille)).isqrt() / 1000;
        let ranks = drawn_again + self.learned;
        let wire_ns = wire.quantile_ns(PER_MILLE[percentile])? as f64;
        let [least_ns, most_ns] = wire.around_quantile_ns(PER_MILLE[percentile], ranks)?;
        let end_ns = if agent_ns < wire_ns { least_ns } else { most_ns } as f64;
        Some((end_ns - wire_ns).abs() + BUDGET_NS.max(end_ns * share))
    }
}

fn comparisons(wire: &Latencies, hop: Option<&Hop>, judged: Option<Judged>) -> Vec<Comparison> {
    let agent_ns = hop.map(|hop| [hop.mean, hop.p50, hop.p90, hop.p99, hop.p999]);
    let compare = |place: usize| {
        let wire_ns = match place.checked_sub(1) {
            None => wire.mean_ns()?,
            Some(percentile) => wire.quantile_ns(PER_MILLE[percentile])? as f64,
        };
        let agent_ns = agent_ns.map(|agent_ns| agent_ns[place]);
        let bound_ns = judged
            .and_then(|judged| judged.bound_ns(wire, place, agent_ns.unwrap_or(wire_ns)))
            .filter(|bound_ns| bound_ns.is_finite());
        let within = agent_ns.is_some_and(|ns| bound_ns.is_none_or(|bound| (ns - wire_ns).abs() <= bound));
        Some(Comparison {
            stat: STATS[place],
            wire_us: wire_ns / 1e3,
            agent_us: agent_ns.map(|ns| ns / 1e3),
            within,
            bound_us: bound_ns.map(|ns| ns / 1e3),
        })
    };
    (0..STATS.len()).filter_map(compare).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bed::netns::Family;

    use super::*;

    fn wire(latencies_ns: &[u64]) -> Latencies {
        latencies_ns.iter().copied().collect()
    }

    fn cell(proxy: ProxyKind, protocol: Protocol, connections: u32, rate: Option<f64>) -> Cell {
        let duration = Duration::from_secs(1);
        Cell { proxy, workers: 2, protocol, connections, rate, duration, family: Family::V4 }
    }

    fn document(hop: &str) -> Document {
        serde_json::from_str(&format!(
            r#"{{"hops": [{hop}], "matching": {{"seen": 10, "exact": 7, "ambiguous": 1, "unmatched": 1,
                "lost": {{"pending_full": 1}}, "in_flight": 0, "local": 0}}}}"#
        ))
        .expect("a document")
    }

    /// Of messages that had one possible cause each.
    fn certain(hop: &str) -> Document {
        Document { matching: Matching { seen: 10, exact: 10, ..Matching::default() }, ..document(hop) }
    }

    const HOP: &str = r#"{"proxy": "envoy", "pid": 1, "direction": "request", "segment": "hop", "unit": "ns",
        "count": 2, "min": 1, "max": 1, "mean": 51900, "p50": 52100, "p90": 1010000, "p99": 990000, "p999": 989000}"#;

    #[test]
    fn the_budget_is_2_us_or_1_percent() {
        let within = |wire_ns: [u64; 2]| {
            let hop = certain(&HOP.replace("\"count\": 2,", "\"count\": 20000,"));
            let wire = wire(&[vec![wire_ns[0]; 12_000], vec![wire_ns[1]; 8_000]].concat());
            let (comparisons, failures) = hop.compare(1, Direction::Request, &wire, 0, Bounds::BUDGET);
            assert_eq!(failures, Vec::<String>::new());
            comparisons.into_iter().map(|one| (one.stat, one.within)).collect::<Vec<_>>()
        };
        let judged = within([50_000, 1_000_000]);
        assert_eq!(judged, [("mean", false), ("p50", false), ("p90", true), ("p99", true), ("p99.9", false)]);
        assert_eq!(within([50_100, 53_900])[..2], [("mean", true), ("p50", true)]);
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
        assert_eq!(bounds(ProxyKind::Go, Protocol::H1, 129, 90), Bounds::HANDED_OVER);
        assert_eq!(bounds(ProxyKind::Envoy, Protocol::H2(10), 1, 49), Bounds::BUDGET);
        assert_eq!(bounds(ProxyKind::Envoy, Protocol::H2(10), 1, 50), Bounds::MULTIPLEXED);
        assert_eq!(bounds(ProxyKind::Hyper, Protocol::H2(1), 1, 50), Bounds::MULTIPLEXED);
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
    fn a_percentile_needs_messages_beyond_it() {
        let bounded = |count: u64| {
            let (comparisons, _) =
                certain(HOP).compare(1, Direction::Request, &(1..=count).collect(), 0, Bounds::BUDGET);
            comparisons.into_iter().map(|one| one.bound_us.is_some()).collect::<Vec<_>>()
        };
        assert_eq!(bounded(10_000), [true; 5]);
        assert_eq!(bounded(9_999), [true, true, true, true, false]);
        assert_eq!(bounded(999), [true, true, true, false, false]);
    }

    #[test]
    fn what_is_not_judged_has_no_bounds() {
        let (comparisons, failures) =
            document(HOP).compare(1, Direction::Request, &wire(&[1; 9]), 0, Bounds::NOT_JUDGED);
        assert!(comparisons.iter().all(|one| one.within && one.bound_us.is_none()));
        assert_eq!(failures, Vec::<String>::new());
    }

    #[test]
    fn percentiles_of_messages_with_several_causes_may_be_those_of_others_drawn_again() {
        let spread: Vec<_> = (0..10_000).map(|place| place * 1_000).collect();
        let bounds_us = |exact| {
            let matching = Matching { seen: 10_000, exact, ambiguous: 10_000 - exact, ..Matching::default() };
            let document = Document { matching, ..document(HOP) };
            let (comparisons, _) = document.compare(1, Direction::Request, &wire(&spread), 0, Bounds::BUDGET);
            comparisons.into_iter().filter_map(|one| one.bound_us).map(f64::round).collect::<Vec<_>>()
        };
        assert_eq!(bounds_us(10_000), [50.0, 65.0, 99.0, 101.0, 100.0]);
        // The agent's numbers are below: sqrt(10,000 q (1 - q)) is 50, 30, 9.9 and 3.2, and 1 % of what is there is added.
        assert_eq!(bounds_us(0), [50.0, 198.0, 179.0, 128.0, 109.0]);
    }

    #[test]
    fn a_missing_or_second_hop_and_other_counts_are_failures() {
        let two = wire(&[1, 2]);
        let (comparisons, failures) = document("").compare(1, Direction::Request, &two, 0, Bounds::BUDGET);
        assert!(comparisons.iter().all(|one| !one.within && one.agent_us.is_none()));
        assert_eq!(failures, ["the agent has 0 hops for requests"]);
        let (_, failures) =
            document(&format!("{HOP},{HOP}")).compare(1, Direction::Request, &two, 0, Bounds::BUDGET);
        assert_eq!(failures, ["the agent has 2 hops for requests"]);
        let (_, failures) =
            document(HOP).compare(1, Direction::Request, &wire(&[1, 2, 3]), 0, Bounds::BUDGET);
        assert_eq!(failures, ["the agent has 2 requests, the wire 3"]);
    }

    #[test]
    fn classes_must_sum_up_and_hold_all_messages() {
        let whole = Matching { seen: 10_000, exact: 9_000, ambiguous: 1_000, ..Matching::default() };
        assert_eq!(whole.failures(10_000, 0, Bounds::BUDGET), Vec::<String>::new());
        assert_eq!(whole.failures(10_010, 0, Bounds::BUDGET), Vec::<String>::new());
        assert_eq!(whole.failures(10_011, 0, Bounds::BUDGET).len(), 1);
        let torn = Matching { seen: 10_000, exact: 9_999, ..Matching::default() };
        assert_eq!(
            torn.failures(10_000, 0, Bounds::BUDGET),
            ["the classes sum to 9999, not to the 10000 messages seen"]
        );
        assert_eq!(document(HOP).matching.failures(10, 0, Bounds::BUDGET).len(), 1);
    }
}
