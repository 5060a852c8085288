//! Clusters that stand for several others.
use crate::support::*;

/// A cluster of one host, which is unhealthy where `up` is false.
fn member(name: &str, port: u16, up: bool, more: &str) -> String {
    let health = if up { "HEALTHY" } else { "UNHEALTHY" };
    format!(
        "- {{name: {name}, type: STATIC, connect_timeout: 1s, common_lb_config: {{healthy_panic_threshold: {{value: 0}}}}, {more} load_assignment: {{cluster_name: {name}, \
         endpoints: [{{lb_endpoints: [{{health_status: {health}, endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}}}"
    )
}

const WHOLE: &str = "- {name: c, connect_timeout: 1s, lb_policy: CLUSTER_PROVIDED, common_lb_config: {healthy_panic_threshold: {value: 0}}, cluster_type: {name: envoy.clusters.aggregate, typed_config: \
                     {'@type': type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig, clusters: [first, nowhere, second]}}}";

#[test]
fn the_next_cluster_serves_while_the_one_before_has_no_host() {
    let (one, two) = (Upstream::ok("one"), Upstream::ok("two"));
    let config = |first: bool, second: bool| {
        let mut config = Config::to(&[]);
        config.clusters = vec![WHOLE.to_owned(), member("first", one.port(), first, ""), member("second", two.port(), second, "")];
        config.yaml()
    };
    let proxy = start(&config(true, true));
    assert_eq!(proxy.get("/").body, "one");
    publish(&proxy.worker, snapshot(&config(false, true), 2));
    assert_eq!(proxy.get("/").body, "two");
    assert_eq!(proxy.get("/").body, "two");
    publish(&proxy.worker, snapshot(&config(true, true), 3));
    assert_eq!(proxy.get("/").body, "one");
    publish(&proxy.worker, snapshot(&config(false, false), 4));
    assert_eq!(proxy.get("/").status, 503);
    let counts = ["first", "second", "c"].map(|name| proxy.stat(&format!("cluster.{name}.upstream_rq_total")));
    assert_eq!(counts, [2, 2, 0], "each request counts for the cluster that served it");
}

#[test]
fn limits_are_those_of_the_member() {
    let upstream = Upstream::ok("x");
    let mut config = Config::to(&[]);
    let full = "circuit_breakers: {thresholds: [{max_requests: 0}]},";
    config.clusters = vec![WHOLE.to_owned(), member("first", upstream.port(), true, full)];
    let proxy = config.start();
    let answer = proxy.get("/");
    assert_eq!((answer.status, answer.header("x-envoy-overloaded")), (503, Some("true")));
    assert_eq!(upstream.seen().len(), 0);
}
