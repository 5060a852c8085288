//! rustls configurations for both planes: who is accepted, what is offered, who the peer turned out to be.
//!
//! [`params`] builds `ServerConfig` and `ClientConfig` from plain inputs, [`verifier`] decides about
//! the peer's certificate, [`san`] matches its names, [`peer`] extracts what later stages read.
pub mod key;
mod known;
pub mod params;
pub mod peer;
pub mod san;
pub mod suites;
#[cfg(test)]
mod tests;
pub mod verifier;

pub use key::{CertificateSet, RotatingKey};
pub use params::{ClientAuth, ClientParams, InvalidTlsParams, Resumption, ServerParams, TlsVersion, Trust, Verification};
pub use peer::PeerIdentity;
pub use san::{InvalidSanMatcher, SanKind, SanMatcher, SanPattern};
pub use verifier::{ChainVerifier, PeerRefused, Usage, refusal};

use rustls::crypto::CryptoProvider;
use std::sync::{Arc, LazyLock};

/// The one crypto provider: aws-lc-rs, whose default key exchange is the hybrid X25519MLKEM768
/// where both ends offer it.
pub fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    &PROVIDER
}
