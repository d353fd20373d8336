//! `--max-cpu`: what measuring may cost the node, and what is given up when it costs more.

use std::time::Instant;

use crate::probe::programs::{Group, PROGRAMS};
use crate::window::ProgramRun;

/// So many looks in a row it may cost too much: a burst is no reason.
const PATIENCE: u32 = 3;

/// Watches what measuring costs: the programs' time and the agent's own, about once a second.
#[derive(Debug)]
pub struct Breaker {
    most_cores: f64,
    last: Option<Seen>,
    over: u32,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    at: Instant,
    agent_ns: u64,
    by_group_ns: [u64; Group::ALL.len()],
}

/// It costs too much.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trip {
    /// What costs most of it.
    pub group: Group,
    /// What all of it cost since the look before, in CPUs.
    pub cores: f64,
}

impl Breaker {
    /// Lets measuring cost so many CPUs.
    pub const fn new(most_cores: f64) -> Self {
        Self { most_cores, last: None, over: 0 }
    }

    /// Looks at the counters; an answer asks for its group to be given up.
    pub fn look(&mut self, programs: &[ProgramRun], agent_ns: u64, at: Instant) -> Option<Trip> {
        let mut by_group_ns = [0; Group::ALL.len()];
        for (run, program) in programs.iter().zip(PROGRAMS) {
            if let Some(group) = program.purpose.group()
                && run.verdict.is_attached()
            {
                by_group_ns[group as usize] += run.run_ns;
            }
        }
        let now = Seen { at, agent_ns, by_group_ns };
        let last = self.last.replace(now)?;
        let spent =
            |group: Group| by_group_ns[group as usize].saturating_sub(last.by_group_ns[group as usize]);
        let spent_ns = agent_ns.saturating_sub(last.agent_ns) + Group::ALL.map(spent).iter().sum::<u64>();
        let cores = spent_ns as f64 / at.duration_since(last.at).as_nanos().max(1) as f64;
        self.over = if cores > self.most_cores { self.over + 1 } else { 0 };
        if self.over < PATIENCE {
            return None;
        }
        self.over = 0;
        let group = Group::ALL.into_iter().max_by_key(|&group| spent(group))?;
        (spent(group) > 0).then_some(Trip { group, cores })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::probe::Verdict;

    fn runs(softirq_ns: u64, read_ns: u64) -> Vec<ProgramRun> {
        let run_ns = |name: &str| match name {
            "softirq_end" => softirq_ns,
            "read" => read_ns,
            _ => 0,
        };
        let run = |program: &crate::probe::programs::Program| ProgramRun {
            program: program.name,
            hook: program.hook,
            verdict: Verdict::Attached,
            run_ns: run_ns(program.name),
            run_count: 1,
            missed: 0,
        };
        PROGRAMS.iter().map(run).collect()
    }

    /// What is said after each second of these costs, ms: softirqs, reads, agent.
    fn said(most_cores: f64, seconds: &[[u64; 3]]) -> Vec<Option<Group>> {
        let mut breaker = Breaker::new(most_cores);
        let (start, mut sums) = (Instant::now(), [0; 3]);
        let mut looks = vec![breaker.look(&runs(0, 0), 0, start)];
        for (second, spent) in seconds.iter().enumerate() {
            sums.iter_mut().zip(spent).for_each(|(sum, ms)| *sum += ms * 1_000_000);
            let at = start + Duration::from_secs(second as u64 + 1);
            looks.push(breaker.look(&runs(sums[0], sums[1]), sums[2], at));
        }
        looks.into_iter().map(|trip| trip.map(|trip| trip.group)).collect()
    }

    #[test]
    fn the_costliest_is_given_up_after_three_looks_in_a_row() {
        let dear = [30, 10, 20];
        assert_eq!(said(0.05, &[dear; 3]), [None, None, None, Some(Group::Softirqs)]);
        assert_eq!(said(0.05, &[[10, 30, 20]; 3])[3], Some(Group::Hops));
        assert_eq!(said(0.05, &[dear, dear, [1, 1, 1], dear, dear]), [None; 6]);
        assert_eq!(said(0.07, &[dear; 5]), [None; 6]);
        assert_eq!(said(0.05, &[[0, 0, 60]; 4]), [None; 5], "nothing to give up");
    }
}
