//! A test window: the difference of two snapshots of counters that only grow.
//!
//! Nothing is ever reset, so any number of windows may overlap and no message is lost at an edge.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;

use crate::histogram::Histogram;
use crate::probe::Verdict;

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
}

/// How the messages of one proxy were classified. `seen = exact + ambiguous + unmatched + lost + in_flight`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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

/// Run-time accounting of one program, as the kernel keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramRun {
    /// Name of the program, as in `smp-agent doctor`.
    pub program: &'static str,
    /// Tracepoint it is attached to, if any.
    pub hook: &'static str,
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
    /// Its eight series, by [`series_index`](crate::hop::series_index).
    pub hops: [Histogram; 8],
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
    /// The agent itself: CPU as a difference, memory as it was at the end.
    pub self_use: SelfUse,
}
