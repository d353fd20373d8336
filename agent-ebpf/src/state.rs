//! Connections that begin and end: who opened them, and what ends with them.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use smp_agent_abi::layout::{
    Direction, NO_PROXY, ROLE_ACCEPTED, ROLE_OPENED, SHARED, Socket, TURN_NONE, TURN_READING, TURN_WRITING,
};
use smp_agent_abi::opening::OPENING_NEW;

use crate::maps::{Counters, LESS_ONE, LISTENERS, counter, proxy_of, socket_state};
use crate::offsets::{TCP_COPIED_SEQ, field};
use crate::socket::{is_transparent, listener, local_end, take_up, tcp};
use crate::{departure, lane, opening};

// include/net/tcp_states.h
const ESTABLISHED: i32 = 1;
const SYN_SENT: i32 = 2;
const SYN_RECV: i32 = 3;
const FIN_WAIT1: i32 = 4;
const CLOSE: i32 = 7;
const LAST_ACK: i32 = 9;
const LISTEN: i32 = 10;

/// `inet_sock_set_state(sk, oldstate, newstate)`.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn state(ctx: BtfTracePointContext) -> i32 {
    let sk: *const c_void = ctx.arg(0);
    match (ctx.arg::<i32>(1), ctx.arg::<i32>(2)) {
        // Both of these run in the system call of the process whose socket it is.
        (_, LISTEN) => on_listen(sk),
        (_, SYN_SENT) => on_connect(sk),
        (SYN_RECV, ESTABLISHED) => on_accept(sk),
        (SYN_SENT, ESTABLISHED) => socket_state(sk).and_then(|socket| on_established(sk, socket)),
        // The proxy closes first, or answers the peer's close, or it is over.
        (_, FIN_WAIT1 | LAST_ACK | CLOSE) => on_close(sk, ctx.arg::<i32>(2) == CLOSE),
        _ => None,
    };
    0
}

#[inline(always)]
fn current_proxy() -> Option<u32> {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    proxy_of(tgid)
}

#[inline(always)]
fn on_listen(sk: *const c_void) -> Option<()> {
    let slot = current_proxy()?;
    // A full table costs the first message of each connection to this port its arrival, which is counted.
    let _inserted = LISTENERS.insert(&local_end(sk), &slot, 0);
    Some(())
}

#[inline(always)]
fn on_connect(sk: *const c_void) -> Option<()> {
    let socket = take_up(sk, current_proxy()?, ROLE_OPENED)?;
    socket.turn = TURN_NONE;
    opening::begin(sk, socket);
    let pid_tgid = bpf_get_current_pid_tgid();
    lane::current(socket, (pid_tgid >> 32) as u32, pid_tgid as u32).map(|_| ())
}

/// In softirq, before the process knows of the connection: its first bytes may come at once.
#[inline(always)]
fn on_accept(sk: *const c_void) -> Option<()> {
    // A transparent listener's connections have ports of their own. Whose it is shows at its first use.
    let slot = listener(sk).or_else(|| is_transparent(sk).then_some(NO_PROXY))?;
    let socket = take_up(sk, slot, ROLE_ACCEPTED)?;
    socket.turn = TURN_NONE;
    socket.opening = OPENING_NEW;
    on_established(sk, socket)
}

/// Nothing was read yet, and from here on it is known what was.
#[inline(always)]
fn on_established(sk: *const c_void, socket: &mut Socket) -> Option<()> {
    // SAFETY: no precondition.
    socket.established_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY: `tcp` is what the verifier knows as a `tcp_sock`.
    socket.copied_seq = unsafe { field(tcp(sk)?, &TCP_COPIED_SEQ) };
    Some(())
}

#[inline(always)]
fn on_close(sk: *const c_void, over: bool) -> Option<()> {
    let socket = socket_state(sk)?;
    let counters = Counters::beside(socket.proxy_slot)?;
    if socket.pending_tag != 0 {
        let lane = lane::at(socket.pending_lane)?;
        if socket.role == ROLE_ACCEPTED {
            if socket.turn == TURN_WRITING && socket.owner & SHARED == 0 {
                // It was answered, so another one was taken for it, whose own write is still to come.
                lane.pending[Direction::Request as usize].orphan(socket.pending_tag);
            } else if lane.pending[Direction::Request as usize].end(socket.pending_tag) {
                counters.add(counter!(pending), LESS_ONE);
                // Nobody is left to have asked.
                counters.add(counter!(unmatched), 1);
            } else if socket.turn == TURN_READING {
                let ended = lane.leave(socket.pending_tag);
                if ended != 0 {
                    let carrier = lane.carrier(socket.pending_tag);
                    opening::release_answered(socket.pending_lane, carrier, socket.proxy_slot);
                }
                counters.add(counter!(pending), ended.wrapping_neg());
                counters.add(counter!(local), ended);
            }
        } else {
            lane.pending[Direction::Response as usize].orphan(socket.pending_tag);
        }
        socket.pending_tag = 0;
    }
    lane::note_waiting(socket, false);
    opening::end(socket);
    if socket.role == ROLE_OPENED && socket.upstream != 0 {
        opening::release_answered(socket.lane, socket.upstream, socket.proxy_slot);
        lane::at(socket.lane)?.close(socket.upstream);
    }
    if over {
        departure::give_up(socket, &counters);
    }
    Some(())
}
