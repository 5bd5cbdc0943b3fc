//! What the nodes' thread counts.

use crate::control::figures::Figure;

macro_rules! nodes_figures {
    ($($field:ident: $kind:ident $name:literal $help:literal;)*) => {
        /// The counters; the nodes' thread is their only writer.
        #[derive(Debug, Default)]
        pub struct NodesFigures {
            $(#[doc = $help] pub $field: Figure,)*
        }

        impl NodesFigures {
            /// Every figure: its name, its meaning, whether it only grows, its value.
            pub fn list(&self) -> impl Iterator<Item = (&'static str, &'static str, bool, u64)> {
                [$(($name, $help, stringify!($kind) == "Counter", self.$field.value()),)*].into_iter()
            }
        }
    };
}

nodes_figures! {
    alive: Gauge "nodes_alive" "Nodes that live as far as this one knows, itself included";
    registry_up: Gauge "nodes_registry_up" "Whether the registry of nodes can be reached: 1, or 0";
    lease_age_ms: Gauge "nodes_lease_age_milliseconds" "How long ago the registry took this node's sign of life; others take it for dead after broker.lease_ms";
    client_ids: Gauge "nodes_client_ids" "Ids that clients of this node named, which no other node may give to another one";
    present: Gauge "nodes_present" "Sessions and locks of this node that others know of, should it die";
    calls: Counter "nodes_calls" "Questions to other nodes, each node that was asked counted";
    missing: Counter "nodes_calls_missing" "Questions that a node did not answer in time";
    served: Counter "nodes_calls_served" "Questions of other nodes that were answered";
    refused: Counter "nodes_calls_refused" "Questions of other nodes that were refused because too many were under way";
    cleaned: Counter "nodes_cleaned" "Times that this node cleared away what a dead one had left behind";
    revived: Counter "nodes_revived" "Times that the registry did not know this node any more";
    links_lost: Counter "nodes_links_lost" "Times that the registry could not be reached any more, or not yet";
}
