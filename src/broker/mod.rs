//! The broker: what carries rooms between nodes. Without one, the home of a room numbers its events and keeps its log.

pub mod link;
