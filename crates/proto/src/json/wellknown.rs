//! Messages of `google.protobuf` that have JSON of their own.
use prost::Message as _;
use serde_json::{Map, Number, Value};

use super::read::{base64, delimited, eight, float, must, signed, text, unsigned, varint};
use super::tree::{Json, View};
use super::{InvalidJson, MAX_DEPTH, Misfit};
use crate::schema::Kind;

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WellKnown {
    Any,
    Duration,
    Timestamp,
    FieldMask,
    Struct,
    ListValue,
    Value,
    /// Written as the value alone.
    Wrapper(Kind),
}

impl WellKnown {
    pub(super) fn of(full_name: &str) -> Option<Self> {
        Some(match full_name.strip_prefix("google.protobuf.")? {
            "Any" => Self::Any,
            "Duration" => Self::Duration,
            "Timestamp" => Self::Timestamp,
            "FieldMask" => Self::FieldMask,
            "Struct" => Self::Struct,
            "ListValue" => Self::ListValue,
            "Value" => Self::Value,
            "BoolValue" => Self::Wrapper(Kind::Bool),
            "StringValue" => Self::Wrapper(Kind::String),
            "BytesValue" => Self::Wrapper(Kind::Bytes),
            "DoubleValue" => Self::Wrapper(Kind::Double),
            "FloatValue" => Self::Wrapper(Kind::Float),
            "Int32Value" => Self::Wrapper(Kind::Int32),
            "Int64Value" => Self::Wrapper(Kind::Int64),
            "UInt32Value" => Self::Wrapper(Kind::Uint32),
            "UInt64Value" => Self::Wrapper(Kind::Uint64),
            _ => return None,
        })
    }

    /// Appends the message's fields as bytes.
    pub(super) fn read(self, json: Json<'_>, out: &mut Vec<u8>) -> Result<(), Misfit> {
        match self {
            // Needs the schema; the reader does it.
            Self::Any => {}
            Self::Duration => {
                let duration: prost_types::Duration = text(json)?.parse().map_err(|_| must("a duration in seconds such as 1.5s", json))?;
                out.extend(duration.encode_to_vec());
            }
            Self::Timestamp => {
                let time: prost_types::Timestamp = text(json)?.parse().map_err(|_| must("a time such as 2024-01-31T12:00:00Z", json))?;
                out.extend(time.encode_to_vec());
            }
            Self::FieldMask => {
                for path in text(json)?.split(',').filter(|p| !p.is_empty()) {
                    delimited(1, snake_case(path).as_bytes(), out);
                }
            }
            Self::Struct => out.extend(structure(json, 0)?.encode_to_vec()),
            Self::ListValue => out.extend(list(json, 0)?.encode_to_vec()),
            Self::Value => out.extend(value(json, 0)?.encode_to_vec()),
            Self::Wrapper(kind) => wrap(kind, json, out)?,
        }
        Ok(())
    }

    /// The JSON of an encoded message.
    pub(super) fn write(self, bytes: &[u8]) -> Result<Value, InvalidJson> {
        Ok(match self {
            Self::Any => Value::Null,
            Self::Duration => Value::String(prost_types::Duration::decode(bytes)?.to_string()),
            Self::Timestamp => Value::String(prost_types::Timestamp::decode(bytes)?.to_string()),
            Self::FieldMask => {
                let mask = prost_types::FieldMask::decode(bytes)?;
                Value::String(mask.paths.iter().map(|p| camel_case(p)).collect::<Vec<_>>().join(","))
            }
            Self::Struct => unstructure(prost_types::Struct::decode(bytes)?),
            Self::ListValue => Value::Array(prost_types::ListValue::decode(bytes)?.values.into_iter().map(unvalue).collect()),
            Self::Value => unvalue(prost_types::Value::decode(bytes)?),
            Self::Wrapper(kind) => unwrap(kind, bytes)?,
        })
    }
}

fn wrap(kind: Kind, json: Json<'_>, out: &mut Vec<u8>) -> Result<(), Misfit> {
    match kind {
        Kind::Bool => varint(1, u64::from(json.as_bool().ok_or_else(|| must("true or false", json))?), out),
        Kind::String => delimited(1, text(json)?.as_bytes(), out),
        Kind::Bytes => delimited(1, &base64(json)?, out),
        Kind::Double => eight(1, float(json)?.to_le_bytes(), out),
        Kind::Int32 => varint(1, i64::from(signed::<i32>(json)?) as u64, out),
        Kind::Int64 => varint(1, signed::<i64>(json)? as u64, out),
        Kind::Uint32 => varint(1, unsigned::<u32>(json)?.into(), out),
        Kind::Uint64 => varint(1, unsigned::<u64>(json)?, out),
        // There are no wrappers of other kinds than these and `float`.
        _ => out.extend((float(json)? as f32).encode_to_vec()),
    }
    Ok(())
}

/// prost encodes the wrappers as the plain types.
fn unwrap(kind: Kind, bytes: &[u8]) -> Result<Value, prost::DecodeError> {
    Ok(match kind {
        Kind::Bool => Value::Bool(bool::decode(bytes)?),
        Kind::String => Value::String(String::decode(bytes)?),
        Kind::Bytes => super::write::base64(&Vec::<u8>::decode(bytes)?),
        Kind::Double => number(f64::decode(bytes)?),
        Kind::Int32 => i32::decode(bytes)?.into(),
        Kind::Int64 => i64::decode(bytes)?.to_string().into(),
        Kind::Uint32 => u32::decode(bytes)?.into(),
        Kind::Uint64 => u64::decode(bytes)?.to_string().into(),
        _ => single(f32::decode(bytes)?),
    })
}

/// A number, or the names that JSON has not.
pub(super) fn number(value: f64) -> Value {
    match Number::from_f64(value) {
        Some(number) => Value::Number(number),
        None if value.is_nan() => "NaN".into(),
        None if value > 0.0 => "Infinity".into(),
        None => "-Infinity".into(),
    }
}

/// The shortest digits that name it, not those of the wider type.
pub(super) fn single(value: f32) -> Value {
    if value.is_finite() { number(value.to_string().parse().unwrap_or_default()) } else { number(value.into()) }
}

fn structure(json: Json<'_>, depth: usize) -> Result<prost_types::Struct, Misfit> {
    let fields = json.as_map().ok_or_else(|| must("a mapping", json))?;
    let fields = fields.map(|(key, inner)| Ok((key.to_owned(), value(inner, depth + 1)?)));
    Ok(prost_types::Struct { fields: fields.collect::<Result<_, Misfit>>()? })
}

fn list(json: Json<'_>, depth: usize) -> Result<prost_types::ListValue, Misfit> {
    let items = json.as_list().ok_or_else(|| Misfit::new("must be a list"))?;
    Ok(prost_types::ListValue { values: items.map(|inner| value(inner, depth + 1)).collect::<Result<_, Misfit>>()? })
}

fn value(json: Json<'_>, depth: usize) -> Result<prost_types::Value, Misfit> {
    use prost_types::value::Kind;
    // Each level of these is two or three levels of messages to whoever decodes them.
    if depth > MAX_DEPTH / 3 {
        return Err(Misfit::new("is nested too deep"));
    }
    let kind = match json.view() {
        View::Null => Kind::NullValue(0),
        View::Bool(truth) => Kind::BoolValue(truth),
        View::Signed(_) | View::Unsigned(_) | View::Float(_) => Kind::NumberValue(float(json)?),
        View::Text(text) => Kind::StringValue(text.to_owned()),
        View::List(_) => Kind::ListValue(list(json, depth)?),
        View::Map(_) => Kind::StructValue(structure(json, depth)?),
    };
    Ok(prost_types::Value { kind: Some(kind) })
}

fn unstructure(value: prost_types::Struct) -> Value {
    Value::Object(value.fields.into_iter().map(|(key, inner)| (key, unvalue(inner))).collect::<Map<_, _>>())
}

fn unvalue(value: prost_types::Value) -> Value {
    use prost_types::value::Kind;
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(b)) => Value::Bool(b),
        Some(Kind::NumberValue(n)) => number(n),
        Some(Kind::StringValue(s)) => Value::String(s),
        Some(Kind::ListValue(list)) => Value::Array(list.values.into_iter().map(unvalue).collect()),
        Some(Kind::StructValue(inner)) => unstructure(inner),
    }
}

fn snake_case(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

fn camel_case(path: &str) -> String {
    let mut parts = path.split('_');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let mut chars = part.chars();
        out.extend(chars.next().map(|c| c.to_ascii_uppercase()));
        out.push_str(chars.as_str());
    }
    out
}
