use http::HeaderMap;

use super::*;
use crate::compile::parts::{header_matcher, string_matcher};
use crate::test_support::{message, route_table};

fn string(yaml: &str) -> StringMatcher {
    string_matcher(message(yaml)).unwrap()
}

#[test]
fn strings_compare_as_documented() {
    let cases = [
        ("{exact: abc}", "abc", true),
        ("{exact: abc}", "Abc", false),
        ("{exact: aBc, ignore_case: true}", "AbC", true),
        ("{prefix: ab}", "abc", true),
        ("{prefix: ab}", "a", false),
        ("{prefix: AB, ignore_case: true}", "abc", true),
        ("{suffix: bc}", "abc", true),
        ("{suffix: abcd}", "bcd", false),
        ("{suffix: BC, ignore_case: true}", "xbc", true),
        ("{contains: b}", "abc", true),
        ("{contains: BC, ignore_case: true}", "abcd", true),
        ("{contains: x}", "", false),
        // Regular expressions match whole values.
        ("{safe_regex: {regex: 'a.c'}}", "abc", true),
        ("{safe_regex: {regex: 'a.c'}}", "abcd", false),
        ("{safe_regex: {regex: 'a|abc'}}", "abc", true),
    ];
    for (matcher, value, expected) in cases {
        assert_eq!(string(matcher).matches(value), expected, "{matcher} {value}");
    }
}

fn head_of<'a>(headers: &'a HeaderMap) -> RequestHead<'a> {
    RequestHead { method: "GET", authority: "a.b", scheme: "http", path_and_query: "/p?q=1", headers, content_length: None }
}

#[test]
fn headers_compare_as_documented() {
    let cases: [(&str, &[&str], bool); 16] = [
        ("{name: x, string_match: {exact: a}}", &["a"], true),
        ("{name: X, exact_match: a}", &["a"], true),
        // Several values are one list, and each counts by itself too.
        ("{name: x, string_match: {exact: 'a,b'}}", &["a", "b"], true),
        ("{name: x, string_match: {exact: b}}", &["a", "b"], true),
        ("{name: x, string_match: {exact: a}, invert_match: true}", &["b"], true),
        // A missing header does not match, inverted or not...
        ("{name: x, string_match: {exact: a}}", &[], false),
        ("{name: x, string_match: {exact: a}, invert_match: true}", &[], false),
        // ...unless it is taken as empty.
        ("{name: x, string_match: {exact: a}, invert_match: true, treat_missing_header_as_empty: true}", &[], true),
        ("{name: x, string_match: {exact: ''}, treat_missing_header_as_empty: true}", &[], true),
        ("{name: x, present_match: true}", &["a"], true),
        ("{name: x, present_match: true}", &[], false),
        ("{name: x, present_match: false}", &[], true),
        ("{name: x, present_match: true, invert_match: true}", &[], true),
        ("{name: x, range_match: {start: 1, end: 3}}", &["2"], true),
        ("{name: x, range_match: {start: 1, end: 3}}", &["3"], false),
        ("{name: x}", &["anything"], true),
    ];
    for (matcher, values, expected) in cases {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("x", value.parse().unwrap());
        }
        let compiled = header_matcher(message(matcher)).unwrap();
        assert_eq!(compiled.matches(&head_of(&headers)), expected, "{matcher} {values:?}");
    }
}

#[test]
fn pseudo_headers_can_be_matched() {
    let headers = HeaderMap::new();
    for (matcher, expected) in [
        ("{name: ':method', exact_match: GET}", true),
        ("{name: ':path', exact_match: '/p?q=1'}", true),
        ("{name: ':authority', exact_match: a.b}", true),
        ("{name: host, exact_match: a.b}", true),
        ("{name: ':scheme', exact_match: https}", false),
    ] {
        assert_eq!(header_matcher(message(matcher)).unwrap().matches(&head_of(&headers)), expected, "{matcher}");
    }
}

#[test]
fn the_length_of_a_body_is_a_header_like_any() {
    let headers = HeaderMap::new();
    for (matcher, expected) in [
        ("{name: content-length, exact_match: '12'}", [false, true, false]),
        ("{name: Content-Length, range_match: {start: 1, end: 13}}", [false, true, false]),
        ("{name: content-length, range_match: {start: 0, end: 1}}", [false, false, true]),
        ("{name: content-length, present_match: true}", [false, true, true]),
        ("{name: content-length, present_match: true, invert_match: true}", [true, false, false]),
        ("{name: content-length, exact_match: '12', invert_match: true}", [false, false, true]),
    ] {
        let matcher = header_matcher(message(matcher)).unwrap();
        for (content_length, expected) in [None, Some(12), Some(0)].into_iter().zip(expected) {
            let head = RequestHead { content_length, ..head_of(&headers) };
            assert_eq!((matcher.matches(&head), matcher.matches_any_value(&head)), (expected, expected), "{matcher:?} {content_length:?}");
        }
    }
}

#[test]
fn a_second_value_hides_no_first_from_policies() {
    let matcher = header_matcher(message("{name: x-role, exact_match: admin}")).unwrap();
    let mut headers = HeaderMap::new();
    headers.append("x-role", "user".parse().unwrap());
    headers.append("x-role", "admin".parse().unwrap());
    assert!(matcher.matches_any_value(&head_of(&headers)));
    // A list as one value is another matter.
    headers.insert("x-role", "user,admin".parse().unwrap());
    assert!(!matcher.matches_any_value(&head_of(&headers)));
}

#[test]
fn routes_match_in_order_and_by_every_condition() {
    let table = route_table(
        "name: r
virtual_hosts:
- name: v
  domains: ['*']
  routes:
  - {name: exact, match: {path: /exact}, direct_response: {status: 200}}
  - {name: header, match: {prefix: /p, headers: [{name: x-v, exact_match: '2'}]}, direct_response: {status: 200}}
  - {name: query, match: {prefix: /p, query_parameters: [{name: a, string_match: {exact: b}}]}, direct_response: {status: 200}}
  - {name: grpc, match: {prefix: /p, grpc: {}}, direct_response: {status: 200}}
  - {name: regex, match: {safe_regex: {regex: '/r/[0-9]+'}}, direct_response: {status: 200}}
  - {name: case, match: {prefix: /CASE, case_sensitive: false}, direct_response: {status: 200}}
  - {name: separated, match: {path_separated_prefix: /sep}, direct_response: {status: 200}}
  - {name: half, match: {prefix: /half, runtime_fraction: {default_value: {numerator: 50}}}, direct_response: {status: 200}}
  - {name: rest, match: {prefix: /}, direct_response: {status: 200}}
",
    );
    type Case = (&'static str, &'static [(&'static str, &'static str)], u64, &'static str);
    let cases: [Case; 17] = [
        ("/exact", &[], 0, "exact"),
        ("/exact?x", &[], 0, "exact"),
        ("/exact/", &[], 0, "rest"),
        ("/p", &[("x-v", "2")], 0, "header"),
        ("/p?a=b", &[], 0, "query"),
        ("/p?a=c&a=b", &[], 0, "rest"),
        ("/p?a=b#c", &[], 0, "query"),
        ("/p", &[("content-type", "application/grpc+proto")], 0, "grpc"),
        ("/p", &[("content-type", "application/grpc-web")], 0, "rest"),
        ("/r/12", &[], 0, "regex"),
        ("/r/12/", &[], 0, "rest"),
        ("/case/x", &[], 0, "case"),
        ("/sep", &[], 0, "separated"),
        ("/sep/x", &[], 0, "separated"),
        ("/september", &[], 0, "rest"),
        ("/half", &[], 49, "half"),
        ("/half", &[], 50, "rest"),
    ];
    for (path, headers, roll, expected) in cases {
        let map: HeaderMap = headers.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect();
        let head = RequestHead { path_and_query: path, ..head_of(&map) };
        let (_, route) = table.find(&head, None, roll).unwrap();
        assert_eq!(&*route.name, expected, "{path} {headers:?}");
    }
}

#[test]
fn weights_split_exactly() {
    let table = route_table(
        "{name: r, virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {prefix: /}, route: {weighted_clusters: {clusters: \
         [{name: a, weight: 90}, {name: none, weight: 0}, {name: b, weight: 10}]}}}]}]}",
    );
    let headers = HeaderMap::new();
    let (_, route) = table.find(&head_of(&headers), None, 0).unwrap();
    let crate::route::Action::Forward(forward) = &route.action else { panic!() };
    let crate::route::ClusterChoice::Weighted(weighted) = &forward.cluster else { panic!() };
    let first = &weighted.choose(0).unwrap().cluster;
    let hits = (0..1000).filter(|roll| weighted.choose(*roll).unwrap().cluster == *first).count();
    assert_eq!((hits, weighted.entries.len()), (900, 2));
}

#[test]
fn claims_choose_a_route_once_a_filter_told_them() {
    let table = route_table(
        "{name: r, virtual_hosts: [{name: v, domains: ['*'], routes: [
          {name: admins, match: {prefix: /, dynamic_metadata: [{filter: jwt, path: [{key: payload}, {key: group}],
            value: {or_match: {value_matchers: [{string_match: {exact: admin}}, {list_match: {one_of: {string_match: {exact: admin}}}}]}}}]},
           non_forwarding_action: {}},
          {name: rest, match: {prefix: /}, non_forwarding_action: {}}]}]}",
    );
    let headers = HeaderMap::new();
    let chosen = |payload: Option<serde_json::Value>| {
        let mut metadata = Metadata::default();
        if let Some(payload) = payload {
            metadata.set(&"jwt".into(), "payload", payload);
        }
        let (_, route) = table.find(&head_of(&headers), Some(&metadata), 0).unwrap();
        route.name.to_string()
    };
    assert_eq!(chosen(None), "rest");
    assert_eq!(chosen(Some(serde_json::json!({"group": "guest"}))), "rest");
    assert_eq!(chosen(Some(serde_json::json!({"group": "admin"}))), "admins");
    assert_eq!(chosen(Some(serde_json::json!({"group": ["guest", "admin"]}))), "admins");
}
