use super::*;

const MINIMAL: &str = "
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}
static_resources:
  listeners:
  - name: l
    address: {socket_address: {address: 127.0.0.1, port_value: 8080}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: x
          cluster: c
";

#[test]
fn a_minimal_bootstrap_is_read() {
    let bootstrap = parse(MINIMAL, "test.yaml").unwrap();
    assert_eq!(bootstrap.admin, Some(AdminAddress::Socket("127.0.0.1:9901".parse().unwrap())));
    assert_eq!(bootstrap.resources.len(), 1);
}

#[test]
fn nesting_without_end_is_refused_before_the_stack_is() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("- ", ""), ("{a: ", "}")] {
        let text = format!("node: {{metadata: {{a: {}1{}}}}}", open.repeat(100_000), close.repeat(100_000));
        assert!(parse(&text, "deep.yaml").unwrap_err().to_string().starts_with("deep.yaml"), "{open}");
        let json = format!("{{\"node\":{}1{}}}", open.repeat(100_000), close.repeat(100_000));
        assert!(parse(&json, "deep.json").is_err(), "{open}");
    }
}

#[test]
fn errors_name_line_and_field() {
    let cases = [
        (
            MINIMAL.replace("stat_prefix", "stat_prefxi"),
            "test.yaml:12: static_resources.listeners[0].filter_chains[0].filters[0].typed_config.stat_prefxi: is not a field of TcpProxy; did you mean `stat_prefix`?",
        ),
        (
            MINIMAL.replace("port_value: 8080", "port_value: [1]"),
            "test.yaml:6: static_resources.listeners[0].address.socket_address.port_value: ",
        ),
        (
            MINIMAL.replace("v3.TcpProxy", "v3.TcpProxi"),
            "test.yaml:10: static_resources.listeners[0].filter_chains[0].filters[0].typed_config: `envoy.extensions.filters.network.tcp_proxy.v3.TcpProxi` is not a known type",
        ),
        (MINIMAL.replace("  - name: l", "  - l"), "test.yaml: line"),
        (MINIMAL.to_owned() + "hds_config: {api_type: GRPC}\n", "test.yaml: hds_config: is not supported; remove it"),
        (
            MINIMAL.to_owned() + "cluster_manager: {outlier_detection: {event_log_path: /dev/stdout}}\n",
            "test.yaml: cluster_manager.outlier_detection.event_log_path: is not supported; remove it",
        ),
        (
            MINIMAL.to_owned() + "dynamic_resources: {lds_config: {path: /no/such.yaml}}\n",
            "test.yaml: dynamic_resources.lds_config.path: `/no/such.yaml` does not exist",
        ),
        (
            MINIMAL.to_owned() + "dynamic_resources: {cds_config: {path_config_source: {path: /no/such.yaml}}}\n",
            "test.yaml: dynamic_resources.cds_config.path_config_source.path: `/no/such.yaml` does not exist",
        ),
        (MINIMAL.to_owned() + "dynamic_resources: {lds_config: {ads: {}}}\n", "test.yaml: dynamic_resources.lds_config.ads: there is no"),
    ];
    for (text, expected) in cases {
        let error = parse(&text, "test.yaml").unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}\nexpected {expected}");
    }
}

#[test]
fn ads_is_understood() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let text = "
dynamic_resources:
  ads_config: {api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: xds-grpc}, initial_metadata: [{key: k, value: v}]}]}
  lds_config: {ads: {}, initial_fetch_timeout: 0s, resource_api_version: V3}
  cds_config: {path_config_source: {path: PATH}}
layered_runtime: {layers: [{name: a, static_layer: {envoy.x: 1}}, {name: admin, admin_layer: {}}]}
stats_config: {stats_matcher: {inclusion_list: {patterns: [{prefix: cluster.}, {safe_regex: {regex: 'http\\..*\\.rbac\\..*'}}]}}}
";
    let bootstrap = parse(&text.replace("PATH", path), "b").unwrap();
    let ads = bootstrap.ads.unwrap();
    let metadata = vec![("k".to_owned(), http::HeaderValue::from_static("v"))];
    assert_eq!(ads, ApiSource { cluster: "xds-grpc".into(), delta: true, authority: "xds-grpc".into(), metadata });
    assert_eq!((bootstrap.listeners, bootstrap.clusters), (Some(DynamicSource::Ads), Some(DynamicSource::Path(path.to_owned()))));
    assert_eq!((bootstrap.listeners_within, bootstrap.clusters_within), (FetchTimeout::Never, FetchTimeout::Never));
    assert!(
        bootstrap.stats.shows("cluster.a.b") && bootstrap.stats.shows("http.a.rbac.allowed") && !bootstrap.stats.shows("server.uptime")
    );
}
