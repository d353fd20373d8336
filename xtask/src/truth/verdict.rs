//! What the packets say against what the agent says: pure.

use std::collections::BTreeMap;

use bed::protocol::Protocol;
use bed::proxy::ProxyKind;
use bed::wire::{Direction, Latencies};
use serde::{Deserialize, Serialize};

/// A number this near to the packets' is right whatever its bound is, ns.
const BUDGET_NS: f64 = 2_000.0;
/// Ambiguous messages, of those matched, from which on a protocol that multiplexes has bounds of its own.
const AMBIGUOUS_SHARE: f64 = 0.5;

/// The statistics, in the order of every table.
const STATS: [&str; 5] = ["mean", "p50", "p90", "p99", "p99.9"];
/// What share of the messages lies beyond each of them.
const BEYOND: [f64; 5] = [1.0, 0.5, 0.1, 0.01, 0.001];
/// So many messages must lie beyond a percentile for it to be judged, unless each message had one possible cause only:
/// with fewer, a few that changed places move it as far as any bound.
const TAIL: f64 = 100.0;

/// How far the agent may be from the packets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// Each of [`STATS`], as a share of it; nothing where it is not judged.
    stats: [Option<f64>; 5],
    /// How many there are, as a share of that.
    count: f64,
    /// Those that are neither exact nor ambiguous, as a share of those seen.
    unmatched: f64,
    /// So many messages more may be unmatched, for each connection: those with which a proxy's habits are learned.
    learning: u64,
}

impl Bounds {
    /// Where messages come one at a time, so that it can be told which write carries on which read.
    const BUDGET: Self = Self { stats: [Some(0.01); 5], count: 0.001, unmatched: 0.001, learning: 1 };
    /// Where threads hand work over, so that what runs next shows only in part: agent/DECISIONS.md, 17.
    const HANDED_OVER: Self = Self {
        stats: [Some(0.01), Some(0.02), Some(0.02), Some(0.03), Some(0.11)],
        count: 0.002,
        unmatched: 0.002,
        learning: 1,
    };
    /// Where several messages are under way on a connection, which only their contents tell apart: agent/DECISIONS.md, 16.
    const MULTIPLEXED: Self = Self {
        stats: [Some(0.20), Some(0.20), Some(0.20), Some(0.30), None],
        count: 0.10,
        unmatched: 0.01,
        learning: 4,
    };
    /// For a few seconds on a machine that does other things too: percentiles of few messages vary by themselves.
    const SHORT: Self = Self {
        stats: [Some(0.01), Some(0.03), Some(0.03), Some(0.03), None],
        count: 0.001,
        unmatched: 0.001,
        learning: 0,
    };
    /// Nothing is judged.
    const NONE: Self = Self { stats: [None; 5], count: f64::INFINITY, unmatched: f64::INFINITY, learning: 0 };

    fn in_words(self) -> String {
        let Self { stats, count, unmatched, learning } = self;
        let stats: Vec<_> = STATS
            .iter()
            .zip(stats)
            .map(|(stat, share)| {
                share.map_or_else(
                    || format!("{stat} not judged"),
                    |share| format!("{stat} {:.0} %", share * 100.0),
                )
            })
            .collect();
        let [count, unmatched] = [count, unmatched].map(|share| share * 100.0);
        format!(
            "{}, counts {count:.1} %, unmatched {unmatched:.1} % and {learning} a connection (what is learned at first)",
            stats.join(", ")
        )
    }
}

/// What the table's "within" and "worst" mean.
pub fn bounds_in_words() -> String {
    let [budget, ..] = Bounds::BUDGET.stats.map(|share| share.unwrap_or_default() * 100.0);
    format!(
        "Within: every number as near to the packets' as {} us or {budget} %, whichever is more, and 99.9 % of the \
         messages matched but for one a connection, by which habits are learned. A percentile is judged where {TAIL} \
         messages lie beyond it, or each has one possible cause only. Where threads hand work to each other (Go, hyper): {}. Where a protocol has several messages \
         under way on a connection and {:.0} % of them are ambiguous: {}, of bursts (what came in one packet and left \
         in one, or on one such connection). Worst: the number that uses most of its bound.",
        BUDGET_NS / 1e3,
        Bounds::HANDED_OVER.in_words(),
        AMBIGUOUS_SHARE * 100.0,
        Bounds::MULTIPLEXED.in_words()
    )
}

/// What a measurement must pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// The budget, and for protocols that multiplex the stated bounds.
    Full,
    /// Bounds that a few seconds in CI do not exceed by chance; p99.9 is not judged.
    Short,
}

impl Gate {
    /// The bounds for this proxy and protocol, of whose messages so many were ambiguous.
    pub fn bounds(self, proxy: ProxyKind, protocol: Protocol, matching: &Matching) -> Bounds {
        let ambiguous = matching.ambiguous as f64 >= AMBIGUOUS_SHARE * matching.matched() as f64;
        match self {
            _ if protocol.multiplexes() && ambiguous => Bounds::MULTIPLEXED,
            Self::Full if proxy.hands_over() => Bounds::HANDED_OVER,
            Self::Full => Bounds::BUDGET,
            Self::Short => Bounds::SHORT,
        }
    }
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
    /// How far apart they may be, us; nothing where that is not judged.
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
            *self.lost.entry(reason.clone()).or_default() += count;
        }
    }

    /// Messages without a cause.
    pub fn causeless(&self) -> u64 {
        self.unmatched + self.lost.values().sum::<u64>()
    }

    /// Everything that is wrong with the classes, given how many messages were on the wire.
    pub fn failures(&self, wire: u64, connections: u32, bounds: Bounds) -> Vec<String> {
        let sum = self.matched() + self.causeless() + self.in_flight;
        let mut failures = Vec::new();
        if sum != self.seen {
            failures.push(format!("the classes sum to {sum}, not to the {} messages seen", self.seen));
        }
        let learning = (bounds.learning * u64::from(connections)) as f64;
        if self.seen.abs_diff(wire) as f64 > bounds.count * wire as f64 + learning {
            failures.push(format!("the agent saw {} messages, the wire had {wire}", self.seen));
        }
        if ((self.seen - self.matched()) as f64) > bounds.unmatched * self.seen as f64 + learning {
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
        let told = self.matching.exact == self.matching.seen;
        let judged = |place: usize| told || BEYOND[place] * wire.count() as f64 >= TAIL;
        let stats = std::array::from_fn(|place| bounds.stats[place].filter(|_| place == 0 || judged(place)));
        let bounds = Bounds { stats, ..bounds };
        let learning = (bounds.learning * u64::from(connections)) as f64;
        let name = direction.as_str();
        let fits = |hop: &&Hop| hop.pid == pid && hop.direction == name && hop.segment == "hop";
        let fitting: Vec<_> = self.hops.iter().filter(fits).collect();
        let (hop, mut failures) = match fitting[..] {
            [hop] if hop.unit == "ns" => (Some(hop), Vec::new()),
            [hop] => (None, vec![format!("the unit of the {name} hop is {}, not ns", hop.unit)]),
            ref several => (None, vec![format!("the agent has {} hops for {name}s", several.len())]),
        };
        if let Some(hop) = hop
            && (hop.count.abs_diff(wire.count()) as f64) > bounds.count * wire.count() as f64 + learning
        {
            failures.push(format!("the agent has {} {name}s, the wire {}", hop.count, wire.count()));
        }
        (comparisons(wire, hop, bounds), failures)
    }
}

/// What the packets alone say, where no agent was run.
pub fn wire_only(wire: &Latencies) -> Vec<Comparison> {
    comparisons(wire, None, Bounds::NONE)
}

fn comparisons(wire: &Latencies, hop: Option<&Hop>, bounds: Bounds) -> Vec<Comparison> {
    let quantile_ns = |per_mille| wire.quantile_ns(per_mille).map(|latency_ns| latency_ns as f64);
    let (p50, p90, p99) = (quantile_ns(500), quantile_ns(900), quantile_ns(990));
    let wire_ns = [wire.mean_ns(), p50, p90, p99, quantile_ns(999)];
    let agent_ns = hop.map(|hop| [hop.mean, hop.p50, hop.p90, hop.p99, hop.p999]);
    let compare = |place: usize| {
        let (wire_ns, agent_ns) = (wire_ns[place]?, agent_ns.map(|agent_ns| agent_ns[place]));
        let bound_ns = bounds.stats[place].map(|share| BUDGET_NS.max(wire_ns * share));
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
    use super::*;

    fn wire(latencies_ns: &[u64]) -> Latencies {
        latencies_ns.iter().copied().collect()
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
            let (comparisons, failures) =
                certain(HOP).compare(1, Direction::Request, &wire(&wire_ns), 0, Bounds::BUDGET);
            assert_eq!(failures, Vec::<String>::new());
            comparisons.into_iter().map(|one| (one.stat, one.within)).collect::<Vec<_>>()
        };
        let judged = within([50_000, 1_000_000]);
        assert_eq!(judged, [("mean", false), ("p50", false), ("p90", true), ("p99", true), ("p99.9", false)]);
        assert_eq!(within([50_100, 53_900])[..2], [("mean", true), ("p50", true)]);
    }

    #[test]
    fn the_bounds_are_those_of_gate_protocol_and_classes() {
        let matching = |exact, ambiguous| Matching { exact, ambiguous, ..Matching::default() };
        let (told, mixed) = (matching(51, 49), matching(50, 50));
        assert_eq!(Gate::Full.bounds(ProxyKind::Envoy, Protocol::H1, &mixed), Bounds::BUDGET);
        assert_eq!(Gate::Full.bounds(ProxyKind::Go, Protocol::H1, &mixed), Bounds::HANDED_OVER);
        assert_eq!(Gate::Full.bounds(ProxyKind::Envoy, Protocol::H1Pipelined, &told), Bounds::BUDGET);
        assert_eq!(Gate::Full.bounds(ProxyKind::Envoy, Protocol::H1Pipelined, &mixed), Bounds::MULTIPLEXED);
        assert_eq!(Gate::Short.bounds(ProxyKind::Envoy, Protocol::H2(10), &mixed), Bounds::MULTIPLEXED);
        assert_eq!(Gate::Short.bounds(ProxyKind::Envoy, Protocol::Tcp, &mixed), Bounds::SHORT);

        let (comparisons, _) =
            certain(HOP).compare(1, Direction::Request, &wire(&[50_000, 1_000_000]), 0, Bounds::SHORT);
        let judged: Vec<_> = comparisons.iter().map(|one| (one.within, one.bound_us)).collect();
        assert_eq!(judged[1..], [(false, Some(2.0)), (true, Some(30.0)), (true, Some(30.0)), (true, None)]);
    }

    #[test]
    fn a_percentile_that_rests_on_few_messages_is_judged_where_each_has_one_cause() {
        let many: Vec<_> = (0..2_000).map(|place| 50_000 + place).collect();
        let judged = |document: Document| {
            let (comparisons, _) =
                document.compare(1, Direction::Request, &wire(&many), 2_000, Bounds::BUDGET);
            comparisons.into_iter().map(|one| one.bound_us.is_some()).collect::<Vec<_>>()
        };
        assert_eq!(judged(certain(HOP)), [true; 5]);
        assert_eq!(judged(document(HOP)), [true, true, true, false, false]);
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
