//! What the simulation promises: the same seed is the same run, and rough worlds keep the contract.

use std::time::Duration;

use ringhub::ring::Completion;
use ringhub::ring::sim::{Faults, SimClient, SimDriver, SimWorld};

use crate::echo::{Clients, Echo, every_byte_comes_back_in_order};

struct SimClients {
    world: SimWorld,
    clients: Vec<SimClient>,
}

impl Clients for SimClients {
    fn connect(&mut self) -> usize {
        self.clients.push(self.world.connect(0));
        self.clients.len() - 1
    }

    fn write(&mut self, client: usize, bytes: &[u8]) {
        self.clients[client].write(bytes);
    }

    fn read(&mut self, client: usize) -> Vec<u8> {
        self.clients[client].read()
    }

    fn finish(&mut self, client: usize) {
        self.clients[client].finish();
    }
}

/// How many seeds a test tries; `RINGHUB_SIM_SEEDS=10000` for a long run.
fn seeds() -> std::ops::Range<u64> {
    let count = std::env::var("RINGHUB_SIM_SEEDS").ok().and_then(|count| count.parse().ok());
    0..count.unwrap_or(300)
}

fn run(seed: u64, faults: Faults) -> Echo<SimDriver> {
    let world = SimWorld::new(seed, faults);
    let mut server = Echo::new(world.driver_with(4, 256));
    let mut clients = SimClients { world: world.clone(), clients: Vec::new() };
    every_byte_comes_back_in_order(&mut server, &mut clients, seed, 12, 3000);
    assert!(world.is_idle());
    assert_eq!((world.sockets_open(), server.driver.lent()), (0, 0));
    server
}

#[test]
fn every_byte_comes_back_in_a_smooth_world() {
    run(1, Faults::none());
}

#[test]
fn every_byte_comes_back_in_rough_worlds() {
    for seed in seeds() {
        run(seed, Faults::rough());
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..20 {
        assert_eq!(run(seed, Faults::rough()).trace, run(seed, Faults::rough()).trace);
    }
    assert_ne!(run(1, Faults::rough()).trace, run(2, Faults::rough()).trace);
}

#[test]
fn connections_that_break_are_all_closed_and_leave_no_buffer_behind() {
    let mut broken = 0;
    for seed in seeds() {
        let world = SimWorld::new(seed, Faults::hostile());
        let mut server = Echo::new(world.driver_with(4, 256));
        let mut rng = fastrand::Rng::with_seed(seed);
        let clients: Vec<SimClient> = (0..12).map(|_| world.connect(0)).collect();
        for _ in 0..100 {
            for client in &clients {
                match rng.u8(..) {
                    0..100 => client.write(&vec![7; rng.usize(1..600)]),
                    100..103 => client.reset(),
                    103..106 => client.close(),
                    106..110 => client.set_read_budget(rng.usize(0..1000)),
                    _ => drop(client.read()),
                }
            }
            server.turn(Duration::ZERO);
        }
        for client in &clients {
            client.close();
            client.set_read_budget(usize::MAX);
        }
        for _ in 0..1000 {
            server.turn(Duration::ZERO);
        }
        assert_eq!((server.open(), world.sockets_open(), server.driver.lent()), (0, 0, 0), "seed {seed}");
        broken += server.failures;
    }
    assert!(broken > 0);
}

#[test]
fn completions_of_different_connections_overtake_each_other() {
    let order = |seed| {
        let world = SimWorld::new(seed, Faults::rough());
        let mut server = Echo::new(world.driver());
        for _ in 0..4 {
            world.connect(0).write(b"x");
        }
        for _ in 0..50 {
            server.turn(Duration::ZERO);
        }
        let mut slots = Vec::new();
        for completion in &server.trace {
            if let Completion::Received { conn, .. } = completion {
                slots.push(conn.slot);
            }
        }
        slots
    };
    let orders: std::collections::HashSet<Vec<u32>> = (0..50).map(order).collect();
    assert!(orders.len() > 5);
}

#[test]
fn shards_of_one_world_have_clients_of_their_own() {
    let world = SimWorld::new(3, Faults::rough());
    let mut servers = [Echo::new(world.driver()), Echo::new(world.driver())];
    let clients = [world.connect(0), world.connect(1)];
    clients[0].write(b"first");
    clients[1].write(b"second");
    while !world.is_idle() {
        servers.iter_mut().for_each(|server| server.turn(Duration::ZERO));
    }
    assert_eq!((clients[0].read(), clients[1].read()), (b"first".to_vec(), b"second".to_vec()));
}
