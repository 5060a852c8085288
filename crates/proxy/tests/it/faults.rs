//! HTTP filters: fault, CORS, RBAC.
use std::time::{Duration, Instant};

use lateen_telemetry::stats::Query;

use crate::support::*;

const FAULT: &str = r#"- name: envoy.filters.http.fault
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault
"#;

#[test]
fn aborts_and_delays_are_injected_with_envoys_text() {
    let upstream = Upstream::ok("x");
    let mut config = Config::to(&[upstream.port()]);
    config.filters = format!(
        "{FAULT}    abort: {{http_status: 555, percentage: {{numerator: 100}}}}\n    delay: {{fixed_delay: 0.2s, percentage: {{numerator: 100}}}}"
    );
    let proxy = config.start();
    let start = Instant::now();
    let answer = proxy.get("/");
    assert_eq!((answer.status, answer.body.as_str()), (555, "fault filter abort"));
    assert!(start.elapsed() >= Duration::from_millis(200));
    assert_eq!(proxy.stat("http.t.fault.aborts_injected"), 1);
    assert_eq!(proxy.stat("http.t.fault.delays_injected"), 1);
    assert!(upstream.seen().is_empty());
}

#[test]
fn a_delay_lasts_no_longer_than_an_exchange_may_be_idle() {
    let upstream = Upstream::ok("x");
    for (listener, route) in [("0.3s", ""), ("60s", ", idle_timeout: 0.3s")] {
        let mut config = Config::to(&[upstream.port()]).routes(&format!("- {{match: {{prefix: /}}, route: {{cluster: c{route}}}}}"));
        config.filters = format!("{FAULT}    delay: {{fixed_delay: 60s, percentage: {{numerator: 100}}}}");
        config.hcm = format!("stream_idle_timeout: {listener}");
        let answer = config.start().get("/");
        assert_eq!((answer.status, answer.body.as_str()), (504, "stream timeout"), "{listener} {route}");
    }
    assert!(upstream.seen().is_empty());
}

#[test]
fn a_route_sets_its_own_fault_and_a_zero_percentage_is_none() {
    let upstream = Upstream::ok("x");
    let mut config = Config::to(&[upstream.port()]).routes(
        r#"- match: {prefix: /bad}
  route: {cluster: c}
  typed_per_filter_config:
    envoy.filters.http.fault:
      "@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault
      abort: {http_status: 500, percentage: {numerator: 100}}
- match: {prefix: /none}
  route: {cluster: c}
  typed_per_filter_config:
    envoy.filters.http.fault:
      "@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault
      abort: {http_status: 500, percentage: {numerator: 0}}
- match: {prefix: /}
  route: {cluster: c}"#,
    );
    config.filters = FAULT.to_owned();
    let proxy = config.start();
    assert_eq!((proxy.get("/bad").status, proxy.get("/none").status, proxy.get("/").status), (500, 200, 200));
}

#[test]
fn cors_answers_preflights_and_marks_responses() {
    let upstream = Upstream::ok("x");
    let mut config = Config::to(&[upstream.port()]).routes(
        r#"- match: {prefix: /}
  route: {cluster: c}
  typed_per_filter_config:
    envoy.filters.http.cors:
      "@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy
      allow_origin_string_match: [{exact: "https://shop.example"}]
      allow_methods: "GET,POST"
      expose_headers: x-one
      max_age: "60""#,
    );
    config.filters =
        "- name: envoy.filters.http.cors\n  typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}"
            .to_owned();
    let proxy = config.start();
    let preflight = "OPTIONS / HTTP/1.1\r\nhost: a\r\norigin: https://shop.example\r\naccess-control-request-method: POST\r\n\r\n";
    let answer = proxy.call(preflight);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://shop.example"));
    assert_eq!(answer.header("access-control-allow-methods"), Some("GET,POST"));
    assert_eq!(answer.header("access-control-max-age"), Some("60"));
    assert!(upstream.seen().is_empty());
    let answer = proxy.call("GET / HTTP/1.1\r\nhost: a\r\norigin: https://shop.example\r\n\r\n");
    assert_eq!(answer.header("access-control-expose-headers"), Some("x-one"));
    let answer = proxy.call("GET / HTTP/1.1\r\nhost: a\r\norigin: https://evil.example\r\n\r\n");
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, None));
}

const CORS: &str =
    "- name: envoy.filters.http.cors\n  typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}";

fn marked(proxy: &Proxy, path: &str) -> Option<String> {
    let answer = proxy.call(&format!("GET {path} HTTP/1.1\r\nhost: a\r\norigin: https://shop.example\r\n\r\n"));
    answer.header("access-control-allow-origin").map(|_| {
        let of = |name| answer.header(name).unwrap_or("-").to_owned();
        format!("{} {}", of("access-control-allow-credentials"), of("access-control-expose-headers"))
    })
}

#[test]
fn what_a_cors_policy_leaves_open_the_next_one_says_where_a_route_forwards() {
    let upstream = Upstream::ok("x");
    let policy = |fields: &str| {
        format!(
            "typed_per_filter_config: {{envoy.filters.http.cors: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy, {fields}}}}}"
        )
    };
    let near = policy("expose_headers: x-near");
    let mut config = Config::to(&[upstream.port()]).routes(&format!(
        "- {{match: {{path: /near}}, route: {{cluster: c}}, {near}}}\n- {{match: {{path: /far}}, route: {{cluster: c}}}}\n\
         - {{match: {{path: /direct}}, direct_response: {{status: 200}}, {near}}}"
    ));
    config.virtual_host =
        policy("allow_origin_string_match: [{exact: 'https://shop.example'}], expose_headers: x-far, allow_credentials: true");
    config.filters = CORS.to_owned();
    let proxy = config.start();
    assert_eq!(marked(&proxy, "/near").as_deref(), Some("true x-near"));
    assert_eq!(marked(&proxy, "/far").as_deref(), Some("true x-far"));
    assert_eq!(marked(&proxy, "/direct"), None);
}

#[test]
fn whether_cors_is_on_for_a_request_is_decided_once() {
    let upstream = Upstream::ok("x");
    let mut config = Config::to(&[upstream.port()]).routes(
        "- match: {prefix: /}\n  route:\n    cluster: c\n    cors: {allow_origin_string_match: [{prefix: 'https:'}], filter_enabled: {default_value: {numerator: 50}}}",
    );
    config.filters = CORS.to_owned();
    let proxy = config.start();
    let marks = (0..60).filter(|_| marked(&proxy, "/").is_some()).count();
    assert_eq!(marks as u64, proxy.stat("http.t.cors.origin_valid"));
}

#[test]
fn rules_that_are_counted_one_by_one_are_one_family_with_labels() {
    let upstream = Upstream::ok("x");
    let mut config = Config::to(&[upstream.port()]);
    config.filters = r#"- name: envoy.filters.http.rbac
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
    track_per_rule_stats: true
    rules:
      action: DENY
      policies:
        "ns[default]-policy[deny]-rule[0]": {permissions: [{url_path: {path: {prefix: /admin}}}], principals: [{any: true}]}"#
        .to_owned();
    let proxy = config.start();
    assert_eq!(proxy.get("/admin").status, 403);
    let page = Query::parse("format=prometheus&usedonly&filter=rbac").unwrap().render(&proxy.registry);
    let line = "envoy_http_t_rbac_policy_ns_default__policy_deny__rule_0__denied{} 1\n";
    assert!(page.contains(line), "{page}");
}

#[test]
fn rbac_denies_with_403_by_path_as_normalised() {
    let upstream = Upstream::ok("x");
    let mut config = Config::to(&[upstream.port()]);
    config.hcm = "normalize_path: true\nmerge_slashes: true".to_owned();
    config.filters = r#"- name: envoy.filters.http.rbac
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
    rules:
      action: DENY
      policies:
        no-admin: {permissions: [{url_path: {path: {prefix: /admin}}}], principals: [{any: true}]}"#
        .to_owned();
    let proxy = config.start();
    for path in ["/admin", "//admin", "/./admin", "/x/../admin", "/admin?x", "/admin#x", "/%61dmin"] {
        let answer = proxy.get(path);
        assert_eq!((answer.status, answer.body.as_str()), (403, "RBAC: access denied"), "{path}");
    }
    assert_eq!(proxy.get("/open").status, 200);
}

#[test]
fn a_route_may_let_its_exchanges_be_idle_for_ever() {
    let upstream = Upstream::start(|_, _, stream| {
        std::thread::sleep(Duration::from_millis(400));
        write_ok(stream, "x")
    });
    let route = "- {match: {prefix: /}, route: {cluster: c, timeout: 0s, idle_timeout: 0s}}";
    let mut config = Config::to(&[upstream.port()]).routes(route);
    config.filters = format!("{FAULT}    delay: {{fixed_delay: 0.4s, percentage: {{numerator: 100}}}}");
    config.hcm = "stream_idle_timeout: 0.2s".to_owned();
    assert_eq!(config.start().get("/").status, 200);
}

/// RBAC under its usual name, with one policy about the header `x-role`.
fn rbac(action: &str, role: &str) -> String {
    format!(
        r#"- name: envoy.filters.http.rbac
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
    rules:
      action: {action}
      policies:
        p: {{permissions: [{{header: {{name: x-role, string_match: {{exact: {role}}}}}}}], principals: [{{any: true}}]}}
"#
    )
}

#[test]
fn filters_of_one_name_all_act_and_a_route_speaks_of_all_of_them() {
    let upstream = Upstream::ok("x");
    let mut config = Config::to(&[upstream.port()]).routes(
        r#"- match: {prefix: /off}
  route: {cluster: c}
  typed_per_filter_config:
    envoy.filters.http.rbac: {"@type": type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}
- match: {prefix: /open}
  route: {cluster: c}
  typed_per_filter_config:
    envoy.filters.http.rbac: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute}
- match: {prefix: /}
  route: {cluster: c}"#,
    );
    config.filters = rbac("DENY", "guest") + &rbac("ALLOW", "admin");
    let proxy = config.start();
    let status = |path: &str, role: &str| proxy.call(&format!("GET {path} HTTP/1.1\r\nhost: a\r\nx-role: {role}\r\n\r\n")).status;
    assert_eq!(["guest", "user", "admin"].map(|role| status("/", role)), [403, 403, 200]);
    for path in ["/off", "/open"] {
        assert_eq!(["guest", "user", "admin"].map(|role| status(path, role)), [200; 3], "{path}");
    }
}

#[test]
fn a_route_switches_a_filter_on_that_is_off_everywhere_else() {
    let upstream = Upstream::ok("x");
    let mut config = Config::to(&[upstream.port()]).routes(
        r#"- match: {prefix: /on}
  route: {cluster: c}
  typed_per_filter_config:
    envoy.filters.http.rbac: {"@type": type.googleapis.com/envoy.config.route.v3.FilterConfig, config: {}}
- match: {prefix: /}
  route: {cluster: c}"#,
    );
    config.filters = rbac("ALLOW", "admin") + "  disabled: true";
    let proxy = config.start();
    assert_eq!(["/", "/on"].map(|path| proxy.get(path).status), [200, 403]);
}
