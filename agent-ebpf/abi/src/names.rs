//! Names of maps and globals as they stand in the object file. Programs are named by their functions.

/// `Array<Series>`: [`series_place`](crate::layout::series_place).
pub const SERIES: &str = "SERIES";
/// `PerCpuArray<Extent>`: [`extent_place`](crate::layout::extent_place).
pub const EXTENTS: &str = "EXTENTS";
/// `PerCpuArray<Tally>`: [`tally_place`](crate::layout::tally_place).
pub const TALLIES: &str = "TALLIES";
/// `HashMap<u32 tgid, u32 slot>`: the processes that are proxies.
pub const PROXIES: &str = "PROXIES";
/// `Array<u32>` of [`HINTS`]: not 0 if a process that shares this place ([`hint_place`]) is or was in `PROXIES`.
pub const PROXY_HINTS: &str = "PROXY_HINTS";
/// `HashMap<u64, u32 slot>`: where proxies listen; the key is [`listener_key`].
pub const LISTENERS: &str = "LISTENERS";
/// `HashMap<u32 owner, u32 place>`: proxy threads, and processes whose threads share one, that have a lane.
pub const THREADS: &str = "THREADS";
/// `Array<Lane>`: what each thread has read and not yet written on.
pub const LANES: &str = "LANES";
/// `Array<u64>` by proxy slot: how often work was seen to move between its threads.
pub const MOVES: &str = "MOVES";
/// `HashMap<u32 tid, Recent>`: threads that share a lane.
pub const RECENT: &str = "RECENT";
/// `Stack<u32>`: places in `LANES` that are free for a thread.
pub const FREE_PLACES: &str = "FREE_PLACES";
/// `Stack<u32>`: those that are free for a process whose threads share one, also where threads have taken all of theirs.
pub const FREE_SHARED: &str = "FREE_SHARED";
/// `LruHashMap<Destination, u32>`: [`Knowledge`](crate::opening::Knowledge) of how connections to a destination begin.
pub const HANDSHAKES: &str = "HANDSHAKES";
/// `PerCpuArray<Cost>` by proxy slot, then all other tasks, then idle.
pub const COSTS: &str = "COSTS";
/// `PerCpuArray<Running>` of one entry: what the CPU is doing.
pub const RUNNING: &str = "RUNNING";
/// `LruHashMap<u32 tid, TaskTimes>`: what the kernel had counted for threads of proxies when they last ran.
pub const TASKS: &str = "TASKS";
/// `RingBuf` of [`ProcessEvent`](crate::layout::ProcessEvent).
pub const EVENTS: &str = "EVENTS";

/// Places of `PROXY_HINTS`.
pub const HINTS: u32 = 4096;

/// Place of a process in `PROXY_HINTS`.
#[inline(always)]
pub const fn hint_place(tgid: u32) -> u32 {
    tgid % HINTS
}

/// Key of `LISTENERS`: a port in a network namespace (inode number as in `/proc/PID/ns/net`).
#[inline(always)]
pub const fn listener_key(netns_inode: u32, port: u16) -> u64 {
    (netns_inode as u64) << 16 | port as u64
}
