//! Calls that are answered for all nodes of a cluster.
//!
//! Whoever is asked asks the others, each of which answers for itself alone, and puts the answers together. A node that does
//! not answer in time is named as missing. Where there is one node, nothing of this is to be seen in an answer.

use std::future::Future;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

pub(crate) mod call;
pub(crate) mod merge;

pub(crate) use call::{NodeCall, serve};
pub(crate) use merge::{Node, Of};

use super::answer::ApiError;
use super::api::Api;
use super::backend::Backend;
use crate::broker::nodes::{Answer, Failure, Handle, NodeInfo};
use crate::hub::reply::HubError;
use crate::wire::codes::ErrorCode;

/// How long another node may take to answer.
pub(crate) const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// Which nodes are asked, where there are several.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ScopeAsked {
    /// `local` asks the node that takes the call alone; `cluster`, or nothing, all of them.
    scope: Option<ScopeWord>,
    /// The name of the one node that is asked.
    node: Option<Box<str>>,
}

#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum ScopeWord {
    Local,
    Cluster,
}

/// The nodes, as the health pages tell of them.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ClusterStatus {
    /// `up`, or `down` while the registry in which nodes find each other can't be reached: answers for all nodes are
    /// partial then.
    registry: &'static str,
    /// How long ago the registry took this node's sign of life. The others take it for dead after
    /// `broker.lease_ms`.
    lease_age_ms: u64,
    /// The names of the nodes that live as far as this one knows, itself first.
    nodes: Vec<String>,
    /// Questions that another node did not answer in time, since the start: what was told then was partial.
    calls_missing: u64,
}

impl ClusterStatus {
    pub(crate) fn of(nodes: &Handle) -> ClusterStatus {
        let figures = nodes.figures();
        ClusterStatus {
            registry: if figures.registry_up.value() > 0 { "up" } else { "down" },
            lease_age_ms: figures.lease_age_ms.value(),
            nodes: nodes.alive().into_iter().map(|node| node.name).collect(),
            calls_missing: figures.missing.value(),
        }
    }
}

/// Which nodes answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Told {
    nodes: Vec<String>,
    missing: Vec<String>,
}

/// An answer, and which nodes it is of, where there are several.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Across<T> {
    #[serde(flatten)]
    answer: T,
    /// The nodes whose answers this is made of, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    nodes: Option<Vec<String>>,
    /// True where nodes did not answer in time.
    #[serde(skip_serializing_if = "Option::is_none")]
    partial: Option<bool>,
    /// Their names.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<Vec<String>>,
}

impl<T> Across<T> {
    pub(crate) fn new(answer: T, told: Option<Told>) -> Across<T> {
        let Some(Told { nodes, missing }) = told else {
            return Across { answer, nodes: None, partial: None, missing: None };
        };
        let is_partial = !missing.is_empty();
        Across {
            answer,
            nodes: Some(nodes),
            partial: is_partial.then_some(true),
            missing: is_partial.then_some(missing),
        }
    }

    /// Without the names of those that answered, where the answer itself tells them.
    pub(crate) fn without_nodes(self) -> Across<T> {
        Across { nodes: None, ..self }
    }
}

/// What nodes have.
type Parts<T> = Vec<(Node, T)>;

/// What nodes answered.
#[derive(Debug)]
pub(crate) struct Gathered<T> {
    parts: Vec<(Node, Result<T, HubError>)>,
    told: Option<Told>,
}

/// The nodes of a call.
struct Scope {
    me: Option<String>,
    is_here: bool,
    others: Vec<NodeInfo>,
}

impl<B: Backend> Api<B> {
    fn scope(&self, asked: &ScopeAsked) -> Result<Scope, ApiError> {
        let no_node = |name: &str| {
            let message = format!("there is no node called {name:?}");
            ApiError::from(HubError::new(ErrorCode::NotFound, message))
        };
        let Some(nodes) = self.backend.nodes() else {
            return match &asked.node {
                Some(name) if **name != *self.backend.config().node.name => Err(no_node(name)),
                _ => Ok(Scope { me: None, is_here: true, others: Vec::new() }),
            };
        };
        let me = nodes.me();
        let mut others = nodes.others().to_vec();
        let mut is_here = true;
        match (&asked.node, asked.scope) {
            (Some(name), _) => {
                is_here = *me.name == **name;
                others.retain(|other| *other.name == **name);
                if !is_here && others.is_empty() {
                    return Err(no_node(name));
                }
            }
            (None, Some(ScopeWord::Local)) => others.clear(),
            (None, Some(ScopeWord::Cluster) | None) => {}
        }
        Ok(Scope { me: Some(me.name), is_here, others })
    }

    /// Asks the nodes that are meant: this one by `here`, the others by a call.
    pub(crate) async fn gather<T: DeserializeOwned, F: Future<Output = Result<T, HubError>> + Unpin>(
        &self,
        asked: &ScopeAsked,
        here: impl FnOnce(&B) -> F,
        call: NodeCall,
    ) -> Result<Gathered<T>, ApiError> {
        let Scope { me, is_here, others } = self.scope(asked)?;
        let elsewhere = match self.backend.nodes() {
            Some(nodes) if !others.is_empty() => {
                let text = serde_json::to_vec(&call).map_err(|error| ApiError::bad_json(error.to_string()))?;
                Some((nodes.call(others.clone(), text, ANSWER_WAIT), others))
            }
            _ => None,
        };
        let mut gathered = Gathered { parts: Vec::new(), told: me.is_some().then(Told::default) };
        if is_here {
            let outcome = self.remote(here(&self.backend)).await;
            gathered.add(me, outcome);
        }
        if let Some((pending, others)) = elsewhere {
            match self.remote(pending).await {
                Ok(answers) => answers.into_iter().for_each(|answer| gathered.answered(answer)),
                // None of them could be asked.
                Err(_) => others.into_iter().for_each(|node| gathered.is_missing(node.name)),
            }
        }
        Ok(gathered)
    }
}

impl<T> Gathered<T> {
    fn add(&mut self, node: Node, outcome: Result<T, HubError>) {
        if let (Some(told), Some(name)) = (&mut self.told, &node) {
            told.nodes.push(name.clone());
        }
        self.parts.push((node, outcome));
    }

    fn is_missing(&mut self, name: String) {
        if let Some(told) = &mut self.told {
            told.missing.push(name);
        }
    }

    /// What the nodes have; a part that is not there is left out. An error of one that is none of having nothing is told.
    pub(crate) fn present(self) -> Result<(Parts<T>, Option<Told>), ApiError> {
        let mut parts = Vec::with_capacity(self.parts.len());
        for (node, outcome) in self.parts {
            match outcome {
                Ok(part) => parts.push((node, part)),
                Err(error) if error.code == ErrorCode::NotFound && self.told.is_some() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok((parts, self.told))
    }

    /// The one that has it; where several do, the first one by their names, this one before all others.
    pub(crate) fn first(self) -> Result<(Node, T), ApiError> {
        let (found, _) = self.found()?;
        found.into_iter().next().ok_or_else(ApiError::not_found)
    }

    /// What at least one of the nodes has; an error where none of them has it, or it is not known whether one has.
    pub(crate) fn found(self) -> Result<(Parts<T>, Option<Told>), ApiError> {
        let (mut found, mut absent, mut failed) = (Vec::new(), None, None);
        for (node, outcome) in self.parts {
            match outcome {
                Ok(part) => found.push((node, part)),
                Err(error) if error.code == ErrorCode::NotFound => drop(absent.get_or_insert(error)),
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        if !found.is_empty() {
            return Ok((found, self.told));
        }
        if let Some(error) = failed {
            return Err(error.into());
        }
        match self.told {
            Some(told) if !told.missing.is_empty() => {
                let missing = told.missing.join(", ");
                Err(ApiError::unavailable(format!(
                    "the nodes that answered don't have it, and these did not answer: {missing}"
                )))
            }
            _ => Err(absent.unwrap_or_else(|| HubError::new(ErrorCode::NotFound, "no node has it")).into()),
        }
    }
}

impl<T: DeserializeOwned> Gathered<T> {
    fn answered(&mut self, answer: Answer) {
        let name = answer.node.name;
        match answer.outcome {
            Ok(text) => match serde_json::from_slice(&text) {
                Ok(part) => self.add(Some(name), Ok(part)),
                Err(error) => {
                    tracing::warn!(node = name, %error, "what another node answered can't be read");
                    self.is_missing(name);
                }
            },
            Err(Failure::Refused(error)) if error.code != ErrorCode::Unavailable => self.add(Some(name), Err(error)),
            Err(Failure::Refused(_) | Failure::Missing) => self.is_missing(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn answer(name: &str, outcome: Result<&'static str, Failure>) -> Answer {
        let (public, internal, version) = (None, None, String::new());
        let node = NodeInfo { run: 1, name: name.to_owned(), public, internal, started_ms: 0, version };
        Answer { node, outcome: outcome.map(|text| Bytes::from_static(text.as_bytes())) }
    }

    fn gathered(mine: Result<u32, HubError>, answers: Vec<Answer>) -> Gathered<u32> {
        let mut gathered = Gathered { parts: Vec::new(), told: Some(Told::default()) };
        gathered.add(Some("n1".to_owned()), mine);
        answers.into_iter().for_each(|answer| gathered.answered(answer));
        gathered
    }

    fn refused(code: ErrorCode) -> HubError {
        HubError::new(code, "no")
    }

    #[test]
    fn a_partial_answer_names_who_is_missing() {
        let busy = Failure::Refused(refused(ErrorCode::Unavailable));
        let answers = vec![
            answer("n2", Ok("5")),
            answer("n3", Err(Failure::Missing)),
            answer("n4", Err(busy)),
            answer("n5", Ok("no number")),
        ];
        let (parts, told) = gathered(Ok(3), answers).present().expect("told");
        assert_eq!(parts, [(Some("n1".to_owned()), 3), (Some("n2".to_owned()), 5)]);
        let text = serde_json::to_value(Across::new(serde_json::json!({"sum": 8}), told)).expect("JSON");
        let expected = serde_json::json!({
            "sum": 8, "nodes": ["n1", "n2"], "partial": true, "missing": ["n3", "n4", "n5"],
        });
        assert_eq!(text, expected);
    }

    #[test]
    fn one_node_alone_is_not_named() {
        let gathered = Gathered { parts: vec![(None, Ok(3))], told: None };
        let (parts, told) = gathered.present().expect("told");
        assert_eq!(parts, [(None, 3)]);
        let text = serde_json::to_string(&Across::new(serde_json::json!({"sum": 3}), told)).expect("JSON");
        assert_eq!(text, r#"{"sum":3}"#);
    }

    #[test]
    fn what_no_node_has_is_not_found_and_what_one_that_is_missing_may_have_is_unavailable() {
        let absent = || Err(refused(ErrorCode::NotFound));
        let status = |error: ApiError| axum::response::IntoResponse::into_response(error).status().as_u16();
        let here_only = gathered(Ok(3), vec![answer("n2", Err(Failure::Refused(refused(ErrorCode::NotFound))))]);
        assert_eq!(here_only.found().expect("found").0.len(), 1);
        let nowhere = gathered(absent(), vec![answer("n2", Err(Failure::Refused(refused(ErrorCode::NotFound))))]);
        assert_eq!(nowhere.found().map_err(status).err(), Some(404));
        let unknown = gathered(absent(), vec![answer("n2", Err(Failure::Missing))]);
        assert_eq!(unknown.found().map_err(status).err(), Some(503));
        let bad = gathered(Err(refused(ErrorCode::BadRoom)), vec![answer("n2", Err(Failure::Missing))]);
        assert_eq!(bad.found().map_err(status).err(), Some(400));
    }
}
