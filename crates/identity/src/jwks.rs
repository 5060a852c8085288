//! Public key sets (JWKS) and the signatures of JWTs.
//!
//! Only asymmetric signatures count: with a shared-secret algorithm, whoever reads the public key
//! could sign. A key is tried only with algorithms of its own family.
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk};
use jsonwebtoken::{Algorithm, DecodingKey, Header};

const RSA: [Algorithm; 6] = [Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512];

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

/// Why a signature does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unverified {
    #[error("the token is not a JWT")]
    Format,
    #[error("the token's header is not base64url")]
    HeaderBase64,
    #[error("the token's header is not JSON")]
    HeaderJson,
    #[error("the token demands critical header extensions")]
    Critical,
    #[error("the token's algorithm {0:?} is not accepted")]
    Algorithm(String),
    #[error("the token's algorithm {0:?} is not accepted: not asymmetric")]
    Symmetric(String),
    #[error("no key fits the token's algorithm {0} and key id")]
    NoKey(String),
    #[error("{0}")]
    Signature(String),
}

/// A key set whose keys are read one by one: what one of them is must not hide the others.
#[derive(serde::Deserialize)]
struct Document {
    keys: Vec<serde_json::Value>,
}

struct VerifyingKey {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    /// The key says for which algorithm it is.
    one_algorithm: bool,
    key: DecodingKey,
}

/// Keys that tokens are verified with.
pub struct KeySet(Vec<VerifyingKey>);

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| (&key.id, &key.algorithms))).finish()
    }
}

impl KeySet {
    /// Reads a JWKS document. Keys for other uses are left out.
    ///
    /// # Errors
    /// When it does not parse or holds no usable public key.
    pub fn parse(text: &str) -> Result<Self, InvalidKeys> {
        let set: Document = serde_json::from_str(text).map_err(|e| InvalidKeys::Json(e.to_string()))?;
        let mut keys = Vec::new();
        for (index, jwk) in set.keys.into_iter().enumerate() {
            let position = index + 1;
            let jwk: Result<Jwk, _> = serde_json::from_value(jwk).map_err(|e| InvalidKeys::Key { position, reason: e.to_string() });
            match jwk.and_then(|jwk| jwk_key(position, &jwk)) {
                Ok(key) => keys.push(key),
                // A set may hold keys for other uses; one of them must not disable the rest.
                Err(error) => tracing::warn!(%error, "key of the key set is left out"),
            }
        }
        if keys.is_empty() { Err(InvalidKeys::None) } else { Ok(Self(keys)) }
    }

    /// Reads public keys in PEM (`PUBLIC KEY`), RSA or EC.
    ///
    /// # Errors
    /// When one cannot be used, or there is none.
    pub fn from_pems(pems: &[&str]) -> Result<Self, InvalidKeys> {
        let keys = pems.iter().enumerate().map(|(index, pem)| pem_key(index + 1, pem)).collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() { Err(InvalidKeys::None) } else { Ok(Self(keys)) }
    }

    /// Whether one of the keys signed `token`. What the token claims is not looked at.
    ///
    /// # Errors
    /// The reason, which never contains the token.
    pub fn verify(&self, token: &str) -> Result<(), Unverified> {
        let header = header(token)?;
        let (message, signature) = token.rsplit_once('.').ok_or(Unverified::Format)?;
        let named = |key: &&VerifyingKey| header.kid.is_none() || key.id.is_none() || key.id == header.kid;
        // A key of that name and another family is a wrong key, unless it says itself that it is for something else.
        let fits = |key: &&VerifyingKey| named(key) && (key.algorithms.contains(&header.alg) || !key.one_algorithm);
        let mut reason = Unverified::NoKey(format!("{:?}", header.alg));
        for key in self.0.iter().filter(fits) {
            if !key.algorithms.contains(&header.alg) {
                reason = Unverified::Signature("InvalidAlgorithm".to_owned());
                continue;
            }
            match jsonwebtoken::crypto::verify(signature, message.as_bytes(), &key.key, header.alg) {
                Ok(true) => return Ok(()),
                Ok(false) => reason = Unverified::Signature("InvalidSignature".to_owned()),
                Err(e) => reason = Unverified::Signature(e.to_string()),
            }
        }
        Err(reason)
    }
}

/// The header, with what the library's own type would swallow: `alg: none` and critical extensions.
fn header(token: &str) -> Result<Header, Unverified> {
    let raw = token.split('.').next().unwrap_or_default();
    let json = URL_SAFE_NO_PAD.decode(raw).map_err(|_| Unverified::HeaderBase64)?;
    let fields: serde_json::Value = serde_json::from_slice(&json).map_err(|_| Unverified::HeaderJson)?;
    if fields.get("crit").is_some() {
        return Err(Unverified::Critical);
    }
    let algorithm = fields.get("alg").and_then(|a| a.as_str()).unwrap_or("none").to_owned();
    let header = jsonwebtoken::decode_header(token).map_err(|_| Unverified::Algorithm(algorithm.clone()))?;
    match header.alg {
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => Err(Unverified::Symmetric(algorithm)),
        _ => Ok(header),
    }
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
    let one_algorithm = jwk.common.key_algorithm.is_some();
    Ok(VerifyingKey { id: jwk.common.key_id.clone(), algorithms, one_algorithm, key })
}

fn pem_key(position: usize, pem: &str) -> Result<VerifyingKey, InvalidKeys> {
    if let Ok(key) = DecodingKey::from_rsa_pem(pem.as_bytes()) {
        return Ok(VerifyingKey { id: None, algorithms: RSA.to_vec(), one_algorithm: false, key });
    }
    let key = DecodingKey::from_ec_pem(pem.as_bytes())
        .map_err(|_| InvalidKeys::Key { position, reason: "not a PEM PUBLIC KEY of RSA or EC".to_owned() })?;
    Ok(VerifyingKey { id: None, algorithms: vec![Algorithm::ES256, Algorithm::ES384], one_algorithm: false, key })
}
