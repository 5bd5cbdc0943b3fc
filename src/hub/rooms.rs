//! A shard's table of rooms: those it is home to, and those its connections are in.

use hashbrown::HashTable;

use super::batch::OpenBatch;
use super::durable::Durable;
use super::keys::Keys;
use super::locks::Locks;
use super::log::Log;
use super::members::Members;
use super::name::RoomName;
use super::presence::Presence;
use super::relayed::Relayed;
use super::session_home::SessionHome;
use super::shard_counts::ShardCounts;
use crate::ring::ConnKey;

/// A room's place in its shard's table; valid as long as the room exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RoomId(pub u32);

/// A room as one shard sees it.
#[derive(Debug)]
pub struct Room {
    /// Its name.
    pub name: RoomName,
    /// This shard's connections in it.
    pub members: Members,
    /// Fan-outs under way for it.
    pub jobs: u32,
    /// The last event that came to this shard's members, or that was there before they joined; [`UNKNOWN`] where it has a
    /// number that does not fit into the place that is free here.
    given_seq: u32,
    /// Which life of the room's log that number is of.
    epoch: u64,
    /// What only the home shard has.
    pub home: Option<Box<Home>>,
}

const UNKNOWN: u32 = u32::MAX;
/// Of no log.
pub const NO_EPOCH: u64 = 0;

/// What a room's home knows.
#[derive(Debug)]
pub struct Home {
    /// The last number given.
    pub seq: u64,
    /// Which life of the room's log this is.
    pub epoch: u64,
    /// Members, by shard.
    pub members: ShardCounts,
    /// Its kind's place in the table of rules.
    pub rules: u16,
    /// Whether the log was used since the last search for one that can go.
    pub log_is_fresh: bool,
    /// Until when it is kept for a stream that may come back, in seconds of the monotonic clock; 0 where there is none.
    pub lingers_until_s: u32,
    /// For rooms of the kind `session`.
    pub session: Option<Box<SessionHome>>,
    /// What is in it.
    contents: Option<Box<Contents>>,
}

/// What is in a room. Most are those of one session or one user, and empty: these spend one pointer on it.
#[derive(Debug, Default)]
pub struct Contents {
    /// Events of this turn, if there are any.
    pub open: Option<Box<OpenBatch>>,
    /// Events that are kept.
    pub log: Log,
    /// Keys of events that were published lately.
    pub keys: Option<Box<Keys>>,
    /// Field locks, where some are held or waited for.
    pub locks: Option<Box<Locks>>,
    /// What is known of who is there.
    pub presence: Option<Box<Presence>>,
    /// For rooms whose events go through the journal; `seq` is then the last number that the journal has.
    pub durable: Option<Box<Durable>>,
    /// For rooms whose events are numbered by a broker; the log is then a copy of what that keeps.
    pub relayed: Option<Box<Relayed>>,
}

impl Room {
    /// This shard's members have, or are about to be given, all up to this event.
    pub fn note_given(&mut self, seq: u64) {
        self.given_seq = u32::try_from(seq).unwrap_or(UNKNOWN);
    }

    /// This shard's members go by the log's life with that epoch from here on.
    pub fn note_epoch(&mut self, epoch: u64) {
        self.epoch = epoch;
    }

    /// The epoch that this shard's members go by; [`NO_EPOCH`] where nobody has joined yet.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The last event that this shard's members have, or are about to be given; none where that is not known.
    pub fn given_seq(&self) -> Option<u64> {
        (self.given_seq != UNKNOWN).then_some(u64::from(self.given_seq))
    }
}

impl Contents {
    fn is_empty(&self) -> bool {
        let (keys, locks, presence) = (self.keys.is_none(), self.locks.is_none(), self.presence.is_none());
        let has_events = self.open.is_some() || !self.log.is_empty();
        keys && locks && presence && self.durable.is_none() && self.relayed.is_none() && !has_events
    }
}

impl Home {
    /// A room that has had no event.
    pub fn new(epoch: u64, rules: u16) -> Home {
        Home {
            seq: 0,
            epoch,
            members: ShardCounts::default(),
            rules,
            log_is_fresh: false,
            lingers_until_s: 0,
            session: None,
            contents: None,
        }
    }

    /// What is in it, to be added to.
    pub fn contents(&mut self) -> &mut Contents {
        self.contents.get_or_insert_default()
    }

    /// Lets go of the memory where nothing is in it.
    pub fn tidy(&mut self) {
        self.contents.take_if(|contents| contents.is_empty());
    }

    /// Whether there are events of this turn.
    pub fn has_open(&self) -> bool {
        self.contents.as_ref().is_some_and(|contents| contents.open.is_some())
    }

    /// Takes out this turn's events.
    pub fn take_open(&mut self) -> Option<Box<OpenBatch>> {
        self.contents.as_mut()?.open.take()
    }

    /// Events that are kept.
    pub fn log(&self) -> &Log {
        static EMPTY: Log = Log::new();
        self.contents.as_ref().map_or(&EMPTY, |contents| &contents.log)
    }

    /// Lets go of what is in its log.
    pub fn clear_log(&mut self) {
        self.shorten_log(Log::clear);
    }

    /// Has less in its log; nothing happens where there is none.
    pub fn shorten_log(&mut self, shorten: impl FnOnce(&mut Log)) {
        let Some(contents) = self.contents.as_mut() else { return };
        if contents.log.is_empty() {
            return;
        }
        shorten(&mut contents.log);
        if contents.log.is_empty() {
            self.tidy();
        }
    }

    /// Keys of events that were published lately, to be asked or forgotten.
    pub fn keys_mut(&mut self) -> Option<&mut Keys> {
        self.contents.as_mut()?.keys.as_deref_mut()
    }

    /// Keys of events that were published lately, to be added to. `seed` is what their hashes go by where there are none yet.
    pub fn keys_from(&mut self, seed: u64) -> &mut Keys {
        self.contents().keys.get_or_insert_with(|| Box::new(Keys::new(seed)))
    }

    /// Forgets the keys that `forget` takes out, and the memory of them where none is left.
    pub fn forget_keys(&mut self, forget: impl FnOnce(&mut Keys)) {
        let Some(contents) = self.contents.as_mut() else { return };
        let Some(keys) = contents.keys.as_mut() else { return };
        forget(keys);
        if keys.is_empty() {
            contents.keys = None;
            self.tidy();
        }
    }

    /// Forgets all keys.
    pub fn forget_all_keys(&mut self) {
        if let Some(contents) = self.contents.as_mut() {
            contents.keys = None;
            self.tidy();
        }
    }

    /// Its field locks.
    pub fn locks(&self) -> Option<&Locks> {
        self.contents.as_ref()?.locks.as_deref()
    }

    /// Its field locks, to be changed.
    pub fn locks_mut(&mut self) -> Option<&mut Locks> {
        self.contents.as_mut()?.locks.as_deref_mut()
    }

    /// What is known of who is there.
    pub fn presence(&self) -> Option<&Presence> {
        self.contents.as_ref()?.presence.as_deref()
    }

    /// What is known of who is there, to be changed.
    pub fn presence_mut(&mut self) -> Option<&mut Presence> {
        self.contents.as_mut()?.presence.as_deref_mut()
    }

    /// Where it stands with the journal.
    pub fn durable(&self) -> Option<&Durable> {
        self.contents.as_ref()?.durable.as_deref()
    }

    /// Where it stands with the journal, to be changed.
    pub fn durable_mut(&mut self) -> Option<&mut Durable> {
        self.contents.as_mut()?.durable.as_deref_mut()
    }

    /// Where it stands with the broker.
    pub fn relayed(&self) -> Option<&Relayed> {
        self.contents.as_ref()?.relayed.as_deref()
    }

    /// Where it stands with the broker, to be changed.
    pub fn relayed_mut(&mut self) -> Option<&mut Relayed> {
        self.contents.as_mut()?.relayed.as_deref_mut()
    }

    /// Whether its events go through the journal.
    pub fn is_durable(&self) -> bool {
        self.durable().is_some()
    }

    /// How many connections an event goes to now, and for how many absent sessions it waits.
    pub fn audience(&self) -> (u32, u32) {
        let delivered = self.members_total();
        // What goes to a session that is away waits in its log until it is resumed.
        let away = self.session.as_ref().is_some_and(|session| session.live.is_none() && session.kept().is_some());
        (delivered, u32::from(away && delivered == 0))
    }

    /// Bytes of this turn's events.
    pub fn open_bytes(&self) -> usize {
        self.contents.as_ref().and_then(|contents| contents.open.as_ref()).map_or(0, |open| open.bytes())
    }

    /// Members on all shards.
    pub fn members_total(&self) -> u32 {
        self.members.total()
    }

    /// Whether it has neither members nor history, and is kept only for those who may come back.
    pub fn only_lingers(&self) -> bool {
        self.lingers_until_s > 0 && self.log().is_empty() && self.members_total() == 0
    }

    /// Whether nothing would be lost with it.
    pub fn is_idle(&self) -> bool {
        self.lingers_until_s == 0
            && !self.has_open()
            && self.relayed().map_or(self.log().is_empty(), |relayed| relayed.is_idle())
            && self.contents.as_ref().is_none_or(|contents| contents.keys.is_none())
            && self.locks().is_none()
            && self.members_total() == 0
            && self.session.as_ref().is_none_or(|session| session.is_idle())
            && self.presence().is_none()
            && self.durable().is_none_or(|durable| durable.is_idle())
    }
}

/// The rooms of a shard.
#[derive(Debug, Default)]
pub struct Rooms {
    slots: Vec<Option<Room>>,
    free: Vec<u32>,
    index: HashTable<u32>,
    /// Durable rooms that were forgotten since the journal was told last: name and epoch.
    pub(super) vanished: Vec<(RoomName, u64)>,
    /// Rooms shared with other nodes that were forgotten since the broker was told last.
    pub(super) left: Vec<RoomName>,
    /// Bytes of the logs that went with those.
    pub(super) left_bytes: usize,
}

impl Rooms {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Looks a room up by name.
    pub fn find(&self, name: &RoomName) -> Option<RoomId> {
        let found = self.index.find(name.hash(), |slot| self.slot(*slot).is_some_and(|room| room.name == *name));
        found.map(|slot| RoomId(*slot))
    }

    /// Looks a room up by its name's hash alone.
    pub fn find_hash(&self, hash: u64) -> Option<&Room> {
        let slot = self.index.find(hash, |slot| self.slot(*slot).is_some_and(|room| room.name.hash() == hash))?;
        self.slot(*slot)
    }

    /// Looks a room up by name and makes it where it is missing.
    pub fn ensure(&mut self, name: &RoomName) -> RoomId {
        if let Some(id) = self.find(name) {
            return id;
        }
        let room = Room {
            name: name.clone(),
            members: Members::default(),
            jobs: 0,
            given_seq: UNKNOWN,
            epoch: NO_EPOCH,
            home: None,
        };
        let slot = match self.free.pop() {
            Some(slot) => {
                if let Some(place) = self.slots.get_mut(slot as usize) {
                    *place = Some(room);
                }
                slot
            }
            None => {
                self.slots.push(Some(room));
                (self.slots.len() - 1) as u32
            }
        };
        let Rooms { slots, index, .. } = self;
        index.insert_unique(name.hash(), slot, |slot| hash_of(slots, *slot));
        RoomId(slot)
    }

    /// A room.
    pub fn get(&self, id: RoomId) -> Option<&Room> {
        self.slot(id.0)
    }

    /// A room, to be changed.
    pub fn get_mut(&mut self, id: RoomId) -> Option<&mut Room> {
        self.slots.get_mut(id.0 as usize).and_then(Option::as_mut)
    }

    /// Forgets a room that has neither members here, nor fan-outs, nor a home part worth keeping.
    pub fn forget_if_idle(&mut self, id: RoomId) {
        let Some(room) = self.get_mut(id) else { return };
        let (mut vanished, mut left) = (None, None);
        if room.home.as_ref().is_some_and(|home| home.is_idle()) {
            let home = room.home.take();
            left = home
                .as_ref()
                .filter(|home| home.relayed().is_some())
                .map(|home| (room.name.clone(), home.log().bytes()));
            // What never was in the journal needs no word there.
            vanished = home.filter(|home| home.is_durable() && home.seq > 0);
        }
        let vanished = vanished.map(|home| (room.name.clone(), home.epoch));
        let stays = room.jobs > 0 || room.home.is_some() || !room.members.is_empty();
        self.vanished.extend(vanished);
        if let Some((name, bytes)) = left {
            self.left.push(name);
            self.left_bytes += bytes;
        }
        if stays {
            return;
        }
        let Some(room) = self.get_mut(id) else { return };
        let hash = room.name.hash();
        if let Ok(entry) = self.index.find_entry(hash, |slot| *slot == id.0) {
            entry.remove();
        }
        if let Some(place) = self.slots.get_mut(id.0 as usize) {
            *place = None;
            self.free.push(id.0);
        }
        // After a crowd left, the tables shrink with it.
        if self.index.len() * 8 < self.index.capacity() && self.index.capacity() > 1024 {
            let Rooms { slots, index, .. } = self;
            index.shrink_to(index.len() * 2, |slot| hash_of(slots, *slot));
        }
    }

    /// Places in the table, used or not.
    pub fn places(&self) -> u32 {
        self.slots.len() as u32
    }

    /// About how much memory the tables take, in bytes: the rooms, their homes, and `memberships` in their lists.
    /// What is in them is not, such as logs.
    pub fn memory_bytes(&self, memberships: usize) -> usize {
        self.slots.capacity() * size_of::<Option<Room>>()
            + self.index.capacity() * size_of::<u32>()
            + self.len() * size_of::<Home>()
            + memberships * size_of::<ConnKey>()
    }

    /// All rooms.
    pub fn iter(&self) -> impl Iterator<Item = (RoomId, &Room)> {
        self.slots.iter().enumerate().filter_map(|(slot, room)| Some((RoomId(slot as u32), room.as_ref()?)))
    }

    /// The rooms that are homed here.
    pub fn homes_mut(&mut self) -> impl Iterator<Item = (&RoomName, &mut Home)> {
        self.slots.iter_mut().flatten().filter_map(|room| Some((&room.name, room.home.as_deref_mut()?)))
    }

    fn slot(&self, slot: u32) -> Option<&Room> {
        self.slots.get(slot as usize).and_then(Option::as_ref)
    }
}

fn hash_of(slots: &[Option<Room>], slot: u32) -> u64 {
    slots.get(slot as usize).and_then(Option::as_ref).map_or(0, |room| room.name.hash())
}

#[cfg(test)]
mod tests {
    use super::super::name::NameHasher;
    use super::*;

    #[test]
    fn rooms_are_found_until_they_are_idle() {
        let hasher = NameHasher::new(3);
        let mut rooms = Rooms::default();
        let names: Vec<_> = (0..3000).map(|number| hasher.room(&format!("a:{number}"))).collect();
        let conn = ConnKey { slot: 1, generation: 1 };
        for name in &names {
            let id = rooms.ensure(name);
            assert!(rooms.get_mut(id).expect("there").members.add(conn, None, 0));
        }
        assert_eq!(rooms.len(), 3000);
        for name in &names {
            let id = rooms.find(name).expect("found");
            rooms.forget_if_idle(id);
            assert_eq!(rooms.find(name), Some(id), "a room with members stays");
            assert!(rooms.get_mut(id).expect("there").members.remove(conn, false));
            rooms.forget_if_idle(id);
            assert_eq!(rooms.find(name), None);
        }
        assert!(rooms.is_empty());
        let again = rooms.ensure(&names[5]);
        assert!((again.0 as usize) < 3000, "slots are used again");
    }

    #[test]
    fn a_room_of_one_silent_connection_is_small() {
        // Every connection has two of its own: its session's and, mostly, its user's.
        assert!(size_of::<Option<Room>>() <= 64, "{}", size_of::<Option<Room>>());
        assert!(size_of::<Home>() <= 56, "{}", size_of::<Home>());
        assert!(size_of::<SessionHome>() <= 56, "{}", size_of::<SessionHome>());
    }
}
