//! Field locks whose session goes from one node to another.
//!
//! ```text
//! node that has it: the locks leave their homes ─► the session goes, with what left
//! node that wants it: the session's home ─► homes of the locks' rooms ─► the broker holds them through this node
//! ```
//!
//! Nobody is told: each lock is the session's all the time, under the number that it was granted with. The broker keeps it
//! meanwhile, and frees nothing that a node frees through which a lock is not held any more.
//!
//! What left may never arrive: the other node may have given up waiting for it. So the node that had it asks the broker now
//! and then through which one it is held. Where it ends without having been held through another, its end is told here; by
//! its number both can say so, and it is told once. Until it is known what has become of it, it stays noted as this node's
//! ([`Core::note_lock`]), so that its end is told as well should this node die meanwhile.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::hash_map::Entry;

use super::batch::Address;
use super::brokered::{Locked, SharedLock};
use super::core::Core;
use super::lock::{Held, Holder};
use super::locks::{Freed, HeldLock, LockArrived, LockAsked, held_lock};
use super::message::Message;
use super::name::{RoomName, ShardId};
use super::presence::Turn;
use super::shared_locks::{CALLS_MAX, LockWait, TTL_MAX_MS, Unfreed};
use crate::ring::ConnKey;
use crate::wire::native::Refused;

/// How long a lock that has left is waited for before the broker is asked, and the longest until it is asked again.
const LOOK_WAIT_MS: u64 = 500;
const LOOK_WAIT_MAX_MS: u64 = 8000;
/// Of how many locks the broker is asked in a second.
const LOOKS_MAX: usize = 5000;

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
    holder: Holder,
    token: u64,
    /// The turn of the last connection that the session had here.
    turn: Turn,
    /// When it ends, should nobody have renewed it elsewhere, in milliseconds of the monotonic clock.
    until_ms: u64,
    fate: Fate,
}

impl Left {
    /// Whether its end may have to be told here.
    pub(super) fn is_unsettled(&self) -> bool {
        self.fate != Fate::Known
    }
}

/// What is known of a lock that has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// The broker knows of no other node, and is asked at that time; again after so long.
    Unknown { look_ms: u64, wait_ms: u64 },
    /// The broker is being asked.
    Asked { wait_ms: u64 },
    /// It has ended. Where that was at the other node, it is being told there.
    Ended,
    /// It has arrived, or its end was told.
    Known,
}

impl Core {
    /// Whether a lock is asked for by a connection whose session has gone to another node, and taken the lock along: before
    /// that node has told the broker, it would be given to this one once more, and that would end the session's.
    pub(super) fn has_left(&self, asked: &LockAsked) -> bool {
        let left = self.relaying.as_deref().map(|relaying| &relaying.left).filter(|left| !left.is_empty());
        let left = left.and_then(|left| left.get(&(asked.room.clone(), asked.field.clone())));
        left.is_some_and(|left| left.holder.session_id == asked.who.session_id && asked.turn <= left.turn)
    }

    /// Sees to it that what left has arrived, or that its end is told; to be called once a second. Forgets what would have
    /// ended by now: where it was renewed elsewhere, the broker knows it.
    pub(super) fn look_after_left(&mut self) {
        let now_ms = self.now.monotonic_us / 1000;
        let Some(relaying) = self.relaying.as_deref_mut().filter(|relaying| !relaying.left.is_empty()) else { return };
        let mut room_for = CALLS_MAX.saturating_sub(relaying.locks.len()).min(LOOKS_MAX);
        let (mut looks, mut ended) = (Vec::new(), Vec::new());
        relaying.left.retain(|(room, field), left| {
            match left.fate {
                Fate::Unknown { look_ms, wait_ms } if look_ms.min(left.until_ms) <= now_ms && room_for > 0 => {
                    room_for -= 1;
                    left.fate = Fate::Asked { wait_ms };
                    looks.push((room.clone(), field.clone(), left.token));
                }
                Fate::Ended => {
                    left.fate = Fate::Known;
                    ended.push((room.clone(), field.clone(), left.token, left.holder.clone()));
                }
                Fate::Unknown { .. } | Fate::Asked { .. } | Fate::Known => {}
            }
            left.fate != Fate::Known || left.until_ms > now_ms
        });
        if relaying.left.is_empty() {
            relaying.left.shrink_to_fit();
        }
        for (room, field, token) in looks {
            let wait = LockWait::Looked { room: room.clone(), field: field.clone(), token };
            self.call_lock(room, field, SharedLock::Look { token }, wait);
        }
        for (room, field, token, holder) in ended {
            self.lock_event(&room, "lock.expired", &field, token, &holder, |_| {});
            self.note_lock(&room, &field, token, &holder, false);
        }
    }

    /// The broker has said through which node a lock is held that has left.
    pub(super) fn left_looked(
        &mut self,
        room: RoomName,
        field: Arc<str>,
        token: u64,
        outcome: Result<Locked, Refused>,
    ) {
        let now_ms = self.now.monotonic_us / 1000;
        let name = (room, field);
        let left = self.relaying.as_deref_mut().and_then(|relaying| relaying.left.get_mut(&name));
        let Some(left) = left.filter(|left| left.token == token) else { return };
        let Fate::Asked { wait_ms } = left.fate else { return };
        left.fate = match outcome {
            Ok(Locked::Elsewhere) => Fate::Known,
            Ok(Locked::NotHeld) => Fate::Ended,
            // The other node may be about to tell the broker, which takes an answer's time, or can't, which takes longer.
            Ok(_) | Err(_) => Fate::Unknown { look_ms: now_ms + wait_ms, wait_ms: (2 * wait_ms).min(LOOK_WAIT_MAX_MS) },
        };
        if left.fate == Fate::Known {
            let holder = left.holder.clone();
            self.note_lock(&name.0, &name.1, token, &holder, false);
        }
    }

    /// An event of a room tells that a lock has ended: should it have left this node, nobody has to look after it any more.
    pub(super) fn left_has_ended(&mut self, room: &RoomName, field: &Arc<str>, token: u64) {
        let left =
            self.relaying.as_deref_mut().and_then(|relaying| relaying.left.get_mut(&(room.clone(), field.clone())));
        let Some(left) = left.filter(|left| left.token == token && left.fate != Fate::Known) else { return };
        left.fate = Fate::Known;
        let holder = left.holder.clone();
        self.note_lock(room, field, token, &holder, false);
    }

    /// Notes a lock that leaves.
    fn note_left(&mut self, room: &RoomName, field: &Arc<str>, left: Left) {
        let Some(relaying) = self.relaying.as_deref_mut() else { return };
        let before = relaying.left.insert((room.clone(), field.clone()), left);
        if let Some(Left { holder, token, .. }) = before.filter(|before| before.fate != Fate::Known) {
            // Another session could have the field after it, so it has ended.
            self.lock_event(room, "lock.expired", field, token, &holder, |_| {});
            self.note_lock(room, field, token, &holder, false);
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
            let fate = Fate::Unknown { look_ms: self.now.monotonic_us / 1000 + LOOK_WAIT_MS, wait_ms: LOOK_WAIT_MS };
            let holder = held.holder.clone();
            self.note_left(room, field, Left { holder, token: *token, turn, until_ms: held.until_ms, fate });
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
            // There are too many. It is held through the node that it has left for as long as the session was told, and its
            // end is told there, be that this one.
            return;
        }
        // It may have been here before: what becomes of it is seen to as of any other of this node again.
        let before = self.relaying.as_deref_mut().map(|relaying| relaying.left.entry((room.clone(), field.clone())));
        if let Some(Entry::Occupied(entry)) = before
            && entry.get().token == token
        {
            entry.remove();
            self.note_lock(&room, &field, token, &who, false);
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
        let Some(relaying) = self.relaying.as_deref_mut() else { return };
        let name = (room, field);
        // Where it has gone on, the next node tells of it. Where it has ended, the broker has to know it to be this node's
        // before it frees it.
        if until_ms.flatten().is_none() && relaying.left.get(&name).is_some_and(|left| left.token == token) {
            return;
        }
        let until_ms = until_ms.flatten().unwrap_or(now_ms + 1);
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
                let has_left = self.relaying.as_deref().is_some_and(|relaying| {
                    relaying.left.get(&(room.clone(), field.clone())).is_some_and(|left| left.token == token)
                });
                if self.token_of(&room, &field) == Some(token) {
                    self.with_lock(&room, &field, |lock| lock.name_holder(token, &owner.client_id));
                } else if !has_left {
                    // It ended here before the broker knew of it.
                    let until_ms = self.now.monotonic_us / 1000 + TTL_MAX_MS;
                    self.free_shared(Unfreed { room: room.clone(), field: field.clone(), token, until_ms });
                }
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
