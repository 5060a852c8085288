//! What is refused, by the path of its field.
use super::*;

/// The reason why a listener is refused.
pub(super) fn refused_listener(text: &str) -> String {
    let mut compiler = Compiler::new();
    let rejected = compiler.apply(LISTENER, vec![update::<ListenerProto>(text)], &[], Instant::now());
    assert_eq!(compiler.snapshot().listeners.len(), 0);
    rejected.into_iter().next().map(|r| r.reason).unwrap_or_default()
}

pub(super) fn refused_cluster(text: &str) -> String {
    let rejected = Compiler::new().apply(CLUSTER, vec![update::<ClusterProto>(text)], &[], Instant::now());
    rejected.into_iter().next().map(|r| r.reason).unwrap_or_default()
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
            on(&format!("{{filters: [{}]}}", manager("common_http_protocol_options: {max_headers_count: 4097}, route_config: {name: r}"))),
            "filter_chains[0].filters[0].common_http_protocol_options.max_headers_count: 4097 is not between 1 and 4096",
        ),
        (
            on(&format!("{{filters: [{}]}}", manager("access_log_flush_interval: 1s, route_config: {name: r}"))),
            "filter_chains[0].filters[0].access_log_flush_interval: is not supported",
        ),
        (
            on(&format!(
                "{{filters: [{}]}}",
                manager("access_log: [{name: f, filter: {response_flag_filter: {flags: [NR, XX]}}}], route_config: {name: r}")
            )),
            "filter_chains[0].filters[0].access_log[0].filter.response_flag_filter.flags: `XX` is no response flag",
        ),
        (
            on(&format!("{{filters: [{}]}}", manager("access_log_options: {access_log_flush_interval: 1s}, route_config: {name: r}"))),
            "filter_chains[0].filters[0].access_log_options.access_log_flush_interval: is not supported",
        ),
        (
            on(&format!("{{filters: [{}]}}", manager("represent_ipv4_remote_address_as_ipv4_mapped_ipv6: true, route_config: {name: r}"))),
            "filter_chains[0].filters[0].represent_ipv4_remote_address_as_ipv4_mapped_ipv6: is not supported",
        ),
        (
            on(&format!(
                "{{filters: [{{name: r, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: r, rules: {{}}, delay_deny: 1s}}}}, {}]}}",
                tcp("a")
            )),
            "filter_chains[0].filters[0].delay_deny: is not supported",
        ),
        (
            on(&format!("{{filters: [{}]}}", manager("http_protocol_options: {allow_absolute_url: false}, route_config: {name: r}"))),
            "filter_chains[0].filters[0].http_protocol_options.allow_absolute_url: is not supported",
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
        (
            on(
                "{filters: [{name: r, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: s, \
                rules: {policies: {p: {permissions: [{header: {name: a}}], principals: [{any: true}]}}}}}]}",
            ),
            "filter_chains[0].filters[0].rules.policies[\"p\"].permissions[0].header: is not supported of a network filter",
        ),
        (
            format!(
                "{{name: l, address: {ANY_80}, filter_chains: [{{name: c}}], filter_chain_matcher: {{matcher_tree: {{input: {{name: h, typed_config: \
                 {{'@type': type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: a}}}}, exact_match_map: {{}}}}}}}}"
            ),
            "filter_chain_matcher.matcher_tree.input: h (envoy.type.matcher.v3.HttpRequestHeaderMatchInput) is not supported",
        ),
        ("{name: l, filter_chains: [{}]}".to_owned(), "address: is missing"),
        (format!("{{address: {ANY_80}, filter_chains: [{{}}]}}"), "name: is empty"),
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
            "{name: c, type: STATIC, common_http_protocol_options: {max_headers_count: 4097}}",
            "common_http_protocol_options.max_headers_count: 4097 is not between 1 and 4096",
        ),
        (
            "{name: c, type: STATIC, http2_protocol_options: {connection_keepalive: {interval: 1s}}}",
            "http2_protocol_options.connection_keepalive.timeout: is missing",
        ),
        (
            "{name: c, type: STATIC, http2_protocol_options: {connection_keepalive: {timeout: 1s, interval: 0.0001s}}}",
            "http2_protocol_options.connection_keepalive.interval: is less than 1 ms",
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
            "{name: c, type: STATIC, health_checks: [{timeout: 1s, interval: 1s, tcp_health_check: {}, event_logger: [{name: x, typed_config: {'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster}}]}]}",
            "health_checks[0].event_logger[0]: x (envoy.config.cluster.v3.Cluster) is not supported; the file sink is",
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
        ("{name: c, type: STATIC, connect_timeout: 0s}", "connect_timeout: must be more than zero"),
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
fn a_chain_has_so_many_filters_and_no_more() {
    let with = |count: usize| {
        let cors = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors";
        let more: String = (0..count).map(|i| format!("{{name: f{i}, typed_config: {{'@type': {cors}}}}}, ")).collect();
        let chain = manager("route_config: {name: r}").replace("http_filters: [", &format!("http_filters: [{more}"));
        refused_listener(&format!("{{name: l, address: {ANY_80}, filter_chains: [{{filters: [{chain}]}}]}}"))
    };
    let reason = with(64);
    assert!(reason.starts_with("filter_chains[0].filters[0].http_filters: has more than 64"), "{reason}");
}

#[test]
fn a_domain_occurs_once_wildcards_too() {
    let hosts = |first: &str, second: &str| {
        let text = format!("{{name: r, virtual_hosts: [{{name: a, domains: [{first}]}}, {{name: b, domains: [{second}]}}]}}");
        let rejected = Compiler::new().apply(ROUTE, vec![update::<RouteProto>(&text)], &[], Instant::now());
        rejected.into_iter().next().map(|r| r.reason).unwrap_or_default()
    };
    for domain in ["'*.a.com'", "'a.*'", "a.com", "'*.A.com'"] {
        let reason = hosts(domain, &domain.to_lowercase());
        assert!(reason.starts_with("virtual_hosts[1].domains") && reason.contains("is already a domain of another"), "{domain}: {reason}");
    }
    assert_eq!(hosts("'*.a.com', a.com, 'a.*'", "'*.b.com', '*.a.com.', 'a.com.*'"), "");
}

#[test]
fn hosts_that_come_with_requests_are_not_checked() {
    let checks = "health_checks: [{timeout: 1s, interval: 1s, healthy_threshold: 1, unhealthy_threshold: 1, tcp_health_check: {}}]";
    let by_name = "cluster_type: {name: x, typed_config: {'@type': type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig, \
                   dns_cache_config: {name: names}}}";
    for kind in ["type: ORIGINAL_DST", by_name] {
        let of = |more: &str| refused_cluster(&format!("{{name: c, lb_policy: CLUSTER_PROVIDED, {kind}, {more}}}"));
        assert_eq!(of("outlier_detection: {consecutive_5xx: 1}"), "", "Istio sends it");
        assert_eq!(of(checks), "health_checks: has no meaning here: the hosts come with requests");
    }
}

#[test]
fn options_of_tcp_connections_are_looked_at() {
    let with = |options: &str| {
        let typed = format!("{{'@type': type.googleapis.com/envoy.extensions.upstreams.tcp.v3.TcpProtocolOptions, {options}}}");
        refused_cluster(&format!(
            "{{name: c, type: STATIC, load_assignment: {{cluster_name: c}}, typed_extension_protocol_options: {{tcp: {typed}}}}}"
        ))
    };
    assert_eq!(with("idle_timeout: 5s"), "");
    let refused = with("idle_timeout: -5s");
    assert!(refused.starts_with("typed_extension_protocol_options[\"tcp\"].idle_timeout: is not a valid duration"), "{refused}");
}
