//! What proxies and their node cost, as the document has it.

use serde::Serialize;
use smp_agent_abi::layout::Cost;

use crate::cgroup::Throttling;
use crate::cgroup::pods::{GroupCost, PodUse, PodsUse};
use crate::co_tenants::CoTenant;
use crate::histogram::Histogram;
use crate::hop::{Direction, Segment, series_index};
use crate::usage::Usage;
use crate::window::{Bytes, Opened, ProxyWindow, Window};

/// CPU time of one proxy in the window.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cpu {
    /// All of the following: what the node spent on it, ns.
    pub total_ns: u64,
    /// The same as a number of CPUs.
    pub cores: f64,
    /// Its threads ran, ns, without softirqs that ran on top of them; interrupts are in it.
    pub on_cpu_ns: u64,
    /// Of that, in user mode. The two parts are as the kernel's tick found them, some percent of their sum wrong for a second
    /// of CPU time; their sum is exact; absent when no tick has found the proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_ns: Option<u64>,
    /// ... and in the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_ns: Option<u64>,
    /// Softirqs that served its sockets, on top of whomever they ran, ns.
    pub softirq_ns: u64,
    /// Beside the total: softirqs that ran on top of its threads, whomever they served, ns. Control groups charge them to it.
    pub softirq_borne_ns: u64,
    /// Times a thread gave its CPU up.
    pub voluntary_switches: u64,
    /// Times its CPU was taken away.
    pub involuntary_switches: u64,
    /// How long its threads were ready to run and did not, each time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_queue_wait: Option<Wait>,
    /// What the limit of its control group cost; absent without a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttling: Option<Throttling>,
}

/// One distribution of waiting times, ns, as [`Hop`](super::Hop) has them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Wait {
    /// Of all values here: `ns`.
    pub unit: &'static str,
    /// How often.
    pub count: u64,
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
    /// The longest.
    pub max: u64,
    /// All of it: `HdrHistogram` V2, compressed, base64.
    pub hdr: String,
}

/// What went through a proxy in the window.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Requests {
    /// Requests that crossed it, as its `hop` counts them: of connections that carry several at once, what one packet brought.
    pub requests: u64,
    /// Responses that did.
    pub responses: u64,
    /// Requests a second.
    pub requests_per_second: f64,
    /// Bytes of its connections, whatever they carry.
    pub bytes: Bytes,
    /// Connections it has opened to other hosts, by how they began.
    pub opened_connections: Opened,
    /// CPU time for each request, us; absent without requests, or where CPU time is not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_us_per_request: Option<PerRequest>,
}

/// CPU time for each request, us.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PerRequest {
    /// All of it.
    pub total: f64,
    /// In user mode; absent as [`Cpu::user_ns`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<f64>,
    /// In the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<f64>,
    /// In softirqs that served its sockets.
    pub softirq: f64,
}

/// The node in the window.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct NodeCost {
    /// Who had the CPUs, as it was measured; absent where it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shares: Option<Shares>,
    /// The processes that used most, beside the proxies and the agent: at most five names. `(command)` is what `run` was given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub co_tenants: Vec<CoTenantCost>,
    /// All other processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other_co_tenants: Option<OtherCoTenants>,
    /// The node's own accounting.
    #[serde(flatten)]
    pub usage: Usage,
}

/// Processes of one name in the window, by `/proc`: with softirqs on top of them, and with their children that have ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CoTenantCost {
    /// Of their programs, at most 15 characters, or what they call themselves.
    pub name: String,
    /// How many there were at the end.
    pub processes: u32,
    /// What they used, to some 10 ms each; no memory.
    #[serde(flatten)]
    pub cost: GroupCost,
}

/// Processes that are not in `co_tenants`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OtherCoTenants {
    /// How many names used any CPU time.
    pub names: u32,
    /// Processes beyond the first 10,000, whose CPU time is not in it.
    pub not_read: u32,
    /// What they used; no memory.
    #[serde(flatten)]
    pub cost: GroupCost,
}

/// CPU time over all CPUs, ns. Tasks without the softirqs on top of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Shares {
    /// The proxies' threads.
    pub proxies_ns: u64,
    /// All other tasks: who shares the node.
    pub others_ns: u64,
    /// Softirqs.
    pub softirq_ns: u64,
    /// Of these, those that served the proxies' sockets.
    pub softirq_proxies_ns: u64,
    /// ... other TCP sockets.
    pub softirq_others_ns: u64,
    /// ... nobody that was seen: timers, other protocols, what ends in no socket.
    pub softirq_unattributed_ns: u64,
    /// Idle.
    pub idle_ns: u64,
}

/// One pod in the window, by the kernel's accounting of its control group: all its containers, a proxy among them too.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PodCost {
    /// As the group's name has it: of a static pod the hash of its configuration.
    pub pod_uid: String,
    /// What it used.
    #[serde(flatten)]
    pub cost: GroupCost,
}

/// Pods that are not told apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OtherPods {
    /// Pods that were there when the window opened and not when it closed.
    pub ended: u32,
    /// Control groups of pods beyond the first 1,000.
    pub not_listed: u32,
    /// CPU time of these, and of pods that both began and ended in the window; no memory.
    #[serde(flatten)]
    pub cost: GroupCost,
}

/// Which of the programs that CPU time needs are there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    switches: bool,
    softirqs: bool,
}

impl Measured {
    pub(super) fn in_window(window: &Window) -> Self {
        let has =
            |name: &str| window.programs.iter().any(|run| run.program == name && run.verdict.is_attached());
        Self { switches: has("switch"), softirqs: has("softirq_end") }
    }
}

impl Cpu {
    /// `None` where it is not measured.
    pub(super) fn new(proxy: &ProxyWindow, seconds: f64, measured: Measured) -> Option<Self> {
        let cpu = &proxy.cost.cpu;
        let Cost { on_cpu_ns, voluntary, involuntary, softirq_borne_ns, softirq_caused_ns, .. } = cpu.counted;
        let parts = cpu.user_and_system_ns();
        (measured.switches && measured.softirqs).then(|| Self {
            total_ns: cpu.total_ns(),
            cores: if seconds > 0.0 { cpu.total_ns() as f64 / (seconds * 1e9) } else { 0.0 },
            on_cpu_ns,
            user_ns: parts.map(|[user_ns, _]| user_ns),
            system_ns: parts.map(|[_, system_ns]| system_ns),
            softirq_ns: softirq_caused_ns,
            softirq_borne_ns,
            voluntary_switches: voluntary,
            involuntary_switches: involuntary,
            run_queue_wait: Wait::new(&cpu.run_queue_wait),
            throttling: proxy.cost.throttling,
        })
    }
}

impl PodCost {
    pub(super) fn all(window: &Window) -> Vec<Self> {
        let pods = window.pods.iter().flat_map(|used| &used.pods);
        pods.map(|(uid, &used)| Self { pod_uid: uid.clone(), cost: window.group_cost(used) }).collect()
    }
}

impl OtherPods {
    pub(super) fn new(window: &Window) -> Option<Self> {
        let used = window.pods.as_ref().filter(|used| !used.is_empty())?;
        let &PodsUse { ended, not_listed, other_cpu_ns: cpu_ns, .. } = used;
        let cost = window.group_cost(PodUse { cpu_ns, ..PodUse::default() });
        Some(Self { ended, not_listed, cost })
    }
}

impl Wait {
    fn new(waits: &Histogram) -> Option<Self> {
        Some(Self {
            unit: "ns",
            count: waits.count(),
            mean: waits.mean_ns()?,
            p50: waits.quantile_ns(0.5)?,
            p90: waits.quantile_ns(0.9)?,
            p99: waits.quantile_ns(0.99)?,
            p999: waits.quantile_ns(0.999)?,
            max: waits.max_ns()?,
            hdr: waits.to_base64(),
        })
    }
}

impl Requests {
    pub(super) fn new(proxy: &ProxyWindow, cpu: Option<&Cpu>, seconds: f64) -> Self {
        let count = |direction| proxy.hops[series_index(direction, Segment::Hop)].count();
        let requests = count(Direction::Request);
        let each_us = |ns: u64| ns as f64 / 1e3 / requests as f64;
        Self {
            requests,
            responses: count(Direction::Response),
            requests_per_second: if seconds > 0.0 { requests as f64 / seconds } else { 0.0 },
            bytes: proxy.cost.bytes,
            opened_connections: proxy.cost.opened,
            cpu_us_per_request: cpu.filter(|_| requests > 0).map(|cpu| PerRequest {
                total: each_us(cpu.total_ns),
                user: cpu.user_ns.map(each_us),
                system: cpu.system_ns.map(each_us),
                softirq: each_us(cpu.softirq_ns),
            }),
        }
    }
}

impl NodeCost {
    pub(super) fn new(window: &Window, measured: Measured) -> Self {
        let shares = (measured.switches && measured.softirqs).then(|| Shares::new(window));
        let cost = |cpu_ns| window.group_cost(PodUse { cpu_ns: Some(cpu_ns), working_set_bytes: None });
        let listed = window.co_tenants.iter().flat_map(|co_tenants| &co_tenants.listed);
        Self {
            shares,
            co_tenants: listed
                .map(|&CoTenant { ref name, processes, cpu_ns }| CoTenantCost {
                    name: name.clone(),
                    processes,
                    cost: cost(cpu_ns),
                })
                .collect(),
            other_co_tenants: window.co_tenants.as_ref().map(|co_tenants| OtherCoTenants {
                names: co_tenants.other_names,
                not_read: co_tenants.not_read,
                cost: cost(co_tenants.other_cpu_ns),
            }),
            usage: window.usage.clone(),
        }
    }
}

impl Shares {
    fn new(window: &Window) -> Self {
        let of_proxies = |value: fn(&Cost) -> u64| -> u64 {
            window.proxies.iter().map(|proxy| value(&proxy.cost.cpu.counted)).sum()
        };
        let beside = &window.beside;
        let softirq_ns = of_proxies(|cost| cost.softirq_borne_ns)
            + beside.others.softirq_borne_ns
            + beside.idle.softirq_borne_ns;
        let softirq_proxies_ns = of_proxies(|cost| cost.softirq_caused_ns);
        let softirq_others_ns = beside.others.softirq_caused_ns;
        Self {
            proxies_ns: of_proxies(|cost| cost.on_cpu_ns),
            others_ns: beside.others.on_cpu_ns,
            softirq_ns,
            softirq_proxies_ns,
            softirq_others_ns,
            softirq_unattributed_ns: softirq_ns.saturating_sub(softirq_proxies_ns + softirq_others_ns),
            idle_ns: beside.idle.on_cpu_ns,
        }
    }

    /// Everything but idle, ns.
    pub const fn busy_ns(&self) -> u64 {
        self.proxies_ns + self.others_ns + self.softirq_ns
    }
}
