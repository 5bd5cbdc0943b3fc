//! Field locks at a room's home: who asks is answered, members are told by events, and a calendar ends what is over.
//!
//! A lock's life is one `lock.acquired` and one `lock.released` or `lock.expired`, both with its number (the *token*). That
//! number grows with every grant, so that a backend which remembers the highest one it saw can refuse what a holder sends
//! that has lost its lock without noticing: no clock and no message can rule that out, the number does.
//!
//! What a session holds is known twice: here, and in the list of its connection, which becomes part of what is kept for its
//! return. Whoever drops that list for good frees what is on it ([`Core::free_locks`]), each by its number, so that it does
//! not matter what happened to the lock meanwhile.
//!
//! Larger than most files because what is asked of a lock and what is answered is told here as well.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::batch::Address;
use super::core::Core;
use super::lock::{Held, Holder, Lock, LockHeld};
use super::message::Message;
use super::name::RoomName;
use super::presence::Turn;
use super::reply::Responder;
use crate::ring::Now;
use crate::session::SessionId;
use crate::wire::codes::ErrorCode;
use crate::wire::envelope::rfc3339;
use crate::wire::json::{write_string, write_u64};
use crate::wire::lock_commands::LockAction;
use crate::wire::native::{Reference, Refused};

/// Locks of one shard's rooms. Sessions that come and go leave theirs behind for the time that they can be resumed, which the
/// bounds per room and session don't limit; so many take about 50 MB.
const LOCKS_PER_SHARD_MAX: usize = 100_000;

/// The locks of one room, by field; only those that are held or waited for.
#[derive(Debug, Default)]
pub struct Locks {
    pub(super) fields: BTreeMap<Arc<str>, Entry>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) lock: Lock,
    /// Its page of the calendar.
    page: Page,
}

/// When a lock is to be looked at (milliseconds of the monotonic clock), and a number that no two locks of a shard share.
type Page = (u64, u64);

/// What a shard knows of all locks homed there.
#[derive(Debug, Default)]
pub struct LockDesk {
    /// Each lock stands in it once.
    calendar: BTreeMap<Page, (RoomName, Arc<str>)>,
    /// The rooms that have any, so that those of all rooms can be listed a page at a time.
    pub(super) rooms: BTreeSet<RoomName>,
    last_serial: u64,
    last_token: u64,
    /// Counters so far.
    pub figures: LockFigures,
}

/// Counters of locks.
#[derive(Debug, Clone, Copy, Default)]
pub struct LockFigures {
    /// Held now.
    pub held: u64,
    /// Granted.
    pub acquired: u64,
    /// Asked for while another session held them.
    pub refused: u64,
    /// Ended because they were not renewed.
    pub expired: u64,
}

/// A lock that is asked for, to be renewed, or to be given back.
#[derive(Debug)]
pub struct LockAsked {
    /// The room.
    pub room: RoomName,
    /// The field.
    pub field: Arc<str>,
    /// The connection that asks.
    pub address: Address,
    /// For whom.
    pub who: Holder,
    /// What is asked.
    pub action: LockAction,
    /// The number that the session holds it with, as far as its connection knows.
    pub known: Option<u64>,
    /// The turn of the connection.
    pub turn: Turn,
    /// The command's id.
    pub reference: Option<Reference>,
}

/// A lock of a session that has come from another node.
#[derive(Debug)]
pub struct LockArrived {
    /// The lock.
    pub lock: HeldLock,
    /// Whose it is. No connection speaks for it yet.
    pub who: Holder,
    /// The turn that the session came with: later than those of its connections at other nodes.
    pub turn: Turn,
}

/// What became of it.
#[derive(Debug)]
pub struct LockTold {
    /// The room.
    pub room: RoomName,
    /// The field.
    pub field: Arc<str>,
    /// The connection that asked.
    pub address: Address,
    /// The session it asked for.
    pub session_id: SessionId,
    /// The number that its connection knew when it asked.
    pub known: Option<u64>,
    /// The command's id.
    pub reference: Option<Reference>,
    /// The outcome.
    pub outcome: LockOutcome,
}

/// The outcome of a lock command.
#[derive(Debug)]
pub enum LockOutcome {
    /// It is the session's.
    Acquired {
        /// The lock.
        lock: HeldLock,
        /// Whether it was not before.
        is_new: bool,
    },
    /// It stays the session's.
    Renewed(HeldLock),
    /// It was the session's.
    Released {
        /// The number it had.
        token: u64,
    },
    /// Another session holds it.
    Held(LockHeld),
    /// It was lost before this.
    Lost {
        /// The number it had.
        token: u64,
    },
    /// An operator has freed it; nobody asked.
    Forced {
        /// The number it had.
        token: u64,
    },
    /// A lock can't be had at all.
    Refused(Refused),
}

/// A lock that a session holds, as its connection knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldLock {
    /// The room.
    pub room: RoomName,
    /// The field.
    pub field: Arc<str>,
    /// The number it was granted with.
    pub token: u64,
    /// Until when, in milliseconds of the monotonic clock.
    pub until_ms: u64,
    /// Until when, in milliseconds since 1970.
    pub expires_at_ms: u64,
    /// For how long it was asked for last.
    pub ttl_ms: u64,
}

impl HeldLock {
    /// Whether it is that field's.
    pub fn is_of(&self, room: &RoomName, field: &str) -> bool {
        *self.field == *field && self.room == *room
    }
}

/// Why a lock was freed; `lock.released` says it as `reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freed {
    /// Its holder gave it back.
    Released,
    /// Its session is gone for good.
    SessionEnded,
    /// Its holder may not write into the room any more.
    Forbidden,
    /// An operator wanted it so.
    Forced,
}

impl Freed {
    /// The reason as events tell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Freed::Released => "released",
            Freed::SessionEnded => "session_ended",
            Freed::Forbidden => "forbidden",
            Freed::Forced => "forced",
        }
    }
}

/// A lock as operators see it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LockInfo {
    /// The room.
    pub room: String,
    /// The field.
    pub field: String,
    /// The number it was granted with.
    pub token: u64,
    /// Until when, as RFC 3339 with milliseconds.
    pub expires_at: String,
    /// The connection that took or renewed it last.
    pub client_id: String,
    /// The session that holds it.
    pub session_id: String,
    /// Its user.
    pub user_id: String,
}

/// Puts what a session had into the list of what it has. A field has the later of its numbers, since the earlier one had
/// ended when that was given; what is beyond `locks_max` comes back.
pub fn merge(locks: &mut Vec<HeldLock>, more: Vec<HeldLock>, locks_max: usize) -> Vec<HeldLock> {
    for lock in more {
        match locks.iter_mut().find(|one| one.is_of(&lock.room, &lock.field)) {
            Some(one) if one.token < lock.token => *one = lock,
            Some(_) => {}
            None => locks.push(lock),
        }
    }
    locks.split_off(locks_max.min(locks.len()))
}

impl Locks {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }
}

impl LockDesk {
    /// The number of the next grant.
    ///
    /// It must be larger than all that a field of a room had before, also when the room was forgotten in between (hence one
    /// number for the whole shard, which is the room's home for as long as the process lives) and when the hub was started
    /// anew (hence the time). The time in microseconds: a shard that granted a million locks a second would still not run
    /// ahead of it, and the number stays below 2^53, which JSON carries exactly, until the year 2255.
    fn next_token(&mut self, now: Now) -> u64 {
        self.last_token = (self.last_token + 1).max(now.unix_ms.saturating_mul(1000));
        self.last_token
    }
}

impl Core {
    /// A client's lock command.
    pub(super) fn lock(&mut self, asked: LockAsked) {
        // What is over must not be renewed, though its turn has not come yet.
        self.expire_locks();
        let Some(asked) = self.lock_of_all_nodes(asked) else { return };
        let LockAsked { room, field, address, who, action, known, reference, .. } = asked;
        let session_id = who.session_id.clone();
        let outcome = match action {
            LockAction::Acquire { ttl_s } => self.acquire_lock(&room, &field, address, who, known, ttl_s * 1000),
            LockAction::Renew { token, ttl_s } => {
                let now = self.now;
                let ttl_ms = ttl_s.map(|seconds| seconds * 1000);
                let renewed = self.with_lock(&room, &field, |lock| {
                    lock.renew(address, who, token, ttl_ms, now).map(|held| held_lock(&room, &field, held))
                });
                renewed.flatten().map_or(LockOutcome::Lost { token }, LockOutcome::Renewed)
            }
            LockAction::Release { token } => match self.free_lock(&room, &field, Some(token), Freed::Released) {
                Some(_) => LockOutcome::Released { token },
                None => LockOutcome::Lost { token },
            },
        };
        self.tell_lock(LockTold { room, field, address, session_id, known, reference, outcome });
    }

    fn acquire_lock(
        &mut self,
        room: &RoomName,
        field: &Arc<str>,
        address: Address,
        who: Holder,
        known: Option<u64>,
        ttl_ms: u64,
    ) -> LockOutcome {
        let now = self.now;
        let token = self.locks.next_token(now);
        self.grant_lock(room, field, (address, who, known), ttl_ms, now, token)
    }

    /// Gives a lock to a session, from `now` on and with that number where it did not have it.
    pub(super) fn grant_lock(
        &mut self,
        room: &RoomName,
        field: &Arc<str>,
        (address, who, known): (Address, Holder, Option<u64>),
        ttl_ms: u64,
        now: Now,
        token: u64,
    ) -> LockOutcome {
        if let Err(refused) = self.ensure_lock(room, field) {
            return LockOutcome::Refused(refused);
        }
        let outcome = self.with_lock(room, field, |lock| {
            let granted = lock.acquire(address, who, known, ttl_ms, now, || token);
            granted.map(|(held, is_new)| (held_lock(room, field, held), held.holder.clone(), is_new))
        });
        match outcome {
            Some(Ok((lock, holder, is_new))) => {
                if is_new {
                    self.locks.figures.acquired += 1;
                    self.locks.figures.held += 1;
                    self.lock_event(room, "lock.acquired", field, lock.token, &holder, |data| {
                        write_expires_at(data, lock.expires_at_ms);
                    });
                }
                LockOutcome::Acquired { lock, is_new }
            }
            Some(Err(held)) => {
                self.locks.figures.refused += 1;
                LockOutcome::Held(held)
            }
            None => LockOutcome::Refused(super::message::OVERLOADED),
        }
    }

    /// Frees locks that sessions leave behind; what has another number by now stays.
    pub fn free_locks(&mut self, locks: Vec<HeldLock>, reason: Freed) {
        for HeldLock { room, field, token, .. } in locks {
            self.send_home(&room.clone(), Message::FreeLock { room, field, token, reason });
        }
    }

    /// Frees a lock of a room homed here, if it is held with that number, or whatever its number.
    pub(super) fn free_lock(
        &mut self,
        room: &RoomName,
        field: &Arc<str>,
        token: Option<u64>,
        reason: Freed,
    ) -> Option<Held> {
        let now_ms = self.now.monotonic_us / 1000;
        let held = self.with_lock(room, field, |lock| lock.free(token, now_ms)).flatten()?;
        self.free_for_all_nodes(room, field, &held);
        self.lock_ended(room, "lock.released", field, &held, |data| {
            data.extend_from_slice(b",\"reason\":\"");
            data.extend_from_slice(reason.as_str().as_bytes());
            data.push(b'"');
        });
        Some(held)
    }

    /// An operator frees a field, whoever holds it. False where nobody does.
    pub fn force_unlock(&mut self, room: &RoomName, field: &str, now: Now, responder: Responder<bool>) {
        self.now = now;
        self.expire_locks();
        let field: Arc<str> = field.into();
        if self.force_here(room, &field) {
            responder.resolve(Ok(true));
        } else if self.is_relaying() {
            self.force_elsewhere(room, field, responder);
        } else {
            responder.resolve(Ok(false));
        }
    }

    fn force_here(&mut self, room: &RoomName, field: &Arc<str>) -> bool {
        let Some(held) = self.free_lock(room, field, None, Freed::Forced) else { return false };
        self.tell_forced(room, field, held);
        true
    }

    /// Tells a holder that its lock was freed without it.
    pub(super) fn tell_forced(&mut self, room: &RoomName, field: &Arc<str>, held: Held) {
        let field = field.clone();
        let Held { token, address, holder, .. } = held;
        let (room, session_id, outcome) = (room.clone(), holder.session_id, LockOutcome::Forced { token });
        self.tell_lock(LockTold { room, field, address, session_id, known: None, reference: None, outcome });
    }

    /// Ends what is over by now.
    pub(super) fn expire_locks(&mut self) {
        let now_ms = self.now.monotonic_us / 1000;
        while let Some(page) = self.locks.calendar.first_entry().filter(|page| page.key().0 <= now_ms) {
            let (room, field) = page.get().clone();
            let ended = self.with_lock(&room, &field, |lock| lock.pass(now_ms)).flatten();
            if let Some(held) = ended {
                self.locks.figures.expired += 1;
                self.free_for_all_nodes(&room, &field, &held);
                self.lock_ended(&room, "lock.expired", &field, &held, |_| {});
            } else if let Some(id) = self.rooms.find(&room) {
                self.rooms.forget_if_idle(id);
            }
        }
    }

    /// When something of a session or a lock is over next, in milliseconds of the monotonic clock.
    pub fn due_ms(&self) -> Option<u64> {
        let locks = self.locks.calendar.first_key_value().map(|((due_ms, _), _)| *due_ms);
        let away = self.away.front().map(|(until_ms, _)| *until_ms);
        locks.into_iter().chain(away).min()
    }

    /// Counters of locks so far.
    pub fn lock_figures(&self) -> LockFigures {
        self.locks.figures
    }

    pub(super) fn tell_lock(&mut self, told: LockTold) {
        self.send(told.address.shard, Message::LockTold(Box::new(told)));
    }

    pub(super) fn ensure_lock(&mut self, room: &RoomName, field: &Arc<str>) -> Result<(), Refused> {
        let id = self.ensure_home(room).ok_or(super::message::OVERLOADED)?;
        let locks_max = self.limits.locks_per_room_max;
        let locks = self.home_mut(id).and_then(|home| home.locks());
        if locks.is_some_and(|locks| locks.fields.contains_key(field)) {
            return Ok(());
        }
        let refused = if locks.is_some_and(|locks| locks.fields.len() >= locks_max) {
            Some(Refused::because(ErrorCode::Unavailable, format!("a room has at most {locks_max} locks")))
        } else if self.locks.calendar.len() >= LOCKS_PER_SHARD_MAX {
            Some(Refused::new(ErrorCode::Unavailable, "the hub has too many locks"))
        } else {
            None
        };
        if let Some(refused) = refused {
            self.rooms.forget_if_idle(id);
            return Err(refused);
        }
        self.locks.last_serial += 1;
        // Looked at as soon as it is settled; until then it is due at once, and gone if nothing becomes of it.
        let page = (0, self.locks.last_serial);
        self.locks.calendar.insert(page, (room.clone(), field.clone()));
        if let Some(home) = self.home_mut(id) {
            let locks = home.contents().locks.get_or_insert_default();
            locks.fields.insert(field.clone(), Entry { lock: Lock::default(), page });
            self.locks.rooms.insert(room.clone());
        }
        Ok(())
    }

    /// Does something with a lock that exists, and settles when it is to be looked at next. Does not forget the room, of
    /// which something may still have to be told.
    pub(super) fn with_lock<R>(
        &mut self,
        room: &RoomName,
        field: &Arc<str>,
        act: impl FnOnce(&mut Lock) -> R,
    ) -> Option<R> {
        let id = self.rooms.find(room)?;
        let home = self.rooms.get_mut(id)?.home.as_deref_mut()?;
        let locks = home.locks_mut()?;
        let entry = locks.fields.get_mut(field)?;
        let done = act(&mut entry.lock);
        let (before, due_ms) = (entry.page, entry.lock.due_ms());
        match due_ms {
            Some(due_ms) if due_ms == before.0 => {}
            Some(due_ms) => {
                entry.page = (due_ms, before.1);
                let names = self.locks.calendar.remove(&before);
                let names = names.unwrap_or_else(|| (room.clone(), field.clone()));
                self.locks.calendar.insert((due_ms, before.1), names);
            }
            None => {
                locks.fields.remove(field);
                if locks.is_empty() {
                    home.contents().locks = None;
                    home.tidy();
                    self.locks.rooms.remove(room);
                }
                self.locks.calendar.remove(&before);
            }
        }
        Some(done)
    }

    fn lock_ended(&mut self, room: &RoomName, kind: &str, field: &str, held: &Held, more: impl FnOnce(&mut Vec<u8>)) {
        self.locks.figures.held = self.locks.figures.held.saturating_sub(1);
        self.lock_event(room, kind, field, held.token, &held.holder, more);
    }

    pub(super) fn lock_event(
        &mut self,
        room: &RoomName,
        kind: &str,
        field: &str,
        token: u64,
        holder: &Holder,
        more: impl FnOnce(&mut Vec<u8>),
    ) {
        let mut data = b"{\"field\":".to_vec();
        write_string(&mut data, field);
        data.extend_from_slice(b",\"token\":");
        write_u64(&mut data, token);
        data.push(b',');
        write_holder(&mut data, holder);
        more(&mut data);
        data.push(b'}');
        if self.is_relaying() {
            // More than one node may find out that a lock has ended.
            let key = (kind != "lock.acquired").then(|| format!("lock.ended:{token}").into_boxed_str());
            return self.say_relayed(room.clone(), kind, data.into(), key);
        }
        let told = self.publish_here(room, kind, &data, None, None, self.now);
        debug_assert!(told.is_ok(), "a room with locks has a home");
    }
}

pub(super) fn lock_info(room: &RoomName, field: &str, held: &Held) -> LockInfo {
    LockInfo {
        room: room.as_str().to_owned(),
        field: field.to_owned(),
        token: held.token,
        expires_at: String::from_utf8_lossy(&rfc3339(held.expires_at_ms)).into_owned(),
        client_id: held.holder.client_id.to_string(),
        session_id: held.holder.session_id.to_string(),
        user_id: held.holder.identity.user_id.clone(),
    }
}

pub(super) fn held_lock(room: &RoomName, field: &Arc<str>, held: &Held) -> HeldLock {
    let Held { token, until_ms, expires_at_ms, ttl_ms, .. } = *held;
    HeldLock { room: room.clone(), field: field.clone(), token, until_ms, expires_at_ms, ttl_ms }
}

/// Appends `"client_id":…,"session_id":…,"user_id":…`.
pub fn write_holder(out: &mut Vec<u8>, holder: &Holder) {
    out.extend_from_slice(b"\"client_id\":");
    write_string(out, &holder.client_id);
    out.extend_from_slice(b",\"session_id\":");
    write_string(out, &holder.session_id);
    out.extend_from_slice(b",\"user_id\":");
    write_string(out, &holder.identity.user_id);
}

/// Appends `,"expires_at":"…"`.
pub fn write_expires_at(out: &mut Vec<u8>, unix_ms: u64) {
    out.extend_from_slice(b",\"expires_at\":\"");
    out.extend_from_slice(&rfc3339(unix_ms));
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::super::core::CoreLimits;
    use super::super::message::{Join, JoinClaim, Kept, Ticket};
    use super::super::name::{NameHasher, ShardId};
    use super::super::rules::Rules;
    use super::*;
    use crate::auth::Identity;
    use crate::config::Config;
    use crate::ring::ConnKey;

    /// The only shard of a hub, by default settings but for these.
    fn core(change: impl FnOnce(&mut Config)) -> Core {
        let mut config = Config::default();
        config.history.events_max = 0;
        change(&mut config);
        Core::new(ShardId(0), 1, NameHasher::new(1), [1, 2], CoreLimits::new(&config), Rules::new(&config))
    }

    fn at(ms: u64) -> Now {
        Now { monotonic_us: ms * 1000, unix_ms: 1_700_000_000_000 + ms }
    }

    fn address(slot: u32) -> Address {
        Address { shard: ShardId(0), conn: ConnKey { slot, generation: 0 } }
    }

    fn identity() -> Arc<Identity> {
        Arc::new(Identity::anonymous("alice".to_owned()))
    }

    /// What a session is answered, whose connection has the session's number.
    fn ask(core: &mut Core, session: u32, room: &str, field: &str, action: LockAction, now: Now) -> LockOutcome {
        let who =
            Holder { client_id: "c".into(), session_id: session.to_string().as_str().into(), identity: identity() };
        let asked = LockAsked {
            room: core.hasher().room(room),
            field: field.into(),
            address: address(session),
            who,
            action,
            known: None,
            turn: Turn::default(),
            reference: None,
        };
        assert!(core.handle(Message::Lock(Box::new(asked)), now).is_none());
        match core.next_local() {
            Some(Message::LockTold(told)) => told.outcome,
            other => panic!("{other:?}"),
        }
    }

    fn acquire(core: &mut Core, session: u32, room: &str, field: &str, now: Now) -> Option<HeldLock> {
        match ask(core, session, room, field, LockAction::Acquire { ttl_s: 10 }, now) {
            LockOutcome::Acquired { lock, is_new: true } => Some(lock),
            _ => None,
        }
    }

    #[test]
    fn numbers_grow_though_the_room_was_forgotten_or_the_hub_started_anew() {
        let mut last = 0;
        for restart in 0..3 {
            let mut core = core(|_| {});
            for round in 0..2000 {
                // Many within one millisecond.
                let now = at(restart * 1000 + round / 1000);
                let lock = acquire(&mut core, 1, "project:1", "title", now).expect("free");
                assert!(lock.token > last && lock.token < 1 << 53);
                last = lock.token;
                ask(&mut core, 1, "project:1", "title", LockAction::Release { token: last }, now);
                core.seal_all();
                assert_eq!((core.rooms().len(), core.due_ms()), (0, None), "nothing is left");
            }
        }
    }

    #[test]
    fn a_room_with_a_lock_lives_until_the_lock_ends_and_its_event_comes_on_time() {
        let mut core = core(|_| {});
        let lock = acquire(&mut core, 1, "project:1", "title", at(0)).expect("free");
        core.seal_all();
        core.sweep(at(5000));
        assert_eq!((core.rooms().len(), core.due_ms()), (1, Some(lock.until_ms)));
        core.expire(at(10_000));
        assert_eq!(core.lock_figures().held, 1);
        core.expire(at(10_001));
        let LockFigures { held, acquired, expired, .. } = core.lock_figures();
        assert_eq!((held, acquired, expired, core.figures().publishes), (0, 1, 1, 2));
        core.seal_all();
        assert_eq!((core.rooms().len(), core.due_ms()), (0, None));
    }

    #[test]
    fn what_is_over_is_not_renewed_though_nobody_has_looked_at_it_yet() {
        let mut core = core(|_| {});
        let token = acquire(&mut core, 1, "project:1", "title", at(0)).expect("free").token;
        let renew = LockAction::Renew { token, ttl_s: None };
        assert!(matches!(ask(&mut core, 1, "project:1", "title", renew, at(9000)), LockOutcome::Renewed(_)));
        assert!(matches!(ask(&mut core, 1, "project:1", "title", renew, at(19_002)), LockOutcome::Lost { .. }));
        assert!(acquire(&mut core, 2, "project:1", "title", at(19_002)).is_some());
    }

    #[test]
    fn a_lock_that_was_given_to_another_is_not_freed_by_its_old_number() {
        let mut core = core(|_| {});
        let old = acquire(&mut core, 1, "project:1", "title", at(0)).expect("free");
        core.expire(at(10_001));
        let new = acquire(&mut core, 2, "project:1", "title", at(10_001)).expect("free");
        core.free_locks(vec![old], Freed::SessionEnded);
        while let Some(message) = core.next_local() {
            core.handle(message, at(10_002));
        }
        let locks = core.list_locks(&core.hasher().room("project:1"));
        assert_eq!((locks.len(), locks[0].token, &*locks[0].session_id), (1, new.token, "2"));
        let mut force = |field: &str| {
            let (responder, freed) = super::super::reply::pending();
            core.force_unlock(&new.room, field, at(10_003), responder);
            freed.wait().expect("known")
        };
        assert_eq!(["title", "title", "body"].map(&mut force), [true, false, false]);
    }

    #[test]
    fn locks_are_paged_through_and_a_page_looks_at_a_bounded_number_of_them() {
        use super::super::view::Window;
        let mut core = core(|config| config.limits.locks_per_room_max = 2000);
        // So many that one look does not reach the end.
        for (room, fields) in [("project:1", 3), ("project:2", 2000), ("project:3", 2000), ("project:4", 2000)] {
            for field in 0..fields {
                assert!(acquire(&mut core, 1, room, &format!("{field:04}"), at(0)).is_some());
            }
        }
        let window = |after: Option<&str>, limit| Window { after: after.map(Into::into), limit };
        let first = core.lock_page(None, &window(None, 5)).finish(5);
        assert_eq!((first.locks.len(), first.total, first.next.as_deref()), (5, 6003, Some("project:2\t0001")));
        let names = |page: &super::super::lock_pages::LockPage| -> Vec<String> {
            page.locks.iter().map(|lock| format!("{}\t{}", lock.room, lock.field)).collect()
        };
        let (mut all, mut after, mut pages) = (Vec::new(), None::<Box<str>>, 0);
        loop {
            let page = core.lock_page(None, &window(after.as_deref(), 1000)).finish(1000);
            all.extend(names(&page));
            pages += 1;
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!((all.len(), pages, all.is_sorted()), (6003, 7, true));
        let room = core.hasher().room("project:1");
        let one = core.lock_page(Some(&room), &window(Some("project:1\t0000"), 1)).finish(1);
        assert_eq!(
            (names(&one), one.total, one.next.as_deref()),
            (vec!["project:1\t0001".to_owned()], 3, Some("project:1\t0001"))
        );
        let rest = core.lock_page(Some(&room), &window(one.next.as_deref(), 1)).finish(1);
        assert_eq!((names(&rest), rest.next), (vec!["project:1\t0002".to_owned()], None));
        // Looked at, and not listed: nobody holds them, and yet they are there for who has been waiting.
        for field in 0..3 {
            for _ in 0..5 {
                ask(&mut core, 2, "project:1", &format!("{field:04}"), LockAction::Acquire { ttl_s: 1 }, at(9000));
            }
        }
        core.expire(at(10_001));
        let gone = core.lock_page(None, &window(None, 10)).finish(10);
        assert_eq!((gone.locks.len(), gone.total, gone.next), (0, 0, None));
        core.expire(at(100_000));
        assert!(core.locks.rooms.is_empty());
    }

    #[test]
    fn a_room_takes_so_many_locks_and_those_that_are_only_waited_for_go_with_time() {
        let mut core = core(|config| config.limits.locks_per_room_max = 2);
        for field in ["a", "b"] {
            assert!(acquire(&mut core, 1, "project:1", field, at(0)).is_some());
            let refused = ask(&mut core, 2, "project:1", field, LockAction::Acquire { ttl_s: 1 }, at(9000));
            assert!(matches!(refused, LockOutcome::Held(_)));
        }
        let full = ask(&mut core, 1, "project:1", "c", LockAction::Acquire { ttl_s: 1 }, at(9000));
        assert!(matches!(full, LockOutcome::Refused(refused) if refused.code == ErrorCode::Unavailable));
        core.expire(at(10_001));
        assert!(acquire(&mut core, 1, "project:1", "c", at(10_001)).is_none(), "the refused one is remembered");
        core.expire(at(14_001));
        assert!(acquire(&mut core, 1, "project:1", "c", at(14_001)).is_some());
    }

    /// Begins the session `s` with a connection.
    fn begin(core: &mut Core, slot: u32) {
        let claim = JoinClaim::Session { identity: identity(), token: [0; 16] };
        let (room, address) = (core.hasher().room("session:s"), address(slot));
        let join = Join { room, address, claim, selection: None, since: None, ticket: Ticket::Admission };
        core.handle(Message::Join(Box::new(join)), at(0));
        while core.next_local().is_some() {}
    }

    fn end(core: &mut Core, slot: u32, kept: Option<Vec<HeldLock>>, now: Now) {
        let kept = kept.map(|locks| Box::new(Kept { locks, ..Kept::default() }));
        let (room, address) = (core.hasher().room("session:s"), address(slot));
        core.handle(Message::ReleaseSession { room: room.clone(), address, kept }, now);
        core.handle(Message::Leave { room, address }, now);
    }

    fn freed(core: &mut Core) -> Vec<u64> {
        let mut freed = Vec::new();
        while let Some(message) = core.next_local() {
            if let Message::FreeLock { token, .. } = message {
                freed.push(token);
            }
        }
        freed
    }

    fn lock(core: &Core, field: &str, token: u64) -> HeldLock {
        let room = core.hasher().room("a:b");
        HeldLock { room, field: field.into(), token, until_ms: 0, expires_at_ms: 0, ttl_ms: 0 }
    }

    #[test]
    fn what_a_session_leaves_behind_is_freed_where_it_ends() {
        let mut core = core(|config| config.session.resume_window_s = 2);
        let locks = vec![lock(&core, "f", 7)];
        end(&mut core, 1, Some(locks.clone()), at(0));
        assert_eq!(freed(&mut core), [7], "there is no such session");
        begin(&mut core, 1);
        end(&mut core, 1, Some(locks.clone()), at(0));
        assert_eq!((freed(&mut core), core.due_ms()), (vec![], Some(2000)));
        core.expire(at(1999));
        assert!(freed(&mut core).is_empty());
        core.expire(at(2000));
        assert_eq!((freed(&mut core), core.rooms().len()), (vec![7], 0));
    }

    #[test]
    fn a_session_that_is_taken_over_by_its_name_again_and_again_keeps_so_many_locks() {
        let mut core = core(|config| config.limits.locks_per_session_max = 2);
        begin(&mut core, 1);
        begin(&mut core, 2);
        let locks = vec![lock(&core, "f", 7), lock(&core, "g", 8)];
        end(&mut core, 1, Some(locks), at(0));
        assert!(freed(&mut core).is_empty(), "nobody has asked for them yet");
        let locks = vec![lock(&core, "f", 9), lock(&core, "h", 10)];
        end(&mut core, 2, Some(locks), at(0));
        // Number 7 has ended before 9 was given.
        assert_eq!(freed(&mut core), [8]);
        core.expire(at(200_000));
        assert_eq!(freed(&mut core), [9, 10]);
    }
}
