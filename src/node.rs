//! The running hub: its threads, and the handle to them.
//!
//! ```no_run
//! use ringhub::node::Hub;
//! use ringhub::config::Config;
//!
//! let hub = Hub::start(Config::default())?;
//! let event = hub.publish("project:1", "project.updated", &serde_json::json!({"name": "new"})).wait()?;
//! println!("event {} of the room", event.seq);
//! hub.shutdown()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod access;
mod api;
mod backend;
mod broker;
mod inspect;
mod journal;
mod locks;
mod nodes;
mod start;
mod trace;
mod wait;
mod watch;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

pub use crate::hub::message::Published;
pub use crate::hub::presence::{Present, RoomPresence};
pub use crate::hub::reply::{HubError, Pending};
pub use crate::session::handler::{
    Arguments, Caller, HandledEvent, Handlers, MessageCaller, MessageHandler, NamespaceHandler,
};
pub use crate::wire::native::Target;
pub use access::{GRACE_S_MAX, WITHDRAWN_AT_ONCE_MAX, Withdrew};
pub use api::Sent;
pub use locks::LockInfo;
pub use start::StartError;

use crate::broker::emitter::Emitter;
use crate::broker::nodes::Nodes;
use crate::broker::{Broker, BrokerFigures};
use crate::config::{Config, ConfigError};
use crate::control::hooks::Hooks;
use crate::control::journal::{Journal, JournalFigures};
use crate::control::store::Store;
use crate::control::telemetry::Telemetry;
use crate::control::{ControlPlane, Figures};
use crate::hub::name::{NameHasher, ShardId};
use crate::shard::Settings;
use crate::shard::mesh::Mesh;
use crate::shard::request::Request;
use watch::Watch;

/// A handle to a running hub. Clones are handles to the same one; the hub runs until it is drained or shut down.
///
/// ```
/// use std::time::Duration;
///
/// use ringhub::config::Config;
/// use ringhub::node::{Hub, Target};
///
/// let mut config = Config::default();
/// config.listen.public = vec!["127.0.0.1:0".parse()?];
/// config.shards.count = 1;
/// config.auth.enabled = false;
/// let hub = Hub::start(config)?;
///
/// let url = format!("ws://{}/ws?client_id=c1&session_id=s1", hub.addresses()[0]);
/// let (mut client, _) = tungstenite::connect(url)?;
/// client.read()?; // The greeting.
/// assert!(hub.is_connected(&Target::Client("c1".into())).wait()?);
///
/// client.send(tungstenite::Message::text(r#"{"type":"message","data":{"n":1}}"#))?;
/// let message = hub.receive("s1", Duration::from_secs(5))?;
/// assert_eq!(message.as_deref(), Some(&br#"{"n":1}"#[..]));
///
/// let event = hub.broadcast("system_alert", &serde_json::json!({"message": "hello"})).wait()?;
/// assert_eq!(event.delivered, 1);
/// let sent = hub.send(&Target::Session("s1".into()), "note", &serde_json::json!({})).wait()?;
/// assert_eq!(sent.delivered, 1);
///
/// let set = serde_json::from_str(r#"{"tab":"quotes"}"#)?;
/// assert_eq!(hub.metadata("c1", Some(set)).wait()?["tab"], "quotes");
/// assert_eq!(hub.stats().shards.len(), 1);
/// assert_eq!(hub.disconnect(&Target::Client("c1".into()), 4000, "bye").wait()?, 1);
/// hub.shutdown()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Hub {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    mesh: Arc<Mesh>,
    hasher: NameHasher,
    settings: Mutex<Arc<Settings>>,
    figures: Vec<Arc<Figures>>,
    watch: Watch,
    addresses: Vec<SocketAddr>,
    internal_address: Mutex<Option<SocketAddr>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    control: Mutex<Option<ControlPlane>>,
    journal: Mutex<Option<Journal>>,
    journal_figures: Option<Arc<JournalFigures>>,
    broker: Mutex<Option<Broker>>,
    broker_figures: Option<Arc<BrokerFigures>>,
    nodes: Mutex<Option<Nodes>>,
    emitter: Mutex<Option<Emitter>>,
    nodes_handle: Option<crate::broker::nodes::Handle>,
    store: Option<Store>,
    hooks: Option<Hooks>,
    telemetry: Option<Telemetry>,
    failed: AtomicBool,
}

/// A part of the hub ended that should not have; what it was is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a part of the hub ended unexpectedly; the reason is in the log")]
pub struct Failed;

impl Hub {
    /// Starts a hub: shards, control plane, listeners. Where authentication is on and no key is configured, a secret is
    /// drawn for the run.
    pub fn start(config: Config) -> Result<Hub, StartError> {
        start::start(config, Handlers::default())
    }

    /// The same for a program that serves namespaces of Socket.IO, or a path of Engine.IO, itself.
    pub fn start_with(config: Config, handlers: Handlers) -> Result<Hub, StartError> {
        start::start(config, handlers)
    }

    /// The addresses that the public TCP listeners got.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.inner.addresses
    }

    /// The address that the internal TCP listener got, if there is one.
    pub fn internal_address(&self) -> Option<SocketAddr> {
        *lock(&self.inner.internal_address)
    }

    /// The configuration in force.
    pub fn config(&self) -> Config {
        lock(&self.inner.settings).config.clone()
    }

    /// Goes by another configuration from here on. Says which keys kept their value because they need a restart.
    pub fn reload(&self, mut new: Config) -> Result<Vec<&'static str>, ReloadError> {
        let mut settings = lock(&self.inner.settings);
        // A name that was made at the start lasts for the run.
        if new.node.name == Config::default().node.name {
            new.node.name.clone_from(&settings.config.node.name);
        }
        let (mut config, kept) = settings.config.reloaded(new)?;
        // A secret that was drawn for the run lasts for the run.
        if config.auth.secret.is_empty() {
            config.auth.secret.clone_from(&settings.config.auth.secret);
        }
        let renewed = Arc::new(Settings::with_handlers(config, settings.handlers.clone())?);
        *settings = renewed.clone();
        if let Some(hooks) = &self.inner.hooks {
            hooks.reload(&renewed.config);
        }
        for shard in 0..self.inner.mesh.shards() {
            if self.inner.mesh.request(ShardId(shard), Request::Reload(renewed.clone())).is_err() {
                tracing::warn!(shard, "a shard is too busy to take the new configuration; reload again");
            }
        }
        Ok(kept)
    }

    /// Begins to drain: no new connections, clients are told and closed spread over `drain.seconds`. Returns at once;
    /// [`Hub::wait`] returns when the last connection is gone.
    pub fn drain(&self) {
        let drain = lock(&self.inner.settings).config.drain.clone();
        self.inner.mesh.draining.store(true, Ordering::Relaxed);
        self.to_every_shard(|| Request::Drain { over_ms: drain.seconds * 1000, spread_ms: drain.spread_ms });
    }

    /// Whether it drains, or has ended.
    pub fn is_draining(&self) -> bool {
        self.inner.mesh.draining.load(Ordering::Relaxed)
    }

    /// Waits until all shards have ended, after [`Hub::drain`] or because one failed; the rest is ended then.
    pub fn wait(&self) -> Result<(), Failed> {
        while !self.inner.watch.shards_ended() && !self.inner.failed.load(Ordering::Relaxed) {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        self.end()
    }

    /// Closes every connection and ends all threads.
    pub fn shutdown(&self) -> Result<(), Failed> {
        self.end()
    }

    /// Whether a part of the hub ended that should not have.
    pub fn has_failed(&self) -> bool {
        self.inner.failed.load(Ordering::Relaxed)
    }

    /// Whether every shard gave a sign of life lately; one that has ended while the hub drains has done its part.
    pub fn is_alive(&self) -> bool {
        let watch = &self.inner.watch;
        let draining = self.is_draining();
        let ended = if draining { watch.ended() } else { 0 };
        watch.answering() + ended >= watch.shards()
    }

    fn end(&self) -> Result<(), Failed> {
        self.inner.mesh.draining.store(true, Ordering::Relaxed);
        self.to_every_shard(|| Request::Stop);
        // The control plane goes first: its requests wait for shards.
        let control = lock(&self.inner.control).take();
        if control.is_some_and(|control| control.shutdown().is_err()) {
            self.inner.failed.store(true, Ordering::Relaxed);
        }
        let threads = std::mem::take(&mut *lock(&self.inner.threads));
        for thread in threads {
            if thread.join().is_err() {
                self.inner.failed.store(true, Ordering::Relaxed);
            }
        }
        // What is emitted from here on another node passes on.
        drop(lock(&self.inner.emitter).take());
        // The other nodes learn that nobody is here any more; they clean up.
        let nodes = lock(&self.inner.nodes).take();
        if nodes.is_some_and(|nodes| nodes.shutdown().is_err()) {
            self.inner.failed.store(true, Ordering::Relaxed);
        }
        // Last, with all that the shards gave it.
        let journal = lock(&self.inner.journal).take();
        if journal.is_some_and(|journal| journal.shutdown().is_err()) {
            self.inner.failed.store(true, Ordering::Relaxed);
        }
        // So has the broker.
        let broker = lock(&self.inner.broker).take();
        if broker.is_some_and(|broker| broker.shutdown().is_err()) {
            self.inner.failed.store(true, Ordering::Relaxed);
        }
        // The hooks have their last events from the shards, too.
        if let Some(hooks) = &self.inner.hooks {
            hooks.shutdown();
        }
        if let Some(telemetry) = &self.inner.telemetry {
            telemetry.shutdown();
        }
        // The store goes last: shards report the ends of their connections.
        if let Some(store) = &self.inner.store {
            store.shutdown();
        }
        if self.inner.failed.load(Ordering::Relaxed) { Err(Failed) } else { Ok(()) }
    }

    fn to_every_shard(&self, request: impl Fn() -> Request) {
        for shard in 0..self.inner.mesh.shards() {
            let mut request = request();
            // These must not be lost: a shard that has a full queue now has taken some of it soon.
            while let Err(back) = self.inner.mesh.request(ShardId(shard), request) {
                if self.inner.watch.has_ended(shard) {
                    break;
                }
                request = back;
                std::thread::park_timeout(Duration::from_millis(1));
            }
        }
    }
}

/// Why a configuration could not take the place of the one in force, which stays.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// Values that can't be together.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Keys that can't be read.
    #[error(transparent)]
    Keys(#[from] crate::auth::AuthSetupError),
}

/// A lock that a panicking thread left behind still guards sound data: every change under one is a single assignment.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
