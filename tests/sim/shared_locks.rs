//! Field locks of several nodes: no two sessions have a field at a time, whatever happens to the links between nodes and
//! broker, and numbers only grow. Where the broker loses its data two may believe that they have it, and the numbers tell
//! which of them is right.
//!
//! `RINGHUB_SEEDS=10000` runs more seeds; `RINGHUB_SEED=17` runs one.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use ringhub::ring::sim::Faults;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::client::Client;
use crate::exchange::{self, Exchange};
use crate::model::for_each_seed;
use crate::node::{Node, config};

const SEEDS: u64 = 300;
const STEPS: usize = 250;
const ACTORS_MAX: usize = 6;
const ROOM: &str = "quote:1";
const FIELDS: [&str; 2] = ["price", "title"];

#[test]
fn no_two_sessions_of_whatever_nodes_hold_a_field_at_a_time() {
    for_each_seed(SEEDS, |seed| Run::new(seed).run());
}

/// What a client believes to hold.
#[derive(Debug, Clone, Copy)]
struct Belief {
    token: u64,
    /// By the clock, in milliseconds since 1970.
    until_ms: i128,
}

struct Actor {
    node: usize,
    client: Client,
    seen: usize,
    asked: BTreeMap<u64, (&'static str, &'static str)>,
    holds: BTreeMap<&'static str, Belief>,
}

struct Run {
    rng: Rng,
    nodes: Vec<Node>,
    exchange: Exchange,
    actors: Vec<Actor>,
    /// The last number that somebody was told of a field.
    tokens: BTreeMap<&'static str, Vec<u64>>,
    /// All that happened was lost at least once.
    is_lost: bool,
    /// Milliseconds that have passed.
    passed_ms: u64,
    acquired: usize,
}

fn time_of(text: &Value) -> i128 {
    let time = OffsetDateTime::parse(text.as_str().expect("a time"), &Rfc3339).expect("RFC 3339");
    time.unix_timestamp_nanos() / 1_000_000
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut rng = Rng::with_seed(seed);
        let mut exchange = Exchange::new();
        let mut config = config();
        config.session.resume_window_s = 0;
        let nodes = (0..rng.u64(2..=3)).map(|number| {
            let shards = rng.u16(1..=2);
            let faults = if seed.is_multiple_of(4) { Faults::none() } else { Faults::rough() };
            let of_node = seed ^ (number << 40);
            let link = exchange.add(Node::hasher_of(of_node), shards);
            Node::with_links(of_node, shards, faults, config.clone(), None, Some((link, 1000 + number)))
        });
        let nodes = nodes.collect();
        let (actors, tokens) = (Vec::new(), BTreeMap::new());
        Run { rng, nodes, exchange, actors, tokens, is_lost: false, passed_ms: 0, acquired: 0 }
    }

    fn run(mut self) {
        for _ in 0..STEPS {
            self.act();
            for _ in 0..self.rng.usize(..4) {
                self.turn();
            }
            self.look();
            self.nobody_holds_what_another_one_holds();
        }
        (0..self.nodes.len()).for_each(|node| self.exchange.set_up(node, true));
        self.settle();
        // Whoever could not be told that it is over has been told by now, or will not be.
        for _ in 0..8 {
            self.pass(1000);
            self.settle();
        }
        self.look();
        for field in FIELDS {
            assert!(self.exchange.lock_of(ROOM, field).is_none(), "what nobody renews ends");
        }
        if !self.is_lost {
            self.every_lock_has_one_beginning_and_one_end();
        }
    }

    fn every_lock_has_one_beginning_and_one_end(&self) {
        let mut lives: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
        for ((room, _, _), event) in &self.exchange.truth {
            if room != ROOM || !event.kind.starts_with("lock.") {
                continue;
            }
            let data: Value = serde_json::from_slice(&event.data).expect("JSON");
            let life = lives.entry(data["token"].as_u64().expect("a number")).or_default();
            if &*event.kind == "lock.acquired" {
                life.0 += 1;
            } else {
                life.1 += 1;
            }
        }
        for (token, life) in lives {
            assert_eq!(life, (1, 1), "the lock with the number {token} began and ended so many times");
        }
    }

    fn nobody_holds_what_another_one_holds(&self) {
        if self.is_lost {
            return;
        }
        let now_ms = 1_700_000_000_000 + i128::from(self.passed_ms);
        for field in FIELDS {
            let holders = self.actors.iter().filter(|actor| {
                // The two clocks are cut to milliseconds at different moments.
                actor.holds.get(field).is_some_and(|belief| belief.until_ms > now_ms + 1)
            });
            let tokens: Vec<u64> = holders.map(|actor| actor.holds[field].token).collect();
            assert!(tokens.len() <= 1, "{field} is held by {tokens:?}");
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

    fn pass(&mut self, ms: u64) {
        self.passed_ms += ms;
        self.exchange.now_ms += ms;
        for node in &mut self.nodes {
            node.world.advance(Duration::from_millis(ms));
        }
    }

    fn act(&mut self) {
        let node = self.rng.usize(..self.nodes.len());
        match self.rng.u8(..100) {
            0..=9 if self.actors.len() < ACTORS_MAX => {
                let shard = self.rng.usize(..self.nodes[node].shards());
                let client = Client::connect(&self.nodes[node], shard, "/ws", "");
                let (asked, holds) = Default::default();
                self.actors.push(Actor { node, client, seen: 0, asked, holds });
            }
            10..=59 => self.ask(),
            60..=64 if !self.actors.is_empty() => {
                let place = self.rng.usize(..self.actors.len());
                self.actors.swap_remove(place).client.link.close();
            }
            65..=70 => {
                let is_up = self.rng.u8(..3) > 0;
                self.exchange.set_up(node, is_up);
            }
            71 if self.rng.u8(..8) == 0 => {
                self.exchange.lose_all();
                self.is_lost = true;
            }
            72..=90 => {
                let ms = self.rng.u64(1..700);
                self.pass(ms);
            }
            _ => {}
        }
    }

    fn ask(&mut self) {
        let place = self.rng.usize(..self.actors.len().max(1));
        let is_in = |actor: &Actor| actor.client.status == Some(101) && !actor.client.messages.is_empty();
        if !self.actors.get(place).is_some_and(is_in) {
            return;
        }
        let field = FIELDS[self.rng.usize(..FIELDS.len())];
        let ttl_s = self.rng.u64(1..4);
        let does = self.rng.u8(..4);
        let actor = &mut self.actors[place];
        let (kind, data) = match (does, actor.holds.get(field)) {
            (0, Some(belief)) => ("lock.release", json!({"room": ROOM, "field": field, "token": belief.token})),
            (1, Some(belief)) => {
                ("lock.renew", json!({"room": ROOM, "field": field, "token": belief.token, "ttl_s": ttl_s}))
            }
            _ => ("lock.acquire", json!({"room": ROOM, "field": field, "ttl_s": ttl_s})),
        };
        if kind == "lock.release" {
            // From here on it is up to others.
            actor.holds.remove(field);
        }
        let id = actor.client.send(kind, data);
        actor.asked.insert(id, (kind, field));
    }

    fn look(&mut self) {
        for place in 0..self.actors.len() {
            let actor = &mut self.actors[place];
            let messages: Vec<Value> = actor.client.messages.iter().skip(actor.seen).cloned().collect();
            actor.seen = actor.client.messages.len();
            for message in messages {
                self.told(place, &message);
            }
        }
        let refused = |actor: &mut Actor| actor.client.status.is_some_and(|status| status != 101);
        for actor in self.actors.extract_if(.., refused) {
            assert_eq!(actor.client.status, Some(503), "at node {}", actor.node);
        }
    }

    fn told(&mut self, place: usize, message: &Value) {
        let actor = &mut self.actors[place];
        assert_eq!(actor.client.close, None);
        let data = &message["data"];
        let asked = message["ref"].as_u64().and_then(|id| actor.asked.remove(&id));
        match (message["type"].as_str().expect("a type"), asked) {
            ("lock.acquired" | "lock.renewed", Some((kind, field))) => {
                let token = data["token"].as_u64().expect("a number");
                let until_ms = time_of(&data["expires_at"]);
                let tokens = self.tokens.entry(field).or_default();
                if !tokens.contains(&token) {
                    assert_eq!(kind, "lock.acquire");
                    tokens.push(token);
                    self.acquired += 1;
                }
                // An answer that was overtaken by a release says nothing any more.
                let was_released = actor.asked.values().any(|(kind, of)| *kind == "lock.release" && *of == field);
                if !was_released && actor.holds.get(field).is_none_or(|belief| belief.token <= token) {
                    actor.holds.insert(field, Belief { token, until_ms });
                }
            }
            ("lock.released", Some((_, field))) => {
                actor.holds.remove(field);
            }
            ("error", asked) => {
                let code = data["code"].as_str().expect("a code");
                assert!(["lock_held", "lock_lost", "unavailable"].contains(&code), "{message}");
                if code == "lock_lost" {
                    let field = asked.map(|(_, field)| field).or_else(|| {
                        let named = data["details"]["field"].as_str()?.to_owned();
                        FIELDS.into_iter().find(|field| *field == named)
                    });
                    if let Some(field) = field {
                        actor.holds.remove(field);
                    }
                }
            }
            ("connection_established" | "gap", _) => {}
            (other, _) => panic!("{other}: {message}"),
        }
    }
}
