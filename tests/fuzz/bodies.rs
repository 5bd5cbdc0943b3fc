//! The bodies of the fuzz targets, which `tests/corpus.rs` also runs over the committed corpus.
//!
//! Each takes arbitrary bytes and panics when an invariant is broken.

// Each target uses one of them.
#![allow(dead_code)]

use std::net::IpAddr;

use ringhub::config::Config;
use ringhub::hub::{name::split, schema, selection::Selection};
use ringhub::ring::Now;
use ringhub::session::socketio::{AnswerTo, Credentials, Due, Engine, Heard, Terms};
use ringhub::session::stream::{Begins, StreamAsked};
use ringhub::wire::{
    base64,
    codes::ErrorCode,
    deflate::{Deflater, InflateBounds, Inflater, Window, plain},
    engineio::{self, PacketKind, Payload, PayloadWriter},
    envelope::{Event, Stamp, rfc3339, write_event},
    extensions::{DeflateTerms, agree},
    forwarded::client_address,
    http::{Head, parse_head},
    json::Scratch,
    mask::unmask,
    merge_patch, msgpack,
    native::{Command, Parsed, REFERENCE_BYTES_MAX, Reference, is_event_type, parse},
    outlet::Outlet,
    proxy::{self, Proxy},
    refusal::Refusal,
    socketio::{self, ATTACHMENTS_MAX, Assembled, Assembler, NAMESPACE_BYTES_MAX},
    sse,
    upgrade::{bearer_token, switching_protocols},
    variant::Variant,
    ws::{self, Accepts, Decoder, Input, Message, Opcode, ProtocolError},
};

const HEAD_BYTES_MAX: usize = 4096;
const MESSAGE_BYTES_MAX: usize = 2048;
const DEPTH_MAX: usize = 64;

/// A request's head: arriving in pieces it is judged as it is whole, everything it offers can be asked for, and a
/// refusal is an HTTP answer with a correct length.
pub fn upgrade(data: &[u8]) {
    let whole = parse_head(data, HEAD_BYTES_MAX);
    for end in 0..data.len().min(HEAD_BYTES_MAX) {
        match parse_head(&data[..end], HEAD_BYTES_MAX) {
            Ok(None) => {}
            Ok(Some(head)) => {
                let later = whole.as_ref().ok().and_then(Option::as_ref).expect("a head that was whole stays whole");
                assert_eq!((head.bytes, head.method, head.path), (later.bytes, later.method, later.path));
                break;
            }
            Err(early) => {
                let late = whole.as_ref().expect_err("what was refused is not accepted with more bytes");
                // Of several breaches the first to show is told, which may be another one in the whole.
                assert!([early, late.clone()].iter().all(|refusal| [400, 431].contains(&refusal.status)));
                break;
            }
        }
    }
    match &whole {
        Ok(None) => assert!(data.len() < HEAD_BYTES_MAX + 2),
        Ok(Some(head)) => check_head(head, data),
        Err(refusal) => check_refusal(refusal),
    }
    check_proxy(data);
}

fn check_head(head: &Head<'_>, data: &[u8]) {
    assert!(data[..head.bytes].ends_with(b"\r\n\r\n"));
    assert!(head.path.starts_with('/') || head.path == "*");
    let peer = IpAddr::from([10, 0, 0, 1]);
    assert_eq!(client_address(head, peer, |_| false), peer);
    client_address(head, peer, |address| address == peer);
    match head.upgrade() {
        Err(refusal) => check_refusal(&refusal),
        Ok(upgrade) => {
            assert!(head.wants_websocket() && !head.body_expected());
            let mut answer = Vec::new();
            switching_protocols(upgrade.key, upgrade.protocols.first().copied(), None, &mut answer);
            assert!(answer.ends_with(b"\r\n\r\n"));
            assert_eq!(answer.windows(4).filter(|bytes| bytes == b"\r\n\r\n").count(), 1);
            if let Err(refusal) = bearer_token(head, Some(&upgrade), Some("auth")) {
                check_refusal(&refusal);
            }
        }
    }
}

fn check_refusal(refusal: &Refusal) {
    let mut answer = Vec::new();
    refusal.response(&mut answer);
    let mut fields = [httparse::EMPTY_HEADER; 16];
    let mut parsed = httparse::Response::new(&mut fields);
    let Ok(httparse::Status::Complete(head_bytes)) = parsed.parse(&answer) else { panic!("the answer is no HTTP") };
    assert_eq!(parsed.code, Some(refusal.status));
    let length = parsed.headers.iter().find(|field| field.name == "Content-Length").map(|field| field.value);
    assert_eq!(length, Some((answer.len() - head_bytes).to_string().as_bytes()));
    assert!(serde_json::from_slice::<serde_json::Value>(&answer[head_bytes..]).is_ok());
}

/// A PROXY header, too, is the same whatever follows it, and incomplete until its last byte.
fn check_proxy(data: &[u8]) {
    let whole = proxy::parse(data);
    for end in 0..data.len().min(proxy::PROXY_BYTES_MAX) {
        match proxy::parse(&data[..end]) {
            Proxy::Incomplete => {}
            early => {
                assert_eq!(early, whole);
                break;
            }
        }
    }
    if let Proxy::Header { bytes, .. } = whole {
        assert!(bytes <= data.len() && bytes <= proxy::PROXY_BYTES_MAX);
    }
}

/// A request for a stream of events: whatever its query and headers are, it is read or refused with an answer, a cursor is
/// one mark for each room or none, and what was read is written the same. The rest of the bytes is an event's JSON: its
/// lines come out of the stream as they are.
pub fn events(data: &[u8]) {
    let mut config = Config::default();
    config.limits.stream_rooms_max = 5;
    config.cors.origins = vec!["https://*.example.com".to_owned(), "*".to_owned()];
    if let Ok(Some(head)) = parse_head(data, HEAD_BYTES_MAX) {
        match StreamAsked::read(&head, &config) {
            Err(refusal) => check_refusal(&refusal),
            Ok(asked) => {
                assert!((1..=5).contains(&asked.rooms.len()));
                if let Begins::After(marks) = &asked.begins {
                    assert_eq!(marks.len(), asked.rooms.len());
                    check_cursor(marks);
                }
                let mut answer = Vec::new();
                sse::write_head(&mut answer, asked.varies, asked.reader.as_ref());
                assert_eq!(answer.windows(4).filter(|bytes| bytes == b"\r\n\r\n").count(), 1);
                check_lines(data.get(head.bytes..).unwrap_or_default());
            }
        }
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(marks) = sse::parse_cursor(text, text.split('.').count())
    {
        assert_eq!(check_cursor(&marks), text, "a cursor has one text");
    }
}

/// A cursor's text, which is read as what it was written from.
fn check_cursor(marks: &[sse::Mark]) -> String {
    let mut line = Vec::new();
    sse::write_id(&mut line, marks.iter().copied());
    let text = String::from_utf8(line).expect("text").trim_start_matches("id: ").trim_end_matches('\n').to_owned();
    assert_eq!(sse::parse_cursor(&text, marks.len()).as_deref(), Some(marks));
    text
}

/// One event, whose data is put together again as the standard says.
fn check_lines(json: &[u8]) {
    let mut out = Vec::new();
    sse::write_notice(&mut out, "n", json);
    let fields = out.strip_prefix(b"event: n\n").and_then(|out| out.strip_suffix(b"\n\n")).expect("a notice");
    let lines: Vec<&[u8]> =
        fields.split(|byte| *byte == b'\n').map(|line| line.strip_prefix(b"data: ").expect("data")).collect();
    assert!(!lines.iter().any(|line| line.contains(&b'\r')));
    let mut expected = Vec::new();
    let mut bytes = json.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if byte == b'\r' {
            bytes.next_if_eq(&b'\n');
        }
        expected.push(if byte == b'\r' { b'\n' } else { byte });
    }
    assert_eq!(lines.join(&b'\n'), expected);
}

/// A stream of frames: cut anywhere it decodes to the same messages and the same error, memory stays in bounds, and
/// what was decoded survives being encoded and decoded again. The first byte chooses the cuts.
pub fn frames(data: &[u8]) {
    let Some((&seed, stream)) = data.split_first() else { return };
    for deflated in [false, true] {
        frames_accepting(seed, stream, Accepts { message_bytes_max: MESSAGE_BYTES_MAX, deflated });
    }
}

fn frames_accepting(seed: u8, stream: &[u8], accepts: Accepts) {
    let decode = |pieces: &mut [Vec<u8>]| decode(pieces, accepts);
    let whole = decode(&mut [stream.to_vec()]);
    let mut single: Vec<Vec<u8>> = stream.chunks(1).map(<[u8]>::to_vec).collect();
    assert_eq!(whole, decode(&mut single));
    let mut pieces: Vec<Vec<u8>> = cut(stream, seed);
    assert_eq!(whole, decode(&mut pieces));

    let mut again = Vec::new();
    for message in &whole.0 {
        encode_masked(message, [seed, 1, 2, 3], &mut again);
    }
    assert_eq!(decode(&mut cut(&again, seed)).0, whole.0);
}

/// What is offered as extensions, and compressed messages behind it: whatever is agreed on is within the terms, and what is
/// decompressed is within its bound, comes back when it is compressed again, and is the same when it is looked for in frames.
pub fn deflate(data: &[u8]) {
    let place = memchr(data, b'\n').unwrap_or(data.len());
    let (line, rest) = data.split_at(place);
    let terms = DeflateTerms { window_bits: 12, client_window_bits: 10 };
    let agreed = std::str::from_utf8(line).ok().and_then(|line| agree([line], terms).ok().flatten());
    let mut window = None;
    if let Some(agreed) = agreed {
        assert!((9..=12).contains(&agreed.window_bits) && agreed.client_window_bits <= 10);
        let mut told = Vec::new();
        agreed.write(&mut told);
        assert!(told.is_ascii());
        window = Some(Window::new(agreed.client_window_bits.max(8)));
    }
    let mut inflater = Inflater::default();
    let mut deflater = Deflater::new(1 + u32::from(data.first().copied().unwrap_or(0) % 9));
    let bounds = InflateBounds { message_bytes_max: MESSAGE_BYTES_MAX, ratio_max: 0 };
    // Messages of one client, one per line.
    for payload in rest.split(|byte| *byte == b'\n') {
        let Ok(message) = inflater.message(payload, false, window.as_mut(), bounds) else { continue };
        assert!(message.len() <= MESSAGE_BYTES_MAX);
        let message = message.to_vec();
        let mut frame = Vec::new();
        if deflater.frame(Opcode::Binary, &message, 9, &mut frame) {
            let mut expected = Vec::new();
            ws::binary_frame(&message, &mut expected);
            assert!(frame.len() < expected.len());
            assert_eq!(&plain(&frame)[..], &expected);
        }
    }
    plain(rest);
}

fn memchr(bytes: &[u8], wanted: u8) -> Option<usize> {
    bytes.iter().position(|byte| *byte == wanted)
}

#[derive(Debug, PartialEq, Eq)]
enum Owned {
    Data(Opcode, Vec<u8>),
    Deflated(bool, Vec<u8>),
    Close(Option<(u16, String)>),
}

/// All messages of a stream up to the close or the error.
fn decode(pieces: &mut [Vec<u8>], accepts: Accepts) -> (Vec<Owned>, Option<ProtocolError>) {
    let mut decoder = Decoder::new();
    let mut messages = Vec::new();
    for piece in pieces {
        let mut input = Input::new(piece);
        loop {
            match decoder.next(&mut input, accepts) {
                Ok(None) => break,
                Ok(Some(message)) => messages.push(owned(message)),
                Err(error) => return (messages, Some(error)),
            }
            if let Some(Owned::Close(_)) = messages.last() {
                return (messages, None);
            }
        }
        assert_eq!(input.remaining(), 0);
        assert!(decoder.spill_bytes() <= MESSAGE_BYTES_MAX + 512);
        assert!(decoder.is_mid_message() || decoder.spill_bytes() == 0);
    }
    (messages, None)
}

fn owned(message: Message<'_>) -> Owned {
    match message {
        Message::Text(text) => {
            assert!(std::str::from_utf8(text).is_ok() && text.len() <= MESSAGE_BYTES_MAX);
            Owned::Data(Opcode::Text, text.to_vec())
        }
        Message::Binary(bytes) => {
            assert!(bytes.len() <= MESSAGE_BYTES_MAX);
            Owned::Data(Opcode::Binary, bytes.to_vec())
        }
        Message::Deflated { is_text, payload } => {
            assert!(payload.len() <= MESSAGE_BYTES_MAX);
            Owned::Deflated(is_text, payload.to_vec())
        }
        Message::Ping(payload) => Owned::Data(Opcode::Ping, payload.to_vec()),
        Message::Pong(payload) => Owned::Data(Opcode::Pong, payload.to_vec()),
        Message::Close(close) => Owned::Close(close.map(|(code, reason)| (code, reason.to_owned()))),
    }
}

/// Pieces of varying length, from the seed.
fn cut(stream: &[u8], seed: u8) -> Vec<Vec<u8>> {
    let mut state = u32::from(seed) | 1;
    let mut rest = stream;
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let length = (1 + (state >> 24) as usize % (1 + usize::from(seed))).min(rest.len());
        let (piece, after) = rest.split_at(length);
        pieces.push(piece.to_vec());
        rest = after;
    }
    pieces
}

/// The server's encoding with the mask bit set and a mask put in: what a client would send.
fn encode_masked(message: &Owned, mask: [u8; 4], out: &mut Vec<u8>) {
    let mut frame = Vec::new();
    match message {
        Owned::Data(Opcode::Text, payload) => ws::text_frame(payload, &mut frame),
        Owned::Data(Opcode::Binary, payload) => ws::binary_frame(payload, &mut frame),
        Owned::Data(opcode, payload) => ws::control_frame(*opcode, payload, &mut frame),
        Owned::Deflated(is_text, payload) => {
            if *is_text {
                ws::text_frame(payload, &mut frame);
            } else {
                ws::binary_frame(payload, &mut frame);
            }
            frame[0] |= ws::RSV1;
        }
        Owned::Close(None) => ws::control_frame(Opcode::Close, b"", &mut frame),
        Owned::Close(Some((code, reason))) => ws::close_frame(*code, reason, &mut frame),
    }
    let header_bytes = match frame[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    frame[1] |= 0x80;
    out.extend_from_slice(&frame[..header_bytes]);
    out.extend_from_slice(&mask);
    unmask(&mut frame[header_bytes..], mask, 0);
    out.extend_from_slice(&frame[header_bytes..]);
}

/// A client's message: it is a command or a refusal whatever its text, the same however much was parsed before it, and
/// what was taken from it is what another parser finds there. A published event is spliced into a frame that is JSON.
pub fn commands(data: &[u8]) {
    // The WebSocket codec hands on nothing else.
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut scratch = Scratch::new(DEPTH_MAX);
    let first = parse(&mut scratch, &mut data.to_vec(), |parsed| {
        check_command(&parsed, text);
        format!("{parsed:?}")
    });
    let again = parse(&mut scratch, &mut data.to_vec(), |parsed| format!("{parsed:?}"));
    assert_eq!(first, again);
}

fn check_command(parsed: &Parsed<'_>, text: &str) {
    if let Some(Reference::Text(reference)) = &parsed.reference {
        assert!(reference.len() <= REFERENCE_BYTES_MAX);
    }
    let command = match &parsed.command {
        Ok(command) => command,
        Err(refused) => {
            // What is quoted of a message is clipped, so that a large one makes no large answer.
            assert!(!refused.message.is_empty() && refused.message.len() < 1024);
            assert!(refused.code != ErrorCode::BadJson || parsed.reference.is_none());
            return;
        }
    };
    // Another parser has the same text for JSON. It refuses numbers that no double holds, which are of no interest here.
    let Ok(whole) = serde_json::from_str::<serde_json::Value>(text) else {
        assert!(serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok(), "a command is JSON");
        return;
    };
    let whole = &whole["data"];
    let same = |raw: &[u8], value: &serde_json::Value| {
        let raw = serde_json::from_slice::<serde_json::Value>(raw).expect("what is spliced is JSON");
        assert!(raw == *value, "{raw} was taken for {value}");
    };
    match command {
        Command::Publish { room, kind, data, key, .. } => {
            assert_eq!((Some(*room), Some(*kind)), (whole["room"].as_str(), whole["type"].as_str()));
            assert_eq!(*key, whole["key"].as_str());
            same(data, whole.get("data").unwrap_or(&serde_json::json!({})));
            check_event(room, kind, data);
        }
        Command::Send { data, .. } => same(data, whole.get("data").unwrap_or(&serde_json::json!({}))),
        Command::Message { data } => same(data, whole),
        Command::Metadata { set: Some(set) } => same(set, &whole["set"]),
        Command::Subscribe { wanted, .. } => match Selection::compile(wanted, 32) {
            Ok(None) => assert!(wanted.types.is_empty() && wanted.filters.is_none()),
            Ok(Some(selection)) => check_selection(&selection, text),
            Err(refused) => assert_eq!(refused.code, ErrorCode::BadFilter),
        },
        _ => {}
    }
}

/// An event that was accepted stands in a frame whose payload is JSON and says what was published.
fn check_event(room: &str, kind: &str, data: &[u8]) {
    assert!(is_event_type(kind));
    for strict in [false, true] {
        if let Err(refused) = schema::check(kind, data, strict, DEPTH_MAX) {
            assert!([ErrorCode::BadCommand, ErrorCode::UnknownType].contains(&refused.code), "{refused:?}");
        }
    }
    if split(room, 200).is_err() {
        return;
    }
    let mut frame = Vec::new();
    let stamp = Stamp { id: [b'0'; 36], timestamp: rfc3339(0) };
    let spliced = write_event(&mut frame, &stamp, &Event { room, kind, seq: 7, data });
    assert_eq!((frame.len(), frame.get(spliced.data_at..frame.len() - 1)), (spliced.frame_bytes, Some(data)));
    let payload_at = match frame[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    let event: serde_json::Value = serde_json::from_slice(&frame[payload_at..]).expect("an event is JSON");
    assert_eq!((event["room"].as_str(), event["type"].as_str()), (Some(room), Some(kind)));
}

/// A filter has an answer for any data; the message it came in will do.
fn check_selection(selection: &Selection, text: &str) {
    let mut scratch = Scratch::new(DEPTH_MAX);
    let mut text = text.as_bytes().to_vec();
    let document = scratch.parse(&mut text).expect("it was parsed before");
    let wants = selection.wants_data(document.root());
    assert!(wants || selection.reads_data(), "only a filter refuses");
}

/// Engine.IO: a body is the same packets however often it is written again, and a query is a request or an answer with one
/// of Engine.IO's codes.
pub fn engineio(data: &[u8]) {
    if let Some(packets) = payload(data) {
        let mut body = Vec::new();
        let mut writer = PayloadWriter::new(&mut body);
        for packet in &packets {
            match packet {
                OwnedPacket::Text(kind, data) => writer.text(*kind, data),
                OwnedPacket::Binary(data) => writer.binary(data),
            }
        }
        assert_eq!(payload(&body).as_ref(), Some(&packets));
    }
    let Ok(query) = std::str::from_utf8(data) else { return };
    for (method, upgrades) in [("GET", false), ("GET", true), ("POST", false), ("PUT", false)] {
        match engineio::Request::parse(method, Some(query), upgrades) {
            Ok(engineio::Request { asked: engineio::Asked::Open(_), .. }) => assert_eq!(method, "GET"),
            Ok(_) => {}
            Err(error) => {
                let mut answer = Vec::new();
                error.response(&mut answer);
                assert!(answer.starts_with(b"HTTP/1.1 4") && answer.ends_with(b"\"}"));
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum OwnedPacket {
    Text(PacketKind, Vec<u8>),
    Binary(Vec<u8>),
}

/// The packets of a body; none where one of them is malformed.
fn payload(body: &[u8]) -> Option<Vec<OwnedPacket>> {
    let mut body = body.to_vec();
    let packets = Payload::new(&mut body).ok()?.map(|packet| match packet {
        Ok(engineio::Packet::Text { kind, data }) => Some(OwnedPacket::Text(kind, data.to_vec())),
        Ok(engineio::Packet::Binary(data)) => Some(OwnedPacket::Binary(data.to_vec())),
        Err(_) => None,
    });
    packets.collect()
}

/// Socket.IO: the packets of a body are the same when they are written again, events are what another parser finds in
/// them, attachments come to stand where their placeholders stood, and what waits stays in bounds.
pub fn socketio(data: &[u8]) {
    let mut assembler = Assembler::default();
    let mut scratch = Scratch::new(DEPTH_MAX);
    for packet in payload(data).into_iter().flatten() {
        let outcome = match packet {
            OwnedPacket::Text(PacketKind::Message, mut text) => match assembler.text(&mut text, MESSAGE_BYTES_MAX) {
                Ok(packet) => {
                    if let Some(packet) = packet {
                        check_packet(&packet, &mut scratch);
                    }
                    Ok(())
                }
                Err(error) => Err(error),
            },
            OwnedPacket::Text(..) => Ok(()),
            OwnedPacket::Binary(data) => assembler.binary(&data, MESSAGE_BYTES_MAX).map(|assembled| {
                if let Some(assembled) = assembled {
                    check_assembled(*assembled, &mut scratch);
                }
            }),
        };
        assert!(assembler.bytes() <= MESSAGE_BYTES_MAX);
        if let Err(error) = outcome {
            assert!(assembler.bytes() == 0 && !error.to_string().is_empty());
        }
    }
    engine(data);
}

/// A client that is granted what it asks for: each of its packets has one outcome, every event is a command or a refusal
/// whose answer finds its way back, and all that it hears are packets.
fn engine(data: &[u8]) {
    let namespaces = ["/".into(), "/ws".into()];
    let terms = Terms {
        namespaces: &namespaces,
        message_bytes_max: MESSAGE_BYTES_MAX,
        ping_interval_ms: 300,
        ping_timeout_ms: 200,
        connect_timeout_ms: 1000,
    };
    let mut engine = Engine::new(0, &terms);
    let mut scratch = Scratch::new(DEPTH_MAX);
    let (mut body, mut sent) = (data.to_vec(), Vec::new());
    let mut outlet = Outlet::Payload(PayloadWriter::new(&mut sent));
    engine.greet("e", true, &terms, &mut outlet);
    for packet in Payload::new(&mut body).into_iter().flatten() {
        let Ok(packet) = packet else { break };
        let failure = match engine.packet(packet, &terms, &mut outlet) {
            Ok(Heard::Asked(asked)) => {
                let space = asked.space;
                let outcome = asked.credentials(&mut scratch, |brought| {
                    assert!(brought.object.is_some() || brought == Credentials::default());
                });
                engine.grant(space, "s", Some("p"), &terms, &mut outlet);
                assert!(engine.is_in(space));
                outcome.err()
            }
            Ok(Heard::Emitted(emitted)) => {
                let to = emitted.to;
                let outcome = emitted.command(&mut scratch, |parsed| {
                    assert_eq!(parsed.reference.as_ref().and_then(AnswerTo::of), Some(to));
                    assert!(parsed.command.as_ref().err().is_none_or(|refused| refused.code != ErrorCode::UnknownType));
                    if let Ok(Command::Message { data }) = parsed.command {
                        assert!(serde_json::from_slice::<serde::de::IgnoredAny>(data).is_ok());
                    }
                });
                assert!(engine.answer(to, "pong", b"{}", &terms, &mut outlet));
                outcome.err()
            }
            Ok(Heard::Acknowledged { content, .. }) => content.json(|json| assert!(json.starts_with(b"["))).err(),
            Ok(Heard::Left(space)) => {
                assert!(!engine.is_in(space));
                None
            }
            Ok(Heard::Nothing | Heard::Pong | Heard::Close) => None,
            Err(failure) => Some(failure),
        };
        assert!(engine.waiting_bytes() <= MESSAGE_BYTES_MAX);
        if let Some(failure) = failure {
            assert!(ws::close_code_is_sendable(failure.close_code) && !failure.reason.is_empty());
            break;
        }
    }
    let now = Now { monotonic_us: 300_000, unix_ms: 0 };
    assert!(matches!(engine.poll(now, 0, &terms, &mut outlet), Due::WaitUntil(500)));
    engine.farewell(4500, &terms, &mut outlet);
    assert_eq!(engine.spaces().count(), 0);
    for packet in payload(&sent).expect("what was sent is a payload") {
        if let OwnedPacket::Text(PacketKind::Message, mut text) = packet {
            socketio::parse(&mut text).expect("what was sent is a packet");
        }
    }
}

fn check_packet(packet: &socketio::Packet<'_>, scratch: &mut Scratch) {
    let header = &packet.header;
    assert!(header.namespace.starts_with('/') && header.namespace.len() <= NAMESPACE_BYTES_MAX);
    assert_eq!(header.kind.is_binary(), (1..=ATTACHMENTS_MAX).contains(&header.attachments));
    let mut text = Vec::new();
    socketio::write_packet(&mut text, header, &[packet.payload]);
    let again = socketio::parse(&mut text[1..]).expect("what was read can be read again");
    assert_eq!((&again.header, &*again.payload), (header, &*packet.payload));
    check_event_payload(packet.payload, scratch);
}

fn check_event_payload(payload: &[u8], scratch: &mut Scratch) {
    socketio::with_event(scratch, &mut payload.to_vec(), |event| {
        let Ok(event) = event else { return };
        // The other parser refuses numbers that no double holds.
        let Ok(values) = serde_json::from_slice::<Vec<serde_json::Value>>(payload) else { return };
        assert!(values[0].as_str().is_none_or(|name| name == event.name));
        for (argument, value) in event.arguments().zip(&values[1..]) {
            assert_eq!(&serde_json::from_slice::<serde_json::Value>(argument.raw()).expect("JSON"), value);
        }
    });
}

fn check_assembled(mut assembled: Assembled, scratch: &mut Scratch) {
    let (packet, attachments) = assembled.parts();
    check_packet(&packet, scratch);
    assert_eq!(attachments.iter().len(), packet.header.attachments);
    let mut spliced = Vec::new();
    if attachments.splice(packet.payload, &mut spliced).is_err() {
        return;
    }
    let spliced = serde_json::from_slice::<serde_json::Value>(&spliced);
    let Ok(mut value) = serde_json::from_slice::<serde_json::Value>(packet.payload) else { return };
    // Written again it is shorter where it had escapes, which can hide a placeholder, or a key twice, of which that parser
    // has the last.
    let is_plain = value.to_string().len() == packet.payload.len();
    let texts = attachments.iter().map(|data| {
        let mut text = Vec::new();
        base64::encode(&mut text, data);
        String::from_utf8(text).expect("digits")
    });
    replace_placeholders(&mut value, &texts.collect::<Vec<_>>());
    assert!(spliced.is_ok_and(|spliced| spliced == value || !is_plain), "each stands where its placeholder stood");
}

fn replace_placeholders(value: &mut serde_json::Value, texts: &[String]) {
    let number = match value.as_object() {
        Some(members) if members.len() == 2 && members.get("_placeholder") == Some(&true.into()) => {
            members.get("num").and_then(serde_json::Value::as_u64)
        }
        _ => None,
    };
    if let Some(text) = number.and_then(|number| texts.get(number as usize)) {
        *value = text.clone().into();
        return;
    }
    match value {
        serde_json::Value::Array(values) => values.iter_mut().for_each(|value| replace_placeholders(value, texts)),
        serde_json::Value::Object(members) => {
            members.values_mut().for_each(|value| replace_placeholders(value, texts));
        }
        _ => {}
    }
}

/// Other forms of messages: any bytes are refused as MessagePack or are JSON, which can be packed again; of two lines the
/// second is made of the first by the merge patch between them, if there is one; and the lines that are objects are the same
/// events in every form.
pub fn variants(data: &[u8]) {
    check_msgpack(data);
    let mut lines = data.split(|byte| *byte == b'\n');
    if let (Some(old), Some(new)) = (lines.next(), lines.next()) {
        check_merge_patch(old, new);
    }
    let objects = data
        .split(|byte| *byte == b'\n')
        .filter(|line| serde_json::from_slice::<serde_json::Value>(line).is_ok_and(|value| value.is_object()));
    check_forms(&objects.map(<[u8]>::trim_ascii).collect::<Vec<_>>());
}

fn unpacked(message: &[u8]) -> Option<Vec<u8>> {
    let mut json = Vec::new();
    msgpack::read(message, DEPTH_MAX, MESSAGE_BYTES_MAX, &mut json).ok()?;
    assert!(json.len() <= MESSAGE_BYTES_MAX);
    Some(json)
}

fn check_msgpack(data: &[u8]) {
    let mut packed = Vec::new();
    msgpack::write(data, &mut packed);
    let Some(json) = unpacked(data) else { return };
    serde_json::from_slice::<serde_json::Value>(&json).expect("JSON");
    packed.clear();
    msgpack::write(&json, &mut packed);
    assert_eq!(unpacked(&packed), Some(json));
}

fn check_merge_patch(old: &[u8], new: &[u8]) {
    let mut patch = Vec::new();
    let is_said = merge_patch::write(old, new, &mut patch);
    let value = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text);
    let (Ok(mut made), Ok(new)) = (value(old), value(new)) else { return };
    if is_said {
        merge(&mut made, &value(&patch).expect("a patch is JSON"));
        assert_eq!(made, new);
    }
}

/// RFC 7396 §2.
fn merge(target: &mut serde_json::Value, patch: &serde_json::Value) {
    let serde_json::Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = serde_json::Value::Object(serde_json::Map::new());
    }
    let serde_json::Value::Object(members) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            members.remove(key);
        } else {
            merge(members.entry(key.as_str()).or_insert(serde_json::Value::Null), value);
        }
    }
}

fn check_forms(events: &[&[u8]]) {
    let mut frames = Vec::new();
    events.iter().for_each(|event| ws::text_frame(event, &mut frames));
    for variant in [Variant::Plain, Variant::Batch, Variant::MsgPack, Variant::MsgPackBatch] {
        // One by one: parsers may differ in the last digit of a number, but not with themselves.
        let values = events.iter().map(|event| {
            let mut text = event.to_vec();
            if variant.is_msgpack() {
                let mut message = Vec::new();
                msgpack::write(event, &mut message);
                text.clear();
                msgpack::read(&message, usize::MAX, usize::MAX, &mut text).expect("MessagePack");
            }
            serde_json::from_slice::<serde_json::Value>(&text).expect("JSON")
        });
        let values: Vec<_> = values.collect();
        let (mut out, mut got) = (Vec::new(), Vec::new());
        variant.write_events(&frames, &mut out);
        let mut rest = &out[..];
        while !rest.is_empty() {
            let (frame, behind) = rest.split_at(ws::frame_bytes(rest).expect("whole frames"));
            let payload = &frame[ws::header_bytes_of(frame)..];
            let mut json = Vec::new();
            if variant.is_msgpack() {
                msgpack::read(payload, usize::MAX, usize::MAX, &mut json).expect("MessagePack");
            } else {
                json.extend_from_slice(payload);
            }
            match serde_json::from_slice(&json).expect("JSON") {
                serde_json::Value::Array(some) => got.extend(some),
                one => got.push(one),
            }
            rest = behind;
        }
        assert_eq!(got, values);
    }
}
