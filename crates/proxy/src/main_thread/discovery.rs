//! Discovery streams: the aggregated one, and secret services of their own.
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use http::header::{HeaderMap, HeaderName};
use lateen_identity::WorkloadSecrets;
use lateen_snapshot::bootstrap::DynamicSource;
use lateen_snapshot::compile::{ApiSource, SecretKey, SecretSource, Since, Update, Wanted, file_and_name};
use lateen_telemetry::BlockName;
use lateen_telemetry::envoy_names::server;
use lateen_xds::client::{Io, Service, TokenSource};
use lateen_xds::{Client, ConnectionEvent, Connector, Handler, Mode, Options, Rejected, Resource, Subscriptions, types};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Main;
use super::supervise::{Panics, Supervisor};

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
    supervised(&main.supervisor, move || {
        let (main, cluster, authority) = (dialing.clone(), name.clone(), authority.clone());
        async move { main.connect(&cluster, &authority).await }
    })
}

/// Connects by these means. A connection that is shared opens itself in a task that nobody looks after: a panic there would take
/// its streams for ever and be known to nobody.
fn supervised<F>(supervisor: &Supervisor, dial: impl Fn() -> F + Send + Sync + 'static) -> Connector
where
    F: Future<Output = io::Result<Box<dyn Io>>> + Send + 'static,
{
    let (supervisor, panics) = (supervisor.clone(), Arc::<Mutex<Panics>>::default());
    Connector::new(move || {
        let (supervisor, panics, dialing) = (supervisor.clone(), panics.clone(), dial());
        async move {
            let connected = supervisor.attempt("connecting for discovery", &panics, dialing).await;
            connected.unwrap_or_else(|| Err(io::Error::other("a mistake of this proxy's")))
        }
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
    /// The streams of each of the others.
    others: HashMap<ApiSource, SecretStreams>,
}

/// Streams that have a connection together: a server may take no more than a hundred on one.
const MOST_STREAMS: usize = 64;

/// The streams of one service. Each is for one secret, as Envoy has them: Istio's agent ends a stream over a secret that it
/// cannot give, and the others must not go with it.
struct SecretStreams {
    connector: Connector,
    /// By the name of the secret. A stream ends with its task.
    tasks: HashMap<Arc<str>, JoinSet<()>>,
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
        let Some(streams) = self.others.get_mut(service) else { return };
        streams.tasks.remove(name);
        if streams.tasks.is_empty() {
            self.others.remove(service);
        }
    }

    fn open(&mut self, service: &ApiSource, name: &Arc<str>) {
        let Self { main, token, others, .. } = self;
        let none = || SecretStreams { connector: connector(main, service).shared(MOST_STREAMS), tasks: HashMap::new() };
        let streams = others.entry(service.clone()).or_insert_with(none);
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
#[path = "discovery_tests.rs"]
mod tests;
