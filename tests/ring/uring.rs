//! The real driver on real sockets, all on loopback.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringhub::ring::uring::{Uring, UringOptions};
use ringhub::ring::{Completion, ConnKey, Driver, Peer, ReceiveEnd, Socket, listeners};
use socket2::SockRef;

use crate::echo::{Clients, Echo, every_byte_comes_back_in_order};

const SMALL: UringOptions = UringOptions::sized(64, 1024, 16, 1024);
const CONN: ConnKey = ConnKey { slot: 0, generation: 1 };
const PATIENCE: Duration = Duration::from_secs(10);

/// Non-blocking streams with what is still to be written.
struct TcpClients {
    address: SocketAddr,
    clients: Vec<(TcpStream, Vec<u8>, bool)>,
}

impl TcpClients {
    fn pump(&mut self, client: usize) {
        let (stream, unwritten, finishing) = &mut self.clients[client];
        while !unwritten.is_empty() {
            match stream.write(unwritten) {
                Ok(bytes) => drop(unwritten.drain(..bytes)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("{error}"),
            }
        }
        if std::mem::take(finishing) {
            stream.shutdown(Shutdown::Write).unwrap();
        }
    }
}

impl Clients for TcpClients {
    fn connect(&mut self) -> usize {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_nonblocking(true).unwrap();
        self.clients.push((stream, Vec::new(), false));
        self.clients.len() - 1
    }

    fn write(&mut self, client: usize, bytes: &[u8]) {
        self.clients[client].1.extend_from_slice(bytes);
        self.pump(client);
    }

    fn read(&mut self, client: usize) -> Vec<u8> {
        self.pump(client);
        let mut all = Vec::new();
        match self.clients[client].0.read_to_end(&mut all) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
        all
    }

    fn finish(&mut self, client: usize) {
        self.clients[client].2 = true;
        self.pump(client);
    }
}

/// A driver that listens; what it says can be awaited.
struct Server {
    driver: Uring,
    address: SocketAddr,
    seen: Vec<Completion>,
}

impl Server {
    fn new(options: UringOptions) -> Server {
        let mut driver = Uring::new(options).unwrap();
        let listener = listeners::bind_free("127.0.0.1:0".parse().unwrap(), 4096).unwrap();
        let address = listeners::local_address(&listener).unwrap().unwrap();
        driver.listen(7, listener);
        Server { driver, address, seen: Vec::new() }
    }

    /// Takes turns until a completion is seen that `wanted` likes; what it doesn't like stays in `seen`.
    fn until<T>(&mut self, wanted: impl Fn(&Completion) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(index) = self.seen.iter().position(|completion| wanted(completion).is_some()) {
                return wanted(&self.seen.remove(index)).unwrap();
            }
            assert!(Instant::now() < until, "still waiting; seen so far: {:?}", self.seen);
            self.driver.turn(Some(Duration::from_millis(20)), &mut self.seen).unwrap();
        }
    }

    fn accept(&mut self) -> (TcpStream, Socket) {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let socket = self.until(|completion| match completion {
            Completion::Accepted { listener: 7, socket } => Some(*socket),
            _ => None,
        });
        (stream, socket)
    }

    fn received(&mut self, conn: ConnKey) -> Vec<u8> {
        let (buffer, bytes) = self.until(|completion| match completion {
            Completion::Received { conn: receiver, buffer, bytes } if *receiver == conn => Some((*buffer, *bytes)),
            _ => None,
        });
        let received = self.driver.buffer(buffer, bytes).to_vec();
        self.driver.release(buffer);
        received
    }

    fn receive_end(&mut self, conn: ConnKey) -> ReceiveEnd {
        self.until(|completion| match completion {
            Completion::ReceiveEnded { conn: receiver, end } if *receiver == conn => Some(*end),
            _ => None,
        })
    }

    fn sent(&mut self, conn: ConnKey) -> i32 {
        self.until(|completion| match completion {
            Completion::Sent { conn: sender, error } if *sender == conn => Some(*error),
            _ => None,
        })
    }

    fn turns(&mut self, count: usize) {
        for _ in 0..count {
            self.driver.turn(Some(Duration::from_millis(5)), &mut self.seen).unwrap();
        }
    }
}

/// Memory that tells when it was freed.
struct Watched(Vec<u8>, Arc<AtomicBool>);

impl AsRef<[u8]> for Watched {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.fill(0xdd);
        self.1.store(true, Ordering::SeqCst);
    }
}

/// More than loopback's socket buffers take.
fn watched_chunk() -> (Bytes, Arc<AtomicBool>) {
    let freed = Arc::new(AtomicBool::new(false));
    (Bytes::from_owner(Watched(vec![b'x'; 32 << 20], freed.clone())), freed)
}

fn echo(options: UringOptions, connections: usize, bytes_max: usize) -> Echo<Uring> {
    let Server { driver, address, .. } = Server::new(options);
    let mut server = Echo::new(driver);
    let mut clients = TcpClients { address, clients: Vec::new() };
    every_byte_comes_back_in_order(&mut server, &mut clients, 5, connections, bytes_max);
    server
}

#[test]
fn every_byte_comes_back_to_a_thousand_clients() {
    echo(UringOptions { completions: 4096, ..SMALL }, 1000, 3000);
}

#[test]
fn large_streams_come_back_through_small_buffers() {
    echo(SMALL, 8, 2 << 20);
}

#[test]
fn every_byte_comes_back_when_both_queues_are_too_small() {
    let server = echo(UringOptions { entries: 8, completions: 16, ..SMALL }, 200, 3000);
    assert!(server.driver.figures().submission_full > 0);
}

#[test]
fn every_byte_comes_back_when_buffers_run_out() {
    let server = echo(UringOptions { buffers: 2, buffer_bytes: 64, ..SMALL }, 50, 3000);
    assert!(server.driver.figures().buffer_exhausted > 0);
}

#[test]
fn receiving_goes_on_once_withheld_buffers_are_released() {
    let mut server = Server::new(UringOptions { buffers: 4, buffer_bytes: 100, ..SMALL });
    let (mut client, socket) = server.accept();
    server.driver.receive(CONN, socket);
    client.write_all(&[1; 1000]).unwrap();
    server.turns(10);
    assert_eq!(server.seen.len(), 4);
    assert_eq!(server.driver.figures().buffer_exhausted, 1);
    let mut arrived = 0;
    while arrived < 1000 {
        arrived += server.received(CONN).len();
    }
    assert_eq!(arrived, 1000);
}

#[test]
fn a_send_to_a_slow_reader_completes_when_it_was_taken_whole() {
    let mut server = Server::new(SMALL);
    let (mut client, socket) = server.accept();
    let (chunk, freed) = watched_chunk();
    server.driver.send(CONN, socket, chunk);
    server.turns(5);
    assert_eq!(server.seen, []);
    assert!(!freed.load(Ordering::SeqCst));
    let reader = std::thread::spawn(move || {
        let mut all = vec![0; 32 << 20];
        client.read_exact(&mut all).unwrap();
        all
    });
    assert_eq!(server.sent(CONN), 0);
    assert!(freed.load(Ordering::SeqCst));
    assert!(reader.join().unwrap().iter().all(|byte| *byte == b'x'));
}

#[test]
fn a_slot_is_used_again_while_its_last_owners_send_is_under_way() {
    let mut server = Server::new(SMALL);
    let (mut first, first_socket) = server.accept();
    let (chunk, freed) = watched_chunk();
    server.driver.receive(CONN, first_socket);
    server.driver.send(CONN, first_socket, chunk);
    server.turns(2);
    let (mut second, second_socket) = server.accept();
    server.driver.close(CONN, first_socket);
    let successor = ConnKey { slot: CONN.slot, generation: CONN.generation + 1 };
    server.driver.receive(successor, second_socket);
    server.driver.send(successor, second_socket, Bytes::from_static(b"for the second"));
    second.write_all(b"from the second").unwrap();
    assert_eq!(server.sent(successor), 0);
    assert_eq!(server.received(successor), b"from the second");
    server.turns(5);
    assert_eq!(server.seen, [], "the first owner is heard of after its close");
    assert!(freed.load(Ordering::SeqCst));
    let mut text = [0; 14];
    second.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"for the second");
    // What the first one gets is the front of its chunk, unspoilt, and then the end.
    let mut front = Vec::new();
    first.read_to_end(&mut front).unwrap();
    assert!(front.len() < 32 << 20 && front.iter().all(|byte| *byte == b'x'));
}

#[test]
fn a_connection_is_closed_in_the_turn_that_asked_for_everything() {
    let mut server = Server::new(SMALL);
    let (mut client, socket) = server.accept();
    server.driver.receive(CONN, socket);
    server.driver.send(CONN, socket, Bytes::from_static(b"never mind"));
    server.driver.close(CONN, socket);
    server.turns(3);
    assert_eq!(server.seen, []);
    let mut nothing = Vec::new();
    client.read_to_end(&mut nothing).unwrap();
}

#[test]
fn an_idle_connection_that_is_closed_tells_its_peer_at_once() {
    let mut server = Server::new(SMALL);
    let (mut client, socket) = server.accept();
    server.driver.receive(CONN, socket);
    server.turns(1);
    server.driver.close(CONN, socket);
    server.turns(1);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_reset_by_the_peer_ends_receive_and_send() {
    let mut server = Server::new(SMALL);
    let (client, socket) = server.accept();
    let (chunk, freed) = watched_chunk();
    server.driver.receive(CONN, socket);
    server.driver.send(CONN, socket, chunk);
    server.turns(2);
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    let error = server.sent(CONN);
    assert!(error == libc::ECONNRESET || error == libc::EPIPE, "{error}");
    let end = server.receive_end(CONN);
    assert!(matches!(end, ReceiveEnd::Error(libc::ECONNRESET) | ReceiveEnd::Eof), "{end:?}");
    assert!(freed.load(Ordering::SeqCst));
    server.driver.close(CONN, socket);
    server.turns(2);
    assert_eq!(server.seen, []);
}

#[test]
fn a_half_close_reaches_the_peer_and_its_answer_still_arrives() {
    let mut server = Server::new(SMALL);
    let (mut client, socket) = server.accept();
    server.driver.receive(CONN, socket);
    server.driver.send(CONN, socket, Bytes::from_static(b"last words"));
    assert_eq!(server.sent(CONN), 0);
    server.driver.shutdown(socket);
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"last words");
    client.write_all(b"heard").unwrap();
    assert_eq!(server.received(CONN), b"heard");
    drop(client);
    assert_eq!(server.receive_end(CONN), ReceiveEnd::Eof);
    server.driver.close(CONN, socket);
}

#[test]
fn a_socket_is_handed_over_and_taken_back() {
    let mut server = Server::new(SMALL);
    let (mut client, socket) = server.accept();
    server.driver.receive(CONN, socket);
    client.write_all(b"before").unwrap();
    server.turns(2);
    server.driver.cancel_receive(CONN, socket);
    assert_eq!(server.received(CONN), b"before");
    assert_eq!(server.receive_end(CONN), ReceiveEnd::Cancelled);
    let mut elsewhere = TcpStream::from(server.driver.detach(CONN, socket));
    assert!(elsewhere.nodelay().unwrap(), "TCP_NODELAY is inherited from the listener");
    client.write_all(b"meanwhile").unwrap();
    let mut text = [0; 9];
    elsewhere.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"meanwhile");
    // The control plane's sockets are non-blocking, which makes no difference here.
    elsewhere.set_nonblocking(true).unwrap();
    let socket = server.driver.attach(elsewhere.into());
    let again = ConnKey { slot: 9, generation: 4 };
    server.driver.receive(again, socket);
    server.turns(1);
    client.write_all(b"after").unwrap();
    assert_eq!(server.received(again), b"after");
    let (chunk, _) = watched_chunk();
    server.driver.send(again, socket, chunk.slice(..16 << 20));
    let reader = std::thread::spawn(move || client.read_exact(&mut vec![0; 16 << 20]));
    assert_eq!(server.sent(again), 0);
    reader.join().unwrap().unwrap();
    server.driver.close(again, socket);
}

#[test]
fn a_starved_receive_can_be_cancelled() {
    let mut server = Server::new(UringOptions { buffers: 1, buffer_bytes: 8, ..SMALL });
    let (mut client, socket) = server.accept();
    server.driver.receive(CONN, socket);
    client.write_all(&[1; 100]).unwrap();
    server.turns(3);
    assert_eq!(server.driver.figures().buffer_exhausted, 1);
    server.driver.cancel_receive(CONN, socket);
    assert_eq!(server.received(CONN), [1; 8]);
    assert_eq!(server.receive_end(CONN), ReceiveEnd::Cancelled);
    server.turns(3);
    assert_eq!(server.seen, []);
}

#[test]
fn the_doorbell_wakes_a_sleeping_driver_from_another_thread_every_time() {
    let mut driver = Uring::new(SMALL).unwrap();
    let bell = driver.doorbell();
    let mut completions = Vec::new();
    for _ in 0..100 {
        bell.sleep();
        let ringer = std::thread::spawn({
            let bell = bell.clone();
            move || bell.ring()
        });
        while completions.is_empty() {
            driver.turn(None, &mut completions).unwrap();
        }
        ringer.join().unwrap();
        assert_eq!(completions, [Completion::Doorbell]);
        completions.clear();
    }
}

#[test]
fn a_turn_waits_as_long_as_it_was_told() {
    let mut driver = Uring::new(SMALL).unwrap();
    let mut completions = Vec::new();
    driver.turn(Some(Duration::ZERO), &mut completions).unwrap();
    let start = Instant::now();
    driver.turn(Some(Duration::from_millis(30)), &mut completions).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(30));
    assert_eq!(completions, []);
    let before = driver.figures().enters;
    driver.turn(Some(Duration::ZERO), &mut completions).unwrap();
    assert_eq!(driver.figures().enters, before + 1);
}

#[test]
fn a_listener_that_was_stopped_refuses_at_once_and_its_port_is_free() {
    let mut server = Server::new(SMALL);
    let (_client, socket) = server.accept();
    server.driver.stop_listening();
    assert_eq!(TcpStream::connect(server.address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    server.turns(2);
    assert_eq!(server.seen, []);
    drop(std::net::TcpListener::bind(server.address).unwrap());
    server.driver.close(CONN, socket);
}

#[test]
fn unix_sockets_are_served_too() {
    let path = std::env::temp_dir().join(format!("ringhub-ring-{}.sock", std::process::id()));
    let mut server = Server::new(SMALL);
    server.driver.listen(8, listeners::bind_unix(&path, 16).unwrap());
    let mut client = UnixStream::connect(&path).unwrap();
    let socket = server.until(|completion| match completion {
        Completion::Accepted { listener: 8, socket } => Some(*socket),
        _ => None,
    });
    assert_eq!(server.driver.peer(socket), Peer::Unix);
    server.driver.receive(CONN, socket);
    client.write_all(b"local").unwrap();
    assert_eq!(server.received(CONN), b"local");
    server.driver.stop_listening();
    assert!(UnixStream::connect(&path).is_err());
    server.driver.close(CONN, socket);
    server.turns(2);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_peer_is_named_by_its_address() {
    let mut server = Server::new(SMALL);
    let (client, socket) = server.accept();
    let address = client.local_addr().unwrap();
    assert_eq!(server.driver.peer(socket), Peer::Ip(address.ip(), address.port()));
    server.driver.close(CONN, socket);
}

#[test]
fn a_dropped_driver_closes_its_sockets_and_frees_what_was_under_way() {
    let mut server = Server::new(SMALL);
    let (mut client, socket) = server.accept();
    let (chunk, freed) = watched_chunk();
    server.driver.receive(CONN, socket);
    server.driver.send(CONN, socket, chunk);
    server.turns(1);
    let address = server.address;
    drop(server);
    assert!(freed.load(Ordering::SeqCst));
    assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let mut front = Vec::new();
    client.read_to_end(&mut front).unwrap();
    assert!(front.iter().all(|byte| *byte == b'x'));
}

#[test]
fn wrong_sizes_are_an_error_that_says_so() {
    let error = Uring::new(UringOptions { buffers: 3, ..SMALL }).err().unwrap();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
}

#[test]
fn connections_past_the_descriptor_limit_are_turned_away_and_accepting_goes_on_later() {
    let tests = std::env::current_exe().unwrap();
    let script = "ulimit -n 200; exec \"$0\" --exact uring::with_few_descriptors --ignored --test-threads 1";
    let output = Command::new("sh").arg("-c").arg(script).arg(tests).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// Runs in a process of its own, with a limit of 200 descriptors.
#[test]
#[ignore = "started by the test above"]
fn with_few_descriptors() {
    let mut server = Server::new(SMALL);
    let mut clients: Vec<TcpStream> = (0..10).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    let mut fill: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).take(500).collect();
    assert!(fill.len() < 200);
    fill.truncate(fill.len() - 4);
    let sockets: Vec<Socket> = (0..4)
        .map(|_| {
            server.until(|completion| match completion {
                Completion::Accepted { socket, .. } => Some(*socket),
                _ => None,
            })
        })
        .collect();
    let until = Instant::now() + PATIENCE;
    while server.driver.figures().accept_failures < 7 && Instant::now() < until {
        server.turns(1);
    }
    assert_eq!(server.driver.figures().accept_failures, 7, "one failed, six were turned away");
    for client in &mut clients[4..] {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(matches!(client.read(&mut [0]), Ok(0) | Err(_)));
    }
    fill.clear();
    let (_late, socket) = server.accept();
    server.driver.close(CONN, socket);
    for (slot, socket) in sockets.into_iter().enumerate() {
        server.driver.close(ConnKey { slot: slot as u32 + 1, generation: 0 }, socket);
    }
}
