//! Canonical proto3 JSON: how bootstrap files are read and dumps are written.
//!
//! JSON is turned into wire bytes, and wire bytes into JSON, by the [`Schema`]: no tree of dynamic values stands
//! between, which for a bootstrap of thousands of clusters would cost most of the time to the first answer.
mod read;
mod tree;
mod wellknown;
mod write;

use std::fmt;

use prost::{Message, Name};

use crate::schema::{MessageId, Schema};
pub use tree::Tree;
use write::{Unknown, Writer};

/// Nesting deeper than this is refused (protobuf's own decoding limit).
const MAX_DEPTH: usize = 100;

/// Reads and writes canonical JSON of any message this crate knows, `Any` included.
#[derive(Debug, Default)]
pub struct Codec {
    schema: Schema,
}

/// Why JSON did not become a message, or a message not JSON.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidJson {
    /// The descriptor set has no such message.
    #[error("unknown message type {0}")]
    UnknownType(String),
    /// The JSON does not fit the message.
    #[error("{0}")]
    Misfit(#[from] Misfit),
    /// The bytes do not decode.
    #[error("{0}")]
    Decode(#[from] prost::DecodeError),
}

/// Where JSON does not fit its message, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}{reason}", self.shown(), if self.path.is_empty() { "" } else { ": " })]
pub struct Misfit {
    /// From the outermost field inwards.
    pub path: Vec<Step>,
    pub reason: String,
}

/// One step into a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Key(String),
    Item(usize),
}

impl Misfit {
    fn new(reason: impl Into<String>) -> Self {
        Self { path: Vec::new(), reason: reason.into() }
    }

    /// The path as people write it: `static_resources.listeners[0].name`
    pub fn shown(&self) -> String {
        let mut text = String::new();
        for step in &self.path {
            text = match step {
                Step::Item(index) => format!("{text}[{index}]"),
                Step::Key(key) if text.is_empty() => key.clone(),
                Step::Key(key) => format!("{text}.{key}"),
            };
        }
        text
    }
}

/// Adds the step at which an inner value stands.
trait At {
    fn at(self, step: impl FnOnce() -> Step) -> Self;
}

impl<T> At for Result<T, Misfit> {
    fn at(self, step: impl FnOnce() -> Step) -> Self {
        self.map_err(|mut misfit| {
            misfit.path.insert(0, step());
            misfit
        })
    }
}

impl Codec {
    /// Finds its way around the descriptor set; messages are looked at when they are first met.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a message from JSON (`camelCase` or `snake_case`, unknown fields refused).
    ///
    /// # Errors
    /// When the JSON does not fit `M`, with the place.
    pub fn read<M: Message + Name + Default>(&self, json: &Tree<'_>) -> Result<M, InvalidJson> {
        Ok(M::decode(self.encode(&M::full_name(), json)?.as_slice())?)
    }

    /// The bytes of a message, named by its full name, from JSON.
    ///
    /// # Errors
    /// When the name is unknown, or the JSON does not fit it, with the place.
    pub fn encode(&self, full_name: &str, json: &Tree<'_>) -> Result<Vec<u8>, InvalidJson> {
        Ok(read::message(&self.schema, self.named(full_name)?, json)?)
    }

    /// As [`Self::encode`], but unknown fields, and values that an enum does not have, are left out. Also what was, up to some
    /// number of them.
    ///
    /// # Errors
    /// When the name is unknown, or the rest of the JSON does not fit it, with the place.
    pub fn encode_known(&self, full_name: &str, json: &Tree<'_>) -> Result<(Vec<u8>, Vec<Misfit>), InvalidJson> {
        Ok(read::known(&self.schema, self.named(full_name)?, json)?)
    }

    /// Writes a message as Envoy's admin endpoints do: `snake_case` names, defaults left out.
    ///
    /// # Errors
    /// When an `Any` inside names an unknown type.
    pub fn write<M: Message + Name>(&self, message: &M) -> Result<serde_json::Value, InvalidJson> {
        self.write_bytes(&M::full_name(), &message.encode_to_vec())
    }

    /// Writes an encoded message, named by its full name, as JSON.
    ///
    /// # Errors
    /// When the name is unknown or the bytes do not decode.
    pub fn write_bytes(&self, full_name: &str, bytes: &[u8]) -> Result<serde_json::Value, InvalidJson> {
        self.written(full_name, bytes, Unknown::Refused)
    }

    /// The same for whoever only looks at it: an `Any` of an unknown type is its type alone, and the rest can be seen.
    ///
    /// # Errors
    /// When the name is unknown or the bytes do not decode.
    pub fn show_bytes(&self, full_name: &str, bytes: &[u8]) -> Result<serde_json::Value, InvalidJson> {
        self.written(full_name, bytes, Unknown::Named)
    }

    /// What it knows of messages.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    fn written(&self, full_name: &str, bytes: &[u8], unknown: Unknown) -> Result<serde_json::Value, InvalidJson> {
        Writer { schema: &self.schema, unknown }.message(self.named(full_name)?, bytes, 0)
    }

    fn named(&self, full_name: &str) -> Result<MessageId, InvalidJson> {
        self.schema.message_named(full_name).ok_or_else(|| InvalidJson::UnknownType(full_name.to_owned()))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => f.write_str(key),
            Self::Item(index) => write!(f, "[{index}]"),
        }
    }
}

#[cfg(test)]
mod tests;
