//! The driver on epoll.

use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;

use bytes::Bytes;
use ringhub::ring::epoll::{Epoll, EpollOptions};
use ringhub::ring::{Completion, Driver as _, listeners};

use crate::real::{self, CONN, Real, Server};

impl Real for Epoll {
    const MODULE: &str = "epoll";

    fn with(buffers: u16, buffer_bytes: u32) -> io::Result<Epoll> {
        Epoll::new(EpollOptions { buffers, buffer_bytes })
    }
}

real::suite!(Epoll);

/// Calls of the kernel during `work`.
fn enters(server: &mut Server<Epoll>, work: impl FnOnce(&mut Server<Epoll>)) -> u64 {
    let before = server.driver.figures().enters;
    work(server);
    server.driver.figures().enters - before
}

#[test]
fn a_message_each_way_costs_one_call_each_and_one_wait_per_turn() {
    let mut server = Server::new(Epoll::small());
    let (mut client, socket) = server.accept();
    server.driver.receive(CONN, socket);
    server.turns(1);
    client.write_all(b"short").unwrap();
    let received = enters(&mut server, |server| server.turns(1));
    assert_eq!(received, 2, "one wait, and one receive that filled less than its buffer");
    assert_eq!(server.received(CONN), b"short");
    server.driver.send(CONN, socket, Bytes::from_static(b"short"));
    let sent = enters(&mut server, |server| server.turns(1));
    assert_eq!(sent, 2, "one send, and one look for what else there is");
    assert_eq!(server.sent(CONN), 0);
    server.driver.close(CONN, socket);
}

#[test]
fn shards_share_a_unix_listener_and_the_first_that_stops_ends_it() {
    let path = std::env::temp_dir().join(format!("ringhub-ring-shared-{}.sock", std::process::id()));
    let listener = listeners::bind_unix(&path, 16).unwrap();
    let (mut first, mut second) = (Server::new(Epoll::small()), Server::new(Epoll::small()));
    first.driver.listen(8, listener.try_clone().unwrap());
    second.driver.listen(8, listener);
    for shard in [&mut first, &mut second] {
        let client = UnixStream::connect(&path).unwrap();
        let socket = shard.until(|completion| match completion {
            Completion::Accepted { listener: 8, socket } => Some(*socket),
            _ => None,
        });
        shard.driver.close(CONN, socket);
        drop(client);
    }
    first.driver.stop_listening();
    assert!(UnixStream::connect(&path).is_err());
    second.turns(2);
    assert_eq!((&first.seen[..], &second.seen[..]), (&[][..], &[][..]));
    assert!(second.driver.figures().enters < 20, "it does not spin on what has ended");
    second.driver.stop_listening();
    std::fs::remove_file(&path).unwrap();
}
