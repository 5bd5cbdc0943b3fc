//! What an embedding program serves itself over Engine.IO: a path whose messages are its own, and namespaces of Socket.IO
//! whose events are not the hub's commands.
//!
//! Handlers run on the shard's thread, between two turns of its loop: they answer at once or keep what they need, and never
//! block.

use std::fmt;
use std::sync::Arc;

use super::socketio::{NAMESPACES_MAX, Space, Terms};
use crate::auth::Identity;
use crate::config::{Config, is_engine_path, is_namespace};
use crate::wire::outlet::Outlet;
use crate::wire::socketio::{ATTACHMENTS_MAX, Attachments, Header, Kind};

/// Takes the messages of clients at a path of Engine.IO.
pub trait MessageHandler: Send + Sync {
    /// A client sent a text.
    fn text(&self, caller: &mut MessageCaller<'_, '_>, text: &str);

    /// A client sent bytes.
    fn binary(&self, caller: &mut MessageCaller<'_, '_>, data: &[u8]);
}

/// Takes the events of clients in a namespace of Socket.IO.
pub trait NamespaceHandler: Send + Sync {
    /// A client was let in. `auth` is the JSON object that it brought, `{}` where it brought none.
    fn connected(&self, caller: &mut Caller<'_, '_>, auth: &str);

    /// A client sent an event.
    fn event(&self, caller: &mut Caller<'_, '_>, event: &HandledEvent<'_>);
}

/// What an embedding program serves.
#[derive(Clone, Default)]
pub struct Handlers {
    /// The path, and who takes its messages.
    pub messages: Option<(Box<str>, Arc<dyn MessageHandler>)>,
    /// Namespaces. One that is configured, too, is the handler's.
    pub namespaces: Vec<(Box<str>, Arc<dyn NamespaceHandler>)>,
}

impl fmt::Debug for Handlers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let namespaces = self.namespaces.iter().map(|(name, _)| name);
        let path = self.messages.as_ref().map(|(path, _)| path);
        formatter.debug_struct("Handlers").field("messages", &path).field("namespaces", &namespaces.count()).finish()
    }
}

impl Handlers {
    /// Why that can't be served beside what is configured, if it can't.
    pub(crate) fn check(&self, config: &Config) -> Result<(), String> {
        if let Some((path, _)) = &self.messages {
            let bare = path.trim_end_matches('/');
            let is_configured = config.socketio.path.as_deref().is_some_and(|one| one.trim_end_matches('/') == bare);
            if is_configured || !is_engine_path(path) {
                return Err(format!("{path:?}: expected a path of its own"));
            }
        }
        let mut names: Vec<&str> = Vec::new();
        for (name, _) in &self.namespaces {
            if !is_namespace(name) || names.contains(&&**name) {
                return Err(format!("{name:?}: expected a name that begins with a slash, without commas, once"));
            }
            names.push(name);
        }
        names.retain(|name| !config.socketio.namespaces.iter().any(|configured| configured == name));
        if config.socketio.namespaces.len() + names.len() > NAMESPACES_MAX {
            return Err(format!("at most {NAMESPACES_MAX} namespaces, those that are configured included"));
        }
        Ok(())
    }

    /// The handler of a namespace.
    pub fn namespace(&self, name: &str) -> Option<&Arc<dyn NamespaceHandler>> {
        self.namespaces.iter().find(|(known, _)| **known == *name).map(|(_, handler)| handler)
    }
}

/// The client that a message came from.
#[derive(Debug)]
pub struct MessageCaller<'c, 'o> {
    pub(crate) outlet: &'c mut Outlet<'o>,
}

impl MessageCaller<'_, '_> {
    /// Sends it a text.
    pub fn send_text(&mut self, text: &str) {
        self.outlet.text(|out| {
            out.push(b'4');
            out.extend_from_slice(text.as_bytes());
        });
    }

    /// Sends it bytes.
    pub fn send_binary(&mut self, data: &[u8]) {
        self.outlet.binary(data);
    }
}

/// The arguments of an event.
#[derive(Debug, Clone, Copy)]
pub struct Arguments<'a> {
    json: &'a [u8],
    attachments: Option<Attachments<'a>>,
}

impl<'a> Arguments<'a> {
    /// Arguments as JSON with commas between them; none where it is empty. It has to be valid, and on one line.
    pub const fn of_json(json: &'a str) -> Arguments<'a> {
        Arguments { json: json.as_bytes(), attachments: None }
    }

    pub(crate) const fn new(json: &'a [u8], attachments: Option<Attachments<'a>>) -> Arguments<'a> {
        Arguments { json, attachments }
    }

    /// The JSON of the arguments with commas between them, `{"_placeholder":true,"num":n}` where an attachment belongs.
    pub fn json(&self) -> &'a str {
        std::str::from_utf8(self.json).unwrap_or_default()
    }

    /// What is attached, by number.
    pub fn attachments(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        let count = self.attachments.map_or(0, |all| all.iter().len());
        let attachments = self.attachments;
        (0..count).map(move |number| attachments.and_then(|all| all.nth(number)).unwrap_or_default())
    }
}

/// An event of a client.
#[derive(Debug)]
pub struct HandledEvent<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its arguments.
    pub arguments: Arguments<'a>,
    pub(crate) id: Option<u64>,
}

impl HandledEvent<'_> {
    /// Whether the client waits for an answer.
    pub const fn wants_answer(&self) -> bool {
        self.id.is_some()
    }
}

/// A client in a namespace.
#[derive(Debug)]
pub struct Caller<'c, 'o> {
    pub(crate) space: Space,
    pub(crate) terms: &'c Terms<'c>,
    pub(crate) identity: &'c Identity,
    pub(crate) client_id: &'c str,
    pub(crate) outlet: &'c mut Outlet<'o>,
}

impl Caller<'_, '_> {
    /// Who it is.
    pub fn identity(&self) -> &Identity {
        self.identity
    }

    /// Its id: the `sid` of its namespace.
    pub fn client_id(&self) -> &str {
        self.client_id
    }

    /// Sends it an event.
    pub fn emit(&mut self, name: &str, arguments: &Arguments<'_>) {
        let mut first = Vec::with_capacity(name.len() + 4);
        first.push(b'[');
        crate::wire::json::write_string(&mut first, name);
        if !arguments.json.is_empty() {
            first.push(b',');
        }
        self.send((Kind::Event, Kind::BinaryEvent), None, &first, arguments);
    }

    /// Answers an event; nothing where no answer is wanted.
    pub fn acknowledge(&mut self, event: &HandledEvent<'_>, arguments: &Arguments<'_>) {
        if event.id.is_some() {
            self.send((Kind::Ack, Kind::BinaryAck), event.id, b"[", arguments);
        }
    }

    fn send(&mut self, (text, binary): (Kind, Kind), id: Option<u64>, first: &[u8], arguments: &Arguments<'_>) {
        let attachments = arguments.attachments().take(ATTACHMENTS_MAX);
        let count = attachments.len();
        let kind = if count > 0 { binary } else { text };
        let header = Header { kind, attachments: count, namespace: self.space.name(self.terms), id };
        self.outlet.socketio(&header, &[first, arguments.json, b"]"]);
        attachments.for_each(|data| self.outlet.binary(data));
    }
}

#[cfg(test)]
mod tests {
    use super::super::socketio::Spaces;
    use super::*;
    use crate::wire::engineio::PayloadWriter;

    struct Silent;

    impl MessageHandler for Silent {
        fn text(&self, _: &mut MessageCaller<'_, '_>, _: &str) {}

        fn binary(&self, _: &mut MessageCaller<'_, '_>, _: &[u8]) {}
    }

    impl NamespaceHandler for Silent {
        fn connected(&self, _: &mut Caller<'_, '_>, _: &str) {}

        fn event(&self, _: &mut Caller<'_, '_>, _: &HandledEvent<'_>) {}
    }

    fn namespaces(names: &[&str]) -> Handlers {
        let handler = |name: &&str| -> (Box<str>, Arc<dyn NamespaceHandler>) { ((*name).into(), Arc::new(Silent)) };
        Handlers { messages: None, namespaces: names.iter().map(handler).collect() }
    }

    #[test]
    fn what_a_program_serves_is_where_nothing_else_is() {
        let mut config = Config::default();
        let at = |path: &str| Handlers { messages: Some((path.into(), Arc::new(Silent))), namespaces: Vec::new() };
        assert_eq!(Handlers::default().check(&config), Ok(()));
        assert_eq!(at("/engine.io/").check(&config), Ok(()));
        for wrong in ["", "engine.io", "/", "/ws", "/api/v1/mine", "/{a}", "/:a", "/socket.io/", "/socket.io"] {
            let complaint = at(wrong).check(&config).expect_err("refused");
            assert_eq!(complaint, format!("{wrong:?}: expected a path of its own"));
        }
        config.socketio.path = None;
        assert_eq!(at("/socket.io/").check(&config), Ok(()));
    }

    #[test]
    fn namespaces_of_a_program_are_as_those_that_are_configured_and_may_be_the_same() {
        let mut config = Config::default();
        assert_eq!(namespaces(&["/", "/ws", "/mine"]).check(&config), Ok(()));
        for wrong in [&["mine"][..], &["/a,b"], &["/mine", "/mine"], &[""]] {
            assert!(namespaces(wrong).check(&config).is_err(), "{wrong:?}");
        }
        config.socketio.namespaces = (1..NAMESPACES_MAX).map(|number| format!("/{number}")).collect();
        assert_eq!(namespaces(&["/mine", "/1"]).check(&config), Ok(()), "that is as many as there may be");
        let complaint = namespaces(&["/mine", "/1", "/other"]).check(&config).expect_err("too many");
        assert!(complaint.contains("at most"), "{complaint}");
    }

    /// What a handler sends to a client that polls.
    fn sent(tell: impl FnOnce(&mut Caller<'_, '_>)) -> String {
        let names: [Box<str>; 2] = ["/".into(), "/mine".into()];
        let terms = Terms {
            namespaces: &names,
            message_bytes_max: 1000,
            ping_interval_ms: 1,
            ping_timeout_ms: 1,
            connect_timeout_ms: 1,
        };
        let (identity, mut out) = (Identity::anonymous("a".to_owned()), Vec::new());
        let space = Spaces::of_bits(0b10).iter().next().expect("one");
        let outlet = &mut Outlet::Payload(PayloadWriter::new(&mut out));
        tell(&mut Caller { space, terms: &terms, identity: &identity, client_id: "c", outlet });
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn events_and_answers_of_a_program_are_packets_of_its_namespace() {
        assert_eq!(sent(|caller| caller.emit("a\"b", &Arguments::of_json(""))), r#"42/mine,["a\"b"]"#);
        assert_eq!(sent(|caller| caller.emit("a", &Arguments::of_json(r#"1,{"b":2}"#))), r#"42/mine,["a",1,{"b":2}]"#);
        let event = |id| HandledEvent { name: "a", arguments: Arguments::of_json("1"), id };
        let answer = |id| sent(|caller| caller.acknowledge(&event(id), &event(id).arguments));
        assert_eq!(answer(Some(7)), "43/mine,7[1]");
        assert_eq!(answer(None), "", "nobody waits for it");
        assert!(event(Some(0)).wants_answer() && !event(None).wants_answer());
    }
}
