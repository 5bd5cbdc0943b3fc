//! The driver's contract, on both drivers: one echo server, generic over [`ringhub::ring::Driver`], runs on real sockets
//! and in the seeded simulation; what only one of them can show stands in `uring` and `sim`.

mod echo;
mod sim;
mod uring;
mod waiting;
