//! Figures: how much one Redis carries, and what the way through it costs. Run by hand, built with optimisation:
//! `cargo test --release --test broker measure -- --ignored --nocapture --test-threads 1`.

use std::time::{Duration, Instant};

use ringhub::hub::brokered::ToBroker;

use super::support::{Node, Redis, config, event, program, tag_of};

/// Events of a submission.
const BATCH: u64 = 50;

fn names(rooms: u64) -> Vec<String> {
    (0..rooms).map(|room| format!("doc:{room}")).collect()
}

#[test]
#[ignore = "a measurement"]
fn measure_events_in_batches() {
    const ROOMS: u64 = 64;
    const EVENTS: u64 = 1_000_000;
    let Some(program) = program() else { return };
    let redis = Redis::start(&program, &[]);
    let mut publisher = Node::start(&redis.url());
    publisher.keep.events_max = 1000;
    // The other node: follows all, in a thread of its own.
    let url = redis.url();
    let follower = std::thread::spawn(move || {
        let mut node = Node::start(&url);
        for name in names(ROOMS) {
            node.follow(&name);
        }
        node.until("all events come", |node| node.rooms.values().map(|room| room.seq()).sum::<u64>() >= EVENTS);
        assert!(node.rooms.values().all(|room| room.gaps == 1), "none is missing");
        node.figures.read()
    });
    let names = names(ROOMS);
    let channels: Vec<String> = names.iter().map(|name| format!("ringhub:{{{name}}}:events")).collect();
    super::support::eventually("all rooms are followed", || {
        let mut words = vec!["PUBSUB", "NUMSUB"];
        words.extend(channels.iter().map(String::as_str));
        redis.command::<Vec<(String, u64)>>(&words).iter().all(|(_, count)| *count == 1)
    });
    let (started, cpu) = (Instant::now(), redis.cpu_seconds());
    let (mut sent, mut answered) = (0, 0);
    while answered < EVENTS / BATCH {
        // As many on their way as there are rooms.
        while sent < EVENTS / BATCH && sent - answered < ROOMS {
            publisher.submit(&names[(sent % ROOMS) as usize], sent * BATCH..(sent + 1) * BATCH);
            sent += 1;
        }
        publisher.until("one is answered", |node| !node.answers.is_empty());
        for (_, outcome) in publisher.answers.drain() {
            outcome.expect("it is published");
            answered += 1;
        }
    }
    let figures = follower.join().expect("it has all");
    let (took, cpu) = (started.elapsed().as_secs_f64(), redis.cpu_seconds() - cpu);
    eprintln!(
        "{EVENTS} events with about 100 bytes of data in batches of {BATCH}, in {ROOMS} rooms, to one other node: {:.0}/s; \
         Redis used {cpu:.2} s of a core: {:.0} events a second and core; {} holes",
        EVENTS as f64 / took,
        EVENTS as f64 / cpu,
        figures.holes,
    );
}

#[test]
#[ignore = "a measurement"]
fn measure_latency() {
    const ROOMS: u64 = 100;
    const EVENTS: u64 = 10_000;
    const PER_S: u64 = 1000;
    let Some(program) = program() else { return };
    let redis = Redis::start(&program, &[]);
    let mut publisher = Node::with(&config(&redis.url(), "")).expect("it starts");
    let names = names(ROOMS);
    let (ready, is_ready) = std::sync::mpsc::channel();
    let url = redis.url();
    let of_thread = names.clone();
    let follower = std::thread::spawn(move || {
        let mut node = Node::start(&url);
        for name in &of_thread {
            node.follow(name);
        }
        ready.send(()).expect("somebody waits");
        let mut came = vec![None; EVENTS as usize];
        let mut missing = EVENTS;
        while missing > 0 {
            node.until("something comes", |node| node.rooms.values().any(|room| !room.events.is_empty()));
            let now = Instant::now();
            for room in node.rooms.values_mut() {
                for event in room.events.drain(..) {
                    came[tag_of(&event) as usize] = Some(now);
                    missing -= 1;
                }
            }
        }
        came
    });
    is_ready.recv().expect("it is ready");
    let started = Instant::now();
    let mut sent = Vec::new();
    let mut acknowledged = vec![None; EVENTS as usize];
    for tag in 0..EVENTS {
        let due = started + Duration::from_micros(tag * 1_000_000 / PER_S);
        while Instant::now() < due {
            let left = due.saturating_duration_since(Instant::now());
            publisher.wait(left);
            let now = Instant::now();
            for (number, outcome) in publisher.answers.drain() {
                outcome.expect("it is published");
                acknowledged[number as usize - 1] = Some(now);
            }
        }
        sent.push(Instant::now());
        publisher.submit_events(&names[(tag % ROOMS) as usize], vec![event(1, tag, None)]);
    }
    let came = follower.join().expect("it has all");
    let mut times: Vec<Duration> =
        sent.iter().zip(&came).map(|(sent, came)| came.expect("it came").duration_since(*sent)).collect();
    times.sort_unstable();
    let mut answers: Vec<Duration> =
        sent.iter().zip(&acknowledged).filter_map(|(sent, at)| Some(at.as_ref()?.duration_since(*sent))).collect();
    answers.sort_unstable();
    let at = |times: &[Duration], permille: usize| times[(times.len() - 1) * permille / 1000];
    eprintln!(
        "{PER_S} events/s from one node to another: median {:?}, 99 % {:?}; acknowledged: median {:?}, 99 % {:?}",
        at(&times, 500),
        at(&times, 990),
        at(&answers, 500),
        at(&answers, 990),
    );
}

#[test]
#[ignore = "a measurement"]
fn measure_rooms_on_a_fresh_node() {
    const ROOMS: u64 = 10_000;
    let Some(program) = program() else { return };
    let redis = Redis::start(&program, &[]);
    let mut publisher = Node::start(&redis.url());
    let names = names(ROOMS);
    for part in names.chunks(500) {
        let numbers: Vec<u64> = part.iter().map(|name| publisher.submit(name, 0..10)).collect();
        for number in numbers {
            publisher.answer(number).expect("it is published");
        }
    }
    let mut node = Node::start(&redis.url());
    let started = Instant::now();
    for part in names.chunks(500) {
        node.give(
            part.iter().map(|name| ToBroker::Follow { room: node.name(name), from: None, claim: None }).collect(),
        );
    }
    node.until("all are followed", |node| node.rooms.len() as u64 == ROOMS);
    eprintln!("{ROOMS} rooms with 10 events each followed on a fresh node: {:?}", started.elapsed());
}
