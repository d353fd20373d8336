//! Which message a write carries on.
//!
//! An event loop asks what is ready, reads all of that, and writes what came of it in the same turn or the next. So
//! a write that starts a message carries on one that its own thread has read, and of those one of the oldest turn.
//! A turn ends with a write, or with a message that arrived after the turn's first read: the loop cannot have
//! known of it before.
//!
//! Within a turn nginx and `HAProxy` write each direction in the order in which they read. Whether a thread does is
//! seen by going there and back: pairing requests in order gives every upstream connection a downstream one, and
//! pairing responses in order must lead back to it. Such a thread's oldest message of the turn is taken.
//!
//! Envoy keeps no such order: libevent runs the callbacks of one turn in the order of its timer heap. Which entry of
//! a turn a write carries on cannot be seen then, but how far the order holds can be, between the two directions,
//! since a write shows its direction. That is the oldest message's always where the order is kept, and as often as
//! chance has it where there is none. So the oldest entry of the turn is taken with the probability that this shows,
//! any of the turn otherwise. The mean is exact however entries are paired; this keeps the spread right too.

use crate::order::{ORDER_SIZES, Order, size_class};
use crate::pending::{Claim, Found, Pending, Word};

/// The pending sets of one thread.
#[derive(Debug)]
#[repr(C)]
pub struct Thread<W> {
    /// The two sets, by [`Direction`](crate::layout::Direction).
    pub pending: [Pending<W>; 2],
    /// Where, in each set, the latest turn begins.
    turn_start: [W; 2],
    /// Where the turn before it began.
    older_start: [W; 2],
    /// When the latest turn's first message was read, ns.
    turn_read_ns: W,
    /// 1 if the thread's last message was written, 0 if it was read.
    writing: W,
    /// How far the order holds, by the power of two of the turn's messages: small turns keep it better.
    order: [Order<W>; ORDER_SIZES],
}

impl<W: Word> Thread<W> {
    /// Adds a message as the newest of its direction. Returns its tag, never 0, or `None` when the set is full.
    #[inline(always)]
    pub fn push(&self, direction: usize, arrival_ns: u64, read_ns: u64, downstream: u64) -> Option<u64> {
        if self.writing.load() != 0 || arrival_ns > self.turn_read_ns.load() {
            self.writing.store(0);
            self.turn_read_ns.store(read_ns);
            for direction in 0..2 {
                self.older_start[direction].store(self.turn_start[direction].load());
                self.turn_start[direction].store(self.pending[direction].tail.load());
            }
        }
        self.pending[direction & 1].push(arrival_ns, read_ns, downstream)
    }

    /// Takes the message that a write of this thread carries on, in `direction`. `downstream` is the socket a
    /// response is written to, 0 for a request. `random` decides where the thread does not keep the order of its
    /// messages: any bits, different each time.
    #[inline(always)]
    pub fn claim(&self, direction: usize, now_ns: u64, random: u32, downstream: u64) -> Claim {
        self.writing.store(1);
        let (own, other) = (direction & 1, (direction ^ 1) & 1);
        let (own_head, other_head) = (self.pending[own].clear_front(), self.pending[other].clear_front());
        let (own_end, own_older) = self.turn_end(own, own_head);
        let (other_end, other_older) = self.turn_end(other, other_head);
        let order = &self.order[size_class(self.turn_size(own_older))];
        if own_older == other_older
            && let (Some(own_ns), Some(other_ns)) =
                (self.pending[own].live_read_ns(own_head), self.pending[other].live_read_ns(other_head))
        {
            let (own_span, other_span) = (own_end - own_head, other_end - other_head);
            let kept = own_ns < other_ns;
            let of_oldest = if kept { own_span } else { other_span };
            // Never zero; the kernel's verifier wants to see that no division can fail.
            let chance = (of_oldest << 16).checked_div(own_span + other_span).unwrap_or(0);
            order.note(kept, chance);
        }
        let set = &self.pending[own];
        let own_start = if own_older { &self.older_start } else { &self.turn_start }[own].load();
        let next_downstream = set.next_in_order();
        if downstream != 0 && own_end - own_start > 1 {
            order.note_return(next_downstream == downstream);
        }
        let any =
            if order.holds(random & 0xffff) { None } else { set.claim_any(own_head, own_end, random >> 16) };
        let claim = match any {
            Some(claim) => claim,
            None => set.claim_oldest(now_ns),
        };
        if matches!(claim.found, Found::Message { .. }) {
            set.in_order.add(1);
        }
        Claim { downstream: next_downstream, ..claim }
    }

    /// How many messages of both directions the latest turn has so far, or the turn before it had.
    #[inline(always)]
    fn turn_size(&self, older: bool) -> u64 {
        let mut size = 0;
        for direction in 0..2 {
            let start = self.turn_start[direction].load();
            size += if older {
                start - self.older_start[direction].load()
            } else {
                self.pending[direction].tail.load() - start
            };
        }
        size
    }

    /// Where the turn of the oldest message in a set ends, and whether it is a turn before the latest.
    #[inline(always)]
    fn turn_end(&self, direction: usize, head: u64) -> (u64, bool) {
        let start = self.turn_start[direction & 1].load();
        if head < start { (start, true) } else { (self.pending[direction & 1].tail.load(), false) }
    }

    /// Ends all messages; returns how many there were. The thread is gone and its place is for another.
    #[inline(always)]
    pub fn clear(&self) -> u64 {
        for order in &self.order {
            order.returned.store(0);
            order.returned_right.store(0);
            order.seen.store(0);
            order.kept.store(0);
            order.chance.store(0);
        }
        self.pending[0].clear() + self.pending[1].clear()
    }
}

#[cfg(test)]
mod tests;
