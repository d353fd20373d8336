//! What a proxy writes of its own: answers, and the control records of protocols that have them.

use smp_agent_abi::layout::{Direction, ROLE_ACCEPTED, Socket, TURN_READING};

use crate::maps::counter;
use crate::socket::Used;
use crate::{lane, opening};

/// 1 if the message that was read from the same connection has not gone on yet, and nothing was read since that could be
/// written here. A function of its own: see `write.rs`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn follows_own_read(socket: *const Socket) -> u32 {
    // SAFETY: null, or of this type: the verifier checks the callers.
    let Some(socket) = (unsafe { socket.as_ref() }) else { return 0 };
    if socket.turn != TURN_READING || socket.pending_tag == 0 {
        return 0;
    }
    let Some(lane) = lane::at(socket.pending_lane) else { return 0 };
    let [requests, responses] = &lane.pending;
    let (own, other) =
        if socket.role == ROLE_ACCEPTED { (requests, responses) } else { (responses, requests) };
    let Some(read_ns) = own.read_ns(socket.pending_tag) else { return 0 };
    u32::from(other.newest_read_ns() <= read_ns)
}

/// Whether the request that was answered last on an accepted connection was never written to an opened one: then what
/// is written next continues the proxy's own answer.
#[inline(always)]
pub fn is_own_answer(socket: &Socket) -> bool {
    if socket.role != ROLE_ACCEPTED {
        return false;
    }
    let Some(lane) = lane::at(socket.pending_lane) else { return false };
    !lane.pending[Direction::Request as usize].went_on(socket.pending_tag)
}

/// True if this write, on a downstream socket, is the proxy's own answer and not a response from upstream. The request
/// ends then.
#[inline(always)]
pub fn is_local_reply(used: &mut Used<'_>, newest: u64) -> bool {
    let socket = &used.socket;
    if socket.role != ROLE_ACCEPTED || socket.pending_tag == 0 {
        return false;
    }
    let Some(lane) = lane::at(socket.pending_lane) else { return false };
    let ended = lane.end_answered(socket.pending_tag, u64::from(socket.id), socket.upstream, newest);
    let Some(ended) = ended else { return false };
    used.counters.add(counter!(pending), ended.wrapping_neg());
    used.counters.add(counter!(local), ended);
    opening::answered(used.socket);
    true
}
