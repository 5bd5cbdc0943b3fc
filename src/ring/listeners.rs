//! Listening sockets: how they are made, and what is done when accepting fails.
//!
//! A ring is torn down some time after its process, and a listener lives as long as an accept waits on it. So listeners
//! share their port (`SO_REUSEPORT`), which lets a new process bind at once, and are shut down explicitly, which ends them
//! at once. Only a process killed with SIGKILL leaves one behind: until the kernel has torn down the ring, shortly after,
//! connections that hash to the dead listener wait in it and are then reset; clients connect again.

use std::fs::{self, File};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, IntoRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

/// How long a listener that a process just ended left behind is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// A listening TCP socket, the first of a hub at its address: `AddrInUse` where somebody else listens there. More can
/// share the port by [`bind_shared`]. Accepted sockets inherit TCP_NODELAY.
///
/// SO_REUSEPORT would let two hubs share an address without a word, each getting half of the clients. So the address is
/// first bound without it, which fails as long as anybody listens there.
pub fn bind_free(address: SocketAddr, backlog: u32) -> io::Result<OwnedFd> {
    if address.port() != 0 {
        patiently(|| TcpListener::bind(address)).map(drop)?;
    }
    bind_shared(address, backlog)
}

/// Another listening TCP socket at the address of [`bind_free`]; the kernel spreads connections over them.
pub fn bind_shared(address: SocketAddr, backlog: u32) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

/// A listening unix socket. The file of a process that is gone is replaced; a socket on which someone answers is
/// `AddrInUse`, and so is a file that is no socket. Shards share it by `try_clone`.
pub fn bind_unix(path: &Path, backlog: u32) -> io::Result<OwnedFd> {
    patiently(|| replace_unix(path, backlog))
}

/// Tries to bind for as long as a process that just ended may still hold the address.
fn patiently<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let until = Instant::now() + PATIENCE;
    loop {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            bound => return bound,
        }
    }
}

fn replace_unix(path: &Path, backlog: u32) -> io::Result<OwnedFd> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // It was connected to, or its backlog is full, or it belongs to someone else: it lives.
            _ => return Err(io::Error::from_raw_os_error(libc::EADDRINUSE)),
        },
        Ok(_) => return Err(io::Error::from_raw_os_error(libc::EADDRINUSE)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

/// The address that a listener got, of interest when it was bound to port 0. `None` for a unix socket.
pub fn local_address(listener: &OwnedFd) -> io::Result<Option<SocketAddr>> {
    Ok(SockRef::from(listener).local_addr()?.as_socket())
}

/// How long accepting rests when the process or the machine is out of descriptors or memory.
pub(super) const PAUSE_US: u64 = 100_000;

/// Waiting connections that are turned away in one go when there are no descriptors left.
const SHED_MAX: u32 = 64;

/// What to do about an accept that failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// It was that one connection's failure.
    Again,
    /// No descriptors are left: turn waiting connections away, and rest.
    Shed,
    /// Rest.
    Pause,
}

impl Remedy {
    /// accept(2), "Error handling": what may come up for one connection is no failure of the listener.
    pub(super) fn of(errno: i32) -> Remedy {
        match errno {
            libc::ECONNABORTED | libc::EINTR | libc::EPROTO | libc::EPERM | libc::ENETDOWN | libc::ENOPROTOOPT => {
                Remedy::Again
            }
            libc::EHOSTDOWN | libc::ENONET | libc::EHOSTUNREACH | libc::EOPNOTSUPP | libc::ENETUNREACH => Remedy::Again,
            libc::EMFILE | libc::ENFILE => Remedy::Shed,
            _ => Remedy::Pause,
        }
    }
}

/// Accepting on one listener.
#[derive(Debug)]
pub(super) struct Listener {
    /// What the shard calls it.
    pub(super) number: u16,
    /// None once it was stopped.
    socket: Option<OwnedFd>,
    /// When to go on, in microseconds of the monotonic clock.
    pub(super) paused_until_us: Option<u64>,
}

impl Listener {
    /// Accepting must not wait: not in the kernel's retries, and not in [`Listener::shed`].
    pub(super) fn new(number: u16, socket: OwnedFd) -> Listener {
        // It can't fail on a socket; if it did, connections would not be turned away early, and no more.
        if let Err(error) = SockRef::from(&socket).set_nonblocking(true) {
            debug_assert!(false, "a listener could not be made non-blocking: {error}");
        }
        Listener { number, socket: Some(socket), paused_until_us: None }
    }

    /// None once it was stopped.
    pub(super) fn descriptor(&self) -> Option<RawFd> {
        self.socket.as_ref().map(|socket| socket.as_raw_fd())
    }

    /// Ends listening at once, also for accepts under way, and gives the descriptor to be closed.
    pub(super) fn stop(&mut self) -> Option<RawFd> {
        let socket = self.socket.take()?;
        self.paused_until_us = None;
        // ENOTCONN: it was shut down by a shard that shares it.
        if let Err(error) = SockRef::from(&socket).shutdown(Shutdown::Both) {
            debug_assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
        }
        Some(socket.into_raw_fd())
    }

    /// Accepts waiting connections with the descriptor kept for this, and closes them: their peers learn at once that
    /// there is no room, rather than hang in the backlog.
    pub(super) fn shed(&self, spare: &mut Spare) -> u32 {
        let Some(socket) = &self.socket else { return 0 };
        let listener = SockRef::from(socket);
        let mut turned_away = 0;
        spare.0 = None;
        while turned_away < SHED_MAX && listener.accept().is_ok() {
            turned_away += 1;
        }
        *spare = Spare::new();
        turned_away
    }
}

/// A descriptor kept in reserve.
#[derive(Debug)]
pub(super) struct Spare(Option<File>);

impl Spare {
    /// Empty where none can be had, which is put right with the next [`Listener::shed`].
    pub(super) fn new() -> Spare {
        Spare(File::open("/dev/null").ok())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn scratch(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("ringhub-{}-{name}", std::process::id()))
    }

    #[test]
    fn two_shards_bind_the_same_port() {
        let first = bind_free("127.0.0.1:0".parse().unwrap(), 16).unwrap();
        let address = local_address(&first).unwrap().unwrap();
        let second = bind_shared(address, 16).unwrap();
        assert_eq!(local_address(&second).unwrap(), Some(address));
    }

    #[test]
    fn a_port_of_someone_else_is_an_error() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = other.local_addr().unwrap();
        assert_eq!(bind_free(taken, 16).unwrap_err().raw_os_error(), Some(libc::EADDRINUSE));
        assert_eq!(bind_shared(taken, 16).unwrap_err().raw_os_error(), Some(libc::EADDRINUSE));
    }

    #[test]
    fn a_stale_socket_file_is_replaced_and_a_live_one_is_not() {
        let path = scratch("stale.sock");
        let live = UnixListener::bind(&path).unwrap();
        assert_eq!(bind_unix(&path, 16).unwrap_err().raw_os_error(), Some(libc::EADDRINUSE));
        drop(live);
        let socket = bind_unix(&path, 16).unwrap();
        assert_eq!(local_address(&socket).unwrap(), None);
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let path = scratch("file");
        fs::write(&path, b"mine").unwrap();
        assert_eq!(bind_unix(&path, 16).unwrap_err().raw_os_error(), Some(libc::EADDRINUSE));
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn only_failures_of_the_listener_make_it_rest() {
        assert_eq!(Remedy::of(libc::ECONNABORTED), Remedy::Again);
        assert_eq!(Remedy::of(libc::EMFILE), Remedy::Shed);
        assert_eq!(Remedy::of(libc::ENFILE), Remedy::Shed);
        assert_eq!(Remedy::of(libc::ENOMEM), Remedy::Pause);
        assert_eq!(Remedy::of(libc::EINVAL), Remedy::Pause);
    }
}
