//! Clients of Socket.IO beside native ones in the same rooms: over WebSockets, over polls, and going from the one to the other
//! through whatever shard; in several namespaces that they leave and enter again; readers that stop for a while, are cut off
//! anywhere and take up their session with another connection.
//!
//! In each of its namespaces a client has one number per room: the last event that it was given, or was told that it won't
//! get. Whatever comes there has to follow on that without a hole, but for events that it did not ask for, and for those
//! that its hub had handed over for a connection which broke before they arrived.
//!
//! `RINGHUB_SEEDS=10000` runs more seeds; `RINGHUB_SEED=17` runs one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use ringhub::config::{Config, Policy};
use ringhub::hub::message::{ClientRequest, Publish, ReplyTo};
use ringhub::hub::name::home_of;
use ringhub::hub::reply::pending;
use ringhub::ring::sim::{Faults, SimClient};
use ringhub::shard::Settings;
use ringhub::shard::request::Request;
use serde_json::{Value, json};

use crate::client::{Client, frame};
use crate::engine::{EngineClient, Packet};
use crate::logs::draw_urgent;
use crate::model::for_each_seed;
use crate::node::{Node, config};

const SEEDS: u64 = 100;
const NAMESPACES: [&str; 3] = ["/", "/ws", "/third"];
const ROOMS: [&str; 4] = ["project:0", "project:1", "quote:0", "quote:1"];
/// Rooms that everybody is in without asking.
const EVERYBODYS: [&str; 2] = ["global", "user:anonymous"];
const STEPS: usize = 300;
const ACTORS_MAX: usize = 8;

/// What an event was when it was published.
#[derive(Debug, Clone, PartialEq)]
struct Published {
    kind: String,
    number: u64,
    /// Which actor must not get it, over which of its connections.
    exclude: Option<(usize, u32)>,
}

/// By room and number, as far as publishers were told.
type Truth = BTreeMap<(String, u64), Published>;

/// Where a subscription begins.
#[derive(Debug, Clone, Copy)]
enum Begin {
    Now,
    After(u64),
    Last(u64),
}

/// What a client waits for an answer to.
#[derive(Debug)]
enum Asked {
    Subscribe(BTreeMap<String, Begin>),
    Unsubscribe(String),
    Publish(String, Published),
    Ping(Value),
}

/// A room that a namespace has subscribed to.
#[derive(Debug, Clone, Default)]
struct Membership {
    /// The last event that it was given, or was told that it won't get; none where that isn't known.
    cursor: Option<u64>,
    /// The next event may be one that was there before.
    may_be_older: bool,
    /// It was there over the connection before, and is to be there again.
    is_owed: bool,
    /// It may be that it is none: its connection broke while that was being changed.
    is_doubtful: bool,
    /// What the hub had handed over for a connection that broke.
    lost: BTreeSet<u64>,
}

#[derive(Debug, Clone, Default, PartialEq)]
enum Place {
    #[default]
    Out,
    /// It has asked to be let in, naming that earlier session.
    Asked(Option<String>),
    In,
}

/// A client in one namespace.
#[derive(Debug, Default)]
struct Space {
    place: Place,
    pid: Option<String>,
    rooms: BTreeMap<String, Membership>,
    asked: BTreeMap<u64, Asked>,
    /// Events of rooms whose answer is still to come.
    early: Vec<Value>,
    /// It was in it before, over this connection.
    was_in: bool,
    /// So often it has asked for it though it was in it.
    again: u8,
}

struct Actor {
    client: EngineClient,
    /// How many connections it has had before.
    connection: u32,
    /// Packets looked at.
    seen: usize,
    spaces: BTreeMap<&'static str, Space>,
    /// What it wants of each room.
    kinds: BTreeMap<&'static str, Vec<String>>,
    next_id: u64,
    gone: bool,
    /// Its id, once it was let in.
    client_id: Option<String>,
    /// It may be closed.
    may_end: bool,
    /// The connection before this one, whose last words it has not read, and how many it has.
    former: Option<(EngineClient, usize)>,
}

/// Events that a client was not given though later ones were.
#[derive(Debug)]
struct Skipped {
    who: usize,
    namespace: String,
    room: String,
    from: u64,
    to: u64,
    lost: BTreeSet<u64>,
}

/// An event that a client was given.
#[derive(Debug)]
struct Got {
    who: usize,
    connection: u32,
    namespace: String,
    event: Value,
}

struct Run {
    rng: Rng,
    node: Node,
    config: Config,
    events_max: u64,
    closes_slow: bool,
    pings_soon: bool,
    actors: Vec<Actor>,
    /// Connections that were given up.
    former: Vec<EngineClient>,
    natives: Vec<Client>,
    truth: Arc<Mutex<Truth>>,
    got: Vec<Got>,
    skipped: Vec<Skipped>,
    next_number: u64,
}

/// The room and number of an event.
fn place_of(event: &Value) -> (String, u64) {
    (event["room"].as_str().expect("text").to_owned(), event["seq"].as_u64().expect("a number"))
}

/// A message without what only makes it long.
fn brief(message: &Value) -> Value {
    let mut brief = message.clone();
    if let Some(data) = brief["data"].as_object_mut() {
        data.remove("filling");
    }
    brief
}

#[test]
fn a_namespace_is_given_every_event_of_its_rooms_or_told_which_it_is_not_over_all_of_its_connections() {
    for_each_seed(SEEDS, |seed| Run::new(seed).run());
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut rng = Rng::with_seed(seed);
        let mut config = config();
        config.socketio.namespaces = NAMESPACES.map(str::to_owned).to_vec();
        config.history.events_max = rng.u32(5..=30);
        config.limits.outbox_bytes_max = rng.usize(4096..=16384);
        config.shards.turn_deliveries_max = rng.u32(1..8);
        config.history.age_s = 3600;
        // Who asks for no namespace is borne for as long as a run takes.
        config.socketio.connect_timeout_ms = 300_000;
        if rng.u8(..3) == 0 {
            config.limits.outbox_shard_bytes_max = rng.usize(10_000..60_000);
        }
        let pings_soon = rng.u8(..4) == 0;
        if pings_soon {
            config.socketio.ping_interval_ms = rng.u64(100..1000);
            config.socketio.ping_timeout_ms = rng.u64(100..1000);
        }
        let closes_slow = rng.u8(..4) == 0;
        if closes_slow {
            config
                .kinds
                .iter_mut()
                .filter(|kind| kind.name == "quote")
                .for_each(|kind| kind.policy = Policy::Disconnect);
        }
        let events_max = u64::from(config.history.events_max);
        let faults = if rng.u8(..4) == 0 { Faults::none() } else { Faults::rough() };
        draw_urgent(&mut rng, &mut config);
        let mut node = Node::new(seed, rng.u16(1..=4), faults, config.clone());
        let mut natives = vec![node.client(0, ""), node.client(node.shards() - 1, "")];
        for native in &mut natives {
            native.send("subscribe", json!({"rooms": ROOMS}));
        }
        node.settle();
        for native in &mut natives {
            native.poll();
            native.messages.clear();
        }
        Run {
            rng,
            node,
            config,
            events_max,
            closes_slow,
            pings_soon,
            actors: Vec::new(),
            former: Vec::new(),
            natives,
            truth: Arc::default(),
            got: Vec::new(),
            skipped: Vec::new(),
            next_number: 0,
        }
    }

    fn run(mut self) {
        // A room that had an event lives on, so that each has one epoch.
        self.publish_everywhere();
        self.node.settle();
        for _ in 0..STEPS {
            match self.rng.u8(..24) {
                0..=1 if self.actors.len() < ACTORS_MAX => self.arrive(),
                0..=4 => {
                    let room = self.room();
                    (0..self.rng.u8(1..6)).for_each(|_| self.publish(room));
                }
                5..=13 => self.act(),
                14..=16 => self.stop_or_go_on(),
                17 => self.probe(),
                18 => self.cut(),
                19..=20 => self.come_back(),
                22 => self.disturb(),
                21 => self.node.world.advance(Duration::from_millis(self.rng.u64(1..60))),
                _ => {}
            }
            for _ in 0..self.rng.usize(0..5) {
                let shard = self.rng.usize(..self.node.shards());
                self.node.turn_of(shard);
            }
            self.look();
        }
        self.check();
        self.end();
    }

    // ---- what happens ----

    fn room(&mut self) -> &'static str {
        let place = self.rng.usize(..ROOMS.len() + EVERYBODYS.len());
        ROOMS.into_iter().chain(EVERYBODYS).nth(place).expect("a room")
    }

    fn publish_everywhere(&mut self) {
        ROOMS.into_iter().chain(EVERYBODYS).for_each(|room| self.publish_as(room, "third"));
    }

    fn next_event(&mut self, kind: &str, exclude: Option<(usize, u32)>) -> (Published, Value) {
        self.next_number += 1;
        let number = self.next_number;
        let filling = "x".repeat(self.rng.usize(..1500));
        (Published { kind: kind.to_owned(), number, exclude }, json!({"number": number, "filling": filling}))
    }

    fn publish(&mut self, room: &str) {
        let kind = self.kind();
        self.publish_as(room, kind);
    }

    fn kind(&mut self) -> &'static str {
        if self.rng.u8(..3) == 0 { "third" } else { "other" }
    }

    fn publish_as(&mut self, room: &str, kind: &str) {
        let (event, data) = self.next_event(kind, None);
        let name = self.node.hasher.room(room);
        let home = usize::from(name.home(self.node.shards() as u16).0);
        let (truth, room) = (self.truth.clone(), room.to_owned());
        let reply = ReplyTo::Handle(Box::new(move |outcome| {
            let seq = outcome.expect("published").seq;
            let former = truth.lock().expect("one thread").insert((room, seq), event);
            assert_eq!(former, None, "a number was given twice");
        }));
        let data = Bytes::from(data.to_string());
        let publish = Publish { room: name, kind: kind.into(), data, key: None, exclude: None, received_us: 0, reply };
        self.node.request(home, Request::Publish(Box::new(publish)));
    }

    fn open(&mut self) -> EngineClient {
        let shard = self.rng.usize(..self.node.shards());
        match self.rng.bool() {
            true => EngineClient::poll_at(&self.node, shard, ""),
            false => EngineClient::connect(&self.node, shard, ""),
        }
    }

    fn arrive(&mut self) {
        let client = self.open();
        let mut kinds = BTreeMap::new();
        for room in ROOMS {
            let wanted = if self.rng.u8(..3) == 0 { vec!["third".to_owned()] } else { Vec::new() };
            kinds.insert(room, wanted);
        }
        self.actors.push(Actor {
            client,
            connection: 0,
            seen: 0,
            spaces: NAMESPACES.map(|name| (name, Space::default())).into(),
            kinds,
            next_id: 0,
            gone: false,
            client_id: None,
            may_end: false,
            former: None,
        });
        if self.rng.bool() {
            let namespace = self.namespace();
            self.enter(self.actors.len() - 1, namespace, None);
        }
    }

    fn namespace(&mut self) -> &'static str {
        NAMESPACES[self.rng.usize(..NAMESPACES.len())]
    }

    fn choose(&mut self, gone: bool) -> Option<usize> {
        let all: Vec<usize> = (0..self.actors.len()).filter(|&one| self.actors[one].gone == gone).collect();
        self.rng.choice(all)
    }

    fn enter(&mut self, who: usize, namespace: &'static str, pid: Option<String>) {
        let auth = match &pid {
            Some(pid) => json!({"pid": pid, "offset": "x"}),
            None => Value::Null,
        };
        let actor = &mut self.actors[who];
        actor.client.enter(&self.node, namespace, &auth);
        actor.spaces.entry(namespace).or_default().place = Place::Asked(pid);
    }

    /// As a library does that is told to connect twice.
    fn enter_again(&mut self, who: usize, namespace: &'static str) {
        let pid = self.actors[who].spaces[namespace].pid.clone();
        let auth = if self.rng.bool() { json!({"pid": pid}) } else { json!({}) };
        self.actors[who].client.enter(&self.node, namespace, &auth);
        self.space(who, namespace).again += 1;
    }

    fn leave(&mut self, who: usize, namespace: &'static str) {
        let actor = &mut self.actors[who];
        actor.client.leave(&self.node, namespace);
        actor.spaces.insert(namespace, Space { was_in: true, ..Space::default() });
    }

    /// Something in one namespace of a client. While it waits to hear of a room there, it asks for nothing else about rooms.
    fn act(&mut self) {
        let Some(who) = self.choose(false) else { return };
        let namespace = self.namespace();
        let space = &self.actors[who].spaces[namespace];
        let is_settled =
            !space.asked.values().any(|asked| matches!(asked, Asked::Subscribe(_) | Asked::Unsubscribe(_)));
        match (&space.place, self.rng.u8(..16)) {
            (Place::Out, 0..=5) => self.enter(who, namespace, None),
            (Place::In, 0..=5) if is_settled => self.subscribe(who, namespace),
            (Place::In, 6) if is_settled => self.subscribe_list(who, namespace),
            (Place::In, 7..=8) if is_settled => self.unsubscribe(who, namespace),
            (Place::In, 9) if space.again == 0 => self.leave(who, namespace),
            (Place::In, 12) if space.again == 0 => self.enter_again(who, namespace),
            (Place::In, 10) if space.again == 0 => {
                // Left and entered again in one breath, whatever is under way.
                self.leave(who, namespace);
                self.enter(who, namespace, None);
            }
            (Place::In, 11) => {
                let data = json!(self.rng.u32(..));
                self.ask(who, namespace, "ping", &data.clone(), Asked::Ping(data));
            }
            (Place::In, _) => self.publish_unheard(who, namespace),
            _ => {}
        }
    }

    fn ask(&mut self, who: usize, namespace: &'static str, name: &str, data: &Value, asked: Asked) {
        let actor = &mut self.actors[who];
        actor.next_id += 1;
        actor.client.emit(&self.node, namespace, Some(actor.next_id), name, data);
        actor.spaces.get_mut(namespace).expect("a namespace").asked.insert(actor.next_id, asked);
    }

    /// The last number that publishers were told.
    fn last(&self, room: &str) -> u64 {
        let truth = self.truth.lock().expect("one thread");
        truth.range((room.to_owned(), 0)..=(room.to_owned(), u64::MAX)).last().map_or(0, |((_, seq), _)| *seq)
    }

    /// Whether another namespace of the client has to do with a room: there is one place in it for all of them.
    fn is_shared(&self, who: usize, namespace: &str, room: &str) -> bool {
        self.actors[who].spaces.iter().filter(|(name, _)| **name != namespace).any(|(_, space)| {
            let is_asked = |asked: &Asked| match asked {
                Asked::Subscribe(rooms) => rooms.contains_key(room),
                Asked::Unsubscribe(of) => of == room,
                _ => false,
            };
            space.rooms.contains_key(room) || space.asked.values().any(is_asked)
        })
    }

    fn subscribe(&mut self, who: usize, namespace: &'static str) {
        let room = ROOMS[self.rng.usize(..ROOMS.len())];
        let mut data = json!({"room": room});
        let mut begin = Begin::Now;
        // What it has left may still be under way for it.
        if !self.is_shared(who, namespace, room) && self.rng.bool() {
            let last = self.last(room);
            let back = self.rng.u64(0..2 * self.events_max);
            (begin, data["since"]) = match self.rng.bool() {
                true => (Begin::Last(back), json!({"last": back})),
                false => (Begin::After(last.saturating_sub(back)), json!({"seq": last.saturating_sub(back)})),
            };
        }
        let kinds = &self.actors[who].kinds[room];
        if !kinds.is_empty() {
            data["types"] = json!(kinds);
        }
        self.ask(who, namespace, "subscribe", &data, Asked::Subscribe([(room.to_owned(), begin)].into()));
    }

    /// Rooms of which it wants everything.
    fn subscribe_list(&mut self, who: usize, namespace: &'static str) {
        let kinds = &self.actors[who].kinds;
        let rooms: Vec<&str> = ROOMS.into_iter().filter(|room| kinds[room].is_empty()).collect();
        if rooms.is_empty() {
            return;
        }
        let asked = rooms.iter().map(|room| ((*room).to_owned(), Begin::Now)).collect();
        self.ask(who, namespace, "subscribe", &json!({"rooms": rooms}), Asked::Subscribe(asked));
    }

    fn unsubscribe(&mut self, who: usize, namespace: &'static str) {
        let room = ROOMS[self.rng.usize(..ROOMS.len())];
        self.ask(who, namespace, "unsubscribe", &json!({"room": room}), Asked::Unsubscribe(room.to_owned()));
    }

    fn publish_unheard(&mut self, who: usize, namespace: &'static str) {
        let (room, kind) = (self.room(), self.kind());
        let (event, data) = self.next_event(kind, Some((who, self.actors[who].connection)));
        let data = json!({"room": room, "type": kind, "data": data, "echo": false});
        self.ask(who, namespace, "publish", &data, Asked::Publish(room.to_owned(), event));
    }

    fn stop_or_go_on(&mut self) {
        let Some(who) = self.choose(false) else { return };
        let bytes = match self.rng.u8(..4) {
            0 | 1 => 0,
            2 => self.rng.usize(..20_000),
            _ => usize::MAX,
        };
        let client = &mut self.actors[who].client;
        client.reads = bytes > 0;
        client.link().into_iter().for_each(|link| link.set_read_budget(bytes));
        if self.rng.u8(..4) == 0 {
            client.abandon_poll(&self.node);
        }
    }

    fn probe(&mut self) {
        let Some(who) = self.choose(false) else { return };
        let shard = self.rng.usize(..self.node.shards());
        let client = &mut self.actors[who].client;
        match client.probe_link() {
            None => client.probe(&self.node, shard),
            // It is given up, in one way or another.
            Some(link) if self.rng.bool() => {
                match self.rng.u8(..3) {
                    0 => link.reset(),
                    1 => link.close(),
                    _ => link.write(&frame(8, &1000u16.to_be_bytes())),
                }
                client.give_up_probe(&self.node);
            }
            Some(_) => {}
        }
    }

    /// A client does what it must not, or is sent away, or the hub has new settings.
    fn disturb(&mut self) {
        if self.rng.u8(..8) == 0 {
            return self.reload();
        }
        let Some(who) = self.choose(false) else { return };
        let id = self.actors[who].client_id.clone();
        let actor = &mut self.actors[who];
        match self.rng.u8(..6) {
            0 => actor.client.send(&self.node, "4no packet"),
            1 if actor.client.is_polling() => actor.client.poll_twice(&self.node),
            2 if id.is_some() => {
                let client_id: Box<str> = id.unwrap_or_default().into();
                let home = home_of(self.node.hasher.hash(&*client_id), self.node.shards() as u16);
                let (responder, _) = pending();
                let request = ClientRequest::Disconnect { code: 4500, reason: "an operator".into(), responder };
                self.node.request(usize::from(home.0), Request::Client { client_id, request });
            }
            _ => return,
        }
        actor.may_end = true;
    }

    /// Each shard hears of it when it gets to it.
    fn reload(&mut self) {
        draw_urgent(&mut self.rng, &mut self.config);
        let settings = Arc::new(Settings::new(self.config.clone()).expect("sound settings"));
        for shard in 0..self.node.shards() {
            self.node.request(shard, Request::Reload(settings.clone()));
        }
    }

    /// One client is cut off, or vanishes, perhaps in the midst of a packet.
    fn cut(&mut self) {
        let Some(who) = self.choose(false) else { return };
        let partial = frame(1, br#"42["ping",1]"#);
        let bytes = self.rng.usize(..partial.len());
        let way = self.rng.u8(..4);
        let actor = &mut self.actors[who];
        actor.gone = true;
        actor.client.reads = false;
        for link in actor.client.link().into_iter().chain(actor.client.probe_link()) {
            link.write(&partial[..bytes]);
            match way {
                0 => link.close(),
                1 => link.finish(),
                2 => link.reset(),
                // Half dead: another connection takes its session.
                _ => link.set_read_budget(0),
            }
        }
        actor.client.drop_poll();
    }

    fn come_back(&mut self) {
        if let Some(who) = self.choose(true) {
            self.come_back_as(who);
        }
    }

    fn come_back_as(&mut self, who: usize) {
        let client = self.open();
        let actor = &mut self.actors[who];
        let before = std::mem::replace(&mut actor.client, client);
        let before = (before, std::mem::take(&mut actor.seen));
        match actor.former.take() {
            // It never heard of that one, and the one before is still the last.
            Some(former) if before.0.packets.is_empty() => {
                actor.former = Some(former);
                self.former.push(before.0);
            }
            former => {
                self.former.extend(former.map(|(client, _)| client));
                actor.former = Some(before);
            }
        }
        actor.connection += 1;
        (actor.gone, actor.may_end, actor.client_id) = (false, false, None);
        let mut namespaces = NAMESPACES;
        self.rng.shuffle(&mut namespaces);
        for namespace in namespaces {
            let space = self.actors[who].spaces.get_mut(namespace).expect("a namespace");
            for asked in std::mem::take(&mut space.asked).into_values() {
                let rooms: Vec<String> = match asked {
                    Asked::Subscribe(rooms) => rooms.into_keys().collect(),
                    Asked::Unsubscribe(room) => vec![room],
                    _ => Vec::new(),
                };
                for room in rooms {
                    space.rooms.insert(room, Membership { is_doubtful: true, ..Membership::default() });
                }
            }
            space.early.clear();
            (space.was_in, space.again) = (false, 0);
            let pid = space.pid.clone().filter(|_| space.place == Place::In && self.rng.u8(..6) > 0);
            match pid {
                Some(pid) if self.rng.u8(..6) > 0 => self.enter(who, namespace, Some(pid)),
                _ => drop(self.actors[who].spaces.insert(namespace, Space::default())),
            }
        }
    }

    // ---- what clients are told ----

    fn look(&mut self) {
        self.natives.iter_mut().for_each(Client::poll);
        for who in 0..self.actors.len() {
            if self.actors[who].gone {
                continue;
            }
            self.actors[who].client.poll(&self.node);
            while let Some(packet) = self.actors[who].client.packets.get(self.actors[who].seen).cloned() {
                self.actors[who].seen += 1;
                self.told(who, &packet);
            }
            let actor = &mut self.actors[who];
            if let Some(reason) = &actor.client.closed {
                // Who reads nothing is not even told.
                let is_slow = self.closes_slow;
                let is_late = self.pings_soon;
                assert!(actor.may_end || is_slow || is_late, "client {who} is closed: {reason}");
                actor.gone = true;
            }
        }
    }

    fn told(&mut self, who: usize, packet: &Packet) {
        let namespace = packet.namespace.as_str();
        let actor = &mut self.actors[who];
        let space = actor.spaces.get_mut(namespace).expect("a namespace");
        match packet.kind {
            '0' => self.entered(who, namespace, &packet.payload),
            // What it has left it hears no more of.
            _ if space.place == Place::Out => {}
            // Of the visit before.
            '2' if matches!(space.place, Place::Asked(_)) && space.was_in => {}
            '2' => self.event(who, namespace, packet),
            '3' => {
                let id = packet.id.expect("an id");
                match space.asked.remove(&id) {
                    Some(asked) => self.answered(who, namespace, asked, packet.object()),
                    // It crossed the packet with which it left.
                    None => assert!(matches!(space.place, Place::Asked(_)), "client {who}: {id} is answered once more"),
                }
            }
            // An operator has sent it away.
            '1' if actor.may_end => {}
            _ => panic!("client {who} is told {packet:?}"),
        }
    }

    fn entered(&mut self, who: usize, namespace: &str, payload: &Value) {
        let pid = payload["pid"].as_str().map(str::to_owned);
        self.hear_out(who);
        let actor = &mut self.actors[who];
        actor.client_id = payload["sid"].as_str().map(str::to_owned);
        let space = actor.spaces.get_mut(namespace).expect("a namespace");
        let place = std::mem::replace(&mut space.place, Place::In);
        if place == Place::In && space.again > 0 {
            // It has missed nothing, and may be told so.
            space.again -= 1;
            space.pid = pid;
            return;
        }
        let Place::Asked(asked) = place else { panic!("client {who} is let into {namespace} without asking") };
        if asked.is_none() || asked != pid {
            space.rooms = EVERYBODYS.map(|room| (room.to_owned(), Membership::default())).into();
        }
        space.rooms.values_mut().for_each(|membership| membership.is_owed = asked.is_some() && asked == pid);
        space.pid = pid;
    }

    /// Reads what has come over the connection before, and what was under way on it.
    fn hear_out(&mut self, who: usize) {
        let Some((mut former, seen)) = self.actors[who].former.take() else { return };
        former.poll(&self.node);
        let connection = self.actors[who].connection - 1;
        let is_event = |packet: &&Packet| packet.kind == '2' && packet.object()["seq"].is_u64();
        let is_gap = |packet: &Packet| packet.kind == '2' && packet.object()["type"] == "gap";
        for packet in former.packets[seen..].iter().filter(|packet| is_event(packet) || is_gap(packet)) {
            let (namespace, message) = (packet.namespace.as_str(), packet.object());
            let about = if is_gap(packet) { &message["data"] } else { message };
            if self.actors[who].spaces[namespace].rooms.contains_key(about["room"].as_str().expect("text")) {
                self.followed(who, connection, namespace, message);
            }
        }
        let spaces = &mut self.actors[who].spaces;
        for packet in former.undelivered().iter().filter(|packet| is_event(packet) || is_gap(packet)) {
            let about = if is_gap(packet) { &packet.object()["data"] } else { packet.object() };
            let (first, last) = if is_gap(packet) { ("from_seq", "to_seq") } else { ("seq", "seq") };
            let number = |key: &str| about[key].as_u64().expect("a number");
            let Some(space) = spaces.get_mut(packet.namespace.as_str()) else { continue };
            if let Some(membership) = space.rooms.get_mut(about["room"].as_str().expect("text")) {
                membership.lost.extend(number(first)..=number(last));
            }
        }
        if former.has_polled {
            // It may have the last answer, or not: the hub can't know.
            let all = spaces.values_mut().flat_map(|space| space.rooms.values_mut());
            all.for_each(|membership| membership.may_be_older = true);
        }
        self.former.push(former);
    }

    fn event(&mut self, who: usize, namespace: &str, packet: &Packet) {
        let name = packet.payload[0].as_str().expect("a name");
        let object = packet.object();
        let kind = object["type"].as_str().expect("a type");
        assert_eq!(name, if kind == "connection_established" { "connection.established" } else { kind });
        match kind {
            "third" | "other" | "gap" => self.followed(who, self.actors[who].connection, namespace, object),
            "connection_established" | "draining" => {}
            "resumed" => self.resumed(who, namespace, &object["data"]),
            _ => panic!("client {who} is told {packet:?}"),
        }
    }

    fn answered(&mut self, who: usize, namespace: &str, asked: Asked, answer: &Value) {
        let data = &answer["data"];
        match (asked, answer["type"].as_str().unwrap_or_default()) {
            (Asked::Ping(sent), "pong") => assert_eq!(*data, sent),
            (Asked::Publish(room, event), "published") => {
                let seq = data["seq"].as_u64().expect("a number");
                let former = self.truth.lock().expect("one thread").insert((room, seq), event);
                assert_eq!(former, None, "a number was given twice");
            }
            (Asked::Unsubscribe(room), "unsubscribed") => {
                self.space(who, namespace).rooms.remove(&room);
            }
            (Asked::Subscribe(rooms), "subscribed") => {
                let results = data["results"].as_array().cloned().unwrap_or_else(|| vec![data.clone()]);
                assert_eq!(results.len(), rooms.len(), "{answer}");
                for result in &results {
                    let room = result["room"].as_str().expect("a room");
                    self.subscribed(who, namespace, room, rooms[room], result);
                }
                for early in std::mem::take(&mut self.space(who, namespace).early) {
                    self.followed(who, self.actors[who].connection, namespace, &early);
                }
            }
            (asked, _) => panic!("client {who}: {asked:?} is answered {answer}"),
        }
    }

    fn space(&mut self, who: usize, namespace: &str) -> &mut Space {
        self.actors[who].spaces.get_mut(namespace).expect("a namespace")
    }

    fn subscribed(&mut self, who: usize, namespace: &str, room: &str, begin: Begin, result: &Value) {
        let number = |name: &str| result[name].as_u64().unwrap_or_else(|| panic!("{name} in {result}"));
        let (seq, replayed) = (number("seq"), number("replayed"));
        let oldest = seq.saturating_sub(self.events_max);
        // Where another namespace lags in that room, or did when it left it, this one reads the rest along with it; likewise
        // where the connection before has left it there.
        let is_shared =
            self.actors[who].spaces.values().filter(|space| space.was_in || space.place != Place::Out).count() > 1;
        let space = self.space(who, namespace);
        let mut former = space.rooms.remove(room);
        let doubtful = former.take_if(|former| former.is_doubtful);
        let is_shared = is_shared || doubtful.is_some();
        let live = doubtful.and_then(|doubtful| doubtful.cursor).unwrap_or(0);
        let after = match begin {
            Begin::Now => None,
            Begin::After(after) => Some(after),
            Begin::Last(count) => Some(seq.saturating_sub(count)),
        };
        let membership = match (after, former) {
            (None, Some(former)) => former,
            (None, None) => {
                Membership { cursor: Some(seq.max(live)), may_be_older: is_shared, ..Membership::default() }
            }
            (Some(after), former) => {
                assert_eq!(number("missed"), oldest.saturating_sub(after), "client {who}: {result}");
                let live = former.and_then(|former| former.cursor).unwrap_or(live);
                let cursor = if replayed == 0 { seq.max(live) } else { after.max(oldest) };
                Membership { cursor: Some(cursor), ..Membership::default() }
            }
        };
        space.rooms.insert(room.to_owned(), membership);
    }

    /// A library has its session again.
    fn resumed(&mut self, who: usize, namespace: &str, data: &Value) {
        let results = data["results"].as_array().expect("a list").clone();
        let space = self.space(who, namespace);
        for (room, membership) in space.rooms.iter_mut().filter(|(_, membership)| membership.is_owed) {
            let result = results.iter().find(|result| result["room"] == **room);
            let Some(result) = result else {
                assert!(membership.is_doubtful, "client {who}, {namespace}: {room} is not in {results:?}");
                continue;
            };
            assert!(result["error"].is_null(), "client {who}, {namespace}: {result}");
        }
    }

    /// An event or a gap.
    fn followed(&mut self, who: usize, connection: u32, namespace: &str, message: &Value) {
        let is_gap = message["type"] == "gap";
        let about = if is_gap { &message["data"] } else { message };
        let room = about["room"].as_str().expect("a room").to_owned();
        let space = self.space(who, namespace);
        let is_asked =
            space.asked.values().any(|asked| matches!(asked, Asked::Subscribe(all) if all.contains_key(&room)));
        let Some(membership) = space.rooms.get_mut(&room) else {
            assert!(is_asked, "client {who} did not subscribe to {room} in {namespace}: {}", brief(message));
            return space.early.push(message.clone());
        };
        let first = if is_gap { &about["from_seq"] } else { &about["seq"] };
        let last = if is_gap { &about["to_seq"] } else { first };
        let (first, last) = (first.as_u64().expect("a number"), last.as_u64().expect("a number"));
        let cursor = membership.cursor.replace(last);
        let may_be_older = std::mem::take(&mut membership.may_be_older);
        let (lost, is_doubtful) = (membership.lost.clone(), membership.is_doubtful);
        if let Some(cursor) = cursor.filter(|_| !is_doubtful) {
            let follows = (first > cursor || may_be_older) && last >= first;
            assert!(follows, "client {who}, {namespace}, {room}: after {cursor} comes {}", brief(message));
            if first > cursor + 1 {
                let (room, namespace) = (room.clone(), namespace.to_owned());
                self.skipped.push(Skipped { who, namespace, room, from: cursor + 1, to: first - 1, lost });
            }
        }
        if !is_gap {
            if let Some(kinds) = self.actors[who].kinds.get(room.as_str()) {
                let kind = message["type"].as_str().expect("a type").to_owned();
                assert!(kinds.is_empty() || kinds.contains(&kind), "client {who} did not want {}", brief(message));
            }
            self.got.push(Got { who, connection, namespace: namespace.to_owned(), event: message.clone() });
        }
    }

    // ---- the end ----

    /// Lets everybody read all that there is.
    fn rest(&mut self) {
        let mut quiet = 0;
        for _ in 0..1000 {
            let before: Vec<usize> = self.actors.iter().map(|actor| actor.client.packets.len()).collect();
            for actor in &mut self.actors {
                actor.client.reads = true;
                let links = actor.client.link().into_iter().chain(actor.client.probe_link());
                links.for_each(|link| link.set_read_budget(usize::MAX));
            }
            // What half-dead connections hold others would have to wait for.
            let unheard = self.actors.iter_mut().filter_map(|actor| actor.former.as_mut()).map(|(former, _)| former);
            for former in self.former.iter_mut().chain(unheard) {
                former.link().into_iter().for_each(SimClient::close);
                if former.is_polling() {
                    former.finish(&self.node);
                }
            }
            // Those who wait for memory look for it now and then.
            self.node.world.advance(Duration::from_millis(50));
            self.node.settle();
            self.look();
            for who in 0..self.actors.len() {
                if self.actors[who].gone {
                    self.come_back_as(who);
                }
            }
            let after: Vec<usize> = self.actors.iter().map(|actor| actor.client.packets.len()).collect();
            quiet = if before == after { quiet + 1 } else { 0 };
            if quiet > 60 {
                return;
            }
        }
        panic!("clients don't come to rest");
    }

    /// At the end everybody has everything.
    fn check(&mut self) {
        self.rest();
        let before: Vec<u32> = self.actors.iter().map(|actor| actor.connection).collect();
        self.publish_everywhere();
        self.rest();
        let truth = self.truth.lock().expect("one thread").clone();
        for (who, actor) in self.actors.iter().enumerate() {
            for (namespace, space) in &actor.spaces {
                assert!(space.asked.is_empty(), "client {who} was not answered in {namespace}: {:?}", space.asked);
                assert!(!matches!(space.place, Place::Asked(_)), "client {who} waits to be let into {namespace}");
                for (room, membership) in space.rooms.iter().filter(|(_, membership)| !membership.is_doubtful) {
                    let last = truth.range((room.clone(), 0)..=(room.clone(), u64::MAX)).last();
                    let last = last.map_or(0, |((_, seq), _)| *seq);
                    let how = if actor.client.is_polling() { "polls" } else { "has a WebSocket" };
                    // Who was closed in this very moment, for being too slow, may have begun anew behind the last event.
                    let has_all = membership.cursor.map_or(actor.connection > before[who], |cursor| cursor == last);
                    assert!(
                        has_all,
                        "client {who}, which {how}, {namespace}, {room}: {:?} of {last}",
                        membership.cursor
                    );
                }
            }
        }
        for skipped in &self.skipped {
            for seq in skipped.from..=skipped.to {
                let Some(event) = truth.get(&(skipped.room.clone(), seq)) else { continue };
                let kinds = self.actors[skipped.who].kinds.get(skipped.room.as_str());
                let is_wanted = kinds.is_none_or(|kinds| kinds.is_empty() || kinds.contains(&event.kind));
                let is_own = event.exclude.is_some_and(|(who, _)| who == skipped.who);
                let is_lost = skipped.lost.contains(&seq);
                let Skipped { who, namespace, room, .. } = skipped;
                let may_miss = !is_wanted || is_own || is_lost;
                assert!(may_miss, "client {who} has not got {seq} of {room} in {namespace}: {skipped:?}");
            }
        }
        let mut events = BTreeMap::new();
        for native in &self.natives {
            for room in ROOMS.into_iter().chain(EVERYBODYS) {
                let last = truth.range((room.to_owned(), 0)..=(room.to_owned(), u64::MAX)).last();
                let mut seqs = native.seqs(room);
                // Where memory is short they lag as well.
                for gap in native.messages.iter().filter(|gap| gap["type"] == "gap" && gap["data"]["room"] == room) {
                    let number = |key: &str| gap["data"][key].as_u64().expect("a number");
                    seqs.extend(number("from_seq")..=number("to_seq"));
                }
                seqs.sort_unstable();
                if native.close.is_some() && self.closes_slow {
                    continue;
                }
                assert_eq!(seqs, (1..=last.map_or(0, |((_, seq), _)| *seq)).collect::<Vec<_>>(), "{room}");
            }
            for event in native.messages.iter().filter(|event| event["seq"].is_u64()) {
                events.insert(place_of(event), event);
            }
        }
        for Got { who, connection, namespace, event } in &self.got {
            let place = place_of(event);
            let is_same = events.get(&place).is_none_or(|native| *native == event);
            assert!(is_same, "client {who} has not in {namespace} what native clients have: {}", brief(event));
            // Its publisher may have gone before it was told.
            let Some(published) = truth.get(&place) else { continue };
            assert_eq!(event["data"]["number"], published.number);
            assert_ne!(
                published.exclude,
                Some((*who, *connection)),
                "client {who} got its own event: {}",
                brief(event)
            );
        }
    }

    /// Everybody goes, or is told to.
    fn end(mut self) {
        self.node.world.set_faults(Faults::none());
        let drains = self.rng.u8(..4) == 0;
        if drains {
            for shard in 0..self.node.shards() {
                self.node.request(shard, Request::Drain { over_ms: 500, spread_ms: 1000 });
            }
            for _ in 0..10 {
                self.node.world.advance(Duration::from_millis(100));
                self.node.settle();
                self.actors.iter_mut().for_each(|actor| actor.may_end = true);
                self.look();
            }
            assert!(self.actors.iter().all(|actor| actor.gone), "all are closed by a drain");
        } else {
            for actor in &mut self.actors {
                match (actor.client.link(), self.rng.u8(..4)) {
                    (Some(link), 0) => link.write(&frame(8, &1000u16.to_be_bytes())),
                    (Some(link), 1) => link.reset(),
                    (_, 2) => actor.client.send(&self.node, "1"),
                    _ => {}
                }
            }
            self.node.settle();
        }
        for client in self.actors.iter_mut().map(|actor| &mut actor.client).chain(&mut self.former) {
            client.drop_poll();
            client.link().into_iter().chain(client.probe_link()).for_each(|link| link.close());
        }
        self.natives.iter().for_each(|native| native.link.close());
        if drains {
            self.node.pass(Duration::from_secs(10));
            assert!((0..self.node.shards()).all(|shard| !self.node.is_running(shard)));
            return;
        }
        self.node.assert_no_sessions();
        self.node.assert_empty();
    }
}
