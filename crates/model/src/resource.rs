//! A resource: its metadata, its typed spec, and where each of its fields was written.
use std::collections::BTreeMap;
use std::sync::Arc;

use lateen_core::Labels;
use serde_json::{Map, Value as Json};

use crate::diagnostic::{Diagnostic, ResourceId, Severity};
use crate::kinds::*;
use crate::schema::path::locate;
use crate::schema::{Decode, Message};
use crate::yaml::{Node, Position};

message! {
    /// The metadata of Kubernetes that Lateen uses.
    pub struct ObjectMeta "ObjectMeta" tolerant {
        name: String = honoured,
        /// Empty for cluster-scoped kinds; filled in with the default namespace when the file has none.
        namespace: String = honoured,
        labels: Labels = honoured,
        annotations: BTreeMap<String, String> = honoured,
        /// RFC 3339. Orders conflicting rules: the oldest wins.
        creation_timestamp: Option<String> = honoured,
        uid: Option<String> = honoured,
        resource_version: Option<String> = honoured,
        generation: Option<i64> = honoured,
    }
}

impl ObjectMeta {
    /// Istio's order among resources that conflict: the oldest first, then by name, then by namespace. Resources from
    /// files have no age and come first.
    pub fn precedence(&self) -> (Option<&str>, &str, &str) {
        (self.creation_timestamp.as_deref(), &self.name, &self.namespace)
    }
}

/// The annotation of a resource that was copied from where its author wrote it: `FILE:LINE` of the document there.
/// Messages and provenance then name that place, which is the one to mend.
pub const ORIGIN_ANNOTATION: &str = "lateen.dev/origin";

/// Where a resource was written, with the written document.
#[derive(Clone, Debug, PartialEq)]
pub struct Origin {
    pub file: Arc<str>,
    document: Arc<Node>,
    /// The line in `file` where the document starts, when the document at hand is a copy, whose own lines say nothing.
    copied_from: Option<u32>,
}

impl Origin {
    pub fn new(file: Arc<str>, document: Node) -> Self {
        Self { file, document: Arc::new(document), copied_from: None }
    }

    /// As [`Origin::new`], or the place that [`ORIGIN_ANNOTATION`] names.
    pub(crate) fn of(file: &Arc<str>, document: Node, annotations: &BTreeMap<String, String>) -> Self {
        match annotations.get(ORIGIN_ANNOTATION).and_then(|text| text.rsplit_once(':')) {
            Some((original, line)) if !original.is_empty() => {
                let copied_from = line.parse().ok();
                let file = if copied_from.is_some() { Arc::from(original) } else { Arc::clone(file) };
                Self { file, document: Arc::new(document), copied_from }
            }
            _ => Self::new(Arc::clone(file), document),
        }
    }

    /// The place in the form that [`ORIGIN_ANNOTATION`] has.
    pub fn annotation(&self) -> String {
        format!("{}:{}", self.file, self.line())
    }

    /// The line of the document's first key, counted from 1.
    pub fn line(&self) -> u32 {
        self.copied_from.unwrap_or(self.document.at.line)
    }

    /// The place of a field, e.g. `spec.http[0].route[0].destination.subset`. When it is not written, the place of the
    /// deepest parent that is. Of a copy only the document's first line is known.
    pub fn at(&self, path: &str) -> Position {
        match self.copied_from {
            Some(line) => Position { line, column: 1 },
            None => locate(&self.document, path).1,
        }
    }

    /// Moves a message about the document at hand to where it was copied from.
    pub(crate) fn relocate(&self, diagnostic: &mut Diagnostic) {
        if let Some(line) = self.copied_from {
            diagnostic.file = Arc::clone(&self.file);
            (diagnostic.line, diagnostic.column) = (line, 1);
        }
    }

    /// Whether a field is written.
    pub fn has(&self, path: &str) -> bool {
        locate(&self.document, path).2
    }

    /// The document as it was written.
    pub fn document(&self) -> &Node {
        &self.document
    }
}

/// What a [`Resource`] can hold.
pub trait Spec: Decode + Default + Clone + std::fmt::Debug + PartialEq + Send + Sync + 'static {
    const KIND: Kind;

    fn message() -> &'static Message;
}

/// A resource of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource<S> {
    pub meta: ObjectMeta,
    pub spec: S,
    pub origin: Origin,
}

impl<S: Spec> Resource<S> {
    pub fn id(&self) -> ResourceId {
        ResourceId { kind: S::KIND.as_str().to_owned(), namespace: self.meta.namespace.clone(), name: self.meta.name.clone() }
    }

    pub fn name(&self) -> &str {
        &self.meta.name
    }

    pub fn namespace(&self) -> &str {
        &self.meta.namespace
    }

    /// A message about a field of this resource, at its place.
    pub fn report(&self, severity: Severity, path: &str, message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(severity, &self.origin.file, self.origin.at(path), message).with_resource(self.id()).with_path(path)
    }

    /// The document with `apiVersion`, `kind`, `metadata` (namespace filled in) first and in this order.
    pub fn raw(&self) -> Json {
        raw(S::KIND, &self.meta, &self.origin)
    }
}

fn raw(kind: Kind, meta: &ObjectMeta, origin: &Origin) -> Json {
    let mut out = Map::new();
    let written = match origin.document.to_json() {
        Json::Object(map) => map,
        _ => Map::new(),
    };
    out.insert("apiVersion".into(), written.get("apiVersion").cloned().unwrap_or_else(|| Json::from(kind.api_version())));
    out.insert("kind".into(), Json::from(kind.as_str()));
    let mut metadata = Map::new();
    metadata.insert("name".into(), Json::from(meta.name.as_str()));
    if kind.is_namespaced() {
        metadata.insert("namespace".into(), Json::from(meta.namespace.as_str()));
    }
    if let Some(Json::Object(written)) = written.get("metadata") {
        metadata.extend(written.iter().filter(|(key, _)| *key != "name" && *key != "namespace").map(|(k, v)| (k.clone(), v.clone())));
    }
    out.insert("metadata".into(), Json::Object(metadata));
    out.extend(written.into_iter().filter(|(key, _)| !matches!(key.as_str(), "apiVersion" | "kind" | "metadata")));
    Json::Object(out)
}

macro_rules! kinds {
    ($($kind:ident),* $(,)?) => {
        $(impl Spec for $kind {
            const KIND: Kind = Kind::$kind;

            fn message() -> &'static Message {
                const { &$kind::MESSAGE }
            }
        })*

        /// A resource of any kind.
        #[derive(Clone, Debug, PartialEq)]
        pub enum AnyResource {
            $($kind(Arc<Resource<$kind>>),)*
        }

        impl AnyResource {
            pub fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind,)* }
            }

            pub fn meta(&self) -> &ObjectMeta {
                match self { $(Self::$kind(resource) => &resource.meta,)* }
            }

            pub fn origin(&self) -> &Origin {
                match self { $(Self::$kind(resource) => &resource.origin,)* }
            }
        }

        $(impl From<Resource<$kind>> for AnyResource {
            fn from(resource: Resource<$kind>) -> Self {
                Self::$kind(Arc::new(resource))
            }
        })*

        /// The message of a kind's spec (or of its fields at the top).
        pub fn message_of(kind: Kind) -> &'static Message {
            match kind { $(Kind::$kind => $kind::message(),)* }
        }

        /// Decodes the spec of a kind.
        pub(crate) fn decode_spec(
            kind: Kind, node: &Node, cx: &mut crate::schema::Context<'_>,
        ) -> impl FnOnce(ObjectMeta, Origin) -> AnyResource + use<> {
            enum AnySpec { $($kind(Box<$kind>),)* }
            let spec = match kind {
                $(Kind::$kind => AnySpec::$kind(Box::new($kind::decode(node, cx).unwrap_or_default())),)*
            };
            move |meta, origin| match spec {
                $(AnySpec::$kind(spec) => AnyResource::from(Resource { meta, spec: *spec, origin }),)*
            }
        }
    };
}

kinds!(
    Namespace,
    ServiceAccount,
    ConfigMap,
    Secret,
    Service,
    Deployment,
    Pod,
    Gateway,
    VirtualService,
    DestinationRule,
    ServiceEntry,
    PeerAuthentication,
);

impl AnyResource {
    pub fn id(&self) -> ResourceId {
        let meta = self.meta();
        ResourceId { kind: self.kind().as_str().to_owned(), namespace: meta.namespace.clone(), name: meta.name.clone() }
    }

    /// See [`Resource::raw`].
    pub fn raw(&self) -> Json {
        raw(self.kind(), self.meta(), self.origin())
    }

    /// A message about a field of this resource, at its place.
    pub fn report(&self, severity: Severity, path: &str, message: impl Into<String>) -> Diagnostic {
        let origin = self.origin();
        Diagnostic::new(severity, &origin.file, origin.at(path), message).with_resource(self.id()).with_path(path)
    }
}

#[cfg(test)]
mod tests {
    use crate::parse::parse;
    use crate::yaml::Limits;

    const RULE: &str = r#"{"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
        "metadata": {"name": "d", "annotations": {"lateen.dev/origin": "ORIGIN"}}, "spec": {"host": "h", FIELDS}}"#;

    fn read(origin: &str, fields: &str) -> crate::Parsed {
        parse("/run/copy.json", RULE.replace("ORIGIN", origin).replace("FIELDS", fields).as_bytes(), &Limits::default())
    }

    #[test]
    fn a_copy_is_told_by_where_it_was_copied_from() {
        let copy = read("shop/c:d.yaml:31", r#""subsets": []"#);
        let origin = copy.resources[0].origin();
        assert_eq!((origin.annotation().as_str(), origin.line(), origin.at("spec.host").line), ("shop/c:d.yaml:31", 31, 31));
        assert!(origin.has("spec.host") && !origin.has("spec.exportTo"));
        let message = copy.resources[0].report(crate::Severity::Error, "spec.host", "nobody").to_string();
        assert_eq!(message, "shop/c:d.yaml:31:1: error: DestinationRule default/d: spec.host: nobody");
        let broken = read("shop/d.yaml:31", r#""hots": 1"#);
        let messages: Vec<String> = broken.diagnostics.iter().map(ToString::to_string).collect();
        assert!(!messages.is_empty() && messages.iter().all(|m| m.starts_with("shop/d.yaml:31:1: ")), "{messages:?}");
    }

    #[test]
    fn an_annotation_that_names_no_place_is_none() {
        for text in ["", "x", ":3", "x:", "x:y", "x:-1", "x:99999999999"] {
            let odd = read(text, r#""subsets": []"#);
            assert_eq!(odd.resources[0].origin().annotation(), "/run/copy.json:1", "{text}");
            assert!(odd.resources[0].origin().at("spec.subsets").column > 1, "{text}");
        }
    }
}
