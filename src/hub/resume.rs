//! What the home of a session does when its connection goes, when another one takes it up, and when nobody does.

use super::batch::Address;
use super::core::Core;
use super::message::{Kept, Message, Resume, ResumeAsked, Resumed};
use super::name::RoomName;
use crate::ring::Now;
use crate::wire::codes::ErrorCode;
use crate::wire::native::Refused;

impl Core {
    /// A connection that held a session is gone; what is left of it can be resumed for a while.
    pub(super) fn release_session(&mut self, room: RoomName, address: Address, kept: Option<Box<Kept>>) {
        let away_until_ms = self.now.monotonic_us / 1000 + self.limits.session_away_ms;
        let kept = kept.filter(|_| self.limits.session_away_ms > 0);
        let Some(id) = self.rooms.find(&room) else { return };
        let Some(session) = self.home_mut(id).and_then(|home| home.session.as_mut()) else { return };
        if session.leave(address, kept, away_until_ms) {
            self.away.push_back((away_until_ms, room));
        }
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
            Some(session) => match (session.take_up(address, unix_ms), session.turn) {
                (Some(old), turn) if old != address => {
                    asked.turn = turn;
                    // The old connection knows what it had; its shard passes that on and closes it.
                    let successor = Some((address, Box::new(asked)));
                    self.send(old.shard, Message::TakenOver { address: old, successor });
                    return;
                }
                (_, turn) => {
                    asked.turn = turn;
                    Ok(session.kept.take().map(|kept| *kept).unwrap_or_default())
                }
            },
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
    /// their logs.
    pub fn expire(&mut self, now: Now) {
        self.expire_presence(now);
        let now_ms = now.monotonic_us / 1000;
        while let Some((_, room)) = self.away.pop_front_if(|(until_ms, _)| *until_ms <= now_ms) {
            let Some(id) = self.rooms.find(&room) else { continue };
            let Some(home) = self.home_mut(id) else { continue };
            let Some(session) = home.session.as_mut() else { continue };
            if session.is_over(now_ms) {
                home.session = None;
                let bytes = home.log.bytes();
                home.log.clear();
                self.log_bytes = self.log_bytes.saturating_sub(bytes);
                self.rooms.forget_if_idle(id);
            } else if session.away_until_ms <= now_ms {
                // Taken over by its name, and what the old connection had was not asked for.
                session.kept = None;
            }
        }
    }
}
