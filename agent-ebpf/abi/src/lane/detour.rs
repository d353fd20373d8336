//! One request, several messages to servers: a proxy that asks somebody else first (authorization), or asks again.
//!
//! The first of its writes carries the request on, and the last response is carried back. What is between is local: a
//! response that goes into the next write, and that write.

use super::{Lane, REQUEST, RESPONSE, openers};
use crate::pending::{ORPHAN, STATE_BITS, position_of, tag_at};
use crate::word::Word;

/// How many of the oldest responses are looked at for one that goes on.
const ANSWER_STEPS: u64 = 8;

/// Writes that found no request: how often they followed the only response that waited at once, and how often none waited.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Detours<W> {
    gone_on: W,
    alone: W,
}

impl<W: Word> Detours<W> {
    /// Forgets it.
    #[inline(always)]
    pub(super) fn forget(&self) {
        self.gone_on.store(0);
        self.alone.store(0);
    }

    /// Whether a write that finds no request comes from a response.
    #[inline(always)]
    fn is_habit(&self) -> bool {
        openers::is_habit(&self.gone_on, &self.alone)
    }

    /// Whether such writes are the proxy's own, health checks: one that follows a response does so by chance.
    #[inline(always)]
    fn are_own(&self) -> bool {
        openers::is_habit(&self.alone, &self.gone_on)
    }
}

impl<W: Word> Lane<W> {
    /// 1 if the last thing that this thread did was to read a response. Not known where threads share the lane.
    #[inline(always)]
    pub fn has_just_read_response(&self) -> u64 {
        let just = self.writing.load() == 0
            && self.shared.load() == 0
            && self.latest[RESPONSE].read_ns.load() > self.latest[REQUEST].read_ns.load();
        self.pending[RESPONSE].blur(u64::from(just))
    }

    /// A write to the connection `upstream` finds no request. Its cause may be a response that waits, which ends then, and whose
    /// request waits for this connection: what was read there last, if that came `before` and no request since; what was just
    /// read (`at_once`), if no other waits and such writes are not mostly the proxy's own; the oldest where that is a habit;
    /// else the oldest whose own connection has closed. False if there is none.
    #[inline(always)]
    pub fn go_on(&self, upstream: u64, at_once: bool, before: bool) -> bool {
        let responses = &self.pending[RESPONSE];
        let live = responses.live.load();
        let follows = at_once && live == 1;
        if follows {
            openers::count(&self.detours.gone_on, &self.detours.alone);
        } else if live == 0 && self.shared.load() == 0 {
            openers::count(&self.detours.alone, &self.detours.gone_on);
        }
        let only = follows && !self.detours.are_own();
        let habit = self.detours.is_habit();
        let tag = if before {
            self.upstreams.get(upstream).map_or(0, |place| place.response.load())
        } else if only {
            tag_at(responses.tail.load().wrapping_sub(1))
        } else {
            tag_at(if habit { self.first_answer() } else { responses.clear_front() })
        };
        let tag = responses.blur(tag);
        // Of several that wait, any may go on: what was written for no request may be the proxy's own then.
        let goes = before || only || habit || !at_once && responses.state_at(position_of(tag)) == ORPHAN;
        if !goes || responses.is_batch(position_of(tag)) || !responses.end(tag) {
            return false;
        }
        if let Some(place) = self.upstreams.get(responses.of(tag).upstream.load())
            && let request = place.carries.load()
            && self.pending[REQUEST].remembered(request).is_some()
        {
            self.note_asked(request, upstream, 0);
            if let Some(place) = self.upstreams.get(upstream) {
                place.again.store(1);
            }
        }
        true
    }

    /// The position of the oldest response that waits and answers the first message of its request, of the few looked at; that of
    /// none if there is no such.
    #[inline(always)]
    fn first_answer(&self) -> u64 {
        let responses = &self.pending[RESPONSE];
        let head = self.head(RESPONSE);
        let mut found = responses.blur(u64::MAX >> STATE_BITS);
        for position in head..head + ANSWER_STEPS {
            let name = responses.blur(responses.entry(position).upstream.load());
            let again = self.upstreams.get(name).map_or(1, |place| place.again.load());
            let first = responses.blur(again) == 0;
            let takes = position < found && first && responses.is_live(tag_at(position));
            found = responses.blur(if takes { position } else { found });
        }
        found
    }
}
