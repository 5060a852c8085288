//! Configuration changes under load, and outlier ejection.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::Instant;

use lateen_snapshot::Snapshot;
use lateen_snapshot::compile::{Compiler, Update};

use crate::support::*;

#[test]
fn a_hundred_changes_under_load_fail_no_request() {
    let (a, b) = (Upstream::ok("a"), Upstream::ok("b"));
    let config =
        |port: u16, n: u64| Config::to(&[port]).routes(&format!("- {{match: {{prefix: /}}, name: r{n}, route: {{cluster: c}}}}")).yaml();
    let proxy = Arc::new(start(&config(a.port(), 1)));
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU32::new(0));
    let callers: Vec<_> = (0..2)
        .map(|_| {
            let (proxy, stop, done) = (proxy.clone(), stop.clone(), done.clone());
            std::thread::spawn(move || {
                let mut stream = proxy.connect();
                while !stop.load(SeqCst) {
                    std::io::Write::write_all(&mut stream, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
                    let answer = Answer::read(&mut stream);
                    assert_eq!(answer.status, 200, "{answer:?}");
                    done.fetch_add(1, SeqCst);
                    // A replaced listener asks its callers to come again.
                    if answer.header("connection") == Some("close") {
                        stream = proxy.connect();
                    }
                }
            })
        })
        .collect();
    for n in 2..102 {
        let port = if n % 2 == 0 { b.port() } else { a.port() };
        publish(&proxy.worker, snapshot(&config(port, n), n));
    }
    let enough = done.load(SeqCst) + 50;
    eventually(|| done.load(SeqCst) > enough);
    stop.store(true, SeqCst);
    for caller in callers {
        caller.join().unwrap();
    }
    assert!(a.seen().len() > 10 && b.seen().len() > 10);
}

#[test]
fn a_host_that_keeps_failing_is_ejected() {
    let (bad, good) = (Upstream::start(|_, _, stream| write_status(stream, 503)), Upstream::ok("good"));
    let mut config = Config::to(&[]);
    let more = "outlier_detection: {consecutive_5xx: 3, base_ejection_time: 60s, max_ejection_percent: 100}";
    config.clusters = vec![cluster("c", &[bad.port(), good.port()], more)];
    let proxy = config.start();
    for _ in 0..40 {
        proxy.get("/");
    }
    assert_eq!(bad.seen().len(), 3);
    assert_eq!(proxy.stat("cluster.c.outlier_detection.ejections_enforced_total"), 1);
    assert_eq!(proxy.get("/").body, "good");
}

/// The cluster `c` as discovery would bring it: hosts that were known before are the same ones.
pub(crate) fn discover(compiler: &mut Compiler, ports: &[u16], more: &str, version: u64) -> Arc<Snapshot> {
    let mut config = Config::to(&[]);
    config.clusters = vec![cluster("c", ports, more)];
    let mut resources = lateen_snapshot::bootstrap::parse(&config.yaml(), "test.yaml").unwrap().resources.into_iter();
    let body = resources.find(|r| r.type_url.ends_with(".Cluster")).unwrap();
    let (url, update) = (body.type_url.clone(), Update { name: "c".to_owned(), version: version.to_string(), body });
    assert_eq!(compiler.apply(&url, vec![update], &[], Instant::now()), []);
    Arc::new(Snapshot { version, ..Snapshot::clone(&compiler.snapshot()) })
}

#[test]
fn a_request_from_before_an_update_ejects_its_host_for_those_after_it() {
    let detects = "outlier_detection: {consecutive_5xx: 1, base_ejection_time: 60s, max_ejection_percent: 100}";
    let open = Arc::new(AtomicBool::new(false));
    let gate = open.clone();
    let failing = Upstream::start(move |_, request, stream| {
        if !request.starts_with("GET /held ") {
            return write_ok(stream, "failing");
        }
        eventually(|| gate.load(SeqCst));
        write_status(stream, 500)
    });
    let good = Upstream::ok("good");
    let mut config = Config::to(&[]);
    config.clusters = Vec::new();
    let yaml = config.yaml();
    let mut compiler = compiler(&yaml);
    let proxy = start_with(&yaml, discover(&mut compiler, &[failing.port()], detects, 1));
    let mut held = proxy.connect();
    std::io::Write::write_all(&mut held, b"GET /held HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    eventually(|| failing.seen().len() == 1);
    publish(&proxy.worker, discover(&mut compiler, &[failing.port(), good.port()], detects, 2));
    // The worker has its plan of the new members.
    for name in ["failing", "good"] {
        eventually(|| proxy.get("/").body == name);
    }
    open.store(true, SeqCst);
    assert_eq!(Answer::read(&mut held).status, 500);
    assert_eq!(proxy.stat("cluster.c.outlier_detection.ejections_enforced_total"), 1);
    for _ in 0..20 {
        assert_eq!(proxy.get("/").body, "good");
    }
}

#[test]
fn a_removed_listener_stops_listening_and_a_new_one_starts() {
    let upstream = Upstream::ok("x");
    let proxy = Config::to(&[upstream.port()]).start();
    let before = proxy.address;
    assert_eq!(proxy.get("/").status, 200);
    let other = free_port();
    let yaml = Config::to(&[upstream.port()])
        .yaml()
        .replace("name: l\n", "name: m\n")
        .replace("port_value: 0}", &format!("port_value: {other}}}"));
    publish(&proxy.worker, snapshot(&yaml, 2));
    eventually(|| std::net::TcpStream::connect(before).is_err());
    assert!(std::net::TcpStream::connect(("127.0.0.1", other)).is_ok());
}
