//! Rooms that are followed: what is subscribed to, what comes of it, and what is passed on.
//!
//! A subscription is there when the server pushes that it is, and has ended when it pushes that, in the order in which it does.
//! The answers to these commands tell only of failures, and may be those to others: a server of a cluster that ends a
//! subscription by itself says it in the form of an answer, and the library takes it for that to whatever was asked first (see
//! [`Answers`](crate::broker::redis::answers::Answers)). So what is asked over such a connection knows its own answer (see
//! `read.lua`), or does without it, and another one publishes.

use bytes::Bytes;
use redis::{PushInfo, PushKind, RedisError, Value};

use super::super::canary::Canary;
use super::super::connection::{Connection, LinkError};
use super::super::lanes::Lanes;
use super::super::placement::{Routes, ServerId};
use super::super::server::{self, Link, Server};
use super::super::submissions::NO_LINK;
use super::super::tracker::Tracker;
use super::{What, Worker};
use crate::hub::brokered::{FromBroker, Place};
use crate::hub::name::{RoomName, ShardId};
use crate::wire::native::Refused;

/// Channels that one command subscribes to.
const SUBSCRIBE_MAX: usize = 256;
/// Channels whose subscription is on its way to a server, or whose end is.
const SUBSCRIPTIONS_MAX: usize = 2048;
/// Reads on their way to a server. What comes meanwhile waits for them, so that this bounds it.
const READS_MAX: usize = 512;
/// How long after a link was made clients are believed that say to have seen events which the log does not have.
const CLAIMS_MS: u64 = 600_000;
/// How long a room rests whose read or subscription was refused.
pub(super) const REFUSED_MS: u64 = 1000;

/// Rooms that something is to be asked for.
pub(super) struct RoomLanes {
    /// Their channels are subscribed to.
    pub(super) subscribing: Lanes,
    /// They are not wanted any more.
    pub(super) unsubscribing: Lanes,
    /// They are read.
    pub(super) reading: Lanes,
}

/// A room that is followed, was, or will be.
pub(super) struct Room {
    pub(super) name: RoomName,
    pub(super) shard: ShardId,
    pub(super) server: ServerId,
    /// None where it is not wanted any more.
    pub(super) tracker: Option<Tracker>,
    pub(super) subscription: Subscription,
    /// It waits to be read.
    pub(super) is_queued: bool,
    /// Its home waits for an answer.
    pub(super) is_asked: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subscription {
    None,
    Asked,
    Active,
    Ending,
}

impl RoomLanes {
    pub(super) fn new() -> RoomLanes {
        RoomLanes {
            subscribing: Lanes::new(SUBSCRIPTIONS_MAX),
            unsubscribing: Lanes::new(SUBSCRIPTIONS_MAX),
            reading: Lanes::new(READS_MAX),
        }
    }
}

impl Worker {
    pub(super) fn follow(&mut self, shard: ShardId, name: RoomName, from: Option<Place>, claim: Option<(u64, u64)>) {
        let (id, now_ms) = (self.server_of(name.as_str()), self.now_ms());
        let Some(server) = self.servers.get(id.place()) else { return };
        let may_have_lost = !server.is_up() || server.up_ms + CLAIMS_MS > now_ms;
        let room = self.rooms.entry(name.as_str().into()).or_insert_with(|| Room {
            name: name.clone(),
            shard,
            server: id,
            tracker: None,
            subscription: Subscription::None,
            is_queued: false,
            is_asked: false,
        });
        room.shard = shard;
        match &mut room.tracker {
            Some(tracker) => tracker.follow(from),
            None => room.tracker = Some(Tracker::new(from)),
        }
        if let Some(((epoch, seq), tracker)) = claim.filter(|_| may_have_lost).zip(room.tracker.as_mut()) {
            tracker.claim(epoch, seq);
        }
        // Without a link it is followed as soon as there is one, and the home told then.
        room.is_asked = self.routes.is_up(id);
        room.want(&self.routes, &mut self.lanes);
        if !self.routes.is_up(id) {
            self.tell(shard, FromBroker::Followed { room: name, outcome: Err(NO_LINK) }, 0);
        }
    }

    pub(super) fn leave(&mut self, name: &RoomName) {
        let Some(room) = self.rooms.get_mut(name.as_str()) else { return };
        room.tracker = None;
        room.is_asked = false;
        match room.subscription {
            Subscription::None => drop(self.rooms.remove(name.as_str())),
            Subscription::Active => self.lanes.unsubscribing.push(room.server, name.clone()),
            // What is on its way decides when it is there.
            Subscription::Asked | Subscription::Ending => {}
        }
    }

    pub(super) fn take_pushed(&mut self, server: ServerId) {
        let Some(up) = self.server(server).and_then(Server::up) else { return };
        let pushed = up.inbox.take();
        for channel in &pushed.dropped {
            self.figures.overruns.add(1);
            if let Some(room) = self.scripts.room_of(channel) {
                self.fall_behind(room);
            }
        }
        for push in pushed.messages {
            if !self.take_push(server, push) {
                return;
            }
        }
        let unreadable = self.reader.take_unreadable();
        if unreadable > 0 {
            self.figures.unreadable.add(unreadable);
            tracing::warn!(
                unreadable,
                "events or messages from Redis could not be read: another program publishes them"
            );
        }
    }

    /// False where the link ended with it.
    fn take_push(&mut self, server: ServerId, push: PushInfo) -> bool {
        let mut data = push.data.into_iter();
        match push.kind {
            PushKind::Message | PushKind::SMessage => {
                if let (Some(Value::BulkString(channel)), Some(Value::BulkString(payload))) = (data.next(), data.next())
                {
                    self.take_message(server, &channel, payload.into());
                }
            }
            PushKind::Subscribe | PushKind::SSubscribe => {
                if let Some(Value::BulkString(channel)) = data.next() {
                    self.subscription_began(server, &channel);
                }
            }
            PushKind::Unsubscribe | PushKind::SUnsubscribe => {
                if let Some(Value::BulkString(channel)) = data.next() {
                    self.subscription_ended(server, &channel);
                }
            }
            PushKind::Disconnection => {
                let error = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
                self.end_link(server, &LinkError::Redis(error.into()));
                return false;
            }
            _ => {}
        }
        true
    }

    fn take_message(&mut self, server: ServerId, channel: &[u8], payload: Bytes) {
        let Some(name) = self.scripts.room_of(channel) else {
            if let Some((canary, at)) = self.canary_in(server, channel) {
                canary.heard(at);
            }
            return;
        };
        // One that had the room may say something yet that nobody else hears.
        let Some(room) = self.rooms.get_mut(name).filter(|room| room.server == server) else { return };
        let Some(tracker) = &mut room.tracker else { return };
        let bytes = payload.len();
        let is_full = self
            .backlogs
            .get(usize::from(room.shard.0))
            .is_none_or(|backlog| backlog.bytes + bytes > self.bounds.backlog_bytes_max && backlog.bytes > 0);
        if is_full {
            self.figures.overruns.add(1);
            tracker.fall_behind();
        } else if let Some(message) = self.reader.message(&payload) {
            let was_behind = tracker.is_behind();
            let mut told = Vec::new();
            tracker.message(message, bytes, &mut told);
            if tracker.is_behind() && !was_behind {
                self.figures.holes.add(1);
            }
            let (name, shard) = (room.name.clone(), room.shard);
            self.tell_all(&name, shard, told);
        } else {
            // Whatever it was, it has a number.
            tracker.fall_behind();
        }
        self.queue_read(name);
    }

    /// The canary of a link, and which it is whose channel this is.
    fn canary_in(&mut self, server: ServerId, channel: &[u8]) -> Option<(&mut Canary, u32)> {
        let at = self.scripts.canary_of(channel)?;
        Some((&mut self.server(server)?.up()?.canary, at))
    }

    /// A channel is subscribed to.
    fn subscription_began(&mut self, server: ServerId, channel: &[u8]) {
        let Some(name) = self.scripts.room_of(channel) else {
            if let Some((canary, at)) = self.canary_in(server, channel) {
                canary.listens(at);
            }
            return;
        };
        let Some(room) = self.rooms.get_mut(name).filter(|room| room.server == server) else {
            // It was not refused, as it seemed to be, and nobody wants it any more.
            return self.end_subscriptions(server, Vec::new(), vec![self.scripts.channel(name)]);
        };
        // Also where the answer to another command was taken for a refusal of this one.
        if matches!(room.subscription, Subscription::None | Subscription::Asked) {
            room.subscription = Subscription::Active;
            match &room.tracker {
                Some(_) => room.want(&self.routes, &mut self.lanes),
                None => self.lanes.unsubscribing.push(server, room.name.clone()),
            }
        }
    }

    /// A subscription has ended: as it was asked for, or because the room's slot is another server's now.
    fn subscription_ended(&mut self, server: ServerId, channel: &[u8]) {
        let Some(name) = self.scripts.room_of(channel) else {
            if let Some((canary, at)) = self.canary_in(server, channel) {
                canary.lost(at);
                if let Some(up) = self.server(server).and_then(Server::up) {
                    up.answers.mix_up();
                }
                self.learn_soon();
            }
            return;
        };
        let Some(room) = self.rooms.get_mut(name).filter(|room| room.server == server) else { return };
        match room.subscription {
            Subscription::Active => {
                if let Some(up) = self.server(server).and_then(Server::up) {
                    up.answers.mix_up();
                }
                self.learn_soon();
            }
            Subscription::Ending => {}
            // It is that of a subscription before the one that is asked for.
            Subscription::None | Subscription::Asked => return,
        }
        self.begin_anew(name);
    }

    /// A room is not subscribed to: it is again where it is wanted.
    fn begin_anew(&mut self, name: &str) {
        let Some(room) = self.rooms.get_mut(name) else { return };
        room.subscription = Subscription::None;
        match &mut room.tracker {
            Some(tracker) => {
                tracker.fall_behind();
                room.want(&self.routes, &mut self.lanes);
            }
            None => drop(self.rooms.remove(name)),
        }
    }

    fn fall_behind(&mut self, name: &str) {
        if let Some(tracker) = self.rooms.get_mut(name).and_then(|room| room.tracker.as_mut()) {
            tracker.fall_behind();
        }
        self.queue_read(name);
    }

    /// Has a room read that is behind.
    pub(super) fn queue_read(&mut self, name: &str) {
        if let Some(room) = self.rooms.get_mut(name) {
            room.want(&self.routes, &mut self.lanes);
        }
    }

    pub(super) fn subscribed(&mut self, id: ServerId, names: &[RoomName], error: Option<RedisError>) {
        let retry_ms = self.now_ms() + REFUSED_MS;
        for name in names {
            let Some(room) = self.rooms.get_mut(name.as_str()) else { continue };
            // One that is subscribed to was told to be.
            if room.server != id || room.subscription != Subscription::Asked {
                continue;
            }
            if error.is_some() && room.tracker.is_none() {
                self.rooms.remove(name.as_str());
                continue;
            }
            // Where it was not told and not refused, that was the answer to something else: it is asked for again then.
            if let Some(server) = self.servers.get_mut(id.place()) {
                server.retries.push_back((retry_ms, name.clone()));
            }
            if let Some(error) = &error {
                room.subscription = Subscription::None;
                self.refuse_follow(name, server::refusal(error));
            }
        }
        if let Some(error) = error {
            if self.may_say(id, &error) {
                tracing::warn!(%error, rooms = names.len(), "Redis refused a subscription");
            }
            self.failed(id, &error);
        }
    }

    pub(super) fn unsubscribed(&mut self, id: ServerId, names: &[RoomName], error: Option<RedisError>) {
        for name in names {
            // One whose end could not be had may have ended or not: it is begun again where it is wanted.
            let room = self.rooms.get(name.as_str()).filter(|room| room.server == id);
            if room.is_some_and(|room| room.subscription == Subscription::Ending) {
                self.begin_anew(name.as_str());
            }
        }
        if let Some(error) = error {
            self.failed(id, &error);
        }
    }

    pub(super) fn refuse_follow(&mut self, name: &RoomName, refused: Refused) {
        if let Some(room) = self.rooms.get_mut(name.as_str())
            && std::mem::take(&mut room.is_asked)
        {
            let shard = room.shard;
            self.tell(shard, FromBroker::Followed { room: name.clone(), outcome: Err(refused) }, 0);
        }
    }

    /// Whether something may be asked over the connection that is subscribed.
    pub(super) fn may_ask(&self, id: ServerId, now_ms: u64) -> bool {
        let link = self.servers.get(id.place()).map(|server| &server.link);
        matches!(link, Some(Link::Up(up)) if up.answers.may_ask(now_ms))
    }

    /// That connection, which something is asked over now.
    pub(super) fn ask(&mut self, id: ServerId) -> Option<Connection> {
        let up = self.server(id)?.up()?;
        up.answers.ask();
        Some(up.connections.follow.clone())
    }

    pub(super) fn send_subscriptions(&mut self, id: ServerId, now_ms: u64) {
        // In a cluster each goes by itself: those of one command must have one slot.
        let at_once = if self.learning.is_some() { 1 } else { SUBSCRIBE_MAX };
        while self.may_ask(id, now_ms) {
            let mut rooms = Vec::new();
            while rooms.len() < at_once
                && let Some(name) = self.lanes.subscribing.pop(id)
            {
                let Some(room) = self.rooms.get_mut(name.as_str()) else { continue };
                if room.subscription != Subscription::Asked {
                    continue;
                }
                if room.tracker.is_some() {
                    rooms.push(name);
                } else {
                    self.rooms.remove(name.as_str());
                }
            }
            if !rooms.is_empty() {
                self.subscribe(id, rooms);
                continue;
            }
            while rooms.len() < at_once
                && let Some(name) = self.lanes.unsubscribing.pop(id)
            {
                let Some(room) = self.rooms.get_mut(name.as_str()) else { continue };
                if room.tracker.is_none() && room.subscription == Subscription::Active {
                    room.subscription = Subscription::Ending;
                    rooms.push(name);
                }
            }
            if rooms.is_empty() {
                return;
            }
            let channels = self.channels(&rooms);
            self.end_subscriptions(id, rooms, channels);
        }
    }

    fn channels(&self, rooms: &[RoomName]) -> Vec<String> {
        rooms.iter().map(|room| self.scripts.channel(room.as_str())).collect()
    }

    fn subscribe(&mut self, id: ServerId, rooms: Vec<RoomName>) {
        let Some(connection) = self.ask(id) else { return };
        self.lanes.subscribing.sent(id, rooms.len());
        let channels = self.channels(&rooms);
        self.spawn(id, async move { What::Subscribed { error: connection.subscribe(&channels).await.err(), rooms } });
    }

    fn end_subscriptions(&mut self, id: ServerId, rooms: Vec<RoomName>, channels: Vec<String>) {
        let Some(connection) = self.ask(id) else { return };
        self.lanes.unsubscribing.sent(id, rooms.len());
        self.spawn(
            id,
            async move { What::Unsubscribed { error: connection.unsubscribe(&channels).await.err(), rooms } },
        );
    }
}

impl Room {
    /// Has it subscribed to, or read where it is behind.
    pub(super) fn want(&mut self, routes: &Routes, lanes: &mut RoomLanes) {
        if !routes.is_up(self.server) {
            return;
        }
        match self.subscription {
            Subscription::None => {
                self.subscription = Subscription::Asked;
                lanes.subscribing.push(self.server, self.name.clone());
            }
            Subscription::Active => {
                if !self.is_queued && self.tracker.as_ref().is_some_and(Tracker::is_behind) {
                    self.is_queued = true;
                    lanes.reading.push(self.server, self.name.clone());
                }
            }
            // It is looked at when that is done.
            Subscription::Asked | Subscription::Ending => {}
        }
    }
}
