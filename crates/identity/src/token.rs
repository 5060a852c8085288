//! Issuing service-account tokens where no Kubernetes does: the local runner's stand-in for the API server.
use crate::ca::CaError;
use crate::pem::{self, InvalidPem};
use base64::Engine;
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::KeyPair;
use rustls_pki_types::PrivateKeyDer;
use serde_json::json;
use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Lifetime of a token (that of Istio's projected token, 12 h).
pub const TOKEN_TTL: Duration = Duration::from_secs(43_200);
/// The issuer of Kubernetes clusters that configure none.
pub const DEFAULT_ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Why tokens cannot be issued.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error(transparent)]
    Pem(#[from] InvalidPem),
    #[error(transparent)]
    State(#[from] CaError),
    #[error("the token signing key cannot be used: {0}")]
    Key(String),
    #[error("`{0}` cannot be a namespace or service account")]
    Name(String),
}

/// Signs tokens with an EC P-256 key and publishes the public half as JWKS.
pub struct TokenIssuer {
    issuer: String,
    key: EncodingKey,
    public: Jwk,
}

impl TokenIssuer {
    /// An issuer with a new key.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn generate(issuer: &str) -> Result<Self, TokenError> {
        let key = KeyPair::generate().map_err(|e| TokenError::Key(e.to_string()))?;
        Self::with_key(issuer, &key.serialize_der())
    }

    /// An issuer whose key is kept in `file` (mode 0600) and made on the first start, so that tokens
    /// outlive a restart.
    ///
    /// # Errors
    /// When the file is damaged or cannot be written.
    pub fn open(issuer: &str, file: &Path) -> Result<Self, TokenError> {
        if !file.exists() {
            let key = KeyPair::generate().map_err(|e| TokenError::Key(e.to_string()))?;
            crate::ca::write_private(file, &key.serialize_pem())?;
        }
        let origin = file.display().to_string();
        match pem::private_key(&pem::read_file(file)?, &origin)? {
            PrivateKeyDer::Pkcs8(key) => Self::with_key(issuer, key.secret_pkcs8_der()),
            _ => Err(TokenError::Key(format!("{origin} is not a PKCS#8 key; remove it to make a new one"))),
        }
    }

    fn with_key(issuer: &str, pkcs8: &[u8]) -> Result<Self, TokenError> {
        let failed = |e: jsonwebtoken::errors::Error| TokenError::Key(e.to_string());
        let key = EncodingKey::from_ec_der(pkcs8);
        let mut public = Jwk::from_encoding_key(&key, Algorithm::ES256).map_err(failed)?;
        public.common.key_id = Some(public.thumbprint(ThumbprintHash::SHA256).map_err(failed)?);
        public.common.public_key_use = Some(PublicKeyUse::Signature);
        Ok(Self { issuer: issuer.to_owned(), key, public })
    }

    /// A token for a service account, in the form of a projected Kubernetes token.
    ///
    /// # Errors
    /// When a name is empty or holds a colon or slash.
    pub fn issue(&self, namespace: &str, account: &str, audience: &str, ttl: Duration, now: SystemTime) -> Result<String, TokenError> {
        for name in [namespace, account] {
            if name.is_empty() || name.contains([':', '/']) {
                return Err(TokenError::Name(name.to_owned()));
            }
        }
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let claims = json!({
            "iss": self.issuer,
            "sub": format!("system:serviceaccount:{namespace}:{account}"),
            "aud": [audience],
            "iat": now,
            "nbf": now,
            "exp": now.saturating_add(ttl.as_secs()),
            "kubernetes.io": { "namespace": namespace, "serviceaccount": { "name": account } },
        });
        let mut header = Header::new(Algorithm::ES256);
        header.kid.clone_from(&self.public.common.key_id);
        jsonwebtoken::encode(&header, &claims, &self.key).map_err(|e| TokenError::Key(e.to_string()))
    }

    /// The public key as a JWKS document, for [`crate::authenticate::JwtAuthenticator::from_jwks`].
    pub fn jwks(&self) -> String {
        serde_json::to_string(&JwkSet { keys: vec![self.public.clone()] }).unwrap_or_default()
    }

    pub fn issuer(&self) -> &str {
        &self.issuer
    }
}

impl fmt::Debug for TokenIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenIssuer").field("issuer", &self.issuer).field("key_id", &self.public.common.key_id).finish_non_exhaustive()
    }
}

/// When a token ends, read without verifying it: for the holder, who wants to know when to renew.
pub fn expiry_of(token: &str) -> Option<SystemTime> {
    let payload = token.split('.').nth(1)?;
    let json = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&json).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(claims.get("exp")?.as_u64()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authenticate::jwt::{AUDIENCE, JwtAuthenticator, JwtConfig};

    fn config() -> JwtConfig {
        JwtConfig { issuer: DEFAULT_ISSUER.to_owned(), audiences: vec![AUDIENCE.to_owned()], trust_domain: "td".to_owned() }
    }

    fn b64(text: &str) -> String {
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text)
    }

    #[test]
    fn a_token_proves_its_account_until_it_expires() {
        let now = SystemTime::now();
        let issuer = TokenIssuer::generate(DEFAULT_ISSUER).unwrap();
        let verifier = JwtAuthenticator::from_jwks(config(), &issuer.jwks()).unwrap();
        let token = issuer.issue("default", "reviews", AUDIENCE, TOKEN_TTL, now).unwrap();
        assert_eq!(verifier.verify(&token, now).unwrap().to_string(), "spiffe://td/ns/default/sa/reviews");
        assert!(expiry_of(&token).unwrap() > now + TOKEN_TTL - Duration::from_secs(2));
        let late = verifier.verify(&token, now + TOKEN_TTL + Duration::from_secs(60)).unwrap_err();
        assert!(late.contains("expired"), "{late}");
        let early = verifier.verify(&token, now - Duration::from_secs(600)).unwrap_err();
        assert!(early.contains("not valid yet"), "{early}");
    }

    #[test]
    fn tokens_for_others_by_others_or_changed_are_refused() {
        let now = SystemTime::now();
        let issuer = TokenIssuer::generate(DEFAULT_ISSUER).unwrap();
        let verifier = JwtAuthenticator::from_jwks(config(), &issuer.jwks()).unwrap();
        let wrong = issuer.issue("default", "reviews", "api", TOKEN_TTL, now).unwrap();
        assert!(verifier.verify(&wrong, now).unwrap_err().contains("audience"));
        let stranger = TokenIssuer::generate(DEFAULT_ISSUER).unwrap().issue("default", "reviews", AUDIENCE, TOKEN_TTL, now).unwrap();
        assert!(verifier.verify(&stranger, now).unwrap_err().contains("no key fits"));
        let impostor = JwtAuthenticator::from_jwks(JwtConfig { issuer: "other".into(), ..config() }, &issuer.jwks()).unwrap();
        let good = issuer.issue("default", "reviews", AUDIENCE, TOKEN_TTL, now).unwrap();
        assert!(impostor.verify(&good, now).unwrap_err().contains("issuer"));
        let mut parts: Vec<String> = good.split('.').map(str::to_owned).collect();
        parts[1] = b64(
            r#"{"iss":"https://kubernetes.default.svc.cluster.local","sub":"system:serviceaccount:kube-system:admin","aud":"istio-ca","exp":99999999999}"#,
        );
        assert_eq!(verifier.verify(&parts.join("."), now).unwrap_err(), "InvalidSignature");
        assert!(issuer.issue("a:b", "c", AUDIENCE, TOKEN_TTL, now).is_err());
    }

    #[test]
    fn unsigned_and_shared_secret_tokens_are_refused() {
        let now = SystemTime::now();
        let issuer = TokenIssuer::generate(DEFAULT_ISSUER).unwrap();
        let verifier = JwtAuthenticator::from_jwks(config(), &issuer.jwks()).unwrap();
        let good = issuer.issue("default", "reviews", AUDIENCE, TOKEN_TTL, now).unwrap();
        let payload = good.split('.').nth(1).unwrap();
        for algorithm in ["none", "None", "NONE"] {
            let token = format!("{}.{payload}.", b64(&format!(r#"{{"alg":"{algorithm}"}}"#)));
            let reason = verifier.verify(&token, now).unwrap_err();
            assert!(reason.contains("not accepted"), "{reason}");
        }
        let claims: serde_json::Value =
            serde_json::from_slice(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap();
        // The classic confusion: the public key as HMAC secret.
        let forged =
            jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(issuer.jwks().as_bytes())).unwrap();
        assert!(verifier.verify(&forged, now).unwrap_err().contains("not asymmetric"));
        let critical = format!("{}.{payload}.x", b64(r#"{"alg":"ES256","crit":["b64"]}"#));
        assert!(verifier.verify(&critical, now).unwrap_err().contains("critical"));
        for garbage in ["", "a.b", "....", "ey.ey.ey", &"x".repeat(20_000)] {
            assert!(verifier.verify(garbage, now).is_err());
        }
    }

    #[test]
    fn contradictory_claims_are_refused() {
        let now = SystemTime::now();
        let issuer = TokenIssuer::generate(DEFAULT_ISSUER).unwrap();
        let verifier = JwtAuthenticator::from_jwks(config(), &issuer.jwks()).unwrap();
        let sign = |claims: serde_json::Value| jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &issuer.key).unwrap();
        let base = |sub: &str| json!({"iss": DEFAULT_ISSUER, "aud": "istio-ca", "exp": 99_999_999_999_u64, "sub": sub});
        let mut claims = base("system:serviceaccount:a:b");
        assert!(verifier.verify(&sign(claims.clone()), now).is_ok());
        claims["kubernetes.io"] = json!({"namespace": "a", "serviceaccount": {"name": "other"}});
        assert!(verifier.verify(&sign(claims), now).unwrap_err().contains("different accounts"));
        assert!(verifier.verify(&sign(base("alice")), now).is_err());
        assert!(verifier.verify(&sign(base("system:serviceaccount:a:b/c")), now).is_err());
        let mut forever = base("system:serviceaccount:a:b");
        forever.as_object_mut().unwrap().remove("exp");
        assert!(verifier.verify(&sign(forever), now).unwrap_err().contains("no expiry"));
    }

    #[test]
    fn the_key_is_kept_private_and_reused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token-key.pem");
        let first = TokenIssuer::open(DEFAULT_ISSUER, &file).unwrap();
        let second = TokenIssuer::open(DEFAULT_ISSUER, &file).unwrap();
        assert_eq!(first.jwks(), second.jwks());
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        assert!(!first.jwks().contains("\"d\""));
    }
}
