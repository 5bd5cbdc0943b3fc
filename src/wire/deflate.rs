//! Messages compressed as `permessage-deflate` has them (RFC 7692 §7.2): raw DEFLATE that ends with an empty block, of which
//! the last four bytes are left out.
//!
//! ```text
//! compressing     payload ──► DEFLATE, flushed ──► … 00 00 ff ff ──► without the last four bytes, in a frame with RSV1
//! decompressing   payload, 00 00 ff ff ──► bounded output          01 00 00 ff ff: the stream must end here
//! ```
//!
//! One compressor and one decompressor serve any number of connections: neither keeps anything from one message to the next.
//! Where a client does, what is kept for it is its [`Window`], which is just the bytes.

use std::borrow::Cow;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::extensions::{SERVER_WINDOW_BITS_MIN, WINDOW_BITS_MAX};
use super::ws::{self, Opcode, ProtocolError};

/// What the last block of a flushed stream ends with, and is left out (§7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// An empty block that says it is the last: a stream that is whole ends with it, and any other does not.
const END: [u8; 5] = [1, 0, 0, 0xff, 0xff];

/// A stream may end and another begin within a message (§7.2.3.5), and each time the window is put in anew. No compressor does it
/// more than once or twice.
const STREAMS_MAX: u32 = 16;

/// The ratio is not looked at up to here: one repeated thing is a message like any other, and this much is no burden.
const RATIO_FREE_BYTES: usize = 1 << 20;

/// Buffers that grew beyond this are given back when they are not in use.
const KEPT_BYTES_MAX: usize = 64 * 1024;

/// The first piece of memory for what is decompressed.
const FIRST_BYTES: usize = 4096;

const WINDOWS: usize = (WINDOW_BITS_MAX - SERVER_WINDOW_BITS_MIN + 1) as usize;

/// Compresses messages, each by itself.
#[derive(Debug)]
pub struct Deflater {
    level: u32,
    /// By window; made when they are needed first.
    compressors: [Option<Compress>; WINDOWS],
    compressed: Vec<u8>,
}

impl Deflater {
    /// A compressor of a level from 1 (fast) to 9 (small).
    pub fn new(level: u32) -> Deflater {
        Deflater { level: level.clamp(1, 9), compressors: Default::default(), compressed: Vec::new() }
    }

    /// Its level.
    pub fn level(&self) -> u32 {
        self.level
    }

    /// Appends a message as a compressed frame. False, and nothing is appended, where that is not smaller.
    pub fn frame(&mut self, opcode: Opcode, payload: &[u8], window_bits: u8, out: &mut Vec<u8>) -> bool {
        let is_smaller = self.compress(payload, window_bits);
        if is_smaller {
            let at = out.len();
            out.reserve(ws::header_bytes(self.compressed.len()) + self.compressed.len());
            ws::write_header(out, opcode, self.compressed.len());
            // §6: RSV1 says that the message is compressed.
            if let Some(first) = out.get_mut(at) {
                *first |= ws::RSV1;
            }
            out.extend_from_slice(&self.compressed);
        }
        self.compressed.clear();
        self.compressed.shrink_to(KEPT_BYTES_MAX);
        is_smaller
    }

    /// Compresses into `compressed`; false where that does not make it smaller.
    fn compress(&mut self, payload: &[u8], window_bits: u8) -> bool {
        let window_bits = window_bits.clamp(SERVER_WINDOW_BITS_MIN, WINDOW_BITS_MAX);
        let Some(place) = self.compressors.get_mut(usize::from(window_bits - SERVER_WINDOW_BITS_MIN)) else {
            return false;
        };
        let level = Compression::new(self.level);
        let compressor = place.get_or_insert_with(|| Compress::new_with_window_bits(level, false, window_bits));
        compressor.reset();
        self.compressed.clear();
        // Where it does not fit into as much as it was, it does not get smaller.
        self.compressed.reserve(payload.len() + TAIL.len() + 1);
        let outcome = compressor.compress_vec(payload, &mut self.compressed, FlushCompress::Sync);
        // A flush is done when there is room left behind it.
        let is_done = outcome.is_ok()
            && compressor.total_in() == payload.len() as u64
            && self.compressed.len() < self.compressed.capacity()
            && self.compressed.ends_with(&TAIL);
        self.compressed.truncate(self.compressed.len().saturating_sub(TAIL.len()));
        is_done && self.compressed.len() < payload.len()
    }
}

/// How much a message may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InflateBounds {
    /// At most so many bytes.
    pub message_bytes_max: usize,
    /// And at most so many times what came, once it is beyond 1 MiB; 0 for any.
    pub ratio_max: usize,
}

impl InflateBounds {
    fn bytes_max(self, compressed_bytes: usize) -> usize {
        match self.ratio_max {
            0 => self.message_bytes_max,
            ratio => self.message_bytes_max.min(compressed_bytes.saturating_mul(ratio).max(RATIO_FREE_BYTES)),
        }
    }
}

/// The last bytes that a client has sent, decompressed, where its next message may refer to them.
#[derive(Debug)]
pub struct Window {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl Window {
    /// An empty one that keeps 2^`bits` bytes.
    pub fn new(bits: u8) -> Window {
        Window { bytes: Vec::new(), bytes_max: 1 << bits.min(WINDOW_BITS_MAX) }
    }

    /// What it takes at most, in bytes.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    fn slide(&mut self, message: &[u8]) {
        let kept = self.bytes_max.saturating_sub(message.len()).min(self.bytes.len());
        self.bytes.drain(..self.bytes.len() - kept);
        self.bytes.extend_from_slice(message.get(message.len().saturating_sub(self.bytes_max)..).unwrap_or_default());
    }
}

/// Decompresses messages of clients.
#[derive(Debug)]
pub struct Inflater {
    stream: Decompress,
    /// Where the last message is.
    message: Vec<u8>,
}

impl Default for Inflater {
    fn default() -> Inflater {
        Inflater { stream: Decompress::new(false), message: Vec::new() }
    }
}

/// Of what a decompressor is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Payload,
    Tail,
    End,
}

const CORRUPT: ProtocolError = ProtocolError { close_code: 1007, reason: "compressed message is corrupt" };
const BOMB: ProtocolError = ProtocolError { close_code: 1009, reason: "message too large, decompressed" };

impl Inflater {
    /// Decompresses a whole message. No more memory is taken than the bounds allow, whatever the payload says. Text is seen to
    /// be UTF-8.
    pub fn message(
        &mut self,
        payload: &[u8],
        is_text: bool,
        window: Option<&mut Window>,
        bounds: InflateBounds,
    ) -> Result<&mut [u8], ProtocolError> {
        self.message.clear();
        self.message.shrink_to(KEPT_BYTES_MAX);
        let kept = window.as_ref().map_or(&[][..], |window| &window.bytes);
        self.inflate(payload, kept, bounds.bytes_max(payload.len()))?;
        if is_text && simdutf8::basic::from_utf8(&self.message).is_err() {
            return Err(ProtocolError::UTF8);
        }
        if let Some(window) = window {
            window.slide(&self.message);
        }
        Ok(&mut self.message)
    }

    fn inflate(&mut self, payload: &[u8], kept: &[u8], bytes_max: usize) -> Result<(), ProtocolError> {
        // Compressors make one byte of an empty message; that none stand for it as well does no harm.
        if payload.is_empty() {
            return Ok(());
        }
        self.begin_stream(kept)?;
        let mut streams = 1;
        for (part, place) in [(payload, Part::Payload), (&TAIL, Part::Tail), (&END, Part::End)] {
            let mut rest = part;
            loop {
                self.make_room(bytes_max)?;
                let before = self.stream.total_in();
                let status = self.stream.decompress_vec(rest, &mut self.message, FlushDecompress::None);
                let consumed = usize::try_from(self.stream.total_in() - before).unwrap_or(usize::MAX);
                rest = rest.get(consumed..).unwrap_or_default();
                if self.message.len() > bytes_max {
                    return Err(BOMB);
                }
                match status {
                    Err(_) => return Err(CORRUPT),
                    // §7.2.3.4: behind a last block the payload has the beginning of an empty one. Some leave that out.
                    Ok(Status::StreamEnd) if rest.is_empty() && place != Part::Tail => return Ok(()),
                    Ok(Status::StreamEnd) => {
                        streams += 1;
                        if streams > STREAMS_MAX || place != Part::Payload {
                            return Err(CORRUPT);
                        }
                        self.continue_stream(kept)?;
                    }
                    // All that could be written was, where there is room left.
                    Ok(_) if rest.is_empty() && self.message.len() < self.message.capacity() => break,
                    Ok(_) if consumed == 0 && self.message.len() < self.message.capacity() => return Err(CORRUPT),
                    Ok(_) => {}
                }
            }
        }
        // It goes on where it should have ended: something was cut off.
        Err(CORRUPT)
    }

    fn begin_stream(&mut self, kept: &[u8]) -> Result<(), ProtocolError> {
        self.stream.reset(false);
        if !kept.is_empty() {
            self.stream.set_dictionary(kept).map_err(|_| CORRUPT)?;
        }
        Ok(())
    }

    /// Another stream begins within the message: it may refer to all that came before.
    fn continue_stream(&mut self, kept: &[u8]) -> Result<(), ProtocolError> {
        let window_bytes = 1 << WINDOW_BITS_MAX;
        let from_message = self.message.len().saturating_sub(window_bytes);
        let tail = self.message.get(from_message..).unwrap_or_default();
        let from_kept = kept.len().saturating_sub(window_bytes - tail.len());
        let window = [kept.get(from_kept..).unwrap_or_default(), tail].concat();
        self.begin_stream(&window)
    }

    /// Grows geometrically with what was written, never beyond one byte more than the bound, by which it is seen to be passed.
    fn make_room(&mut self, bytes_max: usize) -> Result<(), ProtocolError> {
        if self.message.len() < self.message.capacity() {
            return Ok(());
        }
        let target = (self.message.capacity() * 2).max(FIRST_BYTES).min(bytes_max.saturating_add(1));
        let more = target.saturating_sub(self.message.len());
        if more == 0 {
            return Err(BOMB);
        }
        self.message.reserve_exact(more);
        Ok(())
    }
}

/// What the hub has written for a client, with the frames as they were before they were compressed: for those who look for
/// something in it. What is no frame is left as it is, with all behind it.
pub fn plain(written: &[u8]) -> Cow<'_, [u8]> {
    let mut rest = written;
    let mut inflater = None;
    let mut out = Vec::new();
    while let Some((frame, behind)) = ws::frame_bytes(rest).and_then(|length| rest.split_at_checked(length)) {
        rest = behind;
        let (payload, first) = (frame.get(ws::header_bytes_of(frame)..).unwrap_or_default(), frame.first());
        let Some(opcode) = first.filter(|first| **first & ws::RSV1 != 0).map(|first| first & 0x0f) else {
            if inflater.is_some() {
                out.extend_from_slice(frame);
            }
            continue;
        };
        if inflater.is_none() {
            let before = written.len() - behind.len() - frame.len();
            out.extend_from_slice(written.get(..before).unwrap_or_default());
        }
        let inflater: &mut Inflater = inflater.get_or_insert_default();
        // The hub has compressed it, so that there is no bound to be kept.
        let bounds = InflateBounds { message_bytes_max: usize::MAX - 1, ratio_max: 0 };
        let opcode = if opcode == Opcode::Text as u8 { Opcode::Text } else { Opcode::Binary };
        if let Ok(message) = inflater.message(payload, false, None, bounds) {
            ws::write_header(&mut out, opcode, message.len());
            out.extend_from_slice(message);
        }
    }
    if inflater.is_none() {
        return Cow::Borrowed(written);
    }
    out.extend_from_slice(rest);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: InflateBounds = InflateBounds { message_bytes_max: 1 << 20, ratio_max: 0 };

    fn inflated(payload: &[u8]) -> Result<Vec<u8>, ProtocolError> {
        Inflater::default().message(payload, false, None, BOUNDS).map(|message| message.to_vec())
    }

    /// The payload of the frame that a message is compressed to.
    fn deflated(message: &[u8], level: u32, window_bits: u8) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let is_smaller = Deflater::new(level).frame(Opcode::Text, message, window_bits, &mut out);
        assert_eq!(is_smaller, !out.is_empty());
        is_smaller.then(|| {
            assert_eq!(out[0], 0xc1);
            assert_eq!(ws::frame_bytes(&out), Some(out.len()));
            out.split_off(ws::header_bytes_of(&out))
        })
    }

    fn json(events: usize) -> Vec<u8> {
        (0..events)
            .flat_map(|n| format!("{{\"seq\":{n},\"status\":\"running\",\"load\":0.{n}}}").into_bytes())
            .collect()
    }

    #[test]
    fn the_examples_of_the_rfc_are_understood() {
        for (section, payload) in [
            ("7.2.3.1", &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..]),
            ("7.2.3.3, no compression", &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00]),
            ("7.2.3.4, a last block", &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00]),
            ("7.2.3.5, two blocks", &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00]),
            ("a last block without what is to follow it", &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00]),
        ] {
            assert_eq!(inflated(payload).as_deref(), Ok(&b"Hello"[..]), "{section}");
        }
        assert_eq!(inflated(&[0x00]).as_deref(), Ok(&[][..]), "7.2.3.6, an empty message");
        assert_eq!(inflated(&[]).as_deref(), Ok(&[][..]));
    }

    #[test]
    fn the_window_of_the_rfc_is_kept_between_messages() {
        let (first, second) = ([0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00], [0xf2, 0x00, 0x11, 0x00, 0x00]);
        let mut window = Window::new(15);
        let mut inflater = Inflater::default();
        for payload in [&first[..], &second, &second, &first, &second] {
            let message = inflater.message(payload, true, Some(&mut window), BOUNDS);
            assert_eq!(message.as_deref(), Ok(&b"Hello"[..]), "7.2.3.2");
        }
        assert_eq!(window.bytes.len(), 25);
        assert_eq!(inflated(&second), Err(CORRUPT), "it refers to what was not kept");
    }

    #[test]
    fn hello_is_compressed_as_in_the_rfc_where_that_is_smaller() {
        assert_eq!(deflated(b"Hello", 6, 15), None, "7 bytes for 5");
        // The example's bytes, with enough behind them to be worth it.
        let payload = deflated(&b"Hello".repeat(3), 6, 15).expect("smaller");
        assert_eq!(payload[..6], [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0xf7]);
        assert_eq!(inflated(&payload).unwrap(), b"Hello".repeat(3));
    }

    #[test]
    fn what_is_compressed_at_any_level_and_window_is_the_same_when_it_is_decompressed() {
        for level in 1..=9 {
            for window_bits in 9..=15 {
                let message = json(2000);
                let payload = deflated(&message, level, window_bits).expect("smaller");
                assert!(payload.len() < message.len() / 2, "{level} {window_bits}: {}", payload.len());
                assert_eq!(inflated(&payload).unwrap(), message);
                // A receiver with no larger window than that follows it.
                let mut small = Decompress::new_with_window_bits(false, window_bits);
                let mut out = Vec::with_capacity(message.len() + 1);
                small.decompress_vec(&[&payload[..], &TAIL].concat(), &mut out, FlushDecompress::Sync).unwrap();
                assert_eq!(out, message, "{level} {window_bits}");
            }
        }
    }

    #[test]
    fn a_compressor_keeps_nothing_from_one_message_to_the_next() {
        let mut deflater = Deflater::new(6);
        let mut once = |message: &[u8]| {
            let mut out = Vec::new();
            assert!(deflater.frame(Opcode::Text, message, 15, &mut out));
            out
        };
        let first = once(&json(10));
        once(&json(300));
        assert_eq!(once(&json(10)), first);
    }

    #[test]
    fn what_does_not_get_smaller_is_not_compressed() {
        let noise: Vec<u8> = (0..2000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8 ^ (n as u8)).collect();
        let mut deflater = Deflater::new(9);
        for message in [&b""[..], b"a", b"abc", &noise[..64]] {
            let mut out = b"before".to_vec();
            assert!(!deflater.frame(Opcode::Binary, message, 15, &mut out), "{message:?}");
            assert_eq!(out, b"before");
        }
    }

    #[test]
    fn a_message_is_never_made_larger_than_its_bound() {
        let zeros = deflated(&vec![b'0'; 2 << 20], 9, 15).expect("smaller");
        assert!(zeros.len() < 2200);
        let mut inflater = Inflater::default();
        let mut within = |message_bytes_max, ratio_max| {
            let bounds = InflateBounds { message_bytes_max, ratio_max };
            let outcome = inflater.message(&zeros, true, None, bounds).map(|message| message.len());
            assert!(inflater.message.capacity() <= message_bytes_max.max(KEPT_BYTES_MAX) + 1);
            outcome
        };
        assert_eq!(within(2 << 20, 0), Ok(2 << 20));
        assert_eq!(within((2 << 20) - 1, 0), Err(BOMB));
        assert_eq!(within(1024, 0), Err(BOMB));
        assert_eq!(within(2 << 20, 100), Err(BOMB), "a hundredfold is about a tenth of it");
        assert_eq!(within(2 << 20, 1032), Ok(2 << 20), "as much as DEFLATE can");
        let small = deflated(&vec![b'0'; 60_000], 9, 15).expect("smaller");
        let bounds = InflateBounds { message_bytes_max: 1 << 20, ratio_max: 2 };
        assert!(inflater.message(&small, true, None, bounds).is_ok(), "up to a megabyte it may be anything");
        inflater.message(b"\0", true, None, bounds).unwrap();
        assert!(inflater.message.capacity() <= KEPT_BYTES_MAX, "large memory is given back");
    }

    #[test]
    fn what_is_corrupt_or_cut_off_is_told_as_bad_data() {
        let payload = deflated(&json(20), 6, 15).expect("smaller");
        for length in 1..payload.len() {
            assert_eq!(inflated(&payload[..length]), Err(CORRUPT), "{length} of {}", payload.len());
        }
        for payload in
            [&[0xff][..], &[0x07, 0xff], b"not compressed at all", &[0x00, 0x00], &[0xf2, 0x00, 0x11, 0x00, 0x00]]
        {
            assert_eq!(inflated(payload), Err(CORRUPT), "{payload:x?}");
        }
        // Streams without end: each is two bytes that say nothing.
        assert!(inflated(&[[3, 0].repeat(STREAMS_MAX as usize), vec![0]].concat()).is_err());
        assert_eq!(inflated(&[[3, 0].repeat(8), vec![0]].concat()), Ok(Vec::new()));
        let latin = deflated(&"\u{e9}".repeat(40).as_bytes()[1..], 6, 15).expect("smaller");
        assert_eq!(Inflater::default().message(&latin, true, None, BOUNDS), Err(ProtocolError::UTF8));
        assert!(Inflater::default().message(&latin, false, None, BOUNDS).is_ok());
    }

    #[test]
    fn a_stream_that_ends_within_a_message_leaves_its_window_to_the_next() {
        let mut compressor = Compress::new_with_window_bits(Compression::new(6), false, 15);
        let mut payload = Vec::with_capacity(4096);
        compressor.compress_vec(&json(20), &mut payload, FlushCompress::Finish).unwrap();
        compressor.reset();
        compressor.set_dictionary(&json(20)).unwrap();
        compressor.compress_vec(&json(20), &mut payload, FlushCompress::Sync).unwrap();
        payload.truncate(payload.len() - TAIL.len());
        assert_eq!(inflated(&payload).unwrap(), json(20).repeat(2));
    }

    #[test]
    fn a_window_keeps_the_last_bytes_and_no_more_memory() {
        let mut window = Window::new(8);
        assert_eq!(window.bytes_max(), 256);
        let message = json(100);
        for (from, to) in [(0, 100), (100, 200), (200, 300), (300, 1300), (1300, 1301)] {
            window.slide(&message[from..to]);
            assert_eq!(window.bytes, message[to.saturating_sub(256)..to]);
        }
        assert!(window.bytes.capacity() <= 512);
    }

    #[test]
    fn frames_are_read_as_they_were_before_they_were_compressed() {
        let (mut written, mut expected) = (Vec::new(), Vec::new());
        let mut deflater = Deflater::new(6);
        ws::text_frame(b"{}", &mut written);
        assert!(matches!(plain(&written), Cow::Borrowed(_)), "nothing is copied where nothing is compressed");
        ws::text_frame(b"{}", &mut expected);
        assert!(deflater.frame(Opcode::Text, &json(40), 12, &mut written));
        ws::text_frame(&json(40), &mut expected);
        ws::close_frame(1000, "", &mut written);
        ws::close_frame(1000, "", &mut expected);
        assert!(deflater.frame(Opcode::Binary, &json(30), 9, &mut written));
        ws::binary_frame(&json(30), &mut expected);
        for end in [&b""[..], b"HTTP/1.1 101"] {
            let (written, expected) = ([&written[..], end].concat(), [&expected[..], end].concat());
            assert_eq!(plain(&written), expected);
        }
        assert_eq!(plain(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").len(), 36);
        assert_eq!(plain(b"").len(), 0);
    }

    proptest! {
        #[test]
        fn any_payload_is_decompressed_within_its_bounds_or_refused(
            payload in prop::collection::vec(any::<u8>(), 0..200),
            bytes_max in 0usize..5000,
            bits in 8u8..=15,
        ) {
            let mut inflater = Inflater::default();
            let mut window = Window::new(bits);
            let bounds = InflateBounds { message_bytes_max: bytes_max, ratio_max: 0 };
            for _ in 0..3 {
                if let Ok(message) = inflater.message(&payload, false, Some(&mut window), bounds) {
                    prop_assert!(message.len() <= bytes_max);
                }
                prop_assert!(window.bytes.len() <= window.bytes_max());
            }
        }

        #[test]
        fn any_message_comes_back(message in prop::collection::vec(0u8..8, 0..5000), level in 1u32..=9, bits in 9u8..=15) {
            if let Some(payload) = deflated(&message, level, bits) {
                prop_assert!(payload.len() < message.len());
                prop_assert_eq!(inflated(&payload).unwrap(), message);
            }
        }
    }
}
