//! A proxy worker under test, upstreams that do as they are told, and callers that send bytes.
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lateen_proxy::main_thread::{self, Options, Process};
use lateen_proxy::worker::NodeText;
use lateen_proxy::{DrainTime, LogFiles, Overload, Peers, Wishes, WorkerConfig, WorkerHandle};
use lateen_snapshot::Snapshot;
use lateen_snapshot::compile::Compiler;
use lateen_telemetry::Registry;
use lateen_telemetry::istio::{Config as IstioConfig, IstioMetrics, PeerMetadata};
use lateen_telemetry::stats::TagStyle;

pub(crate) const WAIT: Duration = Duration::from_secs(5);

/// One worker with its configuration.
pub(crate) struct Proxy {
    pub(crate) worker: WorkerHandle,
    pub(crate) registry: Arc<Registry>,
    pub(crate) address: SocketAddr,
    pub(crate) overload: Arc<Overload>,
}

/// Compiles a bootstrap text; what is discovered may be added.
pub(crate) fn compiler(yaml: &str) -> Compiler {
    let mut compiler = Compiler::new();
    compiler.add_static(lateen_snapshot::bootstrap::parse(yaml, "test.yaml").unwrap().resources, Instant::now()).unwrap();
    compiler
}

/// Compiles a bootstrap text.
pub(crate) fn snapshot(yaml: &str, version: u64) -> Arc<Snapshot> {
    let mut snapshot = Snapshot::clone(&compiler(yaml).snapshot());
    snapshot.version = version;
    Arc::new(snapshot)
}

pub(crate) fn start(yaml: &str) -> Proxy {
    start_with(yaml, snapshot(yaml, 1))
}

/// [`start`] with a snapshot that is made elsewhere.
pub(crate) fn start_with(yaml: &str, snapshot: Arc<Snapshot>) -> Proxy {
    start_asking(yaml, snapshot, Wishes::default())
}

/// [`start_with`] and somebody who is asked for clusters.
pub(crate) fn start_asking(yaml: &str, snapshot: Arc<Snapshot>, wishes: Wishes) -> Proxy {
    start_workers(1, yaml, &snapshot, &wishes).remove(0)
}

/// A worker whose replaced chains and listeners are left in this time.
pub(crate) fn start_leaving(yaml: &str, snapshot: &Arc<Snapshot>, drain: DrainTime) -> Proxy {
    start_draining(1, yaml, snapshot, &Wishes::default(), drain).remove(0)
}

/// So many workers of one process, each with an address of its own where the listener's port is 0.
pub(crate) fn start_workers(count: usize, yaml: &str, snapshot: &Arc<Snapshot>, wishes: &Wishes) -> Vec<Proxy> {
    start_draining(count, yaml, snapshot, wishes, DrainTime { over: Duration::ZERO, gradually: true })
}

fn start_draining(count: usize, yaml: &str, snapshot: &Arc<Snapshot>, wishes: &Wishes, drain: DrainTime) -> Vec<Proxy> {
    let (registry, shards) = Registry::new(count, TagStyle::Istio);
    let local = PeerMetadata { workload: "own".to_owned(), ..PeerMetadata::default() };
    let node = Arc::new(NodeText { id: "own-id".to_owned(), metadata: local.encode(), ..NodeText::default() });
    let (metrics, istio) = IstioMetrics::new(IstioConfig::new(local), count);
    registry.add_source(metrics);
    let overload = Overload::new(lateen_snapshot::bootstrap::parse(yaml, "test.yaml").unwrap().overload.limits);
    let peers = Peers::default();
    let start = |(index, (shard, istio))| {
        let config = WorkerConfig {
            index,
            pin: None,
            shard,
            registry: registry.clone(),
            istio,
            logs: Arc::new(LogFiles::default()),
            upstream_mark: None,
            node: node.clone(),
            overload: overload.clone(),
            epoch: Instant::now(),
            wishes: wishes.clone(),
            peers: peers.clone(),
            drain,
        };
        let worker = WorkerHandle::spawn(config).unwrap();
        publish(&worker, snapshot.clone());
        assert_eq!(worker.problems(), Vec::<String>::new());
        let address = worker.bound()[0].1;
        Proxy { worker, registry: registry.clone(), address, overload: overload.clone() }
    };
    shards.into_iter().zip(istio).enumerate().map(start).collect()
}

/// Publishes and waits until the worker has it.
pub(crate) fn publish(worker: &WorkerHandle, snapshot: Arc<Snapshot>) {
    let version = snapshot.version;
    worker.publish(snapshot);
    eventually(|| *worker.applied().borrow() >= version);
}

pub(crate) fn eventually(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT;
    while !condition() {
        assert!(Instant::now() < deadline, "did not happen within {WAIT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Proxy {
    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        stream
    }

    /// Sends `request` on a new connection and reads one response.
    pub(crate) fn call(&self, request: &str) -> Answer {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        Answer::read(&mut stream)
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.call(&format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"))
    }

    /// A counter or gauge by Envoy's name.
    pub(crate) fn stat(&self, name: &str) -> u64 {
        stat(&self.registry, name)
    }
}

/// A counter or gauge by its whole name; 0 when there is none.
pub(crate) fn stat(registry: &Registry, name: &str) -> u64 {
    let samples = registry.scrape(false, &|n| n == name);
    let text = format!("{:?}", samples.first().map(|s| &s.value));
    text.chars().filter(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0)
}

/// A response as bytes on the wire.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let find = |line: &&str| line.split_once(':').is_some_and(|(n, _)| n.eq_ignore_ascii_case(name));
        self.head.lines().skip(1).find(find).and_then(|l| l.split_once(": ")).map(|(_, v)| v)
    }

    pub(crate) fn read(stream: &mut TcpStream) -> Self {
        Self::try_read(stream).expect("a response")
    }

    /// `None` when the connection ends before a head.
    pub(crate) fn try_read(stream: &mut TcpStream) -> Option<Self> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return None,
            }
        }
        let head = String::from_utf8(head).unwrap();
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let mut answer = Self { status, head, body: String::new() };
        if status / 100 == 1 || status == 204 || status == 304 {
            return Some(answer);
        }
        let mut body = Vec::new();
        if let Some(length) = answer.header("content-length") {
            body = vec![0; length.parse().unwrap()];
            if stream.read_exact(&mut body).is_err() {
                return None;
            }
        } else if answer.header("transfer-encoding") == Some("chunked") {
            while !(body.ends_with(b"\r\n\r\n") && body.windows(3).any(|w| w == b"0\r\n")) {
                let mut byte = [0];
                if stream.read(&mut byte).ok()? == 0 {
                    return None;
                }
                body.push(byte[0]);
            }
        } else {
            stream.read_to_end(&mut body).ok()?;
        }
        answer.body = String::from_utf8_lossy(&body).into_owned();
        Some(answer)
    }
}

/// An upstream: `respond` gets each request (head and body by content-length) and writes what it likes; `false` closes.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Mutex<Vec<String>>>,
    pub(crate) connections: Arc<AtomicUsize>,
}

impl Upstream {
    pub(crate) fn start(respond: impl Fn(usize, &str, &mut TcpStream) -> bool + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, connections) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let (theirs, count, respond) = (seen.clone(), connections.clone(), Arc::new(respond));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                count.fetch_add(1, SeqCst);
                let (seen, respond) = (theirs.clone(), respond.clone());
                std::thread::spawn(move || {
                    while let Some(request) = read_request(&mut stream) {
                        let number = {
                            let mut seen = seen.lock().unwrap();
                            seen.push(request.clone());
                            seen.len()
                        };
                        if !respond(number, &request, &mut stream) {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, seen, connections }
    }

    /// Answers 200 with this body.
    pub(crate) fn ok(body: &'static str) -> Self {
        Self::start(move |_, _, stream| write_ok(stream, body))
    }

    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }
}

pub(crate) fn write_ok(stream: &mut TcpStream, body: &str) -> bool {
    stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes()).is_ok()
}

pub(crate) fn write_status(stream: &mut TcpStream, status: u16) -> bool {
    stream.write_all(format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n").as_bytes()).is_ok()
}

fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        bytes.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&bytes).into_owned();
    let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).and_then(|v| v.parse::<usize>().ok());
    if let Some(length) = length {
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        bytes.extend(body);
    } else if head.contains("transfer-encoding: chunked") {
        let mut body = Vec::new();
        while !(body.ends_with(b"\r\n\r\n") && (body.starts_with(b"0\r\n") || body.windows(5).any(|w| w == b"\r\n0\r\n"))) {
            if stream.read(&mut byte).ok()? == 0 {
                return None;
            }
            body.push(byte[0]);
        }
        bytes.extend(body);
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// A TCP server that does the same with each connection.
pub(crate) fn tcp_server(serve: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, serve) = (stream.unwrap(), serve.clone());
            stream.set_read_timeout(Some(WAIT)).unwrap();
            std::thread::spawn(move || serve(stream));
        }
    });
    port
}

/// Echoes until the caller has ended, then says so.
pub(crate) fn tcp_echo() -> u16 {
    tcp_server(|mut stream| {
        let mut bytes = [0; 16384];
        while let Ok(n) = stream.read(&mut bytes) {
            if n == 0 {
                break;
            }
            stream.write_all(&bytes[..n]).unwrap();
        }
        let _ = stream.write_all(b"<end>");
    })
}

/// A port where nobody listens, nor will: it is bound, so that no other test gets it.
pub(crate) fn dead_port() -> u16 {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    std::mem::forget(socket);
    port
}

/// A port to listen on, where it must be known before.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A bootstrap with a listener of connections: more fields of the listener, the filters of its one chain, and the clusters, each
/// as lines of YAML that begin at the left.
pub(crate) fn connections(listener: &str, filters: &str, clusters: &str) -> String {
    let listener = indent(listener, 4);
    let (filters, clusters) = (indent(filters, 6), indent(clusters, 2));
    format!(
        r#"
node: {{id: t, cluster: t}}
static_resources:
  listeners:
  - name: l
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
{listener}    filter_chains:
    - filters:
{filters}  clusters:
{clusters}"#
    )
}

/// A TCP proxy with these fields, as a filter of [`connections`].
pub(crate) fn tcp_proxy(fields: &str) -> String {
    format!(
        r#"- {{name: envoy.filters.network.tcp_proxy, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, {fields}}}}}"#
    )
}

pub(crate) fn indent(text: &str, by: usize) -> String {
    text.lines().map(|l| format!("{}{l}\n", " ".repeat(by))).collect()
}

/// A whole process with this bootstrap and one worker, unless `change` says otherwise; and the runtime that it lives in.
pub(crate) fn whole_process(yaml: &str, change: impl FnOnce(&mut Options)) -> (tokio::runtime::Runtime, Process) {
    let (runtime, process) = try_whole_process(yaml, change);
    (runtime, process.unwrap())
}

/// [`whole_process`], which may not start.
pub(crate) fn try_whole_process(yaml: &str, change: impl FnOnce(&mut Options)) -> (tokio::runtime::Runtime, anyhow::Result<Process>) {
    let bootstrap = lateen_snapshot::bootstrap::parse(yaml, "test.yaml").unwrap();
    let mut options = Options { drain_time: Duration::from_secs(1), ..Options::new(bootstrap) };
    change(&mut options);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let process = runtime.block_on(main_thread::start(options));
    (runtime, process)
}

/// A listener with an HTTP connection manager, routes given as YAML list items of one virtual host.
pub(crate) struct Config {
    /// More fields of the listener.
    pub(crate) listener: String,
    pub(crate) routes: String,
    pub(crate) clusters: Vec<String>,
    pub(crate) hcm: String,
    pub(crate) filters: String,
    pub(crate) virtual_host: String,
}

impl Config {
    /// All of `/` to one cluster `c`.
    pub(crate) fn to(upstream: &[u16]) -> Self {
        Self {
            listener: String::new(),
            routes: "- {match: {prefix: /}, route: {cluster: c, timeout: 0s}}".to_owned(),
            clusters: vec![cluster("c", upstream, "")],
            hcm: String::new(),
            filters: String::new(),
            virtual_host: String::new(),
        }
    }

    pub(crate) fn routes(mut self, routes: &str) -> Self {
        self.routes = routes.to_owned();
        self
    }

    pub(crate) fn cluster(mut self, cluster: String) -> Self {
        self.clusters.push(cluster);
        self
    }

    pub(crate) fn yaml(&self) -> String {
        format!(
            r#"
node: {{id: "sidecar~10.0.0.1~a.default~default.svc.cluster.local", cluster: a}}
static_resources:
  listeners:
  - name: l
{}    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: t
{}          http_filters:
{}          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
          route_config:
            name: r
            virtual_hosts:
            - name: v
              domains: ["*"]
{}              routes:
{}  clusters:
{}"#,
            indent(&self.listener, 4),
            indent(&self.hcm, 10),
            indent(&self.filters, 10),
            indent(&self.virtual_host, 14),
            indent(&self.routes, 14),
            indent(&self.clusters.join("\n"), 2),
        )
    }

    pub(crate) fn start(&self) -> Proxy {
        start(&self.yaml())
    }
}

pub(crate) fn cluster(name: &str, ports: &[u16], more: &str) -> String {
    let endpoints: Vec<String> =
        ports.iter().map(|p| format!("{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {p}}}}}}}}}")).collect();
    format!(
        "- name: {name}\n  type: STATIC\n  connect_timeout: 1s\n{}  load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{}]}}]}}",
        more.lines().map(|l| format!("  {l}\n")).collect::<String>(),
        endpoints.join(", ")
    )
}

pub(crate) fn half_close(stream: &TcpStream) {
    stream.shutdown(Shutdown::Write).unwrap();
}

/// One request to the admin server; its status and body.
pub(crate) fn admin(port: u16, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let answer = Answer::read(&mut stream);
    (answer.status, answer.body)
}

/// Reads a head and nothing behind it: a tunnel may follow.
pub(crate) fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}
