//! A request's head: read as it comes, judged, and given to whoever serves what it asks for.

use std::net::{IpAddr, Ipv4Addr};

use super::approval::request_told;
use super::connection::{HeadBuffer, Phase};
use super::request::counted_address;
use super::state::{Action, State};
use crate::control::ConnectionOrigin;
use crate::control::hooks::RequestTold;
use crate::ring::ConnKey;
use crate::session::handshake::Request;
use crate::wire::forwarded;
use crate::wire::http::{Head, parse_head};
use crate::wire::proxy;
use crate::wire::refusal::Refusal;

impl State {
    /// More of a request's head.
    pub fn head(&mut self, conn: ConnKey, bytes: &mut [u8]) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        let Phase::Head(head) = &mut connection.phase else { return };
        let mut head = std::mem::take(head.as_mut());
        // Usually the whole head comes at once and is read where it is.
        let mut gathered = std::mem::take(&mut head.bytes);
        let all: &mut [u8] = if gathered.is_empty() {
            bytes
        } else {
            gathered.extend_from_slice(bytes);
            &mut gathered
        };
        let skip = match self.proxy_header(&mut head, all) {
            Ok(Some(skip)) => skip,
            Ok(None) => {
                head.bytes = all.to_vec();
                self.keep_head(conn, head);
                return;
            }
            Err(refusal) => return self.refuse(conn, &refusal),
        };
        let all = all.get_mut(skip..).unwrap_or_default();
        let settings = self.settings.clone();
        let parsed = match parse_head(all, settings.config.limits.header_bytes_max) {
            Ok(Some(parsed)) => parsed,
            Ok(None) => {
                head.bytes = all.to_vec();
                self.keep_head(conn, head);
                return;
            }
            Err(refusal) => return self.refuse(conn, &refusal),
        };
        let head_bytes = parsed.bytes;
        let mut span = self.admission_span(&parsed);
        let decision = settings.gate().decide(&parsed, self.now);
        match decision {
            Ok(Request::Admit(admit)) => {
                let early = all.get(head_bytes..).unwrap_or_default().to_vec();
                let head = self.head_from(&parsed, head.origin);
                let beside = (self.told_of(&parsed, &head), span.take());
                self.admit(conn, *admit, counted_address(&head.origin), beside, early);
            }
            Ok(Request::Engine(asked)) => {
                let head = self.head_from(&parsed, head.origin);
                let told = self.told_of(&parsed, &head);
                drop(parsed);
                self.open_engine(conn, *asked, &head, told, all.get_mut(head_bytes..).unwrap_or_default());
            }
            Ok(Request::Probe(asked)) => {
                drop(parsed);
                match self.shard_of_probe(&asked) {
                    Some(shard) => {
                        head.bytes = all.to_vec();
                        head.to_shard = Some(shard);
                        self.hand_over(conn, head);
                    }
                    None => self.open_probe(conn, asked, all.get_mut(head_bytes..).unwrap_or_default()),
                }
            }
            Ok(Request::EngineRefused(error)) => self.refuse_engine(conn, error),
            Ok(Request::HandOver) => {
                head.bytes = all.to_vec();
                self.hand_over(conn, head);
            }
            Err(refusal) => {
                self.end_span(span, refusal.code, refusal.status);
                self.refuse(conn, &refusal);
            }
        }
    }

    /// A request's head with its client's address, as far as proxies that are trusted tell it. Of this request only: a proxy
    /// may send those of other clients over the same connection.
    pub(super) fn head_from(&self, parsed: &Head<'_>, origin: ConnectionOrigin) -> HeadBuffer {
        let proxies = &self.settings.config.listen.trusted_proxies;
        let peer = origin.peer.map(|peer| peer.ip());
        let mut client = origin.client;
        if client.is_none() && proxies.trusts(peer) {
            // A peer on a unix socket has no address: one that no client can have stands for it.
            let start = peer.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            let trusts = |address: IpAddr| address.is_unspecified() || proxies.trusts(Some(address));
            let told = forwarded::client_address(parsed, start, trusts);
            client = (!told.is_unspecified()).then_some(told);
        }
        HeadBuffer { origin: ConnectionOrigin { client, ..origin }, ..HeadBuffer::default() }
    }

    /// What the backend is told of a request, where it is asked.
    pub(super) fn told_of(&self, parsed: &Head<'_>, head: &HeadBuffer) -> Option<Box<RequestTold>> {
        self.hooks.desk.is_some().then(|| request_told(parsed, head, &self.settings.config))
    }

    fn keep_head(&mut self, conn: ConnKey, head: HeadBuffer) {
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.phase = Phase::Head(Box::new(head));
        }
    }

    /// Reads the PROXY header where one is due; how many bytes it took, none where it is incomplete.
    fn proxy_header(&mut self, head: &mut HeadBuffer, bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        if !head.proxy_header {
            return Ok(Some(0));
        }
        match proxy::parse(bytes) {
            proxy::Proxy::Incomplete => Ok(None),
            proxy::Proxy::Header { source, bytes } => {
                head.proxy_header = false;
                // LOCAL and UNKNOWN say nothing about a client: the proxy speaks for itself.
                if let Some(source) = source {
                    head.origin.client = Some(source.ip());
                }
                Ok(Some(bytes))
            }
            proxy::Proxy::Invalid(_) => Err(Refusal::bad_request("a PROXY header was expected from this proxy")),
        }
    }

    fn hand_over(&mut self, conn: ConnKey, head: HeadBuffer) {
        if self.inbox.is_none() && head.to_shard.is_none() {
            return self.refuse(conn, &Refusal::not_found());
        }
        let due_ms = self.now_ms() + 5_000;
        let Some(connection) = self.connections.get_mut(conn) else { return };
        connection.phase = Phase::HandOver(Box::new(head));
        connection.due_ms = due_ms;
        self.timers.schedule(conn, &mut connection.alarm, due_ms);
        self.actions.push(Action::CancelReceive(conn, connection.socket));
    }
}
