//! The hub against a naive reference: random clients join, leave, publish and vanish on one to four shards whose turns
//! are interleaved at random, in a rough world. Every member must get exactly the events of its room after its join, in
//! order, none twice, and nothing may be left when everybody has gone.
//!
//! `RINGHUB_SEEDS=10000` runs more seeds; `RINGHUB_SEED=17` runs one.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use ringhub::ring::sim::Faults;
use serde_json::{Value, json};

use crate::client::{Client, SUBPROTOCOLS, frame};
use crate::node::{Node, config};

const SEEDS: u64 = 300;
const ROOMS: usize = 5;
const STEPS: usize = 250;

#[test]
fn every_member_gets_every_event_of_its_room_once_and_in_order() {
    for_each_seed(SEEDS, |seed| Run::new(seed).run());
}

/// Runs that many seeds, or those asked for. One that fails is named, so that it can be run again.
pub fn for_each_seed(count: u64, run: impl Fn(u64) + std::panic::RefUnwindSafe) {
    for seed in seeds(count) {
        let outcome = std::panic::catch_unwind(|| run(seed));
        assert!(outcome.is_ok(), "RINGHUB_SEED={seed} fails");
    }
}

/// The seeds to be run: those asked for, or that many.
pub fn seeds(count: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("RINGHUB_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RINGHUB_SEEDS").unwrap_or(count),
    }
}

/// What an event was when it was published.
#[derive(Debug, Clone, PartialEq)]
struct Published {
    kind: String,
    number: u64,
    /// Who must not get it.
    exclude: Option<usize>,
}

/// A publish that was not answered yet.
struct Asked {
    room: String,
    event: Published,
}

/// A membership, from the answer to its `subscribe` on.
#[derive(Debug, Clone)]
struct Membership {
    epoch: String,
    /// The last number given before it began.
    seq: u64,
    kinds: Vec<String>,
    got: Vec<u64>,
}

/// A client, and what it has been told so far.
struct Actor {
    client: Client,
    /// Messages looked at.
    seen: usize,
    subscribes: BTreeMap<u64, Vec<String>>,
    /// A list of rooms is answered when all of them have: until then nothing else is asked.
    list: Option<u64>,
    /// Events of rooms in that list, before its answer.
    early: Vec<(String, u64)>,
    publishes: BTreeMap<u64, Asked>,
    waiting: BTreeSet<u64>,
    rooms: BTreeMap<String, Membership>,
    left: bool,
}

struct Run {
    rng: Rng,
    node: Node,
    actors: Vec<Actor>,
    rooms: Vec<String>,
    /// By room, epoch and number; as far as publishers were told.
    published: BTreeMap<(String, String, u64), Published>,
    /// By room and epoch: the last number given.
    last: BTreeMap<(String, String), u64>,
    /// Events that someone got before the publisher's answer was read.
    unproved: Vec<(usize, String, String, u64, String, u64)>,
    next_number: u64,
    /// Readers stop and go on; outboxes hold next to nothing.
    slow: bool,
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut rng = Rng::with_seed(seed);
        let lossy = rng.u8(..3) == 0;
        let faults = match rng.u8(..3) {
            0 => Faults::none(),
            _ => Faults::rough(),
        };
        let faults = if lossy { Faults { resets: 0.002, ..faults } } else { faults };
        let mut config = config();
        config.shards.turn_deliveries_max = rng.u32(1..6);
        let slow = rng.u8(..3) == 0;
        if slow {
            config.limits.outbox_bytes_max = rng.usize(200..2000);
        }
        let node = Node::new(seed, rng.u16(1..=4), faults, config);
        Run {
            rng,
            node,
            actors: Vec::new(),
            rooms: (0..ROOMS).map(|number| format!("project:{number}")).collect(),
            published: BTreeMap::new(),
            last: BTreeMap::new(),
            unproved: Vec::new(),
            next_number: 0,
            slow,
        }
    }

    fn run(mut self) {
        for _ in 0..STEPS {
            match self.rng.u8(..12) {
                0 if self.actors.len() < 40 => self.connect(),
                0..=7 => self.act(),
                _ => {}
            }
            if self.slow && !self.actors.is_empty() {
                let who = self.rng.usize(..self.actors.len());
                let budget = *self.rng.choice(&[0, 100, 1000, usize::MAX]).expect("some");
                self.actors[who].client.link.set_read_budget(budget);
            }
            for _ in 0..self.rng.usize(0..4) {
                let shard = self.rng.usize(..self.node.shards());
                self.node.turn_of(shard);
            }
            self.look();
        }
        self.actors.iter().for_each(|actor| actor.client.link.set_read_budget(usize::MAX));
        self.node.settle();
        self.look();
        self.check_complete();
        for actor in &self.actors {
            match self.rng.u8(..3) {
                0 => actor.client.link.write(&frame(8, &1000u16.to_be_bytes())),
                1 => actor.client.link.close(),
                _ => actor.client.link.reset(),
            }
        }
        self.node.settle();
        for actor in &self.actors {
            actor.client.link.close();
        }
        self.node.assert_empty();
    }

    /// A client that offers compression.
    fn deflating_client(&self, shard: usize, query: &str, parameter: &str) -> Client {
        let offer = format!("Sec-WebSocket-Extensions: permessage-deflate; {parameter}\r\n");
        Client::connect_with(&self.node, shard, "/ws", query, &offer)
    }

    fn connect(&mut self) {
        let shard = self.rng.usize(..self.node.shards());
        let query = match self.rng.u8(..6) {
            // Some take over a session, some meet an id that is taken.
            0 => format!("session_id=s{}", self.rng.u8(..3)),
            1 => format!("client_id=c{}", self.rng.u8(..3)),
            _ => String::new(),
        };
        let client = match self.rng.u8(..4) {
            0 => self.deflating_client(shard, &query, "client_max_window_bits"),
            1 => self.deflating_client(shard, &query, "server_max_window_bits=9"),
            _ => {
                let subprotocol = self.rng.choice(SUBPROTOCOLS).expect("some");
                Client::connect_as(&self.node, shard, "/ws", &query, subprotocol)
            }
        };
        self.actors.push(Actor {
            client,
            seen: 0,
            subscribes: BTreeMap::new(),
            list: None,
            early: Vec::new(),
            publishes: BTreeMap::new(),
            waiting: BTreeSet::new(),
            rooms: BTreeMap::new(),
            left: false,
        });
    }

    /// One client does one to three things in one packet; it may not even wait for its upgrade.
    fn act(&mut self) {
        let present: Vec<usize> = (0..self.actors.len()).filter(|&one| !self.actors[one].left).collect();
        let Some(who) = self.rng.choice(present) else { return };
        if self.actors[who].list.is_some() {
            return;
        }
        let mut packet = Vec::new();
        for _ in 0..self.rng.u8(1..=3) {
            packet.extend(match self.rng.u8(..10) {
                0 if packet.is_empty() && self.actors[who].waiting.is_empty() => {
                    packet = self.subscribe_list(who);
                    break;
                }
                0..=2 => self.subscribe(who),
                3..=4 => self.unsubscribe(who),
                _ => self.publish(who),
            });
        }
        let ends = self.rng.u8(..30) == 0;
        if ends && self.rng.bool() {
            packet.extend(frame(8, &1000u16.to_be_bytes()));
        }
        let actor = &mut self.actors[who];
        actor.client.link.write(&packet);
        if ends {
            actor.left = true;
            match self.rng.u8(..3) {
                0 => actor.client.link.close(),
                1 => actor.client.link.finish(),
                _ => actor.client.link.reset(),
            }
        }
    }

    fn subscribe(&mut self, who: usize) -> Vec<u8> {
        let room = self.room();
        let actor = &self.actors[who];
        if self.slow && (actor.rooms.contains_key(&room) || !actor.waiting.is_empty()) {
            // What a slow reader is still owed of its old selection is chosen by its new one.
            return Vec::new();
        }
        let (data, kinds) = match self.rng.u8(..3) {
            0 => (json!({"room": room, "types": ["even"]}), vec!["even".to_owned()]),
            _ => (json!({"room": room}), Vec::new()),
        };
        let actor = &mut self.actors[who];
        let (id, bytes) = actor.client.command("subscribe", data);
        actor.subscribes.insert(id, kinds);
        actor.waiting.insert(id);
        bytes
    }

    /// Subscribes to all rooms that it is not in.
    fn subscribe_list(&mut self, who: usize) -> Vec<u8> {
        let actor = &mut self.actors[who];
        let rooms: Vec<&String> = self.rooms.iter().filter(|room| !actor.rooms.contains_key(*room)).collect();
        if rooms.is_empty() {
            return Vec::new();
        }
        let (id, bytes) = actor.client.command("subscribe", json!({"rooms": rooms}));
        actor.subscribes.insert(id, Vec::new());
        actor.waiting.insert(id);
        actor.list = Some(id);
        bytes
    }

    fn unsubscribe(&mut self, who: usize) -> Vec<u8> {
        let room = self.room();
        let actor = &mut self.actors[who];
        let (id, bytes) = actor.client.command("unsubscribe", json!({"room": room}));
        actor.waiting.insert(id);
        bytes
    }

    fn publish(&mut self, who: usize) -> Vec<u8> {
        self.next_number += 1;
        let number = self.next_number;
        let kind = if number.is_multiple_of(2) { "even" } else { "odd" };
        let echo = self.rng.u8(..4) > 0;
        let room = self.room();
        let data = json!({"room": room, "type": kind, "data": {"number": number}, "echo": echo});
        let event = Published { kind: kind.to_owned(), number, exclude: (!echo).then_some(who) };
        let actor = &mut self.actors[who];
        let (id, bytes) = actor.client.command("publish", data);
        actor.publishes.insert(id, Asked { room, event });
        actor.waiting.insert(id);
        bytes
    }

    fn room(&mut self) -> String {
        let place = self.rng.usize(..self.rooms.len());
        self.rooms[place].clone()
    }

    /// Reads what everybody was told.
    fn look(&mut self) {
        for who in 0..self.actors.len() {
            self.actors[who].client.poll();
            while let Some(message) = self.actors[who].client.messages.get(self.actors[who].seen).cloned() {
                self.actors[who].seen += 1;
                self.told(who, &message);
            }
        }
    }

    fn told(&mut self, who: usize, message: &Value) {
        let kind = message["type"].as_str().unwrap_or_default();
        let id = message["ref"].as_u64();
        if let Some(id) = id {
            assert!(self.actors[who].waiting.remove(&id), "client {who}: {id} is answered twice: {message}");
        }
        let data = &message["data"];
        match (kind, id) {
            ("connection_established", _) => {}
            ("subscribed", Some(id)) => {
                let kinds = self.actors[who].subscribes.remove(&id).expect("a subscribe");
                let results = data["results"].as_array().cloned().unwrap_or_else(|| vec![data.clone()]);
                for result in results {
                    self.subscribed(who, &result, kinds.clone());
                }
                if self.actors[who].list == Some(id) {
                    self.actors[who].list = None;
                    for (room, seq) in std::mem::take(&mut self.actors[who].early) {
                        let membership = self.actors[who].rooms.get_mut(&room).expect("it is in the list");
                        assert!(seq > membership.got.last().copied().unwrap_or(membership.seq));
                        membership.got.push(seq);
                    }
                }
            }
            ("unsubscribed", Some(_)) => {
                let room = data["room"].as_str().expect("a room");
                self.actors[who].rooms.remove(room);
            }
            ("published", Some(id)) => {
                let Asked { room, event } = self.actors[who].publishes.remove(&id).expect("a publish");
                let epoch = data["epoch"].as_str().expect("an epoch").to_owned();
                let seq = data["seq"].as_u64().expect("a number");
                let last = self.last.entry((room.clone(), epoch.clone())).or_default();
                *last = seq.max(*last);
                let former = self.published.insert((room, epoch, seq), event);
                assert_eq!(former, None, "a number was given twice");
            }
            ("even" | "odd", None) => self.event(who, message),
            _ => panic!("client {who} is told {message}"),
        }
    }

    fn subscribed(&mut self, who: usize, result: &Value, kinds: Vec<String>) {
        let room = result["room"].as_str().expect("a room").to_owned();
        let epoch = result["epoch"].as_str().unwrap_or_else(|| panic!("an epoch in {result}")).to_owned();
        let seq = result["seq"].as_u64().expect("a number");
        if let Some(former) = self.actors[who].rooms.remove(&room) {
            assert_eq!(former.epoch, epoch, "the room lived on");
            self.check_membership(who, &room, &former, seq);
        }
        self.actors[who].rooms.insert(room, Membership { epoch, seq, kinds, got: Vec::new() });
    }

    fn event(&mut self, who: usize, message: &Value) {
        let room = message["room"].as_str().expect("a room").to_owned();
        let kind = message["type"].as_str().expect("a type").to_owned();
        let seq = message["seq"].as_u64().expect("a number");
        let number = message["data"]["number"].as_u64().expect("a number");
        let actor = &mut self.actors[who];
        if actor.list.is_some() && !actor.rooms.contains_key(&room) {
            actor.early.push((room, seq));
            return;
        }
        let membership = actor.rooms.get_mut(&room);
        let membership = membership.unwrap_or_else(|| panic!("client {who} is no member of {room}: {message}"));
        let after = membership.got.last().copied().unwrap_or(membership.seq);
        assert!(seq > after, "client {who}, {room}: {seq} after {after}");
        assert!(membership.kinds.is_empty() || membership.kinds.contains(&kind), "client {who} did not want {kind}");
        membership.got.push(seq);
        self.unproved.push((who, room, membership.epoch.clone(), seq, kind, number));
    }

    /// A membership must have got every event it wanted up to `until`, as far as it is known what these were.
    fn check_membership(&self, who: usize, room: &str, membership: &Membership, until: u64) {
        for seq in membership.seq + 1..=until {
            let key = (room.to_owned(), membership.epoch.clone(), seq);
            // Its publisher may not have been told yet, or may have gone before it was.
            let Some(event) = self.published.get(&key) else { continue };
            let wants = membership.kinds.is_empty() || membership.kinds.contains(&event.kind);
            let wanted = wants && event.exclude != Some(who);
            let got = membership.got.contains(&seq);
            assert_eq!(got, wanted, "client {who}, {room}, event {seq} of those after {}: got, wanted", membership.seq);
        }
    }

    /// To be called at rest.
    fn check_complete(&mut self) {
        for (who, room, epoch, seq, kind, number) in std::mem::take(&mut self.unproved) {
            let Some(event) = self.published.get(&(room.clone(), epoch, seq)) else { continue };
            assert_eq!((&event.kind, event.number), (&kind, number), "client {who}, {room}, event {seq}");
            assert_ne!(event.exclude, Some(who), "client {who} got its own event {seq} of {room}");
        }
        for who in 0..self.actors.len() {
            let actor = &self.actors[who];
            assert_ne!(actor.client.close.as_ref().map(|(code, _)| *code), Some(4508), "client {who} may read on");
            let connected = actor.client.status == Some(101) && actor.client.close.is_none();
            if actor.left || !connected || actor.client.link.is_closed() {
                continue;
            }
            assert!(actor.waiting.is_empty(), "client {who} was not answered: {:?}", actor.waiting);
            for (room, membership) in &actor.rooms {
                let until = self.last.get(&(room.clone(), membership.epoch.clone())).copied();
                self.check_membership(who, room, membership, until.unwrap_or(membership.seq));
                if membership.kinds.is_empty() {
                    self.check_no_hole(who, room, membership);
                }
            }
        }
    }

    /// What was not for it is known; the rest must be without holes.
    fn check_no_hole(&self, who: usize, room: &str, membership: &Membership) {
        let Some(&end) = membership.got.last() else { return };
        for seq in membership.seq + 1..=end {
            let event = self.published.get(&(room.to_owned(), membership.epoch.clone(), seq));
            let own = event.is_some_and(|event| event.exclude == Some(who));
            let unknown = event.is_none();
            assert!(own || unknown || membership.got.contains(&seq), "client {who}, {room}: {seq} is missing");
        }
    }
}
