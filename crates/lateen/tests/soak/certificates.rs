//! An authority, and certificates that are replaced all the time. Their serial numbers say which is the newest.
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType, SerialNumber};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

/// Whom callers ask for.
pub(crate) const SERVER: &str = "proxy.example";

pub(crate) struct Authority {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
    roots: Arc<RootCertStore>,
    next: u64,
}

impl Authority {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key)?;
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone())?;
        Ok(Self { pem: certificate.pem(), issuer: Issuer::new(params, key), roots: Arc::new(roots), next: 1 })
    }

    /// A new certificate: its number, itself and its key.
    pub(crate) fn issue(&mut self, name: &str) -> anyhow::Result<(u64, String, String)> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        let uri = format!("spiffe://cluster.local/ns/default/sa/{name}");
        params.subject_alt_names = vec![SanType::DnsName(name.try_into()?), SanType::URI(uri.as_str().try_into()?)];
        let number = self.next;
        self.next += 1;
        params.serial_number = Some(SerialNumber::from(number));
        Ok((number, params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }

    /// A caller with a new certificate.
    pub(crate) fn connector(&mut self) -> anyhow::Result<TlsConnector> {
        let (_, certificate, key) = self.issue("client")?;
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
        let config = ClientConfig::builder().with_root_certificates(self.roots.clone()).with_client_auth_cert(chain, key)?;
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// The number of a certificate that a proxy showed.
pub(crate) fn number(certificate: &CertificateDer<'_>) -> Option<u64> {
    let identity = lateen_identity::PeerIdentity::from_der(certificate).ok()?;
    let digits: String = identity.serial.chars().filter(char::is_ascii_hexdigit).collect();
    u64::from_str_radix(&digits, 16).ok()
}
