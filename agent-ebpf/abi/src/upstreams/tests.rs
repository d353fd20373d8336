extern crate std;
use super::*;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use proptest::prelude::*;
use std::boxed::Box;
use std::vec::Vec;

pub(crate) fn none() -> Box<Upstreams<AtomicU64>> {
    Box::new(Upstreams {
        joined: AtomicU64::default(),
        top: AtomicU64::default(),
        places: core::array::from_fn(|_| Upstream::default()),
    })
}

fn with(count: usize) -> (Box<Upstreams<AtomicU64>>, Vec<u64>) {
    let upstreams = none();
    let names = (0..count).map(|_| upstreams.join()).collect();
    (upstreams, names)
}

fn give_back_all(upstreams: &Upstreams<AtomicU64>, names: &[u64]) {
    for &name in names {
        upstreams.give_back(name);
    }
}

fn close_all(upstreams: &Upstreams<AtomicU64>, names: &[u64]) {
    for &name in names {
        upstreams.close(name);
    }
}

fn pop_all(upstreams: &Upstreams<AtomicU64>) -> Vec<u64> {
    core::iter::from_fn(|| Some(upstreams.pop()).filter(|&name| name != 0)).collect()
}

#[test]
fn none_is_free_before_it_is_given_back() {
    let (upstreams, names) = with(3);
    assert_eq!((upstreams.pop(), &names[..]), (0, &[1, 2, 3][..]));
}

#[test]
fn the_last_given_back_comes_first() {
    let (upstreams, names) = with(3);
    give_back_all(&upstreams, &names);
    assert_eq!(pop_all(&upstreams), [3, 2, 1]);
    assert_eq!(upstreams.pop(), 0);
}

#[test]
fn one_given_back_twice_lies_there_once_and_on_top() {
    let (upstreams, names) = with(3);
    give_back_all(&upstreams, &names);
    upstreams.give_back(1);
    assert_eq!(pop_all(&upstreams), [1, 3, 2]);
}

#[test]
fn one_is_taken_from_anywhere() {
    for (taken, left) in [(1, [3, 2]), (2, [3, 1]), (3, [2, 1])] {
        let (upstreams, names) = with(3);
        give_back_all(&upstreams, &names);
        upstreams.take(taken);
        upstreams.take(taken);
        assert_eq!(pop_all(&upstreams), left);
    }
}

#[test]
fn the_closed_are_passed_over_up_to_a_limit() {
    let (upstreams, names) = with(POP_STEPS + 1);
    give_back_all(&upstreams, &names);
    close_all(&upstreams, &names[2..]);
    assert_eq!(upstreams.pop(), 2);
    upstreams.close(1);
    assert_eq!(upstreams.pop(), 0);

    let (upstreams, names) = with(POP_STEPS + 1);
    give_back_all(&upstreams, &names);
    close_all(&upstreams, &names[1..]);
    // The search gives up, and goes on from there the next time.
    assert_eq!((upstreams.pop(), upstreams.pop()), (0, 1));
}

#[test]
fn an_unknown_name_is_nobody() {
    let (upstreams, _) = with(1);
    for name in [0, 2, UPSTREAMS as u64, UPSTREAMS as u64 + 1, u64::MAX] {
        assert!(upstreams.get(name).is_none());
        upstreams.give_back(name);
        upstreams.take(name);
        upstreams.close(name);
    }
    assert_eq!(upstreams.pop(), 0);
    assert_eq!(upstreams.get(1).unwrap().closed.load(Relaxed), 0);
}

#[test]
fn the_oldest_are_forgotten_and_their_names_with_them() {
    let (upstreams, names) = with(UPSTREAMS);
    upstreams.get(1).unwrap().pooled.store(77, Relaxed);
    upstreams.give_back(1);
    upstreams.close(1);
    let next = upstreams.join();
    assert_eq!(next as usize, UPSTREAMS + 1);
    assert!(upstreams.get(1).is_none() && upstreams.get(2).is_some());
    let place = upstreams.get(next).unwrap();
    assert_eq!((place.pooled.load(Relaxed), place.closed.load(Relaxed), place.free.load(Relaxed)), (0, 0, 0));
    // What is done in a forgotten name does nothing to who has its place.
    upstreams.close(names[0]);
    assert_eq!(place.closed.load(Relaxed), 0);
    upstreams.give_back(next);
    assert_eq!(upstreams.pop(), next);
}

#[test]
fn after_a_clear_no_old_name_is_known() {
    let (upstreams, names) = with(5);
    give_back_all(&upstreams, &names);
    upstreams.clear();
    assert_eq!(upstreams.pop(), 0);
    let fresh = upstreams.join();
    assert!(!names.contains(&fresh));
    upstreams.give_back(fresh);
    assert_eq!(pop_all(&upstreams), [fresh]);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Join,
    GiveBack(usize),
    Take(usize),
    Close(usize),
    Pop,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Against a plain stack, while no more join than are remembered.
    #[test]
    fn behaves_as_a_stack(steps in prop::collection::vec(prop_oneof![
        1 => Just(Step::Join),
        4 => (0usize..40).prop_map(Step::GiveBack),
        2 => (0usize..40).prop_map(Step::Take),
        1 => (0usize..40).prop_map(Step::Close),
        3 => Just(Step::Pop)], 0..UPSTREAMS)) {
        let (upstreams, mut names) = with(8);
        let (mut stack, mut closed): (Vec<u64>, Vec<u64>) = (Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Join => names.push(upstreams.join()),
                Step::GiveBack(at) => {
                    let name = names[at % names.len()];
                    upstreams.give_back(name);
                    stack.retain(|&other| other != name);
                    stack.push(name);
                }
                Step::Take(at) => {
                    let name = names[at % names.len()];
                    upstreams.take(name);
                    stack.retain(|&other| other != name);
                }
                Step::Close(at) => {
                    let name = names[at % names.len()];
                    upstreams.close(name);
                    closed.push(name);
                }
                Step::Pop => {
                    let top = (0..POP_STEPS)
                        .map_while(|_| stack.pop())
                        .find(|name| !closed.contains(name));
                    prop_assert_eq!(upstreams.pop(), top.unwrap_or(0));
                }
            }
        }
    }

    /// However many join and whatever is asked of forgotten names, a free connection is one that is remembered.
    #[test]
    fn the_stack_never_holds_a_forgotten_name(steps in prop::collection::vec((0u64..1200, 0u8..4), 0..600)) {
        let upstreams = none();
        for (name, action) in steps {
            match action {
                0 => (0..7).for_each(|_| { upstreams.join(); }),
                1 => upstreams.give_back(name),
                2 => upstreams.take(name),
                _ => {
                    let popped = upstreams.pop();
                    prop_assert!(popped == 0 || upstreams.get(popped).is_some());
                }
            }
        }
    }
}

#[test]
fn what_is_held_is_handed_out_once_and_before_its_place_is_taken() {
    let (upstreams, names) = with(UPSTREAMS - 1);
    let held = Held { arrival_ns: 1, read_ns: 2, write_ns: 3, departure_ns: 0, class: 2 };
    assert!(upstreams.hold(names[0], held));
    upstreams.depart(names[0], 4);
    assert_eq!(upstreams.oldest(), 0);
    upstreams.join();
    assert_eq!(upstreams.oldest(), names[0]);
    assert!(upstreams.holds(names[0]) && !upstreams.holds(names[1]));
    assert_eq!(upstreams.release(names[0]), Some(Held { departure_ns: 4, ..held }));
    assert_eq!(upstreams.release(names[0]), None);

    assert!(upstreams.hold(names[0], held));
    let next = upstreams.join();
    assert_eq!((upstreams.release(names[0]), upstreams.release(next)), (None, None));
    assert!(!upstreams.hold(names[0], held));
}
