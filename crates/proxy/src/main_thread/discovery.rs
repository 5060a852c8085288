//! Discovery streams: the aggregated one, and secret services of their own.
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use http::header::{HeaderMap, HeaderName};
use lateen_identity::WorkloadSecrets;
use lateen_snapshot::bootstrap::DynamicSource;
use lateen_snapshot::compile::{ApiSource, SecretKey, SecretSource, Since, Update, Wanted, file_and_name};
use lateen_telemetry::BlockName;
use lateen_telemetry::envoy_names::server;
use lateen_xds::client::{Service, TokenSource};
use lateen_xds::{Client, ConnectionEvent, Connector, Handler, Mode, Options, Rejected, Resource, Subscriptions, types};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Main;

/// The cluster under which Istio's bootstrap names the agent's secret service: in the sidecar, that is us.
pub(super) const OWN_SECRETS: &str = "sds-grpc";

/// Applies what a stream brings.
struct Applier {
    main: Arc<Main>,
    source: SecretSource,
    name: String,
}

impl Handler for Applier {
    fn apply(&mut self, type_url: &str, updates: Vec<Resource>, removed: Vec<String>) -> Vec<Rejected> {
        let names: Vec<String> = updates.iter().map(|u| u.name.clone()).collect();
        let updates = updates.into_iter().map(|Resource { name, version, body }| Update { name, version, body }).collect();
        let apply = AssertUnwindSafe(|| self.main.apply(&self.source, type_url, updates, &removed));
        let Ok(rejected) = catch_unwind(apply) else {
            // What it was we cannot tell; the control plane hears that it is not in use, and the last good goes on.
            tracing::error!(r#type = types::short_name(type_url), "configuration met a mistake of this program, please report it");
            self.main.registry.block(server::DEFS, BlockName::plain("server")).add_shared(server::PANICS, 1);
            let reason = "a mistake of this proxy's; it is not in use";
            return names.into_iter().map(|name| Rejected { name, reason: reason.to_owned() }).collect();
        };
        rejected.into_iter().map(|r| Rejected { name: r.name, reason: r.reason }).collect()
    }

    fn refused(&mut self, type_url: &str, names: &[String]) {
        self.main.change(|compiler, now| compiler.refuse(&self.source, type_url, names, now));
    }

    fn connection(&mut self, event: ConnectionEvent) {
        match event {
            ConnectionEvent::Connected => tracing::info!(cluster = self.name, "discovery stream is up"),
            ConnectionEvent::Disconnected { reason, retry_in } => {
                tracing::warn!(cluster = self.name, ?retry_in, "discovery stream is down: {reason}");
            }
        }
    }
}

/// Runs the aggregated stream, if the bootstrap has one.
pub(super) fn aggregated(main: &Arc<Main>, token: Option<TokenSource>, tasks: &mut JoinSet<()>) {
    let Some(ads) = main.bootstrap.ads.clone() else { return };
    let client = client(main, Service::Aggregated, &ads, token);
    let subscriptions = client.subscriptions();
    if main.bootstrap.clusters == Some(DynamicSource::Ads) {
        subscriptions.wildcard(types::CLUSTER);
    }
    if main.bootstrap.listeners == Some(DynamicSource::Ads) {
        subscriptions.wildcard(types::LISTENER);
    }
    tasks.spawn(main.supervisor.clone().only_once("subscriptions", follow(main.wanted(), subscriptions, ads.delta)));
    let mut applier = Applier { main: main.clone(), source: SecretSource::Ads, name: ads.cluster };
    tasks.spawn(main.supervisor.clone().only_once("discovery", async move { client.run(&mut applier).await }));
}

/// Runs listener and cluster discovery services that are not aggregated.
pub(super) fn single(main: &Arc<Main>, token: Option<TokenSource>, tasks: &mut JoinSet<()>) {
    let sources = [
        (main.bootstrap.clusters.clone(), Service::Cluster, types::CLUSTER),
        (main.bootstrap.listeners.clone(), Service::Listener, types::LISTENER),
    ];
    for (source, service, type_url) in sources {
        let Some(DynamicSource::Api(source)) = source else { continue };
        let client = client(main, service, &source, token.clone());
        client.subscriptions().wildcard(type_url);
        let mut applier = Applier { main: main.clone(), source: SecretSource::Ads, name: source.cluster };
        tasks.spawn(main.supervisor.clone().only_once("discovery", async move { client.run(&mut applier).await }));
    }
}

fn client(main: &Arc<Main>, service: Service, source: &ApiSource, token: Option<TokenSource>) -> Client {
    client_over(connector(main, source), main, service, source, token)
}

/// A client of a service that it reaches by this connector.
fn client_over(connector: Connector, main: &Arc<Main>, service: Service, source: &ApiSource, token: Option<TokenSource>) -> Client {
    let authority = http_authority(source.authority.clone());
    let mut options = Options::new(main.bootstrap.node.clone(), authority);
    options.service = service;
    options.mode = if source.delta { Mode::Delta } else { Mode::Sotw };
    options.token = token;
    options.metadata = metadata(source);
    Client::new(options, connector)
}

fn connector(main: &Arc<Main>, source: &ApiSource) -> Connector {
    let (dialing, name, authority) = (main.clone(), source.cluster.clone(), http_authority(source.authority.clone()));
    Connector::new(move || {
        let (main, cluster, authority) = (dialing.clone(), name.clone(), authority.clone());
        async move { main.connect(&cluster, &authority).await }
    })
}

fn metadata(source: &ApiSource) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in &source.metadata {
        // They were names of headers when the configuration was read.
        if let Ok(name) = HeaderName::try_from(name) {
            headers.append(name, value.clone());
        }
    }
    headers
}

/// Cluster names may hold characters that an authority may not.
fn http_authority(name: String) -> String {
    if name.parse::<http::uri::Authority>().is_ok() { name } else { "localhost".to_owned() }
}

/// Keeps the aggregated stream subscribed to what the configuration refers to. Only where it is incremental a subscription to
/// everything can be given up: otherwise it is made by naming nothing.
async fn follow(mut wanted: watch::Receiver<Arc<Wanted>>, subscriptions: Subscriptions, delta: bool) {
    let mut before = Arc::<Wanted>::default();
    loop {
        let now = wanted.borrow_and_update().clone();
        // What is in a file is not asked for.
        let on_stream = |name: &Arc<str>| file_and_name(name).0.is_none().then(|| name.to_string());
        let renewed = |type_url, before, now| renew(&subscriptions, type_url, before, now, on_stream);
        renewed(types::ENDPOINT, &before.endpoints, &now.endpoints);
        renewed(types::ROUTE, &before.routes, &now.routes);
        renewed(types::CLUSTER, &before.clusters, &now.clusters);
        renewed(types::VIRTUAL_HOST, &before.virtual_hosts, &now.virtual_hosts);
        renewed(types::EXTENSION, &before.extensions, &now.extensions);
        renew(&subscriptions, types::SECRET, &before.secrets, &now.secrets, |key| name_from(key, &SecretSource::Ads));
        let anew = now.scopes_since != before.scopes_since;
        if before.scopes && delta && (anew || !now.scopes) {
            subscriptions.no_wildcard(types::SCOPED_ROUTE);
        }
        if now.scopes && anew {
            subscriptions.wildcard(types::SCOPED_ROUTE);
        }
        before = now;
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

/// Unsubscribes from what is wanted no longer and subscribes to what is newly wanted: both from and to a name that was given up
/// in between, because what came of it is forgotten.
fn renew<K: Ord + Clone>(
    subscriptions: &Subscriptions,
    type_url: &str,
    before: &Since<K>,
    now: &Since<K>,
    name: impl Fn(&K) -> Option<String>,
) {
    let gone: Vec<String> = before.beside(now).filter_map(&name).collect();
    if !gone.is_empty() {
        subscriptions.unsubscribe(type_url, gone);
    }
    let new: Vec<String> = now.beside(before).filter_map(&name).collect();
    if !new.is_empty() {
        subscriptions.subscribe(type_url, new);
    }
}

fn name_from(key: &SecretKey, source: &SecretSource) -> Option<String> {
    (key.source == *source).then(|| key.name.to_string())
}

/// The workload's own identity, as it is renewed.
type Identity = watch::Receiver<Option<Arc<WorkloadSecrets>>>;

/// Serves secrets from wherever the configuration says: the workload's own identity and files for Istio's
/// local secret service, streams for every other.
pub(super) async fn secrets(main: Arc<Main>, identity: Option<Identity>, token: Option<TokenSource>) {
    let mut wanted = main.wanted();
    let mut services = SecretServices { main, identity, token, own: HashMap::new(), others: HashMap::new() };
    let mut before = Since::default();
    loop {
        let now = wanted.borrow_and_update().secrets.clone();
        // Mostly something else changed, and there may be thousands.
        if !now.is_same(&before) {
            services.follow(&before, &now);
            before = now;
        }
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

/// The secret services that something is wanted of.
struct SecretServices {
    main: Arc<Main>,
    identity: Option<Identity>,
    token: Option<TokenSource>,
    /// The tasks of our own, which is handed out also when nobody uses it at the moment.
    own: HashMap<ApiSource, JoinSet<()>>,
    /// The connections to each of the others.
    others: HashMap<ApiSource, Vec<SecretStreams>>,
}

/// Streams that have a connection together: a server may take no more than a hundred on one.
const MOST_STREAMS: usize = 64;

/// The streams of one connection. Each is for one secret, as Envoy has them: Istio's agent ends a stream over a secret that it
/// cannot give, and the others must not go with it.
struct SecretStreams {
    connector: Connector,
    /// By the name of the secret. A stream ends with its task.
    tasks: HashMap<Arc<str>, JoinSet<()>>,
}

impl SecretStreams {
    fn has_room(&self) -> bool {
        self.tasks.len() < MOST_STREAMS
    }
}

/// Of these secrets those that a service has: which one, and the name.
fn at_services<'a>(keys: impl Iterator<Item = &'a SecretKey>) -> impl Iterator<Item = (&'a ApiSource, &'a Arc<str>)> {
    keys.filter_map(|key| match &key.source {
        SecretSource::Api(service) => Some((service, &key.name)),
        _ => None,
    })
}

impl SecretServices {
    fn follow(&mut self, before: &Since<SecretKey>, now: &Since<SecretKey>) {
        at_services(before.beside(now)).for_each(|(service, name)| self.close(service, name));
        for (service, name) in at_services(now.beside(before)) {
            match self.identity.as_ref().filter(|_| service.cluster == OWN_SECRETS) {
                Some(identity) if !self.own.contains_key(service) => {
                    self.own.insert(service.clone(), own_secrets(&self.main, identity.clone(), service));
                }
                Some(_) => {}
                None => self.open(service, name),
            }
        }
    }

    fn close(&mut self, service: &ApiSource, name: &Arc<str>) {
        let Some(connections) = self.others.get_mut(service) else { return };
        connections.iter_mut().for_each(|streams| drop(streams.tasks.remove(name)));
        connections.retain(|streams| !streams.tasks.is_empty());
        if connections.is_empty() {
            self.others.remove(service);
        }
    }

    fn open(&mut self, service: &ApiSource, name: &Arc<str>) {
        let Self { main, token, others, .. } = self;
        let connections = others.entry(service.clone()).or_default();
        if !connections.iter().any(SecretStreams::has_room) {
            connections.push(SecretStreams { connector: connector(main, service).shared(), tasks: HashMap::new() });
        }
        let Some(streams) = connections.iter_mut().find(|streams| streams.has_room()) else { return };
        let client = client_over(streams.connector.clone(), main, Service::Secret, service, token.clone());
        client.subscriptions().subscribe(types::SECRET, [name.to_string()]);
        let source = SecretSource::Api(service.clone());
        let mut applier = Applier { main: main.clone(), source, name: service.cluster.clone() };
        let mut tasks = JoinSet::new();
        tasks.spawn(main.supervisor.clone().only_once("discovery", async move { client.run(&mut applier).await }));
        streams.tasks.insert(name.clone(), tasks);
    }
}

/// What Istio's agent serves: the workload's identity, and what is in files that the names of secrets say.
fn own_secrets(main: &Arc<Main>, identity: Identity, service: &ApiSource) -> JoinSet<()> {
    let source = SecretSource::Api(service.clone());
    let (handing, of) = (main.clone(), source.clone());
    let hand_out = move || {
        let (main, source, mut identity) = (handing.clone(), of.clone(), identity.clone());
        async move {
            loop {
                let current = identity.borrow_and_update().clone();
                if let Some(secrets) = current {
                    main.set_identity(&source, &secrets);
                }
                if identity.changed().await.is_err() {
                    return;
                }
            }
        }
    };
    let reading = main.clone();
    let read = move || own_files(reading.clone(), source.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(main.supervisor.clone().run("the workload's certificate", hand_out));
    tasks.spawn(main.supervisor.clone().run("certificate files", read));
    tasks
}

/// Has files read when they come to be wanted; `files` looks after them from then on.
async fn own_files(main: Arc<Main>, source: SecretSource) {
    let mut wanted = main.wanted();
    let mut before = Arc::<Wanted>::default();
    loop {
        let now = wanted.borrow_and_update().clone();
        let new = now.secrets.beside(&before.secrets).filter(|key| key.source == source);
        let new: Vec<Arc<str>> = new.map(|key| Arc::clone(&key.name)).collect();
        if !new.is_empty() {
            main.read_files(&source, &new);
        }
        before = now;
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::main_thread::test_support;

    /// A listener whose certificate is at the secret service of this cluster.
    fn listener(cluster: &str) -> Update {
        listener_with(cluster, "default")
    }

    /// And has this name there.
    fn listener_with(cluster: &str, secret: &str) -> Update {
        listener_of(cluster, &[secret.to_owned()])
    }

    /// And has certificates of these names there.
    fn listener_of(cluster: &str, secrets: &[String]) -> Update {
        let secret = |name: &String| {
            format!(
                "{{name: '{name}', sds_config: {{initial_fetch_timeout: 0s, api_config_source: {{api_type: GRPC, \
               grpc_services: [{{envoy_grpc: {{cluster_name: {cluster}}}}}]}}}}}}"
            )
        };
        let secrets = secrets.iter().map(secret).collect::<Vec<_>>().join(", ");
        let text = format!(
            "{{static_resources: {{listeners: [{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 9}}}}, filter_chains: [{{\
               transport_socket: {{name: tls, typed_config: {{'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
                 common_tls_context: {{tls_certificate_sds_secret_configs: [{secrets}]}}}}}}, \
               filters: [{{name: t, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, \
                 stat_prefix: t, cluster: c}}}}]}}]}}]}}}}"
        );
        let body = lateen_snapshot::bootstrap::parse(&text, "test.yaml").unwrap().resources.remove(0);
        Update { name: "l".to_owned(), version: "1".to_owned(), body }
    }

    fn identity() -> Arc<WorkloadSecrets> {
        let key = rcgen::KeyPair::generate().unwrap();
        let chain = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
        Arc::new(WorkloadSecrets::from_pem(chain.as_bytes(), key.serialize_pem().as_bytes(), chain.as_bytes()).unwrap())
    }

    #[tokio::test]
    async fn a_secret_service_that_nothing_is_wanted_of_is_left() {
        let main = test_support::main("{node: {id: n, cluster: c}}");
        let identity = Some(watch::channel(None).1);
        let mut services = SecretServices { main: main.clone(), identity, token: None, own: HashMap::new(), others: HashMap::new() };
        let mut before = Since::default();
        let mut with = |updates: Vec<Update>, removed: &[String]| {
            assert_eq!(main.apply(&SecretSource::Ads, types::LISTENER, updates, removed), []);
            let wanted = main.wanted().borrow().clone();
            services.follow(&before, &wanted.secrets);
            before = wanted.secrets.clone();
            let own = services.own.iter().map(|(service, tasks)| (service.cluster.clone(), vec![tasks.len()]));
            let streams = |connections: &Vec<SecretStreams>| connections.iter().map(|streams| streams.tasks.len()).collect();
            let others = services.others.iter().map(|(service, connections)| (service.cluster.clone(), streams(connections)));
            let mut running: Vec<_> = own.chain(others).collect();
            running.sort();
            running
        };
        let names: Vec<String> = (0..=MOST_STREAMS).map(|n| n.to_string()).collect();
        let (own, one, two) = ((OWN_SECRETS.to_owned(), vec![2]), ("one".to_owned(), vec![1]), ("two".to_owned(), vec![1]));
        assert_eq!(with(vec![listener("one")], &[]), std::slice::from_ref(&one));
        assert_eq!(with(vec![listener_of("one", &names)], &[]), [("one".to_owned(), vec![MOST_STREAMS, 1])]);
        assert_eq!(with(vec![listener_of("one", &names[1..2])], &[]), std::slice::from_ref(&one));
        assert_eq!(with(vec![listener(OWN_SECRETS)], &[]), std::slice::from_ref(&own));
        assert_eq!(with(vec![listener("two")], &[]), [own.clone(), two]);
        assert_eq!(with(Vec::new(), &["l".to_owned()]), [own]);
    }

    #[tokio::test]
    async fn a_service_that_ends_streams_of_many_secrets_gives_each_for_itself() {
        let folder = tempfile::tempdir().unwrap();
        let (path, identity) = (|name: &str| folder.path().join(name).display().to_string(), identity());
        std::fs::write(path("crt"), identity.chain_pem()).unwrap();
        std::fs::write(path("key"), identity.key().to_pem()).unwrap();
        let (socket, (_publish, none)) = (path("socket"), watch::channel(None));
        let _server = lateen_identity::sds::SdsServer::start(std::path::Path::new(&socket), none).unwrap();
        let main = test_support::main("{node: {id: n, cluster: c}}");
        let endpoint = format!("{{lb_endpoints: [{{endpoint: {{address: {{pipe: {{path: '{socket}'}}}}}}}}]}}");
        let text = format!(
            "{{static_resources: {{clusters: [{{name: sds, type: STATIC, load_assignment: {{cluster_name: sds, endpoints: [{endpoint}]}}}}]}}}}"
        );
        let body = lateen_snapshot::bootstrap::parse(&text, "test.yaml").unwrap().resources.remove(0);
        let cluster = Update { name: "sds".to_owned(), version: "1".to_owned(), body };
        assert_eq!(main.apply(&SecretSource::Ads, types::CLUSTER, vec![cluster], &[]), []);
        // One file by many names.
        let names: Vec<String> = (0..70).map(|n| format!("file-cert:{}~{}", path(&("./".repeat(n) + "crt")), path("key"))).collect();
        assert_eq!(main.apply(&SecretSource::Ads, types::LISTENER, vec![listener_of("sds", &names)], &[]), []);
        let task = tokio::spawn(secrets(main.clone(), None, None));
        let mut snapshots = main.snapshots();
        let there = snapshots.wait_for(|snapshot| !snapshot.listeners.is_empty());
        tokio::time::timeout(Duration::from_secs(20), there).await.unwrap().unwrap();
        task.abort();
    }

    #[tokio::test]
    async fn a_renewed_certificate_is_handed_out_also_after_a_panic() {
        let panics = test_support::PanicsOnce::when(|snapshot| !snapshot.listeners.is_empty());
        let main = test_support::main_with("{node: {id: n, cluster: c}}", panics);
        assert_eq!(main.apply(&SecretSource::Ads, types::LISTENER, vec![listener(OWN_SECRETS)], &[]), []);
        let (renew, renewed) = watch::channel(Some(identity()));
        let task = tokio::spawn(secrets(main.clone(), Some(renewed), None));
        let mut snapshots = main.snapshots();
        let there = snapshots.wait_for(|snapshot| !snapshot.listeners.is_empty());
        let snapshot = tokio::time::timeout(Duration::from_secs(10), there).await.unwrap().unwrap().clone();
        let slot = snapshot.listeners[0].chains[0].tls.clone().unwrap();
        let first = slot.config.get().unwrap();
        renew.send_replace(Some(identity()));
        let taken = async {
            while Arc::ptr_eq(&first, &slot.config.get().unwrap()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), taken).await.unwrap();
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn certificate_files_are_taken_when_they_come_and_when_they_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let write = |identity: &WorkloadSecrets| {
            std::fs::write(path("crt"), identity.chain_pem()).unwrap();
            std::fs::write(path("key"), identity.key().to_pem()).unwrap();
        };
        let main = test_support::main("{node: {id: n, cluster: c}}");
        let name = format!("file-cert:{}~{}", path("crt").display(), path("key").display());
        assert_eq!(main.apply(&SecretSource::Ads, types::LISTENER, vec![listener_with(OWN_SECRETS, &name)], &[]), []);
        // The workload's own identity may come later, or never.
        let (_publish, none) = watch::channel(None);
        let mut tasks = JoinSet::new();
        tasks.spawn(secrets(main.clone(), Some(none), None));
        tasks.spawn(super::super::files::run(main.clone()));
        let told = async {
            while main.waiting() == ["listener l"] {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), told).await.unwrap();
        let why = format!("listener l ({}: cannot be read: No such file", path("crt").display());
        assert!(main.waiting()[0].starts_with(&why) && main.phase() == crate::main_thread::Phase::Initializing, "{:?}", main.waiting());

        let identities = [identity(), identity()];
        write(&identities[0]);
        let mut snapshots = main.snapshots();
        let there = snapshots.wait_for(|snapshot| !snapshot.listeners.is_empty());
        let snapshot = tokio::time::timeout(Duration::from_secs(10), there).await.unwrap().unwrap().clone();
        assert_eq!(main.phase(), crate::main_thread::Phase::Live);
        let slot = snapshot.listeners[0].chains[0].tls.clone().unwrap();
        let first = slot.config.get().unwrap();
        write(&identities[1]);
        let taken = async {
            while Arc::ptr_eq(&first, &slot.config.get().unwrap()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), taken).await.unwrap();
        tasks.shutdown().await;
    }
}
