//! Readiness of many sockets: an epoll set of level-triggered descriptors, and a way to wake it from another thread.
//!
//! Waits are exact to the timer's slack, not to the millisecond (`epoll_pwait2`, Linux 5.11): an open loop's events
//! have to go out when they are due.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;

/// The key that no connection has: the waker's.
const WAKE: u64 = u64::MAX;
/// Events taken per wait; more come with the next one.
const EVENTS_MAX: usize = 1024;

/// What became possible on a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Readiness {
    /// The key given to [`Poller::add`].
    pub(crate) key: usize,
    /// Bytes, an end or an error can be read.
    pub(crate) readable: bool,
    /// There is room to write again, or the connect is done.
    pub(crate) writable: bool,
}

/// An epoll set. Descriptors leave it by being closed.
pub(crate) struct Poller {
    epoll: OwnedFd,
    waker: Waker,
}

/// What a wait found. It belongs to the thread that waits.
pub(crate) struct Ready {
    events: Vec<epoll::Event>,
    found: Vec<Readiness>,
}

impl Ready {
    pub(crate) fn new() -> Ready {
        Ready { events: Vec::with_capacity(EVENTS_MAX), found: Vec::with_capacity(EVENTS_MAX) }
    }

    /// Takes everything out.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Readiness> + '_ {
        self.found.drain(..)
    }
}

/// Wakes the [`Poller`] it came from.
#[derive(Debug, Clone)]
pub(crate) struct Waker(Arc<OwnedFd>);

impl Poller {
    pub(crate) fn new() -> io::Result<Poller> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let waker = Waker(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?));
        epoll::add(&epoll, &*waker.0, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        Ok(Poller { epoll, waker })
    }

    pub(crate) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Watches a socket for reading, and for writing as well if `writable`.
    pub(crate) fn add(&self, source: impl AsFd, key: usize, writable: bool) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, source, epoll::EventData::new_u64(key as u64), interest(writable))?)
    }

    /// Changes whether writing is watched.
    pub(crate) fn modify(&self, source: impl AsFd, key: usize, writable: bool) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, source, epoll::EventData::new_u64(key as u64), interest(writable))?)
    }

    /// Waits for readiness at most `timeout`; what became ready replaces the content of `ready`.
    pub(crate) fn wait(&self, ready: &mut Ready, timeout: Duration) -> io::Result<()> {
        ready.found.clear();
        ready.events.clear();
        let timeout =
            Timespec { tv_sec: timeout.as_secs().min(3600) as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut ready.events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &ready.events {
            // The record is packed: copies, not references.
            let (flags, key) = ({ event.flags }, { event.data }.u64());
            if key == WAKE {
                self.waker.drain()?;
                continue;
            }
            let ended = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP | epoll::EventFlags::RDHUP);
            ready.found.push(Readiness {
                key: key as usize,
                readable: ended || flags.contains(epoll::EventFlags::IN),
                writable: ended || flags.contains(epoll::EventFlags::OUT),
            });
        }
        Ok(())
    }
}

impl Waker {
    /// Ends the current or the next wait.
    pub(crate) fn wake(&self) -> io::Result<()> {
        match rustix::io::write(&*self.0, &1u64.to_ne_bytes()) {
            // The counter is full: it is awake.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn drain(&self) -> io::Result<()> {
        match rustix::io::read(&*self.0, &mut [0u8; 8]) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn interest(writable: bool) -> epoll::EventFlags {
    let read = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
    if writable { read | epoll::EventFlags::OUT } else { read }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_socket_is_reported_with_its_key_once_it_can_be_read() {
        let poller = Poller::new().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        poller.add(&near, 7, false).unwrap();
        let mut ready = Ready::new();
        poller.wait(&mut ready, Duration::from_micros(500)).unwrap();
        assert_eq!(ready.drain().count(), 0);
        far.write_all(b"x").unwrap();
        poller.wait(&mut ready, Duration::from_secs(5)).unwrap();
        assert_eq!(ready.drain().collect::<Vec<_>>(), [Readiness { key: 7, readable: true, writable: false }]);
        poller.modify(&near, 7, true).unwrap();
        poller.wait(&mut ready, Duration::from_secs(5)).unwrap();
        assert_eq!(ready.drain().collect::<Vec<_>>(), [Readiness { key: 7, readable: true, writable: true }]);
    }

    #[test]
    fn another_thread_can_end_the_wait() {
        let poller = Poller::new().unwrap();
        let waker = poller.waker();
        let thread = std::thread::spawn(move || waker.wake());
        let begin = std::time::Instant::now();
        poller.wait(&mut Ready::new(), Duration::from_secs(20)).unwrap();
        assert!(begin.elapsed() < Duration::from_secs(10));
        thread.join().unwrap().unwrap();
    }
}
