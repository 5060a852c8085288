//! The whole control plane in one process: files in, resources out, over real sockets.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use lateen_core::spiffe::SpiffeId;
use lateen_identity::CertificateAuthority;
use lateen_identity::authenticate::{Authenticators, CertificateAuthenticator, JwtAuthenticator, JwtConfig};
use lateen_identity::tls::{ClientParams, Verification};
use lateen_identity::token::TokenIssuer;
use lateen_model::Limits;
use lateen_proto::envoy::config::core::v3::Node;
use lateen_proto::envoy::config::route::v3::RouteConfiguration;
use lateen_xds::client::{Client, Connector, Handler, Mode, Options, Rejected, Subscriptions};
use lateen_xds::types::{CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET};
use lateen_xds::{ConnectionEvent, Resource, backoff::Backoff};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::config::{Config, Debounce};
use crate::plane::{Addresses, Handle, Identity, build, shutdown_signal};
use crate::source::{Files, Given, Source, State};

const WAIT: Duration = Duration::from_secs(15);

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: books}
spec: {clusterIP: 10.96.0.1, selector: {app: reviews}, ports: [{port: 80, name: http, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: books}
spec:
  host: reviews
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
";

fn virtual_service(subset: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews, namespace: books}}
spec:
  hosts: [reviews]
  http: [{{route: [{{destination: {{host: reviews, subset: {subset}}}}}]}}]
"
    )
}

fn pod(name: &str, ip: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: books, labels: {{app: reviews, version: v1}}}}
spec: {{serviceAccountName: reviews, containers: [{{name: app, image: app}}]}}
status: {{phase: Running, podIP: {ip}, conditions: [{{type: Ready, status: 'True'}}]}}
"
    )
}

fn node(pod: &str, ip: &str) -> Node {
    Node { id: format!("sidecar~{ip}~{pod}.books~books.svc.cluster.local"), user_agent_name: "lateen".into(), ..Default::default() }
}

/// A running control plane.
struct Plane {
    addresses: Addresses,
    handle: Handle,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Plane {
    async fn start(config: Config, sources: Vec<Box<dyn Source>>, identity: Option<Identity>) -> Self {
        let plane = build(config, sources, identity).await.unwrap();
        let (addresses, handle) = (plane.addresses(), plane.handle());
        let (stop, stopped) = shutdown_signal();
        Self { addresses, handle, stop, task: tokio::spawn(plane.run(stopped)) }
    }

    async fn over(folder: &Path) -> Self {
        Self::start(config(), vec![files(folder)], None).await
    }

    async fn stop(self) {
        let _ = self.stop.send(());
        timeout(WAIT, self.task).await.expect("the control plane ends").unwrap();
    }

    async fn get(&self, path: &str) -> (u16, String) {
        get(self.addresses.debug.unwrap(), path).await
    }

    async fn json(&self, path: &str) -> Value {
        let (status, body) = self.get(path).await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    /// Waits until a page says something.
    async fn until(&self, path: &str, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + WAIT;
        loop {
            let (status, body) = self.get(path).await;
            let json: Value = serde_json::from_str(&body).unwrap_or_default();
            if status == 200 && condition(&json) {
                return json;
            }
            assert!(Instant::now() < deadline, "{what}: {status} {body}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn get(address: std::net::SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(WAIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn config() -> Config {
    Config { debounce: Debounce { quiet: Duration::from_millis(20), max: Duration::from_secs(1) }, ..Config::on_loopback() }
}

fn files(folder: &Path) -> Box<dyn Source> {
    Box::new(Files::new([folder.to_owned()], "default", Limits::default()))
}

fn folder(list: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    list.iter().for_each(|(name, text)| std::fs::write(path.join(name), text).unwrap());
    (folder, path)
}

type Held = BTreeMap<(String, String), Resource>;

/// A proxy that accepts everything except names that start with `refuse`.
#[derive(Clone)]
struct Proxy {
    held: watch::Sender<Held>,
    log: Arc<Mutex<Vec<String>>>,
    refuse: &'static str,
}

impl Proxy {
    fn start(mode: Mode, node: Node, connector: Connector, refuse: &'static str) -> (Self, Subscriptions, JoinHandle<()>) {
        let backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(50));
        Self::with(Options { mode, backoff, ..Options::new(node, "istiod.istio-system.svc") }, connector, refuse)
    }

    fn with(options: Options, connector: Connector, refuse: &'static str) -> (Self, Subscriptions, JoinHandle<()>) {
        let proxy = Self { held: watch::Sender::new(Held::new()), log: Arc::default(), refuse };
        let client = Client::new(options, connector);
        let subscriptions = client.subscriptions();
        let mut handler = proxy.clone();
        (proxy, subscriptions, tokio::spawn(async move { client.run(&mut handler).await }))
    }

    async fn until(&self, what: &str, condition: impl Fn(&Held) -> bool) {
        let mut seen = self.held.subscribe();
        // The result holds a read lock, and a second one behind a waiting writer would never come.
        let arrived = timeout(WAIT, seen.wait_for(|held| condition(held))).await.is_ok();
        let names: Vec<String> = self.held.borrow().keys().map(|(_, n)| n.clone()).collect();
        assert!(arrived, "{what}: {names:?}, log {:?}", self.logged());
    }

    async fn until_logged(&self, text: &str) {
        let deadline = Instant::now() + WAIT;
        while !self.logged().iter().any(|line| line.contains(text)) {
            assert!(Instant::now() < deadline, "no `{text}` in {:?}", self.logged());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn logged(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

impl Handler for Proxy {
    fn apply(&mut self, type_url: &str, updates: Vec<Resource>, removed: Vec<String>) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        self.held.send_modify(|held| {
            for name in removed {
                self.log.lock().unwrap().push(format!("removed {name}"));
                held.remove(&(type_url.to_owned(), name));
            }
            for update in updates {
                self.log.lock().unwrap().push(format!("got {}", update.name));
                if !self.refuse.is_empty() && update.name.starts_with(self.refuse) {
                    rejected.push(Rejected { name: update.name, reason: "not to my taste".into() });
                } else {
                    held.insert((type_url.to_owned(), update.name.clone()), update);
                }
            }
        });
        rejected
    }

    fn connection(&mut self, event: ConnectionEvent) {
        self.log.lock().unwrap().push(format!("{event:?}"));
    }
}

fn has(held: &Held, type_url: &str, name: &str) -> bool {
    held.contains_key(&(type_url.to_owned(), name.to_owned()))
}

/// The clusters that the route table `80` sends requests for reviews to.
fn route_to(held: &Held, cluster: &str) -> bool {
    let Some(resource) = held.get(&(ROUTE.to_owned(), "80".to_owned())) else { return false };
    let table: RouteConfiguration = lateen_proto::any::open(&resource.body).unwrap();
    let host = table.virtual_hosts.iter().find(|h| h.name.starts_with("reviews.books"));
    host.is_some_and(|h| format!("{:?}", h.routes).contains(&format!("\"{cluster}\"")))
}

const V1: &str = "outbound|80|v1|reviews.books.svc.cluster.local";
const V2: &str = "outbound|80|v2|reviews.books.svc.cluster.local";
const PLAIN: &str = "outbound|80||reviews.books.svc.cluster.local";

fn subscribe_all(subscriptions: &Subscriptions) {
    subscriptions.wildcard(CLUSTER);
    subscriptions.wildcard(LISTENER);
    subscriptions.subscribe(ROUTE, ["80".to_owned()]);
    subscriptions.subscribe(ENDPOINT, [PLAIN.to_owned(), V1.to_owned()]);
}

/// Whether all that [`subscribe_all`] asks for has come, so that what comes next is a change.
fn is_complete(held: &Held) -> bool {
    let endpoints = has(held, ENDPOINT, PLAIN) && has(held, ENDPOINT, V1);
    endpoints && route_to(held, V1) && has(held, LISTENER, "virtualInbound") && has(held, CLUSTER, PLAIN)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_rule_changes_the_route_and_nothing_else_is_sent() {
    for mode in [Mode::Delta, Mode::Sotw] {
        let (_keep, path) = folder(&[("mesh.yaml", SERVICE), ("rule.yaml", &virtual_service("v1"))]);
        let plane = Plane::over(&path).await;
        let connector = Connector::tcp(plane.addresses.xds_plain.unwrap().to_string());
        let (proxy, subscriptions, task) = Proxy::start(mode, node("a", "10.0.0.1"), connector, "");
        subscribe_all(&subscriptions);
        proxy.until("the first world", |h| is_complete(h) && has(h, CLUSTER, V2)).await;
        let before = proxy.logged().len();
        let changed = Instant::now();
        std::fs::write(path.join("rule.yaml"), virtual_service("v2")).unwrap();
        proxy.until("the changed route", |h| route_to(h, V2)).await;
        // Milliseconds in truth; the machine may be busy.
        assert!(changed.elapsed() < Duration::from_secs(3), "{:?}", changed.elapsed());
        assert_eq!(&proxy.logged()[before..], ["got 80"]);
        task.abort();
        plane.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_takes_nothing_away_and_is_reported() {
    let (_keep, path) = folder(&[("mesh.yaml", SERVICE), ("rule.yaml", &virtual_service("v1"))]);
    let plane = Plane::over(&path).await;
    let connector = Connector::tcp(plane.addresses.xds_plain.unwrap().to_string());
    let (proxy, subscriptions, task) = Proxy::start(Mode::Delta, node("a", "10.0.0.1"), connector, "");
    subscribe_all(&subscriptions);
    proxy.until("the first world", is_complete).await;
    let before = proxy.logged().len();
    std::fs::write(path.join("rule.yaml"), "apiVersion: networking.istio.io/v1\nkind: [VirtualService\n").unwrap();
    let page = plane.until("/debug/diagnostics", "the error", |j| j["errors"].as_u64() > Some(0)).await;
    let error = &page["diagnostics"][0];
    assert!(error["file"].as_str().unwrap().ends_with("rule.yaml") && error["line"].as_u64() > Some(0), "{error}");
    assert!(route_to(&proxy.held.borrow(), V1));
    // Another file still takes effect.
    std::fs::write(path.join("more.yaml"), SERVICE.replace("reviews", "ratings")).unwrap();
    proxy.until("the other file", |h| has(h, CLUSTER, &PLAIN.replace("reviews", "ratings"))).await;
    assert!(route_to(&proxy.held.borrow(), V1));
    assert!(!proxy.logged()[before..].iter().any(|l| l.starts_with("removed")), "{:?}", &proxy.logged()[before..]);
    std::fs::write(path.join("rule.yaml"), virtual_service("v2")).unwrap();
    proxy.until("the mended file", |h| route_to(h, V2)).await;
    plane.until("/debug/diagnostics", "no error", |j| j["errors"] == 0).await;
    task.abort();
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_shown_and_the_rest_applies() {
    let (_keep, path) = folder(&[("mesh.yaml", SERVICE)]);
    let plane = Plane::over(&path).await;
    let connector = Connector::tcp(plane.addresses.xds_plain.unwrap().to_string());
    let (proxy, subscriptions, task) = Proxy::start(Mode::Delta, node("a", "10.0.0.1"), connector, V2);
    subscribe_all(&subscriptions);
    proxy.until("the others", |h| has(h, CLUSTER, V1)).await;
    let page = plane
        .until("/debug/syncz", "the refusal", |j| {
            j[0]["types"].as_array().is_some_and(|types| types.iter().any(|t| t["type"] == "cds" && t["state"] == "REJECTED"))
        })
        .await;
    let message = page[0]["types"][0]["rejected"]["message"].as_str().unwrap();
    assert_eq!(message, format!("cds {V2}: not to my taste"));
    assert_eq!(page[0]["proxy"], "a.books");
    assert_eq!(plane.handle.metrics().total_rejects(), 1);
    let (_, metrics) = get(plane.addresses.monitoring.unwrap(), "/metrics").await;
    for line in ["pilot_total_xds_rejects{type=\"cds\"} 1", "pilot_services 1", "pilot_virt_services 0"] {
        assert!(metrics.lines().any(|l| l == line), "{line} missing in\n{metrics}");
    }
    task.abort();
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quick_changes_are_taken_up_together() {
    let (given, source) = Given::new("test");
    let slow = Config { debounce: Debounce { quiet: Duration::from_millis(150), max: Duration::from_secs(5) }, ..config() };
    let plane = Plane::start(slow, vec![Box::new(source)], None).await;
    given.set(State::default());
    let mut worlds = plane.handle.snapshots();
    timeout(WAIT, worlds.wait_for(Option::is_some)).await.unwrap().unwrap();
    for i in 0..20 {
        let text = SERVICE.replace("reviews", &format!("s{i}"));
        let resources = lateen_model::parse("given.yaml", text.as_bytes(), &Limits::default()).resources;
        given.modify(|state| resources.into_iter().for_each(|r| drop(state.resources.insert(r))));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let full = |s: &Option<Arc<crate::Snapshot>>| s.as_ref().is_some_and(|s| s.world.services().len() == 20);
    timeout(WAIT, worlds.wait_for(full)).await.unwrap().unwrap();
    assert_eq!(plane.handle.metrics().worlds(), 2, "twenty changes, one new world");
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_pod_goes_out_as_endpoints_alone() {
    let (_keep, path) = folder(&[("mesh.yaml", SERVICE), ("pods.yaml", &pod("r1", "10.0.0.1"))]);
    let plane = Plane::over(&path).await;
    let connector = Connector::tcp(plane.addresses.xds_plain.unwrap().to_string());
    let (proxy, subscriptions, task) = Proxy::start(Mode::Delta, node("a", "10.0.0.9"), connector, "");
    subscribe_all(&subscriptions);
    let all = |h: &Held| has(h, ENDPOINT, PLAIN) && has(h, ENDPOINT, V1) && has(h, LISTENER, "virtualInbound") && has(h, ROUTE, "80");
    proxy.until("the first world", all).await;
    let before = proxy.logged().len();
    std::fs::write(path.join("pods.yaml"), format!("{}---{}", pod("r1", "10.0.0.1"), pod("r2", "10.0.0.2"))).unwrap();
    let contains = |h: &Held, ip: &str| {
        let resource = &h[&(ENDPOINT.to_owned(), PLAIN.to_owned())];
        String::from_utf8_lossy(&resource.body.value).contains(ip)
    };
    proxy.until("the new endpoint", |h| contains(h, "10.0.0.2")).await;
    plane.until("/debug/syncz", "all accepted", |j| j[0]["endpoint_sent"] == j[0]["endpoint_acked"]).await;
    let mut got = proxy.logged()[before..].to_vec();
    got.sort();
    assert_eq!(got, [format!("got {V1}"), format!("got {PLAIN}")]);
    task.abort();
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_control_plane_never_sends_an_emptier_world() {
    let (_keep, path) = folder(&[("mesh.yaml", SERVICE), ("rule.yaml", &virtual_service("v1"))]);
    let plane = Plane::over(&path).await;
    let address = plane.addresses.xds_plain.unwrap();
    let (proxy, subscriptions, task) = Proxy::start(Mode::Delta, node("a", "10.0.0.1"), Connector::tcp(address.to_string()), "");
    subscribe_all(&subscriptions);
    proxy.until("the first world", is_complete).await;
    plane.stop().await;
    proxy.until_logged("shutting down").await;
    let before = proxy.logged().len();

    // The second one has a source that is not ready at first.
    let (given, slow) = Given::new("slow");
    let again = Config { xds_plain: Some(address), ..config() };
    let plane = Plane::start(again, vec![files(&path), Box::new(slow)], None).await;
    let deadline = Instant::now() + WAIT;
    while plane.handle.streams().connections().is_empty() {
        assert!(Instant::now() < deadline, "the proxy comes back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(plane.get("/ready").await.0, 503);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!proxy.logged()[before..].iter().any(|l| l.starts_with("got") || l.starts_with("removed")));
    given.set(State::default());
    std::fs::write(path.join("rule.yaml"), virtual_service("v2")).unwrap();
    proxy.until("a change after the restart", |h| route_to(h, V2)).await;
    let changes: Vec<String> =
        proxy.logged()[before..].iter().filter(|l| l.starts_with("got") || l.starts_with("removed")).cloned().collect();
    assert_eq!(changes, ["got 80"], "what did not change is not sent again");
    assert_eq!(plane.get("/ready").await.0, 200);
    task.abort();
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_client_without_a_proxy_gets_from_listener_to_endpoints() {
    let (_keep, path) = folder(&[("mesh.yaml", SERVICE), ("pods.yaml", &pod("r1", "10.0.0.1"))]);
    let plane = Plane::over(&path).await;
    let fields = [("GENERATOR".to_owned(), text_value("grpc"))].into();
    let node = Node { metadata: Some(lateen_proto::Struct { fields }), ..node("g", "10.0.0.9") };
    let connector = Connector::tcp(plane.addresses.xds_plain.unwrap().to_string());
    let (proxy, subscriptions, task) = Proxy::start(Mode::Sotw, node, connector, "");
    let target = "reviews.books.svc.cluster.local:80";
    subscriptions.subscribe(LISTENER, [target.to_owned()]);
    proxy.until("the listener", |h| has(h, LISTENER, target)).await;
    let text = |h: &Held, t: &str, n: &str| String::from_utf8_lossy(&h[&(t.to_owned(), n.to_owned())].body.value).into_owned();
    assert_eq!(proxy.held.borrow().len(), 1, "only what was asked for");
    assert!(text(&proxy.held.borrow(), LISTENER, target).contains(PLAIN), "it names its routes");
    subscriptions.subscribe(ROUTE, [PLAIN.to_owned()]);
    proxy.until("the routes", |h| has(h, ROUTE, PLAIN)).await;
    subscriptions.subscribe(CLUSTER, [PLAIN.to_owned()]);
    proxy.until("the cluster", |h| has(h, CLUSTER, PLAIN)).await;
    subscriptions.subscribe(ENDPOINT, [PLAIN.to_owned()]);
    proxy.until("the endpoints", |h| has(h, ENDPOINT, PLAIN)).await;
    assert!(text(&proxy.held.borrow(), ENDPOINT, PLAIN).contains("10.0.0.1"));
    task.abort();
    plane.stop().await;
}

fn text_value(text: &str) -> lateen_proto::Value {
    lateen_proto::Value { kind: Some(prost_types::value::Kind::StringValue(text.into())) }
}

/// An authority, and the ways to prove an identity to it.
fn identity() -> (Identity, TokenIssuer) {
    let ca = Arc::new(CertificateAuthority::in_memory("cluster.local", SystemTime::now()).unwrap());
    let issuer = TokenIssuer::generate("https://lateen.test").unwrap();
    let jwt = JwtAuthenticator::from_jwks(jwt_config(&issuer), &issuer.jwks()).unwrap();
    let certificates = CertificateAuthenticator::new(ca.clone(), vec!["cluster.local".into()]);
    let authenticators = Authenticators::new(vec![Arc::new(certificates), Arc::new(jwt)]);
    (Identity { ca, authenticators, csr_limits: lateen_identity::csr_service::Limits::default() }, issuer)
}

fn jwt_config(issuer: &TokenIssuer) -> JwtConfig {
    JwtConfig { issuer: issuer.issuer().into(), audiences: vec!["istio-ca".into()], trust_domain: "cluster.local".into() }
}

/// A TLS connector that trusts the authority and shows the certificate of `account`, if any.
fn over_tls(address: std::net::SocketAddr, ca: &CertificateAuthority, account: Option<(&str, &str)>) -> Connector {
    let mut params = ClientParams::new(Verification::host(ca.roots()));
    params.alpn = vec![b"h2".to_vec()];
    if let Some((namespace, account)) = account {
        let id = SpiffeId::new("cluster.local", namespace, account).unwrap();
        params = params.with_key(ca.issue_workload(&id, Duration::from_secs(3600), SystemTime::now()).unwrap().certified_key());
    }
    let config = params.build().unwrap();
    Connector::tls(address.to_string(), ServerName::try_from("istiod.istio-system.svc").unwrap(), move || Ok(config.clone()))
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_a_certificate_or_a_token_says_who_calls_and_from_which_namespace() {
    let (_keep, path) = folder(&[("mesh.yaml", SERVICE)]);
    let (identity, issuer) = identity();
    let ca = identity.ca.clone();
    let plane = Plane::start(config(), vec![files(&path)], Some(identity)).await;
    let tls = plane.addresses.xds_tls.unwrap();
    let connect = |node: Node, connector: Connector, token: Option<String>| {
        let backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(50));
        let token = token.map(|t| Arc::new(move || Some(t.clone())) as lateen_xds::client::TokenSource);
        let options = Options { token, backoff, ..Options::new(node, "istiod.istio-system.svc") };
        let (proxy, subscriptions, task) = Proxy::with(options, connector, "");
        subscriptions.wildcard(CLUSTER);
        (proxy, task)
    };
    let (proxy, task) = connect(node("a", "10.0.0.1"), over_tls(tls, &ca, Some(("books", "reviews"))), None);
    proxy.until("with a certificate", |h| has(h, CLUSTER, PLAIN)).await;
    let page = plane.json("/debug/adsz").await;
    assert_eq!(page["clients"][0]["identity"], "spiffe://cluster.local/ns/books/sa/reviews");
    task.abort();

    let token = issuer.issue("books", "reviews", "istio-ca", Duration::from_secs(600), SystemTime::now()).unwrap();
    let (proxy, task) = connect(node("b", "10.0.0.2"), over_tls(tls, &ca, None), Some(token.clone()));
    proxy.until("with a token", |h| has(h, CLUSTER, PLAIN)).await;
    task.abort();

    let (nobody, task) = connect(node("c", "10.0.0.3"), over_tls(tls, &ca, None), None);
    nobody.until_logged("show a client certificate").await;
    task.abort();
    let (liar, task) = connect(node("d", "10.0.0.4"), over_tls(tls, &ca, Some(("other", "x"))), None);
    liar.until_logged("the node says namespace `books`").await;
    assert!(nobody.held.borrow().is_empty() && liar.held.borrow().is_empty());
    task.abort();
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_service_answers_on_the_same_port() {
    let (identity, issuer) = identity();
    let ca = identity.ca.clone();
    let plane = Plane::start(config(), Vec::new(), Some(identity)).await;
    let token = issuer.issue("books", "reviews", "istio-ca", Duration::from_secs(600), SystemTime::now()).unwrap();
    use lateen_proto::istio::v1::auth::IstioCertificateRequest;
    use lateen_proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
    let mut client = IstioCertificateServiceClient::connect(format!("http://{}", plane.addresses.xds_plain.unwrap())).await.unwrap();
    let mut request = tonic::Request::new(IstioCertificateRequest { csr: "nonsense".into(), ..Default::default() });
    let refused = client.create_certificate(tonic::Request::new(request.get_ref().clone())).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    let refused = client.create_certificate(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}: the caller is known, its request is not one");
    drop(ca);
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_given_only_to_those_with_an_identity_of_their_namespace() {
    const SECRET_YAML: &str = "
apiVersion: v1
kind: Secret
metadata: {name: shop, namespace: NAMESPACE}
stringData: {tls.crt: certificate, tls.key: key}
";
    let text = format!("{SERVICE}---{}---{}", SECRET_YAML.replace("NAMESPACE", "books"), SECRET_YAML.replace("NAMESPACE", "bank"));
    let (_keep, path) = folder(&[("mesh.yaml", &text)]);
    let (identity, _) = identity();
    let ca = identity.ca.clone();
    let plane = Plane::start(config(), vec![files(&path)], Some(identity)).await;
    let names = || ["kubernetes://shop".to_owned(), "kubernetes://bank/shop".to_owned()];

    let connector = Connector::tcp(plane.addresses.xds_plain.unwrap().to_string());
    let (nobody, subscriptions, task) = Proxy::start(Mode::Delta, node("a", "10.0.0.1"), connector, "");
    subscriptions.subscribe(SECRET, names());
    nobody.until_logged("removed kubernetes://shop").await;
    assert!(nobody.held.borrow().is_empty());
    task.abort();

    let connector = over_tls(plane.addresses.xds_tls.unwrap(), &ca, Some(("books", "reviews")));
    let (proxy, subscriptions, task) = Proxy::start(Mode::Delta, node("b", "10.0.0.2"), connector, "");
    subscriptions.subscribe(SECRET, names());
    proxy.until("its own namespace's key", |h| has(h, SECRET, "kubernetes://shop")).await;
    proxy.until_logged("removed kubernetes://bank/shop").await;
    assert_eq!(proxy.held.borrow().len(), 1);
    // Not in the pages either.
    let (_, dump) = plane.get("/debug/config_dump?proxyID=b.books").await;
    let (_, configuration) = plane.get("/debug/configz").await;
    assert!(!dump.contains("certificate_chain") && !configuration.contains("stringData"));
    task.abort();
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_never_pause_are_taken_up_all_the_same() {
    let (given, source) = Given::new("test");
    let restless = Config { debounce: Debounce { quiet: Duration::from_millis(200), max: Duration::from_millis(400) }, ..config() };
    let plane = Plane::start(restless, vec![Box::new(source)], None).await;
    let end = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < end {
        given.modify(|_| {});
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(plane.handle.metrics().worlds() >= 2, "{}", plane.handle.metrics().worlds());
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_show_the_proxy_and_where_its_resources_come_from() {
    let (_keep, path) = folder(&[("mesh.yaml", SERVICE), ("rule.yaml", &virtual_service("v1"))]);
    let plane = Plane::over(&path).await;
    let connector = Connector::tcp(plane.addresses.xds_plain.unwrap().to_string());
    let (proxy, subscriptions, task) = Proxy::start(Mode::Delta, node("a", "10.0.0.1"), connector, "");
    subscribe_all(&subscriptions);
    proxy.until("the first world", |h| route_to(h, V1)).await;

    let dump = plane.json("/debug/config_dump?proxyID=a.books").await;
    let kinds: Vec<&str> = dump["configs"].as_array().unwrap().iter().map(|c| c["@type"].as_str().unwrap()).collect();
    assert!(kinds[0].ends_with("ClustersConfigDump") && kinds[2].ends_with("RoutesConfigDump"), "{kinds:?}");
    assert!(dump.to_string().contains(V1));
    let from = plane.json("/debug/provenance?proxyID=a.books").await;
    let route = from["resources"].as_array().unwrap().iter().find(|r| r["type"] == "rds").unwrap();
    let origin = route["from"].as_array().unwrap().iter().find(|f| f["kind"] == "VirtualService").unwrap();
    assert!(origin["origin"].as_str().unwrap().contains("rule.yaml:2"), "{origin}");

    let services = plane.json("/debug/registryz").await;
    assert_eq!(services[0]["hostname"], "reviews.books.svc.cluster.local");
    assert_eq!(plane.json("/debug/endpointz").await[0]["service"], "reviews.books.svc.cluster.local");
    assert_eq!(plane.json("/debug/configz").await.as_array().unwrap().len(), 3);
    assert_eq!(plane.json("/debug/push_status").await["world"], 1);
    assert_eq!(plane.json("/version").await["component"], "pilot");
    assert_eq!(plane.get("/debug/config_dump").await.0, 400);
    assert_eq!(plane.get("/debug/config_dump?proxyID=nobody.here").await.0, 404);
    assert_eq!(plane.get("/debug/none").await.0, 404);
    assert!(plane.get("/debug/list").await.1.contains("/debug/syncz"));
    task.abort();
    plane.stop().await;
}
