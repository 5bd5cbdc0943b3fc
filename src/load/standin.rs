//! A small hub in a thread, for the tests of the clients: enough of the protocol to be published to and subscribed to.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Message, WebSocket};

/// Ends when dropped.
pub(crate) struct StandIn {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    ended: AtomicBool,
    lose_every: AtomicU64,
    ping: AtomicBool,
    close: AtomicU64,
    fail_next_publish: AtomicU64,
    fail_next_subscribe: AtomicU64,
    next_connection: AtomicU64,
    hub: Mutex<Hub>,
}

#[derive(Default)]
struct Hub {
    rooms: HashMap<String, RoomLog>,
    queues: HashMap<u64, Vec<String>>,
    kicked: Vec<u64>,
    peers: Vec<String>,
    requests: Vec<Value>,
    authorization: Vec<String>,
}

#[derive(Default)]
struct RoomLog {
    events: Vec<String>,
    members: Vec<u64>,
}

impl StandIn {
    pub(crate) fn start() -> StandIn {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            while !shared.ended.load(Relaxed) {
                match listener.accept() {
                    Ok((stream, peer)) => {
                        let state = Arc::clone(&shared);
                        state.hub().peers.push(peer.ip().to_string());
                        thread::spawn(move || serve(&state, stream));
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(1)),
                    Err(e) => panic!("accept: {e}"),
                }
            }
        });
        StandIn { address, state }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("ws://{}{path}", self.address)
    }

    /// Every n-th delivery is dropped.
    pub(crate) fn lose_every(&self, n: u64) {
        self.state.lose_every.store(n, Relaxed);
    }

    pub(crate) fn ping_on_subscribe(&self) {
        self.state.ping.store(true, Relaxed);
    }

    /// Closes connections with this code soon after they subscribed.
    pub(crate) fn close_on_subscribe(&self, code: u16) {
        self.state.close.store(u64::from(code), Relaxed);
    }

    /// The next `n` publishes are answered with `rate_limited`.
    pub(crate) fn limit_publishes(&self, n: u64) {
        self.state.fail_next_publish.store(n, Relaxed);
    }

    /// The next `n` subscriptions are answered with `rate_limited`.
    pub(crate) fn limit_subscribes(&self, n: u64) {
        self.state.fail_next_subscribe.store(n, Relaxed);
    }

    /// Ends every connection without a word.
    pub(crate) fn kick_all(&self) {
        let mut hub = self.state.hub();
        hub.kicked = hub.queues.keys().copied().collect();
    }

    /// Publishes from within.
    pub(crate) fn publish(&self, room: &str, kind: &str, data: Value) {
        self.state.publish(room, kind, &data);
    }

    /// How many are subscribed.
    pub(crate) fn members(&self, room: &str) -> usize {
        self.state.hub().rooms.get(room).map_or(0, |r| r.members.len())
    }

    pub(crate) fn peers(&self) -> Vec<String> {
        self.state.hub().peers.clone()
    }

    /// The commands that came.
    pub(crate) fn requests(&self) -> Vec<Value> {
        self.state.hub().requests.clone()
    }

    /// The Authorization headers that came.
    pub(crate) fn authorization(&self) -> Vec<String> {
        self.state.hub().authorization.clone()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.state.ended.store(true, Relaxed);
    }
}

impl State {
    fn hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn publish(&self, room: &str, kind: &str, data: &Value) -> u64 {
        let mut hub = self.hub();
        let log = hub.rooms.entry(room.to_string()).or_default();
        let seq = log.events.len() as u64 + 1;
        let event = json!({"type": kind, "id": format!("e{seq}"), "timestamp": "2026-01-02T03:04:05.678Z", "room": room, "seq": seq, "data": data});
        log.events.push(event.to_string());
        for member in log.members.clone() {
            let lose = self.lose_every.load(Relaxed);
            if lose > 0 && (seq + member).is_multiple_of(lose) {
                continue;
            }
            if let Some(queue) = hub.queues.get_mut(&member) {
                queue.push(event.to_string());
            }
        }
        seq
    }

    fn command(&self, me: u64, command: &Value) -> Vec<Value> {
        let data = &command["data"];
        let room = data["room"].as_str().unwrap_or_default().to_string();
        self.hub().requests.push(command.clone());
        let answer = |kind: &str, data: Value| json!({"type": kind, "id": "a", "ref": command["id"], "data": data});
        match command["type"].as_str().unwrap_or_default() {
            "subscribe" if self.fail_next_subscribe.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok() => {
                vec![answer("error", json!({"code": "rate_limited", "message": "slow down", "retry_after_ms": 1}))]
            }
            "subscribe" if room.starts_with("secret:") => {
                vec![answer("error", json!({"code": "forbidden", "message": "not yours"}))]
            }
            "subscribe" => {
                let mut hub = self.hub();
                let log = hub.rooms.entry(room.clone()).or_default();
                log.members.push(me);
                let head = log.events.len();
                let from = match &data["since"] {
                    Value::Null => head,
                    since => match (since["seq"].as_u64(), since["last"].as_u64()) {
                        (Some(seq), _) => (seq as usize).min(head),
                        (_, Some(last)) => head.saturating_sub(last as usize),
                        _ => 0,
                    },
                };
                let replay: Vec<String> = log.events[from..].to_vec();
                let told = json!({"room": room, "seq": head, "epoch": "e", "recovered": true, "missed": 0, "replayed": replay.len()});
                let mut out = vec![answer("subscribed", told)];
                out.extend(replay.iter().map(|e| serde_json::from_str::<Value>(e).unwrap()));
                out
            }
            "publish" => {
                let limited = self.fail_next_publish.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok();
                if limited {
                    let details =
                        json!({"code": "rate_limited", "message": "slow down", "details": {"retry_after_ms": 5}});
                    return vec![answer("error", details)];
                }
                if room.starts_with("secret:") {
                    return vec![answer("error", json!({"code": "forbidden", "message": "not yours"}))];
                }
                let seq = self.publish(&room, data["type"].as_str().unwrap_or_default(), &data["data"]);
                match command["id"] {
                    Value::Null => Vec::new(),
                    _ => vec![answer(
                        "published",
                        json!({"room": room, "id": format!("e{seq}"), "seq": seq, "duplicate": false}),
                    )],
                }
            }
            "resume" => {
                let Some((room, since)) = data["cursors"].as_object().and_then(|cursors| cursors.iter().next()) else {
                    return vec![answer("error", json!({"code": "bad_command", "message": "?"}))];
                };
                let command = json!({"type": "subscribe", "id": command["id"], "data": {"room": room, "since": since}});
                let mut out = self.command(me, &command);
                let mut result = out.remove(0)["data"].take();
                result["replayed"] = json!(out.len());
                let resumed = json!({"session_id": data["session_id"], "resume": proof(me), "results": [result]});
                out.insert(0, answer("resumed", resumed));
                out
            }
            "ping" => vec![answer("pong", data.clone())],
            _ => vec![answer("error", json!({"code": "unknown_type", "message": "?"}))],
        }
    }
}

fn proof(connection: u64) -> Value {
    json!({"token": format!("t{connection}")})
}

#[allow(clippy::result_large_err)]
fn serve(state: &State, stream: TcpStream) {
    let mut path = String::new();
    let callback = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
        path = request.uri().path().to_string();
        if let Some(value) = request.headers().get("authorization") {
            state.hub().authorization.push(value.to_str().unwrap().to_string());
        }
        if path == "/refused" {
            let body = r#"{"error":{"code":"rate_limited","message":"too many"}}"#.to_string();
            return Err(Response::builder().status(429).body(Some(body)).unwrap());
        }
        Ok(response)
    };
    stream.set_nonblocking(false).unwrap();
    let Ok(mut socket) = tungstenite::accept_hdr(stream, callback) else { return };
    socket.get_ref().set_read_timeout(Some(Duration::from_millis(2))).unwrap();
    let me = state.next_connection.fetch_add(1, Relaxed);
    if path == "/echo" {
        pump(state, &mut socket, me, true);
        return;
    }
    state.hub().queues.insert(me, Vec::new());
    let greeting = json!({"type": "connection_established", "id": "g", "data": {"session_id": format!("s{me}"), "resume": proof(me), "heartbeat": {"interval_s": 30, "timeout_s": 10}}});
    if socket.send(Message::text(greeting.to_string())).is_ok() {
        pump(state, &mut socket, me, false);
    }
    let mut hub = state.hub();
    hub.queues.remove(&me);
    hub.rooms.values_mut().for_each(|r| r.members.retain(|m| *m != me));
}

/// Serves until either side ends.
fn pump(state: &State, socket: &mut WebSocket<TcpStream>, me: u64, echo: bool) {
    while !state.ended.load(Relaxed) {
        let mut out: Vec<Message> = Vec::new();
        match socket.read() {
            Ok(message) if echo && (message.is_text() || message.is_binary()) => out.push(message),
            Ok(Message::Text(text)) => {
                let command: Value = serde_json::from_str(text.as_str()).unwrap();
                out.extend(state.command(me, &command).iter().map(|a| Message::text(a.to_string())));
                if command["type"] == "subscribe" {
                    if state.ping.load(Relaxed) {
                        out.push(Message::Ping("hi".into()));
                    }
                    if let Ok(code @ 1..) = u16::try_from(state.close.load(Relaxed)) {
                        out.push(Message::Close(Some(CloseFrame { code: CloseCode::from(code), reason: "".into() })));
                    }
                }
            }
            Ok(_) => {}
            Err(tungstenite::Error::Io(e)) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
        let mut hub = state.hub();
        if hub.kicked.contains(&me) {
            hub.kicked.retain(|k| *k != me);
            return;
        }
        out.extend(hub.queues.get_mut(&me).map(std::mem::take).unwrap_or_default().into_iter().map(Message::text));
        drop(hub);
        for message in out {
            if socket.send(message).is_err() {
                return;
            }
        }
    }
}
