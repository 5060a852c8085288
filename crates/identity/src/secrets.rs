//! A workload's certificate chain, private key and trusted roots, checked when put together.
use crate::pem::{self, InvalidPem};
use crate::tls::peer::PeerIdentity;
use crate::tls::provider;
use lateen_core::spiffe::SpiffeId;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

/// A private key in DER. Its `Debug` output never shows the key.
pub struct PrivateKey(PrivateKeyDer<'static>);

impl PrivateKey {
    /// Reads a PKCS#8, PKCS#1 or SEC1 key.
    ///
    /// # Errors
    /// See [`pem::private_key`]; `origin` is named in the error.
    pub fn from_pem(text: &[u8], origin: &str) -> Result<Self, InvalidPem> {
        pem::private_key(text, origin).map(Self)
    }

    pub fn der(&self) -> &PrivateKeyDer<'static> {
        &self.0
    }

    /// The key as PEM, to be handed to a local peer (SDS) or written to a 0600 file, never logged.
    pub fn to_pem(&self) -> String {
        let label = match &self.0 {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        pem::encode(label, self.0.secret_der())
    }
}

impl From<PrivateKeyDer<'static>> for PrivateKey {
    fn from(der: PrivateKeyDer<'static>) -> Self {
        Self(der)
    }
}

impl Clone for PrivateKey {
    fn clone(&self) -> Self {
        Self(self.0.clone_key())
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(elided)")
    }
}

/// Why a chain, a key and roots do not make a usable identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSecrets {
    #[error(transparent)]
    Pem(#[from] InvalidPem),
    #[error("the certificate chain is empty")]
    NoCertificate,
    #[error("the list of trusted roots is empty")]
    NoRoots,
    #[error("the leaf certificate is not valid X.509: {0}")]
    Leaf(String),
    #[error("the private key cannot be used: {0}")]
    Key(String),
    #[error("the private key does not belong to the leaf certificate")]
    Mismatch,
}

/// An identity ready for use: what [`crate::rotation`] publishes and [`crate::sds`] serves.
#[derive(Clone)]
pub struct WorkloadSecrets {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKey,
    roots: Vec<CertificateDer<'static>>,
    leaf: PeerIdentity,
    expiry: SystemTime,
    certified: Arc<CertifiedKey>,
}

impl WorkloadSecrets {
    /// Puts an identity together. `chain` is the leaf followed by its intermediates, without the root.
    ///
    /// # Errors
    /// When a part is missing or unusable, or the key is not the leaf's.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKey, roots: Vec<CertificateDer<'static>>) -> Result<Self, InvalidSecrets> {
        if roots.is_empty() {
            return Err(InvalidSecrets::NoRoots);
        }
        let leaf = chain.first().ok_or(InvalidSecrets::NoCertificate)?;
        let leaf = PeerIdentity::from_der(leaf).map_err(|e| InvalidSecrets::Leaf(e.to_string()))?;
        let certified = Arc::new(certified_key(chain.clone(), &key)?);
        let ends = chain.iter().filter_map(|c| PeerIdentity::from_der(c).ok()).map(|c| c.not_after);
        let expiry = ends.min().unwrap_or(leaf.not_after);
        Ok(Self { chain, key, roots, leaf, expiry, certified })
    }

    /// Reads an identity from PEM texts.
    ///
    /// # Errors
    /// As [`WorkloadSecrets::new`], or when a text is not PEM.
    pub fn from_pem(chain: &[u8], key: &[u8], roots: &[u8]) -> Result<Self, InvalidSecrets> {
        Self::new(
            pem::certificates(chain, "certificate chain")?,
            PrivateKey::from_pem(key, "private key")?,
            pem::certificates(roots, "root certificates")?,
        )
    }

    /// The leaf, then its intermediates; without the root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    pub fn chain_pem(&self) -> String {
        pem::encode_certificates(&self.chain)
    }

    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// The certificates to trust, in DER.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    pub fn roots_pem(&self) -> String {
        pem::encode_certificates(&self.roots)
    }

    /// What a peer sees of the leaf: names, serial, fingerprint, validity.
    pub fn leaf(&self) -> &PeerIdentity {
        &self.leaf
    }

    /// The leaf's SPIFFE id, when it has one in Istio's form.
    pub fn spiffe(&self) -> Option<&SpiffeId> {
        self.leaf.spiffe.as_ref()
    }

    pub fn not_before(&self) -> SystemTime {
        self.leaf.not_before
    }

    /// When the earliest certificate of the chain ends, usually the leaf.
    pub fn expiry(&self) -> SystemTime {
        self.expiry
    }

    /// Chain and key as rustls wants them; shared, so that handing it out is cheap.
    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }
}

impl fmt::Debug for WorkloadSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadSecrets")
            .field("uri_sans", &self.leaf.uri_sans)
            .field("serial", &self.leaf.serial)
            .field("expiry", &self.expiry())
            .field("chain", &self.chain.len())
            .field("roots", &self.roots.len())
            .finish_non_exhaustive()
    }
}

/// Chain and key as rustls wants them, checked to belong together.
///
/// # Errors
/// When the chain is empty, the key unusable, or they do not match.
pub fn certified_key(chain: Vec<CertificateDer<'static>>, key: &PrivateKey) -> Result<CertifiedKey, InvalidSecrets> {
    let signer = provider().key_provider.load_private_key(key.der().clone_key()).map_err(|e| InvalidSecrets::Key(e.to_string()))?;
    let certified = CertifiedKey::new(chain, signer);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(rustls::Error::NoCertificatesPresented) => Err(InvalidSecrets::NoCertificate),
        Err(rustls::Error::InconsistentKeys(_)) => Err(InvalidSecrets::Mismatch),
        Err(other) => Err(InvalidSecrets::Leaf(other.to_string())),
    }
}
