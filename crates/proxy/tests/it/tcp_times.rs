//! Connections of the TCP proxy that have no host yet: their time runs, and their log says how they ended.
use std::io::Read;
use std::time::{Duration, Instant};

use crate::support::*;

/// A TCP proxy to this port that logs its response flags.
fn proxy(folder: &tempfile::TempDir, port: u16, fields: &str) -> Proxy {
    let fields = format!(
        "cluster: c, {fields}, access_log: [{{name: f, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: {}, \
         log_format: {{text_format_source: {{inline_string: \"%RESPONSE_FLAGS%;\"}}}}}}}}]",
        folder.path().join("log").display()
    );
    start(&connections("", &tcp_proxy(&fields), &cluster("c", &[port], "")))
}

/// What is logged of a connection that says nothing, once it is closed.
fn logged(fields: &str, port: u16) -> (String, Proxy) {
    let folder = tempfile::tempdir().unwrap();
    let proxy = proxy(&folder, port, fields);
    let since = Instant::now();
    assert_eq!(proxy.connect().read(&mut [0; 1]).unwrap_or(0), 0);
    assert!(since.elapsed() < Duration::from_secs(3), "{fields}: {:?}", since.elapsed());
    let read = || std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
    eventually(|| !read().is_empty());
    (read(), proxy)
}

#[test]
fn a_connection_is_old_after_its_time_whatever_it_waits_for() {
    let mute = tcp_server(|mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let for_the_caller = "upstream_connect_mode: ON_DOWNSTREAM_DATA, max_early_data_bytes: 1024";
    for waits in [for_the_caller, "tunneling_config: {hostname: \"db:1\"}", "idle_timeout: 60s"] {
        let (log, proxy) = logged(&format!("{waits}, max_downstream_connection_duration: 0.3s"), mute);
        assert_eq!((log.as_str(), proxy.stat("tcp.t.max_downstream_connection_duration")), ("DT;", 1), "{waits}");
    }
    let (log, proxy) = logged(&format!("{for_the_caller}, idle_timeout: 0.3s"), mute);
    assert_eq!((log.as_str(), proxy.stat("tcp.t.idle_timeout")), ("-;", 1));
}

#[test]
fn attempts_that_are_used_up_are_logged_behind_the_failure_of_the_last() {
    for attempts in [1, 2] {
        let (log, proxy) = logged(&format!("max_connect_attempts: {attempts}"), dead_port());
        assert_eq!((log.as_str(), proxy.stat("cluster.c.upstream_cx_connect_attempts_exceeded")), ("UF,URX;", 1));
        let tunnel = format!("max_connect_attempts: {attempts}, tunneling_config: {{hostname: \"db:1\"}}");
        assert_eq!(logged(&tunnel, dead_port()).0, "UF,URX;");
    }
}
