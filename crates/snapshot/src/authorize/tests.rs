use http::HeaderMap;
use lateen_proto::envoy::config::rbac::v3::Rbac as Proto;

use super::*;
use crate::compile::parts::{Judged, rbac_rules, rbac_tree};
use crate::test_support::message;

fn rbac(action: &str, permission: &str, principal: &str) -> Rbac {
    let text = format!("{{action: {action}, policies: {{p: {{permissions: [{permission}], principals: [{principal}]}}}}}}");
    rules(message(&text))
}

fn rules(value: Proto) -> Rbac {
    Rbac { rules: Some(rbac_rules(value, Judged::Requests).unwrap()), ..Rbac::default() }
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
        let head = RequestHead {
            method: "POST",
            authority: "h:80",
            scheme: "http",
            path_and_query: "/admin/x?y=/public",
            headers: &self.headers,
            content_length: None,
        };
        rbac.evaluate(&self.facts(Some(&head)))
    }

    fn facts<'a>(&'a self, head: Option<&'a RequestHead<'a>>) -> Facts<'a> {
        Facts {
            head,
            destination: "10.0.0.1:8080".parse().unwrap(),
            direct_remote: "10.1.0.1".parse().unwrap(),
            connection_remote: "10.2.0.1".parse().unwrap(),
            remote: "192.168.0.1".parse().unwrap(),
            source_port: 4000,
            peer: self.peer.as_ref(),
            server_name: Some("a.b"),
            metadata: None,
        }
    }
}

fn template(path: &str) -> String {
    format!(
        "{{uri_template: {{name: t, typed_config: {{'@type': type.googleapis.com/\
         envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, path_template: '{path}'}}}}}}"
    )
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
        ("{destination_port_range: {start: 8080, end: 65536}}", "{any: true}", true),
        ("{destination_ip: {address_prefix: 10.0.0.0, prefix_len: 8}}", "{any: true}", true),
        ("{requested_server_name: {exact: a.b}}", "{any: true}", true),
        ("{header: {name: ':method', exact_match: POST}}", "{any: true}", true),
        ("{header: {name: x-role, exact_match: admin}}", "{any: true}", true),
        ("{not_rule: {header: {name: x-role, exact_match: admin}}}", "{any: true}", false),
        ("{and_rules: {rules: [{any: true}, {destination_port: 1}]}}", "{any: true}", false),
        ("{or_rules: {rules: [{any: true}, {destination_port: 1}]}}", "{any: true}", true),
        (&template("/admin/*"), "{any: true}", true),
        (&template("/admin/{x}/y"), "{any: true}", false),
        ("{any: true}", "{authenticated: {}}", true),
        ("{any: true}", "{authenticated: {principal_name: {exact: 'spiffe://td/ns/a/sa/b'}}}", true),
        ("{any: true}", "{authenticated: {principal_name: {suffix: '/sa/c'}}}", false),
        ("{any: true}", "{direct_remote_ip: {address_prefix: 10.1.0.0, prefix_len: 16}}", true),
        ("{any: true}", "{remote_ip: {address_prefix: 10.1.0.0, prefix_len: 16}}", false),
        ("{any: true}", "{source_ip: {address_prefix: 10.2.0.0, prefix_len: 16}}", true),
        ("{any: true}", "{source_ip: {address_prefix: 10.1.0.0, prefix_len: 16}}", false),
        ("{any: true}", "{source_ip: {address_prefix: 192.168.0.0, prefix_len: 16}}", false),
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
    assert!(world.judge(&Rbac::default()).allowed);
    assert!(!world.judge(&rules(message("{action: ALLOW}"))).allowed);
}

#[test]
fn without_a_certificate_nobody_is_authenticated_and_without_a_request_no_path_matches() {
    let world = World { peer: None, ..World::new(&[]) };
    assert!(!world.judge(&rbac("ALLOW", "{any: true}", "{authenticated: {}}")).allowed);
    let on_path = rbac("ALLOW", "{url_path: {path: {prefix: /}}}", "{any: true}");
    assert!(!on_path.evaluate(&world.facts(None)).allowed);
}

#[test]
fn a_tree_of_matchers_leads_to_a_decision() {
    const COMMON: &str = "type.googleapis.com/envoy.extensions.matching.common_inputs";
    let action = |name: &str, action: &str| {
        format!(
            "{{action: {{name: {name}, typed_config: {{'@type': type.googleapis.com/envoy.config.rbac.v3.Action, name: {name}, action: {action}}}}}}}"
        )
    };
    let input = |kind: &str| format!("{{name: i, typed_config: {{'@type': {COMMON}.{kind}}}}}");
    let header =
        "{name: h, typed_config: {'@type': type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: x-role}}";
    let ip = "{name: ip, typed_config: {'@type': type.googleapis.com/envoy.extensions.matching.input_matchers.ip.v3.Ip, \
              stat_prefix: s, cidr_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}}";
    let one = |input: &str, test: &str| format!("{{single_predicate: {{input: {input}, {test}}}}}");
    let outside = one(&input("network.v3.DirectSourceIPInput"), &format!("custom_match: {ip}"));
    let outside = format!("{{not_matcher: {outside}}}");
    let text = format!(
        "{{matcher_list: {{matchers: [
            {{predicate: {{and_matcher: {{predicate: [{root}, {on_port}]}}}}, on_match: {deny}}},
            {{predicate: {outside}, on_match: {deny}}},
            {{predicate: {by_name}, on_match: {{matcher: {{matcher_tree: {{input: {port}, exact_match_map: {{map: {{'9090': {allow}}}}}}}}}}}}}
          ]}}, on_no_match: {{matcher: {{matcher_tree: {{input: {uri}, prefix_match_map: {{map: {{
            'spiffe://td/': {log}, 'spiffe://td/ns/evil/': {deny}}}}}}}}}}}}}",
        root = one(header, "value_match: {exact: root}"),
        on_port = one(&input("network.v3.DestinationPortInput"), "value_match: {exact: '8080'}"),
        by_name = one(&input("network.v3.ServerNameInput"), "value_match: {suffix: .b}"),
        port = input("network.v3.DestinationPortInput"),
        uri = input("ssl.v3.UriSanInput"),
        deny = action("no", "DENY"),
        allow = action("yes", "ALLOW"),
        log = action("told", "LOG"),
    );
    let tree = Rbac { rules: Some(rbac_tree(message(&text), Judged::Requests).unwrap()), ..Rbac::default() };
    let judged = |headers: &[(&'static str, &str)], peer_name: Option<&str>| {
        let verdict = World { peer: peer_name.map(peer), ..World::new(headers) }.judge(&tree);
        (verdict.allowed, verdict.policy.unwrap_or_default().to_string(), verdict.log)
    };
    let outcome = |allowed, policy: &str, log: bool| (allowed, policy.to_owned(), (!policy.is_empty()).then_some(log));
    assert_eq!(judged(&[("x-role", "root")], Some("spiffe://td/ns/a/sa/b")), outcome(false, "no", false));
    assert_eq!(judged(&[("x-role", "user")], Some("spiffe://td/ns/a/sa/b")), outcome(true, "told", true));
    assert_eq!(judged(&[], Some("spiffe://td/ns/evil/sa/b")), outcome(false, "no", false), "the longest prefix counts");
    assert_eq!(judged(&[], None), outcome(false, "", false), "what no branch is for is denied");
}

#[test]
fn what_a_tree_cannot_do_is_refused_with_its_place() {
    let at = |text: &str| rbac_tree(message(text), Judged::Requests).unwrap_err().to_string();
    let other = "{matcher_list: {matchers: [{predicate: {single_predicate: {input: {name: c, typed_config: \
               {'@type': type.googleapis.com/envoy.type.matcher.v3.HttpRequestQueryParamMatchInput, query_param: a}}, value_match: {exact: a}}}, \
               on_match: {action: {name: a, typed_config: {'@type': type.googleapis.com/envoy.config.rbac.v3.Action, name: a}}}}]}}";
    let refused = at(other);
    assert!(
        refused.starts_with("matcher_list.matchers[0].predicate.single_predicate.input: c (") && refused.contains("QueryParam"),
        "{refused}"
    );
    let kept = "{on_no_match: {keep_matching: true, action: {name: a, typed_config: {'@type': type.googleapis.com/envoy.config.rbac.v3.Action, name: a}}}}";
    assert_eq!(at(kept), "on_no_match.keep_matching: is not supported; remove it");
}

#[test]
fn a_prefix_whose_tree_has_nothing_leaves_it_to_shorter_ones() {
    let action = |name: &str, action: &str| {
        format!(
            "{{action: {{name: {name}, typed_config: {{'@type': type.googleapis.com/envoy.config.rbac.v3.Action, name: {name}, action: {action}}}}}}}"
        )
    };
    let header = |name: &str| {
        format!(
            "{{name: h, typed_config: {{'@type': type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: '{name}'}}}}"
        )
    };
    let by_role = format!(
        "{{matcher: {{matcher_tree: {{input: {}, exact_match_map: {{map: {{root: {}}}}}}}}}}}",
        header("x-role"),
        action("root", "ALLOW")
    );
    let text = format!(
        "{{matcher_tree: {{input: {}, prefix_match_map: {{map: {{'/admin': {}, '/admin/x': {by_role}}}}}}}, on_no_match: {}}}",
        header(":path"),
        action("admin", "DENY"),
        action("other", "ALLOW"),
    );
    let tree = Rbac { rules: Some(rbac_tree(message(&text), Judged::Requests).unwrap()), ..Rbac::default() };
    let judged = |headers: &[(&'static str, &str)]| World::new(headers).judge(&tree).policy.unwrap_or_default().to_string();
    assert_eq!((judged(&[("x-role", "root")]).as_str(), judged(&[]).as_str()), ("root", "admin"));
}

#[test]
fn rules_about_requests_are_refused_where_connections_are_judged() {
    let refused = |permission: &str, principal: &str| {
        let text = format!("{{action: DENY, policies: {{p: {{permissions: [{permission}], principals: [{principal}]}}}}}}");
        rbac_rules(message(&text), Judged::Connections).unwrap_err().to_string()
    };
    let header = "{header: {name: a, present_match: true}}";
    let path = "{url_path: {path: {exact: /a}}}";
    for (permission, principal, place) in [
        (header, "{any: true}", "permissions[0].header"),
        (path, "{any: true}", "permissions[0].url_path"),
        (&template("/a"), "{any: true}", "permissions[0].uri_template"),
        (&format!("{{and_rules: {{rules: [{{any: true}}, {header}]}}}}"), "{any: true}", "permissions[0].and_rules.rules[1].header"),
        (&format!("{{or_rules: {{rules: [{path}]}}}}"), "{any: true}", "permissions[0].or_rules.rules[0].url_path"),
        (&format!("{{not_rule: {header}}}"), "{any: true}", "permissions[0].not_rule.header"),
        ("{any: true}", header, "principals[0].header"),
        ("{any: true}", path, "principals[0].url_path"),
        ("{any: true}", &format!("{{and_ids: {{ids: [{header}]}}}}"), "principals[0].and_ids.ids[0].header"),
        ("{any: true}", &format!("{{or_ids: {{ids: [{header}]}}}}"), "principals[0].or_ids.ids[0].header"),
        ("{any: true}", &format!("{{not_id: {path}}}"), "principals[0].not_id.url_path"),
    ] {
        let expected = format!("policies[\"p\"].{place}: is not supported of a network filter; use the HTTP filter for it");
        assert_eq!(refused(permission, principal), expected);
    }
    let action = "{action: {name: a, typed_config: {'@type': type.googleapis.com/envoy.config.rbac.v3.Action, name: a}}}";
    let tree = format!(
        "{{matcher_tree: {{input: {{name: h, typed_config: {{'@type': type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, \
         header_name: a}}}}, exact_match_map: {{map: {{a: {action}}}}}}}}}"
    );
    let refused = rbac_tree(message(&tree), Judged::Connections).unwrap_err().to_string();
    assert!(refused.starts_with("matcher_tree.input: h (envoy.type.matcher.v3.HttpRequestHeaderMatchInput) is not supported"), "{refused}");
}

#[test]
fn a_connect_has_no_path_that_a_rule_could_match() {
    let world = World::new(&[]);
    let judge = |rbac: &Rbac| {
        let head = RequestHead {
            method: "CONNECT",
            authority: "h:80",
            scheme: "http",
            path_and_query: "",
            headers: &world.headers,
            content_length: None,
        };
        rbac.evaluate(&world.facts(Some(&head))).allowed
    };
    for rule in ["{url_path: {path: {safe_regex: {regex: '.*'}}}}", "{header: {name: ':path', present_match: true}}"] {
        assert!(!judge(&rbac("ALLOW", rule, "{any: true}")), "{rule}");
        assert!(judge(&rbac("ALLOW", &format!("{{not_rule: {rule}}}"), "{any: true}")), "{rule}");
    }
}
