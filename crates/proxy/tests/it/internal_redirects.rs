//! Redirects that are followed here.
use crate::support::*;

fn redirecting(location: &'static str) -> Upstream {
    Upstream::start(move |n, _, stream| match n {
        1 => write(stream, &format!("HTTP/1.1 302 X\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n")),
        _ => write_ok(stream, "there"),
    })
}

fn write(stream: &mut std::net::TcpStream, text: &str) -> bool {
    std::io::Write::write_all(stream, text.as_bytes()).is_ok()
}

const ROUTES: &str = "- {match: {prefix: /go}, route: {cluster: c, internal_redirect_policy: {}}}\n\
                      - {match: {prefix: /there}, route: {cluster: c}}";

#[test]
fn a_redirect_is_followed_with_the_body_and_counted_as_two_requests() {
    let upstream = redirecting("http://other/there?x");
    let proxy = Config::to(&[upstream.port()]).routes(ROUTES).start();
    let answer = proxy.call("POST /go HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello");
    assert_eq!((answer.status, answer.body.as_str()), (200, "there"));
    let seen = upstream.seen();
    assert_eq!(seen.len(), 2);
    assert!(seen[1].starts_with("POST /there?x HTTP/1.1\r\nhost: other\r\n") && seen[1].ends_with("hello"), "{}", seen[1]);
    assert!(seen[1].contains("x-envoy-original-url: http://a/go\r\n"), "{}", seen[1]);
    assert_eq!(proxy.stat("cluster.c.upstream_internal_redirect_succeeded_total"), 1);
    assert_eq!(proxy.stat("cluster.c.upstream_internal_redirect_failed_total"), 0);
    eventually(|| proxy.stat("http.t.downstream_rq_total") == 2 && proxy.stat("http.t.downstream_rq_active") == 0);
    assert_eq!(proxy.stat("http.t.downstream_rq_3xx"), 1);
    assert_eq!(upstream.connections.load(std::sync::atomic::Ordering::SeqCst), 1, "the connection is still good");
}

#[test]
fn a_redirect_that_leads_nowhere_is_the_callers() {
    for (location, stat) in [
        ("/there", "passthrough_internal_redirect_bad_location"),
        ("https://other/there", "passthrough_internal_redirect_unsafe_scheme"),
        ("http://other/nowhere", "passthrough_internal_redirect_no_route"),
    ] {
        let upstream = redirecting(location);
        let proxy = Config::to(&[upstream.port()]).routes(ROUTES).start();
        let answer = proxy.get("/go");
        assert_eq!((answer.status, answer.header("location")), (302, Some(location)));
        assert_eq!(proxy.stat(&format!("http.t.{stat}")), 1, "{stat}");
        assert_eq!(proxy.stat("cluster.c.upstream_internal_redirect_failed_total"), 1);
    }
}

#[test]
fn a_circle_ends() {
    let upstream = Upstream::start(|_, _, stream| write(stream, "HTTP/1.1 302 X\r\nlocation: http://a/go\r\ncontent-length: 0\r\n\r\n"));
    let routes = "- {match: {prefix: /}, route: {cluster: c, internal_redirect_policy: {max_internal_redirects: 3}}}";
    let proxy = Config::to(&[upstream.port()]).routes(routes).start();
    assert_eq!(proxy.get("/go").status, 302);
    assert_eq!(upstream.seen().len(), 4);
    assert_eq!(proxy.stat("http.t.passthrough_internal_redirect_too_many_redirects"), 1);
}

#[test]
fn a_body_that_was_not_kept_is_not_redirected() {
    let upstream = redirecting("http://other/there");
    let proxy = Config::to(&[upstream.port()]).routes(ROUTES).start();
    let body = "b".repeat(200_000);
    let answer = proxy.call(&format!("POST /go HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
    assert_eq!(answer.status, 302);
    assert_eq!(proxy.stat("cluster.c.upstream_internal_redirect_failed_total"), 1);
}
