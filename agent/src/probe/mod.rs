//! The programs: loading, attaching, and what became of each.

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
}
