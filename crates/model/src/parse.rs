//! One file to resources: documents, lists, kinds, metadata and spec.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::diagnostic::{Diagnostic, ResourceId, Severity};
use crate::kinds::{Kind, Support, known_kind};
use crate::resource::{AnyResource, ObjectMeta, Origin, decode_spec, message_of};
use crate::schema::field::{Field, Message, Status};
use crate::schema::{Context, Decode, Shape};
use crate::yaml::{Document, Entry, Limits, Node, Position, ReadError, Value, read};

/// What a file gave: the good resources, and a message for everything else.
#[derive(Clone, Debug, Default)]
pub struct Parsed {
    pub resources: Vec<AnyResource>,
    pub diagnostics: Vec<Diagnostic>,
}

/// Messages about one file, after which its next documents are left alone.
const MAX_FILE_DIAGNOSTICS: usize = 1_000;

/// The namespace of resources that name none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Parses and validates a file; resources without a namespace go to `default`.
pub fn parse(file_name: &str, bytes: &[u8], limits: &Limits) -> Parsed {
    parse_in(file_name, bytes, DEFAULT_NAMESPACE, limits)
}

/// Parses and validates a file; resources without a namespace go to `namespace`.
pub fn parse_in(file_name: &str, bytes: &[u8], namespace: &str, limits: &Limits) -> Parsed {
    let mut reading = Reading::new(namespace);
    reading.file(&Arc::from(file_name), bytes, limits);
    reading.finish()
}

/// Files being parsed, with what is told once for all of them.
pub(crate) struct Reading<'a> {
    namespace: &'a str,
    parsed: Parsed,
    /// Fields of Kubernetes kinds that Lateen does not use, with the first file they were seen in.
    unused: BTreeMap<Kind, (Arc<str>, BTreeSet<String>)>,
}

impl<'a> Reading<'a> {
    pub(crate) fn new(namespace: &'a str) -> Self {
        Self { namespace, parsed: Parsed::default(), unused: BTreeMap::new() }
    }

    pub(crate) fn report(&mut self, diagnostic: Diagnostic) {
        self.parsed.diagnostics.push(diagnostic);
    }

    /// Adds a file.
    pub(crate) fn file(&mut self, file: &Arc<str>, bytes: &[u8], limits: &Limits) {
        let before = self.parsed.diagnostics.len();
        match read(bytes, limits) {
            Ok(documents) => {
                for document in documents {
                    if self.parsed.diagnostics.len() - before > MAX_FILE_DIAGNOSTICS {
                        let message = format!("more than {MAX_FILE_DIAGNOSTICS} messages; the rest of the file is not read");
                        return self.report(Diagnostic::new(Severity::Error, file, Position::default(), message));
                    }
                    match document {
                        Ok(document) => self.document(file, document),
                        Err(error) => self.report(read_error(file, error)),
                    }
                }
            }
            Err(error) => self.report(read_error(file, error)),
        }
    }

    /// The result, with one line for each Kubernetes kind that has fields of no use to Lateen.
    pub(crate) fn finish(mut self) -> Parsed {
        for (kind, (file, fields)) in std::mem::take(&mut self.unused) {
            let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
            let message = format!("{kind}: fields that Lateen does not use: {}", abbreviated(&fields));
            self.report(Diagnostic::new(Severity::Info, &file, Position::default(), message));
        }
        self.parsed
    }

    fn document(&mut self, file: &Arc<str>, document: Document) {
        let broken = !document.errors.is_empty();
        let header = Header::of(&document.root);
        for error in document.errors {
            let mut diagnostic = read_error(file, error);
            diagnostic.resource = Some(header.id(self.namespace));
            self.report(diagnostic);
        }
        if !broken {
            self.root(file, document.root, 0);
        }
    }

    fn root(&mut self, file: &Arc<str>, root: Node, depth: usize) {
        let header = Header::of(&root);
        let id = header.id(self.namespace);
        let error = |at: Position, message: String| Diagnostic::new(Severity::Error, file, at, message);
        if !matches!(root.value, Value::Map(_)) {
            let message = format!("wants a resource (a mapping with apiVersion, kind, metadata), not {}", root.value.describe());
            return self.report(error(root.at, message));
        }
        if header.kind.is_empty() || header.api_version.is_empty() {
            return self.report(missing_header(file, &root, &header, id));
        }
        if header.kind.ends_with("List") && root.get("items").is_some() {
            return self.list(file, root, depth);
        }
        let at = root.get("kind").map_or(root.at, |kind| kind.at);
        match known_kind(header.api_version, header.kind) {
            Support::Read(kind) => self.resource(file, kind, root),
            Support::ReadOld(kind) => {
                let at = root.get("apiVersion").map_or(root.at, |version| version.at);
                let message = format!("apiVersion {} is retired; it is read as {}", header.api_version, kind.api_version());
                self.report(Diagnostic::new(Severity::Warning, file, at, message).with_resource(id));
                self.resource(file, kind, root);
            }
            Support::WrongVersion { kind, suggestion } => {
                let at = root.get("apiVersion").map_or(root.at, |version| version.at);
                let message = format!("{kind} is not read in apiVersion {}", header.api_version);
                self.report(error(at, message).with_resource(id).with_suggestion(suggestion));
            }
            Support::NotYet(note) => {
                let message = format!("kind {} ({}) is not supported yet and is left out", header.kind, header.api_version);
                let mut warning = Diagnostic::new(Severity::Warning, file, at, message).with_resource(id);
                warning.suggestion = (!note.is_empty()).then_some(note);
                self.report(warning);
            }
            Support::Unknown { suggestion } => {
                let mut diagnostic = error(at, format!("unknown kind {} ({})", header.kind, header.api_version)).with_resource(id);
                diagnostic.suggestion = suggestion;
                self.report(diagnostic);
            }
        }
    }

    fn list(&mut self, file: &Arc<str>, root: Node, depth: usize) {
        let Value::Map(entries) = root.value else { return };
        for entry in entries.into_iter().filter(|entry| entry.key == "items") {
            match entry.value.value {
                // A List in a List is no use to anybody, but a cheap way to make a parser recurse.
                Value::List(items) if depth < 2 => items.into_iter().for_each(|item| self.root(file, item, depth + 1)),
                Value::Null => {}
                _ => self.report(Diagnostic::new(Severity::Error, file, entry.value.at, "items: wants a list of resources")),
            }
        }
    }

    fn resource(&mut self, file: &Arc<str>, kind: Kind, root: Node) {
        let id = Header::of(&root).id(self.namespace);
        let under = if kind.has_fields_at_top() { "" } else { "spec" };
        let mut cx = Context::new(file, id, under, message_of(kind));
        check_top(&root, kind, &mut cx);
        let meta = self.metadata(&root, kind, &mut cx);
        let build = if kind.has_fields_at_top() {
            decode_spec(kind, &without_header(&root), &mut cx)
        } else {
            match root.get("spec") {
                Some(spec) => cx.within("spec", |cx| decode_spec(kind, spec, cx)),
                None => decode_spec(kind, &Node { value: Value::Null, at: root.at }, &mut cx),
            }
        };
        let failed = cx.failed();
        let (mut diagnostics, unused) = cx.finish();
        let origin = Origin::of(file, root, &meta.annotations);
        diagnostics.iter_mut().for_each(|diagnostic| origin.relocate(diagnostic));
        diagnostics.sort_by_key(|diagnostic| (diagnostic.line, diagnostic.column));
        self.parsed.diagnostics.extend(diagnostics);
        if !unused.is_empty() {
            self.unused.entry(kind).or_insert_with(|| (Arc::clone(file), BTreeSet::new())).1.extend(unused);
        }
        if failed {
            return;
        }
        let resource = with_default_selector(build(meta, origin));
        let mut problems = crate::validate::validate(&resource);
        problems.sort_by_key(|diagnostic| (diagnostic.line, diagnostic.column));
        if !problems.iter().any(Diagnostic::is_error) {
            self.parsed.resources.push(resource);
        }
        self.parsed.diagnostics.extend(problems);
    }

    fn metadata(&self, root: &Node, kind: Kind, cx: &mut Context<'_>) -> ObjectMeta {
        let decoded = root.get("metadata").and_then(|node| cx.within("metadata", |cx| ObjectMeta::decode(node, cx)));
        let mut meta = decoded.unwrap_or_default();
        // What a cluster writes into metadata is of no interest to anyone who reads messages.
        cx.forget_unused("metadata");
        if !kind.is_namespaced() {
            meta.namespace.clear();
        } else if meta.namespace.is_empty() {
            meta.namespace = self.namespace.to_owned();
        }
        meta
    }
}

/// In the retired versions a Deployment without a selector selects by its template's labels.
fn with_default_selector(resource: AnyResource) -> AnyResource {
    match resource {
        AnyResource::Deployment(deployment) if !deployment.origin.has("spec.selector") && is_retired(&deployment.origin) => {
            let mut deployment = Arc::unwrap_or_clone(deployment);
            deployment.spec.selector.match_labels = deployment.spec.template.metadata.labels.clone();
            deployment.into()
        }
        other => other,
    }
}

fn is_retired(origin: &Origin) -> bool {
    origin.document().get("apiVersion").and_then(Node::as_str) != Some("apps/v1")
}

/// The entries that every resource has.
const HEADER: [&str; 4] = ["apiVersion", "kind", "metadata", "status"];

const fn header_field(name: &'static str) -> Field {
    Field { name, status: Status::Honoured, shape: any }
}

fn any() -> Shape {
    Shape::Any
}

/// The top of a document of an Istio kind.
static TOP: Message = Message {
    name: "the resource",
    tolerant: false,
    oneofs: &[],
    fields: &[header_field("apiVersion"), header_field("kind"), header_field("metadata"), header_field("spec"), header_field("status")],
};

/// The top of a document of a Kubernetes kind.
static TOLERANT_TOP: Message = Message { tolerant: true, ..TOP };

fn check_top(root: &Node, kind: Kind, cx: &mut Context<'_>) {
    if kind.has_fields_at_top() {
        return;
    }
    let Value::Map(entries) = &root.value else { return };
    let top = if kind.is_istio() { &TOP } else { &TOLERANT_TOP };
    for entry in entries.iter().filter(|entry| !HEADER.contains(&entry.key.as_str()) && entry.key != "spec") {
        cx.unknown_field(entry, top);
    }
}

/// The document without what every resource has.
fn without_header(root: &Node) -> Node {
    let Value::Map(entries) = &root.value else { return root.clone() };
    let rest: Vec<Entry> = entries.iter().filter(|entry| !HEADER.contains(&entry.key.as_str())).cloned().collect();
    Node { value: Value::Map(rest), at: root.at }
}

/// What a document says it is, as far as it says so.
struct Header<'n> {
    api_version: &'n str,
    kind: &'n str,
    namespace: &'n str,
    name: &'n str,
}

impl<'n> Header<'n> {
    fn of(root: &'n Node) -> Self {
        let text = |node: Option<&'n Node>| node.and_then(Node::as_str).unwrap_or_default();
        let metadata = root.get("metadata");
        Self {
            api_version: text(root.get("apiVersion")),
            kind: text(root.get("kind")),
            namespace: text(metadata.and_then(|metadata| metadata.get("namespace"))),
            name: text(metadata.and_then(|metadata| metadata.get("name"))),
        }
    }

    fn id(&self, default_namespace: &str) -> ResourceId {
        let namespace = match (self.kind, self.namespace) {
            ("Namespace" | "", _) => "",
            (_, "") => default_namespace,
            (_, namespace) => namespace,
        };
        let kind = if self.kind.is_empty() { "resource" } else { self.kind };
        ResourceId { kind: kind.to_owned(), namespace: namespace.to_owned(), name: self.name.to_owned() }
    }
}

fn missing_header(file: &Arc<str>, root: &Node, header: &Header<'_>, id: ResourceId) -> Diagnostic {
    let missing = if header.kind.is_empty() { "kind" } else { "apiVersion" };
    let at = root.get(missing).map_or(root.at, |node| node.at);
    let suggestion = match Kind::ALL.into_iter().find(|kind| kind.as_str() == header.kind) {
        Some(kind) => format!("write apiVersion: {}", kind.api_version()),
        None => "every resource has apiVersion, kind and metadata.name".to_owned(),
    };
    Diagnostic::new(Severity::Error, file, at, format!("{missing} is missing")).with_resource(id).with_suggestion(suggestion)
}

fn read_error(file: &Arc<str>, error: ReadError) -> Diagnostic {
    let mut diagnostic = Diagnostic::new(Severity::Error, file, error.at, error.message);
    diagnostic.suggestion = error.suggestion;
    diagnostic
}

/// The first fields by name, the rest by number.
fn abbreviated(fields: &[&str]) -> String {
    const SHOWN: usize = 8;
    let mut text = fields.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    if fields.len() > SHOWN {
        text.push_str(&format!(" and {} more", fields.len() - SHOWN));
    }
    text
}
