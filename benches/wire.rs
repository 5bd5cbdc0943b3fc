//! What the codecs cost per request and per frame, without any socket.
//!
//! `decode` is sixteen frames of the given payload in one receive, `encode` is one frame, `unmask` the kernel alone;
//! `deflate` and `inflate` are one message of telemetry; `header/tungstenite` is the alternative to the header parser in
//! `wire::ws`. The figures say nothing about system calls, which dominate.
//!
//! `cargo bench --bench wire`

mod instructions;

use std::{hint::black_box, io::Cursor};

use criterion::measurement::Measurement;
use criterion::{BatchSize, Criterion, Throughput};
use ringhub::wire::{
    deflate::{Deflater, InflateBounds, Inflater},
    http::parse_head,
    mask::unmask,
    upgrade::switching_protocols,
    ws::{Accepts, Decoder, Input, Opcode, header_bytes_of, text_frame},
};

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// What Chromium sends through nginx.
const REQUEST: &[u8] = b"GET /ws?client_id=browser-1 HTTP/1.1\r\nHost: hub.example.com\r\nConnection: upgrade\r\n\
    X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\nPragma: no-cache\r\nCache-Control: no-cache\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36\r\n\
    Upgrade: websocket\r\nOrigin: https://app.example.com\r\nSec-WebSocket-Version: 13\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-US,en;q=0.9\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\
    Sec-WebSocket-Protocol: ringhub.v1.json, bearer.eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl\r\n\r\n";

/// A masked text frame of ASCII.
fn client_frame(payload_bytes: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    text_frame(&vec![b'a'; payload_bytes], &mut frame);
    let payload_at = frame.len() - payload_bytes;
    frame[1] |= 0x80;
    frame.splice(payload_at..payload_at, MASK);
    unmask(&mut frame[payload_at + 4..], MASK, 0);
    frame
}

fn upgrade<M: Measurement + 'static>(c: &mut Criterion<M>) {
    let mut group = c.benchmark_group("upgrade");
    group.bench_function("parse", |b| {
        b.iter(|| parse_head(black_box(REQUEST), 16 * 1024).unwrap().unwrap().upgrade().unwrap().protocols.len());
    });
    let mut out = Vec::with_capacity(512);
    group.bench_function("answer", |b| {
        b.iter(|| {
            out.clear();
            switching_protocols(black_box("dGhlIHNhbXBsZSBub25jZQ=="), Some("ringhub.v1.json"), None, &mut out);
        });
    });
    group.finish();
}

fn mask<M: Measurement + 'static>(c: &mut Criterion<M>) {
    let mut group = c.benchmark_group("unmask");
    for size in [64, 1024, 64 * 1024] {
        let mut payload = vec![b'a'; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(size.to_string(), |b| b.iter(|| unmask(black_box(&mut payload), black_box(MASK), 0)));
    }
    group.finish();
}

fn decode<M: Measurement + 'static>(c: &mut Criterion<M>) {
    let mut group = c.benchmark_group("decode");
    for size in [16, 128, 1024, 64 * 1024] {
        let frame = client_frame(size);
        // Sixteen frames in one receive, as under load.
        group.throughput(Throughput::Elements(16));
        group.bench_function(format!("{size}x16"), |b| {
            let stream = frame.repeat(16);
            let mut decoder = Decoder::new();
            b.iter_batched_ref(
                || stream.clone(),
                |stream| {
                    let mut input = Input::new(stream);
                    let mut messages = 0;
                    while let Some(message) = decoder.next(&mut input, Accepts::plain(MESSAGE_BYTES_MAX)).unwrap() {
                        black_box(&message);
                        messages += 1;
                    }
                    assert_eq!(messages, 16);
                },
                BatchSize::SmallInput,
            );
        });
    }
    // A large message that comes in pieces of a receive buffer.
    let frame = client_frame(100_000);
    group.throughput(Throughput::Bytes(frame.len() as u64));
    group.bench_function("100000 in 4096", |b| {
        let mut decoder = Decoder::new();
        b.iter_batched_ref(
            || frame.clone(),
            |frame| {
                for piece in frame.chunks_mut(4096) {
                    let mut input = Input::new(piece);
                    while let Some(message) = decoder.next(&mut input, Accepts::plain(MESSAGE_BYTES_MAX)).unwrap() {
                        black_box(&message);
                    }
                }
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// One whole empty frame, the smallest step of the decoder, against the header parser of `tungstenite` alone.
fn header<M: Measurement + 'static>(c: &mut Criterion<M>) {
    let mut group = c.benchmark_group("header");
    let mut empty = client_frame(0);
    group.bench_function("ringhub, whole empty frame", |b| {
        let mut decoder = Decoder::new();
        b.iter(|| {
            let mut input = Input::new(black_box(&mut empty));
            decoder.next(&mut input, Accepts::plain(MESSAGE_BYTES_MAX)).unwrap().is_some()
        });
    });
    let empty = client_frame(0);
    group.bench_function("tungstenite", |b| {
        b.iter(|| tungstenite::protocol::frame::FrameHeader::parse(&mut Cursor::new(black_box(&empty))).unwrap());
    });
    group.finish();
}

fn encode<M: Measurement + 'static>(c: &mut Criterion<M>) {
    let mut group = c.benchmark_group("encode");
    for size in [128, 1024, 64 * 1024] {
        let payload = vec![b'a'; size];
        let mut out = Vec::with_capacity(size + 16);
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(size.to_string(), |b| {
            b.iter(|| {
                out.clear();
                text_frame(black_box(&payload), &mut out);
            });
        });
    }
    group.finish();
}

/// An event as telemetry has it, of about that size.
fn event(size: usize) -> Vec<u8> {
    let mut text = String::from(
        r#"{"type":"telemetry.sample","id":"01a1fd55-6f3c-7c1e-9d21-5b8f0c6a2e41","room":"project:42","data":{"samples":["#,
    );
    let mut number = 17u32;
    while text.len() + 90 < size {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let (status, host) = (["running", "idle", "failed"][number as usize % 3], number % 64);
        text.push_str(&format!(
            r#"{{"host":"node-{host}.example.com","status":"{status}","load":0.{},"at":{number}}},"#,
            number % 997
        ));
    }
    text.pop();
    text.push_str("]}}");
    text.into_bytes()
}

/// One message: what a shard pays once for all who agreed to the same, and once for each message that comes compressed.
fn deflate<M: Measurement + 'static>(c: &mut Criterion<M>) {
    let mut group = c.benchmark_group("deflate");
    for size in [256, 1024, 16 * 1024] {
        let message = event(size);
        group.throughput(Throughput::Bytes(message.len() as u64));
        for level in [1, 3, 6, 9] {
            let mut deflater = Deflater::new(level);
            let mut out = Vec::new();
            deflater.frame(Opcode::Text, &message, 15, &mut out);
            let percent = out.len() * 100 / message.len();
            group.bench_function(format!("{size}, level {level}, to {percent} %"), |b| {
                b.iter(|| {
                    out.clear();
                    deflater.frame(Opcode::Text, black_box(&message), 15, &mut out)
                });
            });
        }
    }
    group.finish();
    let mut group = c.benchmark_group("inflate");
    for size in [256, 1024, 16 * 1024] {
        let message = event(size);
        let mut payload = Vec::new();
        assert!(Deflater::new(6).frame(Opcode::Text, &message, 15, &mut payload));
        payload.drain(..header_bytes_of(&payload));
        let bounds = InflateBounds { message_bytes_max: MESSAGE_BYTES_MAX, ratio_max: 200 };
        let mut inflater = Inflater::default();
        group.throughput(Throughput::Bytes(message.len() as u64));
        group.bench_function(size.to_string(), |b| {
            b.iter(|| inflater.message(black_box(&payload), true, None, bounds).map(|message| message.len()));
        });
    }
    group.finish();
}

benches!("wire", counted: [upgrade, mask, decode, header, encode], timed: [deflate]);
