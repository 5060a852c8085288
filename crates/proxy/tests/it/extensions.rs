//! Filters whose configuration is discovered: a request, or a connection, has what is there when it begins.
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use lateen_proto::any::pack;
use lateen_proto::envoy::config::core::v3::{DataSource, TypedExtensionConfig, data_source};
use lateen_proto::envoy::config::rbac::v3::Rbac as Rules;
use lateen_proto::envoy::extensions::filters::http::{cors::v3::Cors, rbac::v3::Rbac};
use lateen_proto::envoy::extensions::filters::listener::local_ratelimit::v3::LocalRateLimit;
use lateen_proto::envoy::extensions::filters::network::direct_response::v3::Config as DirectResponse;
use lateen_proto::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use lateen_proto::envoy::r#type::v3::TokenBucket;
use lateen_snapshot::compile::Update;

use crate::support::*;

const EXTENSION: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
const TYPES: &str = "type_urls: [type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors]";

fn config(upstream: &Upstream, more: &str) -> String {
    let mut config = Config::to(&[upstream.port()]);
    config.filters = format!("- {{name: extra, config_discovery: {{config_source: {{ads: {{}}}}, {more} {TYPES}}}}}");
    config.yaml()
}

fn found(config: lateen_proto::Any) -> Vec<Update> {
    named("extra", config)
}

fn named(name: &str, config: lateen_proto::Any) -> Vec<Update> {
    let body = pack(&TypedExtensionConfig { name: name.to_owned(), typed_config: Some(config) });
    vec![Update { name: name.to_owned(), version: String::new(), body }]
}

#[test]
fn the_next_request_of_an_open_connection_has_the_discovered_filter() {
    let upstream = Upstream::ok("passed");
    let default = "default_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}, apply_default_config_without_warming: true,";
    let yaml = config(&upstream, default);
    let mut compiler = compiler(&yaml);
    let proxy = start_with(&yaml, compiler.snapshot());
    let mut stream = proxy.connect();
    let mut get = || {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        Answer::read(&mut stream)
    };
    assert_eq!(get().body, "passed");
    // Rules without policies allow nobody.
    let deny = pack(&Rbac { rules: Some(Rules::default()), ..Rbac::default() });
    assert!(compiler.apply(EXTENSION, found(deny), &[], Instant::now()).is_empty());
    publish(&proxy.worker, compiler.snapshot());
    assert_eq!((get().status, get().status), (403, 403));
    assert_eq!(proxy.stat("http.t.rbac.denied"), 2);
    assert!(compiler.apply(EXTENSION, found(pack(&Cors::default())), &[], Instant::now()).is_empty());
    publish(&proxy.worker, compiler.snapshot());
    assert_eq!(get().body, "passed");
}

#[test]
fn a_filter_that_never_came_lets_nothing_pass() {
    let upstream = Upstream::ok("passed");
    let yaml = config(&upstream, "");
    let mut compiler = compiler(&yaml);
    assert_eq!(compiler.snapshot().listeners.len(), 0);
    compiler.settle(Instant::now() + Duration::from_secs(20));
    let proxy = start_with(&yaml, compiler.snapshot());
    assert_eq!(proxy.get("/").status, 500);
    assert!(upstream.seen().is_empty());
}

/// Connections through a discovered filter `extra` to a discovered last one.
fn discovered(listener_filters: &str) -> String {
    let filters = format!(
        r#"- name: extra
  config_discovery:
    config_source: {{ads: {{}}}}
    default_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.sni_cluster.v3.SniCluster}}
    apply_default_config_without_warming: true
    type_urls: [{NETWORK_RBAC}, type.googleapis.com/envoy.extensions.filters.network.sni_cluster.v3.SniCluster]
- name: last
  config_discovery:
    config_source: {{ads: {{}}}}
    type_urls: [type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config]"#
    );
    connections(&format!("listener_filters: [{listener_filters}]"), &filters, "")
}

const NETWORK_RBAC: &str = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC";
const LIMIT: &str = "type.googleapis.com/envoy.extensions.filters.listener.local_ratelimit.v3.LocalRateLimit";

fn says(text: &str) -> Vec<Update> {
    let specifier = Some(data_source::Specifier::InlineString(text.to_owned()));
    named("last", pack(&DirectResponse { response: Some(DataSource { specifier, ..DataSource::default() }) }))
}

fn heard(proxy: &Proxy) -> String {
    let mut text = String::new();
    // A connection that is refused may be reset.
    let _ = proxy.connect().read_to_string(&mut text);
    text
}

#[test]
fn connections_have_the_filters_that_are_discovered_when_they_begin() {
    let yaml = discovered("");
    let mut compiler = compiler(&yaml);
    let mut apply = |updates| {
        assert!(compiler.apply(EXTENSION, updates, &[], Instant::now()).is_empty());
        compiler.snapshot()
    };
    let proxy = start_with(&yaml, apply(says("one")));
    assert_eq!(heard(&proxy), "one");
    publish(&proxy.worker, apply(says("two")));
    assert_eq!(heard(&proxy), "two");
    // Rules without policies allow nobody.
    let deny = NetworkRbac { rules: Some(Rules::default()), stat_prefix: "p".to_owned(), ..NetworkRbac::default() };
    publish(&proxy.worker, apply(named("extra", pack(&deny))));
    assert_eq!(heard(&proxy), "");
    assert_eq!(proxy.stat("p.rbac.denied"), 1);
}

#[test]
fn a_connection_whose_filter_never_came_is_closed() {
    let yaml = discovered("");
    let mut compiler = compiler(&yaml);
    assert_eq!(compiler.snapshot().listeners.len(), 0);
    compiler.settle(Instant::now() + Duration::from_secs(20));
    let proxy = start_with(&yaml, compiler.snapshot());
    assert_eq!(heard(&proxy), "");
    assert_eq!(proxy.stat("listener.127.0.0.1_0.network_extension_config_missing"), 1);
}

#[test]
fn a_discovered_listener_filter_looks_at_the_next_connection() {
    let limit = format!("{{name: limit, config_discovery: {{config_source: {{ads: {{}}}}, type_urls: [{LIMIT}]}}}}");
    let yaml = discovered(&limit);
    let mut compiler = compiler(&yaml);
    let now = Instant::now();
    assert!(compiler.apply(EXTENSION, says("in"), &[], now).is_empty());
    assert_eq!(compiler.snapshot().listeners.len(), 0);
    compiler.settle(now + Duration::from_secs(20));
    let proxy = start_with(&yaml, compiler.snapshot());
    assert_eq!(heard(&proxy), "", "without its filters a connection is not served");
    let minute = Some(lateen_proto::Duration { seconds: 60, nanos: 0 });
    let bucket = TokenBucket { max_tokens: 2, tokens_per_fill: None, fill_interval: minute };
    let limit = LocalRateLimit { stat_prefix: "few".to_owned(), token_bucket: Some(bucket), ..LocalRateLimit::default() };
    assert!(compiler.apply(EXTENSION, named("limit", pack(&limit)), &[], now).is_empty());
    publish(&proxy.worker, compiler.snapshot());
    assert_eq!([heard(&proxy), heard(&proxy), heard(&proxy)], ["in", "in", ""]);
}
