//! Once a second: how are we? A task of the control plane reads the shards' figures, which no shard notices, and makes of
//! them what others look at:
//!
//! - *alerts*, where a value is past its threshold ([`super::alerts`]);
//! - *samples* for the stored history, one every ten seconds ([`super::store`]);
//! - *snapshots* as `analytics.snapshot` in `analytics:hub`, while somebody is in that room.
//!
//! Rates are taken over the last ten seconds in alerts, so that one busy second raises none, and over the last one in
//! snapshots. Nothing here waits for a shard: one that hangs is what is to be told.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use serde::Serialize;

use super::alerts::{Alert, Board, Values};
use super::backend::{Backend, ShardPulse};
use super::figures::{ShardFigures, Snapshot};
use super::histogram::Counts;
use super::hooks::Hooks;
use super::moment::unix_ms;
use super::process;
use super::runtime::sleep;
use super::store::{AlertRecord, Sample, Store};
use crate::config::Config;
use crate::hub::reply::Pending;

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Looks that rates in alerts are taken over, and that go into one sample.
const WINDOW: usize = 10;
/// Looks over which the canaries' percentiles are taken: a minute.
const LATENCY_WINDOW: usize = 60;
/// Errors within the window below which their share says nothing.
const ERRORS_MIN: u64 = 20;
/// Where snapshots go.
const SNAPSHOTS: &str = "analytics:hub";
/// Where alerts go.
const ALERTS: &str = "admin:alerts";

/// What was there at one look.
#[derive(Debug, Clone)]
struct Reading {
    at: Instant,
    unix_ms: u64,
    shards: Vec<ShardFigures>,
    total: ShardFigures,
    /// Of all shards' deliveries that were followed so far.
    latency: Counts,
    cpu_s: f64,
    resident_bytes: u64,
}

/// Percentiles, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Latency {
    p50: f64,
    p99: f64,
}

/// Looks and tells.
pub(crate) struct Monitor<B> {
    backend: B,
    board: Arc<Board>,
    store: Option<Store>,
    hooks: Option<Hooks>,
    /// The last looks, the newest at the end.
    readings: VecDeque<Reading>,
    /// The slowest canary of each of the last looks, in microseconds.
    round_trips_us: VecDeque<u64>,
    /// What the next sample begins with.
    sampled: Option<Reading>,
    connections_most: u64,
    listeners: Option<Pending<bool>>,
    is_listened_to: bool,
}

impl<B: Backend> Monitor<B> {
    pub(crate) fn new(backend: B, board: Arc<Board>, store: Option<Store>, hooks: Option<Hooks>) -> Monitor<B> {
        Monitor {
            backend,
            board,
            store,
            hooks,
            readings: VecDeque::with_capacity(WINDOW + 1),
            round_trips_us: VecDeque::with_capacity(LATENCY_WINDOW),
            sampled: None,
            connections_most: 0,
            listeners: None,
            is_listened_to: false,
        }
    }

    /// Looks until the executor ends.
    pub(crate) async fn run(mut self) {
        let began = Instant::now();
        loop {
            self.look(began.elapsed().as_millis() as u64);
            sleep(INTERVAL).await;
        }
    }

    fn look(&mut self, monotonic_ms: u64) {
        let reading = self.read();
        let config = self.backend.config();
        let pulse = self.backend.pulse();
        self.note_latency(&pulse);
        let latency = self.latency(&reading);
        self.connections_most = self.connections_most.max(reading.total.connections);

        let before = self.readings.front().cloned();
        let values = self.values(&reading, before.as_ref(), &pulse, &config);
        self.board.set_pulse(pulse);
        for change in self.board.observe(&values, &config.alerts, monotonic_ms, reading.unix_ms) {
            self.tell(&change);
        }
        self.sample(&reading, latency);
        if self.has_listeners()
            && let Some(last) = self.readings.back()
        {
            self.announce(SNAPSHOTS, "analytics.snapshot", &self.snapshot(&reading, last, latency));
        }
        if self.readings.len() >= WINDOW {
            self.readings.pop_front();
        }
        self.readings.push_back(reading);
    }

    fn read(&self) -> Reading {
        let snapshot: Snapshot = self.backend.figures();
        let process = process::read();
        let mut latency = Counts::default();
        for times in self.backend.times() {
            latency.merge(&times.latency);
        }
        Reading {
            latency,
            at: Instant::now(),
            unix_ms: unix_ms(),
            total: snapshot.total(),
            shards: snapshot.shards,
            cpu_s: process.cpu_seconds,
            resident_bytes: process.resident_bytes,
        }
    }

    // ---- latency ----

    /// The canaries' round trips: from a shard to another and back, through everything that waits there.
    fn note_latency(&mut self, pulse: &[ShardPulse]) {
        if self.round_trips_us.len() >= LATENCY_WINDOW {
            self.round_trips_us.pop_front();
        }
        self.round_trips_us.extend(pulse.iter().map(|shard| shard.round_trip_us).max());
    }

    /// Of the deliveries within the window; where there were none, of the canaries.
    fn latency(&self, now: &Reading) -> Option<Latency> {
        if let Some(delivered) = self.delivered(now) {
            return Some(delivered);
        }
        let mut sorted: Vec<u64> = self.round_trips_us.iter().copied().collect();
        sorted.sort_unstable();
        let at = |percent: usize| {
            let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
            sorted.get(place).map(|us| *us as f64 / 1000.0)
        };
        Some(Latency { p50: at(50)?, p99: at(99)? })
    }

    /// From receiving a publish to the completion of a subscriber's send.
    fn delivered(&self, now: &Reading) -> Option<Latency> {
        let times = now.latency.since(&self.readings.front()?.latency);
        let at = |permille: u64| times.permille_us(permille).map(|us| us as f64 / 1000.0);
        Some(Latency { p50: at(500)?, p99: at(990)? })
    }

    // ---- alerts ----

    fn values(&self, now: &Reading, before: Option<&Reading>, pulse: &[ShardPulse], config: &Config) -> Values {
        let mut values = Values::default();
        // Where nothing is delivered, the last canary: one slow one would stay the minute's percentile.
        let canary = || self.round_trips_us.back().map(|us| *us as f64 / 1000.0);
        values.set(Alert::Latency, self.delivered(now).map(|latency| latency.p99).or_else(canary));
        if let Some(before) = before {
            let errors = errors(&now.total).saturating_sub(errors(&before.total));
            let messages = grown(now, before, |figures| figures.messages_received).max(1.0);
            let share = if errors < ERRORS_MIN { 0.0 } else { (errors as f64 / messages * 100.0).min(100.0) };
            values.set(Alert::Errors, Some(share));
            values.set(Alert::SlowReaders, Some(per_s(now, before, |figures| figures.slow_readers)));
        }
        let connections_max = config.connections_max().max(1) as f64;
        values.set(Alert::Connections, Some(now.total.connections as f64 / connections_max * 100.0));
        values.set(Alert::Memory, Some(now.resident_bytes as f64));
        values.set(Alert::ShardSilent, pulse.iter().map(|shard| shard.silent_ms as f64).reduce(f64::max));
        values.set(Alert::ShardDeaf, Some(pulse.iter().filter(|shard| shard.deaf).count() as f64));
        let is_down = self.store.as_ref().map(|store| f64::from(u8::from(store.is_down())));
        values.set(Alert::StoreDown, is_down);
        let is_down = self.hooks.as_ref().map(|hooks| f64::from(u8::from(hooks.is_down())));
        values.set(Alert::HookDown, is_down);
        let broker = self.backend.broker();
        values.set(
            Alert::BrokerDown,
            broker.map(|broker| (broker.servers - broker.servers_up.min(broker.servers)) as f64),
        );
        values
    }

    fn tell(&self, change: &AlertRecord) {
        let (alert, state, value) = (change.alert.as_str(), change.state.as_str(), change.value);
        if state == "raised" {
            tracing::warn!(alert, state, value, threshold = change.threshold, "{}", change.message);
        } else {
            tracing::info!(alert, state, value, threshold = change.threshold, "{}", change.message);
        }
        if let Some(store) = &self.store {
            store.ledger().alert(change.clone());
        }
        self.announce(ALERTS, "system_alert", change);
    }

    fn announce(&self, room: &str, kind: &str, data: &impl Serialize) {
        match serde_json::to_vec(data) {
            Ok(data) => self.backend.announce(room, kind, Bytes::from(data)),
            Err(error) => tracing::error!(%error, room, "the hub's own event is no JSON"),
        }
    }

    // ---- history ----

    fn sample(&mut self, now: &Reading, latency: Option<Latency>) {
        let Some(store) = &self.store else { return };
        let Some(before) = &self.sampled else {
            self.sampled = Some(now.clone());
            return;
        };
        // The clock of the machine may be set meanwhile; how long it was is measured.
        let span_s = now.at.duration_since(before.at).as_secs_f64();
        if span_s < INTERVAL.as_secs_f64() * WINDOW as f64 - 0.5 {
            return;
        }
        let gauge = |value: u64| Some(value as f64);
        let counter = |read: fn(&ShardFigures) -> u64| Some(grown(now, before, read));
        store.ledger().sample(Sample {
            at_ms: now.unix_ms.saturating_sub((span_s * 1000.0) as u64),
            samples: 1,
            span_s: Some(span_s),
            connections: gauge(now.total.connections),
            connections_max: gauge(self.connections_most),
            rooms: gauge(now.total.rooms),
            subscriptions: gauge(now.total.subscriptions),
            connections_opened: counter(|figures| figures.connections_opened),
            connections_refused: counter(|figures| figures.refused.values().sum()),
            messages_received: counter(|figures| figures.messages_received),
            publishes: counter(|figures| figures.publishes),
            deliveries: counter(|figures| figures.deliveries),
            bytes_received: counter(|figures| figures.bytes_received),
            bytes_sent: counter(|figures| figures.bytes_sent),
            errors: counter(errors),
            slow_readers: counter(|figures| figures.slow_readers),
            gaps: counter(|figures| figures.gaps),
            outbox_bytes: gauge(now.total.outbox_bytes),
            log_bytes: gauge(now.total.log_bytes),
            resident_bytes: gauge(now.resident_bytes),
            cpu_s: Some((now.cpu_s - before.cpu_s).max(0.0)),
            latency_p50_ms: latency.map(|latency| latency.p50),
            latency_p99_ms: latency.map(|latency| latency.p99),
        });
        self.connections_most = now.total.connections;
        self.sampled = Some(now.clone());
    }

    // ---- snapshots ----

    /// Whether somebody is in the room, as of the last look: its home is asked, and not waited for.
    fn has_listeners(&mut self) -> bool {
        if let Some(asked) = &mut self.listeners {
            match asked.now_or_never() {
                Some(answer) => self.is_listened_to = answer.unwrap_or(false),
                None => return false,
            }
        }
        self.listeners = Some(self.backend.is_occupied(SNAPSHOTS));
        self.is_listened_to
    }

    fn snapshot(&self, now: &Reading, before: &Reading, latency: Option<Latency>) -> AnalyticsSnapshot {
        let span_s = now.at.duration_since(before.at).as_secs_f64().max(f64::EPSILON);
        let shards = now.shards.iter().zip(&before.shards);
        AnalyticsSnapshot {
            total: Part::new(&now.total, &before.total, span_s),
            latency_ms: latency,
            resident_bytes: now.resident_bytes,
            cpu_percent: round((now.cpu_s - before.cpu_s).max(0.0) / span_s * 100.0),
            alerts: self.board.counts().into_iter().filter(|(_, active, _)| *active).map(|(name, ..)| name).collect(),
            shards: shards.map(|(now, before)| Part::new(now, before, span_s)).collect(),
        }
    }
}

/// The data of `analytics.snapshot`.
#[derive(Serialize)]
struct AnalyticsSnapshot {
    #[serde(flatten)]
    total: Part,
    latency_ms: Option<Latency>,
    resident_bytes: u64,
    cpu_percent: f64,
    /// Names of those that are raised.
    alerts: Vec<&'static str>,
    /// By number.
    shards: Vec<Part>,
}

/// Of one shard, or of all.
#[derive(Serialize)]
struct Part {
    connections: u64,
    rooms: u64,
    subscriptions: u64,
    outbox_bytes: u64,
    log_bytes: u64,
    connects_per_s: f64,
    messages_received_per_s: f64,
    publishes_per_s: f64,
    deliveries_per_s: f64,
    bytes_received_per_s: f64,
    bytes_sent_per_s: f64,
    errors_per_s: f64,
}

impl Part {
    fn new(now: &ShardFigures, before: &ShardFigures, span_s: f64) -> Part {
        let rate = |read: fn(&ShardFigures) -> u64| round(read(now).saturating_sub(read(before)) as f64 / span_s);
        Part {
            connections: now.connections,
            rooms: now.rooms,
            subscriptions: now.subscriptions,
            outbox_bytes: now.outbox_bytes,
            log_bytes: now.log_bytes,
            connects_per_s: rate(|figures| figures.connections_opened),
            messages_received_per_s: rate(|figures| figures.messages_received),
            publishes_per_s: rate(|figures| figures.publishes),
            deliveries_per_s: rate(|figures| figures.deliveries),
            bytes_received_per_s: rate(|figures| figures.bytes_received),
            bytes_sent_per_s: rate(|figures| figures.bytes_sent),
            errors_per_s: rate(errors),
        }
    }
}

/// Tenths are as much as a rate over a second knows.
fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn errors(figures: &ShardFigures) -> u64 {
    figures.errors.values().sum()
}

fn grown(now: &Reading, before: &Reading, read: fn(&ShardFigures) -> u64) -> f64 {
    read(&now.total).saturating_sub(read(&before.total)) as f64
}

fn per_s(now: &Reading, before: &Reading, read: fn(&ShardFigures) -> u64) -> f64 {
    let span_s = now.at.duration_since(before.at).as_secs_f64();
    if span_s > 0.0 { grown(now, before, read) / span_s } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::figures::Figures;

    fn reading(at: Instant, change: impl FnOnce(&Figures)) -> Reading {
        let figures = Figures::default();
        change(&figures);
        let shard = figures.read();
        let (cpu_s, resident_bytes) = (0.0, 0);
        let latency = Counts::default();
        Reading { at, unix_ms: 0, total: shard.clone(), shards: vec![shard], latency, cpu_s, resident_bytes }
    }

    #[test]
    fn rates_are_of_the_time_between_two_looks() {
        let start = Instant::now();
        let before = reading(start, |figures| figures.deliveries.set(100));
        let now = reading(start + Duration::from_secs(4), |figures| figures.deliveries.set(500));
        assert_eq!(per_s(&now, &before, |figures| figures.deliveries), 100.0);
        assert_eq!(per_s(&before, &before, |figures| figures.deliveries), 0.0);
        let part = Part::new(&now.total, &before.total, 4.0);
        assert_eq!((part.deliveries_per_s, part.publishes_per_s), (100.0, 0.0));
        // Figures are read one by one; a rate is never negative for it.
        assert_eq!(Part::new(&before.total, &now.total, 4.0).deliveries_per_s, 0.0);
    }
}
