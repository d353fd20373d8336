//! The turns of an event loop: a turn begins with a read, and what was read in one may be written on in any order. Which turn the
//! oldest message of a set is in, and from when on a response is stale.

use super::{Lane, REQUEST, RESPONSE};
use crate::order::{Order, size_class};
use crate::pending::{ENTRIES, tag_at};
use crate::word::Word;

/// After so many rounds of reads and writes a response is stale. Envoy writes in the next, but where connections to its clients
/// close it writes between reads, and a loop has many rounds: with 4, 1.9 % of the responses to 64 clients were given up.
const STALE_AFTER: usize = 16;

/// ... and in a crowd ([`CROWD`]) so many for each response that waits: each may be read and written in a round of its own. With
/// [`STALE_AFTER`] the responses' mean of `HAProxy` with 256 connections to one thread was 12 % short.
const STALE_AFTER_EACH: u64 = 4;

/// How many rounds are remembered.
pub(super) const ROUNDS: usize = 512;

/// With so many messages at once in a lane its loop may not get through all of them in one round.
pub(super) const CROWD: u64 = 32;

/// How many ended messages behind a stale one are passed over at once.
const STALE_STEPS: usize = 4;

/// Of the two turns known, the one that the oldest message of a set is in.
#[derive(Clone, Copy)]
pub(super) struct Turn {
    pub(super) start: u64,
    pub(super) end: u64,
    /// Whether it is the one before the latest.
    pub(super) older: bool,
    /// Position of that message.
    pub(super) oldest: u64,
}

impl<W: Word> Lane<W> {
    /// The place of this round of the loop in [`Lane::rounds`].
    #[inline(always)]
    pub(super) fn this_round(&self) -> usize {
        self.round.load().wrapping_sub(1) as usize % ROUNDS
    }

    /// Says that something was read: a turn begins with it, or it belongs to the latest.
    #[inline(always)]
    pub fn begin_turn(&self, arrival_ns: u64, read_ns: u64) {
        self.ended.store(0);
        if self.shared.load() != 0 {
            return;
        }
        let in_turn = self.writing.load() == 0 && arrival_ns <= self.turn_read_ns.load();
        self.note_next();
        if in_turn {
            return;
        }
        if self.writing.load() != 0 {
            let round = self.round.fetch_add(1) as usize;
            let waiting = self.pending[RESPONSE].live.load();
            let ago = if waiting >= CROWD { (waiting * STALE_AFTER_EACH) as usize } else { STALE_AFTER };
            let ago = ago.min(ROUNDS);
            self.stale.store(self.rounds[round.wrapping_sub(ago) % ROUNDS][RESPONSE].load());
            let begin = &self.rounds[round % ROUNDS];
            begin[REQUEST].store(self.pending[REQUEST].tail.load());
            begin[RESPONSE].store(self.pending[RESPONSE].tail.load());
        }
        self.writing.store(0);
        self.turn_read_ns.store(read_ns);
        for direction in 0..2 {
            self.older_start[direction].store(self.turn_start[direction].load());
            self.turn_start[direction].store(self.pending[direction].tail.load());
        }
    }

    /// The position of the oldest message that a write may carry on unforeseen. A stale response does not count while
    /// there is another: where it should have gone was written to without it.
    #[inline(always)]
    pub(super) fn head(&self, direction: usize) -> u64 {
        let set = &self.pending[direction];
        let (head, known) = (set.front(), self.stale.load());
        if direction == REQUEST || head >= known || self.shared.load() != 0 {
            return head;
        }
        let mut position = self.past_stale.load().max(known);
        for _ in 0..STALE_STEPS {
            if position < set.tail.load() && !set.is_claimable(tag_at(position)) {
                position += 1;
            }
        }
        self.past_stale.store(position);
        let found = position < set.tail.load() && set.is_claimable(tag_at(position));
        set.blur(if found { position } else { head })
    }

    /// The turn of the oldest message in a set, and how its habits hold. Notes whether the order holds between the
    /// directions, as far as this claim shows it.
    #[inline(always)]
    pub(super) fn look(&self, own: usize) -> (Turn, &Order<W>) {
        self.writing.store(1);
        self.writes[own].add(1);
        let other = own ^ 1;
        let (own_head, other_head) = (self.head(own), self.head(other));
        if self.shared.load() != 0 {
            let end = self.pending[own].tail.load();
            let start = self.pending[own].blur(end.saturating_sub(ENTRIES as u64));
            let turn = Turn { start, end, older: false, oldest: start };
            return (turn, &self.order[size_class(self.pending[own].live.load())]);
        }
        let (turn, other_turn) = (self.turn(own, own_head), self.turn(other, other_head));
        let order = &self.order[size_class(self.turn_size(turn.older))];
        if turn.older == other_turn.older
            && let (Some(own_ns), Some(other_ns)) =
                (self.pending[own].live_read_ns(own_head), self.pending[other].live_read_ns(other_head))
        {
            let (own_span, other_span) = (turn.end - own_head, other_turn.end - other_head);
            let kept = own_ns < other_ns;
            let of_oldest = if kept { own_span } else { other_span };
            // Never zero; the kernel's verifier wants to see that no division can fail.
            let chance = (of_oldest << 16).checked_div(own_span + other_span).unwrap_or(0);
            order.note(kept, chance);
        }
        (turn, order)
    }

    /// How many messages of both directions the latest turn has so far, or the turn before it had.
    #[inline(always)]
    pub(super) fn turn_size(&self, older: bool) -> u64 {
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

    /// The turn of the message at `head` of a set.
    #[inline(always)]
    pub(super) fn turn(&self, direction: usize, head: u64) -> Turn {
        let latest = self.turn_start[direction].load();
        let (start, end) = if head < latest {
            (self.older_start[direction].load(), latest)
        } else {
            (latest, self.pending[direction].tail.load())
        };
        let set = &self.pending[direction];
        let older = set.blur(u64::from(head < latest)) != 0;
        Turn { start: set.blur(start), end: set.blur(end), older, oldest: head }
    }
}
