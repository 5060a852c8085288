//! What the clients talk to: two proxies, the sample service, a gRPC server in Python.
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use serde_json::{Value, json};

use crate::python;

const STARTS_WITHIN: Duration = Duration::from_secs(30);
/// A client that takes longer than this for a thousand requests hangs.
const PER_THOUSAND: Duration = Duration::from_secs(20);

/// How a client reaches the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Plain,
    /// The client and the proxy show each other certificates.
    Mutual,
    /// In the clear to one proxy, and from there over HTTP/2 and mutual TLS to another.
    Pair,
}

impl Way {
    pub(crate) const ALL: [Self; 3] = [Self::Plain, Self::Mutual, Self::Pair];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Mutual => "mutual_tls",
            Self::Pair => "pair",
        }
    }
}

/// A process that ends with the lab.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) struct Lab {
    folder: tempfile::TempDir,
    ports: Ports,
    running: Vec<Running>,
}

#[derive(Clone, Copy, Default)]
struct Ports {
    app: u16,
    grpc: u16,
    plain: u16,
    mutual: u16,
    pair: u16,
    far: u16,
    near_admin: u16,
    far_admin: u16,
}

impl Lab {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        certificates(folder.path())?;
        let mut held = Vec::new();
        let mut port = || -> anyhow::Result<u16> {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let port = listener.local_addr()?.port();
            held.push(listener);
            Ok(port)
        };
        let ports = Ports {
            app: port()?,
            grpc: port()?,
            plain: port()?,
            mutual: port()?,
            pair: port()?,
            far: port()?,
            near_admin: port()?,
            far_admin: port()?,
        };
        drop(held);
        let mut lab = Self { ports, running: Vec::new(), folder };
        lab.run(
            "app",
            Command::new(env!("CARGO_BIN_EXE_lateen")).args(["app", "--address", "127.0.0.1", "--port"]).arg(ports.app.to_string()),
        )?;
        if let Some(server) = python::server(lab.path(), ports.grpc)? {
            lab.run("grpc", &mut { server })?;
        }
        for (name, bootstrap) in [("far", lab.far()), ("near", lab.near())] {
            let file = lab.file(&format!("{name}.json"));
            std::fs::write(&file, serde_json::to_vec_pretty(&bootstrap)?)?;
            let mut command = Command::new(env!("CARGO_BIN_EXE_lateen"));
            command.args(["proxy", "--concurrency", "1", "--drain-time-s", "0", "-c"]).arg(file);
            lab.run(name, &mut command)?;
        }
        for port in [ports.app, ports.plain, ports.mutual, ports.pair, ports.far] {
            lab.answers(port)?;
        }
        if python::installed().is_some() {
            lab.answers(ports.grpc)?;
        }
        Ok(lab)
    }

    fn run(&mut self, name: &str, command: &mut Command) -> anyhow::Result<()> {
        let messages = File::create(self.file(&format!("{name}.messages")))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(messages);
        self.running.push(Running(command.spawn().with_context(|| format!("{name} does not start"))?));
        Ok(())
    }

    fn answers(&self, port: u16) -> anyhow::Result<()> {
        let since = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            ensure!(since.elapsed() < STARTS_WITHIN, "nothing listens on {port}:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// What the proxies complained about.
    pub(crate) fn said(&self) -> String {
        let of = |name: &str| std::fs::read_to_string(self.file(&format!("{name}.messages"))).unwrap_or_default();
        ["near", "far", "grpc"].map(of).concat()
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn port(&self, way: Way) -> u16 {
        match way {
            Way::Plain => self.ports.plain,
            Way::Mutual => self.ports.mutual,
            Way::Pair => self.ports.pair,
        }
    }

    pub(crate) fn url(&self, way: Way) -> String {
        let scheme = if way == Way::Mutual { "https" } else { "http" };
        format!("{scheme}://localhost:{}", self.port(way))
    }

    /// How many requests a client is to send.
    pub(crate) fn requests(&self) -> usize {
        std::env::var("LATEEN_CLIENT_REQUESTS").ok().and_then(|n| n.parse().ok()).unwrap_or(2000)
    }

    /// Runs a client to its end, within a time that goes by how much it has to do; its output and whether it succeeded.
    pub(crate) fn client(&self, command: &mut Command) -> anyhow::Result<(String, bool)> {
        let limit = Duration::from_secs(60) + PER_THOUSAND.mul_f64(self.requests() as f64 / 1000.0);
        let file = self.file("client.out");
        let out = File::create(&file)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let mut child = Running(command.spawn().with_context(|| format!("{command:?}"))?);
        let since = Instant::now();
        let status = loop {
            match child.0.try_wait()? {
                Some(status) => break status,
                None if since.elapsed() > limit => {
                    bail!("{command:?} takes longer than {limit:?}:\n{}", std::fs::read_to_string(&file).unwrap_or_default())
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        Ok((std::fs::read_to_string(&file)?, status.success()))
    }

    /// What the proxies counted of answers that are errors, and of resets.
    pub(crate) fn saw_no_errors(&self) -> anyhow::Result<()> {
        for port in [self.ports.near_admin, self.ports.far_admin] {
            let stats = get(port, "/stats?filter=downstream_rq_5xx|upstream_cx_protocol_error|panics")?;
            let (_, stats) = stats.split_once("\r\n\r\n").context("no statistics")?;
            let bad: Vec<&str> = stats.lines().filter(|l| l.contains(": ") && !l.ends_with(": 0")).collect();
            ensure!(bad.is_empty(), "{bad:?}");
        }
        Ok(())
    }

    fn near(&self) -> Value {
        let ports = self.ports;
        let (secured, plain) = (self.server_tls(), None);
        let own = self.routes(None);
        json!({
            "admin": {"address": address(ports.near_admin)},
            "static_resources": {
                "listeners": [
                    listener("plain", ports.plain, &own, plain.clone()),
                    listener("mutual", ports.mutual, &own, Some(secured)),
                    listener("pair", ports.pair, &self.routes(Some("far")), plain),
                ],
                "clusters": [
                    cluster("app", ports.app, false),
                    cluster("grpc", ports.grpc, true),
                    with(cluster("far", ports.far, true), "transport_socket", self.client_tls()),
                ],
            },
        })
    }

    fn far(&self) -> Value {
        let ports = self.ports;
        json!({
            "admin": {"address": address(ports.far_admin)},
            "static_resources": {
                "listeners": [listener("far", ports.far, &self.routes(None), Some(self.server_tls()))],
                "clusters": [cluster("app", ports.app, false), cluster("grpc", ports.grpc, true)],
            },
        })
    }

    /// gRPC to its server and all else to the service, or everything to one cluster.
    fn routes(&self, all: Option<&str>) -> Value {
        let to = |cluster: &str| json!({"cluster": cluster, "timeout": "0s"});
        match all {
            Some(cluster) => json!([{"match": {"prefix": "/"}, "route": to(cluster)}]),
            None => json!([{"match": {"prefix": "/", "grpc": {}}, "route": to("grpc")}, {"match": {"prefix": "/"}, "route": to("app")}]),
        }
    }

    fn shown(&self, name: &str) -> Value {
        let file = |end: &str| json!({"filename": self.file(&format!("{name}.{end}"))});
        json!({
            "tls_certificates": [{"certificate_chain": file("pem"), "private_key": file("key")}],
            "validation_context": {"trusted_ca": {"filename": self.file("ca.pem")}},
            "alpn_protocols": ["h2", "http/1.1"],
        })
    }

    fn server_tls(&self) -> Value {
        let kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
        let config = json!({"@type": kind, "require_client_certificate": true, "common_tls_context": self.shown("server")});
        json!({"name": "tls", "typed_config": config})
    }

    fn client_tls(&self) -> Value {
        let kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
        let mut shown = self.shown("client");
        shown["alpn_protocols"] = json!(["h2"]);
        json!({"name": "tls", "typed_config": {"@type": kind, "sni": "localhost", "common_tls_context": shown}})
    }
}

fn address(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

fn with(mut value: Value, field: &str, content: Value) -> Value {
    value[field] = content;
    value
}

fn listener(name: &str, port: u16, routes: &Value, tls: Option<Value>) -> Value {
    let typed = |kind: &str| format!("type.googleapis.com/envoy.extensions.filters.{kind}");
    let router = json!({"name": "router", "typed_config": {"@type": typed("http.router.v3.Router")}});
    let manager = json!({
        "@type": typed("network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": name,
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "http2_protocol_options": {"allow_connect": true},
        "stream_idle_timeout": "60s",
        "http_filters": [router],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
    });
    let mut chain = json!({"filters": [{"name": "hcm", "typed_config": manager}]});
    if let Some(tls) = tls {
        chain["transport_socket"] = tls;
    }
    json!({"name": name, "address": address(port), "filter_chains": [chain]})
}

fn cluster(name: &str, port: u16, http2: bool) -> Value {
    let endpoint = json!({"endpoint": {"address": address(port)}});
    let mut value = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    });
    if http2 {
        let kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        let options = json!({"@type": format!("type.googleapis.com/{kind}"), "explicit_http_config": {"http2_protocol_options": {}}});
        value["typed_extension_protocol_options"] = json!({kind: options});
    }
    value
}

/// One authority, and a certificate for each side.
fn certificates(folder: &Path) -> anyhow::Result<()> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(folder.join("ca.pem"), params.self_signed(&key)?.pem())?;
    let issuer = Issuer::new(params, key);
    for name in ["server", "client"] {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::DnsName("localhost".try_into()?)];
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        std::fs::write(folder.join(format!("{name}.pem")), params.signed_by(&key, &issuer)?.pem())?;
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}

fn get(port: u16, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut all = String::new();
    stream.read_to_string(&mut all)?;
    Ok(all)
}
