//! The internal listener: bound before the executor starts, so that a wrong address is an error of the start.

use std::cell::RefCell;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use glommio::timer::sleep;
use socket2::{Domain, Protocol, Socket, Type};

use super::answer;
use super::backend::Backend;
use super::connection::{Connections, Fresh};
use super::inbox::ConnectionOrigin;
use super::metrics::ControlFigures;
use super::service::{App, Side};
use super::stream::{listener_of, write_once};

/// Connections waiting to be accepted.
const BACKLOG: i32 = 1024;
/// A ring is torn down some time after its process, and keeps its listener that long.
const BIND_PATIENCE: Duration = Duration::from_secs(2);
/// After a failure to accept, which mostly means that there are no descriptors left and would come back at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where the internal listener listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InternalListen {
    /// A TCP address; port 0 lets the kernel choose.
    Tcp(SocketAddr),
    /// A unix socket; a stale one at the path is replaced.
    Unix(PathBuf),
}

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
pub(crate) fn bind(listen: &InternalListen) -> io::Result<Bound> {
    let deadline = Instant::now() + BIND_PATIENCE;
    loop {
        let bound = match listen {
            InternalListen::Tcp(address) => bind_tcp(*address),
            InternalListen::Unix(path) => bind_unix(path),
        };
        match bound {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<Bound> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let address = socket.local_addr()?.as_socket();
    Ok(Bound { socket: socket.into(), address, path: None })
}

fn bind_unix(path: &Path) -> io::Result<Bound> {
    let stale = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
        && UnixStream::connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
    if stale {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    Ok(Bound { socket: listener.into(), address: None, path: Some(SocketPath(path.to_owned())) })
}

/// Accepts until the task is cancelled.
pub(crate) async fn accept<B: Backend>(
    bound: Bound,
    app: Rc<App<B>>,
    connections: Rc<RefCell<Connections>>,
    figures: ControlFigures,
) {
    let Bound { socket, path, .. } = bound;
    let listener = listener_of(socket);
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
            write_once(&mut stream, &answer::raw(503, "unavailable", "too many connections"));
            continue;
        }
        let peer = match &path {
            Some(_) => None,
            None => stream.peer_addr().ok(),
        };
        let origin = ConnectionOrigin { peer, client: peer.map(|peer| peer.ip()) };
        let connection = Fresh { socket: stream, received: Vec::new(), origin, side: Side::Internal };
        Connections::spawn(&connections, &app, connection, Rc::clone(&open));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let path = std::env::temp_dir().join(format!("ringhub-control-{}.sock", std::process::id()));
        drop(UnixListener::bind(&path).unwrap());
        let bound = bind(&InternalListen::Unix(path.clone())).unwrap();
        let error = bind(&InternalListen::Unix(path.clone())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        drop(bound);
        assert!(!path.exists());
    }
}
