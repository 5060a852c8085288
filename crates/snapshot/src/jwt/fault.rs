//! Why a request's tokens do not do, in Envoy's words and by its numbers.
use std::borrow::Cow;

use lateen_identity::jwks::Unverified;

/// Why a request's tokens do not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JwtFault {
    Missing,
    BadFormat,
    HeaderBase64,
    HeaderJson,
    PayloadBase64,
    PayloadJson,
    /// A claim of the wrong type: one that is a text,
    NotText(&'static str),
    /// a time,
    NotInteger(&'static str),
    /// a time that can be,
    OutOfRange(&'static str),
    /// a text or a list of texts.
    AudienceType,
    SignatureBase64,
    Algorithm,
    AlgorithmMissing,
    /// `kid` is no text.
    KeyId,
    NotYetValid,
    Expired,
    UnknownIssuer,
    Audience,
    NoKey,
    Signature,
    /// The keys could not be fetched.
    Fetch,
}

impl JwtFault {
    /// The text in Envoy's answer.
    pub fn text(self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::NotText(name) => return format!("Jwt payload [{name}] field is not a string").into(),
            Self::NotInteger(name) => return format!("Jwt payload [{name}] field is not an integer").into(),
            Self::OutOfRange(name) => return format!("Jwt payload [{name}] field is not a positive 64 bit integer").into(),
            Self::Missing => "Jwt is missing",
            Self::BadFormat => "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
            Self::HeaderBase64 => "Jwt header is an invalid Base64url encoded",
            Self::HeaderJson => "Jwt header is an invalid JSON",
            Self::PayloadBase64 => "Jwt payload is an invalid Base64url encoded",
            Self::PayloadJson => "Jwt payload is an invalid JSON",
            Self::AudienceType => "Jwt payload [aud] field is not a string or string list",
            Self::SignatureBase64 => "Jwt signature is an invalid Base64url encoded",
            Self::AlgorithmMissing => "Jwt header [alg] field is required and must be a string",
            Self::KeyId => "Jwt header [kid] field is not a string",
            Self::Algorithm => "Jwt header [alg] is not supported",
            Self::NotYetValid => "Jwt not yet valid",
            Self::Expired => "Jwt is expired",
            Self::UnknownIssuer => "Jwt issuer is not configured",
            Self::Audience => "Audiences in Jwt are not allowed",
            Self::NoKey => "Jwks doesn't have key to match kid or alg from Jwt",
            Self::Signature => "Jwt verification fails",
            Self::Fetch => "Jwks remote fetch is failed",
        })
    }

    /// The number that Envoy's `::google::jwt_verify::Status` has for it (`source/common/jwt/status.h`).
    pub fn code(self) -> u32 {
        match self {
            Self::Missing => 1,
            Self::NotYetValid => 2,
            Self::Expired => 3,
            Self::BadFormat => 4,
            Self::HeaderBase64 => 5,
            Self::HeaderJson => 6,
            Self::AlgorithmMissing => 7,
            Self::Algorithm => 8,
            Self::KeyId => 9,
            Self::PayloadBase64 => 10,
            Self::PayloadJson => 11,
            Self::NotText("iss") => 12,
            Self::NotText("sub") => 13,
            Self::NotInteger("iat") => 14,
            Self::OutOfRange("iat") => 15,
            Self::NotInteger("nbf") => 16,
            Self::OutOfRange("nbf") => 17,
            Self::NotInteger(_) => 18,
            Self::OutOfRange(_) => 19,
            Self::NotText(_) => 20,
            Self::AudienceType => 21,
            Self::SignatureBase64 => 22,
            Self::UnknownIssuer => 24,
            Self::Audience => 25,
            Self::Signature => 26,
            Self::NoKey => 32,
            Self::Fetch => 40,
        }
    }

    /// Whether it is known whose token it is about.
    pub(super) fn is_of_an_issuer(self) -> bool {
        use JwtFault::{Audience, Expired, Fetch, NoKey, NotYetValid, Signature};
        matches!(self, NotYetValid | Expired | Audience | NoKey | Signature | Fetch)
    }
}

impl From<Unverified> for JwtFault {
    fn from(why: Unverified) -> Self {
        match why {
            Unverified::Format => Self::BadFormat,
            Unverified::HeaderBase64 => Self::HeaderBase64,
            Unverified::HeaderJson => Self::HeaderJson,
            Unverified::Critical | Unverified::Signature(_) => Self::Signature,
            // What no algorithm is was told before; no key here is of another one, or a secret that caller and issuer share.
            Unverified::Algorithm(_) | Unverified::Symmetric(_) | Unverified::NoKey(_) => Self::NoKey,
        }
    }
}
