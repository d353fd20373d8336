//! What the probes `read`, `write` and `state` do with a lane and with a socket's state, for sockets that carry one
//! message at a time. A change of how they drive a lane is made here too.

use super::*;
use crate::layout::{
    MOST_STARVED, MULTIPLEXED, ROLE_ACCEPTED, ROLE_OPENED, SHARED, STARVED_WEIGHT, Socket, TURN_OWN,
    TURN_READING, TURN_WRITING,
};
use std::collections::HashSet;

/// Number of a socket.
pub(super) type Id = usize;

/// One message: its direction and its tag.
pub(super) type Tag = (usize, u64);

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// It carries this message on, which was read then.
    Claimed(Tag, u64),
    /// It continues a message.
    Continued,
    /// It is the proxy's own answer.
    Local,
    /// It has no cause.
    Nothing,
    /// Its cause is behind too many ended ones.
    TooFar,
}

/// Counters of the proxy, named as in [`Tally`](crate::layout::Tally).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    pub pushed: u64,
    pub claimed: u64,
    /// Ended without a claim: superseded, closed, expired, answered by the proxy.
    pub ended: u64,
    pub pending: u64,
    pub local: u64,
    /// Responses that went into another request.
    pub went_on: u64,
    pub too_far: u64,
    pub full: u64,
}

pub(super) struct Kernel {
    pub lane: Box<Lane<AtomicU64>>,
    pub counters: Counters,
    shared: bool,
    sockets: Vec<Socket>,
    recent: HashMap<u32, Recent>,
    claimed: HashSet<(usize, u64)>,
}

impl Kernel {
    pub fn new(shared: bool) -> Self {
        let lane = lane();
        if shared {
            lane.share();
        }
        Self {
            lane,
            counters: Counters::default(),
            shared,
            sockets: Vec::new(),
            recent: HashMap::new(),
            claimed: HashSet::new(),
        }
    }

    pub fn accept(&mut self) -> Id {
        self.follow(ROLE_ACCEPTED)
    }

    pub fn connect(&mut self) -> Id {
        let id = self.follow(ROLE_OPENED);
        self.sockets[id].upstream = self.lane.connect();
        id
    }

    fn follow(&mut self, role: u32) -> Id {
        let owner = if self.shared { SHARED } else { 1 };
        let id = self.sockets.len() as u32 + 1;
        self.sockets.push(Socket { role, owner, id, ..Socket::default() });
        self.sockets.len() - 1
    }

    /// Returns the message that begins here, unless the read continues one or there is no room.
    pub fn read(&mut self, id: Id, tid: u32, arrival_ns: u64, now_ns: u64) -> Option<Tag> {
        if self.sockets[id].turn == TURN_READING {
            if !self.shared && self.sockets[id].pending_tag != 0 {
                self.lane.note_read(inbound(&self.sockets[id]), self.sockets[id].pending_tag);
                self.lane.latest[inbound(&self.sockets[id])].more_ns.store(now_ns, Relaxed);
            }
            self.note_reader(id, tid);
            return None;
        }
        let own = self.is_answer_to_own(id);
        self.sockets[id].turn = TURN_READING;
        self.end_superseded(id);
        let socket = &mut self.sockets[id];
        let inbound = inbound(socket);
        let starved = self.lane.latest[inbound].note(u64::from(socket.id), 0, now_ns);
        if !self.shared {
            let evidence = socket.multiplexed.saturating_sub(1);
            socket.multiplexed = evidence + (starved as u32).min(MOST_STARVED) * STARVED_WEIGHT;
            assert!(socket.multiplexed < MULTIPLEXED, "taken for a multiplexed connection");
        }
        self.note_waiting(id, inbound == REQUEST);
        let socket = &mut self.sockets[id];
        if inbound == RESPONSE && self.lane.goes_nowhere(socket.upstream, own) {
            socket.pending_tag = 0;
            self.counters.local += 1;
            return None;
        }
        let pushed = if inbound == REQUEST {
            self.lane.push_request(arrival_ns, now_ns, u64::from(socket.id), socket.upstream)
        } else {
            self.lane.push_response(arrival_ns, now_ns, socket.upstream, u64::from(socket.downstream))
        };
        socket.pending_tag = pushed.unwrap_or(0);
        let Some(tag) = pushed else {
            self.counters.full += 1;
            return None;
        };
        self.counters.pushed += 1;
        self.counters.pending += 1;
        self.note_reader(id, tid);
        Some((inbound, tag))
    }

    pub fn write(&mut self, id: Id, tid: u32, random: u32, now_ns: u64) -> Written {
        let turn = self.sockets[id].turn;
        if turn == TURN_WRITING {
            return Written::Continued;
        }
        self.sockets[id].turn = TURN_WRITING;
        let outbound = inbound(&self.sockets[id]) ^ 1;
        let recent = *self.recent.entry(tid).or_default();
        let newest = if self.shared { self.lane.newest(outbound, tid, &recent) } else { 0 };
        let socket = &self.sockets[id];
        if outbound == RESPONSE
            && let Some(by_pool) =
                self.lane.answers_itself(socket.pending_tag, u64::from(socket.id), socket.upstream, newest)
        {
            let ended = self.lane.end_answered(socket.pending_tag, || {
                self.lane.move_up(socket.pending_tag, by_pool, |moved| self.lane.move_one(moved));
            });
            self.counters.local += ended;
            self.end(ended);
            self.note_waiting(id, outbound == REQUEST);
            return Written::Local;
        }
        let before = outbound == REQUEST && self.follows_own_read(id);
        let at_once = self.lane.has_just_read_response() != 0;
        self.lane.clear_fronts();
        let newest = if self.shared { self.lane.newest_or_left(outbound, newest) } else { newest };
        let socket = &mut self.sockets[id];
        let claim = if outbound == RESPONSE {
            let (own, request) = (u64::from(socket.id), socket.pending_tag);
            self.lane.verify(request);
            let claim = self.lane.claim_response(now_ns, random, own, request, socket.upstream, newest);
            socket.upstream = claim.usual;
            claim
        } else {
            self.lane.predict(socket.upstream);
            let claim = self.lane.claim_request(now_ns, random, socket.upstream, newest);
            socket.downstream = claim.downstream as u32;
            claim
        };
        self.note_waiting(id, outbound == REQUEST);
        let socket = &mut self.sockets[id];
        if claim.missing {
            self.end(claim.expired);
            return Written::Nothing;
        }
        if claim.too_far {
            self.end(claim.expired);
            self.counters.too_far += 1;
            return Written::TooFar;
        }
        if claim.tag == 0 {
            if outbound == REQUEST && self.lane.go_on(socket.upstream, at_once, before) {
                self.counters.went_on += 1;
                self.end(claim.expired + 1);
                return Written::Local;
            }
            // As `from_latest` where no connection is multiplexed.
            if turn == TURN_READING || outbound == REQUEST {
                self.lane.note_starved(outbound, turn == TURN_OWN);
            }
            if turn != TURN_READING || outbound == REQUEST {
                socket.turn = TURN_OWN;
            }
            self.end(claim.expired);
            return Written::Nothing;
        }
        self.end(claim.expired);
        self.counters.claimed += 1;
        self.counters.pending -= 1;
        assert!(self.claimed.insert((outbound, claim.read_ns)), "{claim:?} was claimed before");
        Written::Claimed((outbound, claim.tag), claim.read_ns)
    }

    pub fn close(&mut self, id: Id) {
        let socket = &mut self.sockets[id];
        let (tag, role, turn) = (socket.pending_tag, socket.role, socket.turn);
        socket.pending_tag = 0;
        if tag != 0 && role == ROLE_OPENED {
            self.lane.pending[RESPONSE].orphan(tag);
        } else if tag != 0 && turn == TURN_WRITING && !self.shared {
            self.lane.pending[REQUEST].orphan(tag);
        } else if tag != 0 && self.lane.pending[REQUEST].end(tag) {
            self.end(1);
        } else if turn == TURN_READING {
            let ended = self.lane.leave(tag);
            self.end(ended);
        }
        self.note_waiting(id, false);
        if role == ROLE_OPENED {
            self.lane.close(self.sockets[id].upstream);
        }
    }

    /// Each message is claimed, ended or live, and the counters say what the sets hold.
    pub fn check(&self) {
        let counters = self.counters;
        let live: u64 = self.lane.pending.iter().map(|set| set.live.load(Relaxed)).sum();
        assert_eq!(counters.pushed, counters.claimed + counters.ended + counters.pending, "{counters:?}");
        assert_eq!(counters.pending, live, "{counters:?}");
    }

    fn end(&mut self, count: u64) {
        self.counters.ended += count;
        self.counters.pending -= count;
    }

    fn note_reader(&mut self, id: Id, tid: u32) {
        let socket = &self.sockets[id];
        if self.shared && socket.pending_tag != 0 {
            let recent = self.recent.entry(tid).or_default();
            self.lane.note_reader(inbound(socket), socket.pending_tag, tid, recent);
        }
    }

    fn note_waiting(&mut self, id: Id, waits: bool) {
        let socket = &mut self.sockets[id];
        if (socket.waits != 0) != waits {
            self.lane.count_waiting(socket.role == ROLE_OPENED, waits);
            socket.waits = u32::from(waits);
        }
    }

    fn end_superseded(&mut self, id: Id) {
        let socket = &self.sockets[id];
        if socket.pending_tag == 0 {
            return;
        }
        let set = &self.lane.pending[inbound(socket)];
        if !self.shared && socket.role == ROLE_OPENED && self.lane.is_still_to_come() {
            return;
        }
        if self.shared && !self.lane.has_surplus() {
            set.orphan(socket.pending_tag);
        } else if set.end(socket.pending_tag) {
            self.end(1);
        }
    }

    /// What was read last of the opened connection waits, and no request was read since.
    fn follows_own_read(&self, id: Id) -> bool {
        let [requests, responses] = &self.lane.pending;
        let read_ns = responses.read_ns(self.sockets[id].pending_tag);
        read_ns.is_some_and(|read_ns| requests.newest_read_ns() <= read_ns)
    }

    /// The proxy has written for no cause, and nothing that was read before still waits.
    fn is_answer_to_own(&self, id: Id) -> bool {
        let socket = &self.sockets[id];
        !self.shared
            && socket.role == ROLE_OPENED
            && socket.turn == TURN_OWN
            && !self.lane.pending[RESPONSE].is_live(socket.pending_tag)
    }
}

fn inbound(socket: &Socket) -> usize {
    if socket.role == ROLE_ACCEPTED { REQUEST } else { RESPONSE }
}
