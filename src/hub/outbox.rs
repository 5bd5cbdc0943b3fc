//! What waits to be sent to one connection.
//!
//! Three lanes: `answers` (answers, pongs, pings, the close frame; goes first, small, its own bound), then `urgent`, the
//! events of rooms whose kind says so, then the other `events`. Both are chunks of whole frames, shared with every other
//! subscriber. One chunk at a time is with the kernel; it counts until it is sent.
//!
//! A room's events all go in one lane, so that they keep their order.

use std::borrow::Cow;

use bytes::Bytes;

use super::batch::FrameMemory;
use super::chunks::Chunks;
use super::lanes::Lanes;
use crate::session::socketio::Spaces;
use crate::wire::deflate;
use crate::wire::extensions::{SERVER_WINDOW_BITS_MIN, WINDOW_BITS_MAX};
use crate::wire::variant::Variant;

/// The least bound of the answers' lane, however small that of events is: a client that asks on and on and doesn't read is too slow as well.
pub const ANSWERS_BYTES_MAX: usize = 256 * 1024;

/// Windows are counted from here on.
const WINDOW_BITS_BELOW: u8 = SERVER_WINDOW_BITS_MIN - 1;
const _: () = assert!((WINDOW_BITS_MAX - WINDOW_BITS_BELOW) as u16 <= Marks::DEFLATE >> Marks::DEFLATE_SHIFT);

/// The part of an outbox that is kept free for urgent events where there are urgent kinds: one of so many.
const URGENT_RESERVE: usize = 8;

/// The way that a room's events take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// In the order in which they came.
    Ordinary,
    /// Ahead of ordinary ones that wait.
    Urgent,
}

/// What a connection's peer is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Protocol {
    /// WebSocket frames.
    #[default]
    Native,
    /// WebSocket frames in another form.
    Variant(Variant),
    /// Server-sent events.
    Stream,
    /// Packets of Engine.IO in WebSocket frames.
    SocketIo,
    /// Packets of Engine.IO for polls, each with its separator before it.
    Polling,
}

/// How much may wait for one connection, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxBounds {
    ordinary: usize,
    urgent: usize,
}

impl OutboxBounds {
    /// All of `bytes_max`; where there are urgent kinds, ordinary events leave a part of it to urgent ones.
    pub fn new(bytes_max: usize, has_urgent: bool) -> OutboxBounds {
        let reserve = if has_urgent { bytes_max / URGENT_RESERVE } else { 0 };
        OutboxBounds { ordinary: bytes_max - reserve, urgent: bytes_max }
    }

    /// Up to how much, all lanes of events together, an event of that lane may be queued.
    pub fn of(self, lane: Lane) -> usize {
        match lane {
            Lane::Ordinary => self.ordinary,
            Lane::Urgent => self.urgent,
        }
    }
}

/// A connection's outbox.
#[derive(Debug, Default)]
pub struct Outbox {
    /// There only while something waits: most connections are silent at a time, and spend a pointer on it.
    lanes: Option<Box<Lanes>>,
    /// With the kernel, and how much of it counts as events.
    sending_bytes: u32,
    marks: Marks,
    /// Of what its chunks are made. Here because this is where bytes are free.
    protocol: Protocol,
}

/// What else holds for an outbox: a bit or a few each, so that they take two bytes together.
#[derive(Debug, Clone, Copy, Default)]
struct Marks(u16);

impl Marks {
    /// Urgent events queue behind those in `events` until none of them waits.
    const IN_LINE: u16 = 1;
    /// Something waits because the kernel has not taken all of what was sent before.
    const STALLED: u16 = 2;
    /// Nothing may be sent yet.
    const HELD: u16 = 4;
    /// Three bits from here on: with which window its messages may be compressed, 1 for 2^9 bytes; 0 where they may not.
    const DEFLATE_SHIFT: u32 = 3;
    const DEFLATE: u16 = 0b111 << Marks::DEFLATE_SHIFT;
    /// A chunk is with the kernel.
    const SENDING: u16 = 1 << 6;
    /// It is to be looked at in this turn.
    const DIRTY: u16 = 1 << 7;
    /// Its connection may lag in some room.
    const MAY_LAG: u16 = 1 << 8;
    /// Six bits from here on: the namespace of Socket.IO that the events of all rooms go to, counted from 1; 0 where none is
    /// noted.
    const SPACE_SHIFT: u32 = 9;
    const SPACE: u16 = 0b11_1111 << Marks::SPACE_SHIFT;

    fn has(self, mark: u16) -> bool {
        self.0 & mark != 0
    }

    fn set(&mut self, mark: u16, holds: bool) {
        self.0 = if holds { self.0 | mark } else { self.0 & !mark };
    }

    /// The number in some of the bits.
    fn number(self, bits: u16) -> u16 {
        (self.0 & bits) >> bits.trailing_zeros()
    }

    fn set_number(&mut self, bits: u16, number: u16) {
        self.0 = (self.0 & !bits) | ((number << bits.trailing_zeros()) & bits);
    }
}

/// The outbox is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl Outbox {
    /// With which window its messages may be compressed, as a power of two from 9 to 15; 0 where they may not.
    #[inline]
    pub fn deflate_bits(&self) -> u8 {
        match self.marks.number(Marks::DEFLATE) {
            0 => 0,
            above => WINDOW_BITS_BELOW + above as u8,
        }
    }

    /// It was agreed with its peer how messages may be compressed.
    pub fn deflates(&mut self, window_bits: u8) {
        self.marks.set_number(Marks::DEFLATE, u16::from(window_bits.saturating_sub(WINDOW_BITS_BELOW)));
    }

    /// Of what its chunks are made.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The namespace of Socket.IO that the events of all rooms go to, where that was noted.
    #[inline]
    pub fn space(&self) -> Option<Spaces> {
        self.marks.number(Marks::SPACE).checked_sub(1).map(|place| Spaces::of_bits(1 << place))
    }

    /// Notes the namespaces that the events of all rooms go to, where it is one; of several, or none, nothing is noted.
    pub fn note_spaces(&mut self, spaces: Spaces) {
        let bits = spaces.bits();
        let space = if bits.is_power_of_two() { bits.trailing_zeros() as u16 + 1 } else { 0 };
        self.marks.set_number(Marks::SPACE, space);
    }

    /// Whether its connection may lag in some room, as far as was noted.
    #[inline]
    pub fn may_lag(&self) -> bool {
        self.marks.has(Marks::MAY_LAG)
    }

    /// Notes whether its connection may lag in some room.
    pub fn note_lag(&mut self, may_lag: bool) {
        self.marks.set(Marks::MAY_LAG, may_lag);
    }

    /// What is queued from here on is of another protocol.
    pub fn becomes(&mut self, protocol: Protocol) {
        self.protocol = protocol;
    }

    /// Makes of all that waits what another protocol wants: `convert` appends a chunk's bytes as they are to be.
    pub fn convert(&mut self, protocol: Protocol, memory: &FrameMemory, convert: impl Fn(&[u8], &mut Vec<u8>)) {
        self.protocol = protocol;
        self.rewrite(memory, convert);
    }

    /// Writes all that waits anew: `write` appends what is to be there in place of a chunk, which may be nothing.
    pub fn rewrite(&mut self, memory: &FrameMemory, write: impl Fn(&[u8], &mut Vec<u8>)) {
        let Some(lanes) = self.lanes.as_deref_mut() else { return };
        let mut answers = Vec::new();
        write(&lanes.answers, &mut answers);
        lanes.answers = answers;
        lanes.events_bytes = 0;
        let urgent = lanes.urgent.as_deref_mut();
        for lane in urgent.into_iter().chain([&mut lanes.events]) {
            let mut written = Chunks::None;
            while let Some(chunk) = lane.pop() {
                let mut bytes = Vec::new();
                write(&chunk, &mut bytes);
                lanes.events_bytes += bytes.len();
                if !bytes.is_empty() {
                    written.push(&memory.share(bytes));
                }
            }
            *lane = written;
        }
        lanes.urgent.take_if(|urgent| urgent.is_empty());
        self.tidy();
    }

    /// Bytes that wait or are being sent.
    pub fn bytes(&self) -> usize {
        self.queued_bytes() + self.answers_bytes()
    }

    /// Bytes of events that wait.
    #[inline]
    pub fn events_bytes(&self) -> usize {
        self.lanes.as_deref().map_or(0, |lanes| lanes.events_bytes)
    }

    /// Bytes of answers that wait.
    pub fn answers_bytes(&self) -> usize {
        self.waiting_answers().len()
    }

    /// Bytes of events that wait or are being sent: what counts against the bounds.
    pub fn queued_bytes(&self) -> usize {
        self.events_bytes() + self.sending_bytes as usize
    }

    /// Whether something waits on the way that an event of that lane would take.
    pub fn waits_in(&self, lane: Lane) -> bool {
        let Some(lanes) = self.lanes.as_deref() else { return false };
        match lane {
            Lane::Urgent if !self.marks.has(Marks::IN_LINE) => lanes.urgent.is_some(),
            _ => !lanes.events.is_empty(),
        }
    }

    /// Whether nothing waits and nothing is being sent.
    pub fn is_empty(&self) -> bool {
        !self.is_sending() && !self.is_held() && self.lanes.as_deref().is_none_or(Lanes::is_empty)
    }

    /// Whether something waits because the kernel has not taken all of what was sent before, as far as was noted; and notes
    /// it, for the flight recorder.
    pub fn note_stalled(&mut self, has_stalled: bool) -> bool {
        let before = self.marks.has(Marks::STALLED);
        self.marks.set(Marks::STALLED, has_stalled);
        before
    }

    /// Whether a chunk is with the kernel.
    pub fn is_sending(&self) -> bool {
        self.marks.has(Marks::SENDING)
    }

    /// Queues events. The bound is checked before, and holds strictly but for one chunk into an empty outbox, so that a
    /// message as large as the whole bound can be had at all.
    pub fn push_events(&mut self, chunk: &Bytes, lane: Lane, bytes_max: usize) -> Result<(), Full> {
        // The answer to a client that has left the namespace it asked in is no bytes at all.
        if chunk.is_empty() {
            return Ok(());
        }
        let queued = self.queued_bytes();
        if queued > 0 && queued + chunk.len() > bytes_max {
            return Err(Full);
        }
        let lanes = self.lanes.get_or_insert_with(Lanes::spare);
        lanes.events_bytes += chunk.len();
        if lane == Lane::Urgent && !self.marks.has(Marks::IN_LINE) {
            lanes.urgent.get_or_insert_default().push(chunk);
        } else {
            lanes.events.push(chunk);
        }
        Ok(())
    }

    /// Makes one lane of the events that wait, urgent ones first. None overtakes them until they are gone.
    pub fn fall_in_line(&mut self) {
        let Some(lanes) = self.lanes.as_deref_mut() else { return };
        if let Some(urgent) = lanes.urgent.take() {
            let mut ordinary = std::mem::replace(&mut lanes.events, *urgent);
            while let Some(chunk) = ordinary.pop() {
                lanes.events.push(&chunk);
            }
        }
        self.marks.set(Marks::IN_LINE, !lanes.events.is_empty());
    }

    /// The chunks of events that wait, those that are being sent left out.
    pub fn waiting(&self) -> impl Iterator<Item = &[u8]> {
        self.lanes.as_deref().into_iter().flat_map(Lanes::chunks).map(|chunk| &chunk[..])
    }

    /// The answers that wait.
    pub fn waiting_answers(&self) -> &[u8] {
        self.lanes.as_deref().map_or(&[], |lanes| &lanes.answers)
    }

    /// How many bytes go before a text among the events that wait, those that are being sent left out; none where it is not
    /// there. Looks at all of them: for those who look into a running shard. Of what is compressed it is known only in which
    /// chunk it is.
    pub fn find(&self, text: &[u8]) -> Option<usize> {
        let finder = memchr::memmem::Finder::new(text);
        let mut ahead = self.answers_bytes();
        for chunk in self.waiting() {
            let place = match deflate::plain(chunk) {
                Cow::Borrowed(plain) => finder.find(plain),
                Cow::Owned(plain) => finder.find(&plain).map(|_| 0),
            };
            if let Some(place) = place {
                return Some(ahead + place);
            }
            ahead += chunk.len();
        }
        None
    }

    /// The lane of answers, to be appended to; ask [`Outbox::answers_full`] after.
    pub fn answers(&mut self) -> &mut Vec<u8> {
        &mut self.lanes.get_or_insert_with(Lanes::spare).answers
    }

    /// Whether the lane of answers is beyond its bound, which is that of events or [`ANSWERS_BYTES_MAX`], whichever is more.
    /// One answer alone (nothing waited before it) is never too much: a `pong` is as large as its `ping` was.
    pub fn answers_full(&self, bytes_before: usize, bytes_max: usize) -> bool {
        bytes_before > 0 && self.answers_bytes() > bytes_max.max(ANSWERS_BYTES_MAX)
    }

    /// Forgets the events that wait, so that nothing but answers goes before a close frame.
    pub fn drop_events(&mut self) {
        if let Some(lanes) = self.lanes.as_deref_mut() {
            *lanes = Lanes { answers: std::mem::take(&mut lanes.answers), ..Lanes::default() };
            self.tidy();
        }
    }

    /// Forgets all that waits.
    pub fn clear(&mut self) {
        self.lanes = None;
        self.tidy();
    }

    /// Marks the outbox as to be flushed this turn; true the first time.
    pub fn mark_dirty(&mut self) -> bool {
        let was_dirty = self.marks.has(Marks::DIRTY);
        self.marks.set(Marks::DIRTY, true);
        !was_dirty
    }

    /// Takes the next chunk to be sent, if none is with the kernel; it is with the kernel from here on.
    pub fn take_chunk(&mut self, memory: &FrameMemory) -> Option<Bytes> {
        self.marks.set(Marks::DIRTY, false);
        if self.is_sending() || self.is_held() {
            self.tidy();
            return None;
        }
        let chunk = self.lanes.as_deref_mut()?.next_chunk(memory);
        self.tidy();
        let chunk = chunk?;
        self.marks.set(Marks::SENDING, true);
        self.sending_bytes = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
        Some(chunk)
    }

    /// Nothing more may be sent until [`Outbox::release`]: events may come before the answer to the upgrade.
    pub fn hold(&mut self) {
        self.marks.set(Marks::HELD, true);
    }

    /// What waits may be sent.
    pub fn release(&mut self) {
        self.marks.set(Marks::HELD, false);
    }

    /// Whether nothing may be sent.
    pub fn is_held(&self) -> bool {
        self.marks.has(Marks::HELD)
    }

    /// It was looked at in this turn, though nothing was taken.
    pub fn passed_over(&mut self) {
        self.marks.set(Marks::DIRTY, false);
        self.tidy();
    }

    /// The chunk with the kernel was sent.
    pub fn sent(&mut self) {
        self.marks.set(Marks::SENDING, false);
        self.sending_bytes = 0;
    }

    /// Lets go of what only those outboxes have in which something waits. To be called by whoever asked for the lane of
    /// answers, put nothing in and does not mark the outbox dirty.
    #[inline]
    pub fn tidy(&mut self) {
        if self.lanes.as_deref().is_none_or(|lanes| lanes.events.is_empty()) {
            self.marks.set(Marks::IN_LINE, false);
            if let Some(lanes) = self.lanes.take_if(|lanes| lanes.is_empty()) {
                lanes.give_back();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::lanes::JOIN_BYTES_MAX;
    use super::Lane::{Ordinary as ORDINARY, Urgent as URGENT};
    use super::*;

    fn drain(outbox: &mut Outbox) -> Vec<Vec<u8>> {
        let memory = FrameMemory::default();
        std::iter::from_fn(|| {
            let chunk = outbox.take_chunk(&memory)?;
            assert_eq!(outbox.take_chunk(&memory), None, "one chunk at a time");
            outbox.sent();
            Some(chunk.to_vec())
        })
        .collect()
    }

    #[test]
    fn answers_go_before_events_and_small_chunks_are_joined() {
        let mut outbox = Outbox::default();
        for text in ["a", "b", "c"] {
            assert_eq!(outbox.push_events(&Bytes::from_static(text.as_bytes()), ORDINARY, 100), Ok(()));
        }
        outbox.answers().extend_from_slice(b"answer ");
        assert_eq!(outbox.bytes(), 10);
        assert_eq!(drain(&mut outbox), [b"answer abc".to_vec()]);
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_joined_chunk_takes_no_more_memory_than_its_bytes() {
        let memory = FrameMemory::default();
        let mut outbox = Outbox::default();
        let mut take = |answer: &[u8], chunks: usize| {
            outbox.answers().extend_from_slice(answer);
            for _ in 0..chunks {
                assert_eq!(outbox.push_events(&Bytes::from_static(&[b'a'; 1000]), ORDINARY, 1 << 20), Ok(()));
            }
            let chunk = outbox.take_chunk(&memory);
            outbox.sent();
            (chunk.as_ref().map(Bytes::len), memory.bytes())
        };
        assert_eq!(take(b"", 3), (Some(3000), 3000));
        assert_eq!(take(b"answer: ", 33), (Some(33_008), 33_008));
        assert_eq!(take(b"", 70), (Some(65_000), 65_000), "up to what is joined at most");
        assert_eq!(take(b"", 0), (Some(5000), 5000));
    }

    #[test]
    fn events_of_a_held_outbox_wait_for_the_answer_that_goes_first() {
        let mut outbox = Outbox::default();
        outbox.hold();
        assert_eq!(outbox.push_events(&Bytes::from_static(b"event"), Lane::Ordinary, 100), Ok(()));
        assert!(outbox.mark_dirty());
        assert_eq!(outbox.take_chunk(&FrameMemory::default()), None);
        outbox.answers().extend_from_slice(b"upgrade ");
        outbox.release();
        assert!(outbox.mark_dirty(), "it is looked at again");
        assert_eq!(drain(&mut outbox), [b"upgrade event".to_vec()]);
    }

    #[test]
    fn large_chunks_are_not_copied() {
        let mut outbox = Outbox::default();
        let memory = FrameMemory::default();
        let large = Bytes::from(vec![1u8; JOIN_BYTES_MAX]);
        assert_eq!(outbox.push_events(&large, ORDINARY, usize::MAX), Ok(()));
        assert_eq!(outbox.push_events(&large, ORDINARY, usize::MAX), Ok(()));
        let chunk = outbox.take_chunk(&memory).expect("a chunk");
        assert_eq!(chunk.as_ptr(), large.as_ptr());
        outbox.sent();
        assert_eq!(drain(&mut outbox).len(), 1);
        assert_eq!(outbox.bytes(), 0);
    }

    #[test]
    fn nothing_is_no_chunk() {
        let mut outbox = Outbox::default();
        push(&mut outbox, ORDINARY, "");
        push(&mut outbox, URGENT, "");
        assert!(!outbox.waits_in(ORDINARY) && !outbox.waits_in(URGENT));
        assert_eq!(outbox.take_chunk(&FrameMemory::default()), None);
    }

    #[test]
    fn the_bound_holds_and_counts_what_is_being_sent() {
        let memory = FrameMemory::default();
        let mut outbox = Outbox::default();
        let chunk = Bytes::from_static(&[0; 60]);
        assert_eq!(
            outbox.push_events(&Bytes::from_static(&[0; 200]), ORDINARY, 100),
            Ok(()),
            "into an empty outbox anything fits"
        );
        assert_eq!(outbox.push_events(&chunk, ORDINARY, 100), Err(Full));
        assert_eq!(outbox.take_chunk(&memory).map(|chunk| chunk.len()), Some(200));
        assert_eq!(outbox.push_events(&chunk, ORDINARY, 100), Err(Full));
        outbox.sent();
        assert_eq!(outbox.push_events(&chunk, ORDINARY, 100), Ok(()));
        assert_eq!(outbox.push_events(&chunk, ORDINARY, 100), Err(Full));
        assert_eq!(outbox.bytes(), 60);
    }

    #[test]
    fn what_waits_is_written_anew_each_lane_in_its_order_and_the_rest_is_left_alone() {
        let memory = FrameMemory::default();
        let mut outbox = Outbox::default();
        push(&mut outbox, ORDINARY, "sending ");
        assert!(outbox.take_chunk(&memory).is_some());
        outbox.answers().extend_from_slice(b"answer ");
        for (lane, text) in [(ORDINARY, "one "), (URGENT, "two "), (ORDINARY, "gone "), (ORDINARY, "three ")] {
            push(&mut outbox, lane, text);
        }
        outbox.convert(Protocol::SocketIo, &memory, |chunk, out| {
            if !chunk.starts_with(b"gone") {
                out.push(b'<');
                out.extend_from_slice(chunk);
            }
        });
        assert_eq!(outbox.protocol(), Protocol::SocketIo);
        assert_eq!((outbox.events_bytes(), outbox.queued_bytes(), outbox.bytes()), (17, 25, 33));
        assert!(outbox.is_sending() && outbox.waits_in(URGENT) && outbox.waits_in(ORDINARY));
        outbox.sent();
        assert_eq!(drain(&mut outbox), [b"<answer <two <one <three ".to_vec()]);
        assert!(outbox.is_empty());
        drop(outbox);
        assert_eq!(memory.bytes(), 0, "what was written anew is counted, and no more once it is gone");
    }

    #[test]
    fn of_what_is_written_anew_as_nothing_no_trace_is_left() {
        let memory = FrameMemory::default();
        let mut outbox = Outbox::default();
        outbox.answers().extend_from_slice(b"answer");
        push(&mut outbox, ORDINARY, "1");
        push(&mut outbox, URGENT, "2");
        outbox.fall_in_line();
        outbox.hold();
        outbox.rewrite(&memory, |_, _| {});
        assert!(outbox.is_held(), "that is not about what waits");
        outbox.release();
        assert!(outbox.is_empty() && !outbox.waits_in(URGENT) && !outbox.waits_in(ORDINARY));
        // There is no line any more.
        push(&mut outbox, ORDINARY, "4 ");
        push(&mut outbox, URGENT, "3 ");
        assert_eq!(drain(&mut outbox), [b"3 4 ".to_vec()]);
        // One is as long as there is something in it.
        push(&mut outbox, ORDINARY, "5 ");
        outbox.fall_in_line();
        outbox.rewrite(&memory, |chunk, out| out.extend_from_slice(chunk));
        push(&mut outbox, URGENT, "6 ");
        assert_eq!(drain(&mut outbox), [b"5 6 ".to_vec()]);
    }

    #[test]
    fn a_held_outbox_is_not_empty_and_keeps_what_it_has() {
        let mut outbox = Outbox::default();
        outbox.hold();
        assert!(!outbox.is_empty(), "something goes first");
        push(&mut outbox, ORDINARY, "event ");
        outbox.becomes(Protocol::Polling);
        outbox.drop_events();
        assert!(outbox.is_held() && outbox.protocol() == Protocol::Polling);
        push(&mut outbox, URGENT, "later");
        outbox.release();
        assert_eq!(drain(&mut outbox), [b"later".to_vec()]);
        assert!(outbox.is_empty());
    }

    fn push(outbox: &mut Outbox, lane: Lane, text: &'static str) {
        assert_eq!(outbox.push_events(&Bytes::from_static(text.as_bytes()), lane, usize::MAX), Ok(()));
    }

    #[test]
    fn urgent_events_go_behind_answers_and_before_other_events() {
        let memory = FrameMemory::default();
        let mut outbox = Outbox::default();
        push(&mut outbox, ORDINARY, "telemetry 1 ");
        assert_eq!(outbox.take_chunk(&memory).as_deref(), Some(&b"telemetry 1 "[..]));
        for (lane, text) in [(ORDINARY, "telemetry 2 "), (URGENT, "alert 1 "), (ORDINARY, "telemetry 3 ")] {
            push(&mut outbox, lane, text);
        }
        push(&mut outbox, URGENT, "alert 2 ");
        outbox.answers().extend_from_slice(b"answer ");
        assert_eq!(outbox.take_chunk(&memory), None, "what is with the kernel is finished first");
        outbox.sent();
        assert!(outbox.waits_in(URGENT) && outbox.waits_in(ORDINARY));
        assert_eq!(drain(&mut outbox), [b"answer alert 1 alert 2 telemetry 2 telemetry 3 ".to_vec()]);
        assert!(outbox.is_empty() && !outbox.waits_in(URGENT) && !outbox.waits_in(ORDINARY));
    }

    #[test]
    fn what_waits_is_found_with_what_goes_before_it() {
        let memory = FrameMemory::default();
        let mut outbox = Outbox::default();
        push(&mut outbox, ORDINARY, "sent");
        assert!(outbox.take_chunk(&memory).is_some());
        assert_eq!(outbox.find(b"sent"), None, "it is with the kernel");
        push(&mut outbox, ORDINARY, "one two");
        push(&mut outbox, ORDINARY, "three");
        outbox.answers().extend_from_slice(b"answer");
        push(&mut outbox, URGENT, "alert");
        assert_eq!(
            [&b"alert"[..], b"two", b"three", b"four"].map(|text| outbox.find(text)),
            [Some(6), Some(15), Some(18), None]
        );
    }

    #[test]
    fn urgent_events_alone_are_shared_as_well() {
        let memory = FrameMemory::default();
        let mut outbox = Outbox::default();
        let large = Bytes::from(vec![1u8; JOIN_BYTES_MAX]);
        push(&mut outbox, ORDINARY, "telemetry");
        assert_eq!(outbox.push_events(&large, URGENT, usize::MAX), Ok(()));
        assert_eq!(outbox.take_chunk(&memory).map(|chunk| chunk.as_ptr()), Some(large.as_ptr()));
        outbox.sent();
        assert_eq!(drain(&mut outbox), [b"telemetry".to_vec()]);
    }

    #[test]
    fn ordinary_events_leave_a_reserve_to_urgent_ones() {
        let bounds = OutboxBounds::new(80, true);
        let mut outbox = Outbox::default();
        let chunk = Bytes::from_static(&[0; 10]);
        let mut push = |lane| outbox.push_events(&chunk, lane, bounds.of(lane));
        (0..7).for_each(|_| assert_eq!(push(ORDINARY), Ok(())));
        assert_eq!(push(ORDINARY), Err(Full));
        assert_eq!(push(URGENT), Ok(()));
        assert_eq!(push(URGENT), Err(Full), "the bound holds for all together");
        assert_eq!(outbox.bytes(), 80);
        assert_eq!(OutboxBounds::new(80, false).of(ORDINARY), 80, "nothing is kept free where nothing is urgent");
    }

    #[test]
    fn what_is_to_stay_in_line_is_not_overtaken_until_it_is_gone() {
        let memory = FrameMemory::default();
        let mut outbox = Outbox::default();
        push(&mut outbox, URGENT, "1 ");
        push(&mut outbox, ORDINARY, "2 ");
        outbox.fall_in_line();
        push(&mut outbox, URGENT, "3 ");
        push(&mut outbox, ORDINARY, "4 ");
        assert!(outbox.waits_in(URGENT) && outbox.waits_in(ORDINARY));
        assert_eq!(outbox.take_chunk(&memory).as_deref(), Some(&b"1 2 3 4 "[..]));
        push(&mut outbox, ORDINARY, "6 ");
        push(&mut outbox, URGENT, "5 ");
        outbox.sent();
        assert_eq!(drain(&mut outbox), [b"5 6 ".to_vec()]);
        outbox.fall_in_line();
        push(&mut outbox, ORDINARY, "8 ");
        push(&mut outbox, URGENT, "7 ");
        assert_eq!(drain(&mut outbox), [b"7 8 ".to_vec()], "where nothing waits there is no line");
        push(&mut outbox, URGENT, "9 ");
        outbox.fall_in_line();
        assert!(outbox.waits_in(ORDINARY), "what was urgent is so no more");
        push(&mut outbox, URGENT, "10 ");
        assert_eq!(drain(&mut outbox), [b"9 10 ".to_vec()]);
        push(&mut outbox, ORDINARY, "gone");
        push(&mut outbox, URGENT, "gone");
        outbox.fall_in_line();
        outbox.drop_events();
        assert!(outbox.is_empty() && outbox.take_chunk(&memory).is_none());
    }

    #[test]
    fn what_was_agreed_on_compression_is_kept_beside_all_else() {
        let mut outbox = Outbox::default();
        assert_eq!(outbox.deflate_bits(), 0);
        for bits in [9, 12, 15] {
            outbox.deflates(bits);
            outbox.hold();
            outbox.note_stalled(true);
            outbox.clear();
            assert_eq!(outbox.deflate_bits(), bits);
            outbox.release();
            assert_eq!((outbox.deflate_bits(), outbox.is_held(), outbox.note_stalled(false)), (bits, false, true));
        }
        outbox.deflates(0);
        assert_eq!(outbox.deflate_bits(), 0);
    }

    #[test]
    fn a_namespace_is_noted_beside_all_else() {
        let mut outbox = Outbox::default();
        outbox.deflates(15);
        for place in [0, 7, 31] {
            outbox.note_spaces(Spaces::of_bits(1 << place));
            outbox.hold();
            outbox.note_lag(true);
            assert_eq!(outbox.space(), Some(Spaces::of_bits(1 << place)));
            assert_eq!((outbox.deflate_bits(), outbox.is_held(), outbox.may_lag()), (15, true, true));
        }
        outbox.note_spaces(Spaces::of_bits(0b11));
        assert_eq!((outbox.space(), outbox.deflate_bits()), (None, 15));
    }

    #[test]
    fn an_outbox_in_which_nothing_waits_takes_no_memory() {
        let memory = FrameMemory::default();
        let mut outbox = Outbox::default();
        let event = Bytes::from_static(b"event");
        assert_eq!(outbox.push_events(&event, URGENT, 100), Ok(()));
        assert_eq!(outbox.push_events(&event, ORDINARY, 100), Ok(()));
        assert!(outbox.take_chunk(&memory).is_some() && outbox.lanes.is_none(), "all of it is with the kernel");
        outbox.sent();
        outbox.answers().extend_from_slice(b"answer");
        assert_eq!(outbox.push_events(&event, ORDINARY, 100), Ok(()));
        outbox.drop_events();
        assert_eq!(outbox.bytes(), 6, "the answer is still to go");
        outbox.rewrite(&memory, |_, _| {});
        assert!(outbox.is_empty() && outbox.lanes.is_none());
        outbox.answers();
        outbox.tidy();
        assert!(outbox.lanes.is_none());
        outbox.hold();
        outbox.answers();
        assert!(outbox.take_chunk(&memory).is_none() && outbox.lanes.is_none());
    }

    #[test]
    fn an_outbox_is_small() {
        assert!(size_of::<Outbox>() <= 16, "{}", size_of::<Outbox>());
    }
}
