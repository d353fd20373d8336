//! The agent at work for as long as a test wants.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::process::Child;
use crate::span::{Begun, Span};
use crate::tools;

/// An agent that measures one proxy.
#[derive(Debug)]
pub struct Measuring {
    agent: Child,
    window: Begun,
    dir: PathBuf,
}

impl Measuring {
    /// Starts the agent and waits until it measures the proxy with this process id. Its files are written to `dir`,
    /// which must exist and be its own.
    ///
    /// # Errors
    /// When the agent is not there, or ends or hangs before.
    pub fn start(pid: u32, dir: &Path) -> Result<Self> {
        Self::start_all(&[pid], dir)
    }

    /// As [`Measuring::start`], on several proxies.
    ///
    /// # Errors
    /// As there.
    pub fn start_all(pids: &[u32], dir: &Path) -> Result<Self> {
        Self::of(pids.iter().map(u32::to_string), dir)
    }

    /// As [`Measuring::start`], on all that run the executable of this name, now and later.
    ///
    /// # Errors
    /// As there.
    pub fn start_named(name: &str, dir: &Path) -> Result<Self> {
        Self::of([name.to_owned()].into_iter(), dir)
    }

    fn of(proxies: impl Iterator<Item = String>, dir: &Path) -> Result<Self> {
        let span = Span::new(dir.join("window"))?;
        let mut agent = Command::new(tools::agent()?);
        agent.arg("run").args(proxies.map(|proxy| format!("--proxy={proxy}")));
        agent.arg("--out").arg(dir).arg("--").args(span.words());
        let mut agent = Child::start("smp-agent", &agent, dir)?;
        let window = span.begin(&mut agent)?;
        Ok(Self { agent, window, dir: dir.to_owned() })
    }

    /// Closes the window and returns the agent's document.
    ///
    /// # Errors
    /// When the agent fails or hangs.
    pub fn finish(mut self) -> Result<Value> {
        drop(self.window);
        let status = self.agent.wait_for(tools::longest())?;
        ensure!(status.success(), "the agent failed ({status}){}", self.agent.tail());
        let document = fs::read(self.dir.join("overhead.json")).context("the agent left no document")?;
        Ok(serde_json::from_slice(&document)?)
    }
}
