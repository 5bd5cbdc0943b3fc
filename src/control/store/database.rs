//! The file: its tables, what is written into them and read from them. All SQL is here.
//!
//! Write-ahead log, so that whoever reads the file with other tools does not hold the hub up; `synchronous = NORMAL`: a
//! power cut may cost the last seconds, and never the file. Beside a failing disk a file can also be taken away under our
//! hands, in which case SQLite goes on writing into what no name leads to any more: every commit is followed by a look
//! whether the names still lead to our files.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior, params, params_from_iter};

use super::ledger::{Batch, ConnectionReport};
use super::records::{Aggregate, AlertRecord, COLUMNS, Sample};

/// The version of the tables, kept in `user_version`. A file of a newer one is refused.
const VERSION: i64 = 1;
/// `application_id`: "RING".
const APPLICATION: i64 = 0x5249_4e47;
/// SQLite's default, on which `store.bytes_max` is counted.
const PAGE_BYTES: u64 = 4096;
/// What is deleted in one transaction: some 10 ms of work.
const DELETED_MAX: i64 = 2000;
/// So much of `store.bytes_max` is kept free: more than a batch takes whose names are as long as they may be. Beyond it the
/// oldest connections give way, whatever their age.
const RESERVE_BYTES: u64 = 2 << 20;
/// How often that is done at a time to make room.
const MAKE_ROOM_MAX: usize = 16;
/// What the log beside the file may have at least: it is emptied into the file at 4 MiB, unless somebody reads there.
const WAL_BYTES: u64 = 64 << 20;
/// A minute.
const MINUTE_MS: i64 = 60_000;

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A newer hub has written it.
    #[error(
        "{path} is of version {found}, this hub knows up to version {VERSION}: start the newer hub, or name another file"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
    /// It is something else's.
    #[error("{0} is a database of another program: name another file")]
    Foreign(PathBuf),
    /// It is no database, or a broken one.
    #[error(
        "{path} is no sound SQLite database ({error}): move it away, together with its -wal and -shm, and the hub starts a new one"
    )]
    Broken {
        /// The file.
        path: PathBuf,
        /// SQLite's answer.
        error: rusqlite::Error,
    },
    /// The system does not let us.
    #[error("{path} can't be opened: {error}; its folder has to exist and to be writable")]
    Io {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        error: io::Error,
    },
    /// SQLite does not.
    #[error("{path} can't be opened: {error}")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// SQLite's answer.
        error: rusqlite::Error,
    },
}

/// Why something could not be written or read.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("{0}")]
    Open(#[from] OpenError),
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("the file was taken away")]
    Gone,
    #[error("another program reads the file for so long that the log beside it has no bound; end its transaction")]
    Held,
}

impl StoreError {
    /// What it was, of a fixed set of words.
    pub(super) fn word(&self) -> &'static str {
        let error = match self {
            StoreError::Gone => return "gone",
            StoreError::Held => return "full",
            StoreError::Open(OpenError::Io { .. }) => return "io",
            StoreError::Open(OpenError::Newer { .. } | OpenError::Foreign(_)) => return "foreign",
            StoreError::Open(OpenError::Broken { .. }) => return "corrupt",
            StoreError::Open(OpenError::Sqlite { error, .. }) | StoreError::Sqlite(error) => error,
        };
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => "locked",
            Some(ErrorCode::DiskFull) => "full",
            Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => "io",
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => "read_only",
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => "corrupt",
            _ => "other",
        }
    }

    /// Whether it is about the rows and not about the disk, so that trying again can't help.
    pub(super) fn is_of_the_rows(&self) -> bool {
        let StoreError::Sqlite(error) = self else { return false };
        matches!(
            error.sqlite_error_code(),
            Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig)
        )
    }
}

/// How long what is in the tables is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Connections, after their end.
    pub connections_ms: u64,
    /// Samples as they came.
    pub samples_ms: u64,
    /// Samples put together by the minute.
    pub minutes_ms: u64,
    /// Changes of alerts.
    pub alerts_ms: u64,
}

/// The open file.
pub(super) struct Database {
    connection: Connection,
    files: Vec<(PathBuf, Identity)>,
    bytes_max: u64,
    /// Tells this run's connections from those of others.
    run: i64,
}

type Identity = (u64, u64);

fn identity(path: &Path) -> Option<Identity> {
    fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

impl Database {
    /// Opens the file, or makes it. Waits at most `patience` for others that hold its lock, here and later.
    pub(super) fn open(path: &Path, bytes_max: u64, run: i64, patience: Duration) -> Result<Database, OpenError> {
        // It names users: others on this machine have no business in it. SQLite gives its other files the same mode.
        let made = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        made.map_err(|error| OpenError::Io { path: path.into(), error })?;
        let failed = |error: rusqlite::Error| match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                OpenError::Broken { path: path.into(), error }
            }
            _ => OpenError::Sqlite { path: path.into(), error },
        };
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags).map_err(failed)?;
        connection.busy_timeout(patience).map_err(failed)?;
        check(&connection, path, failed)?;
        prepare(&mut connection, bytes_max).map_err(failed)?;
        let files = [path.to_owned(), beside(path, "-wal")];
        let files = files.into_iter().filter_map(|path| identity(&path).map(|identity| (path, identity))).collect();
        Ok(Database { connection, files, bytes_max, run })
    }

    /// Says of connections that an earlier run left open that their end is not known: it is taken for the moment of the
    /// last sample.
    pub(super) fn close_left_over(&mut self) -> Result<(), StoreError> {
        let sql = "UPDATE connections SET closed_by = 'unknown', close_reason = 'the hub ended before it was reported', \
                   closed_ms = max(opened_ms, (SELECT coalesce(max(at_ms), 0) FROM performance_samples)) \
                   WHERE closed_ms IS NULL AND run <> ?1";
        self.connection.execute(sql, [self.run])?;
        Ok(())
    }

    /// Writes a batch: all of it or nothing.
    pub(super) fn write(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if self.wal_bytes() > self.bytes_max.max(WAL_BYTES) {
            self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
            if self.wal_bytes() > WAL_BYTES {
                return Err(StoreError::Held);
            }
        }
        let run = self.run;
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for report in &batch.connections {
            write_connection(&transaction, run, report)?;
        }
        for sample in &batch.samples {
            write_sample(&transaction, sample)?;
        }
        for record in &batch.alerts {
            write_alert(&transaction, record)?;
        }
        transaction.commit()?;
        self.check_files()
    }

    fn wal_bytes(&self) -> u64 {
        self.files.get(1).and_then(|(path, _)| fs::metadata(path).ok()).map_or(0, |metadata| metadata.len())
    }

    fn check_files(&self) -> Result<(), StoreError> {
        let all_there = self.files.iter().all(|(path, opened)| identity(path) == Some(*opened));
        if all_there { Ok(()) } else { Err(StoreError::Gone) }
    }

    /// Deletes what is too old, a part of it at a time; true where there may be more.
    pub(super) fn sweep(&mut self, now_ms: u64, retention: &Retention) -> Result<bool, StoreError> {
        let before = |kept_ms: u64| as_i64(now_ms.saturating_sub(kept_ms));
        let mut most = 0;
        for (table, key, kept_ms) in [
            ("performance_samples", "at_ms", retention.samples_ms),
            ("performance_minutes", "at_ms", retention.minutes_ms),
            ("alerts", "at_ms", retention.alerts_ms),
        ] {
            let sql = format!(
                "DELETE FROM {table} WHERE {key} IN (SELECT {key} FROM {table} WHERE {key} < ?1 ORDER BY {key} LIMIT ?2)"
            );
            most = most.max(self.connection.prepare_cached(&sql)?.execute([before(kept_ms), DELETED_MAX])?);
        }
        let is_full = self.used_bytes()? + RESERVE_BYTES > self.bytes_max;
        let cutoff = if is_full { i64::MAX } else { before(retention.connections_ms) };
        let sql = "DELETE FROM connections WHERE (run, shard, slot, generation) IN (SELECT run, shard, slot, generation \
                   FROM connections WHERE closed_ms < ?1 ORDER BY closed_ms LIMIT ?2)";
        most = most.max(self.connection.prepare_cached(sql)?.execute([cutoff, DELETED_MAX])?);
        Ok(most >= DELETED_MAX as usize)
    }

    /// Makes room for a batch, where it is the file's own bound that it has met.
    pub(super) fn make_room(&mut self, now_ms: u64, retention: &Retention) -> Result<(), StoreError> {
        for _ in 0..MAKE_ROOM_MAX {
            if !self.sweep(now_ms, retention)? {
                break;
            }
        }
        Ok(())
    }

    fn used_bytes(&self) -> Result<u64, rusqlite::Error> {
        let pages: i64 = self.connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
        let free: i64 = self.connection.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
        Ok(u64::try_from(pages - free).unwrap_or(0) * PAGE_BYTES)
    }

    /// Points of `step_ms` each from `since_ms` on, the oldest first, at most `points_max`.
    pub(super) fn performance(
        &self,
        since_ms: u64,
        step_ms: u64,
        points_max: usize,
    ) -> Result<Vec<Sample>, StoreError> {
        let columns = names();
        let minutes = if step_ms >= MINUTE_MS as u64 {
            // What is not put together by the minute yet comes from the samples.
            format!(
                "SELECT at_ms, samples, {columns} FROM performance_minutes WHERE at_ms >= ?1 UNION ALL \
                 SELECT at_ms, samples, {columns} FROM performance_samples WHERE at_ms >= max(?1, \
                 (SELECT coalesce(max(at_ms) + {MINUTE_MS}, 0) FROM performance_minutes))"
            )
        } else {
            format!("SELECT at_ms, samples, {columns} FROM performance_samples WHERE at_ms >= ?1")
        };
        let sql = format!(
            "SELECT at_ms / ?2 * ?2 AS point, sum(samples), {} FROM ({minutes}) GROUP BY point ORDER BY point LIMIT ?3",
            aggregates()
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let points_max = i64::try_from(points_max).unwrap_or(i64::MAX);
        let rows = statement.query_map([as_i64(since_ms), as_i64(step_ms.max(1)), points_max], |row| {
            let mut values = [None; COLUMNS.len()];
            for (index, value) in values.iter_mut().enumerate() {
                *value = row.get(index + 2)?;
            }
            let (at_ms, samples): (i64, i64) = (row.get(0)?, row.get(1)?);
            Ok(Sample::from_values(as_u64(at_ms), as_u64(samples), values))
        })?;
        Ok(rows.collect::<Result<Vec<_>, _>>()?)
    }

    /// Changes of alerts since a moment, the newest first.
    pub(super) fn alerts(&self, since_ms: u64, limit: usize) -> Result<Vec<AlertRecord>, StoreError> {
        let sql = "SELECT at_ms, at, alert, state, severity, message, value, threshold FROM alerts \
                   WHERE at_ms >= ?1 ORDER BY at_ms DESC, rowid DESC LIMIT ?2";
        let mut statement = self.connection.prepare_cached(sql)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map([as_i64(since_ms), limit], |row| {
            Ok(AlertRecord {
                at_ms: as_u64(row.get(0)?),
                at: row.get(1)?,
                alert: row.get(2)?,
                state: row.get(3)?,
                severity: row.get(4)?,
                message: row.get(5)?,
                value: row.get(6)?,
                threshold: row.get(7)?,
            })
        })?;
        Ok(rows.collect::<Result<Vec<_>, _>>()?)
    }
}

/// SQLite's integers have a sign; times and counts fit all the same.
fn as_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn as_u64(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// Refuses what is not ours, before anything is written.
fn check(connection: &Connection, path: &Path, failed: impl Fn(rusqlite::Error) -> OpenError) -> Result<(), OpenError> {
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let found = number("user_version").map_err(&failed)?;
    let application = number("application_id").map_err(&failed)?;
    let tables = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0));
    let is_empty = tables.map_err(&failed)? == 0;
    if is_empty {
        return Ok(());
    }
    if application != APPLICATION {
        return Err(OpenError::Foreign(path.into()));
    }
    if found > VERSION {
        return Err(OpenError::Newer { path: path.into(), found });
    }
    Ok(())
}

/// Sets the connection up and brings the tables to this version.
fn prepare(connection: &mut Connection, bytes_max: u64) -> Result<(), rusqlite::Error> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    // KiB: the rows of a batch go to few pages.
    connection.pragma_update(None, "cache_size", -1024)?;
    connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
    connection.pragma_update(None, "max_page_count", as_i64(bytes_max / PAGE_BYTES))?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found < 1 {
        transaction.execute_batch(&tables())?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()
}

fn tables() -> String {
    let figures: String = COLUMNS.iter().map(|(name, _)| format!(", {name} REAL")).collect();
    format!(
        "CREATE TABLE connections (
            run INTEGER NOT NULL, shard INTEGER NOT NULL, slot INTEGER NOT NULL, generation INTEGER NOT NULL,
            opened_ms INTEGER NOT NULL, closed_ms INTEGER, close_code INTEGER, close_reason TEXT, closed_by TEXT,
            user_id TEXT NOT NULL, client_id TEXT NOT NULL, session_id TEXT NOT NULL,
            messages_received INTEGER, bytes_received INTEGER, bytes_sent INTEGER,
            PRIMARY KEY (run, shard, slot, generation)) STRICT, WITHOUT ROWID;
         CREATE INDEX connections_by_end ON connections (closed_ms);
         CREATE INDEX connections_by_user ON connections (user_id, opened_ms);
         CREATE TABLE performance_samples (at_ms INTEGER PRIMARY KEY, samples INTEGER NOT NULL{figures}) STRICT;
         CREATE TABLE performance_minutes (at_ms INTEGER PRIMARY KEY, samples INTEGER NOT NULL{figures}) STRICT;
         CREATE TABLE alerts (at_ms INTEGER NOT NULL, at TEXT NOT NULL, alert TEXT NOT NULL, state TEXT NOT NULL,
            severity TEXT NOT NULL, message TEXT NOT NULL, value REAL NOT NULL, threshold REAL NOT NULL,
            UNIQUE (at_ms, alert, state)) STRICT;"
    )
}

fn names() -> String {
    COLUMNS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

/// The figures of several rows as one row.
fn aggregates() -> String {
    let one = |(name, aggregate): &(&str, Aggregate)| match aggregate {
        // Rows count for as many samples as are in them; those that don't know the figure don't count.
        Aggregate::Mean => format!("sum({name} * samples) / sum(iif({name} IS NULL, NULL, samples)) AS {name}"),
        Aggregate::Max => format!("max({name}) AS {name}"),
        Aggregate::Sum => format!("sum({name}) AS {name}"),
    };
    COLUMNS.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn write_connection(connection: &Connection, run: i64, report: &ConnectionReport) -> Result<(), rusqlite::Error> {
    let (id, user_id) = (report.conn, report.identity.user_id.as_str());
    let closed = report.closed.as_ref();
    let sql = "INSERT INTO connections (run, shard, slot, generation, opened_ms, user_id, client_id, session_id, \
               closed_ms, close_code, close_reason, closed_by, messages_received, bytes_received, bytes_sent) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15) \
               ON CONFLICT DO UPDATE SET closed_ms = excluded.closed_ms, close_code = excluded.close_code, \
               close_reason = excluded.close_reason, closed_by = excluded.closed_by, \
               messages_received = excluded.messages_received, bytes_received = excluded.bytes_received, \
               bytes_sent = excluded.bytes_sent WHERE excluded.closed_ms IS NOT NULL";
    connection.prepare_cached(sql)?.execute(params![
        run,
        report.shard,
        id.slot,
        id.generation,
        as_i64(report.opened_ms),
        user_id,
        &*report.client_id,
        &*report.session_id,
        closed.map(|closed| as_i64(closed.at_ms)),
        closed.and_then(|closed| closed.code),
        closed.map(|closed| &*closed.reason),
        closed.map(|closed| closed.by.as_str()),
        closed.map(|closed| closed.messages_received),
        closed.map(|closed| as_i64(closed.bytes_received)),
        closed.map(|closed| as_i64(closed.bytes_sent)),
    ])?;
    Ok(())
}

/// Writes a sample, and puts the minutes together that are complete with it.
fn write_sample(connection: &Connection, sample: &Sample) -> Result<(), rusqlite::Error> {
    let places: String = (3..3 + COLUMNS.len()).map(|place| format!(", ?{place}")).collect();
    let columns = names();
    let sql = format!("INSERT OR REPLACE INTO performance_samples (at_ms, samples, {columns}) VALUES (?1, ?2{places})");
    let head = [Some(as_i64(sample.at_ms)), Some(as_i64(sample.samples))];
    let head = head.into_iter().map(|number| number.map_or(rusqlite::types::Value::Null, Into::into));
    let figures = sample
        .values()
        .into_iter()
        .map(|figure| figure.map_or(rusqlite::types::Value::Null, rusqlite::types::Value::Real));
    connection.prepare_cached(&sql)?.execute(params_from_iter(head.chain(figures)))?;

    let sql = format!(
        "INSERT OR REPLACE INTO performance_minutes (at_ms, samples, {columns}) \
         SELECT at_ms / {MINUTE_MS} * {MINUTE_MS} AS minute, sum(samples), {} FROM performance_samples \
         WHERE at_ms < ?1 AND at_ms >= (SELECT coalesce(max(at_ms) + {MINUTE_MS}, 0) FROM performance_minutes) \
         GROUP BY minute",
        aggregates()
    );
    let this_minute = as_i64(sample.at_ms) / MINUTE_MS * MINUTE_MS;
    connection.prepare_cached(&sql)?.execute([this_minute])?;
    Ok(())
}

fn write_alert(connection: &Connection, record: &AlertRecord) -> Result<(), rusqlite::Error> {
    let sql = "INSERT OR IGNORE INTO alerts (at_ms, at, alert, state, severity, message, value, threshold) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    connection.prepare_cached(sql)?.execute(params![
        as_i64(record.at_ms),
        record.at,
        record.alert,
        record.state,
        record.severity,
        record.message,
        record.value,
        record.threshold,
    ])?;
    Ok(())
}
