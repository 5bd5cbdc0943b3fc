//! How a hub starts: everything that can fail does so here, before the first client is served.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::watch::{self, Watch};
use super::{Hub, Inner, broker, journal, lock, nodes};
use crate::auth::AuthSetupError;
use crate::config::{Config, Listen, RingConfig, Secret};
use crate::control::hooks::{self, Hooks, ShardHooks, Tell};
use crate::control::journal::Link;
use crate::control::store::{Ledger, Store, StoreOptions};
use crate::control::telemetry::{self, Telemetry};
use crate::control::{self, Figures, Inbox};
use crate::hub::name::{NameHasher, ShardId};
use crate::hub::stored::StoredRoom;
use crate::ring::epoll::{Epoll, EpollOptions};
use crate::ring::uring::{Uring, UringOptions};
use crate::ring::{Doorbell, Driver, DriverKind, host, listeners};
use crate::session::handler::Handlers;
use crate::shard::mesh::Mesh;
use crate::shard::placement::Placement;
use crate::shard::request::Request;
use crate::shard::{Entropy, Settings, Shard, Start};

/// Connections that the control plane holds at a time, requests under way and idle ones.
const HTTP_CONNECTIONS_MAX: usize = 8192;
/// How long the backend's verdict on a client waits for a shard that is too busy to take it.
const VERDICT_WAIT: Duration = Duration::from_secs(1);

/// Why a hub did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The keys can't be read or used.
    #[error("auth: {0}")]
    Keys(#[from] AuthSetupError),
    /// The broker.
    #[error(transparent)]
    Broker(#[from] crate::broker::StartError),
    /// What the embedding program serves.
    #[error("what the program serves: {0}")]
    Handlers(String),
    /// A listener's address can't be had.
    #[error("can't listen on {address}: {error}{}", hint(.error))]
    Listen {
        /// The address.
        address: Listen,
        /// The kernel's answer.
        error: io::Error,
    },
    /// A shard's driver can't be set up.
    #[error("shard {shard}: {driver} can't be set up: {error}; `ringhub doctor` says what is missing")]
    Driver {
        /// Which shard.
        shard: u16,
        /// `io_uring` or `epoll`.
        driver: &'static str,
        /// The kernel's answer.
        error: io::Error,
    },
    /// The stored history's file.
    #[error("{0}")]
    Store(#[from] crate::control::store::StartError),
    /// The hooks.
    #[error("{0}")]
    Hooks(#[from] hooks::StartError),
    /// Traces and metrics.
    #[error("{0}")]
    Telemetry(#[from] telemetry::StartError),
    /// The control plane.
    #[error("control plane: {0}")]
    Control(#[from] control::StartError),
    /// The journal.
    #[error("{0}")]
    Journal(control::StartError),
    /// Threads, queues or randomness can't be had.
    #[error("can't start: {0}")]
    System(#[from] io::Error),
    /// A shard's thread ended before it served.
    #[error("shard {0} ended while it started; the reason is in the log")]
    Ended(u16),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => " (is another hub running there? `ss -ltnp` tells)",
        _ => "",
    }
}

pub(super) fn start(mut config: Config, handlers: Handlers) -> Result<Hub, StartError> {
    handlers.check(&config).map_err(StartError::Handlers)?;
    host::raise_open_files()?;
    draw_secret(&mut config)?;
    let mut drawn = [0; 1];
    fill(&mut drawn)?;
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    config.node.name = config.node_name(&host, drawn[0] as u16);
    let shards = config.shard_count() as u16;
    let settings = Arc::new(Settings::with_handlers(config, Arc::new(handlers))?);
    let config = &settings.config;
    let driver = choose_driver(config);
    let mut journal = journal::open(config, shards).map_err(StartError::Journal)?;
    let (listeners, addresses) = bind(&config.listen.public, shards, config.listen.backlog)?;
    let store = StoreOptions::new(&config.store).map(Store::start).transpose()?;
    let mut seeds = [0u64; 65 * 2 + 1];
    fill(&mut seeds)?;
    let hasher = NameHasher::new(seeds[0]);
    let broker = broker::prepare(config, shards, seeds[65 * 2]);
    let (nodes_handle, nodes) = nodes::prepare(config, seeds[65 * 2]).unzip();
    let figures: Vec<Arc<Figures>> = (0..shards).map(|_| Arc::default()).collect();
    let (inbox, intake) = control::inbox(HTTP_CONNECTIONS_MAX)?;
    let telemetry = Telemetry::start(config)?;
    let shard_hooks = hooks::for_shards(config, telemetry.clone());
    let mut restored = journal.as_mut().map(|journal| journal.rooms_by_home(&hasher, shards)).unwrap_or_default();

    let Placement { shards: cpus, control: control_cpu } =
        if config.shards.pin { Placement::here(config.shards.control_core) } else { Placement::default() };
    let mut starting = Vec::new();
    let watch = Watch::new(shards);
    for (shard, listeners) in (0..shards).zip(listeners) {
        let plan = Plan {
            shard,
            cpu: cpus.get(usize::from(shard) % cpus.len().max(1)).copied(),
            driver,
            listeners,
            settings: settings.clone(),
            figures: figures.get(usize::from(shard)).cloned().unwrap_or_default(),
            inbox: inbox.clone(),
            ledger: store.as_ref().map(|store| store.ledger().clone()),
            hooks: shard_hooks.clone(),
            hasher: hasher.clone(),
            seed: [seeds[2 + usize::from(shard) * 2], seeds[3 + usize::from(shard) * 2]],
            watch: watch.clone(),
            journal: journal.as_ref().map(|journal| {
                (journal.link.clone(), restored.get_mut(usize::from(shard)).map(std::mem::take).unwrap_or_default())
            }),
            broker: broker.as_ref().map(|broker| (broker.link.clone(), broker.identity.run)),
            nodes: nodes_handle.clone(),
        };
        starting.push(spawn(plan)?);
    }

    let mut doorbells = Vec::new();
    for one in &starting {
        doorbells.push(one.doorbell()?);
    }
    let mesh = Arc::new(Mesh::new(doorbells));
    let journal =
        journal.map(|journal| journal.start(config, mesh.clone(), driver)).transpose().map_err(StartError::Journal)?;
    let broker = broker.map(|broker| broker.start(config, mesh.clone())).transpose()?;
    let hooks = Hooks::start(config, &shard_hooks, seeds[1], verdicts(mesh.clone(), watch.clone()))?;
    for one in &starting {
        // A shard that ended meanwhile is noticed by the watch.
        drop(one.go.send(mesh.clone()));
    }
    let threads = starting.into_iter().map(|one| one.thread).collect();

    let hub = Hub {
        inner: Arc::new(Inner {
            mesh,
            hasher,
            settings: Mutex::new(settings.clone()),
            figures,
            watch,
            addresses,
            internal_address: Mutex::new(None),
            threads: Mutex::new(threads),
            control: Mutex::new(None),
            journal_figures: journal.as_ref().map(|journal| journal.figures().clone()),
            journal: Mutex::new(journal),
            broker_figures: broker.as_ref().map(|broker| broker.figures().clone()),
            broker: Mutex::new(broker),
            nodes: Mutex::new(None),
            emitter: Mutex::new(None),
            nodes_handle,
            store: store.clone(),
            hooks: hooks.clone(),
            telemetry: telemetry.clone(),
            failed: AtomicBool::new(false),
        }),
    };
    let started = control::start(
        control::Options { driver, cpu: control_cpu, hooks, telemetry, ..control_options(&settings, store) },
        hub.clone(),
        intake,
    );
    let started = started.map_err(StartError::from).and_then(|control| {
        *lock(&hub.inner.internal_address) = control.internal_address();
        *lock(&hub.inner.control) = Some(control);
        // Whoever knows of this node may call it.
        nodes.map_or(Ok(()), |nodes| nodes::start(&hub, nodes).map_err(StartError::from))
    });
    if let Err(error) = started {
        if hub.shutdown().is_err() {
            tracing::error!("the shards did not end well");
        }
        return Err(error);
    }
    watch_over(&hub)?;
    Ok(hub)
}

/// The driver that the configuration comes to here. That it is not the one the hub is built for must not go unnoticed.
fn choose_driver(config: &Config) -> DriverKind {
    match config.driver() {
        (DriverKind::Epoll, Some(error)) => {
            tracing::warn!(%error, "io_uring is forbidden here: shards and control plane run on epoll, at a higher cost per delivery");
            DriverKind::Epoll
        }
        (driver, _) => {
            tracing::info!(driver = driver.word(), "shards and control plane have their driver");
            driver
        }
    }
}

/// Where a token is asked for and nothing could verify one, a secret is drawn.
fn draw_secret(config: &mut Config) -> io::Result<()> {
    let auth = &mut config.auth;
    if auth.enabled && auth.secret.is_empty() && auth.keys.is_empty() && auth.jwks.is_none() {
        let mut words = [0u64; 4];
        fill(&mut words)?;
        let secret = words.iter().map(|word| format!("{word:016x}")).collect();
        auth.secret = vec![Secret { kid: None, secret }];
    }
    Ok(())
}

fn fill(words: &mut [u64]) -> io::Result<()> {
    for word in words {
        let mut bytes = [0u8; 8];
        getrandom::fill(&mut bytes).map_err(io::Error::other)?;
        *word = u64::from_ne_bytes(bytes);
    }
    Ok(())
}

/// The way of the backend's verdicts to shards.
fn verdicts(mesh: Arc<Mesh>, watch: Watch) -> Tell {
    Box::new(move |shard, conn, verdict| {
        let mut request = Request::Verdict { conn, verdict };
        // A shard that has a full queue now has taken some of it soon; one that does not has a deadline for the client.
        let until = Instant::now() + VERDICT_WAIT;
        while let Err(back) = mesh.request(shard, request) {
            if watch.has_ended(shard.0) || Instant::now() > until {
                return;
            }
            request = back;
            std::thread::sleep(Duration::from_millis(1));
        }
    })
}

fn control_options(settings: &Settings, store: Option<Store>) -> control::Options {
    let config = &settings.config;
    let socketio = &config.socketio;
    let messages = settings.handlers.messages.as_ref().map(|(path, _)| path.to_string());
    let engine_paths = socketio.path.iter().cloned().chain(messages).collect();
    control::Options {
        internal: config.listen.internal.clone(),
        internal_connections_max: HTTP_CONNECTIONS_MAX,
        header_bytes_max: config.limits.header_bytes_max,
        body_bytes_max: (4 << 20).max(config.limits.message_bytes_max + (64 << 10)),
        github_secrets: config.webhooks.github_secret.clone(),
        cors_origins: config.cors.origins.clone(),
        demo: config.endpoints.demo,
        engine: control::EngineOptions {
            paths: engine_paths,
            body_bytes_max: config.engine_bytes_max(),
            // A ping ends it before that.
            wait: Duration::from_millis(socketio.ping_interval_ms + socketio.ping_timeout_ms) + Duration::from_secs(5),
            cookie: socketio.cookie.clone(),
            named_origins: config.cors.origins.iter().filter(|origin| *origin != "*").cloned().collect(),
        },
        store,
        ..control::Options::default()
    }
}

// ---- listeners ----

/// A listener per address and shard. The addresses are those of TCP, with the ports that they got.
fn bind(public: &[Listen], shards: u16, backlog: u32) -> Result<(Vec<Vec<OwnedFd>>, Vec<SocketAddr>), StartError> {
    let mut all: Vec<Vec<OwnedFd>> = (0..shards).map(|_| Vec::new()).collect();
    let mut addresses = Vec::new();
    for listen in public {
        let failed = |error| StartError::Listen { address: listen.clone(), error };
        match listen {
            Listen::Tcp(address) => {
                let first = listeners::bind_free(*address, backlog).map_err(failed)?;
                // Port 0 was replaced by a free one, which the other shards then share.
                let address = listeners::local_address(&first).map_err(failed)?.unwrap_or(*address);
                let mut first = Some(first);
                for of_shard in &mut all {
                    let listener = first.take().map_or_else(|| listeners::bind_shared(address, backlog), Ok);
                    of_shard.push(listener.map_err(failed)?);
                }
                addresses.push(address);
            }
            Listen::Unix(path) => {
                let listener = listeners::bind_unix(path, backlog).map_err(failed)?;
                for of_shard in &mut all {
                    of_shard.push(listener.try_clone().map_err(failed)?);
                }
            }
        }
    }
    Ok((all, addresses))
}

// ---- shards ----

struct Plan {
    shard: u16,
    cpu: Option<usize>,
    driver: DriverKind,
    listeners: Vec<OwnedFd>,
    settings: Arc<Settings>,
    figures: Arc<Figures>,
    inbox: Inbox,
    ledger: Option<Arc<Ledger>>,
    hooks: ShardHooks,
    hasher: NameHasher,
    seed: [u64; 2],
    watch: Watch,
    journal: Option<(Link, Vec<StoredRoom>)>,
    broker: Option<(crate::broker::Link, u64)>,
    nodes: Option<crate::broker::nodes::Handle>,
}

/// A shard whose thread runs and waits for the mesh.
struct Starting {
    shard: u16,
    driver: DriverKind,
    ready: Receiver<io::Result<Arc<Doorbell>>>,
    go: SyncSender<Arc<Mesh>>,
    thread: JoinHandle<()>,
}

impl Starting {
    fn doorbell(&self) -> Result<Arc<Doorbell>, StartError> {
        match self.ready.recv() {
            Ok(Ok(doorbell)) => Ok(doorbell),
            Ok(Err(error)) => {
                let driver = if self.driver == DriverKind::Uring { "io_uring" } else { "epoll" };
                Err(StartError::Driver { shard: self.shard, driver, error })
            }
            Err(_) => Err(StartError::Ended(self.shard)),
        }
    }
}

fn spawn(plan: Plan) -> io::Result<Starting> {
    let (shard, driver) = (plan.shard, plan.driver);
    let (ready_sender, ready) = sync_channel(1);
    let (go, go_receiver) = sync_channel(1);
    let watch = plan.watch.clone();
    let body = move || {
        // A panic of one shard must not go unnoticed: the watch ends the hub when a shard has ended that should not have.
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| serve(plan, &ready_sender, &go_receiver)));
        watch.note_ended(shard);
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(shard, %error, "the shard's driver failed"),
            Err(_) => tracing::error!(shard, "the shard panicked"),
        }
    };
    let thread = std::thread::Builder::new().name(format!("shard-{shard}")).spawn(body)?;
    Ok(Starting { shard, driver, ready, go, thread })
}

fn serve(plan: Plan, ready: &SyncSender<io::Result<Arc<Doorbell>>>, go: &Receiver<Arc<Mesh>>) -> io::Result<()> {
    if let Some(cpu) = plan.cpu {
        pin(plan.shard, cpu);
    }
    let RingConfig { entries, completions, buffers, buffer_bytes, busy_poll_us, min_wait_us } =
        plan.settings.config.ring;
    match plan.driver {
        DriverKind::Uring => {
            let options = UringOptions { entries, completions, buffers, buffer_bytes, busy_poll_us, min_wait_us };
            serve_on(Uring::new(options), plan, ready, go)
        }
        DriverKind::Epoll => serve_on(Epoll::new(EpollOptions { buffers, buffer_bytes }), plan, ready, go),
    }
}

fn serve_on<D: Driver>(
    driver: io::Result<D>,
    plan: Plan,
    ready: &SyncSender<io::Result<Arc<Doorbell>>>,
    go: &Receiver<Arc<Mesh>>,
) -> io::Result<()> {
    let Plan {
        shard, listeners, settings, figures, inbox, ledger, hooks, hasher, seed, journal, broker, nodes, ..
    } = plan;
    let driver = match driver {
        Ok(driver) => driver,
        Err(error) => {
            // The starter waits for this, or has given up on another shard's failure.
            drop(ready.send(Err(error)));
            return Ok(());
        }
    };
    drop(ready.send(Ok(driver.doorbell())));
    let Ok(mesh) = go.recv() else { return Ok(()) };
    let entropy = Entropy(Box::new(|bytes| {
        if let Err(error) = getrandom::fill(bytes) {
            // Without it tokens could be guessed: better to stop than to go on.
            panic!("the system's random numbers are gone: {error}");
        }
    }));
    let start = Start {
        me: ShardId(shard),
        mesh,
        settings,
        figures,
        inbox: Some(inbox),
        ledger,
        hooks,
        hasher,
        seed,
        entropy,
        journal,
        broker,
        nodes,
    };
    let _ended = Ended { mesh: start.mesh.clone(), shard: start.me };
    let mut shard = Shard::new(driver, start);
    for (place, listener) in listeners.into_iter().enumerate() {
        shard.listen(place as u16, listener);
    }
    shard.run()
}

/// Nobody may wait for the answer of a shard that has ended, whether it came to its end or panicked.
struct Ended {
    mesh: Arc<Mesh>,
    shard: ShardId,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.mesh.close(self.shard);
    }
}

fn pin(shard: u16, cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        tracing::warn!(shard, cpu, %error, "the shard could not be pinned to its processor");
    }
}

/// Asks for signs of life, and ends the hub when a part of it has ended that should not have.
fn watch_over(hub: &Hub) -> io::Result<()> {
    let weak = Arc::downgrade(&hub.inner);
    let watch = hub.inner.watch.clone();
    let body = move || loop {
        let Some(inner) = weak.upgrade() else { return };
        watch.ask(&inner.mesh);
        let draining = inner.mesh.draining.load(std::sync::atomic::Ordering::Relaxed);
        let ended = (0..inner.mesh.shards()).any(|shard| watch.has_ended(shard));
        let control_ended = lock(&inner.control).as_ref().is_some_and(|control| !control.is_running());
        let journal_ended = lock(&inner.journal).as_ref().is_some_and(|journal| !journal.is_running());
        let nodes_ended = lock(&inner.nodes).as_ref().is_some_and(|nodes| !nodes.is_running());
        let broker_ended = lock(&inner.broker).as_ref().is_some_and(|broker| !broker.is_running());
        if !draining && (ended || control_ended || journal_ended || broker_ended || nodes_ended) {
            tracing::error!("a part of the hub ended unexpectedly; the hub ends");
            inner.failed.store(true, std::sync::atomic::Ordering::Relaxed);
            return;
        }
        if draining && watch.shards_ended() {
            return;
        }
        drop(inner);
        std::thread::sleep(Duration::from_millis(watch::INTERVAL_MS));
    };
    std::thread::Builder::new().name("watch".to_owned()).spawn(body)?;
    Ok(())
}
