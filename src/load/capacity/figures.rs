//! What things cost, as a calibration has measured it, or as it was measured elsewhere.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use serde::{Deserialize, Serialize};

/// Changes when figures get another meaning: files of another version are not read.
pub(super) const FORMAT: u32 = 1;

/// Bytes of the events' data in the runs that [`Figures::deliveries`] are of.
pub(super) const SIZE_BYTES: u32 = 128;

/// Costs on one host. CPU is that of the hub's whole process, on one core.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Figures {
    pub(super) format: u32,
    pub(super) host: Host,
    /// By the events that one send carries, ascending; data of [`SIZE_BYTES`].
    pub(super) deliveries: Vec<Delivery>,
    /// More CPU per delivery for each byte beyond [`SIZE_BYTES`].
    pub(super) delivery_ns_per_byte: f64,
    /// CPU per event before its first delivery: received, checked, numbered, encoded, logged.
    pub(super) publish_us: f64,
    /// CPU per connection: accepted, upgraded, its token checked, greeted, subscribed to one room, closed.
    pub(super) connect_us: f64,
    /// CPU per ping and its answer.
    pub(super) heartbeat_us: f64,
    /// Memory of the process before the first connection.
    pub(super) base_bytes: f64,
    /// Memory of the process per idle connection without a room.
    pub(super) connection_bytes: f64,
    /// Memory per subscription.
    pub(super) membership_bytes: f64,
    /// Memory of the kernel per connection: a socket's buffers are the load's, not in it.
    pub(super) kernel_bytes: f64,
    /// Memory of a logged event beyond its data.
    pub(super) log_bytes: f64,
}

/// CPU of one delivery where a send carries so many events.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Delivery {
    pub(super) events: u32,
    pub(super) cpu_us: f64,
}

/// Where and when it was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Host {
    /// The processor's name, as the kernel tells it.
    pub(super) cpu: String,
    /// Processors that the process might use.
    pub(super) cores: usize,
    pub(super) kernel: String,
    /// The version of Ringhub.
    pub(super) ringhub: String,
    /// RFC 3339.
    pub(super) date: String,
    /// The load had no processor of its own: the figures are too high.
    pub(super) shared_core: bool,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub(super) enum FiguresError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is no calibration: {source}", path.display())]
    Syntax { path: PathBuf, source: serde_json::Error },
    #[error(
        "{} is a calibration of another format ({found}, this version knows {FORMAT}): make it anew with `ringhub bench --calibrate`",
        path.display()
    )]
    Format { path: PathBuf, found: u32 },
    #[error("{} has figures that nothing can cost: {what}", path.display())]
    Nonsense { path: PathBuf, what: &'static str },
}

impl Figures {
    /// Of an AMD EPYC (Zen 4, 2 cores of a virtual machine, Linux 6.18), for hosts that were not calibrated.
    pub(super) fn built_in() -> Figures {
        Figures {
            format: FORMAT,
            host: Host {
                cpu: "AMD EPYC (Zen 4), 2 virtual cores".to_owned(),
                cores: 2,
                kernel: "6.18".to_owned(),
                ringhub: env!("CARGO_PKG_VERSION").to_owned(),
                date: "2026-11-27T00:00:00Z".to_owned(),
                shared_core: false,
            },
            deliveries: [(1, 3.2), (16, 0.35), (64, 0.13)].map(|(events, cpu_us)| Delivery { events, cpu_us }).to_vec(),
            delivery_ns_per_byte: 0.19,
            publish_us: 10.0,
            connect_us: 110.0,
            heartbeat_us: 7.0,
            base_bytes: 25e6,
            connection_bytes: 700.0,
            membership_bytes: 45.0,
            kernel_bytes: 3904.0,
            log_bytes: 263.0,
        }
    }

    pub(super) fn read(path: &Path) -> Result<Figures, FiguresError> {
        let text = fs::read_to_string(path).map_err(|source| FiguresError::Io { path: path.to_path_buf(), source })?;
        Figures::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Figures, FiguresError> {
        let path = || path.to_path_buf();
        let syntax = |source| FiguresError::Syntax { path: path(), source };
        let value: serde_json::Value = serde_json::from_str(text).map_err(syntax)?;
        // Looked at first: a file of another format may lack what this one has.
        let found = value.get("format").and_then(serde_json::Value::as_u64);
        if let Some(found) = found.filter(|found| *found != u64::from(FORMAT)) {
            return Err(FiguresError::Format { path: path(), found: u32::try_from(found).unwrap_or(u32::MAX) });
        }
        let figures: Figures = serde_json::from_value(value).map_err(syntax)?;
        match figures.nonsense() {
            Some(what) => Err(FiguresError::Nonsense { path: path(), what }),
            None => Ok(figures),
        }
    }

    /// What can't be, in a file that somebody may have edited.
    fn nonsense(&self) -> Option<&'static str> {
        let positive = |figure: f64| figure.is_finite() && figure > 0.0;
        let ascending = self.deliveries.windows(2).all(|pair| pair[0].events < pair[1].events);
        let deliveries = self.deliveries.iter().all(|delivery| delivery.events > 0 && positive(delivery.cpu_us));
        if self.deliveries.is_empty() || !ascending || !deliveries {
            return Some("deliveries");
        }
        let not_negative = |figure: f64| figure.is_finite() && figure >= 0.0;
        [
            ("delivery_ns_per_byte", not_negative(self.delivery_ns_per_byte)),
            ("publish_us", positive(self.publish_us)),
            ("connect_us", positive(self.connect_us)),
            ("heartbeat_us", positive(self.heartbeat_us)),
            ("base_bytes", positive(self.base_bytes)),
            ("connection_bytes", positive(self.connection_bytes)),
            ("membership_bytes", not_negative(self.membership_bytes)),
            ("kernel_bytes", not_negative(self.kernel_bytes)),
            ("log_bytes", positive(self.log_bytes)),
        ]
        .into_iter()
        .find(|(_, sound)| !sound)
        .map(|(name, _)| name)
    }

    /// Writes the file whole or not at all.
    pub(super) fn write(&self, path: &Path) -> Result<(), FiguresError> {
        let failed = |source| FiguresError::Io { path: path.to_path_buf(), source };
        prepare(path)?;
        let text = serde_json::to_string_pretty(self).map_err(|error| failed(error.into()))?;
        let unfinished = unfinished(path);
        fs::write(&unfinished, text + "\n").map_err(failed)?;
        fs::rename(&unfinished, path).map_err(failed)
    }

    /// CPU of one delivery in microseconds, where a send carries `events` of `size` bytes. Between measured points on the
    /// line through the costs per send, below and beyond them at the nearest.
    pub(super) fn delivery_us(&self, events: u32, size: u32) -> f64 {
        let more = f64::from(size.saturating_sub(SIZE_BYTES)) * self.delivery_ns_per_byte / 1e3;
        let per_send = |delivery: &Delivery| delivery.cpu_us * f64::from(delivery.events);
        let above = self.deliveries.iter().position(|delivery| delivery.events >= events);
        let base = match above
            .and_then(|above| Some((self.deliveries.get(above.checked_sub(1)?)?, &self.deliveries[above])))
        {
            Some((low, high)) => {
                let part = f64::from(events - low.events) / f64::from(high.events - low.events);
                (per_send(low) + part * (per_send(high) - per_send(low))) / f64::from(events)
            }
            None if above.is_some() => self.deliveries.first().map_or(0.0, |first| first.cpu_us),
            None => self.deliveries.last().map_or(0.0, |last| last.cpu_us),
        };
        base + more
    }
}

/// Makes the folder, and sees that a file can be written there.
pub(super) fn prepare(path: &Path) -> Result<(), FiguresError> {
    let failed = |source| FiguresError::Io { path: path.to_path_buf(), source };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let unfinished = unfinished(path);
    fs::File::create(&unfinished).and_then(|_| fs::remove_file(&unfinished)).map_err(failed)
}

fn unfinished(path: &Path) -> PathBuf {
    path.with_extension("unfinished")
}

/// Where a calibration is kept when no other place is named: `$XDG_STATE_HOME/ringhub/calibration.json`, or below
/// `~/.local/state`. None for a process without a home.
pub(super) fn usual_path() -> Option<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("ringhub/calibration.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_as_they_were_written() {
        let path = env::temp_dir().join(format!("ringhub-calibration-{}/a/b.json", std::process::id()));
        let figures = Figures::built_in();
        figures.write(&path).expect("written");
        assert_eq!(Figures::read(&path).expect("read"), figures);
        fs::remove_dir_all(path.parent().and_then(Path::parent).expect("two folders")).expect("removed");
    }

    #[test]
    fn files_that_are_no_calibration_are_refused_with_what_is_wrong() {
        let refused = |text: &str| Figures::parse(text, Path::new("here.json")).expect_err("refused").to_string();
        assert!(refused("{").contains("here.json is no calibration"));
        assert!(refused(r#"{"format":7}"#).contains("another format (7"));
        assert!(refused(r#"{"format":1}"#).contains("missing field"));
        let with = |change: &dyn Fn(&mut Figures)| {
            let mut figures = Figures::built_in();
            change(&mut figures);
            refused(&serde_json::to_string(&figures).expect("JSON"))
        };
        assert!(with(&|figures| figures.publish_us = 0.0).contains("nothing can cost: publish_us"));
        assert!(with(&|figures| figures.log_bytes = -1.0).contains("log_bytes"));
        assert!(with(&|figures| figures.deliveries.clear()).contains("deliveries"));
        assert!(with(&|figures| figures.deliveries.reverse()).contains("deliveries"));
    }

    #[test]
    fn a_delivery_costs_less_the_more_events_a_send_carries() {
        let mut figures = Figures::built_in();
        figures.deliveries = vec![Delivery { events: 1, cpu_us: 3.0 }, Delivery { events: 11, cpu_us: 0.5 }];
        assert_eq!(figures.delivery_us(1, 128), 3.0);
        assert_eq!(figures.delivery_us(11, 128), 0.5);
        // Sends cost 3.0 and 5.5 microseconds: half way, with six events, 4.25.
        assert!((figures.delivery_us(6, 128) - 4.25 / 6.0).abs() < 1e-9);
        assert_eq!(figures.delivery_us(1000, 128), 0.5);
        figures.deliveries.remove(0);
        assert_eq!(figures.delivery_us(1, 10), 0.5, "below the first point, and below its size");
    }

    #[test]
    fn larger_events_cost_more_by_the_byte() {
        let figures = Figures { delivery_ns_per_byte: 2.0, ..Figures::built_in() };
        let more = figures.delivery_us(16, 1128) - figures.delivery_us(16, 128);
        assert!((more - 2.0).abs() < 1e-9, "a thousand bytes at two nanoseconds each");
    }
}
