//! The way between shards and broker: a bounded queue of each shard to it, and one back.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;

use crate::hub::brokered::{FromBroker, ToBroker};
use crate::hub::name::ShardId;

/// Batches that may wait from one shard for the broker, and from the broker for one shard.
const BATCHES_MAX: usize = 256;
