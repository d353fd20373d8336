//! Hand-made frames with known answers.

use loona_hpack::Encoder;

use super::{CONTINUATION, END_HEADERS, HEADERS, Messages, PADDED, PREFACE, PRIORITY, PUSH_PROMISE};
use crate::wire::{Direction, Sighting};

const DATA: u8 = 0x0;
const SETTINGS: u8 = 0x4;
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

/// What is found in packets, the first of which came at 1 ns, the next at 2 ns, ...
fn found(direction: Direction, packets: &[&[u8]]) -> anyhow::Result<Vec<Sighting>> {
    let mut messages = Messages::new(direction);
    let mut found = Vec::new();
    for (time_ns, packet) in (1..).zip(packets) {
        messages.take(time_ns, packet, &mut found)?;
    }
    anyhow::ensure!(messages.frames.is_whole() && messages.blocks.open.is_none(), "something is cut off");
    Ok(found)
}

fn requests(packets: &[&[u8]]) -> anyhow::Result<Vec<Sighting>> {
    found(Direction::Request, packets)
}

fn responses(packets: &[&[u8]]) -> anyhow::Result<Vec<Sighting>> {
    found(Direction::Response, packets)
}

fn seen(time_ns: u64, id: u64) -> Sighting {
    Sighting { id: Some(id), time_ns }
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
    assert_eq!(requests(&[&packet]).unwrap(), [seen(1, 7), seen(1, 7), seen(1, 9)]);
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
            [(before, 3), (second, 4)].map(|(start, id)| seen(if start < cut { 1 } else { 2 }, id));
        assert_eq!(responses(&[&bytes[..cut], &bytes[cut..]]).unwrap(), expected, "cut at {cut}");
    }
    let each: Vec<&[u8]> = bytes.chunks(1).collect();
    let expected = [seen(before as u64 + 1, 3), seen(second as u64 + 1, 4)];
    assert_eq!(responses(&each).unwrap(), expected);
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
    assert_eq!(requests(&packets).unwrap(), [seen(2, 5), seen(5, 6)]);
    // Cut off, of another stream, broken by another frame.
    assert!(requests(&[PREFACE, &first]).is_err());
    assert!(requests(&[PREFACE, &first, &frame(CONTINUATION, END_HEADERS, 3, &block[4..])]).is_err());
    assert!(requests(&[PREFACE, &first, &frame(DATA, 0, 1, &block[4..])]).is_err());
    assert!(requests(&[PREFACE, &third]).is_err());
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
    assert_eq!(requests(&[&packet]).unwrap(), [seen(1, 1), seen(1, 2), seen(1, 3)]);
    let too_long = frame(HEADERS, END_HEADERS | PADDED, 1, &[9, 0x82]);
    assert!(requests(&[PREFACE, &too_long]).is_err());
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
    let nameless = Sighting { id: None, time_ns: 1 };
    assert_eq!(responses(&[&packet]).unwrap(), [seen(1, 8), seen(1, 9), nameless]);
}

#[test]
fn what_cannot_be_decoded_is_an_error() {
    // An index into a dynamic table in which nothing is.
    assert!(requests(&[PREFACE, &frame(HEADERS, END_HEADERS, 1, &[0xbe])]).is_err());
    assert!(requests(&[b"GET / HTTP/1.1\r\n"]).is_err());
    assert!(requests(&[PREFACE, &frame(PUSH_PROMISE, END_HEADERS, 1, &[0; 4])]).is_err());
}
