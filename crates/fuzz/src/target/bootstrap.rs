//! Bootstrap files: any text is a bootstrap or an error that names the file.
use lateen_snapshot::bootstrap;

pub(crate) fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Err(error) = bootstrap::parse(&text, "fuzzed.yaml") {
        assert!(error.to_string().starts_with("fuzzed.yaml"), "{error}");
    }
}

/// Listener, routes, cluster and endpoints with most of what requests meet.
pub(crate) const WHOLE: &str = r#"
node: {id: n, cluster: c, metadata: {a: [1, {b: true}]}}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}
layered_runtime: {layers: [{name: l, static_layer: {overload: {global_downstream_max_connections: 7}}}]}
static_resources:
  clusters:
  - name: c
    type: STATIC
    connect_timeout: 1s
    lb_policy: RING_HASH
    circuit_breakers: {thresholds: [{max_connections: 3, max_requests: 5}]}
    outlier_detection: {consecutive_5xx: 3, interval: 1s}
    load_assignment: {cluster_name: c, endpoints: [{locality: {region: r}, priority: 0, lb_endpoints: [{load_balancing_weight: 2, endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 80}}}}]}]}
  listeners:
  - name: l
    address: {socket_address: {address: 0.0.0.0, port_value: 80}}
    listener_filters: [{name: t, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}]
    filter_chains:
    - filter_chain_match: {server_names: [a, "*.b"], application_protocols: [h2], prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}
      filters:
      - name: h
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: s
          http_filters:
          - {name: f, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, abort: {http_status: 503, percentage: {numerator: 1}}}}
          - {name: r, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
          route_config:
            name: r
            virtual_hosts:
            - name: v
              domains: ["a", "*.a", "b.*", "*"]
              routes:
              - match: {safe_regex: {regex: "/a[0-9]+"}, headers: [{name: x, string_match: {prefix: y}, invert_match: true}]}
                route: {weighted_clusters: {clusters: [{name: c, weight: 1}, {name: d, weight: 2}]}, timeout: 3s, retry_policy: {retry_on: 5xx, num_retries: 2}, hash_policy: [{header: {header_name: x}}]}
              - match: {prefix: /b, query_parameters: [{name: q, present_match: true}]}
                redirect: {https_redirect: true, prefix_rewrite: /c}
              - {match: {path: /d}, direct_response: {status: 200, body: {inline_string: x}}}
    - filters: [{name: t, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: c}}]
"#;

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let small = [
        "a: &x {b: 1}\nc: *x\n",
        "{\"node\": {\"id\": \"\\u00e9\"}}",
        "node:\n  id: |\n    x\n",
        "- a\n- [b, {c: d}]\n",
        "a: 'b''c'\n# d\n",
    ];
    let mut seeds: Vec<Vec<u8>> = small.map(|text| text.as_bytes().to_vec()).to_vec();
    // Pieces of a whole one: damage to a long text is rarely deep.
    seeds.extend(WHOLE.split("\n  ").map(|piece| piece.as_bytes().to_vec()));
    seeds.push(WHOLE.as_bytes().to_vec());
    seeds
}
