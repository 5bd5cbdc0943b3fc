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

use std::sync::Arc;

use hashbrown::HashTable;
use serde_json::{Map, Value};

use super::batch::Address;
use super::name::RoomName;
use super::reply::Responder;
use crate::auth::Identity;
use crate::wire::envelope::rfc3339;
use crate::wire::json::{write_string, write_u64};
use crate::wire::native::Reference;

/// The most members that an answer lists; it counts all of them.
pub const MEMBERS_LISTED_MAX: usize = 1000;
/// Bytes of one answer, at about: metadata may be long.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Questions that may wait for one room. They are answered together, so this bounds memory, not work.
const ASKERS_MAX: usize = 4096;
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
    pub client_id: Arc<str>,
    /// The session's id.
    pub session_id: Arc<str>,
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
    pub client_id: Arc<str>,
    /// Whose it is.
    pub user_id: Box<str>,
    /// Its id.
    pub session_id: Arc<str>,
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
            Change::Away | Change::Gone => KnownState::Gone(until_ms),
        };
        let is_gone = matches!(state, KnownState::Gone(_));
        if let (true, Some(listing)) = (is_gone, &mut self.listing) {
            listing.gone.push((hash, who.turn));
        }
        // Who leaves at once is remembered only where a former connection may come after it.
        let remembered = !is_gone || moment.window_ms > 0 && who.turn.has_predecessor();
        let look_again = (remembered && state != KnownState::Live).then_some(until_ms);
        match self.known.find_entry(hash, |known| known.who.session_id == who.session_id) {
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
        }
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
            (false, KnownState::Live) if tells => "presence.joined",
            (true, KnownState::Gone(_)) => "presence.left",
            _ => return None,
        };
        self.told = !self.told;
        tells.then(|| Tell { kind, who: self.who.clone(), joined_ms: self.joined_ms })
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

    /// The data of the answer to `presence`; it ends at about [`ANSWER_BYTES_MAX`].
    pub(super) fn body(&self, room: &str) -> Vec<u8> {
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
