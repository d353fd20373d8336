//! gRPC's framing on top of HTTP/2: as much as load and backend need to agree on.
//!
//! A call is `bed.Echo/Call` with one message each way, `message Echo { bytes content = 1; }`.

use anyhow::{Context as _, Result, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};

use crate::http::FILLER;
use crate::protocol::SMALL_BODY_BYTES;

/// The path of the one method.
pub const PATH: &str = "/bed.Echo/Call";
/// What requests and responses say that they carry.
pub const CONTENT_TYPE: &str = "application/grpc";
/// The trailer with the outcome; 0 is success.
pub const STATUS: &str = "grpc-status";

/// Not compressed, then the length: before every message.
const PREFIX_BYTES: usize = 5;

/// The message of every call, encoded, behind its prefix.
pub fn message() -> Bytes {
    // Field 1, of bytes; both numbers are below 128, so one byte each.
    const FIELD: [u8; 2] = [1 << 3 | 2, SMALL_BODY_BYTES as u8];
    const MESSAGE_BYTES: usize = FIELD.len() + SMALL_BODY_BYTES;
    let mut message = BytesMut::with_capacity(PREFIX_BYTES + MESSAGE_BYTES);
    message.put_u8(0);
    message.put_u32(MESSAGE_BYTES as u32);
    message.put_slice(&FIELD);
    message.put_bytes(FILLER, SMALL_BODY_BYTES);
    message.freeze()
}

/// Checks that these bytes are one message behind its prefix.
///
/// # Errors
/// When they are not.
pub fn check(bytes: &[u8]) -> Result<()> {
    let (prefix, message) =
        bytes.split_at_checked(PREFIX_BYTES).context("less than the prefix of a gRPC message")?;
    let length = prefix[1..].try_into().map(u32::from_be_bytes)?;
    ensure!(prefix[0] == 0, "a compressed gRPC message");
    ensure!(length as usize == message.len(), "{} bytes of a gRPC message of {length}", message.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{check, message};

    #[test]
    fn a_message_is_whole_or_refused() {
        let message = message();
        assert_eq!(message[..7], [0, 0, 0, 0, 66, 10, 64]);
        assert!(check(&message).is_ok());
        assert!(check(&message[..70]).is_err() && check(&message[..3]).is_err());
        assert!(check(&[1, 0, 0, 0, 0]).is_err());
    }
}
