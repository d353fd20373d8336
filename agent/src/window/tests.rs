use proptest::prelude::*;

use super::*;
use crate::hop::{Direction, Segment, series_index};

const HOP: usize = series_index(Direction::Request, Segment::Hop);

fn proxy(slot: u32, matching: Matching, hop_ns: &[u64]) -> ProxyWindow {
    let mut hops: [Histogram; HOP_SERIES] = Default::default();
    for &value_ns in hop_ns {
        hops[HOP].record(value_ns);
    }
    let proxy = Proxy {
        slot,
        pid: 100 + slot,
        name: "envoy".into(),
        exe: "/usr/bin/envoy".into(),
        container: Container::default(),
        pod: None,
        identity: Identity::default(),
    };
    ProxyWindow { proxy, matching, unix: UnixConnections::default(), hops, cost: ProxyCost::default() }
}

fn program(run_ns: u64, run_count: u64, missed: u64, verdict: Verdict) -> ProgramRun {
    ProgramRun {
        program: "read",
        hook: Hook::Tracepoint("sock_recv_length"),
        verdict,
        run_ns,
        run_count,
        missed,
    }
}

fn snapshot(second: i64, proxies: Vec<ProxyWindow>) -> Snapshot {
    let self_use = SelfUse {
        cpu_ns: 1_000 * second.unsigned_abs(),
        rss_bytes: 100 - second.unsigned_abs(),
        map_bytes: 7,
    };
    let at = Timestamp::from_second(second).unwrap();
    let (beside, usage) = (CpuBeside::default(), Usage::default());
    Snapshot { at, proxies, programs: vec![], beside, usage, pods: None, processes: None, self_use }
}

/// The sum that the invariant promises to be `seen`.
fn classes(matching: &Matching) -> u64 {
    matching.exact + matching.ambiguous + matching.unmatched + matching.lost_total() + matching.in_flight
}

#[test]
fn counters_are_differences_and_states_are_those_at_the_end() {
    let open = Matching {
        seen: 10,
        exact: 6,
        ambiguous: 1,
        unmatched: 0,
        local: 5,
        lost: BTreeMap::from([("set_full", 1), ("stale", 1)]),
        in_flight: 1,
    };
    let close = Matching {
        seen: 30,
        exact: 20,
        ambiguous: 2,
        unmatched: 1,
        local: 5,
        lost: BTreeMap::from([("set_full", 4), ("stale", 1)]),
        in_flight: 2,
    };
    let mut open = snapshot(1, vec![proxy(0, open, &[5, 1_000])]);
    let mut close = snapshot(4, vec![proxy(0, close, &[5, 1_000, 70, 80])]);
    open.programs.push(program(100, 10, 1, Verdict::Attached));
    close.programs.push(program(350, 40, 1, Verdict::Failed("gone".into())));

    let window = Window::between(&open, &close);

    assert_eq!((window.opened, window.closed, window.seconds()), (open.at, close.at, 3.0));
    let want = Matching {
        seen: 21,
        exact: 14,
        ambiguous: 1,
        unmatched: 1,
        local: 0,
        lost: BTreeMap::from([("set_full", 3)]),
        in_flight: 2,
    };
    assert_eq!(window.proxies[0].matching, want);
    assert_eq!(window.proxies[0].hops[HOP].count(), 2);
    assert_eq!(window.proxies[0].hops[HOP].sum_ns(), 150);
    assert_eq!(window.programs, [program(250, 30, 0, Verdict::Failed("gone".into()))]);
    assert_eq!(window.self_use, SelfUse { cpu_ns: 3_000, rss_bytes: 96, map_bytes: 7 });
}

#[test]
fn a_proxy_that_appears_counts_from_zero_and_is_told_by_its_slot() {
    let matching = |seen| Matching { seen, exact: seen, ..Matching::default() };
    let open = snapshot(1, vec![proxy(1, matching(5), &[1; 5])]);
    let close = snapshot(2, vec![proxy(0, matching(3), &[1; 3]), proxy(1, matching(6), &[1; 6])]);
    let window = Window::between(&open, &close);
    let counts: Vec<_> =
        window.proxies.iter().map(|p| (p.proxy.slot, p.matching.seen, p.hops[HOP].count())).collect();
    assert_eq!(counts, [(0, 3, 3), (1, 1, 1)]);
}

#[test]
fn no_share_of_nothing() {
    assert_eq!(Matching::default().unaccounted_share(), None);
    let lost = BTreeMap::from([("set_full", 2)]);
    let matching = Matching { seen: 100, exact: 97, unmatched: 1, lost, ..Matching::default() };
    assert_eq!(matching.unaccounted_share(), Some(0.03));
}

/// One step of a proxy's life: (messages that arrive, their fates). Fates take from what is pending.
fn life() -> impl Strategy<Value = Vec<(u64, [u64; 4])>> {
    prop::collection::vec((0u64..50, prop::array::uniform4(0u64..20)), 0..20)
}

/// The counters after `steps`, which keep the invariant by construction.
fn live(steps: &[(u64, [u64; 4])]) -> Matching {
    let mut now = Matching::default();
    for &(arrived, fates) in steps {
        now.seen += arrived;
        now.in_flight += arrived;
        for (fate, wanted) in fates.into_iter().enumerate() {
            let count = wanted.min(now.in_flight);
            now.in_flight -= count;
            match fate {
                0 => now.exact += count,
                1 => now.ambiguous += count,
                2 => now.unmatched += count,
                _ if count > 0 => *now.lost.entry("set_full").or_default() += count,
                _ => {}
            }
        }
    }
    now
}

proptest! {
    #[test]
    fn classes_sum_to_seen_in_every_window(steps in life(), cut in 0usize..20) {
        let cut = cut.min(steps.len());
        let window = Window::between(
            &snapshot(1, vec![proxy(0, live(&steps[..cut]), &[])]),
            &snapshot(2, vec![proxy(0, live(&steps), &[])]),
        );
        let matching = &window.proxies[0].matching;
        prop_assert_eq!(matching.seen, classes(matching));
    }
}
