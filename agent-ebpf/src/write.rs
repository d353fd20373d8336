//! `write`: the proxy hands the first bytes of the forwarded message to the outgoing socket. Here a message
//! finds its cause.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_ebpf::macros::{btf_tracepoint, fentry};
use aya_ebpf::programs::{BtfTracePointContext, FEntryContext};
use smp_agent_abi::layout::{
    ANSWERED_AGAIN_READS, CLASS_AMBIGUOUS, CLASS_EXACT, CLASS_NONE, CONTINUED_BYTES, CONTINUED_WEIGHT,
    Direction, Loss, MULTIPLEXED, RECORD_BYTES, ROLE_ACCEPTED, SHARED, Socket, TURN_OWN, TURN_READING,
    TURN_UNKNOWN, TURN_WRITING, is_record,
};
use smp_agent_abi::opening::{OPENING_ASKED_AGAIN, OPENING_OVER};
use smp_agent_abi::pending::Claim;
use smp_agent_abi::word::Word as _;

use crate::lane::{self, Current};
use crate::maps::{Counters, LESS_ONE, Lane, counter};
use crate::offsets::{MSG_COUNT, SOCK_STATE, TCP_WRITE_SEQ, field, is_empty};
use crate::own::{follows_own_read, is_local_reply, is_own_answer, note_record};
use crate::socket::{Used, in_use, is_multiplexed, tcp};
use crate::word::cleared;
use crate::{departure, opening, several};

/// How often more ended messages are cleared away where one claim cannot pass over all of them.
const FAR_STEPS: usize = 16;

// include/net/tcp_states.h
const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;

/// `tcp_sendmsg_locked(sk, msg, skb, size_goal)`: a send call is about to queue bytes. Linux 6.16 and later.
#[btf_tracepoint(function = "tcp_sendmsg_locked")]
pub fn write(ctx: BtfTracePointContext) -> i32 {
    if is_empty() {
        return 0;
    }
    // SAFETY: a program argument.
    let size = unsafe { field(ctx.arg(1), &MSG_COUNT) };
    on_write(ctx.arg(0), size);
    0
}

/// Entry of `tcp_sendmsg_locked(sk, msg, size)`: the same for kernels without its tracepoint.
#[fentry(function = "tcp_sendmsg_locked")]
pub fn write_entry(ctx: FEntryContext) -> i32 {
    if is_empty() {
        return 0;
    }
    on_entry(ctx.arg(0), ctx.arg(2));
    0
}

/// Entry of `do_tcp_sendpages(sk, page, offset, size, flags)`: before Linux 6.5 the way of `sendfile` and `splice` to
/// a socket, beside `tcp_sendmsg_locked`.
#[fentry(function = "do_tcp_sendpages")]
pub fn write_pages(ctx: FEntryContext) -> i32 {
    if is_empty() {
        return 0;
    }
    on_entry(ctx.arg(0), ctx.arg(3));
    0
}

/// `sock_send_length(sk, ret, flags)`: a send call returns; the fallback where its beginning cannot be had.
/// The first segment has usually left by then, so the departure stands for the write too.
#[btf_tracepoint(function = "sock_send_length")]
pub fn write_return(ctx: BtfTracePointContext) -> i32 {
    if is_empty() {
        return 0;
    }
    let sent: i32 = ctx.arg(1);
    if sent > 0 {
        on_write(ctx.arg(0), sent as usize);
    }
    0
}

/// The tracepoint comes behind these checks of the kernel: a call on a connection that is not open yet, or not any
/// more, queues nothing.
#[inline(always)]
fn on_entry(sk: *const c_void, size: usize) -> Option<()> {
    // SAFETY: `sk` is a program argument.
    let open = matches!(unsafe { field::<u8>(sk, &SOCK_STATE) }, ESTABLISHED | CLOSE_WAIT);
    if open && size > 0 { on_write(sk, size) } else { None }
}

#[inline(always)]
fn on_write(sk: *const c_void, size: usize) -> Option<()> {
    let mut used = in_use(sk)?;
    used.counters.add_written(used.outbound(), size as u64);
    if is_multiplexed(used.socket) || several::shows(used.socket) {
        return several::on_write(sk, used, size);
    }
    if used.socket.opening != OPENING_OVER && !opening::is_message(sk, &mut used, size)? {
        return None;
    }
    let follows = follows_own_read(used.socket);
    if follows != 0 && is_record(size, follows - 1) {
        note_record(used.socket, used.socket.pending_lane, size, true);
        count_local(&used);
        if used.socket.role != ROLE_ACCEPTED {
            // SAFETY: no precondition.
            lane::note_unread(used.socket, unsafe { bpf_ktime_get_ns() });
        }
        return None;
    }
    if is_acknowledgement(used.socket, size) {
        used.socket.multiplexed = MULTIPLEXED;
        count_local(&used);
        return None;
    }
    // Only the first write after a read starts a message: the rest are its continuation.
    let turn = used.socket.turn;
    if turn == TURN_WRITING {
        note_continued(sk, used.socket, size);
        return None;
    }
    if turn == TURN_OWN && is_own_answer(used.socket) {
        return None;
    }
    used.socket.turn = TURN_WRITING;
    let current = lane::current(used.socket, used.tgid, used.tid);
    let waits = used.socket.role != ROLE_ACCEPTED;
    let newest = match &current {
        Some(current) if current.shared => {
            current.lane.newest(used.outbound() as usize, used.tid, lane::recent(used.tid)?)
        }
        _ => 0,
    };
    if is_local_reply(&mut used, newest) {
        lane::note_waiting(used.socket, waits);
        used.socket.turn = TURN_OWN;
        return None;
    }
    // SAFETY: no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    // Without a lane what was read is lost, and was counted so.
    let Current { place, handed, shared, .. } = current?;
    let answered = lane::at(place).map_or(0, Lane::has_just_read_response);
    forget_records(&used, place);
    if begins_on_its_own(used.socket, place) != 0 {
        lane::note_waiting(used.socket, waits);
        used.socket.turn = TURN_OWN;
        count_local(&used);
        return None;
    }
    clear_fronts(place);
    let mut newest = newest;
    if shared {
        newest_or_left(place, used.outbound() as u32, &mut newest);
    }
    let mut claim = MaybeUninit::uninit();
    // SAFETY: numbers and truth values.
    let claim = unsafe { cleared::<Claim>(&mut claim) };
    claim_for(used.socket, place, newest, now_ns, claim);
    if claim.too_far {
        let expired = claim.expired;
        for _ in 0..FAR_STEPS {
            clear_fronts(place);
        }
        claim_for(used.socket, place, 0, now_ns, claim);
        claim.expired += expired;
    }
    // Behind the claim: another thread that looks between the two sees no message too many.
    lane::note_waiting(used.socket, waits);
    if claim.expired > 0 {
        used.counters.add(counter!(pending), claim.expired.wrapping_neg());
        used.counters.add(counter!(unmatched), claim.expired);
    }
    if turn == TURN_UNKNOWN {
        // It may be in the middle of a message: that keeps its place among the others and gets no latency.
        claim.arrival_ns = 0;
        if claim.is_nothing() {
            used.counters.add(counter!(seen), 1);
            used.counters.lose(Loss::NoArrival);
            return None;
        }
    }
    // It was counted where it was ended.
    if claim.missing {
        return None;
    }
    if claim.is_nothing() {
        if goes_on(&used, size, answered, u32::from(follows != 0), now_ns) {
            return None;
        }
        if follows != 0 && used.socket.role != ROLE_ACCEPTED {
            // What was read has not gone on: the next write may be the message that it precedes.
            used.socket.turn = turn;
            count_local(&used);
            return None;
        }
        if from_latest(used.socket, claim, turn, u32::from(size > RECORD_BYTES), now_ns) == 0 {
            return None;
        }
    }
    // SAFETY: `tcp` is what the verifier knows as a `tcp_sock`.
    let write_seq: u32 = unsafe { field(tcp(sk)?, &TCP_WRITE_SEQ) };
    carry(used.socket, claim, write_seq, now_ns, u32::from(handed));
    Some(())
}

// Functions of their own, which the kernel verifies once, for any arguments, and not again on each path that calls
// them. They return a number because it asks for one.

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn clear_fronts(place: u32) -> u32 {
    if let Some(lane) = lane::at(place) {
        lane.clear_fronts();
    }
    0
}

/// Notes on `socket` what the write to it carries on, until that departs. `handed` is not 0 if its request may have been handed to
/// another thread.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn carry(
    socket: *mut Socket,
    claim: *const Claim,
    write_seq: u32,
    now_ns: u64,
    handed: u32,
) -> u32 {
    // SAFETY: null, or of these types: the verifier checks the callers.
    let (Some(socket), Some(claim)) = (unsafe { socket.as_mut() }, unsafe { claim.as_ref() }) else {
        return 0;
    };
    let Some(counters) = Counters::of_call(socket.proxy_slot) else { return 0 };
    if claim.too_far {
        counters.add(counter!(seen), 1);
        counters.lose(Loss::SearchLimit);
        return 0;
    }
    if claim.batch {
        counters.add(counter!(seen), 1);
    } else {
        counters.add(counter!(pending), LESS_ONE);
    }
    counters.add(counter!(departing), 1);
    if handed != 0 && socket.role == ROLE_ACCEPTED {
        lane::note_answered(socket, claim.read_ns, true);
    }
    opening::carries(socket, claim.arrival_ns, now_ns);
    opening::release_answered(socket.lane, claim.upstream, socket.proxy_slot);
    socket.departing_arrival_ns = claim.arrival_ns;
    socket.departing_read_ns = claim.read_ns;
    socket.departing_write_ns = now_ns;
    socket.departing_seq = write_seq;
    socket.departing_class = if claim.alone && !claim.batch { CLASS_EXACT } else { CLASS_AMBIGUOUS };
    let before_write = departure::comes_before_write() && socket.first_departure_ns != 0;
    if before_write {
        socket.departing_write_ns = socket.first_departure_ns;
    }
    if !claim.batch && opening::hold(socket) {
        return 0;
    }
    if before_write {
        departure::record(socket, &counters, socket.first_departure_ns);
    }
    0
}

/// [`Lane::forget_records`](smp_agent_abi::lane::Lane::forget_records) of the lane at `place`.
#[inline(always)]
pub fn forget_records(used: &Used<'_>, place: u32) {
    let ended = u64::from(forget_records_at(place, used.outbound() as u32));
    if ended != 0 {
        used.counters.add(counter!(pending), ended.wrapping_neg());
        used.counters.add(counter!(local), ended);
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn forget_records_at(place: u32, direction: u32) -> u32 {
    if let Some(lane) = lane::at(place) {
        return lane.forget_records(direction as usize, |position, round, quiet_since_ns| {
            u64::from(forget_record(place, direction, position, round, quiet_since_ns))
        }) as u32;
    }
    0
}

/// [`Lane::forget_record`](smp_agent_abi::lane::Lane::forget_record) of the lane at `place`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn forget_record(
    place: u32,
    direction: u32,
    position: u64,
    round: u64,
    quiet_since_ns: u64,
) -> u32 {
    lane::at(place)
        .map_or(0, |lane| lane.forget_record(direction as usize, position, round, quiet_since_ns) as u32)
}

/// [`Lane::begins_on_its_own`](smp_agent_abi::lane::Lane::begins_on_its_own) of the lane at `place`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn begins_on_its_own(socket: *const Socket, place: u32) -> u32 {
    // SAFETY: null, or of this type: the verifier checks the callers.
    let Some(socket) = (unsafe { socket.as_ref() }) else { return 0 };
    let opened = socket.role != ROLE_ACCEPTED;
    u32::from(opened && lane::at(place).is_some_and(|lane| lane.begins_on_its_own(socket.upstream)))
}

/// Sets what a thread takes of those that share the lane at `place`: as [`Lane::newest_or_left`].
///
/// [`Lane::newest_or_left`]: smp_agent_abi::lane::Lane::newest_or_left
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn newest_or_left(place: u32, direction: u32, newest: *mut u64) -> u32 {
    // SAFETY: null, or of this type: the verifier checks the callers.
    if let (Some(lane), Some(newest)) = (lane::at(place), unsafe { newest.as_mut() }) {
        *newest = lane.newest_or_left(direction as usize, *newest);
    }
    0
}

/// Claims the message that a write to `socket` carries on, from the lane at `place`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn claim_for(socket: *mut Socket, place: u32, newest: u64, now_ns: u64, claim: *mut Claim) -> u32 {
    // SAFETY: null, or of these types: the verifier checks the callers.
    let (Some(socket), Some(claim)) = (unsafe { socket.as_mut() }, unsafe { claim.as_mut() }) else {
        return 0;
    };
    let Some(lane) = lane::at(place) else { return 0 };
    // SAFETY: no precondition.
    let random = unsafe { bpf_get_prandom_u32() };
    if socket.role == ROLE_ACCEPTED {
        let request = if socket.pending_lane == place { socket.pending_tag } else { 0 };
        let id = u64::from(socket.id);
        verify(place, request);
        *claim = lane.claim_response(now_ns, random, id, request, socket.upstream, newest);
        socket.upstream = claim.usual;
    } else {
        predict(place, socket.upstream);
        *claim = lane.claim_request(now_ns, random, socket.upstream, newest);
        socket.downstream = claim.downstream as u32;
    }
    0
}

/// [`Lane::predict`](smp_agent_abi::lane::Lane::predict) of the lane at `place`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn predict(place: u32, upstream: u64) -> u32 {
    if let Some(lane) = lane::at(place) {
        lane.predict(upstream);
    }
    0
}

/// [`Lane::verify`](smp_agent_abi::lane::Lane::verify) of the lane at `place`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn verify(place: u32, request: u64) -> u32 {
    if let Some(lane) = lane::at(place) {
        lane.verify(request);
    }
    0
}

/// Sets the cause of a write that found nothing pending: the request whose connection seemed to be answered, or the latest
/// read of its lane, if that connection carries several messages at once. Else it has none: 0. `long` is 1 if it is longer
/// than a control record.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn from_latest(socket: *mut Socket, claim: *mut Claim, turn: u32, long: u32, now_ns: u64) -> u32 {
    // SAFETY: null, or of these types: the verifier checks the callers.
    let (Some(socket), Some(claim)) = (unsafe { socket.as_mut() }, unsafe { claim.as_mut() }) else {
        return 0;
    };
    let (Some(lane), Some(counters)) = (lane::at(socket.lane), Counters::of_call(socket.proxy_slot)) else {
        return 0;
    };
    let accepted = socket.role == ROLE_ACCEPTED;
    if !accepted && let Some(reclaimed) = lane.reclaim(socket.upstream) {
        *claim = reclaimed;
        return 1;
    }
    let outbound = if accepted { Direction::Response } else { Direction::Request };
    let latest = &lane.latest[outbound as usize];
    // It is owed an answer, or may be a request.
    let expected = if accepted { turn == TURN_READING } else { long != 0 };
    if expected {
        lane.note_starved(outbound as usize, turn == TURN_OWN);
    }
    if latest.arrival_ns.load() != 0 && expected {
        (claim.arrival_ns, claim.read_ns) = (latest.arrival_ns.load(), latest.read_ns.load());
        claim.batch = true;
        lane.note_latest(outbound as usize);
        return 1;
    }
    if accepted && turn == TURN_READING {
        counters.add(counter!(seen), 1);
        counters.add(counter!(unmatched), 1);
        return 0;
    }
    // A later write of the same socket may still carry a message on.
    socket.turn = TURN_OWN;
    if !accepted {
        lane::note_unread(socket, now_ns);
    }
    if turn != TURN_OWN {
        counters.add(counter!(seen), 1);
        counters.add(counter!(local), 1);
    }
    0
}

/// One more write to a connection that was not read since. To an opened one, although requests wait: it may have carried
/// them. To an accepted one, when a response was just read: it may be of another request.
#[inline(always)]
fn note_continued(sk: *const c_void, socket: &mut Socket, size: usize) -> Option<()> {
    let lane = lane::at(socket.lane)?;
    if socket.role == ROLE_ACCEPTED {
        if lane.has_just_read_response() != 0 {
            socket.answered_again = ANSWERED_AGAIN_READS;
        }
        return None;
    }
    if !lane.pending[Direction::Request as usize].any_live() {
        return None;
    }
    // SAFETY: no precondition.
    lane.note_continued(unsafe { bpf_ktime_get_ns() });
    // SAFETY: `tcp` is what the verifier knows as a `tcp_sock`.
    let written = unsafe { field::<u32>(tcp(sk)?, &TCP_WRITE_SEQ) }.wrapping_sub(socket.departing_seq);
    let more = lane.latest[Direction::Request as usize].more_ns.load() > socket.departing_write_ns;
    if socket.owner & SHARED == 0 && written as usize + size <= CONTINUED_BYTES && !more {
        socket.multiplexed += CONTINUED_WEIGHT;
    }
    Some(())
}

/// Ends the response that a write to an opened connection comes from: see `Lane::go_on`. 1 if it did. The thread may also have been
/// handed a request that another has read.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn go_on(socket: *const Socket, at_once: u64, before: u32, now_ns: u64) -> u32 {
    // SAFETY: null, or of this type: the verifier checks the callers.
    let Some(socket) = (unsafe { socket.as_ref() }) else { return 0 };
    let Some(lane) = lane::at(socket.lane) else { return 0 };
    if !lane.go_on(socket.upstream, at_once != 0, before != 0) {
        return 0;
    }
    lane::note_unread(socket, now_ns);
    1
}

/// True if a write that found no request is the second one for a request whose answer was just read, of whoever was
/// asked first.
#[inline(always)]
fn goes_on(used: &Used<'_>, size: usize, at_once: u64, before: u32, now_ns: u64) -> bool {
    let socket = &used.socket;
    // What is written within a handshake has no request either.
    let may = socket.role != ROLE_ACCEPTED && size > RECORD_BYTES && socket.opening != OPENING_ASKED_AGAIN;
    if !may || go_on(*socket, at_once, before, now_ns) == 0 {
        return false;
    }
    used.counters.add(counter!(pending), LESS_ONE);
    used.counters.add(counter!(local), 1);
    count_local(used);
    true
}

/// True if a write to an opened connection acknowledges its server's HTTP/2 settings, whatever else was read meanwhile: it
/// will carry several messages at once. Of accepted ones that does not say as much: many have one request at a time each.
#[inline(always)]
fn is_acknowledgement(socket: &Socket, size: usize) -> bool {
    socket.role != ROLE_ACCEPTED && socket.turn == TURN_READING && socket.acknowledges_settings(size)
}

/// One message that begins and ends in the proxy.
#[inline(always)]
fn count_local(used: &Used<'_>) {
    used.counters.add(counter!(seen), 1);
    used.counters.add(counter!(local), 1);
}

/// `CLASS_NONE` is what a zeroed state says.
const _: () = assert!(CLASS_NONE == 0);
