//! Service-account tokens: JWTs signed by the cluster (or by the local runner's [`crate::token`]).
use super::{AuthFailure, Authenticator, Credentials};
use crate::jwks::{InvalidKeys, KeySet};
use arc_swap::ArcSwap;
use base64::Engine;
use futures_util::future::BoxFuture;
use lateen_core::spiffe::SpiffeId;
use serde::Deserialize;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The audience of tokens meant for the CA (Istio's projected `istio-token`).
pub const AUDIENCE: &str = "istio-ca";
/// Tokens larger than this are refused unread.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Tolerated difference between the issuer's clock and ours.
const LEEWAY: Duration = Duration::from_secs(30);

/// Whose tokens are accepted.
#[derive(Clone, Debug)]
pub struct JwtConfig {
    /// The exact `iss`.
    pub issuer: String,
    /// One of these must stand in `aud`; usually [`AUDIENCE`].
    pub audiences: Vec<String>,
    /// Trust domain of the identities given.
    pub trust_domain: String,
}

/// Verifies tokens with a set of public keys that can be replaced while running.
pub struct JwtAuthenticator {
    config: JwtConfig,
    keys: ArcSwap<KeySet>,
}

impl JwtAuthenticator {
    /// Verifies with the keys of a JWKS document.
    ///
    /// # Errors
    /// When it does not parse or holds no usable public key.
    pub fn from_jwks(config: JwtConfig, jwks: &str) -> Result<Self, InvalidKeys> {
        Ok(Self { config, keys: ArcSwap::from_pointee(KeySet::parse(jwks)?) })
    }

    /// Verifies with public keys in PEM (`PUBLIC KEY`), RSA or EC.
    ///
    /// # Errors
    /// When one cannot be used, or there is none.
    pub fn from_pems(config: JwtConfig, pems: &[&str]) -> Result<Self, InvalidKeys> {
        Ok(Self { config, keys: ArcSwap::from_pointee(KeySet::from_pems(pems)?) })
    }

    /// Replaces the keys, for instance after the issuer rotated them.
    ///
    /// # Errors
    /// As [`JwtAuthenticator::from_jwks`]; the old keys then stay.
    pub fn set_jwks(&self, jwks: &str) -> Result<(), InvalidKeys> {
        self.keys.store(Arc::new(KeySet::parse(jwks)?));
        Ok(())
    }

    /// The identity that `token` proves at `now`.
    ///
    /// # Errors
    /// The reason, which never contains the token.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<SpiffeId, String> {
        let claims = self.verified_claims(token)?;
        self.check_claims(&claims, now)?;
        let (namespace, account) = claims.workload()?;
        SpiffeId::new(&self.config.trust_domain, namespace, account).map_err(|e| e.to_string())
    }

    fn verified_claims(&self, token: &str) -> Result<Claims, String> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(format!("the token is {} bytes large; at most {MAX_TOKEN_BYTES} are read", token.len()));
        }
        self.keys.load().verify(token).map_err(|e| e.to_string())?;
        let payload = token.split('.').nth(1).and_then(|text| base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).ok());
        serde_json::from_slice(&payload.unwrap_or_default()).map_err(|e| format!("the token's claims cannot be read: {e}"))
    }

    fn check_claims(&self, claims: &Claims, now: SystemTime) -> Result<(), String> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let expiry = claims.exp.ok_or("the token has no expiry (exp)")?;
        if now >= expiry.saturating_add(LEEWAY.as_secs()) {
            return Err(format!("the token expired {} s ago", now.saturating_sub(expiry)));
        }
        if claims.nbf.is_some_and(|start| start > now.saturating_add(LEEWAY.as_secs())) {
            return Err("the token is not valid yet (nbf)".to_owned());
        }
        if claims.iss.as_deref() != Some(self.config.issuer.as_str()) {
            return Err(format!("the token's issuer is {:?}, not `{}`", claims.iss, self.config.issuer));
        }
        if !claims.aud.any_of(&self.config.audiences) {
            return Err(format!("the token's audience is not one of {:?}", self.config.audiences));
        }
        Ok(())
    }
}

impl Authenticator for JwtAuthenticator {
    fn name(&self) -> &'static str {
        "service-account token"
    }

    fn authenticate<'a>(&'a self, credentials: Credentials<'a>) -> BoxFuture<'a, Result<SpiffeId, AuthFailure>> {
        let result = match credentials.bearer {
            None => Err(AuthFailure::NotPresented),
            Some(token) => self.verify(token, credentials.now).map_err(AuthFailure::Refused),
        };
        Box::pin(std::future::ready(result))
    }
}

#[derive(Deserialize)]
struct Claims {
    iss: Option<String>,
    sub: Option<String>,
    #[serde(default)]
    aud: Audience,
    exp: Option<u64>,
    nbf: Option<u64>,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<Kubernetes>,
}

#[derive(Deserialize)]
struct Kubernetes {
    namespace: String,
    serviceaccount: ServiceAccount,
}

#[derive(Deserialize)]
struct ServiceAccount {
    name: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Default for Audience {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl Audience {
    fn any_of(&self, accepted: &[String]) -> bool {
        match self {
            Self::One(one) => accepted.contains(one),
            Self::Many(many) => many.iter().any(|a| accepted.contains(a)),
        }
    }
}

impl Claims {
    /// Namespace and account: from `sub`, which the `kubernetes.io` claim must not contradict.
    fn workload(&self) -> Result<(&str, &str), String> {
        let subject = self.sub.as_deref().and_then(|s| s.strip_prefix("system:serviceaccount:")).and_then(|s| s.split_once(':'));
        let subject = subject.ok_or("the token's subject is not system:serviceaccount:<namespace>:<account>")?;
        match &self.kubernetes {
            Some(k) if (k.namespace.as_str(), k.serviceaccount.name.as_str()) != subject => {
                Err("the token's subject and its kubernetes.io claim name different accounts".to_owned())
            }
            _ => Ok(subject),
        }
    }
}
