//! The namespaces of one client, what each of them is given, and how a client takes its session up again: one thing at a time.

use std::time::Duration;

use ringhub::config::{Config, Policy};
use ringhub::ring::sim::Faults;
use serde_json::{Value, json};

use crate::client::{Client, frame};
use crate::engine::{EngineClient, Packet};
use crate::node::{Node, config};

const NONE: &Value = &Value::Null;

/// Two shards. The rooms that everybody is in are at home on the first one.
fn node(config: Config) -> Node {
    let is_home = |node: &Node| ["global", "user:anonymous"].iter().all(|room| node.hasher.room(room).home(2).0 == 0);
    let nodes = (0..).map(|seed| Node::new(seed, 2, Faults::none(), config.clone()));
    nodes.into_iter().find(is_home).expect("a seed")
}

fn connect(node: &mut Node, shard: usize) -> EngineClient {
    let mut client = EngineClient::connect(node, shard, "");
    client.settle(node);
    client
}

fn publish(node: &mut Node, room: &str, client: &mut EngineClient) {
    node.publish(room, "1");
    client.settle(node);
}

/// The connection breaks.
fn lose(node: &mut Node, client: &EngineClient) {
    client.link().expect("a WebSocket").reset();
    node.settle();
}

fn pid(granted: &Packet) -> Value {
    json!({ "pid": granted.payload["pid"] })
}

fn end(mut node: Node, clients: &[&EngineClient]) {
    clients.iter().filter_map(|client| client.link()).for_each(|link| link.close());
    node.assert_no_sessions();
    node.assert_empty();
}

// ---- what a namespace is given ----

#[test]
fn a_room_of_one_namespace_is_none_of_the_other_ones_unless_everybody_is_in_it() {
    let mut node = node(config());
    let mut client = connect(&mut node, 0);
    client.let_in(&mut node, "/", NONE);
    client.ask(&mut node, "/", "subscribe", &json!({"room": "project:1"}));
    client.let_in(&mut node, "/ws", NONE);
    client.ask(&mut node, "/ws", "subscribe", &json!({"room": "quote:1"}));
    // Somebody else's, which an administrator may look into.
    client.ask(&mut node, "/ws", "subscribe", &json!({"rooms": ["user:bob", "session:bobs"]}));
    for room in ["project:1", "quote:1", "global", "user:anonymous", "user:bob", "session:bobs"] {
        publish(&mut node, room, &mut client);
    }
    let got = |namespace: &str| {
        let rooms = ["project:1", "quote:1", "global", "user:anonymous", "user:bob", "session:bobs"];
        rooms.map(|room| client.seqs(namespace, room).len())
    };
    assert_eq!(got("/"), [1, 0, 1, 1, 0, 0]);
    assert_eq!(got("/ws"), [0, 1, 1, 1, 1, 1]);
    end(node, &[&client]);
}

#[test]
fn a_namespace_that_unsubscribes_does_not_undo_what_another_one_has_just_asked_for() {
    let mut node = node(config());
    let room = node.room_at("project:", 1);
    let mut client = connect(&mut node, 0);
    client.let_in(&mut node, "/", NONE);
    client.let_in(&mut node, "/ws", NONE);
    client.ask(&mut node, "/", "subscribe", &json!({"room": room}));
    client.emit(&node, "/ws", Some(1), "subscribe", &json!({"room": room}));
    client.emit(&node, "/", Some(2), "unsubscribe", &json!({"room": room}));
    client.settle(&mut node);
    publish(&mut node, &room, &mut client);
    assert_eq!((client.seqs("/", &room), client.seqs("/ws", &room)), (vec![], vec![1]));
    client.ask(&mut node, "/ws", "unsubscribe", &json!({"room": room}));
    assert_eq!(node.figures().subscriptions, 3);
    end(node, &[&client]);
}

#[test]
fn what_a_namespace_asked_for_before_it_was_left_is_not_for_the_next_visit() {
    for stays in [true, false] {
        let mut node = node(config());
        let room = node.room_at("project:", 1);
        let mut client = connect(&mut node, 0);
        client.let_in(&mut node, "/ws", NONE);
        if stays {
            client.let_in(&mut node, "/", NONE);
        }
        client.emit(&node, "/ws", Some(1), "subscribe", &json!({"room": room}));
        client.emit(&node, "/ws", Some(2), "subscribe", &json!({"rooms": [room, "quote:1"]}));
        client.emit(&node, "/ws", Some(3), "publish", &json!({"room": room, "type": "x", "data": 1}));
        client.leave(&node, "/ws");
        // The room's home has not been heard of by then.
        (0..3).for_each(|_| node.turn_of(0));
        client.enter(&node, "/ws", NONE);
        client.emit(&node, "/ws", Some(4), "rooms", NONE);
        client.settle(&mut node);
        publish(&mut node, &room, &mut client);
        publish(&mut node, "quote:1", &mut client);
        assert_eq!((client.seqs("/ws", &room), client.seqs("/ws", "quote:1")), (vec![], vec![]), "stays: {stays}");
        let answers: Vec<u64> = client.packets.iter().filter_map(|packet| packet.id).collect();
        assert_eq!(answers, [4], "stays: {stays}");
        assert_eq!(node.figures().subscriptions, 3, "stays: {stays}");
        end(node, &[&client]);
    }
}

#[test]
fn what_waits_for_a_namespace_when_it_is_left_is_not_for_the_next_visit() {
    for (stays, polls) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut node = node(config());
        let mut client = if polls { EngineClient::poll_at(&node, 0, "") } else { connect(&mut node, 0) };
        client.settle(&mut node);
        client.let_in(&mut node, "/ws", NONE);
        if stays {
            client.let_in(&mut node, "/", NONE);
        }
        client.ask(&mut node, "/ws", "subscribe", &json!({"room": "project:1"}));
        client.abandon_poll(&node);
        client.reads = false;
        client.link().into_iter().for_each(|link| link.set_read_budget(0));
        for _ in 0..10 {
            publish(&mut node, "project:1", &mut client);
            publish(&mut node, "global", &mut client);
        }
        if polls {
            // The answer to one poll is not all of it.
            client.reads = true;
            client.poll(&node);
            client.reads = false;
            client.settle(&mut node);
        }
        let before = client.packets.len();
        client.emit(&node, "/ws", Some(1), "ping", NONE);
        client.leave(&node, "/ws");
        client.enter(&node, "/ws", NONE);
        node.settle();
        client.reads = true;
        client.link().into_iter().for_each(|link| link.set_read_budget(usize::MAX));
        client.settle(&mut node);
        // What was with the kernel had left the hub.
        let entered = client.packets.iter().rposition(|packet| packet.kind == '0').expect("granted");
        let behind = if polls { before } else { entered };
        let behind: Vec<&Packet> = client.packets[behind..].iter().filter(|packet| packet.namespace == "/ws").collect();
        assert_eq!(behind.len(), 2, "the grant and the greeting: {behind:?}");
        let seqs = client.seqs("/", "global");
        assert_eq!(seqs, if stays { (1..=10).collect() } else { vec![] }, "polls: {polls}");
        client.finish(&node);
        end(node, &[&client]);
    }
}

#[test]
fn an_answer_behind_events_to_a_namespace_that_was_left_is_nothing() {
    let mut node = node(config());
    let mut client = connect(&mut node, 0);
    client.let_in(&mut node, "/ws", NONE);
    client.let_in(&mut node, "/", NONE);
    for namespace in ["/", "/ws"] {
        client.ask(&mut node, namespace, "subscribe", &json!({"room": "project:1"}));
    }
    let link = client.link().expect("a WebSocket").clone();
    link.set_read_budget(0);
    (0..3).for_each(|_| publish(&mut node, "project:1", &mut client));
    client.emit(&node, "/ws", Some(1), "unsubscribe", &json!({"room": "project:1"}));
    client.emit(&node, "/ws", Some(2), "history", &json!({"room": "project:1"}));
    client.leave(&node, "/ws");
    node.settle();
    link.set_read_budget(usize::MAX);
    client.settle(&mut node);
    assert_eq!(client.seqs("/", "project:1"), [1, 2, 3]);
    end(node, &[&client]);
}

#[test]
fn a_client_in_no_namespace_lives_for_as_long_as_it_answers_pings() {
    let mut config = config();
    (config.socketio.ping_interval_ms, config.socketio.ping_timeout_ms) = (100, 100);
    let mut node = node(config);
    let mut client = connect(&mut node, 0);
    client.let_in(&mut node, "/", NONE);
    client.leave(&node, "/");
    for _ in 0..150 {
        node.world.advance(Duration::from_millis(100));
        client.settle(&mut node);
    }
    assert!(client.pings > 140 && client.closed.is_none(), "{} {:?}", client.pings, client.closed);
    client.let_in(&mut node, "/", NONE);
    client.leave(&node, "/");
    for _ in 0..101 {
        client.enter(&node, "/nowhere", NONE);
    }
    client.settle(&mut node);
    assert_eq!(client.closed.as_deref(), Some("closed"), "that is too much");
    end(node, &[&client]);
}

#[test]
fn nothing_is_measured_of_events_that_none_of_a_clients_namespaces_wants() {
    let mut node = node(config());
    let room = node.room_at("project:", 1);
    let mut client = connect(&mut node, 0);
    client.let_in(&mut node, "/ws", NONE);
    client.let_in(&mut node, "/", NONE);
    client.ask(&mut node, "/ws", "subscribe", &json!({"room": room}));
    // The room is left by way of its home, which publishes something first.
    client.leave(&node, "/ws");
    node.publish(&room, "1");
    (0..2).for_each(|_| node.turn_of(1));
    (0..3).for_each(|_| node.turn_of(0));
    node.settle();
    node.world.advance(Duration::from_secs(20));
    client.ask(&mut node, "/", "ping", NONE);
    let times = node.times();
    let slowest = times.iter().filter_map(|times| times.latency.permille_us(1000)).max();
    assert!(slowest.is_none_or(|us| us < 1_000_000), "{slowest:?}");
    assert!(client.seqs("/ws", &room).is_empty());
    end(node, &[&client]);
}

// ---- taking a session up ----

#[test]
fn each_namespace_has_its_rooms_back_with_all_that_was_missed() {
    let mut node = node(config());
    let mut client = connect(&mut node, 0);
    let granted = client.let_in(&mut node, "/", NONE);
    client.ask(&mut node, "/", "subscribe", &json!({"room": "project:1"}));
    let other = client.let_in(&mut node, "/ws", NONE);
    client.ask(&mut node, "/ws", "subscribe", &json!({"room": "quote:1"}));
    client.ask(&mut node, "/ws", "subscribe", &json!({"room": "project:1"}));
    client.ask(&mut node, "/ws", "subscribe", &json!({"room": "project:2"}));
    publish(&mut node, "project:1", &mut client);
    lose(&mut node, &client);
    for room in ["project:1", "quote:1", "project:2", "global"] {
        node.publish(room, "2");
    }
    node.settle();
    let mut again = connect(&mut node, 1);
    // All in one breath, as a library does.
    again.enter(&node, "/", &pid(&granted));
    again.enter(&node, "/ws", &pid(&other));
    again.settle(&mut node);
    let pids: Vec<_> =
        again.packets.iter().filter(|packet| packet.kind == '0').map(|packet| &packet.payload["pid"]).collect();
    assert_eq!(pids, [&granted.payload["pid"], &other.payload["pid"]], "nothing was missed");
    assert!(again.packets.iter().all(|packet| packet.payload[0] != "gap"), "{:?}", again.packets);
    let rooms = ["project:1", "quote:1", "project:2", "global"];
    assert_eq!(rooms.map(|room| again.seqs("/", room)), [vec![2], vec![], vec![], vec![1]]);
    assert_eq!(rooms.map(|room| again.seqs("/ws", room)), [vec![2], vec![1], vec![1], vec![1]]);
    publish(&mut node, "quote:1", &mut again);
    assert_eq!((again.seqs("/", "quote:1"), again.seqs("/ws", "quote:1")), (vec![], vec![1, 2]));
    end(node, &[&client, &again]);
}

#[test]
fn a_namespace_that_comes_late_is_told_that_it_has_to_begin_anew() {
    let mut node = node(config());
    let mut client = connect(&mut node, 0);
    let granted = client.let_in(&mut node, "/", NONE);
    let other = client.let_in(&mut node, "/ws", NONE);
    client.ask(&mut node, "/ws", "subscribe", &json!({"room": "quote:1"}));
    lose(&mut node, &client);
    let mut again = connect(&mut node, 1);
    assert_eq!(again.let_in(&mut node, "/", &pid(&granted)).payload["pid"], granted.payload["pid"]);
    let late = again.let_in(&mut node, "/ws", &pid(&other));
    assert_ne!(late.payload["pid"], other.payload["pid"]);
    publish(&mut node, "quote:1", &mut again);
    assert_eq!((again.seqs("/", "quote:1"), again.seqs("/ws", "quote:1")), (vec![], vec![]));
    again.ask(&mut node, "/ws", "subscribe", &json!({"room": "quote:1"}));
    lose(&mut node, &again);
    node.publish("quote:1", "2");
    node.settle();
    // What it was granted then is as good as the first one was.
    let mut third = connect(&mut node, 0);
    third.enter(&node, "/", &pid(&granted));
    third.enter(&node, "/ws", &pid(&late));
    third.settle(&mut node);
    assert_eq!((third.seqs("/", "quote:1"), third.seqs("/ws", "quote:1")), (vec![], vec![2]));
    end(node, &[&client, &again, &third]);
}

#[test]
fn a_namespace_that_was_not_there_when_the_connection_broke_is_not_taken_for_one_that_was() {
    let mut node = node(config());
    let mut client = connect(&mut node, 0);
    let granted = client.let_in(&mut node, "/", NONE);
    let other = client.let_in(&mut node, "/ws", NONE);
    client.ask(&mut node, "/ws", "subscribe", &json!({"room": "quote:1"}));
    lose(&mut node, &client);
    // This one breaks before the other namespace is asked for.
    let mut again = connect(&mut node, 1);
    again.let_in(&mut node, "/", &pid(&granted));
    lose(&mut node, &again);
    let mut third = connect(&mut node, 1);
    third.enter(&node, "/", &pid(&granted));
    third.enter(&node, "/ws", &pid(&other));
    third.settle(&mut node);
    let pids: Vec<_> =
        third.packets.iter().filter(|packet| packet.kind == '0').map(|packet| &packet.payload["pid"]).collect();
    assert_eq!(pids[0], &granted.payload["pid"]);
    assert_ne!(pids[1], &other.payload["pid"]);
    end(node, &[&client, &again, &third]);
}

#[test]
fn what_a_client_sends_behind_its_connect_comes_behind_the_session_that_it_takes_up() {
    let mut node = node(config());
    let mut client = connect(&mut node, 0);
    let granted = client.let_in(&mut node, "/", NONE);
    client.ask(&mut node, "/", "subscribe", &json!({"room": "project:1"}));
    lose(&mut node, &client);
    let mut again = connect(&mut node, 1);
    again.enter(&node, "/", &pid(&granted));
    again.emit(&node, "/", Some(1), "subscribe", &json!({"room": "project:1", "types": ["y"]}));
    again.settle(&mut node);
    publish(&mut node, "project:1", &mut again);
    assert!(again.seqs("/", "project:1").is_empty(), "it wants other events by now");
    end(node, &[&client, &again]);
}

#[test]
fn an_event_comes_once_though_it_was_published_while_a_session_was_taken_up() {
    for steps in 0..12 {
        let mut node = node(config());
        let mut client = connect(&mut node, 0);
        let granted = client.let_in(&mut node, "/", NONE);
        publish(&mut node, "global", &mut client);
        lose(&mut node, &client);
        let mut again = connect(&mut node, 1);
        again.enter(&node, "/", &pid(&granted));
        for step in 0..12 {
            if step == steps {
                node.publish("global", "2");
            }
            node.turn_of(step % 2);
        }
        again.settle(&mut node);
        publish(&mut node, "global", &mut again);
        assert_eq!(again.seqs("/", "global"), [2, 3], "published after {steps} turns");
        let rooms = again.told("/", "resumed")[0]["data"]["results"].clone();
        assert!(rooms.as_array().expect("a list").iter().all(|room| room["recovered"] == true), "{rooms}");
        end(node, &[&client, &again]);
    }
}

#[test]
fn an_event_that_was_between_two_shards_when_a_connection_broke_is_given_to_the_next_one() {
    let mut node = node(config());
    let room = node.room_at("project:", 1);
    let mut client = connect(&mut node, 0);
    let granted = client.let_in(&mut node, "/", NONE);
    client.ask(&mut node, "/", "subscribe", &json!({"room": room}));
    publish(&mut node, &room, &mut client);
    node.publish(&room, "2");
    (0..3).for_each(|_| node.turn_of(1));
    node.world.advance(Duration::from_millis(5));
    client.link().expect("a WebSocket").reset();
    node.settle();
    let mut again = connect(&mut node, 1);
    again.let_in(&mut node, "/", &pid(&granted));
    assert_eq!(again.seqs("/", &room), [2]);
    end(node, &[&client, &again]);
}

#[test]
fn the_greeting_behind_a_session_that_was_taken_up_names_it_with_its_token() {
    let mut node = node(config());
    let mut client = connect(&mut node, 0);
    let granted = client.let_in(&mut node, "/", NONE);
    let greeting = client.told("/", "connection.established")[0].clone();
    lose(&mut node, &client);
    let mut again = connect(&mut node, 1);
    again.let_in(&mut node, "/", &pid(&granted));
    again.let_in(&mut node, "/ws", NONE);
    for namespace in ["/", "/ws"] {
        let told = &again.told(namespace, "connection.established")[0]["data"];
        assert_eq!(told["session_id"], greeting["data"]["session_id"]);
        assert_eq!(told["resume"]["token"], greeting["data"]["resume"]["token"]);
    }
    end(node, &[&client, &again]);
}

#[test]
fn what_waits_for_a_client_that_is_too_slow_is_given_to_it_when_it_comes_back() {
    let mut config = config();
    config.limits.outbox_bytes_max = 4096;
    config.kinds.iter_mut().filter(|kind| kind.name == "quote").for_each(|kind| kind.policy = Policy::Disconnect);
    let mut node = node(config);
    let mut client = connect(&mut node, 0);
    let granted = client.let_in(&mut node, "/", NONE);
    client.ask(&mut node, "/", "subscribe", &json!({"rooms": ["quote:1", "quote:2", "project:1"]}));
    let data = json!("x".repeat(1000)).to_string();
    client.link().expect("a WebSocket").set_read_budget(0);
    node.publish("project:1", data.clone());
    node.settle();
    for room in ["quote:1", "quote:2", "project:1", "quote:1", "quote:2", "project:1"] {
        node.publish(room, data.clone());
    }
    node.settle();
    assert_eq!(node.figures().slow_closes, 1);
    let mut again = connect(&mut node, 1);
    again.let_in(&mut node, "/", &pid(&granted));
    // What was with the kernel is all that can't be known.
    let rooms = ["quote:1", "quote:2", "project:1"];
    assert_eq!(rooms.map(|room| again.seqs("/", room)), [vec![1, 2], vec![1, 2], vec![2, 3]]);
    end(node, &[&client, &again]);
}

#[test]
fn a_gap_that_was_not_sent_when_a_connection_broke_is_told_over_the_next_one() {
    let mut config = config();
    config.limits.outbox_bytes_max = 4096;
    config.history.events_max = 3;
    let mut node = node(config);
    let (room, other) = (node.room_at("project:", 1), node.room_at("project:", 0));
    let mut client = connect(&mut node, 0);
    let granted = client.let_in(&mut node, "/", NONE);
    client.ask(&mut node, "/", "subscribe", &json!({"rooms": [room, other]}));
    let link = client.link().expect("a WebSocket").clone();
    link.set_read_budget(0);
    // The first one is with the kernel; the others are read from the log when that is sent.
    for _ in 0..8 {
        node.publish(&room, json!("x".repeat(3000)).to_string());
        node.settle();
    }
    link.set_read_budget(3400);
    (0..3).for_each(|_| node.turn_of(0));
    link.set_read_budget(0);
    // While the log's shard is asked, something else takes the kernel's place.
    node.publish(&other, "1");
    (0..3).for_each(|_| node.turn_of(0));
    node.settle();
    assert_eq!(node.figures().gaps, 1);
    lose(&mut node, &client);
    let mut again = connect(&mut node, 1);
    again.let_in(&mut node, "/", &pid(&granted));
    let gap = &again.told("/", "gap")[0]["data"];
    assert_eq!((&gap["from_seq"], &gap["to_seq"]), (&json!(2), &json!(5)), "{gap}");
    assert_eq!(again.seqs("/", &room), [6, 7, 8]);
    end(node, &[&client, &again]);
}

#[test]
fn what_a_session_has_missed_is_told_again_if_the_connection_that_took_it_up_broke_before_it_was() {
    for turns in 0..16 {
        let mut config = config();
        config.history.events_max = 3;
        let mut node = node(config);
        let mut client = connect(&mut node, 0);
        let granted = client.let_in(&mut node, "/", NONE);
        client.ask(&mut node, "/", "subscribe", &json!({"rooms": ["project:1", "project:2", "quote:1"]}));
        publish(&mut node, "project:1", &mut client);
        lose(&mut node, &client);
        (0..5).for_each(|_| node.publish("project:1", "2"));
        node.settle();
        // All that this one is told stays behind the answer to its handshake, which it does not read.
        let mut again = EngineClient::connect(&node, 1, "");
        again.link().expect("a WebSocket").set_read_budget(0);
        again.enter(&node, "/", &pid(&granted));
        (0..turns).for_each(|turn| node.turn_of(turn % 2));
        lose(&mut node, &again);
        let mut third = connect(&mut node, 1);
        third.let_in(&mut node, "/", &pid(&granted));
        let gap = &third.told("/", "gap")[0]["data"];
        assert_eq!((&gap["from_seq"], &gap["to_seq"]), (&json!(2), &json!(3)), "{turns} turns: {gap}");
        assert_eq!(third.seqs("/", "project:1"), [4, 5, 6], "{turns} turns");
        end(node, &[&client, &again, &third]);
    }
}

#[test]
fn events_wait_for_the_answer_to_a_connect_though_the_transport_changes() {
    let mut node = node(config());
    let mut client = connect(&mut node, 0);
    let granted = client.let_in(&mut node, "/", NONE);
    let session = client.told("/", "connection.established")[0]["data"]["session_id"].clone();
    let room = format!("session:{}", session.as_str().expect("text"));
    let home = usize::from(node.hasher.room(&room).home(2).0);
    lose(&mut node, &client);
    let other = 1 - home;
    let mut again = EngineClient::poll_at(&node, other, "");
    again.settle(&mut node);
    again.probe(&node, other);
    again.upgrades = false;
    again.settle(&mut node);
    again.settle(&mut node);
    // Its session is asked for at a shard that says nothing, while the client goes over to a WebSocket.
    again.enter(&node, "/", &pid(&granted));
    let turns: Vec<usize> = (0..40).map(|turn| if turn < 30 && home == 0 { 1 } else { turn % 2 }).collect();
    turns.into_iter().take(20).for_each(|shard| node.turn_of(shard));
    again.upgrades = true;
    again.poll(&node);
    for _ in 0..8 {
        node.publish("global", "1");
        node.turn_of(other);
        again.poll(&node);
    }
    again.settle(&mut node);
    let first = again.packets.first().expect("packets");
    assert_eq!((first.kind, again.is_polling()), ('0', false), "{first:?}");
    let seqs = again.seqs("/", "global");
    assert_eq!(seqs, (1..=8).collect::<Vec<_>>());
    end(node, &[&client, &again]);
}

#[test]
fn events_that_are_too_many_for_a_client_that_is_being_let_in_are_read_from_the_log() {
    for native in [true, false] {
        let mut config = config();
        config.limits.outbox_bytes_max = 2000;
        let mut node = node(config);
        let session = node.room_at("session:", 1);
        let query = format!("session_id={}", &session["session:".len()..]);
        let mut socketio = EngineClient::connect(&node, 0, &format!("&{query}"));
        socketio.settle(&mut node);
        let mut client = None;
        match native {
            true => client = Some(Client::connect(&node, 0, "/ws", &query)),
            false => socketio.enter(&node, "/", NONE),
        }
        // It is in this room by then; its session's home is not heard of.
        (0..6).for_each(|_| node.turn_of(0));
        for _ in 0..6 {
            node.publish("global", json!("x".repeat(600)).to_string());
            node.turn_of(0);
        }
        socketio.settle(&mut node);
        let seqs = match &mut client {
            Some(client) => {
                client.poll();
                client.seqs("global")
            }
            None => socketio.seqs("/", "global"),
        };
        assert_eq!(seqs, [1, 2, 3, 4, 5, 6], "native: {native}");
        client.iter().for_each(|client| client.link.close());
        end(node, &[&socketio]);
    }
}

#[test]
fn a_client_that_has_left_its_namespace_is_not_closed_for_the_session_that_it_had() {
    let mut node = node(config());
    let session = node.room_at("session:", 1);
    let name = session["session:".len()..].to_owned();
    let mut client = connect(&mut node, 0);
    client.let_in(&mut node, "/", &json!({"session_id": name}));
    // Its session is taken by its name while it leaves.
    let mut other = Client::connect(&node, 1, "/ws", &format!("session_id={name}"));
    for _ in 0..20 {
        node.turn_of(1);
        if node.mesh.has_work(ringhub::hub::name::ShardId(0)) {
            break;
        }
    }
    client.leave(&node, "/");
    client.enter(&node, "/", NONE);
    client.settle(&mut node);
    node.settle();
    other.poll();
    assert_eq!((other.status, client.closed.as_deref()), (Some(101), None));
    assert_eq!(client.ask(&mut node, "/", "ping", &json!(1))["data"], 1);
    other.link.write(&frame(8, &1000u16.to_be_bytes()));
    other.link.close();
    end(node, &[&client]);
}

#[test]
fn a_session_that_is_taken_over_takes_its_client_out_of_every_namespace() {
    for polls in [true, false] {
        let mut node = node(config());
        let mut client = if polls { EngineClient::poll_at(&node, 0, "") } else { connect(&mut node, 0) };
        client.let_in(&mut node, "/", &json!({"session_id": "shared"}));
        client.let_in(&mut node, "/ws", NONE);
        let mut other = connect(&mut node, 1);
        other.let_in(&mut node, "/", &json!({"session_id": "shared"}));
        client.settle(&mut node);
        let left: Vec<&str> =
            client.packets.iter().filter(|packet| packet.kind == '1').map(|packet| &*packet.namespace).collect();
        assert_eq!((left, client.closed.is_some()), (vec!["/", "/ws"], true));
        end(node, &[&client, &other]);
    }
}
