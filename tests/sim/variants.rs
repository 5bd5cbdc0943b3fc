//! The forms of the native protocol: whoever reads slowly, comes late or comes back sees the same events under the same
//! numbers in each of them. (`logs.rs` and `model.rs` draw a form for each of their clients as well.)

use std::collections::BTreeMap;
use std::sync::Mutex;

use bytes::Bytes;
use fastrand::Rng;
use ringhub::config::Policy;
use ringhub::hub::message::{Publish, ReplyTo};
use ringhub::ring::sim::Faults;
use ringhub::shard::request::Request;
use serde_json::{Value, json};

use crate::client::{Client, SUBPROTOCOLS, frame};
use crate::model::for_each_seed;
use crate::node::{Node, config};

const ROOM: &str = "project:1";

/// A client in each form, member of the room.
fn members(node: &mut Node) -> Vec<Client> {
    let mut clients: Vec<Client> = SUBPROTOCOLS
        .iter()
        .enumerate()
        .map(|(place, name)| Client::connect_as(node, place % node.shards(), "/ws", "", name))
        .collect();
    node.settle();
    for client in &mut clients {
        client.send("subscribe", json!({"room": ROOM}));
    }
    settle(node, &mut clients);
    clients
}

fn settle(node: &mut Node, clients: &mut [Client]) {
    node.settle();
    clients.iter_mut().for_each(Client::poll);
}

/// The events of the room as they came.
fn events(client: &Client) -> Vec<Value> {
    client.messages.iter().filter(|message| message["room"] == ROOM).cloned().collect()
}

#[test]
fn events_are_the_same_in_every_form() {
    let mut node = Node::new(1, 2, Faults::none(), config());
    let mut clients = members(&mut node);
    let data = [
        "{\"n\":18446744073709551615,\"x\":-9007199254740993,\"f\":0.1,\"e\":1e300,\"z\":[]}",
        "\"text with \\\"quotes\\\", \\u00e9\\ud83d\\ude00 and \\n\"",
        "null",
        "[1,[2,[3,{\"a\":{}}]],true,false]",
        &format!("{{\"many\":[{}0]}}", "1.5,".repeat(70_000)),
    ];
    for data in data {
        node.publish(ROOM, data);
    }
    settle(&mut node, &mut clients);
    let native = events(&clients[0]);
    assert_eq!(native.len(), data.len());
    for (event, data) in native.iter().zip(data) {
        assert_eq!(event["data"], serde_json::from_str::<Value>(data).expect("JSON"));
    }
    for client in &clients[1..] {
        assert_eq!(events(client), native);
    }
    let batches: Vec<usize> = clients.iter().map(|client| client.batches.iter().sum()).collect();
    assert_eq!((batches[0], batches[2]), (0, 0));
    assert!(batches[1] >= 2 && batches[1] == batches[3], "{batches:?}");
}

#[test]
fn a_slow_reader_of_any_form_gets_every_event_once_and_in_order() {
    let mut config = config();
    config.limits.outbox_bytes_max = 4096;
    config.history.age_s = 3600;
    let mut node = Node::new(2, 2, Faults::none(), config);
    let mut clients = members(&mut node);
    for client in &clients {
        client.link.set_read_budget(0);
    }
    for number in 0..200 {
        node.publish(ROOM, json!({"number": number, "pad": "x".repeat(200)}).to_string());
        node.turn();
    }
    node.settle();
    for client in &clients {
        client.link.set_read_budget(usize::MAX);
    }
    for _ in 0..200 {
        settle(&mut node, &mut clients);
    }
    let native = events(&clients[0]);
    assert_eq!(clients[0].seqs(ROOM), (1..=200).collect::<Vec<u64>>());
    for client in &clients {
        assert_eq!(events(client), native);
    }
    assert!(node.figures().slow_readers >= 4, "{}", node.figures().slow_readers);
}

#[test]
fn a_session_goes_on_in_another_form_without_gap_or_repeat() {
    let mut node = Node::new(3, 2, Faults::none(), config());
    let mut clients = members(&mut node);
    (0..5).for_each(|_| node.publish(ROOM, "{}"));
    settle(&mut node, &mut clients);
    let greetings: Vec<Value> = clients.iter().map(|client| client.messages[0]["data"].clone()).collect();
    for client in &clients {
        client.link.close();
    }
    node.settle();
    (0..5).for_each(|_| node.publish(ROOM, "{}"));
    node.settle();
    for (place, greeting) in greetings.iter().enumerate() {
        let form = SUBPROTOCOLS[(place + 1) % SUBPROTOCOLS.len()];
        let mut next = Client::connect_as(&node, place % 2, "/ws", "", form);
        node.settle();
        let resume = next.send(
            "resume",
            json!({"session_id": greeting["session_id"], "token": greeting["resume"]["token"],
                   "cursors": {ROOM: {"seq": 5}}}),
        );
        node.settle();
        next.poll();
        assert_eq!(next.answer(resume).map(|answer| answer["type"].clone()), Some(json!("resumed")), "{form}");
        assert_eq!(next.seqs(ROOM), [6, 7, 8, 9, 10], "{form}");
    }
}

#[test]
fn every_command_is_understood_and_answered_in_the_form_of_its_client() {
    let mut node = Node::new(4, 1, Faults::none(), config());
    for name in SUBPROTOCOLS {
        let mut client = Client::connect_as(&node, 0, "/ws", "", name);
        node.settle();
        let ping = client.send("ping", json!({"big": u64::MAX, "small": i64::MIN, "half": 0.5, "text": "é\u{1}"}));
        let publish = client.send("publish", json!({"room": "project:2", "type": "x", "data": {"a": [1, null]}}));
        let history = client.send("history", json!({"room": "project:2", "limit": 1, "reverse": true}));
        let presence = client.send("presence", json!({"room": "project:2"}));
        let unknown = client.send("nonsense", json!({}));
        node.settle();
        client.poll();
        assert_eq!(client.messages[0]["type"], "connection_established", "{name}");
        let answer = |id| client.answer(id).unwrap_or_else(|| panic!("{name} {id}"));
        let data = json!({"big": u64::MAX, "small": i64::MIN, "half": 0.5, "text": "é\u{1}"});
        assert_eq!(answer(ping)["data"], data, "{name}");
        assert_eq!(answer(publish)["type"], "published", "{name}");
        assert_eq!(answer(history)["data"]["events"][0]["data"], json!({"a": [1, null]}), "{name}");
        assert_eq!(answer(presence)["data"]["count"], 0, "{name}");
        assert_eq!(answer(unknown)["data"]["code"], "unknown_type", "{name}");
        assert!(client.frames.is_empty() && client.batches.is_empty(), "{name}");
    }
}

#[test]
fn what_is_no_message_of_messagepack_is_refused_and_ten_of_it_close() {
    let mut config = config();
    config.limits.message_bytes_max = 4096;
    let mut node = Node::new(5, 1, Faults::none(), config);
    let mut client = Client::connect_as(&node, 0, "/ws", "", "ringhub.v1.msgpack");
    node.settle();
    // As JSON, each `false` takes six bytes.
    let mut large = vec![0xdc, 0x0f, 0x00];
    large.extend([0xc2; 0x0f00]);
    for message in [&[0xc4, 1, 0][..], &[0xd4, 5, 0], &[0x81, 1, 2], &[0xc1], &[0x91; 100], &large] {
        client.link.write(&frame(2, message));
    }
    // What is said in JSON is read as JSON.
    client.link.write(&frame(1, b"{\"type\":\"ping\",\"id\":\"text\",\"data\":[]}"));
    node.settle();
    client.poll();
    let codes: Vec<&Value> = client
        .messages
        .iter()
        .filter(|message| message["type"] == "error")
        .map(|error| &error["data"]["code"])
        .collect();
    assert_eq!(codes, ["bad_json", "bad_json", "bad_json", "bad_json", "bad_json", "too_large"]);
    assert!(client.messages.iter().any(|message| message["ref"] == "text"));
    assert_eq!(client.close, None);
    for _ in 0..5 {
        client.link.write(&frame(2, &[0xc1]));
    }
    node.settle();
    client.poll();
    assert_eq!(client.close.map(|(code, _)| code), Some(1008));
    let mut native = node.client(0, "");
    native.link.write(&frame(2, &[0x80]));
    node.settle();
    native.poll();
    assert_eq!(native.close.map(|(code, _)| code), Some(1003), "who has not asked for it speaks JSON");
}

#[test]
fn connections_are_counted_by_their_form() {
    let mut node = Node::new(6, 2, Faults::none(), config());
    let clients = members(&mut node);
    let figures = node.figures();
    assert_eq!((figures.connections, figures.batch, figures.msgpack), (4, 2, 2));
    clients.iter().for_each(|client| client.link.close());
    node.settle();
    let figures = node.figures();
    assert_eq!((figures.connections, figures.batch, figures.msgpack), (0, 0, 0));
}

// ---- changes ----

/// Which are the types of the events too.
const SYMBOLS: [&str; 4] = ["x", "a", "b", "c"];

/// A room of states, members that want changes and read now and then, and what was published.
struct Changes {
    rng: Rng,
    node: Node,
    room: &'static str,
    clients: Vec<Client>,
    truth: BTreeMap<u64, Value>,
    states: BTreeMap<&'static str, Value>,
}

impl Changes {
    fn new(seed: u64) -> Changes {
        let mut rng = Rng::with_seed(seed);
        let mut config = config();
        config.history.age_s = 3600;
        config.limits.outbox_bytes_max = rng.usize(3000..30_000);
        config.shards.turn_deliveries_max = rng.u32(1..8);
        let room = if rng.bool() { "quote:1" } else { "project:1" };
        for kind in &mut config.kinds {
            if kind.name == "quote" {
                kind.policy = Policy::Latest;
            }
        }
        let faults = if rng.bool() { Faults::none() } else { Faults::rough() };
        let node = Node::new(seed, rng.u16(1..=3), faults, config);
        Changes { rng, node, room, clients: Vec::new(), truth: BTreeMap::new(), states: BTreeMap::new() }
    }

    fn connect(&mut self) {
        let form = self.rng.choice(SUBPROTOCOLS).expect("some");
        let shard = self.rng.usize(..self.node.shards());
        let mut client = Client::connect_as(&self.node, shard, "/ws", "", form);
        let delta = self.rng.u8(..4) > 0;
        client.send("subscribe", json!({"room": self.room, "delta": delta}));
        self.clients.push(client);
    }

    /// Changes one of the states and publishes it.
    fn publish(&mut self) {
        let symbol = self.rng.choice(SYMBOLS).expect("some");
        let state = self.states.entry(symbol).or_insert_with(|| json!({"symbol": symbol, "text": "x".repeat(200)}));
        let members = state.as_object_mut().expect("an object");
        let number = json!(self.rng.u32(..));
        match self.rng.u8(..8) {
            0 => drop(members.remove("best")),
            1 => drop(members.insert("best".to_owned(), Value::Null)),
            2 => drop(members.insert("levels".to_owned(), json!([number, null]))),
            3 => drop(members.insert("text".to_owned(), json!("y".repeat(self.rng.usize(..400))))),
            _ => drop(members.insert("best".to_owned(), json!({"bid": number, "ask": 2.5}))),
        }
        let data = state.to_string();
        let room = self.node.hasher.room(self.room);
        let home = usize::from(room.home(self.node.shards() as u16).0);
        let key = self.rng.bool().then(|| format!("{}", self.rng.u64(..)).into());
        let publish = Publish {
            room,
            kind: symbol.into(),
            data: Bytes::from(data),
            key,
            exclude: None,
            received_us: 0,
            reply: ReplyTo::Nobody,
        };
        self.node.request(home, Request::Publish(Box::new(publish)));
        let seq = self.truth.len() as u64 + 1;
        self.truth.insert(seq, self.states[symbol].clone());
    }

    fn act(&mut self) {
        let place = self.rng.usize(..self.clients.len());
        let (room, delta) = (self.room, self.rng.bool());
        let client = &mut self.clients[place];
        match self.rng.u8(..10) {
            0..5 => client.link.set_read_budget(if self.rng.bool() { usize::MAX } else { self.rng.usize(..2000) }),
            5 => drop(client.send("unsubscribe", json!({"room": room}))),
            6 => drop(client.send("subscribe", json!({"room": room, "delta": delta, "since": {"last": 3}}))),
            7 => drop(client.send("subscribe", json!({"room": room, "delta": true}))),
            8 => drop(client.send("subscribe", json!({"room": room, "types": ["x"]}))),
            _ => {}
        }
    }

    /// How many changes came, and how often somebody fell behind.
    fn run(mut self) -> (usize, u64) {
        for _ in 0..3 {
            self.connect();
        }
        self.node.settle();
        for _ in 0..200 {
            match self.rng.u8(..12) {
                0 if self.clients.len() < 8 => self.connect(),
                0..8 => self.publish(),
                8..10 => self.act(),
                _ => {}
            }
            for _ in 0..self.rng.usize(..3) {
                self.node.turn();
            }
            self.look();
        }
        self.clients.iter().for_each(|client| client.link.set_read_budget(usize::MAX));
        for _ in 0..50 {
            self.node.settle();
            self.look();
        }
        let mut last = self.clients.iter().filter_map(|client| client.seqs(self.room).last().copied());
        assert!(last.any(|last| last == self.truth.len() as u64));
        (self.clients.iter().map(|client| client.changes).sum(), self.node.figures().slow_readers)
    }

    fn look(&mut self) {
        for client in &mut self.clients {
            let before = client.messages.len();
            client.poll();
            for event in client.messages.iter().skip(before).filter(|message| message["room"] == self.room) {
                let seq = event["seq"].as_u64().expect("a number");
                assert_eq!(event["data"], self.truth[&seq], "event {seq}");
            }
        }
    }
}

#[test]
fn a_member_that_wants_changes_can_always_make_the_events_of_them() {
    let seen = Mutex::new((0, 0));
    for_each_seed(150, |seed| {
        let (changes, slow) = Changes::new(seed).run();
        let mut seen = seen.lock().expect("no seed has failed");
        *seen = (seen.0 + changes, seen.1 + slow);
    });
    let (changes, slow) = seen.into_inner().expect("no seed has failed");
    let is_one = std::env::var_os("RINGHUB_SEED").is_some();
    assert!(is_one || changes > 1000 && slow > 100, "{changes} changes came, {slow} times somebody fell behind");
}

/// What follows a join is held back until the answer for all of the rooms.
#[test]
fn who_joins_several_rooms_at_once_gets_their_events_as_changes() {
    let mut node = Node::new(7, 2, Faults::none(), config());
    let mut client = node.client(0, "");
    let rooms = [node.room_at("quote:", 0), node.room_at("quote:", 1)];
    for since in [json!(null), json!({"last": 2})] {
        let before = (client.messages.len(), client.changes);
        client.send("subscribe", json!({"rooms": rooms, "delta": true, "since": since}));
        node.settle();
        for number in 0..5 {
            for room in &rooms {
                node.publish(room, json!({"number": number, "text": "x".repeat(300)}).to_string());
                node.settle();
            }
        }
        client.poll();
        let events = client.messages.iter().skip(before.0).filter(|message| message["seq"].is_u64());
        let changes = client.changes - before.1;
        // The first event of each room is whole; what is replayed is as well.
        let whole = if since.is_null() { 2 } else { 2 + 2 * 2 };
        assert_eq!((events.count(), changes), (10 + whole - 2, 8), "since {since}");
        client.send("unsubscribe", json!({"rooms": rooms}));
        node.settle();
        client.poll();
    }
}

#[test]
fn only_who_asks_for_changes_gets_them_and_each_begins_with_a_whole_event() {
    let mut node = Node::new(7, 2, Faults::none(), config());
    let mut clients = members(&mut node);
    let first = clients.len();
    for (place, form) in SUBPROTOCOLS.iter().enumerate() {
        clients.push(Client::connect_as(&node, place % 2, "/ws", "", form));
    }
    node.settle();
    for client in clients.iter_mut().skip(first) {
        client.send("subscribe", json!({"room": ROOM, "delta": true}));
    }
    settle(&mut node, &mut clients);
    let state = |number| json!({"number": number, "text": "x".repeat(300)});
    for number in 0..5 {
        node.publish(ROOM, state(number).to_string());
        settle(&mut node, &mut clients);
    }
    // Somebody who comes later has nothing yet.
    let mut late = node.client(0, "");
    late.send("subscribe", json!({"room": ROOM, "delta": true, "since": {"last": 2}}));
    node.settle();
    for number in 5..8 {
        node.publish(ROOM, state(number).to_string());
        settle(&mut node, &mut clients);
    }
    late.poll();
    assert_eq!((late.seqs(ROOM), late.changes), (vec![4, 5, 6, 7, 8], 2));
    for (place, client) in clients.iter().enumerate() {
        let data: Vec<&Value> =
            client.messages.iter().filter(|one| one["room"] == ROOM).map(|one| &one["data"]).collect();
        assert_eq!(data, (0..8).map(state).collect::<Vec<_>>().iter().collect::<Vec<_>>());
        assert_eq!(client.changes, if place < first { 0 } else { 7 });
    }
    // A session that goes on still wants them.
    let greeting = clients[first].messages[0]["data"].clone();
    clients[first].link.close();
    node.settle();
    let mut next = node.client(1, "");
    let (session, token) = (&greeting["session_id"], &greeting["resume"]["token"]);
    next.send("resume", json!({"session_id": session, "token": token, "cursors": {ROOM: {"seq": 6}}}));
    node.settle();
    for number in 8..11 {
        node.publish(ROOM, state(number).to_string());
        node.settle();
    }
    next.poll();
    assert_eq!((next.seqs(ROOM), next.changes), (vec![7, 8, 9, 10, 11], 2));
}
