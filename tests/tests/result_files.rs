//! The result files are what they say, judged by Python's `protobuf`, `hdrhistogram` and `PyYAML`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bed::python;
use serde_json::{Value, json};
use smp_agent::cgroup::pods::GroupCost;
use smp_agent::document::Document;
use smp_agent::identity::Mesh;
use smp_agent::kubernetes::{Cluster, Owner, Workload};
use smp_agent::node::Node;
use smp_agent::result_files::{OVERHEAD_JSON, RESULT_JSON, RESULT_YAML, write_all};
use smp_agent::smp::{SmpResult, Test};
use smp_agent::window::Window;
use tempfile::TempDir;

mod synthetic;

/// The document of the window from 1 s to 3 s, on a node made up as well.
fn document() -> Document {
    let node = Node {
        name: "node-a".into(),
        kernel: "6.18.44".into(),
        arch: "x86_64".into(),
        os: Some("Linux (Debian 12)".into()),
        cpus: Some(2),
        mem_bytes: Some(8_342_589_440),
    };
    let cluster = Cluster {
        node: "node-a.example".into(),
        version: Some("v1.20.2".into()),
        instance_type: Some("bed.small".into()),
        workloads: vec![Workload {
            namespace: "shop".into(),
            owner: Owner { kind: "Deployment".into(), name: "cart".into() },
            pods: 2,
            unmeasured_pods: 0,
            cost: GroupCost {
                cpu_ns: Some(1_234_567_890),
                cpu_cores: Some(0.617_283_945),
                working_set_bytes: Some(123_456_789),
            },
            control_plane_of: Some(Mesh::Istio),
        }],
        trouble: None,
    };
    let window = Window::between(&synthetic::snapshot(1), &synthetic::snapshot(3));
    Document::new(&window, node, Some(cluster), "0d3f9a52-4f4e-4f7c-9a55-58a7c0f1f2aa", "0.1.0")
}

/// A directory with the files of the synthetic measurement and the descriptors of `agent/proto`.
fn written() -> Result<TempDir> {
    let dir = tempfile::tempdir()?;
    let test = Test {
        // Each of these is something else to a YAML 1.1 reader when it is not quoted.
        name: Some("1:30".into()),
        labels: [("on", "yes"), ("date", "2026-11-23"), ("text", "a: 'b' \"c\"\n# d")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        duration: Some(Duration::from_secs(2)),
        load_generator: Some("/usr/bin/wrk".into()),
    };
    let document = document();
    write_all(dir.path(), &document, &SmpResult::new(&document, &test))?;
    fs::write(dir.path().join("smp.pb"), descriptors()?)?;
    Ok(dir)
}

fn descriptors() -> Result<Vec<u8>> {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/proto");
    let mut compiler = protox::Compiler::new([&proto])?;
    compiler.include_imports(true).open_file("service_mesh_performance.proto")?;
    Ok(compiler.encode_file_descriptor_set())
}

fn strict(dir: &Path) -> Result<String> {
    python::judge("strict_smp.py", ["smp.pb", RESULT_JSON, RESULT_YAML].map(|name| dir.join(name)))
}

/// Why these two envelopes are refused; `None` when they are not.
fn refusal(dir: &Path, as_json: &Value, as_yaml: &Value) -> Option<String> {
    fs::write(dir.join(RESULT_JSON), as_json.to_string()).ok()?;
    let options = serde_saphyr::ser_options! { quote_all: true };
    fs::write(dir.join(RESULT_YAML), serde_saphyr::to_string_with_options(as_yaml, options).ok()?).ok()?;
    strict(dir).err().map(|error| error.to_string())
}

#[test]
fn every_message_parses_strictly_and_yaml_says_the_same() -> Result<()> {
    let dir = written()?;
    // Config, mesh, environment; eight series of one proxy and four of another.
    ensure!(strict(dir.path())?.trim() == "17");
    let result: Value = serde_json::from_slice(&fs::read(dir.path().join(RESULT_JSON))?)?;
    for of_the_cluster in [
        "/mesh/ingress_gateway/count",
        "/mesh/sidecar/count",
        "/mesh/application_metadata/application_version",
        "/environment/kubernetes_version",
        "/environment/nodes/0/type",
        "/environment/individual_workloads/0/count",
        "/environment/individual_workloads/0/cpu_mcores",
        "/environment/individual_workloads/0/mem_mb",
        "/mesh/mesh_control_plane/count",
        "/mesh/mesh_control_plane/cpu_mcores",
        "/mesh/mesh_control_plane/mem_mb",
    ] {
        ensure!(result.pointer(of_the_cluster).is_some(), "nothing at {of_the_cluster}");
    }
    Ok(())
}

#[test]
fn what_is_not_strict_is_refused() -> Result<()> {
    let dir = written()?;
    let path = dir.path().join(RESULT_JSON);
    let good: Value = serde_json::from_slice(&fs::read(&path)?)?;
    for (pointer, key, bad) in [
        ("/results/0", "exp_uuid", json!("x")),
        ("/results/0", "cpu", json!({"cpu_mcores": 1})),
        ("/results/0", "latenciesMs", json!({"min": 1.0})),
        ("/results/0", "start_time", json!("2026-11-23T11:00:00+01:00")),
        ("/results/0", "start_time", json!({"seconds": 1, "nanos": 0})),
        ("/results/0", "actual_qps", json!("1.5")),
        ("/results/0/labels", "io.smp-agent/count", json!(1)),
        ("/results/0/latencies_ms", "p999", json!(1.0)),
        ("/config/clients/0", "protocol", json!("http")),
        ("/config/clients/0", "protocol", json!("4")),
        ("/config/clients/0", "protocol", json!(4)),
        ("/config/clients/0", "rps", json!(10)),
        ("/environment/nodes/0", "mem_mb", json!(8000)),
        ("/environment/nodes/0", "mem_mb", json!(8000.5)),
        ("/environment/nodes/0", "cores", json!("2")),
        ("/mesh", "mesh_type", json!("istio")),
        ("", "mesh_config", json!({})),
    ] {
        let mut mutated = good.clone();
        let object = mutated.pointer_mut(pointer).and_then(Value::as_object_mut);
        object.with_context(|| format!("nothing at {pointer}"))?.insert(key.to_owned(), bad.clone());
        let error = refusal(dir.path(), &mutated, &mutated)
            .with_context(|| format!("{pointer}/{key} = {bad} was taken for good"))?;
        let reasons = ["does not parse", "is not canonical", "keys of the envelope"];
        ensure!(reasons.iter().any(|reason| error.contains(reason)), "{pointer}/{key} = {bad}: {error}");
    }
    let mut other = good.clone();
    other["config"]["id"] = json!("other");
    ensure!(refusal(dir.path(), &good, &good).is_none());
    let error = refusal(dir.path(), &good, &other).context("two envelopes that differ")?;
    ensure!(error.contains("YAML and JSON differ"), "{error}");
    Ok(())
}

#[test]
fn payloads_decode_to_the_numbers_beside_them() -> Result<()> {
    let dir = written()?;
    let path = dir.path().join(OVERHEAD_JSON);
    ensure!(python::judge("decode_hdr.py", [&path])?.trim() == "14");

    let good: Value = serde_json::from_slice(&fs::read(&path)?)?;
    for key in ["count", "p50", "p90", "p99", "p999"] {
        let mut mutated = good.clone();
        let number = mutated["hops"][3][key].as_u64().with_context(|| format!("{key} is no integer"))?;
        mutated["hops"][3][key] = json!(number + 1);
        fs::write(&path, serde_json::to_vec(&mutated)?)?;
        let verdict = python::judge("decode_hdr.py", [&path]).err();
        let error = verdict.with_context(|| format!("{key} off by one was taken for good"))?;
        ensure!(error.to_string().contains("refuses"), "{error}");
    }
    Ok(())
}

#[test]
fn classes_of_the_document_sum_to_seen() -> Result<()> {
    let document = serde_json::to_value(document())?;
    let proxies = document["proxies"].as_array().context("no proxies")?;
    for matching in proxies.iter().map(|proxy| &proxy["matching"]).chain([&document["matching"]]) {
        let of = |key: &str| matching[key].as_u64().with_context(|| format!("{key} in {matching}"));
        let lost: u64 =
            matching["lost"].as_object().context("lost")?.values().filter_map(Value::as_u64).sum();
        let classes = of("exact")? + of("ambiguous")? + of("unmatched")? + lost + of("in_flight")?;
        ensure!(of("seen")? == classes, "{matching}");
    }
    Ok(())
}
