//! Pure codecs between the bytes of a socket and what they mean.
//!
//! Nothing here does I/O, reads a clock or draws a random number: bytes come in, values that borrow from those bytes
//! go out, and answers are appended to a buffer of the caller.

mod attachments;
pub mod base64;
pub mod codes;
mod decoder;
pub mod deflate;
pub mod engineio;
pub mod envelope;
pub mod extensions;
pub mod forwarded;
pub mod http;
pub mod json;
pub mod lock_commands;
pub mod mask;
pub mod merge_patch;
pub mod msgpack;
pub mod native;
pub mod outlet;
pub mod proxy;
pub mod refusal;
pub mod socketio;
pub mod sse;
pub mod upgrade;
pub mod utf8;
pub mod variant;
pub mod ws;
