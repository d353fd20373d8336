use std::collections::BTreeMap;

use serde_json::{Value, json};
use smp_agent_abi::layout::{Cost, HOP_SERIES};

use super::*;
use crate::cgroup::Container;
use crate::cgroup::pods::{GroupCost, PodUse, PodsUse};
use crate::co_tenants::{CoTenant, CoTenants};
use crate::cost::{CpuBeside, CpuCost};
use crate::histogram::Histogram;
use crate::hop::series_index;
use crate::identity::Identity;
use crate::kubernetes::{Owner, Source, Workload};
use crate::memory::Memory;
use crate::usage::Usage;
use crate::window::{Bytes, Opened, ProxyCost};

/// 200 ms of CPU time, three quarters of it in user mode, and 50 ms of softirqs for it.
fn cost() -> ProxyCost {
    let mut run_queue_wait = Histogram::new();
    run_queue_wait.record(8_000);
    ProxyCost {
        cpu: CpuCost {
            counted: Cost {
                on_cpu_ns: 200_000_000,
                user_ticks_ns: 150_000_000,
                system_ticks_ns: 50_000_000,
                voluntary: 30,
                involuntary: 2,
                softirq_borne_ns: 0,
                softirq_caused_ns: 50_000_000,
            },
            run_queue_wait,
            irq_time_apart: false,
        },
        bytes: Bytes {
            downstream_in: 57_000,
            downstream_out: 131_000,
            upstream_in: 131_000,
            upstream_out: 98_000,
        },
        opened: Opened::default(),
        memory: Memory { rss_bytes: 40 << 20, rss_peak_bytes: 44 << 20, ..Memory::default() },
        throttling: None,
    }
}

/// One Envoy with 1,000 request crossings of 1 to 1,000 us and an idle nginx, in a window of 2 s.
pub(crate) fn window() -> Window {
    let mut hops: [Histogram; HOP_SERIES] = Default::default();
    for us in 1..=1_000 {
        hops[series_index(Direction::Request, Segment::Hop)].record(us * 1_000);
        hops[series_index(Direction::Request, Segment::Queue)].record(us * 100);
    }
    let matching = Matching {
        seen: 1_004,
        exact: 990,
        ambiguous: 10,
        unmatched: 1,
        local: 7,
        lost: BTreeMap::from([("set_full", 2)]),
        in_flight: 1,
    };
    let proxy = |slot, pid, name: &str| Proxy {
        slot,
        pid,
        name: name.into(),
        exe: format!("/usr/bin/{name}").into(),
        container: Container::default(),
        pod: None,
        identity: Identity::default(),
    };
    let program = |program, verdict, run_count| ProgramRun {
        program,
        hook: crate::probe::programs::Hook::Tracepoint("sock_recv_length"),
        verdict,
        run_ns: 100 * run_count,
        run_count,
        missed: 0,
    };
    Window {
        opened: "2026-11-23T10:00:00.25Z".parse().unwrap(),
        closed: "2026-11-23T10:00:02.25Z".parse().unwrap(),
        proxies: vec![
            ProxyWindow {
                proxy: proxy(0, 4242, "envoy"),
                matching,
                unix: UnixConnections::default(),
                hops,
                cost: cost(),
            },
            ProxyWindow {
                proxy: proxy(1, 77, "nginx"),
                matching: Matching::default(),
                unix: UnixConnections::default(),
                hops: Default::default(),
                cost: ProxyCost::default(),
            },
        ],
        programs: vec![
            program("read", Verdict::Attached, 18_000),
            program("write_end", Verdict::NotNeeded, 0),
            program("arrival", Verdict::Unsupported("no tracepoint sk_data_ready".into()), 0),
            program("switch", Verdict::Attached, 0),
            program("softirq_end", Verdict::Attached, 0),
        ],
        beside: CpuBeside {
            others: Cost { on_cpu_ns: 400_000_000, softirq_borne_ns: 20_000_000, ..Cost::default() },
            idle: Cost { on_cpu_ns: 3_300_000_000, softirq_borne_ns: 60_000_000, ..Cost::default() },
        },
        usage: Usage::default(),
        pods: None,
        co_tenants: None,
        self_use: SelfUse { cpu_ns: 4_000_000, rss_bytes: 9 << 20, map_bytes: 5 << 20 },
    }
}

pub(crate) fn node() -> Node {
    Node {
        name: "node-a".into(),
        kernel: "6.18.44".into(),
        arch: "x86_64".into(),
        os: None,
        cpus: Some(2),
        mem_bytes: Some(8_000_000_000),
    }
}

pub(crate) fn document(window: &Window) -> Document {
    Document::new(window, node(), None, "run-1", "0.1.0")
}

/// As [`document`], with what an API server says.
pub(crate) fn document_in(window: &Window, cluster: Cluster) -> Document {
    Document::new(window, node(), Some(cluster), "run-1", "0.1.0")
}

pub(crate) fn cluster() -> Cluster {
    Cluster {
        node: "node-a".into(),
        version: Some("v1.20.2".into()),
        instance_type: Some("bed.small".into()),
        workloads: vec![Workload {
            namespace: "shop".into(),
            owner: Owner { kind: "Deployment".into(), name: "cart".into() },
            pods: 3,
            unmeasured_pods: 0,
            cost: GroupCost::default(),
            control_plane_of: None,
        }],
        trouble: None,
    }
}

const CART_UID: &str = "6f9f0e57-3b5a-4a3e-9d0b-0d8f1c2b3a4d";

pub(crate) fn pod() -> Pod {
    Pod {
        name: "cart-5d9f-abcde".into(),
        namespace: "shop".into(),
        uid: Some(CART_UID.into()),
        node: Some("node-a".into()),
        owner: Some(Owner { kind: "Deployment".into(), name: "cart".into() }),
        container: Some("istio-proxy".into()),
        image: Some("docker.io/istio/proxyv2:1.24.0".into()),
        application: BTreeMap::from([("name".into(), "cart".into()), ("version".into(), "2.3.1".into())]),
        source: Source::Api,
        labels: BTreeMap::new(),
    }
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn shape_of_the_document() {
    let json = serde_json::to_value(document(&window())).unwrap();
    assert_eq!(
        keys(&json),
        [
            "agent_version",
            "hooks",
            "hops",
            "matching",
            "node",
            "proxies",
            "run_id",
            "schema_version",
            "self",
            "window"
        ]
    );
    assert_eq!(
        json["window"],
        json!({"start": "2026-11-23T10:00:00.25Z", "end": "2026-11-23T10:00:02.25Z", "seconds": 2.0})
    );
    assert_eq!(
        json["hooks"][2],
        json!({"program": "arrival", "hook": "sock_recv_length", "verdict": "unsupported",
            "reason": "no tracepoint sk_data_ready"})
    );
    assert_eq!(
        json["matching"],
        json!({"seen": 1004, "exact": 990, "ambiguous": 10, "unmatched": 1, "local": 7,
            "lost": {"set_full": 2}, "in_flight": 1})
    );
    assert_eq!(json["proxies"][0]["matching"], json["matching"]);
    assert_eq!(
        json["self"],
        json!({"bpf_ns": 1_800_000, "bpf_runs": 18_000, "bpf_missed": 0, "cpu_ns": 4_000_000, "rss_bytes": 9_437_184, "map_bytes": 5_242_880})
    );
}

#[test]
fn shape_of_a_hop() {
    let mut json = serde_json::to_value(document(&window())).unwrap();
    assert_eq!(json["hops"].as_array().unwrap().len(), 2, "no samples, no entry");
    let hop = json["hops"][0].as_object_mut().unwrap();
    assert!(hop.remove("hdr").unwrap().as_str().unwrap().starts_with("HISTFAAA"));
    let percentiles = ["p50", "p90", "p99", "p999"].map(|name| hop.remove(name).unwrap().as_u64().unwrap());
    for (got, want) in percentiles.into_iter().zip([500_000, 900_000, 990_000, 999_000]) {
        assert!(got >= want && got <= want + want / 128, "{got} for {want}");
    }
    assert_eq!(
        Value::Object(hop.clone()),
        json!({"proxy": "envoy", "pid": 4242, "direction": "request", "segment": "hop", "unit": "ns",
            "count": 1000, "min": 1000, "max": 1_000_000, "mean": 500_500.0})
    );
}

#[test]
fn runs_that_the_kernel_does_not_count_are_unknown() {
    let mut window = window();
    window.programs.iter_mut().for_each(|run| (run.run_ns, run.run_count) = (0, 0));
    let json = serde_json::to_value(document(&window)).unwrap();
    assert_eq!(keys(&json["self"]), ["bpf_missed", "cpu_ns", "map_bytes", "rss_bytes"]);
}

#[test]
fn a_pod_and_its_cluster() {
    let mut window = window();
    window.proxies[0].proxy.pod = Some(pod());
    let json = serde_json::to_value(document_in(&window, cluster())).unwrap();
    assert_eq!(
        json["proxies"][0]["pod"],
        json!({"name": "cart-5d9f-abcde", "namespace": "shop", "uid": "6f9f0e57-3b5a-4a3e-9d0b-0d8f1c2b3a4d",
            "node": "node-a", "owner": {"kind": "Deployment", "name": "cart"}, "container": "istio-proxy",
            "image": "docker.io/istio/proxyv2:1.24.0", "application": {"name": "cart", "version": "2.3.1"},
            "source": "api"})
    );
    assert_eq!(json["proxies"][1].get("pod"), None);
    assert_eq!(
        json["kubernetes"],
        json!({"node": "node-a", "version": "v1.20.2", "instance_type": "bed.small",
            "workloads": [{"namespace": "shop", "kind": "Deployment", "name": "cart", "pods": 3}]})
    );
}

/// A tenth of a CPU in the pod that `cart` is in, 2 s long, and a second one.
pub(crate) fn pods_used() -> PodsUse {
    let used = |cpu_ns| PodUse { cpu_ns, working_set_bytes: Some(64_500_000) };
    PodsUse {
        pods: [(CART_UID, used(Some(200_000_000))), ("9f86d081884c7d659a2feaa0c55ad015", used(None))]
            .map(|(uid, used)| (uid.to_owned(), used))
            .into(),
        ended: 1,
        not_listed: 0,
        other_cpu_ns: Some(1_000_000),
    }
}

#[test]
fn pods_by_uid_and_what_is_in_none() {
    let mut window = window();
    window.pods = Some(PodsUse::default());
    let json = serde_json::to_value(document(&window)).unwrap();
    assert_eq!((json.get("pods"), json.get("other_pods")), (None, None), "without pods nothing is said");
    window.pods = Some(pods_used());
    let json = serde_json::to_value(document(&window)).unwrap();
    assert_eq!(
        json["pods"],
        json!([
            {"pod_uid": CART_UID, "cpu_ns": 200_000_000, "cpu_cores": 0.1, "working_set_bytes": 64_500_000},
            {"pod_uid": "9f86d081884c7d659a2feaa0c55ad015", "working_set_bytes": 64_500_000},
        ])
    );
    assert_eq!(
        json["other_pods"],
        json!({"ended": 1, "not_listed": 0, "cpu_ns": 1_000_000, "cpu_cores": 0.0005})
    );
}

#[test]
fn co_tenants_by_name_and_what_is_not_listed() {
    let mut window = window();
    let json = serde_json::to_value(document(&window)).unwrap();
    assert_eq!((json["node"].get("co_tenants"), json["node"].get("other_co_tenants")), (None, None));
    let listed = vec![CoTenant { name: "java".into(), processes: 2, cpu_ns: 500_000_000 }];
    window.co_tenants = Some(CoTenants { listed, other_names: 7, other_cpu_ns: 20_000_000, not_read: 0 });
    let json = serde_json::to_value(document(&window)).unwrap();
    assert_eq!(
        json["node"]["co_tenants"],
        json!([{"name": "java", "processes": 2, "cpu_ns": 500_000_000, "cpu_cores": 0.25}])
    );
    assert_eq!(
        json["node"]["other_co_tenants"],
        json!({"names": 7, "not_read": 0, "cpu_ns": 20_000_000, "cpu_cores": 0.01})
    );
}

#[test]
fn why_a_pod_has_no_name_is_said_where_one_has_none() {
    let trouble = Cluster { trouble: Some("pods are not named: for a reason".into()), ..cluster() };
    let mut window = window();
    let warnings = |window: &Window| document_in(window, trouble.clone()).warnings;
    assert_eq!(warnings(&window), [""; 0], "no proxy is in a pod");
    window.proxies[0].proxy.container.pod_uid = Some("6f9f0e57-3b5a-4a3e-9d0b-0d8f1c2b3a4d".into());
    assert_eq!(warnings(&window), ["pods are not named: for a reason"]);
    window.proxies[0].proxy.pod = Some(Pod { source: Source::Environment, ..pod() });
    assert_eq!(warnings(&window), ["pods are not named: for a reason"]);
    window.proxies[0].proxy.pod = Some(pod());
    assert_eq!(warnings(&window), [""; 0]);
    window.proxies[0].proxy.pod = None;
    assert_eq!(document_in(&window, cluster()).warnings, [""; 0], "no trouble, or not yet");
}

#[test]
fn one_percent_without_a_latency_is_the_limit() {
    let mut window = window();
    let matching = &mut window.proxies[0].matching;
    (matching.seen, matching.unmatched) = (1_000, 8);
    assert_eq!(document(&window).warnings, [""; 0]);
    window.proxies[0].matching.unmatched = 9;
    assert_eq!(
        document(&window).warnings,
        ["envoy (pid 4242): 1.1 % of 1000 messages have no latency: 9 unmatched, 2 lost (set_full); \
          the latencies are those of the rest"]
    );
}

#[test]
fn warnings_for_nothing_seen() {
    let mut window = window();
    window.proxies.remove(0);
    let warnings = document(&window).warnings;
    assert!(warnings.len() == 1 && warnings[0].starts_with("no message crossed"), "{warnings:?}");
    window.proxies.clear();
    let warnings = document(&window).warnings;
    assert!(warnings.len() == 1 && warnings[0].starts_with("no proxy was found"), "{warnings:?}");
}

#[test]
fn warnings_for_programs_and_clamped_values() {
    let mut window = window();
    window.programs[0].missed = 18;
    window.programs[2].verdict = Verdict::Failed("permission denied".into());
    window.proxies[0].hops[0].record(61_000_000_000);
    window.proxies[1].unix = UnixConnections { downstream: 1, upstream: 16 };
    let warnings = document(&window).warnings;
    assert_eq!(warnings.len(), 4);
    assert_eq!(warnings[0], "program arrival on tp_btf/sock_recv_length is not attached: permission denied");
    assert!(
        warnings[1].starts_with("nginx (pid 77) has connections over Unix-domain sockets"),
        "{warnings:?}"
    );
    assert!(warnings[1].contains("1 from clients, 16 to servers"), "{warnings:?}");
    assert!(warnings[2].contains("skipped 18 times (0.100 % of its events)"), "{warnings:?}");
    assert!(warnings[3].contains("1 samples above 60 s"), "{warnings:?}");
}
