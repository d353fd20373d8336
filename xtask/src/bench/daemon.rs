//! The agent as a daemon, and what it takes.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bed::process::Child;

use super::kernel::{self, Held};

/// How long the agent may take to load and attach its probes.
const LONGEST_START: Duration = Duration::from_secs(30);

/// One that runs; stopped on drop.
pub struct Daemon {
    child: Child,
}

/// What it has taken up to now.
pub struct Look {
    at: Instant,
    /// Its programs and maps.
    pub kernel: Held,
    /// CPU time of its threads.
    cpu_ns: u64,
    /// Memory of its own, MiB.
    pub rss_mib: f64,
}

impl Daemon {
    /// Starts it and waits until it measures these proxies.
    ///
    /// # Errors
    /// When it ends or hangs before.
    pub fn start(agent: &Path, proxies: &[u32], arguments: &[&str], dir: &Path) -> Result<Self> {
        let mut command = Command::new(agent);
        // Port 0: nobody scrapes it.
        command.args(["daemon", "--metrics", "127.0.0.1:0"]).args(arguments);
        command.args(proxies.iter().map(|pid| format!("--proxy={pid}")));
        let mut child = Child::start("agent", &command, dir)?;
        child.until(LONGEST_START, "measure", |child| {
            if let Some(status) = child.poll()? {
                bail!("the agent ended with {status}{}", child.tail());
            }
            Ok(child.tail().contains("; metrics on ").then_some(()))
        })?;
        Ok(Self { child })
    }

    /// Looks at it.
    ///
    /// # Errors
    /// When what the kernel says of it cannot be read.
    pub fn look(&self) -> Result<Look> {
        let pid = self.child.pid();
        Ok(Look {
            at: Instant::now(),
            kernel: kernel::held_by(pid)?,
            cpu_ns: kernel::cpu_ns_of(pid)?,
            rss_mib: rss_kib(pid)? as f64 / 1024.0,
        })
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it is still there after SIGKILL.
    pub fn stop(self) -> Result<()> {
        self.child.stop()
    }
}

impl Look {
    /// CPUs that its threads kept busy since an earlier look.
    pub fn cores_since(&self, earlier: &Self) -> f64 {
        let took = self.at.duration_since(earlier.at);
        self.cpu_ns.saturating_sub(earlier.cpu_ns) as f64 / took.as_nanos().max(1) as f64
    }

    /// Time of its programs since an earlier look, ns.
    pub fn bpf_ns_since(&self, earlier: &Self) -> u64 {
        let sum = |look: &Self| look.kernel.programs.values().map(|runs| runs.took_ns).sum::<u64>();
        sum(self).saturating_sub(sum(earlier))
    }

    /// How often they ran since then.
    pub fn bpf_runs_since(&self, earlier: &Self) -> u64 {
        let sum = |look: &Self| look.kernel.programs.values().map(|runs| runs.count).sum::<u64>();
        sum(self).saturating_sub(sum(earlier))
    }

    /// CPUs that they kept busy since then.
    pub fn bpf_cores_since(&self, earlier: &Self) -> f64 {
        let took = self.at.duration_since(earlier.at);
        self.bpf_ns_since(earlier) as f64 / took.as_nanos().max(1) as f64
    }
}

fn rss_kib(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory() {
        assert!((100..1_000_000).contains(&rss_kib(std::process::id()).unwrap()));
    }
}
