//! What a token says: its parts decoded, its times, its claims as text.
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::Value;

use super::JwtFault;

/// The algorithms that Envoy knows, whether a key of ours can have them or not.
const ALGORITHMS: [&str; 13] =
    ["ES256", "ES384", "ES512", "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "EdDSA"];

/// Registered claims have the types that RFC 7519 gives them; which one does not is told in Envoy's order.
fn of_its_types(claims: &Value) -> Result<(), JwtFault> {
    let text = |name: &'static str| match claims.get(name) {
        Some(value) if !value.is_string() => Err(JwtFault::NotText(name)),
        _ => Ok(()),
    };
    let time = |name: &'static str| match claims.get(name) {
        Some(Value::Number(n)) if n.as_f64().is_some_and(|n| n >= 0.0 && n < u64::MAX as f64) => Ok(()),
        Some(Value::Number(_)) => Err(JwtFault::OutOfRange(name)),
        Some(_) => Err(JwtFault::NotInteger(name)),
        None => Ok(()),
    };
    text("iss")?;
    text("sub")?;
    ["iat", "nbf", "exp"].into_iter().try_for_each(time)?;
    text("jti")?;
    match claims.get("aud") {
        None | Some(Value::String(_)) => Ok(()),
        Some(Value::Array(all)) if all.iter().all(Value::is_string) => Ok(()),
        Some(_) => Err(JwtFault::AudienceType),
    }
}

/// A token whose signature is not looked at yet.
pub(super) struct Parsed<'a> {
    pub(super) header: Value,
    pub(super) claims: Value,
    raw_payload: &'a str,
}

impl<'a> Parsed<'a> {
    pub(super) fn read(token: &'a str) -> Result<Self, JwtFault> {
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(JwtFault::BadFormat);
        };
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
        let header = decode(header).ok_or(JwtFault::HeaderBase64)?;
        let header: Value = serde_json::from_slice(&header).ok().filter(Value::is_object).ok_or(JwtFault::HeaderJson)?;
        match header.get("alg") {
            Some(Value::String(name)) if ALGORITHMS.contains(&name.as_str()) => {}
            Some(Value::String(_)) => return Err(JwtFault::Algorithm),
            _ => return Err(JwtFault::AlgorithmMissing),
        }
        if header.get("kid").is_some_and(|kid| !kid.is_string()) {
            return Err(JwtFault::KeyId);
        }
        let claims = decode(payload).ok_or(JwtFault::PayloadBase64)?;
        let claims: Value = serde_json::from_slice(&claims).ok().filter(Value::is_object).ok_or(JwtFault::PayloadJson)?;
        of_its_types(&claims)?;
        URL_SAFE_NO_PAD.decode(signature).map_err(|_| JwtFault::SignatureBase64)?;
        Ok(Self { header, claims, raw_payload: payload })
    }

    /// Zero, like nothing, means without a limit.
    fn time(&self, claim: &str) -> Option<u64> {
        let value = self.claims.get(claim)?;
        value.as_u64().or_else(|| value.as_f64().map(|n| n as u64)).filter(|n| *n > 0)
    }

    /// When it ends, in seconds since 1970, if ever.
    pub(super) fn end(&self) -> Option<u64> {
        self.time("exp")
    }

    pub(super) fn check_times(&self, now: u64, skew: u64) -> Result<(), JwtFault> {
        if self.time("nbf").is_some_and(|start| now.saturating_add(skew) < start) {
            return Err(JwtFault::NotYetValid);
        }
        if self.end().is_some_and(|end| now > end.saturating_add(skew)) {
            return Err(JwtFault::Expired);
        }
        Ok(())
    }

    pub(super) fn audiences(&self) -> impl Iterator<Item = &str> {
        let (one, many) = match self.claims.get("aud") {
            Some(Value::String(one)) => (Some(one.as_str()), &[][..]),
            Some(Value::Array(many)) => (None, many.as_slice()),
            _ => (None, &[][..]),
        };
        one.into_iter().chain(many.iter().filter_map(Value::as_str))
    }

    /// The payload as it stood in the token.
    pub(super) fn payload_text(&self, pad: bool) -> String {
        let missing = if pad { self.raw_payload.len().wrapping_neg() % 4 } else { 0 };
        format!("{}{}", self.raw_payload, "=".repeat(missing))
    }
}

/// A claim for a header: lists and objects in base64, since their text may not stand there.
pub(super) fn claim_text(claims: &Value, path: &[Box<str>]) -> Option<String> {
    let value = path.iter().try_fold(claims, |value, key| value.get(&**key))?;
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(yes) => Some(yes.to_string()),
        Value::Null => None,
        Value::Array(_) | Value::Object(_) => Some(STANDARD.encode(value.to_string())),
    }
}

/// The claims with those that are lists in one text made lists.
pub(super) fn normalized(claims: &Value, space_delimited: &[Box<str>]) -> Value {
    let mut claims = claims.clone();
    for name in space_delimited {
        if let Some(Value::String(text)) = claims.get_mut(&**name) {
            let items: Vec<Value> = text.split(' ').filter(|t| !t.is_empty()).map(Value::from).collect();
            if let Some(claim) = claims.get_mut(&**name) {
                *claim = Value::Array(items);
            }
        }
    }
    claims
}
