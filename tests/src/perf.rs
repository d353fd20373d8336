//! `perf` at work for as long as a test wants: what the kernel's own events say of some processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::process::{self, Child};
use crate::span::{Begun, Span};
use crate::tools;

/// How long it may take to end.
const LONGEST: Duration = Duration::from_secs(20);
/// Samples a second of CPU time, of user mode and of the kernel each; no multiple of the kernel's tick.
const SAMPLES_HZ: &str = "1997";

/// Counts the time that processes run and how often they are switched from.
#[derive(Debug)]
pub struct Counting(Running);

/// Looks some thousand times a second of their CPU time whether processes are in user mode.
#[derive(Debug)]
pub struct Sampling(Running);

/// What was counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Counted {
    /// `task-clock`, ns.
    pub ran_ns: f64,
    /// `context-switches`.
    pub switches: f64,
}

/// What was sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampled {
    /// `cpu-clock:u`.
    pub user: usize,
    /// `cpu-clock:k`.
    pub kernel: usize,
}

#[derive(Debug)]
struct Running {
    perf: Child,
    span: Begun,
    output: PathBuf,
}

impl Counting {
    /// Begins, on all threads of these processes.
    ///
    /// # Errors
    /// When perf is not there, or the kernel does not have these events.
    pub fn start(pids: &[u32], dir: &Path) -> Result<Self> {
        let arguments = ["stat", "-x", ";", "-e", "task-clock,context-switches"];
        Running::start("perf-stat", &arguments, pids, dir).map(Self)
    }

    /// Ends.
    ///
    /// # Errors
    /// When perf fails, or has not counted.
    pub fn finish(self) -> Result<Counted> {
        let text = fs::read_to_string(self.0.finish()?)?;
        // `2000.12;msec;task-clock;...`
        let value = |event: &str| {
            let line = text.lines().find(|line| line.contains(event));
            let value = line.and_then(|line| line.split(';').next()?.parse::<f64>().ok());
            value.with_context(|| format!("perf has not counted {event}: {text}"))
        };
        Ok(Counted { ran_ns: 1e6 * value("task-clock")?, switches: value("context-switches")? })
    }
}

impl Sampling {
    /// Begins, on all threads of these processes.
    ///
    /// # Errors
    /// As [`Counting::start`].
    pub fn start(pids: &[u32], dir: &Path) -> Result<Self> {
        let arguments = ["record", "-q", "-F", SAMPLES_HZ, "-e", "cpu-clock:u", "-e", "cpu-clock:k"];
        Running::start("perf-record", &arguments, pids, dir).map(Self)
    }

    /// Ends.
    ///
    /// # Errors
    /// When perf fails.
    pub fn finish(self) -> Result<Sampled> {
        let recorded = self.0.finish()?;
        let mut script = Command::new(tools::perf()?);
        let samples = process::output(script.args(["script", "-F", "event", "-i"]).arg(recorded))?;
        let count = |event: &str| samples.lines().filter(|line| line.contains(event)).count();
        Ok(Sampled { user: count("cpu-clock:u"), kernel: count("cpu-clock:k") })
    }
}

impl Running {
    fn start(name: &str, arguments: &[&str], pids: &[u32], dir: &Path) -> Result<Self> {
        let (span, output) = (Span::new(dir.join(format!("{name}.pipe")))?, dir.join(format!("{name}.out")));
        let pids: Vec<_> = pids.iter().map(u32::to_string).collect();
        let mut command = Command::new(tools::perf()?);
        command.args(arguments).arg("-o").arg(&output).args(["-p", &pids.join(","), "--"]).args(span.words());
        let mut perf = Child::start(name, &command, dir)?;
        let span = span.begin(&mut perf)?;
        Ok(Self { perf, span, output })
    }

    fn finish(mut self) -> Result<PathBuf> {
        drop(self.span);
        let status = self.perf.wait_for(LONGEST)?;
        ensure!(status.success(), "perf failed ({status}){}", self.perf.tail());
        Ok(self.output)
    }
}
