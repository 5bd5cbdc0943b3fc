//! What happened lately: rates and percentiles over the last seconds.
//!
//! Once a second the control plane reads what the shards have counted and keeps what was added since. A question is answered
//! from these, and from what was added after the last of them, so that the answer is of the moment.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use utoipa::ToSchema;

use super::figures::{ShardFigures, ShardTimes, Snapshot};
use super::histogram::Counts;

/// How often the shards are read.
pub(crate) const INTERVAL: Duration = Duration::from_secs(1);
/// The short window, which is that of the rates too, and the long one.
const SHORT: Duration = Duration::from_secs(10);
const LONG: Duration = Duration::from_secs(60);
/// Readings that are kept: those of the long window, and some more where the clock ran unevenly.
const READINGS_MAX: usize = 64;

/// The last seconds of every shard. Used on the control plane's thread only; the lock is for the compiler.
#[derive(Debug)]
pub(crate) struct Windows(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    /// The last reading.
    at: Instant,
    before: Vec<Reading>,
    /// What was added from one reading to the next, newest last.
    seconds: VecDeque<Second>,
}

/// What one shard had counted at some moment.
#[derive(Debug, Clone, Default)]
struct Reading {
    counted: Counted,
    times: ShardTimes,
}

/// What was added in some time, by shard.
#[derive(Debug)]
struct Second {
    time: Duration,
    shards: Vec<Reading>,
}

/// The figures whose rates are told.
#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    messages: u64,
    publishes: u64,
    deliveries: u64,
    bytes_received: u64,
    bytes_sent: u64,
    turns: u64,
    errors: u64,
}

/// What happened lately on one shard, or on all.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct Recent {
    /// Per second, over the last ten.
    pub(crate) rates: Rates,
    /// From receiving a publish to the completion of a subscriber's send.
    pub(crate) latency_us: Spans,
    /// From the hub's ping to the client's pong.
    pub(crate) round_trip_us: Spans,
    /// What a turn of the shard's loop took.
    pub(crate) turn_us: Spans,
}

/// How much of what in a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, ToSchema)]
pub(crate) struct Rates {
    /// How many seconds they are the mean of; fewer than ten soon after the start.
    pub(crate) over_s: f64,
    /// Messages received from clients.
    pub(crate) messages_per_s: f64,
    /// Events that rooms took in.
    pub(crate) publishes_per_s: f64,
    /// Events put into outboxes.
    pub(crate) deliveries_per_s: f64,
    /// Bytes received from clients.
    pub(crate) bytes_received_per_s: f64,
    /// Bytes sent to clients.
    pub(crate) bytes_sent_per_s: f64,
    /// Turns of the shards' loops.
    pub(crate) turns_per_s: f64,
    /// Errors told to clients.
    pub(crate) errors_per_s: f64,
    /// Which part of the time the shards had something to do, from 0 to 1.
    pub(crate) busy: f64,
}

/// Percentiles of a time over two windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Spans {
    /// Of the last ten seconds.
    pub(crate) last_10_s: Percentiles,
    /// Of the last sixty.
    pub(crate) last_60_s: Percentiles,
}

/// Percentiles in microseconds, at most an eighth too large; null where nothing was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Percentiles {
    /// How many times there were.
    pub(crate) count: u64,
    /// Half of them took at most so long.
    pub(crate) p50: Option<u64>,
    /// Nine in ten.
    pub(crate) p90: Option<u64>,
    /// 99 in a hundred.
    pub(crate) p99: Option<u64>,
    /// 999 in a thousand.
    pub(crate) p99_9: Option<u64>,
}

/// What happened lately.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct Lately {
    /// On all shards.
    pub(crate) total: Recent,
    /// On each.
    pub(crate) shards: Vec<Recent>,
}

impl Windows {
    /// Windows that begin now.
    pub(crate) fn new(now: Instant, figures: &Snapshot, times: Vec<ShardTimes>) -> Windows {
        Windows(Mutex::new(Inner { at: now, before: readings(figures, times), seconds: VecDeque::new() }))
    }

    /// Takes a reading; to be called every [`INTERVAL`].
    pub(crate) fn take(&self, now: Instant, figures: &Snapshot, times: Vec<ShardTimes>) {
        let mut inner = self.lock();
        let read = readings(figures, times);
        let second = inner.since(now, &read);
        inner.seconds.push_back(second);
        if inner.seconds.len() > READINGS_MAX {
            inner.seconds.pop_front();
        }
        inner.at = now;
        inner.before = read;
    }

    /// What happened lately, the present second included.
    pub(crate) fn lately(&self, now: Instant, figures: &Snapshot, times: Vec<ShardTimes>) -> Lately {
        let inner = self.lock();
        let present = inner.since(now, &readings(figures, times));
        let short = inner.window(&present, SHORT);
        let long = inner.window(&present, LONG);
        let sum = |second: &Second| second.shards.iter().fold(Reading::default(), Reading::plus);
        let shards = short.shards.iter().zip(&long.shards).map(|(ten, sixty)| recent(short.time, ten, sixty, 1));
        Lately { shards: shards.collect(), total: recent(short.time, &sum(&short), &sum(&long), short.shards.len()) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn since(&self, now: Instant, read: &[Reading]) -> Second {
        let shards = read.iter().zip(&self.before).map(|(now, before)| now.since(before));
        Second { time: now.saturating_duration_since(self.at), shards: shards.collect() }
    }

    /// What was added in about so long up to now.
    fn window(&self, present: &Second, length: Duration) -> Second {
        let mut window = Second { time: present.time, shards: present.shards.clone() };
        // Half an interval more or less is nearer than a whole one less.
        let until = length.saturating_sub(INTERVAL / 2);
        for second in self.seconds.iter().rev() {
            if window.time >= until {
                break;
            }
            window.time += second.time;
            for (sum, one) in window.shards.iter_mut().zip(&second.shards) {
                *sum = std::mem::take(sum).plus(one);
            }
        }
        window
    }
}

fn readings(figures: &Snapshot, times: Vec<ShardTimes>) -> Vec<Reading> {
    let counted = figures.shards.iter().map(Counted::of);
    counted.zip(times).map(|(counted, times)| Reading { counted, times }).collect()
}

impl Counted {
    fn of(figures: &ShardFigures) -> Counted {
        Counted {
            messages: figures.messages_received,
            publishes: figures.publishes,
            deliveries: figures.deliveries,
            bytes_received: figures.bytes_received,
            bytes_sent: figures.bytes_sent,
            turns: figures.turns,
            errors: figures.errors.values().sum(),
        }
    }

    fn with(self, other: Counted, both: fn(u64, u64) -> u64) -> Counted {
        Counted {
            messages: both(self.messages, other.messages),
            publishes: both(self.publishes, other.publishes),
            deliveries: both(self.deliveries, other.deliveries),
            bytes_received: both(self.bytes_received, other.bytes_received),
            bytes_sent: both(self.bytes_sent, other.bytes_sent),
            turns: both(self.turns, other.turns),
            errors: both(self.errors, other.errors),
        }
    }
}

impl Reading {
    fn since(&self, before: &Reading) -> Reading {
        let (now, then) = (&self.times, &before.times);
        Reading {
            counted: self.counted.with(before.counted, u64::saturating_sub),
            times: ShardTimes {
                latency: now.latency.since(&then.latency),
                round_trip: now.round_trip.since(&then.round_trip),
                turn_time: now.turn_time.since(&then.turn_time),
            },
        }
    }

    fn plus(mut self, other: &Reading) -> Reading {
        self.counted = self.counted.with(other.counted, u64::saturating_add);
        self.times.latency.merge(&other.times.latency);
        self.times.round_trip.merge(&other.times.round_trip);
        self.times.turn_time.merge(&other.times.turn_time);
        self
    }
}

fn recent(time: Duration, ten: &Reading, sixty: &Reading, shards: usize) -> Recent {
    // Right after a reading there may be no time at all.
    let over_s = time.as_secs_f64().max(1e-6);
    let per_s = |count: u64| (count as f64 / over_s * 10.0).round() / 10.0;
    let Counted { messages, publishes, deliveries, bytes_received, bytes_sent, turns, errors } = ten.counted;
    let busy = ten.times.turn_time.sum_us as f64 / 1e6 / over_s / shards.max(1) as f64;
    let rates = Rates {
        over_s: (over_s * 10.0).round() / 10.0,
        messages_per_s: per_s(messages),
        publishes_per_s: per_s(publishes),
        deliveries_per_s: per_s(deliveries),
        bytes_received_per_s: per_s(bytes_received),
        bytes_sent_per_s: per_s(bytes_sent),
        turns_per_s: per_s(turns),
        errors_per_s: per_s(errors),
        // A turn counts when it ends, so that a second may have more of them than it is long.
        busy: (busy.min(1.0) * 1000.0).round() / 1000.0,
    };
    let spans = |of: fn(&ShardTimes) -> &Counts| Spans {
        last_10_s: percentiles(of(&ten.times)),
        last_60_s: percentiles(of(&sixty.times)),
    };
    Recent {
        rates,
        latency_us: spans(|times| &times.latency),
        round_trip_us: spans(|times| &times.round_trip),
        turn_us: spans(|times| &times.turn_time),
    }
}

fn percentiles(counts: &Counts) -> Percentiles {
    Percentiles {
        count: counts.count(),
        p50: counts.permille_us(500),
        p90: counts.permille_us(900),
        p99: counts.permille_us(990),
        p99_9: counts.permille_us(999),
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures::Figures;
    use super::*;

    fn read(shards: &[Figures]) -> (Snapshot, Vec<ShardTimes>) {
        let snapshot = Snapshot { shards: shards.iter().map(Figures::read).collect() };
        (snapshot, shards.iter().map(Figures::times).collect())
    }

    #[test]
    fn what_happened_leaves_the_short_window_first_and_then_the_long_one() {
        let shards = [Figures::default(), Figures::default()];
        shards[0].latency.add(1_000_000);
        let start = Instant::now();
        let (figures, times) = read(&shards);
        let windows = Windows::new(start, &figures, times);
        shards[0].latency.add_many(100, 30);
        shards[0].messages_received.add(500);
        shards[1].latency.add_many(900, 10);
        shards[1].turn_time.add(250_000);

        let lately = |at_ms: u64| {
            let (figures, times) = read(&shards);
            windows.lately(start + Duration::from_millis(at_ms), &figures, times)
        };
        let now = lately(500);
        assert_eq!(now.shards[0].latency_us.last_10_s.count, 30, "before the windows' begin nothing counts");
        assert_eq!(now.total.latency_us.last_10_s.count, 40, "the present second counts");
        assert_eq!((now.total.latency_us.last_10_s.p50, now.total.latency_us.last_10_s.p90), (Some(103), Some(959)));
        assert_eq!(now.shards[0].rates.messages_per_s, 1000.0);
        assert_eq!((now.shards[0].rates.busy, now.shards[1].rates.busy, now.total.rates.busy), (0.0, 0.5, 0.25));
        for second in 1..=200u64 {
            let (figures, times) = read(&shards);
            windows.take(start + Duration::from_secs(second), &figures, times);
            let spans = lately(second * 1000 + 100).total.latency_us;
            let (ten, sixty) = (spans.last_10_s.count, spans.last_60_s.count);
            assert_eq!(
                (ten, sixty),
                (if second <= 10 { 40 } else { 0 }, if second <= 60 { 40 } else { 0 }),
                "{second}"
            );
        }
        let after = lately(200_100).total;
        assert_eq!(after.latency_us.last_60_s, Percentiles::default());
        assert_eq!((after.rates.messages_per_s, after.rates.over_s), (0.0, 10.1));
    }

    #[test]
    fn a_late_reading_stretches_its_window_and_not_its_rates() {
        let shards = [Figures::default()];
        let start = Instant::now();
        let (figures, times) = read(&shards);
        let windows = Windows::new(start, &figures, times);
        shards[0].publishes.add(3_000);
        let (figures, times) = read(&shards);
        windows.take(start + Duration::from_secs(30), &figures, times.clone());
        let rates = windows.lately(start + Duration::from_secs(30), &figures, times).total.rates;
        assert_eq!((rates.over_s, rates.publishes_per_s), (30.0, 100.0));
    }
}
