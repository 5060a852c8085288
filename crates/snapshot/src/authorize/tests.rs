use http::HeaderMap;
use lateen_proto::envoy::config::rbac::v3::Rbac as Proto;

use super::*;
use crate::compile::parts::rbac_rules;
use crate::test_support::message;

fn rbac(action: &str, permission: &str, principal: &str) -> Rbac {
    let text = format!("{{action: {action}, policies: {{p: {{permissions: [{permission}], principals: [{principal}]}}}}}}");
    rbac_rules(Some(message::<Proto>(&text)), "").unwrap()
}

fn peer(uri: &str) -> PeerIdentity {
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
    PeerIdentity::from_der(params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der()).unwrap()
}

struct World {
    headers: HeaderMap,
    peer: Option<PeerIdentity>,
}

impl World {
    fn new(headers: &[(&'static str, &str)]) -> Self {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        Self { headers: map, peer: Some(peer("spiffe://td/ns/a/sa/b")) }
    }

    fn judge(&self, rbac: &Rbac) -> Verdict {
        let head =
            RequestHead { method: "POST", authority: "h:80", scheme: "http", path_and_query: "/admin/x?y=/public", headers: &self.headers };
        rbac.evaluate(&self.facts(Some(&head)))
    }

    fn facts<'a>(&'a self, head: Option<&'a RequestHead<'a>>) -> Facts<'a> {
        Facts {
            head,
            destination: "10.0.0.1:8080".parse().unwrap(),
            direct_remote: "10.1.0.1".parse().unwrap(),
            remote: "192.168.0.1".parse().unwrap(),
            peer: self.peer.as_ref(),
            server_name: Some("a.b"),
            metadata: None,
        }
    }
}

#[test]
fn conditions_hold_as_documented() {
    let world = World::new(&[("x-role", "user"), ("x-role", "admin")]);
    for (permission, principal, expected) in [
        ("{any: true}", "{any: true}", true),
        ("{url_path: {path: {prefix: /admin}}}", "{any: true}", true),
        ("{url_path: {path: {exact: '/admin/x?y=/public'}}}", "{any: true}", false),
        ("{destination_port: 8080}", "{any: true}", true),
        ("{destination_port_range: {start: 8080, end: 8081}}", "{any: true}", true),
        ("{destination_port_range: {start: 80, end: 8080}}", "{any: true}", false),
        ("{destination_ip: {address_prefix: 10.0.0.0, prefix_len: 8}}", "{any: true}", true),
        ("{requested_server_name: {exact: a.b}}", "{any: true}", true),
        ("{header: {name: ':method', exact_match: POST}}", "{any: true}", true),
        ("{header: {name: x-role, exact_match: admin}}", "{any: true}", true),
        ("{not_rule: {header: {name: x-role, exact_match: admin}}}", "{any: true}", false),
        ("{and_rules: {rules: [{any: true}, {destination_port: 1}]}}", "{any: true}", false),
        ("{or_rules: {rules: [{any: true}, {destination_port: 1}]}}", "{any: true}", true),
        ("{any: true}", "{authenticated: {}}", true),
        ("{any: true}", "{authenticated: {principal_name: {exact: 'spiffe://td/ns/a/sa/b'}}}", true),
        ("{any: true}", "{authenticated: {principal_name: {suffix: '/sa/c'}}}", false),
        ("{any: true}", "{direct_remote_ip: {address_prefix: 10.1.0.0, prefix_len: 16}}", true),
        ("{any: true}", "{remote_ip: {address_prefix: 10.1.0.0, prefix_len: 16}}", false),
        ("{any: true}", "{not_id: {authenticated: {}}}", false),
        ("{any: true}", "{filter_state: {key: io.istio.peer_principal, string_match: {exact: 'spiffe://td/ns/a/sa/b'}}}", true),
    ] {
        assert_eq!(world.judge(&rbac("ALLOW", permission, principal)).allowed, expected, "{permission} {principal}");
    }
}

#[test]
fn actions_turn_matches_into_verdicts() {
    let world = World::new(&[]);
    let hit = "{destination_port: 8080}";
    let miss = "{destination_port: 1}";
    for (action, permission, allowed, named) in [
        ("ALLOW", hit, true, true),
        ("ALLOW", miss, false, false),
        ("DENY", hit, false, true),
        ("DENY", miss, true, false),
        ("LOG", hit, true, true),
    ] {
        let verdict = world.judge(&rbac(action, permission, "{any: true}"));
        assert_eq!((verdict.allowed, verdict.policy.is_some()), (allowed, named), "{action} {permission}");
    }
    // No rules at all enforce nothing; rules without policies allow nobody.
    assert!(world.judge(&rbac_rules(None, "").unwrap()).allowed);
    assert!(!world.judge(&rbac_rules(Some(message("{action: ALLOW}")), "").unwrap()).allowed);
}

#[test]
fn without_a_certificate_nobody_is_authenticated_and_without_a_request_no_path_matches() {
    let world = World { peer: None, ..World::new(&[]) };
    assert!(!world.judge(&rbac("ALLOW", "{any: true}", "{authenticated: {}}")).allowed);
    let on_path = rbac("ALLOW", "{url_path: {path: {prefix: /}}}", "{any: true}");
    assert!(!on_path.evaluate(&world.facts(None)).allowed);
}
