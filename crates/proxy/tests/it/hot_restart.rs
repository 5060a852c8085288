//! Hot restart: processes follow one another under load, and no caller notices.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lateen_proxy::main_thread::{DrainPlan, Process};
use lateen_proxy::restart::{self, Place, SocketPath};

use crate::support::*;

/// A base id for each test of this process.
fn base() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    std::process::id() * 100 + NEXT.fetch_add(1, SeqCst)
}

fn place(base_id: u32, epoch: u64) -> Place {
    Place { path: SocketPath::parse("@lateen-test"), mode: 0o600, base_id, epoch }
}

/// A process, which ends by itself when another has taken over.
struct Running {
    runtime: Option<tokio::runtime::Runtime>,
    process: Option<Process>,
}

impl Running {
    fn try_start(yaml: &str, workers: usize, base_id: u32, epoch: u64) -> anyhow::Result<Self> {
        let (runtime, process) = try_whole_process(yaml, |options| {
            options.concurrency = workers;
            options.drain_time = Duration::from_millis(500);
            options.restart = Some(restart::Options {
                place: place(base_id, epoch),
                bound: None,
                parent_shutdown: Duration::from_secs(20),
                parent_optional: false,
                skip_figures: false,
            });
        });
        let process = process?;
        Ok(Self { runtime: Some(runtime), process: Some(process) })
    }

    fn start(yaml: &str, workers: usize, base_id: u32, epoch: u64) -> Self {
        let running = Self::try_start(yaml, workers, base_id, epoch).unwrap();
        let ready = |r: &Self| r.runtime.as_ref().unwrap().block_on(r.process.as_ref().unwrap().ready(WAIT));
        assert!(ready(&running), "{:?}", running.process.as_ref().unwrap().main.waiting());
        running
    }

    fn stat(&self, name: &str) -> u64 {
        stat(&self.process.as_ref().unwrap().main.registry, name)
    }

    /// Waits until it was replaced and has nothing open any more; how long that took.
    fn replaced(mut self) -> Duration {
        let since = Instant::now();
        let process = self.process.take().unwrap();
        let plan = DrainPlan { grace: Duration::ZERO, minimum: Duration::ZERO, exit_when_idle: true };
        let runtime = self.runtime.take().unwrap();
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(30), process.replaced()).await.expect("it ends");
            process.shut_down(plan).await;
        });
        runtime.shutdown_background();
        since.elapsed()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // As a process that is killed.
        let process = self.process.take();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        drop(process);
    }
}

/// HTTP on one port, bytes on the other.
fn yaml(http: u16, tcp: u16, upstream: u16, echo: u16, more: &str) -> String {
    let yaml = Config::to(&[upstream]).cluster(cluster("echo", &[echo], "")).yaml();
    let listener = format!(
        r#"  - name: tcp
    address: {{socket_address: {{address: 127.0.0.1, port_value: {tcp}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: echo}}
  clusters:"#
    );
    format!("{more}\n{}", yaml.replace("port_value: 0", &format!("port_value: {http}")).replacen("  clusters:", &listener, 1))
}

/// Clusters from where nobody answers, who are done without after so many seconds.
fn waits_for_clusters(seconds: u32) -> String {
    let service = "{api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: echo}}]}";
    format!(
        "dynamic_resources: {{cds_config: {{initial_fetch_timeout: {seconds}s, resource_api_version: V3, api_config_source: {service}}}}}"
    )
}

fn echo_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut bytes = [0; 1024];
                let mut stream = stream;
                while let Ok(n @ 1..) = stream.read(&mut bytes) {
                    if stream.write_all(&bytes[..n]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

/// What callers did, and what went wrong for them.
#[derive(Default)]
struct Tally {
    stop: AtomicBool,
    http1: AtomicUsize,
    http2: AtomicUsize,
    tcp: AtomicUsize,
    lost: std::sync::Mutex<Vec<String>>,
}

impl Tally {
    fn lose(&self, what: &str, why: impl std::fmt::Debug) {
        self.lost.lock().unwrap().push(format!("{what}: {why:?}"));
    }

    /// HTTP/1.1 keep-alive: leaves a connection when it is told to, as callers do.
    fn http1(&self, address: SocketAddr) {
        let mut kept: Option<TcpStream> = None;
        while !self.stop.load(SeqCst) {
            let mut stream = match kept.take().map_or_else(|| TcpStream::connect(address), Ok) {
                Ok(stream) => stream,
                Err(e) => {
                    self.lose("http/1 connect", e);
                    continue;
                }
            };
            stream.set_read_timeout(Some(WAIT)).unwrap();
            let sent = stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
            match sent.ok().and_then(|()| Answer::try_read(&mut stream)) {
                Some(answer) if answer.status == 200 => {
                    self.http1.fetch_add(1, SeqCst);
                    kept = (answer.header("connection") != Some("close")).then_some(stream);
                }
                other => self.lose("http/1", other),
            }
        }
    }

    async fn http2(&self, address: SocketAddr) {
        let mut kept: Option<h2::client::SendRequest<Bytes>> = None;
        while !self.stop.load(SeqCst) {
            let mut sender = match kept.take() {
                Some(sender) => match sender.ready().await {
                    Ok(sender) => sender,
                    // It was told to leave.
                    Err(e) if e.is_go_away() && e.reason() == Some(h2::Reason::NO_ERROR) => continue,
                    Err(e) => {
                        self.lose("http/2 connection", e);
                        continue;
                    }
                },
                None => {
                    let stream = match tokio::net::TcpStream::connect(address).await {
                        Ok(stream) => stream,
                        Err(e) => {
                            self.lose("http/2 connect", e);
                            continue;
                        }
                    };
                    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
                    tokio::spawn(async move { connection.await.ok() });
                    sender
                }
            };
            let request = http::Request::get("http://a/").body(()).unwrap();
            let answer = match sender.send_request(request, true) {
                Ok((answer, _)) => answer.await,
                Err(e) => Err(e),
            };
            match answer {
                Ok(answer) if answer.status() == 200 => {
                    let mut body = answer.into_body();
                    while let Some(Ok(data)) = body.data().await {
                        let _ = body.flow_control().release_capacity(data.len());
                    }
                    self.http2.fetch_add(1, SeqCst);
                    kept = Some(sender);
                }
                Ok(other) => self.lose("http/2", other.status()),
                Err(e) if e.is_go_away() && e.reason() == Some(h2::Reason::NO_ERROR) => {}
                Err(e) => self.lose("http/2", e),
            }
        }
    }

    /// Streams that live longer than a restart takes.
    fn tcp(&self, address: SocketAddr) {
        while !self.stop.load(SeqCst) {
            let talk = || -> std::io::Result<()> {
                let mut stream = TcpStream::connect(address)?;
                stream.set_read_timeout(Some(WAIT))?;
                for n in 0..100u32 {
                    stream.write_all(&n.to_be_bytes())?;
                    let mut back = [0; 4];
                    stream.read_exact(&mut back)?;
                    assert_eq!(u32::from_be_bytes(back), n);
                    std::thread::sleep(Duration::from_millis(10));
                }
                Ok(())
            };
            match talk() {
                Ok(()) => drop(self.tcp.fetch_add(1, SeqCst)),
                Err(e) => self.lose("tcp", e),
            }
        }
    }
}

#[test]
fn processes_follow_one_another_under_load_and_nothing_is_lost() {
    let upstream = Upstream::start(|_, _, stream| {
        std::thread::sleep(Duration::from_millis(2));
        write_ok(stream, "x")
    });
    let (base, http, tcp) = (base(), free_port(), free_port());
    let yaml = yaml(http, tcp, upstream.port(), echo_server(), "");
    let [http, tcp]: [SocketAddr; 2] = [http, tcp].map(|port| ([127, 0, 0, 1], port).into());
    let mut current = Running::start(&yaml, 2, base, 0);
    let tally = Arc::new(Tally::default());
    let mut callers: Vec<_> = (0..6)
        .map(|n| {
            let tally = tally.clone();
            std::thread::spawn(move || if n % 2 == 0 { tally.http1(http) } else { tally.tcp(tcp) })
        })
        .collect();
    let theirs = tally.clone();
    callers.push(std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::join!(theirs.http2(http), theirs.http2(http)) });
    }));
    // Fewer workers, whose sockets must not be left alone; more, which bind some of their own.
    for (epoch, workers) in [(1, 1), (2, 3), (3, 2)] {
        let before = (tally.http1.load(SeqCst), tally.http2.load(SeqCst));
        eventually(|| tally.http1.load(SeqCst) > before.0 + 100 && tally.http2.load(SeqCst) > before.1 + 50);
        let next = Running::start(&yaml, workers, base, epoch);
        assert_eq!((next.stat("server.hot_restart_epoch"), next.stat("server.hot_restart_generation")), (epoch, epoch + 1));
        let took = std::mem::replace(&mut current, next).replaced();
        assert!(took < Duration::from_secs(15), "{took:?}");
    }
    tally.stop.store(true, SeqCst);
    callers.into_iter().for_each(|c| c.join().unwrap());
    let (http1, http2, streams) = (tally.http1.load(SeqCst), tally.http2.load(SeqCst), tally.tcp.load(SeqCst));
    assert_eq!(*tally.lost.lock().unwrap(), Vec::<String>::new(), "of {http1} + {http2} requests and {streams} streams");
    assert!(streams > 5, "{streams} streams");
    // Counters of all processes are in the last one.
    let answered = (http1 + http2) as u64;
    eventually(|| current.stat("http.t.downstream_rq_total") >= answered);
    assert_eq!(current.stat("http.t.downstream_rq_total"), answered);
    assert_eq!(current.stat("tcp.t.downstream_cx_total"), streams as u64);
    eventually(|| current.stat("http.t.downstream_cx_active") == 0);
    eventually(|| current.stat("server.parent_connections") == 0);
}

#[test]
fn what_does_not_become_ready_changes_nothing() {
    let upstream = Upstream::ok("x");
    let (base, http, tcp, port) = (base(), free_port(), free_port(), free_port());
    let admin_yaml = format!("admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}");
    let good = yaml(http, tcp, upstream.port(), dead_port(), &admin_yaml);
    let old = Running::start(&good, 2, base, 0);
    // Its clusters are to come from where nobody is, and it has waited 15 seconds for them by default.
    let discovery = "dynamic_resources: {cds_config: {resource_api_version: V3, api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: c}}]}}}";
    let stuck = yaml(http, tcp, upstream.port(), dead_port(), &format!("{admin_yaml}\n{discovery}"));
    let address: SocketAddr = ([127, 0, 0, 1], http).into();
    let served = |ask: &[u8]| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        stream.write_all(ask).unwrap();
        Answer::read(&mut stream)
    };
    for _ in 0..2 {
        let new = Running::try_start(&stuck, 3, base, 1).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        for _ in 0..20 {
            let answer = served(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
            assert_eq!((answer.status, answer.header("connection")), (200, None));
        }
        // Who asks is told about the process that serves.
        let (status, info) = admin(port, "GET", "/server_info");
        assert!(status == 200 && info.contains("\"restart_epoch\": 0") && info.contains("LIVE"), "{info}");
        drop(new);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(served(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").status, 200);
    }
    assert_eq!(old.stat("http.t.downstream_cx_total"), 42);
    let mut new = None;
    // The place of the one that was dropped is free once its tasks have ended.
    eventually(|| {
        new = Running::try_start(&good, 1, base, 1).ok();
        new.is_some()
    });
    let new = new.unwrap();
    eventually(|| admin(port, "GET", "/server_info").1.contains("\"restart_epoch\": 1"));
    assert_eq!(admin(port, "GET", "/ready").0, 200);
    assert_eq!(admin(port, "GET", "/hot_restart_version"), (200, restart::version()));
    old.replaced();
    assert_eq!(served(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").status, 200);
    eventually(|| new.stat("http.t.downstream_cx_total") == 43);
}

#[test]
fn only_the_right_process_takes_over() {
    let upstream = Upstream::ok("x");
    let (base, http, tcp) = (base(), free_port(), free_port());
    let yaml = yaml(http, tcp, upstream.port(), dead_port(), "");
    let why = |epoch| Running::try_start(&yaml, 1, base, epoch).err().map(|e| format!("{e:#}")).unwrap_or_default();
    assert!(why(1).contains("no process to take over from") && why(1).contains("--base-id"), "{}", why(1));
    let old = Running::start(&yaml, 1, base, 0);
    assert!(why(0).contains("--base-id"), "{}", why(0));
    assert!(why(2).contains("no process to take over from"), "{}", why(2));
    let new = Running::start(&yaml, 1, base, 1);
    // The old one is on its way out.
    old.replaced();
    assert!(why(1).contains("cannot be had"), "{}", why(1));
    drop(new);
}

/// Says a good greeting to the process of epoch 0; its answer, or nothing when it hangs up.
fn greet(base_id: u32) -> String {
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketType};
    let name = format!("lateen-test_{base_id}_0");
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, Some(WAIT)).unwrap();
    rustix::net::connect(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap()).unwrap();
    let mut answer = [0; 1024];
    // It may hang up before it was greeted.
    let said = rustix::net::send(&socket, br#"{"hello":{"version":1,"epoch":1}}"#, SendFlags::NOSIGNAL);
    match said.and_then(|_| rustix::net::recv(&socket, &mut answer, RecvFlags::empty())) {
        Ok((_, size)) => String::from_utf8_lossy(&answer[..size]).into_owned(),
        Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => String::new(),
        Err(e) => panic!("{e}"),
    }
}

const STRANGER_ASKS: &str = "LATEEN_TEST_STRANGER_ASKS";

#[test]
#[ignore = "run as another user by the test below"]
fn a_stranger_asks() {
    let base: u32 = std::env::var(STRANGER_ASKS).expect("a base id").parse().unwrap();
    println!("answer<{}>", greet(base));
    let own = yaml(free_port(), free_port(), dead_port(), dead_port(), "");
    println!("start<{}>", Running::try_start(&own, 1, base, 1).err().map(|e| format!("{e:#}")).unwrap_or_default());
}

#[test]
fn a_process_of_another_user_takes_nothing_over() {
    use std::os::unix::process::CommandExt;
    const STRANGER: u32 = 65_534;
    let ours = nix::unistd::geteuid();
    if !ours.is_root() {
        return println!("not run: only root can become another user");
    }
    let upstream = Upstream::ok("x");
    let (base, http, tcp) = (base(), free_port(), free_port());
    let yaml = yaml(http, tcp, upstream.port(), dead_port(), "");
    let old = Running::start(&yaml, 1, base, 0);
    let mut stranger = std::process::Command::new("/proc/self/exe");
    stranger.args(["--exact", "hot_restart::a_stranger_asks", "--ignored", "--nocapture"]);
    // Its own folder may be closed to the stranger; the file itself is not.
    let output = stranger.env(STRANGER_ASKS, base.to_string()).current_dir("/").uid(STRANGER).gid(STRANGER).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("answer<>"), "{text}");
    // Nor does a process give itself to a parent of another user.
    assert!(text.contains(&format!("it belongs to user {ours}, not to {STRANGER}")), "{text}");
    // The same words by the right user are welcome, and the stranger is in nobody's way.
    assert!(greet(base).contains("welcome"));
    let mut new = None;
    eventually(|| {
        new = Running::try_start(&yaml, 1, base, 1).ok();
        new.is_some()
    });
    let new = new.unwrap();
    old.replaced();
    let mut stream = TcpStream::connect(("127.0.0.1", http)).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    assert_eq!(Answer::read(&mut stream).status, 200);
    drop(new);
}

#[test]
fn streams_that_do_not_end_are_cut_when_the_time_is_over() {
    let (base, http, tcp) = (base(), free_port(), free_port());
    let yaml = yaml(http, tcp, dead_port(), echo_server(), "");
    let old = Running::start(&yaml, 1, base, 0);
    let mut stream = TcpStream::connect(("127.0.0.1", tcp)).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    let echoes = |stream: &mut TcpStream| stream.write_all(b"x").is_ok() && matches!(stream.read(&mut [0; 1]), Ok(1));
    assert!(echoes(&mut stream));
    let process = old.process.as_ref().unwrap();
    let place = place(base, 1);
    let succeeds =
        restart::Options { place, bound: None, parent_shutdown: Duration::from_secs(2), parent_optional: false, skip_figures: false };
    let (runtime, new) = whole_process(&yaml, |options| options.restart = Some(succeeds));
    assert!(runtime.block_on(new.ready(WAIT)));
    std::thread::sleep(Duration::from_millis(500));
    assert!(echoes(&mut stream) && process.main.connections() == 1);
    let took = old.replaced();
    assert!(took > Duration::from_millis(500) && took < Duration::from_secs(10), "{took:?}");
    assert!(!echoes(&mut stream));
    assert!(echoes(&mut TcpStream::connect(("127.0.0.1", tcp)).unwrap()));
    runtime.shutdown_background();
}

#[test]
fn a_process_is_ready_only_when_its_listeners_have_their_ports() {
    let upstream = Upstream::ok("x");
    let (base, http, tcp) = (base(), free_port(), free_port());
    let taken = TcpListener::bind(("127.0.0.1", http)).unwrap();
    let running = Running::try_start(&yaml(http, tcp, upstream.port(), dead_port(), ""), 2, base, 0).unwrap();
    let ready = |limit| running.runtime.as_ref().unwrap().block_on(running.process.as_ref().unwrap().ready(limit));
    assert!(!ready(Duration::from_millis(300)));
    let waiting = running.process.as_ref().unwrap().main.waiting().join(", ");
    assert!(waiting.contains(&format!("listener l cannot listen on 127.0.0.1:{http}")), "{waiting}");
    drop(taken);
    assert!(ready(WAIT));
    let mut stream = TcpStream::connect(("127.0.0.1", http)).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    assert_eq!(Answer::read(&mut stream).status, 200);
}

#[test]
fn a_process_that_dies_while_its_successor_prepares_leaves_its_sockets_to_it() {
    let (base, http, tcp) = (base(), free_port(), free_port());
    let upstream = Upstream::ok("x");
    let good = yaml(http, tcp, upstream.port(), dead_port(), "");
    let old = Running::start(&good, 2, base, 0);
    let waits = waits_for_clusters(2);
    let new = Running::try_start(&yaml(http, tcp, upstream.port(), dead_port(), &waits), 1, base, 1).unwrap();
    drop(old);
    std::thread::sleep(Duration::from_millis(300));
    // Nobody accepts, and nobody is turned away.
    let mut waiting = TcpStream::connect(("127.0.0.1", http)).expect("the queue is open");
    waiting.set_read_timeout(Some(WAIT)).unwrap();
    waiting.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    assert_eq!(Answer::read(&mut waiting).status, 200);
    assert!(new.runtime.as_ref().unwrap().block_on(new.process.as_ref().unwrap().ready(WAIT)));
}

#[test]
fn a_process_that_is_slow_to_answer_is_told_to_leave_all_the_same() {
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketType, sockopt};
    let (base, http, tcp) = (base(), free_port(), free_port());
    // A parent of few words, by hand.
    let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    rustix::net::bind(&listener, &SocketAddrUnix::new_abstract_name(format!("lateen-test_{base}_0").as_bytes()).unwrap()).unwrap();
    rustix::net::listen(&listener, 1).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let parent = std::thread::spawn(move || {
        let socket = rustix::net::accept(&listener).unwrap();
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(WAIT)).unwrap();
        let next = || {
            let mut bytes = [0; 1024];
            let (_, size) = rustix::net::recv(&socket, &mut bytes, RecvFlags::empty()).unwrap();
            String::from_utf8_lossy(&bytes[..size]).into_owned()
        };
        let say = |text: &str| rustix::net::send(&socket, text.as_bytes(), SendFlags::NOSIGNAL).map(drop);
        assert!(next().contains("hello"));
        say(r#"{"welcome":{"epoch":0,"generation":0,"first_started_ms":0}}"#).unwrap();
        assert!(next().contains("sockets"));
        say(r#"{"sockets":{"sockets":[],"more":false}}"#).unwrap();
        let mut asked = 0;
        // It asks for figures now and then; the answers come much too late.
        while next().contains("figures") {
            asked += 1;
            if asked == 1 {
                std::thread::sleep(Duration::from_secs(11));
                tell.send(()).unwrap();
            }
        }
        let figures = r#"{"figures":{"counters":[],"series":[],"gauges":[],"connections":0,"more":false,"last":LAST}}"#;
        (0..asked).for_each(|_| say(&figures.replace("LAST", "false")).unwrap());
        say(r#""leaving""#).unwrap();
        assert!(next().contains("figures"), "what was asked before is not taken for what is asked now");
        say(&figures.replace("LAST", "true")).unwrap();
        asked
    });
    let waits = waits_for_clusters(15);
    let new = Running::try_start(&yaml(http, tcp, dead_port(), dead_port(), &waits), 1, base, 1).unwrap();
    told.recv_timeout(WAIT * 4).unwrap();
    assert!(new.runtime.as_ref().unwrap().block_on(new.process.as_ref().unwrap().ready(WAIT * 2)));
    assert!(parent.join().unwrap() > 1);
}

#[test]
fn many_sockets_go_over_in_several_messages_and_the_admin_socket_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let base = base();
    let path = folder.path().join("admin.sock");
    let ports: Vec<u16> = {
        let taken: Vec<TcpListener> = (0..50).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        taken.iter().map(|l| l.local_addr().unwrap().port()).collect()
    };
    let listener = |port: &u16| {
        let filter = "{name: e, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: echo}}";
        format!(
            "  - {{name: l{port}, address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, filter_chains: [{{filters: [{filter}]}}]}}\n"
        )
    };
    let listeners: String = ports.iter().map(listener).collect();
    let echo = cluster("echo", &[echo_server()], "").lines().map(|l| format!("  {l}\n")).collect::<String>();
    let yaml = format!(
        "admin: {{address: {{pipe: {{path: {}}}}}}}\nstatic_resources:\n  listeners:\n{listeners}  clusters:\n{echo}",
        path.display()
    );
    let epoch = || {
        let mut stream = std::os::unix::net::UnixStream::connect(&path).ok()?;
        stream.write_all(b"GET /server_info HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        text.split("\"restart_epoch\": ").nth(1)?.split([',', '\n']).next()?.parse::<u64>().ok()
    };
    let old = Running::start(&yaml, 3, base, 0);
    eventually(|| epoch() == Some(0));
    // Connections that are open, and one in each queue or with a worker.
    let mut streams: Vec<TcpStream> = ports.iter().map(|port| TcpStream::connect(("127.0.0.1", *port)).unwrap()).collect();
    let new = Running::start(&yaml, 1, base, 1);
    eventually(|| epoch() == Some(1));
    for port in &ports {
        streams.push(TcpStream::connect(("127.0.0.1", *port)).unwrap());
    }
    for stream in &mut streams {
        stream.set_read_timeout(Some(WAIT)).unwrap();
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0; 1]).unwrap();
    }
    drop(streams);
    old.replaced();
    // What the old process had is the new one's: all of it, by one worker.
    for port in &ports {
        for _ in 0..6 {
            let mut stream = TcpStream::connect(("127.0.0.1", *port)).unwrap();
            stream.set_read_timeout(Some(WAIT)).unwrap();
            stream.write_all(b"y").unwrap();
            stream.read_exact(&mut [0; 1]).unwrap();
        }
    }
    drop(new);
}

#[test]
fn sockets_that_are_taken_over_have_the_options_of_their_own_address() {
    let (base, own, more) = (base(), free_port(), free_port());
    let yaml = |options: &str| {
        let address = |port: u16| format!("{{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}");
        let places = format!("address: {}, additional_addresses: [{{address: {}{options}}}]", address(own), address(more));
        let filter = "{name: d, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config}}";
        format!("static_resources:\n  listeners:\n  - {{name: l, {places}, filter_chains: [{{filters: [{filter}]}}]}}\n")
    };
    let old = Running::start(&yaml(""), 1, base, 0);
    // TCP_MAXSEG
    let _new = Running::start(&yaml(", socket_options: {socket_options: [{level: 6, name: 2, int_value: 600}]}"), 1, base, 1);
    old.replaced();
    let size = |port: u16| socket2::SockRef::from(&TcpStream::connect(("127.0.0.1", port)).unwrap()).tcp_mss().unwrap();
    let sizes = (size(own), size(more));
    assert!(sizes.0 > 1000 && sizes.1 <= 600, "{sizes:?}");
}
