//! The broker that keeps rooms in Redis (or Valkey), 6.2 or newer.
//!
//! ```text
//!  shards ─► worker ─► submissions ─► publish.lua ─► log, and channel of the room
//!    ▲         │                                          │
//!    └─────────┴◄── tracker ◄── read.lua ◄── what is missing ── what is published
//! ```
//!
//! Keys and channels of a room have its name in braces, so that a cluster has them in one slot. What they hold is told in
//! `scripts/publish.lua`, how events are written in [`encoding`].

pub mod canaries;
pub mod connection;
pub mod encoding;
pub mod locks;
pub mod placement;
pub mod primaries;
pub mod request;
pub mod scripts;
pub mod server;
pub mod submissions;
pub mod tracker;
pub mod worker;
