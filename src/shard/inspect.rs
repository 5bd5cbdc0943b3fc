//! What operators are shown of this shard's connections and of the rooms and sessions at home here.

use super::connection::{Client, Connection, Phase};
use super::state::State;
use crate::hub::core::epoch_text;
use crate::hub::message::ClientRequest;
use crate::hub::name::RoomName;
use crate::hub::outbox::Protocol;
use crate::hub::reply::Responder;
use crate::hub::rooms::Room;
use crate::hub::view::{
    ConnectionFilter, ConnectionView, Listing, RoomFilter, RoomView, SessionView, Smallest, Window,
};
use crate::ring::ConnKey;
use crate::wire::codes::ErrorCode;
use crate::wire::envelope::rfc3339;
use crate::wire::native::{Refused, Since};
use crate::wire::variant::Variant;

impl State {
    /// This shard's connections that fit a filter, by client id.
    pub fn list_connections(&self, filter: &ConnectionFilter, window: Window) -> Listing<ConnectionView> {
        let mut smallest = Smallest::new(window);
        let mut offer = |conn: ConnKey| {
            if let Some((_, client)) = self.open_client(conn)
                && fits(client, filter)
            {
                smallest.offer(&client.session.client_id, || conn);
            }
        };
        match &filter.room {
            Some(room) => {
                let id = self.core.rooms().find(&self.core.hasher().room(room));
                let members = id.and_then(|id| self.core.rooms().get(id)).map(|room| room.members.iter());
                members.into_iter().flatten().for_each(&mut offer);
            }
            None => self.connections.keys().into_iter().for_each(&mut offer),
        }
        let Listing { items, total } = smallest.finish();
        Listing { items: items.into_iter().filter_map(|conn| self.connection_view(conn)).collect(), total }
    }

    pub(super) fn open_client(&self, conn: ConnKey) -> Option<(&Connection, &Client)> {
        let connection = self.connections.get(conn)?;
        match &connection.phase {
            Phase::Open(client) => Some((connection, client)),
            _ => None,
        }
    }

    /// One connection.
    pub fn connection_view(&self, conn: ConnKey) -> Option<ConnectionView> {
        let (connection, client) = self.open_client(conn)?;
        let identity = &client.session.identity;
        let rooms = client.rooms.iter().filter_map(|id| self.core.rooms().get(*id));
        Some(ConnectionView {
            client_id: client.session.client_id.to_string(),
            session_id: client.session.session_id.to_string(),
            user_id: identity.user_id.clone(),
            name: identity.name.as_deref().map(str::to_owned),
            roles: identity.roles.to_vec(),
            protocol: match connection.outbox.protocol() {
                Protocol::Native | Protocol::Variant(Variant::Plain) => "native",
                Protocol::Variant(Variant::Batch) => "native-batch",
                Protocol::Variant(Variant::MsgPack) => "msgpack",
                Protocol::Variant(Variant::MsgPackBatch) => "msgpack-batch",
                Protocol::Stream => "sse",
                Protocol::SocketIo => "socketio",
                Protocol::Polling => "socketio-polling",
            }
            .into(),
            rooms: rooms.map(|room| room.name.as_str().to_owned()).collect(),
            metadata: client.session.metadata_object(),
            connected_at: self.wall_time(client.opened_ms),
            last_activity: self.wall_time(connection.heard_ms),
            expires_at: client.session.expires_at().map(|seconds| time_text(seconds.saturating_mul(1000))),
            queue_bytes: connection.outbox.bytes(),
            slow_rooms: client.under_way.as_ref().map_or(0, |all| all.lags.len()),
            received_bytes: connection.received_bytes,
            sent_bytes: connection.sent_bytes,
            address: client.peer.map(|peer| peer.to_string()),
            shard: self.me.0,
        })
    }

    /// A time of the monotonic clock as people read it.
    fn wall_time(&self, at_ms: u64) -> String {
        time_text(self.now.unix_ms.saturating_sub(self.now_ms().saturating_sub(at_ms)))
    }

    /// The rooms at home here that fit a filter, by name.
    pub fn list_rooms_at_home(&self, filter: &RoomFilter, window: Window) -> Listing<RoomView> {
        let mut smallest = Smallest::new(window);
        for (id, room) in self.core.rooms().iter() {
            let name = room.name.as_str();
            let fits = filter.kind.as_deref().is_none_or(|kind| kind_of(name) == kind)
                && filter.search.as_deref().is_none_or(|part| name.contains(part))
                && (!filter.occupied || room.home.as_ref().is_some_and(|home| home.members_total() > 0));
            if fits && room.home.as_ref().is_some_and(|home| !home.only_lingers()) {
                smallest.offer(name, || id);
            }
        }
        let Listing { items, total } = smallest.finish();
        let rooms = items.into_iter().filter_map(|id| self.room_view_of(self.core.rooms().get(id)?));
        Listing { items: rooms.collect(), total }
    }

    /// One room at home here.
    pub fn room_view(&self, room: &RoomName) -> Result<RoomView, Refused> {
        let id = self.core.rooms().find(room);
        let view = id.and_then(|id| self.core.rooms().get(id)).and_then(|room| self.room_view_of(room));
        view.ok_or(Refused::new(ErrorCode::NotFound, "there is no such room: it has neither members nor history"))
    }

    fn room_view_of(&self, room: &Room) -> Option<RoomView> {
        let home = room.home.as_deref().filter(|home| !home.only_lingers())?;
        Some(RoomView {
            room: room.name.as_str().to_owned(),
            kind: kind_of(room.name.as_str()).to_owned(),
            members: home.members_total(),
            seq: home.seq,
            epoch: epoch_text(home.epoch),
            history_events: home.log().events(),
            history_bytes: home.log().bytes(),
            first_seq: home.log().first_seq(),
            shard: self.me.0,
        })
    }

    /// A session at home here; what its connection knows is asked of that.
    pub fn session_view(&mut self, room: &RoomName, responder: Responder<SessionView>) {
        let missing = Refused::new(ErrorCode::NotFound, "there is no such session");
        let id = self.core.rooms().find(room);
        let home = id.and_then(|id| self.core.rooms().get(id)).and_then(|room| room.home.as_deref());
        let Some((home, session)) = home.and_then(|home| Some((home, home.session.as_deref()?))) else {
            return responder.resolve(Err(missing.into()));
        };
        let kept = session.kept().filter(|_| session.live.is_none());
        let own = kept.and_then(|kept| kept.rooms.iter().find(|one| one.room == *room));
        let given = match own.map(|own| &own.from) {
            Some(Since::Seq { seq, .. }) => (*seq).max(home.log().first_seq().unwrap_or(home.seq + 1) - 1),
            Some(Since::Time(left_ms)) => home.log().before_time(*left_ms, home.seq),
            _ => home.seq,
        };
        let queued = home.seq.saturating_sub(given);
        let mut view = SessionView {
            session_id: room.as_str().strip_prefix("session:").unwrap_or_default().to_owned(),
            user_id: session.identity.user_id.clone(),
            connected: false,
            client_id: None,
            queued,
            inbox: session.inbox_len(),
            metadata: session.kept().map(|kept| kept.metadata.clone()).unwrap_or_default(),
        };
        if session.live.is_none() {
            return responder.resolve(Ok(view));
        }
        let complete = move |connection: Result<ConnectionView, _>| {
            // Gone while it was asked: the session is there all the same.
            if let Ok(connection) = connection {
                view.connected = true;
                view.client_id = Some(connection.client_id);
                view.metadata = connection.metadata;
            }
            responder.resolve(Ok(view));
        };
        let request = ClientRequest::View { responder: Responder::to(complete) };
        self.core.forward_to_session(room, request);
    }
}

fn fits(client: &Client, filter: &ConnectionFilter) -> bool {
    let session = &client.session;
    let ids = [&*session.client_id, &*session.session_id, &*session.identity.user_id];
    filter.user_id.as_deref().is_none_or(|user_id| *session.identity.user_id == *user_id)
        && filter.session_id.as_deref().is_none_or(|session_id| *session.session_id == *session_id)
        && filter.search.as_deref().is_none_or(|part| ids.iter().any(|id| id.contains(part)))
}

fn kind_of(room: &str) -> &str {
    room.split_once(':').map_or(room, |(kind, _)| kind)
}

fn time_text(unix_ms: u64) -> String {
    String::from_utf8_lossy(&rfc3339(unix_ms)).into_owned()
}
