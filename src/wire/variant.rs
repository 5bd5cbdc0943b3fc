//! The forms in which a client may have the messages of the native protocol, by the subprotocol that it asked for: several
//! events in one frame, or all of it as MessagePack.
//!
//! ```text
//! native           {event 41} {event 42} {answer}        a text frame each
//! batch            [{event 41},{event 42}] {answer}      several events of a room at once: one text frame with an array
//! msgpack          the same as native, in binary frames
//! msgpack, batch   the same as batch, in binary frames
//! ```
//!
//! A form is made of whole native frames and yields whole frames, so that it can be put between a batch and whatever is done
//! with frames behind it.

use super::msgpack;
use super::upgrade::PROTOCOL_JSON;
use super::ws::{self, Opcode};

/// Arrays of events are not made larger than this: a client can act on the first event only when it has read the whole frame.
/// One event that is larger is a frame by itself.
pub const BATCH_FRAME_BYTES_MAX: usize = 64 * 1024;

/// A form that is not the native one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// As the native one, but that some events may come as changes.
    Plain,
    /// JSON, several events in one frame.
    Batch,
    /// MessagePack.
    MsgPack,
    /// MessagePack, several events in one frame.
    MsgPackBatch,
}

/// What a client has asked for with a subprotocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subprotocol {
    /// Its name, which is echoed.
    pub name: &'static str,
    /// The form of the messages; none for native ones.
    pub variant: Option<Variant>,
}

/// The subprotocols that a client of the native protocol may offer.
pub const SUBPROTOCOLS: [Subprotocol; 4] = [
    Subprotocol { name: PROTOCOL_JSON, variant: None },
    Subprotocol { name: "ringhub.v1.json.batch", variant: Some(Variant::Batch) },
    Subprotocol { name: "ringhub.v1.msgpack", variant: Some(Variant::MsgPack) },
    Subprotocol { name: "ringhub.v1.msgpack.batch", variant: Some(Variant::MsgPackBatch) },
];

impl Subprotocol {
    /// The first of the offered ones that there is (RFC 6455 §4.1: the client names those it prefers first); where there are
    /// no `variants`, only the native form is.
    pub fn choose(offered: &[&str], variants: bool) -> Option<Subprotocol> {
        let known = || SUBPROTOCOLS.into_iter().filter(move |known| variants || known.variant.is_none());
        offered.iter().find_map(|name| known().find(|known| known.name == *name))
    }
}

impl Variant {
    /// Whether messages are MessagePack in binary frames.
    pub const fn is_msgpack(self) -> bool {
        matches!(self, Variant::MsgPack | Variant::MsgPackBatch)
    }

    /// Whether several events come in one frame.
    pub const fn is_batch(self) -> bool {
        matches!(self, Variant::Batch | Variant::MsgPackBatch)
    }

    /// Whether these native frames are what this form makes of them.
    pub fn is_native(self, frames: &[u8]) -> bool {
        match self {
            Variant::Plain => true,
            Variant::Batch => ws::frame_bytes(frames) == Some(frames.len()),
            Variant::MsgPack | Variant::MsgPackBatch => false,
        }
    }

    /// Appends the frame of one message, which is given as JSON.
    pub fn write_message(self, json: &[u8], out: &mut Vec<u8>) {
        if self.is_msgpack() {
            let mut message = Vec::with_capacity(json.len());
            msgpack::write(json, &mut message);
            ws::data_frame(Opcode::Binary, &message, out);
        } else {
            ws::text_frame(json, out);
        }
    }

    /// Appends what becomes of events, given as native frames one behind the other.
    pub fn write_events(self, frames: &[u8], out: &mut Vec<u8>) {
        let mut events = Events { variant: self, bytes: Vec::new(), count: 0 };
        let mut rest = frames;
        while let Some((frame, behind)) = ws::frame_bytes(rest).and_then(|length| rest.split_at_checked(length)) {
            events.add(frame.get(ws::header_bytes_of(frame)..).unwrap_or_default(), out);
            rest = behind;
        }
        events.flush(out);
    }
}

/// Events that go into one frame.
struct Events {
    variant: Variant,
    bytes: Vec<u8>,
    count: u32,
}

impl Events {
    fn add(&mut self, json: &[u8], out: &mut Vec<u8>) {
        let before = self.bytes.len();
        if self.variant.is_msgpack() {
            msgpack::write(json, &mut self.bytes);
        } else {
            if self.count > 0 {
                self.bytes.push(b',');
            }
            self.bytes.extend_from_slice(json);
        }
        let is_too_much = self.bytes.len() > BATCH_FRAME_BYTES_MAX || !self.variant.is_batch();
        if self.count > 0 && is_too_much {
            let comma = usize::from(!self.variant.is_msgpack());
            let last = self.bytes.split_off(before);
            self.flush(out);
            self.bytes.extend_from_slice(last.get(comma..).unwrap_or_default());
        }
        self.count += 1;
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        let count = std::mem::take(&mut self.count);
        let opcode = if self.variant.is_msgpack() { Opcode::Binary } else { Opcode::Text };
        match count {
            0 => return,
            // One alone is the event itself, as everywhere else.
            1 => ws::data_frame(opcode, &self.bytes, out),
            _ if self.variant.is_msgpack() => {
                let mut head = Vec::with_capacity(5);
                msgpack::write_array_head(count, &mut head);
                ws::write_header(out, opcode, head.len() + self.bytes.len());
                out.extend_from_slice(&head);
                out.extend_from_slice(&self.bytes);
            }
            _ => {
                ws::write_header(out, opcode, self.bytes.len() + 2);
                out.push(b'[');
                out.extend_from_slice(&self.bytes);
                out.push(b']');
            }
        }
        self.bytes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn frames(messages: &[Value]) -> Vec<u8> {
        let mut out = Vec::new();
        messages.iter().for_each(|message| ws::text_frame(message.to_string().as_bytes(), &mut out));
        out
    }

    /// The frames: opcode and payload.
    fn read(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut all = Vec::new();
        while !bytes.is_empty() {
            let (frame, rest) = bytes.split_at(ws::frame_bytes(bytes).expect("a frame"));
            all.push((frame[0] & 0x0f, frame[ws::header_bytes_of(frame)..].to_vec()));
            bytes = rest;
        }
        all
    }

    fn written(variant: Variant, messages: &[Value]) -> Vec<(u8, Vec<u8>)> {
        let mut out = Vec::new();
        variant.write_events(&frames(messages), &mut out);
        read(&out)
    }

    fn text(frame: &(u8, Vec<u8>)) -> Value {
        assert_eq!(frame.0, Opcode::Text as u8);
        serde_json::from_slice(&frame.1).expect("JSON")
    }

    fn packed(frame: &(u8, Vec<u8>)) -> Value {
        assert_eq!(frame.0, Opcode::Binary as u8);
        rmp_serde::from_slice(&frame.1).expect("MessagePack")
    }

    #[test]
    fn the_first_offer_that_is_known_is_chosen() {
        let chosen = |offered: &[&str]| Subprotocol::choose(offered, true).map(|chosen| chosen.name);
        assert_eq!(chosen(&["bearer.x", "ringhub.v1.msgpack", "ringhub.v1.json"]), Some("ringhub.v1.msgpack"));
        assert_eq!(chosen(&["ringhub.v2.json", "ringhub.v1.json", "ringhub.v1.json.batch"]), Some("ringhub.v1.json"));
        assert_eq!(chosen(&["RINGHUB.v1.json", "ringhub.v1"]), None);
        assert_eq!(chosen(&[]), None);
        let native = Subprotocol::choose(&["ringhub.v1.msgpack", "ringhub.v1.json"], false);
        assert_eq!(native.map(|chosen| chosen.name), Some("ringhub.v1.json"));
        for known in SUBPROTOCOLS {
            assert_eq!(known.variant.is_some_and(Variant::is_batch), known.name.ends_with(".batch"));
            assert_eq!(known.variant.is_some_and(Variant::is_msgpack), known.name.contains("msgpack"));
        }
    }

    #[test]
    fn several_events_are_one_array_and_one_event_is_itself() {
        let events = [json!({"seq": 1}), json!({"seq": 2, "data": [1, 2]}), json!({"seq": 3})];
        let all = Value::from(events.to_vec());
        assert_eq!(written(Variant::Batch, &events).iter().map(text).collect::<Vec<_>>(), std::slice::from_ref(&all));
        assert_eq!(written(Variant::MsgPackBatch, &events).iter().map(packed).collect::<Vec<_>>(), [all]);
        assert_eq!(written(Variant::MsgPack, &events).iter().map(packed).collect::<Vec<_>>(), events);
        let one = &events[..1];
        assert_eq!(written(Variant::Batch, one).iter().map(text).collect::<Vec<_>>(), one);
        assert_eq!(written(Variant::MsgPackBatch, one).iter().map(packed).collect::<Vec<_>>(), one);
        assert_eq!(written(Variant::Plain, &events).iter().map(text).collect::<Vec<_>>(), events);
        for variant in [Variant::Plain, Variant::Batch, Variant::MsgPack, Variant::MsgPackBatch] {
            assert!(written(variant, &[]).is_empty());
        }
        assert!(Variant::Batch.is_native(&frames(one)) && !Variant::Batch.is_native(&frames(&events)));
        assert!(!Variant::MsgPack.is_native(&frames(one)) && !Variant::Batch.is_native(b""));
    }

    #[test]
    fn an_array_is_split_at_its_bound_and_nothing_is_lost_or_moved() {
        for variant in [Variant::Batch, Variant::MsgPackBatch] {
            let sizes = [10_000, 30_000, 30_000, 100_000, 1, 1, 65_000, 600, 1, 200_000];
            let events: Vec<Value> =
                sizes.iter().zip(1..).map(|(size, seq)| json!({"seq": seq, "data": "x".repeat(*size)})).collect();
            let frames = written(variant, &events);
            let mut all = Vec::new();
            for frame in &frames {
                let value = if variant.is_msgpack() { packed(frame) } else { text(frame) };
                let is_within = frame.1.len() <= BATCH_FRAME_BYTES_MAX + 5;
                match value {
                    Value::Array(some) => {
                        assert!(is_within && some.len() > 1, "{}", frame.1.len());
                        all.extend(some);
                    }
                    one => all.push(one),
                }
            }
            assert_eq!(all, events);
            assert_eq!(frames.len(), 6, "{:?}", frames.iter().map(|frame| frame.1.len()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_message_is_one_frame() {
        let message = json!({"type": "pong", "ref": 7, "data": {}});
        let mut out = Vec::new();
        Variant::Batch.write_message(message.to_string().as_bytes(), &mut out);
        Variant::MsgPackBatch.write_message(message.to_string().as_bytes(), &mut out);
        let frames = read(&out);
        assert_eq!((text(&frames[0]), packed(&frames[1]), frames.len()), (message.clone(), message, 2));
    }
}
