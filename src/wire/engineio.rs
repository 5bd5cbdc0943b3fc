//! Engine.IO, version 4: the packets that Socket.IO travels in, on both of its transports, and the requests that open and
//! use a session. Described in the repository of socket.io, `docs/engine.io-protocol/v4-current.md`.
//!
//! ```text
//! WebSocket   a text frame is one packet:    4hello            type, data
//!             a binary frame is a message:   01 02 03 04
//! polling     a body is a payload:           4hello ␞ 2 ␞ bAQIDBA==
//!             packets with a record separator between them; `b` and base64 stand for a binary message
//! ```
//!
//! Packets borrow from the frame or body that they came in, and base64 is decoded where it stands. The bytes are handed
//! on as mutable ones, because the JSON inside is parsed in place.

use std::borrow::Cow;

use bytes::Bytes;

use super::base64;
use super::http::decode_form;
use super::json::{write_string, write_u64};
use super::native::is_client_id;
use super::refusal::begin_answer;
use super::ws::{self, Opcode};

/// Stands between the packets of a payload. JSON never holds it: control characters are escaped in strings.
pub const SEPARATOR: u8 = 0x1e;

/// The data of the ping and pong with which a client tries a WebSocket before it upgrades to it.
pub const PROBE: &[u8] = b"probe";

/// Begins a binary message in a payload.
const BINARY: u8 = b'b';

/// The types of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum PacketKind {
    /// The server's first, with the handshake.
    Open = b'0',
    /// The transport can be closed.
    Close = b'1',
    /// The server's heartbeat, or a client's probe.
    Ping = b'2',
    /// The answer to a ping, with the same data.
    Pong = b'3',
    /// What the layer above sends.
    Message = b'4',
    /// A client's: the probed WebSocket is the session's transport from here on.
    Upgrade = b'5',
    /// Says nothing; it ends a poll.
    Noop = b'6',
}

impl PacketKind {
    const fn from_byte(byte: u8) -> Option<PacketKind> {
        Some(match byte {
            b'0' => PacketKind::Open,
            b'1' => PacketKind::Close,
            b'2' => PacketKind::Ping,
            b'3' => PacketKind::Pong,
            b'4' => PacketKind::Message,
            b'5' => PacketKind::Upgrade,
            b'6' => PacketKind::Noop,
            _ => return None,
        })
    }
}

/// One packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// A packet of text, of any type.
    Text {
        /// Its type.
        kind: PacketKind,
        /// What follows the type. UTF-8 where the frame or body was.
        data: &'a mut [u8],
    },
    /// A message of bytes.
    Binary(&'a mut [u8]),
}

/// Why bytes are no packet. The session ends with it, as the protocol wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.reason())]
pub enum Malformed {
    /// A packet has at least its type.
    Empty,
    /// None of the seven types.
    UnknownKind,
    /// A binary packet in a payload whose text is no base64.
    Base64,
    /// A payload that is not UTF-8.
    Utf8,
}

impl Malformed {
    /// For a close frame and the log.
    pub const fn reason(self) -> &'static str {
        match self {
            Malformed::Empty => "an empty packet",
            Malformed::UnknownKind => "a packet of an unknown type",
            Malformed::Base64 => "a binary packet that is not base64",
            Malformed::Utf8 => "a payload that is not valid UTF-8",
        }
    }
}

/// Reads a packet: a WebSocket's text frame, or a part of a payload.
pub fn parse(text: &mut [u8]) -> Result<Packet<'_>, Malformed> {
    match text.split_first_mut() {
        None => Err(Malformed::Empty),
        Some((&mut BINARY, data)) => base64::decode_in_place(data).map(Packet::Binary).ok_or(Malformed::Base64),
        Some((kind, data)) => match PacketKind::from_byte(*kind) {
            Some(kind) => Ok(Packet::Text { kind, data }),
            None => Err(Malformed::UnknownKind),
        },
    }
}

/// The packets of a request's body, in their order.
///
/// How many there may be is bounded by the body alone; whoever takes them counts the messages against the client's rate.
/// After the first error nothing more is to be taken.
#[derive(Debug)]
pub struct Payload<'a> {
    rest: Option<&'a mut [u8]>,
}

impl<'a> Payload<'a> {
    /// The packets of a whole body.
    pub fn new(body: &'a mut [u8]) -> Result<Payload<'a>, Malformed> {
        if simdutf8::basic::from_utf8(body).is_err() {
            return Err(Malformed::Utf8);
        }
        Ok(Payload { rest: Some(body) })
    }
}

impl<'a> Iterator for Payload<'a> {
    type Item = Result<Packet<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.rest.take()?;
        let packet = match memchr::memchr(SEPARATOR, rest) {
            None => rest,
            Some(at) => {
                let (packet, behind) = rest.split_at_mut(at);
                self.rest = behind.get_mut(1..);
                packet
            }
        };
        Some(parse(packet))
    }
}

/// Writes packets as a payload, the body of an answer to a poll, behind what is in the buffer already.
#[derive(Debug)]
pub struct PayloadWriter<'o> {
    out: &'o mut Vec<u8>,
    start: usize,
    /// A separator goes before the first packet, too.
    continues: bool,
}

impl<'o> PayloadWriter<'o> {
    /// Begins a payload at the end of `out`.
    pub fn new(out: &'o mut Vec<u8>) -> PayloadWriter<'o> {
        let start = out.len();
        PayloadWriter { out, start, continues: false }
    }

    /// Goes on with a payload, wherever its packets will be put together: each has its separator before it.
    /// [`begin_payload`] makes a body of them.
    pub fn continued(out: &'o mut Vec<u8>) -> PayloadWriter<'o> {
        PayloadWriter { continues: true, ..PayloadWriter::new(out) }
    }

    /// Begins the next packet: the caller appends its text, its type first.
    pub fn begin_packet(&mut self) -> &mut Vec<u8> {
        if self.continues || self.bytes() > 0 {
            self.out.push(SEPARATOR);
        }
        self.out
    }

    /// Appends a packet of text.
    pub fn text(&mut self, kind: PacketKind, data: &[u8]) {
        write_packet(self.begin_packet(), kind, data);
    }

    /// Appends a message of bytes.
    pub fn binary(&mut self, data: &[u8]) {
        let out = self.begin_packet();
        out.push(BINARY);
        base64::encode(out, data);
    }

    /// How long the payload is so far.
    pub fn bytes(&self) -> usize {
        self.out.len() - self.start
    }
}

/// The body of an answer to a poll, of packets that each have their separator before them.
pub fn begin_payload(continued: Bytes) -> Bytes {
    let starts = continued.first() == Some(&SEPARATOR);
    continued.slice(usize::from(starts)..)
}

/// The first packets of a payload, each with its separator before it, and the others.
pub fn split_payload(continued: &Bytes, packets_max: usize) -> (Bytes, Bytes) {
    let end = memchr::memchr_iter(SEPARATOR, continued).nth(packets_max).unwrap_or(continued.len());
    (continued.slice(..end), continued.slice(end..))
}

/// Appends packets of a payload, each with its separator before it, as the frames of a WebSocket, whose client may have asked
/// for `base64`. They are the hub's own, so that what is no packet does not occur; it is left out.
pub fn payload_to_frames(continued: &[u8], base64: bool, out: &mut Vec<u8>) {
    let mut packets = continued.to_vec();
    for packet in packets.split_mut(|byte| *byte == SEPARATOR).filter(|packet| !packet.is_empty()) {
        match packet.split_first_mut() {
            Some((&mut BINARY, data)) if !base64 => {
                if let Some(data) = base64::decode_in_place(data) {
                    ws::binary_frame(data, out);
                }
            }
            _ => ws::text_frame(packet, out),
        }
    }
}

/// Appends a packet of text as it stands in a payload, and as the payload of a WebSocket's frame.
pub fn write_packet(out: &mut Vec<u8>, kind: PacketKind, data: &[u8]) {
    out.push(kind as u8);
    out.extend_from_slice(data);
}

/// Appends a packet of text as a whole WebSocket frame. A message of bytes is a binary frame, [`ws::binary_frame`].
pub fn packet_frame(kind: PacketKind, data: &[u8], out: &mut Vec<u8>) {
    ws::write_header(out, Opcode::Text, 1 + data.len());
    write_packet(out, kind, data);
}

/// What the server says of a session in its first packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handshake<'a> {
    /// The session's id, which every later request carries.
    pub sid: &'a str,
    /// Whether the client may go on over a WebSocket; it is asked only where it polls.
    pub may_upgrade: bool,
    /// How often the server pings.
    pub ping_interval_ms: u64,
    /// How long after a ping the pong is waited for.
    pub ping_timeout_ms: u64,
    /// The longest payload that a client may post.
    pub payload_bytes_max: usize,
}

/// Appends the open packet.
pub fn write_open(out: &mut Vec<u8>, handshake: &Handshake<'_>) {
    out.push(PacketKind::Open as u8);
    out.extend_from_slice(b"{\"sid\":");
    write_string(out, handshake.sid);
    out.extend_from_slice(if handshake.may_upgrade {
        b",\"upgrades\":[\"websocket\"],\"pingInterval\":".as_slice()
    } else {
        b",\"upgrades\":[],\"pingInterval\":"
    });
    write_u64(out, handshake.ping_interval_ms);
    out.extend_from_slice(b",\"pingTimeout\":");
    write_u64(out, handshake.ping_timeout_ms);
    out.extend_from_slice(b",\"maxPayload\":");
    write_u64(out, handshake.payload_bytes_max as u64);
    out.push(b'}');
}

/// How packets travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// HTTP requests: a GET waits for packets, a POST brings some.
    Polling,
    /// A WebSocket.
    WebSocket,
}

/// What a request to Engine.IO's path wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked<'a> {
    /// A new session.
    Open(Transport),
    /// The packets that wait for a session, or the next ones.
    Poll {
        /// Which session.
        sid: Cow<'a, str>,
    },
    /// The body's packets are for a session.
    Push {
        /// Which session.
        sid: Cow<'a, str>,
    },
    /// A WebSocket that is to become a session's transport.
    Upgrade {
        /// Which session.
        sid: Cow<'a, str>,
    },
}

/// A request to Engine.IO's path, judged by its method and query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<'a> {
    /// What it wants.
    pub asked: Asked<'a>,
    /// `b64` was asked for: binary messages go as base64 in text frames, too.
    pub base64: bool,
}

/// Why a request was refused. Codes and messages are those that the reference server answers, and clients show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.message())]
#[repr(u8)]
pub enum RequestError {
    /// `transport` is missing, or neither `polling` nor `websocket`.
    TransportUnknown = 0,
    /// There is no session of that `sid` (any more).
    SessionUnknown = 1,
    /// A session is opened with a GET.
    BadHandshakeMethod = 2,
    /// The request doesn't fit its transport or session, or can't be understood.
    BadRequest = 3,
    /// The client may not connect.
    Forbidden = 4,
    /// `EIO` is not 4.
    UnsupportedVersion = 5,
}

impl RequestError {
    /// Every error, by its code.
    pub const ALL: [RequestError; 6] = [
        RequestError::TransportUnknown,
        RequestError::SessionUnknown,
        RequestError::BadHandshakeMethod,
        RequestError::BadRequest,
        RequestError::Forbidden,
        RequestError::UnsupportedVersion,
    ];

    /// The HTTP status of the answer.
    pub const fn status(self) -> u16 {
        match self {
            RequestError::Forbidden => 403,
            _ => 400,
        }
    }

    /// The answer's `code`.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The answer's `message`.
    pub const fn message(self) -> &'static str {
        match self {
            RequestError::TransportUnknown => "Transport unknown",
            RequestError::SessionUnknown => "Session ID unknown",
            RequestError::BadHandshakeMethod => "Bad handshake method",
            RequestError::BadRequest => "Bad request",
            RequestError::Forbidden => "Forbidden",
            RequestError::UnsupportedVersion => "Unsupported protocol version",
        }
    }

    /// The metric's label.
    pub const fn label(self) -> &'static str {
        match self {
            RequestError::TransportUnknown => "transport_unknown",
            RequestError::SessionUnknown => "session_unknown",
            RequestError::BadHandshakeMethod => "bad_handshake_method",
            RequestError::BadRequest => "bad_request",
            RequestError::Forbidden => "forbidden",
            RequestError::UnsupportedVersion => "unsupported_version",
        }
    }

    /// Appends the answer's body, `{"code":0,"message":"…"}`.
    pub fn write_body(self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"code\":");
        write_u64(out, u64::from(self.code()));
        out.extend_from_slice(b",\"message\":");
        write_string(out, self.message());
        out.push(b'}');
    }

    /// Appends the whole answer; the connection is to be closed after it.
    pub fn response(self, out: &mut Vec<u8>) {
        let mut body = Vec::with_capacity(64);
        self.write_body(&mut body);
        begin_answer(out, self.status(), body.len());
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(&body);
    }
}

impl<'a> Request<'a> {
    /// Judges a request by its method and query. `upgrades` says whether it is a WebSocket's handshake.
    ///
    /// Of several errors the reference server's first is told. Whether there is a session of that `sid` is not known here;
    /// one that no session can have is refused.
    pub fn parse(method: &str, query: Option<&'a str>, upgrades: bool) -> Result<Request<'a>, RequestError> {
        let parameters = Parameters::read(query)?;
        let transport = match parameters.transport.as_deref() {
            Some("polling") => Transport::Polling,
            Some("websocket") => Transport::WebSocket,
            _ => return Err(RequestError::TransportUnknown),
        };
        let fits = (transport == Transport::WebSocket) == upgrades;
        let is_version_4 = parameters.version.as_deref() == Some("4");
        // JSONP runs what it gets as a script; it ended with version 3.
        if parameters.jsonp {
            return Err(RequestError::BadRequest);
        }
        let asked = match parameters.sid.filter(|sid| !sid.is_empty()) {
            Some(sid) if !is_client_id(&sid) => return Err(RequestError::SessionUnknown),
            Some(_) if !fits || !is_version_4 => return Err(RequestError::BadRequest),
            Some(sid) => match (transport, method) {
                (Transport::WebSocket, "GET") => Asked::Upgrade { sid },
                (Transport::Polling, "GET") => Asked::Poll { sid },
                (Transport::Polling, "POST") => Asked::Push { sid },
                _ => return Err(RequestError::BadRequest),
            },
            None if method != "GET" => return Err(RequestError::BadHandshakeMethod),
            None if !fits => return Err(RequestError::BadRequest),
            None if !is_version_4 => return Err(RequestError::UnsupportedVersion),
            None => Asked::Open(transport),
        };
        Ok(Request { asked, base64: parameters.base64 })
    }
}

/// The query's parameters, the first of each name. `t`, which keeps caches away, says nothing.
#[derive(Default)]
struct Parameters<'a> {
    version: Option<Cow<'a, str>>,
    transport: Option<Cow<'a, str>>,
    sid: Option<Cow<'a, str>>,
    base64: bool,
    jsonp: bool,
}

impl<'a> Parameters<'a> {
    fn read(query: Option<&'a str>) -> Result<Parameters<'a>, RequestError> {
        let mut parameters = Parameters::default();
        for pair in query.unwrap_or_default().split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let slot = match key {
                "EIO" => &mut parameters.version,
                "transport" => &mut parameters.transport,
                "sid" => &mut parameters.sid,
                "b64" => {
                    parameters.base64 = !value.is_empty();
                    continue;
                }
                "j" => {
                    parameters.jsonp = true;
                    continue;
                }
                _ => continue,
            };
            if slot.is_none() {
                *slot = Some(decode_form(value).ok_or(RequestError::BadRequest)?);
            }
        }
        Ok(parameters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A packet that owns its bytes.
    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Owned {
        Text(PacketKind, Vec<u8>),
        Binary(Vec<u8>),
    }

    fn owned(packet: Packet<'_>) -> Owned {
        match packet {
            Packet::Text { kind, data } => Owned::Text(kind, data.to_vec()),
            Packet::Binary(data) => Owned::Binary(data.to_vec()),
        }
    }

    fn packets(body: impl AsRef<[u8]>) -> Result<Vec<Owned>, Malformed> {
        let mut body = body.as_ref().to_vec();
        Payload::new(&mut body)?.map(|packet| packet.map(owned)).collect()
    }

    fn text(kind: PacketKind, data: &str) -> Owned {
        Owned::Text(kind, data.as_bytes().to_vec())
    }

    fn written(packets: &[Owned]) -> Vec<u8> {
        let mut out = b"head".to_vec();
        let mut payload = PayloadWriter::new(&mut out);
        for packet in packets {
            match packet {
                Owned::Text(kind, data) => payload.text(*kind, data),
                Owned::Binary(data) => payload.binary(data),
            }
        }
        out.split_off(4)
    }

    fn request(method: &str, query: &str, upgrades: bool) -> Result<String, u8> {
        Request::parse(method, Some(query), upgrades)
            .map(|request| format!("{:?}", request.asked))
            .map_err(RequestError::code)
    }

    #[test]
    fn the_payloads_of_the_protocol_document_are_read_and_written() {
        let examples = [
            (
                "4hello\x1e2\x1e4world",
                vec![
                    text(PacketKind::Message, "hello"),
                    text(PacketKind::Ping, ""),
                    text(PacketKind::Message, "world"),
                ],
            ),
            ("4hello\x1ebAQIDBA==", vec![text(PacketKind::Message, "hello"), Owned::Binary(vec![1, 2, 3, 4])]),
            ("2probe", vec![text(PacketKind::Ping, "probe")]),
            ("3probe", vec![text(PacketKind::Pong, "probe")]),
            ("5", vec![text(PacketKind::Upgrade, "")]),
            ("6", vec![text(PacketKind::Noop, "")]),
            ("1", vec![text(PacketKind::Close, "")]),
            ("4€", vec![text(PacketKind::Message, "€")]),
            ("b", vec![Owned::Binary(Vec::new())]),
        ];
        for (body, expected) in examples {
            assert_eq!(packets(body).as_ref(), Ok(&expected), "{body:?}");
            assert_eq!(String::from_utf8(written(&expected)).as_deref(), Ok(body));
        }
    }

    #[test]
    fn the_first_malformed_packet_of_a_payload_is_an_error_and_so_is_an_empty_one() {
        for (body, expected) in [
            ("", Malformed::Empty),
            ("abc", Malformed::UnknownKind),
            ("7", Malformed::UnknownKind),
            ("4a\x1e", Malformed::Empty),
            ("\x1e4a", Malformed::Empty),
            ("4a\x1e\x1e4b", Malformed::Empty),
            ("4a\x1ex", Malformed::UnknownKind),
            ("bAQI", Malformed::Base64),
            ("bA", Malformed::Base64),
            ("b€", Malformed::Base64),
        ] {
            let read = packets(body);
            // Without pads three digits are two bytes.
            let expected = if body == "bAQI" { Ok(vec![Owned::Binary(vec![1, 2])]) } else { Err(expected) };
            assert_eq!(read, expected, "{body:?}");
        }
        assert_eq!(packets(b"4\xff"), Err(Malformed::Utf8));
        assert_eq!(parse(&mut []), Err(Malformed::Empty));
    }

    /// Packets for polls, each with its separator before it.
    fn continued(packets: &[Owned]) -> Bytes {
        let mut out = Vec::new();
        for packet in packets {
            let mut payload = PayloadWriter::continued(&mut out);
            match packet {
                Owned::Text(kind, data) => payload.text(*kind, data),
                Owned::Binary(data) => payload.binary(data),
            }
        }
        out.into()
    }

    #[test]
    fn packets_that_were_put_together_are_a_payload_without_the_first_separator() {
        let sent = [text(PacketKind::Message, "a"), text(PacketKind::Ping, ""), Owned::Binary(vec![1, 2])];
        assert_eq!(continued(&sent), "\x1e4a\x1e2\x1ebAQI=");
        assert_eq!(packets(begin_payload(continued(&sent))), Ok(sent.to_vec()));
        assert_eq!(begin_payload(Bytes::from_static(b"4a\x1e2")), "4a\x1e2", "what has begun stays as it is");
        assert_eq!(begin_payload(Bytes::new()), "");
    }

    #[test]
    fn a_payload_is_split_before_a_packet() {
        let all = continued(&[text(PacketKind::Message, "a"), text(PacketKind::Ping, ""), text(PacketKind::Noop, "")]);
        let split = |packets_max| {
            let (first, others) = split_payload(&all, packets_max);
            assert_eq!([&first[..], &others[..]].concat(), all);
            first
        };
        assert_eq!([0, 1, 2].map(split), ["", "\x1e4a", "\x1e4a\x1e2"]);
        assert_eq!([3, 4, usize::MAX].map(split), [&all, &all, &all]);
    }

    #[test]
    fn a_payload_becomes_the_frames_of_a_websocket_which_may_have_asked_for_base64() {
        let long = "x".repeat(200);
        let sent = [
            text(PacketKind::Message, &long),
            Owned::Binary(Vec::new()),
            Owned::Binary(vec![1, 2, 3, 4, 255]),
            text(PacketKind::Ping, ""),
            text(PacketKind::Message, "b€"),
        ];
        let frames = |base64| {
            let mut out = b"before".to_vec();
            payload_to_frames(&continued(&sent), base64, &mut out);
            out.split_off(6)
        };
        let mut expected = Vec::new();
        ws::text_frame(format!("4{long}").as_bytes(), &mut expected);
        ws::binary_frame(b"", &mut expected);
        ws::binary_frame(&[1, 2, 3, 4, 255], &mut expected);
        ws::text_frame(b"2", &mut expected);
        ws::text_frame("4b€".as_bytes(), &mut expected);
        assert_eq!(frames(false), expected);
        expected.clear();
        for packet in [&format!("4{long}")[..], "b", "bAQIDBP8=", "2", "4b€"] {
            ws::text_frame(packet.as_bytes(), &mut expected);
        }
        assert_eq!(frames(true), expected);
        let mut nothing = Vec::new();
        payload_to_frames(b"", false, &mut nothing);
        assert!(nothing.is_empty());
    }

    #[test]
    fn a_packet_is_a_text_frame_of_its_own() {
        let mut out = Vec::new();
        packet_frame(PacketKind::Pong, PROBE, &mut out);
        assert_eq!(out, b"\x81\x063probe");
        out.clear();
        packet_frame(PacketKind::Ping, b"", &mut out);
        assert_eq!(out, b"\x81\x012");
    }

    #[test]
    fn the_open_packet_has_the_shape_of_the_protocol_document() {
        let mut out = Vec::new();
        let mut handshake = Handshake {
            sid: "lv_VI97HAXpY6yYWAAAC",
            may_upgrade: true,
            ping_interval_ms: 25_000,
            ping_timeout_ms: 20_000,
            payload_bytes_max: 1_000_000,
        };
        write_open(&mut out, &handshake);
        assert_eq!(
            String::from_utf8(std::mem::take(&mut out)).as_deref(),
            Ok(concat!(
                r#"0{"sid":"lv_VI97HAXpY6yYWAAAC","upgrades":["websocket"],"#,
                r#""pingInterval":25000,"pingTimeout":20000,"maxPayload":1000000}"#
            ))
        );
        handshake.may_upgrade = false;
        write_open(&mut out, &handshake);
        let value: serde_json::Value = serde_json::from_slice(&out[1..]).expect("json");
        assert_eq!(value["upgrades"], serde_json::json!([]));
    }

    #[test]
    fn requests_open_poll_push_and_upgrade() {
        let ask = |method, query, upgrades| request(method, query, upgrades).expect("allowed");
        assert_eq!(ask("GET", "EIO=4&transport=polling&t=N8hyd6w", false), "Open(Polling)");
        assert_eq!(ask("GET", "EIO=4&transport=websocket", true), "Open(WebSocket)");
        assert_eq!(ask("GET", "EIO=4&transport=websocket&sid=", true), "Open(WebSocket)");
        assert_eq!(ask("GET", "EIO=4&transport=polling&sid=lv_V", false), "Poll { sid: \"lv_V\" }");
        assert_eq!(ask("POST", "sid=lv_V&transport=polling&EIO=4&t=x", false), "Push { sid: \"lv_V\" }");
        assert_eq!(ask("GET", "EIO=4&transport=websocket&sid=lv%5FV", true), "Upgrade { sid: \"lv_V\" }");
        assert_eq!(ask("GET", "EIO=4&EIO=3&transport=polling&token=%FF", false), "Open(Polling)");
        let b64 = |query| Request::parse("GET", Some(query), false).expect("allowed").base64;
        assert!(b64("EIO=4&transport=polling&b64=1") && !b64("EIO=4&transport=polling"));
    }

    #[test]
    fn a_refused_request_has_the_code_of_the_reference_server() {
        let code = |method: &str, query: &str, upgrades| request(method, query, upgrades).expect_err("refused");
        for query in ["EIO=4", "EIO=4&transport=abc", "EIO=4&transport=", "", "EIO=3&transport=webtransport"] {
            assert_eq!(code("GET", query, false), 0, "{query}");
        }
        assert_eq!(code("GET", "EIO=4&transport=polling&sid=a/b", false), 1);
        assert_eq!(code("GET", &format!("EIO=4&transport=polling&sid={}", "a".repeat(65)), false), 1);
        for method in ["POST", "PUT", "HEAD", "get"] {
            assert_eq!(code(method, "EIO=4&transport=polling", false), 2, "{method}");
        }
        for (method, query, upgrades) in [
            ("GET", "EIO=4&transport=websocket", false),
            ("GET", "EIO=4&transport=polling", true),
            ("GET", "EIO=4&transport=polling&j=0", false),
            ("GET", "EIO=4&transport=polling&sid=abc&j=0", false),
            ("GET", "EIO=4&transport=poll%GGing", false),
            ("GET", "EIO=3&transport=polling&sid=abc", false),
            ("GET", "transport=polling&sid=abc", false),
            ("PUT", "EIO=4&transport=polling&sid=abc", false),
            ("GET", "EIO=4&transport=websocket&sid=abc", false),
            ("GET", "EIO=4&transport=polling&sid=abc", true),
        ] {
            assert_eq!(code(method, query, upgrades), 3, "{method} {query}");
        }
        for query in ["transport=polling", "EIO=3&transport=polling", "EIO=abc&transport=polling"] {
            assert_eq!(code("GET", query, false), 5, "{query}");
        }
        assert_eq!(Request::parse("GET", None, false), Err(RequestError::TransportUnknown));
    }

    #[test]
    fn a_refusal_is_a_whole_http_answer() {
        let mut out = Vec::new();
        RequestError::SessionUnknown.response(&mut out);
        assert_eq!(
            String::from_utf8(out).as_deref(),
            Ok("HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: 41\r\n\
                Connection: close\r\nCache-Control: no-store\r\n\r\n{\"code\":1,\"message\":\"Session ID unknown\"}")
        );
        for (code, error) in RequestError::ALL.into_iter().enumerate() {
            let mut body = Vec::new();
            error.write_body(&mut body);
            let value: serde_json::Value = serde_json::from_slice(&body).expect("json");
            assert_eq!((value["code"].as_u64(), value["message"].as_str()), (Some(code as u64), Some(error.message())));
        }
        assert_eq!(RequestError::Forbidden.status(), 403);
    }

    fn any_packet() -> impl Strategy<Value = Owned> {
        let kind = (b'0'..=b'6').prop_map(|byte| PacketKind::from_byte(byte).expect("one of the seven"));
        prop_oneof![
            3 => (kind, "[^\x1e]{0,20}").prop_map(|(kind, data)| Owned::Text(kind, data.into_bytes())),
            1 => proptest::collection::vec(any::<u8>(), 0..20).prop_map(Owned::Binary),
        ]
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(sent in proptest::collection::vec(any_packet(), 1..8)) {
            prop_assert_eq!(packets(written(&sent)), Ok(sent));
        }

        #[test]
        fn any_body_is_read_or_refused_and_what_was_read_is_read_again(body in proptest::collection::vec(
            prop_oneof![Just(SEPARATOR), Just(b'b'), b'0'..=b'7', any::<u8>()], 0..40))
        {
            if let Ok(read) = packets(&body) {
                prop_assert_eq!(packets(written(&read)), Ok(read));
            }
        }

        #[test]
        fn any_query_is_judged(method in "GET|POST|PUT", query in "((EIO|transport|sid|b64|j|t)=(4|polling|websocket|[a-z%&=]{0,6})&?){0,5}") {
            for upgrades in [false, true] {
                if let Ok(Request { asked: Asked::Poll { sid } | Asked::Push { sid } | Asked::Upgrade { sid }, .. }) =
                    Request::parse(&method, Some(&query), upgrades)
                {
                    prop_assert!(is_client_id(&sid));
                }
            }
        }
    }
}
