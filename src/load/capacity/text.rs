//! Plans and calibrations as a person reads them.

use std::path::Path;

use super::figures::Figures;
use super::plan::Planned;

/// What a calibration has found.
pub(super) fn figures(figures: &Figures, place: &Path) -> String {
    let host = &figures.host;
    let mut text =
        format!("{}, {} cores, Linux {}, Ringhub {}, {}\n", host.cpu, host.cores, host.kernel, host.ringhub, host.date);
    if host.shared_core {
        text.push_str("Hub and load shared the one core: the figures are too high.\n");
    }
    let mut row = |what: &str, figure: String| text.push_str(&format!("{what:<34} {figure}\n"));
    for delivery in &figures.deliveries {
        row(&format!("delivery, {} in flight", delivery.events), format!("{:.3} µs of CPU", delivery.cpu_us));
    }
    row("delivery, for each byte more", format!("{:.3} ns", figures.delivery_ns_per_byte));
    row("publish", format!("{:.1} µs", figures.publish_us));
    row("connect with a token", format!("{:.1} µs", figures.connect_us));
    row("ping and answer", format!("{:.1} µs", figures.heartbeat_us));
    row("process without connections", bytes(figures.base_bytes));
    row("idle connection", bytes(figures.connection_bytes));
    row("idle connection in the kernel", bytes(figures.kernel_bytes));
    row("subscription", bytes(figures.membership_bytes));
    row("logged event, beside its data", bytes(figures.log_bytes));
    text.push_str(&format!("saved in {}\n", place.display()));
    text
}

/// A plan: the answer first, then where it comes from.
pub(super) fn planned(planned: &Planned) -> String {
    let (load, need) = (&planned.load, &planned.need);
    let mut text = String::new();
    let mut line = |content: String| {
        text.push_str(&content);
        text.push('\n');
    };
    let node = if need.nodes == 1 { "1 node".to_owned() } else { format!("{} nodes", number(f64::from(need.nodes))) };
    let shard =
        if need.shards_per_node == 1 { "1 shard".to_owned() } else { format!("{} shards", need.shards_per_node) };
    line(match need.fits {
        true => format!("{node} with {shard}; {} is used up first", need.bottleneck),
        false => format!("no number of such nodes bears it: {} does not get less by more of them", need.bottleneck),
    });
    line(format!(
        "{} connections, {} rooms of {}, {} events/s of {} bytes = {} deliveries/s; {:.0} % of everything stays free",
        number(load.connections),
        number(load.rooms),
        number(load.members),
        number(load.rate),
        load.size,
        number(need.deliveries_per_s),
        load.headroom * 100.0
    ));
    for resource in &need.resources {
        line(format!(
            "\n{}: {} used, {} with headroom, of {} ({:.0} %)",
            resource.name,
            amount(resource.name, resource.used),
            amount(resource.name, resource.needed),
            amount(resource.name, resource.available),
            resource.part() * 100.0
        ));
        for term in &resource.terms {
            line(format!("  {:<24} {} = {}", term.what, term.arithmetic, amount(resource.name, term.value)));
        }
    }
    line(format!(
        "\nAfter a restart all are back in {} of full load on {shard}, if they come at once.",
        seconds(need.reconnect_s)
    ));
    line("Slow readers may take limits.outbox_shard_bytes_max per shard beside this.".to_owned());
    line("\nOptions".to_owned());
    for suggestion in &planned.options {
        line(format!("  {:<44} {}", suggestion.option, suggestion.why));
    }
    let host = &planned.host;
    let from = planned.calibration.as_ref().map_or_else(|| "the program".to_owned(), |path| path.display().to_string());
    line(format!(
        "\nFigures from {from}: {}, Linux {}, Ringhub {}, {}",
        host.cpu, host.kernel, host.ringhub, host.date
    ));
    for remark in &planned.remarks {
        line(format!("NOTE  {remark}"));
    }
    text
}

/// A resource's amount in its unit.
fn amount(resource: &str, value: f64) -> String {
    match resource {
        "CPU" => format!("{value:.3} cores"),
        "memory" => bytes(value),
        "descriptors" => number(value),
        _ if value >= 1e9 => format!("{:.2} Gbit/s", value / 1e9),
        _ => format!("{:.2} Mbit/s", value / 1e6),
    }
}

fn bytes(value: f64) -> String {
    match value {
        _ if value >= f64::from(1 << 30) => format!("{:.2} GiB", value / f64::from(1 << 30)),
        _ if value >= f64::from(1 << 20) => format!("{:.1} MiB", value / f64::from(1 << 20)),
        _ if value >= 10_240.0 => format!("{:.1} KiB", value / 1024.0),
        _ => format!("{value:.0} B"),
    }
}

fn seconds(value: f64) -> String {
    if value < 1.0 { format!("{:.0} ms", value * 1e3) } else { format!("{value:.1} s") }
}

/// Groups of three digits; fractions only of what is small.
pub(super) fn number(value: f64) -> String {
    if value != 0.0 && value < 100.0 && value.fract() != 0.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_small_ones_keep_a_fraction() {
        let written = [0.0, 0.25, 12.0, 999.0, 1000.4, 1_234_567.0].map(number);
        assert_eq!(written, ["0", "0.25", "12", "999", "1 000", "1 234 567"]);
    }

    #[test]
    fn amounts_have_the_unit_of_their_resource() {
        assert_eq!(amount("CPU", 0.5), "0.500 cores");
        assert_eq!(amount("memory", 3.0 * 1024.0 * 1024.0), "3.0 MiB");
        assert_eq!(amount("outgoing bandwidth", 2.5e9), "2.50 Gbit/s");
        assert_eq!(amount("descriptors", 1512.0), "1 512");
    }
}
