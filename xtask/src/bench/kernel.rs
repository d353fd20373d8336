//! What the kernel counts: for the BPF programs and maps of a process, read beside that process and not from it, and for
//! the whole machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context as _, Result};
use aya::programs::loaded_programs;

/// What one program did so far, while run-time statistics were on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    pub took_ns: u64,
    pub count: u64,
}

/// Programs by name.
pub type Programs = BTreeMap<String, Runs>;

/// The programs and maps that a process holds.
#[derive(Debug, Default)]
pub struct Held {
    pub programs: Programs,
    /// Memory of its maps; without what they hold for each socket, which the kernel does not count.
    pub maps_bytes: u64,
}

/// What a descriptor is.
#[derive(Debug, PartialEq, Eq)]
enum Descriptor {
    Program { id: u32 },
    Map { id: u32, bytes: u64 },
}

/// Those of this process.
///
/// # Errors
/// When its descriptors, or the kernel's programs, cannot be listed.
pub fn held_by(pid: u32) -> Result<Held> {
    let folder = format!("/proc/{pid}/fdinfo");
    let files = fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))?;
    let (mut programs, mut maps) = (BTreeSet::new(), BTreeMap::new());
    // One that is closed meanwhile says nothing.
    for text in files.filter_map(|file| fs::read_to_string(file.ok()?.path()).ok()) {
        match descriptor(&text) {
            Some(Descriptor::Program { id }) => drop(programs.insert(id)),
            Some(Descriptor::Map { id, bytes }) => drop(maps.insert(id, bytes)),
            None => {}
        }
    }
    let mut held = Held { maps_bytes: maps.into_values().sum(), ..Held::default() };
    for program in loaded_programs() {
        let program = program.context("cannot list the kernel's programs")?;
        if programs.contains(&program.id()) {
            let name = program.name_as_str().unwrap_or_default().to_owned();
            let took_ns = u64::try_from(program.run_time().as_nanos()).unwrap_or(u64::MAX);
            held.programs.insert(name, Runs { took_ns, count: program.run_count() });
        }
    }
    Ok(held)
}

/// By what the kernel says of it (`bpf_prog_show_fdinfo` and `bpf_map_show_fdinfo` in its kernel/bpf/syscall.c).
fn descriptor(text: &str) -> Option<Descriptor> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    if let Some(id) = field("map_id:") {
        return Some(Descriptor::Map { id: id.parse().ok()?, bytes: field("memlock:")?.parse().ok()? });
    }
    // That of a link has the number of its program too.
    field("run_cnt:")?;
    Some(Descriptor::Program { id: field("prog_id:")?.parse().ok()? })
}

/// CPU time of a process's threads.
///
/// # Errors
/// When it is not there.
pub fn cpu_ns_of(pid: u32) -> Result<u64> {
    // The first number of each thread's `schedstat`; /proc/PID/stat has it in ticks of 10 ms only.
    let folder = format!("/proc/{pid}/task");
    let mut sum_ns = 0;
    for task in fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))? {
        // One that has ended meanwhile says nothing.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        sum_ns += text.split_whitespace().next().context("an empty schedstat")?.parse::<u64>()?;
    }
    Ok(sum_ns)
}

/// Memory of the kernel's slabs.
///
/// # Errors
/// When `/proc/meminfo` cannot be read.
pub fn slab_bytes() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let line =
        text.lines().find_map(|line| line.strip_prefix("Slab:")).context("no slabs in /proc/meminfo")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

/// CPU time that this machine has used, us: by its ticks of 10 ms.
///
/// # Errors
/// When `/proc/stat` cannot be read.
pub fn busy_us() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    busy_ticks(&text).map(|ticks| ticks as f64 * 1e4).context("no line for all CPUs in /proc/stat")
}

/// user, nice, system, then idle and iowait, then irq and softirq (`proc_stat(5)`).
fn busy_ticks(text: &str) -> Option<u64> {
    let numbers = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    let ticks: Vec<u64> = numbers.map_while(|number| number.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks[..] else { return None };
    Some(user + nice + system + irq + softirq)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn programs_and_maps_are_told_from_links() {
        let program = "pos:\t0\nprog_type:\t26\nmemlock:\t4096\nprog_id:\t41\nrun_time_ns:\t5\nrun_cnt:\t2\n";
        assert_eq!(descriptor(program), Some(Descriptor::Program { id: 41 }));
        let map = "pos:\t0\nmap_type:\t2\nmemlock:\t8192\nmap_id:\t7\nfrozen:\t0\n";
        assert_eq!(descriptor(map), Some(Descriptor::Map { id: 7, bytes: 8192 }));
        assert_eq!(descriptor("pos:\t0\nlink_type:\ttracing\nprog_id:\t41\n"), None);
        assert_eq!(descriptor("pos:\t0\nflags:\t02\n"), None);
    }

    #[test]
    fn this_process_takes_time() {
        let (pid, begun) = (std::process::id(), Instant::now());
        let before = cpu_ns_of(pid).unwrap();
        while begun.elapsed() < Duration::from_millis(20) {}
        assert!(cpu_ns_of(pid).unwrap() > before);
    }

    #[test]
    fn idle_time_is_not_used() {
        assert_eq!(busy_ticks("cpu  1 2 4 800 900 8 16 32 64 0\ncpu0 ..."), Some(31));
        assert_eq!(busy_ticks("intr 5"), None);
        assert!(busy_us().unwrap() > 0.0);
    }
}
