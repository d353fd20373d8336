//! The only reader of the kernel's maps: counters in, [`Snapshot`]s out.

use std::collections::BTreeMap;
use std::fs;

use procfs::process::Process;
use smp_agent_abi::bucket::BUCKETS;
use smp_agent_abi::layout::{
    COST_SLOTS_BESIDE, Cost, Direction, Extent, HOP_SERIES, LOSS_NAMES, Share, Tally, WAIT_SERIES,
    extent_place, series_place, tally_place,
};
use smp_agent_abi::names;

use crate::cgroup::Throttling;
use crate::clock::Instant;
use crate::cost::{CpuBeside, CpuCost};
use crate::counters::Counters as _;
use crate::histogram::{Exact, Histogram};
use crate::memory::Memory;
use crate::probe::{ProbeError, Probes};
use crate::usage::Usage;
use crate::window::{
    Bytes, Matching, Opened, Proxy, ProxyCost, ProxyWindow, SelfUse, Snapshot, UnixConnections,
};

/// In the order that a message passes them, backwards.
const SHARES: [Share; 2] = [Share::Beside, Share::Calls];

/// What is seen of a proxy beside the kernel half's counters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Looked {
    /// Connections that are not measured.
    pub unix: UnixConnections,
    /// Memory.
    pub memory: Memory,
    /// What its control group's limit has cost since it is followed.
    pub throttling: Option<Throttling>,
}

/// Reads all counters of `proxies`. The order of the reads is that in which the kernel counts, backwards, so
/// that a message is never in a class without having been seen.
///
/// `looked`, by slot, is what was seen beside the counters.
pub fn snapshot(
    probes: &Probes,
    proxies: &[Proxy],
    looked: &[Looked],
    now: Instant,
) -> Result<Snapshot, ProbeError> {
    let (costs, beside) = costs(probes, proxies.len() as u32, now.monotonic_ns)?;
    let read = |(proxy, counted): (&Proxy, Cost)| {
        let hops = histograms(probes, proxy.slot)?;
        let tally = tally(probes, proxy.slot)?;
        let Looked { unix, memory, throttling } =
            looked.get(proxy.slot as usize).copied().unwrap_or_default();
        let run_queue_wait = histogram(probes, proxy.slot, WAIT_SERIES)?;
        let cpu = CpuCost { counted, run_queue_wait, irq_time_apart: probes.irq_time_apart() };
        let cost = ProxyCost { cpu, bytes: bytes(&tally), opened: opened(&tally), memory, throttling };
        Ok(ProxyWindow { proxy: proxy.clone(), hops, matching: matching(&tally), unix, cost })
    };
    let proxies = proxies.iter().zip(costs).map(read).collect::<Result<_, ProbeError>>()?;
    let (usage, self_use) = (Usage::read(), self_use());
    let programs = probes.runs();
    Ok(Snapshot { at: now.at, proxies, programs, beside, usage, pods: None, processes: None, self_use })
}

/// What the proxies in the first slots cost so far, and the CPUs beside them. Who runs now has run since it was switched to.
fn costs(probes: &Probes, proxies: u32, now_ns: u64) -> Result<(Vec<Cost>, CpuBeside), ProbeError> {
    let failed = |map| move |source| ProbeError::Map { map, source };
    let costs = probes.costs()?;
    let others = probes.max_proxies();
    let slots = (0..proxies).chain(others..others + COST_SLOTS_BESIDE);
    let mut all = Vec::new();
    for slot in slots.clone() {
        let cpus = costs.get(&slot, 0).map_err(failed(names::COSTS))?;
        all.push(cpus.iter().fold(Cost::default(), |sum, &cpu| sum.plus(cpu)));
    }
    for cpu in probes.running()?.get(&0, 0).map_err(failed(names::RUNNING))?.iter() {
        let place = slots.clone().position(|slot| slot == cpu.slot);
        if cpu.since_ns != 0
            && let Some(place) = place
        {
            all[place].on_cpu_ns += now_ns.saturating_sub(cpu.since_ns).saturating_sub(cpu.softirq_ns);
        }
    }
    let mut beside = all.split_off(proxies as usize).into_iter();
    let mut next = || beside.next().unwrap_or_default();
    Ok((all, CpuBeside { others: next(), idle: next() }))
}

fn histograms(probes: &Probes, slot: u32) -> Result<[Histogram; HOP_SERIES], ProbeError> {
    let mut histograms = std::array::from_fn(|_| Histogram::new());
    for (series, place) in histograms.iter_mut().enumerate() {
        *place = histogram(probes, slot, series as u32)?;
    }
    Ok(histograms)
}

/// Counts first: no sum is without the values of its counts.
fn histogram(probes: &Probes, slot: u32, series: u32) -> Result<Histogram, ProbeError> {
    let failed = |map| move |source| ProbeError::Map { map, source };
    let counts = probes.series()?.get(&series_place(slot, series), 0).map_err(failed(names::SERIES))?.counts;
    let extents = probes.extents()?;
    let mut exact = Exact { min_ns: u64::MAX, ..Exact::default() };
    for share in SHARES {
        let place = extent_place(slot, share, series);
        for extent in extents.get(&place, 0).map_err(failed(names::EXTENTS))?.iter() {
            let Extent { sum_ns, max_ns, min_inverted_ns, clamped } = *extent;
            exact.sum_ns += sum_ns;
            exact.max_ns = exact.max_ns.max(max_ns);
            exact.min_ns = exact.min_ns.min(!min_inverted_ns);
            exact.clamped += clamped;
        }
    }
    Ok(Histogram::from_counts(&counts[..BUCKETS], exact))
}

fn tally(probes: &Probes, slot: u32) -> Result<Tally, ProbeError> {
    let tallies = probes.tallies()?;
    let mut total = Tally::default();
    for share in SHARES {
        let per_cpu = tallies
            .get(&tally_place(slot, share), 0)
            .map_err(|source| ProbeError::Map { map: names::TALLIES, source })?;
        per_cpu.iter().for_each(|tally| add(&mut total, tally));
    }
    Ok(total)
}

fn bytes(tally: &Tally) -> Bytes {
    let [request, response] = [Direction::Request as usize, Direction::Response as usize];
    Bytes {
        downstream_in: tally.read_bytes[request],
        downstream_out: tally.written_bytes[response],
        upstream_in: tally.read_bytes[response],
        upstream_out: tally.written_bytes[request],
    }
}

const fn opened(tally: &Tally) -> Opened {
    Opened { plain: tally.opened_plain, tls: tally.opened_tls, mutual_tls: tally.opened_mutual_tls }
}

/// Adds what was counted elsewhere.
fn add(total: &mut Tally, tally: &Tally) {
    total.seen += tally.seen;
    total.exact += tally.exact;
    total.ambiguous += tally.ambiguous;
    total.unmatched += tally.unmatched;
    total.local += tally.local;
    total.pending = total.pending.wrapping_add(tally.pending);
    total.departing = total.departing.wrapping_add(tally.departing);
    total.lost.iter_mut().zip(tally.lost).for_each(|(total, lost)| *total += lost);
    total.read_bytes.iter_mut().zip(tally.read_bytes).for_each(|(total, bytes)| *total += bytes);
    total.written_bytes.iter_mut().zip(tally.written_bytes).for_each(|(total, bytes)| *total += bytes);
    total.opened_plain += tally.opened_plain;
    total.opened_tls += tally.opened_tls;
    total.opened_mutual_tls += tally.opened_mutual_tls;
}

/// The classes. What the kernel counted as seen before it knew that the proxy would answer itself is not a crossing, so it is
/// taken out of `seen` here.
fn matching(total: &Tally) -> Matching {
    let lost: BTreeMap<_, _> =
        LOSS_NAMES.into_iter().zip(total.lost).filter(|&(_, count)| count > 0).collect();
    Matching {
        seen: total.seen.saturating_sub(total.local),
        exact: total.exact,
        ambiguous: total.ambiguous,
        unmatched: total.unmatched,
        local: total.local,
        lost,
        in_flight: total.pending.wrapping_add(total.departing),
    }
}

/// CPU time and memory of this process; zero where `/proc` does not say.
pub(crate) fn self_use() -> SelfUse {
    let Ok(stat) = Process::myself().and_then(|process| process.stat()) else { return SelfUse::default() };
    let ticks = stat.utime + stat.stime;
    SelfUse {
        cpu_ns: ticks * 1_000_000_000 / procfs::ticks_per_second(),
        rss_bytes: stat.rss * procfs::page_size(),
        map_bytes: map_bytes(),
    }
}

/// What the kernel holds for the maps of this process: `bpf_map_show_fdinfo` of its kernel/bpf/syscall.c.
fn map_bytes() -> u64 {
    let of = |entry: std::io::Result<fs::DirEntry>| -> Option<u64> {
        let text = fs::read_to_string(entry.ok()?.path()).ok()?;
        text.contains("map_type:").then_some(())?;
        text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
    };
    fs::read_dir("/proc/self/fdinfo").into_iter().flatten().filter_map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use smp_agent_abi::layout::Loss;

    #[test]
    fn a_share_below_zero_on_one_cpu_adds_up() {
        let mut first = Tally { seen: 10, exact: 5, local: 2, pending: 3, ..Tally::default() };
        first.lost[Loss::PendingFull as usize] = 1;
        let second = Tally { pending: 1u64.wrapping_neg(), ..Tally::default() };
        let mut total = first;
        add(&mut total, &second);
        let total = matching(&total);
        assert_eq!(total.in_flight, 2);
        assert_eq!(total.lost, BTreeMap::from([("pending_full", 1)]));
        let lost: u64 = total.lost.values().sum();
        assert_eq!(total.seen, total.exact + total.ambiguous + total.unmatched + lost + total.in_flight);
    }
}
