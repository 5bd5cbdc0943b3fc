//! Everything at once: nodes that publish while links are cut, deaf and slow, and the server is killed and frozen. In the end,
//! what was acknowledged is everywhere once and in one order, what was refused is nowhere.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use ringhub::hub::brokered::IN_DOUBT;

use super::support::{Node, Proxy, Redis, config, program, tag_of};

const NODES: usize = 3;
const ROOMS: u64 = 4;
const LASTS: Duration = Duration::from_secs(6);

fn room(number: u64) -> String {
    format!("doc:{number}")
}

#[test]
fn whatever_breaks_what_is_acknowledged_is_everywhere_once_and_in_one_order() {
    let Some(program) = program() else { return };
    let seed =
        std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..1 << 32));
    eprintln!("SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut redis = Redis::start(&program, &["--appendonly", "yes", "--appendfsync", "always"]);
    let proxies: Vec<Proxy> = (0..NODES).map(|_| Proxy::start(redis.address())).collect();
    let mut nodes: Vec<Node> = proxies
        .iter()
        .map(|proxy| Node::with(&config(&proxy.url(), "timeout_ms = 800")).unwrap_or_else(|error| panic!("{error}")))
        .collect();
    for node in &mut nodes {
        (0..ROOMS).for_each(|number| node.follow(&room(number)));
    }
    // Of every submission: its node, its number there, its room and its tags.
    let mut submissions: Vec<(usize, u64, u64, Vec<u64>)> = Vec::new();
    let mut next_tag = 0;
    let started = Instant::now();
    while started.elapsed() < LASTS {
        let at = random.usize(..NODES);
        match random.u32(..1000) {
            0..15 => proxies[at].cut(),
            15..40 => proxies[at].cut_after(random.i64(0..3000)),
            40..45 => proxies[at].set_deaf(true),
            45..60 => proxies[at].set_deaf(false),
            60..62 => {
                redis.kill();
                redis.run();
            }
            62..64 => {
                redis.freeze();
                std::thread::sleep(Duration::from_millis(random.u64(50..1200)));
                redis.thaw();
            }
            64..70 => {
                // Its home begins anew.
                nodes[at].ask(&room(random.u64(..ROOMS)));
            }
            _ => {
                let tags: Vec<u64> = (next_tag..next_tag + random.u64(1..5)).collect();
                next_tag += tags.len() as u64;
                let number = random.u64(..ROOMS);
                let submitted = nodes[at].submit(&room(number), tags.iter().copied());
                submissions.push((at, submitted, number, tags));
            }
        }
        nodes.iter_mut().for_each(|node| node.wait(Duration::from_micros(300)));
    }

    // Peace. What is published then comes last, and everything else before it.
    proxies.iter().for_each(|proxy| proxy.set_deaf(false));
    proxies.iter().for_each(Proxy::cut);
    let mut fates: HashMap<u64, Result<u64, bool>> = HashMap::new();
    for (at, number, _, tags) in &submissions {
        match nodes[*at].answer(*number) {
            Ok(numbers) => {
                assert_eq!(numbers.events.len(), tags.len());
                fates.extend(tags.iter().zip(&numbers.events).map(|(tag, numbered)| (*tag, Ok(numbered.seq))));
            }
            Err(refused) => fates.extend(tags.iter().map(|tag| (*tag, Err(refused.message == IN_DOUBT)))),
        }
    }
    const LAST: u64 = 1 << 40;
    for number in 0..ROOMS {
        let publisher = &mut nodes[random.usize(..NODES)];
        publisher.until("there is a link", |node| node.figures.servers_up.value() == 1);
        let mut tries = 0;
        while publisher.publish(&room(number), [LAST + tries]).is_err() {
            tries += 1;
            assert!(tries < 100, "nobody takes it");
        }
    }
    for node in &mut nodes {
        for number in 0..ROOMS {
            node.until("the last one comes", |node| node.room(&room(number)).tags().last() >= Some(&LAST));
        }
    }
    let mut counts = (0, 0, 0);
    for number in 0..ROOMS {
        let name = room(number);
        let log = nodes[0].room(&name);
        for node in &nodes {
            let other = node.room(&name);
            assert_eq!(other.gaps, 1, "{name}: nothing is missing anywhere");
            assert_eq!(other.epoch(), log.epoch());
            assert_eq!(other.events, log.events, "{name}: all have the same");
        }
        let tags = log.tags();
        assert_eq!(tags.iter().collect::<HashSet<_>>().len(), tags.len(), "{name}: none twice");
        for (at, event) in log.events.iter().enumerate() {
            let tag = tag_of(event);
            if tag < LAST {
                match fates[&tag] {
                    Ok(seq) => assert_eq!(seq, at as u64 + 1, "{name}: the number that was told"),
                    Err(is_doubt) => assert!(is_doubt, "{name}: {tag} was refused, and is there"),
                }
            }
        }
        let there: HashSet<u64> = tags.into_iter().collect();
        for (_, _, _, tags) in submissions.iter().filter(|(_, _, of, _)| *of == number) {
            for tag in tags {
                match fates[tag] {
                    Ok(_) => {
                        assert!(there.contains(tag), "{name}: {tag} was acknowledged, and is not there");
                        counts.0 += 1;
                    }
                    Err(true) => counts.1 += 1,
                    Err(false) => counts.2 += 1,
                }
            }
        }
    }
    let figures: Vec<_> = nodes.iter().map(|node| node.figures.read()).collect();
    let sum = |figure: fn(&ringhub::broker::BrokerSnapshot) -> u64| figures.iter().map(figure).sum::<u64>();
    eprintln!(
        "{} acknowledged, {} in doubt, {} refused; {} reconnects, {} calls resent, {} holes",
        counts.0,
        counts.1,
        counts.2,
        sum(|figures| figures.reconnects),
        sum(|figures| figures.resent),
        sum(|figures| figures.holes),
    );
    assert!(counts.0 > 100, "something goes through");
}
