//! What the control plane and the journal run on: glommio, and tokio on one thread where io_uring is forbidden, which
//! glommio can't do without.
//!
//! Everything else in `control` names only this module: an executor on the thread that made it, tasks that stay on it,
//! timers, and sockets made of descriptors. Which of the two it is was decided when the thread began.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use glommio::{GlommioError, LocalExecutor, LocalExecutorBuilder, Placement, ReactorErrorKind};
use rustix::thread::CpuSet;
use tokio::task::LocalSet;

use super::StartError;
use crate::ring::DriverKind;

mod socket;

pub(crate) use socket::{Ending, Listener, Socket};

/// glommio allocates at least this much for direct I/O and locks it; the control plane's sockets need none of it.
const IO_MEMORY_BYTES: usize = 64 * 1024;
/// Requests to the kernel that may wait in each of the executor's three rings.
const RING_DEPTH: usize = 128;

thread_local! {
    /// Which executor runs on this thread.
    static KIND: Cell<DriverKind> = const { Cell::new(DriverKind::Uring) };
    /// The panic of a task, and who passes it on.
    static PANIC: Cell<Option<Box<dyn Any + Send>>> = const { Cell::new(None) };
    static MAIN: RefCell<Option<Waker>> = const { RefCell::new(None) };
}

fn is_glommio() -> bool {
    KIND.get() == DriverKind::Uring
}

/// An executor of the thread that makes it.
pub(crate) enum Executor {
    Glommio(LocalExecutor),
    Tokio(tokio::runtime::Runtime),
}

impl Executor {
    /// `cpu` is the processor to run on; none leaves it to the kernel.
    pub(crate) fn new(kind: DriverKind, name: &str, cpu: Option<usize>) -> Result<Executor, StartError> {
        match kind {
            DriverKind::Uring => {
                let builder = LocalExecutorBuilder::new(cpu.map_or(Placement::Unbound, Placement::Fixed));
                let builder = builder.io_memory(IO_MEMORY_BYTES).ring_depth(RING_DEPTH).name(name);
                builder.make().map(Executor::Glommio).map_err(start_error)
            }
            DriverKind::Epoll => {
                cpu.map_or(Ok(()), pin_to).map_err(|error| StartError::Placement(error.to_string()))?;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
                runtime.map(Executor::Tokio).map_err(StartError::Executor)
            }
        }
    }

    /// Runs until `main` ends, and its tasks as long. A task's panic is a panic of this.
    pub(crate) fn run<T>(self, main: impl Future<Output = T>) -> T {
        match self {
            Executor::Glommio(executor) => {
                KIND.set(DriverKind::Uring);
                executor.run(main)
            }
            Executor::Tokio(runtime) => {
                KIND.set(DriverKind::Epoll);
                let mut main = pin!(main);
                LocalSet::new().block_on(
                    &runtime,
                    poll_fn(|context| {
                        MAIN.set(Some(context.waker().clone()));
                        if let Some(panic) = PANIC.take() {
                            resume_unwind(panic);
                        }
                        main.as_mut().poll(context)
                    }),
                )
            }
        }
    }
}

fn pin_to(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

fn start_error(error: GlommioError<()>) -> StartError {
    match error {
        GlommioError::ReactorError(ReactorErrorKind::MemLockLimit(limit_bytes, needed_bytes)) => {
            StartError::LockedMemory { limit_bytes, needed_bytes }
        }
        GlommioError::BuilderError(error) => StartError::Placement(error.to_string()),
        other => StartError::Ring(other.into()),
    }
}

/// A task that runs on whether or not somebody has this.
pub(crate) enum Task {
    Glommio(glommio::task::JoinHandle<()>),
    Tokio(tokio::task::JoinHandle<()>),
}

impl Task {
    /// Ends it where it stands.
    pub(crate) fn cancel(self) {
        match self {
            Task::Glommio(task) => task.cancel(),
            Task::Tokio(task) => task.abort(),
        }
    }
}

/// Runs a future on this thread's executor.
pub(crate) fn spawn_local(future: impl Future<Output = ()> + 'static) -> Task {
    if is_glommio() {
        return Task::Glommio(glommio::spawn_local(future).detach());
    }
    // tokio would keep a panic to itself, and the hub would run on without what the task did.
    Task::Tokio(tokio::task::spawn_local(AssertUnwindSafe(future).catch_unwind().map(|ended| {
        if let Err(panic) = ended {
            PANIC.set(Some(panic));
            MAIN.with_borrow(|main| main.iter().for_each(Waker::wake_by_ref));
        }
    })))
}

/// Resolves once.
pub(crate) enum Timer {
    Glommio(glommio::timer::Timer),
    Tokio(Pin<Box<tokio::time::Sleep>>),
}

impl Timer {
    /// One that resolves in so long.
    pub(crate) fn new(time: Duration) -> Timer {
        match is_glommio() {
            true => Timer::Glommio(glommio::timer::Timer::new(time)),
            false => Timer::Tokio(Box::pin(tokio::time::sleep(time))),
        }
    }

    /// Has it resolve in so long from now instead.
    pub(crate) fn reset(&mut self, time: Duration) {
        match self {
            Timer::Glommio(timer) => timer.reset(time),
            Timer::Tokio(timer) => timer.as_mut().reset((Instant::now() + time).into()),
        }
    }
}

impl Future for Timer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match &mut *self {
            Timer::Glommio(timer) => Pin::new(timer).poll(context).map(drop),
            Timer::Tokio(timer) => timer.as_mut().poll(context),
        }
    }
}

/// Waits.
pub(crate) async fn sleep(time: Duration) {
    Timer::new(time).await;
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    const KINDS: [DriverKind; 2] = [DriverKind::Uring, DriverKind::Epoll];

    fn run<T>(kind: DriverKind, main: impl Future<Output = T>) -> T {
        Executor::new(kind, "test", None).unwrap().run(main)
    }

    #[test]
    fn tasks_run_beside_the_main_one_until_they_are_cancelled() {
        for kind in KINDS {
            let count = Rc::new(Cell::new(0));
            let counted = Rc::clone(&count);
            run(kind, async move {
                let task = spawn_local({
                    let counted = Rc::clone(&counted);
                    async move {
                        loop {
                            counted.set(counted.get() + 1);
                            sleep(Duration::from_millis(1)).await;
                        }
                    }
                });
                while counted.get() < 3 {
                    sleep(Duration::from_millis(1)).await;
                }
                task.cancel();
                // Whatever it was at is over after this.
                sleep(Duration::from_millis(5)).await;
                let at_end = counted.get();
                sleep(Duration::from_millis(20)).await;
                assert_eq!(counted.get(), at_end, "{kind:?}");
            });
            assert_eq!(Rc::strong_count(&count), 1, "{kind:?}: nothing of a task is left behind");
        }
    }

    #[test]
    fn a_timer_rings_when_it_was_last_told_to() {
        for kind in KINDS {
            let began = Instant::now();
            run(kind, async {
                let mut timer = Timer::new(Duration::from_secs(3600));
                timer.reset(Duration::from_millis(20));
                timer.await;
            });
            assert!((20..3_600_000).contains(&began.elapsed().as_millis()), "{kind:?}");
        }
    }

    #[test]
    fn a_task_that_panics_ends_the_executor() {
        for kind in KINDS {
            let ended = std::panic::catch_unwind(|| {
                run(kind, async {
                    drop(spawn_local(async { panic!("on purpose") }));
                    std::future::pending::<()>().await;
                });
            });
            let panic = ended.expect_err("it panics");
            assert_eq!(panic.downcast_ref::<&str>(), Some(&"on purpose"), "{kind:?}");
        }
    }
}
