//! A signing certificate with its key, chain and roots, checked to belong together.
use super::signature::{self, Verdict};
use crate::pem::InvalidPem;
use crate::tls::peer::{PeerIdentity, hex, system_time};
use rcgen::{Issuer, KeyPair, PublicKeyData};
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use std::time::SystemTime;
use x509_parser::certificate::X509Certificate;

/// Longest way from the signing certificate to a root.
const MAX_DEPTH: usize = 8;

/// What is wrong with a signing certificate, its key, or its chain. Names the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMaterial {
    #[error(transparent)]
    Pem(#[from] InvalidPem),
    #[error("{file}: {reason}")]
    Unusable { file: String, reason: String },
}

impl InvalidMaterial {
    pub(super) fn new(file: &str, reason: impl Into<String>) -> Self {
        Self::Unusable { file: file.to_owned(), reason: reason.into() }
    }
}

/// Where the parts come from, for error texts.
pub(super) struct Origins<'a> {
    pub(super) certificate: &'a str,
    pub(super) key: &'a str,
    pub(super) roots: &'a str,
}

/// What signs certificates.
pub(super) struct SigningMaterial {
    pub(super) issuer: Issuer<'static, KeyPair>,
    /// From the signing certificate up to, without, the root; empty when the root itself signs.
    pub(super) intermediates: Vec<CertificateDer<'static>>,
    pub(super) roots: Vec<CertificateDer<'static>>,
    pub(super) not_after: SystemTime,
    /// Tells two materials apart without keeping the key's text.
    digest: String,
}

impl SigningMaterial {
    /// Checks that `key` is the certificate's, that the certificate may sign and is valid at `now`,
    /// and that it chains over `chain` to one of `roots`.
    pub(super) fn new(
        certificate: CertificateDer<'static>,
        key: KeyPair,
        chain: &[CertificateDer<'static>],
        roots: Vec<CertificateDer<'static>>,
        origins: &Origins<'_>,
        now: SystemTime,
    ) -> Result<Self, InvalidMaterial> {
        let wrong = |reason: String| InvalidMaterial::new(origins.certificate, reason);
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).map_err(|e| wrong(format!("not valid X.509: {e}")))?;
        check_may_sign(&parsed, now).map_err(wrong)?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
            return Err(InvalidMaterial::new(origins.key, format!("is not the private key of the certificate in {}", origins.certificate)));
        }
        let intermediates = path_to_root(&certificate, chain, &roots)
            .map_err(|reason| wrong(format!("{reason}; {} must hold the root that it chains to", origins.roots)))?;
        let not_after = system_time(parsed.validity().not_after);
        let mut digest = Sha256::new();
        for part in std::iter::once(&certificate).chain(&intermediates).chain(&roots) {
            digest.update(part);
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|e| wrong(e.to_string()))?;
        Ok(Self { issuer, intermediates, roots, not_after, digest: hex(&digest.finalize()) })
    }

    pub(super) fn same_as(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

fn check_may_sign(certificate: &X509Certificate<'_>, now: SystemTime) -> Result<(), String> {
    if !certificate.is_ca() {
        return Err("is not a CA certificate (basicConstraints CA:TRUE is missing)".to_owned());
    }
    if let Ok(Some(usage)) = certificate.key_usage()
        && !usage.value.key_cert_sign()
    {
        return Err("may not sign certificates (keyUsage lacks keyCertSign)".to_owned());
    }
    if now >= system_time(certificate.validity().not_after) {
        return Err(format!("expired on {}", certificate.validity().not_after));
    }
    if now < system_time(certificate.validity().not_before) {
        return Err(format!("is not valid before {}", certificate.validity().not_before));
    }
    Ok(())
}

/// The certificates from `signer` up to, without, a root, checking each signature on the way.
fn path_to_root(
    signer: &CertificateDer<'static>,
    chain: &[CertificateDer<'static>],
    roots: &[CertificateDer<'static>],
) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut path = Vec::new();
    let mut current = signer.clone();
    while !roots.contains(&current) {
        path.push(current.clone());
        if path.len() > MAX_DEPTH {
            return Err(format!("more than {MAX_DEPTH} certificates stand between it and a root"));
        }
        let issuer = roots.iter().chain(chain).find(|candidate| !path.contains(candidate) && signed_by(&current, candidate));
        let subject = || PeerIdentity::from_der(&current).map(|c| c.issuer).unwrap_or_default();
        current = issuer.cloned().ok_or_else(|| format!("its issuer `{}` is neither in the chain nor a root", subject()))?;
    }
    Ok(path)
}

fn signed_by(certificate: &CertificateDer<'_>, issuer: &CertificateDer<'_>) -> bool {
    let parsed = (x509_parser::parse_x509_certificate(certificate), x509_parser::parse_x509_certificate(issuer));
    let (Ok((_, certificate)), Ok((_, issuer))) = parsed else { return false };
    certificate.issuer().as_raw() == issuer.subject().as_raw()
        && signature::verify(
            &certificate.signature_algorithm.algorithm,
            issuer.public_key(),
            certificate.tbs_certificate.as_ref(),
            &certificate.signature_value.data,
        ) == Verdict::Good
}
