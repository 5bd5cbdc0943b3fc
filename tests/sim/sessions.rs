//! One session that many connections want at once: they take it over by its name, resume it, and vanish in the midst of
//! it, while its rooms have events. Whoever has it in the end is in all of its rooms and is given every event that was not
//! acknowledged; none of them gives cursors.
//!
//! `RINGHUB_SEEDS=10000` runs more seeds; `RINGHUB_SEED=17` runs one.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use ringhub::ring::sim::Faults;
use serde_json::json;

use crate::client::Client;
use crate::model::for_each_seed;
use crate::node::{Node, config};

const SEEDS: u64 = 300;
const ROOMS: [&str; 3] = ["project:0", "project:1", "quote:0"];
const STEPS: usize = 60;
/// At most so many at a time wait for their turn.
const CONNECTIONS: usize = 12;

#[test]
fn a_session_keeps_its_rooms_and_events_however_connections_race_for_it() {
    for_each_seed(SEEDS, |seed| Run::new(seed).run());
}

struct Run {
    rng: Rng,
    node: Node,
    session: String,
    token: String,
    clients: Vec<Client>,
    /// How much of each client's messages was looked at.
    seen: Vec<usize>,
    /// By room: the last event that some connection acknowledged.
    acked: BTreeMap<String, u64>,
    last: BTreeMap<String, u64>,
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut rng = Rng::with_seed(seed);
        let mut config = config();
        config.history.age_s = 3600;
        let faults = if rng.bool() { Faults::none() } else { Faults { resets: 0.0, ..Faults::rough() } };
        let shards = rng.u16(1..=3);
        let mut node = Node::new(seed, shards, faults, config);
        let mut first = node.client(0, "session_id=shared");
        let token = first.messages[0]["data"]["resume"]["token"].as_str().expect("a token").to_owned();
        let id = first.send("subscribe", json!({"rooms": ROOMS}));
        node.settle();
        first.poll();
        assert!(first.answer(id).is_some());
        let seen = first.messages.len();
        Run {
            rng,
            node,
            session: "shared".to_owned(),
            token,
            clients: vec![first],
            seen: vec![seen],
            acked: BTreeMap::new(),
            last: BTreeMap::new(),
        }
    }

    fn run(mut self) {
        for _ in 0..STEPS {
            match self.rng.u8(..12) {
                0..=2 => self.publish(),
                3 if self.clients.len() < CONNECTIONS => {
                    let resumes = self.rng.bool();
                    self.connect("session_id=shared", resumes);
                }
                4 if self.clients.len() < CONNECTIONS => self.connect("", true),
                5 => self.resume_again(),
                6 => self.vanish(),
                7 => self.node.settle(),
                _ => {
                    let shard = self.rng.usize(..self.node.shards());
                    self.node.turn_of(shard);
                }
            }
            self.look();
        }
        for client in &self.clients {
            if self.rng.bool() {
                client.link.reset();
            }
        }
        self.publish();
        self.finish();
    }

    fn publish(&mut self) {
        let room = ROOMS[self.rng.usize(..ROOMS.len())];
        self.node.publish(room, "1");
        *self.last.entry(room.to_owned()).or_default() += 1;
    }

    /// One more connection, which may ask for the session before it knows whether it was let in.
    fn connect(&mut self, query: &str, resumes: bool) {
        let shard = self.rng.usize(..self.node.shards());
        let client = Client::connect(&self.node, shard, "/ws", query);
        self.clients.push(client);
        self.seen.push(0);
        if resumes {
            self.resume(self.clients.len() - 1);
        }
    }

    fn resume(&mut self, who: usize) {
        let data = json!({"session_id": self.session, "token": self.token});
        self.clients[who].send("resume", data);
    }

    /// A client asks for the session, perhaps more than once.
    fn resume_again(&mut self) {
        let who = self.rng.usize(..self.clients.len());
        for _ in 0..self.rng.usize(1..4) {
            self.resume(who);
        }
    }

    fn vanish(&mut self) {
        let who = self.rng.usize(..self.clients.len());
        match self.rng.u8(..3) {
            0 => self.clients[who].link.close(),
            1 => self.clients[who].link.finish(),
            _ => self.clients[who].link.reset(),
        }
    }

    /// Reads what everybody was told and acknowledges some of it.
    fn look(&mut self) {
        for who in 0..self.clients.len() {
            let client = &mut self.clients[who];
            client.poll();
            let new: Vec<_> = client.messages[self.seen[who]..].to_vec();
            self.seen[who] = client.messages.len();
            for message in new {
                let (Some(room), Some(seq)) = (message["room"].as_str(), message["seq"].as_u64()) else { continue };
                if ROOMS.contains(&room) && self.rng.bool() {
                    client.send("ack", json!({"room": room, "seq": seq}));
                    let acked = self.acked.entry(room.to_owned()).or_default();
                    *acked = seq.max(*acked);
                }
            }
        }
    }

    fn finish(mut self) {
        self.node.settle();
        let mut last = self.node.client(0, "");
        let id = last.send("resume", json!({"session_id": self.session, "token": self.token}));
        self.node.settle();
        last.poll();
        let answer = last.answer(id).expect("an answer");
        assert_eq!(answer["type"], "resumed", "{answer}");
        for room in ROOMS {
            let results = answer["data"]["results"].as_array().expect("a list");
            assert!(results.iter().any(|result| result["room"] == room), "{room} is not in {answer}");
            let (acked, end) = (self.acked.get(room).copied(), self.last.get(room).copied());
            let owed: Vec<u64> = (acked.unwrap_or(0) + 1..=end.unwrap_or(0)).collect();
            let seqs = last.seqs(room);
            assert!(seqs.is_sorted_by(|one, other| one < other), "{room}: {seqs:?}");
            assert!(owed.iter().all(|seq| seqs.contains(seq)), "{room}: {seqs:?}, owed {owed:?}: {answer}");
        }
        for client in self.clients {
            client.link.reset();
        }
        last.link.close();
        self.node.settle();
        // Until what is kept of the session has gone.
        self.node.world.advance(Duration::from_secs(3600));
        self.node.assert_empty();
    }
}

#[test]
fn of_sessions_resumed_in_one_breath_a_client_has_the_one_it_was_told_last() {
    for shards in 1..=3 {
        for order in 0..27 {
            let mut node = Node::new(order, shards, Faults::none(), config());
            let names = ["a", "b", "c"];
            let tokens = names.map(|name| {
                let client = node.client(0, &format!("session_id={name}"));
                client.link.close();
                client.messages[0]["data"]["resume"]["token"].clone()
            });
            node.settle();
            let mut client = node.client(usize::from(shards) - 1, "");
            // Every order of three, with repeats; each in turn is asked for twice.
            for digit in [order / 9, order / 3 % 3, order % 3] {
                let place = digit as usize;
                for _ in 0..2 {
                    client.send("resume", json!({"session_id": names[place], "token": tokens[place]}));
                }
            }
            node.settle();
            client.poll();
            let told = client.messages.iter().rfind(|message| message["type"] == "resumed").expect("one at least");
            let session = told["data"]["session_id"].clone();
            let mut other = node.client(0, "");
            let id = other.send("send", json!({"to": {"session": session}, "type": "x", "data": 1}));
            node.settle();
            other.poll();
            client.poll();
            let answer = other.answer(id).expect("an answer");
            assert_eq!(answer["data"]["delivered"], 1, "{shards} shards, order {order}: {session} {answer}");
            assert!(client.messages.iter().any(|message| message["type"] == "x"));
        }
    }
}

#[test]
fn what_connections_leave_to_a_session_is_bounded_however_many_never_resume_it() {
    let mut config = config();
    config.limits.rooms_max = 8;
    let mut node = Node::new(1, 1, Faults::none(), config);
    let mut token = serde_json::Value::Null;
    for turn in 0..10 {
        let mut client = node.client(0, "session_id=shared");
        token = client.messages[0]["data"]["resume"]["token"].clone();
        let rooms: Vec<String> = (0..5).map(|number| format!("project:{turn}-{number}")).collect();
        client.send("subscribe", json!({"rooms": rooms}));
        node.settle();
        client.link.reset();
        node.settle();
    }
    let mut last = node.client(0, "");
    let id = last.send("resume", json!({"session_id": "shared", "token": token}));
    node.settle();
    last.poll();
    let results = last.answer(id).expect("an answer")["data"]["results"].as_array().expect("a list").clone();
    // Each room that is left is answered, be it with an error: what was asked for last is among them.
    assert!(results.len() <= 8 + 1, "{} rooms", results.len());
    assert!(results.iter().any(|result| result["room"] == "project:9-4"), "{results:?}");
}
