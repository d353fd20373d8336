//! `write`: the proxy hands the first bytes of the forwarded message to the outgoing socket. Here a message
//! finds its cause.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_ebpf::macros::{btf_tracepoint, fentry};
use aya_ebpf::programs::{BtfTracePointContext, FEntryContext};
use smp_agent_abi::layout::{
    CLASS_AMBIGUOUS, CLASS_EXACT, CLASS_NONE, Direction, Loss, ROLE_ACCEPTED, TURN_WRITING,
};
use smp_agent_abi::pending::Found;

use crate::departure;
use crate::maps::{LESS_ONE, counter};
use crate::offsets::{SOCK_STATE, TCP_WRITE_SEQ, field};
use crate::socket::{Used, in_use, tcp};
use crate::thread;

// include/net/tcp_states.h
const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;

/// `tcp_sendmsg_locked(sk, msg, skb, size_goal)`: a send call is about to queue bytes. Linux 6.16 and later.
#[btf_tracepoint(function = "tcp_sendmsg_locked")]
pub fn write(ctx: BtfTracePointContext) -> i32 {
    on_write(ctx.arg(0));
    0
}

/// Entry of `tcp_sendmsg_locked(sk, msg, size)`: the same for kernels without its tracepoint.
#[fentry(function = "tcp_sendmsg_locked")]
pub fn write_entry(ctx: FEntryContext) -> i32 {
    on_entry(ctx.arg(0), ctx.arg(2));
    0
}

/// Entry of `do_tcp_sendpages(sk, page, offset, size, flags)`: before Linux 6.5 the way of `sendfile` and `splice` to
/// a socket, beside `tcp_sendmsg_locked`.
#[fentry(function = "do_tcp_sendpages")]
pub fn write_pages(ctx: FEntryContext) -> i32 {
    on_entry(ctx.arg(0), ctx.arg(3));
    0
}

/// `sock_send_length(sk, ret, flags)`: a send call returns; the fallback where its beginning cannot be had.
/// The first segment has usually left by then, so the departure stands for the write too.
#[btf_tracepoint(function = "sock_send_length")]
pub fn write_return(ctx: BtfTracePointContext) -> i32 {
    if ctx.arg::<i32>(1) > 0 {
        on_write(ctx.arg(0));
    }
    0
}

/// The tracepoint comes behind these checks of the kernel: a call on a connection that is not open yet, or not any
/// more, queues nothing.
#[inline(always)]
fn on_entry(sk: *const c_void, size: usize) -> Option<()> {
    // SAFETY: `sk` is a program argument.
    let open = matches!(unsafe { field::<u8>(sk, &SOCK_STATE) }, ESTABLISHED | CLOSE_WAIT);
    if open && size > 0 { on_write(sk) } else { None }
}

#[inline(always)]
fn on_write(sk: *const c_void) -> Option<()> {
    let used = in_use(sk)?;
    // Only the first write after a read starts a message: the rest are its continuation.
    if used.socket.turn == TURN_WRITING {
        return None;
    }
    used.socket.turn = TURN_WRITING;
    if is_local_reply(&used) {
        return None;
    }
    // SAFETY: no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let outbound = used.outbound();
    let claim = match thread::place(used.socket, used.tid) {
        Some(place) => {
            // SAFETY: no precondition.
            let random = unsafe { bpf_get_prandom_u32() };
            let claim = if used.socket.role == ROLE_ACCEPTED {
                thread::at(place)?.claim(outbound as usize, now_ns, random, u64::from(used.socket.id))
            } else {
                let claim = thread::at(place)?.claim(outbound as usize, now_ns, random, 0);
                used.socket.downstream = claim.downstream as u32;
                claim
            };
            Some(claim)
        }
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

/// True if this write, on a downstream socket, is the proxy's own answer and not a response from upstream: the
/// request last read here still waits, and no response was read by its thread since. The request ends then.
///
/// A response that was read since may be the answer: where several requests wait, the order-preserving choice
/// may have given this one's place to another.
#[inline(always)]
fn is_local_reply(used: &Used<'_>) -> bool {
    let tag = used.socket.pending_tag;
    if used.socket.role != ROLE_ACCEPTED || tag == 0 {
        return false;
    }
    let Some(thread) = thread::at(used.socket.pending_thread) else { return false };
    let requests = &thread.pending[Direction::Request as usize];
    let responses = &thread.pending[Direction::Response as usize];
    let Some(read_ns) = requests.read_ns(tag) else { return false };
    if responses.newest_read_ns() > read_ns || !requests.end(tag) {
        return false;
    }
    used.counters.add(counter!(pending), LESS_ONE);
    used.counters.add(counter!(local), 1);
    true
}

/// `CLASS_NONE` is what a zeroed state says.
const _: () = assert!(CLASS_NONE == 0);
