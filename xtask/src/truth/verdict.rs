//! What the packets say against what the agent says: pure.

use std::collections::BTreeMap;

use bed::wire::{Direction, Latencies};
use serde::{Deserialize, Serialize};

/// The budget of each statistic: this, or the share below where that is more.
const BUDGET_NS: f64 = 2_000.0;
const BUDGET_SHARE: f64 = 0.01;
/// Exact and ambiguous messages together, of those seen, at least.
const MATCHED_SHARE: f64 = 0.999;

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
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Matching {
    /// Messages seen.
    pub seen: u64,
    exact: u64,
    ambiguous: u64,
    unmatched: u64,
    lost: BTreeMap<String, u64>,
    in_flight: u64,
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
    /// Whether the two are as near as the budget asks.
    pub within: bool,
}

impl Matching {
    /// Messages with a cause.
    pub fn matched(&self) -> u64 {
        self.exact + self.ambiguous
    }

    /// Everything that is wrong with the classes, given how many messages were on the wire.
    pub fn failures(&self, wire: u64) -> Vec<String> {
        let lost: u64 = self.lost.values().sum();
        let sum = self.matched() + self.unmatched + lost + self.in_flight;
        let mut failures = Vec::new();
        if sum != self.seen {
            failures.push(format!("the classes sum to {sum}, not to the {} messages seen", self.seen));
        }
        if self.seen.abs_diff(wire) as f64 > (1.0 - MATCHED_SHARE) * wire as f64 {
            failures.push(format!("the agent saw {} messages, the wire had {wire}", self.seen));
        }
        if (self.matched() as f64) < MATCHED_SHARE * self.seen as f64 {
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
    /// Compares one direction's `hop` with the packets at every statistic, and says what else is wrong with it.
    pub fn compare(&self, direction: Direction, wire: &Latencies) -> (Vec<Comparison>, Vec<String>) {
        let name = direction.as_str();
        let fitting: Vec<_> =
            self.hops.iter().filter(|hop| hop.direction == name && hop.segment == "hop").collect();
        let (hop, mut failures) = match fitting[..] {
            [hop] if hop.unit == "ns" => (Some(hop), Vec::new()),
            [hop] => (None, vec![format!("the unit of the {name} hop is {}, not ns", hop.unit)]),
            ref several => (None, vec![format!("the agent has {} hops for {name}s", several.len())]),
        };
        if let Some(hop) = hop
            && (hop.count.abs_diff(wire.count()) as f64) > (1.0 - MATCHED_SHARE) * wire.count() as f64
        {
            failures.push(format!("the agent has {} {name}s, the wire {}", hop.count, wire.count()));
        }
        (comparisons(wire, hop), failures)
    }
}

/// What the packets alone say, where no agent was run.
pub fn wire_only(wire: &Latencies) -> Vec<Comparison> {
    comparisons(wire, None)
}

fn comparisons(wire: &Latencies, hop: Option<&Hop>) -> Vec<Comparison> {
    let quantile_ns = |per_mille| wire.quantile_ns(per_mille).map(|latency_ns| latency_ns as f64);
    [
        ("mean", wire.mean_ns(), hop.map(|hop| hop.mean)),
        ("p50", quantile_ns(500), hop.map(|hop| hop.p50)),
        ("p90", quantile_ns(900), hop.map(|hop| hop.p90)),
        ("p99", quantile_ns(990), hop.map(|hop| hop.p99)),
        ("p99.9", quantile_ns(999), hop.map(|hop| hop.p999)),
    ]
    .into_iter()
    .filter_map(|(stat, wire_ns, agent_ns)| {
        let wire_ns = wire_ns?;
        let within = agent_ns.is_some_and(|ns| (ns - wire_ns).abs() <= BUDGET_NS.max(wire_ns * BUDGET_SHARE));
        let agent_us = agent_ns.map(|ns| ns / 1e3);
        Some(Comparison { stat, wire_us: wire_ns / 1e3, agent_us, within })
    })
    .collect()
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

    const HOP: &str = r#"{"proxy": "envoy", "pid": 1, "direction": "request", "segment": "hop", "unit": "ns",
        "count": 2, "min": 1, "max": 1, "mean": 51900, "p50": 52100, "p90": 1010000, "p99": 990000, "p999": 989000}"#;

    #[test]
    fn the_budget_is_2_us_or_1_percent() {
        let within = |wire_ns: [u64; 2]| {
            let (comparisons, failures) = document(HOP).compare(Direction::Request, &wire(&wire_ns));
            assert_eq!(failures, Vec::<String>::new());
            comparisons.into_iter().map(|one| (one.stat, one.within)).collect::<Vec<_>>()
        };
        let judged = within([50_000, 1_000_000]);
        assert_eq!(judged, [("mean", false), ("p50", false), ("p90", true), ("p99", true), ("p99.9", false)]);
        assert_eq!(within([50_100, 53_900])[..2], [("mean", true), ("p50", true)]);
    }

    #[test]
    fn a_missing_or_second_hop_and_other_counts_are_failures() {
        let two = wire(&[1, 2]);
        let (comparisons, failures) = document("").compare(Direction::Request, &two);
        assert!(comparisons.iter().all(|one| !one.within && one.agent_us.is_none()));
        assert_eq!(failures, ["the agent has 0 hops for requests"]);
        let (_, failures) = document(&format!("{HOP},{HOP}")).compare(Direction::Request, &two);
        assert_eq!(failures, ["the agent has 2 hops for requests"]);
        let (_, failures) = document(HOP).compare(Direction::Request, &wire(&[1, 2, 3]));
        assert_eq!(failures, ["the agent has 2 requests, the wire 3"]);
    }

    #[test]
    fn classes_must_sum_up_and_hold_all_messages() {
        let whole = Matching { seen: 10_000, exact: 9_000, ambiguous: 1_000, ..Matching::default() };
        assert_eq!(whole.failures(10_000), Vec::<String>::new());
        assert_eq!(whole.failures(10_010), Vec::<String>::new());
        assert_eq!(whole.failures(10_011).len(), 1);
        let torn = Matching { seen: 10_000, exact: 9_999, ..Matching::default() };
        assert_eq!(torn.failures(10_000), ["the classes sum to 9999, not to the 10000 messages seen"]);
        assert_eq!(document(HOP).matching.failures(10).len(), 1);
    }
}
