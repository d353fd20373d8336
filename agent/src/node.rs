//! The machine the agent runs on, as far as a result needs it.

use serde::Serialize;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// What identifies and sizes a node. What could not be learned is absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Host name, as `uname -n`.
    pub name: String,
    /// Kernel release, as `uname -r`.
    pub kernel: String,
    /// Machine architecture, as `uname -m`.
    pub arch: String,
    /// Name and version of the distribution, from `/etc/os-release`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// CPUs online, whatever the agent itself may use of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Memory that the kernel manages (`MemTotal`), bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_bytes: Option<u64>,
}

impl Node {
    /// Asks this machine.
    pub fn read() -> Self {
        let uname = rustix::system::uname();
        let wanted = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing())
            .with_memory(MemoryRefreshKind::nothing().with_ram());
        let system = System::new_with_specifics(wanted).ok();
        let cpus = system.as_ref().and_then(|system| u32::try_from(system.cpus().len()).ok());
        let mem_bytes = system.as_ref().map(System::total_memory);
        Self {
            name: uname.nodename().to_string_lossy().into_owned(),
            kernel: uname.release().to_string_lossy().into_owned(),
            arch: uname.machine().to_string_lossy().into_owned(),
            os: System::long_os_version().ok(),
            cpus: cpus.filter(|&cpus| cpus > 0),
            mem_bytes: mem_bytes.filter(|&bytes| bytes > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::read_to_string;

    use super::*;

    #[test]
    fn this_machine_against_its_own_files() {
        let node = Node::read();
        let of = |path: &str| read_to_string(path).unwrap();
        assert_eq!(node.name, of("/proc/sys/kernel/hostname").trim());
        assert_eq!(node.kernel, of("/proc/sys/kernel/osrelease").trim());
        let cpus = of("/proc/stat").lines().filter(|line| line.starts_with("cpu")).count() - 1;
        assert_eq!(node.cpus, u32::try_from(cpus).ok());
        let mem_kib: u64 = of("/proc/meminfo").split_whitespace().nth(1).unwrap().parse().unwrap();
        assert_eq!(node.mem_bytes, Some(mem_kib * 1024));
    }
}
