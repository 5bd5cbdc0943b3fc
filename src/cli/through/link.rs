//! The way to a hub through whatever stands in front of it: a URL, connections over it with or without TLS, and plain
//! HTTP/1.1 requests.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tungstenite::http::Uri;

/// Time for a connection, and for each answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer that is looked at; the hub's are a fraction of it.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// More header fields than any proxy adds.
const HEADERS_MAX: usize = 64;
/// Where a proxy on this machine sees the connections come from: an address that is neither its own nor the hub's.
const LOOPBACK_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 45, 0, 9);

/// Protocols offered inside TLS. Without HTTP/2 on offer no proxy can choose it.
pub(super) const HTTP_1: &[u8] = b"http/1.1";
pub(super) const HTTP_2: &[u8] = b"h2";

/// A URL as clients use it, resolved.
#[derive(Debug, Clone)]
pub(super) struct Link {
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    authority: String,
    base: String,
    query: Option<String>,
    address: SocketAddr,
}

/// What stands at the end of a connection, encrypted or not.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// An HTTP answer.
#[derive(Debug, Clone, Default)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Link {
    /// Reads `ws://`, `wss://`, `http://` or `https://`, of the WebSocket endpoint or of what is above it, and resolves
    /// the name. The authorities of `ca` are trusted beside those that browsers trust.
    pub(super) fn new(url: &str, ca: Option<&Path>) -> Result<Link, String> {
        let uri: Uri = url.parse().map_err(|error| format!("--through: {error}"))?;
        let secure = match uri.scheme_str() {
            Some("wss" | "https") => true,
            Some("ws" | "http") => false,
            _ => return Err("--through: expected ws://, wss://, http:// or https://".to_owned()),
        };
        let authority = uri.authority().ok_or("--through: no host")?.as_str();
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host).to_owned();
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let addresses = (host.as_str(), port).to_socket_addrs().map_err(|error| format!("{host}: {error}"))?;
        // Browsers prefer IPv6 where there is some; a proxy on this machine often has IPv4 only.
        let mut addresses: Vec<_> = addresses.collect();
        addresses.sort_by_key(SocketAddr::is_ipv6);
        let address = *addresses.first().ok_or_else(|| format!("{host} has no address"))?;
        let tls = match secure {
            false => None,
            true => {
                let name = ServerName::try_from(host.clone()).map_err(|error| format!("{host}: {error}"))?;
                Some((Arc::new(client_config(ca)?), name))
            }
        };
        let path = uri.path().trim_end_matches('/');
        let base = path.strip_suffix("/ws").unwrap_or(path).to_owned();
        Ok(Link { tls, authority, base, query: uri.query().map(str::to_owned), address })
    }

    /// Whether there is TLS on the way.
    pub(super) fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// What is on this way at `path`.
    pub(super) fn path(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// The path of the WebSocket endpoint, with the query that was given; [`Link::request`] puts the base before it.
    pub(super) fn websocket_path(&self) -> String {
        let query = self.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
        format!("/ws{query}")
    }

    /// The `Host` header.
    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    /// Opens a connection, TLS included; the second value is the protocol that was chosen from `protocols`.
    pub(super) fn connect(&self, protocols: &[&[u8]]) -> io::Result<(Stream, Option<Vec<u8>>)> {
        let socket = Socket::new(Domain::for_address(self.address), Type::STREAM, Some(Protocol::TCP))?;
        if matches!(self.address.ip(), IpAddr::V4(v4) if v4.is_loopback()) {
            socket.bind(&SockAddr::from(SocketAddr::from((LOOPBACK_SOURCE, 0))))?;
        }
        socket.connect_timeout(&SockAddr::from(self.address), PATIENCE)?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let Some((config, name)) = &self.tls else { return Ok((Stream::Plain(stream), None)) };
        let mut config = ClientConfig::clone(config);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let connection = ClientConnection::new(Arc::new(config), name.clone()).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        let chosen = stream.conn.alpn_protocol().map(<[u8]>::to_vec);
        Ok((Stream::Tls(Box::new(stream)), chosen))
    }

    /// One request on a connection of its own, and the whole answer.
    pub(super) fn http(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<Answer, String> {
        let (mut stream, _) = self.connect(&[HTTP_1]).map_err(|error| error.to_string())?;
        let headers: Vec<_> = headers.iter().copied().chain([("Connection", "close")]).collect();
        self.request(&mut stream, method, path, &headers, body).map_err(|error| error.to_string())?;
        answer(&mut stream).map(|(answer, _)| answer)
    }

    /// Writes a request.
    pub(super) fn request(
        &self,
        stream: &mut Stream,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> io::Result<()> {
        let mut head = format!("{method} {} HTTP/1.1\r\nHost: {}\r\n", self.path(path), self.authority);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() {
            head.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
        }
        head.push_str("User-Agent: ringhub-doctor\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())?;
        stream.flush()
    }
}

/// Reads a whole answer. Behind the head of an upgrade that was granted come frames: what of them was read already.
pub(super) fn answer(stream: &mut Stream) -> Result<(Answer, Vec<u8>), String> {
    let mut bytes = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    let mut chunk = [0; 16 << 10];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => bytes.extend_from_slice(chunk.get(..length).unwrap_or_default()),
            // Many servers end TLS without a word of farewell; the length of the body tells whether all is there.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Err("no answer in time".to_owned()),
            Err(error) => return Err(error.to_string()),
        }
        if let Some((answer, head)) = Answer::parse_head(&bytes)
            && answer.status == 101
        {
            return Ok((answer, bytes.split_off(head)));
        }
        // Not every proxy ends the connection when it is asked to.
        if announces_its_end(&bytes)
            && let Some(answer) = Answer::parse(&bytes)
        {
            return Ok((answer, Vec::new()));
        }
        if bytes.len() > ANSWER_BYTES_MAX {
            return Err(format!("the answer is longer than {ANSWER_BYTES_MAX} bytes"));
        }
        if Instant::now() > deadline {
            return Err("no whole answer in time".to_owned());
        }
    }
    match Answer::parse(&bytes) {
        Some(answer) => Ok((answer, Vec::new())),
        None if bytes.is_empty() => Err("the connection ended without an answer".to_owned()),
        None => Err("the answer is not HTTP/1.1".to_owned()),
    }
}

fn announces_its_end(bytes: &[u8]) -> bool {
    Answer::parse_head(bytes).is_some_and(|(answer, _)| {
        answer.header("content-length").is_some() || answer.header("transfer-encoding").is_some()
    })
}

fn client_config(ca: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(file) = ca {
        let failed = |error: String| format!("--ca {}: {error}", file.display());
        let certificates = CertificateDer::pem_file_iter(file).map_err(|error| failed(error.to_string()))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| failed(error.to_string()))?;
            roots.add(certificate).map_err(|error| failed(error.to_string()))?;
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| error.to_string())?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

impl Stream {
    /// The socket below.
    pub(super) fn socket(&self) -> &TcpStream {
        match self {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => &stream.sock,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(stream) => stream.read(into),
            Stream::Tls(stream) => stream.read(into),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(stream) => stream.write(from),
            Stream::Tls(stream) => stream.write(from),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(stream) => stream.flush(),
            Stream::Tls(stream) => stream.flush(),
        }
    }
}

impl Answer {
    /// An answer from bytes up to the end of its connection.
    pub(super) fn parse(bytes: &[u8]) -> Option<Answer> {
        let (mut answer, head) = Answer::parse_head(bytes)?;
        let body = bytes.get(head..)?;
        answer.body = match (answer.header("transfer-encoding"), answer.header("content-length")) {
            (Some(_), _) => unchunked(body)?,
            (None, Some(length)) => body.get(..length.parse().ok()?)?.to_vec(),
            (None, None) => body.to_vec(),
        };
        Some(answer)
    }

    /// The head of an answer and its length, once all of it is there.
    pub(super) fn parse_head(bytes: &[u8]) -> Option<(Answer, usize)> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(head) = response.parse(bytes).ok()? else { return None };
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        let headers = response.headers.iter().map(|field| (field.name.to_ascii_lowercase(), text(field.value)));
        Some((Answer { status: response.code?, headers: headers.collect(), body: Vec::new() }, head))
    }

    /// The first header of that name, which is in lower case.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(one, _)| one == name).map(|(_, value)| value.as_str())
    }

    /// The body, where it is JSON.
    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The code of a refusal that the hub itself wrote.
    pub(super) fn refusal(&self) -> Option<String> {
        self.json().pointer("/error/code")?.as_str().map(str::to_owned)
    }
}

/// A chunked body (RFC 9112 §7.1); none where it is cut short.
fn unchunked(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.iter().position(|byte| *byte == b'\n')?;
        let size = std::str::from_utf8(rest.get(..line)?).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        let chunk = rest.get(line.checked_add(1)?..)?;
        body.extend_from_slice(chunk.get(..size)?);
        rest = chunk.get(size.checked_add(2)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endpoint_and_what_is_above_it_are_the_same_way() {
        for (url, authority, websocket, ready) in [
            ("wss://127.0.0.1", "127.0.0.1", "/ws", "/ready"),
            ("https://127.0.0.1:8443/", "127.0.0.1:8443", "/ws", "/ready"),
            ("ws://127.0.0.1:8000/ws", "127.0.0.1:8000", "/ws", "/ready"),
            ("http://127.0.0.1:8000/live/hub/", "127.0.0.1:8000", "/live/hub/ws", "/live/hub/ready"),
            ("wss://127.0.0.1/hub/ws", "127.0.0.1", "/hub/ws", "/hub/ready"),
            ("ws://bob:secret@127.0.0.1/ws?session_id=a", "127.0.0.1", "/ws?session_id=a", "/ready"),
            ("ws://[::1]:8000/ws", "[::1]:8000", "/ws", "/ready"),
        ] {
            let link = Link::new(url, None).expect(url);
            assert_eq!(link.authority(), authority);
            assert_eq!((link.path(&link.websocket_path()).as_str(), link.path("/ready").as_str()), (websocket, ready));
        }
    }

    #[test]
    fn a_url_of_another_kind_is_refused_with_what_is_expected() {
        for url in ["ftp://127.0.0.1", "127.0.0.1:8000", "wss://", "not a url"] {
            let error = Link::new(url, None).expect_err(url);
            assert!(error.starts_with("--through:"), "{error}");
        }
        let error = Link::new("wss://127.0.0.1", Some(Path::new("/no/such/ca.pem"))).expect_err("no file");
        assert!(error.starts_with("--ca /no/such/ca.pem"), "{error}");
    }

    #[test]
    fn answers_are_read_whatever_ends_their_body() {
        let body = |text: &str| Answer::parse(text.as_bytes()).map(|answer| answer.body);
        assert_eq!(body("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"), Some(b"hi".to_vec()));
        assert_eq!(body("HTTP/1.1 200 OK\r\n\r\nto the end"), Some(b"to the end".to_vec()));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
        assert_eq!(body(chunked), Some(b"abcde".to_vec()));
        for cut in [
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi",
            &chunked[..chunked.len() - 12],
            "HTTP/1.1 200",
            "SSH-2.0",
        ] {
            assert_eq!(body(cut), None, "{cut}");
        }
        let huge = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n";
        assert_eq!(body(huge), None);
    }

    #[test]
    fn a_refusal_of_the_hub_is_told_from_a_proxys_page() {
        let hub = "HTTP/1.1 401 Unauthorized\r\n\r\n{\"error\":{\"code\":\"unauthorized\",\"message\":\"\"}}";
        assert_eq!(Answer::parse(hub.as_bytes()).expect("an answer").refusal().as_deref(), Some("unauthorized"));
        let page = "HTTP/1.1 502 Bad Gateway\r\nServer: nginx\r\n\r\n<html>";
        let page = Answer::parse(page.as_bytes()).expect("an answer");
        assert_eq!((page.refusal(), page.header("server")), (None, Some("nginx")));
    }
}
