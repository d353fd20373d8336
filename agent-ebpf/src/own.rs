//! What a proxy writes of its own: answers, and the control records of protocols that have them.

use smp_agent_abi::lane::Move;
use smp_agent_abi::layout::{Direction, ROLE_ACCEPTED, SHARED, Socket, TURN_READING};
use smp_agent_abi::word::Word as _;

use crate::maps::{LESS_ONE, counter};
use crate::socket::Used;
use crate::{lane, opening};

/// Not 0 if the message that was read from the same connection has not gone on yet, and nothing was read since that
/// could be written here: 1, or 2 where connections of that side were seen to carry control records, or any of the lane to
/// carry several messages at once. A function of its own: see `write.rs`.
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
    // From a time when threads had lanes of their own.
    if socket.owner & SHARED == 0 && lane::is_shared(socket) == Some(true) {
        return 0;
    }
    if other.newest_read_ns() > read_ns {
        return 0;
    }
    let inbound = usize::from(socket.role != ROLE_ACCEPTED);
    let [requests, responses] = &lane.latest;
    let known = lane.latest[inbound].records.load() | requests.several.load() | responses.several.load();
    1 + u32::from(known != 0)
}

/// Says that a control record of so many bytes was written to a connection, or read, whose messages are in the lane at
/// `place`.
#[inline(always)]
pub fn note_record(socket: &mut Socket, place: u32, bytes: usize, written: bool) {
    if socket.note_record(bytes, written)
        && let Some(lane) = lane::at(place)
    {
        lane.latest[usize::from(socket.role != ROLE_ACCEPTED)].records.add(1);
    }
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
    if used.socket.role != ROLE_ACCEPTED || used.socket.pending_tag == 0 {
        return false;
    }
    if used.socket.pending_lane != used.socket.lane {
        // It was read by another thread, or before threads were known to share a lane, and its response is sought in this
        // one. It is answered: whoever has written it on, no later write does.
        if end_elsewhere(used.socket) != 0 {
            used.counters.add(counter!(pending), LESS_ONE);
            used.counters.add(counter!(unmatched), 1);
        }
        return false;
    }
    let by_pool = answers_itself(used.socket, newest);
    if by_pool == NOT_OWN {
        return false;
    }
    let ended = end_answered(used.socket, by_pool);
    used.counters.add(counter!(pending), u64::from(ended).wrapping_neg());
    used.counters.add(counter!(local), u64::from(ended));
    opening::answered(used.socket);
    true
}

/// Ends what was read last on an accepted connection where it waits. 1 if it did.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn end_elsewhere(socket: *const Socket) -> u32 {
    // SAFETY: null, or of this type: the verifier checks the callers.
    let Some(socket) = (unsafe { socket.as_ref() }) else { return 0 };
    let Some(lane) = lane::at(socket.pending_lane) else { return 0 };
    u32::from(lane.pending[Direction::Request as usize].end(socket.pending_tag))
}

/// What [`answers_itself`] says of a write that may be a response.
const NOT_OWN: u32 = u32::MAX;

/// As [`smp_agent_abi::lane::Lane::answers_itself`], for what was read last on an accepted connection. Apart from
/// [`end_answered`], which goes deeper: calls that are under way together may have 512 bytes of stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn answers_itself(socket: *const Socket, newest: u64) -> u32 {
    // SAFETY: null, or of this type: the verifier checks the callers.
    let Some(socket) = (unsafe { socket.as_ref() }) else { return NOT_OWN };
    let Some(lane) = lane::at(socket.pending_lane) else { return NOT_OWN };
    let by_pool = lane.answers_itself(socket.pending_tag, u64::from(socket.id), socket.upstream, newest);
    by_pool.map_or(NOT_OWN, |by_pool| by_pool as u32)
}

/// As [`smp_agent_abi::lane::Lane::end_answered`], for what was read last on an accepted connection.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn end_answered(socket: *mut Socket, by_pool: u32) -> u32 {
    // SAFETY: null, or of this type: the verifier checks the callers.
    let Some(socket) = (unsafe { socket.as_mut() }) else { return 0 };
    let Some(lane) = lane::at(socket.pending_lane) else { return 0 };
    let (place, request) = (socket.pending_lane, socket.pending_tag);
    let ended = lane.end_answered(request, || {
        move_up(place, request, u64::from(by_pool));
    });
    if let Some(read_ns) = lane.pending[Direction::Request as usize].when_read(request)
        && !lane.suspect_several(read_ns)
    {
        lane::note_answered(socket, read_ns, false);
    }
    ended as u32
}

/// [`smp_agent_abi::lane::Lane::move_up`] of the lane at `place`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn move_up(place: u32, request: u64, by_pool: u64) -> u32 {
    if let Some(lane) = lane::at(place) {
        lane.move_up(request, by_pool, |moved| {
            move_one(place, moved);
        });
    }
    0
}

/// [`smp_agent_abi::lane::Lane::move_one`] of the lane at `place`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn move_one(place: u32, moved: *mut Move) -> u32 {
    // SAFETY: null, or of this type: the verifier checks the callers.
    if let (Some(lane), Some(moved)) = (lane::at(place), unsafe { moved.as_mut() }) {
        lane.move_one(moved);
    }
    0
}
