//! Choosing which certificate to present: a fixed set, or the latest of a rotation.
use super::san::dns_name_covers;
use crate::secrets::WorkloadSecrets;
use crate::tls::peer::PeerIdentity;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{SignatureAlgorithm, SignatureScheme};
use std::fmt;
use std::sync::Arc;
use tokio::sync::watch;

/// Certificates of one listener. For a server name, those that have it before those whose wildcard covers it; of equals, one of
/// an elliptic curve before others, as far as the client's algorithms allow (Envoy `DefaultTlsCertificateSelector`).
/// For a name that none has, the first that fits the algorithms, or where all are looked at then, one as without a name.
pub struct CertificateSet {
    all: Vec<Candidate>,
    scans_all: bool,
}

struct Candidate {
    exact: Vec<String>,
    wildcards: Vec<String>,
    is_elliptic: bool,
    key: Arc<CertifiedKey>,
}

impl Candidate {
    fn new(key: Arc<CertifiedKey>) -> Self {
        let leaf = key.cert.first().and_then(|leaf| PeerIdentity::from_der(leaf).ok());
        let names = leaf.map(|leaf| leaf.server_names()).unwrap_or_default();
        let (wildcards, exact) = names.into_iter().partition(|name| name.starts_with("*."));
        Self { exact, wildcards, is_elliptic: key.key.algorithm() == SignatureAlgorithm::ECDSA, key }
    }
}

impl CertificateSet {
    /// `keys` in order of preference; `scans_all` is Envoy's `full_scan_certs_on_sni_mismatch`.
    pub fn new(keys: impl IntoIterator<Item = Arc<CertifiedKey>>, scans_all: bool) -> Self {
        Self { all: keys.into_iter().map(Candidate::new).collect(), scans_all }
    }

    pub(super) fn choose(&self, host: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let fitting = || self.all.iter().filter(|c| c.key.key.choose_scheme(schemes).is_some());
        let covers = |names: &[String]| host.is_some_and(|host| names.iter().any(|name| dns_name_covers(name, host)));
        let best =
            |named: &dyn Fn(&Candidate) -> bool| fitting().find(|c| c.is_elliptic && named(c)).or_else(|| fitting().find(|c| named(c)));
        let found = match host {
            Some(_) => best(&|c| covers(&c.exact)).or_else(|| best(&|c| covers(&c.wildcards))),
            None => None,
        };
        let found = found.or_else(|| if host.is_none() || self.scans_all { best(&|_| true) } else { None });
        found.or_else(|| fitting().next()).map(|c| c.key.clone())
    }
}

impl fmt::Debug for CertificateSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all.iter().flat_map(|c| c.exact.iter().chain(&c.wildcards))).finish()
    }
}

impl ResolvesServerCert for CertificateSet {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name(), hello.signature_schemes())
    }
}

/// Presents the latest certificate of a rotation: new connections get the new one, open ones are
/// left alone. Follows the certificate only; rebuild the configuration when the roots change.
#[derive(Clone)]
pub struct RotatingKey(watch::Receiver<Option<Arc<WorkloadSecrets>>>);

impl RotatingKey {
    pub fn new(secrets: watch::Receiver<Option<Arc<WorkloadSecrets>>>) -> Arc<Self> {
        Arc::new(Self(secrets))
    }

    fn current(&self) -> Option<Arc<CertifiedKey>> {
        self.0.borrow().as_ref().map(|s| s.certified_key())
    }
}

impl fmt::Debug for RotatingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RotatingKey")
    }
}

impl ResolvesServerCert for RotatingKey {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current()
    }
}

impl ResolvesClientCert for RotatingKey {
    fn resolve(&self, _root_hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.current().filter(|key| key.key.choose_scheme(schemes).is_some())
    }

    fn has_certs(&self) -> bool {
        self.0.borrow().is_some()
    }
}

/// A client certificate that does not change. Unlike rustls' own, it ignores the server's hints:
/// a mesh peer's certificate is always the right one to show.
#[derive(Debug)]
pub(super) struct FixedKey(pub(super) Arc<CertifiedKey>);

impl ResolvesClientCert for FixedKey {
    fn resolve(&self, _root_hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone()).filter(|key| key.key.choose_scheme(schemes).is_some())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
