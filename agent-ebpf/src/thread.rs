//! The pending sets of proxy threads.

use smp_agent_abi::layout::Socket;

use crate::maps::{FREE_PLACES, PENDING, THREADS, Thread};

/// The place of the current thread's pending sets, remembered in the socket it uses. Takes a free one for a
/// thread that has none; `None` when there is none left.
#[inline(always)]
pub fn place(socket: &mut Socket, tid: u32) -> Option<u32> {
    if socket.tid == tid {
        return Some(socket.thread);
    }
    // SAFETY: the value is copied at once.
    let place = match unsafe { THREADS.get(&tid) } {
        Some(&place) => place,
        None => {
            let place = FREE_PLACES.pop().ok()??;
            if THREADS.insert(&tid, &place, 0).is_err() {
                // Pushing back what was just popped cannot find the stack full.
                let _pushed = FREE_PLACES.push(place, 0);
                return None;
            }
            place
        }
    };
    socket.tid = tid;
    socket.thread = place;
    Some(place)
}

/// The pending sets at `place`.
#[inline(always)]
pub fn at<'a>(place: u32) -> Option<&'a Thread> {
    // SAFETY: array values stay where they are; all of `Thread` is words that any CPU may change.
    PENDING.get_ptr(place).map(|thread| unsafe { &*thread })
}
