//! Choices for the log.

use super::value::{Input, OptionValue};

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// The least severe level that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Failures that need an operator.
    Error,
    /// What may become a failure.
    Warn,
    /// The life of the process.
    Info,
    /// A line per connection.
    Debug,
    /// A line per message.
    Trace,
}

/// Gives an enum without fields its words.
macro_rules! word_values {
    ($ty:ident, $kind:literal, $($variant:ident = $word:literal),+) => {
        impl $ty {
            /// The word that stands for the choice.
            pub fn word(self) -> &'static str {
                match self { $( Self::$variant => $word, )+ }
            }
        }

        impl OptionValue for $ty {
            const KIND: &'static str = $kind;

            fn read(input: Input<'_>, _unit: &str) -> Result<Self, String> {
                match input.text()? {
                    $( $word => Ok(Self::$variant), )+
                    other => Err(format!("{other:?}: expected {}", Self::KIND)),
                }
            }

            fn show(&self) -> toml::Value {
                toml::Value::String(self.word().to_owned())
            }
        }
    };
}
pub(super) use word_values;

word_values!(LogFormat, "text or json", Text = "text", Json = "json");
word_values!(
    LogLevel,
    "error, warn, info, debug or trace",
    Error = "error",
    Warn = "warn",
    Info = "info",
    Debug = "debug",
    Trace = "trace"
);
