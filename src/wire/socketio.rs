//! Socket.IO, version 5: the packets inside Engine.IO's messages. Described in the repository of socket.io,
//! `docs/socket.io-protocol/v5-current.md`.
//!
//! ```text
//! <type>[<attachments>-][<namespace>,][<acknowledgement id>][<JSON>]      then each attachment as a binary message
//!
//! 2["foo"]                                            an event of namespace /
//! 2/ws,12["subscribe",{"room":"global"}]              of /ws, to be acknowledged
//! 51-["baz",{"_placeholder":true,"num":0}]            with an attachment
//! ```
//!
//! A packet borrows from the message that it came in; its JSON is kept as the bytes that came. Only a packet that waits for
//! attachments is copied, by the [`Assembler`]. Here is judged what the envelope says and which kind of JSON value it has;
//! whether that is valid JSON shows when it is parsed ([`with_event`]).

use std::ops::Range;

pub use super::attachments::{Assembled, Assembler, Attachments};
use super::engineio;
use super::envelope;
use super::json::{Scratch, Value, write_string};
use super::ws::{self, Opcode};

/// The most attachments of one packet: as many as the reference parser takes by default.
pub const ATTACHMENTS_MAX: usize = 10;

/// The longest namespace. It stands in every packet of it, and in the answer to a CONNECT that is refused.
pub const NAMESPACE_BYTES_MAX: usize = 128;

/// The largest acknowledgement id: JavaScript's numbers are exact up to here. Clients count from 0.
pub const ACKNOWLEDGEMENT_MAX: u64 = (1 << 53) - 1;

/// The namespace that is not written.
pub const MAIN_NAMESPACE: &str = "/";

/// What clients tell their own application under these names is not an event of the other side.
const RESERVED: [&str; 6] =
    ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"];

/// The types of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Asks for a namespace, and grants it.
    Connect = b'0',
    /// Leaves a namespace.
    Disconnect = b'1',
    /// An event: an array of its name and its arguments.
    Event = b'2',
    /// The answer to an event: an array of arguments.
    Ack = b'3',
    /// Refuses a namespace.
    ConnectError = b'4',
    /// An event with attachments.
    BinaryEvent = b'5',
    /// An answer with attachments.
    BinaryAck = b'6',
}

impl Kind {
    const fn from_byte(byte: u8) -> Option<Kind> {
        Some(match byte {
            b'0' => Kind::Connect,
            b'1' => Kind::Disconnect,
            b'2' => Kind::Event,
            b'3' => Kind::Ack,
            b'4' => Kind::ConnectError,
            b'5' => Kind::BinaryEvent,
            b'6' => Kind::BinaryAck,
            _ => return None,
        })
    }

    /// Whether attachments follow.
    pub const fn is_binary(self) -> bool {
        matches!(self, Kind::BinaryEvent | Kind::BinaryAck)
    }
}

/// What stands before a packet's JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header<'a> {
    /// The type.
    pub kind: Kind,
    /// How many attachments follow; 0 where the type has none, else 1 to [`ATTACHMENTS_MAX`].
    pub attachments: usize,
    /// The namespace: begins with a slash, has no comma and no control characters.
    pub namespace: &'a str,
    /// Of an event: the id under which an answer is wanted. Of an answer: the event's id.
    pub id: Option<u64>,
}

/// A packet from a peer.
#[derive(Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// What stands before the JSON.
    pub header: Header<'a>,
    /// The JSON as it came, an object or array as the type wants it; empty where there is none. Mutable, because parsers
    /// work in place.
    pub payload: &'a mut [u8],
}

/// Why a message is no packet. The connection ends with it, as the protocol wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.reason())]
pub enum Malformed {
    /// None of the seven types.
    UnknownKind,
    /// A count of attachments that is missing, 0, or above [`ATTACHMENTS_MAX`].
    AttachmentCount,
    /// A namespace that is too long, has control characters, or isn't UTF-8.
    Namespace,
    /// An acknowledgement id above [`ACKNOWLEDGEMENT_MAX`], or an answer without one.
    Acknowledgement,
    /// No payload where there has to be one, one where there is none, or one of another kind of value.
    Payload,
    /// The payload is not JSON, or nested too deep.
    Json,
    /// An event whose name is no string or number, or one of the library's own.
    EventName,
    /// A packet began while another one still waited for attachments.
    AttachmentMissing,
    /// A binary message that belongs to no packet.
    AttachmentUnexpected,
    /// The placeholders don't stand for each attachment once.
    Placeholder,
    /// A packet is, with its attachments, longer than allowed.
    TooLarge,
}

impl Malformed {
    /// For a close frame and the log.
    pub const fn reason(self) -> &'static str {
        match self {
            Malformed::UnknownKind => "a packet of an unknown type",
            Malformed::AttachmentCount => "a packet with no valid count of attachments",
            Malformed::Namespace => "a malformed namespace",
            Malformed::Acknowledgement => "a missing or too large acknowledgement id",
            Malformed::Payload => "a payload that doesn't fit its packet",
            Malformed::Json => "a payload that is not JSON",
            Malformed::EventName => "an event without a name, or with one that is reserved",
            Malformed::AttachmentMissing => "text where an attachment was expected",
            Malformed::AttachmentUnexpected => "an attachment that no packet announced",
            Malformed::Placeholder => "placeholders that don't match the attachments",
            Malformed::TooLarge => "a packet with attachments that is too large",
        }
    }
}

/// Reads the text of a packet: the data of an Engine.IO message.
pub fn parse(text: &mut [u8]) -> Result<Packet<'_>, Malformed> {
    Layout::read(text).map(|layout| layout.packet(text))
}

/// Where the parts of a packet's text are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) kind: Kind,
    pub(super) attachments: usize,
    /// Empty for the main namespace.
    namespace: Range<usize>,
    id: Option<u64>,
    payload_at: usize,
}

impl Layout {
    pub(super) fn read(text: &[u8]) -> Result<Layout, Malformed> {
        let kind = text.first().and_then(|byte| Kind::from_byte(*byte)).ok_or(Malformed::UnknownKind)?;
        let mut at = 1;
        let mut attachments = 0;
        if kind.is_binary() {
            let (count, bytes) = number(text.get(at..).unwrap_or_default(), ATTACHMENTS_MAX as u64)
                .map_err(|TooLarge| Malformed::AttachmentCount)?;
            attachments = count as usize;
            at += bytes;
            if attachments == 0 || text.get(at) != Some(&b'-') {
                return Err(Malformed::AttachmentCount);
            }
            at += 1;
        }
        let mut namespace = at..at;
        if text.get(at) == Some(&b'/') {
            let rest = text.get(at..).unwrap_or_default();
            // Without a comma the namespace is all that there is.
            let bytes = memchr::memchr(b',', rest).unwrap_or(rest.len());
            namespace.end = at + bytes;
            at = text.len().min(namespace.end + 1);
            let name = text.get(namespace.clone()).unwrap_or_default();
            let is_odd = name.len() > NAMESPACE_BYTES_MAX || name.iter().any(u8::is_ascii_control);
            if is_odd || std::str::from_utf8(name).is_err() {
                return Err(Malformed::Namespace);
            }
        }
        let (id, bytes) = number(text.get(at..).unwrap_or_default(), ACKNOWLEDGEMENT_MAX)
            .map_err(|TooLarge| Malformed::Acknowledgement)?;
        let id = (bytes > 0).then_some(id);
        let payload_at = at + bytes;
        let first = text.get(payload_at).copied();
        let fits = match kind {
            Kind::Connect => matches!(first, None | Some(b'{')),
            Kind::Disconnect => first.is_none(),
            Kind::ConnectError => matches!(first, Some(b'{' | b'"')),
            Kind::Event | Kind::BinaryEvent | Kind::Ack | Kind::BinaryAck => first == Some(b'['),
        };
        if !fits {
            return Err(Malformed::Payload);
        }
        if matches!(kind, Kind::Ack | Kind::BinaryAck) && id.is_none() {
            return Err(Malformed::Acknowledgement);
        }
        Ok(Layout { kind, attachments, namespace, id, payload_at })
    }

    /// The packet; `text` is the one that was read.
    pub(super) fn packet(self, text: &mut [u8]) -> Packet<'_> {
        let (head, payload) = text.split_at_mut(self.payload_at.min(text.len()));
        let namespace = head.get(self.namespace).and_then(|name| std::str::from_utf8(name).ok()).unwrap_or_default();
        let namespace = if namespace.is_empty() { MAIN_NAMESPACE } else { namespace };
        Packet { header: Header { kind: self.kind, attachments: self.attachments, namespace, id: self.id }, payload }
    }
}

pub(super) struct TooLarge;

/// The number that a text begins with, and how many digits it has; 0 where there are none.
pub(super) fn number(text: &[u8], max: u64) -> Result<(u64, usize), TooLarge> {
    let mut number = 0u64;
    let mut digits = 0;
    for byte in text.iter().take_while(|byte| byte.is_ascii_digit()) {
        // Below 2^53 before each step, so this can't overflow.
        number = number * 10 + u64::from(byte - b'0');
        digits += 1;
        if number > max {
            return Err(TooLarge);
        }
    }
    Ok((number, digits))
}

const _: () = assert!(ACKNOWLEDGEMENT_MAX < u64::MAX / 10 - 9 && ATTACHMENTS_MAX as u64 <= ACKNOWLEDGEMENT_MAX);

/// An event's name and arguments.
#[derive(Clone, Copy)]
pub struct Event<'a, 'd> {
    /// The name; of a number, its digits.
    pub name: &'a str,
    values: Value<'a, 'd>,
}

impl<'a, 'd> Event<'a, 'd> {
    /// What follows the name.
    pub fn arguments(self) -> impl Iterator<Item = Value<'a, 'd>> {
        self.values.elements().skip(1)
    }
}

/// Parses the payload of an event and hands it to `then`.
pub fn with_event<R>(
    scratch: &mut Scratch,
    payload: &mut [u8],
    then: impl FnOnce(Result<Event<'_, '_>, Malformed>) -> R,
) -> R {
    let Ok(document) = scratch.parse(payload) else { return then(Err(Malformed::Json)) };
    let values = document.root();
    let name = values.elements().next().and_then(|name| {
        let number = || name.as_f64().and_then(|_| std::str::from_utf8(name.raw()).ok());
        name.as_str().or_else(number)
    });
    match name.filter(|name| !RESERVED.contains(name)) {
        Some(name) => then(Ok(Event { name, values })),
        None => then(Err(Malformed::EventName)),
    }
}

// What follows writes packets as the text of Engine.IO messages, their type in front.

impl Header<'_> {
    /// A header without attachments and acknowledgement.
    pub const fn new(kind: Kind, namespace: &str) -> Header<'_> {
        Header { kind, attachments: 0, namespace, id: None }
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[engineio::PacketKind::Message as u8, self.kind as u8]);
        let mut digits = itoa::Buffer::new();
        if self.kind.is_binary() {
            out.extend_from_slice(digits.format(self.attachments).as_bytes());
            out.push(b'-');
        }
        if self.namespace != MAIN_NAMESPACE {
            out.extend_from_slice(self.namespace.as_bytes());
            out.push(b',');
        }
        if let Some(id) = self.id {
            out.extend_from_slice(digits.format(id).as_bytes());
        }
    }

    /// How much [`Header::write`] appends.
    fn bytes(&self) -> usize {
        let digits = |number: u64| number.checked_ilog10().unwrap_or(0) as usize + 1;
        let attachments = if self.kind.is_binary() { digits(self.attachments as u64) + 1 } else { 0 };
        let namespace = if self.namespace == MAIN_NAMESPACE { 0 } else { self.namespace.len() + 1 };
        2 + attachments + namespace + self.id.map_or(0, digits)
    }
}

/// Appends a packet; its JSON is given in parts. Attachments follow as binary messages.
pub fn write_packet(out: &mut Vec<u8>, header: &Header<'_>, payload: &[&[u8]]) {
    header.write(out);
    for part in payload {
        out.extend_from_slice(part);
    }
}

/// Appends a packet as a whole WebSocket frame.
pub fn packet_frame(out: &mut Vec<u8>, header: &Header<'_>, payload: &[&[u8]]) {
    let bytes = header.bytes() + payload.iter().map(|part| part.len()).sum::<usize>();
    out.reserve(bytes + 10);
    ws::write_header(out, Opcode::Text, bytes);
    write_packet(out, header, payload);
}

/// Goes through what the hub has written for a client, frames or packets with their separators, and tells the room and number
/// of each event in it, or the first one of each gap; no number where the room's log is another one from there on.
pub fn each_event(written: &[u8], polls: bool, mut tell: impl FnMut(&str, Option<u64>)) {
    for (_, packet) in Written::new(written, polls) {
        let place = memchr::memmem::find(packet, envelope::HEAD).filter(|_| packet.starts_with(b"42"));
        let object = place.and_then(|place| packet.get(place..)).unwrap_or_default();
        let event = envelope::place_of(object).map(|(room, seq)| (room, Some(seq)));
        if let Some((room, seq)) = event.or_else(|| envelope::gap_of(object)) {
            tell(room, seq);
        }
    }
}

/// Appends what the hub has written for a client, without a namespace's events and answers.
pub fn leave_out(written: &[u8], polls: bool, namespace: &str, out: &mut Vec<u8>) {
    for (whole, packet) in Written::new(written, polls) {
        let is_of = match packet {
            [b'4', b'2' | b'3', rest @ ..] if namespace == MAIN_NAMESPACE => !rest.starts_with(b"/"),
            [b'4', b'2' | b'3', rest @ ..] => {
                rest.strip_prefix(namespace.as_bytes()).is_some_and(|rest| rest.starts_with(b","))
            }
            _ => false,
        };
        if !is_of {
            out.extend_from_slice(whole);
        }
    }
}

/// The packets of Engine.IO that the hub has written, each with the frame or separator that it stands in.
struct Written<'w> {
    rest: &'w [u8],
    polls: bool,
}

impl<'w> Written<'w> {
    fn new(written: &'w [u8], polls: bool) -> Written<'w> {
        Written { rest: written, polls }
    }
}

impl<'w> Iterator for Written<'w> {
    type Item = (&'w [u8], &'w [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let first = *self.rest.first()?;
        let (bytes, header_bytes) = if self.polls {
            let header_bytes = usize::from(first == engineio::SEPARATOR);
            let packet = self.rest.get(header_bytes..).unwrap_or_default();
            (header_bytes + memchr::memchr(engineio::SEPARATOR, packet).unwrap_or(packet.len()), header_bytes)
        } else {
            // What is no frame is the answer to the handshake. It is not looked into.
            match ws::frame_bytes(self.rest) {
                Some(bytes) => (bytes, ws::header_bytes_of(self.rest)),
                None => (self.rest.len(), self.rest.len()),
            }
        };
        let (whole, rest) = self.rest.split_at(bytes.min(self.rest.len()));
        self.rest = rest;
        Some((whole, whole.get(header_bytes..).unwrap_or_default()))
    }
}

/// The JSON of an event with one argument, in parts. The name has no character that needs escaping, as the types of the
/// hub's events have none ([`is_event_type`](super::native::is_event_type)).
pub fn event_payload<'a>(name: &'a str, argument: &'a [u8]) -> [&'a [u8]; 5] {
    [b"[\"", name.as_bytes(), b"\",", argument, b"]"]
}

/// The JSON of an answer with one argument, in parts.
pub fn ack_payload(argument: &[u8]) -> [&[u8]; 3] {
    [b"[", argument, b"]"]
}

/// Appends the packet that grants a namespace. `pid` is the private id by which a client may take its session up again.
pub fn write_connect(out: &mut Vec<u8>, namespace: &str, sid: &str, pid: Option<&str>) {
    Header::new(Kind::Connect, namespace).write(out);
    out.extend_from_slice(b"{\"sid\":");
    write_string(out, sid);
    if let Some(pid) = pid {
        out.extend_from_slice(b",\"pid\":");
        write_string(out, pid);
    }
    out.push(b'}');
}

/// Appends the packet that refuses a namespace. `data` is JSON that clients find as the error's `data`.
pub fn write_connect_error(out: &mut Vec<u8>, namespace: &str, message: &str, data: Option<&[u8]>) {
    Header::new(Kind::ConnectError, namespace).write(out);
    out.extend_from_slice(b"{\"message\":");
    write_string(out, message);
    if let Some(data) = data {
        out.extend_from_slice(b",\"data\":");
        out.extend_from_slice(data);
    }
    out.push(b'}');
}

/// Appends the packet by which the server takes a client out of a namespace.
pub fn write_disconnect(out: &mut Vec<u8>, namespace: &str) {
    Header::new(Kind::Disconnect, namespace).write(out);
}

#[cfg(test)]
mod tests {
    use super::super::engineio::PayloadWriter;
    use super::super::outlet::Outlet;
    use super::*;
    use proptest::prelude::*;

    fn header(kind: Kind, attachments: usize, namespace: &str, id: Option<u64>) -> Header<'_> {
        Header { kind, attachments, namespace, id }
    }

    fn read<R>(text: &str, check: impl FnOnce(Packet<'_>) -> R) -> Result<R, Malformed> {
        parse(&mut text.as_bytes().to_vec()).map(check)
    }

    /// What [`write_packet`] makes of a header, without Engine.IO's type.
    fn written(header: &Header<'_>, payload: &[u8]) -> String {
        let (mut out, mut frame) = (Vec::new(), Vec::new());
        write_packet(&mut out, header, &[payload]);
        packet_frame(&mut frame, header, &[payload]);
        let mut expected = Vec::new();
        ws::text_frame(&out, &mut expected);
        assert_eq!(frame, expected, "a frame's length is known before it is written");
        assert_eq!(out.first(), Some(&b'4'));
        String::from_utf8(out.split_off(1)).expect("text")
    }

    fn event(text: &str) -> Result<(String, Vec<String>), Malformed> {
        let mut text = text.as_bytes().to_vec();
        with_event(&mut Scratch::new(8), &mut text, |event| {
            event.map(|event| {
                let raw = |value: Value<'_, '_>| String::from_utf8_lossy(value.raw()).into_owned();
                (event.name.to_owned(), event.arguments().map(raw).collect())
            })
        })
    }

    #[test]
    fn the_examples_of_the_protocol_document_are_read_and_written() {
        let sid = r#"{"sid":"oSO0OpakMV_3jnilAAAA"}"#;
        let one = r#"["baz",{"_placeholder":true,"num":0}]"#;
        let two = r#"["baz",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]"#;
        let examples = [
            ("0", header(Kind::Connect, 0, "/", None), ""),
            (r#"0/admin,{"sid":"oSO0OpakMV_3jnilAAAA"}"#, header(Kind::Connect, 0, "/admin", None), sid),
            (r#"0{"sid":"oSO0OpakMV_3jnilAAAA"}"#, header(Kind::Connect, 0, "/", None), sid),
            (
                r#"4{"message":"Not authorized"}"#,
                header(Kind::ConnectError, 0, "/", None),
                r#"{"message":"Not authorized"}"#,
            ),
            (r#"2["foo"]"#, header(Kind::Event, 0, "/", None), r#"["foo"]"#),
            (r#"2/admin,["bar"]"#, header(Kind::Event, 0, "/admin", None), r#"["bar"]"#),
            (&format!("51-{one}"), header(Kind::BinaryEvent, 1, "/", None), one),
            (&format!("52-/admin,{two}"), header(Kind::BinaryEvent, 2, "/admin", None), two),
            (r#"212["foo"]"#, header(Kind::Event, 0, "/", Some(12)), r#"["foo"]"#),
            (r#"3/admin,13["bar"]"#, header(Kind::Ack, 0, "/admin", Some(13)), r#"["bar"]"#),
            ("312[]", header(Kind::Ack, 0, "/", Some(12)), "[]"),
            (&format!("61-15{one}"), header(Kind::BinaryAck, 1, "/", Some(15)), one),
            ("1", header(Kind::Disconnect, 0, "/", None), ""),
            ("1/admin,", header(Kind::Disconnect, 0, "/admin", None), ""),
            (r#"2/admin,1["tellme"]"#, header(Kind::Event, 0, "/admin", Some(1)), r#"["tellme"]"#),
        ];
        for (text, expected, payload) in examples {
            let outcome = read(text, |packet| {
                assert_eq!((packet.header, &*packet.payload), (expected, payload.as_bytes()), "{text}");
            });
            assert_eq!(outcome, Ok(()), "{text}");
            assert_eq!(written(&expected, payload.as_bytes()), text);
        }
    }

    #[test]
    fn a_namespace_needs_its_comma_only_where_something_follows() {
        for text in ["0/random", "0/random,"] {
            assert_eq!(read(text, |packet| packet.header.namespace.to_owned()).as_deref(), Ok("/random"));
        }
        assert_eq!(read("1/custom", |packet| packet.header.namespace.to_owned()).as_deref(), Ok("/custom"));
        assert_eq!(read(r#"2/a/b?c={"#, |_| ()), Err(Malformed::Payload), "a namespace alone is no event");
        assert_eq!(read(r#"2/é,["x"]"#, |packet| packet.header.namespace.to_owned()).as_deref(), Ok("/é"));
        assert_eq!(read(r#"2/,["x"]"#, |packet| packet.header.namespace.to_owned()).as_deref(), Ok("/"));
        assert_eq!(read("2007[1]", |packet| packet.header.id), Ok(Some(7)));
    }

    #[test]
    fn a_malformed_packet_is_told_apart() {
        let long = format!("0/{},", "n".repeat(NAMESPACE_BYTES_MAX));
        for (text, expected) in [
            ("", Malformed::UnknownKind),
            ("7", Malformed::UnknownKind),
            ("abc", Malformed::UnknownKind),
            ("[\"foo\"]", Malformed::UnknownKind),
            ("5", Malformed::AttachmentCount),
            ("5[\"a\"]", Malformed::AttachmentCount),
            ("5-[\"a\"]", Malformed::AttachmentCount),
            ("50-[\"a\"]", Malformed::AttachmentCount),
            ("51[\"a\"]", Malformed::AttachmentCount),
            ("511-[\"a\"]", Malformed::AttachmentCount),
            ("5-1-[\"a\"]", Malformed::AttachmentCount),
            ("51.5-[\"a\"]", Malformed::AttachmentCount),
            ("599999999999999999999999999999-[\"a\"]", Malformed::AttachmentCount),
            (&long, Malformed::Namespace),
            ("2/a\x1eb,[\"x\"]", Malformed::Namespace),
            ("29007199254740992[\"x\"]", Malformed::Acknowledgement),
            ("2999999999999999999999999999999999[\"x\"]", Malformed::Acknowledgement),
            ("3[\"x\"]", Malformed::Acknowledgement),
            ("61-[\"x\"]", Malformed::Acknowledgement),
            ("2", Malformed::Payload),
            ("212", Malformed::Payload),
            ("2{}", Malformed::Payload),
            ("2-1[\"x\"]", Malformed::Payload),
            ("2\"x\"", Malformed::Payload),
            ("2null", Malformed::Payload),
            ("2 [\"x\"]", Malformed::Payload),
            ("0[]", Malformed::Payload),
            ("0\"token\"", Malformed::Payload),
            ("1{}", Malformed::Payload),
            ("4", Malformed::Payload),
            ("4[]", Malformed::Payload),
            ("312", Malformed::Payload),
        ] {
            assert_eq!(read(text, |_| ()), Err(expected), "{text:?}");
        }
        assert_eq!(parse(b"0/\xff,".to_vec().as_mut()), Err(Malformed::Namespace));
        assert_eq!(read("29007199254740991[1]", |packet| packet.header.id), Ok(Some(ACKNOWLEDGEMENT_MAX)));
    }

    #[test]
    fn an_event_has_a_name_that_is_its_own() {
        assert_eq!(event(r#"["foo"]"#), Ok(("foo".to_owned(), vec![])));
        assert_eq!(event(r#"["f\u006fo",{"a": 1},[2],"x"]"#).map(|event| event.0).as_deref(), Ok("foo"));
        assert_eq!(
            event(r#"["foo",{"a": 1},[2],"x"]"#).map(|event| event.1.join(" ")).as_deref(),
            Ok(r#"{"a": 1} [2] "x""#)
        );
        assert_eq!(event("[17,true]").map(|event| event.0).as_deref(), Ok("17"));
        for text in ["[]", "[null]", "[{}]", "[[\"x\"]]", r#"["connect"]"#, r#"["disconn\u0065ct",1]"#] {
            assert_eq!(event(text), Err(Malformed::EventName), "{text}");
        }
        let deep = format!("[\"x\",{}{}]", "[".repeat(20), "]".repeat(20));
        for text in ["", "[", r#"["x""#, r#"["x"]]"#, "[\"x\"][1]", "[\"\n\"]", &deep] {
            assert_eq!(event(text), Err(Malformed::Json), "{text}");
        }
    }

    #[test]
    fn answers_and_events_are_written_as_the_reference_server_writes_them() {
        let mut out = Vec::new();
        let mut text = |write: &dyn Fn(&mut Vec<u8>)| {
            out.clear();
            write(&mut out);
            String::from_utf8(out.clone()).expect("text")
        };
        assert_eq!(text(&|out| write_connect(out, "/", "wZX3", None)), r#"40{"sid":"wZX3"}"#);
        assert_eq!(text(&|out| write_connect(out, "/ws", "a", Some("b"))), r#"40/ws,{"sid":"a","pid":"b"}"#);
        assert_eq!(
            text(&|out| write_connect_error(out, "/random", "Invalid namespace", None)),
            r#"44/random,{"message":"Invalid namespace"}"#
        );
        assert_eq!(
            text(&|out| write_connect_error(out, "/", "no", Some(br#"{"code":"unauthorized"}"#))),
            r#"44{"message":"no","data":{"code":"unauthorized"}}"#
        );
        assert_eq!(text(&|out| write_disconnect(out, "/")), "41");
        assert_eq!(text(&|out| write_disconnect(out, "/ws")), "41/ws,");
        let ack = header(Kind::Ack, 0, "/ws", Some(456));
        assert_eq!(text(&|out| write_packet(out, &ack, &ack_payload(b"{}"))), "43/ws,456[{}]");
        let event = Header::new(Kind::Event, "/");
        assert_eq!(
            text(&|out| write_packet(out, &event, &event_payload("project.updated", b"{\"seq\":1}"))),
            r#"42["project.updated",{"seq":1}]"#
        );
    }

    /// What the hub has written for a client: the answer to its handshake where that is not yet sent, a message of bytes,
    /// events of two rooms in two namespaces, an answer and a gap in one, and what is no message.
    fn sent(polls: bool) -> Vec<u8> {
        let stamp = envelope::Stamp { id: [b'i'; 36], timestamp: envelope::rfc3339(0) };
        let mut out = if polls { Vec::new() } else { b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec() };
        // It is a chunk of its own as long as there is one.
        if !polls {
            let mut read = Vec::new();
            leave_out(&out, false, "/", &mut read);
            assert_eq!(read, out);
            out.clear();
        }
        let mut outlet = match polls {
            true => Outlet::Payload(PayloadWriter::continued(&mut out)),
            false => Outlet::WebSocket { out: &mut out, base64: false },
        };
        let (name, data) = ("a.b", "x".repeat(70_000));
        let data = format!("{{\"data\":\"{data}\"}}");
        let event = |room, seq, data: &str| {
            let mut frame = Vec::new();
            let event = envelope::Event { room, kind: name, seq, data: data.as_bytes() };
            envelope::write_event(&mut frame, &stamp, &event);
            frame.split_off(ws::header_bytes_of(&frame))
        };
        let (mut gap, mut answer) = (Vec::new(), Vec::new());
        envelope::begin(&mut gap, "gap", &stamp, None);
        envelope::write_gap(&mut gap, "a:3", (Some(3), Some(5)), "slow", None);
        gap.push(b'}');
        envelope::begin(&mut answer, "subscribed", &stamp, None);
        answer.extend_from_slice(b"{\"room\":\"a:1\",\"seq\":9}}");
        outlet.text(|out| write_connect(out, "/ws", "s", None));
        outlet.socketio(&header(Kind::Event, 0, "/", None), &event_payload(name, &event("a:1", 7, "{}")));
        outlet.socketio(&header(Kind::Event, 0, "/ws", None), &event_payload(name, &event("a:1", 7, "{}")));
        outlet.packet(engineio::PacketKind::Ping, b"");
        outlet.socketio(&header(Kind::BinaryEvent, 1, "/ws", None), &[b"[\"c\",{\"_placeholder\":true,\"num\":0}]"]);
        outlet.binary(&[1, 2, 3]);
        outlet.socketio(&header(Kind::Event, 0, "/ws", None), &event_payload(name, &event("b:2", 1 << 60, &data)));
        outlet.socketio(&header(Kind::Ack, 0, "/ws", Some(4)), &ack_payload(&answer));
        outlet.socketio(&header(Kind::Event, 0, "/", None), &event_payload("gap", &gap));
        outlet.socketio(&header(Kind::Event, 0, "/ws2", None), &event_payload("subscribed", &answer));
        out
    }

    /// The packets in that, each by how it begins.
    fn heads(written: &[u8], polls: bool) -> Vec<String> {
        let head = |packet: &[u8]| String::from_utf8_lossy(&packet[..packet.len().min(9)]).into_owned();
        Written::new(written, polls).map(|(_, packet)| head(packet)).collect()
    }

    #[test]
    fn the_events_in_what_was_written_are_told_by_room_and_number() {
        for polls in [false, true] {
            let (written, mut told) = (sent(polls), Vec::new());
            each_event(&written, polls, |room, seq| told.push((room.to_owned(), seq)));
            let expected = [("a:1", 7), ("a:1", 7), ("b:2", 1 << 60), ("a:3", 3)];
            assert_eq!(told, expected.map(|(room, seq)| (room.to_owned(), Some(seq))), "polls: {polls}");
        }
        // The answer to a handshake may wait as well, and be all that does.
        each_event(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", false, |_, _| unreachable!("no event"));
        each_event(b"", true, |_, _| unreachable!("nothing"));
    }

    #[test]
    fn events_and_answers_of_a_namespace_are_left_out_and_nothing_else() {
        for polls in [false, true] {
            let (written, binary) = (sent(polls), if polls { "bAQID" } else { "\x01\x02\x03" });
            let without = |namespace: &str| {
                let mut out = Vec::new();
                leave_out(&written, polls, namespace, &mut out);
                heads(&out, polls)
            };
            let all = ["40/ws,{\"s", "42[\"a.b\",", "42/ws,[\"a", "2", "451-/ws,[", binary, "42/ws,[\"a", "43/ws,4[{"];
            let all = [&all[..], &["42[\"gap\",", "42/ws2,[\""]].concat();
            let but = |left: &[usize]| {
                let kept = all.iter().enumerate().filter(|(place, _)| !left.contains(place));
                kept.map(|(_, head)| (*head).to_owned()).collect::<Vec<String>>()
            };
            assert_eq!(heads(&written, polls), but(&[]));
            assert_eq!(without("/"), but(&[1, 8]));
            assert_eq!(without("/ws"), but(&[2, 6, 7]));
            assert_eq!(without("/ws2"), but(&[9]));
            assert_eq!(without("/w"), but(&[]));
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            kind in b'0'..=b'6', attachments in 1..=ATTACHMENTS_MAX, namespace in "/|/[a-z/?{\\[\"é0-9]{1,10}",
            id in proptest::option::of(0..=ACKNOWLEDGEMENT_MAX), values in proptest::collection::vec("[a-z\"\\\\{,é]{0,6}", 0..3))
        {
            let kind = Kind::from_byte(kind).expect("one of the seven");
            let payload = match kind {
                Kind::Connect | Kind::ConnectError => serde_json::json!({ "values": values }).to_string(),
                Kind::Disconnect => String::new(),
                _ => serde_json::Value::from(values).to_string(),
            };
            let id = if matches!(kind, Kind::Ack | Kind::BinaryAck) { id.or(Some(0)) } else { id };
            let attachments = if kind.is_binary() { attachments } else { 0 };
            let header = Header { kind, attachments, namespace: &namespace, id };
            let text = written(&header, payload.as_bytes());
            let read = read(&text, |packet| {
                assert_eq!((packet.header, &*packet.payload), (header, payload.as_bytes()));
            });
            prop_assert_eq!(read, Ok(()));
        }

        #[test]
        fn any_bytes_are_read_or_refused(text in proptest::collection::vec(
            prop_oneof![b'0'..=b'9', Just(b'/'), Just(b','), Just(b'-'), Just(b'['), any::<u8>()], 0..24))
        {
            let mut text = text;
            let original = text.clone();
            if let Ok(packet) = parse(&mut text) {
                // What was accepted is the same once more when it is written by us.
                let (header, payload) = (packet.header, packet.payload.to_vec());
                let mut out = Vec::new();
                write_packet(&mut out, &header, &[&payload]);
                let again = parse(&mut out[1..]).expect("ours can be read");
                prop_assert_eq!((again.header, &*again.payload), (header, &payload[..]));
                prop_assert!(original.ends_with(&payload));
            }
        }
    }
}
