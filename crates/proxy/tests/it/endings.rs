//! Limits and coming to an end: connections, drains; nobody who was let in loses a request.
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use crate::support::*;
use lateen_proxy::Drain;

pub(crate) const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

fn limited(runtime: &str) -> Proxy {
    let upstream = Upstream::ok("x");
    let yaml = Config::to(&[upstream.port()]).yaml();
    start(&format!("layered_runtime: {{layers: [{{name: l, static_layer: {{{runtime}}}}}]}}{yaml}"))
}

pub(crate) fn served(stream: &mut TcpStream) -> bool {
    stream.write_all(GET).is_ok() && Answer::try_read(stream).is_some_and(|a| a.status == 200)
}

#[test]
fn connections_beyond_the_limits_are_closed_and_room_is_made_again() {
    for (runtime, stat) in [
        ("overload.global_downstream_max_connections: 2", "downstream_global_cx_overflow"),
        ("envoy.resource_limits.listener.l.connection_limit: 2", "downstream_cx_overflow"),
    ] {
        let proxy = limited(runtime);
        let mut open: Vec<TcpStream> = (0..2).map(|_| proxy.connect()).collect();
        assert!(open.iter_mut().all(served));
        assert_eq!(proxy.connect().read(&mut [0; 1]).unwrap_or(0), 0, "{runtime}");
        assert_eq!(proxy.stat(&format!("listener.127.0.0.1_0.{stat}")), 1);
        assert!(open.iter_mut().all(served));
        open.pop();
        eventually(|| served(&mut proxy.connect()));
    }
}

#[test]
fn a_failed_health_check_asks_to_leave_and_a_passed_one_lets_stay() {
    let upstream = Upstream::ok("x");
    let yaml = Config::to(&[upstream.port()]).yaml();
    for (yaml, asked) in
        [(yaml.clone(), Some("close")), (yaml.replace("    filter_chains:", "    drain_type: MODIFY_ONLY\n    filter_chains:"), None)]
    {
        let proxy = start(&yaml);
        let mut stream = proxy.connect();
        assert!(served(&mut stream));
        proxy.worker.tell(Drain::Failing(true));
        // The command takes its turn behind what the worker is doing.
        std::thread::sleep(Duration::from_millis(100));
        stream.write_all(GET).unwrap();
        assert_eq!(Answer::read(&mut stream).header("connection"), asked);
        assert_eq!(proxy.get("/").status, 200, "new connections are taken");
        proxy.worker.tell(Drain::Failing(false));
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(proxy.get("/").header("connection"), None);
    }
}

#[test]
fn a_drain_of_inbound_listeners_lets_the_others_be() {
    let upstream = Upstream::ok("x");
    let proxy = Config::to(&[upstream.port()]).start();
    proxy.worker.tell(Drain::Ask { over: Duration::ZERO, inbound_only: true });
    proxy.worker.tell(Drain::Close { inbound_only: true });
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(proxy.get("/").header("connection"), None);
}

/// Calls until told to stop; a connection that is asked to end is left after its response, as callers do.
fn call_on(address: std::net::SocketAddr, stop: &AtomicBool, done: &AtomicUsize, lost: &AtomicUsize) {
    let mut kept: Option<TcpStream> = None;
    while !stop.load(SeqCst) {
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => match TcpStream::connect(address) {
                Ok(stream) => stream,
                Err(_) => {
                    lost.fetch_add(1, SeqCst);
                    continue;
                }
            },
        };
        stream.set_read_timeout(Some(WAIT)).unwrap();
        let answer = stream.write_all(GET).ok().and_then(|()| Answer::try_read(&mut stream));
        match answer {
            Some(answer) if answer.status == 200 => {
                done.fetch_add(1, SeqCst);
                kept = (answer.header("connection") != Some("close")).then_some(stream);
            }
            _ => {
                lost.fetch_add(1, SeqCst);
            }
        }
    }
}

#[test]
fn no_request_is_lost_while_the_process_drains_under_load() {
    let upstream = Upstream::start(|_, _, stream| {
        std::thread::sleep(Duration::from_millis(5));
        write_ok(stream, "x")
    });
    let proxy = Config::to(&[upstream.port()]).start();
    let (stop, done, lost) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (address, stop, done, lost) = (proxy.address, stop.clone(), done.clone(), lost.clone());
            std::thread::spawn(move || call_on(address, &stop, &done, &lost))
        })
        .collect();
    eventually(|| done.load(SeqCst) > 200);
    proxy.worker.tell(Drain::Ask { over: Duration::from_millis(300), inbound_only: false });
    let before = done.load(SeqCst);
    eventually(|| done.load(SeqCst) > before + 200);
    // By now those who balance the load have heard; what they have sent is finished although listeners close.
    stop.store(true, SeqCst);
    proxy.worker.tell(Drain::Close { inbound_only: false });
    callers.into_iter().for_each(|c| c.join().unwrap());
    assert_eq!(lost.load(SeqCst), 0, "of {}", done.load(SeqCst));
    eventually(|| proxy.worker.connections() == 0);
    assert!(TcpStream::connect(proxy.address).is_err());
}

/// A whole process on a port of its own; `more` are fields of the bootstrap.
pub(crate) fn whole(
    more: &str,
    upstream: &Upstream,
) -> (tokio::runtime::Runtime, lateen_proxy::main_thread::Process, std::net::SocketAddr) {
    whole_on_port(more, Config::to(&[upstream.port()]))
}

/// As [`whole`], with all of its configuration given.
pub(crate) fn whole_on_port(
    more: &str,
    config: Config,
) -> (tokio::runtime::Runtime, lateen_proxy::main_thread::Process, std::net::SocketAddr) {
    let port = free_port();
    let yaml = config.yaml().replace("port_value: 0", &format!("port_value: {port}"));
    let (runtime, process) = whole_process(&format!("{more}{yaml}"), |options| options.concurrency = 2);
    let address = ([127, 0, 0, 1], port).into();
    eventually(|| TcpStream::connect(address).is_ok());
    (runtime, process, address)
}

#[test]
fn a_process_told_to_end_takes_connections_until_nothing_is_open() {
    let upstream = Upstream::start(|_, _, stream| {
        std::thread::sleep(Duration::from_millis(300));
        write_ok(stream, "x")
    });
    let (runtime, process, address) = whole("", &upstream);
    let call = move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        stream.write_all(GET).unwrap();
        Answer::read(&mut stream)
    };
    let first = std::thread::spawn(call);
    eventually(|| upstream.seen().len() == 1);
    let plan = lateen_proxy::main_thread::DrainPlan { grace: Duration::from_secs(5), minimum: Duration::ZERO, exit_when_idle: true };
    let end = runtime.spawn(process.shut_down(plan));
    std::thread::sleep(Duration::from_millis(100));
    let second = call();
    assert_eq!((second.status, second.header("connection")), (200, Some("close")));
    assert_eq!(first.join().unwrap().status, 200);
    runtime.block_on(end).unwrap();
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn the_admin_server_fails_health_checks_and_drains_in_the_configured_time() {
    let port = free_port();
    let upstream = Upstream::ok("x");
    let text = format!("admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}\n");
    let (_runtime, process, address) = whole(&text, &upstream);
    let closes = || {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(WAIT)).unwrap();
        stream.write_all(GET).ok()?;
        Some(Answer::try_read(&mut stream)?.header("connection") == Some("close"))
    };
    eventually(|| admin(port, "GET", "/ready").0 == 200);
    assert_eq!((admin(port, "GET", "/healthcheck/fail").0, closes()), (405, Some(false)));
    assert_eq!(admin(port, "POST", "/healthcheck/fail").0, 200);
    assert_eq!(admin(port, "GET", "/ready").0, 503);
    eventually(|| closes() == Some(true));
    assert_eq!(admin(port, "POST", "/healthcheck/ok").0, 200);
    eventually(|| closes() == Some(false));
    assert_eq!(admin(port, "GET", "/ready").0, 200);
    assert_eq!(admin(port, "POST", "/drain_listeners?graceful&inboundonly").0, 200);
    assert_eq!(admin(port, "GET", "/ready").0, 200, "outbound listeners serve on");
    assert_eq!(admin(port, "POST", "/drain_listeners?graceful").0, 200);
    assert!(closes().is_some(), "listeners stay open while callers are asked to leave");
    eventually(|| closes().is_none());
    assert_eq!(admin(port, "GET", "/ready"), (200, "LIVE\n".to_owned()), "listeners alone have gone");
    drop(process);
}

#[test]
fn connections_made_at_once_end_apart_where_their_duration_has_jitter() {
    let upstream = Upstream::ok("fine");
    let mut config = Config::to(&[upstream.port()]);
    config.hcm = "common_http_protocol_options: {max_connection_duration: 0.5s, max_connection_duration_jitter: {value: 100}}".to_owned();
    let proxy = config.start();
    let begun = std::time::Instant::now();
    let callers: Vec<_> = (0..10)
        .map(|_| {
            let mut stream = proxy.connect();
            std::thread::spawn(move || {
                stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
                let mut all = Vec::new();
                let _ = stream.read_to_end(&mut all);
                assert!(all.ends_with(b"fine"));
                begun.elapsed()
            })
        })
        .collect();
    let ends: Vec<_> = callers.into_iter().map(|caller| caller.join().unwrap()).collect();
    let (first, last) = (ends.iter().min().unwrap(), ends.iter().max().unwrap());
    assert!(first.as_millis() >= 490, "{ends:?}");
    assert!((*last - *first).as_millis() > 60, "{ends:?}");
}
