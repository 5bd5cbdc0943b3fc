//! What a room's home does about presence: it takes in who comes and goes, tells the room's members where its kind wants
//! that, forgets who stayed away for too long, and answers who is there.

use std::sync::Arc;

use bytes::Bytes;

use super::core::Core;
use super::message::{HistoryTold, Message, OVERLOADED, Ticket};
use super::name::RoomName;
use super::presence::{Asker, Change, Moment, Presence, PresenceAsked, PresenceChange, RoomPresence, Tell};
use super::rooms::RoomId;
use crate::ring::Now;

/// What may be known of sessions that are away, over all rooms of a shard: about 160 bytes each. Beyond that the oldest
/// are forgotten before their time.
const AWAY_MAX: usize = if cfg!(test) { 64 } else { 1 << 18 };

impl Core {
    /// Handles a message about presence that is for a home; gives back what is not.
    pub(super) fn presence_message(&mut self, message: Message) -> Option<Message> {
        match message {
            Message::Presence(change) => self.presence_changed(*change),
            Message::PresenceAsked(asked) => self.presence_asked(*asked),
            Message::MembersListed(listed) => {
                let room = listed.room.clone();
                if let Some(id) = self.rooms.find(&room)
                    && let Some(presence) = self.presence_mut(id)
                {
                    presence.listed(*listed);
                    self.presence_listed(id, &room);
                }
            }
            other => return Some(other),
        }
        None
    }

    /// Whether members of such a room are told who comes and goes.
    pub fn tells_presence(&self, room: &RoomName) -> bool {
        self.rules.any_tells_presence() && self.rules.tells_presence(self.rules.place(room.as_str()))
    }

    fn presence_mut(&mut self, id: RoomId) -> Option<&mut Presence> {
        self.home_mut(id)?.presence_mut()
    }

    fn moment(&mut self, id: RoomId) -> Moment {
        let rules = self.home_mut(id).map(|home| home.rules);
        Moment {
            now_ms: self.now.monotonic_us / 1000,
            unix_ms: self.now.unix_ms,
            window_ms: self.limits.session_away_ms,
            tells: rules.is_some_and(|rules| self.rules.tells_presence(rules)),
        }
    }

    fn presence_changed(&mut self, changed: PresenceChange) {
        let PresenceChange { room, who, change } = changed;
        // Said before the membership ends: where there is no room, there is nothing to be known of it.
        let Some(id) = self.rooms.find(&room) else { return };
        let (moment, hash) = (self.moment(id), self.session_hash(&who.session_id));
        let Some(home) = self.home_mut(id) else { return };
        if home.presence().is_none() && change == Change::Gone && !who.turn.has_predecessor() {
            return;
        }
        let presence = home.contents().presence.get_or_insert_default();
        let (tell, look_again) = presence.change(hash, who.clone(), change, moment);
        self.tell_presence(&room, tell);
        self.presence_tidy(id);
        if let Some(until_ms) = look_again {
            self.presence_away.push_back((until_ms, room, who));
            if self.presence_away.len() > AWAY_MAX {
                self.figures.presence_forgotten += 1;
                self.forget_first_away();
            }
        }
    }

    /// Forgets who stayed away for too long.
    pub(super) fn expire_presence(&mut self, now: Now) {
        self.now = now;
        let now_ms = now.monotonic_us / 1000;
        while self.presence_away.front().is_some_and(|(until_ms, _, _)| *until_ms <= now_ms) {
            self.forget_first_away();
        }
    }

    fn forget_first_away(&mut self) {
        let Some((until_ms, room, who)) = self.presence_away.pop_front() else { return };
        let Some(id) = self.rooms.find(&room) else { return };
        let (tells, hash) = (self.moment(id).tells, self.session_hash(&who.session_id));
        let Some(presence) = self.presence_mut(id) else { return };
        let tell = presence.expire(hash, &who, until_ms, tells);
        self.tell_presence(&room, tell);
        self.presence_tidy(id);
    }

    fn tell_presence(&mut self, room: &RoomName, tell: Option<Tell>) {
        let Some(tell) = tell else { return };
        if self.is_relaying() {
            // Another node may have the session there.
            let (session, told) = (Arc::from(&*tell.who.session_id), tell.data());
            return self.presence_out.push((room.clone(), session, Bytes::from(told), tell.presenting()));
        }
        let now = self.now;
        let published = self.publish_here(room, tell.kind, &tell.data(), None, None, now);
        debug_assert!(published.is_ok(), "a room that is there takes its own events");
    }

    fn presence_tidy(&mut self, id: RoomId) {
        if let Some(home) = self.home_mut(id)
            && home.presence().is_some_and(|presence| presence.is_idle())
        {
            home.contents().presence = None;
            home.tidy();
            self.rooms.forget_if_idle(id);
        }
    }

    // ---- who is there ----

    fn presence_asked(&mut self, asked: PresenceAsked) {
        let PresenceAsked { room, asker } = asked;
        let id = self.rooms.find(&room);
        let home = id.and_then(|id| self.home_mut(id));
        let (Some(id), Some(home)) = (id, home) else {
            return self.tell_askers(&room, &RoomPresence::default(), vec![asker]);
        };
        match home.contents().presence.get_or_insert_default().ask(asker) {
            Ok(true) => self.ask_shards(id, &room),
            Ok(false) => {}
            Err(Asker::Client { address, reference }) => {
                let (ticket, outcome) = (Ticket::Single(reference), Err(OVERLOADED));
                self.send(address.shard, Message::Published { address, ticket, room, outcome });
            }
            Err(Asker::Handle(responder)) => responder.resolve(Err(OVERLOADED.into())),
        }
    }

    /// Asks the shards that have members for them.
    fn ask_shards(&mut self, id: RoomId, room: &RoomName) {
        let home_shard = self.me();
        let Some(home) = self.home_mut(id) else { return };
        let shards: Vec<_> = home.members.shards().collect();
        if let Some(presence) = home.presence_mut() {
            presence.begin(shards.len());
        }
        for shard in &shards {
            self.send(*shard, Message::ListMembers { room: room.clone(), home: home_shard });
        }
        if shards.is_empty() {
            self.presence_listed(id, room);
        }
    }

    /// A shard has answered, perhaps the last one.
    fn presence_listed(&mut self, id: RoomId, room: &RoomName) {
        let seq = self.home_mut(id).map_or(0, |home| home.seq);
        let Some((presence, askers)) = self.presence_mut(id).and_then(|presence| presence.complete(seq)) else {
            return;
        };
        // What was told of these members goes first.
        self.seal(id);
        self.tell_askers(room, &presence, askers);
        if self.presence_mut(id).is_some_and(|presence| presence.is_awaited()) {
            self.ask_shards(id, room);
        }
        self.presence_tidy(id);
    }

    fn tell_askers(&mut self, room: &RoomName, presence: &RoomPresence, askers: Vec<Asker>) {
        let mut body = None;
        for asker in askers {
            match asker {
                Asker::Client { address, reference } => {
                    let body = body.get_or_insert_with(|| Bytes::from(presence.body(room.as_str()))).clone();
                    let told = HistoryTold { address, ticket: Ticket::Single(reference), kind: "presence", body };
                    self.send(address.shard, Message::HistoryTold(Box::new(told)));
                }
                Asker::Handle(responder) => responder.resolve(Ok(presence.clone())),
            }
        }
    }
}

#[cfg(test)]
mod tests {

    use super::super::batch::Address;
    use super::super::core::CoreLimits;
    use super::super::message::{Join, JoinClaim};
    use super::super::name::{NameHasher, ShardId};
    use super::super::presence::{Turn, Who};
    use super::super::rules::Rules;
    use super::*;
    use crate::auth::Identity;
    use crate::config::Config;
    use crate::ring::ConnKey;

    const ROOM: &str = "project:a";

    fn core() -> Core {
        let config = Config::default();
        let (limits, rules) = (CoreLimits::new(&config), Rules::new(&config));
        Core::new(ShardId(0), 1, NameHasher::new(0), [1, 2], limits, rules)
    }

    fn tell(core: &mut Core, session: &str, change: Change) {
        let who = Who {
            client_id: session.into(),
            session_id: session.into(),
            identity: Arc::new(Identity::anonymous("ann".to_owned())),
            metadata: Default::default(),
            turn: Turn::default().next(1),
        };
        let changed = PresenceChange { room: core.hasher().room(ROOM), who: Arc::new(who), change };
        assert!(core.handle(Message::Presence(Box::new(changed)), Now::default()).is_none());
    }

    fn join(core: &mut Core) {
        let room = core.hasher().room(ROOM);
        let address = Address { shard: ShardId(0), conn: ConnKey { slot: 1, generation: 0 } };
        let (claim, ticket) = (JoinClaim::None, Ticket::Single(None));
        let join = Join { room, address, claim, selection: None, since: None, ticket };
        assert!(core.handle(Message::Join(Box::new(join)), Now::default()).is_none());
    }

    fn known(core: &mut Core) -> Option<&mut Presence> {
        let id = core.rooms.find(&core.hasher().room(ROOM))?;
        core.presence_mut(id)
    }

    #[test]
    fn a_room_whose_members_are_told_nothing_knows_nothing_of_those_who_are_there() {
        let mut core = core();
        join(&mut core);
        tell(&mut core, "s", Change::Gone);
        assert!(known(&mut core).is_none());
        tell(&mut core, "s", Change::Away);
        assert!(known(&mut core).is_some());
        core.expire(Now { monotonic_us: 121_000_000, unix_ms: 121_000 });
        assert!(known(&mut core).is_none());
    }

    #[test]
    fn beyond_their_bound_those_who_are_away_for_longest_are_forgotten_and_counted() {
        let mut core = core();
        join(&mut core);
        for number in 0..AWAY_MAX + 2 {
            tell(&mut core, &number.to_string(), Change::Away);
        }
        assert_eq!((core.presence_away.len(), core.figures().presence_forgotten), (AWAY_MAX, 2));
        assert_eq!(known(&mut core).map(|presence| presence.known_sessions()), Some(AWAY_MAX));
    }
}
