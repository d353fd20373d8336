//! HTTP/1.1 read from a connection's bytes: a message may start anywhere in a packet, and its head end in another.

use anyhow::Result;

use super::{Direction, Sighting};
use crate::http::{self, Body, Head};

/// One direction of a connection.
#[derive(Debug)]
pub(super) struct Messages {
    parse: fn(&[u8]) -> Result<Option<Head>>,
    place: Place,
}

/// Where the next byte is.
#[derive(Debug)]
enum Place {
    /// In a head that began at this time, behind these bytes of it.
    Head(u64, Vec<u8>),
    Body(Body),
}

impl Messages {
    pub(super) fn new(direction: Direction) -> Self {
        let parse = match direction {
            Direction::Request => http::request_head,
            Direction::Response => http::response_head,
        };
        Self { parse, place: Place::Body(Body::Sized(0)) }
    }

    pub(super) fn take(&mut self, time_ns: u64, bytes: &[u8], sightings: &mut Vec<Sighting>) -> Result<()> {
        let mut left = bytes;
        while !left.is_empty() {
            match &mut self.place {
                Place::Body(body) if body.is_over() => self.place = Place::Head(time_ns, Vec::new()),
                Place::Body(body) => left = &left[body.take(left, &mut |_content| Ok(()))?..],
                Place::Head(start_ns, seen) => {
                    let seen_bytes = seen.len();
                    seen.extend_from_slice(left);
                    let Some(head) = (self.parse)(seen)? else { return Ok(()) };
                    sightings.push(Sighting { id: head.id, time_ns: *start_ns });
                    // What was seen before was not a whole head, so it ends in these bytes.
                    left = &left[head.head_bytes - seen_bytes..];
                    self.place = Place::Body(head.body);
                }
            }
        }
        Ok(())
    }
}
