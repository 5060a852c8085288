//! The authority as its users see it: round trips, reuse, reload, refusals, and what openssl says.
use super::*;
use crate::tls::verifier::{ChainVerifier, Usage, unix_time};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyUsagePurpose, SanType};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

fn id() -> SpiffeId {
    SpiffeId::new("cluster.local", "default", "reviews").unwrap()
}

fn csr(key: &KeyPair) -> String {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI("spiffe://cluster.local/ns/kube-system/sa/admin".try_into().unwrap())];
    params.distinguished_name.push(DnType::CommonName, "admin");
    params.serialize_request(key).unwrap().pem().unwrap()
}

/// Writes a `cacerts` folder: root, intermediate signing certificate, and the key in the given PEM.
fn write_cacerts(folder: &Path, root_name: &str) -> KeyPair {
    let root_key = KeyPair::generate().unwrap();
    let mut root = CertificateParams::default();
    root.distinguished_name.push(DnType::CommonName, root_name);
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_cert = root.self_signed(&root_key).unwrap();
    let issuer = Issuer::from_params(&root, &root_key);
    let key = KeyPair::generate().unwrap();
    let mut signer = CertificateParams::default();
    signer.distinguished_name.push(DnType::CommonName, "Intermediate");
    signer.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    signer.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    signer.use_authority_key_identifier_extension = true;
    let signer_cert = signer.signed_by(&key, &issuer).unwrap();
    std::fs::write(folder.join("root-cert.pem"), root_cert.pem()).unwrap();
    std::fs::write(folder.join("ca-cert.pem"), signer_cert.pem()).unwrap();
    std::fs::write(folder.join("cert-chain.pem"), format!("{}{}", signer_cert.pem(), root_cert.pem())).unwrap();
    std::fs::write(folder.join("ca-key.pem"), key.serialize_pem()).unwrap();
    key
}

#[test]
fn a_request_becomes_the_callers_certificate_whatever_names_it_asks_for() {
    let now = SystemTime::now();
    let ca = CertificateAuthority::in_memory("cluster.local", now).unwrap();
    let key = KeyPair::generate().unwrap();
    let signed = ca.sign(&csr(&key), &id(), None, now).unwrap();
    let secrets = WorkloadSecrets::new(signed.chain.clone(), private_key(&key), signed.roots.clone()).unwrap();
    assert_eq!(secrets.leaf().uri_sans, ["spiffe://cluster.local/ns/default/sa/reviews"]);
    assert_eq!(secrets.leaf().subject, "");
    let life = secrets.expiry().duration_since(now).unwrap();
    assert!(life <= DEFAULT_TTL && life > DEFAULT_TTL - Duration::from_secs(2), "{life:?}");
    assert!(secrets.not_before() <= now - Duration::from_secs(119));

    let (_, leaf) = x509_parser::parse_x509_certificate(&signed.chain[0]).unwrap();
    let san = leaf.get_extension_unique(&x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME).unwrap().unwrap();
    assert!(san.critical);
    let eku = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(eku.client_auth && eku.server_auth && !leaf.is_ca());
    let verifier = ChainVerifier::new(&ca.roots()).unwrap();
    for usage in [Usage::Client, Usage::Server] {
        verifier.verify(&signed.chain[0], &signed.chain[1..], usage, unix_time(now)).unwrap();
    }
    assert_eq!(signed.pem_entries().len(), 2);
}

#[test]
fn lifetimes_are_capped_by_the_limit_and_by_the_authority() {
    let now = SystemTime::now();
    let ca = CertificateAuthority::in_memory("td", now).unwrap();
    let long = ca.issue_workload(&id(), Duration::from_secs(u64::from(u32::MAX)), now).unwrap();
    assert!(long.expiry() <= now + MAX_TTL);
    let late = ca.expiry() - Duration::from_secs(60);
    assert_eq!(ca.issue_workload(&id(), DEFAULT_TTL, late).unwrap().expiry(), ca.expiry());
    assert!(matches!(ca.issue_workload(&id(), DEFAULT_TTL, ca.expiry()), Err(SignError::IssuerExpired)));
}

#[test]
fn two_certificates_for_one_key_have_different_serial_numbers() {
    let now = SystemTime::now();
    let ca = CertificateAuthority::in_memory("td", now).unwrap();
    let request = csr(&KeyPair::generate().unwrap());
    let serial = |chain: &SignedChain| crate::PeerIdentity::from_der(&chain.chain[0]).unwrap().serial;
    let (a, b) = (ca.sign(&request, &id(), None, now).unwrap(), ca.sign(&request, &id(), None, now).unwrap());
    assert_ne!(serial(&a), serial(&b));
}

#[test]
fn requests_that_are_forged_weak_or_huge_are_refused() {
    let now = SystemTime::now();
    let ca = CertificateAuthority::in_memory("td", now).unwrap();
    let sign = |text: &str| match ca.sign(text, &id(), None, now) {
        Err(SignError::Csr(reason)) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(sign("hello"), InvalidCsr::NotPem);
    assert!(matches!(sign(&"x".repeat(csr::MAX_CSR_BYTES + 1)), InvalidCsr::TooLarge(_)));
    let good = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap();
    let mut forged = good.der().to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    assert_eq!(sign(&pem::encode("CERTIFICATE REQUEST", &forged)), InvalidCsr::Signature);
    let ed = CertificateParams::default().serialize_request(&KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap()).unwrap();
    assert!(matches!(sign(&ed.pem().unwrap()), InvalidCsr::Key(_)));
    let cut = &good.der()[..good.der().len() / 2];
    assert!(matches!(sign(&pem::encode("CERTIFICATE REQUEST", cut)), InvalidCsr::Malformed(_)));
}

#[test]
fn keys_of_every_accepted_kind_are_signed() {
    let now = SystemTime::now();
    let ca = CertificateAuthority::in_memory("td", now).unwrap();
    let verifier = ChainVerifier::new(&ca.roots()).unwrap();
    let keys = [
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap(),
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap(),
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap(),
        KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap(),
    ];
    for key in keys {
        let signed = ca.sign(&csr(&key), &id(), None, now).unwrap();
        verifier.verify(&signed.chain[0], &[], Usage::Server, unix_time(now)).unwrap();
        WorkloadSecrets::new(signed.chain, private_key(&key), signed.roots).unwrap();
    }
}

#[test]
fn the_state_folder_is_private_and_reused() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("ca");
    let now = SystemTime::now();
    let first = CertificateAuthority::self_signed(&state, "td", now).unwrap();
    let second = CertificateAuthority::self_signed(&state, "td", now).unwrap();
    assert_eq!(first.roots(), second.roots());
    for entry in std::fs::read_dir(&state).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.file_name());
    }
    assert_eq!(std::fs::read_dir(&state).unwrap().count(), 2);

    std::fs::remove_file(state.join("ca-key.pem")).unwrap();
    let error = CertificateAuthority::self_signed(&state, "td", now).unwrap_err().to_string();
    assert!(error.contains("ca-key.pem") && error.contains("start over"), "{error}");
    assert!(state.join("root-cert.pem").exists());
}

#[test]
fn processes_that_start_together_share_one_root() {
    let folder = tempfile::tempdir().unwrap();
    let open = || CertificateAuthority::self_signed(folder.path(), "td", SystemTime::now()).unwrap().roots();
    let roots: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(roots.iter().all(|r| *r == roots[0]));
}

#[test]
fn plugged_in_files_sign_and_are_reloaded_when_they_change() {
    let folder = tempfile::tempdir().unwrap();
    write_cacerts(folder.path(), "Root A");
    let now = SystemTime::now();
    let ca = CertificateAuthority::plugged_in(folder.path(), now).unwrap();
    let signed = ca.sign(&csr(&KeyPair::generate().unwrap()), &id(), None, now).unwrap();
    // Leaf, intermediate, root last; the root in cert-chain.pem is not repeated.
    assert_eq!(signed.pem_entries().len(), 3);
    ChainVerifier::new(&ca.roots()).unwrap().verify(&signed.chain[0], &signed.chain[1..], Usage::Client, unix_time(now)).unwrap();

    let mut changes = ca.changes();
    assert!(!ca.reload(now).unwrap());
    let before = ca.roots();
    std::fs::write(folder.path().join("ca-key.pem"), "half a fi").unwrap();
    assert!(ca.reload(now).unwrap_err().to_string().contains("ca-key.pem"));
    assert_eq!(ca.roots(), before);
    write_cacerts(folder.path(), "Root B");
    assert!(ca.reload(now).unwrap());
    assert_ne!(ca.roots(), before);
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
}

#[test]
fn unusable_files_are_named_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let open = || CertificateAuthority::plugged_in(folder.path(), now).unwrap_err().to_string();
    assert!(open().contains("ca-cert.pem: cannot be read"), "{}", open());

    write_cacerts(folder.path(), "Root");
    std::fs::write(folder.path().join("ca-key.pem"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(open().contains("ca-key.pem: is not the private key of"), "{}", open());

    write_cacerts(folder.path(), "Root");
    let other = CertificateAuthority::in_memory("other", now).unwrap();
    std::fs::write(folder.path().join("root-cert.pem"), other.roots_pem()).unwrap();
    std::fs::write(folder.path().join("cert-chain.pem"), other.roots_pem()).unwrap();
    assert!(open().contains("ca-cert.pem: its issuer `CN=Root"), "{}", open());

    write_cacerts(folder.path(), "Root");
    let leaf = other.issue_workload(&id(), DEFAULT_TTL, now).unwrap();
    std::fs::write(folder.path().join("ca-cert.pem"), leaf.chain_pem()).unwrap();
    std::fs::write(folder.path().join("ca-key.pem"), leaf.key().to_pem()).unwrap();
    assert!(open().contains("is not a CA certificate"), "{}", open());

    write_cacerts(folder.path(), "Root");
    std::fs::write(folder.path().join("root-cert.pem"), "").unwrap();
    assert!(open().contains("root-cert.pem: holds no CERTIFICATE section (it is empty)"), "{}", open());
}

#[test]
fn openssl_accepts_the_chain_and_its_keys_are_accepted_in_every_form() {
    if Command::new("openssl").arg("version").output().is_err() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let output = Command::new("openssl").args(args).current_dir(folder.path()).output().unwrap();
        assert!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    // A root as `make root-ca` of Istio's tools writes it: RSA, PKCS#1.
    for (kind, form) in [
        (["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], "rsa"),
        (["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"], "ec"),
    ] {
        run(&[&["genpkey"], &kind[..], &["-out", "plain.pem"]].concat());
        run(&[
            "req",
            "-x509",
            "-new",
            "-key",
            "plain.pem",
            "-subj",
            "/O=Istio/CN=Root CA",
            "-addext",
            "keyUsage=critical,keyCertSign",
            "-days",
            "30",
            "-out",
            "ca-cert.pem",
        ]);
        run(&[form, "-in", "plain.pem", "-out", "ca-key.pem"]);
        std::fs::copy(folder.path().join("ca-cert.pem"), folder.path().join("root-cert.pem")).unwrap();
        let now = SystemTime::now();
        let ca = CertificateAuthority::plugged_in(folder.path(), now).unwrap();

        run(&["req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", "w.key", "-subj", "/CN=ignored", "-out", "w.csr"]);
        let request = std::fs::read_to_string(folder.path().join("w.csr")).unwrap();
        let signed = ca.sign(&request, &id(), None, now).unwrap();
        std::fs::write(folder.path().join("w.pem"), &signed.pem_entries()[0]).unwrap();
        for purpose in ["sslserver", "sslclient"] {
            run(&["verify", "-x509_strict", "-purpose", purpose, "-CAfile", "root-cert.pem", "w.pem"]);
        }
        let text = run(&["x509", "-in", "w.pem", "-noout", "-text"]);
        assert!(text.contains("URI:spiffe://cluster.local/ns/default/sa/reviews"), "{text}");
        assert!(text.contains("X509v3 Subject Alternative Name: critical"), "{text}");
    }
}

#[tokio::test]
async fn the_control_planes_certificate_follows_the_authority() {
    let folder = tempfile::tempdir().unwrap();
    write_cacerts(folder.path(), "Root A");
    let ca = Arc::new(CertificateAuthority::plugged_in(folder.path(), SystemTime::now()).unwrap());
    let names = CONTROL_PLANE_NAMES.map(str::to_owned).to_vec();
    let mut served = serve_certificate(ca.clone(), names, DEFAULT_TTL).unwrap();
    let first = served.borrow_and_update().clone().unwrap();
    assert!(first.leaf().dns_sans.contains(&"istiod.istio-system.svc".to_owned()));
    assert!(first.leaf().ip_sans.contains(&"127.0.0.1".parse().unwrap()));
    write_cacerts(folder.path(), "Root B");
    ca.reload(SystemTime::now()).unwrap();
    tokio::time::timeout(Duration::from_secs(10), served.changed()).await.unwrap().unwrap();
    let second = served.borrow().clone().unwrap();
    assert_eq!(second.roots(), ca.roots());
    assert_ne!(second.roots(), first.roots());
}

#[test]
fn damaged_requests_never_panic_and_never_get_another_key_signed() {
    let request = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap();
    let good = request.der().to_vec();
    let key = SigningRequest::from_pem(&request.pem().unwrap()).unwrap().public_key;
    for position in 0..good.len() {
        for change in [0x01, 0x80, 0xff] {
            let mut der = good.clone();
            der[position] ^= change;
            // Tags around the signed part are covered by no signature; what counts is the key.
            let outcome = SigningRequest::from_pem(&pem::encode("CERTIFICATE REQUEST", &der));
            assert!(outcome.map_or(true, |r| r.public_key == key), "octet {position}");
        }
        assert!(SigningRequest::from_pem(&pem::encode("CERTIFICATE REQUEST", &good[..position])).is_err());
    }
}
