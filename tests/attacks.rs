//! A running hub on real sockets against peers that do what they should not, and callers that come too late.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ringhub::config::{Config, DriverChoice};
use ringhub::node::Hub;
use serde_json::json;

fn config() -> Config {
    let mut config = Config::default();
    config.listen.public = vec!["127.0.0.1:0".parse().expect("an address")];
    config.auth.enabled = false;
    config.shards.count = 2;
    config.shards.pin = false;
    // As for a hub, so that the whole run can be on the other driver.
    if std::env::var("RINGHUB_SHARDS_DRIVER").as_deref() == Ok("epoll") {
        config.shards.driver = DriverChoice::Epoll;
    }
    config
}

fn dial(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
    stream
}

fn upgrade(client: &str) -> String {
    format!(
        "GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nX-Forwarded-For: {client}\r\n\r\n"
    )
}

/// Sends a request and reads the head of its answer, and its body where it has a length.
fn status(stream: &mut TcpStream, request: &[u8]) -> String {
    stream.write_all(request).expect("sends");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an answer");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("text").to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().expect("a length"))];
    stream.read_exact(&mut body).expect("a body");
    head.split(' ').nth(1).expect("a status").to_owned()
}

#[test]
fn each_request_of_a_kept_alive_connection_counts_for_the_client_it_names() {
    let mut config = config();
    config.listen.trusted_proxies.nets = vec!["127.0.0.1".parse().expect("a network")];
    config.limits.connections_per_address_max = 1;
    let hub = Hub::start(config).expect("starts");
    let address = hub.addresses()[0];
    let mut through_proxy = dial(address);
    let request = "GET /live HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 203.0.113.1\r\n\r\n";
    assert_eq!(status(&mut through_proxy, request.as_bytes()), "200");
    assert_eq!(status(&mut through_proxy, upgrade("203.0.113.2").as_bytes()), "101");
    assert_eq!(status(&mut dial(address), upgrade("203.0.113.2").as_bytes()), "429");
    assert_eq!(status(&mut dial(address), upgrade("203.0.113.1").as_bytes()), "101");
    hub.shutdown().expect("ends");
}

#[test]
fn a_large_body_that_comes_at_once_reaches_the_control_plane() {
    let mut config = config();
    config.shards.count = 1;
    // All of it is received in the turn that finds the head.
    config.ring.buffer_bytes = 65_536;
    let hub = Hub::start(config).expect("starts");
    let event = json!({"room": "project:a", "type": "x", "data": "y".repeat(60_000)});
    let body = json!(vec![event; 50]).to_string();
    let head = format!(
        "POST /api/v1/publish HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    for _ in 0..20 {
        let mut stream = dial(hub.addresses()[0]);
        assert_eq!(status(&mut stream, [head.as_bytes(), body.as_bytes()].concat().as_slice()), "200");
    }
    hub.shutdown().expect("ends");
}

#[test]
fn whoever_asks_a_hub_that_has_ended_is_answered() {
    let hub = Hub::start(config()).expect("starts");
    hub.shutdown().expect("ends");
    for _ in 0..3 {
        let answer = hub.publish("project:a", "x", &json!({}));
        assert!(answer.wait_timeout(Duration::from_secs(5)).is_err(), "an error, and no waiting");
    }
}
