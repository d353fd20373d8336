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
        AtomicU64::fetch_add(self, value, Relaxed);
    }
    fn fetch_add(&self, value: u64) -> u64 {
        AtomicU64::fetch_add(self, value, Relaxed)
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
        zero: AtomicU64::default(),
        entries: core::array::from_fn(|_| Entry::default()),
    })
}

/// When the oldest was read, taken now.
fn oldest(set: &Pending<AtomicU64>, now_ns: u64) -> Option<u64> {
    let claim = set.take_oldest(now_ns);
    (claim.tag != 0).then(|| set.of(claim.tag).read_ns.load(Relaxed))
}

#[test]
fn oldest_first() {
    let set = empty();
    set.push(1, 10, 0, 0).unwrap();
    set.push(2, 20, 0, 0).unwrap();
    assert_eq!(oldest(&set, 30), Some(10));
    assert_eq!(oldest(&set, 30), Some(20));
    assert_eq!(set.take_oldest(30), Claim::default());
}

#[test]
fn a_tag_is_taken_once_and_others_stay_in_order() {
    let set = empty();
    let tags: Vec<_> = (1..=3).map(|at| set.push(at, at, 0, 0).unwrap()).collect();
    assert_eq!((set.take(tags[1]), set.take(tags[1]), set.take(0)), (tags[1], 0, 0));
    assert_eq!((oldest(&set, 9), oldest(&set, 9), oldest(&set, 9)), (Some(1), Some(3), None));
}

#[test]
fn full_at_its_capacity_and_not_before() {
    let set = empty();
    for i in 0..ENTRIES as u64 {
        assert!(set.push(i, i, 0, 0).is_some());
    }
    assert_eq!(set.push(0, 0, 0, 0), None);
    set.take_oldest(0);
    assert!(set.push(0, 0, 0, 0).is_some());
}

#[test]
fn an_orphan_is_claimed_within_its_grace_only() {
    let set = empty();
    let (first, second) = (set.push(1, 10, 0, 0).unwrap(), set.push(2, 20, 0, 0).unwrap());
    set.orphan(first);
    set.orphan(second);
    assert_eq!(oldest(&set, 10 + ORPHAN_GRACE_NS), Some(10));
    let late = set.take_oldest(21 + ORPHAN_GRACE_NS);
    assert_eq!(late, Claim { expired: 1, ..Claim::default() });
    assert_eq!(set.clear(), 0);
}

#[test]
fn a_tag_of_a_cleared_or_reused_place_ends_nothing() {
    let set = empty();
    let old = set.push(1, 10, 0, 0).unwrap();
    assert_eq!(set.clear(), 1);
    assert!(!set.end(old));
    for i in 0..ENTRIES as u64 {
        set.push(i, i, 0, 0).unwrap();
    }
    assert!(!set.end(old));
    assert_eq!(set.clear(), ENTRIES as u64);
}

#[test]
fn the_newest_message_is_known_whatever_became_of_it() {
    let set = empty();
    assert_eq!(set.newest_read_ns(), 0);
    let first = set.push(1, 10, 0, 0).unwrap();
    let second = set.push(2, 20, 0, 0).unwrap();
    set.end(second);
    assert_eq!((set.is_live(first), set.is_live(second), set.newest_read_ns()), (true, false, 20));
    set.take_oldest(30);
    assert_eq!((set.is_live(first), set.newest_read_ns()), (false, 20));
}

#[derive(Clone, Debug)]
enum Step {
    Push,
    Claim,
    End(usize),
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Against a plain queue: same order, same emptiness, whatever is ended in between.
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
                    if let Some(tag) = set.push(clock, clock, 0, 0) {
                        model.push_back((tag, clock));
                        tags.push((tag, clock));
                    } else {
                        prop_assert!(model.len() > ENTRIES / 2, "full with {} live", model.len());
                    }
                }
                Step::Claim => {
                    let claim = set.take_oldest(clock);
                    if claim.tag != 0 {
                        prop_assert_eq!(model.pop_front().map(|(tag, _)| tag), Some(claim.tag));
                    } else if !claim.too_far {
                        prop_assert!(model.is_empty());
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
