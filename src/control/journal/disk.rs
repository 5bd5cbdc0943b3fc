//! The real disk on io_uring: buffered files of glommio. Not its direct ones, which write whole blocks: the block with the end of what
//! was acknowledged would be written again with every group, and a crash in between could tear it.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use glommio::io::{BufferedFile, Directory, OpenOptions};

use super::super::runtime::sleep;
use super::files::path_of;
use super::writer::Disk;

/// A folder with files, of which one is written.
pub(super) struct Folder {
    path: PathBuf,
    newest: Option<BufferedFile>,
    started: Instant,
}

impl Folder {
    pub(super) fn new(path: PathBuf) -> Folder {
        Folder { path, newest: None, started: Instant::now() }
    }

    fn newest(&self) -> io::Result<&BufferedFile> {
        self.newest.as_ref().ok_or_else(|| io::Error::other("no file was begun"))
    }

    async fn sync_folder(&self) -> io::Result<()> {
        let folder = Directory::open(&self.path).await?;
        let synced = folder.sync().await;
        folder.close().await?;
        Ok(synced?)
    }
}

impl Disk for Folder {
    async fn create(&mut self, number: u64) -> io::Result<()> {
        if let Some(former) = self.newest.take()
            && let Err(error) = former.close().await
        {
            tracing::warn!(%error, "a file of the journal did not close well");
        }
        let path = path_of(&self.path, number);
        let file = OpenOptions::new().create(true).truncate(true).write(true).buffered_open(path).await?;
        self.newest = Some(file);
        self.sync_folder().await
    }

    async fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let file = self.newest()?;
        let mut written = 0;
        // The kernel may take a part; where the disk is full it says so at the next.
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            match file.write_at(rest.to_vec(), at + written as u64).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => written += count,
            }
        }
        Ok(())
    }

    async fn sync(&mut self) -> io::Result<()> {
        Ok(self.newest()?.fdatasync().await?)
    }

    async fn truncate(&mut self, bytes: u64) -> io::Result<()> {
        let file = self.newest()?;
        file.truncate(bytes).await?;
        Ok(file.fdatasync().await?)
    }

    async fn remove(&mut self, number: u64) -> io::Result<()> {
        Ok(glommio::io::remove(path_of(&self.path, number)).await?)
    }

    async fn read(&mut self, number: u64) -> io::Result<Vec<u8>> {
        let file = BufferedFile::open(path_of(&self.path, number)).await?;
        let mut bytes = Vec::new();
        let outcome = loop {
            match file.read_at(bytes.len() as u64, READ_BYTES).await {
                Ok(part) if part.is_empty() => break Ok(()),
                Ok(part) => bytes.extend_from_slice(&part),
                Err(error) => break Err(error),
            }
        };
        file.close().await?;
        outcome?;
        Ok(bytes)
    }

    async fn pause(&mut self, time: Duration) {
        sleep(time).await;
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// How much of an older file is read at a time.
const READ_BYTES: usize = 1 << 20;
