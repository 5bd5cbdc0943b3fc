//! What of a room's events a subscriber wants: event types and conditions over the event's data (PROTOCOL §4).
//!
//! A selection is compiled once. Subscribers with the same one share it and it is asked once per event, however many
//! they are.

use crate::wire::codes::ErrorCode;
use crate::wire::json::{JsonError, Scratch, Value};
use crate::wire::native::{Refused, Wanted};

/// A compiled selection.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    types: Vec<Box<str>>,
    filter: Option<Filter>,
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
        Ok(Some(Selection { types, filter }))
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

impl Filter {
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
    fn equal_requests_compile_to_equal_selections() {
        let types = |list: &[&str]| Wanted { types: list.iter().map(|&one| one.into()).collect(), filters: None };
        let one = Selection::compile(&types(&["b", "a"]), 32).expect("compiles");
        let two = Selection::compile(&types(&["a", "b", "a"]), 32).expect("compiles");
        assert_eq!(one, two);
        assert!(one.expect("selects").wants_type("a"));
        assert_eq!(Selection::compile(&Wanted::default(), 32), Ok(None));
    }
}
