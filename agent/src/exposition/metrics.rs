//! Metrics written straight from a snapshot: the counters live in the kernel and in [`Histogram`], never twice.

use std::fmt::Error;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::Latest;
use crate::document::verdict_and_reason;
use crate::histogram::Histogram;
use crate::hop::SERIES;
use crate::identity::{Mesh, Role};
use crate::kubernetes::Pod;
use crate::window::{Opened, ProgramRun, Proxy, ProxyWindow, Snapshot, UnixConnections};

/// Upper bounds of the buckets, ns: 1-2-5 from 10 us to 10 s. A value within 0.79 % above one may count below it.
const BOUNDS_NS: [u64; 19] = [
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    200_000_000,
    500_000_000,
    1_000_000_000,
    2_000_000_000,
    5_000_000_000,
    10_000_000_000,
];
const NS_PER_SECOND: f64 = 1e9;

type Label<'a> = (&'static str, &'a str);

/// All metrics of the agent.
#[derive(Debug)]
pub(super) struct Metrics {
    latest: Latest,
}

impl Metrics {
    pub(super) const fn new(latest: Latest) -> Self {
        Self { latest }
    }
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut page = Page { encoder };
        page.build()?;
        // Taken out, so that a slow scrape does not hold up the drain.
        let latest: Option<Arc<Snapshot>> = self.latest.borrow().clone();
        let Some(snapshot) = latest else { return Ok(()) };
        let proxies: Vec<_> = snapshot.proxies.iter().map(Labelled::new).collect();
        page.proxies(&proxies)?;
        page.hops(&proxies)?;
        page.messages(&proxies)?;
        page.costs(&proxies, &snapshot)?;
        page.programs(&snapshot.programs)?;
        page.agent(&snapshot)
    }
}

/// A proxy and its labels as text.
struct Labelled<'a> {
    window: &'a ProxyWindow,
    pid: String,
}

impl<'a> Labelled<'a> {
    fn new(window: &'a ProxyWindow) -> Self {
        Self { window, pid: window.proxy.pid.to_string() }
    }

    fn labels(&self) -> [Label<'_>; 2] {
        [("proxy", &self.window.proxy.name), ("pid", &self.pid)]
    }

    fn with<'l, const N: usize>(&'l self, more: [Label<'l>; N]) -> Vec<Label<'l>> {
        self.labels().into_iter().chain(more).collect()
    }
}

/// The text being written, one method per group of metrics.
struct Page<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Page<'_> {
    fn family(
        &mut self,
        name: &'static str,
        unit: Option<&'static Unit>,
        kind: MetricType,
        help: &str,
    ) -> Result<MetricEncoder<'_>, Error> {
        self.encoder.encode_descriptor(name, help, unit, kind)
    }

    fn build(&mut self) -> Result<(), Error> {
        let mut family = self.family("smp_agent_build", None, MetricType::Info, "Version of the agent")?;
        family.encode_info(&[("version", env!("CARGO_PKG_VERSION"))])
    }

    /// One series for each proxy: what the others call by `proxy` and `pid`. What is unknown is empty.
    fn proxies(&mut self, proxies: &[Labelled<'_>]) -> Result<(), Error> {
        let help = "What a proxy is and which pod it is in";
        let mut family = self.family("smp_proxy", None, MetricType::Info, help)?;
        for proxy in proxies {
            let Proxy { container, pod, identity, .. } = &proxy.window.proxy;
            let owner = pod.as_ref().and_then(|pod| pod.owner.as_ref());
            let of_pod =
                |value: fn(&Pod) -> Option<&String>| pod.as_ref().and_then(value).map_or("", String::as_str);
            let info = [
                ("namespace", of_pod(|pod| Some(&pod.namespace))),
                ("pod", of_pod(|pod| Some(&pod.name))),
                ("container", of_pod(|pod| pod.container.as_ref())),
                ("owner_kind", owner.map_or("", |owner| &owner.kind)),
                ("owner", owner.map_or("", |owner| &owner.name)),
                ("container_id", container.id.as_deref().unwrap_or_default()),
                ("mesh", identity.mesh.map_or("", Mesh::as_str)),
                ("role", identity.role.map_or("", Role::as_str)),
            ];
            family.encode_info(&proxy.with(info))?;
        }
        Ok(())
    }

    fn hops(&mut self, proxies: &[Labelled<'_>]) -> Result<(), Error> {
        let help = "Time a message spent in a proxy or in one segment of it, or (connect) its upstream connection took to open";
        let mut family = self.family("smp_hop_latency", Some(&Unit::Seconds), MetricType::Histogram, help)?;
        for proxy in proxies {
            for ((direction, segment), series) in SERIES.into_iter().zip(&proxy.window.hops) {
                let labels = proxy.with([("direction", direction.as_str()), ("segment", segment.as_str())]);
                family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                    series.sum_ns() as f64 / NS_PER_SECOND,
                    series.count(),
                    &buckets(series),
                    None,
                )?;
            }
        }
        Ok(())
    }

    fn messages(&mut self, proxies: &[Labelled<'_>]) -> Result<(), Error> {
        let help = "Messages that arrived at a proxy for crossing, or left it without a cause";
        let mut family = self.family("smp_messages_seen", None, MetricType::Counter, help)?;
        for proxy in proxies {
            counter(&mut family, &proxy.labels()[..], &proxy.window.matching.seen)?;
        }
        let help = "Messages by class; the classes and smp_messages_in_flight sum to smp_messages_seen_total";
        let mut family = self.family("smp_messages", None, MetricType::Counter, help)?;
        for proxy in proxies {
            let matching = &proxy.window.matching;
            for (class, count) in [
                ("exact", matching.exact),
                ("ambiguous", matching.ambiguous),
                ("unmatched", matching.unmatched),
                ("lost", matching.lost_total()),
            ] {
                counter(&mut family, &proxy.with([("class", class)])[..], &count)?;
            }
        }
        let help = "Messages of class lost by reason; a reason appears when it first occurs";
        let mut family = self.family("smp_messages_lost", None, MetricType::Counter, help)?;
        for proxy in proxies {
            for (reason, &count) in &proxy.window.matching.lost {
                counter(&mut family, &proxy.with([("reason", reason)])[..], &count)?;
            }
        }
        let help = "Messages the proxy answered itself, which are not in smp_messages_seen_total";
        let mut family = self.family("smp_messages_local", None, MetricType::Counter, help)?;
        for proxy in proxies {
            counter(&mut family, &proxy.labels()[..], &proxy.window.matching.local)?;
        }
        let help = "Connections over Unix-domain sockets, which are not measured: the most at one look";
        let mut family = self.family("smp_unix_connections", None, MetricType::Gauge, help)?;
        for proxy in proxies {
            let UnixConnections { downstream, upstream } = proxy.window.unix;
            for (side, count) in [("downstream", downstream), ("upstream", upstream)] {
                family.encode_family(&proxy.with([("side", side)]))?.encode_gauge(&count)?;
            }
        }
        let help = "Messages whose crossing is not complete";
        let mut family = self.family("smp_messages_in_flight", None, MetricType::Gauge, help)?;
        for proxy in proxies {
            family.encode_family(&proxy.labels())?.encode_gauge(&proxy.window.matching.in_flight)?;
        }
        Ok(())
    }

    fn costs(&mut self, proxies: &[Labelled<'_>], snapshot: &Snapshot) -> Result<(), Error> {
        let seconds = |ns: u64| ns as f64 / NS_PER_SECOND;
        let help = "CPU time of a proxy: its threads (task), without softirqs on top of them, and softirqs for its sockets (softirq)";
        let mut family = self.family("smp_proxy_cpu", Some(&Unit::Seconds), MetricType::Counter, help)?;
        for proxy in proxies {
            let cost = &proxy.window.cost.cpu.counted;
            for (mode, ns) in [("task", cost.on_cpu_ns), ("softirq", cost.softirq_caused_ns)] {
                counter(&mut family, &proxy.with([("mode", mode)])[..], &seconds(ns))?;
            }
        }
        let help = "Time that threads of a proxy were ready to run and did not, each time";
        let mut family =
            self.family("smp_proxy_run_queue_wait", Some(&Unit::Seconds), MetricType::Histogram, help)?;
        for proxy in proxies {
            let waits = &proxy.window.cost.cpu.run_queue_wait;
            family.encode_family(&proxy.labels())?.encode_histogram::<NoLabelSet>(
                seconds(waits.sum_ns()),
                waits.count(),
                &buckets(waits),
                None,
            )?;
        }
        let help = "Times that a thread of a proxy gave its CPU up, or it was taken away";
        let mut family = self.family("smp_proxy_context_switches", None, MetricType::Counter, help)?;
        for proxy in proxies {
            let cost = &proxy.window.cost.cpu.counted;
            for (kind, count) in [("voluntary", cost.voluntary), ("involuntary", cost.involuntary)] {
                counter(&mut family, &proxy.with([("kind", kind)])[..], &count)?;
            }
        }
        let help = "Resident memory of a proxy's processes";
        let mut family =
            self.family("smp_proxy_resident_memory", Some(&Unit::Bytes), MetricType::Gauge, help)?;
        for proxy in proxies {
            family.encode_family(&proxy.labels())?.encode_gauge(&proxy.window.cost.memory.rss_bytes)?;
        }
        let help = "Bytes that a proxy read from (in) and wrote to (out) connections it accepted (downstream) and opened (upstream)";
        let mut family = self.family("smp_proxy_network", Some(&Unit::Bytes), MetricType::Counter, help)?;
        for proxy in proxies {
            let bytes = &proxy.window.cost.bytes;
            for (side, way, count) in [
                ("downstream", "in", bytes.downstream_in),
                ("downstream", "out", bytes.downstream_out),
                ("upstream", "in", bytes.upstream_in),
                ("upstream", "out", bytes.upstream_out),
            ] {
                counter(&mut family, &proxy.with([("side", side), ("way", way)])[..], &count)?;
            }
        }
        let help = "Connections a proxy has opened to other hosts that carried a request, by how they began: plain, tls (the server alone showed a certificate), mutual_tls";
        let mut family = self.family("smp_proxy_opened_connections", None, MetricType::Counter, help)?;
        for proxy in proxies {
            let Opened { plain, tls, mutual_tls } = proxy.window.cost.opened;
            for (kind, count) in [("plain", plain), ("tls", tls), ("mutual_tls", mutual_tls)] {
                counter(&mut family, &proxy.with([("kind", kind)])[..], &count)?;
            }
        }
        let help = "CPU time of the node beside the proxies' threads: other tasks, and idle";
        let mut family = self.family("smp_node_cpu", Some(&Unit::Seconds), MetricType::Counter, help)?;
        let beside = &snapshot.beside;
        for (mode, ns) in [("others", beside.others.on_cpu_ns), ("idle", beside.idle.on_cpu_ns)] {
            counter(&mut family, &[("mode", mode)][..], &seconds(ns))?;
        }
        Ok(())
    }

    fn programs(&mut self, programs: &[ProgramRun]) -> Result<(), Error> {
        let labels = |run: &ProgramRun| [("program", run.program), ("hook", run.hook.name())];
        let help = "1 for what became of the program: attached, not_needed, unsupported, failed or given_up";
        let mut family = self.family("smp_bpf_program_verdict", None, MetricType::Gauge, help)?;
        for run in programs {
            let (verdict, _) = verdict_and_reason(&run.verdict);
            let labels: Vec<_> = labels(run).into_iter().chain([("verdict", verdict)]).collect();
            family.encode_family(&labels)?.encode_gauge(&1u64)?;
        }
        let help = "Time in the program, 0 while the kernel keeps no run-time statistics";
        let mut family =
            self.family("smp_bpf_program_run", Some(&Unit::Seconds), MetricType::Counter, help)?;
        for run in programs {
            counter(&mut family, &labels(run)[..], &(run.run_ns as f64 / NS_PER_SECOND))?;
        }
        let help = "Runs of the program, 0 while the kernel keeps no run-time statistics";
        let mut family = self.family("smp_bpf_program_runs", None, MetricType::Counter, help)?;
        for run in programs {
            counter(&mut family, &labels(run)[..], &run.run_count)?;
        }
        let help = "Runs the kernel skipped because the program was already running on that CPU";
        let mut family = self.family("smp_bpf_program_missed", None, MetricType::Counter, help)?;
        for run in programs {
            counter(&mut family, &labels(run)[..], &run.missed)?;
        }
        Ok(())
    }

    fn agent(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        let help = "User and system CPU time of the agent";
        let mut family = self.family("smp_agent_cpu", Some(&Unit::Seconds), MetricType::Counter, help)?;
        counter(&mut family, &[][..], &(snapshot.self_use.cpu_ns as f64 / NS_PER_SECOND))?;
        let help = "Resident memory of the agent";
        let mut family =
            self.family("smp_agent_resident_memory", Some(&Unit::Bytes), MetricType::Gauge, help)?;
        family.encode_gauge(&snapshot.self_use.rss_bytes)?;
        let help = "Memory of the programs' maps in the kernel";
        let mut family = self.family("smp_agent_map_memory", Some(&Unit::Bytes), MetricType::Gauge, help)?;
        family.encode_gauge(&snapshot.self_use.map_bytes)?;
        let help = "When the counters here were read, in Unix time";
        let mut family =
            self.family("smp_agent_snapshot_timestamp", Some(&Unit::Seconds), MetricType::Gauge, help)?;
        family.encode_gauge(&(snapshot.at.as_millisecond() as f64 / 1e3))
    }
}

fn counter<V: prometheus_client::encoding::EncodeCounterValue>(
    family: &mut MetricEncoder<'_>,
    labels: &[Label<'_>],
    value: &V,
) -> Result<(), Error> {
    if labels.is_empty() {
        return family.encode_counter::<NoLabelSet, V, u64>(value, None);
    }
    family.encode_family(&labels)?.encode_counter::<NoLabelSet, V, u64>(value, None)
}

/// (upper bound in s, values in this bucket alone), the last without bound.
fn buckets(series: &Histogram) -> Vec<(f64, u64)> {
    let mut below = 0;
    let mut buckets: Vec<_> = BOUNDS_NS
        .iter()
        .map(|&bound_ns| {
            let up_to = series.count_up_to(bound_ns);
            let alone = up_to - below;
            below = up_to;
            (bound_ns as f64 / NS_PER_SECOND, alone)
        })
        .collect();
    buckets.push((f64::INFINITY, series.count() - below));
    buckets
}
