//! Alerts: which value is past its threshold, for how long, and who is told.
//!
//! ```text
//!               past the threshold for `raise_after_s`
//!        calm ────────────────────────────────────────► raised
//!          ▲                                              │
//!          └── below `clear_percent` of it for `clear_after_s`
//! ```
//!
//! What is raised or cleared is logged, counted, kept in the store, published into `admin:alerts`, and listed by
//! `GET /api/v1/alerts`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::State;
use axum::response::Response;
use hyper::StatusCode;
use hyper::header::HeaderMap;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::answer::{ApiError, json};
use super::api::Api;
use super::backend::{Backend, ShardPulse};
use super::body::Asked;
use super::moment::{moment_text, parse_moment};
use super::openapi::Refusals;
use super::store::AlertRecord;
use crate::config::AlertsConfig;

/// Changes that are kept in memory: days of them, unless something flaps.
const RECENT_MAX: usize = 200;
/// Changes in one answer, at most, and where the caller says nothing.
const LIST_MAX: usize = 1000;
const LIST_DEFAULT: usize = 100;

/// What there is an alert for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alert {
    Latency,
    Errors,
    Connections,
    Memory,
    SlowReaders,
    ShardSilent,
    ShardDeaf,
    StoreDown,
    HookDown,
    BrokerDown,
}

/// All of them.
pub(crate) const ALERTS: [Alert; 10] = [
    Alert::Latency,
    Alert::Errors,
    Alert::Connections,
    Alert::Memory,
    Alert::SlowReaders,
    Alert::ShardSilent,
    Alert::ShardDeaf,
    Alert::StoreDown,
    Alert::HookDown,
    Alert::BrokerDown,
];

impl Alert {
    /// Its name, in metrics and events.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Alert::Latency => "latency",
            Alert::Errors => "errors",
            Alert::Connections => "connections",
            Alert::Memory => "memory",
            Alert::SlowReaders => "slow_readers",
            Alert::ShardSilent => "shard_silent",
            Alert::ShardDeaf => "shard_deaf",
            Alert::StoreDown => "store_down",
            Alert::HookDown => "hook_down",
            Alert::BrokerDown => "broker_down",
        }
    }

    /// `critical` where clients feel it, whatever they do.
    fn severity(self) -> &'static str {
        match self {
            Alert::Memory | Alert::ShardSilent | Alert::ShardDeaf | Alert::BrokerDown => "critical",
            _ => "warning",
        }
    }

    fn threshold(self, config: &AlertsConfig) -> f64 {
        match self {
            Alert::Latency => config.latency_p99_ms as f64,
            Alert::Errors => config.errors_percent as f64,
            Alert::Connections => config.connections_percent as f64,
            Alert::Memory => config.memory_bytes as f64,
            Alert::SlowReaders => config.slow_readers_per_s as f64,
            Alert::ShardSilent => config.shard_silent_ms as f64,
            Alert::ShardDeaf | Alert::StoreDown | Alert::HookDown | Alert::BrokerDown => 1.0,
        }
    }

    /// Whether its value has proven itself by the time that it is seen.
    fn is_immediate(self) -> bool {
        matches!(self, Alert::ShardSilent | Alert::ShardDeaf | Alert::StoreDown | Alert::HookDown | Alert::BrokerDown)
    }

    fn sentence(self, value: f64, threshold: f64) -> String {
        match self {
            Alert::Latency => format!("messages are under way for {value:.0} ms (threshold {threshold} ms)"),
            Alert::Errors => {
                format!("{value:.0} % of the messages were answered by an error (threshold {threshold} %)")
            }
            Alert::Connections => format!("{value:.0} % of the node's connections are used (threshold {threshold} %)"),
            Alert::Memory => format!("the process has {value:.0} bytes in RAM (threshold {threshold:.0})"),
            Alert::SlowReaders => {
                format!("connections fell behind {value:.0} times per second (threshold {threshold})")
            }
            Alert::ShardSilent => format!("a shard took {value:.0} ms to answer (threshold {threshold} ms)"),
            Alert::ShardDeaf => format!("{value:.0} shards don't hear others, or aren't heard by them"),
            Alert::StoreDown => "the stored history can't be written".to_owned(),
            Alert::HookDown => "the backend does not answer the hub's hooks".to_owned(),
            Alert::BrokerDown => format!("{value:.0} of the broker's servers can't be reached"),
        }
    }
}

/// What is looked at: one value for each alert, in the order of [`ALERTS`]; none where it is not known.
#[derive(Debug, Clone, Default)]
pub(crate) struct Values([Option<f64>; ALERTS.len()]);

impl Values {
    pub(crate) fn set(&mut self, alert: Alert, value: Option<f64>) {
        if let Some(place) = self.0.get_mut(alert as usize) {
            *place = value.filter(|value| value.is_finite());
        }
    }
}

/// An alert that is raised.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct ActiveAlert {
    /// Which.
    alert: &'static str,
    /// `warning` or `critical`.
    severity: &'static str,
    /// One sentence for a person, of the moment it was raised.
    message: String,
    /// The value now.
    value: f64,
    /// What it is compared with.
    threshold: f64,
    /// When it was raised, RFC 3339 in UTC.
    since: String,
}

#[derive(Debug, Clone, Default)]
struct Watched {
    /// Since when the value is past its threshold, or back from it, whichever would change something.
    since_ms: Option<u64>,
    active: Option<ActiveAlert>,
    raised: u64,
}

/// What is known of all alerts, for the monitor that changes it and the pages that show it.
#[derive(Debug, Default)]
pub(crate) struct Board {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    watched: [Watched; ALERTS.len()],
    recent: VecDeque<AlertRecord>,
    pulse: Vec<ShardPulse>,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at new values; says what was raised and cleared. `monotonic_ms` measures, `unix_ms` is told.
    pub(crate) fn observe(
        &self,
        values: &Values,
        config: &AlertsConfig,
        monotonic_ms: u64,
        unix_ms: u64,
    ) -> Vec<AlertRecord> {
        let mut inner = self.lock();
        let mut changes = Vec::new();
        for ((alert, value), watched) in ALERTS.into_iter().zip(values.0).zip(&mut inner.watched) {
            let threshold = alert.threshold(config);
            // What is not watched for, or not known, is calm.
            let value = value.filter(|_| threshold > 0.0).unwrap_or(0.0);
            changes.extend(watched.observe(alert, value, config, monotonic_ms, unix_ms));
        }
        for change in &changes {
            if inner.recent.len() >= RECENT_MAX {
                inner.recent.pop_back();
            }
            inner.recent.push_front(change.clone());
        }
        changes
    }

    /// Keeps how the shards were at the last look.
    pub(crate) fn set_pulse(&self, pulse: Vec<ShardPulse>) {
        self.lock().pulse = pulse;
    }

    /// How the shards were at the last look.
    pub(crate) fn pulse(&self) -> Vec<ShardPulse> {
        self.lock().pulse.clone()
    }

    /// The alerts that are raised.
    pub(crate) fn active(&self) -> Vec<ActiveAlert> {
        self.lock().watched.iter().filter_map(|watched| watched.active.clone()).collect()
    }

    /// Changes since a moment that are in memory, the newest first.
    fn recent(&self, since_ms: u64) -> Vec<AlertRecord> {
        self.lock().recent.iter().filter(|record| record.at_ms >= since_ms).cloned().collect()
    }

    /// For each alert its name, whether it is raised, and how often it was.
    pub(crate) fn counts(&self) -> Vec<(&'static str, bool, u64)> {
        let inner = self.lock();
        let one = |(alert, watched): (Alert, &Watched)| (alert.as_str(), watched.active.is_some(), watched.raised);
        ALERTS.into_iter().zip(&inner.watched).map(one).collect()
    }
}

impl Watched {
    fn observe(
        &mut self,
        alert: Alert,
        value: f64,
        config: &AlertsConfig,
        monotonic_ms: u64,
        unix_ms: u64,
    ) -> Option<AlertRecord> {
        let threshold = alert.threshold(config);
        let is_past = threshold > 0.0 && value >= threshold;
        let is_back = threshold <= 0.0 || value < threshold * config.clear_percent as f64 / 100.0;
        let (changes, after_s) = match &mut self.active {
            None => (is_past, if alert.is_immediate() { 0 } else { config.raise_after_s }),
            Some(active) => {
                active.value = value;
                (is_back, if threshold > 0.0 { config.clear_after_s } else { 0 })
            }
        };
        if !changes {
            self.since_ms = None;
            return None;
        }
        let since_ms = *self.since_ms.get_or_insert(monotonic_ms);
        if monotonic_ms.saturating_sub(since_ms) < after_s * 1000 {
            return None;
        }
        self.since_ms = None;
        let at = moment_text(unix_ms);
        let (state, message) = match self.active.take() {
            None => {
                let message = alert.sentence(value, threshold);
                self.raised += 1;
                self.active = Some(ActiveAlert {
                    alert: alert.as_str(),
                    severity: alert.severity(),
                    message: message.clone(),
                    value,
                    threshold,
                    since: at.clone(),
                });
                ("raised", message)
            }
            Some(active) => ("cleared", format!("over: {}", active.message)),
        };
        Some(AlertRecord {
            at,
            at_ms: unix_ms,
            alert: alert.as_str().to_owned(),
            state: state.to_owned(),
            severity: alert.severity().to_owned(),
            message,
            value,
            threshold,
        })
    }
}

// ---- GET /api/v1/alerts ----

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct AlertsAsked {
    /// RFC 3339, or unix time in seconds; older ones come from the stored history, where one is kept.
    since: Option<Box<str>>,
    /// At most so many, 1 to 1000; 100 where it is left out.
    limit: Option<usize>,
}

#[derive(Serialize, ToSchema)]
struct AlertsPage {
    /// Those that are raised.
    active: Vec<ActiveAlert>,
    /// What was raised and cleared, the newest first.
    alerts: Vec<AlertRecord>,
}

/// Lists the alerts that are raised, and what was raised and cleared.
#[utoipa::path(
    operation_id = "list_alerts",
    get,
    path = "/api/v1/alerts",
    tag = "health",
    params(AlertsAsked),
    responses((status = 200, body = AlertsPage), Refusals),
)]
pub(crate) async fn list<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    Asked(asked): Asked<AlertsAsked>,
) -> Result<Response, ApiError> {
    api.admin(&headers)?;
    let since_ms = asked.since.as_deref().map(parse_moment).transpose()?;
    let limit = asked.limit.unwrap_or(LIST_DEFAULT);
    if !(1..=LIST_MAX).contains(&limit) {
        return Err(ApiError::bad_request(format!("limit is 1 to {LIST_MAX}")));
    }
    let mut alerts = api.alerts.recent(since_ms.unwrap_or(0));
    if let (Some(since_ms), Some(store)) = (since_ms, &api.store) {
        let stored = api.remote(store.alerts(since_ms, limit)).await?;
        // What happened just now may not be written yet.
        let known = |record: &AlertRecord, all: &[AlertRecord]| {
            all.iter().any(|one| (one.at_ms, &one.alert, &one.state) == (record.at_ms, &record.alert, &record.state))
        };
        let unwritten: Vec<_> = alerts.into_iter().filter(|record| !known(record, &stored)).collect();
        alerts = unwritten.into_iter().chain(stored).collect();
        alerts.sort_by_key(|record| std::cmp::Reverse(record.at_ms));
    }
    alerts.truncate(limit);
    Ok(json(StatusCode::OK, &AlertsPage { active: api.alerts.active(), alerts }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> AlertsConfig {
        AlertsConfig { connections_percent: 90, raise_after_s: 5, clear_after_s: 10, ..AlertsConfig::default() }
    }

    fn values(alert: Alert, value: f64) -> Values {
        let mut values = Values::default();
        values.set(alert, Some(value));
        values
    }

    /// What a value does to an alert, second by second: R where it is raised, C where it is cleared.
    fn course(alert: Alert, config: &AlertsConfig, seconds: &[f64]) -> String {
        let board = Board::default();
        let one = |(second, value): (u64, &f64)| {
            let changes = board.observe(&values(alert, *value), config, second * 1000, 1_000_000 + second * 1000);
            match changes.first() {
                Some(change) if change.state == "raised" => 'R',
                Some(_) => 'C',
                None => '.',
            }
        };
        (0..).zip(seconds).map(one).collect()
    }

    #[test]
    fn a_value_has_to_stay_past_the_threshold_to_raise_an_alert() {
        let seconds = [95.0, 95.0, 95.0, 89.0, 95.0, 95.0, 95.0, 95.0, 95.0, 95.0, 95.0];
        assert_eq!(course(Alert::Connections, &config(), &seconds), ".........R.");
    }

    #[test]
    fn it_has_to_be_well_below_for_a_while_to_clear_it() {
        let seconds: Vec<f64> = [vec![95.0; 7], vec![85.0; 20], vec![80.0; 5], vec![82.0], vec![80.0; 12]].concat();
        let course = course(Alert::Connections, &config(), &seconds);
        assert_eq!(course.find('R'), Some(5));
        // 85 is below the threshold, but not below 90 % of it; 82 is not either.
        assert_eq!(course.find('C'), Some(7 + 20 + 6 + 10));
    }

    #[test]
    fn a_silent_shard_is_told_at_once_and_a_threshold_of_0_watches_for_nothing() {
        assert_eq!(course(Alert::ShardSilent, &config(), &[0.0, 2000.0, 2500.0]), ".R.");
        let off = AlertsConfig { shard_silent_ms: 0, ..config() };
        assert_eq!(course(Alert::ShardSilent, &off, &[0.0, 9e9, 9e9]), "...");
    }

    #[test]
    fn an_alert_that_is_switched_off_is_cleared() {
        let board = Board::default();
        assert_eq!(board.observe(&values(Alert::ShardSilent, 3000.0), &config(), 0, 0).len(), 1);
        assert_eq!(board.active()[0].alert, "shard_silent");
        let off = AlertsConfig { shard_silent_ms: 0, ..config() };
        let changes = board.observe(&values(Alert::ShardSilent, 3000.0), &off, 1000, 1000);
        assert_eq!((changes[0].state.as_str(), board.active().len()), ("cleared", 0));
        assert_eq!(board.counts()[Alert::ShardSilent as usize], ("shard_silent", false, 1));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_newest_comes_first() {
        let board = Board::default();
        let quick = AlertsConfig { clear_after_s: 0, ..config() };
        for second in 0..1000 {
            let value = if second % 2 == 0 { 3000.0 } else { 0.0 };
            board.observe(&values(Alert::ShardSilent, value), &quick, second * 1000, second * 1000);
        }
        let recent = board.recent(0);
        assert_eq!((recent.len(), recent[0].at_ms), (RECENT_MAX, 999_000));
        assert_eq!(board.recent(998_000).len(), 2);
    }

    #[test]
    fn the_alerts_stand_in_the_order_of_their_numbers() {
        for (place, alert) in ALERTS.into_iter().enumerate() {
            assert_eq!(alert as usize, place);
        }
    }
}
