extern crate std;
use super::*;
use crate::pending::tests::empty;
use crate::upstreams::tests::none;
use core::sync::atomic::AtomicU64;
use std::boxed::Box;
use std::println;

fn lane() -> Box<Lane<AtomicU64>> {
    Box::new(Lane {
        pending: [*empty(), *empty()],
        upstreams: *none(),
        waiting: AtomicU64::default(),
        turn_start: Default::default(),
        older_start: Default::default(),
        turn_read_ns: AtomicU64::default(),
        writing: AtomicU64::default(),
        order: Default::default(),
    })
}

#[test]
fn ping_pong() {
    let lane = lane();
    let name = lane.connect();
    let mut usual = 0;
    for round in 0..10 {
        let at = round * 100;
        let request = lane.push_request(at + 1, at + 2, 7, usual).unwrap();
        let claim = lane.claim_request(at + 3, 0, name);
        println!("{claim:?}");
        let _ = lane.push_response(at + 4, at + 5, name, claim.downstream).unwrap();
        let claim = lane.claim_response(at + 6, 0, 7, request, usual);
        println!("{claim:?}");
        usual = claim.upstream;
    }
    panic!();
}
