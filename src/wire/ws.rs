//! RFC 6455 frames, server side.
//!
//! ```text
//!  byte 0            byte 1                                       then
//! +---+---+---------+---+-------------+---------------+------+-------------+
//! |FIN|RSV| opcode  |M  | length, 126 | 16 or 64 bits | mask | payload     |
//! | 1 | 3 |   4     | 1 |  or 127  7  | as announced  |  32  |             |
//! +---+---+---------+---+-------------+---------------+------+-------------+
//! ```
//!
//! Messages are decoded in the buffer they were received in. Only what is unfinished when the buffer ends is copied
//! aside, into a [`Spill`] that is gone again with its message. Every rule is checked at the first byte that breaks
//! it, so the outcome does not depend on how the stream was cut.
//!
//! The header is read by hand: `tungstenite`'s `FrameHeader::parse` judges opcodes only after the whole header and has
//! no notion of masking being required; tests hold both to the same answer, `benches/wire.rs` compares their speed.

use super::{mask::unmask, utf8::Validator};

/// The longest payload of a control frame (RFC 6455 §5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

/// The longest header a client can send: 2 + 8 bytes of length + 4 of mask.
const HEADER_BYTES_MAX: usize = 14;

/// The frame types of RFC 6455 §5.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// More of a fragmented message.
    Continuation = 0,
    /// A text message or its first fragment.
    Text = 1,
    /// A binary message or its first fragment.
    Binary = 2,
    /// The closing handshake.
    Close = 8,
    /// Asks for a pong.
    Ping = 9,
    /// Answers a ping.
    Pong = 10,
}

impl Opcode {
    const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return None,
        })
    }

    const fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

/// What a client sent, unmasked; borrowed from the receive buffer or, if it came in pieces, from the decoder.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A whole text message; valid UTF-8. Mutable, because parsers work in place.
    Text(&'a mut [u8]),
    /// A whole binary message.
    Binary(&'a mut [u8]),
    /// A ping; the answer is a pong with the same payload.
    Ping(&'a [u8]),
    /// A pong, asked for or not.
    Pong(&'a [u8]),
    /// The peer closes: its code and reason, if it gave any. Nothing after it is to be decoded.
    Close(Option<(u16, &'a str)>),
}

/// A breach of RFC 6455 or of the message limit. The connection is to be closed with this code; nothing more can be
/// decoded from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason} ({close_code})")]
pub struct ProtocolError {
    /// 1002, 1007 or 1009.
    pub close_code: u16,
    /// For the close frame and the log.
    pub reason: &'static str,
}

impl ProtocolError {
    const fn protocol(reason: &'static str) -> Self {
        Self { close_code: 1002, reason }
    }

    const UTF8: Self = Self { close_code: 1007, reason: "text is not valid UTF-8" };
    const TOO_LARGE: Self = Self { close_code: 1009, reason: "message too large" };
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
    /// To be called until `None` or an error. A message longer than `message_bytes_max` is refused at its header.
    #[inline]
    pub fn next<'a>(
        &'a mut self,
        input: &'a mut Input<'_>,
        message_bytes_max: usize,
    ) -> Result<Option<Message<'a>>, ProtocolError> {
        if self.spill.is_some() {
            self.release_delivered();
        }
        // The common case first: a connection with nothing kept, a frame that came whole.
        if self.spill.is_none()
            && let Some(header) = Header::parse(input.rest(), None, message_bytes_max)?
            && header.fin
            && input.remaining() - header.bytes >= header.payload_bytes
        {
            input.at += header.bytes;
            let payload = input.take(header.payload_bytes);
            unmask(payload, header.mask, 0);
            return whole_message(header.opcode, payload).map(Some);
        }
        self.next_in_pieces(input, message_bytes_max)
    }

    /// The memory that an unfinished message holds.
    pub fn spill_bytes(&self) -> usize {
        self.spill.as_ref().map_or(0, |spill| size_of::<Spill>() + spill.payload.capacity() + spill.control.capacity())
    }

    /// Whether a message or frame has begun and not ended.
    pub fn is_mid_message(&self) -> bool {
        self.spill.as_ref().is_some_and(|spill| spill.delivered != Some(Delivered::Data))
    }

    fn next_in_pieces<'a>(
        &'a mut self,
        input: &'a mut Input<'_>,
        message_bytes_max: usize,
    ) -> Result<Option<Message<'a>>, ProtocolError> {
        let ready = loop {
            if input.remaining() == 0 && !self.spill.as_ref().is_some_and(|spill| spill.frame.is_some()) {
                return Ok(None);
            }
            let spill = self.spill.get_or_insert_default();
            if spill.frame.is_none() {
                let Some(header) = spill.gather_header(input, message_bytes_max)? else { return Ok(None) };
                if header.opcode.is_control() && input.remaining() >= header.payload_bytes {
                    let unused = spill.message.is_none();
                    if unused {
                        self.spill = None;
                    }
                    let payload = input.take(header.payload_bytes);
                    unmask(payload, header.mask, 0);
                    return whole_message(header.opcode, payload).map(Some);
                }
                spill.begin(header);
            }
            match spill.absorb(input, message_bytes_max)? {
                Progress::Starved => return Ok(None),
                Progress::Fragment => {}
                Progress::Ready(ready) => break ready,
            }
        };
        let Some(spill) = self.spill.as_deref_mut() else { return Ok(None) };
        match ready {
            Ready::Control(opcode) => {
                spill.delivered = Some(Delivered::Control);
                whole_message(opcode, &mut spill.control).map(Some)
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
    Text,
    Binary,
    Control(Opcode),
}

impl Spill {
    /// Reads a header that may have begun in an earlier input.
    fn gather_header(
        &mut self,
        input: &mut Input<'_>,
        message_bytes_max: usize,
    ) -> Result<Option<Header>, ProtocolError> {
        let so_far = self.message.map(|_| self.payload.len());
        if self.header_bytes == 0
            && let Some(header) = Header::parse(input.rest(), so_far, message_bytes_max)?
        {
            input.at += header.bytes;
            return Ok(Some(header));
        }
        while let &mut [byte] = input.take(1) {
            let at = usize::from(self.header_bytes);
            let Some(slot) = self.header.get_mut(at) else { break };
            *slot = byte;
            self.header_bytes += 1;
            if let Some(header) = Header::parse(self.header.get(..=at).unwrap_or_default(), so_far, message_bytes_max)?
            {
                self.header_bytes = 0;
                return Ok(Some(header));
            }
        }
        Ok(None)
    }

    fn begin(&mut self, header: Header) {
        match header.opcode {
            Opcode::Text => self.message = Some(Kind::Text),
            Opcode::Binary => self.message = Some(Kind::Binary),
            Opcode::Continuation | Opcode::Close | Opcode::Ping | Opcode::Pong => {}
        }
        let Header { opcode, fin, mask, payload_bytes, .. } = header;
        self.frame = Some(Frame { opcode, fin, mask, payload_bytes, done_bytes: 0 });
    }

    /// Takes what the input has of the current frame's payload.
    fn absorb(&mut self, input: &mut Input<'_>, message_bytes_max: usize) -> Result<Progress, ProtocolError> {
        let Some(mut frame) = self.frame.take() else { return Ok(Progress::Starved) };
        let piece = input.take(frame.payload_bytes - frame.done_bytes);
        unmask(piece, frame.mask, frame.done_bytes);
        frame.done_bytes += piece.len();
        if frame.opcode.is_control() {
            self.control.extend_from_slice(piece);
        } else {
            if self.message == Some(Kind::Text) {
                self.utf8.push(piece).map_err(|_| ProtocolError::UTF8)?;
            }
            let ahead_bytes = if frame.fin { frame.payload_bytes - frame.done_bytes } else { message_bytes_max };
            append(&mut self.payload, piece, ahead_bytes);
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
            Some(Kind::Text) if !self.utf8.is_complete() => Err(ProtocolError::UTF8),
            Some(Kind::Text) => Ok(Progress::Ready(Ready::Text)),
            Some(Kind::Binary) | None => Ok(Progress::Ready(Ready::Binary)),
        }
    }
}

/// Appends with geometric growth that is driven by what arrived, never by what was announced, and that does not grow
/// beyond the `ahead_bytes` that can still follow.
fn append(payload: &mut Vec<u8>, piece: &[u8], ahead_bytes: usize) {
    let needed = payload.len() + piece.len();
    if needed > payload.capacity() {
        let target = (payload.capacity() * 2).min(needed.saturating_add(ahead_bytes)).max(needed);
        payload.reserve_exact(target - payload.len());
    }
    payload.extend_from_slice(piece);
}

/// A frame header of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    opcode: Opcode,
    fin: bool,
    mask: [u8; 4],
    payload_bytes: usize,
    /// The length of the header itself.
    bytes: usize,
}

impl Header {
    /// Reads a header; `None` while it is unfinished. `so_far` is the length of the fragmented message in progress.
    ///
    /// The checks stand in the order of the bytes, so that a bad header fails the same however much of it is there.
    #[inline]
    fn parse(bytes: &[u8], so_far: Option<usize>, message_bytes_max: usize) -> Result<Option<Self>, ProtocolError> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        let fin = first & 0x80 != 0;
        // §5.2: reserved bits are zero unless an extension was negotiated; none is.
        if first & 0x70 != 0 {
            return Err(ProtocolError::protocol("reserved bit set"));
        }
        let Some(opcode) = Opcode::from_bits(first & 0x0f) else {
            return Err(ProtocolError::protocol("reserved opcode"));
        };
        match (opcode, so_far) {
            // §5.4: the fragments of one message follow each other without another message between them.
            (Opcode::Continuation, None) => return Err(ProtocolError::protocol("continuation of nothing")),
            (Opcode::Text | Opcode::Binary, Some(_)) => {
                return Err(ProtocolError::protocol("new message inside a fragmented one"));
            }
            // §5.5: control frames are never fragmented.
            (Opcode::Close | Opcode::Ping | Opcode::Pong, _) if !fin => {
                return Err(ProtocolError::protocol("fragmented control frame"));
            }
            _ => {}
        }

        let Some(&second) = bytes.get(1) else { return Ok(None) };
        // §5.1: a server closes the connection upon a frame that is not masked.
        if second & 0x80 == 0 {
            return Err(ProtocolError::protocol("frame is not masked"));
        }
        let short = second & 0x7f;
        if opcode.is_control() && usize::from(short) > CONTROL_BYTES_MAX {
            return Err(ProtocolError::protocol("control frame too long"));
        }
        let (announced, mask_at) = match short {
            126 => match bytes.get(2..).and_then(<[u8]>::first_chunk) {
                None => return Ok(None),
                Some(length) => (u64::from(u16::from_be_bytes(*length)), 4),
            },
            127 => match bytes.get(2..).and_then(<[u8]>::first_chunk) {
                None => return Ok(None),
                Some(length) => (u64::from_be_bytes(*length), 10),
            },
            short => (u64::from(short), 2),
        };
        // §5.2: the shortest form must be used, and the highest of the 64 bits is zero.
        if (short == 126 && announced < 126) || (short == 127 && announced < 0x1_0000) {
            return Err(ProtocolError::protocol("length is not in its shortest form"));
        }
        if announced >> 63 != 0 {
            return Err(ProtocolError::protocol("length has its highest bit set"));
        }
        let payload_bytes = usize::try_from(announced).map_err(|_| ProtocolError::TOO_LARGE)?;
        if !opcode.is_control() && payload_bytes > message_bytes_max.saturating_sub(so_far.unwrap_or(0)) {
            return Err(ProtocolError::TOO_LARGE);
        }
        let Some(&mask) = bytes.get(mask_at..).and_then(<[u8]>::first_chunk) else { return Ok(None) };
        Ok(Some(Self { opcode, fin, mask, payload_bytes, bytes: mask_at + 4 }))
    }
}

/// Judges the payload of a message that is whole and unmasked.
#[inline]
fn whole_message(opcode: Opcode, payload: &mut [u8]) -> Result<Message<'_>, ProtocolError> {
    match opcode {
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

/// The close codes that may stand in a close frame: RFC 6455 §7.4 with IANA's registrations (1012–1014), and the ranges
/// for libraries and private use.
pub const fn close_code_is_sendable(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// How long the header of a server's frame is.
pub const fn header_bytes(payload_bytes: usize) -> usize {
    match payload_bytes {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => 10,
    }
}

/// Appends the header of an unfragmented server frame; its payload is to follow.
#[inline]
pub fn write_header(out: &mut Vec<u8>, opcode: Opcode, payload_bytes: usize) {
    let first = 0x80 | opcode as u8;
    match payload_bytes {
        0..=125 => out.extend_from_slice(&[first, payload_bytes as u8]),
        126..=0xffff => {
            let [high, low] = (payload_bytes as u16).to_be_bytes();
            out.extend_from_slice(&[first, 126, high, low]);
        }
        _ => {
            out.extend_from_slice(&[first, 127]);
            out.extend_from_slice(&(payload_bytes as u64).to_be_bytes());
        }
    }
}

/// Appends a text frame. `payload` is UTF-8 by the caller's word.
pub fn text_frame(payload: &[u8], out: &mut Vec<u8>) {
    data_frame(Opcode::Text, payload, out);
}

/// Appends a binary frame.
pub fn binary_frame(payload: &[u8], out: &mut Vec<u8>) {
    data_frame(Opcode::Binary, payload, out);
}

fn data_frame(opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) {
    out.reserve(header_bytes(payload.len()) + payload.len());
    write_header(out, opcode, payload.len());
    out.extend_from_slice(payload);
}

/// Appends a ping, pong or close frame. A payload beyond 125 bytes is cut there, as no longer one can be sent.
pub fn control_frame(opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) {
    let payload = payload.get(..CONTROL_BYTES_MAX).unwrap_or(payload);
    data_frame(opcode, payload, out);
}

/// Appends a close frame. The reason is cut at the character that would not fit into 123 bytes.
///
/// A code that may not stand on the wire (such as 1005, "none was given") makes a close frame without a code.
pub fn close_frame(code: u16, reason: &str, out: &mut Vec<u8>) {
    if !close_code_is_sendable(code) {
        return data_frame(Opcode::Close, &[], out);
    }
    let reason = reason.get(..reason.floor_char_boundary(CONTROL_BYTES_MAX - 2)).unwrap_or_default();
    write_header(out, Opcode::Close, 2 + reason.len());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}
