//! Looking into a running hub: its connections, sessions and rooms.

use std::sync::Arc;

use bytes::Bytes;

use super::api::Gather;
use super::{Hub, Pending};
use crate::hub::message::ClientRequest;
use crate::hub::name::ShardId;
use crate::hub::reply::{Responder, pending};
use crate::hub::view::{ConnectionFilter, ConnectionView, Listing, RoomFilter, RoomView, SessionView, Window};
use crate::shard::request::Request;
use crate::wire::native::Since;

impl Hub {
    /// The connections that fit a filter, by client id; those of all shards are put together.
    ///
    /// ```
    /// # use ringhub::{node::Hub, config::Config, hub::view::{ConnectionFilter, Window}};
    /// # let mut config = Config::default();
    /// # config.listen.public = vec!["127.0.0.1:0".parse().unwrap()];
    /// # config.shards.count = 1;
    /// # let hub = Hub::start(config)?;
    /// let alices = ConnectionFilter { user_id: Some("alice".into()), ..ConnectionFilter::default() };
    /// let listing = hub.connections(alices, Window { after: None, limit: 100 }).wait()?;
    /// assert_eq!(listing.total, 0);
    /// # hub.shutdown()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn connections(&self, filter: ConnectionFilter, window: Window) -> Pending<Listing<ConnectionView>> {
        let filter = Arc::new(filter);
        let request = |window, responder| Request::Connections { filter: filter.clone(), window, responder };
        self.list(window, request, |view| view.client_id.as_str().into())
    }

    /// The connection with a client id.
    pub fn connection(&self, client_id: &str) -> Pending<ConnectionView> {
        let (responder, pending) = pending();
        let request = ClientRequest::View { responder };
        self.ask_key(client_id, Request::Client { client_id: client_id.into(), request });
        pending
    }

    /// A session, whether or not a connection holds it, for as long as it can be resumed.
    pub fn session(&self, session_id: &str) -> Pending<SessionView> {
        let (responder, pending) = pending();
        self.ask_room_with(&format!("session:{session_id}"), |room| Request::SessionView { room, responder });
        pending
    }

    /// The rooms that fit a filter, by name.
    pub fn rooms(&self, filter: RoomFilter, window: Window) -> Pending<Listing<RoomView>> {
        let filter = Arc::new(filter);
        let request = |window, responder| Request::Rooms { filter: filter.clone(), window, responder };
        self.list(window, request, |view| view.room.as_str().into())
    }

    /// A room that has members or history.
    pub fn room(&self, room: &str) -> Pending<RoomView> {
        let (responder, pending) = pending();
        self.ask_room_with(room, |room| Request::Room { room, responder });
        pending
    }

    /// A part of a room's log: the JSON text of the protocol's `history` answer.
    pub fn history(&self, room: &str, since: Option<Since>, limit: usize, reverse: bool) -> Pending<Vec<u8>> {
        let (responder, pending) = pending();
        self.ask_room_with(room, |room| Request::History { room, since, limit, reverse, responder });
        pending
    }

    /// Empties a room's log and says how many events went. Numbers go on, so that those who come back for them are told
    /// what they missed.
    pub fn clear_history(&self, room: &str) -> Pending<u64> {
        let (responder, pending) = pending();
        self.ask_room_with(room, |room| Request::ClearHistory { room, responder });
        pending
    }

    /// Puts a message of [`Hub::receive_pending`] back that could not be used; it is the session's next one again.
    pub fn put_back(&self, session_id: &str, message: Bytes) {
        self.ask_room_with(&format!("session:{session_id}"), |room| Request::PutBack { room, message });
    }

    /// Puts the shards' parts of a list together.
    fn list<T: Send + 'static>(
        &self,
        window: Window,
        request: impl Fn(Window, Responder<Listing<T>>) -> Request,
        name: fn(&T) -> Arc<str>,
    ) -> Pending<Listing<T>> {
        let (responder, pending) = pending();
        let shards = self.inner.mesh.shards();
        let limit = window.limit;
        let in_order = Responder::to(move |outcome: Result<Listing<T>, _>| {
            responder.resolve(outcome.map(|Listing { mut items, total }| {
                items.sort_by_cached_key(name);
                items.truncate(limit);
                Listing { items, total }
            }));
        });
        let gather = Gather::new(in_order, usize::from(shards));
        for shard in 0..shards {
            let part = gather.part_with(|mut all: Listing<T>, one: Listing<T>| {
                all.items.extend(one.items);
                all.total += one.total;
                all
            });
            self.ask(ShardId(shard), request(window.clone(), Responder::to(part)));
        }
        pending
    }
}
