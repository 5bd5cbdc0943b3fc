//! Sessions of Engine.IO that are polled, and those that go over to a WebSocket: one thing at a time.

use std::time::Duration;

use ringhub::config::Config;
use ringhub::ring::sim::Faults;
use ringhub::shard::request::Request;
use serde_json::{Value, json};

use crate::client::frame;
use crate::engine::EngineClient;
use crate::node::{Node, config};

const NONE: &Value = &Value::Null;

fn node(shards: u16, config: Config) -> Node {
    Node::new(1, shards, Faults::none(), config)
}

/// A client that polls, is in the main namespace, and has tried a WebSocket on that shard.
fn probing(node: &mut Node, shard: usize) -> EngineClient {
    let mut client = EngineClient::poll_at(node, 0, "");
    client.upgrades = false;
    client.let_in(node, "/", NONE);
    client.probe(node, shard);
    client.settle(node);
    client.settle(node);
    assert!(client.may_upgrade());
    client
}

#[test]
fn a_session_goes_over_to_a_websocket_of_any_shard_with_all_that_waits_for_it() {
    for shard in 0..3 {
        let mut node = node(3, config());
        let mut client = probing(&mut node, shard);
        client.reads = false;
        for _ in 0..3 {
            node.publish("global", "1");
            node.settle();
        }
        client.upgrades = true;
        client.settle(&mut node);
        assert!(!client.is_polling());
        node.publish("global", "2");
        client.settle(&mut node);
        assert_eq!(client.seqs("/", "global"), [1, 2, 3, 4]);
        assert_eq!(client.ask(&mut node, "/", "ping", &json!(7))["data"], 7);
        client.link().expect("a WebSocket").close();
        node.assert_no_sessions();
        node.assert_empty();
    }
}

#[test]
fn a_session_ends_with_the_websocket_that_its_client_has_just_gone_over_to() {
    let upgrade = || frame(1, b"5");
    let unmasked = b"\x81\x00".to_vec();
    for (what, bytes) in [
        ("a frame that is none", [upgrade(), unmasked].concat()),
        ("a close", [upgrade(), frame(8, &1000u16.to_be_bytes())].concat()),
        ("an upgrade", upgrade()),
    ] {
        let mut node = node(2, config());
        let client = probing(&mut node, 1);
        let link = client.probe_link().expect("a link");
        link.write(&bytes);
        node.turn_of(0);
        if what == "an upgrade" {
            link.reset();
        }
        node.settle();
        let figures = node.figures();
        assert_eq!((figures.connections, figures.polled), (0, 0), "after {what}");
        client.probe_link().expect("a link").close();
        node.assert_no_sessions();
        node.assert_empty();
    }
}

#[test]
fn a_session_ends_with_a_websocket_that_never_takes_what_is_under_way_on_it() {
    let mut node = node(1, config());
    let mut client = EngineClient::poll_at(&node, 0, "");
    client.let_in(&mut node, "/", NONE);
    client.upgrades = false;
    client.probe(&node, 0);
    let link = client.probe_link().expect("a link").clone();
    link.set_read_budget(1000);
    node.settle();
    link.set_read_budget(0);
    link.write(&[frame(1, b"2probe"), frame(1, b"5")].concat());
    node.settle();
    assert_eq!(node.figures().connections, 1);
    node.pass(Duration::from_secs(11));
    assert_eq!(node.figures().connections, 0, "long before its heartbeat");
    link.close();
    node.assert_no_sessions();
    node.assert_empty();
}

#[test]
fn a_websocket_that_is_given_up_leaves_the_session_to_its_polls() {
    for way in 0..4 {
        let mut node = node(2, config());
        let mut client = probing(&mut node, 1);
        let link = client.probe_link().expect("a link").clone();
        match way {
            0 => link.reset(),
            1 => link.close(),
            2 => link.write(&frame(1, b"1")),
            _ => node.pass(Duration::from_secs(11)),
        }
        node.settle();
        client.give_up_probe(&node);
        node.publish("global", "1");
        client.settle(&mut node);
        assert_eq!((client.is_polling(), client.seqs("/", "global")), (true, vec![1]));
        client.upgrades = true;
        client.probe(&node, 0);
        client.settle(&mut node);
        client.settle(&mut node);
        assert!(!client.is_polling(), "it may try another one");
        link.close();
        client.link().expect("a WebSocket").close();
        node.assert_no_sessions();
        node.assert_empty();
    }
}

#[test]
fn a_poll_that_nobody_waits_for_any_more_takes_nothing_with_it() {
    let mut node = node(1, config());
    let mut client = EngineClient::poll_at(&node, 0, "");
    client.let_in(&mut node, "/", NONE);
    for _ in 0..3 {
        client.abandon_poll(&node);
        client.reads = false;
        node.publish("global", "1");
        client.settle(&mut node);
    }
    client.reads = true;
    client.settle(&mut node);
    assert_eq!(client.seqs("/", "global"), [1, 2, 3]);
    client.send(&node, "1");
    node.assert_no_sessions();
    node.assert_empty();
}

#[test]
fn what_is_too_much_for_one_poll_comes_with_the_next_ones_to_the_last_word() {
    let mut node = node(1, config());
    let mut client = EngineClient::poll_at(&node, 0, "");
    client.let_in(&mut node, "/", &json!({"session_id": "shared"}));
    client.abandon_poll(&node);
    client.reads = false;
    client.settle(&mut node);
    let (sent_before, read_before) = (node.figures().bytes_sent, client.polled_bytes);
    for id in 0..40 {
        client.emit(&node, "/", Some(id), "ping", NONE);
    }
    node.settle();
    let mut other = EngineClient::connect(&node, 0, "");
    let link = other.link().expect("a WebSocket").clone();
    link.set_read_budget(0);
    other.enter(&node, "/", &json!({"session_id": "shared"}));
    node.settle();
    let sent = node.figures().bytes_sent - sent_before;
    client.reads = true;
    client.settle(&mut node);
    let acknowledged: Vec<u64> = client.packets.iter().filter_map(|packet| packet.id).collect();
    assert_eq!(acknowledged, (0..40).collect::<Vec<_>>());
    assert_eq!(client.packets.last().map(|packet| packet.kind), Some('1'), "it was taken over");
    // Each answer counts for what it is, with the separator before it.
    let (answers, read) = (3, client.polled_bytes - read_before);
    assert_eq!(node.figures().bytes_sent - sent_before - sent, (read + answers) as u64);
    link.close();
    node.assert_no_sessions();
    node.assert_empty();
}

#[test]
fn a_session_that_is_polled_twice_at_once_ends() {
    let mut node = node(1, config());
    let mut client = EngineClient::poll_at(&node, 0, "");
    client.let_in(&mut node, "/", NONE);
    client.poll_twice(&node);
    client.settle(&mut node);
    assert_eq!(client.closed.as_deref(), Some("closed"));
    node.assert_no_sessions();
    node.assert_empty();
}

#[test]
fn a_drain_and_a_stop_end_sessions_at_every_moment() {
    for moment in 0..5 {
        for stops in [true, false] {
            let mut node = node(2, config());
            let mut client = match moment {
                0 => EngineClient::poll_at(&node, 0, ""),
                _ => probing(&mut node, 1),
            };
            match moment {
                2 => client.probe_link().expect("a link").write(&frame(1, b"5")),
                3 => client.reads = false,
                4 => {
                    client.upgrades = true;
                    client.settle(&mut node);
                }
                _ => {}
            }
            for shard in 0..2 {
                let drain = Request::Drain { over_ms: 1000, spread_ms: 1000 };
                node.request(shard, if stops { Request::Stop } else { drain });
            }
            node.pass(Duration::from_secs(4));
            let links = client.link().into_iter().chain(client.probe_link());
            links.for_each(|link| link.close());
            node.pass(Duration::from_secs(2));
            assert!(!node.is_running(0) && !node.is_running(1), "moment {moment}, stops: {stops}");
        }
    }
}

#[test]
fn a_close_is_answered_though_its_client_is_still_being_let_in() {
    let mut config = config();
    config.hooks.connect_url = Some("http://backend/".parse().expect("a URL"));
    let mut node = node(1, config);
    let mut client = EngineClient::connect(&node, 0, "");
    client.settle(&mut node);
    client.enter(&node, "/", NONE);
    client.link().expect("a WebSocket").write(&frame(8, &1000u16.to_be_bytes()));
    client.settle(&mut node);
    assert_eq!(client.closed.as_deref(), Some("1000 "));
    client.link().expect("a WebSocket").close();
    drop(node.hooks.desk.as_ref().expect("a desk").next());
    node.assert_no_sessions();
    node.assert_empty();
}
