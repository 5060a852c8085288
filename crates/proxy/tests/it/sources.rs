//! Access by where a connection comes from.
use std::io::Write;

use crate::support::*;

const PROXY_FILTER: &str = "type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol";

/// Calls as the PROXY protocol's 10.1.2.3, on behalf of another.
fn send(proxy: &Proxy) -> Option<Answer> {
    let mut stream = proxy.connect();
    stream.write_all(b"PROXY TCP4 10.1.2.3 10.5.6.7 4 8\r\nGET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 10.9.9.9\r\n\r\n").unwrap();
    Answer::try_read(&mut stream)
}

#[test]
fn access_by_source_goes_by_the_proxy_header_and_not_by_what_a_request_says() {
    let upstream = Upstream::ok("x");
    let filter = |kind: &str, more: &str, principal: &str| {
        format!(
            "- name: rbac\n  typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.{kind}.rbac.v3.RBAC, {more}rules: \
             {{action: ALLOW, policies: {{p: {{permissions: [{{any: true}}], principals: [{{{principal}}}]}}}}}}}}"
        )
    };
    let listener = format!("listener_filters: [{{name: p, typed_config: {{'@type': {PROXY_FILTER}}}}}]");
    let with_listener = |config: &Config| config.yaml().replace("    filter_chains:", &format!("    {listener}\n    filter_chains:"));
    for (principal, status) in [
        ("source_ip: {address_prefix: 10.1.2.3, prefix_len: 32}", 200),
        ("source_ip: {address_prefix: 127.0.0.1, prefix_len: 32}", 403),
        ("source_ip: {address_prefix: 10.9.9.9, prefix_len: 32}", 403),
        ("direct_remote_ip: {address_prefix: 127.0.0.1, prefix_len: 32}", 200),
        ("remote_ip: {address_prefix: 10.9.9.9, prefix_len: 32}", 200),
    ] {
        let mut config = Config::to(&[upstream.port()]);
        config.filters = filter("http", "", principal);
        let proxy = start(&with_listener(&config));
        assert_eq!(send(&proxy).unwrap().status, status, "{principal}");
        let network = filter("network", "stat_prefix: r, ", principal).replace('\n', "\n      ");
        let yaml =
            with_listener(&Config::to(&[upstream.port()])).replacen("    - filters:", &format!("    - filters:\n      {network}"), 1);
        let proxy = start(&yaml);
        // Of a connection there is no other word.
        let lets_through = !principal.contains("127.0.0.1") && !principal.contains("10.9.9.9") || principal.starts_with("direct");
        assert_eq!(send(&proxy).is_some(), lets_through, "{principal}");
    }
}
