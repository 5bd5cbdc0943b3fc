//! Sentinels and clusters.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringhub::broker::redis::slots::slot_of;

use super::support::{Node, Redis, config, eventually, program};

/// A cluster of three, of which the first has a replica.
struct Cluster {
    primaries: Vec<Redis>,
    replica: Redis,
}

impl Cluster {
    fn start(program: &Path) -> Cluster {
        let options = [
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            "1000",
            "--cluster-require-full-coverage",
            "no",
            "--repl-diskless-sync-delay",
            "0",
        ];
        let primaries: Vec<Redis> = (0..3).map(|_| Redis::start(program, &options)).collect();
        let replica = Redis::start(program, &options);
        for (at, primary) in (0u32..).zip(&primaries) {
            let slots: Vec<String> = (at * 16_384 / 3..(at + 1) * 16_384 / 3).map(|slot| slot.to_string()).collect();
            let mut words = vec!["CLUSTER", "ADDSLOTS"];
            words.extend(slots.iter().map(String::as_str));
            primary.command::<String>(&words);
        }
        let first = primaries[0].port.to_string();
        for other in primaries[1..].iter().chain([&replica]) {
            other.command::<String>(&["CLUSTER", "MEET", "127.0.0.1", &first]);
        }
        let id: String = primaries[0].command(&["CLUSTER", "MYID"]);
        eventually("the replica knows its primary", || {
            replica.try_command::<String>(&["CLUSTER", "REPLICATE", &id]).is_ok()
        });
        let cluster = Cluster { primaries, replica };
        eventually("the cluster is whole", || {
            cluster.primaries.iter().chain([&cluster.replica]).all(|node| {
                let info: String = node.command(&["CLUSTER", "INFO"]);
                info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:4")
            }) && cluster.replica.command::<String>(&["INFO", "replication"]).contains("master_link_status:up")
        });
        cluster
    }

    fn url(&self) -> String {
        self.primaries[1].url()
    }
}

/// Rooms of the second server.
fn of_second() -> impl Iterator<Item = String> {
    let is_its = |name: &String| (16_384 / 3..16_384 * 2 / 3).contains(&slot_of(name.as_bytes()));
    (0..).map(|room| format!("doc:{room}")).filter(is_its)
}

/// Moves a slot with all that is in it, as operators do.
fn move_slot(slot: u16, from: &Redis, to: &Redis) {
    let slot = slot.to_string();
    let [of_from, of_to] = [from, to].map(|node| node.command::<String>(&["CLUSTER", "MYID"]));
    to.command::<String>(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &of_from]);
    from.command::<String>(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &of_to]);
    let port = to.port.to_string();
    loop {
        let keys: Vec<String> = from.command(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]);
        if keys.is_empty() {
            break;
        }
        let mut words = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
        words.extend(keys.iter().map(String::as_str));
        from.command::<String>(&words);
    }
    for node in [to, from] {
        node.command::<String>(&["CLUSTER", "SETSLOT", &slot, "NODE", &of_to]);
    }
}

/// How far a server's replication has come.
fn offset(redis: &Redis) -> u64 {
    let info: String = redis.command(&["INFO", "replication"]);
    let line = info.lines().find_map(|line| line.strip_prefix("master_repl_offset:")).expect("an offset");
    line.trim().parse().expect("a number")
}

#[test]
fn rooms_of_a_cluster_are_on_all_of_its_servers_and_survive_one() {
    const ROOMS: u64 = 60;
    let Some(program) = program() else { return };
    let mut cluster = Cluster::start(&program);
    let start = || Node::with(&config(&cluster.url(), "mode = \"cluster\"")).unwrap_or_else(|error| panic!("{error}"));
    let (mut one, mut two) = (start(), start());
    let names: Vec<String> = (0..ROOMS).map(|room| format!("doc:{room}")).collect();
    for name in &names {
        two.follow(name);
        let numbers = one.publish(name, 0..3).expect("published");
        assert_eq!(numbers.nodes, 1);
        two.until_seq(name, 3);
    }
    for primary in &cluster.primaries {
        let keys: u64 = primary.command(&["DBSIZE"]);
        assert!(keys > 20, "each has a part: {keys}");
    }
    assert_eq!(one.clear("doc:7"), Ok(3));
    two.until("it is told", |node| node.room("doc:7").log_from == 4);

    eventually("the replica has all", || offset(&cluster.replica) == offset(&cluster.primaries[0]));
    let before = two.rooms.clone();
    cluster.primaries[0].kill();
    let mut next = 3;
    for name in &names {
        // Rooms on other servers go on at once; those of the dead one when its replica has taken its place.
        two.until("it is published", |_| {
            next += 1;
            one.publish(name, [next]).is_ok()
        });
    }
    for name in &names {
        two.until("what is published then comes", |node| node.room(name).tags().last() > Some(&3));
        let (room, before) = (two.room(name), &before[name]);
        assert_eq!((room.epoch(), room.gaps), (before.epoch(), before.gaps), "{name}");
        let tags = room.tags();
        assert!(tags.is_sorted_by(|one, other| one < other), "{name}: none twice: {tags:?}");
    }
}

#[test]
fn sentinels_tell_where_the_server_is_now() {
    let Some(program) = program() else { return };
    let mut primary = Redis::start(&program, &["--repl-diskless-sync-delay", "0"]);
    let replica = Redis::start(&program, &["--repl-diskless-sync-delay", "0"]);
    replica.command::<String>(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()]);
    let sentinels: Vec<Redis> = (0..2).map(|_| Redis::sentinel(&program, primary.port, 1)).collect();
    for sentinel in &sentinels {
        eventually("the sentinel knows the replica", || {
            let info: String = sentinel.command(&["INFO", "sentinel"]);
            info.contains("slaves=1") && info.contains("sentinels=2")
        });
    }
    eventually("the replica has all", || {
        replica.command::<String>(&["INFO", "replication"]).contains("master_link_status:up")
    });
    let urls = sentinels.iter().map(Redis::url).collect::<Vec<_>>().join("\",\"");
    let mut node = Node::with(&config(&urls, "mode = \"sentinel\"")).unwrap_or_else(|error| panic!("{error}"));
    node.follow("doc:1");
    node.publish("doc:1", 0..3).expect("published");
    node.until_seq("doc:1", 3);
    let before = node.room("doc:1");
    eventually("the replica has it", || replica.command::<u64>(&["XLEN", "ringhub:{doc:1}:log"]) == 1);
    primary.kill();
    node.until("it is told where it is", |node| node.room("doc:1").followed > before.followed);
    node.publish("doc:1", [3]).expect("published");
    node.until_seq("doc:1", 4);
    let after = node.room("doc:1");
    assert_eq!((after.epoch(), after.gaps, after.tags()), (before.epoch(), before.gaps, vec![0, 1, 2, 3]));

    let unknown = "mode = \"sentinel\"\nsentinel_master = \"other\"";
    let error = Node::with(&config(&urls, unknown)).err().expect("nobody knows it");
    assert!(error.to_string().contains("broker.redis.sentinel_master"), "{error}");
}

#[test]
fn a_node_that_starts_while_no_server_has_the_name_waits_for_one() {
    let Some(program) = program() else { return };
    let mut primary = Redis::start(&program, &[]);
    let sentinel = Redis::sentinel(&program, primary.port, 1);
    // Nobody else watches it: one that does not answer says nothing about the name.
    let away = Redis::sentinel(&program, primary.port, 1);
    let urls = [away.url(), sentinel.url()].join("\",\"");
    primary.kill();
    let flags = |sentinel: &Redis| {
        let told: Vec<String> = sentinel.command(&["SENTINEL", "MASTER", "mymaster"]);
        told.iter().skip_while(|word| *word != "flags").nth(1).cloned().unwrap_or_default()
    };
    for sentinel in [&sentinel, &away] {
        eventually("the sentinel takes it for down", || flags(sentinel).contains("s_down"));
    }
    away.freeze();
    let mut node = Node::with(&config(&urls, "mode = \"sentinel\"\ntimeout_ms = 2000"))
        .unwrap_or_else(|error| panic!("it waits for the failover: {error}"));
    assert_eq!(node.figures.servers_up.value(), 0);
    primary.run();
    eventually("the server is there again", || node.publish("doc:1", [1]).is_ok());

    let unknown = "mode = \"sentinel\"\nsentinel_master = \"other\"\ntimeout_ms = 2000";
    let error = Node::with(&config(&urls, unknown)).err().expect("the one that answers does not know it");
    assert!(error.to_string().contains("broker.redis.sentinel_master"), "{error}");
}

#[test]
fn a_slot_that_moves_to_another_server_takes_its_rooms_along() {
    let Some(program) = program() else { return };
    let cluster = Cluster::start(&program);
    let start = || Node::with(&config(&cluster.url(), "mode = \"cluster\"")).unwrap_or_else(|error| panic!("{error}"));
    let (mut one, mut two) = (start(), start());
    // A room of the second server.
    let [_, from, to] = &cluster.primaries[..] else { panic!("three") };
    let name = of_second().next().expect("there are many");
    two.follow(&name);
    one.publish(&name, 0..3).expect("published");
    two.until_seq(&name, 3);
    let before = two.room(&name);

    let slot = slot_of(name.as_bytes());
    move_slot(slot, from, to);
    one.publish(&name, [3]).expect("published");
    two.until_seq(&name, 4);
    let after = two.room(&name);
    assert_eq!((after.epoch(), after.gaps, after.tags()), (before.epoch(), before.gaps, vec![0, 1, 2, 3]));
    one.publish(&name, [4]).expect("published");
    two.until_seq(&name, 5);
    let keys: Vec<String> = to.command(&["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), "100"]);
    assert!(keys.iter().any(|key| key.ends_with(":log")), "{keys:?}");
}

/// A server that ends a subscription because the slot is another's says it in the form of an answer.
#[test]
fn slots_that_move_leave_every_answer_with_what_was_asked() {
    const ROOMS: usize = 24;
    // So often each room's slot moves at least, and so many events are published meanwhile.
    const ROUNDS: usize = 3;
    const EVENTS: usize = ROOMS * 10;
    let Some(program) = program() else { return };
    let cluster = Cluster::start(&program);
    let of_cluster = config(&cluster.url(), "mode = \"cluster\"\ntimeout_ms = 3000");
    let start = || Node::with(&of_cluster).unwrap_or_else(|error| panic!("{error}"));
    let (mut one, mut two) = (start(), start());
    let names: Vec<String> = of_second().take(ROOMS).collect();
    for name in &names {
        one.follow(name);
        two.follow(name);
    }
    // Each event with the number that it was acknowledged with.
    let mut acknowledged: Vec<(usize, u64, u64)> = Vec::new();
    let mut tag = 0;
    let is_enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            let [_, second, third] = &cluster.primaries[..] else { panic!("three") };
            let mut round = 0;
            while round < ROUNDS || !is_enough.load(Ordering::SeqCst) {
                let (from, to) = if round % 2 == 0 { (second, third) } else { (third, second) };
                for name in &names {
                    move_slot(slot_of(name.as_bytes()), from, to);
                }
                round += 1;
            }
        });
        while !mover.is_finished() {
            let mut pending = Vec::new();
            for (room, name) in names.iter().enumerate() {
                tag += 1;
                // Some of what is asked is where the room was, and where it is read.
                two.ask(name);
                pending.push((room, tag, one.submit(name, [tag])));
            }
            for (room, tag, number) in pending {
                if let Ok(numbers) = one.answer(number) {
                    acknowledged.push((room, tag, numbers.events[0].seq));
                }
            }
            two.take();
            is_enough.store(acknowledged.len() >= EVENTS, Ordering::SeqCst);
        }
        mover.join().expect("the slots are moved");
    });
    // Nothing is published any more that would show that something is missing.
    for (room, tag, seq) in acknowledged {
        for node in [&mut one, &mut two] {
            node.until("what was acknowledged comes", |node| node.rooms[&names[room]].seq() >= seq);
            let told = &node.rooms[&names[room]];
            assert_eq!(told.gaps, 1, "{}", names[room]);
            let at = told.events.len() as u64 - 1 - (told.seq() - seq);
            assert_eq!(told.tags()[at as usize], tag, "{} has another event at {seq}", names[room]);
        }
    }
    assert!(one.figures.reconnects.value() + two.figures.reconnects.value() < 5, "the links are what they were");
}

/// Power is lost, or a machine stops: nothing says that a connection has ended.
#[test]
fn a_server_of_a_cluster_that_falls_silent_keeps_no_event_from_those_who_follow_its_rooms() {
    let Some(program) = program() else { return };
    let cluster = Cluster::start(&program);
    let start = || Node::with(&config(&cluster.url(), "mode = \"cluster\"")).unwrap_or_else(|error| panic!("{error}"));
    let (mut one, mut two) = (start(), start());
    let is_of_first = |name: &String| slot_of(name.as_bytes()) < 16_384 / 3;
    let name = (0..).map(|room| format!("doc:{room}")).find(is_of_first).expect("there are many");
    for node in [&mut one, &mut two] {
        node.follow(&name);
    }
    one.publish(&name, [1]).expect("published");
    for node in [&mut one, &mut two] {
        node.until_seq(&name, 1);
    }
    eventually("the replica has it", || offset(&cluster.replica) == offset(&cluster.primaries[0]));
    cluster.primaries[0].freeze();
    eventually("the replica takes over", || {
        let info: String = cluster.replica.command(&["CLUSTER", "INFO"]);
        let replication: String = cluster.replica.command(&["INFO", "replication"]);
        info.contains("cluster_state:ok") && replication.contains("role:master")
    });
    // What one that starts now publishes is the last that there is.
    let mut late = start();
    eventually("all others know of it", || late.publish(&name, [2]).is_ok());
    for node in [&mut one, &mut two] {
        node.until_seq(&name, 2);
        assert_eq!((node.room(&name).tags(), node.room(&name).gaps), (vec![1, 2], 1));
    }
    cluster.primaries[0].thaw();
}

#[test]
fn a_frozen_server_of_a_cluster_holds_up_none_of_the_others() {
    const ROOMS: u64 = 30;
    let Some(program) = program() else { return };
    let cluster = Cluster::start(&program);
    let start = || Node::with(&config(&cluster.url(), "mode = \"cluster\"")).unwrap_or_else(|error| panic!("{error}"));
    let (mut one, mut two) = (start(), start());
    let frozen = &cluster.primaries[2];
    let names: Vec<String> = (0..ROOMS).map(|room| format!("doc:{room}")).collect();
    let is_frozen = |name: &str| {
        let slot: u32 = cluster.primaries[1].command(&["CLUSTER", "KEYSLOT", &format!("ringhub:{{{name}}}:log")]);
        slot >= 16_384 * 2 / 3
    };
    let (of_frozen, others): (Vec<String>, Vec<String>) = names.into_iter().partition(|name| is_frozen(name));
    assert!(of_frozen.len() > 3 && others.len() > 3);
    for name in of_frozen.iter().chain(&others) {
        two.follow(name);
    }
    frozen.freeze();
    let pending: Vec<u64> = of_frozen.iter().map(|name| one.submit(name, [0])).collect();
    for tag in 0..20 {
        for name in &others {
            one.publish(name, [tag]).expect("its server is well");
        }
    }
    for name in &others {
        two.until_seq(name, 20);
        assert_eq!(two.room(name).tags(), (0..20).collect::<Vec<_>>());
    }
    for number in pending {
        one.answer(number).expect_err("nobody takes it");
    }
    frozen.thaw();
    for name in &of_frozen {
        two.until("it is taken again", |_| one.publish(name, [1]).is_ok());
        two.until("and comes", |node| node.room(name).tags().last() == Some(&1));
        assert_eq!(two.room(name).gaps, 1, "{name}");
    }
}

/// More than may be on their way at a time, to one server of several or to all of them.
#[test]
fn many_rooms_of_a_frozen_server_of_a_cluster_hold_up_none_of_the_others() {
    const ROOMS: usize = 5000;
    const TIMEOUT: Duration = Duration::from_secs(3);
    let Some(program) = program() else { return };
    let cluster = Cluster::start(&program);
    let more = "mode = \"cluster\"\ntimeout_ms = 3000";
    let mut node = Node::with(&config(&cluster.url(), more)).unwrap_or_else(|error| panic!("{error}"));
    let of_third = |name: &String| slot_of(name.as_bytes()) >= 16_384 * 2 / 3;
    let frozen: Vec<String> = (0..).map(|room| format!("doc:{room}")).filter(of_third).take(ROOMS).collect();
    let well = (0..).map(|room| format!("doc:{room}")).find(|name| !of_third(name)).expect("there are many");
    node.publish(&well, [0]).expect("its server is well");
    node.publish(&frozen[0], [0]).expect("so is its");
    let third = &cluster.primaries[2];
    third.freeze();

    // Half are asked for, half are published to.
    let pending: Vec<u64> = frozen[..ROOMS / 2].iter().map(|name| node.submit(name, [1])).collect();
    frozen[ROOMS / 2..].iter().for_each(|name| node.ask(name));
    let of_well = |node: &mut Node, tag: u64| {
        let begun = Instant::now();
        node.publish(&well, [tag]).expect("its server is well");
        assert!(begun.elapsed() < TIMEOUT / 3, "{:?}", begun.elapsed());
    };
    for tag in 1..20 {
        of_well(&mut node, tag);
    }
    for number in pending {
        node.answer(number).expect_err("nobody takes it");
    }
    node.until("it is known to fail", |node| node.figures.primaries_failing.value() == 1);

    // From here on what is for the server is refused at once, and nobody else is held up.
    let begun = Instant::now();
    let mut tag = 20;
    while begun.elapsed() < 2 * TIMEOUT {
        tag += 1;
        let asked = Instant::now();
        let tried: Vec<u64> = frozen[..100].iter().map(|name| node.submit(name, [tag])).collect();
        of_well(&mut node, tag);
        node.until("all are refused", |node| tried.iter().all(|number| node.answers.contains_key(number)));
        assert!(asked.elapsed() < TIMEOUT / 3, "{:?}", asked.elapsed());
        node.wait(Duration::from_millis(50));
    }
    node.until("all who asked for a room are told", |node| {
        frozen[ROOMS / 2..].iter().all(|name| node.rooms.get(name).is_some_and(|room| room.refused > 0))
    });

    third.thaw();
    node.until("it works again", |node| node.figures.primaries_failing.value() == 0);
    // Once, or once more where it was not yet what it should be.
    assert!((1..=2).contains(&node.figures.reconnects.value()), "the links to the others are what they were");
    node.until("all of its rooms are followed", |node| {
        frozen[ROOMS / 2..].iter().all(|name| node.rooms[name].followed > 0)
    });
    frozen[..100].iter().for_each(|name| drop(node.publish(name, [3]).expect("its server is well")));
}

#[test]
fn replicas_are_counted_at_the_server_that_has_the_room() {
    let Some(program) = program() else { return };
    let cluster = Cluster::start(&program);
    let more = "mode = \"cluster\"\nreplicas_min = 1\ntimeout_ms = 3000";
    let mut node = Node::with(&config(&cluster.url(), more)).unwrap_or_else(|error| panic!("{error}"));
    let (mut safe, mut unsafe_) = (0, 0);
    for room in 0..8 {
        let name = format!("doc:{room}");
        let slot: u32 = cluster.primaries[0].command(&["CLUSTER", "KEYSLOT", &format!("ringhub:{{{name}}}:log")]);
        let number = node.submit(&name, [1]);
        if slot < 16_384 / 3 {
            node.answer(number).expect("its replica has it");
            safe += 1;
        } else {
            let refused = node.answer(number).expect_err("its server has no replica");
            assert_eq!(&*refused.message, ringhub::hub::brokered::IN_DOUBT);
            unsafe_ += 1;
        }
    }
    assert!(safe > 0 && unsafe_ > 0, "{safe} and {unsafe_}");
}
