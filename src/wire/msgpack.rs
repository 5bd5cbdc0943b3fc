//! Messages as MessagePack: JSON text to MessagePack for those who want that, and what they send to JSON text for the parser
//! of commands. Neither builds a tree of values.
//!
//! Numbers keep their value: integers are integers of up to 64 bits, everything else is the nearest float of 64 bits, as a
//! parser of JSON would have it. MessagePack has things that JSON has not (binary data, extensions, keys that are no strings,
//! infinities); a message with such is refused.

use std::fmt;

use rmp_serde::decode::Error;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use smallvec::SmallVec;

use super::codes::ErrorCode;
use super::json::{behind_string, write_string};
use super::native::Refused;

// ---- JSON to MessagePack ----

/// Appends a JSON text as MessagePack. The text is valid by the caller's word; of one that is not, something is written.
pub fn write(json: &[u8], out: &mut Vec<u8>) {
    let mut counts = counts(json).into_iter();
    let mut at = 0;
    while let Some(byte) = json.get(at) {
        let start = at;
        at += 1;
        match byte {
            b'{' => write_map_head(counts.next().unwrap_or(0), out),
            b'[' => write_array_head(counts.next().unwrap_or(0), out),
            b'"' => {
                at = behind_string(json, start);
                write_text(json.get(start + 1..at.saturating_sub(1)).unwrap_or_default(), out);
            }
            b'n' | b't' | b'f' => {
                at = behind_word(json, start);
                out.push(match byte {
                    b'n' => NIL,
                    b't' => TRUE,
                    _ => FALSE,
                });
            }
            b'-' | b'0'..=b'9' => {
                at = behind_word(json, start);
                write_number(json.get(start..at).unwrap_or_default(), out);
            }
            _ => {}
        }
    }
}

const NIL: u8 = 0xc0;
const FALSE: u8 = 0xc2;
const TRUE: u8 = 0xc3;

/// How many members or elements each container of a text has, in the order in which they open: MessagePack says so ahead.
fn counts(json: &[u8]) -> SmallVec<[u32; 16]> {
    let mut counts: SmallVec<[u32; 16]> = SmallVec::new();
    let mut open: SmallVec<[usize; 16]> = SmallVec::new();
    let mut at = 0;
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => {
                at = behind_string(json, at);
                continue;
            }
            b'{' | b'[' => {
                let inside = json.get(at + 1..).unwrap_or_default().trim_ascii_start();
                open.push(counts.len());
                counts.push(u32::from(!matches!(inside.first(), None | Some(b'}' | b']'))));
            }
            b',' => {
                if let Some(count) = open.last().and_then(|place| counts.get_mut(*place)) {
                    *count += 1;
                }
            }
            b'}' | b']' => drop(open.pop()),
            _ => {}
        }
        at += 1;
    }
    counts
}

/// The place behind the number, `true`, `false` or `null` that begins at `at`.
fn behind_word(json: &[u8], at: usize) -> usize {
    let rest = json.get(at..).unwrap_or_default();
    let ends =
        |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b',' | b':' | b']' | b'}' | b'[' | b'{' | b'"');
    at + rest.iter().position(ends).unwrap_or(rest.len())
}

/// Appends what stands between the quotes of a JSON string.
fn write_text(raw: &[u8], out: &mut Vec<u8>) {
    if memchr::memchr(b'\\', raw).is_none() {
        write_str_head(raw.len(), out);
        out.extend_from_slice(raw);
        return;
    }
    let mut text = Vec::with_capacity(raw.len());
    unescape(raw, &mut text);
    write_str_head(text.len(), out);
    out.extend_from_slice(&text);
}

/// RFC 8259 §7. Half a surrogate pair, which UTF-8 can't say, becomes U+FFFD.
fn unescape(raw: &[u8], text: &mut Vec<u8>) {
    let mut rest = raw;
    while let Some(found) = memchr::memchr(b'\\', rest) {
        text.extend_from_slice(rest.get(..found).unwrap_or_default());
        rest = rest.get(found + 1..).unwrap_or_default();
        let Some((kind, behind)) = rest.split_first() else { return };
        rest = behind;
        let unescaped = match kind {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'b' => 0x08,
            b'f' => 0x0c,
            b'u' => {
                let mut unit = hex(rest);
                rest = rest.get(4..).unwrap_or_default();
                if let (0xd800..0xdc00, Some(second)) = (unit, rest.strip_prefix(b"\\u"))
                    && let low @ 0xdc00..0xe000 = hex(second)
                {
                    unit = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                    rest = second.get(4..).unwrap_or_default();
                }
                let character = char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER);
                text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
            same => *same,
        };
        text.push(unescaped);
    }
    text.extend_from_slice(rest);
}

/// The number of four hexadecimal digits; the replacement character's where they are none.
fn hex(digits: &[u8]) -> u32 {
    let digits = digits.get(..4).and_then(|digits| std::str::from_utf8(digits).ok());
    digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(char::REPLACEMENT_CHARACTER.into())
}

fn write_number(digits: &[u8], out: &mut Vec<u8>) {
    let text = std::str::from_utf8(digits).unwrap_or_default();
    if let Ok(number) = text.parse::<u64>() {
        return write_uint(number, out);
    }
    // Minus zero is a number of its own.
    if let Some(number) = text.parse::<i64>().ok().filter(|number| *number != 0) {
        return write_negative(number, out);
    }
    out.push(0xcb);
    out.extend_from_slice(&text.parse::<f64>().unwrap_or_default().to_be_bytes());
}

fn write_uint(number: u64, out: &mut Vec<u8>) {
    match number {
        0..=0x7f => out.push(number as u8),
        0x80..=0xff => out.extend_from_slice(&[0xcc, number as u8]),
        0x100..=0xffff => write_head(0xcd, &(number as u16).to_be_bytes(), out),
        0x1_0000..=0xffff_ffff => write_head(0xce, &(number as u32).to_be_bytes(), out),
        _ => write_head(0xcf, &number.to_be_bytes(), out),
    }
}

fn write_negative(number: i64, out: &mut Vec<u8>) {
    match number {
        -32..0 => out.push(number as u8),
        -128..-32 => out.extend_from_slice(&[0xd0, number as u8]),
        -0x8000..-128 => write_head(0xd1, &(number as i16).to_be_bytes(), out),
        -0x8000_0000..-0x8000 => write_head(0xd2, &(number as i32).to_be_bytes(), out),
        _ => write_head(0xd3, &number.to_be_bytes(), out),
    }
}

fn write_str_head(length: usize, out: &mut Vec<u8>) {
    match length {
        0..=31 => out.push(0xa0 | length as u8),
        32..=0xff => out.extend_from_slice(&[0xd9, length as u8]),
        0x100..=0xffff => write_head(0xda, &(length as u16).to_be_bytes(), out),
        _ => write_head(0xdb, &(length as u32).to_be_bytes(), out),
    }
}

/// Appends what stands before the elements of an array.
pub(super) fn write_array_head(count: u32, out: &mut Vec<u8>) {
    write_container_head(count, (0x90, 0xdc), out);
}

fn write_map_head(count: u32, out: &mut Vec<u8>) {
    write_container_head(count, (0x80, 0xde), out);
}

fn write_container_head(count: u32, (few, many): (u8, u8), out: &mut Vec<u8>) {
    match count {
        0..=15 => out.push(few | count as u8),
        16..=0xffff => write_head(many, &(count as u16).to_be_bytes(), out),
        _ => write_head(many + 1, &count.to_be_bytes(), out),
    }
}

fn write_head(marker: u8, number: &[u8], out: &mut Vec<u8>) {
    out.push(marker);
    out.extend_from_slice(number);
}

// ---- MessagePack to JSON ----

/// Why a message was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// It is not one value of MessagePack.
    Malformed,
    /// It is nested deeper than the limit.
    TooDeep,
    /// It has something that JSON has not.
    NotJson,
    /// As JSON it is larger than a message may be.
    TooLarge,
}

impl Unreadable {
    /// What the client is told.
    pub fn refused(self) -> Refused {
        match self {
            Unreadable::Malformed => Refused::new(ErrorCode::BadJson, "the message is not valid MessagePack"),
            Unreadable::TooDeep => Refused::new(ErrorCode::BadJson, "the message is nested too deep"),
            Unreadable::NotJson => Refused::new(
                ErrorCode::BadJson,
                "binary data, extensions, text that is not UTF-8, keys that are no strings, NaN and infinities have no place \
                 in a message",
            ),
            Unreadable::TooLarge => Refused::new(ErrorCode::TooLarge, "the message is too large as JSON"),
        }
    }
}

/// Appends a message of MessagePack as JSON text of at most `bytes_max`; nothing is made larger than that. What was appended
/// before an error is to be thrown away.
pub fn read(message: &[u8], depth_max: usize, bytes_max: usize, out: &mut Vec<u8>) -> Result<(), Unreadable> {
    let mut reader = rmp_serde::Deserializer::new(message);
    reader.set_max_depth(depth_max.saturating_add(1));
    let mut json = Json { bytes_max: out.len().saturating_add(bytes_max), out, unreadable: None };
    let outcome = json.deserialize(&mut reader);
    match (json.unreadable, outcome) {
        (Some(unreadable), Err(_)) => Err(unreadable),
        (_, Err(Error::DepthLimitExceeded)) => Err(Unreadable::TooDeep),
        (_, Err(_)) => Err(Unreadable::Malformed),
        (_, Ok(())) if !reader.get_ref().is_empty() => Err(Unreadable::Malformed),
        (_, Ok(())) => Ok(()),
    }
}

/// Writes what is read as JSON.
struct Json<'o> {
    out: &'o mut Vec<u8>,
    /// Up to which length.
    bytes_max: usize,
    /// Why it was given up, where that was not for the reader's sake.
    unreadable: Option<Unreadable>,
}

impl Json<'_> {
    fn give_up<E: serde::de::Error>(&mut self, why: Unreadable) -> E {
        self.unreadable = Some(why);
        E::custom("given up")
    }

    fn make_room<E: serde::de::Error>(&mut self, bytes: usize) -> Result<(), E> {
        if self.out.len().saturating_add(bytes) > self.bytes_max {
            return Err(self.give_up(Unreadable::TooLarge));
        }
        Ok(())
    }

    fn put<E: serde::de::Error>(&mut self, bytes: &[u8]) -> Result<(), E> {
        self.make_room(bytes.len())?;
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    fn text<E: serde::de::Error>(&mut self, text: &str) -> Result<(), E> {
        let escapes = text.bytes().map(|byte| match byte {
            b'"' | b'\\' | b'\n' | b'\r' | b'\t' => 1,
            0..0x20 => 5,
            _ => 0,
        });
        self.make_room(text.len() + 2 + escapes.sum::<usize>())?;
        write_string(self.out, text);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for &mut Json<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut Json<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("what JSON has")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.put(b"null")
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.put(if value { b"true" } else { b"false" })
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<(), E> {
        self.put(itoa::Buffer::new().format(number).as_bytes())
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<(), E> {
        self.put(itoa::Buffer::new().format(number).as_bytes())
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<(), E> {
        // The shortest text that is read as the same number.
        match serde_json::Number::from_f64(number) {
            Some(number) => self.put(number.to_string().as_bytes()),
            None => Err(self.give_up(Unreadable::NotJson)),
        }
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.text(text)
    }

    fn visit_bytes<E: serde::de::Error>(self, _: &[u8]) -> Result<(), E> {
        Err(self.give_up(Unreadable::NotJson))
    }

    /// An extension.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, _: D) -> Result<(), D::Error> {
        Err(self.give_up(Unreadable::NotJson))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        self.put(b"[")?;
        let mut before: &[u8] = b"";
        loop {
            let length = self.out.len();
            self.put(before)?;
            if elements.next_element_seed(&mut *self)?.is_none() {
                self.out.truncate(length);
                return self.put(b"]");
            }
            before = b",";
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        self.put(b"{")?;
        let mut before: &[u8] = b"";
        loop {
            let length = self.out.len();
            self.put(before)?;
            if members.next_key_seed(Key(&mut *self))?.is_none() {
                self.out.truncate(length);
                return self.put(b"}");
            }
            self.put(b":")?;
            members.next_value_seed(&mut *self)?;
            before = b",";
        }
    }
}

/// Reads a member's key, which is a string.
struct Key<'j, 'o>(&'j mut Json<'o>);

impl<'de> DeserializeSeed<'de> for Key<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let before = self.0.out.len();
        deserializer.deserialize_any(&mut *self.0)?;
        match self.0.out.get(before) {
            Some(b'"') => Ok(()),
            _ => Err(self.0.give_up(Unreadable::NotJson)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn packed(json: &str) -> Vec<u8> {
        let mut out = Vec::new();
        write(json.as_bytes(), &mut out);
        out
    }

    fn json_of(message: &[u8]) -> Result<String, Unreadable> {
        let mut out = b"kept".to_vec();
        read(message, 64, 100_000, &mut out)?;
        Ok(String::from_utf8(out.split_off(4)).expect("UTF-8"))
    }

    #[test]
    fn values_are_packed_as_short_as_they_can_be() {
        for (json, expected) in [
            ("null", &[0xc0][..]),
            (" true ", &[0xc3]),
            ("false", &[0xc2]),
            ("0", &[0]),
            ("127", &[0x7f]),
            ("128", &[0xcc, 128]),
            ("256", &[0xcd, 1, 0]),
            ("65536", &[0xce, 0, 1, 0, 0]),
            ("4294967296", &[0xcf, 0, 0, 0, 1, 0, 0, 0, 0]),
            ("18446744073709551615", &[0xcf, 255, 255, 255, 255, 255, 255, 255, 255]),
            ("-1", &[0xff]),
            ("-32", &[0xe0]),
            ("-33", &[0xd0, 0xdf]),
            ("-129", &[0xd1, 0xff, 0x7f]),
            ("-32769", &[0xd2, 0xff, 0xff, 0x7f, 0xff]),
            ("-2147483649", &[0xd3, 0xff, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff]),
            ("1.0", &[0xcb, 0x3f, 0xf0, 0, 0, 0, 0, 0, 0]),
            ("-0", &[0xcb, 0x80, 0, 0, 0, 0, 0, 0, 0]),
            ("\"\"", &[0xa0]),
            ("\"a\\n\\u00e9\\ud83d\\ude00\\/\"", b"\xa9a\n\xc3\xa9\xf0\x9f\x98\x80/"),
            ("\"\\ud83dx\\ude00\"", b"\xa7\xef\xbf\xbdx\xef\xbf\xbd"),
            ("[]", &[0x90]),
            ("[ ]", &[0x90]),
            ("{ }", &[0x80]),
            ("[1, [], {\"a\" : [2]}]", &[0x93, 1, 0x90, 0x81, 0xa1, b'a', 0x91, 2]),
            ("{\"a,b\":\"}\",\"\\\"\":[\"[\"]}", b"\x82\xa3a,b\xa1}\xa1\"\x91\xa1["),
        ] {
            assert_eq!(packed(json), expected, "{json}");
        }
        for (count, head) in [(15, &[0x9f][..]), (16, &[0xdc, 0, 16]), (65_536, &[0xdd, 0, 1, 0, 0])] {
            let bytes = packed(&format!("[{}0]", "0,".repeat(count - 1)));
            assert_eq!((&bytes[..head.len()], bytes.len()), (head, head.len() + count));
        }
        for (length, head) in
            [(31, &[0xbf][..]), (32, &[0xd9, 32]), (256, &[0xda, 1, 0]), (65_536, &[0xdb, 0, 1, 0, 0])]
        {
            let bytes = packed(&format!("\"{}\"", "x".repeat(length)));
            assert_eq!((&bytes[..head.len()], bytes.len()), (head, head.len() + length));
        }
    }

    #[test]
    fn an_integer_beyond_64_bits_and_a_fraction_are_the_nearest_float() {
        let float = |json: &str| rmp_serde::from_slice::<f64>(&packed(json)).expect("a float");
        for json in ["18446744073709551616", "-9223372036854775809", "1e400", "0.1", "5e-324", "123456789012345.678"] {
            assert_eq!(float(json).to_bits(), json.parse::<f64>().expect("a number").to_bits(), "{json}");
        }
    }

    #[test]
    fn what_json_has_not_is_refused() {
        use Unreadable::{Malformed, NotJson, TooDeep, TooLarge};
        for (message, expected) in [
            (&[][..], Malformed),
            (&[0xc1], Malformed),
            (&[0x93, 1, 2], Malformed),
            (&[0x01, 0x02], Malformed),
            (&[0xa5, b'a'], Malformed),
            // Lengths that are only said.
            (&[0xdd, 255, 255, 255, 255], Malformed),
            (&[0xdf, 255, 255, 255, 255, 0xa0], Malformed),
            (&[0xdb, 255, 255, 255, 255, b'a'], Malformed),
            (&[0xc4, 1, 0], NotJson),
            (&[0xd4, 1, 0], NotJson),
            (&[0x91, 0xd6, 0xff, 0, 0, 0, 0], NotJson),
            (&[0xc7, 1, 5, 0], NotJson),
            (&[0xa1, 0xff], NotJson),
            (&[0x81, 1, 2], NotJson),
            (&[0x81, 0xc0, 2], NotJson),
            (&[0x81, 0x91, 0xa1, b'a', 2], NotJson),
            (&[0x81, 0xc4, 1, b'a', 2], NotJson),
            (&[0xcb, 0x7f, 0xf0, 0, 0, 0, 0, 0, 0], NotJson),
            (&[0xcb, 0x7f, 0xf8, 0, 0, 0, 0, 0, 0], NotJson),
            (&[0x91; 70], TooDeep),
            (&[0x91; 100_000], TooDeep),
        ] {
            assert_eq!(json_of(message), Err(expected), "{message:x?}");
        }
        let many = packed(&format!("[{}0]", "null,".repeat(25_000)));
        assert_eq!(json_of(&many), Err(TooLarge));
        let controls = packed(&format!("\"{}\"", "\\u0001".repeat(20_000)));
        assert_eq!(json_of(&controls), Err(TooLarge));
        for why in [Malformed, TooDeep, NotJson] {
            assert_eq!(why.refused().code, ErrorCode::BadJson);
        }
    }

    #[test]
    fn nothing_is_made_larger_than_the_bound() {
        for json in ["\"\u{1}\u{1}\"", "[null,null]", "{\"a\":1}", "-123456", "\"\\\"\\\\\\n\\r\\t\"", "1.5"] {
            let message = packed(json);
            let mut whole = Vec::new();
            read(&message, 64, 1000, &mut whole).expect("fits");
            for bytes_max in 0..=whole.len() + 1 {
                let mut out = Vec::new();
                let outcome = read(&message, 64, bytes_max, &mut out);
                assert!(out.len() <= bytes_max, "{json} {bytes_max}");
                if bytes_max >= whole.len() {
                    assert_eq!((outcome, &out), (Ok(()), &whole));
                } else {
                    assert_eq!(outcome, Err(Unreadable::TooLarge));
                }
            }
        }
    }

    #[test]
    fn nesting_is_as_deep_as_that_of_json_may_be() {
        let nested = |depth: usize| packed(&format!("{}{}", "[".repeat(depth), "]".repeat(depth)));
        assert!(json_of(&nested(64)).is_ok());
        assert_eq!(json_of(&nested(66)), Err(Unreadable::TooDeep));
        let mut deepest = Vec::new();
        assert_eq!(read(&nested(512), 512, 10_000, &mut deepest), Ok(()), "as deep as can be configured");
        assert_eq!(deepest.len(), 1024);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (-300i64..300).prop_map(Value::from),
            any::<f64>().prop_map(|number| json!(number)),
            any::<String>().prop_map(Value::from),
            "[\\x00-\\x7f]{0,40}".prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 200, 20, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..20).prop_map(Value::from),
                proptest::collection::hash_map(any::<String>(), inner, 0..20)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_was_packed_is_read_by_others_and_by_us(value in any_json(), pretty in any::<bool>()) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            let text = text.expect("JSON");
            let message = packed(&text);
            let others: Value = rmp_serde::from_slice(&message).expect("MessagePack");
            prop_assert_eq!(&others, &value);
            let mut back = Vec::new();
            read(&message, 64, usize::MAX, &mut back).expect("JSON");
            prop_assert_eq!(packed(std::str::from_utf8(&back).expect("UTF-8")), message);
        }

        #[test]
        fn any_bytes_are_read_or_refused(message in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(json) = json_of(&message) {
                let value: serde_json::Result<Value> = serde_json::from_str(&json);
                prop_assert!(value.is_ok(), "{}", json);
                // Keys may come twice in what was sent, so that only the text is compared.
                prop_assert_eq!(json_of(&packed(&json)), Ok(json));
            }
        }

        #[test]
        fn any_text_is_written_somehow(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            write(&text, &mut Vec::new());
        }
    }
}
