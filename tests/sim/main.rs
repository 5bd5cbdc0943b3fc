//! Whole shards in the simulated world: one seed is one run.

mod client;
mod model;
mod node;
mod regressions;
