//! One client's state.
pub mod limits;
