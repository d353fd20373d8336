//! What the packets say against what the agent says: pure.

use std::collections::BTreeMap;

use bed::wire::{Direction, Latencies};
use serde::{Deserialize, Serialize};

use super::bounds::Bounds;

/// The statistics, in the order of every table.
pub const STATS: [&str; 5] = ["mean", "p50", "p90", "p99", "p99.9"];
/// Those after the mean, in thousandths.
const PER_MILLE: [u64; 4] = [500, 900, 990, 999];
/// Messages with several possible causes may have changed places with each other. The mean does not change with that; a
/// percentile may become that of as many messages drawn again, so many standard errors of its rank away (the rank's variance
/// is that of a binomial count, `n q (1 - q)`).
pub const ERRORS: u64 = 3;
/// A percentile with fewer messages beyond it says where one of them was, and is not judged.
pub const BEYOND: u64 = 10;
/// One message in so many changes places as well because something came between the capture's stamp and the agent's. Seen
/// with nginx and TCP, every message exact: p99.9 of 47,000 was 85 us off, of 4 ms.
const STAMPED_APART: u64 = 100;

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
            bounds,
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
    bounds: Bounds,
    /// How many messages may have changed places with others.
    moved: u64,
    /// How many may be wrong: what a proxy's habits are learned with. They are the first ones, when everything is slow, so that
    /// the mean may miss as many of the longest.
    learned: u64,
}

impl Judged {
    /// How far from the packets' a number may be, on the side of the agent's, ns.
    fn bound_ns(self, wire: &Latencies, place: usize, agent_ns: f64) -> Option<f64> {
        let Bounds { stats, least_ns, .. } = self.bounds;
        let share = stats[place];
        let Some(percentile) = place.checked_sub(1) else {
            let learned_ns = wire.longest_ns(self.learned) as f64 / wire.count() as f64;
            return wire.mean_ns().map(|mean_ns| learned_ns + least_ns.max(mean_ns * share));
        };
        let per_mille = PER_MILLE[percentile];
        if wire.count() * (1000 - per_mille) < BEYOND * 1000 {
            return Some(f64::INFINITY);
        }
        let drawn_again = ERRORS * (self.moved * per_mille * (1000 - per_mille)).isqrt() / 1000;
        let ranks = drawn_again + self.learned;
        let wire_ns = wire.quantile_ns(PER_MILLE[percentile])? as f64;
        let [low_ns, high_ns] = wire.around_quantile_ns(PER_MILLE[percentile], ranks)?;
        let end_ns = if agent_ns < wire_ns { low_ns } else { high_ns } as f64;
        Some((end_ns - wire_ns).abs() + least_ns.max(end_ns * share))
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
