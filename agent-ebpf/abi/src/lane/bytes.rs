//! How many messages a segment of a multiplexed connection has brought, or a write to one carries on: by its bytes and
//! by those of all so far.
//!
//! Envoy writes a turn late: before the messages of one segment are all written the next one is read, and one write a
//! segment would carry the rest of them on from that. Messages of one direction of a lane are taken to be much alike.

use super::Lane;
use crate::pending::{Claim, Drained, position_of, tag_at};
use crate::word::Word;

/// With so many control records seen in a lane, and more than one for so many writes, bytes do not tell messages: `HAProxy`
/// has one between each two. Envoy's clients send one now and then, when they have read 32 KiB or so.
const MANY_RECORDS: u64 = 4;
const WRITES_FOR_ONE: u64 = 64;

/// So many bytes as this many messages have are no single one.
const SEVERAL: u64 = 4;

/// At so many messages the sums are halved.
const MEMORY: u64 = 4096;
/// A write after which another connection was written to counts as much as so many that follow their own kind.
const OTHERS: u64 = 64;

/// Bytes of multiplexed connections, and the messages they were.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Bytes<W> {
    bytes: W,
    messages: W,
}

/// What a lane knows of one direction.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Flow<W> {
    read: Bytes<W>,
    written: Bytes<W>,
    /// Number of the multiplexed connection that was written to last.
    last: W,
    /// Not 0 while others are written to as well.
    others: W,
    /// Stamps of the segment that the latest write carries on, and how many of its bytes no write has carried on yet.
    stamps: [W; 2],
    left: W,
    /// Its position.
    position: W,
    /// In which round of the loop that write was.
    round: W,
    /// Bytes of that segment if it was begun as more was written than an older one has brought; else 0.
    early: W,
}

impl<W: Word> Bytes<W> {
    #[inline(always)]
    fn add(&self, bytes: u64, messages: u64) {
        let halve = u32::from(self.messages.load() >= MEMORY);
        self.bytes.store((self.bytes.load() >> halve) + bytes);
        self.messages.store((self.messages.load() >> halve) + messages);
    }

    /// How many messages so many bytes are, in 1/256.
    #[inline(always)]
    fn messages_x256(&self, bytes: u64) -> u64 {
        (bytes * self.messages.load() * 256).checked_div(self.bytes.load()).unwrap_or(0)
    }
}

impl<W: Word> Flow<W> {
    /// How many bytes a message may have beyond these: those of all so far, and a quarter more, as messages differ.
    #[inline(always)]
    pub(super) fn unwritten(&self, bytes: u64) -> u64 {
        let one = self.written.bytes.load().checked_div(self.written.messages.load()).unwrap_or(0);
        (one + (one >> 2)).saturating_sub(bytes)
    }

    /// Forgets what was learned.
    #[inline(always)]
    pub(super) fn forget(&self) {
        for word in [
            &self.read.bytes,
            &self.read.messages,
            &self.written.bytes,
            &self.written.messages,
            &self.others,
            &self.left,
        ] {
            word.store(0);
        }
    }
}

impl<W: Word> Lane<W> {
    /// Adds a segment with so many bytes that was read from a multiplexed connection. Returns its position.
    #[inline(always)]
    pub fn push_segment(&self, direction: usize, arrival_ns: u64, read_ns: u64, bytes: u32) -> Option<u64> {
        let direction = direction & 1;
        let (flow, set) = (&self.flows[direction], &self.pending[direction]);
        flow.read.add(u64::from(bytes), 0);
        let tag = set.push_batch(arrival_ns, read_ns, bytes)?;
        self.note_read(direction, tag);
        self.note_to_write(direction);
        Some(position_of(tag))
    }

    /// Whether bytes tell messages.
    #[inline(always)]
    pub(super) fn bytes_tell(&self) -> bool {
        let records = self.latest[0].records.load() + self.latest[1].records.load();
        let writes = self.writes[0].load() + self.writes[1].load();
        records < MANY_RECORDS || records * WRITES_FOR_ONE < writes
    }

    /// How many messages a write of so many bytes to the multiplexed connection of this number may carry on if others of its
    /// lane are written to as well; nothing if it carries on all there are.
    #[inline(always)]
    pub(super) fn most(&self, direction: usize, id: u64, bytes: u64) -> Option<u64> {
        let flow = &self.flows[direction];
        let others = flow.others.load();
        let others = if flow.last.load() == id { others.saturating_sub(1) } else { OTHERS };
        flow.others.store(others);
        flow.last.store(id);
        flow.written.add(bytes, 0);
        if others == 0 || !self.bytes_tell() || self.shared.load() != 0 {
            return None;
        }
        // A quarter of a message more than whole ones is none: messages differ a little.
        let whole = (flow.written.messages_x256(bytes) + 191) >> 8;
        // What is much shorter than a segment may be one of those that came in it.
        let begins = flow.read.messages.load() == 0 || flow.read.messages_x256(bytes) >= 128;
        Some(whole.max(u64::from(begins)))
    }

    /// Whether so many bytes are several messages of those connections that are known to carry several at once.
    #[inline(always)]
    pub fn are_several(&self, direction: usize, bytes: u64) -> bool {
        let direction = direction & 1;
        self.latest[direction].several.load() != 0
            && self.flows[direction].read.messages_x256(bytes) >= SEVERAL << 8
    }

    /// Says that a write of so many bytes goes on with a message that another one has begun.
    #[inline(always)]
    pub fn note_more_written(&self, direction: usize, bytes: u64) {
        self.flows[direction & 1].written.add(bytes, 0);
    }

    /// Says what a write to a multiplexed connection has taken; `shared_out` if others are written to as well, which may
    /// carry on the rest of the last segment.
    #[inline(always)]
    pub(super) fn note_drained(&self, direction: usize, drained: &Drained, shared_out: bool) {
        let taken = drained.batches;
        let set = &self.pending[direction];
        if !shared_out || taken == 0 || !set.is_batch(drained.last) {
            self.flows[direction].read.add(0, taken);
            return;
        }
        self.flows[direction].read.add(0, taken - 1);
        let [arrival_ns, read_ns] = set.stamps(drained.last);
        let tag = tag_at(drained.last);
        self.begin_segment(
            direction,
            &Claim { tag, arrival_ns, read_ns, ..Claim::default() },
            set.bytes_of(tag),
        );
    }

    /// Says that there is one more message to write. Not those are counted that writes have taken: what they take too
    /// little would make them take still less.
    #[inline(always)]
    pub(super) fn note_to_write(&self, direction: usize) {
        self.flows[direction].written.add(0, 1);
    }

    /// The segment that the write before has carried on, if it has brought more than what was written so far.
    #[inline(always)]
    pub(super) fn rest_of_segment(&self, direction: usize) -> Option<Claim> {
        let flow = &self.flows[direction];
        let mut left = flow.left.load();
        if flow.round.load() != self.round.load() {
            // What was begun before its turn, and is not done, has hardly begun: older messages were shorter.
            let early = flow.early.load();
            left = if left == 0 || early == 0 { left } else { early };
            flow.early.store(0);
        }
        let old = flow.position.load() < self.older_start[direction].load();
        // More than half of a message.
        if left == 0
            || !self.bytes_tell()
            || self.shared.load() != 0
            || old
            || flow.read.messages_x256(left) < 128
        {
            return None;
        }
        flow.round.store(self.round.load());
        self.take_bytes(direction, left);
        let [arrival_ns, read_ns] = [flow.stamps[0].load(), flow.stamps[1].load()];
        Some(Claim { arrival_ns, read_ns, batch: true, ..Claim::default() })
    }

    /// Says that a write carries on one message of the latest segment, of which others were written before.
    #[inline(always)]
    pub fn note_latest(&self, direction: usize) {
        self.flows[direction & 1].read.add(0, 1);
    }

    /// Says that a write carries on one message of a segment that has so many bytes left.
    #[inline(always)]
    fn take_bytes(&self, direction: usize, left: u64) {
        let flow = &self.flows[direction];
        flow.read.add(0, 1);
        let one = flow.read.bytes.load().checked_div(flow.read.messages.load()).unwrap_or(0);
        flow.left.store(left.saturating_sub(one));
    }

    /// Says that a write carries on a segment, the first of those that do.
    #[inline(always)]
    pub(super) fn begin_segment(&self, direction: usize, claim: &Claim, bytes: u64) {
        let flow = &self.flows[direction];
        let position = position_of(claim.tag);
        let turn_start = self.turn_start[direction].load();
        let early = flow.round.load() == self.round.load()
            && flow.position.load() < turn_start
            && position >= turn_start;
        flow.early.store(if early { bytes } else { 0 });
        flow.round.store(self.round.load());
        flow.position.store(position);
        flow.stamps[0].store(claim.arrival_ns);
        flow.stamps[1].store(claim.read_ns);
        self.take_bytes(direction, bytes);
    }
}
