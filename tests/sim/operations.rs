//! What operators are told by shards: who came and went, and that everybody hears everybody.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringhub::control::store::{Closed, ClosedBy};
use ringhub::hub::canary::Signs;
use ringhub::ring::sim::Faults;
use ringhub::shard::request::Request;
use serde_json::json;

use crate::client::{Client, frame};
use crate::node::{Node, config};

/// The connections that were reported: each let in once, and gone at most once, in this order.
fn reported(node: &Node) -> HashMap<String, Option<Closed>> {
    let mut all = HashMap::new();
    let mut keys = HashMap::new();
    while let Some(report) = node.ledger.next_connection() {
        let key = (report.shard, report.conn, report.opened_ms);
        let name = report.client_id.to_string();
        match report.closed {
            None => {
                assert!(keys.insert(name.clone(), key).is_none(), "{name} was let in twice");
                all.insert(name, None);
            }
            Some(closed) => {
                assert_eq!(keys.get(&name), Some(&key), "{name} goes as the one it came as");
                let before = all.insert(name.clone(), Some(closed));
                assert!(matches!(before, Some(None)), "{name} went without having come, or twice");
            }
        }
    }
    all
}

#[test]
fn every_connection_is_reported_once_when_it_comes_and_once_when_it_goes() {
    for seed in 0..20 {
        let mut node = Node::new(seed, 3, Faults::rough(), config());
        let mut clients: Vec<Client> = (0..12)
            .map(|number| node.client(number % 3, &format!("client_id=c{number}&session_id=s{number}")))
            .collect();
        // Two that are never let in: an id that is taken, and an upgrade that is none.
        let taken = Client::connect(&node, 1, "/ws", "client_id=c0");
        let other = Client::connect(&node, 1, "/nowhere", "");
        node.settle();
        for client in &mut clients {
            client.send("ping", json!({}));
        }
        node.settle();
        clients[0].link.write(&frame(8, &[&3000u16.to_be_bytes()[..], b"bye"].concat()));
        clients[1].link.write(&frame(8, &[]));
        clients[2].link.write(&frame(2, b"binary"));
        node.settle();
        let taking_over = node.client(2, "client_id=c12&session_id=s3");
        node.settle();
        drop((taken, other));
        for client in clients.drain(4..) {
            client.link.close();
        }
        node.pass(Duration::from_secs(1));
        (0..3).for_each(|shard| node.request(shard, Request::Stop));
        // Whatever waits for a shard that has ended stays there, so that the node does not come to rest.
        for _ in 0..500 {
            node.world.advance(Duration::from_millis(10));
            node.turn();
        }
        drop((clients, taking_over));

        let reported = reported(&node);
        assert_eq!(reported.len(), 13, "seed {seed}: {:?}", reported.keys());
        let ending = |name: &str| {
            let closed = reported[name].clone().unwrap_or_else(|| panic!("seed {seed}: {name} has not gone"));
            assert!(closed.bytes_sent > 0 && closed.bytes_received > 0);
            (closed.by, closed.code, closed.reason.into_string(), closed.messages_received)
        };
        assert_eq!(ending("c0"), (ClosedBy::Client, Some(3000), "bye".to_owned(), 1));
        assert_eq!(ending("c1"), (ClosedBy::Client, None, String::new(), 1));
        let (by, code, _, messages) = ending("c2");
        assert_eq!((by, code, messages), (ClosedBy::Hub, Some(1003), 2));
        assert_eq!((ending("c3").0, ending("c3").1), (ClosedBy::Hub, Some(4409)));
        assert_eq!((ending("c4").0, ending("c4").1), (ClosedBy::Nobody, None));
        assert_eq!((ending("c12").0, ending("c12").1), (ClosedBy::Hub, Some(1001)));
    }
}

#[test]
fn a_report_tells_how_a_backend_ended_a_connection() {
    let mut node = Node::new(1, 2, Faults::none(), config());
    let client = node.client(0, "client_id=c1");
    let (responder, pending) = ringhub::hub::reply::pending();
    let home = (0..2).find(|shard| {
        let (responder, pending) = ringhub::hub::reply::pending();
        node.request(*shard, Request::HasClient { client_id: "c1".into(), responder });
        node.settle();
        pending.wait() == Ok(true)
    });
    let request = ringhub::hub::message::ClientRequest::Disconnect { code: 4000, reason: "enough".into(), responder };
    node.request(home.expect("a home"), Request::Client { client_id: "c1".into(), request });
    node.settle();
    assert_eq!(pending.wait(), Ok(1));
    drop(client);
    let closed = reported(&node).remove("c1").flatten().expect("has gone");
    assert_eq!((closed.code, &*closed.reason, closed.by), (Some(4000), "enough", ClosedBy::Hub));
}

/// Asks every shard for a sign of life with canaries.
fn ask(node: &Node, number: u64, signs: &[Arc<Signs>]) {
    for (shard, signs) in signs.iter().enumerate() {
        let request = Request::Ping { number, asked: Instant::now(), canaries: true, signs: signs.clone() };
        node.request(shard, request);
    }
}

#[test]
fn canaries_go_from_every_shard_to_every_shard_and_back() {
    for shards in [1u16, 2, 5] {
        let mut node = Node::new(u64::from(shards), shards, Faults::rough(), config());
        let signs: Vec<_> = (0..shards).map(|_| Arc::new(Signs::new(shards))).collect();
        for number in 1..=3 {
            ask(&node, number, &signs);
            node.settle();
            for one in &signs {
                assert_eq!(one.answered(), number);
                assert!((0..usize::from(shards)).all(|from| one.returned(from) == number));
            }
        }
    }
}

#[test]
fn a_shard_that_does_not_turn_is_the_one_whose_canaries_are_missed() {
    let mut node = Node::new(7, 3, Faults::none(), config());
    let signs: Vec<_> = (0..3).map(|_| Arc::new(Signs::new(3))).collect();
    ask(&node, 1, &signs);
    for _ in 0..50 {
        node.turn_of(0);
        node.turn_of(2);
    }
    assert_eq!([0, 1, 2].map(|shard| signs[shard].answered()), [1, 0, 1]);
    assert_eq!([0, 1, 2].map(|from| signs[0].returned(from)), [1, 0, 1]);
    // It goes on: what was on its way comes back.
    node.world.advance(Duration::from_secs(2));
    node.settle();
    assert_eq!([0, 1, 2].map(|from| signs[0].returned(from)), [1, 1, 1]);
    assert!(signs[0].round_trip_us() >= 2_000_000, "{}", signs[0].round_trip_us());
}
