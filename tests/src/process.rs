//! Processes that end with their guard.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::io::Errno;
use rustix::process::{
    Pid, Resource, Rlimit, Signal, getrlimit, kill_process_group, setrlimit, test_kill_process_group,
};

use crate::live;

/// How long a process may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);
/// How long the kernel may take to remove a process after SIGKILL.
const KILL_GRACE: Duration = Duration::from_secs(5);
/// How often a condition is looked at while it is awaited.
const POLL: Duration = Duration::from_millis(5);
/// How much of a log a failure shows.
const TAIL_LINES: usize = 15;

/// A running process and all its descendants that stay in its process group.
///
/// Dropping it stops them: SIGTERM, then SIGKILL after 5 s. The kernel sends the process SIGTERM should this one
/// be killed.
#[derive(Debug)]
pub struct Child {
    name: String,
    pid: u32,
    log: Option<PathBuf>,
    status: Option<ExitStatus>,
}

impl Child {
    /// Starts a command with both its output streams in `<dir>/<name>.log`.
    ///
    /// Taken from `command`: program, arguments, folder and changes to the environment. Its streams are set here;
    /// standard input is empty.
    ///
    /// # Errors
    /// When the log cannot be written or the command not be started.
    pub fn start(name: &str, command: &Command, dir: &Path) -> Result<Self> {
        let path = dir.join(format!("{name}.log"));
        let log = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let streams = (log.try_clone()?.into(), log.into());
        Ok(Self::spawn(name, command, streams, Some(path))?.0)
    }

    /// Starts a command that writes to the streams of this process.
    ///
    /// # Errors
    /// When the command cannot be started.
    pub fn attached(name: &str, command: &Command) -> Result<Self> {
        Ok(Self::spawn(name, command, (Stdio::inherit(), Stdio::inherit()), None)?.0)
    }

    /// Starts a command whose standard output the caller reads; its standard error is this process's.
    ///
    /// # Errors
    /// When the command cannot be started.
    pub fn piped(name: &str, command: &Command) -> Result<(Self, ChildStdout)> {
        let (child, stdout) = Self::spawn(name, command, (Stdio::piped(), Stdio::inherit()), None)?;
        Ok((child, stdout.context("no pipe to read from")?))
    }

    fn spawn(
        name: &str,
        command: &Command,
        (stdout, stderr): (Stdio, Stdio),
        log: Option<PathBuf>,
    ) -> Result<(Self, Option<ChildStdout>)> {
        let mut bound = bound_to_this_process(command);
        bound.stdin(Stdio::null()).stdout(stdout).stderr(stderr).process_group(0);
        // Held over the start and the listing: a signal between the two would leave the child behind.
        let mut live = live::lock()?;
        let mut child = live::spawn(bound)
            .with_context(|| format!("cannot start {name} ({})", command.get_program().display()))?;
        let stdout = child.stdout.take();
        let pid = child.id();
        live.children.insert(pid, child);
        Ok((Self { name: name.to_owned(), pid, log, status: None }, stdout))
    }

    /// The id of the process, which is also that of its process group.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Where its output goes, when that is a file.
    pub fn log(&self) -> Option<&Path> {
        self.log.as_deref()
    }

    /// How it ended, or nothing while it runs. What it leaves running in its process group is stopped.
    ///
    /// # Errors
    /// When its state cannot be asked for, or what it left cannot be stopped.
    pub fn poll(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_some() {
            return Ok(self.status);
        }
        let mut live = live::locked();
        let Some(child) = live.children.get_mut(&self.pid) else {
            bail!("{} (process {}) is no longer ours", self.name, self.pid);
        };
        if let Some(status) = child.try_wait()? {
            self.status = Some(status);
            // At once: the id of its group may belong to others once the group is empty.
            let ended = end(child);
            live.children.remove(&self.pid);
            ended?;
        }
        Ok(self.status)
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// As [`Child::poll`].
    pub fn wait(&mut self) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.poll()? {
                return Ok(status);
            }
            thread::sleep(POLL);
        }
    }

    /// Waits until it ends by itself, at most so long.
    ///
    /// # Errors
    /// When it still runs after that time; it goes on running.
    pub fn wait_for(&mut self, longest: Duration) -> Result<ExitStatus> {
        self.until(longest, "end", Self::poll)
    }

    /// Waits until a process in its network namespace listens on exactly this address.
    ///
    /// The kernel's table is read, no connection is made: nothing of this shows up in a measurement.
    ///
    /// # Errors
    /// When the process ends or the time is over before.
    pub fn wait_for_port(&mut self, address: SocketAddr, longest: Duration) -> Result<()> {
        self.until(longest, &format!("listen on {address}"), |child| {
            if let Some(status) = child.poll()? {
                bail!("{} ended with {status} instead of listening on {address}{}", child.name, child.tail());
            }
            Ok(listens(child.pid, address)?.then_some(()))
        })
    }

    /// Waits for a condition, at most so long. `what` continues the sentence "it did not ...".
    ///
    /// # Errors
    /// When the condition fails or the time is over; both show the end of the log.
    pub fn until<T>(
        &mut self,
        longest: Duration,
        what: &str,
        mut condition: impl FnMut(&mut Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let started = Instant::now();
        loop {
            if let Some(value) = condition(self)? {
                return Ok(value);
            }
            if started.elapsed() > longest {
                bail!("{} did not {what} within {} s{}", self.name, longest.as_secs_f32(), self.tail());
            }
            thread::sleep(POLL);
        }
    }

    /// Stops it: SIGTERM to its group, SIGKILL after 5 s. A process that has ended already is fine.
    ///
    /// # Errors
    /// When it is still there after SIGKILL.
    pub fn stop(mut self) -> Result<()> {
        self.end_now()
    }

    fn end_now(&mut self) -> Result<()> {
        // Held until it is gone: who is interrupted here exits only when nothing is left.
        let mut live = live::locked();
        match live.children.remove(&self.pid) {
            Some(mut child) => end(&mut child).with_context(|| format!("cannot stop {}", self.name)),
            None => Ok(()),
        }
    }

    /// The last lines it wrote, ready to end a message with; empty when they are not in a file.
    pub fn tail(&self) -> String {
        let Some(path) = &self.log else { return String::new() };
        let written = std::fs::read(path).unwrap_or_default();
        let written = String::from_utf8_lossy(&written);
        let lines: Vec<&str> = written.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        format!("; its output ({}) ends:\n  {}", path.display(), last.join("\n  "))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Err(error) = self.end_now() {
            eprintln!("{error:#}");
        }
    }
}

/// Runs a command to its end, unseen, and returns what it wrote to standard output.
///
/// # Errors
/// When it cannot be started or fails: the message has the command and what it wrote to standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    // A group of its own: Ctrl-C must not end the very commands that clean up.
    let output = command
        .stdin(Stdio::null())
        .process_group(0)
        .output()
        .with_context(|| format!("cannot run `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Lets this process and those it starts open as many files as they may: a proxy has two sockets for each of
/// hundreds of connections.
///
/// # Errors
/// When the kernel refuses.
pub fn raise_file_limit() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .context("cannot raise the limit of open files")
}

/// A command as a person would type it.
pub fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(|word| word.to_string_lossy()));
    words.join(" ")
}

/// The same command, ended by the kernel should this process be killed.
fn bound_to_this_process(command: &Command) -> Command {
    let mut bound = Command::new("/usr/bin/setpriv");
    bound.args(["--pdeathsig", "TERM", "--"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => bound.env(name, value),
            None => bound.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        bound.current_dir(dir);
    }
    bound
}

/// Sends a signal to a process group; one that is gone is fine.
///
/// # Errors
/// When the kernel does not permit it.
pub(crate) fn signal(pid: u32, signal: Signal) -> Result<()> {
    match group(pid).map(|group| kill_process_group(group, signal)) {
        None | Some(Ok(()) | Err(Errno::SRCH)) => Ok(()),
        Some(Err(error)) => Err(error).with_context(|| format!("cannot end process group {pid}")),
    }
}

/// Stops a process and its group, and waits until both are gone.
///
/// # Errors
/// When something of it is still there after SIGKILL.
pub(crate) fn end(child: &mut std::process::Child) -> Result<()> {
    let Some(group) = group(child.id()) else { bail!("{} is no process id", child.id()) };
    for (signal, grace) in [(Signal::TERM, GRACE), (Signal::KILL, KILL_GRACE)] {
        self::signal(child.id(), signal)?;
        let asked = Instant::now();
        while asked.elapsed() < grace {
            if child.try_wait()?.is_some() && !any_runs(group)? {
                return Ok(());
            }
            thread::sleep(POLL);
        }
    }
    bail!("process group {} is still there after SIGKILL", child.id())
}

/// Whether a process of the group still runs. Its dead wait for the machine's first process, which in a container
/// may never fetch them; they hold nothing.
fn any_runs(group: Pid) -> Result<bool> {
    if test_kill_process_group(group) == Err(Errno::SRCH) {
        return Ok(false);
    }
    let processes = procfs::process::all_processes().context("cannot read /proc")?;
    Ok(processes
        .filter_map(|process| process.ok()?.stat().ok())
        .any(|stat| stat.pgrp == group.as_raw_nonzero().get() && !matches!(stat.state, 'Z' | 'X')))
}

fn group(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// Whether anyone in the network namespace of process `pid` listens on this address.
fn listens(pid: u32, address: SocketAddr) -> Result<bool> {
    let table = || -> procfs::ProcResult<_> {
        let process = procfs::process::Process::new(i32::try_from(pid).map_err(io::Error::other)?)?;
        if address.is_ipv4() { process.tcp() } else { process.tcp6() }
    };
    match table() {
        Ok(sockets) => Ok(sockets.iter().any(|socket| {
            let local = socket.local_address;
            let any = local.ip().is_unspecified() && local.port() == address.port();
            (local == address || any) && socket.state == procfs::net::TcpState::Listen
        })),
        // It is ending: the next look at the process says how.
        Err(procfs::ProcError::NotFound(_)) => Ok(false),
        Err(error) => Err(error).context("cannot read the kernel's socket table"),
    }
}
