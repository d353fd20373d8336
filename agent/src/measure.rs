//! The owner of the probes: which proxies are followed, and what was counted so far.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsRawFd as _;
use std::time::Instant;

use aya::maps::{MapData, RingBuf};
use smp_agent_abi::layout::{HELD_TCP, PROCESS_EXEC, PROCESS_EXIT, PROCESS_FORK};
use thiserror::Error;
use tokio::io::unix::AsyncFd;
use tracing::{debug, info, warn};

use crate::breaker::{Breaker, Trip};
use crate::cgroup::pods::PodGroups;
use crate::cgroup::{Cgroup, Throttling};
use crate::clock::Instant as Now;
use crate::co_tenants::{self, Processes};
use crate::counters::Counters as _;
use crate::discover::{self, DiscoverError, Found, Target};
use crate::drain::{self, Looked};
use crate::identity::{Facts, Identity};
use crate::kubernetes::{self, Names};
use crate::memory::Memory;
use crate::probe::{Options, ProbeError, Probes};
use crate::window::{Proxy, Snapshot, UnixConnections};

/// Ticks after a proxy has begun during which `/proc` is searched again: it may have forked workers and begun
/// to listen before it was followed.
const SETTLE_TICKS: u32 = 3;

/// So many times as long as a look at the sockets, or at memory, took it is until the next one: each takes at most 0.1 % of a
/// core, however many processes and open files there are.
const LOOK_PAUSE: u32 = 1_000;

/// Why a measurement cannot start or go on.
#[derive(Debug, Error)]
pub enum MeasureError {
    /// The proxies asked for are not there.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// The probes cannot be had.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The kernel's news cannot be waited for.
    #[error("waiting for news of processes: {0}")]
    Events(std::io::Error),
}

/// Probes at work. Dropping it detaches them.
pub struct Measurement {
    probes: Probes,
    events: AsyncFd<RingBuf<MapData>>,
    targets: Vec<Target>,
    proxies: Vec<Proxy>,
    /// Slot of each process that is followed.
    members: HashMap<u32, u32>,
    /// By slot.
    looks: Vec<Look>,
    next_look: Instant,
    next_memory_look: Instant,
    /// Proxies that found no slot, so that each is said once.
    refused: HashSet<u32>,
    settle_ticks: u32,
    breaker: Option<Breaker>,
    names: Option<Names>,
    begun: Snapshot,
}

/// What is looked at of a proxy beside the kernel half's counters.
#[derive(Debug)]
struct Look {
    unix: UnixConnections,
    memory: Memory,
    cgroup: Cgroup,
    /// Who has started it.
    parent: Option<u32>,
    /// What its group's limit had cost when it was taken up.
    throttled_before: Option<Throttling>,
}

impl Look {
    fn new(pid: u32) -> Self {
        let cgroup = Cgroup::of(pid);
        let throttled_before = cgroup.throttling();
        Self {
            unix: UnixConnections::default(),
            memory: Memory::default(),
            cgroup,
            parent: co_tenants::parent(pid),
            throttled_before,
        }
    }

    fn looked(&self) -> Looked {
        let throttling =
            self.cgroup.throttling().map(|now| now.since(self.throttled_before.unwrap_or_default()));
        Looked { unix: self.unix, memory: self.memory, throttling }
    }
}

impl Measurement {
    /// Finds the proxies, attaches the probes and follows what was found. With no `targets` all known proxies
    /// are followed, those that begin later too; their pods are called by `names`. Must be called inside a tokio runtime.
    pub fn start(
        options: &Options,
        targets: Vec<Target>,
        names: Option<Names>,
    ) -> Result<Self, MeasureError> {
        // A proxy that is not there is said before anything is loaded.
        let found = discover::scan(&targets)?;
        let mut probes = Probes::attach(options)?;
        probes.measures_hops()?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe; a ring buffer keeps its descriptor as long as it lives"
        )]
        let events = AsyncFd::new(probes.take_events()?).map_err(MeasureError::Events)?;
        let (pods, processes) = (Some(PodGroups::counters()), Some(Processes::read()));
        let begun = Snapshot { pods, processes, ..drain::snapshot(&probes, &[], &[], Now::now())? };
        let mut new = Self {
            probes,
            events,
            begun,
            targets,
            proxies: Vec::new(),
            members: HashMap::new(),
            looks: Vec::new(),
            next_look: Instant::now(),
            next_memory_look: Instant::now(),
            refused: HashSet::new(),
            settle_ticks: 0,
            breaker: options.max_cores.map(Breaker::new),
            names,
        };
        found.iter().try_for_each(|found| new.follow(found))?;
        new.look()?;
        new.look_at_memory();
        Ok(new)
    }

    /// The proxies followed so far, in slot order; one that has ended stays.
    pub fn proxies(&self) -> &[Proxy] {
        &self.proxies
    }

    /// The counters when nothing was followed yet: all of them zero.
    pub fn begun(&self) -> &Snapshot {
        &self.begun
    }

    /// All counters now. Messages go on crossing while it is taken, so single counters may be a few apart.
    pub fn snapshot(&self) -> Result<Snapshot, MeasureError> {
        Ok(drain::snapshot(&self.probes, &self.proxies, &self.looked(), Now::now())?)
    }

    /// Detaches the probes and returns the counters as they stand still, and the names that have come.
    pub fn finish(mut self) -> Result<(Snapshot, Option<Names>), MeasureError> {
        let now = Now::now();
        // Detaching takes long enough for them to go on.
        let pods = Some(PodGroups::counters_and_memory());
        let processes = Some(self.processes_beside());
        self.probes.detach()?;
        self.name_pods();
        self.look_again();
        self.look_at_memory();
        for slot in 0..self.looks.len() {
            let pids = self.pids(slot);
            self.looks[slot].memory.look_at_shared(&pids);
        }
        let drained = drain::snapshot(&self.probes, &self.proxies, &self.looked(), now)?;
        let closed = Snapshot { pods, processes, ..drained };
        Ok((closed, self.names))
    }

    /// Asks for the pods that are not known, or not by the best source.
    fn name_pods(&mut self) {
        let Some(names) = &self.names else { return };
        for proxy in &mut self.proxies {
            if !proxy.pod.as_ref().is_some_and(kubernetes::Pod::is_complete)
                && let Some(pod) = names.pod(&proxy.container)
            {
                proxy.identity.learn(&pod);
                proxy.pod = Some(pod);
            }
        }
    }

    fn looked(&self) -> Vec<Looked> {
        self.looks.iter().map(Look::looked).collect()
    }

    /// All processes, without what is told of the proxies and of the agent.
    fn processes_beside(&self) -> Processes {
        // One that has ended may still be there for its parent to see.
        let is_proxy =
            |pid| self.members.contains_key(&pid) || self.proxies.iter().any(|proxy| proxy.pid == pid);
        let has_started_one = |pid| self.looks.iter().any(|look| look.parent == Some(pid));
        Processes::read().beside(std::process::id(), is_proxy, has_started_one)
    }

    /// The processes of the proxy in a slot.
    fn pids(&self, slot: usize) -> Vec<u32> {
        self.members.iter().filter(|&(_, of)| *of as usize == slot).map(|(&pid, _)| pid).collect()
    }

    fn look_at_memory(&mut self) {
        let begun = Instant::now();
        for slot in 0..self.looks.len() {
            let pids = self.pids(slot);
            let look = &mut self.looks[slot];
            look.memory.look(&pids, &look.cgroup);
        }
        self.next_memory_look = Instant::now() + begun.elapsed() * LOOK_PAUSE;
    }

    /// Waits for news of processes and acts on them. Cancel-safe.
    pub async fn next_news(&mut self) -> Result<(), MeasureError> {
        let mut ready = self.events.readable_mut().await.map_err(MeasureError::Events)?;
        let mut news = Vec::new();
        while let Some(item) = ready.get_inner_mut().next() {
            if let [a, b, c, d, e, f, g, h] = *item {
                news.push((u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])));
            }
        }
        ready.clear_ready();
        news.into_iter().try_for_each(|(kind, tgid)| self.on_process(kind, tgid))
    }

    /// To be called about once a second.
    pub fn tick(&mut self) -> Result<(), MeasureError> {
        self.check_cost()?;
        self.name_pods();
        if self.next_memory_look <= Instant::now() {
            self.look_at_memory();
        }
        if self.settle_ticks > 0 {
            self.settle_ticks -= 1;
            return self.rescan();
        }
        // Sockets are handed from process to process, and those of the Unix domain are seen in no other way.
        if self.next_look <= Instant::now() {
            self.look_again();
        }
        Ok(())
    }

    /// Gives up what costs most, if measuring costs more than it may.
    fn check_cost(&mut self) -> Result<(), MeasureError> {
        let Some(breaker) = &mut self.breaker else { return Ok(()) };
        let trip = breaker.look(&self.probes.runs(), drain::self_use().cpu_ns, Instant::now());
        let Some(Trip { group, cores }) = trip else { return Ok(()) };
        let reason = format!(
            "no longer measured: {}; measuring cost {:.2} % of a CPU, more than --max-cpu allows, and this most of it",
            group.as_str(),
            100.0 * cores
        );
        warn!("{reason}");
        Ok(self.probes.give_up(group, &reason)?)
    }

    fn on_process(&mut self, kind: u32, tgid: u32) -> Result<(), MeasureError> {
        match kind {
            PROCESS_EXEC => self.on_exec(tgid),
            PROCESS_FORK => {
                // The kernel follows it already, as what its parent was.
                if let Ok(slot) = self.probes.proxies()?.get(&tgid, 0) {
                    self.members.insert(tgid, slot);
                }
                Ok(())
            }
            PROCESS_EXIT => self.forget(tgid),
            _ => Ok(()),
        }
    }

    fn on_exec(&mut self, tgid: u32) -> Result<(), MeasureError> {
        let found = discover::look(tgid, &self.targets);
        let Some(found) = found else { return self.forget(tgid) };
        let same =
            |slot: &u32| self.proxies.iter().any(|proxy| proxy.slot == *slot && proxy.exe == found.exe);
        if self.members.get(&tgid).is_some_and(same) {
            return Ok(());
        }
        self.settle_ticks = SETTLE_TICKS;
        self.rescan()
    }

    fn rescan(&mut self) -> Result<(), MeasureError> {
        // A process asked for by number that has ended since is no error now.
        let Ok(found) = discover::scan(&self.targets) else { return Ok(()) };
        found.iter().try_for_each(|found| self.follow(found))?;
        self.look_again();
        Ok(())
    }

    /// As [`Measurement::look`]; what is measured does not depend on its success any more.
    fn look_again(&mut self) {
        if let Err(error) = self.look() {
            warn!("{error}; connections from before may lose a message, and some may not be counted");
        }
    }

    /// Has the kernel look at the sockets of all that is followed.
    fn look(&mut self) -> Result<(), MeasureError> {
        let begun = Instant::now();
        let mut now = vec![(UnixConnections::default(), 0); self.proxies.len()];
        // A master shares its sockets with its workers.
        let mut seen = HashSet::new();
        for held in self.probes.walk()? {
            let Some((unix, tcp_bytes)) = now.get_mut(held.proxy_slot as usize) else { continue };
            if !seen.insert((held.proxy_slot, held.cookie)) {
                continue;
            }
            match held.kind {
                HELD_TCP => *tcp_bytes += held.memory_bytes,
                role => unix.count(role),
            }
        }
        let alive: HashSet<_> = self.members.values().copied().collect();
        for ((look, (unix, tcp_bytes)), proxy) in self.looks.iter_mut().zip(now).zip(&self.proxies) {
            look.unix.raise(unix);
            // Who has ended keeps what was seen last.
            if alive.contains(&proxy.slot) {
                look.memory.look_at_sockets(tcp_bytes);
            }
        }
        let took = begun.elapsed();
        debug!("looking at the sockets took {} us", took.as_micros());
        self.next_look = Instant::now() + took * LOOK_PAUSE;
        Ok(())
    }

    /// Takes a proxy into the kernel's tables.
    fn follow(&mut self, found: &Found) -> Result<(), MeasureError> {
        let known = self.proxies.iter().find(|proxy| proxy.pid == found.pid && proxy.exe == found.exe);
        let slot = match known {
            Some(proxy) => proxy.slot,
            None => match self.add(found) {
                Some(slot) => slot,
                None => return Ok(()),
            },
        };
        for &pid in &found.members {
            if self.members.insert(pid, slot) != Some(slot) {
                self.probes.follow(pid, slot)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, found: &Found) -> Option<u32> {
        let slot = self.proxies.len() as u32;
        if slot >= self.probes.max_proxies() {
            if self.refused.insert(found.pid) {
                warn!(
                    "{} (pid {}) is not measured: the table of {slot} proxies is full; give --max-proxies",
                    found.name, found.pid
                );
            }
            return None;
        }
        info!(pid = found.pid, processes = found.members.len(), "following {}", found.name);
        let (pid, name, exe) = (found.pid, found.name.clone(), found.exe.clone());
        let look = Look::new(pid);
        let identity = Identity::of(&Facts::of(pid, &name, found.members.len() as u32));
        let container = look.cgroup.container.clone();
        let pod = kubernetes::of_process(pid);
        self.proxies.push(Proxy { slot, pid, name, exe, container, pod, identity });
        self.looks.push(look);
        self.name_pods();
        Some(slot)
    }

    fn forget(&mut self, tgid: u32) -> Result<(), MeasureError> {
        if self.members.remove(&tgid).is_some() {
            // Absent when the kernel has forgotten it already.
            let _removed = self.probes.proxies()?.remove(&tgid);
        }
        Ok(())
    }
}

impl std::fmt::Debug for Measurement {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Measurement")
            .field("events", &self.events.as_raw_fd())
            .field("proxies", &self.proxies)
            .finish_non_exhaustive()
    }
}
