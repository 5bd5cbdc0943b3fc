//! What an embedding program can do with a hub. Every call returns at once with a [`Pending`]: await it, or `wait()`.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Hub, HubError, Pending, Published, Target, lock};
use crate::control::{ShardFigures, ShardTimes, Snapshot};
pub use crate::hub::message::Sent;
use crate::hub::message::{ClientRequest, Direct, OVERLOADED, Publish, ReplyTo};
use crate::hub::name::{RoomName, ShardId, home_of, split};
use crate::hub::presence::RoomPresence;
use crate::hub::reply::{Responder, pending};
use crate::hub::schema;
use crate::ring::clock::monotonic_us;
use crate::shard::count_audience;
use crate::shard::request::Request;
use crate::wire::codes::ErrorCode;
use crate::wire::native::{Refused, is_event_type};

/// When a shard that sleeps is woken for what is asked of it.
pub(super) enum Wake {
    /// At once.
    Now,
    /// By the caller, once for several.
    Later,
}

type Tell = Box<dyn FnOnce(Result<Published, Refused>) + Send>;

impl Hub {
    /// Puts an event into a room.
    ///
    /// ```
    /// # use ringhub::{node::Hub, config::Config};
    /// # let mut config = Config::default();
    /// # config.listen.public = vec!["127.0.0.1:0".parse().unwrap()];
    /// # config.shards.count = 1;
    /// # let hub = Hub::start(config)?;
    /// let event = hub.publish("workflow:42", "workflow.progress", &serde_json::json!({"progress": 50})).wait()?;
    /// assert_eq!(event.seq, 1);
    /// # hub.shutdown()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn publish(&self, room: &str, kind: &str, data: &impl Serialize) -> Pending<Published> {
        let (responder, pending) = pending();
        match serde_json::to_vec(data) {
            Ok(data) => self.publish_checked(room, kind, data.into(), resolve(responder)),
            Err(error) => responder.resolve(Err(HubError::new(ErrorCode::BadJson, error.to_string()))),
        }
        pending
    }

    /// Puts an event into the room `global`, in which every connection is.
    pub fn broadcast(&self, kind: &str, data: &impl Serialize) -> Pending<Published> {
        self.publish("global", kind, data)
    }

    /// Sends an event to one client, to sessions, or to every connection of a user.
    ///
    /// ```
    /// # use ringhub::{node::{Hub, Target}, config::Config};
    /// # let mut config = Config::default();
    /// # config.listen.public = vec!["127.0.0.1:0".parse().unwrap()];
    /// # config.shards.count = 1;
    /// # let hub = Hub::start(config)?;
    /// let sent = hub.send(&Target::User("alice".into()), "notification.created", &serde_json::json!({})).wait()?;
    /// assert_eq!(sent.delivered, 0, "alice is not here");
    /// # hub.shutdown()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send(&self, to: &Target, kind: &str, data: &impl Serialize) -> Pending<Sent> {
        match serde_json::to_vec(data) {
            Ok(data) => self.send_bytes(to, kind, data.into()),
            Err(error) => Pending::ready(Err(HubError::new(ErrorCode::BadJson, error.to_string()))),
        }
    }

    /// Sends an event whose data is JSON already.
    pub(super) fn send_bytes(&self, to: &Target, kind: &str, data: Bytes) -> Pending<Sent> {
        let (responder, pending) = pending();
        if let Err(refused) = self.check_event(kind, &data) {
            responder.resolve(Err(refused.into()));
            return pending;
        }
        match to {
            Target::Client(client_id) => return self.send_to_client(client_id, kind, data, false),
            Target::Session(id) => self.send_to_addressee(&format!("session:{id}"), kind, data, responder),
            Target::User(id) => self.send_to_addressee(&format!("user:{id}"), kind, data, responder),
            Target::Sessions(ids) => {
                let gather = Gather::new(responder, ids.len());
                for id in ids {
                    let part = Responder::to(gather.part());
                    self.send_to_addressee(&format!("session:{id}"), kind, data.clone(), part);
                }
            }
        }
        pending
    }

    /// Sends to a client; one that is not connected here is looked for at other nodes, unless it is `only_here`.
    pub(super) fn send_to_client(&self, client_id: &str, kind: &str, data: Bytes, only_here: bool) -> Pending<Sent> {
        let (responder, pending) = pending();
        let tell = move |outcome: Result<Published, Refused>| {
            responder.resolve(outcome.map(sent).map_err(Into::into));
        };
        let direct = Direct { kind: kind.into(), data, only_here, reply: ReplyTo::Handle(Box::new(tell)) };
        let request = Request::SendToClient { client_id: client_id.into(), direct: Box::new(direct) };
        self.ask_key(client_id, request);
        pending
    }

    /// Sends to whoever is in the room of a session or user, at all nodes.
    fn send_to_addressee(&self, room: &str, kind: &str, data: Bytes, responder: Responder<Sent>) {
        let (nodes, of_room) = (self.inner.nodes_handle.clone(), room.to_owned());
        let responder = responder.in_doubt();
        let tell = move |outcome: Result<Published, Refused>| match (outcome, nodes) {
            (Ok(published), Some(nodes)) if published.nodes > 0 => {
                count_audience(&nodes, &of_room, published, move |published| responder.resolve(Ok(sent(published))));
            }
            (outcome, _) => responder.resolve(outcome.map(sent).map_err(Into::into)),
        };
        self.send_to_room(room, kind, data, None, Box::new(tell));
    }

    /// Whether somebody is connected: the client, the session, one of the sessions, or the user.
    pub fn is_connected(&self, who: &Target) -> Pending<bool> {
        let (responder, pending) = pending();
        match who {
            Target::Client(client_id) => {
                self.ask_key(client_id, Request::HasClient { client_id: client_id.clone(), responder });
            }
            Target::Session(id) => self.ask_room(&format!("session:{id}"), responder),
            Target::User(id) => self.ask_room(&format!("user:{id}"), responder),
            Target::Sessions(ids) => {
                let gather = Gather::new(responder, ids.len());
                for id in ids {
                    self.ask_room_with(&format!("session:{id}"), |room| Request::IsOccupied {
                        room,
                        responder: Responder::to(gather.part_with(|sum, one: bool| sum | one)),
                    });
                }
            }
        }
        pending
    }

    /// Who is in a room: the sessions that are members of it, and those that were and can still be resumed.
    ///
    /// ```
    /// # use ringhub::{node::Hub, config::Config};
    /// # let mut config = Config::default();
    /// # config.listen.public = vec!["127.0.0.1:0".parse().unwrap()];
    /// # config.shards.count = 1;
    /// # let hub = Hub::start(config)?;
    /// let presence = hub.presence("project:42").wait()?;
    /// for member in &presence.members {
    ///     println!("{} is here since {}", member.user_id, member.joined_ms);
    /// }
    /// assert_eq!(presence.count, 0, "nobody has joined yet");
    /// # hub.shutdown()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn presence(&self, room: &str) -> Pending<RoomPresence> {
        let (responder, pending) = pending();
        match self.check_room(room) {
            Ok(_) => self.ask_room_with(room, |room| Request::Presence { room, responder }),
            Err(refused) => responder.resolve(Err(refused.into())),
        }
        pending
    }

    /// The metadata of a client's connection, after merging `set` into it (null removes a key).
    pub fn metadata(&self, client_id: &str, set: Option<Map<String, Value>>) -> Pending<Value> {
        let (responder, pending) = pending();
        let request = ClientRequest::Metadata { set, responder };
        self.ask_key(client_id, Request::Client { client_id: client_id.into(), request });
        pending
    }

    /// The next `message` that a session's client has sent for the backend, waiting at most `timeout`; none where there
    /// was none. Messages come in order, each to one caller.
    pub fn receive(&self, session_id: &str, timeout: Duration) -> Result<Option<Bytes>, HubError> {
        self.receive_pending(session_id).wait_timeout(timeout)
    }

    /// The next `message` of a session, whenever it comes. Dropping it takes no message.
    pub fn receive_pending(&self, session_id: &str) -> Pending<Bytes> {
        let (responder, pending) = pending();
        self.ask_room_with(&format!("session:{session_id}"), |room| Request::Collect { room, responder });
        pending
    }

    /// Closes connections: a client's, of sessions, or all of a user's. Says how many there were. `code` is a close code
    /// that an application may use (1000, or 3000 to 4999).
    pub fn disconnect(&self, who: &Target, code: u16, reason: &str) -> Pending<u32> {
        let (responder, pending) = pending();
        if code != 1000 && !(3000..5000).contains(&code) {
            let message = "a close code of an application is 1000, or 3000 to 4999";
            responder.resolve(Err(HubError::new(ErrorCode::BadCommand, message)));
            return pending;
        }
        let reason: Box<str> = reason.into();
        match who {
            Target::Client(client_id) => {
                let request = ClientRequest::Disconnect { code, reason, responder };
                self.ask_key(client_id, Request::Client { client_id: client_id.clone(), request });
            }
            Target::Session(id) => {
                let request = ClientRequest::Disconnect { code, reason, responder };
                self.ask_room_with(&format!("session:{id}"), |room| Request::Session { room, request });
            }
            Target::Sessions(ids) => {
                let gather = Gather::new(responder, ids.len());
                for id in ids {
                    let (reason, responder) = (reason.clone(), Responder::to(gather.sum_part()));
                    let request = ClientRequest::Disconnect { code, reason, responder };
                    self.ask_room_with(&format!("session:{id}"), |room| Request::Session { room, request });
                }
            }
            Target::User(user_id) => {
                let shards = self.inner.mesh.shards();
                let gather = Gather::new(responder, usize::from(shards));
                for shard in 0..shards {
                    let request = Request::DisconnectUser {
                        user_id: user_id.clone(),
                        code,
                        reason: reason.clone(),
                        responder: Responder::to(gather.sum_part()),
                    };
                    self.ask(ShardId(shard), request);
                }
            }
        }
        pending
    }

    /// What all shards have counted so far.
    pub fn stats(&self) -> Snapshot {
        let shards = self.inner.figures.iter().zip(0..).map(|(figures, shard)| {
            let (mesh_waiting, requests_waiting) = self.inner.mesh.waiting(ShardId(shard));
            ShardFigures { mesh_waiting, requests_waiting, ..figures.read() }
        });
        Snapshot { shards: shards.collect() }
    }

    /// The times that each shard has measured so far.
    pub fn times(&self) -> Vec<ShardTimes> {
        self.inner.figures.iter().map(|figures| figures.times()).collect()
    }

    /// Publishes an event of the hub's own, or of the program that embeds it, as anybody's is checked.
    pub(super) fn publish_checked(&self, room: &str, kind: &str, data: Bytes, tell: Tell) {
        match self.check_publish(room, kind, &data, None, |_, _| true) {
            Ok(()) => self.publish_unchecked(room, kind, data, None, tell, Wake::Now),
            Err(refused) => tell(Err(refused)),
        }
    }

    /// Whether an event may be published; `may` says whether the publisher may write to a kind and name.
    pub(super) fn check_publish(
        &self,
        room: &str,
        kind: &str,
        data: &[u8],
        key: Option<&str>,
        may: impl FnOnce(&str, &str) -> bool,
    ) -> Result<(), Refused> {
        let (room_kind, name) = self.check_room(room)?;
        if !may(room_kind, name) {
            return Err(Refused::new(ErrorCode::Forbidden, "a permission to publish into this room is missing"));
        }
        let key_bytes_max = lock(&self.inner.settings).config.limits.key_bytes_max;
        if key.is_some_and(|key| key.is_empty() || key.len() > key_bytes_max) {
            return Err(Refused::because(ErrorCode::BadCommand, format!("a key has 1 to {key_bytes_max} bytes")));
        }
        self.check_event(kind, data)
    }

    fn check_event(&self, kind: &str, data: &[u8]) -> Result<(), Refused> {
        if !is_event_type(kind) {
            let message = "a type is 1 to 100 of A-Z a-z 0-9 . _ : / -";
            return Err(Refused::new(ErrorCode::BadCommand, message));
        }
        let settings = lock(&self.inner.settings).clone();
        let limits = &settings.config.limits;
        if data.len() > limits.message_bytes_max {
            let message = format!("data has at most {} bytes", limits.message_bytes_max);
            return Err(Refused::because(ErrorCode::TooLarge, message));
        }
        schema::check(kind, data, settings.config.events.strict, limits.depth_max)
    }

    fn check_room<'r>(&self, room: &'r str) -> Result<(&'r str, &'r str), Refused> {
        let settings = lock(&self.inner.settings).clone();
        let (kind, name) = split(room, settings.config.limits.room_name_bytes_max)?;
        match settings.config.kind(kind) {
            Some(_) => Ok((kind, name)),
            None => Err(Refused::because(ErrorCode::BadRoom, format!("there is no kind of room called {kind:?}"))),
        }
    }

    fn send_to_room(&self, room: &str, kind: &str, data: Bytes, key: Option<&str>, tell: Tell) {
        match self.check_room(room) {
            Ok(_) => self.publish_unchecked(room, kind, data, key, tell, Wake::Now),
            Err(refused) => tell(Err(refused)),
        }
    }

    /// Has a room's home publish what was checked.
    pub(super) fn publish_unchecked(
        &self,
        room: &str,
        kind: &str,
        data: Bytes,
        key: Option<&str>,
        tell: Tell,
        wake: Wake,
    ) {
        let room = self.inner.hasher.room(room);
        let home = room.home(self.inner.mesh.shards());
        let (kind, key) = (kind.into(), key.map(Into::into));
        let (received_us, reply) = (monotonic_us(), ReplyTo::Handle(tell));
        let publish = Publish { room, kind, data, key, exclude: None, received_us, reply };
        let request = Request::Publish(Box::new(publish));
        let outcome = match wake {
            Wake::Now => self.inner.mesh.request(home, request),
            Wake::Later => self.inner.mesh.request_quietly(home, request),
        };
        if let Err(Request::Publish(publish)) = outcome
            && let ReplyTo::Handle(tell) = publish.reply
        {
            tell(Err(OVERLOADED));
        }
    }

    pub(super) fn ask_room(&self, room: &str, responder: Responder<bool>) {
        self.ask_room_with(room, |room| Request::IsOccupied { room, responder });
    }

    /// Asks a room's home. A name that can't be one is answered by its dropped responder.
    pub(super) fn ask_room_with(&self, room: &str, request: impl FnOnce(RoomName) -> Request) {
        let room = self.inner.hasher.room(room);
        let home = room.home(self.inner.mesh.shards());
        self.ask(home, request(room));
    }

    pub(super) fn ask_key(&self, key: &str, request: Request) {
        let home = home_of(self.inner.hasher.hash(key), self.inner.mesh.shards());
        self.ask(home, request);
    }

    /// Whoever waits for a request that found a full queue learns it from the responder that is dropped with it.
    pub(super) fn ask(&self, shard: ShardId, request: Request) {
        if self.inner.mesh.request(shard, request).is_err() {
            tracing::debug!(shard = shard.0, "a shard's queue of requests is full");
        }
    }
}

fn resolve(responder: Responder<Published>) -> Tell {
    let responder = responder.in_doubt();
    Box::new(move |outcome| responder.resolve(outcome.map_err(Into::into)))
}

fn sent(published: Published) -> Sent {
    Sent { delivered: u64::from(published.delivered), queued: u64::from(published.queued) }
}

/// Answers of several shards put together: the first error, or the sum.
pub(super) struct Gather<T>(Arc<Mutex<Gathering<T>>>);

struct Gathering<T> {
    sum: T,
    waiting: usize,
    responder: Option<Responder<T>>,
}

impl<T: Default + Send + 'static> Gather<T> {
    pub(super) fn new(responder: Responder<T>, parts: usize) -> Gather<T> {
        let mut gathering = Gathering { sum: T::default(), waiting: parts, responder: Some(responder) };
        gathering.finish();
        Gather(Arc::new(Mutex::new(gathering)))
    }

    fn add(&self, add: impl FnOnce(T) -> T) {
        let mut gathering = lock(&self.0);
        gathering.sum = add(std::mem::take(&mut gathering.sum));
        gathering.waiting = gathering.waiting.saturating_sub(1);
        gathering.finish();
    }

    fn fail(&self, error: HubError) {
        if let Some(responder) = lock(&self.0).responder.take() {
            responder.resolve(Err(error));
        }
    }
}

impl<T: Default> Gathering<T> {
    fn finish(&mut self) {
        if self.waiting == 0
            && let Some(responder) = self.responder.take()
        {
            responder.resolve(Ok(std::mem::take(&mut self.sum)));
        }
    }
}

impl<T: Default + Send + 'static> Gather<T> {
    /// A part that `add` puts together with those before it.
    pub(super) fn part_with<U>(
        &self,
        add: impl FnOnce(T, U) -> T + Send + 'static,
    ) -> impl FnOnce(Result<U, HubError>) + Send + 'static {
        let whole = Gather(self.0.clone());
        move |outcome| match outcome {
            Ok(one) => whole.add(|sum| add(sum, one)),
            Err(error) => whole.fail(error),
        }
    }
}

impl Gather<Sent> {
    fn part(&self) -> impl FnOnce(Result<Sent, HubError>) + Send + 'static {
        self.part_with(|sum: Sent, one: Sent| Sent {
            delivered: sum.delivered + one.delivered,
            queued: sum.queued + one.queued,
        })
    }
}

impl<T: Default + Send + 'static> Gather<T> {
    /// A part that isn't there counts as none.
    pub(super) fn absent_part(&self, add: fn(T, T) -> T) -> impl FnOnce(Result<T, HubError>) + Send + 'static {
        let whole = Gather(self.0.clone());
        move |outcome| match outcome {
            Ok(one) => whole.add(|sum| add(sum, one)),
            Err(error) if error.code == ErrorCode::NotFound => whole.add(|sum| sum),
            Err(error) => whole.fail(error),
        }
    }
}

impl Gather<u32> {
    pub(super) fn sum_part(&self) -> impl FnOnce(Result<u32, HubError>) + Send + 'static {
        self.absent_part(|sum, one| sum + one)
    }
}
