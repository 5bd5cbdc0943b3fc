//! The sources of the configuration, laid over each other; and what is refused, in which words.

use std::path::Path;

use super::load::key_of_env;
use super::value::Input;
use super::{Config, ConfigError, DurableAck, JoinRule, Listen, OPTIONS, Policy, Sources, profiles};

fn set(assignments: &[&str]) -> Result<Config, ConfigError> {
    let set = assignments.iter().map(|text| text.to_string()).collect();
    Config::load(&Sources { set, ..Sources::default() })
}

fn env(vars: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let env = vars.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    Config::load(&Sources { env, ..Sources::default() })
}

fn file(text: &str) -> Result<Config, ConfigError> {
    Config::from_toml(text)
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
        assert!(complaint.contains("(set by --set): unknown option") && complaint.contains(expected), "{complaint}");
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
        "ring.buffers (set in the text): 1000 is out of range; allowed: a power of two from 16 to 32768 buffers"
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
    assert!(complaint.contains("in the text: not TOML: line 2"), "{complaint}");
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
fn a_broker_needs_servers_that_fit_together() {
    let good: &[&[&str]] = &[
        &["broker.kind=memory", "journal.path="],
        &["broker.kind=redis", "broker.redis.url=redis://127.0.0.1"],
        &["broker.kind=redis", "broker.redis.url=redis://a:1/2,rediss://b,unix:///c", "broker.redis.ca_file=/ca.pem"],
        &["broker.redis.mode=sentinel", "broker.redis.url=redis://a:26379,redis://b:26379"],
        &["broker.redis.username=hub", "broker.redis.password=hunter2", "broker.redis.prefix=app:1"],
    ];
    for assignments in good {
        assert!(set(assignments).is_ok(), "{assignments:?}: {:?}", set(assignments));
    }
    let bad: &[(&[&str], &str)] = &[
        (&["broker.kind=redis"], "broker.redis.url: broker.kind = \"redis\" needs it"),
        (&["broker.kind=kafka"], "expected memory or redis"),
        (&["broker.redis.url=redis://a,redis://a"], "in the list twice"),
        (&["broker.redis.mode=cluster", "broker.redis.url=redis://a/3"], "without a database"),
        (&["broker.redis.mode=cluster", "broker.redis.url=unix:///a"], "HOST:PORT"),
        (&["broker.redis.mode=sentinel", "broker.redis.url=redis://a,rediss://b"], "have TLS, or none"),
        (&["broker.redis.url=redis://a", "broker.redis.ca_file=/ca.pem"], "only rediss://"),
        (&["broker.redis.username=hub"], "needs broker.redis.password"),
        (&["broker.redis.prefix={app}"], "letters, digits"),
        (&["broker.redis.timeout_ms=1"], "allowed: 100 to 60000 ms"),
    ];
    for (assignments, expected) in bad {
        let complaint = complaint(set(assignments));
        assert!(complaint.contains(expected), "{assignments:?}: {complaint}");
    }
    let config = file("[broker]\nkind = \"redis\"\n[broker.redis]\nurl = \"redis://x\"\npassword = \"hunter2\"\n");
    let config = config.expect("a group within a group");
    assert!(!format!("{config:?}").contains("hunter2") && !super::reference::listing(&config).contains("hunter2"));
    assert!(env(&[("RINGHUB_BROKER_REDIS_URL", "redis://x")]).is_ok_and(|config| config.broker_redis.url.len() == 1));
}

#[test]
fn a_node_among_others_has_a_name_of_its_own() {
    let alone = Config::default();
    assert_eq!(alone.node_name("web-7.example.com", 0xab), "node-1");
    let with = set(&["broker.kind=redis", "broker.redis.url=redis://x"]).expect("valid");
    assert_eq!(with.node_name("web-7.example.com", 0xab), "web-7-00ab");
    assert_eq!(with.node_name("", 0xab), "node-00ab");
    let named = set(&["broker.kind=redis", "broker.redis.url=redis://x", "node.name=node-1"]).expect("valid");
    assert_eq!(named.node_name("web-7", 0xab), "node-1");
    let named = set(&["broker.kind=redis", "broker.redis.url=redis://x", "node.name=blue"]).expect("valid");
    assert_eq!(named.node_name("web-7", 0xab), "blue");
}

#[test]
fn the_demo_needs_what_its_clients_and_its_page_need() {
    assert!(set(&["endpoints.demo=true"]).is_ok());
    assert!(set(&["endpoints.demo=true", "listen.public=0.0.0.0:8000"]).is_ok(), "with tokens");
    for (with, why) in [
        ("listen.internal=127.0.0.1:8090", "listen.internal"),
        ("listen.public=unix:/run/ringhub.sock", "TCP"),
        ("auth.jwks=/etc/ringhub/jwks.json", "auth.secret"),
    ] {
        let complaint = complaint(set(&["endpoints.demo=true", with]));
        assert!(complaint.contains("endpoints.demo") && complaint.contains(why), "{with}: {complaint}");
    }
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
fn socketio_has_a_path_of_its_own_or_none() {
    for right in ["", "/socket.io/", "/socket.io", "/a/b/c", "/%20", "/ws2/", "/api2", "/a:b*c"] {
        let config = set(&[&format!("socketio.path={right}")]);
        assert_eq!(config.expect(right).socketio.path.unwrap_or_default(), right);
    }
    let taken = ["/ws", "/ws/a", "/api/v1/x", "/metrics/", "/events", "/echo", "/ringhub.js", "/webhooks/x", "/live"];
    let odd = ["/", "//", "socket.io", "/a b", "/a?b", "/a#b", "/{a}", "/é", "/a\"b"];
    // A segment that begins like this is no text to those who look for the route.
    let special = ["/:a", "/a/:b/", "/*", "/a/*b"];
    for wrong in taken.into_iter().chain(odd).chain(special) {
        let complaint = complaint(set(&[&format!("socketio.path={wrong}")]));
        assert!(complaint.contains("socketio.path") && complaint.contains("expected a path of its own"), "{complaint}");
    }
}

#[test]
fn the_namespaces_of_socketio_can_be_written_and_told_apart() {
    let set = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
        file(&format!("socketio.namespaces = [{}]", names.join(",")))
    };
    let longest = format!("/{}", "a".repeat(127));
    for right in [&["/"][..], &["/ws", "/é", "/a b"], &[&longest], &[]] {
        assert_eq!(set(right).expect("valid").socketio.namespaces, right);
    }
    for wrong in [&["ws"][..], &["/a,b"], &["/a\tb"], &["/a", "/b", "/a"], &[&format!("{longest}a")]] {
        let complaint = complaint(set(wrong));
        assert!(complaint.contains("socketio.namespaces") && complaint.contains("begins with a slash"), "{complaint}");
    }
    let many: Vec<String> = (0..=super::NAMESPACES_MAX).map(|number| format!("/{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(set(&many[1..]).is_ok());
    assert!(complaint(set(&many)).contains("at most"));
}

#[test]
fn a_cookie_of_socketio_has_a_name_or_there_is_none() {
    let cookie = |name: &str| set(&[&format!("socketio.cookie={name}")]).map(|config| config.socketio.cookie);
    assert_eq!(cookie("io"), Ok(Some("io".to_owned())));
    assert_eq!(cookie("A-b_c.9"), Ok(Some("A-b_c.9".to_owned())));
    assert_eq!(cookie(""), Ok(None), "not one without a name");
    for wrong in ["a b", "a;b", "a=b", "é", "a\tb"] {
        assert!(cookie(wrong).is_err(), "{wrong}");
    }
    // Its message says where: a bound of messages is the client's bound, unless it has one of its own.
    let bytes =
        |payload: &str| set(&[&format!("socketio.payload_bytes_max={payload}"), "limits.message_bytes_max=2000"]);
    assert_eq!(
        ["0", "5000"].map(|payload| bytes(payload).map(|config| config.engine_bytes_max())),
        [Ok(2000), Ok(5000)]
    );
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

#[test]
fn durable_kinds_need_a_journal_and_sessions_are_none() {
    let error = Config::from_toml("rooms.project.durable = true").expect_err("no journal").to_string();
    assert!(error.contains("rooms.project.durable") && error.contains("journal.path"), "{error}");
    let text = "journal.path = \"/j\"\nrooms.project = { durable = true, durable_ack = \"written\" }";
    let config = Config::from_toml(text).expect("valid");
    let kind = config.kind("project").expect("built in");
    assert_eq!((kind.durable, kind.durable_ack), (true, DurableAck::Written));
    let error = Config::from_toml("journal.path = \"/j\"\nrooms.session.durable = true").expect_err("no durable kind");
    assert!(error.to_string().contains("sessions end with the process"), "{error}");
    let error = Config::from_toml("journal.bytes_max = 67108864").expect_err("too small").to_string();
    assert!(error.contains("eight times journal.segment_bytes"), "{error}");
}

#[test]
fn whether_a_kind_is_durable_changes_with_a_restart_only() {
    let old = Config::from_toml("journal.path = \"/j\"\nrooms.project.durable = true").expect("valid");
    let new = Config::from_toml("journal.path = \"/k\"\nrooms.quote.durable = true").expect("valid");
    let (config, kept) = old.reloaded(new).expect("reloaded");
    assert_eq!(kept, ["journal.path", "rooms.KIND.durable"]);
    assert!(config.kind("project").is_some_and(|kind| kind.durable));
    assert!(config.kind("quote").is_some_and(|kind| !kind.durable));
    let without = Config::default();
    let new = Config::from_toml("journal.path = \"/k\"\nrooms.note.durable = true").expect("valid");
    assert!(without.reloaded(new).is_err(), "there is no journal to write to");
}
