//! What this process has started and not yet ended, so that Ctrl-C ends it too.
//!
//! Drops do not run when a signal ends a process. So everything that must not outlive this process is also listed
//! here, and one thread waits for SIGINT, SIGTERM and SIGHUP, ends what is listed and exits with 128 + the signal.
//! It holds the list's lock until the exit: nothing new can start meanwhile, and no drop interferes.
//!
//! SIGKILL leaves no such chance: children then get SIGTERM from the kernel ([`crate::process`]), and the next
//! [`crate::netns::Bed`] removes the namespaces.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::mpsc;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::{netns, process};

/// Everything alive.
#[derive(Debug, Default)]
pub(crate) struct Live {
    /// By process id; each leads a process group of its own.
    pub(crate) children: BTreeMap<u32, Child>,
    /// Names of network namespaces.
    pub(crate) namespaces: BTreeSet<String>,
    /// Files to remove.
    files: BTreeSet<PathBuf>,
}

static LIVE: Mutex<Live> =
    Mutex::new(Live { children: BTreeMap::new(), namespaces: BTreeSet::new(), files: BTreeSet::new() });

/// The thread that waits for signals, started once; the text says why it could not be.
static WATCH: LazyLock<Result<(), String>> = LazyLock::new(|| watch().map_err(|error| error.to_string()));

/// The list, once signals are watched.
///
/// # Errors
/// When no signal handler can be installed.
pub(crate) fn lock() -> Result<MutexGuard<'static, Live>> {
    WATCH.as_ref().map_err(|error| anyhow::anyhow!("cannot watch for signals: {error}"))?;
    Ok(locked())
}

/// The list, for those who end something: they need no watch. A panic elsewhere does not keep it from them.
pub(crate) fn locked() -> MutexGuard<'static, Live> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a command on a thread that lives as long as this process.
///
/// The kernel tells a child of its parent's death when the *thread* that started it ends, and Envoy asks to be
/// told: a proxy started by a short-lived thread would die with that thread.
///
/// # Errors
/// As [`Command::spawn`].
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    type Request = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: LazyLock<mpsc::Sender<Request>> = LazyLock::new(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        thread::spawn(move || {
            for (mut command, answer) in requests {
                // Fails only when the one who asked is gone; there is no such path.
                drop(answer.send(command.spawn()));
            }
        });
        sender
    });
    let (answer, started) = mpsc::channel();
    let gone = || io::Error::other("the thread that starts processes is gone");
    SPAWNER.send((command, answer)).map_err(|mpsc::SendError(_)| gone())?;
    started.recv().map_err(|mpsc::RecvError| gone())?
}

fn watch() -> Result<()> {
    let mut signals = vec![SIGINT, SIGTERM];
    // `nohup` asks for SIGHUP to be ignored. SIGINT is not asked about: shells ignore it for every background job.
    let ignored = procfs::process::Process::myself()?.status()?.sigign;
    if ignored & (1 << (SIGHUP - 1)) == 0 {
        signals.push(SIGHUP);
    }
    let mut signals = Signals::new(signals)?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        if let Some(signal) = signals.forever().next() {
            let mut live = locked();
            eprintln!("interrupted: stopping what was started");
            live.end_all();
            std::process::exit(128 + signal);
        }
    })?;
    Ok(())
}

impl Live {
    fn end_all(&mut self) {
        let mut children: Vec<_> = std::mem::take(&mut self.children).into_values().collect();
        // Asked all at once, so that the longest of them is the time it takes.
        for child in &children {
            if let Err(error) = process::signal(child.id(), Signal::TERM) {
                eprintln!("{error:#}");
            }
        }
        for child in &mut children {
            if let Err(error) = process::end(child) {
                eprintln!("{error:#}");
            }
        }
        for name in std::mem::take(&mut self.namespaces) {
            if let Err(error) = netns::remove(&name) {
                eprintln!("{error:#}");
            }
        }
        for path in std::mem::take(&mut self.files) {
            if let Err(error) = fs::remove_file(&path) {
                eprintln!("cannot remove {}: {error}", path.display());
            }
        }
    }
}

/// A file that must not outlive this process: removed on drop and when a signal ends it.
#[derive(Debug)]
pub struct TransientFile {
    path: PathBuf,
}

impl TransientFile {
    /// Writes a new file with these contents and permission bits.
    ///
    /// # Errors
    /// When the file exists or cannot be written.
    pub fn create(path: PathBuf, contents: &str, mode: u32) -> Result<Self> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut live = lock()?;
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        live.files.insert(path.clone());
        drop(live);
        let file_guard = Self { path };
        file.write_all(contents.as_bytes())
            .with_context(|| format!("cannot write {}", file_guard.path.display()))?;
        Ok(file_guard)
    }
}

impl Drop for TransientFile {
    fn drop(&mut self) {
        let mut live = locked();
        if live.files.remove(&self.path)
            && let Err(error) = fs::remove_file(&self.path)
        {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}
