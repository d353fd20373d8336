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

use crate::order::{Habit, Habits, ORDER_SIZES, Order, size_class};
use crate::pending::{BATCH, Claim, ENTRIES, Pending, RECORD, position_of, tag_at};
use crate::upstreams::Upstreams;
use crate::word::Word;
use bytes::Flow;
use detour::Detours;
use openers::Openers;
pub use own::Move;
use prompt::Prompt;
pub use several::Latest;
pub use shared::{RECENT, Recent};

const REQUEST: usize = 0;
const RESPONSE: usize = 1;

/// After so many rounds of reads and writes a response is stale. Envoy writes in the next, but where connections to its clients
/// close it writes between reads, and a loop has many rounds: with 4, 1.9 % of the responses to 64 clients were given up.
const STALE_AFTER: usize = 16;

/// ... and in a crowd ([`CROWD`]). `HAProxy`, 256 connections to one thread: with 16 the
/// responses' mean was 12 % short.
const ROUNDS: usize = 128;

/// With so many messages at once in a lane its loop may not get through all of them in one round.
const CROWD: u64 = 32;

/// How many ended messages behind a stale one are passed over at once.
const STALE_STEPS: usize = 4;

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
    /// Where, in each set, what was read since the last writes began, by the number of the loop's rounds, and that.
    rounds: [[W; 2]; ROUNDS],
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
    openers: Openers<W>,
    detours: Detours<W>,
    /// What multiplexed connections have brought and carried on, by direction.
    flows: [Flow<W>; 2],
    /// How far the order of the reads holds, by the power of two of the turn's messages.
    order: [Order<W>; ORDER_SIZES],
    /// How far the other habits hold.
    habits: Habits<W>,
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

/// Of the two turns known, the one that the oldest message of a set is in.
#[derive(Clone, Copy)]
struct Turn {
    start: u64,
    end: u64,
    /// Whether it is the one before the latest.
    older: bool,
    /// Position of that message.
    oldest: u64,
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

    /// The place of this round of the loop in [`Lane::rounds`].
    #[inline(always)]
    fn this_round(&self) -> usize {
        self.round.load().wrapping_sub(1) as usize % ROUNDS
    }

    /// Says that something was read: a turn begins with it, or it belongs to the latest.
    #[inline(always)]
    pub fn begin_turn(&self, arrival_ns: u64, read_ns: u64) {
        self.ended.store(0);
        if self.shared.load() != 0 {
            return;
        }
        let in_turn = self.writing.load() == 0 && arrival_ns <= self.turn_read_ns.load();
        self.note_next();
        if in_turn {
            return;
        }
        if self.writing.load() != 0 {
            let round = self.round.fetch_add(1) as usize;
            let crowded = self.pending[RESPONSE].live.load() >= CROWD;
            let ago = if crowded { ROUNDS } else { STALE_AFTER };
            self.stale.store(self.rounds[round.wrapping_sub(ago) % ROUNDS][RESPONSE].load());
            let begin = &self.rounds[round % ROUNDS];
            begin[REQUEST].store(self.pending[REQUEST].tail.load());
            begin[RESPONSE].store(self.pending[RESPONSE].tail.load());
        }
        self.writing.store(0);
        self.turn_read_ns.store(read_ns);
        for direction in 0..2 {
            self.older_start[direction].store(self.turn_start[direction].load());
            self.turn_start[direction].store(self.pending[direction].tail.load());
        }
    }

    /// The position of the oldest message that a write may carry on unforeseen. A stale response does not count while
    /// there is another: where it should have gone was written to without it.
    #[inline(always)]
    fn head(&self, direction: usize) -> u64 {
        let set = &self.pending[direction];
        let (head, known) = (set.front(), self.stale.load());
        if direction == REQUEST || head >= known || self.shared.load() != 0 {
            return head;
        }
        let mut position = self.past_stale.load().max(known);
        for _ in 0..STALE_STEPS {
            if position < set.tail.load() && !set.is_claimable(tag_at(position)) {
                position += 1;
            }
        }
        self.past_stale.store(position);
        let found = position < set.tail.load() && set.is_claimable(tag_at(position));
        set.blur(if found { position } else { head })
    }

    /// The turn of the oldest message in a set, and how its habits hold. Notes whether the order holds between the
    /// directions, as far as this claim shows it.
    #[inline(always)]
    fn look(&self, own: usize) -> (Turn, &Order<W>) {
        self.writing.store(1);
        self.writes[own].add(1);
        let other = own ^ 1;
        let (own_head, other_head) = (self.head(own), self.head(other));
        if self.shared.load() != 0 {
            let end = self.pending[own].tail.load();
            let start = self.pending[own].blur(end.saturating_sub(ENTRIES as u64));
            let turn = Turn { start, end, older: false, oldest: start };
            return (turn, &self.order[size_class(self.pending[own].live.load())]);
        }
        let (turn, other_turn) = (self.turn(own, own_head), self.turn(other, other_head));
        let order = &self.order[size_class(self.turn_size(turn.older))];
        if turn.older == other_turn.older
            && let (Some(own_ns), Some(other_ns)) =
                (self.pending[own].live_read_ns(own_head), self.pending[other].live_read_ns(other_head))
        {
            let (own_span, other_span) = (turn.end - own_head, other_turn.end - other_head);
            let kept = own_ns < other_ns;
            let of_oldest = if kept { own_span } else { other_span };
            // Never zero; the kernel's verifier wants to see that no division can fail.
            let chance = (of_oldest << 16).checked_div(own_span + other_span).unwrap_or(0);
            order.note(kept, chance);
        }
        (turn, order)
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

    /// How many messages of both directions the latest turn has so far, or the turn before it had.
    #[inline(always)]
    fn turn_size(&self, older: bool) -> u64 {
        let mut size = 0;
        for direction in 0..2 {
            let start = self.turn_start[direction].load();
            size += if older {
                start - self.older_start[direction].load()
            } else {
                self.pending[direction].tail.load() - start
            };
        }
        size
    }

    /// The turn of the message at `head` of a set.
    #[inline(always)]
    fn turn(&self, direction: usize, head: u64) -> Turn {
        let latest = self.turn_start[direction].load();
        let (start, end) = if head < latest {
            (self.older_start[direction].load(), latest)
        } else {
            (latest, self.pending[direction].tail.load())
        };
        let set = &self.pending[direction];
        let older = set.blur(u64::from(head < latest)) != 0;
        Turn { start: set.blur(start), end: set.blur(end), older, oldest: head }
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
