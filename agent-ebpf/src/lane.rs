//! The lanes of proxy threads, and of processes whose threads hand work to each other.

use smp_agent_abi::lane::Recent;
use smp_agent_abi::layout::{ROLE_ACCEPTED, ROLE_OPENED, SHARED, Socket, TURN_READING, TURN_WRITING};
use smp_agent_abi::word::Word as _;

use crate::maps::{FREE_PLACES, FREE_SHARED, LANES, Lane, MOVES, RECENT, THREADS};
use crate::opening;
use crate::word::Atomic;

/// So often must sockets or work have been seen to move between the threads of a proxy for them to share a lane.
const MANY_MOVES: u64 = 16;
/// A socket that stayed with its thread for so many messages before it moved tells against it: event loops hand over
/// an idle connection now and then, or a socket that they have just accepted.
const SETTLED_MESSAGES: u32 = 64;

/// A lane and where it is.
pub struct Current<'a> {
    pub place: u32,
    pub lane: &'a Lane,
    /// True if threads share it.
    pub shared: bool,
    /// True if some requests seem to have been handed to another thread.
    pub handed: bool,
}

/// The lane of the current thread, or of its process where threads share it. Takes a free one for who has none;
/// `None` when there is none left.
#[inline(always)]
pub fn current<'a>(socket: &mut Socket, tgid: u32, tid: u32) -> Option<Current<'a>> {
    let [moves, work, _] = moves_of(socket)?;
    let mut shared = is_shared(socket)?;
    socket.settled = socket.settled.saturating_add(1);
    if !shared && socket.owner != tid && socket.owner != 0 && is_answer(socket) {
        if socket.settled < SETTLED_MESSAGES {
            moves.add(1);
            shared = moves.load() >= MANY_MOVES;
        } else {
            lower(moves);
        }
        socket.settled = 0;
    }
    let mut owner = if shared { tgid | SHARED } else { tid };
    if socket.owner != owner {
        let mut place = place_of(owner);
        if place.is_none() && !shared {
            // More threads than lanes, as where each request has a thread that waits for its response: what a thread has read last
            // shows in a lane for all of them too.
            moves.add(MANY_MOVES);
            shared = true;
            owner = tgid | SHARED;
            place = place_of(owner);
        }
        let place = place?;
        socket.owner = owner;
        if shared {
            // Its writes may have found nothing since threads had lanes of their own.
            socket.multiplexed = 0;
        }
        if socket.lane != place {
            opening::release_answered(socket.lane, socket.upstream, socket.proxy_slot);
            note_waiting(socket, false);
            socket.lane = place;
            // Names of upstream connections are the lane's own.
            socket.upstream = 0;
        }
    }
    let lane = at(socket.lane)?;
    if socket.role == ROLE_OPENED && socket.upstream == 0 {
        opening::release_answered(socket.lane, lane.upstreams.oldest(), socket.proxy_slot);
        socket.upstream = lane.connect();
    }
    Some(Current { place: socket.lane, lane, shared, handed: !shared && work.load() > 0 })
}

#[inline(always)]
fn moves_of<'a>(socket: &Socket) -> Option<[&'a Atomic; 3]> {
    let moves = MOVES.get_ptr_mut(socket.proxy_slot)?;
    // SAFETY: fields of a map value.
    let fields = unsafe { [&raw mut (*moves).sockets, &raw mut (*moves).work, &raw mut (*moves).unread_ns] };
    Some(fields.map(Atomic::at))
}

/// Whether the threads of a socket's proxy share a lane.
#[inline(always)]
pub fn is_shared(socket: &Socket) -> Option<bool> {
    let [moves, work, _] = moves_of(socket)?;
    Some(moves.load() >= MANY_MOVES || work.load() >= MANY_MOVES)
}

/// More was read of a message. Where another thread has begun to, threads hand work over in the middle of it.
#[inline(always)]
pub fn note_more(socket: &Socket, tid: u32) -> Option<()> {
    if socket.owner != tid && socket.settled < SETTLED_MESSAGES {
        let [moves, ..] = moves_of(socket)?;
        moves.add(1);
    }
    Some(())
}

/// A request was written that the thread has not read: it may have been handed over, or is the proxy's own.
#[inline(always)]
pub fn note_unread(socket: &Socket, now_ns: u64) -> Option<()> {
    let [.., unread_ns] = moves_of(socket)?;
    unread_ns.store(now_ns);
    Some(())
}

/// A request that was read then was answered, by its own thread from upstream or not. If not, although a request was
/// written meanwhile that its thread had not read, that was this one: threads hand work over whose sockets stay.
#[inline(always)]
pub fn note_answered(socket: &Socket, read_ns: u64, from_upstream: bool) -> Option<()> {
    let [_, work, unread_ns] = moves_of(socket)?;
    if !from_upstream && unread_ns.load() > read_ns {
        work.add(1);
    } else if work.load() < MANY_MOVES {
        lower(work);
    }
    Some(())
}

/// Takes 1 away from a count that is not 0. Where another CPU changes it meanwhile, that is left at it: below 0 it would
/// be many.
#[inline(always)]
fn lower(count: &Atomic) {
    let seen = count.load();
    let _lowered = seen > 0 && count.swap_if(seen, seen - 1);
}

/// True where a response is read or written, so that its request was in the hands of the thread that used the socket
/// before. Between two exchanges a connection may change hands and no work with it: `HAProxy`'s threads take idle
/// connections from each other.
#[inline(always)]
fn is_answer(socket: &Socket) -> bool {
    let accepted = socket.role == ROLE_ACCEPTED;
    accepted && socket.turn == TURN_WRITING || !accepted && socket.turn == TURN_READING
}

#[inline(always)]
fn place_of(owner: u32) -> Option<u32> {
    // SAFETY: the value is copied at once.
    if let Some(&place) = unsafe { THREADS.get(&owner) } {
        return Some(place);
    }
    let place = if owner & SHARED == 0 { FREE_PLACES.pop() } else { FREE_SHARED.pop() }.ok()??;
    if owner & SHARED != 0 {
        at(place)?.share();
    }
    if THREADS.insert(&owner, &place, 0).is_err() {
        free(owner, place);
        return None;
    }
    Some(place)
}

/// Frees the place of an owner.
#[inline(always)]
pub fn free(owner: u32, place: u32) {
    // Each stack has room for all places that come from it.
    let _pushed = if owner & SHARED == 0 { FREE_PLACES.push(place, 0) } else { FREE_SHARED.push(place, 0) };
}

/// Counts a socket as waiting for its response, or no longer, in its lane.
#[inline(always)]
pub fn note_waiting(socket: &mut Socket, waits: bool) {
    count_waiting(socket, u32::from(waits));
}

/// A function of its own: see `write.rs`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn count_waiting(socket: *mut Socket, waits: u32) -> u32 {
    // SAFETY: null, or of this type: the verifier checks the callers.
    let Some(socket) = (unsafe { socket.as_mut() }) else { return 0 };
    let waits = waits != 0;
    if (socket.waits != 0) == waits {
        return 0;
    }
    if let Some(lane) = at(socket.lane) {
        lane.count_waiting(socket.role == ROLE_OPENED, waits);
        socket.waits = u32::from(waits);
    }
    0
}

/// The lane at `place`.
#[inline(always)]
pub fn at<'a>(place: u32) -> Option<&'a Lane> {
    // SAFETY: array values stay where they are; all of `Lane` is words that any CPU may change.
    LANES.get_ptr(place).map(|lane| unsafe { &*lane })
}

/// What the current thread, of those that share a lane, has read last.
#[inline(always)]
pub fn recent<'a>(tid: u32) -> Option<&'a mut Recent> {
    if RECENT.get_ptr_mut(&tid).is_none() {
        // A full table costs the thread's own order: it claims the oldest of the process.
        let _inserted = RECENT.insert(&tid, &Recent::default(), 0);
    }
    // SAFETY: only this thread uses it, and the value stays while the thread lives.
    RECENT.get_ptr_mut(&tid).map(|recent| unsafe { &mut *recent })
}
