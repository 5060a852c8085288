//! What is nested deeper than anything real is refused, in whatever form: messages in messages, and packed ones in packed ones.
use lateen_proto::any;
use lateen_proto::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;

use super::*;

/// A field that holds a message or text, by its number.
fn field(number: u32, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    prost::encoding::encode_varint(u64::from(number << 3 | 2), &mut out);
    prost::encoding::encode_varint(body.len() as u64, &mut out);
    out.extend_from_slice(body);
    out
}

/// `any: true` of a permission, a principal.
const ANY: [u8; 2] = [0x18, 1];

/// A listener whose connections these rules judge: the fields of a network filter for access control.
fn judged(name: &str, filter: &[u8]) -> Update {
    let rbac = "{name: rbac, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: s}}";
    let text = format!("{{name: {name}, address: {ANY_80}, filter_chains: [{{filters: [{rbac}, {}]}}]}}", tcp("c"));
    let mut listener: ListenerProto = any::open(&update::<ListenerProto>(&text).body).unwrap();
    let Some(lateen_proto::envoy::config::listener::v3::filter::ConfigType::TypedConfig(config)) =
        &mut listener.filter_chains[0].filters[0].config_type
    else {
        panic!("it was packed")
    };
    config.value.extend_from_slice(filter);
    Update { name: name.into(), version: "1".into(), body: any::pack(&listener) }
}

/// `rules.policies["p"]` with this permission and this principal.
fn policy(permission: &[u8], principal: &[u8]) -> Vec<u8> {
    let policy = [field(1, permission), field(2, principal)].concat();
    field(1, &field(2, &[field(1, b"p"), field(2, &policy)].concat()))
}

fn nested(depth: usize, inner: &[u8], wrap: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    (0..depth).fold(inner.to_vec(), |inner, _| wrap(&inner))
}

#[test]
fn rules_nested_without_end_are_refused_and_those_of_one_level_less_than_the_most_are_not() {
    let not = |inner: &[u8]| field(8, inner);
    let and = |inner: &[u8]| field(1, &field(1, inner));
    let otherwise = |inner: &[u8]| field(3, &field(1, inner));
    let (many, most) = ("recursion limit", "nested more than 32 deep");
    let (deep_not, deep_and) = (nested(10_000, &ANY, not), nested(10_000, &ANY, and));
    for (what, filter, reason) in [
        ("permissions that are no permissions", policy(&deep_not, &ANY), many),
        ("permissions of permissions", policy(&deep_and, &ANY), many),
        ("principals that are no principals", policy(&ANY, &deep_not), many),
        ("principals of principals", policy(&ANY, &deep_and), many),
        ("matchers in matchers", field(6, &nested(10_000, &[], otherwise)), many),
        // What a message may still hold, and a policy may not.
        ("32 negations of a permission", policy(&nested(32, &ANY, not), &ANY), most),
        ("90 negations of a permission", policy(&nested(90, &ANY, not), &ANY), most),
        ("32 groups of a principal", policy(&ANY, &nested(32, &ANY, and)), most),
        ("33 matchers", field(6, &nested(33, &[], otherwise)), most),
    ] {
        let mut compiler = Compiler::new();
        let rejected = compiler.apply(LISTENER, vec![judged("deep", &filter), judged("good", &policy(&ANY, &ANY))], &[], Instant::now());
        assert_eq!(rejected.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["deep"], "{what}");
        assert!(rejected[0].reason.contains(reason), "{what}: {rejected:?}");
        assert!(compiler.list(Kind::Listener).iter().any(|l| l.name == "good" && l.failure.is_none()), "{what}");
    }
    let deepest = policy(&nested(31, &ANY, not), &nested(31, &ANY, and));
    accepted(Compiler::new().apply(LISTENER, vec![judged("deep", &deepest)], &[], Instant::now()));
}

/// Each packed message is decoded by itself: none of them is deep.
#[test]
fn sockets_packed_in_sockets_without_end_are_refused_at_the_second() {
    let url = any::url::<ProxyProtocolUpstreamTransport>();
    let packed = |inner: &[u8]| {
        let socket = [field(1, b"s"), field(3, &[field(1, url.as_bytes()), field(2, inner)].concat())].concat();
        field(2, &socket)
    };
    let deep = nested(2000, &[], packed);
    let mut value = update::<ClusterProto>("{name: deep, type: STATIC}").body.value;
    // transport_socket
    value.extend(field(24, &[field(1, b"s"), field(3, &[field(1, url.as_bytes()), field(2, &deep)].concat())].concat()));
    let update = Update { name: "deep".into(), version: "1".into(), body: Any { type_url: CLUSTER.into(), value } };
    let rejected = Compiler::new().apply(CLUSTER, vec![update], &[], Instant::now());
    let reason = "transport_socket.transport_socket: must not be another PROXY protocol socket";
    assert_eq!(rejected.iter().map(|r| r.reason.as_str()).collect::<Vec<_>>(), [reason]);
}

/// A socket may also come as the fields of the message that it names.
#[test]
fn a_socket_in_a_socket_is_refused_in_whatever_form() {
    let url = any::url::<ProxyProtocolUpstreamTransport>();
    let plain = |inner: &str| format!("{{name: s, typed_config: {{'@type': {url}{inner}}}}}");
    let opaque = |inner: &str| {
        let fields = inner.trim_start_matches(", ");
        format!("{{name: s, typed_config: {{'@type': type.googleapis.com/xds.type.v3.TypedStruct, type_url: {url}, value: {{{fields}}}}}}}")
    };
    let within = |socket: &str| format!(", transport_socket: {socket}");
    for socket in [plain(&within(&opaque(""))), opaque(&within(&plain(""))), opaque(&within(&opaque(&within(&opaque("")))))] {
        let cluster = update::<ClusterProto>(&format!("{{name: c, type: STATIC, transport_socket: {socket}}}"));
        let rejected = Compiler::new().apply(CLUSTER, vec![cluster], &[], Instant::now());
        let reason = "transport_socket.transport_socket: must not be another PROXY protocol socket";
        assert_eq!(rejected.iter().map(|r| r.reason.as_str()).collect::<Vec<_>>(), [reason], "{socket}");
    }
    for socket in [plain(""), opaque("")] {
        let cluster = update::<ClusterProto>(&format!("{{name: c, type: STATIC, transport_socket: {socket}}}"));
        accepted(Compiler::new().apply(CLUSTER, vec![cluster], &[], Instant::now()));
    }
}
