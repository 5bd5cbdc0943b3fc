//! The hub as its control plane sees it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::{Map, Value};

use super::api::Wake;
use super::{Hub, RoomPresence, Sent, Target, Withdrew, lock};
use crate::auth::Identity;
use crate::broker::BrokerSnapshot;
use crate::broker::nodes;
use crate::config::Config;
use crate::control::{
    self, Adopted, Backend, ConnectionOrigin, EngineAnswer, EngineOpened, PublishRequest, Readiness, ShardPulse,
    ShardTimes, Snapshot,
};
use crate::hub::core::epoch_text;
use crate::hub::explain::Explanation;
use crate::hub::lock_pages::LockPage;
use crate::hub::moved::{Moved, YieldAsked};
use crate::hub::name::{ShardId, split};
use crate::hub::reply::{HubError, Pending, pending};
use crate::hub::trace::ConnectionTrace;
use crate::hub::view::{ConnectionFilter, ConnectionView, Listing, RoomFilter, RoomView, SessionView, Window};
use crate::ring::Now;
use crate::shard::request::Request;
use crate::shard::{NotHere, parse_token, shard_of_sid};
use crate::wire::codes::ErrorCode;
use crate::wire::engineio::RequestError;
use crate::wire::native::{Refused, Since};

impl Backend for Hub {
    type Identity = Identity;

    fn publish(&self, identity: &Arc<Identity>, event: PublishRequest) -> Pending<control::Published> {
        let PublishRequest { room, kind, data, key } = event;
        let (responder, pending) = pending();
        let responder = responder.in_doubt();
        let answered = room.clone();
        let tell = move |outcome: Result<super::Published, Refused>| {
            let outcome = outcome.map_err(Into::into).map(|published| control::Published {
                room: answered,
                id: published.id().to_owned(),
                seq: published.seq,
                epoch: Some(epoch_text(published.epoch)),
                duplicate: published.duplicate,
                delivered: published.delivered,
            });
            // The caller may have gone away meanwhile; the event is published all the same.
            responder.resolve(outcome);
        };
        let data = bytes::Bytes::from(Box::<str>::from(data).into_string().into_bytes());
        let may = |kind: &str, name: &str| identity.permissions.may_publish(kind, name);
        match self.check_publish(&room, &kind, &data, key.as_deref(), may) {
            Ok(()) => self.publish_unchecked(&room, &kind, data, key.as_deref(), Box::new(tell), Wake::Later),
            Err(refused) => tell(Err(refused)),
        }
        pending
    }

    fn ring(&self) {
        self.inner.mesh.ring_waiting();
    }

    fn send(&self, identity: &Arc<Identity>, to: &Target, kind: &str, data: Bytes) -> Pending<Sent> {
        let may = |room_kind: &str, name: &str| identity.permissions.may_publish(room_kind, name);
        let allowed = match to {
            Target::Client(id) => may("client", id),
            Target::Session(id) => may("session", id),
            Target::Sessions(ids) => ids.iter().all(|id| may("session", id)),
            Target::User(id) => may("user", id),
        };
        if !allowed {
            let message = "a permission to send to one of these is missing";
            return Pending::ready(Err(HubError::new(ErrorCode::Forbidden, message)));
        }
        self.send_bytes(to, kind, data)
    }

    fn send_here(&self, client_id: &str, kind: &str, data: Bytes) -> Pending<Sent> {
        self.send_to_client_here(client_id, kind, data)
    }

    fn yield_session(&self, session_id: &str, user_id: &str, token: Option<&str>) -> Pending<Moved> {
        let Ok(token) = token.map(|token| parse_token(token).ok_or(())).transpose() else {
            return Pending::ready(Err(HubError::new(ErrorCode::Forbidden, "this is no resume token")));
        };
        let (responder, pending) = pending();
        let user_id = user_id.into();
        self.ask_room_with(&format!("session:{session_id}"), |room| {
            Request::YieldSession(YieldAsked { room, user_id, token, responder })
        });
        pending
    }

    fn audience(&self, room: &str) -> Pending<(u32, u32)> {
        let (responder, pending) = pending();
        self.ask_room_with(room, |room| Request::Audience { room, responder });
        pending
    }

    fn nodes(&self) -> Option<nodes::Handle> {
        self.inner.nodes_handle.clone()
    }

    fn receive(&self, session_id: &str) -> Pending<Bytes> {
        self.receive_pending(session_id)
    }

    fn put_back(&self, session_id: &str, message: Bytes) {
        Hub::put_back(self, session_id, message);
    }

    fn is_admin(&self, identity: &Identity) -> bool {
        identity.permissions.is_admin()
    }

    fn may_read(&self, identity: &Identity, room: &str) -> Result<(), HubError> {
        let settings = lock(&self.inner.settings).clone();
        let config = &settings.config;
        let (kind, name) = split(room, config.limits.room_name_bytes_max)?;
        let Some(kind) = config.kind(kind) else {
            return Err(HubError::new(ErrorCode::BadRoom, format!("there is no kind of room called {kind:?}")));
        };
        let permissions = &identity.permissions;
        // A caller over HTTP has no session of its own.
        if !permissions.may_subscribe() || !permissions.may_join(kind, name, &identity.user_id, "") {
            return Err(HubError::new(ErrorCode::Forbidden, "a permission for this room is missing"));
        }
        Ok(())
    }

    fn connections(&self, filter: ConnectionFilter, window: Window) -> Pending<Listing<ConnectionView>> {
        Hub::connections(self, filter, window)
    }

    fn connection(&self, client_id: &str) -> Pending<ConnectionView> {
        Hub::connection(self, client_id)
    }

    fn trace(&self, client_id: &str, limit: usize) -> Pending<Vec<ConnectionTrace>> {
        Hub::trace(self, client_id, limit)
    }

    fn explain(&self, client_id: &str, event_id: &str) -> Pending<Explanation> {
        Hub::explain(self, client_id, event_id)
    }

    fn set_metadata(&self, client_id: &str, set: Map<String, Value>) -> Pending<Value> {
        self.metadata(client_id, Some(set))
    }

    fn disconnect(&self, who: &Target, code: u16, reason: &str) -> Pending<u32> {
        Hub::disconnect(self, who, code, reason)
    }

    fn reauthenticate(&self, who: &Target, grace: Duration) -> Pending<u32> {
        Hub::reauthenticate(self, who, grace)
    }

    fn withdraw(&self, who: &Target, permissions: &[&str], disconnect: bool, reason: &str) -> Pending<Withdrew> {
        Hub::withdraw(self, who, permissions, disconnect, reason)
    }

    fn presence(&self, room: &str) -> Pending<RoomPresence> {
        Hub::presence(self, room)
    }

    fn locks(&self, room: Option<&str>, window: Window) -> Pending<LockPage> {
        self.lock_page(room, window)
    }

    fn force_unlock(&self, room: &str, field: &str) -> Pending<bool> {
        Hub::force_unlock(self, room, field)
    }

    fn session(&self, session_id: &str) -> Pending<SessionView> {
        Hub::session(self, session_id)
    }

    fn rooms(&self, filter: RoomFilter, window: Window) -> Pending<Listing<RoomView>> {
        Hub::rooms(self, filter, window)
    }

    fn room(&self, room: &str) -> Pending<RoomView> {
        Hub::room(self, room)
    }

    fn history(&self, room: &str, since: Option<Since>, limit: usize, reverse: bool) -> Pending<Vec<u8>> {
        Hub::history(self, room, since, limit, reverse)
    }

    fn clear_history(&self, room: &str) -> Pending<u64> {
        Hub::clear_history(self, room)
    }

    fn verify(&self, token: &str) -> Result<Arc<Identity>, HubError> {
        let settings = lock(&self.inner.settings).clone();
        let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        match settings.gate().check_token(token, Now { monotonic_us: 0, unix_ms }) {
            Ok(identity) => Ok(Arc::new(identity)),
            Err(refusal) => Err(HubError::new(ErrorCode::Unauthorized, refusal.message)),
        }
    }

    fn anonymous(&self) -> Option<Arc<Identity>> {
        let settings = lock(&self.inner.settings);
        (!settings.config.auth.enabled).then(|| settings.anonymous.clone())
    }

    fn itself(&self) -> Arc<Identity> {
        static HUB: LazyLock<Arc<Identity>> = LazyLock::new(|| Arc::new(Identity::anonymous("ringhub".to_owned())));
        HUB.clone()
    }

    fn figures(&self) -> Snapshot {
        self.stats()
    }

    fn journal(&self) -> Option<control::JournalSnapshot> {
        self.inner.journal_figures.as_ref().map(|figures| figures.read())
    }

    fn broker(&self) -> Option<BrokerSnapshot> {
        self.inner.broker_figures.as_ref().map(|figures| figures.read())
    }

    fn times(&self) -> Vec<ShardTimes> {
        Hub::times(self)
    }

    fn ready(&self) -> Pending<Readiness> {
        let watch = &self.inner.watch;
        let (shards, answering, deaf) = (watch.shards(), watch.answering(), watch.deaf().len());
        Pending::ready(Ok(Readiness { shards, answering, deaf }))
    }

    fn pulse(&self) -> Vec<ShardPulse> {
        self.inner.watch.pulse()
    }

    fn config(&self) -> Config {
        Hub::config(self)
    }

    fn is_occupied(&self, room: &str) -> Pending<bool> {
        let (responder, pending) = pending();
        self.ask_room(room, responder);
        pending
    }

    fn announce(&self, room: &str, kind: &str, data: Bytes) {
        let of = room.to_owned();
        let tell = move |outcome: Result<super::Published, Refused>| {
            if let Err(refused) = outcome {
                tracing::warn!(room = of, code = refused.code.as_str(), "the hub's own event was not published");
            }
        };
        self.publish_checked(room, kind, data, Box::new(tell));
    }

    fn engine_open(&self, head: Vec<u8>, origin: ConnectionOrigin) -> Pending<EngineOpened> {
        let (responder, pending) = pending();
        self.ask_engine(self.next_shard(), Request::EngineOpen { head, origin, responder });
        pending
    }

    fn engine_poll(&self, path: &str, sid: &str) -> Pending<EngineAnswer> {
        let shard = match self.shard_of_sid(path, sid) {
            Ok(shard) => shard,
            Err(answer) => return Pending::ready(Ok(answer)),
        };
        let (responder, pending) = pending();
        self.ask_engine(shard, Request::EnginePoll { sid: sid.into(), responder });
        pending
    }

    fn engine_push(&self, path: &str, sid: &str, body: Vec<u8>) -> Pending<EngineAnswer> {
        let shard = match self.shard_of_sid(path, sid) {
            Ok(shard) => shard,
            Err(answer) => return Pending::ready(Ok(answer)),
        };
        let (responder, pending) = pending();
        self.ask_engine(shard, Request::EnginePush { sid: sid.into(), body, responder });
        pending
    }

    fn adopt(&self, connection: Adopted) {
        let shard = self.next_shard();
        if self.inner.mesh.request(shard, Request::Adopt(Box::new(connection))).is_err() {
            tracing::debug!(shard = shard.0, "a shard is too busy to adopt a connection, which is closed");
        }
    }

    fn draining(&self) -> bool {
        self.inner.mesh.draining.load(Ordering::Relaxed)
    }
}

impl Hub {
    /// Where any shard will do, they take turns.
    fn next_shard(&self) -> ShardId {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        ShardId((NEXT.fetch_add(1, Ordering::Relaxed) % usize::from(self.inner.mesh.shards().max(1))) as u16)
    }

    fn shard_of_sid(&self, path: &str, sid: &str) -> Result<ShardId, EngineAnswer> {
        let unknown = EngineAnswer::Refused(RequestError::SessionUnknown);
        let Some(path) = lock(&self.inner.settings).gate().engine_path(path) else { return Err(unknown) };
        shard_of_sid(sid, path, &self.inner.hasher, self.inner.mesh.shards()).map_err(|not_here| match not_here {
            NotHere::Unknown => unknown,
            NotHere::Elsewhere => EngineAnswer::Elsewhere,
        })
    }

    fn ask_engine(&self, shard: ShardId, request: Request) {
        // Whoever waits for the answer learns it from the responder that is dropped.
        drop(self.inner.mesh.request(shard, request));
    }
}
