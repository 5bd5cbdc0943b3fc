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
//!
//! Each server has a link of its own. The primaries of a cluster are servers like any others, which come and go, and which
//! rooms go to and from (see [`slots`]).

pub mod answers;
pub mod canary;
pub mod cluster;
pub mod connection;
pub mod encoding;
pub mod lanes;
pub mod locks;
pub mod placement;
pub mod request;
pub mod scripts;
pub mod server;
pub mod slots;
pub mod submissions;
pub mod tracker;
pub mod worker;
