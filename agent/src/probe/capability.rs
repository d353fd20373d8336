//! What this process may do, from the effective set in `/proc/self/status`.

use procfs::process::Process;

/// Capability numbers of the kernel's uapi/linux/capability.h.
const NEEDED: [(u32, &str); 2] = [(39, "CAP_BPF"), (38, "CAP_PERFMON")];
const SYS_ADMIN: u32 = 21;

/// Those of the needed capabilities that the process lacks. `CAP_SYS_ADMIN` stands for all of them.
pub fn missing() -> Vec<&'static str> {
    let Ok(status) = Process::myself().and_then(|process| process.status()) else { return Vec::new() };
    lacking(status.capeff)
}

fn lacking(effective: u64) -> Vec<&'static str> {
    let has = |number: u32| effective >> number & 1 == 1;
    if has(SYS_ADMIN) {
        return Vec::new();
    }
    NEEDED.iter().filter(|&&(number, _)| !has(number)).map(|&(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_named_and_sys_admin_is_enough() {
        assert_eq!(lacking(0), ["CAP_BPF", "CAP_PERFMON"]);
        assert_eq!(lacking(1 << 39), ["CAP_PERFMON"]);
        assert!(lacking(1 << 39 | 1 << 38).is_empty());
        assert!(lacking(1 << 21).is_empty());
    }
}
