//! The `shard` layer.
