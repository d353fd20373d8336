//! The only place that asks what time it is.

use jiff::Timestamp;

use rustix::time::{ClockId, clock_gettime};

/// An instant, as people and as the kernel's programs tell it.
#[derive(Clone, Copy, Debug)]
pub struct Instant {
    /// UTC.
    pub at: Timestamp,
    /// The kernel's `CLOCK_MONOTONIC`, which `bpf_ktime_get_ns` reads, ns.
    pub monotonic_ns: u64,
}

impl Instant {
    /// This one.
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::Monotonic);
        let monotonic_ns = time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs();
        Self { at: now(), monotonic_ns }
    }
}

/// Now, UTC.
pub fn now() -> Timestamp {
    Timestamp::now()
}
