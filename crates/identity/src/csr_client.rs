//! Asking a CA for a workload's certificate: a fresh key, a request, and a token or the old certificate as proof.
use crate::ca::private_key;
use crate::pem;
use crate::rotation::{CertificateSource, FetchError};
use crate::secrets::WorkloadSecrets;
use crate::tls::verifier::{ChainVerifier, Usage, unix_time};
use crate::tls::{ClientParams, Verification};
use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use lateen_core::spiffe::SpiffeId;
use lateen_proto::istio::v1::auth::IstioCertificateRequest;
use lateen_proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::ClientConfig;
use rustls_pki_types::{CertificateDer, ServerName};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

/// Time for connecting, and again for the answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A chain with its roots stays far below this.
const MAX_RESPONSE_BYTES: usize = 1 << 20;

/// How the CA is reached.
#[derive(Clone, Debug)]
pub enum Transport {
    /// Without TLS (port 15010): the token travels readable, so only within one machine.
    Plaintext,
    /// With TLS (port 15012).
    Tls {
        /// The name that the CA's certificate must have; `istiod.istio-system.svc` for instance.
        server_name: String,
        roots: RootsSource,
    },
}

/// Where the roots come from that the CA's own certificate must chain to.
#[derive(Clone, Debug)]
pub enum RootsSource {
    /// A PEM file, read again for every request (`istio-ca-root-cert` mounted into the pod).
    File(PathBuf),
    Given(Vec<CertificateDer<'static>>),
}

/// Which certificate to ask for, and where.
#[derive(Clone, Debug)]
pub struct CsrClientConfig {
    /// `host:port` of the CA.
    pub address: String,
    pub transport: Transport,
    /// Read again for every request, since the platform rotates it. Without it, or when it cannot be
    /// read, the current certificate is shown instead.
    pub token_file: Option<PathBuf>,
    /// The identity that the certificate must come back with; `None` accepts what the CA says.
    pub expected: Option<SpiffeId>,
    /// Lifetime to ask for.
    pub ttl: Duration,
    /// Sent as `ClusterID` metadata; empty sends none.
    pub cluster_id: String,
}

/// Obtains certificates from an Istio-compatible CA.
#[derive(Clone, Debug)]
pub struct CsrClient {
    config: CsrClientConfig,
}

impl CsrClient {
    pub fn new(config: CsrClientConfig) -> Self {
        Self { config }
    }

    /// Asks for a certificate with a new key. `current` serves as credential where there is no token.
    ///
    /// # Errors
    /// Says which step failed; never contains the token or the key.
    pub async fn request(&self, current: Option<&WorkloadSecrets>) -> Result<WorkloadSecrets, FetchError> {
        let address = &self.config.address;
        let token = self.token();
        if let (Err(reason), None) = (&token, current) {
            return Err(FetchError(format!("no credential for the CA: {reason}, and there is no certificate yet")));
        }
        // Both at once would leave open which identity counts, and a stale certificate would fail the handshake.
        let token = token.ok();
        let certificate = if token.is_some() { None } else { current };
        let channel = self.connect(certificate).await?;
        let key = KeyPair::generate().map_err(|e| FetchError(format!("no key can be made: {e}")))?;
        let request = self.build_request(&key, token.as_deref())?;
        let mut client = IstioCertificateServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE_BYTES);
        let answer = tokio::time::timeout(TIMEOUT, client.create_certificate(request)).await;
        let answer = answer.map_err(|_| FetchError(format!("the CA at {address} did not answer within {TIMEOUT:?}")))?;
        let response = answer.map_err(|status| FetchError(explain(address, &status)))?.into_inner();
        self.accept(&response.cert_chain, &key, SystemTime::now())
    }

    fn token(&self) -> Result<String, String> {
        let file = self.config.token_file.as_ref().ok_or("no token file is configured")?;
        let token = std::fs::read_to_string(file).map_err(|e| format!("the token file {} cannot be read: {e}", file.display()))?;
        let token = token.trim();
        if token.is_empty() { Err(format!("the token file {} is empty", file.display())) } else { Ok(token.to_owned()) }
    }

    fn build_request(&self, key: &KeyPair, token: Option<&str>) -> Result<Request<IstioCertificateRequest>, FetchError> {
        let failed = |e: rcgen::Error| FetchError(format!("no signing request can be made: {e}"));
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(key).and_then(|csr| csr.pem()).map_err(failed)?;
        let validity_duration = i64::try_from(self.config.ttl.as_secs()).unwrap_or(i64::MAX);
        let mut request = Request::new(IstioCertificateRequest { csr, validity_duration, metadata: None });
        let ascii = |text: &str, what: &str| {
            AsciiMetadataValue::try_from(text).map_err(|_| FetchError(format!("the {what} holds characters that cannot be sent")))
        };
        if let Some(token) = token {
            let mut value = ascii(&format!("Bearer {token}"), "token")?;
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        if !self.config.cluster_id.is_empty() {
            request.metadata_mut().insert("clusterid", ascii(&self.config.cluster_id, "cluster id")?);
        }
        Ok(request)
    }

    async fn connect(&self, certificate: Option<&WorkloadSecrets>) -> Result<Channel, FetchError> {
        let address = &self.config.address;
        let failed = |reason: String| FetchError(format!("the CA at {address} cannot be reached: {reason}"));
        let tls = match &self.config.transport {
            Transport::Plaintext => None,
            Transport::Tls { server_name, roots } => {
                let mut params = ClientParams::new(Verification::host(roots.load()?));
                params.alpn = vec![b"h2".to_vec()];
                if let Some(certificate) = certificate {
                    params = params.with_key(certificate.certified_key());
                }
                Some((params.build().map_err(|e| failed(e.to_string()))?, server_name.as_str()))
            }
        };
        let endpoint = endpoint(address).map_err(|e| failed(e.to_string()))?;
        match tls {
            None => endpoint.connect().await.map_err(|e| failed(crate::tls::refusal(&e))),
            Some((config, name)) => connect_tls(&endpoint, address, config, name).await.map_err(|e| failed(crate::tls::refusal(&e))),
        }
    }

    /// Checks what came back before anything relies on it.
    fn accept(&self, entries: &[String], key: &KeyPair, now: SystemTime) -> Result<WorkloadSecrets, FetchError> {
        let failed = |reason: String| FetchError(format!("the CA's answer cannot be used: {reason}"));
        let Some((roots, chain)) = entries.split_last().filter(|(_, chain)| !chain.is_empty()) else {
            return Err(failed(format!("it holds {} certificates; a leaf and a root are needed", entries.len())));
        };
        let roots = pem::certificates(roots.as_bytes(), "root").map_err(|e| failed(e.to_string()))?;
        let chain = pem::certificates(chain.concat().as_bytes(), "chain").map_err(|e| failed(e.to_string()))?;
        // An intermediate's chain file often repeats the root; presenting it to peers would be waste.
        let chain: Vec<_> = chain.into_iter().filter(|c| !roots.contains(c)).collect();
        let secrets = WorkloadSecrets::new(chain, private_key(key), roots).map_err(|e| failed(e.to_string()))?;
        let verifier = ChainVerifier::new(secrets.roots()).map_err(|e| failed(e.to_string()))?;
        if let Some((leaf, rest)) = secrets.chain().split_first() {
            verifier.verify(leaf, rest, Usage::Client, unix_time(now)).map_err(|e| failed(e.to_string()))?;
        }
        match (&self.config.expected, secrets.spiffe()) {
            (Some(expected), found) if Some(expected) != found => {
                Err(failed(format!("it is for {:?}, not {expected}", secrets.leaf().uri_sans)))
            }
            _ => Ok(secrets),
        }
    }
}

impl CertificateSource for CsrClient {
    fn fetch(&self, current: Option<Arc<WorkloadSecrets>>) -> BoxFuture<'_, Result<WorkloadSecrets, FetchError>> {
        Box::pin(async move { self.request(current.as_deref()).await })
    }
}

impl RootsSource {
    fn load(&self) -> Result<Vec<CertificateDer<'static>>, FetchError> {
        match self {
            Self::Given(roots) => Ok(roots.clone()),
            Self::File(path) => pem::read_file(path)
                .and_then(|text| pem::certificates(&text, &path.display().to_string()))
                .map_err(|e| FetchError(e.to_string())),
        }
    }
}

/// A gRPC endpoint at `host:port` with bounded waits. The scheme is always `http`: TLS, where there
/// is any, is the connector's.
///
/// # Errors
/// When `address` is not `host:port`.
pub fn endpoint(address: &str) -> Result<Endpoint, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    Ok(endpoint
        .connect_timeout(TIMEOUT)
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10))
        .tcp_nodelay(true))
}

/// Connects a gRPC channel over TLS with a configuration of [`ClientParams`]; it must offer `h2`.
/// For the CSR client and for xDS streams to the control plane.
///
/// # Errors
/// When connecting or the handshake fails; [`crate::tls::refusal`] tells why.
pub async fn connect_tls(
    endpoint: &Endpoint,
    address: &str,
    config: Arc<ClientConfig>,
    server_name: &str,
) -> Result<Channel, tonic::transport::Error> {
    endpoint.connect_with_connector(tls_connector(address, config, server_name)).await
}

/// As [`connect_tls`], but connecting on first use and again after a loss.
pub fn connect_tls_lazy(endpoint: &Endpoint, address: &str, config: Arc<ClientConfig>, server_name: &str) -> Channel {
    endpoint.connect_with_connector_lazy(tls_connector(address, config, server_name))
}

type TlsIo = TokioIo<tokio_rustls::client::TlsStream<TcpStream>>;

fn tls_connector(
    address: &str,
    config: Arc<ClientConfig>,
    server_name: &str,
) -> impl tower::Service<http::Uri, Response = TlsIo, Error = std::io::Error, Future = BoxFuture<'static, std::io::Result<TlsIo>>> + Send + 'static
{
    let (address, server_name) = (address.to_owned(), server_name.to_owned());
    tower::service_fn(move |_: http::Uri| {
        let (address, server_name, connector) = (address.clone(), server_name.clone(), TlsConnector::from(config.clone()));
        let connect: BoxFuture<'static, _> = Box::pin(async move {
            let name = ServerName::try_from(server_name).map_err(std::io::Error::other)?;
            let connect = async {
                let stream = TcpStream::connect(&address).await?;
                stream.set_nodelay(true)?;
                connector.connect(name, stream).await
            };
            // The endpoint's own limit covers TCP only in some versions: a handshake must not hang either.
            tokio::time::timeout(TIMEOUT, connect).await.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?.map(TokioIo::new)
        });
        connect
    })
}

fn explain(address: &str, status: &tonic::Status) -> String {
    let advice = match status.code() {
        Code::Unauthenticated => "; check the token's issuer, audience and expiry",
        Code::Unavailable => "; is the control plane running?",
        _ => "",
    };
    format!("the CA at {address} refused: {:?}: {}{advice}", status.code(), status.message())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authenticate::{Authenticators, CertificateAuthenticator, JwtAuthenticator, JwtConfig};
    use crate::ca::{CONTROL_PLANE_NAMES, CertificateAuthority, DEFAULT_TTL};
    use crate::csr_service::{CsrService, Limits, PeerCertificates};
    use crate::tls::{ClientAuth, ServerParams};
    use crate::token::{DEFAULT_ISSUER, TokenIssuer};
    use lateen_proto::istio::v1::auth::istio_certificate_service_server::IstioCertificateServiceServer;
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;
    use tokio_rustls::TlsAcceptor;
    use tonic::service::Routes;

    struct Mesh {
        ca: Arc<CertificateAuthority>,
        issuer: TokenIssuer,
        address: String,
        folder: tempfile::TempDir,
        task: JoinHandle<()>,
    }

    impl Drop for Mesh {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    impl Mesh {
        /// A control plane on loopback with TLS, asking for client certificates as port 15012 does.
        async fn start(limits: Limits) -> Self {
            let now = SystemTime::now();
            let ca = Arc::new(CertificateAuthority::in_memory("cluster.local", now).unwrap());
            let issuer = TokenIssuer::generate(DEFAULT_ISSUER).unwrap();
            let config =
                JwtConfig { issuer: DEFAULT_ISSUER.into(), audiences: vec!["istio-ca".into()], trust_domain: "cluster.local".into() };
            let jwt = JwtAuthenticator::from_jwks(config, &issuer.jwks()).unwrap();
            let certificate = CertificateAuthenticator::new(ca.clone(), vec!["cluster.local".into()]);
            let ways = Authenticators::new(vec![Arc::new(certificate), Arc::new(jwt)]);
            let service = CsrService::new(ca.clone(), ways, limits).into_server();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let names = CONTROL_PLANE_NAMES.map(str::to_owned).to_vec();
            let server = ca.issue_server(&names, DEFAULT_TTL, now).unwrap();
            let mut params = ServerParams::new(vec![server.certified_key()]);
            params.client_auth = ClientAuth::Optional;
            params.verification = Verification::roots(ca.roots(), Vec::new());
            params.alpn = vec![b"h2".to_vec()];
            let task = tokio::spawn(serve(listener, TlsAcceptor::from(params.build().unwrap()), service));
            Self { ca, issuer, address, folder: tempfile::tempdir().unwrap(), task }
        }

        fn client(&self, account: &str) -> CsrClient {
            let file = self.folder.path().join(account);
            let token = self.issuer.issue("default", account, "istio-ca", Duration::from_secs(600), SystemTime::now()).unwrap();
            std::fs::write(&file, token).unwrap();
            CsrClient::new(CsrClientConfig {
                address: self.address.clone(),
                transport: Transport::Tls { server_name: "istiod.istio-system.svc".into(), roots: RootsSource::Given(self.ca.roots()) },
                token_file: Some(file),
                expected: None,
                ttl: DEFAULT_TTL,
                cluster_id: "Kubernetes".into(),
            })
        }
    }

    /// What the control plane's server shell does: the handshake, then the chain into the extensions.
    async fn serve(listener: TcpListener, acceptor: TlsAcceptor, service: IstioCertificateServiceServer<CsrService>) {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, routes) = (acceptor.clone(), Routes::new(service.clone()));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let chain = stream.get_ref().1.peer_certificates().map(|c| c.iter().map(|c| c.clone().into_owned()).collect());
                let peer = PeerCertificates(Arc::new(chain.unwrap_or_default()));
                let handler = tower::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
                    request.extensions_mut().insert(peer.clone());
                    tower::ServiceExt::oneshot(routes.clone(), request)
                });
                let connection = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
                let _ = connection.serve_connection(TokioIo::new(stream), hyper_util::service::TowerToHyperService::new(handler)).await;
            });
        }
    }

    #[tokio::test]
    async fn a_token_gets_a_certificate_and_the_certificate_the_next() {
        let mesh = Mesh::start(Limits::default()).await;
        let client = mesh.client("reviews");
        let first = client.request(None).await.unwrap();
        assert_eq!(first.spiffe().unwrap().to_string(), "spiffe://cluster.local/ns/default/sa/reviews");
        assert_eq!(first.roots(), mesh.ca.roots());
        std::fs::remove_file(mesh.folder.path().join("reviews")).unwrap();
        let second = client.request(Some(&first)).await.unwrap();
        assert_eq!(second.spiffe(), first.spiffe());
        assert_ne!(second.leaf().serial, first.leaf().serial);
        let error = client.request(None).await.unwrap_err().to_string();
        assert!(error.contains("token file") && error.contains("cannot be read"), "{error}");
    }

    #[tokio::test]
    async fn a_rotation_renews_before_the_end_and_outlives_its_token() {
        let mesh = Mesh::start(Limits::default()).await;
        let mut client = mesh.client("reviews");
        client.config.ttl = Duration::from_secs(3);
        let rotation = crate::rotation::Rotation::start(Arc::new(client), crate::rotation::Policy::default());
        let mut current = rotation.ready(Duration::from_secs(10)).await.unwrap();
        std::fs::remove_file(mesh.folder.path().join("reviews")).unwrap();
        let mut secrets = rotation.secrets();
        secrets.mark_unchanged();
        for _ in 0..2 {
            tokio::time::timeout(Duration::from_secs(5), secrets.changed()).await.unwrap().unwrap();
            assert!(SystemTime::now() < current.expiry(), "the old certificate was still good when the new one came");
            let next = secrets.borrow_and_update().clone().unwrap();
            assert_ne!(next.leaf().serial, current.leaf().serial);
            current = next;
        }
        assert_eq!(rotation.status().borrow().failures, 0);
    }

    #[tokio::test]
    async fn bad_tokens_get_an_opaque_answer() {
        let mesh = Mesh::start(Limits::default()).await;
        let client = mesh.client("reviews");
        let token = mesh.issuer.issue("default", "reviews", "wrong-audience", DEFAULT_TTL, SystemTime::now()).unwrap();
        std::fs::write(mesh.folder.path().join("reviews"), &token).unwrap();
        let error = client.request(None).await.unwrap_err().to_string();
        assert!(error.contains("Unauthenticated: request authenticate failure"), "{error}");
        assert!(!error.contains("wrong-audience") && !error.contains(&token), "{error}");
    }

    #[tokio::test]
    async fn impersonation_other_signers_and_floods_are_refused() {
        let rate = crate::csr_service::Rate { burst: 1.0, per_second: 0.001 };
        let mesh = Mesh::start(Limits { identity: rate, ..Limits::default() }).await;
        let client = mesh.client("ztunnel");
        let ask = async |field: Option<(&str, &str)>| {
            let token = client.token().unwrap();
            let mut request = client.build_request(&KeyPair::generate().unwrap(), Some(&token)).unwrap();
            if let Some((key, text)) = field {
                let value = lateen_proto::Value { kind: Some(prost_types::value::Kind::StringValue(text.into())) };
                request.get_mut().metadata = Some(lateen_proto::Struct { fields: [(key.to_owned(), value)].into() });
            }
            IstioCertificateServiceClient::new(client.connect(None).await.unwrap()).create_certificate(request).await.map_err(|s| s.code())
        };
        let other = "spiffe://cluster.local/ns/default/sa/admin";
        assert_eq!(ask(Some(("ImpersonatedIdentity", other))).await.unwrap_err(), Code::Unauthenticated);
        assert_eq!(ask(Some(("CertSigner", "vault"))).await.unwrap_err(), Code::InvalidArgument);
        assert!(ask(None).await.is_ok());
        assert_eq!(ask(None).await.unwrap_err(), Code::ResourceExhausted);
    }

    #[tokio::test]
    async fn a_stranger_in_the_place_of_the_ca_is_not_told_the_token() {
        let mesh = Mesh::start(Limits::default()).await;
        let mut client = mesh.client("reviews");
        let other = CertificateAuthority::in_memory("cluster.local", SystemTime::now()).unwrap();
        client.config.transport =
            Transport::Tls { server_name: "istiod.istio-system.svc".into(), roots: RootsSource::Given(other.roots()) };
        let error = client.request(None).await.unwrap_err().to_string();
        assert!(error.contains("cannot be reached"), "{error}");
        client.config.transport = Transport::Tls { server_name: "evil.example".into(), roots: RootsSource::Given(mesh.ca.roots()) };
        let error = client.request(None).await.unwrap_err().to_string();
        assert!(error.contains("not valid for `evil.example`"), "{error}");
    }

    #[test]
    fn answers_for_another_key_or_identity_are_refused() {
        let now = SystemTime::now();
        let ca = CertificateAuthority::in_memory("td", now).unwrap();
        let id = SpiffeId::new("td", "ns", "a").unwrap();
        let client = CsrClient::new(CsrClientConfig {
            address: String::new(),
            transport: Transport::Plaintext,
            token_file: None,
            expected: Some(SpiffeId::new("td", "ns", "b").unwrap()),
            ttl: DEFAULT_TTL,
            cluster_id: String::new(),
        });
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        let entries = ca.sign(&csr, &id, None, now).unwrap().pem_entries();
        let refused = |entries: &[String], key: &KeyPair| client.accept(entries, key, now).unwrap_err().to_string();
        assert!(refused(&entries, &key).contains("not spiffe://td/ns/ns/sa/b"));
        assert!(refused(&entries, &KeyPair::generate().unwrap()).contains("does not belong"));
        assert!(refused(&entries[..1], &key).contains("a leaf and a root are needed"));
        let stranger = CertificateAuthority::in_memory("td", now).unwrap();
        assert!(refused(&[entries[0].clone(), stranger.roots_pem()], &key).contains("does not chain"));
    }
}
