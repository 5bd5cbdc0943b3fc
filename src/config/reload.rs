//! What a running hub takes over from a configuration read again.

use super::options::{Config, OPTIONS};
use super::problem::ConfigError;
use super::table::Reload;
use super::validate;

impl Config {
    /// `new` as far as a running hub can take it: options that need a restart keep their value, and are named.
    /// The mixture is checked again, since kept and new values may not go together.
    pub fn reloaded(&self, mut new: Config) -> Result<(Config, Vec<&'static str>), ConfigError> {
        let restart = OPTIONS.iter().filter(|option| option.reload == Reload::Restart);
        let mut kept: Vec<_> =
            restart.filter(|option| (option.keep)(self, &mut new)).map(|option| option.key).collect();
        // What rooms of a kind have in memory and in the journal can't be made the same afterwards.
        let mut durable_kept = false;
        for kind in &mut new.kinds {
            if let Some(old) = self.kind(&kind.name).filter(|old| old.durable != kind.durable) {
                kind.durable = old.durable;
                durable_kept = true;
            }
        }
        kept.extend(durable_kept.then_some("rooms.KIND.durable"));
        let problems = validate::problems(&new);
        if problems.is_empty() { Ok((new, kept)) } else { Err(ConfigError { problems }) }
    }
}
