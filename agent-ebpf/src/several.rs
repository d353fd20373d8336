//! Writes to connections that carry several messages at once.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use smp_agent_abi::layout::{
    CLASS_AMBIGUOUS, CLASS_DRAINED, CLASS_NONE, Direction, MULTIPLEXED, OTHERS_WEIGHT, ROLE_ACCEPTED, SHARED,
    Socket, TURN_READING, TURN_WRITING, is_record,
};
use smp_agent_abi::pending::Drained;
use smp_agent_abi::word::Word as _;

use crate::maps::{Counters, counter};
use crate::offsets::{TCP_WRITE_SEQ, field};
use crate::own::note_record;
use crate::socket::{Used, tcp};
use crate::write::forget_records;
use crate::{departure, lane};

/// Whether a connection that is about to be answered has brought several messages with its last read, where others of its
/// side do too. It is taken to carry several at once then. A function of its own: see `write.rs`.
#[inline(always)]
pub fn shows(socket: &mut Socket) -> bool {
    show(socket) != 0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn show(socket: *mut Socket) -> u32 {
    // SAFETY: null, or of this type: the verifier checks the callers.
    let Some(socket) = (unsafe { socket.as_mut() }) else { return 0 };
    if socket.role != ROLE_ACCEPTED || socket.turn != TURN_READING || socket.owner & SHARED != 0 {
        return 0;
    }
    let Some(lane) = lane::at(socket.lane) else { return 0 };
    let latest = &lane.latest[Direction::Request as usize];
    let shown = latest.several.load() != 0
        && latest.id.load() == u64::from(socket.id)
        && latest.starved.load() * u64::from(OTHERS_WEIGHT) >= u64::from(MULTIPLEXED);
    if shown {
        socket.multiplexed = MULTIPLEXED;
    }
    u32::from(shown)
}

/// A write to a connection that carries several messages at once: it takes all that its lane has read, or its share where
/// others are written to as well. It takes none if it goes on with a message: nginx writes a head and then its body. Nor if it
/// has the length of a control record and follows at once on what was read from that connection.
#[inline(always)]
pub fn on_write(sk: *const c_void, used: Used<'_>, size: usize) -> Option<()> {
    let current = lane::current(used.socket, used.tgid, used.tid)?;
    let lane = current.lane;
    if is_record(size, 1)
        && !current.shared
        && lane.has_just_read(used.inbound() as usize, u64::from(used.socket.id))
    {
        note_record(used.socket, current.place, size, true);
        return None;
    }
    if used.socket.turn == TURN_WRITING && size as u64 <= used.socket.unwritten_bytes {
        used.socket.unwritten_bytes -= size as u64;
        lane.note_more_written(used.outbound() as usize, size as u64);
        return None;
    }
    forget_records(&used, current.place);
    let mut drained = Drained::default();
    drain_for(current.place, used.outbound() as u32, used.socket.id, size as u64, &mut drained);
    let count = drained.singles + drained.batches;
    used.socket.unwritten_bytes = drained.unwritten;
    let outbound = used.outbound() as usize;
    let latest = &lane.latest[outbound];
    let socket = used.socket;
    // One that was read since its last message has an answer to come, or may bring a request.
    let record = socket.role != ROLE_ACCEPTED && is_record(size, socket.records);
    let owed = socket.turn == TURN_READING && !record && latest.arrival_ns.load() != 0;
    socket.turn = TURN_WRITING;
    if drained.rest != 0 {
        return carry_rest(sk, socket, &used.counters, [drained.arrival_ns, drained.read_ns]);
    }
    if count == 0 {
        if !owed {
            return None;
        }
        lane.note_latest(outbound);
        latest.starved.add(1);
        return carry_rest(sk, socket, &used.counters, [latest.arrival_ns.load(), latest.read_ns.load()]);
    }
    used.counters.add(counter!(pending), drained.singles.wrapping_neg());
    used.counters.add(counter!(seen), drained.batches);
    used.counters.add(counter!(departing), count);
    if socket.departing_class == CLASS_DRAINED {
        // The write before has not left yet: this one goes with it.
        socket.drained_end = drained.end;
        socket.drained_count += count as u32;
        return None;
    }
    departure::give_up(socket, &used.counters);
    socket.drained_start = drained.start;
    socket.drained_end = drained.end;
    socket.drained_count = count as u32;
    // SAFETY: no precondition.
    socket.departing_write_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY: `tcp` is what the verifier knows as a `tcp_sock`.
    socket.departing_seq = unsafe { field(tcp(sk)?, &TCP_WRITE_SEQ) };
    socket.departing_class = CLASS_DRAINED;
    Some(())
}

/// A write to a multiplexed connection carries on more of a segment that another one has begun. Together with what was
/// written before and has not left yet it is one message.
#[inline(always)]
fn carry_rest(
    sk: *const c_void,
    socket: &mut Socket,
    counters: &Counters,
    [arrival_ns, read_ns]: [u64; 2],
) -> Option<()> {
    if socket.departing_class != CLASS_NONE {
        return None;
    }
    counters.add(counter!(seen), 1);
    counters.add(counter!(departing), 1);
    socket.departing_arrival_ns = arrival_ns;
    socket.departing_read_ns = read_ns;
    // SAFETY: no precondition.
    socket.departing_write_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY: `tcp` is what the verifier knows as a `tcp_sock`.
    socket.departing_seq = unsafe { field(tcp(sk)?, &TCP_WRITE_SEQ) };
    socket.departing_class = CLASS_AMBIGUOUS;
    Some(())
}

/// Takes what the lane at `place` has read in a direction, for a write of so many bytes to the multiplexed connection of
/// this number.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn drain_for(place: u32, direction: u32, id: u32, bytes: u64, drained: *mut Drained) -> u32 {
    // SAFETY: null, or of this type: the verifier checks the callers.
    if let (Some(lane), Some(drained)) = (lane::at(place), unsafe { drained.as_mut() }) {
        *drained = lane.drain(direction as usize, u64::from(id), bytes, |drained| {
            drain_some(place, direction, drained);
        });
    }
    0
}

/// [`Lane::drain_some`](smp_agent_abi::lane::Lane::drain_some) of the lane at `place`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn drain_some(place: u32, direction: u32, drained: *mut Drained) -> u32 {
    // SAFETY: null, or of this type: the verifier checks the callers.
    if let (Some(lane), Some(drained)) = (lane::at(place), unsafe { drained.as_mut() }) {
        lane.drain_some(direction as usize, drained);
    }
    0
}
