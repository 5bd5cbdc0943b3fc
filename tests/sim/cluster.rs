//! Several nodes that share their rooms through a broker, which loses links, answers and data: whatever reader at whatever
//! node is given a room's events in their order, each once, or is told what it misses.
//!
//! `RINGHUB_SEEDS=10000` runs more seeds; `RINGHUB_SEED=17` runs one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc;
use std::time::Duration;

use fastrand::Rng;
use ringhub::config::Config;
use ringhub::hub::brokered::EventKey;
use ringhub::hub::message::ReplyTo;
use ringhub::ring::sim::Faults;
use ringhub::shard::request::Request;
use serde_json::{Value, json};

use crate::client::Client;
use crate::engine::EngineClient;
use crate::exchange::{self, Exchange};
use crate::model::for_each_seed;
use crate::node::{Node, config};

const SEEDS: u64 = 300;
const STEPS: usize = 250;
const ACTORS_MAX: usize = 10;
const ROOMS: [&str; 3] = ["project:0", "project:1", "quote:0"];

#[test]
fn readers_of_all_nodes_are_given_the_same_events_or_told_what_they_miss() {
    for_each_seed(SEEDS, |seed| Run::new(seed).run());
}

/// A library says nothing of how far it is, so that its session has to know of which log that was.
#[test]
fn a_session_of_socketio_that_was_away_while_a_log_was_lost_is_told_so_and_gets_all_of_the_next_one() {
    let mut rng = Rng::with_seed(1);
    let mut exchange = Exchange::new();
    let link = exchange.add(Node::hasher_of(1), 2);
    let mut nodes = [Node::with_links(1, 2, Faults::none(), config(), None, Some((link, 1000)))];
    let mut client = EngineClient::connect(&nodes[0], 0, "");
    let mut rest = |nodes: &mut [Node; 1], exchange: &mut Exchange, client: &mut EngineClient| {
        // What it has sent may be about to be read.
        for _ in 0..3 {
            exchange::settle(exchange, nodes, &mut rng, || {});
            client.poll(&nodes[0]);
        }
    };
    rest(&mut nodes, &mut exchange, &mut client);
    client.enter(&nodes[0], "/", &Value::Null);
    rest(&mut nodes, &mut exchange, &mut client);
    client.emit(&nodes[0], "/", None, "subscribe", &json!({"room": "project:1"}));
    rest(&mut nodes, &mut exchange, &mut client);
    for _ in 0..2 {
        nodes[0].publish("project:1", "1");
        rest(&mut nodes, &mut exchange, &mut client);
    }
    assert_eq!(client.seqs("/", "project:1"), [1, 2]);
    let granted = client.packets.iter().find(|packet| packet.kind == '0').expect("was let in").payload.clone();
    client.link().expect("a WebSocket").reset();
    rest(&mut nodes, &mut exchange, &mut client);

    exchange.lose_all();
    for _ in 0..3 {
        nodes[0].publish("project:1", "2");
        rest(&mut nodes, &mut exchange, &mut client);
    }
    let mut again = EngineClient::connect(&nodes[0], 1, "");
    rest(&mut nodes, &mut exchange, &mut again);
    again.enter(&nodes[0], "/", &json!({"pid": granted["pid"]}));
    rest(&mut nodes, &mut exchange, &mut again);
    assert_eq!(again.seqs("/", "project:1"), [1, 2, 3]);
    let is_of_room = |data: &&Value| data["room"] == "project:1";
    let gaps = again.packets.iter().filter(|packet| packet.payload[0] == "gap");
    let gaps: Vec<_> = gaps.map(|packet| &packet.payload[1]["data"]).filter(is_of_room).collect();
    assert_eq!((gaps.len(), &gaps[0]["reason"]), (1, &json!("epoch")));
}

/// A place in a room's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cursor {
    epoch: u64,
    seq: u64,
}

struct Actor {
    node: usize,
    client: Client,
    /// Messages looked at.
    seen: usize,
    subscribing: BTreeMap<u64, String>,
    unsubscribing: BTreeMap<u64, String>,
    publishing: BTreeMap<u64, (String, Option<String>)>,
    /// Commands about several rooms, and the places that were told with them.
    joining: BTreeMap<u64, BTreeMap<String, Option<Cursor>>>,
    cursors: BTreeMap<String, Cursor>,
    /// Events that were given, so that none is given twice.
    given: BTreeSet<(String, u64, u64)>,
    /// What rooms without a log told before the answer to the command that they were asked for by: they can't wait for it.
    early: Vec<Value>,
    /// Whose session it takes up when it is let in.
    succeeds: Option<Departed>,
    /// Whose session it has asked for, until it is answered: only then its own one is not the one to come back to.
    resuming: Option<Departed>,
}

/// Somebody whose connection broke.
#[derive(Clone)]
struct Departed {
    node: usize,
    session_id: Value,
    token: Value,
    cursors: BTreeMap<String, Cursor>,
}

struct Run {
    rng: Rng,
    nodes: Vec<Node>,
    exchange: Exchange,
    actors: Vec<Actor>,
    departed: Vec<Departed>,
    published: usize,
    numbered: usize,
    gaps: usize,
    renewed: usize,
    keeps_logs: bool,
}

/// What was accepted for publishing is answered for before the node ends.
#[test]
fn a_draining_node_waits_for_what_the_broker_has_not_answered() {
    let mut rng = Rng::with_seed(1);
    let mut exchange = Exchange::new();
    let link = exchange.add(Node::hasher_of(1), 2);
    let mut nodes = [Node::with_links(1, 2, Faults::none(), config(), None, Some((link, 1000)))];
    let room = nodes[0].room_at("project:", 1);
    let (tell, told) = mpsc::channel();
    let reply = ReplyTo::Handle(Box::new(move |outcome| tell.send(outcome).expect("somebody waits for it")));
    nodes[0].publish_for(&room, "1", reply);
    for shard in 0..2 {
        nodes[0].request(shard, Request::Drain { over_ms: 0, spread_ms: 0 });
    }
    for _ in 0..20 {
        nodes[0].turn();
        nodes[0].world.advance(Duration::from_millis(100));
    }
    assert!(nodes[0].is_running(1), "the broker has not answered yet");
    exchange::settle(&mut exchange, &mut nodes, &mut rng, || {});
    for _ in 0..20 {
        nodes[0].turn();
        nodes[0].world.advance(Duration::from_millis(100));
    }
    assert!(!nodes[0].is_running(0) && !nodes[0].is_running(1));
    assert_eq!(told.try_recv().expect("an answer").expect("it was published").seq, 1);
}

fn epoch_of(text: &Value) -> u64 {
    u64::from_str_radix(text.as_str().expect("an epoch"), 16).expect("hexadecimal")
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut rng = Rng::with_seed(seed);
        let mut exchange = Exchange::new();
        let nodes = (0..rng.u64(2..=3)).map(|number| {
            let shards = rng.u16(1..=3);
            let faults = if seed.is_multiple_of(4) { Faults::none() } else { Faults::rough() };
            let of_node = seed ^ (number << 40);
            let link = exchange.add(Node::hasher_of(of_node), shards);
            Node::with_links(of_node, shards, faults, small(seed), None, Some((link, 1000 + number)))
        });
        let nodes = nodes.collect();
        let (actors, departed, published, numbered, gaps, renewed) = (Vec::new(), Vec::new(), 0, 0, 0, 0);
        let keeps_logs = small(seed).history.events_max > 0;
        Run { rng, nodes, exchange, actors, departed, published, numbered, gaps, renewed, keeps_logs }
    }

    fn run(mut self) {
        for _ in 0..STEPS {
            self.act();
            for _ in 0..self.rng.usize(..4) {
                self.turn();
            }
            self.look();
        }
        (0..self.nodes.len()).for_each(|node| self.exchange.set_up(node, true));
        self.settle();
        // Who was let in by now takes up the session that it came for.
        self.look();
        self.settle();
        self.look();
        for actor in &self.actors {
            assert!(actor.subscribing.is_empty() && actor.publishing.is_empty(), "all is answered");
            assert!(actor.joining.is_empty() && actor.succeeds.is_none(), "all is answered");
            for (room, cursor) in &actor.cursors {
                let log = &self.exchange.rooms[room];
                assert_eq!((cursor.epoch, cursor.seq), (log.epoch, log.seq), "of {room} all is told");
            }
        }
        // Who has gone leaves nothing behind at the broker's side either.
        for actor in &mut self.actors {
            actor.client.link.close();
        }
        self.settle();
        for node in &mut self.nodes {
            assert_eq!(node.figures().connections, 0);
        }
    }

    fn turn(&mut self) {
        exchange::turn(&mut self.exchange, &mut self.nodes, &mut self.rng);
        self.actors.iter_mut().for_each(|actor| actor.client.poll());
    }

    fn settle(&mut self) {
        let Run { exchange, nodes, rng, actors, .. } = self;
        exchange::settle(exchange, nodes, rng, || actors.iter_mut().for_each(|actor| actor.client.poll()));
    }

    fn act(&mut self) {
        let node = self.rng.usize(..self.nodes.len());
        match self.rng.u8(..100) {
            0..=6 if self.actors.len() < ACTORS_MAX => self.enter(node, None),
            7..=9 if self.actors.len() < ACTORS_MAX => self.come_back(),
            10..=24 => self.subscribe(),
            25..=29 => self.subscribe_to_several(),
            30..=34 => self.unsubscribe(),
            35..=79 => self.publish(),
            80..=83 => self.leave(),
            84..=87 => {
                let is_up = self.rng.u8(..3) > 0;
                self.exchange.set_up(node, is_up);
            }
            88 if self.rng.u8(..3) == 0 => self.exchange.lose_all(),
            91..=92 => {
                let (room, count) = (self.room(), self.rng.u64(1..4));
                self.exchange.lose_end(room, count);
            }
            89..=90 => self.nodes[node].world.advance(Duration::from_millis(self.rng.u64(1..300))),
            _ => {}
        }
    }

    fn come_back(&mut self) {
        if !self.departed.is_empty() {
            let place = self.rng.usize(..self.departed.len());
            let departed = self.departed.swap_remove(place);
            self.enter(departed.node, Some(departed));
        }
    }

    fn enter(&mut self, node: usize, succeeds: Option<Departed>) {
        let shard = self.rng.usize(..self.nodes[node].shards());
        let client = Client::connect(&self.nodes[node], shard, "/ws", "");
        self.actors.push(Actor {
            node,
            client,
            seen: 0,
            subscribing: BTreeMap::new(),
            unsubscribing: BTreeMap::new(),
            publishing: BTreeMap::new(),
            joining: BTreeMap::new(),
            cursors: BTreeMap::new(),
            given: BTreeSet::new(),
            early: Vec::new(),
            succeeds,
            resuming: None,
        });
    }

    /// Someone who is let in, and whose rooms are known.
    fn actor(&mut self) -> Option<usize> {
        let place = self.rng.usize(..self.actors.len().max(1));
        let is_settled = |actor: &Actor| actor.is_in() && actor.succeeds.is_none() && actor.joining.is_empty();
        self.actors.get(place).is_some_and(is_settled).then_some(place)
    }

    /// Several rooms at once: their events come behind the one answer.
    fn subscribe_to_several(&mut self) {
        let Some(place) = self.actor() else { return };
        let actor = &mut self.actors[place];
        let is_free =
            |room: &&str| !actor.cursors.contains_key(*room) && !actor.subscribing.values().any(|one| one == room);
        let rooms: Vec<&str> = ROOMS.into_iter().filter(is_free).collect();
        let mut data = json!({"rooms": rooms});
        if self.rng.bool() {
            data["since"] = json!({"last": self.rng.u8(..5)});
        }
        if !rooms.is_empty() {
            let id = actor.client.send("subscribe", data);
            actor.joining.insert(id, rooms.into_iter().map(|room| (room.to_owned(), None)).collect());
        }
    }

    fn room(&mut self) -> &'static str {
        ROOMS[self.rng.usize(..ROOMS.len())]
    }

    fn subscribe(&mut self) {
        let Some(place) = self.actor() else { return };
        let room = self.room();
        let actor = &mut self.actors[place];
        if actor.cursors.contains_key(room) || actor.subscribing.values().any(|one| one == room) {
            return;
        }
        // From where another one is: the whole log, its end, or somewhere in between.
        // What was given before the end was lost is beyond it.
        let elsewhere = self.exchange.rooms.get(room).map(|log| (log.epoch, self.rng.u64(..=log.seq_before())));
        let data = match (self.rng.u8(..3), elsewhere) {
            (0, Some((epoch, seq))) => json!({"room": room, "since": {"seq": seq, "epoch": format!("{epoch:016x}")}}),
            (1, _) => json!({"room": room, "since": {"last": self.rng.u8(..5)}}),
            _ => json!({"room": room}),
        };
        let id = actor.client.send("subscribe", data);
        actor.subscribing.insert(id, room.to_owned());
    }

    fn unsubscribe(&mut self) {
        let Some(place) = self.actor() else { return };
        let room = self.room();
        let actor = &mut self.actors[place];
        if actor.cursors.contains_key(room) && !actor.unsubscribing.values().any(|one| one == room) {
            let id = actor.client.send("unsubscribe", json!({"room": room}));
            actor.unsubscribing.insert(id, room.to_owned());
        }
    }

    fn publish(&mut self) {
        let Some(place) = self.actor() else { return };
        let room = self.room();
        for _ in 0..self.rng.usize(1..4) {
            self.published += 1;
            let key = (self.rng.u8(..4) == 0).then(|| format!("k{}", self.rng.u8(..6)));
            let mut data = json!({"room": room, "type": "x", "data": {"n": self.published}});
            if let Some(key) = &key {
                data["key"] = json!(key);
            }
            let actor = &mut self.actors[place];
            let id = actor.client.send("publish", data);
            actor.publishing.insert(id, (room.to_owned(), key));
        }
    }

    fn leave(&mut self) {
        if self.actors.is_empty() {
            return;
        }
        let place = self.rng.usize(..self.actors.len());
        let actor = self.actors.swap_remove(place);
        actor.client.link.close();
        let is_in = actor.is_in();
        match actor.succeeds.or(actor.resuming) {
            Some(departed) => self.departed.push(departed),
            None if is_in => {
                let Actor { node, client, cursors, .. } = actor;
                let told = &client.messages[0]["data"];
                let told = client
                    .messages
                    .iter()
                    .rev()
                    .find(|told| told["type"] == "resumed")
                    .map_or(told, |told| &told["data"]);
                let (session_id, token) = (told["session_id"].clone(), told["resume"]["token"].clone());
                self.departed.push(Departed { node, session_id, token, cursors });
            }
            None => {}
        }
    }

    fn look(&mut self) {
        for place in 0..self.actors.len() {
            let actor = &mut self.actors[place];
            if actor.is_in()
                && let Some(departed) = actor.succeeds.take()
            {
                actor.resume(departed);
            }
            let messages: Vec<Value> = actor.client.messages.iter().skip(actor.seen).cloned().collect();
            actor.seen = actor.client.messages.len();
            for message in messages {
                self.told(place, &message);
            }
        }
        let refused = |actor: &Actor| actor.client.status.is_some_and(|status| status != 101);
        for actor in self.actors.extract_if(.., |actor| refused(actor)) {
            assert_eq!(actor.client.status, Some(503), "{}", String::from_utf8_lossy(&actor.client.body));
        }
    }

    fn told(&mut self, place: usize, message: &Value) {
        let actor = &mut self.actors[place];
        assert_eq!(actor.client.close, None);
        let data = &message["data"];
        let answered = message["ref"].as_u64();
        let room = message["room"].as_str().or(data["room"].as_str()).filter(|_| answered.is_none());
        if !self.keeps_logs && !actor.joining.is_empty() && room.is_some_and(|room| !actor.cursors.contains_key(room)) {
            return actor.early.push(message.clone());
        }
        match message["type"].as_str().expect("a type") {
            "subscribed" | "resumed" if !data["results"].is_null() => {
                let asked = actor.joining.remove(&answered.expect("an answer")).expect("was asked");
                actor.resuming = None;
                for result in data["results"].as_array().expect("a list") {
                    let room = result["room"].as_str().expect("a room").to_owned();
                    if !ROOMS.contains(&&*room) {
                        continue;
                    }
                    if !result["error"].is_null() {
                        assert_eq!(result["error"]["code"], "unavailable", "{message}");
                        continue;
                    }
                    let (epoch, seq) = (epoch_of(&result["epoch"]), result["seq"].as_u64().expect("a number"));
                    let cursor = Cursor { epoch, seq: seq - result["replayed"].as_u64().expect("a count") };
                    if let Some(Some(told)) = asked.get(&room)
                        && result["recovered"] == true
                    {
                        assert_eq!(cursor, *told, "it goes on where it was: {message}");
                    }
                    actor.given.retain(|(of, _, _)| *of != room);
                    actor.cursors.insert(room, cursor);
                }
                for message in std::mem::take(&mut actor.early) {
                    self.told(place, &message);
                }
            }
            "subscribed" => {
                let room = actor.subscribing.remove(&answered.expect("an answer")).expect("was asked");
                let (epoch, seq) = (epoch_of(&data["epoch"]), data["seq"].as_u64().expect("a number"));
                let replayed = data["replayed"].as_u64().expect("a count");
                actor.given.retain(|(of, _, _)| *of != room);
                actor.cursors.insert(room, Cursor { epoch, seq: seq - replayed });
            }
            "published" => {
                let (room, key) = actor.publishing.remove(&answered.expect("an answer")).expect("was asked");
                let place = (room, epoch_of(&data["epoch"]), data["seq"].as_u64().expect("a number"));
                let id = data["id"].as_str().expect("an id").as_bytes();
                let is_duplicate = data["duplicate"].as_bool().expect("told");
                // What was published under the same key may have been, and gone, before the log got its epoch.
                let mut all = self.exchange.truth.iter();
                let before = all.find(|((of, _, seq), event)| (of, seq) == (&place.0, &place.2) && event.id == *id);
                let event = self.exchange.truth.get(&place).or(before.filter(|_| is_duplicate).map(|(_, event)| event));
                let event = event.unwrap_or_else(|| panic!("nothing has that number: {message}"));
                assert_eq!(event.id, *id);
                assert_eq!(event.key, key.map(|key| EventKey::Given(key.into())));
                self.numbered += 1;
            }
            "error" => {
                let id = answered.expect("an answer");
                assert_eq!(data["code"], "unavailable", "{message}");
                let was_one = actor.publishing.remove(&id).is_some() | actor.subscribing.remove(&id).is_some();
                assert!(was_one | actor.joining.remove(&id).is_some());
                // It was all that it asked for by then.
                actor.resuming = None;
            }
            "gap" => {
                let room = data["room"].as_str().expect("a room");
                if !ROOMS.contains(&room) {
                    // One of those that everybody is in, without having been told where they are.
                    assert_eq!(data["reason"], "epoch");
                    return;
                }
                let Some(cursor) = actor.cursors.get_mut(room) else { panic!("not subscribed: {message}") };
                let to_seq = data["to_seq"].as_u64().expect("a number");
                self.gaps += 1;
                if data["reason"] == "epoch" {
                    assert_eq!(data["from_seq"], 1);
                    cursor.epoch = epoch_of(&data["epoch"]);
                    self.renewed += 1;
                } else {
                    assert_eq!(data["from_seq"], cursor.seq + 1, "{message}");
                    assert!(data["epoch"].is_null());
                }
                cursor.seq = to_seq;
            }
            "x" => {
                let room = message["room"].as_str().expect("a room").to_owned();
                let seq = message["seq"].as_u64().expect("a number");
                let Some(cursor) = actor.cursors.get_mut(&room) else { panic!("not subscribed: {message}") };
                assert_eq!(seq, cursor.seq + 1, "{message} at node {}", actor.node);
                cursor.seq = seq;
                let event = &self.exchange.truth[&(room.clone(), cursor.epoch, seq)];
                assert_eq!(std::str::from_utf8(&event.id).expect("text"), message["id"]);
                assert_eq!(serde_json::from_slice::<Value>(&event.data).expect("JSON"), *data);
                assert!(actor.given.insert((room, cursor.epoch, seq)), "given twice: {message}");
            }
            "unsubscribed" => {
                let room = actor.unsubscribing.remove(&answered.expect("an answer")).expect("was asked");
                actor.cursors.remove(&room);
            }
            "connection_established" => {}
            other => panic!("{other}: {message}"),
        }
    }
}

impl Actor {
    fn is_in(&self) -> bool {
        self.client.status == Some(101) && !self.client.messages.is_empty()
    }

    fn resume(&mut self, departed: Departed) {
        self.resuming = Some(departed.clone());
        let Departed { session_id, token, cursors, .. } = departed;
        let told = |cursor: &Cursor| json!({"seq": cursor.seq, "epoch": format!("{:016x}", cursor.epoch)});
        let told: BTreeMap<&String, Value> = cursors.iter().map(|(room, cursor)| (room, told(cursor))).collect();
        let id = self.client.send("resume", json!({"session_id": session_id, "token": token, "cursors": told}));
        self.joining.insert(id, cursors.into_iter().map(|(room, cursor)| (room, Some(cursor))).collect());
    }
}

fn small(seed: u64) -> Config {
    let mut rng = Rng::with_seed(seed.rotate_left(9));
    let mut config = config();
    config.history.events_max = rng.u32(0..12);
    config.history.age_s = 3600;
    config
}
