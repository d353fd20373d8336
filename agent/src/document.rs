//! `overhead.json`: everything one window on one node has to say. A pure function of the window.

mod cost;
mod warning;

use jiff::Timestamp;
use serde::Serialize;

use crate::cgroup::Container;
use crate::histogram::Histogram;
use crate::hop::{Direction, SERIES, Segment};
use crate::identity::Identity;
use crate::kubernetes::{Cluster, Pod};
use crate::memory::Memory;
use crate::node::Node;
use crate::probe::Verdict;
use crate::window::{Matching, ProgramRun, Proxy, ProxyWindow, SelfUse, UnixConnections, Window};

use cost::Measured;
pub use cost::{
    CoTenantCost, Cpu, NodeCost, OtherCoTenants, OtherPods, PerRequest, PodCost, Requests, Shares, Wait,
};

/// Version of the document's shape: a field that changes meaning or leaves makes it greater.
pub const SCHEMA_VERSION: u32 = 1;

/// The whole document. Latencies in ns; what is unknown is absent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Document {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// What a reader must know before the numbers, one sentence each; every rendering shows them on top.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Which run this belongs to.
    pub run_id: String,
    /// Version of the agent that measured.
    pub agent_version: String,
    /// When.
    pub window: Span,
    /// Where, and what the node used.
    pub node: DocumentNode,
    /// What the API server says of the cluster; absent where it is not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<Cluster>,
    /// What each pod on the node used, proxied or not; absent without any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<PodCost>,
    /// What is in no pod of `pods`; absent without any pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other_pods: Option<OtherPods>,
    /// With which programs.
    pub hooks: Vec<Hook>,
    /// Which proxies were there, idle ones included.
    pub proxies: Vec<ProxyMatching>,
    /// One per proxy, direction and segment that has samples.
    pub hops: Vec<Hop>,
    /// Sum over `proxies`.
    pub matching: Matching,
    /// What measuring cost.
    #[serde(rename = "self")]
    pub self_cost: SelfCost,
}

/// The node and what it used in the window.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DocumentNode {
    /// Which one.
    #[serde(flatten)]
    pub identity: Node,
    /// What it used.
    #[serde(flatten)]
    pub cost: NodeCost,
}

/// The window's edges: first instant in it and first instant after it, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Span {
    /// RFC 3339.
    pub start: Timestamp,
    /// RFC 3339.
    pub end: Timestamp,
    /// `end - start`.
    pub seconds: f64,
}

/// One program and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hook {
    /// Name of the program.
    pub program: &'static str,
    /// Its tracepoint, or the function at whose entry it runs.
    pub hook: &'static str,
    /// `attached`, `not_needed`, `unsupported`, `failed` or `given_up`.
    pub verdict: &'static str,
    /// Why it is not attached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// One proxy, the classes of its messages, both directions together, and what it cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProxyMatching {
    /// Executable's base name.
    pub proxy: String,
    /// Process id; the master's where there are workers.
    pub pid: u32,
    /// Path of the executable.
    pub exe: String,
    /// Its messages.
    pub matching: Matching,
    /// Its connections that are not measured; absent without any.
    #[serde(skip_serializing_if = "UnixConnections::is_empty")]
    pub unix_connections: UnixConnections,
    /// What it is, as far as it shows.
    #[serde(flatten)]
    pub identity: Identity,
    /// Its container, as far as its control group tells.
    #[serde(flatten)]
    pub container: Container,
    /// Its pod by name; absent where nobody names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// CPU time; absent where it is not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Memory.
    pub memory: Memory,
    /// What went through it, and CPU time for each request.
    pub requests: Requests,
}

/// One distribution of latencies, ns.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Hop {
    /// Executable's base name.
    pub proxy: String,
    /// Process id, as in [`ProxyMatching`].
    pub pid: u32,
    /// Which way.
    pub direction: Direction,
    /// Which part.
    pub segment: Segment,
    /// Of all values here: `ns`.
    pub unit: &'static str,
    /// How many samples, at least one.
    pub count: u64,
    /// Exact, or within 0.79 % when the smallest value is older than the window.
    pub min: u64,
    /// As `min`.
    pub max: u64,
    /// Exact.
    pub mean: f64,
    /// Median; this and the next are tops of a bucket, at most 0.79 % above the true value.
    pub p50: u64,
    /// 90th percentile.
    pub p90: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p999: u64,
    /// All of it: `HdrHistogram` V2, compressed, base64.
    pub hdr: String,
}

/// What measuring cost in the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SelfCost {
    /// Time in the programs, ns; absent when the kernel counted no run (its run-time statistics are off).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bpf_ns: Option<u64>,
    /// Runs of the programs; absent as `bpf_ns`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bpf_runs: Option<u64>,
    /// Runs the kernel skipped because the program was already running on that CPU.
    pub bpf_missed: u64,
    /// User and system CPU time of the agent's process, ns.
    pub cpu_ns: u64,
    /// Resident set at the end, bytes.
    pub rss_bytes: u64,
    /// Memory of the programs' maps in the kernel, bytes.
    pub map_bytes: u64,
}

impl Document {
    /// The document of one closed window.
    pub fn new(
        window: &Window,
        node: Node,
        kubernetes: Option<Cluster>,
        run_id: &str,
        agent_version: &str,
    ) -> Self {
        let mut matching = Matching::default();
        window.proxies.iter().for_each(|proxy| matching.add(&proxy.matching));
        let measured = Measured::in_window(window);
        let seconds = window.seconds();
        Self {
            schema_version: SCHEMA_VERSION,
            warnings: warning::of(window, kubernetes.as_ref()),
            run_id: run_id.to_owned(),
            agent_version: agent_version.to_owned(),
            window: Span { start: window.opened, end: window.closed, seconds },
            node: DocumentNode { identity: node, cost: NodeCost::new(window, measured) },
            kubernetes,
            pods: PodCost::all(window),
            other_pods: OtherPods::new(window),
            hooks: window.programs.iter().map(Hook::new).collect(),
            proxies: window
                .proxies
                .iter()
                .map(|proxy| ProxyMatching::new(proxy, seconds, measured))
                .collect(),
            hops: window.proxies.iter().flat_map(hops).collect(),
            matching,
            self_cost: SelfCost::new(&window.programs, window.self_use),
        }
    }
}

impl Hook {
    fn new(run: &ProgramRun) -> Self {
        let (verdict, reason) = verdict_and_reason(&run.verdict);
        Self { program: run.program, hook: run.hook.name(), verdict, reason: reason.map(str::to_owned) }
    }
}

impl ProxyMatching {
    fn new(proxy_window: &ProxyWindow, seconds: f64, measured: Measured) -> Self {
        let Proxy { name, pid, exe, container, pod, identity, .. } = &proxy_window.proxy;
        let cpu = Cpu::new(proxy_window, seconds, measured);
        let requests = Requests::new(proxy_window, cpu.as_ref(), seconds);
        Self {
            proxy: name.clone(),
            pid: *pid,
            exe: exe.to_string_lossy().into_owned(),
            matching: proxy_window.matching.clone(),
            unix_connections: proxy_window.unix,
            identity: identity.clone(),
            container: container.clone(),
            pod: pod.clone(),
            cpu,
            memory: proxy_window.cost.memory,
            requests,
        }
    }
}

impl Hop {
    /// `None` without samples.
    fn new(
        proxy_window: &ProxyWindow,
        (direction, segment): (Direction, Segment),
        series: &Histogram,
    ) -> Option<Self> {
        Some(Self {
            proxy: proxy_window.proxy.name.clone(),
            pid: proxy_window.proxy.pid,
            direction,
            segment,
            unit: "ns",
            count: series.count(),
            min: series.min_ns()?,
            max: series.max_ns()?,
            mean: series.mean_ns()?,
            p50: series.quantile_ns(0.5)?,
            p90: series.quantile_ns(0.9)?,
            p99: series.quantile_ns(0.99)?,
            p999: series.quantile_ns(0.999)?,
            hdr: series.to_base64(),
        })
    }
}

impl SelfCost {
    fn new(programs: &[ProgramRun], self_use: SelfUse) -> Self {
        let bpf_runs: u64 = programs.iter().map(|run| run.run_count).sum();
        let bpf_ns = programs.iter().map(|run| run.run_ns).sum();
        Self {
            bpf_ns: (bpf_runs > 0).then_some(bpf_ns),
            bpf_runs: (bpf_runs > 0).then_some(bpf_runs),
            bpf_missed: programs.iter().map(|run| run.missed).sum(),
            cpu_ns: self_use.cpu_ns,
            rss_bytes: self_use.rss_bytes,
            map_bytes: self_use.map_bytes,
        }
    }
}

/// The words for a verdict in every output.
pub(crate) fn verdict_and_reason(verdict: &Verdict) -> (&'static str, Option<&str>) {
    match verdict {
        Verdict::Attached => ("attached", None),
        Verdict::NotNeeded => ("not_needed", None),
        Verdict::Unsupported(reason) => ("unsupported", Some(reason)),
        Verdict::Failed(reason) => ("failed", Some(reason)),
        Verdict::GivenUp(reason) => ("given_up", Some(reason)),
    }
}

fn hops(proxy_window: &ProxyWindow) -> impl Iterator<Item = Hop> + '_ {
    let series = SERIES.into_iter().zip(&proxy_window.hops);
    series.filter_map(|(of, series)| Hop::new(proxy_window, of, series))
}

#[cfg(test)]
pub(crate) mod tests;
