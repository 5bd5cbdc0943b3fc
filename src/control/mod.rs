//! The control plane: HTTP on an executor of its own (`runtime.rs`), beside the shards.
//!
//! ```text
//!  shard ──Inbox──► porter ──► connection (hyper) ──► service ──► routes (axum) ──Backend──► shards
//!    ▲                              │                    │                                      │
//!    └───────Backend::adopt─────────┴── an upgrade ◄─────┘        door ◄── answers ─────────────┘
//! ```
//!
//! A request that is no upgrade leaves its shard through the [`Inbox`]: the socket and the bytes read so far. hyper serves
//! it here, with keep-alive. An upgrade that arrives later on the same connection goes back the same way, as if the shard
//! had read it itself. The hub is reached by messages only, through [`Backend`]; no shard ever waits for this thread, and
//! this thread waits for nothing but its executor.
//!
//! Invariants: the executor's wakers never leave this thread (`door.rs`); connections are bounded from the inbox on; every
//! phase of a connection has a deadline (`progress.rs`); a panicking handler answers 500 and ends nothing else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

mod access;
mod alerts;
mod answer;
mod api;
mod backend;
mod body;
mod breaker;
mod broadcast;
pub mod client;
mod connection;
mod connections;
mod cors;
mod door;
mod engine;
pub mod figures;
mod github;
pub mod histogram;
pub mod hooks;
mod inbox;
pub mod journal;
mod lines;
mod listener;
mod locks;
mod messages;
mod metrics;
mod moment;
mod monitor;
pub(crate) mod nodes;
mod openapi;
mod operations;
mod performance;
mod poll;
mod porter;
mod process;
mod progress;
mod publish;
mod rooms;
mod runtime;
mod service;
pub mod store;
mod stream;
pub mod telemetry;
#[cfg(test)]
mod tests;
mod trace;
mod web;
mod windows;

pub use backend::{Backend, PublishRequest, Published, Readiness, ShardPulse};
pub use engine::{EngineAnswer, EngineOpened, EngineOptions};
pub use figures::{Figures, ShardFigures, ShardTimes, Snapshot};
pub use histogram::{Counts, Histogram};
pub use inbox::{Adopted, ConnectionOrigin, Inbox, Intake, inbox};
pub use journal::JournalSnapshot;
pub(crate) use messages::put_back_elsewhere;

use alerts::Board;
use api::Api;
use cors::Cors;
use door::Door;
use github::Hook;
use metrics::{ControlFigures, HttpRequests, Metrics};
use monitor::Monitor;
use operations::Operations;
use progress::Patience;
use runtime::{Executor, spawn_local};
use service::App;
use windows::Windows;

use crate::config::{Listen, Secret};
use crate::ring::DriverKind;

/// How the control plane is to be run.
#[derive(Debug, Clone)]
pub struct Options {
    /// A listener of the control plane's own. When there is one, the API is served there only.
    pub internal: Option<Listen>,
    /// What the shards' driver is. The control plane has an executor of the same kind.
    pub driver: DriverKind,
    /// The processor to run on; none leaves it to the kernel.
    pub cpu: Option<usize>,
    /// Connections open at a time on the internal listener. The inbox bounds those of the shards.
    pub internal_connections_max: usize,
    /// A request's head, in bytes.
    pub header_bytes_max: usize,
    /// A request's body, in bytes.
    pub body_bytes_max: usize,
    /// Events in one `POST /api/v1/publish`.
    pub publish_events_max: usize,
    /// From a request's first byte to the end of its head.
    pub head_timeout: Duration,
    /// Between two requests of a connection.
    pub idle_timeout: Duration,
    /// From the end of a request's head to its answer, the body's arrival included; and then for the peer to take it.
    pub request_timeout: Duration,
    /// How long bytes are read past an answer that came before the request's end.
    pub linger: Duration,
    /// How long requests in flight are waited for at the end.
    pub stop_grace: Duration,
    /// `webhooks.github_secret`.
    pub github_secrets: Vec<Secret>,
    /// `cors.origins`.
    pub cors_origins: Vec<String>,
    /// `endpoints.demo`.
    pub demo: bool,
    /// Engine.IO's long polling.
    pub engine: EngineOptions,
    /// The stored history, where one is kept.
    pub store: Option<store::Store>,
    /// The backend's hooks, where there are some.
    pub hooks: Option<hooks::Hooks>,
    /// Where traces and metrics go, if somebody collects them.
    pub telemetry: Option<telemetry::Telemetry>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            internal: None,
            driver: DriverKind::default(),
            cpu: None,
            internal_connections_max: 256,
            header_bytes_max: 16 * 1024,
            body_bytes_max: 4 << 20,
            publish_events_max: 1000,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            request_timeout: Duration::from_secs(30),
            linger: Duration::from_secs(2),
            stop_grace: Duration::from_secs(1),
            github_secrets: Vec::new(),
            cors_origins: Vec::new(),
            demo: false,
            engine: EngineOptions::default(),
            store: None,
            hooks: None,
            telemetry: None,
        }
    }
}

impl Options {
    fn patience(&self) -> Patience {
        Patience { idle: self.idle_timeout, head: self.head_timeout, writing: self.request_timeout }
    }
}

/// Why the control plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The internal listener's address can't be had.
    #[error("the internal listener can't listen on {listen}: {error}")]
    Listen {
        /// The address or path.
        listen: String,
        /// The kernel's answer.
        error: std::io::Error,
    },
    /// The executor's rings can't be set up. `error` has the kernel's errno.
    #[error("the control plane's io_uring can't be set up: {0}")]
    Ring(std::io::Error),
    /// The executor can't be set up.
    #[error("the control plane's executor can't be set up: {0}")]
    Executor(std::io::Error),
    /// The processor asked for can't be had.
    #[error("the control plane can't be placed: {0}")]
    Placement(String),
    /// The limit on locked memory is below what glommio asks for.
    #[error(
        "the limit on locked memory is {limit_bytes} bytes and has to be {needed_bytes}: raise it with `ulimit -l`, or LimitMEMLOCK= in systemd"
    )]
    LockedMemory {
        /// The limit as it is.
        limit_bytes: u64,
        /// As it has to be.
        needed_bytes: u64,
    },
    /// The journal can't be used.
    #[error("journal: {0}")]
    Journal(#[from] journal::OpenError),
    /// The thread can't be started.
    #[error("the control plane's thread can't be started: {0}")]
    Thread(std::io::Error),
    /// The thread ended before it served; its panic is in the log.
    #[error("the control plane ended while it started")]
    Ended,
}

/// The running control plane. Dropping it stops it.
#[derive(Debug)]
pub struct ControlPlane {
    door: Arc<Door>,
    thread: Option<JoinHandle<()>>,
    internal_address: Option<SocketAddr>,
}

/// The control plane's thread panicked; the panic itself is in the log.
#[derive(Debug, thiserror::Error)]
#[error("the control plane panicked")]
pub struct Panicked;

impl ControlPlane {
    /// Where the internal listener listens, when it is a TCP one.
    pub fn internal_address(&self) -> Option<SocketAddr> {
        self.internal_address
    }

    /// False once the thread has ended, whether it was asked to or not.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Lets requests in flight end, at most for the grace time, closes everything and waits for the thread.
    pub fn shutdown(mut self) -> Result<(), Panicked> {
        self.stop()
    }

    fn stop(&mut self) -> Result<(), Panicked> {
        self.door.request_stop();
        match self.thread.take() {
            Some(thread) => thread.join().map_err(|_| Panicked),
            None => Ok(()),
        }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::error!(%error, "the control plane did not end well");
        }
    }
}

/// Starts the control plane on a thread of its own and returns when it serves.
pub fn start<B: Backend>(options: Options, backend: B, intake: Intake) -> Result<ControlPlane, StartError> {
    let Intake { shared, inside } = intake;
    let door = Arc::clone(&shared.door);
    let at_end = CloseAtEnd(Arc::clone(&door));
    let internal = match &options.internal {
        Some(listen) => {
            Some(listener::bind(listen).map_err(|error| StartError::Listen { listen: listen.to_string(), error })?)
        }
        None => None,
    };
    let internal_address = internal.as_ref().and_then(|bound| bound.address);

    let (started, start) = mpsc::sync_channel(1);
    let main = move || {
        let _at_end = at_end;
        let executor = match Executor::new(options.driver, "control", options.cpu) {
            Ok(executor) => executor,
            Err(error) => {
                // Nobody listening means that the starter has gone, and the error with it.
                drop(started.send(Err(error)));
                return;
            }
        };
        let figures = ControlFigures::default();
        let board = Arc::new(Board::default());
        let (store, hooks) = (options.store.clone(), options.hooks.clone());
        let monitor = Monitor::new(backend.clone(), Arc::clone(&board), store, hooks);
        let app = app(options, backend, &shared, figures.clone(), board);
        if started.send(Ok(())).is_ok() {
            executor.run(async move {
                let monitor = spawn_local(monitor.run());
                porter::run(app, shared, inside, internal, figures).await;
                monitor.cancel();
            });
        }
    };
    let thread = std::thread::Builder::new().name("control".into()).spawn(main).map_err(StartError::Thread)?;
    match start.recv() {
        Ok(Ok(())) => Ok(ControlPlane { door, thread: Some(thread), internal_address }),
        Ok(Err(error)) => Err(error),
        Err(mpsc::RecvError) => Err(StartError::Ended),
    }
}

fn app<B: Backend>(
    options: Options,
    backend: B,
    shared: &Arc<inbox::Shared>,
    figures: ControlFigures,
    alerts: Arc<Board>,
) -> App<B> {
    let requests = HttpRequests::default();
    let open = Arc::clone(shared);
    let mut metrics =
        Metrics::new(backend.clone(), requests.clone(), figures, options.driver, move || open.open() as u64);
    metrics.add(Operations { alerts: Arc::clone(&alerts), store: options.store.clone() });
    if let Some(hooks) = &options.hooks {
        metrics.add(hooks.clone());
    }
    if let Some(telemetry) = &options.telemetry {
        metrics.add(telemetry.clone());
    }
    let metrics = Arc::new(metrics);
    if let Some(telemetry) = &options.telemetry {
        // The metrics know the telemetry, so that it must not hold them.
        let metrics = Arc::downgrade(&metrics);
        telemetry.set_exposition(Box::new(move || metrics.upgrade()?.open_metrics().ok()));
    }
    let windows = Arc::new(Windows::new(Instant::now(), &backend.figures(), backend.times()));
    let api = Api {
        backend: backend.clone(),
        door: Arc::clone(&shared.door),
        metrics,
        windows: Arc::clone(&windows),
        started: Instant::now(),
        body_bytes_max: options.body_bytes_max,
        events_max: options.publish_events_max,
        github: Hook::new(&options.github_secrets),
        demo: options.demo,
        alerts,
        store: options.store.clone(),
        hooks: options.hooks.clone(),
        telemetry: options.telemetry.clone(),
        ring_is_due: AtomicBool::new(false),
        engine: options.engine.clone(),
        driver: options.driver,
    };
    let router = api::router(Arc::new(api));
    let cors = Cors::new(options.cors_origins.clone());
    App { backend, options, router, cors, requests, windows }
}

/// However the thread ends, shards learn that nobody takes their connections any more.
struct CloseAtEnd(Arc<Door>);

impl Drop for CloseAtEnd {
    fn drop(&mut self) {
        self.0.close();
    }
}
