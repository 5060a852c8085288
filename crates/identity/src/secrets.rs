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
    let leaf = chain.first().ok_or(InvalidSecrets::NoCertificate)?;
    // Not by `CertifiedKey::keys_match`: it takes no certificates of X.509 v1, as `openssl x509 -req` makes them. What a peer
    // thinks of one is for the peer to say.
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|e| InvalidSecrets::Leaf(e.to_string()))?;
    let is_its = signer.public_key().is_some_and(|public| public.as_ref() == parsed.public_key().raw);
    if is_its { Ok(CertifiedKey::new(chain, signer)) } else { Err(InvalidSecrets::Mismatch) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::asn1_rs::{Any, Class, FromDer};

    /// A value in DER: a sequence of these.
    fn sequence(content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[0x30, 0x82], &length[..], content].concat()
    }

    fn values(mut der: &[u8]) -> Vec<(Class, &[u8])> {
        let mut values = Vec::new();
        while !der.is_empty() {
            let (rest, value) = Any::from_der(der).unwrap();
            let (whole, _) = der.split_at(der.len() - rest.len());
            values.push((value.class(), whole));
            der = rest;
        }
        values
    }

    /// The certificate without what X.509 v1 does not have: a version and extensions.
    fn as_v1(certificate: &CertificateDer<'_>) -> CertificateDer<'static> {
        let inside = |der| Any::from_der(der).unwrap().1.data;
        let outer = values(inside(certificate));
        let kept: Vec<&[u8]> =
            values(inside(outer[0].1)).into_iter().filter(|(class, _)| *class == Class::Universal).map(|v| v.1).collect();
        CertificateDer::from(sequence(&[&sequence(&kept.concat()), outer[1].1, outer[2].1].concat()))
    }

    #[test]
    fn certificates_of_the_first_version_go_with_their_keys_too() {
        let pair = || {
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap().self_signed(&key).unwrap();
            (as_v1(certificate.der()), PrivateKey::from_pem(key.serialize_pem().as_bytes(), "key").unwrap())
        };
        let ((first, key), (second, _)) = (pair(), pair());
        let (_, parsed) = x509_parser::parse_x509_certificate(&first).unwrap();
        assert_eq!(parsed.version(), x509_parser::x509::X509Version::V1);
        assert_eq!(certified_key(vec![first.clone()], &key).unwrap().cert, [first]);
        assert_eq!(certified_key(vec![second], &key).err(), Some(InvalidSecrets::Mismatch));
        assert_eq!(certified_key(Vec::new(), &key).err(), Some(InvalidSecrets::NoCertificate));
        assert!(matches!(certified_key(vec![CertificateDer::from(vec![1])], &key), Err(InvalidSecrets::Leaf(_))));
    }
}
