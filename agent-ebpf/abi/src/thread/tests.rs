extern crate std;
use super::*;
use crate::order::ORDER_MEMORY;
use crate::pending::tests::{empty, message};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use std::boxed::Box;
use std::vec::Vec;

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
            .map(|n| message(thread.claim(0, at(50), (round * 7919 + n * 104_729) as u32, 0)).unwrap() % 100)
            .collect();
        assert_eq!(order[2], 30, "{order:?}");
    }
}
