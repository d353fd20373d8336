//! What the kernel counts for the BPF programs of a process: read beside that process, not from it.

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

/// The programs that a process holds, by name.
pub type Programs = BTreeMap<String, Runs>;

/// Those of this process.
///
/// # Errors
/// When its descriptors, or the kernel's programs, cannot be listed.
pub fn of(pid: u32) -> Result<Programs> {
    let folder = format!("/proc/{pid}/fdinfo");
    let files = fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))?;
    // One that is closed meanwhile says nothing.
    let texts = files.filter_map(|file| fs::read_to_string(file.ok()?.path()).ok());
    let ids: BTreeSet<u32> = texts.filter_map(|text| id(&text)).collect();
    let mut programs = Programs::new();
    for program in loaded_programs() {
        let program = program.context("cannot list the kernel's programs")?;
        if ids.contains(&program.id()) {
            let name = program.name_as_str().unwrap_or_default().to_owned();
            let took_ns = u64::try_from(program.run_time().as_nanos()).unwrap_or(u64::MAX);
            programs.insert(name, Runs { took_ns, count: program.run_count() });
        }
    }
    Ok(programs)
}

/// The program that a descriptor is, by what the kernel says of it (`bpf_prog_show_fdinfo` in its kernel/bpf/syscall.c).
fn id(text: &str) -> Option<u32> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    // That of a link has the number of its program too.
    field("run_cnt:")?;
    field("prog_id:")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_from_links() {
        let program = "pos:\t0\nprog_type:\t26\nprog_id:\t41\nrun_time_ns:\t5\nrun_cnt:\t2\n";
        assert_eq!(id(program), Some(41));
        assert_eq!(id("pos:\t0\nlink_type:\ttracing\nprog_id:\t41\n"), None);
        assert_eq!(id("pos:\t0\nflags:\t02\n"), None);
    }
}
