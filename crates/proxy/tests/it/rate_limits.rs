//! The local rate limit filter.
use crate::support::*;

const LIMIT: &str = r#"- name: envoy.filters.http.local_ratelimit
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
    stat_prefix: lrl
"#;
const ON: &str = "    filter_enabled: {default_value: {numerator: 100}}\n    filter_enforced: {default_value: {numerator: 100}}\n";

fn config(upstream: &Upstream, more: &str) -> Config {
    let mut config = Config::to(&[upstream.port()]);
    config.filters = format!("{LIMIT}{more}");
    config
}

#[test]
fn what_is_over_the_limit_is_refused_in_envoys_words() {
    let upstream = Upstream::ok("x");
    let more = format!(
        "{ON}    token_bucket: {{max_tokens: 2, tokens_per_fill: 1, fill_interval: 1000s}}\n    \
         enable_x_ratelimit_headers: DRAFT_VERSION_03\n    enable_retry_after_header: true\n    \
         response_headers_to_add: [{{header: {{key: x-local, value: \"%PROTOCOL%\"}}}}]"
    );
    let proxy = config(&upstream, &more).start();
    let first = proxy.get("/");
    let quota = |a: &Answer| ["limit", "remaining", "reset"].map(|n| a.header(&format!("x-ratelimit-{n}")).unwrap_or("?").to_owned());
    assert_eq!((first.status, quota(&first)), (200, ["2", "1", "0"].map(str::to_owned)));
    assert_eq!(proxy.get("/").status, 200);
    let refused = proxy.get("/");
    assert_eq!((refused.status, refused.body.as_str()), (429, "local_rate_limited"));
    assert_eq!((refused.header("x-local"), refused.header("retry-after")), (Some("HTTP/1.1"), Some("1000")));
    assert_eq!(quota(&refused), ["2", "0", "1000"].map(str::to_owned));
    let grpc = proxy.call("POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n");
    assert_eq!((grpc.status, grpc.header("grpc-status")), (200, Some("14")));
    let stats = ["enabled", "ok", "rate_limited", "enforced"].map(|n| proxy.stat(&format!("lrl.http_local_rate_limit.{n}")));
    assert_eq!(stats, [4, 2, 2, 2]);
    assert_eq!(upstream.seen().len(), 2);
}

#[test]
fn a_limit_that_is_not_enforced_marks_the_request() {
    let upstream = Upstream::ok("x");
    let more = "    filter_enabled: {default_value: {numerator: 100}}\n    \
                token_bucket: {max_tokens: 1, fill_interval: 1000s}\n    \
                request_headers_to_add_when_not_enforced: [{header: {key: x-over, value: \"yes\"}}]";
    let proxy = config(&upstream, more).start();
    assert_eq!((proxy.get("/").status, proxy.get("/").status), (200, 200));
    let marked: Vec<bool> = upstream.seen().iter().map(|r| r.contains("x-over: yes")).collect();
    assert_eq!(marked, [false, true]);
    assert_eq!(proxy.stat("lrl.http_local_rate_limit.enforced"), 0);
}

#[test]
fn descriptors_of_routes_have_their_own_buckets_and_routes_their_own_limits() {
    let upstream = Upstream::ok("x");
    let own = "{\"@type\": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit, stat_prefix: own, \
               filter_enabled: {default_value: {numerator: 100}}, filter_enforced: {default_value: {numerator: 100}}, status: {code: 503}, \
               token_bucket: {max_tokens: 1, fill_interval: 1000s}}";
    let off = "{\"@type\": type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}";
    let more = format!(
        "{ON}    token_bucket: {{max_tokens: 3, fill_interval: 1000s}}\n    descriptors:\n    \
         - {{entries: [{{key: who, value: ann}}, {{key: generic_key, value: slow}}], token_bucket: {{max_tokens: 1, fill_interval: 1000s}}}}"
    );
    let mut config = config(&upstream, &more);
    config.routes = format!(
        "- match: {{prefix: /own}}\n  route: {{cluster: c}}\n  typed_per_filter_config: {{envoy.filters.http.local_ratelimit: {own}}}\n\
         - match: {{prefix: /off}}\n  route: {{cluster: c}}\n  typed_per_filter_config: {{envoy.filters.http.local_ratelimit: {off}}}\n\
         - match: {{prefix: /}}\n  route: {{cluster: c, rate_limits: [{{actions: [{{request_headers: {{header_name: x-who, descriptor_key: who}}}}, \
         {{generic_key: {{descriptor_value: slow}}}}]}}]}}"
    );
    let proxy = config.start();
    let ann = || proxy.call("GET / HTTP/1.1\r\nhost: a\r\nx-who: ann\r\n\r\n").status;
    assert_eq!((ann(), ann()), (200, 429), "a described request has one token");
    assert_eq!((proxy.get("/").status, proxy.get("/").status, proxy.get("/").status), (200, 200, 429), "the default counted ann once");
    assert_eq!((proxy.get("/own").status, proxy.get("/own").status), (200, 503));
    assert_eq!(proxy.stat("own.http_local_rate_limit.rate_limited"), 1);
    assert_eq!(proxy.get("/off").status, 200, "the route switches the filter off");
}

#[test]
fn each_connection_may_have_its_own_bucket() {
    use std::io::Write;
    let upstream = Upstream::ok("x");
    let more =
        format!("{ON}    token_bucket: {{max_tokens: 1, fill_interval: 1000s}}\n    local_rate_limit_per_downstream_connection: true");
    let proxy = config(&upstream, &more).start();
    for _ in 0..2 {
        let mut stream = proxy.connect();
        let mut ask = || {
            stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
            Answer::read(&mut stream).status
        };
        assert_eq!((ask(), ask()), (200, 429));
    }
}

/// The figures are those of Envoy 1.40.
#[test]
fn a_request_counts_for_as_much_as_it_says() {
    let upstream = Upstream::ok("x");
    let more = format!(
        "{ON}    token_bucket: {{max_tokens: 20, fill_interval: 1000s}}\n    enable_x_ratelimit_headers: DRAFT_VERSION_03\n    descriptors:\n    \
         - {{entries: [{{key: generic_key, value: paid}}], token_bucket: {{max_tokens: 7, fill_interval: 1000s}}}}\n    \
         rate_limits: [{{actions: [{{generic_key: {{descriptor_value: paid}}}}], hits_addend: {{format: \"%REQ(x-cost)%\"}}}}]"
    );
    let proxy = config(&upstream, &more).start();
    let ask = |cost: &str| {
        let answer = proxy.call(&format!("GET / HTTP/1.1\r\nhost: a\r\nx-cost: {cost}\r\n\r\n"));
        format!("{} {}", answer.status, answer.header("x-ratelimit-remaining").unwrap_or("?"))
    };
    let costs = ["2", "x", "-1", "2.5", "1000000001", "4", "0"];
    assert_eq!(costs.map(ask), ["200 5", "200 18", "200 17", "200 3", "200 15", "429 3", "429 3"]);
}

#[test]
fn each_value_that_comes_may_have_a_bucket_and_a_shadow_only_counts() {
    let upstream = Upstream::ok("x");
    let more = format!(
        "{ON}    token_bucket: {{max_tokens: 100, fill_interval: 1000s}}\n    descriptors:\n    \
         - {{entries: [{{key: who}}], token_bucket: {{max_tokens: 1, fill_interval: 1000s}}}}\n    \
         - {{entries: [{{key: who, value: eve}}], shadow_mode: true, token_bucket: {{max_tokens: 1, fill_interval: 1000s}}}}\n    \
         rate_limits: [{{actions: [{{request_headers: {{header_name: x-who, descriptor_key: who}}}}]}}]"
    );
    let proxy = config(&upstream, &more).start();
    let ask = |who: &str| proxy.call(&format!("GET / HTTP/1.1\r\nhost: a\r\nx-who: {who}\r\n\r\n")).status;
    for who in ["ann", "bob"] {
        assert_eq!((ask(who), ask(who)), (200, 429));
    }
    assert_eq!((ask("eve"), ask("eve")), (200, 200));
    let stats = ["ok", "rate_limited", "enforced", "shadow_mode"].map(|n| proxy.stat(&format!("lrl.http_local_rate_limit.{n}")));
    assert_eq!(stats, [3, 3, 2, 1]);
}
