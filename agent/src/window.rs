//! A test window: the difference of two snapshots of counters that only grow.
//!
//! Nothing is ever reset, so any number of windows may overlap and no message is lost at an edge.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;
use smp_agent_abi::layout::{HOP_SERIES, ROLE_ACCEPTED};

use crate::cgroup::pods::{GroupCost, PodGroups, PodUse, PodsUse};
use crate::cgroup::{Container, Throttling};
use crate::co_tenants::{CoTenants, Processes};
use crate::cost::{CpuBeside, CpuCost};
use crate::counters::{Counters as _, counters};
use crate::histogram::Histogram;
use crate::identity::Identity;
use crate::kubernetes::Pod;
use crate::memory::Memory;
use crate::probe::Verdict;
use crate::probe::programs::Hook;
use crate::usage::Usage;

/// One proxy as the user knows it: a process, or a master with its workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Its place in the kernel's maps, stable while the agent runs.
    pub slot: u32,
    /// Process id in the agent's pid namespace; the master's where there are workers.
    pub pid: u32,
    /// Executable's base name: `envoy`, `nginx`, ...
    pub name: String,
    /// Path of the executable as the kernel shows it.
    pub exe: PathBuf,
    /// The container it is in, by its control group.
    pub container: Container,
    /// The pod it is in, as far as it is known.
    pub pod: Option<Pod>,
    /// What it is.
    pub identity: Identity,
}

/// How the messages of one proxy were classified. `seen = exact + ambiguous + unmatched + lost + in_flight`.
///
/// In a snapshot all but `in_flight` count from the agent's start; in a window `seen` is what the classes of the
/// window were decided from: the messages that came while it was open and those pending when it opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Matching {
    /// Messages that arrived for crossing, and messages that left without a cause.
    pub seen: u64,
    /// Crossings with one possible cause.
    pub exact: u64,
    /// Crossings with several possible causes; the order-preserving choice was made.
    pub ambiguous: u64,
    /// Messages with no counterpart.
    pub unmatched: u64,
    /// Messages the proxy answered itself; not crossings, and not in `seen`.
    pub local: u64,
    /// Messages lost, by reason; a reason that did not occur is absent.
    pub lost: BTreeMap<&'static str, u64>,
    /// Messages whose crossing is not complete, counted on its own in the kernel.
    pub in_flight: u64,
}

/// Connections of a proxy over Unix-domain sockets, whose messages are not measured: the most there were of either
/// side when its sockets were looked at, which is about once a second. They are no counters: in a window they are as
/// at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UnixConnections {
    /// Accepted by the proxy.
    pub downstream: u64,
    /// Opened by the proxy.
    pub upstream: u64,
}

/// Bytes of a proxy's messages. Counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Bytes {
    /// Read from connections it accepted.
    pub downstream_in: u64,
    /// Written to them.
    pub downstream_out: u64,
    /// Read from connections it opened.
    pub upstream_in: u64,
    /// Written to them.
    pub upstream_out: u64,
}

/// Connections that a proxy has opened to other hosts and that have carried a request, by how they began. Counters; what was
/// there before the agent is not in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Opened {
    /// Without a handshake of TLS.
    pub plain: u64,
    /// With one in which the proxy has shown no certificate, and none before to that server.
    pub tls: u64,
    /// With one in which it has, or that goes on with a session in which it did.
    pub mutual_tls: u64,
}

/// What a proxy cost.
#[derive(Clone, Debug, Default)]
pub struct ProxyCost {
    /// CPU time.
    pub cpu: CpuCost,
    /// What went through it.
    pub bytes: Bytes,
    /// Which connections it has opened.
    pub opened: Opened,
    /// Memory: no counter, in a window as at its end.
    pub memory: Memory,
    /// What its control group's limit cost; absent without a limit.
    pub throttling: Option<Throttling>,
}

/// Run-time accounting of one program, as the kernel keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramRun {
    /// Name of the program, as in `smp-agent doctor`.
    pub program: &'static str,
    /// Where it is attached, if it is.
    pub hook: Hook,
    /// What became of it at start.
    pub verdict: Verdict,
    /// Time spent in it, ns.
    pub run_ns: u64,
    /// Times it ran.
    pub run_count: u64,
    /// Times the kernel skipped it because it was already running on that CPU.
    pub missed: u64,
}

/// What the agent itself used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SelfUse {
    /// User and system CPU time of the agent's process, ns.
    pub cpu_ns: u64,
    /// Resident set, bytes (not a difference: the value when the snapshot was taken).
    pub rss_bytes: u64,
    /// Memory of the programs' maps, bytes (no difference either).
    pub map_bytes: u64,
}

/// All counters at one instant.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When it was taken, UTC.
    pub at: Timestamp,
    /// Per proxy, in slot order.
    pub proxies: Vec<ProxyWindow>,
    /// Per program, in the order of `smp-agent doctor`.
    pub programs: Vec<ProgramRun>,
    /// The CPUs beside the proxies.
    pub beside: CpuBeside,
    /// The node by its own accounting.
    pub usage: Usage,
    /// The node's pods. Only looked at where a window may begin or end: `None` in what is drained in between.
    pub pods: Option<PodGroups>,
    /// The node's processes, looked at as the pods.
    pub processes: Option<Processes>,
    /// The agent itself.
    pub self_use: SelfUse,
}

/// One proxy's part of a snapshot or of a window.
#[derive(Clone, Debug)]
pub struct ProxyWindow {
    /// Which one.
    pub proxy: Proxy,
    /// Classes of its messages.
    pub matching: Matching,
    /// What it has beside TCP.
    pub unix: UnixConnections,
    /// Its series, by [`series_index`](crate::hop::series_index).
    pub hops: [Histogram; HOP_SERIES],
    /// What it cost.
    pub cost: ProxyCost,
}

/// What happened between two snapshots: half-open, immutable.
#[derive(Clone, Debug)]
pub struct Window {
    /// First instant in it, UTC.
    pub opened: Timestamp,
    /// First instant after it, UTC.
    pub closed: Timestamp,
    /// Per proxy that was there at its end, in slot order.
    pub proxies: Vec<ProxyWindow>,
    /// Per program: differences.
    pub programs: Vec<ProgramRun>,
    /// The CPUs beside the proxies: differences.
    pub beside: CpuBeside,
    /// The node by its own accounting: differences, memory as it was at the end.
    pub usage: Usage,
    /// The node's pods; `None` where they were not looked at.
    pub pods: Option<PodsUse>,
    /// The node's processes beside the proxies; `None` where they were not looked at.
    pub co_tenants: Option<CoTenants>,
    /// The agent itself: CPU as a difference, memory as it was at the end.
    pub self_use: SelfUse,
}

impl Matching {
    /// Lost messages over all reasons.
    pub fn lost_total(&self) -> u64 {
        self.lost.values().sum()
    }

    /// Share (0 to 1) of the messages seen that have no latency and never will; `None` when none were seen.
    pub fn unaccounted_share(&self) -> Option<f64> {
        (self.seen > 0).then(|| (self.unmatched + self.lost_total()) as f64 / self.seen as f64)
    }

    /// Adds the messages of another proxy.
    pub fn add(&mut self, other: &Self) {
        self.seen += other.seen;
        self.exact += other.exact;
        self.ambiguous += other.ambiguous;
        self.unmatched += other.unmatched;
        self.local += other.local;
        for (&reason, &count) in &other.lost {
            *self.lost.entry(reason).or_default() += count;
        }
        self.in_flight += other.in_flight;
    }

    fn since(&self, earlier: &Self) -> Self {
        let lost = self
            .lost
            .iter()
            .map(|(&reason, count)| {
                (reason, count.saturating_sub(earlier.lost.get(reason).copied().unwrap_or(0)))
            })
            .filter(|&(_, count)| count > 0)
            .collect();
        Self {
            // What was pending at the opening is decided in this window, so it was seen in it.
            seen: self.seen.saturating_sub(earlier.seen) + earlier.in_flight,
            exact: self.exact.saturating_sub(earlier.exact),
            ambiguous: self.ambiguous.saturating_sub(earlier.ambiguous),
            unmatched: self.unmatched.saturating_sub(earlier.unmatched),
            local: self.local.saturating_sub(earlier.local),
            lost,
            in_flight: self.in_flight,
        }
    }
}

impl UnixConnections {
    /// Counts one by its `ROLE_*`.
    pub(crate) const fn count(&mut self, role: u32) {
        match role {
            ROLE_ACCEPTED => self.downstream += 1,
            _ => self.upstream += 1,
        }
    }

    /// Takes the greater number of each side.
    pub(crate) fn raise(&mut self, other: Self) {
        self.downstream = self.downstream.max(other.downstream);
        self.upstream = self.upstream.max(other.upstream);
    }

    /// True if there is none.
    pub const fn is_empty(&self) -> bool {
        self.downstream == 0 && self.upstream == 0
    }
}

counters!(Bytes { downstream_in, downstream_out, upstream_in, upstream_out });

counters!(Opened { plain, tls, mutual_tls });

impl ProxyCost {
    fn since(&self, earlier: &Self) -> Self {
        Self {
            cpu: self.cpu.since(&earlier.cpu),
            bytes: self.bytes.since(earlier.bytes),
            opened: self.opened.since(earlier.opened),
            memory: self.memory,
            throttling: self.throttling.map(|now| now.since(earlier.throttling.unwrap_or_default())),
        }
    }
}

impl ProgramRun {
    fn since(&self, earlier: Option<&Self>) -> Self {
        let (run_ns, run_count, missed) =
            earlier.map_or((0, 0, 0), |earlier| (earlier.run_ns, earlier.run_count, earlier.missed));
        Self {
            run_ns: self.run_ns.saturating_sub(run_ns),
            run_count: self.run_count.saturating_sub(run_count),
            missed: self.missed.saturating_sub(missed),
            ..self.clone()
        }
    }
}

impl ProxyWindow {
    fn since(&self, earlier: Option<&Self>) -> Self {
        let Some(earlier) = earlier else { return self.clone() };
        Self {
            proxy: self.proxy.clone(),
            matching: self.matching.since(&earlier.matching),
            unix: self.unix,
            hops: std::array::from_fn(|series| self.hops[series].since(&earlier.hops[series])),
            cost: self.cost.since(&earlier.cost),
        }
    }
}

impl Window {
    /// What happened from `open` until `close`, two snapshots of the same agent.
    ///
    /// A proxy is its slot: one that `open` does not have appeared in the window and counts from zero. Verdicts,
    /// messages in flight and resident memory are those of `close`.
    pub fn between(open: &Snapshot, close: &Snapshot) -> Self {
        let proxies = close
            .proxies
            .iter()
            .map(|proxy| {
                proxy.since(open.proxies.iter().find(|earlier| earlier.proxy.slot == proxy.proxy.slot))
            })
            .collect();
        let programs = close
            .programs
            .iter()
            .map(|run| {
                run.since(
                    open.programs
                        .iter()
                        .find(|earlier| earlier.program == run.program && earlier.hook == run.hook),
                )
            })
            .collect();
        Self {
            opened: open.at,
            closed: close.at,
            proxies,
            programs,
            beside: close.beside.since(&open.beside),
            usage: close.usage.since(&open.usage),
            pods: close.pods.as_ref().zip(open.pods.as_ref()).map(|(close, open)| close.since(open)),
            co_tenants: close
                .processes
                .as_ref()
                .zip(open.processes.as_ref())
                .map(|(close, open)| close.since(open)),
            self_use: SelfUse {
                cpu_ns: close.self_use.cpu_ns.saturating_sub(open.self_use.cpu_ns),
                rss_bytes: close.self_use.rss_bytes,
                map_bytes: close.self_use.map_bytes,
            },
        }
    }

    /// How long it was open, s.
    pub fn seconds(&self) -> f64 {
        self.closed.duration_since(self.opened).as_secs_f64()
    }

    /// CPU time in it as a number of CPUs; `None` of a window without length.
    pub fn cores(&self, ns: u64) -> Option<f64> {
        let seconds = self.seconds();
        (seconds > 0.0).then(|| ns as f64 / (seconds * 1e9))
    }

    /// What groups used in it.
    pub fn group_cost(&self, used: PodUse) -> GroupCost {
        let PodUse { cpu_ns, working_set_bytes } = used;
        GroupCost { cpu_ns, cpu_cores: cpu_ns.and_then(|ns| self.cores(ns)), working_set_bytes }
    }
}

#[cfg(test)]
mod tests;
