//! Field locks where several nodes share their rooms: who has one is decided at the broker, which gives the number.
//!
//! Each node keeps what its own sessions hold, as it does without a broker, and ends that by its own clock: from when the
//! broker was asked, not from when it answered, so that a holder has lost its lock before anybody else can have it. What a
//! node frees it has the broker free as well; should that fail, it is said again until the lock would have ended anyway.

use std::collections::VecDeque;
use std::sync::Arc;

use super::batch::Address;
use super::brokered::{BrokeredEvent, LockCall, LockOwner, Locked, SharedLock, ToBroker};
use super::core::Core;
use super::lock::{Held, Holder, LockHeld};
use super::locks::{Freed, HeldLock, LockAsked, LockOutcome, LockTold, held_lock};
use super::moved_locks::Moved;
use super::name::RoomName;
use super::reply::Responder;
use super::rooms::RoomId;
use crate::auth::Identity;
use crate::ring::Now;
use crate::wire::codes::ErrorCode;
use crate::wire::lock_commands::LockAction;
use crate::wire::native::Refused;

/// The answer while it can't be known who has a lock.
const UNDECIDED: Refused =
    Refused::new(ErrorCode::Unavailable, "the broker can't be reached right now; ask for the lock again");
/// The answer where the session has taken the lock along.
const ELSEWHERE: Refused = Refused::new(ErrorCode::Unavailable, "the session is at another node now");
/// Calls about locks that may wait for an answer.
pub(super) const CALLS_MAX: usize = 100_000;
/// What may be asked of one lock while the broker is asked.
const ASKING_MAX: usize = 1024;

/// Longer than any lock is held.
pub(super) const TTL_MAX_MS: u64 = 3_600_000;
/// A call about a lock that is not answered yet.
#[derive(Debug)]
pub(super) enum LockWait {
    /// A client wants to have it, or to have it for longer.
    Asked {
        asked: Box<LockAsked>,
        ttl_ms: u64,
        /// When the broker was asked.
        at: Now,
    },
    /// A session has brought it along from another node: from the answer on it is held through this one.
    Moved(Moved),
    /// It has left with its session, and it is to be known whether it has arrived.
    Looked { room: RoomName, field: Arc<str>, token: u64 },
    /// It has ended here.
    Freed(Unfreed),
    /// A node has died that had it.
    OfDead { room: RoomName, noted: NotedLock, responder: Responder<()> },
    /// An operator wants it freed, and nobody here has it.
    Forced { room: RoomName, field: Arc<str>, responder: Responder<bool> },
}

/// A lock that has ended here, and is not known to be free elsewhere.
#[derive(Debug)]
pub(super) struct Unfreed {
    pub(super) room: RoomName,
    pub(super) field: Arc<str>,
    pub(super) token: u64,
    /// When it would have ended anyway, in milliseconds of the monotonic clock.
    pub(super) until_ms: u64,
}

/// A lock as other nodes have to know it to free it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NotedLock {
    /// The field.
    pub field: Box<str>,
    /// The number that it is held with.
    pub token: u64,
    /// Whose it is.
    pub owner: LockOwner,
    /// The run of the node through which it is held.
    #[serde(default)]
    pub node: u64,
}

impl Core {
    /// Asks the broker for a lock, or to have it for longer, where nodes share their locks; gives back what is done here.
    pub(super) fn lock_of_all_nodes(&mut self, asked: LockAsked) -> Option<LockAsked> {
        if !self.is_relaying() {
            return Some(asked);
        }
        let (room, field, now) = (asked.room.clone(), asked.field.clone(), self.now);
        let is_release = matches!(asked.action, LockAction::Release { .. });
        let asking =
            self.relaying.as_deref_mut().and_then(|relaying| relaying.asking.get_mut(&(room.clone(), field.clone())));
        if let Some(asking) = asking.filter(|_| !is_release) {
            // What comes of it depends on the answer to those before.
            if asking.len() < ASKING_MAX {
                asking.push_back(asked);
            } else {
                self.lock_answered(asked, LockOutcome::Refused(super::message::OVERLOADED));
            }
            return None;
        }
        let turn = asked.turn.number();
        let (action, ttl_ms) = match &asked.action {
            LockAction::Acquire { ttl_s } => {
                let ttl_ms = ttl_s * 1000;
                match self.may_have(&asked) {
                    Ok(Some(token)) => (SharedLock::Renew { token, ttl_ms, turn }, ttl_ms),
                    Ok(None) if self.has_left(&asked) => {
                        self.lock_answered(asked, LockOutcome::Refused(ELSEWHERE));
                        return None;
                    }
                    Ok(None) => {
                        let holder = owner(&asked.who);
                        let session = Arc::from(&*asked.who.session_id);
                        (SharedLock::Acquire { ttl_ms, session, holder, turn }, ttl_ms)
                    }
                    Err(outcome) => {
                        self.lock_answered(asked, outcome);
                        return None;
                    }
                }
            }
            LockAction::Renew { token, ttl_s } => {
                let token = *token;
                let held = self.held_with(&room, &field, token);
                let Some(held_for_ms) = held else {
                    self.lock_answered(asked, LockOutcome::Lost { token });
                    return None;
                };
                let ttl_ms = ttl_s.map_or(held_for_ms, |seconds| seconds * 1000);
                (SharedLock::Renew { token, ttl_ms, turn }, ttl_ms)
            }
            // What is here is freed here, and then there.
            LockAction::Release { .. } => return Some(asked),
        };
        let is_full = self.relaying.as_deref().is_some_and(|relaying| relaying.locks.len() >= CALLS_MAX);
        if is_full {
            self.lock_answered(asked, LockOutcome::Refused(super::message::OVERLOADED));
            return None;
        }
        if let Some(relaying) = self.relaying.as_deref_mut() {
            relaying.asking.insert((room.clone(), field.clone()), VecDeque::new());
        }
        self.call_lock(room, field, action, LockWait::Asked { asked: Box::new(asked), ttl_ms, at: now });
        None
    }

    /// Whether a session may have a lock as far as this node knows: the number that it has it with already.
    fn may_have(&mut self, asked: &LockAsked) -> Result<Option<u64>, LockOutcome> {
        let now = self.now;
        let LockAsked { room, field, address, who, known, .. } = asked;
        self.ensure_lock(room, field).map_err(LockOutcome::Refused)?;
        let checked = self.with_lock(room, field, |lock| {
            let is_its_own = lock.check(*address, who, *known, now)?;
            Ok(lock.held().filter(|_| is_its_own).map(|held| held.token))
        });
        match checked {
            Some(Ok(token)) => Ok(token),
            Some(Err(held)) => {
                self.locks.figures.refused += 1;
                Err(LockOutcome::Held(held))
            }
            None => Err(LockOutcome::Refused(super::message::OVERLOADED)),
        }
    }

    /// For how long a lock was asked for last, if it is held with that number.
    fn held_with(&mut self, room: &RoomName, field: &Arc<str>, token: u64) -> Option<u64> {
        self.with_lock(room, field, |lock| lock.held().filter(|held| held.token == token).map(|held| held.ttl_ms))?
    }

    pub(super) fn call_lock(&mut self, room: RoomName, field: Arc<str>, action: SharedLock, wait: LockWait) {
        let Some(relaying) = self.relaying.as_deref_mut() else { return };
        relaying.number += 1;
        // A dead node's are freed as it would have.
        let node = if let LockWait::OfDead { noted, .. } = &wait { noted.node } else { relaying.node };
        let number = relaying.number;
        relaying.locks.insert(number, wait);
        relaying.out.push(ToBroker::Lock(Box::new(LockCall { room, field, number, node, action })));
    }

    fn lock_answered(&mut self, asked: LockAsked, outcome: LockOutcome) {
        let LockAsked { room, field, address, who, known, reference, .. } = asked;
        let told =
            LockTold { room: room.clone(), field, address, session_id: who.session_id, known, reference, outcome };
        self.tell_lock(told);
        if let Some(id) = self.rooms.find(&room) {
            self.rooms.forget_if_idle(id);
        }
    }

    /// The broker has said what became of a call.
    pub(super) fn locked(&mut self, number: u64, outcome: Result<Locked, Refused>) {
        let wait = self.relaying.as_deref_mut().and_then(|relaying| relaying.locks.remove(&number));
        match wait {
            Some(LockWait::Asked { asked, ttl_ms, at }) => self.lock_decided(*asked, ttl_ms, at, outcome),
            Some(LockWait::Moved(moved)) => self.lock_has_moved(moved, outcome),
            Some(LockWait::Looked { room, field, token }) => self.left_looked(room, field, token, outcome),
            Some(LockWait::Freed(unfreed)) => {
                if outcome.is_err()
                    && let Some(relaying) = self.relaying.as_deref_mut()
                {
                    relaying.unfreed.push(unfreed);
                }
            }
            Some(LockWait::OfDead { room, noted, responder }) => {
                responder.resolve(outcome.map(|locked| self.freed_of_dead(&room, noted, &locked)).map_err(Into::into));
            }
            Some(LockWait::Forced { room, field, responder }) => {
                self.forced_elsewhere(&room, &field, outcome, responder)
            }
            None => {}
        }
    }

    fn lock_decided(&mut self, asked: LockAsked, ttl_ms: u64, at: Now, outcome: Result<Locked, Refused>) {
        self.expire_locks();
        let (room, field) = (asked.room.clone(), asked.field.clone());
        let outcome = match (outcome, &asked.action) {
            (Ok(Locked::Granted { token }), _) => {
                let whose = (asked.address, asked.who.clone(), asked.known);
                let granted = self.grant_lock(&room, &field, whose, ttl_ms, at, token);
                let is_given = matches!(&granted, LockOutcome::Acquired { lock, .. } if lock.token == token);
                if is_given {
                    self.note_lock(&room, &field, token, &asked.who, true);
                } else {
                    let until_ms = at.monotonic_us / 1000 + ttl_ms;
                    let (room, field) = (room.clone(), field.clone());
                    self.free_shared(Unfreed { room, field, token, until_ms });
                }
                granted
            }
            (Ok(Locked::Held { left_ms, owner }), _) => {
                self.locks.figures.refused += 1;
                let expires_at_ms = self.now.unix_ms + left_ms;
                LockOutcome::Held(LockHeld { holder: Some(holder(owner)), expires_at_ms })
            }
            (Ok(Locked::Renewed { .. }), LockAction::Renew { token, .. }) => {
                let renewed = self.prolong(&room, &field, (asked.address, &asked.who), *token, ttl_ms, at);
                renewed.map_or(LockOutcome::Lost { token: *token }, LockOutcome::Renewed)
            }
            (Ok(Locked::Renewed { .. }), _) => {
                let token = self.with_lock(&room, &field, |lock| lock.held().map(|held| held.token)).flatten();
                let whose = (asked.address, &asked.who);
                let renewed = token.and_then(|token| self.prolong(&room, &field, whose, token, ttl_ms, at));
                // It ended while the broker was asked.
                let again = LockOutcome::Refused(UNDECIDED);
                renewed.map_or(again, |lock| LockOutcome::Acquired { lock, is_new: false })
            }
            (Ok(Locked::NotHeld | Locked::Elsewhere | Locked::Freed { .. }), action) => {
                // The broker has lost it, or an operator has freed it: it can be another's any moment.
                let token = match action {
                    LockAction::Renew { token, .. } => Some(*token),
                    _ => self.with_lock(&room, &field, |lock| lock.held().map(|held| held.token)).flatten(),
                };
                if let Some(token) = token {
                    self.end_lost(&room, &field, token);
                }
                match (action, token) {
                    (LockAction::Renew { .. }, Some(token)) => LockOutcome::Lost { token },
                    _ => LockOutcome::Refused(UNDECIDED),
                }
            }
            (Err(refused), _) => LockOutcome::Refused(refused),
        };
        self.lock_answered(asked, outcome);
        self.ask_next(room, field);
    }

    /// Goes on with what was asked of a lock meanwhile, until another call is made.
    pub(super) fn ask_next(&mut self, room: RoomName, field: Arc<str>) {
        let name = (room, field);
        let next = self.relaying.as_deref_mut().and_then(|relaying| relaying.asking.remove(&name)).unwrap_or_default();
        for asked in next {
            // The first one that has to wait keeps the others behind it.
            self.lock(asked);
        }
    }

    fn prolong(
        &mut self,
        room: &RoomName,
        field: &Arc<str>,
        (address, who): (Address, &Holder),
        token: u64,
        ttl_ms: u64,
        at: Now,
    ) -> Option<HeldLock> {
        let renewed = self.with_lock(room, field, |lock| {
            lock.renew(address, who.clone(), token, Some(ttl_ms), at).map(|held| held_lock(room, field, held))
        });
        renewed.flatten()
    }

    /// A lock that this node held for a session is not its own any more: members are told that it has ended.
    pub(super) fn end_lost(&mut self, room: &RoomName, field: &Arc<str>, token: u64) {
        let now_ms = self.now.monotonic_us / 1000;
        if let Some(held) = self.with_lock(room, field, |lock| lock.free(Some(token), now_ms)).flatten() {
            self.locks.figures.held = self.locks.figures.held.saturating_sub(1);
            self.locks.figures.expired += 1;
            self.note_lock(room, field, token, &held.holder, false);
            self.lock_event(room, "lock.expired", field, token, &held.holder, |_| {});
        }
    }

    pub(super) fn run_of_node(&self) -> u64 {
        self.relaying.as_deref().map_or(0, |relaying| relaying.node)
    }

    // ---- should this node die ----

    /// Notes a lock that this node holds for a session, or not any more: should the node die, another one frees it.
    pub(super) fn note_lock(&mut self, room: &RoomName, field: &Arc<str>, token: u64, who: &Holder, is_held: bool) {
        let noted = NotedLock { field: (**field).into(), token, owner: owner(who), node: self.run_of_node() };
        if let Some(relaying) = self.relaying.as_deref_mut() {
            relaying.noted_locks.push((room.clone(), noted, is_held));
        }
    }

    /// The locks that this node holds for sessions (true) or not any more since the last call, in order.
    pub fn take_noted_locks(&mut self) -> Vec<(RoomName, NotedLock, bool)> {
        self.relaying.as_deref_mut().map(|relaying| std::mem::take(&mut relaying.noted_locks)).unwrap_or_default()
    }

    /// A node has died that held this lock: anybody may have it, and members are told that it has ended, unless its session
    /// has taken it along to another node. Whoever asks for it asks again where the broker can't be reached.
    pub fn free_of_dead(&mut self, room: RoomName, noted: NotedLock, responder: Responder<()>) {
        let is_full = self.relaying.as_deref().is_some_and(|relaying| relaying.locks.len() >= CALLS_MAX);
        if is_full {
            return responder.resolve(Err(super::message::OVERLOADED.into()));
        }
        let (field, action) = (noted.field.as_ref().into(), SharedLock::Free { token: Some(noted.token) });
        self.call_lock(room.clone(), field, action, LockWait::OfDead { room, noted, responder });
    }

    fn freed_of_dead(&mut self, room: &RoomName, noted: NotedLock, locked: &Locked) {
        if *locked != Locked::Elsewhere {
            let NotedLock { field, token, owner, .. } = noted;
            self.lock_event(room, "lock.expired", &field, token, &holder(owner), |_| {});
        }
    }

    // ---- what ends ----

    /// A lock has ended here: it has to be free for all.
    pub(super) fn free_for_all_nodes(&mut self, room: &RoomName, field: &Arc<str>, held: &Held) {
        if self.is_relaying() {
            self.note_lock(room, field, held.token, &held.holder, false);
            let (room, field) = (room.clone(), field.clone());
            self.free_shared(Unfreed { room, field, token: held.token, until_ms: held.until_ms });
        }
    }

    pub(super) fn free_shared(&mut self, unfreed: Unfreed) {
        let (room, field) = (unfreed.room.clone(), unfreed.field.clone());
        let action = SharedLock::Free { token: Some(unfreed.token) };
        self.call_lock(room, field, action, LockWait::Freed(unfreed));
    }

    /// Says once more what the broker did not take; to be called once a second.
    pub(super) fn free_again(&mut self) {
        let now_ms = self.now.monotonic_us / 1000;
        // What came is told first: before that the broker frees nothing through this node.
        let unmoved = self.relaying.as_deref_mut().map(|relaying| std::mem::take(&mut relaying.unmoved));
        unmoved.into_iter().flatten().for_each(|moved| self.tell_moved(moved));
        let unfreed = self.relaying.as_deref_mut().map(|relaying| std::mem::take(&mut relaying.unfreed));
        for unfreed in unfreed.into_iter().flatten().filter(|unfreed| unfreed.until_ms > now_ms) {
            self.free_shared(unfreed);
        }
        self.look_after_left();
    }

    /// An operator wants a lock freed that nobody of this node holds.
    pub(super) fn force_elsewhere(&mut self, room: &RoomName, field: Arc<str>, responder: Responder<bool>) {
        let action = SharedLock::Free { token: None };
        let wait = LockWait::Forced { room: room.clone(), field: field.clone(), responder };
        self.call_lock(room.clone(), field, action, wait);
    }

    fn forced_elsewhere(
        &mut self,
        room: &RoomName,
        field: &Arc<str>,
        outcome: Result<Locked, Refused>,
        responder: Responder<bool>,
    ) {
        match outcome {
            Ok(Locked::Freed { token, owner }) => {
                // The node that held it for its session hears of it by this, as all members do.
                self.lock_event(room, "lock.released", field, token, &holder(owner), |data| {
                    data.extend_from_slice(b",\"reason\":\"");
                    data.extend_from_slice(Freed::Forced.as_str().as_bytes());
                    data.push(b'"');
                });
                responder.resolve(Ok(true));
            }
            Ok(_) => responder.resolve(Ok(false)),
            Err(refused) => responder.resolve(Err(refused.into())),
        }
    }

    /// Looks whether an event of a room tells that a lock of this node was freed elsewhere.
    pub(super) fn note_freed(&mut self, id: RoomId, event: &BrokeredEvent) {
        if !matches!(&*event.kind, "lock.released" | "lock.expired") {
            return;
        }
        let Some(room) = self.rooms.get(id) else { return };
        let has_locks = room.home.as_deref().is_some_and(|home| home.locks().is_some());
        let has_left = self.relaying.as_deref().is_some_and(|relaying| !relaying.left.is_empty());
        if !has_locks && !has_left {
            return;
        }
        let room = room.name.clone();
        let Ok(told) = serde_json::from_slice::<FreedTold>(&event.data) else { return };
        let field: Arc<str> = told.field.into();
        self.left_has_ended(&room, &field, told.token);
        if !has_locks {
            return;
        }
        let now_ms = self.now.monotonic_us / 1000;
        let freed = self.with_lock(&room, &field, |lock| lock.free(Some(told.token), now_ms)).flatten();
        if let Some(held) = freed {
            self.locks.figures.held = self.locks.figures.held.saturating_sub(1);
            self.note_lock(&room, &field, told.token, &held.holder.clone(), false);
            self.tell_forced(&room, &field, held);
        }
    }
}

/// What such events say, as far as it is needed.
#[derive(serde::Deserialize)]
struct FreedTold {
    field: Box<str>,
    token: u64,
}

fn owner(who: &Holder) -> LockOwner {
    LockOwner {
        client_id: (*who.client_id).into(),
        session_id: (*who.session_id).into(),
        user_id: who.identity.user_id.as_str().into(),
    }
}

/// A holder at another node, as it is shown to others.
fn holder(owner: LockOwner) -> Holder {
    let LockOwner { client_id, session_id, user_id } = owner;
    let identity = Arc::new(Identity::anonymous(user_id.into()));
    Holder { client_id: client_id.into(), session_id: (&*session_id).into(), identity }
}
