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

pub(crate) fn empty() -> Box<Pending<AtomicU64>> {
    Box::new(Pending {
        head: AtomicU64::default(),
        tail: AtomicU64::default(),
        live: AtomicU64::default(),
        in_order: AtomicU64::default(),
        entries: core::array::from_fn(|_| Entry::default()),
    })
}

pub(crate) fn message(claim: Claim) -> Option<u64> {
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
