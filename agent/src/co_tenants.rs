//! Who else had the node's CPUs: all processes but the proxies' and the agent's own, by name, as `/proc` counts them.
//!
//! Two passes over `/proc` for a window, when it opens and when it closes, and none in between: a process that came and went in it
//! shows in what its parent has waited for, under the parent's name.

use std::collections::HashMap;
use std::iter::successors;
use std::time::Instant;

use procfs::process::{Process, Stat, all_processes};
use tracing::debug;

/// How many processes one pass reads: more than the pods of a kubelet have (110 unless told, some clusters 500).
const MAX_PROCESSES: usize = 10_000;
/// How many names are listed.
pub const MAX_LISTED: usize = 5;
/// What the agent's own child is called: it has ended, with the window, before it could be seen.
const COMMAND: &str = "(command)";
/// How many processes up it is looked for who has waited for one that ended.
const MAX_GENERATIONS: usize = 64;

/// Counters of all processes at one instant.
#[derive(Clone, Debug, Default)]
pub struct Processes {
    by_pid: HashMap<u32, Counted>,
    /// Processes beyond [`MAX_PROCESSES`].
    not_read: u32,
}

#[derive(Clone, Debug)]
struct Counted {
    /// As the kernel has it: at most 15 characters.
    name: String,
    parent: u32,
    /// When it began, ticks since the node did: tells it from another one with its number.
    began_ticks: u64,
    /// CPU time of its threads.
    own_ticks: u64,
    /// ... of its children that have ended and for which it has waited, and of theirs.
    ended_ticks: u64,
}

/// Who used CPU time in a window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoTenants {
    /// Those that used most, at most [`MAX_LISTED`], the first most of all.
    pub listed: Vec<CoTenant>,
    /// How many other names used any.
    pub other_names: u32,
    /// CPU time of these, ns.
    pub other_cpu_ns: u64,
    /// Processes beyond the first 10,000 at its end, which are in none of these.
    pub not_read: u32,
}

/// Processes of one name together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoTenant {
    /// Of their programs, or what they call themselves.
    pub name: String,
    /// Those that were there at the end.
    pub processes: u32,
    /// CPU time, ns, to some ticks of 10 ms for each process; of their children that have ended too.
    pub cpu_ns: u64,
}

impl Processes {
    /// Makes one pass.
    pub(crate) fn read() -> Self {
        let begun = Instant::now();
        let mut new = Self::default();
        for process in all_processes().into_iter().flatten().flatten() {
            if new.by_pid.len() >= MAX_PROCESSES {
                new.not_read += 1;
            } else if let Ok(stat) = process.stat() {
                new.by_pid.insert(stat.pid.unsigned_abs(), Counted::of(&stat));
            }
        }
        debug!("looking at {} processes took {} us", new.by_pid.len(), begun.elapsed().as_micros());
        new
    }

    /// Leaves out what is told elsewhere: processes of proxies, whatever ended below one that has started a proxy, which may have
    /// been that proxy, and of the agent all but its command.
    pub(crate) fn beside(
        mut self,
        agent: u32,
        is_proxy: impl Fn(u32) -> bool,
        has_started_one: impl Fn(u32) -> bool,
    ) -> Self {
        for (&pid, counted) in &mut self.by_pid {
            if is_proxy(pid) || pid == agent {
                counted.own_ticks = 0;
            }
            if is_proxy(pid) || has_started_one(pid) {
                counted.ended_ticks = 0;
            }
            if pid == agent {
                COMMAND.clone_into(&mut counted.name);
            }
        }
        self
    }

    /// What was added since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> CoTenants {
        let inherited = self.inherited_ticks(earlier);
        let mut by_name: HashMap<&str, CoTenant> = HashMap::new();
        for (pid, now) in &self.by_pid {
            let then = earlier.get(*pid, now.began_ticks);
            if then.is_none() && earlier.not_read > 0 {
                // It may have been one of those that were not read.
                continue;
            }
            let [own_before, ended_before] = then.map_or([0, 0], |then| [then.own_ticks, then.ended_ticks]);
            let ended_before = ended_before + inherited.get(pid).copied().unwrap_or(0);
            let ticks =
                now.own_ticks.saturating_sub(own_before) + now.ended_ticks.saturating_sub(ended_before);
            let of_name = by_name.entry(&now.name).or_insert_with(|| CoTenant {
                name: now.name.clone(),
                processes: 0,
                cpu_ns: 0,
            });
            of_name.processes += 1;
            of_name.cpu_ns += ticks * (1_000_000_000 / procfs::ticks_per_second());
        }
        let mut listed: Vec<_> = by_name.into_values().filter(|of_name| of_name.cpu_ns > 0).collect();
        listed.sort_unstable_by(|a, b| b.cpu_ns.cmp(&a.cpu_ns).then_with(|| a.name.cmp(&b.name)));
        let others = listed.split_off(listed.len().min(MAX_LISTED));
        CoTenants {
            listed,
            other_names: others.len() as u32,
            other_cpu_ns: others.iter().map(|of_name| of_name.cpu_ns).sum(),
            not_read: self.not_read,
        }
    }

    /// What processes that have ended since `earlier` had used until then, by the process that has waited for them: it is in its
    /// account now and was not before.
    fn inherited_ticks(&self, earlier: &Self) -> HashMap<u32, u64> {
        let lives = |pid: u32, then: &Counted| self.get(pid, then.began_ticks).is_some();
        let mut inherited = HashMap::new();
        for (_, ended) in earlier.by_pid.iter().filter(|&(&pid, then)| !lives(pid, then)) {
            let parent_of = |pid: &u32| Some(earlier.by_pid.get(pid)?.parent);
            let mut ancestors = successors(Some(ended.parent), parent_of).take(MAX_GENERATIONS);
            let heir = ancestors.find(|pid| earlier.by_pid.get(pid).is_some_and(|then| lives(*pid, then)));
            if let Some(heir) = heir {
                *inherited.entry(heir).or_default() += ended.own_ticks + ended.ended_ticks;
            }
        }
        inherited
    }

    fn get(&self, pid: u32, began_ticks: u64) -> Option<&Counted> {
        self.by_pid.get(&pid).filter(|counted| counted.began_ticks == began_ticks)
    }
}

impl Counted {
    fn of(stat: &Stat) -> Self {
        Self {
            // Whatever the process has called itself.
            name: stat.comm.replace(char::is_control, "?"),
            parent: stat.ppid.unsigned_abs(),
            began_ticks: stat.starttime,
            own_ticks: stat.utime + stat.stime,
            ended_ticks: stat.cutime.unsigned_abs() + stat.cstime.unsigned_abs(),
        }
    }
}

/// Who has started a process.
pub(crate) fn parent(pid: u32) -> Option<u32> {
    let stat = Process::new(pid.cast_signed()).ok()?.stat().ok()?;
    Some(stat.ppid.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (pid, name, parent, own ticks, ended ticks), each begun when its number says.
    fn processes(all: &[(u32, &str, u32, u64, u64)]) -> Processes {
        let counted = |&(pid, name, parent, own_ticks, ended_ticks): &(u32, &str, u32, u64, u64)| {
            let began_ticks = u64::from(pid);
            (pid, Counted { name: name.to_owned(), parent, began_ticks, own_ticks, ended_ticks })
        };
        Processes { by_pid: all.iter().map(counted).collect(), not_read: 0 }
    }

    fn listed(now: &Processes, earlier: &Processes) -> Vec<(String, u32, u64)> {
        let tick_ns = 1_000_000_000 / procfs::ticks_per_second();
        let listed = now.since(earlier).listed.into_iter();
        listed.map(|of_name| (of_name.name, of_name.processes, of_name.cpu_ns / tick_ns)).collect()
    }

    fn row(name: &str, processes: u32, ticks: u64) -> (String, u32, u64) {
        (name.to_owned(), processes, ticks)
    }

    #[test]
    fn processes_of_one_name_add_up_and_new_ones_count_from_their_start() {
        let open = processes(&[(1, "init", 0, 9, 0), (2, "db", 1, 100, 0), (3, "db", 1, 50, 0)]);
        let close = processes(&[
            (1, "init", 0, 9, 0),
            (2, "db", 1, 130, 0),
            (3, "db", 1, 55, 0),
            (4, "db", 1, 2, 0),
            (5, "app", 1, 40, 0),
        ]);
        assert_eq!(listed(&close, &open), [row("app", 1, 40), row("db", 3, 37)]);
        // Another process under the same number.
        let mut anew = close.clone();
        anew.by_pid.get_mut(&2).unwrap().began_ticks = 77;
        anew.by_pid.get_mut(&2).unwrap().own_ticks = 3;
        assert_eq!(listed(&anew, &open), [row("app", 1, 40), row("db", 3, 10)]);
    }

    #[test]
    fn what_ended_is_its_parents_without_what_it_had_used_before() {
        let open = processes(&[
            (1, "init", 0, 0, 500),
            (2, "make", 1, 5, 20),
            (3, "sh", 2, 1, 2),
            (4, "cc", 3, 60, 0),
        ]);
        // Both ended, the shell after 1 tick more and the compiler after 40; two more came and went, of 30 together.
        let close = processes(&[(1, "init", 0, 0, 500), (2, "make", 1, 6, 20 + 4 + 100 + 30)]);
        assert_eq!(listed(&close, &open), [row("make", 1, 1 + 1 + 40 + 30)]);
    }

    #[test]
    fn proxies_are_told_elsewhere_and_the_agent_is_its_command() {
        let open = processes(&[(1, "shim", 0, 1, 1), (2, "envoy", 1, 10, 0), (3, "agent", 0, 5, 0)]);
        let close = processes(&[(1, "shim", 0, 4, 90), (2, "envoy", 1, 99, 9), (3, "agent", 0, 50, 70)]);
        let close = close.beside(3, |pid| pid == 2, |pid| pid == 1);
        assert_eq!(listed(&close, &open), [row("(command)", 1, 70), row("shim", 1, 3)]);
    }

    #[test]
    fn what_is_not_listed_is_counted() {
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let at = |ticks: u64| {
            let all = names.iter().zip(1..).map(|(name, pid)| (pid, *name, 0, ticks * u64::from(pid), 0));
            processes(&all.collect::<Vec<_>>())
        };
        let found = at(2).since(&at(1));
        let tick_ns = 1_000_000_000 / procfs::ticks_per_second();
        assert_eq!(found.listed.iter().map(|of_name| &*of_name.name).collect::<String>(), "hgfed");
        assert_eq!((found.other_names, found.other_cpu_ns, found.not_read), (3, 6 * tick_ns, 0));
        let part = Processes { not_read: 1, ..processes(&[]) };
        assert_eq!(at(2).since(&part), CoTenants::default(), "they may have been there before");
    }

    #[test]
    fn this_process_is_there() {
        let all = Processes::read();
        let own = &all.by_pid[&std::process::id()];
        assert_eq!(own.parent, std::os::unix::process::parent_id());
        assert_eq!(parent(std::process::id()), Some(own.parent));
        assert!(own.began_ticks > 0 && !own.name.is_empty(), "{own:?}");
        assert_eq!(all.not_read, 0);
    }
}
