//! Measurements made up to the last digit, for everything behind the drain.

use std::collections::BTreeMap;

use jiff::Timestamp;
use smp_agent::histogram::Histogram;
use smp_agent::hop::{Direction, SERIES};
use smp_agent::probe::Verdict;
use smp_agent::probe::programs::Hook;
use smp_agent::window::{Matching, ProgramRun, Proxy, ProxyWindow, SelfUse, Snapshot, UnixConnections};

/// Counters `seconds` after the agent's start: an Envoy with samples in all series, an nginx that sees
/// requests but no responses, and an idle HAProxy.
pub fn snapshot(seconds: u32) -> Snapshot {
    let started = Timestamp::from_second(1_795_428_000).expect("a constant in range");
    let steps = u64::from(seconds);
    Snapshot {
        at: started + std::time::Duration::from_millis(1_000 * steps + 123),
        proxies: vec![
            proxy(0, 4242, "envoy", steps, &Direction::ALL),
            proxy(1, 77, "nginx", steps, &[Direction::Request]),
            proxy(2, 99, "haproxy", 0, &[]),
        ],
        programs: vec![
            program("arrival", "sk_data_ready", Verdict::Attached, 2_800 * steps),
            program("arrival_probe", "tcp_probe", Verdict::NotNeeded, 0),
            program("write", "tcp_sendmsg_locked", Verdict::Unsupported("Linux 6.16 has it".into()), 0),
        ],
        self_use: SelfUse { cpu_ns: 1_234_567 * steps, rss_bytes: 9 << 20 },
    }
}

fn proxy(slot: u32, pid: u32, name: &str, steps: u64, directions: &[Direction]) -> ProxyWindow {
    // A count that no percentile divides, so that the rank has to be the right one.
    let count = 2_803 * steps;
    let mut hops: [Histogram; SERIES.len()] = Default::default();
    for (index, (direction, _)) in SERIES.into_iter().enumerate() {
        let mut state = index as u64 + 1;
        if directions.contains(&direction) {
            (0..count).for_each(|_| hops[index].record(latency_ns(&mut state)));
        }
    }
    let messages = count * directions.len() as u64;
    let matching = Matching {
        seen: messages + 9 * steps,
        exact: messages - steps,
        ambiguous: steps,
        unmatched: 3 * steps,
        local: 5 * steps,
        lost: BTreeMap::from([("set_full", 2 * steps), ("stale", 3 * steps)]),
        in_flight: steps,
    };
    let proxy = Proxy { slot, pid, name: name.into(), exe: format!("/usr/bin/{name}").into() };
    let unix = UnixConnections { downstream: steps, upstream: 2 * steps };
    ProxyWindow { proxy, matching, unix, hops }
}

/// From 1 ns to 0.5 s, evenly on a logarithmic scale; the next of a fixed sequence.
fn latency_ns(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    let doublings = (*state >> 59) % 29;
    (1 << doublings) + ((*state >> 20) & ((1 << doublings) - 1))
}

fn program(name: &'static str, hook: &'static str, verdict: Verdict, run_count: u64) -> ProgramRun {
    ProgramRun {
        program: name,
        hook: Hook::Tracepoint(hook),
        verdict,
        run_ns: 95 * run_count,
        run_count,
        missed: 0,
    }
}
