//! WebSocket messages out of a stream of receives.
//!
//! A message that came whole is unmasked and judged in the buffer it was received in. Only what is unfinished when the
//! buffer ends is copied aside, into a spill that is gone again with its message. Every rule is checked at the first
//! byte that breaks it, so the outcome does not depend on how the stream was cut.

use super::{
    mask::unmask,
    utf8::Validator,
    ws::{HEADER_BYTES_MAX, Header, Opcode, ProtocolError, close_code_is_sendable},
};

/// What a client sent, unmasked; borrowed from the receive buffer or, if it came in pieces, from the decoder.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A whole text message; valid UTF-8. Mutable, because parsers work in place.
    Text(&'a mut [u8]),
    /// A whole binary message.
    Binary(&'a mut [u8]),
    /// A whole message that is compressed.
    Deflated {
        /// Whether it is text.
        is_text: bool,
        /// As it was sent.
        payload: &'a [u8],
    },
    /// A ping; the answer is a pong with the same payload.
    Ping(&'a [u8]),
    /// A pong, asked for or not.
    Pong(&'a [u8]),
    /// The peer closes: its code and reason, if it gave any. Nothing after it is to be decoded.
    Close(Option<(u16, &'a str)>),
}

/// What is accepted of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepts {
    /// The longest message, compressed where it is.
    pub message_bytes_max: usize,
    /// Whether messages may be compressed.
    pub deflated: bool,
}

impl Accepts {
    /// Messages that are not compressed.
    pub const fn plain(message_bytes_max: usize) -> Accepts {
        Accepts { message_bytes_max, deflated: false }
    }
}

/// One receive's bytes and how far they are decoded.
#[derive(Debug)]
pub struct Input<'b> {
    buffer: &'b mut [u8],
    /// Invariant: `at <= buffer.len()`; everything before it is decoded or kept in the decoder.
    at: usize,
}

impl<'b> Input<'b> {
    /// The bytes of one receive.
    pub const fn new(buffer: &'b mut [u8]) -> Self {
        Self { buffer, at: 0 }
    }

    /// How many bytes are not decoded yet.
    pub const fn remaining(&self) -> usize {
        self.buffer.len() - self.at
    }

    fn rest(&self) -> &[u8] {
        self.buffer.get(self.at..).unwrap_or_default()
    }

    /// Hands out the next `length` bytes, fewer at the end.
    fn take(&mut self, length: usize) -> &mut [u8] {
        let start = self.at;
        self.at = start + length.min(self.remaining());
        self.buffer.get_mut(start..self.at).unwrap_or_default()
    }
}

/// The receiving half of one connection: a pointer that is empty unless a message is unfinished.
#[derive(Debug, Default)]
pub struct Decoder {
    spill: Option<Box<Spill>>,
}

const _: () = assert!(size_of::<Decoder>() <= 40, "a decoder is part of every idle connection");

impl Decoder {
    /// A decoder at the beginning of a connection.
    pub const fn new() -> Self {
        Self { spill: None }
    }

    /// The next message in `input`; `None` when the rest of the input is kept for later (then all of it is consumed).
    ///
    /// To be called until `None` or an error. A message that is too long is refused at its header.
    #[inline]
    pub fn next<'a>(
        &'a mut self,
        input: &'a mut Input<'_>,
        accepts: Accepts,
    ) -> Result<Option<Message<'a>>, ProtocolError> {
        if self.spill.is_some() {
            self.release_delivered();
        }
        // The common case first: a connection with nothing kept, a frame that came whole.
        if self.spill.is_none()
            && let Some(header) = Header::parse(input.rest(), None, accepts)?
            && header.fin
            && input.remaining() - header.bytes >= header.payload_bytes
        {
            input.at += header.bytes;
            let payload = input.take(header.payload_bytes);
            unmask(payload, header.mask, 0);
            return whole_message(header.opcode, header.deflated, payload).map(Some);
        }
        self.next_in_pieces(input, accepts)
    }

    /// The memory that an unfinished message holds.
    pub fn spill_bytes(&self) -> usize {
        self.spill.as_ref().map_or(0, |spill| size_of::<Spill>() + spill.payload.capacity() + spill.control.capacity())
    }

    /// Whether a message or frame has begun and not ended.
    pub fn is_mid_message(&self) -> bool {
        self.spill.as_ref().is_some_and(|spill| match spill.delivered {
            Some(Delivered::Data) => false,
            Some(Delivered::Control) => spill.message.is_some(),
            None => true,
        })
    }

    fn next_in_pieces<'a>(
        &'a mut self,
        input: &'a mut Input<'_>,
        accepts: Accepts,
    ) -> Result<Option<Message<'a>>, ProtocolError> {
        let ready = loop {
            // A frame without payload is done without input.
            if input.remaining() == 0 && self.spill.as_ref().is_none_or(|spill| spill.frame.is_none()) {
                return Ok(None);
            }
            let spill = self.spill.get_or_insert_default();
            if spill.frame.is_none() {
                let Some(header) = spill.gather_header(input, accepts)? else { return Ok(None) };
                if header.opcode.is_control() && input.remaining() >= header.payload_bytes {
                    if spill.message.is_none() {
                        self.spill = None;
                    }
                    let payload = input.take(header.payload_bytes);
                    unmask(payload, header.mask, 0);
                    return whole_message(header.opcode, false, payload).map(Some);
                }
                spill.begin(header);
            }
            match spill.absorb(input, accepts)? {
                Progress::Starved => return Ok(None),
                Progress::Fragment => {}
                Progress::Ready(ready) => break ready,
            }
        };
        let Some(spill) = self.spill.as_deref_mut() else { return Ok(None) };
        match ready {
            Ready::Control(opcode) => {
                spill.delivered = Some(Delivered::Control);
                whole_message(opcode, false, &mut spill.control).map(Some)
            }
            Ready::Deflated { is_text } => {
                spill.delivered = Some(Delivered::Data);
                Ok(Some(Message::Deflated { is_text, payload: &spill.payload }))
            }
            Ready::Text => {
                spill.delivered = Some(Delivered::Data);
                Ok(Some(Message::Text(&mut spill.payload)))
            }
            Ready::Binary => {
                spill.delivered = Some(Delivered::Data);
                Ok(Some(Message::Binary(&mut spill.payload)))
            }
        }
    }

    /// Frees what the last call lent out.
    fn release_delivered(&mut self) {
        let Some(spill) = self.spill.as_deref_mut() else { return };
        match spill.delivered.take() {
            Some(Delivered::Data) => self.spill = None,
            Some(Delivered::Control) if spill.message.is_none() => self.spill = None,
            Some(Delivered::Control) => spill.control = Vec::new(),
            None => {}
        }
    }
}

/// Everything kept of a message that is not whole yet.
#[derive(Debug, Default)]
struct Spill {
    /// The beginning of a header: `header[..header_bytes]`. Empty while a frame is being read.
    header: [u8; HEADER_BYTES_MAX],
    header_bytes: u8,
    /// The frame whose payload is being read.
    frame: Option<Frame>,
    /// What the message is whose fragments `payload` gathers.
    message: Option<Kind>,
    /// Whether it is compressed.
    deflated: bool,
    /// The message so far, unmasked.
    payload: Vec<u8>,
    utf8: Validator,
    /// The payload so far of an unfinished control frame, which may stand between fragments.
    control: Vec<u8>,
    /// Lent out by the last call.
    delivered: Option<Delivered>,
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    opcode: Opcode,
    fin: bool,
    mask: [u8; 4],
    payload_bytes: usize,
    done_bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Binary,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivered {
    Data,
    Control,
}

enum Progress {
    /// The input ended inside the frame.
    Starved,
    /// A fragment ended, its message did not.
    Fragment,
    Ready(Ready),
}

enum Ready {
    Deflated { is_text: bool },
    Text,
    Binary,
    Control(Opcode),
}

impl Spill {
    /// Reads a header that may have begun in an earlier input.
    fn gather_header(&mut self, input: &mut Input<'_>, accepts: Accepts) -> Result<Option<Header>, ProtocolError> {
        let so_far = self.message.map(|_| self.payload.len());
        if self.header_bytes == 0
            && let Some(header) = Header::parse(input.rest(), so_far, accepts)?
        {
            input.at += header.bytes;
            return Ok(Some(header));
        }
        while let &mut [byte] = input.take(1) {
            let at = usize::from(self.header_bytes);
            let Some(slot) = self.header.get_mut(at) else { break };
            *slot = byte;
            self.header_bytes += 1;
            if let Some(header) = Header::parse(self.header.get(..=at).unwrap_or_default(), so_far, accepts)? {
                self.header_bytes = 0;
                return Ok(Some(header));
            }
        }
        Ok(None)
    }

    fn begin(&mut self, header: Header) {
        match header.opcode {
            Opcode::Text => (self.message, self.deflated) = (Some(Kind::Text), header.deflated),
            Opcode::Binary => (self.message, self.deflated) = (Some(Kind::Binary), header.deflated),
            Opcode::Continuation | Opcode::Close | Opcode::Ping | Opcode::Pong => {}
        }
        let Header { opcode, fin, mask, payload_bytes, .. } = header;
        self.frame = Some(Frame { opcode, fin, mask, payload_bytes, done_bytes: 0 });
    }

    /// Takes what the input has of the current frame's payload.
    fn absorb(&mut self, input: &mut Input<'_>, accepts: Accepts) -> Result<Progress, ProtocolError> {
        let Some(mut frame) = self.frame.take() else { return Ok(Progress::Starved) };
        let piece = input.take(frame.payload_bytes - frame.done_bytes);
        unmask(piece, frame.mask, frame.done_bytes);
        frame.done_bytes += piece.len();
        if frame.opcode.is_control() {
            self.control.extend_from_slice(piece);
        } else {
            // What is compressed is judged when it is decompressed.
            if self.message == Some(Kind::Text) && !self.deflated {
                self.utf8.push(piece).map_err(|_| ProtocolError::UTF8)?;
            }
            let most_bytes = if frame.fin {
                self.payload.len() + piece.len() + frame.payload_bytes - frame.done_bytes
            } else {
                accepts.message_bytes_max
            };
            append(&mut self.payload, piece, most_bytes);
        }
        if frame.done_bytes < frame.payload_bytes {
            self.frame = Some(frame);
            return Ok(Progress::Starved);
        }
        if frame.opcode.is_control() {
            return Ok(Progress::Ready(Ready::Control(frame.opcode)));
        }
        if !frame.fin {
            return Ok(Progress::Fragment);
        }
        match self.message {
            kind if self.deflated => Ok(Progress::Ready(Ready::Deflated { is_text: kind == Some(Kind::Text) })),
            Some(Kind::Text) if !self.utf8.is_complete() => Err(ProtocolError::UTF8),
            Some(Kind::Text) => Ok(Progress::Ready(Ready::Text)),
            Some(Kind::Binary) | None => Ok(Progress::Ready(Ready::Binary)),
        }
    }
}

/// Appends with geometric growth that is driven by what arrived, never by what was announced, up to the `most_bytes`
/// that the message can have.
fn append(payload: &mut Vec<u8>, piece: &[u8], most_bytes: usize) {
    let needed = payload.len() + piece.len();
    if needed > payload.capacity() {
        let target = (payload.capacity() * 2).min(most_bytes).max(needed);
        payload.reserve_exact(target - payload.len());
    }
    payload.extend_from_slice(piece);
}

/// Judges the payload of a message that is whole and unmasked.
#[inline]
fn whole_message(opcode: Opcode, deflated: bool, payload: &mut [u8]) -> Result<Message<'_>, ProtocolError> {
    match opcode {
        opcode if deflated => Ok(Message::Deflated { is_text: opcode == Opcode::Text, payload }),
        Opcode::Text if simdutf8::basic::from_utf8(payload).is_err() => Err(ProtocolError::UTF8),
        Opcode::Text => Ok(Message::Text(payload)),
        // A continuation is never whole by itself: its header is refused unless a message is in progress.
        Opcode::Binary | Opcode::Continuation => Ok(Message::Binary(payload)),
        Opcode::Ping => Ok(Message::Ping(payload)),
        Opcode::Pong => Ok(Message::Pong(payload)),
        Opcode::Close => close_message(payload).map(Message::Close),
    }
}

/// §5.5.1 and §7.4: nothing, or a code that may stand on the wire and a UTF-8 reason.
fn close_message(payload: &[u8]) -> Result<Option<(u16, &str)>, ProtocolError> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return if payload.is_empty() { Ok(None) } else { Err(ProtocolError::protocol("close code is cut off")) };
    };
    let code = u16::from_be_bytes(*code);
    if !close_code_is_sendable(code) {
        return Err(ProtocolError::protocol("invalid close code"));
    }
    match simdutf8::basic::from_utf8(reason) {
        Ok(reason) => Ok(Some((code, reason))),
        Err(_) => Err(ProtocolError { close_code: 1007, reason: "close reason is not valid UTF-8" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: usize = 1 << 20;
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    /// A client's frame: first byte, payload.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first];
        match payload.len() {
            short @ 0..126 => bytes.push(0x80 | short as u8),
            medium @ 126..0x1_0000 => {
                bytes.push(0x80 | 126);
                bytes.extend((medium as u16).to_be_bytes());
            }
            long => {
                bytes.push(0x80 | 127);
                bytes.extend((long as u64).to_be_bytes());
            }
        }
        bytes.extend(MASK);
        bytes.extend(payload.iter().enumerate().map(|(i, byte)| byte ^ MASK[i % 4]));
        bytes
    }

    fn show(message: &Message<'_>) -> String {
        match message {
            Message::Text(text) => format!("text {}", std::str::from_utf8(text).unwrap()),
            Message::Binary(bytes) => format!("binary {}", bytes.escape_ascii()),
            Message::Ping(payload) => format!("ping {}", payload.escape_ascii()),
            Message::Pong(payload) => format!("pong {}", payload.escape_ascii()),
            Message::Close(close) => format!("close {close:?}"),
            Message::Deflated { is_text, payload } => {
                format!("deflated {} {}", if *is_text { "text" } else { "binary" }, payload.escape_ascii())
            }
        }
    }

    /// Feeds the pieces; returns the messages, or with the last one the error, and the bytes given until then.
    fn decode<'p>(pieces: impl IntoIterator<Item = &'p [u8]>, max: usize) -> (Vec<String>, Option<(u16, usize)>) {
        decode_accepting(pieces, Accepts::plain(max))
    }

    fn decode_accepting<'p>(
        pieces: impl IntoIterator<Item = &'p [u8]>,
        accepts: Accepts,
    ) -> (Vec<String>, Option<(u16, usize)>) {
        let mut decoder = Decoder::new();
        let (mut messages, mut given) = (Vec::new(), 0);
        for piece in pieces {
            let mut piece = piece.to_vec();
            given += piece.len();
            let mut input = Input::new(&mut piece);
            loop {
                match decoder.next(&mut input, accepts) {
                    Ok(Some(message)) => messages.push(show(&message)),
                    Ok(None) => break,
                    Err(error) => return (messages, Some((error.close_code, given))),
                }
            }
            assert_eq!(input.remaining(), 0);
        }
        assert!(decoder.is_mid_message() || decoder.spill_bytes() == 0);
        (messages, None)
    }

    fn messages(stream: &[u8]) -> Vec<String> {
        let (messages, error) = decode([stream], MAX);
        assert_eq!(error, None);
        messages
    }

    /// The close code of a stream that fails, and after how many bytes it fails when they come one by one.
    fn failure(stream: &[u8]) -> (u16, usize) {
        let (whole, whole_error) = decode([stream], MAX);
        let (single, error) = decode(stream.chunks(1), MAX);
        assert_eq!(whole, single);
        let error = error.unwrap();
        assert_eq!(whole_error.unwrap().0, error.0);
        error
    }

    #[test]
    fn the_examples_of_the_rfc_decode() {
        assert_eq!(messages(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"), ["text Hello"]);
        assert_eq!(messages(b"\x89\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"), ["ping Hello"]);
        assert_eq!(messages(b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"), ["pong Hello"]);
        assert_eq!(messages(&[frame(0x01, b"Hel"), frame(0x80, b"lo")].concat()), ["text Hello"]);
        let bytes = [b'x'; 65536];
        for length in [0, 1, 125, 126, 127, 256, 65535, 65536] {
            let expected = format!("binary {}", "x".repeat(length));
            assert_eq!(messages(&frame(0x82, &bytes[..length])), [expected], "length {length}");
        }
    }

    /// All that may stand on the wire: fragments with control frames in between, empty frames and messages, every
    /// length form, characters cut by fragments.
    fn everything() -> (Vec<u8>, Vec<String>) {
        let long = "ä".repeat(100);
        let stream = [
            frame(0x81, b""),
            frame(0x81, long.as_bytes()),
            frame(0x01, b"frag \xce"),
            frame(0x89, b"in between"),
            frame(0x00, b""),
            frame(0x8a, b""),
            frame(0x80, b"\xba!"),
            frame(0x02, b""),
            frame(0x80, b""),
            frame(0x82, &[0xff; 300]),
            frame(0x89, b"ping"),
            frame(0x02, b"\xff"),
            frame(0x80, b"\xfe"),
            frame(0x88, b"\x03\xe8bye"),
        ];
        let messages = [
            "text ".into(),
            format!("text {long}"),
            "ping in between".into(),
            "pong ".into(),
            "text frag κ!".into(),
            "binary ".into(),
            format!("binary {}", r"\xff".repeat(300)),
            "ping ping".into(),
            r"binary \xff\xfe".into(),
            r#"close Some((1000, "bye"))"#.into(),
        ];
        (stream.concat(), messages.into())
    }

    #[test]
    fn cutting_the_stream_at_any_byte_changes_nothing() {
        let (stream, expected) = everything();
        for cut in 0..=stream.len() {
            let (left, right) = stream.split_at(cut);
            assert_eq!(decode([left, right], MAX), (expected.clone(), None), "cut at {cut}");
        }
    }

    #[test]
    fn pieces_of_any_size_change_nothing() {
        let (stream, expected) = everything();
        for size in 1..40 {
            assert_eq!(decode(stream.chunks(size), MAX), (expected.clone(), None), "pieces of {size}");
        }
    }

    #[test]
    fn breaches_of_the_framing_fail_with_1002_at_the_byte_that_shows_them() {
        let start = frame(0x01, b"a");
        for (what, stream, after) in [
            ("RSV1", b"\xc1".to_vec(), 1),
            ("RSV2", b"\xa1".to_vec(), 1),
            ("RSV3", b"\x91".to_vec(), 1),
            ("opcode 3", b"\x83".to_vec(), 1),
            ("opcode 11", b"\x8b".to_vec(), 1),
            ("continuation of nothing", b"\x80".to_vec(), 1),
            ("text inside a fragmented message", [&start[..], b"\x81"].concat(), start.len() + 1),
            ("binary inside a fragmented message", [&start[..], b"\x02"].concat(), start.len() + 1),
            ("continuation after the end", [&start[..], &frame(0x80, b""), b"\x80"].concat(), start.len() + 7),
            ("fragmented ping", b"\x09".to_vec(), 1),
            ("no mask", b"\x81\x05Hello".to_vec(), 2),
            ("ping of 126 bytes", b"\x89\xfe\x00\x7e".to_vec(), 2),
            ("close of 64 bit length", b"\x88\xff".to_vec(), 2),
            ("125 in 16 bits", b"\x81\xfe\x00\x7d".to_vec(), 4),
            ("65535 in 64 bits", b"\x81\xff\x00\x00\x00\x00\x00\x00\xff\xff".to_vec(), 10),
            ("highest length bit", b"\x81\xff\x80\x00\x00\x00\x00\x00\x00\x00".to_vec(), 10),
            ("close of one byte", frame(0x88, b"\x03"), 7),
        ] {
            assert_eq!(failure(&stream), (1002, after), "{what}");
        }
    }

    #[test]
    fn text_fails_with_1007_at_the_byte_that_makes_it_invalid() {
        let bad = b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4\x90\x80\x80edited";
        assert_eq!(failure(&frame(0x81, bad)), (1007, 6 + 13));
        assert_eq!(failure(&[frame(0x01, &bad[..12]), frame(0x00, &bad[12..])].concat()), (1007, 6 + 12 + 6 + 1));
        assert_eq!(failure(&frame(0x81, b"cut \xce")), (1007, 11), "a message that ends inside a character");
        assert_eq!(failure(&[frame(0x01, b"\xce"), frame(0x80, b"")].concat()), (1007, 13));
        assert_eq!(failure(&frame(0x88, b"\x03\xe8\xff")), (1007, 9), "the reason of a close");
    }

    #[test]
    fn closes_carry_nothing_or_a_valid_code() {
        assert_eq!(messages(&frame(0x88, b"")), ["close None"]);
        assert_eq!(messages(&frame(0x88, &4000u16.to_be_bytes())), [r#"close Some((4000, ""))"#]);
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535u16] {
            assert_eq!(failure(&frame(0x88, &code.to_be_bytes())).0, 1002, "{code}");
        }
    }

    #[test]
    fn a_message_beyond_the_limit_fails_with_1009_before_its_payload_comes() {
        let stream = frame(0x82, &[0; 300]);
        assert_eq!(decode(stream.chunks(1), 300).1, None);
        assert_eq!(decode(stream.chunks(1), 299).1, Some((1009, 4)));
        let fragments = [frame(0x02, &[0; 200]), frame(0x89, &[0; 125]), frame(0x80, &[0; 100])].concat();
        assert_eq!(decode([&fragments[..]], 300).1, None);
        assert_eq!(decode([&fragments[..]], 299).1.unwrap().0, 1009);
        assert_eq!(decode([&b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff"[..]], usize::MAX).1, None);
        assert_eq!(decode([&frame(0x89, b"ping")[..]], 0).0, ["ping ping"], "control frames are no messages");
    }

    #[test]
    fn memory_follows_what_arrived_and_goes_with_the_message() {
        let mut decoder = Decoder::new();
        let stream = frame(0x82, &vec![7; 100_000]);
        let mut given = 0;
        for piece in stream.chunks(4096) {
            let mut piece = piece.to_vec();
            given += piece.len();
            let mut input = Input::new(&mut piece);
            if let Some(message) = decoder.next(&mut input, Accepts::plain(MAX)).unwrap() {
                assert_eq!(message, Message::Binary(&mut vec![7; 100_000]));
                assert_eq!(given, stream.len());
                assert!(decoder.next(&mut input, Accepts::plain(MAX)).unwrap().is_none());
            } else {
                assert!(decoder.is_mid_message());
                assert!((given - 14..given * 2 + 512).contains(&decoder.spill_bytes()));
                assert!(decoder.spill_bytes() < 100_000 + 512);
            }
        }
        assert!(!decoder.is_mid_message());
        assert_eq!(decoder.spill_bytes(), 0);
    }

    #[test]
    fn compressed_messages_are_given_as_they_came_where_they_were_agreed_on() {
        let accepts = Accepts { message_bytes_max: 100, deflated: true };
        // Not UTF-8: it is judged when it is decompressed. A ping stands between the fragments.
        let stream = [
            frame(0xc1, b"\xff\xfe"),
            frame(0x81, b"plain"),
            frame(0x42, b"\xf2"),
            frame(0x89, b"p"),
            frame(0x00, b""),
            frame(0x80, b"\x48"),
            frame(0x02, b"a"),
            frame(0x80, b"b"),
        ]
        .concat();
        let expected = [r"deflated text \xff\xfe", "text plain", "ping p", r"deflated binary \xf2H", "binary ab"]
            .map(str::to_owned);
        for size in 1..=stream.len() {
            assert_eq!(decode_accepting(stream.chunks(size), accepts), (expected.to_vec(), None), "{size}");
        }
        assert_eq!(decode([&stream[..]], 100), (Vec::new(), Some((1002, stream.len()))), "nobody agreed to that");
    }

    #[test]
    fn the_bit_of_compression_stands_on_the_first_frame_of_a_data_message_only() {
        let accepts = Accepts { message_bytes_max: 100, deflated: true };
        for stream in [
            [frame(0x41, b"a"), frame(0xc0, b"b")].concat(),
            [frame(0x01, b"a"), frame(0xc0, b"b")].concat(),
            frame(0xc9, b"p"),
            frame(0xca, b"p"),
            frame(0xc8, b"\x03\xe8"),
            frame(0xa1, b"a"),
            frame(0x91, b"a"),
            frame(0xe1, b"a"),
        ] {
            let (messages, error) = decode_accepting([&stream[..]], accepts);
            assert_eq!((messages.len(), error.map(|error| error.0)), (0, Some(1002)), "{stream:x?}");
        }
        let long = frame(0xc1, &[0; 101]);
        assert_eq!(decode_accepting(long.chunks(1), accepts), (Vec::new(), Some((1009, 2))), "at its header");
    }

    #[test]
    fn what_came_whole_is_borrowed_from_the_input() {
        let mut bytes = frame(0x81, b"Hello");
        let place = bytes[6..].as_ptr();
        let mut decoder = Decoder::new();
        let mut input = Input::new(&mut bytes);
        let Some(Message::Text(text)) = decoder.next(&mut input, Accepts::plain(MAX)).unwrap() else {
            panic!("no text")
        };
        assert_eq!(text.as_ptr(), place);
        assert_eq!(decoder.spill_bytes(), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_to_the_same_however_they_are_cut(
            frames in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..140)), 0..6),
            size in 1usize..50,
            deflated: bool,
        ) {
            let accepts = Accepts { message_bytes_max: 200, deflated };
            let stream: Vec<u8> = frames.iter().flat_map(|(first, payload)| frame(*first & 0xcf, payload)).collect();
            let whole = decode_accepting([&stream[..]], accepts);
            let pieces = decode_accepting(stream.chunks(size), accepts);
            prop_assert_eq!(whole.0, pieces.0);
            prop_assert_eq!(whole.1.map(|error| error.0), pieces.1.map(|error| error.0));
        }
    }
}
