//! A session on its way from one node to another: what its home gives away, how that is written, and how another home takes
//! it in.
//!
//! ```text
//! node that has it: a connection that holds it is closed (4409) ─► its home gives it away ─► JSON
//! node that wants it: JSON ─► its home has the session, as if its connection had just gone ─► it is resumed as any
//! ```

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::core::Core;
use super::lock::Holder;
use super::locks::{Freed, HeldLock, LockArrived};
use super::message::{Kept, KeptRoom, Message, ResumeToken};
use super::moved_locks::NOBODY;
use super::name::{NameHasher, RoomName};
use super::presence::{Change, PresenceChange, Turn, Who};
use super::reply::Responder;
use super::resume::Begins;
use super::selection::Selection;
use super::session_home::SessionHome;
use crate::auth::{Identity, Withdrawal};
use crate::ring::Now;
use crate::wire::codes::ErrorCode;
use crate::wire::native::{Refused, Since, Wanted};

/// Conditions of a filter: what was compiled once is within the bound of its node.
const CONDITIONS_MAX: usize = usize::MAX;

/// A session that another node wants.
#[derive(Debug)]
pub struct YieldAsked {
    /// The session's room.
    pub room: RoomName,
    /// Whose it has to be.
    pub user_id: Box<str>,
    /// What proves that a client had it before; none where a connection begins it by its name.
    pub token: Option<ResumeToken>,
    /// Is given it.
    pub responder: Responder<Moved>,
}

/// A session that goes to another node as soon as its locks have left.
#[derive(Debug)]
pub(super) struct Yielding {
    /// How many have not.
    waiting: usize,
    /// Those that it takes along.
    left: Vec<LockArrived>,
}

/// All that a session is, without a connection.
#[derive(Debug)]
pub struct Moved {
    /// What proves that a client had it before.
    pub token: ResumeToken,
    /// The turn of its last connection.
    pub turn: Turn,
    /// What was withdrawn from it.
    pub withdrawn: Vec<Withdrawal>,
    /// What it had.
    pub kept: Kept,
    /// Its client's messages that wait for the backend.
    pub inbox: Vec<Bytes>,
}

#[derive(Serialize, Deserialize)]
struct Written {
    token: String,
    turn: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    withdrawn: Vec<Withdrawal>,
    rooms: Vec<WrittenRoom>,
    metadata: Map<String, Value>,
    namespaces: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    locks: Vec<WrittenLock>,
    /// In base64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    inbox: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct WrittenRoom {
    room: String,
    /// As a subscriber would write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    selection: Option<WrittenSelection>,
    from: WrittenSince,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    acked: Option<u64>,
    namespaces: u32,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    delta: bool,
}

#[derive(Serialize, Deserialize)]
struct WrittenSelection {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    types: Vec<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    filters: Option<Box<RawValue>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WrittenSince {
    Seq { seq: u64, epoch: Option<Box<str>> },
    Last(u64),
    Seconds(u64),
    Time(u64),
}

#[derive(Serialize, Deserialize)]
struct WrittenLock {
    room: String,
    field: String,
    token: u64,
    expires_at_ms: u64,
    #[serde(default)]
    ttl_ms: u64,
}

impl Moved {
    /// As it goes to another node.
    pub fn write(&self) -> Option<Vec<u8>> {
        let Moved { token, turn, withdrawn, kept, inbox } = self;
        let rooms = kept.rooms.iter().map(|kept| {
            let selection = match &kept.selection {
                Some(selection) => Some(serde_json::from_str(&selection.text(usize::MAX)).ok()?),
                None => None,
            };
            let from = match &kept.from {
                Since::Seq { seq, epoch } => WrittenSince::Seq { seq: *seq, epoch: epoch.clone() },
                Since::Last(count) => WrittenSince::Last(*count),
                Since::Seconds(seconds) => WrittenSince::Seconds(*seconds),
                Since::Time(unix_ms) => WrittenSince::Time(*unix_ms),
            };
            let (room, acked, namespaces) = (kept.room.as_str().to_owned(), kept.acked, kept.namespaces);
            Some(WrittenRoom { room, selection, from, acked, namespaces, delta: kept.delta })
        });
        let locks = kept.locks.iter().map(|lock| WrittenLock {
            room: lock.room.as_str().to_owned(),
            field: lock.field.to_string(),
            token: lock.token,
            expires_at_ms: lock.expires_at_ms,
            ttl_ms: lock.ttl_ms,
        });
        let written = Written {
            token: format!("{:032x}", u128::from_be_bytes(*token)),
            turn: turn.number(),
            withdrawn: withdrawn.clone(),
            rooms: rooms.collect::<Option<Vec<_>>>()?,
            metadata: kept.metadata.clone(),
            namespaces: kept.namespaces,
            locks: locks.collect(),
            inbox: inbox.iter().map(|message| STANDARD.encode(message)).collect(),
        };
        serde_json::to_vec(&written).ok()
    }

    /// What [`Moved::write`] made; none where it can't be read.
    pub fn read(text: &[u8], hasher: &NameHasher, now: Now) -> Option<Moved> {
        let written: Written = serde_json::from_slice(text).ok()?;
        let rooms = written.rooms.into_iter().map(|written| {
            let WrittenRoom { room, selection, from, acked, namespaces, delta } = written;
            let selection = match selection {
                Some(WrittenSelection { types, filters }) => {
                    let filters = filters.map(|filters| Box::<str>::from(filters).into_boxed_bytes());
                    Selection::compile(&Wanted { types, filters }, CONDITIONS_MAX).ok()?.map(Arc::new)
                }
                None => None,
            };
            let from = match from {
                WrittenSince::Seq { seq, epoch } => Since::Seq { seq, epoch },
                WrittenSince::Last(count) => Since::Last(count),
                WrittenSince::Seconds(seconds) => Since::Seconds(seconds),
                WrittenSince::Time(unix_ms) => Since::Time(unix_ms),
            };
            Some(KeptRoom { room: hasher.room(&room), selection, from, acked, namespaces, delta })
        });
        let locks = written.locks.into_iter().map(|lock| HeldLock {
            room: hasher.room(&lock.room),
            field: lock.field.into(),
            token: lock.token,
            until_ms: now.monotonic_us / 1000 + lock.expires_at_ms.saturating_sub(now.unix_ms),
            expires_at_ms: lock.expires_at_ms,
            ttl_ms: lock.ttl_ms,
        });
        Some(Moved {
            token: u128::from_str_radix(&written.token, 16).ok()?.to_be_bytes(),
            turn: Turn::of_number(written.turn),
            withdrawn: written.withdrawn,
            kept: Kept {
                rooms: rooms.collect::<Option<Vec<_>>>()?,
                metadata: written.metadata,
                locks: locks.collect(),
                namespaces: written.namespaces,
            },
            inbox: written.inbox.iter().filter_map(|text| STANDARD.decode(text).ok().map(Bytes::from)).collect(),
        })
    }
}

impl Core {
    /// Gives a session to another node; a connection that holds it is closed first, and what it had goes along.
    pub fn yield_session(&mut self, asked: YieldAsked) {
        let Some(asked) = self.await_yield(asked) else { return };
        let id = self.rooms.find(&asked.room);
        let have_left = self.yielding.contains_key(&asked.room);
        let session = id.and_then(|id| self.home_mut(id)).and_then(|home| home.session.as_mut());
        let (Some(id), Some(session)) = (id, session) else {
            let error = Refused::new(ErrorCode::NotFound, "there is no such session");
            return asked.responder.resolve(Err(error.into()));
        };
        let may_have_it = match &asked.token {
            Some(token) => session.may_be_resumed(&asked.user_id, token),
            None => *session.identity.user_id == *asked.user_id,
        };
        if !may_have_it {
            let error =
                Refused::new(ErrorCode::Forbidden, "the session is another user's, or the token is not its own");
            return asked.responder.resolve(Err(error.into()));
        }
        if let Some(holder) = session.live {
            // It tells what it had when it goes.
            let room = asked.room.clone();
            self.begin_handover(room.clone(), holder, Begins::Name);
            // There is room for the first one that waits.
            drop(self.await_yield(asked));
            self.send(holder.shard, Message::TakenOver { address: holder, room, successor: None });
            return;
        }
        if !have_left && let Some(kept) = session.kept_mut().filter(|kept| !kept.locks.is_empty()) {
            let (locks, turn) = (std::mem::take(&mut kept.locks), session.turn);
            return self.yield_locks(asked, locks, turn);
        }
        let Some(mut session) = self.home_mut(id).and_then(|home| home.session.take()) else { return };
        let mut kept = session.take_kept().map(|kept| *kept).unwrap_or_default();
        let left = self.yielding.remove(&asked.room).map(|yielding| yielding.left);
        kept.locks = left.unwrap_or_default().into_iter().map(|left| left.lock).collect();
        self.moves_away(&asked.room, &session, &kept);
        let moved = Moved {
            token: session.token,
            turn: session.turn,
            withdrawn: session.identity.permissions.withdrawn().map(|all| all.to_vec()).unwrap_or_default(),
            kept,
            inbox: session.take_inbox(),
        };
        if let Err(Ok(moved)) = asked.responder.try_resolve(Ok(moved)) {
            // Nobody wants it any more: it stays.
            let identity = session.identity.clone();
            self.install_session(asked.room, &identity, moved);
            return;
        }
        self.rooms.forget_if_idle(id);
    }

    /// The locks of a session leave first, so that each ends at one node; the session goes when the last of them has left.
    fn yield_locks(&mut self, asked: YieldAsked, locks: Vec<HeldLock>, turn: Turn) {
        let room = asked.room.clone();
        self.begin_handover(room.clone(), NOBODY, Begins::Name);
        // There is room for the first one that waits.
        drop(self.await_yield(asked));
        self.yielding.insert(room.clone(), Yielding { waiting: locks.len(), left: Vec::new() });
        for lock in locks {
            let to = lock.room.clone();
            self.send_home(&to, Message::LockLeaves { lock, session: room.clone(), turn });
        }
    }

    /// A lock of a session that goes to another node has left its room's home.
    pub(super) fn lock_left(&mut self, room: &RoomName, lock: Option<Box<LockArrived>>) {
        let Some(yielding) = self.yielding.get_mut(room) else { return };
        yielding.left.extend(lock.map(|lock| *lock));
        yielding.waiting = yielding.waiting.saturating_sub(1);
        if yielding.waiting > 0 {
            return;
        }
        // The node that wants the session was the first to wait, and takes them.
        self.handover_settled(room, NOBODY);
        let stayed = self.yielding.remove(room).map(|yielding| yielding.left);
        for arrived in stayed.into_iter().flatten() {
            let lock = arrived.lock.clone();
            self.send_home(&lock.room.clone(), Message::LockArrives(Box::new(arrived)));
            let session = self.rooms.find(room).and_then(|id| self.home_mut(id)).and_then(|home| home.session.as_mut());
            match session.and_then(|session| session.kept_mut()) {
                Some(kept) => kept.locks.push(lock),
                None => self.free_locks(vec![lock], Freed::SessionEnded),
            }
        }
    }

    /// Its rooms' homes learn that the session is elsewhere.
    fn moves_away(&mut self, own: &RoomName, session: &SessionHome, kept: &Kept) {
        let who = Who {
            client_id: "".into(),
            session_id: own.as_str().strip_prefix("session:").unwrap_or_default().into(),
            identity: session.identity.clone(),
            metadata: kept.metadata.clone(),
            turn: session.turn,
        };
        let who = Arc::new(who);
        for KeptRoom { room, .. } in &kept.rooms {
            let changed = PresenceChange { room: room.clone(), who: who.clone(), change: Change::Moved };
            self.send_home(room, Message::Presence(Box::new(changed)));
        }
    }

    /// Takes in a session that another node gave away. It is as if its connection had just gone.
    pub(super) fn install_session(&mut self, room: RoomName, identity: &Arc<Identity>, moved: Moved) {
        let Moved { token, turn, withdrawn, mut kept, inbox } = moved;
        let away_until_ms = self.now.monotonic_us / 1000 + self.limits.session_away_ms;
        let rooms_max = self.limits.rooms_per_session_max;
        for lock in &kept.locks {
            let session_id = room.as_str().strip_prefix("session:").unwrap_or_default().into();
            // Which of its connections had it last, the broker tells.
            let who = Holder { client_id: "".into(), session_id, identity: identity.clone() };
            let arrived = LockArrived { lock: lock.clone(), who, turn: turn.next(self.now.unix_ms) };
            self.send_home(&lock.room.clone(), Message::LockArrives(Box::new(arrived)));
        }
        let Some(id) = self.ensure_home(&room) else { return };
        let Some(home) = self.home_mut(id) else { return };
        let identity = match withdrawn.is_empty() {
            true => identity.clone(),
            false => Arc::new(identity.without(&withdrawn)),
        };
        let session = home.session.get_or_insert_with(|| {
            let mut session = SessionHome::new(identity, token);
            session.turn = turn;
            Box::new(session)
        });
        if let Some(earlier) = session.take_kept() {
            kept.add_earlier(*earlier, rooms_max);
        }
        session.keep(Some(Box::new(kept)), away_until_ms);
        for message in inbox.into_iter().rev() {
            session.put_back(message);
        }
        self.away.push_back((away_until_ms, room));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_read_as_it_is_written() {
        let hasher = NameHasher::new(7);
        let now = Now { monotonic_us: 5_000_000, unix_ms: 1_700_000_000_000 };
        let filters = br#"{"level":{"min":0.5},"any":[{"a":"x"},{"b":{"not":{"in":[1,"y",null]}}}]}"#;
        let wanted = Wanted { types: vec!["b".into(), "a".into()], filters: Some(filters.to_vec().into()) };
        let selection = Selection::compile(&wanted, 100).expect("compiles").map(Arc::new);
        assert!(selection.is_some());
        let room = |name: &str, selection: &Option<Arc<Selection>>, from| KeptRoom {
            room: hasher.room(name),
            selection: selection.clone(),
            from,
            acked: Some(3),
            namespaces: 5,
            delta: selection.is_none(),
        };
        let lock = HeldLock {
            room: hasher.room("quote:1"),
            field: "price".into(),
            token: 9,
            until_ms: 5_000 + 30_000,
            expires_at_ms: now.unix_ms + 30_000,
            ttl_ms: 40_000,
        };
        let moved = Moved {
            token: *b"0123456789abcdef",
            turn: Turn::default().next(12).next(13),
            withdrawn: Vec::new(),
            kept: Kept {
                rooms: vec![
                    room("project:1", &selection, Since::Seq { seq: 7, epoch: Some("e".into()) }),
                    room("project:ü", &None, Since::Time(99)),
                ],
                metadata: serde_json::from_str(r#"{"tab":[1,2.5]}"#).expect("an object"),
                locks: vec![lock.clone()],
                namespaces: 3,
            },
            inbox: vec![Bytes::from_static(b"\xff\x00"), Bytes::from_static(b"{}")],
        };
        let read = Moved::read(&moved.write().expect("written"), &hasher, now).expect("read");
        assert_eq!((read.token, read.turn, read.kept.namespaces), (moved.token, moved.turn, 3));
        assert_eq!((read.kept.metadata, read.kept.locks, read.inbox), (moved.kept.metadata, vec![lock], moved.inbox));
        for (read, given) in read.kept.rooms.iter().zip(&moved.kept.rooms) {
            assert_eq!(
                (read.room.as_str(), &read.selection, &read.from),
                (given.room.as_str(), &given.selection, &given.from)
            );
            assert_eq!((read.acked, read.namespaces, read.delta), (Some(3), 5, given.delta));
        }
        assert!(Moved::read(b"{}", &hasher, now).is_none());
    }
}
