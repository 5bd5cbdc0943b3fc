//! Which proxy it is, and the line of its configuration that puts a thing right.

use super::link::Answer;

/// A proxy that is known by what it says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Proxy {
    /// nginx, and what is built on it.
    Nginx,
    /// Caddy.
    Caddy,
    /// HAProxy says nothing of itself; neither do others.
    #[default]
    Unknown,
}

/// What can be wrong on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Topic {
    /// The hub is not where the proxy looks for it.
    Hub,
    /// The hub and the proxy do not agree on the PROXY protocol.
    ProxyProtocol,
    /// The headers of the upgrade get lost.
    Upgrade,
    /// Header fields of the upgrade's answer get lost.
    Headers,
    /// Another path reaches the hub than the one that was asked for.
    Path,
    /// Connections that are silent are cut.
    Idle,
    /// Answers are held back.
    Buffering,
    /// The client's address gets lost.
    Address,
    /// The client's own word on its address is passed on.
    Spoofing,
    /// `/metrics` is open to all.
    Metrics,
}

impl Proxy {
    /// Who wrote, or passed on, an answer.
    pub(super) fn of(answer: &Answer) -> Proxy {
        let names = [answer.header("server"), answer.header("via")];
        let names = names.into_iter().flatten().collect::<String>().to_ascii_lowercase();
        if names.contains("nginx") || names.contains("openresty") {
            Proxy::Nginx
        } else if names.contains("caddy") {
            Proxy::Caddy
        } else {
            Proxy::Unknown
        }
    }

    /// The line that puts it right; those of nginx and HAProxy where it is not known which one it is.
    pub(super) fn fix(self, topic: Topic) -> String {
        let (nginx, haproxy, caddy) = match topic {
            Topic::Hub => (
                "proxy_pass http://127.0.0.1:8000;  with the hub's listen.public",
                "server hub 127.0.0.1:8000  with the hub's listen.public",
                "reverse_proxy 127.0.0.1:8000  with the hub's listen.public",
            ),
            Topic::ProxyProtocol => (
                "listen.proxy_protocol = false in the hub's configuration: nginx speaks it in stream {} only",
                "send-proxy-v2 behind the server line, or listen.proxy_protocol = false in the hub's configuration",
                "listen.proxy_protocol = false in the hub's configuration",
            ),
            Topic::Upgrade => (
                "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; \
                 proxy_set_header Connection $connection_upgrade;  as in tuning/nginx.conf",
                "mode http, and no http-request del-header Upgrade",
                "no header_up -Upgrade or header_up -Connection in reverse_proxy",
            ),
            Topic::Headers => (
                "no proxy_hide_header Sec-WebSocket-Protocol;",
                "no http-response del-header Sec-WebSocket-Protocol",
                "no header_down -Sec-WebSocket-Protocol in reverse_proxy",
            ),
            Topic::Path => (
                "proxy_pass http://127.0.0.1:8000;  without a path behind the port, so that paths stay as they are",
                "no http-request set-path or replace-path",
                "no rewrite; handle_path only for a prefix that the hub does not know",
            ),
            Topic::Idle => (
                "proxy_read_timeout 90s; proxy_send_timeout 90s;",
                "timeout tunnel 90s",
                "no stream_timeout in reverse_proxy",
            ),
            Topic::Buffering => (
                "proxy_buffering off; gzip off;",
                "no option http-buffer-request, no filter compression",
                "flush_interval -1",
            ),
            Topic::Address => (
                "proxy_set_header X-Forwarded-For $remote_addr;  and listen.trusted_proxies = [\"127.0.0.1\"] with the \
                 proxy's address in the hub's configuration",
                "option forwardfor, or send-proxy-v2 with listen.proxy_protocol = true;  and \
                 listen.trusted_proxies = [\"127.0.0.1\"] with the proxy's address in the hub's configuration",
                "nothing in Caddy;  listen.trusted_proxies = [\"127.0.0.1\"] with the proxy's address in the hub's \
                 configuration",
            ),
            Topic::Spoofing => (
                "proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header Forwarded \"\";  and in \
                 listen.trusted_proxies proxies only",
                "http-request del-header X-Forwarded-For; http-request del-header Forwarded;  and in \
                 listen.trusted_proxies proxies only",
                "trusted_proxies in reverse_proxy with proxies only, and so in listen.trusted_proxies",
            ),
            Topic::Metrics => (
                "location = /metrics { return 404; }  or listen.internal in the hub's configuration",
                "http-request return status 404 if { path /metrics }  or listen.internal in the hub's configuration",
                "respond /metrics 404  or listen.internal in the hub's configuration",
            ),
        };
        match self {
            Proxy::Nginx => nginx.to_owned(),
            Proxy::Caddy => caddy.to_owned(),
            Proxy::Unknown => format!("nginx: {nginx}\n             HAProxy: {haproxy}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_known_by_what_it_says() {
        let of = |head: &str| {
            Proxy::of(&Answer::parse(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n").as_bytes()).expect("an answer"))
        };
        assert_eq!(of("Server: nginx/1.22.1"), Proxy::Nginx);
        assert_eq!(of("Server: Caddy"), Proxy::Caddy);
        assert_eq!(of("Via: 1.1 Caddy"), Proxy::Caddy);
        assert_eq!(of("Date: today"), Proxy::Unknown);
    }

    #[test]
    fn a_proxy_that_is_not_known_gets_the_lines_of_two() {
        let fix = Proxy::Unknown.fix(Topic::Idle);
        assert!(fix.contains("proxy_read_timeout") && fix.contains("timeout tunnel"), "{fix}");
        assert!(!Proxy::Nginx.fix(Topic::Idle).contains("tunnel"));
    }
}
