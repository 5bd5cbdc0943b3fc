//! The control plane over real sockets, with a small hub behind it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Map, Value};

use super::*;
use crate::config::Listen;
use crate::hub::explain::Explanation;
use crate::hub::lock_pages::LockPage;
use crate::hub::moved::Moved;
use crate::hub::reply::{HubError, Pending, Responder, pending};
use crate::hub::trace::ConnectionTrace;
use crate::hub::view::{ConnectionFilter, ConnectionView, Listing, RoomFilter, RoomView, SessionView, Window};
use crate::node::{RoomPresence, Sent, Target, Withdrew};
use crate::wire::codes::ErrorCode;
use crate::wire::native::Since;

const TOKEN: &str = "Authorization: Bearer good\r\n";
const JSON: &str = "Content-Type: application/json\r\n";

/// Answers publishes from a thread of its own, as a shard would.
#[derive(Clone)]
struct FakeHub {
    publishes: Sender<(PublishRequest, Responder<Published>)>,
    adopted: Sender<Adopted>,
    draining: Arc<AtomicBool>,
    silent: Arc<AtomicBool>,
    unanswered: Arc<Mutex<Vec<Responder<Readiness>>>>,
    calls: Arc<AtomicU64>,
    receivers: Arc<Mutex<Vec<Responder<Bytes>>>>,
    put_back: Arc<Mutex<Vec<Bytes>>>,
}

impl Backend for FakeHub {
    type Identity = String;

    fn publish(&self, identity: &Arc<String>, event: PublishRequest) -> Pending<Published> {
        if event.room == "panic" {
            panic!("a handler that panics, on purpose");
        }
        if event.room == "admin" && identity.as_str() != "root" {
            return Pending::ready(Err(HubError::new(ErrorCode::Forbidden, "not yours")));
        }
        let (answer, pending) = pending();
        self.publishes.send((event, answer)).unwrap();
        pending
    }

    fn ring(&self) {}

    fn send(&self, _: &Arc<String>, _: &Target, _: &str, _: Bytes) -> Pending<Sent> {
        Pending::ready(Ok(Sent { delivered: 1, queued: 0 }))
    }

    fn send_here(&self, _: &str, _: &str, _: Bytes) -> Pending<Sent> {
        absent()
    }

    fn yield_session(&self, _: &str, _: &str, _: Option<&str>) -> Pending<Moved> {
        absent()
    }

    fn audience(&self, _: &str) -> Pending<(u32, u32)> {
        absent()
    }

    fn receive(&self, session_id: &str) -> Pending<Bytes> {
        let (answer, pending) = pending();
        match session_id {
            "ready" => answer.resolve(Ok(Bytes::from_static(b"{\"a\":1}"))),
            _ => self.receivers.lock().unwrap().push(answer),
        }
        pending
    }

    fn put_back(&self, _: &str, message: Bytes) {
        self.put_back.lock().unwrap().push(message);
    }

    fn is_admin(&self, identity: &String) -> bool {
        identity == "root"
    }

    fn may_read(&self, _: &String, _: &str) -> Result<(), HubError> {
        Ok(())
    }

    fn engine_open(&self, _: Vec<u8>, _: ConnectionOrigin) -> Pending<EngineOpened> {
        absent()
    }

    fn engine_poll(&self, _: &str, _: &str) -> Pending<EngineAnswer> {
        absent()
    }

    fn engine_push(&self, _: &str, _: &str, _: Vec<u8>) -> Pending<EngineAnswer> {
        absent()
    }

    fn connections(&self, _: ConnectionFilter, _: Window) -> Pending<Listing<ConnectionView>> {
        Pending::ready(Ok(Listing::default()))
    }

    fn connection(&self, _: &str) -> Pending<ConnectionView> {
        absent()
    }

    fn trace(&self, _: &str, _: usize) -> Pending<Vec<ConnectionTrace>> {
        absent()
    }

    fn explain(&self, _: &str, _: &str) -> Pending<Explanation> {
        absent()
    }

    fn set_metadata(&self, _: &str, _: Map<String, Value>) -> Pending<Value> {
        absent()
    }

    fn disconnect(&self, _: &Target, _: u16, _: &str) -> Pending<u32> {
        absent()
    }

    fn reauthenticate(&self, _: &Target, _: Duration) -> Pending<u32> {
        absent()
    }

    fn withdraw(&self, _: &Target, _: &[&str], _: bool, _: &str) -> Pending<Withdrew> {
        absent()
    }

    fn presence(&self, _: &str) -> Pending<RoomPresence> {
        absent()
    }

    fn locks(&self, _: Option<&str>, _: Window) -> Pending<LockPage> {
        absent()
    }

    fn force_unlock(&self, _: &str, _: &str) -> Pending<bool> {
        absent()
    }

    fn session(&self, _: &str) -> Pending<SessionView> {
        absent()
    }

    fn rooms(&self, _: RoomFilter, _: Window) -> Pending<Listing<RoomView>> {
        Pending::ready(Ok(Listing::default()))
    }

    fn room(&self, _: &str) -> Pending<RoomView> {
        absent()
    }

    fn history(&self, _: &str, _: Option<Since>, _: usize, _: bool) -> Pending<Vec<u8>> {
        absent()
    }

    fn clear_history(&self, _: &str) -> Pending<u64> {
        absent()
    }

    fn verify(&self, token: &str) -> Result<Arc<String>, HubError> {
        match token {
            "root" => Ok(Arc::new("root".into())),
            "good" => Ok(Arc::new("alice".into())),
            _ => Err(HubError::new(ErrorCode::Unauthorized, "the token is not valid")),
        }
    }

    fn itself(&self) -> Arc<String> {
        Arc::new("root".into())
    }

    fn figures(&self) -> Snapshot {
        let figures = Figures::default();
        figures.connections.set(3);
        figures.bytes_sent.add(70);
        figures.errors.add("bad_json");
        Snapshot { shards: vec![figures.read(), Figures::default().read()] }
    }

    fn times(&self) -> Vec<ShardTimes> {
        let figures = Figures::default();
        figures.latency.add_many(250, 10);
        vec![figures.times(), Figures::default().times()]
    }

    fn ready(&self) -> Pending<Readiness> {
        if self.silent.load(Ordering::SeqCst) {
            let (answer, pending) = pending();
            self.unanswered.lock().unwrap().push(answer);
            return pending;
        }
        Pending::ready(Ok(Readiness { shards: 2, answering: 2, deaf: 0 }))
    }

    fn pulse(&self) -> Vec<ShardPulse> {
        vec![ShardPulse::default(); 2]
    }

    fn config(&self) -> crate::config::Config {
        crate::config::Config::default()
    }

    fn is_occupied(&self, _: &str) -> Pending<bool> {
        Pending::ready(Ok(false))
    }

    fn announce(&self, _: &str, _: &str, _: Bytes) {}

    fn adopt(&self, connection: Adopted) {
        self.adopted.send(connection).unwrap();
    }

    fn draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }
}

fn absent<T>() -> Pending<T> {
    Pending::ready(Err(HubError::new(ErrorCode::NotFound, "there is none")))
}

struct Fixture {
    plane: ControlPlane,
    inbox: Inbox,
    hub: FakeHub,
    adopted: Receiver<Adopted>,
}

/// The driver that the whole run is on: RINGHUB_SHARDS_DRIVER, as for a hub.
fn driver() -> DriverKind {
    match std::env::var("RINGHUB_SHARDS_DRIVER").as_deref() {
        Ok("epoll") => DriverKind::Epoll,
        _ => DriverKind::Uring,
    }
}

/// A control plane with patience for slow machines, but not for slow peers.
fn fixture(change: impl FnOnce(&mut Options)) -> Fixture {
    fixture_with(8, change)
}

fn fixture_with(connections_max: usize, change: impl FnOnce(&mut Options)) -> Fixture {
    let mut options = Options {
        body_bytes_max: 10_000,
        publish_events_max: 3,
        linger: Duration::from_millis(300),
        cors_origins: vec!["https://a.example".into()],
        driver: driver(),
        ..Options::default()
    };
    change(&mut options);
    let (publishes, work) = mpsc::channel::<(PublishRequest, Responder<Published>)>();
    let (adopt, adopted) = mpsc::channel();
    let hub = FakeHub {
        publishes,
        adopted: adopt,
        draining: Arc::default(),
        silent: Arc::default(),
        unanswered: Arc::default(),
        calls: Arc::default(),
        receivers: Arc::default(),
        put_back: Arc::default(),
    };
    let calls = Arc::clone(&hub.calls);
    std::thread::spawn(move || {
        for (event, answer) in work {
            let seq = calls.fetch_add(1, Ordering::SeqCst) + 1;
            let result = match event.room.as_str() {
                "hang" => {
                    std::mem::forget(answer);
                    continue;
                }
                "busy" => Err(HubError::new(ErrorCode::RateLimited, "slower")),
                room => {
                    let (room, id) = (room.into(), format!("id-{seq}"));
                    Ok(Published { room, id, seq, epoch: None, duplicate: false, delivered: 0 })
                }
            };
            // The request may have been given up.
            answer.resolve(result);
        }
    });
    let (inbox, intake) = inbox(connections_max).unwrap();
    let plane = start(options, hub.clone(), intake).unwrap();
    Fixture { plane, inbox, hub, adopted }
}

/// A connection, the client's and the server's end.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let (server, _) = listener.accept().unwrap();
    (client, server)
}

fn connect(inbox: &Inbox, received: &str) -> TcpStream {
    let (client, server) = pair();
    let origin = ConnectionOrigin { peer: server.peer_addr().ok(), client: None };
    let adopted = Adopted { socket: server.into(), received: received.into(), origin };
    inbox.push(adopted).expect("the inbox has room");
    client
}

impl Fixture {
    /// A connection whose first bytes a shard has read.
    fn connect(&self, received: &str) -> TcpStream {
        connect(&self.inbox, received)
    }

    /// One request on a connection of its own.
    fn ask(&self, request: &str) -> Reply {
        let mut client = self.connect(request);
        reply(&mut client)
    }

    fn post(&self, extra: &str, body: &str) -> Reply {
        self.ask(&post(extra, body))
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n")
}

fn post(extra: &str, body: &str) -> String {
    format!("POST /api/v1/publish HTTP/1.1\r\nHost: h\r\n{extra}Content-Length: {}\r\n\r\n{body}", body.len())
}

fn upgrade(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn error(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// Reads one answer with its body.
fn reply(client: &mut impl std::io::Read) -> Reply {
    let head = head(client);
    let mut reply = Reply { status: head[9..12].parse().unwrap(), head, body: String::new() };
    let length = reply.header("content-length").map_or(0, |value| value.parse().unwrap());
    let mut body = vec![0; length];
    client.read_exact(&mut body).unwrap();
    reply.body = String::from_utf8(body).unwrap();
    reply
}

/// Reads to the blank line, byte by byte so that nothing behind it is taken.
fn head(client: &mut impl std::io::Read) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(&head)));
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn at_end(client: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    match client.read_to_end(&mut rest) {
        Ok(read) => read == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come true");
        std::thread::yield_now();
    }
}

#[test]
fn the_health_pages_answer_with_figures_and_without_a_token() {
    let fixture = fixture(|_| {});
    for path in ["/live", "/ready", "/ws/health"] {
        let reply = fixture.ask(&get(path));
        assert_eq!(reply.status, 200, "{reply:?}");
        let page = reply.json();
        assert_eq!(page["status"], "ok");
        assert_eq!(page["total"]["connections"], 3);
        assert_eq!(page["shards"].as_array().unwrap().len(), 2);
        assert_eq!(reply.header("server"), None);
    }
    assert_eq!(fixture.ask(&get("/")).json()["name"], "ringhub");
    let mut client = fixture.connect("HEAD /live HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert!(head(&mut client).starts_with("HTTP/1.1 200"));
    assert!(at_end(&mut client), "a HEAD has no body");
}

#[test]
fn ready_waits_for_the_shards_and_ends_with_the_drain() {
    let fixture = fixture(|_| {});
    fixture.hub.silent.store(true, Ordering::SeqCst);
    let mut client = fixture.connect(&get("/ready"));
    eventually("the question", || !fixture.hub.unanswered.lock().unwrap().is_empty());
    let answer = fixture.hub.unanswered.lock().unwrap().pop().unwrap();
    answer.resolve(Ok(Readiness { shards: 2, answering: 1, deaf: 0 }));
    let not_ready = reply(&mut client);
    assert_eq!((not_ready.status, not_ready.json()["shards_answering"].as_u64()), (503, Some(1)));
    fixture.hub.silent.store(false, Ordering::SeqCst);
    assert_eq!(fixture.ask(&get("/ready")).status, 200);
    fixture.hub.draining.store(true, Ordering::SeqCst);
    let draining = fixture.ask(&get("/ready"));
    assert_eq!((draining.status, draining.header("connection")), (503, Some("close")));
    assert_eq!(fixture.ask(&get("/live")).status, 200);
}

#[test]
fn a_connection_is_kept_and_pipelined_requests_are_answered_in_order() {
    let fixture = fixture(|_| {});
    let mut client = fixture.connect(&get("/live"));
    assert_eq!(reply(&mut client).status, 200);
    let three = format!("{}{}{}", get("/"), get("/nowhere"), get("/ws/health"));
    client.write_all(three.as_bytes()).unwrap();
    assert_eq!(reply(&mut client).json()["name"], "ringhub");
    assert_eq!(reply(&mut client).error(), "not_found");
    assert_eq!(reply(&mut client).status, 200);
    assert_eq!(fixture.inbox.open(), 1);
    drop(client);
    eventually("the place", || fixture.inbox.open() == 0);
}

#[test]
fn an_event_is_published_and_every_refusal_has_its_status() {
    let fixture = fixture(|_| {});
    let good = &format!("{TOKEN}{JSON}");
    let reply = fixture.post(good, r#"{"room":"global","type":"a","data":{"x":1}}"#);
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(
        reply.json(),
        serde_json::json!({"room": "global", "id": "id-1", "seq": 1, "duplicate": false, "delivered": 0})
    );

    let event = r#"{"room":"global","type":"a"}"#;
    let nobody = fixture.post(JSON, event);
    assert_eq!((nobody.status, nobody.header("www-authenticate")), (401, Some("Bearer")));
    assert_eq!(fixture.post(&format!("Authorization: Bearer bad\r\n{JSON}"), event).status, 401);
    assert_eq!(fixture.post(&format!("Authorization: Basic eA==\r\n{JSON}"), event).status, 401);
    assert_eq!(fixture.post(TOKEN, event).status, 415);
    assert_eq!(fixture.post(good, r#"{"room":"admin","type":"a"}"#).error(), "forbidden");
    let busy = fixture.post(good, r#"{"room":"busy","type":"a"}"#);
    assert_eq!((busy.status, busy.header("retry-after")), (429, Some("1")));
    for body in ["", "{", "[1", "[1] 2"] {
        let reply = fixture.post(good, body);
        assert_eq!((reply.status, reply.error().as_str()), (400, "bad_json"), "{body}");
    }
    for body in [r#"{"room":"global"}"#, "7"] {
        let reply = fixture.post(good, body);
        assert_eq!((reply.status, reply.error().as_str()), (400, "bad_command"), "{body}");
    }
    let method = fixture.ask("PUT /api/v1/publish HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!((method.status, method.header("allow")), (405, Some("POST")));
    assert_eq!(method.error(), "bad_request");
    let panic = fixture.post(good, r#"{"room":"panic","type":"a"}"#);
    assert_eq!((panic.status, panic.error().as_str()), (500, "internal"));
    assert_eq!(fixture.ask(&get("/live")).status, 200, "a panic ends its request only");
}

#[test]
fn an_array_is_answered_entry_by_entry_and_is_bounded() {
    let fixture = fixture(|_| {});
    let good = &format!("{TOKEN}{JSON}");
    let reply = fixture.post(good, r#"[{"room":"a","type":"t"},{"room":"admin","type":"t"},{"type":"t"}]"#);
    let entries = reply.json();
    assert_eq!(reply.status, 200);
    assert_eq!((&entries[0]["seq"], &entries[0]["room"]), (&1.into(), &"a".into()));
    assert_eq!(entries[1]["error"]["code"], "forbidden");
    assert_eq!(entries[2]["error"]["code"], "bad_command");
    assert_eq!(fixture.post(good, "[]").json(), serde_json::json!([]));
    assert_eq!(fixture.post(good, "[1,2,3,4]").status, 413);
}

#[test]
fn a_body_too_large_is_refused_announced_or_not_and_the_answer_arrives() {
    let fixture = fixture(|_| {});
    let head = format!("POST /api/v1/publish HTTP/1.1\r\nHost: h\r\n{TOKEN}{JSON}");
    let mut client = fixture.connect(&format!("{head}Content-Length: 1000000\r\n\r\n"));
    // Much more than the socket takes without a reader.
    let mut writer = client.try_clone().unwrap();
    let pushing = std::thread::spawn(move || drop(writer.write_all(&[b' '; 1_000_000])));
    let refused = reply(&mut client);
    assert_eq!((refused.status, refused.error().as_str()), (413, "too_large"));
    pushing.join().unwrap();

    let mut client = fixture.connect(&format!("{head}Transfer-Encoding: chunked\r\n\r\n"));
    for _ in 0..3 {
        client.write_all(b"1000\r\n").unwrap();
        client.write_all(&[b' '; 0x1000]).unwrap();
        client.write_all(b"\r\n").unwrap();
    }
    assert_eq!(reply(&mut client).status, 413);
    eventually("the place", || fixture.inbox.open() == 0);
}

#[test]
fn a_chunked_request_is_served_and_ends_its_connection() {
    let fixture = fixture(|_| {});
    let event = r#"{"room":"global","type":"a"}"#;
    let mut client = fixture.connect(&format!(
        "POST /api/v1/publish HTTP/1.1\r\nHost: h\r\n{TOKEN}{JSON}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{event}\r\n0\r\n\r\n",
        event.len()
    ));
    let reply = reply(&mut client);
    assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
    assert!(at_end(&mut client));
}

#[test]
fn slow_heads_bodies_and_idle_connections_are_ended() {
    let fixture = fixture(|options| {
        options.head_timeout = Duration::from_millis(150);
        options.idle_timeout = Duration::from_millis(400);
        options.request_timeout = Duration::from_millis(150);
    });
    let mut slow_head = fixture.connect("GET /live HTTP/1.1\r\n");
    let refused = reply(&mut slow_head);
    assert_eq!((refused.status, refused.error().as_str()), (408, "timeout"));
    assert!(at_end(&mut slow_head));

    let head = format!("POST /api/v1/publish HTTP/1.1\r\nHost: h\r\n{TOKEN}{JSON}Content-Length: 9\r\n\r\n{{");
    assert_eq!(fixture.ask(&head).status, 408);
    let good = &format!("{TOKEN}{JSON}");
    assert_eq!(fixture.post(good, r#"{"room":"hang","type":"a"}"#).status, 503);

    let mut idle = fixture.connect(&get("/live"));
    assert_eq!(reply(&mut idle).status, 200);
    let start = Instant::now();
    assert!(at_end(&mut idle));
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());

    // A later request's head has the shorter patience.
    let mut second = fixture.connect(&get("/live"));
    assert_eq!(reply(&mut second).status, 200);
    second.write_all(b"GET").unwrap();
    assert_eq!(reply(&mut second).status, 408);
    eventually("the places", || fixture.inbox.open() == 0);
}

#[test]
fn a_head_over_the_limit_is_refused() {
    let fixture = fixture(|options| options.header_bytes_max = 8192);
    let mut client = fixture.connect("");
    let padding = "x".repeat(9000);
    client.write_all(format!("GET /live HTTP/1.1\r\nHost: h\r\nX-A: {padding}\r\n\r\n").as_bytes()).unwrap();
    assert_eq!(reply(&mut client).status, 431);
    let padding = "x".repeat(7000);
    let kept = fixture.ask(&format!("GET /live HTTP/1.1\r\nHost: h\r\nX-A: {padding}\r\n\r\n"));
    assert_eq!(kept.status, 200);
}

#[test]
fn an_upgrade_on_a_kept_connection_goes_back_to_a_shard_untouched() {
    let fixture = fixture(|_| {});
    let mut client = fixture.connect(&get("/live"));
    assert_eq!(reply(&mut client).status, 200);
    client.write_all(upgrade("/ws?token=a%20b").as_bytes()).unwrap();
    let adopted = fixture.adopted.recv_timeout(Duration::from_secs(10)).unwrap();
    let received = String::from_utf8(adopted.received).unwrap();
    assert!(received.starts_with("GET /ws?token=a%20b HTTP/1.1\r\n"), "{received}");
    assert!(received.contains("\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n") && received.ends_with("\r\n\r\n"));
    assert_eq!(adopted.origin.peer, client.local_addr().ok());
    eventually("the place", || fixture.inbox.open() == 0);

    // The connection is alive and nothing was said on it.
    let mut server = TcpStream::from(adopted.socket);
    server.write_all(b"hello").unwrap();
    let mut hello = [0; 5];
    client.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello");
    client.write_all(b"frame").unwrap();
    server.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"frame");
}

#[test]
fn an_upgrade_pipelined_behind_requests_goes_back_with_what_follows_it() {
    let fixture = fixture(|_| {});
    let mut client = fixture.connect(&get("/live"));
    client.write_all(format!("{}{}first frame", get("/ws/health"), upgrade("/ws/monitor/m1")).as_bytes()).unwrap();
    assert_eq!(reply(&mut client).status, 200);
    assert_eq!(reply(&mut client).status, 200);
    let adopted = fixture.adopted.recv_timeout(Duration::from_secs(10)).unwrap();
    let mut received = String::from_utf8(adopted.received).unwrap();
    // What had not arrived yet is still in the socket.
    let mut server = TcpStream::from(adopted.socket);
    server.set_nonblocking(true).unwrap();
    let mut rest = [0; 64];
    if let Ok(read) = server.read(&mut rest) {
        received.push_str(std::str::from_utf8(&rest[..read]).unwrap());
    }
    assert!(received.starts_with("GET /ws/monitor/m1 HTTP/1.1\r\n") && received.ends_with("\r\n\r\nfirst frame"));

    // The same in one piece, read by the shard already.
    let mut client = fixture.connect(&format!("{}{}second", get("/live"), upgrade("/echo")));
    assert_eq!(reply(&mut client).status, 200);
    let adopted = fixture.adopted.recv_timeout(Duration::from_secs(10)).unwrap();
    let received = String::from_utf8(adopted.received).unwrap();
    assert!(received.starts_with("GET /echo HTTP/1.1\r\n") && received.ends_with("\r\n\r\nsecond"), "{received}");
}

#[test]
fn a_stream_of_events_on_a_kept_alive_connection_goes_back_to_a_shard() {
    let fixture = fixture(|_| {});
    let stream = get("/events?room=a%3Ab");
    let mut client = fixture.connect(&format!("{}{stream}", get("/live")));
    assert_eq!(reply(&mut client).status, 200);
    let adopted = fixture.adopted.recv_timeout(Duration::from_secs(10)).unwrap();
    let received = String::from_utf8(adopted.received).unwrap();
    assert!(received.starts_with("GET /events?room=a%3Ab HTTP/1.1\r\n"), "{received}");

    // One that a shard declined is not passed to and fro, and neither is what is no GET.
    assert_eq!(fixture.ask(&stream).status, 404);
    assert_eq!(fixture.ask(&stream.replace("GET", "POST")).status, 405);
    assert!(fixture.adopted.try_recv().is_err());
}

#[test]
fn an_upgrade_that_a_shard_declined_is_refused_and_not_passed_to_and_fro() {
    let fixture = fixture(|_| {});
    let reply = fixture.ask(&upgrade("/ws"));
    assert_eq!((reply.status, reply.error().as_str()), (400, "bad_upgrade"));
    assert!(fixture.adopted.try_recv().is_err());
}

#[test]
fn an_answer_that_the_peer_does_not_read_yet_is_complete_before_the_upgrade_leaves() {
    let fixture = fixture_with(8, |_| {});
    let (mut client, server) = pair();
    socket2::SockRef::from(&server).set_send_buffer_size(16_384).unwrap();
    socket2::SockRef::from(&client).set_recv_buffer_size(16_384).unwrap();
    let requests = get("/metrics").repeat(20);
    let received = format!("{requests}{}", upgrade("/ws")).into_bytes();
    fixture.inbox.push(Adopted { socket: server.into(), received, origin: ConnectionOrigin::default() }).unwrap();
    assert!(fixture.adopted.recv_timeout(Duration::from_millis(100)).is_err(), "answers are still on their way");
    for _ in 0..20 {
        assert_eq!(reply(&mut client).status, 200);
    }
    fixture.adopted.recv_timeout(Duration::from_secs(10)).unwrap();
}

#[test]
fn cross_origin_pages_are_answered_when_their_origin_is_allowed() {
    let fixture = fixture(|_| {});
    let preflight = |origin: &str| {
        fixture.ask(&format!(
            "OPTIONS /api/v1/publish HTTP/1.1\r\nHost: h\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: POST\r\n\r\n"
        ))
    };
    let allowed = preflight("https://a.example");
    assert_eq!((allowed.status, allowed.header("access-control-allow-origin")), (204, Some("https://a.example")));
    assert!(allowed.header("access-control-allow-methods").unwrap().contains("POST"));
    let refused = preflight("https://b.example");
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (403, None));
    let live = fixture.ask("GET /live HTTP/1.1\r\nHost: h\r\nOrigin: https://a.example\r\n\r\n");
    assert_eq!(
        (live.header("access-control-allow-origin"), live.header("vary")),
        (Some("https://a.example"), Some("origin"))
    );
}

#[test]
fn metrics_come_in_the_format_asked_for() {
    let fixture = fixture(|_| {});
    assert_eq!(fixture.ask(&get("/live")).status, 200);
    let plain = fixture.ask(&get("/metrics"));
    assert!(plain.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    for line in [
        "# TYPE ringhub_connections gauge",
        "ringhub_connections{shard=\"0\"} 3",
        "# TYPE ringhub_sent_bytes_total counter",
        "ringhub_sent_bytes_total{shard=\"0\"} 70",
        "ringhub_errors_total{shard=\"0\",code=\"bad_json\"} 1",
        "ringhub_http_requests_total{route=\"/live\",method=\"GET\",status=\"2xx\"} 1",
        "# TYPE ringhub_publish_latency_seconds histogram",
        "ringhub_publish_latency_seconds_bucket{le=\"0.000128\",shard=\"0\"} 0",
        "ringhub_publish_latency_seconds_bucket{le=\"0.000256\",shard=\"0\"} 10",
        "ringhub_publish_latency_seconds_bucket{le=\"+Inf\",shard=\"0\"} 10",
        "ringhub_publish_latency_seconds_sum{shard=\"0\"} 0.0025",
        "ringhub_publish_latency_seconds_count{shard=\"0\"} 10",
        "ringhub_turn_seconds_count{shard=\"1\"} 0",
        "# TYPE process_cpu_seconds_total counter",
        "# TYPE process_resident_memory_bytes gauge",
    ] {
        assert!(plain.body.lines().any(|known| known == line), "{line} is missing in\n{}", plain.body);
    }
    assert!(plain.body.contains("ringhub_build_info{version="));
    assert!(!plain.body.contains("# EOF") && !plain.body.contains("# UNIT"));

    let open = fixture.ask(
        "GET /metrics HTTP/1.1\r\nHost: h\r\n\
         Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3\r\n\r\n",
    );
    assert!(open.header("content-type").unwrap().starts_with("application/openmetrics-text; version=1.0.0"));
    assert!(open.body.ends_with("# EOF\n") && open.body.contains("# UNIT ringhub_sent_bytes bytes\n"));
    let mut families: Vec<_> = open.body.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let all = families.len();
    families.sort_unstable();
    families.dedup();
    assert_eq!(families.len(), all, "a family is described once");
}

#[test]
fn an_internal_listener_has_the_api_for_itself() {
    let fixture = fixture(|options| options.internal = Some(Listen::Tcp("127.0.0.1:0".parse().unwrap())));
    let mut client = TcpStream::connect(fixture.plane.internal_address().unwrap()).unwrap();
    client.write_all(get("/live").as_bytes()).unwrap();
    assert_eq!(reply(&mut client).status, 200);
    client.write_all(upgrade("/ws").as_bytes()).unwrap();
    assert_eq!(reply(&mut client).status, 400, "WebSockets are for the public listener");

    assert_eq!(fixture.ask(&get("/live")).error(), "not_found");
    let mut public = fixture.connect(&get("/metrics"));
    assert_eq!(reply(&mut public).status, 404);
    public.write_all(upgrade("/ws").as_bytes()).unwrap();
    fixture.adopted.recv_timeout(Duration::from_secs(10)).unwrap();
}

#[test]
fn an_internal_unix_listener_serves_and_refuses_what_is_too_much() {
    let path = std::env::temp_dir().join(format!("ringhub-internal-{}.sock", std::process::id()));
    let fixture = fixture(|options| {
        options.internal = Some(Listen::Unix(path.clone()));
        options.internal_connections_max = 1;
    });
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(get("/ready").as_bytes()).unwrap();
    assert_eq!(reply(&mut client).status, 200);
    let mut second = UnixStream::connect(&path).unwrap();
    assert_eq!(reply(&mut second).status, 503);
    fixture.plane.shutdown().unwrap();
    assert!(!path.exists());
}

#[test]
fn a_taken_address_is_an_error_of_the_start() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let fixture = fixture(|_| {});
    let (_, intake) = inbox(1).unwrap();
    let options = Options { internal: Some(Listen::Tcp(taken.local_addr().unwrap())), ..Options::default() };
    match start(options, fixture.hub.clone(), intake) {
        Err(StartError::Listen { error, .. }) => assert_eq!(error.kind(), ErrorKind::AddrInUse),
        other => panic!("{other:?}"),
    }
    let (_, intake) = inbox(1).unwrap();
    let options = Options { cpu: Some(100_000), driver: driver(), ..Options::default() };
    assert!(matches!(start(options, fixture.hub, intake), Err(StartError::Placement(_))));
}

#[test]
fn the_inbox_gives_back_what_is_too_much() {
    let fixture = fixture_with(1, |_| {});
    let mut client = fixture.connect(&get("/live"));
    assert_eq!(reply(&mut client).status, 200);
    let (_, server) = pair();
    let adopted = Adopted { socket: server.into(), received: Vec::new(), origin: ConnectionOrigin::default() };
    assert!(fixture.inbox.push(adopted).is_err());
}

#[test]
fn a_shutdown_closes_idle_connections_and_lets_requests_end() {
    let fixture = fixture(|_| {});
    let mut idle = fixture.connect(&get("/live"));
    assert_eq!(reply(&mut idle).status, 200);
    fixture.hub.silent.store(true, Ordering::SeqCst);
    let mut busy = fixture.connect(&get("/ready"));
    eventually("the question", || !fixture.hub.unanswered.lock().unwrap().is_empty());
    let unanswered = Arc::clone(&fixture.hub.unanswered);
    let answering = std::thread::spawn(move || {
        assert!(at_end(&mut idle));
        let answer = unanswered.lock().unwrap().pop().unwrap();
        answer.resolve(Ok(Readiness { shards: 2, answering: 2, deaf: 0 }));
        assert_eq!(reply(&mut busy).status, 200);
        assert!(at_end(&mut busy));
    });
    assert!(fixture.plane.is_running());
    fixture.plane.shutdown().unwrap();
    answering.join().unwrap();
    let (_, server) = pair();
    let adopted = Adopted { socket: server.into(), received: Vec::new(), origin: ConnectionOrigin::default() };
    assert!(fixture.inbox.push(adopted).is_err());
}

#[test]
fn many_threads_and_connections_at_once_lose_nothing() {
    let fixture = fixture_with(64, |_| {});
    let good = format!("{TOKEN}{JSON}");
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (inbox, good) = (&fixture.inbox, &good);
            scope.spawn(move || {
                let body = format!(r#"{{"room":"room:{thread}","type":"t"}}"#);
                for _ in 0..10 {
                    let mut client = connect(inbox, &post(good, &body));
                    assert_eq!(reply(&mut client).status, 200);
                    for _ in 0..20 {
                        client.write_all(post(good, &body).as_bytes()).unwrap();
                        assert_eq!(reply(&mut client).status, 200);
                    }
                    client.shutdown(Shutdown::Write).unwrap();
                    assert!(at_end(&mut client));
                }
            });
        }
    });
    assert_eq!(fixture.hub.calls.load(Ordering::SeqCst), 8 * 10 * 21);
    eventually("the places", || fixture.inbox.open() == 0);
}

#[test]
fn an_idle_control_plane_wakes_at_once() {
    let fixture = fixture(|_| {});
    let mut times: Vec<_> = (0..41)
        .map(|_| {
            // Long enough for the executor to sleep.
            std::thread::sleep(Duration::from_millis(5));
            let start = Instant::now();
            let mut client = fixture.connect(&get("/"));
            let status = reply(&mut client).status;
            let elapsed = start.elapsed();
            assert_eq!(status, 200);
            elapsed
        })
        .collect();
    times.sort_unstable();
    println!("from the inbox to the answer: median {:?}, worst {:?}", times[20], times[40]);
    assert!(times[20] < Duration::from_millis(20), "{times:?}");
}

#[test]
fn a_caller_waits_for_a_message_and_gets_it_or_hears_that_there_was_none() {
    let fixture = fixture(|_| ());
    let ask = |id: &str, wait: &str| {
        format!(
            "GET /api/v1/sessions/{id}/messages?timeout_s={wait} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer root\r\n\r\n"
        )
    };
    let reply = fixture.ask(&ask("ready", "5"));
    assert_eq!((reply.status, reply.body.as_str()), (200, r#"{"session_id":"ready","data":{"a":1}}"#));
    assert_eq!(fixture.ask(&ask("silent", "0")).status, 204);
    assert_eq!(fixture.ask(&ask("silent", "1").replace("root", "good")).status, 403);
}

#[test]
fn a_caller_who_has_gone_waits_no_longer_and_takes_no_message() {
    let fixture = fixture(|_| ());
    let request = "GET /api/v1/sessions/late/messages HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer root\r\n\r\n";
    let client = fixture.connect(request);
    let until = Instant::now() + Duration::from_secs(10);
    let waiting = |what: &str| {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    };
    let answer = loop {
        if let Some(answer) = fixture.hub.receivers.lock().unwrap().pop() {
            break answer;
        }
        waiting("nobody asks for a message");
    };
    drop(client);
    while !answer.is_abandoned() {
        waiting("the caller is still waited for");
    }
    assert_eq!(answer.try_resolve(Ok(Bytes::from_static(b"1"))).unwrap_err().unwrap(), "1");
    assert!(fixture.hub.put_back.lock().unwrap().is_empty());
}
