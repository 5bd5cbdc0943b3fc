//! The files of a journal: a folder with `00000001.journal`, `00000002.journal`, …, and a lock.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::rebuild::{Rebuild, Rebuilt};
use super::record::{self, Damage, FILE_HEAD};
use crate::hub::log::LogBounds;

const LOCK: &str = "lock";
const ENDING: &str = ".journal";

/// Why a journal can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another hub uses it.
    #[error("another hub uses the journal in {0}")]
    Locked(PathBuf),
    /// The folder can't be read or written.
    #[error("{path}: {error}")]
    Io {
        /// What.
        path: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
    /// A file was written by something else, or by another version.
    #[error("{0} is no file of a journal that this version can read; nothing was changed")]
    Foreign(PathBuf),
}

/// A place that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// The file.
    pub path: PathBuf,
    /// Where it begins.
    pub at: u64,
    /// Its length.
    pub bytes: u64,
    /// What was found there.
    pub damage: Damage,
    /// Whether it was cut off: the end of the last file, where a crash leaves what it was about to write.
    pub is_cut: bool,
    /// Where what was cut off was put, since there are whole records in it.
    pub saved: Option<PathBuf>,
}

/// A journal that was read, and is this process's.
#[derive(Debug)]
pub struct Opened {
    /// What it had.
    pub rebuilt: Rebuilt,
    /// What could not be read.
    pub unread: Vec<Unread>,
    /// Keeps other hubs out for as long as it is open.
    pub lock: File,
}

/// The name of a file of a journal.
pub fn path_of(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:08}{ENDING}"))
}

/// Reads a journal, and makes its folder where it is missing. `bounds` says how much is kept of a room's log; none for
/// rooms that are not durable.
pub fn open(folder: &Path, now_ms: u64, bounds: impl Fn(&str) -> Option<LogBounds>) -> Result<Opened, OpenError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| OpenError::Io { path, error }
    };
    fs::create_dir_all(folder).map_err(failed(folder))?;
    let lock = lock(folder)?;
    let mut numbers = numbers(folder).map_err(failed(folder))?;
    numbers.sort_unstable();
    let mut rebuild = Rebuild::default();
    let mut unread = Vec::new();
    for (place, number) in numbers.iter().enumerate() {
        let path = path_of(folder, *number);
        let bytes = fs::read(&path).map_err(failed(&path))?;
        let is_last = place + 1 == numbers.len();
        rebuild.file(*number);
        // Blocks that never got to the disk are zeros.
        let is_head = |(byte, expected): (&u8, &u8)| byte == expected || (is_last && *byte == 0);
        if !bytes.iter().zip(FILE_HEAD).all(is_head) {
            return Err(OpenError::Foreign(path));
        }
        let mut found = read_file(&path, &bytes, is_last, &mut rebuild, &bounds);
        let end = found.iter().find(|unread| unread.is_cut).map_or(bytes.len() as u64, |unread| unread.at);
        if let Some(cut) = found.iter_mut().find(|unread| unread.is_cut) {
            cut.saved = cut_off(&path, &bytes, cut.at).map_err(failed(&path))?;
        }
        rebuild.file_bytes(end);
        unread.extend(found);
    }
    Ok(Opened { rebuilt: rebuild.finish(now_ms, bounds), unread, lock })
}

fn lock(folder: &Path) -> Result<File, OpenError> {
    let path = folder.join(LOCK);
    let failed = |error| OpenError::Io { path: path.clone(), error };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked(folder.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn numbers(folder: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(ENDING)?.parse::<u64>().ok());
        numbers.extend(number.filter(|number| path_of(Path::new(""), *number).as_os_str() == name));
    }
    Ok(numbers)
}

fn read_file(
    path: &Path,
    bytes: &[u8],
    is_last: bool,
    rebuild: &mut Rebuild,
    bounds: &impl Fn(&str) -> Option<LogBounds>,
) -> Vec<Unread> {
    let mut unread = Vec::new();
    let mut at = FILE_HEAD.len();
    let mut not_read = |at: usize, end: usize, damage, is_cut| {
        let (path, at, bytes) = (path.to_owned(), at as u64, (end - at) as u64);
        unread.push(Unread { path, at, bytes, damage, is_cut, saved: None });
    };
    if !bytes.starts_with(FILE_HEAD) {
        // It had just been begun. What was cut off to nothing before is no news.
        if !bytes.is_empty() {
            not_read(0, bytes.len(), Damage::Short, is_last);
        }
        return unread;
    }
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        match record::read(rest) {
            Ok((record, record_bytes)) => {
                rebuild.record(record, record_bytes, bounds);
                at += record_bytes;
            }
            // What stands behind it was not synced: it was under way to the disk together with it.
            Err(damage) if is_last => {
                not_read(at, bytes.len(), damage, true);
                return unread;
            }
            Err(damage) => {
                let next = record::next_record(bytes, at + 1).unwrap_or(bytes.len());
                not_read(at, next, damage, false);
                at = next;
            }
        }
    }
    unread
}

/// Cuts the last file. Where whole records stand behind the place, it may be more than a crash, and what is cut off is
/// put beside it.
fn cut_off(path: &Path, bytes: &[u8], at: u64) -> io::Result<Option<PathBuf>> {
    let mut saved = None;
    let behind = usize::try_from(at).unwrap_or(usize::MAX);
    if record::next_record(bytes, behind.saturating_add(1)).is_some() {
        let beside = path.with_extension(format!("cut-{at}"));
        let mut file = File::create(&beside)?;
        file.write_all(bytes.get(behind..).unwrap_or_default())?;
        file.sync_all()?;
        saved = Some(beside);
    }
    let file = File::options().write(true).open(path)?;
    file.set_len(at)?;
    file.sync_all()?;
    Ok(saved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::batch::{FrameMemory, OpenBatch};
    use crate::hub::name::NameHasher;
    use crate::wire::envelope::{Event, Stamp, rfc3339};

    const BOUNDS: LogBounds = LogBounds { events_max: 100, bytes_max: 1 << 20, age_ms: 1000 };

    /// A folder that goes with the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("ringhub-journal-{name}-{}", std::process::id()));
            drop(fs::remove_dir_all(&path));
            Folder(path)
        }

        fn open(&self) -> Result<Opened, OpenError> {
            open(&self.0, 100, |_| Some(BOUNDS))
        }

        fn write(&self, number: u64, bytes: &[u8]) {
            fs::create_dir_all(&self.0).expect("a folder");
            fs::write(path_of(&self.0, number), [FILE_HEAD, bytes].concat()).expect("written");
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    fn events(seqs: std::ops::RangeInclusive<u64>) -> Vec<u8> {
        let stamp = Stamp { id: [b'i'; 36], timestamp: rfc3339(5) };
        let mut open = OpenBatch::default();
        for seq in seqs {
            open.push(&stamp, &Event { room: "a:b", kind: "k", seq, data: b"{}" }, None, 0);
        }
        let batch = open.seal(NameHasher::new(0).room("a:b"), &FrameMemory::default(), 100);
        let mut bytes = Vec::new();
        record::write_batch(&mut bytes, 9, &batch, &[]);
        bytes
    }

    fn seqs(opened: &Opened) -> Vec<u64> {
        let batches = opened.rebuilt.rooms.iter().flat_map(|room| &room.batches);
        batches.flat_map(|batch| batch.first_seq..=batch.last_seq()).collect()
    }

    #[test]
    fn a_torn_tail_is_cut_at_every_place_it_can_have_and_told() {
        let folder = Folder::new("torn");
        let whole = events(1..=2);
        let torn = events(3..=3);
        for end in 1..torn.len() {
            folder.write(1, &[&whole, &torn[..end]].concat());
            let opened = folder.open().expect("opened");
            assert_eq!(seqs(&opened), [1, 2], "{end}");
            let at = (FILE_HEAD.len() + whole.len()) as u64;
            let [unread] = &opened.unread[..] else { panic!("{:?}", opened.unread) };
            let told = (unread.at, unread.bytes, unread.damage, unread.is_cut, &unread.saved);
            assert_eq!(told, (at, end as u64, Damage::Short, true, &None));
            assert_eq!(fs::metadata(path_of(&folder.0, 1)).expect("there").len(), at);
        }
        for end in 0..FILE_HEAD.len() {
            fs::write(path_of(&folder.0, 2), &FILE_HEAD[..end]).expect("written");
            let opened = folder.open().expect("opened");
            assert_eq!((seqs(&opened), opened.unread.len()), (vec![1, 2], usize::from(end > 0)));
            drop(opened);
            assert!(folder.open().expect("opened").unread.is_empty(), "what was cut is told once");
        }
        fs::write(path_of(&folder.0, 2), [&FILE_HEAD[..5], &[0; 40]].concat()).expect("written");
        let opened = folder.open().expect("a block that never came");
        assert_eq!((seqs(&opened), opened.unread.len()), (vec![1, 2], 1));
    }

    #[test]
    fn what_is_cut_off_with_whole_records_in_it_is_put_aside() {
        let folder = Folder::new("aside");
        let mut middle = events(2..=2);
        middle[30] ^= 1;
        folder.write(1, &[events(1..=1), middle.clone(), events(3..=3)].concat());
        let opened = folder.open().expect("opened");
        assert_eq!(seqs(&opened), [1]);
        let saved = opened.unread[0].saved.as_ref().expect("put aside");
        assert_eq!(fs::read(saved).expect("read"), [middle, events(3..=3)].concat());
    }

    #[test]
    fn damage_in_an_older_file_costs_what_is_damaged_and_is_told() {
        let folder = Folder::new("damage");
        let mut middle = events(2..=2);
        middle[30] ^= 1;
        folder.write(1, &[events(1..=1), middle, events(3..=3)].concat());
        folder.write(2, &events(4..=4));
        let opened = folder.open().expect("opened");
        assert_eq!(seqs(&opened), [3, 4]);
        assert_eq!(opened.rebuilt.shortened, [Box::<str>::from("a:b")]);
        assert_eq!((opened.unread.len(), opened.unread[0].is_cut), (1, false));
    }

    #[test]
    fn a_journal_is_used_by_one_hub_at_a_time() {
        let folder = Folder::new("lock");
        let first = folder.open().expect("opened");
        assert!(matches!(folder.open(), Err(OpenError::Locked(_))));
        drop(first);
        folder.open().expect("opened again");
    }

    #[test]
    fn a_file_of_something_else_is_left_alone() {
        let folder = Folder::new("foreign");
        folder.write(1, &events(1..=1));
        let path = path_of(&folder.0, 2);
        fs::write(&path, b"ringhub journal 2, not for you").expect("written");
        assert!(matches!(folder.open(), Err(OpenError::Foreign(_))));
        assert_eq!(fs::read(&path).expect("there"), b"ringhub journal 2, not for you");
    }
}
