//! A shard's core: rooms, members, selections, fan-out, directories. Pure: no sockets, no clock, no randomness.
//!
//! A publish goes to the room's *home* (hash of its name), gets its `seq`, is encoded once behind the turn's other events
//! of the room, and travels as one [`batch::Batch`] to every shard with members, which fan it out in slices.

pub mod batch;
pub mod brokered;
pub mod canary;
mod chunks;
mod clear;
pub mod core;
pub mod delta;
pub mod directory;
pub mod durable;
pub mod explain;
mod fan_out;
pub mod history;
pub mod ids;
pub mod keys;
mod lanes;
mod linger;
pub mod lock;
pub mod lock_pages;
pub mod locks;
pub mod log;
pub mod members;
pub mod message;
pub mod moved;
mod moved_locks;
pub mod name;
pub mod outbox;
pub mod presence;
pub mod presence_home;
mod publish;
pub mod recorder;
pub mod relayed;
pub mod relaying;
pub mod reply;
pub mod resume;
pub mod rooms;
pub mod rules;
pub mod schema;
pub mod selection;
pub mod session_home;
pub mod shard_counts;
pub mod shared_locks;
pub mod stored;
pub mod trace;
pub mod view;
mod withdraw;
