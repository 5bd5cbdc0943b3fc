//! A glommio stream from a descriptor, as hyper reads and writes it.
//!
//! The bytes that a shard had read already come first. glommio's `TcpStream` does nothing but poll, `recv` and `send`, so
//! it carries unix sockets just as well; one type serves all.

use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, IntoRawFd as _, OwnedFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf as _, Bytes};
use futures_lite::io::{AsyncRead, AsyncWrite};
use glommio::net::{TcpListener, TcpStream};
use hyper::rt::{Read, ReadBufCursor, Write};
use socket2::SockRef;

use super::progress::Progress;

/// How much is read at a time. One buffer serves all connections of the thread.
const READ_BYTES: usize = 16 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// A connection served by hyper.
pub(crate) struct Stream {
    socket: TcpStream,
    received: Bytes,
    progress: Rc<Progress>,
}

impl Stream {
    /// `received` is replayed before anything is read from the socket.
    pub(crate) fn new(socket: TcpStream, received: Bytes, progress: Rc<Progress>) -> Stream {
        Stream { socket, received, progress }
    }

    /// What tells whether the peer has ended, while another owns the stream.
    pub(crate) fn ending(&self) -> Ending {
        Ending(self.socket.as_raw_fd())
    }

    /// Takes the connection back: its descriptor, and what was to be replayed and was not read yet.
    pub(crate) fn into_socket(self) -> io::Result<(OwnedFd, Bytes)> {
        Ok((descriptor_of(self.socket)?, self.received))
    }

    /// Reads and forgets; the number of bytes, 0 at the end.
    pub(crate) fn poll_discard(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        SCRATCH.with_borrow_mut(|scratch| Pin::new(&mut self.socket).poll_read(context, scratch))
    }

    /// Tries once to write `bytes`.
    pub(crate) fn write_once(&mut self, bytes: &[u8]) {
        write_once(&mut self.socket, bytes);
    }
}

/// The descriptor of a [`Stream`] that somebody else reads from; of use as long as that one is there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ending(RawFd);

impl Ending {
    /// Whether the peer has ended its side and all that it sent was read, or the connection is broken.
    pub(crate) fn is_reached(self) -> bool {
        // SAFETY: the caller keeps the stream alive, so that the descriptor is open during this call.
        let borrowed = unsafe { BorrowedFd::borrow_raw(self.0) };
        let mut byte = [MaybeUninit::uninit()];
        match SockRef::from(&borrowed).recv_with_flags(&mut byte, libc::MSG_PEEK | libc::MSG_DONTWAIT) {
            Ok(read) => read == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock && error.kind() != io::ErrorKind::Interrupted,
        }
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.received.has_remaining() {
            let bytes = this.received.split_to(this.received.len().min(cursor.remaining()));
            cursor.put_slice(&bytes);
            this.progress.received();
            return Poll::Ready(Ok(()));
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let room = scratch.len().min(cursor.remaining());
            let target = scratch.get_mut(..room).unwrap_or_default();
            let read = std::task::ready!(Pin::new(&mut this.socket).poll_read(context, target))?;
            if let Some(bytes) = target.get(..read).filter(|bytes| !bytes.is_empty()) {
                cursor.put_slice(bytes);
                this.progress.received();
            }
            Poll::Ready(Ok(()))
        })
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    /// hyper gets here when nothing of its own is left to write.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.progress.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(context)
    }
}

/// Tries once to write `bytes`, for a last word to a peer whose connection is given up anyway.
pub(crate) fn write_once(socket: &mut TcpStream, bytes: &[u8]) {
    match Pin::new(socket).poll_write(&mut Context::from_waker(Waker::noop()), bytes) {
        Poll::Ready(Ok(_)) | Poll::Pending => {}
        Poll::Ready(Err(error)) => tracing::trace!(%error, "the last word did not get through"),
    }
}

/// A connected stream socket for this executor.
pub(crate) fn stream_of(socket: OwnedFd) -> TcpStream {
    // SAFETY: the descriptor is open and owned by nobody else; its ownership moves into the stream.
    unsafe { TcpStream::from_raw_fd(socket.into_raw_fd()) }
}

/// A listening stream socket for this executor.
pub(crate) fn listener_of(socket: OwnedFd) -> TcpListener {
    // SAFETY: the descriptor is open and owned by nobody else; its ownership moves into the listener.
    unsafe { TcpListener::from_raw_fd(socket.into_raw_fd()) }
}

/// The descriptor of a stream, as a duplicate: glommio closes the one it has.
fn descriptor_of(socket: TcpStream) -> io::Result<OwnedFd> {
    // SAFETY: `socket` owns the descriptor and keeps it open to the end of this function.
    let borrowed = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    borrowed.try_clone_to_owned()
}
