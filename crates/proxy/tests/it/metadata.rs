//! Dynamic metadata: made of headers, read by RBAC and access logs.
use crate::support::*;

#[test]
fn headers_become_metadata_for_rbac_and_logs() {
    let upstream = Upstream::start(|_, _, stream| {
        std::io::Write::write_all(stream, b"HTTP/1.1 200 OK\r\nx-cost: 12\r\ncontent-length: 0\r\n\r\n").is_ok()
    });
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut config = Config::to(&[upstream.port()]);
    config.hcm = format!(
        "access_log:\n- name: f\n  typed_config:\n    \"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog\n    \
         path: {}\n    log_format: {{text_format_source: {{inline_string: \"%RESPONSE_CODE% %DYNAMIC_METADATA(ns)% %DYNAMIC_METADATA(ns:k)% \
         %DYNAMIC_METADATA(ns:k):2% %DYNAMIC_METADATA(ns:none)%\\n\"}}}}",
        log.display()
    );
    config.filters = r#"- name: envoy.filters.http.header_to_metadata
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.header_to_metadata.v3.Config
    request_rules:
    - {header: x-v, on_header_present: {metadata_namespace: ns, key: k}, remove: true}
    response_rules:
    - {header: x-cost, on_header_present: {metadata_namespace: ns, key: cost, type: NUMBER}}
- name: envoy.filters.http.rbac
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
    rules:
      policies:
        known:
          permissions: [{any: true}]
          principals: [{metadata: {filter: ns, path: [{key: k}], value: {string_match: {prefix: good}}}}]"#
        .to_owned();
    let proxy = config.start();
    let ask = |value: &str| proxy.call(&format!("GET / HTTP/1.1\r\nhost: a\r\nx-v: {value}\r\n\r\n")).status;
    assert_eq!((ask("good1"), ask("bad"), proxy.get("/").status), (200, 403, 403));
    assert!(!upstream.seen()[0].contains("x-v"));
    let lines = || std::fs::read_to_string(&log).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>();
    eventually(|| lines().len() == 3);
    assert_eq!(lines(), [r#"200 {"cost":12,"k":"good1"} good1 go -"#, r#"403 {"k":"bad"} bad ba -"#, "403 - - - -"]);
}
