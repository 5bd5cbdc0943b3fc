//! Connected and listening stream sockets of the executor, TCP or unix.

use std::io;
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, IntoRawFd as _, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_lite::io::{AsyncRead, AsyncWrite};
use glommio::net::{TcpListener, TcpStream};
use rustix::net::SendFlags;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::is_glommio;

/// A connected stream socket. glommio's `TcpStream` does nothing but poll, `recv` and `send`, so it carries unix sockets
/// just as well.
pub(crate) enum Socket {
    Glommio(TcpStream),
    Tokio(AsyncFd<OwnedFd>),
}

impl Socket {
    /// Takes over a connected socket.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Socket> {
        if is_glommio() {
            // SAFETY: the descriptor is open and owned by nobody else; its ownership moves into the stream.
            return Ok(Socket::Glommio(unsafe { TcpStream::from_raw_fd(socket.into_raw_fd()) }));
        }
        watched(socket).map(Socket::Tokio)
    }

    fn descriptor(&self) -> RawFd {
        match self {
            Socket::Glommio(socket) => socket.as_raw_fd(),
            Socket::Tokio(socket) => socket.as_raw_fd(),
        }
    }

    fn borrow(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket owns the descriptor and keeps it open for as long as it is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.descriptor()) }
    }

    /// The descriptor; of glommio's a duplicate, since glommio closes the one it has.
    pub(crate) fn into_descriptor(self) -> io::Result<OwnedFd> {
        match self {
            Socket::Glommio(_) => self.borrow().try_clone_to_owned(),
            Socket::Tokio(socket) => Ok(socket.into_inner()),
        }
    }

    /// The far end, where it is TCP and still there.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        SockRef::from(&self.borrow()).peer_addr().ok()?.as_socket()
    }

    /// What tells whether the peer has ended, while another owns the socket.
    pub(crate) fn ending(&self) -> Ending {
        Ending(self.descriptor())
    }

    /// Tries once to write `bytes`, for a last word to a peer whose connection is given up anyway.
    pub(crate) fn write_once(&mut self, bytes: &[u8]) {
        match rustix::net::send(self.borrow(), bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(_) => {}
            Err(error) => tracing::trace!(%error, "the last word did not get through"),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Socket::Glommio(socket) => Pin::new(socket).poll_read(context, bytes),
            Socket::Tokio(socket) => loop {
                let mut ready = ready!(socket.poll_read_ready(context))?;
                // The error is that there is nothing yet.
                if let Ok(read) =
                    ready.try_io(|socket| Ok(rustix::io::retry_on_intr(|| rustix::io::read(socket, &mut *bytes))?))
                {
                    return Poll::Ready(read);
                }
            },
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Socket::Glommio(socket) => Pin::new(socket).poll_write(context, bytes),
            Socket::Tokio(socket) => loop {
                let mut ready = ready!(socket.poll_write_ready(context))?;
                let send = |socket: &AsyncFd<OwnedFd>| rustix::net::send(socket, bytes, SendFlags::NOSIGNAL);
                // The error is that there is no room yet.
                if let Ok(written) = ready.try_io(|socket| Ok(rustix::io::retry_on_intr(|| send(socket))?)) {
                    return Poll::Ready(written);
                }
            },
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Socket::Glommio(socket) => Pin::new(socket).poll_close(context),
            Socket::Tokio(socket) => Poll::Ready(SockRef::from(&*socket).shutdown(Shutdown::Write)),
        }
    }
}

/// The descriptor of a socket that somebody else reads from; of use as long as that one is there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ending(RawFd);

impl Ending {
    /// Whether the peer has ended its side and all that it sent was read, or the connection is broken.
    pub(crate) fn is_reached(self) -> bool {
        // SAFETY: the caller keeps the socket alive, so that the descriptor is open during this call.
        let borrowed = unsafe { BorrowedFd::borrow_raw(self.0) };
        let mut byte = [MaybeUninit::uninit()];
        match SockRef::from(&borrowed).recv_with_flags(&mut byte, libc::MSG_PEEK | libc::MSG_DONTWAIT) {
            Ok(read) => read == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock && error.kind() != io::ErrorKind::Interrupted,
        }
    }
}

/// A listening stream socket.
pub(crate) enum Listener {
    Glommio(TcpListener),
    Tokio(AsyncFd<OwnedFd>),
}

impl Listener {
    /// Takes over a listening socket.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Listener> {
        if is_glommio() {
            // SAFETY: the descriptor is open and owned by nobody else; its ownership moves into the listener.
            return Ok(Listener::Glommio(unsafe { TcpListener::from_raw_fd(socket.into_raw_fd()) }));
        }
        watched(socket).map(Listener::Tokio)
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> io::Result<Socket> {
        match self {
            Listener::Glommio(listener) => Ok(Socket::Glommio(listener.accept().await?)),
            Listener::Tokio(listener) => {
                let accept = |listener: &OwnedFd| SockRef::from(listener).accept();
                let (socket, _) = listener.async_io(Interest::READABLE, accept).await?;
                Socket::new(socket.into())
            }
        }
    }
}

fn watched(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    SockRef::from(&socket).set_nonblocking(true)?;
    // SAFETY: an `OwnedFd` names one open descriptor for as long as it lives, and lives as long as what it is given to.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream as Client;
    use std::os::unix::net::UnixStream;

    use futures_lite::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::super::{DriverKind, Executor};
    use super::*;
    use crate::ring::listeners;

    #[test]
    fn a_socket_is_read_and_written_ends_and_is_given_back_on_either_executor() {
        for kind in [DriverKind::Uring, DriverKind::Epoll] {
            let (mut outside, inside) = UnixStream::pair().unwrap();
            let echo = std::thread::spawn(move || {
                let mut all = vec![0; 1 << 20];
                outside.read_exact(&mut all).unwrap();
                outside.write_all(&all).unwrap();
                let mut rest = Vec::new();
                outside.read_to_end(&mut rest).unwrap();
                outside.shutdown(Shutdown::Write).unwrap();
                (all, rest)
            });
            Executor::new(kind, "test", None).unwrap().run(async {
                let mut socket = Socket::new(inside.into()).unwrap();
                let sent: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 251) as u8).collect();
                socket.write_all(&sent).await.unwrap();
                let mut back = vec![0; sent.len()];
                socket.read_exact(&mut back).await.unwrap();
                assert!(back == sent, "{kind:?}");
                assert!(!socket.ending().is_reached());
                let mut socket = Socket::new(socket.into_descriptor().unwrap()).unwrap();
                socket.write_once(b"bye");
                socket.close().await.unwrap();
                assert_eq!(socket.read(&mut [0]).await.unwrap(), 0, "{kind:?}");
                assert!(socket.ending().is_reached());
            });
            let (all, rest) = echo.join().unwrap();
            assert_eq!((all.len(), rest.as_slice()), (1 << 20, &b"bye"[..]), "{kind:?}");
        }
    }

    #[test]
    fn a_listener_accepts_and_names_the_peer_on_either_executor() {
        for kind in [DriverKind::Uring, DriverKind::Epoll] {
            let listener = listeners::bind_free("127.0.0.1:0".parse().unwrap(), 16).unwrap();
            let address = listeners::local_address(&listener).unwrap().unwrap();
            let client = std::thread::spawn(move || Client::connect(address).unwrap());
            let peer = Executor::new(kind, "test", None).unwrap().run(async {
                let listener = Listener::new(listener).unwrap();
                listener.accept().await.unwrap().peer()
            });
            assert_eq!(peer, Some(client.join().unwrap().local_addr().unwrap()), "{kind:?}");
        }
    }
}
