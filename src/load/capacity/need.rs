//! What a load needs: sums of products, each kept with its terms so that they can be shown.

use serde::Serialize;

use super::figures::Figures;

/// Descriptors of a node beside its connections: listeners, rings, the control plane, files.
const DESCRIPTORS_SPARE: f64 = 512.0;
/// Bytes of an event's envelope beside its room, type and data: `type`, `id`, `timestamp`, `room`, `seq`, `data` and the
/// frame's header.
const ENVELOPE_BYTES: f64 = 150.0;
/// Names of rooms and types are about so long together.
const NAMES_BYTES: f64 = 40.0;
/// Ethernet, IPv4 and TCP with timestamps, per segment; and the acknowledgement that comes back.
const SEGMENT_BYTES: f64 = 78.0;
const SEGMENT_PAYLOAD_BYTES: f64 = 1448.0;
/// Socket.IO beside the native protocol, measured over WebSocket at one event per send to sixty-four: CPU per delivery at
/// most, and memory per connection.
const SOCKETIO_CPU: f64 = 1.12;
const SOCKETIO_MEMORY: f64 = 1.4;
/// Units of factors that go without saying where they are one.
const HEARD: &str = " of them here";
const PROTOCOLS: &str = " protocols";
/// More nodes than this are no plan any more.
const NODES_MAX: u32 = 1000;

/// The load that is planned for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Load {
    pub(super) connections: f64,
    pub(super) rooms: f64,
    /// Members of each room.
    pub(super) members: f64,
    /// Events per second in all rooms together.
    pub(super) rate: f64,
    /// Bytes of an event's data.
    pub(super) size: u32,
    /// Events of a room that are published at once.
    pub(super) batch: u32,
    /// Events that each room's log keeps.
    pub(super) history: f64,
    /// Bytes that each room's log keeps at most.
    pub(super) history_bytes: f64,
    /// Part of the connections that speak Socket.IO.
    pub(super) socketio: f64,
    /// Seconds between two pings of a silent connection.
    pub(super) heartbeat_s: f64,
    /// Part of each resource that stays free.
    pub(super) headroom: f64,
}

/// What one machine has.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Machine {
    pub(super) cores: f64,
    pub(super) memory_bytes: f64,
    pub(super) link_bits_per_s: f64,
    pub(super) descriptors: f64,
}

impl Machine {
    /// One core is left to the control plane and the kernel where there are several.
    fn shard_cores(&self) -> f64 {
        (self.cores - 1.0).max(1.0)
    }
}

/// A summand of a resource: `factors` multiplied give `value`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Term {
    pub(super) what: &'static str,
    /// The multiplication, for people.
    pub(super) arithmetic: String,
    pub(super) value: f64,
}

/// A resource of one node.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Resource {
    pub(super) name: &'static str,
    pub(super) terms: Vec<Term>,
    /// The terms' sum.
    pub(super) used: f64,
    /// With the headroom.
    pub(super) needed: f64,
    /// What the machine has.
    pub(super) available: f64,
}

impl Resource {
    fn new(name: &'static str, terms: Vec<Term>, headroom: f64, available: f64) -> Resource {
        let used: f64 = terms.iter().map(|term| term.value).sum();
        Resource { name, terms, used, needed: used / (1.0 - headroom), available }
    }

    /// More than one doesn't fit.
    pub(super) fn part(&self) -> f64 {
        self.needed / self.available
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Need {
    pub(super) nodes: u32,
    pub(super) shards_per_node: u32,
    /// CPU, memory, outgoing and incoming bandwidth and descriptors of one node, of so many.
    pub(super) resources: Vec<Resource>,
    /// The resource that is used up first.
    pub(super) bottleneck: &'static str,
    /// Whether nodes enough exist.
    pub(super) fits: bool,
    /// Seconds of all shards' CPU until all connections of a node are there again after it was restarted.
    pub(super) reconnect_s: f64,
    /// Part of a core that numbering one room's events takes: a room has one home.
    pub(super) home_part: f64,
    pub(super) deliveries_per_s: f64,
}

/// As few nodes as bear the load, all alike.
pub(super) fn need(load: &Load, figures: &Figures, machine: &Machine) -> Need {
    let mut nodes = 1;
    loop {
        let resources = of_one_node(load, figures, machine, f64::from(nodes));
        let fits = resources.iter().all(|resource| resource.part() <= 1.0);
        if !fits && nodes < NODES_MAX {
            nodes += 1;
            continue;
        }
        let worst = resources.iter().max_by(|one, other| one.part().total_cmp(&other.part()));
        let bottleneck = worst.map_or("", |resource| resource.name);
        let cores = resources.first().map_or(0.0, |cpu| cpu.needed);
        let shards = cores.ceil().clamp(1.0, machine.shard_cores());
        let connections = load.connections / f64::from(nodes);
        return Need {
            nodes,
            shards_per_node: shards as u32,
            bottleneck,
            fits,
            reconnect_s: connections * figures.connect_us / 1e6 / shards,
            home_part: load.rate / load.rooms * figures.publish_us / 1e6,
            deliveries_per_s: load.rate * load.members,
            resources,
        };
    }
}

fn of_one_node(load: &Load, figures: &Figures, machine: &Machine, nodes: f64) -> Vec<Resource> {
    let connections = load.connections / nodes;
    let deliveries = load.rate * load.members / nodes;
    let resource = |name, terms, available| Resource::new(name, terms, load.headroom, available);
    let mut all = vec![
        resource("CPU", cpu(load, figures, connections, deliveries, nodes), machine.shard_cores()),
        resource("memory", memory(load, figures, connections, nodes), machine.memory_bytes),
        resource("outgoing bandwidth", outgoing(load, deliveries), machine.link_bits_per_s),
        resource("incoming bandwidth", incoming(load, nodes), machine.link_bits_per_s),
    ];
    // Descriptors are a limit, not a thing that gets slow when it is nearly used up: no headroom.
    let descriptors = vec![
        term("connections", vec![(connections, "")]),
        term("listeners, rings, files", vec![(DESCRIPTORS_SPARE, "")]),
    ];
    all.push(Resource::new("descriptors", descriptors, 0.0, machine.descriptors));
    all
}

/// How much of all rooms a node has to do with: those of which any of `clients` (members, and a publisher where it counts)
/// is there. Clients are spread over the nodes by chance.
fn part_of_rooms(clients: f64, nodes: f64) -> f64 {
    1.0 - (1.0 - 1.0 / nodes).powf(clients)
}

/// Cores.
fn cpu(load: &Load, figures: &Figures, connections: f64, deliveries: f64, nodes: f64) -> Vec<Term> {
    let protocol = 1.0 + load.socketio * (SOCKETIO_CPU - 1.0);
    let us = 1e-6;
    vec![
        scaled(
            "deliveries",
            vec![(deliveries, "/s"), (figures.delivery_us(load.batch, load.size), " µs"), (protocol, PROTOCOLS)],
            us,
        ),
        scaled(
            "publishes",
            vec![(load.rate, "/s"), (part_of_rooms(load.members + 1.0, nodes), HEARD), (figures.publish_us, " µs")],
            us,
        ),
        scaled("heartbeats", vec![(connections / load.heartbeat_s, "/s"), (figures.heartbeat_us, " µs")], us),
    ]
}

/// Bytes. Logs are kept at every node with members.
fn memory(load: &Load, figures: &Figures, connections: f64, nodes: f64) -> Vec<Term> {
    let protocol = 1.0 + load.socketio * (SOCKETIO_MEMORY - 1.0);
    let memberships = load.rooms * load.members / nodes;
    let event_bytes = f64::from(load.size) + figures.log_bytes;
    let log_bytes = (load.history * event_bytes).min(load.history_bytes);
    vec![
        term("process", vec![(figures.base_bytes, " B")]),
        term("connections", vec![(connections, ""), (figures.connection_bytes, " B"), (protocol, PROTOCOLS)]),
        term("sockets in the kernel", vec![(connections, ""), (figures.kernel_bytes, " B")]),
        term("subscriptions", vec![(memberships, ""), (figures.membership_bytes, " B")]),
        term("logs", vec![(load.rooms, " rooms"), (part_of_rooms(load.members, nodes), HEARD), (log_bytes, " B")]),
    ]
}

/// Bits per second.
fn outgoing(load: &Load, deliveries: f64) -> Vec<Term> {
    let batch = f64::from(load.batch);
    vec![scaled("deliveries", vec![(deliveries, "/s"), (wire_bytes(load.size, batch), " B")], 8.0)]
}

fn incoming(load: &Load, nodes: f64) -> Vec<Term> {
    let batch = f64::from(load.batch);
    let heard = part_of_rooms(load.members + 1.0, nodes);
    let publishes =
        scaled("publishes", vec![(load.rate, "/s"), (heard, HEARD), (wire_bytes(load.size, batch), " B")], 8.0);
    let sends = load.rate * load.members / nodes / batch;
    vec![publishes, scaled("acknowledgements", vec![(sends, "/s"), (SEGMENT_BYTES, " B")], 8.0)]
}

/// Bytes of one event on the wire, its part of the segments that carry `batch` of them included.
fn wire_bytes(size: u32, batch: f64) -> f64 {
    let frame = f64::from(size) + ENVELOPE_BYTES + NAMES_BYTES;
    let segments = (frame * batch / SEGMENT_PAYLOAD_BYTES).ceil();
    frame + segments * SEGMENT_BYTES / batch
}

fn term(what: &'static str, factors: Vec<(f64, &'static str)>) -> Term {
    scaled(what, factors, 1.0)
}

fn scaled(what: &'static str, factors: Vec<(f64, &'static str)>, scale: f64) -> Term {
    let shown = factors.iter().filter(|(factor, unit)| ![HEARD, PROTOCOLS].contains(unit) || *factor != 1.0);
    let arithmetic: Vec<String> =
        shown.map(|(factor, unit)| format!("{}{unit}", super::text::number(*factor))).collect();
    let value = factors.iter().map(|(factor, _)| factor).product::<f64>() * scale;
    Term { what, arithmetic: arithmetic.join(" × "), value }
}

#[cfg(test)]
mod tests {
    use super::super::figures::Delivery;
    use super::*;

    /// Round figures.
    fn figures() -> Figures {
        Figures {
            deliveries: vec![Delivery { events: 1, cpu_us: 4.0 }, Delivery { events: 16, cpu_us: 0.5 }],
            delivery_ns_per_byte: 1.0,
            publish_us: 10.0,
            connect_us: 50.0,
            heartbeat_us: 5.0,
            base_bytes: 1e6,
            connection_bytes: 1000.0,
            membership_bytes: 200.0,
            kernel_bytes: 4000.0,
            log_bytes: 272.0,
            ..Figures::built_in()
        }
    }

    fn load() -> Load {
        Load {
            connections: 10_000.0,
            rooms: 10.0,
            members: 1000.0,
            rate: 50.0,
            size: 128,
            batch: 1,
            history: 1000.0,
            history_bytes: 1e9,
            socketio: 0.0,
            heartbeat_s: 25.0,
            headroom: 0.5,
        }
    }

    fn machine() -> Machine {
        Machine { cores: 5.0, memory_bytes: 16e9, link_bits_per_s: 10e9, descriptors: 1_000_000.0 }
    }

    fn resource<'a>(need: &'a Need, name: &str) -> &'a Resource {
        need.resources.iter().find(|resource| resource.name == name).expect("a resource of that name")
    }

    fn close(actual: f64, expected: f64) {
        assert!((actual - expected).abs() <= expected.abs() * 1e-9, "{actual} instead of {expected}");
    }

    #[test]
    fn cpu_is_deliveries_publishes_and_heartbeats_with_headroom() {
        let need = need(&load(), &figures(), &machine());
        let cpu = resource(&need, "CPU");
        let values: Vec<f64> = cpu.terms.iter().map(|term| term.value).collect();
        // 50 × 1000 × 4 µs, 50 × 10 µs, 10 000 / 25 × 5 µs.
        for (actual, expected) in values.into_iter().zip([0.2, 0.0005, 0.002]) {
            close(actual, expected);
        }
        close(cpu.used, 0.2025);
        close(cpu.needed, 0.405);
        assert_eq!((need.nodes, need.shards_per_node, need.fits), (1, 1, true));
        assert_eq!(cpu.terms[0].arithmetic, "50 000/s × 4 µs");
    }

    #[test]
    fn memory_is_process_connections_sockets_subscriptions_and_logs() {
        let need = need(&load(), &figures(), &machine());
        let memory = resource(&need, "memory");
        let values: Vec<f64> = memory.terms.iter().map(|term| term.value).collect();
        assert_eq!(values, [1e6, 10e6, 40e6, 2e6, 10.0 * 1000.0 * 400.0]);
        let bounded = super::need(&Load { history_bytes: 1e5, ..load() }, &figures(), &machine());
        assert_eq!(resource(&bounded, "memory").terms[4].value, 1e6, "a log is no larger than it may be");
        let none = super::need(&Load { history: 0.0, ..load() }, &figures(), &machine());
        assert_eq!(resource(&none, "memory").terms[4].value, 0.0);
    }

    #[test]
    fn events_that_come_at_once_cost_a_send_together() {
        let need = need(&Load { batch: 16, ..load() }, &figures(), &machine());
        close(resource(&need, "CPU").terms[0].value, 0.025);
        // 318 bytes of a frame; sixteen of them in four segments.
        close(resource(&need, "outgoing bandwidth").used, 50_000.0 * (318.0 + 4.0 * 78.0 / 16.0) * 8.0);
    }

    #[test]
    fn socket_io_costs_more_by_its_part_of_the_connections() {
        let half = need(&Load { socketio: 0.5, ..load() }, &figures(), &machine());
        close(resource(&half, "CPU").terms[0].value, 0.2 * 1.06);
        close(resource(&half, "memory").terms[1].value, 10e6 * 1.2);
        assert!(resource(&half, "CPU").terms[0].arithmetic.ends_with("× 1.06 protocols"));
    }

    #[test]
    fn the_resource_that_is_used_up_first_is_the_bottleneck() {
        let of = |machine: &Machine| need(&load(), &figures(), machine).bottleneck;
        assert_eq!(of(&machine()), "CPU");
        assert_eq!(of(&Machine { memory_bytes: 150e6, ..machine() }), "memory");
        assert_eq!(of(&Machine { link_bits_per_s: 500e6, ..machine() }), "outgoing bandwidth");
        assert_eq!(of(&Machine { descriptors: 10_600.0, ..machine() }), "descriptors");
    }

    #[test]
    fn what_one_machine_does_not_bear_is_spread_over_nodes() {
        // Four cores for shards; 2.025 used, 4.05 with headroom.
        let ten = Load { connections: 100_000.0, rooms: 100.0, rate: 500.0, ..load() };
        let two = need(&ten, &figures(), &machine());
        assert_eq!((two.nodes, two.fits), (2, true));
        let cpu = resource(&two, "CPU");
        // Deliveries and heartbeats are halved, events are heard by both.
        close(cpu.used, 1.0 + 0.005 + 0.01);
        assert_eq!(two.shards_per_node, 3);
        let few = Machine { descriptors: 26_000.0, ..machine() };
        let four = need(&ten, &figures(), &few);
        assert_eq!((four.nodes, four.bottleneck), (4, "descriptors"));
    }

    #[test]
    fn events_that_every_node_has_to_hear_can_be_too_many_for_any_number_of_nodes() {
        let never = need(&Load { rate: 1e6, ..load() }, &figures(), &machine());
        assert!(!never.fits);
        assert_eq!((never.nodes, never.bottleneck), (NODES_MAX, "CPU"));
    }

    #[test]
    fn a_node_hears_of_the_rooms_that_its_clients_are_in() {
        assert_eq!([part_of_rooms(5.0, 1.0), part_of_rooms(1.0, 4.0), part_of_rooms(0.0, 2.0)], [1.0, 0.25, 0.0]);
        close(part_of_rooms(2.0, 2.0), 0.75);
        // Publishes take ten cores; one into a room of one member is heard by two nodes, or by one.
        let pairs = Load { rate: 1e6, members: 1.0, rooms: 10_000.0, ..load() };
        let many = need(&pairs, &figures(), &machine());
        assert!(many.fits && many.nodes > 5, "{} nodes", many.nodes);
        let n = f64::from(many.nodes);
        close(resource(&many, "CPU").terms[1].value, 10.0 * (2.0 / n - 1.0 / n / n));
        assert!(resource(&many, "CPU").terms[1].arithmetic.contains(" of them here × 10 µs"));
    }

    #[test]
    fn a_restart_takes_the_connects_of_a_node_shared_by_its_shards() {
        let one = need(&load(), &figures(), &machine());
        close(one.reconnect_s, 0.5);
        let busy = need(&Load { rate: 300.0, ..load() }, &figures(), &machine());
        assert_eq!(busy.shards_per_node, 3);
        close(busy.reconnect_s, 0.5 / 3.0);
    }

    #[test]
    fn a_room_has_one_home() {
        close(
            need(&Load { rooms: 1.0, rate: 20_000.0, members: 1.0, ..load() }, &figures(), &machine()).home_part,
            0.2,
        );
    }

    #[test]
    fn a_machine_with_one_core_uses_it() {
        let small = need(&load(), &figures(), &Machine { cores: 1.0, ..machine() });
        assert_eq!((small.nodes, small.shards_per_node), (1, 1));
    }
}
