//! What of a room's events a subscriber wants: event types and conditions over the event's data (PROTOCOL §4).
//!
//! A selection is compiled once. Subscribers with the same one share it and it is asked once per event, however many
//! they are.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::wire::codes::ErrorCode;
use crate::wire::json::{JsonError, Scratch, Value, write_string};
use crate::wire::native::{Refused, Wanted};

/// A compiled selection.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    types: Vec<Box<str>>,
    filter: Option<Filter>,
    /// A hash of its text, and the text's length.
    mark: u64,
    text_bytes: usize,
}

/// Alternatives of conditions that all must hold.
#[derive(Debug, Clone, PartialEq)]
enum Filter {
    All(Vec<Condition>),
    Any(Vec<Filter>),
    Both(Vec<Filter>),
}

#[derive(Debug, Clone, PartialEq)]
struct Condition {
    path: Box<str>,
    test: Test,
}

#[derive(Debug, Clone, PartialEq)]
enum Test {
    Equals(Scalar),
    In(Vec<Scalar>),
    Range { min: Option<f64>, max: Option<f64> },
    Prefix(Box<str>),
    Exists(bool),
    Not(Box<Test>),
    AllOf(Vec<Test>),
}

#[derive(Debug, Clone, PartialEq)]
enum Scalar {
    Null,
    Bool(bool),
    Number(f64),
    Text(Box<str>),
}

/// How deep `any` and `not` may be nested.
const NESTING_MAX: usize = 8;

impl Selection {
    /// Compiles what a subscriber asked for; none where it wants everything.
    pub fn compile(wanted: &Wanted, conditions_max: usize) -> Result<Option<Selection>, Refused> {
        let mut types = wanted.types.clone();
        types.sort_unstable();
        types.dedup();
        let filter = match &wanted.filters {
            None => None,
            Some(raw) => {
                let mut text = raw.to_vec();
                let mut scratch = Scratch::new(NESTING_MAX * 4);
                let document = scratch.parse(&mut text).map_err(|error| match error {
                    JsonError::Invalid => bad("filters is not JSON"),
                    JsonError::TooDeep => bad("filters is nested too deep"),
                })?;
                let mut left = conditions_max;
                Some(filter(document.root(), &mut left, 0)?)
            }
        };
        if types.is_empty() && filter.is_none() {
            return Ok(None);
        }
        let mut selection = Selection { types, filter, mark: 0, text_bytes: 0 };
        let mut hasher = DefaultHasher::new();
        let text = selection.text(usize::MAX);
        text.hash(&mut hasher);
        selection.text_bytes = text.len();
        // 0 and 1 stand for no selection at all.
        selection.mark = hasher.finish().max(2);
        Ok(Some(selection))
    }

    /// What stands for it where there is no room for more: equal selections have the same, others most likely not.
    pub fn mark(&self) -> u64 {
        self.mark
    }

    /// As a subscriber would write it, `{"types":[…],"filters":{…}}`, cut to about `bytes_max`.
    pub fn text(&self, bytes_max: usize) -> String {
        let mut text = String::from("{");
        if !self.types.is_empty() {
            text.push_str("\"types\":");
            write_list(&mut text, &self.types, |text, kind| write_text(text, kind));
        }
        if let Some(filter) = &self.filter {
            text.push_str(if self.types.is_empty() { "\"filters\":" } else { ",\"filters\":" });
            filter.write(&mut text);
        }
        text.push('}');
        if text.len() > bytes_max {
            text.truncate(text.floor_char_boundary(bytes_max));
            text.push('…');
        }
        text
    }

    /// The length of its text.
    pub fn text_bytes(&self) -> usize {
        self.text_bytes
    }

    /// The types that may be wanted; none where any may.
    pub fn types(&self) -> &[Box<str>] {
        &self.types
    }

    /// Whether the event's data has to be read to decide.
    pub fn reads_data(&self) -> bool {
        self.filter.is_some()
    }

    /// Whether an event of that type may be wanted.
    pub fn wants_type(&self, kind: &str) -> bool {
        self.types.is_empty() || self.types.binary_search_by(|one| one.as_ref().cmp(kind)).is_ok()
    }

    /// Whether the data satisfies the filter.
    pub fn wants_data(&self, data: Value<'_, '_>) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.holds(data))
    }
}

fn bad(message: &'static str) -> Refused {
    Refused::new(ErrorCode::BadFilter, message)
}

fn filter(object: Value<'_, '_>, left: &mut usize, depth: usize) -> Result<Filter, Refused> {
    if !object.is_object() {
        return Err(bad("a filter is an object of field and condition"));
    }
    if depth == NESTING_MAX {
        return Err(bad("filters is nested too deep"));
    }
    let mut conditions = Vec::new();
    let mut parts = Vec::new();
    for field in object.fields() {
        if field.key == "any" && field.value.is_array() {
            let alternatives = field
                .value
                .elements()
                .map(|element| filter(element, left, depth + 1))
                .collect::<Result<Vec<_>, _>>()?;
            if alternatives.is_empty() {
                return Err(bad("any has no alternatives"));
            }
            parts.push(Filter::Any(alternatives));
            continue;
        }
        *left = left.checked_sub(1).ok_or_else(|| bad("filters has too many conditions"))?;
        conditions.push(Condition { path: field.key.into(), test: test(field.value, left, depth)? });
    }
    if parts.is_empty() {
        return Ok(Filter::All(conditions));
    }
    if !conditions.is_empty() {
        parts.push(Filter::All(conditions));
    }
    Ok(Filter::Both(parts))
}

fn test(value: Value<'_, '_>, left: &mut usize, depth: usize) -> Result<Test, Refused> {
    if let Some(scalar) = scalar(value) {
        return Ok(Test::Equals(scalar));
    }
    if !value.is_object() {
        return Err(bad(
            "a condition is a value or an object such as {\"min\":1}; use {\"in\":[…]} for several values",
        ));
    }
    if depth == NESTING_MAX {
        return Err(bad("filters is nested too deep"));
    }
    let mut tests = Vec::new();
    let (mut min, mut max) = (None, None);
    for field in value.fields() {
        match field.key {
            "min" => min = Some(field.value.as_f64().ok_or_else(|| bad("min has to be a number"))?),
            "max" => max = Some(field.value.as_f64().ok_or_else(|| bad("max has to be a number"))?),
            "in" => {
                if !field.value.is_array() {
                    return Err(bad("in has to be a list of values"));
                }
                let mut list = Vec::new();
                for element in field.value.elements() {
                    *left = left.checked_sub(1).ok_or_else(|| bad("filters has too many conditions"))?;
                    list.push(scalar(element).ok_or_else(|| bad("in has to be a list of plain values"))?);
                }
                tests.push(Test::In(list));
            }
            "prefix" => {
                let prefix = field.value.as_str().ok_or_else(|| bad("prefix has to be a string"))?;
                tests.push(Test::Prefix(prefix.into()));
            }
            "exists" => {
                let exists = field.value.as_bool().ok_or_else(|| bad("exists has to be true or false"))?;
                tests.push(Test::Exists(exists));
            }
            "not" => tests.push(Test::Not(Box::new(test(field.value, left, depth + 1)?))),
            _ => return Err(bad("a condition knows min, max, in, prefix, exists and not")),
        }
    }
    if min.is_some() || max.is_some() {
        tests.push(Test::Range { min, max });
    }
    match tests.len() {
        0 => Err(bad("a condition is empty")),
        1 => tests.pop().ok_or_else(|| bad("a condition is empty")),
        _ => Ok(Test::AllOf(tests)),
    }
}

fn scalar(value: Value<'_, '_>) -> Option<Scalar> {
    if let Some(text) = value.as_str() {
        return Some(Scalar::Text(text.into()));
    }
    if let Some(number) = value.as_f64() {
        return Some(Scalar::Number(number));
    }
    if let Some(truth) = value.as_bool() {
        return Some(Scalar::Bool(truth));
    }
    value.is_null().then_some(Scalar::Null)
}

fn write_text(out: &mut String, text: &str) {
    let mut bytes = Vec::new();
    write_string(&mut bytes, text);
    out.push_str(&String::from_utf8_lossy(&bytes));
}

fn write_list<T>(out: &mut String, list: &[T], mut write: impl FnMut(&mut String, &T)) {
    out.push('[');
    for (place, one) in list.iter().enumerate() {
        if place > 0 {
            out.push(',');
        }
        write(out, one);
    }
    out.push(']');
}

impl Filter {
    fn write(&self, out: &mut String) {
        match self {
            Filter::Any(alternatives) => {
                out.push_str("{\"any\":");
                write_list(out, alternatives, |out, alternative| alternative.write(out));
                out.push('}');
            }
            Filter::All(_) | Filter::Both(_) => {
                out.push('{');
                self.write_members(out);
                out.push('}');
            }
        }
    }

    fn write_members(&self, out: &mut String) {
        match self {
            Filter::All(conditions) => {
                for (place, condition) in conditions.iter().enumerate() {
                    if place > 0 {
                        out.push(',');
                    }
                    write_text(out, &condition.path);
                    out.push(':');
                    condition.test.write(out);
                }
            }
            Filter::Any(alternatives) => {
                out.push_str("\"any\":");
                write_list(out, alternatives, |out, alternative| alternative.write(out));
            }
            Filter::Both(parts) => {
                for (place, part) in parts.iter().enumerate() {
                    if place > 0 {
                        out.push(',');
                    }
                    part.write_members(out);
                }
            }
        }
    }

    fn holds(&self, data: Value<'_, '_>) -> bool {
        match self {
            Filter::All(conditions) => {
                conditions.iter().all(|condition| condition.test.holds(data.path(&condition.path)))
            }
            Filter::Any(alternatives) => alternatives.iter().any(|alternative| alternative.holds(data)),
            Filter::Both(parts) => parts.iter().all(|part| part.holds(data)),
        }
    }
}

impl Test {
    fn write(&self, out: &mut String) {
        match self {
            Test::Equals(scalar) => scalar.write(out),
            _ => {
                out.push('{');
                self.write_members(out);
                out.push('}');
            }
        }
    }

    fn write_members(&self, out: &mut String) {
        match self {
            // Stands alone, and is written without braces.
            Test::Equals(scalar) => scalar.write(out),
            Test::In(list) => {
                out.push_str("\"in\":");
                write_list(out, list, |out, scalar| scalar.write(out));
            }
            Test::Range { min, max } => {
                let bounds = [("min", min), ("max", max)];
                for (place, (name, bound)) in bounds.iter().filter(|(_, bound)| bound.is_some()).enumerate() {
                    let comma = if place > 0 { "," } else { "" };
                    out.push_str(&format!("{comma}\"{name}\":{}", bound.unwrap_or_default()));
                }
            }
            Test::Prefix(prefix) => {
                out.push_str("\"prefix\":");
                write_text(out, prefix);
            }
            Test::Exists(exists) => out.push_str(&format!("\"exists\":{exists}")),
            Test::Not(test) => {
                out.push_str("\"not\":");
                test.write(out);
            }
            Test::AllOf(tests) => {
                for (place, test) in tests.iter().enumerate() {
                    if place > 0 {
                        out.push(',');
                    }
                    test.write_members(out);
                }
            }
        }
    }

    fn holds(&self, value: Option<Value<'_, '_>>) -> bool {
        match self {
            Test::Equals(scalar) => value.is_some_and(|value| scalar.equals(value)),
            Test::In(list) => value.is_some_and(|value| list.iter().any(|scalar| scalar.equals(value))),
            Test::Range { min, max } => value
                .and_then(Value::as_f64)
                .is_some_and(|number| min.is_none_or(|min| number >= min) && max.is_none_or(|max| number <= max)),
            Test::Prefix(prefix) => value.and_then(Value::as_str).is_some_and(|text| text.starts_with(prefix.as_ref())),
            Test::Exists(exists) => value.is_some() == *exists,
            Test::Not(test) => !test.holds(value),
            Test::AllOf(tests) => tests.iter().all(|test| test.holds(value)),
        }
    }
}

impl Scalar {
    fn write(&self, out: &mut String) {
        match self {
            Scalar::Null => out.push_str("null"),
            Scalar::Bool(truth) => out.push_str(&truth.to_string()),
            Scalar::Number(number) => out.push_str(&number.to_string()),
            Scalar::Text(text) => write_text(out, text),
        }
    }

    fn equals(&self, value: Value<'_, '_>) -> bool {
        match self {
            Scalar::Null => value.is_null(),
            Scalar::Bool(truth) => value.as_bool() == Some(*truth),
            Scalar::Number(number) => value.as_f64() == Some(*number),
            Scalar::Text(text) => value.as_str() == Some(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(filters: &str) -> Result<Option<Selection>, Refused> {
        Selection::compile(&Wanted { types: Vec::new(), filters: Some(filters.as_bytes().into()) }, 32)
    }

    fn wants(filters: &str, data: &str) -> bool {
        let selection = compiled(filters).expect("compiles").expect("selects");
        let mut scratch = Scratch::new(64);
        let mut text = data.as_bytes().to_vec();
        selection.wants_data(scratch.parse(&mut text).expect("json").root())
    }

    #[test]
    fn every_condition_of_the_protocol_holds_where_it_should() {
        let data =
            r#"{"confidence_level":0.85,"status":"failed","name":"db-1","done":false,"nested":{"x":3},"none":null}"#;
        for (filter, expected) in [
            (r#"{"confidence_level":{"min":0.8,"max":1}}"#, true),
            (r#"{"confidence_level":{"min":0.9}}"#, false),
            (r#"{"confidence_level":{"max":0.8}}"#, false),
            (r#"{"status":"failed"}"#, true),
            (r#"{"status":"ok"}"#, false),
            (r#"{"status":{"in":["failed","blocked"]}}"#, true),
            (r#"{"status":{"in":["ok"]}}"#, false),
            (r#"{"name":{"prefix":"db-"}}"#, true),
            (r#"{"name":{"prefix":"web-"}}"#, false),
            (r#"{"done":{"exists":true}}"#, true),
            (r#"{"gone":{"exists":false}}"#, true),
            (r#"{"done":{"not":true}}"#, true),
            (r#"{"status":{"not":{"in":["failed"]}}}"#, false),
            (r#"{"gone":{"not":"x"}}"#, true),
            (r#"{"nested.x":3}"#, true),
            (r#"{"nested.x":{"min":1,"not":3}}"#, false),
            (r#"{"none":null}"#, true),
            (r#"{"any":[{"status":"ok"},{"nested.x":{"max":3}}]}"#, true),
            (r#"{"any":[{"status":"ok"}],"done":false}"#, false),
            (r#"{"any":[{"status":"failed"}],"done":false}"#, true),
            (r#"{"status":"failed","done":true}"#, false),
        ] {
            assert_eq!(wants(filter, data), expected, "{filter}");
        }
    }

    #[test]
    fn filters_that_make_no_sense_are_refused() {
        for filter in [
            r#"{"a":{"min":"x"}}"#,
            r#"{"a":{"like":"x"}}"#,
            r#"{"a":{}}"#,
            r#"{"a":[1]}"#,
            r#"{"any":[]}"#,
            r#"{"any":[5]}"#,
            r#"{"a":{"in":5}}"#,
            r#"{"a":{"in":[{}]}}"#,
            r#"{"a":{"not":{"not":{"not":{"not":{"not":{"not":{"not":{"not":{"not":1}}}}}}}}}}"#,
        ] {
            assert_eq!(compiled(filter).expect_err(filter).code, ErrorCode::BadFilter);
        }
        let many: Vec<String> = (0..33).map(|number| format!("\"f{number}\":1")).collect();
        assert!(compiled(&format!("{{{}}}", many.join(","))).is_err());
    }

    #[test]
    fn a_selection_can_be_written_and_is_the_same_when_read_again() {
        for text in [
            r#"{"types":["a.b","c"],"filters":{"x":1}}"#,
            r#"{"types":["a"]}"#,
            r#"{"filters":{"a":{"min":0.5,"max":2},"b":{"in":["x",null,true]},"c":{"not":{"prefix":"\"db-"}}}}"#,
            r#"{"filters":{"any":[{"a":"b"},{"any":[{"c":{"exists":false}}],"d":-1.25}],"e":{"not":7,"min":1}}}"#,
        ] {
            let value: serde_json::Value = serde_json::from_str(text).expect("JSON");
            let read = |value: &serde_json::Value| {
                let types = value["types"].as_array().map_or_else(Vec::new, |types| {
                    types.iter().filter_map(|kind| kind.as_str()).map(Into::into).collect()
                });
                let filters = value.get("filters").map(|filters| filters.to_string().into_bytes().into());
                Selection::compile(&Wanted { types, filters }, 32).expect("compiles").expect("selects")
            };
            let selection = read(&value);
            let written = selection.text(usize::MAX);
            let again = read(&serde_json::from_str(&written).expect(&written));
            assert_eq!(selection, again, "{written}");
            assert_eq!(selection.mark(), again.mark());
        }
        let selection = compiled(r#"{"name":"ünlich"}"#).expect("compiles").expect("selects");
        assert_eq!(selection.text(21), "{\"filters\":{\"name\":\"…", "cut between characters");
        assert_ne!(selection.mark(), compiled(r#"{"name":"x"}"#).expect("compiles").expect("selects").mark());
    }

    #[test]
    fn equal_requests_compile_to_equal_selections() {
        let types = |list: &[&str]| Wanted { types: list.iter().map(|&one| one.into()).collect(), filters: None };
        let one = Selection::compile(&types(&["b", "a"]), 32).expect("compiles");
        let two = Selection::compile(&types(&["a", "b", "a"]), 32).expect("compiles");
        assert_eq!(one, two);
        assert!(one.expect("selects").wants_type("a"));
        assert_eq!(Selection::compile(&Wanted::default(), 32), Ok(None));
    }
}
