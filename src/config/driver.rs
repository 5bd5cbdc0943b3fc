//! The choice of a driver, and what it comes to on this machine.

use std::io;

use super::Config;
use super::log::word_values;
use super::value::{Input, OptionValue};
use crate::ring::DriverKind;
use crate::ring::host::{is_forbidden, probe_ring};

/// What shards ask the kernel by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverChoice {
    /// io_uring, and epoll where io_uring is forbidden.
    Auto,
    /// io_uring, or no hub.
    Uring,
    /// epoll.
    Epoll,
}

word_values!(DriverChoice, "auto, uring or epoll", Auto = "auto", Uring = "uring", Epoll = "epoll");

impl DriverChoice {
    /// The driver, where the kernel answered the attempt to set a ring up like that. Only what is forbidden is done
    /// without: other failures have a remedy, which would be missed if the hub ran all the same.
    pub fn driver(self, ring: &io::Result<()>) -> DriverKind {
        match (self, ring) {
            (DriverChoice::Epoll, _) => DriverKind::Epoll,
            (DriverChoice::Auto, Err(error)) if is_forbidden(error) => DriverKind::Epoll,
            (DriverChoice::Auto | DriverChoice::Uring, _) => DriverKind::Uring,
        }
    }
}

impl Config {
    /// The driver on this machine, and why it is not io_uring where that was to be tried.
    pub fn driver(&self) -> (DriverKind, Option<io::Error>) {
        if self.shards.driver != DriverChoice::Auto {
            return (self.shards.driver.driver(&Ok(())), None);
        }
        let ring = probe_ring(self.ring.entries, self.ring.completions);
        match self.shards.driver.driver(&ring) {
            DriverKind::Uring => (DriverKind::Uring, None),
            DriverKind::Epoll => (DriverKind::Epoll, ring.err()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epoll_stands_in_only_for_what_is_forbidden_and_only_where_that_is_left_open() {
        use DriverChoice::{Auto, Epoll, Uring};
        let answered = |choice: DriverChoice, errno| choice.driver(&Err(io::Error::from_raw_os_error(errno)));
        for errno in [libc::EPERM, libc::EACCES, libc::ENOSYS] {
            assert_eq!(answered(Auto, errno), DriverKind::Epoll);
            assert_eq!(answered(Uring, errno), DriverKind::Uring);
        }
        for errno in [libc::ENOMEM, libc::EINVAL, libc::EMFILE, libc::ENFILE] {
            assert_eq!(answered(Auto, errno), DriverKind::Uring, "{errno} has a remedy");
        }
        assert_eq!((Auto.driver(&Ok(())), Epoll.driver(&Ok(()))), (DriverKind::Uring, DriverKind::Epoll));
    }
}
