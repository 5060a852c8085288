use http::HeaderMap;

use crate::route::{Action, RequestHead};
use crate::test_support::route_table;

fn action(route: &str, authority: &str, scheme: &str, path: &str) -> String {
    let table = route_table(&format!("{{name: r, virtual_hosts: [{{name: v, domains: ['*'], routes: [{route}]}}]}}"));
    let headers = HeaderMap::new();
    let head = RequestHead { method: "GET", authority, scheme, path_and_query: path, headers: &headers, content_length: None };
    let (_, route) = table.find(&head, None, 0).unwrap();
    match &route.action {
        Action::Forward(forward) => forward.path_rewrite.as_ref().unwrap().apply(&route.matches, path).unwrap_or_else(|| path.to_owned()),
        Action::Redirect(redirect) => redirect.location(&route.matches, &head),
        other => panic!("{other:?}"),
    }
}

#[test]
fn paths_are_rewritten_as_documented() {
    for (matched, rewrite, path, expected) in [
        ("prefix: /a/", "prefix_rewrite: /b/", "/a/x?q=1", "/b/x?q=1"),
        ("prefix: /a", "prefix_rewrite: /", "/a/x", "//x"),
        ("prefix: /A, case_sensitive: false", "prefix_rewrite: /b", "/a/x", "/b/x"),
        ("path: /a", "prefix_rewrite: /b", "/a?q", "/b?q"),
        ("path_separated_prefix: /a", "prefix_rewrite: /b", "/a/x", "/b/x"),
        ("path_separated_prefix: /a", "prefix_rewrite: /", "/a/x", "/x"),
        ("safe_regex: {regex: '/a.*'}", "prefix_rewrite: /b", "/abc?q", "/b?q"),
        (
            "prefix: /",
            r"regex_rewrite: {pattern: {regex: '^/service/([^/]+)(/.*)$'}, substitution: '\2/instance/\1'}",
            "/service/foo/v1/api?q",
            "/v1/api/instance/foo?q",
        ),
        ("prefix: /", "regex_rewrite: {pattern: {regex: one}, substitution: two$1}", "/xx/one/yy/one/zz", "/xx/two$1/yy/two$1/zz"),
        ("prefix: /", "path_rewrite: /whole", "/a?q", "/whole?q"),
        ("prefix: /", "regex_rewrite: {pattern: {regex: '.*'}, substitution: ''}", "/a?q", "/a?q"),
    ] {
        let route = format!("{{match: {{{matched}}}, route: {{cluster: c, {rewrite}}}}}");
        assert_eq!(action(&route, "h", "http", path), expected, "{matched} {rewrite}");
    }
}

#[test]
fn redirects_lead_where_documented() {
    for (redirect, scheme, authority, path, expected) in [
        ("https_redirect: true", "http", "a.b", "/p?q", "https://a.b/p?q"),
        ("https_redirect: true", "http", "a.b:80", "/p", "https://a.b/p"),
        ("https_redirect: true", "http", "a.b:8080", "/p", "https://a.b:8080/p"),
        ("scheme_redirect: http", "https", "a.b:443", "/p", "http://a.b/p"),
        ("https_redirect: true, port_redirect: 8443", "http", "a.b:80", "/p", "https://a.b:8443/p"),
        ("host_redirect: c.d", "http", "a.b:80", "/p", "http://c.d/p"),
        ("path_redirect: /new", "http", "a.b", "/p?q", "http://a.b/new?q"),
        ("path_redirect: '/new?x=1'", "http", "a.b", "/p?q", "http://a.b/new?x=1"),
        ("path_redirect: /new, strip_query: true", "http", "a.b", "/p?q", "http://a.b/new"),
        ("prefix_rewrite: /n", "http", "a.b", "/p/x?q", "http://a.b/n/x?q"),
        ("prefix_rewrite: ''", "http", "a.b", "/p/x?q", "http://a.b/p/x?q"),
        ("regex_rewrite: {pattern: {regex: '.*'}, substitution: ''}", "http", "a.b", "/p/x?q", "http://a.b/p/x?q"),
        ("regex_rewrite: {pattern: {regex: '.*'}, substitution: ''}, strip_query: true", "http", "a.b", "/p/x?q", "http://a.b/p/x"),
        ("scheme_redirect: '', host_redirect: c.d", "http", "a.b", "/p", "http://c.d/p"),
        ("strip_query: true", "http", "[::1]:80", "/p?q", "http://[::1]:80/p"),
    ] {
        let route = format!("{{match: {{prefix: /p}}, redirect: {{{redirect}}}}}");
        assert_eq!(action(&route, authority, scheme, path), expected, "{redirect}");
    }
}
