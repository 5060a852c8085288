//! Building rustls configurations from plain inputs, as the transport sockets of both planes need them.
use super::key::{CertificateSet, FixedKey};
use super::san::SanMatcher;
use super::suites::{self, InvalidSuites};
use super::verifier::{ChainVerifier, InvalidTrust, PeerPolicy, PeerVerifier};
use base64::Engine;
use rustls::client::{ResolvesClientCert, Resumption as ClientResumption};
use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert, ServerSessionMemoryCache};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ConfigBuilder, ConfigSide, ServerConfig, SupportedProtocolVersion, WantsVerifier};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use std::sync::Arc;

/// Sessions a configuration remembers for resumption.
const REMEMBERED_SESSIONS: usize = 1024;

/// A protocol version; older ones are not spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    V1_2,
    V1_3,
}

/// Whether a server asks for a client certificate. One that is presented is always verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    #[default]
    None,
    Optional,
    Required,
}

/// Whose certificates are accepted.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Chains ending in one of these DER certificates.
    Roots(Vec<CertificateDer<'static>>),
    /// Any certificate, even self-signed or expired (`insecureSkipVerify`). Pins are still checked.
    Anyone,
}

/// What is demanded of a peer's certificate.
#[derive(Clone, Debug)]
pub struct Verification {
    pub trust: Trust,
    /// One must match; an empty list accepts every name.
    pub san_matchers: Vec<SanMatcher>,
    /// SHA-256 of the public key (SPKI): see [`key_pin`]. One of both pin lists must match, unless both are empty.
    pub key_pins: Vec<[u8; 32]>,
    /// SHA-256 of the certificate: see [`certificate_pin`].
    pub certificate_pins: Vec<[u8; 32]>,
    pub revocation_lists: Vec<CertificateRevocationListDer<'static>>,
    /// Check only the peer's own certificate against the lists, not its issuers.
    pub revocation_leaf_only: bool,
    /// So many certificates may be above the peer's own, the root among them.
    pub most_above: Option<usize>,
    /// Clients only: the server name must be covered by the certificate's DNS or IP names.
    pub check_host: bool,
}

impl Verification {
    /// Chains to `roots` with one of the names; no host name is checked.
    pub fn roots(roots: Vec<CertificateDer<'static>>, san_matchers: Vec<SanMatcher>) -> Self {
        Self { trust: Trust::Roots(roots), san_matchers, ..Self::anyone() }
    }

    /// Chains to `roots` and is valid for the host name, as a browser checks.
    pub fn host(roots: Vec<CertificateDer<'static>>) -> Self {
        Self { trust: Trust::Roots(roots), check_host: true, ..Self::anyone() }
    }

    /// Accepts everyone who has the key of the certificate presented.
    pub fn anyone() -> Self {
        Self {
            trust: Trust::Anyone,
            san_matchers: Vec::new(),
            key_pins: Vec::new(),
            certificate_pins: Vec::new(),
            revocation_lists: Vec::new(),
            revocation_leaf_only: false,
            most_above: None,
            check_host: false,
        }
    }

    fn policy(&self) -> Result<PeerPolicy, InvalidTlsParams> {
        let chain = match &self.trust {
            Trust::Roots(roots) => {
                let chain = ChainVerifier::new(roots)?.with_revocation(&self.revocation_lists, self.revocation_leaf_only)?;
                Some(chain.with_most_above(self.most_above))
            }
            // A name in a certificate that anybody can make proves nothing; Envoy refuses this too.
            Trust::Anyone if !self.san_matchers.is_empty() || self.check_host => return Err(InvalidTlsParams::NamesWithoutRoots),
            Trust::Anyone if !self.revocation_lists.is_empty() => return Err(InvalidTlsParams::RevocationWithoutRoots),
            Trust::Anyone => None,
        };
        Ok(PeerPolicy {
            chain,
            san_matchers: self.san_matchers.clone(),
            key_pins: self.key_pins.clone(),
            certificate_pins: self.certificate_pins.clone(),
            check_host: self.check_host,
        })
    }
}

/// Whether sessions are resumed. What a configuration remembers dies with it, so that a change of
/// trust, which makes a new configuration, is never outlived by a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resumption {
    /// Off for mutual TLS, where a resumed session would skip the look at the certificate; else on.
    #[default]
    Auto,
    Off,
}

/// What a client or server presents as its own certificate.
#[derive(Debug)]
pub enum Presented<R: ?Sized> {
    Keys(Vec<Arc<CertifiedKey>>),
    /// Decides per connection, for instance [`super::RotatingKey`].
    Resolver(Arc<R>),
}

// Derived, it would ask for `R: Clone`, which a trait object is not.
impl<R: ?Sized> Clone for Presented<R> {
    fn clone(&self) -> Self {
        match self {
            Self::Keys(keys) => Self::Keys(keys.clone()),
            Self::Resolver(resolver) => Self::Resolver(resolver.clone()),
        }
    }
}

/// Inputs of a server's configuration.
#[derive(Clone, Debug)]
pub struct ServerParams {
    pub presented: Presented<dyn ResolvesServerCert>,
    /// Whether all keys are looked at for a server name that none of them has, or the first is shown.
    pub scans_all: bool,
    pub client_auth: ClientAuth,
    /// Used unless `client_auth` is [`ClientAuth::None`].
    pub verification: Verification,
    /// In order of preference; empty offers none and accepts clients that offer any.
    pub alpn: Vec<Vec<u8>>,
    pub min_version: TlsVersion,
    pub max_version: TlsVersion,
    /// OpenSSL names, limiting TLS 1.2; empty keeps the defaults.
    pub cipher_suites: Vec<String>,
    /// Names as in Envoy's `ecdh_curves`; empty keeps the defaults, the hybrid X25519MLKEM768 first.
    pub groups: Vec<String>,
    /// Whether the client's order of suites counts, and not this list's.
    pub prefers_client_order: bool,
    pub resumption: Resumption,
}

impl ServerParams {
    /// A server that presents `keys` and asks for no client certificate; TLS 1.2 and 1.3.
    pub fn new(keys: Vec<Arc<CertifiedKey>>) -> Self {
        Self::with(Presented::Keys(keys))
    }

    /// A server that presents what `resolver` says.
    pub fn with_resolver(resolver: Arc<dyn ResolvesServerCert>) -> Self {
        Self::with(Presented::Resolver(resolver))
    }

    fn with(presented: Presented<dyn ResolvesServerCert>) -> Self {
        Self {
            presented,
            scans_all: false,
            client_auth: ClientAuth::None,
            verification: Verification::anyone(),
            alpn: Vec::new(),
            min_version: TlsVersion::V1_2,
            max_version: TlsVersion::V1_3,
            cipher_suites: Vec::new(),
            groups: Vec::new(),
            prefers_client_order: false,
            resumption: Resumption::Auto,
        }
    }

    /// Builds the configuration.
    ///
    /// # Errors
    /// When an input cannot be used; the error names it.
    pub fn build(&self) -> Result<Arc<ServerConfig>, InvalidTlsParams> {
        let provider = suites::restrict(&self.cipher_suites, &self.groups)?;
        let builder = versions(ServerConfig::builder_with_provider(provider), self.min_version, self.max_version)?;
        let builder = match self.client_auth {
            ClientAuth::None => builder.with_no_client_auth(),
            auth => {
                let verifier = PeerVerifier::new(self.verification.policy()?, auth == ClientAuth::Required);
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_cert_resolver(match &self.presented {
            Presented::Keys(keys) if keys.is_empty() => return Err(InvalidTlsParams::NoCertificate),
            Presented::Keys(keys) => Arc::new(CertificateSet::new(keys.iter().cloned(), self.scans_all)),
            Presented::Resolver(resolver) => resolver.clone(),
        });
        config.alpn_protocols.clone_from(&self.alpn);
        config.ignore_client_order = !self.prefers_client_order;
        if self.resumption == Resumption::Off || self.client_auth != ClientAuth::None {
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        } else {
            config.session_storage = ServerSessionMemoryCache::new(REMEMBERED_SESSIONS);
        }
        Ok(Arc::new(config))
    }
}

/// Inputs of a client's configuration. The server name is given per connection.
#[derive(Clone, Debug)]
pub struct ClientParams {
    pub verification: Verification,
    /// The client's own certificate; an empty list presents none.
    pub presented: Presented<dyn ResolvesClientCert>,
    pub alpn: Vec<Vec<u8>>,
    pub min_version: TlsVersion,
    pub max_version: TlsVersion,
    pub cipher_suites: Vec<String>,
    pub groups: Vec<String>,
    pub resumption: Resumption,
}

impl ClientParams {
    /// A client without a certificate of its own; TLS 1.2 and 1.3.
    pub fn new(verification: Verification) -> Self {
        Self {
            verification,
            presented: Presented::Keys(Vec::new()),
            alpn: Vec::new(),
            min_version: TlsVersion::V1_2,
            max_version: TlsVersion::V1_3,
            cipher_suites: Vec::new(),
            groups: Vec::new(),
            resumption: Resumption::Auto,
        }
    }

    /// Presents `key` to servers that ask.
    #[must_use]
    pub fn with_key(mut self, key: Arc<CertifiedKey>) -> Self {
        self.presented = Presented::Keys(vec![key]);
        self
    }

    /// Presents what `resolver` says, for instance [`super::RotatingKey`].
    #[must_use]
    pub fn with_resolver(mut self, resolver: Arc<dyn ResolvesClientCert>) -> Self {
        self.presented = Presented::Resolver(resolver);
        self
    }

    /// Builds the configuration.
    ///
    /// # Errors
    /// When an input cannot be used; the error names it.
    pub fn build(&self) -> Result<Arc<ClientConfig>, InvalidTlsParams> {
        let provider = suites::restrict(&self.cipher_suites, &self.groups)?;
        let verifier = PeerVerifier::new(self.verification.policy()?, true);
        let builder = versions(ClientConfig::builder_with_provider(provider), self.min_version, self.max_version)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let (mut config, mutual) = match &self.presented {
            Presented::Keys(keys) => match keys.as_slice() {
                [] => (builder.with_no_client_auth(), false),
                [key, ..] => (builder.with_client_cert_resolver(Arc::new(FixedKey(key.clone()))), true),
            },
            Presented::Resolver(resolver) => (builder.with_client_cert_resolver(resolver.clone()), true),
        };
        config.alpn_protocols.clone_from(&self.alpn);
        // A server that picks no protocol, or one we did not offer, is the connection pool's to judge, as in Envoy.
        config.check_selected_alpn = false;
        config.resumption = if self.resumption == Resumption::Off || mutual {
            ClientResumption::disabled()
        } else {
            ClientResumption::in_memory_sessions(REMEMBERED_SESSIONS)
        };
        Ok(Arc::new(config))
    }
}

/// An input from which no configuration can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTlsParams {
    #[error("a server needs a certificate to present")]
    NoCertificate,
    #[error("names are demanded of peers that need not chain to any root; add the CA certificates to trust, or drop the names")]
    NamesWithoutRoots,
    #[error("revocation lists are given without the CA certificates to trust; add them")]
    RevocationWithoutRoots,
    #[error("the minimum TLS version is above the maximum")]
    Versions,
    #[error("the pin `{0}` is not a SHA-256 hash; write 64 hex digits for a certificate, base64 for a public key")]
    Pin(String),
    #[error(transparent)]
    Trust(#[from] InvalidTrust),
    #[error(transparent)]
    Suites(#[from] InvalidSuites),
    #[error("TLS cannot be configured: {0}")]
    Rustls(String),
}

/// Reads Envoy's `verify_certificate_spki`: SHA-256 of the public key in base64.
///
/// # Errors
/// When it is not 32 bytes of base64.
pub fn key_pin(text: &str) -> Result<[u8; 32], InvalidTlsParams> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(text.trim()).ok();
    bytes.and_then(|b| b.try_into().ok()).ok_or_else(|| InvalidTlsParams::Pin(text.to_owned()))
}

/// Reads Envoy's `verify_certificate_hash`: SHA-256 of the certificate in hex, colons allowed.
///
/// # Errors
/// When it is not 64 hex digits.
pub fn certificate_pin(text: &str) -> Result<[u8; 32], InvalidTlsParams> {
    let invalid = || InvalidTlsParams::Pin(text.to_owned());
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| *c != ':')
        .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()))
        .collect::<Option<_>>()
        .ok_or_else(invalid)?;
    let bytes: Vec<u8> = digits.chunks(2).map(|pair| pair.iter().fold(0, |sum, d| sum << 4 | d)).collect();
    if digits.len() == 64 { bytes.try_into().map_err(|_| invalid()) } else { Err(invalid()) }
}

fn versions<S: ConfigSide>(
    builder: ConfigBuilder<S, rustls::WantsVersions>,
    min: TlsVersion,
    max: TlsVersion,
) -> Result<ConfigBuilder<S, WantsVerifier>, InvalidTlsParams> {
    const BOTH: [(TlsVersion, &SupportedProtocolVersion); 2] =
        [(TlsVersion::V1_2, &rustls::version::TLS12), (TlsVersion::V1_3, &rustls::version::TLS13)];
    let chosen: Vec<_> = BOTH.iter().filter(|(v, _)| (min..=max).contains(v)).map(|(_, v)| *v).collect();
    if chosen.is_empty() {
        return Err(InvalidTlsParams::Versions);
    }
    builder.with_protocol_versions(&chosen).map_err(|e| InvalidTlsParams::Rustls(e.to_string()))
}

/// The default provider of the process, for libraries that look there (tonic's own TLS).
pub fn install_default_provider() {
    // An error only says that one is installed already.
    let _ = CryptoProvider::install_default(CryptoProvider::clone(super::provider()));
}
