//! Discovered resources through the compiler into a snapshot: the first byte chooses the type, the rest is the message.
use std::time::Instant;

use lateen_proto::Any;
use lateen_snapshot::bootstrap;
use lateen_snapshot::compile::{Compiler, Update};
use lateen_snapshot::explain::Call;

const TYPES: [&str; 5] = [
    "type.googleapis.com/envoy.config.listener.v3.Listener",
    "type.googleapis.com/envoy.config.cluster.v3.Cluster",
    "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
    "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
];

pub(crate) fn run(data: &[u8]) {
    let Some((kind, message)) = data.split_first() else { return };
    let type_url = TYPES[usize::from(*kind) % TYPES.len()];
    let body = Any { type_url: type_url.to_owned(), value: message.to_vec() };
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    for version in ["1", "2"] {
        let name = lateen_proto_name(&body);
        let _ = compiler.apply(type_url, vec![Update { name, version: version.into(), body: body.clone() }], &[], now);
        compiler.settle(now + std::time::Duration::from_secs(3600));
        let snapshot = compiler.snapshot();
        let _ = snapshot.explain(&Call::http("10.1.1.1:80".parse().expect("an address"), "a", "/"));
    }
}

/// Field 1 of all these messages is a name; what cannot be read has none.
fn lateen_proto_name(body: &Any) -> String {
    let length = body.value.get(1).copied().map_or(0, usize::from);
    let name = body.value.first().filter(|tag| **tag == 0x0a).and_then(|_| body.value.get(2..2 + length));
    name.map(|n| String::from_utf8_lossy(n).into_owned()).unwrap_or_default()
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let resources = bootstrap::parse(super::bootstrap::WHOLE, "seed").map(|b| b.resources).unwrap_or_default();
    let of = |any: &Any| TYPES.iter().position(|t| *t == any.type_url).map(|at| [&[at as u8][..], &any.value].concat());
    let mut seeds: Vec<Vec<u8>> = resources.iter().filter_map(of).collect();
    // Endpoints, routes and a secret by hand: a name, then a message of a few fields.
    seeds.push(b"\x03\x0a\x01c\x12\x0f\x12\x0d\x0a\x0b\x0a\x09\x0a\x07\x12\x021a\x18\x50\x08".to_vec());
    seeds.push(
        b"\x02\x0a\x01r\x12\x1f\x0a\x01v\x12\x01*\x1a\x17\x0a\x03\x0a\x01/\x12\x10\x0a\x01c\x42\x00\x1a\x02\x0a\x00\x22\x01a".to_vec(),
    );
    seeds.push(b"\x04\x0a\x01s\x12\x0a\x0a\x03\x1a\x01x\x12\x03\x1a\x01y".to_vec());
    seeds
}
