//! What the flight recorder explains against what clients saw: they subscribe with and without types, from somewhere in
//! the log, stop reading for a while, leave, and come back under the same name.
//!
//! `RINGHUB_SEEDS=10000` runs more seeds; `RINGHUB_SEED=17` runs one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fastrand::Rng;
use ringhub::hub::batch::Address;
use ringhub::hub::explain::{EventSought, Explanation, Outcome};
use ringhub::hub::reply::pending;
use ringhub::hub::trace::{ConnectionTrace, TraceAsked};
use ringhub::ring::sim::Faults;
use ringhub::shard::request::{ExplainAsked, Request};
use serde_json::json;

use crate::client::{Client, SUBPROTOCOLS};
use crate::model::seeds;
use crate::node::{Node, config};

const SEEDS: u64 = 60;
const ROOMS: [&str; 3] = ["project:0", "project:1", "quote:0"];
const STEPS: usize = 120;
const NAMES: usize = 5;

#[test]
fn what_is_explained_is_what_clients_saw() {
    let mut outcomes = BTreeMap::new();
    for seed in seeds(SEEDS) {
        let run = std::panic::catch_unwind(|| Run::new(seed).run());
        let seen = run.unwrap_or_else(|_| panic!("RINGHUB_SEED={seed} fails"));
        for (outcome, count) in seen {
            *outcomes.entry(outcome).or_insert(0) += count;
        }
    }
    if seeds(SEEDS).count() >= SEEDS as usize {
        for outcome in ["NotSubscribed", "Filtered", "Skipped", "Queued", "Dropped", "Written"] {
            assert!(outcomes.get(outcome).is_some_and(|count| *count > 20), "{outcome} in {outcomes:?}");
        }
    }
}

/// One connection of a name.
struct Connection {
    name: usize,
    client: Client,
    is_open: bool,
    reads: bool,
}

struct Run {
    rng: Rng,
    node: Node,
    connections: Vec<Connection>,
    /// Commands `publish` and who sent them.
    published: BTreeMap<(usize, u64), ()>,
    /// Ids of events, by room and number.
    events: BTreeMap<String, (String, u64)>,
    outcomes: BTreeMap<String, usize>,
    is_rough: bool,
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut rng = Rng::with_seed(seed);
        let mut config = config();
        config.history.events_max = rng.u32(3..=20);
        config.limits.outbox_bytes_max = rng.usize(4096..=16384);
        config.shards.turn_deliveries_max = rng.u32(1..8);
        config.history.age_s = 3600;
        let is_rough = rng.bool();
        let faults = if is_rough { Faults::rough() } else { Faults::none() };
        let node = Node::new(seed, rng.u16(1..=4), faults, config);
        let (connections, published, events, outcomes) = Default::default();
        Run { rng, node, connections, published, events, outcomes, is_rough }
    }

    fn run(mut self) -> BTreeMap<String, usize> {
        for _ in 0..STEPS {
            match self.rng.u8(..16) {
                0..=1 => self.connect(),
                2..=4 => self.subscribe(),
                5 => self.unsubscribe(),
                6..=10 => {
                    for _ in 0..self.rng.u8(1..6) {
                        self.publish();
                    }
                }
                11..=12 => self.stop_or_go_on(),
                13 => self.leave(),
                _ => {}
            }
            self.node.world.advance(std::time::Duration::from_millis(20));
            for _ in 0..self.rng.usize(0..6) {
                let shard = self.rng.usize(..self.node.shards());
                self.node.turn_of(shard);
            }
            if self.rng.u8(..30) == 0 {
                self.check();
            }
        }
        for connection in &mut self.connections {
            connection.client.link.set_read_budget(usize::MAX);
            connection.reads = true;
        }
        self.check();
        self.check_traces();
        for connection in &self.connections {
            connection.client.link.close();
        }
        self.outcomes
    }

    fn open(&mut self) -> Option<usize> {
        let open: Vec<usize> = (0..self.connections.len()).filter(|&one| self.connections[one].is_open).collect();
        self.rng.choice(open)
    }

    fn connect(&mut self) {
        let name = self.rng.usize(..NAMES);
        if self.connections.iter().any(|one| one.is_open && one.name == name) {
            return;
        }
        let shard = self.rng.usize(..self.node.shards());
        let subprotocol = self.rng.choice(SUBPROTOCOLS).expect("some");
        let client = Client::connect_as(&self.node, shard, "/ws", &format!("client_id=c{name}"), subprotocol);
        self.connections.push(Connection { name, client, is_open: true, reads: true });
        // Its former connection may not be gone yet.
        self.node.settle();
        self.poll();
        let last = self.connections.last_mut().expect("just put there");
        last.is_open = last.client.status == Some(101);
        if !last.is_open {
            self.connections.pop();
        }
    }

    fn subscribe(&mut self) {
        let Some(who) = self.open() else { return };
        let room = ROOMS[self.rng.usize(..ROOMS.len())];
        let mut data = json!({"room": room});
        if self.rng.u8(..3) == 0 {
            data["types"] = json!(["third"]);
        }
        if self.rng.u8(..3) == 0 {
            data["filters"] = json!({"number": {"max": self.rng.u64(0..60)}});
        }
        if self.rng.u8(..4) == 0 {
            data["since"] = json!({"last": self.rng.u64(0..10)});
        }
        self.connections[who].client.send("subscribe", data);
    }

    fn unsubscribe(&mut self) {
        let Some(who) = self.open() else { return };
        let room = ROOMS[self.rng.usize(..ROOMS.len())];
        self.connections[who].client.send("unsubscribe", json!({"room": room}));
    }

    fn publish(&mut self) {
        let Some(who) = self.open() else { return };
        let room = ROOMS[self.rng.usize(..ROOMS.len())];
        let number = self.rng.u64(0..60);
        let kind = if number % 3 == 0 { "third" } else { "other" };
        let data = json!({"number": number, "filling": "x".repeat(self.rng.usize(..1500))});
        let echo = self.rng.u8(..4) > 0;
        let id = self.connections[who]
            .client
            .send("publish", json!({"room": room, "type": kind, "data": data, "echo": echo}));
        self.published.insert((who, id), ());
    }

    fn stop_or_go_on(&mut self) {
        let Some(who) = self.open() else { return };
        let bytes = match self.rng.u8(..4) {
            0 | 1 => 0,
            2 => self.rng.usize(..20_000),
            _ => usize::MAX,
        };
        self.connections[who].reads = bytes == usize::MAX;
        self.connections[who].client.link.set_read_budget(bytes);
    }

    fn leave(&mut self) {
        let Some(who) = self.open() else { return };
        let connection = &mut self.connections[who];
        connection.is_open = false;
        if self.rng.bool() { connection.client.link.close() } else { connection.client.link.reset() }
    }

    /// Reads what everybody was told.
    fn poll(&mut self) {
        for (who, connection) in self.connections.iter_mut().enumerate() {
            connection.client.poll();
            for message in &connection.client.messages {
                let id = message["ref"].as_u64().unwrap_or_default();
                if message["type"] == "published" && self.published.remove(&(who, id)).is_some() {
                    let text = |name: &str| message["data"][name].as_str().expect("a text").to_owned();
                    let seq = message["data"]["seq"].as_u64().expect("a number");
                    self.events.insert(text("id"), (text("room"), seq));
                }
            }
        }
    }

    fn ask_all<T: Send + 'static>(
        &mut self,
        request: impl Fn(usize, ringhub::hub::reply::Responder<T>) -> Request,
    ) -> Vec<T> {
        let asked: Vec<_> = (0..self.node.shards())
            .map(|shard| {
                let (responder, pending) = pending();
                self.node.request(shard, request(shard, responder));
                pending
            })
            .collect();
        self.node.settle();
        asked.into_iter().map(|pending| pending.wait().expect("an answer")).collect()
    }

    fn address(&mut self, name: &str) -> Option<Address> {
        let client_id = name.to_owned();
        let all = self.ask_all(|_, responder| Request::Whereabouts { client_id: client_id.as_str().into(), responder });
        all.into_iter().flatten().next()
    }

    fn explain(&mut self, name: &str, event_id: &str) -> Vec<Explanation> {
        let sought = self.ask_all(|_, responder| Request::FindEvent { event_id: event_id.into(), responder });
        let sought = sought.into_iter().fold(EventSought::default(), EventSought::and);
        let event = Arc::new(sought.found.unwrap_or_else(|| panic!("{event_id} is not known")));
        let address = self.address(name);
        let all = self.ask_all(|shard, responder| {
            let live = address.filter(|address| usize::from(address.shard.0) == shard).map(|address| address.conn);
            let (client_id, event) = (name.into(), event.clone());
            Request::Explain(Box::new(ExplainAsked { client_id, live, event, responder }))
        });
        all.into_iter().flatten().collect()
    }

    /// Nothing changes meanwhile: who does not read goes on not to.
    fn check(&mut self) {
        self.node.settle();
        self.poll();
        let events: Vec<_> = self.events.clone().into_iter().collect();
        for name in 0..NAMES {
            let all: Vec<usize> =
                (0..self.connections.len()).filter(|&one| self.connections[one].name == name).collect();
            let [.., last] = all[..] else { continue };
            let saw = |who: usize, id: &str| {
                self.connections[who]
                    .client
                    .messages
                    .iter()
                    .any(|message| message["id"] == *id && message["seq"].is_u64())
            };
            let seen: BTreeSet<String> =
                events.iter().map(|(id, _)| id).filter(|id| all.iter().any(|&who| saw(who, id))).cloned().collect();
            let live = self.connections[last].is_open && all.len() == 1;
            for (id, (room, seq)) in &events {
                let told = self.explain(&format!("c{name}"), id);
                assert!(!told.is_empty(), "c{name} is known");
                let farthest = told.iter().max_by_key(|one| one.outcome).expect("not empty");
                let about = || format!("c{name}, {room} {seq} {id}: {told:#?}");
                *self.outcomes.entry(format!("{:?}", farthest.outcome)).or_insert(0) += 1;
                if seen.contains(id) {
                    // The end of what was cut may be another room's.
                    let may_be_cut = farthest.outcome == Outcome::Queued && !self.connections[last].reads;
                    let was_cut = told.iter().any(|one| one.detail.contains("may have it"));
                    assert!(farthest.outcome == Outcome::Written || may_be_cut || was_cut, "it was seen: {}", about());
                } else if live {
                    assert_ne!(farthest.outcome, Outcome::Written, "it was not seen: {}", about());
                }
                assert_ne!(farthest.outcome, Outcome::Unknown, "{}", about());
                if live {
                    let client = &self.connections[last].client;
                    let gaps = client
                        .messages
                        .iter()
                        .filter(|message| message["type"] == "gap" && message["data"]["room"] == *room);
                    let is_in_gap = gaps
                        .map(|gap| &gap["data"])
                        .any(|gap| (gap["from_seq"].as_u64()..=gap["to_seq"].as_u64()).contains(&Some(*seq)));
                    let reads = self.connections[last].reads;
                    match farthest.outcome {
                        Outcome::Skipped => assert!(is_in_gap || !reads, "no gap was told: {}", about()),
                        Outcome::Queued => assert!(!reads, "nothing holds it up: {}", about()),
                        Outcome::Written => {}
                        _ => {
                            assert!(!is_in_gap || farthest.outcome == Outcome::Filtered, "a gap was told: {}", about())
                        }
                    }
                }
            }
        }
    }

    /// A trace lists the events that its client saw of each room, and its memberships.
    fn check_traces(&mut self) {
        for name in 0..NAMES {
            let asked = Arc::new(TraceAsked { client_id: format!("c{name}").into(), limit: 1_000_000 });
            let address = self.address(&format!("c{name}"));
            let all = self.ask_all(|shard, responder| {
                let live = address.filter(|address| usize::from(address.shard.0) == shard).map(|address| address.conn);
                Request::Trace { asked: asked.clone(), live, responder }
            });
            let all: Vec<ConnectionTrace> = all.into_iter().flatten().collect();
            let connections = self.connections.iter().filter(|one| one.name == name);
            assert_eq!(all.len(), connections.clone().count(), "every connection of c{name} is remembered");
            let seen: usize =
                connections.map(|one| ROOMS.iter().map(|room| one.client.seqs(room).len()).sum::<usize>()).sum();
            let recorded = all.iter().flat_map(|trace| &trace.records).filter(|record| {
                record.room.as_deref().is_some_and(|room| ROOMS.contains(&room))
                    && ["events", "replayed"].contains(&&*record.what)
            });
            let recorded: usize = recorded.map(|record| record.events.unwrap_or_default() as usize).sum();
            assert!(recorded >= seen, "c{name} saw {seen} events, and {recorded} are recorded");
            for trace in &all {
                assert!(!trace.truncated);
                assert_eq!(trace.records.iter().filter(|record| record.what == "opened").count(), 1);
                assert!(trace.records.iter().any(|record| record.what == "closing") == trace.closed_at.is_some());
            }
        }
        // Without faults nothing but the seed decides, and the clocks of all shards are one.
        assert!(self.is_rough || self.events.len() < 10_000);
    }
}
