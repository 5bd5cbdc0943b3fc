//! Compressed messages, to and from clients that offered that, beside others that did not. (`model.rs`, `socketio.rs` and
//! `upgrades.rs` have clients that offer it in everything else that they do.)

use std::collections::BTreeSet;
use std::time::Duration;

use ringhub::config::Config;
use ringhub::ring::sim::Faults;
use ringhub::wire::deflate::Deflater;
use ringhub::wire::ws::{Opcode, RSV1, header_bytes_of};
use serde_json::{Value, json};

use crate::client::{Client, frame};
use crate::engine::EngineClient;
use crate::node::{Node, config};

const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
const SMALL_OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=9\r\n";

fn node_with(change: impl FnOnce(&mut Config)) -> Node {
    let mut config = config();
    config.compression.turn_bytes_max = 1 << 20;
    // Events are beyond it, answers are not.
    config.compression.threshold_bytes = 500;
    change(&mut config);
    Node::new(1, 1, Faults::none(), config)
}

fn connect(node: &mut Node, path: &str, query: &str, headers: &str) -> Client {
    let mut client = Client::connect_with(node, 0, path, query, headers);
    node.settle();
    client.poll();
    assert_eq!(client.status, Some(101), "{}", String::from_utf8_lossy(&client.body));
    client
}

fn member(node: &mut Node, headers: &str, room: &str) -> Client {
    let mut client = connect(node, "/ws", "", headers);
    let id = client.send("subscribe", json!({"room": room}));
    node.settle();
    client.poll();
    assert_eq!(client.answer(id).expect("an answer")["type"], "subscribed");
    client
}

fn document(number: usize) -> String {
    json!({"number": number, "rows": vec![json!({"status": "running", "load": 0.5}); 20]}).to_string()
}

fn events(client: &Client, room: &str) -> Vec<Value> {
    client.messages.iter().filter(|message| message["room"] == room && message["seq"].is_u64()).cloned().collect()
}

/// A message's payload as a client compresses it.
fn deflated(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    assert!(Deflater::new(6).frame(Opcode::Text, message, 15, &mut out));
    out.split_off(header_bytes_of(&out))
}

#[test]
fn a_batch_is_compressed_once_for_all_who_agreed_to_the_same_and_others_get_it_as_it_is() {
    let mut node = node_with(|config| config.shards.turn_deliveries_max = 16);
    let room = "project:1";
    let mut members: Vec<Client> = Vec::new();
    // So many that they are served in slices, over several turns.
    for number in 0..400 {
        members.push(member(&mut node, [OFFER, SMALL_OFFER, "", OFFER][number % 4], room));
    }
    let before = node.figures();
    node.publish(room, document(7));
    node.settle();
    let figures = node.figures();
    assert_eq!(figures.deflated_messages - before.deflated_messages, 2, "for each of the two windows");
    let grown = |read: fn(&ringhub::control::ShardFigures) -> u64| read(&figures) - read(&before);
    assert!(grown(|one| one.deflate_bytes_after) < grown(|one| one.deflate_bytes_before) / 2, "{figures:?}");
    assert!(figures.deflate_bytes_saved - before.deflate_bytes_saved > 200 * 300, "{figures:?}");
    members.iter_mut().for_each(Client::poll);
    let expected = events(&members[2], room);
    assert_eq!((expected.len(), &expected[0]["data"]["number"]), (1, &json!(7)));
    for (number, member) in members.iter().enumerate() {
        assert_eq!(events(member, room), expected, "{number}");
        assert_eq!(member.deflated() > 0, member.extensions().is_some(), "{number}");
    }
    assert_eq!(node.figures().deflate_connections, 300);
    members.iter().for_each(|member| member.link.close());
    // So many rooms of their own are not looked through at once.
    node.settle();
    node.pass(Duration::from_secs(5));
    node.assert_empty();
}

#[test]
fn who_is_left_out_of_events_gets_the_others_compressed_as_well() {
    let mut node = node_with(|_| {});
    let room = "project:1";
    let mut one = member(&mut node, OFFER, room);
    let mut other = member(&mut node, OFFER, room);
    let before = node.figures();
    let publish = |client: &mut Client, number, echo| {
        let data: Value = serde_json::from_str(&document(number)).expect("JSON");
        client.send("publish", json!({"room": room, "type": "x", "data": data, "echo": echo}));
    };
    // All in one turn, and so in one batch.
    publish(&mut one, 1, false);
    publish(&mut other, 2, false);
    publish(&mut other, 3, true);
    publish(&mut one, 4, false);
    node.settle();
    for (client, expected) in [(&mut one, [2, 3].as_slice()), (&mut other, &[1, 3, 4])] {
        client.poll();
        assert!(client.seqs(room).is_sorted(), "{:?}", client.seqs(room));
        let numbers = events(client, room).into_iter().filter_map(|event| event["data"]["number"].as_u64());
        assert_eq!(numbers.collect::<BTreeSet<u64>>(), BTreeSet::from_iter(expected.iter().copied()));
        assert_eq!(client.deflated(), expected.len());
    }
    assert_eq!(node.figures().deflated_messages - before.deflated_messages, 4, "each event once");
}

#[test]
fn long_answers_and_replays_are_compressed_and_short_ones_are_not() {
    let mut node = node_with(|config| config.compression.threshold_bytes = 600);
    let room = "project:1";
    (0..3).for_each(|number| node.publish(room, document(number)));
    node.publish(room, "1");
    let mut client = connect(&mut node, "/ws", "", OFFER);
    assert_eq!(client.extensions(), Some("permessage-deflate; server_no_context_takeover; client_no_context_takeover"));
    let id = client.send("subscribe", json!({"room": room, "since": {"last": 10}}));
    node.settle();
    client.poll();
    assert_eq!(client.answer(id).expect("an answer")["data"]["replayed"], 4);
    assert_eq!((client.seqs(room), client.deflated()), (vec![1, 2, 3, 4], 3));
    let id = client.send("history", json!({"room": room}));
    client.send("ping", json!({"padding": "x".repeat(900)}));
    client.send("ping", json!({}));
    node.settle();
    client.poll();
    assert_eq!(client.answer(id).expect("an answer")["data"]["events"].as_array().map(Vec::len), Some(4));
    assert_eq!(client.deflated(), 5, "the history and one of the pongs");
    let figures = node.figures();
    assert!(figures.inflated_messages >= 2 && figures.inflate_bytes_after > figures.inflate_bytes_before);
}

#[test]
fn what_a_turn_has_no_budget_for_is_sent_as_it_is() {
    let mut node = node_with(|config| config.compression.turn_bytes_max = 4000);
    let room = "project:1";
    let mut client = member(&mut node, OFFER, room);
    let before = node.figures();
    (0..10).for_each(|number| node.publish(room, document(number)));
    node.settle();
    client.poll();
    assert_eq!(events(&client, room).len(), 10);
    let figures = node.figures();
    let (compressed, skipped) =
        (figures.deflated_messages - before.deflated_messages, figures.deflate_skipped - before.deflate_skipped);
    assert_eq!((compressed + skipped, client.deflated() as u64), (10, compressed));
    assert!(compressed > 0 && skipped > 0, "{compressed} {skipped}");
    // The next turn has a budget of its own.
    node.publish(room, document(10));
    node.settle();
    assert_eq!(node.figures().deflated_messages, figures.deflated_messages + 1);
}

#[test]
fn compression_is_off_for_a_kind_for_a_client_that_says_so_and_for_all_unless_it_is_on() {
    let mut node = node_with(|config| {
        config.kinds.iter_mut().filter(|kind| kind.name == "quote").for_each(|kind| kind.compress = false);
    });
    let mut client = member(&mut node, OFFER, "quote:1");
    node.publish("quote:1", document(1));
    node.settle();
    client.poll();
    assert_eq!((events(&client, "quote:1").len(), client.deflated()), (1, 0));

    let client = connect(&mut node, "/ws", "compression=off", OFFER);
    assert_eq!(client.extensions(), None);
    let client = connect(&mut node, "/ws", "compression=on", OFFER);
    assert!(client.extensions().is_some());
    let eight = "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=8\r\n";
    assert_eq!(connect(&mut node, "/ws", "", eight).extensions(), None);

    let malformed = "Sec-WebSocket-Extensions: permessage-deflate; =\r\n";
    let mut client = Client::connect_with(&node, 0, "/ws", "", malformed);
    node.settle();
    client.poll();
    assert_eq!(client.status, Some(400));
    let mut node = Node::new(1, 1, Faults::none(), Config { compression: Config::default().compression, ..config() });
    for headers in [OFFER, malformed] {
        assert_eq!(connect(&mut node, "/ws", "", headers).extensions(), None, "by default");
    }
}

#[test]
fn what_must_not_come_closes_the_connection_with_the_code_that_says_why() {
    let mut node = node_with(|config| config.limits.message_bytes_max = 100_000);
    let bomb = deflated(&vec![b' '; 1 << 20]);
    let large = deflated(format!("{}{}", "[1,2,3,4,5,6,7,8,9]".repeat(4000), " ".repeat(60_000)).as_bytes());
    assert!(bomb.len() < 2000 && large.len() < 2000);
    let latin = deflated(&"\u{e9}".repeat(50).as_bytes()[1..]);
    for (headers, bytes, code) in [
        (OFFER, frame(RSV1 | 1, &bomb), 1009),
        (OFFER, frame(RSV1 | 2, &bomb), 1009),
        (OFFER, frame(RSV1 | 1, &large), 1009),
        (OFFER, frame(RSV1 | 1, &[0xff, 0xff]), 1007),
        (OFFER, frame(RSV1 | 1, &deflated(&[b' '; 99])[..3]), 1007),
        (OFFER, frame(RSV1 | 1, &latin), 1007),
        (OFFER, frame(RSV1 | 1, &vec![0; 100_001]), 1009),
        (OFFER, frame(RSV1 | 9, b"ping"), 1002),
        (OFFER, frame(0x20 | 1, b"{}"), 1002),
        (OFFER, frame(RSV1 | 2, &deflated(&[1; 50])), 1003),
        ("", frame(RSV1 | 1, &deflated(&[b' '; 99])), 1002),
    ] {
        let mut client = connect(&mut node, "/ws", "", headers);
        client.link.write(&bytes);
        node.settle();
        client.poll();
        let close = client.close.clone().unwrap_or_else(|| panic!("{code} is expected"));
        assert_eq!(close.0, code, "{close:?}");
        client.link.close();
    }
    assert_eq!(node.figures().inflate_refused, 6);
    node.assert_empty();
}

#[test]
fn a_ratio_closes_what_the_size_alone_would_let_pass() {
    let blanks = deflated(&vec![b' '; 2_000_000]);
    for (ratio_max, is_closed) in [(0, false), (50, true)] {
        let mut node = node_with(|config| {
            config.limits.message_bytes_max = 4 << 20;
            config.compression.ratio_max = ratio_max;
        });
        let mut client = connect(&mut node, "/ws", "", OFFER);
        client.link.write(&frame(RSV1 | 1, &blanks));
        node.settle();
        client.poll();
        assert_eq!(client.close.is_some_and(|(code, _)| code == 1009), is_closed, "{ratio_max}");
    }
}

#[test]
fn a_client_may_refer_to_its_messages_before_where_there_is_memory_for_that() {
    let mut node = node_with(|config| {
        config.endpoints.echo = true;
        config.compression.client_window_bits = 15;
        config.compression.client_windows_bytes_max = 40_000;
    });
    let mut first = connect(&mut node, "/echo", "", OFFER);
    let agreed = "permessage-deflate; server_no_context_takeover; client_max_window_bits=15";
    assert_eq!(first.extensions(), Some(agreed));
    // RFC 7692 §7.2.3.2: the second "Hello" is a reference to the first one.
    for payload in [&[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..], &[0xf2, 0x00, 0x11, 0x00, 0x00]] {
        first.link.write(&frame(RSV1 | 2, payload));
    }
    node.settle();
    first.poll();
    assert_eq!(first.frames, [(2, b"Hello".to_vec()), (2, b"Hello".to_vec())]);
    let mut second = connect(&mut node, "/echo", "", OFFER);
    assert!(second.extensions().is_some_and(|agreed| agreed.ends_with("client_no_context_takeover")));
    for payload in [&[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..], &[0xf2, 0x00, 0x11, 0x00, 0x00]] {
        second.link.write(&frame(RSV1 | 2, payload));
    }
    node.settle();
    second.poll();
    assert_eq!((second.frames.len(), second.close.map(|close| close.0)), (1, Some(1007)));
    assert_eq!(node.figures().window_bytes, 32_768);
    first.link.close();
    node.settle();
    assert_eq!(node.figures().window_bytes, 0);
    let third = connect(&mut node, "/echo", "", OFFER);
    assert_eq!(third.extensions(), Some(agreed), "the memory is there again");
    third.link.close();
    second.link.close();
    node.assert_empty();
}

#[test]
fn what_waits_for_a_client_of_socket_io_is_known_though_it_is_compressed() {
    let mut node = node_with(|_| {});
    // Which of them offers compression follows from what they ask for.
    let mut clients = ["", "&t=2"].map(|query| {
        let mut client = EngineClient::connect(&node, 0, query);
        client.settle(&mut node);
        client.let_in(&mut node, "/", &Value::Null);
        client.emit(&node, "/", Some(1), "subscribe", &json!({"room": "project:1"}));
        client.settle(&mut node);
        client
    });
    let before = node.figures().deflated_messages;
    node.publish("project:1", document(1));
    node.settle();
    let told = clients.each_mut().map(|client| {
        client.settle(&mut node);
        client.packets.last().expect("an event").object().clone()
    });
    assert_eq!(told[0], told[1]);
    assert_eq!(node.figures().deflated_messages - before, 1, "one of the two agreed to it");
}
