//! `read`: the proxy's receive call takes the bytes of a message.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use smp_agent_abi::layout::{
    Direction, Loss, MOST_STARVED, MULTIPLEXED, NOTED, OPENING_MESSAGES, OTHERS_WEIGHT, RECORD_BYTES,
    ROLE_ACCEPTED, SHARED, SHARED_WEIGHT, STARVED_WEIGHT, Socket, TURN_NONE, TURN_OWN, TURN_READING,
    TURN_UNKNOWN, is_empty_frame, is_record,
};
use smp_agent_abi::word::Word as _;

use crate::maps::{LESS_ONE, Lane, counter};
use crate::offsets::{SOCK_OWNED, SOCK_SHUTDOWN, TCP_COPIED_SEQ, TCP_RCV_NXT, field, is_empty};
use crate::own::note_record;
use crate::socket::{Used, in_use, is_multiplexed, tcp};
use crate::{departure, lane, opening};

/// The peer has ended its stream: `RCV_SHUTDOWN` of the kernel's include/net/sock.h.
const RCV_SHUTDOWN: u8 = 1;

/// `tcp_rcv_space_adjust(sk)`: bytes were copied out of a socket, by any kind of receive call (`splice` and io_uring
/// too): after each packet, or of a splice once. Connections without data do not pass here, nor other protocols.
#[btf_tracepoint(function = "tcp_rcv_space_adjust")]
pub fn read(ctx: BtfTracePointContext) -> i32 {
    if is_empty() {
        return 0;
    }
    on_copied(ctx.arg(0));
    0
}

/// `sock_recv_length(sk, ret, flags)`: a receive call returns; `ret` is 0 when it only peeked. The fallback: it does
/// not see `splice`, and does see calls that found nothing.
#[btf_tracepoint(function = "sock_recv_length")]
pub fn read_return(ctx: BtfTracePointContext) -> i32 {
    if is_empty() {
        return 0;
    }
    if ctx.arg::<i32>(1) > 0 {
        on_return(ctx.arg(0), ctx.arg::<i32>(1) as u64);
    }
    0
}

#[inline(always)]
fn on_copied(sk: *const c_void) -> Option<()> {
    // Kernel subsystems read in softirq, on top of whichever process is there; a system call holds the lock.
    // SAFETY: `sk` is a program argument.
    if unsafe { field::<u32>(sk, &SOCK_OWNED) } == 0 {
        return None;
    }
    let used = in_use(sk)?;
    let tcp = tcp(sk)?;
    let (before, copied_seq) = note_copied(tcp, used.socket)?;
    let taken = copied_seq.wrapping_sub(before);
    // A peek takes nothing.
    if taken == 0 || taken == 1 && is_end(sk, tcp, copied_seq) {
        return None;
    }
    used.counters.add_read(used.inbound(), u64::from(taken));
    on_read(tcp, used, before)
}

/// How far the socket was read before, and how far it is now. `None` where there was nothing but the end announced: its
/// parts are read one by one, and what is not noted as read is whole when the next one is.
#[inline(always)]
fn note_copied(tcp: *const c_void, socket: &mut Socket) -> Option<(u32, u32)> {
    let before = socket.copied_seq;
    // SAFETY: `tcp` is what the verifier knows as a `tcp_sock`.
    let (copied, received, shutdown) = unsafe {
        (
            field::<u32>(tcp, &TCP_COPIED_SEQ),
            field::<u32>(tcp, &TCP_RCV_NXT),
            field::<u8>(tcp, &SOCK_SHUTDOWN),
        )
    };
    // The end of the stream has a number of its own.
    let bytes = received.wrapping_sub(before).wrapping_sub(u32::from(shutdown & RCV_SHUTDOWN));
    if opening::is_end(socket, bytes) {
        return None;
    }
    socket.copied_seq = copied;
    Some((before, copied))
}

/// True if the byte before `copied_seq` is the end of the stream, which `splice` takes as if it were a byte.
#[inline(always)]
fn is_end(sk: *const c_void, tcp: *const c_void, copied_seq: u32) -> bool {
    // SAFETY: `sk` is a program argument, `tcp` what the verifier knows as a `tcp_sock`.
    let (shutdown, received) = unsafe { (field::<u8>(sk, &SOCK_SHUTDOWN), field::<u32>(tcp, &TCP_RCV_NXT)) };
    shutdown & RCV_SHUTDOWN != 0 && copied_seq == received
}

#[inline(always)]
fn on_return(sk: *const c_void, taken: u64) -> Option<()> {
    let (tcp, used) = (tcp(sk)?, in_use(sk)?);
    used.counters.add_read(used.inbound(), taken);
    let (before, _) = note_copied(tcp, used.socket)?;
    on_read(tcp, used, before)
}

/// The socket was read beyond `before`.
#[inline(always)]
fn on_read(tcp: *const c_void, mut used: Used<'_>, before: u32) -> Option<()> {
    // SAFETY: no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let arrival_ns = take_arrival(tcp, used.socket);
    if !is_multiplexed(used.socket) && !opening::may_be_message(used.socket, now_ns) {
        return None;
    }
    if is_multiplexed(used.socket) || brings_several(tcp, &mut used, before) {
        return on_batch(tcp, used, before, arrival_ns, now_ns);
    }
    // Only the first read after a write starts a message: the rest are its continuation.
    if used.socket.turn == TURN_READING && !end_record(&mut used, before, arrival_ns) {
        opening::read_more(&used, arrival_ns, now_ns);
        if used.socket.pending_tag != 0
            && let Some(lane) = lane::at(used.socket.pending_lane)
        {
            lane.note_read(used.inbound() as usize, used.socket.pending_tag);
            lane.latest[used.inbound() as usize].more_ns.store(now_ns);
        }
        return note_reader(&used);
    }
    if is_acknowledgement(tcp, used.socket, before) {
        used.socket.records += 1;
        used.counters.add(counter!(seen), 1);
        used.counters.add(counter!(local), 1);
        return None;
    }
    let own = is_answer_to_own(&used);
    used.socket.turn = TURN_READING;
    used.socket.start_seq = before;
    used.socket.first_departure_ns = 0;
    used.counters.add(counter!(seen), 1);
    // An answer to what was never seen to leave.
    departure::give_up(used.socket, &used.counters);
    end_superseded(&used);
    let Some(current) = lane::current(used.socket, used.tgid, used.tid) else {
        used.socket.pending_tag = 0;
        used.counters.lose(Loss::ThreadsFull);
        return None;
    };
    let latest = &current.lane.latest[used.inbound() as usize];
    // Where others of its side carry several messages at once, so may this one, before it is known to.
    let stamp_ns = if latest.several.load() != 0 && !current.shared { arrival_ns } else { 0 };
    let starved = latest.note(u64::from(used.socket.id), stamp_ns, now_ns);
    // Below `MULTIPLEXED` here, or it were a batch.
    let [requests, responses] = &current.lane.latest;
    let others = requests.several.load() | responses.several.load();
    let records = if used.socket.role == ROLE_ACCEPTED { used.socket.records } else { 0 };
    let weight = match others as u32 | records | used.socket.answered_again {
        _ if current.shared => SHARED_WEIGHT,
        0 => STARVED_WEIGHT,
        _ => OTHERS_WEIGHT,
    };
    used.socket.answered_again = used.socket.answered_again.saturating_sub(1);
    let evidence = used.socket.multiplexed.saturating_sub(1);
    used.socket.multiplexed = evidence + (starved as u32).min(MOST_STARVED) * weight;
    let waits = used.socket.role == ROLE_ACCEPTED;
    lane::note_waiting(used.socket, waits);
    let socket = &used.socket;
    if socket.role != ROLE_ACCEPTED && current.lane.goes_nowhere(socket.upstream, own) {
        used.socket.pending_tag = 0;
        used.counters.add(counter!(local), 1);
        opening::release_answered(current.place, used.socket.upstream, used.socket.proxy_slot);
        return None;
    }
    let tag = if socket.role == ROLE_ACCEPTED && may_be_record(tcp, current.lane, before) {
        current.lane.push_record(arrival_ns, now_ns, u64::from(socket.id))
    } else if socket.role == ROLE_ACCEPTED {
        current.lane.push_request(arrival_ns, now_ns, u64::from(socket.id), socket.upstream)
    } else {
        current.lane.push_response(arrival_ns, now_ns, socket.upstream, u64::from(socket.downstream))
    };
    match tag {
        Some(tag) => {
            used.socket.pending_tag = tag;
            used.socket.pending_lane = current.place;
            used.counters.add(counter!(pending), 1);
        }
        None => {
            used.socket.pending_tag = 0;
            used.counters.lose(Loss::PendingFull);
        }
    }
    note_reader(&used)
}

/// Whether a connection on which control records were seen brings as many bytes as several messages of others of its lane that
/// carry several at once. It is taken to do so too then. Not as it begins: with HTTP/2's preface and settings.
#[inline(always)]
fn brings_several(tcp: *const c_void, used: &mut Used<'_>, before: u32) -> bool {
    let socket = &mut *used.socket;
    if socket.records == 0 || socket.settled <= OPENING_MESSAGES || socket.owner & SHARED != 0 {
        return false;
    }
    // SAFETY: `tcp` is what the verifier knows as a `tcp_sock`.
    let bytes = unsafe { field::<u32>(tcp, &TCP_RCV_NXT) }.wrapping_sub(before);
    let inbound = u32::from(socket.role != ROLE_ACCEPTED);
    let several = are_several(socket.lane, inbound, bytes) != 0;
    if several {
        socket.multiplexed = MULTIPLEXED;
    }
    several
}

/// [`Lane::are_several`](smp_agent_abi::lane::Lane::are_several) of the lane at `place`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn are_several(place: u32, direction: u32, bytes: u32) -> u32 {
    lane::at(place).map_or(0, |lane| u32::from(lane.are_several(direction as usize, u64::from(bytes))))
}

/// True if what has come on an accepted connection may be a control record: others of its lane carry several messages at once. No
/// longer ones: a request of 120 bytes has the length of seven window updates in a TLS record.
#[inline(always)]
fn may_be_record(tcp: *const c_void, lane: &Lane, before: u32) -> bool {
    // SAFETY: `tcp` is what the verifier knows as a `tcp_sock`.
    let bytes = unsafe { field::<u32>(tcp, &TCP_RCV_NXT) }.wrapping_sub(before) as usize;
    lane.latest[Direction::Request as usize].several.load() != 0 && bytes <= RECORD_BYTES
}

/// True if what has come on an accepted connection acknowledges the proxy's HTTP/2 settings, which it has just written.
#[inline(always)]
fn is_acknowledgement(tcp: *const c_void, socket: &Socket, before: u32) -> bool {
    // SAFETY: `tcp` is what the verifier knows as a `tcp_sock`.
    let bytes = unsafe { field::<u32>(tcp, &TCP_RCV_NXT) }.wrapping_sub(before) as usize;
    socket.role == ROLE_ACCEPTED && socket.turn == TURN_OWN && socket.acknowledges_settings(bytes)
}

/// True if what was read of the socket so far was a control record, which ends here: it is short, and more arrived
/// after it was read while nothing was written for it, or it has ended as one before.
#[inline(always)]
fn end_record(used: &mut Used<'_>, before: u32, arrival_ns: u64) -> bool {
    let inbound = used.inbound() as usize;
    let socket = &mut *used.socket;
    let bytes = before.wrapping_sub(socket.start_seq) as usize;
    // HTTP/2 begins with settings, of any length.
    let opening = socket.settled <= OPENING_MESSAGES;
    if socket.pending_tag == 0 || !opening && !is_record(bytes, 1) {
        return false;
    }
    let Some(lane) = lane::at(socket.pending_lane) else { return false };
    let set = &lane.pending[inbound];
    let several = lane.latest[inbound].several.load() as u32;
    let settings = opening && several != 0 && set.has_rested(socket.pending_tag, arrival_ns);
    if !settings && !is_record(bytes, socket.records | several) {
        return false;
    }
    if set.was_record(socket.pending_tag, arrival_ns) {
        note_record(socket, socket.pending_lane, bytes, false);
        return true;
    }
    if set.was_written_long_ago(socket.pending_tag, arrival_ns) {
        // One alone may be a short message that comes in parts; where many do, a write took the record of another connection.
        note_record(socket, socket.pending_lane, bytes, false);
        return false;
    }
    let Some(read_ns) = set.read_ns(socket.pending_tag) else { return false };
    // What arrived before may be the rest of a message that is read in parts.
    if arrival_ns <= read_ns && !is_empty_frame(bytes) || !set.end(socket.pending_tag) {
        return false;
    }
    note_record(socket, socket.pending_lane, bytes, false);
    used.counters.add(counter!(pending), LESS_ONE);
    used.counters.add(counter!(local), 1);
    true
}

/// A read of a socket that carries several messages at once. Each of its segments is taken for a message.
#[inline(always)]
fn on_batch(tcp: *const c_void, used: Used<'_>, before: u32, arrival_ns: u64, now_ns: u64) -> Option<()> {
    let current = lane::current(used.socket, used.tgid, used.tid)?;
    let inbound = used.inbound() as usize;
    let set = &current.lane.pending[inbound];
    let socket = used.socket;
    if socket.pending_tag != 0 {
        // From before it was known.
        let ended =
            lane::at(socket.pending_lane).is_some_and(|lane| lane.pending[inbound].end(socket.pending_tag));
        if ended {
            used.counters.add(counter!(pending), LESS_ONE);
            used.counters.add(counter!(unmatched), 1);
        }
        socket.pending_tag = 0;
    }
    socket.turn = TURN_READING;
    lane::note_waiting(socket, false);
    if socket.noted == 0 && socket.noted_end[NOTED - 1] == 0 {
        socket.noted_end[NOTED - 1] = before;
    }
    // SAFETY: `tcp` is what the verifier knows as a `tcp_sock`.
    let (copied, received) = unsafe { (field::<u32>(tcp, &TCP_COPIED_SEQ), field::<u32>(tcp, &TCP_RCV_NXT)) };
    let is_new = |socket: &Socket| {
        reaches(copied, socket.noted_end[socket.noted_taken.wrapping_sub(1) as usize % NOTED])
    };
    if socket.noted_taken != 0 && !is_new(socket) {
        // The rest of a segment.
        return None;
    }
    current.lane.latest[inbound].several.store(1);
    current.lane.begin_turn(arrival_ns, now_ns);
    forget_stale(current.place, inbound as u32);
    // What is left of so short a read was a control record. Where threads share the lane, another one may still be about
    // to write it on, unless something was written since.
    let writes = current.lane.writes(inbound) as u32;
    let is_left = if current.shared { writes != socket.batch_writes } else { is_short(before, socket) };
    socket.batch_writes = writes;
    let mut forgotten = false;
    if is_left {
        for back in 0..NOTED as u64 {
            if socket.batch_start + back < socket.batch_end {
                forgotten |= set.forget(socket.batch_start + back);
            }
        }
    }
    if forgotten {
        note_record(socket, current.place, before.wrapping_sub(socket.start_seq) as usize, false);
    }
    socket.start_seq = before;
    let (mut first, mut last, mut latest_ns) = (u64::MAX, 0, arrival_ns);
    for _ in 0..NOTED {
        let taken = socket.noted_taken;
        if taken == socket.noted || taken != 0 && !is_new(socket) {
            break;
        }
        let bytes;
        (latest_ns, bytes) = socket.take_noted(before);
        if let Some(position) = current.lane.push_segment(inbound, latest_ns, now_ns, bytes) {
            first = first.min(position);
            last = position + 1;
        }
    }
    // Segments that came when too many were noted already are one.
    if socket.noted_taken == socket.noted && is_new(socket) {
        let end = &mut socket.noted_end[socket.noted.wrapping_sub(1) as usize % NOTED];
        let bytes = received.wrapping_sub(*end);
        *end = received;
        if arrival_ns != 0
            && let Some(position) = current.lane.push_segment(inbound, arrival_ns, now_ns, bytes)
        {
            first = first.min(position);
            last = position + 1;
            latest_ns = arrival_ns;
        }
    }
    // Which of the requests that were written to it is answered is not known.
    current.lane.note_answer(0);
    socket.batch_start = first;
    socket.batch_end = last;
    current.lane.latest[inbound].note(u64::from(socket.id), latest_ns, now_ns);
    Some(())
}

/// A function of its own: see `write.rs`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn forget_stale(place: u32, direction: u32) -> u32 {
    if let Some(lane) = lane::at(place) {
        lane.forget_stale(direction as usize);
    }
    0
}

/// Whether what was read before is no longer than a control record.
#[inline(always)]
const fn is_short(before: u32, socket: &Socket) -> bool {
    before.wrapping_sub(socket.start_seq) as usize <= RECORD_BYTES
}

/// True if the bytes up to `copied` are more than those up to `end`.
#[inline(always)]
const fn reaches(copied: u32, end: u32) -> bool {
    copied.wrapping_sub(end).cast_signed() > 0
}

/// True if what is read answers a request of the proxy's own, a health check for instance: it was written for no cause,
/// and nothing that was read before still waits, as it does within a TLS handshake. Where threads share a lane a write
/// may find no cause for other reasons.
#[inline(always)]
fn is_answer_to_own(used: &Used<'_>) -> bool {
    let socket = &used.socket;
    if socket.role == ROLE_ACCEPTED || socket.turn != TURN_OWN || socket.owner & SHARED != 0 {
        return false;
    }
    lane::at(socket.pending_lane)
        .is_some_and(|lane| !lane.pending[used.inbound() as usize].is_live(socket.pending_tag))
}

/// Where threads share a lane, the last to read of a message is the likeliest to write it. Where they do not, one that has not
/// begun it shows that they should.
#[inline(always)]
fn note_reader(used: &Used<'_>) -> Option<()> {
    if used.socket.owner & SHARED == 0 {
        return lane::note_more(used.socket, used.tid);
    }
    if used.socket.pending_tag != 0 {
        let lane = lane::at(used.socket.pending_lane)?;
        lane.note_reader(used.inbound() as usize, used.socket.pending_tag, used.tid, lane::recent(used.tid)?);
    }
    Some(())
}

/// A message that still waits when the next one is read from its socket went nowhere: a response to the
/// proxy's own request, say. Left where it is it would stand before all later ones.
#[inline(always)]
fn end_superseded(used: &Used<'_>) {
    if used.socket.pending_tag == 0 {
        return;
    }
    let Some(lane) = lane::at(used.socket.pending_lane) else { return };
    let set = &lane.pending[used.inbound() as usize];
    let opened = used.socket.role != ROLE_ACCEPTED;
    if used.socket.owner & SHARED != 0 {
        // Another message was taken in its place, whose own write is still to come.
        if !lane.has_surplus() {
            set.orphan(used.socket.pending_tag);
            return;
        }
    } else if opened && lane.is_still_to_come() {
        return;
    }
    if set.end(used.socket.pending_tag) {
        used.counters.add(counter!(pending), LESS_ONE);
        used.counters.add(counter!(unmatched), 1);
    }
}

/// When the bytes just read arrived; what is left unread keeps a stamp of its own.
#[inline(always)]
fn take_arrival(tcp: *const c_void, socket: &mut Socket) -> u64 {
    let arrival_ns = socket.arrival_ns;
    // Cleared before the look at the receive queue: bytes that come after that look then leave their stamp.
    // SAFETY: a field of a map value; volatile keeps the order.
    unsafe { (&raw mut socket.arrival_ns).write_volatile(0) };
    // SAFETY: `tcp` is what the verifier knows as a `tcp_sock`.
    let (copied, received) = unsafe { (field::<u32>(tcp, &TCP_COPIED_SEQ), field::<u32>(tcp, &TCP_RCV_NXT)) };
    if copied != received && socket.arrival_ns == 0 {
        socket.arrival_ns = socket.ready_ns;
    }
    match socket.turn {
        TURN_UNKNOWN => 0,
        TURN_NONE if arrival_ns == 0 => socket.established_ns,
        _ => arrival_ns,
    }
}
