//! Service-account tokens: what a pod proves itself to the certificate authority with. The runner plays the API server's part.
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use serde_json::json;

/// The `iss` of the tokens, as in Kubernetes.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// The only audience: the mesh's certificate authority.
pub const AUDIENCE: &str = "istio-ca";
/// As long as Istio's projected tokens.
pub const LIFETIME: Duration = Duration::from_secs(43_200);
const KEY_ID: &str = "lateen-runner";

/// Signs tokens with a key that lives and dies with the mesh.
pub struct Tokens {
    key: EncodingKey,
    jwks: String,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

impl Tokens {
    /// A new key.
    ///
    /// # Errors
    /// When the library cannot make one.
    pub fn generate() -> io::Result<Self> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(io::Error::other)?;
        // The uncompressed point: a four, then both coordinates of 32 bytes.
        let point = pair.der_bytes();
        let (Some(x), Some(y)) = (point.get(1..33), point.get(33..65)) else { return Err(io::Error::other("not a P-256 key")) };
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let key = json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": KEY_ID, "x": text(x), "y": text(y)});
        let jwks = json!({ "keys": [key] }).to_string();
        Ok(Self { key: EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).map_err(io::Error::other)?, jwks })
    }

    /// The public key as a JSON Web Key Set.
    pub fn jwks(&self) -> &str {
        &self.jwks
    }

    /// A token in Kubernetes' form, good for [`LIFETIME`].
    ///
    /// # Errors
    /// When signing fails.
    pub fn issue(&self, namespace: &str, account: &str, pod: (&str, &str), now: SystemTime) -> io::Result<String> {
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let claims = json!({
            "iss": ISSUER,
            "aud": [AUDIENCE],
            "sub": format!("system:serviceaccount:{namespace}:{account}"),
            "iat": seconds,
            "nbf": seconds,
            "exp": seconds + LIFETIME.as_secs(),
            "kubernetes.io": {
                "namespace": namespace,
                "serviceaccount": {"name": account},
                "pod": {"name": pod.0, "uid": pod.1},
            },
        });
        let header = Header { kid: Some(KEY_ID.into()), ..Header::new(Algorithm::ES256) };
        encode(&header, &claims, &self.key).map_err(io::Error::other)
    }
}

/// Writes a file that readers never see half of.
///
/// # Errors
/// The file system's.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.to_owned();
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("file");
    temporary.set_file_name(format!(".{name}.new"));
    std::fs::write(&temporary, content)?;
    std::fs::rename(temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::jwk::JwkSet;
    use jsonwebtoken::{DecodingKey, Validation, decode};

    #[test]
    fn a_token_verifies_with_the_published_key_and_no_other() {
        let tokens = Tokens::generate().unwrap();
        let token = tokens.issue("shop", "cart", ("cart-1", "u"), SystemTime::now()).unwrap();
        let set: JwkSet = serde_json::from_str(tokens.jwks()).unwrap();
        let key = DecodingKey::from_jwk(&set.keys[0]).unwrap();
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&[AUDIENCE]);
        let claims = decode::<serde_json::Value>(&token, &key, &validation).unwrap().claims;
        assert_eq!(claims["sub"], "system:serviceaccount:shop:cart");
        let other: JwkSet = serde_json::from_str(Tokens::generate().unwrap().jwks()).unwrap();
        let key = DecodingKey::from_jwk(&other.keys[0]).unwrap();
        assert!(decode::<serde_json::Value>(&token, &key, &validation).is_err());
    }
}
