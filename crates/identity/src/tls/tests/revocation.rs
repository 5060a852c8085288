//! Revocation lists: who is in one, and who must be covered by one.
use super::*;
use rcgen::{CertificateRevocationListParams, CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope, KeyIdMethod, RevokedCertParams};
use rustls_pki_types::CertificateRevocationListDer;

type List = CertificateRevocationListDer<'static>;

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

    /// Another of the same name, whose certificate has that number.
    fn numbered(name: &str, serial: &SerialNumber) -> Self {
        let mut forge = Self::new(name);
        forge.params.serial_number = Some(serial.clone());
        forge.root = forge.params.self_signed(&forge.key).unwrap().der().clone();
        forge
    }

    /// A list of 2020 that revokes one certificate, and holds until that year.
    fn list(&self, serial: &SerialNumber, until: i32) -> List {
        self.list_of(2020, serial, until, None)
    }

    fn list_of(&self, made: i32, serial: &SerialNumber, until: i32, scope: Option<CrlIssuingDistributionPoint>) -> List {
        let list = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(made, 1, 1),
            next_update: rcgen::date_time_ymd(until, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: scope,
            revoked_certs: vec![RevokedCertParams {
                serial_number: serial.clone(),
                revocation_time: rcgen::date_time_ymd(2020, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let signed = list.signed_by(&Issuer::from_params(&self.params, &self.key)).unwrap();
        CertificateRevocationListDer::from(signed.der().to_vec())
    }
}

/// What is said of a chain, from the leaf up, with these lists, whichever comes first.
fn verdict(trusted: &[&Forge], chain: &[&CertificateDer<'_>], lists: &[&List], leaf_only: bool) -> Result<(), PeerRefused> {
    let roots: Vec<_> = trusted.iter().map(|forge| forge.root.clone()).collect();
    let rest: Vec<_> = chain[1..].iter().map(|one| (*one).clone()).collect();
    let with = |lists: Vec<List>| {
        let verifier = ChainVerifier::new(&roots).unwrap().with_revocation(&lists, leaf_only).unwrap();
        // What is remembered of the lists changes nothing.
        let [first, second] = [(); 2].map(|()| verifier.verify(chain[0], &rest, Usage::Client, at_present()));
        assert_eq!(first, second);
        first
    };
    let verdict = with(lists.iter().copied().cloned().collect());
    let reversed = with(lists.iter().rev().copied().cloned().collect());
    if verdict == reversed { verdict } else { Err(PeerRefused::Chain(format!("{verdict:?}, and {reversed:?} the other way round"))) }
}

type Verdict = (&'static str, Result<(), PeerRefused>);

/// All at once: one that is wrong hides no other.
#[track_caller]
fn assert_verdicts(verdicts: impl IntoIterator<Item = (Verdict, Result<(), PeerRefused>)>) {
    let wrong: Vec<_> = verdicts.into_iter().filter(|((_, verdict), wanted)| verdict != wanted).map(|(wrong, _)| wrong).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

const UNKNOWN: Result<(), PeerRefused> = Err(PeerRefused::RevocationUnknown);
const REVOKED: Result<(), PeerRefused> = Err(PeerRefused::Revoked);

#[test]
fn of_several_lists_the_newest_current_one_counts() {
    let root = Forge::new("Root");
    let leaf = root.leaf(&["spiffe://td/ns/a/sa/b"], |_| {});
    let middle = root.intermediate("Middle");
    let below = middle.leaf(&["spiffe://td/ns/a/sa/c"], |_| {});
    let of_middle = middle.list(&nobody(), 2090);
    // The leaf, an intermediate and the root, and in each case another list that is there beside.
    let cases: [(&[&CertificateDer<'_>], SerialNumber, Option<&List>); 3] = [
        (&[&leaf.cert[0]], serial_of(&leaf.cert[0]), None),
        (&[&below.cert[0], &middle.root], serial_of(&middle.root), Some(&of_middle)),
        (&[&root.root], serial_of(&root.root), None),
    ];
    let verdicts = cases.into_iter().flat_map(|(chain, serial, beside)| {
        let list = |made, serial: &SerialNumber, until| root.list_of(made, serial, until, None);
        let judge = |one: List, other: List| {
            let lists: Vec<_> = beside.into_iter().chain([&one, &other]).collect();
            verdict(&[&root], chain, &lists, false)
        };
        let none = nobody();
        [
            (("revoked since", judge(list(2020, &none, 2090), list(2022, &serial, 2080))), REVOKED),
            (("no longer revoked", judge(list(2020, &serial, 2090), list(2022, &none, 2080))), Ok(())),
            (("one is of the past", judge(list(2020, &none, 2021), list(2020, &none, 2090))), Ok(())),
            (("one of the past has it", judge(list(2022, &serial, 2023), list(2020, &none, 2090))), Ok(())),
            (("both are of the past", judge(list(2020, &serial, 2021), list(2022, &none, 2023))), UNKNOWN),
            (("one is of the future", judge(list(2080, &serial, 2090), list(2020, &none, 2090))), Ok(())),
            (("neither is the newer", judge(list(2020, &serial, 2090), list(2020, &none, 2080))), REVOKED),
        ]
    });
    assert_verdicts(verdicts);
}

#[test]
fn authorities_of_one_name_have_lists_of_their_own() {
    let serial = SerialNumber::from_slice(&[0x21; 8]);
    let [old, new] = [Forge::numbered("Root", &serial), Forge::numbered("Root", &serial)];
    let numbered = |forge: &Forge| forge.leaf(&["spiffe://td/ns/a/sa/b"], |p| p.serial_number = Some(serial.clone()));
    let [of_old, of_new] = [numbered(&old), numbered(&new)];
    let (good, revoking) = (old.list(&nobody(), 2090), old.list(&serial, 2090));
    let its_good = new.list_of(2022, &nobody(), 2080, None);
    let both = [&old, &new];
    let verdicts = [false, true].into_iter().flat_map(|leaf_only| {
        let judge = |one: &CertificateDer<'_>, lists: &[&List]| verdict(&both, &[one], lists, leaf_only);
        let [of_old, of_new] = [&of_old.cert[0], &of_new.cert[0]];
        [
            (("below the old", judge(of_old, &[&good, &its_good])), Ok(())),
            (("below the new", judge(of_new, &[&good, &its_good])), Ok(())),
            (("below the old, revoked", judge(of_old, &[&revoking, &its_good])), REVOKED),
            (("below the new, same number", judge(of_new, &[&revoking, &its_good])), Ok(())),
            (("the old, revoked", judge(&old.root, &[&revoking, &its_good])), REVOKED),
            (("the new, same number", judge(&new.root, &[&revoking, &its_good])), Ok(())),
            (("the old without a list", judge(&old.root, &[&its_good])), UNKNOWN),
            (("the new without a list", judge(&new.root, &[&good])), UNKNOWN),
            (("the new without a list, same number", judge(&new.root, &[&revoking])), UNKNOWN),
        ]
    });
    assert_verdicts(verdicts);
}

#[test]
fn a_trusted_certificate_is_looked_up_in_lists_of_the_one_that_issued_it() {
    let [old, new] = [Forge::new("Root"), Forge::new("Root")];
    let middle = old.intermediate("Middle");
    let leaf = middle.leaf(&["spiffe://td/ns/a/sa/b"], |_| {});
    let of_middle = middle.list(&nobody(), 2090);
    let judge = |list: &List| verdict(&[&middle, &old, &new], &[&leaf.cert[0]], &[&of_middle, list], false);
    assert_eq!(judge(&old.list(&nobody(), 2090)), Ok(()));
    assert_eq!(judge(&old.list(&serial_of(&middle.root), 2090)), REVOKED);
    assert_eq!(judge(&new.list(&nobody(), 2090)), UNKNOWN);
    assert_eq!(judge(&new.list(&serial_of(&middle.root), 2090)), UNKNOWN);
}

#[test]
fn a_root_whose_key_is_not_for_lists_has_none() {
    let mut root = Forge::new("Root");
    let list = root.list(&nobody(), 2090);
    let leaf = root.leaf(&["spiffe://td/ns/a/sa/b"], |_| {});
    assert_eq!(verdict(&[&root], &[&leaf.cert[0]], &[&list], true), Ok(()));
    root.params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    root.root = root.params.self_signed(&root.key).unwrap().der().clone();
    assert_eq!(verdict(&[&root], &[&leaf.cert[0]], &[&list], true), UNKNOWN);
}

#[test]
fn a_list_of_some_certificates_covers_no_others() {
    let root = Forge::new("Root");
    let point = |file: &str| CrlDistributionPoint { uris: vec![format!("http://lists.example/{file}")] };
    let mut middle = Forge::new("Middle");
    middle.params.crl_distribution_points = vec![point("1")];
    middle.root = middle.params.signed_by(&middle.key, &Issuer::from_params(&root.params, &root.key)).unwrap().der().clone();
    let at = |file: &str| root.leaf(&["spiffe://td/ns/a/sa/b"], |p| p.crl_distribution_points = vec![point("other"), point(file)]);
    let (one, two, none) = (at("1"), at("2"), root.leaf(&["spiffe://td/ns/a/sa/b"], |_| {}));
    let list = |file: &str, scope, serial: &SerialNumber| {
        root.list_of(2020, serial, 2090, Some(CrlIssuingDistributionPoint { distribution_point: point(file), scope }))
    };
    let serial = serial_of(&one.cert[0]);
    let judge = |leaf: &Arc<CertifiedKey>, lists: &[&List]| verdict(&[&root], &[&leaf.cert[0]], lists, true);
    let (revoking, other) = (list("1", None, &serial), list("2", None, &nobody()));
    assert_eq!(judge(&one, &[&revoking, &other]), REVOKED);
    assert_eq!(judge(&two, &[&revoking, &other]), Ok(()));
    assert_eq!(judge(&two, &[&revoking]), UNKNOWN);
    // One that does not say where it is listed is not vouched for by the newest of several places' lists.
    let whole = root.list_of(2019, &serial_of(&none.cert[0]), 2090, None);
    assert_eq!(judge(&none, &[&revoking, &other]), UNKNOWN);
    assert_eq!(judge(&none, &[&revoking, &other, &whole]), REVOKED);
    let (users, authorities) = (list("1", Some(CrlScope::UserCertsOnly), &nobody()), list("1", Some(CrlScope::CaCertsOnly), &nobody()));
    assert_eq!(judge(&one, &[&users]), Ok(()));
    assert_eq!(judge(&one, &[&authorities]), UNKNOWN);
    // An intermediate, and the root, which no point speaks for.
    let below = middle.leaf(&["spiffe://td/ns/a/sa/c"], |_| {});
    let (its, older) = (middle.list(&nobody(), 2090), root.list_of(2019, &nobody(), 2090, None));
    let judge = |list: &List| {
        let judge = |lists: &[&List]| verdict(&[&root], &[&below.cert[0], &middle.root], lists, false);
        (judge(&[&its, list, &older]), judge(&[&its, list]))
    };
    assert_eq!(judge(&list("1", Some(CrlScope::CaCertsOnly), &nobody())), (Ok(()), UNKNOWN));
    assert_eq!(judge(&list("1", Some(CrlScope::CaCertsOnly), &serial_of(&middle.root))), (REVOKED, REVOKED));
    assert_eq!(judge(&list("1", Some(CrlScope::UserCertsOnly), &serial_of(&middle.root))), (Ok(()), UNKNOWN));
}

#[test]
fn a_self_signed_certificate_that_is_trusted_needs_a_current_list_of_its_own() {
    let (own, other) = (Forge::new("Own"), Forge::new("Other"));
    let verify = |list: List, leaf_only| {
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
    let verify = |trusted: &[&Forge], lists: &[List], leaf_only| {
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
    let against = |key: &Arc<CertifiedKey>, list: List| {
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
