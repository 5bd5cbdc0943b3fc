//! The `wire` layer.
pub mod codes;
pub mod envelope;
pub mod json;
pub mod native;
pub mod ws;
