//! Histograms of fixed buckets, without locks: whoever measures adds one to a bucket, whoever looks reads all of them.

use std::sync::atomic::{AtomicU64, Ordering};

/// The most buckets of a histogram, the open one included.
const MAX_BUCKETS: usize = 24;

/// Upper bounds for times, in nanoseconds: 10 µs to 100 s, in steps of 1, 2.5 and 5.
pub(super) const TIMES: &[u64] = &[
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    25_000_000_000,
    50_000_000_000,
    100_000_000_000,
];

/// Upper bounds for sizes: powers of two up to 65,536.
pub(super) const SIZES: &[u64] =
    &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536];

/// A histogram that is being filled.
#[derive(Debug)]
pub(super) struct Histogram {
    bounds: &'static [u64],
    buckets: [AtomicU64; MAX_BUCKETS],
    sum: AtomicU64,
}

impl Histogram {
    /// With these upper bounds, in order; at most 23. Larger values fall into one more bucket.
    pub(super) const fn new(bounds: &'static [u64]) -> Self {
        assert!(bounds.len() < MAX_BUCKETS, "a histogram has 24 buckets");
        Self { bounds, buckets: [const { AtomicU64::new(0) }; MAX_BUCKETS], sum: AtomicU64::new(0) }
    }

    pub(super) fn record(&self, value: u64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// What it holds. Values that are recorded meanwhile may be in the sum and not in a bucket, or the other way round.
    pub(super) fn snapshot(&self) -> Distribution {
        let mut counts = [0; MAX_BUCKETS];
        for (count, bucket) in counts.iter_mut().zip(&self.buckets) {
            *count = bucket.load(Ordering::Relaxed);
        }
        Distribution { bounds: self.bounds, counts, sum: self.sum.load(Ordering::Relaxed) }
    }
}

/// How values were distributed, by buckets that never change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Distribution {
    bounds: &'static [u64],
    counts: [u64; MAX_BUCKETS],
    sum: u64,
}

impl Distribution {
    /// How many values there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What they add up to.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// How many values were in each bucket: at most its upper bound, and above that of the bucket before. The last one has no
    /// bound.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        let bounds = self.bounds.iter().copied().map(Some).chain([None]);
        bounds.zip(self.counts)
    }

    /// The upper bound of the bucket that this part of all values (0 to 1) does not exceed; nothing when there are no values,
    /// or when they lie above every bound.
    #[must_use]
    pub fn quantile(&self, part: f64) -> Option<u64> {
        let count = self.count();
        let wanted = ((count as f64 * part).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0;
        let found = self.buckets().find(|(_, n)| {
            seen += n;
            seen >= wanted
        });
        found.and_then(|(bound, _)| bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_falls_into_the_first_bucket_whose_bound_it_does_not_exceed() {
        let histogram = Histogram::new(SIZES);
        for value in [0, 1, 2, 3, 4, 65_536, 65_537, u64::from(u32::MAX)] {
            histogram.record(value);
        }
        let seen = histogram.snapshot();
        let filled: Vec<_> = seen.buckets().filter(|(_, n)| *n > 0).collect();
        assert_eq!(filled, [(Some(1), 2), (Some(2), 1), (Some(4), 2), (Some(65_536), 1), (None, 2)]);
        assert_eq!((seen.count(), seen.sum()), (8, 10 + 65_536 + 65_537 + u64::from(u32::MAX)));
    }

    #[test]
    fn a_quantile_is_the_bound_below_which_that_part_lies() {
        let histogram = Histogram::new(TIMES);
        assert_eq!(histogram.snapshot().quantile(0.5), None);
        (0..99).for_each(|_| histogram.record(20_000));
        histogram.record(7_000_000);
        let seen = histogram.snapshot();
        let quantiles = [0.0, 0.5, 0.99, 0.995, 1.0].map(|part| seen.quantile(part));
        assert_eq!(quantiles, [25_000, 25_000, 25_000, 10_000_000, 10_000_000].map(Some));
        histogram.record(u64::MAX / 2);
        assert_eq!(histogram.snapshot().quantile(1.0), None, "above every bound");
    }

    #[test]
    fn bounds_are_in_order() {
        assert!(TIMES.is_sorted() && SIZES.is_sorted());
    }
}
