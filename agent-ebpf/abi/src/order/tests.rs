extern crate std;
use super::*;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Whether the order is kept where so many responses of so many have led back in order.
fn is_kept(returned: u64, in_order: u64) -> bool {
    let order = Order::<AtomicU64>::default();
    order.returned.store(returned, Relaxed);
    order.right.store(in_order, Relaxed);
    order.is_kept()
}

/// As if so many responses had been seen, of which so many led back by order, pool and usual connection.
fn seen(returned: u64, in_order: u64, pool: u64, usual: u64) -> Habits<AtomicU64> {
    let habits = Habits::<AtomicU64>::default();
    habits.returned.store(returned, Relaxed);
    habits.in_order.store(in_order, Relaxed);
    habits.by_pool.store(pool, Relaxed);
    habits.as_usual.store(usual, Relaxed);
    habits
}

#[test]
fn the_order_is_believed_until_something_tells_against_it() {
    assert!(is_kept(0, 0));
    // What it starts with counts as seen: 16 of 18 are 8/9, of 19 less than 7/8.
    assert!(is_kept(2, 0) && !is_kept(3, 0));
    assert_eq!(seen(1, 0, 1, 1).strongest(), None);
}

#[test]
fn seven_eighths_lead_back_where_the_order_is_kept() {
    // 16 more of each: 875 of 1000.
    assert!(is_kept(984, 859) && !is_kept(984, 858));
}

#[test]
fn a_stack_is_clearly_better_than_the_order_and_nearly_always_right() {
    assert_eq!(seen(1024, 100, 992, 0).strongest(), Some(Habit::Pool));
    assert_eq!(seen(1024, 100, 991, 0).strongest(), None);
    assert_eq!(seen(1000, 904, 977, 0).strongest(), None, "920 times 17/16 are 977.5");
    assert_eq!(seen(1000, 904, 978, 0).strongest(), Some(Habit::Pool));
}

#[test]
fn half_of_the_responses_are_enough_for_the_usual_connection() {
    assert_eq!(seen(984, 100, 0, 501).strongest(), Some(Habit::Usual));
    assert_eq!(seen(984, 100, 0, 500).strongest(), None);
    // One that leads back more often goes before it, and the order where it is not clearly worse.
    assert_eq!(seen(984, 100, 980, 979).strongest(), Some(Habit::Pool));
    assert_eq!(seen(984, 100, 980, 980).strongest(), Some(Habit::Usual));
    assert_eq!(seen(984, 884, 0, 950).strongest(), None);
}

#[test]
fn habits_are_learned_and_forgotten() {
    let habits = Habits::<AtomicU64>::default();
    let note = |right: Return, count: u64| (0..count).for_each(|_| habits.note_return(right));
    note(Return { pool: true, ..Return::default() }, 200);
    assert_eq!(habits.strongest(), Some(Habit::Pool));
    note(Return { pool: true, ..Return::default() }, 10 * ORDER_MEMORY);
    assert_eq!(habits.strongest(), Some(Habit::Pool));
    note(Return { order: true, ..Return::default() }, 4 * ORDER_MEMORY);
    assert_eq!(habits.strongest(), None);
    habits.clear();
    assert_eq!(habits.returned.load(Relaxed), 0);
}

#[test]
fn counts_are_halved_together() {
    let habits = seen(ORDER_MEMORY - 1, 2000, 1000, 10);
    let counts =
        || [&habits.returned, &habits.in_order, &habits.by_pool, &habits.as_usual].map(|c| c.load(Relaxed));
    habits.note_return(Return { order: true, ..Return::default() });
    assert_eq!(counts(), [ORDER_MEMORY, 2001, 1000, 10]);
    habits.note_return(Return { usual: true, ..Return::default() });
    assert_eq!(counts(), [ORDER_MEMORY / 2 + 1, 1000, 500, 6]);

    let order = Order::<AtomicU64>::default();
    (0..3 * ORDER_MEMORY).for_each(|_| order.note(true, 1 << 15));
    let seen = order.seen.load(Relaxed);
    assert!(seen <= ORDER_MEMORY && order.kept.load(Relaxed) == seen);
    // A halved sum of shares is at most one step of 2^-16 below them.
    assert!(order.chance.load(Relaxed).abs_diff(seen << 15) <= 1);
}

#[test]
fn the_order_holds_as_often_as_it_is_kept_beyond_chance() {
    let holds = |seen: u64, kept: u64, chance: u64| {
        let order = Order::<AtomicU64>::default();
        order.seen.store(seen, Relaxed);
        order.kept.store(kept, Relaxed);
        order.chance.store(chance << 16, Relaxed);
        (0..1 << 16).filter(|&random| order.holds(random)).count()
    };
    assert_eq!(holds(100, 100, 50), 1 << 16);
    assert_eq!(holds(100, 75, 50), 1 << 15);
    assert_eq!(holds(100, 50, 50), 0);
    assert_eq!(holds(100, 20, 50), 0, "less often than by chance");
    assert_eq!(holds(0, 0, 0), 0);
}

#[test]
fn sizes_are_told_apart_by_powers_of_two() {
    for (size, class) in [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (63, 5), (64, 6), (127, 6), (128, 7)] {
        assert_eq!(size_class(size), class, "{size}");
    }
    assert_eq!(size_class(u64::MAX), ORDER_SIZES - 1);
}
