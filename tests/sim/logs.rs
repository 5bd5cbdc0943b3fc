//! Logs, slow readers and sessions against a naive reference: small logs, small outboxes, readers that stop for a while,
//! subscribe from anywhere in the log, vanish, and are taken up by a connection to another shard. Some rooms are urgent,
//! and cease to be or become it while events wait. Each speaks one of the forms of the protocol.
//!
//! A reader has one number per room: the last event that it was given, or was told that it won't get. Whatever it is told
//! has to follow on that without a hole, but for events that it did not ask for.
//!
//! `RINGHUB_SEEDS=10000` runs more seeds; `RINGHUB_SEED=17` runs one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use fastrand::Rng;
use ringhub::config::Config;
use ringhub::hub::message::{Publish, ReplyTo};
use ringhub::ring::sim::Faults;
use ringhub::shard::Settings;
use ringhub::shard::request::Request;
use serde_json::{Value, json};

use crate::client::{Client, SUBPROTOCOLS};
use crate::model::for_each_seed;
use crate::node::{Node, config};

const SEEDS: u64 = 200;
const ROOMS: [&str; 4] = ["project:0", "project:1", "quote:0", "quote:1"];
const STEPS: usize = 300;
const ACTORS_MAX: usize = 12;

#[test]
fn a_reader_is_given_every_event_or_told_exactly_which_it_is_not() {
    for_each_seed(SEEDS, |seed| Run::new(seed).run());
}

/// What an event was when it was published.
#[derive(Debug, Clone, PartialEq)]
struct Published {
    kind: String,
    number: u64,
    /// Who must not get it.
    exclude: Option<usize>,
}

/// By room and number, as far as publishers were told.
type Truth = BTreeMap<(String, u64), Published>;

/// Where a reader wants to begin.
#[derive(Debug, Clone)]
enum Begin {
    /// With what comes.
    Now,
    /// After that number.
    After(u64),
    /// With the newest ones.
    Last(u64),
    /// With all there is: its number is of another life of the log.
    Elsewhere,
}

/// A subscribe, or one room of a resume, that was not answered yet.
#[derive(Debug, Clone)]
struct Asked {
    /// How many messages the client had been told.
    at: usize,
    begin: Begin,
    kinds: Vec<String>,
}

/// A membership, from the answer to its `subscribe` on.
#[derive(Debug, Clone)]
struct Membership {
    kinds: Vec<String>,
    /// The last event that it was given, or was told that it won't get.
    cursor: u64,
}

struct Actor {
    client: Client,
    /// Messages looked at.
    seen: usize,
    session: String,
    token: String,
    /// By command; all of its rooms are answered together.
    subscribes: BTreeMap<u64, BTreeMap<String, Asked>>,
    unsubscribes: BTreeMap<u64, String>,
    publishes: BTreeMap<u64, (String, Published)>,
    histories: BTreeMap<u64, (String, u64, usize)>,
    /// Events of rooms whose answer is still to come.
    early: Vec<Value>,
    rooms: BTreeMap<String, Membership>,
    left: bool,
    /// Which actor took up its session.
    succeeded: bool,
}

/// Events that a reader was not given though later ones were: they must not have been for it.
#[derive(Debug)]
struct Skipped {
    who: usize,
    /// How many messages it had been told.
    at: usize,
    room: String,
    from: u64,
    to: u64,
    kinds: Vec<String>,
}

/// How many events were said to be replayed.
#[derive(Debug)]
struct Replayed {
    range: Skipped,
    count: u64,
}

struct Run {
    rng: Rng,
    node: Node,
    config: Config,
    events_max: u64,
    actors: Vec<Actor>,
    rooms: Vec<String>,
    truth: Arc<Mutex<Truth>>,
    /// Events that someone got: who, which, its type and data.
    got: Vec<(usize, String, u64, String, u64)>,
    skipped: Vec<Skipped>,
    replayed: Vec<Replayed>,
    next_number: u64,
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut rng = Rng::with_seed(seed);
        let mut config = config();
        config.history.events_max = rng.u32(5..=30);
        config.limits.outbox_bytes_max = rng.usize(4096..=16384);
        config.shards.turn_deliveries_max = rng.u32(1..8);
        let events_max = u64::from(config.history.events_max);
        let faults = if rng.u8(..4) == 0 { Faults::none() } else { Faults::rough() };
        draw_urgent(&mut rng, &mut config);
        let node = Node::new(seed, rng.u16(1..=4), faults, config.clone());
        let rooms: Vec<String> = ROOMS.map(str::to_owned).to_vec();
        Run {
            rng,
            node,
            config,
            events_max,
            actors: Vec::new(),
            rooms,
            truth: Arc::default(),
            got: Vec::new(),
            skipped: Vec::new(),
            replayed: Vec::new(),
            next_number: 0,
        }
    }

    fn run(mut self) {
        // A room that had an event lives on, so that each has one epoch.
        for room in self.rooms.clone() {
            self.publish(&room);
        }
        self.node.settle();
        for _ in 0..STEPS {
            match self.rng.u8(..20) {
                0 if self.actors.len() < ACTORS_MAX => {
                    self.connect();
                }
                0..=5 => {
                    let room = self.room();
                    (0..self.rng.u8(1..6)).for_each(|_| self.publish(&room));
                }
                6..=12 => self.act(),
                13..=15 => self.stop_or_go_on(),
                16 => self.vanish(),
                17 if self.rng.u8(..8) == 0 => self.reload(),
                _ => {}
            }
            for _ in 0..self.rng.usize(0..5) {
                let shard = self.rng.usize(..self.node.shards());
                self.node.turn_of(shard);
            }
            self.look();
        }
        for actor in &self.actors {
            actor.client.link.set_read_budget(usize::MAX);
        }
        self.node.settle();
        self.look();
        self.check();
        for actor in &self.actors {
            actor.client.link.close();
        }
        self.node.assert_empty();
    }

    /// Each shard hears of it when it gets to it.
    fn reload(&mut self) {
        draw_urgent(&mut self.rng, &mut self.config);
        let settings = Arc::new(Settings::new(self.config.clone()).expect("sound settings"));
        for shard in 0..self.node.shards() {
            self.node.request(shard, Request::Reload(settings.clone()));
        }
    }

    fn room(&mut self) -> String {
        let place = self.rng.usize(..self.rooms.len());
        self.rooms[place].clone()
    }

    fn next_event(&mut self, exclude: Option<usize>) -> (Published, Value) {
        self.next_number += 1;
        let number = self.next_number;
        let kind = if number.is_multiple_of(3) { "third" } else { "other" };
        let filling = "x".repeat(self.rng.usize(..1500));
        (Published { kind: kind.to_owned(), number, exclude }, json!({"number": number, "filling": filling}))
    }

    fn publish(&mut self, room: &str) {
        let (event, data) = self.next_event(None);
        let name = self.node.hasher.room(room);
        let home = usize::from(name.home(self.node.shards() as u16).0);
        let (truth, room, kind) = (self.truth.clone(), room.to_owned(), event.kind.clone());
        let reply = ReplyTo::Handle(Box::new(move |outcome| {
            let seq = outcome.expect("published").seq;
            let former = truth.lock().expect("one thread").insert((room, seq), event);
            assert_eq!(former, None, "a number was given twice");
        }));
        let data = Bytes::from(data.to_string());
        let publish =
            Publish { room: name, kind: kind.as_str().into(), data, key: None, exclude: None, received_us: 0, reply };
        self.node.request(home, Request::Publish(Box::new(publish)));
    }

    fn connect(&mut self) -> usize {
        let shard = self.rng.usize(..self.node.shards());
        let subprotocol = self.rng.choice(SUBPROTOCOLS).expect("some");
        let client = Client::connect_as(&self.node, shard, "/ws", "", subprotocol);
        self.actors.push(Actor {
            client,
            seen: 0,
            session: String::new(),
            token: String::new(),
            subscribes: BTreeMap::new(),
            unsubscribes: BTreeMap::new(),
            publishes: BTreeMap::new(),
            histories: BTreeMap::new(),
            early: Vec::new(),
            rooms: BTreeMap::new(),
            left: false,
            succeeded: false,
        });
        self.actors.len() - 1
    }

    fn present(&mut self) -> Option<usize> {
        let present: Vec<usize> = (0..self.actors.len()).filter(|&one| !self.actors[one].left).collect();
        self.rng.choice(present)
    }

    fn stop_or_go_on(&mut self) {
        let Some(who) = self.present() else { return };
        let bytes = match self.rng.u8(..4) {
            0 | 1 => 0,
            2 => self.rng.usize(..20_000),
            _ => usize::MAX,
        };
        self.actors[who].client.link.set_read_budget(bytes);
    }

    /// One command of one client. While it waits to hear of its rooms, it asks for nothing else about rooms.
    fn act(&mut self) {
        let Some(who) = self.present() else { return };
        let is_settled = self.actors[who].subscribes.is_empty() && self.actors[who].unsubscribes.is_empty();
        match self.rng.u8(..10) {
            0..=3 if is_settled => self.subscribe(who),
            4 if is_settled => self.subscribe_list(who),
            5 if is_settled => self.unsubscribe(who),
            6 => self.history(who),
            _ => self.publish_unheard(who),
        }
    }

    /// Somewhere in the log, or beyond one of its ends.
    fn begin(&mut self, who: usize, room: &str) -> (Begin, Option<Value>) {
        let last = self.last(room);
        let cursor = self.actors[who].rooms.get(room).map(|membership| membership.cursor);
        match self.rng.u8(..8) {
            0 => (Begin::Elsewhere, Some(json!({"seq": 1, "epoch": "0123456789abcdef"}))),
            1 => (Begin::Elsewhere, Some(json!({"seq": last + 1_000_000}))),
            2 => {
                let count = self.rng.u64(0..2 * self.events_max);
                (Begin::Last(count), Some(json!({"last": count})))
            }
            3..=5 => {
                // What it has been told may be more than publishers know.
                let seq = match cursor {
                    Some(cursor) if self.rng.bool() => cursor,
                    _ => last.saturating_sub(self.rng.u64(0..2 * self.events_max)),
                };
                (Begin::After(seq), Some(json!({"seq": seq})))
            }
            _ => (Begin::Now, None),
        }
    }

    /// The last number that publishers were told.
    fn last(&self, room: &str) -> u64 {
        let truth = self.truth.lock().expect("one thread");
        let of_room = truth.range((room.to_owned(), 0)..=(room.to_owned(), u64::MAX));
        of_room.last().map_or(0, |((_, seq), _)| *seq)
    }

    fn kinds(&mut self, who: usize, room: &str, begin: &Begin) -> Vec<String> {
        // What a member has not got yet is chosen by what it wants from now on, unless it says where to begin.
        if let (Begin::Now, Some(membership)) = (begin, self.actors[who].rooms.get(room)) {
            return membership.kinds.clone();
        }
        if self.rng.u8(..3) == 0 { vec!["third".to_owned()] } else { Vec::new() }
    }

    fn subscribe(&mut self, who: usize) {
        let room = self.room();
        let (begin, since) = self.begin(who, &room);
        let kinds = self.kinds(who, &room, &begin);
        let mut data = json!({"room": room, "since": since});
        if !kinds.is_empty() {
            data["types"] = json!(kinds);
        }
        let actor = &mut self.actors[who];
        let id = actor.client.send("subscribe", data);
        actor.subscribes.insert(id, BTreeMap::from([(room, Asked { at: actor.seen, begin, kinds })]));
    }

    fn subscribe_list(&mut self, who: usize) {
        let at = self.actors[who].seen;
        let count = self.rng.u64(0..2 * self.events_max);
        let asked =
            self.rooms.iter().map(|room| (room.clone(), Asked { at, begin: Begin::Last(count), kinds: Vec::new() }));
        let asked = asked.collect();
        let actor = &mut self.actors[who];
        let id = actor.client.send("subscribe", json!({"rooms": self.rooms, "since": {"last": count}}));
        actor.subscribes.insert(id, asked);
    }

    fn unsubscribe(&mut self, who: usize) {
        let room = self.room();
        let actor = &mut self.actors[who];
        let id = actor.client.send("unsubscribe", json!({"room": room}));
        actor.unsubscribes.insert(id, room);
    }

    fn publish_unheard(&mut self, who: usize) {
        let room = self.room();
        let (event, data) = self.next_event(Some(who));
        let data = json!({"room": room, "type": event.kind, "data": data, "echo": false});
        let actor = &mut self.actors[who];
        let id = actor.client.send("publish", data);
        actor.publishes.insert(id, (room, event));
    }

    fn history(&mut self, who: usize) {
        let room = self.room();
        let since = self.last(&room).saturating_sub(self.rng.u64(0..2 * self.events_max));
        let limit = self.rng.usize(1..40);
        let actor = &mut self.actors[who];
        let id = actor.client.send("history", json!({"room": room, "since": {"seq": since}, "limit": limit}));
        actor.histories.insert(id, (room, since, limit));
    }

    /// One client vanishes, or seems to, and comes back on another connection.
    fn vanish(&mut self) {
        let Some(who) = self.present() else { return };
        let actor = &mut self.actors[who];
        if !actor.subscribes.is_empty() || !actor.unsubscribes.is_empty() || actor.token.is_empty() {
            return;
        }
        actor.left = true;
        actor.succeeded = true;
        let (session, token, rooms) = (actor.session.clone(), actor.token.clone(), actor.rooms.clone());
        match self.rng.u8(..4) {
            0 => actor.client.link.close(),
            1 => actor.client.link.finish(),
            2 => actor.client.link.reset(),
            // Its old connection is half dead: it is taken over.
            _ => actor.client.link.set_read_budget(0),
        }
        if self.rng.u8(..5) == 0 {
            return;
        }
        for _ in 0..self.rng.usize(0..10) {
            let shard = self.rng.usize(..self.node.shards());
            self.node.turn_of(shard);
        }
        let next = self.connect();
        let mut cursors = serde_json::Map::new();
        let mut asked = BTreeMap::new();
        for (room, Membership { kinds, cursor }) in rooms {
            cursors.insert(room.clone(), json!({"seq": cursor}));
            asked.insert(room, Asked { at: 0, begin: Begin::After(cursor), kinds });
        }
        let actor = &mut self.actors[next];
        let id = actor.client.send("resume", json!({"session_id": session, "token": token, "cursors": cursors}));
        actor.subscribes.insert(id, asked);
    }

    /// Reads what everybody was told.
    fn look(&mut self) {
        for who in 0..self.actors.len() {
            self.actors[who].client.poll();
            if self.actors[who].left {
                continue;
            }
            let close = &self.actors[who].client.close;
            assert_eq!(*close, None, "client {who} is closed");
            while let Some(message) = self.actors[who].client.messages.get(self.actors[who].seen).cloned() {
                self.actors[who].seen += 1;
                self.told(who, &message);
            }
        }
    }

    fn told(&mut self, who: usize, message: &Value) {
        let kind = message["type"].as_str().unwrap_or_default();
        let id = message["ref"].as_u64();
        let data = &message["data"];
        let actor = &mut self.actors[who];
        match (kind, id) {
            ("connection_established", _) => {
                actor.session = data["session_id"].as_str().expect("an id").to_owned();
                actor.token = data["resume"]["token"].as_str().expect("a token").to_owned();
            }
            ("subscribed" | "resumed", Some(id)) => {
                let asked = actor.subscribes.remove(&id).expect("a subscribe");
                if kind == "resumed" {
                    actor.session = data["session_id"].as_str().expect("an id").to_owned();
                    actor.token = data["resume"]["token"].as_str().expect("a token").to_owned();
                }
                let results = data["results"].as_array().cloned().unwrap_or_else(|| vec![data.clone()]);
                let mut answered = BTreeSet::new();
                for result in results {
                    let room = result["room"].as_str().expect("a room").to_owned();
                    let Some(asked) = asked.get(&room) else {
                        assert!(!self.rooms.contains(&room), "client {who} is put into {room}: {message}");
                        continue;
                    };
                    self.subscribed(who, &room, asked, &result);
                    answered.insert(room);
                }
                assert!(asked.keys().all(|room| answered.contains(room)), "{asked:?} is answered by {message}");
                for early in std::mem::take(&mut self.actors[who].early) {
                    self.followed(who, &early);
                }
            }
            ("unsubscribed", Some(id)) => {
                let room = actor.unsubscribes.remove(&id).expect("an unsubscribe");
                actor.rooms.remove(&room);
            }
            ("published", Some(id)) => {
                let (room, event) = actor.publishes.remove(&id).expect("a publish");
                let seq = data["seq"].as_u64().expect("a number");
                let former = self.truth.lock().expect("one thread").insert((room, seq), event);
                assert_eq!(former, None, "a number was given twice");
            }
            ("history", Some(id)) => {
                let (room, since, limit) = actor.histories.remove(&id).expect("a history");
                self.told_history(&room, since, limit, data);
            }
            ("error", Some(id)) if actor.histories.remove(&id).is_some() => {
                assert_eq!(data["code"], "unavailable", "{message}");
            }
            ("third" | "other" | "gap", None) => self.followed(who, message),
            _ => panic!("client {who} is told {message}"),
        }
    }

    fn subscribed(&mut self, who: usize, room: &str, asked: &Asked, result: &Value) {
        let number = |name: &str| result[name].as_u64().unwrap_or_else(|| panic!("{name} in {result}"));
        let (seq, replayed) = (number("seq"), number("replayed"));
        let former = self.actors[who].rooms.remove(room);
        let oldest = seq.saturating_sub(self.events_max);
        let after = match asked.begin {
            Begin::Now => {
                assert_eq!((replayed, number("missed")), (0, 0), "{result}");
                let cursor = former.map_or(seq, |former| former.cursor);
                let membership = Membership { kinds: asked.kinds.clone(), cursor };
                self.actors[who].rooms.insert(room.to_owned(), membership);
                return;
            }
            Begin::After(after) if after <= seq => Some(after),
            Begin::Last(count) => Some(seq.saturating_sub(count)),
            Begin::After(_) | Begin::Elsewhere => None,
        };
        let missed = after.map(|after| oldest.saturating_sub(after));
        assert_eq!(result["missed"].as_u64(), missed, "client {who}, {asked:?}: {result}");
        assert_eq!(result["recovered"], missed == Some(0), "client {who}, {asked:?}: {result}");
        let cursor = after.unwrap_or(0).max(oldest);
        let kinds = asked.kinds.clone();
        let range =
            Skipped { who, at: asked.at, room: room.to_owned(), from: cursor + 1, to: seq, kinds: kinds.clone() };
        self.replayed.push(Replayed { range, count: replayed });
        // Live events come as soon as it is a member where there is nothing to come before them, if need be ahead of a list's
        // answer: then what it had not been given before counts no more.
        let since = self.skipped.iter_mut().filter(|one| one.at >= asked.at && one.who == who && one.room == room);
        since.for_each(|one| one.from = one.from.max(seq + 1));
        let live = former.map_or(0, |former| former.cursor);
        let cursor = if replayed == 0 { seq.max(live) } else { cursor };
        self.actors[who].rooms.insert(room.to_owned(), Membership { kinds, cursor });
    }

    /// An event or a gap.
    fn followed(&mut self, who: usize, message: &Value) {
        let actor = &mut self.actors[who];
        let is_gap = message["type"] == "gap";
        let about = if is_gap { &message["data"] } else { message };
        let room = about["room"].as_str().expect("a room").to_owned();
        let is_asked = actor.subscribes.values().any(|rooms| rooms.contains_key(&room));
        let Some(membership) = actor.rooms.get_mut(&room) else {
            assert!(is_asked, "client {who} is no member of {room}: {message}");
            actor.early.push(message.clone());
            return;
        };
        let first = if is_gap { &about["from_seq"] } else { &about["seq"] };
        let last = if is_gap { &about["to_seq"] } else { first };
        let (first, last) = (first.as_u64().expect("a number"), last.as_u64().expect("a number"));
        let cursor = std::mem::replace(&mut membership.cursor, last);
        assert!(first > cursor && last >= first, "client {who}, {room}: after {cursor} comes {message}");
        let kinds = membership.kinds.clone();
        if !is_gap {
            let kind = message["type"].as_str().expect("a type").to_owned();
            // Live events may go ahead of the answer to a list, and are chosen by what it asks for.
            assert!(is_asked || kinds.is_empty() || kinds.contains(&kind), "client {who} did not want {message}");
            self.got.push((who, room.clone(), first, kind, message["data"]["number"].as_u64().expect("a number")));
        }
        if first > cursor + 1 {
            self.skipped.push(Skipped { who, at: actor.seen, room, from: cursor + 1, to: first - 1, kinds });
        }
    }

    fn told_history(&self, room: &str, since: u64, limit: usize, data: &Value) {
        let seq = data["seq"].as_u64().expect("a number");
        let first = since.max(seq.saturating_sub(self.events_max)) + 1;
        let wanted: Vec<u64> = (first..=seq).take(limit).collect();
        let events = data["events"].as_array().expect("events");
        let got: Vec<u64> = events.iter().map(|event| event["seq"].as_u64().expect("a number")).collect();
        assert_eq!(got, wanted, "{room} after {since}, at most {limit}");
        assert!(events.iter().all(|event| event["room"] == room));
        assert_eq!(data["more"], (first..=seq).count() > limit);
    }

    /// To be called at rest.
    fn check(&mut self) {
        let truth = std::mem::take(&mut *self.truth.lock().expect("one thread"));
        for (who, room, seq, kind, number) in &self.got {
            let Some(event) = truth.get(&(room.clone(), *seq)) else { continue };
            assert_eq!((&event.kind, event.number), (kind, *number), "client {who}, {room}, event {seq}");
            assert_ne!(event.exclude, Some(*who), "client {who} got its own event {seq} of {room}");
        }
        for who in 0..self.actors.len() {
            let actor = &self.actors[who];
            if actor.left {
                continue;
            }
            assert_eq!(actor.client.status, Some(101));
            let unanswered = (&actor.subscribes, &actor.unsubscribes, &actor.publishes, &actor.histories);
            let count = unanswered.0.len() + unanswered.1.len() + unanswered.2.len() + unanswered.3.len();
            assert_eq!(count, 0, "client {who} was not answered: {unanswered:?}");
            for (room, Membership { kinds, cursor }) in &actor.rooms {
                let last = truth.range((room.clone(), 0)..=(room.clone(), u64::MAX)).last();
                let (room, kinds) = (room.clone(), kinds.clone());
                let to = last.map_or(0, |((_, seq), _)| *seq);
                self.skipped.push(Skipped { who, at: actor.seen, room, from: cursor + 1, to, kinds });
            }
        }
        for skipped in &self.skipped {
            for (seq, event) in skipped.events(&truth) {
                let was_wanted = event.is_some_and(|event| skipped.wants(event));
                assert!(!was_wanted, "{seq} was wanted: {skipped:?}");
            }
        }
        for Replayed { range, count } in &self.replayed {
            if range.events(&truth).all(|(_, event)| event.is_some()) {
                let wanted = range.events(&truth).filter(|(_, event)| event.is_some_and(|event| range.wants(event)));
                assert_eq!(wanted.count() as u64, *count, "{range:?}");
            }
        }
    }
}

/// Which kinds are urgent: most of the time one of two is.
pub fn draw_urgent(rng: &mut Rng, config: &mut Config) {
    for kind in &mut config.kinds {
        kind.urgent = match kind.name.as_str() {
            "quote" => rng.u8(..4) > 0,
            "project" => rng.u8(..8) == 0,
            _ => false,
        };
    }
}

impl Skipped {
    fn events<'a>(&'a self, truth: &'a Truth) -> impl Iterator<Item = (u64, Option<&'a Published>)> + 'a {
        (self.from..=self.to).map(|seq| (seq, truth.get(&(self.room.clone(), seq))))
    }

    fn wants(&self, event: &Published) -> bool {
        (self.kinds.is_empty() || self.kinds.contains(&event.kind)) && event.exclude != Some(self.who)
    }
}
