//! The lanes of proxy threads.

use smp_agent_abi::layout::{ROLE_OPENED, Socket};

use crate::maps::{FREE_PLACES, LANES, Lane, THREADS};

/// A lane and where it is.
pub struct Current<'a> {
    pub place: u32,
    pub lane: &'a Lane,
}

/// The current thread's lane, whose place is remembered in the socket it uses. Takes a free one for a thread that has
/// none; `None` when there is none left.
#[inline(always)]
pub fn current<'a>(socket: &mut Socket, tid: u32) -> Option<Current<'a>> {
    if socket.tid != tid {
        let place = place_of(tid)?;
        socket.tid = tid;
        if socket.lane != place {
            socket.lane = place;
            // Names of upstream connections are the lane's own.
            socket.upstream = 0;
        }
    }
    let lane = at(socket.lane)?;
    if socket.role == ROLE_OPENED && socket.upstream == 0 {
        socket.upstream = lane.connect();
    }
    Some(Current { place: socket.lane, lane })
}

#[inline(always)]
fn place_of(tid: u32) -> Option<u32> {
    // SAFETY: the value is copied at once.
    if let Some(&place) = unsafe { THREADS.get(&tid) } {
        return Some(place);
    }
    let place = FREE_PLACES.pop().ok()??;
    if THREADS.insert(&tid, &place, 0).is_err() {
        // Pushing back what was just popped cannot find the stack full.
        let _pushed = FREE_PLACES.push(place, 0);
        return None;
    }
    Some(place)
}

/// The lane at `place`.
#[inline(always)]
pub fn at<'a>(place: u32) -> Option<&'a Lane> {
    // SAFETY: array values stay where they are; all of `Lane` is words that any CPU may change.
    LANES.get_ptr(place).map(|lane| unsafe { &*lane })
}
