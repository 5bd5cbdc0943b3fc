//! Where shards put the connections that speak HTTP to the API instead of upgrading.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::queue::ArrayQueue;

use super::door::Door;

/// A connection on its way from a shard to the control plane or back.
///
/// Whoever hands it over has no operation in flight on the socket any more.
#[derive(Debug)]
pub struct Adopted {
    /// The connection.
    pub socket: OwnedFd,
    /// What was read so far, from the first byte of the request.
    pub received: Vec<u8>,
    /// Where it came from; it goes back with it.
    pub origin: ConnectionOrigin,
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConnectionOrigin {
    /// The socket's other end; none on a unix socket.
    pub peer: Option<SocketAddr>,
    /// The client's address where a trusted proxy told it, else the peer's.
    pub client: Option<IpAddr>,
}

/// The shards' end: bounded, never blocks, wakes the control plane.
#[derive(Debug, Clone)]
pub struct Inbox {
    shared: Arc<Shared>,
}

/// The control plane's end, given to [`start`](super::start()).
#[derive(Debug)]
pub struct Intake {
    pub(crate) shared: Arc<Shared>,
    pub(crate) inside: OwnedFd,
}

#[derive(Debug)]
pub(crate) struct Shared {
    queue: ArrayQueue<Adopted>,
    /// Connections in the queue or being served.
    open: AtomicUsize,
    open_max: usize,
    pub(crate) door: Arc<Door>,
}

/// An inbox for as many connections as may be open at a time, waiting ones included.
pub fn inbox(connections_max: usize) -> std::io::Result<(Inbox, Intake)> {
    let (door, inside) = Door::new()?;
    let open_max = connections_max.max(1);
    let queue = ArrayQueue::new(open_max);
    let shared = Arc::new(Shared { queue, open: AtomicUsize::new(0), open_max, door });
    Ok((Inbox { shared: Arc::clone(&shared) }, Intake { shared, inside }))
}

impl Inbox {
    /// Hands a connection over. When the control plane has as many as it may have, or has ended, the connection comes back
    /// and the shard answers 503 itself.
    pub fn push(&self, connection: Adopted) -> Result<(), Adopted> {
        let shared = &*self.shared;
        if shared.door.is_closed() {
            return Err(connection);
        }
        if shared.open.fetch_add(1, Ordering::SeqCst) >= shared.open_max {
            shared.open.fetch_sub(1, Ordering::SeqCst);
            return Err(connection);
        }
        shared.queue.push(connection).inspect_err(|_| {
            shared.open.fetch_sub(1, Ordering::SeqCst);
        })?;
        shared.door.ring();
        Ok(())
    }

    /// How many connections the control plane holds for the shards.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// The next connection handed over. Its place is taken until the returned ticket is dropped.
    pub(crate) fn pop(self: &Arc<Self>) -> Option<(Adopted, Ticket)> {
        let connection = self.queue.pop()?;
        Some((connection, Ticket { shared: Arc::clone(self) }))
    }

    /// Connections in the queue or being served.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

/// One connection's place in the bound.
#[derive(Debug)]
pub(crate) struct Ticket {
    shared: Arc<Shared>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.shared.open.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn connection() -> Adopted {
        let (socket, _) = UnixStream::pair().unwrap();
        Adopted { socket: socket.into(), received: Vec::new(), origin: ConnectionOrigin::default() }
    }

    #[test]
    fn a_full_inbox_gives_the_connection_back_until_one_has_ended() {
        let (inbox, intake) = inbox(2).unwrap();
        assert!(inbox.push(connection()).is_ok());
        assert!(inbox.push(connection()).is_ok());
        assert!(inbox.push(connection()).is_err());
        let (_, ticket) = intake.shared.pop().unwrap();
        assert!(inbox.push(connection()).is_err(), "one that is being served counts");
        drop(ticket);
        assert!(inbox.push(connection()).is_ok());
        assert_eq!(inbox.open(), 2);
    }

    #[test]
    fn nothing_is_taken_after_the_end() {
        let (inbox, intake) = inbox(2).unwrap();
        intake.shared.door.close();
        assert!(inbox.push(connection()).is_err());
    }
}
