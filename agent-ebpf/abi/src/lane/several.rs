//! Connections that carry several messages at once: how they are found, and what a write to one takes.

use super::{Lane, REQUEST, RESPONSE, ROUNDS};
use crate::layout::is_record;
use crate::pending::{BATCH, DRAIN_STEPS, Drained, ENTRIES, FORGET_STEPS, RECORD_GRACE_NS};
use crate::word::Word;

/// [`RECORD_GRACE_NS`] where control records are known to stand between messages.
const KNOWN_RECORD_GRACE_NS: u64 = 50_000;

/// What a lane has read last in one direction, for writes that find nothing pending: then one read has brought several
/// messages.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Latest<W> {
    /// Number of the connection.
    pub id: W,
    /// When the last of what was read arrived, ns; 0 unless the connection is known to carry several messages at once.
    pub arrival_ns: W,
    /// When it was read, ns.
    pub read_ns: W,
    /// Writes that found nothing pending since this connection was read first.
    pub starved: W,
    /// 1 once a connection that is read in this direction was found to carry several messages at once: others will too.
    pub several: W,
    /// Control records seen on connections that are read in this direction.
    pub records: W,
    /// When more was read of a message that was read in part, ns.
    pub more_ns: W,
}

impl<W: Word> Latest<W> {
    /// Forgets what was learned.
    #[inline(always)]
    pub(super) fn forget(&self) {
        self.several.store(0);
        self.records.store(0);
    }

    /// Says that a connection was read. Returns how many writes found nothing pending since it was last, if no other
    /// was read between.
    #[inline(always)]
    pub fn note(&self, id: u64, arrival_ns: u64, read_ns: u64) -> u64 {
        let starved = if self.id.load() == id { self.starved.load() } else { 0 };
        self.id.store(id);
        self.arrival_ns.store(arrival_ns);
        self.read_ns.store(read_ns);
        self.starved.store(0);
        starved
    }
}

impl<W: Word> Lane<W> {
    /// Takes the messages that a write of so many bytes to the multiplexed connection of this number carries on. `step`
    /// does [`Lane::drain_some`].
    #[inline(always)]
    pub fn drain(&self, direction: usize, id: u64, bytes: u64, step: impl Fn(&mut Drained)) -> Drained {
        let direction = direction & 1;
        self.writing.store(1);
        self.writes[direction].add(1);
        let most = self.most(direction, id, bytes);
        if most.is_some_and(|most| most > 0)
            && let Some(claim) = self.rest_of_segment(direction)
        {
            let rest = self.pending[direction].blur(1);
            return Drained {
                rest,
                unwritten: self.flows[direction].unwritten(bytes),
                arrival_ns: claim.arrival_ns,
                read_ns: claim.read_ns,
                ..Drained::default()
            };
        }
        let at_most = most.unwrap_or(ENTRIES as u64);
        let round_before = self.this_round().wrapping_sub(1) % ROUNDS;
        let recent = self.rounds[round_before][direction].load();
        let start = self.pending[direction].clear_front();
        let mut drained =
            Drained { start, end: start, mark: id | BATCH, most: at_most, recent, ..Drained::default() };
        for _ in 0..DRAIN_STEPS {
            if drained.done == 0 {
                step(&mut drained);
            }
        }
        self.note_drained(direction, &drained, most.is_some());
        if most.is_some() && drained.singles + drained.batches == 1 {
            drained.unwritten = self.flows[direction].unwritten(bytes);
        }
        drained
    }

    /// Forgets what has the length of a control record and still waits though there is something to write on that was read
    /// later: so much later that a message would have been written on before, or, where control records stand between
    /// messages, in a later round. `step` does [`Lane::forget_record`], for a position, one from which the round is the
    /// latest, and a time. Returns how many end that were counted as messages.
    #[inline(always)]
    pub fn forget_records(&self, direction: usize, step: impl Fn(u64, u64, u64) -> u64) -> u64 {
        let direction = direction & 1;
        let set = &self.pending[direction];
        let (round, grace_ns) = if self.bytes_tell() {
            (0, RECORD_GRACE_NS)
        } else {
            (self.rounds[self.this_round()][direction].load(), KNOWN_RECORD_GRACE_NS)
        };
        let later = self.turn_start[direction].load().max(round);
        let quiet_since_ns = self.turn_read_ns.load().saturating_sub(grace_ns);
        let mut ended = 0;
        if self.shared.load() != 0 || set.tail.load() <= later {
            return ended;
        }
        let head = set.front();
        for ahead in 0..FORGET_STEPS {
            if head + ahead >= later {
                break;
            }
            ended = set.blur(ended + step(head + ahead, round, quiet_since_ns));
        }
        ended
    }

    /// One step of forgetting control records.
    #[inline(always)]
    pub fn forget_record(&self, direction: usize, position: u64, round: u64, quiet_since_ns: u64) -> u64 {
        let set = &self.pending[direction & 1];
        let [_, read_ns] = set.stamps(position);
        if position >= round && read_ns >= quiet_since_ns {
            return 0;
        }
        let counted = set.end_record(position);
        if counted || is_record(set.bytes_at(position), 1) && set.forget(position) {
            self.latest[direction & 1].records.add(1);
        }
        u64::from(counted)
    }

    /// One step of taking the messages that a write to a multiplexed connection carries on.
    #[inline(always)]
    pub fn drain_some(&self, direction: usize, drained: &mut Drained) {
        self.pending[direction & 1].drain(drained);
    }

    /// How many writes of a direction there were so far that may have carried something on.
    #[inline(always)]
    pub fn writes(&self, direction: usize) -> u64 {
        self.writes[direction & 1].load()
    }

    /// Forgets what was read together with others and was not written on in the turn after: control records.
    #[inline(always)]
    pub fn forget_stale(&self, direction: usize) {
        self.pending[direction & 1].forget_before(self.older_start[direction & 1].load());
    }

    /// Whether the last thing this thread did was to read the connection of this number, in that direction, and
    /// nothing of the other direction is left from before.
    #[inline(always)]
    pub fn has_just_read(&self, direction: usize, id: u64) -> bool {
        let other = direction & 1 ^ 1;
        let latest = &self.latest[direction & 1];
        self.writing.load() == 0
            && latest.id.load() == id
            && latest.read_ns.load() >= self.latest[other].read_ns.load()
            && self.pending[other].front() >= self.turn_start[other].load()
    }

    /// Says that a write of a direction found nothing pending that it could carry on: one read may have brought several
    /// messages. `again` if the write before it to the same connection found nothing either and the connection was not read
    /// since: they may be parts of one message, of which there are as many as it is long.
    #[inline(always)]
    pub fn note_starved(&self, direction: usize, again: bool) {
        // A response that waits may have gone into a second request.
        let response = direction & 1 == REQUEST && self.pending[RESPONSE].any_live();
        self.latest[direction & 1].starved.add(u64::from(!again && !response));
    }

    /// Says that an opened connection was written to again although requests waited.
    #[inline(always)]
    pub fn note_continued(&self, now_ns: u64) {
        self.continued_ns.store(now_ns);
    }

    /// A request that was read then is answered and was not seen to be written to a server. Whether an opened connection
    /// may have carried it along with others: one was written to again since, and one was read.
    #[inline(always)]
    pub fn suspect_several(&self, read_ns: u64) -> bool {
        let latest = &self.latest[RESPONSE];
        let suspected = self.continued_ns.load() > read_ns && latest.read_ns.load() > read_ns;
        latest.starved.add(u64::from(suspected));
        suspected
    }
}
