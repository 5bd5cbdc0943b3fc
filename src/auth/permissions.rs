//! What an identity may do.
//!
//! A permission is a few parts separated by colons (`project:42:read`); `*` in a granted one stands for one whole part.
//! The name of a room counts as one part, colons in it included, so that `agent:*:monitor` covers `agent:team:7` too.

use std::fmt;
use std::sync::{Arc, LazyLock};

use rustc_hash::FxHashSet;

use super::withdrawal::{self, TokenMark, Withdrawal, Withdrawn};
use crate::config::{JoinRule, KindConfig};

/// Needed to connect.
pub const CONNECT: &str = "websocket:connect";
/// Needed to subscribe to anything.
pub const SUBSCRIBE: &str = "websocket:subscribe";
/// Needed to publish anything.
pub const PUBLISH: &str = "websocket:publish";
/// Allows all.
pub const ADMIN: &str = "websocket:admin";

/// A set of granted permissions; clones share it.
#[derive(Clone)]
pub struct Permissions {
    set: Arc<Set>,
}

#[derive(Default)]
struct Set {
    admin: bool,
    /// Permissions without a wildcard.
    exact: FxHashSet<Box<str>>,
    /// Permissions with one.
    patterns: Vec<Box<str>>,
    /// What was withdrawn from the session, which goes before all that was granted where it binds this token.
    withdrawn: Option<(Withdrawn, TokenMark)>,
    /// What of it a backend has added to the token's; it outlives the token.
    added: Option<Arc<Added>>,
}

/// What a backend grants one client beyond its token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Added {
    /// Permissions.
    pub permissions: Vec<Box<str>>,
    /// Rooms that it may be in, whatever its permissions are.
    pub rooms: Vec<Box<str>>,
}

impl Permissions {
    /// The set of the permissions given.
    pub fn new<'a>(granted: impl IntoIterator<Item = &'a str>) -> Self {
        let mut set = Set::default();
        for permission in granted {
            if !permission.split(':').any(|part| part == "*") {
                set.exact.insert(permission.into());
            } else if !set.patterns.iter().any(|known| **known == *permission) {
                set.patterns.push(permission.into());
            }
        }
        set.find_admin();
        Self { set: Arc::new(set) }
    }

    /// The set that a token with that mark grants, without what is withdrawn besides.
    pub fn without(&self, withdrawn: &[Withdrawal], mark: TokenMark) -> Self {
        if withdrawn.is_empty() {
            return self.clone();
        }
        let before = self.withdrawn().map(|withdrawn| &**withdrawn).unwrap_or_default();
        let withdrawn = Some((withdrawal::merge(before, withdrawn), mark));
        let mut set = Set {
            exact: self.set.exact.clone(),
            patterns: self.set.patterns.clone(),
            withdrawn,
            added: self.set.added.clone(),
            admin: false,
        };
        set.find_admin();
        Self { set: Arc::new(set) }
    }

    /// What was withdrawn, if anything was, whether or not it binds the token.
    pub fn withdrawn(&self) -> Option<&Withdrawn> {
        self.set.withdrawn.as_ref().map(|(withdrawn, _)| withdrawn)
    }

    /// This set, and what a backend has added.
    pub fn with(&self, added: Arc<Added>) -> Self {
        let own = self.set.exact.iter().chain(&self.set.patterns).chain(&added.permissions).map(|text| &**text);
        let mut set = Self::new(own);
        if let Some(set) = Arc::get_mut(&mut set.set) {
            set.added = Some(added);
            set.withdrawn = self.set.withdrawn.clone();
            set.find_admin();
        }
        set
    }

    /// This set of a new token, and what a backend had added to the old one's.
    pub fn in_place_of(&self, old: &Permissions) -> Self {
        old.set.added.as_ref().map_or_else(|| self.clone(), |added| self.with(added.clone()))
    }

    /// Whether a backend has put the holder into a room, and the permission to read it was not withdrawn since.
    pub fn was_put_into(&self, kind: &str, name: &str) -> bool {
        let is_put = self.set.added.as_ref().is_some_and(|added| {
            added.rooms.iter().any(|room| match room.split_once(':') {
                Some(parts) => parts == (kind, name),
                None => **room == *kind && name.is_empty(),
            })
        });
        is_put && !self.set.takes("{kind}:{name}:read", kind, name)
    }

    /// The set that allows all.
    pub fn admin() -> Self {
        static ADMIN_SET: LazyLock<Permissions> = LazyLock::new(|| Permissions::new([ADMIN]));
        ADMIN_SET.clone()
    }

    /// The set that allows nothing.
    pub fn none() -> Self {
        Self::new([])
    }

    /// Whether `websocket:admin` was granted.
    pub fn is_admin(&self) -> bool {
        self.set.admin
    }

    /// The granted permissions in order of the alphabet.
    pub fn list(&self) -> Vec<&str> {
        let mut granted: Vec<&str> = self.set.exact.iter().chain(&self.set.patterns).map(|text| &**text).collect();
        granted.sort_unstable();
        granted
    }

    /// Whether `permission` was granted.
    pub fn allows(&self, permission: &str) -> bool {
        self.allows_all() || self.set.holds(&permission.split(':').collect::<Vec<_>>(), permission)
    }

    /// Whether the holder may connect at all.
    pub fn may_connect(&self) -> bool {
        self.allows(CONNECT)
    }

    /// Whether the holder may subscribe at all; for a room, [`Permissions::may_join`] has to hold too.
    pub fn may_subscribe(&self) -> bool {
        self.allows(SUBSCRIBE)
    }

    /// Whether the holder may be in the room `name` of a kind. `name` is empty for a room without one (`global`).
    pub fn may_join(&self, kind: &KindConfig, name: &str, user_id: &str, session_id: &str) -> bool {
        let by_rule = |rule: &JoinRule| match rule {
            JoinRule::Everyone => true,
            JoinRule::OwnUser => name == user_id,
            JoinRule::OwnSession => name == session_id,
            JoinRule::Permission(template) => self.holds(template, &kind.name, name),
        };
        // Who may do all needs no permission that a rule could name; one that a rule names may have been withdrawn.
        let names_none = || !kind.join.iter().any(|rule| matches!(rule, JoinRule::Permission(_)));
        self.allows_all() || kind.join.iter().any(by_rule) || (self.set.admin && names_none())
    }

    /// Whether the holder may publish into the room `name` of a kind: `websocket:publish` and `{kind}:{name}:write`.
    /// For a room without a name, its kind stands for the name, and `{kind}:write` will do.
    pub fn may_publish(&self, kind: &str, name: &str) -> bool {
        if self.allows_all() {
            return true;
        }
        if !self.allows(PUBLISH) {
            return false;
        }
        match name {
            "" => {
                let either = ["{kind}:{kind}:write", "{kind}:write"];
                either.iter().any(|template| self.holds(template, kind, ""))
                    && !either.iter().any(|template| self.set.takes(template, kind, ""))
            }
            name => self.holds("{kind}:{name}:write", kind, name),
        }
    }

    /// Whether the permission that `template` names for a room was granted.
    fn holds(&self, template: &str, kind: &str, name: &str) -> bool {
        named(template, kind, name, |parts, whole| self.set.holds(parts, whole))
    }

    /// Whether there is nothing that the holder may not do.
    fn allows_all(&self) -> bool {
        self.set.admin && self.set.binding().next().is_none()
    }
}

/// The permission that `template` names for a room, cut and uncut.
fn named<R>(template: &str, kind: &str, name: &str, look: impl FnOnce(&[&str], &str) -> R) -> R {
    // The template is cut into parts before the name goes in, so that the name stays one part.
    let parts: Vec<String> =
        template.split(':').map(|part| part.replace("{kind}", kind).replace("{name}", name)).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    look(&parts, &parts.join(":"))
}

impl Set {
    fn find_admin(&mut self) {
        let parts = ADMIN.split(':').collect::<Vec<_>>();
        self.admin = self.allows(&parts, ADMIN) && !self.is_taken(&parts, ADMIN);
    }

    /// Whether a permission is there, granted or because all are, and was not withdrawn.
    fn holds(&self, parts: &[&str], whole: &str) -> bool {
        (self.admin || self.allows(parts, whole)) && !self.is_taken(parts, whole)
    }

    fn is_taken(&self, parts: &[&str], whole: &str) -> bool {
        self.binding().any(|one| one.takes(parts, whole))
    }

    fn binding(&self) -> impl Iterator<Item = &Withdrawal> {
        let all = self.withdrawn.iter().flat_map(|(withdrawn, mark)| withdrawn.iter().map(|one| (one, *mark)));
        all.filter(|(one, mark)| one.binds(*mark)).map(|(one, _)| one)
    }

    /// Whether the permission that `template` names for a room was withdrawn.
    fn takes(&self, template: &str, kind: &str, name: &str) -> bool {
        self.withdrawn.is_some() && named(template, kind, name, |parts, whole| self.is_taken(parts, whole))
    }

    /// Whether a permission was granted; `parts` and `whole` are the same, cut and uncut.
    fn allows(&self, parts: &[&str], whole: &str) -> bool {
        self.exact.contains(whole) || self.patterns.iter().any(|pattern| matches(pattern, parts))
    }
}

pub(super) fn matches(pattern: &str, parts: &[&str]) -> bool {
    let mut granted = pattern.split(':');
    let all = parts.iter().all(|part| granted.next().is_some_and(|granted| granted == "*" || granted == *part));
    all && granted.next().is_none()
}

impl fmt::Debug for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.list()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_star_stands_for_exactly_one_part() {
        let granted = Permissions::new(["project:*:read", "agent:*:monitor"]);
        assert!(granted.allows("project:42:read"));
        assert!(!granted.allows("project:42:write"));
        assert!(!granted.allows("project:read"));
        assert!(!granted.allows("project:4:2:read"));
        assert!(!granted.allows("project:42:read:more"));
        assert!(!Permissions::new(["project:4*:read"]).allows("project:42:read"));
        assert!(!Permissions::new(["*"]).allows("project:42:read"));
    }

    #[test]
    fn admin_allows_all_however_it_was_granted() {
        for granted in ["websocket:admin", "websocket:*", "*:*"] {
            let granted = Permissions::new([granted]);
            assert!(granted.is_admin());
            assert!(granted.allows("project:42:write"));
            assert!(granted.may_publish("user", "bob"));
        }
        assert!(!Permissions::new(["websocket:connect", "*:admin:*"]).is_admin());
        assert!(!Permissions::none().allows("websocket:connect"));
    }

    #[test]
    fn a_wildcard_in_what_is_asked_for_is_only_a_letter() {
        assert!(!Permissions::new(["project:42:read"]).allows("project:*:read"));
        let config = Config::default();
        let project = config.kind("project").expect("built in");
        assert!(!Permissions::new(["project:42:read"]).may_join(project, "*", "alice", "s1"));
    }

    #[test]
    fn built_in_kinds_are_joined_as_the_protocol_says() {
        let config = Config::default();
        let kind = |name: &str| config.kind(name).expect("built in");
        let cases = [
            ("project", "42", "project:42:read", true),
            ("project", "42", "project:*:read", true),
            ("project", "42", "project:43:read", false),
            ("project", "42", "project:42:write", false),
            ("quote", "q1", "quote:q1:read", true),
            ("workflow", "w", "workflow:w:read", true),
            ("analytics", "a", "analytics:a:read", true),
            ("agent", "a1", "agent:a1:monitor", true),
            ("agent", "a1", "agent:a1:read", false),
            ("agent", "team:7", "agent:*:monitor", true),
            ("user", "alice", "nothing:at:all", true),
            ("user", "bob", "user:bob:read", false),
            ("session", "s1", "nothing:at:all", true),
            ("session", "s2", "nothing:at:all", false),
            ("session", "alice", "nothing:at:all", false),
            ("admin", "ops", "admin:ops:read", false),
            ("admin", "ops", "websocket:admin", true),
            ("user", "bob", "websocket:admin", true),
            ("global", "", "nothing:at:all", true),
        ];
        for (kind_name, name, granted, expected) in cases {
            let allowed = Permissions::new([granted]).may_join(kind(kind_name), name, "alice", "s1");
            assert_eq!(allowed, expected, "{kind_name}:{name} with {granted}");
        }
    }

    #[test]
    fn a_room_name_cannot_reach_over_into_other_parts_of_a_permission() {
        let config = Config::default();
        let agent = config.kind("agent").expect("built in");
        let granted = Permissions::new(["agent:a1:monitor"]);
        assert!(!granted.may_join(agent, "a1:monitor", "alice", "s1"));
        assert!(!granted.may_join(agent, "{kind}", "alice", "s1"));
    }

    #[test]
    fn what_a_backend_adds_outlives_the_token() {
        let rooms = vec!["project:7".into(), "global".into()];
        let added = Arc::new(Added { permissions: vec!["project:*:read".into()], rooms });
        let first = Permissions::new(["websocket:connect"]).with(added);
        assert!(first.allows("project:42:read") && first.allows("websocket:connect"));
        assert!(first.was_put_into("project", "7") && first.was_put_into("global", ""));
        assert!(!first.was_put_into("project", "8") && !first.was_put_into("project", ""));
        let second = Permissions::new(["websocket:publish"]).in_place_of(&first);
        assert!(second.allows("project:42:read") && second.was_put_into("project", "7"));
        assert!(!second.allows("websocket:connect"), "what the old token had alone is gone");
        let plain = Permissions::new(["a:b"]);
        assert!(!plain.in_place_of(&plain).was_put_into("project", "7"));
    }

    #[test]
    fn publishing_needs_both_permissions() {
        assert!(Permissions::new(["websocket:publish", "project:42:write"]).may_publish("project", "42"));
        assert!(!Permissions::new(["project:42:write"]).may_publish("project", "42"));
        assert!(!Permissions::new(["websocket:publish", "project:42:read"]).may_publish("project", "42"));
        assert!(!Permissions::new(["websocket:publish"]).may_publish("user", "alice"));
        for granted in ["global:write", "global:*:write", "global:global:write"] {
            assert!(Permissions::new(["websocket:publish", granted]).may_publish("global", ""), "{granted}");
        }
        assert!(!Permissions::new(["websocket:publish"]).may_publish("global", ""));
    }

    fn without(granted: &[&str], withdrawn: &[&str]) -> Permissions {
        let list: Vec<_> = withdrawn.iter().map(|one| Withdrawal::new(one, 1, Default::default())).collect();
        Permissions::new(granted.iter().copied()).without(&list, TokenMark::default())
    }

    #[test]
    fn what_was_withdrawn_goes_before_what_was_granted() {
        let config = Config::default();
        let project = config.kind("project").expect("built in");
        let granted = without(&["project:*:read", "websocket:publish", "project:*:write"], &["project:42:read"]);
        assert!(!granted.allows("project:42:read") && granted.allows("project:43:read"));
        assert!(!granted.may_join(project, "42", "alice", "s1") && granted.may_join(project, "43", "alice", "s1"));
        assert!(granted.may_publish("project", "42"));
        let granted = without(&["project:42:read", "websocket:publish", "project:42:write"], &["project:*:*"]);
        assert!(!granted.may_join(project, "42", "alice", "s1") && !granted.may_publish("project", "42"));
        assert!(!without(&["global:*:write", "websocket:publish"], &["global:write"]).may_publish("global", ""));
    }

    #[test]
    fn an_administrator_loses_what_is_named_and_nothing_else() {
        let config = Config::default();
        let kind = |name: &str| config.kind(name).expect("built in");
        let admin = without(&["websocket:admin"], &["project:42:read"]);
        assert!(admin.is_admin() && admin.may_publish("project", "42") && admin.may_connect());
        assert!(!admin.may_join(kind("project"), "42", "a", "s") && admin.may_join(kind("project"), "43", "a", "s"));
        assert!(admin.may_join(kind("user"), "bob", "a", "s") && admin.may_join(kind("admin"), "ops", "a", "s"));
        let was = without(&["websocket:*"], &["websocket:admin"]);
        assert!(!was.is_admin() && was.may_connect() && !was.may_join(kind("admin"), "ops", "a", "s"));
        assert!(!without(&["websocket:admin"], &["websocket:connect"]).may_connect());
        assert!(!without(&["websocket:admin"], &["websocket:admin"]).may_connect());
    }
}
