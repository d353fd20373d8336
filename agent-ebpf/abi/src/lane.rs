//! Which message a write carries on.
//!
//! An event loop asks what is ready, reads all of that, and writes what came of it in the same turn or the next. So
//! a write that starts a message carries on one that its own thread has read, and of those one of the oldest turn.
//! A turn ends with a write, or with a message that arrived after the turn's first read: the loop cannot have
//! known of it before.
//!
//! Which one of the turn is shown by the habit ([`Habit`]) that leads back most often: the order of the reads (nginx,
//! `HAProxy`), the stack of free upstream connections (Envoy, which writes a turn in the order of its timer heap), or
//! the connection of the request before (tunnels). A response follows its request back: it is the one that came on
//! the connection the request was written to.
//!
//! A proxy that writes each message on before it reads the next leaves behind only what waits: see [`prompt`].
//! Where work moves between threads, they share a lane and there are no turns: see [`shared`]. What connections with
//! several messages at once bring is handed out by its bytes: see [`bytes`].
//!
//! Where no habit holds, the oldest entry of the turn is taken with the probability that the order between the two
//! directions shows, any of the turn otherwise. The mean is exact however entries are paired; this keeps the spread
//! right too.

mod back;
mod bytes;
mod detour;
mod left;
mod openers;
mod own;
mod prompt;
mod several;
mod shared;
mod turn;

use crate::order::{Habit, Habits, ORDER_SIZES, Order, size_class};
use crate::pending::{BATCH, Claim, Pending, RECORD, position_of, tag_at};
use crate::upstreams::Upstreams;
use crate::word::Word;
use bytes::Flow;
use detour::Detours;
use openers::Openers;
pub use own::Move;
use prompt::Prompt;
pub use several::Latest;
pub use shared::{RECENT, Recent};
use turn::{ROUNDS, Turn};

const REQUEST: usize = 0;
const RESPONSE: usize = 1;

/// What one thread has read and not yet written on.
#[derive(Debug)]
#[repr(C)]
pub struct Lane<W> {
    /// The two sets, by [`Direction`](crate::layout::Direction).
    pub pending: [Pending<W>; 2],
    /// The connections it has opened.
    pub upstreams: Upstreams<W>,
    /// Where, in each set, the latest turn begins.
    turn_start: [W; 2],
    /// Where the turn before it began.
    older_start: [W; 2],
    /// When the latest turn's first message was read, ns.
    turn_read_ns: W,
    /// 1 if the thread's last message was written, 0 if it was read.
    writing: W,
    /// How many rounds of reads and writes the loop has had.
    round: W,
    /// Position before which responses are stale, and up to which no later one can be claimed.
    stale: W,
    past_stale: W,
    /// Position of the oldest request for which no connection was free yet.
    waiting: W,
    /// 1 where the threads of a process share it.
    shared: W,
    /// Accepted connections whose request was read and whose response was not written yet, and opened ones whose
    /// request was written and whose response was not read yet; of those with one message at a time.
    waiting_on: [W; 2],
    /// The position behind the newest request that any response read so far may answer.
    answered: W,
    /// Tag of the request that seemed to be answered by the proxy itself when that was the last thing it did; else 0.
    ended: W,
    /// Accepted connections that closed while their request was at a server, less opened ones that closed before their
    /// response: so many responses will go nowhere, or, below zero, requests were or will be sent again.
    gone: W,
    /// When an opened connection was last written to again although requests waited, ns.
    continued_ns: W,
    /// Writes so far that may have carried something on, by direction.
    writes: [W; 2],
    /// What was read last, by direction.
    pub latest: [Latest<W>; 2],
    prompt: Prompt<W>,
    /// How far the habits hold that do not depend on the size of a turn.
    habits: Habits<W>,
    openers: Openers<W>,
    detours: Detours<W>,
    /// What multiplexed connections have brought and carried on, by direction.
    flows: [Flow<W>; 2],
    /// How far the order of the reads holds, by the power of two of the turn's messages.
    order: [Order<W>; ORDER_SIZES],
    /// Where, in each set, what was read since the last writes began, by the number of the loop's rounds.
    rounds: [[W; 2]; ROUNDS],
}

/// What speaks for which message, by tag, 0 where nothing does.
#[derive(Clone, Copy)]
struct Choice {
    /// The one a habit foresees.
    foreseen: u64,
    /// The newest of the thread, where threads share the lane.
    newest: u64,
    /// 1 if any message of the turn is as good as another.
    by_chance: u64,
    random: u32,
}

impl<W: Word> Lane<W> {
    /// Adds a request as the newest. `usual` is the name of the connection that brought the last response to where it
    /// comes from. Returns its tag, never 0, or `None` when the set is full.
    #[inline(always)]
    pub fn push_request(&self, arrival_ns: u64, read_ns: u64, downstream: u64, usual: u64) -> Option<u64> {
        self.begin_turn(arrival_ns, read_ns);
        let set = &self.pending[REQUEST];
        let tag = set.push(arrival_ns, read_ns, downstream, 0)?;
        self.foresee(tag, self.upstreams.pop());
        if let Some(upstream) = self.upstreams.get(usual) {
            upstream.usual.store(tag);
        }
        self.note_read(REQUEST, tag);
        self.note_to_write(REQUEST);
        Some(tag)
    }

    /// Adds what may be a request or a control record, as [`Lane::push_request`]. [`Lane::forget_records`] may end it.
    #[inline(always)]
    pub fn push_record(&self, arrival_ns: u64, read_ns: u64, downstream: u64) -> Option<u64> {
        self.begin_turn(arrival_ns, read_ns);
        let tag = self.pending[REQUEST].push(arrival_ns, read_ns, downstream | RECORD, 0)?;
        self.note_read(REQUEST, tag);
        self.note_to_write(REQUEST);
        Some(tag)
    }

    /// Adds a response as the newest. `upstream` is the name of the connection it came on, `downstream` where it goes
    /// if all are paired in order.
    #[inline(always)]
    pub fn push_response(
        &self,
        arrival_ns: u64,
        read_ns: u64,
        upstream: u64,
        downstream: u64,
    ) -> Option<u64> {
        self.begin_turn(arrival_ns, read_ns);
        self.note_answer(upstream);
        let tag = self.pending[RESPONSE].push(arrival_ns, read_ns, downstream, upstream)?;
        if let Some(place) = self.upstreams.get(upstream) {
            place.response.store(tag);
            if !self.openers.close_at_once() {
                self.upstreams.give_back(upstream);
            }
        }
        self.note_read(RESPONSE, tag);
        self.note_to_write(RESPONSE);
        Some(tag)
    }

    /// A new connection: for the oldest request of this turn for which none was free, else of an earlier one, which may have
    /// waited for something else. Returns its name.
    #[inline(always)]
    pub fn connect(&self) -> u64 {
        let name = self.upstreams.join();
        let head = self.pending[REQUEST].head.load();
        let of_turn = self.turn_start[REQUEST].load().max(self.waiting.load()).max(head);
        let tag = self.without_upstream(of_turn);
        let tag = if tag == 0 { self.without_upstream(head) } else { tag };
        if tag != 0 {
            self.foresee(tag, name);
            if let Some(place) = self.upstreams.get(name) {
                place.opened_for.store(tag);
            }
            self.waiting.store(position_of(tag) + 1);
        }
        // A response that waits may be what is asked about next: see `go_on`.
        let unasked = tag == 0 && self.shared.load() == 0 && !self.pending[RESPONSE].any_live();
        if let Some(place) = self.upstreams.get(name) {
            place.unasked.store(u64::from(unasked));
        }
        name
    }

    /// Whether the write that is about to happen to the connection `upstream` is the proxy's own request, a health check: it is the
    /// connection's first, no request waited for that to be opened, and seldom did one at the first write to such a connection.
    /// Never where clients' connections carry several messages at once: what waits may be the rest of a segment that was taken.
    #[inline(always)]
    pub fn begins_on_its_own(&self, upstream: u64) -> bool {
        let Some(place) = self.upstreams.get(upstream) else { return false };
        self.latest[REQUEST].several.load() == 0
            && place.unasked.load() != 0
            && place.unasked.swap_if(1, 0)
            && self.openers.note_unasked(self.pending[REQUEST].any_live())
    }

    /// The tag of the oldest request at a position or behind it for which no connection was free, of the few that are looked
    /// at; 0 if there is none.
    #[inline(always)]
    fn without_upstream(&self, position: u64) -> u64 {
        let set = &self.pending[REQUEST];
        let mut found = 0;
        for position in position..position + 4 {
            if found == 0 && set.entry(position).pooled.load() == 0 {
                found = set.live_tag(position).unwrap_or(0);
            }
        }
        found
    }

    #[inline(always)]
    fn foresee(&self, tag: u64, name: u64) {
        if let Some(upstream) = self.upstreams.get(name)
            && let Some(entry) = self.pending[REQUEST].remembered(tag)
        {
            upstream.pooled.store(tag);
            entry.pooled.store(name);
        }
    }

    /// Clears ended entries away from the front of both sets; before a claim, which passes over few of them.
    #[inline(always)]
    pub fn clear_fronts(&self) {
        self.pending.iter().for_each(|set| {
            set.clear_front();
        });
    }

    /// The name of the connection that the request of this tag was written to; 0 if it was not.
    #[inline(always)]
    pub fn carrier(&self, request: u64) -> u64 {
        self.pending[REQUEST].remembered(request).map_or(0, |entry| entry.upstream.load())
    }

    /// Takes the request that a write to the connection `upstream` carries on. `random` decides where no habit holds:
    /// any bits, different each time. `newest` is what [`Lane::newest`] says where threads share the lane, else 0.
    #[inline(always)]
    pub fn claim_request(&self, now_ns: u64, random: u32, upstream: u64, newest: u64) -> Claim {
        self.upstreams.take(upstream);
        let set = &self.pending[REQUEST];
        let (turn, order) = self.look(REQUEST);
        if let Some(claim) = self.rest_of_segment(REQUEST) {
            return claim;
        }
        let next_downstream = set.next_in_order();
        let habit = set.blur(self.habit(order) as u64);
        let place = self.upstreams.get(upstream);
        let first = place.is_some_and(|place| place.carries.load() == 0);
        if let Some(place) = place
            && !first
        {
            self.openers.note_reuse(place);
        }
        let foreseen = match place {
            Some(place) if first => self.openers.foresee(place),
            Some(place) if habit == Habit::Pool as u64 => place.pooled.load(),
            Some(place) if habit == Habit::Usual as u64 => place.usual.load(),
            _ => 0,
        };
        let mut foreseen = set.blur(foreseen);
        if !first && self.is_prompt() {
            let last = self.read_last(REQUEST);
            foreseen = set.blur(if last == 0 { foreseen } else { last });
        }
        self.prompt.note_written();
        let by_chance = set.blur(u64::from(!first && self.by_chance(habit, order, random)));
        let claim =
            Self::take(set, Choice { foreseen, newest, by_chance, random }, turn, self.patient(now_ns));
        if claim.tag != 0 {
            // Where a turn's end is misjudged, a response to what was foreseen would seem to answer more than that. A
            // tunnel gives no answers of its own, and what is foreseen for it is not certain while it is learned.
            let end = if claim.tag == foreseen && habit == Habit::Pool as u64 { 0 } else { turn.end };
            self.note_asked(claim.tag, upstream, end);
        }
        if claim.batch {
            self.begin_segment(REQUEST, &claim, set.bytes_of(claim.tag));
        }
        Claim { downstream: next_downstream, ..claim }
    }

    /// Says that the request of this tag was written to the connection `upstream`; `turn_end` is the position behind its
    /// turn.
    #[inline(always)]
    fn note_asked(&self, request: u64, upstream: u64, turn_end: u64) {
        self.pending[REQUEST].of(request).upstream.store(upstream);
        if let Some(place) = self.upstreams.get(upstream) {
            place.carries.store(request);
            place.again.store(0);
            place.asked.store(turn_end.max(position_of(request) + 1));
        }
    }

    /// Takes the response that a write to the connection `downstream` carries on. `request` is the tag of what was
    /// read there last, `usual` the name of the connection that brought the last response to it.
    #[inline(always)]
    pub fn claim_response(
        &self,
        now_ns: u64,
        random: u32,
        downstream: u64,
        request: u64,
        usual: u64,
        newest: u64,
    ) -> Claim {
        let set = &self.pending[RESPONSE];
        let (turn, order) = self.look(RESPONSE);
        if let Some(claim) = self.rest_of_segment(RESPONSE) {
            return Claim { usual, ..claim };
        }
        let next_downstream = set.next_in_order();
        let asked = &self.asked(request, turn);
        self.note_way_back(asked, order, next_downstream == downstream, usual);
        let habit = set.blur(self.habit(order) as u64);
        // One from before both turns was left by another that was taken in its place.
        let by_chance = turn.oldest >= turn.start && self.by_chance(habit, order, random);
        let by_chance = set.blur(u64::from(by_chance));
        let sure = set.blur(u64::from(self.habits.is_sure(habit))) != 0;
        let upstream = asked.upstream;
        let answer = if sure { self.answer(upstream, asked) } else { self.answer_in_turn(upstream, asked) };
        let mut foreseen = set.blur(answer);
        if foreseen == 0 {
            foreseen = self.past_left_over(turn, upstream, asked.read_ns);
        }
        let ended = if self.is_still_to_come() { 0 } else { self.end_left_over(turn) };
        self.note_served(request, upstream);
        if self.is_prompt() {
            let linked = self.upstreams.get(upstream).map_or(0, |upstream| upstream.response.load());
            let last = self.read_last(RESPONSE);
            foreseen = set.blur(if last == 0 { linked } else { last });
        }
        self.prompt.note_written();
        // It is this one, or one that was read about as long ago: taking another would leave each later one to the next. A request
        // that another lane has read is inside there.
        let missing = set.blur(u64::from(request != 0 && !set.is_live(foreseen) && self.has_deficit())) != 0;
        if missing {
            return Claim { missing, usual, expired: ended, downstream: next_downstream, ..Claim::default() };
        }
        let choice = Choice { foreseen, newest, by_chance, random };
        let claim = Self::take(set, choice, turn, self.patient(now_ns));
        if claim.batch {
            self.begin_segment(RESPONSE, &claim, set.bytes_of(claim.tag));
        }
        // Believed until a response is written that it has not brought: what was taken tells less, in large turns most
        // pairs are wrong while a habit is learned.
        let stays = if sure { self.has_answer(usual, asked) } else { self.answer_in_turn(usual, asked) != 0 };
        let usual = if stays { usual } else { claim.upstream };
        Claim { downstream: next_downstream, usual, expired: claim.expired + ended, ..claim }
    }

    /// What shows which request a write carries on, in turns with this order.
    #[inline(always)]
    fn habit(&self, order: &Order<W>) -> Habit {
        let kept = if order.is_kept() { Habit::Order } else { Habit::Chance };
        self.habits.strongest().unwrap_or(kept)
    }

    /// Whether any message of the turn is taken, not its oldest. Threads that share a lane have no turns.
    #[inline(always)]
    fn by_chance(&self, habit: u64, order: &Order<W>, random: u32) -> bool {
        habit != Habit::Order as u64 && self.shared.load() == 0 && !order.holds(random & 0xffff)
    }

    /// Takes the message that is foreseen, else the thread's newest, else what the order of the turn says.
    #[inline(always)]
    fn take(set: &Pending<W>, choice: Choice, turn: Turn, now_ns: u64) -> Claim {
        let alone = set.blur(u64::from(set.live.load() == 1));
        let mut taken = set.blur(set.take(choice.foreseen));
        if taken == 0 {
            taken = set.blur(set.take(choice.newest));
        }
        if taken == 0 && choice.by_chance != 0 {
            taken = set.take_any(turn.oldest, turn.end, choice.random >> 16);
        }
        if taken == 0 && turn.oldest > set.head.load() {
            taken = set.take(tag_at(turn.oldest));
        }
        let mut claim = Claim { tag: set.blur(taken), ..Claim::default() };
        if claim.tag == 0 {
            // What stood at the front for long has many ended ones behind it.
            set.clear_front();
            set.clear_front();
            claim = set.take_oldest(now_ns);
            claim.tag = set.blur(claim.tag);
            claim.expired = set.blur(claim.expired);
            claim.too_far = set.blur(u64::from(claim.too_far)) != 0;
        }
        if claim.tag != 0 {
            set.in_order.add(1);
            let entry = set.of(claim.tag);
            claim.arrival_ns = entry.arrival_ns.load();
            claim.read_ns = entry.read_ns.load();
            claim.upstream = entry.upstream.load();
            claim.batch = entry.downstream.load() & BATCH != 0;
            claim.alone = alone != 0;
        }
        claim
    }

    /// Ends all messages; returns how many there were. The thread is gone and its place is for another.
    #[inline(always)]
    pub fn clear(&self) -> u64 {
        self.order.iter().for_each(Order::clear);
        self.habits.clear();
        self.upstreams.clear();
        self.ended.store(0);
        self.continued_ns.store(0);
        self.latest.iter().for_each(Latest::forget);
        self.prompt.forget();
        self.openers.forget();
        self.detours.forget();
        self.flows.iter().for_each(Flow::forget);
        self.shared.store(0);
        self.gone.store(0);
        self.waiting_on.iter().for_each(|count| count.store(0));
        self.pending[REQUEST].clear() + self.pending[RESPONSE].clear()
    }
}

#[cfg(test)]
mod tests;
