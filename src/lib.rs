//! Ringhub: a dedicated real-time hub for Linux. Clients hold a WebSocket to it, speak Socket.IO or read a stream of
//! server-sent events, backends publish to rooms, and it delivers.
//!
//! This page is the map of the crate; the README is for those who run it.
//!
//! ```text
//!     kernel ─► ring ─► wire ─► session ─► hub ─► outbox ─► wire ─► ring ─► kernel      a shard: one pinned thread, one
//!                                          ▲ │                                          ring, its own connections
//!                           lock-free mesh │ ▼ one batch and one bell per turn
//!                                       other shards
//!                                          ▲
//!     control plane (one executor): HTTP API, health, metrics, alerts ──► store (a thread): history in SQLite
//!     journal (another one): what durable rooms keep beyond the process
//!     hooks, telemetry (threads, where configured): what a backend is told and asked, traces and metrics over OTLP
//! ```
//!
//! # The life of an event
//!
//! 1. [`ring`]: a completion says that bytes of a client are in a buffer of the shard's ring.
//! 2. [`wire`]: they are unmasked and decoded where they are; a text message becomes a command that borrows from it.
//! 3. [`session`]: the client's rate, permissions and the event's shape are checked.
//! 4. [`shard`] sends the publish to the room's *home*, over the mesh where that is another shard.
//! 5. [`hub`], at home: the event gets its `seq` and is encoded once, its data spliced in as it came, behind the other
//!    events of the room in this turn. At the turn's end they are sealed as one batch, which goes into the room's log and
//!    to every shard with members. That of a durable room waits until the journal has it ([`hub::durable`],
//!    [`control::journal`]), and its publishers with it.
//! 6. [`hub`], at each of those shards: the batch is fanned out in slices; every member's outbox gets the same bytes, or
//!    those that its selection chose.
//! 7. [`shard`]: each outbox that has something sends one chunk. [`ring`] keeps its memory until the kernel is done.
//!
//! # What always holds
//!
//! - Nothing is shared between threads but immutable frames, queues, and counters that one of them writes.
//! - One queue per ordered pair of shards keeps the order: who joins a room gets every event after the `seq` it was told,
//!   and none before, wherever it is.
//! - Every queue is bounded. Past the bound there is a refusal, or the reader goes on from the log; what it can't have is
//!   named by a `gap`.
//! - `wire`, `session` and `hub` do no I/O, read no clock and draw no random numbers. The shard is generic over its driver:
//!   `ring::uring` for real, `ring::epoll` where io_uring is forbidden, `ring::sim` for tests, where one seed is one run.
//! - The control plane reaches shards by message only, and a shard never waits for it.
//!
//! # Words
//!
//! *Shard*: a thread with its connections. *Room*: a name (`kind:name`) with a log. *Home*: the shard that numbers a room's
//! events. *Member*: a connection in a room. *Seq*: an event's number in its room. *Epoch*: one life of a room's numbers.
//! *Batch*: the events of a room in one turn. *Selection*: what of a room a member wants. *Outbox*: what waits for one
//! connection. *Session*: what outlives a connection for a while.
//!
//! A program that embeds the hub begins at [`node::Hub`].

pub mod auth;
pub mod broker;
pub mod cli;
pub mod config;
pub mod control;
pub mod demo;
pub mod hub;
pub mod load;
pub mod node;
pub mod ring;
pub mod session;
pub mod shard;
pub mod wire;
