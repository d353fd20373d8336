//! Whose request a connection that has just opened takes, and whether it takes another one.
//!
//! A pool gives it to who has waited longest (Envoy). Where each request opens its own (`HAProxy`, nginx), it is the one's for
//! which it was opened, and the two differ when handshakes end in another order than they began. The way back shows it: when
//! the response is written to where the request came from, that of its connection must be there.
//!
//! Where connections close behind their first response, that one which was just answered is not free for the next request.
//!
//! One that is opened for no request is for a health check, or for a client that has connected and not asked yet (tunnels).
//! When it is written to first, a request waits by chance, or each time.

use crate::upstreams::Upstream;
use crate::word::Word;

/// At so many that showed it the counts are halved, so that an old habit is forgotten.
const MEMORY: u64 = 64;

/// So many times as often as not something must hold to be a habit.
const CLEARLY: u64 = 4;

/// ... and so often.
const FEW: u64 = 4;

/// How often a new connection was the one's it was opened for, and carried but one request; and of those that were opened for
/// none, how often one waited at their first write.
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct Openers<W> {
    own: W,
    others: W,
    once: W,
    again: W,
    alone: W,
    asked: W,
}

impl<W: Word> Openers<W> {
    #[inline(always)]
    fn is_own(&self) -> bool {
        is_habit(&self.own, &self.others)
    }

    /// Whether connections carry one request each.
    #[inline(always)]
    pub(super) fn close_at_once(&self) -> bool {
        is_habit(&self.once, &self.again)
    }

    /// A request is written to a connection that carried others before.
    #[inline(always)]
    pub(super) fn note_reuse(&self, place: &Upstream<W>) {
        if place.reused.swap_if(0, 1) {
            count(&self.again, &self.once);
        }
    }

    /// A connection has closed.
    #[inline(always)]
    pub(super) fn note_closed(&self, place: &Upstream<W>) {
        if place.carries.load() != 0 && place.reused.load() == 0 {
            count(&self.once, &self.again);
        }
    }

    /// A connection that was opened for no request is written to for the first time. Whether that is for none, though one may
    /// wait now.
    #[inline(always)]
    pub(super) fn note_unasked(&self, waits: bool) -> bool {
        let (holds, fails) = if waits { (&self.asked, &self.alone) } else { (&self.alone, &self.asked) };
        count(holds, fails);
        is_habit(&self.alone, &self.asked)
    }

    /// The request that the first write to a connection carries on; 0 for the one that has waited longest.
    #[inline(always)]
    pub(super) fn foresee(&self, place: &Upstream<W>) -> u64 {
        if self.is_own() { place.opened_for.load() } else { 0 }
    }

    /// Whether the first request of this connection may have waited for it to open, behind others of its turn: what it tells of
    /// their order holds for none of the later ones.
    #[inline(always)]
    pub(super) fn waited(&self, place: Option<&Upstream<W>>) -> bool {
        place.is_some_and(|place| place.reused.load() == 0) && !self.close_at_once()
    }

    /// A response is written to where a request came from that a connection was opened for: says whether a response of that one
    /// is there, and whether of the one that the request was taken to be written to, which may be `same`.
    #[inline(always)]
    pub(super) fn note_return(&self, same: bool, own_there: bool, written_there: bool) {
        // The same connection by chance tells nothing, by habit whether it still holds.
        if if same { !self.is_own() } else { own_there == written_there } {
            return;
        }
        if own_there {
            count(&self.own, &self.others);
        } else {
            count(&self.others, &self.own);
        }
    }

    /// Forgets it.
    #[inline(always)]
    pub(super) fn forget(&self) {
        for word in [&self.own, &self.others, &self.once, &self.again, &self.alone, &self.asked] {
            word.store(0);
        }
    }
}

/// Whether something holds, by how often it did and did not.
#[inline(always)]
pub(super) fn is_habit<W: Word>(holds: &W, fails: &W) -> bool {
    let held = holds.load();
    held >= FEW && held >= CLEARLY * fails.load()
}

/// Counts one for `word`, against `other`.
#[inline(always)]
pub(super) fn count<W: Word>(word: &W, other: &W) {
    let halve = u32::from(word.load() + other.load() >= MEMORY);
    word.store((word.load() >> halve) + 1);
    other.store(other.load() >> halve);
}
