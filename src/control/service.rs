//! What happens to one request: upgrades and streams of events leave, the rest is routed, within time limits and with every panic contained.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum::Router;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::FutureExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode, Version};
use tower::Service as _;

use super::Options;
use super::answer::ApiError;
use super::api::Route;
use super::backend::Backend;
use super::cors::Cors;
use super::inbox::ConnectionOrigin;
use super::metrics::HttpRequests;
use super::poll;
use super::progress::Progress;
use super::runtime::Timer;
use super::telemetry;
use super::windows::Windows;

/// Where a connection came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// From a shard, hence from the public listener.
    Public,
    /// From the control plane's own listener.
    Internal,
}

/// Where streams of events are, which are a shard's.
const STREAMS: &str = "/events";

/// What all connections share.
pub(crate) struct App<B> {
    pub(crate) backend: B,
    pub(crate) options: Options,
    pub(crate) router: Router,
    pub(crate) cors: Cors,
    pub(crate) requests: HttpRequests,
    pub(crate) windows: Arc<Windows>,
}

/// One connection's service.
pub(crate) struct Service<B> {
    pub(crate) app: Rc<App<B>>,
    pub(crate) progress: Rc<Progress>,
    pub(crate) side: Side,
    pub(crate) origin: ConnectionOrigin,
}

type Answer = Pin<Box<dyn Future<Output = Result<hyper::Response<Answered>, Infallible>>>>;

/// Marks a response whose body goes on for as long as something happens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Streams;

impl<B: Backend> hyper::service::Service<Request<Incoming>> for Service<B> {
    type Response = hyper::Response<Answered>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, mut request: Request<Incoming>) -> Answer {
        let number = self.progress.request();
        // A connection's first request came from a shard that did not take it for its own. Giving it back would make the
        // two pass it to and fro.
        if self.side == Side::Public && number > 0 && (wants_websocket(&request) || wants_stream(&request)) {
            self.progress.hand_over(head_of(&request));
            return Box::pin(pending());
        }
        let app = Rc::clone(&self.app);
        let progress = Rc::clone(&self.progress);
        let side = self.side;
        let engine = &self.app.options.engine;
        if poll::wait_of(&request).or_else(|| engine.wait_of(&request)).is_some() {
            progress.waits();
        }
        if engine.serves(request.uri().path()) {
            request.extensions_mut().insert(self.origin);
        }
        Box::pin(async move {
            let (mut response, read) = app.respond(request, side).await;
            let streams = response.extensions_mut().remove::<Streams>().is_some();
            if streams {
                progress.streams();
            } else {
                progress.answered(!read.load(Ordering::Relaxed));
            }
            Ok(response.map(|body| Answered { body, read, progress: streams.then_some(progress) }))
        })
    }
}

impl<B: Backend> App<B> {
    /// The answer, and what tells whether the request's body was read to its end.
    async fn respond(&self, request: Request<Incoming>, side: Side) -> (Response, Arc<AtomicBool>) {
        let method = request.method().clone();
        let origin = request.headers().get(header::ORIGIN).cloned();
        let span = self.options.telemetry.as_ref().and_then(|telemetry| {
            let traceparent = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
            telemetry.begin(telemetry::Side::Server, traceparent)
        });
        // RFC 9112 section 6.1: a request with both framings may be an attempt at smuggling, and hyper has dropped the
        // Content-Length by now. A connection that ends after a chunked request leaves nothing to smuggle.
        let closes = request.headers().contains_key(header::TRANSFER_ENCODING) || self.backend.draining();
        let read = Arc::new(AtomicBool::new(request.body().is_end_stream()));

        // What clients use is on the public side whatever else is, and with it the question whether a page may ask for it.
        let is_engine = self.options.engine.serves(request.uri().path());
        let is_clients = is_engine || request.uri().path() == STREAMS;
        let is_elsewhere = side == Side::Public && self.options.internal.is_some() && !is_clients;
        let mut response = if is_elsewhere {
            ApiError::not_found().into_response()
        } else if let Some(preflight) = self.cors.preflight(&request, is_engine) {
            preflight
        } else {
            let watched = request.map(|body| Watched { body, read: Arc::clone(&read) });
            self.route(watched, &read).await
        };

        let headers = response.headers_mut();
        self.cors.allow(origin.as_ref(), headers);
        if is_engine {
            self.options.engine.allow_credentials(origin.as_ref(), headers);
        }
        if closes {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let route = response.extensions_mut().remove::<Route>();
        let route = route.as_ref().map_or("other", Route::path);
        // The route and not the target, which may hold a token.
        tracing::debug!(%method, route, status = response.status().as_u16(), "http request");
        self.requests.count(route, &method, response.status());
        if let Some(span) = span {
            tell(span, &method, route, response.status());
        }
        (response, read)
    }

    async fn route(&self, mut request: Request<Watched>, read: &AtomicBool) -> Response {
        let mut router = self.router.clone();
        let wait = poll::wait_of(&request).or_else(|| self.options.engine.wait_of(&request));
        let over = wait.map(|wait| {
            let (over, is_over) = poll::time();
            request.extensions_mut().insert(is_over);
            (wait, over)
        });
        let mut answer = AssertUnwindSafe(router.call(request)).catch_unwind();
        if let Some((wait, over)) = over {
            match futures_util::future::select(answer, Timer::new(wait)).await {
                futures_util::future::Either::Left((Ok(Ok(response)), _)) => return response,
                futures_util::future::Either::Left((Err(_), _)) => return panicked(),
                futures_util::future::Either::Right((_, waiting)) => answer = waiting,
            }
            // The handler looks once more, and answers.
            drop(over);
        }
        let timer = Timer::new(self.options.request_timeout);
        match futures_util::future::select(answer, timer).await {
            futures_util::future::Either::Left((Ok(Ok(response)), _)) => response,
            futures_util::future::Either::Left((Err(_), _)) => panicked(),
            futures_util::future::Either::Right(_) if read.load(Ordering::Relaxed) => {
                ApiError::unavailable("the answer took too long").into_response()
            }
            futures_util::future::Either::Right(_) => {
                ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the request's body did not come in time")
                    .into_response()
            }
        }
    }
}

/// The route and not the target, for the same reason. Methods that nobody has heard of are not spread either.
fn tell(span: telemetry::Span, method: &Method, route: &str, status: StatusCode) {
    let method = match method.as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS") => known,
        _ => "_OTHER",
    };
    let attributes = vec![
        ("http.request.method", method.to_owned().into()),
        ("http.route", route.to_owned().into()),
        ("http.response.status_code", u64::from(status.as_u16()).into()),
    ];
    span.end(format!("{method} {route}"), attributes, status.is_server_error().then_some("the hub could not answer"));
}

fn panicked() -> Response {
    tracing::error!("a request's handler panicked");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "internal error").into_response()
}

/// A response's body. One that streams tells how it goes on.
pub(crate) struct Answered {
    body: axum::body::Body,
    read: Arc<AtomicBool>,
    progress: Option<Rc<Progress>>,
}

impl Body for Answered {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(progress) = &self.progress {
            match frame {
                Some(Ok(_)) => progress.goes_on(),
                _ => progress.answered(!self.read.load(Ordering::Relaxed)),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A request's body that tells when it was read to its end.
pub(crate) struct Watched {
    body: Incoming,
    read: Arc<AtomicBool>,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none() || self.body.is_end_stream() {
            self.read.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// RFC 6455 section 4.2.1: a GET with `Upgrade: websocket` and `Connection: upgrade`. What else has to hold is for the
/// shard to check and to refuse.
pub(crate) fn wants_websocket<T>(request: &Request<T>) -> bool {
    request.method() == Method::GET
        && has_token(request.headers(), header::UPGRADE, "websocket")
        && has_token(request.headers(), header::CONNECTION, "upgrade")
}

/// A GET for a stream of events. What other methods get at that path, a shard and the router say alike.
fn wants_stream<T>(request: &Request<T>) -> bool {
    request.method() == Method::GET && request.uri().path() == STREAMS
}

fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// The request's head in bytes. Names come in lower case, which means the same.
pub(crate) fn head_of<T>(request: &Request<T>) -> Vec<u8> {
    let mut head = Vec::with_capacity(512);
    head.extend_from_slice(request.method().as_str().as_bytes());
    head.push(b' ');
    head.extend_from_slice(request.uri().to_string().as_bytes());
    head.extend_from_slice(match request.version() {
        Version::HTTP_10 => b" HTTP/1.0\r\n",
        _ => b" HTTP/1.1\r\n",
    });
    for (name, value) in request.headers() {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upgrade_is_known_by_its_tokens() {
        let request = |upgrade: &str, connection: &str| {
            Request::get("/ws").header("upgrade", upgrade).header("connection", connection).body(()).unwrap()
        };
        assert!(wants_websocket(&request("websocket", "Upgrade")));
        assert!(wants_websocket(&request("h2c, WebSocket", "keep-alive, upgrade")));
        assert!(!wants_websocket(&request("h2c", "upgrade")));
        assert!(!wants_websocket(&request("websocket", "keep-alive")));
        assert!(!wants_websocket(&Request::post("/ws").header("upgrade", "websocket").body(()).unwrap()));
    }

    #[test]
    fn a_head_is_rebuilt_with_target_and_every_field() {
        let request = Request::get("/ws/monitor/a%20b?token=x&y=%C3%A4")
            .header("Host", "h")
            .header("X-A", "1")
            .header("X-A", HeaderValue::from_bytes(b"\xff\"").unwrap())
            .body(())
            .unwrap();
        let expected = b"GET /ws/monitor/a%20b?token=x&y=%C3%A4 HTTP/1.1\r\nhost: h\r\nx-a: 1\r\nx-a: \xff\"\r\n\r\n";
        assert_eq!(head_of(&request), expected);
    }
}
