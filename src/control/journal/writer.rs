//! Writes the journal: gathers what all shards have sent, writes it at once, has the disk take it at once, and tells the
//! shards how far it is. Generic over the disk, so that the simulation runs it on one that fails.
//!
//! ```text
//! gather ─► write ─► tell those who wait for `written` ─► sync ─► tell those who wait for `synced` ─► note what is needed
//!              │ failed                                     │ failed
//!              └──────────────► tell all shards; give the file up; begin another, until that works ◄┘
//! ```
//!
//! After a failure nothing more goes into that file: the kernel may have dropped what it could not write, and says so once
//! only. What was not acknowledged is cut off where nothing acknowledged stands behind it, and the next file begins with a
//! record for every room of which something was lost, so that it does not come back. Batches that shards sent before they
//! knew are not written: the numbers of their events are given anew.
//!
//! Larger than most files because what is safe after a failure can only be seen with what was done before it in view.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::book::{Book, Written};
use super::figures::JournalFigures;
use super::link::{Intake, Shared};
use super::record::{self, FILE_HEAD, Record, What};
use crate::hub::name::RoomName;
use crate::hub::stored::{Cleared, Entry, Sealed};

/// What is written at once at most, but for one turn of one shard, which may be larger: so much takes milliseconds.
const GROUP_BYTES_MAX: usize = 8 << 20;
/// After a failure it is tried again so soon, and then half as often each time, down to the other.
const RETRY_MS_MIN: u64 = 50;
const RETRY_MS_MAX: u64 = 2000;
/// With fewer files than this nothing is moved to let the oldest go.
const FILES_MIN: u64 = 4;

/// Files with numbers, of which the newest is written.
#[allow(async_fn_in_trait, reason = "used within one thread only, where futures need not be Send")]
pub trait Disk {
    /// Begins a file, which is the one that is written from here on. It outlives a power failure. A file of that number
    /// that is there already is emptied.
    async fn create(&mut self, number: u64) -> io::Result<()>;
    /// Writes at that place; all of it, or it is an error.
    async fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Has the disk take what was written.
    async fn sync(&mut self) -> io::Result<()>;
    /// Cuts the file that is written to so many bytes, and has the disk take that.
    async fn truncate(&mut self, bytes: u64) -> io::Result<()>;
    /// Removes an older file.
    async fn remove(&mut self, number: u64) -> io::Result<()>;
    /// Reads an older file.
    async fn read(&mut self, number: u64) -> io::Result<Vec<u8>>;
    /// Waits.
    async fn pause(&mut self, time: Duration);
    /// Microseconds of a clock that does not go back.
    fn now_us(&self) -> u64;
}

/// How large files may get.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// One file.
    pub segment_bytes: u64,
    /// All files.
    pub bytes_max: u64,
}

/// The writer of a journal.
pub struct Writer<D> {
    disk: D,
    shared: Arc<Shared>,
    wake: Box<dyn Fn(u16) + Send>,
    bounds: Bounds,
    book: Book,
    figures: Arc<JournalFigures>,
    /// Whether there is a file that can be written.
    is_open: bool,
    /// Whether something was written that the disk was not asked to take.
    is_dirty: bool,
    failures: u64,
    retry_ms: u64,
    /// The last file that could not be read again; it is not tried at every turn.
    unreadable: u64,
    /// The last file that could not be removed.
    unremovable: u64,
    /// What was lost and may stand in a file: by room and epoch, the first number.
    lost: BTreeMap<(Box<str>, u64), u64>,
    first_shard: u16,
    group: Group,
}

/// How far a group came before a failure.
#[derive(Clone, Copy)]
enum Reached {
    /// Nothing of it is in a file.
    Nothing,
    /// Something of it may be in the file, from that place on.
    Begun { at: u64 },
    /// All of it is in the file from that place on, and those were told who wait for no more.
    Written { at: u64 },
}

/// What is written at once.
#[derive(Default)]
struct Group {
    bytes: Vec<u8>,
    batches: Vec<Note>,
    /// What is noted once it is written: rooms that were given up, and logs that begin later.
    others: Vec<Entry>,
    /// Logs that were emptied, and the shards that say so.
    cleared: Vec<(u16, Cleared)>,
    needs_sync: bool,
}

/// A batch in the group.
struct Note {
    shard: u16,
    number: u64,
    when_written: bool,
    room: RoomName,
    epoch: u64,
    first_seq: u64,
    last_seq: u64,
    bytes: u64,
    log_from: u64,
}

impl<D: Disk> Writer<D> {
    /// A writer that goes on behind the files in `book`; `wake` has a shard look how far the journal is.
    pub fn new(
        disk: D,
        intake: &Intake,
        wake: Box<dyn Fn(u16) + Send>,
        bounds: Bounds,
        book: Book,
        figures: Arc<JournalFigures>,
    ) -> Writer<D> {
        Writer {
            disk,
            shared: intake.shared.clone(),
            wake,
            bounds,
            book,
            figures,
            is_open: false,
            is_dirty: false,
            failures: 0,
            retry_ms: RETRY_MS_MIN,
            unreadable: 0,
            unremovable: 0,
            lost: BTreeMap::new(),
            first_shard: 0,
            group: Group::default(),
        }
    }

    /// Begins the first file; to be called before anything else.
    pub async fn start(&mut self) -> io::Result<()> {
        self.begin().await?;
        self.expire().await;
        self.count();
        Ok(())
    }

    /// Writes what has come, or tries to begin anew after a failure. False where there was nothing to do.
    pub async fn cycle(&mut self) -> bool {
        self.gather();
        if !self.is_open {
            self.note_others();
            self.try_again().await;
            return true;
        }
        if self.group.batches.is_empty() && self.group.others.is_empty() && self.group.cleared.is_empty() {
            return false;
        }
        self.commit().await;
        if self.is_open {
            self.expire().await;
            self.move_on().await;
        }
        self.count();
        true
    }

    /// Writes what is left and has the disk take all of it.
    pub async fn finish(&mut self) {
        while self.shared.has_entries() && self.is_open {
            self.cycle().await;
        }
        if self.is_open
            && self.is_dirty
            && let Err(error) = self.sync().await
        {
            tracing::error!(%error, "the end of the journal could not be synced");
        }
    }

    /// Whether something waits to be written, or it is tried to begin anew.
    pub fn has_work(&self) -> bool {
        !self.is_open || self.shared.has_entries()
    }

    // ---- a group ----

    fn gather(&mut self) {
        // Another shard first each time, so that one which fills the group does not keep the others out.
        let shards = self.shared.shards();
        self.first_shard = (self.first_shard + 1) % shards.max(1);
        for shard in (self.first_shard..shards).chain(0..self.first_shard) {
            while self.group.bytes.len() < GROUP_BYTES_MAX
                && let Some(entries) = self.shared.pop(shard)
            {
                for entry in entries {
                    self.take(shard, entry);
                }
            }
        }
    }

    fn take(&mut self, shard: u16, entry: Entry) {
        let group = &mut self.group;
        match entry {
            Entry::Events(sealed) => {
                let Sealed { number, failures, when_written, epoch, log_from, batch, keys } = *sealed;
                // Sent before its shard knew of a failure.
                if failures != self.failures {
                    return;
                }
                let seqs = batch.events.first().zip(batch.events.last());
                let Some((first_seq, last_seq)) = seqs.map(|(first, last)| (first.seq, last.seq)) else { return };
                let before = group.bytes.len();
                record::write_batch(&mut group.bytes, epoch, &batch, &keys);
                let bytes = (group.bytes.len() - before) as u64;
                group.needs_sync |= !when_written;
                let room = batch.room.clone();
                group.batches.push(Note {
                    shard,
                    number,
                    when_written,
                    room,
                    epoch,
                    first_seq,
                    last_seq,
                    bytes,
                    log_from,
                });
            }
            Entry::Forgotten { ref room, epoch } => {
                if self.is_open {
                    record::write_forgotten(&mut group.bytes, room.as_str(), epoch);
                }
                group.others.push(entry);
            }
            Entry::Cleared(cleared) => {
                if cleared.failures != self.failures {
                    return;
                }
                record::write_cleared(&mut group.bytes, cleared.room.as_str(), cleared.epoch, cleared.log_from);
                group.needs_sync = true;
                group.cleared.push((shard, cleared));
            }
            Entry::Trimmed { .. } => group.others.push(entry),
        }
    }

    async fn commit(&mut self) {
        let group_bytes = self.group.bytes.len() as u64;
        let newest_bytes = self.book.bytes_of_newest();
        if newest_bytes > FILE_HEAD.len() as u64
            && newest_bytes + group_bytes > self.bounds.segment_bytes
            && let Err(error) = self.roll().await
        {
            return self.failed(&error, Reached::Nothing).await;
        }
        let at = self.book.bytes_of_newest();
        if let Err(error) = self.write().await {
            return self.failed(&error, Reached::Begun { at }).await;
        }
        self.tell(true);
        if self.group.needs_sync
            && let Err(error) = self.sync().await
        {
            return self.failed(&error, Reached::Written { at }).await;
        }
        self.tell(false);
        self.retry_ms = RETRY_MS_MIN;
        self.note_batches(|_| true);
        self.note_others();
        for (_, Cleared { room, epoch, log_from, .. }) in &self.group.cleared {
            self.book.trimmed(room.as_str(), *epoch, *log_from);
        }
        self.clear_group();
    }

    fn note_batches(&mut self, acknowledged: impl Fn(&Note) -> bool) {
        for note in self.group.batches.iter().filter(|note| acknowledged(note)) {
            self.figures.batches.add(1);
            self.book.written(Written {
                room: note.room.as_str(),
                epoch: note.epoch,
                last_seq: note.last_seq,
                bytes: note.bytes,
                log_from: note.log_from,
            });
        }
    }

    fn note_others(&mut self) {
        for entry in self.group.others.drain(..) {
            match entry {
                Entry::Trimmed { room, epoch, log_from } => self.book.trimmed(room.as_str(), epoch, log_from),
                Entry::Forgotten { room, epoch } => self.book.forgotten(room.as_str(), Some(epoch)),
                Entry::Events(_) | Entry::Cleared(_) => {}
            }
        }
    }

    fn clear_group(&mut self) {
        self.group.bytes.clear();
        self.group.bytes.shrink_to(GROUP_BYTES_MAX);
        self.group.batches.clear();
        self.group.others.clear();
        self.group.cleared.clear();
        self.group.needs_sync = false;
    }

    /// Writes the group's bytes behind what the newest file has.
    async fn write(&mut self) -> io::Result<()> {
        let at = self.book.bytes_of_newest();
        let bytes = self.group.bytes.len() as u64;
        self.is_dirty = true;
        self.disk.write(at, &self.group.bytes).await?;
        self.book.set_bytes_of_newest(at + bytes);
        self.figures.writes.add(1);
        self.figures.written_bytes.add(bytes);
        Ok(())
    }

    async fn sync(&mut self) -> io::Result<()> {
        let before_us = self.disk.now_us();
        self.disk.sync().await?;
        self.is_dirty = false;
        let us = self.disk.now_us().saturating_sub(before_us);
        self.figures.syncs.add(1);
        self.figures.sync_us.add(us);
        self.figures.sync_us_max.set(self.figures.sync_us_max.value().max(us));
        Ok(())
    }

    /// Tells every shard of the group how far the journal is: with what waits to be written, or to be synced.
    fn tell(&self, when_written: bool) {
        let mut last = BTreeMap::new();
        for note in self.group.batches.iter().filter(|note| note.when_written == when_written) {
            last.insert(note.shard, note.number);
        }
        for (shard, cleared) in self.group.cleared.iter().filter(|_| !when_written) {
            let number = last.entry(*shard).or_default();
            *number = cleared.number.max(*number);
        }
        for (shard, number) in last {
            match when_written {
                true => self.shared.set_written(shard, number),
                false => self.shared.set_synced(shard, number),
            }
            (self.wake)(shard);
        }
    }

    // ---- failures ----

    /// The group came to nothing, but for what was acknowledged as written.
    async fn failed(&mut self, error: &io::Error, reached: Reached) {
        self.is_open = false;
        self.failures += 1;
        // First of all the publishers are told.
        self.shared.set_failed(self.failures);
        (0..self.shared.shards()).for_each(|shard| (self.wake)(shard));
        tracing::error!(%error, "the journal can't be written; publishes to durable rooms are refused until it can");
        self.figures.failures.add(1);
        self.figures.up.set(0);

        let is_written = matches!(reached, Reached::Written { .. });
        let is_lost = |note: &Note| !(is_written && note.when_written);
        // What was acknowledged as written stays where it is.
        let all_is_lost = self.group.batches.iter().all(is_lost);
        for note in self.group.batches.iter().filter(|note| is_lost(note)) {
            self.figures.refused.add(1);
            let first = self.lost.entry((note.room.as_str().into(), note.epoch)).or_insert(note.first_seq);
            *first = note.first_seq.min(*first);
        }
        self.note_batches(|note| !is_lost(note));
        self.note_others();
        self.clear_group();
        if let Reached::Begun { at } | Reached::Written { at } = reached
            && all_is_lost
        {
            match self.disk.truncate(at).await {
                Ok(()) => self.book.set_bytes_of_newest(at),
                // The next file says what does not count.
                Err(error) => tracing::warn!(%error, "what was written in part could not be cut off the journal"),
            }
        }
        self.count();
    }

    async fn try_again(&mut self) {
        self.disk.pause(Duration::from_millis(self.retry_ms)).await;
        self.retry_ms = (self.retry_ms * 2).min(RETRY_MS_MAX);
        self.expire().await;
        match self.begin().await {
            Ok(()) => tracing::info!("the journal can be written again"),
            Err(error) => tracing::debug!(%error, "the journal still can't be written"),
        }
        self.count();
    }

    // ---- files ----

    /// Begins a file. It says first what does not count of those before.
    async fn begin(&mut self) -> io::Result<()> {
        let reclaimable = self.book.bytes() > self.book.live_bytes().saturating_mul(2);
        if self.book.bytes() + self.bounds.segment_bytes > self.bounds.bytes_max && !reclaimable {
            return Err(io::Error::other("journal.bytes_max is reached, and rooms need what is there"));
        }
        let number = self.book.next_number();
        self.disk.create(number).await?;
        let mut head = FILE_HEAD.to_vec();
        for ((room, epoch), from_seq) in &self.lost {
            record::write_cut(&mut head, room, *epoch, *from_seq);
        }
        self.disk.write(0, &head).await?;
        self.sync().await?;
        self.book.begin(number, head.len() as u64);
        self.lost.clear();
        self.is_open = true;
        self.figures.up.set(1);
        self.shared.set_up();
        (0..self.shared.shards()).for_each(|shard| (self.wake)(shard));
        Ok(())
    }

    /// Ends a file and begins the next.
    async fn roll(&mut self) -> io::Result<()> {
        if self.is_dirty {
            self.sync().await?;
        }
        self.begin().await
    }

    /// Removes the oldest files, as far as nobody needs them.
    async fn expire(&mut self) {
        while self.book.oldest_can_go()
            && let Some(number) = self.book.oldest()
        {
            if let Err(error) = self.disk.remove(number).await {
                // Tried again with every group, and told once.
                if std::mem::replace(&mut self.unremovable, number) != number {
                    tracing::warn!(number, %error, "a file of the journal that nobody needs could not be removed");
                }
                return;
            }
            self.book.removed_oldest();
        }
    }

    /// Where most of the journal is needed by nobody, but the oldest file by somebody: moves what is needed of it to the
    /// newest, so that it can go.
    async fn move_on(&mut self) {
        // Each moves at most what stands in one file, and at least half of all is not needed: it ends.
        for _ in 0..self.book.files() {
            let bytes = self.book.bytes();
            let is_small = bytes <= self.bounds.segment_bytes.saturating_mul(FILES_MIN);
            if is_small || bytes <= self.book.live_bytes().saturating_mul(2) || !self.is_open {
                return;
            }
            let Some(oldest) = self.book.oldest().filter(|oldest| *oldest != self.unreadable) else { return };
            self.move_out_of(oldest).await;
            self.expire().await;
        }
    }

    async fn move_out_of(&mut self, oldest: u64) {
        let bytes = match self.disk.read(oldest).await {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::error!(number = oldest, %error, "a file of the journal can't be read; it is kept");
                self.unreadable = oldest;
                return;
            }
        };
        let mut moved = Vec::new();
        let mut at = FILE_HEAD.len();
        // Places that can't be read were reported at start; what stands behind them counts.
        while let Some(from) = record::next_record(&bytes, at) {
            let Some(Ok((record, record_bytes))) = bytes.get(from..).map(record::read) else { break };
            at = from + record_bytes;
            let Record { room, epoch, what: What::Events(batch) | What::Moved(batch) } = record else { continue };
            if self.book.is_needed(oldest, &room, epoch, batch.last_seq()) {
                let before = self.group.bytes.len();
                record::write_moved(&mut self.group.bytes, &room, epoch, &batch);
                moved.push((room, epoch, batch.last_seq(), (self.group.bytes.len() - before) as u64));
            }
        }
        let newest = self.book.newest_in(oldest);
        for (room, epoch, seq) in &newest {
            record::write_state(&mut self.group.bytes, room, *epoch, *seq);
        }
        let group_bytes = self.group.bytes.len() as u64;
        if self.book.bytes_of_newest() + group_bytes > self.bounds.segment_bytes
            && self.book.bytes_of_newest() > FILE_HEAD.len() as u64
            && let Err(error) = self.roll().await
        {
            return self.failed(&error, Reached::Nothing).await;
        }
        let at = self.book.bytes_of_newest();
        let outcome = match self.write().await {
            Ok(()) => self.sync().await,
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            return self.failed(&error, Reached::Begun { at }).await;
        }
        self.figures.moved_bytes.add(group_bytes);
        self.clear_group();
        self.book.moved_out_of(oldest);
        for (room, epoch, last_seq, bytes) in moved {
            self.book.place(&room, epoch, last_seq, bytes);
        }
        for (room, _, seq) in newest {
            self.book.newest(&room, seq);
        }
    }

    fn count(&self) {
        self.figures.files.set(self.book.files() as u64);
        self.figures.bytes.set(self.book.bytes());
        self.figures.live_bytes.set(self.book.live_bytes());
    }
}
