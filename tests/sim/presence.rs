//! Presence against a naive reference: sessions join, leave, vanish, come back under their name or with their token, take
//! themselves over, give up a session for another one, or stay away for too long, on one to four shards in a rough world.
//!
//! Time stands still while they do, and the shards' turns are interleaved at random. When all is at rest, every room has
//! exactly those members that the reference has, whoever asks; and in rooms that tell it, a member that watches has been
//! told of exactly those who came and went, each once. Who was there all the time is in every answer, also in the midst of it.
//!
//! `RINGHUB_SEEDS=10000` runs more seeds; `RINGHUB_SEED=17` runs one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fastrand::Rng;
use ringhub::hub::presence::RoomPresence;
use ringhub::hub::reply::{Pending, pending};
use ringhub::ring::sim::Faults;
use ringhub::shard::request::Request;
use serde_json::{Map, Value, json};

use crate::client::Client;
use crate::model::for_each_seed;
use crate::node::{Node, config};

const SEEDS: u64 = 200;
const ROUNDS: usize = 12;
const ACTORS_MAX: usize = 24;
/// Everybody is in the first; those of the kind `project` tell who comes and goes.
const ROOMS: [&str; 5] = ["global", "project:a", "project:b", "quote:a", "quote:b"];

#[test]
fn presence_is_who_is_there_and_every_coming_and_going_is_told_once() {
    for_each_seed(SEEDS, |seed| Run::new(seed).run());
}

/// What an actor did, in the order in which it counts.
#[derive(Debug, Clone)]
enum Step {
    /// Under a session's name, or a new one.
    Connect,
    Subscribe(String),
    Unsubscribe(String),
    Metadata(u64),
    Vanish,
    /// Takes up a session.
    Resume(String),
}

struct Actor {
    client: Client,
    seen: usize,
    client_id: String,
    session: String,
    token: String,
    /// Its session and metadata as far as the reference is.
    held: String,
    metadata: Map<String, Value>,
    /// Of [`ROOMS`].
    rooms: BTreeSet<String>,
    /// Commands that are not answered, and those to which an error is the answer.
    unanswered: BTreeMap<u64, bool>,
    queries: BTreeMap<u64, String>,
    gone: bool,
    /// It has taken a session over by its name in this round. Whether what it has itself, or what the former connection had,
    /// is kept of the two when it goes as well, is left to chance.
    took_over: bool,
    resuming: bool,
}

impl Actor {
    /// Whether it is known what becomes of what it did when it goes.
    fn may_go(&self) -> bool {
        self.unanswered.is_empty() && !self.took_over
    }
}

/// A session in a room.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    client_id: String,
    metadata: Map<String, Value>,
    /// Until when it is away; none while it is there.
    until_ms: Option<u64>,
    /// What the room said of when it joined.
    joined_at: Option<String>,
}

/// A session without its former connection.
#[derive(Debug, Default)]
struct Session {
    token: String,
    holder: Option<usize>,
    kept: Option<(BTreeSet<String>, Map<String, Value>, u64)>,
}

/// A member that watches a room for the whole time.
struct Watcher {
    actor: usize,
    room: String,
    told: BTreeMap<(String, &'static str), u64>,
    present: BTreeSet<String>,
    last_seq: u64,
}

struct Run {
    rng: Rng,
    node: Node,
    window_ms: u64,
    now_ms: u64,
    tells_global: bool,
    actors: Vec<Actor>,
    steps: Vec<(usize, Step)>,
    sessions: BTreeMap<String, Session>,
    rooms: BTreeMap<String, BTreeMap<String, Entry>>,
    /// Rooms and sessions that came or went in this round.
    touched: BTreeSet<(String, String)>,
    /// How often a session came to a room, and left it.
    counted: BTreeMap<(String, String, &'static str), u64>,
    watchers: Vec<Watcher>,
    answers: Vec<(String, Value)>,
    handles: Vec<(String, Pending<RoomPresence>)>,
    names: u64,
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut rng = Rng::with_seed(seed);
        let mut config = config();
        let window_s = if rng.u8(..5) == 0 { 0 } else { 5 };
        config.session.resume_window_s = window_s;
        config.heartbeat.interval_s = 3600;
        config.shards.turn_deliveries_max = rng.u32(1..8);
        let tells_global = rng.bool();
        for kind in &mut config.kinds {
            kind.presence_events = kind.name == "project" || kind.name == "global" && tells_global;
        }
        let faults = if rng.u8(..4) == 0 { Faults::none() } else { Faults::rough() };
        let node = Node::new(seed, rng.u16(1..=4), faults, config);
        Run {
            rng,
            node,
            window_ms: window_s * 1000,
            now_ms: 0,
            tells_global,
            actors: Vec::new(),
            steps: Vec::new(),
            sessions: BTreeMap::new(),
            rooms: ROOMS.iter().map(|room| (room.to_string(), BTreeMap::new())).collect(),
            touched: BTreeSet::new(),
            counted: BTreeMap::new(),
            watchers: Vec::new(),
            answers: Vec::new(),
            handles: Vec::new(),
            names: 0,
        }
    }

    fn tells(&self, room: &str) -> bool {
        room.starts_with("project:") || room == "global" && self.tells_global
    }

    fn run(mut self) {
        for room in ROOMS {
            if self.tells(room) {
                let actor = self.connect("");
                let (told, present) = (BTreeMap::new(), BTreeSet::new());
                self.watchers.push(Watcher { actor, room: room.to_owned(), told, present, last_seq: 0 });
                self.rest();
                if room != "global" {
                    self.subscribe_as(actor, room, json!({"room": room}));
                    self.rest();
                }
            }
        }
        for _ in 0..ROUNDS {
            for _ in 0..self.rng.usize(1..20) {
                self.act();
                for _ in 0..self.rng.usize(0..6) {
                    let shard = self.rng.usize(..self.node.shards());
                    self.node.turn_of(shard);
                }
                self.look();
            }
            self.rest();
            self.check();
            let pass_ms = if self.rng.bool() { 0 } else { self.rng.u64(1..80) * 100 };
            self.pass(pass_ms);
        }
        for actor in &self.actors {
            actor.client.link.close();
        }
        self.node.assert_empty();
    }

    fn room(&mut self) -> String {
        ROOMS[self.rng.usize(1..ROOMS.len())].to_owned()
    }

    /// An actor that is let in and waits for nothing of which it is not known how it ends.
    fn present(&mut self) -> Option<usize> {
        let watchers: Vec<usize> = self.watchers.iter().map(|watcher| watcher.actor).collect();
        let ready = self.actors.iter().enumerate().filter(|(who, actor)| {
            !actor.gone && !actor.resuming && !actor.client_id.is_empty() && !watchers.contains(who)
        });
        let ready: Vec<usize> = ready.map(|(who, _)| who).collect();
        (!ready.is_empty()).then(|| ready[self.rng.usize(..ready.len())])
    }

    fn act(&mut self) {
        match self.rng.u8(..24) {
            0..=3 => {
                if self.living() < ACTORS_MAX {
                    self.connect("");
                }
            }
            4..=9 => {
                let Some(who) = self.present() else { return };
                let room = self.room();
                let kinds = if self.rng.u8(..3) == 0 { json!(["x"]) } else { Value::Null };
                let data = json!({"room": room, "types": kinds});
                self.subscribe_as(who, &room, data);
            }
            10..=12 => {
                let Some(who) = self.present() else { return };
                let room = self.room();
                self.command(who, "unsubscribe", json!({"room": room}));
                self.steps.push((who, Step::Unsubscribe(room)));
            }
            13 => {
                let Some(who) = self.present() else { return };
                let number = self.rng.u64(..1000);
                self.command(who, "metadata", json!({"set": {"number": number}}));
                self.steps.push((who, Step::Metadata(number)));
            }
            14..=16 => self.vanish(),
            17 | 18 => self.resume(),
            19 => self.take_over(),
            20..=22 => {
                let all =
                    self.actors.iter().enumerate().filter(|(_, actor)| !actor.gone && !actor.client_id.is_empty());
                let all: Vec<usize> = all.map(|(who, _)| who).collect();
                if !all.is_empty() {
                    let (who, room) = (all[self.rng.usize(..all.len())], ROOMS[self.rng.usize(..ROOMS.len())]);
                    self.ask(who, room);
                }
            }
            _ => {
                let room = ROOMS[self.rng.usize(..ROOMS.len())];
                self.ask_handle(room);
            }
        }
    }

    fn living(&self) -> usize {
        self.actors.iter().filter(|actor| !actor.gone).count()
    }

    fn connect(&mut self, query: &str) -> usize {
        let shard = self.rng.usize(..self.node.shards());
        self.actors.push(Actor {
            client: Client::connect(&self.node, shard, "/ws", query),
            seen: 0,
            client_id: String::new(),
            session: String::new(),
            token: String::new(),
            held: String::new(),
            metadata: Map::new(),
            rooms: BTreeSet::new(),
            unanswered: BTreeMap::new(),
            queries: BTreeMap::new(),
            gone: false,
            took_over: false,
            resuming: false,
        });
        let who = self.actors.len() - 1;
        self.steps.push((who, Step::Connect));
        who
    }

    fn command(&mut self, who: usize, kind: &str, data: Value) {
        let actor = &mut self.actors[who];
        let id = actor.client.send(kind, data);
        actor.unanswered.insert(id, false);
    }

    fn subscribe_as(&mut self, who: usize, room: &str, data: Value) {
        self.command(who, "subscribe", data);
        self.steps.push((who, Step::Subscribe(room.to_owned())));
    }

    fn ask(&mut self, who: usize, room: &str) {
        let actor = &mut self.actors[who];
        let id = actor.client.send("presence", json!({"room": room}));
        actor.queries.insert(id, room.to_owned());
    }

    fn ask_handle(&mut self, room: &str) {
        let name = self.node.hasher.room(room);
        let home = usize::from(name.home(self.node.shards() as u16).0);
        let (responder, answer) = pending();
        self.node.request(home, Request::Presence { room: name, responder });
        self.handles.push((room.to_owned(), answer));
    }

    /// One whose commands are all answered vanishes. Often another connection comes for its session at once.
    fn vanish(&mut self) {
        let Some(who) = self.present() else { return };
        if !self.actors[who].may_go() {
            return;
        }
        match self.rng.u8(..3) {
            0 => self.actors[who].client.link.close(),
            1 => self.actors[who].client.link.finish(),
            _ => self.actors[who].client.link.reset(),
        }
        self.actors[who].gone = true;
        self.steps.push((who, Step::Vanish));
        if self.window_ms > 0 && self.rng.bool() {
            let (session, token) = (self.actors[who].session.clone(), self.actors[who].token.clone());
            self.resume_with(&session, &token);
        }
    }

    /// Somebody comes for a session that is away, or that another connection has.
    fn resume(&mut self) {
        if self.window_ms == 0 {
            return;
        }
        if self.rng.bool() {
            // One that was away when the round began, and for which nobody has come since.
            let taken: BTreeSet<&String> = self
                .steps
                .iter()
                .filter_map(|(_, step)| if let Step::Resume(session) = step { Some(session) } else { None })
                .collect();
            let named = |name: &String| self.actors.iter().any(|actor| !actor.gone && actor.session == *name);
            let away = self.sessions.iter().filter(|(name, session)| {
                session.holder.is_none()
                    && session.kept.as_ref().is_some_and(|(_, _, until_ms)| *until_ms > self.now_ms)
                    && !taken.contains(name)
                    && !named(name)
            });
            let away: Vec<(String, String)> =
                away.map(|(name, session)| (name.clone(), session.token.clone())).collect();
            if !away.is_empty() {
                let (session, token) = away[self.rng.usize(..away.len())].clone();
                self.resume_with(&session, &token);
            }
            return;
        }
        let Some(who) = self.present() else { return };
        let actor = &mut self.actors[who];
        if !actor.may_go() {
            return;
        }
        // Half dead, or not: the hub finds out when the new one comes.
        if self.rng.bool() {
            actor.client.link.set_read_budget(0);
        }
        actor.gone = true;
        let (session, token) = (actor.session.clone(), actor.token.clone());
        self.steps.push((who, Step::Vanish));
        self.resume_with(&session, &token);
    }

    fn resume_with(&mut self, session: &str, token: &str) {
        // With a new connection, or with one that is there and gives up its own session.
        // Under which of its sessions it is in a room at first that has not answered yet, is left to chance.
        let is_other = |actor: &Actor| actor.session != session && actor.unanswered.is_empty();
        let other = self.present().filter(|who| is_other(&self.actors[*who]));
        let who = match other {
            Some(who) if self.rng.u8(..3) == 0 => who,
            _ => self.connect(""),
        };
        self.command(who, "resume", json!({"session_id": session, "token": token}));
        self.actors[who].resuming = true;
        self.steps.push((who, Step::Resume(session.to_owned())));
    }

    /// A session is taken over by its name, or given one.
    fn take_over(&mut self) {
        let who = self.present().filter(|who| self.actors[*who].may_go());
        let Some(who) = who.filter(|_| self.rng.bool()) else {
            self.names += 1;
            if self.living() < ACTORS_MAX {
                self.connect(&format!("session_id=named-{}", self.names));
            }
            return;
        };
        if self.window_ms == 0 {
            return;
        }
        self.actors[who].gone = true;
        let session = self.actors[who].session.clone();
        self.steps.push((who, Step::Vanish));
        let next = self.connect(&format!("session_id={session}"));
        self.actors[next].session = session;
        self.actors[next].took_over = true;
    }

    // ---- what they are told ----

    fn look(&mut self) {
        for who in 0..self.actors.len() {
            self.actors[who].client.poll();
            if self.actors[who].gone {
                continue;
            }
            let close = &self.actors[who].client.close;
            assert_eq!(*close, None, "actor {who} is closed");
            while let Some(message) = self.actors[who].client.messages.get(self.actors[who].seen).cloned() {
                self.actors[who].seen += 1;
                self.told(who, &message);
            }
        }
    }

    fn told(&mut self, who: usize, message: &Value) {
        let (kind, data) = (message["type"].as_str().unwrap_or_default(), &message["data"]);
        let actor = &mut self.actors[who];
        match (kind, message["ref"].as_u64()) {
            ("connection_established", _) => {
                let text = |value: &Value| value.as_str().expect("a text").to_owned();
                actor.client_id = text(&data["client_id"]);
                actor.session = text(&data["session_id"]);
                actor.token = text(&data["resume"]["token"]);
            }
            ("presence", Some(id)) => {
                let room = actor.queries.remove(&id).expect("asked");
                assert_eq!(data["room"], *room);
                if let Some(watcher) =
                    self.watchers.iter_mut().find(|watcher| watcher.actor == who && watcher.room == room)
                {
                    // What it is told from here on continues this.
                    watcher.present = sessions(data);
                }
                self.answers.push((room, data.clone()));
            }
            ("presence.joined" | "presence.left", None) => self.watched(who, message),
            // What came while its session was away, and is old by now.
            ("gap", None) => assert!(self.watchers.iter().all(|watcher| watcher.actor != who), "{message}"),
            ("subscribed" | "unsubscribed" | "metadata" | "resumed", Some(id)) => {
                assert!(actor.unanswered.remove(&id).is_some(), "{message}");
                if kind == "resumed" {
                    actor.session = data["session_id"].as_str().expect("an id").to_owned();
                    actor.token = data["resume"]["token"].as_str().expect("a token").to_owned();
                    actor.resuming = false;
                }
            }
            _ => panic!("actor {who} is told {message}"),
        }
    }

    fn watched(&mut self, who: usize, message: &Value) {
        let room = message["room"].as_str().expect("a room");
        let Some(watcher) = self.watchers.iter_mut().find(|watcher| watcher.actor == who && watcher.room == room)
        else {
            return;
        };
        let seq = message["seq"].as_u64().expect("a number");
        assert!(watcher.last_seq == 0 || seq == watcher.last_seq + 1, "{room}: {message}");
        watcher.last_seq = seq;
        let session = message["data"]["session_id"].as_str().expect("a session").to_owned();
        let (kind, other) = match message["type"].as_str() {
            Some("presence.joined") => ("joined", "left"),
            _ => ("left", "joined"),
        };
        if kind == "joined" {
            watcher.present.insert(session.clone());
        } else {
            watcher.present.remove(&session);
        }
        let others = watcher.told.get(&(session.clone(), other)).copied().unwrap_or_default();
        let times = watcher.told.entry((session, kind)).or_default();
        *times += 1;
        let expected = if kind == "joined" { others + 1 } else { others };
        assert_eq!(*times, expected, "{room}: one comes before one goes, each once: {message}");
    }

    // ---- the reference ----

    fn rest(&mut self) {
        self.node.settle();
        self.look();
        let before: BTreeMap<String, BTreeSet<String>> =
            self.rooms.iter().map(|(room, entries)| (room.clone(), entries.keys().cloned().collect())).collect();
        for (who, step) in std::mem::take(&mut self.steps) {
            self.apply(who, step);
        }
        for actor in &mut self.actors {
            assert!(actor.gone || actor.unanswered.is_empty() && actor.queries.is_empty(), "not answered");
            actor.took_over = false;
        }
        // Answers from the midst of it.
        let mut answers = std::mem::take(&mut self.answers);
        for (room, answer) in std::mem::take(&mut self.handles) {
            answers.push((room, as_json(&answer.wait().expect("answered"))));
        }
        for (room, answer) in answers {
            let listed = sessions(&answer);
            for session in before[&room].union(&listed) {
                if !self.touched.contains(&(room.clone(), session.clone())) {
                    let was_there = before[&room].contains(session);
                    assert_eq!(listed.contains(session), was_there, "{session} in {room}: {answer}");
                }
            }
        }
        self.touched.clear();
    }

    fn apply(&mut self, who: usize, step: Step) {
        match step {
            Step::Connect => {
                // An actor that resumed has another session by now than it came with.
                let greeting = &self.actors[who].client.messages[0]["data"];
                let session = greeting["session_id"].as_str().expect("an id").to_owned();
                let token = greeting["resume"]["token"].as_str().expect("a token").to_owned();
                let entry = self.sessions.entry(session.clone()).or_default();
                (entry.holder, entry.token) = (Some(who), token);
                self.actors[who].held = session;
                self.enter(who, "global");
            }
            Step::Subscribe(room) => self.enter(who, &room),
            Step::Unsubscribe(room) => {
                if self.actors[who].rooms.remove(&room) {
                    let session = self.actors[who].held.clone();
                    self.leave(&session, &room);
                }
            }
            Step::Metadata(number) => {
                self.actors[who].metadata.insert("number".to_owned(), json!(number));
                self.describe(who);
            }
            Step::Vanish => {
                let actor = &mut self.actors[who];
                let (session, rooms) = (actor.held.clone(), std::mem::take(&mut actor.rooms));
                let until_ms = self.now_ms + self.window_ms;
                for room in &rooms {
                    if self.window_ms == 0 {
                        self.leave(&session, room);
                    } else if let Some(entry) = self.rooms.get_mut(room).and_then(|entries| entries.get_mut(&session)) {
                        entry.until_ms = Some(until_ms);
                    }
                }
                let mut kept = (rooms, self.actors[who].metadata.clone(), until_ms);
                let known = self.sessions.get_mut(&session).expect("a session");
                known.holder = None;
                // What an earlier connection left and this one did not ask for is still the session's.
                if let Some((rooms, metadata, _)) = known.kept.take() {
                    kept.0.extend(rooms);
                    if kept.1.is_empty() {
                        kept.1 = metadata;
                    }
                }
                known.kept = (self.window_ms > 0).then_some(kept);
            }
            Step::Resume(session) => {
                let former = std::mem::replace(&mut self.actors[who].held, session.clone());
                let rooms = self.actors[who].rooms.clone();
                for room in &rooms {
                    self.leave(&former, room);
                }
                self.sessions.remove(&former);
                let known = self.sessions.get_mut(&session).expect("a session");
                known.holder = Some(who);
                let (kept, metadata, _) = known.kept.take().expect("kept");
                self.actors[who].metadata.extend(metadata);
                for room in rooms.union(&kept) {
                    self.enter(who, room);
                }
            }
        }
    }

    fn enter(&mut self, who: usize, room: &str) {
        let actor = &mut self.actors[who];
        actor.rooms.insert(room.to_owned());
        let entry = Entry {
            client_id: actor.client.messages[0]["data"]["client_id"].as_str().expect("an id").to_owned(),
            metadata: actor.metadata.clone(),
            until_ms: None,
            joined_at: None,
        };
        let session = actor.held.clone();
        let entries = self.rooms.get_mut(room).expect("a room");
        match entries.get_mut(&session) {
            Some(known) => {
                let joined_at = known.joined_at.take();
                *known = Entry { joined_at, ..entry };
            }
            None => {
                entries.insert(session.clone(), entry);
                self.count(&session, room, "joined");
            }
        }
        self.describe(who);
    }

    fn leave(&mut self, session: &str, room: &str) {
        if self.rooms.get_mut(room).and_then(|entries| entries.remove(session)).is_some() {
            self.count(session, room, "left");
        }
    }

    fn count(&mut self, session: &str, room: &str, kind: &'static str) {
        self.touched.insert((room.to_owned(), session.to_owned()));
        *self.counted.entry((room.to_owned(), session.to_owned(), kind)).or_default() += 1;
    }

    /// Its metadata is the same wherever it is.
    fn describe(&mut self, who: usize) {
        let actor = &self.actors[who];
        for room in &actor.rooms {
            if let Some(entry) = self.rooms.get_mut(room).and_then(|entries| entries.get_mut(&actor.held)) {
                entry.metadata = actor.metadata.clone();
            }
        }
    }

    fn pass(&mut self, time_ms: u64) {
        self.node.pass(Duration::from_millis(time_ms));
        self.now_ms += time_ms;
        self.look();
        for room in ROOMS {
            let over = |entry: &Entry| entry.until_ms.is_some_and(|until_ms| until_ms <= self.now_ms);
            let entries = self.rooms[room].iter().filter(|(_, entry)| over(entry));
            let over: Vec<String> = entries.map(|(session, _)| session.clone()).collect();
            over.iter().for_each(|session| self.leave(session, room));
        }
        self.touched.clear();
        self.sessions.retain(|_, session| {
            session.kept.take_if(|(_, _, until_ms)| *until_ms <= self.now_ms);
            session.holder.is_some() || session.kept.is_some()
        });
    }

    /// To be called at rest.
    fn check(&mut self) {
        for room in ROOMS {
            let who = self.watchers.first().map_or(0, |watcher| watcher.actor);
            let who = self.present().unwrap_or(who);
            self.ask(who, room);
            self.ask_handle(room);
            self.node.settle();
            self.look();
            let mut answers = std::mem::take(&mut self.answers);
            for (_, answer) in std::mem::take(&mut self.handles) {
                answers.push((room.to_owned(), as_json(&answer.wait().expect("answered"))));
            }
            assert_eq!(answers.len(), 2, "{room}");
            for (_, answer) in answers {
                self.compare(room, &answer);
            }
        }
        for watcher in &self.watchers {
            let expected: BTreeSet<String> = self.rooms[&watcher.room].keys().cloned().collect();
            assert_eq!(watcher.present, expected, "{}", watcher.room);
            for ((room, session, kind), times) in &self.counted {
                if *room == watcher.room {
                    let told = watcher.told.get(&(session.clone(), *kind)).copied().unwrap_or_default();
                    assert_eq!(told, *times, "how often {session} {kind} {room}");
                }
            }
            let told = watcher.told.values().sum::<u64>();
            let counted = self.counted.iter().filter(|((room, ..), _)| *room == watcher.room);
            assert_eq!(told, counted.map(|(_, times)| times).sum::<u64>(), "{}", watcher.room);
        }
    }

    fn compare(&mut self, room: &str, answer: &Value) {
        let tells = self.tells(room);
        let entries = self.rooms.get_mut(room).expect("a room");
        assert_eq!(sessions(answer), entries.keys().cloned().collect(), "{room}: {answer}");
        assert_eq!(answer["more"], false);
        for member in answer["members"].as_array().expect("members") {
            let entry = entries.get_mut(member["session_id"].as_str().expect("an id")).expect("listed");
            assert_eq!(member["client_id"], *entry.client_id, "{room}: {member}");
            assert_eq!(member["user_id"], "anonymous");
            assert_eq!(member["metadata"], Value::Object(entry.metadata.clone()), "{room}: {member}");
            let joined_at = member["joined_at"].as_str().expect("a time").to_owned();
            if tells {
                assert_eq!(*entry.joined_at.get_or_insert(joined_at.clone()), joined_at, "it stays: {member}");
            }
        }
    }
}

/// Those listed, each once.
fn sessions(answer: &Value) -> BTreeSet<String> {
    let members = answer["members"].as_array().expect("members");
    let sessions: BTreeSet<String> =
        members.iter().map(|member| member["session_id"].as_str().expect("an id").to_owned()).collect();
    assert_eq!(sessions.len(), members.len(), "none twice: {answer}");
    assert_eq!(answer["count"], members.len(), "{answer}");
    sessions
}

/// What the handle says, as a client would be told.
fn as_json(presence: &RoomPresence) -> Value {
    let members = presence.members.iter().map(|member| {
        json!({"client_id": *member.client_id, "user_id": *member.user_id, "session_id": *member.session_id,
               "metadata": member.metadata, "joined_at": rfc3339(member.joined_ms)})
    });
    json!({"count": presence.count, "members": members.collect::<Vec<_>>(), "more": presence.has_more()})
}

fn rfc3339(unix_ms: u64) -> String {
    String::from_utf8(ringhub::wire::envelope::rfc3339(unix_ms).to_vec()).expect("a time is ASCII")
}

/// A node in whose rooms of the kind `project` members are told, and a settled watcher on another shard than the home.
fn watched(window_s: u64) -> (Node, String, Client) {
    let mut config = config();
    config.session.resume_window_s = window_s;
    config.kinds.iter_mut().for_each(|kind| kind.presence_events = kind.name == "project");
    let mut node = Node::new(1, 3, Faults::none(), config);
    let room = node.room_at("project:", 0);
    let mut watcher = node.client(1, "client_id=watcher");
    subscribe(&mut node, &mut watcher, &room);
    (node, room, watcher)
}

fn subscribe(node: &mut Node, client: &mut Client, room: &str) {
    let id = client.send("subscribe", json!({"room": room}));
    node.settle();
    client.poll();
    assert_eq!(client.answer(id).expect("an answer")["type"], "subscribed");
}

/// Types and client ids of what a watcher was told of comings and goings.
fn told(node: &mut Node, watcher: &mut Client) -> Vec<String> {
    node.settle();
    watcher.poll();
    let events = watcher.messages.iter().filter_map(|message| {
        let kind = message["type"].as_str()?.strip_prefix("presence.")?;
        Some(format!("{kind} {}", message["data"]["client_id"].as_str()?))
    });
    events.collect()
}

fn count(node: &mut Node, client: &mut Client, room: &str) -> Value {
    let id = client.send("presence", json!({"room": room}));
    node.settle();
    client.poll();
    let answer = client.answer(id).expect("an answer");
    assert_eq!(sessions(&answer["data"]).len(), answer["data"]["count"]);
    answer["data"]["count"].clone()
}

#[test]
fn a_kind_may_begin_and_cease_to_tell_while_members_are_there() {
    let (mut node, room, mut watcher) = watched(5);
    let reload = |node: &mut Node, tells: bool| {
        let mut config = config();
        config.session.resume_window_s = 5;
        config.kinds.iter_mut().for_each(|kind| kind.presence_events = tells && kind.name == "project");
        let settings = std::sync::Arc::new(ringhub::shard::Settings::new(config).expect("sound settings"));
        (0..node.shards()).for_each(|shard| node.request(shard, Request::Reload(settings.clone())));
        node.settle();
    };
    let mut known = node.client(2, "client_id=known");
    subscribe(&mut node, &mut known, &room);
    reload(&mut node, false);
    let mut unknown = node.client(0, "client_id=unknown");
    subscribe(&mut node, &mut unknown, &room);
    assert_eq!(count(&mut node, &mut watcher, &room), 3);
    known.send("unsubscribe", json!({"room": room}));
    node.settle();
    assert_eq!(count(&mut node, &mut watcher, &room), 2);
    subscribe(&mut node, &mut known, &room);
    reload(&mut node, true);
    assert_eq!(count(&mut node, &mut watcher, &room), 3);
    unknown.link.close();
    assert_eq!(count(&mut node, &mut watcher, &room), 3);
    node.pass(Duration::from_secs(6));
    assert_eq!(count(&mut node, &mut watcher, &room), 2);
    assert_eq!(told(&mut node, &mut watcher), ["joined watcher", "joined known"], "of those who are known");
    // Known from here on.
    subscribe(&mut node, &mut known, &room);
    known.send("unsubscribe", json!({"room": room}));
    assert_eq!(told(&mut node, &mut watcher)[2..], ["joined known", "left known"]);
    [watcher, known].iter().for_each(|client| client.link.close());
    node.assert_empty();
}

#[test]
fn a_session_that_was_refused_its_room_when_it_was_resumed_is_gone_from_it() {
    let mut config = config();
    config.limits.filters_per_room_max = 1;
    config.kinds.iter_mut().for_each(|kind| kind.presence_events = kind.name == "project");
    let mut node = Node::new(1, 3, Faults::none(), config);
    let room = node.room_at("project:", 0);
    let mut watcher = node.client(1, "client_id=watcher");
    subscribe(&mut node, &mut watcher, &room);
    let mut before = node.client(2, "client_id=before");
    before.send("subscribe", json!({"room": room, "types": ["x"]}));
    let mut other = node.client(1, "client_id=other");
    other.send("subscribe", json!({"room": room, "types": ["y"]}));
    node.settle();
    before.poll();
    before.link.close();
    assert_eq!(count(&mut node, &mut watcher, &room), 3);
    // The shard that it comes to has as many filters in this room as it may.
    let mut after = node.client(1, "client_id=after");
    let greeting = before.messages[0]["data"].clone();
    let resume = json!({"session_id": greeting["session_id"], "token": greeting["resume"]["token"]});
    let id = after.send("resume", resume);
    node.settle();
    after.poll();
    let results = after.answer(id).expect("an answer")["data"]["results"].clone();
    let refused = results.as_array().expect("results").iter().find(|result| result["room"] == *room);
    assert_eq!(refused.expect("named")["error"]["code"], "room_limit", "{results}");
    assert_eq!(count(&mut node, &mut watcher, &room), 2);
    assert_eq!(told(&mut node, &mut watcher).last().map(String::as_str), Some("left after"));
}

#[test]
fn without_a_window_a_connection_takes_its_presence_with_it() {
    let (mut node, room, mut watcher) = watched(0);
    let mut other = node.client(2, "client_id=other");
    subscribe(&mut node, &mut other, &room);
    other.link.reset();
    assert_eq!(told(&mut node, &mut watcher), ["joined watcher", "joined other", "left other"]);
    assert_eq!(count(&mut node, &mut watcher, &room), 1);
}
