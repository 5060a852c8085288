//! What a client of the socket is sent.
use super::*;
use crate::ca::CertificateAuthority;
use hyper_util::rt::TokioIo;
use lateen_proto::any::open;
use lateen_proto::envoy::config::core::v3::{DataSource, data_source};
use lateen_proto::envoy::extensions::transport_sockets::tls::v3::secret;
use lateen_proto::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use lateen_proto::google::rpc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::SystemTime;
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
    let read = WorkloadSecrets::from_pem(&chain, &inline(certificate.private_key.as_ref()), &inline(trust.trusted_ca.as_ref())).unwrap();
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

/// What the only secret of an answer holds, as text.
fn content(answer: &DiscoveryResponse) -> (String, [String; 2]) {
    let secret: Secret = open(&answer.resources[0]).unwrap();
    let text = |source: Option<&DataSource>| String::from_utf8(inline(source)).unwrap();
    let content = match secret.r#type.unwrap() {
        secret::Type::TlsCertificate(c) => [text(c.certificate_chain.as_ref()), text(c.private_key.as_ref())],
        secret::Type::ValidationContext(v) => [text(v.trusted_ca.as_ref()), String::new()],
        other => panic!("{other:?}"),
    };
    (secret.name, content)
}

#[tokio::test]
async fn secrets_in_files_are_sent_when_they_come_and_when_they_change() {
    let ca = CertificateAuthority::in_memory("td", SystemTime::now()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let write = |identity: &WorkloadSecrets| {
        std::fs::write(path("crt"), identity.chain_pem()).unwrap();
        std::fs::write(path("key"), identity.key().to_pem()).unwrap();
    };
    // Nothing of the workload's own identity, which may come later.
    let (_publish, secrets) = watch::channel(None);
    let socket = path("socket");
    let _server = SdsServer::start(&socket, secrets).unwrap();
    let mut client = connect(&socket).await;
    let name = format!("file-cert:{}~{}", path("crt").display(), path("key").display());
    let unavailable = within(client.fetch_secrets(ask(&[&name], ""))).await.unwrap_err();
    assert_eq!(unavailable.code(), tonic::Code::Unavailable);
    assert!(unavailable.message().starts_with(&format!("{}: cannot be read", path("crt").display())), "{unavailable}");

    let (requests, stream) = mpsc::channel(8);
    requests.send(ask(&[&name], "")).await.unwrap();
    let mut answers = within(client.stream_secrets(ReceiverStream::new(stream))).await.unwrap().into_inner();
    let (first, second) = (issue(&ca), issue(&ca));
    write(&first);
    let answer = within(answers.message()).await.unwrap().unwrap();
    assert_eq!(content(&answer), (name.clone(), [first.chain_pem(), first.key().to_pem()]));
    requests.send(ask(&[&name], &answer.nonce)).await.unwrap();
    // What is broken is not sent; what was there before stays.
    std::fs::write(path("crt"), "rubbish").unwrap();
    std::fs::remove_file(path("key")).unwrap();
    write(&second);
    let renewal = within(answers.message()).await.unwrap().unwrap();
    assert_eq!(content(&renewal), (name, [second.chain_pem(), second.key().to_pem()]));
    assert_ne!(renewal.version_info, answer.version_info);
}

#[tokio::test]
async fn roots_in_a_file_are_served_by_their_path_and_what_is_named_badly_is_not() {
    let ca = CertificateAuthority::in_memory("td", SystemTime::now()).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let identity = issue(&ca);
    std::fs::write(file.path(), identity.roots_pem()).unwrap();
    let (name, bad) = (format!("file-root:{}", file.path().display()), "file-root:a~b".to_owned());
    let mut files = Files::default();
    files.follow(&[name.clone(), bad].into());
    let mut subscription = Subscription::default();
    assert_eq!(subscription.on_request(&ask(&[&name, "file-root:a~b", DEFAULT_SECRET], "")).unwrap(), [Reaction::Send]);
    let answer = subscription.response(Served { identity: None, files: &files }).unwrap();
    assert_eq!((answer.resources.len(), content(&answer)), (1, (name, [identity.roots_pem(), String::new()])));
    assert_eq!(subscription.response(Served { identity: None, files: &files }), None, "it is sent once");
    files.follow(&BTreeSet::new());
    assert!(files.is_empty(), "what is wanted no longer is not watched");
}

#[test]
fn files_that_break_leave_what_was_read_last() {
    let ca = CertificateAuthority::in_memory("td", SystemTime::now()).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let name = format!("file-root:{}", file.path().display());
    let identity = issue(&ca);
    std::fs::write(file.path(), identity.roots_pem()).unwrap();
    let mut files = Files::default();
    files.follow(&[name.clone()].into());
    let version = |files: &Files| Served { identity: None, files }.secret(&name).map(|sent| sent.version);
    let first = version(&files);
    assert!(first.is_some() && files.unusable(&name).is_none());
    std::fs::write(file.path(), "rubbish").unwrap();
    files.look_again();
    assert!(version(&files) == first && files.unusable(&name).unwrap().to_string().contains("holds no usable CERTIFICATE section"));
    std::fs::remove_file(file.path()).unwrap();
    files.look_again();
    assert_eq!(version(&files), first);
}

/// Counts what this thread is warned of.
struct Warnings(Arc<AtomicUsize>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Relaxed);
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn each_version_of_a_file_that_cannot_be_used_is_told_of_and_no_other_try() {
    let warnings = Arc::new(AtomicUsize::new(0));
    let _counting = tracing::subscriber::set_default(Warnings(warnings.clone()));
    let told = || warnings.swap(0, Relaxed);
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut files = Files::default();
    files.follow(&[format!("file-root:{}", file.path().display())].into());
    assert_eq!(told(), 1);
    for hours in 1..3 {
        // What comes is as bad.
        file.as_file().set_modified(SystemTime::now() - hours * HOUR).unwrap();
        files.look_again();
        assert_eq!(told(), 1);
        files.look_again();
        assert_eq!(told(), 0);
    }
    // It is there, and its beginning cannot be read.
    files.follow(&["file-root:/proc/self/mem".to_owned()].into());
    assert_eq!(told(), 1);
    files.look_again();
    assert_eq!(told(), 0);
}
