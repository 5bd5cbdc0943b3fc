//! How large a hub has to be: `ringhub bench --calibrate` measures what things cost on this host, `ringhub plan` says from
//! that what a load needs.
//!
//! ```text
//! bench --calibrate ── calibrate ──► figures (a file) ──► plan ──► need ──► text, or JSON
//! ```
//!
//! `need` is arithmetic alone; each of its results carries the terms that it was added up from.

pub(crate) mod calibrate;
mod figures;
mod hub;
mod need;
pub mod plan;
mod text;
