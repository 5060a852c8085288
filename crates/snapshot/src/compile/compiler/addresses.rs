//! No two listeners have the same address: by chance one would get the connections of both.
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use indexmap::IndexMap;

use super::ListenerVersion;
use super::entry::Entry;
use crate::Listener;
use crate::compile::invalid::{Invalid, Result};

/// Which listener has which address, by the newest version of each.
#[derive(Default)]
pub(super) struct Addresses(HashMap<SocketAddr, Arc<str>>);

impl Addresses {
    pub(super) fn of(listeners: &IndexMap<Arc<str>, Entry<ListenerVersion>>) -> Self {
        let mut all = Self(HashMap::with_capacity(listeners.len()));
        listeners.values().filter_map(|e| e.versions.newest()).for_each(|v| all.add(&v.value.listener));
        all
    }

    fn add(&mut self, listener: &Listener) {
        // A port that the kernel chooses is another one for each.
        let own = listener.addresses.iter().filter(|a| a.port() != 0 || !listener.bind);
        self.0.extend(own.map(|a| (*a, Arc::clone(&listener.name))));
    }

    /// Takes a listener's addresses in, in place of those that it had.
    pub(super) fn take(&mut self, listener: &Listener, before: Option<&Listener>) -> Result<()> {
        for address in &listener.addresses {
            if let Some(other) = self.0.get(address).filter(|name| **name != listener.name) {
                return Err(Invalid::field("address", format!("duplicate address {address}, which listener {other} has; use another")));
            }
        }
        for address in before.into_iter().flat_map(|b| &b.addresses) {
            if self.0.get(address).is_some_and(|name| *name == listener.name) {
                self.0.remove(address);
            }
        }
        self.add(listener);
        Ok(())
    }
}
