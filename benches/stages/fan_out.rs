//! What of a turn is our own work when a room has a thousand members? One turn of a single shard as its loop makes it:
//! events get their number and frame, the batch is sealed and logged, every member's outbox is given it and gives its
//! chunk to be sent.
//!
//! Throughput is in deliveries (events times members). The driver and the kernel's TCP, by far the larger part of a real
//! turn, are not in it, nor are the cache misses of connections that the kernel has just worked on.

use std::sync::Arc;

use criterion::measurement::Measurement;
use criterion::{Criterion, Throughput};
use ringhub::config::Config;
use ringhub::hub::batch::Address;
use ringhub::hub::core::{Core, CoreLimits};
use ringhub::hub::message::{Join, JoinClaim, Message, Ticket};
use ringhub::hub::name::{NameHasher, ShardId};
use ringhub::hub::outbox::Outbox;
use ringhub::hub::rules::Rules;
use ringhub::hub::selection::Selection;
use ringhub::ring::{ConnKey, Now};
use ringhub::wire::native::Wanted;

use crate::{DATA, KIND, ROOM};

const MEMBERS: u32 = 1000;
const NOW: Now = Now { monotonic_us: 0, unix_ms: 1_767_225_600_000 };
const OUTBOX_BYTES_MAX: usize = 1 << 20;

/// A shard's core and what it needs of its connections.
struct Shard {
    core: Core,
    outboxes: Vec<Outbox>,
    dirty: Vec<ConnKey>,
    deliveries_max: usize,
}

impl Shard {
    /// Every member asks for the selection that `selection` gives it.
    fn new(selection: impl Fn(u32) -> Option<Arc<Selection>>) -> Shard {
        let config = Config::default();
        let limits = CoreLimits::new(&config);
        let hasher = NameHasher::new(1);
        let room = hasher.room(ROOM);
        let mut core = Core::new(ShardId(0), 1, hasher, [1, 2], limits, Rules::new(&config));
        for slot in 0..MEMBERS {
            let conn = ConnKey { slot, generation: 1 };
            let join = Join {
                room: room.clone(),
                address: Address { shard: ShardId(0), conn },
                claim: JoinClaim::None,
                selection: selection(slot),
                since: None,
                ticket: Ticket::Single(None),
            };
            assert!(core.handle(Message::Join(Box::new(join)), NOW).is_none(), "a join is for the home");
            while let Some(message) = core.next_local() {
                let Message::Joined(joined) = message else { panic!("{message:?} instead of the join's outcome") };
                assert!(joined.outcome.is_ok());
                core.add_member(&room, conn, joined.selection).expect("there is room for the selection");
            }
        }
        let outboxes = (0..MEMBERS).map(|_| Outbox::default()).collect();
        let deliveries_max = config.shards.turn_deliveries_max as usize;
        Shard { core, outboxes, dirty: Vec::new(), deliveries_max }
    }

    /// Publishes and hands out all of it, in as many slices as the loop would take turns. Gives the bytes to be sent.
    fn turn(&mut self, events: u64) -> usize {
        let room = self.core.hasher().room(ROOM);
        for _ in 0..events {
            let published = self.core.publish_here(&room, KIND, DATA, None, None, NOW);
            assert!(published.is_ok());
        }
        self.core.seal_all();
        let Shard { core, outboxes, dirty, deliveries_max } = self;
        let mut bytes = 0;
        while core.has_deliveries() {
            core.fan_out(*deliveries_max, |conn, chunk, lane, _, _| {
                let Some(outbox) = outboxes.get_mut(conn.slot as usize) else { return };
                assert!(outbox.push_events(chunk, lane, OUTBOX_BYTES_MAX).is_ok());
                if outbox.mark_dirty() {
                    dirty.push(conn);
                }
            });
            for conn in dirty.drain(..) {
                let Some(outbox) = outboxes.get_mut(conn.slot as usize) else { continue };
                if let Some(chunk) = outbox.take_chunk(core.memory()) {
                    bytes += chunk.len();
                    outbox.sent();
                }
            }
        }
        bytes
    }
}

fn selection(filters: &str) -> Option<Arc<Selection>> {
    let wanted = Wanted { types: Vec::new(), filters: Some(filters.as_bytes().into()) };
    Selection::compile(&wanted, 32).expect("it compiles").map(Arc::new)
}

pub fn bench<M: Measurement + 'static>(c: &mut Criterion<M>) {
    let mut group = c.benchmark_group("fan_out");
    for events in [1, 16, 64] {
        let mut shard = Shard::new(|_| None);
        assert!(shard.turn(events) > MEMBERS as usize * events as usize * DATA.len());
        group.throughput(Throughput::Elements(events * u64::from(MEMBERS)));
        group.bench_function(format!("{events} to {MEMBERS}"), |b| b.iter(|| shard.turn(events)));
    }
    // Eight selections, of which each takes every event.
    let mut shard = Shard::new(|slot| selection(&format!(r#"{{"confidence_level":{{"min":0.{}}}}}"#, slot % 8)));
    assert!(shard.turn(16) > MEMBERS as usize * 16 * DATA.len(), "every member gets every event");
    group.throughput(Throughput::Elements(16 * u64::from(MEMBERS)));
    group.bench_function(format!("16 to {MEMBERS}, filtered"), |b| b.iter(|| shard.turn(16)));
    group.finish();
}
