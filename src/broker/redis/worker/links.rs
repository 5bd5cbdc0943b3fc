//! Links to servers: how they are made, what shows that one is broken, and what its end means for rooms, reads and shards.

use std::sync::Arc;

use super::super::canary::Due;
use super::super::connection::{Connections, Inbox, LinkError};
use super::super::placement::ServerId;
use super::super::server::{self, Link};
use super::super::submissions::NO_LINK;
use super::rooms::Subscription;
use super::{INBOX_BYTES_MAX, What, Worker};
use crate::hub::brokered::FromBroker;

impl Worker {
    pub(super) fn begin_link(&mut self, id: ServerId) {
        let Some(server) = self.servers.get_mut(id.place()) else { return };
        server.link = Link::Connecting;
        let (target, scripts) = (server.target.clone(), self.scripts.clone());
        let inbox = Inbox::new(self.pushed.clone(), INBOX_BYTES_MAX);
        self.spawn(id, async move {
            let outcome = target.connect(Some(&scripts), inbox.clone()).await;
            What::Connected(Box::new(outcome), inbox)
        });
    }

    pub(super) fn begin(&mut self, id: ServerId, connections: Connections, inbox: Arc<Inbox>) {
        let now_ms = self.now_ms();
        let Some(server) = self.servers.get_mut(id.place()) else { return };
        let is_again = server.set_up(connections, inbox, now_ms);
        if is_again {
            self.figures.reconnects.add(1);
            tracing::warn!(server = %server.name, "the broker is reached again");
        } else {
            tracing::info!(server = %server.name, "the broker is reached");
        }
        self.routes.set_up(id, true);
        for room in self.rooms.values_mut().filter(|room| room.server == id && room.tracker.is_some()) {
            room.want(&self.routes, &mut self.lanes);
        }
    }

    /// The link does not hear what is said over it, whether or not that is answered.
    fn is_deaf(&mut self, id: ServerId) {
        let Some(server) = self.servers.get(id.place()) else { return };
        self.figures.deaf.add(1);
        tracing::error!(server = %server.name, "the broker's connection does not hear its own messages");
        self.end_link(id, &LinkError::Timeout);
    }

    /// The link is broken, or was not made.
    pub(super) fn end_link(&mut self, id: ServerId, error: &LinkError) {
        let now_ms = self.now_ms();
        let Some(server) = self.servers.get_mut(id.place()) else { return };
        let was_up = server.is_up();
        server::complain(&server.name, error, was_up || !server.has_failed());
        server.set_down(now_ms);
        if was_up {
            self.forget(id);
            // In a cluster another server may have what it had.
            self.learn_soon();
        }
    }

    /// Nothing comes over a link any more, and nothing that was sent over it is answered.
    pub(super) fn forget(&mut self, id: ServerId) {
        self.routes.set_up(id, false);
        let lanes = &mut self.lanes;
        for lanes in [&mut lanes.subscribing, &mut lanes.unsubscribing, &mut lanes.reading] {
            lanes.clear(id);
        }
        let now_ms = self.now_ms();
        self.submissions.link_down(id, &self.routes, now_ms, &mut self.answers);
        let mut refused = Vec::new();
        self.rooms.retain(|_, room| {
            if room.server != id {
                return true;
            }
            room.subscription = Subscription::None;
            room.is_queued = false;
            if let Some(tracker) = &mut room.tracker {
                tracker.lost();
            }
            if std::mem::take(&mut room.is_asked) {
                refused.push((room.shard, room.name.clone()));
            }
            room.tracker.is_some()
        });
        for (shard, room) in refused {
            self.tell(shard, FromBroker::Followed { room, outcome: Err(NO_LINK) }, 0);
        }
    }

    pub(super) fn look_at_times(&mut self, id: ServerId, now_ms: u64) {
        let deaf_ms = self.bounds.deaf_ms();
        let Some(server) = self.servers.get_mut(id.place()) else { return };
        while let Some((_, name)) = server.retries.pop_front_if(|(at_ms, _)| *at_ms <= now_ms) {
            let Some(room) = self.rooms.get_mut(name.as_str()).filter(|room| room.server == id) else { continue };
            if room.tracker.is_none() && room.subscription == Subscription::Asked {
                // Nothing that was asked for it is answered any more.
                self.rooms.remove(name.as_str());
            } else if room.tracker.is_some() {
                room.is_queued = false;
                if room.subscription == Subscription::Asked {
                    room.subscription = Subscription::None;
                }
                room.want(&self.routes, &mut self.lanes);
            }
        }
        match &mut server.link {
            Link::Down { retry_ms } if *retry_ms <= now_ms => self.begin_link(id),
            Link::Unwanted | Link::Down { .. } | Link::Connecting => {}
            Link::Up(up) if up.canary.is_deaf(now_ms, deaf_ms) => self.is_deaf(id),
            Link::Up(up) => {
                if up.answers.may_ask(now_ms)
                    && let Some(due) = up.canary.due(now_ms)
                {
                    let channel = up.canary.channel();
                    self.send_canary(id, &due, channel);
                }
            }
        }
    }

    fn send_canary(&mut self, id: ServerId, due: &Due, channel: u32) {
        let Some(follow) = self.ask(id) else { return };
        match due {
            Due::Say => {
                let command = self.scripts.canary(channel);
                self.spawn(id, async move { What::Canary { channel, error: follow.command(command).await.err() } });
            }
            Due::Listen => {
                let name = self.scripts.canary_channel(channel);
                self.spawn(id, async move { What::Listening { error: follow.subscribe(&[name]).await.err() } });
            }
        }
    }
}
