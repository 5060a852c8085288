//! One revocation list: which certificates it speaks of, when, and who signed it.
use super::super::provider;
use rustls_pki_types::{CertificateRevocationListDer, SignatureVerificationAlgorithm, UnixTime};
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use webpki::BorrowedCertRevocationList;
use x509_parser::asn1_rs::{Any, FromDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{DistributionPointName, GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_X509_EXT_CRL_DISTRIBUTION_POINTS, OID_X509_EXT_ISSUER_DISTRIBUTION_POINT};
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::time::ASN1Time;

/// Keys remembered of which it is known whether they signed a list. A list has one signer: more are of other keys under its name.
const MOST_KEYS: usize = 32;

pub(super) struct List {
    der: CertificateRevocationListDer<'static>,
    issuer: Vec<u8>,
    scope: Scope,
    /// In seconds since 1970.
    made: u64,
    until: u64,
    serials: HashSet<Box<[u8]>>,
    /// To look at a signature is to hash the whole list, which may be long.
    keys: Mutex<HashMap<Vec<u8>, bool>>,
}

/// Which certificates of its issuer a list speaks of.
enum Scope {
    All,
    Some { of_users: bool, of_authorities: bool, points: Vec<String> },
}

impl List {
    /// `Err` says why it cannot be used.
    pub(super) fn read(der: &CertificateRevocationListDer<'static>) -> Result<Self, String> {
        // Which parts of a list must be understood is webpki's matter: it takes none that speaks for another issuer, of some
        // reasons only, or of changes only.
        let entries = BorrowedCertRevocationList::from_der(der).map_err(|e| e.to_string())?;
        let serials = entries.into_iter().map(|entry| entry.map(|entry| entry.serial_number.into()));
        let serials = serials.collect::<Result<_, webpki::Error>>().map_err(|e| e.to_string())?;
        let (_, content) = x509_parser::parse_x509_crl(der).map_err(|e| e.to_string())?;
        let seconds = |time: ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
        Ok(Self {
            der: der.clone(),
            issuer: content.issuer().as_raw().to_vec(),
            scope: Scope::of(&content).ok_or("its issuing distribution point cannot be read")?,
            made: seconds(content.last_update()),
            until: content.next_update().map_or(0, seconds),
            serials,
            keys: Mutex::default(),
        })
    }

    pub(super) fn made(&self) -> u64 {
        self.made
    }

    pub(super) fn is_current(&self, now: UnixTime) -> bool {
        (self.made..self.until).contains(&now.as_secs())
    }

    /// Whether it is of this certificate's issuer, and speaks of certificates like it.
    pub(super) fn covers(&self, one: &X509Certificate<'_>) -> bool {
        self.issuer == one.issuer().as_raw()
            && match &self.scope {
                Scope::All => true,
                Scope::Some { of_users: false, .. } if !one.is_ca() => false,
                Scope::Some { of_authorities: false, .. } if one.is_ca() => false,
                // As in BoringSSL, a list of one place does not speak of a certificate that names none: it may be in another.
                Scope::Some { points, .. } => {
                    points_of(one).is_some_and(|mut its| its.any(|point| points.iter().any(|other| other == point)))
                }
            }
    }

    pub(super) fn has(&self, one: &X509Certificate<'_>) -> bool {
        self.serials.contains(one.raw_serial())
    }

    /// Whether the holder of this public key signed it.
    pub(super) fn is_signed_by(&self, key: &[u8]) -> bool {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(is_signed) = keys.get(key) {
            return *is_signed;
        }
        if keys.len() >= MOST_KEYS {
            keys.clear();
        }
        let is_signed = is_signed(&self.der, key);
        keys.insert(key.to_vec(), is_signed);
        is_signed
    }
}

impl Scope {
    /// `None` when it says something about that which cannot be read.
    fn of(list: &CertificateRevocationList<'_>) -> Option<Self> {
        let Some(scope) = list.extensions().iter().find(|extension| extension.oid == OID_X509_EXT_ISSUER_DISTRIBUTION_POINT) else {
            return Some(Self::All);
        };
        let ParsedExtension::IssuingDistributionPoint(scope) = scope.parsed_extension() else { return None };
        // webpki takes no list without one, so that this is one that the parser here cannot read.
        let points = locations(scope.distribution_point.as_ref()?).map(str::to_owned).collect();
        Some(Self::Some { of_users: !scope.only_contains_ca_certs, of_authorities: !scope.only_contains_user_certs, points })
    }
}

/// Where a certificate says that lists with it are; `None` when it says nothing.
fn points_of<'a>(one: &'a X509Certificate<'_>) -> Option<impl Iterator<Item = &'a str>> {
    let extension = one.extensions().iter().find(|extension| extension.oid == OID_X509_EXT_CRL_DISTRIBUTION_POINTS)?;
    let points = match extension.parsed_extension() {
        ParsedExtension::CRLDistributionPoints(points) => points.points.as_slice(),
        _ => &[],
    };
    // Others are of lists of some reasons only, or of another issuer.
    let whole = points.iter().filter(|point| point.reasons.is_none() && point.crl_issuer.is_none());
    Some(whole.filter_map(|point| point.distribution_point.as_ref()).flat_map(locations))
}

fn locations<'a>(name: &'a DistributionPointName<'_>) -> impl Iterator<Item = &'a str> {
    let names = match name {
        DistributionPointName::FullName(names) => names.as_slice(),
        DistributionPointName::NameRelativeToCRLIssuer(_) => &[],
    };
    names.iter().filter_map(|name| match name {
        GeneralName::URI(location) => Some(*location),
        _ => None,
    })
}

/// Whether the holder of this public key signed a certificate or list. By the same means as chains are verified.
pub(super) fn is_signed(signed: &[u8], public_key: &[u8]) -> bool {
    let parts = || {
        let (tbs, rest) = first(inside(signed)?)?;
        let (algorithm, rest) = first(rest)?;
        // In whole bytes: how many bits of the last are not of it stands before.
        let signature = inside(first(rest)?.0)?.strip_prefix(&[0])?;
        let (key_algorithm, rest) = first(inside(public_key)?)?;
        let key = inside(first(rest)?.0)?.strip_prefix(&[0])?;
        let fits = |one: &&&dyn SignatureVerificationAlgorithm| {
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
