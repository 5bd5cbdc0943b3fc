//! A socket as hyper reads and writes it. The bytes that a shard had read already come first.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use futures_lite::io::{AsyncRead, AsyncWrite};
use hyper::rt::{Read, ReadBufCursor, Write};

use super::progress::Progress;
use super::runtime::{Ending, Socket};

/// How much is read at a time. One buffer serves all connections of the thread.
const READ_BYTES: usize = 16 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// A connection served by hyper.
pub(crate) struct Stream {
    socket: Socket,
    received: Bytes,
    progress: Rc<Progress>,
}

impl Stream {
    /// `received` is replayed before anything is read from the socket.
    pub(crate) fn new(socket: Socket, received: Bytes, progress: Rc<Progress>) -> Stream {
        Stream { socket, received, progress }
    }

    /// What tells whether the peer has ended, while another owns the stream.
    pub(crate) fn ending(&self) -> Ending {
        self.socket.ending()
    }

    /// Takes the connection back: its descriptor, and what was to be replayed and was not read yet.
    pub(crate) fn into_socket(self) -> io::Result<(OwnedFd, Bytes)> {
        Ok((self.socket.into_descriptor()?, self.received))
    }

    /// Reads and forgets; the number of bytes, 0 at the end.
    pub(crate) fn poll_discard(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        SCRATCH.with_borrow_mut(|scratch| Pin::new(&mut self.socket).poll_read(context, scratch))
    }

    /// Tries once to write `bytes`.
    pub(crate) fn write_once(&mut self, bytes: &[u8]) {
        self.socket.write_once(bytes);
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
