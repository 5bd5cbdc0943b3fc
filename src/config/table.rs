//! The one definition each option has, and the macro that turns the table of them into the typed configuration.
//!
//! A row of the table gives an option's key, type, default, rule, unit, whether a reload applies it, and its text.
//! The struct field, the parser, the range check, the listing and the reference file all come from that row.

use super::Config;
use super::value::Input;

/// Whether a running hub takes a changed value on SIGHUP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// A reload applies the new value.
    Live,
    /// The value holds until the process starts again.
    Restart,
}

/// Which values an option accepts, beyond being of its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Every value of the type.
    Any,
    /// A number from `min` to `max`, both included.
    Range {
        /// The smallest number accepted.
        min: u64,
        /// The largest number accepted.
        max: u64,
    },
    /// A power of two from `min` to `max`, both included.
    PowerOfTwo {
        /// The smallest number accepted.
        min: u64,
        /// The largest number accepted.
        max: u64,
    },
}

/// A number from `min` to `max`.
pub const fn range(min: u64, max: u64) -> Rule {
    assert!(min <= max);
    Rule::Range { min, max }
}

/// A power of two from `min` to `max`.
pub const fn power_of_two(min: u64, max: u64) -> Rule {
    assert!(min.is_power_of_two() && max.is_power_of_two() && min <= max);
    Rule::PowerOfTwo { min, max }
}

impl Rule {
    /// Whether `number` (none for values that are no number) is accepted.
    pub fn accepts(self, number: Option<u64>) -> bool {
        match (self, number) {
            (Rule::Any, _) | (_, None) => true,
            (Rule::Range { min, max }, Some(n)) => (min..=max).contains(&n),
            (Rule::PowerOfTwo { min, max }, Some(n)) => (min..=max).contains(&n) && n.is_power_of_two(),
        }
    }

    /// The rule in words, with the option's unit; none when every value of the type is accepted.
    pub fn words(self, unit: &str) -> Option<String> {
        let gap = if unit.is_empty() { "" } else { " " };
        match self {
            Rule::Any => None,
            Rule::Range { min, max } => Some(format!("{min} to {max}{gap}{unit}")),
            Rule::PowerOfTwo { min, max } => Some(format!("a power of two from {min} to {max}{gap}{unit}")),
        }
    }
}

/// One option: everything that is known about it without a configuration at hand.
#[derive(Debug)]
pub struct OptionDef {
    /// The dotted key, as in the file and in `--set`.
    pub key: &'static str,
    /// The type in words.
    pub kind: &'static str,
    /// The unit of a number; empty where there is none.
    pub unit: &'static str,
    /// Which values are accepted.
    pub rule: Rule,
    /// Whether SIGHUP applies a change.
    pub reload: Reload,
    /// What the option does, one entry per line of its text.
    pub doc: &'static [&'static str],
    /// Reads a value into the configuration; the error says what was wrong with the value.
    pub(super) set: fn(&mut Config, Input<'_>) -> Result<(), String>,
    /// The value a configuration has, secrets replaced.
    pub(super) show: fn(&Config) -> toml::Value,
    /// Puts the value of the first configuration into the second; true when the two differed.
    pub(super) keep: fn(&Config, &mut Config) -> bool,
}

impl OptionDef {
    /// The text of the option as one paragraph.
    pub fn text(&self) -> String {
        self.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
    }

    /// The environment variable that sets the option.
    pub fn env(&self) -> String {
        env_name(self.key)
    }

    /// The accepted values in words; none when the type says it all.
    pub fn allowed(&self) -> Option<String> {
        self.rule.words(self.unit)
    }

    /// The value `config` has for this option, secrets replaced by a mark.
    pub fn value(&self, config: &Config) -> toml::Value {
        (self.show)(config)
    }
}

/// The environment variable that stands for a dotted key.
pub fn env_name(key: &str) -> String {
    format!("RINGHUB_{}", key.replace('.', "_").to_uppercase())
}

/// What stands before the dot of a group's options: the group's name, and that of the one it is within.
macro_rules! group_key {
    (broker_redis) => {
        "broker.redis"
    };
    ($group:ident) => {
        stringify!($group)
    };
}
pub(super) use group_key;

/// Turns the table of options into the group structs, [`Config`] and the list of [`OptionDef`]s.
macro_rules! options {
    ($(
        $(#[doc = $group_doc:literal])+
        $group:ident: $Group:ident {
            $(
                $(#[doc = $doc:literal])+
                $field:ident: $ty:ty = $default:expr, $rule:expr, $unit:literal, $reload:ident;
            )+
        }
    )+) => {
        $(
            $(#[doc = $group_doc])+
            #[derive(Clone, Debug, PartialEq)]
            pub struct $Group {
                $( $(#[doc = $doc])+ pub $field: $ty, )+
            }

            impl Default for $Group {
                fn default() -> Self {
                    Self { $( $field: $default, )+ }
                }
            }
        )+

        /// The whole configuration of a hub; a field's path is its option's key, with `_` where a group is within another.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Config {
            $( $(#[doc = $group_doc])+ pub $group: $Group, )+
            /// The kinds of rooms, built-in ones first, then declared ones (`rooms.KIND.…`) in order of name.
            pub kinds: Vec<KindConfig>,
            /// The permissions each role stands for (`roles.NAME`).
            pub roles: BTreeMap<String, Vec<String>>,
        }

        impl Default for Config {
            fn default() -> Self {
                Self {
                    $( $group: $Group::default(), )+
                    kinds: super::kinds::built_in(),
                    roles: super::kinds::built_in_roles(),
                }
            }
        }

        /// Every option with a fixed key, in the order of the reference.
        pub static OPTIONS: &[OptionDef] = &[
            $( $( OptionDef {
                key: concat!(group_key!($group), ".", stringify!($field)),
                kind: <$ty as OptionValue>::KIND,
                unit: $unit,
                rule: $rule,
                reload: Reload::$reload,
                doc: &[$($doc),+],
                set: |config, input| {
                    config.$group.$field = read::<$ty>(input, $unit, $rule)?;
                    Ok(())
                },
                show: |config| config.$group.$field.show(),
                keep: |old, new| {
                    let changed = old.$group.$field != new.$group.$field;
                    new.$group.$field.clone_from(&old.$group.$field);
                    changed
                },
            }, )+ )+
        ];

        /// The groups of options with their text, in the order of the reference.
        pub static GROUPS: &[(&str, &[&str])] = &[
            $( (group_key!($group), &[$($group_doc),+]), )+
        ];
    };
}
pub(super) use options;
