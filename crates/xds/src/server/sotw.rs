//! One state-of-the-world stream: every response carries the whole state of its type.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use lateen_proto::envoy::config::core::v3::ControlPlane;
use lateen_proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use sha2::{Digest, Sha256};

use super::status::{Nonces, may_remove};
use super::watch::{Held, Watch, Watches};
use super::{Answer, Because, Feedback, MAX_NAMES, MAX_TYPES, Names, Outcome, ProtocolError, Stream};
use crate::resource::{Resource, endpoints_of};
use crate::types::{CLUSTER, ENDPOINT, WILDCARD, is_wildcard_capable};

/// State of one state-of-the-world stream.
#[derive(Clone, Debug)]
pub struct SotwStream {
    identifier: Arc<str>,
    nonces: Nonces,
    types: Watches<Last>,
    /// Clusters were sent and endpoints not since: a client that replaces a cluster waits for its endpoints.
    endpoints_due: bool,
    /// Endpoints of clusters that were pushed and are new to the client, not asked for yet.
    awaited: BTreeSet<String>,
}

/// What the last response held; clusters that are gone stay in it until the client has moved away from them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Last {
    resources: BTreeMap<String, Arc<Resource>>,
    /// Hash over the resources.
    version: String,
}

impl Held for Last {
    fn count(&self) -> usize {
        self.resources.len()
    }
}

impl SotwStream {
    /// A fresh stream; `identifier` names this control plane in every response.
    pub fn new(identifier: Arc<str>) -> Self {
        Self { identifier, nonces: Nonces::new(), types: Watches::new(), endpoints_due: false, awaited: BTreeSet::new() }
    }

    fn response(&mut self, type_url: &str, removed: usize) -> Option<Answer<DiscoveryResponse>> {
        let nonce = self.nonces.next();
        let watch = self.types.get_mut(type_url)?;
        watch.ledger.sent(&nonce, SystemTime::now());
        let response = DiscoveryResponse {
            version_info: watch.held.version.clone(),
            resources: watch.held.resources.values().map(|r| r.body.clone()).collect(),
            type_url: type_url.to_owned(),
            nonce,
            control_plane: Some(ControlPlane { identifier: self.identifier.to_string() }),
            ..Default::default()
        };
        Some(Answer { resources: response.resources.len(), response, type_url: type_url.to_owned(), removed })
    }
}

/// Understands the list of names: nothing named means everything on the first request (and stays so
/// while nothing is named), and nothing at all once names were given.
fn read_names(type_url: &str, list: Vec<String>, before: Option<&Names>) -> Result<Names, ProtocolError> {
    let wildcard_by_silence = list.is_empty() && is_wildcard_capable(type_url) && before.is_none_or(|n| n.wildcard && n.names.is_empty());
    let wildcard = wildcard_by_silence || list.iter().any(|n| n == WILDCARD);
    let names: BTreeSet<String> = list.into_iter().filter(|n| n != WILDCARD).collect();
    if names.len() > MAX_NAMES { Err(ProtocolError::TooManyNames(type_url.to_owned())) } else { Ok(Names { wildcard, names }) }
}

fn hash_of(held: &BTreeMap<String, Arc<Resource>>) -> String {
    let mut hash = Sha256::new();
    for (name, resource) in held {
        hash.update(name.as_bytes());
        hash.update([0]);
        hash.update(resource.version.as_bytes());
        hash.update([0]);
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

impl Stream for SotwStream {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;
    type Held = Last;

    fn on_request(&mut self, request: DiscoveryRequest) -> Result<Outcome, ProtocolError> {
        if request.type_url.is_empty() {
            return Err(ProtocolError::NoType);
        }
        let type_url = request.type_url;
        let count = self.types.len();
        let Some(watch) = self.types.get_mut(&type_url) else {
            if count >= MAX_TYPES {
                return Err(ProtocolError::TooManyTypes);
            }
            let names = read_names(&type_url, request.resource_names, None)?;
            let respond = (!names.is_empty()).then_some(Because::First);
            self.types.insert(type_url.clone(), Watch { names, ..Watch::default() });
            return Ok(Outcome { type_url, feedback: Feedback::None, respond });
        };
        let feedback = match watch.ledger.last_nonce() {
            // Nothing was sent yet: only the names can be new.
            None => Feedback::None,
            // The client starts over within the stream.
            Some(_) if request.response_nonce.is_empty() => Feedback::None,
            // It crossed our newer response; the client will answer that one with its current names.
            Some(last) if last != request.response_nonce => return Ok(Outcome { type_url, feedback: Feedback::Stale, respond: None }),
            Some(_) => {
                match watch.ledger.answered(request.response_nonce.clone(), request.error_detail.map(|e| e.message), SystemTime::now()) {
                    // The same response answered twice: the client repeats its last request with other names.
                    Feedback::Stale => Feedback::None,
                    answered => answered,
                }
            }
        };
        let starts_over = request.response_nonce.is_empty() && watch.ledger.last_nonce().is_some();
        let names = read_names(&type_url, request.resource_names, Some(&watch.names))?;
        let added: BTreeSet<String> = names.names.difference(&watch.names.names).cloned().collect();
        let wider = names.wildcard && !watch.names.wildcard;
        let gave_up = !watch.names.names.is_subset(&names.names);
        watch.names = names;
        if watch.names.is_empty() {
            watch.ledger.forgive();
        }
        let kept = &watch.names;
        watch.held.resources.retain(|name, _| kept.wants(name));
        let respond = if (starts_over && !watch.names.is_empty()) || wider {
            Some(Because::First)
        } else {
            let mut asked = added;
            asked.extend(watch.in_doubt(gave_up).unwrap_or_default());
            (!asked.is_empty()).then_some(Because::Subscribed(asked))
        };
        Ok(Outcome { type_url, feedback, respond })
    }

    fn watches(&self) -> &Watches<Last> {
        &self.types
    }

    fn awaited(&self) -> &BTreeSet<String> {
        &self.awaited
    }

    fn scope(&self, type_url: &str, _: &Because) -> Names {
        self.names(type_url).cloned().unwrap_or_default()
    }

    fn answer(&mut self, type_url: &str, because: &Because, generated: Vec<Arc<Resource>>) -> Option<Answer<DiscoveryResponse>> {
        let watch = self.types.get_mut(type_url)?;
        let mut now: BTreeMap<String, Arc<Resource>> =
            generated.into_iter().filter(|r| watch.names.wants(&r.name)).map(|r| (r.name.clone(), r)).collect();
        let gone: Vec<String> = watch.held.resources.keys().filter(|name| !now.contains_key(*name)).cloned().collect();
        watch.deferred.clear();
        let mut removed = gone.len();
        if type_url == CLUSTER && *because == Because::Push && !gone.is_empty() {
            // Left out now, they would vanish before the routes that still name them.
            for name in gone {
                if let Some(resource) = watch.held.resources.get(&name) {
                    now.insert(name.clone(), resource.clone());
                    watch.deferred.insert(name);
                }
            }
            removed = 0;
        }
        let version = hash_of(&now);
        let due = type_url == ENDPOINT && self.endpoints_due;
        if *because == Because::Push && version == watch.held.version && !due {
            return None;
        }
        let before = std::mem::replace(&mut watch.held, Last { resources: now, version }).resources;
        match type_url {
            CLUSTER => {
                self.endpoints_due = true;
                if *because == Because::Push {
                    let new = watch.held.resources.iter().filter(|(name, _)| !before.contains_key(*name));
                    self.awaited.extend(new.filter_map(|(_, resource)| endpoints_of(resource)));
                }
            }
            ENDPOINT => {
                self.endpoints_due = false;
                self.awaited.retain(|name| !watch.names.names.contains(name));
            }
            _ => {}
        }
        self.response(type_url, removed)
    }

    fn endpoints_due(&self) -> bool {
        self.endpoints_due && self.types.get(ENDPOINT).is_some_and(|w| !w.held.resources.is_empty())
    }

    fn stop_awaiting(&mut self) {
        self.awaited.clear();
    }

    fn flush(&mut self, force: bool) -> Vec<Answer<DiscoveryResponse>> {
        if !may_remove(self.types.iter().map(|(t, w)| (t.as_str(), &w.ledger)), force) {
            return Vec::new();
        }
        let Some(watch) = self.types.get_mut(CLUSTER) else { return Vec::new() };
        let deferred = std::mem::take(&mut watch.deferred);
        if deferred.is_empty() {
            return Vec::new();
        }
        watch.held.resources.retain(|name, _| !deferred.contains(name));
        self.awaited.retain(|name| !deferred.contains(name));
        watch.held.version = hash_of(&watch.held.resources);
        self.response(CLUSTER, deferred.len()).into_iter().collect()
    }
}

#[cfg(test)]
#[path = "sotw_tests.rs"]
mod tests;
