//! How long does it take to know what a client wants? From the text of a message to a command whose parts borrow from it.
//!
//! A figure includes the copy of the text that stands for the receive buffer, since parsing changes the bytes it is given.
//! It says nothing about carrying the command out: permissions, limits and rooms are not asked.

use std::hint::black_box;

use criterion::measurement::Measurement;
use criterion::{Criterion, Throughput};
use ringhub::wire::json::Scratch;
use ringhub::wire::native::parse;

use crate::{DATA, KIND, ROOM};

pub fn bench<M: Measurement + 'static>(c: &mut Criterion<M>) {
    let data = std::str::from_utf8(DATA).expect("it is text");
    let publish = format!(r#"{{"type":"publish","id":42,"data":{{"room":"{ROOM}","type":"{KIND}","data":{data}}}}}"#);
    let large = "x".repeat(16 * 1024);
    let large =
        format!(r#"{{"type":"publish","data":{{"room":"{ROOM}","type":"{KIND}","data":{{"text":"{large}"}}}}}}"#);
    let filters = r#"{"confidence_level":{"min":0.8,"max":1},"status":{"in":["failed","blocked"]}}"#;
    let types = r#"["workflow.failed","workflow.progress"]"#;
    let subscribe = format!(
        r#"{{"type":"subscribe","id":"s-1","data":{{"room":"{ROOM}","types":{types},"filters":{filters},"since":{{"last":10}}}}}}"#
    );
    let rooms: Vec<String> = (0..100).map(|number| format!("\"project:{number}\"")).collect();
    let many = format!(r#"{{"type":"subscribe","id":1,"data":{{"rooms":[{}]}}}}"#, rooms.join(","));
    let ping = r#"{"type":"ping","id":1,"data":{"sent_at":1767225600123}}"#.to_owned();

    let mut group = c.benchmark_group("command");
    for (name, text) in [
        ("ping", ping),
        ("publish", publish),
        ("publish, 16 KiB", large),
        ("subscribe with filters", subscribe),
        ("subscribe to 100 rooms", many),
    ] {
        let mut scratch = Scratch::new(64);
        let mut received = Vec::with_capacity(text.len());
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                received.clear();
                received.extend_from_slice(black_box(text.as_bytes()));
                parse(&mut scratch, &mut received, |parsed| black_box(&parsed).command.is_ok())
            });
        });
        received.clear();
        received.extend_from_slice(text.as_bytes());
        assert!(parse(&mut scratch, &mut received, |parsed| parsed.command.is_ok()), "{name} is a command");
    }
    group.finish();
}
