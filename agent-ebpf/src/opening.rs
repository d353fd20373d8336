//! What happens on a connection before its first message: [`smp_agent_abi::opening`] with what the kernel knows.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use smp_agent_abi::layout::{
    CLASS_HELD, CLASS_NONE, Destination, Direction, MULTIPLEXED, ROLE_ACCEPTED, SHARED, Segment, Socket,
    TURN_NONE, TURN_READING, TURN_WRITING, series,
};
use smp_agent_abi::opening::{
    CERTIFIED_BYTES, Knowledge, LONGEST_HELLO, OPENING_ANSWERED, OPENING_ASKED, OPENING_ASKED_AGAIN,
    OPENING_FIRST, OPENING_HELLO, OPENING_NEW, OPENING_OVER, OPENING_READY, OPENING_SECURED, SHORTEST_ANSWER,
    Seen, Written, is_alert, leads_elsewhere, on_read, on_write,
};
use smp_agent_abi::upstreams::Held;
use smp_agent_abi::word::Word as _;

use crate::departure::{self, add_value};
use crate::lane;
use crate::maps::{Counters, HANDSHAKES, LESS_ONE, counter};
use crate::offsets::{SOCK_DPORT, SOCK_V6_DADDR, SOCK_V6_RCV_SADDR, TCP_COPIED_SEQ, TCP_WRITE_SEQ, field};
use crate::socket::{Used, tcp};

const REQUEST: usize = Direction::Request as usize;
const RESPONSE: usize = Direction::Response as usize;

/// The proxy connects.
#[inline(always)]
pub fn begin(sk: *const c_void, socket: &mut Socket) {
    // SAFETY: `sk` is a program argument; offsets of these very fields.
    let (address, from, port) =
        unsafe { (field(sk, &SOCK_V6_DADDR), field(sk, &SOCK_V6_RCV_SADDR), field::<u16>(sk, &SOCK_DPORT)) };
    socket.elsewhere = u32::from(leads_elsewhere(from, address));
    socket.destination = Destination { address, port: u32::from(port), proxy_slot: socket.proxy_slot };
    // SAFETY: no precondition.
    socket.connecting_ns = unsafe { bpf_ktime_get_ns() };
    socket.opening = if Knowledge::is_handshake(known(socket)) { OPENING_HELLO } else { OPENING_NEW };
}

/// What is known of where a connection leads, 0 if nothing.
#[inline(always)]
fn known(socket: &Socket) -> u32 {
    // A copy: in Linux 6.1 no key may lie where an argument of a function points to.
    let destination = socket.destination;
    // SAFETY: the value is copied at once.
    unsafe { HANDSHAKES.get(&destination) }.copied().unwrap_or(0)
}

#[inline(always)]
fn learn(socket: &Socket, knowledge: Knowledge) {
    if known(socket) != knowledge as u32 {
        // A copy, as above.
        let destination = socket.destination;
        // Without memory for it the next connection shows it again.
        let _inserted = HANDSHAKES.insert(&destination, &(knowledge as u32), 0);
    }
}

/// The proxy has ended the handshake of a connection that it opened with so many bytes. A function of its own: see `write.rs`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn end_handshake(socket: *mut Socket, bytes: u32) -> u32 {
    // SAFETY: null, or of this type: the verifier checks the callers.
    let Some(socket) = (unsafe { socket.as_mut() }) else { return 0 };
    let before = known(socket) == Knowledge::MutualHandshake as u32;
    socket.certified = u32::from(before || bytes >= CERTIFIED_BYTES);
    let now = if socket.certified != 0 { Knowledge::MutualHandshake } else { Knowledge::Handshake };
    learn(socket, now);
    0
}

/// Whether a read of a connection may begin or continue a message.
#[inline(always)]
pub fn may_be_message(socket: &mut Socket, now_ns: u64) -> bool {
    if socket.opening == OPENING_OVER {
        return true;
    }
    let (opening, may_be) = on_read(socket.opening);
    socket.opening = opening;
    if !may_be {
        if opening != OPENING_READY {
            socket.turn = TURN_READING;
        }
        if let Some(lane) = lane::at(socket.lane) {
            lane.latest[RESPONSE].note(u64::from(socket.id), 0, now_ns);
        }
    }
    may_be
}

/// Whether a segment that brings so many bytes begins what is unread anew: the first response behind a handshake may come
/// while session tickets are unread, the end announced belongs to what came before it. `None` where this is not to be asked.
#[inline(always)]
pub fn begins_anew(socket: &Socket, bytes: u32) -> Option<bool> {
    let asked = socket.opening == OPENING_FIRST && socket.role != ROLE_ACCEPTED;
    asked.then(|| !is_alert(u64::from(bytes)))
}

/// More was read of a message. Behind a handshake what came before may have been the end of that.
#[inline(always)]
pub fn read_more(used: &Used<'_>, arrival_ns: u64, now_ns: u64) {
    if used.socket.opening == OPENING_FIRST
        && arrival_ns != 0
        && let Some(lane) = lane::at(used.socket.pending_lane)
    {
        lane.pending[used.inbound() as usize].restamp(used.socket.pending_tag, arrival_ns, now_ns);
    }
}

/// What is written to an accepted connection is the proxy's own answer: its first one may be that of a handshake.
#[inline(always)]
pub fn answered(socket: &mut Socket) {
    if matches!(socket.opening, OPENING_ASKED | OPENING_SECURED) {
        socket.opening = OPENING_FIRST;
    }
}

/// Whether what is written to a connection may begin or continue a message.
#[inline(always)]
pub fn is_message(sk: *const c_void, used: &mut Used<'_>, size: usize) -> Option<bool> {
    let after_read = used.socket.turn == TURN_READING;
    if used.socket.opening >= OPENING_FIRST && is_alert(size as u64) {
        // Settings acknowledged are as long in TLS 1.3 as the end announced is in 1.2, after which it does not matter.
        if after_read && used.socket.role != ROLE_ACCEPTED && used.socket.acknowledges_settings(size) {
            used.socket.multiplexed = MULTIPLEXED;
        }
        return Some(false);
    }
    if used.socket.role == ROLE_ACCEPTED {
        used.socket.opening = match used.socket.opening {
            OPENING_NEW if size as u64 >= u64::from(SHORTEST_ANSWER) => OPENING_ASKED,
            OPENING_FIRST if after_read => OPENING_SECURED,
            same @ (OPENING_FIRST | OPENING_SECURED) => same,
            _ => OPENING_OVER,
        };
        return Some(true);
    }
    if used.socket.opening == OPENING_SECURED {
        return Some(true);
    }
    // SAFETY: `tcp` is what the verifier knows as a `tcp_sock`.
    let (write_seq, copied_seq) =
        unsafe { (field::<u32>(tcp(sk)?, &TCP_WRITE_SEQ), field::<u32>(tcp(sk)?, &TCP_COPIED_SEQ)) };
    let socket = &mut *used.socket;
    let lane = lane::at(socket.lane)?;
    let [first, second, unread] = socket.opening_seq;
    let waiting = lane::at(socket.pending_lane)?.pending[RESPONSE].read_ns(socket.pending_tag).is_some();
    let latest = &lane.latest;
    let seen = Seen {
        unanswered: socket.pending_tag != 0 && waiting,
        after_read,
        at_once: socket.owner & SHARED != 0
            || latest[RESPONSE].id.load() == u64::from(socket.id)
                && latest[REQUEST].read_ns.load() <= latest[RESPONSE].read_ns.load(),
        repeated: second.wrapping_sub(first) == write_seq.wrapping_sub(second),
        short: write_seq.wrapping_sub(first) <= LONGEST_HELLO,
        long_answer: copied_seq.wrapping_sub(unread) >= SHORTEST_ANSWER,
    };
    let before = socket.opening;
    let (opening, written) = on_write(before, seen);
    socket.opening = opening;
    match opening {
        OPENING_ASKED if before == OPENING_NEW => socket.opening_seq = [write_seq, 0, copied_seq],
        OPENING_ASKED_AGAIN if before == OPENING_ANSWERED => {
            socket.opening_seq[1] = write_seq;
            ready(socket);
        }
        OPENING_READY => ready(socket),
        _ => {}
    }
    match written {
        Written::Handshake => {
            socket.first_departure_ns = 0;
            if opening == OPENING_READY {
                end_handshake(socket, size as u32);
                socket.turn = TURN_NONE;
            } else {
                socket.turn = TURN_WRITING;
            }
            return Some(false);
        }
        Written::Message => {}
        Written::MessageSoFar => {
            // What was read may have been taken for an answer of others: no proof against a handshake.
            if known(socket) == 0 {
                learn(socket, Knowledge::Message);
            }
            end(socket);
            release_answered(socket.lane, socket.upstream, socket.proxy_slot);
        }
        Written::Learned => {
            end_handshake(socket, write_seq.wrapping_sub(second));
            let tag = socket.pending_tag;
            socket.pending_tag = 0;
            if lane::at(socket.pending_lane)?.pending[RESPONSE].end(tag) {
                used.counters.add(counter!(pending), LESS_ONE);
                used.counters.add(counter!(local), 1);
            }
            socket.connected_ns = 0;
            socket.turn = TURN_NONE;
            if let Some(held) = lane.upstreams.release(socket.upstream) {
                write_again(socket, held, write_seq);
                return Some(false);
            }
        }
        Written::Forgotten => learn(socket, Knowledge::Message),
    }
    Some(true)
}

/// What was held is written only now: the write before was of the handshake.
#[inline(always)]
fn write_again(socket: &mut Socket, held: Held, write_seq: u32) {
    // SAFETY: no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    socket.turn = TURN_WRITING;
    carries(socket, held.arrival_ns, now_ns);
    socket.departing_arrival_ns = held.arrival_ns;
    socket.departing_read_ns = held.read_ns;
    socket.departing_write_ns = now_ns;
    socket.departing_seq = write_seq;
    socket.departing_class = held.class;
}

/// Whether what was just written to an opened connection is held until it is clear whether it was a message.
#[inline(always)]
pub fn hold(socket: &mut Socket) -> bool {
    // An accepted connection has a state of that name too; its first message is a response.
    if socket.role == ROLE_ACCEPTED
        || socket.opening != OPENING_ASKED
        || known(socket) == Knowledge::Message as u32
    {
        return false;
    }
    let Some(lane) = lane::at(socket.lane) else { return false };
    let held = Held {
        arrival_ns: socket.departing_arrival_ns,
        read_ns: socket.departing_read_ns,
        write_ns: socket.departing_write_ns,
        departure_ns: socket.first_departure_ns,
        class: socket.departing_class,
    };
    if !lane.upstreams.hold(socket.upstream, held) {
        return false;
    }
    socket.departing_class = if socket.first_departure_ns == 0 { CLASS_HELD } else { CLASS_NONE };
    true
}

/// The connection of that name in the lane at `place` was answered, or has ended, or is forgotten: what is held of it was
/// a message.
#[inline(always)]
pub fn release_answered(place: u32, name: u64, proxy_slot: u32) {
    if name != 0 && lane::at(place).is_some_and(|lane| lane.upstreams.holds(name)) {
        release(place, name, proxy_slot);
    }
}

/// A function of its own: see `write.rs`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn release(place: u32, name: u64, proxy_slot: u32) -> u32 {
    if let Some(lane) = lane::at(place)
        && let Some(counters) = Counters::beside(proxy_slot)
        && let Some(held) = lane.upstreams.release(name)
    {
        departure::record_one(proxy_slot, Direction::Request, &counters, held);
    }
    0
}

/// Whether what has come on a connection and was not noted as read is nothing but the end announced.
#[inline(always)]
pub fn is_end(socket: &Socket, bytes: u32) -> bool {
    socket.opening >= OPENING_FIRST && is_alert(u64::from(bytes))
}

/// The handshake is over.
#[inline(always)]
fn ready(socket: &mut Socket) {
    // SAFETY: no precondition.
    socket.established_ns = unsafe { bpf_ktime_get_ns() };
}

/// A write to a connection carries on a message that arrived then: its first one ends the opening. A connection that
/// was ready before was not waited for; it took until then to open.
#[inline(always)]
pub fn carries(socket: &mut Socket, arrival_ns: u64, now_ns: u64) {
    if socket.connecting_ns == 0 || socket.connected_ns != 0 {
        return;
    }
    let waited = arrival_ns < socket.established_ns;
    socket.connected_ns = if waited { now_ns } else { socket.established_ns };
    let early =
        matches!(socket.opening, OPENING_NEW | OPENING_ASKED | OPENING_ANSWERED | OPENING_ASKED_AGAIN);
    if !early || known(socket) == Knowledge::Message as u32 {
        end(socket);
    }
}

/// Records how long it took to open a connection that has carried a message, and how it began, once.
#[inline(always)]
pub fn end(socket: &mut Socket) {
    let (connecting_ns, connected_ns) = (socket.connecting_ns, socket.connected_ns);
    if connecting_ns != 0 && connected_ns != 0 {
        socket.connecting_ns = 0;
        let Some(counters) = Counters::beside(socket.proxy_slot) else { return };
        if socket.elsewhere != 0 {
            // One that opened before its destination was known may not have shown its handshake.
            let known = known(socket);
            let secured = matches!(socket.opening, OPENING_FIRST | OPENING_SECURED);
            // Not one call with one of three counters: programs call no pointers.
            if socket.certified != 0 || known == Knowledge::MutualHandshake as u32 {
                counters.add(counter!(opened_mutual_tls), 1);
            } else if secured || known == Knowledge::Handshake as u32 {
                counters.add(counter!(opened_tls), 1);
            } else {
                counters.add(counter!(opened_plain), 1);
            }
        }
        let series = series(Direction::Request, Segment::Connect);
        let took_ns = connected_ns.saturating_sub(connecting_ns);
        add_value(socket.proxy_slot, series, took_ns, counters.share());
    }
}
