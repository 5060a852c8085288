//! rustls configurations for both planes: who is accepted, what is offered, who the peer turned out to be.
//!
//! [`params`] builds `ServerConfig` and `ClientConfig` from plain inputs, [`verifier`] decides about
//! the peer's certificate, [`san`] matches its names, [`peer`] extracts what later stages read.
pub mod key;
mod known;
pub mod params;
pub mod peer;
mod refused;
mod revocation;
pub mod san;
pub mod suites;
#[cfg(test)]
mod tests;
pub mod verifier;

pub use key::{CertificateSet, RotatingKey};
pub use params::{ClientAuth, ClientParams, InvalidTlsParams, Resumption, ServerParams, TlsVersion, Trust, Verification};
pub use peer::PeerIdentity;
pub use refused::{PeerRefused, refusal};
pub use san::{InvalidSanMatcher, SanKind, SanMatcher, SanPattern};
pub use verifier::{ChainVerifier, Usage, check_name};

use rustls::crypto::CryptoProvider;
use std::sync::{Arc, LazyLock};

/// The one crypto provider: aws-lc-rs, whose default key exchange is the hybrid X25519MLKEM768 where both ends offer it.
/// As in Envoy AES-128-GCM comes before AES-256-GCM, whose SHA-384 few processors compute in hardware: a tenth of a handshake.
pub fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        // A stable sort: TLS 1.3 stays before 1.2, and what else there is keeps its order.
        provider.cipher_suites.sort_by_key(|suite| (suite.tls13().is_none(), !suites::is_aes_128(suite.suite())));
        Arc::new(provider)
    });
    &PROVIDER
}
