//! Who asks for a certificate: by a client certificate that we issued, or by a service-account token.
pub mod certificate;
pub mod jwt;

pub use certificate::CertificateAuthenticator;
pub use jwt::{AUDIENCE, JwtAuthenticator, JwtConfig};

pub use crate::jwks::InvalidKeys;

use futures_util::future::BoxFuture;
use lateen_core::spiffe::SpiffeId;
use rustls_pki_types::CertificateDer;
use std::sync::Arc;
use std::time::SystemTime;

/// What a caller showed.
#[derive(Clone, Copy)]
pub struct Credentials<'a> {
    /// The chain of the TLS client certificate, leaf first; empty without one.
    pub peer_certificates: &'a [CertificateDer<'static>],
    /// The token of `authorization: Bearer …`.
    pub bearer: Option<&'a str>,
    pub now: SystemTime,
}

/// Why a way of authentication did not give an identity. Logged; a caller only learns that it failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthFailure {
    /// The credential that this way looks at is not there.
    #[error("not presented")]
    NotPresented,
    #[error("{0}")]
    Refused(String),
}

/// One way to establish a caller's identity.
pub trait Authenticator: Send + Sync {
    /// For logs.
    fn name(&self) -> &'static str;
    /// The caller's identity, proven by `credentials`.
    fn authenticate<'a>(&'a self, credentials: Credentials<'a>) -> BoxFuture<'a, Result<SpiffeId, AuthFailure>>;
}

/// Ways tried in order; the first that gives an identity wins.
#[derive(Clone, Default)]
pub struct Authenticators(Vec<Arc<dyn Authenticator>>);

impl Authenticators {
    pub fn new(ways: Vec<Arc<dyn Authenticator>>) -> Self {
        Self(ways)
    }

    /// The caller's identity.
    ///
    /// # Errors
    /// What each way said, for the log.
    pub async fn authenticate(&self, credentials: Credentials<'_>) -> Result<SpiffeId, String> {
        let mut reasons = Vec::new();
        for way in &self.0 {
            match way.authenticate(credentials).await {
                Ok(id) => return Ok(id),
                Err(reason) => reasons.push(format!("{}: {reason}", way.name())),
            }
        }
        Err(if reasons.is_empty() { "no way of authentication is configured".to_owned() } else { reasons.join("; ") })
    }
}
