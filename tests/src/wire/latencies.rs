//! The latencies of many messages.

/// The latencies of one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    /// Every message's, ns, ascending.
    pub(super) sorted_ns: Vec<u64>,
    /// Messages seen on one side only.
    pub one_sided: u64,
    /// Messages that left before they arrived: impossible, so a sign of a wrong capture.
    pub backwards: u64,
}

impl FromIterator<u64> for Latencies {
    /// Of messages that took these times, ns.
    fn from_iter<I: IntoIterator<Item = u64>>(latencies_ns: I) -> Self {
        let mut sorted_ns: Vec<_> = latencies_ns.into_iter().collect();
        sorted_ns.sort_unstable();
        Self { sorted_ns, one_sided: 0, backwards: 0 }
    }
}

impl Latencies {
    /// Of messages that came in and went out at these times, ns, where they were seen.
    pub(super) fn of(times: impl Iterator<Item = [Option<u64>; 2]>) -> Self {
        let (mut one_sided, mut backwards) = (0, 0);
        let latencies_ns = times.filter_map(|time| {
            let [Some(in_ns), Some(out_ns)] = time else {
                one_sided += 1;
                return None;
            };
            let latency_ns = out_ns.checked_sub(in_ns);
            backwards += u64::from(latency_ns.is_none());
            latency_ns
        });
        let latencies: Self = latencies_ns.collect();
        Self { one_sided, backwards, ..latencies }
    }

    /// Messages seen on both sides.
    pub fn count(&self) -> u64 {
        self.sorted_ns.len() as u64
    }

    /// Arithmetic mean, ns; `None` of nothing.
    pub fn mean_ns(&self) -> Option<f64> {
        let sum_ns: u128 = self.sorted_ns.iter().map(|&latency_ns| u128::from(latency_ns)).sum();
        (!self.sorted_ns.is_empty()).then(|| sum_ns as f64 / self.sorted_ns.len() as f64)
    }

    /// The smallest latency that at least `per_mille` thousandths of the messages do not exceed, ns: the one of
    /// rank `ceil(q * n)`. `None` of nothing.
    pub fn quantile_ns(&self, per_mille: u64) -> Option<u64> {
        let rank = (self.count() * per_mille).div_ceil(1000).max(1);
        self.sorted_ns.get(usize::try_from(rank - 1).ok()?).copied()
    }

    /// The latencies so many ranks below and above that quantile's own, or the first and the last, ns. `None` of nothing.
    pub fn around_quantile_ns(&self, per_mille: u64, ranks: u64) -> Option<[u64; 2]> {
        let rank = (self.count() * per_mille).div_ceil(1000).max(1);
        let at = |rank: u64| self.sorted_ns.get(usize::try_from(rank - 1).ok()?).copied();
        Some([at(rank.saturating_sub(ranks).max(1))?, at((rank + ranks).min(self.count()))?])
    }

    /// The sum of so many of the longest, or of all, ns.
    pub fn longest_ns(&self, messages: u64) -> u128 {
        let longest = self.sorted_ns.iter().rev();
        longest.zip(0..messages).map(|(&latency_ns, _)| u128::from(latency_ns)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::Latencies;

    #[test]
    fn quantiles_are_exact_ranks() {
        let thousand: Latencies = (1..=1000).rev().collect();
        assert_eq!([500, 900, 990, 999].map(|q| thousand.quantile_ns(q)), [500, 900, 990, 999].map(Some));
        let three: Latencies = [20, 10, 90].into_iter().collect();
        assert_eq!(
            [1, 333, 334, 666, 667, 999].map(|q| three.quantile_ns(q)),
            [10, 10, 20, 20, 90, 90].map(Some)
        );
        assert_eq!(three.mean_ns(), Some(40.0));
        assert_eq!(Latencies::from_iter([7]).quantile_ns(999), Some(7));
        let none = Latencies::default();
        assert_eq!((none.mean_ns(), none.quantile_ns(500)), (None, None));
    }

    #[test]
    fn around_a_quantile_are_the_nearest_ranks() {
        let around = |count, per_mille, ranks| {
            let latencies: Latencies = (1..=count).collect();
            latencies.around_quantile_ns(per_mille, ranks)
        };
        assert_eq!(around(10_000, 500, 100), Some([4_900, 5_100]));
        assert_eq!(around(10_000, 990, 0), Some([9_900, 9_900]));
        assert_eq!(around(10, 999, 3), Some([7, 10]));
        assert_eq!(around(10, 100, 3), Some([1, 4]));
        assert_eq!(around(0, 500, 3), None);
    }

    #[test]
    fn the_longest_are_summed() {
        let three: Latencies = [20, 10, 90].into_iter().collect();
        assert_eq!([0, 1, 2, 4].map(|messages| three.longest_ns(messages)), [0, 90, 110, 120]);
    }
}
