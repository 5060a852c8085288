//! Serving the workload's identity to a local Envoy, as Istio's agent does: `default` is the
//! certificate with its key, `ROOTCA` the roots to trust; and what is in files that a name says
//! ([`crate::file_secret`]). State of the world and delta.
//!
//! [`Subscription`] is the protocol without a socket; [`SdsServer`] puts it on a unix socket and
//! pushes whenever the rotation publishes or a file changes.
use crate::secrets::WorkloadSecrets;
use crate::tls::peer::sha256_hex;

use futures_util::stream::BoxStream;
use lateen_proto::any::{pack, url};
use lateen_proto::envoy::extensions::transport_sockets::tls::v3::Secret;
use lateen_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use lateen_proto::envoy::service::secret::v3::secret_discovery_service_server::{SecretDiscoveryService, SecretDiscoveryServiceServer};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

mod served;
#[cfg(test)]
mod tests;

pub use served::{Files, Served};

/// Name of the workload's certificate and key.
pub const DEFAULT_SECRET: &str = "default";
/// Name of the roots to trust.
pub const ROOT_SECRET: &str = "ROOTCA";
/// Names one stream may ask for; a proxy asks for two.
const MAX_NAMES: usize = 64;
/// How often files are looked at that a client's secrets are in.
const INTERVAL: Duration = Duration::from_secs(1);

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

    /// What the client wants.
    pub fn names(&self) -> &BTreeSet<String> {
        &self.names
    }

    /// The resources that the client wants and does not have in this version, marked as sent.
    fn due(&mut self, served: Served<'_>) -> Vec<(String, Secret)> {
        let mut due = Vec::new();
        for name in &self.names {
            let Some(found) = served.secret(name) else {
                tracing::debug!(%name, "a secret that is not served here, or not yet, was asked for");
                continue;
            };
            if self.sent.get(name) != Some(&found.version) {
                self.sent.insert(name.clone(), found.version);
                due.push((name.clone(), found.secret));
            }
        }
        due
    }

    /// Of all that the client has.
    fn version(&self) -> String {
        let all: String = self.sent.iter().map(|(name, version)| format!("{name} {version}\n")).collect();
        sha256_hex(all.as_bytes())
    }

    /// The next state-of-the-world response, if one is due.
    pub fn response(&mut self, served: Served<'_>) -> Option<DiscoveryResponse> {
        let due = self.due(served);
        if due.is_empty() {
            return None;
        }
        self.nonce += 1;
        Some(DiscoveryResponse {
            version_info: self.version(),
            type_url: url::<Secret>(),
            nonce: self.nonce.to_string(),
            resources: due.iter().map(|(_, secret)| pack(secret)).collect(),
            ..DiscoveryResponse::default()
        })
    }

    /// The next delta response, if one is due.
    pub fn delta_response(&mut self, served: Served<'_>) -> Option<DeltaDiscoveryResponse> {
        let due = self.due(served);
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
            system_version_info: self.version(),
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

/// What happens to a stream: the client speaks, the rotation publishes, or files are due to be looked at.
enum Event<R> {
    Request(Result<R, Status>),
    Rotated,
    Files,
    Closed,
}

async fn next_event<R>(requests: &mut Streaming<R>, secrets: &mut Secrets, looks: Option<&mut Interval>) -> Event<R> {
    let due = async {
        match looks {
            Some(looks) => drop(looks.tick().await),
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        request = requests.next() => request.map_or(Event::Closed, Event::Request),
        changed = secrets.changed() => if changed.is_ok() { Event::Rotated } else { Event::Closed },
        () = due => Event::Files,
    }
}

/// Runs one stream until either side ends it.
async fn run<R, A>(
    mut requests: Streaming<R>,
    mut secrets: Secrets,
    acknowledgements: Arc<Acknowledgements>,
    answers: mpsc::Sender<Result<A, Status>>,
    on_request: fn(&mut Subscription, &R) -> Result<Vec<Reaction>, Status>,
    respond: fn(&mut Subscription, Served<'_>) -> Option<A>,
) {
    let (mut subscription, mut files) = (Subscription::default(), Files::default());
    let mut looks = tokio::time::interval(INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let looks = (!files.is_empty()).then_some(&mut looks);
        match next_event(&mut requests, &mut secrets, looks).await {
            Event::Closed | Event::Request(Err(_)) => return,
            Event::Rotated => {}
            Event::Files => files.look_again(),
            Event::Request(Ok(request)) => match on_request(&mut subscription, &request) {
                Ok(reactions) => {
                    for reaction in &reactions {
                        if let Reaction::Acknowledged(rejection) = reaction {
                            acknowledgements.note(rejection.as_deref());
                        }
                    }
                    files.follow(subscription.names());
                    if !reactions.contains(&Reaction::Send) {
                        continue;
                    }
                }
                Err(status) => {
                    let _ = answers.send(Err(status)).await;
                    return;
                }
            },
        }
        let identity = secrets.borrow_and_update().clone();
        if let Some(answer) = respond(&mut subscription, Served { identity: identity.as_deref(), files: &files })
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
        let mut files = Files::default();
        files.follow(subscription.names());
        let identity = self.secrets.borrow().clone();
        let response = subscription.response(Served { identity: identity.as_deref(), files: &files });
        let missing = || match subscription.names().iter().find_map(|name| files.unusable(name)) {
            Some(unusable) => Status::unavailable(unusable.to_string()),
            None if identity.is_none() => Status::unavailable("there is no certificate yet"),
            None => Status::not_found("no such secret"),
        };
        response.map(Response::new).ok_or_else(missing)
    }
}
