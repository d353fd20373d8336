//! `arrival`: the kernel puts the first bytes of a message on the proxy's socket.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use smp_agent_abi::layout::{NO_PROXY, NOTED, Socket};

use crate::maps::socket_state;
use crate::offsets::{SKB_CB, TCP_RCV_NXT, field, is_empty, probe_field};
use crate::socket::{is_multiplexed, tcp};
use crate::{cost, opening};

/// `tcp_probe(sk, skb)`: a segment reaches an established connection, in softirq or, from the backlog, in a
/// system call. Bytes that come with the end of the handshake do not pass here: see `established_ns`.
#[btf_tracepoint(function = "tcp_probe")]
pub fn arrival(ctx: BtfTracePointContext) -> i32 {
    if is_empty() {
        return 0;
    }
    // SAFETY: no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let socket = socket_state(ctx.arg(0));
    cost::serve(socket.as_ref().map_or(NO_PROXY, |socket| socket.proxy_slot), now_ns);
    if let Some(socket) = socket
        && let Some((bytes, end_seq)) = brings_next_bytes(ctx.arg(0), ctx.arg(1))
    {
        match opening::begins_anew(socket, bytes) {
            Some(true) => socket.arrival_ns = 0,
            Some(false) if socket.arrival_ns != 0 => return 0,
            _ => {}
        }
        stamp(socket, now_ns);
        if is_multiplexed(socket) {
            note(socket, now_ns, end_seq);
        }
    }
    0
}

/// `sk_data_ready(sk)`: bytes are ready on a socket; the fallback, some tenths of a microsecond later.
#[btf_tracepoint(function = "sk_data_ready")]
pub fn arrival_ready(ctx: BtfTracePointContext) -> i32 {
    if is_empty() {
        return 0;
    }
    // SAFETY: no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let socket = socket_state(ctx.arg(0));
    cost::serve(socket.as_ref().map_or(NO_PROXY, |socket| socket.proxy_slot), now_ns);
    if let Some(socket) = socket {
        stamp(socket, now_ns);
    }
    0
}

/// How many bytes a segment brings that can be read at once, and the sequence number behind them; `None` for
/// acknowledgements, repeats and what comes out of order.
#[inline(always)]
fn brings_next_bytes(sk: *const c_void, skb: *const c_void) -> Option<(u32, u32)> {
    // `tcp_skb_cb` begins with `seq` and `end_seq` (include/net/tcp.h).
    // SAFETY: the helper checks the address; `tcp` is what the verifier knows as a `tcp_sock`.
    let ([seq, end_seq], next) =
        unsafe { (probe_field::<[u32; 2]>(skb, &SKB_CB), field::<u32>(tcp(sk)?, &TCP_RCV_NXT)) };
    let bytes = end_seq.wrapping_sub(next);
    (next.wrapping_sub(seq) as i32 >= 0 && bytes.cast_signed() > 0).then_some((bytes, end_seq))
}

/// Remembers when this segment arrived, unless too many wait to be read.
#[inline(always)]
fn note(socket: &mut Socket, now_ns: u64, end_seq: u32) {
    let noted = socket.noted;
    // The end of the last one that was read is kept.
    if noted.wrapping_sub(socket.noted_taken) < NOTED as u32 - 1 {
        socket.noted_ns[noted as usize % NOTED] = now_ns;
        socket.noted_end[noted as usize % NOTED] = end_seq;
        socket.noted = noted.wrapping_add(1);
    }
}

#[inline(always)]
fn stamp(socket: &mut Socket, now_ns: u64) {
    socket.ready_ns = now_ns;
    if socket.arrival_ns == 0 {
        socket.arrival_ns = now_ns;
    }
}
