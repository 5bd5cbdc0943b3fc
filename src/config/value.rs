//! How a value is read from TOML or from text, and shown again.

use std::path::PathBuf;

use super::table::Rule;

/// A value as its source gives it.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// From an environment variable, `--set` or a flag.
    Text(&'a str),
    /// From a file.
    Toml(&'a toml::Value),
}

impl<'a> Input<'a> {
    /// The text of the value, when it is one.
    pub fn text(self) -> Result<&'a str, String> {
        match self {
            Input::Text(text) => Ok(text.trim()),
            Input::Toml(toml::Value::String(text)) => Ok(text.trim()),
            Input::Toml(other) => Err(format!("expected a string, found {}", article(other.type_str()))),
        }
    }

    /// The elements of a list. A single string is a list of one from a file, and split at commas from text; text in
    /// square brackets is read as a TOML array.
    pub fn list(self) -> Result<Vec<toml::Value>, String> {
        match self {
            Input::Toml(toml::Value::Array(items)) => Ok(items.clone()),
            Input::Toml(toml::Value::String(text)) if text.trim().is_empty() => Ok(Vec::new()),
            Input::Toml(toml::Value::String(text)) => Ok(vec![toml::Value::String(text.clone())]),
            Input::Toml(other) => Err(format!("expected a string or a list, found {}", article(other.type_str()))),
            Input::Text(text) if is_bracketed(text) => toml_array(text),
            Input::Text(text) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Ok(items.map(|item| toml::Value::String(item.to_owned())).collect())
            }
        }
    }
}

/// Whether text is meant as a TOML array; `[::1]:8000` is not.
pub fn is_bracketed(text: &str) -> bool {
    let text = text.trim();
    text.starts_with('[') && text.ends_with(']')
}

/// Reads a TOML array out of one line of text.
pub fn toml_array(text: &str) -> Result<Vec<toml::Value>, String> {
    let wrapped = format!("list = {text}");
    match wrapped.parse::<toml::Table>() {
        // Only what the brackets hold may count: a line break in the text could otherwise start another key.
        Ok(mut table) if table.len() == 1 => match table.remove("list") {
            Some(toml::Value::Array(items)) => Ok(items),
            _ => Err("expected a list in square brackets".to_owned()),
        },
        _ => Err("expected a list in square brackets, written as in TOML".to_owned()),
    }
}

/// A type that an option can have.
pub trait OptionValue: Sized {
    /// The type in words.
    const KIND: &'static str;

    /// Reads a value; the error says what was expected.
    fn read(input: Input<'_>, unit: &str) -> Result<Self, String>;

    /// The value as TOML, secrets replaced by a mark.
    fn show(&self) -> toml::Value;

    /// The number that the option's rule looks at.
    fn number(&self) -> Option<u64> {
        None
    }
}

/// Reads a value and checks it against the option's rule.
pub fn read<T: OptionValue>(input: Input<'_>, unit: &str, rule: Rule) -> Result<T, String> {
    let value = T::read(input, unit)?;
    if rule.accepts(value.number()) {
        Ok(value)
    } else {
        let number = value.number().map_or_else(String::new, |n| n.to_string());
        Err(format!("{number} is out of range"))
    }
}

impl OptionValue for bool {
    const KIND: &'static str = "true or false";

    fn read(input: Input<'_>, _unit: &str) -> Result<Self, String> {
        if let Input::Toml(toml::Value::Boolean(value)) = input {
            return Ok(*value);
        }
        match input.text().ok() {
            Some("true" | "1" | "yes" | "on") => Ok(true),
            Some("false" | "0" | "no" | "off") => Ok(false),
            _ => Err("expected true or false".to_owned()),
        }
    }

    fn show(&self) -> toml::Value {
        toml::Value::Boolean(*self)
    }
}

macro_rules! number_values {
    ($($ty:ty),+) => {
        $(
            impl OptionValue for $ty {
                const KIND: &'static str = "number";

                fn read(input: Input<'_>, unit: &str) -> Result<Self, String> {
                    let number = number(input, unit)?;
                    Self::try_from(number).map_err(|_| format!("{number} is out of range"))
                }

                fn show(&self) -> toml::Value {
                    i64::try_from(*self).map_or_else(|_| toml::Value::String(self.to_string()), toml::Value::Integer)
                }

                fn number(&self) -> Option<u64> {
                    u64::try_from(*self).ok()
                }
            }
        )+
    };
}
number_values!(u16, u32, u64, usize);

/// A whole number; one of bytes may be written with `KiB`, `MiB` or `GiB`.
fn number(input: Input<'_>, unit: &str) -> Result<u64, String> {
    if let Input::Toml(toml::Value::Integer(number)) = input {
        return u64::try_from(*number).map_err(|_| format!("{number} is out of range"));
    }
    let expected = || match unit {
        "bytes" => "expected a number of bytes, such as 65536 or 64KiB".to_owned(),
        _ => "expected a whole number".to_owned(),
    };
    let text = input.text().map_err(|_| expected())?;
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let (digits, suffix) = text.split_at(digits);
    let factor: u64 = match (unit, suffix.trim()) {
        (_, "") => 1,
        ("bytes", "KiB") => 1 << 10,
        ("bytes", "MiB") => 1 << 20,
        ("bytes", "GiB") => 1 << 30,
        _ => return Err(expected()),
    };
    let number: u64 = digits.replace('_', "").parse().map_err(|_| expected())?;
    number.checked_mul(factor).ok_or_else(|| format!("{text} is out of range"))
}

impl OptionValue for String {
    const KIND: &'static str = "string";

    fn read(input: Input<'_>, _unit: &str) -> Result<Self, String> {
        let text = input.text()?;
        if text.is_empty() { Err("must not be empty".to_owned()) } else { Ok(text.to_owned()) }
    }

    fn show(&self) -> toml::Value {
        toml::Value::String(self.clone())
    }
}

impl OptionValue for Option<String> {
    const KIND: &'static str = "string";

    fn read(input: Input<'_>, _unit: &str) -> Result<Self, String> {
        let text = input.text()?;
        Ok((!text.is_empty()).then(|| text.to_owned()))
    }

    fn show(&self) -> toml::Value {
        toml::Value::String(self.clone().unwrap_or_default())
    }
}

impl OptionValue for Option<PathBuf> {
    const KIND: &'static str = "path";

    fn read(input: Input<'_>, _unit: &str) -> Result<Self, String> {
        let text = input.text()?;
        Ok((!text.is_empty()).then(|| PathBuf::from(text)))
    }

    fn show(&self) -> toml::Value {
        let text = self.as_ref().map(|path| path.to_string_lossy().into_owned());
        toml::Value::String(text.unwrap_or_default())
    }
}

impl OptionValue for Vec<String> {
    const KIND: &'static str = "list of strings";

    fn read(input: Input<'_>, _unit: &str) -> Result<Self, String> {
        let items = input.list()?;
        items
            .into_iter()
            .map(|item| match item {
                toml::Value::String(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
                toml::Value::String(_) => Err("an entry of the list is empty".to_owned()),
                other => Err(format!("expected a list of strings, found {} in it", article(other.type_str()))),
            })
            .collect()
    }

    fn show(&self) -> toml::Value {
        toml::Value::Array(self.iter().cloned().map(toml::Value::String).collect())
    }
}

/// A TOML type with its article.
pub fn article(kind: &str) -> String {
    let vowel = kind.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {kind}", if vowel { "an" } else { "a" })
}
