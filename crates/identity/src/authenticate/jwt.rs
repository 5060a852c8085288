//! Service-account tokens: JWTs signed by the cluster (or by the local runner's [`crate::token`]).
//!
//! Only asymmetric signatures count: with a shared-secret algorithm, whoever reads the public key
//! could sign. A key is tried only with algorithms of its own family.
use super::{AuthFailure, Authenticator, Credentials};
use arc_swap::ArcSwap;
use base64::Engine;
use futures_util::future::BoxFuture;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
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

/// Public keys that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeys {
    #[error("the key set is not a JWKS: {0}")]
    Json(String),
    #[error("key {position} cannot be used: {reason}")]
    Key { position: usize, reason: String },
    #[error("there is no key to verify tokens with")]
    None,
}

struct VerifyingKey {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

/// Verifies tokens with a set of public keys that can be replaced while running.
pub struct JwtAuthenticator {
    config: JwtConfig,
    keys: ArcSwap<Vec<VerifyingKey>>,
}

impl JwtAuthenticator {
    /// Verifies with the keys of a JWKS document.
    ///
    /// # Errors
    /// When it does not parse or holds no usable public key.
    pub fn from_jwks(config: JwtConfig, jwks: &str) -> Result<Self, InvalidKeys> {
        Ok(Self { config, keys: ArcSwap::from_pointee(parse_jwks(jwks)?) })
    }

    /// Verifies with public keys in PEM (`PUBLIC KEY`), RSA or EC.
    ///
    /// # Errors
    /// When one cannot be used, or there is none.
    pub fn from_pems(config: JwtConfig, pems: &[&str]) -> Result<Self, InvalidKeys> {
        let keys = pems.iter().enumerate().map(|(index, pem)| pem_key(index + 1, pem)).collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() { Err(InvalidKeys::None) } else { Ok(Self { config, keys: ArcSwap::from_pointee(keys) }) }
    }

    /// Replaces the keys, for instance after the issuer rotated them.
    ///
    /// # Errors
    /// As [`JwtAuthenticator::from_jwks`]; the old keys then stay.
    pub fn set_jwks(&self, jwks: &str) -> Result<(), InvalidKeys> {
        self.keys.store(Arc::new(parse_jwks(jwks)?));
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
        let header = header(token)?;
        let keys = self.keys.load();
        let fits = |key: &&VerifyingKey| {
            key.algorithms.contains(&header.alg) && (header.kid.is_none() || key.id.is_none() || key.id == header.kid)
        };
        let mut reason = format!("no key fits the token's algorithm {:?} and key id", header.alg);
        for key in keys.iter().filter(fits) {
            match jsonwebtoken::decode::<Claims>(token, &key.key, &signature_only(header.alg)) {
                Ok(data) => return Ok(data.claims),
                Err(e) => reason = e.to_string(),
            }
        }
        Err(reason)
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

/// The header, with what the library's own type would swallow: `alg: none` and critical extensions.
fn header(token: &str) -> Result<Header, String> {
    let raw = token.split('.').next().unwrap_or_default();
    let json = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(raw).map_err(|_| "the token is not a JWT".to_owned())?;
    let fields: serde_json::Value = serde_json::from_slice(&json).map_err(|_| "the token's header is not JSON".to_owned())?;
    if fields.get("crit").is_some() {
        return Err("the token demands critical header extensions".to_owned());
    }
    let algorithm = fields.get("alg").and_then(|a| a.as_str()).unwrap_or("none").to_owned();
    let header = jsonwebtoken::decode_header(token).map_err(|_| format!("the token's algorithm {algorithm:?} is not accepted"))?;
    match header.alg {
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => {
            Err(format!("the token's algorithm {algorithm:?} is not accepted: not asymmetric"))
        }
        _ => Ok(header),
    }
}

/// Time and audience are checked by us, against a `now` that tests can choose.
fn signature_only(algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    validation
}

fn parse_jwks(text: &str) -> Result<Vec<VerifyingKey>, InvalidKeys> {
    let set: JwkSet = serde_json::from_str(text).map_err(|e| InvalidKeys::Json(e.to_string()))?;
    let mut keys = Vec::new();
    for (index, jwk) in set.keys.iter().enumerate() {
        match jwk_key(index + 1, jwk) {
            Ok(key) => keys.push(key),
            // A set may hold keys for other uses; one of them must not disable the rest.
            Err(error) => tracing::warn!(%error, "key of the key set is left out"),
        }
    }
    if keys.is_empty() { Err(InvalidKeys::None) } else { Ok(keys) }
}

fn jwk_key(position: usize, jwk: &Jwk) -> Result<VerifyingKey, InvalidKeys> {
    let failed = |reason: String| InvalidKeys::Key { position, reason };
    let mut algorithms = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => RSA.to_vec(),
        AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => vec![Algorithm::ES256],
        AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P384 => vec![Algorithm::ES384],
        AlgorithmParameters::OctetKeyPair(_) => vec![Algorithm::EdDSA],
        _ => return Err(failed("not a public key of RSA, P-256, P-384 or Ed25519".to_owned())),
    };
    if let Some(only) = jwk.common.key_algorithm {
        algorithms.retain(|a| format!("{a:?}") == only.to_string());
        if algorithms.is_empty() {
            return Err(failed(format!("its algorithm {only} does not fit its type")));
        }
    }
    let key = DecodingKey::from_jwk(jwk).map_err(|e| failed(e.to_string()))?;
    Ok(VerifyingKey { id: jwk.common.key_id.clone(), algorithms, key })
}

const RSA: [Algorithm; 6] = [Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512];

fn pem_key(position: usize, pem: &str) -> Result<VerifyingKey, InvalidKeys> {
    if let Ok(key) = DecodingKey::from_rsa_pem(pem.as_bytes()) {
        return Ok(VerifyingKey { id: None, algorithms: RSA.to_vec(), key });
    }
    let key = DecodingKey::from_ec_pem(pem.as_bytes())
        .map_err(|_| InvalidKeys::Key { position, reason: "not a PEM PUBLIC KEY of RSA or EC".to_owned() })?;
    Ok(VerifyingKey { id: None, algorithms: vec![Algorithm::ES256, Algorithm::ES384], key })
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
