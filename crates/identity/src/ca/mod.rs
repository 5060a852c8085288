//! The certificate authority: signs what an authenticated workload asks for, and the control plane's own certificates.
//!
//! The signing key comes from a state folder, where a self-signed root is made on the first start
//! ([`CertificateAuthority::self_signed`]), or from a folder in the layout of Istio's `cacerts`
//! ([`CertificateAuthority::plugged_in`]), which is read again when its files change.
pub mod csr;
mod issue;
mod material;
mod plugged;
pub mod server_certificate;
mod signature;
mod state;
pub(crate) use state::write_private;
#[cfg(test)]
mod tests;

pub use csr::{InvalidCsr, SigningRequest};
pub use material::InvalidMaterial;
pub use server_certificate::{CONTROL_PLANE_NAMES, serve_certificate};

use crate::pem;
use crate::secrets::{InvalidSecrets, PrivateKey, WorkloadSecrets};
use arc_swap::ArcSwap;
use lateen_core::spiffe::SpiffeId;
use material::SigningMaterial;
use rcgen::KeyPair;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// Lifetime of a workload certificate when the caller names none (Istio `DEFAULT_WORKLOAD_CERT_TTL`).
pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);
/// The longest lifetime given; longer requests are cut (Istio `MAX_WORKLOAD_CERT_TTL`).
pub const MAX_TTL: Duration = Duration::from_secs(90 * 24 * 3600);
/// Certificates start this much in the past, so that a peer with a slow clock accepts them at once.
pub const BACKDATE: Duration = Duration::from_secs(120);
/// How often the folder of a plugged-in authority is looked at.
pub const RELOAD_INTERVAL: Duration = Duration::from_secs(5);

/// Why an authority cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("{}: {cause}", path.display())]
    Io { path: PathBuf, cause: std::io::Error },
    #[error(transparent)]
    Material(#[from] InvalidMaterial),
    #[error("a root certificate cannot be made: {0}")]
    Generate(String),
}

/// Why a certificate was not issued.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error(transparent)]
    Csr(#[from] InvalidCsr),
    #[error("`{0}` cannot stand in a certificate")]
    Name(String),
    #[error("the signing certificate has expired; renew it")]
    IssuerExpired,
    #[error("signing failed: {0}")]
    Signing(String),
    #[error(transparent)]
    Secrets(#[from] InvalidSecrets),
}

/// A signed certificate with the chain up to the root.
#[derive(Clone, Debug)]
pub struct SignedChain {
    /// The leaf, then the intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    pub roots: Vec<CertificateDer<'static>>,
    pub not_after: SystemTime,
}

impl SignedChain {
    /// The response of the CSR service: leaf, intermediates, root last. Agents trust what stands in
    /// the last entry, so while roots are being exchanged all of them stand there.
    pub fn pem_entries(&self) -> Vec<String> {
        let mut entries: Vec<String> = self.chain.iter().map(|c| pem::encode("CERTIFICATE", c)).collect();
        entries.push(pem::encode_certificates(&self.roots));
        entries
    }
}

enum Source {
    /// Made here; does not change while the process runs.
    Fixed,
    Folder(PathBuf),
}

/// A certificate authority. Cheap to share behind an `Arc`; signing takes no lock.
pub struct CertificateAuthority {
    source: Source,
    current: ArcSwap<SigningMaterial>,
    generation: watch::Sender<u64>,
}

impl CertificateAuthority {
    /// Opens the self-signed authority kept in `folder`, making it on the first start: an ECDSA
    /// P-256 root valid for ten years, `root-cert.pem` and `ca-key.pem`, readable by the owner only.
    ///
    /// # Errors
    /// When the folder cannot be written, or holds files that are damaged: they are never replaced,
    /// since every workload would lose its trust.
    pub fn self_signed(folder: &Path, trust_domain: &str, now: SystemTime) -> Result<Self, CaError> {
        Ok(Self::with(Source::Fixed, state::open(folder, trust_domain, now)?))
    }

    /// Opens the authority in a folder with `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem` and `root-cert.pem`.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn plugged_in(folder: &Path, now: SystemTime) -> Result<Self, CaError> {
        Ok(Self::with(Source::Folder(folder.to_owned()), plugged::load(folder, now)?))
    }

    /// An authority that leaves nothing behind: for tests and one-off runs.
    ///
    /// # Errors
    /// When the trust domain cannot stand in a certificate.
    pub fn in_memory(trust_domain: &str, now: SystemTime) -> Result<Self, CaError> {
        Ok(Self::with(Source::Fixed, state::generate(trust_domain, now)?.0))
    }

    fn with(source: Source, material: SigningMaterial) -> Self {
        Self { source, current: ArcSwap::from_pointee(material), generation: watch::Sender::new(0) }
    }

    /// Signs a certificate for an authenticated caller. Only the public key of the request counts:
    /// subject and names in it are ignored, the SPIFFE id is the only name.
    ///
    /// # Errors
    /// When the request is not acceptable or the authority itself has expired.
    pub fn sign(&self, csr_pem: &str, id: &SpiffeId, ttl: Option<Duration>, now: SystemTime) -> Result<SignedChain, SignError> {
        let request = SigningRequest::from_pem(csr_pem)?;
        issue::workload(&self.current.load(), &request.public_key, id, ttl.unwrap_or(DEFAULT_TTL), now)
    }

    /// Makes a key and a certificate for a workload in this process, without a request.
    ///
    /// # Errors
    /// As [`CertificateAuthority::sign`].
    pub fn issue_workload(&self, id: &SpiffeId, ttl: Duration, now: SystemTime) -> Result<WorkloadSecrets, SignError> {
        let key = new_key()?;
        let signed = issue::workload(&self.current.load(), &key, id, ttl, now)?;
        assemble(signed, &key)
    }

    /// Makes a key and a server certificate with these DNS names, for the control plane itself.
    ///
    /// # Errors
    /// When a name cannot stand in a certificate or the authority has expired.
    pub fn issue_server(&self, dns_names: &[String], ttl: Duration, now: SystemTime) -> Result<WorkloadSecrets, SignError> {
        let key = new_key()?;
        let signed = issue::server(&self.current.load(), &key, dns_names, ttl, now)?;
        assemble(signed, &key)
    }

    /// The trusted roots, in DER.
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.current.load().roots.clone()
    }

    /// The trusted roots as PEM: the content of `istio-ca-root-cert`.
    pub fn roots_pem(&self) -> String {
        pem::encode_certificates(&self.current.load().roots)
    }

    /// When the signing certificate ends.
    pub fn expiry(&self) -> SystemTime {
        self.current.load().not_after
    }

    /// Changes whenever the signing material was replaced.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Reads the folder of a plugged-in authority again; `true` when something changed. On an error
    /// the material in use stays.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn reload(&self, now: SystemTime) -> Result<bool, CaError> {
        let Source::Folder(folder) = &self.source else { return Ok(false) };
        let fresh = plugged::load(folder, now)?;
        if fresh.same_as(&self.current.load()) {
            return Ok(false);
        }
        self.current.store(Arc::new(fresh));
        self.generation.send_modify(|g| *g += 1);
        Ok(true)
    }

    /// Keeps a plugged-in authority current until the future is dropped. A half-written folder is
    /// reported once and tried again.
    pub async fn follow_folder(self: Arc<Self>) {
        let Source::Folder(folder) = &self.source else { return std::future::pending().await };
        let mut complaint = String::new();
        loop {
            tokio::time::sleep(RELOAD_INTERVAL).await;
            match self.reload(SystemTime::now()) {
                Ok(true) => {
                    tracing::info!(folder = %folder.display(), "CA files changed; signing with the new certificate");
                    complaint.clear();
                }
                Ok(false) => complaint.clear(),
                Err(error) => {
                    let text = error.to_string();
                    if text != complaint {
                        tracing::warn!(folder = %folder.display(), error = %text, "CA files cannot be used; the previous ones stay in use");
                        complaint = text;
                    }
                }
            }
        }
    }
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAuthority").field("expiry", &self.expiry()).finish_non_exhaustive()
    }
}

fn new_key() -> Result<KeyPair, SignError> {
    KeyPair::generate().map_err(|e| SignError::Signing(e.to_string()))
}

fn assemble(signed: SignedChain, key: &KeyPair) -> Result<WorkloadSecrets, SignError> {
    Ok(WorkloadSecrets::new(signed.chain, private_key(key), signed.roots)?)
}

pub(crate) fn private_key(key: &KeyPair) -> PrivateKey {
    PrivateKey::from(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))
}
