//! RFC 6455 frames, server side: headers read and frames written. [`Decoder`] makes messages of what arrives.
//!
//! ```text
//!  byte 0            byte 1                                       then
//! +---+---+---------+---+-------------+---------------+------+-------------+
//! |FIN|RSV| opcode  |M  | length, 126 | 16 or 64 bits | mask | payload     |
//! | 1 | 3 |   4     | 1 |  or 127  7  | as announced  |  32  |             |
//! +---+---+---------+---+-------------+---------------+------+-------------+
//! ```
//!
//! The header is read by hand: `tungstenite`'s `FrameHeader::parse` judges an opcode only after the whole header, lets
//! lengths in a longer form than needed pass, and takes as long as the decoder here for a whole empty frame (9 ns,
//! `benches/wire.rs`). A test holds both to the same answer where both are right.

pub use super::decoder::{Accepts, Decoder, Input, Message};

/// The longest payload of a control frame (RFC 6455 §5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

/// The reserved bit that says of a message's first frame that the message is compressed (RFC 7692 §6).
pub const RSV1: u8 = 0x40;

/// The longest header a client can send: 2 + 8 bytes of length + 4 of mask.
pub(super) const HEADER_BYTES_MAX: usize = 14;

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

    pub(super) const fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
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
    pub(super) const fn protocol(reason: &'static str) -> Self {
        Self { close_code: 1002, reason }
    }

    pub(super) const UTF8: Self = Self { close_code: 1007, reason: "text is not valid UTF-8" };
    pub(super) const TOO_LARGE: Self = Self { close_code: 1009, reason: "message too large" };
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

/// The length of the header of the frame that these bytes begin with, as [`write_header`] writes it.
pub fn header_bytes_of(frame: &[u8]) -> usize {
    match frame.get(1) {
        Some(126) => 4,
        Some(127) => 10,
        _ => 2,
    }
}

/// The length of the frame that these bytes begin with, as [`write_header`] writes its header; none where they begin with no
/// such header.
pub fn frame_bytes(bytes: &[u8]) -> Option<usize> {
    let [first, second, rest @ ..] = bytes else { return None };
    // Whole messages only, compressed or not, of an opcode that there is.
    let is_compressed = first & RSV1 != 0;
    if first & 0xb0 != 0x80
        || (is_compressed && !matches!(first & 0x0f, 1 | 2))
        || !matches!(first & 0x0f, 1 | 2 | 8 | 9 | 10)
    {
        return None;
    }
    let payload_bytes = match second {
        126 => u64::from(u16::from_be_bytes(*rest.first_chunk()?)),
        127 => u64::from_be_bytes(*rest.first_chunk()?),
        short if *short < 126 => u64::from(*short),
        _ => return None,
    };
    let payload_bytes = usize::try_from(payload_bytes).ok()?;
    payload_bytes.checked_add(header_bytes(payload_bytes))
}

/// Appends a text frame. `payload` is UTF-8 by the caller's word.
#[inline]
pub fn text_frame(payload: &[u8], out: &mut Vec<u8>) {
    data_frame(Opcode::Text, payload, out);
}

/// Appends a binary frame.
#[inline]
pub fn binary_frame(payload: &[u8], out: &mut Vec<u8>) {
    data_frame(Opcode::Binary, payload, out);
}

#[inline]
pub(super) fn data_frame(opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) {
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

/// A frame header of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) opcode: Opcode,
    pub(super) fin: bool,
    /// It is the first of a compressed message.
    pub(super) deflated: bool,
    pub(super) mask: [u8; 4],
    pub(super) payload_bytes: usize,
    /// The length of the header itself.
    pub(super) bytes: usize,
}

impl Header {
    /// Reads a header; `None` while it is unfinished. `so_far` is the length of the fragmented message in progress.
    ///
    /// The checks stand in the order of the bytes, so that a bad header fails the same however much of it is there.
    #[inline]
    pub(super) fn parse(bytes: &[u8], so_far: Option<usize>, accepts: Accepts) -> Result<Option<Self>, ProtocolError> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        let fin = first & 0x80 != 0;
        // §5.2: reserved bits are zero unless an extension was negotiated that gives them a meaning.
        let deflated = first & RSV1 != 0;
        if first & 0x30 != 0 || (deflated && !accepts.deflated) {
            return Err(ProtocolError::protocol("reserved bit set"));
        }
        let Some(opcode) = Opcode::from_bits(first & 0x0f) else {
            return Err(ProtocolError::protocol("reserved opcode"));
        };
        // RFC 7692 §6.1: it is said once per message, of its first frame, and of no control frame.
        if deflated && !matches!(opcode, Opcode::Text | Opcode::Binary) {
            return Err(ProtocolError::protocol("reserved bit set where no message begins"));
        }
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
        if !opcode.is_control() && payload_bytes > accepts.message_bytes_max.saturating_sub(so_far.unwrap_or(0)) {
            return Err(ProtocolError::TOO_LARGE);
        }
        let Some(&mask) = bytes.get(mask_at..).and_then(<[u8]>::first_chunk) else { return Ok(None) };
        Ok(Some(Self { opcode, fin, deflated, mask, payload_bytes, bytes: mask_at + 4 }))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;
    use tungstenite::protocol::frame::{
        FrameHeader,
        coding::{CloseCode, OpCode},
    };

    use super::*;

    #[test]
    fn the_length_of_a_frame_is_read_as_it_was_written() {
        for payload in [0, 1, 125, 126, 65_535, 65_536, 70_000] {
            let mut frame = Vec::new();
            text_frame(&vec![b'x'; payload], &mut frame);
            assert_eq!(frame_bytes(&frame), Some(frame.len()));
            assert_eq!(header_bytes_of(&frame), frame.len() - payload);
            assert_eq!(frame_bytes(&frame[..1]), None);
            frame[0] |= RSV1;
            assert_eq!(frame_bytes(&frame), Some(frame.len()), "a compressed message is as long");
        }
        for bytes in [
            &b"{\"a\":1}"[..],
            &[0x83, 5],
            &[0x81, 0x85],
            &[0xc9, 0],
            &[0xa1, 0],
            &[0x81, 127, 255, 255, 255, 255, 255, 255, 255, 255],
            &[],
        ] {
            assert_eq!(frame_bytes(bytes), None, "{bytes:?}");
            assert!(header_bytes_of(bytes) <= 10, "{bytes:?}");
        }
    }

    #[test]
    fn the_frames_of_the_rfc_are_written() {
        let mut out = Vec::new();
        text_frame(b"Hello", &mut out);
        assert_eq!(out, b"\x81\x05Hello");
        for (length, header) in [
            (0, &b"\x82\x00"[..]),
            (125, b"\x82\x7d"),
            (126, b"\x82\x7e\x00\x7e"),
            (65535, b"\x82\x7e\xff\xff"),
            (65536, b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
        ] {
            let mut out = Vec::new();
            binary_frame(&vec![b'x'; length], &mut out);
            assert_eq!(out.len(), header_bytes(length) + length);
            assert!(out.starts_with(header), "length {length}");
        }
    }

    #[test]
    fn a_close_reason_is_cut_at_a_character() {
        let mut out = Vec::new();
        close_frame(1001, &"é".repeat(100), &mut out);
        assert_eq!(out.len(), 2 + 2 + 122);
        assert_eq!(out[..4], [0x88, 124, 0x03, 0xe9]);
        assert_eq!(std::str::from_utf8(&out[4..]).unwrap(), "é".repeat(61));

        let mut out = Vec::new();
        close_frame(1005, "none", &mut out);
        assert_eq!(out, b"\x88\x00");
    }

    #[test]
    fn a_control_payload_is_cut_at_its_limit() {
        let mut out = Vec::new();
        control_frame(Opcode::Ping, &[1; 200], &mut out);
        assert_eq!(out[..2], [0x89, 125]);
        assert_eq!(out.len(), 127);
    }

    /// `tungstenite` does not know 1014, which IANA has registered since (Bad Gateway).
    #[test]
    fn close_codes_are_judged_as_by_tungstenite() {
        for code in (0..=u16::MAX).filter(|code| *code != 1014) {
            assert_eq!(close_code_is_sendable(code), CloseCode::from(code).is_allowed(), "{code}");
        }
    }

    proptest! {
        #[test]
        fn headers_are_read_as_by_tungstenite(mut bytes: [u8; 14], short in 0u8..128, text: bool) {
            bytes[0] = if text { 0x81 } else { bytes[0] };
            bytes[1] = 0x80 | short;
            if short == 127 {
                bytes[2..6].fill(0);
            }
            let so_far = (bytes[0] & 0x0f == 0).then_some(0);
            let theirs = FrameHeader::parse(&mut Cursor::new(&bytes));
            match Header::parse(&bytes, so_far, Accepts::plain(usize::MAX)) {
                Ok(Some(ours)) => {
                    let (header, length) = theirs.unwrap().unwrap();
                    prop_assert_eq!(header.opcode, OpCode::from(ours.opcode as u8));
                    prop_assert_eq!(header.is_final, ours.fin);
                    prop_assert_eq!(header.mask, Some(ours.mask));
                    prop_assert_eq!(length, ours.payload_bytes as u64);
                    prop_assert_eq!(header.len(length), ours.bytes);
                }
                Ok(None) => prop_assert!(false, "14 bytes are always a header"),
                Err(error) => prop_assert_eq!(error.close_code, 1002),
            }
        }
    }
}
