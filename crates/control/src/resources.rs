//! Generated resources, encoded once and shared.
//!
//! What a generator may look at is exactly its cache key: for types that do not depend on which
//! replica asks, the view is made anonymous first and the anonymous view is both the key and the
//! argument. So a forgotten input shows as a wrong resource in every test, never as a proxy that
//! is served another's.
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lateen_translate::view::{IpMode, ProxyView};
use lateen_translate::{Generated, Names as Wanted, Provenance};
use lateen_xds::Resource;
use lateen_xds::server::Names;
use lateen_xds::types::{ENDPOINT, ROUTE};

use crate::snapshot::Snapshot;

/// A resource and the configuration behind it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) resource: Arc<Resource>,
    pub(crate) provenance: Vec<Provenance>,
}

/// Resources of one snapshot. Dies with it, so it never holds more than one world's worth.
#[derive(Default)]
pub(crate) struct Cache {
    /// By type and anonymous view, then by name; `None` for a name that stands for nothing.
    shared: Mutex<HashMap<(String, String), ByName>>,
    /// One copy of equal bytes, by type, name and version.
    interned: Mutex<HashMap<(String, String, String), Arc<Resource>>>,
}

type ByName = HashMap<String, Option<Arc<Entry>>>;

/// Names that stand for nothing are remembered up to this many: clients can make up any number.
const MAX_NAMES: usize = 100_000;

/// The resources of `type_url` that this proxy is to have among `names`.
pub(crate) fn generate(snapshot: &Snapshot, view: &ProxyView, type_url: &str, names: &Names) -> Vec<Arc<Resource>> {
    entries(snapshot, view, type_url, names).into_iter().map(|entry| entry.resource.clone()).collect()
}

/// [`generate`], with provenance.
pub(crate) fn entries(snapshot: &Snapshot, view: &ProxyView, type_url: &str, names: &Names) -> Vec<Arc<Entry>> {
    if names.wildcard {
        return made(snapshot, view, type_url, Wanted::All).into_iter().map(|(_, entry)| entry).collect();
    }
    let Some(anonymous) = anonymous(view, type_url) else {
        let list: Vec<String> = names.names.iter().cloned().collect();
        return made(snapshot, view, type_url, Wanted::Only(&list)).into_iter().map(|(_, entry)| entry).collect();
    };
    let key = (type_url.to_owned(), format!("{anonymous:?}"));
    let mut found = Vec::with_capacity(names.names.len());
    let mut missing = Vec::new();
    {
        let shared = lock(&snapshot.cache.shared);
        let known = shared.get(&key);
        for name in &names.names {
            match known.and_then(|k| k.get(name)) {
                Some(entry) => found.extend(entry.clone()),
                None => missing.push(name.clone()),
            }
        }
    }
    if !missing.is_empty() {
        // Not under the lock: another stream may generate the same meanwhile, with the same result.
        let fresh: HashMap<String, Arc<Entry>> = made(snapshot, &anonymous, type_url, Wanted::Only(&missing)).into_iter().collect();
        let mut shared = lock(&snapshot.cache.shared);
        let known = shared.entry(key).or_default();
        for name in missing {
            let entry = fresh.get(&name).cloned();
            found.extend(entry.clone());
            if known.len() < MAX_NAMES {
                known.insert(name, entry);
            }
        }
    }
    found
}

fn made(snapshot: &Snapshot, view: &ProxyView, type_url: &str, wanted: Wanted<'_>) -> Vec<(String, Arc<Entry>)> {
    let generated = lateen_translate::generate(&snapshot.world, view, type_url, wanted);
    generated.into_iter().map(|g| (g.name.clone(), Arc::new(entry(snapshot, type_url, g)))).collect()
}

fn entry(snapshot: &Snapshot, type_url: &str, generated: Generated) -> Entry {
    let resource = Resource::shared(generated.name, generated.message.encode());
    let key = (type_url.to_owned(), resource.name.clone(), resource.version.clone());
    let resource = lock(&snapshot.cache.interned).entry(key).or_insert(resource).clone();
    Entry { resource, provenance: generated.provenance }
}

/// The view without what tells replicas of one workload apart, for the types in which they do not
/// differ. Listeners and clusters hold the inbound side, which is about the replica itself.
fn anonymous(view: &ProxyView, type_url: &str) -> Option<ProxyView> {
    if !matches!(type_url, ENDPOINT | ROUTE) || !view.is_sidecar() {
        return None;
    }
    let addresses = match view.ip_mode() {
        IpMode::V4 => vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
        IpMode::V6 => vec![IpAddr::V6(Ipv6Addr::LOCALHOST)],
        IpMode::Dual => vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)],
    };
    Some(ProxyView { id: String::new(), name: String::new(), addresses, ..view.clone() })
}

/// A panic while generating leaves the cache as it was: entries are added whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "resources_tests.rs"]
mod tests;
