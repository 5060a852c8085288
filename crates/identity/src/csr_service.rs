//! Istio's certificate service: authenticates the caller, then has the CA sign for exactly that identity.
use crate::authenticate::{Authenticators, Credentials};
use crate::ca::{CertificateAuthority, SignError};
use lateen_core::spiffe::SpiffeId;
use lateen_proto::istio::v1::auth::istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer};
use lateen_proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use prost_types::value::Kind;
use rustls_pki_types::CertificateDer;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tonic::{Request, Response, Status};

/// Request extension with the caller's certificate chain, leaf first. The server shell inserts it
/// for every connection that presented a client certificate:
/// `request.extensions_mut().insert(PeerCertificates(chain))`.
#[derive(Clone, Debug, Default)]
pub struct PeerCertificates(pub Arc<Vec<CertificateDer<'static>>>);

/// A request message larger than this is refused by the transport.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// How many certificates may be asked for. Each limit is a bucket: `burst` at once, `per_second` in the long run.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests of everybody together, counted before authentication.
    pub all: Rate,
    /// Certificates of one identity: all replicas of a workload share it.
    pub identity: Rate,
}

#[derive(Clone, Copy, Debug)]
pub struct Rate {
    pub burst: f64,
    pub per_second: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { all: Rate { burst: 2000.0, per_second: 500.0 }, identity: Rate { burst: 200.0, per_second: 20.0 } }
    }
}

/// The service. Put it into a tonic router with [`CsrService::into_server`].
pub struct CsrService {
    ca: Arc<CertificateAuthority>,
    authenticators: Authenticators,
    limits: Limits,
    buckets: Mutex<Buckets>,
}

impl CsrService {
    pub fn new(ca: Arc<CertificateAuthority>, authenticators: Authenticators, limits: Limits) -> Self {
        Self { ca, authenticators, limits, buckets: Mutex::default() }
    }

    pub fn into_server(self) -> IstioCertificateServiceServer<Self> {
        IstioCertificateServiceServer::new(self).max_decoding_message_size(MAX_REQUEST_BYTES)
    }

    fn admit(&self, caller: Option<&SpiffeId>) -> Result<(), Status> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.take(caller, &self.limits, Instant::now()) {
            return Ok(());
        }
        tracing::warn!(caller = caller.map(tracing::field::display), "certificate requests are limited");
        Err(Status::resource_exhausted("too many certificate requests; try again later"))
    }

    async fn caller(&self, request: &Request<IstioCertificateRequest>) -> Result<SpiffeId, Status> {
        let none = Arc::default();
        let certificates = request.extensions().get::<PeerCertificates>().map_or(&none, |c| &c.0);
        let bearer = bearer(request.metadata())?;
        let credentials = Credentials { peer_certificates: certificates, bearer: bearer.as_deref(), now: SystemTime::now() };
        self.authenticators.authenticate(credentials).await.map_err(|reason| {
            tracing::warn!(%reason, peer = ?request.remote_addr(), "certificate request not authenticated");
            unauthenticated()
        })
    }
}

/// Tells nothing: which part failed would help whoever guesses.
fn unauthenticated() -> Status {
    Status::unauthenticated("request authenticate failure")
}

/// The one bearer token; two tokens would leave open which one counts.
fn bearer(metadata: &tonic::metadata::MetadataMap) -> Result<Option<String>, Status> {
    let mut values = metadata.get_all("authorization").iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        let several = metadata.get_all("authorization").iter().count() > 1;
        return if several { Err(unauthenticated()) } else { Ok(None) };
    };
    let token = value.to_str().ok().and_then(|v| v.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    Ok(token.map(|(_, token)| token.trim().to_owned()))
}

/// A non-empty text field of the request's metadata.
fn metadata_text<'a>(request: &'a IstioCertificateRequest, key: &str) -> Option<&'a str> {
    let field = request.metadata.as_ref()?.fields.get(key)?;
    match field.kind.as_ref()? {
        Kind::StringValue(text) if !text.is_empty() => Some(text),
        _ => None,
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CsrService {
    async fn create_certificate(&self, request: Request<IstioCertificateRequest>) -> Result<Response<IstioCertificateResponse>, Status> {
        self.admit(None)?;
        let caller = self.caller(&request).await?;
        let message = request.get_ref();
        if let Some(other) = metadata_text(message, "ImpersonatedIdentity") {
            tracing::warn!(%caller, impersonated = other, "impersonation refused: no node proxy is trusted with it");
            return Err(Status::unauthenticated("request impersonation authentication failure"));
        }
        if let Some(signer) = metadata_text(message, "CertSigner") {
            return Err(Status::invalid_argument(format!("there is no signer `{signer}`; leave CertSigner empty to use the mesh's CA")));
        }
        self.admit(Some(&caller))?;
        let ttl = u64::try_from(message.validity_duration).ok().filter(|s| *s > 0).map(Duration::from_secs);
        match self.ca.sign(&message.csr, &caller, ttl, SystemTime::now()) {
            Ok(signed) => {
                tracing::info!(%caller, not_after = ?signed.not_after, "certificate issued");
                Ok(Response::new(IstioCertificateResponse { cert_chain: signed.pem_entries() }))
            }
            Err(SignError::Csr(reason)) => {
                tracing::warn!(%caller, %reason, "certificate request refused");
                Err(Status::invalid_argument(reason.to_string()))
            }
            Err(error) => {
                tracing::error!(%caller, %error, "certificate cannot be issued");
                Err(Status::internal("the certificate cannot be issued; see the control plane's log"))
            }
        }
    }
}

/// Token buckets. Identities come from authenticated callers only; those at rest are forgotten.
#[derive(Default)]
struct Buckets {
    all: Option<Bucket>,
    identities: HashMap<SpiffeId, Bucket>,
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

/// Identities remembered at most; more than this in one refill period share the limit of all.
const MAX_IDENTITIES: usize = 100_000;

impl Buckets {
    fn take(&mut self, caller: Option<&SpiffeId>, limits: &Limits, now: Instant) -> bool {
        let Some(caller) = caller else {
            return self.all.get_or_insert(Bucket::full(limits.all, now)).take(limits.all, now);
        };
        if self.identities.len() >= MAX_IDENTITIES && !self.identities.contains_key(caller) {
            self.identities.retain(|_, bucket| !bucket.is_full(limits.identity, now));
            if self.identities.len() >= MAX_IDENTITIES {
                return true;
            }
        }
        self.identities.entry(caller.clone()).or_insert_with(|| Bucket::full(limits.identity, now)).take(limits.identity, now)
    }
}

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        Self { tokens: rate.burst, filled: now }
    }

    fn level(&self, rate: Rate, now: Instant) -> f64 {
        let gained = now.saturating_duration_since(self.filled).as_secs_f64() * rate.per_second;
        (self.tokens + gained).min(rate.burst)
    }

    fn is_full(&self, rate: Rate, now: Instant) -> bool {
        self.level(rate, now) >= rate.burst
    }

    fn take(&mut self, rate: Rate, now: Instant) -> bool {
        self.tokens = self.level(rate, now);
        self.filled = now;
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_that_asks_too_often_waits_and_others_do_not() {
        let limits = Limits { identity: Rate { burst: 2.0, per_second: 1.0 }, ..Limits::default() };
        let (a, b) = (SpiffeId::new("td", "ns", "a").unwrap(), SpiffeId::new("td", "ns", "b").unwrap());
        let start = Instant::now();
        let mut buckets = Buckets::default();
        let taken: Vec<bool> = (0..3).map(|_| buckets.take(Some(&a), &limits, start)).collect();
        assert_eq!(taken, [true, true, false]);
        assert!(buckets.take(Some(&b), &limits, start));
        assert!(buckets.take(Some(&a), &limits, start + Duration::from_secs(1)));
        assert!(!buckets.take(Some(&a), &limits, start + Duration::from_secs(1)));
    }
}
