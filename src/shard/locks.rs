//! Field locks on the side of the connections that speak for their holders.
//!
//! A connection lists what its session holds. The list travels with the session: to the connection that takes it over, to
//! the session's home when it is away. Where it ends, its locks are freed. So a lock that was granted to a connection which
//! has gone meanwhile is given back by the one who gets the answer, this shard.

use super::commands::known_room;
use super::connection::Client;
use super::state::State;
use crate::config::Config;
use crate::hub::lock::{Holder, LockHeld};
use crate::hub::locks::{self, Freed, HeldLock, LockAsked, LockOutcome, LockTold, write_expires_at, write_holder};
use crate::hub::message::{Kept, Message, OVERLOADED};
use crate::ring::ConnKey;
use crate::wire::codes::ErrorCode;
use crate::wire::envelope;
use crate::wire::json::{write_string, write_u64};
use crate::wire::lock_commands::{LockAction, LockCommand};
use crate::wire::native::{Reference, Refused};

/// The locks of a connection's session.
#[derive(Debug, Default)]
pub struct ClientLocks {
    /// Those it holds, as far as it was told. Some may be over, and are found out when their place is needed.
    held: Vec<HeldLock>,
    /// Locks asked for that are not on the list and may come onto it.
    asked: usize,
    /// Commands whose answers are still to come.
    under_way: usize,
}

const LOST: Refused =
    Refused::new(ErrorCode::LockLost, "this session does not hold the lock with that number any more");

impl State {
    /// A client wants something of a lock.
    pub fn lock(
        &mut self,
        conn: ConnKey,
        reference: Option<Reference>,
        command: LockCommand<'_>,
    ) -> Result<(), Refused> {
        let LockCommand { room, field, action } = command;
        let settings = self.settings.clone();
        let (address, now_ms) = (self.address(conn), self.now_ms());
        let name = self.core.hasher().room(room);
        let is_congested = self.core.is_congested_home(&name);
        let Some(client) = self.client_mut(conn) else { return Ok(()) };
        may_lock(client, &settings.config, room)?;
        let who = Holder {
            client_id: client.session.client_id.clone(),
            session_id: client.session.session_id.clone(),
            identity: client.session.identity.clone(),
        };
        let turn = client.turn;
        let locks = client.under_way().locks.get_or_insert_default();
        let known = locks.held.iter().position(|lock| lock.is_of(&name, field));
        let known_token = known.and_then(|place| locks.held.get(place)).map(|lock| lock.token);
        let outcome = match action {
            LockAction::Acquire { .. } if is_congested => Err(OVERLOADED),
            LockAction::Acquire { .. } => locks.take_place(known.is_some(), now_ms, &settings.config),
            LockAction::Renew { token, .. } if known_token == Some(token) => Ok(()),
            LockAction::Release { token } if known_token == Some(token) => {
                // It is freed from here on, whether or not the answer finds anybody.
                known.map(|place| locks.held.swap_remove(place));
                Ok(())
            }
            LockAction::Renew { .. } | LockAction::Release { .. } => Err(LOST),
        };
        if outcome.is_ok() {
            locks.under_way += 1;
        }
        client.tidy_locks();
        outcome?;
        let (room, field, known) = (name.clone(), field.into(), known_token);
        let asked = LockAsked { room, field, address, who, action, known, turn, reference };
        self.core.send_home(&name, Message::Lock(Box::new(asked)));
        Ok(())
    }

    /// What became of a lock.
    pub fn lock_told(&mut self, told: LockTold) {
        let LockTold { room, field, address, session_id, known, reference, outcome } = told;
        let conn = address.conn;
        let Some(client) = self.client_mut(conn) else {
            // Granted to a connection that is gone. Where it was the session's before, it is on the list that went on.
            if let LockOutcome::Acquired { lock, is_new: true } = outcome {
                self.core.free_locks(vec![lock], Freed::SessionEnded);
            }
            return;
        };
        // The connection may hold another session by now, whose lock this is not.
        let is_its_own = client.session.session_id == session_id;
        let locks = client.under_way().locks.get_or_insert_default();
        if !matches!(outcome, LockOutcome::Forced { .. }) {
            locks.under_way = locks.under_way.saturating_sub(1);
        }
        let was_acquire =
            matches!(outcome, LockOutcome::Acquired { .. } | LockOutcome::Held(_) | LockOutcome::Refused(_));
        if was_acquire && known.is_none() {
            locks.asked = locks.asked.saturating_sub(1);
        }
        let mut given_back = None;
        match &outcome {
            LockOutcome::Acquired { lock, is_new: true } if is_its_own => locks.put(lock.clone()),
            LockOutcome::Acquired { lock, is_new: true } => given_back = Some(lock.clone()),
            LockOutcome::Acquired { lock, .. } | LockOutcome::Renewed(lock) => {
                if let Some(one) = locks.held.iter_mut().find(|one| one.token == lock.token && one.is_of(&room, &field))
                {
                    *one = lock.clone();
                }
            }
            LockOutcome::Lost { token } | LockOutcome::Forced { token } => {
                locks.held.retain(|one| one.token != *token || !one.is_of(&room, &field));
            }
            LockOutcome::Released { .. } | LockOutcome::Held(_) | LockOutcome::Refused(_) => {}
        }
        client.tidy_locks();
        let was_withdrawn = client.session.identity.permissions.withdrawn().is_some();
        self.core.free_locks(given_back.into_iter().collect(), Freed::SessionEnded);
        if was_withdrawn {
            // The permission may have gone while the home was asked.
            self.free_forbidden_locks(conn);
        }
        let room = room.as_str();
        match outcome {
            LockOutcome::Acquired { lock, .. } if is_its_own => {
                self.answer(conn, "lock.acquired", reference.as_ref(), |payload| write_held(payload, &lock));
            }
            LockOutcome::Renewed(lock) if is_its_own => {
                self.answer(conn, "lock.renewed", reference.as_ref(), |payload| write_held(payload, &lock));
            }
            LockOutcome::Released { token } => self.answer(conn, "lock.released", reference.as_ref(), |payload| {
                payload.push(b'{');
                write_names(payload, room, &field);
                write_token(payload, token);
                payload.push(b'}');
            }),
            LockOutcome::Held(held) => self.refuse_held(conn, reference.as_ref(), room, &field, &held),
            LockOutcome::Forced { token } => {
                self.figures.errors.add(ErrorCode::LockLost.as_str());
                self.tell(conn, "error", None, |payload| {
                    let message = "an operator has freed this lock";
                    envelope::write_error_details(payload, ErrorCode::LockLost, message, |details| {
                        write_names(details, room, &field);
                        write_token(details, token);
                    });
                });
            }
            LockOutcome::Refused(refused) => self.refuse_command(conn, reference.as_ref(), &refused),
            LockOutcome::Acquired { .. } | LockOutcome::Renewed(_) | LockOutcome::Lost { .. } => {
                self.refuse_command(conn, reference.as_ref(), &LOST);
            }
        }
    }

    fn refuse_held(&mut self, conn: ConnKey, reference: Option<&Reference>, room: &str, field: &str, held: &LockHeld) {
        self.figures.errors.add(ErrorCode::LockHeld.as_str());
        self.tell(conn, "error", reference, |payload| {
            let message = match held.holder {
                Some(_) => "another session holds this lock",
                None => "this lock is kept for a session that has been waiting for it",
            };
            envelope::write_error_details(payload, ErrorCode::LockHeld, message, |details| {
                write_names(details, room, field);
                details.extend_from_slice(b",\"holder\":");
                match &held.holder {
                    Some(holder) => {
                        details.push(b'{');
                        write_holder(details, holder);
                        details.push(b'}');
                    }
                    None => details.extend_from_slice(b"null"),
                }
                write_expires_at(details, held.expires_at_ms);
            });
        });
    }

    /// What a session can be resumed with, its locks among it. Those of a session that can't be resumed are freed.
    pub fn keep_with_locks(&mut self, conn: ConnKey) -> Option<Box<Kept>> {
        let mut kept = self.keep(conn);
        let locks = self.client_mut(conn).and_then(Client::locks_mut);
        let held = locks.map(|locks| std::mem::take(&mut locks.held)).unwrap_or_default();
        match kept.as_mut() {
            Some(kept) => kept.locks = held,
            None => self.core.free_locks(held, Freed::SessionEnded),
        }
        kept
    }

    /// Frees what a connection's session holds, because it takes another one up.
    pub fn free_locks_of(&mut self, conn: ConnKey) {
        let Some(client) = self.client_mut(conn) else { return };
        let held = client.locks_mut().map(|locks| std::mem::take(&mut locks.held)).unwrap_or_default();
        client.tidy_locks();
        self.core.free_locks(held, Freed::SessionEnded);
    }

    /// A connection took up a session that held these.
    pub fn inherit_locks(&mut self, conn: ConnKey, inherited: Vec<HeldLock>) {
        let locks_max = self.settings.config.limits.locks_per_session_max;
        let Some(client) = self.client_mut(conn).filter(|_| !inherited.is_empty()) else {
            return self.core.free_locks(inherited, Freed::SessionEnded);
        };
        let beyond = locks::merge(&mut client.under_way().locks.get_or_insert_default().held, inherited, locks_max);
        self.core.free_locks(beyond, Freed::SessionEnded);
        self.free_forbidden_locks(conn);
    }

    /// Frees the locks that a client may not hold with its present permissions. Its room is told by the event, it by the
    /// refusal of what it does next with the lock.
    pub fn free_forbidden_locks(&mut self, conn: ConnKey) {
        let settings = self.settings.clone();
        let Some(client) = self.client_mut(conn) else { return };
        let Some(mut locks) = client.under_way.as_mut().and_then(|all| all.locks.take()) else { return };
        let is_allowed = |lock: &HeldLock| may_lock(client, &settings.config, lock.room.as_str()).is_ok();
        let (stay, freed) = std::mem::take(&mut locks.held).into_iter().partition(is_allowed);
        locks.held = stay;
        client.under_way().locks = Some(locks);
        client.tidy_locks();
        self.core.free_locks(freed, Freed::Forbidden);
    }

    /// The locks that a connection's session holds, as a JSON list.
    pub fn locks_text(&mut self, conn: ConnKey) -> Vec<u8> {
        let mut list = b"[".to_vec();
        let locks = self.client_mut(conn).and_then(Client::locks_mut);
        for (place, lock) in locks.iter().flat_map(|locks| locks.held.iter()).enumerate() {
            if place > 0 {
                list.push(b',');
            }
            write_held(&mut list, lock);
        }
        list.push(b']');
        list
    }
}

impl ClientLocks {
    /// Counts one more lock that is asked for; `is_held` where it is on the list already.
    fn take_place(&mut self, is_held: bool, now_ms: u64, config: &Config) -> Result<(), Refused> {
        if is_held {
            return Ok(());
        }
        let locks_max = config.limits.locks_per_session_max;
        // While an answer is to come, the end of a lock may be later than the list says.
        if self.held.len() + self.asked >= locks_max && self.under_way == 0 {
            self.held.retain(|lock| lock.until_ms > now_ms);
        }
        if self.held.len() + self.asked >= locks_max {
            return Err(Refused::because(ErrorCode::Unavailable, format!("a session holds at most {locks_max} locks")));
        }
        self.asked += 1;
        Ok(())
    }

    fn put(&mut self, lock: HeldLock) {
        // An earlier grant of the same field has ended before this one.
        self.held.retain(|one| !one.is_of(&lock.room, &lock.field));
        self.held.push(lock);
    }
}

impl Client {
    fn locks_mut(&mut self) -> Option<&mut ClientLocks> {
        self.under_way.as_mut()?.locks.as_deref_mut()
    }

    /// Lets go of the memory when there are no locks any more.
    fn tidy_locks(&mut self) {
        if self.locks_mut().is_some_and(|locks| locks.held.is_empty() && locks.under_way == 0) {
            self.under_way().locks = None;
            self.tidy();
        }
    }
}

/// An editor reads and writes: both permissions are needed. Being a member is not.
fn may_lock(client: &Client, config: &Config, room: &str) -> Result<(), Refused> {
    let (kind, name) = known_room(config, room)?;
    client.session.may_join(kind, name)?;
    client.session.may_publish(&kind.name, name)
}

fn write_names(out: &mut Vec<u8>, room: &str, field: &str) {
    out.extend_from_slice(b"\"room\":");
    write_string(out, room);
    out.extend_from_slice(b",\"field\":");
    write_string(out, field);
}

fn write_token(out: &mut Vec<u8>, token: u64) {
    out.extend_from_slice(b",\"token\":");
    write_u64(out, token);
}

/// `{"room":…,"field":…,"token":…,"expires_at":…}`.
fn write_held(out: &mut Vec<u8>, lock: &HeldLock) {
    out.push(b'{');
    write_names(out, lock.room.as_str(), &lock.field);
    write_token(out, lock.token);
    write_expires_at(out, lock.expires_at_ms);
    out.push(b'}');
}
