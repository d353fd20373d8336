extern crate std;
use super::*;
use std::vec::Vec;

/// What was read waits, and is as long as a server's answer to a hello; the next write follows at once.
const WAITS: Seen = Seen {
    unanswered: true,
    after_read: true,
    at_once: true,
    repeated: false,
    short: true,
    long_answer: true,
};
/// It was carried on.
const CARRIED: Seen = Seen { unanswered: false, ..WAITS };

/// Goes through reads (`None`) and writes; returns the state and what the last write was.
fn through(mut opening: u32, steps: &[Option<Seen>]) -> (u32, Option<Written>) {
    let mut last = None;
    for step in steps {
        match step {
            None => opening = on_read(opening).0,
            Some(seen) => {
                let (next, written) = on_write(opening, *seen);
                (opening, last) = (next, Some(written));
            }
        }
    }
    (opening, last)
}

#[test]
fn a_handshake_is_learned_when_the_request_is_written() {
    let tls13 = [Some(WAITS), None, Some(WAITS), Some(WAITS)];
    assert_eq!(through(OPENING_NEW, &tls13), (OPENING_FIRST, Some(Written::Learned)));
    let tls12 = [Some(WAITS), None, Some(WAITS), None, Some(WAITS)];
    assert_eq!(through(OPENING_NEW, &tls12), (OPENING_FIRST, Some(Written::Learned)));
}

#[test]
fn messages_are_no_handshake() {
    let kept = [Some(WAITS), None, Some(CARRIED)];
    assert_eq!(through(OPENING_NEW, &kept), (OPENING_OVER, Some(Written::MessageSoFar)));
    // The next request is written before the response of the first has gone on.
    let early = [Some(WAITS), None, Some(WAITS), None, Some(CARRIED)];
    assert_eq!(through(OPENING_NEW, &early), (OPENING_OVER, Some(Written::MessageSoFar)));
    // Sent again, twice, since the server answered that it cannot.
    let repeated = Some(Seen { repeated: true, ..WAITS });
    let retried = [Some(WAITS), None, Some(WAITS), None, repeated];
    assert_eq!(through(OPENING_NEW, &retried), (OPENING_OVER, Some(Written::MessageSoFar)));
    // A request with much behind it, and the next in parts, while the response waits.
    let long = Some(Seen { short: false, ..WAITS });
    let parts = [Some(WAITS), long, None, long, long];
    assert_eq!(through(OPENING_NEW, &parts), (OPENING_OVER, Some(Written::Message)));
    // HTTP/2: settings are acknowledged, then comes the next request.
    let short = Some(Seen { long_answer: false, ..WAITS });
    assert_eq!(
        through(OPENING_NEW, &[Some(WAITS), None, short]),
        (OPENING_OVER, Some(Written::MessageSoFar))
    );
}

#[test]
fn a_known_handshake_is_left_out() {
    let mut opening = OPENING_HELLO;
    let mut messages = Vec::new();
    // TLS 1.3: hello in two writes, the answer in two reads, the last word, the request; its response after tickets.
    for (place, step) in ['w', 'w', 'r', 'r', 'w', 'w', 'r', 'r', 'w'].into_iter().enumerate() {
        let message = if step == 'w' {
            let (next, written) = on_write(opening, WAITS);
            opening = next;
            written == Written::Message
        } else {
            let (next, may_be) = on_read(opening);
            opening = next;
            may_be
        };
        if message {
            messages.push(place);
        }
    }
    assert_eq!(messages, [5, 6, 7, 8]);
    assert_eq!(opening, OPENING_SECURED);
    // TLS 1.2: the server has the last word.
    let tls12 = [Some(WAITS), None, Some(WAITS), None, Some(WAITS)];
    assert_eq!(through(OPENING_HELLO, &tls12), (OPENING_FIRST, Some(Written::Message)));
}

#[test]
fn a_handshake_that_is_none_any_more_is_forgotten() {
    let later = Some(Seen { at_once: false, ..WAITS });
    assert_eq!(through(OPENING_HELLO, &[Some(WAITS), None, later]), (OPENING_OVER, Some(Written::Forgotten)));
}

#[test]
fn only_an_alert_has_the_length_of_one() {
    let alerts: Vec<_> = (0..64).filter(|&bytes| is_alert(bytes)).collect();
    assert_eq!(alerts, [23, 24, 31]);
}

#[test]
fn another_host_is_neither_this_one_nor_the_loopback() {
    let words = |address: core::net::IpAddr| {
        let octets = match address {
            core::net::IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            core::net::IpAddr::V6(address) => address.octets(),
        };
        let word = |half: usize| u64::from_ne_bytes(core::array::from_fn(|at| octets[half * 8 + at]));
        [word(0), word(1)]
    };
    let elsewhere = |from: &str, to: &str| {
        let [from, to] = [from, to].map(|address| words(address.parse().unwrap()));
        leads_elsewhere(from, to)
    };
    for (from, to) in
        [("10.0.0.1", "10.0.0.2"), ("10.0.0.1", "128.0.0.1"), ("fd00::1", "fd00::2"), ("fd00::2", "::2")]
    {
        assert!(elsewhere(from, to), "{from} to {to}");
    }
    for (from, to) in [
        ("10.0.0.1", "10.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("10.0.0.1", "127.3.2.1"),
        ("127.0.0.6", "10.0.0.1"),
        ("::1", "::1"),
        ("fd00::1", "fd00::1"),
    ] {
        assert!(!elsewhere(from, to), "{from} to {to}");
    }
}
