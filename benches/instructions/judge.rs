//! Figures against the baseline's.

use super::baseline::{Counts, Made};

/// How many percent more instructions are borne.
const MORE_PERCENT_MAX: u64 = 5;

const SAVE: &str = "cargo bench --bench wire --bench stages -- --instructions=save";

pub struct Verdict {
    pub pass: bool,
    pub text: String,
}

/// Whether figures of here may be held against the baseline's. Another compiler's may not: it is an error, since a check
/// that is skipped in silence after an upgrade never fails again.
pub fn comparable(baseline: &Made, here: &Made) -> Result<(), String> {
    if minor(&baseline.rustc) != minor(&here.rustc) {
        return Err(format!(
            "the baseline is of rustc {}, this was built by {}: their instructions can't be compared. \
             Build with the baseline's compiler, or save a baseline of this one at a commit that is known to be good: {SAVE}",
            baseline.rustc, here.rustc
        ));
    }
    if baseline.processor != here.processor {
        return Err(format!(
            "the baseline is of {}, this is {}: other code is chosen at run time, the counts can't be compared",
            baseline.processor, here.processor
        ));
    }
    Ok(())
}

/// Major and minor number of a version.
fn minor(version: &str) -> Option<(&str, &str)> {
    let mut parts = version.split('.');
    Some((parts.next()?, parts.next()?))
}

/// A line per benchmark. More than [`MORE_PERCENT_MAX`] fails; so does a benchmark that only one side has.
pub fn judge(executable: &str, baseline: &Counts, here: &Counts) -> Verdict {
    let mut verdict = Verdict { pass: true, text: String::new() };
    let mut line = |name: &str, figures: String, remark: &str, fails: bool| {
        verdict.pass &= !fails;
        let mark = if fails { "FAILED" } else { "ok" };
        verdict.text.push_str(&format!("{mark:<7}{executable}/{name:<36} {figures}{remark}\n"));
    };
    for (name, &count) in here {
        let Some(&before) = baseline.get(name) else {
            line(name, format!("{count:>12}"), "  has no figure in the baseline", true);
            continue;
        };
        let percent = (count as f64 / before.max(1) as f64 - 1.0) * 100.0;
        // In whole numbers: exactly as much as is borne is borne.
        let fails = count * 100 > before * (100 + MORE_PERCENT_MAX);
        let remark = match () {
            _ if fails => format!("  more than {MORE_PERCENT_MAX} % more instructions"),
            _ if count * 100 < before * (100 - MORE_PERCENT_MAX) => "  save it, so that it stays so".to_owned(),
            _ => String::new(),
        };
        line(name, format!("{before:>12} -> {count:>12} {percent:>+7.1} %"), &remark, fails);
    }
    for name in baseline.keys().filter(|name| !here.contains_key(*name)) {
        line(name, String::new(), "is in the baseline, and is no benchmark any more", true);
    }
    verdict
}

/// What to do about a failure.
pub fn advice(baseline: &Made, here: &Made) -> String {
    let mut text = String::new();
    for (what, before, now) in
        [("C library", &baseline.libc, &here.libc), ("valgrind", &baseline.valgrind, &here.valgrind)]
    {
        if before != now {
            text.push_str(&format!(
                "the baseline was made with another {what} ({before}, here {now}), which may be the reason\n"
            ));
        }
    }
    text.push_str(&format!("if it is meant to be so: {SAVE}\n"));
    text
}
