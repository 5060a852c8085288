//! Events of active health checks, and hosts that say in a response that they fail them.
use std::io::Write;
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;

use lateen_balance::host::{EXCLUDED_VIA_IMMEDIATE_HC_FAIL, FAILED_ACTIVE_HC};

use crate::health::{Checked, at, http_peer};
use crate::support::*;

/// The events in a file, without their times.
fn events(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let event = |line: &str| {
        let mut event: serde_json::Value = serde_json::from_str(line).unwrap();
        let time = event.as_object_mut().unwrap().remove("timestamp");
        assert!(time.as_ref().and_then(|t| t.as_str()).is_some_and(|t| t.ends_with('Z')), "{line}");
        event
    };
    text.lines().map(event).collect()
}

/// The only key of an event that is not in all of them, and its value.
fn kind(event: &serde_json::Value) -> (String, serde_json::Value) {
    let known = ["health_checker_type", "host", "cluster_name", "locality"];
    event.as_object().unwrap().iter().find(|(key, _)| !known.contains(&key.as_str())).map(|(k, v)| (k.clone(), v.clone())).unwrap()
}

const FILE_SINK: &str = "type.googleapis.com/envoy.extensions.health_check.event_sinks.file.v3.HealthCheckEventFileSink";

#[test]
fn events_are_written_to_files() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, old) = (folder.path().join("sink"), folder.path().join("old"));
    let (peer, status) = http_peer("");
    let check = format!(
        "unhealthy_threshold: 2, healthy_threshold: 2, http_health_check: {{path: /}}, event_log_path: '{}', \
         event_logger: [{{name: file, typed_config: {{'@type': {FILE_SINK}, event_log_path: '{}'}}}}]",
        old.display(),
        sink.display()
    );
    let checked = Checked::start(&at(peer.port()), &check);
    for (now, there) in [(503, 2), (200, 3), (0, 4)] {
        eventually(|| events(&sink).len() == there - 1);
        status.store(now, SeqCst);
        eventually(|| events(&sink).len() == there);
    }
    eventually(|| events(&old).len() == 4);
    let all = events(&sink);
    assert_eq!(all, events(&old));
    let address = serde_json::json!({"socket_address": {"protocol": "TCP", "address": "127.0.0.1", "port_value": peer.port(),
        "resolver_name": "", "ipv4_compat": false, "network_namespace_filepath": ""}});
    let locality = serde_json::json!({"region": "", "zone": "", "sub_zone": ""});
    for event in &all {
        assert_eq!((&event["health_checker_type"], &event["cluster_name"]), (&"HTTP".into(), &"c".into()), "{event}");
        assert_eq!((&event["host"], &event["locality"]), (&address, &locality), "{event}");
    }
    let out = |failure: &str, status: u16| {
        ("eject_unhealthy_event".to_owned(), serde_json::json!({"failure_type": failure, "http_status_code": status}))
    };
    let into = |first: bool| ("add_healthy_event".to_owned(), serde_json::json!({"first_check": first}));
    assert_eq!(all.iter().map(kind).collect::<Vec<_>>(), [into(true), out("ACTIVE", 503), into(false), out("NETWORK", 0)]);
    drop(checked);
}

#[test]
fn the_first_failure_is_an_event_and_others_where_all_are_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let first = folder.path().join("first");
    let endpoint = at(dead_port());
    let checked = Checked::start(&endpoint, &format!("tcp_health_check: {{}}, event_log_path: '{}'", first.display()));
    eventually(|| checked.stat("cluster.c.health_check.failure") > 3);
    let failure = |first: bool| {
        (
            "health_check_failure_event".to_owned(),
            serde_json::json!({"failure_type": "NETWORK", "first_check": first, "http_status_code": 0}),
        )
    };
    assert_eq!(events(&first).iter().map(kind).collect::<Vec<_>>(), [failure(true)]);
    let all = folder.path().join("all");
    let checked = Checked::start(
        &endpoint,
        &format!("tcp_health_check: {{}}, event_log_path: '{}', always_log_health_check_failures: true", all.display()),
    );
    eventually(|| events(&all).len() > 3);
    assert_eq!(events(&all).iter().map(kind).take(3).collect::<Vec<_>>(), [failure(true), failure(false), failure(false)]);
    drop(checked);
    let good = folder.path().join("good");
    let (peer, _) = http_peer("x-envoy-degraded: 1\r\n");
    let check = format!("http_health_check: {{path: /}}, event_log_path: '{}', always_log_health_check_success: true", good.display());
    let _checked = Checked::start(&at(peer.port()), &check);
    eventually(|| events(&good).len() > 3);
    let kinds: Vec<String> = events(&good).iter().map(|e| kind(e).0).take(4).collect();
    assert_eq!(kinds, ["add_healthy_event", "degraded_healthy_host", "successful_health_check_event", "successful_health_check_event"]);
}

#[test]
fn a_response_may_say_that_its_host_fails_its_checks() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    // It passes its checks all the time, and gives itself up with each answer to anybody else.
    let peer = Upstream::start(|_, request, stream| {
        let more = if request.starts_with("GET /check ") { "" } else { "x-envoy-immediate-health-check-fail: true\r\n" };
        stream.write_all(format!("HTTP/1.1 200 OK\r\n{more}content-length: 0\r\n\r\n").as_bytes()).is_ok()
    });
    let checks = format!(
        "health_checks: [{{timeout: 2s, interval: 0.5s, no_traffic_interval: 0.5s, healthy_threshold: 2, unhealthy_threshold: 9, \
         http_health_check: {{path: /check}}, event_log_path: '{}'}}]\ncommon_lb_config: {{healthy_panic_threshold: {{value: 0}}}}",
        log.display()
    );
    let mut config = Config::to(&[]);
    config.clusters = vec![cluster("c", &[peer.port()], &checks)];
    let port = free_port();
    let yaml = config.yaml().replacen("port_value: 0}", &format!("port_value: {port}}}"), 1);
    let checked = Checked::with(&yaml);
    eventually(|| checked.flags() == 0);
    let ask = || {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        Answer::read(&mut stream).status
    };
    eventually(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    assert_eq!(ask(), 200);
    assert_eq!(checked.flags(), FAILED_ACTIVE_HC | EXCLUDED_VIA_IMMEDIATE_HC_FAIL);
    assert_eq!(ask(), 503, "it is out");
    eventually(|| checked.stat("cluster.c.health_check.passive_failure") == 1 && events(&log).len() == 2);
    eventually(|| checked.stat("cluster.c.membership_excluded") == 1);
    eventually(|| checked.flags() == 0);
    assert_eq!(ask(), 200, "two checks passed");
    let told: Vec<_> = events(&log).iter().map(kind).take(3).collect();
    let out = serde_json::json!({"failure_type": "PASSIVE", "http_status_code": 0});
    let into = |first: bool| serde_json::json!({"first_check": first});
    assert_eq!(
        told,
        [
            ("add_healthy_event".to_owned(), into(true)),
            ("eject_unhealthy_event".to_owned(), out),
            ("add_healthy_event".to_owned(), into(false))
        ]
    );
}
