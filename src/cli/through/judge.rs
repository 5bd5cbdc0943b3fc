//! What follows from what was met on the way: pure judgements, so that each can be tested without a proxy.

use std::net::IpAddr;
use std::time::Duration;

use super::fix::{Proxy, Topic};
use super::link::Answer;
use crate::config::finding::Finding;

/// An address that the probe claims to come from; kept for documentation (RFC 5737), so that nobody has it.
pub(super) const CLAIMED: &str = "192.0.2.66";

const NOT_UNDERSTOOD: &str = "the hub does not understand what the proxy sends ahead of the request, or misses it";

/// How a silence ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Silence {
    /// The hub's ping came through, after so long without anything.
    Pinged(Duration),
    /// Nothing came, and the connection still worked afterwards.
    Held(Duration),
    /// The connection was cut, with these words.
    Cut(Duration, String),
}

/// `GET /ready`.
pub(super) fn ready(answer: &Answer, proxy: Proxy) -> Finding {
    let check = "ready";
    let word = answer.json().get("status").and_then(|word| word.as_str()).map(str::to_owned);
    let what = format!("/ready answers {}", answer.status);
    match (answer.status, word, answer.refusal()) {
        (200, Some(word), _) => Finding::ok(check, format!("/ready answers 200, {word}")),
        (503, Some(word), _) => Finding::warn(
            check,
            format!("{what}, {word}"),
            "the proxy is fine, the hub takes no traffic now",
            "ringhub doctor, beside the hub",
        ),
        (502..=504, _, None) => {
            Finding::fail(check, what, "the proxy is there and does not reach the hub", proxy.fix(Topic::Hub))
        }
        (301 | 302 | 307 | 308, _, _) => {
            let to = answer.header("location").unwrap_or("nowhere");
            Finding::fail(
                check,
                format!("{what}, to {to}"),
                "WebSocket clients follow no redirection",
                "--through with the address that it leads to, and clients likewise",
            )
        }
        (400, _, Some(_)) => Finding::fail(check, what, NOT_UNDERSTOOD, proxy.fix(Topic::ProxyProtocol)),
        (404, _, Some(_)) => Finding::ok(check, "the hub serves no HTTP API on this way (listen.internal)"),
        _ => Finding::warn(
            check,
            what,
            "a load balancer that asks there can't tell whether the hub takes traffic",
            proxy.fix(Topic::Path),
        ),
    }
}

/// An upgrade that was answered by something else than 101.
pub(super) fn refused(answer: &Answer, proxy: Proxy, has_token: bool) -> Finding {
    let check = "upgrade";
    let code = answer.refusal();
    let what = format!("/ws answers {} {}", answer.status, code.as_deref().unwrap_or_default());
    let what = what.trim_end().to_owned();
    match (answer.status, code) {
        (400, Some(code)) if code == "bad_request" => {
            Finding::fail(check, what, NOT_UNDERSTOOD, proxy.fix(Topic::ProxyProtocol))
        }
        (400 | 426, Some(_)) => {
            let why = "the request reaches the hub, but not as an upgrade: its headers are lost on the way";
            Finding::fail(check, what, why, proxy.fix(Topic::Upgrade))
        }
        (401, Some(_)) if has_token => Finding::fail(
            check,
            what,
            "the upgrade reaches the hub, the token does not or is not the hub's",
            "a token of this hub: ringhub token --config FILE --sub doctor --role admin",
        ),
        (401, Some(_)) => Finding::warn(
            check,
            what,
            "the upgrade reaches the hub; what lies behind needs a token",
            "--token, RINGHUB_TOKEN, or --config with the hub's file; one of an administrator finds most",
        ),
        (403, Some(_)) => Finding::fail(
            check,
            what,
            "the upgrade reaches the hub, which does not let this token in",
            "a token with websocket:connect",
        ),
        (429 | 503, Some(_)) => Finding::warn(
            check,
            what,
            "the upgrade reaches the hub, which is full, draining, or counts this address too often",
            "ringhub doctor, beside the hub; later again",
        ),
        (502..=504, None) => {
            Finding::fail(check, what, "the proxy is there and does not reach the hub", proxy.fix(Topic::Hub))
        }
        (404, _) => Finding::fail(check, what, "another path reaches the hub, or none", proxy.fix(Topic::Path)),
        _ => Finding::fail(check, what, "this is not the hub's answer to an upgrade", proxy.fix(Topic::Upgrade)),
    }
}

/// The header fields of an upgrade that was granted.
pub(super) fn granted(answer: &Answer, proxy: Proxy) -> Finding {
    match answer.header("sec-websocket-extensions") {
        None => Finding::ok("upgrade", "headers and subprotocol are passed"),
        Some(extensions) => Finding::fail(
            "upgrade",
            format!("the answer has the extension {extensions:?}, which nobody asked for"),
            "clients have to fail such a connection (RFC 6455, 4.1)",
            proxy.fix(Topic::Headers),
        ),
    }
}

/// How a silence ended, with the hub pinging after `interval`.
pub(super) fn silence(silence: &Silence, interval: Duration, proxy: Proxy) -> Finding {
    let check = "idle timeout";
    match silence {
        Silence::Pinged(after) => {
            Finding::ok(check, format!("{} s of silence are borne, then the hub's ping comes through", after.as_secs()))
        }
        Silence::Held(after) if *after < interval => Finding::warn(
            check,
            format!("{} s of silence are borne", after.as_secs()),
            format!(
                "the hub breaks a silence after {} s (heartbeat.interval_s); whether it lasts so long is not known",
                interval.as_secs()
            ),
            format!("--silence-s {}", interval.as_secs() + 5),
        ),
        Silence::Held(after) => Finding::warn(
            check,
            format!("no ping of the hub in {} s of silence", after.as_secs()),
            format!("it was due after {} s; something on the way answers in the client's place", interval.as_secs()),
            proxy.fix(Topic::Idle),
        ),
        Silence::Cut(after, how) => Finding::fail(
            check,
            format!("cut after {} s of silence: {how}", after.as_secs()),
            format!(
                "the hub breaks a silence after {} s (heartbeat.interval_s): quiet clients lose their connection again and again",
                interval.as_secs()
            ),
            format!(
                "{}\n             or heartbeat.interval_s = {} in the hub's configuration",
                proxy.fix(Topic::Idle),
                (after.as_secs() / 2).max(1)
            ),
        ),
    }
}

/// Where the hub thinks that a client with the address `own` comes from.
pub(super) fn address(counted: Option<&str>, own: IpAddr, proxy: Proxy) -> Finding {
    let check = "client address";
    let Some(counted) = counted else {
        let why = "the hub counts no addresses: limits.connections_per_address_max and limits.connects_per_s are 0";
        return Finding::skipped(check, why);
    };
    let what = format!("the hub counts this client as {counted}; its address is {own}");
    match counted.parse::<IpAddr>().map(|address| address.to_canonical()) {
        _ if counted == CLAIMED => Finding::fail(
            check,
            format!("the hub believes the client, which claims to be {CLAIMED}"),
            "whoever writes another X-Forwarded-For each time escapes every limit per address",
            proxy.fix(Topic::Spoofing),
        ),
        Ok(address) if address == own.to_canonical() => Finding::ok(check, format!("{own} arrives")),
        Ok(address) if !is_private(address) && is_private(own.to_canonical()) => {
            Finding::ok(check, format!("{address} arrives, behind which {own} seems to be"))
        }
        _ => Finding::fail(
            check,
            what,
            "so do all others behind this proxy, and share one address's limits (unless an address translation stands before it)",
            proxy.fix(Topic::Address),
        ),
    }
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_unspecified(),
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified(),
    }
}

/// `GET /metrics` without a token.
pub(super) fn metrics(answer: &Answer, proxy: Proxy) -> Finding {
    match answer.status {
        200 => Finding::warn(
            "metrics",
            "/metrics is open to everyone on this way",
            "it names no user and no room, and yet says how much is going on",
            proxy.fix(Topic::Metrics),
        ),
        status => Finding::ok("metrics", format!("/metrics is closed on this way ({status})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Level;

    fn answer(status: u16, head: &str, body: &str) -> Answer {
        Answer::parse(format!("HTTP/1.1 {status} X\r\n{head}\r\n{body}").as_bytes()).expect("an answer")
    }

    fn hubs(status: u16, code: &str) -> Answer {
        answer(status, "", &format!("{{\"error\":{{\"code\":{code:?},\"message\":\"\"}}}}"))
    }

    #[test]
    fn readiness_tells_a_proxy_without_a_hub_from_a_hub_that_is_not_ready() {
        let level = |answer: &Answer| ready(answer, Proxy::Nginx).level;
        assert_eq!(level(&answer(200, "", "{\"status\":\"ok\"}")), Level::Ok);
        assert_eq!(level(&answer(503, "", "{\"status\":\"draining\"}")), Level::Warn);
        assert_eq!(level(&hubs(404, "not_found")), Level::Ok);
        assert_eq!(level(&answer(404, "", "<html>")), Level::Warn);
        let down = ready(&answer(502, "Server: nginx\r\n", "<html>"), Proxy::Nginx);
        assert_eq!(down.level, Level::Fail);
        assert!(down.fix.contains("proxy_pass") && !down.fix.contains("haproxy"), "{down}");
        let moved = ready(&answer(301, "Location: https://hub.example\r\n", ""), Proxy::Unknown);
        assert!(moved.what.contains("https://hub.example") && moved.level == Level::Fail, "{moved}");
    }

    #[test]
    fn a_refused_upgrade_says_on_which_side_the_reason_is() {
        let finding = |answer: &Answer| refused(answer, Proxy::Nginx, false);
        assert!(finding(&hubs(400, "bad_upgrade")).fix.contains("$http_upgrade"));
        assert!(finding(&hubs(400, "bad_request")).fix.contains("listen.proxy_protocol"));
        assert!(ready(&hubs(400, "bad_request"), Proxy::Unknown).fix.contains("send-proxy-v2"));
        assert_eq!(finding(&hubs(401, "unauthorized")).level, Level::Warn);
        assert_eq!(refused(&hubs(401, "unauthorized"), Proxy::Nginx, true).level, Level::Fail);
        assert_eq!(finding(&hubs(503, "unavailable")).level, Level::Warn);
        assert!(finding(&answer(502, "", "<html>")).why.contains("does not reach"));
        assert!(finding(&answer(404, "", "<html>")).fix.contains("without a path"));
        assert_eq!(finding(&answer(200, "", "<html>welcome")).level, Level::Fail);
    }

    #[test]
    fn an_extension_that_nobody_asked_for_is_found() {
        assert_eq!(granted(&answer(101, "", ""), Proxy::Unknown).level, Level::Ok);
        let found = granted(&answer(101, "Sec-WebSocket-Extensions: permessage-deflate\r\n", ""), Proxy::Unknown);
        assert_eq!(found.level, Level::Fail);
    }

    #[test]
    fn a_cut_silence_names_the_timeout_and_the_heartbeat() {
        let of = |one| silence(&one, Duration::from_secs(30), Proxy::Nginx);
        assert_eq!(of(Silence::Pinged(Duration::from_secs(30))).level, Level::Ok);
        let short = of(Silence::Held(Duration::from_secs(10)));
        assert!(short.level == Level::Warn && short.fix.contains("--silence-s 35"), "{short}");
        assert_eq!(of(Silence::Held(Duration::from_secs(45))).level, Level::Warn);
        let cut = of(Silence::Cut(Duration::from_secs(20), "lost".to_owned()));
        assert_eq!(cut.level, Level::Fail);
        assert!(cut.fix.contains("proxy_read_timeout") && cut.fix.contains("heartbeat.interval_s = 10"), "{cut}");
    }

    #[test]
    fn the_address_is_the_clients_own_or_there_is_something_to_fix() {
        let own: IpAddr = "127.45.0.9".parse().expect("an address");
        let level = |counted| address(counted, own, Proxy::Unknown).level;
        assert_eq!(level(Some("127.45.0.9")), Level::Ok);
        assert_eq!(level(Some("127.0.0.1")), Level::Fail);
        assert_eq!(level(Some(CLAIMED)), Level::Fail);
        assert_eq!(level(Some("8.8.8.8")), Level::Ok, "behind address translation");
        assert_eq!(level(None), Level::Skip);
        let mapped: IpAddr = "::ffff:10.0.0.7".parse().expect("an address");
        assert_eq!(address(Some("10.0.0.7"), mapped, Proxy::Unknown).level, Level::Ok);
    }

    #[test]
    fn open_figures_are_pointed_out() {
        assert_eq!(metrics(&answer(200, "", "ringhub_connections 1"), Proxy::Unknown).level, Level::Warn);
        assert_eq!(metrics(&answer(404, "", ""), Proxy::Unknown).level, Level::Ok);
    }
}
