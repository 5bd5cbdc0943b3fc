//! The native protocol, client to hub: JSON text to commands.
//!
//! Commands borrow from the message they came in. `data` of a publish is kept as the bytes that came, to be spliced into
//! the event's frame.
//!
//! Larger than most files, since every command's fields are read here and nowhere else.

use super::codes::ErrorCode;
use super::json::{JsonError, Scratch, Value};
use super::lock_commands::{self, LockCommand};

/// The command's `id`, which its answer carries as `ref`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// At most 64 bytes.
    Text(Box<str>),
    /// Any integer.
    Number(i64),
}

/// A refused command: what the error answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The code.
    pub code: ErrorCode,
    /// One sentence for a person.
    pub message: std::borrow::Cow<'static, str>,
}

impl Refused {
    /// A refusal with a fixed sentence.
    pub const fn new(code: ErrorCode, message: &'static str) -> Refused {
        Refused { code, message: std::borrow::Cow::Borrowed(message) }
    }

    /// A refusal whose sentence names what was wrong.
    pub fn because(code: ErrorCode, message: String) -> Refused {
        Refused { code, message: std::borrow::Cow::Owned(message) }
    }
}

/// Where a `subscribe` wants to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Since {
    /// Everything after `seq`, if the epoch is still that one.
    Seq {
        /// The last event that the client has.
        seq: u64,
        /// The epoch it belongs to; none means any.
        epoch: Option<Box<str>>,
    },
    /// The newest so many.
    Last(u64),
    /// What is not older than so many seconds.
    Seconds(u64),
    /// What came after a time, in milliseconds since 1970; never said by clients.
    Time(u64),
}

/// What of a room a subscriber wants, as sent; checked and compiled by the hub.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Event types; empty for all.
    pub types: Vec<Box<str>>,
    /// The filter object's bytes.
    pub filters: Option<Box<[u8]>>,
}

/// To whom a direct message goes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// One connection's session, by client id.
    Client(Box<str>),
    /// One session.
    Session(Box<str>),
    /// Several sessions.
    Sessions(Vec<Box<str>>),
    /// Every connection of a user.
    User(Box<str>),
}

/// One or several rooms, which decides the shape of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rooms {
    /// Named by `room`, or by the short form.
    One(Box<str>),
    /// Named by `rooms`.
    Many(Vec<Box<str>>),
}

/// What a client asks for.
#[derive(Debug, PartialEq)]
pub enum Command<'a> {
    /// Receive a room's events.
    Subscribe {
        /// Which.
        rooms: Rooms,
        /// Which of their events.
        wanted: Wanted,
        /// From where on.
        since: Option<Since>,
        /// Whether as changes, where the client has what they are changes of.
        delta: bool,
    },
    /// Receive them no longer.
    Unsubscribe {
        /// Which.
        rooms: Rooms,
    },
    /// Put an event into a room.
    Publish {
        /// Which.
        room: &'a str,
        /// The event's type.
        kind: &'a str,
        /// The event's data, as it came.
        data: &'a [u8],
        /// Idempotency key.
        key: Option<&'a str>,
        /// Whether the publisher gets the event too, should it be a member.
        echo: bool,
    },
    /// A direct message.
    Send {
        /// To whom.
        to: Target,
        /// The event's type.
        kind: &'a str,
        /// The event's data, as it came.
        data: &'a [u8],
    },
    /// Says that all events of a room up to one are handled.
    Ack {
        /// Which.
        room: &'a str,
        /// The last of them.
        seq: u64,
    },
    /// Takes up a session that another connection had.
    Resume {
        /// Which.
        session_id: &'a str,
        /// The token from its greeting.
        token: &'a str,
        /// The last events that the client has, by room.
        cursors: Vec<(Box<str>, Since)>,
    },
    /// Asks for a part of a room's log.
    History {
        /// Which.
        room: &'a str,
        /// From where on (or, in reverse, before what).
        since: Option<Since>,
        /// At most so many events.
        limit: usize,
        /// Newest first.
        reverse: bool,
    },
    /// Something about a field's lock.
    Lock(LockCommand<'a>),
    /// Asks who is in a room.
    Presence {
        /// Which.
        room: &'a str,
    },
    /// Something for the backend's inbox of this session.
    Message {
        /// As it came.
        data: &'a [u8],
    },
    /// Asks for a `pong`.
    Ping {
        /// As it came.
        data: &'a [u8],
    },
    /// Asks which rooms this connection is in.
    Rooms,
    /// Merges into this connection's metadata.
    Metadata {
        /// The object to merge, as it came; none only reads.
        set: Option<&'a [u8]>,
    },
    /// Replaces the token.
    AuthRefresh {
        /// The new one.
        token: &'a str,
    },
}

impl Command<'_> {
    /// Its type, as the protocol has it.
    pub fn name(&self) -> &'static str {
        match self {
            Command::Subscribe { .. } => "subscribe",
            Command::Unsubscribe { .. } => "unsubscribe",
            Command::Publish { .. } => "publish",
            Command::Send { .. } => "send",
            Command::Ack { .. } => "ack",
            Command::Resume { .. } => "resume",
            Command::History { .. } => "history",
            Command::Lock(command) => command.name(),
            Command::Presence { .. } => "presence",
            Command::Message { .. } => "message",
            Command::Ping { .. } => "ping",
            Command::Rooms => "rooms",
            Command::Metadata { .. } => "metadata",
            Command::AuthRefresh { .. } => "auth.refresh",
        }
    }

    /// Whether it carries something that proves who somebody is.
    pub fn has_token(&self) -> bool {
        matches!(self, Command::Resume { .. } | Command::AuthRefresh { .. })
    }
}

/// A message taken apart: the reference can be known even where the command is refused.
#[derive(Debug)]
pub struct Parsed<'a> {
    /// The `id`, if there was a valid one.
    pub reference: Option<Reference>,
    /// The command, or why it is none.
    pub command: Result<Command<'a>, Refused>,
}

/// The most events in one `history` answer.
pub const HISTORY_EVENTS_MAX: usize = 1000;
/// The longest `id`.
pub const REFERENCE_BYTES_MAX: usize = 64;
/// The longest event type.
pub const EVENT_TYPE_BYTES_MAX: usize = 100;
/// The most rooms, types or sessions named in one command.
pub const NAMES_MAX: usize = 1000;

const ABSENT: &[u8] = b"null";

/// Whether a text may be an event's type: 1 to 100 of `A-Z a-z 0-9 . _ : / -`, so that it never needs escaping.
pub fn is_event_type(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= EVENT_TYPE_BYTES_MAX
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'/' | b'-'))
}

/// Whether a text may be a client's or session's id (PROTOCOL §1): 1 to 64 of `A-Z a-z 0-9 . _ : -`.
pub fn is_client_id(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 64
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'-'))
}

/// Parses a text message in place and hands what it says to `then`.
pub fn parse<R>(scratch: &mut Scratch, text: &mut [u8], then: impl FnOnce(Parsed<'_>) -> R) -> R {
    let document = match scratch.parse(text) {
        Ok(document) => document,
        Err(error) => {
            let message = match error {
                JsonError::Invalid => "the message is not valid JSON",
                JsonError::TooDeep => "the message is nested too deep",
            };
            return then(Parsed { reference: None, command: Err(Refused::new(ErrorCode::BadJson, message)) });
        }
    };
    then(command(document.root()))
}

fn command<'a>(root: Value<'a, '_>) -> Parsed<'a> {
    if !root.is_object() {
        let refused = Refused::new(ErrorCode::BadCommand, "a message is an object with a type");
        return Parsed { reference: None, command: Err(refused) };
    }
    let (mut kind, mut data, mut id) = (None, None, None);
    for field in root.fields() {
        match field.key {
            "type" => kind = Some(field.value),
            "data" => data = Some(field.value),
            "id" => id = Some(field.value),
            _ => {}
        }
    }
    let reference = match id {
        None => None,
        Some(id) if id.is_null() => None,
        Some(id) => match reference(id) {
            Some(reference) => Some(reference),
            None => {
                let refused =
                    Refused::new(ErrorCode::BadCommand, "id has to be an integer or a string of at most 64 bytes");
                return Parsed { reference: None, command: Err(refused) };
            }
        },
    };
    let command = match kind.and_then(Value::as_str) {
        Some(kind) => named(kind, data),
        None => Err(Refused::new(ErrorCode::BadCommand, "type is missing or not a string")),
    };
    Parsed { reference, command }
}

fn reference(id: Value<'_, '_>) -> Option<Reference> {
    if let Some(text) = id.as_str() {
        return (text.len() <= REFERENCE_BYTES_MAX).then(|| Reference::Text(text.into()));
    }
    id.as_i64().map(Reference::Number)
}

/// The command of that name with its data, for every protocol that carries commands. [`ErrorCode::UnknownType`] says that
/// there is none, and nothing else.
pub fn named<'a>(kind: &str, data: Option<Value<'a, '_>>) -> Result<Command<'a>, Refused> {
    match kind {
        "subscribe" => subscribe(object(data)?),
        "unsubscribe" => Ok(Command::Unsubscribe { rooms: rooms(object(data)?)?.0 }),
        "publish" => publish(object(data)?),
        "send" => send(object(data)?),
        "ack" => {
            let data = object(data)?;
            let seq = data.get("seq").and_then(Value::as_i64).and_then(|seq| u64::try_from(seq).ok());
            let seq = seq.ok_or(Refused::new(ErrorCode::BadCommand, "data.seq has to be a number from 0 on"))?;
            Ok(Command::Ack { room: text(data, "room")?, seq })
        }
        "resume" => resume(object(data)?),
        "history" => history(object(data)?),
        "presence" => Ok(Command::Presence { room: text(object(data)?, "room")? }),
        "message" => Ok(Command::Message { data: data.map_or(ABSENT, Value::raw) }),
        "ping" => Ok(Command::Ping { data: data.map_or(b"{}", Value::raw) }),
        "rooms" => Ok(Command::Rooms),
        "metadata" => match data.and_then(|data| data.get("set")) {
            None => Ok(Command::Metadata { set: None }),
            Some(set) if set.is_object() => Ok(Command::Metadata { set: Some(set.raw()) }),
            Some(_) => Err(Refused::new(ErrorCode::BadCommand, "set has to be an object")),
        },
        "auth.refresh" => Ok(Command::AuthRefresh { token: text(object(data)?, "token")? }),
        "lock.acquire" | "lock.renew" | "lock.release" => Ok(Command::Lock(lock_commands::parse(kind, object(data)?)?)),
        _ => Err(Refused::because(ErrorCode::UnknownType, format!("there is no command {:?}", clip(kind)))),
    }
}

fn object<'a, 'd>(data: Option<Value<'a, 'd>>) -> Result<Value<'a, 'd>, Refused> {
    match data {
        Some(data) if data.is_object() => Ok(data),
        _ => Err(Refused::new(ErrorCode::BadCommand, "data is missing or not an object")),
    }
}

pub(super) fn text<'a>(data: Value<'a, '_>, key: &str) -> Result<&'a str, Refused> {
    match data.get(key) {
        Some(value) => value
            .as_str()
            .ok_or_else(|| Refused::because(ErrorCode::BadCommand, format!("data.{key} has to be a string"))),
        None => Err(Refused::because(ErrorCode::BadCommand, format!("data.{key} is missing"))),
    }
}

fn texts(list: Value<'_, '_>, key: &str) -> Result<Vec<Box<str>>, Refused> {
    let bad = || Refused::because(ErrorCode::BadCommand, format!("data.{key} has to be a list of strings"));
    if !list.is_array() {
        return Err(bad());
    }
    let mut texts = Vec::new();
    for element in list.elements() {
        if texts.len() == NAMES_MAX {
            return Err(Refused::because(ErrorCode::TooLarge, format!("data.{key} has more than {NAMES_MAX} entries")));
        }
        texts.push(element.as_str().ok_or_else(bad)?.into());
    }
    Ok(texts)
}

/// The rooms that a command names, and the event type that the short form (`{"type":"epistemic_updates",…}`) stands for.
fn rooms(data: Value<'_, '_>) -> Result<(Rooms, Option<&'static str>), Refused> {
    if let Some(many) = data.get("rooms") {
        let rooms = texts(many, "rooms")?;
        if rooms.is_empty() {
            return Err(Refused::new(ErrorCode::BadCommand, "data.rooms is empty"));
        }
        return Ok((Rooms::Many(rooms), None));
    }
    if data.get("room").is_some() {
        return Ok((Rooms::One(text(data, "room")?.into()), None));
    }
    let short = match data.get("type").and_then(Value::as_str) {
        Some("epistemic_updates") => "epistemic_update",
        Some("pattern_alerts") => "pattern_alert",
        Some("prediction_updates") => "prediction_update",
        Some("system_alerts") => return Ok((Rooms::One("global".into()), Some("system_alert"))),
        Some(other) => {
            return Err(Refused::because(
                ErrorCode::BadCommand,
                format!("there is no subscription called {:?}", clip(other)),
            ));
        }
        None => return Err(Refused::new(ErrorCode::BadCommand, "data.room or data.rooms is missing")),
    };
    let agent = text(data, "agent_id")?;
    Ok((Rooms::One(format!("agent:{agent}").into()), Some(short)))
}

fn subscribe<'a>(data: Value<'a, '_>) -> Result<Command<'a>, Refused> {
    let (rooms, short) = rooms(data)?;
    let mut wanted = Wanted::default();
    if let Some(kind) = short {
        wanted.types.push(kind.into());
    } else if let Some(types) = data.get("types").filter(|types| !types.is_null()) {
        wanted.types = texts(types, "types")?;
        if let Some(bad) = wanted.types.iter().find(|kind| !is_event_type(kind)) {
            return Err(Refused::because(ErrorCode::BadFilter, format!("{:?} is not an event type", clip(bad))));
        }
    }
    if let Some(filters) = data.get("filters").filter(|filters| !filters.is_null()) {
        if !filters.is_object() {
            return Err(Refused::new(ErrorCode::BadFilter, "data.filters has to be an object"));
        }
        if filters.fields().next().is_some() {
            wanted.filters = Some(filters.raw().into());
        }
    }
    let since = match data.get("since").filter(|since| !since.is_null()) {
        Some(since) => Some(parse_since(since)?),
        None => None,
    };
    let delta = match data.get("delta").filter(|delta| !delta.is_null()).map(Value::as_bool) {
        None | Some(Some(false)) => false,
        // Of what a filter leaves out, nothing that comes after it can be a change.
        Some(Some(true)) if wanted != Wanted::default() => {
            return Err(Refused::new(ErrorCode::BadCommand, "data.delta goes without types and filters"));
        }
        Some(Some(true)) => true,
        Some(None) => return Err(Refused::new(ErrorCode::BadCommand, "data.delta has to be true or false")),
    };
    Ok(Command::Subscribe { rooms, wanted, since, delta })
}

fn resume<'a>(data: Value<'a, '_>) -> Result<Command<'a>, Refused> {
    let mut cursors = Vec::new();
    if let Some(object) = data.get("cursors").filter(|cursors| !cursors.is_null()) {
        if !object.is_object() {
            return Err(Refused::new(ErrorCode::BadCommand, "data.cursors has to be an object of room and cursor"));
        }
        for field in object.fields() {
            if cursors.len() == NAMES_MAX {
                let message = format!("data.cursors has more than {NAMES_MAX} entries");
                return Err(Refused::because(ErrorCode::TooLarge, message));
            }
            match parse_since(field.value)? {
                since @ Since::Seq { .. } => cursors.push((field.key.into(), since)),
                _ => return Err(Refused::new(ErrorCode::BadCommand, "a cursor is {\"seq\":n,\"epoch\":e}")),
            }
        }
    }
    let session_id = text(data, "session_id")?;
    if !is_client_id(session_id) {
        return Err(Refused::new(ErrorCode::BadCommand, "data.session_id has to be 1 to 64 of A-Z a-z 0-9 . _ : -"));
    }
    Ok(Command::Resume { session_id, token: text(data, "token")?, cursors })
}

fn history<'a>(data: Value<'a, '_>) -> Result<Command<'a>, Refused> {
    let since = match data.get("since").filter(|since| !since.is_null()) {
        Some(since) => Some(parse_since(since)?),
        None => None,
    };
    let limit = match data.get("limit").filter(|limit| !limit.is_null()) {
        None => 100,
        Some(limit) => match limit.as_i64() {
            Some(limit @ 1..=1000) => limit as usize,
            _ => return Err(Refused::new(ErrorCode::BadCommand, "data.limit has to be from 1 to 1000")),
        },
    };
    let reverse = match data.get("reverse").filter(|reverse| !reverse.is_null()) {
        None => false,
        Some(reverse) => {
            reverse.as_bool().ok_or(Refused::new(ErrorCode::BadCommand, "data.reverse has to be true or false"))?
        }
    };
    Ok(Command::History { room: text(data, "room")?, since, limit: limit.min(HISTORY_EVENTS_MAX), reverse })
}

fn parse_since(since: Value<'_, '_>) -> Result<Since, Refused> {
    let bad = || {
        Refused::new(
            ErrorCode::BadCommand,
            "data.since has to be {\"seq\":n,\"epoch\":e}, {\"last\":n} or {\"seconds\":n}",
        )
    };
    let number = |key: &str| match since.get(key) {
        None => Ok(None),
        Some(value) => value.as_i64().and_then(|number| u64::try_from(number).ok()).map(Some).ok_or_else(bad),
    };
    if let Some(seq) = number("seq")? {
        let epoch = match since.get("epoch").filter(|epoch| !epoch.is_null()) {
            Some(epoch) => Some(epoch.as_str().ok_or_else(bad)?.into()),
            None => None,
        };
        return Ok(Since::Seq { seq, epoch });
    }
    if let Some(last) = number("last")? {
        return Ok(Since::Last(last));
    }
    if let Some(seconds) = number("seconds")? {
        return Ok(Since::Seconds(seconds));
    }
    Err(bad())
}

fn publish<'a>(data: Value<'a, '_>) -> Result<Command<'a>, Refused> {
    let room = text(data, "room")?;
    let kind = event_type(data)?;
    let key = match data.get("key").filter(|key| !key.is_null()) {
        Some(_) => Some(text(data, "key")?),
        None => None,
    };
    let echo = match data.get("echo").filter(|echo| !echo.is_null()) {
        Some(echo) => echo.as_bool().ok_or(Refused::new(ErrorCode::BadCommand, "data.echo has to be true or false"))?,
        None => true,
    };
    Ok(Command::Publish { room, kind, data: data.get("data").map_or(b"{}", Value::raw), key, echo })
}

fn event_type<'a>(data: Value<'a, '_>) -> Result<&'a str, Refused> {
    let kind = text(data, "type")?;
    if is_event_type(kind) {
        return Ok(kind);
    }
    Err(Refused::new(ErrorCode::BadCommand, "data.type has to be 1 to 100 of A-Z a-z 0-9 . _ : / -"))
}

fn send<'a>(data: Value<'a, '_>) -> Result<Command<'a>, Refused> {
    let kind = event_type(data)?;
    let to = data.get("to").ok_or(Refused::new(ErrorCode::BadCommand, "data.to is missing"))?;
    Ok(Command::Send { to: target(to)?, kind, data: data.get("data").map_or(b"{}", Value::raw) })
}

fn target(to: Value<'_, '_>) -> Result<Target, Refused> {
    let bad = || {
        Refused::new(
            ErrorCode::BadCommand,
            "data.to has to be one of {\"client\":id}, {\"session\":id}, {\"sessions\":[ids]} and {\"user\":id}",
        )
    };
    let mut fields = to.fields();
    let (Some(field), None) = (fields.next(), fields.next()) else { return Err(bad()) };
    if field.key == "sessions" {
        return Ok(Target::Sessions(texts(field.value, "to.sessions")?));
    }
    let id: Box<str> = field.value.as_str().filter(|id| !id.is_empty()).ok_or_else(bad)?.into();
    match field.key {
        "client" => Ok(Target::Client(id)),
        "session" => Ok(Target::Session(id)),
        "user" => Ok(Target::User(id)),
        _ => Err(bad()),
    }
}

/// At most 64 bytes of what a peer sent, for an error text.
fn clip(text: &str) -> &str {
    let mut end = text.len().min(64);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<R>(text: &str, check: impl FnOnce(Parsed<'_>) -> R) -> R {
        parse(&mut Scratch::new(64), &mut text.as_bytes().to_vec(), check)
    }

    fn refused(text: &str) -> ErrorCode {
        read(text, |parsed| parsed.command.expect_err("refused").code)
    }

    #[test]
    fn publish_keeps_the_bytes_of_its_data() {
        let text = r#"{"type":"publish","id":7,"data":{"room":"project:1","type":"a.b","data":{"x" : "\u00e9\n", "y":1.10},"key":"k","echo":false}}"#;
        read(text, |parsed| {
            assert_eq!(parsed.reference, Some(Reference::Number(7)));
            let expected = Command::Publish {
                room: "project:1",
                kind: "a.b",
                data: br#"{"x" : "\u00e9\n", "y":1.10}"#,
                key: Some("k"),
                echo: false,
            };
            assert_eq!(parsed.command, Ok(expected));
        });
    }

    #[test]
    fn subscriptions_have_a_long_and_a_short_form() {
        read(
            r#"{"type":"subscribe","data":{"type":"epistemic_updates","agent_id":"agent_1","filters":{"c":{"min":0.8}}}}"#,
            |parsed| {
                let Ok(Command::Subscribe { rooms, wanted, since, delta: false }) = parsed.command else {
                    panic!("{parsed:?}")
                };
                assert_eq!(rooms, Rooms::One("agent:agent_1".into()));
                assert_eq!(wanted.types, [Box::<str>::from("epistemic_update")]);
                assert_eq!(wanted.filters.as_deref(), Some(&br#"{"c":{"min":0.8}}"#[..]));
                assert_eq!(since, None);
            },
        );
        read(
            r#"{"type":"subscribe","id":"s","data":{"rooms":["a:1","b:2"],"types":["x"],"since":{"seq":4,"epoch":"e"}}}"#,
            |parsed| {
                assert_eq!(parsed.reference, Some(Reference::Text("s".into())));
                let Ok(Command::Subscribe { rooms, wanted, since, delta: false }) = parsed.command else {
                    panic!("{parsed:?}")
                };
                assert_eq!(rooms, Rooms::Many(vec!["a:1".into(), "b:2".into()]));
                assert_eq!(wanted.types, [Box::<str>::from("x")]);
                assert_eq!(since, Some(Since::Seq { seq: 4, epoch: Some("e".into()) }));
            },
        );
        read(r#"{"type":"subscribe","data":{"room":"a:1","delta":true,"filters":{}}}"#, |parsed| {
            assert!(matches!(parsed.command, Ok(Command::Subscribe { delta: true, .. })));
        });
        for more in [r#""delta":1"#, r#""delta":true,"types":["x"]"#, r#""delta":true,"filters":{"a":1}"#] {
            read(&format!(r#"{{"type":"subscribe","data":{{"room":"a:1",{more}}}}}"#), |parsed| {
                assert_eq!(parsed.command.expect_err("refused").code, ErrorCode::BadCommand);
            });
        }
        read(r#"{"type":"unsubscribe","data":{"type":"system_alerts"}}"#, |parsed| {
            assert_eq!(parsed.command, Ok(Command::Unsubscribe { rooms: Rooms::One("global".into()) }));
        });
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_code() {
        assert_eq!(refused("{"), ErrorCode::BadJson);
        assert_eq!(refused(&format!("{}1{}", "[".repeat(99), "]".repeat(99))), ErrorCode::BadJson);
        assert_eq!(refused("[]"), ErrorCode::BadCommand);
        assert_eq!(refused("{}"), ErrorCode::BadCommand);
        assert_eq!(refused(r#"{"type":5}"#), ErrorCode::BadCommand);
        assert_eq!(refused(r#"{"type":"fly"}"#), ErrorCode::UnknownType);
        assert_eq!(refused(r#"{"type":"subscribe"}"#), ErrorCode::BadCommand);
        assert_eq!(refused(r#"{"type":"subscribe","data":{"room":5}}"#), ErrorCode::BadCommand);
        assert_eq!(refused(r#"{"type":"subscribe","data":{"rooms":[]}}"#), ErrorCode::BadCommand);
        assert_eq!(refused(r#"{"type":"subscribe","data":{"room":"a:b","filters":5}}"#), ErrorCode::BadFilter);
        assert_eq!(refused(r#"{"type":"subscribe","data":{"room":"a:b","since":{"seq":-1}}}"#), ErrorCode::BadCommand);
        assert_eq!(refused(r#"{"type":"publish","data":{"room":"a:b","type":"x y"}}"#), ErrorCode::BadCommand);
        assert_eq!(
            refused(r#"{"type":"send","data":{"to":{"client":"a","user":"b"},"type":"x"}}"#),
            ErrorCode::BadCommand
        );
        assert_eq!(refused(r#"{"type":"ping","id":{}}"#), ErrorCode::BadCommand);
        let long = "x".repeat(65);
        assert_eq!(refused(&format!(r#"{{"type":"ping","id":"{long}"}}"#)), ErrorCode::BadCommand);
    }

    #[test]
    fn a_refused_command_still_tells_its_reference() {
        read(r#"{"type":"fly","id":"r"}"#, |parsed| assert_eq!(parsed.reference, Some(Reference::Text("r".into()))));
    }
}
