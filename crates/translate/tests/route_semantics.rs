//! What each field of a VirtualService does to the routes of a sidecar.
mod common;

use std::time::Duration;

use lateen_proto::any;
use lateen_proto::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use lateen_proto::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use lateen_proto::envoy::config::route::v3::route::Action;
use lateen_proto::envoy::config::route::v3::route_action::{ClusterSpecifier, HostRewriteSpecifier};
use lateen_proto::envoy::config::route::v3::route_match::PathSpecifier;
use lateen_proto::envoy::extensions::filters::http::fault::v3::HttpFault;

use common::{books, client, forward, reviews_routes, routes, virtual_host};

const V1: &str = "outbound|9080|v1|reviews.books.svc.cluster.local";

fn seconds(duration: Option<prost_types::Duration>) -> Option<Duration> {
    duration.map(|d| Duration::new(d.seconds.try_into().unwrap(), d.nanos.try_into().unwrap()))
}

#[test]
fn a_service_without_rules_has_istios_default_route() {
    let config = routes(&books(""), &client(), "9080");
    let vhost = virtual_host(&config, "reviews.books.svc.cluster.local:9080");
    assert_eq!(
        vhost.domains,
        [
            "reviews.books.svc.cluster.local",
            "reviews.books.svc.cluster.local.",
            "reviews",
            "reviews.books.svc",
            "reviews.books",
            "10.96.0.10"
        ]
    );
    let route = &vhost.routes[0];
    assert_eq!(route.name, "default");
    assert_eq!(route.decorator.as_ref().unwrap().operation, "reviews.books.svc.cluster.local:9080/*");
    let action = forward(route);
    assert_eq!(action.cluster_specifier, Some(ClusterSpecifier::Cluster("outbound|9080||reviews.books.svc.cluster.local".into())));
    assert_eq!(seconds(action.timeout), Some(Duration::ZERO), "Envoy's 15 s would cut long requests");
    let retries = action.retry_policy.unwrap();
    assert_eq!(retries.num_retries, Some(2));
    assert_eq!(retries.retry_on, "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes");
    assert_eq!(retries.host_selection_retry_max_attempts, 5);
    assert_eq!(retries.retry_host_predicate[0].name, "envoy.retry_host_predicates.previous_hosts");
}

#[test]
fn hosts_nobody_declared_pass_or_get_502() {
    let vhost = routes(&books(""), &client(), "9080").virtual_hosts.pop().unwrap();
    assert_eq!((vhost.name.as_str(), vhost.domains), ("allow_any", vec!["*".to_owned()]));
    assert_eq!(forward(&vhost.routes[0]).cluster_specifier, Some(ClusterSpecifier::Cluster("PassthroughCluster".into())));

    let mesh = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n";
    let vhost = routes(&books(mesh), &client(), "9080").virtual_hosts.pop().unwrap();
    assert_eq!(vhost.name, "block_all");
    assert!(matches!(&vhost.routes[0].action, Some(Action::DirectResponse(response)) if response.status == 502));
}

#[test]
fn conditions_become_matchers() {
    let routes = reviews_routes(
        "- match:\n  - headers: {x-user: {exact: jason}, x-any: {}}\n    withoutHeaders: {x-bot: {prefix: bad}}\n    uri: {prefix: /api}\n    ignoreUriCase: true\n    method: {exact: GET}\n  route: [{destination: {host: reviews, subset: v1}}]",
    );
    let matching = routes[0].r#match.as_ref().unwrap();
    assert_eq!(matching.path_specifier, Some(PathSpecifier::Prefix("/api".into())), "a plain prefix: /api also takes /apis");
    assert_eq!(matching.case_sensitive, Some(false));
    let names: Vec<(&str, bool, bool)> =
        matching.headers.iter().map(|header| (header.name.as_str(), header.invert_match, header.treat_missing_header_as_empty)).collect();
    assert_eq!(names, [("x-any", false, false), ("x-bot", true, true), ("x-user", false, false), (":method", false, false)]);
    assert_eq!(matching.headers[0].header_match_specifier, Some(HeaderMatchSpecifier::PresentMatch(true)));
}

#[test]
fn the_first_route_that_takes_everything_is_the_last() {
    let routes = reviews_routes(
        "- match: [{uri: {prefix: /a}}, {uri: {prefix: /}}]\n  route: [{destination: {host: reviews, subset: v1}}]\n- route: [{destination: {host: reviews, subset: v2}}]",
    );
    assert_eq!(routes.len(), 2);
    assert_eq!(forward(&routes[1]).cluster_specifier, Some(ClusterSpecifier::Cluster(V1.into())));
}

#[test]
fn conditions_on_the_caller_are_settled_beforehand() {
    let rule = "- match: [{sourceLabels: {app: other}}]\n  route: [{destination: {host: reviews, subset: v2}}]\n- match: [{sourceLabels: {app: client}, port: 9080}]\n  route: [{destination: {host: reviews, subset: v1}}]\n- match: [{port: 1}]\n  route: [{destination: {host: reviews, subset: v3}}]";
    let routes = reviews_routes(rule);
    assert_eq!(routes.len(), 1);
    assert_eq!(forward(&routes[0]).cluster_specifier, Some(ClusterSpecifier::Cluster(V1.into())));
}

#[test]
fn weights_are_kept_and_zero_is_left_out() {
    let routes = reviews_routes(
        "- route:\n  - {destination: {host: reviews, subset: v1}, weight: 90}\n  - {destination: {host: reviews, subset: v2}, weight: 10}\n  - {destination: {host: reviews, subset: v3}, weight: 0}",
    );
    let Some(ClusterSpecifier::WeightedClusters(weighted)) = forward(&routes[0]).cluster_specifier else { panic!() };
    let shares: Vec<(&str, Option<u32>)> = weighted.clusters.iter().map(|c| (c.name.as_str(), c.weight)).collect();
    assert_eq!(shares, [(V1, Some(90)), ("outbound|9080|v2|reviews.books.svc.cluster.local", Some(10))]);
    assert_eq!(routes[0].decorator.as_ref().unwrap().operation, "r:9080/*", "with two targets the rule names the route");
}

#[test]
fn retries_follow_the_rule() {
    let retries = |text: &str| {
        let routes = reviews_routes(&format!("- retries: {text}\n  route: [{{destination: {{host: reviews}}}}]"));
        forward(&routes[0]).retry_policy
    };
    assert_eq!(retries("{attempts: 0}"), None);
    let policy = retries("{attempts: 3, perTryTimeout: 2s, retryOn: '5xx,503,gateway-error'}").unwrap();
    assert_eq!(policy.num_retries, Some(3));
    assert_eq!(seconds(policy.per_try_timeout), Some(Duration::from_secs(2)));
    assert_eq!(policy.retry_on, "5xx,gateway-error,retriable-status-codes");
    assert_eq!(policy.retriable_status_codes, [503]);
    assert!(retries("{attempts: 1, retryIgnorePreviousHosts: false}").unwrap().retry_host_predicate.is_empty());
}

#[test]
fn a_fault_without_a_percentage_happens_to_nobody() {
    let fault = |text: &str| -> HttpFault {
        let routes = reviews_routes(&format!("- fault: {text}\n  route: [{{destination: {{host: reviews}}}}]"));
        any::open(&routes[0].typed_per_filter_config["envoy.filters.http.fault"]).unwrap()
    };
    let delay = fault("{delay: {fixedDelay: 2s}}").delay.unwrap();
    assert_eq!(delay.percentage.unwrap().numerator, 0);
    assert!(fault("{abort: {httpStatus: 500}}").abort.unwrap().percentage.is_none(), "absent is 0 in Envoy too");
    let half = fault("{abort: {httpStatus: 503, percentage: {value: 0.5}}}").abort.unwrap().percentage.unwrap();
    assert_eq!((half.numerator, half.denominator), (5000, 2), "per million");
    assert_eq!(fault("{delay: {fixedDelay: 2s, percent: 50}}").delay.unwrap().percentage.unwrap().numerator, 50);
}

#[test]
fn mirroring_is_all_or_the_share_given() {
    let mirrors = |text: &str| {
        let routes = reviews_routes(&format!("- {text}\n  route: [{{destination: {{host: reviews}}}}]"));
        let policies = forward(&routes[0]).request_mirror_policies;
        let share = |policy: &lateen_proto::envoy::config::route::v3::route_action::RequestMirrorPolicy| {
            let fraction = policy.runtime_fraction.clone().unwrap().default_value.unwrap();
            (policy.cluster.clone(), fraction.numerator, fraction.denominator)
        };
        policies.iter().map(share).collect::<Vec<_>>()
    };
    let v2 = "outbound|9080|v2|reviews.books.svc.cluster.local".to_owned();
    assert_eq!(mirrors("mirror: {host: reviews, subset: v2}"), [(v2.clone(), 100, 0)]);
    assert_eq!(mirrors("mirror: {host: reviews, subset: v2}\n  mirrorPercentage: {value: 0}"), []);
    assert_eq!(mirrors("mirror: {host: reviews, subset: v2}\n  mirrorPercentage: {value: 12.5}"), [(v2, 125_000, 2)]);
}

#[test]
fn redirects_leave_out_the_port_that_the_scheme_implies() {
    let redirect = |text: &str| match reviews_routes(&format!("- redirect: {text}"))[0].action.clone() {
        Some(Action::Redirect(action)) => action,
        other => panic!("{other:?}"),
    };
    assert_eq!(redirect("{uri: /x, port: 443, scheme: https}").port_redirect, 0);
    assert_eq!(redirect("{uri: /x, port: 8443, scheme: https}").port_redirect, 8443);
    assert_eq!(redirect("{uri: /x, derivePort: FROM_REQUEST_PORT}").port_redirect, 9080);
    assert_eq!(redirect("{uri: /x, redirectCode: 307}").response_code, 3);
}

#[test]
fn headers_are_set_added_removed_and_host_is_a_rewrite() {
    let routes = reviews_routes(
        "- headers:\n    request: {set: {x-a: '1', Host: other}, add: {x-b: '2', Connection: close}, remove: [x-c, content-length]}\n  route: [{destination: {host: reviews}, headers: {request: {add: {x-e: '5'}}}}]",
    );
    let added: Vec<(String, i32)> =
        routes[0].request_headers_to_add.iter().map(|option| (option.header.clone().unwrap().key, option.append_action)).collect();
    let (overwrite, append) = (HeaderAppendAction::OverwriteIfExistsOrAdd as i32, HeaderAppendAction::AppendIfExistsOrAdd as i32);
    assert_eq!(added, [("x-a".to_owned(), overwrite), ("x-b".to_owned(), append), ("x-e".to_owned(), append)]);
    assert_eq!(routes[0].request_headers_to_remove, ["x-c"]);
    assert_eq!(forward(&routes[0]).host_rewrite_specifier, Some(HostRewriteSpecifier::HostRewriteLiteral("other".into())));
}

#[test]
fn a_route_says_where_it_comes_from() {
    let routes = reviews_routes("- name: all\n  route: [{destination: {host: reviews}}]");
    let istio = &routes[0].metadata.as_ref().unwrap().filter_metadata["istio"];
    let text = |key: &str| match &istio.fields[key].kind {
        Some(prost_types::value::Kind::StringValue(text)) => text.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(text("config"), "/apis/networking.istio.io/v1/namespaces/books/virtual-service/r");
    assert!(text("origin").starts_with("test.yaml:"), "{}", text("origin"));
    assert_eq!(routes[0].name, "all");
}

#[test]
fn the_oldest_rule_of_a_host_wins_and_private_rules_come_first() {
    let rule = |name: &str, subset: &str, export: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: books}}\nspec:\n  hosts: [reviews]\n  exportTo: [{export}]\n  http: [{{route: [{{destination: {{host: reviews, subset: {subset}}}}}]}}]\n"
        )
    };
    let subset_of = |yaml: &str| {
        let world = books(yaml);
        let vhost = virtual_host(&routes(&world, &client(), "9080"), "reviews.books.svc.cluster.local:9080");
        forward(&vhost.routes[0]).cluster_specifier
    };
    let cluster = |subset: &str| Some(ClusterSpecifier::Cluster(format!("outbound|9080|{subset}|reviews.books.svc.cluster.local")));
    let (a, b) = (rule("a", "v1", "'*'"), rule("b", "v2", "'*'"));
    assert_eq!(subset_of(&format!("{b}---\n{a}")), cluster("v1"));
    assert_eq!(subset_of(&format!("{a}---\n{}", rule("b", "v2", "'.'"))), cluster("v2"));
}

#[test]
fn a_sniffed_service_has_routes_of_its_own() {
    let config = routes(&books(""), &client(), "plain.books.svc.cluster.local:5000");
    assert_eq!(config.virtual_hosts.len(), 1);
    assert_eq!(config.virtual_hosts[0].domains, ["*"]);
}

#[test]
fn a_delegate_supplies_the_routes() {
    let yaml = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: root, namespace: books}\nspec:\n  hosts: [reviews]\n  http:\n  - match: [{uri: {prefix: /api}}]\n    delegate: {name: part}\n    timeout: 7s\n  - route: [{destination: {host: reviews}}]\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: part, namespace: books}\nspec:\n  http:\n  - match: [{uri: {prefix: /api/v1}}]\n    route: [{destination: {host: reviews, subset: v1}}]\n  - match: [{uri: {prefix: /other}}]\n    route: [{destination: {host: reviews, subset: v2}}]\n";
    let world = books(yaml);
    let vhost = virtual_host(&routes(&world, &client(), "9080"), "reviews.books.svc.cluster.local:9080");
    assert_eq!(vhost.routes.len(), 2, "the route that cannot match is left out");
    assert_eq!(vhost.routes[0].r#match.as_ref().unwrap().path_specifier, Some(PathSpecifier::Prefix("/api/v1".into())));
    assert_eq!(seconds(forward(&vhost.routes[0]).timeout), Some(Duration::from_secs(7)));
    assert!(world.diagnostics.iter().any(|d| d.message.contains("can never match")), "{:?}", world.diagnostics);
}

#[test]
fn a_host_outside_the_registry_is_routed_on_port_80_only() {
    let yaml = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: ext, namespace: books}\nspec:\n  hosts: [example.com]\n  http: [{route: [{destination: {host: reviews, port: {number: 9080}}}]}]\n";
    let world = books(yaml);
    let vhost = virtual_host(&routes(&world, &client(), "80"), "example.com:80");
    assert_eq!(vhost.domains, ["example.com"]);
    assert!(!routes(&world, &client(), "9080").virtual_hosts.iter().any(|vhost| vhost.name.starts_with("example.com")));
}
