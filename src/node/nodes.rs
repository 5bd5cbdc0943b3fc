//! The other nodes at the hub's start, and what is done for them.

use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::api::Wake;
use super::{Hub, Inner, lock};
use crate::broker::emitter;
use crate::broker::nodes::{self, Answering, Asked, Event, Handle, Intake, NodeInfo, Service};
use crate::config::{BrokerKind, Config};
use crate::control::nodes::{NodeCall, serve};
use crate::control::put_back_elsewhere;
use crate::hub::reply::{HubError, Pending, pending};
use crate::shard::request::Request;
use crate::wire::codes::{ErrorCode, close};
use crate::wire::native::Refused;

/// Makes ready for other nodes, if there may be some. `run` stands for this run of the node.
pub(super) fn prepare(config: &Config, run: u64) -> Option<(Handle, Intake)> {
    if config.broker.kind == BrokerKind::Memory {
        return None;
    }
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    Some(nodes::link(NodeInfo {
        run,
        name: config.node.name.clone(),
        public: None,
        internal: None,
        started_ms: since_1970.map_or(0, |since| since.as_millis() as u64),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }))
}

/// Begins: from here on the other nodes know this one.
pub(super) fn start(hub: &Hub, intake: Intake) -> Result<(), crate::broker::StartError> {
    let config = hub.config();
    if let Some(handle) = &hub.inner.nodes_handle {
        let public = hub.addresses().first().map(ToString::to_string);
        handle.set_addresses(public, hub.internal_address().map(|address| address.to_string()));
    }
    // The thread must not keep alive what ends it.
    let hub_of = |hub: &Hub| {
        let weak: Weak<Inner> = Arc::downgrade(&hub.inner);
        move || weak.upgrade().map(|inner| Hub { inner })
    };
    let (for_answers, for_events, for_presence) = (hub_of(hub), hub_of(hub), hub_of(hub));
    let (for_taken, for_late, for_locks) = (hub_of(hub), hub_of(hub), hub_of(hub));
    let service = Service {
        answer: Box::new(move |asked| answering(for_answers(), asked)),
        event: Box::new(move |event| {
            if let Some(hub) = for_events() {
                hub.node_event(event);
            }
        }),
        lock: Arc::new(move |room, noted| {
            let Some(hub) = for_locks() else { return Pending::ready(Ok(())) };
            let ((responder, pending), noted) = (pending(), Box::new(noted));
            hub.ask_room_with(room, |room| Request::FreeOfDead { room, noted, responder });
            pending
        }),
        presence: Arc::new(move |room, told, is_there| match for_presence() {
            Some(hub) => hub.tell_presence(room, told, is_there),
            None => Pending::ready(Ok(())),
        }),
        taken: Box::new(move |client_id| {
            if let Some(hub) = for_taken() {
                let who = super::Target::Client(client_id.into());
                // Nobody waits for how many there were.
                drop(hub.disconnect(&who, close::TAKEN_OVER, "another connection has its client id"));
            }
        }),
        late: Box::new(move |node, answer| {
            if let Some(handle) = for_late().and_then(|hub| hub.inner.nodes_handle.clone()) {
                put_back_elsewhere(&handle, node, &answer);
            }
        }),
    };
    let for_emitter = hub_of(hub);
    let nodes = intake.start(&config, service)?;
    let emitter = emitter::start(&config, nodes.handle().clone(), emitted(for_emitter))?;
    *lock(&hub.inner.nodes) = Some(nodes);
    *lock(&hub.inner.emitter) = emitter;
    Ok(())
}

/// Publishes what a program emits, as anybody's is checked.
fn emitted(hub: impl Fn() -> Option<Hub> + Send + 'static) -> emitter::Publish {
    Box::new(move |room, kind, data| {
        let Some(hub) = hub() else { return };
        let of = room.to_owned();
        let tell = move |outcome: Result<super::Published, Refused>| {
            if let Err(refused) = outcome {
                let (code, message) = (refused.code.as_str(), &*refused.message);
                tracing::warn!(room = of, code, message, "what an emitter said was not published");
            }
        };
        hub.publish_checked(room, kind, data, Box::new(tell));
    })
}

fn answering(hub: Option<Hub>, asked: Asked) -> Answering {
    let call = serde_json::from_slice::<NodeCall>(&asked.data);
    Box::pin(async move {
        let hub = hub.ok_or_else(|| HubError::new(ErrorCode::Unavailable, "the node ends"))?;
        let call = call.map_err(|error| HubError::new(ErrorCode::BadCommand, error.to_string()))?;
        serve(hub, call).await
    })
}

impl Hub {
    /// Something has become of another node, or of what others think of this one.
    fn node_event(&self, event: Event) {
        match event {
            Event::CleanUp(node) => {
                if let Some(handle) = &self.inner.nodes_handle {
                    handle.cleaned(node.run);
                }
            }
            Event::Joined(_) | Event::Left(_) | Event::Revived { .. } | Event::SameName(_) => {}
        }
    }

    /// Tells a room's members who has come or gone; of a type that nobody else may publish.
    fn tell_presence(&self, room: &str, told: Bytes, is_there: bool) -> Pending<()> {
        let kind = if is_there { "presence.joined" } else { "presence.left" };
        let (responder, pending) = pending();
        let tell = move |outcome: Result<super::Published, Refused>| {
            responder.resolve(outcome.map(|_| ()).map_err(Into::into));
        };
        self.publish_unchecked(room, kind, told, None, Box::new(tell), Wake::Now);
        pending
    }

    /// Sends an event to a client that is connected here.
    pub(super) fn send_to_client_here(&self, client_id: &str, kind: &str, data: Bytes) -> super::Pending<super::Sent> {
        self.send_to_client(client_id, kind, data, true)
    }
}
