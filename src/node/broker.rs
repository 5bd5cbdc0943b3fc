//! The broker at the hub's start: shards are given its link first, then it begins.

use std::sync::Arc;

use crate::broker::{self, Broker, BrokerFigures, Identity, Intake, Link, StartError};
use crate::config::{BrokerKind, Config};
use crate::hub::name::ShardId;
use crate::shard::mesh::Mesh;
use crate::shard::request::Request;

/// A broker that is not started yet.
pub(super) struct Prepared {
    pub(super) link: Link,
    pub(super) identity: Identity,
    intake: Intake,
}

/// Makes ready for the broker of a configuration, if it has one. `run` stands for this run of the node.
pub(super) fn prepare(config: &Config, shards: u16, run: u64) -> Option<Prepared> {
    if config.broker.kind == BrokerKind::Memory {
        return None;
    }
    let (link, intake) = broker::link(shards);
    let identity = Identity { run, name: config.node.name.clone() };
    Some(Prepared { link, identity, intake })
}

impl Prepared {
    /// Begins.
    pub(super) fn start(self, config: &Config, mesh: Arc<Mesh>) -> Result<Broker, StartError> {
        // A shard whose queue is full is awake, and looks at the broker in each of its turns.
        let wake = Box::new(move |shard| drop(mesh.request(ShardId(shard), Request::Look)));
        let figures: Arc<BrokerFigures> = Arc::default();
        broker::start(config, &self.identity, self.intake, figures, wake)
    }
}
