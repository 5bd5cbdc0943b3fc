//! Whether the journal can be kept where the configuration says, for `serve`, `doctor` and `config --check`.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use super::Config;
use super::finding::Finding;

/// What there is to say of `journal.path`; nothing where it is not set.
pub fn journal_folder(config: &Config) -> Option<Finding> {
    let folder = config.journal.path.as_deref()?;
    let check = "journal";
    let durable = config.kinds.iter().filter(|kind| kind.durable).count();
    Some(match writable(folder) {
        Err(what) => Finding::fail(
            check,
            what,
            "the hub does not start without a place for the journal",
            format!("install -d -o ringhub {}, or another journal.path", folder.display()),
        ),
        Ok(()) if durable == 0 => Finding::warn(
            check,
            format!("journal.path is {}, and no kind of rooms is durable", folder.display()),
            "nothing is written there",
            "rooms.project.durable = true, for the kinds that are to outlive the process",
        ),
        Ok(()) => Finding::ok(check, format!("{} can be written, for {durable} durable kind(s)", folder.display())),
    })
}

/// Writes a small file there, or where the folder would be made.
fn writable(folder: &Path) -> Result<(), String> {
    let mut existing = folder;
    while !existing.exists() {
        let parent = existing.parent().filter(|parent| *parent != Path::new(""));
        existing = parent.unwrap_or(Path::new("."));
    }
    if !existing.is_dir() {
        return Err(format!("{} is no folder", existing.display()));
    }
    // Two looks at a time must not take each other's file away.
    static PROBES: AtomicU32 = AtomicU32::new(0);
    let number = PROBES.fetch_add(1, Ordering::Relaxed);
    let probe = existing.join(format!(".ringhub-{}-{number}", std::process::id()));
    let tried = File::create(&probe).and_then(|mut file| file.write_all(b"ringhub"));
    let removed = if probe.exists() { fs::remove_file(&probe) } else { Ok(()) };
    tried.and(removed).map_err(|error| format!("{} can't be written: {error}", existing.display()))
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn finding(path: &Path, durable: bool) -> Finding {
        let mut config = Config::default();
        config.journal.path = Some(path.to_owned());
        config.kinds[0].durable = durable;
        journal_folder(&config).expect("set")
    }

    #[test]
    fn a_folder_that_can_be_made_is_fine_and_a_file_is_none() {
        let folder = std::env::temp_dir().join(format!("ringhub-folder-{}", std::process::id()));
        assert_eq!(finding(&folder.join("a/b"), true).level, Level::Ok);
        assert!(!folder.exists(), "nothing is made by looking");
        fs::create_dir_all(&folder).expect("made");
        fs::write(folder.join("file"), "").expect("written");
        for path in ["file", "file/below"] {
            let finding = finding(&folder.join(path), true);
            assert_eq!(finding.level, Level::Fail, "{finding}");
        }
        assert_eq!(finding(&folder, true).level, Level::Ok);
        assert_eq!(fs::read_dir(&folder).expect("read").count(), 1, "nothing is left behind");
        fs::remove_dir_all(&folder).expect("removed");
    }

    #[test]
    fn a_journal_that_nothing_is_written_to_is_pointed_out() {
        assert_eq!(journal_folder(&Config::default()), None);
        assert_eq!(finding(&std::env::temp_dir(), false).level, Level::Warn);
    }
}
