//! All maps. The sizes here are the least; user space sets the real ones at load.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf, Stack};
use smp_agent_abi::lane::{self, Recent};
use smp_agent_abi::layout::{
    Cost, Destination, Direction, Extent, LOSSES, Loss, Running, SERIES_PER_PROXY, Series, Share, Socket,
    Tally, TaskTimes, tally_place,
};
use smp_agent_abi::names::{HINTS, hint_place};
use smp_agent_abi::word::Word as _;

use crate::offsets::PREEMPTIBLE;
use crate::word::Atomic;

/// What one thread has read, as it lies in `LANES`.
pub type Lane = lane::Lane<Atomic>;

/// What speaks for the threads of a proxy handing work to each other, by slot.
#[repr(C)]
pub struct Moves {
    /// Sockets that were seen with another thread.
    pub sockets: u64,
    /// Requests that were neither written on nor answered from upstream by their own thread, while another wrote one.
    pub work: u64,
    /// When a request was last written that its thread had not read, ns.
    pub unread_ns: u64,
}

/// State of each proxy socket; it goes when the socket goes.
#[btf_map]
pub static SOCKETS: SkStorage<Socket> = SkStorage::new();
#[map]
pub static SERIES: Array<Series> = Array::with_max_entries(SERIES_PER_PROXY as u32, 0);
#[map]
pub static EXTENTS: PerCpuArray<Extent> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static TALLIES: PerCpuArray<Tally> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static COSTS: PerCpuArray<Cost> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static RUNNING: PerCpuArray<Running> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static TASKS: LruHashMap<u32, TaskTimes> = LruHashMap::with_max_entries(1, 0);
#[map]
pub static PROXIES: HashMap<u32, u32> = HashMap::with_max_entries(1, 0);
#[map]
pub static PROXY_HINTS: Array<u32> = Array::with_max_entries(HINTS, 0);
#[map]
pub static LISTENERS: HashMap<u64, u32> = HashMap::with_max_entries(1, 0);
#[map]
pub static THREADS: HashMap<u32, u32> = HashMap::with_max_entries(1, 0);
#[map]
pub static MOVES: Array<Moves> = Array::with_max_entries(1, 0);
#[map]
pub static RECENT: HashMap<u32, Recent> = HashMap::with_max_entries(1, 0);
#[map]
pub static LANES: Array<Lane> = Array::with_max_entries(1, 0);
#[map]
pub static HANDSHAKES: LruHashMap<Destination, u32> = LruHashMap::with_max_entries(1, 0);
#[map]
pub static FREE_PLACES: Stack<u32> = Stack::with_max_entries(1, 0);
#[map]
pub static FREE_SHARED: Stack<u32> = Stack::with_max_entries(1, 0);
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(64 * 1024, 0);

/// `BPF_SK_STORAGE_GET_F_CREATE` of the kernel's uapi/linux/bpf.h.
const CREATE: u64 = 1;

/// The state of a socket, if it has one.
#[inline(always)]
pub fn socket_state<'a>(sk: *const c_void) -> Option<&'a mut Socket> {
    storage(sk, 0)
}

/// The state of a socket that gets one of zeros if it has none. `None` if the kernel has no memory for it.
#[inline(always)]
pub fn socket_state_or_new<'a>(sk: *const c_void) -> Option<&'a mut Socket> {
    storage(sk, CREATE)
}

#[inline(always)]
fn storage<'a>(sk: *const c_void, flags: u64) -> Option<&'a mut Socket> {
    let map = ptr::addr_of!(SOCKETS).cast_mut().cast();
    // SAFETY: `sk` is a socket as the verifier knows it; it refuses the program otherwise.
    let state = unsafe { bpf_sk_storage_get(map, sk.cast_mut().cast(), ptr::null_mut(), flags) };
    // SAFETY: null, or a value of the map's type. Programs on other CPUs may change it at the same time; all
    // of its fields are words of which any value is valid.
    unsafe { state.cast::<Socket>().as_mut() }
}

/// False if a process is no proxy, which most are not. Cheaper than a look into `PROXIES`, or for a socket's state.
#[inline(always)]
pub fn may_be_proxy(tgid: u32) -> bool {
    PROXY_HINTS.get(hint_place(tgid)).is_some_and(|&hint| hint != 0)
}

/// The proxy that a process is, by its slot.
#[inline(always)]
pub fn proxy_of(tgid: u32) -> Option<u32> {
    if !may_be_proxy(tgid) {
        return None;
    }
    // SAFETY: the value is copied at once.
    unsafe { PROXIES.get(&tgid) }.copied()
}

/// This CPU's counters of a proxy, of one share.
pub struct Counters {
    tally: *mut Tally,
    share: Share,
    /// Whether nothing else counts in this share on this CPU before the program ends.
    alone: bool,
}

impl Counters {
    /// Those of the programs of receive and send calls. One runs at a time on a CPU, as long as a call is not preempted in
    /// it.
    #[inline(always)]
    pub fn of_call(slot: u32) -> Option<Self> {
        Self::of(slot, Share::Calls, PREEMPTIBLE.load() == 0)
    }

    /// Those of the program of packets that leave: softirqs are off there, and what else counts in this share on the CPU does so
    /// in softirqs, or in a process by atomic instructions.
    #[inline(always)]
    pub fn of_departure(slot: u32) -> Option<Self> {
        Self::of(slot, Share::Beside, PREEMPTIBLE.load() == 0)
    }

    /// Those of all other programs.
    #[inline(always)]
    pub fn beside(slot: u32) -> Option<Self> {
        Self::of(slot, Share::Beside, false)
    }

    #[inline(always)]
    fn of(slot: u32, share: Share, alone: bool) -> Option<Self> {
        TALLIES.get_ptr_mut(tally_place(slot, share)).map(|tally| Self { tally, share, alone })
    }

    /// Whose they are.
    #[inline(always)]
    pub const fn share(&self) -> (Share, bool) {
        (self.share, self.alone)
    }

    /// Adds to one of them.
    #[inline(always)]
    pub fn add(&self, counter: fn(*mut Tally) -> *mut u64, amount: u64) {
        add(counter(self.tally), amount, self.alone);
    }

    /// So many bytes read, of messages that go this way.
    #[inline(always)]
    pub fn add_read(&self, direction: Direction, bytes: u64) {
        // SAFETY: a direction is below 2.
        let read = unsafe { (&raw mut (*self.tally).read_bytes).cast::<u64>().add(direction as usize) };
        add(read, bytes, self.alone);
    }

    /// So many bytes written, of messages that go this way.
    #[inline(always)]
    pub fn add_written(&self, direction: Direction, bytes: u64) {
        // SAFETY: as above.
        let written = unsafe { (&raw mut (*self.tally).written_bytes).cast::<u64>().add(direction as usize) };
        add(written, bytes, self.alone);
    }

    /// One message lost.
    #[inline(always)]
    pub fn lose(&self, loss: Loss) {
        self.lose_many(loss, 1);
    }

    /// So many messages lost.
    #[inline(always)]
    pub fn lose_many(&self, loss: Loss, count: u64) {
        const { assert!(LOSSES == 6) };
        // SAFETY: `loss` is below LOSSES.
        let lost = unsafe { (&raw mut (*self.tally).lost).cast::<u64>().add(loss as usize) };
        add(lost, count, self.alone);
    }
}

/// Adds to a field of a map value. An atomic instruction waits until all stores before it are done, those too that miss the
/// caches; so none where nothing can come between.
#[inline(always)]
pub fn add(field: *mut u64, amount: u64, alone: bool) {
    let word = Atomic::at(field);
    if alone {
        word.store(word.load().wrapping_add(amount));
    } else {
        word.add(amount);
    }
}

/// Names a counter of [`Tally`] for [`Counters::add`].
macro_rules! counter {
    ($name:ident) => {
        // SAFETY: a field of a map value.
        |tally| unsafe { &raw mut (*tally).$name }
    };
}
pub(crate) use counter;

/// `u64::MAX`: adding it takes one away.
pub const LESS_ONE: u64 = u64::MAX;
