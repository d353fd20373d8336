//! The only reader of the kernel's maps: counters in, [`Snapshot`]s out.

use std::collections::BTreeMap;

use jiff::Timestamp;
use procfs::process::Process;
use smp_agent_abi::layout::{LOSS_NAMES, SERIES_PER_PROXY, Series, Tally};
use smp_agent_abi::names;

use crate::histogram::{Exact, Histogram};
use crate::probe::{ProbeError, Probes};
use crate::window::{Matching, Proxy, ProxyWindow, SelfUse, Snapshot, UnixConnections};

/// Reads all counters of `proxies`. The order of the reads is that in which the kernel counts, backwards, so
/// that a message is never in a class without having been seen.
///
/// `unix`, by slot, is what was seen beside the counters.
pub fn snapshot(
    probes: &Probes,
    proxies: &[Proxy],
    unix: &[UnixConnections],
    at: Timestamp,
) -> Result<Snapshot, ProbeError> {
    let read = |proxy: &Proxy| {
        let hops = histograms(probes, proxy.slot)?;
        let matching = matching(probes, proxy.slot)?;
        let unix = unix.get(proxy.slot as usize).copied().unwrap_or_default();
        Ok(ProxyWindow { proxy: proxy.clone(), hops, matching, unix })
    };
    let proxies = proxies.iter().map(read).collect::<Result<_, ProbeError>>()?;
    Ok(Snapshot { at, proxies, programs: probes.runs(), self_use: self_use() })
}

fn histograms(probes: &Probes, slot: u32) -> Result<[Histogram; SERIES_PER_PROXY], ProbeError> {
    let series = probes.series()?;
    let mut histograms = std::array::from_fn(|_| Histogram::new());
    for (index, histogram) in histograms.iter_mut().enumerate() {
        let place = slot * SERIES_PER_PROXY as u32 + index as u32;
        let Series { sum_ns, max_ns, min_inverted_ns, clamped, counts } =
            series.get(&place, 0).map_err(|source| ProbeError::Map { map: names::SERIES, source })?;
        *histogram =
            Histogram::from_counts(&counts, Exact { sum_ns, min_ns: !min_inverted_ns, max_ns, clamped });
    }
    Ok(histograms)
}

fn matching(probes: &Probes, slot: u32) -> Result<Matching, ProbeError> {
    let tallies = probes.tallies()?;
    let per_cpu = tallies.get(&slot, 0).map_err(|source| ProbeError::Map { map: names::TALLIES, source })?;
    Ok(sum(per_cpu.iter()))
}

/// Adds up the CPUs' counters. What the kernel counted as seen before it knew that the proxy would answer
/// itself is not a crossing, so it is taken out of `seen` here.
fn sum<'a>(per_cpu: impl Iterator<Item = &'a Tally>) -> Matching {
    let mut total = Tally::default();
    for tally in per_cpu {
        total.seen += tally.seen;
        total.exact += tally.exact;
        total.ambiguous += tally.ambiguous;
        total.unmatched += tally.unmatched;
        total.local += tally.local;
        total.pending = total.pending.wrapping_add(tally.pending);
        total.departing = total.departing.wrapping_add(tally.departing);
        total.lost.iter_mut().zip(tally.lost).for_each(|(total, lost)| *total += lost);
    }
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
fn self_use() -> SelfUse {
    let Ok(stat) = Process::myself().and_then(|process| process.stat()) else { return SelfUse::default() };
    let ticks = stat.utime + stat.stime;
    SelfUse {
        cpu_ns: ticks * 1_000_000_000 / procfs::ticks_per_second(),
        rss_bytes: stat.rss * procfs::page_size(),
    }
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
        let total = sum([first, second].iter());
        assert_eq!(total.in_flight, 2);
        assert_eq!(total.lost, BTreeMap::from([("pending_full", 1)]));
        let lost: u64 = total.lost.values().sum();
        assert_eq!(total.seen, total.exact + total.ambiguous + total.unmatched + lost + total.in_flight);
    }
}
