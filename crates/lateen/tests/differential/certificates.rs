//! Certificates of one authority made for the run: files for the proxies, and TLS for our own ends.
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod, KeyPair, PublicKeyData as _,
    RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::case::Tls;

/// Files NAME.pem and NAME.key of each, beside ca.pem; `client` is for callers, and `client_and_issuer` the same with its issuer.
const NAMES: [&str; 6] = ["a.example", "b.example", "upstream.example", "client", REVOKED, FAR];
/// What the list revoked.crl has.
const REVOKED: &str = "revoked.example";
/// Signed by an authority between, which its file has too.
const FAR: &str = "far.example";

pub(crate) struct Certificates {
    pem: HashMap<&'static str, (String, String)>,
    /// What a certificate or its key is known by: `hash NAME` and `spki NAME`, as Envoy's pins are written.
    pub(crate) pins: HashMap<String, String>,
    roots: Arc<RootCertStore>,
}

impl Certificates {
    pub(crate) fn make(folder: &Path) -> anyhow::Result<Self> {
        let ca_key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key)?;
        std::fs::write(folder.join("ca.pem"), ca.pem())?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone())?;
        let issuer = Issuer::new(params, ca_key);
        let middle_key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "middle");
        let middle_pem = params.signed_by(&middle_key, &issuer)?.pem();
        let middle = Issuer::new(params, middle_key);
        std::fs::write(folder.join("revoked.crl"), list(&serial_of(REVOKED)).signed_by(&issuer)?.pem()?)?;
        let (mut pem, mut pins) = (HashMap::new(), HashMap::new());
        for name in NAMES {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::default();
            let uri = format!("spiffe://cluster.local/ns/default/sa/{name}");
            params.subject_alt_names = vec![SanType::DnsName(name.try_into()?), SanType::URI(uri.as_str().try_into()?)];
            if name == "upstream.example" {
                params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
            }
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            params.serial_number = Some(serial_of(name));
            let certificate = params.signed_by(&key, if name == FAR { &middle } else { &issuer })?;
            let hash: String = Sha256::digest(certificate.der()).iter().map(|byte| format!("{byte:02x}")).collect();
            pins.insert(format!("hash {name}"), hash);
            pins.insert(format!("spki {name}"), STANDARD.encode(Sha256::digest(key.subject_public_key_info())));
            let text = certificate.pem() + if name == FAR { &middle_pem } else { "" };
            std::fs::write(folder.join(format!("{name}.pem")), &text)?;
            std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
            pem.insert(name, (text, key.serialize_pem()));
        }
        if let Some((certificate, key)) = pem.get("client").cloned() {
            pem.insert("client_and_issuer", (certificate + &ca.pem(), key));
        }
        Ok(Self { pem, pins, roots: Arc::new(roots) })
    }

    fn identity(&self, name: &str) -> Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let (certificate, key) = self.pem.get(name)?;
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<_, _>>().ok()?;
        Some((chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).ok()?))
    }

    /// What an upstream answers with when a proxy speaks TLS to it, and the protocols that it offers.
    pub(crate) fn upstream(&self, offers: &[&[u8]]) -> TlsAcceptor {
        let (chain, key) = self.identity("upstream.example").expect("was made");
        let mut config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).expect("a fitting key");
        config.alpn_protocols = offers.iter().map(|p| p.to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }

    /// Speaks TLS to a proxy; says whose certificate was shown.
    pub(crate) async fn connect(&self, stream: TcpStream, tls: &Tls) -> anyhow::Result<(TlsStream<TcpStream>, String)> {
        let builder = ClientConfig::builder().with_root_certificates(Arc::clone(&self.roots));
        let mut config = match tls.certificate.as_deref().and_then(|name| self.identity(name)) {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = tls.alpn.iter().map(|p| p.clone().into_bytes()).collect();
        config.enable_sni = tls.sni.is_some();
        // Which certificate comes is what is asked, so none is wrong.
        config.dangerous().set_certificate_verifier(Arc::new(AnyServer));
        let name = ServerName::try_from(tls.server_name().to_owned())?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|c| c.first()).cloned();
        let owner = NAMES.into_iter().find(|name| self.identity(name).and_then(|(chain, _)| chain.into_iter().next()) == shown);
        let alpn = stream.get_ref().1.alpn_protocol().map(|p| String::from_utf8_lossy(p).into_owned());
        let told = format!("{} {}", owner.unwrap_or("unknown"), alpn.unwrap_or_default());
        Ok((stream, told.trim_end().to_owned()))
    }
}

fn serial_of(name: &str) -> SerialNumber {
    SerialNumber::from_slice(name.as_bytes())
}

/// A list that revokes one certificate and is never out of date.
fn list(serial: &SerialNumber) -> CertificateRevocationListParams {
    CertificateRevocationListParams {
        this_update: date_time_ymd(2020, 1, 1),
        next_update: date_time_ymd(2100, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: serial.clone(),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    }
}

/// Takes any certificate.
#[derive(Debug)]
struct AnyServer;

impl rustls::client::danger::ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
