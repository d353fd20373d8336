//! The messages of raw TCP: all of one size, each with an id.

use crate::http::parse_id;

/// Length of every message.
pub const MESSAGE_BYTES: usize = 64;
/// How every message begins.
pub const MAGIC: [u8; 8] = *b"bed-mesg";
/// Set in the ids of a server's greetings.
pub const GREETING: u64 = 1 << 63;

/// Length of an id in a message: 16 hexadecimal digits.
const ID_BYTES: usize = 16;

/// The message with this id.
pub fn message(id: u64) -> [u8; MESSAGE_BYTES] {
    let mut message = [b'.'; MESSAGE_BYTES];
    let digits = format!("{id:016x}");
    message[..MAGIC.len()].copy_from_slice(&MAGIC);
    message[MAGIC.len()..][..ID_BYTES].copy_from_slice(digits.as_bytes());
    message
}

/// The id of the message that these bytes begin with; `None` when they begin with none, or its id is not whole.
pub fn id(bytes: &[u8]) -> Option<u64> {
    parse_id(bytes.strip_prefix(&MAGIC)?.get(..ID_BYTES)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_back() {
        for id in [1, u64::MAX, GREETING | 0xabc] {
            assert_eq!(super::id(&message(id)), Some(id));
        }
        assert_eq!(id(&message(1)[..23]), None);
        assert_eq!(id(&message(1)[1..]), None);
    }
}
