//! Fields by the rules of proto3 JSON, and what validation says about them.
use std::time::Duration;

use lateen_model::kinds::common::StringMatch;
use lateen_model::kinds::destination_rule::SimpleLb;
use lateen_model::yaml::Position;

use crate::{destination_rule, messages, set, virtual_service};

#[test]
fn a_whole_route_is_decoded() {
    let text = virtual_service(
        "  hosts: [reviews]
  http:
  - name: main
    match:
    - uri: {prefix: /api}
      headers: {end-user: {exact: jason}, x-present: {}}
      query_params: {q: {regex: 'a+'}}
      port: \"9080\"
      ignoreUriCase: yes
    route:
    - destination: {host: reviews, subset: v1, port: {number: 9080}}
      weight: 90
    - destination: {host: reviews, subset: v2}
      weight: 10
    timeout: 1h30m
    retries: {attempts: 3, perTryTimeout: 500ms, retryOn: '5xx,503'}
    mirrorPercentage: {value: 12.5}
",
    );
    let resources = set(&text);
    let resource = resources.virtual_service("default", "v").unwrap();
    let route = &resource.spec.http[0];
    let found = &route.r#match[0];
    assert_eq!(found.uri, Some(StringMatch::Prefix("/api".into())));
    assert_eq!(found.headers["x-present"], StringMatch::Present);
    assert_eq!(found.query_params["q"], StringMatch::Regex("a+".into()));
    assert_eq!((found.port, found.ignore_uri_case), (Some(9080), true));
    assert_eq!(route.timeout, Some(Duration::from_secs(5400)));
    assert_eq!(route.retries.as_ref().unwrap().per_try_timeout, Some(Duration::from_millis(500)));
    assert_eq!(route.mirror_percentage.unwrap().0, 12.5);
    assert_eq!(route.route.iter().map(|target| target.weight).collect::<Vec<_>>(), [90, 10]);
    assert_eq!(resource.origin.at("spec.http[0].route[1].destination.subset"), Position { line: 18, column: 36 });
    assert_eq!(resource.origin.at("spec.http[0].match[0].queryParams.q"), Position { line: 12, column: 22 });
    assert!(!resource.origin.has("spec.http[1]"));
}

#[test]
fn zero_is_absent_in_plain_numbers_and_present_in_wrappers() {
    let text = destination_rule(
        "  host: reviews
  trafficPolicy:
    connectionPool: {tcp: {maxConnections: 0}, http: {maxRetries: 7}}
    outlierDetection: {consecutive5xxErrors: 0, consecutive_gateway_errors: 3}
    loadBalancer: {simple: ROUND_ROBIN}
",
    );
    let resources = set(&text);
    let policy = resources.destination_rule("default", "d").unwrap().spec.traffic_policy.clone().unwrap();
    let pool = policy.connection_pool.unwrap();
    assert_eq!(pool.tcp.unwrap().max_connections, None);
    assert_eq!(pool.http.unwrap().max_retries.unwrap().get(), 7);
    let outlier = policy.outlier_detection.unwrap();
    assert_eq!((outlier.consecutive_5xx_errors, outlier.consecutive_gateway_errors), (Some(0), Some(3)));
    assert_eq!(policy.load_balancer.unwrap().simple, Some(SimpleLb::RoundRobin));
}

#[track_caller]
fn rule_says(spec: &str, expected: &[&str]) {
    let said: Vec<String> =
        messages(&virtual_service(spec)).iter().map(|message| message.replace("VirtualService default/v: ", "")).collect();
    assert_eq!(said, expected);
}

#[test]
fn actions_exclude_each_other() {
    rule_says(
        "  hosts: [a]\n  http: [{}]\n",
        &["f.yaml:7:10: error: spec.http[0]: one of route, redirect, directResponse, delegate is required"],
    );
    rule_says(
        "  hosts: [a]\n  http:\n  - redirect: {uri: /b}\n    route: [{destination: {host: a}}]\n    fault: {abort: {httpStatus: 500, percentage: {value: 1}}}\n",
        &[
            "f.yaml:9:5: error: spec.http[0].route: route cannot stand beside redirect; keep one of them",
            "f.yaml:10:5: error: spec.http[0].fault: fault cannot stand beside redirect; keep one of them",
        ],
    );
    rule_says(
        "  hosts: [a]\n  http:\n  - match: [{uri: {exact: /a, prefix: /b}}]\n    route: [{destination: {host: a}}]\n",
        &["f.yaml:8:31: error: spec.http[0].match[0].uri: \"exact\" and \"prefix\" exclude each other; give one of exact, prefix, regex"],
    );
}

#[test]
fn hosts_weights_and_patterns() {
    rule_says(
        "  hosts: ['*']\n  http: [{route: [{destination: {host: a}}]}]\n",
        &["f.yaml:6:11: error: spec.hosts[0]: the host `*` is not allowed for sidecars; name the hosts, or name gateways other than mesh"],
    );
    rule_says(
        "  hosts: [a]\n  http:\n  - route: [{destination: {host: a}}, {destination: {host: b}}]\n",
        &["f.yaml:8:5: error: spec.http[0].route: the weights of the destinations add up to 0; give each destination a weight"],
    );
    rule_says(
        "  hosts: [a]\n  http:\n  - match: [{uri: {regex: 'a('}}]\n    route: [{destination: {}}]\n",
        &[
            "f.yaml:8:20: error: spec.http[0].match[0].uri.regex: \"a(\" is no regular expression (RE2 syntax): unclosed group",
            "f.yaml:9:14: error: spec.http[0].route[0].destination: host is required",
        ],
    );
}

#[test]
fn rules_that_are_never_reached() {
    rule_says(
        "  hosts: [a]\n  http:\n  - match: [{uri: {prefix: /a}}]\n    route: [{destination: {host: a}}]\n  - match: [{uri: {prefix: /ab}}]\n    route: [{destination: {host: a}}]\n  - route: [{destination: {host: a}}]\n  - match: [{uri: {prefix: /c}}]\n    route: [{destination: {host: a}}]\n",
        &[
            "f.yaml:10:13: warning [IST0131]: spec.http[1].match[0]: is never used: spec.http[0] takes the prefix \"/a\" under the same conditions",
            "f.yaml:13:5: warning [IST0130]: spec.http[3]: is never used: spec.http[2] has no match and takes everything",
        ],
    );
}

#[test]
fn policies_are_checked() {
    let text = destination_rule(
        "  host: reviews
  subsets: [{name: v1, labels: {a: b}}, {name: v1}]
  trafficPolicy:
    outlierDetection: {consecutiveErrors: 1, interval: 10us, maxEjectionPercent: 101}
    loadBalancer: {consistentHash: {maglev: {tableSize: 4}}}
    tls: {mode: MUTUL}
",
    );
    let said: Vec<String> = messages(&text).iter().map(|message| message.replace("DestinationRule default/d: ", "")).collect();
    assert_eq!(
        said,
        [
            "f.yaml:9:24: warning: spec.trafficPolicy.outlierDetection.consecutiveErrors: is ignored by Istio; use consecutive5xxErrors or consecutiveGatewayErrors",
            "f.yaml:11:17: error: spec.trafficPolicy.tls.mode: \"MUTUL\" is none of the accepted values DISABLE, SIMPLE, MUTUAL, ISTIO_MUTUAL; did you mean MUTUAL?",
        ]
    );
    let said: Vec<String> = messages(&text.replace("MUTUL", "SIMPLE"))
        .iter()
        .skip(1)
        .map(|message| message.replace("DestinationRule default/d: ", ""))
        .collect();
    assert_eq!(
        said,
        [
            "f.yaml:7:42: error: spec.subsets[1].name: the subset \"v1\" is defined twice",
            "f.yaml:9:46: error: spec.trafficPolicy.outlierDetection.interval: the duration must be at least 1ms",
            "f.yaml:9:62: error: spec.trafficPolicy.outlierDetection.maxEjectionPercent: 101 is not a percentage from 0 to 100",
            "f.yaml:10:20: error: spec.trafficPolicy.loadBalancer.consistentHash: one of httpHeaderName, httpCookie, useSourceIp: true, httpQueryParameterName is required",
            "f.yaml:10:37: error: spec.trafficPolicy.loadBalancer.consistentHash.maglev: tableSize must be a prime number below 5000011, such as 65537",
        ]
    );
}

#[test]
fn gateways_need_tls_where_they_promise_it() {
    let gateway = |server: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: g}}\nspec:\n  selector: {{istio: ingressgateway}}\n  servers:\n  - {server}\n"
        )
    };
    assert!(messages(&gateway("{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}")).is_empty());
    assert_eq!(
        messages(&gateway("{port: {number: 443, name: https, protocol: HTTPS}, hosts: [a.com]}")),
        ["f.yaml:7:5: error: Gateway default/g: spec.servers[0]: protocol HTTPS needs tls; add tls with mode and credentialName"]
    );
    assert_eq!(
        messages(&gateway("{port: {number: 443, name: https, protocol: HTTPS}, hosts: [short], tls: {mode: SIMPLE, credentialName: c}}")),
        ["f.yaml:7:57: error: Gateway default/g: spec.servers[0].hosts[0]: \"short\" is a short name; a gateway wants full host names, or `*`".replace("7:57", "7:65")]
    );
}

#[test]
fn service_entries_fit_their_resolution() {
    let entry = |rest: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e}}\nspec:\n  hosts: [a.com]\n  ports: [{{number: 80, name: http, protocol: http}}]\n{rest}"
        )
    };
    assert!(messages(&entry("")).is_empty());
    assert_eq!(
        messages(&entry("  resolution: STATIC\n  endpoints: [{address: b.com}]\n")),
        [
            "f.yaml:8:16: error: ServiceEntry default/e: spec.endpoints[0].address: \"b.com\" is no IP address, which resolution STATIC needs; write resolution: DNS"
        ]
    );
    assert_eq!(
        messages(&entry("  resolution: NONE\n  endpoints: [{address: 1.2.3.4}]\n")),
        ["f.yaml:8:3: error: ServiceEntry default/e: spec.endpoints: resolution NONE takes no endpoints; write resolution: STATIC or DNS"]
    );
}

#[test]
fn peer_authentication_and_deployment() {
    let policy = "apiVersion: security.istio.io/v1beta1\nkind: PeerAuthentication\nmetadata: {name: p}\nspec:\n  mtls: {mode: STRICT}\n  portLevelMtls: {8080: {mode: DISABLE}}\n";
    assert_eq!(
        messages(policy),
        [
            "f.yaml:6:3: error: PeerAuthentication default/p: spec.portLevelMtls: needs a selector: a port belongs to a workload; add selector with matchLabels"
        ]
    );
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec:\n  selector: {matchLabels: {app: a}}\n  template:\n    metadata: {labels: {app: b}}\n    spec: {containers: [{name: c, ports: [{containerPort: 8080}]}]}\n";
    assert_eq!(
        messages(deployment),
        ["f.yaml:5:3: error: Deployment default/a: spec.selector: does not select the pods of spec.template.metadata.labels"]
    );
    let resources = set(&deployment.replace("app: b", "app: a"));
    let deployment = &resources.deployment("default", "a").unwrap().spec;
    assert_eq!((deployment.replicas(), deployment.template.spec.containers[0].ports[0].container_port), (1, 8080));
    assert_eq!(deployment.template.spec.service_account(), "default");
}

#[test]
fn a_change_of_what_frames_a_message_is_told_to_be_none() {
    let text = virtual_service(
        "  hosts: [reviews]
  http:
  - headers: {request: {set: {Connection: close, x-a: '1'}}, response: {remove: [content-length, x-b]}}
    route: [{destination: {host: reviews}}]
",
    );
    let told = |name: &str| format!("{name:?} is set by how a message is sent; changing it has no effect");
    let found = messages(&text);
    assert!(found.iter().any(|m| m.contains("request.set.Connection") && m.contains(&told("Connection"))), "{found:?}");
    assert!(found.iter().any(|m| m.contains("response.remove[0]") && m.contains(&told("content-length"))), "{found:?}");
    assert_eq!(found.len(), 2, "{found:?}");
}
