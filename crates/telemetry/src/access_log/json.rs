//! Log lines as JSON objects, one a line, keys sorted as Envoy sorts them.
use super::compile::InvalidFormat;
use super::op::{Found, Op};
use super::record::Record;
use super::text::TextFormat;
use std::collections::BTreeMap;
use std::io::Write as _;

/// A compiled JSON format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonFormat {
    root: Node,
    omit_missing: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Object(Vec<(String, Node)>),
    List(Vec<Node>),
    /// A whole value that is one operator keeps its type; a template is a string.
    Template(TextFormat),
    /// Ready JSON: numbers, booleans, null of the configuration.
    Fixed(String),
}

/// Deeper formats are refused: they come from outside and would be walked recursively.
const MAX_DEPTH: usize = 16;

impl JsonFormat {
    /// Compiles Envoy's `json_format`: an object whose strings are formats.
    ///
    /// # Errors
    /// [`InvalidFormat`] naming the operator at fault.
    pub fn compile(format: &serde_json::Value) -> Result<Self, InvalidFormat> {
        Ok(Self { root: Node::compile(format, 0)?, omit_missing: false })
    }

    /// Compiles pairs of key and format.
    ///
    /// # Errors
    /// As [`Self::compile`].
    pub fn from_pairs(pairs: &[(&str, &str)]) -> Result<Self, InvalidFormat> {
        let object = pairs.iter().map(|(key, format)| ((*key).to_owned(), serde_json::Value::from(*format))).collect();
        Self::compile(&serde_json::Value::Object(object))
    }

    /// Leaves missing values out, instead of printing null or `-`, and with them objects that hold nothing else
    /// (`omit_empty_values` of Envoy).
    pub fn omit_missing(mut self) -> Self {
        self.omit_missing = true;
        self.root.omit_missing();
        self
    }

    /// Appends the object and a line feed.
    pub fn write<R: Record + ?Sized>(&self, record: &R, out: &mut Vec<u8>) {
        if !self.root.write(record, self.omit_missing, out) {
            out.extend_from_slice(b"{}");
        }
        out.push(b'\n');
    }
}

impl Node {
    fn compile(value: &serde_json::Value, depth: usize) -> Result<Self, InvalidFormat> {
        use serde_json::Value;
        if depth > MAX_DEPTH {
            return Err(InvalidFormat::TooDeep(MAX_DEPTH));
        }
        Ok(match value {
            Value::Object(map) => {
                let sorted: BTreeMap<&String, &Value> = map.iter().collect();
                let fields = sorted.into_iter().map(|(key, value)| Ok((key.clone(), Self::compile(value, depth + 1)?)));
                Self::Object(fields.collect::<Result<_, _>>()?)
            }
            Value::Array(items) => Self::List(items.iter().map(|item| Self::compile(item, depth + 1)).collect::<Result<_, _>>()?),
            Value::String(format) => Self::Template(TextFormat::compile(format)?),
            Value::Number(number) => Self::Fixed(shown(number)),
            Value::Bool(_) | Value::Null => Self::Fixed(value.to_string()),
        })
    }

    /// What prints as null always is left out too, and inside of a text what is missing prints as nothing.
    fn omit_missing(&mut self) {
        let is_null = |node: &Self| matches!(node, Self::Fixed(json) if json == "null");
        match self {
            Self::Object(fields) => {
                fields.retain(|(_, node)| !is_null(node));
                fields.iter_mut().for_each(|(_, node)| node.omit_missing());
            }
            Self::List(items) => {
                items.retain(|node| !is_null(node));
                items.iter_mut().for_each(Self::omit_missing);
            }
            Self::Template(format) => format.leave_missing_out(),
            Self::Fixed(_) => {}
        }
    }

    /// Appends the value; false when it was missing: the caller takes back what was appended.
    fn write<R: Record + ?Sized>(&self, record: &R, omit: bool, out: &mut Vec<u8>) -> bool {
        match self {
            Self::Object(fields) => {
                let begin = out.len();
                out.push(b'{');
                let first = out.len();
                for (key, value) in fields {
                    let start = out.len();
                    if start > first {
                        out.push(b',');
                    }
                    push_string(key.as_bytes(), out);
                    out.push(b':');
                    if !value.write(record, omit, out) {
                        out.truncate(start);
                    }
                }
                if omit && out.len() == first {
                    out.truncate(begin);
                    return false;
                }
                out.push(b'}');
                true
            }
            Self::List(items) => {
                out.push(b'[');
                let first = out.len();
                for item in items {
                    let start = out.len();
                    if start > first {
                        out.push(b',');
                    }
                    if !item.write(record, omit, out) {
                        out.truncate(start);
                    }
                }
                out.push(b']');
                true
            }
            Self::Template(format) => write_template(format, record, omit, out),
            Self::Fixed(json) => {
                out.extend_from_slice(json.as_bytes());
                true
            }
        }
    }
}

/// A number of protobuf's is a fraction always: one that is whole is written as such.
fn shown(number: &serde_json::Number) -> String {
    const EXACT: f64 = (1_u64 << f64::MANTISSA_DIGITS) as f64;
    match number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < EXACT) {
        Some(whole) => format!("{whole:.0}"),
        None => number.to_string(),
    }
}

fn write_template<R: Record + ?Sized>(format: &TextFormat, record: &R, omit: bool, out: &mut Vec<u8>) -> bool {
    let mut value = Vec::new();
    if let Some(Op::Field(field, limit)) = format.single() {
        match field.write(record, *limit, &mut value) {
            // Cut short, JSON is a text like any other.
            Found::Json if limit.is_some() => push_string(&value, out),
            Found::Number | Found::Json => out.extend_from_slice(&value),
            Found::Text => push_string(&value, out),
            Found::Missing if omit => return false,
            Found::Missing => out.extend_from_slice(b"null"),
        }
    } else {
        format.write(record, &mut value);
        push_string(&value, out);
    }
    true
}

/// Appends a JSON string; bytes that are not UTF-8 become the replacement character.
fn push_string(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for c in String::from_utf8_lossy(bytes).chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            c if (c as u32) < 0x20 => {
                // Writing to a Vec cannot fail.
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.push(b'"');
}
