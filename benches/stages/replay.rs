//! How many events per second come out of a room's log? A log of a thousand events, as they were sealed: one per batch, or
//! sixteen. `join` is a newcomer that asks for all of them, `catch up` a slow reader that does so in parts of half an
//! outbox. Each gives its outbox what it gets and takes the chunks to be sent out of it, as the loop does.
//!
//! What is not in it is the kernel's TCP, which is by far the larger part of a real replay.

use criterion::measurement::Measurement;
use criterion::{Criterion, Throughput};
use ringhub::config::Config;
use ringhub::hub::batch::Address;
use ringhub::hub::core::{Core, CoreLimits};
use ringhub::hub::message::{CatchUp, Join, JoinClaim, Message, Piece, Ticket};
use ringhub::hub::name::{NameHasher, RoomName, ShardId};
use ringhub::hub::outbox::{Lane, Outbox};
use ringhub::hub::rules::Rules;
use ringhub::ring::{ConnKey, Now};
use ringhub::wire::native::Since;

use crate::{DATA, KIND, ROOM};

const EVENTS: u64 = 1000;
const NOW: Now = Now { monotonic_us: 0, unix_ms: 1_767_225_600_000 };
const OUTBOX_BYTES_MAX: usize = 1 << 20;
const READER: Address = Address { shard: ShardId(0), conn: ConnKey { slot: 0, generation: 1 } };

/// A shard's core with one room's log, and its reader's outbox.
struct Shard {
    core: Core,
    room: RoomName,
    outbox: Outbox,
}

impl Shard {
    fn new(events_per_batch: u64) -> Shard {
        let config = Config::default();
        let hasher = NameHasher::new(1);
        let room = hasher.room(ROOM);
        let limits = CoreLimits::new(&config);
        let mut core = Core::new(ShardId(0), 1, hasher, [1, 2], limits, Rules::new(&config));
        for seq in 1..=EVENTS {
            assert!(core.publish_here(&room, KIND, DATA, None, None, NOW).is_ok());
            if seq % events_per_batch == 0 || seq == EVENTS {
                core.seal_all();
            }
        }
        Shard { core, room, outbox: Outbox::default() }
    }

    fn handle(&mut self, message: Message) {
        assert!(self.core.handle(message, NOW).is_none(), "it is for the home");
    }

    /// A newcomer that asks for everything; gives the bytes to be sent.
    fn join(&mut self) -> usize {
        let (room, address) = (self.room.clone(), READER);
        let (since, ticket) = (Some(Since::Last(EVENTS)), Ticket::Single(None));
        let join = Join { room, address, claim: JoinClaim::None, selection: None, since, ticket };
        self.handle(Message::Join(Box::new(join)));
        let mut bytes = 0;
        while let Some(message) = self.core.next_local() {
            let Message::Joined(joined) = message else { panic!("{message:?} instead of the join's outcome") };
            assert_eq!(joined.outcome.map(|state| state.replayed), Ok(EVENTS));
            for batch in joined.replay.into_iter().flatten() {
                let frames = batch.frames_for(READER, self.core.memory());
                assert!(self.outbox.push_events(&frames, Lane::Ordinary, OUTBOX_BYTES_MAX).is_ok());
            }
            bytes += self.flush();
        }
        self.handle(Message::Leave { room: self.room.clone(), address });
        bytes
    }

    /// A slow reader that has nothing of it, until it has caught up; likewise.
    fn catch_up(&mut self) -> usize {
        let (mut bytes, mut after_seq, mut complete) = (0, 0, false);
        while !complete {
            let (room, bytes_max) = (self.room.clone(), OUTBOX_BYTES_MAX / 2);
            let ask = CatchUp { room, address: READER, number: 1, after_seq, selection: None, bytes_max };
            self.handle(Message::CatchUp(Box::new(ask)));
            let Some(Message::CaughtUp(part)) = self.core.next_local() else { panic!("no answer to a catch-up") };
            for piece in part.pieces {
                let Piece::Events(batch) = piece else { panic!("{piece:?} in a log that has everything") };
                let frames = batch.frames_for(READER, self.core.memory());
                assert!(self.outbox.push_events(&frames, Lane::Ordinary, OUTBOX_BYTES_MAX).is_ok());
            }
            (after_seq, complete) = (part.to_seq, part.complete);
            bytes += self.flush();
        }
        bytes
    }

    fn flush(&mut self) -> usize {
        let mut bytes = 0;
        while let Some(chunk) = self.outbox.take_chunk(self.core.memory()) {
            bytes += chunk.len();
            self.outbox.sent();
        }
        bytes
    }
}

pub fn bench<M: Measurement + 'static>(c: &mut Criterion<M>) {
    let mut group = c.benchmark_group("replay");
    group.throughput(Throughput::Elements(EVENTS));
    for events_per_batch in [1, 16] {
        let mut shard = Shard::new(events_per_batch);
        let bytes = shard.join();
        assert!(bytes > EVENTS as usize * DATA.len());
        assert_eq!(shard.catch_up(), bytes);
        group.bench_function(format!("join, batches of {events_per_batch}"), |b| b.iter(|| shard.join()));
        group.bench_function(format!("catch up, batches of {events_per_batch}"), |b| b.iter(|| shard.catch_up()));
    }
    group.finish();
}
