//! A model of a proxy makes schedules of reads and writes, knows the cause of each write, and says how often the lane
//! found it.

extern crate std;

mod bytes;
mod churn;
mod kernel;
mod left;
mod own;
mod recent;
mod world;

use super::*;
use crate::order::ORDER_MEMORY;
use crate::pending::tests::empty;
use crate::upstreams::tests::none;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use std::boxed::Box;
use std::collections::{HashMap, VecDeque};
use std::vec::Vec;

#[expect(clippy::large_stack_arrays, reason = "a test's stack has room for it")]
fn lane() -> Box<Lane<AtomicU64>> {
    Box::new(Lane {
        pending: [*empty(), *empty()],
        upstreams: *none(),
        turn_start: Default::default(),
        older_start: Default::default(),
        turn_read_ns: AtomicU64::default(),
        writing: AtomicU64::default(),
        rounds: core::array::from_fn(|_| Default::default()),
        round: AtomicU64::default(),
        stale: AtomicU64::default(),
        past_stale: AtomicU64::default(),
        waiting: AtomicU64::default(),
        shared: AtomicU64::default(),
        waiting_on: Default::default(),
        answered: AtomicU64::default(),
        ended: AtomicU64::default(),
        continued_ns: AtomicU64::default(),
        writes: Default::default(),
        gone: AtomicU64::default(),
        latest: Default::default(),
        prompt: Prompt::default(),
        openers: Openers::default(),
        detours: Detours::default(),
        flows: Default::default(),
        order: Default::default(),
        habits: Habits::default(),
    })
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 11) as usize % bound
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        (1..items.len()).rev().for_each(|last| items.swap(last, self.below(last + 1)));
    }
}

/// How a proxy chooses connections and in which order it writes what it has read in a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The connection given back last; in the order of the reads: nginx, `HAProxy`.
    InOrder,
    /// The connection given back last; in any order: Envoy.
    Pool,
    /// The downstream connection's own; in any order: a tunnel in Envoy.
    Tunnel,
    /// Any free connection; in any order.
    Any,
}

/// A message that the proxy has read.
#[derive(Clone, Copy)]
struct Message {
    downstream: usize,
    upstream: usize,
    arrival_ns: u64,
}

/// One worker of a proxy with its clients and its servers. Time is in steps of 1 us.
struct Model {
    kind: Kind,
    random: Random,
    lane: Box<Lane<AtomicU64>>,
    now_ns: u64,
    /// Names that the lane gave the upstream connections, by number.
    names: Vec<u64>,
    free: Vec<usize>,
    /// Of each downstream connection: tag of its request, and name of the connection that brought its last response.
    requests: Vec<(u64, u64)>,
    /// What pairing in order says of each upstream connection.
    in_order: Vec<u64>,
    /// Requests at the server: when the response is ready.
    at_server: VecDeque<(u64, Message)>,
    /// Clients that think: when they ask again.
    thinking: VecDeque<(u64, usize)>,
    /// What was read in the turn before and is to be written.
    to_write: [Vec<Message>; 2],
    right: [u64; 2],
    wrong: [u64; 2],
    /// Latencies, ns: the model's and the lane's.
    truth_ns: Vec<u64>,
    found_ns: Vec<u64>,
}

impl Model {
    fn new(kind: Kind, downstreams: usize, seed: u64) -> Self {
        Self {
            kind,
            random: Random(seed | 1),
            lane: lane(),
            now_ns: 1_000_000,
            names: Vec::new(),
            free: Vec::new(),
            requests: std::vec![(0, 0); downstreams],
            in_order: Vec::new(),
            at_server: VecDeque::new(),
            thinking: (0..downstreams).map(|downstream| (0, downstream)).collect(),
            to_write: [Vec::new(), Vec::new()],
            right: [0; 2],
            wrong: [0; 2],
            truth_ns: Vec::new(),
            found_ns: Vec::new(),
        }
    }

    fn tick(&mut self) -> u64 {
        self.now_ns += 1000;
        self.now_ns
    }

    fn choose(&mut self, downstream: usize) -> usize {
        let place = match self.kind {
            Kind::Tunnel => {
                let own = self.free.iter().position(|&upstream| upstream == downstream);
                own.unwrap_or(usize::MAX)
            }
            Kind::Any if !self.free.is_empty() => self.random.below(self.free.len()),
            _ => self.free.len().wrapping_sub(1),
        };
        if place < self.free.len() {
            return self.free.remove(place);
        }
        let upstream = if self.kind == Kind::Tunnel { downstream } else { self.names.len() };
        self.names.resize(self.names.len().max(upstream + 1), 0);
        self.in_order.resize(self.names.len(), 0);
        if self.names[upstream] == 0 {
            self.names[upstream] = self.lane.connect();
        }
        upstream
    }

    /// Reads what is ready, then writes what was read in the turn before.
    fn turn(&mut self) {
        let started = self.now_ns;
        let mut ready: Vec<(usize, Message)> = Vec::new();
        while let Some(&(at_ns, downstream)) = self.thinking.front()
            && at_ns <= started
        {
            self.thinking.pop_front();
            ready.push((REQUEST, Message { downstream, upstream: usize::MAX, arrival_ns: at_ns }));
        }
        let (due, later): (Vec<_>, Vec<_>) =
            self.at_server.drain(..).partition(|(at_ns, _)| *at_ns <= started);
        self.at_server = later.into();
        ready.extend(
            due.into_iter().map(|(at_ns, message)| (RESPONSE, Message { arrival_ns: at_ns, ..message })),
        );
        self.random.shuffle(&mut ready);
        let mut read: [Vec<Message>; 2] = [Vec::new(), Vec::new()];
        for (direction, mut message) in ready {
            let now_ns = self.tick();
            if direction == REQUEST {
                let (_, usual) = self.requests[message.downstream];
                let id = message.downstream as u64 + 1;
                let tag = self.lane.push_request(message.arrival_ns, now_ns, id, usual).unwrap();
                self.requests[message.downstream].0 = tag;
                message.upstream = self.choose(message.downstream);
            } else {
                let (name, in_order) = (self.names[message.upstream], self.in_order[message.upstream]);
                self.lane.push_response(message.arrival_ns, now_ns, name, in_order).unwrap();
                self.free.push(message.upstream);
            }
            read[direction].push(message);
        }
        let mut writes: Vec<(usize, Message)> = Vec::new();
        for direction in [REQUEST, RESPONSE] {
            writes.extend(self.to_write[direction].drain(..).map(|message| (direction, message)));
        }
        if self.kind != Kind::InOrder {
            self.random.shuffle(&mut writes);
        }
        for (direction, message) in writes {
            self.write(direction, message);
        }
        self.to_write = read;
        // An idle loop sleeps until something is ready.
        self.now_ns += 2000;
    }

    fn write(&mut self, direction: usize, message: Message) {
        let (now_ns, random) = (self.tick(), self.random.next() as u32);
        let claim = if direction == REQUEST {
            let claim = self.lane.claim_request(now_ns, random, self.names[message.upstream], 0);
            self.in_order[message.upstream] = claim.downstream;
            let served_ns = now_ns + 20_000 + self.random.below(60) as u64 * 1000;
            self.at_server.push_back((served_ns, message));
            claim
        } else {
            let (request, usual) = self.requests[message.downstream];
            let id = message.downstream as u64 + 1;
            let claim = self.lane.claim_response(now_ns, random, id, request, usual, 0);
            self.requests[message.downstream].1 = claim.usual;
            let thinks_ns = now_ns + 5000 + self.random.below(30) as u64 * 1000;
            let place = self.thinking.partition_point(|(at_ns, _)| *at_ns <= thinks_ns);
            self.thinking.insert(place, (thinks_ns, message.downstream));
            claim
        };
        assert_ne!(claim.tag, 0, "a {direction} found nothing");
        // Arrivals of one direction differ in most cases; equal ones are as good as each other.
        let right = claim.arrival_ns == message.arrival_ns;
        self.right[direction] += u64::from(right);
        self.wrong[direction] += u64::from(!right);
        self.truth_ns.push(now_ns - message.arrival_ns);
        self.found_ns.push(now_ns - claim.arrival_ns);
    }

    /// The share of writes of each direction whose cause was found, after the habits were learned.
    fn run(&mut self, turns: usize) -> [f64; 2] {
        for _ in 0..turns / 2 {
            self.turn();
        }
        (self.right, self.wrong) = ([0; 2], [0; 2]);
        self.truth_ns.clear();
        self.found_ns.clear();
        for _ in 0..turns / 2 {
            self.turn();
        }
        [REQUEST, RESPONSE].map(|direction| {
            self.right[direction] as f64 / (self.right[direction] + self.wrong[direction]) as f64
        })
    }

    fn live(&self) -> u64 {
        self.lane.pending.iter().map(|set| set.live.load(Relaxed)).sum()
    }
}

proptest! {
    // Always the same schedules: what is asserted is a share of many, not of every one.
    #![proptest_config(ProptestConfig { cases: 10, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the kind: each write takes one message, and nothing is left when all is written.
    #[test]
    fn nothing_leaks(kind in prop::sample::select(&[Kind::InOrder, Kind::Pool, Kind::Tunnel, Kind::Any][..]),
                     downstreams in 1usize..100, seed: u64) {
        let mut model = Model::new(kind, downstreams, seed);
        model.run(300);
        let unwritten = model.to_write.iter().map(Vec::len).sum::<usize>();
        prop_assert_eq!(model.live(), unwritten as u64);
        let (truth_ns, found_ns): (u64, u64) = (model.truth_ns.iter().sum(), model.found_ns.iter().sum());
        // The same messages but for those at the edges of the measurement.
        prop_assert!(truth_ns.abs_diff(found_ns) <= 200_000 * 100, "{truth_ns} {found_ns}");
    }

    #[test]
    fn the_order_of_the_reads_is_found(downstreams in 1usize..100, seed: u64) {
        let right = Model::new(Kind::InOrder, downstreams, seed).run(2000);
        prop_assert!(right[REQUEST] > 0.99 && right[RESPONSE] > 0.99, "{right:?}");
    }

    #[test]
    fn the_stack_of_a_pool_is_found(downstreams in 2usize..100, seed: u64) {
        let right = Model::new(Kind::Pool, downstreams, seed).run(4000);
        prop_assert!(right[REQUEST] > 0.9 && right[RESPONSE] > 0.9, "{right:?}");
    }

    /// Pairs are not always found where writes come in any order; the distribution is.
    #[test]
    fn the_distribution_is_found(kind in prop::sample::select(&[Kind::Tunnel, Kind::Any][..]),
                                 downstreams in 2usize..100, seed: u64) {
        let mut model = Model::new(kind, downstreams, seed);
        model.run(6000);
        let (mut truth_ns, mut found_ns) = (model.truth_ns, model.found_ns);
        truth_ns.sort_unstable();
        found_ns.sort_unstable();
        for per_mille in [500, 900, 990] {
            let at = truth_ns.len() * per_mille / 1000;
            let (truth, found) = (truth_ns[at] as f64, found_ns[at] as f64);
            // Times in the model are whole microseconds.
            let share = if per_mille < 990 { 0.05 } else { 0.1 };
            prop_assert!((found - truth).abs() <= (truth * share).max(2000.0), "p{per_mille}: {found} for {truth}");
        }
    }
}

#[test]
fn a_message_that_arrived_after_the_first_read_is_of_a_later_turn() {
    let lane = lane();
    // As if chance alone had been seen.
    for order in &lane.order {
        order.returned.store(ORDER_MEMORY / 2, Relaxed);
        order.seen.store(ORDER_MEMORY / 2, Relaxed);
        order.chance.store((ORDER_MEMORY / 2) << 15, Relaxed);
    }
    for round in 1..1000 {
        let at = |place: u64| round * 100 + place;
        lane.push_request(at(1), at(10), 1, 0).unwrap();
        lane.push_request(at(2), at(20), 2, 0).unwrap();
        lane.push_request(at(11), at(30), 3, 0).unwrap();
        let random = |n: u64| (round * 7919 + n * 104_729) as u32;
        let read: Vec<_> =
            (1..=3).map(|n| lane.claim_request(at(50), random(n), 0, 0).read_ns % 100).collect();
        assert_eq!(read[2], 30, "{read:?}");
    }
}

#[test]
fn the_stack_is_believed_in_turns_of_any_size() {
    let first_claimed = |by_pool: u64| {
        let lane = lane();
        let upstreams = [lane.connect(), lane.connect()];
        let asked = upstreams.map(|_| lane.push_request(1, 1, 1, 0).unwrap());
        for (upstream, request) in upstreams.into_iter().zip(asked) {
            assert_eq!(lane.claim_request(2, 0, upstream, 0).tag, request);
        }
        for upstream in upstreams {
            lane.push_response(3, 3, upstream, 0).unwrap();
        }
        for request in asked {
            lane.claim_response(4, 0, 1, request, 0, 0);
        }
        lane.habits.returned.store(100, Relaxed);
        lane.habits.by_pool.store(by_pool, Relaxed);
        // The connection given back last is the first request's.
        let first = lane.push_request(10, 10, 1, 0).unwrap();
        let second = lane.push_request(10, 11, 2, 0).unwrap();
        let claimed = lane.claim_request(20, 0, upstreams[0], 0).tag;
        assert!(claimed == first || claimed == second);
        claimed == first
    };
    assert!(first_claimed(0) && !first_claimed(100));
}

/// One that goes nowhere is not taken for the next, nor that for the one after it.
#[test]
fn a_response_left_over_is_passed() {
    let lane = lane();
    let connections = [lane.connect(), lane.connect(), lane.connect()];
    for round in 1..100 {
        let now_ns = round * 100;
        let (downstream, upstream) = (round % 2 + 1, connections[round as usize % 2]);
        let request = lane.push_request(now_ns, now_ns, downstream, 0).unwrap();
        if round % 20 == 10 {
            lane.push_response(now_ns + 10, now_ns + 10, connections[2], 0).unwrap();
        }
        assert_eq!(lane.claim_request(now_ns + 20, 0, upstream, 0).tag, request);
        let response = lane.push_response(now_ns + 30, now_ns + 30, upstream, 0).unwrap();
        let claim = lane.claim_response(now_ns + 40, 0, downstream, request, 0, 0);
        assert_eq!(claim.tag, response, "in round {round}");
    }
    assert_eq!(lane.pending[RESPONSE].live.load(Relaxed), 0);
}

/// Threads that share a lane: what one of them has read last and another has not read on.
#[test]
fn a_thread_finds_what_it_has_read_last() {
    let lane = lane();
    lane.share();
    let (mut first, mut second) = (Recent::default(), Recent::default());
    let tags: Vec<_> = (1..=3).map(|at| lane.push_request(at, at, at, 0).unwrap()).collect();
    lane.note_reader(REQUEST, tags[0], 1, &mut first);
    lane.note_reader(REQUEST, tags[1], 1, &mut first);
    lane.note_reader(REQUEST, tags[2], 1, &mut first);
    assert_eq!(lane.newest(REQUEST, 1, &first), tags[2]);
    // The rest of the message is read by another thread.
    lane.note_reader(REQUEST, tags[2], 2, &mut second);
    assert_eq!((lane.newest(REQUEST, 1, &first), lane.newest(REQUEST, 2, &second)), (tags[1], tags[2]));
    assert_eq!(lane.claim_request(9, 0, 0, lane.newest(REQUEST, 1, &first)).tag, tags[1]);
    assert_eq!(lane.newest(REQUEST, 1, &first), tags[0]);
    // A thread that has read nothing takes the oldest of the process.
    assert_eq!(lane.claim_request(9, 0, 0, lane.newest(REQUEST, 3, &Recent::default())).tag, tags[0]);
}

/// Work handed over to any thread with some probability: all is matched, the mean is kept.
#[test]
fn work_that_moves_is_matched_whole() {
    let lane = lane();
    lane.share();
    let mut random = Random(99);
    let mut recent = [Recent::default(); 4];
    let (mut truth_ns, mut found_ns, mut right, mut count) = (0u64, 0u64, 0u64, 0u64);
    let mut inside: Vec<(u64, u64, usize)> = Vec::new();
    let mut believed: HashMap<u64, u64> = HashMap::new();
    for step in 1..200_000u64 {
        let now_ns = step * 1000;
        if inside.len() < 2 || inside.len() < 12 && random.below(2) == 0 {
            let thread = random.below(4);
            let tag = lane.push_request(now_ns, now_ns, step, 0).unwrap();
            lane.note_reader(REQUEST, tag, thread as u32 + 1, &mut recent[thread]);
            inside.push((tag, now_ns, thread));
            believed.insert(tag, now_ns);
            continue;
        }
        // The newest of a thread goes on; one in ten by another thread.
        let (tag, arrival_ns, reader) = inside.remove(inside.len() - 1 - random.below(2));
        let thread = if random.below(10) == 0 { random.below(4) } else { reader };
        let newest = lane.newest(REQUEST, thread as u32 + 1, &recent[thread]);
        let claim = lane.claim_request(now_ns, 0, 0, newest);
        assert!(believed.remove(&claim.tag).is_some(), "{claim:?} with {} inside", inside.len());
        (truth_ns, found_ns) = (truth_ns + now_ns - arrival_ns, found_ns + now_ns - claim.arrival_ns);
        right += u64::from(claim.tag == tag);
        count += 1;
    }
    assert_eq!(lane.pending[REQUEST].live.load(Relaxed), inside.len() as u64);
    // Who is inside at the end differs.
    let left = |arrivals: &mut dyn Iterator<Item = u64>| arrivals.sum::<u64>().cast_signed();
    let edge = left(&mut believed.values().copied()) - left(&mut inside.iter().map(|message| message.1));
    assert_eq!(truth_ns.cast_signed() + edge, found_ns.cast_signed());
    assert!(right * 10 > count * 5, "{right} of {count}");
}

#[test]
fn a_message_too_many_is_a_surplus() {
    let lane = lane();
    lane.share();
    lane.count_waiting(false, true);
    lane.push_request(1, 1, 1, 0).unwrap();
    assert!(!lane.has_surplus());
    lane.push_request(2, 2, 1, 0).unwrap();
    assert!(lane.has_surplus());
    lane.claim_request(3, 0, 0, 0);
    lane.count_waiting(true, true);
    // One message inside, and one at the server: the one that is left went nowhere.
    assert!(lane.has_surplus());
}

/// A thread writes a long message that another one has read: however many parts it has, that is one message.
#[test]
fn the_parts_of_a_message_are_no_proof_of_several() {
    let mut kernel = kernel::Kernel::new(false);
    let (client, server) = (kernel.accept(), kernel.connect());
    for exchange in 0..20 {
        let now_ns = 1_000_000 * (exchange + 1);
        for part in 0..300 {
            assert_eq!(kernel.write(server, 1, 0, now_ns + part), kernel::Written::Nothing);
        }
        kernel.read(server, 1, now_ns + 1_000, now_ns + 2_000);
        // Fails where it is taken for one with several messages at once.
        kernel.read(client, 1, now_ns + 3_000, now_ns + 4_000);
        kernel.write(client, 1, 0, now_ns + 5_000);
    }
}
