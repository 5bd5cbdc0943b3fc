//! What the home of a session does when its connection goes, when another one takes it up, and when nobody does.

use super::batch::Address;
use super::core::Core;
use super::locks::{self, Freed};
use super::message::{Kept, Message, Resume, ResumeAsked, Resumed};
use super::name::RoomName;
use crate::ring::Now;
use crate::wire::codes::ErrorCode;
use crate::wire::native::Refused;

impl Core {
    /// A connection that held a session is gone; what is left of it can be resumed for a while.
    pub(super) fn release_session(&mut self, room: RoomName, address: Address, kept: Option<Box<Kept>>) {
        let away_until_ms = self.now.monotonic_us / 1000 + self.limits.session_away_ms;
        let mut kept = kept;
        let mut held = kept.as_mut().map(|kept| std::mem::take(&mut kept.locks)).unwrap_or_default();
        let kept = kept.filter(|_| self.limits.session_away_ms > 0);
        let locks_max = self.limits.locks_per_session_max;
        let id = self.rooms.find(&room);
        let session = id.and_then(|id| self.home_mut(id)).and_then(|home| home.session.as_mut());
        let (Some(id), Some(session)) = (id, session) else { return self.free_locks(held, Freed::SessionEnded) };
        // What an earlier connection of it left behind and nobody asked for is still the session's.
        let before = session.kept.as_mut().map(|kept| std::mem::take(&mut kept.locks)).unwrap_or_default();
        let mut freed = locks::merge(&mut held, before, locks_max);
        let is_away = session.leave(address, kept, away_until_ms);
        match session.kept.as_mut() {
            Some(kept) => kept.locks = held,
            None => freed.append(&mut held),
        }
        if is_away {
            self.away.push_back((away_until_ms, room));
        }
        self.free_locks(freed, Freed::SessionEnded);
        self.rooms.forget_if_idle(id);
    }

    /// A connection wants to take a session up.
    pub(super) fn resume(&mut self, resume: Resume) {
        let Resume { room, address, identity, token, mut asked } = resume;
        let unix_ms = self.now.unix_ms;
        let session = self.rooms.find(&room).and_then(|id| self.home_mut(id)).and_then(|home| home.session.as_mut());
        let outcome = match session {
            None => Err(Refused::new(ErrorCode::NotFound, "there is no such session any more")),
            Some(session) if !session.may_be_resumed(&identity.user_id, &token) => {
                Err(Refused::new(ErrorCode::Forbidden, "the session is another user's, or the token is not its own"))
            }
            Some(session) => {
                let old = session.take_up(address, unix_ms).filter(|old| *old != address);
                asked.turn = session.turn;
                asked.withdrawn = session.identity.permissions.withdrawn().cloned();
                if let Some(old) = old {
                    // The old connection knows what it had; its shard passes that on and closes it.
                    let successor = Some((address, Box::new(asked)));
                    self.send(old.shard, Message::TakenOver { address: old, successor });
                    return;
                }
                Ok(session.kept.take().map(|kept| *kept).unwrap_or_default())
            }
        };
        self.send(address.shard, Message::Resumed(Box::new(Resumed { address, asked, outcome })));
    }

    /// The connection that held a session was gone when it was to pass on what it had.
    pub(super) fn take_kept(&mut self, room: &RoomName, successor: Address, asked: ResumeAsked) {
        let session = self.rooms.find(room).and_then(|id| self.home_mut(id)).and_then(|home| home.session.as_mut());
        // Where yet another one has taken it up, this one is being closed.
        let Some(session) = session.filter(|session| session.live == Some(successor)) else { return };
        let kept = session.kept.take().map(|kept| *kept).unwrap_or_default();
        self.send(
            successor.shard,
            Message::Resumed(Box::new(Resumed { address: successor, asked, outcome: Ok(kept) })),
        );
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
            if is_over || session.away_until_ms <= now_ms {
                // Where it is not over it was taken over by its name, and what the old connection had was not asked for.
                kept = session.kept.take();
            }
            if is_over {
                home.session = None;
                let bytes = home.log.bytes();
                home.log.clear();
                self.log_bytes = self.log_bytes.saturating_sub(bytes);
                self.rooms.forget_if_idle(id);
            }
            self.free_locks(kept.map(|kept| kept.locks).unwrap_or_default(), Freed::SessionEnded);
        }
        self.expire_locks();
    }
}
