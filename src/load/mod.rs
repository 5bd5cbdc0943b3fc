//! The shell's clients of a hub: the load generator (`ringhub bench`), `ringhub plan`, `ringhub tail`, `ringhub publish` and
//! `ringhub explain`.
//!
//! They speak the public protocol only and share nothing with the server's own code, so that what they measure and print
//! is what any other client sees. The codec is tungstenite's, the readiness loop is plain epoll.
//!
//! ```text
//! bench ── plan ──► worker × threads ──► client (one connection) ──► poller (epoll)
//!   │                 │ schedule, stamp, sequence
//!   └── report ◄── tally
//! ```

pub mod bench;
pub mod capacity;
mod churn;
pub(crate) mod client;
mod course;
pub mod explain;
pub(crate) mod failure;
pub(crate) mod message;
mod plan;
mod poller;
mod process;
pub mod publish;
mod report;
mod report_text;
mod run;
mod schedule;
mod sequence;
mod session;
mod stamp;
pub mod tail;
mod tally;
pub(crate) mod target;
mod text;
mod traffic;
mod unpack;
mod worker;

#[cfg(test)]
mod standin;

pub use target::Token;
