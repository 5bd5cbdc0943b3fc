//! Whole shards in the simulated world: one seed is one run.

mod access;
mod bounds;
mod client;
mod cluster;
mod compression;
mod disk;
mod durable;
mod engine;
mod exchange;
mod figures;
mod hooks;
mod locks;
mod logs;
mod model;
mod namespaces;
mod node;
mod operations;
mod presence;
mod regressions;
mod sessions;
mod shared_locks;
mod socketio;
mod streams;
mod trace;
mod upgrades;
mod urgent;
