//! What the discovery service asks of the control plane: who may connect, and what they get.
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use lateen_core::spiffe::SpiffeId;
use lateen_identity::authenticate::{Authenticators, Credentials};
use lateen_proto::envoy::config::core::v3::Node;
use lateen_translate::view::ProxyView;
use lateen_xds::Resource;
use lateen_xds::server::{Backend, Event, Hub, Names};
use lateen_xds::types::{SECRET, short_name};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};

use crate::metrics::Metrics;
use crate::resources;
use crate::snapshot::Snapshot;

/// All streams of this control plane.
pub type Streams = Hub<Client, Arc<Snapshot>>;

/// A proxy that is connected.
#[derive(Clone, Debug)]
pub struct Client {
    pub view: ProxyView,
    pub node: Node,
    /// Proven by certificate or token; `None` on the plaintext port without a token.
    pub identity: Option<SpiffeId>,
    pub remote: Option<SocketAddr>,
}

/// Who opened a stream, before it has said anything.
pub(crate) struct Caller {
    identity: Option<SpiffeId>,
    remote: Option<SocketAddr>,
}

/// The control plane as the discovery service sees it.
pub(crate) struct ControlBackend {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) authenticators: Option<Authenticators>,
    pub(crate) require_identity: bool,
}

impl ControlBackend {
    async fn identify(&self, metadata: &MetadataMap, extensions: &tonic::Extensions) -> Result<Caller, Status> {
        let tls = extensions.get::<TlsConnectInfo<TcpConnectInfo>>();
        let tcp = tls.map(TlsConnectInfo::get_ref).or_else(|| extensions.get::<TcpConnectInfo>());
        let remote = tcp.and_then(TcpConnectInfo::remote_addr);
        let chain = tls.and_then(TlsConnectInfo::peer_certs);
        let chain: &[CertificateDer<'static>] = chain.as_deref().map_or(&[], Vec::as_slice);
        let bearer = metadata.get("authorization").and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Bearer "));
        // Over TLS, or with a token in hand, an identity is expected; a wrong one is never taken for none.
        let expected = self.require_identity || tls.is_some() || bearer.is_some();
        let Some(authenticators) = &self.authenticators else {
            return if self.require_identity {
                Err(Status::unauthenticated("no way of authentication is configured"))
            } else {
                Ok(Caller { identity: None, remote })
            };
        };
        if !expected {
            return Ok(Caller { identity: None, remote });
        }
        let credentials = Credentials { peer_certificates: chain, bearer, now: SystemTime::now() };
        match authenticators.authenticate(credentials).await {
            Ok(identity) => Ok(Caller { identity: Some(identity), remote }),
            Err(reasons) => {
                tracing::warn!(?remote, reasons, "a stream is refused: the caller did not prove who it is");
                Err(Status::unauthenticated("show a client certificate of this mesh or a service-account token"))
            }
        }
    }
}

impl Backend for ControlBackend {
    type Identity = Caller;
    type Proxy = Client;
    type Snapshot = Arc<Snapshot>;

    async fn authenticate(&self, metadata: &MetadataMap, extensions: &tonic::Extensions) -> Result<Caller, Status> {
        self.identify(metadata, extensions).await.inspect_err(|_| self.metrics.refused())
    }

    fn accept(&self, node: &Node, caller: Caller) -> Result<Client, Status> {
        let client = admit(node, caller);
        client.inspect_err(|status| {
            self.metrics.refused();
            tracing::warn!(node = node.id, reason = status.message(), "a stream is refused");
        })
    }

    fn generate(&self, snapshot: &Arc<Snapshot>, client: &Client, type_url: &str, names: &Names) -> Vec<Arc<Resource>> {
        if type_url == SECRET && client.identity.is_none() {
            // Keys of gateways go to nobody who has not proven to be in their namespace.
            tracing::warn!(node = client.view.id, "secrets are asked for without an identity; use the TLS port or a token");
            return Vec::new();
        }
        resources::generate(snapshot, &client.view, type_url, names)
    }

    fn event(&self, client: &Client, event: Event<'_>) {
        let node = client.view.id.as_str();
        match event {
            Event::Connected => {
                tracing::info!(node, remote = ?client.remote, identity = ?client.identity.as_ref().map(ToString::to_string), "proxy connected")
            }
            Event::Disconnected { reason } => tracing::info!(node, reason, "proxy disconnected"),
            Event::Sent { type_url, resources, removed, push } => {
                self.metrics.sent(type_url);
                tracing::debug!(node, r#type = short_name(type_url), resources, removed, push, "sent");
            }
            Event::Acked { type_url } => self.metrics.acked(type_url),
            Event::Nacked { type_url, message } => {
                self.metrics.rejected(type_url);
                tracing::warn!(node, r#type = short_name(type_url), message, "the proxy refused resources; it keeps its last good ones");
            }
            Event::Stale { type_url } => self.metrics.stale(type_url),
            Event::Converged { after } => self.metrics.converged(after),
        }
    }
}

/// Reads the node, and checks that it does not claim another namespace than the one it has proven.
fn admit(node: &Node, caller: Caller) -> Result<Client, Status> {
    let view = ProxyView::from_node(node).map_err(|e| Status::invalid_argument(e.to_string()))?;
    if let Some(identity) = &caller.identity
        && identity.namespace() != view.namespace
    {
        let message = format!("the node says namespace `{}`, its identity is {identity}", view.namespace);
        return Err(Status::permission_denied(message));
    }
    let mut node = node.clone();
    // Thousands of names that only say what Envoy was built with; `view` has what matters.
    node.extensions.clear();
    Ok(Client { view, node, identity: caller.identity, remote: caller.remote })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(namespace: &str) -> Node {
        Node { id: format!("sidecar~10.0.0.1~pod.{namespace}~{namespace}.svc.cluster.local"), ..Default::default() }
    }

    #[test]
    fn a_node_cannot_claim_a_foreign_namespace() {
        let caller = |ns: &str| Caller { identity: SpiffeId::new("cluster.local", ns, "default").ok(), remote: None };
        assert!(admit(&node("a"), caller("a")).is_ok());
        let refused = admit(&node("a"), caller("b")).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
        assert!(admit(&node("a"), Caller { identity: None, remote: None }).is_ok());
    }

    #[test]
    fn a_malformed_node_is_told_what_is_wrong() {
        let refused = admit(&Node { id: "x".into(), ..Default::default() }, Caller { identity: None, remote: None }).unwrap_err();
        assert!(refused.message().contains("`x`"), "{}", refused.message());
    }

    #[tokio::test]
    async fn the_plaintext_port_may_insist_on_an_identity() {
        let backend = |require_identity| ControlBackend { metrics: Arc::default(), authenticators: None, require_identity };
        let (metadata, extensions) = (MetadataMap::new(), tonic::Extensions::new());
        assert!(backend(false).authenticate(&metadata, &extensions).await.is_ok());
        let refused = backend(true).authenticate(&metadata, &extensions).await.err().unwrap();
        assert_eq!(refused.code(), tonic::Code::Unauthenticated);
        let with = ControlBackend { authenticators: Some(Authenticators::new(Vec::new())), ..backend(false) };
        assert!(with.authenticate(&metadata, &extensions).await.is_ok());
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", "Bearer wrong".parse().unwrap());
        assert!(with.authenticate(&metadata, &extensions).await.is_err(), "a wrong token is not the same as none");
    }
}
