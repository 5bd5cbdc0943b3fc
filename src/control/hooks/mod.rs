//! Hooks: what the hub tells a backend over HTTP, and what it asks.
//!
//! ```text
//!  shards ──Report──► Feed ──► sender (a thread) ──debounce, batch──► POST hooks.url ──┐
//!                      │                ▲                                   │          │ failed: retry
//!                    lost            Breaker                             Client        ▼
//!  shard ──Question──► Desk ──► askers (threads) ──► POST hooks.connect_url ──► Verdict ──► the same shard
//! ```
//!
//! The backend may be slow, down or mad, and no shard notices: whoever reports puts the report into a bounded queue and goes
//! on; who wants to know whether a client may connect puts the question into another, and has it answered by a request of
//! its own. Where neither URL is configured there are neither queues nor threads.

mod asker;
mod batch;
mod debounce;
mod decision;
mod desk;
mod feed;
mod figures;
mod retry;
mod sender;
mod signature;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;
use utoipa::ToSchema;

pub use super::breaker::BreakerState;
pub use desk::{Busy, Desk, DeskTicket, Grant, Question, RequestTold, Verdict};
pub use feed::{Feed, MessageReport, Report};

use super::client::{Answer, CallError, Client, ClientError};
use super::telemetry::{Side, Span, SpanContext, Telemetry, Value};
use crate::config::Config;
use crate::hub::name::ShardId;
use crate::ring::ConnKey;
use asker::{Asker, Probed};
use sender::Sender;

/// How long the end waits for the last events to be told.
const END_WAIT: Duration = Duration::from_secs(3);

/// Tells a shard what became of a question.
pub type Tell = Box<dyn Fn(ShardId, ConnKey, Verdict) + Send + Sync>;

/// Why there are no hooks.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The certificates can't be used.
    #[error("hooks.ca_file: {0}")]
    Client(#[from] ClientError),
    /// There are no threads for them.
    #[error("the threads of the hooks can't be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// What happened to the calls of one kind.
#[derive(Debug)]
struct Calls {
    state: AtomicU8,
    /// Why the last call failed; none once one has worked.
    trouble: Mutex<Option<&'static str>>,
    total: AtomicU64,
    failures: AtomicU64,
    time_us: AtomicU64,
}

impl Calls {
    fn new() -> Calls {
        Calls {
            state: AtomicU8::new(BreakerState::Closed.number()),
            trouble: Mutex::new(None),
            total: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            time_us: AtomicU64::new(0),
        }
    }

    fn set_state(&self, state: BreakerState) {
        self.state.store(state.number(), Ordering::Relaxed);
    }

    fn state(&self) -> BreakerState {
        BreakerState::from_number(self.state.load(Ordering::Relaxed))
    }

    fn failed(&self, word: &'static str) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        *lock(&self.trouble) = Some(word);
    }

    fn worked(&self) {
        *lock(&self.trouble) = None;
    }

    fn timed<T>(&self, call: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let outcome = call();
        self.total.fetch_add(1, Ordering::Relaxed);
        self.time_us.fetch_add(began.elapsed().as_micros() as u64, Ordering::Relaxed);
        outcome
    }
}

/// What the handle and the threads share.
struct Shared {
    feed: Arc<Feed>,
    telemetry: Option<Telemetry>,
    config: Mutex<Arc<Config>>,
    events_calls: Calls,
    connect_calls: Calls,
    /// Events that the sender has taken out of the queue and not told yet.
    held: AtomicU64,
    told: AtomicU64,
    refused: AtomicU64,
    debounced: AtomicU64,
    allowed: AtomicU64,
    denied: AtomicU64,
    failed_open: AtomicU64,
    failed_closed: AtomicU64,
    began: Instant,
    stop: AtomicBool,
}

impl Shared {
    fn elapsed_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// Begins the span of a call, where it is to be told, and lets the backend know.
    fn trace(&self, parent: Option<SpanContext>, headers: &mut Vec<(&'static str, String)>) -> Option<Span> {
        let span = self.telemetry.as_ref()?.begin_under(Side::Client, parent)?;
        headers.push(("traceparent", span.context().traceparent()));
        Some(span)
    }

    fn whole(&self) -> Arc<Config> {
        lock(&self.config).clone()
    }
}

/// Tells how a call went.
fn end_span(span: Option<Span>, name: &'static str, answer: &Result<Answer, CallError>, more: (&'static str, Value)) {
    let Some(span) = span else { return };
    let mut attributes = vec![("http.request.method", "POST".into()), more];
    attributes
        .extend(answer.as_ref().ok().map(|answer| ("http.response.status_code", u64::from(answer.status).into())));
    let failure = match answer {
        Ok(answer) if answer.status < 400 => None,
        Ok(_) => Some("status"),
        Err(error) => Some(error.word()),
    };
    span.end(name, attributes, failure);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A handle to the hooks; the last one that goes ends their threads.
#[derive(Clone)]
pub struct Hooks {
    shared: Arc<Shared>,
    desk: Option<Desk>,
    has_url: bool,
    threads: Arc<Threads>,
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Hooks")
    }
}

/// What shards are given.
#[derive(Debug, Clone, Default)]
pub struct ShardHooks {
    /// Where events go; none where nobody is told.
    pub feed: Option<Arc<Feed>>,
    /// Where it is asked who may connect; none where nobody is asked.
    pub desk: Option<Desk>,
    /// Where traces of admissions go; none where nobody collects them.
    pub telemetry: Option<Telemetry>,
}

/// How the hooks are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct HooksStatus {
    /// The events that the backend is told; none where `hooks.url` is empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<EventsStatus>,
    /// The questions about connections; none where `hooks.connect_url` is empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect: Option<ConnectStatus>,
}

/// How the backend is told events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct EventsStatus {
    /// The breaker: `closed` (all is well), `open` (the backend is left alone) or `half_open` (about to be tried).
    pub breaker: &'static str,
    /// What was wrong the last time: `timeout`, `connection`, `tls`, `garbage`, `rate_limited` or `status_5xx`. None when
    /// all is well.
    pub trouble: Option<&'static str>,
    /// Events that wait.
    pub queued: u64,
    /// Events that the backend took.
    pub told: u64,
    /// Events that were lost, because they did not fit, took too long or came too late.
    pub lost: u64,
    /// Events that the backend refused.
    pub refused: u64,
    /// Changes of rooms that undid each other.
    pub debounced: u64,
    /// Calls that were made.
    pub calls: u64,
    /// Calls that failed.
    pub failures: u64,
    /// The time that all calls took, in milliseconds.
    pub calls_ms: u64,
}

/// How the backend is asked about connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ConnectStatus {
    /// The breaker, as that of the events.
    pub breaker: &'static str,
    /// What was wrong the last time, as for the events; `status` for an answer that is no decision.
    pub trouble: Option<&'static str>,
    /// Clients that wait for an answer.
    pub pending: u64,
    /// Clients that the backend let in.
    pub allowed: u64,
    /// Clients that it refused.
    pub denied: u64,
    /// Clients that were let in without an answer (`hooks.connect_fail = "open"`).
    pub failed_open: u64,
    /// Clients that were refused without one (`"closed"`).
    pub failed_closed: u64,
    /// Calls that were made.
    pub calls: u64,
    /// Calls that failed.
    pub failures: u64,
    /// The time that all calls took, in milliseconds.
    pub calls_ms: u64,
}

/// What shards need before the hooks are started.
pub fn for_shards(config: &Config, telemetry: Option<Telemetry>) -> ShardHooks {
    let hooks = &config.hooks;
    ShardHooks {
        feed: hooks.url.as_ref().map(|_| Arc::new(Feed::new(hooks.queue_max, hooks.queue_bytes_max))),
        desk: hooks.connect_url.as_ref().map(|_| Desk::new(hooks.connect_pending_max, hooks.connect_calls_max)),
        telemetry,
    }
}

impl Hooks {
    /// Starts the threads; none where nothing is configured.
    pub fn start(config: &Config, hooks: &ShardHooks, run: u64, tell: Tell) -> Result<Option<Hooks>, StartError> {
        let ShardHooks { feed, desk, telemetry } = hooks;
        if feed.is_none() && desk.is_none() {
            return Ok(None);
        }
        let shared = Arc::new(Shared {
            feed: feed.clone().unwrap_or_else(|| Arc::new(Feed::new(1, 0))),
            telemetry: telemetry.clone(),
            config: Mutex::new(Arc::new(config.clone())),
            events_calls: Calls::new(),
            connect_calls: Calls::new(),
            held: AtomicU64::new(0),
            told: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            debounced: AtomicU64::new(0),
            allowed: AtomicU64::new(0),
            denied: AtomicU64::new(0),
            failed_open: AtomicU64::new(0),
            failed_closed: AtomicU64::new(0),
            began: Instant::now(),
            stop: AtomicBool::new(false),
        });
        let hooks = &config.hooks;
        let mut threads = Vec::new();
        if let Some(url) = &hooks.url {
            let client = Client::new(hooks.ca_file.as_deref(), 1)?;
            let sender = Sender::new(shared.clone(), url.to_string(), client, config.node.name.clone(), run);
            threads.push(std::thread::Builder::new().name("hooks".to_owned()).spawn(move || sender.run())?);
        }
        if let (Some(url), Some(desk)) = (&hooks.connect_url, desk) {
            let asker = Arc::new(Asker {
                shared: shared.clone(),
                desk: desk.clone(),
                url: url.to_string(),
                client: Client::new(hooks.ca_file.as_deref(), hooks.connect_calls_max)?,
                breaker: Mutex::new(Probed::new()),
                tell,
            });
            let mut askers = Vec::new();
            for place in 0..hooks.connect_calls_max {
                let asker = asker.clone();
                let name = format!("hook-ask-{place}");
                let thread = std::thread::Builder::new().name(name).spawn(move || asker.run(place))?;
                askers.push(thread.thread().clone());
                threads.push(thread);
            }
            desk.set_threads(askers);
        }
        let threads = Arc::new(Threads { shared: shared.clone(), desk: desk.clone(), handles: Mutex::new(threads) });
        Ok(Some(Hooks { shared, desk: desk.clone(), has_url: hooks.url.is_some(), threads }))
    }

    /// Goes by another configuration, as far as that needs no restart.
    pub fn reload(&self, config: &Config) {
        *lock(&self.shared.config) = Arc::new(config.clone());
    }

    /// How they are.
    pub fn status(&self) -> HooksStatus {
        let shared = &*self.shared;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let events = self.has_url.then(|| {
            let calls = &shared.events_calls;
            EventsStatus {
                breaker: calls.state().as_str(),
                trouble: *lock(&calls.trouble),
                queued: shared.feed.queued() as u64 + read(&shared.held),
                told: read(&shared.told),
                lost: shared.feed.lost(),
                refused: read(&shared.refused),
                debounced: read(&shared.debounced),
                calls: read(&calls.total),
                failures: read(&calls.failures),
                calls_ms: read(&calls.time_us) / 1000,
            }
        });
        let connect = self.desk.as_ref().map(|desk| {
            let calls = &shared.connect_calls;
            ConnectStatus {
                breaker: calls.state().as_str(),
                trouble: *lock(&calls.trouble),
                pending: desk.pending() as u64,
                allowed: read(&shared.allowed),
                denied: read(&shared.denied),
                failed_open: read(&shared.failed_open),
                failed_closed: read(&shared.failed_closed),
                calls: read(&calls.total),
                failures: read(&calls.failures),
                calls_ms: read(&calls.time_us) / 1000,
            }
        });
        HooksStatus { events, connect }
    }

    /// Whether a breaker is not closed.
    pub fn is_down(&self) -> bool {
        let calls = [&self.shared.events_calls, &self.shared.connect_calls];
        calls.iter().any(|calls| calls.state() != BreakerState::Closed)
    }

    /// Tells what waits, as far as that can be had within a few seconds, and ends the threads. What could not be told is
    /// counted as lost.
    pub fn shutdown(&self) {
        self.threads.end();
    }
}

struct Threads {
    shared: Arc<Shared>,
    desk: Option<Desk>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Threads {
    fn end(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(desk) = &self.desk {
            desk.end();
        }
        let handles = std::mem::take(&mut *lock(&self.handles));
        handles.iter().for_each(|handle| handle.thread().unpark());
        let until = Instant::now() + END_WAIT + Duration::from_millis(500);
        for handle in handles {
            while !handle.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(2));
            }
            // One that is in a call ends with the process.
            if handle.is_finished() && handle.join().is_err() {
                tracing::error!("a thread of the hooks panicked");
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.end();
    }
}
