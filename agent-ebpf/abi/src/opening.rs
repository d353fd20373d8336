//! What an opened connection carries before its first message, by which no write and no read is taken for one.
//!
//! TLS begins with the client's hello, the server's answer, and the client's last word; only what the proxy writes
//! after that is a request. (`CONNECT` to another proxy, or SOCKS, look the same.) None of it can be told from a request
//! and its response while it happens, but from how it goes on: *what was read on the connection was not carried on to
//! anybody when the proxy has written to it twice more*. The first two writes differ in length: a request that is sent
//! again (a retry) does not. The first is no longer than [`LONGEST_HELLO`], and the answer no shorter than [`SHORTEST_ANSWER`]:
//! HTTP/2's settings are.
//!
//! So the first connections to a destination are taken to carry messages from the start; once one of them has shown a
//! handshake, the next ones are known to begin with one: the first write, what is read then, and the first write after
//! that are no messages. In an event loop that write follows its read at once; where a request was read in between, the
//! destination has no handshake (any more), and is forgotten.
//!
//! What else may be read before the first response (session tickets, in TLS 1.2 the server's last word) is no message
//! if it comes before the first request; the first response begins with the last bytes that are read before it is
//! carried on.

/// Bytes that a server answers a hello with, at least. In TLS 1.3 a hello of its own (122 bytes with an X25519 key), its
/// extensions and its last word (58 or more), or the wish for another hello (99 and 6), in TLS 1.2 resumed the hello (80 or
/// more) and the last word (51); HTTP/2 begins with settings (9 bytes and 6 for each, of which servers send up to 6), their
/// acknowledgement (9) and a window update (13).
pub const SHORTEST_ANSWER: u32 = 100;

/// Bytes of a client's hello, at most: one record of 2^14 and its header (RFC 8446, 5.1). Requests are longer where they carry
/// something, and their writes then follow each other as those of a handshake do.
pub const LONGEST_HELLO: u32 = (1 << 14) + 5;

/// From so many bytes on, what a client ends its handshake with shows a certificate. Without one that is, in TLS 1.3, 64 bytes or
/// 80 (record 5, type and tag 17, `Finished` 36 or 52, a change of cipher 6: RFC 8446, 4.4 and 5), 30 more where the server asked
/// for a certificate and there is none; in TLS 1.2 93 to 126, with a key of RSA exchanged (2,048 bits) 318. With one there are the
/// certificate, of 300 bytes at least and seldom below 500, and a signature over 64 or more. (RSA keys of 4,096 bits exchanged,
/// as TLS 1.2 may, are taken for one.)
pub const CERTIFIED_BYTES: u32 = 400;

/// It is past its first messages, or was accepted, or was there before the agent.
pub const OPENING_OVER: u32 = 0;
/// Nothing was written yet, and no handshake is known of. Of accepted connections there are this, the next, and those
/// behind a handshake.
pub const OPENING_NEW: u32 = 1;
/// It was written to.
pub const OPENING_ASKED: u32 = 2;
/// Then it was read.
pub const OPENING_ANSWERED: u32 = 3;
/// Then it was written to, while what was read had not been carried on.
pub const OPENING_ASKED_AGAIN: u32 = 4;
/// Nothing was written yet, and a handshake comes first.
pub const OPENING_HELLO: u32 = 5;
/// The handshake has begun.
pub const OPENING_HELLO_SENT: u32 = 6;
/// It was answered.
pub const OPENING_HELLO_READ: u32 = 7;
/// The handshake is over for the proxy: what it writes next is a request.
pub const OPENING_READY: u32 = 8;
/// The first message behind a handshake: that of an opened connection was written and is not answered yet, that of an
/// accepted one is still to come or not carried on yet.
pub const OPENING_FIRST: u32 = 9;

/// It is past its first messages, and began with a handshake: TLS.
pub const OPENING_SECURED: u32 = 10;

/// Whether so many bytes, on a connection of TLS, are its end announced (`close_notify`) and no message: header of the
/// record 5, alert 2, in TLS 1.3 type 1 and tag 16 (RFC 8446, 5.2), in TLS 1.2 tag 16 and with AES an explicit nonce 8
/// (RFC 5288, 3).
#[inline(always)]
pub const fn is_alert(bytes: u64) -> bool {
    matches!(bytes, 24 | 23 | 31)
}

/// Whether a connection from one address to another leads to another host: IPv6 in network order, or IPv4 mapped into it, as two
/// words of memory.
#[inline(always)]
pub const fn leads_elsewhere(from: [u64; 2], to: [u64; 2]) -> bool {
    let same = from[0] == to[0] && from[1] == to[1];
    !same && !is_loopback(from) && !is_loopback(to)
}

/// `::1`, or one of 127.0.0.0/8.
#[inline(always)]
const fn is_loopback([high, low]: [u64; 2]) -> bool {
    let [.., first, _, _, last] = low.to_le_bytes();
    let mapped = low as u32 == 0xffff_0000;
    high == 0 && (mapped && first == 127 || low << 8 == 0 && last == 1)
}

/// What is known of how connections to a destination begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Knowledge {
    /// With a handshake.
    Handshake = 1,
    /// With a message.
    Message = 2,
    /// With a handshake in which the proxy shows a certificate. One in which it does not is taken for one that goes on with an
    /// earlier session, in which it did.
    MutualHandshake = 3,
}

impl Knowledge {
    /// Whether this, as it is kept, 0 where nothing is known, is a handshake of either kind.
    #[inline(always)]
    pub const fn is_handshake(known: u32) -> bool {
        known == Self::Handshake as u32 || known == Self::MutualHandshake as u32
    }
}

/// What a write to an opened connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Of the handshake.
    Handshake,
    /// A request, or more of one: as after the opening.
    Message,
    /// A request, or more of one, and the writes so far were, too: connections to this destination begin with a message.
    MessageSoFar,
    /// The first request: what was written and read before was the handshake, which was not known.
    Learned,
    /// A request, and so was the first write: connections to this destination have no handshake any more.
    Forgotten,
}

/// What is seen at a write to an opened connection.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is seen apart from the others")]
pub struct Seen {
    /// What was read on it last waits to be carried on.
    pub unanswered: bool,
    /// It was read after the last write.
    pub after_read: bool,
    /// No other connection of the lane was read since; true where that cannot be known.
    pub at_once: bool,
    /// The two writes that were first are of the same length.
    pub repeated: bool,
    /// What was written before this is at most [`LONGEST_HELLO`].
    pub short: bool,
    /// What was read so far is at least [`SHORTEST_ANSWER`].
    pub long_answer: bool,
}

/// The state after a write, and what the write is.
#[inline(always)]
pub const fn on_write(opening: u32, seen: Seen) -> (u32, Written) {
    match opening {
        OPENING_NEW => (OPENING_ASKED, Written::Message),
        OPENING_ANSWERED if seen.unanswered && seen.short && seen.long_answer => {
            (OPENING_ASKED_AGAIN, Written::Message)
        }
        OPENING_ASKED_AGAIN if seen.unanswered && !seen.repeated => (OPENING_FIRST, Written::Learned),
        OPENING_ANSWERED | OPENING_ASKED_AGAIN => (OPENING_OVER, Written::MessageSoFar),
        OPENING_HELLO | OPENING_HELLO_SENT => (OPENING_HELLO_SENT, Written::Handshake),
        OPENING_HELLO_READ if seen.at_once => (OPENING_READY, Written::Handshake),
        OPENING_HELLO_READ => (OPENING_OVER, Written::Forgotten),
        OPENING_READY => (OPENING_FIRST, Written::Message),
        OPENING_FIRST if seen.after_read => (OPENING_SECURED, Written::Message),
        same => (same, Written::Message),
    }
}

/// The state after a read, and whether it may begin or continue a message.
#[inline(always)]
pub const fn on_read(opening: u32) -> (u32, bool) {
    match opening {
        OPENING_ASKED => (OPENING_ANSWERED, true),
        OPENING_HELLO | OPENING_HELLO_SENT | OPENING_HELLO_READ => (OPENING_HELLO_READ, false),
        OPENING_READY => (OPENING_READY, false),
        same => (same, true),
    }
}

#[cfg(test)]
mod tests;
