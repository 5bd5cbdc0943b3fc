//! Somebody with a connection: dials, speaks, listens, and comes back.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::auth::{Claims, mint};
use crate::config::Config;
use crate::load::client::{Client, Received};
use crate::load::failure::Failure;
use crate::load::message::Envelope;
use crate::load::target::{Target, Token};

/// How long connecting may take.
const OPENING_MS: u64 = 10_000;
/// First and longest pause before another attempt.
const PAUSE_MIN_MS: u64 = 1_000;
const PAUSE_MAX_MS: u64 = 15_000;
/// How long a token of the fleet lasts; a connection whose token has ended comes back with another one.
const TOKEN_S: u64 = 3600;

/// What one does with a connection. Time is in milliseconds since the fleet began.
pub(super) trait Actor {
    /// Who it is.
    fn identity(&self) -> Identity;
    /// The connection is there.
    fn began(&mut self, now_ms: u64, say: &mut Say);
    /// A message came.
    fn heard(&mut self, _message: &Envelope<'_>, _now_ms: u64, _say: &mut Say) {}
    /// Time has gone on.
    fn step(&mut self, now_ms: u64, say: &mut Say);
    /// How many messages it takes in at this time.
    fn appetite(&mut self, _now_ms: u64) -> usize {
        usize::MAX
    }
    /// How long it stays away after an administrator has closed its connection.
    fn offended_ms(&self) -> u64 {
        20_000
    }
    /// A receive buffer of the kernel's that is not the usual one, in bytes.
    fn receive_buffer(&self) -> Option<usize> {
        None
    }
}

/// Who somebody is to the hub.
pub(super) struct Identity {
    pub(super) client_id: String,
    pub(super) user: String,
    pub(super) name: String,
    pub(super) permissions: Vec<String>,
}

/// What somebody wants to be done.
#[derive(Default)]
pub(super) struct Say {
    commands: Vec<String>,
    leave_ms: Option<u64>,
}

impl Say {
    /// A command, whose answer is told by the `id` if it has one.
    pub(super) fn command(&mut self, kind: &str, id: Option<&str>, data: &Value) {
        let mut command = json!({"type": kind, "data": data});
        if let (Some(id), Some(fields)) = (id, command.as_object_mut()) {
            fields.insert("id".to_owned(), id.into());
        }
        self.commands.push(command.to_string());
    }

    /// An event.
    pub(super) fn publish(&mut self, room: &str, kind: &str, data: &Value) {
        self.command("publish", None, &json!({"room": room, "type": kind, "data": data}));
    }

    /// Says goodbye, to be back after so long.
    pub(super) fn leave(&mut self, away_ms: u64) {
        self.leave_ms = Some(away_ms);
    }

    #[cfg(test)]
    pub(super) fn said(&mut self) -> Vec<Value> {
        let said = std::mem::take(&mut self.commands);
        said.iter().map(|text| serde_json::from_str(text).expect("JSON")).collect()
    }
}

/// The way in: where the hub is, and what signs tokens.
pub(super) struct Gate {
    address: SocketAddr,
    signs: Option<Config>,
}

impl Gate {
    pub(super) fn new(address: SocketAddr, config: &Config) -> Gate {
        Gate { address, signs: config.auth.enabled.then(|| config.clone()) }
    }

    fn dial(&self, actor: &dyn Actor) -> Result<Client, String> {
        let identity = actor.identity();
        let url = format!("ws://{}/ws?client_id={}", self.address, identity.client_id);
        let token = self.signs.as_ref().map(|config| token(config, &identity)).transpose()?;
        let target = Target::new(&url, token.as_ref()).map_err(|error| error.to_string())?;
        let client = Client::connect(&target, None).map_err(|error| error.to_string())?;
        if let (Some(size), Some(socket)) = (actor.receive_buffer(), client.socket()) {
            socket2::SockRef::from(&socket).set_recv_buffer_size(size).map_err(|error| error.to_string())?;
        }
        Ok(client)
    }
}

fn token(config: &Config, identity: &Identity) -> Result<Token, String> {
    let secret = config.auth.secret.first().ok_or("there is no auth.secret to sign with")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|error| error.to_string())?.as_secs();
    let claims = Claims {
        sub: identity.user.clone(),
        name: Some(identity.name.clone()),
        permissions: identity.permissions.clone(),
        iat: Some(now),
        exp: Some(now + TOKEN_S),
        iss: config.auth.issuer.first().cloned(),
        aud: config.auth.audience.first().cloned(),
        ..Claims::default()
    };
    mint(secret, config.auth.algorithm, &claims).map_err(|error| error.to_string())?.parse()
}

enum Link {
    Away { until_ms: u64 },
    Opening { client: Client, since_ms: u64 },
    Open(Client),
}

/// An actor and its connection.
pub(super) struct Member {
    actor: Box<dyn Actor>,
    link: Link,
    pause_ms: u64,
}

impl Member {
    pub(super) fn new(actor: Box<dyn Actor>) -> Member {
        Member { actor, link: Link::Away { until_ms: 0 }, pause_ms: PAUSE_MIN_MS }
    }

    /// Does what is due, without waiting for anything.
    pub(super) fn step(&mut self, gate: &Gate, now_ms: u64) {
        let link = std::mem::replace(&mut self.link, Link::Away { until_ms: now_ms });
        self.link = match link {
            Link::Away { until_ms } if now_ms < until_ms => Link::Away { until_ms },
            Link::Away { .. } => match gate.dial(&*self.actor) {
                Ok(client) => Link::Opening { client, since_ms: now_ms },
                Err(reason) => self.away(&reason, self.pause_ms, now_ms),
            },
            Link::Opening { mut client, since_ms } => match client.advance(true, true) {
                Ok(true) => {
                    self.pause_ms = PAUSE_MIN_MS;
                    let mut say = Say::default();
                    self.actor.began(now_ms, &mut say);
                    self.speak(client, say, now_ms)
                }
                Ok(false) if now_ms - since_ms < OPENING_MS => Link::Opening { client, since_ms },
                Ok(false) => self.away("no answer to the upgrade", self.pause_ms, now_ms),
                Err(failure) => self.lost(&failure, now_ms),
            },
            Link::Open(client) => self.converse(client, now_ms),
        };
    }

    fn converse(&mut self, mut client: Client, now_ms: u64) -> Link {
        let mut say = Say::default();
        if let Err(failure) = client.advance(true, true) {
            return self.lost(&failure, now_ms);
        }
        for _ in 0..self.actor.appetite(now_ms) {
            match client.receive() {
                Ok(Received::Text(text)) => {
                    if let Some(message) = Envelope::parse(text.as_str()) {
                        self.actor.heard(&message, now_ms, &mut say);
                    }
                }
                Ok(Received::Nothing) => break,
                Ok(Received::Binary | Received::Ended) => {
                    return self.away("the connection ended", PAUSE_MIN_MS, now_ms);
                }
                Err(failure) => return self.lost(&failure, now_ms),
            }
        }
        self.actor.step(now_ms, &mut say);
        self.speak(client, say, now_ms)
    }

    fn speak(&mut self, mut client: Client, say: Say, now_ms: u64) -> Link {
        let sent = say.commands.into_iter().try_for_each(|text| client.send(text.into())).and_then(|()| client.flush());
        if let Err(failure) = sent {
            return self.lost(&failure, now_ms);
        }
        let Some(away_ms) = say.leave_ms else { return Link::Open(client) };
        // What the hub answers to the farewell is of no interest: the socket is closed behind it.
        match client.close().and_then(|()| client.flush()) {
            Ok(()) => Link::Away { until_ms: now_ms + away_ms },
            Err(failure) => self.lost(&failure, now_ms),
        }
    }

    fn lost(&mut self, failure: &Failure, now_ms: u64) -> Link {
        let pause_ms = match failure {
            Failure::Closed { code: 4500, .. } => self.actor.offended_ms(),
            _ => self.pause_ms,
        };
        self.away(&failure.to_string(), pause_ms, now_ms)
    }

    fn away(&mut self, reason: &str, pause_ms: u64, now_ms: u64) -> Link {
        tracing::debug!(client = self.actor.identity().client_id, reason, "a client of the demo is away");
        self.pause_ms = (self.pause_ms * 2).min(PAUSE_MAX_MS);
        Link::Away { until_ms: now_ms + pause_ms }
    }
}

/// When something is due that comes again and again, never quite as regularly as a clock.
pub(super) struct Due {
    at_ms: u64,
    pause_ms: std::ops::Range<u64>,
}

impl Due {
    /// For the first time after a first pause.
    pub(super) fn every(pause_ms: std::ops::Range<u64>) -> Due {
        Due { at_ms: 0, pause_ms }
    }

    /// Whether it is due now; then it is next after another pause.
    pub(super) fn comes(&mut self, now_ms: u64, chance: &mut fastrand::Rng) -> bool {
        if self.at_ms == 0 {
            self.at_ms = now_ms + chance.u64(0..self.pause_ms.end);
            return false;
        }
        let comes = now_ms >= self.at_ms;
        if comes {
            self.at_ms = now_ms + chance.u64(self.pause_ms.clone());
        }
        comes
    }

    /// Counts anew from now on.
    pub(super) fn restart(&mut self) {
        self.at_ms = 0;
    }
}
