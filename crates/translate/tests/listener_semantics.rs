//! Which listeners and chains a proxy has, and which chain a connection would pass.
mod common;

use lateen_proto::any;
use lateen_proto::envoy::config::listener::v3::filter::ConfigType;
use lateen_proto::envoy::config::listener::v3::listener_filter_chain_match_predicate::Rule;
use lateen_proto::envoy::config::listener::v3::{FilterChain, Listener};
use lateen_proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use lateen_proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use lateen_proto::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use lateen_proto::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use lateen_translate::{Message, Names, generate, type_url};

use common::{books, client, gateway, listener, listener_names, routes, stock};

/// The chain's end in words: `http <routes>`, or `tcp <cluster>`.
fn end(chain: &FilterChain) -> String {
    let last = chain.filters.last().unwrap();
    let Some(ConfigType::TypedConfig(config)) = &last.config_type else { panic!() };
    if any::is::<TcpProxy>(config) {
        return match any::open::<TcpProxy>(config).unwrap().cluster_specifier {
            Some(ClusterSpecifier::Cluster(cluster)) => format!("tcp {cluster}"),
            Some(ClusterSpecifier::WeightedClusters(clusters)) => {
                let parts: Vec<String> = clusters.clusters.iter().map(|c| format!("{}={}", c.name, c.weight)).collect();
                format!("tcp {}", parts.join(" "))
            }
            None => panic!(),
        };
    }
    match any::open::<HttpConnectionManager>(config).unwrap().route_specifier {
        Some(RouteSpecifier::Rds(rds)) => format!("http {}", rds.route_config_name),
        Some(RouteSpecifier::RouteConfig(config)) => format!("http {}", config.name),
        _ => panic!(),
    }
}

/// Chains as `port transport alpn[0] tls? end`.
fn describe(listener: &Listener) -> Vec<String> {
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    chains
        .map(|chain| {
            let matching = chain.filter_chain_match.clone().unwrap_or_default();
            let mut words = Vec::new();
            words.extend(matching.destination_port.map(|port| port.to_string()));
            words.push(matching.transport_protocol);
            words.extend(matching.application_protocols.first().cloned());
            words.extend(matching.server_names);
            words.extend(matching.prefix_ranges.iter().map(|range| format!("{}/{}", range.address_prefix, range.prefix_len.unwrap())));
            words.extend(chain.transport_socket.as_ref().map(|_| "terminates".to_owned()));
            words.push(end(chain));
            words.retain(|word| !word.is_empty());
            words.join(" ")
        })
        .collect()
}

fn peer(mode: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: books}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
    )
}

fn inbound_of_port(yaml: &str, port: &str) -> Vec<String> {
    let view = stock("ratings", "10.0.0.4", &[("app", "ratings")]);
    describe(&listener(&books(yaml), &view, "virtualInbound")).into_iter().filter(|chain| chain.starts_with(port)).collect()
}

#[test]
fn outbound_listeners_stand_on_ports_and_addresses() {
    let names = listener_names(&books(""), &client());
    assert_eq!(names, ["0.0.0.0_7070", "0.0.0.0_9080", "10.96.0.11_7071", "10.96.0.12_5000", "virtualInbound", "virtualOutbound"]);
}

#[test]
fn a_declared_http_port_is_shared_and_lets_other_bytes_pass() {
    let listener = listener(&books(""), &client(), "0.0.0.0_9080");
    assert_eq!(listener.bind_to_port, Some(false));
    assert_eq!(describe(&listener), ["raw_buffer http/1.1 http 9080", "tcp PassthroughCluster"]);
}

#[test]
fn an_undeclared_port_is_decided_by_its_first_bytes() {
    let listener = listener(&books(""), &client(), "10.96.0.12_5000");
    assert_eq!(
        describe(&listener),
        ["raw_buffer http/1.1 http plain.books.svc.cluster.local:5000", "tcp outbound|5000||plain.books.svc.cluster.local"]
    );
    assert!(listener.continue_on_listener_filters_timeout);
}

#[test]
fn a_tcp_port_waits_for_nobody() {
    let listener = listener(&books(""), &client(), "10.96.0.11_7071");
    assert_eq!(describe(&listener)[0], "tcp outbound|7071||ratings.books.svc.cluster.local");
    assert!(listener.listener_filters.is_empty(), "an inspector would hang a server that speaks first");
}

#[test]
fn permissive_takes_mesh_peers_and_plaintext() {
    assert_eq!(inbound_of_port("", "7070"), ["7070 tls istio terminates http inbound|7070||", "7070 raw_buffer http inbound|7070||",]);
    assert_eq!(
        inbound_of_port("", "7071"),
        ["7071 tls istio terminates tcp inbound|7071||", "7071 tls tcp inbound|7071||", "7071 raw_buffer tcp inbound|7071||",]
    );
}

#[test]
fn strict_has_no_chain_for_plaintext() {
    assert_eq!(inbound_of_port(&peer("STRICT"), "7070"), ["7070 tls terminates http inbound|7070||"]);
    assert_eq!(inbound_of_port(&peer("STRICT"), "7071"), ["7071 tls terminates tcp inbound|7071||"]);
    let view = stock("ratings", "10.0.0.4", &[("app", "ratings")]);
    let all = describe(&listener(&books(&peer("STRICT")), &view, "virtualInbound"));
    assert!(!all.iter().any(|chain| chain.contains("raw_buffer")), "{all:#?}");
}

#[test]
fn disabled_takes_plaintext_only() {
    assert_eq!(inbound_of_port(&peer("DISABLE"), "7070"), ["7070 raw_buffer http inbound|7070||"]);
}

#[test]
fn one_port_may_differ_from_its_workload() {
    let yaml = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: books}\nspec:\n  selector: {matchLabels: {app: ratings}}\n  mtls: {mode: STRICT}\n  portLevelMtls: {'7071': {mode: DISABLE}, '9999': {mode: PERMISSIVE}}\n";
    assert_eq!(inbound_of_port(yaml, "7070"), ["7070 tls terminates http inbound|7070||"]);
    assert_eq!(inbound_of_port(yaml, "7071"), ["7071 raw_buffer tcp inbound|7071||"]);
    assert_eq!(inbound_of_port(yaml, "9999").len(), 5, "a port that no service declares has chains of its own");
}

#[test]
fn inspectors_stay_away_from_ports_that_need_none() {
    let yaml = format!(
        "{}---\napiVersion: v1\nkind: Service\nmetadata: {{name: db, namespace: books}}\nspec: {{selector: {{app: ratings}}, ports: [{{name: mysql, port: 3306}}]}}\n",
        peer("DISABLE")
    );
    let view = stock("ratings", "10.0.0.4", &[("app", "ratings")]);
    let listener = listener(&books(&yaml), &view, "virtualInbound");
    let http = listener.listener_filters.iter().find(|filter| filter.name.ends_with("http_inspector")).unwrap();
    let Some(Rule::OrMatch(set)) = http.filter_disabled.clone().unwrap().rule else { panic!() };
    let starts: Vec<i32> = set
        .rules
        .iter()
        .map(|rule| match &rule.rule {
            Some(Rule::DestinationPortRange(range)) => range.start,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(starts, [3306, 7070, 7071, 15006]);
}

#[test]
fn tcp_rules_split_connections() {
    let yaml = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: t, namespace: books}\nspec:\n  hosts: [ratings]\n  tcp:\n  - match: [{port: 7071}]\n    route: [{destination: {host: ratings, port: {number: 7071}, subset: v1}, weight: 80}, {destination: {host: ratings, port: {number: 7071}, subset: v2}, weight: 20}]\n";
    assert_eq!(
        describe(&listener(&books(yaml), &client(), "10.96.0.11_7071"))[0],
        "tcp outbound|7071|v1|ratings.books.svc.cluster.local=80 outbound|7071|v2|ratings.books.svc.cluster.local=20"
    );
}

#[test]
fn tls_hosts_without_an_address_are_told_apart_by_name() {
    let entry = |host: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {}, namespace: books}}\nspec:\n  hosts: [{host}]\n  resolution: DNS\n  ports: [{{number: 443, name: tls, protocol: TLS}}]\n",
            host.replace('.', "-")
        )
    };
    let world = books(&format!("{}---\n{}", entry("a.example.com"), entry("b.example.com")));
    assert_eq!(
        describe(&listener(&world, &client(), "0.0.0.0_443")),
        ["a.example.com tcp outbound|443||a.example.com", "b.example.com tcp outbound|443||b.example.com", "tcp PassthroughCluster",]
    );
}

#[test]
fn http_and_tcp_share_a_port_by_looking_at_the_bytes() {
    let yaml = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: t, namespace: books}\nspec:\n  hosts: [tcp.example.com]\n  resolution: DNS\n  ports: [{number: 9080, name: tcp, protocol: TCP}]\n";
    assert_eq!(
        describe(&listener(&books(yaml), &client(), "0.0.0.0_9080")),
        ["raw_buffer http/1.1 http 9080", "tcp outbound|9080||tcp.example.com",]
    );
}

#[test]
fn headless_tcp_has_a_listener_for_each_pod() {
    let yaml = "apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: books}\nspec: {clusterIP: None, selector: {app: reviews}, ports: [{name: tcp, port: 6000}]}\n";
    let names = listener_names(&books(yaml), &client());
    assert!(names.contains(&"10.0.0.2_6000".to_owned()) && names.contains(&"10.0.0.3_6000".to_owned()), "{names:?}");
    let own = listener_names(&books(yaml), &stock("reviews-v1", "10.0.0.2", &[("app", "reviews")]));
    assert!(!own.contains(&"10.0.0.2_6000".to_owned()), "a pod calls itself directly: {own:?}");
}

#[test]
fn connections_to_the_proxys_own_port_are_refused() {
    let listener = listener(&books(""), &client(), "virtualOutbound");
    assert_eq!(describe(&listener), ["15001 tcp BlackHoleCluster", "tcp PassthroughCluster"]);
    assert_eq!(listener.use_original_dst, Some(true));
}

const ENTRY: &str = include_str!("data/everything.yaml");

#[test]
fn a_gateway_opens_a_port_with_a_chain_for_every_certificate() {
    let world = books(ENTRY);
    let names = listener_names(&world, &gateway());
    assert_eq!(names, ["0.0.0.0_15443", "0.0.0.0_31400", "0.0.0.0_443", "0.0.0.0_80", "0.0.0.0_8081", "0.0.0.0_8443", "0.0.0.0_9443"]);
    assert_eq!(
        describe(&listener(&world, &gateway(), "0.0.0.0_443")),
        [
            "reviews.example.com terminates http https.443.https.entry.books",
            "mutual.example.com terminates http https.443.https-mutual.entry.books",
        ]
    );
    assert_eq!(describe(&listener(&world, &gateway(), "0.0.0.0_8443")), ["api.example.com tcp outbound|443||api.example.com"]);
    let any_service = describe(&listener(&world, &gateway(), "0.0.0.0_15443"));
    let reviews = "outbound_.9080_.v1_.reviews.books.svc.cluster.local";
    assert!(any_service.contains(&format!("istio {reviews} tcp {reviews}")), "{any_service:#?}");
    assert_eq!(describe(&listener(&world, &gateway(), "0.0.0.0_31400")), ["tcp outbound|7071||ratings.books.svc.cluster.local"]);
}

#[test]
fn a_gateway_routes_the_hosts_that_rules_claim() {
    let world = books(ENTRY);
    let plain = routes(&world, &gateway(), "http.80");
    assert_eq!(plain.virtual_hosts.iter().map(|vhost| vhost.name.as_str()).collect::<Vec<_>>(), ["reviews.example.com:80"]);
    let redirect = routes(&world, &gateway(), "http.8081");
    assert_eq!(redirect.virtual_hosts[0].domains, ["secure.example.com"]);
    assert_eq!(redirect.virtual_hosts[0].require_tls, 2, "ALL, even without a rule for the host");
    let empty = routes(&world, &gateway(), "https.443.https-mutual.entry.books");
    assert_eq!((empty.virtual_hosts[0].name.as_str(), empty.virtual_hosts[0].routes.len()), ("blackhole:443", 0));
    assert!(routes(&world, &gateway(), "http.12345").virtual_hosts.is_empty(), "a server that went away still has (empty) routes");
}

#[test]
fn a_gateway_listens_on_its_services_target_port() {
    let yaml = format!(
        "{ENTRY}\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: gw, namespace: books}}\nspec: {{selector: {{istio: ingressgateway}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n"
    );
    let mut live = common::live();
    live.workloads.push(common::pod("gateway", &[("istio", "ingressgateway")], "10.0.0.9"));
    let world = lateen_translate::World::build(&common::resources(&format!("{}\n---\n{yaml}", common::BOOKS)), &live);
    let names = listener_names(&world, &gateway());
    assert!(names.contains(&"0.0.0.0_8080".to_owned()) && !names.contains(&"0.0.0.0_80".to_owned()), "{names:?}");
    assert!(!routes(&world, &gateway(), "http.8080").virtual_hosts.is_empty());
}

#[test]
fn conflicting_servers_are_reported_and_the_older_stays() {
    let yaml = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: a, namespace: books}\nspec:\n  selector: {istio: ingressgateway}\n  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]\n---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: b, namespace: books}\nspec:\n  selector: {istio: ingressgateway}\n  servers: [{port: {number: 80, name: tcp, protocol: TCP}, hosts: ['*']}]\n";
    let world = books(yaml);
    let merged = world.merged_gateway(&gateway());
    assert_eq!(merged.ports.len(), 1);
    assert!(merged.diagnostics[0].message.contains("already used"), "{:?}", merged.diagnostics);
    assert_eq!(world.diagnostics, merged.diagnostics, "told when it is configured, not only when a gateway comes");
}

#[test]
fn secrets_are_given_only_to_their_own_namespace() {
    let secret = |namespace: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: cert, namespace: {namespace}}}\ntype: kubernetes.io/tls\nstringData: {{tls.crt: CERT, tls.key: KEY, ca.crt: ROOT}}\n"
        )
    };
    let world = books(&format!("{}---\n{}", secret("books"), secret("other")));
    let names: Vec<String> = [
        "kubernetes://cert",
        "kubernetes://cert-cacert",
        "kubernetes-gateway://books/cert",
        "kubernetes://other/cert",
        "kubernetes://missing",
        "default",
    ]
    .map(str::to_owned)
    .to_vec();
    let given: Vec<String> = generate(&world, &gateway(), type_url::SECRET, Names::Only(&names)).into_iter().map(|g| g.name).collect();
    assert_eq!(given, ["kubernetes-gateway://books/cert", "kubernetes://cert", "kubernetes://cert-cacert"]);
    assert!(generate(&world, &gateway(), type_url::SECRET, Names::All).is_empty(), "a key is never handed out unasked");
}

#[test]
fn a_grpc_library_gets_an_api_listener_with_its_own_routes() {
    let mut view = client();
    view.generator = lateen_translate::Generator::Grpc;
    let yaml = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: g, namespace: books}\nspec:\n  hosts: [ratings]\n  http:\n  - corsPolicy: {allowMethods: [GET]}\n    route: [{destination: {host: ratings, subset: v1}, weight: 75}, {destination: {host: ratings, subset: v2}, weight: 25}]\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: g, namespace: books}\nspec:\n  host: ratings\n  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]\n";
    let world = books(yaml);
    let targets = ["ratings.books.svc.cluster.local:7070".to_owned(), "ratings:7070".to_owned(), "nobody:1".to_owned()];
    let found = generate(&world, &view, type_url::LISTENER, Names::Only(&targets));
    assert_eq!(found.len(), 2);
    let Message::Listener(first) = &found[0].message else { panic!() };
    let manager: HttpConnectionManager = any::open(first.api_listener.as_ref().unwrap().api_listener.as_ref().unwrap()).unwrap();
    let Some(RouteSpecifier::Rds(rds)) = manager.route_specifier else { panic!() };
    assert_eq!(rds.route_config_name, "outbound|7070||ratings.books.svc.cluster.local");
    let config = routes(&world, &view, &rds.route_config_name);
    assert_eq!(config.virtual_hosts[0].domains, ["*"]);
    assert!(config.virtual_hosts[0].routes[0].typed_per_filter_config.is_empty(), "the library has no CORS filter");
    let names =
        ["outbound|7070|v1|ratings.books.svc.cluster.local".to_owned(), "outbound|7070|v9|ratings.books.svc.cluster.local".to_owned()];
    assert_eq!(generate(&world, &view, type_url::CLUSTER, Names::Only(&names)).len(), 1);
}

#[test]
fn a_mesh_of_ipv6_only() {
    let yaml = "apiVersion: v1\nkind: Service\nmetadata: {name: six, namespace: books}\nspec:\n  clusterIP: 'fd00:1::10'\n  selector: {app: six}\n  ports: [{name: http, port: 80}, {name: tcp, port: 81}, {name: other, port: 82}]\n";
    let live = lateen_translate::Live { workloads: vec![common::pod("six", &[("app", "six")], "fd00::2")], ..Default::default() };
    let world = lateen_translate::World::build(&common::resources(yaml), &live);
    let view = stock("six", "fd00::2", &[("app", "six")]);
    assert_eq!(listener_names(&world, &view), ["::_80", "fd00:1::10_81", "fd00:1::10_82", "virtualInbound", "virtualOutbound"]);
    let inbound = common::cluster(&world, &view, "inbound|80||");
    assert_eq!(inbound.upstream_bind_config.unwrap().source_address.unwrap().address, "::6");
    let vhost = common::virtual_host(&routes(&world, &view, "80"), "six.books.svc.cluster.local:80");
    assert!(vhost.domains.contains(&"[fd00:1::10]".to_owned()), "{:?}", vhost.domains);
    assert_eq!(common::addresses(&common::endpoints(&world, &view, "outbound|81||six.books.svc.cluster.local")), ["fd00::2:81"]);
}
