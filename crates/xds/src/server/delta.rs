//! One delta stream: what the client holds, resource by resource, and what it has to be told.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use lateen_proto::envoy::config::core::v3::{ControlPlane, Node};
use lateen_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as WireResource};

use super::status::{Ledger, Nonces, may_remove};
use super::{Answer, Because, Feedback, MAX_NAMES, MAX_TYPES, Names, Outcome, ProtocolError, Stream, TypeStatus};
use crate::resource::{Resource, endpoints_of};
use crate::types::{CLUSTER, ENDPOINT, WILDCARD, is_wildcard_capable, rank};

/// State of one delta stream.
#[derive(Clone, Debug)]
pub struct DeltaStream {
    identifier: Arc<str>,
    nonces: Nonces,
    types: BTreeMap<String, Watch>,
    /// Endpoints of clusters sent, not sent since. A client that replaces a cluster waits for its
    /// endpoints before using it, also when the endpoints themselves did not change.
    endpoints_due: BTreeSet<String>,
    /// Those among them whose cluster was pushed and is new to the client.
    awaited: BTreeSet<String>,
}

#[derive(Clone, Debug, Default)]
struct Watch {
    names: Names,
    /// Versions by name of what the client holds: sent by us, or declared by it when it reconnected.
    /// A refused resource stays here, or it would be sent over and over; its next version is sent.
    held: BTreeMap<String, String>,
    ledger: Ledger,
    /// Removals that wait until the client has moved away from what they remove.
    deferred: BTreeSet<String>,
}

impl DeltaStream {
    /// A fresh stream; `identifier` names this control plane in every response.
    pub fn new(identifier: Arc<str>) -> Self {
        Self { identifier, nonces: Nonces::new(), types: BTreeMap::new(), endpoints_due: BTreeSet::new(), awaited: BTreeSet::new() }
    }

    fn first(&mut self, request: DeltaDiscoveryRequest) -> Result<Outcome, ProtocolError> {
        if self.types.len() >= MAX_TYPES {
            return Err(ProtocolError::TooManyTypes);
        }
        let type_url = request.type_url;
        let mut watch = Watch::default();
        watch.names.wildcard = request.resource_names_subscribe.is_empty() && is_wildcard_capable(&type_url);
        watch.subscribe(request.resource_names_subscribe);
        watch.unsubscribe(request.resource_names_unsubscribe);
        watch.check_size(&type_url)?;
        let names = &watch.names;
        watch.held = request.initial_resource_versions.into_iter().filter(|(name, _)| names.wants(name)).take(MAX_NAMES).collect();
        let respond = (!watch.names.is_empty()).then_some(Because::First);
        self.types.insert(type_url.clone(), watch);
        Ok(Outcome { type_url, feedback: Feedback::None, respond })
    }

    /// Clusters that are gone wait for nothing.
    fn forget_endpoints(&mut self, clusters: &BTreeSet<String>) {
        self.endpoints_due.retain(|name| !clusters.contains(name));
        self.awaited.retain(|name| !clusters.contains(name));
    }

    fn response(&mut self, type_url: &str, resources: Vec<WireResource>, removed: Vec<String>) -> Answer<DeltaDiscoveryResponse> {
        let nonce = self.nonces.next();
        if let Some(watch) = self.types.get_mut(type_url) {
            watch.ledger.sent(&nonce, SystemTime::now());
        }
        let (count, gone) = (resources.len(), removed.len());
        let response = DeltaDiscoveryResponse {
            type_url: type_url.to_owned(),
            resources,
            removed_resources: removed,
            nonce,
            control_plane: Some(ControlPlane { identifier: self.identifier.to_string() }),
            ..Default::default()
        };
        Answer { response, type_url: type_url.to_owned(), resources: count, removed: gone }
    }
}

impl Watch {
    /// Adds names and returns those that have to be sent. `*` is a name like any other on the wire.
    fn subscribe(&mut self, names: Vec<String>) -> BTreeSet<String> {
        let mut added = BTreeSet::new();
        for name in names {
            if name == WILDCARD {
                self.names.wildcard = true;
            } else {
                self.names.names.insert(name.clone());
                added.insert(name);
            }
        }
        added
    }

    fn unsubscribe(&mut self, names: Vec<String>) {
        for name in names {
            if name == WILDCARD {
                self.names.wildcard = false;
            } else {
                self.names.names.remove(&name);
            }
        }
        let names = &self.names;
        self.held.retain(|name, _| names.wants(name));
        self.deferred.retain(|name| names.wants(name));
        if names.is_empty() {
            self.ledger.forgive();
        }
    }

    /// What the client believes to exist, or asked for, and does not exist. Clusters and endpoints
    /// that a push no longer has are put aside instead: see [`Stream::flush`].
    fn missing(&mut self, type_url: &str, because: &Because, generated: &[Arc<Resource>]) -> BTreeSet<String> {
        let exists: BTreeSet<&str> = generated.iter().map(|r| r.name.as_str()).collect();
        let believed: BTreeSet<&str> = match because {
            Because::Subscribed(names) => names.iter().map(String::as_str).collect(),
            Because::First => self.held.keys().chain(&self.names.names).map(String::as_str).collect(),
            Because::Push => self.held.keys().map(String::as_str).collect(),
        };
        let missing: BTreeSet<String> = believed.difference(&exists).map(|n| (*n).to_owned()).collect();
        if *because == Because::Push && matches!(type_url, CLUSTER | ENDPOINT) {
            self.deferred = missing;
            return BTreeSet::new();
        }
        self.held.retain(|name, _| !missing.contains(name));
        missing
    }

    /// What has to be sent, and whether it is new to the client. `due` is sent whether or not it changed.
    fn changed<'a>(
        &mut self,
        because: &Because,
        generated: &'a [Arc<Resource>],
        due: &mut BTreeSet<String>,
    ) -> Vec<(&'a Arc<Resource>, bool)> {
        let mut changed = Vec::new();
        for resource in generated.iter().filter(|r| self.names.wants(&r.name)) {
            self.deferred.remove(&resource.name);
            let is_due = due.remove(&resource.name);
            let asked_for = matches!(because, Because::Subscribed(names) if names.contains(&resource.name));
            let held = self.held.get(&resource.name);
            if is_due || asked_for || held != Some(&resource.version) {
                changed.push((resource, held.is_none()));
                self.held.insert(resource.name.clone(), resource.version.clone());
            }
        }
        changed
    }

    fn check_size(&self, type_url: &str) -> Result<(), ProtocolError> {
        if self.names.names.len() > MAX_NAMES { Err(ProtocolError::TooManyNames(type_url.to_owned())) } else { Ok(()) }
    }
}

impl Stream for DeltaStream {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn on_request(&mut self, request: DeltaDiscoveryRequest) -> Result<Outcome, ProtocolError> {
        if request.type_url.is_empty() {
            return Err(ProtocolError::NoType);
        }
        let Some(watch) = self.types.get_mut(&request.type_url) else { return self.first(request) };
        let feedback = if request.response_nonce.is_empty() {
            Feedback::None
        } else {
            watch.ledger.answered(request.response_nonce, request.error_detail.map(|e| e.message), SystemTime::now())
        };
        // Subscriptions count whatever the nonce: in delta they are changes, and none may be lost.
        let had_wildcard = watch.names.wildcard;
        watch.unsubscribe(request.resource_names_unsubscribe);
        let added = watch.subscribe(request.resource_names_subscribe);
        watch.check_size(&request.type_url)?;
        let new_wildcard = watch.names.wildcard && !had_wildcard;
        let respond = if new_wildcard { Some(Because::First) } else { (!added.is_empty()).then_some(Because::Subscribed(added)) };
        Ok(Outcome { type_url: request.type_url, feedback, respond })
    }

    fn node(request: &mut DeltaDiscoveryRequest) -> Option<Node> {
        request.node.take()
    }

    fn default_type(request: &mut DeltaDiscoveryRequest, type_url: &str) {
        if request.type_url.is_empty() {
            type_url.clone_into(&mut request.type_url);
        }
    }

    fn watched(&self) -> Vec<String> {
        let mut types: Vec<String> = self.types.iter().filter(|(_, w)| !w.names.is_empty()).map(|(t, _)| t.clone()).collect();
        types.sort_by_key(|t| rank(t));
        types
    }

    fn names(&self, type_url: &str) -> Option<&Names> {
        self.types.get(type_url).map(|w| &w.names)
    }

    fn scope(&self, type_url: &str, because: &Because) -> Names {
        match because {
            Because::Subscribed(names) => Names { wildcard: false, names: names.clone() },
            Because::First | Because::Push => self.names(type_url).cloned().unwrap_or_default(),
        }
    }

    fn answer(&mut self, type_url: &str, because: &Because, generated: Vec<Arc<Resource>>) -> Option<Answer<DeltaDiscoveryResponse>> {
        let watch = self.types.get_mut(type_url)?;
        let removed = watch.missing(type_url, because, &generated);
        let no_endpoints = &mut BTreeSet::new();
        let due = if type_url == ENDPOINT { &mut self.endpoints_due } else { no_endpoints };
        let changed = watch.changed(because, &generated, due);
        // A client waits for the first answer of a wildcard to know that there is nothing more to come.
        let expected = *because == Because::First && watch.names.wildcard;
        match (type_url, because) {
            (CLUSTER, _) => {
                self.forget_endpoints(&removed);
                for (resource, is_new) in &changed {
                    let Some(endpoints) = endpoints_of(resource) else { continue };
                    if *is_new && *because == Because::Push {
                        self.awaited.insert(endpoints.clone());
                    }
                    self.endpoints_due.insert(endpoints);
                }
            }
            // Asked for and answered, if only that there are none.
            (ENDPOINT, Because::Subscribed(names)) => self.awaited.retain(|name| !names.contains(name)),
            (ENDPOINT, _) => self.awaited.retain(|name| !watch.names.names.contains(name)),
            _ => {}
        }
        let silent = changed.is_empty() && removed.is_empty() && !expected;
        let resources = changed.iter().map(|(resource, _)| wire(resource)).collect();
        (!silent).then(|| self.response(type_url, resources, removed.into_iter().collect()))
    }

    fn endpoints_due(&self) -> bool {
        self.types.get(ENDPOINT).is_some_and(|watch| self.endpoints_due.iter().any(|name| watch.held.contains_key(name)))
    }

    fn awaits_endpoints(&self) -> bool {
        !self.awaited.is_empty() && self.types.contains_key(ENDPOINT)
    }

    fn stop_awaiting(&mut self) {
        self.awaited.clear();
    }

    fn has_deferred(&self) -> bool {
        self.types.values().any(|w| !w.deferred.is_empty())
    }

    fn flush(&mut self, force: bool) -> Vec<Answer<DeltaDiscoveryResponse>> {
        if !may_remove(self.types.iter().map(|(t, w)| (t.as_str(), &w.ledger)), force) {
            return Vec::new();
        }
        let mut answers = Vec::new();
        for type_url in [CLUSTER, ENDPOINT] {
            let Some(watch) = self.types.get_mut(type_url) else { continue };
            let removed: BTreeSet<String> =
                std::mem::take(&mut watch.deferred).into_iter().filter(|n| watch.held.remove(n).is_some()).collect();
            if removed.is_empty() {
                continue;
            }
            if type_url == CLUSTER {
                self.forget_endpoints(&removed);
            }
            answers.push(self.response(type_url, Vec::new(), removed.into_iter().collect()));
        }
        answers
    }

    fn status(&self, type_url: &str) -> Option<TypeStatus> {
        self.types.get(type_url).map(|w| w.ledger.status(type_url, &w.names, w.held.len()))
    }
}

fn wire(resource: &Arc<Resource>) -> WireResource {
    WireResource {
        name: resource.name.clone(),
        version: resource.version.clone(),
        resource: Some(resource.body.clone()),
        ..Default::default()
    }
}

#[cfg(test)]
#[path = "delta_tests.rs"]
mod tests;
