//! How other threads wake a shard that waits in the kernel.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// An eventfd with a flag before it, so that a shard which is awake anyway costs its callers no system call.
///
/// The shard calls [`Doorbell::sleep`] before it waits and looks into its queues *after* that; a caller pushes first and
/// rings then. Either the shard sees the push or the caller sees the sleeper, so no wake-up is lost.
#[derive(Debug)]
pub struct Doorbell {
    /// None in the simulation, where every shard gets its turn anyway.
    eventfd: Option<File>,
    awake: AtomicBool,
}

impl Doorbell {
    /// A bell that a ring can wait for.
    pub fn eventfd() -> io::Result<Doorbell> {
        // SAFETY: no pointers are passed; the result is checked before it is owned.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and is owned by no one else.
        let eventfd = unsafe { File::from_raw_fd(fd) };
        Ok(Doorbell { eventfd: Some(eventfd), awake: AtomicBool::new(true) })
    }

    /// A bell for the simulation: rings nowhere.
    pub fn silent() -> Doorbell {
        Doorbell { eventfd: None, awake: AtomicBool::new(true) }
    }

    /// Wakes the shard if it sleeps. To be called after what it should find was pushed.
    pub fn ring(&self) {
        if self.awake.swap(true, Ordering::SeqCst) {
            return;
        }
        if let Some(mut eventfd) = self.eventfd.as_ref() {
            // The counter can only be full (EAGAIN) when it is set already, which is all that is wanted.
            if let Err(error) = eventfd.write(&1u64.to_ne_bytes()) {
                debug_assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            }
        }
    }

    /// Announces that the shard is about to wait; look into the queues once more after this.
    pub fn sleep(&self) {
        self.awake.store(false, Ordering::SeqCst);
    }

    /// Takes back [`Doorbell::sleep`]; also after every wait.
    pub fn wake(&self) {
        self.awake.store(true, Ordering::SeqCst);
    }

    /// Resets the counter after the driver saw it readable.
    pub fn drain(&self) {
        if let Some(mut eventfd) = self.eventfd.as_ref() {
            let mut counter = [0u8; 8];
            // EAGAIN: someone else was faster, or it was a stale wake-up.
            if let Err(error) = eventfd.read(&mut counter) {
                debug_assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            }
        }
    }

    /// What the driver waits on; none in the simulation.
    pub fn descriptor(&self) -> Option<RawFd> {
        self.eventfd.as_ref().map(|file| file.as_raw_fd())
    }
}
