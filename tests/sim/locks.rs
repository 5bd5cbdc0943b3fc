//! Field locks against a naive reference: editors on one to four shards acquire, renew and release the locks of a few
//! fields, vanish, come back on other shards, take live sessions over, and let time pass; now and then an operator frees a
//! lock. What every session believes to hold is what it was told, until the time it was told, its own release, or its end.
//!
//! `RINGHUB_SEEDS=10000` runs more seeds; `RINGHUB_SEED=17` runs one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fastrand::Rng;
use ringhub::hub::reply::pending;
use ringhub::ring::sim::Faults;
use ringhub::shard::request::Request;
use ringhub::wire::envelope::rfc3339;
use serde_json::{Value, json};

use crate::client::Client;
use crate::model::for_each_seed;
use crate::node::{Node, config};

const SEEDS: u64 = 200;
const ROOMS: usize = 2;
const FIELDS: usize = 2;
const STEPS: usize = 300;
const ACTORS_MAX: usize = 16;
const WINDOW_S: u64 = 3;

#[test]
fn no_two_sessions_hold_a_lock_and_every_one_is_free_in_the_end() {
    for_each_seed(SEEDS, |seed| Run::new(seed).run());
}

#[test]
fn a_session_that_asks_seldom_gets_a_lock_that_others_take_again_at_once() {
    for_each_seed(SEEDS / 10, starve);
}

/// A room and a field.
type Place = (String, String);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Acquire,
    Renew(u64),
    Release(u64),
    Resume,
}

#[derive(Debug, Clone)]
struct Asked {
    place: Place,
    ask: Ask,
    /// The session it was asked for; none where that has ended since, so that the answer grants nothing.
    session: Option<usize>,
}

/// Whether a session has a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    /// That actor's.
    Live(usize),
    /// None since then (milliseconds of the run).
    Away(u64),
    /// None, for good.
    Ended,
}

#[derive(Debug)]
struct Session {
    id: String,
    token: String,
    presence: Presence,
    /// What it was told to hold: the number and until when.
    believes: BTreeMap<Place, (u64, String)>,
    /// Numbers it gave back, or was told to have lost.
    dead: BTreeSet<u64>,
    /// A connection went while it was taking this up: what it was being given may come too late for the next one.
    is_shaken: bool,
}

impl Actor {
    /// The session that it is taking up.
    fn resumes(&self) -> Option<usize> {
        self.asked.values().find(|asked| asked.ask == Ask::Resume).and_then(|asked| asked.session)
    }
}

struct Actor {
    client: Client,
    seen: usize,
    session: Option<usize>,
    asked: BTreeMap<u64, Asked>,
    left: bool,
}

/// What the room was told of a field.
#[derive(Debug, Default)]
struct Told {
    last_token: u64,
    held: Option<(u64, String)>,
}

struct Run {
    rng: Rng,
    node: Node,
    monitor: Client,
    monitor_seen: usize,
    actors: Vec<Actor>,
    sessions: Vec<Session>,
    rooms: Vec<String>,
    now_ms: u64,
    told: BTreeMap<Place, Told>,
    /// Grants that were answered: the number and the session.
    granted: Vec<(Place, u64, String)>,
    /// Grants that the rooms were told of.
    known: BTreeMap<(Place, u64), String>,
    ends: BTreeMap<String, u64>,
    /// Numbers of locks that an operator has freed, whose holders were not asked.
    forced: BTreeSet<u64>,
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut rng = Rng::with_seed(seed);
        let mut config = config();
        config.session.resume_window_s = WINDOW_S;
        if rng.u8(..4) == 0 {
            config.limits.locks_per_session_max = rng.usize(1..=3);
            config.limits.locks_per_room_max = rng.usize(1..=2);
        }
        let faults = if rng.u8(..4) == 0 { Faults::none() } else { Faults::rough() };
        let mut node = Node::new(seed, rng.u16(1..=4), faults, config);
        let rooms: Vec<String> = (0..ROOMS).map(|number| format!("project:{number}")).collect();
        let mut monitor = node.client(0, "");
        monitor.send("subscribe", json!({"rooms": rooms}));
        node.settle();
        Run {
            rng,
            node,
            monitor,
            monitor_seen: 0,
            actors: Vec::new(),
            sessions: Vec::new(),
            rooms,
            now_ms: 0,
            told: BTreeMap::new(),
            granted: Vec::new(),
            known: BTreeMap::new(),
            ends: BTreeMap::new(),
            forced: BTreeSet::new(),
        }
    }

    fn run(mut self) {
        for _ in 0..STEPS {
            match self.rng.u8(..24) {
                0..=1 if self.actors.len() < ACTORS_MAX => {
                    self.connect();
                }
                0..=14 => self.act(),
                15..=16 => self.vanish(),
                17..=18 if self.actors.len() < ACTORS_MAX => self.resume(),
                19..=21 => self.pass(),
                22 if self.rng.u8(..8) == 0 => self.force(),
                _ => {}
            }
            for _ in 0..self.rng.usize(0..5) {
                let shard = self.rng.usize(..self.node.shards());
                self.node.turn_of(shard);
            }
            self.look();
        }
        self.node.settle();
        self.look();
        self.check_answers();
        for actor in &self.actors {
            actor.client.link.close();
        }
        // Whoever was away is gone after that, and with it what it held.
        for _ in 0..80 {
            self.now_ms += 100;
            self.node.world.advance(Duration::from_millis(100));
            self.node.settle();
        }
        self.read_events();
        self.check_ends();
        self.monitor.link.close();
        self.node.assert_empty();
    }

    fn place(&mut self) -> Place {
        let room = self.rng.usize(..self.rooms.len());
        (self.rooms[room].clone(), format!("field {}", self.rng.usize(..FIELDS)))
    }

    fn connect(&mut self) -> usize {
        let shard = self.rng.usize(..self.node.shards());
        let client = Client::connect(&self.node, shard, "/ws", "");
        self.actors.push(Actor { client, seen: 0, session: None, asked: BTreeMap::new(), left: false });
        self.actors.len() - 1
    }

    fn present(&mut self) -> Option<usize> {
        let present: Vec<usize> = (0..self.actors.len())
            .filter(|&one| !self.actors[one].left && self.actors[one].session.is_some())
            .collect();
        self.rng.choice(present)
    }

    /// One client asks for one to three things in one packet.
    fn act(&mut self) {
        let Some(who) = self.present() else { return };
        let session = self.actors[who].session.expect("present");
        let mut packet = Vec::new();
        for _ in 0..self.rng.u8(1..=3) {
            let place = self.place();
            let believed = self.sessions[session].believes.get(&place).map(|(token, _)| *token);
            let token = match (believed, self.rng.u8(..8)) {
                (_, 0) | (None, _) => self.told.get(&place).map_or(1, |told| told.last_token),
                (Some(token), _) => token,
            };
            let (room, field) = place.clone();
            let (kind, data, ask) = match self.rng.u8(..10) {
                0..=4 => {
                    // Those that last are freed because their sessions end.
                    let ttl_s = if self.rng.u8(..4) == 0 { 600 } else { self.rng.u64(1..=5) };
                    ("lock.acquire", json!({"room": room, "field": field, "ttl_s": ttl_s}), Ask::Acquire)
                }
                5..=7 => {
                    let ttl_s = self.rng.bool().then(|| self.rng.u64(1..=5));
                    let data = json!({"room": room, "field": field, "token": token, "ttl_s": ttl_s});
                    ("lock.renew", data, Ask::Renew(token))
                }
                _ => ("lock.release", json!({"room": room, "field": field, "token": token}), Ask::Release(token)),
            };
            if let Ask::Release(token) = ask {
                // From here on it counts on nothing.
                self.sessions[session].believes.retain(|_, (one, _)| *one != token);
                self.sessions[session].dead.insert(token);
            }
            let actor = &mut self.actors[who];
            let (id, bytes) = actor.client.command(kind, data);
            actor.asked.insert(id, Asked { place, ask, session: Some(session) });
            packet.extend(bytes);
        }
        self.actors[who].client.link.write(&packet);
    }

    fn vanish(&mut self) {
        let here: Vec<usize> = (0..self.actors.len()).filter(|&one| !self.actors[one].left).collect();
        let Some(who) = self.rng.choice(here) else { return };
        let resumes = self.actors[who].resumes();
        let Some(session) = self.actors[who].session.or(resumes) else { return };
        let actor = &mut self.actors[who];
        actor.left = true;
        match self.rng.u8(..4) {
            0 => actor.client.link.close(),
            1 => actor.client.link.finish(),
            2 => actor.client.link.reset(),
            // Half dead, and nobody knows.
            _ => {
                actor.client.link.set_read_budget(0);
                if let Some(session) = resumes {
                    self.sessions[session].is_shaken = true;
                }
                return;
            }
        }
        let session = &mut self.sessions[session];
        session.is_shaken |= resumes.is_some();
        if let Presence::Live(_) = session.presence {
            session.presence = Presence::Away(self.now_ms);
        }
    }

    /// A new connection, or one that had a session of its own, takes up a session that is away, or one that is live.
    fn resume(&mut self) {
        // One at a time takes a session up, so that it is known who has it.
        let taken: BTreeSet<usize> =
            self.actors.iter().filter(|actor| !actor.left).filter_map(Actor::resumes).collect();
        let is_there = |one: &usize| self.sessions[*one].presence != Presence::Ended && !taken.contains(one);
        let known: Vec<usize> = (0..self.sessions.len()).filter(is_there).collect();
        let Some(session) = self.rng.choice(known) else { return };
        let who = match self.present() {
            Some(who) if self.rng.u8(..5) == 0 => who,
            _ => self.connect(),
        };
        if self.actors[who].session == Some(session) {
            return;
        }
        if let Some(own) = self.actors[who].session {
            // It gives up what it had.
            self.sessions[own].presence = Presence::Ended;
            self.sessions[own].believes.clear();
            for asked in self.actors[who].asked.values_mut() {
                asked.session = None;
            }
        }
        if let Presence::Live(old) = self.sessions[session].presence {
            self.actors[old].left = true;
            for asked in self.actors[old].asked.values_mut() {
                asked.session = None;
            }
        }
        let Session { id, token, .. } = &self.sessions[session];
        let data = json!({"session_id": id, "token": token});
        let actor = &mut self.actors[who];
        let id = actor.client.send("resume", data);
        actor.session = None;
        actor.asked.insert(id, Asked { place: Default::default(), ask: Ask::Resume, session: Some(session) });
    }

    fn pass(&mut self) {
        let ms = self.rng.u64(0..900);
        self.now_ms += ms;
        self.node.world.advance(Duration::from_millis(ms));
    }

    fn force(&mut self) {
        let (room, field) = self.place();
        let name = self.node.hasher.room(&room);
        let home = usize::from(name.home(self.node.shards() as u16).0);
        let (responder, answer) = pending();
        self.node.request(home, Request::Unlock { room: name, field: field.as_str().into(), responder });
        self.node.settle();
        answer.wait().expect("an answer");
        self.read_events();
        for session in &mut self.sessions {
            session.believes.retain(|_, (token, _)| !self.forced.contains(token));
        }
    }

    /// Reads what everybody was told.
    fn look(&mut self) {
        for who in 0..self.actors.len() {
            if self.actors[who].left {
                continue;
            }
            self.actors[who].client.poll();
            while let Some(message) = self.actors[who].client.messages.get(self.actors[who].seen).cloned() {
                self.actors[who].seen += 1;
                self.told(who, &message);
            }
            self.closed(who);
        }
        self.read_events();
        self.check_beliefs();
    }

    /// What a connection that went had still sent may have taken the session from the one that came after it.
    fn closed(&mut self, who: usize) {
        let actor = &mut self.actors[who];
        let Some((code, _)) = actor.client.close else { return };
        let session = actor.session.or(actor.resumes()).expect("only who has a session can lose it");
        assert!(code == 4409 && self.sessions[session].is_shaken, "client {who} is closed with {code}");
        actor.left = true;
        self.sessions[session].presence = Presence::Away(self.now_ms);
    }

    fn told(&mut self, who: usize, message: &Value) {
        let kind = message["type"].as_str().unwrap_or_default();
        let data = &message["data"];
        if kind == "connection_established" {
            // Where it resumes another session first, its own is of no interest.
            if self.actors[who].asked.is_empty() {
                self.actors[who].session = Some(self.sessions.len());
            }
            let presence = if self.actors[who].asked.is_empty() { Presence::Live(who) } else { Presence::Ended };
            self.sessions.push(Session {
                id: data["session_id"].as_str().expect("an id").to_owned(),
                token: data["resume"]["token"].as_str().expect("a token").to_owned(),
                presence,
                believes: BTreeMap::new(),
                dead: BTreeSet::new(),
                is_shaken: false,
            });
            return;
        }
        let Some(id) = message["ref"].as_u64() else {
            // The holder is told when an operator frees a lock.
            let token = data["details"]["token"].as_u64().unwrap_or_default();
            assert!(self.forced.contains(&token), "client {who} is told {message}");
            assert!(kind == "error" && data["code"] == "lock_lost", "client {who} is told {message}");
            return;
        };
        let asked = self.actors[who].asked.remove(&id);
        let Asked { place, ask, session } = asked.unwrap_or_else(|| panic!("client {who} did not ask: {message}"));
        if ask == Ask::Resume {
            return self.told_resumed(who, session.expect("of a resume"), message);
        }
        let code = data["code"].as_str().unwrap_or_default();
        match (ask, kind, code) {
            (Ask::Acquire, "lock.acquired", _) | (Ask::Renew(_), "lock.renewed", _) => {
                let lock = held(data);
                assert_eq!(lock.0, place, "{message}");
                assert!(ask == Ask::Acquire || ask == Ask::Renew(lock.1.0), "{message}");
                let Some(session) = session else { return };
                self.believe(session, lock);
            }
            (Ask::Release(token), "lock.released", _) => assert_eq!(data["token"], token, "{message}"),
            (Ask::Acquire, "error", "lock_held") => {
                assert_eq!((&data["details"]["room"], &data["details"]["field"]), (&json!(place.0), &json!(place.1)));
                let holder = &data["details"]["holder"];
                assert!(holder.is_null() || holder["session_id"].is_string(), "{message}");
                assert!(data["details"]["expires_at"].is_string(), "{message}");
            }
            (Ask::Acquire, "error", "unavailable") => {}
            (Ask::Acquire, "error", "lock_lost") => assert_eq!(session, None, "{message}"),
            (Ask::Renew(token), "error", "lock_lost") => {
                if let Some(session) = session {
                    let session = &mut self.sessions[session];
                    let believed = session.believes.get(&place).filter(|(one, _)| *one == token);
                    let now = text(self.now_ms);
                    assert!(believed.is_none_or(|(_, until)| *until <= now), "{place:?} {believed:?} at {now}");
                    session.believes.retain(|_, (one, _)| *one != token);
                    session.dead.insert(token);
                }
            }
            (Ask::Release(_), "error", "lock_lost") => {}
            _ => panic!("client {who} asked {ask:?} and is told {message}"),
        }
    }

    fn believe(&mut self, session: usize, (place, (token, until)): (Place, (u64, String))) {
        let session = &mut self.sessions[session];
        self.granted.push((place.clone(), token, session.id.clone()));
        if session.dead.contains(&token) || self.forced.contains(&token) {
            return;
        }
        let believed = session.believes.entry(place).or_insert((token, until.clone()));
        if believed.0 != token || believed.1 < until {
            *believed = (token, until);
        }
    }

    fn told_resumed(&mut self, who: usize, session: usize, message: &Value) {
        if message["type"] == "error" {
            // Its time was over; or the connection that took it up before has gone without being seen.
            assert_eq!(message["data"]["code"], "not_found", "{message}");
            self.sessions[session].presence = Presence::Ended;
            self.sessions[session].believes.clear();
            self.actors[who].left = true;
            self.actors[who].client.link.close();
            return;
        }
        let locks: BTreeMap<Place, (u64, String)> =
            message["data"]["locks"].as_array().expect("a list").iter().map(held).collect();
        let now = text(self.now_ms);
        for (place, (token, until)) in &self.sessions[session].believes {
            let is_there = locks.get(place).is_some_and(|(one, _)| one == token);
            let is_kept = is_there || *until <= now || self.sessions[session].is_shaken;
            assert!(is_kept, "{place:?} was held until {until}, at {now} is told {message}");
        }
        self.sessions[session].presence = Presence::Live(who);
        self.sessions[session].believes.clear();
        self.sessions[session].token = message["data"]["resume"]["token"].as_str().expect("a token").to_owned();
        self.actors[who].session = Some(session);
        for lock in locks {
            self.believe(session, lock);
        }
    }

    /// Reads what the rooms were told.
    fn read_events(&mut self) {
        self.monitor.poll();
        assert_eq!(self.monitor.close, None);
        while let Some(message) = self.monitor.messages.get(self.monitor_seen).cloned() {
            self.monitor_seen += 1;
            let Some(room) = message["room"].as_str() else { continue };
            let data = &message["data"];
            let field = data["field"].as_str().expect("a field");
            let session = data["session_id"].as_str().expect("a session").to_owned();
            assert!(data["client_id"].is_string() && data["user_id"].is_string(), "{message}");
            let place = (room.to_owned(), field.to_owned());
            let token = data["token"].as_u64().expect("a number");
            assert!(token < 1 << 53);
            let kind = message["type"].as_str().expect("a type");
            let told = self.told.entry(place.clone()).or_default();
            if kind == "lock.acquired" {
                assert_eq!(told.held, None, "{message}");
                assert!(token > told.last_token, "{message} after {}", told.last_token);
                assert!(data["expires_at"].is_string(), "{message}");
                *told = Told { last_token: token, held: Some((token, session.clone())) };
                self.known.insert((place, token), session);
            } else {
                assert!(kind == "lock.released" || kind == "lock.expired", "{message}");
                assert_eq!(told.held.take(), Some((token, session)), "{message}");
                if data["reason"] == "forced" {
                    self.forced.insert(token);
                }
                let why = data["reason"].as_str().unwrap_or(kind).to_owned();
                *self.ends.entry(why).or_default() += 1;
            }
        }
    }

    fn check_beliefs(&self) {
        let now = text(self.now_ms);
        let mut holders: BTreeMap<&Place, (&str, u64)> = BTreeMap::new();
        for session in &self.sessions {
            let is_over = match session.presence {
                Presence::Live(_) => false,
                Presence::Away(since_ms) => self.now_ms >= since_ms + WINDOW_S * 1000,
                Presence::Ended => true,
            };
            if is_over {
                continue;
            }
            for (place, (token, _)) in session.believes.iter().filter(|(_, (_, until))| *until > now) {
                let other = holders.insert(place, (&session.id, *token));
                assert_eq!(other, None, "{place:?} at {now} is also that of {} with {token}", session.id);
            }
        }
    }

    /// To be called at rest.
    fn check_answers(&self) {
        for (who, actor) in self.actors.iter().enumerate().filter(|(_, actor)| !actor.left) {
            assert!(actor.asked.is_empty(), "client {who} was not answered: {:?}", actor.asked);
        }
        for (place, token, session) in &self.granted {
            let told = self.known.get(&(place.clone(), *token));
            assert_eq!(told, Some(session), "{place:?} {token}");
        }
    }

    fn check_ends(&self) {
        for (place, told) in &self.told {
            assert_eq!(told.held, None, "{place:?}");
        }
        let figures = self.node.figures();
        assert_eq!(figures.locks, 0);
        assert_eq!(figures.locks_acquired, self.known.len() as u64);
        assert_eq!(figures.locks_expired, self.ends.get("lock.expired").copied().unwrap_or(0));
        assert_eq!(self.ends.values().sum::<u64>(), self.known.len() as u64);
    }
}

fn held(data: &Value) -> (Place, (u64, String)) {
    let name = |key: &str| data[key].as_str().unwrap_or_else(|| panic!("{key} in {data}")).to_owned();
    ((name("room"), name("field")), (data["token"].as_u64().expect("a number"), name("expires_at")))
}

/// A moment of the run as the hub writes it.
fn text(now_ms: u64) -> String {
    String::from_utf8(rfc3339(1_700_000_000_000 + now_ms).to_vec()).expect("ASCII")
}

/// Greedy editors take the lock again in the packet that gives it back; one asks every 700 ms, in vain for the first times.
fn starve(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let mut node = Node::new(seed, rng.u16(1..=4), Faults::rough(), config());
    let place = json!({"room": "project:1", "field": "title"});
    let with = |token: u64| json!({"room": "project:1", "field": "title", "token": token});
    let shards = node.shards();
    let mut greedy: Vec<Client> = (0..3).map(|one| node.client(one % shards, "")).collect();
    let mut patient = node.client(rng.usize(..shards), "");
    let mut holder = 0;
    let first = greedy[0].send("lock.acquire", place.clone());
    node.settle();
    greedy[0].poll();
    let mut token = greedy[0].answer(first).expect("an answer")["data"]["token"].as_u64().expect("a number");
    for round in 0..12 {
        let ask = patient.send("lock.acquire", place.clone());
        node.settle();
        patient.poll();
        let answer = patient.answer(ask).expect("an answer").clone();
        if answer["type"] == "lock.acquired" {
            assert!(round >= 2, "nobody is preferred before it was refused");
            return;
        }
        // Before its next turn the lock changes hands among the others, again and again.
        for _ in 0..7 {
            node.pass(Duration::from_millis(100));
            let (_, mut packet) = greedy[holder].command("lock.release", with(token));
            let mut asks = Vec::new();
            for (one, client) in greedy.iter_mut().enumerate() {
                let (id, bytes) = client.command("lock.acquire", place.clone());
                asks.push((one, id));
                if one == holder {
                    packet.extend(bytes);
                } else {
                    client.link.write(&bytes);
                }
            }
            greedy[holder].link.write(&packet);
            node.settle();
            for (one, id) in asks {
                greedy[one].poll();
                let answer = greedy[one].answer(id).expect("an answer");
                if let (true, Some(granted)) = (answer["type"] == "lock.acquired", answer["data"]["token"].as_u64()) {
                    (holder, token) = (one, granted);
                }
            }
        }
    }
    panic!("the patient one never had it");
}
