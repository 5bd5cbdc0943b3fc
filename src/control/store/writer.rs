//! The store's thread: takes reports out of the queues, writes them, answers questions and deletes what is too old.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::database::{Database, StoreError};
use super::ledger::Batch;
use super::{END_WAIT, POINTS_MAX, Query, Shared, StartError, StoreOptions};
use crate::control::breaker::{Breaker, BreakerState};
use crate::hub::reply::{HubError, Responder};
use crate::wire::codes::ErrorCode;

/// How often the queues are looked into: rarely enough to cost nothing and to make batches, often enough that a queue of
/// the default size holds what thousands of connections a second report.
const LOOK: Duration = Duration::from_millis(100);
/// How often old rows are looked for.
const SWEEP_MS: u64 = 60_000;

/// Opens the file on a thread of its own, which then goes on as the writer.
pub(super) fn start(options: StoreOptions, shared: Arc<Shared>) -> Result<JoinHandle<()>, StartError> {
    let (opened, open) = sync_channel(1);
    let body = move || {
        let _at_end = AtEnd(Arc::clone(&shared));
        let run = as_run(SystemTime::now());
        let database = Database::open(&options.path, options.bytes_max, run, options.patience * 5);
        let database = match database {
            Ok(database) => database,
            Err(error) => {
                // The starter waits for this.
                drop(opened.send(Err(error)));
                return;
            }
        };
        drop(opened.send(Ok(())));
        let database = Some(database);
        let breaker = Breaker::new();
        let mut writer = Writer {
            options,
            shared,
            run,
            database,
            breaker,
            batch: Batch::default(),
            swept_ms: 0,
            has_more: false,
            is_full: false,
        };
        writer.greet();
        writer.run();
    };
    let thread = std::thread::Builder::new().name("store".to_owned()).spawn(body)?;
    match open.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(io::Error::other("it ended while it started").into()),
    }
}

/// Microseconds of unix time: no two runs of a hub begin in the same.
fn as_run(now: SystemTime) -> i64 {
    now.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// However the thread ends, nobody waits for it any more.
struct AtEnd(Arc<Shared>);

impl Drop for AtEnd {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::SeqCst);
        self.0.refuse_queries();
    }
}

struct Writer {
    options: StoreOptions,
    shared: Arc<Shared>,
    run: i64,
    /// None where it has to be opened again.
    database: Option<Database>,
    breaker: Breaker,
    /// What is in hand: it stays there until it is written.
    batch: Batch,
    swept_ms: u64,
    /// Whether the last sweep has left something to do.
    has_more: bool,
    /// Whether there was no place the last time.
    is_full: bool,
}

impl Writer {
    /// What an earlier run left.
    fn greet(&mut self) {
        let Some(database) = &mut self.database else { return };
        if let Err(error) = database.close_left_over() {
            self.failed(&error);
        }
    }

    fn run(&mut self) {
        while !self.shared.stop.load(Ordering::SeqCst) {
            std::thread::park_timeout(LOOK);
            self.answer();
            self.write();
            self.sweep();
        }
        // The last reports are in the queue by now: shards end before the store.
        let until_ms = self.shared.elapsed_ms() + END_WAIT.as_millis() as u64;
        while self.has_work() && self.shared.elapsed_ms() < until_ms {
            let before = self.batch.counts().total() + self.shared.ledger.queued() as u64;
            self.write();
            if self.batch.counts().total() + self.shared.ledger.queued() as u64 == before {
                std::thread::sleep(LOOK);
            }
        }
        self.give_up();
    }

    fn has_work(&self) -> bool {
        !self.batch.is_empty() || self.shared.ledger.queued() > 0
    }

    /// Counts as lost what is left at the end.
    fn give_up(&mut self) {
        let mut left = 0;
        loop {
            let counts = self.batch.counts();
            self.shared.ledger.lost.add(counts);
            left += counts.total();
            self.batch.clear();
            self.shared.ledger.take(&mut self.batch);
            if self.batch.is_empty() {
                break;
            }
        }
        if left > 0 {
            tracing::error!(reports = left, "the store could not be written before the end");
        }
    }

    // ---- writing ----

    /// Writes a batch, where there is something to write and the breaker lets it through.
    fn write(&mut self) {
        loop {
            let state = self.breaker.state(self.shared.elapsed_ms());
            self.shared.state.store(state.number(), Ordering::Relaxed);
            if state == BreakerState::Open {
                return;
            }
            // What failed stays in hand as it is: the queue keeps what comes meanwhile, and counts what it can't.
            if self.batch.is_empty() {
                self.shared.ledger.take(&mut self.batch);
            }
            // A half-open breaker wants to know whether the disk works again, even if there is nothing to write.
            if self.batch.is_empty() && state == BreakerState::Closed {
                return;
            }
            self.shared.writing_since_ms.store(self.shared.elapsed_ms(), Ordering::Relaxed);
            let outcome = self.try_write();
            self.shared.writing_since_ms.store(0, Ordering::Relaxed);
            match outcome {
                Ok(()) => {
                    self.shared.written.add(self.batch.counts());
                    self.batch.clear();
                    self.worked();
                }
                Err(error) if error.is_of_the_rows() => {
                    tracing::error!(%error, rows = self.batch.counts().total(), "rows that can't be stored are left out");
                    self.shared.ledger.lost.add(self.batch.counts());
                    self.batch.clear();
                }
                Err(error) => return self.failed(&error),
            }
            let is_over = self.shared.ledger.queued() == 0;
            if is_over || !self.shared.queries.is_empty() {
                return;
            }
        }
    }

    fn try_write(&mut self) -> Result<(), StoreError> {
        if self.database.is_none() {
            let StoreOptions { path, bytes_max, patience, .. } = &self.options;
            self.database = Some(Database::open(path, *bytes_max, self.run, *patience)?);
        }
        let Some(database) = &mut self.database else { return Ok(()) };
        if self.is_full {
            // Where the file is at its bound, what is old has to give way first.
            database.make_room(unix_ms(), &self.options.retention)?;
        }
        database.write(&self.batch)
    }

    fn worked(&mut self) {
        let now_ms = self.shared.elapsed_ms();
        if self.breaker.state(now_ms) != BreakerState::Closed {
            tracing::info!(lost = self.shared.ledger.lost().total(), "the store works again");
        }
        self.breaker.worked();
        self.is_full = false;
        self.shared.state.store(BreakerState::Closed.number(), Ordering::Relaxed);
        self.shared.set_trouble(None);
    }

    fn failed(&mut self, error: &StoreError) {
        let now_ms = self.shared.elapsed_ms();
        let was = self.breaker.state(now_ms);
        self.breaker.failed(now_ms);
        let state = self.breaker.state(now_ms);
        self.shared.failures.fetch_add(1, Ordering::Relaxed);
        self.shared.state.store(state.number(), Ordering::Relaxed);
        self.shared.set_trouble(Some(error.word()));
        self.is_full = error.word() == "full";
        // Whatever it was, a new look at the file is the best start for the next attempt; a lock is no matter of the file.
        if error.word() != "locked" {
            self.database = None;
        }
        match (was, state) {
            (BreakerState::Closed, BreakerState::Open) => {
                tracing::error!(%error, "the store fails and is left alone for a while; history may be lost");
            }
            (BreakerState::Closed, _) => tracing::warn!(%error, "the store could not be written"),
            _ => tracing::debug!(%error, "the store still fails"),
        }
    }

    /// Deletes a part of what is too old.
    fn sweep(&mut self) {
        let now_ms = self.shared.elapsed_ms();
        let is_due = self.has_more || now_ms >= self.swept_ms + SWEEP_MS || self.swept_ms == 0;
        if !is_due || self.breaker.state(now_ms) != BreakerState::Closed {
            return;
        }
        self.swept_ms = now_ms;
        self.has_more = false;
        let retention = self.options.retention;
        let Some(database) = &mut self.database else { return };
        match database.sweep(unix_ms(), &retention) {
            Ok(has_more) => self.has_more = has_more,
            Err(error) => self.failed(&error),
        }
    }

    // ---- questions ----

    fn answer(&mut self) {
        while let Some(query) = self.shared.queries.pop() {
            // Reading may work where writing does not; it says nothing about the breaker.
            let Some(database) = &self.database else {
                query.refuse("the store is not there at the moment");
                continue;
            };
            match query {
                Query::Performance { since_ms, step_ms, responder } => {
                    tell(responder, database.performance(since_ms, step_ms, POINTS_MAX));
                }
                Query::Alerts { since_ms, limit, responder } => tell(responder, database.alerts(since_ms, limit)),
            }
        }
    }
}

fn tell<T>(responder: Responder<T>, outcome: Result<T, StoreError>) {
    responder.resolve(outcome.map_err(|error| {
        tracing::warn!(%error, "the store could not be read");
        HubError::new(ErrorCode::Unavailable, "the store can't be read at the moment")
    }));
}
