//! The JWT filter.
use std::time::{Duration, SystemTime};

use lateen_identity::token::TokenIssuer;

use crate::support::*;

const HOUR: Duration = Duration::from_secs(3600);

/// The filter with one provider `p`, followed by RBAC that asks for an account's token below `/admin`.
fn filters(issuer: &TokenIssuer, requirement: &str) -> String {
    format!(
        r#"- name: envoy.filters.http.jwt_authn
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication
    bypass_cors_preflight: true
    providers:
      p:
        issuer: {}
        audiences: [api]
        local_jwks: {{inline_string: '{}'}}
        payload_in_metadata: payload
        claim_to_headers: [{{header_name: x-sub, claim_name: sub}}]
    rules:
    - match: {{prefix: /}}
      requires: {requirement}
    requirement_map: {{strict: {{provider_name: p}}}}
- name: envoy.filters.http.rbac
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
    rules:
      action: DENY
      policies:
        admins:
          permissions: [{{url_path: {{path: {{prefix: /admin}}}}}}]
          principals:
          - not_id:
              metadata:
                filter: envoy.filters.http.jwt_authn
                path: [{{key: payload}}, {{key: kubernetes.io}}, {{key: serviceaccount}}, {{key: name}}]
                value: {{string_match: {{exact: admin}}}}"#,
        issuer.issuer(),
        issuer.jwks()
    )
}

fn ask(proxy: &Proxy, path: &str, token: &str) -> Answer {
    proxy.call(&format!("GET {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\n\r\n"))
}

#[test]
fn a_token_is_asked_for_verified_and_used_by_rbac() {
    let upstream = Upstream::ok("x");
    let issuer = TokenIssuer::generate("me").unwrap();
    let mut config = Config::to(&[upstream.port()]);
    config.filters = filters(&issuer, "{provider_name: p}");
    let proxy = config.start();
    let now = SystemTime::now();
    let token = |account: &str, audience: &str, now| issuer.issue("ns", account, audience, HOUR, now).unwrap();
    let missing = proxy.get("/x?y");
    assert_eq!((missing.status, missing.body.as_str()), (401, "Jwt is missing"));
    assert_eq!(missing.header("www-authenticate"), Some("Bearer realm=\"http://a/x?y\""));
    let expired = ask(&proxy, "/", &token("app", "api", now - 3 * HOUR));
    assert_eq!((expired.status, expired.body.as_str()), (401, "Jwt is expired"));
    assert_eq!(expired.header("www-authenticate"), Some("Bearer realm=\"http://a/\", error=\"invalid_token\""));
    let other = ask(&proxy, "/", &token("app", "other", now));
    assert_eq!((other.status, other.body.as_str()), (403, "Audiences in Jwt are not allowed"));
    assert!(upstream.seen().is_empty());
    assert_eq!(ask(&proxy, "/", &token("app", "api", now)).status, 200);
    let seen = upstream.seen();
    assert!(seen[0].contains("x-sub: system:serviceaccount:ns:app") && !seen[0].contains("authorization"), "{}", seen[0]);
    assert_eq!(ask(&proxy, "/admin", &token("app", "api", now)).status, 403);
    assert_eq!(ask(&proxy, "/admin", &token("admin", "api", now)).status, 200);
    assert_eq!((proxy.stat("http.t.jwt_authn.denied"), proxy.stat("http.t.jwt_authn.allowed")), (3, 3));
    let preflight = "OPTIONS / HTTP/1.1\r\nhost: a\r\norigin: b\r\naccess-control-request-method: GET\r\n\r\n";
    assert_eq!(proxy.call(preflight).status, 200);
    assert_eq!(proxy.call("OPTIONS / HTTP/1.1\r\nhost: a\r\norigin: b\r\n\r\n").status, 401);
}

#[test]
fn routes_name_a_requirement_or_switch_the_filter_off() {
    let upstream = Upstream::ok("x");
    let issuer = TokenIssuer::generate("me").unwrap();
    let route = |prefix: &str, value: &str| {
        format!(
            "- match: {{prefix: {prefix}}}\n  route: {{cluster: c}}\n  typed_per_filter_config: {{envoy.filters.http.jwt_authn: \
             {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig, {value}}}}}\n"
        )
    };
    let mut config = Config::to(&[upstream.port()]);
    config.routes = format!(
        "{}{}{}- match: {{prefix: /}}\n  route: {{cluster: c}}",
        route("/strict", "requirement_name: strict"),
        route("/off", "disabled: true"),
        route("/wrong", "requirement_name: nobody"),
    );
    config.filters = filters(&issuer, "{requires_any: {requirements: [{provider_name: p}, {allow_missing: {}}]}}");
    let proxy = config.start();
    assert_eq!((proxy.get("/").status, proxy.get("/strict").status, proxy.get("/off").status), (200, 401, 200));
    assert_eq!((ask(&proxy, "/", "a.b.c").status, ask(&proxy, "/off", "a.b.c").status), (401, 200));
    let wrong = proxy.get("/wrong");
    let text = "Failed JWT authentication: Wrong requirement_name: nobody. It should be one of [strict]";
    assert_eq!((wrong.status, wrong.body.as_str()), (403, text));
}

/// The filter with one provider whose keys are fetched.
fn remote(upstream: u16, keys: u16, more: &str) -> Config {
    let mut config = Config::to(&[upstream]).cluster(cluster("keys", &[keys], ""));
    config.filters = format!(
        "- name: envoy.filters.http.jwt_authn\n  typed_config:\n    \
         \"@type\": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication\n    providers:\n      p:\n        \
         issuer: me\n        remote_jwks: {{http_uri: {{uri: \"http://issuer.example/keys?x=1\", cluster: keys, timeout: 2s}}{more}}}\n    \
         rules: [{{match: {{prefix: /}}, requires: {{provider_name: p}}}}]\n"
    );
    config
}

#[test]
fn keys_are_fetched_once_when_the_first_token_comes() {
    let upstream = Upstream::ok("x");
    let issuer = TokenIssuer::generate("me").unwrap();
    let jwks = issuer.jwks();
    let keys = Upstream::start(move |_, _, stream| {
        std::thread::sleep(Duration::from_millis(100));
        write_ok(stream, &jwks)
    });
    let proxy = remote(upstream.port(), keys.port(), "").start();
    let token = |account: &str| issuer.issue("ns", account, "api", HOUR, SystemTime::now()).unwrap();
    assert_eq!(proxy.get("/").status, 401);
    assert!(keys.seen().is_empty(), "without a token no keys are needed");
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..4).map(|_| scope.spawn(|| ask(&proxy, "/", &token("app")).status)).collect();
        calls.into_iter().map(|c| c.join().unwrap()).collect()
    });
    assert_eq!(statuses, [200; 4]);
    let seen = keys.seen();
    assert_eq!(seen.len(), 1, "one fetch for all");
    assert!(seen[0].starts_with("GET /keys?x=1 HTTP/1.1\r\nhost: issuer.example\r\n"), "{}", seen[0]);
    assert_eq!(proxy.stat("http.t.jwt_authn.jwks_fetch_success"), 1);
    let other = TokenIssuer::generate("me").unwrap().issue("ns", "app", "api", HOUR, SystemTime::now()).unwrap();
    assert_eq!(ask(&proxy, "/", &other).status, 401);
}

#[test]
fn keys_that_cannot_be_fetched_refuse_and_old_ones_go_on() {
    let upstream = Upstream::ok("x");
    let issuer = TokenIssuer::generate("me").unwrap();
    let jwks = issuer.jwks();
    // First nothing, then no JSON, then the keys once, and never again.
    let keys = Upstream::start(move |number, _, stream| match number {
        1 => write_status(stream, 503),
        2 => write_ok(stream, "{"),
        3 => write_ok(stream, &jwks),
        _ => write_ok(stream, "{\"keys\": []}"),
    });
    let proxy = remote(upstream.port(), keys.port(), ", cache_duration: 0.2s").start();
    let ask = || ask(&proxy, "/", &issuer.issue("ns", "app", "api", HOUR, SystemTime::now()).unwrap());
    let first = ask();
    assert_eq!((first.status, first.body.as_str()), (401, "Jwks remote fetch is failed"));
    assert_eq!((ask().status, ask().status), (401, 200));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(ask().status, 200, "the keys are out of date and there are no others");
    assert_eq!(keys.seen().len(), 4);
    assert_eq!((proxy.stat("http.t.jwt_authn.jwks_fetch_success"), proxy.stat("http.t.jwt_authn.jwks_fetch_failed")), (1, 3));
}

#[test]
fn keys_are_fetched_ahead_and_again_where_that_is_asked_for() {
    let upstream = Upstream::ok("x");
    let issuer = TokenIssuer::generate("me").unwrap();
    let jwks = issuer.jwks();
    let keys = Upstream::start(move |number, _, stream| if number == 2 { write_ok(stream, &jwks) } else { write_status(stream, 500) });
    let retry = ", async_fetch: {failed_refetch_duration: 0.1s}, retry_policy: {num_retries: 3, retry_back_off: {base_interval: 0.05s}}";
    let proxy = remote(upstream.port(), keys.port(), retry).start();
    eventually(|| proxy.stat("http.t.jwt_authn.jwks_fetch_success") == 1);
    assert_eq!(ask(&proxy, "/", &issuer.issue("ns", "app", "api", HOUR, SystemTime::now()).unwrap()).status, 200);
    assert_eq!(keys.seen().len(), 2);
}

/// Routes that nothing but a verified token of `app` matches.
fn by_claim(upstream: u16, issuer: &TokenIssuer, route: &str) -> Config {
    let mut config = Config::to(&[upstream]).routes(&format!(
        "- match:\n    prefix: /\n    dynamic_metadata: [{{filter: envoy.filters.http.jwt_authn, path: [{{key: payload}}, {{key: sub}}], \
         value: {{string_match: {{suffix: ':app'}}}}}}]\n  route: {{cluster: c{route}}}"
    ));
    config.filters = filters(issuer, "{provider_name: p}")
        .replace("payload_in_metadata: payload", "payload_in_metadata: payload\n        clear_route_cache: true");
    config
}

#[test]
fn a_route_that_only_a_token_matches_is_found_once_it_was_verified() {
    let upstream = Upstream::ok("x");
    let issuer = TokenIssuer::generate("me").unwrap();
    let proxy = by_claim(upstream.port(), &issuer, "").start();
    let token = |account: &str| issuer.issue("ns", account, "api", HOUR, SystemTime::now()).unwrap();
    assert_eq!((ask(&proxy, "/", &token("app")).status, ask(&proxy, "/", &token("other")).status), (200, 404));
    assert_eq!(upstream.seen().len(), 1);
}

#[test]
fn a_route_found_by_a_token_is_asked_whether_it_allows_the_upgrade() {
    let upstream = Upstream::ok("x");
    let issuer = TokenIssuer::generate("me").unwrap();
    let token = issuer.issue("ns", "app", "api", HOUR, SystemTime::now()).unwrap();
    let upgrade =
        format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\nauthorization: Bearer {token}\r\n\r\n");
    let own = "filters: [{name: envoy.filters.http.fault, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, \
               abort: {http_status: 555, percentage: {numerator: 100}}}}, {name: router, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]";
    let on = ", upgrade_configs: [{upgrade_type: websocket}]";
    let off = ", upgrade_configs: [{upgrade_type: websocket, enabled: false}]";
    for (listener, route, status, upgrades) in [
        (String::new(), "", 403, 0),
        (String::new(), on, 200, 1),
        ("upgrade_configs: [{upgrade_type: websocket}]".to_owned(), off, 403, 1),
        ("upgrade_configs: [{upgrade_type: websocket}]".to_owned(), "", 200, 1),
        // The filters of upgrades begin with the first.
        (format!("upgrade_configs: [{{upgrade_type: websocket, enabled: false, {own}}}]"), on, 555, 1),
    ] {
        let mut config = by_claim(upstream.port(), &issuer, route);
        config.hcm.clone_from(&listener);
        let proxy = config.start();
        assert_eq!(proxy.call(&upgrade).status, status, "{listener} {route}");
        assert_eq!(proxy.stat("http.t.downstream_cx_upgrades_total"), upgrades, "{listener} {route}");
    }
}
