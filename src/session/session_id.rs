//! A session's id.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// The kind of the rooms that sessions have, with the colon.
const KIND: &str = "session:";

/// A session's id, kept as the name of the session's room, which ends in it: so both take one piece of memory.
#[derive(Clone, PartialEq, Eq)]
pub struct SessionId {
    /// Invariant: begins with [`KIND`].
    room: Arc<str>,
}

impl SessionId {
    /// The name of its room.
    pub fn room(&self) -> &Arc<str> {
        &self.room
    }
}

impl From<&str> for SessionId {
    fn from(id: &str) -> SessionId {
        SessionId { room: [KIND, id].concat().into() }
    }
}

impl Deref for SessionId {
    type Target = str;

    fn deref(&self) -> &str {
        self.room.get(KIND.len()..).unwrap_or_default()
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_the_end_of_its_rooms_name() {
        for id in ["s1", ""] {
            let session_id = SessionId::from(id);
            assert_eq!((&*session_id, session_id.room()), (id, &Arc::from(format!("session:{id}"))));
            assert_eq!(session_id.to_string(), id);
        }
    }
}
