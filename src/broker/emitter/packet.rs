//! What `@socket.io/redis-emitter` says: `[uid, {type, data: [name, …], nsp}, {rooms, except, flags}]` in MessagePack, in
//! the channel `KEY#NAMESPACE#` or, where it is for one room, `KEY#NAMESPACE#ROOM#`.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

/// Deepest nesting: each level takes a piece of the stack. Clients are held to `limits.depth_max` besides.
const DEPTH_MAX: usize = 128;
/// The packet type of an event (socket.io-protocol 5).
const EVENT: u8 = 2;

/// An event that a program emits.
#[derive(Debug, PartialEq)]
pub struct Emitted {
    /// The namespace.
    pub namespace: String,
    /// The rooms; none stands for everybody.
    pub rooms: Vec<String>,
    /// The event's name.
    pub name: String,
    /// Its argument, or a list of its arguments where it has several, as JSON.
    pub data: Vec<u8>,
}

/// Why it can't be passed on.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It is not what such programs say.
    #[error("it can't be read: {0}")]
    Unreadable(#[from] rmp_serde::decode::Error),
    /// It has something that no event of a room can have.
    #[error("{0}")]
    Unsupported(&'static str),
}

#[derive(Deserialize)]
struct Packet {
    #[serde(rename = "type")]
    kind: u8,
    data: Vec<Value>,
    nsp: String,
}

#[derive(Deserialize)]
struct Options {
    #[serde(default)]
    rooms: Vec<String>,
    #[serde(default)]
    except: Vec<String>,
}

/// Reads what a program emits. Attachments (binary arguments) are no JSON, and are refused.
pub fn read(payload: &[u8]) -> Result<Emitted, Unusable> {
    let mut reader = rmp_serde::Deserializer::from_read_ref(payload);
    reader.set_max_depth(DEPTH_MAX);
    let (_, packet, options) = <(IgnoredAny, Packet, Options)>::deserialize(&mut reader)?;
    if packet.kind != EVENT {
        return Err(Unusable::Unsupported("it is no event"));
    }
    if !options.except.is_empty() {
        return Err(Unusable::Unsupported("members of other rooms can't be left out"));
    }
    let mut arguments = packet.data.into_iter();
    let Some(Value::String(name)) = arguments.next() else {
        return Err(Unusable::Unsupported("it has no name"));
    };
    let mut arguments: Vec<Value> = arguments.collect();
    let data = if arguments.len() == 1 { arguments.remove(0) } else { Value::Array(arguments) };
    let data = serde_json::to_vec(&data).map_err(|_| Unusable::Unsupported("its arguments are no JSON"))?;
    Ok(Emitted { namespace: packet.nsp, rooms: options.rooms, name, data })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn emitted(packet: Value, options: Value) -> Result<Emitted, Unusable> {
        read(&rmp_serde::to_vec_named(&("emitter", packet, options)).expect("MessagePack"))
    }

    #[test]
    fn an_event_has_its_rooms_its_name_and_its_argument() {
        let packet = json!({"type": 2, "data": ["price", {"amount": 1.5}], "nsp": "/"});
        let found =
            emitted(packet, json!({"rooms": ["quote:1", "quote:2"], "flags": {"volatile": true}, "except": []}));
        let found = found.expect("readable");
        assert_eq!((&*found.namespace, &*found.name, &found.data[..]), ("/", "price", &br#"{"amount":1.5}"#[..]));
        assert_eq!(found.rooms, ["quote:1", "quote:2"]);
        let several = emitted(json!({"type": 2, "data": ["a", 1, "b"], "nsp": "/ws"}), json!({})).expect("readable");
        assert_eq!((&several.data[..], several.rooms.len()), (&br#"[1,"b"]"#[..], 0));
        let none = emitted(json!({"type": 2, "data": ["a"], "nsp": "/"}), json!({})).expect("readable");
        assert_eq!(none.data, b"[]");
    }

    #[test]
    fn what_is_no_event_of_a_room_is_refused() {
        let event = json!({"type": 2, "data": ["a", 1], "nsp": "/"});
        for (packet, options) in [
            (json!({"type": 3, "data": ["a"], "nsp": "/"}), json!({})),
            (json!({"type": 2, "data": [], "nsp": "/"}), json!({})),
            (json!({"type": 2, "data": [7], "nsp": "/"}), json!({})),
            (event.clone(), json!({"except": ["quote:1"]})),
        ] {
            assert!(matches!(emitted(packet, options), Err(Unusable::Unsupported(_))));
        }
        assert!(matches!(emitted(json!([]), json!({})), Err(Unusable::Unreadable(_))));
        // Arrays in arrays, each said to be as long as can be.
        let nested = [&[0x93][..], &[0xdd, 0xff, 0xff, 0xff, 0xff].repeat(100_000)].concat();
        assert!(matches!(read(&nested), Err(Unusable::Unreadable(_))));
        let mut bytes = rmp_serde::to_vec_named(&("emitter", event, json!({}))).expect("MessagePack");
        for end in 0..bytes.len() {
            assert!(read(&bytes[..end]).is_err(), "{end} bytes of it");
        }
        // An attachment: one byte of binary in place of the number 1.
        let at = bytes.iter().position(|byte| *byte == 1).expect("the argument");
        bytes.splice(at..=at, [0xc4, 1, 9]);
        assert!(matches!(read(&bytes), Err(Unusable::Unreadable(_))));
    }
}
