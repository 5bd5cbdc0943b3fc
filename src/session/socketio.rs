//! One client of Socket.IO: its Engine.IO session, the namespaces it is in, and what its packets ask for (PROTOCOL §8).
//!
//! What a client sends is taken in two steps. [`Engine::text`] and [`Engine::binary`] say what it is, which changes the
//! engine: nothing is parsed yet, so a message that comes too soon costs no more than this. What is asked for is then read
//! from what they gave: [`Emitted::command`] makes the commands of the native protocol of events, [`Asked::credentials`]
//! reads what a CONNECT carries. Whoever carries that out answers through the engine again.
//!
//! Answers and events go to an [`Outlet`]: the engine is the same on a WebSocket and on polls.

pub use super::emitted::{AnswerTo, Asked, Content, Credentials, Emitted, Visit};
use super::heartbeat::{Beat, Heartbeat};
use crate::ring::Now;
use crate::wire::codes::close;
use crate::wire::engineio::{self, Handshake, PROBE, Packet, PacketKind};
use crate::wire::outlet::Outlet;
use crate::wire::socketio::{self, Assembler, Header, Kind, Malformed, ack_payload, event_payload};

pub use crate::config::NAMESPACES_MAX;

const _: () = assert!(NAMESPACES_MAX <= 32, "an engine has a bit for each namespace");
const _: () =
    assert!(crate::config::NAMESPACE_BYTES_MAX == socketio::NAMESPACE_BYTES_MAX, "what can be configured can be read");

/// What holds for every engine, from the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'c> {
    /// The namespaces, at most [`NAMESPACES_MAX`]; each begins with a slash.
    pub namespaces: &'c [Box<str>],
    /// The longest message, a packet with its attachments included.
    pub message_bytes_max: usize,
    /// How often the client is pinged.
    pub ping_interval_ms: u64,
    /// How long after a ping something has to come.
    pub ping_timeout_ms: u64,
    /// Within which time the first namespace has to be granted.
    pub connect_timeout_ms: u64,
}

/// A namespace, by its place in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space(pub(super) u8);

impl Space {
    /// Its place among the configured namespaces.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Its name.
    pub fn name<'c>(self, terms: &Terms<'c>) -> &'c str {
        terms.namespaces.get(self.index()).map_or("/", |name| name)
    }

    const fn bit(self) -> u32 {
        1 << self.0
    }
}

/// A set of namespaces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Spaces(u32);

impl Spaces {
    /// Whether none is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether a namespace is in it.
    pub const fn has(self, space: Space) -> bool {
        self.0 & space.bit() != 0
    }

    /// The same, with one more.
    pub const fn with(self, space: Space) -> Spaces {
        Spaces(self.0 | space.bit())
    }

    /// The same, without one.
    pub const fn without(self, space: Space) -> Spaces {
        Spaces(self.0 & !space.bit())
    }

    /// What is in both.
    pub const fn and(self, other: Spaces) -> Spaces {
        Spaces(self.0 & other.0)
    }

    /// A bit for each.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// What [`Spaces::bits`] gave.
    pub const fn of_bits(bits: u32) -> Spaces {
        Spaces(bits)
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Space> + use<> {
        (0..NAMESPACES_MAX as u8).map(Space).filter(move |space| self.has(*space))
    }
}

/// One client's Engine.IO session.
#[derive(Debug)]
pub struct Engine {
    heartbeat: Heartbeat,
    /// When it is closed if no namespace was granted; [`u64::MAX`] once one was.
    connect_until_ms: u64,
    /// Namespaces that the client asked for, and nobody has answered yet.
    asked: u32,
    /// Namespaces that it is in.
    open: u32,
    /// Namespaces that it was taken out of by us: what was on its way is no fault of the client.
    left: u32,
    assembler: Assembler,
}

const _: () = assert!(size_of::<Engine>() <= 40, "every idle connection has an engine");

/// What a client's message is.
#[derive(Debug)]
pub enum Heard<'t> {
    /// Nothing that concerns anybody else.
    Nothing,
    /// The answer to a ping: see [`Engine::pong`].
    Pong,
    /// The client closes the session.
    Close,
    /// It wants to be in a namespace, to be answered by [`Engine::grant`] or [`Engine::refuse`].
    Asked(Asked<'t>),
    /// It is in a namespace no more.
    Left(Space),
    /// An event.
    Emitted(Emitted<'t>),
    /// The answer to an event of ours.
    Acknowledged {
        /// In which namespace.
        space: Space,
        /// The event's id.
        id: u64,
        /// The arguments.
        content: Content<'t>,
    },
}

/// Why a session ends with what the client sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// The WebSocket's close code.
    pub close_code: u16,
    /// For the close frame and the log.
    pub reason: &'static str,
}

impl Failure {
    const fn protocol(reason: &'static str) -> Failure {
        Failure { close_code: close::PROTOCOL_ERROR, reason }
    }
}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Failure {
        let close_code = if malformed == Malformed::TooLarge { close::TOO_LARGE } else { close::PROTOCOL_ERROR };
        Failure { close_code, reason: malformed.reason() }
    }
}

impl From<engineio::Malformed> for Failure {
    fn from(malformed: engineio::Malformed) -> Failure {
        let is_text = malformed != engineio::Malformed::Utf8;
        let close_code = if is_text { close::PROTOCOL_ERROR } else { close::INVALID_UTF8 };
        Failure { close_code, reason: malformed.reason() }
    }
}

/// What is due of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing until then, in milliseconds of the monotonic clock.
    WaitUntil(u64),
    /// Nothing came within the timeout after a ping: it is to be closed with [`close::NO_PONG`].
    Dead,
    /// No namespace was granted in time: it is to be closed.
    NotConnected,
}

impl Engine {
    /// An engine as it begins.
    pub fn new(now_ms: u64, terms: &Terms<'_>) -> Engine {
        Engine {
            heartbeat: Heartbeat::new(now_ms),
            connect_until_ms: now_ms.saturating_add(terms.connect_timeout_ms),
            asked: 0,
            open: 0,
            left: 0,
            assembler: Assembler::default(),
        }
    }

    /// An engine whose messages are not packets of Socket.IO, so that there is no namespace to wait for.
    pub fn without_namespaces(now_ms: u64, terms: &Terms<'_>) -> Engine {
        Engine { connect_until_ms: u64::MAX, ..Engine::new(now_ms, terms) }
    }

    /// Sends the open packet. `sid` is the engine's; `may_upgrade` where the client polls and may go on over a WebSocket.
    pub fn greet(&self, sid: &str, may_upgrade: bool, terms: &Terms<'_>, outlet: &mut Outlet<'_>) {
        let handshake = Handshake {
            sid,
            may_upgrade,
            ping_interval_ms: terms.ping_interval_ms,
            ping_timeout_ms: terms.ping_timeout_ms,
            payload_bytes_max: terms.message_bytes_max,
        };
        outlet.text(|out| engineio::write_open(out, &handshake));
    }

    /// Takes a text frame.
    pub fn text<'t>(
        &mut self,
        text: &'t mut [u8],
        terms: &Terms<'_>,
        outlet: &mut Outlet<'_>,
    ) -> Result<Heard<'t>, Failure> {
        self.packet(engineio::parse(text)?, terms, outlet)
    }

    /// Takes a packet: one of a payload, or [`Engine::text`]'s.
    pub fn packet<'t>(
        &mut self,
        packet: Packet<'t>,
        terms: &Terms<'_>,
        outlet: &mut Outlet<'_>,
    ) -> Result<Heard<'t>, Failure> {
        match packet {
            Packet::Binary(data) => self.binary(data, terms),
            Packet::Text { kind: PacketKind::Message, data } => {
                match self.assembler.text(data, terms.message_bytes_max)? {
                    Some(packet) => self.socketio(packet, terms, outlet),
                    None => Ok(Heard::Nothing),
                }
            }
            Packet::Text { kind: PacketKind::Pong, .. } => Ok(Heard::Pong),
            Packet::Text { kind: PacketKind::Close, .. } => Ok(Heard::Close),
            // Version 3 had it the other way round.
            Packet::Text { kind: PacketKind::Ping, .. } => Err(Failure::protocol("a ping is the server's to send")),
            Packet::Text { kind: PacketKind::Open | PacketKind::Upgrade | PacketKind::Noop, .. } => Ok(Heard::Nothing),
        }
    }

    /// Takes a binary frame.
    pub fn binary<'t>(&mut self, data: &[u8], terms: &Terms<'_>) -> Result<Heard<'t>, Failure> {
        let Some(mut assembled) = self.assembler.binary(data, terms.message_bytes_max)? else {
            return Ok(Heard::Nothing);
        };
        let (packet, _) = assembled.parts();
        let (kind, id) = (packet.header.kind, packet.header.id);
        match self.entered(packet.header.namespace, terms)? {
            Some(space) => heard(kind, space, id, Content::Assembled(assembled)),
            None => Ok(Heard::Nothing),
        }
    }

    fn socketio<'t>(
        &mut self,
        packet: socketio::Packet<'t>,
        terms: &Terms<'_>,
        outlet: &mut Outlet<'_>,
    ) -> Result<Heard<'t>, Failure> {
        let Header { kind, namespace, id, .. } = packet.header;
        match kind {
            Kind::Connect => self.ask(namespace, packet.payload, terms, outlet),
            Kind::Disconnect => match find(namespace, terms).filter(|space| self.is_in(*space)) {
                Some(space) => {
                    self.open &= !space.bit();
                    Ok(Heard::Left(space))
                }
                // It may have crossed a refusal or a farewell of ours.
                None => Ok(Heard::Nothing),
            },
            Kind::ConnectError => Err(Failure::protocol("a refusal is the server's to send")),
            Kind::Event | Kind::BinaryEvent | Kind::Ack | Kind::BinaryAck => match self.entered(namespace, terms)? {
                Some(space) => heard(kind, space, id, Content::Text(packet.payload)),
                None => Ok(Heard::Nothing),
            },
        }
    }

    fn ask<'t>(
        &mut self,
        namespace: &str,
        payload: &'t mut [u8],
        terms: &Terms<'_>,
        outlet: &mut Outlet<'_>,
    ) -> Result<Heard<'t>, Failure> {
        let Some(space) = find(namespace, terms) else {
            outlet.text(|out| socketio::write_connect_error(out, namespace, "Invalid namespace", None));
            return Ok(Heard::Nothing);
        };
        // Who is in it already is granted it once more: a library that is told to connect twice asks twice.
        self.asked |= space.bit();
        self.left &= !space.bit();
        Ok(Heard::Asked(Asked { space, payload }))
    }

    /// The namespace of a packet that only who is in it may send; none where the packet crossed our farewell.
    fn entered(&self, namespace: &str, terms: &Terms<'_>) -> Result<Option<Space>, Failure> {
        match find(namespace, terms) {
            Some(space) if self.is_in(space) => Ok(Some(space)),
            Some(space) if self.left & space.bit() != 0 => Ok(None),
            _ => Err(Failure::protocol("a packet for a namespace that was not granted")),
        }
    }

    /// Whether the client is in a namespace.
    pub const fn is_in(&self, space: Space) -> bool {
        self.open & space.bit() != 0
    }

    /// The namespaces that the client is in or about to be let into, a bit each: what a room's events go to.
    pub const fn reached(&self) -> Spaces {
        Spaces(self.asked | self.open)
    }

    /// The namespaces that the client is in.
    pub fn spaces(&self) -> impl Iterator<Item = Space> + use<> {
        Spaces(self.open).iter()
    }

    /// Grants a namespace that was asked for. `sid` is the client's id in it, `pid` what it may be taken up by.
    pub fn grant(&mut self, space: Space, sid: &str, pid: Option<&str>, terms: &Terms<'_>, outlet: &mut Outlet<'_>) {
        if self.asked & space.bit() == 0 {
            return;
        }
        self.asked &= !space.bit();
        self.open |= space.bit();
        self.connect_until_ms = u64::MAX;
        outlet.text(|out| socketio::write_connect(out, space.name(terms), sid, pid));
    }

    /// Refuses a namespace that was asked for. `data` is JSON that the client's library hands on.
    pub fn refuse(
        &mut self,
        space: Space,
        message: &str,
        data: Option<&[u8]>,
        terms: &Terms<'_>,
        outlet: &mut Outlet<'_>,
    ) {
        if self.asked & space.bit() == 0 {
            return;
        }
        self.asked &= !space.bit();
        outlet.text(|out| socketio::write_connect_error(out, space.name(terms), message, data));
    }

    /// Takes the client out of a namespace. Its library doesn't come back by itself then.
    pub fn dismiss(&mut self, space: Space, terms: &Terms<'_>, outlet: &mut Outlet<'_>) {
        if !self.is_in(space) {
            return;
        }
        self.open &= !space.bit();
        self.left |= space.bit();
        outlet.text(|out| socketio::write_disconnect(out, space.name(terms)));
    }

    /// Says what goes before a close with that code. Where the client should not come back by itself it is taken out of
    /// its namespaces first, since a library reconnects after any other close. The close packet is for clients that broke
    /// the protocol: some libraries take it for a farewell of their own, and stay away.
    pub fn farewell(&mut self, close_code: u16, terms: &Terms<'_>, outlet: &mut Outlet<'_>) {
        if matches!(close_code, close::FORBIDDEN | close::TAKEN_OVER | close::BY_ADMIN) {
            for space in self.spaces() {
                self.dismiss(space, terms, outlet);
            }
        }
        self.asked = 0;
        if close_code < close::APPLICATION && close_code != close::DRAINING {
            outlet.packet(PacketKind::Close, b"");
        }
    }

    /// Sends an event with one argument, the event object; false where the client is not in that namespace.
    ///
    /// Rooms' events reach their members as frames that are made once: this is for what one client is told.
    pub fn event(&self, space: Space, name: &str, object: &[u8], terms: &Terms<'_>, outlet: &mut Outlet<'_>) -> bool {
        if !self.is_in(space) {
            return false;
        }
        outlet.socketio(&Header::new(Kind::Event, space.name(terms)), &event_payload(name, object));
        true
    }

    /// Sends the answer to an event: to its acknowledgement, or as an event. `kind` and `object` are those of the answer.
    pub fn answer(&self, to: AnswerTo, kind: &str, object: &[u8], terms: &Terms<'_>, outlet: &mut Outlet<'_>) -> bool {
        let Some(id) = to.id else { return self.event(to.space, kind, object, terms, outlet) };
        if !self.is_in(to.space) {
            return false;
        }
        let header = Header { id: Some(id), ..Header::new(Kind::Ack, to.space.name(terms)) };
        outlet.socketio(&header, &ack_payload(object));
        true
    }

    /// What is due now, the last bytes having come at `heard_ms`. A ping that is due is sent.
    pub fn poll(&mut self, now: Now, heard_ms: u64, terms: &Terms<'_>, outlet: &mut Outlet<'_>) -> Due {
        if now.monotonic_us / 1000 >= self.connect_until_ms && self.asked == 0 {
            return Due::NotConnected;
        }
        loop {
            match self.heartbeat.poll(now, heard_ms, terms.ping_interval_ms, terms.ping_timeout_ms) {
                Beat::WaitUntil(until_ms) if self.asked == 0 => {
                    return Due::WaitUntil(until_ms.min(self.connect_until_ms));
                }
                Beat::WaitUntil(until_ms) => return Due::WaitUntil(until_ms),
                Beat::Ping => outlet.packet(PacketKind::Ping, b""),
                Beat::Dead => return Due::Dead,
            }
        }
    }

    /// A pong came: the round trip in microseconds, none where nobody asked for it.
    pub fn pong(&mut self, now: Now) -> Option<u64> {
        self.heartbeat.pong(now)
    }

    /// The bytes that are kept of a packet that waits for attachments.
    pub fn waiting_bytes(&self) -> usize {
        self.assembler.bytes()
    }
}

fn find(namespace: &str, terms: &Terms<'_>) -> Option<Space> {
    let place = terms.namespaces.iter().take(NAMESPACES_MAX).position(|name| **name == *namespace)?;
    u8::try_from(place).ok().map(Space)
}

fn heard<'t>(kind: Kind, space: Space, id: Option<u64>, content: Content<'t>) -> Result<Heard<'t>, Failure> {
    match (kind, id) {
        (Kind::Event | Kind::BinaryEvent, id) => {
            let to = AnswerTo { space, visit: Visit::default(), id };
            Ok(Heard::Emitted(Emitted { to, content }))
        }
        (Kind::Ack | Kind::BinaryAck, Some(id)) => Ok(Heard::Acknowledged { space, id, content }),
        _ => Err(Malformed::Acknowledgement.into()),
    }
}

/// A WebSocket on which a polling client tries whether it could go on there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// The probe was answered. A poll that waits has to end now, with a noop, so that the client can finish.
    Answered,
    /// The WebSocket is the session's transport from here on.
    Upgraded,
    /// The client gave it up; the session goes on polling.
    GivenUp,
}

impl Probe {
    /// Takes a text frame of such a WebSocket; `probed` says whether the probe has come. An error closes this WebSocket
    /// and leaves the session to its polls.
    pub fn text(text: &mut [u8], probed: bool, outlet: &mut Outlet<'_>) -> Result<Probe, Failure> {
        match engineio::parse(text)? {
            Packet::Text { kind: PacketKind::Ping, data } if *data == *PROBE => {
                outlet.packet(PacketKind::Pong, PROBE);
                Ok(Probe::Answered)
            }
            Packet::Text { kind: PacketKind::Upgrade, .. } if probed => Ok(Probe::Upgraded),
            Packet::Text { kind: PacketKind::Close, .. } => Ok(Probe::GivenUp),
            _ => Err(Failure::protocol("a WebSocket is probed before it is used")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::engineio::{Payload, PayloadWriter};
    use crate::wire::json::Scratch;
    use crate::wire::native::{Command, Parsed};

    const TOKEN: &str = "eyJhbGciOiJIUzI1NiJ9.e30.c2ln";

    /// A client's end of an engine: what it says, what becomes of it, and what it hears.
    struct Script {
        engine: Engine,
        namespaces: Vec<Box<str>>,
        now_ms: u64,
        heard: Vec<u8>,
    }

    impl Script {
        fn new() -> Script {
            let namespaces = vec!["/".into(), "/ws".into()];
            let engine = Engine::new(0, &terms(&namespaces));
            Script { engine, namespaces, now_ms: 0, heard: Vec::new() }
        }

        /// A client that is in these namespaces.
        fn within(namespaces: &[&str]) -> Script {
            let mut script = Script::new();
            for namespace in namespaces {
                script.says(&format!("40{namespace},")).expect("asked");
                script.grants(namespace, "s1", None);
            }
            script.hears();
            script
        }

        /// What becomes of a payload of packets, in words.
        fn says(&mut self, payload: &str) -> Result<String, Failure> {
            let (terms, mut body) = (terms(&self.namespaces), payload.as_bytes().to_vec());
            let mut outlet = Outlet::Payload(PayloadWriter::new(&mut self.heard));
            let mut told = Vec::new();
            for packet in Payload::new(&mut body)? {
                told.push(tell(self.engine.packet(packet?, &terms, &mut outlet)?, &terms)?);
            }
            told.retain(|word| !word.is_empty());
            Ok(told.join("; "))
        }

        fn fails(&mut self, payload: &str) -> Failure {
            self.says(payload).expect_err(payload)
        }

        fn act(&mut self, act: impl FnOnce(&mut Engine, &Terms<'_>, &mut Outlet<'_>)) -> String {
            let terms = terms(&self.namespaces);
            let mut outlet = Outlet::Payload(PayloadWriter::new(&mut self.heard));
            act(&mut self.engine, &terms, &mut outlet);
            self.hears()
        }

        fn grants(&mut self, namespace: &str, sid: &str, pid: Option<&str>) -> String {
            let space = self.space(namespace);
            self.act(|engine, terms, outlet| engine.grant(space, sid, pid, terms, outlet))
        }

        fn space(&self, namespace: &str) -> Space {
            find(namespace, &terms(&self.namespaces)).expect("configured")
        }

        /// What the client hears until `ms` are over, having been silent since `silent_since_ms`.
        fn waits(&mut self, ms: u64, silent_since_ms: u64) -> (String, Due) {
            let end_ms = self.now_ms + ms;
            loop {
                let (terms, now_ms) = (terms(&self.namespaces), self.now_ms);
                let now = Now { monotonic_us: now_ms * 1000, unix_ms: now_ms };
                let mut outlet = Outlet::Payload(PayloadWriter::new(&mut self.heard));
                match self.engine.poll(now, silent_since_ms, &terms, &mut outlet) {
                    Due::WaitUntil(until_ms) if until_ms <= end_ms => {
                        assert!(until_ms > now_ms, "time goes on");
                        self.now_ms = until_ms;
                    }
                    due => {
                        self.now_ms = if matches!(due, Due::WaitUntil(_)) { end_ms } else { now_ms };
                        return (self.hears(), due);
                    }
                }
            }
        }

        fn hears(&mut self) -> String {
            String::from_utf8(std::mem::take(&mut self.heard)).expect("text").replace('\x1e', " ")
        }
    }

    fn terms(namespaces: &[Box<str>]) -> Terms<'_> {
        Terms {
            namespaces,
            message_bytes_max: 1000,
            ping_interval_ms: 300,
            ping_timeout_ms: 200,
            connect_timeout_ms: 1000,
        }
    }

    fn tell(heard: Heard<'_>, terms: &Terms<'_>) -> Result<String, Failure> {
        let mut scratch = Scratch::new(16);
        Ok(match heard {
            Heard::Nothing => String::new(),
            Heard::Pong => "pong".to_owned(),
            Heard::Close => "close".to_owned(),
            Heard::Left(space) => format!("left {}", space.name(terms)),
            Heard::Asked(asked) => {
                let name = asked.space.name(terms);
                asked.credentials(&mut scratch, |brought| {
                    let pid = brought.pid.unwrap_or("-");
                    format!("asked {name} {} {pid} {}", brought.token.unwrap_or("-"), brought.offset.unwrap_or("-"))
                })?
            }
            Heard::Acknowledged { space, id, content } => {
                let json = content.json(|json| String::from_utf8_lossy(json).into_owned())?;
                format!("acknowledged {} {id} {json}", space.name(terms))
            }
            Heard::Emitted(emitted) => {
                let to = emitted.to;
                emitted.command(&mut scratch, |Parsed { reference, command }| {
                    assert_eq!(reference.as_ref().and_then(AnswerTo::of), Some(to), "the way back is not lost");
                    let id = to.id.map_or("-".to_owned(), |id| id.to_string());
                    let command = match &command {
                        Ok(Command::Message { data }) => format!("message {}", String::from_utf8_lossy(data)),
                        Ok(command) => format!("{command:?}"),
                        Err(refused) => format!("{} {}", refused.code.as_str(), refused.message),
                    };
                    format!("{} {id} {command}", to.space.name(terms))
                })?
            }
        })
    }

    #[test]
    fn a_session_opens_and_a_client_is_let_into_its_namespaces() {
        let mut script = Script::new();
        let open = script.act(|engine, terms, outlet| engine.greet("e1", false, terms, outlet));
        assert_eq!(open, r#"0{"sid":"e1","upgrades":[],"pingInterval":300,"pingTimeout":200,"maxPayload":1000}"#);
        assert_eq!(script.says("40").as_deref(), Ok("asked / - - -"));
        assert_eq!(script.grants("/", "s1", None), r#"40{"sid":"s1"}"#);
        let asked = script.says(&format!(r#"40/ws,{{"token":"{TOKEN}","pid":"p1","offset":"o1"}}"#));
        assert_eq!(asked, Ok(format!("asked /ws {TOKEN} p1 o1")));
        assert_eq!(script.grants("/ws", "s2", Some("p2")), r#"40/ws,{"sid":"s2","pid":"p2"}"#);
        let names = |script: &Script| script.engine.spaces().map(Space::index).collect::<Vec<_>>();
        assert_eq!(names(&script), [0, 1]);
        assert_eq!(script.says("40/ws,").as_deref(), Ok("asked /ws - - -"), "once more");
        assert_eq!(script.grants("/ws", "s2", Some("p2")), r#"40/ws,{"sid":"s2","pid":"p2"}"#);
        assert_eq!(names(&script), [0, 1]);
        assert_eq!(script.says("41/ws,").as_deref(), Ok("left /ws"));
        assert_eq!(names(&script), [0]);
        assert_eq!(script.says("41/ws,").as_deref(), Ok(""), "it has left already");
        assert_eq!(script.says("40/ws,").as_deref(), Ok("asked /ws - - -"), "and may come back");
    }

    #[test]
    fn an_unknown_namespace_and_a_refused_one_are_answered_and_leave_the_session_open() {
        let mut script = Script::new();
        assert_eq!(script.says("40/random\x1e40/Ws,").as_deref(), Ok(""));
        assert_eq!(
            script.hears(),
            r#"44/random,{"message":"Invalid namespace"} 44/Ws,{"message":"Invalid namespace"}"#
        );
        assert_eq!(script.says(r#"40{"token":5}"#).as_deref(), Ok("asked / - - -"));
        let space = script.space("/");
        let data = br#"{"code":"unauthorized"}"#;
        let refuse = |engine: &mut Engine, terms: &Terms<'_>, outlet: &mut Outlet<'_>| {
            engine.refuse(space, "a token is needed", Some(data), terms, outlet);
        };
        assert_eq!(script.act(refuse), r#"44{"message":"a token is needed","data":{"code":"unauthorized"}}"#);
        assert_eq!(script.act(refuse), "", "a question has one answer");
        assert_eq!(script.grants("/", "s1", None), "");
        assert_eq!(script.says(&format!(r#"40{{"token":"{TOKEN}"}}"#)), Ok(format!("asked / {TOKEN} - -")));
    }

    #[test]
    fn events_are_the_commands_of_the_native_protocol() {
        let mut script = Script::within(&["/", "/ws"]);
        let mut says = |payload: &str| script.says(payload).expect(payload);
        assert!(
            says(r#"42/ws,12["subscribe",{"room":"project:1"}]"#)
                .starts_with("/ws 12 Subscribe { rooms: One(\"project:1\")")
        );
        assert_eq!(says(r#"42["rooms"]"#), "/ - Rooms");
        assert_eq!(says(r#"420["ping",{"a": 1}]"#), format!("/ 0 {:?}", Command::Ping { data: br#"{"a": 1}"# }));
        assert_eq!(says(r#"42["publish",{"room":"a:b"}]"#), "/ - bad_command data.type is missing");
        assert_eq!(says(r#"42["subscribe"]"#), "/ - bad_command data is missing or not an object");
        assert_eq!(says(r#"42["message",{"a": 1}]"#), r#"/ - message {"a": 1}"#);
        assert_eq!(says(r#"42["message"]"#), "/ - message null");
        assert_eq!(says(r#"42["message",1,"2",{"3":[true]}]"#), r#"/ - message [1,"2",{"3":[true]}]"#);
        assert_eq!(says(r#"427["cursor \"x\"",{"x": 1}]"#), r#"/ 7 message {"type":"cursor \"x\"","data":{"x": 1}}"#);
        assert_eq!(says(r#"42["typing"]"#), r#"/ - message {"type":"typing","data":null}"#);
        assert_eq!(says(r#"42[17,1,2]"#), r#"/ - message {"type":"17","data":[1,2]}"#);
    }

    #[test]
    fn binary_events_are_json_with_base64_where_an_attachment_was() {
        let mut script = Script::within(&["/"]);
        let placeholder = |number: u8| format!(r#"{{"_placeholder":true,"num":{number}}}"#);
        let (first, second) = (placeholder(0), placeholder(1));
        let text = format!(r#"452-3["upload",{first},{{"a":{second}}}]"#);
        assert_eq!(script.says(&text).as_deref(), Ok(""));
        assert!(script.engine.waiting_bytes() > 0);
        // A heartbeat may stand between a packet and its attachments.
        assert_eq!(script.says("bAQID\x1e3").as_deref(), Ok("pong"));
        assert_eq!(
            script.says("bBAUG").as_deref(),
            Ok(r#"/ 3 message {"type":"upload","data":["AQID",{"a":"BAUG"}]}"#)
        );
        assert_eq!(script.engine.waiting_bytes(), 0);
        let publish = format!(r#"451-["publish",{{"room":"a:b","type":"x","data":{first}}}]"#);
        let published = script.says(&format!("{publish}\x1ebZg==")).expect("a command");
        assert!(published.contains(&format!("data: {:?}", br#""Zg==""#)), "{published}");
        assert_eq!(script.says(&format!("461-9[{first}]\x1ebZg==")).as_deref(), Ok(r#"acknowledged / 9 ["Zg=="]"#));
        assert_eq!(script.says(r#"43[1,2]"#).ok(), None);
        let mut script = Script::within(&["/ws"]);
        assert_eq!(script.says(r#"43/ws,5[1,2]"#).as_deref(), Ok("acknowledged /ws 5 [1,2]"));
    }

    #[test]
    fn answers_go_to_the_acknowledgement_or_are_events() {
        let mut script = Script::within(&["/ws"]);
        let space = script.space("/ws");
        let object = br#"{"type":"subscribed"}"#;
        let mut answer = |to: AnswerTo| {
            script.act(|engine, terms, outlet| {
                engine.answer(to, "subscribed", object, terms, outlet);
            })
        };
        let visit = Visit::default();
        assert_eq!(answer(AnswerTo { space, visit, id: Some(12) }), r#"43/ws,12[{"type":"subscribed"}]"#);
        assert_eq!(answer(AnswerTo { space, visit, id: None }), r#"42/ws,["subscribed",{"type":"subscribed"}]"#);
        let elsewhere = Space(0);
        assert_eq!(answer(AnswerTo { space: elsewhere, visit, id: Some(1) }), "", "not where the client is not");
        assert_eq!(answer(AnswerTo { space: elsewhere, visit, id: None }), "");
    }

    #[test]
    fn what_the_protocol_forbids_ends_the_session() {
        for payload in [
            "4abc",
            "abc",
            "",
            "2",
            "2probe",
            "42[\"x\"]",
            "42/ws,[\"x\"]",
            "42/random,[\"x\"]",
            "431[]",
            "44{\"message\":\"no\"}",
            "40{",
            "bAQID",
            "451-/ws,[\"x\",{\"_placeholder\":true,\"num\":0}]\x1ebAQID",
        ] {
            assert_eq!(Script::new().fails(payload).close_code, close::PROTOCOL_ERROR, "{payload}");
        }
        let mut script = Script::within(&["/"]);
        for payload in
            ["42", "42[]", "42[{}]", "42[\"connect\"]", "42[\"x\"", "451-[\"x\"]\x1ebAQID", "451-[\"x\"]\x1e42[\"y\"]"]
        {
            assert_eq!(script.fails(payload).close_code, close::PROTOCOL_ERROR, "{payload}");
        }
        let large = format!("451-[\"x\"]\x1eb{}", "AAAA".repeat(400));
        assert_eq!(script.fails(&large).close_code, close::TOO_LARGE);
        assert_eq!(script.engine.waiting_bytes(), 0);
        assert_eq!(script.says("42[\"rooms\"]").as_deref(), Ok("/ - Rooms"), "nothing of it is left over");
    }

    #[test]
    fn what_crosses_our_farewell_is_no_fault_of_the_client() {
        let mut script = Script::within(&["/", "/ws"]);
        let space = script.space("/ws");
        assert_eq!(script.act(|engine, terms, outlet| engine.dismiss(space, terms, outlet)), "41/ws,");
        assert_eq!(script.act(|engine, terms, outlet| engine.dismiss(space, terms, outlet)), "");
        assert_eq!(script.says("42/ws,3[\"rooms\"]\x1e41/ws,").as_deref(), Ok(""));
        assert_eq!(script.says("42[\"rooms\"]").as_deref(), Ok("/ - Rooms"));
        assert_eq!(script.says("40/ws,").as_deref(), Ok("asked /ws - - -"));
        script.grants("/ws", "s2", None);
        assert_eq!(script.says("42/ws,[\"rooms\"]").as_deref(), Ok("/ws - Rooms"));
        let farewell = |code| {
            move |engine: &mut Engine, terms: &Terms<'_>, outlet: &mut Outlet<'_>| engine.farewell(code, terms, outlet)
        };
        assert_eq!(script.act(farewell(close::DRAINING)), "", "it comes back by itself");
        assert_eq!(script.act(farewell(close::PROTOCOL_ERROR)), "1");
        assert_eq!(script.act(farewell(close::TAKEN_OVER)), "41 41/ws,", "it stays away");
    }

    #[test]
    fn a_client_is_pinged_and_has_to_answer() {
        let mut script = Script::within(&["/"]);
        assert_eq!(script.waits(299, 0), (String::new(), Due::WaitUntil(300)));
        assert_eq!(script.waits(1, 0), ("2".to_owned(), Due::WaitUntil(500)));
        assert_eq!(script.says("3").as_deref(), Ok("pong"));
        assert_eq!(script.engine.pong(Now { monotonic_us: 300_500, unix_ms: 0 }), Some(500));
        assert_eq!(script.waits(300, 310), ("2".to_owned(), Due::WaitUntil(800)));
        assert_eq!(script.waits(200, 310), (String::new(), Due::Dead));
        let mut script = Script::new();
        assert_eq!(script.waits(500, 0), ("2".to_owned(), Due::Dead), "in no namespace, too");
    }

    #[test]
    fn a_client_that_asks_for_no_namespace_is_not_waited_for_for_ever() {
        let mut script = Script::new();
        let alive_ms = u64::MAX;
        assert_eq!(script.says("40/random").as_deref(), Ok(""));
        assert_eq!(script.waits(999, alive_ms).1, Due::WaitUntil(1000));
        assert_eq!(script.says("40").as_deref(), Ok("asked / - - -"));
        assert_eq!(script.waits(1, alive_ms).1, Due::WaitUntil(1200), "it has asked; we have to answer");
        let space = script.space("/");
        script.act(|engine, terms, outlet| engine.refuse(space, "no", None, terms, outlet));
        assert_eq!(script.waits(0, alive_ms).1, Due::NotConnected);
        let mut script = Script::within(&["/ws"]);
        assert_eq!(script.says("41/ws,").as_deref(), Ok("left /ws"));
        let (pings, due) = script.waits(3000, alive_ms);
        assert_eq!((pings, due), ("2".repeat(10), Due::WaitUntil(3300)), "who was let in once may take its time");
    }

    #[test]
    fn a_websocket_is_probed_before_a_session_moves_to_it() {
        let probe = |text: &str, probed| {
            let mut out = Vec::new();
            let mut outlet = Outlet::WebSocket { out: &mut out, base64: false };
            let outcome = Probe::text(&mut text.as_bytes().to_vec(), probed, &mut outlet);
            (outcome.map_err(|failure| failure.close_code), out)
        };
        assert_eq!(probe("2probe", false), (Ok(Probe::Answered), b"\x81\x063probe".to_vec()));
        assert_eq!(probe("5", true), (Ok(Probe::Upgraded), Vec::new()));
        assert_eq!(probe("1", true), (Ok(Probe::GivenUp), Vec::new()));
        for (text, probed) in [("5", false), ("2", false), ("2prob", false), ("4x", true), ("", false), ("bAQID", true)]
        {
            assert_eq!(probe(text, probed), (Err(close::PROTOCOL_ERROR), Vec::new()), "{text}");
        }
    }
}
