//! `departure`: the first segment of the message leaves the stack for the device. Here a crossing is complete
//! and is recorded.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_probe_read_kernel};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use smp_agent_abi::bucket::{self, BUCKETS, HIGHEST_NS};
use smp_agent_abi::layout::{
    CLASS_AMBIGUOUS, CLASS_DRAINED, CLASS_EXACT, CLASS_HELD, CLASS_NONE, Direction, Loss, ROLE_ACCEPTED,
    Segment, Socket, series,
};
use smp_agent_abi::pending::{BATCH, DRAIN, DRAIN_STEPS};
use smp_agent_abi::upstreams::Held;
use smp_agent_abi::word::Word as _;

use crate::lane;
use crate::maps::{Counters, LESS_ONE, SERIES, counter, socket_state};
use crate::offsets::{
    SKB_DATA, SKB_DATA_LEN, SKB_HEAD, SKB_LEN, SKB_SK, SKB_TRANSPORT_HEADER, WRITE_AFTER_DEPARTURE, field,
    probe_field,
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
    on_departure(ctx.arg(0));
    0
}

/// `net_dev_queue(skb)`: a packet goes to the device's queue; the fallback.
#[btf_tracepoint(function = "net_dev_queue")]
pub fn departure_queue(ctx: BtfTracePointContext) -> i32 {
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
    let counters = Counters::of(socket.proxy_slot)?;
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
    let (Some(lane), Some(counters)) = (lane::at(together.lane), Counters::of(together.proxy_slot)) else {
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
        add_crossing(together.proxy_slot, direction, stamps);
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
    add_crossing(proxy_slot, direction, [arrival_ns, read_ns, write_ns, departure_ns]);
}

/// The direction of what is written to a socket.
#[inline(always)]
fn socket_direction(socket: &Socket) -> Direction {
    if socket.role == ROLE_ACCEPTED { Direction::Response } else { Direction::Request }
}

/// Counts the segments between the four stamps.
#[inline(always)]
fn add_crossing(
    proxy_slot: u32,
    direction: Direction,
    [arrival_ns, read_ns, write_ns, departure_ns]: [u64; 4],
) {
    let add = |segment, from_ns: u64, to_ns: u64| {
        add_value(series(proxy_slot, direction, segment), to_ns.saturating_sub(from_ns));
    };
    add(Segment::Hop, arrival_ns, departure_ns);
    add(Segment::Queue, arrival_ns, read_ns);
    add(Segment::Proxy, read_ns, write_ns);
    if !comes_before_write() {
        add(Segment::Egress, write_ns, departure_ns);
    }
}

/// A function of its own: see `write.rs`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn add_value(series: u32, value_ns: u64) -> u32 {
    let Some(series) = SERIES.get_ptr_mut(series) else { return 0 };
    let index = bucket::index(value_ns);
    if index >= BUCKETS {
        return 0;
    }
    // SAFETY: fields of a map value, the index within the array.
    let (count, sum_ns, max_ns, min_inverted_ns, clamped) = unsafe {
        (
            (&raw mut (*series).counts).cast::<u64>().add(index),
            &raw mut (*series).sum_ns,
            &raw mut (*series).max_ns,
            &raw mut (*series).min_inverted_ns,
            &raw mut (*series).clamped,
        )
    };
    Atomic::at(count).add(1);
    Atomic::at(sum_ns).add(value_ns);
    Atomic::at(max_ns).raise(value_ns);
    Atomic::at(min_inverted_ns).raise(!value_ns);
    if value_ns > HIGHEST_NS {
        Atomic::at(clamped).add(1);
    }
    0
}
