//! Room names: `kind:name`, or just `global`.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;

use crate::session::SessionId;
use crate::wire::codes::ErrorCode;
use crate::wire::native::Refused;

/// A shard's number, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u16);

/// A room's name with its hash, which decides its home and finds it in every shard's table.
#[derive(Clone)]
pub struct RoomName {
    text: Arc<str>,
    hash: u64,
}

/// How names of a node are hashed. The seed is drawn at start, so that nobody outside can aim names at one bucket.
#[derive(Debug, Clone)]
pub struct NameHasher(foldhash::fast::FixedState);

impl NameHasher {
    /// A hasher that all shards of a node share.
    pub fn new(seed: u64) -> NameHasher {
        NameHasher(foldhash::fast::FixedState::with_seed(seed))
    }

    /// The hash of any directory key (room, client id, address).
    pub fn hash<K: std::hash::Hash + ?Sized>(&self, key: &K) -> u64 {
        self.0.hash_one(key)
    }

    /// A name that was checked before.
    pub fn room(&self, text: &str) -> RoomName {
        RoomName { text: text.into(), hash: self.hash(text) }
    }

    /// The room of a session.
    pub fn session_room(&self, session_id: &SessionId) -> RoomName {
        RoomName { text: session_id.room().clone(), hash: self.hash(&**session_id.room()) }
    }
}

impl RoomName {
    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The hash, the same on every shard of the node.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The shard that numbers this room's events.
    pub fn home(&self, shards: u16) -> ShardId {
        home_of(self.hash, shards)
    }
}

/// The shard that is home to a hash: the high bits decide, since the low ones choose the bucket in a shard's tables.
pub fn home_of(hash: u64, shards: u16) -> ShardId {
    ShardId(((u128::from(hash) * u128::from(shards)) >> 64) as u16)
}

impl PartialEq for RoomName {
    fn eq(&self, other: &RoomName) -> bool {
        self.hash == other.hash && self.text == other.text
    }
}

impl Eq for RoomName {}

impl std::hash::Hash for RoomName {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl PartialOrd for RoomName {
    fn partial_cmp(&self, other: &RoomName) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for RoomName {
    fn cmp(&self, other: &RoomName) -> Ordering {
        self.text.cmp(&other.text)
    }
}

impl Borrow<str> for RoomName {
    fn borrow(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for RoomName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, formatter)
    }
}

/// Splits a room's name into kind and name (empty for `global`); whether the kind exists is the caller's question.
///
/// Names have no control characters, quotes or backslashes, so that they stand in JSON as they are.
pub fn split(room: &str, bytes_max: usize) -> Result<(&str, &str), Refused> {
    if room.len() > bytes_max {
        return Err(Refused::because(ErrorCode::BadRoom, format!("a room's name has at most {bytes_max} bytes")));
    }
    if room == "global" {
        return Ok((room, ""));
    }
    let Some((kind, name)) = room.split_once(':') else {
        return Err(Refused::new(ErrorCode::BadRoom, "a room's name is kind:name, or global"));
    };
    let word = !kind.is_empty()
        && kind.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-');
    if !word || kind == "global" {
        return Err(Refused::new(ErrorCode::BadRoom, "a room's kind is a lower-case word"));
    }
    if name.is_empty() || name.chars().any(|c| c.is_control() || c == '"' || c == '\\') {
        return Err(Refused::new(
            ErrorCode::BadRoom,
            "the part after the colon is empty or has control characters, quotes or backslashes",
        ));
    }
    Ok((kind, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kind_and_name_or_global() {
        assert_eq!(split("project:a:b/c é", 200), Ok(("project", "a:b/c é")));
        assert_eq!(split("global", 200), Ok(("global", "")));
        for bad in ["", "project", "project:", ":x", "Project:x", "global:x", "a b:x", "a:\"", "a:\\", "a:\n", "é:x"] {
            assert_eq!(split(bad, 200).map_err(|refused| refused.code), Err(ErrorCode::BadRoom), "{bad:?}");
        }
        assert!(split(&format!("a:{}", "x".repeat(198)), 200).is_ok());
        assert!(split(&format!("a:{}", "x".repeat(199)), 200).is_err());
    }

    #[test]
    fn homes_are_spread_and_stable() {
        let hasher = NameHasher::new(7);
        let mut counts = [0u32; 4];
        for number in 0..4000 {
            let room = hasher.room(&format!("project:{number}"));
            assert_eq!(room.home(4), hasher.room(&format!("project:{number}")).home(4));
            counts[usize::from(room.home(4).0)] += 1;
        }
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
        assert_eq!(hasher.room("x:y").home(1), ShardId(0));
    }
}
