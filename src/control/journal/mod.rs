//! The journal: what durable rooms have is written to files before it is acknowledged, and read again at the next start.
//!
//! ```text
//!  shard ──Entry──► link ──► writer ──► disk          group commit: one write and one sync for all that waits
//!    ▲                         │
//!    └──Progress── link ◄──────┘                      written to, synced to, failures
//!
//!  start: files ──► record ──► rebuild ──► rooms      before the listeners are open
//! ```
//!
//! It has a thread and an executor of its own, so that a slow disk holds up no HTTP request. A shard never waits
//! for it. What it writes is told in [`record`], what of it is still needed in [`book`].

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use futures_lite::AsyncReadExt as _;

pub mod book;
mod disk;
pub mod figures;
pub mod files;
pub mod link;
mod plain;
pub mod rebuild;
pub mod record;
pub mod writer;

pub use figures::{JournalFigures, JournalSnapshot};
pub use files::{OpenError, Opened};
pub use link::{Intake, Link, link};
pub use writer::Bounds;

use super::door::Door;
use super::runtime::{Executor, Socket};
use super::{Panicked, StartError};
use crate::ring::DriverKind;
use writer::{Disk, Writer};

/// The running journal. Dropping it writes what was handed over and ends it.
#[derive(Debug)]
pub struct Journal {
    door: Arc<Door>,
    thread: Option<JoinHandle<()>>,
    figures: Arc<JournalFigures>,
    /// Keeps other hubs out.
    _lock: File,
}

impl Journal {
    /// What it counts.
    pub fn figures(&self) -> &Arc<JournalFigures> {
        &self.figures
    }

    /// False once its thread has ended, whether it was asked to or not.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Writes what was handed over, has the disk take it, and ends.
    pub fn shutdown(mut self) -> Result<(), Panicked> {
        self.stop()
    }

    fn stop(&mut self) -> Result<(), Panicked> {
        self.door.request_stop();
        match self.thread.take() {
            Some(thread) => thread.join().map_err(|_| Panicked),
            None => Ok(()),
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::error!(%error, "the journal did not end well");
        }
    }
}

/// Tells what was found when a journal was read. The figures get what has to be seen later as well.
pub fn report(opened: &Opened, figures: &JournalFigures) {
    for unread in &opened.unread {
        let (path, at, bytes, damage) = (unread.path.display(), unread.at, unread.bytes, unread.damage);
        match (&unread.saved, unread.is_cut) {
            (None, true) => {
                figures.cut_bytes.add(bytes);
                tracing::warn!(%path, at, bytes, "the journal ends with {damage}, as after a crash: cut off");
            }
            (Some(saved), _) => {
                figures.cut_bytes.add(bytes);
                figures.damaged.add(1);
                let saved = saved.display();
                tracing::error!(%path, at, bytes, %saved, "the journal has {damage} before its end: cut off and put aside");
            }
            (None, false) => {
                figures.damaged.add(1);
                tracing::error!(%path, at, bytes, "the journal has {damage}: passed over");
            }
        }
    }
    let rebuilt = &opened.rebuilt;
    if let Some(example) = rebuilt.shortened.first() {
        let rooms = rebuilt.shortened.len();
        tracing::error!(rooms, %example, "logs of these begin later, because events of theirs can't be read");
    }
    if rebuilt.left_out > 0 {
        let rooms = rebuilt.left_out;
        tracing::warn!(rooms, "rooms in the journal whose kinds are not durable any more were left out");
    }
    let events: usize = rebuilt.rooms.iter().flat_map(|room| &room.batches).map(|batch| batch.events.len()).sum();
    tracing::info!(rooms = rebuilt.rooms.len(), events, "the journal was read");
}

/// Starts the journal on a thread of its own and returns when its first file is begun. `wake` has a shard look how far it
/// is.
pub fn start(
    folder: PathBuf,
    opened: (rebuild::Rebuilt, File),
    intake: Intake,
    bounds: Bounds,
    figures: Arc<JournalFigures>,
    wake: Box<dyn Fn(u16) + Send>,
    driver: DriverKind,
) -> Result<Journal, StartError> {
    let (rebuilt, lock) = opened;
    let door = intake.shared.door.clone();
    let (started, start) = mpsc::sync_channel(1);
    let of_thread = figures.clone();
    let main = move || {
        let executor = match Executor::new(driver, "journal", None) {
            Ok(executor) => executor,
            Err(error) => {
                // Nobody listening means that the starter has gone, and the error with it.
                drop(started.send(Err(error)));
                return;
            }
        };
        let task =
            Task { folder: folder.clone(), intake, bounds, book: rebuilt.book, figures: of_thread, wake, started };
        match driver {
            DriverKind::Uring => executor.run(task.keep(disk::Folder::new(folder))),
            DriverKind::Epoll => executor.run(task.keep(plain::Folder::new(folder))),
        }
    };
    let thread = std::thread::Builder::new().name("journal".into()).spawn(main).map_err(StartError::Thread)?;
    match start.recv() {
        Ok(Ok(())) => Ok(Journal { door, thread: Some(thread), figures, _lock: lock }),
        Ok(Err(error)) => Err(error),
        Err(mpsc::RecvError) => Err(StartError::Ended),
    }
}

/// What the thread does.
struct Task {
    folder: PathBuf,
    intake: Intake,
    bounds: Bounds,
    book: book::Book,
    figures: Arc<JournalFigures>,
    wake: Box<dyn Fn(u16) + Send>,
    started: mpsc::SyncSender<Result<(), StartError>>,
}

impl Task {
    async fn keep(self, disk: impl Disk) {
        let Task { folder, intake, bounds, book, figures, wake, started } = self;
        let mut writer = Writer::new(disk, &intake, wake, bounds, book, figures);
        let outcome = writer.start().await;
        let outcome = outcome.map_err(|error| StartError::Journal(OpenError::Io { path: folder, error }));
        let is_started = outcome.is_ok();
        if started.send(outcome).is_ok() && is_started {
            run(writer, intake).await;
        }
    }
}

async fn run(mut writer: Writer<impl Disk>, intake: Intake) {
    let Intake { shared, inside } = intake;
    let mut bell = match Socket::new(inside) {
        Ok(bell) => bell,
        Err(error) => {
            tracing::error!(%error, "the journal's door can't be watched");
            return writer.finish().await;
        }
    };
    let mut bytes = [0; 64];
    while !shared.door.stop_requested() {
        if writer.cycle().await {
            continue;
        }
        shared.door.sleep();
        // Whoever came before the line above saw this task awake and did not ring.
        let came = writer.has_work() || shared.door.stop_requested();
        if !came && let Err(error) = bell.read(&mut bytes).await {
            tracing::error!(%error, "the journal's door is broken");
            break;
        }
        shared.door.wake();
    }
    writer.finish().await;
}
