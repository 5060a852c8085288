//! Filters whose configuration is discovered: a request has what is there when it begins.
use std::io::Write;
use std::time::Instant;

use lateen_proto::any::pack;
use lateen_proto::envoy::config::core::v3::TypedExtensionConfig;
use lateen_proto::envoy::config::rbac::v3::Rbac as Rules;
use lateen_proto::envoy::extensions::filters::http::{cors::v3::Cors, rbac::v3::Rbac};
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
    let body = pack(&TypedExtensionConfig { name: "extra".to_owned(), typed_config: Some(config) });
    vec![Update { name: "extra".to_owned(), version: String::new(), body }]
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
    compiler.settle(Instant::now() + std::time::Duration::from_secs(20));
    let proxy = start_with(&yaml, compiler.snapshot());
    assert_eq!(proxy.get("/").status, 500);
    assert!(upstream.seen().is_empty());
}
