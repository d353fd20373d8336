//! Loading: the object with this kernel's offsets, then its programs one by one.

use std::fs::File;
use std::io;
use std::path::Path;

use aya::programs::fentry::FEntryLinkId;
use aya::programs::tp_btf::BtfTracePointLinkId;
use aya::programs::{BtfTracePoint, FEntry, Iter, ProgramError};
use aya::{Ebpf, EbpfLoader};
use smp_agent_abi::layout::{COST_SLOTS_BESIDE, SERIES_PER_PROXY, SHARES};
use smp_agent_abi::names;

use super::btf::Btf;
use super::programs::{Hook, PROGRAMS, Program, Purpose, WRITE, WRITE_RETURN};
use super::{Options, ProbeError, Verdict, offsets};

/// The object, empty in a build without a BPF toolchain.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/smp-agent-ebpf"));

/// Threads with pending sets per proxy, on average. 200 KiB of kernel memory each.
pub(super) const THREADS_PER_PROXY: u32 = 4;
/// Processes whose threads share one, per proxy, on average. 200 KiB each as well.
pub(super) const SHARED_PER_PROXY: u32 = 1;
/// Threads that share a lane, per proxy, on average.
const SHARING_THREADS_PER_PROXY: u32 = 64;
/// Processes that belong to proxies, per proxy, on average: workers are processes for some.
const PROCESSES_PER_PROXY: u32 = 64;
/// Destinations of which it is remembered how connections to them begin, per proxy, on average; the least recent are
/// forgotten.
const DESTINATIONS_PER_PROXY: u32 = 256;
/// Listening ports of proxies, per proxy, on average.
const LISTENERS_PER_PROXY: u32 = 64;

/// The last release looked at in which programs on tracepoints run with preemption off.
const TRACEPOINTS_NOT_PREEMPTED: [u32; 2] = [6, 18];

/// Which programs to try, by what this kernel has; `Attached` stands for "to be loaded and attached".
pub(super) fn choose(btf: &Btf, without: &[String]) -> Vec<Verdict> {
    let verdict = |program: &Program| {
        if without.iter().any(|name| name == program.name) {
            return Verdict::Unsupported("switched off by --without".to_owned());
        }
        if !program.hook.exists(btf) {
            return Verdict::Unsupported(match program.hook {
                Hook::Tracepoint(name) => format!("this kernel has no tracepoint {name}"),
                Hook::Entry(name) => format!("this kernel has no function {name}"),
                Hook::Iterator(name) => format!("this kernel has no iterator {name}"),
            });
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
pub(super) fn load(
    btf: &Btf,
    kernel: &aya::Btf,
    verdicts: &mut [Verdict],
    options: &Options,
) -> Result<Ebpf, ProbeError> {
    // What the programs are told is frozen before the first is loaded, and which write program the kernel takes is
    // known after the last.
    let expected = Told::of(verdicts);
    let ebpf = load_told(btf, kernel, verdicts, options, expected)?;
    let told = Told::of(verdicts);
    if told == expected { Ok(ebpf) } else { load_told(btf, kernel, verdicts, options, told) }
}

/// What programs are told that depends on which of them there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    /// The write hook runs after the send.
    write_after_departure: bool,
    /// Programs may be preempted.
    preemptible: bool,
}

impl Told {
    /// By the first program for the write that is, or is to be, attached.
    fn of(verdicts: &[Verdict]) -> Self {
        let write = PROGRAMS
            .iter()
            .zip(verdicts)
            .find(|(program, verdict)| program.purpose == Purpose::Write && **verdict == Verdict::Attached);
        let name = write.map_or(WRITE, |(program, _)| program.name);
        Self { write_after_departure: name == WRITE_RETURN, preemptible: name != WRITE || preemptible() }
    }
}

/// Whether this kernel may preempt a program on a tracepoint, which no release up to 6.18 does (`__DECLARE_TRACE` in its
/// include/linux/tracepoint.h; that at a function's entry may be in all, where the kernel is a preemptible one).
fn preemptible() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or(u32::MAX));
    let mut next = || numbers.next().unwrap_or(u32::MAX);
    [next(), next()] > TRACEPOINTS_NOT_PREEMPTED || Path::new("/sys/kernel/realtime").exists()
}

fn load_told(
    btf: &Btf,
    kernel: &aya::Btf,
    verdicts: &mut [Verdict],
    options: &Options,
    told: Told,
) -> Result<Ebpf, ProbeError> {
    let threads = options.max_proxies * THREADS_PER_PROXY;
    let shared = options.max_proxies * SHARED_PER_PROXY;
    let mut loader = EbpfLoader::new();
    loader
        .btf(Some(kernel))
        .map_max_entries(names::SERIES, options.max_proxies * SERIES_PER_PROXY as u32)
        .map_max_entries(names::EXTENTS, options.max_proxies * SHARES * SERIES_PER_PROXY as u32)
        .map_max_entries(names::TALLIES, options.max_proxies * SHARES)
        .map_max_entries(names::COSTS, options.max_proxies + COST_SLOTS_BESIDE)
        .map_max_entries(names::TASKS, options.max_proxies * SHARING_THREADS_PER_PROXY)
        .map_max_entries(names::PROXIES, options.max_proxies * PROCESSES_PER_PROXY)
        .map_max_entries(names::LISTENERS, options.max_proxies * LISTENERS_PER_PROXY)
        .map_max_entries(names::THREADS, threads + shared)
        .map_max_entries(names::LANES, threads + shared)
        .map_max_entries(names::MOVES, options.max_proxies)
        .map_max_entries(names::RECENT, options.max_proxies * SHARING_THREADS_PER_PROXY)
        .map_max_entries(names::HANDSHAKES, options.max_proxies * DESTINATIONS_PER_PROXY)
        .map_max_entries(names::FREE_PLACES, threads)
        .map_max_entries(names::FREE_SHARED, shared);
    let offsets: Vec<_> = offsets::FIELDS
        .iter()
        .map(|field| (field.global, u64::from(field.offset_bytes(btf).unwrap_or_default())))
        .collect();
    for (global, offset) in &offsets {
        loader.override_global(global, offset, true);
    }
    // A kernel without that bit has no such sockets, which a mask of 0 says.
    let transparent = offsets::transparent(btf).unwrap_or_default();
    let (byte, mask) = (u64::from(transparent.byte), u64::from(transparent.mask));
    loader.override_global("TCP_TRANSPARENT", &byte, true);
    loader.override_global("TCP_TRANSPARENT_MASK", &mask, true);
    let (irq_time_apart, empty) = (u64::from(offsets::irq_time_apart(btf)), u64::from(options.empty));
    loader.override_global("IRQ_TIME_APART", &irq_time_apart, true);
    loader.override_global("EMPTY", &empty, true);
    let others = u64::from(options.max_proxies);
    loader.override_global("OTHERS_SLOT", &others, true);
    let [write_after_departure, preemptible] = [told.write_after_departure, told.preemptible].map(u64::from);
    loader.override_global("WRITE_AFTER_DEPARTURE", &write_after_departure, true);
    loader.override_global("PREEMPTIBLE", &preemptible, true);
    let mut ebpf = loader.load(OBJECT)?;
    for (index, program) in PROGRAMS.iter().enumerate() {
        let (earlier, rest) = verdicts.split_at_mut(index);
        let verdict = &mut rest[0];
        let mut better = PROGRAMS.iter().zip(earlier);
        if *verdict == Verdict::Attached
            && better.any(|(other, verdict)| *verdict == Verdict::Attached && program.replaced_by(other))
        {
            *verdict = Verdict::NotNeeded;
        }
        if (*verdict == Verdict::Attached || *verdict == Verdict::NotNeeded && options.load_all)
            && let Err(error) = load_program(&mut ebpf, program, kernel)
        {
            *verdict = Verdict::of(program.hook, &error);
        }
    }
    Ok(ebpf)
}

fn load_program(ebpf: &mut Ebpf, program: &Program, kernel: &aya::Btf) -> Result<(), ProgramError> {
    match program.hook {
        Hook::Tracepoint(name) => find::<BtfTracePoint>(ebpf, program.name)?.load(name, kernel),
        Hook::Entry(name) => find::<FEntry>(ebpf, program.name)?.load(name, kernel),
        Hook::Iterator(name) => find::<Iter>(ebpf, program.name)?.load(name, kernel),
    }
}

/// Attaches a loaded program; one that is only run when asked has nothing to be attached to.
pub(super) fn attach(ebpf: &mut Ebpf, program: &Program) -> Result<Option<Link>, ProgramError> {
    Ok(match program.hook {
        Hook::Tracepoint(_) => Some(Link::Tracepoint(find::<BtfTracePoint>(ebpf, program.name)?.attach()?)),
        Hook::Entry(_) => Some(Link::Entry(find::<FEntry>(ebpf, program.name)?.attach()?)),
        Hook::Iterator(_) => None,
    })
}

/// What a walk of an iterator's program finds: to be read to its end, which is the walk.
pub(super) fn walk(ebpf: &mut Ebpf, program: &str) -> io::Result<File> {
    let program = find::<Iter>(ebpf, program).map_err(io::Error::other)?;
    let link = program.attach().and_then(|link| program.take_link(link)).map_err(io::Error::other)?;
    link.into_file().map_err(io::Error::other)
}

/// What keeps a program attached.
pub(super) enum Link {
    Tracepoint(BtfTracePointLinkId),
    Entry(FEntryLinkId),
}

impl Link {
    pub(super) fn detach(self, ebpf: &mut Ebpf, program: &str) -> Result<(), ProgramError> {
        match self {
            Self::Tracepoint(link) => find::<BtfTracePoint>(ebpf, program)?.detach(link),
            Self::Entry(link) => find::<FEntry>(ebpf, program)?.detach(link),
        }
    }
}

fn find<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, ProgramError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()
}
