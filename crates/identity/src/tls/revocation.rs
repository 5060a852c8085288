//! What revocation lists say of the certificates that are trusted by themselves, where chains end.
//!
//! Below its end each certificate of a chain is looked up in a list of the one above it. The last is looked up too, as BoringSSL
//! does: a root in a list of its own, any other in a list of the trusted certificate that it names as its issuer. One that no list
//! covers is refused like any other.
use super::provider;
use super::refused::PeerRefused;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use x509_parser::asn1_rs::{Any, FromDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::oid_registry::OID_X509_EXT_ISSUER_DISTRIBUTION_POINT;
use x509_parser::revocation_list::CertificateRevocationList;

/// No more certificates than that stand above one another.
const MOST_ABOVE: usize = 8;

/// What the lists say of one certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// None covers it.
    Unknown,
    Revoked,
    /// Until the list is out of date, in seconds.
    GoodUntil(u64),
}

impl Standing {
    pub(super) fn at(self, now: UnixTime) -> Result<(), PeerRefused> {
        match self {
            Self::GoodUntil(end) if now.as_secs() < end => Ok(()),
            Self::Revoked => Err(PeerRefused::Revoked),
            Self::GoodUntil(_) | Self::Unknown => Err(PeerRefused::RevocationUnknown),
        }
    }
}

/// What these lists say of each of the trusted certificates.
pub(super) fn standings(roots: &[CertificateDer<'_>], lists: &[CertificateRevocationListDer<'_>]) -> Vec<Standing> {
    let read = |root| x509_parser::parse_x509_certificate(root).ok().map(|(_, certificate)| certificate);
    let trusted: Vec<Option<X509Certificate<'_>>> = roots.iter().map(|root| read(root)).collect();
    let lists: Vec<List<'_>> = lists.iter().filter_map(|list| List::read(list)).collect();
    let mut known = vec![Standing::Unknown; roots.len()];
    // Those above come first: each round reaches one further down.
    for _ in 0..MOST_ABOVE {
        let of = |one: &Option<X509Certificate<'_>>| one.as_ref().map_or(Standing::Unknown, |one| standing(one, &trusted, &known, &lists));
        let next: Vec<Standing> = trusted.iter().map(of).collect();
        if next == known {
            break;
        }
        known = next;
    }
    known
}

fn standing(one: &X509Certificate<'_>, trusted: &[Option<X509Certificate<'_>>], known: &[Standing], lists: &[List<'_>]) -> Standing {
    let issuer = one.issuer().as_raw();
    let is_last = issuer == one.subject().as_raw();
    let mut found = Standing::Unknown;
    for (above, its_standing) in trusted.iter().zip(known) {
        let Some(above) = above.as_ref().filter(|above| above.subject().as_raw() == issuer && may_sign_lists(above)) else { continue };
        let end = match its_standing {
            _ if is_last => u64::MAX,
            Standing::GoodUntil(end) => *end,
            Standing::Unknown | Standing::Revoked => continue,
        };
        for list in lists.iter().filter(|list| list.covers(one) && is_signed(list.der, above.public_key().raw)) {
            if list.content.iter_revoked_certificates().any(|revoked| revoked.raw_serial() == one.raw_serial()) {
                return Standing::Revoked;
            }
            // The one that holds longest counts.
            let end = end.min(list.next_update);
            found = match found {
                Standing::GoodUntil(other) if other >= end => found,
                _ => Standing::GoodUntil(end),
            };
        }
    }
    found
}

/// A certificate that says nothing about what its key is for may do anything.
fn may_sign_lists(certificate: &X509Certificate<'_>) -> bool {
    certificate.key_usage().is_ok_and(|usage| usage.is_none_or(|usage| usage.value.crl_sign()))
}

struct List<'a> {
    der: &'a [u8],
    content: CertificateRevocationList<'a>,
    next_update: u64,
}

impl<'a> List<'a> {
    fn read(der: &'a [u8]) -> Option<Self> {
        let (_, content) = x509_parser::parse_x509_crl(der).ok()?;
        let next_update = u64::try_from(content.next_update()?.timestamp()).ok()?;
        Some(Self { der, content, next_update })
    }

    /// Whether it is of this certificate's issuer, and speaks of certificates like it.
    fn covers(&self, one: &X509Certificate<'_>) -> bool {
        let mut extensions = self.content.extensions().iter();
        let scope = extensions.find(|extension| extension.oid == OID_X509_EXT_ISSUER_DISTRIBUTION_POINT);
        let is_in_scope = scope.is_none_or(|scope| match scope.parsed_extension() {
            ParsedExtension::IssuingDistributionPoint(scope) => {
                let is_of_its_kind = if one.is_ca() { !scope.only_contains_user_certs } else { !scope.only_contains_ca_certs };
                let is_whole = !scope.indirect_crl && !scope.only_contains_attribute_certs && scope.only_some_reasons.is_none();
                is_of_its_kind && is_whole && scope.distribution_point.is_none()
            }
            _ => false,
        });
        is_in_scope && self.content.issuer().as_raw() == one.issuer().as_raw()
    }
}

/// Whether the holder of this public key signed a list. By the same means as chains are verified.
fn is_signed(list: &[u8], public_key: &[u8]) -> bool {
    let parts = || {
        let (tbs, rest) = first(inside(list)?)?;
        let (algorithm, rest) = first(rest)?;
        // In whole bytes: how many bits of the last are not of it stands before.
        let signature = inside(first(rest)?.0)?.strip_prefix(&[0])?;
        let (key_algorithm, rest) = first(inside(public_key)?)?;
        let key = inside(first(rest)?.0)?.strip_prefix(&[0])?;
        let fits = |one: &&&dyn rustls_pki_types::SignatureVerificationAlgorithm| {
            inside(key_algorithm) == Some(one.public_key_alg_id().as_ref()) && inside(algorithm) == Some(one.signature_alg_id().as_ref())
        };
        let mut fitting = provider().signature_verification_algorithms.all.iter().filter(fits);
        Some(fitting.any(|algorithm| algorithm.verify_signature(key, tbs, signature).is_ok()))
    };
    parts().unwrap_or(false)
}

/// The first value of several in DER, and the others.
fn first(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (rest, _) = Any::from_der(der).ok()?;
    der.split_at_checked(der.len() - rest.len())
}

/// What is in a value.
fn inside(der: &[u8]) -> Option<&[u8]> {
    Any::from_der(der).ok().map(|(_, value)| value.data)
}
