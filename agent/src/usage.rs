//! What the whole node used, by `/proc`.

use procfs::process::Process;
use procfs::{CpuPressure, Current as _, CurrentSI as _, IoPressure, KernelStats, Meminfo, MemoryPressure};
use serde::Serialize;

use crate::counters::{Counters as _, counters};

/// The node's own accounting. What this kernel does not say is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// CPU time over all CPUs, ns, as `/proc/stat` has it: by the tick, but for idle.
    #[serde(rename = "cpu", skip_serializing_if = "Option::is_none")]
    pub cpu_times: Option<CpuTimes>,
    /// Memory at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<NodeMemory>,
    /// Time that some task, or all that were not idle, waited for a resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressure>,
    /// Bytes over the network interfaces of the agent's first process, without loopback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
}

/// Each a counter, ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CpuTimes {
    /// In user mode.
    pub user_ns: u64,
    /// ... of tasks with lowered priority.
    pub nice_ns: u64,
    /// In the kernel.
    pub system_ns: u64,
    /// Idle.
    pub idle_ns: u64,
    /// Idle while a task waited for a disk.
    pub iowait_ns: u64,
    /// In interrupts.
    pub irq_ns: u64,
    /// In softirqs.
    pub softirq_ns: u64,
    /// The hypervisor ran something else.
    pub steal_ns: u64,
}

/// Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NodeMemory {
    /// What programs could still get.
    pub available_bytes: u64,
    /// Of the swap, what is in use.
    pub swap_used_bytes: u64,
    /// All of the swap.
    pub swap_bytes: u64,
}

/// Each a counter, ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pressure {
    /// Some task waited for a CPU.
    pub cpu_some_ns: u64,
    /// Some waited for memory.
    pub memory_some_ns: u64,
    /// All did.
    pub memory_full_ns: u64,
    /// Some waited for a disk.
    pub io_some_ns: u64,
    /// All did.
    pub io_full_ns: u64,
}

/// Each a counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Network {
    /// Bytes received.
    pub received_bytes: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
}

impl Usage {
    /// Asks the kernel.
    pub fn read() -> Self {
        Self { cpu_times: cpu_times(), memory: memory(), pressure: pressure(), network: network() }
    }

    /// Counters as differences, memory as it is now.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self {
            cpu_times: both(self.cpu_times, earlier.cpu_times).map(|(now, then)| now.since(then)),
            memory: self.memory,
            pressure: both(self.pressure, earlier.pressure).map(|(now, then)| now.since(then)),
            network: both(self.network, earlier.network).map(|(now, then)| now.since(then)),
        }
    }
}

fn both<T>(now: Option<T>, earlier: Option<T>) -> Option<(T, T)> {
    Some((now?, earlier?))
}

impl CpuTimes {
    /// Everything but idle.
    pub const fn busy_ns(&self) -> u64 {
        self.user_ns + self.nice_ns + self.system_ns + self.irq_ns + self.softirq_ns + self.steal_ns
    }
}

counters!(CpuTimes { user_ns, nice_ns, system_ns, idle_ns, iowait_ns, irq_ns, softirq_ns, steal_ns });

counters!(Pressure { cpu_some_ns, memory_some_ns, memory_full_ns, io_some_ns, io_full_ns });

counters!(Network { received_bytes, sent_bytes });

fn cpu_times() -> Option<CpuTimes> {
    let total = KernelStats::current().ok()?.total;
    let ns = |ticks: u64| ticks * (1_000_000_000 / procfs::ticks_per_second());
    let known = |ticks: Option<u64>| ns(ticks.unwrap_or(0));
    Some(CpuTimes {
        user_ns: ns(total.user),
        nice_ns: ns(total.nice),
        system_ns: ns(total.system),
        idle_ns: ns(total.idle),
        iowait_ns: known(total.iowait),
        irq_ns: known(total.irq),
        softirq_ns: known(total.softirq),
        steal_ns: known(total.steal),
    })
}

fn memory() -> Option<NodeMemory> {
    let info = Meminfo::current().ok()?;
    Some(NodeMemory {
        available_bytes: info.mem_available?,
        swap_used_bytes: info.swap_total.saturating_sub(info.swap_free),
        swap_bytes: info.swap_total,
    })
}

/// Absent where the kernel was started without it.
fn pressure() -> Option<Pressure> {
    let (cpu, memory, io) =
        (CpuPressure::current().ok()?, MemoryPressure::current().ok()?, IoPressure::current().ok()?);
    Some(Pressure {
        cpu_some_ns: cpu.some.total * 1_000,
        memory_some_ns: memory.some.total * 1_000,
        memory_full_ns: memory.full.total * 1_000,
        io_some_ns: io.some.total * 1_000,
        io_full_ns: io.full.total * 1_000,
    })
}

/// Of the node's own network namespace, which is that of its first process.
fn network() -> Option<Network> {
    let devices = Process::new(1).and_then(|process| process.dev_status()).ok()?;
    let others = devices.iter().filter(|(name, _)| name.as_str() != "lo");
    Some(others.fold(Network::default(), |sum, (_, device)| Network {
        received_bytes: sum.received_bytes + device.recv_bytes,
        sent_bytes: sum.sent_bytes + device.sent_bytes,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_node_says_what_it_can() {
        let usage = Usage::read();
        let times = usage.cpu_times.unwrap();
        assert!(times.busy_ns() > 0 && times.idle_ns > 0, "{times:?}");
        assert!(usage.memory.unwrap().available_bytes > 1 << 20);
        assert_eq!(usage.pressure.is_some(), std::fs::read("/proc/pressure/cpu").is_ok());
        let nothing = usage.since(&usage);
        assert_eq!(nothing.cpu_times, Some(CpuTimes::default()));
        assert_eq!(nothing.memory, usage.memory);
    }
}
