//! The pending set: messages that a proxy thread has read and not yet written on, oldest first.
//!
//! A proxy's event loop reads several messages and then writes their continuations in the same order, so the
//! write that starts a message takes the oldest entry of its own thread. Only the thread that owns a set
//! pushes to it and claims from it; any CPU may end an entry, when the entry's socket answers or closes.
//! Every step is O(1): the searches below are bounded by constants.

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
/// How many ended entries one claim may pass over.
const CLAIM_STEPS: usize = 8;
/// How many ended entries one push clears away; more than the one it adds, so they cannot pile up.
const PUSH_STEPS: usize = 2;
/// How long an entry whose upstream connection has closed may still be claimed. A proxy may close upstream
/// and only then flush the response downstream (nginx does: `ngx_http_upstream_finalize_request`).
pub const ORPHAN_GRACE_NS: u64 = 50_000_000;

const STATE_BITS: u32 = 2;
const LIVE: u64 = 1;
const ORPHAN: u64 = 2;
const ENDED: u64 = 3;

/// One message. The tag is its position in the set's history and its state, so that a stale tag never
/// names a later message.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Entry<W> {
    tag: W,
    arrival_ns: W,
    read_ns: W,
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
    entries: [Entry<W>; ENTRIES],
}

/// The pending sets of one thread, by [`Direction`](crate::layout::Direction).
#[derive(Debug)]
#[repr(C)]
pub struct Thread<W> {
    /// The two sets.
    pub pending: [Pending<W>; 2],
}

/// What a claim found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The message taken, if there was one.
    pub found: Found,
    /// Orphans that were too old and were ended on the way.
    pub expired: u64,
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
    /// Adds a message as the newest. Returns its tag, never 0, or `None` when the set is full.
    #[inline(always)]
    pub fn push(&self, arrival_ns: u64, read_ns: u64) -> Option<u64> {
        let tail = self.tail.load();
        let mut head = self.head.load();
        for _ in 0..PUSH_STEPS {
            if head != tail && self.entry(head).tag.load() == tag(head, ENDED) {
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
        entry.tag.store(tag(tail, LIVE));
        self.tail.store(tail + 1);
        self.live.add(1);
        Some(tag(tail, LIVE))
    }

    /// Takes the oldest message.
    #[inline(always)]
    pub fn claim(&self, now_ns: u64) -> Claim {
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
            let ended = state == tag(head, ENDED) || !entry.tag.swap_if(state, tag(head, ENDED));
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
        Claim { found, expired }
    }

    /// Ends a message that will not be written on. False if it was claimed or ended before.
    #[inline(always)]
    pub fn end(&self, pushed_tag: u64) -> bool {
        let position = pushed_tag >> STATE_BITS;
        let entry = self.entry(position);
        let ended = position >= self.head.load()
            && (entry.tag.swap_if(tag(position, LIVE), tag(position, ENDED))
                || entry.tag.swap_if(tag(position, ORPHAN), tag(position, ENDED)));
        if ended {
            self.live.add(u64::MAX);
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

    /// Ends all messages; returns how many there were. The thread that owned the set is gone.
    #[inline(always)]
    pub fn clear(&self) -> u64 {
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
        set.push(1, 10).unwrap();
        set.push(2, 20).unwrap();
        assert_eq!(
            set.claim(30),
            Claim { found: Found::Message { arrival_ns: 1, read_ns: 10, alone: false }, expired: 0 }
        );
        assert_eq!(
            set.claim(30),
            Claim { found: Found::Message { arrival_ns: 2, read_ns: 20, alone: true }, expired: 0 }
        );
        assert_eq!(set.claim(30).found, Found::Nothing);
    }

    #[test]
    fn full_at_its_capacity_and_not_before() {
        let set = empty();
        for i in 0..ENTRIES as u64 {
            assert!(set.push(i, i).is_some());
        }
        assert_eq!(set.push(0, 0), None);
        set.claim(0);
        assert!(set.push(0, 0).is_some());
    }

    #[test]
    fn an_orphan_is_claimed_within_its_grace_only() {
        let set = empty();
        let (first, second) = (set.push(1, 10).unwrap(), set.push(2, 20).unwrap());
        set.orphan(first);
        set.orphan(second);
        assert_eq!(message(set.claim(10 + ORPHAN_GRACE_NS)), Some(10));
        let late = set.claim(21 + ORPHAN_GRACE_NS);
        assert_eq!(late, Claim { found: Found::Nothing, expired: 1 });
        assert_eq!(set.clear(), 0);
    }

    #[test]
    fn a_tag_of_a_cleared_or_reused_place_ends_nothing() {
        let set = empty();
        let old = set.push(1, 10).unwrap();
        assert_eq!(set.clear(), 1);
        assert!(!set.end(old));
        for i in 0..ENTRIES as u64 {
            set.push(i, i).unwrap();
        }
        assert!(!set.end(old));
        assert_eq!(set.clear(), ENTRIES as u64);
    }

    #[test]
    fn the_newest_message_is_known_whatever_became_of_it() {
        let set = empty();
        assert_eq!(set.newest_read_ns(), 0);
        let first = set.push(1, 10).unwrap();
        let second = set.push(2, 20).unwrap();
        set.end(second);
        assert_eq!((set.read_ns(first), set.read_ns(second), set.newest_read_ns()), (Some(10), None, 20));
        set.claim(30);
        assert_eq!((set.read_ns(first), set.newest_read_ns()), (None, 20));
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
                        if let Some(tag) = set.push(clock, clock) {
                            model.push_back((tag, clock));
                            tags.push((tag, clock));
                        } else {
                            prop_assert!(model.len() > ENTRIES / 2, "full with {} live", model.len());
                        }
                    }
                    Step::Claim => {
                        let claim = set.claim(clock);
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
