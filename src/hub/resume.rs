//! What the home of a session does when its connection goes, when another one takes it up, and when nobody does.

use std::collections::VecDeque;

use super::batch::Address;
use super::core::{Core, CoreLimits};
use super::locks::{self, Freed, HeldLock};
use super::message::{Join, JoinClaim, JoinRefused, Joined, Kept, Message, Resume, ResumeAsked, Resumed};
use super::moved::YieldAsked;
use super::name::RoomName;
use super::presence::Turn;
use crate::ring::Now;
use crate::wire::codes::ErrorCode;
use crate::wire::native::Refused;

/// Connections that may wait for one session.
const WAITING_MAX: usize = 16;

/// A session on its way from one connection to another. Were the next one given it before the last has it, what the first
/// one had would come to a connection that does not hold the session any more.
#[derive(Debug)]
pub(super) struct Handover {
    /// Who has to be heard of: a connection that resumes the session, or the one from which it was taken by its name.
    awaited: Address,
    begins: Begins,
    waiting: VecDeque<Wanted>,
}

/// How a session comes to another connection.
#[derive(Debug, Clone, Copy)]
pub(super) enum Begins {
    /// It is resumed; the connection that resumes it is awaited.
    Resume,
    /// A connection was opened with its name; the one that held it is awaited.
    Name,
}

#[derive(Debug)]
enum Wanted {
    Join(Join),
    Resume(Resume),
    Yield(YieldAsked),
}

impl Core {
    /// A connection that held a session is gone; what is left of it can be resumed for a while.
    pub(super) fn release_session(&mut self, room: RoomName, address: Address, kept: Option<Box<Kept>>) {
        let handover = self.handovers.get(&room).filter(|handover| handover.awaited == address);
        match handover.map(|handover| handover.begins) {
            // It is about to be given the session again, and will be heard of then.
            Some(Begins::Resume) => self.keep_session(&room, address, kept, false),
            Some(Begins::Name) => {
                self.keep_session(&room, address, kept, true);
                self.handover_settled(&room, address);
            }
            None => self.keep_session(&room, address, kept, true),
        }
    }

    /// A connection that resumes a session has it, or gives it back.
    pub(super) fn took_up(&mut self, room: &RoomName, address: Address, given_back: Option<Box<Kept>>) {
        if given_back.is_some() {
            self.keep_session(room, address, given_back, true);
        }
        self.handover_settled(room, address);
    }

    fn keep_session(&mut self, room: &RoomName, address: Address, kept: Option<Box<Kept>>, leaves: bool) {
        let away_until_ms = self.now.monotonic_us / 1000 + self.limits.session_away_ms;
        let limits = self.limits;
        let may_be_resumed = self.limits.session_away_ms > 0;
        let id = self.rooms.find(room);
        let session = id.and_then(|id| self.home_mut(id)).and_then(|home| home.session.as_mut());
        let (Some(id), Some(session)) = (id, session) else {
            let held = kept.map(|kept| kept.locks).unwrap_or_default();
            return self.free_locks(held, Freed::SessionEnded);
        };
        let away_before_ms = session.away_until_ms();
        // What an earlier connection of it left behind and nobody asked for is still the session's.
        let (mut kept, mut freed) = join_kept(kept, session.take_kept(), &limits);
        if !may_be_resumed {
            freed.extend(kept.take().map(|kept| kept.locks).unwrap_or_default());
        }
        if !leaves {
            session.keep(kept, away_before_ms);
        } else if session.leave(address, kept, away_until_ms) {
            self.away.push_back((away_until_ms, room.clone()));
        }
        self.free_locks(freed, Freed::SessionEnded);
        self.rooms.forget_if_idle(id);
    }

    /// A connection wants to take a session up. Given back where other nodes have to be asked for it.
    pub(super) fn resume(&mut self, resume: Resume) -> Option<Resume> {
        if let Some(handover) = self.handovers.get_mut(&resume.room)
            && handover.waiting.len() < WAITING_MAX
        {
            handover.waiting.push_back(Wanted::Resume(resume));
            return None;
        }
        let is_busy = self.handovers.contains_key(&resume.room);
        let has_session =
            self.rooms.find(&resume.room).and_then(|id| self.home_mut(id)).is_some_and(|home| home.session.is_some());
        if !is_busy && !has_session && self.is_relaying() && !resume.was_sought {
            return Some(resume);
        }
        let Resume { room, address, identity, token, mut asked, .. } = resume;
        let unix_ms = self.now.unix_ms;
        let session = self.rooms.find(&room).and_then(|id| self.home_mut(id)).and_then(|home| home.session.as_mut());
        let outcome = match session {
            _ if is_busy => Err(Refused::new(ErrorCode::Unavailable, "too many connections want this session at once")),
            None => Err(Refused::new(ErrorCode::NotFound, "there is no such session any more")),
            Some(session) if !session.may_be_resumed(&identity.user_id, &token) => {
                Err(Refused::new(ErrorCode::Forbidden, "the session is another user's, or the token is not its own"))
            }
            Some(session) => {
                let old = session.take_up(address, unix_ms).filter(|old| *old != address);
                asked.turn = session.turn;
                asked.withdrawn = session.identity.permissions.withdrawn().cloned();
                // Where there is an old connection, that one knows what it had.
                let kept = if old.is_none() { session.take_kept() } else { None };
                self.begin_handover(room.clone(), address, Begins::Resume);
                if let Some(old) = old {
                    // Its shard passes on what it had and closes it.
                    let successor = Some((address, Box::new(asked)));
                    self.send(old.shard, Message::TakenOver { address: old, room, successor });
                    return None;
                }
                Ok(kept.map(|kept| *kept).unwrap_or_default())
            }
        };
        self.send(address.shard, Message::Resumed(Box::new(Resumed { address, asked, outcome })));
        None
    }

    /// What the connection that held a session had, for the one that takes it up.
    pub(super) fn hand_down(
        &mut self,
        room: &RoomName,
        successor: Address,
        asked: ResumeAsked,
        kept: Option<Box<Kept>>,
    ) {
        let limits = self.limits;
        let session = self.rooms.find(room).and_then(|id| self.home_mut(id)).and_then(|home| home.session.as_mut());
        let left = session.and_then(|session| session.take_kept());
        let (kept, freed) = join_kept(kept, left, &limits);
        self.free_locks(freed, Freed::SessionEnded);
        let outcome = Ok(kept.map(|kept| *kept).unwrap_or_default());
        let resumed = Resumed { address: successor, asked, outcome };
        self.send(successor.shard, Message::Resumed(Box::new(resumed)));
    }

    // ---- one at a time ----

    /// Nobody else is given the session until that connection has told that it has it, or what it had.
    pub(super) fn begin_handover(&mut self, room: RoomName, awaited: Address, begins: Begins) {
        self.handovers.insert(room, Handover { awaited, begins, waiting: VecDeque::new() });
    }

    /// A join of a session that is on its way from one connection to another waits for it; otherwise it is given back.
    pub(super) fn await_handover(&mut self, join: Join) -> Option<Join> {
        if !matches!(join.claim, JoinClaim::Session { .. }) {
            return Some(join);
        }
        let Some(handover) = self.handovers.get_mut(&join.room) else { return Some(join) };
        if handover.waiting.len() < WAITING_MAX {
            handover.waiting.push_back(Wanted::Join(join));
            return None;
        }
        let Join { room, address, selection, ticket, .. } = join;
        let outcome = Err(JoinRefused::SessionBusy);
        let (replay, resume_token, turn, withdrawn) = (None, None, Turn::default(), None);
        let joined = Joined { room, address, selection, ticket, outcome, replay, resume_token, turn, withdrawn };
        self.send(address.shard, Message::Joined(Box::new(joined)));
        None
    }

    /// Another node's wish for a session that is on its way from one connection to another waits for that; otherwise it is
    /// given back. One that is too many is answered by its responder that is dropped.
    pub(super) fn await_yield(&mut self, asked: YieldAsked) -> Option<YieldAsked> {
        let Some(handover) = self.handovers.get_mut(&asked.room) else { return Some(asked) };
        if handover.waiting.len() < WAITING_MAX {
            handover.waiting.push_back(Wanted::Yield(asked));
        }
        None
    }

    /// A connection has the session now, or has told what it had: whoever waits is next, until one of them begins another
    /// handover.
    pub(super) fn handover_settled(&mut self, room: &RoomName, address: Address) {
        if self.handovers.get(room).is_none_or(|handover| handover.awaited != address) {
            return;
        }
        let Some(Handover { mut waiting, .. }) = self.handovers.remove(room) else { return };
        while let Some(wanted) = waiting.pop_front() {
            match wanted {
                Wanted::Join(join) => self.join(join),
                // It was here when it began to wait. Where it was given to another node meanwhile it is not sought there:
                // whoever has it now came later.
                Wanted::Resume(resume) => drop(self.resume(Resume { was_sought: true, ..resume })),
                Wanted::Yield(asked) => self.yield_session(asked),
            }
            if let Some(handover) = self.handovers.get_mut(room) {
                handover.waiting.append(&mut waiting);
                return;
            }
        }
        if self.handovers.is_empty() {
            // What a storm of reconnects took is given back.
            self.handovers.shrink_to_fit();
        }
    }

    /// Forgets sessions that stayed away for too long, with what waits for the backend in their inboxes, and for them in
    /// their logs, and frees the locks that they held. Ends locks that are over.
    pub fn expire(&mut self, now: Now) {
        self.now = now;
        self.expire_presence(now);
        let now_ms = now.monotonic_us / 1000;
        while let Some((_, room)) = self.away.pop_front_if(|(until_ms, _)| *until_ms <= now_ms) {
            let Some(id) = self.rooms.find(&room) else { continue };
            let Some(home) = self.home_mut(id) else { continue };
            let Some(session) = home.session.as_mut() else { continue };
            let is_over = session.is_over(now_ms);
            let mut kept = None;
            if is_over || session.away_until_ms() <= now_ms {
                // Where it is not over it was taken over by its name, and what the old connection had was not asked for.
                kept = session.take_kept();
            }
            if is_over {
                home.session = None;
                let bytes = home.log().bytes();
                home.clear_log();
                self.log_bytes = self.log_bytes.saturating_sub(bytes);
                self.rooms.forget_if_idle(id);
            }
            self.free_locks(kept.map(|kept| kept.locks).unwrap_or_default(), Freed::SessionEnded);
        }
        self.expire_locks();
    }
}

/// What a connection had, with what an earlier one left; and the locks beyond the bound.
fn join_kept(
    kept: Option<Box<Kept>>,
    earlier: Option<Box<Kept>>,
    limits: &CoreLimits,
) -> (Option<Box<Kept>>, Vec<HeldLock>) {
    let (mut kept, mut earlier) = match (kept, earlier) {
        (Some(kept), Some(earlier)) => (kept, earlier),
        (one, other) => return (one.or(other), Vec::new()),
    };
    let freed = locks::merge(&mut kept.locks, std::mem::take(&mut earlier.locks), limits.locks_per_session_max);
    kept.add_earlier(*earlier, limits.rooms_per_session_max);
    (Some(kept), freed)
}
