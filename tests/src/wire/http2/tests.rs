//! Hand-made frames with known answers.

use loona_hpack::Encoder;

use super::{CONTINUATION, END_HEADERS, HEADERS, PADDED, PREFACE, PRIORITY, PUSH_PROMISE, Reader, SETTINGS};
use crate::wire::{Direction, Head};

const DATA: u8 = 0x0;
const END_STREAM: u8 = 0x1;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Encodes one direction; ids go into the dynamic table, so that later blocks refer to it.
#[derive(Default)]
struct Peer(Encoder<'static>);

impl Peer {
    fn block(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        self.0.encode(headers.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())))
    }

    fn request(&mut self, id: u64) -> Vec<u8> {
        self.block(&[(":method", "GET"), (":path", "/"), ("x-bed-id", &format!("{id:016x}"))])
    }

    fn response(&mut self, id: u64) -> Vec<u8> {
        self.block(&[(":status", "200"), ("x-bed-id", &format!("{id:016x}"))])
    }
}

/// What a reader finds in packets, the first of which came at 1 ns, the next at 2 ns, ...
fn heads(packets: &[&[u8]]) -> anyhow::Result<Vec<Head>> {
    let mut reader = Reader::new(packets[0]);
    let mut found = Vec::new();
    for (time_ns, packet) in (1..).zip(packets) {
        reader.push(time_ns, packet, |head| {
            found.push(head);
            Ok(())
        })?;
    }
    anyhow::ensure!(reader.is_whole(), "something is cut off");
    Ok(found)
}

fn request(time_ns: u64, id: u64) -> Head {
    Head { direction: Direction::Request, time_ns, id: Some(id) }
}

fn response(time_ns: u64, id: u64) -> Head {
    Head { direction: Direction::Response, time_ns, id: Some(id) }
}

#[test]
fn the_first_bytes_tell_the_protocol() {
    let settings = frame(SETTINGS, 0, 0, &[0; 6]);
    assert_eq!(Reader::speaks(PREFACE), Some(true));
    assert_eq!(Reader::speaks(&PREFACE[..10]), None);
    assert_eq!(Reader::speaks(&settings), Some(true));
    assert_eq!(Reader::speaks(&settings[..8]), None);
    assert_eq!(Reader::speaks(b"HTTP/1.1 200 OK\r\n"), Some(false));
    assert_eq!(Reader::speaks(b"POST / HTTP/1.1\r\n"), Some(false));
}

#[test]
fn one_packet_holds_the_preface_and_many_frames() {
    let mut peer = Peer::default();
    let mut packet = PREFACE.to_vec();
    packet.extend(frame(SETTINGS, 0, 0, &[]));
    for id in [7, 7, 9] {
        packet.extend(frame(HEADERS, END_HEADERS, 1, &peer.request(id)));
        packet.extend(frame(DATA, END_STREAM, 1, b"a body"));
    }
    assert_eq!(heads(&[&packet]).unwrap(), [request(1, 7), request(1, 7), request(1, 9)]);
}

#[test]
fn a_frame_may_be_split_anywhere_and_has_the_time_of_its_first_byte() {
    let mut peer = Peer::default();
    let mut bytes = frame(SETTINGS, 0, 0, &[0; 12]);
    let before = bytes.len();
    let block = peer.response(3);
    bytes.extend(frame(HEADERS, END_HEADERS, 1, &block));
    bytes.extend(frame(HEADERS, END_HEADERS, 3, &peer.response(4)));
    let second = before + 9 + block.len();
    for cut in 1..bytes.len() {
        let expected =
            [(before, 3), (second, 4)].map(|(start, id)| response(if start < cut { 1 } else { 2 }, id));
        assert_eq!(heads(&[&bytes[..cut], &bytes[cut..]]).unwrap(), expected, "cut at {cut}");
    }
    let each: Vec<&[u8]> = bytes.chunks(1).collect();
    let expected = [response(before as u64 + 1, 3), response(second as u64 + 1, 4)];
    assert_eq!(heads(&each).unwrap(), expected);
}

#[test]
fn a_block_goes_on_in_continuation_frames() {
    let mut peer = Peer::default();
    let block = peer.request(5);
    let first = frame(HEADERS, 0, 1, &block[..4]);
    let second = frame(CONTINUATION, 0, 1, &block[4..6]);
    let third = frame(CONTINUATION, END_HEADERS, 1, &block[6..]);
    let after = frame(HEADERS, END_HEADERS, 3, &peer.request(6));
    let packets = [PREFACE, &first, &second, &third, &after];
    assert_eq!(heads(&packets).unwrap(), [request(2, 5), request(5, 6)]);
    // Cut off, of another stream, broken by another frame.
    assert!(heads(&[PREFACE, &first]).is_err());
    assert!(heads(&[PREFACE, &first, &frame(CONTINUATION, END_HEADERS, 3, &block[4..])]).is_err());
    assert!(heads(&[PREFACE, &first, &frame(DATA, 0, 1, &block[4..])]).is_err());
    assert!(heads(&[PREFACE, &third]).is_err());
}

#[test]
fn padding_and_priority_are_no_part_of_the_block() {
    let mut peer = Peer::default();
    let padded = [&[3][..], &peer.request(1), &[0; 3]].concat();
    let both = [&[2][..], &[0, 0, 0, 0, 15], &peer.request(2), &[0; 2]].concat();
    let priority = [&[0, 0, 0, 0, 15][..], &peer.request(3)].concat();
    let mut packet = PREFACE.to_vec();
    packet.extend(frame(HEADERS, END_HEADERS | PADDED, 1, &padded));
    packet.extend(frame(HEADERS, END_HEADERS | PADDED | PRIORITY, 3, &both));
    packet.extend(frame(HEADERS, END_HEADERS | PRIORITY, 5, &priority));
    assert_eq!(heads(&[&packet]).unwrap(), [request(1, 1), request(1, 2), request(1, 3)]);
    let too_long = frame(HEADERS, END_HEADERS | PADDED, 1, &[9, 0x82]);
    assert!(heads(&[PREFACE, &too_long]).is_err());
}

#[test]
fn trailers_and_interim_responses_are_no_messages_but_change_the_table() {
    let mut peer = Peer::default();
    let mut packet = frame(SETTINGS, 0, 0, &[]);
    packet.extend(frame(HEADERS, END_HEADERS, 1, &peer.block(&[(":status", "103"), ("link", "</x>")])));
    packet.extend(frame(HEADERS, END_HEADERS, 1, &peer.response(8)));
    let trailers = peer.block(&[("grpc-status", "0"), ("x-bed-id", "0000000000000009")]);
    packet.extend(frame(HEADERS, END_HEADERS | END_STREAM, 1, &trailers));
    packet.extend(frame(HEADERS, END_HEADERS, 3, &peer.response(9)));
    packet.extend(frame(HEADERS, END_HEADERS, 5, &peer.block(&[(":status", "404")])));
    let nameless = Head { direction: Direction::Response, time_ns: 1, id: None };
    assert_eq!(heads(&[&packet]).unwrap(), [response(1, 8), response(1, 9), nameless]);
}

#[test]
fn what_cannot_be_decoded_is_an_error() {
    // An index into a dynamic table in which nothing is.
    assert!(heads(&[PREFACE, &frame(HEADERS, END_HEADERS, 1, &[0xff])]).is_err());
    assert!(heads(&[PREFACE, &frame(PUSH_PROMISE, END_HEADERS, 1, &[0; 4])]).is_err());
}
