//! Choosing which certificate to present: a fixed set, or the latest of a rotation.
use super::san::dns_name_covers;
use crate::secrets::WorkloadSecrets;
use crate::tls::peer::PeerIdentity;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::fmt;
use std::sync::Arc;
use tokio::sync::watch;

/// Certificates of one listener: the one that fits the server name and the client's algorithms is
/// presented, else the first that fits the algorithms (an RSA and an ECDSA certificate side by side).
pub struct CertificateSet(Vec<(Vec<String>, Arc<CertifiedKey>)>);

impl CertificateSet {
    /// `keys` in order of preference.
    pub fn new(keys: impl IntoIterator<Item = Arc<CertifiedKey>>) -> Self {
        let names = |key: &CertifiedKey| {
            let leaf = key.cert.first().and_then(|leaf| PeerIdentity::from_der(leaf).ok());
            leaf.map(|l| l.dns_sans).unwrap_or_default()
        };
        Self(keys.into_iter().map(|key| (names(&key), key)).collect())
    }

    fn choose(&self, host: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let fits = |key: &CertifiedKey| key.key.choose_scheme(schemes).is_some();
        let named = |names: &[String]| host.is_some_and(|host| names.iter().any(|n| dns_name_covers(n, host)));
        let best = self.0.iter().find(|(names, key)| named(names) && fits(key)).or_else(|| self.0.iter().find(|(_, key)| fits(key)));
        best.map(|(_, key)| key.clone())
    }
}

impl fmt::Debug for CertificateSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(names, _)| names)).finish()
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
