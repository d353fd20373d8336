//! The one kind of memory the matching works on.

/// A 64-bit word that several CPUs may change. All operations are single and relaxed: no entry is published
/// to another thread but by its tag, and an entry is ended by one compare-and-swap on it.
pub trait Word {
    /// Its value now.
    fn load(&self) -> u64;
    /// Sets it.
    fn store(&self, value: u64);
    /// Adds, wrapping.
    fn add(&self, value: u64);
    /// Adds, wrapping; returns what it was.
    fn fetch_add(&self, value: u64) -> u64;
    /// Sets it to `new` if it is `old`; says whether it did.
    fn swap_if(&self, old: u64, new: u64) -> bool;
}
