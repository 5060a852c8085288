//! What the tests of the compiler share, and those of updates: what they leave as it was and what they refuse.
use std::time::Instant;

use lateen_balance::HostSet;
use lateen_proto::Any;
use std::sync::Arc;

use super::entry::name_inside;
use super::{ClusterProto, Compiler, EndpointProto, ListenerProto, Rejected, RouteProto, SecretProto, Update};
use crate::compile::record::Kind;
use crate::test_support::{ANY_80, CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET, manager, rds_listener, tcp, update};

mod addresses;
mod agent_files;
mod any_bytes;
mod balancing;
mod certificates;
mod extensions;
mod files;
mod filters;
mod kept_chains;
mod members;
mod nesting;
mod refusals;
mod resolved;
mod transport_sockets;
mod waiting;

const EDS: &str = "{name: c, type: EDS, eds_cluster_config: {eds_config: {ads: {}}, service_name: s}}";

fn routes(cluster: &str) -> Update {
    update::<RouteProto>(&format!(
        "{{name: r, virtual_hosts: [{{name: v, domains: ['*'], routes: [{{name: first, match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]}}]}}"
    ))
}

fn endpoints(addresses: &[&str]) -> Update {
    let list: Vec<String> =
        addresses.iter().map(|a| format!("{{endpoint: {{address: {{socket_address: {{address: {a}, port_value: 80}}}}}}}}")).collect();
    update::<EndpointProto>(&format!("{{cluster_name: s, endpoints: [{{lb_endpoints: [{}]}}]}}", list.join(",")))
}

fn accepted(rejected: Vec<Rejected>) {
    assert_eq!(rejected, Vec::new());
}

fn hosts(compiler: &mut Compiler, cluster: &str) -> Arc<HostSet> {
    compiler.snapshot().cluster_named(cluster).unwrap().1.hosts.clone()
}

#[test]
fn an_update_that_changes_nothing_shares_everything() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(EDS)], &[], now));
    accepted(compiler.apply(ENDPOINT, vec![endpoints(&["10.0.0.1"])], &[], now));
    let first = compiler.snapshot();
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(EDS)], &[], now));
    assert!(Arc::ptr_eq(&first, &compiler.snapshot()));
}

#[test]
fn a_refused_update_leaves_the_last_good_one_in_use() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let good = format!("{{name: l, address: {ANY_80}, filter_chains: [{{filters: [{}]}}]}}", tcp("c"));
    accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&good)], &[], now));
    let bad = Update { name: "l".into(), version: "2".into(), body: Any { type_url: LISTENER.into(), value: vec![0xff; 9] } };
    let rejected = compiler.apply(LISTENER, vec![bad], &[], now);
    assert!(rejected[0].name == "l" && rejected[0].reason.contains("does not decode"), "{rejected:?}");
    assert_eq!(compiler.snapshot().listeners.len(), 1);
    let listed = compiler.list(Kind::Listener);
    assert_eq!(listed[0].failure.map(|f| &*f.version), Some("2"));
    assert!(listed[0].active.is_some());
}

#[test]
fn a_refusal_goes_with_the_name() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    compiler.add_static(vec![update::<ClusterProto>("{name: own, type: STATIC}").body], now).unwrap();
    let other = update::<ClusterProto>("{name: own, type: STATIC, connect_timeout: 2s}");
    let bad = update::<ClusterProto>("{name: bad, type: STATIC, lrs_server: {self: {}}}");
    assert_eq!(compiler.apply(CLUSTER, vec![other, bad], &[], now).len(), 2);
    assert!(compiler.list(Kind::Cluster).iter().all(|c| c.failure.is_some()));
    accepted(compiler.apply(CLUSTER, Vec::new(), &["own".to_owned(), "bad".to_owned()], now));
    assert_eq!(compiler.list(Kind::Cluster).iter().map(|c| (c.name, c.failure.is_some())).collect::<Vec<_>>(), [("own", false)]);
}

#[test]
fn one_bad_resource_hurts_only_itself() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let good = update::<ClusterProto>("{name: good, type: STATIC}");
    let bad = update::<ClusterProto>("{name: bad, type: STATIC, lrs_server: {self: {}}}");
    let rejected = compiler.apply(CLUSTER, vec![bad, good.clone(), good], &[], now);
    let reasons: Vec<_> = rejected.iter().map(|r| (r.name.as_str(), r.reason.as_str())).collect();
    assert_eq!(reasons, [("bad", "lrs_server: is not supported; remove it"), ("good", "occurs twice in one response; names must differ")]);
    assert!(compiler.snapshot().cluster_named("good").is_some());
}

#[test]
fn a_virtual_host_that_does_not_decode_is_named_by_its_place() {
    let host = [0x0a, 1, b'v', 0x12, 1, b'*'];
    let broken = [0x0a, 9, b'v'];
    let mut value = vec![0x0a, 1, b'r'];
    for host in [&host[..], &broken] {
        value.extend([0x12, host.len() as u8]);
        value.extend(host);
    }
    let body = Any { type_url: ROUTE.to_owned(), value };
    let rejected = Compiler::new().apply(ROUTE, vec![Update { name: "r".to_owned(), version: "1".to_owned(), body }], &[], Instant::now());
    assert!(rejected[0].reason.starts_with("virtual_hosts[1]: failed to decode"), "{}", rejected[0].reason);
}

#[test]
fn a_message_nested_without_end_is_refused_before_the_stack_is() {
    // metadata.filter_metadata: a list in a list in a list …
    let field = |number: u32, body: Vec<u8>| {
        let mut out = Vec::new();
        prost::encoding::encode_varint(u64::from(number << 3 | 2), &mut out);
        prost::encoding::encode_varint(body.len() as u64, &mut out);
        out.extend(body);
        out
    };
    let list = (0..3000).fold(Vec::new(), |inner, _| field(6, field(1, inner)));
    let entry = |value: Vec<u8>| field(1, [field(1, b"k".to_vec()), field(2, value)].concat());
    let mut value = update::<ClusterProto>("{name: deep, type: STATIC}").body.value;
    value.extend(field(25, entry(entry(list))));
    let deep = Update { name: "deep".into(), version: "1".into(), body: Any { type_url: CLUSTER.into(), value } };
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let rejected = compiler.apply(CLUSTER, vec![deep, update::<ClusterProto>("{name: good, type: STATIC}")], &[], now);
    assert_eq!(rejected.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["deep"]);
    assert!(rejected[0].reason.contains("recursion limit"), "{rejected:?}");
    assert!(compiler.snapshot().cluster_named("good").is_some());
}

#[test]
fn static_resources_are_neither_removed_nor_replaced() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    compiler.add_static(vec![update::<ClusterProto>("{name: xds-grpc, type: STATIC}").body], now).unwrap();
    let rejected = compiler.apply(
        CLUSTER,
        vec![update::<ClusterProto>("{name: xds-grpc, type: STATIC, connect_timeout: 9s}")],
        &["xds-grpc".into()],
        now,
    );
    assert!(rejected[0].reason.contains("part of the bootstrap"), "{rejected:?}");
    assert!(compiler.snapshot().cluster_named("xds-grpc").is_some());
}

#[test]
fn static_listeners_may_do_without_a_name() {
    let listener =
        |address: &str| update::<ListenerProto>(&format!("{{address: {address}, filter_chains: [{{filters: [{}]}}]}}", tcp("c"))).body;
    let other = "{socket_address: {address: 0.0.0.0, port_value: 81}}";
    let mut compiler = Compiler::new();
    compiler.add_static(vec![listener(ANY_80), listener(other)], Instant::now()).unwrap();
    let snapshot = compiler.snapshot();
    let names: Vec<_> = snapshot.listeners.iter().map(|l| &*l.name).collect();
    assert_eq!(names, ["static_resources.listeners[0]", "static_resources.listeners[1]"]);
}
