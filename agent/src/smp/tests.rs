use std::collections::HashSet;

use serde_json::{Value, json};

use super::*;
use crate::cgroup::pods::GroupCost;
use crate::document::tests::{cluster, document, document_in, pod, window};
use crate::kubernetes::{Cluster, Pod, Workload};

fn rendered(test: &Test) -> Value {
    serde_json::to_value(SmpResult::new(&document(&window()), test)).unwrap()
}

#[test]
fn namespace_is_the_one_it_says() {
    assert_eq!(NAMESPACE, Uuid::new_v5(&Uuid::NAMESPACE_DNS, LABEL_PREFIX.trim_end_matches('/').as_bytes()));
}

#[test]
fn config_names_the_run_and_no_argument_of_the_load_generator() {
    let test = Test {
        name: Some("checkout".into()),
        labels: BTreeMap::from([("team".into(), "a".into())]),
        duration: Some(Duration::from_millis(1_500)),
        load_generator: Some("/usr/local/bin/wrk".into()),
    };
    assert_eq!(
        rendered(&test)["config"],
        json!({"smp_version": "v0.6.1", "id": "run-1", "name": "checkout", "labels": {"team": "a"},
            "clients": [{"load_generator": "wrk"}], "duration": "1.5s"})
    );
}

#[test]
fn unknown_is_absent() {
    let mut document = document(&window());
    (document.node.identity.cpus, document.node.identity.mem_bytes) = (None, None);
    let rendered = serde_json::to_value(SmpResult::new(&document, &Test::default())).unwrap();
    assert_eq!(rendered["config"], json!({"smp_version": "v0.6.1", "id": "run-1", "duration": "2s"}));
    assert_eq!(rendered["environment"]["nodes"], json!([{}]));
    assert_eq!(rendered.get("warnings"), None);
}

#[test]
fn node_in_decimal_megabytes() {
    assert_eq!(rendered(&Test::default())["environment"]["nodes"], json!([{"cores": 2, "mem_mb": "8000"}]));
}

#[test]
fn hop_result_is_labelled_and_in_milliseconds() {
    let results = rendered(&Test::default());
    let (request, queue) = (&results["results"][0], &results["results"][1]);
    assert_eq!(request["latencies_ms"]["min"], json!(0.001));
    assert_eq!(request["latencies_ms"]["average"], json!(0.5005));
    assert_eq!(request["latencies_ms"]["max"], json!(1.0));
    assert_eq!(request["actual_qps"], json!(500.0));
    assert_eq!(request["start_time"], json!("2026-11-23T10:00:00.250Z"));
    for (label, want) in [
        ("scope", "proxy-hop"),
        ("node", "node-a"),
        ("proxy", "envoy"),
        ("pid", "4242"),
        ("direction", "request"),
        ("segment", "hop"),
        ("count", "1000"),
        ("messages-seen", "1004"),
        ("messages-lost", "2"),
    ] {
        assert_eq!(request["labels"][format!("{LABEL_PREFIX}{label}")], json!(want));
    }
    assert_eq!(queue["labels"]["io.smp-agent/segment"], json!("queue"));
    assert_eq!((queue.get("actual_qps"), queue["labels"].get("io.smp-agent/hdr")), (None, None));
}

#[test]
fn ids_are_distinct_tied_and_repeatable() {
    let first = rendered(&Test::default());
    assert_eq!(first, rendered(&Test::default()));
    let ids: HashSet<_> = [&first["mesh"], &first["environment"], &first["results"][0], &first["results"][1]]
        .map(|message| message["id"].as_str().unwrap())
        .into();
    assert_eq!(ids.len(), 4);
    assert_eq!(first["results"][1]["test_id"], first["config"]["id"]);
    assert_eq!(first["results"][1]["mesh_config_id"], first["mesh"]["id"]);
    assert_eq!(first["results"][1]["env_id"], first["environment"]["id"]);
    let mut other = document(&window());
    other.node.identity.name = "node-b".into();
    assert_ne!(SmpResult::new(&other, &Test::default()).mesh.id, first["mesh"]["id"].as_str().unwrap());
}

#[test]
fn warnings_are_on_the_envelope_and_on_every_result() {
    let mut window = window();
    window.proxies[0].matching.unmatched = 100;
    let result = SmpResult::new(&document(&window), &Test::default());
    assert_eq!(result.warnings.len(), 1);
    assert!(result.results.iter().all(|r| r.labels["io.smp-agent/warnings"] == result.warnings[0]));
}

#[test]
fn mutual_tls_is_enabled_where_every_connection_to_another_host_has_it() {
    let mesh = |[plain, tls, mutual_tls]: [u64; 3]| {
        let mut window = window();
        window.proxies[0].cost.opened = Opened { plain, mutual_tls, ..Opened::default() };
        window.proxies[1].cost.opened = Opened { tls, ..Opened::default() };
        SmpResult::new(&document(&window), &Test::default()).mesh
    };
    let enabled = |opened| mesh(opened).mtls_enabled;
    assert_eq!([[0, 0, 0], [1, 0, 9], [0, 1, 9], [0, 1, 0]].map(enabled), [None; 4]);
    assert_eq!([[0, 0, 9], [1, 0, 0], [1, 1, 0]].map(enabled), [Some(true), Some(false), Some(false)]);
    let labels = mesh([1, 2, 4]).labels;
    let label = |name: &str| labels[&format!("{LABEL_PREFIX}opened-connections{name}")].clone();
    assert_eq!(["", "-tls", "-mutual-tls"].map(label), ["7", "6", "4"]);
}

#[test]
fn a_build_is_named_where_all_proxies_are_of_it() {
    let build = |ids: [&str; 2]| {
        let mut window = window();
        for (proxy, id) in window.proxies.iter_mut().zip(ids) {
            proxy.proxy.identity.build_id = Some(id.into());
        }
        SmpResult::new(&document(&window), &Test::default()).mesh.proxy_build
    };
    assert_eq!([build(["a", "a"]), build(["a", "b"])], [Some("a".into()), None]);
}

#[test]
fn gateways_are_apart_and_egress_is_in_no_field() {
    let mesh = |roles: [Option<Role>; 2]| {
        let mut window = window();
        for (proxy, role) in window.proxies.iter_mut().zip(roles) {
            proxy.proxy.identity.role = role;
        }
        SmpResult::new(&document(&window), &Test::default()).mesh
    };
    let counts = |roles| {
        let mesh = mesh(roles);
        [mesh.ingress_gateway, mesh.sidecar]
            .map(|proxies| proxies.map(|proxies| (proxies.together.count, proxies.rps)))
    };
    assert_eq!(counts([None, Some(Role::Sidecar)]), [None, Some((2, 500))]);
    assert_eq!(counts([Some(Role::Gateway), None]), [Some((1, 500)), Some((1, 0))]);
    assert_eq!(counts([Some(Role::EgressGateway), Some(Role::Gateway)]), [Some((1, 0)), None]);
    let labels = mesh([Some(Role::Gateway), None]).labels;
    for (name, part) in [("ingress-gateway", "gateways but egress"), ("sidecar", "proxies but gateways")] {
        assert!(labels[&format!("{LABEL_PREFIX}{name}-scope")].contains(part), "{labels:?}");
    }
}

#[test]
fn the_cluster_is_in_the_environment() {
    let result = SmpResult::new(&document_in(&window(), cluster()), &Test::default());
    let environment = serde_json::to_value(result.environment).unwrap();
    assert_eq!(environment["kubernetes_version"], json!("v1.20.2"));
    assert_eq!(environment["nodes"], json!([{"type": "bed.small", "cores": 2, "mem_mb": "8000"}]));
    assert_eq!(environment["individual_workloads"], json!([{"name": "shop/cart", "count": 3}]));
    assert_eq!(environment["labels"]["io.smp-agent/kubernetes-node"], json!("node-a"));
}

/// Pods of one owner that take so much of a CPU each.
fn workload(name: &str, pods: u32, cores: f64, control_plane_of: Option<Mesh>) -> Workload {
    let mut workload = cluster().workloads.remove(0);
    workload.owner.name = name.into();
    workload.pods = pods;
    workload.cost = GroupCost {
        cpu_ns: Some(1),
        cpu_cores: Some(cores * f64::from(pods)),
        working_set_bytes: Some(600_000 * u64::from(pods)),
    };
    workload.control_plane_of = control_plane_of;
    workload
}

#[test]
fn workloads_are_rounded_as_a_whole_and_unset_where_not_all_is_known() {
    let mut workloads = vec![workload("cart", 3, 0.0004, None), workload("huge", 1, 1e9, None)];
    let environment = |workloads| {
        let document = document_in(&window(), Cluster { workloads, ..cluster() });
        serde_json::to_value(SmpResult::new(&document, &Test::default()).environment).unwrap()
    };
    let all = environment(workloads.clone());
    assert_eq!(
        all["individual_workloads"],
        json!([{"name": "shop/cart", "count": 3, "cpu_mcores": 1, "mem_mb": 2},
            {"name": "shop/huge", "count": 1, "cpu_mcores": i32::MAX, "mem_mb": 1}])
    );
    assert!(
        all["labels"]["io.smp-agent/individual-workloads-scope"].as_str().unwrap().contains("working set")
    );
    workloads[0].unmeasured_pods = 1;
    let part = environment(workloads);
    assert_eq!(part["individual_workloads"][0], json!({"name": "shop/cart", "count": 3}));
}

#[test]
fn the_control_plane_is_that_of_the_proxies_mesh() {
    let mesh = |proxies: Option<Mesh>, of: &[Mesh]| {
        let mut window = window();
        window.proxies[0].proxy.identity.mesh = proxies;
        let mut workloads = vec![workload("cart", 1, 0.5, None)];
        // Two workloads each: 1 + 2 pods of 0.4 thousandths.
        workloads
            .extend(of.iter().flat_map(|&of| [1, 2].map(|pods| workload("of-it", pods, 0.0004, Some(of)))));
        let document = document_in(&window, Cluster { workloads, ..cluster() });
        SmpResult::new(&document, &Test::default()).mesh
    };
    let found = |proxies, of: &[Mesh]| {
        let mesh = mesh(proxies, of);
        let scope = mesh.labels.get(&format!("{LABEL_PREFIX}control-plane-scope")).cloned();
        assert_eq!(scope.is_some(), mesh.mesh_control_plane.is_some());
        serde_json::to_value(mesh.mesh_control_plane).unwrap()
    };
    let three = json!({"count": 3, "cpu_mcores": 1, "mem_mb": 2});
    let (istio, cilium, kuma) = (Mesh::Istio, Mesh::CiliumServiceMesh, Mesh::Kuma);
    assert_eq!(found(Some(istio), &[istio]), three);
    assert_eq!(found(Some(istio), &[cilium, istio]), three, "of another mesh");
    assert_eq!(found(Some(cilium), &[cilium]), three);
    assert_eq!(found(None, &[istio, cilium]), three, "no proxy shows a mesh");
    for (proxies, of) in
        [(None, vec![]), (None, vec![cilium]), (None, vec![istio, kuma]), (Some(istio), vec![kuma])]
    {
        assert_eq!(found(proxies, &of), Value::Null, "{proxies:?} {of:?}");
    }
}

#[test]
fn a_pod_is_in_the_labels_of_its_results_and_names_the_application() {
    let application = |pods: [Pod; 2]| {
        let mut window = window();
        for (proxy, pod) in window.proxies.iter_mut().zip(pods) {
            proxy.proxy.pod = Some(pod);
        }
        let result = SmpResult::new(&document(&window), &Test::default());
        let labels = &result.results[0].labels;
        for (name, want) in [
            ("pod", "cart-5d9f-abcde"),
            ("namespace", "shop"),
            ("container", "istio-proxy"),
            ("owner", "Deployment/cart"),
        ] {
            assert_eq!(labels[&format!("{LABEL_PREFIX}{name}")], want);
        }
        serde_json::to_value(result.mesh.application_metadata).unwrap()
    };
    let mut other = pod();
    assert_eq!(
        application([pod(), pod()]),
        json!({"application_name": "cart", "application_version": "2.3.1"})
    );
    other.application.insert("version".into(), "2.4.0".into());
    assert_eq!(application([pod(), other.clone()]), json!({"application_name": "cart"}));
    other.application.insert("name".into(), "checkout".into());
    assert_eq!(application([pod(), other.clone()]), Value::Null);
    other.application.clear();
    assert_eq!(application([pod(), other]), application([pod(), pod()]), "one that says nothing");
}
