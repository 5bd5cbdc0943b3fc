//! The internal listener: bound before the executor starts, so that a wrong address is an error of the start.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use super::backend::Backend;
use super::connection::{Connections, Fresh};
use super::inbox::ConnectionOrigin;
use super::metrics::ControlFigures;
use super::runtime::{Listener, sleep};
use super::service::{App, Side};
use crate::config::Listen;
use crate::ring::listeners;
use crate::wire::refusal::Refusal;

/// Connections waiting to be accepted.
const BACKLOG: u32 = 1024;
/// After a failure to accept, which mostly means that there are no descriptors left and would come back at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listener that is bound and not served yet.
#[derive(Debug)]
pub(crate) struct Bound {
    socket: OwnedFd,
    pub(crate) address: Option<SocketAddr>,
    path: Option<SocketPath>,
}

/// Removes the socket's file at the end.
#[derive(Debug)]
struct SocketPath(PathBuf);

impl Drop for SocketPath {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::debug!(%error, path = %self.0.display(), "the internal socket's file could not be removed");
        }
    }
}

/// Binds and listens.
pub(crate) fn bind(listen: &Listen) -> io::Result<Bound> {
    match listen {
        Listen::Tcp(address) => {
            let socket = listeners::bind_free(*address, BACKLOG)?;
            let address = listeners::local_address(&socket)?;
            Ok(Bound { socket, address, path: None })
        }
        Listen::Unix(path) => {
            let socket = listeners::bind_unix(path, BACKLOG)?;
            Ok(Bound { socket, address: None, path: Some(SocketPath(path.clone())) })
        }
    }
}

/// Accepts until the task is cancelled.
pub(crate) async fn accept<B: Backend>(
    bound: Bound,
    app: Rc<App<B>>,
    connections: Rc<RefCell<Connections>>,
    figures: ControlFigures,
) {
    let Bound { socket, path: _path, .. } = bound;
    let listener = match Listener::new(socket) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the internal listener can't be watched");
            return;
        }
    };
    let open = Rc::new(());
    loop {
        let mut stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                figures.accept_failures.inc();
                tracing::warn!(%error, "the internal listener could not accept");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // One strong count is the loop's own.
        if Rc::strong_count(&open) > app.options.internal_connections_max {
            figures.internal_refused.inc();
            let mut answer = Vec::new();
            Refusal::unavailable("too many connections", 1).response(&mut answer);
            stream.write_once(&answer);
            continue;
        }
        let peer = stream.peer();
        let origin = ConnectionOrigin { peer, client: peer.map(|peer| peer.ip()) };
        let connection = Fresh { socket: stream, received: Vec::new(), origin, side: Side::Internal };
        Connections::spawn(&connections, &app, connection, Rc::clone(&open));
    }
}
