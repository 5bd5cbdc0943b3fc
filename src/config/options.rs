//! The table of options. A row is: text, `field: type = default, rule, unit, reload;`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use jsonwebtoken::Algorithm;

use super::broker::{BrokerKind, Password, RedisMode, RedisUrl};
use super::credentials::{PublicKey, Secret};
use super::driver::DriverChoice;
use super::hooks::{HookFail, HookKind, HookUrl};
use super::kinds::KindConfig;
use super::log::{LogFormat, LogLevel};
use super::net::{Listen, TrustedProxies};
use super::table::{OptionDef, Reload, Rule, group_key, options, power_of_two, range};
use super::value::{OptionValue, read};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

options! {
    /// Where the hub listens, and which peers it believes about a client's address.
    listen: ListenConfig {
        /// Addresses of the public listener: `HOST:PORT`, `[V6]:PORT` or `unix:/path`; one or a list.
        /// Port 0 lets the system choose.
        public: Vec<Listen> = vec![Listen::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 8000)))], Rule::Any, "", Restart;
        /// A listener of its own for the HTTP API; when set, the API is served there only.
        internal: Option<Listen> = None, Rule::Any, "", Restart;
        /// Peers whose `X-Forwarded-For`, `Forwarded` or PROXY header is believed: addresses or networks
        /// (`10.0.0.0/8`); the word `unix` stands for peers on unix sockets.
        trusted_proxies: TrustedProxies = TrustedProxies::default(), Rule::Any, "", Live;
        /// Expect a PROXY protocol header (v1 or v2) on every connection from a trusted proxy.
        proxy_protocol: bool = false, Rule::Any, "", Live;
        /// Connections the kernel may hold for each listener until they are accepted; `net.core.somaxconn` caps it.
        backlog: u32 = 4096, range(1, 65_535), "connections", Restart;
    }

    /// This node among others.
    node: NodeConfig {
        /// The name shown in greetings, logs and metrics. `auto`: `node-1`, or, where several nodes share rooms, the host's name
        /// with four digits that are drawn at start.
        name: String = "auto".to_owned(), Rule::Any, "", Restart;
    }

    /// The threads that hold the connections.
    shards: ShardsConfig {
        /// Number of shards; 0 starts one per core this process may use.
        count: usize = 0, range(0, super::SHARDS_MAX as u64), "shards", Restart;
        /// Pin each shard to a core of its own.
        pin: bool = true, Rule::Any, "", Restart;
        /// What shards and control plane ask the kernel by: `uring`, `epoll`, or `auto`, which takes `epoll` where io_uring is
        /// forbidden (by a seccomp filter, `kernel.io_uring_disabled`, a security module) and says so in the log.
        driver: DriverChoice = DriverChoice::Auto, Rule::Any, "", Restart;
        /// Keep one core free of shards and run the control plane (HTTP API, metrics) on it, so that neither disturbs the
        /// other; with `shards.count = 0` there is one shard less. Needs `shards.pin` and two cores.
        control_core: bool = false, Rule::Any, "", Restart;
        /// Deliveries of a large broadcast (sixteen times as many, or more) that a shard makes before it turns to other
        /// work; smaller keeps round trips short beside large rooms, larger costs less CPU per delivery.
        turn_deliveries_max: u32 = 64, range(16, 1_000_000), "deliveries", Live;
    }

    /// What each shard's driver has. On epoll there are buffers and no queues.
    ring: RingConfig {
        /// Receive buffers per shard, shared by all of its connections.
        buffers: u16 = 1024, power_of_two(16, 32_768), "buffers", Restart;
        /// Size of one receive buffer; a message that fits one is decoded where the kernel put it.
        buffer_bytes: u32 = 4096, range(256, 64 * KIB), "bytes", Restart;
        /// Entries of the submission queue: operations handed over in one call.
        entries: u32 = 4096, power_of_two(64, 32_768), "entries", Restart;
        /// Entries of the completion queue: completions kept between two turns before the kernel has to queue more.
        completions: u32 = 65_536, power_of_two(128, 65_536), "entries", Restart;
        /// How long a shard without work looks for completions before it sleeps. Shortens round trips by the time that waking
        /// takes, and keeps the core busy meanwhile.
        busy_poll_us: u32 = 0, range(0, 10_000), "µs", Restart;
        /// How long a shard that sleeps does so at least, unless 64 completions have come. Larger turns, at less CPU per
        /// delivery, and round trips that are longer by as much. Has no effect before Linux 6.12.
        min_wait_us: u32 = 0, range(0, 100_000), "µs", Restart;
    }

    /// The queues between shards.
    mesh: MeshConfig {
        /// Messages that may wait from one shard to another; beyond it publishes are refused as `unavailable`.
        backlog_max: u32 = 65_536, range(64, 16_777_216), "messages", Restart;
    }

    /// Who may connect, and how that is proven.
    auth: AuthConfig {
        /// Ask for a token. Without it everybody is an anonymous administrator, which only loopback listeners accept.
        enabled: bool = true, Rule::Any, "", Restart;
        /// The secret that signs tokens: a string, or a list of strings and `{ kid = "…", secret = "…" }`. Tokens
        /// that name a `kid` are checked with that secret, others with each in turn; new tokens are signed with
        /// the first. Empty, with no keys either: a secret is drawn for the run.
        secret: Vec<Secret> = Vec::new(), Rule::Any, "", Live;
        /// The algorithm of the secrets: HS256, HS384 or HS512.
        algorithm: Algorithm = Algorithm::HS256, Rule::Any, "", Live;
        /// Public keys: `{ algorithm = "ES256", pem_file = "/path" }`, or `pem = "…"`; with `kid` when tokens name
        /// one. RS, PS and ES with 256 to 512 bits (ES256, ES384), and EdDSA.
        keys: Vec<PublicKey> = Vec::new(), Rule::Any, "", Live;
        /// A JWKS file with public keys; read again on reload.
        jwks: Option<PathBuf> = None, Rule::Any, "", Live;
        /// Accepted audiences; a token must name one of them in `aud`. Empty accepts any.
        audience: Vec<String> = Vec::new(), Rule::Any, "", Live;
        /// Accepted issuers; a token's `iss` must be one of them. Empty accepts any.
        issuer: Vec<String> = Vec::new(), Rule::Any, "", Live;
        /// How far the clocks of issuer and hub may differ when `exp` and `nbf` are checked.
        leeway_s: u64 = 10, range(0, 300), "s", Live;
        /// Refuse tokens without `exp`.
        require_exp: bool = true, Rule::Any, "", Live;
        /// The cookie that may carry the token; empty looks at no cookie.
        cookie: Option<String> = None, Rule::Any, "", Live;
        /// How long before a token's end its connection is told `auth.expiring`; 0 tells nothing.
        expiring_s: u64 = 60, range(0, 86_400), "s", Live;
        /// Origins a browser may connect from: `https://app.example.com`, `https://*.example.com`, or `*`. Empty
        /// accepts any; set it when `auth.cookie` is used, since browsers send cookies from every site.
        origins: Vec<String> = Vec::new(), Rule::Any, "", Live;
    }

    /// How peers that vanished are noticed.
    heartbeat: HeartbeatConfig {
        /// A connection that was silent for this long is sent a ping.
        interval_s: u64 = 30, range(1, 3600), "s", Live;
        /// Time for anything to arrive after that ping before the connection is closed with 4408.
        timeout_s: u64 = 10, range(1, 3600), "s", Live;
    }

    /// Socket.IO (protocol 5 over Engine.IO 4), for clients that speak it.
    socketio: SocketIoConfig {
        /// The path that sessions are opened at; empty serves none.
        path: Option<String> = Some("/socket.io/".to_owned()), Rule::Any, "", Restart;
        /// The namespaces that clients may be in; each begins with a slash.
        namespaces: Vec<String> = vec!["/".to_owned(), "/ws".to_owned()], Rule::Any, "", Restart;
        /// Largest message of a client, and largest body of a poll's POST; 0 for `limits.message_bytes_max`.
        payload_bytes_max: usize = 0, range(0, 64 * MIB), "bytes", Live;
        /// How often a client is pinged.
        ping_interval_ms: u64 = 25_000, range(100, 3_600_000), "ms", Live;
        /// Time for anything to arrive after a ping before the session is closed.
        ping_timeout_ms: u64 = 20_000, range(100, 3_600_000), "ms", Live;
        /// Time for a client to be granted its first namespace after it has opened a session.
        connect_timeout_ms: u64 = 10_000, range(100, 300_000), "ms", Live;
        /// A cookie that is set to the session's id, for balancers that keep clients on a node by it; empty sets none.
        cookie: Option<String> = None, Rule::Any, "", Live;
    }

    /// Compressed WebSocket messages (`permessage-deflate`), for clients that offer it, as all browsers do.
    compression: CompressionConfig {
        /// Agree to compress with clients that offer it, unless their address says `compression=off`. Connections that are open stay
        /// as they are.
        enabled: bool = false, Rule::Any, "", Live;
        /// How hard it is tried: 1 is fast, 9 is small.
        level: u32 = 3, range(1, 9), "", Live;
        /// Shorter messages are sent as they are.
        threshold_bytes: usize = 512, range(0, 64 * MIB), "bytes", Live;
        /// Bytes that a shard compresses in one turn; what is beyond is sent as it is, and so is a longer message.
        turn_bytes_max: usize = 512 << 10, range(0, GIB), "bytes", Live;
        /// The largest window that messages are compressed with, as a power of two: 15 is 32 KiB, which each client keeps.
        window_bits: u32 = 15, range(9, 15), "bits", Live;
        /// How many times larger than what came a decompressed message may be, beyond 1 MiB; 0 leaves it to
        /// `limits.message_bytes_max`.
        ratio_max: usize = 200, range(0, 1032), "times", Live;
        /// The window that is kept of what each client sends, as a power of two from 8 to 15, so that its messages may refer to
        /// those before them; 0 keeps none.
        client_window_bits: u32 = 0, range(0, 15), "bits", Live;
        /// Memory of one shard for those windows; clients beyond it have none.
        client_windows_bytes_max: usize = 64 << 20, range(0, 64 * GIB), "bytes", Live;
    }

    /// What one client, room or shard may use. 0 switches a rate or a count of connections off.
    limits: LimitsConfig {
        /// Largest message, after reassembly of fragments; a larger one closes the connection with 1009.
        message_bytes_max: usize = 1 << 20, range(1024, 64 * MIB), "bytes", Live;
        /// Deepest nesting of JSON in a message.
        depth_max: usize = 64, range(4, 512), "levels", Live;
        /// Rooms one connection may be subscribed to.
        rooms_max: usize = 1000, range(1, 100_000), "rooms", Live;
        /// Rooms one stream of server-sent events may have: the id of each event names a place in all of them.
        stream_rooms_max: usize = 100, range(1, 200), "rooms", Live;
        /// Connections of the whole node; 0 leaves it to `limits.connections_per_shard_max`.
        connections_max: usize = 0, range(0, 10_000_000), "connections", Live;
        /// Connections one shard holds.
        connections_per_shard_max: usize = 15_000, range(1, 1_000_000), "connections", Restart;
        /// Connections one user may hold at a time; 0 for no limit.
        connections_per_user_max: usize = 32, range(0, 1_000_000), "connections", Live;
        /// Connections one client address may hold at a time; 0 for no limit. Behind a proxy, set
        /// `listen.trusted_proxies`, or all clients count as the proxy's address.
        connections_per_address_max: usize = 1024, range(0, 1_000_000), "connections", Live;
        /// Connection attempts one client address may make, with bursts of twice as many; 0 for no limit.
        connects_per_s: u32 = 100, range(0, 1_000_000), "per second", Live;
        /// Messages one connection may send, averaged; 0 for no limit.
        messages_per_s: u32 = 100, range(0, 1_000_000), "per second", Live;
        /// Messages one connection may send at once before the average counts.
        messages_burst: u32 = 200, range(1, 1_000_000), "messages", Live;
        /// A connection that stays beyond its message rate for this long is closed with 4429.
        flood_s: u64 = 10, range(1, 3600), "s", Live;
        /// Messages refused as malformed within a minute before the connection is closed with 1008.
        bad_messages_per_minute_max: u32 = 10, range(1, 10_000), "messages", Live;
        /// Time for a request's header block to arrive.
        handshake_s: u64 = 10, range(1, 300), "s", Live;
        /// Largest header block of a request; a larger one is answered with 431.
        header_bytes_max: usize = 16 << 10, range(KIB, 256 * KIB), "bytes", Live;
        /// Time for a peer to answer a close before its connection is cut.
        close_wait_s: u64 = 2, range(1, 60), "s", Live;
        /// Bytes that may wait for one connection.
        outbox_bytes_max: usize = 1 << 20, range(4 * KIB, GIB), "bytes", Live;
        /// Bytes that may wait for all connections of one shard.
        outbox_shard_bytes_max: usize = 256 << 20, range(MIB, 64 * GIB), "bytes", Live;
        /// Rooms one shard is home to.
        rooms_per_shard_max: usize = 1_000_000, range(16, 100_000_000), "rooms", Live;
        /// Longest room name, kind included.
        room_name_bytes_max: usize = 200, range(16, 1024), "bytes", Live;
        /// Conditions in the filters of one subscription.
        filter_conditions_max: usize = 32, range(1, 1024), "conditions", Live;
        /// Different filters in use on one room of a shard; equal ones count once.
        filters_per_room_max: usize = 256, range(1, 65_536), "filters", Live;
        /// Field locks one session may hold at a time.
        locks_per_session_max: usize = 100, range(1, 10_000), "locks", Live;
        /// Field locks of one room, those included that are free and waited for.
        locks_per_room_max: usize = 1000, range(1, 100_000), "locks", Live;
        /// Metadata of one connection, as JSON.
        metadata_bytes_max: usize = 4096, range(64, MIB), "bytes", Live;
        /// Longest idempotency key of a publish.
        key_bytes_max: usize = 128, range(8, 1024), "bytes", Live;
    }

    /// What a room's log keeps.
    history: HistoryConfig {
        /// Events kept per room; `rooms.KIND.history_events_max` overrides it for a kind.
        events_max: u32 = 1000, range(0, 1_000_000), "events", Live;
        /// Bytes kept per room.
        bytes_max: usize = 1 << 20, range(0, GIB), "bytes", Live;
        /// Bytes kept for all rooms of one shard; beyond it the rooms that were not used for the longest time give way.
        /// Durable rooms give way to nobody: they may have half of it, and publishes to them are refused beyond.
        shard_bytes_max: usize = 256 << 20, range(MIB, 64 * GIB), "bytes", Live;
        /// Age up to which events are kept.
        age_s: u64 = 3600, range(1, 2_592_000), "s", Live;
    }

    /// Where the logs of durable rooms (`rooms.KIND.durable`) are kept beyond the process.
    journal: JournalConfig {
        /// The folder; made where it is missing, and used by one hub at a time. Durable kinds need it.
        path: Option<PathBuf> = None, Rule::Any, "", Restart;
        /// Size of one file; a file goes when no log needs any of it.
        segment_bytes: u64 = 64 * MIB, range(64 * KIB, GIB), "bytes", Restart;
        /// Size of all files; past it, and where older ones can't go, publishes to durable rooms are refused as
        /// `unavailable`. Twice what the logs of durable rooms hold is enough.
        bytes_max: u64 = 4 * GIB, range(MIB, 1024 * GIB), "bytes", Restart;
        /// Bytes of events of one shard that may wait for the disk; beyond it publishes to durable rooms are refused.
        pending_bytes_max: usize = 32 << 20, range(64 * KIB, GIB), "bytes", Live;
    }

    /// What carries rooms between several nodes.
    broker: BrokerConfig {
        /// `memory`: nothing, there is one node; `redis`: Redis or Valkey, from 6.2 on.
        kind: BrokerKind = BrokerKind::Memory, Rule::Any, "", Restart;
        /// Bytes of one shard's events that may wait for the broker, and of other nodes' events that may wait for the shard.
        /// Publishes beyond it are refused as `unavailable`; events beyond it are read again later.
        pending_bytes_max: usize = 32 << 20, range(64 * KIB, GIB), "bytes", Restart;
        /// How long publishes wait for a broker that can't be reached before they are refused as `unavailable`; 0 refuses
        /// them at once.
        buffer_ms: u64 = 0, range(0, 60_000), "ms", Restart;
        /// How long a node counts as living after it was last heard of; it says so three times in that time. The same for all
        /// nodes.
        lease_ms: u64 = 5000, range(500, 300_000), "ms", Restart;
    }

    /// The servers of `broker.kind = "redis"`.
    broker_redis: RedisConfig {
        /// Where they are: `redis://HOST[:PORT][/DATABASE]`, `rediss://…` for TLS, `unix:///PATH`; one or a list. Of several
        /// single servers each has a part of the rooms, so that all nodes need the same list, written the same.
        url: Vec<RedisUrl> = Vec::new(), Rule::Any, "", Restart;
        /// What they are: `single` servers, `sentinel`s that tell where the server is, or nodes of one `cluster` (from 7.0 on,
        /// since its channels are sharded).
        mode: RedisMode = RedisMode::Single, Rule::Any, "", Restart;
        /// The name by which sentinels know the server.
        sentinel_master: String = "mymaster".to_owned(), Rule::Any, "", Restart;
        /// The ACL user; empty for the default user.
        username: Option<String> = None, Rule::Any, "", Restart;
        /// The password.
        password: Option<Password> = None, Rule::Any, "", Restart;
        /// A PEM file with the certificates that `rediss://` is trusted by; empty: those that the system trusts.
        ca_file: Option<PathBuf> = None, Rule::Any, "", Restart;
        /// What all keys and channels begin with.
        prefix: String = "ringhub".to_owned(), Rule::Any, "", Restart;
        /// The `key` of programs with `@socket.io/redis-emitter` (theirs is `socket.io` unless they say otherwise): what they
        /// emit into a room of Socket.IO is published in the room of that name, and what is for all in `global`. Empty hears
        /// none. Whoever may publish in Redis may do so.
        emitter_key: Option<String> = None, Rule::Any, "", Restart;
        /// How long a connection or an answer may take. A publish without an answer by then is refused as `unavailable`, and
        /// may still have happened.
        timeout_ms: u64 = 2000, range(100, 60_000), "ms", Restart;
        /// Replicas that must have a publish before it is acknowledged (`WAIT`); with fewer, a failover may lose what was
        /// acknowledged, which clients are told as a change of epoch.
        replicas_min: u32 = 0, range(0, 16), "replicas", Restart;
    }

    /// Sessions whose connection is gone.
    session: SessionConfig {
        /// How long a session without a connection can be resumed.
        resume_window_s: u64 = 120, range(0, 86_400), "s", Live;
        /// Messages kept for a session or user that is away.
        queue_max: u32 = 100, range(0, 100_000), "messages", Live;
    }

    /// History in a SQLite file: connections, performance and alerts.
    store: StoreConfig {
        /// The file; empty keeps no history. Its folder has to exist.
        path: Option<PathBuf> = None, Rule::Any, "", Restart;
        /// Reports of connections that may wait for the disk; what does not fit is counted as lost.
        queue_max: usize = 16_384, range(64, 1_048_576), "reports", Restart;
        /// Largest size of the file; near it the oldest connections are deleted before their time.
        bytes_max: u64 = GIB, range(16 * MIB, 1024 * GIB), "bytes", Restart;
        /// How long connections are kept after their end.
        connections_days: u64 = 30, range(1, 3650), "days", Restart;
        /// How long performance samples are kept, one every ten seconds.
        samples_hours: u64 = 24, range(1, 8760), "hours", Restart;
        /// How long performance by the minute is kept.
        minutes_days: u64 = 90, range(1, 3650), "days", Restart;
        /// How long it is kept which alerts there were.
        alerts_days: u64 = 90, range(1, 3650), "days", Restart;
    }

    /// Values past which the hub raises an alert; 0 watches for none.
    alerts: AlertsConfig {
        /// From receiving a publish to the completion of the send to a subscriber, 99 % of them within ten seconds; where
        /// nothing is delivered, between shards, there and back.
        latency_p99_ms: u64 = 250, range(0, 600_000), "ms", Live;
        /// Errors told to clients, of the messages that they sent.
        errors_percent: u64 = 20, range(0, 100), "%", Live;
        /// Connections, of those that the node may hold.
        connections_percent: u64 = 90, range(0, 100), "%", Live;
        /// Memory of the process in RAM.
        memory_bytes: u64 = 0, range(0, 1024 * GIB), "bytes", Live;
        /// Times that connections fell behind in rooms.
        slow_readers_per_s: u64 = 100, range(0, 1_000_000), "per second", Live;
        /// How long a shard may take to answer: one that hangs, or whose turns take too long.
        shard_silent_ms: u64 = 2000, range(0, 600_000), "ms", Live;
        /// How long a value has to be past its threshold before the alert is raised. Shards that are silent or deaf, and a
        /// store that fails, have proven it by then and are told at once.
        raise_after_s: u64 = 5, range(0, 3600), "s", Live;
        /// How long it has to be back before the alert is cleared.
        clear_after_s: u64 = 30, range(0, 3600), "s", Live;
        /// How far it has to be back: this part of the threshold.
        clear_percent: u64 = 90, range(10, 100), "%", Live;
    }

    /// What is remembered of connections, so that it can be told later what became of them and of their events.
    recorder: RecorderConfig {
        /// Records of each kind that a shard keeps: what became of connections, frames, and events. The newest take the place
        /// of the oldest. A shard takes 300 bytes for each of this number, from its start on; 0 records nothing.
        records: usize = 16_384, range(0, 4_194_304), "records", Restart;
        /// Bytes kept of the payloads of clients' messages and the answers to them. They may be anybody's secrets, so that
        /// none are kept unless this is set; messages that carry tokens are left out in any case.
        payload_bytes: usize = 0, range(0, 4096), "bytes", Live;
        /// How long connections are remembered after their end, as far as the records reach.
        keep_minutes: u64 = 15, range(0, 1440), "minutes", Live;
    }

    /// Endpoints that are off by default.
    endpoints: EndpointsConfig {
        /// Serve `/echo`, which sends every data frame back as it came.
        echo: bool = false, Rule::Any, "", Restart;
        /// `ringhub serve` runs a simulated fleet of agents, projects and editors beside the hub, and `/demo` shows it with its
        /// code. For trying a hub out, not beside real clients.
        demo: bool = false, Rule::Any, "", Restart;
    }

    /// Checks on published events.
    events: EventsConfig {
        /// Refuse event types that the protocol does not know.
        strict: bool = false, Rule::Any, "", Live;
    }

    /// What happens on SIGTERM.
    drain: DrainConfig {
        /// Time between telling clients and closing what is left.
        seconds: u64 = 10, range(0, 3600), "s", Live;
        /// Reconnects are spread over this long, so that clients do not all return at once.
        spread_ms: u64 = 5000, range(0, 600_000), "ms", Live;
    }

    /// The log on standard error.
    log: LogConfig {
        /// Lines for people (`text`) or one JSON object per line (`json`).
        format: LogFormat = LogFormat::Text, Rule::Any, "", Restart;
        /// The least severe level written: `error`, `warn`, `info`, `debug` or `trace`.
        level: LogLevel = LogLevel::Info, Rule::Any, "", Live;
    }

    /// What other services send.
    webhooks: WebhooksConfig {
        /// The secret of GitHub's webhooks to `/webhooks/github`; a list while it is being changed. Empty: no such path.
        github_secret: Vec<Secret> = Vec::new(), Rule::Any, "", Restart;
    }

    /// What the hub tells and asks a backend over HTTP.
    hooks: HooksConfig {
        /// Where batches of events are posted: `http://…` or `https://…`; empty posts none.
        url: Option<HookUrl> = None, Rule::Any, "", Restart;
        /// Which events: `connect`, `disconnect`, `message` (what clients send for the backend), `occupied` (a room has its
        /// first member) and `vacated` (the last one has gone).
        events: Vec<HookKind> = vec![HookKind::Connect, HookKind::Disconnect, HookKind::Occupied, HookKind::Vacated],
            Rule::Any, "", Live;
        /// The kinds of rooms of which `occupied` and `vacated` are told; empty: all but `user`, `session` and `global`.
        room_kinds: Vec<String> = Vec::new(), Rule::Any, "", Live;
        /// The secret that signs what is posted; a list while it is being changed, and there is a signature with each.
        /// `whsec_…` is read as base64. Empty signs nothing.
        secret: Vec<Secret> = Vec::new(), Rule::Any, "", Live;
        /// A room that is occupied and vacated again within this time is not told of, nor one that is vacated and occupied.
        debounce_ms: u64 = 1000, range(0, 60_000), "ms", Live;
        /// Events in one call.
        batch_max: usize = 100, range(1, 10_000), "events", Live;
        /// How long an event may wait for others to go with it.
        batch_wait_ms: u64 = 100, range(0, 10_000), "ms", Live;
        /// Events that may wait; what does not fit is counted as lost.
        queue_max: usize = 16_384, range(64, 1_048_576), "events", Restart;
        /// Bytes of messages that may wait.
        queue_bytes_max: usize = 16 << 20, range(64 * KIB, GIB), "bytes", Restart;
        /// How long a call may take.
        timeout_ms: u64 = 5000, range(50, 60_000), "ms", Live;
        /// For how long a batch is tried again that the backend could not take (429, 5xx, no answer) before it is given up.
        retry_s: u64 = 600, range(0, 86_400), "s", Live;
        /// A PEM file with the certificates that `https://` is trusted by; empty: those that browsers trust.
        ca_file: Option<PathBuf> = None, Rule::Any, "", Restart;
        /// Where it is asked whether a client may connect, after its token was found good; empty asks nobody.
        connect_url: Option<HookUrl> = None, Rule::Any, "", Restart;
        /// How long the answer may take.
        connect_timeout_ms: u64 = 2000, range(50, 30_000), "ms", Live;
        /// What happens where there is no answer: `closed` refuses the client (503), `open` lets it in.
        connect_fail: HookFail = HookFail::Closed, Rule::Any, "", Live;
        /// Headers of the client's request that are told; those that carry credentials can't be.
        connect_headers: Vec<String> = Vec::new(), Rule::Any, "", Live;
        /// Clients that may wait for an answer at a time; beyond it they are refused (503).
        connect_pending_max: usize = 1024, range(1, 65_536), "clients", Restart;
        /// Questions that are asked at a time; each has a thread.
        connect_calls_max: usize = 16, range(1, 256), "calls", Restart;
    }

    /// Traces and metrics for an OpenTelemetry collector.
    telemetry: TelemetryConfig {
        /// The collector's OTLP address for HTTP, such as `http://127.0.0.1:4318`: traces go to `/v1/traces` there, metrics to
        /// `/v1/metrics`, as protobuf. Empty tells nobody.
        otlp_url: Option<HookUrl> = None, Rule::Any, "", Restart;
        /// How many of a thousand HTTP calls, hook calls and admissions are traced; those whose caller traces them (`traceparent`)
        /// always are, and those whose caller does not never.
        traces_per_1000: u64 = 10, range(0, 1000), "of 1000", Restart;
        /// How often the metrics are told; 0 never.
        metrics_interval_s: u64 = 30, range(0, 3600), "s", Restart;
        /// Spans that may wait; what does not fit is counted as lost.
        queue_max: usize = 4096, range(64, 1_048_576), "spans", Restart;
        /// How long a call may take.
        timeout_ms: u64 = 5000, range(50, 60_000), "ms", Restart;
        /// A PEM file with the certificates that `https://` is trusted by; empty: those that browsers trust.
        ca_file: Option<PathBuf> = None, Rule::Any, "", Restart;
    }

    /// Browsers that call the HTTP API from other sites.
    cors: CorsConfig {
        /// Origins that are answered with CORS headers, written as in `auth.origins`; empty answers none.
        origins: Vec<String> = Vec::new(), Rule::Any, "", Live;
    }
}
