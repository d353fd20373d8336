//! Messages of connections that carry several at once: each is what one segment brought, and may have been none.

use super::{CLAIMED, DROPPED, LIVE, Pending, position_of, tag};
use crate::word::Word;

/// Marks what was read together with other messages: which it was, and whether it was one, is not known.
pub const BATCH: u64 = 1 << 63;

/// Marks what was read alone and may have been a control record.
pub(crate) const RECORD: u64 = 1 << 62;

/// How long what was read may wait while nothing else is read. An idle loop writes a message on at once; the window updates
/// that `HAProxy` sends waited 0.1 to 1.3 ms for the next request at 2,000 a second.
pub(crate) const RECORD_GRACE_NS: u64 = 400_000;

/// How many messages one step looks at that takes those which a write of a multiplexed connection carries on.
pub const DRAIN: usize = 16;

/// How many such steps a write may take. Envoy writes the requests of all its clients that one round of its loop has
/// read to one connection at once.
pub const DRAIN_STEPS: usize = 16;

/// How many entries at the front are looked at for what was no message; more than one read adds.
pub(crate) const FORGET_STEPS: u64 = 16;

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
    /// How many bytes more the message may have that the write begins; 0 if it begins several.
    pub unwritten: u64,
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
        self.bytes_at(position_of(pushed_tag)) as u64
    }

    /// ... with the message at this position.
    #[inline(always)]
    pub(crate) fn bytes_at(&self, position: u64) -> usize {
        self.entry(position).downstream.load() as u32 as usize
    }

    /// Forgets the oldest messages before the position `stale` that were read together with others: they were none.
    #[inline(always)]
    pub(crate) fn forget_before(&self, stale: u64) {
        let head = self.front();
        for ahead in 0..FORGET_STEPS {
            if head + ahead >= stale {
                break;
            }
            let _was_there = self.forget(head + ahead);
        }
    }

    /// Ends the message at this position, if it may have been a control record and still waits. Whether it did.
    #[inline(always)]
    pub(crate) fn end_record(&self, position: u64) -> bool {
        self.entry(position).may_be_record() && self.end(tag(position, LIVE))
    }

    /// Whether the message of this tag has waited for so long when more of its connection arrives that it would have been
    /// written on.
    #[inline(always)]
    pub fn has_rested(&self, pushed_tag: u64, arrival_ns: u64) -> bool {
        self.when_read(pushed_tag).is_some_and(|read_ns| arrival_ns > read_ns + RECORD_GRACE_NS)
    }

    /// Whether what was read with this tag was a control record, as more of its connection arrives: it has ended as one, or a
    /// write took it for a message and that was long ago.
    #[inline(always)]
    pub fn was_record(&self, pushed_tag: u64, arrival_ns: u64) -> bool {
        let Some(entry) = self.remembered(pushed_tag) else { return false };
        let state = self.state_at(position_of(pushed_tag));
        let long_ago = self.was_written_long_ago(pushed_tag, arrival_ns);
        entry.may_be_record() && (state == DROPPED || long_ago)
    }

    /// Whether a write took what was read with this tag, as more of its connection arrives, so long ago that the rest of a
    /// message would have come.
    #[inline(always)]
    pub fn was_written_long_ago(&self, pushed_tag: u64, arrival_ns: u64) -> bool {
        self.state_at(position_of(pushed_tag)) == CLAIMED && self.has_rested(pushed_tag, arrival_ns)
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
