//! Deciding about a peer's certificate: chain, usage, validity, revocation, then its names.
//!
//! A mesh peer is known by its SPIFFE id, so no DNS name is asked for unless the caller says so.
use super::known::{ChainId, KnownChains};
use super::peer::PeerIdentity;
use super::provider;
use super::refused::PeerRefused;
use super::revocation::{Revocation, is_self_issued};
use super::san::{SanKind, SanMatcher, dns_name_covers};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, TrustAnchor, UnixTime};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::UNIX_EPOCH;
use webpki::{EndEntityCert, KeyUsage, VerifiedPath, anchor_from_trusted_cert};
use x509_parser::certificate::X509Certificate;

/// What the peer uses its certificate for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    Client,
    Server,
}

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Client => "client authentication",
            Self::Server => "server authentication",
        })
    }
}

/// Trusted roots and revocation lists, ready to check chains.
pub struct ChainVerifier {
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    /// `None` without any list.
    revocation: Option<Revocation>,
    /// Certificates above the leaf, the root among them.
    most_above: Option<usize>,
    known: KnownChains,
}

/// A root or revocation list that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTrust {
    #[error("there are no trusted roots; name at least one CA certificate")]
    NoRoots,
    #[error("trusted root {position} cannot be used: {reason}")]
    Root { position: usize, reason: String },
    #[error("certificate revocation list {position} cannot be used: {reason}")]
    RevocationList { position: usize, reason: String },
}

impl ChainVerifier {
    /// Prepares `roots` (DER certificates) as trust anchors.
    ///
    /// # Errors
    /// When there is none, or one does not parse.
    pub fn new(roots: &[CertificateDer<'static>]) -> Result<Self, InvalidTrust> {
        if roots.is_empty() {
            return Err(InvalidTrust::NoRoots);
        }
        let anchor = |(index, root)| {
            anchor_from_trusted_cert(root)
                .map(|a| a.to_owned())
                .map_err(|e| InvalidTrust::Root { position: index + 1, reason: e.to_string() })
        };
        let anchors = roots.iter().enumerate().map(anchor).collect::<Result<_, _>>()?;
        Ok(Self { roots: roots.to_vec(), anchors, revocation: None, most_above: None, known: KnownChains::default() })
    }

    /// Checks every certificate of the chain, or only the leaf, against `lists`. As in Envoy, a
    /// certificate whose issuer has no current list is refused once there is any list.
    ///
    /// # Errors
    /// When a list does not parse.
    pub fn with_revocation(mut self, lists: &[CertificateRevocationListDer<'static>], leaf_only: bool) -> Result<Self, InvalidTrust> {
        let invalid = |(position, reason)| InvalidTrust::RevocationList { position, reason };
        self.revocation = match lists {
            [] => None,
            lists => Some(Revocation::new(&self.roots, lists, leaf_only).map_err(invalid)?),
        };
        Ok(self)
    }

    /// Takes only chains with that many certificates above the leaf, the root among them (Envoy's `max_verify_depth`). With or
    /// without it, no more than six stand between leaf and root.
    #[must_use]
    pub fn with_most_above(mut self, most: Option<usize>) -> Self {
        self.most_above = most;
        self
    }

    /// Whether `leaf` chains to a root, is valid at `now`, not revoked, and allowed for `usage`.
    ///
    /// # Errors
    /// The reason why not.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<(), PeerRefused> {
        if let Some(index) = self.roots.iter().position(|root| root.as_ref() == leaf.as_ref()) {
            let Some(revocation) = &self.revocation else { return verify_trusted_leaf(leaf, usage, now) };
            if is_self_issued(&parse(leaf)?) {
                verify_trusted_leaf(leaf, usage, now)?;
                return revocation.check_trusted(index, now);
            }
            // A list counts only with its issuer's word, so that one whose issuer is unknown is covered by none (as in OpenSSL).
            return self.verify_chain(leaf, intermediates, usage, now).map_err(|why| match why {
                PeerRefused::UnknownIssuer { .. } => PeerRefused::RevocationUnknown,
                other => other,
            });
        }
        // Revocation lists expire by themselves: with any, every chain is looked at anew.
        let chain = self.revocation.is_none().then(|| ChainId::of(leaf, intermediates, usage));
        if chain.is_some_and(|chain| self.known.contains(chain, now.as_secs())) {
            return Ok(());
        }
        self.verify_chain(leaf, intermediates, usage, now)?;
        if let Some(chain) = chain {
            self.known.insert(chain, leaf, intermediates);
        }
        Ok(())
    }

    /// What is to be said about a whole chain.
    fn verify_path(&self, path: &VerifiedPath<'_>, now: UnixTime) -> Result<(), webpki::Error> {
        if self.most_above.is_some_and(|most| path.intermediate_certificates().count() >= most) {
            return Err(webpki::Error::MaximumPathDepthExceeded);
        }
        let Some(revocation) = &self.revocation else { return Ok(()) };
        let end =
            self.anchors.iter().position(|anchor| std::ptr::eq(anchor, path.anchor())).ok_or(webpki::Error::UnknownRevocationStatus)?;
        let shown = std::iter::once(path.end_entity().der()).chain(path.intermediate_certificates().map(|one| one.der()));
        revocation.check(shown, end, now).map_err(|why| match why {
            PeerRefused::Revoked => webpki::Error::CertRevoked,
            _ => webpki::Error::UnknownRevocationStatus,
        })
    }

    fn verify_chain(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<(), PeerRefused> {
        let parsed = EndEntityCert::try_from(leaf).map_err(|e| PeerRefused::Malformed(e.to_string()))?;
        let wanted = match usage {
            Usage::Client => KeyUsage::client_auth(),
            Usage::Server => KeyUsage::server_auth(),
        };
        // One that is not acceptable is passed over: another way to a root may be shorter, or covered by lists.
        let acceptable = |path: &VerifiedPath<'_>| self.verify_path(path, now);
        let algorithms = provider().signature_verification_algorithms.all;
        parsed
            .verify_for_usage(algorithms, &self.anchors, intermediates, now, wanted, None, Some(&acceptable))
            .map(|_| ())
            .map_err(|e| explain(&e, leaf, usage))
    }

    #[cfg(test)]
    pub(super) fn knows(&self, leaf: &CertificateDer<'_>, usage: Usage) -> bool {
        self.known.contains(ChainId::of(leaf, &[], usage), unix_time(std::time::SystemTime::now()).as_secs())
    }

    fn subjects(&self) -> Vec<DistinguishedName> {
        self.anchors.iter().map(|a| DistinguishedName::in_sequence(a.subject.as_ref())).collect()
    }
}

fn parse<'a>(leaf: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, PeerRefused> {
    let parsed = x509_parser::parse_x509_certificate(leaf).map_err(|e| PeerRefused::Malformed(e.to_string()));
    parsed.map(|(_, certificate)| certificate)
}

/// A leaf that itself stands among the trusted certificates needs no issuer (as in OpenSSL): the
/// usual self-signed server of a test set-up.
fn verify_trusted_leaf(leaf: &CertificateDer<'_>, usage: Usage, now: UnixTime) -> Result<(), PeerRefused> {
    let certificate = parse(leaf)?;
    let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    let (not_before, not_after) = (seconds(certificate.validity().not_before), seconds(certificate.validity().not_after));
    let now = now.as_secs();
    if now > not_after {
        return Err(PeerRefused::Expired { not_after, now });
    }
    if now < not_before {
        return Err(PeerRefused::NotYetValid { not_before, now });
    }
    match certificate.extended_key_usage() {
        Ok(Some(eku))
            if !(eku.value.any
                || matches!(usage, Usage::Client) && eku.value.client_auth
                || matches!(usage, Usage::Server) && eku.value.server_auth) =>
        {
            Err(PeerRefused::WrongUsage(usage))
        }
        Ok(_) => Ok(()),
        Err(e) => Err(PeerRefused::Malformed(e.to_string())),
    }
}

fn explain(error: &webpki::Error, leaf: &CertificateDer<'_>, usage: Usage) -> PeerRefused {
    use webpki::Error;
    match error {
        Error::CertExpired { time, not_after } => PeerRefused::Expired { not_after: not_after.as_secs(), now: time.as_secs() },
        Error::CertNotValidYet { time, not_before } => PeerRefused::NotYetValid { not_before: not_before.as_secs(), now: time.as_secs() },
        // A root of the same name with another key: to the reader, just another root.
        Error::UnknownIssuer | Error::InvalidSignatureForPublicKey => {
            PeerRefused::UnknownIssuer { issuer: PeerIdentity::from_der(leaf).map(|i| i.issuer).unwrap_or_default() }
        }
        Error::RequiredEkuNotFoundContext(_) => PeerRefused::WrongUsage(usage),
        Error::CertRevoked => PeerRefused::Revoked,
        Error::UnknownRevocationStatus => PeerRefused::RevocationUnknown,
        Error::EndEntityUsedAsCa => PeerRefused::Chain("it was issued by a certificate that is not a CA".to_owned()),
        Error::CaUsedAsEndEntity => PeerRefused::Chain("a CA certificate was presented as the peer's own".to_owned()),
        Error::BadDer | Error::BadDerTime | Error::TrailingData(_) => PeerRefused::Malformed(error.to_string()),
        other => PeerRefused::Chain(other.to_string()),
    }
}

/// Everything demanded of a peer's certificate.
pub(super) struct PeerPolicy {
    /// `None` accepts any chain: the peer then only proves that it has the key.
    pub(super) chain: Option<ChainVerifier>,
    /// One must match, unless the list is empty.
    pub(super) san_matchers: Vec<SanMatcher>,
    /// SHA-256 of acceptable public keys (SPKI) and certificates; one must match, unless both lists are empty.
    pub(super) key_pins: Vec<[u8; 32]>,
    pub(super) certificate_pins: Vec<[u8; 32]>,
    /// Whether the name that the client asked for must be covered.
    pub(super) check_host: bool,
}

impl PeerPolicy {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<Arc<PeerIdentity>, PeerRefused> {
        if let Some(chain) = &self.chain {
            chain.verify(leaf, rest, usage, now)?;
        }
        let identity = PeerIdentity::shared(leaf, rest).map_err(|e| PeerRefused::Malformed(e.to_string()))?;
        self.check_pins(leaf)?;
        self.check_names(&identity)?;
        Ok(identity)
    }

    fn check_pins(&self, leaf: &CertificateDer<'_>) -> Result<(), PeerRefused> {
        if self.key_pins.is_empty() && self.certificate_pins.is_empty() {
            return Ok(());
        }
        let certificate = parse(leaf)?;
        let key: [u8; 32] = Sha256::digest(certificate.public_key().raw).into();
        let whole: [u8; 32] = Sha256::digest(leaf).into();
        if self.key_pins.contains(&key) || self.certificate_pins.contains(&whole) { Ok(()) } else { Err(PeerRefused::NotPinned) }
    }

    fn check_names(&self, identity: &PeerIdentity) -> Result<(), PeerRefused> {
        // X.509-SVID, section 2: more than one URI name makes the identity ambiguous.
        if identity.uri_sans.len() > 1 && identity.uri_sans.iter().any(|u| u.starts_with("spiffe://")) {
            return Err(PeerRefused::SeveralUris(identity.uri_sans.len()));
        }
        if self.san_matchers.is_empty() || self.san_matchers.iter().any(|m| m.matches(identity)) {
            return Ok(());
        }
        Err(self.name_mismatch(identity))
    }

    fn name_mismatch(&self, identity: &PeerIdentity) -> PeerRefused {
        let wanted = abridge(self.san_matchers.iter().map(ToString::to_string));
        let found: Vec<String> =
            [(SanKind::Uri, &identity.uri_sans), (SanKind::Dns, &identity.dns_sans), (SanKind::Email, &identity.email_sans)]
                .into_iter()
                .flat_map(|(kind, names)| names.iter().map(move |n| format!("{kind} {n}")))
                .chain(identity.ip_sans.iter().map(|ip| format!("IP {ip}")))
                .collect();
        let kind = self.san_matchers.first().map_or(SanKind::Uri, SanMatcher::kind);
        if found.is_empty() || kind == SanKind::Uri && identity.uri_sans.is_empty() {
            return PeerRefused::NoSan { kind, wanted };
        }
        let domains: Option<Vec<&str>> = self.san_matchers.iter().map(SanMatcher::demanded_trust_domain).collect();
        let theirs = identity.uri_sans.first().and_then(|u| u.strip_prefix("spiffe://")).and_then(|r| r.split('/').next());
        match (theirs, domains) {
            (Some(theirs), Some(domains)) if !domains.contains(&theirs) => {
                let mut domains = domains;
                domains.dedup();
                PeerRefused::WrongTrustDomain { found: theirs.to_owned(), wanted: abridge(domains.into_iter().map(str::to_owned)) }
            }
            _ => PeerRefused::WrongSan { found: abridge(found.into_iter()), wanted },
        }
    }
}

/// The first few of a list: a service may have hundreds of acceptable identities.
fn abridge(mut names: impl Iterator<Item = String>) -> String {
    let mut shown: Vec<String> = names.by_ref().take(4).collect();
    match names.count() {
        0 => {}
        more => shown.push(format!("{more} more")),
    }
    shown.join(", ")
}

/// The part of a client's configuration that judges servers, and the other way round.
pub(super) struct PeerVerifier {
    policy: PeerPolicy,
    mandatory: bool,
    subjects: Vec<DistinguishedName>,
}

impl PeerVerifier {
    pub(super) fn new(policy: PeerPolicy, mandatory: bool) -> Arc<Self> {
        let subjects = policy.chain.as_ref().map(ChainVerifier::subjects).unwrap_or_default();
        Arc::new(Self { policy, mandatory, subjects })
    }
}

impl std::fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerVerifier").field("san_matchers", &self.policy.san_matchers).finish_non_exhaustive()
    }
}

/// What both traits ask alike: signatures are checked as the provider does.
macro_rules! signature_checks {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls12_signature(message, certificate, signature, &provider().signature_verification_algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls13_signature(message, certificate, signature, &provider().signature_verification_algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            provider().signature_verification_algorithms.supported_schemes()
        }
    };
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let identity = self.policy.verify(leaf, intermediates, Usage::Server, now)?;
        if self.policy.check_host && !covers(&identity, server_name) {
            return Err(PeerRefused::WrongHost(server_name.to_str().into_owned()).into());
        }
        Ok(ServerCertVerified::assertion())
    }

    signature_checks!();
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.subjects
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.policy.verify(leaf, intermediates, Usage::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    signature_checks!();
}

/// Whether the certificate of a peer that passed all else has a name that it was not asked for.
///
/// # Errors
/// [`PeerRefused::WrongHost`] when it has not.
pub fn check_name(peer: Option<&[CertificateDer<'_>]>, name: &ServerName<'_>) -> Result<(), PeerRefused> {
    let identity = peer.and_then(<[_]>::split_first).and_then(|(leaf, issuers)| PeerIdentity::shared(leaf, issuers).ok());
    let covered = identity.is_some_and(|identity| covers(&identity, name));
    if covered { Ok(()) } else { Err(PeerRefused::WrongHost(name.to_str().into_owned())) }
}

fn covers(identity: &PeerIdentity, name: &ServerName<'_>) -> bool {
    match name {
        ServerName::DnsName(host) => identity.dns_sans.iter().any(|san| dns_name_covers(san, host.as_ref())),
        ServerName::IpAddress(ip) => identity.ip_sans.contains(&(*ip).into()),
        _ => false,
    }
}

/// The wall clock in the unit that [`ChainVerifier::verify`] takes.
pub fn unix_time(now: std::time::SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default())
}
