//! The one `HdrHistogram` configuration of the whole system, with exact sum, minimum and maximum beside it.
//!
//! Unit ns, two significant digits, 1 ns to 60 s. The kernel's buckets are the crate's own
//! ([`smp_agent_abi::bucket`]), so nothing is lost on the way to user space.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::serialization::{Serializer as _, V2DeflateSerializer};
use smp_agent_abi::bucket::{self, HIGHEST_NS, SIGNIFICANT_DIGITS};

/// A distribution of latencies in ns.
#[derive(Clone, Debug)]
pub struct Histogram {
    buckets: hdrhistogram::Histogram<u64>,
    sum_ns: u64,
    min_ns: u64,
    max_ns: u64,
    clamped: u64,
}

/// What was kept beside the buckets, as the kernel keeps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exact {
    /// Sum of all values, ns.
    pub sum_ns: u64,
    /// Smallest value, ns; anything when there are no values.
    pub min_ns: u64,
    /// Largest value, ns, not clamped; anything when there are no values.
    pub max_ns: u64,
    /// How many values were above 60 s and sit in the last bucket.
    pub clamped: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl Histogram {
    /// An empty one.
    pub fn new() -> Self {
        let buckets = hdrhistogram::Histogram::new_with_bounds(1, HIGHEST_NS, SIGNIFICANT_DIGITS)
            .expect("constants within the crate's bounds");
        Self { buckets, sum_ns: 0, min_ns: 0, max_ns: 0, clamped: 0 }
    }

    /// From the kernel's counts, one per bucket, and what it kept beside them.
    pub fn from_counts(counts: &[u64], exact: Exact) -> Self {
        let mut new = Self::new();
        for (index, &count) in counts.iter().enumerate().filter(|&(_, &count)| count > 0) {
            new.add_count(bucket::lowest_ns(index).min(HIGHEST_NS), count);
        }
        if new.count() > 0 {
            let Exact { sum_ns, min_ns, max_ns, clamped } = exact;
            (new.sum_ns, new.min_ns, new.max_ns, new.clamped) = (sum_ns, min_ns, max_ns, clamped);
        }
        new
    }

    /// Adds one value.
    pub fn record(&mut self, value_ns: u64) {
        self.min_ns = if self.is_empty() { value_ns } else { self.min_ns.min(value_ns) };
        self.max_ns = self.max_ns.max(value_ns);
        self.sum_ns = self.sum_ns.saturating_add(value_ns);
        self.clamped += u64::from(value_ns > HIGHEST_NS);
        self.add_count(value_ns.min(HIGHEST_NS), 1);
    }

    /// Adds all of `other`. Cannot fail: there is one configuration.
    pub fn merge(&mut self, other: &Self) {
        if other.is_empty() {
            return;
        }
        self.min_ns = if self.is_empty() { other.min_ns } else { self.min_ns.min(other.min_ns) };
        self.max_ns = self.max_ns.max(other.max_ns);
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
        self.clamped += other.clamped;
        self.buckets.add(&other.buckets).expect("one configuration");
    }

    /// What was recorded after `earlier`, an older state of this same histogram.
    ///
    /// Counts and sum are exact. Minimum and maximum are exact when they were set since, or when `earlier` is
    /// empty; otherwise they are those of the outermost bucket with a new count, within 0.79 %.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        if earlier.is_empty() {
            return self.clone();
        }
        let mut new = Self::new();
        for step in self.buckets.iter_recorded() {
            let value_ns = step.value_iterated_to();
            let count = step.count_at_value().saturating_sub(earlier.buckets.count_at(value_ns));
            if count > 0 {
                new.add_count(value_ns.min(HIGHEST_NS), count);
            }
        }
        if new.is_empty() {
            return new;
        }
        new.sum_ns = self.sum_ns.saturating_sub(earlier.sum_ns);
        new.clamped = self.clamped.saturating_sub(earlier.clamped);
        new.min_ns =
            if self.min_ns < earlier.min_ns { self.min_ns } else { new.buckets.min().max(self.min_ns) };
        new.max_ns =
            if self.max_ns > earlier.max_ns { self.max_ns } else { new.buckets.max().min(self.max_ns) };
        new
    }

    /// How many values.
    pub fn count(&self) -> u64 {
        self.buckets.len()
    }

    /// True without values: then there is no mean, minimum, maximum or percentile either.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// Exact sum, ns.
    pub const fn sum_ns(&self) -> u64 {
        self.sum_ns
    }

    /// Smallest value, ns.
    pub fn min_ns(&self) -> Option<u64> {
        (!self.is_empty()).then_some(self.min_ns)
    }

    /// Largest value, ns; may be above 60 s.
    pub fn max_ns(&self) -> Option<u64> {
        (!self.is_empty()).then_some(self.max_ns)
    }

    /// Exact mean, ns.
    pub fn mean_ns(&self) -> Option<f64> {
        (!self.is_empty()).then(|| self.sum_ns as f64 / self.count() as f64)
    }

    /// The value that a share `quantile` (0 to 1) of all values does not exceed, ns: the top of its bucket, as
    /// every `HdrHistogram` gives it.
    pub fn quantile_ns(&self, quantile: f64) -> Option<u64> {
        (!self.is_empty()).then(|| self.buckets.value_at_quantile(quantile))
    }

    /// How many values lie in buckets up to and including the one of `bound_ns`.
    pub fn count_up_to(&self, bound_ns: u64) -> u64 {
        self.buckets.count_between(0, bound_ns.min(HIGHEST_NS))
    }

    /// How many values were above 60 s.
    pub const fn clamped(&self) -> u64 {
        self.clamped
    }

    /// `HdrHistogram` V2, compressed, base64: what any `HdrHistogram` library decodes.
    pub fn to_base64(&self) -> String {
        let mut bytes = Vec::new();
        V2DeflateSerializer::new()
            .serialize(&self.buckets, &mut bytes)
            .expect("writing to memory cannot fail");
        STANDARD.encode(bytes)
    }

    fn add_count(&mut self, value_ns: u64, count: u64) {
        self.buckets.record_n(value_ns, count).expect("value within the configured range");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(values_ns: &[u64]) -> Histogram {
        let mut histogram = Histogram::new();
        for &value_ns in values_ns {
            histogram.record(value_ns);
        }
        histogram
    }

    #[test]
    fn empty_has_no_statistics() {
        let empty = Histogram::new();
        assert_eq!(
            (empty.min_ns(), empty.max_ns(), empty.mean_ns(), empty.quantile_ns(0.5)),
            (None, None, None, None)
        );
    }

    #[test]
    fn above_the_range_is_clamped_and_counted() {
        let histogram = of(&[HIGHEST_NS + 5]);
        assert_eq!(
            (histogram.count(), histogram.clamped(), histogram.max_ns()),
            (1, 1, Some(HIGHEST_NS + 5))
        );
    }

    #[test]
    fn kernel_counts_are_the_same_histogram() {
        let values = [0, 1, 255, 256, 12_345, 999_999_999, HIGHEST_NS];
        let mut counts = vec![0; bucket::BUCKETS];
        for &value in &values {
            counts[bucket::index(value)] += 1;
        }
        let exact = Exact { sum_ns: values.iter().sum(), min_ns: 0, max_ns: HIGHEST_NS, clamped: 0 };
        let (kernel, host) = (Histogram::from_counts(&counts, exact), of(&values));
        assert_eq!(kernel.buckets, host.buckets);
        assert_eq!(
            (kernel.sum_ns(), kernel.min_ns(), kernel.max_ns()),
            (host.sum_ns(), host.min_ns(), host.max_ns())
        );
    }

    proptest! {
        #[test]
        fn quantiles_against_the_sorted_values(mut values in prop::collection::vec(1u64..HIGHEST_NS, 1..300), quantile in 0.0..1.0f64) {
            let got = of(&values).quantile_ns(quantile).unwrap() as f64;
            values.sort_unstable();
            let below = values.iter().enumerate().find(|(index, _)| (index + 1) as f64 >= quantile * values.len() as f64);
            let want = below.map_or(values[values.len() - 1], |(_, &value)| value) as f64;
            prop_assert!(got >= want && got <= want * (1.0 + 1.0 / 128.0), "{got} for {want}");
        }

        #[test]
        fn since_undoes_merge(before in prop::collection::vec(0u64..HIGHEST_NS, 0..100), after in prop::collection::vec(0u64..HIGHEST_NS, 0..100)) {
            let (earlier, later) = (of(&before), of(&after));
            let mut all = earlier.clone();
            all.merge(&later);
            let difference = all.since(&earlier);
            prop_assert_eq!(&difference.buckets, &later.buckets);
            prop_assert_eq!(difference.sum_ns(), later.sum_ns());
            if let (Some(min), Some(max)) = (later.min_ns(), later.max_ns()) {
                prop_assert!(difference.min_ns().unwrap() <= min && difference.max_ns().unwrap() >= max);
                prop_assert!(difference.max_ns().unwrap() as f64 <= max as f64 * (1.0 + 1.0 / 128.0) + 1.0);
            }
        }
    }
}
