//! What a thread remembers of its reads.

use super::*;

const TID: u32 = 7;

fn read(lane: &Lane<AtomicU64>, recent: &mut Recent, direction: usize, at_ns: u64) -> u64 {
    let tag = if direction == REQUEST {
        lane.push_request(at_ns, at_ns, at_ns, 0)
    } else {
        lane.push_response(at_ns, at_ns, 0, 0)
    };
    lane.note_reader(direction, tag.unwrap(), TID, recent);
    tag.unwrap()
}

fn shared() -> (Box<Lane<AtomicU64>>, Recent) {
    let lane = lane();
    lane.share();
    (lane, Recent::default())
}

#[test]
fn nothing_read_is_nothing_newest() {
    let (lane, recent) = shared();
    lane.push_request(1, 1, 1, 0).unwrap();
    assert_eq!((lane.newest(REQUEST, TID, &recent), lane.newest(RESPONSE, TID, &recent)), (0, 0));
}

#[test]
fn the_directions_are_apart() {
    let (lane, mut recent) = shared();
    let request = read(&lane, &mut recent, REQUEST, 1);
    let response = read(&lane, &mut recent, RESPONSE, 2);
    assert_eq!(lane.newest(REQUEST, TID, &recent), request);
    assert_eq!(lane.newest(RESPONSE, TID, &recent), response);
}

#[test]
fn the_newest_that_is_left_of_the_last_few() {
    let (lane, mut recent) = shared();
    let tags: Vec<_> = (1..=RECENT as u64 + 2).map(|at| read(&lane, &mut recent, REQUEST, at)).collect();
    for &tag in tags.iter().rev().take(RECENT) {
        let newest = lane.newest(REQUEST, TID, &recent);
        assert_eq!(newest, tag);
        assert_eq!(lane.claim_request(100, 0, 0, newest).tag, tag);
    }
    // The others still wait, and are not known to be its own any more.
    assert_eq!(lane.newest(REQUEST, TID, &recent), 0);
    assert_eq!(lane.claim_request(100, 0, 0, 0).tag, tags[0]);
}

#[test]
fn a_message_in_many_parts_is_one() {
    let (lane, mut recent) = shared();
    let first = read(&lane, &mut recent, REQUEST, 1);
    let second = read(&lane, &mut recent, REQUEST, 2);
    (0..10).for_each(|_| lane.note_reader(REQUEST, second, TID, &mut recent));
    assert_eq!(lane.claim_request(9, 0, 0, lane.newest(REQUEST, TID, &recent)).tag, second);
    assert_eq!(lane.newest(REQUEST, TID, &recent), first);
}

#[test]
fn one_that_ended_is_not_the_newest() {
    let (lane, mut recent) = shared();
    let first = read(&lane, &mut recent, REQUEST, 1);
    let second = read(&lane, &mut recent, REQUEST, 2);
    assert!(lane.pending[REQUEST].end(second));
    assert_eq!(lane.newest(REQUEST, TID, &recent), first);
}
