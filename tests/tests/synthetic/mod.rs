//! Measurements made up to the last digit, for everything behind the drain.

use std::collections::BTreeMap;

use jiff::Timestamp;
use smp_agent::cgroup::Container;
use smp_agent::cost::{CpuBeside, CpuCost};
use smp_agent::histogram::Histogram;
use smp_agent::hop::{Direction, SERIES};
use smp_agent::identity::{Identity, Role};
use smp_agent::kubernetes::{Owner, Pod, Source};
use smp_agent::memory::Memory;
use smp_agent::probe::Verdict;
use smp_agent::probe::programs::Hook;
use smp_agent::usage::Usage;
use smp_agent::window::{
    Bytes, Matching, Opened, ProgramRun, Proxy, ProxyCost, ProxyWindow, SelfUse, Snapshot, UnixConnections,
};
use smp_agent_abi::layout::Cost;

/// Counters `seconds` after the agent's start: an Envoy with samples in all series, an nginx that sees
/// requests but no responses, and an idle HAProxy: a sidecar in a pod, a gateway and an egress gateway.
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
        beside: CpuBeside {
            others: Cost {
                on_cpu_ns: 400_000_000 * steps,
                softirq_caused_ns: 9_000_000 * steps,
                ..Cost::default()
            },
            idle: Cost {
                on_cpu_ns: 1_300_000_000 * steps,
                softirq_borne_ns: 30_000_000 * steps,
                ..Cost::default()
            },
        },
        usage: Usage::default(),
        pods: None,
        processes: None,
        self_use: SelfUse { cpu_ns: 1_234_567 * steps, rss_bytes: 9 << 20, map_bytes: 33 << 20 },
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
    let roles = [Role::Sidecar, Role::Gateway, Role::EgressGateway];
    let proxy = Proxy {
        slot,
        pid,
        name: name.into(),
        exe: format!("/usr/bin/{name}").into(),
        container: Container::default(),
        pod: (slot == 0).then(pod),
        identity: Identity { role: Some(roles[slot as usize]), ..Identity::default() },
    };
    let unix = UnixConnections { downstream: steps, upstream: 2 * steps };
    ProxyWindow { proxy, matching, unix, hops, cost: cost(steps) }
}

/// Names with what has to be escaped somewhere.
fn pod() -> Pod {
    Pod {
        name: "cart-76fb7c756-wgczg".into(),
        namespace: "shop".into(),
        owner: Some(Owner { kind: "Deployment".into(), name: "cart".into() }),
        container: Some("istio-proxy".into()),
        application: [("name", "the \"cart\": 1"), ("version", "2.3")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        source: Source::Api,
        ..Pod::default()
    }
}

fn cost(steps: u64) -> ProxyCost {
    let mut run_queue_wait = Histogram::new();
    (0..100 * steps).for_each(|place| run_queue_wait.record(1_000 + place * 77));
    let counted = Cost {
        on_cpu_ns: 123_456_789 * steps,
        user_ticks_ns: 80_000_000 * steps,
        system_ticks_ns: 44_000_000 * steps,
        voluntary: 90 * steps,
        involuntary: 10 * steps,
        softirq_borne_ns: 4_000_000 * steps,
        softirq_caused_ns: 6_000_000 * steps,
    };
    let bytes = Bytes {
        downstream_in: 57 * steps,
        downstream_out: 131 * steps,
        upstream_in: 132 * steps,
        upstream_out: 98 * steps,
    };
    let memory = Memory { rss_bytes: 40 << 20, rss_peak_bytes: 41 << 20, ..Memory::default() };
    let opened = Opened { plain: steps, tls: 2 * steps, mutual_tls: 3 * steps };
    ProxyCost {
        cpu: CpuCost { counted, run_queue_wait, irq_time_apart: false },
        bytes,
        opened,
        memory,
        throttling: None,
    }
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
