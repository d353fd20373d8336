//! The one histogram configuration: nanoseconds, two significant digits, 1 ns to 60 s.
//!
//! The index of a value is that of `HdrHistogram` with `lowest = 1, highest = 60 s, digits = 2`: 256
//! sub-buckets, so the lower 256 values have a bucket each and from there every power of two is cut into 128.
//! A bucket is at most 1/128 (0.78 %) as wide as the values in it.

/// Largest value that has a bucket of its own; greater ones are clamped to it and counted.
pub const HIGHEST_NS: u64 = 60_000_000_000;
/// Significant decimal digits, as `HdrHistogram` counts them.
pub const SIGNIFICANT_DIGITS: u8 = 2;
/// Number of buckets: 29 doublings and the first half, 128 each.
pub const BUCKETS: usize = 30 * HALF as usize;
/// ... and of places for their counts: a power of two, so that a mask shows the kernel's verifier that an index is below it.
pub const PLACES: usize = BUCKETS.next_power_of_two();

/// log2 of the sub-bucket count: the smallest power of two that holds 2 x 10^`SIGNIFICANT_DIGITS`.
const SUB_BITS: u32 = 8;
const HALF: u32 = 1 << (SUB_BITS - 1);
const SUB_MASK: u64 = (1 << SUB_BITS) - 1;

/// The bucket of `value_ns`, always below [`BUCKETS`].
#[inline(always)]
pub fn index(value_ns: u64) -> usize {
    let value = if value_ns > HIGHEST_NS { HIGHEST_NS } else { value_ns };
    let doubling = (64 - SUB_BITS) - (value | SUB_MASK).leading_zeros();
    let sub = (value >> doubling) as u32;
    (((doubling + 1) << (SUB_BITS - 1)) + sub - HALF) as usize
}

/// The smallest value of bucket `index`, in ns.
#[inline]
pub const fn lowest_ns(index: usize) -> u64 {
    let row = index as u32 >> (SUB_BITS - 1);
    let sub = (index as u32 & (HALF - 1)) as u64;
    if row == 0 { sub } else { (sub + HALF as u64) << (row - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::Histogram;
    use proptest::prelude::*;

    fn reference() -> Histogram<u64> {
        Histogram::new_with_bounds(1, HIGHEST_NS, SIGNIFICANT_DIGITS).unwrap()
    }

    /// The crate keeps its index to itself, so it is asked through what it does with a value.
    fn agrees(value_ns: u64) {
        let reference = reference();
        let i = index(value_ns);
        assert!(i < BUCKETS);
        let clamped = value_ns.min(HIGHEST_NS);
        assert_eq!(lowest_ns(i), reference.lowest_equivalent(clamped), "value {value_ns}");
        if i + 1 < BUCKETS {
            assert_eq!(lowest_ns(i + 1), reference.next_non_equivalent(clamped), "value {value_ns}");
        }
    }

    #[test]
    fn as_many_buckets_as_the_crate() {
        assert_eq!(reference().distinct_values(), BUCKETS);
    }

    #[test]
    fn same_bucket_around_every_power_of_two() {
        for power in 0..64 {
            for value in [(1u64 << power) - 1, 1 << power, (1 << power) + 1] {
                agrees(value);
            }
        }
        for value in [HIGHEST_NS - 1, HIGHEST_NS, HIGHEST_NS + 1, u64::MAX] {
            agrees(value);
        }
    }

    #[test]
    fn every_bucket_starts_with_its_lowest_value() {
        for i in 0..BUCKETS {
            if lowest_ns(i) <= HIGHEST_NS {
                assert_eq!(index(lowest_ns(i)), i);
            }
        }
    }

    proptest! {
        #[test]
        fn same_bucket_as_the_crate(value in 0..=2 * HIGHEST_NS) {
            agrees(value);
        }
    }
}
