//! Withdrawn permissions against a naive reference: clients on one to four shards join rooms, vanish, resume sessions, take
//! them over by name and show tokens again, while permissions are withdrawn from clients, sessions and users. Whoever holds a
//! session at rest is in no room that was withdrawn from it, and can't get into one, whatever happened at the same time.
//!
//! `RINGHUB_SEEDS=10000` runs more seeds; `RINGHUB_SEED=17` runs one.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use ringhub::auth::{Claims, mint};
use ringhub::config::{Config, Secret};
use ringhub::hub::message::{ClientRequest, Withdraw, Withdrew};
use ringhub::hub::name::home_of;
use ringhub::hub::reply::{HubError, Pending, pending};
use ringhub::ring::sim::Faults;
use ringhub::shard::request::Request;
use ringhub::wire::codes::ErrorCode;
use serde_json::{Value, json};

use crate::client::Client;
use crate::model::for_each_seed;
use crate::node::{Node, config};

const SEEDS: u64 = 200;
const ROUNDS: usize = 12;
const ROOMS: usize = 3;
const USERS: [&str; 2] = ["alice", "bob"];
const ACTORS_MAX: usize = 10;

#[test]
fn nobody_is_in_a_room_that_was_withdrawn_from_its_session() {
    for_each_seed(SEEDS, |seed| Run::new(seed).run());
}

struct Actor {
    client: Client,
    client_id: String,
    user: usize,
    /// The session it holds and what it can be resumed by, once it was told.
    session: Option<String>,
    seen: usize,
    /// Whether it wants another session in this round.
    resumes: bool,
    /// Whether it has shown a token that is newer than all withdrawals.
    is_renewed: bool,
}

#[derive(Debug, Clone)]
struct Session {
    user: usize,
    token: String,
    withdrawn: BTreeSet<usize>,
    is_new: bool,
}

enum Whom {
    Client(usize),
    Session(String),
    User(usize),
}

struct Asked {
    whom: Whom,
    room: usize,
    answers: Vec<Pending<Withdrew>>,
}

struct Run {
    rng: Rng,
    config: Config,
    node: Node,
    root: Client,
    actors: Vec<Actor>,
    sessions: BTreeMap<String, Session>,
    asked: Vec<Asked>,
    numbers: u64,
}

/// Seconds since 1970 of the simulated clock's beginning are later than this and earlier than the other.
const OLD_S: u64 = 1_000_000_000;
const NEW_S: u64 = 4_000_000_000;

impl Run {
    fn new(seed: u64) -> Run {
        let mut rng = Rng::with_seed(seed);
        let mut config = config();
        config.auth.enabled = true;
        config.auth.secret = vec![Secret { kid: None, secret: "a secret of thirty-two bytes or so".to_owned() }];
        config.session.resume_window_s = 3600;
        config.limits.connections_per_user_max = 0;
        let faults = if rng.u8(..3) == 0 { Faults::none() } else { Faults::rough() };
        let mut node = Node::new(seed, rng.u16(1..=4), faults, config.clone());
        let token = token(&config, "root", OLD_S, &["websocket:admin"]);
        let root = node.client(0, &format!("token={token}"));
        let (actors, sessions, asked, numbers) = Default::default();
        Run { rng, config, node, root, actors, sessions, asked, numbers }
    }

    fn run(mut self) {
        for _ in 0..ROUNDS {
            for _ in 0..self.rng.usize(3..20) {
                self.step();
                for _ in 0..self.rng.usize(..4) {
                    let shard = self.rng.usize(..self.node.shards());
                    self.node.turn_of(shard);
                }
            }
            self.rest();
            self.settle_asked();
            self.check();
        }
    }

    fn step(&mut self) {
        match self.rng.u8(..16) {
            0..=2 if self.actors.len() < ACTORS_MAX => self.join(),
            3..=6 => {
                let room = room(self.rng.usize(..ROOMS));
                if let Some(actor) = self.any() {
                    actor.client.send("subscribe", json!({"room": room}));
                }
            }
            7 => {
                let (room, number) = (room(self.rng.usize(..ROOMS)), self.numbers);
                self.root.send("publish", json!({"room": room, "type": "k", "data": {"number": number}}));
            }
            8..=9 => self.resume(),
            10 if !self.actors.is_empty() => {
                let who = self.rng.usize(..self.actors.len());
                let actor = self.actors.swap_remove(who);
                actor.client.link.close();
                // Whether it has taken another one up, and its own has ended, nobody will tell.
                if let Some(id) = actor.session.filter(|_| actor.resumes) {
                    self.sessions.remove(&id);
                }
            }
            11 => {
                let is_new = self.rng.u8(..4) == 0;
                let config = self.config.clone();
                if let Some(actor) = self.any() {
                    let token = user_token(&config, actor.user, if is_new { NEW_S } else { OLD_S });
                    actor.client.send("auth.refresh", json!({"token": token}));
                    actor.is_renewed |= is_new;
                }
            }
            12..=14 => self.withdraw(),
            _ => {}
        }
    }

    fn any(&mut self) -> Option<&mut Actor> {
        let count = self.actors.len().max(1);
        let who = self.rng.usize(..count);
        self.actors.get_mut(who).filter(|actor| actor.session.is_some())
    }

    fn join(&mut self) {
        self.numbers += 1;
        let (user, client_id) = (self.rng.usize(..USERS.len()), format!("c{}", self.numbers));
        let token = user_token(&self.config, user, OLD_S);
        let mut query = format!("client_id={client_id}&token={token}");
        let mine: Vec<&String> =
            self.sessions.iter().filter(|(_, session)| session.user == user).map(|(id, _)| id).collect();
        if !mine.is_empty() && self.rng.bool() {
            query += &format!("&session_id={}", mine[self.rng.usize(..mine.len())]);
        }
        let client = Client::connect(&self.node, self.rng.usize(..self.node.shards()), "/ws", &query);
        self.actors.push(Actor { client, client_id, user, session: None, seen: 0, resumes: false, is_renewed: false });
    }

    fn resume(&mut self) {
        let sessions = self.sessions.clone();
        let pick = self.rng.usize(..sessions.len().max(1));
        let Some(actor) = self.any().filter(|actor| !actor.resumes) else { return };
        let mine =
            sessions.iter().filter(|(id, session)| session.user == actor.user && Some(*id) != actor.session.as_ref());
        let Some((id, session)) = mine.cycle().nth(pick) else { return };
        actor.client.send("resume", json!({"session_id": id, "token": session.token, "cursors": {}}));
        actor.resumes = true;
    }

    fn withdraw(&mut self) {
        let room = self.rng.usize(..ROOMS);
        let permissions = [format!("project:{room}:read").into()].into();
        let withdraw = Withdraw { permissions, disconnect: false, reason: "".into() };
        let mut answers = Vec::new();
        let mut ask = |shard: usize, request: &dyn Fn(Withdraw, _) -> Request| {
            let (responder, answer) = pending();
            self.node.request(shard, request(withdraw.clone(), responder));
            answers.push(answer);
        };
        let shards = self.node.shards();
        let whom = match self.rng.u8(..3) {
            0 if !self.actors.is_empty() => {
                let who = self.rng.usize(..self.actors.len());
                let client_id = self.actors[who].client_id.clone();
                let home = home_of(self.node.hasher.hash(client_id.as_str()), shards as u16);
                ask(home.0.into(), &|withdraw, responder| Request::Client {
                    client_id: client_id.as_str().into(),
                    request: ClientRequest::Withdraw { withdraw, responder },
                });
                Whom::Client(client_id[1..].parse().expect("a number"))
            }
            1 if !self.sessions.is_empty() => {
                let id = self.sessions.keys().nth(self.rng.usize(..self.sessions.len())).expect("one").clone();
                let name = self.node.hasher.room(&format!("session:{id}"));
                let home = name.home(shards as u16);
                ask(home.0.into(), &|withdraw, responder| Request::WithdrawFromSession {
                    room: name.clone(),
                    withdraw,
                    responder,
                });
                Whom::Session(id)
            }
            _ => {
                let user = self.rng.usize(..USERS.len());
                for shard in 0..shards {
                    let user_id = USERS[user];
                    ask(shard, &|withdraw, responder| Request::WithdrawFromUser {
                        user_id: user_id.into(),
                        withdraw,
                        responder,
                    });
                }
                Whom::User(user)
            }
        };
        self.asked.push(Asked { whom, room, answers });
    }

    /// Waits until nothing happens any more, and takes in what was told.
    fn rest(&mut self) {
        self.node.settle();
        self.root.poll();
        let mut told = Vec::new();
        for actor in &mut self.actors {
            actor.client.poll();
            for message in &actor.client.messages[actor.seen..] {
                let data = &message["data"];
                let (session, token) = match message["type"].as_str() {
                    Some("connection_established") => (&data["session_id"], &data["resume"]["token"]),
                    Some("resumed") => (&data["session_id"], &data["resume"]["token"]),
                    _ => continue,
                };
                let text = |value: &Value| value.as_str().expect("text").to_owned();
                let (id, token) = (text(session), text(token));
                if let Some(former) = actor.session.replace(id.clone()).filter(|former| *former != id) {
                    // It has ended with that; one of its name is a new one.
                    self.sessions.remove(&former);
                }
                told.push((id, actor.user, token));
            }
            actor.seen = actor.client.messages.len();
            if actor.client.close.is_some()
                && let Some(id) = actor.session.as_ref().filter(|_| actor.resumes)
            {
                // Taken over while it took another one up: its own may have ended, which it is not told.
                self.sessions.remove(id);
            }
            actor.resumes = false;
            assert!(actor.client.close.is_none() || actor.client.close.as_ref().is_some_and(|close| close.0 == 4409));
        }
        for (id, user, token) in told {
            let fresh = || Session { user, token: String::new(), withdrawn: BTreeSet::new(), is_new: true };
            self.sessions.entry(id).or_insert_with(fresh).token = token;
        }
        self.actors.retain(|actor| actor.client.close.is_none() && actor.session.is_some());
        // One whose name somebody holds who came by it later is another one.
        let held: BTreeSet<_> = self.actors.iter().filter_map(|actor| actor.session.clone()).collect();
        assert_eq!(held.len(), self.actors.len(), "two hold one session");
    }

    /// What was withdrawn from whom, as far as it can be known.
    fn settle_asked(&mut self) {
        for Asked { whom, room, answers } in std::mem::take(&mut self.asked) {
            let outcomes: Vec<Result<Withdrew, HubError>> =
                answers.into_iter().map(|mut answer| answer.close().expect("answered at rest")).collect();
            let is_sound = |outcome: &Result<Withdrew, HubError>| {
                outcome.as_ref().err().is_none_or(|error| error.code == ErrorCode::NotFound)
            };
            assert!(outcomes.iter().all(is_sound), "{outcomes:?}");
            if outcomes.iter().any(Result::is_err) {
                continue;
            }
            match whom {
                Whom::Client(number) => {
                    let client_id = format!("c{number}");
                    let actor = self.actors.iter().find(|actor| actor.client_id == client_id);
                    if let Some(id) = actor.and_then(|actor| actor.session.as_ref())
                        && let Some(session) = self.sessions.get_mut(id)
                    {
                        session.withdrawn.insert(room);
                    }
                }
                Whom::Session(id) => {
                    // One of that name may have ended, and another one begun.
                    if let Some(session) = self.sessions.get_mut(&id).filter(|session| !session.is_new) {
                        session.withdrawn.insert(room);
                    }
                }
                Whom::User(user) => {
                    // One that came about in the same moment may not have been seen.
                    let seen = |session: &&mut Session| session.user == user && !session.is_new;
                    for session in self.sessions.values_mut().filter(seen) {
                        session.withdrawn.insert(room);
                    }
                }
            }
        }
        self.sessions.values_mut().for_each(|session| session.is_new = false);
    }

    fn check(&mut self) {
        self.numbers += 1;
        let number = self.numbers;
        let mut asked = Vec::new();
        for actor in &mut self.actors {
            let session = self.sessions.get(actor.session.as_ref().expect("told")).expect("known").clone();
            asked.push((actor.client.send("rooms", json!({})), session.withdrawn));
        }
        for place in 0..ROOMS {
            self.root.send("publish", json!({"room": room(place), "type": "k", "data": {"number": number}}));
        }
        self.rest();
        let attempts: Vec<Vec<(usize, u64)>> = self
            .actors
            .iter_mut()
            .zip(&asked)
            .map(|(actor, (_, withdrawn))| {
                let subscribe = |place: &usize| (*place, actor.client.send("subscribe", json!({"room": room(*place)})));
                withdrawn.iter().map(subscribe).collect()
            })
            .collect();
        self.rest();
        for ((actor, (id, withdrawn)), attempts) in self.actors.iter().zip(&asked).zip(attempts) {
            let rooms = &actor.client.answer(*id).expect("answered")["data"]["rooms"];
            let rooms: Vec<&str> = rooms.as_array().expect("rooms").iter().filter_map(Value::as_str).collect();
            for (place, attempt) in attempts {
                let answer = actor.client.answer(attempt).expect("answered");
                if actor.is_renewed {
                    continue;
                }
                let name = room(place);
                assert!(!rooms.contains(&name.as_str()), "{} of {:?} is in {name}", actor.client_id, actor.session);
                assert_eq!(answer["data"]["code"], "forbidden", "{} of {:?}: {answer}", actor.client_id, actor.session);
                let got = |message: &&Value| message["room"] == name && message["data"]["number"] == number;
                assert_eq!(actor.client.messages.iter().find(got), None, "{withdrawn:?}");
            }
            let got = |name: &str| {
                actor.client.messages.iter().any(|one| one["room"] == name && one["data"]["number"] == number)
            };
            for name in rooms.iter().filter(|name| name.starts_with("project:")) {
                assert!(got(name), "{} is in {name} and did not get its event", actor.client_id);
            }
        }
    }
}

fn room(number: usize) -> String {
    format!("project:{number}")
}

fn user_token(config: &Config, user: usize, issued_s: u64) -> String {
    let permissions = ["websocket:connect", "websocket:subscribe", "project:*:read"];
    token(config, USERS[user], issued_s, &permissions)
}

fn token(config: &Config, user_id: &str, issued_s: u64, permissions: &[&str]) -> String {
    let permissions = permissions.iter().map(|&one| one.to_owned()).collect();
    let (sub, iat, exp) = (user_id.to_owned(), Some(issued_s), Some(5_000_000_000));
    let claims = Claims { sub, permissions, iat, exp, ..Claims::default() };
    mint(&config.auth.secret[0], config.auth.algorithm, &claims).expect("signs")
}
