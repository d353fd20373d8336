//! Processes that begin and end while the agent watches.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use smp_agent_abi::layout::{PROCESS_EXEC, PROCESS_EXIT, PROCESS_FORK, ProcessEvent, SHARED};

use smp_agent_abi::names::hint_place;

use crate::maps::{Counters, EVENTS, PROXIES, PROXY_HINTS, RECENT, THREADS, counter, proxy_of};
use crate::offsets::{TASK_PID, TASK_TGID, field};
use crate::{cost, lane};

/// `sched_process_exec(task, old_pid, bprm)`: user space looks whether the new program is a proxy.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn exec(_: BtfTracePointContext) -> i32 {
    tell(PROCESS_EXEC, (bpf_get_current_pid_tgid() >> 32) as u32);
    0
}

/// `sched_process_fork(parent, child)`: a proxy's worker is that proxy.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn fork(ctx: BtfTracePointContext) -> i32 {
    on_fork(ctx.arg(1));
    0
}

#[inline(always)]
fn on_fork(child: *const c_void) -> Option<()> {
    let parent_tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let slot = proxy_of(parent_tgid)?;
    // SAFETY: a program argument.
    let (pid, tgid) = unsafe { (field::<u32>(child, &TASK_PID), field::<u32>(child, &TASK_TGID)) };
    // A thread of the same process has its process's tgid.
    if pid == tgid
        && PROXY_HINTS.set(hint_place(tgid), 1, 0).is_ok()
        && PROXIES.insert(&tgid, &slot, 0).is_ok()
    {
        tell(PROCESS_FORK, tgid);
    }
    Some(())
}

/// `sched_process_exit(task, ...)`: a thread ends; what it had read goes nowhere.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn exit(_: BtfTracePointContext) -> i32 {
    on_exit();
    0
}

#[inline(always)]
fn on_exit() -> Option<()> {
    let pid_tgid = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((pid_tgid >> 32) as u32, pid_tgid as u32);
    let slot = proxy_of(tgid)?;
    cost::end(tid, slot);
    // Absent unless its process shares a lane.
    let _removed = RECENT.remove(&tid);
    let counters = Counters::beside(slot)?;
    if tid == tgid {
        tell(PROCESS_EXIT, tgid);
        end_lane(tgid | SHARED, &counters);
    }
    end_lane(tid, &counters);
    Some(())
}

/// Ends what the owner of a lane had read, and frees its place.
#[inline(always)]
fn end_lane(owner: u32, counters: &Counters) -> Option<()> {
    // SAFETY: the value is copied at once.
    let place = *unsafe { THREADS.get(&owner) }?;
    let ended = lane::at(place)?.clear();
    counters.add(counter!(pending), ended.wrapping_neg());
    counters.add(counter!(unmatched), ended);
    if THREADS.remove(&owner).is_ok() {
        lane::free(owner, place);
    }
    Some(())
}

#[inline(always)]
fn tell(kind: u32, tgid: u32) {
    // A full buffer loses the news, not the process: the next look at /proc finds it.
    if let Some(mut entry) = EVENTS.reserve::<ProcessEvent>(0) {
        entry.write(ProcessEvent { kind, tgid });
        entry.submit(0);
    }
}
