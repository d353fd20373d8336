//! Which processes are proxies: from `/proc`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use procfs::ProcError;
use procfs::process::{Process, all_processes};
use thiserror::Error;

/// Executables that are proxies without being asked for.
pub const KNOWN: [&str; 7] =
    ["envoy", "cilium-envoy", "nginx", "haproxy", "linkerd2-proxy", "ztunnel", "traefik"];

/// What the user asks to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One process, with the workers it has forked.
    Pid(u32),
    /// All processes whose executable has this name.
    Name(String),
}

/// Why there is nothing to measure.
#[derive(Debug, Error)]
pub enum DiscoverError {
    /// The process is not there.
    #[error("--proxy {0}: no process has this id; see `ps -e`")]
    NoProcess(u32),
    /// No process runs an executable of that name.
    #[error("--proxy {0}: no process runs an executable of this name; see `ps -e`, or give a process id")]
    NoName(String),
    /// `/proc` cannot be read.
    #[error("reading /proc: {0}")]
    Proc(#[from] ProcError),
}

/// A proxy that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The process a user would name: the master where there are workers.
    pub pid: u32,
    /// Base name of the executable.
    pub name: String,
    /// Path of the executable.
    pub exe: PathBuf,
    /// All its processes, `pid` included.
    pub members: Vec<u32>,
}

#[derive(Clone, Debug)]
struct Candidate {
    pid: u32,
    parent: u32,
    exe: PathBuf,
}

impl Target {
    /// A number is a process id, anything else a name.
    pub fn parse(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Pid)
    }

    fn matches(&self, candidate: &Candidate) -> bool {
        match self {
            Self::Pid(pid) => candidate.pid == *pid,
            Self::Name(name) => base_name(&candidate.exe) == *name,
        }
    }
}

/// All proxies that run now: those asked for, or, when none is asked for, the [`KNOWN`] ones.
pub fn scan(targets: &[Target]) -> Result<Vec<Found>, DiscoverError> {
    let candidates: Vec<_> = all_processes()?.filter_map(|process| candidate(&process.ok()?)).collect();
    for target in targets {
        if !candidates.iter().any(|candidate| target.matches(candidate)) {
            return Err(match target {
                Target::Pid(pid) => DiscoverError::NoProcess(*pid),
                Target::Name(name) => DiscoverError::NoName(name.clone()),
            });
        }
    }
    Ok(group(&candidates, targets))
}

/// Whether a process that has just begun is a proxy.
pub fn look(pid: u32, targets: &[Target]) -> Option<Found> {
    let candidate = candidate(&Process::new(i32::try_from(pid).ok()?).ok()?)?;
    group(&[candidate], targets).pop()
}

fn candidate(process: &Process) -> Option<Candidate> {
    // Kernel threads have no executable.
    let exe = process.exe().ok()?;
    let parent = process.stat().ok()?.ppid;
    Some(Candidate { pid: u32::try_from(process.pid).ok()?, parent: u32::try_from(parent).ok()?, exe })
}

/// A process asked for, or a known proxy, together with the children that run the same executable.
fn group(candidates: &[Candidate], targets: &[Target]) -> Vec<Found> {
    let by_pid: HashMap<_, _> = candidates.iter().map(|candidate| (candidate.pid, candidate)).collect();
    let wanted = |candidate: &Candidate| match targets {
        [] => KNOWN.contains(&base_name(&candidate.exe).as_str()),
        targets => targets.iter().any(|target| target.matches(candidate)),
    };
    // The topmost wanted ancestor without a stranger in between.
    let root = |candidate: &Candidate| {
        let mut top = wanted(candidate).then_some(candidate.pid);
        let mut at = candidate;
        // Deeper than any master with workers; ends a loop that changing parents could make.
        for _ in 0..16 {
            match by_pid.get(&at.parent) {
                Some(&parent) if parent.exe == candidate.exe => {
                    top = if wanted(parent) { Some(parent.pid) } else { top };
                    at = parent;
                }
                _ => break,
            }
        }
        top
    };
    let mut found: Vec<Found> = Vec::new();
    for candidate in candidates {
        let Some(pid) = root(candidate) else { continue };
        if let Some(known) = found.iter_mut().find(|known| known.pid == pid) {
            known.members.push(candidate.pid);
        } else {
            let (name, exe) = (base_name(&candidate.exe), candidate.exe.clone());
            found.push(Found { pid, name, exe, members: vec![candidate.pid] });
        }
    }
    found.sort_by_key(|found| found.pid);
    found
}

/// The executable's name; the kernel marks one that was replaced on disk while it runs.
fn base_name(exe: &Path) -> String {
    let name = exe.file_name().unwrap_or_default().to_string_lossy();
    name.strip_suffix(" (deleted)").unwrap_or(&name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, parent: u32, exe: &str) -> Candidate {
        Candidate { pid, parent, exe: exe.into() }
    }

    fn sample() -> Vec<Candidate> {
        vec![
            process(1, 0, "/sbin/init"),
            process(12, 10, "/usr/sbin/nginx"),
            process(10, 1, "/usr/sbin/nginx"),
            process(11, 10, "/usr/sbin/nginx"),
            process(20, 1, "/usr/sbin/nginx"),
            process(30, 10, "/bin/sh"),
            process(40, 1, "/opt/envoy (deleted)"),
            process(50, 1, "/opt/toy"),
        ]
    }

    fn pids(targets: &[Target]) -> Vec<(u32, Vec<u32>)> {
        group(&sample(), targets).into_iter().map(|found| (found.pid, found.members)).collect()
    }

    #[test]
    fn workers_belong_to_their_master() {
        assert_eq!(pids(&[]), [(10, vec![12, 10, 11]), (20, vec![20]), (40, vec![40])]);
    }

    #[test]
    fn only_what_is_asked_for() {
        assert_eq!(pids(&[Target::parse("50")]), [(50, vec![50])]);
        assert_eq!(pids(&[Target::parse("11")]), [(11, vec![11])]);
        assert_eq!(pids(&[Target::parse("10")]), [(10, vec![12, 10, 11])]);
        assert_eq!(pids(&[Target::parse("envoy")]), [(40, vec![40])]);
    }

    #[test]
    fn what_is_not_there_is_said() {
        assert!(matches!(scan(&[Target::Pid(u32::MAX)]), Err(DiscoverError::NoProcess(u32::MAX))));
        assert!(matches!(scan(&[Target::Name("no-such".into())]), Err(DiscoverError::NoName(_))));
    }
}
