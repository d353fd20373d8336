//! CPU time: what a proxy cost its node, and what the CPUs did beside it. Counters of the kernel half, ns.

use smp_agent_abi::layout::Cost;

use crate::counters::Counters as _;
use crate::histogram::Histogram;

/// What one proxy cost. All but the histogram's extremes only grow.
#[derive(Clone, Debug, Default)]
pub struct CpuCost {
    /// Sums over the CPUs.
    pub counted: Cost,
    /// How long its threads were ready to run and did not, each time.
    pub run_queue_wait: Histogram,
    /// Whether the kernel counts interrupts and softirqs apart from the task below them, by its ticks too
    /// (`CONFIG_IRQ_TIME_ACCOUNTING`).
    pub irq_time_apart: bool,
}

/// What the CPUs did beside proxies. All only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuBeside {
    /// All other tasks.
    pub others: Cost,
    /// Idle, of which only `on_cpu_ns` and `softirq_borne_ns` mean something.
    pub idle: Cost,
}

impl CpuCost {
    /// Time that its threads ran and that softirqs served its sockets, ns.
    pub const fn total_ns(&self) -> u64 {
        self.counted.on_cpu_ns + self.counted.softirq_caused_ns
    }

    /// Of the time that its threads ran, user and system, ns. The sum is exact; its parts are as the kernel's tick found
    /// them, which is how the kernel itself divides a process's time (`cputime_adjust` in kernel/sched/cputime.c). `None`
    /// while no tick has found it. A share p of n ticks has a standard error of sqrt(p (1 - p) / n), with 250 ticks a second at
    /// most 3.2 % of all for 1 s of CPU time and 1 % for 10 s; more where threads share a CPU, since these are switched at
    /// ticks. Exact where the kernel counts at each entry instead (`CONFIG_VIRT_CPU_ACCOUNTING_GEN` with `nohz_full`).
    pub fn user_and_system_ns(&self) -> Option<[u64; 2]> {
        let Cost { on_cpu_ns, user_ticks_ns, system_ticks_ns, softirq_borne_ns, .. } = self.counted;
        let ticks_ns = user_ticks_ns + system_ticks_ns;
        if ticks_ns == 0 {
            return None;
        }
        // Else a tick in a softirq counts as system time of the task below it.
        let all_ns = if self.irq_time_apart { on_cpu_ns } else { on_cpu_ns + softirq_borne_ns };
        let user_ns = (u128::from(all_ns) * u128::from(user_ticks_ns) / u128::from(ticks_ns)) as u64;
        let user_ns = user_ns.min(on_cpu_ns);
        Some([user_ns, on_cpu_ns - user_ns])
    }

    /// What was added since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self {
            counted: self.counted.since(earlier.counted),
            run_queue_wait: self.run_queue_wait.since(&earlier.run_queue_wait),
            irq_time_apart: self.irq_time_apart,
        }
    }
}

impl CpuBeside {
    /// What was added since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self { others: self.others.since(earlier.others), idle: self.idle.since(earlier.idle) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(on_cpu_ns: u64, ticks_ns: [u64; 2], softirq_borne_ns: u64) -> CpuCost {
        let [user_ticks_ns, system_ticks_ns] = ticks_ns;
        let counted = Cost { on_cpu_ns, user_ticks_ns, system_ticks_ns, softirq_borne_ns, ..Cost::default() };
        CpuCost { counted, ..CpuCost::default() }
    }

    #[test]
    fn time_is_divided_as_the_ticks_say_and_stays_whole() {
        assert_eq!(cost(1_000, [30, 10], 0).user_and_system_ns(), Some([750, 250]));
        // 200 of system are softirqs, which are not the task's.
        assert_eq!(cost(1_000, [30, 10], 200).user_and_system_ns(), Some([900, 100]));
        let apart = CpuCost { irq_time_apart: true, ..cost(1_000, [30, 10], 200) };
        assert_eq!(apart.user_and_system_ns(), Some([750, 250]));
        assert_eq!(cost(1_000, [40, 0], 200).user_and_system_ns(), Some([1_000, 0]));
        assert_eq!(cost(1_000, [0, 0], 0).user_and_system_ns(), None);
        let long = cost(u64::MAX / 4, [1 << 60, 1 << 60], 0).user_and_system_ns().unwrap();
        assert_eq!(long[0] + long[1], u64::MAX / 4);
    }
}
