//! What does it cost to make an event's frame, which is done once however many receive it? Its stamp (id and time), and
//! the envelope around the publisher's data; and an answer to one client.
//!
//! The buffer is kept, as a turn's batch keeps it: growing it is not in the figures. Nor is sealing (`fan_out` has it).

use std::hint::black_box;

use criterion::measurement::Measurement;
use criterion::{Criterion, Throughput};
use ringhub::hub::ids::Ids;
use ringhub::wire::envelope::{self, Event, Stamp, rfc3339, write_event};
use ringhub::wire::native::Reference;

use crate::{DATA, KIND, ROOM};

pub fn bench<M: Measurement + 'static>(c: &mut Criterion<M>) {
    let mut group = c.benchmark_group("envelope");
    let mut ids = Ids::new([1, 2]);
    group.bench_function("stamp", |b| b.iter(|| ids.stamp(black_box(1_767_225_600_000)).id));

    let stamp = Stamp { id: [b'0'; 36], timestamp: rfc3339(0) };
    let large = format!("\"{}\"", "x".repeat(16 * 1024));
    for (name, data) in [("event", DATA), ("event, 16 KiB", large.as_bytes())] {
        let event = Event { room: ROOM, kind: KIND, seq: 123_456, data };
        let mut out = Vec::with_capacity(64 * 1024);
        group.throughput(Throughput::Bytes(data.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                out.clear();
                write_event(&mut out, &stamp, black_box(&event)).frame_bytes
            });
        });
    }

    let reference = Reference::Number(42);
    let (mut payload, mut out) = (Vec::with_capacity(1024), Vec::with_capacity(1024));
    group.throughput(Throughput::Elements(1));
    group.bench_function("answer", |b| {
        b.iter(|| {
            out.clear();
            envelope::begin(&mut payload, "pong", &stamp, Some(black_box(&reference)));
            payload.extend_from_slice(b"{}");
            envelope::finish(&mut payload, &mut out);
        });
    });
    group.finish();
}
