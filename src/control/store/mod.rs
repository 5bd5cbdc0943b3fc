//! Stored history: who was connected, what the hub did and which alerts there were, in a SQLite file.
//!
//! ```text
//!  shards ──ConnectionReport──► Ledger ──► writer (a thread) ──► Database ──► file
//!  monitor ──Sample, AlertRecord──┘  │        ▲      │
//!                                  lost    Query   Breaker
//! ```
//!
//! The file may be slow, locked, full or gone, and nobody but the writer notices: whoever reports puts the report into a
//! bounded queue and goes on ([`Ledger`]); what does not fit is counted. The writer gives a failing file rest
//! ([`BreakerState`]) and keeps what it has in hand until it works again. Nothing is written where `store.path` is empty,
//! and then there is no thread either.

mod database;
mod ledger;
mod records;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use serde::Serialize;
use utoipa::ToSchema;

pub use super::breaker::BreakerState;
pub use database::{OpenError, Retention};
pub use ledger::{Closed, ClosedBy, ConnectionReport, Counts, Ledger};
pub use records::{AlertRecord, Sample};

use crate::config::StoreConfig;
use crate::hub::reply::{HubError, Pending, Responder, pending};
use crate::wire::codes::ErrorCode;

/// Points that one question for the performance history may have for an answer.
pub const POINTS_MAX: usize = 1000;
/// Questions that may wait: each is some milliseconds of the writer's time.
const QUERIES_MAX: usize = 16;
/// How long the end waits for the last reports to be written: a disk that takes longer keeps nobody.
const END_WAIT: Duration = Duration::from_secs(3);
/// A write that takes longer than this is a disk that does not answer.
const STUCK_MS: u64 = 5000;
const DAY_MS: u64 = 86_400_000;
const HOUR_MS: u64 = 3_600_000;

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The file can't be used.
    #[error("store.path: {0}")]
    Open(#[from] OpenError),
    /// There is no thread for it.
    #[error("the store's thread can't be started: {0}")]
    Thread(#[from] io::Error),
}

/// How the store is to be run.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The file.
    pub path: PathBuf,
    /// Reports of connections that may wait.
    pub queue_max: usize,
    /// The file's bound.
    pub bytes_max: u64,
    /// How long things are kept.
    pub retention: Retention,
    /// How long the writer waits for another's lock.
    pub patience: Duration,
}

impl StoreOptions {
    /// What the configuration says; none where it asks for no store.
    pub fn new(config: &StoreConfig) -> Option<StoreOptions> {
        let retention = Retention {
            connections_ms: config.connections_days * DAY_MS,
            samples_ms: config.samples_hours * HOUR_MS,
            minutes_ms: config.minutes_days * DAY_MS,
            alerts_ms: config.alerts_days * DAY_MS,
        };
        Some(StoreOptions {
            path: config.path.clone()?,
            queue_max: config.queue_max,
            bytes_max: config.bytes_max,
            retention,
            patience: Duration::from_secs(1),
        })
    }
}

/// What the writer is asked.
enum Query {
    Performance { since_ms: u64, step_ms: u64, responder: Responder<Vec<Sample>> },
    Alerts { since_ms: u64, limit: usize, responder: Responder<Vec<AlertRecord>> },
}

/// What all holders of a handle and the writer share.
struct Shared {
    ledger: Arc<Ledger>,
    queries: ArrayQueue<Query>,
    written: ledger::SharedCounts,
    failures: AtomicU64,
    state: AtomicU8,
    /// Why the last attempt failed; none once one has worked.
    trouble: Mutex<Option<&'static str>>,
    /// Since when the writer is at its present transaction, in milliseconds from `began`; 0 where it is at none.
    writing_since_ms: AtomicU64,
    began: Instant,
    stop: AtomicBool,
    ended: AtomicBool,
}

impl Shared {
    fn elapsed_ms(&self) -> u64 {
        // Never 0, which stands for "not writing".
        self.began.elapsed().as_millis() as u64 + 1
    }

    fn refuse_queries(&self) {
        while let Some(query) = self.queries.pop() {
            query.refuse("the hub ends");
        }
    }

    fn set_trouble(&self, word: Option<&'static str>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = word;
    }
}

/// A handle to the store; the last one that goes ends it.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    writer: Arc<WriterThread>,
}

struct WriterThread {
    shared: Arc<Shared>,
    handle: Mutex<Option<JoinHandle<()>>>,
    waker: std::thread::Thread,
}

impl Drop for WriterThread {
    fn drop(&mut self) {
        self.end();
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Store")
    }
}

/// How the store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct StoreStatus {
    /// The breaker: `closed` (all is well), `open` (the file is left alone) or `half_open` (about to be tried).
    pub breaker: &'static str,
    /// What was wrong the last time: `locked`, `full`, `io`, `gone`, `read_only`, `corrupt`, `foreign` or `other`; `stuck`
    /// where the disk does not answer. None when all is well.
    pub trouble: Option<&'static str>,
    /// Reports that wait to be written.
    pub queued: usize,
    /// Reports that were written.
    pub written: u64,
    /// Reports that were lost, because they did not fit or could not be written before the end.
    pub lost: u64,
    /// Attempts that failed.
    pub failures: u64,
}

impl Store {
    /// Opens the file and starts the writer.
    pub fn start(options: StoreOptions) -> Result<Store, StartError> {
        let ledger = Arc::new(Ledger::new(options.queue_max));
        let shared = Arc::new(Shared {
            ledger,
            queries: ArrayQueue::new(QUERIES_MAX),
            written: ledger::SharedCounts::default(),
            failures: AtomicU64::new(0),
            state: AtomicU8::new(BreakerState::Closed.number()),
            trouble: Mutex::new(None),
            writing_since_ms: AtomicU64::new(0),
            began: Instant::now(),
            stop: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let thread = writer::start(options, Arc::clone(&shared))?;
        let waker = thread.thread().clone();
        let writer = WriterThread { shared: Arc::clone(&shared), handle: Mutex::new(Some(thread)), waker };
        Ok(Store { shared, writer: Arc::new(writer) })
    }

    /// Where reports go.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.shared.ledger
    }

    /// How it is.
    pub fn status(&self) -> StoreStatus {
        let shared = &self.shared;
        let mut trouble = *shared.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_stuck() {
            trouble = Some("stuck");
        }
        StoreStatus {
            breaker: self.breaker().as_str(),
            trouble,
            queued: shared.ledger.queued(),
            written: self.written().total(),
            lost: self.lost().total(),
            failures: shared.failures.load(Ordering::Relaxed),
        }
    }

    /// The breaker's state.
    pub fn breaker(&self) -> BreakerState {
        BreakerState::from_number(self.shared.state.load(Ordering::Relaxed))
    }

    /// Whether it does what it is for.
    pub fn is_down(&self) -> bool {
        self.breaker() != BreakerState::Closed || self.is_stuck()
    }

    /// Reports that were written, by table.
    pub fn written(&self) -> Counts {
        self.shared.written.read()
    }

    /// Reports that were lost, by table.
    pub fn lost(&self) -> Counts {
        self.shared.ledger.lost()
    }

    fn is_stuck(&self) -> bool {
        let since_ms = self.shared.writing_since_ms.load(Ordering::Relaxed);
        since_ms > 0 && self.shared.elapsed_ms().saturating_sub(since_ms) > STUCK_MS
    }

    /// The performance history from a moment on, in points of `step_ms`: the oldest first, at most [`POINTS_MAX`].
    pub fn performance(&self, since_ms: u64, step_ms: u64) -> Pending<Vec<Sample>> {
        let (responder, pending) = pending();
        self.ask(Query::Performance { since_ms, step_ms, responder });
        pending
    }

    /// Changes of alerts since a moment: the newest first, at most `limit`.
    pub fn alerts(&self, since_ms: u64, limit: usize) -> Pending<Vec<AlertRecord>> {
        let (responder, pending) = pending();
        self.ask(Query::Alerts { since_ms, limit, responder });
        pending
    }

    fn ask(&self, query: Query) {
        // While the disk does not answer the question would wait for it, and its caller with it.
        let refused = if self.is_stuck() { Some(query) } else { self.shared.queries.push(query).err() };
        if let Some(query) = refused {
            query.refuse("the store does not answer");
        }
        if self.shared.ended.load(Ordering::SeqCst) {
            self.shared.refuse_queries();
        }
        self.writer.waker.unpark();
    }

    /// Writes what waits, as far as that can be had within a few seconds, and ends the writer. What could not be written
    /// is counted as lost.
    pub fn shutdown(&self) {
        self.writer.end();
    }
}

impl WriterThread {
    fn end(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.waker.unpark();
        let Some(thread) = self.handle.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let until = Instant::now() + END_WAIT + Duration::from_secs(2);
        while !self.shared.ended.load(Ordering::SeqCst) && !thread.is_finished() {
            if Instant::now() >= until {
                // It hangs in the kernel; the process's end ends it.
                tracing::error!(queued = self.shared.ledger.queued(), "the disk does not answer; the store is left");
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        if thread.join().is_err() {
            tracing::error!("the store's thread panicked");
        }
    }
}

impl Query {
    fn refuse(self, message: &str) {
        let error = HubError::new(ErrorCode::Unavailable, message);
        match self {
            Query::Performance { responder, .. } => responder.resolve(Err(error)),
            Query::Alerts { responder, .. } => responder.resolve(Err(error)),
        }
    }
}
