//! Where the packets of an Engine.IO session go: frames of a WebSocket, or the payload that answers a poll.

use super::engineio::{PacketKind, PayloadWriter, packet_frame};
use super::socketio::{self, Header};
use super::ws;

/// Takes the packets of one session.
#[derive(Debug)]
pub enum Outlet<'o> {
    /// A WebSocket: every packet is a frame, appended to what is to be sent.
    WebSocket {
        /// Takes the frames.
        out: &'o mut Vec<u8>,
        /// The client asked for base64 in place of binary frames.
        base64: bool,
    },
    /// The answer to a poll.
    Payload(PayloadWriter<'o>),
}

impl Outlet<'_> {
    /// Sends a packet of Engine.IO.
    pub fn packet(&mut self, kind: PacketKind, data: &[u8]) {
        match self {
            Outlet::WebSocket { out, .. } => packet_frame(kind, data, out),
            Outlet::Payload(payload) => payload.text(kind, data),
        }
    }

    /// Sends a packet of Engine.IO whose text `write` appends, its type first.
    pub fn text(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        match self {
            Outlet::WebSocket { out, .. } => {
                // Such packets are rare and small: their length is known when they are written.
                let mut packet = Vec::new();
                write(&mut packet);
                ws::text_frame(&packet, out);
            }
            Outlet::Payload(payload) => write(payload.begin_packet()),
        }
    }

    /// Sends a packet of Socket.IO, its JSON in parts.
    pub fn socketio(&mut self, header: &Header<'_>, payload: &[&[u8]]) {
        match self {
            Outlet::WebSocket { out, .. } => socketio::packet_frame(out, header, payload),
            Outlet::Payload(packets) => socketio::write_packet(packets.begin_packet(), header, payload),
        }
    }

    /// Sends a message of bytes: an attachment.
    pub fn binary(&mut self, data: &[u8]) {
        match self {
            Outlet::WebSocket { out, base64: false } => ws::binary_frame(data, out),
            Outlet::WebSocket { out, base64: true } => {
                let mut packet = Vec::new();
                PayloadWriter::new(&mut packet).binary(data);
                ws::text_frame(&packet, out);
            }
            Outlet::Payload(payload) => payload.binary(data),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::socketio::Kind;

    fn send(outlet: &mut Outlet<'_>) {
        outlet.packet(PacketKind::Ping, b"");
        outlet.text(|out| socketio::write_connect(out, "/ws", "a", None));
        outlet.socketio(&Header { kind: Kind::BinaryAck, attachments: 1, namespace: "/", id: Some(7) }, &[b"[0]"]);
        outlet.binary(&[1, 2, 3, 4]);
    }

    #[test]
    fn the_same_packets_are_frames_or_a_payload() {
        let mut out = Vec::new();
        send(&mut Outlet::WebSocket { out: &mut out, base64: false });
        assert_eq!(out, b"\x81\x012\x81\x1140/ws,{\"sid\":\"a\"}\x81\x08461-7[0]\x82\x04\x01\x02\x03\x04");
        out.clear();
        send(&mut Outlet::WebSocket { out: &mut out, base64: true });
        assert!(out.ends_with(b"[0]\x81\x09bAQIDBA=="));
        out.clear();
        send(&mut Outlet::Payload(PayloadWriter::new(&mut out)));
        assert_eq!(out, b"2\x1e40/ws,{\"sid\":\"a\"}\x1e461-7[0]\x1ebAQIDBA==");
    }
}
