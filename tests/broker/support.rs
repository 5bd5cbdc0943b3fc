//! Real Redis servers on free ports, a proxy that cuts and turns, and nodes: a broker each, with a home that checks what it is
//! told.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringhub::broker::{self, Broker, BrokerFigures, Identity, Link};
use ringhub::config::Config;
use ringhub::hub::brokered::{
    BrokeredEvent, EventKey, Followed, FromBroker, Keep, LockCall, Locked, Numbers, Place, SharedLock, Submission,
    ToBroker,
};
use ringhub::hub::name::{NameHasher, RoomName, ShardId};
use ringhub::wire::native::Refused;
use rustix::process::{Pid, Signal, kill_process};

/// How long something may take that takes milliseconds: machines of others are slow at times.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The server's program: `RINGHUB_REDIS`, or what is in PATH. None skips the test, and says so.
pub fn program() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("RINGHUB_REDIS") {
        return Some(path.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("redis-server")).find(|file| file.is_file());
    if found.is_none() {
        eprintln!("SKIPPED: there is no redis-server in PATH, and RINGHUB_REDIS names none");
    }
    found
}

/// A port that nobody listens on, nor on that of its cluster's bus; below those that the system gives to others. No other test
/// of this process gets it.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let base = 10_000 + (std::process::id() % 100) as u16 * 100;
        let port = base + NEXT.fetch_add(1, Ordering::SeqCst) % 100;
        if [port, port + 10_000].iter().all(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()) {
            return port;
        }
    }
}

/// A Redis server. Ends with this value, and its folder with it.
pub struct Redis {
    program: PathBuf,
    folder: PathBuf,
    options: Vec<String>,
    file: Option<PathBuf>,
    child: Option<Child>,
    pub port: u16,
}

impl Redis {
    pub fn start(program: &std::path::Path, options: &[&str]) -> Redis {
        let mut redis = Redis::new(program);
        redis.options = options.iter().map(|option| option.to_string()).collect();
        redis.run();
        redis
    }

    fn new(program: &std::path::Path) -> Redis {
        let port = free_port();
        let folder = std::env::temp_dir().join(format!("ringhub-redis-{}-{port}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        Redis { program: program.to_owned(), folder, options: Vec::new(), file: None, child: None, port }
    }

    /// A sentinel of the server at a port, with so many of them having to agree.
    pub fn sentinel(program: &std::path::Path, watched: u16, quorum: u32) -> Redis {
        let mut redis = Redis::new(program);
        let file = redis.folder.join("sentinel.conf");
        let text = format!(
            "sentinel monitor mymaster 127.0.0.1 {watched} {quorum}\nsentinel down-after-milliseconds mymaster 500\n\
             sentinel failover-timeout mymaster 2000\n"
        );
        std::fs::write(&file, text).expect("a file");
        redis.file = Some(file);
        redis.run();
        redis
    }

    /// Starts it (again) at its port, and waits until it answers.
    pub fn run(&mut self) {
        let mut command = Command::new(&self.program);
        let port = self.port.to_string();
        let folder = self.folder.display().to_string();
        if let Some(file) = &self.file {
            command.arg(file).arg("--sentinel");
        } else {
            command.args(["--save", "", "--loglevel", "warning"]).args(&self.options);
        }
        command.args(["--port", &port, "--dir", &folder, "--bind", "127.0.0.1"]);
        let log = std::fs::File::create(self.folder.join("log")).expect("a log");
        self.child = Some(command.stdout(log).stderr(Stdio::null()).spawn().expect("redis-server starts"));
        eventually("the server answers", || match self.try_command::<String>(&["PING"]) {
            Ok(_) => true,
            Err(error) => error.code() == Some("NOAUTH") || error.kind() == redis::ErrorKind::AuthenticationFailed,
        });
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().expect("it runs"))
    }

    /// Ends it without a warning.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it can be killed");
            child.wait().expect("it ends");
        }
    }

    pub fn freeze(&self) {
        kill_process(self.pid(), Signal::STOP).expect("it can be stopped");
    }

    pub fn thaw(&self) {
        kill_process(self.pid(), Signal::CONT).expect("it can go on");
    }

    pub fn try_command<T: redis::FromRedisValue>(&self, words: &[&str]) -> redis::RedisResult<T> {
        let client = redis::Client::open(self.url())?;
        let mut connection = client.get_connection_with_timeout(Duration::from_secs(2))?;
        redis::cmd(words[0]).arg(&words[1..]).query(&mut connection)
    }

    pub fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        self.try_command(words).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// Seconds that the server's process used.
    pub fn cpu_seconds(&self) -> f64 {
        let info: String = self.command(&["INFO", "cpu"]);
        let figure = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name)).expect("a figure");
            line.trim().parse::<f64>().expect("a number")
        };
        figure("used_cpu_sys:") + figure("used_cpu_user:")
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

/// Waits until something is so.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Carries connections to a server, and can be told to cut them, or to lead elsewhere.
pub struct Proxy {
    pub port: u16,
    shared: Arc<ProxyShared>,
}

struct ProxyShared {
    target: Mutex<SocketAddr>,
    open: Mutex<Vec<TcpStream>>,
    /// Answers' bytes that still pass before everything is cut; negative: no end.
    answers_left: AtomicI64,
    /// What comes for the clients is swallowed.
    is_deaf: AtomicBool,
    cuts: AtomicU64,
}

impl Proxy {
    pub fn start(target: SocketAddr) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(ProxyShared {
            target: Mutex::new(target),
            open: Mutex::new(Vec::new()),
            answers_left: AtomicI64::new(-1),
            is_deaf: AtomicBool::new(false),
            cuts: AtomicU64::new(0),
        });
        let of_thread = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let target = *of_thread.target.lock().unwrap();
                // Nobody there: the client sees its connection end.
                let Ok(server) = TcpStream::connect(target) else { continue };
                let all = [&client, &server].map(|stream| stream.try_clone().expect("a descriptor"));
                of_thread.open.lock().unwrap().extend(all);
                let (to_server, to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                std::thread::spawn(move || pump(client, to_server, None));
                let shared = of_thread.clone();
                std::thread::spawn(move || pump(server, to_client, Some(shared)));
            }
        });
        Proxy { port, shared }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// New connections lead there, and the present ones end.
    pub fn turn_to(&self, target: SocketAddr) {
        *self.shared.target.lock().unwrap() = target;
        self.shared.cut();
    }

    pub fn cut(&self) {
        self.shared.cut();
    }

    /// Cuts all when so many more bytes of answers have passed.
    pub fn cut_after(&self, bytes: i64) {
        self.shared.answers_left.store(bytes, Ordering::SeqCst);
    }

    /// How often it was cut.
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::SeqCst)
    }

    /// Swallows what is published in channels.
    pub fn set_deaf(&self, is_deaf: bool) {
        self.shared.is_deaf.store(is_deaf, Ordering::SeqCst);
    }
}

impl ProxyShared {
    fn cut(&self) {
        self.answers_left.store(-1, Ordering::SeqCst);
        self.cuts.fetch_add(1, Ordering::SeqCst);
        for stream in self.open.lock().unwrap().drain(..) {
            // It may have ended by itself.
            drop(stream.shutdown(Shutdown::Both));
        }
    }
}

/// What a server sent, without what was published in channels. A message that has not come to its end is left in `sent`.
fn without_messages(sent: &mut Vec<u8>) -> Vec<u8> {
    const MESSAGE: &[u8] = b">3\r\n$7\r\nmessage\r\n";
    let (mut kept, mut at) = (Vec::new(), 0);
    while let Some(begins) = memchr::memmem::find(&sent[at..], MESSAGE) {
        kept.extend_from_slice(&sent[at..at + begins]);
        at += begins;
        let texts = &sent[at + MESSAGE.len()..];
        // The channel, and what was published there.
        let Some(end) = text_end(texts).and_then(|end| Some(end + text_end(texts.get(end..)?)?)) else {
            sent.drain(..at);
            return kept;
        };
        at += MESSAGE.len() + end;
    }
    kept.extend_from_slice(&sent[at..]);
    sent.clear();
    kept
}

/// Where a text ends that begins here.
fn text_end(sent: &[u8]) -> Option<usize> {
    let line = memchr::memchr(b'\n', sent)?;
    let length: usize = std::str::from_utf8(&sent[1..line - 1]).ok()?.parse().ok()?;
    Some(line + 1 + length + 2).filter(|end| *end <= sent.len())
}

fn pump(mut from: TcpStream, mut to: TcpStream, answers: Option<Arc<ProxyShared>>) {
    let (mut bytes, mut unfinished) = (vec![0; 64 << 10], Vec::new());
    loop {
        let count = match from.read(&mut bytes) {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        let mut passed = &bytes[..count];
        let without;
        if let Some(shared) = &answers {
            if shared.is_deaf.load(Ordering::SeqCst) || !unfinished.is_empty() {
                unfinished.extend_from_slice(passed);
                without = without_messages(&mut unfinished);
                passed = &without;
            }
            let left = shared.answers_left.load(Ordering::SeqCst);
            if left >= 0 {
                passed = &passed[..passed.len().min(left as usize)];
                let before = shared.answers_left.fetch_sub(passed.len() as i64, Ordering::SeqCst);
                if to.write_all(passed).is_err() || before <= count as i64 {
                    shared.cut();
                    break;
                }
                continue;
            }
        }
        if to.write_all(passed).is_err() {
            break;
        }
    }
    drop(to.shutdown(Shutdown::Both));
    drop(from.shutdown(Shutdown::Both));
}

/// What a home knows of a room.
#[derive(Default, Clone)]
pub struct Room {
    pub place: Option<Place>,
    /// All events since it was followed without a gap, or since the last gap.
    pub events: Vec<BrokeredEvent>,
    /// How often it was told that something is missing.
    pub gaps: usize,
    /// How often it was told where it is.
    pub followed: usize,
    /// How often it was told that it can't be followed.
    pub refused: usize,
    pub log_from: u64,
}

impl Room {
    pub fn epoch(&self) -> u64 {
        self.place.expect("it is followed").epoch
    }

    pub fn seq(&self) -> u64 {
        self.place.map_or(0, |place| place.seq)
    }

    /// The numbers that the test gave the events.
    pub fn tags(&self) -> Vec<u64> {
        self.events.iter().map(tag_of).collect()
    }
}

/// One node: a broker, and homes on one shard that check what they are told.
pub struct Node {
    pub broker: Option<Broker>,
    pub link: Link,
    pub figures: Arc<BrokerFigures>,
    woken: mpsc::Receiver<u16>,
    names: NameHasher,
    next_number: u64,
    pub rooms: HashMap<String, Room>,
    pub answers: HashMap<u64, Result<Numbers, Refused>>,
    pub locked: HashMap<u64, Result<Locked, Refused>>,
    pub cleared: HashMap<u64, Result<u64, Refused>>,
    pub keep: Keep,
    run: u64,
}

const SHARD: ShardId = ShardId(0);

/// The configuration of nodes at this address, or these with `","` between them.
pub fn config(url: &str, more: &str) -> Config {
    // Short where nothing is said, so that what waits for it does not take long.
    let timeout = if more.contains("timeout_ms") { "" } else { "timeout_ms = 500\n" };
    let text = format!("[broker]\nkind = \"redis\"\n[broker.redis]\nurl = [\"{url}\"]\n{timeout}{more}\n");
    Config::from_toml(&text).unwrap_or_else(|error| panic!("{error}"))
}

impl Node {
    pub fn start(url: &str) -> Node {
        Node::with(&config(url, "")).unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn with(config: &Config) -> Result<Node, broker::StartError> {
        static RUNS: AtomicU64 = AtomicU64::new(1);
        let run = RUNS.fetch_add(1, Ordering::SeqCst) * 1_000_003 + u64::from(std::process::id());
        let (link, intake) = broker::link(1);
        let figures = Arc::new(BrokerFigures::default());
        let (wake, woken) = mpsc::channel();
        // A test that ended listens no more.
        let wake = Box::new(move |shard| wake.send(shard).unwrap_or_default());
        let identity = Identity { run, name: format!("node-{run}") };
        let broker = broker::start(config, &identity, intake, figures.clone(), wake)?;
        Ok(Node {
            broker: Some(broker),
            link,
            figures,
            woken,
            names: NameHasher::new(run),
            next_number: 0,
            rooms: HashMap::new(),
            answers: HashMap::new(),
            locked: HashMap::new(),
            cleared: HashMap::new(),
            keep: Keep { events_max: 10_000, age_ms: 3_600_000 },
            run,
        })
    }

    pub fn name(&self, room: &str) -> RoomName {
        self.names.room(room)
    }

    pub fn room(&self, room: &str) -> Room {
        self.rooms.get(room).cloned().unwrap_or_default()
    }

    pub fn give(&self, messages: Vec<ToBroker>) {
        let mut messages = Some(messages);
        eventually("the broker takes it", || match self.link.push(SHARD, messages.take().expect("not taken yet")) {
            Ok(()) => true,
            Err(back) => {
                messages = Some(back);
                false
            }
        });
    }

    /// Begins to follow a room, from where its home is.
    pub fn ask(&self, room: &str) {
        let from = self.rooms.get(room).and_then(|room| room.place);
        self.give(vec![ToBroker::Follow { room: self.name(room), from, claim: None }]);
    }

    /// Follows a room.
    pub fn follow(&mut self, room: &str) {
        let before = self.room(room).followed;
        self.ask(room);
        self.until("it is followed", |node| node.room(room).followed > before);
    }

    /// Hands over events with these numbers; the number of the submission.
    pub fn submit(&mut self, room: &str, tags: impl IntoIterator<Item = u64>) -> u64 {
        let events = tags.into_iter().map(|tag| event(self.run, tag, None)).collect();
        self.submit_events(room, events)
    }

    pub fn submit_events(&mut self, room: &str, events: Vec<BrokeredEvent>) -> u64 {
        self.next_number += 1;
        let number = self.next_number;
        let new_epoch = self.run ^ number << 20;
        let submission = Submission { room: self.name(room), number, events, new_epoch, keep: self.keep };
        self.give(vec![ToBroker::Submit(Box::new(submission))]);
        number
    }

    pub fn answer(&mut self, number: u64) -> Result<Numbers, Refused> {
        self.until("it is answered", |node| node.answers.contains_key(&number));
        self.answers.remove(&number).expect("there is one")
    }

    pub fn publish(&mut self, room: &str, tags: impl IntoIterator<Item = u64>) -> Result<Numbers, Refused> {
        let number = self.submit(room, tags);
        self.answer(number)
    }

    pub fn publish_with_key(&mut self, room: &str, tag: u64, key: &str) -> Result<Numbers, Refused> {
        let number = self.submit_events(room, vec![event(self.run, tag, Some(key))]);
        self.answer(number)
    }

    pub fn lock(&mut self, room: &str, field: &str, action: SharedLock) -> Result<Locked, Refused> {
        self.next_number += 1;
        let number = self.next_number;
        let call = LockCall { room: self.name(room), field: field.into(), number, node: self.run, action };
        self.give(vec![ToBroker::Lock(Box::new(call))]);
        self.until("the lock is answered", |node| node.locked.contains_key(&number));
        self.locked.remove(&number).expect("there is one")
    }

    pub fn clear(&mut self, room: &str) -> Result<u64, Refused> {
        self.next_number += 1;
        let number = self.next_number;
        self.give(vec![ToBroker::Clear { room: self.name(room), number }]);
        self.until("it is cleared", |node| node.cleared.contains_key(&number));
        self.cleared.remove(&number).expect("there is one")
    }

    /// Takes what it is told until something is so.
    pub fn until(&mut self, what: &str, mut is_so: impl FnMut(&Node) -> bool) {
        let end = Instant::now() + PATIENCE;
        loop {
            self.take();
            if is_so(self) {
                return;
            }
            assert!(Instant::now() < end, "in vain: {what}");
            // Looked at again in any case.
            self.woken.recv_timeout(Duration::from_millis(20)).unwrap_or_default();
        }
    }

    /// Takes what it is told within a time, or the first of it.
    pub fn wait(&mut self, time: Duration) {
        self.woken.recv_timeout(time).unwrap_or_default();
        self.take();
    }

    /// Takes what it was told up to now.
    pub fn take(&mut self) {
        while let Some(messages) = self.link.take(SHARD) {
            for message in messages {
                self.told(message);
            }
        }
    }

    fn told(&mut self, message: FromBroker) {
        match message {
            FromBroker::Submitted { number, outcome, .. } => {
                assert!(self.answers.insert(number, outcome).is_none(), "a submission is answered once");
            }
            FromBroker::Cleared { number, outcome } => drop(self.cleared.insert(number, outcome)),
            FromBroker::Locked { number, outcome } => drop(self.locked.insert(number, outcome)),
            FromBroker::Followed { room, outcome: Err(_) } => {
                self.rooms.entry(room.as_str().to_owned()).or_default().refused += 1;
            }
            FromBroker::Followed { room, outcome: Ok(followed) } => {
                let Followed { epoch, seq, continues, first_seq, events } = *followed;
                let room = self.rooms.entry(room.as_str().to_owned()).or_default();
                assert_eq!(first_seq + events.len() as u64, seq + 1);
                let mut events = events;
                if continues {
                    let place = room.place.expect("only a place is continued");
                    assert!(
                        place.epoch == epoch && first_seq <= place.seq + 1 && place.seq <= seq,
                        "it continues the place"
                    );
                    // It may have been told some of them since it asked.
                    events.drain(..(place.seq + 1 - first_seq) as usize);
                } else {
                    room.gaps += 1;
                    room.events.clear();
                }
                room.followed += 1;
                let before = room.place.filter(|place| continues && place.seq == seq).map(|place| place.id);
                let id = events.last().map(|event| event.id).or(before).unwrap_or([0; 36]);
                room.place = Some(Place { epoch, seq, id });
                room.events.extend(events);
            }
            FromBroker::Events(carried) => {
                let room = self.rooms.entry(carried.room.as_str().to_owned()).or_default();
                // What is on its way when a room is left may still come.
                let Some(place) = room.place else { return };
                assert_eq!((place.epoch, place.seq + 1), (carried.epoch, carried.first_seq), "{:?}", carried.room);
                let last = carried.events.last().expect("there are events");
                let seq = place.seq + carried.events.len() as u64;
                room.place = Some(Place { epoch: place.epoch, seq, id: last.id });
                room.events.extend(carried.events);
            }
            FromBroker::Emptied { room, log_from, .. } => {
                self.rooms.entry(room.as_str().to_owned()).or_default().log_from = log_from;
            }
        }
    }

    /// Waits until a room has come to a number.
    pub fn until_seq(&mut self, room: &str, seq: u64) {
        self.until("the room comes that far", |node| node.room(room).seq() >= seq);
    }
}

/// An event whose number can be found again.
pub fn event(run: u64, tag: u64, key: Option<&str>) -> BrokeredEvent {
    let mut id = [b'0'; 36];
    id.copy_from_slice(format!("{:020}-{tag:015}", run % 1_000_000_007).as_bytes());
    let data = Bytes::from(format!("{{\"tag\":{tag},\"text\":\"{}\"}}", "x".repeat(80)));
    BrokeredEvent {
        id,
        unix_ms: 1_800_000_000_000,
        kind: "doc.updated".into(),
        data,
        key: key.map(|key| EventKey::Given(key.into())),
        exclude: None,
    }
}

pub fn tag_of(event: &BrokeredEvent) -> u64 {
    let digits = std::str::from_utf8(&event.id[21..]).expect("digits");
    digits.parse().expect("a number")
}
