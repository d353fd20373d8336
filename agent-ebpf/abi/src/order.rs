//! How far a thread keeps the order of its messages within a turn of its event loop.

use crate::pending::Word;

/// At this many claims both counts of the order are halved, so that an old habit is forgotten.
pub(crate) const ORDER_MEMORY: u64 = 4096;

/// Responses, all of which lead back, that a thread starts with.
const ORDER_PRIOR: u64 = 64;

/// This share of responses must lead back for a thread to keep the order: HAProxy's do but for those whose request
/// waited for a connection, Envoy's one in a few.
const ALL_RETURN: (u64, u64) = (7, 8);

/// Sizes of turns told apart: 1, 2 to 3, 4 to 7, ... 128 and more.
pub(crate) const ORDER_SIZES: usize = 8;

/// How far a thread keeps the order of its messages, as seen between the two directions.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Order<W> {
    /// Responses that had another one beside them in their turn, halved from time to time.
    pub(crate) returned: W,
    /// Those of them that pairing in order led back to where their request came from.
    pub(crate) returned_right: W,
    /// Claims while messages of both directions were pending in one turn, halved from time to time.
    pub(crate) seen: W,
    /// Those of them whose direction was that of the oldest message.
    pub(crate) kept: W,
    /// How many of them would have had it by chance, times 2^16.
    pub(crate) chance: W,
}

impl<W: Word> Order<W> {
    #[inline(always)]
    pub(crate) fn note_return(&self, right: bool) {
        let mut counts = [self.returned.load() + 1, self.returned_right.load() + u64::from(right)];
        if counts[0] >= ORDER_MEMORY {
            counts = counts.map(|count| count / 2);
        }
        self.returned.store(counts[0]);
        self.returned_right.store(counts[1]);
    }

    #[inline(always)]
    pub(crate) fn note(&self, kept: bool, chance: u64) {
        let mut counts =
            [self.seen.load() + 1, self.kept.load() + u64::from(kept), self.chance.load() + chance];
        if counts[0] >= ORDER_MEMORY {
            counts = counts.map(|count| count / 2);
        }
        self.seen.store(counts[0]);
        self.kept.store(counts[1]);
        self.chance.store(counts[2]);
    }

    /// True where responses lead back; else with the probability that the order is kept and not met by chance:
    /// (kept - chance) / (seen - chance). `random` is of 16 bits.
    #[inline(always)]
    pub(crate) fn holds(&self, random: u32) -> bool {
        let (returned, right) =
            (self.returned.load() + ORDER_PRIOR, self.returned_right.load() + ORDER_PRIOR);
        if right * ALL_RETURN.1 >= returned * ALL_RETURN.0 {
            return true;
        }
        let chance = self.chance.load();
        let (seen, kept) = (self.seen.load() << 16, self.kept.load() << 16);
        (u64::from(random) * seen.saturating_sub(chance)) >> 16 < kept.saturating_sub(chance)
    }
}

/// Which [`Order`] a turn of `size` messages has.
#[inline(always)]
pub(crate) const fn size_class(size: u64) -> usize {
    let log2 = 63 - (size | 1).leading_zeros() as usize;
    if log2 < ORDER_SIZES { log2 } else { ORDER_SIZES - 1 }
}
