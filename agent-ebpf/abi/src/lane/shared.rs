//! Threads that hand work to each other (Go, tokio): all of a process share one lane, and there are no turns.
//!
//! A write carries on what its own thread read last, as what was handed over runs next; else what its reader has left,
//! since it has read another message since; else the oldest of the process. Who read last is who took the last part of the
//! message: Go has another thread wait for its first byte.

use super::turn::CROWD;
use super::{Lane, REQUEST, RESPONSE};
use crate::pending::{ENTRIES, tag_at};
use crate::word::Word;

/// Messages of each direction that a thread remembers to have read.
pub const RECENT: usize = 4;

/// Marks the reader of a message that has read another one since.
const LEFT: u64 = 1 << 32;

/// How many of the oldest messages are looked at for one that was left so.
const LEFT_STEPS: u64 = 16;

/// How much longer than [`ORPHAN_GRACE_NS`](crate::pending::ORPHAN_GRACE_NS) orphans wait where threads share a lane.
const PATIENCE_NS: u64 = 1_000_000_000;

/// With so many places of a set in use, some may long be free again behind an old message.
const FULL_SOON: u64 = ENTRIES as u64 * 3 / 4;

/// What one thread of those that share a lane has read last. Only that thread uses it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Recent {
    /// How many it has read in each direction.
    read: [u64; 2],
    /// Tags of the latest, by that number.
    tags: [[u64; RECENT]; 2],
}

impl Recent {
    /// The tags of the latest in each direction; 0 where there is none.
    #[inline(always)]
    fn latest(&self) -> [u64; 2] {
        [0, 1].map(|direction| self.tags[direction][self.read[direction].wrapping_sub(1) as usize % RECENT])
    }

    #[inline(always)]
    fn note(&mut self, direction: usize, tag: u64) {
        let read = self.read[direction];
        self.tags[direction][read as usize % RECENT] = tag;
        self.read[direction] = read + 1;
    }
}

impl<W: Word> Lane<W> {
    /// Makes it one that all threads of a process share.
    #[inline(always)]
    pub fn share(&self) {
        self.shared.store(1);
    }

    /// Says that a connection waits for its response (see [`Lane::has_surplus`]), or no longer.
    #[inline(always)]
    pub fn count_waiting(&self, opened: bool, waits: bool) {
        self.waiting_on[usize::from(opened)].add(if waits { 1 } else { u64::MAX });
    }

    /// True if more messages are pending than can be inside the process: those that came in and were not answered yet,
    /// less those that are at a server. So one of them went nowhere, and its write will not come.
    #[inline(always)]
    pub fn has_surplus(&self) -> bool {
        // Other threads go on meanwhile: a read adds to what is inside first, a write takes from what is pending first.
        let before = self.pending();
        let inside = self.inside();
        before.min(self.pending()) > inside
    }

    /// True if fewer messages are pending than are inside: one was ended whose write is still to come. It is not known where
    /// threads share a lane, as others go on meanwhile, and where connections carry several messages at once; nor with few
    /// messages while it is learned that threads hand work over. A lane of few is empty now and then anyway.
    #[inline(always)]
    pub(super) fn has_deficit(&self) -> bool {
        let several = self.latest[REQUEST].several.load() | self.latest[RESPONSE].several.load();
        let pending = self.pending();
        self.shared.load() | several == 0 && pending >= CROWD.cast_signed() && pending < self.inside()
    }

    #[inline(always)]
    fn pending(&self) -> i64 {
        (self.pending[REQUEST].live.load() + self.pending[RESPONSE].live.load()).cast_signed()
    }

    #[inline(always)]
    fn inside(&self) -> i64 {
        self.waiting_on[0].load().wrapping_sub(self.waiting_on[1].load()).cast_signed()
    }

    /// Says that this thread has read the latest part of a message.
    #[inline(always)]
    pub fn note_reader(&self, direction: usize, tag: u64, tid: u32, recent: &mut Recent) {
        if let Some(entry) = self.pending[direction & 1].remembered(tag)
            && entry.thread.load() & !LEFT != u64::from(tid)
        {
            for (set, latest) in self.pending.iter().zip(recent.latest()) {
                if set.is_live(latest) && set.of(latest).thread.load() == u64::from(tid) {
                    set.of(latest).thread.store(u64::from(tid) | LEFT);
                }
            }
            entry.thread.store(u64::from(tid));
            recent.note(direction & 1, tag);
        }
    }

    /// The tag of what this thread has read last and nobody has claimed; 0 if there is none among the latest.
    #[inline(always)]
    pub fn newest(&self, direction: usize, tid: u32, recent: &Recent) -> u64 {
        let set = &self.pending[direction & 1];
        let mut newest = 0;
        // From the oldest of them up, so that the newest one stays.
        for back in (1..=RECENT as u64).rev() {
            let tag =
                recent.tags[direction & 1][recent.read[direction & 1].wrapping_sub(back) as usize % RECENT];
            if set.is_live(tag) && set.of(tag).thread.load() & !LEFT == u64::from(tid) {
                newest = tag;
            }
        }
        set.blur(newest)
    }

    /// What a thread takes where threads share the lane: what it has read last (`newest`), or, if it has read nothing, the
    /// oldest message whose reader has read another since, so has handed it over. 0 where the oldest of all is to be
    /// taken: there is none of these, or the oldest is so old that the set would fill up behind it.
    #[inline(always)]
    pub fn newest_or_left(&self, direction: usize, newest: u64) -> u64 {
        let set = &self.pending[direction & 1];
        let head = set.front();
        if set.tail.load() - head > FULL_SOON {
            return 0;
        }
        let mut left = newest;
        if newest == 0 {
            for ahead in 0..LEFT_STEPS {
                let tag = tag_at(head + ahead);
                let is_left = set.is_live(tag) && set.of(tag).thread.load() & LEFT != 0;
                left = set.blur(if left == 0 && is_left { tag } else { left });
            }
        }
        left
    }

    /// The time by which orphans are judged. Where threads share the lane they stand for messages whose write is still to
    /// come, which may be late when there are more threads than CPUs.
    #[inline(always)]
    pub(super) fn patient(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(if self.shared.load() == 0 { 0 } else { PATIENCE_NS })
    }
}
