//! Whole shards in the simulated world: one seed is one run.

mod client;
mod logs;
mod model;
mod node;
mod presence;
mod regressions;
