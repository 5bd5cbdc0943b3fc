//! A shard: one thread that joins ring, session and hub for its connections.
//!
//! Nothing is shared with other shards but immutable frames, queues and a few counters ([`mesh::Mesh`]).

mod admission;
mod answers;
mod approval;
mod broker;
mod commands;
mod connection;
mod count;
mod deflating;
mod engine;
mod form;
mod gather;
mod handled;
mod head;
mod inspect;
mod journal;
mod lag;
mod latency;
mod locks;
mod members;
pub mod mesh;
mod namespaces;
mod nodes;
pub mod placement;
mod polling;
mod presence;
mod recover;
mod release;
mod report;
pub mod request;
mod requests;
mod resume;
mod run;
mod socketio;
mod spaces;
mod state;
mod stream;
mod time;
mod timers;
mod trace;
mod variants;
mod websocket;
mod withdraw;

use std::fmt;
use std::sync::Arc;

use crate::auth::{Identity, Verifier};
use crate::config::Config;
use crate::session::greeting::GreetingParts;
use crate::session::handler::Handlers;
use crate::session::handshake::Gate;
use crate::session::socketio::{NAMESPACES_MAX, Terms};

pub use engine::{NotHere, shard_of_sid};
pub(crate) use nodes::count_audience;
pub(crate) use resume::parse_token;
pub use run::{LeftOver, Shard};
pub use state::{Entropy, Start};

/// What a shard goes by; replaced as a whole on reload.
pub struct Settings {
    /// The configuration.
    pub config: Config,
    /// Checks tokens.
    pub verifier: Verifier,
    /// Whom everybody is where authentication is off.
    pub anonymous: Arc<Identity>,
    /// What of the greeting is the same for everybody.
    pub greeting: GreetingParts,
    /// What an embedding program serves itself.
    pub handlers: Arc<Handlers>,
    /// The namespaces of Socket.IO: those that are configured, then the other ones that have handlers.
    namespaces: Vec<Box<str>>,
}

impl Settings {
    /// Settings from a configuration; key files are read now.
    pub fn new(config: Config) -> Result<Settings, crate::auth::AuthSetupError> {
        Settings::with_handlers(config, Arc::default())
    }

    /// The same for a program that serves a part of it itself.
    pub fn with_handlers(config: Config, handlers: Arc<Handlers>) -> Result<Settings, crate::auth::AuthSetupError> {
        let verifier = Verifier::new(&config)?;
        let greeting = GreetingParts::new(&config);
        let anonymous = Arc::new(Identity::anonymous("anonymous".to_owned()));
        let mut namespaces: Vec<Box<str>> =
            config.socketio.namespaces.iter().map(|name| name.as_str().into()).collect();
        for (name, _) in &handlers.namespaces {
            if !namespaces.contains(name) && namespaces.len() < NAMESPACES_MAX {
                namespaces.push(name.clone());
            }
        }
        Ok(Settings { config, verifier, anonymous, greeting, handlers, namespaces })
    }

    /// The namespaces of Socket.IO.
    pub fn namespaces(&self) -> &[Box<str>] {
        &self.namespaces
    }

    /// What holds for sessions of Engine.IO.
    pub fn engine_terms(&self) -> Terms<'_> {
        let socketio = &self.config.socketio;
        Terms {
            namespaces: &self.namespaces,
            message_bytes_max: self.config.engine_bytes_max(),
            ping_interval_ms: socketio.ping_interval_ms,
            ping_timeout_ms: socketio.ping_timeout_ms,
            connect_timeout_ms: socketio.connect_timeout_ms,
        }
    }

    /// Who may connect.
    pub fn gate(&self) -> Gate<'_> {
        let messages_path = self.handlers.messages.as_ref().map(|(path, _)| &**path);
        Gate { config: &self.config, verifier: &self.verifier, anonymous: &self.anonymous, messages_path }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The configuration has secrets.
        formatter.write_str("Settings")
    }
}
