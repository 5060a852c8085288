//! Logs of TCP connections: which of the filters that go by requests let one through.
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use crate::support::*;

/// What Envoy logs of a connection that lasts for a while and ends well.
const FILTERS: [(&str, bool); 26] = [
    ("header_filter: {header: {name: x-a, present_match: false}}", true),
    ("header_filter: {header: {name: x-a, present_match: true, invert_match: true}}", true),
    ("header_filter: {header: {name: x-a, string_match: {exact: \"\"}, treat_missing_header_as_empty: true}}", true),
    ("header_filter: {header: {name: \":method\", present_match: false}}", true),
    ("header_filter: {header: {name: \":path\", present_match: false}}", true),
    ("header_filter: {header: {name: content-length, present_match: false}}", true),
    ("header_filter: {header: {name: x-a, present_match: true}}", false),
    ("header_filter: {header: {name: x-a, string_match: {exact: \"\"}}}", false),
    ("header_filter: {header: {name: x-a, string_match: {exact: b}, invert_match: true}}", false),
    ("not_health_check_filter: {}", true),
    ("traceable_filter: {}", false),
    ("runtime_filter: {runtime_key: a, percent_sampled: {numerator: 100}}", true),
    ("runtime_filter: {runtime_key: a, percent_sampled: {numerator: 0}}", false),
    ("grpc_status_filter: {statuses: [UNKNOWN]}", true),
    ("grpc_status_filter: {statuses: [OK]}", false),
    ("grpc_status_filter: {statuses: [OK], exclude: true}", true),
    ("status_code_filter: {comparison: {op: EQ, value: {default_value: 0, runtime_key: k}}}", true),
    ("status_code_filter: {comparison: {op: GE, value: {default_value: 1, runtime_key: k}}}", false),
    ("duration_filter: {comparison: {op: GE, value: {default_value: 100, runtime_key: k}}}", true),
    ("duration_filter: {comparison: {op: LE, value: {default_value: 50, runtime_key: k}}}", false),
    ("response_flag_filter: {}", false),
    ("response_flag_filter: {flags: [UF]}", false),
    ("metadata_filter: {matcher: {filter: f, path: [{key: k}], value: {present_match: true}}}", true),
    ("metadata_filter: {matcher: {filter: f, path: [{key: k}], value: {present_match: true}}, match_if_key_not_found: false}", false),
    ("log_type_filter: {types: [TcpConnectionEnd]}", true),
    ("log_type_filter: {types: [NotSet]}", false),
];

#[test]
fn filters_by_what_requests_have_see_a_connection_as_a_request_without_anything() {
    let folder = tempfile::tempdir().unwrap();
    let log = |(at, (filter, _)): (usize, &(&str, bool))| {
        format!(
            "{{name: f, filter: {{{filter}}}, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, \
             path: {}, log_format: {{text_format_source: {{inline_string: \"{at} \"}}}}}}}}",
            folder.path().join("log").display()
        )
    };
    let logs: Vec<String> = FILTERS.iter().enumerate().map(log).collect();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let fields = format!("cluster: c, access_log: [{}]", logs.join(", "));
    let proxy = start(&connections("", &tcp_proxy(&fields), &cluster("c", &[port], "")));
    let mut caller = proxy.connect();
    let (mut upstream, _) = server.accept().unwrap();
    std::thread::sleep(Duration::from_millis(150));
    upstream.write_all(b"all").unwrap();
    drop(upstream);
    let mut all = Vec::new();
    caller.read_to_end(&mut all).unwrap();
    drop(caller);
    let logged = || std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
    let expected: Vec<String> = (0..FILTERS.len()).filter(|at| FILTERS[*at].1).map(|at| at.to_string()).collect();
    eventually(|| logged().contains("24"));
    assert_eq!(logged().split_whitespace().collect::<Vec<_>>(), expected);
}
