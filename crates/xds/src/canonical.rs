//! Equal messages get equal bytes: map entries are put in order inside encoded resources.
//!
//! Protobuf leaves the order of map entries open, and a hash map writes them in another order each
//! time it is built. Without this step an unchanged resource would hash to another version on every
//! recomputation and be sent to every proxy again.
use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use lateen_proto::schema::{Cardinality, Kind, Message, MessageId, Schema};
use lateen_proto::{Any, any};
use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field};

/// Messages nested deeper than this are passed through as they are (protobuf's own decoding limit is 100).
const MAX_DEPTH: usize = 100;

static SCHEMA: LazyLock<Schema> = LazyLock::new(Schema::new);

/// Whether a message type can hold a map somewhere below it; most cannot and are copied unread.
static REACHES_MAP: LazyLock<Mutex<HashMap<MessageId, bool>>> = LazyLock::new(Mutex::default);

/// `body` with the entries of every map in ascending order of their bytes, also inside nested `Any`s.
/// A body of unknown type, or one whose bytes are not a valid message, comes back unchanged.
pub fn canonical(body: Any) -> Any {
    match ordered_any(&body.type_url, &body.value, 0) {
        Some(value) => Any { value, ..body },
        None => body,
    }
}

fn ordered_any(type_url: &str, value: &[u8], depth: usize) -> Option<Vec<u8>> {
    let message = SCHEMA.message_named(any::name_of(type_url))?;
    reaches_map(message).then(|| ordered(SCHEMA.message(message), value, depth)).flatten()
}

/// One field as it stands in the bytes.
enum Piece<'a> {
    Raw(&'a [u8]),
    Message { tag: u32, body: Vec<u8> },
}

fn ordered(shape: &Message, bytes: &[u8], depth: usize) -> Option<Vec<u8>> {
    if depth > MAX_DEPTH {
        return None;
    }
    if shape.full_name == "google.protobuf.Any" {
        return ordered_inside_any(bytes, depth);
    }
    let mut out = Vec::with_capacity(bytes.len());
    // The entries of one map field, each with its key and length, collected until the message ends.
    let mut maps: Vec<(u32, Vec<Vec<u8>>)> = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (tag, wire_type, whole, payload) = next_field(&mut rest)?;
        let field = shape.field(tag);
        let nested = match (field.map(|f| f.kind), wire_type) {
            (Some(Kind::Message(m)), WireType::LengthDelimited) if reaches_map(m) => Some(SCHEMA.message(m)),
            _ => None,
        };
        let piece = match nested {
            Some(m) => Piece::Message { tag, body: ordered(m, payload, depth + 1).unwrap_or_else(|| payload.to_vec()) },
            None => Piece::Raw(whole),
        };
        if field.is_some_and(|f| f.cardinality == Cardinality::Map) {
            let mut entry = Vec::new();
            write(&mut entry, piece);
            match maps.iter_mut().find(|(t, _)| *t == tag) {
                Some((_, entries)) => entries.push(entry),
                None => maps.push((tag, vec![entry])),
            }
        } else {
            write(&mut out, piece);
        }
    }
    maps.sort_by_key(|(tag, _)| *tag);
    for (_, mut entries) in maps {
        entries.sort();
        entries.iter().for_each(|e| out.extend_from_slice(e));
    }
    Some(out)
}

/// An `Any` keeps a message under field 2 whose type is named by field 1.
fn ordered_inside_any(bytes: &[u8], depth: usize) -> Option<Vec<u8>> {
    let (mut type_url, mut value, mut rest) = (&[][..], &[][..], bytes);
    while !rest.is_empty() {
        match next_field(&mut rest)? {
            (1, WireType::LengthDelimited, _, payload) => type_url = payload,
            (2, WireType::LengthDelimited, _, payload) => value = payload,
            _ => return None,
        }
    }
    let inner = ordered_any(std::str::from_utf8(type_url).ok()?, value, depth + 1)?;
    let mut out = Vec::with_capacity(bytes.len());
    write(&mut out, Piece::Message { tag: 1, body: type_url.to_vec() });
    write(&mut out, Piece::Message { tag: 2, body: inner });
    Some(out)
}

/// Takes one field off the front: its number, its wire type, all its bytes, and (when length
/// delimited) what it holds.
fn next_field<'a>(rest: &mut &'a [u8]) -> Option<(u32, WireType, &'a [u8], &'a [u8])> {
    let start = *rest;
    let (tag, wire_type) = decode_key(rest).ok()?;
    let payload = if wire_type == WireType::LengthDelimited {
        let length = usize::try_from(decode_varint(rest).ok()?).ok()?;
        let payload = rest.get(..length)?;
        rest.advance(length);
        payload
    } else {
        skip_field(wire_type, tag, rest, DecodeContext::default()).ok()?;
        &[]
    };
    let whole = start.get(..start.len() - rest.len())?;
    Some((tag, wire_type, whole, payload))
}

fn write(out: &mut Vec<u8>, piece: Piece<'_>) {
    match piece {
        Piece::Raw(bytes) => out.extend_from_slice(bytes),
        Piece::Message { tag, body } => {
            encode_key(tag, WireType::LengthDelimited, out);
            encode_varint(body.len() as u64, out);
            out.extend_from_slice(&body);
        }
    }
}

fn reaches_map(message: MessageId) -> bool {
    if let Some(known) = REACHES_MAP.lock().unwrap_or_else(PoisonError::into_inner).get(&message) {
        return *known;
    }
    let found = search_map(message);
    REACHES_MAP.lock().unwrap_or_else(PoisonError::into_inner).insert(message, found);
    found
}

fn search_map(start: MessageId) -> bool {
    let mut seen = std::collections::HashSet::from([start]);
    let mut open = vec![start];
    while let Some(message) = open.pop() {
        let shape = SCHEMA.message(message);
        // An `Any` may hold anything.
        if shape.full_name == "google.protobuf.Any" {
            return true;
        }
        for field in &shape.fields {
            if field.cardinality == Cardinality::Map {
                return true;
            }
            if let Kind::Message(inner) = field.kind
                && seen.insert(inner)
            {
                open.push(inner);
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use lateen_proto::envoy::config::core::v3::Metadata;
    use lateen_proto::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
    use lateen_proto::{Struct, Value};
    use prost::Message;

    fn metadata(keys: impl Iterator<Item = u32>) -> Metadata {
        let value = Value { kind: Some(prost_types::value::Kind::NumberValue(1.0)) };
        Metadata {
            filter_metadata: keys
                .map(|k| (format!("key{k}"), Struct { fields: std::iter::once((format!("f{k}"), value.clone())).collect() }))
                .collect(),
            ..Default::default()
        }
    }

    /// A route table with maps at three depths, one of them inside an `Any`.
    fn routes(reverse: bool) -> RouteConfiguration {
        let order = || -> Box<dyn Iterator<Item = u32>> { if reverse { Box::new((0..40).rev()) } else { Box::new(0..40) } };
        let inner = any::pack(&metadata(order()));
        let host = VirtualHost {
            name: "v".into(),
            domains: vec!["b".into(), "a".into()],
            typed_per_filter_config: order().map(|k| (format!("filter{k}"), inner.clone())).collect(),
            ..Default::default()
        };
        RouteConfiguration { name: "r".into(), virtual_hosts: vec![host], metadata: Some(metadata(order())), ..Default::default() }
    }

    #[test]
    fn equal_messages_have_equal_bytes_whatever_order_their_maps_were_filled_in() {
        let encoded: Vec<Any> = (0..8).map(|i| any::pack(&routes(i % 2 == 0))).collect();
        let first = canonical(encoded[0].clone());
        for body in encoded {
            assert_eq!(canonical(body), first);
        }
    }

    #[test]
    fn the_message_itself_is_not_changed() {
        let before = routes(false);
        let after: RouteConfiguration = any::open(&canonical(any::pack(&before))).unwrap();
        assert_eq!(after.virtual_hosts[0].domains, ["b", "a"], "repeated fields keep their order");
        assert_eq!(after.metadata, before.metadata);
        assert_eq!(after.virtual_hosts[0].typed_per_filter_config.len(), 40);
        let opened: Metadata = any::open(&after.virtual_hosts[0].typed_per_filter_config["filter3"]).unwrap();
        assert_eq!(opened, metadata(0..40));
    }

    #[test]
    fn what_cannot_be_read_is_passed_through() {
        let unknown = Any { type_url: "type.googleapis.com/no.Such".into(), value: vec![1, 2, 3] };
        assert_eq!(canonical(unknown.clone()), unknown);
        let broken = Any { type_url: crate::types::ROUTE.into(), value: vec![0x0a, 0x7f] };
        assert_eq!(canonical(broken.clone()), broken);
        // A truncated message inside a valid one stays as it is.
        let half = Any { type_url: crate::types::ROUTE.into(), value: vec![0x0a, 0xff] };
        let outer = VirtualHost { typed_per_filter_config: std::iter::once(("f".to_owned(), half)).collect(), ..Default::default() };
        let body = Any { type_url: "type.googleapis.com/envoy.config.route.v3.VirtualHost".into(), value: outer.encode_to_vec() };
        assert_eq!(canonical(body.clone()), body);
    }
}
