//! Where a decoder is, and the mistakes it has met so far.
use std::collections::BTreeSet;
use std::sync::Arc;

use super::decode::Decode;
use super::field::{Field, Message, Shape, Status, camel, is_spelling_of};
use super::path::{FieldPath, join};
use crate::diagnostic::{Diagnostic, ResourceId, Severity};
use crate::yaml::{Entry, Node, Position, Value};
use lateen_core::similar::nearest;

/// Messages about one resource. A file in which everything is wrong is one mistake, not a million.
const MAX_DIAGNOSTICS: usize = 100;

/// Different unused fields that are remembered.
const MAX_UNUSED: usize = 1_000;

/// Decoding state of one resource.
pub struct Context<'a> {
    file: &'a Arc<str>,
    resource: ResourceId,
    /// The message of the kind and the path it stands under, to say where a misplaced field belongs.
    root: (&'static str, &'static Message),
    path: FieldPath,
    diagnostics: Vec<Diagnostic>,
    unused: BTreeSet<String>,
}

impl<'a> Context<'a> {
    /// `root` is the message of the kind's fields, and `under` the path it stands at: `spec` or nothing.
    pub fn new(file: &'a Arc<str>, resource: ResourceId, under: &'static str, root: &'static Message) -> Self {
        Self { file, resource, root: (under, root), path: FieldPath::default(), diagnostics: Vec::new(), unused: BTreeSet::new() }
    }

    /// The messages, and the fields that a tolerant message does not know (each once, without indices).
    pub fn finish(self) -> (Vec<Diagnostic>, BTreeSet<String>) {
        (self.diagnostics, self.unused)
    }

    /// Whether anything has been reported that keeps the resource out.
    pub fn failed(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }

    /// Drops what was noted as unused under a path.
    pub(crate) fn forget_unused(&mut self, under: &str) {
        self.unused.retain(|path| !path.starts_with(under));
    }

    fn diagnostic(&self, severity: Severity, at: Position, message: String) -> Diagnostic {
        Diagnostic::new(severity, self.file, at, message).with_resource(self.resource.clone()).with_path(self.path.as_str())
    }

    fn push(&mut self, diagnostic: Diagnostic) {
        match self.diagnostics.len() {
            0..MAX_DIAGNOSTICS => self.diagnostics.push(diagnostic),
            MAX_DIAGNOSTICS => {
                let message = format!("more than {MAX_DIAGNOSTICS} mistakes; the others are not listed");
                self.diagnostics.push(Diagnostic { message, suggestion: None, severity: Severity::Error, ..diagnostic });
            }
            _ => {}
        }
    }

    /// Whether it is of no use to look further.
    fn is_full(&self) -> bool {
        self.diagnostics.len() > MAX_DIAGNOSTICS
    }

    /// Reports a mistake at the current path.
    pub fn error(&mut self, at: Position, message: impl Into<String>) {
        let diagnostic = self.diagnostic(Severity::Error, at, message.into());
        self.push(diagnostic);
    }

    /// Reports a mistake and what to write instead.
    pub fn error_with(&mut self, at: Position, message: impl Into<String>, suggestion: impl Into<String>) {
        let diagnostic = self.diagnostic(Severity::Error, at, message.into()).with_suggestion(suggestion);
        self.push(diagnostic);
    }

    /// Reports that a value is of the wrong kind.
    pub fn wrong_type(&mut self, node: &Node, wanted: &str) {
        let found = match &node.value {
            Value::Bool(_, text) => format!("the boolean `{text}`"),
            Value::Number(number) => format!("the number `{}`", number.text),
            Value::String(text) if text.len() <= 60 => format!("the string {text:?}"),
            other => other.describe().to_owned(),
        };
        self.error(node.at, format!("wants {wanted}, not {found}"));
    }

    /// Runs `inner` one field deeper.
    pub fn within<T>(&mut self, field: &str, inner: impl FnOnce(&mut Self) -> T) -> T {
        let mark = self.path.enter_field(field);
        let result = inner(self);
        self.path.leave(mark);
        result
    }

    /// Runs `inner` in an item of a list.
    pub fn within_item<T>(&mut self, index: usize, inner: impl FnOnce(&mut Self) -> T) -> T {
        let mark = self.path.enter_item(index);
        let result = inner(self);
        self.path.leave(mark);
        result
    }

    /// The entries of a message, after reporting those it does not have, those without effect, and fields that
    /// exclude each other. `None` when the node is no mapping.
    pub fn open<'n>(&mut self, node: &'n Node, message: &'static Message) -> Option<&'n [Entry]> {
        let entries = match &node.value {
            Value::Map(entries) => entries,
            Value::Null => return None,
            Value::List(_) => {
                let wanted = format!("a mapping ({})", message.name);
                self.error_with(node.at, format!("wants {wanted}, not a list"), "take the `-` away");
                return None;
            }
            _ => {
                self.wrong_type(node, &Shape::Message(message).describe());
                return None;
            }
        };
        for entry in entries {
            match message.fields.iter().find(|field| is_spelling_of(&entry.key, field.name)) {
                Some(field) => self.note_status(entry, field),
                None => self.unknown_field(entry, message),
            }
        }
        self.check_spelled_twice(entries, message);
        self.check_oneofs(entries, message);
        Some(entries)
    }

    /// Decodes one field of an opened message, if it is there.
    pub fn field<T: Decode>(&mut self, entries: &[Entry], name: &'static str) -> Option<T> {
        let entry = entries.iter().find(|entry| is_spelling_of(&entry.key, name))?;
        self.within(&entry.key, |cx| T::decode(&entry.value, cx))
    }

    fn note_status(&mut self, entry: &Entry, field: &Field) {
        let (severity, note) = match field.status {
            Status::Honoured | Status::Partly(_) => return,
            Status::Warned(note) => (Severity::Warning, note),
            Status::Refused(note) => (Severity::Error, note),
        };
        if entry.value.value == Value::Null {
            return;
        }
        let mark = self.path.enter_field(&entry.key);
        let diagnostic = self.diagnostic(severity, entry.key_at, note.to_owned());
        self.path.leave(mark);
        self.push(diagnostic);
    }

    pub(crate) fn unknown_field(&mut self, entry: &Entry, message: &'static Message) {
        if self.is_full() || message.tolerant && entry.value.value == Value::Null {
            return;
        }
        let known: Vec<String> = message.fields.iter().map(Field::json_name).collect();
        let near = nearest(&entry.key, known.iter().map(String::as_str));
        let elsewhere = self.where_it_belongs(&entry.key);
        let exact_elsewhere = elsewhere.as_ref().filter(|_| near.is_none_or(|near| lateen_core::similar::distance(near, &entry.key) > 1));
        let mark = self.path.enter_field(&entry.key);
        if message.tolerant {
            // Only a slip in a field that Lateen uses is worth a line of its own.
            match near.filter(|near| lateen_core::similar::distance(near, &entry.key) <= 1) {
                Some(near) => {
                    let text = "not used by Lateen".to_owned();
                    let warning = self.diagnostic(Severity::Warning, entry.key_at, text);
                    self.push(warning.with_suggestion(format!("did you mean \"{near}\"?")));
                }
                None if self.unused.len() < MAX_UNUSED => {
                    self.unused.insert(without_indices(self.path.as_str()));
                }
                None => {}
            }
        } else if let Some(place) = exact_elsewhere {
            self.error_with(
                entry.key_at,
                format!("this field does not belong here (in {})", message.name),
                format!("it belongs under {place}"),
            );
        } else if let Some(near) = near {
            self.error_with(entry.key_at, "unknown field", format!("did you mean \"{near}\"?"));
        } else {
            let suggestion = match known.is_empty() {
                true => format!("{} has no fields", message.name),
                false => format!("{} has: {}", message.name, known.join(", ")),
            };
            self.error_with(entry.key_at, "unknown field", suggestion);
        }
        self.path.leave(mark);
    }

    /// The place of a field of this name elsewhere in the kind: the one that shares most with the current path.
    fn where_it_belongs(&self, key: &str) -> Option<String> {
        let mut places = Vec::new();
        let (under, root) = self.root;
        find_field(Shape::Message(root), key, under, 0, &mut places);
        let here = without_indices(self.path.as_str());
        let nearest = places
            .into_iter()
            .filter(|place| *place != here)
            .max_by_key(|place| (common_prefix(place, &here), std::cmp::Reverse(place.len())))?;
        Some(if nearest.is_empty() { "the top of the document".to_owned() } else { with_indices_of(&nearest, self.path.as_str()) })
    }

    fn check_spelled_twice(&mut self, entries: &[Entry], message: &'static Message) {
        for field in message.fields.iter().filter(|field| field.name.contains('_')) {
            let both: Vec<&Entry> = entries.iter().filter(|entry| is_spelling_of(&entry.key, field.name)).collect();
            if let [first, second, ..] = both[..] {
                let text = format!("\"{}\" and \"{}\" are the same field", first.key, second.key);
                self.error_with(second.key_at, text, "keep one of them");
            }
        }
    }

    fn check_oneofs(&mut self, entries: &[Entry], message: &'static Message) {
        for group in message.oneofs {
            let given: Vec<&Entry> = entries
                .iter()
                .filter(|entry| entry.value.value != Value::Null && group.iter().any(|name| is_spelling_of(&entry.key, name)))
                .collect();
            if let [first, second, ..] = given[..] {
                let text = format!("\"{}\" and \"{}\" exclude each other", first.key, second.key);
                let all: Vec<String> = group.iter().map(|name| camel(name)).collect();
                self.error_with(second.key_at, text, format!("give one of {}", all.join(", ")));
            }
        }
    }

    /// One of the accepted spellings of an enum.
    pub fn choice(&mut self, node: &Node, names: &'static [&'static str]) -> Option<&'static str> {
        let text = match &node.value {
            Value::Null => return None,
            Value::String(text) => text.as_str(),
            // `mode: ON` is a boolean to YAML and a text to the person who wrote it.
            Value::Bool(_, text) => text,
            _ => {
                self.wrong_type(node, &Shape::Enum(names).describe());
                return None;
            }
        };
        if let Some(found) = names.iter().find(|name| **name == text) {
            return Some(found);
        }
        let message = format!("{text:?} is none of the accepted values {}", names.join(", "));
        match nearest(text, names.iter().copied()) {
            Some(near) => self.error_with(node.at, message, format!("did you mean {near}?")),
            None => self.error(node.at, message),
        }
        None
    }
}

/// Collects the parents of every field called `key`. The depth bound ends recursive messages.
fn find_field(shape: Shape, key: &str, path: &str, depth: usize, places: &mut Vec<String>) {
    let Some(message) = shape.message() else { return };
    if depth > 8 {
        return;
    }
    for field in message.fields {
        if is_spelling_of(key, field.name) {
            places.push(path.to_owned());
        }
        find_field((field.shape)(), key, &join(path, &field.json_name()), depth + 1, places);
    }
}

fn common_prefix(a: &str, b: &str) -> usize {
    a.split('.').zip(b.split('.')).take_while(|(a, b)| a == b).count()
}

/// Gives the part of a place that it shares with a path the indices of the path.
fn with_indices_of(place: &str, path: &str) -> String {
    let shared = common_prefix(place, &without_indices(path));
    let indexed: Vec<&str> = path.split('.').take(shared).collect();
    let rest = place.split('.').skip(shared);
    indexed.into_iter().chain(rest).collect::<Vec<_>>().join(".")
}

/// `spec.http[0].route` to `spec.http.route`.
fn without_indices(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(start) = rest.find('[') {
        out.push_str(&rest[..start]);
        let Some(end) = rest[start..].find(']') else { return out };
        let inside = &rest[start + 1..start + end];
        if !inside.bytes().all(|b| b.is_ascii_digit()) {
            out.push_str(&rest[start..=start + end]);
        }
        rest = &rest[start + end + 1..];
    }
    out.push_str(rest);
    out
}
