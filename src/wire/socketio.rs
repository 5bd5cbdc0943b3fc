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

use smallvec::SmallVec;

use super::base64;
use super::engineio;
use super::json::{Scratch, Value, behind_string, write_string};
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
pub enum Malformed {
    /// None of the seven types.
    #[error("a packet of an unknown type")]
    UnknownKind,
    /// A count of attachments that is missing, 0, or above [`ATTACHMENTS_MAX`].
    #[error("a packet with no valid count of attachments")]
    AttachmentCount,
    /// A namespace that is too long, has control characters, or isn't UTF-8.
    #[error("a malformed namespace")]
    Namespace,
    /// An acknowledgement id above [`ACKNOWLEDGEMENT_MAX`], or an answer without one.
    #[error("a missing or too large acknowledgement id")]
    Acknowledgement,
    /// No payload where there has to be one, one where there is none, or one of another kind of value.
    #[error("a payload that doesn't fit its packet")]
    Payload,
    /// The payload is not JSON, or nested too deep.
    #[error("a payload that is not JSON")]
    Json,
    /// An event whose name is no string or number, or one of the library's own.
    #[error("an event without a name, or with one that is reserved")]
    EventName,
    /// A packet began while another one still waited for attachments.
    #[error("text where an attachment was expected")]
    AttachmentMissing,
    /// A binary message that belongs to no packet.
    #[error("an attachment that no packet announced")]
    AttachmentUnexpected,
    /// The placeholders don't stand for each attachment once.
    #[error("placeholders that don't match the attachments")]
    Placeholder,
    /// A packet is, with its attachments, longer than allowed.
    #[error("a packet with attachments that is too large")]
    TooLarge,
}

/// Reads the text of a packet: the data of an Engine.IO message.
pub fn parse(text: &mut [u8]) -> Result<Packet<'_>, Malformed> {
    Layout::read(text).map(|layout| layout.packet(text))
}

/// Where the parts of a packet's text are.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Layout {
    kind: Kind,
    attachments: usize,
    /// Empty for the main namespace.
    namespace: Range<usize>,
    id: Option<u64>,
    payload_at: usize,
}

impl Layout {
    fn read(text: &[u8]) -> Result<Layout, Malformed> {
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
    fn packet(self, text: &mut [u8]) -> Packet<'_> {
        let (head, payload) = text.split_at_mut(self.payload_at.min(text.len()));
        let namespace = head.get(self.namespace).and_then(|name| std::str::from_utf8(name).ok()).unwrap_or_default();
        let namespace = if namespace.is_empty() { MAIN_NAMESPACE } else { namespace };
        Packet { header: Header { kind: self.kind, attachments: self.attachments, namespace, id: self.id }, payload }
    }
}

struct TooLarge;

/// The number that a text begins with, and how many digits it has; 0 where there are none.
fn number(text: &[u8], max: u64) -> Result<(u64, usize), TooLarge> {
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

/// Joins packets with the attachments that follow them. A pointer, empty unless a packet waits.
#[derive(Debug, Default)]
pub struct Assembler {
    waiting: Option<Box<Assembled>>,
}

const _: () = assert!(size_of::<Assembler>() <= 8, "an assembler is part of every idle connection");

/// A packet with its attachments.
#[derive(Debug)]
pub struct Assembled {
    text: Vec<u8>,
    layout: Layout,
    /// The attachments, one behind the other.
    data: Vec<u8>,
    /// Where each attachment ends in `data`.
    ends: SmallVec<[usize; ATTACHMENTS_MAX]>,
}

impl Assembler {
    /// Takes the text of a packet. It is given back parsed, or, where attachments are to follow, kept (then `None`).
    ///
    /// A packet with its attachments has at most `bytes_max` bytes. After an error the connection is to be closed.
    pub fn text<'a>(&mut self, text: &'a mut [u8], bytes_max: usize) -> Result<Option<Packet<'a>>, Malformed> {
        if self.waiting.take().is_some() {
            return Err(Malformed::AttachmentMissing);
        }
        let layout = Layout::read(text)?;
        if !layout.kind.is_binary() {
            return Ok(Some(layout.packet(text)));
        }
        if text.len() > bytes_max {
            return Err(Malformed::TooLarge);
        }
        let (text, data, ends) = (text.to_vec(), Vec::new(), SmallVec::new());
        self.waiting = Some(Box::new(Assembled { text, layout, data, ends }));
        Ok(None)
    }

    /// Takes an attachment. The packet that it completes is given back.
    pub fn binary(&mut self, data: &[u8], bytes_max: usize) -> Result<Option<Box<Assembled>>, Malformed> {
        let mut waiting = self.waiting.take().ok_or(Malformed::AttachmentUnexpected)?;
        if waiting.bytes() + data.len() > bytes_max {
            return Err(Malformed::TooLarge);
        }
        waiting.data.extend_from_slice(data);
        waiting.ends.push(waiting.data.len());
        if waiting.ends.len() == waiting.layout.attachments {
            return Ok(Some(waiting));
        }
        self.waiting = Some(waiting);
        Ok(None)
    }

    /// The bytes that are kept for a packet that waits.
    pub fn bytes(&self) -> usize {
        self.waiting.as_ref().map_or(0, |waiting| waiting.bytes())
    }
}

impl Assembled {
    /// The packet and what was attached to it.
    pub fn parts(&mut self) -> (Packet<'_>, Attachments<'_>) {
        (self.layout.clone().packet(&mut self.text), Attachments { data: &self.data, ends: &self.ends })
    }

    fn bytes(&self) -> usize {
        self.text.len() + self.data.len()
    }
}

/// The attachments of a packet, in their order.
#[derive(Debug, Clone, Copy)]
pub struct Attachments<'a> {
    data: &'a [u8],
    ends: &'a [usize],
}

impl<'a> Attachments<'a> {
    /// The attachment of that number, from 0 on.
    pub fn nth(self, number: usize) -> Option<&'a [u8]> {
        let start = number.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied())?;
        self.data.get(start..*self.ends.get(number)?)
    }

    /// All of them.
    pub fn iter(self) -> impl ExactSizeIterator<Item = &'a [u8]> {
        (0..self.ends.len()).map(move |number| self.nth(number).unwrap_or_default())
    }

    /// Appends a packet's JSON with each placeholder replaced by its attachment as a string of base64: so it goes where
    /// only JSON can, to native clients and backends. It has to have one placeholder for each attachment.
    pub fn splice(self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
        let mut missing = (1u64 << self.ends.len()) - 1;
        let mut done = 0;
        for Placeholder { span, number } in placeholders(payload) {
            let bit = 1u64.checked_shl(number).unwrap_or(0);
            let data = self.nth(number as usize).filter(|_| missing & bit != 0).ok_or(Malformed::Placeholder)?;
            missing &= !bit;
            out.extend_from_slice(payload.get(done..span.start).unwrap_or_default());
            out.push(b'"');
            base64::encode(out, data);
            out.push(b'"');
            done = span.end;
        }
        out.extend_from_slice(payload.get(done..).unwrap_or_default());
        if missing == 0 { Ok(()) } else { Err(Malformed::Placeholder) }
    }
}

const _: () = assert!(ATTACHMENTS_MAX < 64, "the placeholders that are still missing are bits of a u64");

/// Where an attachment belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Placeholder {
    span: Range<usize>,
    number: u32,
}

/// The objects `{"_placeholder":true,"num":n}` of a JSON text, in their order. Of a text that is no JSON, anything.
///
/// Their two members come in either order, since some clients write them from a hash map.
fn placeholders(json: &[u8]) -> impl Iterator<Item = Placeholder> {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            at += memchr::memchr2(b'"', b'{', json.get(at..)?)?;
            if json.get(at) == Some(&b'"') {
                at = behind_string(json, at);
                continue;
            }
            let start = at;
            at += 1;
            if let Some((end, number)) = placeholder(json, at) {
                at = end;
                return Some(Placeholder { span: start..end, number });
            }
        }
    })
}

/// Reads what follows the brace of a placeholder: its end and its number.
fn placeholder(json: &[u8], at: usize) -> Option<(usize, u32)> {
    const MARK: &[u8] = b"\"_placeholder\"";
    const NUMBER: &[u8] = b"\"num\"";
    let mut cursor = Cursor { json, at };
    let number = if cursor.eat(MARK) {
        (cursor.eat(b":") && cursor.eat(b"true") && cursor.eat(b",") && cursor.eat(NUMBER) && cursor.eat(b":"))
            .then(|| cursor.number())??
    } else {
        let number = (cursor.eat(NUMBER) && cursor.eat(b":")).then(|| cursor.number())??;
        (cursor.eat(b",") && cursor.eat(MARK) && cursor.eat(b":") && cursor.eat(b"true")).then_some(number)?
    };
    cursor.eat(b"}").then_some((cursor.at, number))
}

/// A walk over the tokens of a placeholder.
struct Cursor<'a> {
    json: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    /// Passes over white space and the token, if it is the next.
    fn eat(&mut self, token: &[u8]) -> bool {
        self.skip_space();
        let is_next = self.rest().starts_with(token);
        self.at += if is_next { token.len() } else { 0 };
        is_next
    }

    fn number(&mut self) -> Option<u32> {
        self.skip_space();
        let (number, digits) = number(self.rest(), ATTACHMENTS_MAX as u64).ok()?;
        self.at += digits;
        (digits > 0).then_some(number as u32)
    }

    fn skip_space(&mut self) {
        self.at += self.rest().iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count();
    }

    fn rest(&self) -> &[u8] {
        self.json.get(self.at..).unwrap_or_default()
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
    use super::*;
    use proptest::prelude::*;

    const BYTES_MAX: usize = 1000;

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

    /// A packet with its attachments, spliced.
    fn assembled(text: &str, attachments: &[&[u8]]) -> Result<String, Malformed> {
        let mut assembler = Assembler::default();
        assert_eq!(assembler.text(&mut text.as_bytes().to_vec(), BYTES_MAX)?, None);
        let (last, before) = attachments.split_last().expect("a binary packet has attachments");
        for attachment in before {
            assert!(assembler.binary(attachment, BYTES_MAX)?.is_none());
        }
        let mut assembled = assembler.binary(last, BYTES_MAX)?.expect("the last completes it");
        assert_eq!(assembler.bytes(), 0);
        let (packet, attached) = assembled.parts();
        assert_eq!(attached.iter().collect::<Vec<_>>(), attachments);
        let mut out = Vec::new();
        attached.splice(packet.payload, &mut out)?;
        Ok(String::from_utf8(out).expect("text"))
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
    fn a_packet_is_whole_when_its_last_attachment_has_come() {
        let text = r#"52-/ws,7["x",{"a":{"_placeholder":true,"num":1}},[{ "num" : 0 , "_placeholder" : true }]]"#;
        assert_eq!(assembled(text, &[b"\x01\x02\x03", b""]).as_deref(), Ok(r#"["x",{"a":""},["AQID"]]"#));
        let ten: Vec<String> =
            (0..ATTACHMENTS_MAX).map(|number| format!(r#"{{"_placeholder":true,"num":{number}}}"#)).collect();
        let text = format!("510-[\"x\",{}]", ten.join(","));
        assert!(
            assembled(&text, &[b"f".as_slice(); ATTACHMENTS_MAX]).is_ok_and(|json| json.matches("Zg==").count() == 10)
        );
    }

    #[test]
    fn what_only_looks_like_a_placeholder_stays_as_it_is() {
        let holder = r#"{"_placeholder":true,"num":0}"#;
        for other in [
            r#""{\"_placeholder\":true,\"num\":0}""#,
            r#""\\",{"_placeholder":false,"num":0}"#,
            r#"{"_placeholder":true}"#,
            r#"{"num":0}"#,
            r#"{"_placeholder":true,"num":"0"}"#,
            r#"{"_placeholder":true,"num":0.0}"#,
            r#"{"_placeholder":true,"num":-1}"#,
            r#"{"_placeholder":true,"num":99999999999}"#,
            r#"{"_placeholder":true,"num":0,"more":1}"#,
            r#"["_placeholder",true,"num",0]"#,
        ] {
            let json = assembled(&format!("51-[\"x\",{other},{holder}]"), &[b"f"]);
            assert_eq!(json, Ok(format!("[\"x\",{other},\"Zg==\"]")));
        }
        // What stands around a placeholder in the same object is nobody's.
        let nested = format!(r#"51-["x",{{"_placeholder":{holder},"num":0}}]"#);
        assert_eq!(assembled(&nested, &[b"f"]).as_deref(), Ok(r#"["x",{"_placeholder":"Zg==","num":0}]"#));
    }

    #[test]
    fn placeholders_stand_for_each_attachment_once() {
        for text in [
            r#"51-["x"]"#,
            r#"51-["x",{"_placeholder":true,"num":1}]"#,
            r#"51-["x",{"_placeholder":true,"num":0},{"_placeholder":true,"num":0}]"#,
            r#"51-["x",{"_placeholder":true,"num":10}]"#,
            r#"51-["x",{"_placeholder":true,"num":0"#,
            r#"51-["x",{"_placeholder":true,"num":"#,
            r#"51-["x",{"_placeholder"#,
            r#"51-["x"#,
        ] {
            assert_eq!(assembled(text, &[b"f"]), Err(Malformed::Placeholder), "{text}");
        }
        let twice = r#"52-["x",{"_placeholder":true,"num":0},{"_placeholder":true,"num":0}]"#;
        assert_eq!(assembled(twice, &[b"f", b"g"]), Err(Malformed::Placeholder));
    }

    #[test]
    fn what_comes_out_of_turn_is_refused_and_what_is_kept_is_bounded() {
        let mut assembler = Assembler::default();
        let text = r#"52-["x",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]"#;
        let mut take =
            |text: &str| assembler.text(&mut text.as_bytes().to_vec(), BYTES_MAX).map(|packet| packet.is_some());
        assert_eq!(take(r#"2["x"]"#), Ok(true));
        assert_eq!(take(text), Ok(false));
        assert_eq!(take(r#"2["x"]"#), Err(Malformed::AttachmentMissing));
        assert_eq!(take(&format!("51-[{}]", " ".repeat(BYTES_MAX))), Err(Malformed::TooLarge));
        assert_eq!(assembler.bytes(), 0, "nothing is kept after an error");
        assert_eq!(assembler.binary(b"f", BYTES_MAX).err(), Some(Malformed::AttachmentUnexpected));
        assert_eq!(assembler.text(&mut text.as_bytes().to_vec(), BYTES_MAX), Ok(None));
        assert!(assembler.binary(&[0; BYTES_MAX - 200], BYTES_MAX).is_ok_and(|whole| whole.is_none()));
        assert!(assembler.bytes() > BYTES_MAX - 200);
        assert_eq!(assembler.binary(&[0; 200], BYTES_MAX).err(), Some(Malformed::TooLarge));
        assert_eq!(assembler.bytes(), 0);
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

    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(serde_json::Value::from),
            any::<i32>().prop_map(serde_json::Value::from),
            "[a-z\"\\\\{}_ é]{0,8}".prop_map(serde_json::Value::from),
            Just(serde_json::Value::from("_placeholder")),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            let key = prop_oneof![Just("_placeholder".to_owned()), Just("num".to_owned()), "[a-z\"{]{0,4}".boxed()];
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
                proptest::collection::btree_map(key, inner, 0..4)
                    .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
            ]
        })
    }

    fn is_placeholder(value: &serde_json::Value) -> bool {
        value["_placeholder"] == true && value["num"].is_u64() && value.as_object().is_some_and(|all| all.len() == 2)
    }

    fn holds_placeholder(value: &serde_json::Value) -> bool {
        is_placeholder(value)
            || match value {
                serde_json::Value::Array(values) => values.iter().any(holds_placeholder),
                serde_json::Value::Object(members) => members.values().any(holds_placeholder),
                _ => false,
            }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            kind in b'0'..=b'6', attachments in 1..=ATTACHMENTS_MAX, namespace in "/|/[a-z/?{\\[\"é0-9]{1,10}",
            id in proptest::option::of(0..=ACKNOWLEDGEMENT_MAX), values in proptest::collection::vec(any_json(), 0..3))
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

        #[test]
        fn attachments_come_to_stand_where_their_placeholders_stood(
            values in proptest::collection::vec(any_json(), 1..5), seed in any::<u64>(), spaced in any::<bool>())
        {
            prop_assume!(!values.iter().any(holds_placeholder));
            // A placeholder behind every value, in an order of its own; the attachments are their numbers.
            let count = values.len();
            let (mut sent, mut expected) = (vec![serde_json::Value::from("x")], vec![serde_json::Value::from("x")]);
            for (place, value) in values.into_iter().enumerate() {
                let number = (place + seed as usize % count) % count;
                sent.extend([value.clone(), serde_json::json!({"_placeholder": true, "num": number})]);
                let mut text = Vec::new();
                base64::encode(&mut text, &[number as u8; 5][..number + 1]);
                expected.extend([value, serde_json::Value::from(String::from_utf8(text).expect("digits"))]);
            }
            let json = if spaced { serde_json::to_string_pretty(&sent) } else { serde_json::to_string(&sent) };
            let attachments: Vec<Vec<u8>> = (0..count).map(|number| vec![number as u8; number + 1]).collect();
            let attachments: Vec<&[u8]> = attachments.iter().map(Vec::as_slice).collect();
            let text = format!("5{count}-{}", json.expect("json"));
            prop_assume!(text.len() < BYTES_MAX - 50);
            let spliced = assembled(&text, &attachments).expect("each once");
            prop_assert_eq!(serde_json::from_str::<Vec<serde_json::Value>>(&spliced).expect("json"), expected);
        }
    }
}
