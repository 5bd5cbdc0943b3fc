//! Walks the tree and holds it to its own rules: which layer may name what, where unsafe may stand, how large files get,
//! and that the documents say what the code says. A rule that must give way gives way here, with its reason.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A file of the tree: its path from the top and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The lines that are compiled into the program: no comments, nothing from `mod tests` on.
    fn program_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .lines()
            .enumerate()
            .take_while(|(_, line)| !line.starts_with("mod tests"))
            .map(|(index, line)| (index + 1, line.split("//").next().unwrap_or("")))
    }

    fn within(&self, folders: &[&str]) -> bool {
        folders.iter().any(|folder| self.path.starts_with(folder) || self.path == *folder)
    }

    /// Where one of the words stands in the program, as whole path segments or identifiers.
    fn uses(&self, words: &[&str]) -> Vec<String> {
        self.program_lines()
            .flat_map(|(number, line)| {
                words.iter().filter(move |word| names(line, word)).map(move |word| (number, word))
            })
            .map(|(number, word)| format!("{}:{number} names {word}", self.path))
            .collect()
    }
}

/// Whether `word` stands in `line` with no identifier character on either side.
fn names(line: &str, word: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(part_of_name) && !line[at + word.len()..].starts_with(part_of_name))
}

fn top() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All files below `folder` whose names end in one of `endings`.
fn files(folder: &str, endings: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![top().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.expect("the entries of a folder can be read").path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if path.is_dir() {
                if !name.starts_with('.')
                    && !["target", "node_modules", "__pycache__", "corpus"].contains(&name.as_str())
                {
                    folders.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(Source { path: from_top(&path), text: read(&path) });
            }
        }
    }
    assert!(!found.is_empty(), "nothing below {folder}");
    found
}

fn from_top(path: &Path) -> String {
    path.strip_prefix(top()).expect("every file is below the top").to_string_lossy().into_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn sources() -> Vec<Source> {
    files("src", &[".rs"])
}

fn none(findings: Vec<String>, rule: &str) {
    assert!(findings.is_empty(), "{rule}\n  {}", findings.join("\n  "));
}

const PURE: &[&str] = &["src/wire/", "src/session/", "src/hub/"];

#[test]
fn the_pure_layers_do_no_io_and_read_no_clock_and_draw_no_numbers() {
    // `std::net` addresses are values; its sockets are not. `time` formats, with the moment given.
    const IMPURE: &[&str] = &[
        "std::fs",
        "std::io::stdin",
        "std::process",
        "std::thread",
        "std::env",
        "std::os",
        "TcpStream",
        "TcpListener",
        "UdpSocket",
        "UnixStream",
        "UnixListener",
        "ToSocketAddrs",
        "Instant",
        "SystemTime",
        "UNIX_EPOCH",
        "OffsetDateTime::now_utc",
        "OffsetDateTime::now_local",
        "now_v7",
        "new_v4",
        "rand",
        "fastrand",
        "getrandom",
        "RandomState",
        "io_uring",
        "glommio",
        "libc",
        "socket2",
        "tracing",
    ];
    let findings =
        sources().iter().filter(|source| source.within(PURE)).flat_map(|source| source.uses(IMPURE)).collect();
    none(findings, "wire, session and hub are pure: bytes, now and ids come in as arguments");
}

/// The layers, and for each what it may use of this crate. `ring` lends the pure layers its values: who a connection is
/// and what time it is.
const LAYERS: &[(&str, &[&str])] = &[
    ("src/wire/", &["wire"]),
    ("src/auth/", &["auth", "config"]),
    ("src/config/", &["config", "auth", "ring"]),
    ("src/session/", &["session", "wire", "auth", "config", "ring::ConnKey", "ring::Now"]),
    ("src/hub/", &["hub", "session", "wire", "auth", "config", "ring::ConnKey", "ring::Now"]),
    ("src/ring/", &["ring"]),
    ("src/broker/", &["broker", "hub", "wire", "config", "ring::ConnKey", "control::figures", "control::histogram"]),
    ("src/shard/", &["shard", "ring", "hub", "broker", "session", "wire", "auth", "config", "control"]),
    ("src/control/", &["control", "broker", "hub", "session", "wire", "auth", "config", "ring", "node"]),
    ("src/load/", &["load", "wire", "auth", "config"]),
    ("src/demo/", &["demo", "load", "node", "hub", "auth", "config"]),
];

#[test]
fn layers_name_only_layers_below_them() {
    let sources = sources();
    let mut findings = Vec::new();
    for (layer, allowed) in LAYERS {
        for source in sources.iter().filter(|source| source.within(&[layer])) {
            for (number, line) in source.program_lines() {
                let used = line.match_indices("crate::").map(|(at, prefix)| &line[at + prefix.len()..]);
                for used in used.flat_map(imported) {
                    if !allowed.iter().any(|allowed| used == *allowed || used.starts_with(&format!("{allowed}::"))) {
                        findings.push(format!("{}:{number} names crate::{used}", source.path));
                    }
                }
            }
        }
    }
    none(findings, "layers point one way: wire <- session <- hub <- shard -> ring");
}

/// The paths of an import after `crate::`: `ring::{ConnKey, Now};` gives `ring::ConnKey` and `ring::Now`. Of longer
/// paths and nested groups the first two parts decide.
fn imported(path: &str) -> Vec<String> {
    let (head, group) = path.split_once('{').unwrap_or((path, ""));
    let name = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let head: String = head.chars().take_while(|c| name(*c)).collect();
    if group.is_empty() {
        return vec![head.trim_end_matches(':').to_owned()];
    }
    let members =
        group.split(['}', ';']).next().unwrap_or("").split(',').map(str::trim).filter(|member| !member.is_empty());
    members.map(|member| format!("{head}{member}")).collect()
}

#[test]
fn only_the_ring_names_io_uring_and_only_the_control_plane_names_glommio() {
    // Shards are pinned by glommio's CpuSet, and the log is told what of glommio is worth a line. In the control plane one
    // module hides which executor it is.
    const RING: &[&str] = &["src/ring/"];
    const GLOMMIO: &[&str] =
        &["src/control/runtime", "src/control/journal/disk.rs", "src/shard/placement.rs", "src/cli/logging.rs"];
    let sources = sources();
    let mut findings: Vec<String> = sources
        .iter()
        .filter(|source| !source.within(RING))
        .flat_map(|source| source.uses(&["use io_uring"]))
        .collect();
    findings
        .extend(sources.iter().filter(|source| !source.within(GLOMMIO)).flat_map(|source| source.uses(&["glommio"])));
    none(findings, "each runtime has its one place");
}

#[test]
fn unsafe_stays_in_the_ring_and_the_mask_kernel() {
    // Both executors take a socket only on somebody's word that its descriptor is open.
    const UNSAFE: &[&str] = &["src/ring/", "src/wire/mask.rs", "src/control/runtime/socket.rs"];
    let sources = sources();
    let findings =
        sources.iter().filter(|source| !source.within(UNSAFE)).flat_map(|source| source.uses(&["unsafe"])).collect();
    none(findings, "unsafe code has its places; elsewhere there is a safe way");
}

#[test]
fn nothing_unfinished_is_left() {
    // Put together here so that this file does not find itself.
    let marks = ["TO", "FIX", "XX"].into_iter().zip(["DO", "ME", "X"]).map(|(a, b)| format!("{a}{b}"));
    let macros = ["todo", "unimplemented"].map(|name| format!("{name}!("));
    let words: Vec<String> = marks.chain(macros).collect();
    let mut findings = Vec::new();
    for source in files("src", &[".rs", ".js"])
        .iter()
        .chain(&files("tests", &[".rs", ".py", ".js", ".mjs", ".jsx", ".html", ".sh", "run"]))
        .chain(&files("benches", &[".rs"]))
    {
        for (index, line) in source.text.lines().enumerate() {
            if let Some(word) = words.iter().find(|word| line.contains(word.as_str())) {
                findings.push(format!("{}:{} {word}", source.path, index + 1));
            }
        }
    }
    none(findings, "what is not done is an issue, not a comment");
}

#[test]
fn a_large_file_says_why() {
    const LINES_MAX: usize = 500;
    let findings = sources()
        .iter()
        .filter(|source| !source.path.ends_with("tests.rs") && !header(&source.text).contains("Larger than"))
        .map(|source| (source, source.program_lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(source, lines)| format!("{} has {lines} lines before its tests", source.path))
        .collect();
    none(
        findings,
        "a file of more than 500 lines says in its header (\"Larger than …\") why it is one idea all the same",
    );
}

#[test]
fn every_file_starts_with_what_it_is() {
    let findings = sources()
        .iter()
        .filter(|source| header(&source.text).trim().is_empty())
        .map(|source| source.path.clone())
        .collect();
    none(findings, "every file starts with a `//!` header");
}

fn header(text: &str) -> String {
    text.lines().take_while(|line| line.starts_with("//!")).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_top_level_holds_what_cargo_knows_and_tuning() {
    const KNOWN: &[&str] =
        &["Cargo.toml", "Cargo.lock", "README.md", "LICENSE", "src", "benches", "tests", "tuning", "target"];
    let findings = fs::read_dir(top())
        .expect("the top can be listed")
        .map(|entry| entry.expect("an entry can be read").file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.') && !KNOWN.contains(&name.as_str()))
        .collect();
    none(findings, "no other top-level entries");
}

#[test]
fn no_file_names_a_path_of_the_machine_it_was_written_on() {
    let places = ["/work", "/home", "/root"].map(|folder| format!("{folder}/"));
    let everything = ["src", "tests", "benches", "tuning"].into_iter().flat_map(|folder| {
        files(folder, &[".rs", ".py", ".js", ".mjs", ".jsx", ".html", ".sh", ".toml", ".md", "run"])
    });
    let mut findings = Vec::new();
    for source in everything {
        for (index, line) in source.text.lines().enumerate() {
            if places.iter().any(|place| line.contains(place.as_str())) {
                findings.push(format!("{}:{} {line}", source.path, index + 1));
            }
        }
    }
    none(findings, "paths of one machine mean nothing on another");
}

// Documents that must match the code.

/// PROTOCOL §5, in its order.
const ERROR_CODES: &[&str] = &[
    "bad_json",
    "bad_command",
    "unknown_type",
    "unauthorized",
    "forbidden",
    "not_found",
    "too_large",
    "rate_limited",
    "room_limit",
    "bad_room",
    "bad_filter",
    "lock_held",
    "lock_lost",
    "conflict",
    "unavailable",
    "internal",
];

const CLOSE_CODES: &[u16] = &[1001, 1002, 1003, 1007, 1008, 1009, 1011, 4401, 4403, 4408, 4409, 4429, 4500, 4508];

fn readme() -> String {
    read(&top().join("README.md"))
}

#[test]
fn the_readme_lists_the_error_codes_in_their_order_and_the_close_codes() {
    let readme = readme();
    let mut rest = readme.as_str();
    for code in ERROR_CODES {
        let quoted = format!("`{code}`");
        let at = rest.find(&quoted).unwrap_or_else(|| panic!("README: {code} is missing or out of order"));
        rest = &rest[at + quoted.len()..];
    }
    for code in CLOSE_CODES {
        assert!(readme.contains(&code.to_string()), "README: close code {code} is missing");
    }
}

#[test]
fn every_code_that_the_hub_sends_is_one_of_the_protocol() {
    let table = read(&top().join("src/wire/codes.rs"));
    let known: BTreeSet<&str> = ERROR_CODES.iter().copied().collect();
    let in_table: BTreeSet<&str> =
        ERROR_CODES.iter().copied().filter(|code| table.contains(&format!("\"{code}\""))).collect();
    assert_eq!(in_table, known, "src/wire/codes.rs has one entry per code of the protocol");
}

#[test]
fn the_readme_names_no_option_that_does_not_exist() {
    let known: BTreeSet<String> = ringhub::config::OPTIONS.iter().map(|option| option.key.to_owned()).collect();
    let groups: BTreeSet<&str> = known.iter().filter_map(|key| key.split('.').next()).collect();
    // Messages whose type looks like an option.
    const MESSAGES: &[&str] = &["auth.refresh", "auth.refreshed", "auth.expiring"];
    let readme = readme();
    let findings = readme
        .split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|code| code.split([' ', '=']).find(|word| word.split('.').count() >= 2))
        .filter(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c == '.'))
        .filter(|word| word.split('.').next().is_some_and(|group| groups.contains(group)))
        .filter(|word| !known.contains(*word) && !MESSAGES.contains(word))
        .map(str::to_owned)
        .collect();
    none(findings, "the README names options as the configuration knows them");
}

#[test]
fn both_commands_of_the_readme_are_there() {
    let readme = readme();
    for command in ["cargo run --release -- serve", "./tests/run"] {
        assert!(readme.contains(command), "README: `{command}` is missing");
    }
}

#[test]
fn every_section_of_the_test_script_is_a_function_of_it() {
    let script = read(&top().join("tests/run"));
    let sections =
        script.lines().find_map(|line| line.strip_prefix("SECTIONS=(")).and_then(|line| line.strip_suffix(')'));
    for section in sections.expect("tests/run lists its sections").split(' ') {
        assert!(script.contains(&format!("\nsection_{section}() {{")), "tests/run: {section} has no function");
    }
}

/// The commands of Redis that the broker uses, with the version that brought them or the form they are used in. Sharded
/// publish/subscribe is for clusters, which have it from 7.0 on.
const REDIS_COMMANDS: [(&str, (u8, u8)); 32] = [
    ("CLIENT", (2, 6)),
    ("CLUSTER", (3, 0)),
    ("DEL", (1, 0)),
    ("EVAL", (2, 6)),
    ("EVALSHA", (2, 6)),
    ("GET", (1, 0)),
    ("HDEL", (2, 4)),
    ("HEXISTS", (2, 0)),
    ("HGET", (2, 0)),
    ("HMGET", (2, 0)),
    ("HSCAN", (2, 8)),
    ("HSET", (4, 0)),
    ("INFO", (1, 0)),
    ("PEXPIRE", (2, 6)),
    ("PING", (1, 0)),
    ("PTTL", (2, 6)),
    ("PUBLISH", (2, 0)),
    ("ROLE", (2, 8)),
    ("SCRIPT", (2, 6)),
    ("SENTINEL", (2, 8)),
    ("SET", (2, 6)),
    ("SPUBLISH", (7, 0)),
    ("TIME", (2, 6)),
    ("UNLINK", (4, 0)),
    ("WAIT", (3, 0)),
    // With MINID.
    ("XADD", (6, 2)),
    ("XRANGE", (5, 0)),
    ("ZADD", (1, 2)),
    ("ZRANGE", (1, 2)),
    ("ZRANGEBYSCORE", (1, 0)),
    ("ZREM", (1, 2)),
    ("ZSCORE", (1, 2)),
];

/// The words in quotes that follow `before` in a text.
fn quoted_after<'a>(text: &'a str, before: &str, quote: char) -> Vec<&'a str> {
    let after = text.match_indices(before).map(|(at, _)| &text[at + before.len()..]);
    after.filter_map(|rest| rest.strip_prefix(quote)?.split(quote).next()).collect()
}

#[test]
fn redis_is_asked_for_nothing_that_6_2_does_not_have() {
    let scripts = files("src/broker", &[".lua"]);
    let sources = files("src/broker", &[".rs"]);
    let mut found = BTreeSet::new();
    for script in &scripts {
        let code: String =
            script.text.lines().map(|line| line.split("--").next().unwrap_or("").to_owned() + "\n").collect();
        found.extend(quoted_after(&code, "redis.call(", '\'').into_iter().map(str::to_owned));
        // What came with 7.0: flags of scripts, conditions of expiries, ids of which a part is drawn.
        let newer = ["#!lua", "redis.setresp", "redis.acl_check_cmd", "redis.REDIS_VERSION", "-*'", "'GT'", "'LT'"];
        for word in newer {
            assert!(!script.text.contains(word), "{} has {word}, which Redis 6.2 does not know", script.path);
        }
    }
    for source in &sources {
        for (_, line) in source.program_lines() {
            for word in quoted_after(line, "cmd(", '"') {
                found.insert(word.to_owned());
            }
            // Commands that are arguments, or are chosen.
            let words = line.split('"').skip(1).step_by(2);
            found.extend(words.filter(|word| ["PUBLISH", "SPUBLISH", "EVALSHA"].contains(word)).map(str::to_owned));
        }
    }
    assert!(scripts.len() >= 10 && found.len() >= 25, "the scripts are where they were: {found:?}");
    for command in &found {
        let version = REDIS_COMMANDS.iter().find(|(name, _)| name == command).map(|(_, version)| *version);
        let version =
            version.unwrap_or_else(|| panic!("{command} is not in the list: since which version is it there?"));
        assert!(version <= (6, 2) || command == "SPUBLISH", "{command} came with {version:?}");
    }
}
