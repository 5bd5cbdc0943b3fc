//! How other threads wake the control plane.
//!
//! glommio's own wakers may be used from other threads, but giving one up there races with the end of its task
//! (glommio 0.9 decrements the count and takes a new reference afterwards; the task may be freed in between). So none of
//! them leaves this thread: a future that another thread completes is polled through [`Remote`] with a waker of ours,
//! which queues itself and rings the [`Door`]; the porter (see `porter.rs`), a task that reads the door's socket, then
//! wakes the local task.

use std::future::Future;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use crossbeam::queue::SegQueue;

/// Where other threads knock. One byte in a socket pair wakes the porter; a flag saves the system call while it is awake.
#[derive(Debug)]
pub(crate) struct Door {
    socket: UnixStream,
    awake: AtomicBool,
    closed: AtomicBool,
    stop: AtomicBool,
    /// Every sleeper is in here once at most, so it is bounded by the number of requests in flight.
    woken: SegQueue<Arc<Sleeper>>,
}

impl Door {
    /// The door, and the end of its socket that the porter reads.
    pub(crate) fn new() -> io::Result<(Arc<Door>, OwnedFd)> {
        let (outside, inside) = UnixStream::pair()?;
        outside.set_nonblocking(true)?;
        let door = Door {
            socket: outside,
            awake: AtomicBool::new(true),
            closed: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            woken: SegQueue::new(),
        };
        Ok((Arc::new(door), inside.into()))
    }

    /// Wakes the porter if it sleeps. To be called after what it should find was put in place.
    pub(crate) fn ring(&self) {
        if self.awake.swap(true, Ordering::SeqCst) {
            return;
        }
        // A full socket has bytes enough to wake the porter, and a broken one has no porter any more.
        if let Err(error) = (&self.socket).write(&[1]) {
            tracing::trace!(%error, "the control plane's door could not be rung");
        }
    }

    /// The porter is about to sleep; it has to look around once more after this.
    pub(crate) fn sleep(&self) {
        self.awake.store(false, Ordering::SeqCst);
    }

    /// The porter is up.
    pub(crate) fn wake(&self) {
        self.awake.store(true, Ordering::SeqCst);
    }

    /// Asks the control plane to end.
    pub(crate) fn request_stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.ring();
    }

    /// True once the control plane was asked to end.
    pub(crate) fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// From now on nobody is behind the door.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// True when nobody is behind the door.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst) || self.stop_requested()
    }

    /// Wakes the local tasks whose futures other threads completed; true if there was one.
    pub(crate) fn wake_sleepers(&self) -> bool {
        let mut any = false;
        while let Some(sleeper) = self.woken.pop() {
            any = true;
            // First this, then the wake: a completion in between queues it again.
            sleeper.queued.store(false, Ordering::SeqCst);
            if let Some(waker) = sleeper.take() {
                waker.wake();
            }
        }
        any
    }
}

/// A future that another thread completes, awaited on the control plane.
pub(crate) struct Remote<F> {
    future: F,
    sleeper: Arc<Sleeper>,
}

impl<F: Future + Unpin> Remote<F> {
    /// Awaits `future` with a waker that may be used on any thread.
    pub(crate) fn new(future: F, door: &Arc<Door>) -> Remote<F> {
        let sleeper = Sleeper { door: Arc::clone(door), queued: AtomicBool::new(false), local: Mutex::new(None) };
        Remote { future, sleeper: Arc::new(sleeper) }
    }
}

impl<F: Future + Unpin> Future for Remote<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.sleeper.put(context.waker().clone());
        let waker = Waker::from(Arc::clone(&self.sleeper));
        Pin::new(&mut self.future).poll(&mut Context::from_waker(&waker))
    }
}

impl<F> Drop for Remote<F> {
    fn drop(&mut self) {
        // The other thread may hold the sleeper longer than this, and must not be the one to drop a local waker.
        drop(self.sleeper.take());
    }
}

/// What stands between another thread and a local task. Only this thread touches `local`.
#[derive(Debug)]
struct Sleeper {
    door: Arc<Door>,
    queued: AtomicBool,
    local: Mutex<Option<Waker>>,
}

impl Sleeper {
    fn put(&self, waker: Waker) {
        let former = self.local.lock().unwrap_or_else(PoisonError::into_inner).replace(waker);
        drop(former);
    }

    fn take(&self) -> Option<Waker> {
        self.local.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::SeqCst) {
            let door = Arc::clone(&self.door);
            door.woken.push(self);
            door.ring();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::sync::atomic::AtomicUsize;

    use futures_channel::oneshot;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_completion_by_another_thread_wakes_the_local_task_through_the_door() {
        let (door, inside) = Door::new().unwrap();
        let mut inside = UnixStream::from(inside);
        let (sender, receiver) = oneshot::channel::<u8>();
        let mut remote = Remote::new(receiver, &door);
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut context = Context::from_waker(&waker);
        assert!(Pin::new(&mut remote).poll(&mut context).is_pending());

        door.sleep();
        std::thread::spawn(move || sender.send(5).unwrap()).join().unwrap();
        let mut byte = [0];
        inside.read_exact(&mut byte).unwrap();
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
        assert!(door.wake_sleepers());
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert_eq!(Pin::new(&mut remote).poll(&mut context), Poll::Ready(Ok(5)));
        assert!(!door.wake_sleepers());
    }

    #[test]
    fn an_abandoned_wait_leaves_no_local_waker_behind() {
        let (door, _inside) = Door::new().unwrap();
        let (sender, receiver) = oneshot::channel::<u8>();
        let mut remote = Remote::new(receiver, &door);
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        assert!(Pin::new(&mut remote).poll(&mut Context::from_waker(&waker)).is_pending());
        drop(waker);
        drop(remote);
        assert_eq!(Arc::strong_count(&count), 1);
        assert!(sender.send(1).is_err());
    }
}
