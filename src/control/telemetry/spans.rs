//! Spans as OTLP has them.

use std::borrow::Cow;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span, status};
use prost::Message as _;

use super::context::{Parent, SpanContext};

/// Something said of a span.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A text.
    Text(Cow<'static, str>),
    /// A number.
    Number(u64),
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Value {
        Value::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(text.into())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Value {
        Value::Number(number)
    }
}

/// Which end of a call a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The hub was called.
    Server,
    /// The hub calls.
    Client,
}

/// A span that is over.
#[derive(Debug)]
pub(super) struct Finished {
    pub context: SpanContext,
    pub parent: Option<Parent>,
    pub side: Side,
    pub name: Cow<'static, str>,
    pub began_ns: u64,
    pub ended_ns: u64,
    pub attributes: Vec<(&'static str, Value)>,
    /// What went wrong.
    pub failure: Option<&'static str>,
}

pub(super) fn attribute(key: &str, value: Value) -> KeyValue {
    let value = match value {
        Value::Text(text) => any_value::Value::StringValue(text.into_owned()),
        Value::Number(number) => any_value::Value::IntValue(i64::try_from(number).unwrap_or(i64::MAX)),
    };
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// Who tells.
pub(super) fn resource(node: &str) -> Resource {
    let attributes = vec![
        attribute("service.name", "ringhub".into()),
        attribute("service.instance.id", node.to_owned().into()),
        attribute("service.version", env!("CARGO_PKG_VERSION").into()),
    ];
    Resource { attributes, ..Resource::default() }
}

pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope { name: "ringhub".to_owned(), ..InstrumentationScope::default() }
}

/// The body of a call to `/v1/traces`.
pub(super) fn body(spans: Vec<Finished>, resource: Resource) -> Vec<u8> {
    let spans = spans.into_iter().map(of).collect();
    let scope_spans = vec![ScopeSpans { scope: Some(scope()), spans, schema_url: String::new() }];
    let resource_spans = vec![ResourceSpans { resource: Some(resource), scope_spans, schema_url: String::new() }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}

fn of(finished: Finished) -> Span {
    let Finished { context, parent, side, name, began_ns, ended_ns, attributes, failure } = finished;
    let kind = match side {
        Side::Server => span::SpanKind::Server,
        Side::Client => span::SpanKind::Client,
    };
    let status = failure.map(|failure| Status { message: failure.to_owned(), code: status::StatusCode::Error as i32 });
    Span {
        trace_id: context.trace_id.to_be_bytes().to_vec(),
        span_id: context.span_id.to_be_bytes().to_vec(),
        parent_span_id: parent.map(|parent| parent.context.span_id.to_be_bytes().to_vec()).unwrap_or_default(),
        // The lowest bit says that the trace is sampled.
        flags: 1,
        name: name.into_owned(),
        kind: kind as i32,
        start_time_unix_nano: began_ns,
        end_time_unix_nano: ended_ns.max(began_ns),
        attributes: attributes.into_iter().map(|(key, value)| attribute(key, value)).collect(),
        status,
        ..Span::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_survives_its_encoding() {
        let context = SpanContext { trace_id: 0xab, span_id: 0xcd };
        let finished = Finished {
            context,
            parent: Some(Parent { context: SpanContext { trace_id: 0xab, span_id: 1 }, is_sampled: true }),
            side: Side::Server,
            name: "GET /live".into(),
            began_ns: 5,
            ended_ns: 4,
            attributes: vec![("http.response.status_code", 500.into())],
            failure: Some("500"),
        };
        let decoded = ExportTraceServiceRequest::decode(&body(vec![finished], resource("n"))[..]).expect("decodes");
        let span = &decoded.resource_spans[0].scope_spans[0].spans[0];
        assert_eq!((span.trace_id.len(), span.span_id.len(), span.parent_span_id.last()), (16, 8, Some(&1)));
        assert_eq!((span.name.as_str(), span.end_time_unix_nano), ("GET /live", 5), "no span ends before it began");
        assert_eq!(span.status.as_ref().map(|status| status.code), Some(status::StatusCode::Error as i32));
    }
}
