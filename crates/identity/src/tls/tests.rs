//! Two endpoints shaking hands: who is accepted, who is refused and with which reason.
use super::params::{certificate_pin, key_pin};
use super::*;
use crate::ca::CertificateAuthority;
use crate::secrets::{PrivateKey, WorkloadSecrets, certified_key};
use base64::Engine;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, SerialNumber,
};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, NamedGroup, ProtocolVersion, ServerConfig, ServerConnection, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

mod revocation;

const HOUR: Duration = Duration::from_secs(3600);

/// A root that signs what no sane authority would.
struct Forge {
    params: CertificateParams,
    key: KeyPair,
    root: CertificateDer<'static>,
}

impl Forge {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { params, key, root }
    }

    fn leaf(&self, uris: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Arc<CertifiedKey> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = uris.iter().map(|u| SanType::URI((*u).try_into().unwrap())).collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.is_ca = IsCa::ExplicitNoCa;
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &Issuer::from_params(&self.params, &self.key)).unwrap();
        assemble(vec![certificate.der().clone()], &key)
    }

    fn roots(&self) -> Vec<CertificateDer<'static>> {
        vec![self.root.clone()]
    }
}

fn assemble(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Arc<CertifiedKey> {
    let key = PrivateKey::from(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())));
    Arc::new(certified_key(chain, &key).unwrap())
}

type Pair = (ClientConnection, ServerConnection);

/// Passes bytes to and fro until both are done, or one refuses; then says which one and why.
fn handshake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Result<Pair, (&'static str, String)> {
    let name = ServerName::try_from("reviews.default.svc").unwrap();
    let mut client = ClientConnection::new(client.clone(), name).unwrap();
    let mut server = ServerConnection::new(server.clone()).unwrap();
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets().map_err(|e| ("server", refusal(&e)))?;
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets().map_err(|e| ("client", refusal(&e)))?;
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok((client, server))
}

fn echo((client, server): &mut Pair) {
    client.writer().write_all(b"ping").unwrap();
    let mut wire = Vec::new();
    client.write_tls(&mut wire).unwrap();
    server.read_tls(&mut wire.as_slice()).unwrap();
    server.process_new_packets().unwrap();
    let mut text = [0; 4];
    server.reader().read_exact(&mut text).unwrap();
    assert_eq!(&text, b"ping");
}

fn mesh() -> Vec<SanMatcher> {
    vec![SanMatcher::trust_domain("td")]
}

fn server(key: &Arc<CertifiedKey>, roots: Vec<CertificateDer<'static>>) -> ServerParams {
    let mut params = ServerParams::new(vec![key.clone()]);
    params.client_auth = ClientAuth::Required;
    params.verification = Verification::roots(roots, mesh());
    params
}

fn client(key: &Arc<CertifiedKey>, roots: Vec<CertificateDer<'static>>) -> ClientParams {
    ClientParams::new(Verification::roots(roots, mesh())).with_key(key.clone())
}

/// What the server says to a client that shows `key`.
fn server_refuses(forge: &Forge, key: &Arc<CertifiedKey>) -> String {
    let good = forge.leaf(&["spiffe://td/ns/a/sa/server"], |_| {});
    let outcome = handshake(&client(key, forge.roots()).build().unwrap(), &server(&good, forge.roots()).build().unwrap());
    let (side, reason) = outcome.expect_err("a refusal");
    assert_eq!(side, "server", "{reason}");
    reason
}

#[test]
fn mesh_peers_speak_tls13_with_hybrid_key_exchange_and_know_each_other() {
    let ca = CertificateAuthority::in_memory("td", SystemTime::now()).unwrap();
    let issue = |account: &str| {
        ca.issue_workload(&format!("spiffe://td/ns/default/sa/{account}").parse().unwrap(), HOUR, SystemTime::now()).unwrap()
    };
    let (reviews, productpage) = (issue("reviews"), issue("productpage"));
    let mut server = server(&reviews.certified_key(), ca.roots());
    server.alpn = vec![b"istio-http/1.1".to_vec(), b"istio".to_vec()];
    let mut client = client(&productpage.certified_key(), ca.roots());
    client.alpn = vec![b"istio".to_vec()];
    client.verification.san_matchers = vec![SanMatcher::exact(SanKind::Uri, "spiffe://td/ns/default/sa/reviews")];
    let (c, s) = handshake(&client.build().unwrap(), &server.build().unwrap()).unwrap();
    assert_eq!(s.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(s.negotiated_key_exchange_group().map(|g| g.name()), Some(NamedGroup::X25519MLKEM768));
    assert_eq!(s.alpn_protocol(), Some(&b"istio"[..]));
    assert_eq!(s.server_name(), Some("reviews.default.svc"));
    let peer = PeerIdentity::of_connection(&s).unwrap();
    assert_eq!(peer.spiffe.as_ref().unwrap().service_account(), "productpage");
    assert_eq!(peer.fingerprint, productpage.leaf().fingerprint);
    assert_eq!(PeerIdentity::of_connection(&c).unwrap().uri_sans, ["spiffe://td/ns/default/sa/reviews"]);

    client.verification.san_matchers = vec![SanMatcher::exact(SanKind::Uri, "spiffe://td/ns/default/sa/ratings")];
    let (side, reason) = handshake(&client.build().unwrap(), &server.build().unwrap()).err().unwrap();
    assert_eq!(side, "client");
    assert!(reason.contains("no subject alternative name matches: the certificate has URI spiffe://td/ns/default/sa/reviews"), "{reason}");
}

#[test]
fn certificates_that_a_mesh_must_not_accept_are_refused_with_the_reason() {
    let forge = Forge::new("Root");
    let good = "spiffe://td/ns/a/sa/b";
    let refused = |key: Arc<CertifiedKey>, expected: &str| {
        let reason = server_refuses(&forge, &key);
        assert!(reason.contains(expected), "{reason}");
    };
    refused(forge.leaf(&["spiffe://other/ns/a/sa/b"], |_| {}), "trust domain `other` is not accepted; wanted `td`");
    refused(forge.leaf(&["spiffe://td.evil/ns/a/sa/b"], |_| {}), "trust domain `td.evil`");
    refused(forge.leaf(&[good], |p| p.not_after = rcgen::date_time_ymd(2020, 1, 1)), "expired");
    refused(forge.leaf(&[good], |p| p.not_before = rcgen::date_time_ymd(2100, 1, 1)), "not valid yet");
    refused(forge.leaf(&[], |_| {}), "the certificate has no URI subject alternative name");
    refused(forge.leaf(&[good, "spiffe://td/ns/a/sa/admin"], |_| {}), "has 2 URI subject alternative names");
    refused(
        forge.leaf(&[good], |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
        "does not allow client authentication",
    );
    refused(Forge::new("Stranger").leaf(&[good], |_| {}), "UnknownIssuer");
    refused(Forge::new("Root").leaf(&[good], |_| {}), "UnknownIssuer");

    // A workload that signs for others with its own certificate.
    let mut middle = CertificateParams::default();
    middle.distinguished_name.push(DnType::CommonName, "workload");
    middle.is_ca = IsCa::ExplicitNoCa;
    let middle_key = KeyPair::generate().unwrap();
    let middle_cert = middle.signed_by(&middle_key, &Issuer::from_params(&forge.params, &forge.key)).unwrap();
    let mut leaf = CertificateParams::default();
    leaf.subject_alt_names = vec![SanType::URI(good.try_into().unwrap())];
    let leaf_key = KeyPair::generate().unwrap();
    let leaf_cert = leaf.signed_by(&leaf_key, &Issuer::from_params(&middle, &middle_key)).unwrap();
    refused(assemble(vec![leaf_cert.der().clone(), middle_cert.der().clone()], &leaf_key), "not a CA");
}

#[test]
fn a_required_certificate_that_is_not_shown_ends_the_handshake() {
    let forge = Forge::new("Root");
    let key = forge.leaf(&["spiffe://td/ns/a/sa/b"], |_| {});
    let anonymous = ClientParams::new(Verification::roots(forge.roots(), mesh())).build().unwrap();
    let mut params = server(&key, forge.roots());
    assert!(handshake(&anonymous, &params.build().unwrap()).is_err());
    params.client_auth = ClientAuth::Optional;
    let (_, s) = handshake(&anonymous, &params.build().unwrap()).unwrap();
    assert!(PeerIdentity::of_connection(&s).is_none());
}

#[test]
fn a_server_is_refused_by_the_client_for_the_same_reasons() {
    let forge = Forge::new("Root");
    let mine = forge.leaf(&["spiffe://td/ns/a/sa/client"], |_| {});
    let refused = |key: Arc<CertifiedKey>, expected: &str| {
        let outcome = handshake(&client(&mine, forge.roots()).build().unwrap(), &server(&key, forge.roots()).build().unwrap());
        let (side, reason) = outcome.err().unwrap();
        assert!(side == "client" && reason.contains(expected), "{side}: {reason}");
    };
    refused(forge.leaf(&["spiffe://other/ns/a/sa/b"], |_| {}), "trust domain `other`");
    refused(
        forge.leaf(&["spiffe://td/ns/a/sa/b"], |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
        "does not allow server authentication",
    );
}

#[test]
fn hosts_are_checked_where_asked_and_a_trusted_self_signed_server_is_accepted() {
    let forge = Forge::new("Root");
    let dns = |name: &str| forge.leaf(&[], |p| p.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())]);
    let verify = ClientParams::new(Verification::host(forge.roots())).build().unwrap();
    let serve = |key: Arc<CertifiedKey>| ServerParams::new(vec![key]).build().unwrap();
    handshake(&verify, &serve(dns("*.default.svc"))).unwrap();
    let (_, reason) = handshake(&verify, &serve(dns("ratings.default.svc"))).err().unwrap();
    assert!(reason.contains("not valid for `reviews.default.svc`"), "{reason}");
    // SNI chooses between several certificates.
    let both = ServerParams::new(vec![dns("ratings.default.svc"), dns("reviews.default.svc")]).build().unwrap();
    handshake(&verify, &both).unwrap();

    let key = KeyPair::generate().unwrap();
    let own = CertificateParams::new(vec!["reviews.default.svc".to_owned()]).unwrap().self_signed(&key).unwrap();
    let trusting = ClientParams::new(Verification::host(vec![own.der().clone()])).build().unwrap();
    handshake(&trusting, &serve(assemble(vec![own.der().clone()], &key))).unwrap();
    let insecure = ClientParams::new(Verification::anyone()).build().unwrap();
    handshake(&insecure, &serve(assemble(vec![own.der().clone()], &key))).unwrap();
}

#[test]
fn pins_accept_one_key_or_certificate_only() {
    let forge = Forge::new("Root");
    let key = forge.leaf(&["spiffe://td/ns/a/sa/b"], |_| {});
    let serve = ServerParams::new(vec![key.clone()]).build().unwrap();
    let hash: [u8; 32] = Sha256::digest(&key.cert[0]).into();
    let (_, parsed) = x509_parser::parse_x509_certificate(&key.cert[0]).unwrap();
    let spki = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(parsed.public_key().raw));
    let with = |keys: Vec<[u8; 32]>, certificates: Vec<[u8; 32]>| {
        let verification = Verification { key_pins: keys, certificate_pins: certificates, ..Verification::anyone() };
        handshake(&ClientParams::new(verification).build().unwrap(), &serve)
    };
    let text: Vec<String> = hash.iter().map(|b| format!("{b:02X}")).collect();
    assert!(with(vec![], vec![certificate_pin(&text.join(":")).unwrap()]).is_ok());
    assert!(with(vec![key_pin(&spki).unwrap()], vec![[0; 32]]).is_ok());
    assert!(with(vec![[1; 32]], vec![]).err().unwrap().1.contains("none of the configured hashes"));
    assert!(certificate_pin("abc").is_err() && key_pin("####").is_err());
}

#[test]
fn a_refusal_says_whether_it_was_for_the_names_or_the_pins() {
    let kind = |refused: PeerRefused| {
        let error = rustls::Error::from(refused);
        PeerRefused::of(&error).map(|refused| (refused.is_of_names(), *refused == PeerRefused::NotPinned))
    };
    assert_eq!(kind(PeerRefused::SeveralUris(2)), Some((true, false)));
    assert_eq!(kind(PeerRefused::NotPinned), Some((false, true)));
    assert_eq!(kind(PeerRefused::Revoked), None);
}

#[test]
fn the_certificate_of_a_name_is_the_one_that_has_it_before_any_wildcard() {
    let forge = Forge::new("Root");
    let of = |names: &[&str]| {
        forge.leaf(&[], |p| p.subject_alt_names = names.iter().map(|n| SanType::DnsName((*n).try_into().unwrap())).collect())
    };
    let common = forge.leaf(&[], |p| p.distinguished_name.push(DnType::CommonName, "common.example"));
    let (wild, exact, other) = (of(&["*.a.test"]), of(&["api.a.test", "b.test"]), of(&["other.test"]));
    let set = CertificateSet::new([&other, &wild, &exact, &common].map(Arc::clone), false);
    let chosen = |host: Option<&str>| set.choose(host, &[SignatureScheme::ECDSA_NISTP256_SHA256]).unwrap();
    for (host, expected) in [
        (Some("api.a.test"), &exact),
        (Some("x.a.test"), &wild),
        (Some("common.example"), &common),
        (Some("nobody.test"), &other),
        (None, &other),
    ] {
        assert!(Arc::ptr_eq(&chosen(host), expected), "{host:?}");
    }
    // A common name counts only where there are no alternative names.
    let both = forge.leaf(&["spiffe://td/ns/a/sa/b"], |p| p.distinguished_name.push(DnType::CommonName, "common.example"));
    let set = CertificateSet::new([&other, &both].map(Arc::clone), false);
    assert!(Arc::ptr_eq(&set.choose(Some("common.example"), &[SignatureScheme::ECDSA_NISTP256_SHA256]).unwrap(), &other));
}

#[test]
fn a_name_that_no_certificate_has_gets_the_first_or_one_of_an_elliptic_curve_of_all() {
    let forge = Forge::new("Root");
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let params = CertificateParams::new(vec!["edwards.test".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &Issuer::from_params(&forge.params, &forge.key)).unwrap();
    let (edwards, elliptic) = (assemble(vec![certificate.der().clone()], &key), forge.leaf(&[], |_| {}));
    let chosen = |scans_all| {
        let set = CertificateSet::new([&edwards, &elliptic].map(Arc::clone), scans_all);
        set.choose(Some("nobody.test"), &[SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256]).unwrap()
    };
    assert!(Arc::ptr_eq(&chosen(false), &edwards) && Arc::ptr_eq(&chosen(true), &elliptic));
}

#[test]
fn sessions_are_resumed_only_without_client_certificates() {
    let forge = Forge::new("Root");
    let key = forge.leaf(&["spiffe://td/ns/a/sa/b"], |_| {});
    let kinds = |client: Arc<ClientConfig>, server: Arc<ServerConfig>| {
        let kind = || handshake(&client, &server).unwrap().1.handshake_kind().unwrap();
        (kind(), kind())
    };
    let mutual = kinds(client(&key, forge.roots()).build().unwrap(), server(&key, forge.roots()).build().unwrap());
    assert_eq!(mutual.1, HandshakeKind::Full);
    let simple = ClientParams::new(Verification::roots(forge.roots(), mesh())).build().unwrap();
    let plain = kinds(simple.clone(), ServerParams::new(vec![key.clone()]).build().unwrap());
    assert_eq!(plain.1, HandshakeKind::Resumed);
    // Another configuration, as after a change of trust, knows nothing of the session.
    let fresh = handshake(&simple, &ServerParams::new(vec![key]).build().unwrap()).unwrap();
    assert_eq!(fresh.1.handshake_kind(), Some(HandshakeKind::Full));
}

#[test]
fn versions_and_suites_are_kept_to() {
    let forge = Forge::new("Root");
    let key = forge.leaf(&["spiffe://td/ns/a/sa/b"], |_| {});
    let mut server = ServerParams::new(vec![key]);
    server.max_version = TlsVersion::V1_2;
    server.cipher_suites = vec!["ECDHE-ECDSA-AES128-GCM-SHA256".to_owned()];
    let client = ClientParams::new(Verification::roots(forge.roots(), mesh()));
    let (_, s) = handshake(&client.build().unwrap(), &server.build().unwrap()).unwrap();
    assert_eq!(s.protocol_version(), Some(ProtocolVersion::TLSv1_2));
    assert_eq!(s.negotiated_cipher_suite().map(|c| suites::openssl_name(c.suite())), Some("ECDHE-ECDSA-AES128-GCM-SHA256"));
    let strict = ClientParams { min_version: TlsVersion::V1_3, ..client };
    assert!(handshake(&strict.build().unwrap(), &server.build().unwrap()).is_err());
    server.min_version = TlsVersion::V1_3;
    assert_eq!(server.build().err(), Some(InvalidTlsParams::Versions));
}

#[test]
fn the_order_of_suites_is_the_servers_unless_the_clients_is_preferred() {
    let forge = Forge::new("Root");
    let key = forge.leaf(&["spiffe://td/ns/a/sa/b"], |_| {});
    let (one, other) = ("ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305");
    let both = |first: &str, second: &str| vec![first.to_owned(), second.to_owned()];
    let mut client = ClientParams::new(Verification::roots(forge.roots(), mesh()));
    (client.max_version, client.cipher_suites) = (TlsVersion::V1_2, both(other, one));
    let mut server = ServerParams::new(vec![key]);
    server.cipher_suites = both(one, other);
    for (prefers_client_order, expected) in [(false, one), (true, other)] {
        server.prefers_client_order = prefers_client_order;
        let (_, s) = handshake(&client.build().unwrap(), &server.build().unwrap()).unwrap();
        assert_eq!(s.negotiated_cipher_suite().map(|c| suites::openssl_name(c.suite())), Some(expected));
    }
}

#[test]
fn inputs_that_protect_nothing_are_refused() {
    let forge = Forge::new("Root");
    let build = |verification| ClientParams::new(verification).build().err();
    let names = Verification { san_matchers: mesh(), ..Verification::anyone() };
    assert_eq!(build(names), Some(InvalidTlsParams::NamesWithoutRoots));
    assert!(build(Verification::roots(Vec::new(), mesh())).unwrap().to_string().contains("no trusted roots"));
    let broken = vec![forge.root.clone(), CertificateDer::from(vec![1, 2, 3])];
    assert!(build(Verification::roots(broken, mesh())).unwrap().to_string().contains("trusted root 2"));
    assert_eq!(ServerParams::new(Vec::new()).build().err(), Some(InvalidTlsParams::NoCertificate));
}

#[test]
fn rotation_serves_new_connections_and_leaves_open_ones_alone() {
    let ca = CertificateAuthority::in_memory("td", SystemTime::now()).unwrap();
    let issue = || Arc::new(ca.issue_workload(&"spiffe://td/ns/a/sa/b".parse().unwrap(), HOUR, SystemTime::now()).unwrap());
    let first = issue();
    let (publish, secrets) = watch::channel(Some(first.clone()));
    let resolver = RotatingKey::new(secrets);
    let mut server = ServerParams::with_resolver(resolver.clone());
    server.client_auth = ClientAuth::Required;
    server.verification = Verification::roots(ca.roots(), mesh());
    let server = server.build().unwrap();
    let client = ClientParams::new(Verification::roots(ca.roots(), mesh())).with_resolver(resolver).build().unwrap();
    let mut open = handshake(&client, &server).unwrap();
    for _ in 0..5 {
        let next: Arc<WorkloadSecrets> = issue();
        publish.send_replace(Some(next.clone()));
        echo(&mut open);
        let mut new = handshake(&client, &server).unwrap();
        echo(&mut new);
        assert_eq!(PeerIdentity::of_connection(&new.0).unwrap().serial, next.leaf().serial);
        assert_eq!(PeerIdentity::of_connection(&new.1).unwrap().serial, next.leaf().serial);
    }
    assert_eq!(PeerIdentity::of_connection(&open.0).unwrap().serial, first.leaf().serial);
}

#[test]
fn no_debug_output_shows_a_key() {
    let ca = CertificateAuthority::in_memory("td", SystemTime::now()).unwrap();
    let secrets = ca.issue_workload(&"spiffe://td/ns/a/sa/b".parse().unwrap(), HOUR, SystemTime::now()).unwrap();
    let server = server(&secrets.certified_key(), ca.roots());
    let client = client(&secrets.certified_key(), ca.roots());
    let issuer = crate::token::TokenIssuer::generate("i").unwrap();
    let shown = format!(
        "{ca:?} {secrets:?} {:?} {server:?} {client:?} {:?} {:?} {issuer:?}",
        secrets.key(),
        server.build().unwrap(),
        client.build().unwrap()
    );
    // The private scalar of a P-256 key in PKCS#8 stands at octets 36 to 68.
    let der = secrets.key().der().secret_der();
    let scalar = &der[36..68];
    let decimal = format!("{scalar:?}");
    let encoded = secrets.key().to_pem().lines().nth(1).unwrap().to_owned();
    for secret in [peer::hex(scalar), decimal.trim_matches(['[', ']']).to_owned(), encoded] {
        assert!(!shown.contains(&secret), "a key is visible");
    }
    assert!(shown.contains("PrivateKey(elided)"));
}

#[test]
fn damaged_certificates_never_panic() {
    let forge = Forge::new("Root");
    let key = forge.leaf(&["spiffe://td/ns/a/sa/b"], |p| p.distinguished_name.push(DnType::CommonName, "x"));
    let verifier = ChainVerifier::new(&forge.roots()).unwrap();
    let now = verifier::unix_time(SystemTime::now());
    let good = key.cert[0].to_vec();
    for position in 0..good.len() {
        for change in [0x01, 0x80, 0xff] {
            let mut der = good.clone();
            der[position] ^= change;
            let der = CertificateDer::from(der);
            let _ = PeerIdentity::from_der(&der);
            assert!(verifier.verify(&der, &[], Usage::Client, now).is_err(), "octet {position}");
        }
        let cut = CertificateDer::from(good[..position].to_vec());
        assert!(PeerIdentity::from_der(&cut).is_err() && verifier.verify(&cut, &[], Usage::Client, now).is_err());
    }
}

/// Shows `key` to a server of ours with the openssl program; what it printed and what the server saw.
fn openssl_client(forge: &Forge, account: &str) -> Option<(bool, Result<Arc<PeerIdentity>, String>)> {
    let folder = tempfile::tempdir().unwrap();
    let own = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(account.try_into().unwrap())];
    let own_cert = params.signed_by(&own, &Issuer::from_params(&forge.params, &forge.key)).unwrap();
    std::fs::write(folder.path().join("own.pem"), own_cert.pem()).unwrap();
    std::fs::write(folder.path().join("own.key"), own.serialize_pem()).unwrap();
    std::fs::write(folder.path().join("root.pem"), crate::pem::encode_certificates(&forge.roots())).unwrap();

    let config = server(&forge.leaf(&["spiffe://td/ns/a/sa/server"], |_| {}), forge.roots()).build().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut client = std::process::Command::new("openssl")
        .args(["s_client", "-connect", &address, "-tls1_3", "-cert", "own.pem", "-key", "own.key", "-CAfile", "root.pem"])
        .args(["-verify_return_error", "-quiet", "-no_ign_eof"])
        .current_dir(folder.path())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .ok()?;
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut connection = ServerConnection::new(config).unwrap();
    let outcome = connection.complete_io(&mut stream).map_err(|e| refusal(&e));
    let peer = outcome.map(|_| PeerIdentity::of_connection(&connection).unwrap());
    if peer.is_ok() {
        connection.writer().write_all(b"hello from the mesh").unwrap();
        connection.send_close_notify();
    }
    let _ = connection.complete_io(&mut stream);
    drop((stream, client.stdin.take()));
    let output = client.wait_with_output().unwrap();
    Some((String::from_utf8_lossy(&output.stdout).contains("hello from the mesh"), peer))
}

#[test]
fn openssl_as_a_mesh_peer_is_served_or_refused_by_its_identity() {
    let forge = Forge::new("Root");
    let Some((served, peer)) = openssl_client(&forge, "spiffe://td/ns/default/sa/legacy") else { return };
    assert_eq!(peer.unwrap().spiffe.as_ref().unwrap().service_account(), "legacy");
    assert!(served);
    let (served, peer) = openssl_client(&forge, "spiffe://other/ns/default/sa/legacy").unwrap();
    assert!(!served);
    assert!(peer.unwrap_err().contains("trust domain `other`"));
}

#[test]
fn a_chain_seen_before_is_still_asked_for_its_time_its_usage_and_its_issuer() {
    let forge = Forge::new("Root");
    let key = forge.leaf(&["spiffe://td/ns/a/sa/b"], |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    let verifier = ChainVerifier::new(&forge.roots()).unwrap();
    let identity = PeerIdentity::from_der(&key.cert[0]).unwrap();
    let at = |time| verifier::unix_time(time);
    for _ in 0..2 {
        assert_eq!(verifier.verify(&key.cert[0], &[], Usage::Client, at(SystemTime::now())), Ok(()));
    }
    assert!(verifier.knows(&key.cert[0], Usage::Client), "the second time nothing was verified");
    let late = verifier.verify(&key.cert[0], &[], Usage::Client, at(identity.not_after + HOUR));
    assert!(matches!(late, Err(PeerRefused::Expired { .. })), "{late:?}");
    let early = verifier.verify(&key.cert[0], &[], Usage::Client, at(identity.not_before - HOUR));
    assert!(matches!(early, Err(PeerRefused::NotYetValid { .. })), "{early:?}");
    let server = verifier.verify(&key.cert[0], &[], Usage::Server, at(SystemTime::now()));
    assert!(matches!(server, Err(PeerRefused::WrongUsage(_))), "{server:?}");
    let other = ChainVerifier::new(&Forge::new("Other").roots()).unwrap();
    assert!(other.verify(&key.cert[0], &[], Usage::Client, at(SystemTime::now())).is_err());
}

#[test]
fn connections_of_one_peer_share_its_identity() {
    let forge = Forge::new("Root");
    let (one, two) = (forge.leaf(&["spiffe://td/ns/a/sa/b"], |_| {}), forge.leaf(&["spiffe://td/ns/a/sa/c"], |_| {}));
    let first = PeerIdentity::shared(&one.cert[0], &[]).unwrap();
    let second = PeerIdentity::shared(&two.cert[0], &[]).unwrap();
    assert_eq!(second.uri_sans, ["spiffe://td/ns/a/sa/c"]);
    assert!(Arc::ptr_eq(&first, &PeerIdentity::shared(&one.cert[0], &[]).unwrap()));
    // What came behind the certificate is of the connection.
    let chained = PeerIdentity::shared(&one.cert[0], &two.cert[..1]).unwrap();
    assert_eq!((first.issuers.len(), &chained.issuers[..]), (0, &two.cert[..1]));
    assert!(Arc::ptr_eq(&chained, &PeerIdentity::shared(&one.cert[0], &two.cert[..1]).unwrap()));
    assert_eq!(chained.chain_pem(), first.pem() + &second.pem());
}
