//! What a shard compresses of what it sends: each batch once for all who agreed to the same, and answers that are long.
//!
//! ```text
//! batch ─► its frames in a connection's form ─► compressed once ─► the outboxes of all with that form and window
//! ```
//!
//! Compressing takes far more time than sending, so that a turn compresses only so many bytes; what is beyond goes as it is, which
//! is right for every client at any time.

use std::collections::VecDeque;

use bytes::Bytes;

use super::socketio::Form;
use crate::config::Config;
use crate::hub::batch::{Address, Batch, FrameMemory};
use crate::hub::outbox::Outbox;
use crate::wire::deflate::Deflater;
use crate::wire::ws::{self, Opcode};

/// Compressed batches that are kept while fan-outs are under way: those at its front go to one room, in seven windows and a few
/// forms of Socket.IO.
const RECENT_MAX: usize = 16;

/// What the configuration says of compression.
#[derive(Debug, Default)]
pub struct DeflateRules {
    level: u32,
    threshold_bytes: usize,
    turn_bytes_max: usize,
    /// The kinds of rooms whose events are not compressed.
    kinds_off: Vec<Box<str>>,
}

impl DeflateRules {
    /// Those of a configuration.
    pub fn new(config: &Config) -> DeflateRules {
        let kinds_off = config.kinds.iter().filter(|kind| !kind.compress).map(|kind| kind.name.as_str().into());
        DeflateRules {
            level: config.compression.level,
            threshold_bytes: config.compression.threshold_bytes,
            turn_bytes_max: config.compression.turn_bytes_max,
            kinds_off: kinds_off.collect(),
        }
    }

    fn compresses(&self, room: &str) -> bool {
        let kind = room.split_once(':').map_or(room, |(kind, _)| kind);
        self.kinds_off.iter().all(|off| **off != *kind)
    }
}

/// What was compressed so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeflateCounts {
    /// Messages, each counted once whoever gets it.
    pub messages: u64,
    /// Their bytes before.
    pub bytes_before: u64,
    /// Their bytes after.
    pub bytes_after: u64,
    /// Bytes that were not sent, over all who got them compressed.
    pub bytes_saved: u64,
    /// Messages that went as they are because the turn's budget was used up.
    pub skipped: u64,
}

/// The compressing side of a shard.
#[derive(Debug)]
pub struct Deflating {
    rules: DeflateRules,
    /// Made when something is compressed first.
    deflater: Option<Box<Deflater>>,
    /// The newest at the front.
    recent: VecDeque<Recent>,
    /// Bytes that may still be compressed in this turn.
    left_bytes: usize,
    /// What was compressed.
    pub counts: DeflateCounts,
}

/// What there is of a batch for a connection.
#[derive(Debug)]
pub enum Found {
    /// Its frames.
    Frames(Bytes),
    /// None of them is compressed.
    AsTheyAre,
}

/// A batch in one form, compressed.
#[derive(Debug)]
struct Recent {
    /// The batch's frames, which are kept so that their place in memory is no other's.
    of: Bytes,
    form: Option<Form>,
    window_bits: u8,
    /// The frames before, in that form.
    plain_bytes: usize,
    frames: Bytes,
    /// Where each of them ends; empty where they are as they were.
    ends: Vec<u32>,
}

impl Deflating {
    /// Nothing was compressed yet.
    pub fn new(rules: DeflateRules) -> Deflating {
        let left_bytes = rules.turn_bytes_max;
        Deflating { rules, deflater: None, recent: VecDeque::new(), left_bytes, counts: DeflateCounts::default() }
    }

    /// The configuration is another one.
    pub fn follow(&mut self, rules: DeflateRules) {
        self.rules = rules;
        self.deflater = None;
    }

    /// A turn begins, with its whole budget.
    pub fn begin_turn(&mut self) {
        self.left_bytes = self.rules.turn_bytes_max;
    }

    /// No fan-out is under way: what was compressed is let go of.
    pub fn forget(&mut self) {
        self.recent.clear();
    }

    /// A batch in that form, if it was looked at already, without the events that are not for `without`.
    pub fn find(
        &mut self,
        batch: &Batch,
        form: Option<Form>,
        window_bits: u8,
        without: Option<Address>,
        memory: &FrameMemory,
    ) -> Option<Found> {
        let recent = self.recent.iter().find(|recent| recent.is(&batch.bytes, form, window_bits))?;
        match without.filter(|_| batch.has_exclusions()) {
            None => {
                self.counts.bytes_saved += recent.plain_bytes.saturating_sub(recent.frames.len()) as u64;
                Some(Found::Frames(recent.frames.clone()))
            }
            Some(address) => match recent.without(batch, address) {
                Some(frames) => Some(Found::Frames(memory.share(frames))),
                None => Some(Found::AsTheyAre),
            },
        }
    }

    /// Compresses a batch whose frames in that form are given, for all who take it so.
    pub fn remember(
        &mut self,
        batch: &Batch,
        form: Option<Form>,
        window_bits: u8,
        plain: &Bytes,
        memory: &FrameMemory,
    ) {
        let (mut out, mut ends) = (Vec::new(), Vec::new());
        let is_smaller = self.rules.compresses(batch.room.as_str())
            && plain.len() >= self.rules.threshold_bytes
            && self.compress(plain, window_bits, &mut out, |end| ends.push(end as u32));
        let frames = if is_smaller {
            // It may wait for slow readers for long.
            out.shrink_to_fit();
            memory.share(out)
        } else {
            ends.clear();
            plain.clone()
        };
        self.recent.truncate(RECENT_MAX - 1);
        let of = batch.bytes.clone();
        self.recent.push_front(Recent { of, form, window_bits, plain_bytes: plain.len(), frames, ends });
    }

    /// Compresses what was appended to a connection's answers behind `before`, where it has agreed to that.
    #[inline]
    pub fn answers(&mut self, outbox: &mut Outbox, before: usize) {
        let window_bits = outbox.deflate_bits();
        if window_bits == 0 {
            return;
        }
        let answers = outbox.answers();
        if answers.len() > before && answers.len() - before >= self.rules.threshold_bytes {
            let plain = answers.split_off(before);
            self.compress_one(&plain, window_bits, answers);
        }
    }

    /// Compresses a chunk that is for one connection, where that has agreed to it.
    pub fn chunk(&mut self, outbox: &Outbox, plain: Vec<u8>) -> Vec<u8> {
        let window_bits = outbox.deflate_bits();
        if window_bits == 0 || plain.len() < self.rules.threshold_bytes {
            return plain;
        }
        let mut out = Vec::new();
        self.compress_one(&plain, window_bits, &mut out);
        out
    }

    fn compress_one(&mut self, plain: &[u8], window_bits: u8, out: &mut Vec<u8>) {
        let before = out.len();
        self.compress(plain, window_bits, out, |_| {});
        self.counts.bytes_saved += plain.len().saturating_sub(out.len() - before) as u64;
    }

    /// Appends whole frames, compressed where that is worth it and the turn allows it, and tells where each ends, counted from
    /// where `out` ended. Whether any was.
    fn compress(&mut self, plain: &[u8], window_bits: u8, out: &mut Vec<u8>, mut ended: impl FnMut(usize)) -> bool {
        let start = out.len();
        let mut some = false;
        let mut rest = plain;
        while let Some((frame, behind)) = ws::frame_bytes(rest).and_then(|length| rest.split_at_checked(length)) {
            rest = behind;
            if self.compress_frame(frame, window_bits, out) {
                some = true;
            } else {
                out.extend_from_slice(frame);
            }
            ended(out.len() - start);
        }
        out.extend_from_slice(rest);
        some
    }

    fn compress_frame(&mut self, frame: &[u8], window_bits: u8, out: &mut Vec<u8>) -> bool {
        let opcode = match frame.first() {
            Some(0x81) => Opcode::Text,
            Some(0x82) => Opcode::Binary,
            _ => return false,
        };
        let payload = frame.get(ws::header_bytes_of(frame)..).unwrap_or_default();
        if payload.len() < self.rules.threshold_bytes {
            return false;
        }
        if payload.len() > self.left_bytes {
            self.counts.skipped += 1;
            return false;
        }
        self.left_bytes -= payload.len();
        let before = out.len();
        let level = self.rules.level;
        let deflater = self.deflater.get_or_insert_with(|| Box::new(Deflater::new(level)));
        if !deflater.frame(opcode, payload, window_bits, out) {
            return false;
        }
        self.counts.messages += 1;
        self.counts.bytes_before += frame.len() as u64;
        self.counts.bytes_after += (out.len() - before) as u64;
        true
    }
}

impl Recent {
    fn is(&self, frames: &Bytes, form: Option<Form>, window_bits: u8) -> bool {
        self.window_bits == window_bits
            && self.form == form
            && self.of.as_ptr() == frames.as_ptr()
            && self.of.len() == frames.len()
    }

    /// The frames of the events that are for a connection. None where they are not known one by one.
    fn without(&self, batch: &Batch, address: Address) -> Option<Vec<u8>> {
        let per_event = self.ends.len().checked_div(batch.events.len()).filter(|frames| *frames > 0)?;
        let mut out = Vec::new();
        let mut start = 0;
        for (event, ends) in batch.events.iter().zip(self.ends.chunks(per_event)) {
            let end = ends.last().map_or(start, |end| *end as usize);
            if event.exclude != Some(address) {
                out.extend_from_slice(self.frames.get(start..end).unwrap_or_default());
            }
            start = end;
        }
        Some(out)
    }
}
