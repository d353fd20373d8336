//! What is known of one connection of a proxy, and what tells whether it carries several messages at once.

/// The proxy accepted the connection: downstream.
pub const ROLE_ACCEPTED: u32 = 1;
/// The proxy opened the connection: upstream.
pub const ROLE_OPENED: u32 = 2;

/// The connection was there before, and which way its last message went is not known: the next read or write may be the
/// middle of one, so what it begins gets no latency.
pub const TURN_UNKNOWN: u32 = 0;
/// The last message-carrying call on the socket was a read.
pub const TURN_READING: u32 = 1;
/// The last message-carrying call on the socket was a write.
pub const TURN_WRITING: u32 = 2;
/// The last call on the socket was a write for which there was no cause: a control record, or the proxy's own request.
pub const TURN_OWN: u32 = 3;
/// Neither a read nor a write yet.
pub const TURN_NONE: u32 = 4;

/// No crossing awaits its departure on the socket.
pub const CLASS_NONE: u32 = 0;
/// The crossing had one possible cause.
pub const CLASS_EXACT: u32 = 1;
/// The crossing had several possible causes.
pub const CLASS_AMBIGUOUS: u32 = 2;

/// Several messages await their departure on the socket.
pub const CLASS_DRAINED: u32 = 3;

/// What awaits its departure on the socket is held until it is clear whether it was a message.
pub const CLASS_HELD: u32 = 4;

/// Arrivals of segments that a multiplexed socket remembers; one less wait to be read.
pub const NOTED: usize = 8;

/// What is no longer may be a control record between messages: two `WINDOW_UPDATE` frames (RFC 9113 6.9: 13 bytes each)
/// in a record of TLS 1.2 with AES-GCM (RFC 5288: 29 bytes more). A `PING` has 17 bytes (6.7), an acknowledged
/// `SETTINGS` 9 (6.5), a record of TLS 1.3 22 more than its content (RFC 8446 5.2).
pub const RECORD_BYTES: usize = 55;

/// Whether so many bytes may be a control record of a connection on which `records` were seen before: it is short, or
/// nothing but `WINDOW_UPDATE` frames, one for each of up to 127 streams and one for all, in plain or in a TLS record.
#[inline(always)]
pub const fn is_record(bytes: usize, records: u32) -> bool {
    const FRAME: usize = 13;
    // Branch-free: each branch would double the paths of whoever calls it.
    let updates = bytes.is_multiple_of(FRAME) as usize
        | (bytes % FRAME == 22 % FRAME) as usize
        | (bytes % FRAME == 29 % FRAME) as usize;
    bytes <= RECORD_BYTES || records > 0 && bytes <= 128 * FRAME + 29 && updates != 0
}

/// Whether so many bytes are a frame of HTTP/2 without content, in plain or in a record of TLS 1.3 or 1.2: settings that are
/// acknowledged, or none (RFC 9113 6.5).
#[inline(always)]
pub const fn is_empty_frame(bytes: usize) -> bool {
    matches!(bytes, 9 | 31 | 38)
}

/// Among so many messages of a connection is the acknowledgement of its HTTP/2 settings: there are the settings before it,
/// and with TLS two or three of the handshake each way.
pub const OPENING_MESSAGES: u32 = 8;

/// From here up a socket is taken to carry several messages at once. Threads that hand over work let writes find
/// nothing too, most while that is not known of them: after that the count starts anew.
pub const MULTIPLEXED: u32 = 256;

/// What one write that found nothing pending adds to that; each read takes 1 away.
pub const STARVED_WEIGHT: u32 = 4;

/// The same where another connection of its lane is known to carry several messages at once, where it has carried control
/// records, or was written to again when another response had just been read. Between two Envoys in an open loop of 2,000
/// requests a second 8 of 100 reads bring two requests; a proxy that sends copies of all it is asked writes twice for each.
pub const OTHERS_WEIGHT: u32 = 64;

/// For how many reads it counts that an accepted connection was written to again when another response had just been read.
pub const ANSWERED_AGAIN_READS: u32 = 128;

/// The same where threads share the lane: a write may find nothing for other reasons there, but not one for each read.
pub const SHARED_WEIGHT: u32 = 1;

/// After one read at most so many such writes count; where messages come one at a time there are a few.
pub const MOST_STARVED: u32 = 64;

/// What one more write to an opened connection adds to that which was not read since its last message, although requests
/// wait and nothing was read that could belong to that message.
pub const CONTINUED_WEIGHT: u32 = 16;
/// A message of more bytes may be sent in several calls: `HAProxy` sends the head of an upload first.
pub const CONTINUED_BYTES: usize = 1024;

/// From so many control records on a connection is taken to carry several messages at once, as one is read. HTTP/2 begins
/// with that many (settings and their acknowledgement, RFC 9113 3.4); only more show that there are some between messages.
pub const RECORDS_OF_OPENING: u32 = 2;

/// Where connections of one proxy lead. Key of the map `HANDSHAKES`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Destination {
    /// IPv6 address in network order, or an IPv4 address mapped into one.
    pub address: [u64; 2],
    /// TCP port in network order.
    pub port: u32,
    /// Slot of the proxy.
    pub proxy_slot: u32,
}

/// State of one proxy socket, in the kernel only. All zero is a valid start.
///
/// Ordered by use, since a line that has left the caches costs more than what is done with it: the first is what an arrival
/// needs, with the second a departure, with the third a read or a write of a connection that carries one message at a time.
/// The kernel lays it 8 bytes behind the beginning of one (`bpf_local_storage_elem`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Socket {
    /// When the oldest unread bytes became ready; 0 when there are none or it was not seen.
    pub arrival_ns: u64,
    /// When bytes last became ready.
    pub ready_ns: u64,
    /// Tag of this socket's message in the pending set; 0 when there is none.
    pub pending_tag: u64,
    /// Of an opened connection: its name in its lane. Of an accepted one: the name there of the connection that
    /// brought its last response. 0 when there is none.
    pub upstream: u64,
    /// Slot of the proxy, or [`NO_PROXY`](super::NO_PROXY).
    pub proxy_slot: u32,
    /// Process that last used the socket; 0 before the first use.
    pub tgid: u32,
    /// `ROLE_*`.
    pub role: u32,
    /// `TURN_*`.
    pub turn: u32,
    /// `OPENING_*` of [`opening`](crate::opening).
    pub opening: u32,
    /// How much speaks for it carrying several messages at once; from [`MULTIPLEXED`] up it is taken to.
    pub multiplexed: u32,
    /// The crossing that awaits its departure: `CLASS_*`.
    pub departing_class: u32,
    /// ... sequence number of its first byte.
    pub departing_seq: u32,
    /// ... when its message arrived (0: not seen).
    pub departing_arrival_ns: u64,
    /// ... when the proxy read it.
    pub departing_read_ns: u64,
    /// ... when the proxy wrote it here.
    pub departing_write_ns: u64,
    /// Fallback write hook only: when the first data segment since the last read left.
    pub first_departure_ns: u64,
    /// Which lane the pending message is in.
    pub pending_lane: u32,
    /// Whose lane it used last: a thread, or with [`SHARED`] a process; 0 before the first use.
    pub owner: u32,
    /// Place of that lane; meaningful when `owner` is set.
    pub lane: u32,
    /// A number of its own, as good as unique, never 0.
    pub id: u32,
    /// Messages since it last went from one thread to another.
    pub settled: u32,
    /// First byte that was not read when last looked at; 0 when it is not known.
    pub copied_seq: u32,
    /// First byte of what was read last: of the message, or of the segments if it is multiplexed.
    pub start_seq: u32,
    /// 1 while it is among those that its lane counts as waiting for a response.
    pub waits: u32,
    /// Of an opened connection: the accepted one whose request it carries if all are paired in order; 0 if none.
    pub downstream: u32,
    /// Control records seen on it.
    pub records: u32,
    /// Of an accepted connection: for how many reads it still counts that it was written to again when another response had
    /// just been read.
    pub answered_again: u32,
    /// How many writes its lane had seen when it was last read, if it is multiplexed; modulo 2^32.
    pub batch_writes: u32,
    /// When the connection was established, for an opened one with the handshake that its destination is known for; 0
    /// if it was there before. Bytes that came to an accepted one with the end of TCP's handshake arrived then.
    pub established_ns: u64,
    /// Of an opened connection whose opening was not recorded yet: when the proxy began to connect; 0 else.
    pub connecting_ns: u64,
    /// ... when its first request was written, if it is not clear yet that it was one.
    pub connected_ns: u64,
    /// Where an opened connection leads.
    pub destination: Destination,
    /// While the opening is being learned: sequence numbers of the first and the second write, and of the first byte read.
    pub opening_seq: [u32; 3],
    /// 1 if it was opened to another host.
    pub elsewhere: u32,
    /// 1 if the proxy has shown a certificate in its handshake, or in an earlier one that this goes on with.
    pub certified: u32,
    /// How many messages await their departure together.
    pub drained_count: u32,
    /// How many bytes more the message may have that the last write to it has begun, if it is multiplexed; 0 if that has begun
    /// several.
    pub unwritten_bytes: u64,
    /// Where in its lane the messages of its last read begin, if it is multiplexed.
    pub batch_start: u64,
    /// ... and end.
    pub batch_end: u64,
    /// Where in its lane the messages begin that await their departure together: `CLASS_DRAINED`.
    pub drained_start: u64,
    /// ... and end.
    pub drained_end: u64,
    /// How many arrivals were noted, modulo 2^32.
    pub noted: u32,
    /// How many of them were taken.
    pub noted_taken: u32,
    /// Sequence numbers behind the segments whose arrivals are noted.
    pub noted_end: [u32; NOTED],
    /// When segments arrived, if it is multiplexed.
    pub noted_ns: [u64; NOTED],
}

impl Socket {
    /// Notes a control record of so many bytes that was written to it, or read. Returns whether it may have stood between
    /// messages.
    ///
    /// One written to an opened connection is enough: what was read there before has not gone on, and where messages come
    /// one at a time none is written before that. One written to an accepted connection may be a short answer of the
    /// proxy's own.
    #[inline(always)]
    pub const fn note_record(&mut self, bytes: usize, written: bool) -> bool {
        self.records = self.records.saturating_add(1);
        let several = if written { self.role == ROLE_OPENED } else { self.records >= RECORDS_OF_OPENING };
        if several || is_empty_frame(bytes) {
            self.multiplexed = MULTIPLEXED;
        }
        self.records > RECORDS_OF_OPENING
    }

    /// Takes the oldest arrival that is noted and was not taken: when it was, and how many bytes it brought. `before` is how far
    /// the connection was read before: there the first one begins, as what came earlier was not noted.
    #[inline(always)]
    pub const fn take_noted(&mut self, before: u32) -> (u64, u32) {
        let taken = self.noted_taken;
        let (place, last) = (taken as usize % NOTED, taken.wrapping_sub(1) as usize % NOTED);
        let begin = if taken == 0 { before } else { self.noted_end[last] };
        self.noted_taken = taken.wrapping_add(1);
        (self.noted_ns[place], self.noted_end[place].wrapping_sub(begin))
    }

    /// Whether so many bytes, which go the other way than what went before, acknowledge the settings that HTTP/2 begins with
    /// (RFC 9113 3.4): a frame without content among the first messages of a connection.
    #[inline(always)]
    pub const fn acknowledges_settings(&self, bytes: usize) -> bool {
        is_empty_frame(bytes) && self.settled <= OPENING_MESSAGES
    }
}

/// Marks the owner of a lane as a process whose threads share it. Thread ids have 22 bits (`PID_MAX_LIMIT` of the
/// kernel's include/linux/threads.h).
pub const SHARED: u32 = 1 << 31;

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<Destination>() == 24);
    assert!(size_of::<Socket>() == (19 + NOTED) * 8 + (28 + NOTED) * 4);
    // Lines of 64 bytes, the first of which the kernel's own 8 bytes begin.
    assert!(offset_of!(Socket, departing_class) == 56);
    assert!(offset_of!(Socket, start_seq) == 56 + 64);
    assert!(offset_of!(Socket, destination) <= 56 + 2 * 64);
};

#[cfg(test)]
mod tests;
