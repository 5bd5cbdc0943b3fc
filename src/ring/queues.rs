//! The ring itself: set-up with fallbacks, the submission queue that never loses an entry, the one call that enters.
//!
//! `io_uring_enter` is called here directly, because the ring is entered by its registered index (no look-up of the
//! descriptor per turn) and always with GETEVENTS: the kernel runs what it deferred for us only then.

use std::collections::VecDeque;
use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd as _;
use std::ptr;
use std::time::Duration;

use io_uring::{EnterFlags, IoUring, cqueue, squeue};

use super::clock::monotonic_us;

const IORING_REGISTER_RING_FDS: libc::c_uint = 20;
const IORING_UNREGISTER_RING_FDS: libc::c_uint = 21;

/// The submission and completion queues of one ring, used by the thread that made it.
pub(super) struct Queues {
    ring: IoUring,
    /// The ring's index among the thread's registered rings; none where the kernel refused.
    registered: Option<u32>,
    /// Entries that found the submission queue full and couldn't be flushed (the kernel was out of memory or of room
    /// for completions). Bounded by what the connections may have under way: three entries each.
    backlog: VecDeque<squeue::Entry>,
    /// Calls of `io_uring_enter`.
    pub(super) enters: u64,
    /// How often the submission queue had to be flushed before the turn's end.
    pub(super) submission_full: u64,
    /// Microseconds spent waiting, those included in which the thread looked for completions.
    pub(super) idle_us: u64,
    waiting: Waiting,
}

/// How a ring waits where there is nothing to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Waiting {
    /// It looks for completions for so long before it sleeps.
    pub(super) busy_poll_us: u32,
    /// It sleeps for at least so long, unless [`WORTH_WAKING`] completions are there.
    pub(super) min_wait_us: u32,
}

/// Completions that end a wait before its least time is over.
const WORTH_WAKING: u32 = 64;
/// Looks at the completion queue between two at the clock, which costs twenty times as much.
const LOOKS: usize = 32;

/// `struct io_uring_getevents_arg`.
#[repr(C)]
struct WaitArgument {
    sigmask: u64,
    sigmask_bytes: u32,
    min_wait_us: u32,
    timespec: u64,
}

/// `struct io_uring_rsrc_update`.
#[repr(C)]
struct RingUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

impl Queues {
    /// Needs Linux 6.1. The error keeps the kernel's errno: EPERM (switched off or forbidden by seccomp), ENOSYS,
    /// EINVAL (too old), ENOMEM (locked memory).
    /// A least time to wait is left out where the kernel doesn't know it (before 6.12).
    pub(super) fn new(entries: u32, completions: u32, mut waiting: Waiting) -> io::Result<Queues> {
        let mut builder = IoUring::builder();
        builder
            .dontfork()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_clamp()
            .setup_cqsize(completions);
        if waiting.busy_poll_us > 0 {
            // Deferred work is done in a call only; the flag says when there is some.
            builder.setup_taskrun_flag();
        }
        let plain = builder.clone();
        builder.setup_no_sqarray();
        let ring = match builder.build(entries) {
            // Before 6.6 the submission queue needs its array of indexes.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => plain.build(entries)?,
            other => other?,
        };
        if !ring.params().is_feature_min_timeout() {
            waiting.min_wait_us = 0;
        }
        let registered = register(&ring);
        Ok(Queues { ring, registered, backlog: VecDeque::new(), enters: 0, submission_full: 0, idle_us: 0, waiting })
    }

    /// Queues an entry; when the queue is full, what stands in it is submitted first.
    ///
    /// # Safety
    /// Memory that the entry points to has to stay valid until its completion was taken.
    #[inline]
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) {
        if self.backlog.is_empty() {
            // SAFETY: the caller vouches for the entry's memory.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            self.submission_full += 1;
            // A failure shows at the turn's own call as well, where it is reported.
            if self.call(0, EnterFlags::empty(), None).is_ok() {
                // SAFETY: as above.
                if unsafe { self.ring.submission().push(entry) }.is_ok() {
                    return;
                }
            }
        }
        self.backlog.push_back(entry.clone());
    }

    /// Submits everything and waits for a completion: forever (`None`), not at all (zero), or as long as given.
    /// Returning early is not an error.
    pub(super) fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        self.unload_backlog();
        let wait = if self.backlog.is_empty() { wait } else { Some(Duration::ZERO) };
        let result = match wait {
            Some(Duration::ZERO) => self.call(0, EnterFlags::GETEVENTS, None),
            wait => self.submit_and_wait(wait),
        };
        match result {
            Ok(()) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // ETIME: the wait is over. EINTR: a signal. EBUSY: completions have to be taken before the kernel accepts
                // more. EAGAIN: it is out of memory for requests; those not taken stay queued for the next turn.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Work and waiting are told apart by submitting first: most sends are done by that, and there is nothing to wait for.
    fn submit_and_wait(&mut self, wait: Option<Duration>) -> io::Result<()> {
        if !self.ring.submission().is_empty() {
            self.call(0, EnterFlags::GETEVENTS, None)?;
            if !self.ring.completion().is_empty() {
                return Ok(());
            }
        }
        let began_us = monotonic_us();
        let result = match self.waiting {
            Waiting { busy_poll_us: 1.., .. } => self.look_and_wait(began_us, wait),
            Waiting { min_wait_us: 1.., .. } => self.call(WORTH_WAKING, EnterFlags::GETEVENTS, wait),
            _ => self.call(1, EnterFlags::GETEVENTS, wait),
        };
        self.idle_us += monotonic_us().saturating_sub(began_us);
        result
    }

    /// Stays awake for what comes soon: being woken takes longer than many a round trip. The kernel is called when it has
    /// work that it deferred, which is where completions come from.
    fn look_and_wait(&mut self, began_us: u64, wait: Option<Duration>) -> io::Result<()> {
        let budget = Duration::from_micros(self.waiting.busy_poll_us.into());
        let budget_us = wait.map_or(budget, |wait| wait.min(budget)).as_micros() as u64;
        loop {
            for _ in 0..LOOKS {
                if self.ring.submission().taskrun() {
                    self.call(0, EnterFlags::GETEVENTS, None)?;
                }
                if !self.ring.completion().is_empty() {
                    return Ok(());
                }
                std::hint::spin_loop();
            }
            let looked_us = monotonic_us().saturating_sub(began_us);
            if looked_us >= budget_us {
                let rest = wait.map(|wait| wait.saturating_sub(Duration::from_micros(looked_us)));
                return if rest == Some(Duration::ZERO) { Ok(()) } else { self.call(1, EnterFlags::GETEVENTS, rest) };
            }
        }
    }

    /// The next completion.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<cqueue::Entry> {
        self.ring.completion().next()
    }

    /// For registering buffers.
    pub(super) fn submitter(&self) -> io_uring::Submitter<'_> {
        self.ring.submitter()
    }

    fn unload_backlog(&mut self) {
        while let Some(entry) = self.backlog.front() {
            // SAFETY: whoever queued the entry vouched for its memory until its completion.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                self.backlog.pop_front();
            } else if self.call(0, EnterFlags::empty(), None).is_err() || self.ring.submission().is_full() {
                return;
            }
        }
    }

    #[inline]
    fn call(&mut self, completions_min: u32, flags: EnterFlags, wait: Option<Duration>) -> io::Result<()> {
        self.enters += 1;
        let submit = self.ring.submission().len() as u32;
        let (fd, mut flags) = match self.registered {
            Some(index) => (index as libc::c_int, flags | EnterFlags::REGISTERED_RING),
            None => (self.ring.as_raw_fd(), flags),
        };
        let timespec = wait.map(|wait| libc::timespec {
            tv_sec: libc::time_t::try_from(wait.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        });
        // Whoever waits for a time does not want to wait for longer.
        let wait_us = wait.map_or(u32::MAX, |wait| u32::try_from(wait.as_micros()).unwrap_or(u32::MAX));
        let min_wait_us = if completions_min > 1 { self.waiting.min_wait_us.min(wait_us) } else { 0 };
        let argument = (timespec.is_some() || min_wait_us > 0).then(|| WaitArgument {
            sigmask: 0,
            sigmask_bytes: 0,
            min_wait_us,
            timespec: timespec.as_ref().map_or(0, |timespec| ptr::from_ref(timespec) as u64),
        });
        let (argument, argument_bytes) = match &argument {
            Some(argument) => {
                flags |= EnterFlags::EXT_ARG;
                (ptr::from_ref(argument), size_of::<WaitArgument>())
            }
            None => (ptr::null(), 0),
        };
        // SAFETY: the descriptor or index is this ring's; the argument, when there is one, and the time it points to live
        // until the call returns; every entry's memory is valid by the contract of `push`.
        let result = unsafe {
            libc::syscall(libc::SYS_io_uring_enter, fd, submit, completions_min, flags.bits(), argument, argument_bytes)
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl Drop for Queues {
    fn drop(&mut self) {
        // A registered ring is kept alive by its thread, and with it every socket that it waits for.
        if let Some(index) = self.registered {
            let mut update = RingUpdate { offset: index, reserved: 0, data: 0 };
            let result = register_call(&self.ring, IORING_UNREGISTER_RING_FDS, &mut update);
            debug_assert!(result >= 0, "the index was given by the kernel");
        }
    }
}

/// Registers the ring with its thread. Failing is no harm: the ring is then entered by its descriptor.
fn register(ring: &IoUring) -> Option<u32> {
    let mut update = RingUpdate { offset: u32::MAX, reserved: 0, data: ring.as_raw_fd() as u64 };
    (register_call(ring, IORING_REGISTER_RING_FDS, &mut update) == 1).then_some(update.offset)
}

fn register_call(ring: &IoUring, operation: libc::c_uint, update: &mut RingUpdate) -> libc::c_long {
    // SAFETY: both operations read and write one update structure, which is borrowed for the call.
    unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            operation,
            ptr::from_mut(update),
            1 as libc::c_uint,
        )
    }
}
