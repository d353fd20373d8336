//! Proxies that write on what they have read before they look for more: nginx each message at once, `HAProxy` each turn.
//! What they leave behind then waits for something: the rest of a message that comes in parts, a connection, or
//! nothing any more. So a write carries on what was read last, or the oldest of the latest turn, and what is older only
//! where all of that is done.
//!
//! A lane is taken for such a proxy's when hardly a message, or a turn, is still unwritten as the next is read, and where
//! an older one waits, by the way back: the response of the connection that was written to goes to where the request
//! that was foreseen for it is from.

use super::{Lane, REQUEST, RESPONSE};
use crate::pending::{position_of, tag_at};
use crate::word::Word;

/// From here on a habit is believed in.
const BELIEVED: u64 = 256;
/// How far the evidence goes.
const MOST: u64 = 1024;
/// What a message or turn tells that was left behind; one that was not counts 1.
const LEFT: u64 = 32;
/// What a response tells that goes where a habit foresaw it, or elsewhere. The first outweighs that something was left
/// behind, without which nothing is foreseen.
const CAME_BACK: u64 = 64;
const WENT_ASTRAY: u64 = 128;

/// How many ended messages of a turn are passed over at once.
const FRONT_STEPS: usize = 4;

/// Each message is written on before the next is read.
const AT_ONCE: usize = 0;
/// Each turn is, from its oldest message on.
const SAME_TURN: usize = 1;
/// Bits of a number that holds both.
const HABITS: u32 = 2;

/// What a lane knows of these habits.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Prompt<W> {
    /// Evidence for [`AT_ONCE`] and [`SAME_TURN`], up to [`MOST`].
    evidence: [W; 2],
    /// Position of the oldest message of the latest turn that can be claimed, by direction.
    front: [W; 2],
    /// Tag of what the thread has read last, in the direction of that; 0 in the other one.
    read_last: [W; 2],
    /// 1 once it has written after that.
    written: W,
}

impl<W: Word> Prompt<W> {
    /// Something was left behind, or not.
    #[inline(always)]
    fn note(&self, habit: usize, left: bool) {
        if left {
            self.lower(habit, LEFT);
        } else {
            self.raise(habit, 1);
        }
    }

    #[inline(always)]
    fn raise(&self, habit: usize, by: u64) {
        self.evidence[habit].store((self.evidence[habit].load() + by).min(MOST));
    }

    #[inline(always)]
    fn lower(&self, habit: usize, by: u64) {
        self.evidence[habit].store(self.evidence[habit].load().saturating_sub(by));
    }

    /// Forgets what was learned.
    #[inline(always)]
    pub(super) fn forget(&self) {
        self.evidence.iter().chain(&self.read_last).for_each(|word| word.store(0));
    }

    /// Says that the thread has written.
    #[inline(always)]
    pub(super) fn note_written(&self) {
        self.written.store(1);
    }
}

impl<W: Word> Lane<W> {
    /// Whether this thread writes each message on before it looks for more. That each turn is written before the next is no
    /// sign: Envoy's look so, too (agent/DECISIONS.md, 24).
    #[inline(always)]
    pub(super) fn is_prompt(&self) -> bool {
        self.prompt.evidence[AT_ONCE].load() >= BELIEVED && self.shared.load() == 0
    }

    /// Says that a message was read, or more of one that was read before.
    #[inline(always)]
    pub fn note_read(&self, direction: usize, tag: u64) {
        self.prompt.read_last[direction & 1].store(tag);
        self.prompt.read_last[direction & 1 ^ 1].store(0);
        self.prompt.written.store(0);
    }

    /// Says that a message is about to be read; the latest turn is over before that (`in_turn` is false) or goes on.
    #[inline(always)]
    pub(super) fn note_next(&self, in_turn: bool) {
        let left =
            |direction: usize| self.pending[direction].is_claimable(self.prompt.read_last[direction].load());
        self.prompt.note(AT_ONCE, left(REQUEST) || left(RESPONSE));
        if !in_turn {
            self.prompt.note(SAME_TURN, self.front(REQUEST) | self.front(RESPONSE) != 0);
            for direction in 0..2 {
                self.prompt.front[direction].store(self.pending[direction].tail.load());
            }
        }
    }

    /// What a prompt proxy would write on now, by its tag; 0 if there is nothing that was just read.
    #[inline(always)]
    pub(super) fn fresh(&self, direction: usize) -> u64 {
        let set = &self.pending[direction];
        let last = self.read_last(direction);
        // An older message of which more was read may go first in a turn.
        let at_once = self.prompt.evidence[AT_ONCE].load() >= BELIEVED
            || position_of(last) < self.turn_start[direction].load();
        set.blur(if last != 0 && at_once { last } else { self.front(direction) })
    }

    /// Tag of what the thread has read last, if that can be claimed and nothing was written since; else 0.
    #[inline(always)]
    fn read_last(&self, direction: usize) -> u64 {
        let last = self.prompt.read_last[direction].load();
        let set = &self.pending[direction];
        let stands = self.prompt.written.load() == 0 && set.is_claimable(last);
        set.blur(if stands { last } else { 0 })
    }

    /// Tag of the oldest message of the latest turn that can be claimed; 0 if there is none.
    #[inline(always)]
    fn front(&self, direction: usize) -> u64 {
        let set = &self.pending[direction];
        let (mut position, tail) = (self.prompt.front[direction].load(), set.tail.load());
        let mut found = 0;
        for _ in 0..FRONT_STEPS {
            if position >= tail {
                break;
            }
            if set.is_claimable(tag_at(position)) {
                found = tag_at(position);
                break;
            }
            position += 1;
        }
        self.prompt.front[direction].store(position);
        set.blur(found)
    }

    /// Which of what is foreseen and what is fresh a prompt proxy has written on: what it has left behind it does not
    /// take up unasked.
    #[inline(always)]
    pub(super) fn prefer_fresh(&self, direction: usize, foreseen: u64, fresh: u64) -> u64 {
        let set = &self.pending[direction];
        let recent = position_of(foreseen) >= self.turn_start[direction].load()
            && self.prompt.evidence[AT_ONCE].load() < BELIEVED
            || foreseen == self.read_last(direction);
        let stands = recent && set.is_claimable(foreseen);
        set.blur(if stands || fresh == 0 { foreseen } else { fresh })
    }

    /// Notes which requests are written to this connection now by either habit, where several wait; before that is
    /// claimed.
    #[inline(always)]
    pub fn predict(&self, upstream: u64) {
        let first = self.upstreams.get(upstream).is_some_and(|place| place.carries.load() == 0);
        if first || self.shared.load() != 0 || self.pending[REQUEST].live.load() < 2 {
            return;
        }
        for (habit, tag) in [self.read_last(REQUEST), self.front(REQUEST)].into_iter().enumerate() {
            if tag != 0 {
                let thread = &self.pending[REQUEST].of(tag).thread;
                let known = thread.load();
                let also = if known >> HABITS == upstream { known } else { upstream << HABITS };
                thread.store(also | 1 << habit);
            }
        }
    }

    /// Compares what either habit foresaw for this request with the response that it foresees now, as that is written to
    /// where the request is from; before it is claimed.
    #[inline(always)]
    pub fn verify(&self, request: u64) {
        let Some(entry) = self.pending[REQUEST].remembered(request) else { return };
        let foreseen = entry.thread.load();
        if foreseen == 0 || self.shared.load() != 0 {
            return;
        }
        entry.thread.store(0);
        let responses = [self.read_last(RESPONSE), self.front(RESPONSE)];
        for (habit, tag) in responses.into_iter().enumerate() {
            if foreseen >> habit & 1 == 0 || tag == 0 {
                continue;
            }
            if foreseen >> HABITS == self.pending[RESPONSE].of(tag).upstream.load() {
                self.prompt.raise(habit, CAME_BACK);
            } else {
                self.prompt.lower(habit, WENT_ASTRAY);
            }
        }
    }
}
