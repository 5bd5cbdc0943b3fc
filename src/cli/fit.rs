//! Which profile of `tuning/` fits this host, and whether its network cards interrupt the shards.
//!
//! Facts are gathered in one place and judged in another, so that every judgement can be tested on any machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::config::Config;
use crate::config::finding::Finding;
use crate::config::host::read_text;
use crate::ring::host::knows_min_wait;
use crate::shard::placement::Placement;

const GIB: f64 = (1u64 << 30) as f64;
/// A shard that looks for completions keeps its core busy: some have to be left for others.
const LATENCY_CORES_MIN: usize = 4;
const THROUGHPUT_CORES_MIN: usize = 4;
/// Below this for each shard, what busy clients may take by default (512 MiB per shard) is too much.
const MEMORY_PER_SHARD_MIN: f64 = GIB;

/// The findings of `doctor`.
pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let facts = Facts::gather(config);
    let mut findings = vec![profile(&facts)];
    findings.extend(quota(&facts));
    findings.extend(interrupts(&facts));
    findings
}

/// What was read from the machine; none for what it doesn't tell.
#[derive(Debug, Clone)]
struct Facts {
    kernel: String,
    knows_min_wait: bool,
    shards: usize,
    placement: Placement,
    memory_bytes: Option<f64>,
    /// The control group's memory limit.
    memory_limit_bytes: Option<f64>,
    /// The control group's processors: a quota.
    cpu_quota: Option<f64>,
    /// Interrupts of network cards, by number: the card, and the processors that handle it.
    interrupts: BTreeMap<u32, (String, Vec<usize>)>,
}

impl Facts {
    fn gather(config: &Config) -> Facts {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let pinned = config.shards.pin;
        Facts {
            kernel: read_text("/proc/sys/kernel/osrelease").unwrap_or_default(),
            knows_min_wait: knows_min_wait(),
            shards: config.shard_count(),
            placement: if pinned { Placement::here(config.shards.control_core) } else { Placement::default() },
            memory_bytes: memory_total(&meminfo),
            memory_limit_bytes: read_text("/sys/fs/cgroup/memory.max").and_then(|text| text.parse().ok()),
            cpu_quota: read_text("/sys/fs/cgroup/cpu.max").and_then(|text| processors(&text)),
            interrupts: network_interrupts(Path::new("/sys/class/net")),
        }
    }

    /// What the hub may have.
    fn memory(&self) -> Option<f64> {
        [self.memory_bytes, self.memory_limit_bytes].into_iter().flatten().reduce(f64::min)
    }
}

/// The `MemTotal` line, which is in KiB.
fn memory_total(meminfo: &str) -> Option<f64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.split_ascii_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
}

/// `cpu.max` of a control group: microseconds of CPU, and in how many; `max` for no limit.
fn processors(text: &str) -> Option<f64> {
    let (quota, period) = text.split_once(' ')?;
    Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok().filter(|period| *period > 0.0)?)
}

/// The one that fits, and why the others do not.
fn profile(facts: &Facts) -> Finding {
    let check = "profile";
    let cores = facts.placement.shards.len().max(facts.shards);
    let memory = facts.memory();
    let gib = memory.map_or_else(|| "unknown memory".to_owned(), |bytes| format!("{:.1} GiB", bytes / GIB));
    let tight = memory.is_some_and(|bytes| bytes < facts.shards as f64 * MEMORY_PER_SHARD_MIN);
    let of = format!("{cores} cores, {gib}, Linux {}", facts.kernel);
    if tight {
        let why = format!("{} shards may take 512 MiB each for slow readers and logs", facts.shards);
        return Finding::ok(check, format!("density fits this host ({of}): {why}"));
    }
    let latency = match (cores, facts.cpu_quota) {
        (_, Some(_)) => "not latency, whose waiting would use up the CPU quota".to_owned(),
        (..LATENCY_CORES_MIN, _) => {
            format!("not latency, which keeps cores busy and wants {LATENCY_CORES_MIN} of them")
        }
        _ => "latency where round trips matter more than CPU".to_owned(),
    };
    let throughput = match (cores, facts.knows_min_wait) {
        (_, false) => "not throughput, whose least wait needs Linux 6.12".to_owned(),
        (..THROUGHPUT_CORES_MIN, _) => {
            format!("not throughput, which gains little below {THROUGHPUT_CORES_MIN} cores")
        }
        _ => "throughput for feeds whose readers don't notice a millisecond".to_owned(),
    };
    Finding::ok(check, format!("default fits this host ({of}); {latency}; {throughput}; density for quiet connections"))
}

/// A shard that has used up the quota stands still with all of its connections until the next period.
fn quota(facts: &Facts) -> Option<Finding> {
    let check = "CPU quota";
    let quota = facts.cpu_quota?;
    Some(if facts.shards as f64 <= quota {
        Finding::ok(check, format!("{quota:.2} processors for {} shards", facts.shards))
    } else {
        Finding::warn(
            check,
            format!("{quota:.2} processors for {} shards", facts.shards),
            "when the quota is used up, every shard stands still until the period (mostly 100 ms) is over",
            format!("shards.count = {}, or a quota of {} processors", (quota as usize).max(1), facts.shards),
        )
    })
}

/// Interrupts are better off where no shard is, if there is such a place.
fn interrupts(facts: &Facts) -> Option<Finding> {
    let check = "interrupts";
    if facts.interrupts.is_empty() || facts.placement.shards.is_empty() {
        return None;
    }
    let used = facts.placement.used(facts.shards);
    let spare: Vec<usize> = facts.placement.shards.iter().chain(&facts.placement.control).copied().collect();
    let spare: Vec<usize> = spare.into_iter().filter(|cpu| !used.contains(cpu)).collect();
    let on_shards: Vec<(u32, &str)> = facts
        .interrupts
        .iter()
        .filter(|(_, (_, cpus))| cpus.iter().any(|cpu| used.contains(cpu)))
        .map(|(number, (card, _))| (*number, card.as_str()))
        .collect();
    let list = |cpus: &[usize]| cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    Some(match (on_shards.first(), spare.is_empty()) {
        (None, _) => Finding::ok(check, format!("network cards interrupt no shard (processors {})", list(used))),
        (Some(_), true) => Finding::ok(
            check,
            format!("{} of network cards are on the shards' processors, as all are shards'", on_shards.len()),
        ),
        (Some((_, card)), false) => {
            let numbers: Vec<String> = on_shards.iter().map(|(number, _)| number.to_string()).collect();
            Finding::warn(
                check,
                format!("{} of {card} are on the shards' processors {}", on_shards.len(), list(used)),
                "a shard waits while its processor handles the card's interrupts; irqbalance, where it runs, moves them back",
                format!(
                    "for irq in {}; do echo {} > /proc/irq/$irq/smp_affinity_list; done",
                    numbers.join(" "),
                    list(&spare)
                ),
            )
        }
    })
}

/// Of all cards that are devices; those of virtio have their interrupts one folder further up.
fn network_interrupts(classes: &Path) -> BTreeMap<u32, (String, Vec<usize>)> {
    let mut all = BTreeMap::new();
    for card in fs::read_dir(classes).into_iter().flatten().flatten() {
        let Ok(device) = card.path().join("device").canonicalize() else { continue };
        let folders = [Some(device.as_path()), device.parent()];
        let Some(listed) = folders.into_iter().flatten().find_map(|folder| fs::read_dir(folder.join("msi_irqs")).ok())
        else {
            continue;
        };
        let name = card.file_name().to_string_lossy().into_owned();
        for number in listed.flatten().filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok()) {
            // Where it is handled may be less than where it may be.
            let text = ["effective_affinity_list", "smp_affinity_list"]
                .into_iter()
                .find_map(|file| read_text(&format!("/proc/irq/{number}/{file}")).filter(|text| !text.is_empty()));
            if let Some(text) = text {
                all.insert(number, (name.clone(), cpu_list(&text)));
            }
        }
    }
    all
}

/// Reads `0-3,8`. What is no number is left out.
fn cpu_list(text: &str) -> Vec<usize> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) {
            cpus.extend(first..=last.min(first.saturating_add(4096)));
        }
    }
    cpus
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::finding::Level;

    fn facts() -> Facts {
        Facts {
            kernel: "6.12.1".to_owned(),
            knows_min_wait: true,
            shards: 4,
            placement: Placement { shards: vec![0, 1, 2, 3, 4, 5, 6, 7], control: None },
            memory_bytes: Some(32.0 * GIB),
            memory_limit_bytes: None,
            cpu_quota: None,
            interrupts: BTreeMap::new(),
        }
    }

    #[test]
    fn a_large_host_may_have_any_profile() {
        let what = profile(&facts()).what;
        assert!(what.starts_with("default fits") && what.contains("8 cores, 32.0 GiB, Linux 6.12.1"), "{what}");
        assert!(what.contains("; latency where") && what.contains("; throughput for"), "{what}");
    }

    #[test]
    fn little_memory_for_the_shards_asks_for_density() {
        let by = |facts: &Facts| profile(facts).what;
        assert!(by(&Facts { memory_bytes: Some(3.0 * GIB), ..facts() }).starts_with("density fits"));
        let limited = by(&Facts { memory_limit_bytes: Some(GIB), ..facts() });
        assert!(limited.starts_with("density fits this host (8 cores, 1.0 GiB"), "{limited}");
    }

    #[test]
    fn what_speaks_against_a_profile_is_said() {
        let by = |facts: Facts| profile(&facts).what;
        let few = Placement { shards: vec![0, 1], control: None };
        let small = by(Facts { shards: 2, placement: few, ..facts() });
        assert!(small.contains("not latency, which keeps cores busy") && small.contains("gains little"), "{small}");
        assert!(by(Facts { cpu_quota: Some(6.0), ..facts() }).contains("not latency, whose waiting"));
        assert!(by(Facts { knows_min_wait: false, ..facts() }).contains("needs Linux 6.12"));
    }

    #[test]
    fn more_shards_than_the_quota_has_processors_are_warned_of() {
        assert_eq!(quota(&facts()), None);
        let enough = quota(&Facts { cpu_quota: Some(4.0), ..facts() }).expect("a finding");
        assert_eq!(enough.level, Level::Ok);
        let less = quota(&Facts { cpu_quota: Some(1.5), ..facts() }).expect("a finding");
        assert_eq!(less.level, Level::Warn);
        assert!(less.fix.contains("shards.count = 1,"), "{less}");
    }

    #[test]
    fn interrupts_on_shards_are_moved_to_where_none_is() {
        let on = |cpus: &[usize]| [(24, ("eth0".to_owned(), vec![9])), (25, ("eth0".to_owned(), cpus.to_vec()))].into();
        let finding = interrupts(&Facts { interrupts: on(&[2]), ..facts() }).expect("a finding");
        assert_eq!(finding.level, Level::Warn);
        assert_eq!(finding.fix, "for irq in 25; do echo 4,5,6,7 > /proc/irq/$irq/smp_affinity_list; done");
        let elsewhere = interrupts(&Facts { interrupts: on(&[5]), ..facts() }).expect("a finding");
        assert_eq!(elsewhere.level, Level::Ok);
        let everywhere = interrupts(&Facts { shards: 8, interrupts: on(&[5]), ..facts() }).expect("a finding");
        assert_eq!((everywhere.level, everywhere.fix.as_str()), (Level::Ok, ""));
        let placement = Placement { shards: vec![0, 1, 2, 3], control: Some(7) };
        let kept = interrupts(&Facts { placement, interrupts: on(&[0, 1]), ..facts() }).expect("a finding");
        assert!(kept.fix.contains("echo 7 >"), "the control plane's core takes them: {kept}");
        assert_eq!(interrupts(&facts()), None);
    }

    #[test]
    fn the_kernels_lists_and_quotas_are_read() {
        assert_eq!(cpu_list("0-3,8\n"), [0, 1, 2, 3, 8]);
        assert_eq!(cpu_list(""), Vec::<usize>::new());
        assert_eq!(processors("150000 100000"), Some(1.5));
        assert_eq!(processors("max 100000"), None);
        assert_eq!(memory_total("MemTotal:  2048 kB\nMemFree: 1 kB\n"), Some(2_097_152.0));
    }

    #[test]
    fn a_cards_interrupts_are_found_beside_it_or_above_it() {
        let root = std::env::temp_dir().join(format!("ringhub-net-{}", std::process::id()));
        let folder = |path: &str| fs::create_dir_all(root.join(path)).expect("made");
        // Interrupt 0 is a timer on every x86 machine; elsewhere the kernel tells nothing of it.
        for (card, device, interrupts) in [("eth0", "pci1", "pci1"), ("eth1", "pci2/virtio1", "pci2")] {
            folder(device);
            folder(&format!("{interrupts}/msi_irqs/0"));
            folder(&format!("net/{card}"));
            let link = root.join("net").join(card).join("device");
            std::os::unix::fs::symlink(root.join(device), link).expect("linked");
            let told = read_text("/proc/irq/0/smp_affinity_list").is_some();
            let found = network_interrupts(&root.join("net"));
            assert_eq!(found.get(&0).map(|(name, _)| name.as_str()), told.then_some(card));
            fs::remove_dir_all(root.join("net").join(card)).expect("removed");
        }
        fs::create_dir_all(root.join("net/lo")).expect("made");
        assert!(network_interrupts(&root.join("net")).is_empty(), "what is no device has none");
        fs::remove_dir_all(root).expect("removed");
    }
}
