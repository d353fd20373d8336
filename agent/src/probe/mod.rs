//! The programs: loading, attaching, and what became of each. Dropping [`Probes`] detaches everything.

use std::fs;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray, RingBuf, Stack};
use aya::programs::ProgramError;
use aya::sys::{Stats, enable_stats};
use aya::{Ebpf, EbpfError};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity, sched_yield};
use smp_agent_abi::layout::{Cost, Extent, Held, Running, Series, Tally};
use smp_agent_abi::names::{self, hint_place};
use thiserror::Error;

pub mod btf;
pub mod capability;
mod load;
pub mod offsets;
pub mod programs;
#[cfg(test)]
mod stack;
mod verdict;

pub use verdict::Verdict;

use crate::window::ProgramRun;
use btf::{Btf, BtfError, VMLINUX};
use load::Link;
use programs::{Group, Hook, PROGRAMS, Program, WALK};

/// Why nothing can be measured.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// The binary was built without a BPF toolchain.
    #[error("this build holds no probes; run `cargo xtask setup` and build again")]
    NoProbes,
    /// The process may not load programs.
    #[error("missing {missing}; run as root, or grant the capabilities BPF and PERFMON")]
    Capability {
        /// The capabilities that are missing.
        missing: String,
    },
    /// The kernel does not publish its types.
    #[error("{VMLINUX}: {source}; a kernel built with CONFIG_DEBUG_INFO_BTF is needed")]
    NoBtf {
        /// What opening it said.
        source: io::Error,
    },
    /// What the kernel publishes is not understood.
    #[error("{VMLINUX}: {0}")]
    Btf(#[from] BtfError),
    /// The object was refused as a whole.
    #[error("loading the probes: {0}")]
    Load(#[from] EbpfError),
    /// A map was refused.
    #[error("map {map}: {source}")]
    Map {
        /// Which one.
        map: &'static str,
        /// What the kernel said.
        source: MapError,
    },
    /// A program stays attached until the agent ends.
    #[error("detaching {program}: {source}")]
    Detach {
        /// Which one.
        program: &'static str,
        /// What the kernel said.
        source: ProgramError,
    },
    /// The sockets of proxies cannot be looked at.
    #[error("walking the sockets of proxies: {source}")]
    Walk {
        /// What the kernel said.
        source: io::Error,
    },
    /// A stamp has no working program.
    #[error(
        "hops cannot be measured: {program} ({hook}): {reason}; `smp-agent doctor` shows the whole table"
    )]
    Hook {
        /// The program that was refused last for that stamp.
        program: &'static str,
        /// Its hook.
        hook: Hook,
        /// Why.
        reason: String,
    },
}

/// The loaded object with its programs attached.
pub struct Probes {
    ebpf: Ebpf,
    verdicts: Vec<Verdict>,
    links: Vec<(&'static str, Link)>,
    max_proxies: u32,
    irq_time_apart: bool,
    /// Keeps the kernel's run-time statistics on.
    _statistics: Option<OwnedFd>,
}

/// Runs on each CPU for an instant, so that from here on it is known of each who runs there: what was there before shows at
/// a switch only, and a thread that computes may not be switched for a second. CPUs that this process may not use are left
/// out.
fn visit_cpus() {
    let Ok(own) = sched_getaffinity(None) else { return };
    for cpu in (0..CpuSet::MAX_CPU).filter(|&cpu| own.is_set(cpu)) {
        let mut one = CpuSet::new();
        one.set(cpu);
        if sched_setaffinity(None, &one).is_ok() {
            sched_yield();
        }
    }
    // It was so before; a thread that stays on one CPU would be slower, not wrong.
    let _restored = sched_setaffinity(None, &own);
}

/// One record of a walk.
fn held(bytes: &[u8]) -> Option<Held> {
    let (cookie, rest) = bytes.split_first_chunk()?;
    let (memory_bytes, rest) = rest.split_first_chunk()?;
    let (proxy_slot, rest) = rest.split_first_chunk()?;
    let (kind, _) = rest.split_first_chunk()?;
    Some(Held {
        cookie: u64::from_ne_bytes(*cookie),
        memory_bytes: u64::from_ne_bytes(*memory_bytes),
        proxy_slot: u32::from_ne_bytes(*proxy_slot),
        kind: u32::from_ne_bytes(*kind),
    })
}

/// What the agent may be told about loading.
#[derive(Clone, Debug)]
pub struct Options {
    /// Proxies that can be followed at the same time.
    pub max_proxies: u32,
    /// Programs not to use although they work, so that their fallbacks are.
    pub without: Vec<String>,
    /// CPUs that measuring may cost, if that is limited.
    pub max_cores: Option<f64>,
    /// Have the programs return at once: nothing is measured, but for what calling them costs.
    pub empty: bool,
    /// Load the programs too that are not needed, so that it shows whether they could be used.
    pub load_all: bool,
}

impl Probes {
    /// Loads all programs and attaches those that are needed. A program that cannot be had is a verdict, not
    /// an error; whether hops can be measured is [`Probes::measures_hops`]'s to say.
    pub fn attach(options: &Options) -> Result<Self, ProbeError> {
        if load::OBJECT.is_empty() {
            return Err(ProbeError::NoProbes);
        }
        let missing = capability::missing();
        if !missing.is_empty() {
            return Err(ProbeError::Capability { missing: missing.join(" and ") });
        }
        let bytes = fs::read(VMLINUX).map_err(|source| ProbeError::NoBtf { source })?;
        let btf = Btf::parse(bytes)?;
        let kernel = aya::Btf::from_sys_fs().map_err(EbpfError::BtfError)?;
        let mut verdicts = load::choose(&btf, &options.without);
        let ebpf = load::load(&btf, &kernel, &mut verdicts, options)?;
        // Refused without CAP_SYS_ADMIN: then the agent's own cost is reported as unknown.
        let statistics = enable_stats(Stats::RunTime).ok();
        let mut probes = Self {
            ebpf,
            verdicts,
            links: Vec::new(),
            max_proxies: options.max_proxies,
            irq_time_apart: offsets::irq_time_apart(&btf),
            _statistics: statistics,
        };
        probes.free_places()?;
        probes.attach_loaded();
        visit_cpus();
        Ok(probes)
    }

    /// An error naming the first stamp that has no program.
    pub fn measures_hops(&self) -> Result<(), ProbeError> {
        for (program, verdict) in PROGRAMS.iter().zip(&self.verdicts) {
            let (Verdict::Unsupported(reason) | Verdict::Failed(reason)) = verdict else { continue };
            let replaced = PROGRAMS
                .iter()
                .zip(&self.verdicts)
                .any(|(other, verdict)| *verdict == Verdict::Attached && program.replaced_by(other));
            let last = PROGRAMS.iter().rfind(|other| other.purpose == program.purpose);
            let is_last = last.is_some_and(|other| other.name == program.name);
            if program.purpose.needed_for_hops() && !replaced && is_last {
                let reason = reason.clone();
                return Err(ProbeError::Hook { program: program.name, hook: program.hook, reason });
            }
        }
        Ok(())
    }

    /// Each program with its verdict and the kernel's run-time accounting of it.
    pub fn runs(&self) -> Vec<ProgramRun> {
        let run = |(program, verdict): (&Program, &Verdict)| {
            let [run_ns, run_count, missed] = self.accounting(program.name);
            ProgramRun {
                program: program.name,
                hook: program.hook,
                verdict: verdict.clone(),
                run_ns,
                run_count,
                missed,
            }
        };
        PROGRAMS.iter().zip(&self.verdicts).map(run).collect()
    }

    /// How many instructions the kernel looked at to verify a program; `None` if it is not loaded, or the kernel
    /// (before Linux 5.16) does not say.
    pub fn verified_instructions(&self, program: &str) -> Option<u32> {
        self.ebpf.program(program)?.info().ok()?.verified_instruction_count()
    }

    /// How many proxies can be followed.
    pub const fn max_proxies(&self) -> u32 {
        self.max_proxies
    }

    /// Whether this kernel counts interrupts and softirqs apart from the task below them.
    pub const fn irq_time_apart(&self) -> bool {
        self.irq_time_apart
    }

    /// The latency series.
    pub fn series(&self) -> Result<Array<&MapData, Series>, ProbeError> {
        self.map(names::SERIES)
    }

    /// What is kept exactly beside them.
    pub fn extents(&self) -> Result<PerCpuArray<&MapData, Extent>, ProbeError> {
        self.map(names::EXTENTS)
    }

    /// The counters of each proxy.
    pub fn tallies(&self) -> Result<PerCpuArray<&MapData, Tally>, ProbeError> {
        self.map(names::TALLIES)
    }

    /// What each proxy costs, by CPU.
    pub fn costs(&self) -> Result<PerCpuArray<&MapData, Cost>, ProbeError> {
        self.map(names::COSTS)
    }

    /// What each CPU is doing.
    pub fn running(&self) -> Result<PerCpuArray<&MapData, Running>, ProbeError> {
        self.map(names::RUNNING)
    }

    /// The processes that are proxies.
    pub fn proxies(&mut self) -> Result<HashMap<&mut MapData, u32, u32>, ProbeError> {
        self.map_mut(names::PROXIES)
    }

    /// Lets the programs take a process for the proxy in a slot.
    pub fn follow(&mut self, tgid: u32, slot: u32) -> Result<(), ProbeError> {
        let failed = |map| move |source| ProbeError::Map { map, source };
        let mut hints: Array<&mut MapData, u32> = self.map_mut(names::PROXY_HINTS)?;
        // Before the process is known, and for good: others may share it.
        hints.set(hint_place(tgid), 1, 0).map_err(failed(names::PROXY_HINTS))?;
        self.proxies()?.insert(tgid, slot, 0).map_err(failed(names::PROXIES))
    }

    /// Looks at all sockets of the processes in [`Probes::proxies`], in whichever network namespace: follows where they
    /// listen and the connections that are not followed yet, and returns what they hold: each connection once for each open
    /// file that leads to it.
    pub fn walk(&mut self) -> Result<Vec<Held>, ProbeError> {
        let failed = |source| ProbeError::Walk { source };
        let mut found = Vec::new();
        load::walk(&mut self.ebpf, WALK).map_err(failed)?.read_to_end(&mut found).map_err(failed)?;
        Ok(found.chunks_exact(size_of::<Held>()).filter_map(held).collect())
    }

    /// News of processes; can be taken once.
    pub fn take_events(&mut self) -> Result<RingBuf<MapData>, ProbeError> {
        let map = self
            .ebpf
            .take_map(names::EVENTS)
            .ok_or(EbpfError::from(MapError::InvalidName { name: names::EVENTS.to_owned() }))?;
        RingBuf::try_from(map).map_err(|source| ProbeError::Map { map: names::EVENTS, source })
    }

    fn map<'a, T>(&'a self, map: &'static str) -> Result<T, ProbeError>
    where
        T: TryFrom<&'a aya::maps::Map, Error = MapError>,
    {
        let found = self.ebpf.map(map).ok_or(MapError::InvalidName { name: map.to_owned() });
        found.and_then(T::try_from).map_err(|source| ProbeError::Map { map, source })
    }

    fn map_mut<'a, T>(&'a mut self, map: &'static str) -> Result<T, ProbeError>
    where
        T: TryFrom<&'a mut aya::maps::Map, Error = MapError>,
    {
        let found = self.ebpf.map_mut(map).ok_or(MapError::InvalidName { name: map.to_owned() });
        found.and_then(T::try_from).map_err(|source| ProbeError::Map { map, source })
    }

    /// All places of pending sets are free at the start.
    fn free_places(&mut self) -> Result<(), ProbeError> {
        let threads = self.max_proxies * load::THREADS_PER_PROXY;
        let shared = self.max_proxies * load::SHARED_PER_PROXY;
        for (map, places) in
            [(names::FREE_PLACES, 0..threads), (names::FREE_SHARED, threads..threads + shared)]
        {
            let mut free: Stack<&mut MapData, u32> = self.map_mut(map)?;
            places
                .rev()
                .try_for_each(|place| free.push(place, 0))
                .map_err(|source| ProbeError::Map { map, source })?;
        }
        Ok(())
    }

    fn attach_loaded(&mut self) {
        for (program, verdict) in PROGRAMS.iter().zip(&mut self.verdicts) {
            if *verdict != Verdict::Attached {
                continue;
            }
            match load::attach(&mut self.ebpf, program) {
                Ok(link) => self.links.extend(link.map(|link| (program.name, link))),
                Err(error) => *verdict = Verdict::of(program.hook, &error),
            }
        }
    }

    /// Detaches all programs, the last attached first; what they counted stays readable, and still.
    pub fn detach(&mut self) -> Result<(), ProbeError> {
        while let Some((program, link)) = self.links.pop() {
            link.detach(&mut self.ebpf, program).map_err(|source| ProbeError::Detach { program, source })?;
        }
        Ok(())
    }

    /// Detaches what measures something, as it costs too much; from then on it is not measured.
    pub fn give_up(&mut self, group: Group, reason: &str) -> Result<(), ProbeError> {
        for (program, verdict) in PROGRAMS.iter().zip(&mut self.verdicts) {
            let link = self.links.iter().position(|(name, _)| *name == program.name);
            if program.purpose.group() == Some(group)
                && let Some(link) = link
            {
                let (program, link) = self.links.remove(link);
                link.detach(&mut self.ebpf, program)
                    .map_err(|source| ProbeError::Detach { program, source })?;
                *verdict = Verdict::GivenUp(reason.to_owned());
            }
        }
        Ok(())
    }

    /// Run time in ns, runs and runs skipped by the kernel, from the program's `fdinfo` (`bpf_prog_show_fdinfo`
    /// in the kernel's kernel/bpf/syscall.c): it has the skipped runs, which the loader's accessor has not.
    fn accounting(&self, program: &str) -> [u64; 3] {
        let Some(Ok(fd)) = self.ebpf.program(program).map(aya::programs::Program::fd) else { return [0; 3] };
        let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
        let text = fs::read_to_string(path).unwrap_or_default();
        ["run_time_ns:", "run_cnt:", "recursion_misses:"].map(|name| {
            let value = text.lines().find_map(|line| line.strip_prefix(name));
            value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
        })
    }
}
