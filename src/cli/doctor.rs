//! `ringhub doctor`: what this machine and this configuration lack, or the way to a hub, and the lines that put it right.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use clap::Args;

use super::sources::SourceArgs;
use super::through::{self, ThroughArgs};
use crate::config::advice::proxy_path;
use crate::config::finding::{Finding, Level};
use crate::config::host::{check_host, read_number, read_text};
use crate::config::{Config, Listen};

/// Flags of `ringhub doctor`.
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// Where the configuration comes from.
    #[command(flatten)]
    pub sources: SourceArgs,
    /// The way to a running hub, instead.
    #[command(flatten)]
    pub through: ThroughArgs,
    /// Print one JSON array.
    #[arg(long)]
    pub json: bool,
}

/// How the verdict begins.
const MACHINE: (&str, &str) = ("The hub runs here", "The hub does not run here");
const WAY: (&str, &str) = ("Clients get through", "Clients do not get through well");

/// Prints all findings; fails when one of them would keep the hub from running.
pub fn run(args: DoctorArgs) -> ExitCode {
    let config = match args.sources.load() {
        Ok(config) => config,
        Err(error) => return super::fail(error),
    };
    let (findings, verdict) = match &args.through.through {
        None => (findings(&config), MACHINE),
        Some(url) => match through::findings(url, &args.through, &config) {
            Ok(findings) => (findings, WAY),
            Err(error) => return super::fail(error),
        },
    };
    let text = if args.json { json(&findings) } else { text(&findings, verdict) };
    let printed = super::print(&text);
    match findings.iter().any(|finding| finding.level == Level::Fail) {
        true => ExitCode::FAILURE,
        false => printed,
    }
}

fn findings(config: &Config) -> Vec<Finding> {
    let mut findings = check_host(config);
    findings.extend(config.listen.public.iter().chain(&config.listen.internal).map(listener));
    findings.push(proxy_path(config));
    findings.extend(syn_backlog(config));
    findings.extend(local_ports(config));
    findings.extend(file_max(config));
    findings.extend(clocksource());
    findings.extend(super::fit::findings(config));
    findings
}

fn text(findings: &[Finding], (good, bad): (&str, &str)) -> String {
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let lines = findings.iter().map(|finding| {
        let mark = match finding.level {
            Level::Ok => "ok  ",
            Level::Skip => "skip",
            Level::Warn => "WARN",
            Level::Fail => "FAIL",
        };
        format!("{mark}  {finding}\n")
    });
    let summary = match (count(Level::Fail), count(Level::Warn)) {
        (0, 0) => "All is well.\n".to_owned(),
        (0, warned) => format!("{good}; {warned} to look at.\n"),
        (failed, _) => format!("{bad}; {failed} to put right first.\n"),
    };
    lines.chain([summary]).collect()
}

fn json(findings: &[Finding]) -> String {
    // Findings are plain texts, which always have a form in JSON.
    serde_json::to_string_pretty(findings).map_or_else(|error| format!("\"{error}\"\n"), |json| json + "\n")
}

/// Whether an address could be listened on now.
fn listener(listen: &Listen) -> Finding {
    let check = "listener";
    let result = match listen {
        Listen::Tcp(address) => TcpListener::bind(address).map(drop),
        Listen::Unix(path) => {
            let folder = path.parent().filter(|folder| !folder.is_dir());
            match (folder, UnixStream::connect(path)) {
                (Some(_), _) => Err(io::ErrorKind::NotFound.into()),
                (None, Ok(_)) => Err(io::ErrorKind::AddrInUse.into()),
                (None, Err(_)) => Ok(()),
            }
        }
    };
    let Err(error) = result else {
        return Finding::ok(check, format!("{listen} is free"));
    };
    let what = format!("{listen}: {error}");
    match (error.kind(), listen) {
        (io::ErrorKind::AddrInUse, Listen::Tcp(address)) => Finding::warn(
            check,
            what,
            "a process listens there, perhaps this hub already; another one could not start",
            format!("ss -ltnp 'sport = :{}'", address.port()),
        ),
        (io::ErrorKind::AddrInUse, Listen::Unix(path)) => Finding::warn(
            check,
            what,
            "a process listens there, perhaps this hub already; another one could not start",
            format!("ss -lxp src {}", path.display()),
        ),
        (io::ErrorKind::PermissionDenied, Listen::Tcp(_)) => Finding::fail(
            check,
            what,
            "ports below 1024 need a capability",
            "AmbientCapabilities=CAP_NET_BIND_SERVICE in the systemd unit, or a port from 1024 on",
        ),
        (io::ErrorKind::NotFound, Listen::Unix(path)) => Finding::fail(
            check,
            what,
            "the folder of the socket is missing",
            format!("mkdir -p {}", path.parent().unwrap_or(path).display()),
        ),
        (io::ErrorKind::AddrNotAvailable, _) => {
            Finding::fail(check, what, "this machine does not have the address", "ip -brief address, for those it has")
        }
        _ => Finding::fail(check, what, "the hub could not start", "listen.public = \"127.0.0.1:8000\""),
    }
}

/// Half-open connections the kernel keeps per listener while clients come back all at once.
fn syn_backlog(config: &Config) -> Option<Finding> {
    let check = "half-open queue";
    let granted = read_number("/proc/sys/net/ipv4/tcp_max_syn_backlog")?;
    let backlog = u64::from(config.listen.backlog);
    let cookies = read_number("/proc/sys/net/ipv4/tcp_syncookies").is_some_and(|mode| mode > 0);
    Some(if granted >= backlog || cookies {
        let cookies = if cookies { ", SYN cookies beyond" } else { "" };
        Finding::ok(check, format!("net.ipv4.tcp_max_syn_backlog = {granted}{cookies}"))
    } else {
        Finding::warn(
            check,
            format!("net.ipv4.tcp_max_syn_backlog = {granted} is less than listen.backlog = {backlog}"),
            "connection attempts beyond it are dropped, and tried again after a second",
            format!("sysctl -w net.ipv4.tcp_max_syn_backlog={backlog}"),
        )
    })
}

/// A proxy or a load generator on this machine needs one local port per connection to the same address.
fn local_ports(config: &Config) -> Option<Finding> {
    let check = "local ports";
    let text = read_text("/proc/sys/net/ipv4/ip_local_port_range")?;
    let mut bounds = text.split_whitespace().filter_map(|bound| bound.parse::<u64>().ok());
    let (first, last) = (bounds.next()?, bounds.next()?);
    let ports = (last + 1).saturating_sub(first);
    let tcp = config.listen.public.iter().filter(|listen| matches!(listen, Listen::Tcp(_))).count() as u64;
    let connections = config.connections_max() as u64;
    let what = format!("net.ipv4.ip_local_port_range = {first} {last}");
    Some(if ports.saturating_mul(tcp) >= connections || tcp == 0 {
        Finding::ok(check, what)
    } else {
        Finding::warn(
            check,
            what,
            format!(
                "a proxy on this machine can open {ports} connections to one address, and {connections} are allowed"
            ),
            "sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\", or let the proxy use a unix socket",
        )
    })
}

/// The whole machine's limit of open files.
fn file_max(config: &Config) -> Option<Finding> {
    let check = "open files, machine";
    let granted = read_number("/proc/sys/fs/file-max")?;
    let connections = config.connections_max() as u64;
    Some(if granted >= connections.saturating_mul(2) {
        Finding::ok(check, format!("fs.file-max = {granted}"))
    } else {
        Finding::warn(
            check,
            format!("fs.file-max = {granted}"),
            format!("{connections} connections are allowed, and other processes need files too"),
            format!("sysctl -w fs.file-max={}", connections.saturating_mul(4)),
        )
    })
}

/// The hub reads the clock once per turn; these sources make that a call into slow hardware.
fn clocksource() -> Option<Finding> {
    let check = "clock";
    let source = read_text("/sys/devices/system/clocksource/clocksource0/current_clocksource")?;
    Some(match source.as_str() {
        "hpet" | "acpi_pm" | "jiffies" | "pit" => Finding::warn(
            check,
            format!("the clock is read from {source}"),
            "every look at the time costs about a microsecond",
            "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource",
        ),
        _ => Finding::ok(check, source),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_found_and_a_free_one_is_fine() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("its address");
        assert_eq!(listener(&Listen::Tcp(address)).level, Level::Warn);
        drop(taken);
        assert_eq!(listener(&"127.0.0.1:0".parse().expect("address")).level, Level::Ok);
    }

    #[test]
    fn a_socket_in_a_folder_that_is_not_there_cannot_be_listened_on() {
        let finding = listener(&Listen::Unix("/no/such/folder/hub.sock".into()));
        assert_eq!(finding.level, Level::Fail);
        assert!(finding.fix.contains("mkdir -p /no/such/folder"), "{finding}");
    }

    #[test]
    fn an_address_of_another_machine_cannot_be_listened_on() {
        // 192.0.2.0/24 is kept for documentation (RFC 5737): no machine has it.
        assert_eq!(listener(&"192.0.2.1:8000".parse().expect("address")).level, Level::Fail);
    }

    #[test]
    fn the_report_ends_with_a_verdict() {
        let ok = Finding::ok("a", "fine");
        let warn = Finding::warn("b", "hm", "because", "do this");
        let fail = Finding::fail("c", "no", "because", "do that");
        assert!(text(std::slice::from_ref(&ok), MACHINE).ends_with("All is well.\n"));
        assert!(text(&[ok.clone(), warn.clone()], MACHINE).contains("fix: do this"));
        assert!(
            text(&[ok, warn, fail.clone()], MACHINE).ends_with("The hub does not run here; 1 to put right first.\n")
        );
        let parsed: serde_json::Value = serde_json::from_str(&json(&[fail])).expect("JSON");
        assert_eq!(parsed[0]["level"], "fail");
    }
}
