//! The positioned tree: what a document says, and where it says it.
use serde_json::{Map, Value as Json};

/// A place in a file, both counted from 1. `Position::default()` (0:0) is "no place known".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub line: u32,
    pub column: u32,
}

/// A value and the place of its first character.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub value: Value,
    pub at: Position,
}

/// A key of a mapping with its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub key: String,
    pub key_at: Position,
    pub value: Node,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    /// The flag and how it was written, because `yes` and `on` are booleans to Kubernetes and surprise people.
    Bool(bool, Box<str>),
    Number(Number),
    String(String),
    List(Vec<Node>),
    /// In the order of the file; keys are unique.
    Map(Vec<Entry>),
}

/// A number and how it was written: `1.10` is a number that people mean as a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Number {
    pub text: Box<str>,
    /// The value when it is whole.
    pub int: Option<i128>,
    pub float: f64,
}

impl Value {
    /// The word a message uses for what stands there.
    pub fn describe(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(..) => "a boolean",
            Self::Number(_) => "a number",
            Self::String(_) => "a string",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

impl Node {
    /// The value under `key` of a mapping, in the spelling of the file.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// The entry of `key` of a mapping, in the spelling of the file.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The same value without positions.
    pub fn to_json(&self) -> Json {
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(flag, _) => Json::Bool(*flag),
            Value::Number(number) => number.to_json(),
            Value::String(text) => Json::String(text.clone()),
            Value::List(items) => Json::Array(items.iter().map(Node::to_json).collect()),
            Value::Map(entries) => {
                Json::Object(entries.iter().map(|entry| (entry.key.clone(), entry.value.to_json())).collect::<Map<_, _>>())
            }
        }
    }
}

impl Number {
    fn to_json(&self) -> Json {
        let whole = self.int.and_then(|int| match i64::try_from(int) {
            Ok(signed) => Some(Json::from(signed)),
            Err(_) => u64::try_from(int).ok().map(Json::from),
        });
        // `.inf` and `.nan` have no JSON form: their spelling is kept instead.
        whole.or_else(|| serde_json::Number::from_f64(self.float).map(Json::Number)).unwrap_or_else(|| Json::String(self.text.to_string()))
    }
}
