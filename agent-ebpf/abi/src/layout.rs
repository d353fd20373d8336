//! Layouts of what both halves read: map values and events. Fixed-width integers only, no implicit padding.

mod cost;
mod counts;
mod socket;

pub use cost::{COST_SLOTS_BESIDE, Cost, Running, TaskTimes};
pub use counts::{
    Direction, Extent, HOP_SERIES, LOSS_NAMES, LOSSES, Loss, SERIES_PER_PROXY, SHARES, Segment, Series,
    Share, Tally, WAIT_SERIES, extent_place, series, series_place, tally_place,
};
pub use socket::*;

/// Slot of no proxy: it is not known yet whose socket it is.
pub const NO_PROXY: u32 = u32::MAX;

/// A connection that a proxy holds, from kernel to user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Held {
    /// The kernel's number for the proxy's end of it.
    pub cookie: u64,
    /// Memory that the kernel has charged to that end, bytes; of TCP only.
    pub memory_bytes: u64,
    /// Slot of the proxy.
    pub proxy_slot: u32,
    /// [`HELD_TCP`], or `ROLE_*` of a connection over a Unix-domain socket, which is not measured.
    pub kind: u32,
}

/// [`Held::kind`] of a connection over TCP, whichever its role.
pub const HELD_TCP: u32 = u32::MAX;

/// What happened to a process, from kernel to user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ProcessEvent {
    /// One of the `PROCESS_*` constants.
    pub kind: u32,
    /// Process it happened to.
    pub tgid: u32,
}

/// A process runs a new program.
pub const PROCESS_EXEC: u32 = 1;
/// A tracked process made a child, which is tracked from its first instruction; `tgid` is the child.
pub const PROCESS_FORK: u32 = 2;
/// A tracked process ended.
pub const PROCESS_EXIT: u32 = 3;

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<Held>() == 24);
    assert!(offset_of!(Held, memory_bytes) == 8);
    assert!(offset_of!(Held, proxy_slot) == 16);
    assert!(offset_of!(Held, kind) == 20);
    assert!(size_of::<ProcessEvent>() == 8);
    assert!(offset_of!(ProcessEvent, tgid) == 4);
};

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "`aya::Pod` is an unsafe trait")]
mod pod {
    // SAFETY: fixed-width integers and arrays of them, `repr(C)`, no padding (asserted above).
    unsafe impl aya::Pod for super::Series {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Extent {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Tally {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Cost {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Running {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ProcessEvent {}
}
