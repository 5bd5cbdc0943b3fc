//! Pure codecs between the bytes of a socket and what they mean.
//!
//! Nothing here does I/O, reads a clock or draws a random number: bytes come in, values that borrow from those bytes
//! go out, and answers are appended to a buffer of the caller.

mod decoder;
pub mod forwarded;
pub mod http;
pub mod mask;
pub mod proxy;
pub mod refusal;
pub mod upgrade;
pub mod utf8;
pub mod ws;
