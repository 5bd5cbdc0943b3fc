//! Durable rooms: the whole way from publishers through shards and journal to a disk that is slow and fails, and back after
//! crashes, on another number of shards.
//!
//! What was acknowledged is there after a crash, with its number and epoch, once, in order; what was refused is not there;
//! what subscribers were given is there too, and they go on behind it without hole or repeat.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};

use bytes::Bytes;
use fastrand::Rng;
use ringhub::config::{Config, DurableAck};
use ringhub::control::journal::rebuild::Rebuilt;
use ringhub::control::journal::writer::Writer;
use ringhub::control::journal::{Bounds, Intake, JournalFigures, files, link};
use ringhub::hub::message::{Publish, Published, ReplyTo};
use ringhub::hub::name::ShardId;
use ringhub::hub::reply::{HubError, Pending, pending};
use ringhub::hub::rules::Rules;
use ringhub::hub::stored::StoredRoom;
use ringhub::ring::sim::Faults;
use ringhub::shard::request::Request;
use ringhub::wire::codes::ErrorCode;
use ringhub::wire::native::Refused;
use serde_json::{Value, json};

use crate::client::Client;
use crate::disk::{Crash, SimDisk, Trouble};
use crate::model::for_each_seed;
use crate::node::{Node, config};

const SEEDS: u64 = 120;
const STEPS: usize = 250;
const ROOMS: [&str; 3] = ["project:1", "project:2", "workflow:3"];
const READERS: usize = 3;

#[test]
fn what_was_acknowledged_outlives_crashes_and_what_was_refused_does_not_come_back() {
    for_each_seed(SEEDS, |seed| Run::new(seed).run());
}

type Outcome = Result<Published, Refused>;

/// A publish, and what became of it.
#[derive(Debug, Clone)]
struct Asked {
    room: String,
    key: Option<String>,
    outcome: Arc<Mutex<Option<Outcome>>>,
    /// In which life of the process.
    life: usize,
}

struct Journal {
    writer: Pin<Box<dyn Future<Output = ()>>>,
    figures: Arc<JournalFigures>,
}

struct Run {
    rng: Rng,
    seed: u64,
    config: Config,
    disk: SimDisk,
    folder: std::path::PathBuf,
    node: Node,
    journal: Journal,
    crash: Crash,
    life: usize,
    /// By the number in the event's data.
    asked: BTreeMap<u64, Asked>,
    /// What readers were given: room, number in the room, number in the data.
    given: BTreeSet<(String, u64, u64)>,
    /// What was refused, and is there since the process ended while the journal could not be written.
    returned: BTreeSet<u64>,
    epochs: BTreeMap<String, String>,
    readers: Vec<Reader>,
    clears: Vec<Clear>,
    /// Is in all rooms: one without history would be forgotten without anybody there.
    anchor: Client,
}

/// A log that somebody wanted to be emptied.
struct Clear {
    room: String,
    /// The last number that was acknowledged before that.
    seq: u64,
    answer: Pending<u64>,
    /// Publishes up to this one may have been meant, once it was answered or the process ended.
    upto: Option<u64>,
    is_sure: bool,
}

#[derive(Default)]
struct Reader {
    client: Option<Client>,
    seen: usize,
    room: String,
    /// The last event that it was given, and of which epoch; none before it was answered.
    cursor: Option<(u64, String)>,
    subscribe: u64,
    is_member: bool,
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut rng = Rng::with_seed(seed);
        let mut config = config();
        config.journal.path = Some("/simulated".into());
        config.journal.segment_bytes = rng.u64(600..6000);
        config.journal.bytes_max = 1 << 20;
        config.history.events_max = rng.u32(3..60);
        config.history.age_s = 3600;
        config.shards.turn_deliveries_max = rng.u32(1..8);
        let crash = if rng.bool() { Crash::Kill } else { Crash::Power };
        for kind in config.kinds.iter_mut().filter(|kind| kind.name == "project" || kind.name == "workflow") {
            kind.durable = true;
            // Of a room without history its last number is kept.
            if kind.name == "workflow" && rng.u8(..3) == 0 {
                kind.history_events_max = Some(0);
            }
            // What was only written is gone when the power fails.
            if crash == Crash::Kill && rng.bool() {
                kind.durable_ack = DurableAck::Written;
            }
        }
        let disk = SimDisk::new(seed);
        let folder = std::env::temp_dir().join(format!("ringhub-sim-journal-{}-{seed}", std::process::id()));
        drop(std::fs::remove_dir_all(&folder));
        std::fs::create_dir_all(&folder).expect("a folder");
        let (mut node, journal) = start(seed, rng.u16(1..=4), &config, &disk, Rebuilt::default());
        let anchor = anchor(&mut node);
        let readers = (0..READERS).map(|_| Reader::default()).collect();
        let (asked, given, returned, epochs, clears) = Default::default();
        Run {
            rng,
            seed,
            config,
            disk,
            folder,
            node,
            journal,
            crash,
            life: 0,
            asked,
            given,
            returned,
            epochs,
            readers,
            clears,
            anchor,
        }
    }

    fn run(mut self) {
        for _ in 0..STEPS {
            match self.rng.u8(..30) {
                0..=7 => {
                    for _ in 0..self.rng.u8(1..5) {
                        self.publish();
                    }
                }
                8..=9 => self.read(),
                10 => {
                    let often = |rng: &mut Rng| if rng.bool() { 0 } else { rng.u32(1..12) };
                    let rng = &mut self.rng;
                    let mut trouble = Trouble { write: often(rng), sync: often(rng), ..Trouble::default() };
                    if rng.bool() {
                        trouble = Trouble { truncate: 2, create: 2, remove: 2, ..trouble };
                    }
                    self.disk.set_trouble(trouble);
                }
                11..=12 => self.disk.set_trouble(Trouble::default()),
                13 if self.rng.u8(..3) == 0 => self.restart(),
                14 if self.rng.u8(..3) == 0 => self.clear(),
                _ => {}
            }
            for _ in 0..self.rng.usize(0..6) {
                match self.rng.u8(..3) {
                    0 => self.write(),
                    _ => {
                        let shard = self.rng.usize(..self.node.shards());
                        self.node.turn_of(shard);
                    }
                }
            }
            self.look();
        }
        self.disk.set_trouble(Trouble::default());
        self.come_to_rest();
        for asked in self.asked.values().filter(|asked| asked.life == self.life) {
            assert!(asked.outcome.lock().expect("one thread").is_some(), "{asked:?} was not answered");
        }
        self.check_history();
        self.restart();
        self.come_to_rest();
        self.check_history();
        // What no room needs is gone.
        let kept = ROOMS.len() * self.config.history.events_max as usize * 700 + 8 * 6000;
        assert!(self.disk.bytes() < 3 * kept, "{} bytes in {} files", self.disk.bytes(), self.disk.files());
        std::fs::remove_dir_all(&self.folder).expect("removed");
    }

    fn publish(&mut self) {
        let number = self.asked.len() as u64 + 1;
        let is_durable = self.rng.u8(..5) > 0;
        let room = if is_durable { ROOMS[self.rng.usize(..ROOMS.len())] } else { "quote:1" };
        let key = (self.rng.u8(..3) == 0).then(|| format!("key {}", self.rng.u8(..20)));
        let outcome: Arc<Mutex<Option<Outcome>>> = Arc::default();
        let of_reply = outcome.clone();
        let reply = ReplyTo::Handle(Box::new(move |told| {
            let former = of_reply.lock().expect("one thread").replace(told);
            assert!(former.is_none(), "answered twice");
        }));
        let name = self.node.hasher.room(room);
        let home = usize::from(name.home(self.node.shards() as u16).0);
        let data = json!({"number": number, "filling": "x".repeat(self.rng.usize(..300))});
        let publish = Publish {
            room: name,
            kind: "k".into(),
            data: Bytes::from(data.to_string()),
            key: key.as_deref().map(Into::into),
            exclude: None,
            received_us: 0,
            reply,
        };
        self.asked.insert(number, Asked { room: room.to_owned(), key, outcome, life: self.life });
        self.node.request(home, Request::Publish(Box::new(publish)));
    }

    fn clear(&mut self) {
        let room = ROOMS[self.rng.usize(..ROOMS.len())].to_owned();
        let name = self.node.hasher.room(&room);
        let home = usize::from(name.home(self.node.shards() as u16).0);
        let published = self.asked.values().filter(|asked| asked.room == room).filter_map(|asked| {
            asked.outcome.lock().expect("one thread").as_ref()?.as_ref().ok().map(|published| published.seq)
        });
        let seq = published.max().unwrap_or(0);
        let (responder, answer) = pending();
        self.node.request(home, Request::ClearHistory { room: name, responder });
        self.clears.push(Clear { room, seq, answer, upto: None, is_sure: false });
    }

    /// Looks which logs were emptied; all of them are settled when the process `ends`.
    fn look_at_clears(&mut self, ends: bool) {
        let last = self.asked.len() as u64;
        for clear in self.clears.iter_mut().filter(|clear| clear.upto.is_none()) {
            match Pin::new(&mut clear.answer).poll(&mut Context::from_waker(Waker::noop())) {
                std::task::Poll::Ready(outcome) => {
                    let is_unavailable = |error: &HubError| error.code == ErrorCode::Unavailable;
                    assert!(outcome.as_ref().err().is_none_or(is_unavailable), "{outcome:?}");
                    clear.upto = Some(last);
                    clear.is_sure = outcome.is_ok();
                }
                std::task::Poll::Pending if ends => clear.upto = Some(last),
                std::task::Poll::Pending => {}
            }
        }
    }

    /// A turn of the journal.
    fn write(&mut self) {
        let context = &mut Context::from_waker(Waker::noop());
        assert!(self.journal.writer.as_mut().poll(context).is_pending(), "the journal ended");
    }

    fn come_to_rest(&mut self) {
        for _ in 0..300 {
            self.write();
            self.node.turn();
        }
        self.node.settle();
        self.look();
    }

    /// One reader subscribes where it had got to, or leaves.
    fn read(&mut self) {
        let who = self.rng.usize(..READERS);
        if self.readers[who].client.is_some() {
            if self.rng.u8(..4) == 0 {
                let cursor = self.readers[who].cursor.take();
                let room = std::mem::take(&mut self.readers[who].room);
                self.readers[who] = Reader { cursor, room, ..Reader::default() };
            }
            return;
        }
        let shard = self.rng.usize(..self.node.shards());
        let mut client = Client::connect(&self.node, shard, "/ws", "");
        let reader = &mut self.readers[who];
        if reader.cursor.is_none() {
            reader.room = ROOMS[self.rng.usize(..ROOMS.len())].to_owned();
        }
        let since = reader.cursor.as_ref().map(|(seq, epoch)| json!({"seq": seq, "epoch": epoch}));
        reader.subscribe = client.send("subscribe", json!({"room": reader.room, "since": since}));
        reader.client = Some(client);
        reader.seen = 0;
        reader.is_member = false;
    }

    fn look(&mut self) {
        self.look_at_clears(false);
        for who in 0..READERS {
            let reader = &mut self.readers[who];
            let Some(client) = reader.client.as_mut() else { continue };
            client.poll();
            assert_eq!(client.close, None);
            let told: Vec<Value> = client.messages[reader.seen..].to_vec();
            reader.seen += told.len();
            for message in told {
                self.told(who, &message);
            }
        }
        // Rooms that are not durable go on whatever the disk does.
        for asked in self.asked.values().filter(|asked| asked.room == "quote:1") {
            let outcome = asked.outcome.lock().expect("one thread");
            assert!(outcome.as_ref().is_none_or(Result::is_ok), "{asked:?}");
        }
    }

    fn told(&mut self, who: usize, message: &Value) {
        let reader = &mut self.readers[who];
        let data = &message["data"];
        match message["type"].as_str().expect("a type") {
            "connection_established" => {}
            "subscribed" => {
                assert_eq!(message["ref"], reader.subscribe);
                reader.is_member = true;
                let epoch = data["epoch"].as_str().expect("an epoch").to_owned();
                let seq = data["seq"].as_u64().expect("a number");
                let oldest = seq.saturating_sub(events_max(&self.config, &reader.room));
                let (cursor, missed) = match &reader.cursor {
                    Some((cursor, of)) if *of == epoch => {
                        // Whatever it was given is there: nothing goes out that could be lost.
                        assert!(*cursor <= seq, "reader {who} has {cursor}, the room only {message}");
                        ((*cursor).max(oldest), oldest.saturating_sub(*cursor))
                    }
                    Some((cursor, _)) => {
                        assert_eq!(*cursor, 0, "the log of {} was lost: {message}", reader.room);
                        (oldest, 0)
                    }
                    None => (seq, 0),
                };
                let replayed = data["replayed"].as_u64().expect("a number");
                // A log that was emptied begins later.
                let was_cleared = self.clears.iter().any(|clear| clear.room == reader.room);
                let (cursor, missed) = match &reader.cursor {
                    Some((before, _)) if was_cleared => (seq - replayed, seq - replayed - before),
                    _ => (cursor, missed),
                };
                if reader.cursor.as_ref().is_some_and(|(_, of)| *of == epoch) {
                    assert_eq!(data["missed"], missed, "after {:?}: {message}", reader.cursor);
                    assert_eq!(data["recovered"], missed == 0);
                }
                let cursor = if data["replayed"] == 0 { seq } else { cursor };
                reader.cursor = Some((cursor, epoch));
            }
            "k" => {
                assert!(reader.is_member, "reader {who}: {message}");
                let seq = message["seq"].as_u64().expect("a number");
                let cursor = reader.cursor.as_mut().expect("it was answered");
                assert_eq!(seq, cursor.0 + 1, "reader {who} of {}", reader.room);
                cursor.0 = seq;
                self.given.insert((reader.room.clone(), seq, data["number"].as_u64().expect("a number")));
            }
            _ => panic!("reader {who} is told {message}"),
        }
    }

    /// The process ends where it is, and another one begins with what is on the disk.
    fn restart(&mut self) {
        let was_up = self.journal.figures.up.value() == 1;
        self.look();
        self.look_at_clears(true);
        for who in 0..READERS {
            let Reader { room, cursor, .. } = std::mem::take(&mut self.readers[who]);
            self.readers[who] = Reader { room, cursor, ..Reader::default() };
        }
        self.disk.crash(self.crash);
        for entry in std::fs::read_dir(&self.folder).expect("a folder") {
            std::fs::remove_file(entry.expect("an entry").path()).expect("removed");
        }
        self.disk.put_into(&self.folder);
        let rules = Rules::new(&self.config);
        let bounds = |room: &str| rules.durable(rules.place(room)).map(|_| rules.log(rules.place(room)));
        let opened = files::open(&self.folder, 1_700_000_000_000, bounds).expect("opened");
        self.disk.take_from(&self.folder);
        assert_eq!(opened.rebuilt.shortened, Vec::<Box<str>>::new());
        self.check_rooms(&opened.rebuilt.rooms, was_up);
        self.life += 1;
        let shards = self.rng.u16(1..=4);
        let trouble = Trouble::default();
        self.disk.set_trouble(trouble);
        let seed = self.seed.wrapping_mul(31).wrapping_add(self.life as u64);
        let (node, journal) = start(seed, shards, &self.config, &self.disk, opened.rebuilt);
        self.node = node;
        self.journal = journal;
        self.anchor = anchor(&mut self.node);
    }

    /// What was read from the disk, against what publishers and readers were told.
    fn check_rooms(&mut self, rooms: &[StoredRoom], was_up: bool) {
        let mut there: BTreeMap<(&str, u64), u64> = BTreeMap::new();
        for room in rooms {
            let mut next = None;
            for batch in &room.batches {
                assert!(next.is_none_or(|next| next == batch.first_seq), "a hole in {room:?}");
                next = Some(batch.last_seq() + 1);
                let mut at = 0;
                for (event, seq) in batch.events.iter().zip(batch.first_seq..) {
                    let data = &batch.bytes[at + event.data_at as usize..at + event.frame_bytes as usize - 1];
                    let data: Value = serde_json::from_slice(data).expect("JSON");
                    let former = there.insert((&room.room, seq), data["number"].as_u64().expect("a number"));
                    assert_eq!(former, None);
                    at += event.frame_bytes as usize;
                }
            }
            assert!(next.is_none_or(|next| next == room.seq + 1), "the end of {room:?}");
        }
        let last = |name: &str| rooms.iter().find(|room| *room.room == *name).map_or(0, |room| room.seq);
        self.check_events(&there, last, was_up);
        for room in rooms {
            let epoch = format!("{:016x}", room.epoch);
            if let Some(known) = self.epochs.get(&*room.room) {
                assert_eq!(*known, epoch, "{}", room.room);
            }
        }
    }

    fn check_events(&mut self, there: &BTreeMap<(&str, u64), u64>, last: impl Fn(&str) -> u64, was_up: bool) {
        let numbers: BTreeSet<u64> = there.values().copied().collect();
        assert_eq!(numbers.len(), there.len(), "an event is there twice");
        let mut keys: BTreeMap<(&str, &str), (u64, usize)> = BTreeMap::new();
        let mut firsts: BTreeMap<(&str, u64), u64> = BTreeMap::new();
        for (number, asked) in self.asked.iter().filter(|(_, asked)| asked.room != "quote:1") {
            let published = match &*asked.outcome.lock().expect("one thread") {
                Some(Ok(published)) => *published,
                Some(Err(refused)) => {
                    assert_eq!(refused.code, ErrorCode::Unavailable);
                    if numbers.contains(number) {
                        // Nothing could be written any more, so that nothing could say that it does not count.
                        assert!(!was_up || self.returned.contains(number), "{number} was refused, and is there");
                        self.returned.insert(*number);
                    }
                    continue;
                }
                None => continue,
            };
            let epoch = format!("{:016x}", published.epoch);
            let known = self.epochs.entry(asked.room.clone()).or_insert_with(|| epoch.clone());
            assert_eq!(*known, epoch, "{asked:?}");
            let seq = published.seq;
            let last = last(&asked.room);
            assert!(seq <= last, "{asked:?} was acknowledged, the last is {last}");
            if let Some(key) = &asked.key {
                // Across a crash keys are known as far as their events are.
                let (former, life) = keys.insert((&asked.room, key), (seq, asked.life)).unwrap_or((seq, asked.life));
                let was_cleared = self.clears.iter().any(|clear| clear.room == asked.room);
                let is_forgotten =
                    was_cleared || life < asked.life && seq > former + events_max(&self.config, &asked.room);
                assert!(former == seq || is_forgotten, "{asked:?} was published before as {former:?}");
            }
            if !published.duplicate {
                let former = firsts.insert((&asked.room, seq), *number);
                assert_eq!(former, None, "a number was given twice: {asked:?}");
            }
            // A key may be known for longer than the event that had it.
            let is_behind = |upto| *number > upto && !published.duplicate;
            let meant = |clear: &&Clear| clear.room == asked.room && !clear.upto.is_some_and(is_behind);
            let may_be_gone = self.clears.iter().any(|clear| meant(&clear));
            let is_gone = |clear: &Clear| clear.is_sure && clear.room == asked.room && seq <= clear.seq;
            let expected = seq + events_max(&self.config, &asked.room) > last && !may_be_gone;
            if self.clears.iter().any(is_gone) {
                assert!(!there.contains_key(&(asked.room.as_str(), seq)), "{asked:?} is back");
            }
            match there.get(&(asked.room.as_str(), seq)) {
                Some(found) => assert!(published.duplicate || found == number, "{asked:?} is {found}"),
                None => assert!(!expected, "{asked:?} is gone; the last is {last}"),
            }
        }
        for (room, seq, number) in &self.given {
            if let Some(found) = there.get(&(room.as_str(), *seq)) {
                assert_eq!(found, number, "{room} {seq}");
            }
            assert!(*seq <= last(room), "{room} {seq} was given to a reader, and is gone");
        }
    }

    /// What the running hub says of its rooms; to be called at rest.
    fn check_history(&mut self) {
        let mut client = self.node.client(0, "");
        let ask = |room: &&str| json!({"room": room, "limit": 1000});
        let ids: Vec<u64> = ROOMS.iter().map(|room| client.send("history", ask(room))).collect();
        self.node.settle();
        client.poll();
        let mut there: BTreeMap<(&str, u64), u64> = BTreeMap::new();
        let mut lasts = BTreeMap::new();
        for (room, id) in ROOMS.iter().zip(ids) {
            let data = &client.answer(id).expect("answered")["data"];
            lasts.insert(*room, data["seq"].as_u64().expect("a number"));
            for event in data["events"].as_array().expect("events") {
                let number = event["data"]["number"].as_u64().expect("a number");
                there.insert((*room, event["seq"].as_u64().expect("a number")), number);
            }
        }
        self.check_events(&there, |room| lasts.get(room).copied().unwrap_or(0), true);
    }
}

fn anchor(node: &mut Node) -> Client {
    let mut client = node.client(0, "");
    client.send("subscribe", json!({"rooms": ROOMS}));
    node.settle();
    client
}

/// How many events are kept of a room.
fn events_max(config: &Config, room: &str) -> u64 {
    let kind = config.kind(room.split_once(':').map_or(room, |(kind, _)| kind)).expect("a kind");
    config.history_events_max(kind).into()
}

/// A process: its shards, and its journal, which has begun its first file.
fn start(seed: u64, shards: u16, config: &Config, disk: &SimDisk, rebuilt: Rebuilt) -> (Node, Journal) {
    let (link, intake) = link(shards).expect("a link");
    let Rebuilt { rooms, book, .. } = rebuilt;
    let faults = if seed.is_multiple_of(4) { Faults::none() } else { Faults::rough() };
    let node = Node::with_links(seed, shards, faults, config.clone(), Some((link, rooms)), None);
    let mesh = node.mesh.clone();
    let wake = Box::new(move |shard| drop(mesh.request(ShardId(shard), Request::Look)));
    let figures: Arc<JournalFigures> = Arc::default();
    let bounds = Bounds { segment_bytes: config.journal.segment_bytes, bytes_max: config.journal.bytes_max };
    let writer = Writer::new(disk.clone(), &intake, wake, bounds, book, figures.clone());
    let started = Arc::new(AtomicBool::new(false));
    let mut journal = Journal { writer: Box::pin(write(writer, intake, started.clone())), figures };
    while !started.load(Ordering::Relaxed) {
        assert!(journal.writer.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    (node, journal)
}

async fn write(mut writer: Writer<SimDisk>, intake: Intake, started: Arc<AtomicBool>) {
    writer.start().await.expect("the disk is sound at start");
    started.store(true, Ordering::Relaxed);
    let _intake = intake;
    loop {
        if !writer.cycle().await {
            let mut waited = false;
            std::future::poll_fn(|_| {
                if std::mem::replace(&mut waited, true) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
            })
            .await;
        }
    }
}
