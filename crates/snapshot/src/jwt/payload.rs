//! What a token says: its parts decoded, its times, its claims as text.
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::Value;

use super::JwtFault;

/// A token whose signature is not looked at yet.
pub(super) struct Parsed<'a> {
    pub(super) header: Value,
    pub(super) claims: Value,
    raw_payload: &'a str,
}

impl<'a> Parsed<'a> {
    pub(super) fn read(token: &'a str) -> Result<Self, JwtFault> {
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(JwtFault::BadFormat);
        };
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
        let header = decode(header).ok_or(JwtFault::HeaderBase64)?;
        let header: Value = serde_json::from_slice(&header).ok().filter(Value::is_object).ok_or(JwtFault::HeaderJson)?;
        let claims = decode(payload).ok_or(JwtFault::PayloadBase64)?;
        let claims: Value = serde_json::from_slice(&claims).ok().filter(Value::is_object).ok_or(JwtFault::PayloadJson)?;
        if claims.get("iss").is_some_and(|v| !v.is_string()) || claims.get("aud").is_some_and(|v| !v.is_string() && !v.is_array()) {
            return Err(JwtFault::PayloadField);
        }
        Ok(Self { header, claims, raw_payload: payload })
    }

    /// Zero, like nothing, means without a limit.
    fn time(&self, claim: &str) -> Result<Option<u64>, JwtFault> {
        match self.claims.get(claim) {
            None => Ok(None),
            Some(value) => {
                let whole = value.as_u64().or_else(|| value.as_f64().filter(|n| *n >= 0.0).map(|n| n as u64));
                whole.map(|n| (n > 0).then_some(n)).ok_or(JwtFault::PayloadField)
            }
        }
    }

    pub(super) fn check_times(&self, now: u64, skew: u64) -> Result<(), JwtFault> {
        if self.time("nbf")?.is_some_and(|start| now.saturating_add(skew) < start) {
            return Err(JwtFault::NotYetValid);
        }
        if self.time("exp")?.is_some_and(|end| now > end.saturating_add(skew)) {
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
