//! How a lane chooses among the messages it has read: which habit shows it, learned by going there and back.
//!
//! Each habit foresees which upstream connection a request takes. When the response is written to where the request
//! came from, the response of that connection must be there, in the oldest turn. For the habit that is the proxy's own
//! it always is; for the others as often as chance has it.

use crate::word::Word;

/// At this many claims the counts are halved, so that an old habit is forgotten.
pub(crate) const ORDER_MEMORY: u64 = 4096;

/// Responses, all of which lead back in order, that a lane starts with.
const ORDER_PRIOR: u64 = 16;

/// This share of responses must lead back for a lane to keep the order: HAProxy's do but for those whose request
/// waited for a connection, Envoy's one in a few.
const ALL_RETURN: (u64, u64) = (7, 8);

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

/// How far each habit holds in a lane, in turns of one size.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Order<W> {
    /// Responses that had another one beside them in their turn, halved from time to time.
    pub(crate) returned: W,
    /// Those of them that led back by order, pool and usual connection.
    pub(crate) reads_right: W,
    pub(crate) by_pool: W,
    pub(crate) as_usual: W,
    /// Claims while messages of both directions were pending in one turn, halved from time to time.
    pub(crate) seen: W,
    /// Those of them whose direction was that of the oldest message.
    pub(crate) kept: W,
    /// How many of them would have had it by chance, times 2^16.
    pub(crate) chance: W,
}

impl<W: Word> Order<W> {
    #[inline(always)]
    pub(crate) fn note_return(&self, right: Return) {
        let halve = u32::from(self.returned.load() >= ORDER_MEMORY);
        self.returned.store((self.returned.load() >> halve) + 1);
        for (count, right) in
            [(&self.reads_right, right.order), (&self.by_pool, right.pool), (&self.as_usual, right.usual)]
        {
            count.store((count.load() >> halve) + u64::from(right));
        }
    }

    #[inline(always)]
    pub(crate) fn note(&self, kept: bool, chance: u64) {
        let halve = u32::from(self.seen.load() >= ORDER_MEMORY);
        self.seen.store((self.seen.load() >> halve) + 1);
        self.kept.store((self.kept.load() >> halve) + u64::from(kept));
        self.chance.store((self.chance.load() >> halve) + chance);
    }

    /// The habit that leads back most often, the order where no other is clearly better. Half of the responses are enough
    /// for the usual connection: what is taken wrongly while it is learned tells against it.
    #[inline(always)]
    pub(crate) fn habit(&self) -> Habit {
        let (returned, order) = (self.returned.load() + ORDER_PRIOR, self.reads_right.load() + ORDER_PRIOR);
        let (pool, usual) = (self.by_pool.load(), self.as_usual.load());
        let all_return = |right: u64| right * ALL_RETURN.1 >= returned * ALL_RETURN.0;
        let better = |right: u64| right * CLEARLY.1 > order * CLEARLY.0;
        if better(usual) && usual >= pool && usual * 2 > returned {
            Habit::Usual
        } else if better(pool) && all_return(pool) {
            Habit::Pool
        } else if all_return(order) {
            Habit::Order
        } else {
            Habit::Chance
        }
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
        for word in [
            &self.returned,
            &self.reads_right,
            &self.by_pool,
            &self.as_usual,
            &self.seen,
            &self.kept,
            &self.chance,
        ] {
            word.store(0);
        }
    }
}

/// Which [`Order`] a turn of `size` messages has.
#[inline(always)]
pub(crate) const fn size_class(size: u64) -> usize {
    let log2 = 63 - (size | 1).leading_zeros() as usize;
    if log2 < ORDER_SIZES { log2 } else { ORDER_SIZES - 1 }
}

#[cfg(test)]
mod tests;
