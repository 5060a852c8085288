//! Configuration that is broken, and control planes that are: what was good serves on, and a ready process stays ready.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use lateen_proxy::main_thread::Process;

use crate::support::*;

struct Running {
    runtime: tokio::runtime::Runtime,
    process: Process,
}

fn run(yaml: &str) -> Running {
    let (runtime, process) = whole_process(yaml, |_| {});
    Running { runtime, process }
}

/// A listener that answers by itself, as one resource.
fn listener(name: &str, port: u16, status: u16) -> String {
    format!(
        r#"{{"@type": "type.googleapis.com/envoy.config.listener.v3.Listener", "name": "{name}",
"address": {{"socket_address": {{"address": "127.0.0.1", "port_value": {port}}}}},
"filter_chains": [{{"filters": [{{"name": "h", "typed_config": {{
  "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", "stat_prefix": "t",
  "http_filters": [{{"name": "r", "typed_config": {{"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}}}],
  "route_config": {{"name": "r", "virtual_hosts": [{{"name": "v", "domains": ["*"], "routes": [
    {{"match": {{"prefix": "/"}}, "direct_response": {{"status": {status}}}}}]}}]}}}}}}]}}]}}"#
    )
}

fn replace(path: &Path, resources: &str) {
    let draft = path.with_extension("draft");
    std::fs::write(&draft, format!(r#"{{"version_info": "1", "resources": [{resources}]}}"#)).unwrap();
    std::fs::rename(draft, path).unwrap();
}

fn status(port: u16) -> Option<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").ok()?;
    Answer::try_read(&mut stream).map(|a| a.status)
}

#[test]
fn broken_resources_leave_the_good_ones_and_readiness_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (file, port, other, admin_port) = (folder.path().join("listeners.json"), free_port(), free_port(), free_port());
    replace(&file, &listener("l", port, 201));
    let yaml = format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin_port}}}}}}}\ndynamic_resources: {{lds_config: {{resource_api_version: V3, path_config_source: {{path: {}}}}}}}\n",
        file.display()
    );
    let running = run(&yaml);
    assert!(running.runtime.block_on(running.process.ready(WAIT)));
    assert_eq!(status(port), Some(201));
    let good = listener("l", port, 202);
    let deep = format!("{}0{}", r#"{"a":"#.repeat(100_000), "}".repeat(100_000));
    let broken = [
        ("no JSON at all", "{{{".to_owned()),
        ("nested without end", deep),
        ("an unknown type", good.replace("listener.v3.Listener", "listener.v3.Loudspeaker")),
        ("an unknown field", good.replacen("\"name\": \"l\"", "\"name\": \"l\", \"nam\": 1", 1)),
        ("the wrong resource", good.replace("envoy.config.listener.v3.Listener", "envoy.config.cluster.v3.Cluster")),
        ("an unknown filter", good.replace("filters.http.router.v3.Router", "filters.http.rooter.v3.Rooter")),
        (
            "no chain",
            format!(
                r#"{{"@type": "type.googleapis.com/envoy.config.listener.v3.Listener", "name": "l", "address": {{"socket_address": {{"address": "127.0.0.1", "port_value": {port}}}}}}}"#
            ),
        ),
        ("a status that is none", good.replace("\"status\": 202", "\"status\": 99999")),
        ("the same name twice", format!("{good}, {}", listener("l", other, 203))),
    ];
    for (what, resources) in &broken {
        replace(&file, resources);
        // Files are looked at once a second.
        std::thread::sleep(Duration::from_millis(1300));
        let now = status(port);
        // Of two with one name the first may be taken.
        assert!(now == Some(201) || (*what == "the same name twice" && now == Some(202)), "{what}: {now:?}");
        assert_eq!(status(other), None, "{what}");
        assert_eq!(admin(admin_port, "GET", "/ready"), (200, "LIVE\n".to_owned()), "{what}");
    }
    let dump = admin(admin_port, "GET", "/config_dump?resource=dynamic_listeners").1;
    assert!(dump.contains("error_state") || dump.contains("active_state"), "{dump}");
    replace(&file, &format!("{good}, {}", listener("m", other, 203)));
    eventually(|| status(port) == Some(202) && status(other) == Some(203));
}

/// Control planes that are none: each connection is treated by `serve`.
fn control_plane(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, count, serve) = (socket.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)), Arc::new(serve));
    let theirs = count.clone();
    std::thread::spawn(move || {
        for stream in socket.incoming().flatten() {
            theirs.fetch_add(1, SeqCst);
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream));
        }
    });
    (address, count)
}

#[test]
fn a_control_plane_that_is_none_disturbs_nobody() {
    let upstream = Upstream::ok("x");
    type Serve = Box<dyn Fn(TcpStream) + Send + Sync>;
    let kinds: [(&str, Serve); 4] = [
        ("hangs up", Box::new(drop)),
        ("says nothing", Box::new(|mut stream: TcpStream| drop(stream.read_to_end(&mut Vec::new())))),
        (
            "speaks another language",
            Box::new(|mut stream: TcpStream| drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nno\n"))),
        ),
        ("talks without end", Box::new(|mut stream: TcpStream| while stream.write_all(&[0x5a; 16_384]).is_ok() {})),
    ];
    for (what, serve) in kinds {
        let (address, connections) = control_plane(serve);
        let port = free_port();
        let xds = cluster(
            "xds",
            &[address.port()],
            "typed_extension_protocol_options:\n  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n    \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n    explicit_http_config: {http2_protocol_options: {}}",
        );
        let yaml = Config::to(&[upstream.port()]).cluster(xds).yaml().replace("port_value: 0", &format!("port_value: {port}"));
        let dynamic = "dynamic_resources: {ads_config: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: xds}}]}, cds_config: {ads: {}, resource_api_version: V3}}";
        let running = run(&format!("{dynamic}\n{yaml}"));
        eventually(|| status(port) == Some(200));
        eventually(|| connections.load(SeqCst) > 0);
        for _ in 0..50 {
            assert_eq!(status(port), Some(200), "{what}");
            std::thread::sleep(Duration::from_millis(10));
        }
        // It is asked again, and not all the time.
        assert!(connections.load(SeqCst) < 20, "{what}: {} connections within half a second", connections.load(SeqCst));
        assert!(running.process.main.waiting().iter().any(|w| w.contains("clusters from")), "{what}");
    }
}
