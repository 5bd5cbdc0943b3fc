//! What a check has found, for `serve` at start and for `doctor`.

use std::fmt;

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Not looked at, for the reason given.
    Skip,
    /// The hub runs, with less than was asked for.
    Warn,
    /// The hub cannot run like this.
    Fail,
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was checked, in a word or two.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub what: String,
    /// What follows from it; empty when all is well.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// The line that puts it right; empty when there is nothing to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fix: String,
}

impl Finding {
    /// All is well.
    pub fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, what: what.into(), why: String::new(), fix: String::new() }
    }

    /// Not looked at.
    pub fn skipped(check: &'static str, why: impl Into<String>) -> Self {
        Self { check, level: Level::Skip, what: why.into(), why: String::new(), fix: String::new() }
    }

    /// The hub runs, with less than was asked for.
    pub fn warn(check: &'static str, what: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, level: Level::Warn, what: what.into(), why: why.into(), fix: fix.into() }
    }

    /// The hub cannot run like this.
    pub fn fail(check: &'static str, what: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, level: Level::Fail, what: what.into(), why: why.into(), fix: fix.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.check, self.what)?;
        if !self.why.is_empty() {
            write!(f, "\n        {}", self.why)?;
        }
        if !self.fix.is_empty() {
            write!(f, "\n        fix: {}", self.fix)?;
        }
        Ok(())
    }
}
