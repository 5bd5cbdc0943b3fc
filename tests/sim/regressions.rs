//! What once went wrong, each in the smallest world that shows it.

use std::sync::Arc;
use std::time::Duration;

use ringhub::auth::{Claims, mint};
use ringhub::config::{Config, KindConfig, Policy, Secret};
use ringhub::hub::name::home_of;
use ringhub::hub::reply::pending;
use ringhub::hub::trace::TraceAsked;
use ringhub::ring::sim::Faults;
use ringhub::shard::Settings;
use ringhub::shard::request::Request;
use serde_json::json;

use crate::client::{Client, frame, upgrade};
use crate::node::{Node, config};

fn node(shards: u16, config: Config) -> Node {
    Node::new(1, shards, Faults::none(), config)
}

fn subscribe(node: &mut Node, client: &mut Client, room: &str) {
    let id = client.send("subscribe", json!({"room": room}));
    node.settle();
    client.poll();
    assert_eq!(client.answer(id).expect("an answer")["type"], "subscribed");
}

#[test]
fn a_leave_and_a_close_in_one_packet_take_one_member_off_the_homes_count() {
    let mut node = node(2, config());
    let room = node.room_at("project:", 0);
    let mut stays = node.client(1, "");
    let mut goes = node.client(1, "");
    subscribe(&mut node, &mut stays, &room);
    subscribe(&mut node, &mut goes, &room);
    let (_, mut packet) = goes.command("unsubscribe", json!({"room": room}));
    packet.extend(frame(8, &1000u16.to_be_bytes()));
    goes.link.write(&packet);
    node.settle();
    node.publish(&room, "1");
    node.settle();
    stays.poll();
    assert_eq!(stays.seqs(&room), [1]);
}

#[test]
fn a_reader_too_slow_for_two_rooms_at_once_is_told_so_once() {
    let mut config = config();
    config.limits.outbox_bytes_max = 4096;
    config.kinds.iter_mut().for_each(|kind| kind.policy = Policy::Disconnect);
    let mut node = node(1, config);
    let mut client = node.client(0, "");
    let rooms = ["project:a", "project:b"];
    rooms.iter().for_each(|room| subscribe(&mut node, &mut client, room));
    client.link.set_read_budget(0);
    let data = format!("\"{}\"", "x".repeat(3000));
    node.publish(rooms[0], &data);
    node.settle();
    rooms.iter().for_each(|room| node.publish(room, &data));
    node.settle();
    client.link.set_read_budget(usize::MAX);
    node.settle();
    client.poll();
    assert_eq!(client.close.as_ref().map(|(code, _)| *code), Some(4508));
    assert_eq!(node.figures().slow_closes, 1);
}

#[test]
fn pongs_that_are_not_read_are_bounded_on_every_endpoint() {
    let mut config = config();
    config.endpoints.echo = true;
    for path in ["/echo", "/ws"] {
        let mut node = node(1, config.clone());
        let client = Client::connect(&node, 0, path, "");
        node.settle();
        client.link.set_read_budget(0);
        let pings = frame(9, &[0; 125]).repeat(500);
        for _ in 0..20 {
            client.link.write(&pings);
            node.settle();
        }
        assert_eq!(node.figures().closes["4508"], 1, "{path}");
    }
}

fn token(config: &mut Config, permissions: &[&str]) -> String {
    config.auth.enabled = true;
    config.auth.secret = vec![Secret { kid: None, secret: "a secret of thirty-two bytes or so".to_owned() }];
    let permissions = permissions.iter().map(|&one| one.to_owned()).collect();
    let claims = Claims { sub: "alice".to_owned(), permissions, exp: Some(1_800_000_000), ..Claims::default() };
    mint(&config.auth.secret[0], config.auth.algorithm, &claims).expect("signs")
}

#[test]
fn a_connection_of_any_kind_gives_back_what_it_counted_for() {
    let mut config = config();
    config.endpoints.echo = true;
    config.limits.connections_per_user_max = 2;
    config.limits.connections_per_address_max = 2;
    config.limits.connections_max = 2;
    let token = token(&mut config, &["websocket:connect"]);
    let mut node = node(2, config);
    for path in ["/echo", "/ws", "/echo", "/ws"] {
        for _ in 0..3 {
            let mut client = Client::connect(&node, 1, path, &format!("token={token}"));
            node.settle();
            client.poll();
            assert_eq!(client.status, Some(101), "{path}: {}", String::from_utf8_lossy(&client.body));
            client.link.close();
            node.pass(Duration::from_secs(3));
        }
    }
    node.assert_empty();
}

#[test]
fn a_draining_shard_serves_the_others_until_the_last_connection_is_gone() {
    let mut node = node(2, config());
    let room = node.room_at("project:", 0);
    let mut client = node.client(1, "");
    for shard in 0..2 {
        node.request(shard, Request::Drain { over_ms: 10_000, spread_ms: 1000 });
    }
    node.settle();
    let id = client.send("publish", json!({"room": room, "type": "x", "data": 1}));
    node.settle();
    client.poll();
    assert_eq!(client.answer(id).expect("an answer")["type"], "published");
    node.pass(Duration::from_secs(13));
    client.poll();
    assert_eq!(client.close.as_ref().map(|(code, _)| *code), Some(1001));
    assert!(!node.is_running(0) && !node.is_running(1));
}

#[test]
fn an_admission_under_way_does_not_hold_up_a_drain() {
    for seed in 0..50 {
        let mut node = Node::new(seed, 2, Faults::none(), config());
        let clients: Vec<Client> = (0..8).map(|place| Client::connect(&node, place % 2, "/ws", "")).collect();
        for step in 0..seed % 5 {
            node.turn_of((step % 2) as usize);
        }
        for shard in 0..2 {
            node.request(shard, Request::Drain { over_ms: 1000, spread_ms: 1000 });
        }
        node.pass(Duration::from_secs(12));
        drop(clients);
        assert!(!node.is_running(0) && !node.is_running(1), "seed {seed}");
    }
}

#[test]
fn what_a_connection_held_is_free_as_soon_as_it_is_gone() {
    let mut node = node(1, config());
    let client = node.client(0, "client_id=c");
    client.link.close();
    node.settle();
    let (responder, answer) = pending();
    let home = home_of(node.hasher.hash("c"), 1);
    node.request(usize::from(home.0), Request::HasClient { client_id: "c".into(), responder });
    node.turn();
    assert_eq!(answer.wait(), Ok(false));
}

#[test]
fn many_clients_that_talk_before_they_are_let_in_do_not_exhaust_the_stack() {
    let mut config = config();
    config.limits.connections_per_address_max = 10_000;
    let mut node = node(2, config);
    let clients: Vec<Client> = (0..1500)
        .map(|_| {
            let mut client = Client::raw(node.world.connect(0));
            let mut packet = upgrade("/ws", "", "").into_bytes();
            packet.extend(client.command("ping", json!({})).1);
            client.link.write(&packet);
            client
        })
        .collect();
    node.settle();
    for mut client in clients {
        client.poll();
        assert_eq!(client.messages.len(), 2, "the greeting and the pong");
    }
}

#[test]
fn of_connections_that_race_for_a_session_one_is_left() {
    for seed in 0..200 {
        let mut node = Node::new(seed, 3, Faults::none(), config());
        let mut clients: Vec<Client> =
            (0..3).map(|shard| Client::connect(&node, shard, "/ws", "session_id=s")).collect();
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..60 {
            node.turn_of(rng.usize(..3));
        }
        node.settle();
        clients.iter_mut().for_each(Client::poll);
        let open = clients.iter().filter(|client| client.status == Some(101) && client.close.is_none()).count();
        assert_eq!(open, 1, "seed {seed}");
    }
}

#[test]
fn a_session_that_is_not_resumed_is_forgotten_with_its_inbox() {
    let mut config = config();
    config.session.resume_window_s = 5;
    let mut node = node(2, config);
    for shard in 0..2 {
        let mut client = node.client(shard, "");
        client.send("message", json!({"for": "the backend"}));
        node.settle();
        client.link.close();
    }
    node.settle();
    node.pass(Duration::from_secs(3));
    let (inboxes, shared) = (2, 2);
    assert_eq!(
        node.figures().rooms,
        inboxes + shared,
        "within the window the inbox is kept, and who was in which room"
    );
    node.pass(Duration::from_secs(3));
    node.assert_empty();
}

#[test]
fn a_session_is_forgotten_when_its_inbox_was_emptied_after_it_ended() {
    let mut node = node(1, config());
    let mut client = node.client(0, "session_id=s");
    client.send("message", json!({}));
    node.settle();
    client.link.close();
    node.settle();
    let (responder, answer) = pending();
    node.request(0, Request::Collect { room: node.hasher.room("session:s"), responder });
    node.settle();
    assert_eq!(answer.wait().expect("a message"), &b"{}"[..]);
    node.assert_empty();
}

#[test]
fn a_peer_that_has_finished_sending_still_gets_its_answer() {
    let mut node = node(1, config());
    let mut client = Client::raw(node.world.connect(0));
    client.link.write(b"GARBAGE\r\n\r\n");
    client.link.finish();
    node.settle();
    client.poll();
    assert_eq!(client.status, Some(400));
    assert_eq!(node.world.sockets_open(), 0, "closed at once, since nothing is waited for");

    let mut client = node.client(0, "");
    client.link.write(&frame(8, &1000u16.to_be_bytes()));
    client.link.finish();
    node.settle();
    client.poll();
    assert_eq!(client.close.as_ref().map(|(code, _)| *code), Some(1000));
    node.assert_empty();
}

#[test]
fn a_refusal_is_counted_once_under_its_own_reason() {
    let mut node = node(1, config());
    let raw = |node: &mut Node, text: &str| {
        let client = Client::raw(node.world.connect(0));
        client.link.write(text.as_bytes());
        node.settle();
    };
    raw(&mut node, "GET /ws HTTP/1.1\r\n");
    raw(&mut node, &upgrade("/ws", "", "").replace("Version: 13", "Version: 12"));
    raw(&mut node, &upgrade("/ws", "", &format!("X: {}\r\n", "x".repeat(20_000))));
    raw(&mut node, &upgrade("/ws", "", "").replace("dGhl", ""));
    node.pass(Duration::from_secs(11));
    let refused: Vec<_> = node.figures().refused.into_iter().filter(|(_, count)| *count > 0).collect();
    assert_eq!(refused, [("bad_upgrade", 1), ("bad_version", 1), ("timeout", 1), ("too_large", 1)]);
}

#[test]
fn connections_being_admitted_count_towards_the_shards_limit() {
    let mut config = config();
    config.limits.connections_per_shard_max = 10;
    let mut node = node(2, config);
    let mut clients: Vec<Client> = (0..50).map(|_| Client::connect(&node, 0, "/ws", "")).collect();
    node.settle();
    clients.iter_mut().for_each(Client::poll);
    let with = |status| clients.iter().filter(|client| client.status == Some(status)).count();
    assert_eq!((with(101), with(503)), (10, 40));
}

#[test]
fn an_echo_that_follows_its_handshake_in_one_packet_is_no_slow_reader() {
    let mut config = config();
    config.endpoints.echo = true;
    let mut node = node(1, config);
    let mut client = Client::raw(node.world.connect(0));
    let mut packet = upgrade("/echo", "", "").into_bytes();
    packet.extend(frame(2, &vec![7; 200_000]));
    client.link.write(&packet);
    node.settle();
    client.poll();
    assert_eq!(client.frames.len(), 1);
}

#[test]
fn nothing_follows_the_answer_to_a_close_frame() {
    let mut node = node(1, config());
    let mut client = node.client(0, "");
    subscribe(&mut node, &mut client, "project:a");
    client.link.set_read_budget(10);
    node.publish("project:a", "1");
    node.settle();
    node.publish("project:a", "2");
    node.settle();
    client.link.write(&frame(8, &1000u16.to_be_bytes()));
    node.settle();
    client.link.set_read_budget(usize::MAX);
    node.settle();
    client.poll();
    assert_eq!(client.close.as_ref().map(|(code, _)| *code), Some(1000));
    assert_eq!(client.seqs("project:a"), [1]);
}

fn lasting(outbox_bytes_max: usize) -> Config {
    let mut config = config();
    config.limits.outbox_bytes_max = outbox_bytes_max;
    config
}

#[test]
fn replayed_events_follow_the_answer_that_announces_them() {
    let mut node = node(1, config());
    let room = "project:a";
    (1..=3).for_each(|number| node.publish(room, number.to_string()));
    let mut client = node.client(0, "");
    let id = client.send("subscribe", json!({"room": room, "since": {"seq": 1}}));
    node.settle();
    client.poll();
    let answered = client.messages.iter().position(|message| message["ref"] == id).expect("an answer");
    let replayed = client.messages.iter().position(|message| message["seq"] == 2).expect("an event");
    assert_eq!(client.messages[answered]["data"]["replayed"], 2);
    assert!(answered < replayed);
    assert_eq!(client.seqs(room), [2, 3]);
}

#[test]
fn a_slow_reader_that_subscribes_anew_gets_what_it_asks_for_once() {
    let mut node = node(1, lasting(4096));
    let room = "project:a";
    let mut client = node.client(0, "");
    subscribe(&mut node, &mut client, room);
    client.link.set_read_budget(0);
    for number in 0..6 {
        node.publish(room, format!("\"{number}{}\"", "x".repeat(1500)));
        node.settle();
    }
    let id = client.send("subscribe", json!({"room": room, "since": {"seq": 4}}));
    node.settle();
    client.link.set_read_budget(usize::MAX);
    node.settle();
    client.poll();
    let answered = client.messages.iter().position(|message| message["ref"] == id).expect("an answer");
    let after = client.messages[answered..].iter().filter_map(|message| message["seq"].as_u64());
    assert_eq!(after.collect::<Vec<_>>(), [5, 6]);
}

#[test]
fn a_small_event_does_not_overtake_a_large_one_that_has_to_wait() {
    let mut node = node(1, lasting(4096));
    let room = "project:a";
    let mut reader = node.client(0, "");
    subscribe(&mut node, &mut reader, room);
    reader.link.set_read_budget(0);
    let mut publisher = node.client(0, "");
    let large = "x".repeat(3000);
    let mut packet = publisher.command("publish", json!({"room": room, "type": "x", "data": large})).1;
    publisher.link.write(&packet);
    node.settle();
    // Joins behind them make two batches of one turn.
    packet = publisher.command("publish", json!({"room": room, "type": "x", "data": large})).1;
    packet.extend(publisher.command("subscribe", json!({"room": room})).1);
    packet.extend(publisher.command("publish", json!({"room": room, "type": "x", "data": 3})).1);
    packet.extend(publisher.command("subscribe", json!({"room": room})).1);
    publisher.link.write(&packet);
    node.settle();
    reader.link.set_read_budget(usize::MAX);
    node.settle();
    reader.poll();
    assert_eq!(reader.seqs(room), [1, 2, 3]);
}

#[test]
fn a_reader_whose_outbox_is_full_may_subscribe() {
    let mut node = node(1, lasting(4096));
    let mut client = node.client(0, "");
    subscribe(&mut node, &mut client, "project:a");
    client.link.set_read_budget(0);
    for _ in 0..3 {
        node.publish("project:a", format!("\"{}\"", "x".repeat(3900)));
        node.settle();
    }
    let ids = ["project:a", "project:b"].map(|room| client.send("subscribe", json!({"room": room})));
    node.settle();
    client.link.set_read_budget(usize::MAX);
    node.settle();
    client.poll();
    assert_eq!(client.close, None);
    ids.iter().for_each(|id| assert_eq!(client.answer(*id).expect("an answer")["type"], "subscribed"));
    assert_eq!(client.seqs("project:a"), [1, 2, 3]);
}

#[test]
fn a_session_whose_connection_has_just_broken_is_resumed_with_its_rooms() {
    let mut node = node(2, config());
    let room = node.room_at("project:", 0);
    let session = node.room_at("session:", 1);
    let session = session.strip_prefix("session:").expect("the kind");
    let mut breaks = node.client(0, &format!("session_id={session}"));
    subscribe(&mut node, &mut breaks, &room);
    let token = breaks.messages[0]["data"]["resume"]["token"].clone();
    let mut resumes = node.client(1, "");
    breaks.link.close();
    let id = resumes.send("resume", json!({"session_id": session, "token": token}));
    // The session's home hears of the new connection before the old one's shard finds it gone.
    node.turn_of(1);
    node.settle();
    resumes.poll();
    let results = &resumes.answer(id).expect("an answer")["data"]["results"];
    let rooms: Vec<_> = results.as_array().expect("results").iter().map(|result| &result["room"]).collect();
    assert!(rooms.contains(&&json!(room)), "{rooms:?}");
}

#[test]
fn a_busy_room_that_is_never_caught_up_with_leaves_room_for_the_others() {
    let mut node = node(1, lasting(4096));
    let mut client = node.client(0, "");
    let rooms = ["project:busy", "project:calm"];
    rooms.iter().for_each(|room| subscribe(&mut node, &mut client, room));
    client.link.set_read_budget(0);
    let data = format!("\"{}\"", "x".repeat(1500));
    for room in [rooms[0], rooms[0], rooms[0], rooms[1]] {
        node.publish(room, &data);
        node.settle();
    }
    for _ in 0..20 {
        for _ in 0..6 {
            node.publish(rooms[0], &data);
            node.turn();
        }
        client.link.set_read_budget(3500);
        node.settle();
        client.poll();
    }
    assert_eq!(client.seqs(rooms[1]), [1]);
}

#[test]
fn subscribing_anew_again_and_again_during_a_fan_out_costs_little() {
    let mut config = config();
    config.shards.turn_deliveries_max = 16;
    let mut node = node(1, config);
    let mut client = node.client(0, "");
    subscribe(&mut node, &mut client, "project:a");
    let mut packet = Vec::new();
    for number in 0..3000 {
        let (_, event) = client.command("publish", json!({"room": "project:a", "type": "x", "data": number}));
        packet.extend(event);
        let types = if number % 2 == 0 { json!(["x"]) } else { json!([]) };
        packet.extend(client.command("subscribe", json!({"room": "project:a", "types": types})).1);
    }
    client.link.write(&packet);
    let began = std::time::Instant::now();
    node.settle();
    // Places that were left are closed before they outnumber the members; otherwise each fan-out passes by all of them.
    assert!(node.figures().deliveries < 20_000, "{} places were looked at", node.figures().deliveries);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    client.poll();
    assert_eq!(client.seqs("project:a"), (1..=3000).collect::<Vec<u64>>());
}

#[test]
fn a_room_goes_by_its_own_kinds_rules_after_a_reload_that_declares_another_kind() {
    let mut config = config();
    config.kinds.push(KindConfig { history_events_max: Some(3), ..KindConfig::new("small") });
    let mut node = node(1, config.clone());
    let mut client = node.client(0, "");
    node.publish("small:a", "1");
    node.settle();
    // Declared kinds are in order of name.
    let place = config.kinds.len() - 1;
    config.kinds.insert(place, KindConfig::new("large"));
    node.request(0, Request::Reload(Arc::new(Settings::new(config).expect("sound settings"))));
    (2..=5).for_each(|number| node.publish("small:a", number.to_string()));
    node.settle();
    let id = client.send("history", json!({"room": "small:a"}));
    node.settle();
    client.poll();
    let events = client.answer(id).expect("an answer")["data"]["events"].as_array().expect("events").len();
    assert_eq!(events, 3);
}

#[test]
fn a_gap_that_finds_the_outbox_full_is_told_and_counted_once() {
    let mut config = lasting(4096);
    config.history.events_max = 2;
    let mut node = node(2, config);
    let (away, near) = (node.room_at("project:", 1), node.room_at("project:", 0));
    let mut client = node.client(0, "");
    [&away, &near].into_iter().for_each(|room| subscribe(&mut node, &mut client, room));
    client.link.set_read_budget(0);
    let data = format!("\"{}\"", "x".repeat(3000));
    for _ in 0..6 {
        node.publish(&away, &data);
        node.settle();
    }
    // It reads all it had, and its shard asks the other one; before that answers, the outbox is full again.
    client.link.set_read_budget(usize::MAX);
    (0..20).for_each(|_| node.turn_of(0));
    client.link.set_read_budget(0);
    for bytes in [3000, 700] {
        node.publish(&near, format!("\"{}\"", "x".repeat(bytes)));
        (0..5).for_each(|_| node.turn_of(0));
    }
    node.settle();
    client.link.set_read_budget(usize::MAX);
    node.settle();
    client.poll();
    let gaps = client.messages.iter().filter(|message| message["type"] == "gap").count();
    assert_eq!((gaps, node.figures().gaps), (1, 1));
    assert_eq!(client.seqs(&away).last(), Some(&6));
    assert_eq!(client.seqs(&near), [1, 2]);
}

#[test]
fn a_session_on_its_way_is_given_to_the_next_one_when_it_has_arrived() {
    let mut node = node(3, config());
    // The session's home is shard 0.
    let name = node.room_at("session:s", 0);
    let id = name.strip_prefix("session:").expect("a session's room");
    let mut first = node.client(1, &format!("session_id={id}"));
    subscribe(&mut node, &mut first, "project:kept");
    let token = first.messages[0]["data"]["resume"]["token"].clone();
    let mut second = node.client(2, "");
    let mut third = node.client(0, "");
    let resume = json!({"session_id": id, "token": token});
    // The first one's shard is slow: before it hands the session to the second one, the third one asks for it.
    second.send("resume", resume.clone());
    (0..4).for_each(|_| [2, 0].into_iter().for_each(|shard| node.turn_of(shard)));
    let asked = third.send("resume", resume);
    (0..4).for_each(|_| [0, 2].into_iter().for_each(|shard| node.turn_of(shard)));
    node.settle();
    third.poll();
    let answer = third.answer(asked).expect("an answer");
    let rooms: Vec<&str> = answer["data"]["results"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|result| result["room"].as_str())
        .collect();
    assert!(rooms.contains(&name.as_str()) && rooms.contains(&"project:kept"), "{rooms:?}");
    second.poll();
    assert_eq!(second.close.as_ref().map(|(code, _)| *code), Some(4409));
}

#[test]
fn an_event_to_everybody_does_not_overtake_the_answer_to_an_upgrade() {
    // On some of these shards a newcomer is in `global` before the homes of its other rooms have answered.
    for seed in 0..20 {
        let mut node = Node::new(seed, 4, Faults::none(), config());
        let mut clients = Vec::new();
        for turn in 0..40 {
            clients.push(Client::connect(&node, turn % 4, "/ws", ""));
            node.publish("global", "1");
            node.turn_of(turn * 7 % 4);
            node.turn_of(turn * 3 % 4);
        }
        node.settle();
        for client in &mut clients {
            client.poll();
            assert_eq!(client.status, Some(101), "seed {seed}");
            assert_eq!(client.messages[0]["type"], "connection_established", "seed {seed}");
            let seqs = client.seqs("global");
            assert!(seqs.windows(2).all(|two| two[1] == two[0] + 1), "seed {seed}: {seqs:?}");
        }
    }
}

#[test]
fn our_end_stays_open_until_the_client_has_answered_our_close() {
    let mut node = node(1, config());
    let mut client = node.client(0, "");
    client.link.write(&frame(2, b"binary"));
    node.settle();
    client.poll();
    assert_eq!(client.close.as_ref().map(|(code, _)| *code), Some(1003));
    assert!(!client.link.is_closed(), "a proxy would cut off who has not read the close frame");
    // What it still had on its way, and then its answer, in pieces.
    let mut rest = frame(1, br#"{"type":"ping"}"#);
    rest.extend(frame(8, &1003u16.to_be_bytes()));
    let (first, second) = rest.split_at(rest.len() - 3);
    client.link.write(first);
    node.settle();
    assert!(!client.link.is_closed());
    client.link.write(second);
    node.settle();
    assert!(client.link.is_closed());
    client.poll();
    client.link.close();
    node.settle();
    node.assert_empty();
}

#[test]
fn a_client_that_does_not_answer_our_close_is_cut_off() {
    let mut node = node(1, config());
    let mut client = node.client(0, "");
    client.link.write(&frame(2, b"binary"));
    node.settle();
    client.poll();
    assert!(client.close.is_some() && !client.link.is_closed());
    node.pass(Duration::from_secs(3));
    assert!(client.link.is_closed());
    node.assert_empty();
}

#[test]
fn a_ping_as_large_as_a_message_may_be_is_answered() {
    let mut node = node(1, config());
    let mut client = node.client(0, "");
    let all = ["a", "b"];
    // Two at once: the second answer waits behind the first.
    let ids = all.map(|letter| client.send("ping", json!({"text": letter.repeat(300_000)})));
    node.settle();
    client.poll();
    assert_eq!(client.close, None);
    for (id, letter) in ids.into_iter().zip(all) {
        let answer = client.answer(id).expect("an answer");
        assert_eq!(answer["data"]["text"], letter.repeat(300_000));
    }
}

#[test]
fn who_asks_for_the_past_of_several_rooms_is_no_slow_reader() {
    let mut node = node(2, config());
    let rooms = ["project:a", "project:b", "project:c"];
    for room in rooms {
        for number in 1..=3 {
            node.publish(room, number.to_string());
        }
    }
    node.settle();
    let mut client = node.client(0, "");
    let id = client.send("subscribe", json!({"rooms": rooms, "since": {"last": 2}}));
    node.settle();
    client.poll();
    assert_eq!(client.answer(id).expect("an answer")["type"], "subscribed");
    rooms.iter().for_each(|room| assert_eq!(client.seqs(room), [2, 3], "{room}"));
    assert_eq!(node.figures().slow_readers, 0);
}

#[test]
fn what_a_slow_reader_has_lost_is_traced_as_a_gap_and_not_as_unwanted() {
    let mut config = lasting(4096);
    config.history.events_max = 2;
    let mut node = node(1, config);
    let mut client = node.client(0, "client_id=slow");
    subscribe(&mut node, &mut client, "project:a");
    client.link.set_read_budget(0);
    for _ in 0..8 {
        node.publish("project:a", format!("\"{}\"", "x".repeat(3000)));
        node.settle();
    }
    client.link.set_read_budget(usize::MAX);
    node.settle();
    client.poll();
    assert_eq!(client.seqs("project:a").last(), Some(&8));
    let (responder, address) = pending();
    node.request(0, Request::Whereabouts { client_id: "slow".into(), responder });
    node.settle();
    let live = address.wait().expect("an answer").map(|address| address.conn);
    let (responder, traces) = pending();
    let asked = Arc::new(TraceAsked { client_id: "slow".into(), limit: 100 });
    node.request(0, Request::Trace { asked, live, responder });
    node.settle();
    let traces = traces.wait().expect("an answer");
    let of_room = |what: &str| -> Vec<_> {
        let records = traces.iter().flat_map(|trace| &trace.records);
        records.filter(|record| record.what == what && record.room.as_deref() == Some("project:a")).collect()
    };
    assert!(of_room("filtered").is_empty(), "it wanted all of them: {:?}", of_room("filtered"));
    let [gap] = of_room("gap")[..] else { panic!("{:?}", of_room("gap")) };
    assert_eq!((gap.from_seq, gap.to_seq), (Some(2), Some(6)));
    let replayed = of_room("replayed");
    assert_eq!(replayed.iter().map(|record| record.events.unwrap_or(0)).sum::<u32>(), 2);
    assert!(replayed.iter().all(|record| record.from_seq >= Some(7) && record.bytes > Some(3000)), "{replayed:?}");
}
