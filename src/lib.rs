//! Ringhub: a dedicated real-time hub for Linux.

pub mod auth;
pub mod cli;
pub mod config;
pub mod control;
pub mod hub;
pub mod load;
pub mod node;
pub mod ring;
pub mod session;
pub mod shard;
pub mod wire;
