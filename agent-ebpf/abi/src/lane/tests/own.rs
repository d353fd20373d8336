//! Answers of the proxy's own among hundreds of connections.

use super::*;
use crate::pending::tests::empty;

#[test]
fn in_a_crowd_a_request_that_nothing_was_written_for_is_answered_by_the_proxy() {
    let lane = lane();
    let upstreams: Vec<_> = (0..80).map(|_| lane.connect()).collect();
    let requests: Vec<_> =
        (0..80).map(|at| lane.push_request(1_000, 1_000 + at, at + 1, 0).unwrap()).collect();
    for &upstream in &upstreams[..40] {
        lane.claim_request(2_000, 7, upstream, 0);
    }
    // The first are answered before the loop has come to the last.
    for &upstream in &upstreams[..40] {
        lane.push_response(3_000, 3_000, upstream, 0).unwrap();
    }
    let ended = |place: usize| {
        let own = lane.answers_itself(requests[place], place as u64 + 1, 0, 0);
        own.map(|_by_pool| lane.end_answered(requests[place], || ()))
    };
    assert_eq!((ended(39), ended(40)), (None, Some(1)));
    lane.claim_request(4_000, 7, upstreams[40], 0);
    assert_eq!((ended(41), ended(42)), (None, Some(1)));
}

#[test]
fn in_a_crowd_that_sends_in_parts_whoever_is_done_first_is_answered_by_a_server() {
    let lane = lane();
    let upstream = lane.connect();
    let requests: Vec<_> =
        (0..80).map(|at| lane.push_request(1_000, 1_000 + at, at + 1, 0).unwrap()).collect();
    // The rest of the last one comes first.
    lane.latest[REQUEST].more_ns.store(2_000, Relaxed);
    lane.claim_request(2_001, 7, upstream, 0);
    let own = || lane.answers_itself(requests[79], 80, 0, 0);
    assert_eq!(own(), Some(0), "no response was read");
    lane.push_response(3_000, 3_000, upstream, 0).unwrap();
    assert_eq!(own(), None);
}

#[test]
fn what_a_write_was_wrongly_given_is_given_back() {
    let set = empty();
    let tags: Vec<_> = (0..3).map(|at| set.push(at, at, at, 0).unwrap()).collect();
    set.take(tags[1]);
    set.in_order.store(1, Relaxed);
    set.of(tags[1]).upstream.store(9, Relaxed);
    assert_eq!(set.oldest_single(3), Some(0));
    // The second was answered by the proxy itself: the write was for the first.
    assert!(set.give(tags[1], 0));
    assert!(!set.give(tags[1], 0));
    assert_eq!((set.of(tags[0]).upstream.load(Relaxed), set.live.load(Relaxed)), (9, 1));
    assert_eq!((set.next_in_order(), set.oldest_single(3)), (2, Some(2)));
}

/// What the writes to connections opened for no request are taken for, one after the other, where a request waits then or not.
fn begin(lane: &Lane<AtomicU64>, waits: impl IntoIterator<Item = bool>) -> Vec<bool> {
    let first_write = |waits: bool| {
        let upstream = lane.connect();
        let request = waits.then(|| lane.push_request(1_000, 1_000, 1, 0).unwrap());
        let own = lane.begins_on_its_own(upstream);
        assert!(!lane.begins_on_its_own(upstream), "its first only");
        assert!(request.is_none_or(|request| lane.pending[REQUEST].end(request)));
        own
    };
    waits.into_iter().map(first_write).collect()
}

#[test]
fn the_first_write_of_a_health_check_is_for_no_request_though_one_waits() {
    let lane = lane();
    assert_eq!(begin(&lane, [false; 4]), [false, false, false, true]);
    assert_eq!(begin(&lane, [true, false]), [true, true]);
    lane.push_request(2_000, 2_000, 1, 0).unwrap();
    let asked_for = lane.connect();
    assert!(!lane.begins_on_its_own(asked_for), "one waited that it was opened for");
}

#[test]
fn a_tunnels_connection_is_opened_before_anything_is_asked() {
    let lane = lane();
    assert!(!begin(&lane, [true; 100]).contains(&true));
    assert!(!begin(&lane, (0..100).map(|at| at % 4 == 0)).contains(&true), "nor where each fourth one is");
}

#[test]
fn where_requests_share_segments_a_write_that_finds_none_waiting_is_no_health_check() {
    let lane = lane();
    begin(&lane, [false; 8]);
    lane.latest[REQUEST].several.store(1, Relaxed);
    assert_eq!(begin(&lane, [true]), [false]);
}
