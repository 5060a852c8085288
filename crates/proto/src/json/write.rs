//! Wire bytes to JSON.
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Buf;
use prost::Message as _;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use serde_json::{Map, Value};

use super::wellknown::{WellKnown, number, single};
use super::{InvalidJson, MAX_DEPTH, Misfit};
use crate::any;
use crate::schema::{Cardinality, Field, Kind, MessageId, Schema};

type Result<T> = std::result::Result<T, InvalidJson>;

/// A field's value on the wire.
enum Raw<'b> {
    Varint(u64),
    Four([u8; 4]),
    Eight([u8; 8]),
    Delimited(&'b [u8]),
}

/// What is done about an `Any` of a type that the schema does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unknown {
    Refused,
    /// Its type is written, and nothing of its bytes: nobody knows what of them is a secret.
    Named,
}

/// Writes messages of its schema.
pub(super) struct Writer<'s> {
    pub(super) schema: &'s Schema,
    pub(super) unknown: Unknown,
}

impl Writer<'_> {
    /// The message as JSON.
    pub(super) fn message(&self, id: MessageId, bytes: &[u8], depth: usize) -> Result<Value> {
        if depth > MAX_DEPTH {
            return Err(Misfit::new("is nested too deep").into());
        }
        let shape = self.schema.message(id);
        match WellKnown::of(&shape.full_name) {
            Some(WellKnown::Any) => return self.open_any(bytes, depth),
            Some(known) => return known.write(bytes),
            None => {}
        }
        let mut object = Map::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let (tag, wire_type) = decode_key(&mut rest)?;
            let Some(field) = shape.field(tag) else {
                skip_field(wire_type, tag, &mut rest, DecodeContext::default())?;
                continue;
            };
            let raw = take(tag, wire_type, &mut rest)?;
            self.add(field, raw, depth, &mut object)?;
            if let Some(oneof) = field.oneof {
                // The last of several counts.
                let others = shape.fields.iter().filter(|f| f.oneof == Some(oneof) && f.number != field.number);
                others.for_each(|other| drop(object.remove(&other.name)));
            }
        }
        Ok(Value::Object(object))
    }

    fn add(&self, field: &Field, raw: Raw<'_>, depth: usize, object: &mut Map<String, Value>) -> Result<()> {
        match field.cardinality {
            Cardinality::Single => {
                let is_default = !field.has_presence && is_zero(&raw);
                let value = self.value(field, raw, depth)?;
                if is_default {
                    object.remove(&field.name);
                } else {
                    object.insert(field.name.clone(), value);
                }
            }
            Cardinality::List => {
                let mut items = Vec::new();
                match raw {
                    // Numbers may stand packed, whatever the schema says.
                    Raw::Delimited(packed) if wire_type_of(field.kind) != WireType::LengthDelimited => {
                        let mut rest = packed;
                        while !rest.is_empty() {
                            let raw = take(field.number, wire_type_of(field.kind), &mut rest)?;
                            items.push(self.value(field, raw, depth)?);
                        }
                    }
                    raw => items.push(self.value(field, raw, depth)?),
                }
                let list = object.entry(&field.name).or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(list) = list {
                    list.append(&mut items);
                }
            }
            Cardinality::Map => {
                let (Kind::Message(entry), Raw::Delimited(bytes)) = (field.kind, raw) else { return Ok(()) };
                let (key, value) = self.map_entry(entry, bytes, depth)?;
                let map = object.entry(&field.name).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(map) = map {
                    map.insert(key, value);
                }
            }
        }
        Ok(())
    }

    fn map_entry(&self, entry: MessageId, bytes: &[u8], depth: usize) -> Result<(String, Value)> {
        let shape = self.schema.message(entry);
        let (mut key, mut held) = (None, None);
        let mut rest = bytes;
        while !rest.is_empty() {
            let (tag, wire_type) = decode_key(&mut rest)?;
            let raw = take(tag, wire_type, &mut rest)?;
            match shape.field(tag) {
                Some(field) if tag == 1 => key = Some(self.value(field, raw, depth)?),
                Some(field) if tag == 2 => held = Some(self.value(field, raw, depth)?),
                _ => {}
            }
        }
        // An absent key or value is the zero one.
        let zero = |number: u32| match shape.field(number) {
            Some(field) => self.value(field, zero_of(field.kind), depth),
            None => Ok(Value::Null),
        };
        let key = match key.map_or_else(|| zero(1), Ok)? {
            Value::String(key) => key,
            other => other.to_string(),
        };
        Ok((key, held.map_or_else(|| zero(2), Ok)?))
    }

    fn value(&self, field: &Field, raw: Raw<'_>, depth: usize) -> Result<Value> {
        Ok(match (field.kind, raw) {
            (Kind::Message(id), Raw::Delimited(bytes)) => self.message(id, bytes, depth + 1)?,
            (Kind::String, Raw::Delimited(bytes)) => {
                let text = std::str::from_utf8(bytes).map_err(|_| Misfit::new(format!("{} is not UTF-8", field.name)))?;
                text.into()
            }
            (Kind::Bytes, Raw::Delimited(bytes)) => base64(bytes),
            (Kind::Bool, Raw::Varint(n)) => (n != 0).into(),
            (Kind::Enum(id), Raw::Varint(n)) => {
                let names = &self.schema.enumeration(id).values;
                names.iter().find(|(_, number)| *number == n as i32).map_or_else(|| (n as i32).into(), |(name, _)| name.as_str().into())
            }
            (Kind::Int32, Raw::Varint(n)) => (n as i32).into(),
            (Kind::Uint32, Raw::Varint(n)) => (n as u32).into(),
            (Kind::Int64, Raw::Varint(n)) => (n as i64).to_string().into(),
            (Kind::Uint64, Raw::Varint(n)) => n.to_string().into(),
            (Kind::Sint32, Raw::Varint(n)) => (unzigzag(n) as i32).into(),
            (Kind::Sint64, Raw::Varint(n)) => unzigzag(n).to_string().into(),
            (Kind::Fixed32, Raw::Four(bytes)) => u32::from_le_bytes(bytes).into(),
            (Kind::Sfixed32, Raw::Four(bytes)) => i32::from_le_bytes(bytes).into(),
            (Kind::Float, Raw::Four(bytes)) => single(f32::from_le_bytes(bytes)),
            (Kind::Fixed64, Raw::Eight(bytes)) => u64::from_le_bytes(bytes).to_string().into(),
            (Kind::Sfixed64, Raw::Eight(bytes)) => i64::from_le_bytes(bytes).to_string().into(),
            (Kind::Double, Raw::Eight(bytes)) => number(f64::from_le_bytes(bytes)),
            _ => return Err(Misfit::new(format!("{} has another wire type than its kind", field.name)).into()),
        })
    }

    fn open_any(&self, bytes: &[u8], depth: usize) -> Result<Value> {
        let packed = prost_types::Any::decode(bytes)?;
        if packed.type_url.is_empty() {
            return Ok(Value::Object(Map::new()));
        }
        let name = any::name_of(&packed.type_url);
        let mut object = Map::new();
        object.insert("@type".to_owned(), packed.type_url.clone().into());
        let Some(id) = self.schema.message_named(name) else {
            return match self.unknown {
                Unknown::Refused => Err(InvalidJson::UnknownType(name.to_owned())),
                Unknown::Named => Ok(Value::Object(object)),
            };
        };
        match self.message(id, &packed.value, depth + 1)? {
            Value::Object(fields) if WellKnown::of(name).is_none() => object.extend(fields),
            other => drop(object.insert("value".to_owned(), other)),
        }
        Ok(Value::Object(object))
    }
}

fn take<'b>(tag: u32, wire_type: WireType, rest: &mut &'b [u8]) -> Result<Raw<'b>> {
    Ok(match wire_type {
        WireType::Varint => Raw::Varint(decode_varint(rest)?),
        WireType::ThirtyTwoBit => Raw::Four(fixed(rest)?),
        WireType::SixtyFourBit => Raw::Eight(fixed(rest)?),
        WireType::LengthDelimited => {
            let length = usize::try_from(decode_varint(rest)?).unwrap_or(usize::MAX);
            let bytes = rest.get(..length).ok_or_else(|| truncated(tag))?;
            rest.advance(length);
            Raw::Delimited(bytes)
        }
        WireType::StartGroup | WireType::EndGroup => return Err(Misfit::new(format!("field {tag} is a group")).into()),
    })
}

fn fixed<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N]> {
    let (front, after) = rest.split_first_chunk::<N>().ok_or_else(|| truncated(0))?;
    *rest = after;
    Ok(*front)
}

fn truncated(tag: u32) -> InvalidJson {
    Misfit::new(format!("the message ends within field {tag}")).into()
}

pub(super) fn base64(bytes: &[u8]) -> Value {
    STANDARD.encode(bytes).into()
}

fn is_zero(raw: &Raw<'_>) -> bool {
    match raw {
        Raw::Varint(n) => *n == 0,
        Raw::Four(bytes) => *bytes == [0; 4],
        Raw::Eight(bytes) => *bytes == [0; 8],
        Raw::Delimited(bytes) => bytes.is_empty(),
    }
}

fn wire_type_of(kind: Kind) -> WireType {
    match kind {
        Kind::Message(_) | Kind::String | Kind::Bytes => WireType::LengthDelimited,
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => WireType::ThirtyTwoBit,
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => WireType::SixtyFourBit,
        _ => WireType::Varint,
    }
}

fn zero_of(kind: Kind) -> Raw<'static> {
    match wire_type_of(kind) {
        WireType::ThirtyTwoBit => Raw::Four([0; 4]),
        WireType::SixtyFourBit => Raw::Eight([0; 8]),
        WireType::LengthDelimited => Raw::Delimited(&[]),
        _ => Raw::Varint(0),
    }
}

fn unzigzag(n: u64) -> i64 {
    ((n >> 1) as i64) ^ -((n & 1) as i64)
}
