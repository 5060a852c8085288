//! The resources of a mesh, indexed by kind, namespace and name.
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::diagnostic::{Diagnostic, Severity};
use crate::kinds::*;
use crate::resource::{AnyResource, Resource};

/// What identifies a resource; `namespace` is empty for cluster-scoped kinds. Orders by kind, then namespace, then name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceKey {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

impl ResourceKey {
    pub fn new(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl AnyResource {
    pub fn key(&self) -> ResourceKey {
        let meta = self.meta();
        ResourceKey::new(self.kind(), meta.namespace.clone(), meta.name.clone())
    }
}

/// An indexed collection; cloning shares the resources.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResourceSet {
    resources: BTreeMap<ResourceKey, AnyResource>,
}

impl ResourceSet {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces; returns what was replaced.
    pub fn insert(&mut self, resource: impl Into<AnyResource>) -> Option<AnyResource> {
        let resource = resource.into();
        self.resources.insert(resource.key(), resource)
    }

    /// Adds a resource unless one of its name is there already: then the first stays, and the message names both.
    pub fn insert_new(&mut self, resource: AnyResource) -> Result<(), Box<Diagnostic>> {
        match self.resources.get(&resource.key()) {
            Some(first) => {
                let place = format!("{}:{}", first.origin().file, first.origin().line());
                let message = format!("is defined already at {place}; this one is left out");
                Err(Box::new(resource.report(Severity::Error, "", message).with_suggestion("rename or remove one of them")))
            }
            None => {
                self.resources.insert(resource.key(), resource);
                Ok(())
            }
        }
    }

    pub fn remove(&mut self, key: &ResourceKey) -> Option<AnyResource> {
        self.resources.remove(key)
    }

    pub fn get(&self, key: &ResourceKey) -> Option<&AnyResource> {
        self.resources.get(key)
    }

    /// All resources, by kind, namespace, name.
    pub fn iter(&self) -> impl Iterator<Item = &AnyResource> {
        self.resources.values()
    }

    /// The resources of one kind, by namespace, name.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &AnyResource> {
        // `kind` orders first, so the range from its smallest key ends where the kind does.
        self.resources.range(ResourceKey::new(kind, "", "")..).take_while(move |(key, _)| key.kind == kind).map(|(_, resource)| resource)
    }

    pub fn len(&self) -> usize {
        self.resources.len()
    }

    pub fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }
}

macro_rules! accessors {
    ($($kind:ident: $all:ident, $one:ident;)*) => {
        impl ResourceSet {
            $(
                #[doc = concat!("Every ", stringify!($kind), ", by namespace and name.")]
                pub fn $all(&self) -> impl Iterator<Item = &Arc<Resource<$kind>>> {
                    self.of_kind(Kind::$kind).filter_map(|resource| match resource {
                        AnyResource::$kind(resource) => Some(resource),
                        _ => None,
                    })
                }

                #[doc = concat!("The ", stringify!($kind), " of this namespace (empty for cluster-scoped kinds) and name.")]
                pub fn $one(&self, namespace: &str, name: &str) -> Option<&Arc<Resource<$kind>>> {
                    match self.get(&ResourceKey::new(Kind::$kind, namespace, name))? {
                        AnyResource::$kind(resource) => Some(resource),
                        _ => None,
                    }
                }
            )*
        }
    };
}

accessors! {
    Namespace: namespaces, namespace;
    ServiceAccount: service_accounts, service_account;
    ConfigMap: config_maps, config_map;
    Secret: secrets, secret;
    Service: services, service;
    Deployment: deployments, deployment;
    Pod: pods, pod;
    Gateway: gateways, gateway;
    VirtualService: virtual_services, virtual_service;
    DestinationRule: destination_rules, destination_rule;
    ServiceEntry: service_entries, service_entry;
    PeerAuthentication: peer_authentications, peer_authentication;
}

impl FromIterator<AnyResource> for ResourceSet {
    fn from_iter<I: IntoIterator<Item = AnyResource>>(resources: I) -> Self {
        let mut set = Self::new();
        for resource in resources {
            set.insert(resource);
        }
        set
    }
}
