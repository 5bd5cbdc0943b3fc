//! JSON merge patches (RFC 7396): what makes one object of another.
//!
//! Both texts are valid JSON by the caller's word. Members are compared by their bytes, and what is new in the patch is
//! spliced as it was written, so that no number is read. Not every change can be said: a null in a patch removes, so that a
//! member can't be made null.

use smallvec::SmallVec;

use super::json::members;

/// Objects are compared up to this depth; what differs deeper down can't be said. So the time is that of so many scans of
/// both texts at most.
const DEPTH_MAX: usize = 16;

/// A text's members, by key.
type Members<'a> = SmallVec<[(&'a [u8], &'a [u8]); 16]>;

/// Appends the patch that makes `new` of `old`. False where there is none: one of them is no object, or a member became null,
/// or an object has a key twice or in several spellings. What was appended then is to be thrown away.
pub fn write(old: &[u8], new: &[u8], out: &mut Vec<u8>) -> bool {
    write_patch(old.trim_ascii(), new.trim_ascii(), 0, out)
}

fn write_patch(old: &[u8], new: &[u8], depth: usize, out: &mut Vec<u8>) -> bool {
    let (Some(old), Some(new)) = (sorted(old), sorted(new)) else { return false };
    if depth == DEPTH_MAX {
        return false;
    }
    let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
    let mut before = b'{';
    loop {
        let key = match (old.peek(), new.peek()) {
            (None, None) => break,
            (Some((key, _)), None) | (None, Some((key, _))) => *key,
            (Some((one, _)), Some((other, _))) => (*one).min(*other),
        };
        let was = old.next_if(|(one, _)| *one == key).map(|(_, value)| value);
        let is = new.next_if(|(one, _)| *one == key).map(|(_, value)| value);
        if was == is {
            continue;
        }
        out.push(before);
        before = b',';
        out.extend_from_slice(key);
        out.push(b':');
        let is_said = match (was, is) {
            (Some(was), Some(is)) if is_object(was) && is_object(is) => write_patch(was, is, depth + 1, out),
            (_, None) => {
                out.extend_from_slice(b"null");
                true
            }
            (_, Some(is)) => {
                out.extend_from_slice(is);
                can_be_said(is, depth + 1)
            }
        };
        if !is_said {
            return false;
        }
    }
    if before == b'{' {
        out.push(b'{');
    }
    out.push(b'}');
    true
}

fn is_object(value: &[u8]) -> bool {
    value.first() == Some(&b'{')
}

/// The members of an object; none where it is none, or where it can't be told which keys are the same.
fn sorted(object: &[u8]) -> Option<Members<'_>> {
    if !is_object(object) {
        return None;
    }
    let mut all: Members<'_> = members(object).collect();
    all.sort_unstable_by_key(|(key, _)| *key);
    let is_twice = all.windows(2).any(|pair| matches!(pair, [(one, _), (other, _)] if one == other));
    let is_spelt = all.iter().any(|(key, _)| key.contains(&b'\\'));
    (!is_twice && !is_spelt).then_some(all)
}

/// Whether a value in a patch puts that very value in its place: no null is in it, but in arrays, which are replaced whole.
fn can_be_said(value: &[u8], depth: usize) -> bool {
    match value.first() {
        Some(b'n') => false,
        Some(b'{') => depth < DEPTH_MAX && members(value).all(|(_, member)| can_be_said(member, depth + 1)),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn patch(old: &str, new: &str) -> Option<String> {
        let mut out = b"before".to_vec();
        write(old.as_bytes(), new.as_bytes(), &mut out).then(|| String::from_utf8(out.split_off(6)).expect("UTF-8"))
    }

    /// The pseudocode of RFC 7396 §2.
    fn apply(target: &mut Value, patch: &Value) {
        let Value::Object(patch) = patch else {
            *target = patch.clone();
            return;
        };
        if !target.is_object() {
            *target = json!({});
        }
        let members = target.as_object_mut().expect("an object");
        for (key, value) in patch {
            if value.is_null() {
                members.remove(key);
            } else {
                apply(members.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
    }

    #[test]
    fn a_patch_has_what_changed_and_nothing_else() {
        for (old, new, expected) in [
            ("{}", "{}", "{}"),
            ("{\"a\":1,\"b\":2}", "{\"b\":2,\"a\":1}", "{}"),
            ("{\"a\":1,\"b\":2}", "{\"a\":1,\"b\":3}", "{\"b\":3}"),
            ("{\"a\":1,\"b\":2}", "{\"b\":2}", "{\"a\":null}"),
            ("{\"a\":null,\"b\":null}", "{\"a\":null}", "{\"b\":null}"),
            (
                "{\"a\":{\"b\":1,\"c\":{\"d\":2}}}",
                "{\"a\":{\"b\":1,\"c\":{\"d\":3,\"e\":[null]}}}",
                "{\"a\":{\"c\":{\"d\":3,\"e\":[null]}}}",
            ),
            ("{\"a\":[1,2]}", "{ \"a\" : [1, 3] }", "{\"a\":[1, 3]}"),
            ("{\"a\":1}", "{\"a\":18446744073709551616.10}", "{\"a\":18446744073709551616.10}"),
            ("{\"a\":{\"b\":1}}", "{\"a\":\"x\"}", "{\"a\":\"x\"}"),
            ("{\"a\":1}", "{\"a\":{\"b\":{}}}", "{\"a\":{\"b\":{}}}"),
            ("{\"c\":1,\"a\":\"}\"}", "{\"b\":\",\",\"a\":\"{\"}", "{\"a\":\"{\",\"b\":\",\",\"c\":null}"),
        ] {
            assert_eq!(patch(old, new).as_deref(), Some(expected), "{old} {new}");
        }
    }

    #[test]
    fn what_a_patch_can_not_say_is_none() {
        let deep = |inner: &str| format!("{}{inner}{}", "{\"a\":".repeat(20), "}".repeat(20));
        for (old, new) in [
            ("{\"a\":1}", "{\"a\":null}"),
            ("{}", "{\"a\":null}"),
            ("{}", "{\"a\":{\"b\":null}}"),
            ("{\"a\":{}}", "{\"a\":{\"b\":{\"c\":null}}}"),
            ("[]", "{}"),
            ("{}", "[]"),
            ("1", "2"),
            ("null", "null"),
            ("{\"a\":1,\"a\":2}", "{\"a\":3}"),
            ("{\"a\":1}", "{\"\\u0061\":3}"),
            (&deep("1"), &deep("2")),
            ("{}", &deep("2")),
            ("", "{}"),
        ] {
            assert_eq!(patch(old, new), None, "{old} {new}");
        }
    }

    /// Few keys and values, so that what is compared has much in common.
    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            1 => Just(Value::Null),
            4 => (0..3i64).prop_map(Value::from),
            1 => any::<f64>().prop_map(|number| json!(number)),
            1 => "[a\"\\\\\n]{0,2}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 60, 5, |inner| {
            prop_oneof![
                1 => proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                3 => proptest::collection::hash_map("[abc\"]{1,2}", inner, 0..5)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn a_patch_makes_the_new_value_of_the_old_one(old in any_json(), new in any_json(), pretty in any::<bool>()) {
            let text = |value| if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
            let (was, is) = (text(&old).expect("JSON"), serde_json::to_string(&new).expect("JSON"));
            if let Some(patch) = patch(&was, &is) {
                // From the texts, since this parser may miss a float by its last bit.
                let read = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
                let mut made = read(&was);
                apply(&mut made, &read(&patch));
                prop_assert_eq!(made, read(&is));
            }
        }

        #[test]
        fn any_text_has_a_patch_or_none(old in "[\\[\\]{}\",:a0 \\\\]{0,40}", new in "[\\[\\]{}\",:a0 \\\\]{0,40}") {
            write(old.as_bytes(), new.as_bytes(), &mut Vec::new());
        }
    }
}
