//! Field locks whose session goes from one node to another.
//!
//! ```text
//! node that has it: the locks leave their homes ─► the session goes, with what left
//! node that wants it: the session's home ─► homes of the locks' rooms ─► the broker holds them through this node
//! ```
//!
//! Nobody is told: each lock is the session's all the time, under the number that it was granted with. The broker keeps it
//! meanwhile, and frees nothing that a node frees through which a lock is not held any more.

use std::collections::VecDeque;
use std::sync::Arc;

use super::batch::Address;
use super::brokered::{Locked, SharedLock};
use super::core::Core;
use super::lock::Held;
use super::locks::{Freed, HeldLock, LockArrived, LockAsked, held_lock};
use super::message::Message;
use super::name::{RoomName, ShardId};
use super::presence::Turn;
use super::shared_locks::{CALLS_MAX, LockWait, TTL_MAX_MS};
use crate::ring::ConnKey;
use crate::wire::native::Refused;

/// No connection: who holds a lock has come from another node, and has none here yet.
pub(super) const NOBODY: Address = Address { shard: ShardId(0), conn: ConnKey { slot: u32::MAX, generation: 0 } };

/// A lock that came with its session, which the broker has to be told.
#[derive(Debug)]
pub(super) struct Moved {
    room: RoomName,
    field: Arc<str>,
    token: u64,
    turn: Turn,
    /// Whether what is asked of the lock meanwhile waits for this answer.
    is_awaited: bool,
}

/// A lock that has left with its session.
#[derive(Debug)]
pub(super) struct Left {
    session_id: Arc<str>,
    /// The turn of the last connection that the session had here.
    turn: Turn,
    /// When it ends, should nobody have renewed it elsewhere, in milliseconds of the monotonic clock.
    until_ms: u64,
}

impl Core {
    /// Whether a lock is asked for by a connection whose session has gone to another node, and taken the lock along: before
    /// that node has told the broker, it would be given to this one once more, and that would end the session's.
    pub(super) fn has_left(&self, asked: &LockAsked) -> bool {
        let left = self.relaying.as_deref().map(|relaying| &relaying.left).filter(|left| !left.is_empty());
        let left = left.and_then(|left| left.get(&(asked.room.clone(), asked.field.clone())));
        left.is_some_and(|left| left.session_id == asked.who.session_id && asked.turn <= left.turn)
    }

    /// Forgets what left and has ended since, unless it was renewed elsewhere, of which the broker knows then.
    pub(super) fn forget_left(&mut self) {
        let now_ms = self.now.monotonic_us / 1000;
        if let Some(relaying) = self.relaying.as_deref_mut() {
            relaying.left.retain(|_, left| left.until_ms > now_ms);
            if relaying.left.is_empty() {
                relaying.left.shrink_to_fit();
            }
        }
    }

    /// A session goes to another node and takes a lock along: nobody is told, and the broker keeps it for the session.
    pub(super) fn lock_leaves(&mut self, lock: &HeldLock, session: RoomName, turn: Turn) {
        // What is over does not go along.
        self.expire_locks();
        let HeldLock { room, field, token, .. } = lock;
        // So many can't be told from what is asked anew: it ends here.
        if self.relaying.as_deref().is_none_or(|relaying| relaying.left.len() >= CALLS_MAX) {
            self.free_lock(room, field, Some(*token), Freed::SessionEnded);
        }
        let held = self.with_lock(room, field, |lock| lock.leave(*token)).flatten();
        let lock = held.map(|held| {
            self.locks.figures.held = self.locks.figures.held.saturating_sub(1);
            self.note_lock(room, field, *token, &held.holder, false);
            if let Some(relaying) = self.relaying.as_deref_mut() {
                let left = Left { session_id: held.holder.session_id.clone(), turn, until_ms: held.until_ms };
                relaying.left.insert((room.clone(), field.clone()), left);
            }
            let turn = Turn::default();
            Box::new(LockArrived { lock: held_lock(room, field, &held), who: held.holder, turn })
        });
        if let Some(id) = self.rooms.find(room) {
            self.rooms.forget_if_idle(id);
        }
        self.send_home(&session.clone(), Message::LockLeft { session, lock });
    }

    /// A session has come from another node and has this lock. What it is told to have it has, until the broker says that
    /// it is over.
    pub(super) fn lock_arrives(&mut self, arrived: LockArrived) {
        self.expire_locks();
        let LockArrived { lock, who, turn } = arrived;
        let HeldLock { room, field, token, until_ms, expires_at_ms, ttl_ms } = lock;
        if self.ensure_lock(&room, &field).is_err() {
            // There are too many; it ends at the broker by its time.
            return self.lock_event(&room, "lock.expired", &field, token, &who, |_| {});
        }
        let held = Held { token, until_ms, expires_at_ms, ttl_ms, address: NOBODY, holder: who.clone() };
        let arrived = self.with_lock(&room, &field, |lock| lock.arrive(held));
        match arrived {
            Some(Ok(before)) => {
                if let Some(before) = before {
                    self.note_lock(&room, &field, before.token, &before.holder, false);
                    self.lock_event(&room, "lock.expired", &field, before.token, &before.holder, |_| {});
                } else {
                    self.locks.figures.held += 1;
                }
                self.note_lock(&room, &field, token, &who, true);
                // Its time may have come on the way, of which only this node can tell.
                self.expire_locks();
                self.tell_moved(Moved { room, field, token, turn, is_awaited: false });
            }
            // It ended on the way, and another session has the field by now.
            Some(Err(held)) if self.token_of(&room, &field) != Some(token) => {
                self.lock_event(&room, "lock.expired", &field, token, &held.holder, |_| {});
            }
            Some(Err(_)) | None => {}
        }
    }

    fn token_of(&mut self, room: &RoomName, field: &Arc<str>) -> Option<u64> {
        self.with_lock(room, field, |lock| lock.held().map(|held| held.token)).flatten()
    }

    /// Has the broker know that a lock is held through this node, for as long as its session was told.
    pub(super) fn tell_moved(&mut self, moved: Moved) {
        let Moved { room, field, token, turn, .. } = moved;
        let now_ms = self.now.monotonic_us / 1000;
        let until_ms = self
            .with_lock(&room, &field, |lock| lock.held().filter(|held| held.token == token).map(|held| held.until_ms));
        let Some(until_ms) = until_ms.flatten() else { return };
        let Some(relaying) = self.relaying.as_deref_mut() else { return };
        let name = (room, field);
        if relaying.locks.len() >= CALLS_MAX {
            let (room, field) = name;
            return relaying.unmoved.push(Moved { room, field, token, turn, is_awaited: false });
        }
        let is_awaited = !relaying.asking.contains_key(&name);
        if is_awaited {
            relaying.asking.insert(name.clone(), VecDeque::new());
        }
        let (room, field) = name;
        let ttl_ms = until_ms.saturating_sub(now_ms).min(TTL_MAX_MS);
        let wait = LockWait::Moved(Moved { room: room.clone(), field: field.clone(), token, turn, is_awaited });
        self.call_lock(room, field, SharedLock::Renew { token, ttl_ms, turn: turn.number() }, wait);
    }

    pub(super) fn lock_has_moved(&mut self, moved: Moved, outcome: Result<Locked, Refused>) {
        self.expire_locks();
        let Moved { room, field, token, turn, is_awaited } = moved;
        match outcome {
            Ok(Locked::Renewed { owner }) => {
                self.with_lock(&room, &field, |lock| lock.name_holder(token, &owner.client_id));
            }
            // It ended on the way. Its session is told when it does something with it.
            Ok(_) => self.end_lost(&room, &field, token),
            Err(_) => {
                if let Some(relaying) = self.relaying.as_deref_mut() {
                    let (room, field) = (room.clone(), field.clone());
                    relaying.unmoved.push(Moved { room, field, token, turn, is_awaited: false });
                }
            }
        }
        if is_awaited {
            self.ask_next(room, field);
        }
    }
}
