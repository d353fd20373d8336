//! The programs: loading, attaching, and what became of each. Dropping [`Probes`] detaches everything.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray, RingBuf, Stack};
use aya::programs::tp_btf::BtfTracePointLinkId;
use aya::programs::{BtfTracePoint, ProgramError};
use aya::sys::{Stats, enable_stats};
use aya::{Ebpf, EbpfError, EbpfLoader};
use smp_agent_abi::layout::{SERIES_PER_PROXY, Series, Tally};
use smp_agent_abi::names;
use thiserror::Error;

pub mod btf;
pub mod capability;
pub mod offsets;
pub mod programs;

use crate::window::ProgramRun;
use btf::{Btf, BtfError, VMLINUX};
use programs::{PROGRAMS, Program, WRITE_RETURN};

/// The object, empty in a build without a BPF toolchain.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/smp-agent-ebpf"));

/// Threads with pending sets per proxy, on average. 64 KiB of kernel memory each.
const THREADS_PER_PROXY: u32 = 4;
/// Threads that share a lane, per proxy, on average.
const SHARING_THREADS_PER_PROXY: u32 = 64;
/// Processes that belong to proxies, per proxy, on average: workers are processes for some.
const PROCESSES_PER_PROXY: u32 = 64;
/// Listening ports of proxies, per proxy, on average.
const LISTENERS_PER_PROXY: u32 = 64;

/// What became of one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Loaded and attached to its hook.
    Attached,
    /// Not needed: a better hook for the same stamp is attached.
    NotNeeded,
    /// This kernel lacks what it needs; the reason says what.
    Unsupported(String),
    /// It should have worked and did not; the reason is the kernel's.
    Failed(String),
}

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
    /// A stamp has no working program.
    #[error(
        "hops cannot be measured: {program} ({hook}): {reason}; `smp-agent doctor` shows the whole table"
    )]
    Hook {
        /// The program that was refused last for that stamp.
        program: &'static str,
        /// Its hook.
        hook: &'static str,
        /// Why.
        reason: String,
    },
}

/// The loaded object with its programs attached.
pub struct Probes {
    ebpf: Ebpf,
    verdicts: Vec<Verdict>,
    links: Vec<(&'static str, BtfTracePointLinkId)>,
    max_proxies: u32,
    /// Keeps the kernel's run-time statistics on.
    _statistics: Option<OwnedFd>,
}

/// What the agent may be told about loading.
#[derive(Clone, Debug)]
pub struct Options {
    /// Proxies that can be followed at the same time.
    pub max_proxies: u32,
    /// Programs not to use although they work, so that their fallbacks are.
    pub without: Vec<String>,
}

impl Probes {
    /// Loads all programs and attaches those that are needed. A program that cannot be had is a verdict, not
    /// an error; whether hops can be measured is [`Probes::measures_hops`]'s to say.
    pub fn attach(options: &Options) -> Result<Self, ProbeError> {
        if OBJECT.is_empty() {
            return Err(ProbeError::NoProbes);
        }
        let missing = capability::missing();
        if !missing.is_empty() {
            return Err(ProbeError::Capability { missing: missing.join(" and ") });
        }
        let bytes = fs::read(VMLINUX).map_err(|source| ProbeError::NoBtf { source })?;
        let btf = Btf::parse(bytes)?;
        let kernel = aya::Btf::from_sys_fs().map_err(EbpfError::BtfError)?;
        let mut verdicts = choose(&btf, &options.without);
        let ebpf = load(&btf, &kernel, &mut verdicts, options)?;
        // Refused without CAP_SYS_ADMIN: then the agent's own cost is reported as unknown.
        let statistics = enable_stats(Stats::RunTime).ok();
        let mut probes = Self {
            ebpf,
            verdicts,
            links: Vec::new(),
            max_proxies: options.max_proxies,
            _statistics: statistics,
        };
        probes.free_places()?;
        probes.attach_loaded();
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

    /// How many proxies can be followed.
    pub const fn max_proxies(&self) -> u32 {
        self.max_proxies
    }

    /// The latency series.
    pub fn series(&self) -> Result<Array<&MapData, Series>, ProbeError> {
        self.map(names::SERIES)
    }

    /// The counters of each proxy.
    pub fn tallies(&self) -> Result<PerCpuArray<&MapData, Tally>, ProbeError> {
        self.map(names::TALLIES)
    }

    /// The processes that are proxies.
    pub fn proxies(&mut self) -> Result<HashMap<&mut MapData, u32, u32>, ProbeError> {
        self.map_mut(names::PROXIES)
    }

    /// Where proxies listen.
    pub fn listeners(&mut self) -> Result<HashMap<&mut MapData, u64, u32>, ProbeError> {
        self.map_mut(names::LISTENERS)
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
        let places = self.max_proxies * THREADS_PER_PROXY;
        let mut free: Stack<&mut MapData, u32> = self.map_mut(names::FREE_PLACES)?;
        (0..places)
            .rev()
            .try_for_each(|place| free.push(place, 0))
            .map_err(|source| ProbeError::Map { map: names::FREE_PLACES, source })
    }

    fn attach_loaded(&mut self) {
        for (program, verdict) in PROGRAMS.iter().zip(&mut self.verdicts) {
            if *verdict != Verdict::Attached {
                continue;
            }
            match tracepoint(&mut self.ebpf, program.name).and_then(BtfTracePoint::attach) {
                Ok(link) => self.links.push((program.name, link)),
                Err(error) => *verdict = Verdict::Failed(chain(&error)),
            }
        }
    }

    /// Detaches all programs, the last attached first; what they counted stays readable, and still.
    pub fn detach(&mut self) -> Result<(), ProbeError> {
        while let Some((program, link)) = self.links.pop() {
            let detached = tracepoint(&mut self.ebpf, program).and_then(|loaded| loaded.detach(link));
            detached.map_err(|source| ProbeError::Detach { program, source })?;
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

/// Which programs to try, by what this kernel has; `Attached` stands for "to be loaded and attached".
fn choose(btf: &Btf, without: &[String]) -> Vec<Verdict> {
    let verdict = |program: &Program| {
        if without.iter().any(|name| name == program.name) {
            return Verdict::Unsupported("switched off by --without".to_owned());
        }
        if !btf.has_tracepoint(program.hook) {
            return Verdict::Unsupported(format!("this kernel has no tracepoint {}", program.hook));
        }
        let mut fields = program.fields.iter().copied().flatten();
        match fields.find(|field| field.offset_bytes(btf).is_none()) {
            Some(field) => Verdict::Unsupported(format!("this kernel has no field {}", field.dotted())),
            None => Verdict::Attached,
        }
    };
    PROGRAMS.iter().map(verdict).collect()
}

/// Loads the object and, one by one, its programs; of several for one stamp the first that the kernel takes.
fn load(
    btf: &Btf,
    kernel: &aya::Btf,
    verdicts: &mut [Verdict],
    options: &Options,
) -> Result<Ebpf, ProbeError> {
    let places = options.max_proxies * THREADS_PER_PROXY;
    let mut loader = EbpfLoader::new();
    loader
        .btf(Some(kernel))
        .map_max_entries(names::SERIES, options.max_proxies * SERIES_PER_PROXY as u32)
        .map_max_entries(names::TALLIES, options.max_proxies)
        .map_max_entries(names::PROXIES, options.max_proxies * PROCESSES_PER_PROXY)
        .map_max_entries(names::LISTENERS, options.max_proxies * LISTENERS_PER_PROXY)
        .map_max_entries(names::THREADS, places)
        .map_max_entries(names::LANES, places)
        .map_max_entries(names::MOVES, options.max_proxies)
        .map_max_entries(names::RECENT, options.max_proxies * SHARING_THREADS_PER_PROXY)
        .map_max_entries(names::FREE_PLACES, places);
    let offsets: Vec<_> = offsets::FIELDS
        .iter()
        .map(|field| (field.global, u64::from(field.offset_bytes(btf).unwrap_or_default())))
        .collect();
    for (global, offset) in &offsets {
        loader.override_global(global, offset, true);
    }
    let write =
        |name| PROGRAMS.iter().zip(&*verdicts).any(|(p, v)| p.name == name && *v == Verdict::Attached);
    let write_after_departure = u64::from(!write("write") && write(WRITE_RETURN));
    loader.override_global("WRITE_AFTER_DEPARTURE", &write_after_departure, true);
    let mut ebpf = loader.load(OBJECT)?;
    for index in 0..PROGRAMS.len() {
        if verdicts[index] != Verdict::Attached {
            continue;
        }
        let program = &PROGRAMS[index];
        let earlier = PROGRAMS[..index].iter().zip(&verdicts[..index]);
        if earlier
            .into_iter()
            .any(|(other, verdict)| *verdict == Verdict::Attached && program.replaced_by(other))
        {
            verdicts[index] = Verdict::NotNeeded;
            continue;
        }
        let loaded = tracepoint(&mut ebpf, program.name).and_then(|found| found.load(program.hook, kernel));
        if let Err(error) = loaded {
            verdicts[index] = Verdict::Failed(chain(&error));
        }
    }
    Ok(ebpf)
}

fn tracepoint<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut BtfTracePoint, ProgramError> {
    ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()
}

/// An error with all its causes on one line. Of a verifier log that is its first line and what it refused,
/// the last one before its statistics.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    tracing::debug!("{text}");
    let statistics = ["verification time", "stack depth", "processed ", ": "];
    let told = |line: &&str| !line.is_empty() && !statistics.iter().any(|start| line.starts_with(start));
    let mut lines = text.lines().map(str::trim).filter(told);
    match (lines.next(), lines.next_back()) {
        (Some(first), Some(refused)) => format!("{first} ... {refused}"),
        (Some(first), None) => first.to_owned(),
        (None, _) => text,
    }
}

impl Verdict {
    /// The word for it in every output.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::NotNeeded => "not needed",
            Self::Unsupported(_) => "unsupported",
            Self::Failed(_) => "failed",
        }
    }

    /// Why, if there is more to say.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Attached | Self::NotNeeded => None,
            Self::Unsupported(reason) | Self::Failed(reason) => Some(reason),
        }
    }
}
