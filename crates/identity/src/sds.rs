//! Serving the workload's identity to a local Envoy, as Istio's agent does: `default` is the
//! certificate with its key, `ROOTCA` the roots to trust. State of the world and delta.
//!
//! [`Subscription`] is the protocol without a socket; [`SdsServer`] puts it on a unix socket and
//! pushes whenever the rotation publishes.
use crate::secrets::WorkloadSecrets;
use bytes::Bytes;

use futures_util::stream::BoxStream;
use lateen_proto::any::{pack, url};
use lateen_proto::envoy::config::core::v3::{DataSource, data_source};
use lateen_proto::envoy::extensions::transport_sockets::tls::v3::{CertificateValidationContext, Secret, TlsCertificate, secret};
use lateen_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use lateen_proto::envoy::service::secret::v3::secret_discovery_service_server::{SecretDiscoveryService, SecretDiscoveryServiceServer};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// Name of the workload's certificate and key.
pub const DEFAULT_SECRET: &str = "default";
/// Name of the roots to trust.
pub const ROOT_SECRET: &str = "ROOTCA";
/// Names one stream may ask for; a proxy asks for two.
const MAX_NAMES: usize = 64;

type Secrets = watch::Receiver<Option<Arc<WorkloadSecrets>>>;

/// How clients took what was pushed.
#[derive(Debug, Default)]
pub struct Acknowledgements {
    accepted: AtomicU64,
    rejected: AtomicU64,
}

impl Acknowledgements {
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    pub fn rejected(&self) -> u64 {
        self.rejected.load(Ordering::Relaxed)
    }

    fn note(&self, rejection: Option<&str>) {
        match rejection {
            None => self.accepted.fetch_add(1, Ordering::Relaxed),
            Some(reason) => {
                tracing::warn!(%reason, "a proxy rejected its certificate");
                self.rejected.fetch_add(1, Ordering::Relaxed)
            }
        };
    }
}

/// What one client wants and has: the protocol state of a stream.
#[derive(Debug, Default)]
pub struct Subscription {
    names: BTreeSet<String>,
    /// Version of each resource as last sent.
    sent: BTreeMap<String, String>,
    nonce: u64,
}

/// What a request asks of the server.
#[derive(Debug, PartialEq, Eq)]
pub enum Reaction {
    /// Send what is due: [`Subscription::response`] or [`Subscription::delta_response`].
    Send,
    /// The client took, or with a reason did not take, the last response.
    Acknowledged(Option<String>),
    /// An answer to an older response: what it asks for will be asked again with the answer to the latest.
    Stale,
}

impl Subscription {
    /// A state-of-the-world request. A NACK is not answered: the same bytes would be rejected again.
    ///
    /// # Errors
    /// When another type or too many names are asked for.
    pub fn on_request(&mut self, request: &DiscoveryRequest) -> Result<Vec<Reaction>, Status> {
        check_type(&request.type_url)?;
        let mut reactions = self.acknowledge(&request.response_nonce, request.error_detail.as_ref().map(|e| e.message.clone()));
        if reactions.contains(&Reaction::Stale) {
            return Ok(reactions);
        }
        let names: BTreeSet<String> = request.resource_names.iter().cloned().collect();
        if names.len() > MAX_NAMES {
            return Err(Status::invalid_argument(format!("more than {MAX_NAMES} secrets asked for")));
        }
        if names.iter().any(|n| !self.names.contains(n)) {
            reactions.push(Reaction::Send);
        }
        self.sent.retain(|name, _| names.contains(name));
        self.names = names;
        Ok(reactions)
    }

    /// A delta request.
    ///
    /// # Errors
    /// As [`Subscription::on_request`].
    pub fn on_delta_request(&mut self, request: &DeltaDiscoveryRequest) -> Result<Vec<Reaction>, Status> {
        check_type(&request.type_url)?;
        let mut reactions = self.acknowledge(&request.response_nonce, request.error_detail.as_ref().map(|e| e.message.clone()));
        for name in &request.resource_names_unsubscribe {
            self.names.remove(name);
            self.sent.remove(name);
        }
        // After a reconnect the client says what it has; sending that again would be harmless but pointless.
        self.sent.extend(request.initial_resource_versions.clone());
        for name in &request.resource_names_subscribe {
            // Asking again for a name means that the client lost it.
            if !self.names.insert(name.clone()) {
                self.sent.remove(name);
            }
        }
        if self.names.len() > MAX_NAMES {
            return Err(Status::invalid_argument(format!("more than {MAX_NAMES} secrets asked for")));
        }
        if !request.resource_names_subscribe.is_empty() {
            reactions.push(Reaction::Send);
        }
        Ok(reactions)
    }

    /// An answer to an older response still tells how that one was taken: a push may cross it on the way.
    fn acknowledge(&self, nonce: &str, error: Option<String>) -> Vec<Reaction> {
        match nonce.parse::<u64>() {
            _ if nonce.is_empty() => Vec::new(),
            Ok(answered) if answered == self.nonce => vec![Reaction::Acknowledged(error)],
            Ok(answered) if (1..self.nonce).contains(&answered) => vec![Reaction::Acknowledged(error), Reaction::Stale],
            _ => vec![Reaction::Stale],
        }
    }

    /// The resources that the client wants and does not have in this version, marked as sent.
    fn due(&mut self, secrets: &WorkloadSecrets) -> Vec<(String, Secret)> {
        let mut due = Vec::new();
        for name in &self.names {
            let Some((version, secret)) = resource(name, secrets) else {
                tracing::debug!(%name, "a secret that is not served here was asked for");
                continue;
            };
            if self.sent.get(name) != Some(&version) {
                self.sent.insert(name.clone(), version);
                due.push((name.clone(), secret));
            }
        }
        due
    }

    /// The next state-of-the-world response, if one is due.
    pub fn response(&mut self, secrets: &WorkloadSecrets) -> Option<DiscoveryResponse> {
        let due = self.due(secrets);
        if due.is_empty() {
            return None;
        }
        self.nonce += 1;
        Some(DiscoveryResponse {
            version_info: version(secrets),
            type_url: url::<Secret>(),
            nonce: self.nonce.to_string(),
            resources: due.iter().map(|(_, secret)| pack(secret)).collect(),
            ..DiscoveryResponse::default()
        })
    }

    /// The next delta response, if one is due.
    pub fn delta_response(&mut self, secrets: &WorkloadSecrets) -> Option<DeltaDiscoveryResponse> {
        let due = self.due(secrets);
        if due.is_empty() {
            return None;
        }
        self.nonce += 1;
        let resource = |(name, secret): &(String, Secret)| Resource {
            name: name.clone(),
            version: self.sent.get(name).cloned().unwrap_or_default(),
            resource: Some(pack(secret)),
            ..Resource::default()
        };
        Some(DeltaDiscoveryResponse {
            system_version_info: version(secrets),
            type_url: url::<Secret>(),
            nonce: self.nonce.to_string(),
            resources: due.iter().map(resource).collect(),
            ..DeltaDiscoveryResponse::default()
        })
    }
}

fn check_type(type_url: &str) -> Result<(), Status> {
    if type_url.is_empty() || lateen_proto::any::name_of(type_url) == <Secret as prost::Name>::full_name() {
        return Ok(());
    }
    Err(Status::invalid_argument(format!("this socket serves {}, not {type_url}", url::<Secret>())))
}

/// The leaf's fingerprint: changes with every certificate, and says nothing about the key.
fn version(secrets: &WorkloadSecrets) -> String {
    secrets.leaf().fingerprint.clone()
}

fn resource(name: &str, secrets: &WorkloadSecrets) -> Option<(String, Secret)> {
    let inline = |text: String| {
        Some(DataSource { specifier: Some(data_source::Specifier::InlineBytes(Bytes::from(text))), ..DataSource::default() })
    };
    let (version, content) = match name {
        DEFAULT_SECRET => {
            let certificate = TlsCertificate {
                certificate_chain: inline(secrets.chain_pem()),
                private_key: inline(secrets.key().to_pem()),
                ..TlsCertificate::default()
            };
            (version(secrets), secret::Type::TlsCertificate(certificate))
        }
        ROOT_SECRET => {
            let roots = secrets.roots_pem();
            // Its own version: a new leaf must not make proxies rebuild their trust.
            let version = crate::tls::peer::sha256_hex(roots.as_bytes());
            (version, secret::Type::ValidationContext(CertificateValidationContext { trusted_ca: inline(roots), ..Default::default() }))
        }
        _ => return None,
    };
    Some((version, Secret { name: name.to_owned(), r#type: Some(content) }))
}

/// The gRPC service, for a router of one's own.
#[derive(Clone)]
pub struct SdsService {
    secrets: Secrets,
    acknowledgements: Arc<Acknowledgements>,
}

impl SdsService {
    pub fn new(secrets: Secrets) -> Self {
        Self { secrets, acknowledgements: Arc::default() }
    }

    pub fn acknowledgements(&self) -> Arc<Acknowledgements> {
        self.acknowledgements.clone()
    }
}

/// A running server; its socket file goes when it is dropped.
pub struct SdsServer {
    path: PathBuf,
    acknowledgements: Arc<Acknowledgements>,
    task: JoinHandle<()>,
}

impl SdsServer {
    /// Serves on a unix socket at `path`, replacing a dead socket left behind by a crash. Must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// When the socket cannot be made, or another process serves on it.
    pub fn start(path: &Path, secrets: Secrets) -> std::io::Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::AddrInUse,
                format!("another process serves secrets on {}; stop it or use that one", path.display()),
            ));
        }
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        // Whoever connects gets the private key.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        let service = SdsService::new(secrets);
        let acknowledgements = service.acknowledgements();
        let server = tonic::transport::Server::builder().add_service(SecretDiscoveryServiceServer::new(service));
        let task = tokio::spawn(async move {
            if let Err(error) = server.serve_with_incoming(UnixListenerStream::new(listener)).await {
                tracing::error!(%error, "the secret discovery server stopped");
            }
        });
        Ok(Self { path: path.to_owned(), acknowledgements, task })
    }

    pub fn acknowledgements(&self) -> &Acknowledgements {
        &self.acknowledgements
    }
}

impl Drop for SdsServer {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What happens to a stream: the client speaks, or the rotation publishes.
enum Event<R> {
    Request(Result<R, Status>),
    Rotated,
    Closed,
}

async fn next_event<R>(requests: &mut Streaming<R>, secrets: &mut Secrets) -> Event<R> {
    tokio::select! {
        request = requests.next() => request.map_or(Event::Closed, Event::Request),
        changed = secrets.changed() => if changed.is_ok() { Event::Rotated } else { Event::Closed },
    }
}

/// Runs one stream until either side ends it.
async fn run<R, A>(
    mut requests: Streaming<R>,
    mut secrets: Secrets,
    acknowledgements: Arc<Acknowledgements>,
    answers: mpsc::Sender<Result<A, Status>>,
    on_request: fn(&mut Subscription, &R) -> Result<Vec<Reaction>, Status>,
    respond: fn(&mut Subscription, &WorkloadSecrets) -> Option<A>,
) {
    let mut subscription = Subscription::default();
    loop {
        let send = match next_event(&mut requests, &mut secrets).await {
            Event::Closed | Event::Request(Err(_)) => return,
            Event::Rotated => true,
            Event::Request(Ok(request)) => match on_request(&mut subscription, &request) {
                Ok(reactions) => {
                    for reaction in &reactions {
                        if let Reaction::Acknowledged(rejection) = reaction {
                            acknowledgements.note(rejection.as_deref());
                        }
                    }
                    reactions.contains(&Reaction::Send)
                }
                Err(status) => {
                    let _ = answers.send(Err(status)).await;
                    return;
                }
            },
        };
        let current = secrets.borrow_and_update().clone();
        let answer = current.filter(|_| send).and_then(|current| respond(&mut subscription, &current));
        if let Some(answer) = answer
            && answers.send(Ok(answer)).await.is_err()
        {
            return;
        }
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for SdsService {
    type StreamSecretsStream = BoxStream<'static, Result<DiscoveryResponse, Status>>;
    type DeltaSecretsStream = BoxStream<'static, Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_secrets(&self, request: Request<Streaming<DiscoveryRequest>>) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let (answers, stream) = mpsc::channel(4);
        let (secrets, acknowledgements) = (self.secrets.clone(), self.acknowledgements.clone());
        tokio::spawn(run(request.into_inner(), secrets, acknowledgements, answers, Subscription::on_request, Subscription::response));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        let (answers, stream) = mpsc::channel(4);
        let (secrets, acknowledgements) = (self.secrets.clone(), self.acknowledgements.clone());
        let requests = request.into_inner();
        tokio::spawn(run(requests, secrets, acknowledgements, answers, Subscription::on_delta_request, Subscription::delta_response));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn fetch_secrets(&self, request: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        let mut subscription = Subscription::default();
        subscription.on_request(request.get_ref())?;
        let current = self.secrets.borrow().clone().ok_or_else(|| Status::unavailable("there is no certificate yet"))?;
        let response = subscription.response(&current).ok_or_else(|| Status::not_found("no such secret"))?;
        Ok(Response::new(response))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::CertificateAuthority;
    use hyper_util::rt::TokioIo;
    use lateen_proto::any::open;
    use lateen_proto::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
    use lateen_proto::google::rpc;
    use std::time::{Duration, SystemTime};
    use tokio::net::UnixStream;
    use tonic::transport::{Channel, Endpoint};

    const HOUR: Duration = Duration::from_secs(3600);

    fn issue(ca: &CertificateAuthority) -> Arc<WorkloadSecrets> {
        Arc::new(ca.issue_workload(&"spiffe://td/ns/a/sa/b".parse().unwrap(), HOUR, SystemTime::now()).unwrap())
    }

    async fn connect(path: &Path) -> SecretDiscoveryServiceClient<Channel> {
        let path = path.to_owned();
        let connector = tower::service_fn(move |_: http::Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        SecretDiscoveryServiceClient::new(Endpoint::from_static("http://sds").connect_with_connector(connector).await.unwrap())
    }

    fn ask(names: &[&str], nonce: &str) -> DiscoveryRequest {
        DiscoveryRequest {
            resource_names: names.iter().map(|n| (*n).to_owned()).collect(),
            type_url: url::<Secret>(),
            response_nonce: nonce.to_owned(),
            ..DiscoveryRequest::default()
        }
    }

    async fn within<T>(future: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(10), future).await.expect("an answer in time")
    }

    fn inline(source: Option<&DataSource>) -> Vec<u8> {
        match &source.unwrap().specifier {
            Some(data_source::Specifier::InlineBytes(bytes)) => bytes.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_proxy_gets_its_certificate_and_each_renewal() {
        let ca = CertificateAuthority::in_memory("td", SystemTime::now()).unwrap();
        let (publish, secrets) = watch::channel(None);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("workload/socket");
        let server = SdsServer::start(&path, secrets.clone()).unwrap();
        assert_eq!(SdsServer::start(&path, secrets).err().map(|e| e.kind()), Some(std::io::ErrorKind::AddrInUse));

        let (requests, stream) = mpsc::channel(8);
        let mut client = connect(&path).await;
        requests.send(ask(&[DEFAULT_SECRET, ROOT_SECRET], "")).await.unwrap();
        let mut answers = within(client.stream_secrets(ReceiverStream::new(stream))).await.unwrap().into_inner();
        // Asked before there was a certificate: answered as soon as there is one.
        let first = issue(&ca);
        publish.send_replace(Some(first.clone()));
        let answer = within(answers.message()).await.unwrap().unwrap();
        let served: Vec<Secret> = answer.resources.iter().map(|r| open(r).unwrap()).collect();
        assert_eq!(served.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), [ROOT_SECRET, DEFAULT_SECRET]);
        let Some(secret::Type::ValidationContext(trust)) = &served[0].r#type else { panic!() };
        let Some(secret::Type::TlsCertificate(certificate)) = &served[1].r#type else { panic!() };
        let chain = inline(certificate.certificate_chain.as_ref());
        let read =
            WorkloadSecrets::from_pem(&chain, &inline(certificate.private_key.as_ref()), &inline(trust.trusted_ca.as_ref())).unwrap();
        assert_eq!(read.leaf(), first.leaf());

        requests.send(ask(&[DEFAULT_SECRET, ROOT_SECRET], &answer.nonce)).await.unwrap();
        publish.send_replace(Some(issue(&ca)));
        let renewal = within(answers.message()).await.unwrap().unwrap();
        // The roots are the same and not pushed again.
        assert_eq!(renewal.resources.len(), 1);
        assert_ne!(renewal.version_info, answer.version_info);

        let mut nack = ask(&[DEFAULT_SECRET, ROOT_SECRET], &renewal.nonce);
        nack.error_detail = Some(rpc::Status { message: "no".into(), ..Default::default() });
        requests.send(nack).await.unwrap();
        publish.send_replace(Some(issue(&ca)));
        within(answers.message()).await.unwrap().unwrap();
        let counts = || (server.acknowledgements().accepted(), server.acknowledgements().rejected());
        within(async {
            while counts() != (1, 1) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        drop(server);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn delta_streams_and_single_fetches_are_served_too() {
        let ca = CertificateAuthority::in_memory("td", SystemTime::now()).unwrap();
        let (publish, secrets) = watch::channel(Some(issue(&ca)));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _server = SdsServer::start(&path, secrets).unwrap();
        let mut client = connect(&path).await;
        let (requests, stream) = mpsc::channel(8);
        let subscribe = DeltaDiscoveryRequest { resource_names_subscribe: vec![DEFAULT_SECRET.into()], ..Default::default() };
        requests.send(subscribe).await.unwrap();
        let mut answers = within(client.delta_secrets(ReceiverStream::new(stream))).await.unwrap().into_inner();
        let first = within(answers.message()).await.unwrap().unwrap();
        assert_eq!(first.resources[0].name, DEFAULT_SECRET);
        publish.send_replace(Some(issue(&ca)));
        let second = within(answers.message()).await.unwrap().unwrap();
        assert_ne!(first.resources[0].version, second.resources[0].version);

        let fetched = within(client.fetch_secrets(ask(&[ROOT_SECRET], ""))).await.unwrap().into_inner();
        assert_eq!(open::<Secret>(&fetched.resources[0]).unwrap().name, ROOT_SECRET);
        assert_eq!(within(client.fetch_secrets(ask(&["other"], ""))).await.unwrap_err().code(), tonic::Code::NotFound);
    }

    #[test]
    fn other_types_and_floods_of_names_are_refused() {
        let mut subscription = Subscription::default();
        let wrong = DiscoveryRequest { type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".into(), ..Default::default() };
        assert!(subscription.on_request(&wrong).is_err());
        let names: Vec<String> = (0..=MAX_NAMES).map(|n| n.to_string()).collect();
        assert!(subscription.on_request(&DiscoveryRequest { resource_names: names, ..Default::default() }).is_err());
        let stale = DiscoveryRequest { response_nonce: "7".into(), ..Default::default() };
        assert_eq!(subscription.on_request(&stale).unwrap(), [Reaction::Stale]);
    }
}
