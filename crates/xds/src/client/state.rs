//! The client's half of the protocol without sockets: subscriptions, versions, nonces, what to send next.
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::time::{Duration, Instant};

use lateen_proto::envoy::config::core::v3::Node;
use lateen_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse};
use lateen_proto::google::rpc::Status;

use super::nack::nack;
use super::ttl::{self, Ends};
use super::wrapped::Sent;
use super::{Handler, Rejected};
use crate::resource::{Resource, content_version};
use crate::types::{WILDCARD, is_full_state, is_namespaced, rank};

mod requests;

/// Which variant of the protocol a stream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Only what changed travels, each resource with its own version.
    Delta,
    /// Each response holds the whole state of the type.
    Sotw,
}

/// A message to the server.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    Delta(DeltaDiscoveryRequest),
    Sotw(DiscoveryRequest),
}

/// A message from the server.
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    Delta(DeltaDiscoveryResponse),
    Sotw(DiscoveryResponse),
}

impl From<DeltaDiscoveryResponse> for Response {
    fn from(response: DeltaDiscoveryResponse) -> Self {
        Self::Delta(response)
    }
}

impl From<DiscoveryResponse> for Response {
    fn from(response: DiscoveryResponse) -> Self {
        Self::Sotw(response)
    }
}

/// Everything a client knows: what it wants, what it accepted, and where the current stream stands.
#[derive(Clone, Debug)]
pub struct ClientState {
    mode: Mode,
    node: Node,
    node_sent: bool,
    types: Vec<TypeState>,
}

/// One resource type. What is wanted and accepted outlives a stream; the rest does not.
#[derive(Clone, Debug, Default)]
struct TypeState {
    type_url: String,
    wildcard: bool,
    names: BTreeSet<String>,
    /// Versions by name of what the handler has in use.
    accepted: BTreeMap<String, String>,
    /// Names of which the handler refused what came last.
    refused: BTreeSet<String>,
    /// When those end that were sent with a time to live.
    ends: Ends,
    /// State of the world: the version of the last response accepted in full.
    version: String,

    /// Whether a request of this type went out on the current stream.
    opened: bool,
    /// Changes not sent yet. What is in both was given up and is wanted again: its resource is forgotten, and a server that was
    /// told nothing of that would see no change and not send it again (Istio's does not).
    subscribe: BTreeSet<String>,
    unsubscribe: BTreeSet<String>,
    /// State of the world: the names changed since the last request.
    names_changed: bool,
    /// ACKs and NACKs not sent yet, oldest first.
    feedback: VecDeque<Feedback>,
    /// State of the world: nonce of the last response, which every later request repeats.
    nonce: String,
}

#[derive(Clone, Debug)]
struct Feedback {
    nonce: String,
    error: Option<Status>,
}

impl ClientState {
    /// A client that wants nothing yet. `node` goes into the first request of each stream.
    pub fn new(mode: Mode, node: Node) -> Self {
        Self { mode, node, node_sent: false, types: Vec::new() }
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Subscribes to every resource of the type.
    pub fn subscribe_wildcard(&mut self, type_url: &str) {
        let state = self.entry(type_url);
        if !state.wildcard {
            state.wildcard = true;
            state.names_changed = true;
            if state.opened {
                state.subscribe.insert(WILDCARD.to_owned());
            }
        }
    }

    /// Wants no more of the type than what is named.
    pub fn unsubscribe_wildcard(&mut self, type_url: &str) {
        let state = self.entry(type_url);
        if state.wildcard {
            state.wildcard = false;
            state.names_changed = true;
            state.subscribe.remove(WILDCARD);
            // As with a name that is given up.
            let names = &state.names;
            state.accepted.retain(|name, _| names.contains(name));
            state.refused.retain(|name| names.contains(name));
            state.ends.retain(|name| names.contains(name));
            if state.opened {
                state.unsubscribe.insert(WILDCARD.to_owned());
            }
        }
    }

    /// Adds names; those subscribed already are asked for again.
    pub fn subscribe(&mut self, type_url: &str, names: impl IntoIterator<Item = String>) {
        let state = self.entry(type_url);
        for name in names {
            state.add(name);
        }
    }

    /// Takes names away.
    pub fn unsubscribe(&mut self, type_url: &str, names: &[String]) {
        let state = self.entry(type_url);
        for name in names {
            state.take(name);
        }
    }

    /// Makes the named subscription exactly `names`.
    pub fn set(&mut self, type_url: &str, names: impl IntoIterator<Item = String>) {
        let wanted: BTreeSet<String> = names.into_iter().collect();
        let state = self.entry(type_url);
        let gone: Vec<String> = state.names.difference(&wanted).cloned().collect();
        gone.iter().for_each(|name| state.take(name));
        let new: Vec<String> = wanted.difference(&state.names).cloned().collect();
        new.into_iter().for_each(|name| state.add(name));
    }

    /// Versions by name of what is in use, for `config_dump` and tests.
    pub fn accepted(&self, type_url: &str) -> Option<&BTreeMap<String, String>> {
        self.types.iter().find(|t| t.type_url == type_url).map(|t| &t.accepted)
    }

    /// A new stream begins: everything that belonged to the old one is forgotten, what was accepted is not.
    pub fn on_connect(&mut self) {
        self.node_sent = false;
        for state in &mut self.types {
            state.opened = false;
            state.subscribe.clear();
            state.unsubscribe.clear();
            state.names_changed = false;
            state.feedback.clear();
            state.nonce.clear();
        }
    }

    /// Hands a response to `handler` and notes what has to be answered.
    pub fn on_response(&mut self, response: impl Into<Response>, handler: &mut (impl Handler + ?Sized), now: Instant) {
        match response.into() {
            Response::Delta(response) => self.on_delta(response, handler, now),
            Response::Sotw(response) => self.on_sotw(response, handler, now),
        }
    }

    /// When the next resource ends whose time to live is not renewed: [`Self::expire`] is to be called then.
    pub fn next_end(&self) -> Option<Instant> {
        self.types.iter().filter_map(|t| t.ends.next()).min()
    }

    /// Removes the resources whose time is over.
    pub fn expire(&mut self, handler: &mut (impl Handler + ?Sized), now: Instant) {
        for state in &mut self.types {
            let ended = state.ends.take_ended(now);
            if !ended.is_empty() {
                state.hand_over(Vec::new(), ended, handler, now);
            }
        }
    }

    /// Whether [`Self::poll_request`] has something to say.
    pub fn has_request(&self) -> bool {
        self.types.iter().any(|t| t.has_request(self.mode))
    }

    /// The next message to send, clusters before what refers to them.
    pub fn poll_request(&mut self) -> Option<Request> {
        let mode = self.mode;
        let state = self.types.iter_mut().find(|t| t.has_request(mode))?;
        let node = (!self.node_sent).then(|| self.node.clone());
        self.node_sent = true;
        Some(match mode {
            Mode::Delta => Request::Delta(DeltaDiscoveryRequest { node, ..state.delta_request() }),
            Mode::Sotw => Request::Sotw(DiscoveryRequest { node, ..state.sotw_request() }),
        })
    }

    fn entry(&mut self, type_url: &str) -> &mut TypeState {
        let at = match self.types.iter().position(|t| t.type_url == type_url) {
            Some(at) => at,
            None => {
                let key = (rank(type_url), type_url);
                let at = self.types.partition_point(|t| (rank(&t.type_url), t.type_url.as_str()) < key);
                self.types.insert(at, TypeState { type_url: type_url.to_owned(), ..TypeState::default() });
                at
            }
        };
        &mut self.types[at]
    }

    fn on_delta(&mut self, response: DeltaDiscoveryResponse, handler: &mut (impl Handler + ?Sized), now: Instant) {
        let Some(state) = self.types.iter_mut().find(|t| t.type_url == response.type_url && t.opened) else {
            tracing::warn!(type_url = response.type_url, "a response of a type that was not asked for is ignored");
            return;
        };
        let mut rejected = Vec::new();
        let mut seen = BTreeSet::new();
        let mut updates = Vec::with_capacity(response.resources.len());
        let mut removed = response.removed_resources;
        for resource in response.resources {
            let ttl = ttl::of(&resource);
            let name = resource.name;
            if !state.wants(&name) && !resource.aliases.iter().any(|alias| state.wants(alias)) {
                // It crossed our unsubscription on the way.
                continue;
            }
            match resource.resource {
                // So a server says that there is no such virtual host (Envoy vhds.rst).
                None if is_namespaced(&state.type_url) => removed.extend(resource.aliases.into_iter().chain([name])),
                None if state.accepted.get(&name) == Some(&resource.version) => state.renew(name, ttl, now, &mut rejected),
                // So a server says that a name is known under no other.
                None if !resource.aliases.is_empty() => {}
                None => rejected.push(Rejected { name, reason: "the resource has no content".into() }),
                Some(body) if body.type_url != state.type_url => {
                    rejected.push(Rejected { name, reason: format!("is a {}, not a {}", body.type_url, state.type_url) });
                }
                Some(_) if !seen.insert(name.clone()) => {
                    rejected.push(Rejected { name, reason: "the name occurs twice in one response".into() });
                }
                Some(body) => match ttl {
                    Ok(ttl) => updates.push((Resource { name, version: resource.version, body }, ttl)),
                    Err(reason) => rejected.push(Rejected { name, reason }),
                },
            }
        }
        let removed: Vec<String> = removed.into_iter().filter(|n| state.wants(n) && !seen.contains(n)).collect();
        state.tell_refused(&rejected, &seen, handler);
        rejected.extend(state.hand_over(updates, removed, handler, now));
        state.feedback.push_back(Feedback { nonce: response.nonce, error: nack(&state.type_url, &rejected) });
    }

    fn on_sotw(&mut self, response: DiscoveryResponse, handler: &mut (impl Handler + ?Sized), now: Instant) {
        let Some(state) = self.types.iter_mut().find(|t| t.type_url == response.type_url && t.opened) else {
            tracing::warn!(type_url = response.type_url, "a response of a type that was not asked for is ignored");
            return;
        };
        let mut rejected = Vec::new();
        let mut seen = BTreeSet::new();
        let mut updates = Vec::new();
        // The server may renew some and leave out the rest, which is not to say that they are gone.
        let mut only_renews = !response.resources.is_empty();
        // Which one it is that cannot be read nobody knows: what is missed then may be there.
        let mut is_complete = true;
        for sent in response.resources {
            let Sent { name, body, ttl } = match Sent::open(sent) {
                Ok(sent) => sent,
                Err(reason) => {
                    (only_renews, is_complete) = (false, false);
                    rejected.push(Rejected { name: String::new(), reason });
                    continue;
                }
            };
            let renews = body.is_none() && !state.version.is_empty() && state.version == response.version_info;
            only_renews &= renews;
            match body {
                Some(body) if body.type_url != state.type_url => {
                    is_complete = false;
                    rejected.push(Rejected { name, reason: format!("is a {}, not a {}", body.type_url, state.type_url) });
                }
                _ if !seen.insert(name.clone()) => {
                    rejected.push(Rejected { name, reason: "the name occurs twice in one response".into() });
                }
                _ if !state.wants(&name) => {}
                None if !renews => rejected.push(Rejected { name, reason: "the resource has no content".into() }),
                None => state.renew(name, ttl, now, &mut rejected),
                Some(body) => {
                    let version = content_version(&body);
                    // What is in use already is not applied again, as a state of the world repeats everything; only where another
                    // was refused since, which then is over.
                    if state.accepted.get(&name) == Some(&version) && !state.refused.contains(&name) {
                        state.renew(name, ttl, now, &mut rejected);
                        continue;
                    }
                    match ttl {
                        Ok(ttl) => updates.push((Resource { name, version, body }, ttl)),
                        Err(reason) => rejected.push(Rejected { name, reason }),
                    }
                }
            }
        }
        let removed = if is_full_state(&state.type_url) && is_complete && !only_renews { state.beside(&seen) } else { Vec::new() };
        state.tell_refused(&rejected, &seen, handler);
        if !updates.is_empty() || !removed.is_empty() || state.version.is_empty() {
            rejected.extend(state.hand_over(updates, removed, handler, now));
        }
        let error = nack(&state.type_url, &rejected);
        if error.is_none() {
            state.version = response.version_info;
        }
        state.nonce.clone_from(&response.nonce);
        state.feedback.push_back(Feedback { nonce: response.nonce, error });
    }
}

impl TypeState {
    fn wants(&self, name: &str) -> bool {
        let below = || is_namespaced(&self.type_url) && name.rsplit_once('/').is_some_and(|(above, _)| self.names.contains(above));
        self.wildcard || self.names.contains(name) || below()
    }

    fn add(&mut self, name: String) {
        self.names_changed |= self.names.insert(name.clone());
        if self.opened {
            self.subscribe.insert(name);
        }
    }

    fn take(&mut self, name: &str) {
        if !self.names.remove(name) {
            return;
        }
        self.names_changed = true;
        self.subscribe.remove(name);
        if !self.wildcard {
            // The handler forgets it too; were the version kept, a later subscription would claim to hold it.
            self.accepted.remove(name);
            self.refused.remove(name);
            self.ends.forget(name);
        }
        if self.opened {
            self.unsubscribe.insert(name.to_owned());
        }
    }

    /// The names that the handler has to do with, beside these.
    fn beside(&self, seen: &BTreeSet<String>) -> Vec<String> {
        let refused = self.refused.iter().filter(|name| !self.accepted.contains_key(*name));
        self.accepted.keys().chain(refused).filter(|name| !seen.contains(*name)).cloned().collect()
    }

    /// Lets a resource that is in use live on.
    fn renew(&mut self, name: String, ttl: Result<Option<Duration>, String>, now: Instant, rejected: &mut Vec<Rejected>) {
        match ttl {
            Ok(ttl) if self.accepted.contains_key(&name) => self.ends.set(&name, ttl, now),
            Ok(_) => {}
            Err(reason) => rejected.push(Rejected { name, reason }),
        }
    }

    /// Tells the handler of what it is not handed. What could not even be read may be any that was asked for and has not come.
    fn tell_refused(&self, rejected: &[Rejected], seen: &BTreeSet<String>, handler: &mut (impl Handler + ?Sized)) {
        let (named, nameless): (Vec<_>, Vec<_>) = rejected.iter().partition(|r| !r.name.is_empty());
        let mut names: Vec<String> = named.iter().map(|r| r.name.clone()).filter(|name| self.wants(name)).collect();
        if !nameless.is_empty() {
            let is_told = |name: &str| named.iter().any(|r| r.name == name);
            let missing = |name: &&String| !seen.contains(*name) && !self.accepted.contains_key(*name) && !is_told(name);
            names.extend(self.names.iter().filter(missing).cloned());
        }
        if !names.is_empty() {
            handler.refused(&self.type_url, &names);
        }
    }

    /// Lets the handler apply, and remembers versions and ends of what it accepted.
    fn hand_over(
        &mut self,
        updates: Vec<(Resource, Option<Duration>)>,
        removed: Vec<String>,
        handler: &mut (impl Handler + ?Sized),
        now: Instant,
    ) -> Vec<Rejected> {
        let versions: Vec<_> = updates.iter().map(|(r, ttl)| (r.name.clone(), r.version.clone(), *ttl)).collect();
        for name in &removed {
            self.accepted.remove(name);
            self.refused.remove(name);
            self.ends.forget(name);
        }
        let updates = updates.into_iter().map(|(resource, _)| resource).collect();
        let rejected = handler.apply(&self.type_url, updates, removed);
        let refused: HashSet<&str> = rejected.iter().map(|r| r.name.as_str()).collect();
        for (name, version, ttl) in versions {
            if refused.contains(name.as_str()) {
                self.refused.insert(name);
            } else {
                self.refused.remove(&name);
                self.ends.set(&name, ttl, now);
                self.accepted.insert(name, version);
            }
        }
        rejected
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
