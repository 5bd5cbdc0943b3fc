//! A broker of one thread, for simulated nodes: what it should do said in the simplest way, told to each node at times that
//! the seed chooses.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use fastrand::Rng;
use ringhub::broker::link::{Intake, Link, link};
use ringhub::hub::brokered::{
    BrokeredEvent, Carried, EventKey, Followed, FromBroker, IN_DOUBT, LockCall, LockOwner, Locked, Numbered, Numbers,
    Place, SharedLock, Submission, ToBroker,
};
use ringhub::hub::name::{NameHasher, RoomName, ShardId};
use ringhub::wire::codes::ErrorCode;
use ringhub::wire::native::Refused;

use crate::node::Node;

const AWAY: Refused = Refused::new(ErrorCode::Unavailable, "the broker is away");

/// The log of a room.
#[derive(Debug, Default)]
pub struct Log {
    pub epoch: u64,
    pub seq: u64,
    /// The newest events, the last of which is number `seq`.
    kept: VecDeque<BrokeredEvent>,
    /// The number that it had before it lost its end, and nobody has noticed.
    lost_to: Option<u64>,
    keys: BTreeMap<EventKey, (u64, [u8; 36])>,
}

impl Log {
    /// The last number that was ever given in this epoch.
    pub fn seq_before(&self) -> u64 {
        self.lost_to.unwrap_or(self.seq)
    }

    fn first_seq(&self) -> u64 {
        self.seq + 1 - self.kept.len() as u64
    }

    fn from(&self, seq: u64) -> Vec<BrokeredEvent> {
        self.kept.iter().skip((seq - self.first_seq()) as usize).cloned().collect()
    }
}

/// A lock: its number, its end, whose it is, the node through which it is held, and the turn of who asked last.
type SharedHold = (u64, u64, LockOwner, u64, u64);

/// What the home of a room has, and the epoch and number of what one of its clients was given.
type Asked = (Option<Place>, Option<(u64, u64)>);

/// A node's side.
struct Side {
    intake: Intake,
    hasher: NameHasher,
    shards: u16,
    is_up: bool,
    /// Rooms that it follows, and the last event that it was told; none where it has to be told all anew.
    follows: BTreeMap<String, Option<(u64, u64)>>,
    /// What the homes of those had, and what their clients had been given, when they asked and were cut off.
    asked: BTreeMap<String, Asked>,
    answers: Vec<(RoomName, FromBroker)>,
    told: Vec<VecDeque<FromBroker>>,
}

pub struct Exchange {
    pub rooms: BTreeMap<String, Log>,
    /// What every number stood for, in every life of every log.
    pub truth: BTreeMap<(String, u64, u64), BrokeredEvent>,
    /// Every lock that was granted: whose, its number, from when, until when at first.
    pub grants: Vec<((String, String), u64, u64, u64)>,
    /// The time by its clock.
    pub now_ms: u64,
    locks: BTreeMap<(String, String), SharedHold>,
    last_token: u64,
    sides: Vec<Side>,
    epochs: u64,
}

impl Exchange {
    pub fn new() -> Exchange {
        Exchange {
            rooms: BTreeMap::new(),
            truth: BTreeMap::new(),
            grants: Vec::new(),
            now_ms: 1_000_000,
            locks: BTreeMap::new(),
            last_token: 0,
            sides: Vec::new(),
            epochs: 1 << 40,
        }
    }

    /// The lock of a field that is held: its number and whose it is.
    pub fn lock_of(&self, room: &str, field: &str) -> Option<(u64, &LockOwner)> {
        let held = self.locks.get(&(room.to_owned(), field.to_owned()));
        held.filter(|held| held.1 > self.now_ms).map(|(token, _, owner, ..)| (*token, owner))
    }

    /// A way for a node of so many shards.
    pub fn add(&mut self, hasher: NameHasher, shards: u16) -> Link {
        let (link, intake) = link(shards);
        let told = (0..shards).map(|_| VecDeque::new()).collect();
        let (follows, asked, answers) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        self.sides.push(Side { intake, hasher, shards, is_up: true, follows, asked, answers, told });
        link
    }

    pub fn set_up(&mut self, node: usize, is_up: bool) {
        self.sides[node].is_up = is_up;
    }

    /// All is lost, as if it had been started anew without its data.
    pub fn lose_all(&mut self) {
        for log in self.rooms.values_mut() {
            self.epochs += 1;
            *log = Log { epoch: self.epochs, ..Log::default() };
        }
        self.locks.clear();
    }

    /// A failover: the newest events of a room are gone, and all links are broken.
    pub fn lose_end(&mut self, room: &str, count: u64) {
        let Some(log) = self.rooms.get_mut(room) else { return };
        let before = log.seq;
        for _ in 0..count {
            if log.kept.pop_back().is_some() {
                log.seq -= 1;
            }
        }
        let seq = log.seq;
        log.keys.retain(|_, (of, _)| *of <= seq);
        if seq < before {
            log.lost_to = Some(before.max(log.lost_to.unwrap_or(0)));
            self.sides.iter_mut().for_each(|side| side.is_up = false);
        }
    }

    /// Takes in what a node has to say, and tells it some of what there is to tell. True where it did anything.
    pub fn turn(&mut self, node: usize, rng: &mut Rng) -> bool {
        let mut did = false;
        for shard in 0..self.sides[node].shards {
            while rng.u8(..4) > 0
                && let Some(batch) = self.sides[node].intake.pop(ShardId(shard))
            {
                batch.into_iter().for_each(|message| self.take(node, message, rng));
                did = true;
            }
        }
        did |= self.answer(node, rng);
        did |= self.tell_events(node, rng);
        self.deliver(node, rng) || did
    }

    fn take(&mut self, node: usize, message: ToBroker, rng: &mut Rng) {
        let is_up = self.sides[node].is_up;
        match message {
            ToBroker::Submit(submission) => {
                let Submission { room, number, events, new_epoch, keep } = *submission;
                // Cut off, it may be that the events came through and the answer did not.
                let is_taken = is_up || rng.u8(..3) == 0;
                let numbers = is_taken.then(|| self.publish(&room, events, new_epoch, keep.events_max));
                let outcome = match numbers {
                    Some(numbers) if is_up => Ok(numbers),
                    Some(_) => Err(Refused::new(ErrorCode::Unavailable, IN_DOUBT)),
                    None => Err(AWAY),
                };
                self.sides[node].answers.push((room.clone(), FromBroker::Submitted { room, number, outcome }));
            }
            ToBroker::Follow { room, from, claim } => {
                let name = room.as_str().to_owned();
                if !is_up {
                    self.sides[node].asked.insert(name.clone(), (from, claim));
                    self.sides[node].follows.insert(name, None);
                    let told = FromBroker::Followed { room: room.clone(), outcome: Err(AWAY) };
                    return self.push(node, &room, told);
                }
                let followed = self.follow(&name, from, claim);
                self.sides[node].asked.remove(&name);
                self.sides[node].follows.insert(name, Some((followed.epoch, followed.seq)));
                self.push(node, &room.clone(), FromBroker::Followed { room, outcome: Ok(Box::new(followed)) });
            }
            ToBroker::Leave { room } => {
                self.sides[node].asked.remove(room.as_str());
                self.sides[node].follows.remove(room.as_str());
            }
            ToBroker::Lock(call) => {
                let (room, number) = (call.room.clone(), call.number);
                // Cut off, it may have happened all the same.
                let done = (is_up || rng.u8(..3) == 0).then(|| self.lock(*call));
                let outcome = if is_up { done.ok_or(AWAY) } else { Err(AWAY) };
                self.push(node, &room, FromBroker::Locked { number, outcome });
            }
            ToBroker::Clear { room, number } => {
                let outcome = if is_up { Ok(self.clear(room.as_str())) } else { Err(AWAY) };
                self.push(node, &room, FromBroker::Cleared { number, outcome });
            }
        }
    }

    fn follow(&mut self, room: &str, from: Option<Place>, claim: Option<(u64, u64)>) -> Followed {
        if claim.is_some_and(|(epoch, seq)| self.lacks(room, epoch, seq)) {
            self.renew(room);
        }
        self.state_after(room, from)
    }

    fn log(&mut self, room: &str, new_epoch: Option<u64>) -> &mut Log {
        self.epochs += 1;
        let epoch = new_epoch.unwrap_or(self.epochs);
        self.rooms.entry(room.to_owned()).or_insert_with(|| Log { epoch, ..Log::default() })
    }

    /// Whether a log in that epoch does not reach to a number.
    fn lacks(&mut self, room: &str, epoch: u64, seq: u64) -> bool {
        let log = self.log(room, None);
        log.epoch == epoch && log.seq < seq
    }

    /// Somebody has noticed that a log has lost its end.
    fn renew(&mut self, room: &str) {
        self.epochs += 1;
        let epoch = self.epochs;
        let log = self.log(room, None);
        log.epoch = epoch;
        log.lost_to = None;
        let of_room = |seq: u64| (room.to_owned(), epoch, seq);
        let kept: Vec<_> = (log.first_seq()..).map(of_room).zip(log.kept.iter().cloned()).collect();
        self.truth.extend(kept);
    }

    fn publish(&mut self, room: &RoomName, events: Vec<BrokeredEvent>, new_epoch: u64, events_max: u64) -> Numbers {
        let nodes = self.sides.iter().filter(|side| side.follows.contains_key(room.as_str())).count() as u32;
        if self.log(room.as_str(), Some(new_epoch)).lost_to.is_some() {
            // That nobody noticed is not looked at here: the numbers would stand for other events.
            self.renew(room.as_str());
        }
        let log = self.log(room.as_str(), Some(new_epoch));
        let epoch = log.epoch;
        let mut numbers = Vec::new();
        let mut truth = Vec::new();
        for event in events {
            let key = event.key.clone();
            if let Some((seq, id)) = key.as_ref().and_then(|key| log.keys.get(key)) {
                numbers.push(Numbered { seq: *seq, duplicate_of: Some(*id) });
                continue;
            }
            log.seq += 1;
            numbers.push(Numbered { seq: log.seq, duplicate_of: None });
            if let Some(key) = key {
                log.keys.insert(key, (log.seq, event.id));
            }
            truth.push(((room.as_str().to_owned(), epoch, log.seq), event.clone()));
            log.kept.push_back(event);
            while log.kept.len() as u64 > events_max {
                log.kept.pop_front();
            }
        }
        self.truth.extend(truth);
        Numbers { epoch, events: numbers, nodes }
    }

    fn state_after(&mut self, room: &str, from: Option<Place>) -> Followed {
        let truth =
            from.and_then(|from| self.truth.get(&(room.to_owned(), from.epoch, from.seq))).map(|event| event.id);
        let log = self.log(room, None);
        if from.is_some_and(|from| from.epoch == log.epoch && from.seq > log.seq) {
            self.renew(room);
        }
        let is_right = from.is_some_and(|from| from.seq == 0 || truth == Some(from.id));
        let log = self.log(room, None);
        let goes_on = from.filter(|from| is_right && from.epoch == log.epoch && from.seq + 1 >= log.first_seq());
        let first_seq = goes_on.map_or(log.first_seq(), |from| from.seq + 1);
        let (epoch, seq) = (log.epoch, log.seq);
        Followed { epoch, seq, continues: goes_on.is_some(), first_seq, events: log.from(first_seq) }
    }

    fn lock(&mut self, call: LockCall) -> Locked {
        let LockCall { room, field, action, node, .. } = call;
        let name = (room.as_str().to_owned(), field.to_string());
        let now_ms = self.now_ms;
        let held = self.locks.get(&name).filter(|held| held.1 > now_ms).cloned();
        let was_left_behind = |turn| held.as_ref().is_some_and(|(.., by, last)| *by != node && *last >= turn);
        match action {
            SharedLock::Acquire { ttl_ms, session, holder, turn } => {
                let is_left_behind = was_left_behind(turn);
                if let Some((_, until_ms, owner, ..)) = held
                    && (*owner.session_id != *session || is_left_behind)
                {
                    return Locked::Held { left_ms: until_ms - now_ms, owner };
                }
                self.last_token += 1;
                let token = self.last_token;
                self.grants.push((name.clone(), token, now_ms, now_ms + ttl_ms));
                self.locks.insert(name, (token, now_ms + ttl_ms, holder, node, turn));
                Locked::Granted { token }
            }
            SharedLock::Renew { turn, .. } if was_left_behind(turn) => Locked::NotHeld,
            SharedLock::Renew { token, ttl_ms, turn } => match held {
                Some((of, until_ms, owner, _, last)) if of == token => {
                    let until_ms = until_ms.max(now_ms + ttl_ms);
                    self.locks.insert(name, (token, until_ms, owner.clone(), node, turn.max(last)));
                    Locked::Renewed { owner }
                }
                _ => Locked::NotHeld,
            },
            SharedLock::Look { token } => match held {
                Some((of, until_ms, owner, by, _)) if of == token => {
                    if by == node {
                        Locked::Held { left_ms: until_ms - now_ms, owner }
                    } else {
                        Locked::Elsewhere
                    }
                }
                _ => Locked::NotHeld,
            },
            SharedLock::Free { token } => match held {
                Some((of, _, _, by, _)) if token.is_some_and(|token| token == of && by != node) => Locked::Elsewhere,
                Some((of, _, owner, ..)) if token.is_none_or(|token| token == of) => {
                    self.locks.remove(&name);
                    Locked::Freed { token: of, owner }
                }
                _ => Locked::NotHeld,
            },
        }
    }

    fn clear(&mut self, room: &str) -> u64 {
        let log = self.log(room, None);
        let (epoch, log_from, events) = (log.epoch, log.seq + 1, log.kept.len() as u64);
        log.kept.clear();
        for node in 0..self.sides.len() {
            // Who was told all up to here is told this; whoever is behind will find that it is gone.
            if self.sides[node].follows.get(room) == Some(&Some((epoch, log_from - 1))) && self.sides[node].is_up {
                let name = self.sides[node].hasher.room(room);
                self.push(node, &name.clone(), FromBroker::Emptied { room: name, epoch, log_from });
            }
        }
        events
    }

    fn push(&mut self, node: usize, room: &RoomName, told: FromBroker) {
        let side = &mut self.sides[node];
        side.told[usize::from(room.home(side.shards).0)].push_back(told);
    }

    fn answer(&mut self, node: usize, rng: &mut Rng) -> bool {
        let answers = &mut self.sides[node].answers;
        if answers.is_empty() || rng.bool() {
            return !answers.is_empty();
        }
        let (room, told) = answers.remove(rng.usize(..answers.len()));
        self.push(node, &room, told);
        true
    }

    fn tell_events(&mut self, node: usize, rng: &mut Rng) -> bool {
        if !self.sides[node].is_up {
            return false;
        }
        let mut did = false;
        let rooms: BTreeSet<String> = self.sides[node].follows.keys().cloned().collect();
        for room in rooms {
            let name = self.sides[node].hasher.room(&room);
            let at = self.sides[node].follows[&room];
            let log = self.log(&room, None);
            if at.is_some_and(|(of, last)| of == log.epoch && last > log.seq) {
                self.renew(&room);
            }
            let log = self.log(&room, None);
            let (epoch, seq) = (log.epoch, log.seq);
            if at == Some((epoch, seq)) {
                continue;
            }
            did = true;
            if rng.bool() {
                continue;
            }
            let told = match at {
                Some((of, last)) if of == epoch && last + 1 >= log.first_seq() => {
                    let to_seq = rng.u64(last + 1..=seq);
                    let mut events = log.from(last + 1);
                    events.truncate((to_seq - last) as usize);
                    self.sides[node].follows.insert(room, Some((epoch, to_seq)));
                    FromBroker::Events(Box::new(Carried { room: name.clone(), epoch, first_seq: last + 1, events }))
                }
                _ => {
                    let (from, claim) = self.sides[node].asked.remove(&room).unwrap_or_default();
                    let followed = self.follow(&room, from, claim);
                    self.sides[node].follows.insert(room, Some((followed.epoch, followed.seq)));
                    FromBroker::Followed { room: name.clone(), outcome: Ok(Box::new(followed)) }
                }
            };
            self.push(node, &name, told);
        }
        did
    }

    /// Hands over what waits for a node's shards.
    fn deliver(&mut self, node: usize, rng: &mut Rng) -> bool {
        let side = &mut self.sides[node];
        let mut did = false;
        for (shard, told) in side.told.iter_mut().enumerate() {
            let count = rng.usize(..=told.len());
            let some: Vec<FromBroker> = told.drain(..count).collect();
            did |= !told.is_empty();
            if !some.is_empty() {
                did = true;
                side.intake.tell(ShardId(shard as u16), some).expect("shards take their turns");
            }
        }
        did
    }
}

/// A turn of all nodes, and of the ways between them; true where anything was under way there.
pub fn turn(exchange: &mut Exchange, nodes: &mut [Node], rng: &mut Rng) -> bool {
    let mut did = false;
    for (number, node) in nodes.iter_mut().enumerate() {
        did |= exchange.turn(number, rng);
        node.turn();
    }
    did
}

/// Turns until nothing happens any more; `looks` takes what has come.
pub fn settle(exchange: &mut Exchange, nodes: &mut [Node], rng: &mut Rng, mut looks: impl FnMut()) {
    let has_work = |node: &Node| (0..node.shards() as u16).any(|shard| node.mesh.has_work(ShardId(shard)));
    // One that has died has done what it ever will.
    let is_gone = |node: &Node| (0..node.shards()).all(|shard| !node.is_running(shard));
    let mut quiet = 0;
    for _ in 0..100_000 {
        let did = turn(exchange, nodes, rng);
        looks();
        let is_idle = nodes.iter().all(|node| is_gone(node) || (node.world.is_idle() && !has_work(node)));
        quiet = if did || !is_idle { 0 } else { quiet + 1 };
        if quiet > 8 {
            return;
        }
    }
    panic!("the cluster does not come to rest");
}
