//! Hand-made captures with known answers.

use std::net::SocketAddr;

use super::{Direction, Latencies, Packet, Side, Wire};
use crate::protocol::Protocol;
use crate::tcp;

use Direction::{Request, Response};
use Side::{Downstream, Upstream};

/// Where the sequence numbers of hand-made connections begin: they wrap around soon.
const FIRST: u32 = u32::MAX - 20;

fn request(id: u64) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nhost: bed\r\nX-Bed-Id: {id:016x}\r\n\r\n").into_bytes()
}

fn response(id: u64) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nserver: x\r\nx-bed-id: {id:016x}\r\ncontent-length: 2\r\n\r\nhi").into_bytes()
}

fn chunked_response(id: u64) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nx-bed-id: {id:016x}\r\ntransfer-encoding: chunked\r\n\r\n");
    // The content looks like a head.
    [head.as_bytes(), b"18\r\n", b"HTTP/1.1 200 OK\r\n\r\n.....", b"\r\n0\r\n\r\n"].concat()
}

/// The messages one after the other.
fn joined(messages: &[Vec<u8>]) -> Vec<u8> {
    messages.concat()
}

impl Wire {
    /// Takes a packet of the first connection on its side.
    fn see_packet(&mut self, side: Side, direction: Direction, time_ns: u64, payload: &[u8]) {
        self.see_bytes(side, direction, time_ns, 0, payload);
    }

    /// Takes a packet whose first byte is at this place of the first connection on its side.
    fn see_bytes(&mut self, side: Side, direction: Direction, time_ns: u64, place: usize, payload: &[u8]) {
        let sequence = FIRST.wrapping_add(u32::try_from(place).unwrap());
        self.observe(&Packet {
            side,
            direction,
            opener: opener(1),
            time_ns,
            sequence,
            opens: false,
            payload,
        })
        .unwrap();
    }

    /// Takes the first packet of a connection.
    fn see_opening(&mut self, side: Side, direction: Direction, time_ns: u64) {
        let sequence = FIRST.wrapping_sub(1);
        self.observe(&Packet {
            side,
            direction,
            opener: opener(1),
            time_ns,
            sequence,
            opens: true,
            payload: &[],
        })
        .unwrap();
    }
}

fn opener(port: u16) -> SocketAddr {
    ([10, 0, 0, 1], port).into()
}

fn of<const N: usize>(latencies_ns: [u64; N]) -> Latencies {
    latencies_ns.into_iter().collect()
}

mod starts {
    use super::*;

    #[test]
    fn each_direction_is_out_less_in() {
        let mut wire = Wire::new(Protocol::H1);
        wire.see_packet(Downstream, Request, 1_000, &request(1));
        wire.see_packet(Upstream, Request, 1_250, &request(1));
        wire.see_packet(Upstream, Response, 9_000, &response(1));
        wire.see_packet(Downstream, Response, 9_040, &response(1));
        assert_eq!(wire.latencies(Request), of([250]));
        assert_eq!(wire.latencies(Response), of([40]));
    }

    #[test]
    fn messages_that_overtake_each_other_keep_their_own_latency() {
        let mut wire = Wire::new(Protocol::H1);
        wire.see_packet(Downstream, Request, 100, &request(1));
        wire.see_packet(Downstream, Request, 200, &request(2));
        wire.see_packet(Upstream, Request, 300, &request(2));
        wire.see_packet(Upstream, Request, 900, &request(1));
        assert_eq!(wire.latencies(Request), of([100, 800]));
    }

    #[test]
    fn what_comes_and_goes_in_the_same_packets_is_one_burst() {
        let mut wire = Wire::new(Protocol::H1Pipelined);
        wire.see_packet(Downstream, Request, 100, &joined(&[request(1), request(2), request(3)]));
        wire.see_packet(Upstream, Request, 300, &joined(&[request(1), request(2)]));
        let place = joined(&[request(1), request(2)]).len();
        wire.see_bytes(Upstream, Request, 400, place, &request(3));
        assert_eq!(wire.latencies(Request), of([200, 200, 300]));
        assert_eq!(wire.bursts(Request), of([200, 300]));
    }

    #[test]
    fn the_first_packet_counts_and_a_retransmission_is_counted() {
        let mut wire = Wire::new(Protocol::H1);
        wire.see_packet(Downstream, Request, 100, &request(1));
        wire.see_packet(Upstream, Request, 150, &request(1));
        wire.see_packet(Upstream, Request, 350, &request(1));
        assert_eq!(wire.latencies(Request), of([50]));
        assert_eq!(wire.repeated, 1);
    }

    #[test]
    fn what_cannot_be_a_crossing_is_counted_apart() {
        let mut wire = Wire::new(Protocol::H1);
        wire.see_packet(Downstream, Request, 100, &request(1));
        wire.see_packet(Upstream, Request, 200, &request(2));
        wire.see_packet(Upstream, Response, 300, &response(3));
        wire.see_packet(Downstream, Response, 290, &response(3));
        wire.see_packet(Downstream, Request, 400, b"more of a body");
        wire.see_packet(Downstream, Request, 500, b"GET / HTTP/1.1\r\nhost: bed\r\n\r\n");
        let requests = wire.latencies(Request);
        assert_eq!((requests.count(), requests.one_sided), (0, 2));
        let responses = wire.latencies(Response);
        assert_eq!((responses.count(), responses.backwards), (0, 1));
        assert_eq!(wire.nameless, 1);
    }

    #[test]
    fn an_id_in_the_body_or_cut_by_the_snap_length_is_no_id() {
        let mut wire = Wire::new(Protocol::H1);
        let in_the_body = b"HTTP/1.1 200 OK\r\n\r\nx-bed-id: 0000000000000001\r\n";
        wire.see_packet(Downstream, Response, 1, in_the_body);
        wire.see_packet(Downstream, Response, 2, b"HTTP/1.1 200 OK\r\nx-bed-id: 00000000");
        assert_eq!(wire.nameless, 2);
    }
}

mod streams {
    use super::*;

    #[test]
    fn several_heads_in_a_packet_have_its_time() {
        let mut wire = Wire::new(Protocol::H1Pipelined);
        wire.see_packet(Downstream, Request, 100, &joined(&[request(1), request(2), request(3)]));
        wire.see_packet(Upstream, Request, 200, &request(1));
        wire.see_bytes(Upstream, Request, 300, request(1).len(), &joined(&[request(2), request(3)]));
        assert_eq!(wire.latencies(Request), of([100, 200, 200]));
        assert_eq!((wire.repeated, wire.nameless), (0, 0));
    }

    #[test]
    fn a_head_split_anywhere_has_the_time_of_its_first_byte() {
        let messages = joined(&[chunked_response(1), response(2), chunked_response(3)]);
        let starts = [0, chunked_response(1).len(), chunked_response(1).len() + response(2).len()];
        for split in 1..messages.len() {
            let mut wire = Wire::new(Protocol::H1Pipelined);
            wire.see_packet(Upstream, Response, 1_000, &messages);
            wire.see_bytes(Downstream, Response, 1_100, 0, &messages[..split]);
            wire.see_bytes(Downstream, Response, 1_500, split, &messages[split..]);
            let expected: Latencies =
                starts.map(|start| if start < split { 100 } else { 500 }).into_iter().collect();
            assert_eq!(wire.latencies(Response), expected, "split at {split}");
        }
    }

    #[test]
    fn bytes_that_come_again_or_early_are_read_once_and_in_order() {
        let messages = joined(&[request(1), request(2)]);
        let (first, second) = messages.split_at(request(1).len() - 3);
        let mut wire = Wire::new(Protocol::H1Pipelined);
        wire.see_opening(Downstream, Request, 10);
        wire.see_bytes(Downstream, Request, 120, first.len(), second);
        wire.see_bytes(Downstream, Request, 110, 0, first);
        // The whole again, and then a piece of the end with something new behind it.
        wire.see_bytes(Downstream, Request, 130, 0, &messages);
        let more = joined(&[second.to_vec(), request(3)]);
        wire.see_bytes(Downstream, Request, 140, first.len(), &more);
        wire.see_packet(Upstream, Request, 200, &joined(&[request(1), request(2), request(3)]));
        assert_eq!(wire.latencies(Request), of([60, 80, 90]));
        assert_eq!((wire.repeated, wire.retransmitted, wire.nameless), (0, 2, 0));
    }

    #[test]
    fn an_address_used_again_is_a_new_connection() {
        let mut wire = Wire::new(Protocol::Tcp);
        for id in [1, 2] {
            for (side, time_ns) in [(Downstream, 100 * id), (Upstream, 100 * id + 30)] {
                wire.see_opening(side, Request, time_ns);
                wire.see_bytes(side, Request, time_ns + 1, 0, &tcp::message(id));
            }
        }
        assert_eq!(wire.latencies(Request), of([30, 30]));
        assert_eq!(wire.repeated, 0);
    }

    #[test]
    fn raw_messages_have_their_direction_from_the_packet() {
        let mut wire = Wire::new(Protocol::TcpServerFirst);
        let greeting = tcp::message(tcp::GREETING | 1);
        wire.see_packet(Upstream, Response, 10, &greeting);
        wire.see_packet(Downstream, Response, 15, &greeting);
        wire.see_packet(Downstream, Request, 20, &tcp::message(1)[..30]);
        wire.see_bytes(Downstream, Request, 21, 30, &tcp::message(1)[30..]);
        wire.see_packet(Upstream, Request, 28, &tcp::message(1));
        wire.see_bytes(Upstream, Response, 30, 64, &tcp::message(1));
        wire.see_bytes(Downstream, Response, 33, 64, &tcp::message(1));
        assert_eq!(wire.latencies(Request), of([8]));
        assert_eq!(wire.latencies(Response), of([3, 5]));
    }

    #[test]
    fn what_is_not_the_protocol_is_an_error() {
        for (protocol, payload) in
            [(Protocol::Tcp, &[b'x'; 64][..]), (Protocol::H1Pipelined, b"\0\0\0 no head")]
        {
            let packet = Packet {
                side: Downstream,
                direction: Request,
                opener: opener(7),
                time_ns: 1,
                sequence: 1,
                opens: false,
                payload,
            };
            let error = Wire::new(protocol).observe(&packet).unwrap_err();
            assert!(
                format!("{error:#}").starts_with("the requests of 10.0.0.1:7 cannot be read: "),
                "{error:#}"
            );
        }
    }
}
