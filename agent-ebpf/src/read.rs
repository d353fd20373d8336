//! `read`: the proxy's receive call returns the bytes of a message.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use smp_agent_abi::layout::{CLASS_NONE, Loss, ROLE_ACCEPTED, Socket, TURN_NONE, TURN_READING};

use crate::lane;
use crate::maps::{LESS_ONE, counter};
use crate::offsets::{TCP_COPIED_SEQ, TCP_RCV_NXT, field};
use crate::socket::{Used, in_use, tcp};

/// `sock_recv_length(sk, ret, flags)`: a receive call returns; `ret` is 0 when it only peeked.
#[btf_tracepoint(function = "sock_recv_length")]
pub fn read(ctx: BtfTracePointContext) -> i32 {
    if ctx.arg::<i32>(1) > 0 {
        on_read(ctx.arg(0));
    }
    0
}

#[inline(always)]
fn on_read(sk: *const c_void) -> Option<()> {
    let used = in_use(sk)?;
    // SAFETY: no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let arrival_ns = take_arrival(tcp(sk)?, used.socket);
    // Only the first read after a write starts a message: the rest are its continuation.
    if used.socket.turn == TURN_READING {
        return None;
    }
    used.socket.turn = TURN_READING;
    used.socket.first_departure_ns = 0;
    used.counters.add(counter!(seen), 1);
    if used.socket.departing_class != CLASS_NONE {
        // An answer to what was never seen to leave.
        used.socket.departing_class = CLASS_NONE;
        used.counters.add(counter!(departing), LESS_ONE);
        used.counters.lose(Loss::NoDeparture);
    }
    end_superseded(&used);
    let Some(current) = lane::current(used.socket, used.tid) else {
        used.socket.pending_tag = 0;
        used.counters.lose(Loss::ThreadsFull);
        return None;
    };
    let socket = &used.socket;
    let tag = if socket.role == ROLE_ACCEPTED {
        current.lane.push_request(arrival_ns, now_ns, u64::from(socket.id), socket.upstream)
    } else {
        current.lane.push_response(arrival_ns, now_ns, socket.upstream, u64::from(socket.downstream))
    };
    match tag {
        Some(tag) => {
            used.socket.pending_tag = tag;
            used.socket.pending_lane = current.place;
            used.counters.add(counter!(pending), 1);
        }
        None => {
            used.socket.pending_tag = 0;
            used.counters.lose(Loss::PendingFull);
        }
    }
    Some(())
}

/// A message that still waits when the next one is read from its socket went nowhere: a response to the
/// proxy's own request, say. Left where it is it would stand before all later ones.
#[inline(always)]
fn end_superseded(used: &Used<'_>) {
    if used.socket.pending_tag == 0 {
        return;
    }
    let Some(lane) = lane::at(used.socket.pending_lane) else { return };
    if lane.pending[used.inbound() as usize].end(used.socket.pending_tag) {
        used.counters.add(counter!(pending), LESS_ONE);
        used.counters.add(counter!(unmatched), 1);
    }
}

/// When the bytes just read arrived; what is left unread keeps a stamp of its own.
#[inline(always)]
fn take_arrival(tcp: *const c_void, socket: &mut Socket) -> u64 {
    let arrival_ns = socket.arrival_ns;
    // Cleared before the look at the receive queue: bytes that come after that look then leave their stamp.
    // SAFETY: a field of a map value; volatile keeps the order.
    unsafe { (&raw mut socket.arrival_ns).write_volatile(0) };
    // SAFETY: `tcp` is what the verifier knows as a `tcp_sock`.
    let (copied, received) = unsafe { (field::<u32>(tcp, &TCP_COPIED_SEQ), field::<u32>(tcp, &TCP_RCV_NXT)) };
    if copied != received && socket.arrival_ns == 0 {
        socket.arrival_ns = socket.ready_ns;
    }
    if arrival_ns == 0 && socket.turn == TURN_NONE { socket.established_ns } else { arrival_ns }
}
