//! Sessions that stay at one host.
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::support::*;

const STATE: &str = "type.googleapis.com/envoy.extensions.http.stateful_session";
const FILTER: &str = "type.googleapis.com/envoy.extensions.filters.http.stateful_session.v3.StatefulSession";

fn filter(state: &str, more: &str) -> String {
    format!(
        "- name: envoy.filters.http.stateful_session\n  typed_config:\n    \"@type\": {FILTER}\n    stat_prefix: s\n    \
         session_state: {{name: s, typed_config: {{\"@type\": {STATE}.{state}}}}}\n{more}"
    )
}

const COOKIE: &str = "cookie.v3.CookieBasedSessionState, cookie: {name: sticky, path: /, ttl: 60s}";

struct Two {
    proxy: Proxy,
    upstreams: [Upstream; 2],
}

fn two(filters: String, routes: Option<&str>) -> Two {
    let upstreams = [Upstream::ok("0"), Upstream::ok("1")];
    let mut config = Config::to(&[upstreams[0].port(), upstreams[1].port()]);
    config.filters = filters;
    if let Some(routes) = routes {
        config.routes = routes.to_owned();
    }
    Two { proxy: config.start(), upstreams }
}

impl Two {
    fn get(&self, header: &str) -> Answer {
        self.proxy.call(&format!("GET / HTTP/1.1\r\nhost: a\r\n{header}\r\n\r\n"))
    }

    fn address(&self, of: usize) -> String {
        self.upstreams[of].address.to_string()
    }
}

#[test]
fn a_cookie_leads_back_to_the_host_that_it_names() {
    let two = two(filter(COOKIE, ""), None);
    let first = two.get("x: y");
    let set = first.header("set-cookie").unwrap();
    assert!(set.starts_with("sticky=\"") && set.ends_with("\"; Max-Age=60; Path=/; HttpOnly"), "{set}");
    let cookie = set.split(';').next().unwrap().replace('"', "");
    for _ in 0..10 {
        let again = two.get(&format!("cookie: a=b; {cookie}"));
        assert_eq!((again.body.as_str(), again.header("set-cookie")), (first.body.as_str(), None));
    }
    assert_eq!(two.proxy.stat("http.t.stateful_session.s.routed"), 10);
    assert_eq!(two.proxy.stat("http.t.stateful_session.s.failed_open"), 1);
}

#[test]
fn a_host_that_is_no_member_is_replaced_unless_the_session_is_strict() {
    let gone = format!("session: {}", STANDARD.encode("192.0.2.1:80"));
    let lenient = two(filter("header.v3.HeaderBasedSessionState, name: session", ""), None);
    let answer = lenient.get(&gone);
    assert_eq!(answer.status, 200);
    let now = String::from_utf8(STANDARD.decode(answer.header("session").unwrap()).unwrap()).unwrap();
    assert_eq!(now, lenient.address(answer.body.parse().unwrap()));
    let header = format!("session: {}", STANDARD.encode(lenient.address(1)));
    assert!((0..5).all(|_| lenient.get(&header).body == "1"));
    let strict = "    strict: true\n    status_on_strict_destination_not_found: 410\n";
    let strict = two(filter("header.v3.HeaderBasedSessionState, name: session", strict), None);
    let answer = strict.get(&gone);
    assert_eq!((answer.status, answer.body.as_str()), (410, "no healthy upstream"));
    assert_eq!(strict.proxy.stat("http.t.stateful_session.s.failed_closed"), 1);
    assert_eq!(strict.get("session: nonsense").status, 200);
}

#[test]
fn an_envelope_holds_the_upstreams_own_value() {
    let own = |_, _: &str, stream: &mut std::net::TcpStream| {
        std::io::Write::write_all(stream, b"HTTP/1.1 200 X\r\nsession: mine\r\ncontent-length: 0\r\n\r\n").is_ok()
    };
    let upstream = Upstream::start(own);
    let mut config = Config::to(&[upstream.port()]);
    config.filters = filter("envelope.v3.EnvelopeSessionState, header: {name: session}", "");
    let proxy = config.start();
    let answer = proxy.get("/");
    let given = answer.header("session").unwrap().to_owned();
    assert_eq!(given, format!("{};UV:{}", STANDARD.encode(upstream.address.to_string()), STANDARD.encode("mine")));
    proxy.call(&format!("GET / HTTP/1.1\r\nhost: a\r\nsession: {given}\r\n\r\n"));
    assert!(upstream.seen()[1].contains("session: mine\r\n"), "{}", upstream.seen()[1]);
}

#[test]
fn a_route_may_have_no_sessions_or_its_own() {
    let per_route = "type.googleapis.com/envoy.extensions.filters.http.stateful_session.v3.StatefulSessionPerRoute";
    let routes = format!(
        "- match: {{prefix: /off}}\n  route: {{cluster: c}}\n  typed_per_filter_config: {{envoy.filters.http.stateful_session: {{\"@type\": {per_route}, disabled: true}}}}\n\
         - match: {{prefix: /own}}\n  route: {{cluster: c}}\n  typed_per_filter_config: {{envoy.filters.http.stateful_session: {{\"@type\": {per_route}, stateful_session: {{\
         session_state: {{name: s, typed_config: {{\"@type\": {STATE}.header.v3.HeaderBasedSessionState, name: session}}}}}}}}}}\n\
         - match: {{prefix: /}}\n  route: {{cluster: c}}"
    );
    let two = two(filter(COOKIE, ""), Some(&routes));
    let off = two.proxy.get("/off");
    assert_eq!((off.status, off.header("set-cookie")), (200, None));
    let own = two.proxy.get("/own");
    assert!(own.header("set-cookie").is_none() && own.header("session").is_some(), "{}", own.head);
    assert!(two.proxy.get("/").header("set-cookie").is_some());
}

#[test]
fn a_draining_host_keeps_its_sessions_where_that_is_allowed() {
    let upstreams = [Upstream::ok("0"), Upstream::ok("1")];
    let endpoint = |port: u16, status: &str| {
        format!("{{health_status: {status}, endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}")
    };
    let cluster = |statuses: &str| {
        format!(
            "- name: c\n  type: STATIC\n  common_lb_config: {{override_host_status: {{statuses: [{statuses}]}}}}\n  \
             load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{}, {}]}}]}}",
            endpoint(upstreams[0].port(), "HEALTHY"),
            endpoint(upstreams[1].port(), "DRAINING")
        )
    };
    for (statuses, body) in [("HEALTHY, UNKNOWN", "0"), ("HEALTHY, UNKNOWN, DRAINING", "1")] {
        let mut config = Config::to(&[]);
        config.clusters = vec![cluster(statuses)];
        config.filters = filter("header.v3.HeaderBasedSessionState, name: session", "");
        let proxy = config.start();
        let session = STANDARD.encode(upstreams[1].address.to_string());
        let answer = proxy.call(&format!("GET / HTTP/1.1\r\nhost: a\r\nsession: {session}\r\n\r\n"));
        assert_eq!(answer.body, body, "{statuses}");
        assert_eq!(proxy.get("/").body, "0");
    }
}
