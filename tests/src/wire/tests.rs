//! Hand-made captures with known answers.

use super::{Direction, Latencies, Side, Wire};

fn request(id: u64) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nhost: bed\r\nX-Bed-Id: {id:016x}\r\n\r\n").into_bytes()
}

fn response(id: u64) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nserver: x\r\nx-bed-id: {id:016x}\r\ncontent-length: 2\r\n\r\nhi").into_bytes()
}

fn of(sorted_ns: impl IntoIterator<Item = u64>) -> Latencies {
    Latencies { sorted_ns: sorted_ns.into_iter().collect(), ..Latencies::default() }
}

#[test]
fn each_direction_is_out_less_in() {
    let mut wire = Wire::default();
    wire.observe(Side::Downstream, 1_000, &request(1));
    wire.observe(Side::Upstream, 1_250, &request(1));
    wire.observe(Side::Upstream, 9_000, &response(1));
    wire.observe(Side::Downstream, 9_040, &response(1));
    assert_eq!(wire.latencies(Direction::Request), of([250]));
    assert_eq!(wire.latencies(Direction::Response), of([40]));
}

#[test]
fn messages_that_overtake_each_other_keep_their_own_latency() {
    let mut wire = Wire::default();
    wire.observe(Side::Downstream, 100, &request(1));
    wire.observe(Side::Downstream, 200, &request(2));
    wire.observe(Side::Upstream, 300, &request(2));
    wire.observe(Side::Upstream, 900, &request(1));
    assert_eq!(wire.latencies(Direction::Request), of([100, 800]));
}

#[test]
fn the_first_packet_counts_and_a_retransmission_is_counted() {
    let mut wire = Wire::default();
    wire.observe(Side::Downstream, 100, &request(1));
    wire.observe(Side::Upstream, 150, &request(1));
    wire.observe(Side::Upstream, 350, &request(1));
    assert_eq!(wire.latencies(Direction::Request), of([50]));
    assert_eq!(wire.repeated, 1);
}

#[test]
fn what_cannot_be_a_crossing_is_counted_apart() {
    let mut wire = Wire::default();
    wire.observe(Side::Downstream, 100, &request(1));
    wire.observe(Side::Upstream, 200, &request(2));
    wire.observe(Side::Upstream, 300, &response(3));
    wire.observe(Side::Downstream, 290, &response(3));
    wire.observe(Side::Downstream, 400, b"more of a body");
    wire.observe(Side::Downstream, 500, b"GET / HTTP/1.1\r\nhost: bed\r\n\r\n");
    let requests = wire.latencies(Direction::Request);
    assert_eq!((requests.count(), requests.one_sided), (0, 2));
    let responses = wire.latencies(Direction::Response);
    assert_eq!((responses.count(), responses.backwards), (0, 1));
    assert_eq!((wire.continuations, wire.nameless), (1, 1));
    assert_eq!((requests.mean_ns(), requests.quantile_ns(500)), (None, None));
}

#[test]
fn an_id_in_the_body_or_cut_by_the_snap_length_is_no_id() {
    let mut wire = Wire::default();
    wire.observe(Side::Downstream, 1, b"HTTP/1.1 200 OK\r\n\r\nx-bed-id: 0000000000000001\r\n");
    wire.observe(Side::Downstream, 2, b"HTTP/1.1 200 OK\r\nx-bed-id: 00000000");
    assert_eq!(wire.nameless, 2);
}

#[test]
fn quantiles_are_exact_ranks() {
    let thousand = of(1..=1000);
    assert_eq!([500, 900, 990, 999].map(|q| thousand.quantile_ns(q)), [500, 900, 990, 999].map(Some));
    let three = of([10, 20, 90]);
    assert_eq!(
        [1, 333, 334, 666, 667, 999].map(|q| three.quantile_ns(q)),
        [10, 10, 20, 20, 90, 90].map(Some)
    );
    assert_eq!(three.mean_ns(), Some(40.0));
    assert_eq!(of([7]).quantile_ns(999), Some(7));
}
