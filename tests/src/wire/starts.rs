//! HTTP/1.1 whose messages all start a packet: a connection carries one message at a time.

use super::{Direction, Packet, Sighting};
use crate::http;

/// The message that the packet starts, if it starts one. It has no id when there is none within the captured bytes.
pub(super) fn message(packet: &Packet<'_>) -> Option<Sighting> {
    const METHODS: [&[u8]; 5] = [b"GET ", b"POST ", b"PUT ", b"HEAD ", b"DELETE "];
    let starts = match packet.direction {
        Direction::Request => METHODS.iter().any(|method| packet.payload.starts_with(method)),
        Direction::Response => packet.payload.starts_with(b"HTTP/1."),
    };
    // The snap length may have cut the head anywhere, so lines are searched, not a head parsed.
    let mut lines =
        packet.payload.split(|&byte| byte == b'\n').skip(1).take_while(|line| !matches!(line, [] | [b'\r']));
    starts.then(|| Sighting {
        id: lines.find_map(|line| id_of(line.strip_suffix(b"\r").unwrap_or(line))),
        time_ns: packet.time_ns,
    })
}

fn id_of(line: &[u8]) -> Option<u64> {
    let (name, rest) = line.split_at_checked(http::ID_HEADER.len())?;
    let value = rest.strip_prefix(b":")?.trim_ascii();
    name.eq_ignore_ascii_case(http::ID_HEADER.as_bytes()).then(|| http::parse_id(value))?
}
