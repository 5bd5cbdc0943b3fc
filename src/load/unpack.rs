//! Takes compression out of what a hub sends, before tungstenite reads it, which knows of none.

use std::cell::RefCell;
use std::io;

use flate2::{Decompress, FlushDecompress};

/// What is offered: each message by itself in either direction.
pub(crate) const OFFER: &str = "permessage-deflate; client_no_context_takeover; server_no_context_takeover";

/// The bit of a frame's first byte that says that the message is compressed (RFC 7692 §6).
const RSV1: u8 = 0x40;
/// What the sender leaves out at a message's end (§7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];
/// The longest header of a frame that is not masked.
const HEADER_BYTES_MAX: usize = 10;
/// More than a hub would send in one message.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

thread_local! {
    /// One for all connections of a thread, with where the message goes: it keeps nothing between messages.
    static INFLATER: RefCell<(Decompress, Vec<u8>)> = RefCell::new((Decompress::new(false), Vec::new()));
}

/// The bytes of one connection on their way to tungstenite.
#[derive(Debug, Default)]
pub(crate) struct Unpacker {
    /// Received, and not a whole frame yet.
    raw: Vec<u8>,
    /// To be read; everything before `given` was.
    plain: Vec<u8>,
    given: usize,
    /// The answer to the handshake is over.
    in_frames: bool,
}

impl Unpacker {
    /// Copies what is there into `buffer`; how many bytes.
    pub(crate) fn give(&mut self, buffer: &mut [u8]) -> usize {
        let rest = self.plain.get(self.given..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), rest.get(..count)) {
            to.copy_from_slice(from);
        }
        self.given += count;
        if self.given == self.plain.len() {
            self.plain.clear();
            self.given = 0;
        }
        count
    }

    /// Takes what was received. An error is what can't be decompressed.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.raw.extend_from_slice(bytes);
        let mut at = 0;
        if !self.in_frames {
            let Some(end) = memchr::memmem::find(&self.raw, b"\r\n\r\n") else { return Ok(()) };
            at = end + 4;
            self.plain.extend_from_slice(self.raw.get(..at).unwrap_or_default());
            self.in_frames = true;
        }
        while let Some(rest) = self.raw.get(at..).filter(|rest| !rest.is_empty()) {
            let Some((frame, payload)) = whole_frame(rest) else { break };
            at += frame.len();
            match frame.first() {
                Some(first) if first & RSV1 != 0 => unpack(first & !RSV1, payload, &mut self.plain)?,
                _ => self.plain.extend_from_slice(frame),
            }
        }
        self.raw.drain(..at);
        Ok(())
    }
}

/// The frame that these bytes begin with, and its payload; none while it is unfinished.
fn whole_frame(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (header_bytes, payload_bytes) = match *bytes.get(1)? {
        126 => (4, u64::from(u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?))),
        127 => (HEADER_BYTES_MAX, u64::from_be_bytes(*bytes.get(2..)?.first_chunk()?)),
        // A masked frame is an error of the hub's, of which tungstenite tells.
        short => (2, u64::from(short & 0x7f)),
    };
    let bytes = bytes.get(..usize::try_from(payload_bytes).ok()?.checked_add(header_bytes)?)?;
    Some((bytes, bytes.get(header_bytes..)?))
}

/// Appends a frame with the payload as it was before it was compressed.
fn unpack(first: u8, payload: &[u8], plain: &mut Vec<u8>) -> io::Result<()> {
    INFLATER.with_borrow_mut(|(inflater, message)| {
        inflater.reset(false);
        message.clear();
        for part in [payload, &TAIL] {
            let mut rest = part;
            while !rest.is_empty() || message.len() == message.capacity() {
                if message.len() > MESSAGE_BYTES_MAX {
                    return Err(io::Error::other("a compressed message is too large"));
                }
                message.reserve(rest.len().max(4096));
                let before = inflater.total_in();
                let outcome = inflater.decompress_vec(rest, message, FlushDecompress::None);
                outcome.map_err(|_| io::Error::other("a compressed message is corrupt"))?;
                let taken = usize::try_from(inflater.total_in() - before).unwrap_or(usize::MAX);
                if taken == 0 && message.len() < message.capacity() {
                    return Err(io::Error::other("a compressed message goes on behind its end"));
                }
                rest = rest.get(taken..).unwrap_or_default();
            }
        }
        match message.len() {
            short @ 0..=125 => plain.extend_from_slice(&[first, short as u8]),
            medium @ 126..=0xffff => {
                plain.extend_from_slice(&[first, 126]);
                plain.extend_from_slice(&(medium as u16).to_be_bytes());
            }
            long => {
                plain.extend_from_slice(&[first, 127]);
                plain.extend_from_slice(&(long as u64).to_be_bytes());
            }
        }
        plain.extend_from_slice(message);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::deflate::Deflater;
    use crate::wire::ws::{self, Opcode};

    fn unpacked(stream: &[u8], size: usize) -> Vec<u8> {
        let (mut unpacker, mut out) = (Unpacker::default(), Vec::new());
        for piece in stream.chunks(size) {
            unpacker.take(piece).expect("as a hub sends it");
            let mut buffer = [0; 7];
            while let count @ 1.. = unpacker.give(&mut buffer) {
                out.extend_from_slice(&buffer[..count]);
            }
        }
        out
    }

    #[test]
    fn frames_come_out_as_they_were_before_they_were_compressed_however_they_are_cut() {
        let (mut stream, mut expected) = (b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec(), Vec::new());
        expected.extend_from_slice(&stream);
        let text = "an event ".repeat(100);
        let mut deflater = Deflater::new(6);
        for number in 0..4 {
            if number % 2 == 0 {
                assert!(deflater.frame(Opcode::Text, text.as_bytes(), 15, &mut stream));
            } else {
                ws::text_frame(text.as_bytes(), &mut stream);
            }
            ws::text_frame(text.as_bytes(), &mut expected);
        }
        ws::close_frame(1000, "", &mut stream);
        ws::close_frame(1000, "", &mut expected);
        for size in [1, 2, 3, 10, 50, stream.len()] {
            assert_eq!(unpacked(&stream, size), expected, "{size}");
        }
    }

    #[test]
    fn what_is_corrupt_is_an_error() {
        let mut unpacker = Unpacker::default();
        assert!(unpacker.take(b"HTTP/1.1 101 x\r\n\r\n\xc1\x02\xff\xff").is_err());
    }
}
