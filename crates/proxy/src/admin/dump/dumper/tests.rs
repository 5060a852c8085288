//! What the dumps show.
use std::time::SystemTime;

use base64::Engine;

use super::*;

#[test]
fn what_a_refused_listener_holds_of_keys_is_withheld() {
    let redacted = json!({"inline_string": "[redacted]"});
    let bytes = |text: &str| json!({"inline_bytes": base64::engine::general_purpose::STANDARD.encode(text)});
    let provider = |config: &Value| json!({"provider_name": "p", "typed_config": config});
    let tls = |key: &Value, config: &Value| {
        json!({"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
               "session_ticket_keys": {"keys": [key, {"filename": "/k"}]},
               "common_tls_context": {"tls_certificates": [{"private_key_provider": provider(config), "password": key}]}})
    };
    let any = |text: &str| json!({"@type": "type.googleapis.com/google.protobuf.StringValue", "value": text});
    let listener = |key: &Value, config: &Value| {
        let socket = json!({"name": "tls", "typed_config": tls(key, config)});
        json!({"name": "l", "filter_chains": [{"transport_socket": socket}]})
    };
    let url = lateen_xds::types::LISTENER;
    let value = Codec::new().encode(any::name_of(url), &(&listener(&bytes("KEY"), &any("KEY"))).into()).unwrap();
    let shown = dumper().body(&Any { type_url: url.to_owned(), value });
    assert_eq!(shown, typed(url, listener(&redacted, &any("[redacted]"))), "{shown:#}");
}

#[test]
fn of_an_extension_that_nobody_knows_the_type_is_shown_and_the_rest_as_ever() {
    use lateen_proto::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter::ConfigType};
    let unknown = Any { type_url: "x/no.Such".to_owned(), value: b"KEY".to_vec() };
    let filter = Filter { name: "f".to_owned(), config_type: Some(ConfigType::TypedConfig(unknown)) };
    let chain = FilterChain { filters: vec![filter], ..FilterChain::default() };
    let listener = Listener { name: "l".to_owned(), filter_chains: vec![chain], ..Listener::default() };
    let filters = json!([{"name": "f", "typed_config": {"@type": "x/no.Such"}}]);
    let expected = json!({"name": "l", "filter_chains": [{"filters": filters}]});
    assert_eq!(dumper().body(&any::pack(&listener)), typed(lateen_xds::types::LISTENER, expected));
}

const MANAGER: &str = "'@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
                       stat_prefix: t, http_filters: [{name: r, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]";
const KEY: &str = "scope_key_builder: {fragments: [{header_value_extractor: {name: x, index: 0}}]}";

/// A main thread whose listeners have each of these settings, where discovery is incremental.
fn with_listeners(settings: &[&str]) -> std::sync::Arc<Main> {
    let listener = |(index, more): (usize, &&str)| {
        format!(
            "{{name: l{index}, address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}, \
             filter_chains: [{{filters: [{{name: h, typed_config: {{{MANAGER}, {more}}}}}]}}]}}",
            index + 1
        )
    };
    let listeners: Vec<String> = settings.iter().enumerate().map(listener).collect();
    crate::main_thread::test_support::main(&format!(
        "{{node: {{id: n, cluster: c}}, \
         dynamic_resources: {{ads_config: {{api_type: DELTA_GRPC, grpc_services: [{{envoy_grpc: {{cluster_name: x}}}}]}}}}, \
         static_resources: {{clusters: [{{name: x, type: STATIC, load_assignment: {{cluster_name: y}}}}], listeners: [{}]}}}}",
        listeners.join(", ")
    ))
}

fn discover(main: &Main, type_url: &str, name: &str, json: &Value) {
    discover_from(main, &SecretSource::Ads, type_url, name, json);
}

fn discover_from(main: &Main, source: &SecretSource, type_url: &str, name: &str, json: &Value) {
    let value = Codec::new().encode(any::name_of(type_url), &json.into()).unwrap();
    let body = Any { type_url: type_url.to_owned(), value };
    let update = lateen_snapshot::compile::Update { name: name.to_owned(), version: "7".to_owned(), body };
    assert_eq!(main.apply(source, type_url, vec![update], &[]), []);
}

fn dumper() -> Dumper {
    Dumper { codec: Codec::new(), names: None, started: String::new() }
}

#[test]
fn routes_are_shown_with_the_virtual_hosts_that_were_discovered() {
    use lateen_xds::types::{ROUTE, VIRTUAL_HOST};
    let main = with_listeners(&["rds: {route_config_name: r, config_source: {ads: {}}}"]);
    discover(&main, ROUTE, "r", &json!({"name": "r", "vhds": {"config_source": {"ads": {}}}}));
    discover(&main, VIRTUAL_HOST, "r/a", &json!({"name": "r/a", "domains": ["a.test"]}));
    let shown = dumper().routes(&main);
    let config = &shown["dynamic_route_configs"][0]["route_config"];
    assert_eq!(config["virtual_hosts"], json!([{"name": "r/a", "domains": ["a.test"]}]), "{shown:#}");
}

#[test]
fn scopes_are_shown_as_listed_and_as_discovered() {
    let scope = |name: &str| json!({"name": name, "key": {"fragments": [{"string_key": name}]}, "route_configuration": {"name": "r"}});
    let listed =
        format!("scoped_routes: {{name: one, {KEY}, scoped_route_configurations_list: {{scoped_route_configurations: [{}]}}}}", scope("a"));
    let found = format!("scoped_routes: {{name: two, {KEY}, scoped_rds: {{scoped_rds_config_source: {{ads: {{}}}}}}}}");
    let main = with_listeners(&[&listed, &found]);
    discover(&main, SCOPE, "b", &scope("b"));
    let shown = dumper().scopes(&main);
    let (inline, dynamic) = (&shown["inline_scoped_route_configs"][0], &shown["dynamic_scoped_route_configs"][0]);
    assert_eq!((&inline["name"], &inline["scoped_route_configs"][0]["name"]), (&json!("one"), &json!("a")), "{shown:#}");
    assert_eq!((&dynamic["name"], &dynamic["version_info"]), (&json!("two"), &json!("7")), "{shown:#}");
    assert_eq!(dynamic["scoped_route_configs"], json!([typed(SCOPE, scope("b"))]));
}

#[test]
fn secrets_are_shown_with_when_they_came() {
    use lateen_xds::types::{CLUSTER, SECRET};
    let main = with_listeners(&[]);
    let context = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {"validation_context_sds_secret_config": {"name": "roots", "sds_config": {"ads": {}}}}
    });
    discover(&main, CLUSTER, "c", &json!({"name": "c", "type": "STATIC", "transport_socket": {"name": "tls", "typed_config": context}}));
    let key = rcgen::KeyPair::generate().unwrap();
    let root = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    let before = SystemTime::now();
    discover(&main, SECRET, "roots", &json!({"name": "roots", "validation_context": {"trusted_ca": {"inline_string": root}}}));
    let shown = dumper().secrets(&main);
    let secret = &shown["dynamic_active_secrets"][0];
    assert_eq!((&secret["name"], &secret["version_info"]), (&json!("roots"), &json!("7")), "{shown:#}");
    assert!(secret["last_updated"].as_str().unwrap() >= &*rfc3339_millis(before), "{shown:#}");
}

#[test]
fn a_secret_that_is_waited_for_is_shown_as_one_without_content() {
    use lateen_xds::types::CLUSTER;
    let main = with_listeners(&[]);
    let context = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {"validation_context_sds_secret_config": {"name": "roots", "sds_config": {"ads": {}}}}
    });
    let before = rfc3339_millis(SystemTime::now());
    discover(&main, CLUSTER, "c", &json!({"name": "c", "type": "STATIC", "transport_socket": {"name": "tls", "typed_config": context}}));
    let shown = dumper().secrets(&main);
    let secret = &shown["dynamic_warming_secrets"][0];
    assert_eq!(secret["secret"], json!({"@type": SECRET, "name": "roots"}), "{shown:#}");
    assert_eq!((&secret["name"], &secret["version_info"]), (&json!("roots"), &json!("uninitialized")));
    assert!(secret["last_updated"].as_str().unwrap() >= &*before, "{shown:#}");
    let others = Dumper { names: Some(Regex::new("other").unwrap()), ..dumper() }.secrets(&main);
    assert_eq!(others.get("dynamic_warming_secrets"), None, "{others:#}");
}

/// Hosts of one locality.
fn loads(hosts: &[Value]) -> Value {
    json!([{"locality": {"region": "r"}, "lb_endpoints": hosts, "load_balancing_weight": 0}])
}

fn sent(port: u16, more: &Value) -> Value {
    let address = json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
    let mut endpoint = json!({"endpoint": {"address": address}});
    endpoint.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    endpoint
}

#[test]
fn endpoints_are_those_of_the_clusters_in_use() {
    use lateen_xds::types::{CLUSTER, ENDPOINT};
    let main = with_listeners(&[]);
    for name in ["a", "b"] {
        let service = json!({"service_name": "s", "eds_config": {"ads": {}}});
        discover(&main, CLUSTER, name, &json!({"name": name, "type": "EDS", "eds_cluster_config": service}));
    }
    let labels = json!({"metadata": {"filter_metadata": {"istio": {"workload": "w"}}}});
    let hosts = [sent(1, &labels), sent(2, &json!({"health_status": "DRAINING", "load_balancing_weight": 7}))];
    let overloads = json!([{"category": "much", "drop_percentage": {"numerator": 5}}]);
    let assignment = json!({"cluster_name": "s", "policy": {"drop_overloads": overloads}, "endpoints": loads(&hosts)});
    discover(&main, ENDPOINT, "s", &assignment);
    // One of the clusters, but not the other, has found the first of its hosts to be failing.
    let snapshot = main.snapshot();
    let (_, cluster) = snapshot.cluster_named("b").unwrap();
    cluster.hosts.hosts().next().unwrap().set_flag(lateen_balance::host::FAILED_OUTLIER, true);
    let shown = dumper().endpoints(&main);

    let fixed = &shown["static_endpoint_configs"];
    assert_eq!(fixed.as_array().map(Vec::len), Some(1), "{shown:#}");
    assert_eq!(fixed[0]["endpoint_config"]["cluster_name"], "x", "by its own name, whatever its endpoints were called");
    for (index, health) in ["HEALTHY", "UNHEALTHY"].into_iter().enumerate() {
        let entry = &shown["dynamic_endpoint_configs"][index];
        assert_eq!((&entry["version_info"], &entry["client_status"]), (&json!("7"), &json!("ACKED")), "{shown:#}");
        let config = &entry["endpoint_config"];
        assert_eq!(config["cluster_name"], "s");
        let drops = json!([{"category": "much", "drop_percentage": {"numerator": 50_000, "denominator": "MILLION"}}]);
        assert_eq!(config["policy"], json!({"overprovisioning_factor": 140, "drop_overloads": drops}));
        let mut hosts = [
            sent(1, &json!({"health_status": health, "load_balancing_weight": 1, "metadata": labels["metadata"]})),
            sent(2, &json!({"health_status": "UNHEALTHY", "load_balancing_weight": 7})),
        ];
        hosts.iter_mut().for_each(|host| host["endpoint"]["health_check_config"] = json!({}));
        assert_eq!(config["endpoints"], loads(&hosts));
    }
}

#[test]
fn endpoints_in_files_are_shown_by_their_name_alone() {
    let source = "eds_cluster_config: {service_name: s, eds_config: {path_config_source: {path: /dev/null}}}";
    let main = crate::main_thread::test_support::main(&format!("{{static_resources: {{clusters: [{{name: c, type: EDS, {source}}}]}}}}"));
    let body = json!({"cluster_name": "s", "endpoints": loads(&[sent(1, &json!({}))])});
    let name = lateen_snapshot::compile::in_file("/dev/null", "s");
    discover_from(&main, &SecretSource::Path("/dev/null".to_owned()), lateen_xds::types::ENDPOINT, &name, &body);
    let shown = dumper().endpoints(&main);
    let config = &shown["static_endpoint_configs"][0]["endpoint_config"];
    assert_eq!(config["cluster_name"], "s", "{shown:#}");
    assert_eq!(config["endpoints"][0]["lb_endpoints"][0]["health_status"], "HEALTHY", "{shown:#}");
}
