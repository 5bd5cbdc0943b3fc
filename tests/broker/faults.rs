//! Servers that go, come back, freeze, forget, fail over; links that break at any byte; shards that don't take.

use std::time::{Duration, Instant};

use ringhub::broker::StartError;
use ringhub::config::Config;
use ringhub::hub::brokered::{IN_DOUBT, Place};

use super::support::{Node, Proxy, Redis, config, eventually, program};

const DURABLE: &[&str] = &["--appendonly", "yes", "--appendfsync", "always"];

fn start(url: &str, more: &str) -> Node {
    Node::with(&config(url, more)).unwrap_or_else(|error| panic!("{error}"))
}

/// Whether the broker is up.
fn is_up(node: &Node) -> bool {
    node.figures.servers_up.value() == 1
}

#[test]
fn a_broker_that_is_away_does_not_keep_a_hub_from_starting_and_is_used_when_it_is_there() {
    let Some(program) = program() else { return };
    let mut redis = Redis::start(&program, &[]);
    redis.kill();
    let mut node = Node::start(&redis.url());
    let refused = node.publish("doc:1", [1]).expect_err("nobody takes it");
    assert_eq!(refused.code.as_str(), "unavailable");
    assert_ne!(refused.message, IN_DOUBT, "it is certain that it was not taken");
    node.ask("doc:1");
    node.until("it is told that it can't be followed", |node| node.room("doc:1").refused == 1);
    redis.run();
    node.until("it is followed all the same", |node| node.room("doc:1").followed == 1);
    node.publish("doc:1", [2]).expect("published");
    node.until_seq("doc:1", 1);
}

#[test]
fn what_a_person_has_to_put_right_is_told_at_start() {
    let Some(program) = program() else { return };
    let redis = Redis::start(&program, &["--requirepass", "open sesame"]);
    for more in ["", "password = \"hunter2\"", "username = \"ali\"\npassword = \"open sesame\""] {
        let error = Node::with(&config(&redis.url(), more)).err().expect("it is not let in");
        assert!(matches!(error, StartError::Refused { .. }), "{more}: {error:?}");
        let text = error.to_string();
        assert!(text.contains(&redis.url()) && text.contains("broker.redis.password"), "{text}");
        assert!(!text.contains("hunter2") && !text.contains("sesame"), "{text}");
    }
    start(&redis.url(), "password = \"open sesame\"").publish("doc:1", [1]).expect("published");
    let error = Node::with(&Config::default()).err().expect("there is no broker");
    assert!(matches!(error, StartError::NoBroker));
    let missing = "ca_file = \"/no/such/file.pem\"";
    let error = Node::with(&config(&redis.url().replace("redis:", "rediss:"), missing)).err().expect("no certificates");
    assert!(error.to_string().contains("/no/such/file.pem"), "{error}");
}

#[test]
fn a_connection_cut_at_any_byte_loses_nothing_and_publishes_nothing_twice() {
    let Some(program) = program() else { return };
    let redis = Redis::start(&program, &[]);
    let proxy = Proxy::start(redis.address());
    let (mut node, mut witness) = (start(&proxy.url(), "timeout_ms = 10000"), Node::start(&redis.url()));
    node.follow("doc:1");
    witness.follow("doc:1");
    let mut tags = Vec::new();
    let mut resent = 0;
    for round in 0..90 {
        node.until("there is a link", is_up);
        let before = proxy.cuts();
        proxy.cut_after(round * 5);
        let tag = round as u64;
        // Before the link is known to be broken nothing is refused; after it, all is.
        match node.publish("doc:1", [tag]) {
            Ok(_) => tags.push(tag),
            Err(refused) => assert_ne!(refused.message, IN_DOUBT, "{round}: the link is made again in time"),
        }
        if proxy.cuts() == before {
            proxy.cut();
        }
        resent = node.figures.resent.value();
    }
    let last = tags.len() as u64;
    for node in [&mut node, &mut witness] {
        node.until_seq("doc:1", last);
        assert_eq!(node.room("doc:1").tags(), tags);
        assert_eq!(node.room("doc:1").gaps, 1);
    }
    assert!(resent > 3, "answers were lost: {resent}");
    assert!(tags.len() > 60, "most go through: {}", tags.len());
}

#[test]
fn a_server_that_keeps_its_data_goes_on_after_a_restart() {
    let Some(program) = program() else { return };
    let mut redis = Redis::start(&program, DURABLE);
    let mut node = Node::start(&redis.url());
    node.follow("doc:1");
    node.publish("doc:1", 0..5).expect("published");
    node.until_seq("doc:1", 5);
    let before = node.room("doc:1");
    redis.kill();
    node.until("it is noticed", |node| !is_up(node));
    let refused = node.publish("doc:1", [100]).expect_err("nobody takes it");
    assert_eq!(refused.code.as_str(), "unavailable");
    redis.run();
    node.until("it is told where it is", |node| node.room("doc:1").followed == before.followed + 1);
    node.publish("doc:1", [5]).expect("published");
    node.until_seq("doc:1", 6);
    let after = node.room("doc:1");
    assert_eq!((after.epoch(), after.gaps, after.tags()), (before.epoch(), before.gaps, (0..6).collect()));
    assert_eq!(node.figures.reconnects.value(), 1);
}

#[test]
fn a_server_that_lost_its_data_begins_another_epoch() {
    let Some(program) = program() else { return };
    let mut redis = Redis::start(&program, &[]);
    let (mut one, mut two) = (Node::start(&redis.url()), Node::start(&redis.url()));
    for node in [&mut one, &mut two] {
        node.follow("doc:1");
    }
    one.publish("doc:1", 0..5).expect("published");
    for node in [&mut one, &mut two] {
        node.until_seq("doc:1", 5);
    }
    let before = one.room("doc:1");
    redis.kill();
    redis.run();
    for node in [&mut one, &mut two] {
        node.until("it is told", |node| node.room("doc:1").gaps == before.gaps + 1);
    }
    assert_ne!(one.room("doc:1").epoch(), before.epoch());
    assert_eq!(one.room("doc:1").epoch(), two.room("doc:1").epoch());
    one.publish("doc:1", [9]).expect("published");
    for node in [&mut one, &mut two] {
        node.until_seq("doc:1", 1);
        assert_eq!(node.room("doc:1").tags(), [9]);
    }

    // The same while nobody's link breaks.
    redis.command::<String>(&["FLUSHALL"]);
    two.publish("doc:1", [10, 11]).expect("published");
    for node in [&mut one, &mut two] {
        node.until("it is told", |node| node.room("doc:1").tags() == [10, 11]);
    }
    assert_eq!(one.room("doc:1").epoch(), two.room("doc:1").epoch());
}

#[test]
fn a_frozen_server_leaves_a_doubt_once_and_refuses_afterwards() {
    let Some(program) = program() else { return };
    let redis = Redis::start(&program, &[]);
    let mut node = Node::start(&redis.url());
    node.follow("doc:1");
    node.publish("doc:1", [1]).expect("published");
    node.until_seq("doc:1", 1);
    redis.freeze();
    let started = Instant::now();
    let number = node.submit("doc:1", [2]);
    let refused = node.answer(number).expect_err("nobody answers");
    assert_eq!((refused.code.as_str(), &*refused.message), ("unavailable", IN_DOUBT));
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    node.until("the link is given up", |node| !is_up(node));
    let refused = node.publish("doc:1", [3]).expect_err("refused at once");
    assert_ne!(refused.message, IN_DOUBT);
    node.ask("doc:2");
    node.until("it is told", |node| node.room("doc:2").refused == 1);
    redis.thaw();
    node.until("there is a link", is_up);
    node.publish("doc:1", [4]).expect("published");
    node.until("it comes", |node| node.room("doc:1").tags().last() == Some(&4));
    let tags = node.room("doc:1").tags();
    assert!(tags == [1, 2, 4] || tags == [1, 4], "what was in doubt came once or not at all: {tags:?}");
    assert_eq!(node.room("doc:1").gaps, 1);
}

#[test]
fn publishes_are_held_for_a_broker_that_comes_back_in_time() {
    let Some(program) = program() else { return };
    let redis = Redis::start(&program, &[]);
    let proxy = Proxy::start(redis.address());
    let text = format!(
        "[broker]\nkind = \"redis\"\nbuffer_ms = 10000\n[broker.redis]\nurl = \"{}\"\ntimeout_ms = 500\n",
        proxy.url()
    );
    let mut node = Node::with(&Config::from_toml(&text).expect("valid")).expect("it starts");
    node.follow("doc:1");
    proxy.turn_to(([127, 0, 0, 1], 1).into());
    node.until("it is noticed", |node| !is_up(node));
    let numbers: Vec<u64> = (0..20).map(|tag| node.submit("doc:1", [tag])).collect();
    proxy.turn_to(redis.address());
    for number in numbers {
        node.answer(number).expect("it is published");
    }
    node.until_seq("doc:1", 20);
    assert_eq!(node.room("doc:1").tags(), (0..20).collect::<Vec<_>>());
}

/// A primary, and a replica that has all of it.
fn pair(program: &std::path::Path) -> (Redis, Redis) {
    let primary = Redis::start(program, &["--repl-diskless-sync-delay", "0"]);
    let replica = Redis::start(program, &["--repl-diskless-sync-delay", "0"]);
    replica.command::<String>(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()]);
    eventually("the replica has all", || {
        let is_up = replica.command::<String>(&["INFO", "replication"]).contains("master_link_status:up");
        is_up && primary.command::<String>(&["INFO", "replication"]).contains("state=online")
    });
    (primary, replica)
}

#[test]
fn after_a_failover_what_was_acknowledged_by_a_replica_is_there_and_goes_on() {
    let Some(program) = program() else { return };
    let (mut primary, replica) = pair(&program);
    let proxy = Proxy::start(primary.address());
    let mut node = start(&proxy.url(), "replicas_min = 1\ntimeout_ms = 3000");
    node.follow("doc:1");
    for tag in 0..20 {
        node.publish("doc:1", [tag]).expect("published");
    }
    node.until_seq("doc:1", 20);
    let before = node.room("doc:1");
    primary.kill();
    // The replica takes nothing yet: whoever connects is told to wait.
    proxy.turn_to(replica.address());
    std::thread::sleep(Duration::from_millis(300));
    assert!(!is_up(&node));
    replica.command::<String>(&["REPLICAOF", "NO", "ONE"]);
    node.until("it is told where it is", |node| node.room("doc:1").followed > before.followed);
    let after = node.room("doc:1");
    assert_eq!((after.epoch(), after.gaps, after.tags()), (before.epoch(), before.gaps, before.tags()));

    // Now there is no replica that could have it.
    let refused = node.publish("doc:1", [20]).expect_err("it is not safe");
    assert_eq!(&*refused.message, IN_DOUBT);
}

#[test]
fn after_a_failover_that_lost_the_end_of_a_log_nobody_takes_new_events_for_old_ones() {
    let Some(program) = program() else { return };
    let (primary, replica) = pair(&program);
    let proxy = Proxy::start(primary.address());
    let (mut one, mut two) = (start(&proxy.url(), ""), start(&proxy.url(), ""));
    for node in [&mut one, &mut two] {
        node.follow("doc:1");
        node.follow("doc:2");
    }
    one.publish("doc:1", 0..5).expect("published");
    one.publish("doc:2", 0..5).expect("published");
    eventually("the replica has it", || replica.command::<u64>(&["XLEN", "ringhub:{doc:2}:log"]) == 1);
    // From here on the replica gets nothing.
    replica.command::<String>(&["REPLICAOF", "NO", "ONE"]);
    one.publish("doc:1", 5..8).expect("published");
    for node in [&mut one, &mut two] {
        node.until_seq("doc:1", 8);
        node.until_seq("doc:2", 5);
    }
    let (before, other) = (one.room("doc:1"), one.room("doc:2"));
    proxy.turn_to(replica.address());
    // Others may have published there before anybody noticed.
    let mut third = Node::start(&replica.url());
    third.publish("doc:1", 100..110).expect("published");
    for node in [&mut one, &mut two] {
        node.until("it is told", |node| node.room("doc:1").gaps > before.gaps);
        node.until("it has all", |node| node.room("doc:1").tags() == (0..5).chain(100..110).collect::<Vec<_>>());
        assert_ne!(node.room("doc:1").epoch(), before.epoch());
        node.until("it is told", |node| node.room("doc:2").followed > other.followed);
        assert_eq!((node.room("doc:2").epoch(), node.room("doc:2").gaps), (other.epoch(), other.gaps));
    }
    assert_eq!(one.room("doc:1").epoch(), two.room("doc:1").epoch());
    two.publish("doc:1", [200]).expect("published");
    for node in [&mut one, &mut two] {
        node.until("it comes", |node| node.room("doc:1").tags().last() == Some(&200));
        assert_eq!(node.room("doc:1").seq(), 16);
    }
}

#[test]
fn a_server_that_becomes_a_replica_is_left_and_used_when_it_is_none() {
    let Some(program) = program() else { return };
    let redis = Redis::start(&program, &[]);
    let other = Redis::start(&program, &[]);
    let mut node = Node::start(&redis.url());
    node.follow("doc:1");
    redis.command::<String>(&["REPLICAOF", "127.0.0.1", &other.port.to_string()]);
    let refused = node.publish("doc:1", [1]).expect_err("it takes nothing");
    assert_eq!(refused.code.as_str(), "unavailable");
    assert_ne!(refused.message, IN_DOUBT, "a read-only server did nothing");
    node.until("it is left", |node| !is_up(node));
    redis.command::<String>(&["REPLICAOF", "NO", "ONE"]);
    node.until("there is a link", is_up);
    node.publish("doc:1", [2]).expect("published");
    node.until("it comes", |node| node.room("doc:1").tags() == [2]);
}

#[test]
fn a_server_without_memory_refuses_and_does_nothing_by_halves() {
    let Some(program) = program() else { return };
    let redis = Redis::start(&program, &[]);
    let mut node = Node::start(&redis.url());
    node.follow("doc:1");
    node.publish("doc:1", [1]).expect("published");
    redis.command::<String>(&["CONFIG", "SET", "maxmemory", "1"]);
    for room in ["doc:1", "doc:2"] {
        let refused = node.publish_with_key(room, 2, "k").expect_err("it takes nothing");
        assert_eq!((refused.code.as_str(), &*refused.message), ("unavailable", "the broker is out of memory"));
    }
    assert!(is_up(&node), "the link is none the worse");
    redis.command::<String>(&["CONFIG", "SET", "maxmemory", "0"]);
    let numbers = node.publish_with_key("doc:1", 3, "k").expect("published");
    assert_eq!((numbers.events[0].seq, numbers.events[0].duplicate_of), (2, None), "the key was not used up");
    node.until_seq("doc:1", 2);
    assert_eq!(node.room("doc:1").tags(), [1, 3]);
}

#[test]
fn scripts_that_the_server_forgot_are_told_again() {
    let Some(program) = program() else { return };
    let redis = Redis::start(&program, &[]);
    let mut node = Node::start(&redis.url());
    redis.command::<String>(&["SCRIPT", "FLUSH"]);
    node.publish("doc:1", [1]).expect("published");
    redis.command::<String>(&["SCRIPT", "FLUSH"]);
    node.follow("doc:1");
    assert_eq!(node.room("doc:1").tags(), [1]);
    redis.command::<String>(&["SCRIPT", "FLUSH"]);
    assert_eq!(node.clear("doc:1"), Ok(1));
}

#[test]
fn a_connection_that_hears_nothing_is_made_again() {
    let Some(program) = program() else { return };
    let redis = Redis::start(&program, &[]);
    let proxy = Proxy::start(redis.address());
    let (mut node, mut other) = (start(&proxy.url(), ""), Node::start(&redis.url()));
    node.follow("doc:1");
    proxy.set_deaf(true);
    other.publish("doc:1", [1]).expect("published");
    node.until("it is noticed", |node| node.figures.deaf.value() > 0);
    proxy.set_deaf(false);
    node.until_seq("doc:1", 1);
    assert_eq!((node.room("doc:1").tags(), node.room("doc:1").gaps), (vec![1], 1));
}

#[test]
fn a_shard_that_does_not_take_costs_bounded_memory_and_misses_nothing() {
    let Some(program) = program() else { return };
    let redis = Redis::start(&program, &[]);
    let text = format!(
        "[broker]\nkind = \"redis\"\npending_bytes_max = \"64KiB\"\n[broker.redis]\nurl = \"{}\"\n",
        redis.url()
    );
    let mut slow = Node::with(&Config::from_toml(&text).expect("valid")).expect("it starts");
    let mut other = Node::start(&redis.url());
    slow.follow("doc:1");
    for round in 0..1000 {
        other.publish("doc:1", round * 10..round * 10 + 10).expect("published");
    }
    // 256 batches are in its queue, and something behind it; the rest was dropped.
    eventually("something was dropped", || slow.figures.overruns.value() > 0);
    assert!(slow.figures.backlog_bytes.value() <= 256 << 10, "{}", slow.figures.backlog_bytes.value());
    slow.until_seq("doc:1", 10_000);
    let room = slow.room("doc:1");
    assert_eq!((room.gaps, room.events.len()), (1, 10_000));
    assert_eq!(room.tags(), (0..10_000).collect::<Vec<_>>());
}

#[test]
fn what_was_handed_over_is_published_before_the_broker_ends() {
    let Some(program) = program() else { return };
    let redis = Redis::start(&program, &[]);
    let mut node = Node::start(&redis.url());
    let numbers: Vec<u64> = (0..200).map(|tag| node.submit(&format!("doc:{}", tag % 7), [tag])).collect();
    let broker = node.broker.take().expect("it runs");
    assert!(broker.is_running());
    broker.shutdown().expect("it ends well");
    for number in numbers {
        node.answer(number).expect("it is published");
    }
}

#[test]
fn a_home_that_asks_again_is_told_again() {
    let Some(program) = program() else { return };
    let redis = Redis::start(&program, &[]);
    let mut node = Node::start(&redis.url());
    node.follow("doc:1");
    node.publish("doc:1", 0..3).expect("published");
    node.until_seq("doc:1", 3);
    // It has lost what it had.
    node.rooms.remove("doc:1");
    node.follow("doc:1");
    assert_eq!(node.room("doc:1").tags(), [0, 1, 2]);
    // It is back at the second, and left and came in one go.
    let room = node.room("doc:1");
    let id = room.events[1].id;
    let entry = node.rooms.get_mut("doc:1").expect("it is followed");
    entry.place = Some(Place { epoch: room.epoch(), seq: 2, id });
    entry.events.truncate(2);
    node.give(vec![ringhub::hub::brokered::ToBroker::Leave { room: node.name("doc:1") }]);
    node.follow("doc:1");
    assert_eq!((node.room("doc:1").tags(), node.room("doc:1").gaps), (vec![0, 1, 2], 1));
    node.publish("doc:1", [3]).expect("published");
    node.until_seq("doc:1", 4);
}
