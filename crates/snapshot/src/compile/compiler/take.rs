//! Resources as discovery sends them, each to its kind, and those that it takes away.
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use lateen_proto::any;
use prost::Name;

use super::addresses::Addresses;
use super::entry::{Entry, decode, forget_if_empty, remove_dynamic, same_name};
use super::{
    ClusterProto, ClusterVersion, Compiler, EndpointProto, ExtensionProto, ListenerProto, ListenerVersion, MAX_RESOURCE_BYTES, Outcome,
    Rejected, RouteProto, RouteVersion, ScopeProto, SecretProto, Update, VirtualHostProto, virtual_hosts,
};
use crate::compile::context::Context;
use crate::compile::file_names::{self, file_and_name};
use crate::compile::invalid::{Invalid, Result};
use crate::compile::record::Origin;
use crate::compile::secret::SecretKey;
use crate::compile::source::SecretSource;
use crate::compile::{cluster, extension, kept_chains, left_out, listener, route};

impl Compiler {
    pub(super) fn take(
        &mut self,
        type_url: &str,
        updates: Vec<Update>,
        origin: Origin,
        source: &SecretSource,
        now: Instant,
    ) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        let mut seen = HashSet::with_capacity(updates.len());
        let mut changed: Vec<String> = Vec::new();
        let type_name = any::name_of(type_url).to_owned();
        // These say for each whether it is so still.
        self.settled &= [EndpointProto::full_name(), SecretProto::full_name()].contains(&type_name);
        if type_name == VirtualHostProto::full_name() {
            return self.take_virtual_hosts(updates);
        }
        let is_listener = type_name == ListenerProto::full_name();
        let mut addresses = if is_listener { Addresses::of(&self.listeners) } else { Addresses::default() };
        self.has_scopes |= type_name == ScopeProto::full_name();
        for update in updates {
            let name = update.name.clone();
            left_out::take();
            let result = if update.body.value.len() > MAX_RESOURCE_BYTES {
                Err(Invalid::new(format!("has {} bytes, more than {MAX_RESOURCE_BYTES}; split it", update.body.value.len())))
            } else if !seen.insert(name.clone()) {
                Err(Invalid::new("occurs twice in one response; names must differ"))
            } else if let Some(invalid) = source.is_not_file().then(|| file_names::check(&name).err()).flatten() {
                Err(invalid.inside("name"))
            } else if is_listener {
                let taken = self.take_listener(update, origin, &mut addresses, now);
                if taken.is_ok() {
                    self.note_places(&name);
                }
                taken
            } else if type_name == RouteProto::full_name() {
                self.take_route(update, origin, now)
            } else if type_name == ClusterProto::full_name() {
                self.take_cluster(update, origin, now)
            } else if type_name == EndpointProto::full_name() {
                changed.push(name.clone());
                self.take_endpoints(update, origin, now)
            } else if type_name == SecretProto::full_name() {
                self.take_secret(&update, source)
            } else if type_name == ExtensionProto::full_name() {
                let taken = self.take_extension(update, origin, now);
                if taken.is_err() {
                    self.note_reload(&name, Outcome::Failed);
                }
                taken
            } else if type_name == ScopeProto::full_name() {
                self.take_scope(update, origin, now)
            } else {
                Err(Invalid::new(format!("resources of type {type_name} are not supported")))
            };
            self.refused.note(&type_name, &name, source, result.is_err());
            if result.is_ok() {
                left_out::tell(&type_name, &name);
            }
            if let Err(invalid) = result {
                rejected.push(Rejected { name: file_and_name(&name).1.to_owned(), reason: invalid.to_string() });
            }
        }
        changed.iter().for_each(|service| self.refresh_users(service));
        rejected
    }

    fn take_listener(&mut self, update: Update, origin: Origin, addresses: &mut Addresses, now: Instant) -> Result<()> {
        let Self { listeners, names, secrets, dns_caches, .. } = self;
        let entry = listeners.entry(update.name.as_str().into()).or_insert_with(|| Entry::new(origin));
        let before = entry.versions.newest().map(|v| Arc::clone(&v.value.listener));
        // Connections are there for the version in use, not for one that waits.
        let active = entry.versions.active.as_ref().map(|v| kept_chains::Before {
            listener: Arc::clone(&v.value.listener),
            body: Arc::clone(&v.record.body),
            tls: v.value.uses.tls.clone(),
        });
        let taken = entry.take_sent(update, origin, now, |body, name| {
            let mut proto: ListenerProto = decode(body)?;
            if proto.name.is_empty() && origin == Origin::Static {
                proto.name = name.to_owned();
            }
            same_name(&proto.name, name)?;
            let mut context = Context::new(names, secrets, dns_caches, false);
            let mut listener = listener::listener(proto, &mut context)?;
            addresses.take(&listener, before.as_deref())?;
            if let Some(active) = &active {
                active.continue_in(&mut listener, &mut context.uses.tls, body);
            }
            if let Some(before) = before {
                listener.follow(&before);
            }
            Ok(ListenerVersion { listener: Arc::new(listener), uses: context.uses })
        });
        forget_if_empty(taken, listeners, |e| e.versions.newest().is_none() && e.origin == Origin::Static)
    }

    fn take_route(&mut self, update: Update, origin: Origin, now: Instant) -> Result<()> {
        let Self { routes, names, secrets, dns_caches, hosts, by_delta, .. } = self;
        let name: Arc<str> = update.name.as_str().into();
        let entry = routes.entry(name).or_insert_with(|| Entry::new(origin));
        entry.take_sent(update, origin, now, |body, name| {
            let mut sent = route::Sent::open(body)?;
            let (file, own_name) = file_and_name(name);
            same_name(&sent.rest.name, own_name)?;
            let mut context = Context::new(names, secrets, dns_caches, false);
            let id = context.names.route_table(name);
            let Some(vhds) = sent.rest.vhds.take() else {
                let table = Arc::new(sent.table(&mut context)?);
                return Ok(RouteVersion { table, base: None, uses: context.uses });
            };
            if file.is_some() {
                return Err(Invalid::field("vhds", "is for routes of the aggregated stream; put the virtual hosts into the file"));
            }
            let timeout = virtual_hosts::check(vhds, origin, *by_delta)?;
            let base = virtual_hosts::Base::new(sent, id, timeout, &mut context)?;
            let mut uses = std::mem::take(&mut context.uses);
            if let Some(found) = hosts.get_mut(name) {
                found.follow(&base, &mut context)?;
                uses.clusters.extend(found.clusters());
            }
            let table = Arc::new(base.with(hosts.get(name))?);
            Ok(RouteVersion { table, base: Some(Box::new(base)), uses })
        })
    }

    fn take_cluster(&mut self, update: Update, origin: Origin, now: Instant) -> Result<()> {
        let Self { clusters, names, secrets, dns_caches, .. } = self;
        let entry = clusters.entry(update.name.as_str().into()).or_insert_with(|| Entry::new(origin));
        entry.take(update, origin, now, |proto: ClusterProto, name| {
            same_name(&proto.name, name)?;
            let mut context = Context::new(names, secrets, dns_caches, false);
            context.names.cluster(name);
            let compiled = cluster::cluster(proto, &mut context)?;
            Ok(ClusterVersion { compiled, uses: context.uses, cluster: None })
        })
    }

    fn take_endpoints(&mut self, update: Update, origin: Origin, now: Instant) -> Result<()> {
        let name = update.name.clone();
        let entry = self.endpoints.entry(name.as_str().into()).or_insert_with(|| Entry::new(origin));
        entry.take(update, origin, now, |proto: EndpointProto, name| {
            same_name(&proto.cluster_name, file_and_name(name).1)?;
            cluster::load_assignment(proto).map(Arc::new)
        })?;
        self.no_endpoints.remove(name.as_str());
        // Endpoints wait for nothing.
        entry.versions.promote(now, |_, _| {});
        self.settled &= self.wanted.endpoints.contains(name.as_str());
        Ok(())
    }

    fn take_extension(&mut self, update: Update, origin: Origin, now: Instant) -> Result<()> {
        let name = update.name.clone();
        let users = self.listeners.values().flat_map(|e| e.versions.all()).flat_map(|v| &v.value.uses.extensions);
        let wanted: Vec<_> = users.filter(|u| *u.name == *update.name).map(|u| (u.place, u.types.clone())).collect();
        self.names.extension(&update.name);
        let Self { extensions, names, secrets, dns_caches, .. } = self;
        let entry = extensions.entry(update.name.as_str().into()).or_insert_with(|| Entry::new(origin));
        entry.take(update, origin, now, |proto: ExtensionProto, name| {
            same_name(&proto.name, name)?;
            let mut context = Context::new(names, secrets, dns_caches, false);
            extension::extension(proto, &wanted, &mut context).map(Arc::new)
        })?;
        // A filter waits for nothing.
        if entry.versions.promote(now, |_, _| {}) {
            self.dirty = true;
            self.note_reload(&name, Outcome::Reloaded);
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, type_url: &str, removed: &[String], source: &SecretSource) {
        let type_name = any::name_of(type_url);
        self.settled &= type_name == EndpointProto::full_name() || removed.is_empty();
        if type_name == VirtualHostProto::full_name() {
            return self.remove_virtual_hosts(removed);
        }
        for name in removed {
            let name = name.as_str();
            if type_name == ListenerProto::full_name() {
                self.dirty |= remove_dynamic(&mut self.listeners, name);
            } else if type_name == ClusterProto::full_name() {
                self.on_demand.clusters.remove(name);
                if remove_dynamic(&mut self.clusters, name) {
                    self.live.remove(name);
                    self.resolved.remove(name);
                    self.dirty = true;
                }
            } else if type_name == RouteProto::full_name() {
                self.on_demand.routes.remove(name);
                // Envoy keeps the last routes while a listener wants them: nothing says what to do instead.
                if !self.all_wanted().routes.contains(name) {
                    self.dirty |= self.routes.remove(name).is_some();
                }
            } else if type_name == ScopeProto::full_name() {
                self.remove_scope(name);
            } else if type_name == EndpointProto::full_name() {
                // As Envoy: who has members keeps them, and who waits for the first waits no longer.
                if self.wanted.endpoints.contains(name) {
                    self.no_endpoints.insert(name.into());
                } else {
                    self.endpoints.remove(name);
                }
            } else if type_name == ExtensionProto::full_name() {
                // Its places have their defaults again, or nothing.
                if self.extensions.remove(name).is_some() {
                    self.dirty = true;
                    self.note_reload(name, Outcome::Reloaded);
                }
            } else if type_name == SecretProto::full_name() {
                let key = SecretKey { source: source.clone(), name: name.into() };
                if !self.all_tls().any(|w| w.needs(&key)) {
                    self.secrets.remove(&key);
                }
            }
        }
    }
}
