//! One request, several messages to servers: a proxy that asks somebody else first (authorization), or asks again.
//!
//! The first of its writes carries the request on, and the last response is carried back. What is between is local: a
//! response that goes into the next write, and that write.

use super::{Lane, REQUEST, RESPONSE};
use crate::pending::{ORPHAN, tag_at};
use crate::word::Word;

impl<W: Word> Lane<W> {
    /// 1 if the last thing that this thread did was to read a response. Not known where threads share the lane.
    #[inline(always)]
    pub fn has_just_read_response(&self) -> u64 {
        let just = self.writing.load() == 0
            && self.shared.load() == 0
            && self.latest[RESPONSE].read_ns.load() > self.latest[REQUEST].read_ns.load();
        self.pending[RESPONSE].blur(u64::from(just))
    }

    /// A write to the connection `upstream` finds no request. At once after a response was read (`at_once`), that has gone
    /// into it if no other waits; else the oldest one has that waits though its own connection has closed. Its request waits for this
    /// connection then. False if there is none.
    #[inline(always)]
    pub fn go_on(&self, upstream: u64, at_once: bool) -> bool {
        let responses = &self.pending[RESPONSE];
        let newest = responses.tail.load().wrapping_sub(1);
        let position = if at_once { newest } else { responses.clear_front() };
        let tag = tag_at(position);
        // Of several that wait, any may go on: what was written for no request may be the proxy's own then.
        if at_once && responses.live.load() != 1 || responses.is_batch(position) {
            return false;
        }
        if !at_once && responses.state_at(position) != ORPHAN || !responses.end(tag) {
            return false;
        }
        if let Some(place) = self.upstreams.get(responses.of(tag).upstream.load())
            && let request = place.carries.load()
            && self.pending[REQUEST].remembered(request).is_some()
        {
            self.note_asked(request, upstream, 0);
        }
        true
    }
}
