//! What happened lately: the records of a client's connections, and what became of an event for it.

use std::sync::Arc;

use super::api::Gather;
use super::{Hub, HubError, Pending, lock};
use crate::hub::batch::Address;
use crate::hub::explain::{EventFound, EventSought, Explanation, Outcome};
use crate::hub::name::ShardId;
use crate::hub::reply::{Responder, pending};
use crate::hub::trace::{ConnectionTrace, TraceAsked};
use crate::ring::ConnKey;
use crate::session::ClientId;
use crate::shard::mesh::Mesh;
use crate::shard::request::{ExplainAsked, Request};
use crate::wire::codes::ErrorCode;

impl Hub {
    /// What happened to a client's connections, newest first: the one that is open and those that ended within
    /// `recorder.keep_minutes`, with the newest `limit` records of each.
    ///
    /// ```
    /// # use ringhub::{node::Hub, config::Config};
    /// # let mut config = Config::default();
    /// # config.listen.public = vec!["127.0.0.1:0".parse().unwrap()];
    /// # config.shards.count = 1;
    /// # let hub = Hub::start(config)?;
    /// assert!(hub.trace("nobody", 100).wait().is_err());
    /// # hub.shutdown()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn trace(&self, client_id: &str, limit: usize) -> Pending<Vec<ConnectionTrace>> {
        if let Some(refused) = self.records_nothing() {
            return Pending::ready(Err(refused));
        }
        let (responder, pending) = pending();
        let asked = Arc::new(TraceAsked { client_id: client_id.into(), limit });
        let newest_first = Responder::to(move |outcome: Result<Vec<ConnectionTrace>, HubError>| {
            responder.resolve(outcome.and_then(|mut all| {
                all.sort_by(|one, other| other.connected_at.cmp(&one.connected_at));
                if all.is_empty() { Err(no_such_client()) } else { Ok(all) }
            }));
        });
        let mesh = self.inner.mesh.clone();
        self.locate(client_id, move |address| {
            ask_all(&mesh, newest_first, append, |shard, responder| Request::Trace {
                asked: asked.clone(),
                live: live_on(address, shard),
                responder,
            });
        });
        pending
    }

    /// What became of an event for a client: of its connections, the one that it went the farthest to counts.
    pub fn explain(&self, client_id: &str, event_id: &str) -> Pending<Explanation> {
        if let Some(refused) = self.records_nothing() {
            return Pending::ready(Err(refused));
        }
        let Ok(id) = uuid::Uuid::try_parse(event_id) else {
            return Pending::ready(Err(HubError::new(ErrorCode::BadCommand, "an event's id is a UUID")));
        };
        let (responder, pending) = pending();
        let event_id = id.hyphenated().to_string();
        let published_ms =
            id.get_timestamp().map_or(0, |at| at.to_unix().0 * 1000 + u64::from(at.to_unix().1) / 1_000_000);
        let client_id: ClientId = client_id.into();
        let hub = self.inner.mesh.clone();
        let (asked, sought): (ClientId, Box<str>) = (client_id.clone(), event_id.as_str().into());
        self.locate(&client_id, move |address| {
            let mesh = hub.clone();
            let event_sought = Responder::to(move |outcome: Result<EventSought, HubError>| match outcome {
                Err(error) => responder.resolve(Err(error)),
                Ok(EventSought { found: Some(event), .. }) => explain_event(&mesh, asked, address, event, responder),
                Ok(sought) => {
                    let (outcome, detail) = absent(&sought, published_ms);
                    responder.resolve(Ok(Explanation::new(&asked, &event_id, outcome, detail)));
                }
            });
            ask_all(&hub, event_sought, EventSought::and, |_, responder| Request::FindEvent {
                event_id: sought.clone(),
                responder,
            });
        });
        pending
    }

    /// Finds out where a client's connection is, if it has one, and goes on from there.
    fn locate(&self, client_id: &str, then: impl FnOnce(Option<Address>) + Send + 'static) {
        // A directory that does not answer is as good as one that knows nobody: its shard will be missed again.
        let responder = Responder::to(move |outcome: Result<Option<Address>, HubError>| then(outcome.ok().flatten()));
        self.ask_key(client_id, Request::Whereabouts { client_id: client_id.into(), responder });
    }

    fn records_nothing(&self) -> Option<HubError> {
        let records = lock(&self.inner.settings).config.recorder.records;
        let message = "nothing is recorded: recorder.records is 0";
        (records == 0).then(|| HubError::new(ErrorCode::Unavailable, message))
    }
}

/// Asks all shards, from whichever thread, and puts their answers together.
fn ask_all<T: Default + Send + 'static>(
    mesh: &Mesh,
    responder: Responder<T>,
    add: fn(T, T) -> T,
    request: impl Fn(ShardId, Responder<T>) -> Request,
) {
    let gather = Gather::new(responder, usize::from(mesh.shards()));
    for shard in (0..mesh.shards()).map(ShardId) {
        // A full queue is told by the responder that is dropped with the request.
        drop(mesh.request(shard, request(shard, Responder::to(gather.part_with(add)))));
    }
}

fn append<T>(mut all: Vec<T>, more: Vec<T>) -> Vec<T> {
    all.extend(more);
    all
}

fn live_on(address: Option<Address>, shard: ShardId) -> Option<ConnKey> {
    address.filter(|address| address.shard == shard).map(|address| address.conn)
}

fn explain_event(
    mesh: &Mesh,
    client_id: ClientId,
    address: Option<Address>,
    event: EventFound,
    responder: Responder<Explanation>,
) {
    let event = Arc::new(event);
    let farthest = Responder::to(move |outcome: Result<Vec<Explanation>, HubError>| {
        responder.resolve(outcome.and_then(|all| {
            let farthest = |one: &Explanation, other: &Explanation| {
                one.outcome.cmp(&other.outcome).then_with(|| one.connected_at.cmp(&other.connected_at))
            };
            all.into_iter().max_by(farthest).ok_or_else(no_such_client)
        }));
    });
    ask_all(mesh, farthest, append, |shard, responder| {
        let (client_id, live) = (client_id.clone(), live_on(address, shard));
        Request::Explain(Box::new(ExplainAsked { client_id, live, event: event.clone(), responder }))
    });
}

/// What can be said of an event that no shard knows.
fn absent(sought: &EventSought, published_ms: u64) -> (Outcome, String) {
    if sought.taken_back {
        let detail = "The journal failed before it was published; its publisher was told so, and nobody got it.";
        return (Outcome::Dropped, detail.to_owned());
    }
    if published_ms < sought.since_ms {
        return (Outcome::Unknown, "That is too long ago: the records don't reach back.".to_owned());
    }
    (Outcome::Unknown, "There was no event with that id on this node.".to_owned())
}

fn no_such_client() -> HubError {
    let message = "there is no such client, and none has left within recorder.keep_minutes";
    HubError::new(ErrorCode::NotFound, message)
}
