//! The greeting, `connection_established`.

use std::sync::Arc;

use crate::config::Config;
use crate::wire::json::{write_string, write_u64};

use super::Session;

/// The parts of the greeting that are the same for every connection, written once per configuration.
#[derive(Debug, Clone)]
pub struct GreetingParts {
    heartbeat_and_limits: Arc<[u8]>,
    server: Arc<[u8]>,
}

impl GreetingParts {
    /// Prepares them.
    pub fn new(config: &Config) -> GreetingParts {
        let mut parts = Vec::new();
        parts.extend_from_slice(b"\"heartbeat\":{\"interval_s\":");
        write_u64(&mut parts, config.heartbeat.interval_s);
        parts.extend_from_slice(b",\"timeout_s\":");
        write_u64(&mut parts, config.heartbeat.timeout_s);
        parts.extend_from_slice(b"},\"limits\":{\"message_bytes_max\":");
        write_u64(&mut parts, config.limits.message_bytes_max as u64);
        parts.extend_from_slice(b",\"rooms_max\":");
        write_u64(&mut parts, config.limits.rooms_max as u64);
        parts.extend_from_slice(b",\"messages_per_s\":");
        write_u64(&mut parts, u64::from(config.limits.messages_per_s));
        parts.extend_from_slice(b"},\"resume\":{\"window_s\":");
        write_u64(&mut parts, config.session.resume_window_s);
        parts.extend_from_slice(b",\"token\":\"");
        let mut server = b"\"},\"server\":{\"name\":\"ringhub\",\"version\":\"".to_vec();
        server.extend_from_slice(env!("CARGO_PKG_VERSION").as_bytes());
        server.extend_from_slice(b"\",\"node\":");
        write_string(&mut server, &config.node.name);
        server.extend_from_slice(b"}}");
        GreetingParts { heartbeat_and_limits: parts.into(), server: server.into() }
    }

    /// Appends the greeting's data. `more_rooms` are those beyond the ones that everybody is in; `resume_token` is
    /// hexadecimal.
    pub fn write(&self, payload: &mut Vec<u8>, session: &Session, more_rooms: &[Box<str>], resume_token: &str) {
        payload.extend_from_slice(b"{\"client_id\":");
        write_string(payload, &session.client_id);
        payload.extend_from_slice(b",\"session_id\":");
        write_string(payload, &session.session_id);
        payload.extend_from_slice(b",\"user_id\":");
        write_string(payload, &session.identity.user_id);
        payload.extend_from_slice(b",\"roles\":[");
        for (place, role) in session.identity.roles.iter().enumerate() {
            if place > 0 {
                payload.push(b',');
            }
            write_string(payload, role);
        }
        payload.extend_from_slice(b"],\"rooms\":[\"user:");
        // Neither id has a character that needs escaping, or the handshake had refused it.
        payload.extend_from_slice(session.identity.user_id.as_bytes());
        payload.extend_from_slice(b"\",\"session:");
        payload.extend_from_slice(session.session_id.as_bytes());
        payload.extend_from_slice(b"\",\"global\"");
        for room in more_rooms {
            payload.push(b',');
            write_string(payload, room);
        }
        payload.extend_from_slice(b"],");
        payload.extend_from_slice(&self.heartbeat_and_limits);
        payload.extend_from_slice(resume_token.as_bytes());
        payload.extend_from_slice(&self.server);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Identity;
    use crate::ring::Now;

    #[test]
    fn the_greeting_has_the_shape_of_the_protocol() {
        let config = Config::default();
        let identity = Arc::new(Identity::anonymous("alice é".to_owned()));
        let session = Session::new("c1".into(), "s1".into(), identity, &config, Now::default());
        let mut payload = Vec::new();
        GreetingParts::new(&config).write(&mut payload, &session, &["project:1".into()], "00ff");
        let value: serde_json::Value = serde_json::from_slice(&payload).expect("json");
        let expected = serde_json::json!({
            "client_id": "c1", "session_id": "s1", "user_id": "alice é", "roles": [],
            "rooms": ["user:alice é", "session:s1", "global", "project:1"],
            "heartbeat": {"interval_s": 30, "timeout_s": 10},
            "resume": {"token": "00ff", "window_s": 120},
            "limits": {"message_bytes_max": 1_048_576, "rooms_max": 1000, "messages_per_s": 100},
            "server": {"name": "ringhub", "version": env!("CARGO_PKG_VERSION"), "node": config.node.name},
        });
        assert_eq!(value, expected);
    }
}
