//! What a proxy says and asks for itself, and what goes nowhere: messages that are no crossings.
//!
//! An answer of the proxy's own leaves a request behind that nothing will be written for, a response that nobody waits
//! for any more stays where it was read. Either would be taken for the next message's and put all later ones out.

use super::turn::CROWD;
use super::{Habit, Lane, REQUEST, RESPONSE, size_class};
use crate::pending::{CLAIMED, Claim, DROPPED, LIVE, RECORD, position_of, tag_at};
use crate::upstreams::{NOWHERE, Upstream};
use crate::word::Word;

/// How many requests read since an answer of the proxy's own are looked at: a turn of some hundred connections.
const MOVE_STEPS: u64 = 128;
/// How many connections given back since.
const GIVE_STEPS: u64 = 32;

/// How far [`Lane::gone`] goes, either way: what was misjudged is not to last.
const MOST_GONE: u64 = 16;

/// How far an answer of the proxy's own has moved what was foreseen; from the newest request down. Positions are never
/// 0 behind the first message of a lane.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Move {
    /// Position of the request that was answered.
    first: u64,
    /// When that was read.
    read_ns: u64,
    /// 1 if the stack decides.
    by_pool: u64,
    /// Position of the request to be looked at.
    position: u64,
    /// Position of the one above that took its connection off the stack; 0 if there is none.
    above: u64,
    /// The connection that the newest of them gives away.
    spare: u64,
    /// 1 from where one is left over.
    moving: u64,
    /// Its arrival and read.
    stamps: [u64; 2],
}

impl<W: Word> Lane<W> {
    /// Says that a response was read from the connection `upstream`, or from one of which nothing is known: 0.
    #[inline(always)]
    pub fn note_answer(&self, upstream: u64) {
        let asked = match self.upstreams.get(upstream) {
            Some(place) => {
                let asked = place.asked.load();
                place.asked.store(0);
                asked
            }
            None => self.pending[REQUEST].tail.load(),
        };
        if asked != NOWHERE && asked > self.answered.load() {
            self.answered.store(asked);
        }
    }

    /// Whether the response that is just read from the connection `upstream` goes nowhere and is not to be pushed:
    /// whoever asked for it has gone, or the proxy has asked for itself (`own`) and not again for another.
    #[inline(always)]
    pub fn goes_nowhere(&self, upstream: u64, own: bool) -> bool {
        let gone = self.gone.load().cast_signed();
        if own {
            if gone < 0 {
                self.count_gone(1);
                self.note_answer(0);
            }
            return gone >= 0;
        }
        let Some(place) = self.upstreams.get(upstream) else { return false };
        if place.asked.load() != NOWHERE {
            return false;
        }
        if gone <= 0 {
            // Another one was meant, which has closed.
            place.asked.store(self.pending[REQUEST].tail.load());
            return false;
        }
        place.asked.store(0);
        self.count_gone(u64::MAX);
        self.upstreams.give_back(upstream);
        true
    }

    /// Says that the connection has closed on which the request of this tag was read, and that no response to it was
    /// written. Returns how many responses that wait end by that: 1 or 0. Any CPU may do this.
    #[inline(always)]
    pub fn leave(&self, request: u64) -> u64 {
        let Some(entry) = self.pending[REQUEST].remembered(request) else { return 0 };
        let Some(place) = self.upstreams.get(entry.upstream.load()) else { return 0 };
        if place.carries.load() != request {
            return 0;
        }
        if place.asked.load() == 0 {
            return u64::from(self.pending[RESPONSE].end(place.response.load()));
        }
        place.asked.store(NOWHERE);
        self.count_gone(1);
        0
    }

    /// Says that the connection `upstream` has closed. Any CPU may do this, and again.
    #[inline(always)]
    pub fn close(&self, upstream: u64) {
        if let Some(place) = self.upstreams.close(upstream) {
            self.openers.note_closed(place);
            if place.asked.load() != 0 {
                self.count_gone(u64::MAX);
            }
        }
    }

    /// Adds 1 or takes it away, within bounds.
    #[inline(always)]
    fn count_gone(&self, change: u64) {
        let gone = self.gone.load().wrapping_add(change);
        if gone.cast_signed().unsigned_abs() <= MOST_GONE {
            self.gone.store(gone);
        }
    }

    /// Whether a write to an accepted connection is the proxy's own answer and no response from upstream. `request` is
    /// the tag of what was read there last, `downstream` the number of the connection, `usual` the name of the one that
    /// brought the last response to it, `newest` as for a claim. `None` where it may be a response, else what
    /// [`Lane::end_answered`] is to be told: 1 where the stack of connections decides.
    ///
    /// It may be one if a response was read from a connection that was written to for the turn of the request, or for a
    /// later one: where several requests wait, another one may have been taken for this. Where threads share the lane, or
    /// messages come in parts, turns say nothing: then if any response waits that was read since.
    #[inline(always)]
    pub fn answers_itself(&self, request: u64, downstream: u64, usual: u64, newest: u64) -> Option<u64> {
        let [requests, responses] = &self.pending;
        let entry = requests.remembered(request)?;
        let state = requests.state_at(position_of(request));
        let in_parts = self.latest[REQUEST].more_ns.load() > entry.read_ns.load();
        if self.shared.load() != 0 || in_parts {
            let since = responses.newest_read_ns() > entry.read_ns.load();
            let may_be_response = newest != 0 || since && responses.any_live();
            return (state == LIVE && !may_be_response).then_some(0);
        }
        let turn = self.turn(REQUEST, position_of(request));
        let habit = self.habit(&self.order[size_class(self.turn_size(turn.older))]);
        let by_pool = requests.blur(u64::from(habit == Habit::Pool));
        let unwritten = requests.blur(u64::from(by_pool == 0 && self.is_unwritten(position_of(request))));
        let answered = position_of(request) < self.answered.load()
            || state == CLAIMED && self.waiting_at(request, entry.upstream.load()).is_none()
            || by_pool == 0 && self.has_response_for(downstream, usual)
            || state == CLAIMED && self.is_prompt() && self.read_last(RESPONSE) != 0;
        (unwritten != 0 || !answered).then_some(by_pool)
    }

    /// Ends the request whose answer was the proxy's own ([`Lane::answers_itself`]). Returns how many requests end by that, 1
    /// or 0. `move_up` does [`Lane::move_up`].
    #[inline(always)]
    pub fn end_answered(&self, request: u64, move_up: impl Fn()) -> u64 {
        let requests = &self.pending[REQUEST];
        if self.shared.load() != 0 {
            return u64::from(requests.end(request));
        }
        let upstream = requests.of(request).upstream.load();
        let waiting = self.waiting_at(request, upstream);
        let turn_end = self.turn(REQUEST, position_of(request)).end;
        if requests.state_at(position_of(request)) != DROPPED {
            move_up();
        }
        // Where it was taken for another one, or ended for it, that is left in its place.
        let itself = requests.end(request);
        self.ended.store(if itself { request } else { 0 });
        let other = if itself { None } else { requests.oldest_single(turn_end) };
        let ended = itself
            || other.is_some_and(|other| match waiting {
                Some(place) => {
                    let given = requests.give(request, other);
                    place.carries.store(if given { tag_at(other) } else { request });
                    given
                }
                None => requests.end(tag_at(other)),
            });
        if !ended && let Some(place) = self.upstreams.get(upstream) {
            place.asked.store(0);
            if place.closed.load() != 0 {
                self.count_gone(1);
            }
        }
        u64::from(ended)
    }

    /// The connection `upstream`, if the request of this tag waits there for its response.
    #[inline(always)]
    fn waiting_at(&self, request: u64, upstream: u64) -> Option<&Upstream<W>> {
        let waits = |place: &&Upstream<W>| place.carries.load() == request && place.asked.load() != 0;
        self.upstreams.get(upstream).filter(waits)
    }

    /// Whether fewer requests were written so far than stand before this position, where many wait: a round takes only so many
    /// (`HAProxy` 200), so that the first of a turn are answered while the last ones were not looked at yet.
    #[inline(always)]
    fn is_unwritten(&self, position: u64) -> bool {
        let [requests, responses] = &self.pending;
        requests.live.load() + responses.live.load() >= CROWD
            && !self.is_prompt()
            && position >= requests.in_order.load()
    }

    /// Takes the request that seemed to be answered by the proxy itself, for a write to the connection `upstream` that
    /// finds no other: what was written before was a control record, not an answer. `None` if there is none, or something
    /// was read since.
    #[inline(always)]
    pub fn reclaim(&self, upstream: u64) -> Option<Claim> {
        let request = self.ended.load();
        self.ended.store(0);
        let entry = self.pending[REQUEST].remembered(request)?;
        self.note_asked(request, upstream, 0);
        let (arrival_ns, read_ns) = (entry.arrival_ns.load(), entry.read_ns.load());
        Some(Claim { tag: request, arrival_ns, read_ns, batch: true, ..Claim::default() })
    }

    /// Whether a response waits that came on this connection after a request of that downstream one was written to it:
    /// where both ends of a stream speak at any time, it may have been read before the latest request.
    #[inline(always)]
    fn has_response_for(&self, downstream: u64, usual: u64) -> bool {
        self.upstreams.get(usual).is_some_and(|place| {
            let carried = self.pending[REQUEST].remembered(place.carries.load());
            carried.is_some_and(|request| request.downstream.load() & !RECORD == downstream)
                && self.pending[RESPONSE].is_live(place.response.load())
        })
    }

    /// Where the request of this tag took no connection off the stack, what was foreseen from the stack is otherwise:
    /// each request read since is given what the one before it was. Where the stack decides (`by_pool`) they change
    /// places with it as well, up to the newest that is left over; then this one is live. `step` does
    /// [`Lane::move_one`].
    #[inline(always)]
    pub fn move_up(&self, request: u64, by_pool: u64, step: impl Fn(&mut Move)) {
        let set = &self.pending[REQUEST];
        let first = position_of(request);
        let read_ns = set.entry(first).read_ns.load();
        let count = (set.tail.load() - first).min(MOVE_STEPS);
        let mut moved = Move { first, read_ns, by_pool, position: first + count, ..Move::default() };
        for back in 0..MOVE_STEPS {
            // Blurred here: else the verifier follows what it learns of it from each step to the last.
            if back < set.blur(count) {
                moved.position -= 1;
                step(&mut moved);
            }
        }
        if moved.moving != 0 {
            set.set_stamps(first, moved.stamps);
            set.revive(first);
        }
        self.give_back_before(moved.spare, read_ns);
    }

    /// One step of an answer of the proxy's own: the request at `position` gives what it has to the one above.
    #[inline(always)]
    pub fn move_one(&self, moved: &mut Move) {
        let set = &self.pending[REQUEST];
        let Move { position, above, .. } = *moved;
        let given = set.entry(position).pooled.load();
        // Given back since, it would have been taken all the same.
        let passed = self.response_ns(given) > moved.read_ns
            || set.state_at(position) == DROPPED
            || set.is_batch(position);
        if passed && position != moved.first {
            return;
        }
        if above == 0 {
            moved.spare = given;
        } else {
            self.foresee(tag_at(above), given);
            if moved.moving != 0 {
                self.change_places(position, above, moved);
            }
        }
        if moved.by_pool != 0 && moved.moving == 0 && set.state_at(position) == LIVE {
            moved.moving = 1;
            moved.stamps = set.stamps(position);
        }
        moved.above = position;
    }

    /// Gives the request at `to` what became of the one at `from`. Stamps that no crossing has yet move up as well: those
    /// of the oldest are left over.
    #[inline(always)]
    fn change_places(&self, from: u64, to: u64, moved: &mut Move) {
        let set = &self.pending[REQUEST];
        set.copy(from, to);
        if set.state_at(from) == LIVE {
            let stamps = set.stamps(from);
            set.set_stamps(to, moved.stamps);
            moved.stamps = stamps;
        }
        if let Some(place) = self.upstreams.get(set.entry(from).upstream.load())
            && place.carries.load() == tag_at(from)
        {
            place.carries.store(tag_at(to));
        }
    }

    /// Puts a connection on the stack below those that were given back after `read_ns`.
    #[inline(always)]
    fn give_back_before(&self, name: u64, read_ns: u64) {
        let set = &self.pending[REQUEST];
        let (mut over, mut next) = (set.blur(0), self.upstreams.top.load());
        for _ in 0..GIVE_STEPS {
            let Some(place) = self.upstreams.get(next) else { break };
            if self.response_ns(next) <= read_ns {
                break;
            }
            over = set.blur(next);
            next = set.blur(place.below.load());
        }
        self.upstreams.give_back_below(name, over);
    }

    /// When the latest response of a connection was read; 0 where there is none.
    #[inline(always)]
    fn response_ns(&self, name: u64) -> u64 {
        let responses = &self.pending[RESPONSE];
        let tag = self.upstreams.get(name).map_or(0, |place| place.response.load());
        responses.blur(responses.remembered(tag).map_or(0, |entry| entry.read_ns.load()))
    }
}
