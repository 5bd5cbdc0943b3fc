//! A shard: one thread that joins ring, session and hub for its connections.
//!
//! Nothing is shared with other shards but immutable frames, queues and a few counters ([`mesh::Mesh`]).

mod admission;
mod answers;
mod approval;
mod commands;
mod connection;
mod count;
mod gather;
mod inspect;
mod journal;
mod lag;
mod latency;
mod locks;
mod members;
pub mod mesh;
mod presence;
mod release;
mod report;
pub mod request;
mod requests;
mod resume;
mod run;
mod state;
mod stream;
mod time;
mod timers;
mod trace;
mod websocket;
mod withdraw;

use std::fmt;
use std::sync::Arc;

use crate::auth::{Identity, Verifier};
use crate::config::Config;
use crate::session::greeting::GreetingParts;
use crate::session::handshake::Gate;

pub use run::Shard;
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
}

impl Settings {
    /// Settings from a configuration; key files are read now.
    pub fn new(config: Config) -> Result<Settings, crate::auth::AuthSetupError> {
        let verifier = Verifier::new(&config)?;
        let greeting = GreetingParts::new(&config);
        Ok(Settings { config, verifier, anonymous: Arc::new(Identity::anonymous("anonymous".to_owned())), greeting })
    }

    /// Who may connect.
    pub fn gate(&self) -> Gate<'_> {
        Gate { config: &self.config, verifier: &self.verifier, anonymous: &self.anonymous }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The configuration has secrets.
        formatter.write_str("Settings")
    }
}
