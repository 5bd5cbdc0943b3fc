//! Streams of server-sent events beside native readers: readers that stop for a while, are cut off anywhere, come back
//! with their last id to another shard, ask for the past, or say a cursor that is none.
//!
//! A reader has one number per room: the last event that it was given, or was told that it won't get. Whatever comes has to
//! follow on that without a hole, over all of its connections, and every id has to say exactly these numbers.
//!
//! `RINGHUB_SEEDS=10000` runs more seeds; `RINGHUB_SEED=17` runs one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use ringhub::config::{Config, Policy};
use ringhub::hub::message::{Publish, ReplyTo};
use ringhub::ring::sim::{Faults, SimClient};
use ringhub::shard::request::Request;
use ringhub::wire::sse::parse_cursor;
use serde_json::{Value, json};

use crate::client::Client;
use crate::logs::draw_urgent;
use crate::model::seeds;
use crate::node::{Node, config};

const SEEDS: u64 = 100;
const ROOMS: [&str; 5] = ["project:0", "project:1", "quote:0", "quote:1", "global"];
const STEPS: usize = 300;
const READERS_MAX: usize = 10;

/// An event of a stream: its fields by name, the lines of its data put together.
#[derive(Debug, Clone, Default, PartialEq)]
struct StreamEvent {
    name: Option<String>,
    id: Option<String>,
    data: Option<String>,
    retry: Option<u64>,
}

/// A connection that reads events as the standard says.
struct StreamClient {
    link: SimClient,
    unread: Vec<u8>,
    head: Option<String>,
    event: StreamEvent,
    events: Vec<StreamEvent>,
    comments: usize,
    /// Of the last event that came whole.
    last_event_id: String,
}

impl StreamClient {
    fn connect(node: &Node, shard: usize, query: &str, headers: &str) -> StreamClient {
        let link = node.world.connect(shard);
        link.write(format!("GET /events?{query} HTTP/1.1\r\nHost: h\r\n{headers}\r\n").as_bytes());
        StreamClient {
            link,
            unread: Vec::new(),
            head: None,
            event: StreamEvent::default(),
            events: Vec::new(),
            comments: 0,
            last_event_id: String::new(),
        }
    }

    fn status(&self) -> Option<u16> {
        self.head.as_deref()?.split(' ').nth(1)?.parse().ok()
    }

    fn poll(&mut self) {
        self.unread.extend(self.link.read());
        if self.head.is_none() {
            let Some(end) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") else { return };
            self.head = Some(String::from_utf8(self.unread.drain(..end + 4).collect()).expect("a head is ASCII"));
        }
        if self.status() != Some(200) {
            return;
        }
        while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.unread.drain(..=end).collect();
            let line = String::from_utf8(line).expect("text");
            self.line(line.trim_end_matches('\n'));
        }
    }

    fn line(&mut self, line: &str) {
        assert!(!line.contains('\r'), "{line:?} is two lines for some");
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            if let Some(id) = &event.id {
                self.last_event_id.clone_from(id);
            }
            self.events.push(event);
            return;
        }
        let (field, value) = line.split_once(':').expect("every line has a colon");
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => self.comments += 1,
            "id" => self.event.id = Some(value.to_owned()),
            "event" => self.event.name = Some(value.to_owned()),
            "retry" => self.event.retry = Some(value.parse().expect("a number")),
            "data" => match &mut self.event.data {
                Some(data) => *data = format!("{data}\n{value}"),
                None => self.event.data = Some(value.to_owned()),
            },
            other => panic!("{other:?} is no field"),
        }
    }

    /// The events of that name, as JSON; of rooms where the name is empty.
    fn named(&self, name: &str) -> Vec<Value> {
        let of_name = |event: &&StreamEvent| event.name.as_deref().unwrap_or_default() == name && event.data.is_some();
        let data = self.events.iter().filter(of_name).filter_map(|event| event.data.as_deref());
        data.map(|data| serde_json::from_str(data).expect("JSON")).collect()
    }
}

/// Someone who wants some rooms' events, over one connection after the other.
struct Reader {
    rooms: Vec<String>,
    client: StreamClient,
    seen: usize,
    cursors: BTreeMap<String, u64>,
    /// What its present connection began with.
    began_with: BeganWith,
    opened: bool,
    gone: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BeganWith {
    Nothing,
    Last(u64),
    ItsLastId,
    NoCursor,
}

type Truth = BTreeMap<(String, u64), u64>;

struct Run {
    rng: Rng,
    node: Node,
    events_max: u64,
    readers: Vec<Reader>,
    native: Client,
    truth: Arc<Mutex<Truth>>,
    gaps: Vec<(String, u64, u64)>,
    next_number: u64,
}

#[test]
fn a_stream_is_given_every_event_or_told_which_it_is_not_over_all_of_its_connections() {
    for seed in seeds(SEEDS) {
        let run = std::panic::catch_unwind(|| Run::new(seed).run());
        assert!(run.is_ok(), "RINGHUB_SEED={seed} fails");
    }
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut rng = Rng::with_seed(seed);
        let mut config = config();
        config.history.events_max = rng.u32(5..=30);
        config.limits.outbox_bytes_max = rng.usize(4096..=16384);
        config.shards.turn_deliveries_max = rng.u32(1..8);
        config.history.age_s = 3600;
        if rng.u8(..3) == 0 {
            config.limits.outbox_shard_bytes_max = rng.usize(10_000..60_000);
        }
        let events_max = u64::from(config.history.events_max);
        let faults = if rng.u8(..4) == 0 { Faults::none() } else { Faults::rough() };
        draw_urgent(&mut rng, &mut config);
        let mut node = Node::new(seed, rng.u16(1..=4), faults, config);
        let mut native = node.client(0, "");
        native.send("subscribe", json!({"rooms": ROOMS}));
        node.settle();
        native.poll();
        native.messages.clear();
        Run {
            rng,
            node,
            events_max,
            readers: Vec::new(),
            native,
            truth: Arc::default(),
            gaps: Vec::new(),
            next_number: 0,
        }
    }

    fn run(mut self) {
        // A room that had an event lives on, so that each has one epoch.
        ROOMS.into_iter().for_each(|room| self.publish(room));
        self.node.settle();
        for _ in 0..STEPS {
            match self.rng.u8(..20) {
                0..=1 if self.readers.len() < READERS_MAX => self.arrive(),
                0..=7 => {
                    let room = ROOMS[self.rng.usize(..ROOMS.len())];
                    (0..self.rng.u8(1..6)).for_each(|_| self.publish(room));
                }
                8..=10 => self.stop_or_go_on(),
                11..=13 => self.cut(),
                14..=16 => self.come_back(),
                17 => self.node.world.advance(Duration::from_millis(120)),
                _ => {}
            }
            for _ in 0..self.rng.usize(0..5) {
                let shard = self.rng.usize(..self.node.shards());
                self.node.turn_of(shard);
            }
            self.look();
        }
        self.check();
        self.native.link.close();
        self.readers.iter().for_each(|reader| reader.client.link.close());
        self.node.assert_empty();
    }

    fn publish(&mut self, room: &str) {
        self.next_number += 1;
        let number = self.next_number;
        let filling = "x".repeat(self.rng.usize(..1500));
        // The publisher's bytes are passed on as they are, line ends between tokens included.
        let end = ["", "\n", "\r\n", "\r"][self.rng.usize(..4)];
        let data = Bytes::from(format!("{{{end}\"number\":{end}{number}, \"filling\":\"{filling}\"{end}}}"));
        let name = self.node.hasher.room(room);
        let home = usize::from(name.home(self.node.shards() as u16).0);
        let (truth, room) = (self.truth.clone(), room.to_owned());
        let reply = ReplyTo::Handle(Box::new(move |outcome| {
            let seq = outcome.expect("published").seq;
            assert_eq!(truth.lock().expect("one thread").insert((room, seq), number), None);
        }));
        let publish = Publish { room: name, kind: "k".into(), data, key: None, exclude: None, received_us: 0, reply };
        self.node.request(home, Request::Publish(Box::new(publish)));
    }

    fn arrive(&mut self) {
        let mut rooms: Vec<String> = ROOMS.map(str::to_owned).to_vec();
        self.rng.shuffle(&mut rooms);
        rooms.truncate(self.rng.usize(1..=ROOMS.len()));
        let began_with = match self.rng.u8(..4) {
            0 => BeganWith::Last(self.rng.u64(0..2 * self.events_max)),
            1 => BeganWith::NoCursor,
            _ => BeganWith::Nothing,
        };
        let client = self.connect(&rooms, began_with, "");
        let (seen, cursors) = (0, BTreeMap::new());
        self.readers.push(Reader { rooms, client, seen, cursors, began_with, opened: false, gone: false });
    }

    fn connect(&mut self, rooms: &[String], begin: BeganWith, last_event_id: &str) -> StreamClient {
        let mut query: Vec<String> = rooms.iter().map(|room| format!("room={room}")).collect();
        let mut headers = String::new();
        match begin {
            BeganWith::Nothing => {}
            BeganWith::Last(count) => query.push(format!("since=last:{count}")),
            BeganWith::NoCursor => headers = "Last-Event-ID: 0123-of-another\r\n".to_owned(),
            BeganWith::ItsLastId if self.rng.bool() => query.push(format!("last_event_id={last_event_id}")),
            BeganWith::ItsLastId => headers = format!("Last-Event-ID: {last_event_id}\r\n"),
        }
        let shard = self.rng.usize(..self.node.shards());
        StreamClient::connect(&self.node, shard, &query.join("&"), &headers)
    }

    fn choose(&mut self, gone: bool) -> Option<usize> {
        let all: Vec<usize> = (0..self.readers.len()).filter(|&one| self.readers[one].gone == gone).collect();
        self.rng.choice(all)
    }

    fn stop_or_go_on(&mut self) {
        let Some(who) = self.choose(false) else { return };
        let bytes = match self.rng.u8(..4) {
            0 | 1 => 0,
            2 => self.rng.usize(..20_000),
            _ => usize::MAX,
        };
        self.readers[who].client.link.set_read_budget(bytes);
    }

    fn cut(&mut self) {
        let Some(who) = self.choose(false) else { return };
        let way = self.rng.u8(..3);
        let reader = &mut self.readers[who];
        reader.gone = true;
        match way {
            0 => reader.client.link.close(),
            1 => reader.client.link.finish(),
            _ => reader.client.link.reset(),
        }
    }

    fn come_back(&mut self) {
        if let Some(who) = self.choose(true) {
            self.come_back_as(who);
        }
    }

    fn come_back_as(&mut self, who: usize) {
        let (rooms, mut began_with) = (self.readers[who].rooms.clone(), self.readers[who].began_with);
        let last_event_id = self.readers[who].client.last_event_id.clone();
        // Who was cut off before anything came begins anew.
        if !last_event_id.is_empty() {
            began_with = BeganWith::ItsLastId;
        }
        let mut client = self.connect(&rooms, began_with, &last_event_id);
        client.last_event_id = last_event_id;
        let reader = &mut self.readers[who];
        (reader.client, reader.seen, reader.opened, reader.gone) = (client, 0, false, false);
        reader.began_with = began_with;
    }

    fn look(&mut self) {
        self.native.poll();
        for reader in &mut self.readers {
            // What reaches it once it is gone, it does not know.
            if reader.gone {
                continue;
            }
            reader.client.poll();
            assert!(matches!(reader.client.status(), None | Some(200)), "{:?}", reader.client.head);
            while let Some(event) = reader.client.events.get(reader.seen).cloned() {
                reader.seen += 1;
                told(reader, &event, &self.truth, &mut self.gaps);
            }
        }
    }

    /// At the end everybody has everything.
    fn check(&mut self) {
        for who in 0..self.readers.len() {
            if self.readers[who].gone {
                self.come_back_as(who);
            }
            self.readers[who].client.link.set_read_budget(usize::MAX);
        }
        // Streams that wait for memory look for it now and then.
        self.node.pass(Duration::from_secs(5));
        self.look();
        let truth = self.truth.lock().expect("one thread");
        let last = |room: &str| truth.keys().filter(|(of, _)| of == room).map(|(_, seq)| *seq).max().unwrap_or(0);
        for (number, reader) in self.readers.iter().enumerate() {
            for room in &reader.rooms {
                assert_eq!(reader.cursors.get(room), Some(&last(room)), "{room} of reader {number}");
            }
        }
        for (room, from, to) in &self.gaps {
            assert!(from <= to && to + self.events_max <= last(room), "{room} has {from} to {to} in its log");
        }
        // The native reader has the same events under the same numbers, but for gaps of its own.
        for room in ROOMS {
            let mut seqs = self.native.seqs(room);
            for gap in self.native.messages.iter().filter(|gap| gap["type"] == "gap" && gap["data"]["room"] == room) {
                let number = |key: &str| gap["data"][key].as_u64().expect("a number");
                seqs.extend(number("from_seq")..=number("to_seq"));
            }
            seqs.sort_unstable();
            assert_eq!(seqs, (1..=last(room)).collect::<Vec<_>>());
        }
        for event in self.native.messages.iter().filter(|event| event["seq"].is_u64()) {
            let key = (event["room"].as_str().expect("text").to_owned(), event["seq"].as_u64().expect("a number"));
            assert_eq!(truth.get(&key), event["data"]["number"].as_u64().as_ref());
        }
    }
}

fn told(reader: &mut Reader, event: &StreamEvent, truth: &Mutex<Truth>, gaps: &mut Vec<(String, u64, u64)>) {
    let data: Option<Value> = event.data.as_deref().map(|data| serde_json::from_str(data).expect("JSON"));
    match (event.name.as_deref(), data) {
        (None, None) => {
            let id = event.id.as_deref().expect("an event without data has an id");
            let marks = parse_cursor(id, reader.rooms.len()).expect("a cursor");
            assert!(!std::mem::replace(&mut reader.opened, true), "a stream opens once");
            for (room, mark) in reader.rooms.iter().zip(&marks) {
                let before = reader.cursors.insert(room.clone(), mark.seq);
                if reader.began_with == BeganWith::ItsLastId {
                    assert_eq!(before, Some(mark.seq), "it goes on in {room} where it was");
                }
            }
        }
        (None, Some(event)) => {
            let room = event["room"].as_str().expect("text").to_owned();
            let seq = event["seq"].as_u64().expect("a number");
            let cursor = reader.cursors.get_mut(&room).expect("a room that it asked for");
            assert_eq!(seq, *cursor + 1, "{room} goes on without a hole");
            *cursor = seq;
            // A publisher may hear of it later than a reader.
            if let Some(number) = truth.lock().expect("one thread").get(&(room, seq)) {
                assert_eq!(event["data"]["number"], *number);
            }
        }
        (Some("gap"), Some(gap)) if !reader.opened => {
            assert_eq!((&gap["data"]["reason"], reader.began_with), (&json!("cursor"), BeganWith::NoCursor));
            assert_eq!(event.id, None, "who is cut off right here is told again");
        }
        (Some("gap"), Some(gap)) => {
            let gap = &gap["data"];
            let room = gap["room"].as_str().expect("text").to_owned();
            let (from, to) = (gap["from_seq"].as_u64().expect("a number"), gap["to_seq"].as_u64().expect("a number"));
            let cursor = reader.cursors.get_mut(&room).expect("a room that it asked for");
            assert_eq!((from, &gap["reason"]), (*cursor + 1, &json!("history")));
            *cursor = to;
            gaps.push((room, from, to));
        }
        other => panic!("{other:?} was not expected"),
    }
    if let (true, Some(id)) = (reader.opened, event.id.as_deref()) {
        let marks = parse_cursor(id, reader.rooms.len()).expect("a cursor");
        let said: Vec<u64> = marks.iter().map(|mark| mark.seq).collect();
        let known: Vec<u64> = reader.rooms.iter().map(|room| reader.cursors[room]).collect();
        assert_eq!(said, known, "an id says what the reader has");
    }
}

// One thing at a time.

fn node(config: Config) -> Node {
    Node::new(1, 2, Faults::none(), config)
}

fn stream(node: &mut Node, query: &str, headers: &str) -> StreamClient {
    let mut client = StreamClient::connect(node, 0, query, headers);
    node.settle();
    client.poll();
    client
}

fn publish(node: &mut Node, room: &str, bytes: usize) {
    let name = node.hasher.room(room);
    let home = usize::from(name.home(node.shards() as u16).0);
    let data = Bytes::from(json!("x".repeat(bytes)).to_string());
    let (key, exclude, reply) = (None, None, ReplyTo::Nobody);
    let publish = Publish { room: name, kind: "k".into(), data, key, exclude, received_us: 0, reply };
    node.request(home, Request::Publish(Box::new(publish)));
    node.settle();
}

#[test]
fn a_stream_has_the_rooms_it_asked_for_and_leaves_nothing_behind() {
    let mut node = node(config());
    let client = stream(&mut node, "room=project:1&room=global", "");
    let head = client.head.clone().expect("an answer");
    for line in ["Content-Type: text/event-stream\r\n", "X-Accel-Buffering: no\r\n", "Cache-Control: no-store"] {
        assert!(head.contains(line), "{head}");
    }
    assert!(!head.to_lowercase().contains("content-length"));
    assert_eq!(client.events.len(), 1);
    assert!(client.events[0].retry.is_some() && client.events[0].id.is_some());
    let figures = node.figures();
    assert_eq!((figures.connections, figures.streams, figures.subscriptions, figures.rooms), (1, 1, 2, 2));
    client.link.close();
    node.settle();
    // Its rooms are kept for the time that a session would be, so that it may come back to the logs it knows.
    let figures = node.figures();
    assert_eq!((figures.connections, figures.streams, figures.subscriptions, figures.rooms), (0, 0, 0, 2));
    let mut again =
        stream(&mut node, "room=project:1&room=global", &format!("Last-Event-ID: {}\r\n", client.last_event_id));
    publish(&mut node, "project:1", 1);
    again.poll();
    assert_eq!((again.named("").len(), again.named("gap").len()), (1, 0));
    again.link.close();
    node.settle();
    let window = config().session.resume_window_s;
    node.pass(Duration::from_secs(window - 2));
    assert_eq!(node.figures().rooms, 2);
    node.pass(Duration::from_secs(4));
    assert_eq!(node.figures().rooms, 0);
    let figures = node.figures();
    assert_eq!((figures.closes["1005"], figures.closes["abnormal"]), (2, 0), "that is how streams end");
    node.assert_empty();
}

#[test]
fn a_stream_that_begins_in_another_life_of_a_log_is_told_so_and_gets_all_of_this_one() {
    let mut node = node(config());
    let first = stream(&mut node, "room=project:1", "");
    publish(&mut node, "project:1", 1);
    publish(&mut node, "project:1", 1);
    let id = first.last_event_id.clone();
    let (epoch, _) = id.split_once('~').expect("a mark");
    for (id, expected) in [("1~1".to_owned(), 2), (format!("{epoch}~9"), 2), (format!("{epoch}~1"), 1)] {
        let again = stream(&mut node, "room=project:1", &format!("Last-Event-ID: {id}\r\n"));
        assert_eq!(again.named("").len(), expected, "{id}");
        let gaps = again.named("gap");
        let reasons: Vec<&str> = gaps.iter().filter_map(|gap| gap["data"]["reason"].as_str()).collect();
        assert_eq!(reasons, ["epoch"][..expected - 1], "{id}");
        again.link.close();
    }
    first.link.close();
    node.assert_empty();
}

#[test]
fn a_silent_stream_gets_comments_and_one_that_takes_nothing_is_closed() {
    let mut node = node(config());
    let mut alive = stream(&mut node, "room=project:1", "");
    let dead = stream(&mut node, "room=project:1", "");
    dead.link.set_read_budget(0);
    let heartbeat = config().heartbeat;
    node.pass(Duration::from_secs(heartbeat.interval_s + heartbeat.timeout_s + 1));
    let figures = node.figures();
    assert_eq!((figures.streams, figures.closes["4408"]), (1, 1));
    node.pass(Duration::from_secs(3 * heartbeat.interval_s));
    alive.poll();
    assert_eq!((alive.comments, alive.events.len()), (4, 1));
    publish(&mut node, "project:1", 1);
    alive.poll();
    assert_eq!(alive.named("").len(), 1);
    alive.link.close();
    node.assert_empty();
}

#[test]
fn what_is_sent_on_a_stream_means_nothing_until_it_is_too_much() {
    let mut node = node(config());
    let mut client = stream(&mut node, "room=project:1", "");
    client.link.write(b"GET /events?room=project:2 HTTP/1.1\r\nHost: h\r\n\r\n");
    publish(&mut node, "project:1", 1);
    client.poll();
    assert_eq!((client.named("").len(), node.figures().streams), (1, 1));
    client.link.write(&vec![b'x'; 256 * 1024]);
    node.settle();
    client.poll();
    assert_eq!(client.named("close")[0]["code"], 1008);
    client.link.close();
    node.assert_empty();
}

#[test]
fn a_stream_that_is_too_slow_for_its_room_is_told_so_behind_whole_events() {
    let mut config = config();
    config.limits.outbox_bytes_max = 4096;
    config.kinds.iter_mut().filter(|kind| kind.name == "project").for_each(|kind| kind.policy = Policy::Disconnect);
    let mut node = node(config);
    let mut client = stream(&mut node, "room=project:1&room=quote:1", "");
    client.link.set_read_budget(1000);
    (0..8).for_each(|_| publish(&mut node, "project:1", 2000));
    assert_eq!(node.figures().slow_closes, 1);
    client.link.set_read_budget(usize::MAX);
    node.settle();
    client.poll();
    assert_eq!(client.named("close")[0]["code"], 4508);
    let seqs: Vec<_> = client.named("").iter().filter_map(|event| event["seq"].as_u64()).collect();
    assert!(!seqs.is_empty() && seqs.len() < 8, "{seqs:?}");
    client.link.close();
    // It can go on where it was.
    let last = client.last_event_id.clone();
    let again = stream(&mut node, "room=project:1&room=quote:1", &format!("Last-Event-ID: {last}\r\n"));
    assert_eq!(again.named("")[0]["seq"], seqs.len() as u64 + 1);
    again.link.close();
    node.assert_empty();
}

#[test]
fn streams_are_drained_with_a_time_to_come_back() {
    let mut node = node(config());
    let mut client = stream(&mut node, "room=project:1", "");
    for shard in 0..2 {
        node.request(shard, Request::Drain { over_ms: 1000, spread_ms: 5000 });
    }
    node.settle();
    client.poll();
    assert!(client.named("draining")[0]["data"]["reconnect_after_ms"].is_u64());
    node.pass(Duration::from_secs(2));
    client.poll();
    let last = client.events.last().expect("events");
    assert_eq!((last.name.as_deref(), client.named("close")[0]["code"].as_u64()), (Some("close"), Some(1001)));
    assert!(last.retry.is_some_and(|retry_ms| (500..=5000).contains(&retry_ms)), "{last:?}");
    assert!(client.link.is_closed());
    client.link.close();
    node.pass(Duration::from_secs(1));
    assert!(!node.is_running(0) && !node.is_running(1));
}

#[test]
fn streams_that_can_share_nothing_wait_for_memory_one_behind_the_other() {
    let mut config = config();
    config.limits.outbox_shard_bytes_max = 1 << 20;
    config.history.bytes_max = 16 << 20;
    let mut node = node(config);
    // Each has a room of its own, where something has happened, and so ids of its own.
    let mut clients: Vec<_> =
        (0..20).map(|number| stream(&mut node, &format!("room=quote:{number}&room=global"), "")).collect();
    let before = node.figures().outbox_bytes;
    clients.iter().for_each(|client| client.link.set_read_budget(0));
    publish(&mut node, "global", 400_000);
    let waiting = node.figures().outbox_bytes.saturating_sub(before);
    assert!(waiting < (1 << 20) + 2 * 410_000, "{waiting}");
    for client in &mut clients {
        client.link.set_read_budget(usize::MAX);
    }
    // Nothing but time tells those who wait that there is memory again.
    node.pass(Duration::from_secs(5));
    for client in &mut clients {
        client.poll();
        assert_eq!((client.named("").len(), client.named("gap").len()), (1, 0));
        client.link.close();
    }
    node.assert_empty();
}

#[test]
fn streams_that_are_equally_far_in_the_same_rooms_share_the_same_bytes() {
    let mut node = node(config());
    let mut clients: Vec<_> = (0..50).map(|_| stream(&mut node, "room=project:1", "")).collect();
    clients.extend((0..50).map(|_| stream(&mut node, "room=project:1&room=quote:1", "")));
    clients.iter().for_each(|client| client.link.set_read_budget(0));
    let before = node.figures().outbox_bytes;
    publish(&mut node, "project:1", 200_000);
    let waiting = node.figures().outbox_bytes.saturating_sub(before);
    // The log has the native bytes; those of the streams of one room and of two are each there once.
    assert!(waiting < 3 * 210_000, "{waiting}");
    for client in &mut clients {
        client.link.set_read_budget(usize::MAX);
        node.settle();
        client.poll();
        assert_eq!(client.named("").len(), 1);
        client.link.close();
    }
    node.assert_empty();
}
