//! What do Socket.IO's packets cost beside the native protocol's messages? Reading an event up to its arguments (the
//! commands' own parsing is in `command`), writing an event's frame, which is done once per room, namespace and turn, and
//! a polling client's body.
//!
//! Reading includes the copy that stands for the receive buffer, since parsing changes the bytes it is given.

use std::hint::black_box;

use criterion::measurement::Measurement;
use criterion::{Criterion, Throughput};
use ringhub::wire::engineio::{Packet, Payload};
use ringhub::wire::json::Scratch;
use ringhub::wire::socketio::{Assembler, Header, Kind, event_payload, packet_frame, with_event};

use crate::{DATA, KIND, ROOM};

const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Reads a body and gives the number of events in it.
fn events(body: &mut [u8], assembler: &mut Assembler, scratch: &mut Scratch) -> usize {
    let mut events = 0;
    let mut spliced = Vec::new();
    for packet in Payload::new(body).expect("text") {
        match packet.expect("a packet") {
            Packet::Text { data, .. } => {
                if let Some(packet) = assembler.text(data, MESSAGE_BYTES_MAX).expect("a packet") {
                    events +=
                        with_event(scratch, packet.payload, |event| event.map_or(0, |event| event.arguments().count()));
                }
            }
            Packet::Binary(data) => {
                if let Some(mut assembled) = assembler.binary(data, MESSAGE_BYTES_MAX).expect("announced") {
                    let (packet, attachments) = assembled.parts();
                    attachments.splice(packet.payload, &mut spliced).expect("each once");
                    events +=
                        with_event(scratch, &mut spliced, |event| event.map_or(0, |event| event.arguments().count()));
                }
            }
        }
    }
    events
}

pub fn bench<M: Measurement + 'static>(c: &mut Criterion<M>) {
    let mut group = c.benchmark_group("socketio");
    let data = std::str::from_utf8(DATA).expect("it is text");
    let publish = format!(r#"42/ws,12["publish",{{"room":"{ROOM}","type":"{KIND}","data":{data}}}]"#);
    let sixteen = vec![publish.as_str(); 16].join("\x1e");
    let attached = format!(r#"451-["upload",{{"_placeholder":true,"num":0}}]{}b{}"#, "\x1e", "QUJD".repeat(4096));
    for (name, body, count) in
        [("read an event", publish, 1), ("read a body of 16", sixteen, 16), ("read 12 KiB attached", attached, 1)]
    {
        let (mut assembler, mut scratch) = (Assembler::default(), Scratch::new(64));
        let mut received = Vec::with_capacity(body.len());
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                received.clear();
                received.extend_from_slice(black_box(body.as_bytes()));
                assert_eq!(events(&mut received, &mut assembler, &mut scratch), count);
            });
        });
    }

    let event = format!(
        r#"{{"type":"{KIND}","id":"{:036}","timestamp":"2026-01-01T00:00:00.000Z","room":"{ROOM}","seq":123456,"data":{data}}}"#,
        0
    );
    let header = Header::new(Kind::Event, "/ws");
    let mut out = Vec::with_capacity(1024);
    group.throughput(Throughput::Bytes(event.len() as u64));
    group.bench_function("write an event", |b| {
        b.iter(|| {
            out.clear();
            packet_frame(&mut out, &header, &event_payload(KIND, black_box(event.as_bytes())));
        });
    });
    group.finish();
}
