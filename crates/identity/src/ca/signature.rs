//! Checking X.509 signatures with the algorithms that TLS peers are checked with: SHA-256 or better.
use crate::tls::provider;
use x509_parser::asn1_rs::Oid;
use x509_parser::x509::SubjectPublicKeyInfo;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Good,
    Bad,
    /// MD5, SHA-1, DSA and whatever else nobody should sign with.
    UnknownAlgorithm,
}

/// Whether `signature` over `message` was made with `algorithm` by the holder of `key`.
pub(super) fn verify(algorithm: &Oid<'_>, key: &SubjectPublicKeyInfo<'_>, message: &[u8], signature: &[u8]) -> Verdict {
    let mut verdict = Verdict::UnknownAlgorithm;
    for candidate in provider().signature_verification_algorithms.all {
        // The identifier is the content of a DER sequence that starts with the OID: tag, length, octets.
        let id = candidate.signature_alg_id();
        let oid = id.as_ref().get(2..2 + algorithm.as_bytes().len());
        if oid != Some(algorithm.as_bytes()) {
            continue;
        }
        // One OID stands for a key type and hash, but not for the curve: each curve is tried.
        match candidate.verify_signature(&key.subject_public_key.data, message, signature) {
            Ok(()) => return Verdict::Good,
            Err(_) => verdict = Verdict::Bad,
        }
    }
    verdict
}
