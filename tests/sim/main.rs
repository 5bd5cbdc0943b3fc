//! Whole shards in the simulated world: one seed is one run.

mod client;
mod figures;
mod logs;
mod model;
mod node;
mod regressions;
