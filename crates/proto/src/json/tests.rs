//! Against the reflection library, on messages drawn at random from the whole schema; and what errors say.
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::{Map, Value, json};

use super::*;
use crate::envoy::config::bootstrap::v3::Bootstrap;
use crate::envoy::config::listener::v3::Listener;
use crate::schema::{Cardinality, Field, Kind};

/// A small generator of numbers: the same run every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

struct Maker<'s> {
    schema: &'s Schema,
    dice: Dice,
}

impl Maker<'_> {
    fn message(&mut self, id: MessageId, depth: usize) -> Value {
        let shape = self.schema.message(id);
        if let Some(special) = self.special(&shape.full_name) {
            return special;
        }
        let (mut object, mut oneofs) = (Map::new(), Vec::new());
        for field in &shape.fields {
            if self.dice.roll(if depth < 3 { 3 } else { 12 }) > 0 || oneofs.contains(&field.oneof) && field.oneof.is_some() {
                continue;
            }
            let Some(value) = self.field(field, depth) else { continue };
            oneofs.push(field.oneof);
            let name = if self.dice.roll(2) == 0 { &field.name } else { &field.json_name };
            object.insert(name.clone(), value);
        }
        Value::Object(object)
    }

    fn special(&mut self, name: &str) -> Option<Value> {
        Some(match name.strip_prefix("google.protobuf.")? {
            "Any" => match self.dice.roll(3) {
                0 => json!({"@type": "type.googleapis.com/google.protobuf.Duration", "value": "2s"}),
                1 => json!({"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "x"}),
                _ => json!({"@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                            "stat_prefix": "x", "cluster": "c", "idleTimeout": "0.5s"}),
            },
            "Duration" => json!(["0s", "1s", "1.5s", "0.000000001s", "-3.250s", "86400s"][self.dice.roll(6) as usize]),
            "Timestamp" => json!(["1970-01-01T00:00:00Z", "2024-02-29T12:30:45.123Z"][self.dice.roll(2) as usize]),
            "FieldMask" => json!("a.b,fooBar"),
            "Struct" => json!({"a": 1.5, "b": [true, null, "x", {"c": {}}]}),
            "ListValue" => json!([1, "a", null]),
            "Value" => [json!(null), json!("x"), json!(3), json!([1]), json!({"k": false})][self.dice.roll(5) as usize].clone(),
            "BoolValue" => json!(self.dice.roll(2) == 0),
            "StringValue" => json!(["", "text"][self.dice.roll(2) as usize]),
            "BytesValue" => json!("AQID"),
            "DoubleValue" | "FloatValue" => json!([0.0, 1.25, -3.5][self.dice.roll(3) as usize]),
            "Int32Value" | "Int64Value" => json!(self.dice.roll(100) as i64 - 50),
            "UInt32Value" | "UInt64Value" => json!(self.dice.roll(100)),
            _ => return None,
        })
    }

    fn field(&mut self, field: &Field, depth: usize) -> Option<Value> {
        let count = 1 + self.dice.roll(2);
        match field.cardinality {
            Cardinality::Single => self.value(field, depth),
            Cardinality::List => (0..count).map(|_| self.value(field, depth)).collect::<Option<Vec<_>>>().map(Value::Array),
            Cardinality::Map => {
                let Kind::Message(entry) = field.kind else { return None };
                let entry = self.schema.message(entry);
                let key = if entry.field(1)?.kind == Kind::String { "some key" } else { "7" };
                Some(json!({ key: self.value(entry.field(2)?, depth)? }))
            }
        }
    }

    fn value(&mut self, field: &Field, depth: usize) -> Option<Value> {
        let small = self.dice.roll(300);
        Some(match field.kind {
            Kind::Message(_) if depth > 5 => return None,
            Kind::Message(id) => self.message(id, depth + 1),
            Kind::Enum(id) => {
                let values = &self.schema.enumeration(id).values;
                json!(values[small as usize % values.len()].0)
            }
            Kind::Bool => json!(small.is_multiple_of(2)),
            Kind::String => json!(["", "x", "ein Wort ✓"][small as usize % 3]),
            Kind::Bytes => json!(["", "AQID", "_-8"][small as usize % 3]),
            Kind::Double | Kind::Float => [json!(0), json!(0.1), json!("Infinity")][small as usize % 3].clone(),
            Kind::Int32 | Kind::Int64 | Kind::Sint32 | Kind::Sint64 | Kind::Sfixed32 | Kind::Sfixed64 => json!(small as i64 - 150),
            _ => [json!(small), json!(small.to_string())][small as usize % 2].clone(),
        })
    }
}

#[test]
fn messages_of_every_kind_are_read_and_written_as_the_reflection_library_does() {
    let (codec, pool) = (Codec::new(), DescriptorPool::decode(crate::DESCRIPTORS).unwrap());
    let mut maker = Maker { schema: &codec.schema, dice: Dice(7) };
    let options = SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(true);
    let mut compared = 0;
    for descriptor in pool.all_messages().filter(|m| !m.is_map_entry() && m.full_name().starts_with("envoy.")) {
        for _ in 0..3 {
            let json = maker.message(codec.named(descriptor.full_name()).unwrap(), 0);
            let theirs = DynamicMessage::deserialize(descriptor.clone(), json.clone()).unwrap_or_else(|e| panic!("{e}\n{json:#}"));
            let bytes = codec
                .encode(descriptor.full_name(), &(&json).into())
                .unwrap_or_else(|e| panic!("{}: {e}\n{json:#}", descriptor.full_name()));
            let ours = DynamicMessage::decode(descriptor.clone(), bytes.as_slice()).unwrap();
            let shown = |m: &DynamicMessage| m.serialize_with_options(serde_json::value::Serializer, &options).unwrap();
            let expected = shown(&theirs);
            assert_eq!(shown(&ours), expected, "{}\n{json:#}", descriptor.full_name());
            let written = codec.write_bytes(descriptor.full_name(), &theirs.encode_to_vec()).unwrap();
            assert_eq!(written, expected, "{}", descriptor.full_name());
            compared += 1;
        }
    }
    assert!(compared > 1000, "{compared}");
}

/// What is wrong with a listener.
fn told(json: Value) -> String {
    Codec::new().read::<Listener>(&(&json).into()).unwrap_err().to_string()
}

#[test]
fn what_does_not_fit_is_told_with_its_place() {
    let chain = |filter: Value| json!({"filterChains": [{}, {"filters": [filter]}]});
    let tcp = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    for (json, expected) in [
        (json!({"nmae": "l"}), "nmae: is not a field of Listener; did you mean `name`?"),
        (json!({"quite_another_thing": 1}), "quite_another_thing: is not a field of Listener"),
        (json!({"name": 3}), "name: must be a string, not 3"),
        (json!([]), "must be a mapping of fields of Listener"),
        (json!({"filter_chains": {}}), "filter_chains: must be a list"),
        (json!({"filter_chains": [null]}), "filter_chains[0]: must not be null"),
        (json!({"filter_chains": [], "filterChains": []}), "filterChains: stands twice; `filter_chains` and `filterChains` are the same"),
        (json!({"traffic_direction": "SIDEWAYS"}), "traffic_direction: `SIDEWAYS` is not one of UNSPECIFIED, INBOUND, OUTBOUND"),
        (
            json!({"per_connection_buffer_limit_bytes": -1}),
            "per_connection_buffer_limit_bytes: must be a whole number from 0 to 4294967295, not -1",
        ),
        (json!({"listener_filters_timeout": "5"}), "listener_filters_timeout: must be a duration in seconds such as 1.5s, not \"5\""),
        (
            json!({"address": {"pipe": {"path": "p"}, "socket_address": {}}}),
            "address.socket_address: cannot stand beside `pipe`; choose one",
        ),
        (chain(json!({"typed_config": {"name": "x"}})), "filterChains[1].filters[0].typed_config: has no `@type`"),
        (
            chain(json!({"typed_config": {"@type": "x/google.protobuf.Struct", "a": 1}})),
            "filterChains[1].filters[0].typed_config: has no `value`",
        ),
        (chain(json!({"typed_config": {"@type": "x/no.Such"}})), "filterChains[1].filters[0].typed_config: `no.Such` is not a known type"),
        (
            chain(json!({"typed_config": {"@type": tcp, "clutser": "c"}})),
            "filterChains[1].filters[0].typed_config.clutser: is not a field of TcpProxy; did you mean `cluster`?",
        ),
        (json!({"metadata": {"filter_metadata": {"a b": 5}}}), "metadata.filter_metadata.a b: must be a mapping, not 5"),
    ] {
        assert_eq!(told(json), expected);
    }
}

#[test]
fn a_listener_survives_json_with_its_filter_inside_an_any() {
    let json = json!({
        "name": "l",
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "x", "cluster": "c"}}]}]
    });
    let codec = Codec::new();
    let listener: Listener = codec.read(&(&json).into()).unwrap();
    assert_eq!(codec.write(&listener).unwrap(), json);
}

#[test]
fn what_is_only_looked_at_may_hold_types_that_nobody_knows() {
    use crate::envoy::config::listener::v3::{Filter, FilterChain, filter::ConfigType};
    let unknown = prost_types::Any { type_url: "x/no.Such".to_owned(), value: b"a secret".to_vec() };
    let filter = Filter { name: "f".to_owned(), config_type: Some(ConfigType::TypedConfig(unknown)) };
    let chain = FilterChain { filters: vec![filter], ..FilterChain::default() };
    let listener = Listener { name: "l".to_owned(), filter_chains: vec![chain], ..Listener::default() };
    let codec = Codec::new();
    let shown = codec.show_bytes(&Listener::full_name(), &listener.encode_to_vec()).unwrap();
    let filter = json!({"name": "f", "typed_config": {"@type": "x/no.Such"}});
    assert_eq!(shown, json!({"name": "l", "filter_chains": [{"filters": [filter]}]}));
    assert_eq!(codec.write(&listener), Err(InvalidJson::UnknownType("no.Such".to_owned())));
}

#[test]
fn an_envelope_may_be_empty() {
    let json = json!({"name": "l", "filter_chains": [{"filters": [{"name": "x", "typed_config": {}}]}]});
    let codec = Codec::new();
    let listener: Listener = codec.read(&(&json).into()).unwrap();
    assert_eq!(codec.write(&listener).unwrap(), json);
}

#[test]
fn absent_and_null_are_the_same_but_for_values() {
    let codec = Codec::new();
    let bootstrap: Bootstrap = codec.read(&(&json!({"admin": null, "node": {"id": "a", "metadata": {"x": null}}})).into()).unwrap();
    assert!(bootstrap.admin.is_none());
    assert_eq!(codec.write(&bootstrap).unwrap(), json!({"node": {"id": "a", "metadata": {"x": null}}}));
}

#[test]
fn nesting_without_end_is_refused_and_not_followed() {
    let mut json = json!({});
    for _ in 0..100 {
        json = json!({"and_rules": {"rules": [json]}});
    }
    let type_name = "envoy.config.rbac.v3.Permission";
    let codec = Codec::new();
    assert!(codec.encode(type_name, &(&json).into()).unwrap_err().to_string().contains("too deep"));
    let mut structure = json!(1);
    for _ in 0..200 {
        structure = json!({ "a": structure });
    }
    assert!(codec.read::<Bootstrap>(&(&json!({"node": {"metadata": structure}})).into()).unwrap_err().to_string().contains("too deep"));
}

#[test]
fn bytes_that_are_no_message_are_refused() {
    let codec = Codec::new();
    for bytes in [&[0x0a, 0x05, b'x'][..], &[0x08], &[0x0b], &[0xff; 12], &[0x0a, 0x02, 0xc3, 0x28]] {
        assert!(codec.write_bytes("envoy.config.listener.v3.Listener", bytes).is_err(), "{bytes:?}");
    }
}

#[test]
fn what_stands_twice_in_a_text_is_noticed() {
    let twice = Tree::parse(r#"{"name": "a", "name": "b"}"#).unwrap();
    assert!(Codec::new().read::<Listener>(&twice).unwrap_err().to_string().starts_with("name: stands twice"));
}

#[test]
fn enums_are_named_in_any_case() {
    for name in ["OUTBOUND", "outbound", "OutBound"] {
        let listener: Listener = Codec::new().read(&(&json!({ "traffic_direction": name })).into()).unwrap();
        assert_eq!(listener.traffic_direction, 2, "{name}");
    }
}

#[test]
fn enums_are_numbers_in_strings_too() {
    let codec = Codec::new();
    let name = "envoy.config.listener.v3.Listener";
    for (text, number) in [("1", 1), (" +2\n", 2), ("-7", -7), ("9", 9)] {
        let json = json!({ "traffic_direction": text });
        let listener: Listener = codec.read(&(&json).into()).unwrap();
        assert_eq!(listener.traffic_direction, number, "{text}");
        let (bytes, left_out) = codec.encode_known(name, &(&json).into()).unwrap();
        assert!(left_out.is_empty(), "{left_out:?}");
        assert_eq!(Listener::decode(&*bytes).unwrap().traffic_direction, number, "{text}");
    }
    for text in ["1.0", "0x1", "1 2", "", "2147483648"] {
        let json = json!({ "traffic_direction": text });
        assert!(codec.read::<Listener>(&(&json).into()).is_err(), "{text}");
        assert_eq!(codec.encode_known(name, &(&json).into()).unwrap().1.len(), 1, "{text}");
    }
}

#[test]
fn what_a_message_does_not_know_can_be_left_out_and_is_told() {
    let codec = Codec::new();
    let tcp = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    let json = json!({
        "name": "l", "newer": {"a": [1]}, "traffic_direction": "SIDEWAYS",
        "filter_chains": [{}, {"filters": [{"name": "f", "typed_config": {"@type": tcp, "cluster": "c", "clutser": "d"}}]}],
        "metadata": {"filter_metadata": {"a": {"any": "thing"}}},
    });
    let (bytes, left_out) = codec.encode_known("envoy.config.listener.v3.Listener", &(&json).into()).unwrap();
    let told = [
        "newer: is not a field of Listener",
        "traffic_direction: `SIDEWAYS` is not one of UNSPECIFIED, INBOUND, OUTBOUND",
        "filter_chains[1].filters[0].typed_config.clutser: is not a field of TcpProxy; did you mean `cluster`?",
    ];
    let mut found: Vec<String> = left_out.iter().map(ToString::to_string).collect();
    found.sort_by_key(|found| told.iter().position(|told| told == found));
    assert_eq!(found, told);
    let expected = json!({
        "name": "l",
        "filter_chains": [{}, {"filters": [{"name": "f", "typed_config": {"@type": tcp, "cluster": "c"}}]}],
        "metadata": {"filter_metadata": {"a": {"any": "thing"}}},
    });
    assert_eq!(codec.write_bytes("envoy.config.listener.v3.Listener", &bytes).unwrap(), expected);
    let odd = json!({"newer": 1, "name": 3});
    assert_eq!(
        codec.encode_known("envoy.config.listener.v3.Listener", &(&odd).into()).unwrap_err().to_string(),
        "name: must be a string, not 3"
    );
    let many: Map<String, Value> = (0..1000).map(|n| (format!("f{n}"), json!(n))).collect();
    let (_, left_out) = codec.encode_known("envoy.config.listener.v3.Listener", &(&Value::Object(many)).into()).unwrap();
    assert!(left_out.len() < 100, "{}", left_out.len());
}
