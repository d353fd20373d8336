//! What proxies and all others cost a CPU, and what the CPU is doing.

/// What one proxy, or all other processes, cost on one CPU. All only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Cost {
    /// Time its threads ran, without softirqs that ran on top of them, ns.
    pub on_cpu_ns: u64,
    /// Of that and those softirqs, what the kernel's tick found in user mode, ns. Of proxies only, as the next four.
    pub user_ticks_ns: u64,
    /// ... and in the kernel, ns.
    pub system_ticks_ns: u64,
    /// Times a thread gave the CPU up by itself.
    pub voluntary: u64,
    /// Times it was taken away.
    pub involuntary: u64,
    /// Time of softirqs that ran on top of its threads, whomever they served, ns.
    pub softirq_borne_ns: u64,
    /// Time of softirqs that served its sockets, on top of whomever they ran, ns.
    pub softirq_caused_ns: u64,
}

/// What one CPU is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Running {
    /// When the task that runs was switched to, ns; 0 until a switch was seen.
    pub since_ns: u64,
    /// Time of softirqs on top of it since then, ns.
    pub softirq_ns: u64,
    /// When the softirq began that runs, ns; 0 if none does.
    pub softirq_since_ns: u64,
    /// Up to when its time was given to somebody, ns.
    pub served_until_ns: u64,
    /// What the kernel had counted for the task when it was switched to.
    pub times: TaskTimes,
    /// Slot of the task in the `COSTS` map.
    pub slot: u32,
    /// ... of the socket that the softirq served last, or [`NO_PROXY`](super::NO_PROXY).
    pub served: u32,
    /// Number of the task.
    pub pid: u32,
    /// Always zero.
    pub reserved: u32,
}

/// What the kernel counts for a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TaskTimes {
    /// Time that the tick found it in user mode, ns.
    pub user_ns: u64,
    /// ... and in the kernel, ns.
    pub system_ns: u64,
    /// Time that it was ready and did not run, ns.
    pub run_delay_ns: u64,
    /// Time that it ran, ns.
    pub ran_ns: u64,
}

/// Slots in the `COSTS` map behind those of proxies: all other tasks, and idle.
pub const COST_SLOTS_BESIDE: u32 = 2;

const _: () = {
    use core::mem::size_of;
    assert!(size_of::<Cost>() == 56);
    assert!(size_of::<TaskTimes>() == 32);
    assert!(size_of::<Running>() == 80);
};
