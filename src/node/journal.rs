//! The journal at the hub's start: read before the listeners are open, its rooms handed to their homes, then written.

use std::fs::File;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::Config;
use crate::control;
use crate::control::journal::rebuild::Rebuilt;
use crate::control::journal::{self, Bounds, Intake, Journal, JournalFigures, Link, files};
use crate::hub::name::{NameHasher, ShardId};
use crate::hub::rules::Rules;
use crate::hub::stored::StoredRoom;
use crate::ring::DriverKind;
use crate::shard::mesh::Mesh;
use crate::shard::request::Request;

/// A journal that was read and is not written yet.
pub(super) struct Read {
    pub(super) link: Link,
    intake: Intake,
    rebuilt: Rebuilt,
    lock: File,
    figures: Arc<JournalFigures>,
}

/// Reads the journal of a configuration, if it has one.
pub(super) fn open(config: &Config, shards: u16) -> Result<Option<Read>, control::StartError> {
    let Some(folder) = &config.journal.path else { return Ok(None) };
    let rules = Rules::new(config);
    let bounds = |room: &str| {
        let place = rules.place(room);
        rules.durable(place).map(|_| rules.log(place))
    };
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let opened = files::open(folder, now_ms, bounds)?;
    let figures = Arc::new(JournalFigures::default());
    journal::report(&opened, &figures);
    let (link, intake) = journal::link(shards).map_err(control::StartError::Thread)?;
    Ok(Some(Read { link, intake, rebuilt: opened.rebuilt, lock: opened.lock, figures }))
}

impl Read {
    /// The rooms that were read, by the shard that is their home in this run.
    pub(super) fn rooms_by_home(&mut self, hasher: &NameHasher, shards: u16) -> Vec<Vec<StoredRoom>> {
        let mut by_home: Vec<Vec<StoredRoom>> = (0..shards).map(|_| Vec::new()).collect();
        for room in std::mem::take(&mut self.rebuilt.rooms) {
            let home = hasher.room(&room.room).home(shards);
            if let Some(rooms) = by_home.get_mut(usize::from(home.0)) {
                rooms.push(room);
            }
        }
        by_home
    }

    /// Begins to write.
    pub(super) fn start(
        self,
        config: &Config,
        mesh: Arc<Mesh>,
        driver: DriverKind,
    ) -> Result<Journal, control::StartError> {
        let Read { intake, rebuilt, lock, figures, .. } = self;
        let folder = config.journal.path.clone().unwrap_or_default();
        let bounds = Bounds { segment_bytes: config.journal.segment_bytes, bytes_max: config.journal.bytes_max };
        // A shard whose queue is full is awake, and looks at the journal in each of its turns.
        let wake = Box::new(move |shard| drop(mesh.request(ShardId(shard), Request::Look)));
        journal::start(folder, (rebuilt, lock), intake, bounds, figures, wake, driver)
    }
}
