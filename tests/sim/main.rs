//! Whole shards in the simulated world: one seed is one run.

mod client;
mod disk;
mod durable;
mod logs;
mod model;
mod node;
mod regressions;
