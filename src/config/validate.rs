//! What several options together must satisfy.

use std::collections::BTreeSet;

use super::broker::{BrokerKind, RedisMode, RedisUrl};
use super::hooks::CREDENTIAL_HEADERS;
use super::kinds::JoinRule;
use super::net::Listen;
use super::options::Config;
use super::problem::Problem;
use super::{NAMESPACE_BYTES_MAX, NAMESPACES_MAX};

/// Every rule that `config` breaks.
pub fn problems(config: &Config) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut report = |key: &str, message: String| problems.push(Problem::new(key, None, message));

    if !config.auth.enabled {
        let open: Vec<String> = listeners(config).filter(|listen| !listen.is_local()).map(Listen::to_string).collect();
        if !open.is_empty() {
            let addresses = open.join(", ");
            let message = "without authentication everybody is an administrator; that is allowed on loopback only";
            report("auth.enabled", format!("{message}, not on {addresses}"));
        }
    }
    let mut seen = BTreeSet::new();
    for listen in listeners(config) {
        let drawn = matches!(listen, Listen::Tcp(address) if address.port() == 0);
        if !drawn && !seen.insert(listen.to_string()) {
            report("listen.public", format!("{listen} is listened on twice"));
        }
    }
    if config.listen.proxy_protocol && config.listen.trusted_proxies == Default::default() {
        let message = "needs listen.trusted_proxies: only their header is read";
        report("listen.proxy_protocol", message.to_owned());
    }
    if config.endpoints.demo {
        for message in demo(config) {
            report("endpoints.demo", message.to_owned());
        }
    }
    if config.ring.completions < config.ring.entries {
        let message = format!("{} is less than ring.entries ({})", config.ring.completions, config.ring.entries);
        report("ring.completions", message);
    }
    if config.ring.busy_poll_us > 0 && config.ring.min_wait_us > 0 {
        let message =
            "is set beside ring.busy_poll_us: the one ends a wait with the first completion, the other does not";
        report("ring.min_wait_us", message.to_owned());
    }
    if config.shards.control_core && !config.shards.pin {
        let message = "needs shards.pin: shards that the kernel may move keep no core free";
        report("shards.control_core", message.to_owned());
    }
    for (key, patterns) in [("auth.origins", &config.auth.origins), ("cors.origins", &config.cors.origins)] {
        for pattern in patterns.iter().filter(|pattern| !is_origin_pattern(pattern)) {
            report(key, format!("{pattern:?}: expected SCHEME://HOST[:PORT], SCHEME://*.HOST[:PORT] or *"));
        }
    }
    if let Some(path) = &config.socketio.path
        && !is_engine_path(path)
    {
        report("socketio.path", format!("{path:?}: expected a path of its own, such as /socket.io/"));
    }
    let namespaces = &config.socketio.namespaces;
    for (place, name) in namespaces.iter().enumerate() {
        if !is_namespace(name) || namespaces.iter().take(place).any(|other| other == name) {
            let message = format!("{name:?}: expected a name that begins with a slash, without commas, once");
            report("socketio.namespaces", message);
        }
    }
    if namespaces.len() > NAMESPACES_MAX {
        report("socketio.namespaces", format!("at most {NAMESPACES_MAX} namespaces"));
    }
    if let Some(cookie) = &config.socketio.cookie
        && !cookie.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    {
        report("socketio.cookie", format!("{cookie:?}: expected letters, digits and any of - _ ."));
    }
    if (1..8).contains(&config.compression.client_window_bits) {
        report("compression.client_window_bits", "a window has 8 to 15 bits; 0 keeps none".to_owned());
    }
    if config.journal.bytes_max < config.journal.segment_bytes.saturating_mul(8) {
        let message =
            format!("has to be eight times journal.segment_bytes ({}) at least", config.journal.segment_bytes);
        report("journal.bytes_max", message);
    }
    for (key, message) in redis(config) {
        report(key, message);
    }
    for kind in config.hooks.room_kinds.iter().filter(|kind| config.kind(kind).is_none()) {
        report("hooks.room_kinds", format!("there is no kind of room called {kind:?}"));
    }
    for name in &config.hooks.connect_headers {
        let is_token =
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        if !is_token || CREDENTIAL_HEADERS.iter().any(|header| header.eq_ignore_ascii_case(name)) {
            report(
                "hooks.connect_headers",
                format!("{name:?}: expected the name of a header that carries no credentials"),
            );
        }
    }
    let is_shared = config.broker.kind != BrokerKind::Memory;
    if is_shared && config.journal.path.is_some() {
        report("journal.path", "can't be with broker.kind = \"redis\", which keeps the logs of all rooms".to_owned());
    }
    for kind in &config.kinds {
        let own = |rule: &JoinRule| matches!(rule, JoinRule::OwnUser | JoinRule::OwnSession);
        if kind.durable && config.journal.path.is_none() && !is_shared {
            report(
                &format!("rooms.{}.durable", kind.name),
                "needs journal.path, the folder for the journal".to_owned(),
            );
        }
        if kind.durable && kind.name == "session" {
            // Whose session it was is not kept: whoever took its name next would get what was not for him.
            let message = "sessions end with the process, and their rooms with them; user rooms can be durable";
            report("rooms.session.durable", message.to_owned());
        }
        if kind.name == "global" && kind.join.iter().any(own) {
            report("rooms.global.join", "the room global belongs to no user and no session".to_owned());
        }
    }
    problems
}

/// The longest prefix of keys.
const REDIS_PREFIX_BYTES_MAX: usize = 64;

/// What is wrong with the servers of the broker.
fn redis(config: &Config) -> Vec<(&'static str, String)> {
    let redis = &config.broker_redis;
    let mut problems = Vec::new();
    let mut report = |key: &'static str, message: &str| problems.push((key, message.to_owned()));
    if config.broker.kind == BrokerKind::Redis && redis.url.is_empty() {
        report("broker.redis.url", "broker.kind = \"redis\" needs it, such as redis://127.0.0.1:6379");
    }
    if redis.mode != RedisMode::Single {
        let mode = redis.mode.word();
        if redis.url.iter().any(|url| url.is_unix() || url.has_database()) {
            let message = format!("with broker.redis.mode = \"{mode}\" addresses are HOST:PORT, without a database");
            report("broker.redis.url", &message);
        }
        if redis.url.iter().any(RedisUrl::is_tls) && !redis.url.iter().all(RedisUrl::is_tls) {
            let message = format!("with broker.redis.mode = \"{mode}\" all addresses have TLS, or none");
            report("broker.redis.url", &message);
        }
    }
    if redis.ca_file.is_some() && !redis.url.iter().any(RedisUrl::is_tls) {
        report("broker.redis.ca_file", "only rediss:// addresses use it, and there is none");
    }
    if redis.username.is_some() && redis.password.is_none() {
        report("broker.redis.username", "needs broker.redis.password");
    }
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    if !redis.prefix.bytes().all(fits) || redis.prefix.len() > REDIS_PREFIX_BYTES_MAX {
        let message = format!("expected at most {REDIS_PREFIX_BYTES_MAX} letters, digits and any of - _ . :");
        report("broker.redis.prefix", &message);
    }
    problems
}

/// What keeps the demo's clients from connecting, or its page from working.
fn demo(config: &Config) -> Vec<&'static str> {
    let has_keys = !config.auth.keys.is_empty() || config.auth.jwks.is_some();
    let lacks = [
        (
            config.auth.enabled && config.auth.secret.is_empty() && has_keys,
            "needs auth.secret, to sign its clients' tokens",
        ),
        (
            config.listen.internal.is_some(),
            "can't be with listen.internal: its page needs sockets and the API at one address",
        ),
        (config.listen.proxy_protocol, "can't be with listen.proxy_protocol: its clients connect directly"),
        (
            !config.listen.public.iter().any(|listen| matches!(listen, Listen::Tcp(_))),
            "needs a TCP address in listen.public",
        ),
    ];
    lacks.into_iter().filter(|(is_so, _)| *is_so).map(|(_, message)| message).collect()
}

/// Whether sessions of Engine.IO can be opened at a path: it is one, and nothing else is there.
pub fn is_engine_path(path: &str) -> bool {
    let is_path = path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic() && !b"?#\"{}".contains(&b));
    // The router takes such segments for those of other versions of it, and refuses them.
    let is_plain = path.split('/').all(|segment| !segment.starts_with([':', '*']));
    is_path && is_plain && !is_taken(path)
}

/// Whether a namespace of Socket.IO can have that name.
pub fn is_namespace(name: &str) -> bool {
    name.starts_with('/')
        && name.len() <= NAMESPACE_BYTES_MAX
        && !name.bytes().any(|byte| byte == b',' || byte.is_ascii_control())
}

/// Whether something else is served there.
fn is_taken(path: &str) -> bool {
    let first = path.trim_matches('/').split('/').next().unwrap_or_default();
    matches!(first, "" | "ws" | "events" | "echo" | "api" | "live" | "ready" | "metrics" | "openapi.json" | "webhooks")
        || matches!(first, "dashboard" | "demo" | "ringhub.js")
}

fn listeners(config: &Config) -> impl Iterator<Item = &Listen> {
    config.listen.public.iter().chain(&config.listen.internal)
}

/// Whether a pattern can match an `Origin` header: a scheme and a host, no path.
fn is_origin_pattern(pattern: &str) -> bool {
    if pattern == "*" || pattern == "null" {
        return true;
    }
    let Some((scheme, rest)) = pattern.split_once("://") else { return false };
    let host = rest.strip_prefix("*.").unwrap_or(rest);
    let scheme_fits = !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    let host_fits = !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic() && !b"/*@?#".contains(&b));
    scheme_fits && host_fits
}
