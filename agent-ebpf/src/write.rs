//! `write`: the proxy hands the first bytes of the forwarded message to the outgoing socket. Here a message
//! finds its cause.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use smp_agent_abi::layout::{CLASS_AMBIGUOUS, CLASS_EXACT, CLASS_NONE, Loss, ROLE_ACCEPTED, TURN_WRITING};
use smp_agent_abi::pending::Found;

use crate::departure;
use crate::maps::{LESS_ONE, counter};
use crate::offsets::{TCP_WRITE_SEQ, field};
use crate::socket::{Used, in_use, tcp};
use crate::thread;

/// `tcp_sendmsg_locked(sk, msg, skb, size_goal)`: a send call is about to queue bytes. Linux 6.16 and later.
#[btf_tracepoint(function = "tcp_sendmsg_locked")]
pub fn write(ctx: BtfTracePointContext) -> i32 {
    on_write(ctx.arg(0));
    0
}

/// `sock_send_length(sk, ret, flags)`: a send call returns; the fallback where `tcp_sendmsg_locked` is missing.
/// The first segment has usually left by then, so the departure stands for the write too.
#[btf_tracepoint(function = "sock_send_length")]
pub fn write_return(ctx: BtfTracePointContext) -> i32 {
    if ctx.arg::<i32>(1) > 0 {
        on_write(ctx.arg(0));
    }
    0
}

#[inline(always)]
fn on_write(sk: *const c_void) -> Option<()> {
    let used = in_use(sk)?;
    // Only the first write after a read starts a message: the rest are its continuation.
    if used.socket.turn == TURN_WRITING {
        return None;
    }
    used.socket.turn = TURN_WRITING;
    if own_message_ends(&used) {
        return None;
    }
    // SAFETY: no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let outbound = used.outbound();
    let claim = match thread::place(used.socket, used.tid) {
        Some(place) => Some(thread::at(place)?.pending[outbound as usize].claim(now_ns)),
        None => None,
    };
    if let Some(claim) = claim
        && claim.expired > 0
    {
        used.counters.add(counter!(pending), claim.expired.wrapping_neg());
        used.counters.add(counter!(unmatched), claim.expired);
    }
    let (arrival_ns, read_ns, alone) = match claim.map(|claim| claim.found) {
        Some(Found::Message { arrival_ns, read_ns, alone }) => (arrival_ns, read_ns, alone),
        nothing => {
            used.counters.add(counter!(seen), 1);
            match nothing {
                Some(Found::TooFar) => used.counters.lose(Loss::SearchLimit),
                Some(_) => used.counters.add(counter!(unmatched), 1),
                None => used.counters.lose(Loss::ThreadsFull),
            }
            return None;
        }
    };
    used.counters.add(counter!(pending), LESS_ONE);
    used.counters.add(counter!(departing), 1);
    let socket = used.socket;
    socket.departing_arrival_ns = arrival_ns;
    socket.departing_read_ns = read_ns;
    socket.departing_write_ns = now_ns;
    // SAFETY: `tcp` is what the verifier knows as a `tcp_sock`.
    socket.departing_seq = unsafe { field(tcp(sk)?, &TCP_WRITE_SEQ) };
    socket.departing_class = if alone { CLASS_EXACT } else { CLASS_AMBIGUOUS };
    if departure::comes_before_write() && socket.first_departure_ns != 0 {
        let departure_ns = socket.first_departure_ns;
        socket.departing_write_ns = departure_ns;
        departure::record(socket, &used.counters, departure_ns);
    }
    Some(())
}

/// A write on a socket ends the message last read from it, if that still waits. On a downstream socket the
/// proxy answers by itself: true. On an upstream socket the response went nowhere and a new request begins.
#[inline(always)]
fn own_message_ends(used: &Used<'_>) -> bool {
    if used.socket.pending_tag == 0 {
        return false;
    }
    let Some(thread) = thread::at(used.socket.pending_thread) else { return false };
    if !thread.pending[used.inbound() as usize].end(used.socket.pending_tag) {
        return false;
    }
    used.counters.add(counter!(pending), LESS_ONE);
    if used.socket.role == ROLE_ACCEPTED {
        used.counters.add(counter!(local), 1);
        return true;
    }
    used.counters.add(counter!(unmatched), 1);
    false
}

/// `CLASS_NONE` is what a zeroed state says.
const _: () = assert!(CLASS_NONE == 0);
