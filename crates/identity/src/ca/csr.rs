//! Certificate signing requests: what comes from a workload that nobody trusts yet.
use super::signature::{self, Verdict};
use rcgen::SubjectPublicKeyInfo;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo as ParsedKey;

/// Requests larger than this are refused: one with an RSA 8192 key is below 4 KiB.
pub const MAX_CSR_BYTES: usize = 16 * 1024;
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Why a request is not signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCsr {
    #[error("the certificate signing request is {0} bytes large; at most {MAX_CSR_BYTES} are read")]
    TooLarge(usize),
    #[error("the certificate signing request is not PEM text with one CERTIFICATE REQUEST section")]
    NotPem,
    #[error("the certificate signing request does not parse: {0}")]
    Malformed(String),
    #[error("the signature of the certificate signing request is not made by its key")]
    Signature,
    #[error("the certificate signing request is signed with an algorithm that is not accepted; use SHA-256 or better")]
    SignatureAlgorithm,
    #[error("the key of the certificate signing request is not accepted: {0}; use ECDSA P-256, P-384, P-521 or RSA of 2048 bits or more")]
    Key(String),
}

/// A request whose signature and key were checked. Only the key is kept.
#[derive(Debug)]
pub struct SigningRequest {
    pub(super) public_key: SubjectPublicKeyInfo,
}

impl SigningRequest {
    /// Reads and checks a request.
    ///
    /// # Errors
    /// When it is too large, malformed, signed by another key, or its key is too weak.
    pub fn from_pem(text: &str) -> Result<Self, InvalidCsr> {
        if text.len() > MAX_CSR_BYTES {
            return Err(InvalidCsr::TooLarge(text.len()));
        }
        // OpenSSL once wrote another label; agents still meet it.
        let text = text.replace("NEW CERTIFICATE REQUEST", "CERTIFICATE REQUEST");
        let der = CertificateSigningRequestDer::from_pem_slice(text.as_bytes()).map_err(|_| InvalidCsr::NotPem)?;
        let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|e| InvalidCsr::Malformed(e.to_string()))?;
        if !rest.is_empty() {
            return Err(InvalidCsr::Malformed("bytes follow the request".to_owned()));
        }
        let key = &request.certification_request_info.subject_pki;
        check_key(key)?;
        let algorithm = &request.signature_algorithm.algorithm;
        match signature::verify(algorithm, key, request.certification_request_info.raw, &request.signature_value.data) {
            Verdict::Good => {}
            Verdict::Bad => return Err(InvalidCsr::Signature),
            Verdict::UnknownAlgorithm => return Err(InvalidCsr::SignatureAlgorithm),
        }
        let public_key = SubjectPublicKeyInfo::from_der(key.raw).map_err(|e| InvalidCsr::Key(e.to_string()))?;
        Ok(Self { public_key })
    }
}

fn check_key(key: &ParsedKey<'_>) -> Result<(), InvalidCsr> {
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) => {
            let bits = rsa.key_size();
            if RSA_BITS.contains(&bits) { Ok(()) } else { Err(InvalidCsr::Key(format!("RSA with {bits} bits"))) }
        }
        Ok(PublicKey::EC(point)) if [256, 384, 528].contains(&point.key_size()) => Ok(()),
        Ok(PublicKey::EC(point)) => Err(InvalidCsr::Key(format!("an elliptic curve of {} bits", point.key_size()))),
        Ok(_) => Err(InvalidCsr::Key(format!("algorithm {}", key.algorithm.algorithm))),
        Err(e) => Err(InvalidCsr::Key(e.to_string())),
    }
}
