//! A simulated client that speaks WebSocket.

use ringhub::ring::sim::SimClient;
use ringhub::wire::deflate::{Deflater, InflateBounds, Inflater};
use ringhub::wire::ws::{Opcode, RSV1, header_bytes_of};
use serde_json::{Value, json};

use crate::node::Node;

/// What comes over a link: the answer to the handshake, then frames.
#[derive(Debug, Default, Clone)]
pub struct Incoming {
    unread: Vec<u8>,
    /// The handshake's answer.
    pub status: Option<u16>,
    /// What came instead of an upgrade.
    pub body: Vec<u8>,
    /// The hub's close frame.
    pub close: Option<(u16, String)>,
    /// What was agreed on compression, as the handshake's answer says it.
    pub extensions: Option<String>,
    /// Messages that came compressed.
    pub deflated: usize,
}

pub struct Client {
    pub link: SimClient,
    /// The handshake's answer.
    pub status: Option<u16>,
    /// What came instead of an upgrade.
    pub body: Vec<u8>,
    incoming: Incoming,
    /// Messages, oldest first.
    pub messages: Vec<Value>,
    /// Frames that are no text: opcode and payload.
    pub frames: Vec<(u8, Vec<u8>)>,
    /// The hub's close frame.
    pub close: Option<(u16, String)>,
    /// How many events came in each array of events.
    pub batches: Vec<usize>,
    /// How many events came as changes of earlier ones; in `messages` they are whole.
    pub changes: usize,
    subprotocol: &'static str,
    next_id: u64,
}

/// Those in which a client may speak.
pub const SUBPROTOCOLS: [&str; 4] =
    ["ringhub.v1.json", "ringhub.v1.json.batch", "ringhub.v1.msgpack", "ringhub.v1.msgpack.batch"];

/// A text message, compressed whether or not that makes it smaller.
pub fn deflated_frame(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    // Blanks behind a text of JSON mean nothing, and make any text one that gets smaller.
    let text = format!("{text}{}", " ".repeat(64));
    assert!(Deflater::new(6).frame(Opcode::Text, text.as_bytes(), 15, &mut out));
    let payload = out.split_off(header_bytes_of(&out));
    frame(RSV1 | 1, &payload)
}

/// A masked frame, final; the mask is all zeros.
pub fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x80 | opcode];
    match payload.len() {
        length @ 0..=125 => bytes.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            bytes.push(0x80 | 127);
            bytes.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(payload);
    bytes
}

pub fn upgrade(path: &str, query: &str, headers: &str) -> String {
    format!(
        "GET {path}?{query} HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
    )
}

impl Client {
    /// Connects and asks for the upgrade; the answer comes with the next turns.
    pub fn connect(node: &Node, shard: usize, path: &str, query: &str) -> Client {
        Client::connect_with(node, shard, path, query, "")
    }

    /// The same, with more headers.
    pub fn connect_with(node: &Node, shard: usize, path: &str, query: &str, headers: &str) -> Client {
        let client = Client::raw(node.world.connect(shard));
        client.link.write(upgrade(path, query, headers).as_bytes());
        client
    }

    /// Likewise, with a subprotocol, in which it speaks from here on.
    pub fn connect_as(node: &Node, shard: usize, path: &str, query: &str, subprotocol: &'static str) -> Client {
        let client = Client { subprotocol, ..Client::raw(node.world.connect(shard)) };
        let header = format!("Sec-WebSocket-Protocol: {subprotocol}\r\n");
        client.link.write(upgrade(path, query, &header).as_bytes());
        client
    }

    fn speaks_msgpack(&self) -> bool {
        self.subprotocol.contains("msgpack")
    }

    pub fn raw(link: SimClient) -> Client {
        Client {
            link,
            status: None,
            body: Vec::new(),
            incoming: Incoming::default(),
            messages: Vec::new(),
            frames: Vec::new(),
            close: None,
            batches: Vec::new(),
            changes: 0,
            subprotocol: "",
            next_id: 0,
        }
    }

    /// A command's frame and the id it has.
    pub fn command(&mut self, kind: &str, data: Value) -> (u64, Vec<u8>) {
        self.next_id += 1;
        let message = json!({"type": kind, "id": self.next_id, "data": data});
        // Where it was agreed on, some messages are compressed and some are not.
        let is_deflated = self.incoming.extensions.is_some() && !self.next_id.is_multiple_of(3);
        let bytes = if self.speaks_msgpack() {
            frame(2, &rmp_serde::to_vec(&message).expect("MessagePack"))
        } else if is_deflated {
            deflated_frame(&message.to_string())
        } else {
            frame(1, message.to_string().as_bytes())
        };
        (self.next_id, bytes)
    }

    pub fn send(&mut self, kind: &str, data: Value) -> u64 {
        let (id, bytes) = self.command(kind, data);
        self.link.write(&bytes);
        id
    }

    /// Reads what has arrived.
    pub fn poll(&mut self) {
        for (opcode, payload) in self.incoming.take(self.link.read()) {
            let message: Value = match opcode {
                1 if !self.speaks_msgpack() => serde_json::from_slice(&payload).expect("messages are JSON"),
                2 if self.speaks_msgpack() => rmp_serde::from_slice(&payload).expect("messages are MessagePack"),
                _ => {
                    self.frames.push((opcode, payload));
                    continue;
                }
            };
            match message {
                Value::Array(events) => {
                    assert!(self.subprotocol.ends_with(".batch"), "nobody else gets an array");
                    let are_events = events.iter().all(|event| event["seq"].is_u64() && event["room"].is_string());
                    assert!(events.len() > 1 && are_events, "{events:?}");
                    self.batches.push(events.len());
                    events.into_iter().for_each(|event| self.take(event));
                }
                message => self.take(message),
            }
        }
        self.status = self.incoming.status;
        self.body.append(&mut self.incoming.body);
        self.close.clone_from(&self.incoming.close);
    }

    fn take(&mut self, mut message: Value) {
        if let Some(patch) = message.as_object_mut().and_then(|message| message.remove("delta")) {
            let (room, base) = (&message["room"], &message["base"]);
            let is_base = |one: &&Value| one["room"] == *room && one["seq"] == *base;
            let base = self.messages.iter().rev().find(is_base);
            let base = base.unwrap_or_else(|| panic!("nobody has sent what this is a change of: {message} {patch}"));
            let mut data = base["data"].clone();
            merge(&mut data, &patch);
            message["data"] = data;
            self.changes += 1;
        }
        self.messages.push(message);
    }

    /// What was agreed on compression.
    pub fn extensions(&self) -> Option<&str> {
        self.incoming.extensions.as_deref()
    }

    /// Messages that came compressed.
    pub fn deflated(&self) -> usize {
        self.incoming.deflated
    }

    /// The answer to a command.
    pub fn answer(&self, id: u64) -> Option<&Value> {
        self.messages.iter().find(|message| message["ref"] == id)
    }

    /// The numbers of a room's events, in the order they came.
    pub fn seqs(&self, room: &str) -> Vec<u64> {
        let events = self.messages.iter().filter(|message| message["room"] == room);
        events.filter_map(|event| event["seq"].as_u64()).collect()
    }
}

/// Applies a merge patch (RFC 7396 §2).
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        let members = target.as_object_mut().expect("an object");
        if value.is_null() {
            members.remove(key);
        } else {
            merge(members.entry(key.as_str()).or_insert(Value::Null), value);
        }
    }
}

impl Incoming {
    /// Takes what has arrived; the frames that are whole by now, opcode and payload, without the hub's close frame.
    pub fn take(&mut self, bytes: Vec<u8>) -> Vec<(u8, Vec<u8>)> {
        self.unread.extend(bytes);
        if self.status.is_none() {
            let Some(end) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") else { return Vec::new() };
            let head = String::from_utf8(self.unread.drain(..end + 4).collect()).expect("a head is ASCII");
            let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
            self.status = Some(status.unwrap_or_else(|| panic!("no status in {head:?}")));
            let mut lines = head.split("\r\n");
            self.extensions = lines.find_map(|line| line.strip_prefix("Sec-WebSocket-Extensions: ")).map(str::to_owned);
        }
        if self.status != Some(101) {
            self.body.append(&mut self.unread);
            return Vec::new();
        }
        let mut frames = Vec::new();
        while let Some((opcode, payload)) = self.next_frame() {
            let text = String::from_utf8_lossy(&payload);
            assert!(self.close.is_none(), "after the close frame {:?} comes {opcode} {text}", self.close);
            if opcode == 8 {
                let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                let reason = String::from_utf8_lossy(payload.get(2..).unwrap_or_default()).into_owned();
                self.close = Some((code, reason));
            } else {
                frames.push((opcode, payload));
            }
        }
        frames
    }

    fn next_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let (first, second) = (*self.unread.first()?, *self.unread.get(1)?);
        let deflated = first & RSV1 != 0;
        assert_eq!(first & 0xb0, 0x80, "whole frames");
        assert!(!deflated || (self.extensions.is_some() && first & 0x0f <= 2), "what was not agreed on: {first:x}");
        let (at, length) = match second {
            126 => (4, u16::from_be_bytes(*self.unread.get(2..)?.first_chunk()?) as usize),
            127 => (10, u64::from_be_bytes(*self.unread.get(2..)?.first_chunk()?) as usize),
            length => (2, usize::from(length)),
        };
        if self.unread.len() < at + length {
            return None;
        }
        let payload: Vec<u8> = self.unread.drain(..at + length).skip(at).collect();
        if !deflated {
            return Some((first & 0x0f, payload));
        }
        self.deflated += 1;
        // Each by itself: nothing is kept of those before it.
        let bounds = InflateBounds { message_bytes_max: 1 << 24, ratio_max: 0 };
        let message =
            Inflater::default().message(&payload, true, None, bounds).expect("it can be decompressed").to_vec();
        assert!(payload.len() < message.len(), "it is smaller");
        Some((first & 0x0f, message))
    }
}
