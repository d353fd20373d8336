//! Connections that carry several messages at once: which segment a write carries on, and which share of the messages.

use super::*;
use crate::pending::{DRAIN, DRAIN_STEPS, Drained};

const REQUEST_BYTES: u64 = 100;
const RESPONSE_BYTES: u64 = 250;

/// A write to an opened connection that the proxy keeps: when what it carries on was read.
fn write_request(lane: &Lane<AtomicU64>, upstream: u64, now_ns: u64) -> u64 {
    let claim = lane.claim_request(now_ns, 7, upstream, 0);
    if claim.read_ns == 0 {
        // As `from_latest` of the program.
        lane.note_latest(REQUEST);
        return lane.latest[REQUEST].read_ns.load(Relaxed);
    }
    claim.read_ns
}

/// Reads a segment of so many requests.
fn read_requests(lane: &Lane<AtomicU64>, count: u64, now_ns: u64) {
    let bytes = count * REQUEST_BYTES;
    lane.begin_turn(now_ns, now_ns);
    lane.forget_stale(REQUEST);
    lane.push_segment(REQUEST, now_ns, now_ns, bytes as u32).unwrap();
    lane.latest[REQUEST].note(1, now_ns, now_ns);
}

/// What a write of so many bytes to the multiplexed connection of this number takes of the responses.
fn drain(lane: &Lane<AtomicU64>, id: u64, bytes: u64) -> Drained {
    lane.drain(RESPONSE, id, bytes, |drained| lane.drain_some(RESPONSE, drained))
}

/// A proxy that writes a turn late: each segment is read before the messages of the one before it are written.
#[test]
fn a_segment_is_carried_on_by_as_many_writes_as_it_has_messages() {
    let lane = lane();
    let mut random = Random(11);
    let upstreams: Vec<_> = (0..8).map(|_| lane.connect()).collect();
    let (mut earlier, mut right, mut all) = ((0, 0), 0, 0);
    for turn in 1..500u64 {
        let now_ns = turn * 1000;
        let count = 1 + random.below(8) as u64;
        read_requests(&lane, count, now_ns);
        let (written, read_ns) = earlier;
        for place in 0..written {
            let found_ns = write_request(&lane, upstreams[place as usize], now_ns + 10 + place);
            // The size of a message is learned meanwhile.
            if turn > 50 {
                right += u64::from(found_ns == read_ns);
                all += 1;
            }
        }
        earlier = (count, now_ns);
    }
    assert!(right * 100 >= all * 95, "{right} of {all}");
}

/// Two connections whose responses are read in turn, and which are each written to once.
#[test]
fn a_write_takes_its_share_where_another_connection_has_one() {
    let lane = lane();
    let set = &lane.pending[RESPONSE];
    let upstream = lane.connect();
    let mut random = Random(5);
    let (mut taken, mut read) = ([0; 2], [0; 2]);
    for turn in 1..400u64 {
        let now_ns = turn * 1000;
        let counts = [1 + random.below(4) as u64, 1 + random.below(4) as u64];
        for place in 0..counts[0] + counts[1] {
            lane.push_response(now_ns, now_ns + place, upstream, 0).unwrap();
        }
        for (place, count) in counts.into_iter().enumerate() {
            let drained = drain(&lane, 10 + place as u64, count * RESPONSE_BYTES);
            taken[place] += drained.singles;
            read[place] += count;
        }
        assert!(set.live.load(Relaxed) <= 4, "{} are left", set.live.load(Relaxed));
    }
    // The first one does not take all that there is.
    assert!(taken[0].abs_diff(read[0]) * 10 <= read[0], "{taken:?} of {read:?}");
}

/// One connection alone takes all there is, whatever the length of its write.
#[test]
fn a_write_takes_all_where_no_other_connection_has_a_share() {
    let lane = lane();
    let upstream = lane.connect();
    // From here on the connection before is forgotten.
    for turn in 1..200u64 {
        let now_ns = turn * 1000;
        (0..3).for_each(|place| {
            lane.push_response(now_ns, now_ns + place, upstream, 0).unwrap();
        });
        let drained = drain(&lane, 9, 1 + turn % 7);
        assert!(drained.singles == 3 || turn < 100, "{drained:?}");
    }
}

#[test]
fn a_write_takes_all_that_a_round_has_read() {
    let lane = lane();
    let many = (DRAIN * DRAIN_STEPS) as u64;
    for place in 0..many {
        let _pushed = lane.push_segment(RESPONSE, 1_000, 1_010 + place, 100);
    }
    let drained = drain(&lane, 9, 100 * many);
    assert_eq!((drained.start, drained.end, drained.batches), (0, many, many));
    assert_eq!(drain(&lane, 9, 100).batches, 0);
}

/// A segment with the responses of several connections: each write that its bytes are left for has its stamps.
#[test]
fn the_rest_of_a_segment_is_carried_on_to_other_connections() {
    let lane = lane();
    let mut right = 0;
    for turn in 1..200u64 {
        let now_ns = turn * 1000;
        lane.begin_turn(now_ns, now_ns);
        lane.push_segment(RESPONSE, now_ns, now_ns + 1, 4 * RESPONSE_BYTES as u32).unwrap();
        for id in 10..14 {
            let drained = drain(&lane, id, RESPONSE_BYTES);
            let stamps = if drained.rest == 0 {
                // As the program does for what is owed.
                if drained.batches == 0 {
                    lane.note_latest(RESPONSE);
                }
                lane.pending[RESPONSE].stamps(drained.last)
            } else {
                [drained.arrival_ns, drained.read_ns]
            };
            right += u64::from(
                turn > 100 && drained.rest + drained.batches == 1 && stamps == [now_ns, now_ns + 1],
            );
        }
    }
    assert!(right >= 99 * 4 - 4, "{right} of {}", 99 * 4);
}

/// nginx writes the head of each message and then its body, to a connection of many.
#[test]
fn the_body_that_is_written_after_its_head_belongs_to_it() {
    const HEAD: u64 = 85;
    const BODY: u64 = 80;
    let lane = lane();
    for turn in 1..200u64 {
        let now_ns = turn * 1000;
        lane.begin_turn(now_ns, now_ns);
        lane.push_segment(RESPONSE, now_ns, now_ns + 1, 145).unwrap();
        let drained = drain(&lane, turn % 8, HEAD);
        assert_eq!((drained.batches, drained.rest), (1, 0));
        // The first ones show how long they are.
        if turn > 4 {
            assert!(drained.unwritten >= BODY, "{drained:?}");
            // The message after the next is none of it.
            assert!(drained.unwritten < BODY + HEAD, "{drained:?}");
        }
        lane.note_more_written(RESPONSE, BODY);
    }
}

/// What single messages a write takes along says nothing of how many a segment has.
#[test]
fn single_messages_do_not_make_those_of_segments_shorter() {
    let lane = lane();
    let upstream = lane.connect();
    for turn in 1..200u64 {
        let now_ns = turn * 1000;
        lane.push_response(now_ns, now_ns, upstream, 0).unwrap();
        lane.push_response(now_ns, now_ns + 1, upstream, 0).unwrap();
        lane.push_segment(RESPONSE, now_ns, now_ns + 2, RESPONSE_BYTES as u32).unwrap();
        let taken: u64 = (0..3)
            .map(|id| {
                let drained = drain(&lane, id, RESPONSE_BYTES);
                drained.singles + drained.batches + drained.rest
            })
            .sum();
        assert_eq!(taken, 3, "turn {turn}");
    }
}

#[test]
fn what_is_much_shorter_than_a_message_carries_on_no_rest_of_a_segment() {
    let lane = lane();
    for turn in 1..200u64 {
        let now_ns = turn * 1000;
        lane.begin_turn(now_ns, now_ns);
        lane.push_segment(RESPONSE, now_ns, now_ns + 1, 2 * RESPONSE_BYTES as u32).unwrap();
        drain(&lane, 1, RESPONSE_BYTES);
        let record = drain(&lane, 2, 13);
        assert_eq!((record.rest, record.batches), (0, 0));
        drain(&lane, 3, RESPONSE_BYTES);
    }
}

#[test]
fn bytes_of_several_messages_are_told_from_those_of_one() {
    let lane = lane();
    let several = |count| lane.are_several(REQUEST, count * REQUEST_BYTES);
    assert!(!several(100), "nothing is known");
    for turn in 1..100u64 {
        read_requests(&lane, 1, turn * 1000);
        lane.drain(REQUEST, 9, REQUEST_BYTES, |drained| lane.drain_some(REQUEST, drained));
    }
    assert!(!several(4), "none is known to carry several at once");
    lane.latest[REQUEST].several.store(1, Relaxed);
    assert!(several(4) && !several(3));
}

#[test]
fn a_control_record_left_from_before_does_not_stand_in_for_a_message() {
    const RECORD: u32 = 48;
    const MESSAGE: u32 = 66;
    let lane = lane();
    let read = |now_ns, bytes| {
        lane.begin_turn(now_ns, now_ns);
        lane.push_segment(REQUEST, now_ns, now_ns, bytes).unwrap();
    };
    let upstream = lane.connect();
    let written = |now_ns| {
        forget(&lane);
        lane.claim_request(now_ns, 7, upstream, 0).read_ns
    };
    read(1_000, RECORD);
    drain(&lane, 9, 1);
    read(2_000, MESSAGE);
    // Nothing shows yet that records stand between messages.
    assert_eq!(written(2_010), 1_000);
    lane.latest[REQUEST].records.store(100, Relaxed);
    assert_eq!(written(2_020), 2_000);
    read(3_000, RECORD);
    drain(&lane, 9, 1);
    read(4_000, MESSAGE);
    assert_eq!(written(4_010), 4_000);
    // Where there is nothing else it may be a message.
    read(5_000, RECORD);
    drain(&lane, 9, 1);
    assert_eq!(written(5_010), 5_000);
}

/// As the kernel's half does before a write.
fn forget(lane: &Lane<AtomicU64>) -> u64 {
    lane.forget_records(REQUEST, |position, round, quiet_since_ns| {
        lane.forget_record(REQUEST, position, round, quiet_since_ns)
    })
}

#[test]
fn a_control_record_of_a_connection_not_known_for_them_ends_when_the_loop_was_quiet_since() {
    let lane = lane();
    let upstream = lane.connect();
    let written = |now_ns| (forget(&lane), lane.claim_request(now_ns, 7, upstream, 0).read_ns);
    let record = lane.push_record(1_000, 1_000, 1).unwrap();
    lane.push_request(300_000, 300_000, 2, 0).unwrap();
    // Soon after, it may be a message that waits for its turn.
    assert_eq!(written(300_010), (0, 1_000));
    assert_eq!(written(300_020), (0, 300_000));
    assert!(
        !lane.pending[REQUEST].was_record(record, 300_030)
            && lane.pending[REQUEST].was_record(record, 500_000)
    );
    let record = lane.push_record(1_000_000, 1_000_000, 1).unwrap();
    lane.push_request(2_000_000, 2_000_000, 2, 0).unwrap();
    assert_eq!(written(2_000_010), (1, 2_000_000));
    assert!(lane.pending[REQUEST].was_record(record, 2_000_020));
    // Where there is nothing else it is a message.
    lane.push_record(3_000_000, 3_000_000, 1).unwrap();
    assert_eq!(written(5_000_000), (0, 3_000_000));
    assert!(!lane.pending[REQUEST].any_live());
}

#[test]
fn what_was_written_on_long_before_more_came_was_no_part_of_a_message() {
    let lane = lane();
    let (upstream, set) = (lane.connect(), &lane.pending[REQUEST]);
    let request = lane.push_request(1_000, 1_000, 1, 0).unwrap();
    assert!(!set.was_written_long_ago(request, 2_000_000), "it waits");
    lane.claim_request(1_010, 7, upstream, 0);
    let long_ago = |arrival_ns| set.was_written_long_ago(request, arrival_ns);
    assert_eq!((long_ago(401_000), long_ago(401_001)), (false, true));
}
