//! What can be wrong with a configuration, said so that it can be put right.

use std::fmt;
use std::path::PathBuf;

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A built-in profile.
    Profile(String),
    /// A file.
    File(PathBuf),
    /// Text handed over by the program.
    Text,
    /// An environment variable.
    Env(String),
    /// `--set`.
    Set,
    /// Another flag of the command line.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Profile(name) => write!(f, "in profile {name}"),
            Origin::File(path) => write!(f, "in {}", path.display()),
            Origin::Text => f.write_str("in the text"),
            Origin::Env(var) => write!(f, "by {var} in the environment"),
            Origin::Set => f.write_str("by --set"),
            Origin::Flag(flag) => write!(f, "by {flag}"),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The option's key, or what was taken for one; empty when a whole file is meant.
    pub key: String,
    /// Where it was set; none when it follows from several options together.
    pub origin: Option<Origin>,
    /// What is wrong.
    pub message: String,
    /// The values that are accepted.
    pub allowed: Option<String>,
    /// The known key that looks most like an unknown one.
    pub nearest: Option<String>,
}

impl Problem {
    /// A problem with nothing known beyond its message.
    pub fn new(key: &str, origin: Option<Origin>, message: String) -> Self {
        Self { key: key.to_owned(), origin, message, allowed: None, nearest: None }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.origin, self.key.is_empty()) {
            (Some(origin), false) => write!(f, "{} (set {origin}): ", self.key)?,
            (Some(origin), true) => write!(f, "{origin}: ")?,
            (None, false) => write!(f, "{}: ", self.key)?,
            (None, true) => {}
        }
        f.write_str(&self.message)?;
        if let Some(allowed) = &self.allowed {
            write!(f, "; allowed: {allowed}")?;
        }
        if let Some(nearest) = &self.nearest {
            write!(f, "; did you mean {nearest}?")?;
        }
        Ok(())
    }
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The problems, in the order in which the sources were read; at least one.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = self.problems.as_slice() {
            return write!(f, "{only}");
        }
        write!(f, "{} problems in the configuration", self.problems.len())?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for ConfigError {}

/// Below this likeness a suggestion would only mislead.
const LIKENESS_MIN: f64 = 0.55;

/// The known key most like `key`; the same last part in another group counts as very like.
pub fn nearest<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let last = |key: &str| key.rsplit_once('.').map(|(_, last)| last.to_owned());
    let likeness = |candidate: &str| {
        let whole = strsim::normalized_damerau_levenshtein(key, candidate);
        let part = match (last(key).or_else(|| Some(key.to_owned())), last(candidate)) {
            (Some(a), Some(b)) => strsim::normalized_damerau_levenshtein(&a, &b) * 0.9,
            _ => 0.0,
        };
        whole.max(part)
    };
    let scored = known.map(|candidate| (likeness(candidate), candidate));
    let best = scored.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (best.0 >= LIKENESS_MIN).then(|| best.1.to_owned())
}
