//! A report as a person reads it: one figure per line, names in one column.

use std::fmt::{self, Write};

use super::plan::Mode;
use super::report::{DELIVERED, READY, RESUMED, Report};
use super::sequence::Disorder;
use super::tally::Percentiles;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = &self.settings;
        let mode = format!("{:?}", s.mode).to_lowercase();
        let pace = match (s.rate_per_s, s.window) {
            (Some(rate), _) if rate > 0.0 => format!(", {} per second (open loop)", number(rate)),
            (_, Some(window)) => format!(", {window} in flight each (closed loop)"),
            _ => String::new(),
        };
        let places = match s.mode {
            Mode::Fanout | Mode::Reconnect => {
                format!(" in {}, {}", counted(s.rooms, "room"), counted(s.publishers, "publisher"))
            }
            Mode::Idle => format!(" in {}", counted(s.rooms, "room")),
            Mode::Echo | Mode::Churn => String::new(),
        };
        row(
            f,
            mode.as_str(),
            &format!("{}{places}{pace}, {} byte bodies", counted(s.connections, "connection"), s.size_bytes),
        )?;
        row(f, "hub", &self.url)?;
        if self.interrupted {
            row(f, "INTERRUPTED", "what was under way when the run was ended counts as missing")?;
        }
        let c = &self.connections;
        let lost = if c.lost > 0 { format!(", {} LOST", c.lost) } else { String::new() };
        row(f, "connections", &format!("{} of {} ready in {:.2} s{lost}", c.ready, c.tried, c.setup_s))?;
        percentiles(f, "connect", c.connect_us.as_ref())?;
        if c.pings_answered > 0 {
            row(f, "pings", &format!("{} answered", c.pings_answered))?;
        }
        let t = &self.traffic;
        if t.sent > 0 {
            let what = if s.mode == Mode::Churn { "cycles" } else { "sent" };
            row(f, what, &format!("{} in {:.2} s, {} per second", t.sent, t.measured_s, number(t.sent_per_s)))?;
            let missing = if t.missing > 0 { format!(", {} MISSING", t.missing) } else { String::new() };
            let per_s = number(t.delivered_per_s);
            let text = format!(
                "{} of {} ({:.3} %), {per_s} per second{missing}",
                t.delivered, t.expected, t.delivered_percent
            );
            row(f, if s.mode == Mode::Churn { "completed" } else { "delivered" }, &text)?;
        }
        if let Some(d) = &self.sequence {
            let text = if *d == Disorder::default() {
                "in order, no gap, no repeat".to_string()
            } else {
                format!(
                    "{} missing in {} gaps, {} repeated, {} out of order, {} told as gap",
                    d.missing, d.gaps, d.repeated, d.out_of_order, d.told
                )
            };
            row(f, "sequence", &text)?;
        }
        if let Some(r) = &self.reconnects {
            let lost = if r.unrecovered > 0 { format!(", {} NOT RECOVERED", r.unrecovered) } else { String::new() };
            let text = format!("{} of {} resumed, {} events replayed{lost}", r.resumed, r.due, r.replayed);
            row(f, "reconnects", &text)?;
            percentiles(f, "  away", r.away_us.as_ref())?;
        }
        percentiles(f, "latency", self.latency_us.as_ref())?;
        percentiles(f, "own lag", self.generator_lag_us.as_ref())?;
        if let Some(p) = &self.probe {
            let text = format!(
                "{} connections, {} per second, {} of {} back",
                p.connections,
                number(p.rate_per_s),
                p.answered,
                p.sent
            );
            row(f, "probe", &text)?;
            percentiles(f, "  latency", p.latency_us.as_ref())?;
            percentiles(f, "  own lag", p.generator_lag_us.as_ref())?;
        }
        if let Some(server) = &self.server {
            let mut text = format!("{:.1} % CPU", server.cpu_percent);
            if let Some(us) = server.cpu_us_per_delivery {
                write!(text, ", {us:.3} µs per delivery")?;
            }
            row(f, &format!("pid {}", server.pid), &text)?;
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let mut text = format!(
                "{:.1} MiB before, {:.1} connected, {:.1} at the end",
                mib(server.rss_before_bytes),
                mib(server.rss_connected_bytes),
                mib(server.rss_end_bytes)
            );
            if let Some(bytes) = server.memory_per_connection_bytes {
                write!(text, ": {:.2} KiB per connection", bytes / 1024.0)?;
            }
            row(f, "memory", &text)?;
        }
        for (i, e) in self.errors.iter().enumerate() {
            row(f, if i == 0 { "errors" } else { "" }, &format!("{:>8}  {}", e.count, e.kind))?;
            if e.example.trim_end() != e.kind {
                row(f, "", &format!("          {}", e.example))?;
            }
            if let Some(hint) = e.hint {
                row(f, "", &format!("          {hint}"))?;
            }
        }
        if let Some(verdict) = &self.verdict {
            for c in &verdict.checks {
                let actual = c.actual.map_or("none".to_string(), |a| format!("{a:.3}"));
                let sign = if matches!(c.what, DELIVERED | READY | RESUMED) { ">=" } else { "<=" };
                let mark = if c.pass { "ok" } else { "FAILED" };
                row(f, "check", &format!("{:<14}{actual:>12} {sign} {:<10}{mark}", c.what, number(c.limit)))?;
            }
            writeln!(f, "{}", if verdict.pass { "PASS" } else { "FAIL" })?;
        }
        Ok(())
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, text: &str) -> fmt::Result {
    writeln!(f, "{name:<12}  {text}")
}

fn percentiles(f: &mut fmt::Formatter<'_>, name: &str, p: Option<&Percentiles>) -> fmt::Result {
    let Some(p) = p else { return Ok(()) };
    let cells: [(&str, f64); 5] = [("p50", p.p50), ("p90", p.p90), ("p99", p.p99), ("p99.9", p.p99_9), ("max", p.max)];
    let text: Vec<String> = cells.iter().map(|(name, us)| format!("{name} {:>9}", time(*us))).collect();
    row(f, name, &text.join("   "))
}

/// A time in the unit that fits it.
fn time(us: f64) -> String {
    match us {
        us if us < 1e3 => format!("{us:.0} µs"),
        us if us < 1e5 => format!("{:.2} ms", us / 1e3),
        us if us < 1e6 => format!("{:.0} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

/// A figure without digits that mean nothing.
fn number(value: f64) -> String {
    if value >= 100.0 || value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_the_unit_that_fits() {
        let written: Vec<String> = [12.0, 1234.0, 123_456.0, 2_500_000.0].map(time).into();
        assert_eq!(written, ["12 µs", "1.23 ms", "123 ms", "2.50 s"]);
    }
}
