//! The native protocol, client to hub: the commands about field locks (`lock.acquire`, `lock.renew`, `lock.release`).

use super::codes::ErrorCode;
use super::json::Value;
use super::native::{Refused, text};

/// The longest name of a field.
pub const FIELD_BYTES_MAX: usize = 200;
/// The longest time for which a lock is held without being renewed, in seconds.
pub const LOCK_TTL_MAX_S: u64 = 3600;
/// The time for which a lock is held when its `lock.acquire` says none, in seconds: an editor that renews every ten seconds
/// may miss two of them.
pub const LOCK_TTL_DEFAULT_S: u64 = 30;

/// What a client wants of a field's lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockCommand<'a> {
    /// The room.
    pub room: &'a str,
    /// The field: 1 to [`FIELD_BYTES_MAX`] bytes without control characters.
    pub field: &'a str,
    /// What is to be done.
    pub action: LockAction,
}

/// What is to be done with a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockAction {
    /// Take it, or renew it where this session holds it.
    Acquire {
        /// Seconds after which it ends by itself.
        ttl_s: u64,
    },
    /// Hold it for longer.
    Renew {
        /// The number it was granted with.
        token: u64,
        /// Seconds from now; none for as many as last time.
        ttl_s: Option<u64>,
    },
    /// Give it back.
    Release {
        /// The number it was granted with.
        token: u64,
    },
}

impl LockCommand<'_> {
    /// Its type, as the protocol has it.
    pub fn name(&self) -> &'static str {
        match self.action {
            LockAction::Acquire { .. } => "lock.acquire",
            LockAction::Renew { .. } => "lock.renew",
            LockAction::Release { .. } => "lock.release",
        }
    }
}

/// Reads the data of the lock command of that type.
pub(super) fn parse<'a>(kind: &str, data: Value<'a, '_>) -> Result<LockCommand<'a>, Refused> {
    let (room, field) = names(data)?;
    let action = match kind {
        "lock.acquire" => LockAction::Acquire { ttl_s: ttl_s(data)?.unwrap_or(LOCK_TTL_DEFAULT_S) },
        "lock.renew" => LockAction::Renew { token: token(data)?, ttl_s: ttl_s(data)? },
        _ => LockAction::Release { token: token(data)? },
    };
    Ok(LockCommand { room, field, action })
}

fn names<'a>(data: Value<'a, '_>) -> Result<(&'a str, &'a str), Refused> {
    let (room, field) = (text(data, "room")?, text(data, "field")?);
    if field.is_empty() || field.len() > FIELD_BYTES_MAX || field.chars().any(char::is_control) {
        let message = format!("data.field has to be 1 to {FIELD_BYTES_MAX} bytes without control characters");
        return Err(Refused::because(ErrorCode::BadCommand, message));
    }
    Ok((room, field))
}

fn token(data: Value<'_, '_>) -> Result<u64, Refused> {
    let token = data.get("token").and_then(Value::as_i64).and_then(|token| u64::try_from(token).ok());
    token.ok_or(Refused::new(ErrorCode::BadCommand, "data.token has to be the number that the lock was granted with"))
}

fn ttl_s(data: Value<'_, '_>) -> Result<Option<u64>, Refused> {
    let Some(ttl_s) = data.get("ttl_s").filter(|ttl_s| !ttl_s.is_null()) else { return Ok(None) };
    let seconds = ttl_s.as_i64().and_then(|seconds| u64::try_from(seconds).ok());
    match seconds.filter(|seconds| (1..=LOCK_TTL_MAX_S).contains(seconds)) {
        Some(seconds) => Ok(Some(seconds)),
        None => {
            let message = format!("data.ttl_s has to be a whole number from 1 to {LOCK_TTL_MAX_S}");
            Err(Refused::because(ErrorCode::BadCommand, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::json::Scratch;
    use super::super::native::{self, Command};
    use super::*;

    /// The action of a command about room `a:b` and field `f`, or its refusal's code.
    fn action(verb: &str, more: &str) -> Result<LockAction, ErrorCode> {
        let mut text = format!(r#"{{"type":"lock.{verb}","data":{{"room":"a:b","field":"f"{more}}}}}"#).into_bytes();
        native::parse(&mut Scratch::new(8), &mut text, |parsed| match parsed.command {
            Ok(Command::Lock(LockCommand { room: "a:b", field: "f", action })) => Ok(action),
            Ok(other) => panic!("{other:?}"),
            Err(refused) => Err(refused.code),
        })
    }

    #[test]
    fn lock_commands_are_read() {
        assert_eq!(action("acquire", ""), Ok(LockAction::Acquire { ttl_s: 30 }));
        assert_eq!(action("acquire", r#","ttl_s":null"#), Ok(LockAction::Acquire { ttl_s: 30 }));
        assert_eq!(action("acquire", r#","ttl_s":3600"#), Ok(LockAction::Acquire { ttl_s: 3600 }));
        assert_eq!(action("renew", r#","token":7"#), Ok(LockAction::Renew { token: 7, ttl_s: None }));
        assert_eq!(action("renew", r#","token":7,"ttl_s":1"#), Ok(LockAction::Renew { token: 7, ttl_s: Some(1) }));
        assert_eq!(action("release", r#","token":7"#), Ok(LockAction::Release { token: 7 }));
    }

    #[test]
    fn what_is_no_lock_command_is_refused() {
        for ttl_s in ["0", "3601", "-1", "1.5", "\"30\"", "1e30"] {
            assert_eq!(action("acquire", &format!(",\"ttl_s\":{ttl_s}")), Err(ErrorCode::BadCommand), "{ttl_s}");
        }
        for token in ["", ",\"token\":-1", ",\"token\":\"7\"", ",\"token\":null", ",\"token\":7.5"] {
            assert_eq!(action("renew", token), Err(ErrorCode::BadCommand), "{token}");
            assert_eq!(action("release", token), Err(ErrorCode::BadCommand), "{token}");
        }
        assert_eq!(action("steal", ""), Err(ErrorCode::UnknownType));
        let long = format!(r#","field":"{}""#, "x".repeat(FIELD_BYTES_MAX + 1));
        for field in [r#","field":"""#, r#","field":"a\nb""#, r#","field":5"#, &long] {
            assert_eq!(action("acquire", field), Err(ErrorCode::BadCommand), "{field}");
        }
    }
}
