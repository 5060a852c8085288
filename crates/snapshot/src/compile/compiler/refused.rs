//! What was refused when it came: it is an answer too, and who waits for the first goes on without (Envoy `onConfigUpdateFailed`).
use std::collections::HashSet;
use std::sync::Arc;

use prost::Name;

use super::{EndpointProto, ExtensionProto, RouteProto, SecretProto, Wanted};
use crate::compile::secret::SecretKey;
use crate::compile::source::SecretSource;

/// Names of which what came last was refused, of the kinds that listeners and clusters wait for.
#[derive(Debug, Default)]
pub(super) struct Refused {
    pub(super) routes: HashSet<Arc<str>>,
    pub(super) endpoints: HashSet<Arc<str>>,
    pub(super) extensions: HashSet<Arc<str>>,
    pub(super) secrets: HashSet<SecretKey>,
}

impl Refused {
    /// What came of an answer about this name; whether it is another than of the one before.
    pub(super) fn note(&mut self, type_name: &str, name: &str, source: &SecretSource, is_refused: bool) -> bool {
        if type_name == RouteProto::full_name() {
            put(&mut self.routes, name, is_refused)
        } else if type_name == EndpointProto::full_name() {
            put(&mut self.endpoints, name, is_refused)
        } else if type_name == ExtensionProto::full_name() {
            put(&mut self.extensions, name, is_refused)
        } else if type_name == SecretProto::full_name() {
            let key = SecretKey { source: source.clone(), name: name.into() };
            if is_refused { self.secrets.insert(key) } else { self.secrets.remove(&key) }
        } else {
            false
        }
    }

    /// Of what is wanted again later another answer is waited for.
    pub(super) fn keep(&mut self, wanted: &Wanted) {
        self.routes.retain(|name| wanted.routes.contains(name));
        self.endpoints.retain(|name| wanted.endpoints.contains(name));
        self.extensions.retain(|name| wanted.extensions.contains(name));
        self.secrets.retain(|key| wanted.secrets.contains(key));
    }
}

fn put(names: &mut HashSet<Arc<str>>, name: &str, is_in: bool) -> bool {
    if is_in { names.insert(name.into()) } else { names.remove(name) }
}
