//! Client and server over real sockets: TCP, TLS, a unix socket, and a server that restarts.
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lateen_proto::any::pack;
use lateen_proto::envoy::config::cluster::v3::Cluster;
use lateen_proto::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use lateen_proto::envoy::config::core::v3::Node;
use rustls_pki_types::{PrivateKeyDer, ServerName};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::Status;
use tonic::metadata::MetadataMap;
use tonic::transport::Server;

use crate::backoff::Backoff;
use crate::client::{Client, ConnectionEvent, Connector, Handler, Mode, Options, Rejected, Service, Subscriptions};
use crate::resource::Resource;
use crate::server::{Backend, Discovery, Event, Hub, Limits, Names, Types};
use crate::types::{CLUSTER, ENDPOINT, LISTENER, SECRET, short_name};

mod sharing;

const WAIT: Duration = Duration::from_secs(10);

/// Clusters (or secrets) by name; the value is their content.
type World = Arc<BTreeMap<String, String>>;

#[derive(Default, Clone)]
struct Fake {
    events: Arc<Mutex<Vec<String>>>,
    token: Option<&'static str>,
}

impl Backend for Fake {
    type Identity = ();
    type Proxy = String;
    type Snapshot = World;

    async fn authenticate(&self, metadata: &MetadataMap, _: &tonic::Extensions) -> Result<(), Status> {
        let given = metadata.get("authorization").and_then(|v| v.to_str().ok());
        if given == self.token.map(|t| format!("Bearer {t}")).as_deref() { Ok(()) } else { Err(Status::unauthenticated("no such token")) }
    }

    fn accept(&self, node: &Node, (): ()) -> Result<String, Status> {
        if node.id.is_empty() { Err(Status::invalid_argument("the node has no id")) } else { Ok(node.id.clone()) }
    }

    fn generate(&self, world: &World, _: &String, type_url: &str, names: &Names) -> Vec<Arc<Resource>> {
        let body = |name: &str, content: &str| {
            let eds = Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32));
            let cluster = Cluster { name: name.into(), alt_stat_name: content.into(), cluster_discovery_type: eds, ..Default::default() };
            let mut body = pack(&cluster);
            body.type_url = type_url.into();
            body
        };
        world.iter().filter(|(n, _)| names.wants(n)).map(|(n, c)| Resource::shared(n, body(n, c))).collect()
    }

    fn event(&self, _: &String, event: Event<'_>) {
        self.events.lock().unwrap().push(format!("{event:?}"));
    }
}

/// What the client has in use, visible from outside; refuses the content `bad`.
#[derive(Clone)]
struct Applied {
    held: watch::Sender<BTreeMap<String, String>>,
    applied: Arc<Mutex<usize>>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Applied {
    fn new() -> Self {
        Self { held: watch::Sender::new(BTreeMap::new()), applied: Arc::default(), log: Arc::default() }
    }

    async fn until(&self, what: &str, condition: impl Fn(&BTreeMap<String, String>) -> bool) {
        let mut seen = self.held.subscribe();
        // Only whether it came: the result itself would hold a read lock.
        let arrived = timeout(WAIT, seen.wait_for(|held| condition(held))).await.is_ok();
        assert!(arrived, "{what}: {:?}, log {:?}", self.held.borrow(), self.log.lock().unwrap());
    }

    async fn until_logged(&self, text: &str) {
        let deadline = Instant::now() + WAIT;
        while !self.log.lock().unwrap().iter().any(|line| line.contains(text)) {
            assert!(Instant::now() < deadline, "no `{text}` in {:?}", self.log.lock().unwrap());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Handler for Applied {
    fn apply(&mut self, _: &str, updates: Vec<Resource>, removed: Vec<String>) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        *self.applied.lock().unwrap() += updates.len();
        self.held.send_modify(|held| {
            removed.iter().for_each(|name| drop(held.remove(name)));
            for update in updates {
                let cluster = <Cluster as prost::Message>::decode(update.body.value.as_slice()).unwrap();
                if cluster.alt_stat_name == "bad" {
                    rejected.push(Rejected { name: update.name, reason: "bad content".into() });
                } else {
                    held.insert(update.name, cluster.alt_stat_name);
                }
            }
        });
        rejected
    }

    fn connection(&mut self, event: ConnectionEvent) {
        self.log.lock().unwrap().push(format!("{event:?}"));
    }
}

fn world(list: &[(&str, &str)]) -> World {
    Arc::new(list.iter().map(|(n, c)| ((*n).to_owned(), (*c).to_owned())).collect())
}

fn hub(list: &[(&str, &str)]) -> Arc<Hub<String, World>> {
    let hub = Arc::new(Hub::new(4));
    hub.publish(world(list), Types::All, Instant::now());
    hub
}

async fn serve_on(listener: TcpListener, fake: Fake, hub: Arc<Hub<String, World>>) -> JoinHandle<()> {
    let discovery = Discovery::new(fake, hub, "test", Limits::default());
    let server = Server::builder().add_service(discovery.aggregated()).add_service(discovery.secrets());
    tokio::spawn(async move { server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap() })
}

async fn serve(fake: Fake, hub: Arc<Hub<String, World>>) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (address, serve_on(listener, fake, hub).await)
}

fn options(mode: Mode) -> Options {
    let backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(50));
    Options { mode, backoff, ..Options::new(Node { id: "node".into(), ..Default::default() }, "localhost") }
}

fn start(options: Options, connector: Connector) -> (Applied, Subscriptions, JoinHandle<()>) {
    let applied = Applied::new();
    let client = Client::new(options, connector);
    let subscriptions = client.subscriptions();
    let mut handler = applied.clone();
    (applied, subscriptions, tokio::spawn(async move { client.run(&mut handler).await }))
}

#[tokio::test]
async fn a_change_arrives_in_both_modes_and_a_refusal_is_reported_back() {
    for mode in [Mode::Delta, Mode::Sotw] {
        let (fake, hub) = (Fake::default(), hub(&[("a", "1")]));
        let (address, server) = serve(fake.clone(), hub.clone()).await;
        let (applied, subscriptions, client) = start(options(mode), Connector::tcp(address.to_string()));
        subscriptions.wildcard(CLUSTER);
        applied.until("first", |held| held.get("a").is_some_and(|c| c == "1")).await;

        hub.publish(world(&[("a", "bad"), ("b", "1")]), Types::All, Instant::now());
        applied.until("the good one of a partly bad change", |held| held.contains_key("b")).await;
        assert_eq!(applied.held.borrow()["a"], "1", "the last good one stays");
        let refused = format!("Nacked {{ type_url: {CLUSTER:?}, message: \"cds a: bad content\" }}");
        let deadline = Instant::now() + WAIT;
        while !fake.events.lock().unwrap().contains(&refused) {
            assert!(Instant::now() < deadline, "{:?}", fake.events.lock().unwrap());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let connections = hub.connections();
        assert_eq!((connections.len(), connections[0].node_id.as_str(), connections[0].mode), (1, "node", mode));
        assert_eq!(connections[0].types()[0].nacked.as_ref().unwrap().message, "cds a: bad content");

        hub.publish(world(&[("b", "1")]), Types::All, Instant::now());
        applied.until("removal", |held| held.len() == 1).await;
        client.abort();
        server.abort();
    }
}

#[tokio::test]
async fn a_restarted_server_is_found_again_and_unchanged_resources_are_not_resent() {
    // A runtime of its own, so that its end takes the connections down too.
    let process = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (address, _) = process.spawn(serve(Fake::default(), hub(&[("a", "1"), ("b", "1")]))).await.unwrap();
    let (applied, subscriptions, client) = start(options(Mode::Delta), Connector::tcp(address.to_string()));
    subscriptions.wildcard(CLUSTER);
    applied.until("both", |held| held.len() == 2).await;
    process.shutdown_background();
    applied.until_logged("Disconnected").await;
    assert_eq!(applied.held.borrow().len(), 2, "nothing is dropped while the server is away");

    let second = Fake::default();
    let listener = TcpListener::bind(address).await.unwrap();
    let server = serve_on(listener, second.clone(), hub(&[("a", "1"), ("b", "2")])).await;
    applied.until("the change made meanwhile", |held| held["b"] == "2").await;
    assert_eq!(*applied.applied.lock().unwrap(), 3, "`a` was not sent again");
    client.abort();
    server.abort();
}

#[tokio::test]
async fn a_server_that_does_not_know_the_world_yet_says_nothing() {
    let hub = Arc::new(Hub::new(4));
    let (address, server) = serve(Fake::default(), hub.clone()).await;
    let (applied, subscriptions, client) = start(options(Mode::Delta), Connector::tcp(address.to_string()));
    subscriptions.wildcard(CLUSTER);
    let deadline = Instant::now() + WAIT;
    while hub.connections().is_empty() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(*applied.applied.lock().unwrap(), 0);
    hub.publish(world(&[("a", "1")]), Types::All, Instant::now());
    applied.until("the first world", |held| held.len() == 1).await;
    client.abort();
    server.abort();
}

/// Asks for the endpoints of every cluster it gets, if it is `diligent`; logs what comes, in order.
struct Follower {
    log: watch::Sender<Vec<String>>,
    subscriptions: Subscriptions,
    diligent: bool,
}

impl Handler for Follower {
    fn apply(&mut self, type_url: &str, updates: Vec<Resource>, _: Vec<String>) -> Vec<Rejected> {
        if type_url == CLUSTER && (self.diligent || self.log.borrow().is_empty()) {
            self.subscriptions.subscribe(ENDPOINT, updates.iter().map(|u| u.name.clone()));
        }
        self.log.send_modify(|log| log.extend(updates.iter().map(|u| format!("{} {}", short_name(type_url), u.name))));
        Vec::new()
    }
}

#[tokio::test]
async fn what_may_name_a_new_cluster_follows_its_endpoints() {
    for (mode, diligent) in [(Mode::Delta, true), (Mode::Sotw, true), (Mode::Delta, false), (Mode::Sotw, false)] {
        let hub = hub(&[("a", "1")]);
        let (address, server) = serve(Fake::default(), hub.clone()).await;
        let client = Client::new(options(mode), Connector::tcp(address.to_string()));
        let subscriptions = client.subscriptions();
        subscriptions.wildcard(CLUSTER);
        subscriptions.wildcard(LISTENER);
        let log = watch::Sender::new(Vec::new());
        let mut handler = Follower { log: log.clone(), subscriptions, diligent };
        let client = tokio::spawn(async move { client.run(&mut handler).await });
        let until = async |length: usize| {
            let mut seen = log.subscribe();
            let arrived = timeout(WAIT, seen.wait_for(|l| l.len() >= length)).await.is_ok();
            assert!(arrived, "{:?}", log.borrow());
        };
        until(3).await;
        let published = Instant::now();
        hub.publish(world(&[("a", "1"), ("b", "1")]), Types::All, published);
        until(if diligent { 6 } else { 5 }).await;
        let after = log.borrow()[3..].to_vec();
        if diligent {
            assert_eq!(after, ["cds b", "eds b", "lds b"], "{mode:?}");
            assert!(published.elapsed() < Limits::default().endpoint_patience);
        } else {
            // One that never asks is not made to wait for ever.
            assert_eq!(after, ["cds b", "lds b"], "{mode:?}");
            assert!(published.elapsed() >= Limits::default().endpoint_patience);
        }
        client.abort();
        server.abort();
    }
}

#[tokio::test]
async fn closing_the_hub_ends_streams_so_that_a_graceful_shutdown_ends_too() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let hub = hub(&[("a", "1")]);
    let discovery = Discovery::new(Fake::default(), hub.clone(), "test", Limits::default());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = Server::builder().add_service(discovery.aggregated());
    let incoming = TcpListenerStream::new(listener);
    let server = tokio::spawn(async move { server.serve_with_incoming_shutdown(incoming, async { drop(stopped.await) }).await });
    let (applied, subscriptions, client) = start(options(Mode::Delta), Connector::tcp(address.to_string()));
    subscriptions.wildcard(CLUSTER);
    applied.until("connected", |held| held.len() == 1).await;
    hub.close();
    stop.send(()).unwrap();
    timeout(WAIT, server).await.expect("the server ends").unwrap().unwrap();
    applied.until_logged("shutting down").await;
    client.abort();
}

#[tokio::test]
async fn names_can_be_added_and_taken_away_while_connected() {
    let (address, server) = serve(Fake::default(), hub(&[("a", "1"), ("b", "1")])).await;
    let (applied, subscriptions, client) = start(options(Mode::Delta), Connector::tcp(address.to_string()));
    subscriptions.subscribe(CLUSTER, ["a".to_owned()]);
    applied.until("a", |held| held.keys().eq(["a"])).await;
    subscriptions.set(CLUSTER, ["b".to_owned()]);
    applied.until("b", |held| held.contains_key("b")).await;
    client.abort();
    server.abort();
}

#[tokio::test]
async fn a_token_is_sent_and_its_absence_is_answered_with_the_reason() {
    let fake = Fake { token: Some("secret"), ..Fake::default() };
    let (address, server) = serve(fake, hub(&[("a", "1")])).await;
    let (refused, subscriptions, client) = start(options(Mode::Delta), Connector::tcp(address.to_string()));
    subscriptions.wildcard(CLUSTER);
    refused.until_logged("no such token").await;
    client.abort();
    let token: crate::client::TokenSource = Arc::new(|| Some("secret\n".to_owned()));
    let with = Options { token: Some(token), ..options(Mode::Delta) };
    let (applied, subscriptions, client) = start(with, Connector::tcp(address.to_string()));
    subscriptions.wildcard(CLUSTER);
    applied.until("admitted", |held| held.len() == 1).await;
    client.abort();
    server.abort();
}

#[tokio::test]
async fn secrets_come_over_a_unix_socket_in_both_modes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sds");
    let listener = UnixListener::bind(&path).unwrap();
    let discovery = Discovery::new(Fake::default(), hub(&[("default", "key"), ("ROOTCA", "root")]), "sds", Limits::default());
    let server = Server::builder().add_service(discovery.secrets());
    let server = tokio::spawn(async move { server.serve_with_incoming(UnixListenerStream::new(listener)).await.unwrap() });
    for mode in [Mode::Delta, Mode::Sotw] {
        let options = Options { service: Service::Secret, ..options(mode) };
        let (applied, subscriptions, client) = start(options, Connector::unix(&path));
        subscriptions.subscribe(SECRET, ["default".to_owned()]);
        applied.until("the certificate", |held| held.keys().eq(["default"])).await;
        client.abort();
    }
    server.abort();
}

#[tokio::test]
async fn a_message_above_the_limit_ends_the_stream_with_its_reason() {
    let large = "x".repeat(100_000);
    let (address, server) = serve(Fake::default(), hub(&[("a", large.as_str())])).await;
    let options = Options { max_message_bytes: 10_000, ..options(Mode::Delta) };
    let (applied, subscriptions, client) = start(options, Connector::tcp(address.to_string()));
    subscriptions.wildcard(CLUSTER);
    applied.until_logged("OutOfRange").await;
    client.abort();
    server.abort();
}

#[tokio::test]
async fn tls_checks_the_server_and_carries_the_stream() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let made = rcgen::generate_simple_self_signed(vec!["istiod.istio-system.svc".into()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut server_config =
        rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    server_config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server_config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = TcpListenerStream::new(listener).then(move |stream| {
        let acceptor = acceptor.clone();
        async move { acceptor.accept(stream?).await }
    });
    // A failed handshake must not end the listener.
    let incoming = incoming.filter(Result::is_ok);
    let discovery = Discovery::new(Fake::default(), hub(&[("a", "1")]), "test", Limits::default());
    let server = Server::builder().add_service(discovery.aggregated());
    let server = tokio::spawn(async move { server.serve_with_incoming(incoming).await.unwrap() });

    let connector = |roots: rustls::RootCertStore| {
        let mut config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let config = Arc::new(config);
        let name = ServerName::try_from("istiod.istio-system.svc").unwrap();
        Connector::tls(address.to_string(), name, move || Ok(config.clone()))
    };
    let (refused, subscriptions, client) = start(options(Mode::Delta), connector(rustls::RootCertStore::empty()));
    subscriptions.wildcard(CLUSTER);
    refused.until_logged("TLS with").await;
    client.abort();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let (applied, subscriptions, client) = start(options(Mode::Delta), connector(roots));
    subscriptions.wildcard(CLUSTER);
    applied.until("over TLS", |held| held.len() == 1).await;
    client.abort();
    server.abort();
}
