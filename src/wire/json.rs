//! JSON on received bytes: simd-json validates and finds the values, a scan of the untouched copy finds their raw bytes.
//!
//! simd-json unescapes strings in place, which changes the bytes it was given. What a publisher sent has to go on as it
//! came, so a copy is made first (a message is small, the copy is a few nanoseconds), and once simd-json accepted the
//! text, spans in the copy can be found by a scan that relies on its validity.

use std::ops::Range;

use simd_json::{Buffers, Node, Tape};

/// Working memory of the parser, kept between messages by each shard.
pub struct Scratch {
    buffers: Buffers,
    raw: Vec<u8>,
    depth_max: usize,
}

/// A parsed text: the values, and the bytes they came from.
pub struct Document<'a> {
    nodes: Vec<Node<'a>>,
    raw: &'a [u8],
}

/// A member of an object: its key, its value and the value's bytes as they came.
pub struct Field<'a, 'd> {
    /// The key, unescaped.
    pub key: &'a str,
    /// The value.
    pub value: Value<'a, 'd>,
}

/// A value within a [`Document`].
#[derive(Clone, Copy)]
pub struct Value<'a, 'd> {
    nodes: &'d [Node<'a>],
    raw: &'a [u8],
}

/// Why a text was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JsonError {
    /// Not JSON.
    Invalid,
    /// Nested deeper than the limit.
    TooDeep,
}

impl Scratch {
    /// Memory for texts nested at most `depth_max` deep.
    pub fn new(depth_max: usize) -> Scratch {
        Scratch { buffers: Buffers::with_max_depth(4096, depth_max), raw: Vec::new(), depth_max }
    }

    /// Parses a text in place; its bytes are changed by it, the raw spans come from a copy.
    pub fn parse<'a>(&'a mut self, text: &'a mut [u8]) -> Result<Document<'a>, JsonError> {
        self.raw.clear();
        // One large message must not keep its memory for good.
        if self.raw.capacity() > 256 * 1024 && text.len() < 64 * 1024 {
            self.raw = Vec::new();
            self.buffers = Buffers::with_max_depth(4096, self.depth_max);
        }
        self.raw.extend_from_slice(text);
        match simd_json::to_tape_with_buffers(text, &mut self.buffers) {
            Ok(Tape(nodes)) => {
                let raw = trim(&self.raw);
                Ok(Document { nodes, raw })
            }
            Err(_) if depth(&self.raw) > self.depth_max => Err(JsonError::TooDeep),
            Err(_) => Err(JsonError::Invalid),
        }
    }
}

impl<'a> Document<'a> {
    /// The outermost value.
    pub fn root<'d>(&'d self) -> Value<'a, 'd> {
        Value { nodes: &self.nodes, raw: self.raw }
    }
}

impl<'a, 'd> Value<'a, 'd> {
    /// The value's bytes as they were received.
    pub fn raw(self) -> &'a [u8] {
        self.raw
    }

    /// The text of a string.
    pub fn as_str(self) -> Option<&'a str> {
        match self.nodes.first() {
            Some(Node::String(text)) => Some(text),
            _ => None,
        }
    }

    /// An integer that fits.
    pub fn as_i64(self) -> Option<i64> {
        match self.nodes.first() {
            Some(Node::Static(simd_json::StaticNode::I64(number))) => Some(*number),
            Some(Node::Static(simd_json::StaticNode::U64(number))) => i64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// Any number, as the nearest floating point value.
    pub fn as_f64(self) -> Option<f64> {
        match self.nodes.first() {
            Some(Node::Static(simd_json::StaticNode::I64(number))) => Some(*number as f64),
            Some(Node::Static(simd_json::StaticNode::U64(number))) => Some(*number as f64),
            Some(Node::Static(simd_json::StaticNode::F64(number))) => Some(*number),
            _ => None,
        }
    }

    /// True or false.
    pub fn as_bool(self) -> Option<bool> {
        match self.nodes.first() {
            Some(Node::Static(simd_json::StaticNode::Bool(value))) => Some(*value),
            _ => None,
        }
    }

    /// Whether this is `null`.
    pub fn is_null(self) -> bool {
        matches!(self.nodes.first(), Some(Node::Static(simd_json::StaticNode::Null)))
    }

    /// Whether this is an object.
    pub fn is_object(self) -> bool {
        matches!(self.nodes.first(), Some(Node::Object { .. }))
    }

    /// The members of an object, in their order; nothing for other values.
    pub fn fields(self) -> impl Iterator<Item = Field<'a, 'd>> {
        let count = match self.nodes.first() {
            Some(Node::Object { len, .. }) => *len,
            _ => 0,
        };
        let mut nodes = self.nodes.get(1..).unwrap_or(&[]);
        let mut scan = Scan { raw: self.raw, at: 1 };
        (0..count).map_while(move |_| {
            let Some(Node::String(key)) = nodes.first() else { return None };
            scan.value();
            let span = scan.value();
            let (value, rest) = split_value(nodes.get(1..)?);
            nodes = rest;
            Some(Field { key, value: Value { nodes: value, raw: self.raw.get(span)? } })
        })
    }

    /// The elements of an array; nothing for other values.
    pub fn elements(self) -> impl Iterator<Item = Value<'a, 'd>> {
        let count = match self.nodes.first() {
            Some(Node::Array { len, .. }) => *len,
            _ => 0,
        };
        let mut nodes = self.nodes.get(1..).unwrap_or(&[]);
        let mut scan = Scan { raw: self.raw, at: 1 };
        (0..count).map_while(move |_| {
            let span = scan.value();
            let (value, rest) = split_value(nodes);
            nodes = rest;
            Some(Value { nodes: value, raw: self.raw.get(span)? })
        })
    }

    /// Whether this is an array.
    pub fn is_array(self) -> bool {
        matches!(self.nodes.first(), Some(Node::Array { .. }))
    }

    /// The member of an object with that key (the last one, should it repeat).
    pub fn get(self, key: &str) -> Option<Value<'a, 'd>> {
        self.fields().filter(|field| field.key == key).last().map(|field| field.value)
    }

    /// The value that a dotted path leads to.
    pub fn path(self, path: &str) -> Option<Value<'a, 'd>> {
        // A key may hold a dot itself: the whole is tried first.
        if let Some(value) = self.get(path) {
            return Some(value);
        }
        let mut at = self;
        let mut parts = path.split('.').peekable();
        parts.peek()?;
        for part in parts {
            at = at.get(part)?;
        }
        Some(at)
    }
}

/// Splits the nodes of the first value from those behind it.
fn split_value<'a, 'd>(nodes: &'d [Node<'a>]) -> (&'d [Node<'a>], &'d [Node<'a>]) {
    let count = match nodes.first() {
        Some(Node::Object { count, .. } | Node::Array { count, .. }) => count + 1,
        Some(_) => 1,
        None => 0,
    };
    nodes.split_at(count.min(nodes.len()))
}

/// A walk over text that is known to be valid JSON.
struct Scan<'a> {
    raw: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    /// The span of the next value or key; separators before it are passed over.
    fn value(&mut self) -> Range<usize> {
        while let Some(byte) = self.raw.get(self.at) {
            match byte {
                b' ' | b'\t' | b'\n' | b'\r' | b',' | b':' => self.at += 1,
                _ => break,
            }
        }
        let start = self.at;
        match self.raw.get(start) {
            Some(b'"') => self.string(),
            Some(b'{' | b'[') => self.container(),
            _ => {
                while let Some(byte) = self.raw.get(self.at) {
                    match byte {
                        b' ' | b'\t' | b'\n' | b'\r' | b',' | b']' | b'}' => break,
                        _ => self.at += 1,
                    }
                }
            }
        }
        start..self.at
    }

    /// Moves behind the string that starts here.
    fn string(&mut self) {
        self.at += 1;
        while let Some(rest) = self.raw.get(self.at..) {
            match memchr::memchr2(b'"', b'\\', rest) {
                Some(found) if rest.get(found) == Some(&b'"') => {
                    self.at += found + 1;
                    return;
                }
                Some(found) => self.at += found + 2,
                None => {
                    self.at = self.raw.len();
                    return;
                }
            }
        }
    }

    /// Moves behind the object or array that starts here.
    fn container(&mut self) {
        let mut depth = 0usize;
        while let Some(byte) = self.raw.get(self.at) {
            match byte {
                b'"' => {
                    self.string();
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        self.at += 1;
                        return;
                    }
                }
                _ => {}
            }
            self.at += 1;
        }
    }
}

/// The members of an object, keys with their quotes and values, as they are written. The text is known to be valid JSON that
/// begins with the object's brace.
pub(super) fn members(object: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut scan = Scan { raw: object, at: 1 };
    std::iter::from_fn(move || {
        let key = scan.value();
        if object.get(key.start) != Some(&b'"') {
            return None;
        }
        let value = scan.value();
        Some((object.get(key)?, object.get(value)?))
    })
}

/// The place behind the string whose opening quote stands at `at`; the text's end where it has no closing one.
pub(super) fn behind_string(raw: &[u8], at: usize) -> usize {
    let mut scan = Scan { raw, at };
    scan.string();
    scan.at.min(raw.len())
}

/// How deep a text is nested; only asked when it was refused, to name the reason.
fn depth(raw: &[u8]) -> usize {
    let mut scan = Scan { raw, at: 0 };
    let (mut depth, mut deepest) = (0usize, 0usize);
    while let Some(byte) = raw.get(scan.at) {
        match byte {
            b'"' => {
                scan.string();
                continue;
            }
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        scan.at += 1;
    }
    deepest
}

fn trim(raw: &[u8]) -> &[u8] {
    raw.trim_ascii()
}

/// Appends a string with its quotes, escaped as RFC 8259 §7 asks.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut done = 0;
    for (at, byte) in bytes.iter().enumerate() {
        if *byte >= 0x20 && *byte != b'"' && *byte != b'\\' {
            continue;
        }
        out.extend_from_slice(bytes.get(done..at).unwrap_or_default());
        done = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(byte >> 4)]);
                out.push(HEX[usize::from(byte & 15)]);
            }
        }
    }
    out.extend_from_slice(bytes.get(done..).unwrap_or_default());
    out.push(b'"');
}

/// Appends a number.
pub fn write_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<R>(text: &str, check: impl FnOnce(Value<'_, '_>) -> R) -> Result<R, JsonError> {
        let mut scratch = Scratch::new(8);
        let mut bytes = text.as_bytes().to_vec();
        scratch.parse(&mut bytes).map(|document| check(document.root()))
    }

    #[test]
    fn raw_bytes_are_those_that_came_though_strings_are_unescaped_in_place() {
        let text = " {\"a\" : \"x\\\"\\u00e9\" , \"d\\u0061ta\":{ \"k\\n\":[1, 2.50,{\"}\":\"]\"}] },\"n\":-0.0e1}\n";
        with(text, |root| {
            let fields: Vec<_> =
                root.fields().map(|field| (field.key.to_owned(), field.value.raw().to_vec())).collect();
            assert_eq!(fields[0], ("a".to_owned(), b"\"x\\\"\\u00e9\"".to_vec()));
            assert_eq!(fields[1].0, "data");
            assert_eq!(fields[1].1, b"{ \"k\\n\":[1, 2.50,{\"}\":\"]\"}] }");
            assert_eq!(fields[2].1, b"-0.0e1");
            assert_eq!(root.get("a").and_then(Value::as_str), Some("x\"é"));
            let list = root.get("data").and_then(|data| data.get("k\n")).expect("found");
            let raws: Vec<_> = list.elements().map(|element| element.raw().to_vec()).collect();
            assert_eq!(raws, [b"1".to_vec(), b"2.50".to_vec(), b"{\"}\":\"]\"}".to_vec()]);
        })
        .expect("valid");
    }

    #[test]
    fn empty_containers_and_scalars_have_their_spans() {
        with(r#"{"a":{},"b":[],"c":"","d":true,"e":null,"f":[[],{}]}"#, |root| {
            let raws: Vec<_> =
                root.fields().map(|field| String::from_utf8_lossy(field.value.raw()).into_owned()).collect();
            assert_eq!(raws, ["{}", "[]", "\"\"", "true", "null", "[[],{}]"]);
        })
        .expect("valid");
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for text in ["", "{", "{\"a\":}", "[1,]", "nul", "{\"a\":1}x", "\"\\q\"", "01", "{'a':1}", "[1 2]", "\u{0}"] {
            assert!(with(text, |_| ()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn nesting_beyond_the_limit_is_named_as_such() {
        assert!(with("[[[[[[[1]]]]]]]", |_| ()).is_ok());
        let deep = format!("{}1{}", "[".repeat(50), "]".repeat(50));
        assert_eq!(with(&deep, |_| ()).err(), Some(JsonError::TooDeep));
    }

    #[test]
    fn paths_with_dots_reach_inside() {
        with(r#"{"a":{"b":{"c":5}},"x.y":1}"#, |root| {
            assert_eq!(root.path("a.b.c").and_then(Value::as_i64), Some(5));
            assert_eq!(root.path("x.y").and_then(Value::as_i64), Some(1));
            assert!(root.path("a.c").is_none());
        })
        .expect("valid");
    }

    #[test]
    fn written_strings_read_back() {
        for text in ["", "plain", "q\"b\\s/", "line\nfeed\r\t\u{1}\u{1f}", "é漢😀"] {
            let mut out = Vec::new();
            write_string(&mut out, text);
            assert_eq!(serde_json::from_slice::<String>(&out).expect("valid"), text);
        }
    }
}
