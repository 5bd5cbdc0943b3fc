//! What does it cost that a room's home and its members may be on different shards? `queue` is a turn's batch handed over
//! and taken on one thread, its bell awake: the work alone. `hop, awake` is there and back between two threads that look
//! all the time, `hop, asleep` between two that wait in the kernel, which is what an idle hub does: twice a doorbell's
//! system call and a wake-up.
//!
//! Halve a hop's figure for one way. On a machine with fewer than two free cores `hop, awake` is a figure of the scheduler.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use criterion::measurement::Measurement;
use criterion::{Bencher, Criterion};
use ringhub::hub::batch::{Batch, FrameMemory, OpenBatch};
use ringhub::hub::message::Message;
use ringhub::hub::name::{NameHasher, ShardId};
use ringhub::ring::uring::{Uring, UringOptions};
use ringhub::ring::{Completion, Doorbell, Driver};
use ringhub::shard::mesh::Mesh;
use ringhub::wire::envelope::{Event, Stamp, rfc3339};

use crate::{DATA, KIND, ROOM};

const HERE: ShardId = ShardId(0);
const THERE: ShardId = ShardId(1);

/// The bench never waits longer than this for a bell, so that one that is lost shows as a slow figure and not as a hang.
const PATIENCE: Duration = Duration::from_secs(1);

fn batch() -> Arc<Batch> {
    let stamp = Stamp { id: [b'0'; 36], timestamp: rfc3339(0) };
    let mut open = OpenBatch::default();
    open.push(&stamp, &Event { room: ROOM, kind: KIND, seq: 1, data: DATA }, None, 0);
    Arc::new(open.seal(NameHasher::new(1).room(ROOM), &FrameMemory::default(), 0))
}

fn push(mesh: &Mesh, from: ShardId, to: ShardId, messages: Vec<Message>) {
    assert!(mesh.push(from, to, messages).is_ok(), "the queue is never full: one batch is under way");
}

/// How a shard comes by what is there for it.
trait Wait {
    fn wait(&mut self, mesh: &Mesh, me: ShardId);
}

/// Looks all the time.
struct Awake;

impl Wait for Awake {
    fn wait(&mut self, _: &Mesh, _: ShardId) {
        std::hint::spin_loop();
    }
}

/// Waits in the kernel, in the order of the shard's loop.
struct Asleep {
    driver: Uring,
    completions: Vec<Completion>,
}

impl Asleep {
    fn new() -> Asleep {
        let options = UringOptions::sized(64, 1024, 16, 1024);
        Asleep { driver: Uring::new(options).expect("io_uring is there"), completions: Vec::new() }
    }
}

impl Wait for Asleep {
    fn wait(&mut self, mesh: &Mesh, me: ShardId) {
        self.driver.doorbell().sleep();
        let wait = if mesh.has_work(me) { Duration::ZERO } else { PATIENCE };
        self.completions.clear();
        self.driver.turn(Some(wait), &mut self.completions).expect("the ring turns");
        self.driver.doorbell().wake();
    }
}

/// Sends a batch there and waits for it to come back. `far` makes the other thread's way of waiting, on that thread,
/// with its bell.
fn there_and_back<W: Wait, M: Measurement>(
    b: &mut Bencher<'_, M>,
    mut near: W,
    bell: Arc<Doorbell>,
    far: impl FnOnce() -> (W, Arc<Doorbell>) + Send,
) {
    let over = AtomicBool::new(false);
    let (send_bell, far_bell) = mpsc::channel();
    let (send_mesh, far_mesh) = mpsc::channel::<Arc<Mesh>>();
    let over = &over;
    thread::scope(|scope| {
        scope.spawn(move || {
            let (mut far, bell) = far();
            send_bell.send(bell).expect("the bench waits for it");
            let mesh = far_mesh.recv().expect("the bench sends it");
            while !over.load(Ordering::Relaxed) {
                match mesh.pop(HERE, THERE) {
                    Some(messages) => push(&mesh, THERE, HERE, messages),
                    None => far.wait(&mesh, THERE),
                }
            }
        });
        let far_bell = far_bell.recv().expect("the other thread has a bell");
        let mesh = Arc::new(Mesh::new(vec![bell, far_bell.clone()]));
        send_mesh.send(mesh.clone()).expect("the other thread waits for it");
        let batch = batch();
        b.iter(|| {
            push(&mesh, HERE, THERE, vec![Message::Deliver(batch.clone())]);
            loop {
                match mesh.pop(THERE, HERE) {
                    Some(messages) => break messages,
                    None => near.wait(&mesh, HERE),
                }
            }
        });
        over.store(true, Ordering::Relaxed);
        far_bell.ring();
    });
}

fn silent() -> Arc<Doorbell> {
    Arc::new(Doorbell::silent())
}

pub fn queue<M: Measurement + 'static>(c: &mut Criterion<M>) {
    let mut group = c.benchmark_group("mesh");
    group.bench_function("queue", |b| {
        let mesh = Mesh::new(vec![silent(), silent()]);
        let batch = batch();
        b.iter(|| {
            push(&mesh, HERE, THERE, vec![Message::Deliver(batch.clone())]);
            mesh.pop(HERE, THERE)
        });
    });
    group.finish();
}

/// Between two threads.
pub fn hops<M: Measurement + 'static>(c: &mut Criterion<M>) {
    let mut group = c.benchmark_group("mesh");
    group.bench_function("hop, awake", |b| there_and_back(b, Awake, silent(), || (Awake, silent())));
    group.bench_function("hop, asleep", |b| {
        let near = Asleep::new();
        let bell = near.driver.doorbell();
        there_and_back(b, near, bell, || {
            let far = Asleep::new();
            let bell = far.driver.doorbell();
            (far, bell)
        });
    });
    group.finish();
}
