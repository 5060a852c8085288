//! What services, DestinationRules and PeerAuthentications do to clusters and endpoints.
mod common;

use std::time::Duration;

use lateen_proto::any;
use lateen_proto::envoy::config::cluster::v3::Cluster;
use lateen_proto::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType, LbConfig, LbPolicy};
use lateen_proto::envoy::config::core::v3::TransportSocket;
use lateen_proto::envoy::config::core::v3::transport_socket::ConfigType;
use lateen_proto::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use lateen_proto::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use lateen_proto::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use lateen_proto::envoy::extensions::upstreams::http::v3::http_protocol_options::UpstreamProtocolOptions;
use lateen_translate::type_url;

use common::{addresses, all, books, client, cluster, endpoints, stock};

const REVIEWS: &str = "outbound|9080||reviews.books.svc.cluster.local";

fn kind(cluster: &Cluster) -> Option<DiscoveryType> {
    match cluster.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind)) => kind.try_into().ok(),
        _ => None,
    }
}

fn rule(host: &str, spec: &str) -> String {
    let indented: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: r, namespace: books}}\nspec:\n  host: {host}\n{indented}"
    )
}

fn context(socket: &TransportSocket) -> UpstreamTlsContext {
    let Some(ConfigType::TypedConfig(config)) = &socket.config_type else { panic!() };
    any::open(config).unwrap()
}

fn http_options(cluster: &Cluster) -> HttpProtocolOptions {
    any::open(&cluster.typed_extension_protocol_options["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"]).unwrap()
}

#[test]
fn a_service_is_balanced_by_least_request_without_limits() {
    let cluster = cluster(&books(""), &client(), REVIEWS);
    assert_eq!(kind(&cluster), Some(DiscoveryType::Eds));
    assert_eq!(cluster.lb_policy, LbPolicy::LeastRequest as i32);
    assert_eq!(cluster.connect_timeout.unwrap().seconds, 10);
    assert_eq!(cluster.alt_stat_name, format!("{REVIEWS};"));
    let limits = &cluster.circuit_breakers.unwrap().thresholds[0];
    let all = [limits.max_connections, limits.max_pending_requests, limits.max_requests, limits.max_retries];
    assert_eq!(all, [Some(u32::MAX); 4]);
}

#[test]
fn every_pod_is_an_endpoint_marked_for_mutual_tls() {
    let assignment = endpoints(&books(""), &client(), REVIEWS);
    assert_eq!(addresses(&assignment), ["10.0.0.2:8080", "10.0.0.3:8080"]);
    let metadata = assignment.endpoints[0].lb_endpoints[0].metadata.clone().unwrap().filter_metadata;
    let text = |namespace: &str, key: &str| metadata[namespace].fields[key].kind.clone();
    let expect = |value: &str| Some(prost_types::value::Kind::StringValue(value.to_owned()));
    assert_eq!(text("envoy.transport_socket_match", "tlsMode"), expect("istio"));
    assert_eq!(text("istio", "workload"), expect("reviews-v1;books;reviews;v1;Kubernetes"));
}

#[test]
fn mutual_tls_is_automatic_and_checks_who_answers() {
    let cluster = cluster(&books(""), &client(), REVIEWS);
    let names: Vec<&str> = cluster.transport_socket_matches.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["tlsMode-istio", "tlsMode-disabled"]);
    let tls = context(cluster.transport_socket_matches[0].transport_socket.as_ref().unwrap());
    assert_eq!(tls.sni, "outbound_.9080_._.reviews.books.svc.cluster.local");
    let common = tls.common_tls_context.unwrap();
    assert_eq!(common.alpn_protocols, ["istio-peer-exchange", "istio"]);
    assert_eq!(common.tls_certificate_sds_secret_configs[0].name, "default");
    let Some(ValidationContextType::CombinedValidationContext(validation)) = common.validation_context_type else { panic!() };
    assert_eq!(validation.validation_context_sds_secret_config.unwrap().name, "ROOTCA");
    #[allow(deprecated)]
    let names = validation.default_validation_context.unwrap().match_subject_alt_names;
    let expected = lateen_proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern::Exact(
        "spiffe://cluster.local/ns/books/sa/reviews".to_owned(),
    );
    assert_eq!(names.into_iter().map(|name| name.match_pattern).collect::<Vec<_>>(), [Some(expected)]);
}

#[test]
fn a_namespace_that_disables_mutual_tls_is_called_in_plaintext() {
    let policy = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: books}\nspec: {mtls: {mode: DISABLE}}\n";
    let world = books(policy);
    let cluster = cluster(&world, &client(), REVIEWS);
    assert!(cluster.transport_socket_matches.is_empty() && cluster.transport_socket.is_none());
    let assignment = endpoints(&world, &client(), REVIEWS);
    assert!(
        !assignment.endpoints[0].lb_endpoints[0].metadata.as_ref().unwrap().filter_metadata.contains_key("envoy.transport_socket_match")
    );
}

#[test]
fn a_subset_is_a_cluster_with_its_own_endpoints_and_policy() {
    let yaml = rule(
        "reviews",
        "trafficPolicy:\n  loadBalancer: {simple: RANDOM}\n  connectionPool: {tcp: {maxConnections: 7}}\nsubsets:\n- {name: v1, labels: {version: v1}}\n- {name: v2, labels: {version: v2}, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}",
    );
    let world = books(&yaml);
    let v1 = cluster(&world, &client(), "outbound|9080|v1|reviews.books.svc.cluster.local");
    let v2 = cluster(&world, &client(), "outbound|9080|v2|reviews.books.svc.cluster.local");
    assert_eq!((v1.lb_policy, v2.lb_policy), (LbPolicy::Random as i32, LbPolicy::RoundRobin as i32));
    assert_eq!(v2.circuit_breakers.unwrap().thresholds[0].max_connections, Some(7), "what the subset leaves out is inherited");
    assert_eq!(
        context(v1.transport_socket_matches[0].transport_socket.as_ref().unwrap()).sni,
        "outbound_.9080_.v1_.reviews.books.svc.cluster.local"
    );
    let of = |subset: &str| addresses(&endpoints(&world, &client(), &format!("outbound|9080|{subset}|reviews.books.svc.cluster.local")));
    assert_eq!((of("v1"), of("v2"), of("v9")), (vec!["10.0.0.2:8080".to_owned()], vec!["10.0.0.3:8080".to_owned()], vec![]));
}

#[test]
fn a_new_endpoint_warms_up_under_the_policies_that_know_weights() {
    use lateen_proto::envoy::config::cluster::v3::cluster::SlowStartConfig;
    let config = |lb: &str| {
        let world = books(&rule("reviews", &format!("trafficPolicy:\n  loadBalancer: {lb}")));
        cluster(&world, &client(), REVIEWS).lb_config
    };
    let slow = |config| match config {
        Some(LbConfig::RoundRobinLbConfig(c)) => c.slow_start_config,
        Some(LbConfig::LeastRequestLbConfig(c)) => c.slow_start_config,
        _ => None,
    };
    let SlowStartConfig { slow_start_window, aggression, min_weight_percent } =
        slow(config("{simple: ROUND_ROBIN, warmup: {duration: 90s, minimumPercent: 25, aggression: 1.5}}")).unwrap();
    assert_eq!((slow_start_window.unwrap().seconds, min_weight_percent.unwrap().value), (90, 25.0));
    assert_eq!(aggression.unwrap().default_value, 1.5);
    let plain = slow(config("{warmupDurationSecs: 30s}")).unwrap();
    assert_eq!((plain.slow_start_window.unwrap().seconds, plain.aggression, plain.min_weight_percent), (30, None, None));
    assert_eq!(config("{simple: RANDOM, warmup: {duration: 90s}}"), None);
    assert_eq!(config("{simple: LEAST_REQUEST}"), None);
}

#[test]
fn port_settings_replace_the_whole_policy() {
    let yaml = rule(
        "ratings",
        "trafficPolicy:\n  loadBalancer: {simple: RANDOM}\n  connectionPool: {tcp: {maxConnections: 7}}\n  portLevelSettings:\n  - {port: {number: 7070}, connectionPool: {http: {http2MaxRequests: 3}}}",
    );
    let world = books(&yaml);
    let own = cluster(&world, &client(), "outbound|7070||ratings.books.svc.cluster.local");
    assert_eq!(own.lb_policy, LbPolicy::LeastRequest as i32, "not inherited");
    let limits = own.circuit_breakers.unwrap().thresholds[0];
    assert_eq!((limits.max_connections, limits.max_requests), (Some(u32::MAX), Some(3)));
    assert_eq!(cluster(&world, &client(), "outbound|7071||ratings.books.svc.cluster.local").lb_policy, LbPolicy::Random as i32);
}

#[test]
fn ejection_follows_the_rule_and_has_no_panic_by_default() {
    let yaml = rule(
        "reviews",
        "trafficPolicy:\n  outlierDetection: {consecutive5xxErrors: 1, interval: 5s, baseEjectionTime: 2m, maxEjectionPercent: 100}",
    );
    let cluster = cluster(&books(&yaml), &client(), REVIEWS);
    let outlier = cluster.outlier_detection.unwrap();
    assert_eq!((outlier.consecutive_5xx, outlier.enforcing_consecutive_5xx), (Some(1), Some(100)));
    assert_eq!((outlier.enforcing_success_rate, outlier.max_ejection_percent), (Some(0), Some(100)));
    assert_eq!(outlier.base_ejection_time.unwrap().seconds, 120);
    assert_eq!(cluster.common_lb_config.unwrap().healthy_panic_threshold.unwrap().value, 0.0);
}

#[test]
fn protocols_choose_the_version_upstream() {
    let world = books("");
    let grpc = http_options(&cluster(&world, &client(), "outbound|7070||ratings.books.svc.cluster.local"));
    assert!(matches!(grpc.upstream_protocol_options, Some(UpstreamProtocolOptions::ExplicitHttpConfig(_))));
    let sniffed = http_options(&cluster(&world, &client(), "outbound|5000||plain.books.svc.cluster.local"));
    assert!(matches!(sniffed.upstream_protocol_options, Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(_))));
    assert!(cluster(&world, &client(), REVIEWS).typed_extension_protocol_options.is_empty());
}

#[test]
fn a_hash_makes_a_ring_and_a_route_policy() {
    let yaml = rule("reviews", "trafficPolicy:\n  loadBalancer: {consistentHash: {httpHeaderName: x-user}}");
    let world = books(&yaml);
    let cluster = cluster(&world, &client(), REVIEWS);
    assert_eq!(cluster.lb_policy, LbPolicy::RingHash as i32);
    assert!(matches!(cluster.lb_config, Some(LbConfig::RingHashLbConfig(ring)) if ring.minimum_ring_size == Some(1024)));
    let vhost = common::virtual_host(&common::routes(&world, &client(), "9080"), "reviews.books.svc.cluster.local:9080");
    assert_eq!(common::forward(&vhost.routes[0]).hash_policy.len(), 1);
}

#[test]
fn tls_outside_the_mesh_verifies_the_host_by_itself() {
    let yaml = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: books}\nspec:\n  hosts: [api.example.com]\n  resolution: DNS\n  ports: [{number: 80, name: http, protocol: HTTP}]\n---\n".to_owned()
        + &rule("api.example.com", "trafficPolicy: {tls: {mode: SIMPLE}}");
    let cluster = cluster(&books(&yaml), &client(), "outbound|80||api.example.com");
    assert_eq!(kind(&cluster), Some(DiscoveryType::StrictDns));
    assert!(cluster.transport_socket_matches.is_empty());
    let options = http_options(&cluster).upstream_http_protocol_options.unwrap();
    assert!(options.auto_sni && options.auto_san_validation);
    let Some(ValidationContextType::CombinedValidationContext(validation)) =
        context(cluster.transport_socket.as_ref().unwrap()).common_tls_context.unwrap().validation_context_type
    else {
        panic!()
    };
    assert_eq!(validation.validation_context_sds_secret_config.unwrap().name, "file-root:system");
}

#[test]
fn the_clients_namespace_decides_then_the_services_then_the_root() {
    let in_namespace = |namespace: &str, host: &str, most: u32| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: d, namespace: {namespace}}}\nspec:\n  host: '{host}'\n  trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: {most}}}}}}}\n"
        )
    };
    let limit = |yaml: String, namespace: &str| {
        let mut view = client();
        view.namespace = namespace.to_owned();
        view.dns_domain = format!("{namespace}.svc.cluster.local");
        cluster(&books(&yaml), &view, REVIEWS).circuit_breakers.unwrap().thresholds[0].max_connections.unwrap()
    };
    let root = in_namespace("istio-system", "*.local", 3);
    let service = in_namespace("books", "reviews", 2);
    let own = in_namespace("shop", "*.books.svc.cluster.local", 1);
    assert_eq!(limit(root.clone(), "shop"), 3);
    assert_eq!(limit(format!("{root}---\n{service}"), "shop"), 2);
    assert_eq!(limit(format!("{root}---\n{service}---\n{own}"), "shop"), 1, "even a wildcard of one's own beats the service's exact rule");
}

#[test]
fn rules_for_one_host_are_merged_and_the_older_policy_stands() {
    let yaml = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a, namespace: books}\nspec:\n  host: reviews\n  trafficPolicy: {loadBalancer: {simple: RANDOM}}\n  subsets: [{name: v1, labels: {version: v1}}]\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: b, namespace: books}\nspec:\n  host: reviews.books.svc.cluster.local\n  trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}\n  subsets: [{name: v1, labels: {version: v9}}, {name: v2, labels: {version: v2}}]\n";
    let world = books(yaml);
    assert_eq!(cluster(&world, &client(), REVIEWS).lb_policy, LbPolicy::Random as i32);
    assert_eq!(addresses(&endpoints(&world, &client(), "outbound|9080|v1|reviews.books.svc.cluster.local")), ["10.0.0.2:8080"]);
    assert_eq!(addresses(&endpoints(&world, &client(), "outbound|9080|v2|reviews.books.svc.cluster.local")), ["10.0.0.3:8080"]);
    assert_eq!(world.diagnostics.len(), 2, "{:?}", world.diagnostics);
}

#[test]
fn the_workloads_own_ports_are_reached_from_the_magic_address() {
    let world = books(&rule("ratings", "trafficPolicy: {connectionPool: {http: {http2MaxRequests: 9}}}"));
    let view = stock("ratings", "10.0.0.4", &[("app", "ratings")]);
    let inbound = cluster(&world, &view, "inbound|7070||");
    assert_eq!(kind(&inbound), Some(DiscoveryType::OriginalDst));
    assert_eq!(inbound.upstream_bind_config.unwrap().source_address.unwrap().address, "127.0.0.6");
    assert_eq!(inbound.circuit_breakers.unwrap().thresholds[0].max_requests, Some(9));
    let names: Vec<String> = all(&world, &view, type_url::CLUSTER).into_iter().map(|generated| generated.name).collect();
    for name in ["BlackHoleCluster", "PassthroughCluster", "InboundPassthroughCluster", "inbound|7071||"] {
        assert!(names.iter().any(|known| known == name), "{name} in {names:?}");
    }
}

#[test]
fn pods_that_are_not_ready_get_nothing() {
    let mut live = common::live();
    live.workloads[1].ready = false;
    let world = lateen_translate::World::build(&common::resources(common::BOOKS), &live);
    assert_eq!(addresses(&endpoints(&world, &client(), REVIEWS)), ["10.0.0.3:8080"]);
}

#[test]
fn equal_worlds_give_equal_bytes() {
    let yaml = include_str!("data/everything.yaml");
    for url in type_url::ALL {
        let bytes =
            |_| all(&books(yaml), &client(), url).into_iter().map(|g| (g.name.clone(), g.message.encode().value)).collect::<Vec<_>>();
        assert_eq!(bytes(1), bytes(2), "{url}");
    }
}

#[test]
fn idle_timeouts_of_http_beat_those_of_tcp() {
    let yaml = rule(
        "reviews",
        "trafficPolicy:\n  connectionPool: {tcp: {idleTimeout: 30s}, http: {idleTimeout: 20s, maxRequestsPerConnection: 1}}",
    );
    let common = http_options(&cluster(&books(&yaml), &client(), REVIEWS)).common_http_protocol_options.unwrap();
    assert_eq!(Duration::from_secs(common.idle_timeout.unwrap().seconds.try_into().unwrap()), Duration::from_secs(20));
    assert_eq!(common.max_requests_per_connection, Some(1));
}

#[test]
fn a_rebuilt_world_shares_what_did_not_change() {
    use std::sync::Arc;
    let resources =
        common::resources(&format!("{}\n---\n{}", common::BOOKS, rule("reviews", "subsets: [{name: v1, labels: {version: v1}}]")));
    let before = lateen_translate::World::build(&resources, &common::live());
    let mut live = common::live();
    live.workloads.pop();
    let after = before.rebuild(&resources, &live, (*before.mesh).clone());
    assert!(Arc::ptr_eq(&before.destination_rules, &after.destination_rules));
    assert!(Arc::ptr_eq(&before.virtual_services, &after.virtual_services));
    let shared = |host: &str| {
        let of = |world: &lateen_translate::World| world.services().iter().find(|service| service.name == host).cloned().unwrap();
        Arc::ptr_eq(&of(&before), &of(&after))
    };
    assert!(shared("reviews") && shared("ratings"));
    assert!(!shared("plain"), "its only pod is gone");
    let mesh = lateen_translate::world::mesh::Mesh { h2_upgrade: true, ..(*before.mesh).clone() };
    assert!(!Arc::ptr_eq(&before.destination_rules, &before.rebuild(&resources, &live, mesh).destination_rules));
}
