//! Kinds of rooms and roles: the options whose keys carry a name (`rooms.KIND.…`, `roles.NAME`).

use std::collections::BTreeMap;

use super::log::word_values;
use super::table::{Rule, range};
use super::value::{Input, OptionValue, read};

/// What the hub does for a subscriber that reads too slowly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Stop queueing, and read on from the room's log when the outbox has drained.
    CatchUp,
    /// Keep only the newest event per key.
    Latest,
    /// Close the connection with 4508.
    Disconnect,
}
word_values!(
    Policy,
    "catch_up, latest or disconnect",
    CatchUp = "catch_up",
    Latest = "latest",
    Disconnect = "disconnect"
);

/// When the publish to a durable room is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DurableAck {
    /// When the kernel has it: it outlives the process, not the machine.
    Written,
    /// When the disk has it.
    Synced,
}
word_values!(DurableAck, "synced or written", Written = "written", Synced = "synced");

/// One way to be allowed into the rooms of a kind; an administrator may join every room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinRule {
    /// Whoever may subscribe at all: the word `everyone`.
    Everyone,
    /// The user whose id is the room's name: the word `own_user`.
    OwnUser,
    /// The session whose id is the room's name: the word `own_session`.
    OwnSession,
    /// Holders of a permission, in which `{kind}` and `{name}` stand for those of the room.
    Permission(String),
}

/// A kind of rooms and its options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindConfig {
    /// The kind: what stands before the colon of its rooms' names.
    pub name: String,
    /// Whether the rooms' logs outlive the process.
    pub durable: bool,
    /// When a publish to such a room is acknowledged.
    pub durable_ack: DurableAck,
    /// What happens to subscribers that read too slowly.
    pub policy: Policy,
    /// Whether the rooms tell their members who comes and goes.
    pub presence_events: bool,
    /// Events kept per room; none takes `history.events_max`.
    pub history_events_max: Option<u32>,
    /// Who may join: one of these has to hold.
    pub join: Vec<JoinRule>,
    /// Whether the rooms' events go ahead of others in a connection's outbox.
    pub urgent: bool,
    /// Whether the rooms' events are compressed for those who agreed to that.
    pub compress: bool,
}

impl KindConfig {
    /// A declared kind with nothing else said: joined with `{kind}:{name}:read`.
    pub fn new(name: &str) -> Self {
        Self::with_join(name, JoinRule::Permission("{kind}:{name}:read".to_owned()))
    }

    fn with_join(name: &str, join: JoinRule) -> Self {
        Self {
            name: name.to_owned(),
            durable: false,
            durable_ack: DurableAck::Synced,
            policy: Policy::CatchUp,
            presence_events: false,
            history_events_max: None,
            join: vec![join],
            urgent: false,
            compress: true,
        }
    }
}

/// One option of a kind (`rooms.KIND.…`).
#[derive(Debug)]
pub struct KindOptionDef {
    /// The last part of the key.
    pub name: &'static str,
    /// The type in words.
    pub kind: &'static str,
    /// The unit of a number; empty where there is none.
    pub unit: &'static str,
    /// Which values are accepted.
    pub rule: Rule,
    /// What the option does, one entry per line of its text.
    pub doc: &'static [&'static str],
    pub(super) set: fn(&mut KindConfig, Input<'_>) -> Result<(), String>,
    pub(super) show: fn(&KindConfig) -> toml::Value,
}

impl KindOptionDef {
    /// The text of the option as one paragraph.
    pub fn text(&self) -> String {
        self.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
    }

    /// The value a kind has for this option.
    pub fn value(&self, kind: &KindConfig) -> toml::Value {
        (self.show)(kind)
    }
}

macro_rules! kind_options {
    ($( $(#[doc = $doc:literal])+ $field:ident: $ty:ty, $rule:expr, $unit:literal; )+) => {
        /// The options of a kind, in the order of the reference. A reload applies all of them.
        pub static KIND_OPTIONS: &[KindOptionDef] = &[ $( KindOptionDef {
            name: stringify!($field),
            kind: <$ty as OptionValue>::KIND,
            unit: $unit,
            rule: $rule,
            doc: &[$($doc),+],
            set: |kind, input| {
                kind.$field = read::<$ty>(input, $unit, $rule)?;
                Ok(())
            },
            show: |kind| kind.$field.show(),
        }, )+ ];
    };
}

kind_options! {
    /// Who may join: permissions of which one must be held, with `{kind}` and `{name}` standing for the room's; or
    /// `everyone`, `own_user` (the room is named after the user), `own_session`. Administrators may always.
    join: Vec<JoinRule>, Rule::Any, "";
    /// What happens to a subscriber that reads too slowly: `catch_up` reads on from the log, `latest` keeps the
    /// newest event per key, `disconnect` closes with 4508.
    policy: Policy, Rule::Any, "";
    /// Tell members who comes and goes (`presence.joined`, `presence.left`), each session once: that its connection was
    /// gone for less than `session.resume_window_s` is not told.
    presence_events: bool, Rule::Any, "";
    /// Events kept per room; without it `history.events_max` counts.
    history_events_max: Option<u32>, range(0, 1_000_000), "events";
    /// Keep the rooms' logs beyond the process, in the journal (`journal.path`): publishes are acknowledged and delivered
    /// once it has them. A change for a kind that exists needs a restart.
    durable: bool, Rule::Any, "";
    /// When the publish to a durable room is acknowledged: `synced`, once the disk has it; or `written`, once the kernel
    /// has it, which is quicker and outlives the process, but not a power failure.
    durable_ack: DurableAck, Rule::Any, "";
    /// Send these events ahead of others that wait for a connection. Where a kind is urgent, events of the others take at
    /// most seven eighths of `limits.outbox_bytes_max`: the last eighth is for urgent ones.
    urgent: bool, Rule::Any, "";
    /// Compress these events, where `compression.enabled` is set. Not for what is no shorter when it is compressed, such as
    /// encrypted data.
    compress: bool, Rule::Any, "";
}

/// Longest name of a kind.
const KIND_NAME_BYTES_MAX: usize = 32;

/// Checks the name of a kind: a lower-case word.
pub(super) fn check_kind_name(name: &str) -> Result<(), String> {
    let fits = name.len() <= KIND_NAME_BYTES_MAX
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if fits {
        Ok(())
    } else {
        Err(format!("{name:?} is no kind: expected a lower-case word of at most {KIND_NAME_BYTES_MAX} bytes"))
    }
}

/// Reads the permissions of a role.
pub(super) fn read_role(role: &str, input: Input<'_>) -> Result<Vec<String>, String> {
    if role.is_empty() || role.chars().any(char::is_control) {
        return Err("expected roles.NAME".to_owned());
    }
    let permissions = Vec::<String>::read(input, "")?;
    match permissions.iter().find(|permission| permission.contains(|c: char| c.is_whitespace() || c.is_control())) {
        Some(permission) => Err(format!("{permission:?} is no permission: expected parts separated by colons")),
        None => Ok(permissions),
    }
}

impl OptionValue for Option<u32> {
    const KIND: &'static str = "number";

    fn read(input: Input<'_>, unit: &str) -> Result<Self, String> {
        match input.text() {
            Ok("") => Ok(None),
            _ => u32::read(input, unit).map(Some),
        }
    }

    fn show(&self) -> toml::Value {
        self.map_or_else(|| toml::Value::String(String::new()), |number| number.show())
    }

    fn number(&self) -> Option<u64> {
        self.map(u64::from)
    }
}

impl OptionValue for Vec<JoinRule> {
    const KIND: &'static str = "list of permissions, or everyone, own_user, own_session";

    fn read(input: Input<'_>, unit: &str) -> Result<Self, String> {
        Vec::<String>::read(input, unit)?.into_iter().map(join_rule).collect()
    }

    fn show(&self) -> toml::Value {
        let words = self.iter().map(|rule| match rule {
            JoinRule::Everyone => "everyone".to_owned(),
            JoinRule::OwnUser => "own_user".to_owned(),
            JoinRule::OwnSession => "own_session".to_owned(),
            JoinRule::Permission(permission) => permission.clone(),
        });
        toml::Value::Array(words.map(toml::Value::String).collect())
    }
}

fn join_rule(text: String) -> Result<JoinRule, String> {
    match text.as_str() {
        "everyone" => Ok(JoinRule::Everyone),
        "own_user" => Ok(JoinRule::OwnUser),
        "own_session" => Ok(JoinRule::OwnSession),
        _ => {
            let rest = text.replace("{name}", "").replace("{kind}", "");
            if rest.contains(['{', '}', '*']) || !text.contains(':') {
                let words = "everyone, own_user, own_session or a permission with {kind} and {name}";
                return Err(format!("{text:?}: expected {words}"));
            }
            Ok(JoinRule::Permission(text))
        }
    }
}

/// The kinds that exist without being declared, in the order of the protocol.
pub fn built_in() -> Vec<KindConfig> {
    let read = || JoinRule::Permission("{kind}:{name}:read".to_owned());
    let joins = [
        ("project", read()),
        ("user", JoinRule::OwnUser),
        ("agent", JoinRule::Permission("agent:{name}:monitor".to_owned())),
        ("session", JoinRule::OwnSession),
        ("quote", read()),
        ("analytics", read()),
        ("workflow", read()),
        ("admin", JoinRule::Permission("websocket:admin".to_owned())),
        ("global", JoinRule::Everyone),
    ];
    joins.into_iter().map(|(name, join)| KindConfig::with_join(name, join)).collect()
}

/// The roles that exist without being declared; the configuration may redefine them.
pub fn built_in_roles() -> BTreeMap<String, Vec<String>> {
    let operator = [
        "websocket:connect",
        "websocket:subscribe",
        "websocket:publish",
        "project:*:read",
        "project:*:write",
        "quote:*:read",
        "quote:*:write",
        "workflow:*:read",
        "workflow:*:write",
        "analytics:*:read",
        "agent:*:monitor",
    ];
    let list = |permissions: &[&str]| permissions.iter().map(|&permission| permission.to_owned()).collect();
    BTreeMap::from([("admin".to_owned(), list(&["websocket:admin"])), ("operator".to_owned(), list(&operator))])
}
