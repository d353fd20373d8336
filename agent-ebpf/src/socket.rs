//! Which sockets are followed, and on which side of the proxy they are.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_skc_to_tcp_sock};
use smp_agent_abi::layout::{Direction, Loss, MULTIPLEXED, ROLE_ACCEPTED, ROLE_OPENED, Socket};
use smp_agent_abi::names::listener_key;

use crate::maps::{Counters, LISTENERS, counter, may_be_proxy, proxy_of, socket_state, socket_state_or_new};
use crate::offsets::{
    NET_INUM, SOCK_BACKLOG, SOCK_NET, SOCK_NUM, TCP_TRANSPARENT, TCP_TRANSPARENT_MASK, field, probe_field,
};

/// A socket in the hands of its proxy's thread.
pub struct Used<'a> {
    pub socket: &'a mut Socket,
    pub counters: Counters,
    pub tgid: u32,
    pub tid: u32,
}

/// The state of `sk` if the current thread is a proxy's, taken up now if it was not followed yet.
#[inline(always)]
pub fn in_use<'a>(sk: *const c_void) -> Option<Used<'a>> {
    let pid_tgid = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((pid_tgid >> 32) as u32, pid_tgid as u32);
    if !may_be_proxy(tgid) {
        return None;
    }
    let socket = match socket_state(sk) {
        Some(socket) if socket.tgid == tgid => socket,
        other => {
            let slot = proxy_of(tgid)?;
            let Some(socket) = other.or_else(|| take_up(sk, slot, role_of(sk))) else {
                if tcp(sk).is_some() {
                    // Of a message; of a connection that begins nothing is lost yet.
                    let counters = Counters::of_call(slot)?;
                    counters.add(counter!(seen), 1);
                    counters.lose(Loss::SocketState);
                }
                return None;
            };
            socket.tgid = tgid;
            socket.proxy_slot = slot;
            socket.owner = 0;
            socket
        }
    };
    let counters = Counters::of_call(socket.proxy_slot)?;
    Some(Used { socket, counters, tgid, tid })
}

/// Whether a socket carries several messages at once.
#[inline(always)]
pub fn is_multiplexed(socket: &Socket) -> bool {
    socket.multiplexed >= MULTIPLEXED
}

/// On which side of the proxy a connection is that was not seen to begin.
#[inline(always)]
pub fn role_of(sk: *const c_void) -> u32 {
    // The kernel makes an accepted socket as a copy of the listener, whatever the address that it was called by. Who
    // listens with a backlog of 0 is known by the port.
    // SAFETY: a program argument, or came from one.
    let of_listener = unsafe { field::<u32>(sk, &SOCK_BACKLOG) } != 0;
    if of_listener || listener(sk).is_some() { ROLE_ACCEPTED } else { ROLE_OPENED }
}

/// Starts to follow `sk`, a socket of the proxy in `slot`. `None` if it is no TCP socket, or there is no memory for its
/// state now.
#[inline(always)]
pub fn take_up<'a>(sk: *const c_void, slot: u32, role: u32) -> Option<&'a mut Socket> {
    tcp(sk)?;
    let socket = socket_state_or_new(sk)?;
    if socket.id == 0 {
        socket.proxy_slot = slot;
        socket.role = role;
        // SAFETY: no precondition.
        socket.id = unsafe { bpf_get_prandom_u32() } | 1;
    }
    Some(socket)
}

/// The proxy that listens where `sk` is bound.
#[inline(always)]
pub fn listener(sk: *const c_void) -> Option<u32> {
    // SAFETY: the value is copied at once.
    unsafe { LISTENERS.get(&local_end(sk)) }.copied()
}

/// True if `sk` may have an address that is not this host's (`IP_TRANSPARENT`).
#[inline(always)]
pub fn is_transparent(sk: *const c_void) -> bool {
    // SAFETY: `tcp` is what the verifier knows as a `tcp_sock`.
    tcp(sk).is_some_and(|tcp| {
        u64::from(unsafe { field::<u8>(tcp, &TCP_TRANSPARENT) }) & TCP_TRANSPARENT_MASK.load() != 0
    })
}

/// Network namespace and local port of `sk`.
#[inline(always)]
pub fn local_end(sk: *const c_void) -> u64 {
    // SAFETY: offsets of these very fields.
    let (port, net) = unsafe { (probe_field::<u16>(sk, &SOCK_NUM), probe_field::<usize>(sk, &SOCK_NET)) };
    // SAFETY: as above.
    let inode = unsafe { probe_field::<u32>(net as *const c_void, &NET_INUM) };
    listener_key(inode, port)
}

/// `sk` as a TCP socket, or `None` if it is none.
#[inline(always)]
pub fn tcp(sk: *const c_void) -> Option<*const c_void> {
    // SAFETY: `sk` is a socket as the verifier knows it.
    let tcp: *const c_void = unsafe { bpf_skc_to_tcp_sock(sk.cast_mut()) }.cast_const().cast();
    (!tcp.is_null()).then_some(tcp)
}

impl Used<'_> {
    /// The direction of messages that are read from this socket.
    #[inline(always)]
    pub fn inbound(&self) -> Direction {
        if self.socket.role == ROLE_ACCEPTED { Direction::Request } else { Direction::Response }
    }

    /// The direction of messages that are written to this socket.
    #[inline(always)]
    pub fn outbound(&self) -> Direction {
        if self.socket.role == ROLE_ACCEPTED { Direction::Response } else { Direction::Request }
    }
}
