//! The real disk without io_uring: the journal's own thread waits for it, which is what that thread is for. What a call
//! promises is what it promises in [`super::disk`].

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::super::runtime::sleep;
use super::files::path_of;
use super::writer::Disk;

/// A folder with files, of which one is written.
pub(super) struct Folder {
    path: PathBuf,
    newest: Option<File>,
    started: Instant,
}

impl Folder {
    pub(super) fn new(path: PathBuf) -> Folder {
        Folder { path, newest: None, started: Instant::now() }
    }

    fn newest(&self) -> io::Result<&File> {
        self.newest.as_ref().ok_or_else(|| io::Error::other("no file was begun"))
    }
}

impl Disk for Folder {
    async fn create(&mut self, number: u64) -> io::Result<()> {
        self.newest = Some(File::create(path_of(&self.path, number))?);
        File::open(&self.path)?.sync_all()
    }

    async fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.newest()?.write_all_at(bytes, at)
    }

    async fn sync(&mut self) -> io::Result<()> {
        self.newest()?.sync_data()
    }

    async fn truncate(&mut self, bytes: u64) -> io::Result<()> {
        let file = self.newest()?;
        file.set_len(bytes)?;
        file.sync_data()
    }

    async fn remove(&mut self, number: u64) -> io::Result<()> {
        fs::remove_file(path_of(&self.path, number))
    }

    async fn read(&mut self, number: u64) -> io::Result<Vec<u8>> {
        fs::read(path_of(&self.path, number))
    }

    async fn pause(&mut self, time: Duration) {
        sleep(time).await;
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}
