//! An echo server that holds a driver to its contract, and the test that both drivers pass.

use std::collections::HashSet;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ringhub::ring::{Completion, ConnKey, Driver, ReceiveEnd, Socket};

/// One connection of the echo server.
struct Conn {
    key: ConnKey,
    socket: Socket,
    outbox: BytesMut,
    sending: bool,
    receiving: bool,
}

/// Sends back what it gets; closes when the peer has finished and has everything back.
pub struct Echo<D> {
    pub driver: D,
    conns: Vec<Option<Conn>>,
    generations: Vec<u32>,
    completions: Vec<Completion>,
    /// Everything that happened, for comparing runs.
    pub trace: Vec<Completion>,
    pub failures: usize,
}

impl<D: Driver> Echo<D> {
    pub fn new(driver: D) -> Echo<D> {
        Echo {
            driver,
            conns: Vec::new(),
            generations: Vec::new(),
            completions: Vec::new(),
            trace: Vec::new(),
            failures: 0,
        }
    }

    pub fn open(&self) -> usize {
        self.conns.iter().flatten().count()
    }

    pub fn turn(&mut self, wait: Duration) {
        let mut completions = std::mem::take(&mut self.completions);
        self.driver.turn(Some(wait), &mut completions).unwrap();
        let mut closed = HashSet::new();
        for completion in completions.drain(..) {
            self.trace.push(completion);
            self.handle(completion, &mut closed);
        }
        self.completions = completions;
    }

    fn handle(&mut self, completion: Completion, closed: &mut HashSet<ConnKey>) {
        match completion {
            Completion::Accepted { socket, .. } => self.accept(socket),
            Completion::Received { conn, buffer, bytes } => {
                assert!(bytes > 0);
                let received = self.driver.buffer(buffer, bytes).to_vec();
                self.driver.release(buffer);
                if let Some(owner) = owner(&mut self.conns, conn, closed) {
                    assert!(owner.receiving, "{conn:?} received after its receive ended");
                    owner.outbox.extend_from_slice(&received);
                    self.flush(conn);
                }
            }
            Completion::ReceiveEnded { conn, end } => {
                if let Some(owner) = owner(&mut self.conns, conn, closed) {
                    owner.receiving = false;
                    match end {
                        ReceiveEnd::Eof => self.flush(conn),
                        ReceiveEnd::Cancelled => panic!("{conn:?} was cancelled by nobody"),
                        ReceiveEnd::Error(_) => {
                            self.failures += 1;
                            self.close(conn, closed);
                        }
                    }
                }
            }
            Completion::Sent { conn, error } => {
                if let Some(owner) = owner(&mut self.conns, conn, closed) {
                    assert!(std::mem::take(&mut owner.sending), "{conn:?} sent what nobody asked for");
                    if error == 0 {
                        self.flush(conn);
                    } else {
                        self.failures += 1;
                        self.close(conn, closed);
                    }
                }
            }
            Completion::Doorbell => {}
        }
        let finished = |conn: &Conn| !conn.receiving && !conn.sending && conn.outbox.is_empty();
        let keys: Vec<ConnKey> = match completion {
            Completion::ReceiveEnded { conn, .. } | Completion::Sent { conn, .. } => vec![conn],
            _ => Vec::new(),
        };
        for key in keys {
            if owner(&mut self.conns, key, closed).is_some_and(|conn| finished(conn)) {
                self.close(key, closed);
            }
        }
    }

    fn accept(&mut self, socket: Socket) {
        let slot = self.conns.iter().position(Option::is_none).unwrap_or_else(|| {
            self.conns.push(None);
            self.generations.push(0);
            self.conns.len() - 1
        });
        self.generations[slot] += 1;
        let key = ConnKey { slot: slot as u32, generation: self.generations[slot] };
        self.conns[slot] = Some(Conn { key, socket, outbox: BytesMut::new(), sending: false, receiving: true });
        self.driver.receive(key, socket);
    }

    fn flush(&mut self, key: ConnKey) {
        if let Some(conn) = self.conns[key.slot as usize].as_mut()
            && !conn.sending
            && !conn.outbox.is_empty()
        {
            conn.sending = true;
            let chunk: Bytes = conn.outbox.split().freeze();
            self.driver.send(key, conn.socket, chunk);
        }
    }

    fn close(&mut self, key: ConnKey, closed: &mut HashSet<ConnKey>) {
        if let Some(conn) = self.conns[key.slot as usize].take() {
            self.driver.close(key, conn.socket);
            closed.insert(key);
        }
    }
}

/// None for a connection that was closed while this batch of completions is handled; any other stranger is a late
/// completion, which the contract rules out.
fn owner<'a>(conns: &'a mut [Option<Conn>], key: ConnKey, closed: &HashSet<ConnKey>) -> Option<&'a mut Conn> {
    let conn = conns[key.slot as usize].as_mut().filter(|conn| conn.key == key);
    assert!(conn.is_some() || closed.contains(&key), "a late completion of {key:?}");
    conn
}

/// The other end.
pub trait Clients {
    fn connect(&mut self) -> usize;
    /// Takes any amount; returns at once.
    fn write(&mut self, client: usize, bytes: &[u8]);
    /// What arrived.
    fn read(&mut self, client: usize) -> Vec<u8>;
    /// Half-closes, behind everything written.
    fn finish(&mut self, client: usize);
}

/// Each of many clients writes in pieces, finishes, and gets exactly its own bytes back.
pub fn every_byte_comes_back_in_order<D: Driver>(
    server: &mut Echo<D>,
    clients: &mut impl Clients,
    seed: u64,
    connections: usize,
    bytes_max: usize,
) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut sent: Vec<Vec<u8>> = vec![Vec::new(); connections];
    let mut back: Vec<Vec<u8>> = vec![Vec::new(); connections];
    let mut left: Vec<usize> = (0..connections).map(|_| rng.usize(0..=bytes_max)).collect();
    let names: Vec<usize> = (0..connections).map(|_| clients.connect()).collect();
    let mut finished = vec![false; connections];
    for turn in 0.. {
        assert!(turn < 20_000, "seed {seed}: {} of {connections} are still open", server.open());
        for client in 0..connections {
            if finished[client] {
            } else if left[client] == 0 {
                clients.finish(names[client]);
                finished[client] = true;
            } else if rng.bool() {
                let mut piece = vec![0; rng.usize(1..=left[client])];
                rng.fill(&mut piece);
                left[client] -= piece.len();
                clients.write(names[client], &piece);
                sent[client].extend_from_slice(&piece);
            }
            back[client].extend(clients.read(names[client]));
        }
        server.turn(Duration::from_millis(1));
        let arrived = sent.iter().zip(&back).all(|(sent, back)| sent.len() == back.len());
        if finished.iter().all(|finished| *finished) && arrived && server.open() == 0 {
            break;
        }
    }
    assert!(sent == back, "seed {seed}: other bytes came back");
    assert_eq!(server.failures, 0);
}
