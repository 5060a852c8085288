//! Certificate authority, CSR service, rotation, SDS and TLS configuration.
//!
//! On the path of a request this crate decides who the peer is; beside the path, it keeps every
//! workload's certificate fresh:
//!
//! ```text
//! token / old certificate ─► authenticate ─► csr_service ─► ca          (control plane)
//!          csr_client ─► rotation ─► WorkloadSecrets ─► tls, sds        (proxy)
//! ```
//!
//! [`secrets::WorkloadSecrets`] is what travels between the halves: a chain, its key and the roots
//! to trust, checked when put together. [`tls`] turns such inputs into rustls configurations for
//! both planes. Everything that depends on time takes `now`.
pub mod authenticate;
pub mod ca;
pub mod csr_client;
pub mod csr_service;
pub mod file_secret;
pub mod jwks;
pub mod pem;
pub mod rotation;
pub mod sds;
pub mod secrets;
pub mod tls;
pub mod token;

pub use authenticate::{Authenticator, Credentials};
pub use ca::CertificateAuthority;
pub use secrets::{InvalidSecrets, PrivateKey, WorkloadSecrets};
pub use tls::peer::PeerIdentity;
