//! Where the hub is and how to ask it for a WebSocket.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tungstenite::handshake::HandshakeError;
use tungstenite::handshake::client::{Request, generate_key};
use tungstenite::http::{HeaderValue, Uri, header};
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{WebSocket, client::client_with_config};

use super::failure::Failure;

/// Source addresses are 127.0.1.1 and up; one hundred thousand connections need no more than this.
pub(crate) const SOURCES_MAX: u32 = 254;

/// A bearer token. It can be sent, but not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(HeaderValue);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl FromStr for Token {
    type Err = String;

    fn from_str(text: &str) -> Result<Token, String> {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", text.trim()))
            .map_err(|_| "the token has characters that no header can carry".to_string())?;
        value.set_sensitive(true);
        Ok(Token(value))
    }
}

/// Why a URL can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetError {
    #[error("--url: {0}")]
    Syntax(String),
    #[error(
        "--url: scheme `{0}` is not supported; TLS ends at the proxy, give the hub's own address as ws://HOST:PORT/ws"
    )]
    Scheme(String),
    #[error("--url: no host")]
    NoHost,
    #[error("--url: {host}: {source}")]
    Resolve { host: String, source: std::io::Error },
    #[error("--url: {0} has no address")]
    NoAddress(String),
}

/// Which hub the commands for the shell speak to.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct HubArgs {
    /// The hub's WebSocket endpoint
    #[arg(long, default_value = "ws://127.0.0.1:8000/ws")]
    url: String,
    /// JWT to connect with
    #[arg(long, env = "RINGHUB_TOKEN", hide_env_values = true)]
    token: Option<Token>,
}

impl HubArgs {
    pub(crate) fn target(&self) -> Result<Target, TargetError> {
        Target::new(&self.url, self.token.as_ref())
    }
}

/// A resolved hub URL with the request that opens a connection to it.
#[derive(Clone)]
pub(crate) struct Target {
    address: SocketAddr,
    request: Request,
}

impl Target {
    /// Parses and resolves a `ws://` URL.
    pub(crate) fn new(url: &str, token: Option<&Token>) -> Result<Target, TargetError> {
        let uri: Uri =
            url.parse().map_err(|e: tungstenite::http::uri::InvalidUri| TargetError::Syntax(e.to_string()))?;
        match uri.scheme_str() {
            Some("ws") => {}
            other => return Err(TargetError::Scheme(other.unwrap_or("none").to_string())),
        }
        let host = uri.host().filter(|h| !h.is_empty()).ok_or(TargetError::NoHost)?.to_string();
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let mut addresses = (name, uri.port_u16().unwrap_or(80))
            .to_socket_addrs()
            .map_err(|source| TargetError::Resolve { host: host.clone(), source })?
            .collect::<Vec<_>>();
        // A name with both families usually means a listener on the IPv4 side.
        addresses.sort_by_key(|a| a.is_ipv6());
        let address = *addresses.first().ok_or(TargetError::NoAddress(host))?;
        let authority = uri.authority().map(|a| a.as_str()).unwrap_or_default();
        let host_header = authority.rsplit_once('@').map_or(authority, |(_, host)| host).to_string();
        let mut request = Request::builder()
            .method("GET")
            .header("Host", host_header)
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .uri(uri)
            .body(())
            .map_err(|e| TargetError::Syntax(e.to_string()))?;
        if let Some(Token(value)) = token {
            request.headers_mut().insert(header::AUTHORIZATION, value.clone());
        }
        Ok(Target { address, request })
    }

    /// The same hub at another path, without a query.
    pub(crate) fn with_path(&self, path: &str) -> Result<Target, TargetError> {
        let mut parts = self.request.uri().clone().into_parts();
        parts.path_and_query = Some(
            path.parse()
                .map_err(|e: tungstenite::http::uri::InvalidUri| TargetError::Syntax(format!("{path}: {e}")))?,
        );
        let mut target = self.clone();
        *target.request.uri_mut() = Uri::from_parts(parts).map_err(|e| TargetError::Syntax(e.to_string()))?;
        Ok(target)
    }

    /// The same hub, asked to compress.
    pub(crate) fn offering_compression(mut self) -> Target {
        self.request
            .headers_mut()
            .insert(header::SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static(super::unpack::OFFER));
        self
    }

    /// Whether it is asked to compress.
    pub(crate) fn offers_compression(&self) -> bool {
        self.request.headers().contains_key(header::SEC_WEBSOCKET_EXTENSIONS)
    }

    /// Whether it is on this machine, where any 127.x.x.x may be a source address.
    pub(crate) fn is_ipv4_loopback(&self) -> bool {
        matches!(self.address.ip(), IpAddr::V4(v4) if v4.is_loopback())
    }

    /// The upgrade request of one connection, with a key of its own.
    pub(crate) fn request(&self) -> Result<Request, Failure> {
        let mut request = self.request.clone();
        let key = HeaderValue::from_str(&generate_key()).map_err(|e| Failure::Protocol(e.to_string()))?;
        request.headers_mut().insert("Sec-WebSocket-Key", key);
        Ok(request)
    }

    /// Starts a connection without waiting for it. `source` picks one of the loopback source addresses.
    pub(crate) fn connect(&self, source: Option<u32>) -> Result<TcpStream, Failure> {
        let start = || -> std::io::Result<Socket> {
            let socket =
                Socket::new(Domain::for_address(self.address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
            socket.set_tcp_nodelay(true)?;
            if let Some(source) = source {
                // The port is chosen at once by `bind`; reusable addresses keep ports in TIME_WAIT available.
                socket.set_reuse_address(true)?;
                let last = u8::try_from(1 + source % SOURCES_MAX).unwrap_or(1);
                socket.bind(&SockAddr::from(SocketAddr::from((Ipv4Addr::new(127, 0, 1, last), 0))))?;
            }
            match socket.connect(&SockAddr::from(self.address)) {
                Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => Err(e),
                _ => Ok(socket),
            }
        };
        start().map(TcpStream::from).map_err(|e| Failure::from_io(&e))
    }

    /// Opens a connection and waits for the upgrade; afterwards reads give up after `timeout`.
    pub(crate) fn open(&self, timeout: Duration) -> Result<WebSocket<TcpStream>, Failure> {
        let stream = TcpStream::connect_timeout(&self.address, timeout).map_err(|e| Failure::from_io(&e))?;
        stream
            .set_nodelay(true)
            .and_then(|()| stream.set_read_timeout(Some(timeout)))
            .and_then(|()| stream.set_write_timeout(Some(timeout)))
            .map_err(|e| Failure::from_io(&e))?;
        let config = WebSocketConfig::default().read_buffer_size(16 << 10).write_buffer_size(0);
        match client_with_config(self.request()?, stream, Some(config)) {
            Ok((socket, _)) => Ok(socket),
            Err(HandshakeError::Failure(error)) => Err(error.into()),
            Err(HandshakeError::Interrupted(_)) => Err(Failure::Timeout("answer to the upgrade")),
        }
    }
}

/// The longest answer that is read; the hub's are a fraction of it.
const ANSWER_BYTES_MAX: u64 = 16 << 20;
/// More header fields than any proxy adds.
const HEADERS_MAX: usize = 64;

impl Target {
    /// Asks for what is at its path over HTTP, on a connection of its own, and gives the body of the answer.
    pub(crate) fn get(&self, timeout: Duration) -> Result<Vec<u8>, Failure> {
        let failed = |error: std::io::Error| Failure::from_io(&error);
        let mut stream = TcpStream::connect_timeout(&self.address, timeout).map_err(failed)?;
        stream
            .set_read_timeout(Some(timeout))
            .and_then(|()| stream.set_write_timeout(Some(timeout)))
            .map_err(failed)?;
        let path = self.request.uri().path_and_query().map_or("/", |path| path.as_str());
        // HTTP/1.0: the answer ends with the connection, and is in one piece.
        let mut head = format!("GET {path} HTTP/1.0\r\n").into_bytes();
        for name in [header::HOST, header::AUTHORIZATION] {
            if let Some(value) = self.request.headers().get(&name) {
                head.extend_from_slice(name.as_str().as_bytes());
                head.extend_from_slice(b": ");
                head.extend_from_slice(value.as_bytes());
                head.extend_from_slice(b"\r\n");
            }
        }
        head.extend_from_slice(b"\r\n");
        stream.write_all(&head).map_err(failed)?;
        let mut answer = Vec::new();
        match stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(Failure::Timeout("answer")),
            outcome => outcome.map_err(failed)?,
        };
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let Ok(httparse::Status::Complete(length)) = response.parse(&answer) else {
            return Err(Failure::Protocol("the answer is not HTTP".to_owned()));
        };
        let status = response.code.unwrap_or_default();
        let body = answer.split_off(length);
        match status {
            200 => Ok(body),
            _ => Err(Failure::http(status, &body)),
        }
    }
}

/// The URL without its query, which may hold a token, and without credentials.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uri = self.request.uri();
        write!(f, "ws://{}", uri.host().unwrap_or_default())?;
        if let Some(port) = uri.port_u16() {
            write!(f, ":{port}")?;
        }
        f.write_str(uri.path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_of_a_url_has_no_credentials_in_it() {
        let token: Token = "abc.def.ghi".parse().unwrap();
        let target = Target::new("ws://bob:pw@127.0.0.1:8000/ws?token=secret", Some(&token)).unwrap();
        assert_eq!(target.to_string(), "ws://127.0.0.1:8000/ws");
        assert!(!format!("{token:?}").contains("abc"));
        let request = target.request().unwrap();
        assert_eq!(request.headers()["host"], "127.0.0.1:8000");
        assert_eq!(request.headers()["authorization"], "Bearer abc.def.ghi");
        assert_eq!(request.uri().query(), Some("token=secret"));
    }

    #[test]
    fn each_connection_has_a_key_of_its_own() {
        let target = Target::new("ws://127.0.0.1:8000/ws", None).unwrap();
        let key = |t: &Target| t.request().unwrap().headers()["sec-websocket-key"].clone();
        assert_ne!(key(&target), key(&target));
    }

    #[test]
    fn the_echo_path_keeps_host_and_port() {
        let target = Target::new("ws://localhost:9/ws?session_id=a", None).unwrap().with_path("/echo").unwrap();
        assert_eq!(target.to_string(), "ws://localhost:9/echo");
        assert!(target.is_ipv4_loopback());
    }

    #[test]
    fn other_schemes_are_refused_with_the_reason() {
        let text = |url: &str| Target::new(url, None).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(text("wss://127.0.0.1/ws").contains("TLS ends at the proxy"));
        assert!(text("127.0.0.1:8000").contains("scheme"));
    }
}
