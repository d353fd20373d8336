//! What became of each program, and why.

use std::io;

use aya::programs::ProgramError;
use rustix::io::Errno;

use super::programs::Hook;

/// What became of one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Loaded and attached to its hook.
    Attached,
    /// Not needed: a better hook for the same stamp is attached.
    NotNeeded,
    /// This kernel lacks what it needs; the reason says what.
    Unsupported(String),
    /// It should have worked and did not; the reason is the kernel's.
    Failed(String),
    /// It worked and was detached, as measuring cost too much.
    GivenUp(String),
}

impl Verdict {
    /// True if it runs.
    pub fn is_attached(&self) -> bool {
        *self == Self::Attached
    }

    /// The word for it in every output.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::NotNeeded => "not needed",
            Self::Unsupported(_) => "unsupported",
            Self::Failed(_) => "failed",
            Self::GivenUp(_) => "given up",
        }
    }

    /// Why, if there is more to say.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Attached | Self::NotNeeded => None,
            Self::Unsupported(reason) | Self::Failed(reason) | Self::GivenUp(reason) => Some(reason),
        }
    }

    /// Of a program that the kernel refused.
    pub(super) fn of(hook: Hook, error: &ProgramError) -> Self {
        // The verifier's own refusal is another number, EACCES.
        let refused = |error: &io::Error| error.raw_os_error() == Some(Errno::PERM.raw_os_error());
        match (hook, error) {
            (Hook::Entry(_), ProgramError::LoadError { io_error, .. }) if refused(io_error) => {
                Self::Unsupported("this kernel refuses fentry programs (EPERM), as under lockdown".to_owned())
            }
            _ => Self::Failed(chain(error)),
        }
    }
}

/// An error with all its causes on one line. Of a verifier log that is its first line and what it refused,
/// the last one before its statistics.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    tracing::debug!("{text}");
    let statistics = ["verification time", "stack depth", "processed ", ": "];
    let told = |line: &&str| !line.is_empty() && !statistics.iter().any(|start| line.starts_with(start));
    let mut lines = text.lines().map(str::trim).filter(told);
    match (lines.next(), lines.next_back()) {
        (Some(first), Some(refused)) => format!("{first} ... {refused}"),
        (Some(first), None) => first.to_owned(),
        (None, _) => text,
    }
}
