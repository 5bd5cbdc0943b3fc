//! Finding the primaries of a cluster: which of its servers are asked, and which of them has a key.
//!
//! Those that are configured are asked, and where none of them serves its slots, some of those that were heard of: in time
//! none of the former may be left.

use std::sync::{Arc, Mutex, PoisonError};

use redis::{ConnectionAddr, IntoConnectionInfo as _};

use super::connection::{Connection, Connections, Inbox, LinkError, Target, gather, tcp_settings};
use super::slots::{Address, Topology, agreed, slot_of};
use crate::config::{RedisMode, RedisUrl};

/// How many servers are asked at a time that are not configured.
const HEARD_OF_ASKED: usize = 3;
/// How many primaries are tried where any will do.
const TRIED: usize = 3;

/// Servers of a cluster that were heard of last.
#[derive(Debug, Default)]
pub(super) struct HeardOf(Mutex<Vec<Address>>);

impl HeardOf {
    fn set(&self, servers: Vec<Address>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = servers;
    }

    /// Some of them.
    fn some(&self) -> Vec<Address> {
        let mut servers = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        fastrand::shuffle(&mut servers);
        servers.truncate(HEARD_OF_ASKED);
        servers
    }
}

impl Target {
    /// One of the cluster's primaries, which has the slot of a canary. None where its address can't be connected to.
    pub fn primary(&self, address: &Address, canary: u32) -> Option<Target> {
        Some(Target {
            mode: RedisMode::Single,
            urls: vec![self.url_of(address)?],
            sentinel_master: String::new(),
            username: self.username.clone(),
            password: self.password.clone(),
            certificates: self.certificates.clone(),
            timeout: self.timeout,
            client_name: self.client_name.clone(),
            heard_of: HeardOf::default(),
            primary: Some((address.clone(), canary)),
        })
    }

    fn url_of(&self, address: &Address) -> Option<RedisUrl> {
        let scheme = if self.urls.iter().any(RedisUrl::is_tls) { "rediss" } else { "redis" };
        format!("{scheme}://{address}").parse().ok()
    }

    /// Connects to the server that has a key or channel, and hears what is pushed in `inbox`. All have it that are in no
    /// cluster.
    pub async fn connect_to_owner(&self, key: &str, inbox: Arc<Inbox>) -> Result<Connections, LinkError> {
        if !self.is_cluster() {
            return self.connect(None, inbox).await;
        }
        let topology = self.ask_for_slots().await?;
        let owner = topology.owner(slot_of(key.as_bytes())).ok_or(LinkError::NotServing)?;
        self.primary(owner, 0).ok_or(LinkError::NoAddress)?.connect(None, inbox).await
    }

    /// Connects to one of a cluster's primaries, and hears what is pushed in `inbox`.
    pub async fn connect_to_any(&self, inbox: Arc<Inbox>) -> Result<Connections, LinkError> {
        if !self.is_cluster() {
            return self.connect(None, inbox).await;
        }
        let mut primaries = self.ask_for_slots().await?.primaries();
        fastrand::shuffle(&mut primaries);
        let mut error = LinkError::NoAddress;
        for primary in primaries.iter().take(TRIED).filter_map(|primary| self.primary(primary, 0)) {
            match primary.connect(None, inbox.clone()).await {
                Ok(connections) => return Ok(connections),
                Err(failed) => error = failed,
            }
        }
        Err(error)
    }

    async fn ask_for_slots(&self) -> Result<Topology, LinkError> {
        let topology = self.ask().await?.ok_or(LinkError::NotServing)?;
        if topology.ranges.is_empty() { Err(LinkError::NoAddress) } else { Ok(topology) }
    }

    /// What those servers of the cluster know together that answer first, over connections that end with it; none where none
    /// of them serves its slots. An error where none answers.
    pub async fn ask(&self) -> Result<Option<Topology>, LinkError> {
        let configured = self.ask_servers(&self.urls).await;
        let topology = match configured {
            Ok(Some(topology)) => Some(topology),
            // Not before: what has one of their addresses by now may be of another cluster.
            other => {
                let urls: Vec<RedisUrl> =
                    self.heard_of.some().iter().filter_map(|server| self.url_of(server)).collect();
                match self.ask_servers(&urls).await {
                    Ok(Some(topology)) => Some(topology),
                    _ => other?,
                }
            }
        };
        if let Some(topology) = &topology {
            self.heard(topology);
        }
        Ok(topology)
    }

    async fn ask_servers(&self, urls: &[RedisUrl]) -> Result<Option<Topology>, LinkError> {
        let asked = urls.iter().map(|url| async move {
            let answer = tokio::time::timeout(self.timeout, self.ask_server(url)).await;
            answer.unwrap_or(Err(LinkError::Timeout))
        });
        let mut views = Vec::new();
        let mut errors = Vec::new();
        for answer in gather(asked, |answer| answer.as_ref().is_ok_and(|told| told.is_ok)).await {
            match answer {
                Ok(told) => views.push((None, told)),
                Err(error) => errors.push(error),
            }
        }
        // What a person can put right is told first.
        errors.sort_by_key(|error| error.remedy().is_none());
        match errors.into_iter().next() {
            Some(error) if views.is_empty() => Err(error),
            _ => Ok(agreed(views)),
        }
    }

    /// Keeps in mind which servers a cluster has, for when it has to be found again.
    pub fn heard(&self, topology: &Topology) {
        if topology.is_ok && !topology.servers.is_empty() {
            self.heard_of.set(topology.servers.clone());
        }
    }

    /// Looks which servers the cluster has now, over a link to one of them; whether that one serves its slots. What is no
    /// cluster has nothing to tell.
    pub async fn look_around(&self, connections: &Connections) -> Result<bool, LinkError> {
        let Some(at) = &connections.at else { return Ok(true) };
        let topology = connections.publish.topology(&at.host).await?;
        self.heard(&topology);
        Ok(topology.is_ok)
    }

    async fn ask_server(&self, url: &RedisUrl) -> Result<Topology, LinkError> {
        let info = url.as_str().into_connection_info()?.set_redis_settings(self.settings(0));
        let host = match info.addr() {
            ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.clone(),
            _ => String::new(),
        };
        let client = self.client(info.set_tcp_settings(tcp_settings(self.timeout)))?;
        let config = self.connection_config();
        let connection = Connection::Server(client.get_multiplexed_async_connection_with_config(&config).await?);
        Ok(connection.topology(&host).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_are_asked_of_those_that_were_heard_of_last() {
        let servers = |ports: std::ops::Range<u16>| -> Vec<Address> {
            ports.map(|port| Address { host: "a".to_owned(), port }).collect()
        };
        let heard_of = HeardOf::default();
        assert_eq!(heard_of.some(), []);
        heard_of.set(servers(1..3));
        assert_eq!(heard_of.some().len(), 2);
        heard_of.set(servers(3..20));
        let some = heard_of.some();
        assert_eq!(some.len(), HEARD_OF_ASKED);
        assert!(some.iter().all(|server| (3..20).contains(&server.port)), "{some:?}");
    }
}
