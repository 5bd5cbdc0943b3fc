//! Clients of the native protocol that want it in another form: their messages in, the hub's answers out. Events are made
//! in [`super::variants`].

use super::state::State;
use crate::control::figures::Figures;
use crate::hub::outbox::Protocol;
use crate::ring::ConnKey;
use crate::wire::native::Parsed;
use crate::wire::variant::Variant;
use crate::wire::{envelope, msgpack};

/// What is kept of the memory in which messages become JSON.
const UNPACKED_BYTES_KEPT: usize = 64 * 1024;

/// Ends the payload of a message to one client, and appends its frame in the form that the client takes.
pub(super) fn finish(protocol: Protocol, payload: &mut Vec<u8>, out: &mut Vec<u8>) {
    match protocol {
        Protocol::Variant(variant) => {
            payload.push(b'}');
            variant.write_message(payload, out);
        }
        _ => envelope::finish(payload, out),
    }
}

/// Counts a connection that is open from here on, or is no more.
pub(super) fn count(figures: &Figures, protocol: Protocol, is_open: bool) {
    let Protocol::Variant(variant) = protocol else { return };
    for (figure, counts) in [(&figures.batch, variant.is_batch()), (&figures.msgpack, variant.is_msgpack())] {
        match is_open {
            true => figure.add(u64::from(counts)),
            false => figure.sub(u64::from(counts)),
        }
    }
}

impl State {
    pub(super) fn speaks_msgpack(&self, conn: ConnKey) -> bool {
        self.variant_of(conn).is_some_and(Variant::is_msgpack)
    }

    fn variant_of(&self, conn: ConnKey) -> Option<Variant> {
        match self.connections.get(conn)?.outbox.protocol() {
            Protocol::Variant(variant) => Some(variant),
            _ => None,
        }
    }

    /// A binary message of a client that speaks MessagePack: from here on it is as if it had been sent as JSON.
    pub(super) fn packed_command(&mut self, conn: ConnKey, message: &[u8]) {
        let limits = &self.settings.config.limits;
        let (depth_max, bytes_max) = (limits.depth_max, limits.message_bytes_max);
        let mut text = std::mem::take(&mut self.unpacked);
        text.clear();
        match msgpack::read(message, depth_max, bytes_max, &mut text) {
            Ok(()) => self.command(conn, &mut text),
            Err(unreadable) => {
                let parsed = Parsed { reference: None, command: Err(unreadable.refused()) };
                self.unreadable_command(conn, parsed, message.len());
            }
        }
        if text.capacity() <= UNPACKED_BYTES_KEPT {
            self.unpacked = text;
        }
    }

    /// Such a message that can't be read: like any other it counts against the rate.
    fn unreadable_command(&mut self, conn: ConnKey, parsed: Parsed<'_>, bytes: usize) {
        let Some(over_rate) = self.count_against_rate(conn) else { return };
        self.note_received(conn, &parsed, bytes, &[]);
        match over_rate {
            None => self.carry_out(conn, parsed),
            Some(retry_after_ms) => self.refuse_rate(conn, None, retry_after_ms),
        }
        self.drain_local();
    }
}
