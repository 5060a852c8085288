//! Why a peer's certificate is refused: a [`PeerRefused`], which rides inside the rustls error; [`refusal`] gets its text out for
//! the log, while the peer only sees a TLS alert.
use super::san::SanKind;
use super::verifier::Usage;
use rustls::{CertificateError, OtherError};
use rustls_pki_types::UnixTime;
use std::sync::Arc;
use std::time::Duration;

/// Why a peer's certificate was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerRefused {
    #[error("the certificate is malformed: {0}")]
    Malformed(String),
    #[error("the certificate expired {} s ago", now.saturating_sub(*not_after))]
    Expired { not_after: u64, now: u64 },
    #[error("the certificate is not valid for another {} s", not_before.saturating_sub(*now))]
    NotYetValid { not_before: u64, now: u64 },
    #[error("the certificate does not chain to a trusted root (issuer `{issuer}`)")]
    UnknownIssuer { issuer: String },
    #[error("the certificate's extended key usage does not allow {0}")]
    WrongUsage(Usage),
    #[error("the certificate is revoked")]
    Revoked,
    #[error("no current revocation list covers the certificate")]
    RevocationUnknown,
    #[error("the certificate chain is not acceptable: {0}")]
    Chain(String),
    #[error("the certificate has no {kind} subject alternative name; wanted {wanted}")]
    NoSan { kind: SanKind, wanted: String },
    #[error("trust domain `{found}` is not accepted; wanted `{wanted}`")]
    WrongTrustDomain { found: String, wanted: String },
    #[error("no subject alternative name matches: the certificate has {found}; wanted {wanted}")]
    WrongSan { found: String, wanted: String },
    #[error("the certificate has {0} URI subject alternative names; a SPIFFE certificate has exactly one")]
    SeveralUris(usize),
    #[error("the certificate matches none of the configured hashes")]
    NotPinned,
    #[error("the certificate is not valid for `{0}`")]
    WrongHost(String),
}

impl PeerRefused {
    /// The reason inside a handshake's error, where rustls has no kind of its own for it.
    pub fn of(error: &rustls::Error) -> Option<&Self> {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(reason))) => reason.downcast_ref(),
            _ => None,
        }
    }

    /// The chain is good, but it is not who was wanted.
    pub fn is_of_names(&self) -> bool {
        matches!(self, Self::NoSan { .. } | Self::WrongTrustDomain { .. } | Self::WrongSan { .. } | Self::SeveralUris(_))
    }
}

impl From<PeerRefused> for rustls::Error {
    /// Picks the TLS alert that fits, and keeps the reason for [`refusal`].
    fn from(refused: PeerRefused) -> Self {
        let error = match &refused {
            PeerRefused::Malformed(_) => CertificateError::BadEncoding,
            PeerRefused::Expired { not_after, now } => CertificateError::ExpiredContext { time: unix(*now), not_after: unix(*not_after) },
            PeerRefused::NotYetValid { not_before, now } => {
                CertificateError::NotValidYetContext { time: unix(*now), not_before: unix(*not_before) }
            }
            PeerRefused::UnknownIssuer { .. } => CertificateError::UnknownIssuer,
            PeerRefused::Revoked => CertificateError::Revoked,
            PeerRefused::RevocationUnknown => CertificateError::UnknownRevocationStatus,
            _ => CertificateError::Other(OtherError(Arc::new(refused.clone()))),
        };
        tracing::debug!(reason = %refused, "peer certificate refused");
        rustls::Error::InvalidCertificate(error)
    }
}

fn unix(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

/// The reason of a failed handshake as text for logs: our own for a refused certificate, else what rustls says.
pub fn refusal(error: &(dyn std::error::Error + 'static)) -> String {
    let mut next = Some(error);
    while let Some(current) = next {
        if let Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(reason)))) = current.downcast_ref() {
            return reason.to_string();
        }
        if let Some(tls) = current.downcast_ref::<rustls::Error>() {
            return tls.to_string();
        }
        // `io::Error` hides what it wraps from `source()`.
        let inner = current.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => current.source(),
        };
    }
    error.to_string()
}
