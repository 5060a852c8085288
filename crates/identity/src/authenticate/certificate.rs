//! A client certificate that our own authority issued: how a workload renews.
use super::{AuthFailure, Authenticator, Credentials};
use crate::ca::CertificateAuthority;
use crate::tls::peer::PeerIdentity;
use crate::tls::verifier::{ChainVerifier, Usage, unix_time};
use futures_util::future::BoxFuture;
use lateen_core::spiffe::SpiffeId;
use std::sync::Arc;

/// Accepts client certificates that chain to the authority's current roots. The chain is checked
/// again here, so that neither a listener that asks without verifying nor a root withdrawn since
/// the handshake lets a stranger in.
pub struct CertificateAuthenticator {
    ca: Arc<CertificateAuthority>,
    trust_domains: Vec<String>,
}

impl CertificateAuthenticator {
    /// `trust_domains`: the mesh's own and its aliases.
    pub fn new(ca: Arc<CertificateAuthority>, trust_domains: Vec<String>) -> Self {
        Self { ca, trust_domains }
    }

    fn check(&self, credentials: Credentials<'_>) -> Result<SpiffeId, AuthFailure> {
        let Some((leaf, rest)) = credentials.peer_certificates.split_first() else { return Err(AuthFailure::NotPresented) };
        let refused = |reason: String| AuthFailure::Refused(reason);
        let verifier = ChainVerifier::new(&self.ca.roots()).map_err(|e| refused(e.to_string()))?;
        verifier.verify(leaf, rest, Usage::Client, unix_time(credentials.now)).map_err(|e| refused(e.to_string()))?;
        let identity = PeerIdentity::from_der(leaf).map_err(|e| refused(e.to_string()))?;
        let id = identity.spiffe.ok_or_else(|| refused("the certificate has no SPIFFE id, or more than one URI name".to_owned()))?;
        if self.trust_domains.iter().any(|d| d == id.trust_domain()) {
            Ok(id)
        } else {
            Err(refused(format!("trust domain `{}` is not ours", id.trust_domain())))
        }
    }
}

impl Authenticator for CertificateAuthenticator {
    fn name(&self) -> &'static str {
        "client certificate"
    }

    fn authenticate<'a>(&'a self, credentials: Credentials<'a>) -> BoxFuture<'a, Result<SpiffeId, AuthFailure>> {
        Box::pin(std::future::ready(self.check(credentials)))
    }
}
