//! The life of a message behind the codecs, a group per stage, without any socket: `command`, `selection`, `envelope`,
//! `fan_out`, `replay`, `mesh`, `socketio`. Each module says which question its figures answer; `wire` has the stages before
//! these.
//!
//! `cargo bench --bench stages`, or `cargo bench --bench stages -- fan_out` for one of them.

mod command;
mod envelope;
mod fan_out;
#[path = "../instructions/mod.rs"]
mod instructions;
mod mesh;
mod replay;
mod selection;
mod socketio;

/// An event of the size that the end-to-end figures use: 128 bytes of data.
const DATA: &[u8] = br#"{"status":"failed","confidence_level":0.85,"name":"db-1","nested":{"attempt":3,"of":5},"note":"a deploy took longer than 120 s"}"#;
const KIND: &str = "workflow.progress";
const ROOM: &str = "project:bench";

benches!(
    "stages",
    counted: [
        command::bench,
        selection::bench,
        envelope::bench,
        fan_out::bench,
        replay::bench,
        mesh::queue,
        socketio::bench
    ],
    timed: [mesh::hops]
);
