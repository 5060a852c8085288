use std::time::Duration;

use lateen_balance::host::{FAILED_ACTIVE_HC, PENDING_REMOVAL};
use lateen_proto::any::pack;
use proptest::prelude::*;

use super::super::warming::FETCH_TIMEOUT;
use super::*;
use crate::explain::{Call, Outcome};
use crate::test_support::{ANY_80, CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET, manager, rds_listener, tcp, update};

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

/// The reason why a listener is refused.
fn refused_listener(text: &str) -> String {
    let mut compiler = Compiler::new();
    let rejected = compiler.apply(LISTENER, vec![update::<ListenerProto>(text)], &[], Instant::now());
    assert_eq!(compiler.snapshot().listeners.len(), 0);
    rejected.into_iter().next().map(|r| r.reason).unwrap_or_default()
}

fn refused_cluster(text: &str) -> String {
    let rejected = Compiler::new().apply(CLUSTER, vec![update::<ClusterProto>(text)], &[], Instant::now());
    rejected.into_iter().next().map(|r| r.reason).unwrap_or_default()
}

#[test]
fn a_listener_serves_only_when_its_routes_clusters_and_endpoints_are_there() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(EDS)], &[], now));
    assert!(compiler.wanted().endpoints.contains("s"));
    accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&rds_listener())], &[], now));
    assert!(compiler.wanted().routes.contains("r"));
    assert_eq!(compiler.snapshot().listeners.len(), 0);
    accepted(compiler.apply(ROUTE, vec![routes("c")], &[], now));
    // The routes name a cluster without endpoints.
    assert_eq!(compiler.snapshot().listeners.len(), 0);
    assert!(!compiler.is_settled());
    accepted(compiler.apply(ENDPOINT, vec![endpoints(&["10.0.0.1"])], &[], now));
    let snapshot = compiler.snapshot();
    assert!(compiler.is_settled());
    let explanation = snapshot.explain(&Call::http("10.1.1.1:80".parse().unwrap(), "any", "/"));
    assert_eq!((explanation.route(), explanation.cluster()), (Some("first"), Some("c")), "{explanation}");
}

#[test]
fn what_never_arrives_is_waited_for_only_so_long() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(EDS)], &[], now));
    accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&rds_listener())], &[], now));
    compiler.settle(now + FETCH_TIMEOUT - Duration::from_millis(1));
    assert_eq!(compiler.snapshot().listeners.len(), 0);
    assert_eq!(compiler.deadline(), Some(now + FETCH_TIMEOUT));
    compiler.settle(now + FETCH_TIMEOUT);
    let snapshot = compiler.snapshot();
    assert_eq!((snapshot.listeners.len(), snapshot.cluster_named("c").is_some()), (1, true));
    let explanation = snapshot.explain(&Call::http("10.1.1.1:80".parse().unwrap(), "any", "/"));
    assert!(matches!(explanation.outcome, Outcome::Answered { status: 404, .. }), "{explanation}");
}

#[test]
fn routes_to_a_new_cluster_wait_for_it_while_the_old_ones_serve() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let old = "{name: old, type: STATIC, load_assignment: {cluster_name: old, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 10.0.0.9, port_value: 1}}}}]}]}}";
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(old)], &[], now));
    accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&rds_listener())], &[], now));
    accepted(compiler.apply(ROUTE, vec![routes("old")], &[], now));
    let call = Call::http("10.1.1.1:80".parse().unwrap(), "any", "/");
    assert_eq!(compiler.snapshot().explain(&call).cluster(), Some("old"));
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(EDS)], &[], now));
    accepted(compiler.apply(ROUTE, vec![routes("c")], &[], now));
    assert_eq!(compiler.snapshot().explain(&call).cluster(), Some("old"));
    accepted(compiler.apply(ENDPOINT, vec![endpoints(&["10.0.0.1"])], &[], now));
    assert_eq!(compiler.snapshot().explain(&call).cluster(), Some("c"));
}

#[test]
fn hosts_and_breakers_live_on_through_updates() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(EDS)], &[], now));
    accepted(compiler.apply(ENDPOINT, vec![endpoints(&["10.0.0.1", "10.0.0.2"])], &[], now));
    let first = compiler.snapshot();
    let before = first.cluster_named("c").unwrap().1.clone();
    accepted(compiler.apply(ENDPOINT, vec![endpoints(&["10.0.0.2", "10.0.0.3"])], &[], now));
    let changed = EDS.replace("type: EDS", "type: EDS, connect_timeout: 1s, circuit_breakers: {thresholds: [{max_requests: 7}]}");
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&changed)], &[], now));
    let second = compiler.snapshot();
    let after = second.cluster_named("c").unwrap().1.clone();
    let at = |c: &Cluster, n: usize| c.hosts.hosts().nth(n).unwrap().clone();
    assert!(Arc::ptr_eq(&at(&before, 1), &at(&after, 0)));
    assert!(Arc::ptr_eq(&before.live, &after.live));
    assert_eq!((after.config.connect_timeout, after.live.breakers[0].requests.limit()), (Duration::from_secs(1), 7));
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
fn refusals_name_the_field_by_its_path() {
    let on = |chain: &str| format!("{{name: l, address: {ANY_80}, filter_chains: [{chain}]}}");
    let unknown = manager("route_config: {name: r}").replace("http_filters: [", "http_filters: [{name: envoy.filters.http.xyz, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua}}, ");
    let cases = [
        (
            on(&format!("{{filters: [{unknown}]}}")),
            "filter_chains[0].filters[0].http_filters[0]: envoy.filters.http.xyz (envoy.extensions.filters.http.lua.v3.Lua) is not supported",
        ),
        (
            on(&format!("{{filters: [{}]}}", manager("add_user_agent: true, route_config: {name: r}"))),
            "filter_chains[0].filters[0].add_user_agent: is not supported",
        ),
        (
            on(&format!(
                "{{filters: [{}]}}",
                tcp("a").replace("stat_prefix", "tunneling_config: {hostname: h, request_id_extension: {}}, stat_prefix")
            )),
            "filter_chains[0].filters[0].tunneling_config.request_id_extension: is not supported",
        ),
        (
            on(&format!("{{filters: [{}]}}", tcp("a").replace("stat_prefix", "on_demand: {odcds_config: {path: f}}, stat_prefix"))),
            "filter_chains[0].filters[0].on_demand.odcds_config: is not supported; use `ads: {}`",
        ),
        (
            on(&format!("{{filters: [{}]}}", tcp("a").replace("stat_prefix", "on_demand: {resources_locator: x}, stat_prefix"))),
            "filter_chains[0].filters[0].on_demand.resources_locator: is not supported",
        ),
        (on(&format!("{{filters: [{}, {}]}}", tcp("a"), tcp("b"))), "filter_chains[0].filters[0]: tcp: must be the last filter"),
        (
            on(&format!("{{filter_chain_match: {{server_names: ['a*']}}, filters: [{}]}}", tcp("a"))),
            "filter_chains[0].filter_chain_match.server_names[0]: `a*` has a wildcard inside",
        ),
        ("{name: l, filter_chains: [{}]}".to_owned(), "address: is missing"),
        (format!("{{name: l, address: {ANY_80}}}"), "filter_chains: is empty"),
        (
            on(&format!("{{filters: [{}]}}", manager("route_config: {name: r, virtual_hosts: [{name: v, domains: [a, A]}]}"))),
            "filter_chains[0].filters[0].route_config.virtual_hosts[0].domains[1]: `a` is already a domain",
        ),
        (
            on(&format!(
                "{{filters: [{}]}}",
                manager(
                    "route_config: {name: r, virtual_hosts: [{name: v, domains: [a], routes: [{match: {safe_regex: {regex: '('}}, route: {cluster: c}}]}]}"
                )
            )),
            "filter_chains[0].filters[0].route_config.virtual_hosts[0].routes[0].match.safe_regex.regex: `(`:",
        ),
    ];
    for (text, expected) in cases {
        let reason = refused_listener(&text);
        assert!(reason.starts_with(expected), "{reason}\nexpected {expected}");
    }
    let cases = [
        (
            "{name: c, type: STATIC, load_assignment: {cluster_name: c, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: a.b, port_value: 1}}}}]}]}}",
            "load_assignment: `a.b` is not an IP address; use type STRICT_DNS",
        ),
        (
            "{name: c, type: STATIC, health_checks: [{timeout: 1s, interval: 1s, tcp_health_check: {send: {text: 'no'}}}]}",
            "health_checks[0].tcp_health_check.send.text: `no` is not hexadecimal",
        ),
        (
            "{name: c, type: STATIC, health_checks: [{timeout: 1s, interval: 1s, tcp_health_check: {}, event_service: {}}]}",
            "health_checks[0].event_service: is not supported",
        ),
        (
            "{name: c, type: STATIC, outlier_detection: {base_ejection_time: 30s, max_ejection_time: 20s}}",
            "outlier_detection.max_ejection_time: must not be below base_ejection_time",
        ),
        (
            "{name: c, type: STATIC, upstream_connection_options: {happy_eyeballs_config: {first_address_family_count: 0}}}",
            "upstream_connection_options.happy_eyeballs_config.first_address_family_count: must be at least 1",
        ),
        (
            "{name: c, type: STATIC, preconnect_policy: {predictive_preconnect_ratio: 0.5}}",
            "preconnect_policy.predictive_preconnect_ratio: 0.5 is not between 1 and 3",
        ),
        (
            "{name: c, type: STATIC, preconnect_policy: {per_upstream_preconnect_ratio: 4}}",
            "preconnect_policy.per_upstream_preconnect_ratio: 4 is not between 1 and 3",
        ),
        (
            "{name: c, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, original_dst_lb_config: {http_header_name: 'a b'}}",
            "original_dst_lb_config.http_header_name: `a b` is not a header name",
        ),
        (
            "{name: c, type: STATIC, upstream_bind_config: {socket_options: [{level: 1, name: 1}]}}",
            "upstream_bind_config.socket_options[0]: has no value",
        ),
        (
            "{name: c, type: STATIC, transport_socket: {name: p, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport, config: {added_tlvs: [{type: 1}]}}}}",
            "transport_socket.config.version: V1 has no TLVs",
        ),
        ("{name: c, type: STATIC, health_checks: [{}, {}]}", "health_checks[1]: a cluster can have only one health check"),
        ("{name: c, type: STATIC, connect_timeout: -1s}", "connect_timeout: is not a valid duration"),
        (
            "{name: c, type: STATIC, lb_policy: MAGLEV, maglev_lb_config: {table_size: 10}}",
            "maglev_lb_config.table_size: 10 is not a prime",
        ),
        (
            "{name: c, type: STATIC, circuit_breakers: {thresholds: [{max_connection_pools: 4294967295}, {max_connection_pools: 9}]}}",
            "circuit_breakers.thresholds[1].max_connection_pools: is not supported",
        ),
        (
            "{name: c, type: STATIC, circuit_breakers: {thresholds: [{}, {retry_budget: {budget_interval: -1s}}]}}",
            "circuit_breakers.thresholds[1].retry_budget.budget_interval: is not a valid duration",
        ),
        (
            "{name: c, type: STATIC, transport_socket: {name: tls, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {validation_context: {match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: x}}]}}}}}",
            "transport_socket: names are demanded of peers that need not chain to any root",
        ),
    ];
    for (text, expected) in cases {
        let reason = refused_cluster(text);
        assert!(reason.starts_with(expected), "{reason}\nexpected {expected}");
    }
}

#[test]
fn endpoints_choose_their_transport_socket_by_metadata() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let tls =
        "{name: tls, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, sni: x}}";
    let text = EDS.replace("type: EDS", &format!("type: EDS, transport_socket_matches: [{{name: mtls, match: {{tlsMode: istio}}, transport_socket: {tls}}}, {{name: plain, match: {{}}, transport_socket: {{name: raw, typed_config: {{'@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}}}}}]"));
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&text)], &[], now));
    let assignment = "{cluster_name: s, endpoints: [{lb_endpoints: [
        {endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 1}}}, metadata: {filter_metadata: {envoy.transport_socket_match: {tlsMode: istio}}}},
        {endpoint: {address: {socket_address: {address: 10.0.0.2, port_value: 1}}}, health_status: UNHEALTHY}]}]}";
    accepted(compiler.apply(ENDPOINT, vec![update::<EndpointProto>(assignment)], &[], now));
    let snapshot = compiler.snapshot();
    let (_, cluster) = snapshot.cluster_named("c").unwrap();
    let hosts: Vec<_> = cluster.hosts.hosts().map(|h| (h.transport, h.is_healthy())).collect();
    assert_eq!(hosts, [(0, true), (1, false)]);
    assert!(cluster.config.transports[0].tls.is_some() && cluster.config.transports[1].tls.is_none());
}

#[test]
fn the_addresses_of_a_host_come_in_the_clusters_order() {
    let text = EDS.replace(
        "type: EDS",
        "type: EDS, upstream_connection_options: {happy_eyeballs_config: {first_address_family_version: V6, first_address_family_count: 2}}",
    );
    let address = |ip: &str| format!("{{address: {{socket_address: {{address: '{ip}', port_value: 1}}}}}}");
    let more = ["::1", "10.0.0.2", "::2", "::3"].map(address).join(", ");
    let endpoints = format!(
        "{{cluster_name: s, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 10.0.0.1, port_value: 1}}}}, additional_addresses: [{more}]}}}}]}}]}}"
    );
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&text)], &[], now));
    accepted(compiler.apply(ENDPOINT, vec![update::<EndpointProto>(&endpoints)], &[], now));
    let snapshot = compiler.snapshot();
    let (_, cluster) = snapshot.cluster_named("c").unwrap();
    let sorted: Vec<String> = cluster.hosts.hosts().flat_map(|h| &h.addresses).map(|a| a.ip().to_string()).collect();
    assert_eq!(sorted, ["::1", "::2", "10.0.0.1", "::3", "10.0.0.2"]);
}

#[test]
fn a_source_address_of_each_family_is_kept() {
    // A dual-stack sidecar that connected to its own pod without ::6 would be captured as a caller, for ever again.
    let text = "{name: c, type: STATIC, load_assignment: {cluster_name: c}, upstream_bind_config: {source_address: {address: 127.0.0.6, port_value: 0}, \
                extra_source_addresses: [{address: {address: '::6', port_value: 0}}]}}";
    let mut compiler = Compiler::new();
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(text)], &[], Instant::now()));
    let snapshot = compiler.snapshot();
    let sources: Vec<String> = snapshot.cluster_named("c").unwrap().1.config.bind.sources.iter().map(|s| s.address.to_string()).collect();
    assert_eq!(sources, ["127.0.0.6:0", "[::6]:0"]);
}

#[test]
fn a_host_that_discovery_takes_away_stays_while_it_passes_its_checks() {
    let checks = "health_checks: [{timeout: 1s, interval: 1s, healthy_threshold: 1, unhealthy_threshold: 1, tcp_health_check: {}}]";
    let (both, one) = (endpoints(&["10.0.0.1", "10.0.0.2"]), endpoints(&["10.0.0.1"]));
    let now = Instant::now();
    let addresses = |compiler: &mut Compiler| {
        let snapshot = compiler.snapshot();
        let hosts = snapshot.cluster_named("c").unwrap().1.hosts.hosts().cloned().collect::<Vec<_>>();
        hosts.iter().map(|h| (h.address.to_string(), h.flags() & PENDING_REMOVAL != 0)).collect::<Vec<_>>()
    };
    let second = |compiler: &mut Compiler| compiler.snapshot().cluster_named("c").unwrap().1.hosts.hosts().nth(1).cloned().unwrap();
    let at = |ip: &str, leaving: bool| (format!("{ip}:80"), leaving);
    for (more, kept) in
        [(checks.to_owned(), true), (format!("{checks}, ignore_health_on_host_removal: true"), false), (String::new(), false)]
    {
        let mut compiler = Compiler::new();
        let text = EDS.replace("type: EDS", &format!("type: EDS{}{more}", if more.is_empty() { "" } else { ", " }));
        accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&text)], &[], now));
        accepted(compiler.apply(ENDPOINT, vec![both.clone()], &[], now));
        let host = second(&mut compiler);
        host.set_flag(FAILED_ACTIVE_HC, false);
        accepted(compiler.apply(ENDPOINT, vec![one.clone()], &[], now));
        let expected = if kept { vec![at("10.0.0.1", false), at("10.0.0.2", true)] } else { vec![at("10.0.0.1", false)] };
        assert_eq!(addresses(&mut compiler), expected, "{more}");
        if kept {
            accepted(compiler.apply(ENDPOINT, vec![both.clone()], &[], now));
            assert!(Arc::ptr_eq(&host, &second(&mut compiler)), "it is the same host again");
            assert_eq!(addresses(&mut compiler), [at("10.0.0.1", false), at("10.0.0.2", false)]);
            accepted(compiler.apply(ENDPOINT, vec![one.clone()], &[], now));
            host.set_flag(FAILED_ACTIVE_HC, true);
            compiler.drop_failed("c", now);
            assert_eq!(addresses(&mut compiler), [at("10.0.0.1", false)]);
        }
    }
}

fn ips(texts: &[&str]) -> Vec<std::net::IpAddr> {
    texts.iter().map(|t| t.parse().unwrap()).collect()
}

const BY_NAME: &str = "{name: d, type: STRICT_DNS, load_assignment: {cluster_name: d, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: a.example, port_value: 7}}}}]}]}}";

#[test]
fn dns_clusters_wait_for_their_first_answer_and_keep_the_last() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(BY_NAME)], &[], now));
    assert!(compiler.snapshot().cluster_named("d").is_none());
    compiler.set_resolved("d", "a.example", 7, ips(&["10.0.0.1", "10.0.0.2"]), now);
    let first = compiler.snapshot();
    assert_eq!(first.cluster_named("d").unwrap().1.hosts.len(), 2);
    compiler.set_resolved("d", "a.example", 7, ips(&["10.0.0.2", "10.0.0.1"]), now);
    compiler.set_unresolved("d", "a.example", 7, now);
    assert!(Arc::ptr_eq(&first, &compiler.snapshot()), "neither another order nor a failure changes anything");
    compiler.set_resolved("d", "a.example", 7, Vec::new(), now);
    assert!(compiler.snapshot().cluster_named("d").unwrap().1.hosts.is_empty(), "the name has no addresses any more");
}

#[test]
fn a_name_that_cannot_be_looked_up_holds_nobody_up() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(BY_NAME)], &[], now));
    compiler.set_unresolved("d", "a.example", 7, now);
    assert!(compiler.snapshot().cluster_named("d").unwrap().1.hosts.is_empty());
}

#[test]
fn a_logical_dns_cluster_has_one_host_that_stays_while_its_name_has_its_address() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&BY_NAME.replace("STRICT_DNS", "LOGICAL_DNS"))], &[], now));
    let mut resolve = |texts: &[&str]| {
        compiler.set_resolved("d", "a.example", 7, ips(texts), now);
        let snapshot = compiler.snapshot();
        let hosts: Vec<_> = snapshot.cluster_named("d").unwrap().1.hosts.hosts().cloned().collect();
        assert_eq!(hosts.len(), 1);
        let all: Vec<String> = hosts[0].addresses.iter().map(|a| a.ip().to_string()).collect();
        (hosts[0].address.to_string(), all.join(" "))
    };
    assert_eq!(resolve(&["10.0.0.2", "10.0.0.1", "fd00::1"]), ("10.0.0.2:7".to_owned(), "10.0.0.2 fd00::1 10.0.0.1".to_owned()));
    assert_eq!(resolve(&["10.0.0.1", "10.0.0.2"]).0, "10.0.0.2:7");
    assert_eq!(resolve(&[]).0, "10.0.0.2:7", "the last address stays when the name has none");
    assert_eq!(resolve(&["10.0.0.3"]), ("10.0.0.3:7".to_owned(), String::new()));
}

#[test]
fn names_are_resolved_as_the_cluster_says() {
    use crate::dns::{Backoff, DnsFamily, DnsResolver};
    let settings = |fields: &str| {
        let mut compiler = Compiler::new();
        let kind = if fields.contains("cluster_type") { "" } else { "type: STRICT_DNS, " };
        let text = BY_NAME.replace("type: STRICT_DNS, ", &format!("{kind}{fields}, "));
        accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&text)], &[], Instant::now()));
        let mut found = None;
        compiler.each_cluster(|c| match &c.discovery {
            Discovery::StrictDns(dns) => found = Some(("strict", dns.settings.as_ref().clone())),
            Discovery::LogicalDns(dns) => found = Some(("logical", dns.settings.as_ref().clone())),
            _ => {}
        });
        found.unwrap()
    };
    let second = Duration::from_secs(1);
    let (_, old) = settings(
        "dns_refresh_rate: 3s, dns_jitter: 1s, respect_dns_ttl: true, dns_lookup_family: V4_PREFERRED, dns_failure_refresh_rate: {base_interval: 2s}, \
         dns_resolution_config: {resolvers: [{socket_address: {address: 10.0.0.1, port_value: 5353}}], dns_resolver_options: {use_tcp_for_dns_lookups: true}}",
    );
    assert_eq!((old.refresh, old.jitter, old.respect_ttl, old.family), (3 * second, second, true, DnsFamily::V4Preferred));
    assert_eq!(old.failure, Some(Backoff { base: 2 * second, max: 20 * second }));
    let Some(DnsResolver::Stub(stub)) = old.resolver else { panic!("no resolver of its own") };
    assert_eq!((stub.servers, stub.tcp, stub.no_search), (vec!["10.0.0.1:5353".parse().unwrap()], true, false));
    let (kind, new) = settings(
        "cluster_type: {name: envoy.clusters.dns, typed_config: {'@type': type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster, \
         all_addresses_in_single_endpoint: true, respect_dns_ttl: true, dns_min_refresh_rate: 10s, dns_lookup_family: ALL, typed_dns_resolver_config: {name: x, typed_config: \
         {'@type': type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig, query_tries: 2, query_timeout_seconds: 1, rotate_nameservers: true}}}}",
    );
    assert_eq!((kind, new.min_refresh, new.family, new.refresh), ("logical", 10 * second, DnsFamily::All, 5 * second));
    let Some(DnsResolver::Stub(stub)) = new.resolver else { panic!("no resolver of its own") };
    assert_eq!((stub.tries, stub.timeout, stub.rotate, stub.servers), (2, second, true, vec![]));
    assert_eq!(settings("dns_jitter: 0s").1.resolver, None, "the bootstrap's");
}

fn identity(name: &str) -> WorkloadSecrets {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    WorkloadSecrets::from_pem(leaf.pem().as_bytes(), key.serialize_pem().as_bytes(), ca_cert.pem().as_bytes()).unwrap()
}

const MTLS: &str = "transport_socket: {name: tls, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, require_client_certificate: true, common_tls_context: {
    tls_certificate_sds_secret_configs: [{name: default, sds_config: {api_config_source: {api_type: GRPC, grpc_services: [{envoy_grpc: {cluster_name: sds-grpc}}]}}}],
    combined_validation_context: {default_validation_context: {match_typed_subject_alt_names: [{san_type: URI, matcher: {prefix: 'spiffe://td/'}}]},
      validation_context_sds_secret_config: {name: ROOTCA, sds_config: {api_config_source: {api_type: GRPC, grpc_services: [{envoy_grpc: {cluster_name: sds-grpc}}]}}}}}}}";

#[test]
fn a_listener_waits_for_its_certificates_and_takes_rotated_ones() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let text = format!("{{name: l, address: {ANY_80}, filter_chains: [{{{MTLS}, filters: [{}]}}]}}", tcp("c"));
    accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&text)], &[], now));
    assert_eq!(compiler.snapshot().listeners.len(), 0);
    let source = SecretSource::Cluster("sds-grpc".into());
    let wanted: Vec<_> = compiler.wanted().secrets.iter().map(|k| (k.source.clone(), k.name.to_string())).collect();
    assert_eq!(wanted, [(source.clone(), "ROOTCA".to_owned()), (source.clone(), "default".to_owned())]);
    compiler.set_identity(&source, &identity("a"), now).unwrap();
    let snapshot = compiler.snapshot();
    let tls = snapshot.listeners[0].chains[0].tls.clone().unwrap();
    let first = tls.config.get().unwrap();
    compiler.set_identity(&source, &identity("b"), now).unwrap();
    assert!(!Arc::ptr_eq(&first, &tls.config.get().unwrap()));
    assert!(Arc::ptr_eq(&snapshot, &compiler.snapshot()), "a rotation changes no listener");
}

#[test]
fn certificates_in_files_are_read_again_when_they_change() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let write = |identity: &WorkloadSecrets| {
        std::fs::write(path("crt"), identity.chain_pem()).unwrap();
        std::fs::write(path("key"), identity.key().to_pem()).unwrap();
    };
    write(&identity("a"));
    let socket = format!(
        "transport_socket: {{name: tls, typed_config: {{'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, common_tls_context: {{tls_certificates: [{{certificate_chain: {{filename: '{}'}}, private_key: {{filename: '{}'}}}}]}}}}}}",
        path("crt").display(),
        path("key").display()
    );
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let text = format!("{{name: l, address: {ANY_80}, filter_chains: [{{{socket}, filters: [{}]}}]}}", tcp("c"));
    accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&text)], &[], now));
    assert_eq!(compiler.files().len(), 2);
    let tls = compiler.snapshot().listeners[0].chains[0].tls.clone().unwrap();
    let first = tls.config.get().unwrap();
    std::fs::write(path("crt"), "rubbish").unwrap();
    assert_eq!(compiler.reload_files(|_| true, now).len(), 1);
    assert!(Arc::ptr_eq(&first, &tls.config.get().unwrap()));
    write(&identity("b"));
    accepted(compiler.reload_files(|p| p == path("crt"), now));
    assert!(!Arc::ptr_eq(&first, &tls.config.get().unwrap()));
}

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

mod extensions {
    use lateen_proto::envoy::config::core::v3::TypedExtensionConfig;
    use lateen_proto::envoy::extensions::filters::http::{cors::v3::Cors, fault::v3::HttpFault, router::v3::Router};

    use super::*;
    use crate::compile::Outcome;
    use crate::http::HttpFilter;
    use crate::listener::{NetworkFilter, Terminal};

    const EXTENSION: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";

    fn listener(more: &str) -> Update {
        let filter = format!(
            "{{name: extra, config_discovery: {{config_source: {{ads: {{}}}}, {more} \
             type_urls: [type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors, \
             type.googleapis.com/envoy.extensions.filters.http.router.v3.Router]}}}}"
        );
        update::<ListenerProto>(&rds_listener().replace("http_filters: [", &format!("http_filters: [{filter}, ")))
    }

    fn extension(config: Any) -> Update {
        let body = pack(&TypedExtensionConfig { name: "extra".to_owned(), typed_config: Some(config) });
        Update { name: "extra".to_owned(), version: "1".to_owned(), body }
    }

    fn with_routes() -> (Compiler, Instant) {
        let (mut compiler, now) = (Compiler::new(), Instant::now());
        let cluster = "{name: c, type: STATIC, load_assignment: {cluster_name: c}}";
        accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(cluster)], &[], now));
        (compiler, now)
    }

    /// What stands in the place of the discovered filter.
    fn filter(compiler: &mut Compiler) -> Option<HttpFilter> {
        let snapshot = compiler.snapshot();
        let listener = snapshot.listeners.first()?;
        let Terminal::Http(manager) = &listener.chains.first()?.terminal else { panic!("no HTTP") };
        let HttpFilter::Discovered(discovered) = &manager.filters[0] else { panic!("{:?}", manager.filters) };
        discovered.resolve(snapshot.extension(discovered.id).map(|e| &**e), false)
    }

    #[test]
    fn a_listener_waits_for_its_filters_and_keeps_the_last_good_one() {
        let (mut compiler, now) = with_routes();
        accepted(compiler.apply(LISTENER, vec![listener("")], &[], now));
        accepted(compiler.apply(ROUTE, vec![routes("c")], &[], now));
        assert!(compiler.wanted().extensions.contains("extra"));
        assert_eq!(compiler.snapshot().listeners.len(), 0);
        accepted(compiler.apply(EXTENSION, vec![extension(pack(&Cors::default()))], &[], now));
        let version = compiler.snapshot().version;
        assert!(matches!(filter(&mut compiler), Some(HttpFilter::Cors)));
        for (config, why) in [(pack(&HttpFault::default()), "not in type_urls"), (pack(&Router::default()), "router is not discovered")] {
            let rejected = compiler.apply(EXTENSION, vec![extension(config)], &[], now);
            assert!(rejected[0].reason.contains(why), "{rejected:?}");
        }
        assert_eq!(compiler.snapshot().version, version, "nothing changed");
        accepted(compiler.apply(EXTENSION, Vec::new(), &["extra".to_owned()], now));
        assert!(filter(&mut compiler).is_none(), "it has no default");
        let outcomes: Vec<Outcome> = compiler.take_reloads().into_iter().map(|reload| reload.outcome).collect();
        assert_eq!(outcomes, [Outcome::Awaited, Outcome::Reloaded, Outcome::Failed, Outcome::Failed, Outcome::Reloaded]);
        accepted(compiler.apply(EXTENSION, vec![extension(pack(&Cors::default()))], &[], now));
        let narrow = rds_listener().replace(
            "http_filters: [",
            "http_filters: [{name: extra, config_discovery: {config_source: {ads: {}}, type_urls: [type.googleapis.com/envoy.extensions.filters.http.router.v3.Router]}}, ",
        );
        accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&narrow)], &[], now));
        let conflict = Reload { place: "http_filter", name: "extra".into(), outcome: Outcome::Conflicting };
        assert_eq!(compiler.take_reloads().last(), Some(&conflict));
        accepted(compiler.apply(LISTENER, Vec::new(), &["l".to_owned()], now));
        assert!(compiler.wanted().extensions.is_empty() && compiler.list(Kind::Extension).is_empty());
    }

    #[test]
    fn a_default_serves_until_then_at_once_or_when_waiting_is_over() {
        let default = "default_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors},";
        for (more, at_once) in [(default.to_owned(), false), (format!("{default} apply_default_config_without_warming: true,"), true)] {
            let (mut compiler, now) = with_routes();
            accepted(compiler.apply(LISTENER, vec![listener(&more)], &[], now));
            accepted(compiler.apply(ROUTE, vec![routes("c")], &[], now));
            assert_eq!(compiler.snapshot().listeners.len(), usize::from(at_once));
            compiler.settle(now + FETCH_TIMEOUT);
            assert!(matches!(filter(&mut compiler), Some(HttpFilter::Cors)));
        }
        let (mut compiler, now) = with_routes();
        accepted(compiler.apply(LISTENER, vec![listener("")], &[], now));
        accepted(compiler.apply(ROUTE, vec![routes("c")], &[], now));
        compiler.settle(now + FETCH_TIMEOUT);
        assert!(filter(&mut compiler).is_none(), "nothing came, and there is no default");
    }

    #[test]
    fn what_cannot_be_discovered_is_refused_with_its_place() {
        let reason = |more: &str| {
            let rejected = Compiler::new().apply(LISTENER, vec![listener(more)], &[], Instant::now());
            rejected.into_iter().next().map(|r| r.reason).unwrap_or_default()
        };
        let early = reason("apply_default_config_without_warming: true,");
        assert!(early.contains("config_discovery.apply_default_config_without_warming: needs a default_config"), "{early}");
        let other = reason("default_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault},");
        assert!(other.contains("config_discovery.default_config: extra has type"), "{other}");
    }

    const RBAC: &str = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC";
    const DIRECT: &str = "type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config";
    const INSPECTOR: &str = "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";

    fn place(name: &str, types: &[&str], more: &str) -> String {
        format!("{{name: {name}, config_discovery: {{config_source: {{ads: {{}}}}, {more} type_urls: [{}]}}}}", types.join(", "))
    }

    fn connections(listener_filters: &str, filters: &str) -> String {
        format!("{{name: l, address: {ANY_80}, listener_filters: [{listener_filters}], filter_chains: [{{filters: [{filters}]}}]}}")
    }

    fn named(name: &str, type_url: &str) -> Update {
        let config = Any { type_url: type_url.to_owned(), value: Vec::new() };
        let body = pack(&TypedExtensionConfig { name: name.to_owned(), typed_config: Some(config) });
        Update { name: name.to_owned(), version: "1".to_owned(), body }
    }

    #[test]
    fn filters_of_connections_are_waited_for_and_put_in_their_places() {
        let (mut compiler, now) = (Compiler::new(), Instant::now());
        let filters = format!("{}, {}", place("before", &[RBAC], ""), place("last", &[DIRECT], ""));
        let listener = connections(&place("inspector", &[INSPECTOR], ""), &filters);
        accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&listener)], &[], now));
        assert!(compiler.wanted().extensions.iter().map(|name| &**name).eq(["before", "inspector", "last"]));
        for (name, type_url) in [("before", RBAC), ("last", DIRECT)] {
            accepted(compiler.apply(EXTENSION, vec![named(name, type_url)], &[], now));
            assert_eq!(compiler.snapshot().listeners.len(), 0, "the rest is still missing");
        }
        accepted(compiler.apply(EXTENSION, vec![named("inspector", INSPECTOR)], &[], now));
        let snapshot = compiler.snapshot();
        let found = |id| snapshot.extension(id).map(|e| &**e);
        let listener = &snapshot.listeners[0];
        let inspectors = listener.inspectors.resolve(found);
        assert!(inspectors.tls.is_some() && inspectors.discovered.is_empty(), "{inspectors:?}");
        let chain = listener.chains[0].resolve(found, false);
        assert!(matches!((&chain.filters[..], &chain.terminal), ([NetworkFilter::Rbac(_)], Terminal::DirectResponse(_))), "{chain:?}");
    }

    #[test]
    fn a_filter_of_connections_that_does_not_fit_its_place_is_refused() {
        let refused = |listener_filters: &str, filters: &str| refused_listener(&connections(listener_filters, filters));
        let direct = place("x", &[DIRECT], &format!("default_config: {{'@type': {DIRECT}}},"));
        let reason = refused("", &format!("{direct}, {}", tcp("c")));
        assert!(reason.starts_with("filter_chains[0].filters[0].config_discovery.default_config: x: must be the last"), "{reason}");
        let reason = refused("", &place("x", &[RBAC], &format!("default_config: {{'@type': {RBAC}}},")));
        assert!(reason.starts_with("filter_chains[0].filters[0].config_discovery.default_config: x: the last filter must"), "{reason}");
        let reason = refused(&place("x", &[], ""), &tcp("c"));
        assert!(reason.starts_with("listener_filters[0].config_discovery.type_urls: is empty"), "{reason}");
        let elsewhere = place("x", &[DIRECT], "").replace("ads: {}", "path: f");
        let reason = refused("", &elsewhere);
        assert!(reason.starts_with("filter_chains[0].filters[0].config_discovery.config_source: is not supported"), "{reason}");
        // What comes later is judged by the places it is wanted for.
        let (mut compiler, now) = (Compiler::new(), Instant::now());
        let manager = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
        let listener = connections("", &place("x", &[RBAC, DIRECT, manager], ""));
        accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&listener)], &[], now));
        for (type_url, why) in [(RBAC, "must consume the connection"), (manager, "not discovered"), (INSPECTOR, "not in type_urls")] {
            let rejected = compiler.apply(EXTENSION, vec![named("x", type_url)], &[], now);
            assert!(rejected[0].reason.contains(why), "{rejected:?}");
        }
    }
}

#[test]
fn an_explanation_names_the_endpoints_of_the_subset_alone() {
    let endpoint = |port: u16, v: &str| {
        format!(
            "{{endpoint: {{address: {{socket_address: {{address: 10.0.0.1, port_value: {port}}}}}}}, metadata: {{filter_metadata: {{envoy.lb: {{v: {v}}}}}}}}}"
        )
    };
    let cluster = format!(
        "{{name: c, type: STATIC, lb_subset_config: {{subset_selectors: [{{keys: [v]}}]}}, load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{}, {}]}}]}}}}",
        endpoint(1, "one"),
        endpoint(2, "two")
    );
    let route = "{name: r, virtual_hosts: [{name: v, domains: ['*'], routes: [\
                 {match: {prefix: /two}, route: {cluster: c, metadata_match: {filter_metadata: {envoy.lb: {v: two}}}}}, {match: {prefix: /}, route: {cluster: c}}]}]}";
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&cluster)], &[], now));
    accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&rds_listener())], &[], now));
    accepted(compiler.apply(ROUTE, vec![update::<RouteProto>(route)], &[], now));
    let snapshot = compiler.snapshot();
    let explain = |path: &str| snapshot.explain(&Call::http("10.1.1.1:80".parse().unwrap(), "any", path)).to_string();
    let two = explain("/two");
    assert!(two.contains("10.0.0.1:2") && !two.contains("10.0.0.1:1"), "{two}");
    let none = explain("/");
    assert!(none.contains("503") && !none.contains("10.0.0.1:"), "{none}");
}

fn hosts(compiler: &mut Compiler, cluster: &str) -> Arc<HostSet> {
    compiler.snapshot().cluster_named(cluster).unwrap().1.hosts.clone()
}

#[test]
fn a_host_lives_on_when_its_weight_or_its_labels_change() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let cluster = EDS.replace("name: c", "name: c, lb_subset_config: {subset_selectors: [{keys: [v]}]}");
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&cluster)], &[], now));
    let endpoint = |weight: u32, v: &str| {
        update::<EndpointProto>(&format!(
            "{{cluster_name: s, policy: {{overprovisioning_factor: 200, weighted_priority_health: true}}, endpoints: [{{lb_endpoints: [\
             {{endpoint: {{address: {ANY_80}}}, load_balancing_weight: {weight}, metadata: {{filter_metadata: {{envoy.lb: {{v: '{v}'}}}}}}}}]}}]}}"
        ))
    };
    accepted(compiler.apply(ENDPOINT, vec![endpoint(1, "a")], &[], now));
    let before = hosts(&mut compiler, "c");
    assert_eq!((before.overprovisioning_percent, before.weighted_priority_health), (200, true), "discovered endpoints bring their policy");
    accepted(compiler.apply(ENDPOINT, vec![endpoint(7, "b")], &[], now));
    let after = hosts(&mut compiler, "c");
    assert!(Arc::ptr_eq(before.hosts().next().unwrap(), after.hosts().next().unwrap()));
    assert_eq!(after.hosts().next().unwrap().weight(), 7);
    let (before, after) = (before.subsets.as_ref().unwrap(), after.subsets.as_ref().unwrap());
    assert_eq!((before.len(), after.len(), after.beyond(before)), (1, 1, 1));
}

#[test]
fn a_share_of_requests_to_be_dropped_comes_with_endpoints_and_goes_with_them() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(EDS)], &[], now));
    let policy = |drops: &str| update::<EndpointProto>(&format!("{{cluster_name: s, policy: {{drop_overloads: [{drops}]}}}}"));
    accepted(compiler.apply(
        ENDPOINT,
        vec![policy("{category: x, drop_percentage: {numerator: 25, denominator: TEN_THOUSAND}}")],
        &[],
        now,
    ));
    assert_eq!(hosts(&mut compiler, "c").dropped_per_million, 2_500);
    for (drops, why) in [
        ("{category: x}, {category: y}", "policy.drop_overloads: has more than one category; add them up in one"),
        ("{drop_percentage: {numerator: 101}}", "policy.drop_overloads.drop_percentage: 101 of 100 is more than all"),
    ] {
        let rejected = compiler.apply(ENDPOINT, vec![policy(drops)], &[], now);
        assert_eq!(rejected.iter().map(|r| r.reason.as_str()).collect::<Vec<_>>(), [why]);
    }
    accepted(compiler.apply(ENDPOINT, vec![policy("")], &[], now));
    assert_eq!(hosts(&mut compiler, "c").dropped_per_million, 0);
}

#[test]
fn clusters_that_go_by_zones_follow_the_local_cluster_and_keep_their_hosts() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    compiler.set_local_cluster("c", Locality { zone: "z".into(), ..Locality::default() });
    let other = |name: &str, more: &str| {
        update::<ClusterProto>(&format!(
            "{{name: {name}, type: STATIC, {more} load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {ANY_80}}}}}]}}]}}}}"
        ))
    };
    accepted(compiler.apply(CLUSTER, vec![other("o", ""), other("h", "lb_policy: RING_HASH,"), update::<ClusterProto>(EDS)], &[], now));
    let local = |compiler: &mut Compiler, name: &str| compiler.snapshot().cluster_named(name).unwrap().1.local.clone();
    assert!(local(&mut compiler, "o").is_none(), "the local cluster waits for its endpoints");
    let before = hosts(&mut compiler, "o");
    accepted(compiler.apply(ENDPOINT, vec![endpoints(&["10.0.0.1"])], &[], now));
    let first = local(&mut compiler, "o").unwrap();
    assert_eq!((&*first.locality.zone, first.hosts.len()), ("z", 1));
    accepted(compiler.apply(ENDPOINT, vec![endpoints(&["10.0.0.1", "10.0.0.2"])], &[], now));
    assert_eq!(local(&mut compiler, "o").unwrap().hosts.len(), 2);
    assert!(Arc::ptr_eq(&before, &hosts(&mut compiler, "o")));
    assert!(local(&mut compiler, "h").is_none(), "hash policies know no zones");
}

#[test]
fn what_cannot_be_balanced_as_asked_is_refused_by_its_field() {
    let refused = |fields: &str| refused_cluster(&format!("{{name: c, type: STATIC, {fields}}}"));
    let policy = |name: &str, fields: &str| {
        refused(&format!(
            "load_balancing_policy: {{policies: [{{typed_extension_config: {{name: p, typed_config: {{'@type': \
             type.googleapis.com/envoy.extensions.load_balancing_policies.{name}, {fields}}}}}}}]}}"
        ))
    };
    let subset = |fields: &str| refused(&format!("lb_subset_config: {{subset_selectors: [{{keys: [a, b], {fields}}}]}}"));
    for (reason, part) in [
        (subset("fallback_policy: KEYS_SUBSET"), "subset_selectors[0].fallback_keys_subset: must be some"),
        (subset("fallback_policy: KEYS_SUBSET, fallback_keys_subset: [b, a]"), "must be some of the keys"),
        (subset("fallback_policy: KEYS_SUBSET, fallback_keys_subset: [c]"), "must be some of the keys"),
        (subset("fallback_policy: ANY_ENDPOINT, fallback_keys_subset: [a]"), "only for the fallback policy KEYS_SUBSET"),
        (
            refused("round_robin_lb_config: {slow_start_config: {slow_start_window: 5s, aggression: {default_value: 0}}}"),
            "slow_start_config.aggression",
        ),
        (
            refused("lb_policy: RING_HASH, common_lb_config: {consistent_hashing_lb_config: {hash_balance_factor: 99}}"),
            "consistent_hashing_lb_config.hash_balance_factor",
        ),
        (refused("circuit_breakers: {per_host_thresholds: [{max_requests: 1}]}"), "per_host_thresholds[0]: only max_connections"),
        (policy("peak_ewma.v3.PeakEwma", "decay_time: 0s"), "decay_time: must be above zero"),
        (policy("subset.v3.Subset", "subset_selectors: [{keys: [a]}]"), "subset_lb_policy: is missing"),
    ] {
        assert!(reason.contains(part), "{reason:?} does not name {part:?}");
    }
}

#[test]
fn zones_slow_start_and_hashing_are_taken_from_either_form() {
    let settings = |fields: &str| {
        let mut compiler = Compiler::new();
        accepted(compiler.apply(
            CLUSTER,
            vec![update::<ClusterProto>(&format!("{{name: c, type: STATIC, {fields}}}"))],
            &[],
            Instant::now(),
        ));
        compiler.snapshot().cluster_named("c").unwrap().1.config.balance.clone()
    };
    let typed = |name: &str, fields: &str| {
        settings(&format!(
            "load_balancing_policy: {{policies: [{{typed_extension_config: {{name: p, typed_config: {{'@type': \
             type.googleapis.com/envoy.extensions.load_balancing_policies.{name}, {fields}}}}}}}]}}"
        ))
    };
    let slow = "slow_start_config: {slow_start_window: 60s, aggression: {default_value: 2}, min_weight_percent: {value: 20}}";
    let old = settings(&format!(
        "round_robin_lb_config: {{{slow}}}, common_lb_config: {{zone_aware_lb_config: {{routing_enabled: {{value: 50.9}}, min_cluster_size: 3}}}}"
    ));
    let new = typed(
        "round_robin.v3.RoundRobin",
        &format!("{slow}, locality_lb_config: {{zone_aware_lb_config: {{routing_enabled: {{value: 50}}, min_cluster_size: 3}}}}"),
    );
    assert_eq!(old, new);
    assert_eq!((old.slow_start.unwrap().window_millis, old.zone_aware.routing_enabled, old.zone_aware.min_cluster_size), (60_000, 50, 3));
    let hashing = "consistent_hashing_lb_config: {use_hostname_for_hashing: true, hash_balance_factor: 150}";
    let old = settings(&format!("lb_policy: MAGLEV, common_lb_config: {{{hashing}}}"));
    assert_eq!(old, typed("maglev.v3.Maglev", hashing));
    assert_eq!(old.hashing.balance_factor, Some(150));
    let subset = |name: &str| {
        typed(
            "subset.v3.Subset",
            &format!(
                "subset_selectors: [{{keys: [a]}}], subset_lb_policy: {{policies: [{{typed_extension_config: {{name: p, typed_config: {{'@type': type.googleapis.com/envoy.extensions.load_balancing_policies.{name}}}}}}}]}}"
            ),
        )
    };
    assert_eq!(subset("random.v3.Random"), settings("lb_policy: RANDOM, lb_subset_config: {subset_selectors: [{keys: [a]}]}"));
    assert!(settings("lb_subset_config: {fallback_policy: ANY_ENDPOINT}").subsets.is_none(), "nothing divides the cluster");
}
