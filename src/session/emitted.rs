//! What a client of Socket.IO asks for with a packet: a namespace, with what its CONNECT carries, or what an event's name
//! and arguments say. Events are read as the commands of the native protocol (PROTOCOL §8).

use crate::wire::codes::ErrorCode;
use crate::wire::json::{Scratch, Value, write_string};
use crate::wire::native::{Command, Parsed, Reference, named};
use crate::wire::socketio::{ACKNOWLEDGEMENT_MAX, Assembled, Event, Malformed, with_event};

use super::socketio::{Failure, NAMESPACES_MAX, Space};

/// The JSON of a packet.
#[derive(Debug)]
pub enum Content<'t> {
    /// As it came.
    Text(&'t mut [u8]),
    /// With attachments.
    Assembled(Box<Assembled>),
}

/// A client asks for a namespace.
#[derive(Debug)]
pub struct Asked<'t> {
    /// Which.
    pub space: Space,
    /// An object, or nothing.
    pub payload: &'t mut [u8],
}

/// What a client brings to a namespace: the library's `auth`, and what it knows of an earlier session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Credentials<'a> {
    /// `token`.
    pub token: Option<&'a str>,
    /// `client_id`: the id that the connection wants to have.
    pub client_id: Option<&'a str>,
    /// `session_id`: the session that it names.
    pub session_id: Option<&'a str>,
    /// `pid`: the private id that it was granted, by which a session is taken up again.
    pub pid: Option<&'a str>,
    /// `offset`: what came last with the last event that it had.
    pub offset: Option<&'a str>,
    /// The object as it came; none where there was none.
    pub object: Option<&'a [u8]>,
}

/// An event of a client.
#[derive(Debug)]
pub struct Emitted<'t> {
    /// Where its answer goes.
    pub to: AnswerTo,
    /// The name and the arguments.
    pub content: Content<'t>,
}

/// Where the answer to an event goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnswerTo {
    /// In which namespace.
    pub space: Space,
    /// During which of the client's visits to it. Who has left it and entered it again is not told what it asked before.
    pub visit: Visit,
    /// To which acknowledgement; none where the client wants none: the answer is an event then.
    pub id: Option<u64>,
}

/// One of the visits of a client to a namespace. They are told apart as long as answers may be under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Visit(u8);

const VISIT_BITS: u32 = 4;

impl Visit {
    /// The one after this.
    pub const fn next(self) -> Visit {
        Visit((self.0 + 1) % (1 << VISIT_BITS))
    }
}

/// How many bits the acknowledgement id has in a reference; one more than the largest says that there is none. Then come
/// the namespace and the visit.
const ID_BITS: u32 = 54;
const SPACE_BITS: u32 = NAMESPACES_MAX.next_power_of_two().trailing_zeros();
const VISIT_AT: u32 = ID_BITS + SPACE_BITS;
const _: () = assert!(ACKNOWLEDGEMENT_MAX + 1 < 1 << ID_BITS && VISIT_AT + VISIT_BITS < i64::BITS);

impl AnswerTo {
    /// As the reference that a command carries to wherever it is answered.
    pub fn reference(self) -> Reference {
        let id = self.id.map_or(0, |id| id.min(ACKNOWLEDGEMENT_MAX) + 1);
        let place = u64::from(self.visit.0) << VISIT_AT | u64::from(self.space.0) << ID_BITS;
        Reference::Number((place | id) as i64)
    }

    /// What [`AnswerTo::reference`] made.
    pub fn of(reference: &Reference) -> Option<AnswerTo> {
        let Reference::Number(number) = reference else { return None };
        let number = u64::try_from(*number).ok()?;
        let visit = u8::try_from(number >> VISIT_AT).ok().filter(|visit| *visit < 1 << VISIT_BITS)?;
        let space = (number >> ID_BITS & ((1 << SPACE_BITS) - 1)) as u8;
        let id = (number & ((1 << ID_BITS) - 1)).checked_sub(1);
        Some(AnswerTo { space: Space(space), visit: Visit(visit), id })
    }
}

impl Content<'_> {
    /// Hands on the JSON as text, attachments as strings of base64 in it.
    pub fn json<R>(self, then: impl FnOnce(&mut [u8]) -> R) -> Result<R, Failure> {
        match self {
            Content::Text(text) => Ok(then(text)),
            Content::Assembled(mut assembled) => {
                let (packet, attachments) = assembled.parts();
                let mut json = Vec::new();
                attachments.splice(packet.payload, &mut json)?;
                Ok(then(&mut json))
            }
        }
    }
}

impl Emitted<'_> {
    /// Reads the event as a command, whose reference is [`AnswerTo::reference`], and hands it to `then`.
    ///
    /// An event that is named as a command is that command, its first argument the data. Any other is a `message` for the
    /// backend, whose data is the event as a native client would have written it, `{"type":…,"data":…}`.
    pub fn command<R>(self, scratch: &mut Scratch, then: impl FnOnce(Parsed<'_>) -> R) -> Result<R, Failure> {
        let reference = Some(self.to.reference());
        self.content.json(|json| {
            with_event(scratch, json, |event| {
                let event = event?;
                let mut data = Vec::new();
                let command = match named(event.name, event.arguments().next()) {
                    Err(refused) if refused.code == ErrorCode::UnknownType => {
                        write_message(&mut data, event);
                        Ok(Command::Message { data: &data })
                    }
                    Ok(Command::Message { .. }) if event.arguments().nth(1).is_some() => {
                        write_arguments(&mut data, event);
                        Ok(Command::Message { data: &data })
                    }
                    command => command,
                };
                Ok(then(Parsed { reference, command }))
            })
        })?
    }
}

fn write_message(out: &mut Vec<u8>, event: Event<'_, '_>) {
    out.extend_from_slice(b"{\"type\":");
    write_string(out, event.name);
    out.extend_from_slice(b",\"data\":");
    write_arguments(out, event);
    out.push(b'}');
}

/// One argument as it came, several as a list, none as null.
fn write_arguments(out: &mut Vec<u8>, event: Event<'_, '_>) {
    let mut rest = event.arguments();
    match (rest.next(), rest.next()) {
        (None, _) => out.extend_from_slice(b"null"),
        (Some(only), None) => out.extend_from_slice(only.raw()),
        (Some(_), Some(_)) => {
            let mut before = b'[';
            for argument in event.arguments() {
                out.push(before);
                out.extend_from_slice(argument.raw());
                before = b',';
            }
            out.push(b']');
        }
    }
}

impl Asked<'_> {
    /// Reads what the client brings along. What is no text is none; what is no JSON ends the session.
    pub fn credentials<R>(self, scratch: &mut Scratch, then: impl FnOnce(Credentials<'_>) -> R) -> Result<R, Failure> {
        if self.payload.is_empty() {
            return Ok(then(Credentials::default()));
        }
        let document = scratch.parse(self.payload).map_err(|_| Failure::from(Malformed::Json))?;
        let object = document.root();
        let text = |key: &str| object.get(key).and_then(Value::as_str);
        Ok(then(Credentials {
            token: text("token"),
            client_id: text("client_id"),
            session_id: text("session_id"),
            pid: text("pid"),
            offset: text("offset"),
            object: Some(object.raw()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_back_of_an_answer_survives_being_a_reference() {
        for space in [Space(0), Space(1), Space(NAMESPACES_MAX as u8 - 1)] {
            for id in [None, Some(0), Some(1), Some(ACKNOWLEDGEMENT_MAX)] {
                for visit in [Visit::default(), Visit::default().next(), Visit(15)] {
                    let to = AnswerTo { space, visit, id };
                    assert_eq!(AnswerTo::of(&to.reference()), Some(to));
                }
            }
        }
        for reference in [Reference::Text("x".into()), Reference::Number(-1)] {
            assert_eq!(AnswerTo::of(&reference), None);
        }
    }

    #[test]
    fn a_visit_differs_from_those_around_it() {
        let visits: Vec<Visit> =
            std::iter::successors(Some(Visit::default()), |visit| Some(visit.next())).take(16).collect();
        for (place, visit) in visits.iter().enumerate() {
            assert!(!visits[..place].contains(visit));
        }
        assert_eq!(visits[15].next(), visits[0]);
    }
}
