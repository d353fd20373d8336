//! Messages of connections that carry several at once: each is what one segment brought, and may have been none.

use super::{CLAIMED, DROPPED, LIVE, Pending, tag};
use crate::word::Word;

/// Marks what was read together with other messages: which it was, and whether it was one, is not known.
pub const BATCH: u64 = 1 << 63;

/// How many messages one step looks at that takes those which a write of a multiplexed connection carries on.
pub const DRAIN: usize = 16;

/// How many such steps a write may take. Envoy writes the requests of all its clients that one round of its loop has
/// read to one connection at once.
pub const DRAIN_STEPS: usize = 16;

/// How many entries at the front are looked at for what was no message; more than one read adds.
const FORGET_STEPS: usize = 16;

/// What a write of a multiplexed connection has taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// The first position of the range it is in.
    pub start: u64,
    /// The position behind it.
    pub end: u64,
    /// Messages that were read alone.
    pub singles: u64,
    /// Messages that were read together with others.
    pub batches: u64,
    /// 1 if it has taken none and carries on more of a segment that another write began, which came and was read then.
    pub rest: u64,
    /// ... when that arrived, 0 if that was not seen.
    pub arrival_ns: u64,
    /// ... when it was read.
    pub read_ns: u64,
    /// Position of the last one taken.
    pub(crate) last: u64,
    /// What the messages are marked with that are its own.
    pub(crate) mark: u64,
    /// How many it may take from the position `recent` on.
    pub(crate) most: u64,
    pub(crate) recent: u64,
    /// 1 once there is no more to take.
    pub done: u64,
}

impl<W: Word> Pending<W> {
    /// One step of taking every message for the connection of that mark, up to `most` of them from the position `recent`
    /// on: looks at up to [`DRAIN`]. Those taken lie between `start` and `end`: some in between may not be its own, see
    /// [`Pending::drained`].
    #[inline(always)]
    pub(crate) fn drain(&self, drained: &mut Drained) {
        let tail = self.tail.load();
        let mut done = 0;
        for _ in 0..DRAIN {
            let enough = drained.end >= drained.recent && drained.singles + drained.batches >= drained.most;
            if drained.end >= tail || enough {
                done = 1;
                break;
            }
            let position = drained.end;
            drained.end += 1;
            if self.take(tag(position, LIVE)) != 0 {
                let entry = self.entry(position);
                entry.upstream.store(drained.mark);
                drained.last = position;
                let batch = entry.downstream.load() >> BATCH.trailing_zeros();
                drained.batches += batch;
                drained.singles += 1 - batch;
            }
        }
        self.head.store(drained.end);
        drained.end = self.blur(drained.end);
        drained.last = self.blur(drained.last);
        drained.singles = self.blur(drained.singles);
        drained.batches = self.blur(drained.batches);
        drained.done = self.blur(done);
    }

    /// When the message at this position arrived and was read, if the connection of that mark drained it; once. Threads that share
    /// a lane may set the front back, so that a position is come to again.
    #[inline(always)]
    pub fn drained(&self, position: u64, mark: u64) -> Option<(u64, u64)> {
        let entry = self.entry(position);
        let own = entry.tag.load() == tag(position, CLAIMED) && entry.upstream.swap_if(mark, 0);
        own.then(|| (entry.arrival_ns.load(), entry.read_ns.load()))
    }

    /// Whether the message at this position was read together with others.
    #[inline(always)]
    pub(crate) fn is_batch(&self, position: u64) -> bool {
        self.entry(position).downstream.load() & BATCH != 0
    }

    /// Adds so many bytes that were read together. Returns their tag.
    #[inline(always)]
    pub(crate) fn push_batch(&self, arrival_ns: u64, read_ns: u64, bytes: u32) -> Option<u64> {
        self.push(arrival_ns, read_ns, BATCH | u64::from(bytes), 0)
    }

    /// How many bytes were read with the message of this tag, and together with others.
    #[inline(always)]
    pub(crate) fn bytes_of(&self, pushed_tag: u64) -> u64 {
        self.of(pushed_tag).downstream.load() & u64::from(u32::MAX)
    }

    /// Forgets the oldest messages before the position `stale` that were read together with others and have one of these
    /// lengths, in bytes: they were none.
    #[inline(always)]
    pub(crate) fn forget_before(&self, stale: u64, of_length: impl Fn(usize) -> bool) {
        let head = self.front();
        for ahead in 0..FORGET_STEPS as u64 {
            if head + ahead >= stale {
                break;
            }
            if of_length(self.bytes_of(tag(head + ahead, LIVE)) as usize) {
                let _was_there = self.forget(head + ahead);
            }
        }
    }

    /// Forgets the message at this position, if it was read together with others and nobody has claimed it. Whether it did.
    #[inline(always)]
    pub fn forget(&self, position: u64) -> bool {
        let entry = self.entry(position);
        let forgotten =
            self.is_batch(position) && entry.tag.swap_if(tag(position, LIVE), tag(position, DROPPED));
        self.live.add(if forgotten { u64::MAX } else { 0 });
        forgotten
    }
}
