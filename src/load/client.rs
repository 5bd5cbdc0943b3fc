//! One non-blocking WebSocket connection: connect, upgrade, messages, close.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use tungstenite::handshake::client::{ClientHandshake, Request};
use tungstenite::handshake::{HandshakeError, MidHandshake};
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Message, WebSocketConfig};
use tungstenite::{Utf8Bytes, WebSocket};

use super::failure::{Failure, peer_text};
use super::target::Target;
use super::unpack::Unpacker;

/// Bytes read at a time. Every connection has such a buffer, so ten thousand of them stay at 40 MB.
const READ_BUFFER: usize = 4 << 10;
/// What may wait to be sent before [`Failure::SendBufferFull`].
const WRITE_BUFFER_MAX: usize = 4 << 20;

/// A connection in one of its phases.
pub(crate) struct Client {
    phase: Phase,
    pings: u64,
    /// This side has begun the close handshake.
    closing: bool,
}

enum Phase {
    Connecting(Socket, Box<Request>),
    Upgrading(Box<MidHandshake<ClientHandshake<Socket>>>),
    Open(Box<WebSocket<Socket>>),
    Ended,
}

/// What [`Client::receive`] found.
#[derive(Debug)]
pub(crate) enum Received {
    Text(Utf8Bytes),
    Binary,
    /// All there was has been read.
    Nothing,
    /// The close handshake that this side began is done.
    Ended,
}

impl Client {
    /// Starts to connect; [`Client::advance`] goes on once the socket is ready.
    pub(crate) fn connect(target: &Target, source: Option<u32>) -> Result<Client, Failure> {
        let stream = target.connect(source)?;
        let unpacker = target.offers_compression().then(Box::default);
        let socket = Socket { stream, drained: false, blocked: false, unpacker };
        Ok(Client { phase: Phase::Connecting(socket, Box::new(target.request()?)), pings: 0, closing: false })
    }

    /// Goes on after readiness. True once, when the upgrade is done; there may be messages to read already.
    pub(crate) fn advance(&mut self, readable: bool, writable: bool) -> Result<bool, Failure> {
        match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Connecting(socket, request) => {
                if let Some(error) = socket.stream.take_error().map_err(|e| Failure::from_io(&e))? {
                    return Err(Failure::from_io(&error));
                }
                if !writable {
                    self.phase = Phase::Connecting(socket, request);
                    return Ok(false);
                }
                let handshake = ClientHandshake::start(socket, *request, Some(config()))?;
                self.upgrade(handshake)
            }
            Phase::Upgrading(mut handshake) => {
                handshake.get_mut().get_mut().drained &= !readable;
                self.upgrade(*handshake)
            }
            Phase::Open(mut socket) => {
                socket.get_mut().drained &= !readable;
                let flushed = if writable { quiet(socket.flush()) } else { Ok(()) };
                self.phase = Phase::Open(socket);
                flushed.map(|()| false)
            }
            Phase::Ended => Ok(false),
        }
    }

    /// The next message. Pings are answered on the way.
    pub(crate) fn receive(&mut self) -> Result<Received, Failure> {
        let Phase::Open(socket) = &mut self.phase else { return Ok(Received::Nothing) };
        loop {
            match socket.read() {
                Ok(Message::Text(text)) => return Ok(Received::Text(text)),
                Ok(Message::Binary(_)) => return Ok(Received::Binary),
                Ok(Message::Ping(_)) => self.pings += 1,
                Ok(Message::Pong(_) | Message::Frame(_)) => {}
                Ok(Message::Close(frame)) => {
                    if self.closing {
                        return Ok(Received::Ended);
                    }
                    // The answer to the close is a courtesy; the connection is over either way.
                    quiet(socket.flush())?;
                    return Err(closed(frame));
                }
                Err(tungstenite::Error::Io(e)) if e.kind() == ErrorKind::WouldBlock => return Ok(Received::Nothing),
                Err(tungstenite::Error::ConnectionClosed) => return Ok(Received::Ended),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Puts a text frame into the send buffer; [`Client::flush`] sends it.
    pub(crate) fn send(&mut self, text: Utf8Bytes) -> Result<(), Failure> {
        match &mut self.phase {
            Phase::Open(socket) => quiet(socket.write(Message::Text(text))),
            _ => Err(Failure::NotSent),
        }
    }

    /// Sends what is buffered, as far as the socket takes it.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        match &mut self.phase {
            Phase::Open(socket) => quiet(socket.flush()),
            _ => Ok(()),
        }
    }

    /// Begins the close handshake; [`Received::Ended`] ends it.
    pub(crate) fn close(&mut self) -> Result<(), Failure> {
        match &mut self.phase {
            Phase::Open(socket) => {
                self.closing = true;
                quiet(socket.close(Some(CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::from_static("") })))
            }
            _ => Ok(()),
        }
    }

    /// Vanishes without a close frame; with a reset, or as a process does that ends.
    pub(crate) fn vanish(self, resets: bool) {
        if resets
            && let Some(socket) = self.socket()
            && let Err(error) = socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO))
        {
            tracing::debug!(%error, "a connection of the load generator ends without a reset");
        }
    }

    /// Whether it waits for room to write (or for the connect to be done).
    pub(crate) fn wants_write(&self) -> bool {
        match &self.phase {
            Phase::Connecting(..) => true,
            Phase::Upgrading(handshake) => handshake.get_ref().get_ref().blocked,
            Phase::Open(socket) => socket.get_ref().blocked,
            Phase::Ended => false,
        }
    }

    /// Pings of the hub, all answered.
    pub(crate) fn pings(&self) -> u64 {
        self.pings
    }

    /// The socket, as long as there is one.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        match &self.phase {
            Phase::Connecting(socket, _) => Some(socket.stream.as_fd()),
            Phase::Upgrading(handshake) => Some(handshake.get_ref().get_ref().stream.as_fd()),
            Phase::Open(socket) => Some(socket.get_ref().stream.as_fd()),
            Phase::Ended => None,
        }
    }

    fn upgrade(&mut self, handshake: MidHandshake<ClientHandshake<Socket>>) -> Result<bool, Failure> {
        match handshake.handshake() {
            Ok((socket, _)) => {
                self.phase = Phase::Open(Box::new(socket));
                Ok(true)
            }
            Err(HandshakeError::Interrupted(handshake)) => {
                self.phase = Phase::Upgrading(Box::new(handshake));
                Ok(false)
            }
            Err(HandshakeError::Failure(error)) => Err(error.into()),
        }
    }
}

/// A socket that knows when reading or writing again is in vain, which saves a system call per readiness.
#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    /// The last read gave less than there was room for.
    drained: bool,
    /// The last write was not taken.
    blocked: bool,
    /// Where compression was offered.
    unpacker: Option<Box<Unpacker>>,
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(unpacker) = &mut self.unpacker {
            let mut received = [0; READ_BUFFER];
            loop {
                match unpacker.give(buffer) {
                    0 if self.drained => return Err(ErrorKind::WouldBlock.into()),
                    0 => {}
                    count => return Ok(count),
                }
                let count = self.stream.read(&mut received)?;
                if count == 0 {
                    return Ok(0);
                }
                self.drained = count < received.len();
                unpacker.take(received.get(..count).unwrap_or_default()).map_err(io::Error::other)?;
            }
        }
        if self.drained {
            return Err(ErrorKind::WouldBlock.into());
        }
        let count = self.stream.read(buffer)?;
        self.drained = count > 0 && count < buffer.len();
        Ok(count)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.stream.write(bytes);
        self.blocked = matches!(&written, Err(e) if e.kind() == ErrorKind::WouldBlock);
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The failure that a close frame of the hub stands for.
pub(crate) fn closed(frame: Option<CloseFrame>) -> Failure {
    // 1005: no code was sent (RFC 6455, 7.1.5).
    frame.map_or(Failure::Closed { code: 1005, reason: String::new() }, |frame| Failure::Closed {
        code: frame.code.into(),
        reason: peer_text(frame.reason.as_str()),
    })
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(READ_BUFFER)
        .max_write_buffer_size(WRITE_BUFFER_MAX)
}

/// "Would block" is no failure of a write: tungstenite keeps the frame, and readiness continues it.
fn quiet(result: tungstenite::Result<()>) -> Result<(), Failure> {
    match result {
        Err(tungstenite::Error::Io(e)) if e.kind() == ErrorKind::WouldBlock => Ok(()),
        other => other.map_err(Failure::from),
    }
}
