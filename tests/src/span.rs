//! A span of time that a test ends: what measures while a command runs is given `cat` of a named pipe, which runs until the
//! pipe is closed.

use std::ffi::OsString;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use rustix::io::Errno;

use crate::process::Child;
use crate::tools;

/// A span that has not begun.
#[derive(Debug)]
pub struct Span {
    pipe: PathBuf,
}

/// A span that has; dropping it ends it.
#[derive(Debug)]
pub struct Begun {
    _pipe: OwnedFd,
}

impl Span {
    /// Makes the pipe; what was there is replaced.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(pipe: PathBuf) -> Result<Self> {
        if pipe.exists() {
            fs::remove_file(&pipe)?;
        }
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).context("cannot make a pipe")?;
        Ok(Self { pipe })
    }

    /// The command that runs as long as the span lasts.
    pub fn words(&self) -> [OsString; 2] {
        ["cat".into(), self.pipe.clone().into()]
    }

    /// Waits until the program has started the command, which is when it measures.
    ///
    /// # Errors
    /// When it ends or hangs before.
    pub fn begin(self, program: &mut Child) -> Result<Begun> {
        // A pipe can be opened when there is someone who reads.
        let pipe = program.until(tools::longest(), "measure", |program| {
            if let Some(status) = program.poll()? {
                bail!("it ended with {status}{}", program.tail());
            }
            match open(&self.pipe, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()) {
                Ok(pipe) => Ok(Some(pipe)),
                Err(Errno::NXIO) => Ok(None),
                Err(error) => Err(error).context("cannot open the pipe"),
            }
        })?;
        Ok(Begun { _pipe: pipe })
    }
}
