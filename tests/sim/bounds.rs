//! What slow readers and newcomers are told where logs are bounded by bytes, age and the shard's memory, and where a kind's
//! policy is `latest` or `disconnect`. (`logs.rs` has selections, lists and logs bounded by count.)
//!
//! Nobody selects, so that every event of a room is for every member: what it is told has to follow on the last event that
//! it has, by an event or by a gap, without a hole. The reference knows of every event its number, key, size and time, and
//! so which a log must still have and which it can't have any more.
//!
//! `RINGHUB_SEEDS=10000` runs more seeds; `RINGHUB_SEED=17` runs one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use ringhub::config::Policy;
use ringhub::hub::message::{Publish, ReplyTo};
use ringhub::ring::sim::Faults;
use ringhub::shard::request::Request;
use ringhub::wire::envelope::{Event, payload_bytes};
use ringhub::wire::ws::header_bytes;
use serde_json::{Value, json};

use crate::client::Client;
use crate::model::for_each_seed;
use crate::node::{Node, config};

const SEEDS: u64 = 200;
const STEPS: usize = 250;
const ACTORS_MAX: usize = 12;
const ROOMS: [&str; 6] = ["project:0", "project:1", "quote:0", "quote:1", "analytics:0", "analytics:1"];
const KINDS: [&str; 3] = ["red", "green", "blue"];
const KEYS: [&str; 3] = ["k", "l", "m"];
/// Logs are swept once a second, by turns that are at most `STEP` apart.
const SWEEP_MS: u64 = 1000 + 2 * STEP.as_millis() as u64;
const STEP: Duration = Duration::from_millis(200);

#[test]
fn what_a_bounded_log_no_longer_has_is_told_exactly_under_every_policy() {
    for_each_seed(SEEDS, |seed| Run::new(seed).run());
}

/// An event as it was published.
#[derive(Debug, Clone, PartialEq)]
struct Published {
    number: u64,
    /// Its key, or its type where it has none.
    key: String,
    frame_bytes: usize,
    at_ms: u64,
}

/// One life of a room: its events from the first on.
type Truth = BTreeMap<(String, u64), BTreeMap<u64, Published>>;

/// Where a reader wants to begin.
#[derive(Debug, Clone)]
enum Begin {
    Now,
    After { seq: u64, epoch: String },
    Last(u64),
}

#[derive(Debug, Clone)]
struct Asked {
    begin: Begin,
    at_ms: u64,
}

#[derive(Debug, Clone)]
struct Membership {
    epoch: String,
    /// The last event that it was given, or was told that it won't get.
    cursor: u64,
    /// Whether it may have been given events from the log because it asked for them.
    replays: bool,
}

/// An answer to `subscribe` or to a room of `resume`.
#[derive(Debug)]
struct Answer {
    room: String,
    epoch: String,
    seq: u64,
    /// The number after which it wanted to begin; none where that was of another life.
    after: Option<u64>,
    replayed: u64,
    missed: Option<u64>,
    asked_ms: u64,
    told_ms: u64,
}

#[derive(Debug)]
struct Gap {
    room: String,
    epoch: String,
    from: u64,
    to: u64,
    reason: String,
    told_ms: u64,
}

struct Actor {
    client: Client,
    /// Messages looked at.
    seen: usize,
    session: String,
    token: String,
    subscribes: BTreeMap<u64, BTreeMap<String, Asked>>,
    unsubscribes: BTreeMap<u64, String>,
    /// Events of rooms whose answer is still to come.
    early: Vec<Value>,
    rooms: BTreeMap<String, Membership>,
    left: bool,
}

/// The bounds of a run.
#[derive(Debug)]
struct Bounds {
    events_max: usize,
    bytes_max: usize,
    age_ms: u64,
    shard_bytes_max: usize,
}

struct Run {
    rng: Rng,
    node: Node,
    bounds: Bounds,
    /// Nobody vanishes or is closed.
    all_stay: bool,
    now_ms: u64,
    actors: Vec<Actor>,
    truth: Arc<Mutex<Truth>>,
    /// Events that someone got: the room, its epoch, the number, what was in it.
    got: Vec<(String, String, u64, u64)>,
    answers: Vec<Answer>,
    gaps: Vec<Gap>,
    gaps_told: u64,
    /// Connections that were closed for being too slow, and that left by themselves.
    too_slow: u64,
    vanished: u64,
    next_number: u64,
    /// The next time passes beyond what a key is remembered for: a few times per run.
    leaps: u8,
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut rng = Rng::with_seed(seed);
        let mut config = config();
        let mut draw = |often: bool, tight: std::ops::Range<usize>, loose: usize| {
            if often && rng.bool() { rng.usize(tight) } else { loose }
        };
        let bounds = Bounds {
            events_max: draw(true, 5..40, 1000),
            bytes_max: draw(true, 1000..20_000, 8 << 20),
            age_ms: 1000 * draw(true, 2..8, 3600) as u64,
            shard_bytes_max: draw(true, 4000..40_000, 256 << 20),
        };
        config.history.events_max = bounds.events_max as u32;
        config.history.bytes_max = bounds.bytes_max;
        config.history.age_s = bounds.age_ms / 1000;
        config.history.shard_bytes_max = bounds.shard_bytes_max;
        config.limits.outbox_bytes_max = rng.usize(4096..=16384);
        config.shards.turn_deliveries_max = rng.u32(1..8);
        config.heartbeat.interval_s = 3600;
        config.session.resume_window_s = 1800;
        // Where everybody stays, all that was told can be counted.
        let all_stay = rng.u8(..4) == 0;
        for kind in &mut config.kinds {
            kind.policy = match kind.name.as_str() {
                "quote" => Policy::Latest,
                "analytics" if !all_stay => Policy::Disconnect,
                _ => Policy::CatchUp,
            };
        }
        let faults = if rng.u8(..4) == 0 { Faults::none() } else { Faults::rough() };
        let node = Node::new(seed, rng.u16(1..=4), faults, config);
        Run {
            rng,
            node,
            bounds,
            all_stay,
            now_ms: 0,
            actors: Vec::new(),
            truth: Arc::default(),
            got: Vec::new(),
            answers: Vec::new(),
            gaps: Vec::new(),
            gaps_told: 0,
            too_slow: 0,
            vanished: 0,
            next_number: 0,
            leaps: 2,
        }
    }

    fn run(mut self) {
        for _ in 0..STEPS {
            match self.rng.u8(..20) {
                0 if self.actors.len() < ACTORS_MAX => {
                    self.connect();
                }
                0..=6 => {
                    let room = ROOMS[self.rng.usize(..ROOMS.len())];
                    (0..self.rng.u8(1..8)).for_each(|_| self.publish(room));
                }
                7..=11 => self.act(),
                12..=15 => self.stop_or_go_on(),
                16 if !self.all_stay => self.vanish(),
                17 => self.pass(),
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
        // Who was closed comes back.
        let mut actors = 0;
        while std::mem::replace(&mut actors, self.actors.len()) < self.actors.len() {
            self.node.settle();
            self.look();
        }
        self.check();
        for actor in &self.actors {
            actor.client.link.close();
        }
        self.node.assert_empty();
    }

    fn publish(&mut self, room: &'static str) {
        self.next_number += 1;
        let number = self.next_number;
        let kind = KINDS[self.rng.usize(..KINDS.len())];
        let key = (self.rng.u8(..6) == 0).then(|| KEYS[self.rng.usize(..KEYS.len())]);
        let filling = if self.rng.u8(..40) == 0 { self.rng.usize(..20_000) } else { self.rng.usize(..1200) };
        let data = Bytes::from(json!({"number": number, "filling": "x".repeat(filling)}).to_string());
        let name = self.node.hasher.room(room);
        let home = usize::from(name.home(self.node.shards() as u16).0);
        let (truth, at_ms, bytes) = (self.truth.clone(), self.now_ms, data.clone());
        let reply = ReplyTo::Handle(Box::new(move |outcome| {
            let published = outcome.expect("published");
            if published.duplicate {
                return;
            }
            let payload = payload_bytes(&Event { room, kind, seq: published.seq, data: &bytes });
            let frame_bytes = header_bytes(payload) + payload;
            let key = key.map_or_else(|| format!("type {kind}"), |key| format!("key {key}"));
            let event = Published { number, key, frame_bytes, at_ms };
            let mut truth = truth.lock().expect("one thread");
            let life = truth.entry((room.to_owned(), published.epoch)).or_default();
            assert_eq!(published.seq, life.len() as u64 + 1, "numbers have no holes");
            life.insert(published.seq, event);
        }));
        let key = key.map(Into::into);
        let publish = Publish { room: name, kind: kind.into(), data, key, exclude: None, received_us: 0, reply };
        self.node.request(home, Request::Publish(Box::new(publish)));
    }

    /// Time passes only when nothing is under way in the hub, so that the reference knows when each event was sealed; what
    /// readers don't take waits on.
    fn pass(&mut self) {
        self.node.settle();
        if self.leaps > 0 && self.rng.u8(..4) == 0 {
            self.leaps -= 1;
            self.advance(Duration::from_secs(301));
        }
        for _ in 0..self.rng.usize(1..20) {
            self.advance(STEP);
        }
    }

    fn advance(&mut self, time: Duration) {
        self.node.world.advance(time);
        self.now_ms += time.as_millis() as u64;
        self.node.settle();
        self.look();
    }

    fn connect(&mut self) -> usize {
        let shard = self.rng.usize(..self.node.shards());
        let client = Client::connect(&self.node, shard, "/ws", "");
        self.actors.push(Actor {
            client,
            seen: 0,
            session: String::new(),
            token: String::new(),
            subscribes: BTreeMap::new(),
            unsubscribes: BTreeMap::new(),
            early: Vec::new(),
            rooms: BTreeMap::new(),
            left: false,
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

    fn act(&mut self) {
        let Some(who) = self.present() else { return };
        let actor = &mut self.actors[who];
        if actor.token.is_empty() || !actor.subscribes.is_empty() || !actor.unsubscribes.is_empty() {
            return;
        }
        let room = ROOMS[self.rng.usize(..ROOMS.len())].to_owned();
        if actor.rooms.contains_key(&room) {
            let id = actor.client.send("unsubscribe", json!({"room": room}));
            actor.unsubscribes.insert(id, room);
            return;
        }
        let last = self.last(&room);
        let lives = self.lives(&room);
        let (begin, since) = match (self.rng.u8(..6), self.rng.choice(lives)) {
            (0..=1, _) | (_, None) => (Begin::Now, json!(null)),
            (2, _) => {
                let count = self.rng.u64(..60);
                (Begin::Last(count), json!({"last": count}))
            }
            (_, Some(epoch)) => {
                let (seq, epoch) = (last.saturating_sub(self.rng.u64(..60)), epoch_text(epoch));
                (Begin::After { seq, epoch: epoch.clone() }, json!({"seq": seq, "epoch": epoch}))
            }
        };
        let asked = Asked { begin, at_ms: self.now_ms };
        let actor = &mut self.actors[who];
        let id = actor.client.send("subscribe", json!({"room": room, "since": since}));
        actor.subscribes.insert(id, BTreeMap::from([(room, asked)]));
    }

    /// The last number in any life of a room that publishers were told.
    fn last(&self, room: &str) -> u64 {
        let truth = self.truth.lock().expect("one thread");
        truth.iter().filter(|((name, _), _)| name == room).map(|(_, life)| life.len() as u64).max().unwrap_or(0)
    }

    /// The epochs of a room so far.
    fn lives(&self, room: &str) -> Vec<u64> {
        let truth = self.truth.lock().expect("one thread");
        truth.keys().filter(|(name, _)| name == room).map(|(_, epoch)| *epoch).collect()
    }

    /// One client vanishes and comes back on another connection.
    fn vanish(&mut self) {
        let Some(who) = self.present() else { return };
        let actor = &mut self.actors[who];
        if actor.token.is_empty() || !actor.subscribes.is_empty() || !actor.unsubscribes.is_empty() {
            return;
        }
        match self.rng.u8(..3) {
            0 => actor.client.link.close(),
            1 => actor.client.link.reset(),
            _ => actor.client.link.set_read_budget(0),
        }
        self.vanished += 1;
        self.come_back(who);
    }

    /// A client that is gone, or was closed, is taken up by another connection.
    fn come_back(&mut self, who: usize) {
        let actor = &mut self.actors[who];
        actor.left = true;
        let (session, token, rooms) = (actor.session.clone(), actor.token.clone(), actor.rooms.clone());
        for _ in 0..self.rng.usize(0..10) {
            let shard = self.rng.usize(..self.node.shards());
            self.node.turn_of(shard);
        }
        let at_ms = self.now_ms;
        let next = self.connect();
        let mut cursors = serde_json::Map::new();
        let mut asked = BTreeMap::new();
        for (room, Membership { epoch, cursor, .. }) in rooms {
            cursors.insert(room.clone(), json!({"seq": cursor, "epoch": epoch}));
            asked.insert(room, Asked { begin: Begin::After { seq: cursor, epoch }, at_ms });
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
            while let Some(message) = self.actors[who].client.messages.get(self.actors[who].seen).cloned() {
                self.actors[who].seen += 1;
                self.told(who, &message);
            }
            let actor = &self.actors[who];
            if actor.client.close.is_some() || actor.client.link.is_closed() {
                // A reader that does not even take the close frame is cut off without it.
                if let Some((code, reason)) = &actor.client.close {
                    assert_eq!((*code, reason.as_str()), (4508, "too slow"), "client {who}");
                }
                let asked = actor.subscribes.values().flat_map(BTreeMap::keys);
                let mut rooms = actor.rooms.keys().chain(asked);
                assert!(rooms.any(|room| room.starts_with("analytics:")), "client {who} is in no room that closes");
                self.too_slow += 1;
                if self.actors[who].subscribes.is_empty() && self.actors[who].unsubscribes.is_empty() {
                    self.come_back(who);
                } else {
                    self.actors[who].left = true;
                }
            }
        }
    }

    fn told(&mut self, who: usize, message: &Value) {
        let kind = message["type"].as_str().unwrap_or_default();
        let data = &message["data"];
        let actor = &mut self.actors[who];
        match (kind, message["ref"].as_u64()) {
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
                let mut answered = 0;
                for result in results {
                    let room = result["room"].as_str().expect("a room").to_owned();
                    let Some(asked) = asked.get(&room) else {
                        assert!(!ROOMS.contains(&room.as_str()), "client {who} is put into {room}: {message}");
                        continue;
                    };
                    self.subscribed(who, &room, asked, &result);
                    answered += 1;
                }
                assert_eq!(answered, asked.len(), "{asked:?} is answered by {message}");
                for early in std::mem::take(&mut self.actors[who].early) {
                    self.followed(who, &early);
                }
            }
            ("unsubscribed", Some(id)) => {
                let room = actor.unsubscribes.remove(&id).expect("an unsubscribe");
                actor.rooms.remove(&room);
            }
            ("red" | "green" | "blue" | "gap", None) => self.followed(who, message),
            _ => panic!("client {who} is told {message}"),
        }
    }

    fn subscribed(&mut self, who: usize, room: &str, asked: &Asked, result: &Value) {
        let number = |name: &str| result[name].as_u64().unwrap_or_else(|| panic!("{name} in {result}"));
        let (seq, replayed, missed) = (number("seq"), number("replayed"), result["missed"].as_u64());
        let epoch = result["epoch"].as_str().expect("an epoch").to_owned();
        assert_eq!(result["recovered"], missed == Some(0), "client {who}, {asked:?}: {result}");
        let replays = !matches!(asked.begin, Begin::Now);
        let after = match &asked.begin {
            Begin::Now => Some(seq),
            Begin::After { seq: after, epoch: of } => (*of == epoch && *after <= seq).then_some(*after),
            Begin::Last(count) => Some(seq.saturating_sub(*count)),
        };
        assert_eq!(missed.is_some(), after.is_some(), "client {who}, {asked:?}: {result}");
        if let (Some(after), Some(missed)) = (after, missed) {
            assert_eq!(after + missed + replayed, seq, "client {who}, {asked:?}: {result}");
        }
        let membership = Membership { epoch: epoch.clone(), cursor: seq - replayed, replays };
        self.actors[who].rooms.insert(room.to_owned(), membership);
        if replays {
            let (asked_ms, told_ms) = (asked.at_ms, self.now_ms);
            let room = room.to_owned();
            self.answers.push(Answer { room, epoch, seq, after, replayed, missed, asked_ms, told_ms });
        }
    }

    /// An event or a gap.
    fn followed(&mut self, who: usize, message: &Value) {
        let actor = &mut self.actors[who];
        let is_gap = message["type"] == "gap";
        let about = if is_gap { &message["data"] } else { message };
        let room = about["room"].as_str().expect("a room").to_owned();
        let Some(membership) = actor.rooms.get_mut(&room) else {
            let is_asked = actor.subscribes.values().any(|rooms| rooms.contains_key(&room));
            assert!(is_asked, "client {who} is no member of {room}: {message}");
            actor.early.push(message.clone());
            return;
        };
        let first = if is_gap { &about["from_seq"] } else { &about["seq"] };
        let last = if is_gap { &about["to_seq"] } else { first };
        let (first, last) = (first.as_u64().expect("a number"), last.as_u64().expect("a number"));
        let cursor = std::mem::replace(&mut membership.cursor, last);
        assert!(first == cursor + 1 && last >= first, "client {who}, {room}: after {cursor} comes {message}");
        let epoch = membership.epoch.clone();
        if !is_gap {
            self.got.push((room, epoch, first, message["data"]["number"].as_u64().expect("a number")));
            return;
        }
        self.gaps_told += 1;
        let reason = about["reason"].as_str().expect("a reason").to_owned();
        let closes = room.starts_with("analytics:") && !membership.replays && !self.all_stay;
        assert!(!closes, "client {who} lags in a room whose policy is to disconnect: {message}");
        self.gaps.push(Gap { room, epoch, from: first, to: last, reason, told_ms: self.now_ms });
    }

    /// To be called at rest.
    fn check(&mut self) {
        let truth = std::mem::take(&mut *self.truth.lock().expect("one thread"));
        let truth: BTreeMap<(String, String), _> =
            truth.into_iter().map(|((room, epoch), life)| ((room, epoch_text(epoch)), life)).collect();
        let empty = BTreeMap::new();
        let life = |room: &str, epoch: &str| truth.get(&(room.to_owned(), epoch.to_owned())).unwrap_or(&empty);
        for (room, epoch, seq, number) in &self.got {
            assert_eq!(life(room, epoch).get(seq).map(|event| event.number), Some(*number), "{room}, event {seq}");
        }
        for (who, actor) in self.actors.iter().enumerate().filter(|(_, actor)| !actor.left) {
            assert_eq!(actor.client.status, Some(101));
            let waiting = (&actor.subscribes, &actor.unsubscribes);
            assert_eq!(waiting.0.len() + waiting.1.len(), 0, "client {who} was not answered: {waiting:?}");
            for (room, Membership { epoch, cursor, .. }) in &actor.rooms {
                assert_eq!(*cursor, life(room, epoch).len() as u64, "client {who} has {room} to its end");
            }
        }
        for answer in &self.answers {
            self.check_answer(answer, life(&answer.room, &answer.epoch));
        }
        for gap in &self.gaps {
            self.check_gap(gap, life(&gap.room, &gap.epoch));
        }
        let figures = self.node.figures();
        // Of those that vanished, some were too slow before.
        let counted = self.too_slow..=self.too_slow + self.vanished;
        assert!(counted.contains(&figures.slow_closes), "{} closes are counted, not {counted:?}", figures.slow_closes);
        // What waited for those who are gone was counted as well.
        assert!(figures.gaps >= self.gaps_told, "gaps are counted");
        if self.all_stay {
            assert_eq!((figures.gaps, figures.slow_closes), (self.gaps_told, 0), "gaps are counted once");
        }
        if self.bounds.shard_bytes_max > 1 << 20 {
            assert_eq!(figures.logs_evicted, 0);
        }
    }

    /// The first event that the bounds by count and bytes leave of a log whose last is `seq`.
    fn first_kept(&self, life: &BTreeMap<u64, Published>, seq: u64) -> u64 {
        let (mut first, mut bytes) = (seq + 1, 0);
        for (at, event) in life.range(..=seq).rev() {
            bytes += event.frame_bytes;
            if bytes > self.bounds.bytes_max || seq + 1 - at > self.bounds.events_max as u64 {
                break;
            }
            first = *at;
        }
        first
    }

    /// The first event that is not older than the bound at that time.
    fn first_young(&self, life: &BTreeMap<u64, Published>, at_ms: u64) -> u64 {
        let young = life.iter().find(|(_, event)| event.at_ms + self.bounds.age_ms >= at_ms);
        young.map_or(life.len() as u64 + 1, |(seq, _)| *seq)
    }

    fn check_answer(&self, answer: &Answer, life: &BTreeMap<u64, Published>) {
        let first = answer.seq + 1 - answer.replayed;
        // A number beyond the end is of another life, though the epoch says otherwise: all of this one is new.
        let from = answer.after.unwrap_or(0) + 1;
        let kept = self.first_kept(life, answer.seq);
        let swept = self.first_young(life, answer.asked_ms.saturating_sub(SWEEP_MS)).min(answer.seq + 1);
        assert!(
            first >= kept.max(swept).max(from),
            "more than the bounds allow is replayed: {answer:?} {kept} {swept}"
        );
        if self.bounds.shard_bytes_max > 1 << 20 {
            let young = self.first_young(life, answer.told_ms).min(answer.seq + 1);
            assert!(first <= kept.max(young).max(from), "less than the log has is replayed: {answer:?} {kept} {young}");
        }
        assert_eq!(answer.missed.is_some(), answer.after.is_some());
    }

    fn check_gap(&self, gap: &Gap, life: &BTreeMap<u64, Published>) {
        let events = || life.range(gap.from..=gap.to);
        assert_eq!(events().count() as u64, gap.to + 1 - gap.from, "{gap:?}");
        match gap.reason.as_str() {
            "latest" => {
                assert!(gap.room.starts_with("quote:"), "{gap:?}");
                for (seq, event) in events() {
                    let is_superseded = life.range(seq + 1..).any(|(_, newer)| newer.key == event.key);
                    assert!(is_superseded, "the newest of {} was left out: {seq} in {gap:?}", event.key);
                }
            }
            "history" => {
                let kept = self.first_kept(life, life.len() as u64);
                let young = self.first_young(life, gap.told_ms);
                let may_evict = self.bounds.shard_bytes_max < 1 << 20;
                assert!(may_evict || gap.to < kept.max(young), "the log still had some of it: {gap:?} {kept} {young}");
            }
            _ => panic!("{gap:?}"),
        }
    }
}

fn epoch_text(epoch: u64) -> String {
    ringhub::hub::core::epoch_text(epoch)
}

/// A room's log, as it has to be.
#[derive(Debug, Default)]
struct Log {
    /// The sizes of the frames that are kept.
    frames: Vec<usize>,
    seq: u64,
    epoch: Value,
}

impl Log {
    fn bytes(&self) -> usize {
        self.frames.iter().sum()
    }

    /// Each life has an epoch of its own.
    fn lives(&mut self, epoch: &Value, lives: &mut BTreeSet<String>) {
        if let (Value::Null, Some(text)) = (&self.epoch, epoch.as_str()) {
            assert!(lives.insert(text.to_owned()), "{text} was there before");
            self.epoch = epoch.clone();
        }
    }
}

#[test]
fn logs_that_give_way_to_newer_ones_are_counted_and_their_readers_told() {
    for_each_seed(SEEDS / 4, give_way);
}

/// One event at a time, after which every log is looked into.
fn give_way(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let mut config = config();
    let shard_bytes_max = rng.usize(3000..15_000);
    config.history.shard_bytes_max = shard_bytes_max;
    config.history.age_s = 3600;
    let mut node = Node::new(seed, rng.u16(1..=3), Faults::none(), config);
    let shards = node.shards() as u16;
    let rooms: Vec<String> = (0..rng.usize(2..12)).map(|number| format!("project:{number}")).collect();
    let home = |node: &Node, room: &str| usize::from(node.hasher.room(room).home(shards).0);
    let mut logs: BTreeMap<String, Log> = rooms.iter().map(|room| (room.clone(), Log::default())).collect();
    let mut member = node.client(0, "");
    let mut members = BTreeSet::new();
    let mut lives = BTreeSet::new();
    let mut watcher = node.client(0, "");
    let mut evicted = 0;
    for _ in 0..100 {
        let room = rooms[rng.usize(..rooms.len())].clone();
        if rng.u8(..4) == 0 {
            let log = &logs[&room];
            if members.remove(&room) {
                member.send("unsubscribe", json!({"room": room}));
                node.settle();
                if log.frames.is_empty() {
                    // Nothing is left of a room with neither members nor history.
                    logs.insert(room, Log::default());
                }
                continue;
            }
            let after = rng.u64(0..=log.seq);
            let is_same = log.seq > 0 && rng.bool();
            let epoch = if is_same { log.epoch.clone() } else { json!("0123456789abcdef") };
            let id = member.send("subscribe", json!({"room": room, "since": {"seq": after, "epoch": epoch}}));
            node.settle();
            member.poll();
            let told = &member.answer(id).expect("an answer")["data"];
            let kept = log.frames.len() as u64;
            let missed = is_same.then(|| (log.seq - kept).saturating_sub(after));
            assert_eq!((&told["seq"], &told["missed"]), (&json!(log.seq), &json!(missed)), "{told}");
            let replayed = if is_same { kept.min(log.seq - after) } else { kept };
            assert_eq!(told["replayed"], replayed, "{told}");
            members.insert(room.clone());
            logs.entry(room).or_default().lives(&told["epoch"], &mut lives);
            continue;
        }
        let data = json!("x".repeat(rng.usize(..2000))).to_string();
        let log = logs.get_mut(&room).expect("one of them");
        log.seq += 1;
        let event = Event { room: &room, kind: "x", seq: log.seq, data: data.as_bytes() };
        let payload = payload_bytes(&event);
        log.frames.push(header_bytes(payload) + payload);
        node.publish(&room, data);
        node.settle();
        let asked: Vec<_> = rooms.iter().map(|one| (one, watcher.send("history", json!({"room": one})))).collect();
        node.settle();
        watcher.poll();
        let mut gave_way = vec![0; usize::from(shards)];
        for (one, id) in asked {
            let told = &watcher.answer(id).expect("an answer")["data"];
            let log = logs.get_mut(one).expect("one of them");
            let first = told["events"][0]["seq"].as_u64();
            if first.is_none() && !log.frames.is_empty() {
                assert_ne!(*one, room, "the newest gives way");
                evicted += 1;
                let largest = &mut gave_way[home(&node, one)];
                *largest = log.bytes().max(*largest);
                log.frames.clear();
                if !members.contains(one) {
                    *log = Log::default();
                }
            }
            log.lives(&told["epoch"], &mut lives);
            let kept = log.frames.len() as u64;
            assert_eq!(first, (kept > 0).then_some(log.seq + 1 - kept), "{one}: {log:?}");
            assert_eq!((&told["seq"], &told["epoch"]), (&json!(log.seq), &log.epoch), "{one}: {log:?}");
        }
        let figures = node.figures();
        assert_eq!(figures.logs_evicted, evicted);
        assert_eq!(figures.log_bytes as usize, logs.values().map(Log::bytes).sum::<usize>());
        for (shard, gave_way) in gave_way.into_iter().enumerate() {
            let there = || logs.iter().filter(|(one, _)| home(&node, one) == shard);
            let bytes: usize = there().map(|(_, log)| log.bytes()).sum();
            // The newest one stays, however large it is.
            let is_alone = there().filter(|(_, log)| !log.frames.is_empty()).count() < 2;
            assert!(bytes <= shard_bytes_max || is_alone, "{bytes} bytes are kept");
            assert!(gave_way == 0 || bytes + gave_way > shard_bytes_max, "a log gave way without need");
        }
    }
}
