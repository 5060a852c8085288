//! Revocation lists: who is in one, and who must be covered by one.
use super::*;

fn at_present() -> rustls_pki_types::UnixTime {
    verifier::unix_time(SystemTime::now())
}

fn serial_of(certificate: &CertificateDer<'_>) -> SerialNumber {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).unwrap();
    SerialNumber::from_slice(certificate.raw_serial())
}

/// Of a certificate that is in none of the lists.
fn nobody() -> SerialNumber {
    SerialNumber::from_slice(&[0x42; 8])
}

impl Forge {
    /// An authority whose certificate this one signs.
    fn intermediate(&self, name: &str) -> Self {
        let mut below = Self::new(name);
        let signed = below.params.signed_by(&below.key, &Issuer::from_params(&self.params, &self.key)).unwrap();
        below.root = signed.der().clone();
        below
    }
}

#[test]
fn a_self_signed_certificate_that_is_trusted_needs_a_current_list_of_its_own() {
    let (own, other) = (Forge::new("Own"), Forge::new("Other"));
    let verify = |list: CertificateRevocationListDer<'static>, leaf_only| {
        let verifier = ChainVerifier::new(&own.roots()).unwrap().with_revocation(&[list], leaf_only).unwrap();
        verifier.verify(&own.root, &[], Usage::Client, at_present())
    };
    for leaf_only in [false, true] {
        assert_eq!(verify(own.list(&nobody(), 2090), leaf_only), Ok(()));
        assert_eq!(verify(own.list(&serial_of(&own.root), 2090), leaf_only), Err(PeerRefused::Revoked));
        let unknown = Err(PeerRefused::RevocationUnknown);
        assert_eq!(verify(own.list(&nobody(), 2021), leaf_only), unknown, "of the past");
        assert_eq!(verify(other.list(&nobody(), 2090), leaf_only), unknown, "of another");
        assert_eq!(verify(Forge::new("Own").list(&nobody(), 2090), leaf_only), unknown, "signed by another of the same name");
    }
    let mut mute = Forge::new("Own");
    mute.params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    mute.root = mute.params.self_signed(&mute.key).unwrap().der().clone();
    let mut signing = Forge::new("Own");
    std::mem::swap(&mut signing.key, &mut mute.key);
    let verifier = ChainVerifier::new(&mute.roots()).unwrap().with_revocation(&[signing.list(&nobody(), 2090)], true).unwrap();
    let refused = verifier.verify(&mute.root, &[], Usage::Client, at_present());
    assert_eq!(refused, Err(PeerRefused::RevocationUnknown), "its key is not for lists");
}

#[test]
fn a_chain_that_ends_below_a_root_needs_a_list_for_its_end_too() {
    let root = Forge::new("Root");
    let middle = root.intermediate("Middle");
    let leaf = middle.leaf(&["spiffe://td/ns/a/sa/b"], |_| {});
    let verify = |trusted: &[&Forge], lists: &[CertificateRevocationListDer<'static>], leaf_only| {
        let roots: Vec<_> = trusted.iter().map(|forge| forge.root.clone()).collect();
        let verifier = ChainVerifier::new(&roots).unwrap().with_revocation(lists, leaf_only).unwrap();
        verifier.verify(&leaf.cert[0], std::slice::from_ref(&middle.root), Usage::Client, at_present())
    };
    let (of_middle, of_root) = (middle.list(&nobody(), 2090), root.list(&nobody(), 2090));
    let both = [of_middle.clone(), of_root.clone()];
    let unknown = Err(PeerRefused::RevocationUnknown);
    // The usual: the root is trusted, and covers itself.
    assert_eq!(verify(&[&root], &both, false), Ok(()));
    assert_eq!(verify(&[&root], &both[..1], false), unknown);
    assert_eq!(verify(&[&middle], &both[..1], true), Ok(()), "only the leaf is asked for");
    assert_eq!(verify(&[&middle], &both[..1], false), unknown);
    assert_eq!(verify(&[&middle], &both, false), unknown, "nobody knows whose the root's list is");
    for trusted in [[&middle, &root], [&root, &middle]] {
        assert_eq!(verify(&trusted, &both, false), Ok(()));
        assert_eq!(verify(&trusted, &both[..1], false), unknown);
        assert_eq!(verify(&trusted, &[of_middle.clone(), root.list(&nobody(), 2021)], false), unknown);
        let revoking = [of_middle.clone(), root.list(&serial_of(&middle.root), 2090)];
        assert_eq!(verify(&trusted, &revoking, false), Err(PeerRefused::Revoked));
    }
}

#[test]
fn revoked_certificates_are_refused_and_a_list_must_cover_the_peer() {
    let forge = Forge::new("Root");
    let serial = SerialNumber::from_slice(&[0x42; 8]);
    let revoked = forge.leaf(&["spiffe://td/ns/a/sa/b"], |p| p.serial_number = Some(serial.clone()));
    let good = forge.leaf(&["spiffe://td/ns/a/sa/c"], |_| {});
    let sign = |until| forge.list(&serial, until);
    let against = |key: &Arc<CertifiedKey>, list: CertificateRevocationListDer<'static>| {
        let mut params = server(&good, forge.roots());
        params.verification.revocation_lists = vec![list];
        handshake(&client(key, forge.roots()).build().unwrap(), &params.build().unwrap())
    };
    let current = sign(2090);
    assert!(against(&good, current.clone()).is_ok());
    assert!(against(&revoked, current).err().unwrap().1.contains("Revoked"));
    assert!(against(&good, sign(2021)).err().unwrap().1.contains("RevocationStatus"));
}

#[test]
fn a_leaf_that_is_trusted_by_itself_is_still_looked_up_in_the_lists_of_its_issuer() {
    let forge = Forge::new("Root");
    let serial = SerialNumber::from_slice(&[0x42; 8]);
    let revoked = forge.leaf(&["spiffe://td/ns/a/sa/b"], |p| p.serial_number = Some(serial.clone()));
    let good = forge.leaf(&["spiffe://td/ns/a/sa/b"], |_| {});
    let accepts = |leaf: &Arc<CertifiedKey>, until, issuer: Option<&CertificateDer<'static>>| {
        let roots: Vec<_> = issuer.cloned().into_iter().chain([leaf.cert[0].clone().into_owned()]).collect();
        let verifier = ChainVerifier::new(&roots).unwrap().with_revocation(&[forge.list(&serial, until)], true).unwrap();
        verifier.verify(&leaf.cert[0], &[], Usage::Client, verifier::unix_time(SystemTime::now()))
    };
    let root = Some(&forge.root);
    assert_eq!((accepts(&good, 2090, root), accepts(&revoked, 2090, root)), (Ok(()), Err(PeerRefused::Revoked)));
    assert_eq!(accepts(&good, 2021, root), Err(PeerRefused::RevocationUnknown), "the list is of the past");
    assert_eq!(accepts(&good, 2090, None), Err(PeerRefused::RevocationUnknown), "nobody knows whose the list is");
}
