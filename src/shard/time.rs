//! What a shard does because time has passed: deadlines, heartbeats, the ends of tokens, drains.

use super::connection::Phase;
use super::state::State;
use super::timers::Tick;
use crate::control::hooks::Verdict;
use crate::ring::ConnKey;
use crate::session::heartbeat::Beat;
use crate::session::socketio::Due;
use crate::wire::codes::close;
use crate::wire::refusal::Refusal;
use crate::wire::ws::Opcode;

/// A drain under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Drain {
    pub began_ms: u64,
    pub over_ms: u64,
    pub spread_ms: u64,
}

impl State {
    /// Looks at every connection that is due.
    pub fn tick(&mut self) {
        let now_ms = self.now_ms();
        self.core.expire(self.now);
        if now_ms >= self.swept_ms + 1000 {
            self.swept_ms = now_ms;
            self.core.sweep(self.now);
            self.count_slowly();
        }
        while let Some((tick, due)) = self.timers.pop(now_ms) {
            for conn in due {
                self.due(conn, tick);
            }
        }
        self.drain_local();
    }

    fn due(&mut self, conn: ConnKey, tick: Tick) {
        let now_ms = self.now_ms();
        let Some(connection) = self.connections.get_mut(conn) else { return };
        if !connection.alarm.rings(tick) {
            return;
        }
        if connection.due_ms > now_ms {
            let due_ms = connection.due_ms;
            self.timers.schedule(conn, &mut connection.alarm, due_ms);
            return;
        }
        match &mut connection.phase {
            Phase::Head(_) => {
                self.refuse(conn, &Refusal::handshake_timeout());
            }
            // The threads that ask the backend have a deadline of their own; this one is for the case that they are gone.
            Phase::Admission(admission) if admission.asked.is_some() => self.verdict(conn, Verdict::Failed),
            Phase::Admission(_) => {
                // Another shard owes the answers; the client gets its own deadline from when they are there.
                let due_ms = now_ms + 1000;
                connection.due_ms = due_ms;
                self.timers.schedule(conn, &mut connection.alarm, due_ms);
            }
            Phase::HandOver(_) | Phase::Closing(_) => self.abandon(conn),
            Phase::Probe(_) => self.fail(conn, close::PROTOCOL_ERROR, "the upgrade took too long"),
            Phase::Open(_) | Phase::Echo(_) | Phase::Lobby => self.look_after(conn),
        }
    }

    /// Heartbeat, the token's end, and a drain.
    pub fn look_after(&mut self, conn: ConnKey) {
        let (now, now_ms) = (self.now, self.now_ms());
        let settings = self.settings.clone();
        let (interval_ms, timeout_ms) =
            (settings.config.heartbeat.interval_s * 1000, settings.config.heartbeat.timeout_s * 1000);
        let (mut due_ms, is_stream) = (u64::MAX, self.is_stream(conn));
        if let Some(drain) = self.drain {
            let at_ms = drain.closes_at(conn);
            if now_ms >= at_ms {
                let reconnect_ms = drain.reconnect_ms(conn);
                self.close(conn, close::DRAINING, itoa::Buffer::new().format(reconnect_ms));
                return;
            }
            due_ms = at_ms;
        }
        due_ms = due_ms.min(match self.look_at_token(conn) {
            Some(due_ms) => due_ms,
            None => return,
        });
        if self.is_encoded_for(conn) {
            due_ms = due_ms.min(self.read_on(conn));
        }
        if self.connections.get(conn).is_some_and(|connection| connection.socketio.is_some()) {
            return self.look_after_engine(conn, due_ms);
        }
        loop {
            let Some(connection) = self.connections.get_mut(conn) else { return };
            let heard_ms = connection.heard_ms;
            let heartbeat = match &mut connection.phase {
                Phase::Open(client) => &mut client.heartbeat,
                Phase::Echo(client) => &mut client.heartbeat,
                _ => return,
            };
            match heartbeat.poll(now, heard_ms, interval_ms, timeout_ms) {
                Beat::WaitUntil(until_ms) => {
                    connection.due_ms = due_ms.min(until_ms);
                    let due_ms = connection.due_ms;
                    self.timers.schedule(conn, &mut connection.alarm, due_ms);
                    return;
                }
                Beat::Ping if is_stream => self.comment(conn),
                Beat::Ping => self.control(conn, Opcode::Ping, &[]),
                Beat::Dead => {
                    self.close(conn, close::NO_PONG, "no pong within the timeout");
                    return;
                }
            }
        }
    }
}

impl State {
    /// A session of Engine.IO: its pings are packets, and it has to get into a namespace.
    fn look_after_engine(&mut self, conn: ConnKey, due_ms: u64) {
        let now = self.now;
        let Some(heard_ms) = self.connections.get(conn).map(|connection| connection.heard_ms) else { return };
        let due = self.with_engine(conn, |socketio, terms, outlet| socketio.engine.poll(now, heard_ms, terms, outlet));
        match due {
            Some(Due::WaitUntil(until_ms)) => {
                let Some(connection) = self.connections.get_mut(conn) else { return };
                connection.due_ms = due_ms.min(until_ms);
                self.timers.schedule(conn, &mut connection.alarm, connection.due_ms);
            }
            Some(Due::Dead) => self.close(conn, close::NO_PONG, "no pong within the timeout"),
            Some(Due::NotConnected) => self.close(conn, close::POLICY, "no namespace was granted in time"),
            None => {}
        }
    }
}

impl Drain {
    /// A share of the time, fixed for each connection, so that they don't all leave at once.
    fn share(conn: ConnKey, of_ms: u64) -> u64 {
        let mixed = u64::from(conn.slot).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        (of_ms * mixed) >> 24
    }

    /// When a connection is closed: in the second half, after everybody was told.
    pub fn closes_at(&self, conn: ConnKey) -> u64 {
        self.began_ms + self.over_ms / 2 + Drain::share(conn, self.over_ms / 2)
    }

    /// After how long a client should come back.
    pub fn reconnect_ms(&self, conn: ConnKey) -> u64 {
        Drain::share(ConnKey { slot: conn.slot ^ 0x5555_5555, ..conn }, self.spread_ms)
    }
}
