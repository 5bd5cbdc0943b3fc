//! A simulated client of Engine.IO and Socket.IO: it polls as the control plane does for it, or has a WebSocket, or goes from
//! the one to the other.

use futures_util::FutureExt as _;
use ringhub::control::{ConnectionOrigin, EngineAnswer, EngineOpened};
use ringhub::hub::reply::{Pending, pending};
use ringhub::ring::sim::SimClient;
use ringhub::session::handshake::EnginePath;
use ringhub::shard::request::Request;
use ringhub::shard::shard_of_sid;
use serde_json::{Value, json};

use crate::client::{Incoming, frame, upgrade};
use crate::node::Node;

pub const PATH: &str = "/socket.io/";

/// A packet of Socket.IO.
#[derive(Debug, Clone, PartialEq)]
pub struct Packet {
    pub namespace: String,
    /// The digit of its type.
    pub kind: char,
    pub id: Option<u64>,
    pub payload: Value,
}

/// A WebSocket.
pub struct Link {
    pub client: SimClient,
    incoming: Incoming,
}

enum Transport {
    Opening(Pending<EngineOpened>),
    /// With the poll that waits.
    Polling(Option<Pending<EngineAnswer>>),
    WebSocket(Link),
}

/// How far an upgrade is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Probing {
    Opening,
    Probed,
    Answered,
}

pub struct EngineClient {
    pub sid: Option<String>,
    /// Packets of Socket.IO, oldest first.
    pub packets: Vec<Packet>,
    pub pings: usize,
    /// How it ended, as far as it was told.
    pub closed: Option<String>,
    /// Whether it asks for more where it polls.
    pub reads: bool,
    /// It polls, or did so before.
    pub has_polled: bool,
    /// Bytes of the answers to its polls.
    pub polled_bytes: usize,
    /// Whether it goes over to a WebSocket that it has tried.
    pub upgrades: bool,
    is_finished: bool,
    transport: Transport,
    probe: Option<(Link, Probing)>,
    pushes: Vec<Pending<EngineAnswer>>,
    second_poll: Option<Pending<EngineAnswer>>,
    /// Waits until it has changed its transport.
    queue: Vec<String>,
}

fn read_packet(text: &str) -> Packet {
    let kind = text.chars().next().expect("a type");
    let mut rest = &text[1..];
    assert!(!matches!(kind, '5' | '6'), "the hub sends no attachments: {text}");
    let mut namespace = "/";
    if rest.starts_with('/') {
        let end = rest.find(',').unwrap_or(rest.len());
        namespace = &rest[..end];
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let id = rest[..digits].parse().ok();
    let payload = &rest[digits..];
    let payload = if payload.is_empty() { Value::Null } else { serde_json::from_str(payload).expect("JSON") };
    Packet { namespace: namespace.to_owned(), kind, id, payload }
}

impl Packet {
    /// The object of an event or of an answer.
    pub fn object(&self) -> &Value {
        let arguments = self.payload.as_array().expect("an array");
        let place = usize::from(self.kind == '2');
        assert_eq!(arguments.len(), place + 1, "{self:?}");
        &arguments[place]
    }
}

impl EngineClient {
    /// A session that begins with polls, on that shard.
    pub fn poll_at(node: &Node, shard: usize, query: &str) -> EngineClient {
        let head = format!("GET {PATH}?EIO=4&transport=polling{query} HTTP/1.1\r\nHost: h\r\n\r\n").into_bytes();
        let (responder, opening) = pending();
        node.request(shard, Request::EngineOpen { head, origin: ConnectionOrigin::default(), responder });
        EngineClient { has_polled: true, ..EngineClient::with(Transport::Opening(opening)) }
    }

    /// A session over a WebSocket.
    pub fn connect(node: &Node, shard: usize, query: &str) -> EngineClient {
        EngineClient::with(Transport::WebSocket(Link::open(node, shard, query)))
    }

    fn with(transport: Transport) -> EngineClient {
        EngineClient {
            sid: None,
            packets: Vec::new(),
            pings: 0,
            closed: None,
            reads: true,
            has_polled: false,
            polled_bytes: 0,
            upgrades: true,
            is_finished: false,
            transport,
            probe: None,
            pushes: Vec::new(),
            second_poll: None,
            queue: Vec::new(),
        }
    }

    /// The link of its WebSocket.
    pub fn link(&self) -> Option<&SimClient> {
        match &self.transport {
            Transport::WebSocket(link) => Some(&link.client),
            _ => None,
        }
    }

    /// The link that it tries.
    pub fn probe_link(&self) -> Option<&SimClient> {
        self.probe.as_ref().map(|(link, _)| &link.client)
    }

    /// Whether the WebSocket that it tries has answered.
    pub fn may_upgrade(&self) -> bool {
        self.probe.as_ref().is_some_and(|(_, probing)| *probing == Probing::Answered)
    }

    pub fn is_polling(&self) -> bool {
        matches!(self.transport, Transport::Polling(_))
    }

    /// Its session's shard, where that is known.
    pub fn shard(&self, node: &Node) -> Option<usize> {
        let sid = self.sid.as_deref()?;
        let shard = shard_of_sid(sid, EnginePath::SocketIo, &node.hasher, node.shards() as u16);
        Some(usize::from(shard.expect("an id of this node").0))
    }

    // ---- sending ----

    pub fn emit(&mut self, node: &Node, namespace: &str, id: Option<u64>, name: &str, argument: &Value) {
        let id = id.map(|id| id.to_string()).unwrap_or_default();
        self.send(node, &format!("42{}{id}{}", prefix(namespace), json!([name, argument])));
    }

    /// Asks for a namespace.
    pub fn enter(&mut self, node: &Node, namespace: &str, auth: &Value) {
        let auth = if auth.is_null() { String::new() } else { auth.to_string() };
        self.send(node, &format!("40{}{auth}", prefix(namespace)));
    }

    pub fn leave(&mut self, node: &Node, namespace: &str) {
        self.send(node, &format!("41{}", prefix(namespace)));
    }

    /// Sends a packet of Engine.IO, or several as a payload.
    pub fn send(&mut self, node: &Node, text: &str) {
        if self.probe.as_ref().is_some_and(|(_, probing)| *probing == Probing::Answered) {
            return self.queue.push(text.to_owned());
        }
        match &self.transport {
            Transport::WebSocket(link) => {
                text.split('\u{1e}').for_each(|packet| link.client.write(&frame(1, packet.as_bytes())));
            }
            _ if self.sid.is_none() => self.queue.push(text.to_owned()),
            _ => self.push(node, text),
        }
    }

    /// Ends its session, once.
    pub fn finish(&mut self, node: &Node) {
        self.give_up_probe(node);
        if !std::mem::replace(&mut self.is_finished, true) {
            self.send(node, "1");
        }
    }

    fn push(&mut self, node: &Node, text: &str) {
        let (Some(sid), Some(shard)) = (self.sid.as_deref(), self.shard(node)) else { return };
        let (responder, answer) = pending();
        node.request(shard, Request::EnginePush { sid: sid.into(), body: text.into(), responder });
        self.pushes.push(answer);
    }

    /// Tries a WebSocket, on any shard.
    pub fn probe(&mut self, node: &Node, shard: usize) {
        let Some(sid) = &self.sid else { return };
        if self.is_polling() && self.probe.is_none() {
            self.probe = Some((Link::open(node, shard, &format!("&sid={sid}")), Probing::Opening));
        }
    }

    /// Polls, whether or not it does so already. Of two polls the second one is refused, and the session ends.
    pub fn poll_twice(&mut self, node: &Node) {
        let (Some(sid), Some(shard)) = (self.sid.as_deref(), self.shard(node)) else { return };
        let (responder, answer) = pending();
        node.request(shard, Request::EnginePoll { sid: sid.into(), responder });
        self.second_poll = Some(answer);
    }

    /// Lets go of the poll that waits, whether or not it was answered.
    pub fn drop_poll(&mut self) {
        if let Transport::Polling(poll) = &mut self.transport {
            *poll = None;
        }
    }

    /// Waits no longer for the answer to its poll, unless that has come.
    pub fn abandon_poll(&mut self, node: &Node) {
        let Transport::Polling(poll) = &mut self.transport else { return };
        if let Some(Ok(EngineAnswer::Payload(payload))) = poll.take().and_then(|mut poll| poll.close()) {
            self.payload(node, &payload);
        }
    }

    // ---- reading ----

    /// Reads what has arrived, answers pings, polls again, and goes on with an upgrade.
    pub fn poll(&mut self, node: &Node) {
        // One that is refused tells that the session has ended, or is about to: its polls have its last words.
        self.pushes.retain_mut(|push| push.now_or_never().is_none());
        match &mut self.transport {
            Transport::Opening(opening) => match opening.now_or_never() {
                None => {}
                Some(Ok(EngineOpened::Session { payload, .. })) => {
                    self.transport = Transport::Polling(None);
                    self.payload(node, &payload);
                    for text in std::mem::take(&mut self.queue) {
                        self.push(node, &text);
                    }
                }
                Some(answer) => self.closed = Some(format!("refused: {answer:?}")),
            },
            Transport::Polling(poll) => match poll.as_mut().and_then(|poll| poll.now_or_never()) {
                None => {}
                Some(Ok(EngineAnswer::Payload(payload))) => {
                    *poll = None;
                    self.payload(node, &payload);
                }
                Some(answer) => {
                    *poll = None;
                    self.closed.get_or_insert_with(|| format!("a poll is answered {answer:?}"));
                }
            },
            Transport::WebSocket(_) => self.read_link(node),
        }
        // The first one may have been answered before this one came.
        if let Some(answer) = self.second_poll.as_mut().and_then(|poll| poll.now_or_never()) {
            self.second_poll = None;
            if let Ok(EngineAnswer::Payload(payload)) = answer {
                self.payload(node, &payload);
            }
        }
        self.go_on_upgrading(node);
        self.poll_again(node);
    }

    fn read_link(&mut self, node: &Node) {
        let Transport::WebSocket(link) = &mut self.transport else { return };
        for (opcode, payload) in link.take() {
            assert_eq!(opcode, 1, "packets are text");
            self.packet(node, &String::from_utf8(payload).expect("text"));
        }
        let Transport::WebSocket(link) = &mut self.transport else { return };
        if self.closed.is_none() {
            self.closed = match (&link.incoming.close, link.incoming.status) {
                (Some((code, reason)), _) => Some(format!("{code} {reason}")),
                (_, Some(status)) if status != 101 => Some(format!("status {status}")),
                _ => link.client.is_closed().then(|| "the link is closed".to_owned()),
            };
        }
    }

    fn poll_again(&mut self, node: &Node) {
        let pauses = self.probe.as_ref().is_some_and(|(_, probing)| *probing == Probing::Answered);
        let (sid, shard) = (self.sid.clone(), self.shard(node));
        if let (Transport::Polling(poll @ None), Some(sid), Some(shard)) = (&mut self.transport, sid, shard)
            && self.reads
            && !pauses
            && self.second_poll.is_none()
            && self.closed.is_none()
        {
            let (responder, answer) = pending();
            node.request(shard, Request::EnginePoll { sid: sid.as_str().into(), responder });
            *poll = Some(answer);
        }
    }

    fn go_on_upgrading(&mut self, node: &Node) {
        let Some((mut link, mut probing)) = self.probe.take() else { return };
        for (opcode, payload) in link.take() {
            assert_eq!((opcode, &payload[..], probing), (1, &b"3probe"[..], Probing::Probed));
            probing = Probing::Answered;
        }
        if link.incoming.status.is_some_and(|status| status != 101) || link.client.is_closed() {
            // It goes on polling.
            return self.flush(node);
        }
        if probing == Probing::Opening && link.incoming.status == Some(101) {
            link.client.write(&frame(1, b"2probe"));
            probing = Probing::Probed;
        }
        let is_polling = !matches!(self.transport, Transport::Polling(None)) || self.second_poll.is_some();
        let is_quiet = !is_polling && self.pushes.is_empty();
        if probing == Probing::Answered && is_quiet && self.upgrades {
            link.client.write(&frame(1, b"5"));
            self.transport = Transport::WebSocket(link);
            return self.flush(node);
        }
        self.probe = Some((link, probing));
    }

    /// Gives up a WebSocket that it tried.
    pub fn give_up_probe(&mut self, node: &Node) {
        self.probe = None;
        self.flush(node);
    }

    fn flush(&mut self, node: &Node) {
        for text in std::mem::take(&mut self.queue) {
            self.send(node, &text);
        }
    }

    fn payload(&mut self, node: &Node, payload: &[u8]) {
        self.polled_bytes += payload.len();
        let text = std::str::from_utf8(payload).expect("text");
        text.split('\u{1e}').for_each(|packet| self.packet(node, packet));
    }

    fn packet(&mut self, node: &Node, text: &str) {
        assert!(self.closed.is_none(), "after its end ({:?}) comes {text}", self.closed);
        match text.split_at(1) {
            ("0", handshake) => {
                let handshake: Value = serde_json::from_str(handshake).expect("JSON");
                let former = self.sid.replace(handshake["sid"].as_str().expect("an id").to_owned());
                assert_eq!(former, None, "a session is opened once");
            }
            ("1", "") => self.closed = Some("closed".to_owned()),
            ("2", "") => {
                self.pings += 1;
                self.send(node, "3");
            }
            ("4", packet) => self.packets.push(read_packet(packet)),
            ("6", "") => {}
            _ => panic!("{text:?} is no packet of a server"),
        }
    }

    /// Packets that the hub has handed over for its link and that did not arrive.
    pub fn undelivered(&self) -> Vec<Packet> {
        let Transport::WebSocket(link) = &self.transport else { return Vec::new() };
        let mut incoming = link.incoming.clone();
        let frames = incoming.take(link.client.undelivered());
        let texts = frames.into_iter().map(|(_, payload)| String::from_utf8(payload).expect("text"));
        texts.filter_map(|text| text.strip_prefix('4').map(read_packet)).collect()
    }
}

impl Link {
    fn open(node: &Node, shard: usize, query: &str) -> Link {
        let client = node.world.connect(shard);
        // Every other one offers compression, told apart by what it asks for, so that a seed is one run.
        let is_odd = (query.bytes().fold(shard as u8, u8::wrapping_add)) % 2 == 1;
        let offer = if is_odd { "Sec-WebSocket-Extensions: permessage-deflate\r\n" } else { "" };
        client.write(upgrade(PATH, &format!("EIO=4&transport=websocket{query}"), offer).as_bytes());
        Link { client, incoming: Incoming::default() }
    }

    fn take(&mut self) -> Vec<(u8, Vec<u8>)> {
        self.incoming.take(self.client.read())
    }
}

/// What stands for a namespace in a packet.
pub fn prefix(namespace: &str) -> String {
    if namespace == "/" { String::new() } else { format!("{namespace},") }
}

// One thing at a time.

impl EngineClient {
    /// Lets the node work until it rests, and reads.
    pub fn settle(&mut self, node: &mut Node) {
        for _ in 0..4 {
            node.settle();
            self.poll(node);
        }
    }

    /// Is let into a namespace; what it was granted.
    pub fn let_in(&mut self, node: &mut Node, namespace: &str, auth: &Value) -> Packet {
        let before = self.packets.len();
        self.enter(node, namespace, auth);
        self.settle(node);
        let granted = self.packets[before..].iter().find(|packet| packet.kind == '0' && packet.namespace == namespace);
        granted.cloned().unwrap_or_else(|| panic!("it is not let into {namespace}: {:?}", self.packets))
    }

    /// Emits an event and waits for its acknowledgement.
    pub fn ask(&mut self, node: &mut Node, namespace: &str, name: &str, argument: &Value) -> Value {
        let id = 1_000_000 + self.packets.len() as u64;
        self.emit(node, namespace, Some(id), name, argument);
        self.settle(node);
        let answers: Vec<&Packet> = self.packets.iter().filter(|packet| packet.id == Some(id)).collect();
        assert_eq!(answers.len(), 1, "{name} in {namespace} is answered once");
        answers[0].object().clone()
    }

    /// The numbers of a room's events in a namespace, in the order they came.
    pub fn seqs(&self, namespace: &str, room: &str) -> Vec<u64> {
        let events = self.packets.iter().filter(|packet| packet.kind == '2' && packet.namespace == namespace);
        events
            .map(Packet::object)
            .filter(|event| event["room"] == room)
            .filter_map(|event| event["seq"].as_u64())
            .collect()
    }

    /// What it was told under a name in a namespace.
    pub fn told(&self, namespace: &str, name: &str) -> Vec<&Value> {
        let events = self.packets.iter().filter(|packet| packet.kind == '2' && packet.namespace == namespace);
        events.filter(|packet| packet.payload[0] == name).map(Packet::object).collect()
    }
}
