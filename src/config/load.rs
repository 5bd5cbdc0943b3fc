//! Lays the sources of the configuration over each other, and reports everything that is wrong with them at once.

use std::path::{Path, PathBuf};

use super::kinds::{self, KindConfig};
use super::options::{Config, OPTIONS};
use super::problem::{ConfigError, Origin, Problem, nearest};
use super::profiles;
use super::table::env_name;
use super::value::Input;

/// Where a configuration comes from, weakest source first.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// A profile by name (`--profile`).
    pub profile: Option<String>,
    /// A TOML file (`--config`).
    pub file: Option<PathBuf>,
    /// Environment variables; those that do not start with `RINGHUB_` are passed over.
    pub env: Vec<(String, String)>,
    /// `KEY=VALUE` of each `--set`, in order.
    pub set: Vec<String>,
    /// Flags that stand for an option: the flag, the option's key, the value.
    pub flags: Vec<(&'static str, &'static str, toml::Value)>,
}

impl Sources {
    /// Sources with the environment of this process and nothing else.
    pub fn from_process_env() -> Self {
        let vars = std::env::vars_os().filter_map(|(name, value)| {
            let name = name.into_string().ok().filter(|name| name.starts_with(ENV_PREFIX))?;
            // What is not UTF-8 stays visible as a wrong value instead of being passed over.
            Some((name, value.to_string_lossy().into_owned()))
        });
        Self { env: vars.collect(), ..Self::default() }
    }
}

impl Config {
    /// Reads all sources; the error names every problem found in them.
    pub fn load(sources: &Sources) -> Result<Config, ConfigError> {
        let mut loading = Loading::default();
        if let Some(name) = &sources.profile {
            loading.profile(name);
        }
        if let Some(path) = &sources.file {
            loading.file(path);
        }
        loading.environment(&sources.env);
        for assignment in &sources.set {
            loading.assignment(assignment);
        }
        for (flag, key, value) in &sources.flags {
            loading.apply(key, Input::Toml(value), &Origin::Flag(flag));
        }
        loading.finish()
    }

    /// Reads one file over the defaults, as `ringhub config --check` does.
    pub fn check_file(path: &Path) -> Result<Config, ConfigError> {
        Self::load(&Sources { file: Some(path.to_owned()), ..Sources::default() })
    }
}

const ENV_PREFIX: &str = "RINGHUB_";

/// Variables of that prefix that name no option: they are defaults for flags of the program.
pub const ENV_OF_FLAGS: [&str; 4] = ["RINGHUB_CONFIG", "RINGHUB_PROFILE", "RINGHUB_URL", "RINGHUB_TOKEN"];

/// Options whose feature this version does not have: known, so that setting one is a clear error, with the one value
/// that says "not used".
pub(super) const UNAVAILABLE: [(&str, &str, &str); 4] = [
    ("store.path", "", "the store (SQLite)"),
    ("journal.path", "", "the journal"),
    ("broker.kind", "memory", "a broker other than memory"),
    ("broker.redis.url", "", "the Redis broker"),
];

/// A configuration being put together.
#[derive(Default)]
struct Loading {
    config: Config,
    problems: Vec<Problem>,
}

impl Loading {
    fn profile(&mut self, name: &str) {
        match profiles::text(name) {
            Some(text) => self.toml(text, &Origin::Profile(name.to_owned())),
            None => {
                let mut problem = Problem::new("--profile", None, format!("there is no profile {name:?}"));
                problem.allowed = Some(profiles::names().collect::<Vec<_>>().join(", "));
                self.problems.push(problem);
            }
        }
    }

    fn file(&mut self, path: &Path) {
        match std::fs::read_to_string(path) {
            Ok(text) => self.toml(&text, &Origin::File(path.to_owned())),
            Err(error) => {
                let message = format!("cannot read {}: {error}", path.display());
                self.problems.push(Problem::new("--config", None, message));
            }
        }
    }

    fn toml(&mut self, text: &str, origin: &Origin) {
        match text.parse::<toml::Table>() {
            Ok(table) => self.table("", &table, origin),
            Err(error) => {
                // The error's own text would quote the line, and the line may hold a secret.
                let start = error.span().map_or(0, |span| span.start);
                let line = text.bytes().take(start).filter(|&byte| byte == b'\n').count() + 1;
                let message = format!("not TOML: line {line}: {}", error.message().trim());
                self.problems.push(Problem::new("", Some(origin.clone()), message));
            }
        }
    }

    fn table(&mut self, prefix: &str, table: &toml::Table, origin: &Origin) {
        for (name, value) in table {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            match value {
                // An empty `[rooms.KIND]` is a statement of its own: it declares the kind.
                toml::Value::Table(inner) if is_group(&key) && !(inner.is_empty() && key.starts_with("rooms.")) => {
                    self.table(&key, inner, origin);
                }
                value => self.apply(&key, Input::Toml(value), origin),
            }
        }
    }

    fn environment(&mut self, vars: &[(String, String)]) {
        let mut vars: Vec<_> = vars.iter().collect();
        vars.sort();
        for (var, value) in vars {
            let Some(rest) = var.strip_prefix(ENV_PREFIX) else { continue };
            if ENV_OF_FLAGS.contains(&var.as_str()) || is_service_link(rest) {
                continue;
            }
            let origin = Origin::Env(var.clone());
            match key_of_env(var) {
                Some(key) => self.apply(&key, Input::Text(value), &origin),
                None => {
                    let mut problem = Problem::new(var, Some(origin), "names no option".to_owned());
                    let names: Vec<String> = known_keys().map(env_name).collect();
                    problem.nearest = nearest(var, names.iter().map(String::as_str));
                    self.problems.push(problem);
                }
            }
        }
    }

    fn assignment(&mut self, assignment: &str) {
        match assignment.split_once('=') {
            Some((key, value)) => self.apply(key.trim(), Input::Text(value), &Origin::Set),
            None => {
                // What follows may be a secret given in the wrong shape, so that it is not repeated.
                let message = "expected KEY=VALUE".to_owned();
                self.problems.push(Problem::new("--set", Some(Origin::Set), message));
            }
        }
    }

    /// Sets one option, or notes why it can't be.
    fn apply(&mut self, key: &str, input: Input<'_>, origin: &Origin) {
        if let Some(option) = OPTIONS.iter().find(|option| option.key == key) {
            if let Err(message) = (option.set)(&mut self.config, input) {
                let mut problem = Problem::new(key, Some(origin.clone()), message);
                problem.allowed = option.allowed();
                self.problems.push(problem);
            }
        } else if let Some((_, unused, feature)) = UNAVAILABLE.iter().find(|(name, _, _)| *name == key) {
            if input.text().ok() != Some(unused) {
                let message = format!("{feature} is not available in this version");
                self.problems.push(Problem::new(key, Some(origin.clone()), message));
            }
        } else if let Some(rest) = key.strip_prefix("rooms.") {
            self.kind_option(key, rest, input, origin);
        } else if let Some(role) = key.strip_prefix("roles.") {
            match kinds::read_role(role, input) {
                Ok(permissions) => {
                    self.config.roles.insert(role.to_owned(), permissions);
                }
                Err(message) => self.problems.push(Problem::new(key, Some(origin.clone()), message)),
            }
        } else {
            self.unknown(key, origin, known_keys());
        }
    }

    fn kind_option(&mut self, key: &str, rest: &str, input: Input<'_>, origin: &Origin) {
        let (kind, name) = rest.split_once('.').unwrap_or((rest, ""));
        if let Err(message) = kinds::check_kind_name(kind) {
            self.problems.push(Problem::new(key, Some(origin.clone()), message));
            return;
        }
        // `[rooms.quote]` with nothing in it declares the kind.
        if name.is_empty() {
            match input {
                Input::Toml(toml::Value::Table(table)) if table.is_empty() => {
                    self.kind(kind);
                }
                _ => {
                    let message = "expected a table of options".to_owned();
                    self.problems.push(Problem::new(key, Some(origin.clone()), message));
                }
            }
            return;
        }
        let Some(option) = kinds::KIND_OPTIONS.iter().find(|option| option.name == name) else {
            let keys: Vec<String> =
                kinds::KIND_OPTIONS.iter().map(|option| format!("rooms.{kind}.{}", option.name)).collect();
            self.unknown(key, origin, keys.iter().map(String::as_str));
            return;
        };
        if let Err(message) = (option.set)(self.kind(kind), input) {
            let mut problem = Problem::new(key, Some(origin.clone()), message);
            problem.allowed = option.rule.words(option.unit);
            self.problems.push(problem);
        }
    }

    /// The kind to change, declared by being named.
    fn kind(&mut self, name: &str) -> &mut KindConfig {
        let kinds = &mut self.config.kinds;
        let index = match kinds.iter().position(|kind| kind.name == name) {
            Some(index) => index,
            None => {
                kinds.push(KindConfig::new(name));
                kinds.len() - 1
            }
        };
        &mut kinds[index]
    }

    fn unknown<'a>(&mut self, key: &str, origin: &Origin, known: impl Iterator<Item = &'a str>) {
        let mut problem = Problem::new(key, Some(origin.clone()), "unknown option".to_owned());
        problem.nearest = nearest(key, known);
        self.problems.push(problem);
    }

    fn finish(mut self) -> Result<Config, ConfigError> {
        let declared_from = kinds::built_in().len();
        if let Some(declared) = self.config.kinds.get_mut(declared_from..) {
            declared.sort_by(|a, b| a.name.cmp(&b.name));
        }
        self.problems.extend(super::validate::problems(&self.config));
        if self.problems.is_empty() { Ok(self.config) } else { Err(ConfigError { problems: self.problems }) }
    }
}

/// Every key that is fixed, for suggestions.
fn known_keys() -> impl Iterator<Item = &'static str> {
    OPTIONS.iter().map(|option| option.key).chain(UNAVAILABLE.iter().map(|(key, _, _)| *key))
}

/// Whether a key stands for a table of options and not for an option.
fn is_group(key: &str) -> bool {
    if key == "rooms" || key == "roles" {
        return true;
    }
    let within = |known: &str| known.strip_prefix(key).is_some_and(|rest| rest.starts_with('.'));
    known_keys().any(within) || key.strip_prefix("rooms.").is_some_and(|kind| !kind.contains('.'))
}

/// The key that an environment variable stands for.
fn key_of_env(var: &str) -> Option<String> {
    if let Some(key) = known_keys().find(|key| env_name(key) == var) {
        return Some(key.to_owned());
    }
    if let Some(rest) = var.strip_prefix("RINGHUB_ROOMS_") {
        let rest = rest.to_lowercase();
        // Kinds may have underscores themselves, so that the option is looked for from the end.
        return kinds::KIND_OPTIONS.iter().find_map(|option| {
            let kind = rest.strip_suffix(option.name)?.strip_suffix('_')?;
            Some(format!("rooms.{kind}.{}", option.name))
        });
    }
    let role = var.strip_prefix("RINGHUB_ROLES_").filter(|role| !role.is_empty())?;
    Some(format!("roles.{}", role.to_lowercase()))
}

/// Variables that Kubernetes puts into every pod beside a service named `ringhub`: they are none of ours.
fn is_service_link(rest: &str) -> bool {
    rest == "PORT" || rest.starts_with("PORT_") || rest.starts_with("SERVICE_")
}

#[cfg(test)]
mod tests {
    use super::super::{JoinRule, Listen, Policy};
    use super::*;

    fn set(assignments: &[&str]) -> Result<Config, ConfigError> {
        let set = assignments.iter().map(|text| text.to_string()).collect();
        Config::load(&Sources { set, ..Sources::default() })
    }

    fn env(vars: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let env = vars.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        Config::load(&Sources { env, ..Sources::default() })
    }

    /// Reads text as a file.
    fn file(text: &str) -> Result<Config, ConfigError> {
        let mut loading = Loading::default();
        loading.toml(text, &Origin::File("hub.toml".into()));
        loading.finish()
    }

    fn complaint(result: Result<Config, ConfigError>) -> String {
        result.expect_err("must be refused").to_string()
    }

    #[test]
    fn no_sources_give_the_defaults() {
        assert_eq!(Config::load(&Sources::default()), Ok(Config::default()));
    }

    #[test]
    fn every_default_obeys_its_own_rule_and_survives_being_written_and_read() {
        for option in OPTIONS {
            let value = option.value(&Config::default());
            let mut config = Config::default();
            (option.set)(&mut config, Input::Toml(&value)).unwrap_or_else(|error| panic!("{}: {error}", option.key));
            assert_eq!(config, Config::default(), "{}", option.key);
        }
    }

    #[test]
    fn every_option_can_be_set_from_the_environment() {
        let mut seen = std::collections::BTreeSet::new();
        for option in OPTIONS {
            assert_eq!(key_of_env(&option.env()).as_deref(), Some(option.key));
            assert!(seen.insert(option.env()), "two options share {}", option.env());
        }
    }

    #[test]
    fn stronger_sources_win() {
        let path = std::env::temp_dir().join(format!("ringhub-layers-{}.toml", std::process::id()));
        let text = "[limits]\nrooms_max = 2\ndepth_max = 10\nmessages_burst = 20\n[shards]\nturn_deliveries_max = 77\n";
        std::fs::write(&path, text).expect("a temporary file");
        let config = Config::load(&Sources {
            profile: Some("latency".to_owned()),
            file: Some(path.clone()),
            env: vec![
                ("RINGHUB_LIMITS_DEPTH_MAX".to_owned(), "11".to_owned()),
                ("RINGHUB_LIMITS_MESSAGES_BURST".to_owned(), "21".to_owned()),
            ],
            set: vec!["limits.messages_burst=22".to_owned(), "shards.count=3".to_owned()],
            flags: vec![("--shards", "shards.count", toml::Value::Integer(4))],
        });
        std::fs::remove_file(&path).expect("remove it");
        let config = config.expect("valid");
        assert_eq!(config.heartbeat.interval_s, 15, "the profile is over the defaults");
        assert_eq!(config.shards.turn_deliveries_max, 77, "the file is over the profile");
        assert_eq!(config.limits.rooms_max, 2);
        assert_eq!(config.limits.depth_max, 11, "the environment is over the file");
        assert_eq!(config.limits.messages_burst, 22, "--set is over the environment");
        assert_eq!(config.shards.count, 4, "flags are over --set");
    }

    #[test]
    fn all_profiles_are_valid() {
        for name in profiles::names() {
            let sources = Sources { profile: Some(name.to_owned()), ..Sources::default() };
            let config = Config::load(&sources).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(config == Config::default(), name == "default", "{name}");
        }
        let unknown = Config::load(&Sources { profile: Some("fast".to_owned()), ..Sources::default() });
        assert!(complaint(unknown).contains("default, latency, throughput, density"));
    }

    #[test]
    fn unknown_keys_are_errors_that_name_the_nearest_known_one() {
        let cases = [
            ("limits.mesage_bytes_max=1", "did you mean limits.message_bytes_max?"),
            ("heartbeat.interval=1", "did you mean heartbeat.interval_s?"),
            ("message_bytes_max=4096", "did you mean limits.message_bytes_max?"),
            ("auth.outbox_bytes_max=4096", "did you mean limits.outbox_bytes_max?"),
            ("rooms.quote.polcy=latest", "did you mean rooms.quote.policy?"),
            ("brokers.kind=memory", "did you mean broker.kind?"),
        ];
        for (assignment, expected) in cases {
            let complaint = complaint(set(&[assignment]));
            assert!(
                complaint.contains("(set by --set): unknown option") && complaint.contains(expected),
                "{complaint}"
            );
        }
        assert!(!complaint(set(&["xyzzy=1"])).contains("did you mean"), "a wild guess would mislead");
    }

    #[test]
    fn values_out_of_range_name_key_source_and_range() {
        assert_eq!(
            complaint(env(&[("RINGHUB_LIMITS_DEPTH_MAX", "9999")])),
            "limits.depth_max (set by RINGHUB_LIMITS_DEPTH_MAX in the environment): 9999 is out of range; \
             allowed: 4 to 512 levels"
        );
        assert_eq!(
            complaint(file("[ring]\nbuffers = 1000\n")),
            "ring.buffers (set in hub.toml): 1000 is out of range; allowed: a power of two from 16 to 32768 buffers"
        );
        for wrong in ["limits.depth_max=-1", "limits.depth_max=99999999999999999999999", "ring.buffers=70000"] {
            assert!(complaint(set(&[wrong])).contains("allowed:"), "{wrong}");
        }
        assert!(complaint(set(&["rooms.quote.history_events_max=9999999"])).contains("allowed: 0 to 1000000 events"));
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let error = file("nonsense = 1\n[limits]\ndepth_max = 1\nrooms_max = \"many\"\n[auth]\nleeway_s = 301\n");
        let problems = error.expect_err("four problems").problems;
        let mut keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["auth.leeway_s", "limits.depth_max", "limits.rooms_max", "nonsense"]);
    }

    #[test]
    fn a_file_that_is_no_toml_is_refused_without_quoting_it() {
        let complaint = complaint(file("[auth]\nsecret = \"hunter2\n"));
        assert!(complaint.contains("in hub.toml: not TOML: line 2"), "{complaint}");
        assert!(!complaint.contains("hunter2"), "{complaint}");
        let missing = Config::check_file(Path::new("/no/such/file.toml"));
        assert!(missing.expect_err("missing").to_string().contains("cannot read /no/such/file.toml"));
    }

    #[test]
    fn an_assignment_without_a_value_is_refused_without_quoting_it() {
        let complaint = complaint(set(&["hunter2"]));
        assert!(complaint.contains("KEY=VALUE") && !complaint.contains("hunter2"), "{complaint}");
    }

    #[test]
    fn features_of_other_versions_are_refused_by_name() {
        for assignment in ["store.path=/x", "journal.path=/x", "broker.kind=redis", "broker.redis.url=redis://x"] {
            assert!(complaint(set(&[assignment])).contains("not available in this version"), "{assignment}");
        }
        assert!(complaint(file("[broker.redis]\nurl = \"redis://x\"\n")).contains("not available"));
        assert_eq!(set(&["broker.kind=memory", "store.path="]), Ok(Config::default()));
    }

    #[test]
    fn no_authentication_is_for_loopback_only() {
        for local in ["127.0.0.1:8000", "[::1]:8000", "localhost:0", "unix:/run/ringhub.sock", "127.8.9.1:1"] {
            assert!(set(&["auth.enabled=false", &format!("listen.public={local}")]).is_ok(), "{local}");
        }
        for open in ["0.0.0.0:8000", "[::]:8000", "192.0.2.1:8000"] {
            assert!(complaint(set(&["auth.enabled=false", &format!("listen.public={open}")])).contains("loopback"));
            assert!(complaint(set(&["auth.enabled=false", &format!("listen.internal={open}")])).contains(open));
            assert!(set(&[&format!("listen.public={open}")]).is_ok());
        }
    }

    #[test]
    fn listeners_are_one_or_a_list() {
        let one = file("[listen]\npublic = \"0.0.0.0:80\"\n").expect("one").listen.public;
        assert_eq!(one, ["0.0.0.0:80".parse::<Listen>().expect("address")]);
        let two = file("[listen]\npublic = [\"127.0.0.1:80\", \"unix:/run/hub.sock\"]\n").expect("two").listen.public;
        assert_eq!(two.len(), 2);
        assert_eq!(set(&["listen.public=127.0.0.1:80,unix:/run/hub.sock"]).expect("two").listen.public, two);
        assert!(complaint(set(&["listen.public=127.0.0.1:80,127.0.0.1:80"])).contains("twice"));
        assert!(set(&["listen.public=127.0.0.1:0,127.0.0.1:0"]).is_ok());
        for wrong in ["", "8000", "example.com:80", "127.0.0.1", "unix:relative", "unix:"] {
            assert!(set(&[&format!("listen.public={wrong}")]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_secret_given_as_text_is_taken_as_it_is() {
        let secret = |text: &str| set(&[&format!("auth.secret={text}")]).expect("valid").auth.secret;
        assert_eq!(secret("a,b:c d").first().map(|secret| secret.secret.clone()).as_deref(), Some("a,b:c d"));
        assert!(secret("").is_empty());
        let list = secret(r#"["one", { kid = "2", secret = "two" }]"#);
        let list: Vec<_> = list.iter().map(|secret| (secret.kid.as_deref(), secret.secret.as_str())).collect();
        assert_eq!(list, [(None, "one"), (Some("2"), "two")]);
        for wrong in [r#"[{kid="1",secret="a"},{kid="1",secret="b"}]"#, r#"[{kid="1"}]"#, r#"[""]"#, "[1]"] {
            assert!(set(&[&format!("auth.secret={wrong}")]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn numbers_of_bytes_may_have_a_unit() {
        assert_eq!(set(&["limits.message_bytes_max=64KiB"]).expect("valid").limits.message_bytes_max, 65_536);
        assert_eq!(set(&["limits.message_bytes_max=2 MiB"]).expect("valid").limits.message_bytes_max, 2 << 20);
        assert!(set(&["limits.message_bytes_max=2MB"]).is_err());
        assert!(set(&["limits.depth_max=1KiB"]).is_err(), "levels are no bytes");
    }

    #[test]
    fn a_kind_is_declared_by_being_named() {
        let config = file(
            "[rooms.zebra]\n[rooms.chat]\njoin = [\"chat:{name}:talk\", \"everyone\"]\nhistory_events_max = 5\n\
             [rooms.quote]\npolicy = \"latest\"\npresence_events = true\n",
        );
        let config = config.expect("valid");
        let names: Vec<&str> = config.kinds.iter().map(|kind| kind.name.as_str()).collect();
        assert_eq!(names[names.len() - 2..], ["chat", "zebra"], "built-in kinds first, then by name");
        let chat = config.kind("chat").expect("declared");
        assert_eq!(chat.join, [JoinRule::Permission("chat:{name}:talk".to_owned()), JoinRule::Everyone]);
        assert_eq!((config.history_events_max(chat), chat.policy), (5, Policy::CatchUp));
        let quote = config.kind("quote").expect("built in");
        assert_eq!((quote.policy, quote.presence_events), (Policy::Latest, true));
        for wrong in ["rooms.Chat.urgent=true", "rooms.a-b.urgent=true", "rooms..urgent=true", "rooms.chat=1"] {
            assert!(set(&[wrong]).is_err(), "{wrong}");
        }
        assert!(set(&["rooms.chat.join=chat"]).is_err(), "a misspelt word must not pass as a permission");
    }

    #[test]
    fn kinds_and_roles_can_be_set_from_the_environment() {
        let config = env(&[
            ("RINGHUB_ROOMS_SUPPORT_TICKET_HISTORY_EVENTS_MAX", "7"),
            ("RINGHUB_ROOMS_SUPPORT_TICKET_JOIN", "everyone"),
            ("RINGHUB_ROLES_AUDITOR", "websocket:connect,project:*:read"),
        ]);
        let config = config.expect("valid");
        let kind = config.kind("support_ticket").expect("declared");
        assert_eq!((kind.history_events_max, kind.join.clone()), (Some(7), vec![JoinRule::Everyone]));
        assert_eq!(config.roles["auditor"], ["websocket:connect", "project:*:read"]);
    }

    #[test]
    fn foreign_and_misspelt_variables_are_told_apart() {
        let foreign = [
            ("PATH", "/bin"),
            ("RINGHUB_TOKEN", "x"),
            ("RINGHUB_SERVICE_HOST", "10.0.0.1"),
            ("RINGHUB_PORT_8000_TCP", "tcp://10.0.0.1:8000"),
        ];
        assert_eq!(env(&foreign), Ok(Config::default()));
        let complaint = complaint(env(&[("RINGHUB_LIMIT_ROOMS_MAX", "1")]));
        assert!(complaint.contains("did you mean RINGHUB_LIMITS_ROOMS_MAX?"), "{complaint}");
    }

    #[test]
    fn origins_must_be_able_to_match() {
        assert!(set(&["auth.origins=https://a.example, https://*.b.example:8443, *"]).is_ok());
        for wrong in ["a.example", "https://a.example/", "https://a.*.example", "https://"] {
            assert!(set(&[&format!("auth.origins={wrong}")]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_reload_keeps_what_needs_a_restart_and_names_it() {
        let running = set(&["shards.count=2", "auth.enabled=false"]).expect("valid");
        let new = set(&["shards.count=4", "limits.rooms_max=5", "auth.enabled=false"]).expect("valid");
        let (config, kept) = running.reloaded(new).expect("valid together");
        assert_eq!((config.shards.count, config.limits.rooms_max, kept), (2, 5, vec!["shards.count"]));
        let same = running.reloaded(running.clone()).expect("valid");
        assert_eq!(same, (running, vec![]));
    }
}
