//! What a backend is told and asked by shards: rooms that are occupied and vacated, who came and went, and whether a client
//! may connect.

use std::collections::HashMap;
use std::time::Duration;

use ringhub::auth::Added;
use ringhub::config::{Config, HookKind};
use ringhub::control::hooks::{Grant, Question, Report, Verdict};
use ringhub::ring::sim::Faults;
use ringhub::shard::request::Request;
use ringhub::wire::refusal::Refusal;
use serde_json::json;

use crate::client::{Client, upgrade};
use crate::node::{Node, config};

fn telling() -> Config {
    let mut config = config();
    config.hooks.url = Some("http://backend/".parse().expect("a URL"));
    config.hooks.events.push(HookKind::Message);
    config
}

fn asking() -> Config {
    let mut config = config();
    config.hooks.connect_url = Some("http://backend/".parse().expect("a URL"));
    config.hooks.connect_headers = vec!["X-Tenant".to_owned()];
    config
}

fn reports(node: &Node) -> Vec<Report> {
    let feed = node.hooks.feed.as_ref().expect("a feed");
    std::iter::from_fn(|| feed.pop()).collect()
}

/// The questions that clients wait for, answered.
fn answer(node: &mut Node, verdict: impl Fn(&Question) -> Verdict) -> usize {
    let desk = node.hooks.desk.clone().expect("a desk");
    let mut answered = 0;
    while let Some((question, _ticket)) = desk.next() {
        let request = Request::Verdict { conn: question.conn, verdict: verdict(&question) };
        node.request(usize::from(question.shard.0), request);
        answered += 1;
    }
    node.settle();
    answered
}

fn allow() -> Verdict {
    Verdict::Allow(Box::default())
}

#[test]
fn a_room_is_told_with_its_first_member_and_after_its_last_wherever_they_are() {
    for seed in 0..20 {
        let mut node = Node::new(seed, 3, Faults::rough(), telling());
        let mut clients: Vec<Client> = (0..9).map(|number| node.client(number % 3, "")).collect();
        let rooms: Vec<String> = (0..3).map(|home| node.room_at("project:", home)).collect();
        for _ in 0..2 {
            for client in &mut clients {
                rooms.iter().map(|room| client.send("subscribe", json!({"room": room}))).for_each(|id| assert!(id > 0));
            }
            node.settle();
            for client in &mut clients {
                rooms
                    .iter()
                    .map(|room| client.send("unsubscribe", json!({"room": room})))
                    .for_each(|id| assert!(id > 0));
            }
            node.settle();
        }
        for client in &mut clients {
            client.send("subscribe", json!({"room": rooms[0]}));
        }
        node.settle();
        clients.iter().for_each(|client| client.link.close());
        node.pass(Duration::from_secs(1));

        let mut states: HashMap<String, Vec<bool>> = HashMap::new();
        let (mut came, mut gone) = (0, 0);
        for report in reports(&node) {
            match report {
                Report::Room { room, is_occupied, .. } => {
                    assert!(room.as_str().starts_with("project:"), "seed {seed}: {room:?} is everybody's own");
                    let changes = states.entry(room.as_str().to_owned()).or_default();
                    assert_ne!(changes.last(), Some(&is_occupied), "seed {seed}: {room:?} twice the same");
                    changes.push(is_occupied);
                }
                Report::Connection(report) if report.closed.is_some() => gone += 1,
                Report::Connection(_) => came += 1,
                Report::Message(_) => panic!("nobody sent any"),
            }
        }
        assert_eq!((came, gone), (9, 9), "seed {seed}");
        for (place, room) in rooms.iter().enumerate() {
            let changes = &states[room];
            assert_eq!((changes.first(), changes.last()), (Some(&true), Some(&false)), "seed {seed}: {room}");
            assert!(changes.len() >= if place == 0 { 4 } else { 2 });
        }
        drop(clients);
        node.assert_empty();
    }
}

#[test]
fn a_message_that_the_hook_tells_is_accepted_beyond_a_full_inbox() {
    let mut config = telling();
    config.session.queue_max = 2;
    let mut node = Node::new(1, 2, Faults::none(), config);
    let mut client = node.client(0, "client_id=c1&session_id=s1");
    for number in 0..5 {
        client.send("message", json!({"n": number}));
    }
    node.settle();
    client.poll();
    let accepted = client.messages.iter().filter(|message| message["type"] == "accepted").count();
    assert_eq!(accepted, 5);
    let told: Vec<_> = reports(&node)
        .into_iter()
        .filter_map(|report| match report {
            Report::Message(message) => Some((message.client_id, message.session_id, message.data)),
            _ => None,
        })
        .collect();
    assert_eq!(told.len(), 5);
    assert_eq!((&*told[4].0, &*told[4].1, &told[4].2[..]), ("c1", "s1", &br#"{"n":4}"#[..]));
}

#[test]
fn without_hooks_nothing_is_kept_for_them() {
    let mut node = Node::new(1, 2, Faults::none(), config());
    let mut client = node.client(0, "");
    client.send("subscribe", json!({"room": "project:1"}));
    node.settle();
    assert!(node.hooks.feed.is_none() && node.hooks.desk.is_none());
}

#[test]
fn a_client_waits_for_the_backend_and_is_let_in_with_what_it_grants() {
    for seed in 0..20 {
        let mut config = asking();
        config.limits.connections_per_address_max = 10;
        let mut node = Node::new(seed, 3, Faults::rough(), config);
        let mut client = Client::raw(node.world.connect(1));
        client.link.write(
            upgrade("/ws", "client_id=c1&session_id=s1&token=secret", "X-Tenant: blue\r\nX-Other: no\r\n").as_bytes(),
        );
        node.pass(Duration::from_secs(3));
        client.poll();
        assert_eq!((client.status, node.figures().connections), (None, 0), "seed {seed}: it waits");
        // Ahead of the answer, as clients may.
        let early = client.command("ping", json!({})).1;
        client.link.write(&early);
        node.settle();
        let answered = answer(&mut node, |question| {
            assert_eq!((&*question.client_id, &*question.session_id), ("c1", "s1"));
            assert_eq!(&*question.request.path, "/ws");
            assert_eq!(question.request.headers, [("x-tenant".into(), "blue".into())]);
            let rooms = vec!["project:7".into(), "user:anonymous".into()];
            let metadata = [("plan".to_owned(), json!("gold"))].into_iter().collect();
            Verdict::Allow(Box::new(Grant { added: Added { permissions: vec!["a:b".into()], rooms }, metadata }))
        });
        assert_eq!(answered, 1);
        client.poll();
        assert_eq!(client.status, Some(101), "seed {seed}");
        let greeting = &client.messages[0];
        assert_eq!(greeting["data"]["rooms"], json!(["user:anonymous", "session:s1", "global", "project:7"]));
        assert_eq!(client.messages[1]["type"], "pong", "seed {seed}: what came early is done");
        let mut other = Client::connect(&node, 2, "/ws", "client_id=c2");
        node.settle();
        answer(&mut node, |_| allow());
        other.send("publish", json!({"room": "project:7", "type": "n", "data": 1}));
        node.settle();
        client.send("metadata", json!({}));
        node.settle();
        client.poll();
        assert!(client.messages.iter().any(|message| message["type"] == "n"), "seed {seed}: it is in the room");
        let metadata = client.messages.iter().find(|message| message["type"] == "metadata").expect("answered");
        assert_eq!(metadata["data"]["plan"], "gold");
        client.link.close();
        other.link.close();
        node.settle();
        drop((client, other));
        node.assert_empty();
    }
}

#[test]
fn who_is_denied_or_not_answered_for_leaves_nothing_behind() {
    for seed in 0..20 {
        let mut config = asking();
        config.limits.connections_per_address_max = 10;
        config.hooks.connect_pending_max = 4;
        let mut node = Node::new(seed, 3, Faults::rough(), config);
        let mut clients: Vec<Client> =
            (0..6).map(|number| Client::connect(&node, number % 3, "/ws", &format!("client_id=c{number}"))).collect();
        node.settle();
        // Two beyond the bound are refused at once.
        clients.iter_mut().for_each(Client::poll);
        let busy = clients.iter().filter(|client| client.status == Some(503)).count();
        assert_eq!((busy, node.figures().refused["hook_busy"]), (2, 2), "seed {seed}");
        let answered = answer(&mut node, |question| match question.client_id.as_bytes().last() {
            Some(b'0' | b'1' | b'2') => Verdict::Deny(Refusal::forbidden("not today")),
            _ => Verdict::Failed,
        });
        assert_eq!(answered, 4, "seed {seed}");
        clients.iter_mut().for_each(Client::poll);
        let denied = node.figures().refused["hook_denied"];
        assert_eq!(denied + node.figures().refused["hook_failed"], 4, "seed {seed}");
        assert_eq!(clients.iter().filter(|client| client.status == Some(403)).count() as u64, denied);
        assert_eq!(clients.iter().filter(|client| client.status == Some(503)).count() as u64, 6 - denied);
        drop(clients);
        node.pass(Duration::from_secs(3));
        // The ids and places are free again.
        let mut again = Client::connect(&node, 0, "/ws", "client_id=c0");
        node.settle();
        answer(&mut node, |_| allow());
        again.poll();
        assert_eq!(again.status, Some(101), "seed {seed}");
        again.link.close();
        node.settle();
        drop(again);
        node.assert_empty();
    }
}

#[test]
fn a_client_that_goes_away_takes_its_question_with_it_and_a_late_answer_meets_nobody() {
    for seed in 0..20 {
        let mut node = Node::new(seed, 2, Faults::rough(), asking());
        let first = Client::connect(&node, 0, "/ws", "client_id=c1");
        let second = Client::connect(&node, 1, "/ws", "client_id=c2");
        node.settle();
        let desk = node.hooks.desk.clone().expect("a desk");
        let (question, ticket) = desk.next().expect("one of them");
        first.link.close();
        second.link.close();
        drop((first, second));
        node.pass(Duration::from_secs(1));
        assert!(desk.next().is_none(), "seed {seed}: nobody waits for the other");
        // Meanwhile its place is another's.
        let mut successor = Client::connect(&node, usize::from(question.shard.0), "/ws", "client_id=c3");
        node.settle();
        node.request(usize::from(question.shard.0), Request::Verdict { conn: question.conn, verdict: allow() });
        drop(ticket);
        node.settle();
        successor.poll();
        assert_eq!(successor.status, None, "seed {seed}: the answer was not for it");
        answer(&mut node, |_| allow());
        successor.poll();
        assert_eq!(successor.status, Some(101), "seed {seed}");
        assert_eq!(desk.pending(), 0);
        successor.link.close();
        node.settle();
        drop(successor);
        node.assert_empty();
    }
}

#[test]
fn nobody_waits_for_ever_where_the_threads_that_ask_are_gone() {
    let mut config = asking();
    config.hooks.connect_timeout_ms = 1000;
    let mut node = Node::new(1, 2, Faults::none(), config);
    let mut client = Client::connect(&node, 0, "/ws", "");
    node.pass(Duration::from_secs(5));
    client.poll();
    assert_eq!(client.status, None);
    node.pass(Duration::from_secs(3));
    client.poll();
    assert_eq!(client.status, Some(503));
    drop(client);
    node.pass(Duration::from_secs(3));
    assert_eq!(node.figures().handshakes, 0);
}

#[test]
fn a_drain_ends_those_who_wait() {
    let mut node = Node::new(1, 2, Faults::none(), asking());
    let mut client = Client::connect(&node, 0, "/ws", "");
    node.settle();
    (0..2).for_each(|shard| node.request(shard, Request::Drain { over_ms: 1000, spread_ms: 100 }));
    for _ in 0..300 {
        node.world.advance(Duration::from_millis(10));
        node.turn();
    }
    client.poll();
    assert_eq!(client.status, Some(503));
    for _ in 0..300 {
        node.world.advance(Duration::from_millis(10));
        node.turn();
    }
    assert!(!node.is_running(0) && !node.is_running(1));
}
