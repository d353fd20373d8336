//! The pending sets: messages that a proxy thread has read and not yet written on, oldest first.
//!
//! An event loop asks what is ready, reads all of that, and writes what came of it in the same turn or the next. So
//! a write that starts a message carries on one that its own thread has read, and of those one of the oldest turn.
//! A turn ends with a write, or with a message that arrived after the turn's first read: the loop cannot have
//! known of it before.
//!
//! Within a turn nginx and `HAProxy` write each direction in the order in which they read. Whether a thread does is
//! seen by going there and back: pairing requests in order gives every upstream connection a downstream one, and
//! pairing responses in order must lead back to it. Such a thread's oldest message of the turn is taken.
//!
//! Envoy keeps no such order: libevent runs the callbacks of one turn in the order of its timer heap. Which entry of
//! a turn a write carries on cannot be seen then, but how far the order holds can be, between the two directions,
//! since a write shows its direction. That is the oldest message's always where the order is kept, and as often as
//! chance has it where there is none. So the oldest entry of the turn is taken with the probability that this shows,
//! any of the turn otherwise. The mean is exact however entries are paired; this keeps the spread right too.
//!
//! Only the thread that owns a set pushes to it and claims from it; any CPU may end an entry, when the entry's
//! socket answers or closes. Every step is O(1): the searches below are bounded by constants.

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
/// At this many claims both counts of the order are halved, so that an old habit is forgotten.
const ORDER_MEMORY: u64 = 4096;
/// Responses, all of which lead back, that a thread starts with.
const ORDER_PRIOR: u64 = 64;
/// This share of responses must lead back for a thread to keep the order: HAProxy's do but for those whose request
/// waited for a connection, Envoy's one in a few.
const ALL_RETURN: (u64, u64) = (7, 8);
/// Sizes of turns told apart: 1, 2 to 3, 4 to 7, ... 128 and more.
const ORDER_SIZES: usize = 8;
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
    head: W,
    /// Position the next entry gets.
    tail: W,
    /// How many entries are live or orphans.
    live: W,
    /// Position that would be claimed next if all were claimed in order.
    in_order: W,
    entries: [Entry<W>; ENTRIES],
}

/// The pending sets of one thread.
#[derive(Debug)]
#[repr(C)]
pub struct Thread<W> {
    /// The two sets, by [`Direction`](crate::layout::Direction).
    pub pending: [Pending<W>; 2],
    /// Where, in each set, the latest turn begins.
    turn_start: [W; 2],
    /// Where the turn before it began.
    older_start: [W; 2],
    /// When the latest turn's first message was read, ns.
    turn_read_ns: W,
    /// 1 if the thread's last message was written, 0 if it was read.
    writing: W,
    /// How far the order holds, by the power of two of the turn's messages: small turns keep it better.
    order: [Order<W>; ORDER_SIZES],
}

/// How far a thread keeps the order of its messages, as seen between the two directions.
#[derive(Debug, Default)]
#[repr(C)]
struct Order<W> {
    /// Responses that had another one beside them in their turn, halved from time to time.
    returned: W,
    /// Those of them that pairing in order led back to where their request came from.
    returned_right: W,
    /// Claims while messages of both directions were pending in one turn, halved from time to time.
    seen: W,
    /// Those of them whose direction was that of the oldest message.
    kept: W,
    /// How many of them would have had it by chance, times 2^16.
    chance: W,
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

impl<W: Word> Thread<W> {
    /// Adds a message as the newest of its direction. Returns its tag, never 0, or `None` when the set is full.
    #[inline(always)]
    pub fn push(&self, direction: usize, arrival_ns: u64, read_ns: u64, downstream: u64) -> Option<u64> {
        if self.writing.load() != 0 || arrival_ns > self.turn_read_ns.load() {
            self.writing.store(0);
            self.turn_read_ns.store(read_ns);
            for direction in 0..2 {
                self.older_start[direction].store(self.turn_start[direction].load());
                self.turn_start[direction].store(self.pending[direction].tail.load());
            }
        }
        self.pending[direction & 1].push(arrival_ns, read_ns, downstream)
    }

    /// Takes the message that a write of this thread carries on, in `direction`. `downstream` is the socket a
    /// response is written to, 0 for a request. `random` decides where the thread does not keep the order of its
    /// messages: any bits, different each time.
    #[inline(always)]
    pub fn claim(&self, direction: usize, now_ns: u64, random: u32, downstream: u64) -> Claim {
        self.writing.store(1);
        let (own, other) = (direction & 1, (direction ^ 1) & 1);
        let (own_head, other_head) = (self.pending[own].clear_front(), self.pending[other].clear_front());
        let (own_end, own_older) = self.turn_end(own, own_head);
        let (other_end, other_older) = self.turn_end(other, other_head);
        let order = &self.order[size_class(self.turn_size(own_older))];
        if own_older == other_older
            && let (Some(own_ns), Some(other_ns)) =
                (self.pending[own].live_read_ns(own_head), self.pending[other].live_read_ns(other_head))
        {
            let (own_span, other_span) = (own_end - own_head, other_end - other_head);
            let kept = own_ns < other_ns;
            let of_oldest = if kept { own_span } else { other_span };
            // Never zero; the kernel's verifier wants to see that no division can fail.
            let chance = (of_oldest << 16).checked_div(own_span + other_span).unwrap_or(0);
            order.note(kept, chance);
        }
        let set = &self.pending[own];
        let own_start = if own_older { &self.older_start } else { &self.turn_start }[own].load();
        let next_downstream = set.next_in_order();
        if downstream != 0 && own_end - own_start > 1 {
            order.note_return(next_downstream == downstream);
        }
        let any =
            if order.holds(random & 0xffff) { None } else { set.claim_any(own_head, own_end, random >> 16) };
        let claim = match any {
            Some(claim) => claim,
            None => set.claim_oldest(now_ns),
        };
        if matches!(claim.found, Found::Message { .. }) {
            set.in_order.add(1);
        }
        Claim { downstream: next_downstream, ..claim }
    }

    /// How many messages of both directions the latest turn has so far, or the turn before it had.
    #[inline(always)]
    fn turn_size(&self, older: bool) -> u64 {
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

    /// Where the turn of the oldest message in a set ends, and whether it is a turn before the latest.
    #[inline(always)]
    fn turn_end(&self, direction: usize, head: u64) -> (u64, bool) {
        let start = self.turn_start[direction & 1].load();
        if head < start { (start, true) } else { (self.pending[direction & 1].tail.load(), false) }
    }

    /// Ends all messages; returns how many there were. The thread is gone and its place is for another.
    #[inline(always)]
    pub fn clear(&self) -> u64 {
        for order in &self.order {
            order.returned.store(0);
            order.returned_right.store(0);
            order.seen.store(0);
            order.kept.store(0);
            order.chance.store(0);
        }
        self.pending[0].clear() + self.pending[1].clear()
    }
}

impl<W: Word> Order<W> {
    #[inline(always)]
    fn note_return(&self, right: bool) {
        let mut counts = [self.returned.load() + 1, self.returned_right.load() + u64::from(right)];
        if counts[0] >= ORDER_MEMORY {
            counts = counts.map(|count| count / 2);
        }
        self.returned.store(counts[0]);
        self.returned_right.store(counts[1]);
    }

    #[inline(always)]
    fn note(&self, kept: bool, chance: u64) {
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
    fn holds(&self, random: u32) -> bool {
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
fn size_class(size: u64) -> usize {
    let log2 = 63 - (size | 1).leading_zeros() as usize;
    if log2 < ORDER_SIZES { log2 } else { ORDER_SIZES - 1 }
}

impl<W: Word> Pending<W> {
    #[inline(always)]
    fn push(&self, arrival_ns: u64, read_ns: u64, downstream: u64) -> Option<u64> {
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
    fn clear_front(&self) -> u64 {
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
    fn next_in_order(&self) -> u64 {
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
    fn live_read_ns(&self, position: u64) -> Option<u64> {
        let entry = self.entry(position);
        (position != self.tail.load() && entry.tag.load() == tag(position, LIVE))
            .then(|| entry.read_ns.load())
    }

    /// Takes any live message from `start` up to `end`; `None` if none was hit upon.
    #[inline(always)]
    fn claim_any(&self, start: u64, end: u64, mut random: u32) -> Option<Claim> {
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
    fn claim_oldest(&self, now_ns: u64) -> Claim {
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
    fn clear(&self) -> u64 {
        let live = self.live.load();
        self.head.store(self.tail.load());
        self.live.store(0);
        live
    }

    #[inline(always)]
    fn entry(&self, position: u64) -> &Entry<W> {
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
mod tests {
    extern crate std;
    use super::*;
    use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use proptest::prelude::*;
    use std::boxed::Box;
    use std::collections::VecDeque;
    use std::vec::Vec;

    impl Word for AtomicU64 {
        fn load(&self) -> u64 {
            AtomicU64::load(self, Relaxed)
        }
        fn store(&self, value: u64) {
            AtomicU64::store(self, value, Relaxed);
        }
        fn add(&self, value: u64) {
            self.fetch_add(value, Relaxed);
        }
        fn swap_if(&self, old: u64, new: u64) -> bool {
            self.compare_exchange(old, new, Relaxed, Relaxed).is_ok()
        }
    }

    fn empty() -> Box<Pending<AtomicU64>> {
        Box::new(Pending {
            head: AtomicU64::default(),
            tail: AtomicU64::default(),
            live: AtomicU64::default(),
            in_order: AtomicU64::default(),
            entries: core::array::from_fn(|_| Entry::default()),
        })
    }

    fn message(claim: Claim) -> Option<u64> {
        match claim.found {
            Found::Message { read_ns, .. } => Some(read_ns),
            Found::Nothing | Found::TooFar => None,
        }
    }

    #[test]
    fn oldest_first_and_alone_only_when_alone() {
        let set = empty();
        set.push(1, 10, 0).unwrap();
        set.push(2, 20, 0).unwrap();
        assert_eq!(
            set.claim_oldest(30),
            Claim {
                found: Found::Message { arrival_ns: 1, read_ns: 10, alone: false },
                expired: 0,
                downstream: 0
            }
        );
        assert_eq!(
            set.claim_oldest(30),
            Claim {
                found: Found::Message { arrival_ns: 2, read_ns: 20, alone: true },
                expired: 0,
                downstream: 0
            }
        );
        assert_eq!(set.claim_oldest(30).found, Found::Nothing);
    }

    #[test]
    fn full_at_its_capacity_and_not_before() {
        let set = empty();
        for i in 0..ENTRIES as u64 {
            assert!(set.push(i, i, 0).is_some());
        }
        assert_eq!(set.push(0, 0, 0), None);
        set.claim_oldest(0);
        assert!(set.push(0, 0, 0).is_some());
    }

    #[test]
    fn an_orphan_is_claimed_within_its_grace_only() {
        let set = empty();
        let (first, second) = (set.push(1, 10, 0).unwrap(), set.push(2, 20, 0).unwrap());
        set.orphan(first);
        set.orphan(second);
        assert_eq!(message(set.claim_oldest(10 + ORPHAN_GRACE_NS)), Some(10));
        let late = set.claim_oldest(21 + ORPHAN_GRACE_NS);
        assert_eq!(late, Claim { found: Found::Nothing, expired: 1, downstream: 0 });
        assert_eq!(set.clear(), 0);
    }

    #[test]
    fn a_tag_of_a_cleared_or_reused_place_ends_nothing() {
        let set = empty();
        let old = set.push(1, 10, 0).unwrap();
        assert_eq!(set.clear(), 1);
        assert!(!set.end(old));
        for i in 0..ENTRIES as u64 {
            set.push(i, i, 0).unwrap();
        }
        assert!(!set.end(old));
        assert_eq!(set.clear(), ENTRIES as u64);
    }

    #[test]
    fn the_newest_message_is_known_whatever_became_of_it() {
        let set = empty();
        assert_eq!(set.newest_read_ns(), 0);
        let first = set.push(1, 10, 0).unwrap();
        let second = set.push(2, 20, 0).unwrap();
        set.end(second);
        assert_eq!((set.read_ns(first), set.read_ns(second), set.newest_read_ns()), (Some(10), None, 20));
        set.claim_oldest(30);
        assert_eq!((set.read_ns(first), set.newest_read_ns()), (None, 20));
    }

    #[expect(clippy::large_stack_arrays, reason = "a test's stack has room for it")]
    fn thread() -> Box<Thread<AtomicU64>> {
        Box::new(Thread {
            pending: [*empty(), *empty()],
            turn_start: Default::default(),
            older_start: Default::default(),
            turn_read_ns: AtomicU64::default(),
            writing: AtomicU64::default(),
            order: Default::default(),
        })
    }

    /// As if chance alone had been seen in turns of every size.
    fn without_order(thread: &Thread<AtomicU64>) {
        for order in &thread.order {
            order.returned.store(ORDER_MEMORY / 2, Relaxed);
            order.seen.store(ORDER_MEMORY / 2, Relaxed);
            order.chance.store((ORDER_MEMORY / 2) << 15, Relaxed);
        }
    }

    /// Two messages each way, read in turn, then written in this order of directions; returns how often the
    /// oldest was taken among two.
    fn oldest_taken(directions: [usize; 4], rounds: u64) -> u64 {
        let thread = thread();
        // Nothing leads back.
        for order in &thread.order {
            order.returned.store(ORDER_MEMORY / 2, Relaxed);
        }
        let mut oldest = 0;
        let mut random = 1u64;
        for round in 0..rounds {
            let read_ns = |place: u64| round * 10 + place;
            for place in 1..=4 {
                thread.push(place as usize % 2, 1, read_ns(place), 0).unwrap();
            }
            let mut claimed = [0; 2];
            for direction in directions {
                // xorshift64
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let read = message(thread.claim(direction, read_ns(9), (random >> 32) as u32, 0)).unwrap();
                claimed[direction] += 1;
                oldest += u64::from(claimed[direction] == 1 && read <= read_ns(2));
            }
        }
        oldest
    }

    #[test]
    fn a_thread_that_keeps_its_order_gets_the_oldest_always() {
        assert_eq!(oldest_taken([1, 0, 1, 0], 10_000), 20_000);
    }

    /// Requests of `places` connections, forwarded in this order and answered in this order, over and over; says
    /// whether the thread is seen to keep its order.
    fn keeps_order(forwarded: [u64; 3], answered: [u64; 3]) -> bool {
        let thread = thread();
        for round in 0..1000 {
            let at = |step: u64| round * 1000 + step;
            (1..=3).for_each(|place| assert!(thread.push(0, at(1), at(10 + place), place).is_some()));
            // The upstream connection of each place, and whom pairing in order gives it.
            let mut believed = [0; 4];
            for place in forwarded {
                believed[place as usize] = thread.claim(0, at(30), 0, 0).downstream;
            }
            for (step, place) in (40..).zip([1, 2, 3]) {
                thread.push(1, at(35), at(step), believed[place]).unwrap();
            }
            for place in answered {
                thread.claim(1, at(50), 0, place);
            }
        }
        let order = &thread.order[size_class(3)];
        order.returned.load(Relaxed) > 1000 && order.holds(0xffff)
    }

    #[test]
    fn order_is_seen_by_going_there_and_back() {
        assert!(keeps_order([1, 2, 3], [1, 2, 3]));
        assert!(!keeps_order([1, 3, 2], [1, 2, 3]));
        assert!(!keeps_order([1, 2, 3], [3, 1, 2]));
    }

    #[test]
    fn a_thread_that_turns_its_order_round_gets_any() {
        let share = oldest_taken([0, 1, 0, 1], 10_000) as f64 / 20_000.0;
        assert!((0.48..0.52).contains(&share), "{share}");
    }

    #[test]
    fn an_older_turn_goes_before_a_newer_one_whatever_the_order() {
        let thread = thread();
        without_order(&thread);
        for round in 0..1000 {
            let read_ns = |place: u64| round * 100 + place;
            let random = |place: u64| (round * 7919 + place * 104_729) as u32;
            (1..=3).for_each(|place| assert!(thread.push(0, 1, read_ns(place), 0).is_some()));
            thread.push(1, 1, read_ns(4), 0).unwrap();
            thread.claim(1, read_ns(50), random(0), 0);
            (5..=7).for_each(|place| assert!(thread.push(0, 1, read_ns(place), 0).is_some()));
            let order: Vec<_> =
                (1..=6).map(|n| message(thread.claim(0, read_ns(50), random(n), 0)).unwrap() % 100).collect();
            assert!(order[..3].iter().all(|place| *place <= 3), "{order:?}");
            assert_eq!(thread.claim(0, read_ns(50), 0, 0).found, Found::Nothing);
        }
    }

    #[test]
    fn a_message_that_arrived_after_the_first_read_is_of_a_later_turn() {
        let thread = thread();
        without_order(&thread);
        for round in 1..1000 {
            let at = |place: u64| round * 100 + place;
            thread.push(0, at(1), at(10), 0).unwrap();
            thread.push(0, at(2), at(20), 0).unwrap();
            thread.push(0, at(11), at(30), 0).unwrap();
            let order: Vec<_> = (1..=3)
                .map(|n| {
                    message(thread.claim(0, at(50), (round * 7919 + n * 104_729) as u32, 0)).unwrap() % 100
                })
                .collect();
            assert_eq!(order[2], 30, "{order:?}");
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push,
        Claim,
        End(usize),
    }

    proptest! {
        /// Against a plain queue: same order, same emptiness, same `alone`, whatever is ended in between.
        #[test]
        fn behaves_as_a_queue(steps in prop::collection::vec(prop_oneof![
            3 => Just(Step::Push), 2 => Just(Step::Claim), 2 => (0usize..64).prop_map(Step::End)], 0..3000)) {
            let set = empty();
            let mut model: VecDeque<(u64, u64)> = VecDeque::new();
            let mut tags: Vec<(u64, u64)> = Vec::new();
            let mut clock = 0;
            for step in steps {
                clock += 1;
                match step {
                    Step::Push => {
                        if let Some(tag) = set.push(clock, clock, 0) {
                            model.push_back((tag, clock));
                            tags.push((tag, clock));
                        } else {
                            prop_assert!(model.len() > ENTRIES / 2, "full with {} live", model.len());
                        }
                    }
                    Step::Claim => {
                        let claim = set.claim_oldest(clock);
                        match claim.found {
                            Found::Message { read_ns, alone, .. } => {
                                prop_assert_eq!(alone, model.len() == 1);
                                prop_assert_eq!(model.pop_front().map(|(_, read_ns)| read_ns), Some(read_ns));
                            }
                            Found::Nothing => prop_assert!(model.is_empty()),
                            Found::TooFar => {}
                        }
                    }
                    Step::End(back) => {
                        if let Some(&(tag, _)) = tags.iter().rev().nth(back) {
                            let was_live = model.iter().position(|&(live, _)| live == tag);
                            prop_assert_eq!(set.end(tag), was_live.is_some());
                            if let Some(at) = was_live {
                                model.remove(at);
                            }
                        }
                    }
                }
                prop_assert_eq!(set.live.load(Relaxed), model.len() as u64);
            }
        }
    }
}
