//! Whole shards in the simulated world: one seed is one run.

mod bounds;
mod client;
mod disk;
mod durable;
mod figures;
mod locks;
mod logs;
mod model;
mod node;
mod operations;
mod presence;
mod regressions;
mod sessions;
mod streams;
mod urgent;
