//! JSON to protobuf messages, with the field's path when the two do not fit.
use lateen_proto::json::Codec;
use prost::{Message, Name};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::Value;

use super::yaml::Step;

/// Where JSON does not fit its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Misfit {
    pub(super) path: Vec<Step>,
    pub(super) reason: String,
}

impl Misfit {
    /// `static_resources.listeners[0].name`
    pub(super) fn shown(&self) -> String {
        let mut text = String::new();
        for step in &self.path {
            match step {
                Step::Item(index) => text.push_str(&format!("[{index}]")),
                Step::Key(key) if text.is_empty() => text.push_str(key),
                Step::Key(key) => {
                    text.push('.');
                    text.push_str(key);
                }
            }
        }
        text
    }
}

/// Reads a message. The costly search for the path is made only when reading failed.
pub(super) fn read<M: Message + Name + Default>(codec: &Codec, json: &Value) -> Result<M, Misfit> {
    codec.read::<M>(json.clone()).map_err(|error| {
        let mut path = Vec::new();
        let found = codec.pool().get_message_by_name(&M::full_name()).and_then(|d| search(&d, json, &mut path, 0));
        match found {
            Some(reason) => Misfit { path, reason },
            None => Misfit { path: Vec::new(), reason: error.to_string() },
        }
    })
}

/// The reason why `json` is no `message`, and into `path` where; `None` when it is one.
fn search(message: &MessageDescriptor, json: &Value, path: &mut Vec<Step>, depth: usize) -> Option<String> {
    if depth > 100 {
        return Some("is nested too deep".to_owned());
    }
    let error = DynamicMessage::deserialize(message.clone(), json.clone()).err()?;
    if message.full_name() == "google.protobuf.Any" {
        return Some(search_any(message, json, path, depth).unwrap_or_else(|| error.to_string()));
    }
    if message.full_name().starts_with("google.protobuf.") {
        return Some(plain_reason(&error));
    }
    let Some(fields) = json.as_object() else { return Some(format!("must be a mapping of fields of {}", message.name())) };
    for (key, value) in fields {
        path.push(Step::Key(key.clone()));
        let found = match field_of(message, key) {
            None => Some(unknown(message, key)),
            Some(field) => search_field(message, &field, key, value, path, depth),
        };
        if found.is_some() {
            return found;
        }
        path.pop();
    }
    Some(plain_reason(&error))
}

fn search_any(message: &MessageDescriptor, json: &Value, path: &mut Vec<Step>, depth: usize) -> Option<String> {
    let fields = json.as_object()?;
    let Some(url) = fields.get("@type").and_then(Value::as_str) else { return Some("has no `@type`".to_owned()) };
    let name = url.rsplit('/').next().unwrap_or(url);
    let Some(inner) = message.parent_pool().get_message_by_name(name) else { return Some(format!("`{name}` is not a known type")) };
    let rest = fields.iter().filter(|(k, _)| *k != "@type").map(|(k, v)| (k.clone(), v.clone())).collect();
    search(&inner, &Value::Object(rest), path, depth + 1)
}

fn search_field(
    message: &MessageDescriptor,
    field: &FieldDescriptor,
    key: &str,
    value: &Value,
    path: &mut Vec<Step>,
    depth: usize,
) -> Option<String> {
    let alone = Value::Object([(key.to_owned(), value.clone())].into_iter().collect());
    let error = DynamicMessage::deserialize(message.clone(), alone).err()?;
    let fallback = || Some(plain_reason(&error));
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else { return fallback() };
        let Kind::Message(inner) = entry.map_entry_value_field().kind() else { return fallback() };
        for (name, value) in value.as_object()? {
            path.push(Step::Key(name.clone()));
            if let Some(found) = search(&inner, value, path, depth + 1) {
                return Some(found);
            }
            path.pop();
        }
        return fallback();
    }
    let Kind::Message(inner) = field.kind() else { return fallback() };
    if !field.is_list() {
        return search(&inner, value, path, depth + 1).or_else(fallback);
    }
    let Some(items) = value.as_array() else { return Some("must be a list".to_owned()) };
    for (index, item) in items.iter().enumerate() {
        path.push(Step::Item(index));
        if let Some(found) = search(&inner, item, path, depth + 1) {
            return Some(found);
        }
        path.pop();
    }
    fallback()
}

fn field_of(message: &MessageDescriptor, key: &str) -> Option<FieldDescriptor> {
    message.get_field_by_name(key).or_else(|| message.get_field_by_json_name(key))
}

fn unknown(message: &MessageDescriptor, key: &str) -> String {
    let wanted = key.replace('_', "").to_ascii_lowercase();
    let best = message.fields().map(|f| (distance(&f.name().replace('_', ""), &wanted), f)).min_by_key(|(d, _)| *d);
    let hint = match best {
        Some((distance, field)) if distance <= 1 + wanted.len() / 4 => format!("; did you mean `{}`?", field.name()),
        _ => String::new(),
    };
    format!("is not a field of {}{hint}", message.name())
}

/// Edits from one word to the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
        for (j, y) in b.bytes().enumerate() {
            let (left, above) = (row.get(j).copied().unwrap_or(0), row.get(j + 1).copied().unwrap_or(0));
            let next = (diagonal + usize::from(x != y)).min(left + 1).min(above + 1);
            diagonal = above;
            if let Some(cell) = row.get_mut(j + 1) {
                *cell = next;
            }
        }
    }
    row.last().copied().unwrap_or(0)
}

/// Positions within a single field say nothing to the reader of a file.
fn plain_reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}
