//! What proxies cost their node: who runs on each CPU, and whom softirqs serve.
//!
//! Time of proxies is the kernel's own count for their threads (`sum_exec_runtime`); time of others is what is between two
//! switches. The kernel does not trace each switch: seen on Linux 6.18, where a thread of init's went without, and up to 600 ms of the
//! next task would have been its own.
//!
//! All state is of one CPU. A switch of tasks comes with interrupts off, a softirq is not left for another task: no two of
//! these programs run on one CPU at a time, so that counting needs no atomic instructions.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use smp_agent_abi::layout::{Cost, NO_PROXY, Running, Share, TaskTimes, WAIT_SERIES};

use crate::departure::add_value;
use crate::maps::{COSTS, RUNNING, TASKS, proxy_of};
use crate::offsets::{
    IRQ_TIME_APART, OTHERS_SLOT, TASK_PID, TASK_RAN, TASK_RUN_DELAY, TASK_STIME, TASK_TGID, TASK_UTIME,
    field, is_empty,
};

/// `sched_switch(preempt, prev, next, prev_state)`: a CPU goes from one task to another.
#[btf_tracepoint(function = "sched_switch")]
pub fn switch(ctx: BtfTracePointContext) -> i32 {
    if is_empty() {
        return 0;
    }
    let gave_up = ctx.arg::<u32>(0) & 1 == 0 && ctx.arg::<u32>(3) != 0;
    on_switch(ctx.arg(1), ctx.arg(2), gave_up);
    0
}

/// `softirq_entry(vec_nr)`: softirqs of one kind begin on this CPU.
#[btf_tracepoint(function = "softirq_entry")]
pub fn softirq_begin(_: BtfTracePointContext) -> i32 {
    if is_empty() {
        return 0;
    }
    if let Some(running) = running() {
        // SAFETY: no precondition.
        let now_ns = unsafe { bpf_ktime_get_ns() };
        running.softirq_since_ns = now_ns;
        running.served_until_ns = now_ns;
        running.served = NO_PROXY;
    }
    0
}

/// `softirq_exit(vec_nr)`: they end.
#[btf_tracepoint(function = "softirq_exit")]
pub fn softirq_end(_: BtfTracePointContext) -> i32 {
    if is_empty() {
        return 0;
    }
    on_softirq_end();
    0
}

#[inline(always)]
fn running<'a>() -> Option<&'a mut Running> {
    // SAFETY: a value of this CPU, which nothing else changes meanwhile.
    RUNNING.get_ptr_mut(0).and_then(|running| unsafe { running.as_mut() })
}

#[inline(always)]
fn cost<'a>(slot: u32) -> Option<&'a mut Cost> {
    // SAFETY: as above.
    COSTS.get_ptr_mut(slot).and_then(|cost| unsafe { cost.as_mut() })
}

#[inline(always)]
fn on_switch(prev: *const c_void, next: *const c_void, gave_up: bool) -> Option<()> {
    // SAFETY: no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let running = running()?;
    let others = OTHERS_SLOT.load() as u32;
    if running.since_ns != 0
        && let Some(cost) = cost(running.slot)
    {
        // SAFETY: a program argument.
        let traced = running.pid == unsafe { field::<u32>(prev, &TASK_PID) };
        // One that has ended may be forgotten already, one that has just begun may have become known.
        let slot = if traced && running.slot < others { running.slot } else { slot_of(prev) };
        let between_ns = now_ns.saturating_sub(running.since_ns).saturating_sub(running.softirq_ns);
        let ran_ns =
            if slot < others { add_times(prev, slot, traced.then_some(&*running), gave_up) } else { 0 };
        // Who was to run by the last switch that was traced, as far as nobody else did.
        if running.slot >= others {
            cost.on_cpu_ns += between_ns.saturating_sub(ran_ns);
        }
    }
    // SAFETY: a program argument.
    let pid = unsafe { field::<u32>(next, &TASK_PID) };
    running.since_ns = now_ns;
    running.softirq_ns = 0;
    running.slot = slot_of(next);
    running.pid = pid;
    // Of all but idle: which tasks are a proxy's may be known only when this one is switched from, half a second later where
    // nobody else wants its CPU.
    if pid != 0 {
        running.times = times(next);
    }
    Some(())
}

/// The slot of a task in the `COSTS` map.
#[inline(always)]
fn slot_of(task: *const c_void) -> u32 {
    let others = OTHERS_SLOT.load() as u32;
    // SAFETY: a program argument.
    let (pid, tgid) = unsafe { (field::<u32>(task, &TASK_PID), field::<u32>(task, &TASK_TGID)) };
    match pid {
        0 => others + 1,
        _ => proxy_of(tgid).unwrap_or(others),
    }
}

/// What the kernel has counted for a task so far.
#[inline(always)]
fn times(task: *const c_void) -> TaskTimes {
    // SAFETY: a program argument.
    unsafe {
        TaskTimes {
            user_ns: field(task, &TASK_UTIME),
            system_ns: field(task, &TASK_STIME),
            run_delay_ns: field(task, &TASK_RUN_DELAY),
            ran_ns: field(task, &TASK_RAN),
        }
    }
}

/// Adds what the kernel has counted for a thread of the proxy in `slot` since it last ran; returns for how long it did, ns. A
/// thread that waits may go from CPU to CPU, and its waiting is counted each time: so the difference to when it was switched
/// to, in `running` if that was seen, does not do.
#[inline(always)]
fn add_times(task: *const c_void, slot: u32, running: Option<&Running>, gave_up: bool) -> u64 {
    // SAFETY: a program argument.
    let tid = unsafe { field::<u32>(task, &TASK_PID) };
    let now = times(task);
    let mut before = running.map_or(now, |running| running.times);
    // SAFETY: a value of the map; a thread runs on one CPU at a time.
    if let Some(known) = TASKS.get_ptr_mut(&tid).and_then(|known| unsafe { known.as_mut() }) {
        // Else of an earlier thread with this number.
        if known.ran_ns <= before.ran_ns && known.run_delay_ns <= before.run_delay_ns {
            before = *known;
        }
        *known = now;
    } else {
        // Without room for it the difference to when it was switched to has to do.
        let _inserted = TASKS.insert(&tid, &now, 0);
    }
    let Some(cost) = cost(slot) else { return 0 };
    if gave_up {
        cost.voluntary += 1;
    } else {
        cost.involuntary += 1;
    }
    let mut ran_ns = now.ran_ns.saturating_sub(before.ran_ns);
    if IRQ_TIME_APART.load() == 0
        && let Some(running) = running
    {
        ran_ns = ran_ns.saturating_sub(running.softirq_ns);
    }
    cost.on_cpu_ns += ran_ns;
    cost.user_ticks_ns += now.user_ns.saturating_sub(before.user_ns);
    cost.system_ticks_ns += now.system_ns.saturating_sub(before.system_ns);
    // Interrupts are off, and nobody else counts in this series.
    let waited_ns = now.run_delay_ns.saturating_sub(before.run_delay_ns);
    add_value(slot, WAIT_SERIES, waited_ns, (Share::Beside, true));
    ran_ns
}

#[inline(always)]
fn on_softirq_end() -> Option<()> {
    let running = running()?;
    let since_ns = running.softirq_since_ns;
    if since_ns == 0 {
        return None;
    }
    // SAFETY: no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    running.softirq_since_ns = 0;
    if running.served != NO_PROXY {
        cost(running.served)?.softirq_caused_ns += now_ns.saturating_sub(running.served_until_ns);
    }
    if running.since_ns != 0 {
        let took_ns = now_ns.saturating_sub(since_ns);
        running.softirq_ns += took_ns;
        cost(running.slot)?.softirq_borne_ns += took_ns;
    }
    Some(())
}

/// A thread of the proxy in this slot ends. The proxy may be forgotten before the thread's last switch, and may have become
/// known only after the thread was switched to.
#[inline(always)]
pub fn end(tid: u32, slot: u32) -> Option<()> {
    let running = running()?;
    // Nothing where switches are not seen.
    if running.pid == tid {
        running.slot = slot;
    }
    Some(())
}

/// A segment reaches a socket of the proxy in this slot, or of nobody's ([`NO_PROXY`]), now. The time since the last one went to
/// what that set off, the time before the first to bringing it here.
#[inline(always)]
pub fn serve(slot: u32, now_ns: u64) -> Option<()> {
    let running = running()?;
    // In a system call, the backlog of its socket: its time is the task's.
    if running.softirq_since_ns == 0 {
        return None;
    }
    let slot = if slot == NO_PROXY { OTHERS_SLOT.load() as u32 } else { slot };
    let whose = if running.served == NO_PROXY { slot } else { running.served };
    cost(whose)?.softirq_caused_ns += now_ns.saturating_sub(running.served_until_ns);
    running.served_until_ns = now_ns;
    running.served = slot;
    Some(())
}
