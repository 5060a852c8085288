//! Where a generated resource comes from: the configuration that shaped it, by kind, name and line.
use std::sync::Arc;

use lateen_model::resource::Spec;
use lateen_model::{Origin, Resource};

use crate::wire::{Value, core_v3, object, string};

/// One piece of configuration behind a generated resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Provenance {
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
    pub file: Arc<str>,
    /// Of the resource's first key, counted from 1.
    pub line: u32,
}

impl Provenance {
    pub(crate) fn of<S: Spec>(resource: &Resource<S>) -> Self {
        Self::new(S::KIND.as_str(), resource.namespace(), resource.name(), &resource.origin)
    }

    pub(crate) fn new(kind: &'static str, namespace: &str, name: &str, origin: &Origin) -> Self {
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned(), file: Arc::clone(&origin.file), line: origin.line() }
    }

    /// `/apis/networking.istio.io/v1/namespaces/default/virtual-service/reviews`, as Istio writes it.
    pub fn config_path(&self) -> String {
        format!("/apis/networking.istio.io/v1/namespaces/{}/{}/{}", self.namespace, kebab(self.kind), self.name)
    }

    /// `routes.yaml:12`.
    pub fn place(&self) -> String {
        format!("{}:{}", self.file, self.line)
    }

    /// Istio's field under the `istio` namespace of filter metadata.
    ///
    /// It holds no line: a proxy makes a cluster or listener anew when any byte of it changes, with all its
    /// connections, and a comment further up in the file must not do that.
    pub(crate) fn fields(&self) -> [(&'static str, Value); 1] {
        [("config", string(self.config_path()))]
    }

    /// Metadata of a filter chain.
    pub(crate) fn metadata(&self) -> core_v3::Metadata {
        crate::wire::metadata(ISTIO, object(self.fields()))
    }

    /// Metadata of a route, with `origin`, the file and line: routes are exchanged without touching a connection.
    pub(crate) fn route_metadata(&self) -> core_v3::Metadata {
        let [config] = self.fields();
        crate::wire::metadata(ISTIO, object([config, ("origin", string(self.place()))]))
    }
}

/// The namespace of Istio's filter metadata.
pub(crate) const ISTIO: &str = "istio";

/// Adds fields to the `istio` namespace of a resource's metadata.
pub(crate) fn annotate(metadata: &mut Option<core_v3::Metadata>, fields: impl IntoIterator<Item = (&'static str, Value)>) {
    let metadata = metadata.get_or_insert_with(Default::default);
    let entry = metadata.filter_metadata.entry(ISTIO.to_owned()).or_default();
    entry.fields.extend(fields.into_iter().map(|(key, value)| (key.to_owned(), value)));
}

/// `VirtualService` to `virtual-service`.
fn kebab(kind: &str) -> String {
    let mut out = String::with_capacity(kind.len() + 4);
    for (at, c) in kind.chars().enumerate() {
        if c.is_ascii_uppercase() && at > 0 {
            out.push('-');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_istios() {
        let provenance =
            Provenance { kind: "VirtualService", namespace: "default".into(), name: "reviews".into(), file: "a.yaml".into(), line: 3 };
        assert_eq!(provenance.config_path(), "/apis/networking.istio.io/v1/namespaces/default/virtual-service/reviews");
        assert_eq!(provenance.place(), "a.yaml:3");
    }
}
