//! The driver's contract, on all drivers: one echo server, generic over [`ringhub::ring::Driver`], runs on real sockets and
//! in the seeded simulation. What real sockets show stands in `real`, and is run by `uring` and `epoll`; what only one of
//! them can show stands there and in `sim`.

mod echo;
mod epoll;
mod real;
mod sim;
mod uring;
mod waiting;
