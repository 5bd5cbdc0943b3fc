//! The configuration: one definition per option, read from a profile, a file, the environment and the command line.
//!
//! ```text
//! defaults  <  profile  <  file  <  environment (RINGHUB_…)  <  --set and flags
//! ```
//!
//! [`options`] is the table; [`load`] lays the sources over each other and reports all that is wrong with them at
//! once; [`host`] compares the result with what the machine grants.

pub mod advice;
pub mod broker;
pub mod credentials;
pub mod driver;
pub mod finding;
pub mod folder;
pub mod hooks;
pub mod host;
pub mod kinds;
pub mod load;
pub mod log;
pub mod net;
pub mod options;
mod problem;
pub mod profiles;
pub mod reference;
mod reload;
pub mod table;
mod validate;
pub mod value;

#[cfg(test)]
mod tests;

pub use broker::{BrokerKind, Password, RedisMode, RedisUrl};
pub use credentials::{KeySource, PublicKey, Secret};
pub use driver::DriverChoice;
pub use finding::{Finding, Level};
pub use hooks::{HookFail, HookKind, HookUrl};
pub use host::check_host;
pub use kinds::{DurableAck, JoinRule, KindConfig, Policy};
pub use load::Sources;
pub use log::{LogFormat, LogLevel};
pub use net::{IpNet, Listen, TrustedProxies};
pub use options::*;
pub use problem::{ConfigError, Origin, Problem};
pub use table::{OptionDef, Reload, Rule};
pub(crate) use validate::{is_engine_path, is_namespace};

/// Most shards a node can have; the mesh has a queue for each pair of them.
pub const SHARDS_MAX: usize = 64;

/// The most namespaces of Socket.IO: a connection has a bit for each.
pub const NAMESPACES_MAX: usize = 32;
/// The longest namespace.
pub const NAMESPACE_BYTES_MAX: usize = 128;

impl Config {
    /// The kind of that name, built in or declared.
    pub fn kind(&self, name: &str) -> Option<&KindConfig> {
        self.kinds.iter().find(|kind| kind.name == name)
    }

    /// The longest message of a client of Engine.IO.
    pub fn engine_bytes_max(&self) -> usize {
        match self.socketio.payload_bytes_max {
            0 => self.limits.message_bytes_max,
            bytes_max => bytes_max,
        }
    }

    /// How many shards to start: `shards.count`, or one per core this process may use.
    pub fn shard_count(&self) -> usize {
        match self.shards.count {
            0 => {
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                let kept = usize::from(self.shards.pin && self.shards.control_core);
                cores.saturating_sub(kept).clamp(1, SHARDS_MAX)
            }
            count => count.min(SHARDS_MAX),
        }
    }

    /// Most connections the node holds, all limits together.
    pub fn connections_max(&self) -> usize {
        let by_shards = self.shard_count().saturating_mul(self.limits.connections_per_shard_max);
        match self.limits.connections_max {
            0 => by_shards,
            limit => limit.min(by_shards),
        }
    }

    /// The name of this node. One that is among others and has none set gets the host's, with what was drawn behind it:
    /// two nodes of one host, or of one image, are not to have the same.
    pub fn node_name(&self, host: &str, drawn: u16) -> String {
        if self.node.name != NodeConfig::default().name {
            return self.node.name.clone();
        }
        if self.broker.kind == BrokerKind::Memory {
            return "node-1".to_owned();
        }
        let plain = |c: &char| c.is_ascii_alphanumeric() || *c == '-' || *c == '_';
        let short: String = host.chars().take_while(plain).take(32).collect();
        format!("{}-{drawn:04x}", if short.is_empty() { "node" } else { &short })
    }

    /// Whether a backend is told that a room of this kind has its first member, or none any more.
    pub fn tells_occupancy(&self, kind: &str) -> bool {
        let hooks = &self.hooks;
        let is_told = |event| hooks.url.is_some() && hooks.events.contains(&event);
        let is_chosen = match hooks.room_kinds.as_slice() {
            // Everybody is in one of each of these.
            [] => !matches!(kind, "user" | "session" | "global"),
            kinds => kinds.iter().any(|one| one == kind),
        };
        is_chosen && (is_told(HookKind::Occupied) || is_told(HookKind::Vacated))
    }

    /// Events kept by the log of a room of this kind.
    pub fn history_events_max(&self, kind: &KindConfig) -> u32 {
        kind.history_events_max.unwrap_or(self.history.events_max)
    }
}
