//! What a shard measures: every delivery counts once, with all the time that it took.

use std::time::Duration;

use ringhub::ring::sim::Faults;
use serde_json::json;

use crate::client::Client;
use crate::node::{Node, config};

const ROOM: &str = "project:1";

/// A node with subscribers of one room on each of two shards.
fn crowd(seed: u64, faults: Faults, clients: usize) -> (Node, Vec<Client>) {
    let mut node = Node::new(seed, 2, faults, config());
    let mut crowd = Vec::new();
    for number in 0..clients {
        let mut client = node.client(number % 2, "");
        client.send("subscribe", json!({"room": ROOM}));
        crowd.push(client);
    }
    node.settle();
    (node, crowd)
}

fn publish(client: &mut Client) {
    client.send("publish", json!({"room": ROOM, "type": "x", "data": {}}));
}

#[test]
fn every_delivery_is_measured_where_there_are_few() {
    for seed in 0..20 {
        let (mut node, mut clients) = crowd(seed, Faults::rough(), 6);
        for round in 0..40 {
            publish(&mut clients[round % 6]);
            if round % 3 == 0 {
                node.world.advance(Duration::from_millis(10));
                node.settle();
            }
        }
        node.settle();
        let (figures, times) = (node.figures(), node.times());
        assert_eq!(figures.deliveries, 40 * 6);
        let measured: u64 = times.iter().map(|times| times.latency.count()).sum();
        assert!(figures.latency_followed <= figures.deliveries);
        assert_eq!((measured, figures.latency_lost, figures.sending), (40 * 6, 0, 0), "seed {seed}");
        node.pass(Duration::from_secs(1));
        assert_eq!(node.figures().publishes_by_kind["project"], 40);
    }
}

#[test]
fn a_reader_that_pauses_is_measured_with_its_pause_and_the_others_without() {
    let (mut node, mut clients) = crowd(1, Faults::none(), 4);
    clients[3].link.set_read_budget(0);
    publish(&mut clients[0]);
    node.settle();
    node.world.advance(Duration::from_secs(2));
    publish(&mut clients[0]);
    node.settle();
    assert_eq!(node.figures().sending, 1);
    node.world.advance(Duration::from_secs(1));
    clients[3].link.set_read_budget(usize::MAX);
    node.settle();
    let times = node.times();
    assert_eq!(times[0].latency.count(), 4);
    assert!(times[0].latency.permille_us(1000) < Some(1_000_000));
    assert_eq!(times[1].latency.count(), 4);
    // Its two events: one waited for three seconds, the other for one.
    assert_eq!(times[1].latency.below(1 << 19), 2);
    assert_eq!(times[1].latency.below(1 << 21), 3);
    assert!((4_000_000..4_100_000).contains(&times[1].latency.sum_us), "{}", times[1].latency.sum_us);
}

#[test]
fn a_connection_that_goes_is_not_measured_but_counted() {
    let (mut node, mut clients) = crowd(1, Faults::none(), 4);
    clients[3].link.set_read_budget(0);
    publish(&mut clients[0]);
    publish(&mut clients[0]);
    node.settle();
    clients[3].link.reset();
    node.settle();
    let (figures, times) = (node.figures(), node.times());
    assert_eq!(times.iter().map(|times| times.latency.count()).sum::<u64>(), 6);
    assert!(figures.latency_lost > 0);
    clients.iter().for_each(|client| client.link.close());
    node.assert_empty();
}

#[test]
fn the_hubs_ping_measures_the_way_there_and_back() {
    let (mut node, mut clients) = crowd(1, Faults::none(), 1);
    let interval = ringhub::config::Config::default().heartbeat.interval_s;
    clients[0].link.set_read_budget(0);
    node.world.advance(Duration::from_secs(interval));
    node.settle();
    clients[0].link.set_read_budget(usize::MAX);
    node.settle();
    clients[0].poll();
    assert_eq!(clients[0].frames.iter().filter(|(opcode, _)| *opcode == 9).count(), 1);
    node.world.advance(Duration::from_millis(30));
    for _ in 0..3 {
        clients[0].link.write(&crate::client::frame(10, b""));
        node.settle();
    }
    let round_trip = &node.times()[0].round_trip;
    assert_eq!(round_trip.count(), 1, "the first answer counts");
    assert!((30_000..40_000).contains(&round_trip.sum_us), "{}", round_trip.sum_us);
}
