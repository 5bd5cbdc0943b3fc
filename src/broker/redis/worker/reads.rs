//! What is read of rooms' logs, over the connection that is subscribed: what came there before an answer is in it.

use redis::{RedisError, Value};

use super::super::encoding;
use super::super::placement::ServerId;
use super::super::server::{self, Server};
use super::super::tracker::{Page, Step, Told, Tracker, Wanted};
use super::rooms::{REFUSED_MS, Subscription};
use super::{What, Worker};
use crate::hub::name::RoomName;

impl Worker {
    pub(super) fn was_read(
        &mut self,
        id: ServerId,
        name: &RoomName,
        serial: u64,
        ticket: u64,
        answer: Result<Value, RedisError>,
    ) {
        let parts = match answer.map(|value| answered_to(value, serial)) {
            Ok(Some(parts)) => parts,
            Ok(None) => return self.read_astray(id, name),
            Err(error) => {
                self.give_up_read(id, name, &error);
                return self.failed(id, &error);
            }
        };
        if let Some(up) = self.server(id).and_then(Server::up) {
            up.answers.is_right();
        }
        let Some(page) = self.page(parts) else {
            // Another program has written there.
            return self.give_up_read(id, name, &server::not_understood());
        };
        let Some(room) = self.rooms.get_mut(name.as_str()).filter(|room| room.server == id) else { return };
        let Some(tracker) = &mut room.tracker else { return };
        let mut told = Vec::new();
        let step = tracker.page(ticket, page, &mut told);
        let shard = room.shard;
        if told.iter().any(|told| matches!(told, Told::Followed(_))) {
            room.is_asked = false;
        }
        match step {
            Step::None => {}
            Step::Read => self.read_on(id, name),
            Step::Renew(old) => self.renew(id, name.clone(), old),
        }
        self.tell_all(name, shard, told);
        self.queue_read(name.as_str());
    }

    /// The next page of a room.
    fn read_on(&mut self, id: ServerId, name: &RoomName) {
        let may_ask = self.may_ask(id, self.now_ms());
        let Some(tracker) = self.rooms.get_mut(name.as_str()).and_then(|room| room.tracker.as_mut()) else { return };
        if may_ask {
            let wanted = tracker.next_read();
            self.read(id, name.clone(), wanted);
        } else {
            tracker.give_up();
        }
    }

    /// Something else was answered than was asked. It is read again when answers are what they should be.
    fn read_astray(&mut self, id: ServerId, name: &RoomName) {
        let up = self.servers.get_mut(id.place()).and_then(Server::up);
        if up.is_some_and(|up| !up.answers.is_wrong()) {
            return self.end_link(id, &server::not_understood().into());
        }
        let room = self.rooms.get_mut(name.as_str()).filter(|room| room.server == id);
        if let Some(tracker) = room.and_then(|room| room.tracker.as_mut()) {
            tracker.give_up();
        }
        self.queue_read(name.as_str());
    }

    /// A room could not be read: it is again some time later.
    fn give_up_read(&mut self, id: ServerId, name: &RoomName, error: &RedisError) {
        let retry_ms = self.now_ms() + REFUSED_MS;
        if let Some(room) = self.rooms.get_mut(name.as_str()).filter(|room| room.server == id)
            && let Some(tracker) = &mut room.tracker
            && let Some(server) = self.servers.get_mut(id.place())
        {
            tracker.give_up();
            // It is not read before its time has come.
            room.is_queued = true;
            server.retries.push_back((retry_ms, name.clone()));
            if self.may_say(id, error) {
                tracing::warn!(room = name.as_str(), %error, "a room's log could not be read");
            }
            self.refuse_follow(name, server::refusal(error));
        }
    }

    pub(super) fn was_renewed(&mut self, id: ServerId, name: &RoomName, answer: Result<Value, RedisError>) {
        if let Err(error) = answer {
            self.give_up_read(id, name, &error);
            return self.failed(id, &error);
        }
        let room = self.rooms.get_mut(name.as_str()).filter(|room| room.server == id);
        if room.and_then(|room| room.tracker.as_mut()).is_some_and(Tracker::renewed) {
            self.read_on(id, name);
            self.queue_read(name.as_str());
        }
    }

    /// What was read of a room. None where it is no page.
    fn page(&mut self, parts: [Value; 5]) -> Option<Page> {
        let [epoch, seq, id, log_from, Value::Array(entries)] = parts else { return None };
        let seq_of = |value: &Value| match value {
            Value::BulkString(digits) => encoding::seq(digits),
            _ => None,
        };
        let (Value::BulkString(epoch), Value::BulkString(id)) = (epoch, id) else { return None };
        let mut found = Vec::with_capacity(entries.len() / 2);
        let mut entries = entries.into_iter();
        while let (Some(last), Some(Value::BulkString(message))) = (entries.next(), entries.next()) {
            found.push((seq_of(&last)?, self.reader.message(&message.into())));
        }
        let (epoch, seq, log_from) = (encoding::epoch(&epoch)?, seq_of(&seq)?, seq_of(&log_from)?);
        Some(Page { epoch, seq, id: encoding::id(&id), log_from, entries: found })
    }

    pub(super) fn send_reads(&mut self, id: ServerId, now_ms: u64) {
        let mut postponed = Vec::new();
        while self.may_ask(id, now_ms)
            && let Some(name) = self.lanes.reading.pop(id)
        {
            let Some(room) = self.rooms.get_mut(name.as_str()) else { continue };
            // Read when its shard has taken what waits for it.
            let backlog = self.backlogs.get(usize::from(room.shard.0)).map_or(0, |backlog| backlog.bytes);
            if backlog > self.bounds.backlog_bytes_max / 2 {
                postponed.push(name);
                continue;
            }
            room.is_queued = false;
            let Some(tracker) = room.tracker.as_mut().filter(|tracker| tracker.is_behind()) else { continue };
            if room.subscription == Subscription::Active {
                let wanted = tracker.begin();
                self.read(id, name, wanted);
            }
        }
        postponed.into_iter().for_each(|name| self.lanes.reading.push(id, name));
    }

    /// Over the connection that is subscribed: what comes there before the answer is in it.
    fn read(&mut self, id: ServerId, room: RoomName, wanted: Wanted) {
        let Some(connection) = self.ask(id) else { return };
        self.lanes.reading.sent(id, 1);
        self.figures.reads.add(1);
        self.next_read += 1;
        let (serial, ticket) = (self.next_read, wanted.ticket);
        let epoch = wanted.epoch.unwrap_or_else(|| fastrand::u64(..));
        let call = self.scripts.read(&room, &wanted, epoch, serial);
        self.spawn(id, async move {
            let answer = connection.call(&call).await;
            What::Read { room, serial, ticket, answer }
        });
    }

    fn renew(&mut self, id: ServerId, room: RoomName, old: u64) {
        let Some(connection) = self.connections(id).map(|connections| connections.publish.clone()) else { return };
        self.lanes.reading.sent(id, 1);
        self.figures.renewed.add(1);
        tracing::warn!(room = room.as_str(), "a room's log has lost its end: it gets another epoch");
        let call = self.scripts.renew(&room, old, fastrand::u64(..));
        self.spawn(id, async move {
            let answer = connection.call(&call).await;
            What::Renewed { room, answer }
        });
    }
}

/// What a read found, if that is the answer to this one.
fn answered_to(answer: Value, serial: u64) -> Option<[Value; 5]> {
    let Value::Array(parts) = answer else { return None };
    let [epoch, seq, id, log_from, entries, Value::BulkString(echo)] = <[Value; 6]>::try_from(parts).ok()? else {
        return None;
    };
    (echo == serial.to_string().as_bytes()).then_some([epoch, seq, id, log_from, entries])
}
