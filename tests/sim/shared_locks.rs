//! Field locks of several nodes: no two sessions have a field at a time, whatever happens to the links between nodes and
//! broker, and numbers only grow. Where the broker loses its data two may believe that they have it, and the numbers tell
//! which of them is right.
//!
//! `RINGHUB_SEEDS=10000` runs more seeds; `RINGHUB_SEED=17` runs one.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use ringhub::auth::Identity;
use ringhub::hub::moved::{Moved, YieldAsked};
use ringhub::hub::reply::{Pending, pending};
use ringhub::hub::shared_locks::NotedLock;
use ringhub::ring::ConnKey;
use ringhub::ring::sim::Faults;
use ringhub::shard::request::Request;
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

/// Whoever cleans up behind a node that has ended can't know that another one is about to tell of a lock.
#[test]
fn a_node_that_drains_waits_for_locks_that_have_just_left_it() {
    let mut run = Run::new(4);
    run.actors.push(Actor {
        node: 0,
        client: Client::connect(&run.nodes[0], 0, "/ws", ""),
        seen: 0,
        asked: BTreeMap::new(),
        holds: BTreeMap::new(),
        resumes: None,
    });
    run.settle();
    run.actors[0].client.send("lock.acquire", json!({"room": ROOM, "field": FIELDS[0], "ttl_s": 60}));
    run.settle();
    // It comes to the other node, which says nothing of it to the broker.
    run.exchange.set_up(1, false);
    while run.moving.is_empty() {
        run.leave_for_another_node();
    }
    for shard in 0..run.nodes[0].shards() {
        run.nodes[0].request(shard, Request::Drain { over_ms: 0, spread_ms: 0 });
    }
    let is_running = |run: &Run| (0..run.nodes[0].shards()).any(|shard| run.nodes[0].is_running(shard));
    let pass = |run: &mut Run, tenths: usize| {
        for _ in 0..tenths {
            (0..20).for_each(|_| run.turn());
            run.pass(100);
        }
    };
    pass(&mut run, 25);
    assert!(is_running(&run), "it is not known yet what became of the lock");
    pass(&mut run, 10);
    assert!(!is_running(&run), "it can't be waited for for ever");
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
    /// Its session and that one's token, where it has taken up one from another node: from when it is let in.
    resumes: Option<(String, String)>,
}

/// A session on its way from one node to another.
struct Moving {
    session_id: String,
    token: String,
    to: usize,
    user_id: String,
    answer: Pin<Box<Pending<Moved>>>,
    holds: BTreeMap<&'static str, Belief>,
}

/// A lock of a dead node that another one is to free.
struct Freeing {
    room: String,
    lock: NotedLock,
    answer: Pin<Box<Pending<()>>>,
}

struct Run {
    rng: Rng,
    nodes: Vec<Node>,
    /// Those that have not died.
    alive: Vec<usize>,
    /// What each has noted of the locks that it holds, by room and number: others free them should it die.
    noted: Vec<BTreeMap<(String, u64), NotedLock>>,
    /// Locks of dead nodes that are being freed.
    freeing: Vec<Freeing>,
    /// Since when the link of each is up.
    up_since_ms: Vec<u64>,
    exchange: Exchange,
    actors: Vec<Actor>,
    moving: Vec<Moving>,
    /// The last number that somebody was told of a field.
    tokens: BTreeMap<&'static str, Vec<u64>>,
    /// All that happened was lost at least once.
    is_lost: bool,
    /// Milliseconds that have passed.
    passed_ms: u64,
    acquired: usize,
    /// Sessions that were taken up at another node than before, with locks.
    moved: usize,
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
        config.session.resume_window_s = if seed.is_multiple_of(3) { 0 } else { 2 };
        let nodes = (0..rng.u64(2..=3)).map(|number| {
            let shards = rng.u16(1..=2);
            let faults = if seed.is_multiple_of(4) { Faults::none() } else { Faults::rough() };
            let of_node = seed ^ (number << 40);
            let link = exchange.add(Node::hasher_of(of_node), shards);
            Node::with_links(of_node, shards, faults, config.clone(), None, Some((link, 1000 + number)))
        });
        let nodes: Vec<Node> = nodes.collect();
        let (alive, noted, up_since_ms) =
            ((0..nodes.len()).collect(), vec![BTreeMap::new(); nodes.len()], vec![0; nodes.len()]);
        let (actors, moving, tokens) = (Vec::new(), Vec::new(), BTreeMap::new());
        Run {
            rng,
            nodes,
            alive,
            noted,
            up_since_ms,
            freeing: Vec::new(),
            exchange,
            actors,
            moving,
            tokens,
            is_lost: false,
            passed_ms: 0,
            acquired: 0,
            moved: 0,
        }
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
        self.alive.iter().for_each(|node| self.exchange.set_up(*node, true));
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
            let all =
                self.actors.iter().map(|actor| &actor.holds).chain(self.moving.iter().map(|moving| &moving.holds));
            // The two clocks are cut to milliseconds at different moments.
            let held = all.filter_map(|holds| holds.get(field).filter(|belief| belief.until_ms > now_ms + 1));
            let tokens: Vec<u64> = held.map(|belief| belief.token).collect();
            assert!(tokens.len() <= 1, "{field} is held by {tokens:?}");
        }
    }

    fn turn(&mut self) {
        exchange::turn(&mut self.exchange, &mut self.nodes, &mut self.rng);
        self.note();
        self.actors.iter_mut().for_each(|actor| actor.client.poll());
        self.arrive();
        self.free();
    }

    fn note(&mut self) {
        for (node, noted) in self.nodes.iter_mut().zip(&mut self.noted) {
            for (room, lock, is_held) in node.noted_locks() {
                let name = (room.as_str().to_owned(), lock.token);
                if is_held {
                    noted.insert(name, lock);
                } else {
                    noted.remove(&name);
                }
            }
        }
    }

    fn a_living_node(&mut self) -> usize {
        self.alive[self.rng.usize(..self.alive.len())]
    }

    /// A node dies that has said all it had to say, so that nothing is lost with it but the sessions and what is on its way
    /// with those; the others do for its locks what they do when its lease has ended.
    fn die(&mut self, node: usize) {
        if self.alive.len() < 2 || self.passed_ms < self.up_since_ms[node].saturating_add(2000) {
            return;
        }
        self.settle();
        self.look();
        self.nodes[node].die();
        self.exchange.set_up(node, false);
        self.alive.retain(|one| *one != node);
        self.actors.retain(|actor| actor.node != node);
        self.moving.retain(|moving| moving.to != node);
        for ((room, _), lock) in std::mem::take(&mut self.noted[node]) {
            self.free_of_dead(room, lock);
        }
    }

    fn free_of_dead(&mut self, room: String, lock: NotedLock) {
        let to = self.a_living_node();
        let node = &self.nodes[to];
        let name = node.hasher.room(&room);
        let home = usize::from(name.home(node.shards() as u16).0);
        let (responder, answer) = pending();
        node.request(home, Request::FreeOfDead { room: name, noted: Box::new(lock.clone()), responder });
        self.freeing.push(Freeing { room, lock, answer: Box::pin(answer) });
    }

    /// Whoever cleans up asks again where the broker could not be reached.
    fn free(&mut self) {
        for mut freeing in std::mem::take(&mut self.freeing) {
            match freeing.answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => self.freeing.push(freeing),
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => self.free_of_dead(freeing.room, freeing.lock),
            }
        }
    }

    /// A client's connection breaks, and it goes to another node, which asks this one for the session.
    fn leave_for_another_node(&mut self) {
        let place = self.rng.usize(..self.actors.len().max(1));
        let to = self.a_living_node();
        let is_there = |actor: &Actor| actor.resumes.is_none() && !actor.client.messages.is_empty() && actor.node != to;
        if !self.actors.get(place).is_some_and(is_there) {
            return;
        }
        let Actor { node, client, holds, .. } = self.actors.swap_remove(place);
        let told =
            |kind| client.messages.iter().rfind(|message| message["type"] == kind).map(|message| &message["data"]);
        let first = told("connection_established").expect("it was let in");
        let told = told("resumed").unwrap_or(first);
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let (session_id, token) = (text(&told["session_id"]), text(&told["resume"]["token"]));
        let user_id = text(&first["user_id"]);
        if self.rng.bool() {
            // The node may notice it before it is asked for the session.
            client.link.close();
        }
        let (responder, answer) = pending();
        let room = self.nodes[node].hasher.room(&format!("session:{session_id}"));
        let home = usize::from(room.home(self.nodes[node].shards() as u16).0);
        let number = u128::from_str_radix(&token, 16).expect("hexadecimal").to_be_bytes();
        let asked = YieldAsked { room, user_id: user_id.as_str().into(), token: Some(number), responder };
        self.nodes[node].request(home, Request::YieldSession(asked));
        let answer = Box::pin(answer);
        self.moving.push(Moving { session_id, token, to, user_id, answer, holds });
    }

    /// Sessions come to where they go, and their clients with them.
    fn arrive(&mut self) {
        for mut moving in std::mem::take(&mut self.moving) {
            match moving.answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => self.moving.push(moving),
                // It comes too late, or not at all: nobody has the session, and its locks end by their time.
                Poll::Ready(Ok(_)) if self.rng.u8(..5) == 0 => {}
                Poll::Ready(Ok(moved)) => {
                    let Moving { session_id, token, to, user_id, holds, .. } = moving;
                    let node = &self.nodes[to];
                    let found = Ok(Some(Bytes::from(moved.write().expect("it can be written"))));
                    let identity = Arc::new(Identity::anonymous(user_id));
                    let conn = ConnKey { slot: u32::MAX, generation: 7 };
                    let shard = self.rng.usize(..node.shards());
                    let sought = Request::NameSought { conn, session_id: session_id.as_str().into(), identity, found };
                    node.request(shard, sought);
                    let client = Client::connect(node, self.rng.usize(..node.shards()), "/ws", "");
                    let (asked, resumes) = (BTreeMap::new(), Some((session_id, token)));
                    self.actors.push(Actor { node: to, client, seen: 0, asked, holds, resumes });
                }
                // It had gone, and its locks with it.
                Poll::Ready(Err(_)) => {}
            }
        }
    }

    fn settle(&mut self) {
        loop {
            let Run { exchange, nodes, rng, actors, .. } = self;
            exchange::settle(exchange, nodes, rng, || actors.iter_mut().for_each(|actor| actor.client.poll()));
            self.note();
            let under_way = self.moving.len();
            let freeing = self.freeing.len();
            if under_way + freeing == 0 {
                return;
            }
            self.arrive();
            self.free();
            assert!(self.moving.len() < under_way || under_way == 0, "whoever wants a session is answered");
            // Where the broker can't be reached it goes on later.
            if under_way == 0 && self.freeing.len() == freeing {
                return;
            }
        }
    }

    fn pass(&mut self, ms: u64) {
        self.passed_ms += ms;
        self.exchange.now_ms += ms;
        for node in &mut self.nodes {
            node.world.advance(Duration::from_millis(ms));
        }
    }

    fn act(&mut self) {
        let node = self.a_living_node();
        match self.rng.u8(..100) {
            0..=9 if self.actors.len() < ACTORS_MAX => {
                let shard = self.rng.usize(..self.nodes[node].shards());
                let client = Client::connect(&self.nodes[node], shard, "/ws", "");
                let (asked, holds) = Default::default();
                self.actors.push(Actor { node, client, seen: 0, asked, holds, resumes: None });
            }
            10..=59 => self.ask(),
            60..=64 if !self.actors.is_empty() => {
                let place = self.rng.usize(..self.actors.len());
                self.actors.swap_remove(place).client.link.close();
            }
            65..=70 => {
                let is_up = self.rng.u8(..3) > 0;
                self.exchange.set_up(node, is_up);
                self.up_since_ms[node] = if is_up { self.passed_ms } else { u64::MAX };
            }
            71 if self.rng.u8(..8) == 0 => {
                self.exchange.lose_all();
                self.is_lost = true;
            }
            72..=90 => {
                let ms = self.rng.u64(1..700);
                self.pass(ms);
            }
            91..=95 => self.leave_for_another_node(),
            96 => self.die(node),
            97..=98 => {
                let holds = self.actors.iter().find(|actor| actor.node == node && !actor.holds.is_empty());
                if holds.is_some() {
                    self.leave_for_another_node();
                    self.die(node);
                }
            }
            _ => {}
        }
    }

    fn ask(&mut self) {
        let place = self.rng.usize(..self.actors.len().max(1));
        let is_in = |actor: &Actor| actor.resumes.is_none() && !actor.client.messages.is_empty();
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
            if !actor.client.messages.is_empty()
                && actor.asked.is_empty()
                && let Some((session_id, token)) = &actor.resumes
            {
                let id = actor.client.send("resume", json!({"session_id": session_id, "token": token}));
                actor.asked.insert(id, ("resume", ""));
            }
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
            ("resumed", Some(_)) => {
                actor.resumes = None;
                let now_ms = 1_700_000_000_000 + i128::from(self.passed_ms);
                let locks = data["locks"].as_array().expect("a list");
                let listed = locks.iter().map(|lock| {
                    let field = FIELDS.into_iter().find(|field| lock["field"] == *field).expect("a field");
                    let token = lock["token"].as_u64().expect("a number");
                    (field, Belief { token, until_ms: time_of(&lock["expires_at"]) })
                });
                let listed: BTreeMap<&str, Belief> = listed.collect();
                for (field, belief) in &actor.holds {
                    let is_listed = listed.get(field).is_some_and(|one| one.token >= belief.token);
                    assert!(
                        is_listed || belief.until_ms <= now_ms + 1 || self.is_lost,
                        "{field}, {belief:?}: {message}"
                    );
                }
                self.moved += usize::from(!actor.holds.is_empty());
                for belief in listed.values() {
                    // It may have been granted without its client having heard of it.
                    let field = listed.iter().find(|(_, one)| one.token == belief.token).map(|(field, _)| *field);
                    let tokens = self.tokens.entry(field.expect("it is from there")).or_default();
                    if !tokens.contains(&belief.token) {
                        tokens.push(belief.token);
                    }
                }
                actor.holds = listed;
            }
            ("error", Some(("resume", _))) => {
                // As where the session's home is not known what it is: its client goes on without.
                assert!(["unavailable", "not_found"].contains(&data["code"].as_str().expect("a code")), "{message}");
                actor.resumes = None;
                actor.holds.clear();
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
