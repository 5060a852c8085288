//! No bytes make the compiler panic.
use lateen_proto::any::pack;
use proptest::prelude::*;

use super::certificates::MTLS;
use super::*;
use crate::compile::compiler::SecretProto;
use crate::compile::warming::FETCH_TIMEOUT;
use crate::explain::Call;
use crate::test_support::SECRET;

fn any_resource() -> impl Strategy<Value = Vec<u8>> {
    let samples: Vec<Vec<u8>> = vec![
        update::<ListenerProto>(&rds_listener()).body.value,
        update::<ListenerProto>(&format!("{{name: l, address: {ANY_80}, filter_chains: [{{{MTLS}, filters: [{}]}}]}}", manager("route_config: {name: r, virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {prefix: /}, redirect: {https_redirect: true}}]}]}"))).body.value,
        update::<ClusterProto>(EDS).body.value,
        routes("c").body.value,
        endpoints(&["10.0.0.1"]).body.value,
        pack(&SecretProto::default()).value,
    ];
    let mutated = (prop::sample::select(samples), prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)).prop_map(
        |(mut bytes, changes)| {
            for (at, value) in changes {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = value;
                }
            }
            bytes
        },
    );
    prop_oneof![3 => mutated, 1 => prop::collection::vec(any::<u8>(), 0..200)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn no_bytes_make_the_compiler_panic(resources in prop::collection::vec((prop::sample::select(vec![LISTENER, ROUTE, CLUSTER, ENDPOINT, SECRET, "x"]), any_resource()), 1..5)) {
        let mut compiler = Compiler::new();
        let now = Instant::now();
        for (type_url, value) in resources {
            let body = Any { type_url: type_url.to_owned(), value };
            let name = name_inside(&body);
            let _ = compiler.apply(type_url, vec![Update { name, version: "1".into(), body }], &[], now);
            compiler.settle(now + FETCH_TIMEOUT);
            let snapshot = compiler.snapshot();
            let _ = snapshot.explain(&Call::http("10.1.1.1:80".parse().unwrap(), "a", "/"));
        }
    }
}
