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

    /// Reads TOML text over the defaults.
    ///
    /// ```
    /// let config = ringhub::config::Config::from_toml("[limits]\nrooms_max = 50").unwrap();
    /// assert_eq!(config.limits.rooms_max, 50);
    ///
    /// let error = ringhub::config::Config::from_toml("limits.room_max = 50").unwrap_err();
    /// assert_eq!(
    ///     error.to_string(),
    ///     "limits.room_max (set in the text): unknown option; did you mean limits.rooms_max?"
    /// );
    /// ```
    pub fn from_toml(text: &str) -> Result<Config, ConfigError> {
        let mut loading = Loading::default();
        loading.toml(text, &Origin::Text);
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
    OPTIONS.iter().map(|option| option.key)
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
pub(super) fn key_of_env(var: &str) -> Option<String> {
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
