//! The WebSocket side of a connection: messages in, control frames and closes out. Streams are closed here too.

use super::connection::{Client, Closing, Phase};
use super::report::Ending;
use super::state::State;
use crate::control::store::ClosedBy;
use crate::hub::outbox::{Outbox, Protocol};
use crate::ring::ConnKey;
use crate::wire::codes::close;
use crate::wire::engineio::Packet;
use crate::wire::ws::{self, Opcode};

impl State {
    pub(super) fn frames(&mut self, conn: ConnKey, bytes: &mut [u8]) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        let mut decoder = std::mem::take(&mut connection.decoder);
        let mut input = ws::Input::new(bytes);
        let config = &self.settings.config;
        let message_bytes_max =
            if connection.socketio.is_some() { config.engine_bytes_max() } else { config.limits.message_bytes_max };
        loop {
            let is_open = self.is_open(conn);
            if !is_open && !self.awaits_close(conn) {
                return;
            }
            match decoder.next(&mut input, message_bytes_max) {
                Ok(Some(message)) if is_open => {
                    self.figures.messages_received.add(1);
                    self.websocket_message(conn, message);
                }
                // Of a peer that was closed, only its own close counts.
                Ok(Some(ws::Message::Close(_))) => self.flush_and_shut(conn),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    self.fail(conn, error.close_code, error.reason);
                    return;
                }
            }
        }
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.decoder = decoder;
        }
    }

    fn websocket_message(&mut self, conn: ConnKey, message: ws::Message<'_>) {
        let connection = self.connections.get(conn);
        let speaks_socketio = connection.is_some_and(|connection| connection.socketio.is_some());
        let is_probe = connection.is_some_and(|connection| matches!(connection.phase, Phase::Probe(_)));
        match message {
            ws::Message::Text(text) if speaks_socketio => {
                self.count_message(conn);
                self.engine_text(conn, text);
            }
            ws::Message::Binary(data) if speaks_socketio => {
                self.count_message(conn);
                self.engine_packet(conn, Packet::Binary(data));
            }
            message @ (ws::Message::Text(_) | ws::Message::Binary(_)) if is_probe => self.probe_message(conn, message),
            ws::Message::Ping(payload) => self.control(conn, Opcode::Pong, payload),
            // Socket.IO has pings of its own.
            ws::Message::Pong(_) if speaks_socketio => {}
            ws::Message::Pong(_) => self.pong(conn),
            ws::Message::Close(said) => {
                let (code, reason) = said.unwrap_or((0, ""));
                self.close_answered(conn, code, reason);
            }
            ws::Message::Text(text) => {
                self.count_message(conn);
                if self.is_echo(conn) {
                    self.echo(conn, Opcode::Text, text);
                } else {
                    self.command(conn, text);
                }
            }
            ws::Message::Binary(data) => {
                self.count_message(conn);
                if self.is_echo(conn) {
                    self.echo(conn, Opcode::Binary, data);
                } else if self.speaks_msgpack(conn) {
                    self.packed_command(conn, data);
                } else {
                    self.close(conn, close::UNSUPPORTED, "the native protocol is text");
                }
            }
        }
    }

    pub(super) fn count_message(&mut self, conn: ConnKey) {
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.messages_received = connection.messages_received.saturating_add(1);
        }
    }

    fn is_open(&self, conn: ConnKey) -> bool {
        self.connections.get(conn).is_some_and(|connection| match connection.phase {
            Phase::Open(_) | Phase::Echo(_) | Phase::Lobby | Phase::Probe(_) => true,
            Phase::Admission(_) => connection.socketio.is_some(),
            _ => false,
        })
    }

    fn awaits_close(&self, conn: ConnKey) -> bool {
        let phase = self.connections.get(conn).map(|connection| &connection.phase);
        matches!(phase, Some(Phase::Closing(Closing::AwaitsClose)))
    }

    fn is_echo(&self, conn: ConnKey) -> bool {
        self.connections.get(conn).is_some_and(|connection| matches!(connection.phase, Phase::Echo(_)))
    }

    fn echo(&mut self, conn: ConnKey, opcode: Opcode, payload: &[u8]) {
        let outbox_bytes_max = self.settings.config.limits.outbox_bytes_max;
        let Some(connection) = self.connections.get_mut(conn) else { return };
        let waiting = connection.outbox.bytes();
        if waiting > 0 && waiting + payload.len() > outbox_bytes_max {
            self.close_slow(conn);
            return;
        }
        let out = connection.outbox.answers();
        out.reserve(ws::header_bytes(payload.len()) + payload.len());
        ws::write_header(out, opcode, payload.len());
        out.extend_from_slice(payload);
        if connection.outbox.mark_dirty() {
            self.dirty.push(conn);
        }
    }

    pub fn control(&mut self, conn: ConnKey, opcode: Opcode, payload: &[u8]) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        let answers = connection.outbox.answers();
        let before = answers.len();
        ws::control_frame(opcode, payload, answers);
        let full = connection.outbox.answers_full(before, self.settings.config.limits.outbox_bytes_max);
        if connection.outbox.mark_dirty() {
            self.dirty.push(conn);
        }
        if full {
            self.close_slow(conn);
        }
    }

    /// Closes a WebSocket whose peer can't be understood any more; so nothing is expected of it.
    pub(super) fn fail(&mut self, conn: ConnKey, code: u16, reason: &str) {
        self.close(conn, code, reason);
        self.flush_and_shut(conn);
    }

    /// Closes a connection from our side: the close frame goes before any event that waits. A stream is told by an event.
    pub fn close(&mut self, conn: ConnKey, code: u16, reason: &str) {
        self.close_with(conn, code, reason, Outbox::drop_events);
    }

    /// Likewise; `forget` drops what waits and is not to be sent. What the client is owed is noted before that.
    fn close_with(&mut self, conn: ConnKey, code: u16, reason: &str, forget: fn(&mut Outbox)) {
        if !self.is_open(conn) {
            return;
        }
        self.figures.closes.add_code(code);
        self.release(conn, Ending { code: Some(code), reason, by: ClosedBy::Hub });
        let Some(connection) = self.connections.get_mut(conn) else { return };
        forget(&mut connection.outbox);
        match connection.outbox.protocol() {
            Protocol::Native | Protocol::Variant(_) => {
                ws::close_frame(code, reason, connection.outbox.answers());
                self.finish(conn, Closing::AwaitsClose);
            }
            Protocol::Stream => {
                State::write_stream_close(connection.outbox.answers(), code, reason);
                self.finish(conn, Closing::Flushing);
            }
            protocol @ (Protocol::SocketIo | Protocol::Polling) => {
                connection.outbox.release();
                let before = connection.outbox.answers().len();
                self.with_engine(conn, |socketio, terms, outlet| socketio.engine.farewell(code, terms, outlet));
                let Some(connection) = self.connections.get_mut(conn) else { return };
                if protocol == Protocol::Polling {
                    // Where there is nothing to say, the next poll learns that its session is gone, and so does one that waits.
                    let is_told = connection.outbox.answers().len() > before;
                    return if is_told { self.finish(conn, Closing::Flushing) } else { self.abandon(conn) };
                }
                ws::close_frame(code, reason, connection.outbox.answers());
                if connection.socket.is_none() {
                    // Its socket is on the way to it.
                    connection.outbox.hold();
                }
                self.finish(conn, Closing::AwaitsClose);
            }
        }
    }

    /// Closes a connection whose outbox is beyond its bound; what waits is not sent.
    pub fn close_slow(&mut self, conn: ConnKey) {
        // A connection may be found too slow by several rooms in one turn; the first has closed it.
        if !self.is_open(conn) {
            return;
        }
        if let Some(connection) = self.connections.get(conn) {
            let forget = match connection.outbox.protocol() {
                Protocol::Native | Protocol::Variant(_) | Protocol::SocketIo | Protocol::Polling => Outbox::clear,
                // The answer's head may be among what waits, and nothing can be told without it.
                Protocol::Stream => Outbox::drop_events,
            };
            self.figures.slow_closes.add(1);
            self.close_with(conn, close::TOO_SLOW, "too slow", forget);
        }
    }

    /// Answers the peer's close frame in kind (RFC 6455 §5.5.1): the same code, nothing where it gave none.
    fn close_answered(&mut self, conn: ConnKey, code: u16, reason: &str) {
        self.figures.closes.add_code(if code == 0 { 1005 } else { code });
        self.release(conn, Ending { code: (code != 0).then_some(code), reason, by: ClosedBy::Client });
        let Some(connection) = self.connections.get_mut(conn) else { return };
        // Nothing may follow a close frame (RFC 6455 §5.5.1).
        connection.outbox.drop_events();
        connection.outbox.release();
        let out = connection.outbox.answers();
        if code == 0 {
            ws::control_frame(Opcode::Close, &[], out);
        } else {
            ws::close_frame(code, "", out);
        }
        self.finish(conn, Closing::Flushing);
    }

    /// From here on the outbox is emptied and the connection ends.
    pub fn finish(&mut self, conn: ConnKey, closing: Closing) {
        if let Some(Phase::Probe(probing)) = self.connections.get(conn).map(|connection| &connection.phase) {
            self.probe_ended(*probing);
        }
        // A peer that doesn't read what is left, or doesn't answer a close, is cut off.
        let due_ms = self.now_ms() + self.settings.config.limits.close_wait_s * 1000;
        let Some(connection) = self.connections.get_mut(conn) else { return };
        connection.phase = Phase::Closing(closing);
        connection.due_ms = due_ms;
        self.timers.schedule(conn, &mut connection.alarm, due_ms);
        if connection.outbox.mark_dirty() {
            self.dirty.push(conn);
        }
    }

    /// The client of a connection.
    pub fn client_mut(&mut self, conn: ConnKey) -> Option<&mut Client> {
        match &mut self.connections.get_mut(conn)?.phase {
            Phase::Open(client) => Some(client),
            _ => None,
        }
    }
}
