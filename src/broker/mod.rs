//! The broker: what carries rooms between nodes. Without one, the home of a room numbers its events and keeps its log.
//!
//! ```text
//!  home ──ToBroker──► link ──► broker ──► Redis ──► brokers of all nodes that follow the room
//!    ▲                 │
//!    └──FromBroker─────┘
//! ```
//!
//! It has a thread and a runtime of its own. A shard never waits for it: what it is given and what it tells goes through the
//! bounded queues of [`mod@link`]. What is said is told in [`crate::hub::brokered`]; which broker there is, is decided in
//! [`start`] and nowhere else.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

pub mod emitter;
pub mod figures;
pub mod link;
pub mod nodes;
pub mod redis;

pub use figures::{BrokerFigures, BrokerSnapshot};
pub use link::{Intake, Link, link};

use crate::config::{BrokerKind, Config};
use link::Stop;
use redis::connection::{CaFileError, LinkError, Target};
use redis::scripts::Scripts;
use redis::submissions::{Bounds, Submissions};
use redis::worker::{Limits, Worker};

/// Who this node is among the others.
#[derive(Debug, Clone)]
pub struct Identity {
    /// This run of it, as in [`crate::hub::brokered::Origin`].
    pub run: u64,
    /// Its name.
    pub name: String,
}

/// Why the broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Nothing is configured that could carry anything.
    #[error("broker.kind is memory: there is no broker to start")]
    NoBroker,
    /// The certificates can't be read.
    #[error(transparent)]
    CaFile(#[from] CaFileError),
    /// A server refuses, and will go on doing so.
    #[error("the broker at {address}: {error}; {remedy}")]
    Refused {
        /// Which.
        address: String,
        /// What it says.
        error: LinkError,
        /// What helps.
        remedy: &'static str,
    },
    /// No thread.
    #[error("cannot start the broker's thread: {0}")]
    Thread(#[from] std::io::Error),
    /// The thread has ended.
    #[error("the broker's thread ended while it was started")]
    Ended,
}

/// The broker's thread has panicked.
#[derive(Debug, thiserror::Error)]
#[error("the broker's thread panicked")]
pub struct Panicked;

/// The running broker. Dropping it waits for what was handed over, as long as an answer may take, and ends it.
#[derive(Debug)]
pub struct Broker {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
    figures: Arc<BrokerFigures>,
}

impl Broker {
    /// What it counts.
    pub fn figures(&self) -> &Arc<BrokerFigures> {
        &self.figures
    }

    /// Whether all of its servers can be reached.
    pub fn is_up(&self) -> bool {
        self.figures.servers_up.value() == self.figures.servers.value()
    }

    /// False once its thread has ended, whether it was asked to or not.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Waits for what was handed over, as long as an answer may take, and ends.
    pub fn shutdown(mut self) -> Result<(), Panicked> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Panicked> {
        self.stop.request();
        match self.thread.take() {
            Some(thread) => thread.join().map_err(|_| Panicked),
            None => Ok(()),
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(%error, "the broker did not end well");
        }
    }
}

/// Starts the broker that is configured, on a thread of its own. Returns when its servers were reached, or are known to be
/// away: then it says so, and tries on. `wake` has a shard look what it was told.
pub fn start(
    config: &Config,
    identity: &Identity,
    mut intake: Intake,
    figures: Arc<BrokerFigures>,
    wake: Box<dyn Fn(u16) + Send>,
) -> Result<Broker, StartError> {
    match config.broker.kind {
        BrokerKind::Memory => return Err(StartError::NoBroker),
        BrokerKind::Redis => {}
    }
    intake.set_wake(wake);
    let targets = Target::all(config, &identity.name)?;
    let (run, of_thread, stop) = (identity.run, figures.clone(), intake.stop());
    let config = config.clone();
    let (started, outcome) = mpsc::sync_channel(1);
    let main = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                // Nobody listening means that the starter has gone, and the error with it.
                drop(started.send(Err(StartError::Thread(error))));
                return;
            }
        };
        runtime.block_on(async move {
            let mut worker = redis_worker(&config, targets, run, intake, of_thread);
            let outcome = worker.connect().await.map_err(|(address, error)| {
                let remedy = error.remedy().unwrap_or("try again");
                StartError::Refused { address, error, remedy }
            });
            let is_started = outcome.is_ok();
            if started.send(outcome).is_ok() && is_started {
                worker.run().await;
            }
        });
    };
    let thread = std::thread::Builder::new().name("broker".into()).spawn(main)?;
    match outcome.recv() {
        Ok(Ok(())) => Ok(Broker { stop, thread: Some(thread), figures }),
        Ok(Err(error)) => Err(error),
        Err(mpsc::RecvError) => Err(StartError::Ended),
    }
}

fn redis_worker(
    config: &Config,
    targets: Vec<Target>,
    run: u64,
    intake: Intake,
    figures: Arc<BrokerFigures>,
) -> Worker {
    let (broker, redis) = (&config.broker, &config.broker_redis);
    let is_cluster = targets.iter().any(Target::is_cluster);
    let bounds = Bounds {
        timeout_ms: redis.timeout_ms,
        buffer_ms: broker.buffer_ms,
        pending_bytes_max: broker.pending_bytes_max,
    };
    let submissions = Submissions::new(intake.shards(), bounds);
    let limits = Limits {
        timeout_ms: redis.timeout_ms,
        backlog_bytes_max: broker.pending_bytes_max,
        replicas_min: redis.replicas_min,
    };
    Worker::new(intake, Scripts::new(&redis.prefix, is_cluster, run), targets, submissions, limits, figures)
}
