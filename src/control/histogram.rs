//! A histogram that one thread writes and others read.
//!
//! Microseconds in log-linear buckets: eight to every doubling, those below 16 µs one microsecond wide.
//!
//! ```text
//! bucket   0  1  …  15 | 16      17      …  23      | 24      25      …  31      | …  | 199
//! µs       0  1  …  15 | 16–17   18–19   …  30–31   | 32–35   36–39   …  60–63   | …  | 125 829 120 and above
//! ```
//!
//! A percentile is told as the last microsecond of its bucket: never too small, and at most an eighth too large, up to the
//! last bucket, which begins at two minutes.

use super::figures::Figure;

/// Buckets of a histogram.
pub const BUCKETS: usize = 200;

/// Eight buckets to every doubling.
const LINEAR_BITS: u32 = 3;
const LINEAR: usize = 1 << LINEAR_BITS;

/// The bucket of a value.
#[inline]
const fn bucket_of(us: u64) -> usize {
    if us < LINEAR as u64 {
        return us as usize;
    }
    let shift = us.ilog2() - LINEAR_BITS;
    let bucket = (shift as usize * LINEAR) + (us >> shift) as usize;
    if bucket < BUCKETS { bucket } else { BUCKETS - 1 }
}

/// The last value of a bucket, in microseconds. The last bucket's is the end of its range, and values beyond are in it too.
pub const fn bucket_end_us(bucket: usize) -> u64 {
    if bucket < LINEAR {
        return bucket as u64;
    }
    let shift = bucket / LINEAR - 1;
    let first = (bucket % LINEAR + LINEAR) as u64;
    ((first + 1) << shift) - 1
}

/// How often times of which length were seen. Only its owner adds to it.
#[derive(Debug)]
pub struct Histogram {
    buckets: [Figure; BUCKETS],
    sum_us: Figure,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { buckets: std::array::from_fn(|_| Figure::default()), sum_us: Figure::default() }
    }
}

impl Histogram {
    /// Adds a time in microseconds. Only the owner may call this.
    #[inline]
    pub fn add(&self, us: u64) {
        self.add_many(us, 1);
    }

    /// Adds a time that stands for `count` such times. Only the owner may call this.
    #[inline]
    pub fn add_many(&self, us: u64, count: u64) {
        if let Some(bucket) = self.buckets.get(bucket_of(us)) {
            bucket.add(count);
            self.sum_us.add(us.wrapping_mul(count));
        }
    }

    /// What is in it at this moment, for anyone.
    pub fn read(&self) -> Counts {
        let buckets = self.buckets.iter().enumerate().filter_map(|(bucket, figure)| match figure.value() {
            0 => None,
            count => Some((bucket as u16, count)),
        });
        Counts { buckets: buckets.collect(), sum_us: self.sum_us.value() }
    }
}

/// What was in a histogram at some moment, or was added to it in some time. Takes memory for the buckets that hold something.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bucket and how often, in the order of the buckets; never 0.
    buckets: Vec<(u16, u64)>,
    /// All times added up, in microseconds.
    pub sum_us: u64,
}

impl Counts {
    /// How many times were added.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }

    /// How many of them are shorter than `us`, which has to be the first microsecond of a bucket (as any power of two is).
    pub fn below(&self, us: u64) -> u64 {
        let end = bucket_of(us) as u16;
        self.buckets.iter().take_while(|(bucket, _)| *bucket < end).map(|(_, count)| count).sum()
    }

    /// What was added since `before`, an earlier reading of the same histogram.
    pub fn since(&self, before: &Counts) -> Counts {
        let mut earlier = before.buckets.iter().copied().peekable();
        let buckets = self.buckets.iter().filter_map(|&(bucket, count)| {
            while earlier.next_if(|(one, _)| *one < bucket).is_some() {}
            let had = earlier.next_if(|(one, _)| *one == bucket).map_or(0, |(_, had)| had);
            let more = count.saturating_sub(had);
            (more > 0).then_some((bucket, more))
        });
        Counts { buckets: buckets.collect(), sum_us: self.sum_us.saturating_sub(before.sum_us) }
    }

    /// Adds what another histogram has, or the same one in another time.
    pub fn merge(&mut self, other: &Counts) {
        for &(bucket, count) in &other.buckets {
            match self.buckets.binary_search_by_key(&bucket, |(one, _)| *one) {
                Ok(place) => {
                    if let Some((_, had)) = self.buckets.get_mut(place) {
                        *had = had.saturating_add(count);
                    }
                }
                Err(place) => self.buckets.insert(place, (bucket, count)),
            }
        }
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
    }

    /// The time within which so many thousandths of them are, in microseconds; none where there are none.
    pub fn permille_us(&self, permille: u64) -> Option<u64> {
        let count = self.count();
        // The rank of the value asked for, from 1.
        let rank = (u128::from(count) * u128::from(permille)).div_ceil(1000).max(1);
        let mut seen = 0u128;
        let found = self.buckets.iter().find(|(_, count)| {
            seen += u128::from(*count);
            seen >= rank
        });
        found.map(|(bucket, _)| bucket_end_us(usize::from(*bucket)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_the_bucket_that_ends_with_it_or_after_it() {
        let mut next = 0;
        for bucket in 0..BUCKETS {
            let end = bucket_end_us(bucket);
            assert_eq!(bucket_of(next), bucket, "the first of bucket {bucket}");
            assert_eq!(bucket_of(end), bucket, "the last of bucket {bucket}");
            let width = end + 1 - next;
            assert!(width == 1 || width * 8 <= next, "bucket {bucket} is {width} wide at {next}");
            next = end + 1;
        }
        assert_eq!(next, 1 << 27);
        assert!(next > 100_000_000, "a hundred seconds are told apart");
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert_eq!(bucket_of(next), BUCKETS - 1);
    }

    #[test]
    fn what_is_told_is_never_too_small_and_at_most_an_eighth_too_large() {
        let mut us = 1u64;
        while us < 1 << 26 {
            for value in [us, us + us / 3, us + us / 2 + 1] {
                let histogram = Histogram::default();
                histogram.add(value);
                let told = histogram.read().permille_us(500).expect("one value");
                assert!(told >= value && (told - value) * 8 <= value, "{value} is told as {told}");
            }
            us = us * 3 / 2 + 1;
        }
    }

    #[test]
    fn percentiles_are_those_of_the_values_within_an_eighth() {
        let histogram = Histogram::default();
        // A fixed generator: squares of it give a long tail.
        let mut state = 88_172_645_463_325_252u64;
        let mut values: Vec<u64> = (0..10_000)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let uniform = state % 10_000;
                uniform * uniform / 10
            })
            .collect();
        values.iter().for_each(|us| histogram.add(*us));
        values.sort_unstable();
        let counts = histogram.read();
        assert_eq!(counts.count(), 10_000);
        assert_eq!(counts.sum_us, values.iter().sum::<u64>());
        for permille in [0, 1, 500, 900, 990, 999, 1000] {
            let rank = (10_000 * permille / 1000).max(1) as usize;
            let (exact, told) = (values[rank - 1], counts.permille_us(permille).expect("some"));
            assert!(told >= exact && (told - exact) * 8 <= exact, "{permille}: {told} for {exact}");
        }
    }

    #[test]
    fn readings_are_merged_and_taken_from_each_other() {
        let (one, other) = (Histogram::default(), Histogram::default());
        one.add(5);
        one.add(3000);
        let before = one.read();
        one.add(5);
        one.add_many(70, 10);
        let since = one.read().since(&before);
        assert_eq!((since.count(), since.sum_us), (11, 705));
        assert_eq!(since.permille_us(10), Some(5));
        assert_eq!(since.permille_us(1000), Some(71));
        assert_eq!(one.read().since(&one.read()), Counts::default());

        other.add(64);
        other.add(10_000_000);
        let mut both = since.clone();
        both.merge(&other.read());
        assert_eq!((both.count(), both.sum_us), (13, 10_000_769));
        let mut turned = other.read();
        turned.merge(&since);
        assert_eq!(both, turned);
        assert_eq!((both.below(64), both.below(128), both.below(1 << 24)), (1, 12, 13));
        assert_eq!(Counts::default().permille_us(500), None);
    }
}
