//! What the script of locks answers.

use redis::Value;

use super::encoding::seq as whole_number;
use crate::hub::brokered::{LockOwner, Locked};
use crate::wire::codes::ErrorCode;
use crate::wire::native::Refused;

const NOT_UNDERSTOOD: Refused = Refused::new(ErrorCode::Unavailable, "the broker's answer is not understood");

/// What became of a call about a lock.
pub fn locked(answer: Value) -> Result<Locked, Refused> {
    read(answer).ok_or(NOT_UNDERSTOOD)
}

fn read(answer: Value) -> Option<Locked> {
    let Value::Array(parts) = answer else { return None };
    let mut parts = parts.into_iter().map(|part| match part {
        Value::BulkString(bytes) => bytes,
        Value::SimpleString(text) => text.into_bytes(),
        _ => Vec::new(),
    });
    let word = parts.next()?;
    let mut number = || whole_number(&parts.next()?);
    Some(match &word[..] {
        b"granted" => Locked::Granted { token: number()? },
        b"held" => Locked::Held { left_ms: number()?, owner: owner(&parts.next()?) },
        b"renewed" => Locked::Renewed { owner: owner(&parts.next()?) },
        b"freed" => Locked::Freed { token: number()?, owner: owner(&parts.next()?) },
        b"elsewhere" => Locked::Elsewhere,
        b"none" => Locked::NotHeld,
        _ => return None,
    })
}

/// Another program may have put something else there; the lock is held all the same.
fn owner(text: &[u8]) -> LockOwner {
    serde_json::from_slice(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(parts: &[&str]) -> Result<Locked, Refused> {
        locked(Value::Array(parts.iter().map(|part| Value::BulkString(part.as_bytes().to_vec())).collect()))
    }

    #[test]
    fn answers_are_read_and_what_is_none_is_refused() {
        let owner = LockOwner { client_id: "c".into(), session_id: "s".into(), user_id: "u".into() };
        let text = serde_json::to_string(&owner).expect("plain");
        assert_eq!(answer(&["granted", "7"]), Ok(Locked::Granted { token: 7 }));
        assert_eq!(answer(&["held", "900", &text]), Ok(Locked::Held { left_ms: 900, owner: owner.clone() }));
        assert_eq!(answer(&["renewed", &text]), Ok(Locked::Renewed { owner: owner.clone() }));
        assert_eq!(answer(&["freed", "7", &text]), Ok(Locked::Freed { token: 7, owner }));
        assert_eq!(answer(&["freed", "7", "?"]), Ok(Locked::Freed { token: 7, owner: LockOwner::default() }));
        assert_eq!(answer(&["elsewhere"]), Ok(Locked::Elsewhere));
        assert_eq!(answer(&["none"]), Ok(Locked::NotHeld));
        for wrong in [&[][..], &["granted"], &["granted", "x"], &["held", "9"], &["renewed"], &["what"]] {
            assert_eq!(answer(wrong), Err(NOT_UNDERSTOOD), "{wrong:?}");
        }
        assert_eq!(locked(Value::Nil), Err(NOT_UNDERSTOOD));
    }
}
