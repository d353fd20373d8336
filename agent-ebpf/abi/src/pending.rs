//! Messages that a proxy thread has read and not yet written on, oldest first.
//!
//! Only the thread that owns a set pushes to it and claims from it; any CPU may end an entry, when the entry's
//! socket answers or closes. Every step is O(1): the searches are bounded by constants.

mod batch;

use crate::word::Word;
pub use batch::{BATCH, DRAIN, DRAIN_STEPS, Drained};
pub(crate) use batch::{FORGET_STEPS, RECORD, RECORD_GRACE_NS};

/// Entries in one set. Connections per thread that can have a message inside the proxy at the same instant.
pub const ENTRIES: usize = 1024;

/// How many ended entries at the front are cleared away before a claim.
const CLEAR_STEPS: usize = 32;

/// How many entries at the front one claim may pass over after that.
const TAKE_STEPS: usize = 8;

/// How many dropped entries are passed over in search of the next in order.
const IN_ORDER_STEPS: usize = 16;

/// How often a live entry is sought anywhere in a turn before the oldest is taken.
const ANY_STEPS: usize = 8;

/// How many ended entries one push clears away; more than the one it adds, so they cannot pile up.
const PUSH_STEPS: usize = 2;

/// How long an entry whose upstream connection has closed may still be claimed. A proxy may close upstream
/// and only then flush the response downstream (nginx does: `ngx_http_upstream_finalize_request`).
pub const ORPHAN_GRACE_NS: u64 = 50_000_000;

pub(crate) const STATE_BITS: u32 = 2;
/// It can be claimed.
pub(crate) const LIVE: u64 = 1;
/// It can be, for a while.
pub(crate) const ORPHAN: u64 = 2;
/// A write has taken it.
pub(crate) const CLAIMED: u64 = 3;
/// It has ended without a write.
pub(crate) const DROPPED: u64 = 0;

/// One message. The tag is its position in the set's history and its state, so that a stale tag never
/// names a later message.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Entry<W> {
    tag: W,
    pub(crate) arrival_ns: W,
    pub(crate) read_ns: W,
    /// Which downstream socket a request came from, or a response should go to if all were paired in order: 32 bits, and
    /// [`RECORD`] if it may have been none. Of what was read together with others [`BATCH`] and its bytes.
    pub(crate) downstream: W,
    /// Which thread read it last, where threads share the set. Where they do not, of a request: name of the connection
    /// that a prompt proxy has written it to, 0 if none was foreseen.
    pub(crate) thread: W,
    /// Of a request: name of the connection it took off the stack, 0 if none was free.
    pub(crate) pooled: W,
    /// Name of the connection that a request was written to, or that a response came from; 0 if there is none yet.
    pub(crate) upstream: W,
}

impl<W: Word> Entry<W> {
    /// Whether it may have been a control record: [`RECORD`], and not [`BATCH`], which is above it.
    #[inline(always)]
    fn may_be_record(&self) -> bool {
        self.downstream.load() >> RECORD.trailing_zeros() == 1
    }
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
    /// Always zero: see [`Pending::blur`].
    zero: W,
    pub(crate) entries: [Entry<W>; ENTRIES],
}

/// What a claim found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is true or not whatever the others are")]
pub struct Claim {
    /// Tag of the message taken; 0 if there is none.
    pub tag: u64,
    /// When it arrived; 0 when that was not seen.
    pub arrival_ns: u64,
    /// When it was read.
    pub read_ns: u64,
    /// True if it was the only one.
    pub alone: bool,
    /// Name of the connection that a response came from; 0 for a request.
    pub upstream: u64,
    /// Of a response: name of the connection that usually brings those of where it goes; 0 for a request.
    pub usual: u64,
    /// The downstream socket of the message that is next in order, whichever was taken.
    pub downstream: u64,
    /// Orphans that were too old and were ended on the way.
    pub expired: u64,
    /// True if it was read together with others ([`BATCH`]): it was not counted as seen then. Others may have the same
    /// stamps; those that do not come first have no tag.
    pub batch: bool,
    /// True if there may be a message behind more ended entries than a claim may pass over.
    pub too_far: bool,
    /// True if what is carried on was ended before, so that nothing was taken.
    pub missing: bool,
}

impl Claim {
    /// True if nothing was found, and there is nothing.
    #[inline(always)]
    pub const fn is_nothing(&self) -> bool {
        self.tag == 0 && !self.batch && !self.too_far
    }
}

impl<W: Word> Pending<W> {
    #[inline(always)]
    pub(crate) fn push(&self, arrival_ns: u64, read_ns: u64, downstream: u64, upstream: u64) -> Option<u64> {
        let mut head = self.head.load();
        let tail = self.tail.load();
        if self.live.load() == 0 {
            self.in_order.store(tail);
        }
        for _ in 0..PUSH_STEPS {
            if head != tail && is_over(head, self.entry(head).tag.load()) {
                head += 1;
            }
        }
        self.head.store(head);
        if tail - head >= ENTRIES as u64 {
            return None;
        }
        let position = self.tail.fetch_add(1);
        // Before the stores: an atomic instruction waits for those that miss the caches.
        self.live.add(1);
        let entry = self.entry(position);
        entry.arrival_ns.store(arrival_ns);
        entry.read_ns.store(read_ns);
        entry.downstream.store(downstream);
        entry.thread.store(0);
        entry.pooled.store(0);
        entry.upstream.store(upstream);
        entry.tag.store(tag(position, LIVE));
        Some(tag(position, LIVE))
    }

    /// Clears ended entries away from the front; the position of the oldest that is left.
    #[inline(always)]
    pub(crate) fn clear_front(&self) -> u64 {
        let tail = self.tail.load();
        let mut head = self.head.load();
        for _ in 0..CLEAR_STEPS {
            if head == tail || !is_over(head, self.entry(head).tag.load()) {
                break;
            }
            head += 1;
        }
        self.head.store(head);
        self.blur(head)
    }

    /// The position of the oldest entry that was not cleared away.
    #[inline(always)]
    pub(crate) fn front(&self) -> u64 {
        self.blur(self.head.load())
    }

    /// The downstream socket of the message that would be claimed next in order; 0 if there is none.
    #[inline(always)]
    pub(crate) fn next_in_order(&self) -> u64 {
        let tail = self.tail.load();
        let mut position = self.in_order.load();
        for _ in 0..IN_ORDER_STEPS {
            if position >= tail || self.entry(position).tag.load() != tag(position, DROPPED) {
                break;
            }
            position = self.blur(position + 1);
        }
        position = self.blur(position);
        self.in_order.store(position);
        let downstream = if position < tail { self.entry(position).downstream.load() } else { 0 };
        if downstream & BATCH == 0 { downstream & !RECORD } else { 0 }
    }

    /// Name of the connection that the message came on which would be claimed next in order, as [`Pending::next_in_order`] was
    /// asked for it.
    #[inline(always)]
    pub(crate) fn next_upstream(&self) -> u64 {
        self.blur(self.entry(self.in_order.load()).upstream.load())
    }

    /// The tag of the message at `position`, if it is live.
    #[inline(always)]
    pub(crate) fn live_tag(&self, position: u64) -> Option<u64> {
        (self.entry(position).tag.load() == tag(position, LIVE)).then_some(tag(position, LIVE))
    }

    /// When the message at `position` was read, if it is live.
    #[inline(always)]
    pub(crate) fn live_read_ns(&self, position: u64) -> Option<u64> {
        let entry = self.entry(position);
        (position != self.tail.load() && entry.tag.load() == tag(position, LIVE))
            .then(|| entry.read_ns.load())
    }

    /// The same value, of which the kernel's verifier knows nothing. It follows every value that it knows down every
    /// path; behind this, paths that differ in what they found are one again.
    #[inline(always)]
    pub fn blur(&self, value: u64) -> u64 {
        value ^ self.zero.load()
    }

    /// Takes the message of this tag, if it can still be claimed. Returns its tag, or 0.
    #[inline(always)]
    pub(crate) fn take(&self, pushed_tag: u64) -> u64 {
        let position = pushed_tag >> STATE_BITS;
        let entry = self.entry(position);
        let state = entry.tag.load();
        let claimable = pushed_tag != 0 && (state == tag(position, LIVE) || state == tag(position, ORPHAN));
        if claimable && entry.tag.swap_if(state, tag(position, CLAIMED)) {
            self.live.add(u64::MAX);
            pushed_tag
        } else {
            0
        }
    }

    /// Takes any live message from `start` up to `end`. Returns its tag, or 0 if none was hit upon.
    #[inline(always)]
    pub(crate) fn take_any(&self, start: u64, end: u64, mut random: u32) -> u64 {
        let span = end.wrapping_sub(start);
        if end <= start || span < 2 {
            return 0;
        }
        for _ in 0..ANY_STEPS {
            let position = start + u64::from(random).checked_rem(span).unwrap_or(0);
            // The multiplier of a full-period generator modulo 2^32 (Numerical Recipes, 3rd ed., 7.1).
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if self.entry(position).tag.swap_if(tag(position, LIVE), tag(position, CLAIMED)) {
                self.live.add(u64::MAX);
                return tag(position, LIVE);
            }
        }
        0
    }

    /// The message of this tag, also when it was claimed or ended, until its place is used again.
    #[inline(always)]
    pub(crate) fn remembered(&self, pushed_tag: u64) -> Option<&Entry<W>> {
        let position = pushed_tag >> STATE_BITS;
        let entry = self.entry(position);
        (pushed_tag != 0 && entry.tag.load() >> STATE_BITS == position).then_some(entry)
    }

    /// Whether the message of this tag is live.
    #[inline(always)]
    pub fn is_live(&self, pushed_tag: u64) -> bool {
        pushed_tag != 0 && self.of(pushed_tag).tag.load() == pushed_tag
    }

    /// Whether the message of this tag is live, or was until its connection closed.
    #[inline(always)]
    pub(crate) fn is_claimable(&self, pushed_tag: u64) -> bool {
        let state = self.of(pushed_tag).tag.load();
        pushed_tag != 0 && (state == pushed_tag || state == tag(position_of(pushed_tag), ORPHAN))
    }

    /// Takes the oldest message: only tag, `expired` and `too_far` of the claim are filled in.
    #[inline(always)]
    pub(crate) fn take_oldest(&self, now_ns: u64) -> Claim {
        let tail = self.tail.load();
        let mut head = self.head.load();
        let mut claim = Claim { too_far: true, ..Claim::default() };
        for _ in 0..TAKE_STEPS {
            if head == tail {
                claim.too_far = false;
                break;
            }
            let entry = self.entry(head);
            let read_ns = entry.read_ns.load();
            let state = entry.tag.load();
            if state >> STATE_BITS < head {
                // Another thread is just pushing it.
                break;
            }
            let fresh = state == tag(head, LIVE) || now_ns.saturating_sub(read_ns) <= ORPHAN_GRACE_NS;
            let becomes = if fresh { CLAIMED } else { DROPPED };
            let ended = is_over(head, state) || !entry.tag.swap_if(state, tag(head, becomes));
            head += 1;
            if ended {
                continue;
            }
            self.live.add(u64::MAX);
            if fresh {
                claim.tag = tag(head - 1, LIVE);
                claim.too_far = false;
                break;
            }
            claim.expired += 1;
        }
        self.head.store(head);
        claim
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

    /// The position of the oldest message that was read alone and waits, if it stands before `end` and at most
    /// [`CLEAR_STEPS`] others before it.
    #[inline(always)]
    pub(crate) fn oldest_single(&self, end: u64) -> Option<u64> {
        let head = self.clear_front();
        let mut found = self.blur(end);
        for ahead in 0..CLEAR_STEPS as u64 {
            let position = head + ahead;
            let single = self.live_tag(position).is_some() && !self.is_batch(position);
            found = self.blur(if position < found && single { position } else { found });
        }
        (found < end).then_some(found)
    }

    /// Says that the message of this tag, which a write has taken, has ended without one, and that the write has carried on
    /// the one at `position`, which waits. Whether it still did.
    #[inline(always)]
    pub(crate) fn give(&self, pushed_tag: u64, position: u64) -> bool {
        let (ended, other) = (self.of(pushed_tag), self.entry(position));
        let given = other.tag.swap_if(tag(position, LIVE), tag(position, CLAIMED));
        if given {
            self.live.add(u64::MAX);
            other.upstream.store(ended.upstream.load());
            ended.tag.store(tag(position_of(pushed_tag), DROPPED));
            if position_of(pushed_tag) < self.in_order.load() {
                self.in_order.add(1);
            }
        }
        given
    }

    /// When a message was read, whatever became of it, while it is remembered.
    #[inline(always)]
    pub fn when_read(&self, pushed_tag: u64) -> Option<u64> {
        self.remembered(pushed_tag).map(|entry| entry.read_ns.load())
    }

    /// Whether a request was written to a connection; true of one that is not remembered.
    #[inline(always)]
    pub fn went_on(&self, pushed_tag: u64) -> bool {
        self.remembered(pushed_tag).is_none_or(|entry| entry.upstream.load() != 0)
    }

    /// When a message was read that is still live.
    #[inline(always)]
    pub fn read_ns(&self, pushed_tag: u64) -> Option<u64> {
        let position = pushed_tag >> STATE_BITS;
        let entry = self.entry(position);
        (position >= self.head.load() && entry.tag.load() == tag(position, LIVE))
            .then(|| entry.read_ns.load())
    }

    /// Says that a message begins later than it was thought to, if it waits.
    #[inline(always)]
    pub fn restamp(&self, pushed_tag: u64, arrival_ns: u64, read_ns: u64) {
        if self.read_ns(pushed_tag).is_some() {
            let entry = self.of(pushed_tag);
            entry.arrival_ns.store(arrival_ns);
            entry.read_ns.store(read_ns);
        }
    }

    /// Whether a message waits.
    #[inline(always)]
    pub fn any_live(&self) -> bool {
        self.live.load() != 0
    }

    /// When the newest message was read, whatever became of it; 0 if there never was one.
    #[inline(always)]
    pub fn newest_read_ns(&self) -> u64 {
        // Before the first message this wraps to the last place, which is still zero then.
        self.entry(self.tail.load().wrapping_sub(1)).read_ns.load()
    }

    /// What has become of the message at this position: [`LIVE`], [`CLAIMED`], [`DROPPED`] or an orphan.
    #[inline(always)]
    pub(crate) fn state_at(&self, position: u64) -> u64 {
        self.entry(position).tag.load() & (tag(1, 0) - 1)
    }

    /// When the message at this position arrived and was read.
    #[inline(always)]
    pub(crate) fn stamps(&self, position: u64) -> [u64; 2] {
        let entry = self.entry(position);
        [entry.arrival_ns.load(), entry.read_ns.load()]
    }

    /// Sets [`Pending::stamps`].
    #[inline(always)]
    pub(crate) fn set_stamps(&self, position: u64, [arrival_ns, read_ns]: [u64; 2]) {
        let entry = self.entry(position);
        entry.arrival_ns.store(arrival_ns);
        entry.read_ns.store(read_ns);
    }

    /// Says that what became of the message at `from` became of the one at `to`.
    #[inline(always)]
    pub(crate) fn copy(&self, from: u64, to: u64) {
        let (lower, upper) = (self.entry(from), self.entry(to));
        upper.upstream.store(lower.upstream.load());
        upper.tag.store(tag(to, self.state_at(from)));
    }

    /// Makes the message at this position live again, in the place of another that was.
    #[inline(always)]
    pub(crate) fn revive(&self, position: u64) {
        self.entry(position).tag.store(tag(position, LIVE));
        if position < self.head.load() {
            self.head.store(position);
        }
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

    /// The message of a tag that was just taken.
    #[inline(always)]
    pub(crate) fn of(&self, pushed_tag: u64) -> &Entry<W> {
        self.entry(pushed_tag >> STATE_BITS)
    }

    #[inline(always)]
    pub(crate) fn entry(&self, position: u64) -> &Entry<W> {
        &self.entries[position as usize % ENTRIES]
    }
}

/// The tag that the message at this position was pushed with.
#[inline(always)]
pub(crate) const fn tag_at(position: u64) -> u64 {
    tag(position, LIVE)
}

/// The position of the message of this tag.
#[inline(always)]
pub(crate) const fn position_of(pushed_tag: u64) -> u64 {
    pushed_tag >> STATE_BITS
}

/// Claimed, dropped or forgotten: no longer to be claimed. One that another thread is just pushing has an earlier
/// message's tag.
#[inline(always)]
const fn is_over(position: u64, tag: u64) -> bool {
    // In one comparison: three in a loop are more paths than kernels before 6.3 can verify. From `tag(position, 0)` on
    // it is 0 dropped, 1 live, 2 an orphan, 3 claimed, above that of a later message, below of an earlier one.
    let beyond = tag.wrapping_sub(position << STATE_BITS);
    let not_earlier = (beyond >> 63).wrapping_sub(1);
    (beyond.wrapping_sub(LIVE) >> 1) & not_earlier != 0
}

#[inline(always)]
const fn tag(position: u64, state: u64) -> u64 {
    position << STATE_BITS | state
}

#[cfg(test)]
pub(crate) mod tests;
