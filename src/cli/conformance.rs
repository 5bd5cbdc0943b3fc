//! `ringhub conformance`: a hub as outside test suites expect a server under test, on loopback only.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use crate::config::{Config, ConfigError, Sources};
use crate::node::{Arguments, Caller, HandledEvent, Handlers, MessageCaller, MessageHandler, NamespaceHandler};

/// Flags of `ringhub conformance`.
#[derive(Args, Clone, Debug)]
pub struct ConformanceArgs {
    /// Loopback address, HOST:PORT.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8000")]
    pub listen: String,
}

impl ConformanceArgs {
    /// No authentication, which makes other addresses than loopback an error; `/echo`; no rates; messages of 64 MiB, compressed for who offers it.
    pub fn config(&self) -> Result<Config, ConfigError> {
        let flag = "conformance";
        let off = ["messages_per_s", "connects_per_s", "connections_per_user_max", "connections_per_address_max"];
        let raised = ["message_bytes_max", "outbox_bytes_max"];
        let mut flags = vec![
            ("--listen", "listen.public", toml::Value::String(self.listen.clone())),
            (flag, "auth.enabled", toml::Value::Boolean(false)),
            (flag, "endpoints.echo", toml::Value::Boolean(true)),
            (flag, "compression.enabled", toml::Value::Boolean(true)),
        ];
        let set = off.iter().map(|name| format!("limits.{name}=0"));
        let set = set.chain(raised.iter().map(|name| format!("limits.{name}=64MiB"))).collect();
        flags.push((flag, "shards.count", toml::Value::Integer(1)));
        for (key, value) in ENGINE.into_iter().chain(COMPRESSION) {
            flags.push((flag, key, toml::Value::Integer(value)));
        }
        Config::load(&Sources { set, flags, ..Sources::default() })
    }

    /// What the suites of Engine.IO and Socket.IO find, as a program that embeds the hub would serve it.
    fn handlers() -> Handlers {
        let namespace = |name: &str| -> (Box<str>, Arc<dyn NamespaceHandler>) { (name.into(), Arc::new(SendBack)) };
        Handlers {
            messages: Some(("/engine.io/".into(), Arc::new(SendBack))),
            namespaces: vec![namespace("/"), namespace("/custom")],
        }
    }
}

/// What the suites of Engine.IO and Socket.IO expect: heartbeats that they can wait for.
const ENGINE: [(&str, i64); 4] = [
    ("socketio.ping_interval_ms", 300),
    ("socketio.ping_timeout_ms", 200),
    ("socketio.connect_timeout_ms", 2000),
    ("socketio.payload_bytes_max", 1_000_000),
];

/// Whatever the suites offer is agreed to, and all that they send comes back compressed.
const COMPRESSION: [(&str, i64); 4] = [
    ("compression.threshold_bytes", 0),
    ("compression.turn_bytes_max", 64 << 20),
    ("compression.ratio_max", 0),
    ("compression.client_window_bits", 15),
];

/// Sends back what comes.
struct SendBack;

impl MessageHandler for SendBack {
    fn text(&self, caller: &mut MessageCaller<'_, '_>, text: &str) {
        caller.send_text(text);
    }

    fn binary(&self, caller: &mut MessageCaller<'_, '_>, data: &[u8]) {
        caller.send_binary(data);
    }
}

impl NamespaceHandler for SendBack {
    fn connected(&self, caller: &mut Caller<'_, '_>, auth: &str) {
        caller.emit("auth", &Arguments::of_json(auth));
    }

    fn event(&self, caller: &mut Caller<'_, '_>, event: &HandledEvent<'_>) {
        match event.name {
            "message" => caller.emit("message-back", &event.arguments),
            "message-with-ack" => caller.acknowledge(event, &event.arguments),
            _ => {}
        }
    }
}

/// Runs it.
pub fn run(args: ConformanceArgs) -> ExitCode {
    let config = match args.config() {
        Ok(config) => config,
        Err(error) => return super::fail(error),
    };
    if let Err(error) = super::logging::start(&config.log) {
        return super::fail(error);
    }
    let (hub, signals) = match super::serve::start(config, ConformanceArgs::handlers()) {
        Ok(started) => started,
        Err(error) => return super::fail(error),
    };
    for address in hub.addresses() {
        println!("ringhub conformance: ws://{address}/echo http://{address}/engine.io/ http://{address}/socket.io/");
    }
    super::serve::run_until_signalled(&hub, signals, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conformance_runs_on_loopback_only() {
        let on = |listen: &str| ConformanceArgs { listen: listen.to_owned() }.config();
        let config = on("127.0.0.1:9001").expect("loopback");
        assert!(config.endpoints.echo && !config.auth.enabled);
        assert_eq!(config.limits.message_bytes_max, 64 << 20);
        assert_eq!(config.socketio.payload_bytes_max, 1_000_000);
        assert!(on("0.0.0.0:9001").is_err());
    }
}
