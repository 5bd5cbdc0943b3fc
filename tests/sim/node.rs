//! A node of simulated shards in one thread.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use ringhub::broker::link as broker;
use ringhub::config::Config;
use ringhub::control::hooks::{Desk, Feed, ShardHooks};
use ringhub::control::journal::Link;
use ringhub::control::store::Ledger;
use ringhub::control::{Figures, ShardFigures, ShardTimes, Snapshot};
use ringhub::hub::message::{Publish, ReplyTo};
use ringhub::hub::name::{NameHasher, RoomName, ShardId};
use ringhub::hub::shared_locks::NotedLock;
use ringhub::hub::stored::StoredRoom;
use ringhub::ring::Driver;
use ringhub::ring::sim::{Faults, SimDriver, SimWorld};
use ringhub::shard::mesh::Mesh;
use ringhub::shard::request::Request;
use ringhub::shard::{Entropy, LeftOver, Settings, Shard, Start};

use crate::client::Client;

pub struct Node {
    pub world: SimWorld,
    pub mesh: Arc<Mesh>,
    pub hasher: NameHasher,
    /// What the shards report of their connections.
    pub ledger: Arc<Ledger>,
    /// What they report for the backend, and ask it, where it is configured.
    pub hooks: ShardHooks,
    shards: Vec<Option<Shard<SimDriver>>>,
    figures: Vec<Arc<Figures>>,
}

/// Everybody is an administrator, and no rate stands in the way.
pub fn config() -> Config {
    let mut config = Config::default();
    config.auth.enabled = false;
    config.limits.messages_per_s = 0;
    config.limits.connects_per_s = 0;
    config.limits.connections_per_address_max = 0;
    // For those who offer it. In a busy turn not all of it can be compressed.
    config.compression.enabled = true;
    config.compression.threshold_bytes = 100;
    config.compression.turn_bytes_max = 2000;
    // Rooms are forgotten within the time that tests let pass.
    config.history.age_s = 1;
    config
}

/// Bytes that are as good as unguessable ones: tokens and ids of sessions made of them differ.
fn entropy(seed: u64) -> Entropy {
    let mut rng = Rng::with_seed(seed);
    Entropy(Box::new(move |bytes| rng.fill(bytes)))
}

/// Those of the rooms that have their home on one shard.
fn take_rooms(rooms: &mut Vec<StoredRoom>, hasher: &NameHasher, me: u16, shards: u16) -> Vec<StoredRoom> {
    rooms.extract_if(.., |room| hasher.room(&room.room).home(shards).0 == me).collect()
}

impl Node {
    pub fn new(seed: u64, shards: u16, faults: Faults, config: Config) -> Node {
        Node::with_links(seed, shards, faults, config, None, None)
    }

    /// How a node of that seed hashes names.
    pub fn hasher_of(seed: u64) -> NameHasher {
        NameHasher::new(seed)
    }

    /// A node whose durable rooms go through a journal, and that begins with the rooms it had; or one that shares its rooms
    /// with others through a broker.
    pub fn with_links(
        seed: u64,
        shards: u16,
        faults: Faults,
        config: Config,
        mut journal: Option<(Link, Vec<StoredRoom>)>,
        broker: Option<(broker::Link, u64)>,
    ) -> Node {
        let count = shards;
        let world = SimWorld::new(seed, faults);
        let drivers: Vec<SimDriver> = (0..shards).map(|_| world.driver_with(2048, 4096)).collect();
        let mesh = Arc::new(Mesh::new(drivers.iter().map(Driver::doorbell).collect()));
        let settings = Arc::new(Settings::new(config).expect("sound settings"));
        let hasher = Node::hasher_of(seed);
        let figures: Vec<Arc<Figures>> = (0..shards).map(|_| Arc::default()).collect();
        let ledger = Arc::new(Ledger::new(64 * 1024));
        let hooks = &settings.config.hooks;
        let hooks = ShardHooks {
            feed: hooks.url.as_ref().map(|_| Arc::new(Feed::new(64 * 1024, 1 << 20))),
            desk: hooks.connect_url.as_ref().map(|_| Desk::new(hooks.connect_pending_max, 1)),
            telemetry: None,
        };
        let shards = drivers.into_iter().zip(0..shards).map(|(driver, me)| {
            let start = Start {
                journal: journal.as_mut().map(|(link, rooms)| (link.clone(), take_rooms(rooms, &hasher, me, count))),
                broker: broker.clone(),
                nodes: None,
                me: ShardId(me),
                mesh: mesh.clone(),
                settings: settings.clone(),
                figures: figures[usize::from(me)].clone(),
                inbox: None,
                ledger: Some(ledger.clone()),
                hooks: hooks.clone(),
                hasher: hasher.clone(),
                seed: [seed ^ u64::from(me), seed.rotate_left(17) ^ u64::from(me)],
                entropy: entropy(seed ^ u64::from(me)),
            };
            Some(Shard::new(driver, start))
        });
        let shards = shards.collect();
        Node { world, mesh, hasher, ledger, hooks, shards, figures }
    }

    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// One turn of one shard; nothing where it has ended.
    pub fn turn_of(&mut self, shard: usize) {
        let Some(running) = &mut self.shards[shard] else { return };
        if !running.turn().expect("the simulated driver does not fail") {
            self.shards[shard] = None;
        }
    }

    pub fn turn(&mut self) {
        (0..self.shards.len()).for_each(|shard| self.turn_of(shard));
    }

    /// Turns until nothing happens any more.
    pub fn settle(&mut self) {
        let mut quiet = 0;
        for _ in 0..100_000 {
            let deliveries = self.figures.iter().map(|figures| figures.deliveries.value()).sum::<u64>();
            self.turn();
            let after = self.figures.iter().map(|figures| figures.deliveries.value()).sum::<u64>();
            let work = (0..self.shards.len() as u16).any(|shard| self.mesh.has_work(ShardId(shard)));
            quiet = if work || !self.world.is_idle() || after > deliveries { 0 } else { quiet + 1 };
            if quiet > 6 {
                return;
            }
        }
        panic!("the node does not come to rest");
    }

    /// Lets time pass in steps that no deadline is longer than.
    pub fn pass(&mut self, time: Duration) {
        let step = Duration::from_millis(100);
        for _ in 0..time.as_millis().div_ceil(step.as_millis()) {
            self.world.advance(step);
            self.settle();
        }
    }

    /// It is gone from one moment to the next, as by kill -9.
    pub fn die(&mut self) {
        self.shards.fill_with(|| None);
    }

    /// The locks that its shards hold for sessions, or not any more, since the last call.
    pub fn noted_locks(&mut self) -> Vec<(RoomName, NotedLock, bool)> {
        self.shards.iter_mut().flatten().flat_map(|shard| shard.noted_locks()).collect()
    }

    pub fn is_running(&self, shard: usize) -> bool {
        self.shards[shard].is_some()
    }

    pub fn request(&self, shard: usize, request: Request) {
        assert!(self.mesh.request(ShardId(shard as u16), request).is_ok());
    }

    /// A room with that prefix whose home is that shard.
    pub fn room_at(&self, prefix: &str, home: usize) -> String {
        let is_there = |room: &RoomName| usize::from(room.home(self.shards.len() as u16).0) == home;
        (0..)
            .map(|number| format!("{prefix}{number}"))
            .find(|name| is_there(&self.hasher.room(name)))
            .expect("some room")
    }

    /// Has a room's home publish an event of the type `x`; nobody is told what becomes of it.
    pub fn publish(&self, room: &str, data: impl Into<String>) {
        self.publish_for(room, data, ReplyTo::Nobody);
    }

    /// Likewise, and says it to whom it is for.
    pub fn publish_for(&self, room: &str, data: impl Into<String>, reply: ReplyTo) {
        let room = self.hasher.room(room);
        let home = usize::from(room.home(self.shards() as u16).0);
        let (data, key) = (Bytes::from(data.into()), None);
        let (exclude, received_us) = (None, 0);
        let publish = Publish { room, kind: "x".into(), data, key, exclude, received_us, reply };
        self.request(home, Request::Publish(Box::new(publish)));
    }

    /// A client that has been let in.
    pub fn client(&mut self, shard: usize, query: &str) -> Client {
        let mut client = Client::connect(self, shard, "/ws", query);
        self.settle();
        client.poll();
        assert_eq!(client.status, Some(101), "{}", String::from_utf8_lossy(&client.body));
        client
    }

    pub fn figures(&self) -> ShardFigures {
        Snapshot { shards: self.figures.iter().map(|figures| figures.read()).collect() }.shards.into_iter().fold(
            ShardFigures::default(),
            |mut sum, one| {
                sum.merge(&one);
                sum
            },
        )
    }

    /// The times that each shard has measured.
    pub fn times(&self) -> Vec<ShardTimes> {
        self.figures.iter().map(|figures| figures.times()).collect()
    }

    /// Clients of Socket.IO whose connection broke are gone when nobody takes their sessions up, and leave nothing.
    pub fn assert_no_sessions(&mut self) {
        let config = Config::default();
        // Those that poll are noticed by their heartbeat only, which is the hub's to begin.
        let silent_ms = config.socketio.ping_interval_ms + config.socketio.ping_timeout_ms;
        self.pass(Duration::from_millis(2 * silent_ms));
        self.pass(Duration::from_secs(config.limits.close_wait_s));
        // What is kept of sessions goes with time.
        self.world.advance(Duration::from_secs(3600));
        self.pass(Duration::from_secs(2));
        for (place, shard) in self.shards.iter().enumerate() {
            let Some(shard) = shard else { continue };
            assert_eq!(shard.left_over(), LeftOver::default(), "what shard {place} still has");
        }
    }

    /// Nothing is left of anybody.
    pub fn assert_empty(&mut self) {
        self.pass(Duration::from_secs(3));
        // What rooms remember of their events goes with time.
        self.world.advance(Duration::from_secs(Config::default().history.age_s + 1));
        self.pass(Duration::from_secs(3));
        let figures = self.figures();
        assert_eq!(self.world.sockets_open(), 0, "sockets");
        assert_eq!((figures.deflate_connections, figures.window_bytes), (0, 0), "what was agreed on compression");
        assert_eq!((figures.connections, figures.handshakes), (0, 0), "connections, handshakes");
        assert_eq!((figures.subscriptions, figures.rooms), (0, 0), "subscriptions, rooms");
        assert_eq!(figures.sending, 0, "sends under way");
        assert_eq!(self.mesh.connections.load(std::sync::atomic::Ordering::Relaxed), 0, "the node's connections");
    }
}
