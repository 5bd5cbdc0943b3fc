//! Urgent rooms: what is published there overtakes what waits for a reader who has stopped, whatever waits, and each room
//! keeps its order. (`logs.rs` has urgent rooms among others in everything that can happen to a reader.)
//!
//! `RINGHUB_SEEDS=10000` runs more seeds; `RINGHUB_SEED=17` runs one.

use std::collections::BTreeMap;

use fastrand::Rng;
use ringhub::ring::sim::Faults;
use serde_json::{Value, json};

use crate::client::Client;
use crate::model::for_each_seed;
use crate::node::{Node, config};

const SEEDS: u64 = 200;
const TELEMETRY: [&str; 3] = ["project:0", "project:1", "analytics:0"];
const ALERTS: [&str; 2] = ["quote:0", "quote:1"];
/// An event with small data, as a frame.
const SMALL_BYTES_MAX: usize = 256;

#[test]
fn alerts_arrive_before_telemetry_that_was_published_earlier() {
    for_each_seed(SEEDS, |seed| Run::new(seed).run());
}

struct Run {
    rng: Rng,
    node: Node,
    outbox_bytes_max: usize,
    reader: Client,
    /// Messages looked at.
    seen: usize,
    /// The last event published, by room.
    published: BTreeMap<&'static str, u64>,
    /// The last event told of, by room.
    cursors: BTreeMap<String, u64>,
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut rng = Rng::with_seed(seed);
        let outbox_bytes_max = rng.usize(8192..65_536);
        let mut config = config();
        config.limits.outbox_bytes_max = outbox_bytes_max;
        config.history.events_max = if rng.bool() { 1000 } else { 30 };
        config.kinds.iter_mut().filter(|kind| kind.name == "quote").for_each(|kind| kind.urgent = true);
        let faults = if rng.bool() { Faults::none() } else { Faults::rough() };
        let mut node = Node::new(seed, rng.u16(1..=4), faults, config);
        let shard = rng.usize(..node.shards());
        let mut reader = node.client(shard, "");
        let rooms: Vec<&str> = TELEMETRY.into_iter().chain(ALERTS).collect();
        let id = reader.send("subscribe", json!({"rooms": rooms}));
        node.settle();
        reader.poll();
        assert_eq!(reader.answer(id).expect("an answer")["type"], "subscribed");
        let seen = reader.messages.len();
        Run { rng, node, outbox_bytes_max, reader, seen, published: BTreeMap::new(), cursors: BTreeMap::new() }
    }

    fn run(mut self) {
        for _ in 0..self.rng.usize(1..6) {
            self.round();
        }
        for (room, last) in &self.published {
            assert_eq!(self.cursors.get(*room), Some(last), "{room} to its end");
        }
        self.reader.link.close();
        self.node.assert_empty();
    }

    /// The reader stops, much is published, and it goes on.
    fn round(&mut self) {
        self.reader.link.set_read_budget(0);
        // With the kernel from here on, where nothing can overtake it.
        self.publish(TELEMETRY[0], 10);
        self.node.settle();
        let mut alerts = self.outbox_bytes_max / 8 / SMALL_BYTES_MAX;
        let (mut published, mut ping) = (0, None);
        for _ in 0..self.rng.usize(1..80) {
            match self.rng.u8(..6) {
                0 if alerts > 0 => {
                    let room = ALERTS[self.rng.usize(..ALERTS.len())];
                    self.publish(room, 0);
                    alerts -= 1;
                    published += 1;
                }
                1 if ping.is_none() => ping = Some(self.reader.send("ping", json!({}))),
                2 => self.node.settle(),
                _ => {
                    let room = TELEMETRY[self.rng.usize(..TELEMETRY.len())];
                    let filling = self.rng.usize(..1500);
                    self.publish(room, filling);
                }
            }
        }
        self.node.settle();
        for _ in 0..self.rng.usize(..20) {
            let bytes = self.rng.usize(..3000);
            self.reader.link.set_read_budget(bytes);
            self.node.settle();
        }
        self.reader.link.set_read_budget(usize::MAX);
        self.node.settle();
        self.reader.poll();
        let told = self.reader.messages.split_off(self.seen);
        let is_alert = |message: &Value| message["room"].as_str().is_some_and(|room| ALERTS.contains(&room));
        let is_first = |message: &Value| ping.is_some() && message["ref"].as_u64() == ping;
        // The one that was with the kernel, the answer, all alerts, then the rest.
        let mut rest = told.iter();
        assert_eq!(rest.next().map(|first| &first["room"]), Some(&json!(TELEMETRY[0])));
        if ping.is_some() {
            assert!(rest.next().is_some_and(is_first), "an answer waits for nothing");
        }
        for number in 0..published {
            let alert = rest.next().unwrap_or_else(|| panic!("alert {number} of {published} is missing"));
            assert!(is_alert(alert), "before alert {number} of {published} comes {alert}");
        }
        assert!(!rest.any(is_alert), "an alert comes twice");
        told.iter().filter(|message| message["type"] != "pong").for_each(|message| self.followed(message));
    }

    /// Each room's events come in order, and what is left out is named.
    fn followed(&mut self, message: &Value) {
        let is_gap = message["type"] == "gap";
        let about = if is_gap { &message["data"] } else { message };
        let room = about["room"].as_str().expect("a room");
        let first = if is_gap { &about["from_seq"] } else { &about["seq"] };
        let last = if is_gap { &about["to_seq"] } else { first };
        assert!(!is_gap || !ALERTS.contains(&room), "{message}");
        let cursor = self.cursors.entry(room.to_owned()).or_default();
        assert_eq!(first.as_u64(), Some(*cursor + 1), "{message}");
        *cursor = last.as_u64().expect("a number");
    }

    fn publish(&mut self, room: &'static str, filling: usize) {
        publish(&self.node, room, filling);
        *self.published.entry(room).or_default() += 1;
    }
}

fn publish(node: &Node, room: &str, filling: usize) {
    node.publish(room, json!({"filling": "x".repeat(filling)}).to_string());
}

#[test]
fn alerts_beyond_their_reserve_are_read_from_the_log_ahead_of_the_telemetry_that_waits() {
    let mut config = config();
    config.kinds.iter_mut().filter(|kind| kind.name == "quote").for_each(|kind| kind.urgent = true);
    let mut node = Node::new(1, 2, Faults::none(), config);
    let (telemetry, alerts) = (node.room_at("project:", 0), node.room_at("quote:", 0));
    let mut reader = node.client(1, "");
    let rooms = [&telemetry, &alerts];
    rooms.iter().for_each(|room| {
        reader.send("subscribe", json!({"room": room}));
    });
    node.settle();
    reader.link.set_read_budget(0);
    for (room, events) in [(&telemetry, 600), (&alerts, 500)] {
        for _ in 0..events {
            publish(&node, room, 1000);
            node.turn();
        }
        node.settle();
    }
    assert_eq!(node.figures().slow_readers, 1, "the alerts are more than the reserve");
    reader.link.set_read_budget(usize::MAX);
    node.settle();
    reader.poll();
    assert_eq!(reader.seqs(&telemetry), (1..=600).collect::<Vec<u64>>());
    assert_eq!(reader.seqs(&alerts), (1..=500).collect::<Vec<u64>>());
    let last = reader.messages.iter().rposition(|message| message["room"] == *alerts).expect("an alert");
    let before = reader.messages[..last].iter().filter(|message| message["room"] == *telemetry).count();
    assert!(before < 200, "{before} of 600 come before the last alert");
}
