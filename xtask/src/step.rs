//! One step of a long verb: shown while it runs, its output kept in a log.

use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bed::process::Child;
use bed::tools;
use indicatif::{ProgressBar, ProgressStyle};

/// How often the shown line is brought up to date.
const TICK: Duration = Duration::from_millis(100);

/// Runs a command as a step named `what` ("installing x"). On a terminal its last line of output is shown beside
/// the time it takes; elsewhere there is a line at its start and one at its end.
///
/// # Errors
/// When it fails: one line with what failed, the command's own reason, `remedy` and the log.
pub fn run(what: &str, log_name: &str, command: &Command, remedy: &str) -> Result<()> {
    let log = log(log_name);
    let dir = logs()?;
    let mut child = Child::start(log_name, command, &dir)?;
    let started = Instant::now();
    let line = Line::new(what);
    let status = loop {
        if let Some(status) = child.poll()? {
            break status;
        }
        line.show(&last_line(&log));
        std::thread::sleep(TICK);
    };
    line.end(&format!(
        "{what}: {} after {} s",
        if status.success() { "done" } else { "FAILED" },
        started.elapsed().as_secs()
    ));
    if !status.success() {
        bail!("{what} failed ({status}): {}; {remedy}; full output: {}", reason(&log), log.display());
    }
    Ok(())
}

/// Where the output of the step of that log name is.
pub fn log(log_name: &str) -> PathBuf {
    folder().join(format!("{log_name}.log"))
}

fn folder() -> PathBuf {
    tools::tools().join("log")
}

fn logs() -> Result<PathBuf> {
    let dir = folder();
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

/// What is shown of the running step.
struct Line {
    bar: Option<ProgressBar>,
}

impl Line {
    fn new(what: &str) -> Self {
        if !std::io::stderr().is_terminal() {
            eprintln!("  {what}");
            return Self { bar: None };
        }
        let bar = ProgressBar::new_spinner().with_prefix(what.to_owned());
        // The template is constant; the default style is the fallback it asks for.
        let style = ProgressStyle::with_template("  {spinner} {prefix} {elapsed} {wide_msg:.dim}");
        Self { bar: Some(bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))) }
    }

    fn show(&self, message: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(message.to_owned());
            bar.tick();
        }
    }

    fn end(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("  {text}");
    }
}

fn last_line(log: &Path) -> String {
    lines(log).pop().unwrap_or_default()
}

/// The line of the log that most likely says why: the first error of apt, pip or cargo, else the last line.
fn reason(log: &Path) -> String {
    let lines = lines(log);
    let error = lines
        .iter()
        .find(|line| ["E: ", "ERROR: ", "error: ", "error["].iter().any(|mark| line.starts_with(mark)));
    error.or(lines.last()).cloned().unwrap_or_else(|| "it said nothing".to_owned())
}

fn lines(log: &Path) -> Vec<String> {
    let written = fs::read(log).unwrap_or_default();
    let written = String::from_utf8_lossy(&written);
    // Programs that draw progress go back with a carriage return.
    written.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}
