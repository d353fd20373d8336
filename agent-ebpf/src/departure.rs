//! `departure`: the first segment of the message leaves the stack for the device. Here a crossing is complete
//! and is recorded.

use core::ffi::c_void;
use core::hint::black_box;
use core::ptr;

use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_probe_read_kernel};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use smp_agent_abi::bucket::{self, HIGHEST_NS, PLACES};
use smp_agent_abi::layout::{
    CLASS_AMBIGUOUS, CLASS_DRAINED, CLASS_EXACT, CLASS_HELD, CLASS_NONE, Direction, Loss, ROLE_ACCEPTED,
    Segment, Share, Socket, extent_place, series, series_place,
};
use smp_agent_abi::pending::{BATCH, DRAIN, DRAIN_STEPS};
use smp_agent_abi::upstreams::Held;
use smp_agent_abi::word::Word as _;

use crate::lane;
use crate::maps::{Counters, EXTENTS, LESS_ONE, SERIES, add, counter, socket_state};
use crate::offsets::{
    SKB_DATA, SKB_DATA_LEN, SKB_HEAD, SKB_LEN, SKB_SK, SKB_TRANSPORT_HEADER, WRITE_AFTER_DEPARTURE, field,
    is_empty, probe_field,
};
use crate::word::Atomic;

/// What awaits its departure together, while it is recorded.
#[repr(C)]
struct Together {
    /// The next position in its lane to look at, and that behind the last.
    position: u64,
    end: u64,
    /// What its messages are marked with.
    mark: u64,
    /// How many of them were not come to yet.
    left: u64,
    write_ns: u64,
    departure_ns: u64,
    lane: u32,
    proxy_slot: u32,
    /// 1 if it was written to an accepted connection.
    response: u64,
}

/// `net_dev_start_xmit(skb, dev)`: a packet goes to the device, after its queue.
#[btf_tracepoint(function = "net_dev_start_xmit")]
pub fn departure(ctx: BtfTracePointContext) -> i32 {
    if is_empty() {
        return 0;
    }
    on_departure(ctx.arg(0));
    0
}

/// `net_dev_queue(skb)`: a packet goes to the device's queue; the fallback.
#[btf_tracepoint(function = "net_dev_queue")]
pub fn departure_queue(ctx: BtfTracePointContext) -> i32 {
    if is_empty() {
        return 0;
    }
    on_departure(ctx.arg(0));
    0
}

/// True where the write hook runs after the send.
#[inline(always)]
pub fn comes_before_write() -> bool {
    WRITE_AFTER_DEPARTURE.load() != 0
}

#[inline(always)]
fn on_departure(skb: *const c_void) -> Option<()> {
    // TCP keeps payload out of the linear part: nothing there is an acknowledgement.
    // SAFETY: `skb` is a program argument.
    if unsafe { field::<u32>(skb, &SKB_DATA_LEN) } == 0 {
        return None;
    }
    // SAFETY: as above.
    let sk: *const c_void = unsafe { field(skb, &SKB_SK) };
    if sk.is_null() {
        return None;
    }
    let socket = socket_state(sk)?;
    if socket.departing_class == CLASS_NONE {
        if comes_before_write() && socket.first_departure_ns == 0 {
            // SAFETY: no precondition.
            socket.first_departure_ns = unsafe { bpf_ktime_get_ns() };
        }
        return None;
    }
    // Before the look into the packet, which takes a microsecond where its headers have left the caches.
    // SAFETY: no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    if !carries(skb, socket.departing_seq)? {
        return None;
    }
    let counters = Counters::of_departure(socket.proxy_slot)?;
    if socket.departing_class == CLASS_DRAINED {
        return record_drained(socket, &counters, now_ns);
    }
    if socket.departing_class == CLASS_HELD {
        socket.departing_class = CLASS_NONE;
        lane::at(socket.lane)?.upstreams.depart(socket.upstream, now_ns);
        return Some(());
    }
    record(socket, &counters, now_ns);
    Some(())
}

/// Completes the crossings that wait together on `socket`.
#[inline(always)]
fn record_drained(socket: &mut Socket, counters: &Counters, departure_ns: u64) -> Option<()> {
    socket.departing_class = CLASS_NONE;
    let mut together = Together {
        position: socket.drained_start,
        end: socket.drained_end,
        mark: u64::from(socket.id) | BATCH,
        left: u64::from(socket.drained_count),
        write_ns: socket.departing_write_ns,
        departure_ns,
        lane: socket.lane,
        proxy_slot: socket.proxy_slot,
        response: u64::from(socket.role == ROLE_ACCEPTED),
    };
    // Writes may have joined before the first one left.
    for _ in 0..DRAIN_STEPS {
        if together.position < together.end {
            record_some(&mut together);
        }
    }
    counters.add(counter!(departing), together.left.wrapping_neg());
    counters.lose_many(Loss::NoDeparture, together.left);
    Some(())
}

/// Completes up to [`DRAIN`] of the crossings that wait together. A function of its own: see `write.rs`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn record_some(together: *mut Together) -> u32 {
    // SAFETY: null, or of this type: the verifier checks the callers.
    let Some(together) = (unsafe { together.as_mut() }) else { return 0 };
    let (Some(lane), Some(counters)) = (lane::at(together.lane), Counters::of_departure(together.proxy_slot))
    else {
        return 0;
    };
    let direction = if together.response == 0 { Direction::Request } else { Direction::Response };
    let set = &lane.pending[together.response as usize & 1];
    for _ in 0..DRAIN {
        if together.position >= together.end {
            break;
        }
        let found = set.drained(together.position, together.mark);
        together.position += 1;
        let Some((arrival_ns, read_ns)) = found else { continue };
        counters.add(counter!(departing), LESS_ONE);
        together.left = set.blur(together.left.wrapping_sub(1));
        if arrival_ns == 0 {
            counters.lose(Loss::NoArrival);
            continue;
        }
        counters.add(counter!(ambiguous), 1);
        let stamps = [arrival_ns, read_ns, together.write_ns, together.departure_ns];
        add_crossing(together.proxy_slot, direction, &counters, stamps);
    }
    0
}

/// Gives up on what awaits its departure on `socket`: it will not be seen.
#[inline(always)]
pub fn give_up(socket: &mut Socket, counters: &Counters) {
    let count = match socket.departing_class {
        CLASS_NONE => return,
        CLASS_DRAINED => u64::from(socket.drained_count),
        CLASS_HELD => {
            let held = lane::at(socket.lane).and_then(|lane| lane.upstreams.release(socket.upstream));
            u64::from(held.is_some())
        }
        _ => 1,
    };
    socket.departing_class = CLASS_NONE;
    counters.add(counter!(departing), count.wrapping_neg());
    counters.lose_many(Loss::NoDeparture, count);
}

/// True if the packet holds byte `seq` or a later one: it may begin with bytes of an earlier message.
#[inline(always)]
fn carries(skb: *const c_void, seq: u32) -> Option<bool> {
    // The two pointers are read as numbers: the verifier forbids arithmetic on what it knows as pointers.
    // SAFETY: `skb` is a program argument.
    let (head, data, len, transport) = unsafe {
        (
            probe_field::<usize>(skb, &SKB_HEAD),
            probe_field::<usize>(skb, &SKB_DATA),
            field::<u32>(skb, &SKB_LEN),
            field::<u16>(skb, &SKB_TRANSPORT_HEADER),
        )
    };
    let header = head + transport as usize;
    // RFC 9293 3.1: sequence number in bytes 4 to 7, data offset in words in the high half of byte 12.
    // SAFETY: the helper checks the address.
    let words = unsafe { bpf_probe_read_kernel(ptr::with_exposed_provenance::<[u32; 4]>(header)) }.ok()?;
    let header_bytes = (u32::from_be(words[3]) >> 28) * 4;
    let payload_bytes = (data + len as usize).wrapping_sub(header) as u32 - header_bytes;
    let end = u32::from_be(words[1]).wrapping_add(payload_bytes);
    Some(end.wrapping_sub(seq) as i32 > 0)
}

/// Completes the crossing that waits on `socket`.
#[inline(always)]
pub fn record(socket: &mut Socket, counters: &Counters, departure_ns: u64) {
    let held = Held {
        arrival_ns: socket.departing_arrival_ns,
        read_ns: socket.departing_read_ns,
        write_ns: socket.departing_write_ns,
        departure_ns,
        class: socket.departing_class,
    };
    socket.departing_class = CLASS_NONE;
    record_one(socket.proxy_slot, socket_direction(socket), counters, held);
}

/// Counts one crossing that was awaiting its departure.
#[inline(always)]
pub fn record_one(proxy_slot: u32, direction: Direction, counters: &Counters, crossing: Held) {
    let Held { arrival_ns, read_ns, write_ns, departure_ns, class } = crossing;
    counters.add(counter!(departing), LESS_ONE);
    if departure_ns == 0 {
        counters.lose(Loss::NoDeparture);
        return;
    }
    if arrival_ns == 0 {
        counters.lose(Loss::NoArrival);
        return;
    }
    match class {
        CLASS_EXACT => counters.add(counter!(exact), 1),
        CLASS_AMBIGUOUS => counters.add(counter!(ambiguous), 1),
        _ => {}
    }
    add_crossing(proxy_slot, direction, counters, [arrival_ns, read_ns, write_ns, departure_ns]);
}

/// The direction of what is written to a socket.
#[inline(always)]
fn socket_direction(socket: &Socket) -> Direction {
    if socket.role == ROLE_ACCEPTED { Direction::Response } else { Direction::Request }
}

/// Counts the segments between the four stamps.
#[inline(always)]
fn add_crossing(proxy_slot: u32, direction: Direction, counters: &Counters, stamps: [u64; 4]) {
    let [arrival_ns, read_ns, write_ns, departure_ns] = stamps;
    let segments = [
        departure_ns.saturating_sub(arrival_ns),
        read_ns.saturating_sub(arrival_ns),
        write_ns.saturating_sub(read_ns),
        departure_ns.saturating_sub(write_ns),
    ];
    let (share, alone) = counters.share();
    let first = series(direction, Segment::Hop);
    if alone {
        let extent = extent_place(proxy_slot, share, first);
        count_segments(series_place(proxy_slot, first), extent, &raw const segments);
        return;
    }
    // One by one, which takes less of the stack: this may be called from far down.
    let [hop_ns, queue_ns, proxy_ns, egress_ns] = segments;
    add_value(proxy_slot, first, hop_ns, counters.share());
    add_value(proxy_slot, first + 1, queue_ns, counters.share());
    add_value(proxy_slot, first + 2, proxy_ns, counters.share());
    if !comes_before_write() {
        add_value(proxy_slot, first + 3, egress_ns, counters.share());
    }
}

/// Counts a value in a series of a proxy, for one share of this CPU, alone there or not: [`Counters::share`].
#[inline(always)]
pub fn add_value(proxy_slot: u32, series: u32, value_ns: u64, (share, alone): (Share, bool)) {
    let extent = extent_place(proxy_slot, share, series);
    count_value(series_place(proxy_slot, series), extent, value_ns, u32::from(alone));
}

/// Counts the segments of one crossing, in the order of [`Segment`], where nothing else counts meanwhile. A function of its own: see `write.rs`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn count_segments(series: u32, extent: u32, segments: *const [u64; 4]) -> u32 {
    // SAFETY: null, or of this type: the verifier checks the callers.
    let Some(&[hop_ns, queue_ns, proxy_ns, egress_ns]) = (unsafe { segments.as_ref() }) else { return 0 };
    let (Some(hop), Some(queue), Some(proxy), Some(egress)) =
        (counts(series), counts(series + 1), counts(series + 2), counts(series + 3))
    else {
        return 0;
    };
    let (hop, queue, proxy, egress) =
        (bucket(hop, hop_ns), bucket(queue, queue_ns), bucket(proxy, proxy_ns), bucket(egress, egress_ns));
    // An atomic instruction waits for all before it: what has left the caches is fetched together, before the first.
    let _fetched = [hop.load(), queue.load(), proxy.load(), egress.load()];
    hop.add(1);
    queue.add(1);
    proxy.add(1);
    extend(extent, hop_ns, true);
    extend(extent + 1, queue_ns, true);
    extend(extent + 2, proxy_ns, true);
    // Where the write hook comes behind the departure, there is none.
    if !comes_before_write() {
        egress.add(1);
        extend(extent + 3, egress_ns, true);
    }
    0
}

/// Counts one value. A function of its own: see `write.rs`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn count_value(series: u32, extent: u32, value_ns: u64, alone: u32) -> u32 {
    if let Some(counts) = counts(series) {
        bucket(counts, value_ns).add(1);
        extend(extent, value_ns, alone != 0);
    }
    0
}

/// The counts of a series, of all CPUs: a copy for each would take 64 times the memory on a node with 64.
#[inline(always)]
fn counts(series: u32) -> Option<*mut u64> {
    // SAFETY: a field of a map value.
    SERIES.get_ptr_mut(series).map(|series| unsafe { (&raw mut (*series).counts).cast() })
}

/// That of the values like this one.
#[inline(always)]
fn bucket<'a>(counts: *mut u64, value_ns: u64) -> &'a Atomic {
    // The compiler knows that it is within the array; the verifier wants to see it.
    let index = black_box(bucket::index(value_ns)) % PLACES;
    // SAFETY: within the array.
    Atomic::at(unsafe { counts.add(index) })
}

#[inline(always)]
fn extend(extent: u32, value_ns: u64, alone: bool) {
    let Some(extent) = EXTENTS.get_ptr_mut(extent) else { return };
    // SAFETY: fields of a map value.
    let (sum_ns, max_ns, min_inverted_ns, clamped) = unsafe {
        (
            &raw mut (*extent).sum_ns,
            &raw mut (*extent).max_ns,
            &raw mut (*extent).min_inverted_ns,
            &raw mut (*extent).clamped,
        )
    };
    add(sum_ns, value_ns, alone);
    Atomic::at(max_ns).raise(value_ns);
    Atomic::at(min_inverted_ns).raise(!value_ns);
    if value_ns > HIGHEST_NS {
        add(clamped, 1, alone);
    }
}
