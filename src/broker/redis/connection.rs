//! Connections to Redis: a server, the server that sentinels tell of, or a primary of a cluster.
//!
//! Larger than most files because all that the library is asked for in three ways is asked for here, and nowhere else.

use std::error::Error as _;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, ProtocolVersion,
    PushInfo, RedisConnectionInfo, RedisError, ServerErrorKind, TlsCertificates, TlsMode, Value, cmd,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::cluster::HeardOf;
use super::scripts::{Call, Scripts};
use super::server::not_understood;
use super::slots::{Address, Topology, is_serving};
use crate::config::{Config, RedisMode, RedisUrl};

/// Commands that may wait for a connection's task; it takes all of them at a time.
const QUEUE: usize = 1024;

/// How long after one answer of several that will do others are waited for.
const SOON_AFTER: Duration = Duration::from_millis(100);

/// What is connected to, and how.
#[derive(Debug)]
pub struct Target {
    pub(super) mode: RedisMode,
    pub(super) urls: Vec<RedisUrl>,
    pub(super) sentinel_master: String,
    pub(super) username: Option<String>,
    pub(super) password: Option<crate::config::Password>,
    pub(super) certificates: Option<Vec<u8>>,
    pub(super) timeout: Duration,
    pub(super) client_name: String,
    /// Servers of the cluster beside those that are configured.
    pub(super) heard_of: HeardOf,
    /// Of a primary of a cluster: where it is, and the canary whose slot it has.
    pub(super) primary: Option<(Address, u32)>,
}

/// Connections to one server.
#[derive(Clone)]
pub struct Connections {
    /// Events are published over this one.
    pub publish: Connection,
    /// Rooms are followed over this one.
    pub follow: Connection,
    /// Where a primary of a cluster is.
    pub at: Option<Address>,
}

/// A connection, shared by all that use it.
#[derive(Clone)]
pub enum Connection {
    /// To a server.
    Server(MultiplexedConnection),
    /// To a primary of a cluster, of which it has part of the keys and channels. What comes of a subscription is told by what
    /// is pushed: a server that ends one by itself says so in the form of an answer, and it is taken for one.
    Primary(MultiplexedConnection),
}

/// Why there is no connection.
#[derive(Debug)]
pub enum LinkError {
    /// What Redis or the library says.
    Redis(RedisError),
    /// There was no answer in time.
    Timeout,
    /// It is a replica, which takes no events.
    Replica,
    /// It is part of a cluster that is not complete, or is parted from most of it.
    NotServing,
    /// A cluster serves its slots, and does not tell where its servers are.
    NoAddress,
    /// Sentinels know the name, and of no server that is up and has it: one is about to take over.
    NoPrimary,
}

/// The certificates that are trusted can't be read.
#[derive(Debug, thiserror::Error)]
pub enum CaFileError {
    /// There is no such file, or it may not be read.
    #[error("broker.redis.ca_file: cannot read {}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// It has none.
    #[error("broker.redis.ca_file: {} has no certificate in PEM", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

impl fmt::Debug for Connections {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Connections")
    }
}

impl fmt::Display for LinkError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkError::Redis(error) => fmt::Display::fmt(error, formatter),
            LinkError::Timeout => formatter.write_str("no answer in time (broker.redis.timeout_ms)"),
            LinkError::Replica => formatter.write_str("it is a replica, which takes no events"),
            LinkError::NoAddress => formatter.write_str("the cluster does not tell the addresses of its servers"),
            LinkError::NotServing => formatter.write_str("its cluster does not serve its slots"),
            LinkError::NoPrimary => {
                formatter.write_str("the sentinels know of no server that is up: a failover is due")
            }
        }
    }
}

impl From<RedisError> for LinkError {
    fn from(error: RedisError) -> LinkError {
        if error.is_timeout() { LinkError::Timeout } else { LinkError::Redis(error) }
    }
}

impl LinkError {
    /// What has to be put right by a person, where trying again is of no use: the remedy.
    pub fn remedy(&self) -> Option<&'static str> {
        let error = match self {
            LinkError::Redis(error) => error,
            LinkError::NoAddress => {
                return Some("set cluster-announce-ip, or cluster-announce-hostname, at the servers of the cluster");
            }
            _ => return None,
        };
        match error.kind() {
            ErrorKind::AuthenticationFailed => Some("set broker.redis.username and broker.redis.password"),
            ErrorKind::RESP3NotSupported => Some("Redis 6.2 or newer, or Valkey, is needed"),
            ErrorKind::InvalidClientConfig => {
                Some("check broker.redis.url, broker.redis.mode and broker.redis.ca_file")
            }
            ErrorKind::MasterNameNotFoundBySentinel => Some("set broker.redis.sentinel_master"),
            ErrorKind::Server(ServerErrorKind::NoPerm) => Some("give the user the commands and keys of the broker"),
            _ => match error.code() {
                Some("NOAUTH" | "WRONGPASS") => Some("set broker.redis.username and broker.redis.password"),
                _ if is_certificate(error) => {
                    Some("set broker.redis.ca_file to the certificates that signed the server's")
                }
                _ if error.detail().is_some_and(|detail| detail.contains("cluster support disabled")) => {
                    Some("set broker.redis.mode to what this server is: it is no cluster")
                }
                _ => None,
            },
        }
    }
}

/// Whether the server's certificate was not accepted.
fn is_certificate(error: &RedisError) -> bool {
    // The library keeps an I/O error behind a shared pointer, and rustls's is within that.
    let shared = error.source().and_then(|cause| cause.downcast_ref::<Arc<dyn std::error::Error + Send + Sync>>());
    let inner = shared.and_then(|cause| cause.downcast_ref::<std::io::Error>()).and_then(std::io::Error::get_ref);
    let tls = inner.and_then(|cause| cause.downcast_ref::<rustls::Error>());
    matches!(tls, Some(rustls::Error::InvalidCertificate(_)))
}

impl Target {
    /// What the configuration names: one for each single server, or one for all sentinels or nodes.
    pub fn all(config: &Config, node: &str) -> Result<Vec<Target>, CaFileError> {
        let redis = &config.broker_redis;
        let certificates = match &redis.ca_file {
            None => None,
            Some(path) => {
                let read = std::fs::read(path).map_err(|error| CaFileError::Io { path: path.clone(), error })?;
                if !CertificateDer::pem_slice_iter(&read).any(|certificate| certificate.is_ok()) {
                    return Err(CaFileError::Empty { path: path.clone() });
                }
                Some(read)
            }
        };
        let target = |urls: Vec<RedisUrl>| Target {
            mode: redis.mode,
            urls,
            sentinel_master: redis.sentinel_master.clone(),
            username: redis.username.clone(),
            password: redis.password.clone(),
            certificates: certificates.clone(),
            timeout: Duration::from_millis(redis.timeout_ms),
            client_name: node.chars().map(|c| if c.is_ascii_graphic() { c } else { '_' }).collect(),
            heard_of: HeardOf::default(),
            primary: None,
        };
        Ok(match redis.mode {
            RedisMode::Single => redis.url.iter().map(|url| target(vec![url.clone()])).collect(),
            RedisMode::Sentinel | RedisMode::Cluster => vec![target(redis.url.clone())],
        })
    }

    /// Its addresses, for people.
    pub fn name(&self) -> String {
        self.urls.iter().map(RedisUrl::as_str).collect::<Vec<_>>().join(", ")
    }

    /// Whether rooms have slots, on servers of their own.
    pub fn is_cluster(&self) -> bool {
        self.mode == RedisMode::Cluster
    }

    /// Connects to a server, and hears what is pushed in `inbox`. Which of a cluster's it has to be is told by
    /// [`Target::primary`]. With scripts for who keeps rooms there: the server is told them, and whether they may be called is
    /// tried.
    pub async fn connect(&self, scripts: Option<&Scripts>, inbox: Arc<Inbox>) -> Result<Connections, LinkError> {
        // Each of several steps has the timeout of its own, and all together have it as well.
        match tokio::time::timeout(self.timeout, self.connect_all(scripts, inbox)).await {
            Ok(connected) => connected,
            Err(_) => Err(LinkError::Timeout),
        }
    }

    async fn connect_all(&self, scripts: Option<&Scripts>, inbox: Arc<Inbox>) -> Result<Connections, LinkError> {
        let client = match self.mode {
            RedisMode::Sentinel => self.sentinel().await?,
            RedisMode::Single | RedisMode::Cluster => self.single()?,
        };
        let config = self.connection_config();
        let publish = client.get_multiplexed_async_connection_with_config(&config).await?;
        let pushed = inbox.clone();
        let config = config.set_push_sender(move |push: PushInfo| {
            pushed.put(push);
            Ok::<(), redis::aio::SendError>(())
        });
        let follow = client.get_multiplexed_async_connection_with_config(&config).await?;
        let of = if self.primary.is_some() { Connection::Primary } else { Connection::Server };
        let at = self.primary.as_ref().map(|(at, _)| at.clone());
        let connections = Connections { publish: of(publish), follow: of(follow), at };
        // One user, one server: what is so for one is so for the other.
        self.prepare(&connections.publish).await?;
        if let Some(scripts) = scripts {
            self.look_at_eviction(&connections.publish).await;
            self.load(&connections.publish, scripts).await?;
            self.probe(&connections.publish, scripts).await?;
        }
        self.set_name(&connections.follow).await;
        Ok(connections)
    }

    pub(super) fn connection_config(&self) -> AsyncConnectionConfig {
        AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout))
            .set_pipeline_buffer_size(QUEUE)
    }

    /// A server must be one that takes events.
    async fn prepare(&self, connection: &Connection) -> Result<(), LinkError> {
        match connection.command(cmd("ROLE")).await {
            Ok(Value::Array(role)) => {
                let is_primary = matches!(role.first(), Some(Value::BulkString(role)) if role == b"master");
                if !is_primary {
                    return Err(LinkError::Replica);
                }
            }
            // Who may not ask finds out by publishing.
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm) => {}
            Err(error) => return Err(error.into()),
        }
        if self.primary.is_some() && cluster_info(connection).await?.is_some_and(|info| !is_serving(&info)) {
            return Err(LinkError::NotServing);
        }
        self.set_name(connection).await;
        Ok(())
    }

    async fn load(&self, connection: &Connection, scripts: &Scripts) -> Result<(), LinkError> {
        for script in scripts.all() {
            let mut load = cmd("SCRIPT");
            load.arg("LOAD").arg(script.text);
            match connection.command(load).await {
                Ok(_) => {}
                // Then they go with their text the first time.
                Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// A user who may not call the scripts, or not with these keys and channels, is found out here, and not by the first
    /// publish. What else the server refuses now concerns those who publish.
    async fn probe(&self, connection: &Connection, scripts: &Scripts) -> Result<(), LinkError> {
        let canary = self.primary.as_ref().map(|(_, canary)| *canary);
        let may_call = connection.call(&scripts.probe(canary)).await.map(drop);
        let may_say = connection.command(scripts.probe_channel(canary)).await.map(drop);
        for refused in [may_call, may_say].into_iter().filter_map(Result::err) {
            if refused.kind() == ErrorKind::Server(ServerErrorKind::NoPerm) {
                return Err(refused.into());
            }
        }
        Ok(())
    }

    /// Has the server list the connection as that of this node.
    async fn set_name(&self, connection: &Connection) {
        let mut name = cmd("CLIENT");
        name.arg("SETNAME").arg(format!("ringhub:{}", self.client_name));
        if let Err(error) = connection.command(name).await {
            tracing::debug!(%error, "a connection to Redis has no name");
        }
    }

    /// Says where the server may drop the keys of rooms for lack of memory: numbers would begin again.
    async fn look_at_eviction(&self, connection: &Connection) {
        let mut info = cmd("INFO");
        info.arg("memory");
        // Who may not ask is not told.
        let Ok(info) = connection.command(info).await else { return };
        let Ok(info) = redis::from_redis_value::<String>(info) else { return };
        let policy = info.lines().find_map(|line| line.strip_prefix("maxmemory_policy:")).unwrap_or("noeviction");
        if policy.trim() != "noeviction" {
            let (server, policy) = (self.name(), policy.trim());
            tracing::warn!(
                server,
                policy,
                "the broker's server may drop keys of rooms when memory is short, and their clients miss events then: \
                 set maxmemory-policy noeviction"
            );
        }
    }

    fn single(&self) -> Result<Client, RedisError> {
        let url = self.urls.first().map_or("", RedisUrl::as_str);
        let info = url.into_connection_info()?;
        let settings = self.settings(info.redis_settings().db());
        let info = info.set_redis_settings(settings).set_tcp_settings(tcp_settings(self.timeout));
        self.client(info)
    }

    pub(super) fn client(&self, info: ConnectionInfo) -> Result<Client, RedisError> {
        match &self.certificates {
            Some(_) if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) => {
                Client::build_with_tls(info, self.tls_certificates())
            }
            _ => Client::open(info),
        }
    }

    fn tls_certificates(&self) -> TlsCertificates {
        TlsCertificates { client_tls: None, root_cert: self.certificates.clone() }
    }

    pub(super) fn settings(&self, database: i64) -> RedisConnectionInfo {
        let mut settings = RedisConnectionInfo::default()
            .set_db(database)
            .set_protocol(ProtocolVersion::RESP3)
            .set_skip_set_lib_name();
        if let Some(username) = &self.username {
            settings = settings.set_username(username);
        }
        if let Some(password) = &self.password {
            settings = settings.set_password(password.reveal());
        }
        settings
    }

    /// The server that the first sentinel that answers tells of.
    async fn sentinel(&self) -> Result<Client, LinkError> {
        // One that is frozen holds the library up, and must not use up the time of the others' answers.
        let told = tokio::time::timeout(self.timeout / 2, self.sentinel_told()).await;
        let is_doubtful = |error: &RedisError| error.kind() == ErrorKind::MasterNameNotFoundBySentinel;
        match told {
            Ok(Err(error)) if !is_doubtful(&error) => Err(error.into()),
            Ok(Ok(client)) => Ok(client),
            Ok(Err(_)) | Err(_) if self.is_unknown_name().await => {
                let message = "no sentinel that answers knows the name";
                Err(RedisError::from((ErrorKind::MasterNameNotFoundBySentinel, message)).into())
            }
            // The library says the same where the server is down and no other has taken its place yet.
            Ok(Err(_)) => Err(LinkError::NoPrimary),
            Err(_) => Err(LinkError::Timeout),
        }
    }

    /// Whether a sentinel answers, and none that does knows the name.
    async fn is_unknown_name(&self) -> bool {
        let patience = self.timeout / 3;
        let asked = self.urls.iter().map(|url| async move {
            let told = tokio::time::timeout(patience, self.ask_sentinel(url)).await;
            told.ok().and_then(Result::ok)
        });
        let told: Vec<Value> = join_all(asked).await.into_iter().flatten().collect();
        !told.is_empty() && told.iter().all(|told| *told == Value::Nil)
    }

    /// Where a sentinel thinks that the server is, whether or not it is up; nil where it does not know the name.
    async fn ask_sentinel(&self, url: &RedisUrl) -> Result<Value, RedisError> {
        // As the library asks them: by their addresses, without a user.
        let address = url.as_str().into_connection_info()?.addr().clone();
        let info = address.into_connection_info()?.set_tcp_settings(tcp_settings(self.timeout));
        let mut connection = self.client(info)?.get_multiplexed_async_connection().await?;
        let mut ask = cmd("SENTINEL");
        ask.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.sentinel_master);
        connection.send_packed_command(&ask).await?.extract_error()
    }

    async fn sentinel_told(&self) -> Result<Client, RedisError> {
        let addresses = self.urls.iter().map(|url| Ok(url.as_str().into_connection_info()?.addr().clone()));
        let addresses = addresses.collect::<Result<Vec<_>, RedisError>>()?;
        let mut builder =
            SentinelClientBuilder::new(addresses, self.sentinel_master.clone(), SentinelServerType::Master)?
                .set_client_to_redis_protocol(ProtocolVersion::RESP3)
                .set_client_to_redis_tcp_settings(tcp_settings(self.timeout))
                .set_client_to_sentinel_tcp_settings(tcp_settings(self.timeout));
        if self.urls.iter().any(RedisUrl::is_tls) {
            builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
        }
        if self.certificates.is_some() {
            builder = builder
                .set_client_to_redis_certificates(self.tls_certificates())
                .set_client_to_sentinel_certificates(self.tls_certificates());
        }
        if let Some(username) = &self.username {
            builder = builder.set_client_to_redis_username(username);
        }
        if let Some(password) = &self.password {
            builder = builder.set_client_to_redis_password(password.reveal());
        }
        builder.build()?.async_get_client().await
    }
}

pub(super) fn tcp_settings(timeout: Duration) -> TcpSettings {
    // Without this, an answer waits for the other end's delayed acknowledgement.
    TcpSettings::default().set_nodelay(true).set_user_timeout(timeout)
}

impl Connection {
    /// Sends a command; an error that the server answers is an error.
    pub async fn command(&self, command: Cmd) -> Result<Value, RedisError> {
        let (Connection::Server(connection) | Connection::Primary(connection)) = self;
        let answer = connection.clone().send_packed_command(&command).await;
        answer.and_then(Value::extract_error).map_err(without_script)
    }

    /// Calls a script.
    pub async fn call(&self, call: &Call) -> Result<Value, RedisError> {
        match self.command(call.by_hash()).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.command(call.by_text()).await
            }
            answer => answer,
        }
    }

    /// Waits until so many replicas have what was written over this connection; how many have it.
    pub async fn wait(&self, replicas: u32, timeout: Duration) -> Result<i64, RedisError> {
        let mut wait = cmd("WAIT");
        // Shorter than the answer may take, so that it is an answer.
        wait.arg(replicas).arg(timeout.as_millis() as u64 / 2);
        let answer = self.command(wait).await?;
        redis::from_redis_value(answer).map_err(RedisError::from)
    }

    /// What a server of a cluster knows of it, which was reached at `host`.
    pub async fn topology(&self, host: &str) -> Result<Topology, RedisError> {
        let mut slots = cmd("CLUSTER");
        slots.arg("SLOTS");
        let slots = self.command(slots).await?;
        let info = cluster_info(self).await?;
        Topology::read(host, &slots, info.as_deref()).ok_or_else(not_understood)
    }

    /// Subscribes to channels. Those of a primary each go by themselves, since they may have several slots.
    pub async fn subscribe(&self, channels: &[String]) -> Result<(), RedisError> {
        match self {
            Connection::Server(connection) => connection.clone().subscribe(channels).await,
            Connection::Primary(_) => self.of_each("SSUBSCRIBE", channels).await,
        }
    }

    /// Subscribes to all channels whose name fits a pattern.
    pub async fn subscribe_to_pattern(&self, pattern: &str) -> Result<(), RedisError> {
        let (Connection::Server(connection) | Connection::Primary(connection)) = self;
        connection.clone().psubscribe(pattern).await
    }

    /// Unsubscribes from channels.
    pub async fn unsubscribe(&self, channels: &[String]) -> Result<(), RedisError> {
        match self {
            Connection::Server(connection) => connection.clone().unsubscribe(channels).await,
            Connection::Primary(_) => self.of_each("SUNSUBSCRIBE", channels).await,
        }
    }

    async fn of_each(&self, name: &str, channels: &[String]) -> Result<(), RedisError> {
        let each = channels.iter().map(|channel| {
            let mut command = cmd(name);
            command.arg(channel);
            self.command(command)
        });
        try_join_all(each).await.map(drop)
    }
}

/// Answers as they come: all, or those that come soon after the first that will do.
pub async fn gather<T>(answers: impl Iterator<Item = impl Future<Output = T>>, will_do: impl Fn(&T) -> bool) -> Vec<T> {
    let mut waiting: FuturesUnordered<_> = answers.collect();
    let mut found = Vec::new();
    let mut until = None;
    loop {
        let next = match until {
            None => waiting.next().await,
            Some(until) => tokio::time::timeout_at(until, waiting.next()).await.unwrap_or(None),
        };
        let Some(answer) = next else { return found };
        if until.is_none() && will_do(&answer) {
            until = Some(tokio::time::Instant::now() + SOON_AFTER);
        }
        found.push(answer);
    }
}

/// How a server's cluster is; none for who may not ask.
async fn cluster_info(connection: &Connection) -> Result<Option<String>, RedisError> {
    let mut info = cmd("CLUSTER");
    info.arg("INFO");
    match connection.command(info).await {
        Ok(info) => Ok(Some(redis::from_redis_value(info)?)),
        Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a command in a script was refused with. Until 7.0 Redis says that within an error of the script, without its code.
fn without_script(error: RedisError) -> RedisError {
    let detail = error.detail().filter(|detail| detail.starts_with("Error running script"));
    let line = detail.and_then(|detail| match detail.find("The user executing the script") {
        Some(at) => Some(format!("-NOPERM {}\r\n", detail.get(at..)?)),
        None => Some(format!("-{}\r\n", detail.split_once(": -")?.1)),
    });
    let told = line.and_then(|line| redis::parse_redis_value(line.as_bytes()).and_then(Value::extract_error).err());
    told.unwrap_or(error)
}

/// What a connection pushes, until the broker takes it: bounded in bytes. Of what is beyond, only the channels are kept.
#[derive(Debug)]
pub struct Inbox {
    pushed: Mutex<Pushed>,
    notify: Arc<tokio::sync::Notify>,
    bytes_max: usize,
}

/// What was pushed.
#[derive(Debug, Default)]
pub struct Pushed {
    /// In its order.
    pub messages: Vec<PushInfo>,
    bytes: usize,
    /// Channels of which something was dropped.
    pub dropped: std::collections::HashSet<Vec<u8>>,
}

impl Inbox {
    /// An empty one.
    pub fn new(notify: Arc<tokio::sync::Notify>, bytes_max: usize) -> Arc<Inbox> {
        Arc::new(Inbox { pushed: Mutex::default(), notify, bytes_max })
    }

    fn put(&self, push: PushInfo) {
        let bytes: usize =
            push.data.iter().map(|value| if let Value::BulkString(bytes) = value { bytes.len() } else { 16 }).sum();
        let mut pushed = self.pushed.lock().unwrap_or_else(PoisonError::into_inner);
        let is_message =
            matches!(push.kind, redis::PushKind::Message | redis::PushKind::SMessage | redis::PushKind::PMessage);
        if is_message && pushed.bytes + bytes > self.bytes_max {
            if let Some(Value::BulkString(channel)) = push.data.into_iter().next() {
                pushed.dropped.insert(channel);
            }
        } else {
            pushed.bytes += bytes;
            pushed.messages.push(push);
        }
        drop(pushed);
        self.notify.notify_one();
    }

    /// What was pushed since this was asked last.
    pub fn take(&self) -> Pushed {
        std::mem::take(&mut *self.pushed.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_script_was_refused_is_known_whichever_version_says_it() {
        let told = |line: &str| {
            let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).expect("an error is a value");
            without_script(value.extract_error().expect_err("it is an error"))
        };
        let in_6_2 = |text: &str| {
            told(&format!("ERR Error running script (call to f_0a9f75): @user_script:1: @user_script: 1: {text}"))
        };
        let replica = "-READONLY You can't write against a read only replica.";
        assert_eq!(in_6_2(replica).kind(), ErrorKind::Server(ServerErrorKind::ReadOnly));
        assert_eq!(told(&replica[1..]).kind(), ErrorKind::Server(ServerErrorKind::ReadOnly));
        assert_eq!(in_6_2("-OOM command not allowed when used memory > 'maxmemory'.").code(), Some("OOM"));
        for text in [
            "The user executing the script can't run this command or subcommand",
            "The user executing the script can't access at least one of the keys mentioned in the command arguments",
            "The user executing the script can't publish to the channel mentioned in the command",
        ] {
            assert_eq!(in_6_2(text).kind(), ErrorKind::Server(ServerErrorKind::NoPerm), "{text}");
        }
        let of_lua = in_6_2("attempt to index a nil value");
        assert_eq!((of_lua.kind(), of_lua.code()), (ErrorKind::Server(ServerErrorKind::ResponseError), Some("ERR")));
    }

    #[test]
    fn beyond_its_bound_an_inbox_keeps_the_channels_only() {
        let inbox = Inbox::new(Arc::default(), 20);
        let message = |channel: &str| PushInfo {
            kind: redis::PushKind::Message,
            data: vec![Value::BulkString(channel.into()), Value::BulkString(vec![0; 10])],
        };
        for channel in ["a", "b", "c", "b"] {
            inbox.put(message(channel));
        }
        let pushed = inbox.take();
        assert_eq!(pushed.messages, [message("a")]);
        assert_eq!(pushed.dropped.len(), 2);
        inbox.put(message("b"));
        assert_eq!(inbox.take().messages.len(), 1, "it has room again");
    }
}
