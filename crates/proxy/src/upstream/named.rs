//! Hosts that requests name, as one worker remembers them: only the first request for a name asks the shared cache.
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use lateen_balance::Host;
use lateen_snapshot::dns::cache::{CachedHost, DnsCache, HostKey};

/// The hosts met so far, and room to write a key in.
#[derive(Default)]
pub(super) struct NamedHosts(RefCell<(HashMap<Arc<str>, Named>, String)>);

struct Named {
    cached: Arc<CachedHost>,
    version: u64,
    host: Arc<Host>,
}

impl NamedHosts {
    /// The host of this authority, if its name has been resolved.
    pub(super) fn host(&self, cache: &DnsCache, authority: &str, default_port: u16) -> Option<Arc<Host>> {
        let (known, key) = &mut *self.0.borrow_mut();
        HostKey::write(authority, default_port, key)?;
        if let Some(named) = known.get_mut(key.as_str()).filter(|n| !n.cached.is_removed()) {
            cache.used(&named.cached);
            let version = named.cached.version();
            if version != named.version {
                named.host = named.cached.host().ok()?;
                named.version = version;
            }
            return Some(Arc::clone(&named.host));
        }
        let cached = cache.get(key)?;
        cache.used(&cached);
        let version = cached.version();
        let host = cached.host().ok()?;
        let name = Arc::clone(&cached.key.text);
        known.insert(name, Named { cached, version, host: Arc::clone(&host) });
        Some(host)
    }

    /// Forgets what the cache has forgotten.
    pub(super) fn sweep(&self) {
        self.0.borrow_mut().0.retain(|_, named| !named.cached.is_removed());
    }
}
