//! OpenTelemetry: traces and metrics for a collector, over OTLP (HTTP, protobuf).
//!
//! ```text
//!  shards, control plane, hooks ──Finished──► queue ──┐
//!                                               │     ├── a thread ──► POST /v1/traces, /v1/metrics
//!                                             lost    │       │
//!                          the text of /metrics ──────┘    Breaker
//! ```
//!
//! Where `telemetry.otlp_url` is empty there is neither a queue nor a thread, and whoever could tell something looks at an
//! option that is none. What is told holds no tokens, no queries and no names of clients: routes, outcomes and times.

mod context;
mod exposition;
mod figures;
mod spans;

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam::queue::ArrayQueue;
use serde::Serialize;
use utoipa::ToSchema;

use super::breaker::{Breaker, BreakerState};
use super::client::{Client, ClientError};
use crate::config::Config;
pub use context::SpanContext;
use context::{Parent, is_sampled};
use spans::Finished;
pub use spans::{Side, Value};

/// How often the queue is looked into.
const LOOK: Duration = Duration::from_millis(200);
/// Spans in one call.
const BATCH_MAX: usize = 512;
/// What is read of an answer.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// How long the end waits for the last call.
const END_WAIT: Duration = Duration::from_secs(2);

/// Why there is no telemetry.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The certificates can't be used.
    #[error("telemetry.ca_file: {0}")]
    Client(#[from] ClientError),
    /// There is no thread for it.
    #[error("the telemetry's thread can't be started: {0}")]
    Thread(#[from] std::io::Error),
}

type Exposition = Box<dyn Fn() -> Option<String> + Send + Sync>;

struct Shared {
    spans: ArrayQueue<Finished>,
    per_1000: u64,
    exposition: OnceLock<Exposition>,
    state: AtomicU8,
    trouble: Mutex<Option<&'static str>>,
    told: AtomicU64,
    lost: AtomicU64,
    calls: AtomicU64,
    failures: AtomicU64,
    began: Instant,
    stop: AtomicBool,
}

/// A handle; the last one that goes ends the thread.
#[derive(Clone)]
pub struct Telemetry {
    shared: Arc<Shared>,
    thread: Arc<Thread>,
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Telemetry")
    }
}

/// How the telemetry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct TelemetryStatus {
    /// The breaker: `closed` (all is well), `open` (the collector is left alone) or `half_open` (about to be tried).
    pub breaker: &'static str,
    /// What was wrong the last time: `timeout`, `connection`, `tls`, `garbage` or `status`. None when all is well.
    pub trouble: Option<&'static str>,
    /// Spans that wait.
    pub queued: u64,
    /// Spans that the collector took.
    pub told: u64,
    /// Spans that were lost, because they did not fit or could not be told.
    pub lost: u64,
    /// Calls that were made.
    pub calls: u64,
    /// Calls that failed.
    pub failures: u64,
}

/// A span under way. One that is dropped was never there.
#[derive(Debug)]
pub struct Span {
    telemetry: Telemetry,
    context: SpanContext,
    parent: Option<Parent>,
    side: Side,
    began_ns: u64,
}

fn unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Telemetry {
    /// Starts the thread; none where no collector is configured.
    pub fn start(config: &Config) -> Result<Option<Telemetry>, StartError> {
        let options = &config.telemetry;
        let Some(url) = &options.otlp_url else { return Ok(None) };
        let shared = Arc::new(Shared {
            spans: ArrayQueue::new(options.queue_max.max(1)),
            per_1000: options.traces_per_1000,
            exposition: OnceLock::new(),
            state: AtomicU8::new(BreakerState::Closed.number()),
            trouble: Mutex::new(None),
            told: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            began: Instant::now(),
            stop: AtomicBool::new(false),
        });
        let base = url.as_str().trim_end_matches('/');
        let mut sender = Sender {
            shared: shared.clone(),
            client: Client::new(options.ca_file.as_deref(), 1)?,
            traces_url: format!("{base}/v1/traces"),
            metrics_url: format!("{base}/v1/metrics"),
            timeout: Duration::from_millis(options.timeout_ms),
            metrics_interval_ms: options.metrics_interval_s * 1000,
            metrics_due_ms: 0,
            node: config.node.name.clone(),
            began_ns: unix_ns(),
            breaker: Breaker::new(),
        };
        let handle = std::thread::Builder::new().name("telemetry".to_owned()).spawn(move || sender.run())?;
        let thread = Thread { shared: shared.clone(), handle: Mutex::new(Some(handle)) };
        Ok(Some(Telemetry { shared, thread: Arc::new(thread) }))
    }

    /// Where the metrics come from: their text in OpenMetrics' format.
    pub(crate) fn set_exposition(&self, exposition: Exposition) {
        // There is one control plane.
        drop(self.shared.exposition.set(exposition));
    }

    /// Begins a span, where it is to be told. `traceparent` is the caller's header, if there is a caller.
    pub fn begin(&self, side: Side, traceparent: Option<&str>) -> Option<Span> {
        self.begin_within(side, traceparent.and_then(Parent::parse))
    }

    /// Begins a span within another one of this hub's, or one of its own.
    pub fn begin_under(&self, side: Side, parent: Option<SpanContext>) -> Option<Span> {
        self.begin_within(side, parent.map(|context| Parent { context, is_sampled: true }))
    }

    fn begin_within(&self, side: Side, parent: Option<Parent>) -> Option<Span> {
        if !is_sampled(parent.as_ref(), fastrand::u64(..1000), self.shared.per_1000) {
            return None;
        }
        // An id of zeros would be none.
        let trace_id = parent.map_or_else(|| fastrand::u128(1..), |parent| parent.context.trace_id);
        let context = SpanContext { trace_id, span_id: fastrand::u64(1..) };
        Some(Span { telemetry: self.clone(), context, parent, side, began_ns: unix_ns() })
    }

    /// How it is.
    pub fn status(&self) -> TelemetryStatus {
        let shared = &*self.shared;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TelemetryStatus {
            breaker: BreakerState::from_number(shared.state.load(Ordering::Relaxed)).as_str(),
            trouble: *lock(&shared.trouble),
            queued: shared.spans.len() as u64,
            told: read(&shared.told),
            lost: read(&shared.lost),
            calls: read(&shared.calls),
            failures: read(&shared.failures),
        }
    }

    /// Tells what waits, if the collector takes it, and ends the thread.
    pub fn shutdown(&self) {
        self.thread.end();
    }
}

impl Span {
    /// The span among others.
    pub fn context(&self) -> SpanContext {
        self.context
    }

    /// It is over. `failure` says what went wrong, in a word.
    pub fn end(
        self,
        name: impl Into<Cow<'static, str>>,
        attributes: Vec<(&'static str, Value)>,
        failure: Option<&'static str>,
    ) {
        let Span { telemetry, context, parent, side, began_ns } = self;
        let name = name.into();
        let finished = Finished { context, parent, side, name, began_ns, ended_ns: unix_ns(), attributes, failure };
        if telemetry.shared.spans.push(finished).is_err() {
            telemetry.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Thread {
    shared: Arc<Shared>,
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl Thread {
    fn end(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let Some(handle) = lock(&self.handle).take() else { return };
        handle.thread().unpark();
        let until = Instant::now() + END_WAIT;
        while !handle.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        // One that is in a call ends with the process.
        if handle.is_finished() && handle.join().is_err() {
            tracing::error!("the telemetry's thread panicked");
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.end();
    }
}

/// The thread.
struct Sender {
    shared: Arc<Shared>,
    client: Client,
    traces_url: String,
    metrics_url: String,
    timeout: Duration,
    /// 0 where no metrics are told.
    metrics_interval_ms: u64,
    metrics_due_ms: u64,
    node: String,
    began_ns: u64,
    breaker: Breaker,
}

impl Sender {
    fn run(&mut self) {
        while !self.shared.stop.load(Ordering::SeqCst) {
            if !self.work() {
                std::thread::park_timeout(LOOK);
            }
        }
        self.metrics_due_ms = 0;
        self.work();
        let left = std::iter::from_fn(|| self.shared.spans.pop()).count();
        self.shared.lost.fetch_add(left as u64, Ordering::Relaxed);
    }

    /// Tells what there is. False where that was little, so that more may gather.
    fn work(&mut self) -> bool {
        let now_ms = self.now_ms();
        let state = self.breaker.state(now_ms);
        self.shared.state.store(state.number(), Ordering::Relaxed);
        if state == BreakerState::Open {
            return false;
        }
        let batch: Vec<Finished> = std::iter::from_fn(|| self.shared.spans.pop()).take(BATCH_MAX).collect();
        let count = batch.len();
        if count > 0 {
            let body = spans::body(batch, spans::resource(&self.node));
            // A batch that failed is not kept: traces are samples, and the next ones tell as much.
            let counter =
                if self.post(&self.traces_url.clone(), &body) { &self.shared.told } else { &self.shared.lost };
            counter.fetch_add(count as u64, Ordering::Relaxed);
        }
        let is_due = self.metrics_interval_ms > 0 && now_ms >= self.metrics_due_ms;
        if is_due && let Some(text) = self.shared.exposition.get().and_then(|exposition| exposition()) {
            self.metrics_due_ms = now_ms + self.metrics_interval_ms;
            let body = exposition::body(&text, spans::resource(&self.node), self.began_ns, unix_ns());
            self.post(&self.metrics_url.clone(), &body);
        }
        count == BATCH_MAX
    }

    fn post(&mut self, url: &str, body: &[u8]) -> bool {
        let headers = [("content-type", "application/x-protobuf".to_owned())];
        let answer = self.client.post(url, &headers, body, self.timeout, ANSWER_BYTES_MAX);
        let trouble = match answer {
            Ok(answer) if (200..300).contains(&answer.status) => None,
            Ok(_) => Some("status"),
            Err(error) => Some(error.word()),
        };
        self.shared.calls.fetch_add(1, Ordering::Relaxed);
        *lock(&self.shared.trouble) = trouble;
        let now_ms = self.now_ms();
        let was = self.breaker.state(now_ms);
        match trouble {
            None => self.breaker.worked(),
            Some(_) => {
                self.shared.failures.fetch_add(1, Ordering::Relaxed);
                self.breaker.failed(now_ms);
            }
        }
        let state = self.breaker.state(now_ms);
        self.shared.state.store(state.number(), Ordering::Relaxed);
        match (was, state, trouble) {
            (BreakerState::Closed, BreakerState::Open, Some(reason)) => {
                tracing::warn!(reason, "the telemetry's collector does not answer and is left alone for a while");
            }
            (BreakerState::HalfOpen | BreakerState::Open, BreakerState::Closed, _) => {
                tracing::info!(
                    lost = self.shared.lost.load(Ordering::Relaxed),
                    "the telemetry's collector answers again"
                );
            }
            _ => {}
        }
        trouble.is_none()
    }

    fn now_ms(&self) -> u64 {
        self.shared.began.elapsed().as_millis() as u64
    }
}
