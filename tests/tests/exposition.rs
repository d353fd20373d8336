//! What Prometheus scrapes, judged by Python's `prometheus_client` with its `OpenMetrics` parser.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use bed::python;
use serde::Deserialize;
use smp_agent::exposition;
use smp_agent::hop::SERIES;
use tokio::sync::watch;

mod synthetic;

#[derive(Deserialize)]
struct Family {
    r#type: String,
    unit: String,
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

fn parse(text: &str) -> Result<BTreeMap<String, Family>> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), text)?;
    Ok(serde_json::from_str(&python::judge("parse_openmetrics.py", [file.path()])?)?)
}

fn rendered() -> Result<String> {
    let (_sender, latest) = watch::channel(Some(Arc::new(synthetic::snapshot(3))));
    Ok(exposition::render(&latest)?)
}

impl Family {
    /// The only sample of this name with all of these labels.
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        let mut matching = self.samples.iter().filter(|(sample, have, _)| {
            sample == name
                && labels.iter().all(|&(key, value)| have.get(key).is_some_and(|have| have == value))
        });
        let (_, _, value) = matching.next().with_context(|| format!("no {name} {labels:?}"))?;
        ensure!(matching.next().is_none(), "several {name} {labels:?}");
        Ok(*value)
    }
}

fn same(got: f64, want: f64) {
    assert!((got - want).abs() <= 1e-12 * want.abs(), "{got} for {want}");
}

#[test]
fn openmetrics_with_the_values_of_the_snapshot() -> Result<()> {
    let families = parse(&rendered()?)?;
    let shapes: Vec<_> =
        families.iter().map(|(name, f)| (name.as_str(), f.r#type.as_str(), f.unit.as_str())).collect();
    assert_eq!(
        shapes,
        [
            ("smp_agent_build", "info", ""),
            ("smp_agent_cpu_seconds", "counter", "seconds"),
            ("smp_agent_map_memory_bytes", "gauge", "bytes"),
            ("smp_agent_resident_memory_bytes", "gauge", "bytes"),
            ("smp_agent_snapshot_timestamp_seconds", "gauge", "seconds"),
            ("smp_bpf_program_missed", "counter", ""),
            ("smp_bpf_program_run_seconds", "counter", "seconds"),
            ("smp_bpf_program_runs", "counter", ""),
            ("smp_bpf_program_verdict", "gauge", ""),
            ("smp_hop_latency_seconds", "histogram", "seconds"),
            ("smp_messages", "counter", ""),
            ("smp_messages_in_flight", "gauge", ""),
            ("smp_messages_local", "counter", ""),
            ("smp_messages_lost", "counter", ""),
            ("smp_messages_seen", "counter", ""),
            ("smp_node_cpu_seconds", "counter", "seconds"),
            ("smp_proxy", "info", ""),
            ("smp_proxy_context_switches", "counter", ""),
            ("smp_proxy_cpu_seconds", "counter", "seconds"),
            ("smp_proxy_network_bytes", "counter", "bytes"),
            ("smp_proxy_opened_connections", "counter", ""),
            ("smp_proxy_resident_memory_bytes", "gauge", "bytes"),
            ("smp_proxy_run_queue_wait_seconds", "histogram", "seconds"),
            ("smp_unix_connections", "gauge", ""),
        ]
    );
    for proxy in synthetic::snapshot(3).proxies {
        let name = [("proxy", proxy.proxy.name.as_str())];
        let seen = families["smp_messages_seen"].value("smp_messages_seen_total", &name)?;
        let in_flight = families["smp_messages_in_flight"].value("smp_messages_in_flight", &name)?;
        let of_proxy = |family: &str| -> f64 {
            let samples = families[family].samples.iter();
            samples
                .filter(|(_, labels, _)| labels["proxy"] == proxy.proxy.name)
                .map(|(_, _, value)| value)
                .sum()
        };
        same(seen, proxy.matching.seen as f64);
        same(seen, of_proxy("smp_messages") + in_flight);
        same(of_proxy("smp_messages_lost"), proxy.matching.lost_total() as f64);
        let upstream = [name[0], ("side", "upstream")];
        let found = families["smp_unix_connections"].value("smp_unix_connections", &upstream)?;
        same(found, proxy.unix.upstream as f64);
        let task = families["smp_proxy_cpu_seconds"]
            .value("smp_proxy_cpu_seconds_total", &[name[0], ("mode", "task")])?;
        same(task, proxy.cost.cpu.counted.on_cpu_ns as f64 / 1e9);
        let opened = families["smp_proxy_opened_connections"]
            .value("smp_proxy_opened_connections_total", &[name[0], ("kind", "mutual_tls")])?;
        same(opened, proxy.cost.opened.mutual_tls as f64);
        let waits = families["smp_proxy_run_queue_wait_seconds"]
            .value("smp_proxy_run_queue_wait_seconds_count", &name)?;
        same(waits, proxy.cost.cpu.run_queue_wait.count() as f64);
        let pod = proxy.proxy.pod.as_ref().map_or("", |pod| &pod.name);
        same(families["smp_proxy"].value("smp_proxy_info", &[name[0], ("pod", pod)])?, 1.0);
    }
    Ok(())
}

#[test]
fn every_series_has_its_histogram() -> Result<()> {
    let families = parse(&rendered()?)?;
    let latency = &families["smp_hop_latency_seconds"];
    for proxy in synthetic::snapshot(3).proxies {
        for ((direction, segment), series) in SERIES.into_iter().zip(&proxy.hops) {
            let labels = [
                ("proxy", proxy.proxy.name.as_str()),
                ("direction", direction.as_str()),
                ("segment", segment.as_str()),
            ];
            same(latency.value("smp_hop_latency_seconds_count", &labels)?, series.count() as f64);
            same(latency.value("smp_hop_latency_seconds_sum", &labels)?, series.sum_ns() as f64 / 1e9);
            let mut labels = labels.to_vec();
            labels.push(("le", "0.001"));
            let up_to = latency.value("smp_hop_latency_seconds_bucket", &labels)?;
            same(up_to, series.count_up_to(1_000_000) as f64);
        }
    }
    Ok(())
}

#[test]
fn text_that_is_not_openmetrics_is_refused() -> Result<()> {
    let good = rendered()?;
    for (from, to) in [
        ("# EOF\n", ""),
        ("# TYPE smp_messages counter", "# TYPE smp_messages gauge"),
        ("smp_messages_seen_total{", "smp_messages_seen{"),
        ("le=\"+Inf\"", "le=\"20.0\""),
        ("# HELP smp_messages_seen Messages", "# HELP smp_messages_seen_x Messages"),
    ] {
        let bad = good.replace(from, to);
        ensure!(bad != good, "nothing to replace: {from}");
        let error = parse(&bad).err().with_context(|| format!("{from} -> {to:?} was taken for good"))?;
        ensure!(error.to_string().contains("refuses"), "{error}");
    }
    Ok(())
}
