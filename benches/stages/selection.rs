//! What does it cost that subscribers may want a part of a room's events? Compiling what one asks for (once per
//! subscribe), and choosing from a batch of sixteen events (once per batch and *different* selection, however many share
//! it).
//!
//! A choice by data includes parsing each event's data, a choice that takes some includes copying their frames. Nothing
//! here depends on the number of subscribers.

use std::hint::black_box;
use std::sync::Arc;

use criterion::measurement::Measurement;
use criterion::{Criterion, Throughput};
use ringhub::hub::batch::{Batch, FrameMemory, OpenBatch};
use ringhub::hub::name::NameHasher;
use ringhub::hub::selection::Selection;
use ringhub::wire::envelope::{Event, Stamp, rfc3339};
use ringhub::wire::json::Scratch;
use ringhub::wire::native::Wanted;

use crate::{DATA, KIND, ROOM};

const EVENTS: u64 = 16;
const CONDITIONS_MAX: usize = 32;

/// Half of the events are of another type and status.
fn batch(memory: &FrameMemory) -> Arc<Batch> {
    let stamp = Stamp { id: [b'0'; 36], timestamp: rfc3339(0) };
    let other = String::from_utf8_lossy(DATA).replace("failed", "passed");
    let mut open = OpenBatch::default();
    for seq in 1..=EVENTS {
        let (kind, data) = if seq % 2 == 0 { (KIND, DATA) } else { ("workflow.completed", other.as_bytes()) };
        open.push(&stamp, &Event { room: ROOM, kind, seq, data }, None, 0);
    }
    Arc::new(open.seal(NameHasher::new(1).room(ROOM), memory, 0))
}

fn wanted(types: &[&str], filters: Option<&str>) -> Wanted {
    Wanted {
        types: types.iter().map(|&one| one.into()).collect(),
        filters: filters.map(|filters| filters.as_bytes().into()),
    }
}

pub fn bench<M: Measurement + 'static>(c: &mut Criterion<M>) {
    let mut group = c.benchmark_group("selection");
    let filters =
        r#"{"confidence_level":{"min":0.8,"max":1},"status":{"in":["failed","blocked"]},"name":{"prefix":"db-"}}"#;
    let ask = wanted(&[KIND], Some(filters));
    group.bench_function("compile", |b| b.iter(|| Selection::compile(black_box(&ask), CONDITIONS_MAX)));

    let memory = FrameMemory::default();
    let batch = batch(&memory);
    let mut scratch = Scratch::new(64);
    group.throughput(Throughput::Elements(EVENTS));
    for (name, wanted, chosen) in [
        ("types, all", wanted(&[KIND, "workflow.completed"], None), Some(16)),
        ("types, half", wanted(&[KIND], None), Some(8)),
        ("filter, all", wanted(&[], Some(r#"{"nested.attempt":{"max":3}}"#)), Some(16)),
        ("filter, half", wanted(&[], Some(filters)), Some(8)),
        ("filter, none", wanted(&[], Some(r#"{"status":"blocked"}"#)), None),
    ] {
        let selection = Selection::compile(&wanted, CONDITIONS_MAX).expect("it compiles").expect("it selects");
        let selected = batch.select(&selection, &mut scratch, &memory);
        assert_eq!(selected.map(|selected| selected.events.len()), chosen, "{name}");
        group.bench_function(name, |b| b.iter(|| black_box(&batch).select(&selection, &mut scratch, &memory)));
    }
    group.finish();
}
