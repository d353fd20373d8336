//! Memory of proxies, by `/proc` and their control groups.

use procfs::process::Process;
use serde::Serialize;

use crate::cgroup::Cgroup;

/// What one proxy uses, bytes; no counters: as it was at the last look, and the most of all looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Resident memory of its processes. What they share counts in each of them.
    pub rss_bytes: u64,
    /// The most at one look; looks are about a second apart.
    pub rss_peak_bytes: u64,
    /// The same with what is shared divided among those who share it. Only looked at when the window closes: the kernel walks
    /// all of a process's pages for it, and the process waits if it maps memory meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pss_bytes: Option<u64>,
    /// What its control group cannot drop at once, as the kubelet has it: everything in the group, not only the proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_set_bytes: Option<u64>,
    /// The most at one look.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_set_peak_bytes: Option<u64>,
    /// Of that, the buffers of all sockets of the group. Version 2 of control groups says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_sockets_bytes: Option<u64>,
    /// What the kernel has charged to the proxy's own TCP connections, whichever group it is in: received and not read, written
    /// and not acknowledged, and what is kept for the next bytes. Connections that wait to be accepted are not in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sockets_bytes: Option<u64>,
    /// The most at one look.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sockets_peak_bytes: Option<u64>,
}

impl Memory {
    /// Looks at the processes of a proxy and at its group. Who has ended keeps what was seen last.
    pub fn look(&mut self, pids: &[u32], cgroup: &Cgroup) {
        let rss_bytes: u64 = pids.iter().filter_map(|&pid| rss(pid)).sum();
        if rss_bytes > 0 {
            self.rss_bytes = rss_bytes;
            self.rss_peak_bytes = self.rss_peak_bytes.max(rss_bytes);
        }
        if let Some(group) = cgroup.memory() {
            self.working_set_bytes = Some(group.working_set_bytes);
            self.working_set_peak_bytes = self.working_set_peak_bytes.max(self.working_set_bytes);
            self.group_sockets_bytes = group.sockets_bytes;
        }
    }

    /// Takes what its connections hold now.
    pub fn look_at_sockets(&mut self, bytes: u64) {
        self.sockets_bytes = Some(bytes);
        self.sockets_peak_bytes = self.sockets_peak_bytes.max(Some(bytes));
    }

    /// Looks at what is shared; see [`Memory::pss_bytes`].
    pub fn look_at_shared(&mut self, pids: &[u32]) {
        let pss: Vec<_> = pids.iter().filter_map(|&pid| pss(pid)).collect();
        if !pss.is_empty() {
            self.pss_bytes = Some(pss.into_iter().sum());
        }
    }
}

fn process(pid: u32) -> Option<Process> {
    Process::new(i32::try_from(pid).ok()?).ok()
}

fn rss(pid: u32) -> Option<u64> {
    Some(process(pid)?.statm().ok()?.resident * procfs::page_size())
}

fn pss(pid: u32) -> Option<u64> {
    let rollup = process(pid)?.smaps_rollup().ok()?.memory_map_rollup;
    rollup.iter().next()?.extension.map.get("Pss").copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_some_and_keeps_the_most() {
        let own = std::process::id();
        let mut memory = Memory { rss_peak_bytes: u64::MAX, ..Memory::default() };
        memory.look(&[own], &Cgroup::default());
        memory.look_at_shared(&[own]);
        let pss = memory.pss_bytes.unwrap();
        assert!(memory.rss_bytes > 1 << 20 && pss > 0 && pss <= memory.rss_bytes, "{memory:?}");
        assert_eq!(memory.rss_peak_bytes, u64::MAX);
        let before = memory;
        memory.look(&[u32::MAX], &Cgroup::default());
        assert_eq!(memory, before, "who has ended keeps what was seen last");
    }
}
