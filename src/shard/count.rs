//! What a shard counts now and then rather than with each event, and the round trip to its clients.

use super::connection::Phase;
use super::state::State;
use crate::ring::ConnKey;

impl State {
    /// Counts what changes slowly or costs more than a look; to be called once a second.
    pub fn count_slowly(&mut self) {
        let memberships = self.figures.subscriptions.value() as usize;
        self.figures.connection_bytes.set(self.connections.memory_bytes() as u64);
        self.figures.room_bytes.set(self.core.rooms().memory_bytes(memberships) as u64);
        self.core.recorder.expire();
        self.figures.recorder_bytes.set(self.core.recorder.memory_bytes() as u64);
        self.count_kinds();
        while let Some(conn) = self.latency.stale(self.now.monotonic_us) {
            let Some(connection) = self.connections.get_mut(conn) else { break };
            self.latency.forget(&mut connection.followed);
        }
    }

    /// Counts the events of each kind of room.
    pub fn count_kinds(&mut self) {
        let State { core, figures, .. } = self;
        figures.kinds.try_add(|| core.take_kind_publishes().collect());
    }

    /// A pong came.
    pub fn pong(&mut self, conn: ConnKey) {
        let now = self.now;
        let engine = self.connections.get_mut(conn).and_then(|connection| connection.socketio.as_deref_mut());
        if let Some(us) = engine.map(|socketio| socketio.engine.pong(now)) {
            us.into_iter().for_each(|us| self.figures.round_trip.add(us));
            return;
        }
        let round_trip_us = match self.connections.get_mut(conn).map(|connection| &mut connection.phase) {
            Some(Phase::Open(client)) => client.heartbeat.pong(now),
            Some(Phase::Echo(client)) => client.heartbeat.pong(now),
            _ => None,
        };
        if let Some(us) = round_trip_us {
            self.figures.round_trip.add(us);
        }
    }
}
