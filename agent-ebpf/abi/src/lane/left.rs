//! Responses that nobody waits for. One that is left to be the oldest would be taken in place of the next, that in place of
//! the one after it, and so on.

use super::turn::CROWD;
use super::{Lane, RESPONSE, Turn};
use crate::pending::tag_at;
use crate::word::Word;

/// In turns of so many responses, what follows from the habits is trusted against the order of the turns. While a habit
/// is learned in larger ones most pairs are wrong.
const FEW: u64 = 4;

impl<W: Word> Lane<W> {
    /// The response that came on the connection `upstream` at `asked_ns` or later, if the oldest of this turn is one that
    /// nobody waits for; else 0.
    #[inline(always)]
    pub(super) fn past_left_over(&self, turn: Turn, upstream: u64, asked_ns: u64) -> u64 {
        let set = &self.pending[RESPONSE];
        let tag = set.blur(self.upstreams.get(upstream).map_or(0, |place| place.response.load()));
        let since = set.is_live(tag) && set.of(tag).read_ns.load() >= asked_ns;
        set.blur(if since && self.is_left_over(turn, turn.oldest) { tag } else { 0 })
    }

    /// Ends the oldest response if nobody waits for it and it is stale, so that this turn begins behind it. Returns how
    /// many end by that: 1 or 0.
    #[inline(always)]
    pub(super) fn end_left_over(&self, turn: Turn) -> u64 {
        let set = &self.pending[RESPONSE];
        let oldest = set.front();
        let ends = oldest < turn.oldest && self.is_left_over(turn, oldest) && set.end(tag_at(oldest));
        set.blur(u64::from(ends))
    }

    /// Whether a response that still waits when its connection is read again stands for another one that was taken in its place,
    /// whose own write is still to come: where messages are paired by chance, or may be as a crowd comes before any habit is
    /// learned, if no more are pending than are inside.
    #[inline(always)]
    pub fn is_still_to_come(&self) -> bool {
        let crowded = self.pending[RESPONSE].live.load() >= CROWD;
        self.habits.fail(crowded) && !self.has_surplus()
    }

    /// Says that a response is written to where the request of this tag is from, which was written to the connection
    /// `upstream`.
    #[inline(always)]
    pub(super) fn note_served(&self, request: u64, upstream: u64) {
        if let Some(place) = self.upstreams.get(upstream) {
            place.served.store(request);
        }
    }

    /// Whether nobody waits for the response at this position: where it should have gone was written to with another, or
    /// nothing was written to the connection that it came on.
    #[inline(always)]
    fn is_left_over(&self, turn: Turn, position: u64) -> bool {
        let set = &self.pending[RESPONSE];
        let name = set.blur(set.entry(position).upstream.load());
        turn.end - turn.start <= FEW
            && self.upstreams.get(name).is_some_and(|place| place.served.load() == place.carries.load())
    }
}
