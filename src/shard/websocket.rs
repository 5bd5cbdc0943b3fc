//! The WebSocket side of a connection: messages in, control frames and closes out. Streams are closed here too.

use super::connection::{Client, Closing, Connection, Phase};
use super::report::Ending;
use super::state::State;
use crate::control::store::ClosedBy;
use crate::hub::outbox::{Outbox, Protocol};
use crate::ring::ConnKey;
use crate::wire::codes::close;
use crate::wire::deflate::{InflateBounds, Window};
use crate::wire::engineio::Packet;
use crate::wire::extensions::Deflate;
use crate::wire::ws::{self, Opcode};

impl State {
    pub(super) fn frames(&mut self, conn: ConnKey, bytes: &mut [u8]) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        let mut decoder = std::mem::take(&mut connection.decoder);
        let mut input = ws::Input::new(bytes);
        let config = &self.settings.config;
        let message_bytes_max =
            if connection.socketio.is_some() { config.engine_bytes_max() } else { config.limits.message_bytes_max };
        let accepts = ws::Accepts { message_bytes_max, deflated: connection.outbox.deflate_bits() > 0 };
        loop {
            let is_open = self.is_open(conn);
            if !is_open && !self.awaits_close(conn) {
                return;
            }
            match decoder.next(&mut input, accepts) {
                Ok(Some(ws::Message::Deflated { is_text, payload })) if is_open => {
                    self.figures.messages_received.add(1);
                    if let Err(error) = self.deflated_message(conn, is_text, payload, message_bytes_max) {
                        self.figures.inflate_refused.add(1);
                        self.fail(conn, error.close_code, error.reason);
                        return;
                    }
                }
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

    /// A compressed message: it is decompressed into memory that all connections share, and is one like any other then.
    fn deflated_message(
        &mut self,
        conn: ConnKey,
        is_text: bool,
        payload: &[u8],
        message_bytes_max: usize,
    ) -> Result<(), ws::ProtocolError> {
        let bounds = InflateBounds { message_bytes_max, ratio_max: self.settings.config.compression.ratio_max };
        // Taken out for the time of the call: the message is in it.
        let mut inflater = self.inflater.take().unwrap_or_default();
        let window = self.windows.get_mut(&conn);
        let outcome = inflater.message(payload, is_text, window, bounds).map(|message| {
            self.figures.inflated_messages.add(1);
            self.figures.inflate_bytes_before.add(payload.len() as u64);
            self.figures.inflate_bytes_after.add(message.len() as u64);
            let message = if is_text { ws::Message::Text(message) } else { ws::Message::Binary(message) };
            self.websocket_message(conn, message);
        });
        self.inflater = Some(inflater);
        outcome
    }

    /// Notes what was agreed with a client on compression, and says what is to be answered: where the memory for windows is
    /// used up, the client gets none.
    pub(super) fn grant_deflate(&mut self, conn: ConnKey, agreed: Option<Deflate>) -> Option<Deflate> {
        let mut agreed = agreed?;
        let connection = self.connections.get_mut(conn)?;
        connection.outbox.deflates(agreed.window_bits);
        self.figures.deflate_connections.add(1);
        if agreed.client_window_bits > 0 {
            let window = Window::new(agreed.client_window_bits);
            let bytes = self.figures.window_bytes.value() + window.bytes_max() as u64;
            if bytes > self.settings.config.compression.client_windows_bytes_max as u64 {
                agreed = agreed.without_client_window();
            } else {
                self.windows.insert(conn, window);
                self.figures.window_bytes.set(bytes);
            }
        }
        Some(agreed)
    }

    /// A connection goes, and with it what was agreed.
    pub(super) fn forget_deflate(&mut self, conn: ConnKey, connection: &Connection) {
        if connection.outbox.deflate_bits() > 0 {
            self.figures.deflate_connections.sub(1);
            let window = self.windows.remove(&conn);
            self.figures.window_bytes.sub(window.map_or(0, |window| window.bytes_max() as u64));
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
            // It was decompressed before it came here.
            ws::Message::Deflated { .. } => {}
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
        let before = out.len();
        out.reserve(ws::header_bytes(payload.len()) + payload.len());
        ws::write_header(out, opcode, payload.len());
        out.extend_from_slice(payload);
        self.deflating.answers(&mut connection.outbox, before);
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
                let before = connection.outbox.answers_bytes();
                self.with_engine(conn, |socketio, terms, outlet| socketio.engine.farewell(code, terms, outlet));
                let Some(connection) = self.connections.get_mut(conn) else { return };
                if protocol == Protocol::Polling {
                    // Where there is nothing to say, the next poll learns that its session is gone, and so does one that waits.
                    let is_told = connection.outbox.answers_bytes() > before;
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
