//! Whole shards in the simulated world: one seed is one run.

mod client;
mod logs;
mod model;
mod node;
mod operations;
mod regressions;
