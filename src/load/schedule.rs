//! When things are due in an open loop.
//!
//! Times are fixed before the run: the k-th event is due at `start + k · interval`, whether or not the one before has
//! been sent. What is late is measured from when it was due, so a hub (or a generator) that stalls can't hide the wait
//! from the figures by also delaying the questions ("coordinated omission").

use std::cmp::Reverse;
use std::collections::BinaryHeap;

const NS_PER_S: f64 = 1e9;

/// An endless series of equally spaced times.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Schedule {
    start_ns: f64,
    interval_ns: f64,
    taken: u64,
}

impl Schedule {
    /// `rate` per second, above zero; `phase` (0..1) shifts the series by that part of an interval.
    pub(crate) fn new(start_ns: u64, rate: f64, phase: f64) -> Schedule {
        assert!(rate > 0.0 && rate.is_finite(), "a schedule needs a rate");
        let interval_ns = NS_PER_S / rate;
        Schedule { start_ns: start_ns as f64 + phase * interval_ns, interval_ns, taken: 0 }
    }

    /// When the next one is due.
    pub(crate) fn next_ns(&self) -> u64 {
        (self.start_ns + self.taken as f64 * self.interval_ns) as u64
    }

    /// Takes the next time if it has come.
    pub(crate) fn take(&mut self, now_ns: u64) -> Option<u64> {
        let due = self.next_ns();
        (due <= now_ns).then(|| {
            self.taken += 1;
            due
        })
    }
}

/// Many schedules, asked together: which one is due first?
#[derive(Debug, Default)]
pub(crate) struct Timetable {
    schedules: Vec<Schedule>,
    order: BinaryHeap<Reverse<(u64, usize)>>,
}

impl Timetable {
    pub(crate) fn new(schedules: Vec<Schedule>) -> Timetable {
        let order = schedules.iter().enumerate().map(|(i, s)| Reverse((s.next_ns(), i))).collect();
        Timetable { schedules, order }
    }

    /// When anything is due next.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        self.order.peek().map(|Reverse((due, _))| *due)
    }

    /// Takes the earliest time that has come: which schedule, and when it was due.
    pub(crate) fn take(&mut self, now_ns: u64) -> Option<(usize, u64)> {
        let Reverse((due, index)) = *self.order.peek().filter(|Reverse((due, _))| *due <= now_ns)?;
        self.order.pop();
        let schedule = self.schedules.get_mut(index)?;
        schedule.take(now_ns)?;
        self.order.push(Reverse((schedule.next_ns(), index)));
        Some((index, due))
    }
}

/// How a total rate is shared among `count` rooms: evenly, or the k-th with weight 1/k.
pub(crate) fn shares(count: usize, skewed: bool) -> Vec<f64> {
    let weights: Vec<f64> = (1..=count).map(|k| if skewed { 1.0 / k as f64 } else { 1.0 }).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_do_not_drift_over_a_million_events() {
        let mut schedule = Schedule::new(1_000, 3_000.0, 0.0);
        for _ in 0..3_000_000 {
            schedule.take(u64::MAX).unwrap();
        }
        assert_eq!(schedule.next_ns(), 1_000 + 1_000_000_000_000);
    }

    #[test]
    fn after_a_stall_every_missed_time_is_still_taken_with_the_time_it_was_due() {
        // 100 per second, and the generator stalls for a second: the events' waits are 1000, 990, … 0 ms, not ten times 0.
        let mut schedule = Schedule::new(0, 100.0, 0.0);
        let now = 1_000_000_000;
        let waits: Vec<u64> = std::iter::from_fn(|| schedule.take(now)).map(|due| (now - due) / 1_000_000).collect();
        assert_eq!(waits.len(), 101);
        assert_eq!((waits[0], waits[1], waits[100]), (1000, 990, 0));
        assert_eq!(schedule.take(now), None);
    }

    #[test]
    fn a_timetable_gives_the_earliest_first_and_keeps_each_rate() {
        let mut table = Timetable::new(vec![Schedule::new(0, 10.0, 0.5), Schedule::new(0, 40.0, 0.0)]);
        let mut counts = [0; 2];
        let mut last = 0;
        while let Some((index, due)) = table.take(999_999_999) {
            assert!(due >= last);
            last = due;
            counts[index] += 1;
        }
        assert_eq!(counts, [10, 40]);
        assert_eq!(table.next_ns(), Some(1_000_000_000));
    }

    #[test]
    fn shares_sum_to_one_and_skewed_ones_fall() {
        for skewed in [false, true] {
            let shares = shares(10, skewed);
            assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            assert_eq!(shares[0] > shares[9], skewed);
        }
    }
}
