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
