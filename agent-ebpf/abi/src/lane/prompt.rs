//! Proxies that write each message on before they read the next (nginx). What they leave behind waits for something: the
//! rest of a message that comes in parts, a connection, or nothing any more. So a write carries on what was read last.
//!
//! A lane is taken for such a proxy's when hardly a message is still unwritten as the next is read, and where an older one
//! waits, by the way back: the response of the connection that was written to goes to where the request read last is from.

use super::{Lane, REQUEST, RESPONSE};
use crate::word::Word;

/// From here on the habit is believed in.
const BELIEVED: u64 = 256;
/// How far the evidence goes.
const MOST: u64 = 1024;
/// What a message tells that was left behind; one that was not counts 1.
const LEFT: u64 = 32;
/// What a response tells that goes where the habit foresaw it, or elsewhere. The first outweighs that something was left
/// behind, without which nothing is foreseen.
const CAME_BACK: u64 = 64;
const WENT_ASTRAY: u64 = 128;

/// What a lane knows of this habit.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Prompt<W> {
    /// Up to [`MOST`].
    evidence: W,
    /// Tag of what the thread has read last, in the direction of that; 0 in the other one.
    read_last: [W; 2],
    /// 1 once it has written after that.
    written: W,
}

impl<W: Word> Prompt<W> {
    #[inline(always)]
    fn raise(&self, by: u64) {
        self.evidence.store((self.evidence.load() + by).min(MOST));
    }

    #[inline(always)]
    fn lower(&self, by: u64) {
        self.evidence.store(self.evidence.load().saturating_sub(by));
    }

    /// Forgets what was learned.
    #[inline(always)]
    pub(super) fn forget(&self) {
        self.evidence.store(0);
        self.read_last.iter().for_each(|tag| tag.store(0));
    }

    /// Says that the thread has written.
    #[inline(always)]
    pub(super) fn note_written(&self) {
        self.written.store(1);
    }
}

impl<W: Word> Lane<W> {
    /// Whether this thread writes each message on before it reads the next.
    #[inline(always)]
    pub(super) fn is_prompt(&self) -> bool {
        self.prompt.evidence.load() >= BELIEVED && self.shared.load() == 0
    }

    /// Says that a message was read, or more of one that was read before.
    #[inline(always)]
    pub fn note_read(&self, direction: usize, tag: u64) {
        self.prompt.read_last[direction & 1].store(tag);
        self.prompt.read_last[direction & 1 ^ 1].store(0);
        self.prompt.written.store(0);
    }

    /// Says that a message is about to be read.
    #[inline(always)]
    pub(super) fn note_next(&self) {
        let left =
            |direction: usize| self.pending[direction].is_claimable(self.prompt.read_last[direction].load());
        if left(REQUEST) || left(RESPONSE) {
            self.prompt.lower(LEFT);
        } else {
            self.prompt.raise(1);
        }
    }

    /// Tag of what the thread has read last, which a prompt proxy writes on now, if that can be claimed and nothing was
    /// written since; else 0.
    #[inline(always)]
    pub(super) fn read_last(&self, direction: usize) -> u64 {
        let last = self.prompt.read_last[direction].load();
        let set = &self.pending[direction];
        let stands = self.prompt.written.load() == 0 && set.is_claimable(last);
        set.blur(if stands { last } else { 0 })
    }

    /// Notes that the request read last is written to this connection now if the habit holds, where several wait; before
    /// that is claimed.
    #[inline(always)]
    pub fn predict(&self, upstream: u64) {
        let first = self.upstreams.get(upstream).is_some_and(|place| place.carries.load() == 0);
        let last = self.read_last(REQUEST);
        if !first && last != 0 && self.shared.load() == 0 && self.pending[REQUEST].live.load() > 1 {
            self.pending[REQUEST].of(last).thread.store(upstream);
        }
    }

    /// Compares what the habit foresaw for this request with the response read last, as one is written to where the
    /// request is from; before it is claimed.
    #[inline(always)]
    pub fn verify(&self, request: u64) {
        let Some(entry) = self.pending[REQUEST].remembered(request) else { return };
        let (foreseen, last) = (entry.thread.load(), self.read_last(RESPONSE));
        if foreseen == 0 || last == 0 || self.shared.load() != 0 {
            return;
        }
        entry.thread.store(0);
        if self.pending[RESPONSE].of(last).upstream.load() == foreseen {
            self.prompt.raise(CAME_BACK);
        } else {
            self.prompt.lower(WENT_ASTRAY);
        }
    }
}
