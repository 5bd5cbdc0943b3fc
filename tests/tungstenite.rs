//! The program through tungstenite's client: an independent implementation of RFC 6455 in Rust.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::client::{IntoClientRequest, client_with_config};
use tungstenite::http::StatusCode;
use tungstenite::protocol::WebSocketConfig;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Bytes, Error, Message, WebSocket};

const WAIT: Duration = Duration::from_secs(10);

/// A hub of the test's own; ends with it.
struct Hub {
    child: Child,
    port: u16,
}

impl Hub {
    fn start(arguments: &[&str]) -> Hub {
        let port = free_port();
        let mut child = Command::new(env!("CARGO_BIN_EXE_ringhub"))
            .args(["serve", "--no-auth", "--shards", "2", "--listen", &format!("127.0.0.1:{port}")])
            .args([
                "--set",
                "limits.connections_per_user_max=0",
                "--set",
                "limits.messages_per_s=0",
                "--set",
                "drain.seconds=1",
            ])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let deadline = Instant::now() + WAIT;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = child.try_wait().expect("the child can be looked at") {
                panic!("the hub ended at start with {status}: {:?}", log(&mut child));
            }
            assert!(Instant::now() < deadline, "the hub does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        // Its log must not fill the pipe.
        let stderr = child.stderr.take().expect("stderr is piped");
        std::thread::spawn(move || {
            BufReader::new(stderr).lines().map_while(Result::ok).for_each(|line| eprintln!("{line}"))
        });
        Hub { child, port }
    }

    fn connect(&self, path: &str) -> Result<Client, Box<Error>> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the hub listens");
        stream.set_read_timeout(Some(WAIT)).expect("a timeout can be set");
        stream.set_nodelay(true).expect("nodelay can be set");
        let request = format!("ws://127.0.0.1:{}{path}", self.port).into_client_request().map_err(Box::new)?;
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let (socket, answer) = client_with_config(request, stream, Some(config)).map_err(|error| match error {
            tungstenite::HandshakeError::Failure(error) => Box::new(error),
            tungstenite::HandshakeError::Interrupted(_) => panic!("a blocking handshake was interrupted"),
        })?;
        assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
        Ok(Client(socket))
    }

    fn join(&self) -> Client {
        let mut client = self.connect("/ws").expect("the upgrade is taken");
        client.next("connection_established");
        client
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let ended = self.child.try_wait();
        if self.child.kill().is_ok() && self.child.wait().is_ok() && !std::thread::panicking() {
            assert!(matches!(ended, Ok(None)), "the hub ended by itself: {ended:?}");
        }
    }
}

fn log(child: &mut Child) -> Vec<String> {
    child.stderr.take().map(|stderr| BufReader::new(stderr).lines().map_while(Result::ok).collect()).unwrap_or_default()
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port can be had");
    listener.local_addr().expect("it has an address").port()
}

struct Client(WebSocket<TcpStream>);

impl Client {
    fn say(&mut self, message: Value) {
        self.0.send(Message::text(message.to_string())).expect("a message can be sent");
    }

    /// The next message of this type.
    fn next(&mut self, kind: &str) -> Value {
        loop {
            if let Message::Text(text) = self.0.read().expect("a message arrives") {
                let message: Value = serde_json::from_str(&text).expect("messages are JSON");
                if message["type"] == kind {
                    return message;
                }
                assert_ne!(message["type"], "error", "{message}");
            }
        }
    }

    /// The code with which the hub closes.
    fn closed(&mut self) -> CloseCode {
        loop {
            match self.0.read() {
                Ok(Message::Close(frame)) => return frame.expect("a close has a code").code,
                Ok(_) => {}
                Err(error) => panic!("no close frame but {error}"),
            }
        }
    }
}

#[test]
fn clients_on_all_shards_get_every_event_in_order() {
    let hub = Hub::start(&[]);
    let mut members: Vec<Client> = (0..16).map(|_| hub.join()).collect();
    for member in &mut members {
        member.say(json!({"type": "subscribe", "id": 1, "data": {"room": "project:t"}}));
        assert_eq!(member.next("subscribed")["ref"], 1);
    }
    let mut publisher = hub.join();
    for n in 0..500 {
        publisher.say(json!({"type": "publish", "data": {"room": "project:t", "type": "n", "data": n}}));
    }
    for member in &mut members {
        for n in 0..500 {
            let event = member.next("n");
            assert_eq!((&event["seq"], &event["data"]), (&json!(n + 1), &json!(n)));
        }
    }
}

#[test]
fn pings_and_closes_are_answered() {
    let hub = Hub::start(&[]);
    let mut client = hub.join();
    client.0.send(Message::Ping(Bytes::from_static(b"payload"))).expect("a ping can be sent");
    loop {
        if let Message::Pong(payload) = client.0.read().expect("a pong arrives") {
            assert_eq!(payload, Bytes::from_static(b"payload"));
            break;
        }
    }
    client.0.close(None).expect("a close can be sent");
    loop {
        match client.0.read() {
            Ok(_) => {}
            Err(Error::ConnectionClosed) => break,
            Err(error) => panic!("not closed cleanly: {error}"),
        }
    }
}

#[test]
fn binary_messages_close_with_1003_and_too_large_ones_with_1009() {
    let hub = Hub::start(&["--set", "limits.message_bytes_max=65536"]);
    let mut binary = hub.join();
    binary.0.send(Message::binary(vec![1, 2, 3])).expect("a message can be sent");
    assert_eq!(binary.closed(), CloseCode::Unsupported);
    let mut large = hub.join();
    large.0.send(Message::text("x".repeat(65_537))).expect("a message can be sent");
    assert_eq!(large.closed(), CloseCode::Size);
}

#[test]
fn a_message_of_any_size_comes_back_from_echo() {
    let hub = Hub::start(&[
        "--echo",
        "--set",
        "limits.message_bytes_max=16777216",
        "--set",
        "limits.outbox_bytes_max=67108864",
    ]);
    let mut client = hub.connect("/echo").expect("echo is on");
    for size in [0, 1, 125, 126, 127, 4095, 4096, 4097, 65_535, 65_536, 65_537, 1 << 20, 16 << 20] {
        let message = Message::binary((0..size).map(|n| (n % 251) as u8).collect::<Vec<u8>>());
        client.0.send(message.clone()).expect("a message can be sent");
        assert!(client.0.read().expect("it comes back") == message, "{size} bytes came back changed");
    }
}

#[test]
fn refusals_are_http_answers() {
    let hub = Hub::start(&[]);
    match hub.connect("/nowhere").map(|_| ()).expect_err("there is nothing").as_ref() {
        Error::Http(answer) => {
            assert_eq!(answer.status(), StatusCode::NOT_FOUND);
            let body: Value =
                serde_json::from_slice(answer.body().as_deref().unwrap_or_default()).expect("the body is JSON");
            assert_eq!(body["error"]["code"], "not_found");
        }
        other => panic!("no HTTP answer but {other}"),
    }
}
