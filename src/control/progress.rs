//! How far a connection is: shared by its stream, its service and its driver, all on one thread.

use std::cell::{Cell, RefCell};
use std::task::Waker;
use std::time::{Duration, Instant};

/// What a connection is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The first byte of a request.
    Idle,
    /// The rest of a request's head.
    Head,
    /// The answer by the service, which limits its own time.
    Busy,
    /// Either side, to go on with an answer that comes piece by piece.
    Streaming,
    /// The peer, to take the answer.
    Writing,
}

/// How long a phase may last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    pub(crate) idle: Duration,
    pub(crate) head: Duration,
    pub(crate) writing: Duration,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Progress {
    phase: Cell<Phase>,
    since: Cell<Instant>,
    requests: Cell<u64>,
    /// The head of an upgrade request that goes back to a shard.
    handover: RefCell<Option<Vec<u8>>>,
    /// Nothing that hyper has written waits any more, as of the last look.
    flushed: Cell<bool>,
    /// The answer was given before the request's body was read to its end.
    body_left: Cell<bool>,
    /// The request waits for something to happen, which may take minutes.
    waits: Cell<bool>,
    stop: Cell<bool>,
    driver: RefCell<Option<Waker>>,
}

impl Progress {
    pub(crate) fn new() -> Progress {
        Progress {
            // A connection is handed over because of a request, and a fresh one owes its first.
            phase: Cell::new(Phase::Head),
            since: Cell::new(Instant::now()),
            requests: Cell::new(0),
            handover: RefCell::new(None),
            flushed: Cell::new(false),
            body_left: Cell::new(false),
            waits: Cell::new(false),
            stop: Cell::new(false),
            driver: RefCell::new(None),
        }
    }

    fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.since.set(Instant::now());
    }

    /// Bytes came.
    pub(crate) fn received(&self) {
        match self.phase.get() {
            Phase::Idle => self.enter(Phase::Head),
            Phase::Streaming => self.goes_on(),
            _ => {}
        }
    }

    /// A request's head is complete; its number on this connection, from 0.
    pub(crate) fn request(&self) -> u64 {
        self.enter(Phase::Busy);
        let number = self.requests.get();
        self.requests.set(number + 1);
        number
    }

    /// The request waits for something to happen; whether its caller is still there has to be looked at meanwhile.
    pub(crate) fn waits(&self) {
        self.waits.set(true);
    }

    pub(crate) fn is_waiting(&self) -> bool {
        self.waits.get()
    }

    /// The answer has begun and goes on for as long as something happens.
    pub(crate) fn streams(&self) {
        self.enter(Phase::Streaming);
    }

    /// Something has happened.
    pub(crate) fn goes_on(&self) {
        self.since.set(Instant::now());
    }

    /// The service has answered.
    pub(crate) fn answered(&self, body_left: bool) {
        self.waits.set(false);
        self.body_left.set(body_left);
        self.enter(Phase::Writing);
    }

    /// Everything written so far is on its way.
    pub(crate) fn flushed(&self) {
        self.flushed.set(true);
        if self.phase.get() == Phase::Writing {
            self.enter(Phase::Idle);
        }
    }

    /// The request with this head goes back to a shard.
    pub(crate) fn hand_over(&self, head: Vec<u8>) {
        self.flushed.set(false);
        self.handover.replace(Some(head));
    }

    /// True when a request is to go back and all answers before it are out.
    pub(crate) fn may_leave(&self) -> bool {
        self.flushed.get() && self.handover.borrow().is_some()
    }

    /// The head of the request that goes back.
    pub(crate) fn take_handover(&self) -> Option<Vec<u8>> {
        self.handover.take()
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    pub(crate) fn body_left(&self) -> bool {
        self.body_left.get()
    }

    /// When the phase it is in has lasted too long.
    pub(crate) fn deadline(&self, patience: &Patience) -> Option<Instant> {
        let allowed = match self.phase.get() {
            Phase::Idle => patience.idle,
            Phase::Head => patience.head,
            Phase::Writing | Phase::Streaming => patience.writing,
            Phase::Busy => return None,
        };
        Some(self.since.get() + allowed)
    }

    /// Asks the driver to end the connection after the request it is at.
    pub(crate) fn stop(&self) {
        self.stop.set(true);
        if let Some(waker) = self.driver.take() {
            waker.wake();
        }
    }

    /// What the driver asks each time it runs.
    pub(crate) fn stopped(&self, waker: &Waker) -> bool {
        let mut driver = self.driver.borrow_mut();
        if !driver.as_ref().is_some_and(|known| known.will_wake(waker)) {
            driver.replace(waker.clone());
        }
        self.stop.get()
    }
}
