//! Accepting: so much per turn, and with a rest where descriptors have run out.

use std::os::fd::IntoRawFd as _;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::super::clock::monotonic_us;
use super::super::listeners::{PAUSE_US, Remedy};
use super::super::token::{Operation, Token};
use super::super::{Completion, Socket};
use super::poller::EventFlags;
use super::{Epoll, borrow};

/// Connections that one listener may accept in a turn.
const ACCEPTS_PER_TURN: usize = 64;

impl Epoll {
    pub(super) fn watch_listener(&mut self, index: usize) {
        let Some(listener) = self.listeners.get_mut(index) else { return };
        let Some(descriptor) = listener.descriptor() else { return };
        // Level-triggered, so that what a turn leaves is told again; and where shards share a listener, not to all of them.
        let token = Token::of_index(Operation::Accept, index as u32);
        let added = self.poller.add(descriptor, token, EventFlags::IN | EventFlags::EXCLUSIVE);
        listener.paused_until_us = match added {
            Ok(()) => None,
            // The kernel is out of memory or of room for what is watched: the same as a failure to accept.
            Err(_) => {
                self.figures.accept_failures += 1;
                Some(monotonic_us() + PAUSE_US)
            }
        };
    }

    pub(super) fn accept(&mut self, index: usize, completions: &mut Vec<Completion>) {
        let Some(listener) = self.listeners.get_mut(index) else { return };
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(descriptor) = listener.descriptor() else { return };
            self.figures.enters += 1;
            match rustix::net::accept_with(borrow(&Socket(descriptor)), SocketFlags::CLOEXEC) {
                Ok(socket) => {
                    let socket = Socket(socket.into_raw_fd());
                    completions.push(Completion::Accepted { listener: listener.number, socket });
                }
                Err(Errno::AGAIN) => return,
                Err(error) => {
                    self.figures.accept_failures += 1;
                    let remedy = Remedy::of(error.raw_os_error());
                    if remedy == Remedy::Shed {
                        self.figures.accept_failures += u64::from(listener.shed(&mut self.spare));
                    }
                    if remedy != Remedy::Again {
                        self.poller.remove(descriptor);
                        listener.paused_until_us = Some(monotonic_us() + PAUSE_US);
                        return;
                    }
                }
            }
        }
    }

    /// Listens again where accepting has rested for long enough, and shortens the wait to the next such moment.
    pub(super) fn resume(&mut self, mut wait: Option<Duration>) -> Option<Duration> {
        if self.listeners.iter().all(|listener| listener.paused_until_us.is_none()) {
            return wait;
        }
        let now_us = monotonic_us();
        for index in 0..self.listeners.len() {
            let Some(until_us) = self.listeners[index].paused_until_us else { continue };
            if until_us <= now_us {
                self.watch_listener(index);
            } else {
                let rest = Duration::from_micros(until_us - now_us);
                wait = Some(wait.map_or(rest, |wait| wait.min(rest)));
            }
        }
        wait
    }
}
