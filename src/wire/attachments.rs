//! Socket.IO's attachments: packets that wait for binary messages, and the placeholders that stand for them in JSON.

use std::ops::Range;

use smallvec::SmallVec;

use super::base64;
use super::json::behind_string;
use super::socketio::{ATTACHMENTS_MAX, Layout, Malformed, Packet, number};

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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BYTES_MAX: usize = 1000;

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
