//! The way back: a response goes to where the request came from that was written to its connection. That finds the response, and
//! shows which habit had foreseen the connection.

use super::{Lane, REQUEST, RESPONSE, Turn};
use crate::order::{Order, Return};
use crate::pending::position_of;
use crate::word::Word;

/// The request that a response may answer: what was read last from where it is written to.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    /// Its tag.
    request: u64,
    /// Name of the connection that it took off the stack; 0 if that is not known.
    pooled: u64,
    /// Name of the connection that it was written to; 0 if that is not known.
    pub(super) upstream: u64,
    /// When it was read, ns; 0 if that is not known.
    pub(super) read_ns: u64,
    /// The turn of the oldest response.
    turn: Turn,
}

impl<W: Word> Lane<W> {
    /// What is known of the request of this tag, as a response of this turn is written to where it came from.
    #[inline(always)]
    pub(super) fn asked(&self, request: u64, turn: Turn) -> Asked {
        let set = &self.pending[REQUEST];
        let (pooled, upstream, read_ns) = match set.remembered(request) {
            Some(entry) => (entry.pooled.load(), entry.upstream.load(), entry.read_ns.load()),
            None => (0, 0, 0),
        };
        Asked {
            request,
            pooled: set.blur(pooled),
            upstream: set.blur(upstream),
            read_ns: set.blur(read_ns),
            turn,
        }
    }

    /// Tag of the latest response of the connection `name`, if it was read since the request was; else 0. Whoever may have taken
    /// it: what other claims made of it must not tell against a habit.
    #[inline(always)]
    pub(super) fn answer(&self, name: u64, asked: &Asked) -> u64 {
        let set = &self.pending[RESPONSE];
        let tag = self.upstreams.get(name).map_or(0, |upstream| upstream.response.load());
        let since = set.remembered(tag).is_some_and(|entry| entry.read_ns.load() >= asked.read_ns);
        set.blur(if since { tag } else { 0 })
    }

    /// The same, if it is of the oldest turn.
    #[inline(always)]
    pub(super) fn answer_in_turn(&self, name: u64, asked: &Asked) -> u64 {
        let tag = self.answer(name, asked);
        let there = (asked.turn.start..asked.turn.end).contains(&position_of(tag));
        self.pending[RESPONSE].blur(if tag != 0 && there { tag } else { 0 })
    }

    /// Whether there is such a response of the oldest turn or a later one.
    #[inline(always)]
    pub(super) fn has_answer(&self, name: u64, asked: &Asked) -> bool {
        let tag = self.answer(name, asked);
        tag != 0 && position_of(tag) >= asked.turn.start
    }

    /// Says which habits have led back: `in_order` that of the reads, and what there is of the connections from the stack and
    /// `usual`. Where a connection was opened for the request, whose it was.
    #[inline(always)]
    pub(super) fn note_way_back(&self, asked: &Asked, order: &Order<W>, in_order: bool, usual: u64) {
        let next = self.upstreams.get(self.pending[RESPONSE].next_upstream());
        if asked.turn.end - asked.turn.start > 1 && !self.openers.waited(next) {
            let right = Return {
                order: in_order,
                pool: self.answer(asked.pooled, asked) != 0,
                usual: self.answer_in_turn(usual, asked) != 0,
            };
            order.note_return(in_order);
            self.habits.note_return(right);
        }
        if self.upstreams.get(asked.pooled).is_some_and(|opened| opened.opened_for.load() == asked.request) {
            let there = |name: u64| self.answer_in_turn(name, asked) != 0;
            let same = asked.pooled == asked.upstream;
            self.openers.note_return(same, there(asked.pooled), there(asked.upstream));
        }
    }
}
