//! Messages that a proxy thread has read and not yet written on, oldest first.
//!
//! Only the thread that owns a set pushes to it and claims from it; any CPU may end an entry, when the entry's
//! socket answers or closes. Every step is O(1): the searches are bounded by constants.

/// A 64-bit word that several CPUs may change. All operations are single and relaxed: no entry is published
/// to another thread, and an entry is ended by one compare-and-swap on its tag.
pub trait Word {
    /// Its value now.
    fn load(&self) -> u64;
    /// Sets it.
    fn store(&self, value: u64);
    /// Adds, wrapping.
    fn add(&self, value: u64);
    /// Sets it to `new` if it is `old`; says whether it did.
    fn swap_if(&self, old: u64, new: u64) -> bool;
}

/// Entries in one set. Connections per thread that can have a message inside the proxy at the same instant.
pub const ENTRIES: usize = 1024;

/// How many ended entries at the front are cleared away before a claim.
const CLEAR_STEPS: usize = 32;

/// How many entries at the front one claim may pass over after that.
const CLAIM_STEPS: usize = 4;

/// How many dropped entries are passed over in search of the next in order.
const IN_ORDER_STEPS: usize = 4;

/// How often a live entry is sought anywhere in a turn before the oldest is taken.
const ANY_STEPS: usize = 8;

/// How many ended entries one push clears away; more than the one it adds, so they cannot pile up.
const PUSH_STEPS: usize = 2;

/// How long an entry whose upstream connection has closed may still be claimed. A proxy may close upstream
/// and only then flush the response downstream (nginx does: `ngx_http_upstream_finalize_request`).
pub const ORPHAN_GRACE_NS: u64 = 50_000_000;

const STATE_BITS: u32 = 2;
const LIVE: u64 = 1;
const ORPHAN: u64 = 2;
const CLAIMED: u64 = 3;
const DROPPED: u64 = 0;

/// One message. The tag is its position in the set's history and its state, so that a stale tag never
/// names a later message.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Entry<W> {
    tag: W,
    arrival_ns: W,
    read_ns: W,
    /// Which downstream socket a request came from, or a response should go to if all were paired in order.
    downstream: W,
}

/// Messages of one thread and one direction.
#[derive(Debug)]
#[repr(C)]
pub struct Pending<W> {
    /// Position of the oldest entry that may be live.
    pub(crate) head: W,
    /// Position the next entry gets.
    pub(crate) tail: W,
    /// How many entries are live or orphans.
    pub(crate) live: W,
    /// Position that would be claimed next if all were claimed in order.
    pub(crate) in_order: W,
    pub(crate) entries: [Entry<W>; ENTRIES],
}

/// What a claim found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The message taken, if there was one.
    pub found: Found,
    /// Orphans that were too old and were ended on the way.
    pub expired: u64,
    /// The downstream socket of the message that is next in order, whichever was taken.
    pub downstream: u64,
}

/// The message a claim took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The oldest message.
    Message {
        /// When it arrived; 0 when that was not seen.
        arrival_ns: u64,
        /// When it was read.
        read_ns: u64,
        /// True if it was the only one.
        alone: bool,
    },
    /// There is none.
    Nothing,
    /// There may be one behind more ended entries than a claim may pass over.
    TooFar,
}

impl<W: Word> Pending<W> {
    #[inline(always)]
    pub(crate) fn push(&self, arrival_ns: u64, read_ns: u64, downstream: u64) -> Option<u64> {
        let tail = self.tail.load();
        let mut head = self.head.load();
        if self.live.load() == 0 {
            self.in_order.store(tail);
        }
        for _ in 0..PUSH_STEPS {
            if head != tail && is_over(self.entry(head).tag.load()) {
                head += 1;
            }
        }
        self.head.store(head);
        if tail - head >= ENTRIES as u64 {
            return None;
        }
        let entry = self.entry(tail);
        entry.arrival_ns.store(arrival_ns);
        entry.read_ns.store(read_ns);
        entry.downstream.store(downstream);
        entry.tag.store(tag(tail, LIVE));
        self.tail.store(tail + 1);
        self.live.add(1);
        Some(tag(tail, LIVE))
    }

    /// Clears ended entries away from the front; the position of the oldest that is left.
    #[inline(always)]
    pub(crate) fn clear_front(&self) -> u64 {
        let tail = self.tail.load();
        let mut head = self.head.load();
        for _ in 0..CLEAR_STEPS {
            if head == tail || !is_over(self.entry(head).tag.load()) {
                break;
            }
            head += 1;
        }
        self.head.store(head);
        head
    }

    /// The downstream socket of the message that would be claimed next in order; 0 if there is none.
    #[inline(always)]
    pub(crate) fn next_in_order(&self) -> u64 {
        let tail = self.tail.load();
        let mut position = self.in_order.load();
        for _ in 0..IN_ORDER_STEPS {
            if position < tail && self.entry(position).tag.load() == tag(position, DROPPED) {
                position += 1;
            }
        }
        self.in_order.store(position);
        if position < tail { self.entry(position).downstream.load() } else { 0 }
    }

    /// When the message at `position` was read, if it is live.
    #[inline(always)]
    pub(crate) fn live_read_ns(&self, position: u64) -> Option<u64> {
        let entry = self.entry(position);
        (position != self.tail.load() && entry.tag.load() == tag(position, LIVE))
            .then(|| entry.read_ns.load())
    }

    /// Takes any live message from `start` up to `end`; `None` if none was hit upon.
    #[inline(always)]
    pub(crate) fn claim_any(&self, start: u64, end: u64, mut random: u32) -> Option<Claim> {
        let span = end.checked_sub(start)?;
        if span < 2 {
            return None;
        }
        let alone = self.live.load() == 1;
        for _ in 0..ANY_STEPS {
            let position = start + u64::from(random).checked_rem(span)?;
            // The multiplier of a full-period generator modulo 2^32 (Numerical Recipes, 3rd ed., 7.1).
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let entry = self.entry(position);
            if entry.tag.swap_if(tag(position, LIVE), tag(position, CLAIMED)) {
                self.live.add(u64::MAX);
                let (arrival_ns, read_ns) = (entry.arrival_ns.load(), entry.read_ns.load());
                return Some(Claim {
                    found: Found::Message { arrival_ns, read_ns, alone },
                    expired: 0,
                    downstream: 0,
                });
            }
        }
        None
    }

    /// Takes the oldest message.
    #[inline(always)]
    pub(crate) fn claim_oldest(&self, now_ns: u64) -> Claim {
        let tail = self.tail.load();
        let mut head = self.head.load();
        let mut found = Found::TooFar;
        let mut expired = 0;
        for _ in 0..CLAIM_STEPS {
            if head == tail {
                found = Found::Nothing;
                break;
            }
            let entry = self.entry(head);
            let read_ns = entry.read_ns.load();
            let state = entry.tag.load();
            let fresh = state == tag(head, LIVE) || now_ns.saturating_sub(read_ns) <= ORPHAN_GRACE_NS;
            let becomes = if fresh { CLAIMED } else { DROPPED };
            let ended = is_over(state) || !entry.tag.swap_if(state, tag(head, becomes));
            head += 1;
            if ended {
                continue;
            }
            let alone = self.live.load() == 1;
            self.live.add(u64::MAX);
            if fresh {
                found = Found::Message { arrival_ns: entry.arrival_ns.load(), read_ns, alone };
                break;
            }
            expired += 1;
        }
        self.head.store(head);
        Claim { found, expired, downstream: 0 }
    }

    /// Ends a message that will not be written on. False if it was claimed or ended before.
    #[inline(always)]
    pub fn end(&self, pushed_tag: u64) -> bool {
        let position = pushed_tag >> STATE_BITS;
        let entry = self.entry(position);
        let ended = position >= self.head.load()
            && (entry.tag.swap_if(tag(position, LIVE), tag(position, DROPPED))
                || entry.tag.swap_if(tag(position, ORPHAN), tag(position, DROPPED)));
        if ended {
            self.live.add(u64::MAX);
            // As many were claimed as before, so in order they reach one further.
            if position < self.in_order.load() {
                self.in_order.add(1);
            }
        }
        ended
    }

    /// When a message was read that is still live.
    #[inline(always)]
    pub fn read_ns(&self, pushed_tag: u64) -> Option<u64> {
        let position = pushed_tag >> STATE_BITS;
        let entry = self.entry(position);
        (position >= self.head.load() && entry.tag.load() == tag(position, LIVE))
            .then(|| entry.read_ns.load())
    }

    /// When the newest message was read, whatever became of it; 0 if there never was one.
    #[inline(always)]
    pub fn newest_read_ns(&self) -> u64 {
        // Before the first message this wraps to the last place, which is still zero then.
        self.entry(self.tail.load().wrapping_sub(1)).read_ns.load()
    }

    /// Says that the connection of a message has closed: from now it can be claimed for
    /// [`ORPHAN_GRACE_NS`] after its read only.
    #[inline(always)]
    pub fn orphan(&self, pushed_tag: u64) {
        let position = pushed_tag >> STATE_BITS;
        // Whether it was still live does not matter: a message that was claimed needs nothing.
        let _was_live = self.entry(position).tag.swap_if(tag(position, LIVE), tag(position, ORPHAN));
    }

    #[inline(always)]
    pub(crate) fn clear(&self) -> u64 {
        let live = self.live.load();
        self.head.store(self.tail.load());
        self.live.store(0);
        live
    }

    #[inline(always)]
    pub(crate) fn entry(&self, position: u64) -> &Entry<W> {
        &self.entries[position as usize % ENTRIES]
    }
}

/// Claimed or dropped: no longer to be claimed.
#[inline(always)]
const fn is_over(tag: u64) -> bool {
    let state = tag & ((1 << STATE_BITS) - 1);
    state == CLAIMED || state == DROPPED
}

#[inline(always)]
const fn tag(position: u64, state: u64) -> u64 {
    position << STATE_BITS | state
}

#[cfg(test)]
pub(crate) mod tests;
