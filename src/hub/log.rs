//! A room's log: the batches that were sent, kept as they are, so that a replay costs no encoding and no copy.
//!
//! ```text
//! batches  | 38 39 40 | 41 | 42 43 44 45 |      front: the first `gone` events of the first batch count no more
//!               ▲ gone = 1: the log begins at 39
//! ```

use std::collections::VecDeque;
use std::sync::Arc;

use super::batch::Batch;

/// What a log may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogBounds {
    /// Events.
    pub events_max: usize,
    /// Bytes of frames.
    pub bytes_max: usize,
    /// Milliseconds.
    pub age_ms: u64,
}

/// The events of a room that are kept.
///
/// A log that is empty takes a pointer, of a room that has other things in it.
#[derive(Debug, Default)]
pub struct Log {
    kept: Option<Box<Kept>>,
}

/// A log that is not empty.
#[derive(Debug, Default)]
struct Kept {
    batches: VecDeque<Arc<Batch>>,
    /// Events at the front of the first batch that are beyond the bounds.
    gone: usize,
    events: usize,
    bytes: usize,
}

/// What a log has of the events that someone wants.
#[derive(Debug, Default)]
pub struct Excerpt {
    /// Whole batches and parts of them, in order.
    pub batches: Vec<Arc<Batch>>,
    /// Events in them.
    pub events: u64,
    /// The number of the first event wanted that is not there any more, and of the last such.
    pub missing: Option<(u64, u64)>,
    /// The number of the last event that was looked at; beyond it there is more where `complete` is false.
    pub to_seq: u64,
    /// Whether all that is wanted was looked at.
    pub complete: bool,
}

impl Log {
    /// A log in which nothing is kept.
    pub const fn new() -> Log {
        Log { kept: None }
    }

    /// Events kept.
    pub fn events(&self) -> usize {
        self.kept.as_ref().map_or(0, |kept| kept.events)
    }

    /// Bytes of frames kept, counting those that share memory with kept ones as gone.
    pub fn bytes(&self) -> usize {
        self.kept.as_ref().map_or(0, |kept| kept.bytes)
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.events() == 0
    }

    /// The number of the first event kept.
    pub fn first_seq(&self) -> Option<u64> {
        self.kept.as_ref()?.first_seq()
    }

    /// Puts a batch behind those that are there.
    pub fn push(&mut self, batch: Arc<Batch>, bounds: LogBounds) {
        if bounds.events_max == 0 {
            // Also what was kept under another bound: a log has no holes.
            self.clear();
            return;
        }
        let kept = self.kept.get_or_insert_default();
        kept.events += batch.events.len();
        kept.bytes += batch.bytes.len();
        let now_ms = batch.unix_ms;
        kept.batches.push_back(batch);
        self.trim(bounds, now_ms);
    }

    /// Lets go of what is beyond the bounds.
    pub fn trim(&mut self, bounds: LogBounds, now_ms: u64) {
        if let Some(kept) = self.kept.as_mut() {
            kept.trim(bounds, now_ms);
            if kept.batches.is_empty() {
                self.kept = None;
            }
        }
    }

    /// Lets go of what is before a number.
    pub fn let_go_before(&mut self, seq: u64) {
        let Some(kept) = self.kept.as_mut() else { return };
        while kept.first_seq().is_some_and(|first| first < seq) {
            kept.let_go_of_first();
        }
        if kept.batches.is_empty() {
            self.kept = None;
        }
    }

    /// Lets go of everything.
    pub fn clear(&mut self) {
        *self = Log::default();
    }

    /// The events after `seq`, as far as they are there, at most `bytes_max` of them (but one event at least).
    /// `last_seq` is the room's last number.
    pub fn after(&self, seq: u64, last_seq: u64, bytes_max: usize) -> Excerpt {
        let first = self.first_seq().unwrap_or(last_seq + 1);
        let mut excerpt = Excerpt { to_seq: seq, complete: true, ..Excerpt::default() };
        if first > seq + 1 {
            excerpt.missing = Some((seq + 1, first - 1));
            excerpt.to_seq = first - 1;
        }
        if let Some(kept) = self.kept.as_ref() {
            kept.add_after(seq, bytes_max, &mut excerpt);
        }
        excerpt
    }

    /// The number before the newest `count` events.
    pub fn before_last(&self, count: u64, last_seq: u64) -> u64 {
        last_seq.saturating_sub(count)
    }

    /// The number before the first event that is not older than `unix_ms`, of those that are there.
    pub fn before_time(&self, unix_ms: u64, last_seq: u64) -> u64 {
        self.kept.as_ref().and_then(|kept| kept.before_time(unix_ms)).unwrap_or(last_seq)
    }
}

impl Kept {
    fn first_seq(&self) -> Option<u64> {
        self.batches.front()?.events.get(self.gone).map(|event| event.seq)
    }

    fn trim(&mut self, bounds: LogBounds, now_ms: u64) {
        while let Some(front) = self.batches.front() {
            let too_old = front.unix_ms.saturating_add(bounds.age_ms) < now_ms;
            if !too_old && self.events <= bounds.events_max && self.bytes <= bounds.bytes_max {
                return;
            }
            if !self.let_go_of_first() {
                return;
            }
        }
    }

    /// False where there is none.
    fn let_go_of_first(&mut self) -> bool {
        let Some(front) = self.batches.front() else { return false };
        let Some(event) = front.events.get(self.gone) else { return false };
        self.bytes -= front.frame_bytes(event);
        self.events -= 1;
        self.gone += 1;
        if self.gone == front.events.len() {
            self.batches.pop_front();
            self.gone = 0;
        }
        true
    }

    /// Adds the events after `seq` to an excerpt, at most `bytes_max` of them (but one event at least).
    fn add_after(&self, seq: u64, bytes_max: usize, excerpt: &mut Excerpt) {
        let mut bytes = 0;
        let from = self.batch_after(seq);
        for (place, batch) in self.batches.range(from..).enumerate() {
            let gone = if from + place == 0 { self.gone } else { 0 };
            let skip = batch.events.partition_point(|event| event.seq <= seq).max(gone);
            let mut end = skip;
            for event in batch.events.get(skip..).unwrap_or_default() {
                let frame_bytes = batch.frame_bytes(event);
                if bytes > 0 && bytes + frame_bytes > bytes_max {
                    excerpt.complete = false;
                    break;
                }
                bytes += frame_bytes;
                end += 1;
            }
            let Some(part) = Batch::part(batch, skip..end) else { break };
            excerpt.events += part.events.len() as u64;
            excerpt.to_seq = part.events.last().map_or(excerpt.to_seq, |event| event.seq);
            excerpt.batches.push(part);
            if !excerpt.complete {
                break;
            }
        }
    }

    /// The first batch with an event after `seq`; the first batch of all where the front has been cut into.
    fn batch_after(&self, seq: u64) -> usize {
        self.batches.partition_point(|batch| batch.events.last().is_none_or(|event| event.seq <= seq))
    }

    /// The number before the first event that is not older than `unix_ms`; none where all are.
    fn before_time(&self, unix_ms: u64) -> Option<u64> {
        let batch = self.batches.partition_point(|batch| batch.unix_ms < unix_ms);
        let gone = if batch == 0 { self.gone } else { 0 };
        self.batches.get(batch)?.events.get(gone).map(|event| event.seq - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::{FrameMemory, OpenBatch};
    use super::super::name::NameHasher;
    use super::*;
    use crate::wire::envelope::{Event, Stamp, rfc3339};

    const BOUNDS: LogBounds = LogBounds { events_max: 5, bytes_max: 1 << 20, age_ms: 60_000 };

    fn batch(memory: &FrameMemory, seqs: std::ops::RangeInclusive<u64>, unix_ms: u64) -> Arc<Batch> {
        let stamp = Stamp { id: [b'i'; 36], timestamp: rfc3339(unix_ms) };
        let mut open = OpenBatch::default();
        for seq in seqs {
            open.push(&stamp, &Event { room: "a:b", kind: "k", seq, data: b"{}" }, None, 0);
        }
        Arc::new(open.seal(NameHasher::new(0).room("a:b"), memory, unix_ms))
    }

    fn seqs(excerpt: &Excerpt) -> Vec<u64> {
        excerpt.batches.iter().flat_map(|batch| batch.events.iter().map(|event| event.seq)).collect()
    }

    #[test]
    fn a_log_keeps_the_newest_events_across_batches() {
        let memory = FrameMemory::default();
        let mut log = Log::default();
        log.push(batch(&memory, 1..=3, 1000), BOUNDS);
        log.push(batch(&memory, 4..=4, 2000), BOUNDS);
        log.push(batch(&memory, 5..=7, 3000), BOUNDS);
        assert_eq!((log.events(), log.first_seq()), (5, Some(3)));
        let excerpt = log.after(4, 7, usize::MAX);
        assert_eq!((seqs(&excerpt), excerpt.missing, excerpt.to_seq, excerpt.events), (vec![5, 6, 7], None, 7, 3));
        let excerpt = log.after(0, 7, usize::MAX);
        assert_eq!((seqs(&excerpt), excerpt.missing), (vec![3, 4, 5, 6, 7], Some((1, 2))));
        let excerpt = log.after(7, 7, usize::MAX);
        assert_eq!((seqs(&excerpt), excerpt.missing, excerpt.complete), (vec![], None, true));
        assert_eq!(seqs(&log.after(5, 7, usize::MAX)), [6, 7], "a batch is cut where it has to be");
    }

    #[test]
    fn the_parts_of_an_excerpt_are_the_frames_that_were_sent() {
        let memory = FrameMemory::default();
        let mut log = Log::default();
        let whole = batch(&memory, 1..=3, 0);
        log.push(whole.clone(), BOUNDS);
        let part = log.after(1, 3, usize::MAX).batches.remove(0);
        let frames: Vec<u8> = whole.events.iter().skip(1).flat_map(|event| whole.frame(event).to_vec()).collect();
        assert_eq!(part.bytes, frames);
        assert_eq!(part.kind(&part.events[1]), "k");
        assert_eq!(part.data(&part.events[0]), b"{}");
        assert!(Arc::ptr_eq(&log.after(0, 3, usize::MAX).batches[0], &whole), "a whole batch is shared");
    }

    #[test]
    fn a_long_excerpt_comes_in_pieces() {
        let memory = FrameMemory::default();
        let mut log = Log::default();
        for seq in 1..=5 {
            log.push(batch(&memory, seq..=seq, 0), BOUNDS);
        }
        let mut after = 0;
        let mut all = Vec::new();
        let mut pieces = 0;
        loop {
            let excerpt = log.after(after, 5, 300);
            all.extend(seqs(&excerpt));
            after = excerpt.to_seq;
            pieces += 1;
            if excerpt.complete {
                break;
            }
        }
        assert_eq!(all, [1, 2, 3, 4, 5]);
        assert!(pieces > 1);
    }

    #[test]
    fn a_batch_is_cut_where_it_is_too_much_at_once() {
        let memory = FrameMemory::default();
        let mut log = Log::default();
        let whole = batch(&memory, 1..=5, 0);
        log.push(whole.clone(), BOUNDS);
        let two = whole.frame_bytes(&whole.events[0]) * 2;
        let excerpt = log.after(1, 5, two);
        assert_eq!((seqs(&excerpt), excerpt.to_seq, excerpt.complete), (vec![2, 3], 3, false));
        let excerpt = log.after(4, 5, 1);
        assert_eq!((seqs(&excerpt), excerpt.complete), (vec![5], true), "one event comes whatever its size");
    }

    #[test]
    fn a_log_that_is_switched_off_keeps_nothing_from_before() {
        let memory = FrameMemory::default();
        let mut log = Log::default();
        log.push(batch(&memory, 1..=2, 0), BOUNDS);
        log.push(batch(&memory, 3..=3, 0), LogBounds { events_max: 0, ..BOUNDS });
        assert_eq!(log.after(1, 3, usize::MAX).missing, Some((2, 3)));
    }

    #[test]
    fn old_events_and_too_many_bytes_give_way() {
        let memory = FrameMemory::default();
        let mut log = Log::default();
        log.push(batch(&memory, 1..=2, 0), BOUNDS);
        log.push(batch(&memory, 3..=3, 50_000), BOUNDS);
        log.trim(BOUNDS, 60_001);
        assert_eq!(log.first_seq(), Some(3));
        assert_eq!(log.before_time(50_000, 3), 2);
        assert_eq!(log.before_time(50_001, 3), 3);
        let tight = LogBounds { bytes_max: log.bytes() + 1, ..BOUNDS };
        log.push(batch(&memory, 4..=4, 50_000), tight);
        assert_eq!((log.first_seq(), log.events()), (Some(4), 1));
        log.trim(BOUNDS, 1 << 40);
        assert!(log.is_empty());
        assert_eq!((log.bytes(), memory.bytes()), (0, 0));
        let excerpt = log.after(2, 4, usize::MAX);
        assert_eq!((excerpt.missing, excerpt.to_seq, excerpt.complete), (Some((3, 4)), 4, true));
    }
}
