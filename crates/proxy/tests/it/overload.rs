//! Running short: what the overload manager measures, and what callers meet meanwhile.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use lateen_snapshot::bootstrap::overload::Action;

use crate::endings::{GET, served, whole, whole_on_port};
use crate::http2;
use crate::support::*;

const TYPES: &str = "type.googleapis.com/envoy.extensions.resource_monitors";

/// `overload_manager` with one monitor `m` and one action or point that acts from a pressure of 1 on.
fn manager(config: &str, list: &str, name: &str) -> String {
    format!(
        "overload_manager: {{refresh_interval: 0.05s, resource_monitors: [{{name: m, typed_config: {config}}}], {list}: [{{name: {name}, triggers: [{{name: m, threshold: {{value: 1}}}}]}}]}}"
    )
}

fn status(address: SocketAddr) -> Option<u16> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(WAIT)).ok()?;
    stream.write_all(GET).ok()?;
    Answer::try_read(&mut stream).map(|answer| answer.status)
}

#[test]
fn an_overloaded_process_refuses_requests_ends_connections_and_recovers() {
    let upstream = Upstream::ok("x");
    let proxy = Config::to(&[upstream.port()]).start();
    let mut kept = proxy.connect();
    assert!(served(&mut kept));
    proxy.overload.set(Action::StopAcceptingRequests, 1.0);
    kept.write_all(GET).unwrap();
    let answer = Answer::read(&mut kept);
    assert_eq!((answer.status, answer.body.as_str()), (503, "envoy overloaded"));
    assert_eq!((upstream.seen().len(), proxy.stat("http.t.downstream_rq_overload_close")), (1, 1));
    proxy.overload.set(Action::StopAcceptingRequests, 0.0);
    proxy.overload.set(Action::DisableKeepalive, 1.0);
    kept.write_all(GET).unwrap();
    assert_eq!(Answer::read(&mut kept).header("connection"), Some("close"));
    assert_eq!(kept.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(proxy.stat("http.t.downstream_cx_overload_disable_keepalive"), 1);
    // Over HTTP/2 the connection is told once that it is to end, and finishes what it has.
    http2::runtime().block_on(async {
        let mut sender = http2::connect(proxy.address).await;
        let (response, _) = sender.send_request(http2::get("/"), true).unwrap();
        assert_eq!(response.await.unwrap().status(), 200);
        tokio::task::block_in_place(|| eventually(|| proxy.worker.connections() == 0));
    });
    for name in ["downstream_cx_overload_disable_keepalive", "downstream_cx_drain_close"] {
        assert_eq!(proxy.stat(&format!("http.t.{name}")), 2, "{name}");
    }
    proxy.overload.set(Action::DisableKeepalive, 0.0);
    proxy.overload.set(Action::RejectIncomingConnections, 1.0);
    assert!(!served(&mut proxy.connect()));
    proxy.overload.set(Action::RejectIncomingConnections, 0.0);
    assert!(served(&mut proxy.connect()));
    proxy.overload.set(Action::StopAcceptingRequests, 0.5);
    let refused = (0..200).filter(|_| proxy.get("/").status == 503).count();
    assert!((50..150).contains(&refused), "half of them, give or take seven deviations: {refused}");
}

#[test]
fn connections_wait_in_the_kernel_while_none_are_accepted() {
    let upstream = Upstream::ok("x");
    let proxy = Config::to(&[upstream.port()]).start();
    assert!(served(&mut proxy.connect()));
    proxy.overload.set(Action::StopAcceptingConnections, 1.0);
    // The loop was waiting for one already: that one is still taken.
    assert!(served(&mut proxy.connect()));
    let mut waiting = proxy.connect();
    waiting.write_all(GET).unwrap();
    waiting.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(Answer::try_read(&mut waiting).is_none());
    proxy.overload.set(Action::StopAcceptingConnections, 0.0);
    waiting.set_read_timeout(Some(WAIT)).unwrap();
    assert_eq!(Answer::read(&mut waiting).status, 200);
}

#[test]
fn a_process_whose_memory_is_used_up_refuses_requests_or_connections() {
    let heap = format!("{{'@type': {TYPES}.fixed_heap.v3.FixedHeapConfig, max_heap_size_bytes: 4096}}");
    let upstream = Upstream::ok("x");
    let name = "envoy.overload_actions.stop_accepting_requests";
    let (_runtime, process, address) = whole(&manager(&heap, "actions", name), &upstream);
    eventually(|| status(address) == Some(503));
    // They are there before the first request is refused.
    for (what, value) in [("active", 1), ("scale_percent", 100)] {
        assert_eq!(stat(&process.main.registry, &format!("overload.{name}.{what}")), value);
    }
    assert!(stat(&process.main.registry, "overload.m.pressure") >= 100);
    let name = "envoy.load_shed_points.tcp_listener_accept";
    let (_runtime, process, address) = whole(&manager(&heap, "loadshed_points", name), &upstream);
    eventually(|| status(address).is_none());
    eventually(|| stat(&process.main.registry, &format!("overload.{name}.shed_load_count")) > 0);
}

/// Calls without a pause, many at a time on each of many connections, until told to stop: workers have always something to do.
struct Flood {
    over: Arc<AtomicBool>,
    refused: Arc<AtomicUsize>,
    callers: Vec<std::thread::JoinHandle<()>>,
}

impl Flood {
    const CALLERS: usize = 96;
    const AT_ONCE: usize = 40;

    fn on(address: SocketAddr) -> Self {
        let (over, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let caller = || {
            let (over, refused) = (over.clone(), refused.clone());
            std::thread::spawn(move || {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.set_read_timeout(Some(WAIT)).unwrap();
                while !over.load(SeqCst) {
                    stream.write_all(&GET.repeat(Self::AT_ONCE)).unwrap();
                    let count = (0..Self::AT_ONCE).filter(|_| Answer::read(&mut stream).status == 503).count();
                    refused.fetch_add(count, SeqCst);
                }
            })
        };
        Self { callers: (0..Self::CALLERS).map(|_| caller()).collect(), over, refused }
    }

    fn end(self) {
        self.over.store(true, SeqCst);
        for caller in self.callers {
            caller.join().unwrap();
        }
    }
}

#[test]
fn a_worker_whose_queue_stands_refuses_requests_until_it_is_worked_off() {
    let queue = "{'@type': type.googleapis.com/lateen.resource_monitors.v1.QueueDelayConfig, max_delay: 0.02s}";
    let name = "envoy.overload_actions.stop_accepting_requests";
    let manager = manager(queue, "actions", name);
    let yaml = Config::to(&[1]).routes("- {match: {prefix: /}, direct_response: {status: 200, body: {inline_string: x}}}");
    let (_runtime, process, address) = whole_on_port(&manager, yaml);
    // On a busy machine a worker may wait for its processor, which is a queue too.
    eventually(|| status(address) == Some(200));
    let active = format!("overload.{name}.active");
    let flood = Flood::on(address);
    eventually(|| flood.refused.load(SeqCst) > 0);
    eventually(|| stat(&process.main.registry, "overload.m.pressure") >= 100 && stat(&process.main.registry, &active) == 1);
    flood.end();
    eventually(|| stat(&process.main.registry, &active) == 0 && status(address) == Some(200));
}
