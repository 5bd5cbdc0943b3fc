//! The running hub: shards and control plane, and the handle to them.
