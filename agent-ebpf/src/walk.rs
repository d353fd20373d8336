//! The sockets that proxies hold when they are discovered: where they listen, the connections that were there before,
//! those that are not measured, and the memory that all of them take. Runs when user space asks, once for each open file of
//! each process.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{
    bpf_get_socket_cookie, bpf_jiffies64, bpf_seq_write, bpf_skc_to_unix_sock, bpf_sock_from_file,
};
use aya_ebpf::programs::BtfTracePointContext;
use smp_agent_abi::layout::{
    HELD_TCP, Held, ROLE_ACCEPTED, ROLE_OPENED, TURN_NONE, TURN_READING, TURN_UNKNOWN, TURN_WRITING,
};

use crate::maps::{LISTENERS, proxy_of, socket_state};
use crate::offsets::{
    SOCK_FORWARD_ALLOC, SOCK_RMEM, SOCK_STATE, SOCK_TYPE, SOCK_WMEM, SOCKET_SK, TASK_TGID, TCP_COPIED_SEQ,
    TCP_LAST_RECEIVED, TCP_LAST_SENT, TCP_RCV_NXT, UNIX_ADDRESS, UNIX_PEER, WALK_OUTPUT, field, probe_field,
};
use crate::socket::{local_end, role_of, take_up, tcp};

// include/net/tcp_states.h
const ESTABLISHED: u8 = 1;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;

/// `SOCK_STREAM` of the kernel's include/linux/net.h.
const STREAM: u16 = 1;

/// A connection on which nothing came or went for so many ticks of the kernel's clock (1 to 10 ms each) rests.
const RESTING_JIFFIES: u32 = 2;

/// `bpf_iter_task_file(meta, task, fd, file)`: an open file of a process. May run for one twice, and then finds done
/// what it did.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub extern "C" fn walk(ctx: *mut c_void) -> i32 {
    // The arguments lie as those of a tracepoint do.
    let ctx = BtfTracePointContext::new(ctx);
    on_file(ctx.arg(0), ctx.arg(1), ctx.arg(3));
    0
}

#[inline(always)]
fn on_file(meta: *const c_void, task: *const c_void, file: *mut c_void) -> Option<()> {
    // The end of the walk has neither.
    if task.is_null() || file.is_null() {
        return None;
    }
    // SAFETY: a program argument; the value of the map is copied at once.
    let slot = proxy_of(unsafe { field(task, &TASK_TGID) })?;
    // SAFETY: a program argument.
    let socket: *const c_void = unsafe { bpf_sock_from_file(file.cast()) }.cast_const().cast();
    if socket.is_null() {
        return None;
    }
    // SAFETY: a `socket` as the verifier knows it.
    let sk: *const c_void = unsafe { field(socket, &SOCKET_SK) };
    if sk.is_null() {
        return None;
    }
    match tcp(sk) {
        Some(tcp) => on_tcp(meta, sk, tcp, slot),
        None => on_other(meta, sk, slot),
    }
}

#[inline(always)]
fn on_tcp(meta: *const c_void, sk: *const c_void, tcp: *const c_void, slot: u32) -> Option<()> {
    // SAFETY: `sk` came from a program argument.
    match unsafe { field::<u8>(sk, &SOCK_STATE) } {
        LISTEN => {
            // A full table costs the first message of each connection to this port its arrival, which is counted.
            let _inserted = LISTENERS.insert(&local_end(sk), &slot, 0);
            return None;
        }
        CLOSE => return None,
        _ => tell(meta, sk, slot, HELD_TCP, charged_bytes(sk)),
    }
    if socket_state(sk).is_some() {
        return None;
    }
    // SAFETY: `tcp` is what the verifier knows as a `tcp_sock`.
    let (turn, copied_seq) = (last_turn(tcp), unsafe { field(tcp, &TCP_COPIED_SEQ) });
    let socket = take_up(sk, slot, role_of(sk))?;
    // From here on its messages are seen; one that was quicker knows better.
    if socket.turn == TURN_UNKNOWN {
        socket.turn = turn;
        socket.copied_seq = copied_seq;
    }
    Some(())
}

/// What was the last to happen on a connection, as far as the kernel knows: it notes when bytes came and went, but by
/// a clock that ticks slowly.
#[inline(always)]
fn last_turn(tcp: *const c_void) -> u32 {
    // SAFETY: `tcp` is what the verifier knows as a `tcp_sock`.
    let (copied, received, last_sent, last_received) = unsafe {
        (
            field::<u32>(tcp, &TCP_COPIED_SEQ),
            field::<u32>(tcp, &TCP_RCV_NXT),
            field::<u32>(tcp, &TCP_LAST_SENT),
            field::<u32>(tcp, &TCP_LAST_RECEIVED),
        )
    };
    if copied != received {
        // Of what waits to be read the arrival was not seen.
        return TURN_UNKNOWN;
    }
    match last_sent.wrapping_sub(last_received).cast_signed() {
        1.. => TURN_WRITING,
        ..0 => TURN_READING,
        // SAFETY: no precondition.
        0 if (unsafe { bpf_jiffies64() } as u32).wrapping_sub(last_sent) >= RESTING_JIFFIES => TURN_NONE,
        0 => TURN_UNKNOWN,
    }
}

/// Tells of a connection over a Unix-domain socket.
#[inline(always)]
fn on_other(meta: *const c_void, sk: *const c_void, proxy_slot: u32) -> Option<()> {
    // SAFETY: `sk` is a socket as the verifier knows it.
    let unix: *const c_void = unsafe { bpf_skc_to_unix_sock(sk.cast_mut()) }.cast_const().cast();
    if unix.is_null() {
        return None;
    }
    // SAFETY: `sk` came from a program argument.
    let (kind, state) = unsafe { (field::<u16>(sk, &SOCK_TYPE), field::<u8>(sk, &SOCK_STATE)) };
    if kind != STREAM || state != ESTABLISHED {
        return None;
    }
    // SAFETY: `unix` is what the verifier knows as a `unix_sock`; the helper checks the address of the other.
    let (address, peer_address) = unsafe {
        let peer: *const c_void = field(unix, &UNIX_PEER);
        (field::<*const c_void>(unix, &UNIX_ADDRESS), probe_field::<usize>(peer, &UNIX_ADDRESS))
    };
    let role = if !address.is_null() {
        // An accepted end has the address of the listener.
        ROLE_ACCEPTED
    } else if peer_address != 0 {
        ROLE_OPENED
    } else {
        // A pair of sockets, by which processes of one proxy speak to each other.
        return None;
    };
    tell(meta, sk, proxy_slot, role, 0);
    Some(())
}

/// What the kernel has set aside for a TCP connection's bytes: those that were received and not read, those that were written
/// and not acknowledged, and what is kept for the next ones.
#[inline(always)]
fn charged_bytes(sk: *const c_void) -> u64 {
    // SAFETY: `sk` came from a program argument.
    let parts =
        unsafe { [field::<i32>(sk, &SOCK_RMEM), field(sk, &SOCK_WMEM), field(sk, &SOCK_FORWARD_ALLOC)] };
    // Each may be below zero for an instant.
    parts.iter().map(|&part| part.max(0) as u64).sum()
}

/// Tells the reader of the walk of a connection.
#[inline(always)]
fn tell(meta: *const c_void, sk: *const c_void, proxy_slot: u32, kind: u32, memory_bytes: u64) {
    // SAFETY: `sk` is a socket as the verifier knows it.
    let cookie = unsafe { bpf_get_socket_cookie(sk.cast_mut()) };
    let held = Held { cookie, memory_bytes, proxy_slot, kind };
    // SAFETY: `meta` is a program argument; `held` is initialised and has no padding.
    unsafe {
        let output: *const c_void = field(meta, &WALK_OUTPUT);
        // What does not fit into the reader's buffer comes again.
        bpf_seq_write(output.cast_mut().cast(), (&raw const held).cast(), size_of::<Held>() as u32);
    }
}
