//! What the service manager is told (`sd_notify(3)`): that the hub serves, reads its configuration again, drains, and lives.
//!
//! The protocol is a datagram of `NAME=value` lines to the socket that `$NOTIFY_SOCKET` names. A hub that no service
//! manager started has none, and everything here does nothing.

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use crate::node::Hub;

/// Signs of life in each interval of the watchdog: two may come late, since a busy machine is no dead hub.
const BEATS_PER_WATCHDOG: u32 = 4;

/// The way to the service manager, if there is one.
#[derive(Clone, Debug, Default)]
pub(super) struct Notifier {
    to: Option<Arc<(UnixDatagram, SocketAddr)>>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// What this process's environment names. A socket that can't be used is an error: the service manager would wait
    /// for a word that never comes, and end the hub.
    pub(super) fn from_env() -> io::Result<Notifier> {
        let text = |name| env::var(name).ok();
        let Some(socket) = text("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Ok(Notifier::default());
        };
        let watchdog = watchdog(text("WATCHDOG_USEC").as_deref(), text("WATCHDOG_PID").as_deref(), std::process::id());
        Notifier::new(&socket, watchdog)
    }

    fn new(socket: &str, watchdog: Option<Duration>) -> io::Result<Notifier> {
        // A name that starts with @ is one of the abstract namespace, where the first byte is zero.
        let address = match socket.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None if socket.starts_with('/') => SocketAddr::from_pathname(socket)?,
            None => return Err(io::Error::new(io::ErrorKind::Unsupported, "expected /path or @name")),
        };
        let datagram = UnixDatagram::unbound()?;
        // The hub goes on without a service manager that reads nothing.
        datagram.set_write_timeout(Some(Duration::from_secs(1)))?;
        Ok(Notifier { to: Some(Arc::new((datagram, address))), watchdog })
    }

    /// The hub serves, or serves again after [`Notifier::reloading`].
    pub(super) fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    /// The configuration is being read again. `Type=notify-reload` compares the time with that of its signal.
    pub(super) fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now_us = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={now_us}\nSTATUS=reading the configuration again"));
    }

    /// The hub drains and may take so long, whatever `TimeoutStopSec` says.
    pub(super) fn stopping(&self, at_most: Duration) {
        let us = at_most.as_micros();
        self.tell(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={us}\nSTATUS=draining"));
    }

    /// Says for as long as the hub runs that it lives, where the service manager wants to know: that is, while all of
    /// its shards answer. A hub with a deaf shard is silent, and started anew.
    pub(super) fn start_beating(&self, hub: &Hub) -> io::Result<()> {
        let Some(watchdog) = self.watchdog else { return Ok(()) };
        let (notifier, hub) = (self.clone(), hub.clone());
        let body = move || {
            // The thread ends with the process: until then somebody waits for its beat.
            loop {
                if hub.is_alive() {
                    notifier.tell("WATCHDOG=1");
                }
                std::thread::sleep(watchdog / BEATS_PER_WATCHDOG);
            }
        };
        std::thread::Builder::new().name("watchdog".to_owned()).spawn(body).map(drop)
    }

    fn tell(&self, lines: &str) {
        let Some((datagram, address)) = self.to.as_deref() else { return };
        if let Err(error) = datagram.send_to_addr(lines.as_bytes(), address) {
            tracing::warn!(%error, "the service manager could not be told: {}", lines.lines().next().unwrap_or_default());
        }
    }
}

/// How often the service manager wants a sign of life of process `me`.
fn watchdog(us: Option<&str>, pid: Option<&str>, me: u32) -> Option<Duration> {
    let for_me = pid.is_none_or(|pid| pid.parse() == Ok(me));
    let us = us?.parse::<u64>().ok().filter(|us| *us > 0)?;
    for_me.then(|| Duration::from_micros(us))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let mut bytes = [0; 512];
        let length = socket.recv(&mut bytes).expect("something to hear");
        String::from_utf8(bytes[..length].to_vec()).expect("text")
    }

    #[test]
    fn each_step_is_told_in_the_words_of_sd_notify() {
        let name = format!("ringhub-notify-{}", std::process::id());
        let socket =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).expect("a name")).expect("a socket");
        let notifier = Notifier::new(&format!("@{name}"), None).expect("a notifier");
        notifier.ready("2 shards");
        assert_eq!(heard(&socket), "READY=1\nSTATUS=2 shards");
        notifier.reloading();
        let reloading = heard(&socket);
        let mut lines = reloading.lines();
        assert_eq!(lines.next(), Some("RELOADING=1"));
        let us = lines.next().and_then(|line| line.strip_prefix("MONOTONIC_USEC=")).expect("the time");
        assert!(us.parse::<u64>().expect("a number") > 0);
        notifier.stopping(Duration::from_secs(12));
        assert_eq!(heard(&socket), "STOPPING=1\nEXTEND_TIMEOUT_USEC=12000000\nSTATUS=draining");
    }

    #[test]
    fn without_a_service_manager_nothing_is_told_and_nothing_fails() {
        Notifier::default().ready("fine");
    }

    #[test]
    fn a_socket_of_another_kind_is_an_error_and_one_that_went_away_is_none() {
        assert!(Notifier::new("vsock:2:1234", None).is_err());
        Notifier::new("/no/such/notify.sock", None).expect("a path").ready("nobody hears it");
    }

    #[test]
    fn the_watchdog_of_another_process_is_not_ours() {
        assert_eq!(watchdog(Some("20000000"), None, 7), Some(Duration::from_secs(20)));
        assert_eq!(watchdog(Some("20000000"), Some("7"), 7), Some(Duration::from_secs(20)));
        assert_eq!(watchdog(Some("20000000"), Some("8"), 7), None);
        for none in [None, Some("0"), Some("soon")] {
            assert_eq!(watchdog(none, None, 7), None);
        }
    }
}
