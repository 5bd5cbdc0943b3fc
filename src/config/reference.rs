//! The options in writing: the listing of `ringhub config`, its JSON, and a reference file.

use std::fmt::Write;

use serde_json::json;

use super::kinds::{KIND_OPTIONS, KindConfig, KindOptionDef};
use super::options::{Config, GROUPS, OPTIONS};
use super::table::{OptionDef, Reload};

/// Widest line of the written text.
const WIDTH: usize = 100;

/// Every option with its value in `config`, unit, default, range and text.
pub fn listing(config: &Config) -> String {
    let mut out = String::new();
    let defaults = Config::default();
    for (group, text) in GROUPS {
        put(&mut out, format_args!("{}\n", group.to_uppercase()));
        put_wrapped(&mut out, "  ", &joined(text));
        for option in OPTIONS.iter().filter(|option| in_group(option, group)) {
            let default = shown(&option.value(&defaults), option.unit);
            put(&mut out, format_args!("\n  {} = {default}\n", option.key));
            let value = shown(&option.value(config), option.unit);
            if value != default {
                put(&mut out, format_args!("      here: {value}\n"));
            }
            put(&mut out, format_args!("      {}\n", facts(option)));
            put_wrapped(&mut out, "      ", &option.text());
        }
        out.push('\n');
    }
    out.push_str("ROOMS\n");
    put_wrapped(&mut out, "  ", ROOMS_TEXT);
    for option in KIND_OPTIONS {
        let default = shown(&option.value(&KindConfig::new("KIND")), option.unit);
        put(&mut out, format_args!("\n  rooms.KIND.{} = {default}\n      {}\n", option.name, kind_facts(option)));
        put_wrapped(&mut out, "      ", &option.text());
    }
    out.push_str("\n  kinds here, and how their rooms are joined:\n");
    for kind in &config.kinds {
        let join = KIND_OPTIONS.iter().find(|option| option.name == "join").map(|option| option.value(kind));
        put(
            &mut out,
            format_args!("      {:<12} {}\n", kind.name, join.map(|join| join.to_string()).unwrap_or_default()),
        );
    }
    out.push_str("\nROLES\n");
    put_wrapped(&mut out, "  ", ROLES_TEXT);
    out.push('\n');
    for (role, permissions) in &config.roles {
        put_wrapped(&mut out, "      ", &format!("roles.{role} = {}", permissions.join(", ")));
    }
    out
}

/// The same as JSON: an array of options, then kinds and roles.
pub fn listing_json(config: &Config) -> String {
    let defaults = Config::default();
    let options: Vec<_> = OPTIONS
        .iter()
        .map(|option| {
            json!({
                "key": option.key, "type": option.kind, "unit": option.unit, "default": option.value(&defaults),
                "value": option.value(config), "allowed": option.allowed(), "env": option.env(),
                "reload": option.reload == Reload::Live, "text": option.text(),
            })
        })
        .collect();
    let kind_options: Vec<_> = KIND_OPTIONS
        .iter()
        .map(|option| {
            json!({
                "key": format!("rooms.KIND.{}", option.name), "type": option.kind, "unit": option.unit,
                "default": option.value(&KindConfig::new("KIND")), "allowed": option.rule.words(option.unit),
                "reload": true, "text": option.text(),
            })
        })
        .collect();
    let kinds: serde_json::Map<_, _> = config
        .kinds
        .iter()
        .map(|kind| {
            let values = KIND_OPTIONS.iter().map(|option| (option.name.to_owned(), json!(option.value(kind))));
            (kind.name.clone(), serde_json::Value::Object(values.collect()))
        })
        .collect();
    let all = json!({"options": options, "kind_options": kind_options, "kinds": kinds, "roles": config.roles});
    format!("{all:#}\n")
}

/// A configuration file with every option at its default, commented out.
pub fn reference_file() -> String {
    let mut out = String::new();
    let defaults = Config::default();
    out.push_str("# Every option of ringhub at its default. Take the mark from a line to change it.\n");
    for (group, text) in GROUPS {
        out.push('\n');
        put_wrapped(&mut out, "# ", &joined(text));
        put(&mut out, format_args!("[{group}]\n"));
        for option in OPTIONS.iter().filter(|option| in_group(option, group)) {
            put_wrapped(&mut out, "# ", &format!("{} ({})", option.text(), facts(option)));
            let name = option.key.rsplit_once('.').map_or(option.key, |(_, name)| name);
            put(&mut out, format_args!("#{name} = {}\n", option.value(&defaults)));
        }
    }
    out.push('\n');
    put_wrapped(&mut out, "# ", ROOMS_TEXT);
    for kind in &defaults.kinds {
        put(&mut out, format_args!("[rooms.{}]\n", kind.name));
        for option in KIND_OPTIONS {
            if kind.name == "project" {
                put_wrapped(&mut out, "# ", &format!("{} ({})", option.text(), kind_facts(option)));
            }
            put(&mut out, format_args!("#{} = {}\n", option.name, option.value(kind)));
        }
    }
    out.push('\n');
    put_wrapped(&mut out, "# ", ROLES_TEXT);
    out.push_str("[roles]\n");
    for (role, permissions) in &defaults.roles {
        let permissions = toml::Value::Array(permissions.iter().cloned().map(toml::Value::String).collect());
        put(&mut out, format_args!("#{role} = {permissions}\n"));
    }
    out
}

const ROOMS_TEXT: &str = "Kinds of rooms: what stands before the colon of a room's name. Naming one here declares it; \
                          options that are not set keep the default. A reload applies all of them.";

const ROLES_TEXT: &str = "The permissions that roles stand for, roles.NAME = a list; `*` stands for one whole part. A \
                          reload applies them to tokens presented from then on.";

fn in_group(option: &OptionDef, group: &str) -> bool {
    option.key.rsplit_once('.').is_some_and(|(of_it, _)| of_it == group)
}

fn facts(option: &OptionDef) -> String {
    let restart = match option.reload {
        Reload::Live => "",
        Reload::Restart => "; needs a restart",
    };
    format!("{}{restart}", option.allowed().unwrap_or_else(|| option.kind.to_owned()))
}

fn kind_facts(option: &KindOptionDef) -> String {
    option.rule.words(option.unit).unwrap_or_else(|| option.kind.to_owned())
}

fn shown(value: &toml::Value, unit: &str) -> String {
    let text = value.to_string();
    if unit.is_empty() || text == "\"\"" { text } else { format!("{text} {unit}") }
}

fn joined(lines: &[&str]) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String has no way to fail.
    out.write_fmt(text).unwrap_or_default();
}

/// Writes `text` with line breaks between words, each line led by `lead`.
fn put_wrapped(out: &mut String, lead: &str, text: &str) {
    let mut width = 0;
    for word in text.split_whitespace() {
        if width == 0 || width + 1 + word.chars().count() > WIDTH {
            out.push_str(if width == 0 { "" } else { "\n" });
            out.push_str(lead);
            width = lead.len();
        } else {
            out.push(' ');
            width += 1;
        }
        out.push_str(word);
        width += word.chars().count();
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_listed_with_its_text() {
        let listing = listing(&Config::default());
        for option in OPTIONS {
            assert!(listing.contains(&format!("\n  {} = ", option.key)), "{} is not listed", option.key);
        }
        for option in KIND_OPTIONS {
            assert!(listing.contains(&format!("rooms.KIND.{}", option.name)));
        }
        assert!(!listing.contains("here:"), "defaults are not repeated");
    }

    #[test]
    fn a_value_that_is_no_default_is_shown_beside_it() {
        let mut config = Config::default();
        config.limits.rooms_max = 7;
        assert!(listing(&config).contains("limits.rooms_max = 1000 rooms\n      here: 7 rooms\n"));
    }

    #[test]
    fn secrets_are_shown_nowhere() {
        let set = vec![r#"auth.secret=["hunter2", {kid="k", secret="hunter3"}]"#.to_owned()];
        let config = Config::load(&super::super::Sources { set, ..Default::default() }).expect("valid");
        for text in [listing(&config), listing_json(&config), format!("{config:?}")] {
            assert!(!text.contains("hunter"), "{text}");
        }
    }

    #[test]
    fn the_reference_file_says_what_the_program_does() {
        let reference = reference_file();
        let uncommented: String = reference
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(option) if !option.starts_with(' ') => format!("{option}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        // With every mark taken away it is the defaults again: no key or value in it is wrong.
        let dir = std::env::temp_dir().join(format!("ringhub-reference-{}", std::process::id()));
        std::fs::write(&dir, uncommented).expect("a temporary file");
        let read = Config::check_file(&dir);
        std::fs::remove_file(&dir).expect("remove it");
        assert_eq!(read, Ok(Config::default()));
    }

    #[test]
    fn the_json_listing_has_every_option() {
        let listing: serde_json::Value = serde_json::from_str(&listing_json(&Config::default())).expect("JSON");
        assert_eq!(listing["options"].as_array().map(Vec::len), Some(OPTIONS.len()));
        assert_eq!(listing["options"][0]["key"], "listen.public");
    }
}
