//! One delta stream: what the client holds, resource by resource, and what it has to be told.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use lateen_proto::envoy::config::core::v3::ControlPlane;
use lateen_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as WireResource};

use super::status::{Nonces, may_remove};
use super::watch::{Held, Watch, Watches};
use super::{Answer, Because, Feedback, MAX_NAMES, MAX_TYPES, Names, Outcome, ProtocolError, Stream};
use crate::resource::{Resource, endpoints_of};
use crate::types::{CLUSTER, ENDPOINT, WILDCARD, is_namespaced, is_wildcard_capable};

/// State of one delta stream.
#[derive(Clone, Debug)]
pub struct DeltaStream {
    identifier: Arc<str>,
    nonces: Nonces,
    types: Watches<Versions>,
    /// Endpoints of clusters sent, not sent since. A client that replaces a cluster waits for its
    /// endpoints before using it, also when the endpoints themselves did not change.
    endpoints_due: BTreeSet<String>,
    /// Those among them whose cluster was pushed and is new to the client.
    awaited: BTreeSet<String>,
}

/// Versions by name of what the client holds: sent by us, or declared by it when it reconnected.
/// A refused resource stays here, or it would be sent over and over; its next version is sent.
type Versions = BTreeMap<String, String>;

impl Held for Versions {
    fn count(&self) -> usize {
        self.len()
    }
}

impl DeltaStream {
    /// A fresh stream; `identifier` names this control plane in every response.
    pub fn new(identifier: Arc<str>) -> Self {
        Self { identifier, nonces: Nonces::new(), types: Watches::new(), endpoints_due: BTreeSet::new(), awaited: BTreeSet::new() }
    }

    fn first(&mut self, request: DeltaDiscoveryRequest) -> Result<Outcome, ProtocolError> {
        if self.types.len() >= MAX_TYPES {
            return Err(ProtocolError::TooManyTypes);
        }
        let type_url = request.type_url;
        let mut watch = Watch::<Versions>::default();
        watch.names.wildcard = request.resource_names_subscribe.is_empty() && is_wildcard_capable(&type_url);
        watch.subscribe(request.resource_names_subscribe);
        watch.unsubscribe(&type_url, request.resource_names_unsubscribe);
        watch.check_size(&type_url)?;
        let names = &watch.names;
        watch.held =
            request.initial_resource_versions.into_iter().filter(|(name, _)| names.wants_of(&type_url, name)).take(MAX_NAMES).collect();
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

impl Watch<Versions> {
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

    /// Takes names away, and says whether any of them was there.
    fn unsubscribe(&mut self, type_url: &str, names: Vec<String>) -> bool {
        let mut gave_up = false;
        for name in names {
            if name == WILDCARD {
                self.names.wildcard = false;
            } else {
                gave_up |= self.names.names.remove(&name);
            }
        }
        let names = &self.names;
        self.held.retain(|name, _| names.wants_of(type_url, name));
        self.deferred.retain(|name| names.wants_of(type_url, name));
        if names.is_empty() {
            self.ledger.forgive();
        }
        gave_up
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
        let mut missing: BTreeSet<String> = believed.difference(&exists).map(|n| (*n).to_owned()).collect();
        if is_namespaced(type_url) {
            // A name that stands for others is none of a resource.
            missing.retain(|name| name.contains('/'));
        }
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
        type_url: &str,
        because: &Because,
        generated: &'a [Arc<Resource>],
        due: &mut BTreeSet<String>,
    ) -> Vec<(&'a Arc<Resource>, bool)> {
        let mut changed = Vec::new();
        for resource in generated.iter().filter(|r| self.names.wants_of(type_url, &r.name)) {
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
    type Held = Versions;

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
        let gave_up = watch.unsubscribe(&request.type_url, request.resource_names_unsubscribe);
        // One that is given up and made again in one request starts over.
        let had_wildcard = watch.names.wildcard;
        let in_doubt = watch.in_doubt(gave_up).unwrap_or_default();
        let mut added = watch.subscribe(request.resource_names_subscribe);
        added.extend(in_doubt);
        watch.check_size(&request.type_url)?;
        let new_wildcard = watch.names.wildcard && !had_wildcard;
        let respond = if new_wildcard { Some(Because::First) } else { (!added.is_empty()).then_some(Because::Subscribed(added)) };
        Ok(Outcome { type_url: request.type_url, feedback, respond })
    }

    fn watches(&self) -> &Watches<Versions> {
        &self.types
    }

    fn awaited(&self) -> &BTreeSet<String> {
        &self.awaited
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
        let changed = watch.changed(type_url, because, &generated, due);
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
        let mut resources: Vec<WireResource> = changed.iter().map(|(resource, _)| wire(resource)).collect();
        let mut removed: Vec<String> = removed.into_iter().collect();
        if is_namespaced(type_url) && *because != Because::Push {
            resources.extend(std::mem::take(&mut removed).into_iter().map(nothing));
        }
        // That there is nothing below a name is an answer to whoever asks for it.
        let expected = expected || (is_namespaced(type_url) && *because != Because::Push);
        let silent = resources.is_empty() && removed.is_empty() && !expected;
        (!silent).then(|| self.response(type_url, resources, removed))
    }

    fn endpoints_due(&self) -> bool {
        self.types.get(ENDPOINT).is_some_and(|watch| self.endpoints_due.iter().any(|name| watch.held.contains_key(name)))
    }

    fn stop_awaiting(&mut self) {
        self.awaited.clear();
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
}

/// There is no such virtual host: a client that waits for one is told so by a resource without content (Envoy vhds.rst).
fn nothing(name: String) -> WireResource {
    WireResource { aliases: vec![name.clone()], name, ..Default::default() }
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
