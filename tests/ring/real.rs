//! What both real drivers have to do on real sockets, all on loopback. `uring` and `epoll` run each of these.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringhub::ring::{Completion, ConnKey, Driver, Peer, ReceiveEnd, Socket, listeners};
use socket2::SockRef;

use crate::echo::{Clients, Echo, every_byte_comes_back_in_order};

/// A driver on the kernel's sockets.
pub trait Real: Driver + Sized {
    /// Where its tests are in this program.
    const MODULE: &str;

    /// One with so many buffers of that size, and queues for a thousand connections.
    fn with(buffers: u16, buffer_bytes: u32) -> io::Result<Self>;

    fn small() -> Self {
        Self::with(16, 1024).unwrap()
    }
}

pub const CONN: ConnKey = ConnKey { slot: 0, generation: 1 };
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
pub struct Server<D> {
    pub driver: D,
    address: SocketAddr,
    pub seen: Vec<Completion>,
}

impl<D: Real> Server<D> {
    pub fn new(mut driver: D) -> Server<D> {
        let listener = listeners::bind_free("127.0.0.1:0".parse().unwrap(), 4096).unwrap();
        let address = listeners::local_address(&listener).unwrap().unwrap();
        driver.listen(7, listener);
        Server { driver, address, seen: Vec::new() }
    }

    /// Takes turns until a completion is seen that `wanted` likes; what it doesn't like stays in `seen`.
    pub fn until<T>(&mut self, wanted: impl Fn(&Completion) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(index) = self.seen.iter().position(|completion| wanted(completion).is_some()) {
                return wanted(&self.seen.remove(index)).unwrap();
            }
            assert!(Instant::now() < until, "still waiting; seen so far: {:?}", self.seen);
            self.driver.turn(Some(Duration::from_millis(20)), &mut self.seen).unwrap();
        }
    }

    pub fn accept(&mut self) -> (TcpStream, Socket) {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let socket = self.until(|completion| match completion {
            Completion::Accepted { listener: 7, socket } => Some(*socket),
            _ => None,
        });
        (stream, socket)
    }

    pub fn received(&mut self, conn: ConnKey) -> Vec<u8> {
        let (buffer, bytes) = self.until(|completion| match completion {
            Completion::Received { conn: receiver, buffer, bytes } if *receiver == conn => Some((*buffer, *bytes)),
            _ => None,
        });
        let received = self.driver.buffer(buffer, bytes).to_vec();
        self.driver.release(buffer);
        received
    }

    pub fn receive_end(&mut self, conn: ConnKey) -> ReceiveEnd {
        self.until(|completion| match completion {
            Completion::ReceiveEnded { conn: receiver, end } if *receiver == conn => Some(*end),
            _ => None,
        })
    }

    pub fn sent(&mut self, conn: ConnKey) -> i32 {
        self.until(|completion| match completion {
            Completion::Sent { conn: sender, error } if *sender == conn => Some(*error),
            _ => None,
        })
    }

    pub fn turns(&mut self, count: usize) {
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

pub fn echo<D: Real>(driver: D, connections: usize, bytes_max: usize) -> Echo<D> {
    let Server { driver, address, .. } = Server::new(driver);
    let mut server = Echo::new(driver);
    let mut clients = TcpClients { address, clients: Vec::new() };
    every_byte_comes_back_in_order(&mut server, &mut clients, 5, connections, bytes_max);
    server
}

pub fn every_byte_comes_back_to_a_thousand_clients<D: Real>() {
    echo(D::small(), 1000, 3000);
}

pub fn large_streams_come_back_through_small_buffers<D: Real>() {
    echo(D::small(), 8, 2 << 20);
}

pub fn every_byte_comes_back_when_buffers_run_out<D: Real>() {
    let server = echo(D::with(2, 64).unwrap(), 50, 3000);
    assert!(server.driver.figures().buffer_exhausted > 0);
}

pub fn receiving_goes_on_once_withheld_buffers_are_released<D: Real>() {
    let mut server = Server::new(D::with(4, 100).unwrap());
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

pub fn a_send_to_a_slow_reader_completes_when_it_was_taken_whole<D: Real>() {
    let mut server = Server::new(D::small());
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

pub fn a_slot_is_used_again_while_its_last_owners_send_is_under_way<D: Real>() {
    let mut server = Server::new(D::small());
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

pub fn a_connection_is_closed_in_the_turn_that_asked_for_everything<D: Real>() {
    let mut server = Server::new(D::small());
    let (mut client, socket) = server.accept();
    server.driver.receive(CONN, socket);
    server.driver.send(CONN, socket, Bytes::from_static(b"never mind"));
    server.driver.close(CONN, socket);
    server.turns(3);
    assert_eq!(server.seen, []);
    let mut nothing = Vec::new();
    client.read_to_end(&mut nothing).unwrap();
}

pub fn an_idle_connection_that_is_closed_tells_its_peer_at_once<D: Real>() {
    let mut server = Server::new(D::small());
    let (mut client, socket) = server.accept();
    server.driver.receive(CONN, socket);
    server.turns(1);
    server.driver.close(CONN, socket);
    server.turns(1);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

pub fn a_reset_by_the_peer_ends_receive_and_send<D: Real>() {
    let mut server = Server::new(D::small());
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

pub fn a_half_close_reaches_the_peer_and_its_answer_still_arrives<D: Real>() {
    let mut server = Server::new(D::small());
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

pub fn a_socket_is_handed_over_and_taken_back<D: Real>() {
    let mut server = Server::new(D::small());
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

pub fn a_starved_receive_can_be_cancelled<D: Real>() {
    let mut server = Server::new(D::with(1, 8).unwrap());
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

pub fn the_doorbell_wakes_a_sleeping_driver_from_another_thread_every_time<D: Real>() {
    let mut driver = D::small();
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

pub fn a_turn_waits_as_long_as_it_was_told<D: Real>() {
    let mut driver = D::small();
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

pub fn a_listener_that_was_stopped_refuses_at_once_and_its_port_is_free<D: Real>() {
    let mut server = Server::new(D::small());
    let (_client, socket) = server.accept();
    server.driver.stop_listening();
    assert_eq!(TcpStream::connect(server.address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    server.turns(2);
    assert_eq!(server.seen, []);
    drop(std::net::TcpListener::bind(server.address).unwrap());
    server.driver.close(CONN, socket);
}

pub fn unix_sockets_are_served_too<D: Real>() {
    let path = std::env::temp_dir().join(format!("ringhub-ring-{}-{}.sock", D::MODULE, std::process::id()));
    let mut server = Server::new(D::small());
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

pub fn a_peer_is_named_by_its_address<D: Real>() {
    let mut server = Server::new(D::small());
    let (client, socket) = server.accept();
    let address = client.local_addr().unwrap();
    assert_eq!(server.driver.peer(socket), Peer::Ip(address.ip(), address.port()));
    server.driver.close(CONN, socket);
}

pub fn a_dropped_driver_closes_its_sockets_and_frees_what_was_under_way<D: Real>() {
    let mut server = Server::new(D::small());
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

/// Sockets that always have something to say leave room for those that seldom do, and for new ones.
pub fn busy_sockets_starve_nobody<D: Real>() {
    const BUSY: u32 = 8;
    let mut server = Server::new(D::with(8, 256).unwrap());
    let mut busy = Vec::new();
    for slot in 0..BUSY {
        let (client, socket) = server.accept();
        server.driver.receive(ConnKey { slot, generation: 0 }, socket);
        client.set_nonblocking(true).unwrap();
        busy.push(client);
    }
    let (mut quiet, socket) = server.accept();
    let quiet_conn = ConnKey { slot: BUSY, generation: 0 };
    server.driver.receive(quiet_conn, socket);
    for round in 0..50 {
        quiet.write_all(b"?").unwrap();
        let mut turns = 0;
        let mut is_heard = false;
        while !is_heard {
            for client in &mut busy {
                // As much as fits, again and again.
                match client.write(&[b'x'; 64 << 10]) {
                    Ok(written) => assert!(written > 0),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
            server.driver.turn(Some(Duration::from_millis(20)), &mut server.seen).unwrap();
            turns += 1;
            assert!(turns < 100, "round {round}: not heard beside those who say more");
            for completion in std::mem::take(&mut server.seen) {
                if let Completion::Received { conn, buffer, bytes } = completion {
                    assert!(bytes > 0);
                    is_heard |= conn == quiet_conn;
                    server.driver.release(buffer);
                }
            }
        }
    }
    let (_late, _) = server.accept();
}

/// What came before a cancel is there, once, whoever gets the socket then.
pub fn bytes_around_a_cancel_are_neither_lost_nor_doubled<D: Real>() {
    let mut server = Server::new(D::small());
    let (mut client, socket) = server.accept();
    let mut expected = Vec::new();
    let mut received = Vec::new();
    server.driver.receive(CONN, socket);
    for round in 0..100u8 {
        let part = vec![round; 1 + usize::from(round) * 37];
        client.write_all(&part).unwrap();
        expected.extend_from_slice(&part);
        if round % 2 == 0 {
            server.turns(1);
        }
        server.driver.cancel_receive(CONN, socket);
        let until = Instant::now() + PATIENCE;
        let mut has_ended = false;
        while !has_ended {
            assert!(Instant::now() < until);
            server.driver.turn(Some(Duration::from_millis(20)), &mut server.seen).unwrap();
            for completion in std::mem::take(&mut server.seen) {
                assert!(!has_ended, "{completion:?} after the end");
                match completion {
                    Completion::Received { buffer, bytes, .. } => {
                        received.extend_from_slice(server.driver.buffer(buffer, bytes));
                        server.driver.release(buffer);
                    }
                    Completion::ReceiveEnded { end, .. } => {
                        assert_eq!(end, ReceiveEnd::Cancelled);
                        has_ended = true;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        server.driver.receive(CONN, socket);
    }
    while received.len() < expected.len() {
        received.extend(server.received(CONN));
    }
    assert!(received == expected);
}

/// A blocked send and what is received on the same socket don't hold each other up.
pub fn a_blocked_connection_still_receives_and_its_next_send_goes_out<D: Real>() {
    let mut server = Server::new(D::small());
    let (mut client, socket) = server.accept();
    server.driver.receive(CONN, socket);
    for round in 0..3u8 {
        let (chunk, freed) = watched_chunk();
        server.driver.send(CONN, socket, chunk);
        server.turns(2);
        client.write_all(&[round]).unwrap();
        assert_eq!(server.received(CONN), [round]);
        let mut reader = client.try_clone().unwrap();
        let reader = std::thread::spawn(move || reader.read_exact(&mut vec![0; 32 << 20]));
        assert_eq!(server.sent(CONN), 0);
        reader.join().unwrap().unwrap();
        assert!(freed.load(Ordering::SeqCst));
        server.driver.send(CONN, socket, Bytes::from_static(b"small"));
        assert_eq!(server.sent(CONN), 0);
        let mut text = [0; 5];
        client.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"small");
    }
    server.driver.close(CONN, socket);
}

pub fn wrong_sizes_are_an_error_that_says_so<D: Real>() {
    let error = D::with(3, 1024).err().unwrap();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
}

pub fn connections_past_the_descriptor_limit_are_turned_away_and_accepting_goes_on_later<D: Real>() {
    let tests = std::env::current_exe().unwrap();
    let script = "ulimit -n 200; exec \"$0\" --exact \"$1\" --ignored --test-threads 1";
    let name = format!("{}::with_few_descriptors", D::MODULE);
    let output = Command::new("sh").arg("-c").arg(script).arg(tests).arg(name).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// Runs in a process of its own, with a limit of 200 descriptors.
pub fn with_few_descriptors<D: Real>() {
    let mut server = Server::new(D::small());
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

/// The tests above as tests of one driver.
macro_rules! suite {
    ($driver:ty: $($name:ident)+) => {
        $(
            #[test]
            fn $name() {
                $crate::real::$name::<$driver>();
            }
        )+

        /// Runs in a process of its own, with a limit of 200 descriptors.
        #[test]
        #[ignore = "started by a test above"]
        fn with_few_descriptors() {
            $crate::real::with_few_descriptors::<$driver>();
        }
    };
    ($driver:ty) => {
        $crate::real::suite! {
            $driver:
            every_byte_comes_back_to_a_thousand_clients
            large_streams_come_back_through_small_buffers
            every_byte_comes_back_when_buffers_run_out
            receiving_goes_on_once_withheld_buffers_are_released
            a_send_to_a_slow_reader_completes_when_it_was_taken_whole
            a_slot_is_used_again_while_its_last_owners_send_is_under_way
            a_connection_is_closed_in_the_turn_that_asked_for_everything
            an_idle_connection_that_is_closed_tells_its_peer_at_once
            a_reset_by_the_peer_ends_receive_and_send
            a_half_close_reaches_the_peer_and_its_answer_still_arrives
            a_socket_is_handed_over_and_taken_back
            a_starved_receive_can_be_cancelled
            the_doorbell_wakes_a_sleeping_driver_from_another_thread_every_time
            a_turn_waits_as_long_as_it_was_told
            a_listener_that_was_stopped_refuses_at_once_and_its_port_is_free
            unix_sockets_are_served_too
            a_peer_is_named_by_its_address
            a_dropped_driver_closes_its_sockets_and_frees_what_was_under_way
            wrong_sizes_are_an_error_that_says_so
            connections_past_the_descriptor_limit_are_turned_away_and_accepting_goes_on_later
            busy_sockets_starve_nobody
            bytes_around_a_cancel_are_neither_lost_nor_doubled
            a_blocked_connection_still_receives_and_its_next_send_goes_out
        }
    };
}
pub(crate) use suite;
