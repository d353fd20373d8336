//! How a lane chooses among the messages it has read: which habit shows it, learned by going there and back.
//!
//! Each habit foresees which upstream connection a request takes. When the response is written to where the request
//! came from, the response of that connection must be there: of the usual one in the oldest turn, of the one from the stack
//! anywhere, since that was not chosen by what was claimed before. For the habit that is the proxy's own it always is; for
//! the others as often as chance has it.

use crate::word::Word;

/// At this many claims the counts are halved, so that an old habit is forgotten.
pub(crate) const ORDER_MEMORY: u64 = 4096;

/// Responses, all of which lead back in order, that a lane starts with.
const ORDER_PRIOR: u64 = 16;

/// This share of responses must lead back for a lane to keep the order: HAProxy's do but for those whose request
/// waited for a connection, Envoy's one in a few.
const KEEPS_ORDER: (u64, u64) = (7, 8);

/// ... and this share for the stack of free connections to be one. Of 2,189 to 2,982 responses of Envoy with one server all did,
/// 83 to 91 % with four, each of which has a stack of its own.
const IS_STACK: (u64, u64) = (31, 32);

/// ... and this share for what the usual connection brings to be taken from any turn. `io_uring` 92 to 99 %, once it is learned; while
/// Envoy learns 256 tunnels 50 to 85.
const IS_SURE: (u64, u64) = (7, 8);

/// A habit goes before the order if it leads back more often in this proportion.
const CLEARLY: (u64, u64) = (17, 16);

/// Sizes of turns told apart: 1, 2 to 3, 4 to 7, ... 128 and more.
pub(crate) const ORDER_SIZES: usize = 8;

/// What shows which request a write carries on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Habit {
    /// The order of the reads.
    Order,
    /// The stack of free connections.
    Pool,
    /// The connection of the request before.
    Usual,
    /// Nothing but how far the order holds.
    Chance,
}

/// Whether each habit led back, for one response.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Return {
    pub(crate) order: bool,
    pub(crate) pool: bool,
    pub(crate) usual: bool,
}

/// How far the habits of a lane hold that do not depend on the size of its turns.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Habits<W> {
    /// Responses that had another one beside them in their turn, halved from time to time.
    pub(crate) returned: W,
    /// Those of them that led back by order, pool and usual connection.
    pub(crate) in_order: W,
    pub(crate) by_pool: W,
    pub(crate) as_usual: W,
}

/// How far the order of the reads holds in turns of one size: small ones keep it better.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Order<W> {
    /// Responses that had another one beside them in their turn, halved from time to time.
    pub(crate) returned: W,
    /// Those of them that led back in order.
    pub(crate) right: W,
    /// Claims while messages of both directions were pending in one turn, halved from time to time.
    pub(crate) seen: W,
    /// Those of them whose direction was that of the oldest message.
    pub(crate) kept: W,
    /// How many of them would have had it by chance, times 2^16.
    pub(crate) chance: W,
}

impl<W: Word> Habits<W> {
    #[inline(always)]
    pub(crate) fn note_return(&self, right: Return) {
        let counts =
            [(&self.in_order, right.order), (&self.by_pool, right.pool), (&self.as_usual, right.usual)];
        count(&self.returned, counts);
    }

    /// The pool or the usual connection, whichever leads back more often and clearly more so than the order. Half of the
    /// responses are enough for the usual connection: what is taken wrongly while it is learned tells against it.
    #[inline(always)]
    pub(crate) fn strongest(&self) -> Option<Habit> {
        let (returned, order) = (self.returned.load() + ORDER_PRIOR, self.in_order.load() + ORDER_PRIOR);
        let (pool, usual) = (self.by_pool.load(), self.as_usual.load());
        let better = |right: u64| right * CLEARLY.1 > order * CLEARLY.0;
        if better(usual) && usual >= pool && usual * 2 > returned {
            Some(Habit::Usual)
        } else if better(pool) && is_share(pool, self.returned.load(), IS_STACK) {
            Some(Habit::Pool)
        } else {
            None
        }
    }

    /// Whether none leads back often enough, the order of the reads neither: messages are paired by chance. In a crowd, which
    /// comes before the order has shown, that says nothing.
    #[inline(always)]
    pub(crate) fn fail(&self, crowded: bool) -> bool {
        let (in_order, returned) = (self.in_order.load() + ORDER_PRIOR, self.returned.load() + ORDER_PRIOR);
        self.strongest().is_none() && (crowded || !is_share(in_order, returned, KEEPS_ORDER))
    }

    /// Whether this habit leads back so often that what it foresees is taken from any turn.
    #[inline(always)]
    pub(crate) fn is_sure(&self, habit: u64) -> bool {
        let usual = habit == Habit::Usual as u64;
        habit == Habit::Pool as u64 || usual && is_share(self.as_usual.load(), self.returned.load(), IS_SURE)
    }

    #[inline(always)]
    pub(crate) fn clear(&self) {
        for word in [&self.returned, &self.in_order, &self.by_pool, &self.as_usual] {
            word.store(0);
        }
    }
}

impl<W: Word> Order<W> {
    #[inline(always)]
    pub(crate) fn note_return(&self, in_order: bool) {
        count(&self.returned, [(&self.right, in_order)]);
    }

    #[inline(always)]
    pub(crate) fn note(&self, kept: bool, chance: u64) {
        let halve = u32::from(self.seen.load() >= ORDER_MEMORY);
        self.seen.store((self.seen.load() >> halve) + 1);
        self.kept.store((self.kept.load() >> halve) + u64::from(kept));
        self.chance.store((self.chance.load() >> halve) + chance);
    }

    /// Whether enough lead back in order.
    #[inline(always)]
    pub(crate) fn is_kept(&self) -> bool {
        is_share(self.right.load() + ORDER_PRIOR, self.returned.load() + ORDER_PRIOR, KEEPS_ORDER)
    }

    /// True with the probability that the order is kept and not met by chance: (kept - chance) / (seen - chance).
    /// `random` is of 16 bits.
    #[inline(always)]
    pub(crate) fn holds(&self, random: u32) -> bool {
        let chance = self.chance.load();
        let (seen, kept) = (self.seen.load() << 16, self.kept.load() << 16);
        (u64::from(random) * seen.saturating_sub(chance)) >> 16 < kept.saturating_sub(chance)
    }

    #[inline(always)]
    pub(crate) fn clear(&self) {
        for word in [&self.returned, &self.right, &self.seen, &self.kept, &self.chance] {
            word.store(0);
        }
    }
}

/// Counts one more of `all`, and of those that it is one of; halves them from time to time.
#[inline(always)]
fn count<W: Word, const N: usize>(all: &W, counts: [(&W, bool); N]) {
    let halve = u32::from(all.load() >= ORDER_MEMORY);
    all.store((all.load() >> halve) + 1);
    for (count, one) in counts {
        count.store((count.load() >> halve) + u64::from(one));
    }
}

#[inline(always)]
const fn is_share(part: u64, all: u64, share: (u64, u64)) -> bool {
    part * share.1 >= all * share.0
}

/// Which [`Order`] a turn of `size` messages has.
#[inline(always)]
pub(crate) const fn size_class(size: u64) -> usize {
    let log2 = 63 - (size | 1).leading_zeros() as usize;
    if log2 < ORDER_SIZES { log2 } else { ORDER_SIZES - 1 }
}

#[cfg(test)]
mod tests;
