//! One HTTP connection from its first byte to its end, or to its way back to a shard.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::server::conn::http1;

use super::backend::Backend;
use super::inbox::{Adopted, ConnectionOrigin};
use super::progress::{Patience, Phase, Progress};
use super::runtime::{Socket, Timer, spawn_local};
use super::service::{App, Service, Side};
use super::stream::Stream;
use crate::wire::refusal::Refusal;

/// How often a caller that waits for something to happen is looked after.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Header fields of a request, at most.
const HEADERS_MAX: usize = 64;
/// What hyper may keep of a body at a time, besides a head. hyper asks for 8 KiB at least.
const BODY_CHUNK_BYTES: usize = 16 * 1024;
/// Read past an answer that came before the request's end, so that closing does not destroy the answer on its way.
const LINGER_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How an HTTP connection came to its end.
enum End {
    Closed,
    TimedOut(Phase),
    Leaves,
}

/// A connection that this executor has got hold of.
pub(crate) struct Fresh {
    pub(crate) socket: Socket,
    pub(crate) received: Vec<u8>,
    pub(crate) origin: ConnectionOrigin,
    pub(crate) side: Side,
}

impl Fresh {
    /// One that a shard gave up.
    pub(crate) fn adopted(adopted: Adopted) -> io::Result<Fresh> {
        let Adopted { socket, received, origin } = adopted;
        Ok(Fresh { socket: Socket::new(socket)?, received, origin, side: Side::Public })
    }
}

/// Serves `connection` until it ends.
async fn serve<B: Backend>(app: Rc<App<B>>, connection: Fresh, progress: Rc<Progress>) {
    let Fresh { socket, received, origin, side } = connection;
    let stream = Stream::new(socket, Bytes::from(received), Rc::clone(&progress));
    let ending = stream.ending();
    let service = Service { app: Rc::clone(&app), progress: Rc::clone(&progress), side, origin };
    let mut http = http1::Builder::new()
        .half_close(true)
        .max_headers(HEADERS_MAX)
        .max_header_size(app.options.header_bytes_max)
        .max_buf_size(app.options.header_bytes_max + BODY_CHUNK_BYTES)
        .serve_connection(stream, service);

    let patience = app.options.patience();
    let mut alarm = Alarm::default();
    let mut told = false;
    let mut look: Option<Timer> = None;
    let end = poll_fn(|context| {
        if progress.stopped(context.waker()) && !told {
            told = true;
            Pin::new(&mut http).graceful_shutdown();
        }
        if let Poll::Ready(result) = Pin::new(&mut http).poll(context) {
            if let Err(error) = result {
                tracing::debug!(%error, "an http connection ended with an error");
            }
            return Poll::Ready(End::Closed);
        }
        if progress.may_leave() {
            return Poll::Ready(End::Leaves);
        }
        // hyper doesn't read while it waits for an answer.
        while progress.is_waiting() {
            let timer = look.get_or_insert_with(|| Timer::new(LOOK_INTERVAL));
            if Pin::new(timer).poll(context).is_pending() {
                break;
            }
            look = None;
            if ending.is_reached() {
                return Poll::Ready(End::Closed);
            }
        }
        alarm.poll(&progress, &patience, context).map(End::TimedOut)
    })
    .await;

    let parts = http.into_parts();
    match end {
        End::Leaves => give_back(&app, parts.io, &parts.read_buf, origin, &progress),
        End::Closed if progress.body_left() => linger(parts.io, app.options.linger).await,
        End::Closed | End::TimedOut(Phase::Idle | Phase::Busy | Phase::Streaming | Phase::Writing) => {}
        End::TimedOut(Phase::Head) => {
            let mut stream = parts.io;
            let mut answer = Vec::new();
            Refusal::handshake_timeout().response(&mut answer);
            stream.write_once(&answer);
        }
    }
}

/// Rebuilds what the shard needs: the request's head, then everything that was read after it.
fn give_back<B: Backend>(app: &App<B>, stream: Stream, read: &Bytes, origin: ConnectionOrigin, progress: &Progress) {
    let Some(mut received) = progress.take_handover() else { return };
    match stream.into_socket() {
        Ok((socket, unread)) => {
            received.extend_from_slice(read);
            received.extend_from_slice(&unread);
            app.backend.adopt(Adopted { socket, received, origin });
        }
        Err(error) => tracing::warn!(%error, "an upgrade could not be given back to its shard"),
    }
}

/// Waits for the peer to end, reading what it still sends. A socket closed with unread bytes is reset, and a reset may
/// overtake the answer.
async fn linger(mut stream: Stream, patience: Duration) {
    let mut timer = Timer::new(patience);
    let mut left = LINGER_BYTES_MAX;
    poll_fn(|context| {
        loop {
            match stream.poll_discard(context) {
                Poll::Ready(Ok(read)) if read > 0 && read < left => left -= read,
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Pin::new(&mut timer).poll(context),
            }
        }
    })
    .await;
}

/// The phase's deadline. The timer is only moved when it would ring too late; ringing early costs one look.
#[derive(Default)]
struct Alarm {
    armed: Option<(Instant, Timer)>,
}

impl Alarm {
    fn poll(&mut self, progress: &Progress, patience: &Patience, context: &mut Context<'_>) -> Poll<Phase> {
        loop {
            let Some(deadline) = progress.deadline(patience) else { return Poll::Pending };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Poll::Ready(progress.phase());
            }
            let (at, timer) = self.armed.get_or_insert_with(|| (deadline, Timer::new(left)));
            if deadline < *at {
                *at = deadline;
                timer.reset(left);
            }
            match Pin::new(timer).poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) => self.armed = None,
            }
        }
    }
}

/// The connections being served, so that they can be told to end.
#[derive(Default)]
pub(crate) struct Connections {
    next: u64,
    open: hashbrown::HashMap<u64, Rc<Progress>>,
}

impl Connections {
    /// Serves `connection` in a task of its own; `place` is what its end gives back.
    pub(crate) fn spawn<B: Backend>(
        this: &Rc<RefCell<Connections>>,
        app: &Rc<App<B>>,
        connection: Fresh,
        place: impl Sized + 'static,
    ) {
        let progress = Rc::new(Progress::new());
        let id = {
            let mut connections = this.borrow_mut();
            connections.next += 1;
            let id = connections.next;
            connections.open.insert(id, Rc::clone(&progress));
            id
        };
        let guard = Guard { connections: Rc::clone(this), id };
        let app = Rc::clone(app);
        drop(spawn_local(async move {
            serve(app, connection, progress).await;
            drop(guard);
            drop(place);
        }));
    }

    /// How many are open.
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// Asks all of them to end after the request they are at.
    pub(crate) fn stop(&self) {
        for progress in self.open.values() {
            progress.stop();
        }
    }
}

struct Guard {
    connections: Rc<RefCell<Connections>>,
    id: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.connections.borrow_mut().open.remove(&self.id);
    }
}
