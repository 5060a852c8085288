//! Field paths: `spec.http[0].route[1].weight`, `metadata.labels["app.kubernetes.io/name"]`.
use std::fmt::Write as _;

use super::field::is_spelling_of;
use crate::yaml::{Node, Position, Value};

/// A path that grows and shrinks as the decoder walks.
#[derive(Clone, Debug, Default)]
pub struct FieldPath(String);

impl FieldPath {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Adds a field and returns what [`FieldPath::leave`] takes it away with.
    pub fn enter_field(&mut self, name: &str) -> usize {
        let mark = self.0.len();
        push_field(&mut self.0, name);
        mark
    }

    /// Adds the index of a list item.
    pub fn enter_item(&mut self, index: usize) -> usize {
        let mark = self.0.len();
        let _ = write!(self.0, "[{index}]");
        mark
    }

    pub fn leave(&mut self, mark: usize) {
        self.0.truncate(mark);
    }
}

/// Appends a field to a path; a name that is not a plain word goes in brackets and quotes.
pub fn push_field(path: &mut String, name: &str) {
    if !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-')) {
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(name);
    } else {
        let _ = write!(path, "[{name:?}]");
    }
}

/// The field `name` under `path`.
pub fn join(path: &str, name: &str) -> String {
    let mut joined = path.to_owned();
    push_field(&mut joined, name);
    joined
}

/// A step of a parsed path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Field(String),
    Item(usize),
}

/// Takes a path apart; what cannot be understood ends it.
pub fn steps(path: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if let Some(inside) = rest.strip_prefix('[') {
            let quoted = inside.starts_with('"');
            let end = if quoted { inside.find("\"]").map(|quote| quote + 1) } else { inside.find(']') };
            let Some(end) = end else { break };
            let text = &inside[..end];
            steps.push(match text.parse() {
                Ok(index) if !quoted => Step::Item(index),
                _ => Step::Field(text.trim_matches('"').to_owned()),
            });
            rest = inside.get(end + 1..).unwrap_or_default();
        } else {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            if end == 0 {
                break;
            }
            steps.push(Step::Field(rest[..end].to_owned()));
            rest = &rest[end..];
        }
    }
    steps
}

/// The node a path leads to, or the deepest one on the way that exists, with the place to show for it: the key of a
/// field, the start of a list item. The flag says whether the whole path exists.
pub fn locate<'a>(root: &'a Node, path: &str) -> (&'a Node, Position, bool) {
    let (mut node, mut at) = (root, root.at);
    for step in steps(path) {
        let next = match (&node.value, &step) {
            (Value::Map(entries), Step::Field(name)) => entries
                .iter()
                .find(|entry| entry.key == *name)
                .or_else(|| entries.iter().find(|entry| is_spelling_of(name, &entry.key)))
                .map(|entry| (&entry.value, entry.key_at)),
            (Value::List(items), Step::Item(index)) => items.get(*index).map(|item| (item, item.at)),
            _ => None,
        };
        match next {
            Some(found) => (node, at) = found,
            None => return (node, at, false),
        }
    }
    (node, at, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_comes_apart_as_it_was_put_together() {
        let mut path = FieldPath::default();
        path.enter_field("metadata");
        path.enter_field("labels");
        path.enter_field("app.kubernetes.io/name");
        assert_eq!(path.as_str(), "metadata.labels[\"app.kubernetes.io/name\"]");
        let fields = ["metadata", "labels", "app.kubernetes.io/name"].map(|name| Step::Field(name.to_owned()));
        assert_eq!(steps(path.as_str()), fields);
        assert_eq!(
            steps("spec.http[12].name"),
            [Step::Field("spec".into()), Step::Field("http".into()), Step::Item(12), Step::Field("name".into())]
        );
    }

    #[test]
    fn odd_paths_end_early_instead_of_panicking() {
        for path in ["", ".", "[", "[\"", "a..b", "a[", "a[x", "[\"]", "é.[1", "a]b"] {
            let _ = steps(path);
        }
    }
}
