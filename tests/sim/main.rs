//! Whole shards in the simulated world: one seed is one run.

mod access;
mod bounds;
mod client;
mod disk;
mod durable;
mod figures;
mod hooks;
mod locks;
mod logs;
mod model;
mod node;
mod operations;
mod presence;
mod regressions;
mod sessions;
mod streams;
mod trace;
mod urgent;
