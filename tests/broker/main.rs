//! The broker against real Redis servers: what is published arrives everywhere once and in order, whatever breaks.

mod access;
mod chaos;
mod faults;
mod locks;
mod measure;
mod rooms;
mod support;
mod topologies;
