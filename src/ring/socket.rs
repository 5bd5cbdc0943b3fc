//! What both real drivers ask of a socket at once, whichever way they send and receive.

use std::net::{IpAddr, Ipv4Addr, Shutdown};
use std::os::fd::BorrowedFd;

use socket2::SockRef;

use super::{Peer, Socket};

/// Who is at the other end. A peer that is gone already is `0.0.0.0`; the next receive tells.
pub(super) fn peer(socket: Socket) -> Peer {
    let unknown = Peer::Ip(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    // SAFETY: the shard owns the socket, and it is not closed during this call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(socket.0) };
    let Ok(address) = SockRef::from(&borrowed).peer_addr() else { return unknown };
    match address.as_socket() {
        Some(address) => Peer::Ip(address.ip().to_canonical(), address.port()),
        None if address.is_unix() => Peer::Unix,
        None => unknown,
    }
}

/// Fails only for a socket that its peer has reset, which the next completion tells.
pub(super) fn half_close(socket: Socket, how: Shutdown) {
    // SAFETY: the shard owns the socket, and it is not closed during this call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(socket.0) };
    if let Err(error) = SockRef::from(&borrowed).shutdown(how) {
        debug_assert_ne!(error.raw_os_error(), Some(libc::EBADF), "a socket was shut down after its close");
    }
}
