//! The profiles of `tuning/`, carried in the program.

const PROFILES: [(&str, &str); 4] = [
    ("default", include_str!("../../tuning/default.toml")),
    ("latency", include_str!("../../tuning/latency.toml")),
    ("throughput", include_str!("../../tuning/throughput.toml")),
    ("density", include_str!("../../tuning/density.toml")),
];

/// The names of all profiles.
pub fn names() -> impl Iterator<Item = &'static str> {
    PROFILES.iter().map(|(name, _)| *name)
}

/// The TOML text of a profile.
pub fn text(name: &str) -> Option<&'static str> {
    PROFILES.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}
