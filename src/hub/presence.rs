//! Who is in a room, as its home knows it: for how long a session counts that is away, and, where the room's kind tells
//! its members who comes and goes, every session that is in it.
//!
//! A session is in a room while its connection is a member, and from the end of that connection on for as long as it can be
//! resumed. Where nobody is told, the home need not know who is there: shards list their members when somebody asks, and
//! this table has only those who are away. So it costs such rooms nothing per member.
//!
//! A session may have an old and a new connection for a moment, on different shards, whose messages arrive in any order.
//! Each connection has its [`Turn`] at the session, and the newest turn decides: what an older one says after it counts no
//! more.
//!
//! Larger than most files, because what is known of a session and what a listing makes of it have to be read together.

use std::sync::Arc;

use hashbrown::HashTable;
use serde_json::{Map, Value};

use super::batch::Address;
use super::name::RoomName;
use super::reply::Responder;
use crate::auth::Identity;
use crate::session::ClientId;
use crate::session::SessionId;
use crate::wire::envelope::rfc3339;
use crate::wire::json::{write_string, write_u64};
use crate::wire::native::Reference;

/// The most members that an answer lists; it counts all of them.
pub const MEMBERS_LISTED_MAX: usize = 1000;
/// Bytes of one answer, at about: metadata may be long.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Questions that may wait for one room. They are answered together, so this bounds memory, not work.
const ASKERS_MAX: usize = 4096;
/// The type of the event that tells who has come.
const JOINED: &str = "presence.joined";
/// A table of this size is not worth being made smaller.
const KNOWN_KEPT: usize = 64;

/// Which of a session's connections: each that holds the session has a turn later than those before it.
///
/// ```text
/// | milliseconds since 1970 : 43 | a number within them : 20 | whether there was one before : 1 |
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn(u64);

impl Turn {
    /// As it is told to another node.
    pub(super) fn number(self) -> u64 {
        self.0
    }

    /// What [`Turn::number`] told.
    pub(super) fn of_number(number: u64) -> Turn {
        Turn(number)
    }

    /// The turn after this one. The time is in it so that turns also grow across the lives of a session with one name.
    pub fn next(self, unix_ms: u64) -> Turn {
        let after = ((self.0 >> 1) + 1) << 1;
        Turn(after.max(unix_ms << 21) | u64::from(self != Turn::default()))
    }

    /// When it began, in milliseconds since 1970.
    pub fn began_ms(self) -> u64 {
        self.0 >> 21
    }

    /// Whether another connection may have held the session before.
    pub(super) fn has_predecessor(self) -> bool {
        self.0 & 1 == 1
    }
}

/// A session and the connection that holds it.
#[derive(Debug, Clone)]
pub struct Who {
    /// The connection's id.
    pub client_id: ClientId,
    /// The session's id.
    pub session_id: SessionId,
    /// Whose it is.
    pub identity: Arc<Identity>,
    /// The connection's metadata.
    pub metadata: Map<String, Value>,
    /// Which of the session's connections it is.
    pub turn: Turn,
}

/// What became of a session in a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is a member. Said only where the room's kind tells its members.
    Entered,
    /// Its connection ended, and it can be resumed.
    Away,
    /// It left, or ended.
    Gone,
    /// It is at another node from here on.
    Moved,
}

/// What becomes of a session in a room, as members are told where several nodes have the room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presenting {
    /// It is there.
    There,
    /// It left.
    Left,
    /// It goes to another node: if it is not there after a while, it has left.
    Moves,
}

/// A change on its way to the room's home.
#[derive(Debug)]
pub struct PresenceChange {
    /// The room.
    pub room: RoomName,
    /// Who.
    pub who: Arc<Who>,
    /// What became of it.
    pub change: Change,
}

/// The question who is in a room, on its way to the room's home.
#[derive(Debug)]
pub struct PresenceAsked {
    /// The room.
    pub room: RoomName,
    /// Who is told.
    pub asker: Asker,
}

/// Who wants to know who is in a room.
#[derive(Debug)]
pub enum Asker {
    /// A client.
    Client {
        /// Which.
        address: Address,
        /// The command's id.
        reference: Option<Reference>,
    },
    /// A caller of the hub's handle.
    Handle(Responder<RoomPresence>),
}

/// A shard's members of a room, on their way to its home.
#[derive(Debug)]
pub struct MembersListed {
    /// The room.
    pub room: RoomName,
    /// The sessions of all of them: the hash of the session's id, and the connection's turn.
    pub sessions: Vec<(u64, Turn)>,
    /// At most [`MEMBERS_LISTED_MAX`] of them, each with its session's hash.
    pub members: Vec<(u64, Who)>,
}

/// Who is in a room.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoomPresence {
    /// How many sessions.
    pub count: usize,
    /// The first [`MEMBERS_LISTED_MAX`] of them, in the order in which they joined.
    pub members: Vec<Present>,
    /// The room's last event before this was found out.
    pub seq: u64,
}

/// A session that is in a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Present {
    /// The id of its connection; of its last one while it is away.
    pub client_id: ClientId,
    /// Whose it is.
    pub user_id: Box<str>,
    /// Its id.
    pub session_id: SessionId,
    /// Its connection's metadata.
    pub metadata: Map<String, Value>,
    /// Since when it is there, in milliseconds since 1970: when it joined, where the room's kind has `presence_events`;
    /// else when its connection took the session up.
    pub joined_ms: u64,
}

/// An event that members are told.
#[derive(Debug)]
pub(super) struct Tell {
    pub kind: &'static str,
    pub who: Arc<Who>,
    pub joined_ms: u64,
    /// Whether it is at another node from here on.
    pub moves: bool,
}

/// What goes by at a room's home when something changes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// Milliseconds of the monotonic clock.
    pub now_ms: u64,
    /// Milliseconds since 1970.
    pub unix_ms: u64,
    /// For how long a session can be resumed.
    pub window_ms: u64,
    /// Whether the room's kind tells its members.
    pub tells: bool,
}

/// What a room's home knows of who is in it, and who wants to know.
#[derive(Debug, Default)]
pub struct Presence {
    known: HashTable<Known>,
    /// Shards are being asked.
    listing: Option<Box<Listing>>,
    /// Asked meanwhile: they are answered by the next listing, so that many questions cost no more than one at a time.
    waiting: Vec<Asker>,
}

#[derive(Debug)]
struct Known {
    /// Of the session's id.
    hash: u64,
    who: Arc<Who>,
    joined_ms: u64,
    state: KnownState,
    /// Whether members were told that it joined, and have to be told that it left.
    told: bool,
}

/// Times are in milliseconds of the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KnownState {
    Live,
    /// Until then it can be resumed.
    Away(u64),
    /// Remembered until then, since a connection that held the session before may still be heard of.
    Gone(u64),
}

#[derive(Debug, Default)]
struct Listing {
    /// Shards that have not answered.
    shards: usize,
    askers: Vec<Asker>,
    sessions: Vec<(u64, Turn)>,
    members: Vec<(u64, Who)>,
    /// Who was said to be gone since its shard answered.
    gone: Vec<(u64, Turn)>,
    /// Who was forgotten here because its time away was over. It may be there again on a shard that answered before.
    lingering: Vec<(u64, Arc<Who>)>,
}

impl Presence {
    /// Whether nothing would be lost with it.
    pub fn is_idle(&self) -> bool {
        self.known.is_empty() && self.listing.is_none() && self.waiting.is_empty()
    }

    /// Sessions of which something is known.
    #[cfg(test)]
    pub(super) fn known_sessions(&self) -> usize {
        self.known.len()
    }

    /// Something became of a session: what members have to be told of it, and when to look again.
    pub(super) fn change(
        &mut self,
        hash: u64,
        who: Arc<Who>,
        change: Change,
        moment: Moment,
    ) -> (Option<Tell>, Option<u64>) {
        let until_ms = moment.now_ms + moment.window_ms;
        let state = match change {
            Change::Entered => KnownState::Live,
            Change::Away if moment.window_ms > 0 => KnownState::Away(until_ms),
            Change::Away | Change::Gone | Change::Moved => KnownState::Gone(until_ms),
        };
        let is_gone = matches!(state, KnownState::Gone(_));
        if let (true, Some(listing)) = (is_gone, &mut self.listing) {
            listing.gone.push((hash, who.turn));
        }
        // Who leaves at once is remembered only where a former connection may come after it.
        let remembered = !is_gone || moment.window_ms > 0 && who.turn.has_predecessor();
        let look_again = (remembered && state != KnownState::Live).then_some(until_ms);
        let (tell, look_again) = match self.known.find_entry(hash, |known| known.who.session_id == who.session_id) {
            Ok(entry) if who.turn < entry.get().who.turn => (None, None),
            Ok(mut entry) => {
                let known = entry.get_mut();
                if !known.is_present() {
                    known.joined_ms = moment.unix_ms;
                }
                known.who = who;
                known.state = state;
                let tell = known.settle(moment.tells);
                if !remembered {
                    entry.remove();
                }
                (tell, look_again)
            }
            Err(_) if !remembered => (None, None),
            Err(_) => {
                let joined_ms = if change == Change::Entered { moment.unix_ms } else { who.turn.began_ms() };
                let mut known = Known { hash, who, joined_ms, state, told: false };
                let tell = known.settle(moment.tells);
                self.known.insert_unique(hash, known, |known| known.hash);
                (tell, look_again)
            }
        };
        (tell.map(|tell| Tell { moves: change == Change::Moved, ..tell }), look_again)
    }

    /// The time until which something is known of a session is over, if it is still that time.
    pub(super) fn expire(&mut self, hash: u64, who: &Who, until_ms: u64, tells: bool) -> Option<Tell> {
        let entry = self.known.find_entry(hash, |known| known.who.session_id == who.session_id);
        let mut entry = entry.ok().filter(|entry| {
            let state = entry.get().state;
            state == KnownState::Away(until_ms) || state == KnownState::Gone(until_ms)
        })?;
        let was_present = entry.get().is_present();
        entry.get_mut().state = KnownState::Gone(until_ms);
        let tell = entry.get_mut().settle(tells);
        let (known, _) = entry.remove();
        if was_present
            && tell.is_none()
            && let Some(listing) = &mut self.listing
        {
            listing.lingering.push((hash, known.who));
        }
        // After a crowd left, the table shrinks with it.
        if self.known.len() * 8 < self.known.capacity() && self.known.capacity() > KNOWN_KEPT {
            self.known.shrink_to(self.known.len() * 2, |known| known.hash);
        }
        tell
    }

    /// Somebody wants to know; true where the shards are to be asked now. Given back where too many wait already.
    pub(super) fn ask(&mut self, asker: Asker) -> Result<bool, Asker> {
        if self.waiting.len() >= ASKERS_MAX {
            return Err(asker);
        }
        self.waiting.push(asker);
        Ok(self.listing.is_none())
    }

    /// So many shards are being asked, for all who wait.
    pub(super) fn begin(&mut self, shards: usize) {
        let askers = std::mem::take(&mut self.waiting);
        self.listing = Some(Box::new(Listing { shards, askers, ..Listing::default() }));
    }

    /// Whether somebody waits for the shards to be asked again.
    pub(super) fn is_awaited(&self) -> bool {
        self.listing.is_none() && !self.waiting.is_empty()
    }

    /// A shard has answered.
    pub(super) fn listed(&mut self, listed: MembersListed) {
        let Some(listing) = &mut self.listing else { return };
        let MembersListed { sessions, members, .. } = listed;
        // What it said before this answer is in it.
        listing.gone.retain(|gone| !sessions.contains(gone));
        listing.shards = listing.shards.saturating_sub(1);
        listing.sessions.extend(sessions);
        listing.members.extend(members);
    }

    /// Who is there, and who wanted to know it, as soon as every shard has answered.
    ///
    /// Those whom the shards named were there when they did; what has happened to them since then is known here.
    pub(super) fn complete(&mut self, seq: u64) -> Option<(RoomPresence, Vec<Asker>)> {
        let listing = *self.listing.take_if(|listing| listing.shards == 0)?;
        let Listing { askers, mut sessions, members, gone, lingering, .. } = listing;
        // The newest connection of each session counts.
        sessions.sort_unstable_by(|one, other| other.cmp(one));
        sessions.dedup_by_key(|(hash, _)| *hash);
        sessions.reverse();
        sessions.retain(|(hash, turn)| {
            let is_gone = gone.iter().any(|(one, said)| one == hash && said >= turn);
            let known = self.known.find(*hash, |known| known.hash == *hash);
            !is_gone && known.is_none_or(|known| known.who.turn <= *turn)
        });
        let is_listed = |hash: u64| sessions.binary_search_by_key(&hash, |(one, _)| *one).is_ok();
        let mut count = sessions.len();
        let mut present: Vec<Present> = Vec::with_capacity(count.min(MEMBERS_LISTED_MAX));
        for (hash, who) in members {
            if sessions.binary_search(&(hash, who.turn)).is_ok() {
                let known = self.known.find(hash, |known| known.who.session_id == who.session_id);
                let live = known.filter(|known| known.state == KnownState::Live);
                let joined_ms = live.map_or(who.turn.began_ms(), |known| known.joined_ms);
                present.push(Present::new(who, joined_ms));
            }
        }
        let known = self.known.iter().filter(|known| known.is_present());
        let known = known.map(|known| (known.hash, &known.who, known.joined_ms));
        let lingering = lingering.iter().map(|(hash, who)| (*hash, who, who.turn.began_ms()));
        let lingering = lingering.filter(|(hash, who, _)| {
            let is_gone = gone.iter().any(|(one, said)| one == hash && *said >= who.turn);
            !is_gone && self.known.find(*hash, |known| known.hash == *hash).is_none()
        });
        for (_, who, joined_ms) in known.chain(lingering).filter(|(hash, _, _)| !is_listed(*hash)) {
            count += 1;
            if present.len() < MEMBERS_LISTED_MAX {
                present.push(Present::new(Who::clone(who), joined_ms));
            }
        }
        present.sort_by(|one, other| (one.joined_ms, &one.client_id).cmp(&(other.joined_ms, &other.client_id)));
        present.truncate(MEMBERS_LISTED_MAX);
        Some((RoomPresence { count, members: present, seq }, askers))
    }
}

impl Known {
    fn is_present(&self) -> bool {
        !matches!(self.state, KnownState::Gone(_))
    }

    /// What members have to be told so that they know what is so.
    fn settle(&mut self, tells: bool) -> Option<Tell> {
        let kind = match (self.told, self.state) {
            (false, KnownState::Live) if tells => JOINED,
            (true, KnownState::Gone(_)) => "presence.left",
            _ => return None,
        };
        self.told = !self.told;
        tells.then(|| Tell { kind, who: self.who.clone(), joined_ms: self.joined_ms, moves: false })
    }
}

impl Present {
    fn new(who: Who, joined_ms: u64) -> Present {
        let Who { client_id, session_id, identity, metadata, .. } = who;
        let user_id = identity.user_id.as_str().into();
        Present { client_id, user_id, session_id, metadata, joined_ms }
    }

    /// Appends it as JSON.
    fn write(&self, out: &mut Vec<u8>) {
        write_member(out, &self.client_id, &self.user_id, &self.session_id, &self.metadata, self.joined_ms);
    }
}

impl Tell {
    /// What it tells.
    pub fn presenting(&self) -> Presenting {
        match self.kind {
            JOINED => Presenting::There,
            _ if self.moves => Presenting::Moves,
            _ => Presenting::Left,
        }
    }

    /// The event's data.
    pub fn data(&self) -> Vec<u8> {
        let Who { client_id, session_id, identity, metadata, .. } = &*self.who;
        let mut data = Vec::new();
        write_member(&mut data, client_id, &identity.user_id, session_id, metadata, self.joined_ms);
        data
    }
}

impl RoomPresence {
    /// Whether there are more than are listed.
    pub fn has_more(&self) -> bool {
        self.count > self.members.len()
    }

    /// The data of the answer to `presence`; it ends at about 1 MiB.
    pub fn body(&self, room: &str) -> Vec<u8> {
        let mut body = b"{\"room\":".to_vec();
        write_string(&mut body, room);
        body.extend_from_slice(b",\"seq\":");
        write_u64(&mut body, self.seq);
        body.extend_from_slice(b",\"count\":");
        write_u64(&mut body, self.count as u64);
        body.extend_from_slice(b",\"members\":[");
        let mut written = 0;
        for member in &self.members {
            if body.len() > ANSWER_BYTES_MAX {
                break;
            }
            if written > 0 {
                body.push(b',');
            }
            member.write(&mut body);
            written += 1;
        }
        body.extend_from_slice(if written < self.count { b"],\"more\":true}" } else { b"],\"more\":false}" });
        body
    }
}

fn write_member(
    out: &mut Vec<u8>,
    client_id: &str,
    user_id: &str,
    session_id: &str,
    metadata: &Map<String, Value>,
    joined_ms: u64,
) {
    out.extend_from_slice(b"{\"client_id\":");
    write_string(out, client_id);
    out.extend_from_slice(b",\"user_id\":");
    write_string(out, user_id);
    out.extend_from_slice(b",\"session_id\":");
    write_string(out, session_id);
    out.extend_from_slice(b",\"metadata\":");
    match serde_json::to_vec(metadata) {
        Ok(text) => out.extend_from_slice(&text),
        Err(_) => out.extend_from_slice(b"{}"),
    }
    out.extend_from_slice(b",\"joined_at\":\"");
    out.extend_from_slice(&rfc3339(joined_ms));
    out.extend_from_slice(b"\"}");
}

#[cfg(test)]
mod tests {
    use super::super::name::NameHasher;
    use super::super::reply::pending;
    use super::*;

    const WINDOW_MS: u64 = 1000;

    fn at(now_ms: u64) -> Moment {
        Moment { now_ms, unix_ms: now_ms, window_ms: WINDOW_MS, tells: true }
    }

    fn turn(number: u64) -> Turn {
        (1..number).fold(Turn::default().next(0), |turn, _| turn.next(0))
    }

    fn hash(session: &str) -> u64 {
        NameHasher::new(0).hash(session)
    }

    fn who(session: &str, number: u64) -> Who {
        Who {
            client_id: format!("{session}-{number}").into(),
            session_id: session.into(),
            identity: Arc::new(Identity::anonymous("ann".to_owned())),
            metadata: Map::new(),
            turn: turn(number),
        }
    }

    impl Presence {
        fn told(&mut self, session: &str, number: u64, change: Change, moment: Moment) -> Option<&'static str> {
            let (tell, _) = self.change(hash(session), who(session, number).into(), change, moment);
            tell.map(|tell| tell.kind)
        }

        fn expired(&mut self, session: &str, until_ms: u64) -> Option<&'static str> {
            self.expire(hash(session), &who(session, 1), until_ms, true).map(|tell| tell.kind)
        }

        /// Asks shards which have these members, and says who is there.
        fn list(&mut self, shards: &[&[(&str, u64)]], meanwhile: impl FnOnce(&mut Presence)) -> Vec<String> {
            let (responder, _pending) = pending();
            assert!(matches!(self.ask(Asker::Handle(responder)), Ok(true)));
            self.begin(shards.len());
            let mut meanwhile = Some(meanwhile);
            for members in shards {
                self.listed(listed(members));
                if let Some(meanwhile) = meanwhile.take() {
                    meanwhile(self);
                }
            }
            let (presence, askers) = self.complete(7).expect("all have answered");
            assert_eq!((askers.len(), presence.count, presence.seq), (1, presence.members.len(), 7));
            let mut names: Vec<String> = presence.members.iter().map(|member| member.client_id.to_string()).collect();
            names.sort();
            names
        }
    }

    fn listed(members: &[(&str, u64)]) -> MembersListed {
        let members: Vec<_> = members.iter().map(|(session, number)| (hash(session), who(session, *number))).collect();
        let sessions = members.iter().map(|(hash, who)| (*hash, who.turn)).collect();
        MembersListed { room: NameHasher::new(0).room("a:b"), sessions, members }
    }

    #[test]
    fn turns_grow_and_know_whether_they_are_the_first() {
        let first = Turn::default().next(5);
        assert_eq!((first.began_ms(), first.has_predecessor()), (5, false));
        let second = first.next(5);
        assert!(second > first && second.has_predecessor());
        assert!(second.next(4) > second, "also when the clock goes back");
        assert!(Turn::default().next(6) > second, "also in another life of the session");
    }

    #[test]
    fn a_reconnect_within_the_window_is_no_event() {
        let mut presence = Presence::default();
        assert_eq!(presence.told("s", 1, Change::Entered, at(0)), Some("presence.joined"));
        assert_eq!(presence.told("s", 1, Change::Entered, at(1)), None, "subscribed anew");
        assert_eq!(presence.told("s", 1, Change::Away, at(10)), None);
        assert_eq!(presence.told("s", 2, Change::Entered, at(500)), None);
        assert_eq!(presence.expired("s", 1010), None, "it is there again");
        assert_eq!(presence.told("s", 2, Change::Away, at(2000)), None);
        assert_eq!(presence.expired("s", 3000), Some("presence.left"));
        assert!(presence.is_idle());
    }

    #[test]
    fn the_newest_connection_decides_in_whatever_order_they_are_heard_of() {
        let mut presence = Presence::default();
        assert_eq!(presence.told("s", 1, Change::Entered, at(0)), Some("presence.joined"));
        assert_eq!(presence.told("s", 2, Change::Entered, at(1)), None);
        assert_eq!(presence.told("s", 1, Change::Away, at(2)), None);
        assert_eq!(presence.told("s", 2, Change::Gone, at(3)), Some("presence.left"));
        assert_eq!(presence.told("s", 1, Change::Away, at(4)), None);
        assert_eq!(presence.list(&[&[("s", 1)]], |_| ()), [""; 0], "the old connection counts no more");
        assert_eq!(presence.told("s", 2, Change::Entered, at(5)), Some("presence.joined"), "the new one may come back");
        assert_eq!(presence.told("s", 2, Change::Gone, at(6)), Some("presence.left"));
        assert_eq!(presence.expired("s", 1006), None);
        assert!(presence.is_idle());
    }

    #[test]
    fn who_cannot_be_resumed_leaves_at_once() {
        let mut presence = Presence::default();
        let at = |now_ms| Moment { window_ms: 0, ..at(now_ms) };
        assert_eq!(presence.told("s", 1, Change::Entered, at(0)), Some("presence.joined"));
        assert_eq!(presence.told("s", 1, Change::Away, at(1)), Some("presence.left"));
        assert!(presence.is_idle());
    }

    #[test]
    fn members_who_are_told_nothing_cost_nothing_until_they_are_away() {
        let mut presence = Presence::default();
        let silent = |now_ms| Moment { tells: false, ..at(now_ms) };
        assert_eq!(presence.told("s", 1, Change::Gone, silent(0)), None);
        assert!(presence.is_idle());
        assert_eq!(presence.told("s", 1, Change::Away, silent(0)), None);
        assert_eq!(presence.list(&[&[("t", 1)], &[("u", 1)]], |_| ()), ["s-1", "t-1", "u-1"]);
        assert_eq!(presence.list(&[&[("s", 2)]], |_| ()), ["s-2"], "it is back: once, as it is now");
        assert_eq!(presence.expired("s", WINDOW_MS), None);
        assert!(presence.is_idle());
    }

    #[test]
    fn what_happens_while_the_shards_are_asked_counts() {
        let mut presence = Presence::default();
        let silent = |now_ms| Moment { tells: false, ..at(now_ms) };
        let left = presence.list(&[&[("s", 1), ("t", 1)], &[]], |presence| {
            assert_eq!(presence.told("s", 1, Change::Gone, silent(0)), None);
            assert_eq!(presence.told("t", 1, Change::Away, silent(0)), None);
        });
        assert_eq!(left, ["t-1"], "one left, one is away");
        let moved = presence.list(&[&[], &[("t", 2)]], |_| ());
        assert_eq!(moved, ["t-2"]);
        let back = presence.list(&[&[], &[]], |presence| assert_eq!(presence.expired("t", WINDOW_MS), None));
        assert_eq!(back, ["t-1"], "it may be back on the shard that answered first");
        assert!(presence.is_idle());
        let told = presence.list(&[&[("s", 1)], &[]], |presence| {
            assert_eq!(presence.told("u", 1, Change::Entered, at(0)), Some("presence.joined"));
            assert_eq!(presence.told("s", 1, Change::Entered, at(0)), Some("presence.joined"));
            assert_eq!(presence.told("s", 1, Change::Gone, at(1)), Some("presence.left"));
        });
        assert_eq!(told, ["u-1"], "as members were told before the answer");
    }

    #[test]
    fn questions_that_come_meanwhile_are_answered_together() {
        let mut presence = Presence::default();
        let ask = |presence: &mut Presence| presence.ask(Asker::Handle(pending().0)).ok();
        assert_eq!(ask(&mut presence), Some(true));
        presence.begin(1);
        assert!((0..ASKERS_MAX).all(|_| ask(&mut presence) == Some(false)));
        assert_eq!(ask(&mut presence), None, "too many");
        assert!(presence.complete(0).is_none(), "a shard has not answered");
        presence.listed(listed(&[]));
        assert_eq!(presence.complete(0).map(|(_, askers)| askers.len()), Some(1));
        assert!(presence.is_awaited());
        presence.begin(0);
        assert_eq!(presence.complete(0).map(|(_, askers)| askers.len()), Some(ASKERS_MAX));
        assert!(presence.is_idle());
    }

    #[test]
    fn a_crowd_is_counted_whole_and_listed_in_part() {
        let mut presence = Presence::default();
        let names: Vec<String> = (0..3 * MEMBERS_LISTED_MAX).map(|number| format!("s{number}")).collect();
        let (away, there) = names.split_at(MEMBERS_LISTED_MAX);
        for name in away {
            assert_eq!(presence.told(name, 1, Change::Away, at(0)), None);
        }
        presence.waiting.push(Asker::Handle(pending().0));
        presence.begin(2);
        for shard in there.chunks(MEMBERS_LISTED_MAX) {
            presence.listed(listed(&shard.iter().map(|name| (name.as_str(), 1)).collect::<Vec<_>>()));
        }
        let (all, _) = presence.complete(0).expect("all have answered");
        assert_eq!((all.count, all.members.len(), all.has_more()), (names.len(), MEMBERS_LISTED_MAX, true));
        for name in away {
            assert_eq!(presence.expired(name, WINDOW_MS), None);
        }
        assert!(presence.is_idle() && presence.known.capacity() <= 2 * KNOWN_KEPT, "{}", presence.known.capacity());
    }

    #[test]
    fn an_answer_is_bounded_in_bytes_and_says_that_there_is_more() {
        let metadata = Map::from_iter([("x".to_owned(), Value::String("y".repeat(4000)))]);
        let member = Present::new(Who { metadata, ..who("s", 1) }, 1_700_000_000_000);
        let mut all = RoomPresence { count: 1, members: vec![member.clone()], seq: 9 };
        let read = |all: &RoomPresence| serde_json::from_slice::<Value>(&all.body("a:b")).expect("JSON");
        let one = read(&all);
        assert_eq!(
            (&one["room"], &one["count"], &one["seq"], &one["more"]),
            (&"a:b".into(), &1.into(), &9.into(), &false.into())
        );
        assert_eq!(one["members"][0]["user_id"], "ann");
        assert_eq!(one["members"][0]["joined_at"], "2023-11-14T22:13:20.000Z");
        (all.count, all.members) = (1000, vec![member; 1000]);
        let many = read(&all);
        assert!(many["members"].as_array().is_some_and(|members| (200..300).contains(&members.len())));
        assert_eq!((&many["count"], &many["more"]), (&1000.into(), &true.into()));
    }
}
