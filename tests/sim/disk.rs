//! A disk that is slow, fails now and then, and loses what it was not made to keep when the power goes.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;
use std::time::Duration;

use fastrand::Rng;
use ringhub::control::journal::files;
use ringhub::control::journal::writer::Disk;

/// How often operations fail, one in so many; 0 for never.
#[derive(Debug, Clone, Copy, Default)]
pub struct Trouble {
    pub write: u32,
    pub sync: u32,
    pub truncate: u32,
    pub create: u32,
    pub remove: u32,
}

/// The end of the process: what becomes of what was written and not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The kernel has it.
    Kill,
    /// It may be lost, from any place on, or be garbage.
    Power,
}

#[derive(Debug, Default)]
struct File {
    bytes: Vec<u8>,
    /// What outlives a power failure.
    synced: Vec<u8>,
}

#[derive(Debug)]
struct State {
    rng: Rng,
    files: BTreeMap<u64, File>,
    newest: u64,
    trouble: Trouble,
}

/// Clones are the same disk.
#[derive(Debug, Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

impl SimDisk {
    pub fn new(seed: u64) -> SimDisk {
        let rng = Rng::with_seed(seed);
        let state = State { rng, files: BTreeMap::new(), newest: 0, trouble: Trouble::default() };
        SimDisk(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("one thread")
    }

    pub fn set_trouble(&self, trouble: Trouble) {
        self.state().trouble = trouble;
    }

    pub fn files(&self) -> usize {
        self.state().files.len()
    }

    pub fn bytes(&self) -> usize {
        self.state().files.values().map(|file| file.bytes.len()).sum()
    }

    /// The process ends, and with it what it had in hand.
    pub fn crash(&self, crash: Crash) {
        let mut state = self.state();
        let State { rng, files, .. } = &mut *state;
        for file in files.values_mut() {
            assert!(file.bytes.starts_with(&file.synced), "nothing is written anew");
            let safe = file.synced.len();
            if crash == Crash::Power && file.bytes.len() > safe {
                file.bytes.truncate(rng.usize(safe..=file.bytes.len()));
                // Blocks get to the disk in any order: one of those that were not synced may be missing.
                if file.bytes.len() > safe && rng.bool() {
                    let from = rng.usize(safe..file.bytes.len());
                    let to = rng.usize(from..file.bytes.len()) + 1;
                    file.bytes[from..to].fill(0);
                }
            }
            file.synced.clone_from(&file.bytes);
        }
    }

    /// Writes all files to a real folder, for the journal to be read from there.
    pub fn put_into(&self, folder: &Path) {
        for (number, file) in &self.state().files {
            std::fs::write(files::path_of(folder, *number), &file.bytes).expect("written");
        }
    }

    /// Takes them back, with what was cut off gone.
    pub fn take_from(&self, folder: &Path) {
        for (number, file) in &mut self.state().files {
            file.bytes = std::fs::read(files::path_of(folder, *number)).expect("read");
            file.synced.clone_from(&file.bytes);
        }
    }

    async fn delay(&self) {
        let mut turns = self.state().rng.u32(0..4);
        poll_fn(|_| {
            turns = turns.saturating_sub(1);
            if turns == 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn fails(&self, of: impl Fn(&Trouble) -> u32) -> io::Result<()> {
        let mut state = self.state();
        let often = of(&state.trouble);
        if often > 0 && state.rng.u32(..often) == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl Disk for SimDisk {
    async fn create(&mut self, number: u64) -> io::Result<()> {
        self.delay().await;
        self.fails(|trouble| trouble.create)?;
        let mut state = self.state();
        state.files.insert(number, File::default());
        state.newest = number;
        Ok(())
    }

    async fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let failing = self.fails(|trouble| trouble.write);
        let parts = self.state().rng.usize(1..4);
        let end = if failing.is_err() { self.state().rng.usize(0..=bytes.len()) } else { bytes.len() };
        let mut at = at as usize;
        for part in bytes[..end].chunks(bytes.len().div_ceil(parts).max(1)) {
            self.delay().await;
            let mut state = self.state();
            let newest = state.newest;
            let file = state.files.get_mut(&newest).expect("a file");
            file.bytes.resize(file.bytes.len().max(at + part.len()), 0);
            file.bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        failing
    }

    async fn sync(&mut self) -> io::Result<()> {
        self.delay().await;
        self.delay().await;
        self.fails(|trouble| trouble.sync)?;
        let mut state = self.state();
        let newest = state.newest;
        let file = state.files.get_mut(&newest).expect("a file");
        file.synced.clone_from(&file.bytes);
        Ok(())
    }

    async fn truncate(&mut self, bytes: u64) -> io::Result<()> {
        self.delay().await;
        self.fails(|trouble| trouble.truncate)?;
        let mut state = self.state();
        let newest = state.newest;
        let file = state.files.get_mut(&newest).expect("a file");
        file.bytes.truncate(bytes as usize);
        // What was not synced may be so for good; only what is cut off is certain.
        file.synced.truncate(bytes as usize);
        Ok(())
    }

    async fn remove(&mut self, number: u64) -> io::Result<()> {
        self.delay().await;
        self.fails(|trouble| trouble.remove)?;
        assert!(self.state().files.remove(&number).is_some(), "a file is removed once");
        Ok(())
    }

    async fn read(&mut self, number: u64) -> io::Result<Vec<u8>> {
        self.delay().await;
        Ok(self.state().files[&number].bytes.clone())
    }

    async fn pause(&mut self, _: Duration) {
        self.delay().await;
        self.delay().await;
    }

    fn now_us(&self) -> u64 {
        0
    }
}
