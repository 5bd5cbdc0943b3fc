//! The epoll set of a shard.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::super::token::Token;

pub(super) use rustix::event::epoll::{Event, EventFlags};

/// Events taken per wait, so that a turn is bounded; the kernel keeps the rest in the order in which they came.
const EVENTS_MAX: usize = 1024;

/// Sockets and what is waited for on each.
pub(super) struct Poller {
    epoll: OwnedFd,
    /// Of the last wait.
    events: Vec<Event>,
    /// Whether waits may be told in nanoseconds (`epoll_pwait2`, Linux 5.11). Old kernels and old seccomp profiles don't
    /// know that call; waits are whole milliseconds there, rounded up.
    is_exact: bool,
}

impl Poller {
    pub(super) fn new() -> io::Result<Poller> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Poller { epoll, events: Vec::with_capacity(EVENTS_MAX), is_exact: true })
    }

    /// Watches a descriptor that is not watched yet.
    pub(super) fn add(&self, descriptor: RawFd, token: Token, interest: EventFlags) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, borrow(&descriptor), epoll::EventData::new_u64(token.0), interest)?)
    }

    /// Watches it for something else. What is there already is told anew.
    pub(super) fn modify(&self, descriptor: RawFd, token: Token, interest: EventFlags) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, borrow(&descriptor), epoll::EventData::new_u64(token.0), interest)?)
    }

    /// Watches it no more. A descriptor that is closed needs that only if it was duplicated.
    pub(super) fn remove(&self, descriptor: RawFd) {
        if let Err(error) = epoll::delete(&self.epoll, borrow(&descriptor)) {
            debug_assert!(false, "a descriptor was not watched: {error}");
        }
    }

    /// Waits for an event: forever (`None`), not at all (zero), or as long as given. Returning early is not an error.
    pub(super) fn wait(&mut self, wait: Option<Duration>) -> io::Result<()> {
        self.events.clear();
        if self.is_exact {
            let timeout = wait.map(|wait| Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: wait.subsec_nanos().into(),
            });
            match epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => return Ok(()),
                Err(Errno::NOSYS | Errno::PERM) => self.is_exact = false,
                Err(error) => return Err(error.into()),
            }
        }
        self.wait_in_milliseconds(wait)
    }

    /// One of the events that the last wait found.
    #[inline]
    pub(super) fn event(&self, index: usize) -> Option<Event> {
        self.events.get(index).copied()
    }

    fn wait_in_milliseconds(&mut self, wait: Option<Duration>) -> io::Result<()> {
        let timeout = wait.map_or(-1, |wait| i32::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(i32::MAX));
        let room = self.events.spare_capacity_mut();
        let (place, count) = (room.as_mut_ptr().cast::<libc::epoll_event>(), room.len() as i32);
        // SAFETY: the room is for `count` events, whose layout is the kernel's in both crates.
        let result = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), place, count, timeout) };
        match usize::try_from(result) {
            // SAFETY: the kernel has filled so many events, which is no more than there is room for.
            Ok(filled) => unsafe { self.events.set_len(filled) },
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

fn borrow(descriptor: &RawFd) -> BorrowedFd<'_> {
    // SAFETY: the caller has the descriptor open, and keeps it so during the call that this is for.
    unsafe { BorrowedFd::borrow_raw(*descriptor) }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::super::super::token::Operation;
    use super::*;

    #[test]
    fn both_ways_to_wait_find_the_same() {
        let (mut outside, inside) = UnixStream::pair().unwrap();
        let mut poller = Poller::new().unwrap();
        let token = Token::of_index(Operation::Accept, 7);
        poller.add(inside.as_raw_fd(), token, EventFlags::IN).unwrap();
        outside.write_all(b"x").unwrap();
        for is_exact in [true, false] {
            poller.is_exact = is_exact;
            poller.wait(None).unwrap();
            let event = poller.event(0).unwrap();
            assert_eq!({ event.data }.u64(), token.0);
            assert!({ event.flags }.contains(EventFlags::IN) && poller.event(1).is_none());
        }
        poller.remove(inside.as_raw_fd());
        let began = Instant::now();
        poller.wait(Some(Duration::from_micros(1500))).unwrap();
        assert!(poller.event(0).is_none());
        assert!(began.elapsed() >= Duration::from_micros(1500), "a wait in milliseconds is not shorter than asked");
        assert!(!poller.is_exact);
        assert_eq!(size_of::<Event>(), size_of::<libc::epoll_event>());
        assert_eq!(align_of::<Event>(), align_of::<libc::epoll_event>());
    }
}
