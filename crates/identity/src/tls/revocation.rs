//! What revocation lists say of a chain: every certificate is looked up in a list of the one above it.
//!
//! The last is looked up too, as BoringSSL does: a root in a list of its own, any other in a list of the trusted certificate that
//! issued it. Of the lists that cover a certificate the newest current one counts. One that none covers is refused.
use super::refused::PeerRefused;
use list::{List, is_signed};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use x509_parser::certificate::X509Certificate;

mod list;

/// Revocation lists, and the trusted certificates where chains end.
pub(super) struct Revocation {
    lists: Vec<List>,
    trusted: Vec<CertificateDer<'static>>,
    /// Which of them issued each of them. A root has itself.
    issuers: Vec<Vec<usize>>,
    leaf_only: bool,
}

impl Revocation {
    /// `Err` has the position of a list that cannot be used, from 1, and why.
    pub(super) fn new(
        trusted: &[CertificateDer<'static>],
        lists: &[CertificateRevocationListDer<'static>],
        leaf_only: bool,
    ) -> Result<Self, (usize, String)> {
        let list = |(position, der)| List::read(der).map_err(|reason| (position, reason));
        let lists = (1..).zip(lists).map(list).collect::<Result<_, _>>()?;
        Ok(Self { lists, trusted: trusted.to_vec(), issuers: issuers(trusted), leaf_only })
    }

    /// Whether the lists cover the certificates `shown`, from the leaf up, and the trusted one at `end` above them, and have
    /// none of them.
    ///
    /// # Errors
    /// What they say of the first of which they say something else.
    pub(super) fn check<'a>(&self, shown: impl Iterator<Item = CertificateDer<'a>>, end: usize, now: UnixTime) -> Result<(), PeerRefused> {
        let path: Vec<_> = shown.chain([self.trusted[end].clone()]).collect();
        let path: Option<Vec<_>> = path.iter().map(|one| read(one)).collect();
        let path = path.ok_or(PeerRefused::RevocationUnknown)?;
        let asked = if self.leaf_only { 1 } else { path.len() };
        for (one, above) in path.iter().zip(path.iter().skip(1)).take(asked) {
            self.look_up(one, above, now)?;
        }
        if self.leaf_only { Ok(()) } else { self.check_trusted(end, now) }
    }

    /// Whether the lists cover a trusted certificate and have it not. What they say of it counts only if the same is so of
    /// one that issued it.
    ///
    /// # Errors
    /// What they say otherwise.
    pub(super) fn check_trusted(&self, one: usize, now: UnixTime) -> Result<(), PeerRefused> {
        let mut refused = PeerRefused::RevocationUnknown;
        // Those that a root is looked for above; each only once, as some issue one another.
        let mut reached = vec![one];
        let mut next = 0;
        while let Some(&index) = reached.get(next) {
            next += 1;
            for &above in &self.issuers[index] {
                let (Some(one), Some(its_issuer)) = (read(&self.trusted[index]), read(&self.trusted[above])) else { continue };
                match self.look_up(&one, &its_issuer, now) {
                    Ok(()) if above == index => return Ok(()),
                    Ok(()) if !reached.contains(&above) => reached.push(above),
                    Ok(()) | Err(PeerRefused::RevocationUnknown) => {}
                    Err(other) => refused = other,
                }
            }
        }
        Err(refused)
    }

    /// What the lists of `above` say of a certificate that it issued.
    fn look_up(&self, one: &X509Certificate<'_>, above: &X509Certificate<'_>, now: UnixTime) -> Result<(), PeerRefused> {
        if !may_sign_lists(above) {
            return Err(PeerRefused::RevocationUnknown);
        }
        let counts = |list: &&List| list.is_current(now) && list.covers(one) && list.is_signed_by(above.public_key().raw);
        // Of two made in the same second nobody knows which is the later: then the stricter.
        match self.lists.iter().filter(counts).max_by_key(|list| (list.made(), list.has(one))) {
            None => Err(PeerRefused::RevocationUnknown),
            Some(list) if list.has(one) => Err(PeerRefused::Revoked),
            Some(_) => Ok(()),
        }
    }
}

fn read<'a>(certificate: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    x509_parser::parse_x509_certificate(certificate).ok().map(|(_, certificate)| certificate)
}

fn issuers(trusted: &[CertificateDer<'_>]) -> Vec<Vec<usize>> {
    let known: Vec<Option<X509Certificate<'_>>> = trusted.iter().map(|one| read(one)).collect();
    let of = |(index, one): (usize, &Option<X509Certificate<'_>>)| {
        let Some(one) = one else { return Vec::new() };
        if is_self_issued(one) {
            return vec![index];
        }
        let issued = |above: &X509Certificate<'_>| {
            above.subject().as_raw() == one.issuer().as_raw() && is_signed(&trusted[index], above.public_key().raw)
        };
        known.iter().enumerate().filter(|(_, above)| above.as_ref().is_some_and(issued)).map(|(above, _)| above).collect()
    };
    known.iter().enumerate().map(of).collect()
}

pub(super) fn is_self_issued(certificate: &X509Certificate<'_>) -> bool {
    certificate.issuer().as_raw() == certificate.subject().as_raw()
}

/// A certificate that says nothing about what its key is for may do anything.
fn may_sign_lists(certificate: &X509Certificate<'_>) -> bool {
    certificate.key_usage().is_ok_and(|usage| usage.is_none_or(|usage| usage.value.crl_sign()))
}
