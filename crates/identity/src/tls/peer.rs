//! What a certificate says about its holder, extracted once per connection.
//!
//! Feeds `x-forwarded-client-cert`, authorization, metrics and access logs.
use lateen_core::spiffe::SpiffeId;
use rustls::CommonState;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::time::ASN1Time;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// The holder of a certificate. Says nothing about whether the certificate was verified: take it
/// from a connection whose configuration verifies peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The URI name, when it is the only one and of Istio's form.
    pub spiffe: Option<SpiffeId>,
    pub uri_sans: Vec<String>,
    pub dns_sans: Vec<String>,
    pub email_sans: Vec<String>,
    pub ip_sans: Vec<IpAddr>,
    /// RFC 2253, as Envoy prints it in `x-forwarded-client-cert: Subject="…"`; empty for an empty subject.
    pub subject: String,
    pub issuer: String,
    /// SHA-256 of the DER certificate in lower-case hex: `Hash=` of `x-forwarded-client-cert`.
    pub fingerprint: String,
    /// Lower-case hex without separators or leading zero octets, as Envoy prints it.
    pub serial: String,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    pub der: CertificateDer<'static>,
    /// What the holder sent behind it: its issuer, that one's, and so on, as far as they came.
    pub issuers: Vec<CertificateDer<'static>>,
}

/// Peers that a thread remembers.
const RECENT_MOST: usize = 128;

thread_local! {
    static RECENT: RefCell<Vec<Arc<PeerIdentity>>> = const { RefCell::new(Vec::new()) };
}

/// A certificate that does not parse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid X.509 certificate: {0}")]
pub struct InvalidCertificate(String);

impl PeerIdentity {
    /// The peer of an established connection; `None` when it presented no certificate.
    pub fn of_connection(connection: &CommonState) -> Option<Arc<Self>> {
        let (leaf, issuers) = connection.peer_certificates()?.split_first()?;
        Self::shared(leaf, issuers).ok()
    }

    /// As [`Self::from_der`], with what was sent behind it; but connections of the same peer share what was read the first time.
    ///
    /// # Errors
    /// As [`Self::from_der`].
    pub fn shared(der: &CertificateDer<'_>, issuers: &[CertificateDer<'_>]) -> Result<Arc<Self>, InvalidCertificate> {
        RECENT.with_borrow_mut(|recent| {
            if let Some(at) = recent.iter().position(|known| known.der.as_ref() == der.as_ref() && known.issuers == issuers) {
                recent.swap(0, at);
                if let Some(known) = recent.first() {
                    return Ok(Arc::clone(known));
                }
            }
            let issuers = issuers.iter().map(|issuer| issuer.clone().into_owned()).collect();
            let identity = Arc::new(Self { issuers, ..Self::from_der(der)? });
            recent.truncate(RECENT_MOST - 1);
            recent.insert(0, Arc::clone(&identity));
            Ok(identity)
        })
    }

    /// Reads a certificate.
    ///
    /// # Errors
    /// When it is not X.509, or a name holds characters that its type forbids.
    pub fn from_der(der: &CertificateDer<'_>) -> Result<Self, InvalidCertificate> {
        let (rest, certificate) = x509_parser::parse_x509_certificate(der).map_err(|e| InvalidCertificate(e.to_string()))?;
        if !rest.is_empty() {
            return Err(InvalidCertificate("bytes follow the certificate".to_owned()));
        }
        let mut identity = Self {
            subject: rfc2253(certificate.subject()),
            issuer: rfc2253(certificate.issuer()),
            fingerprint: sha256_hex(der),
            serial: serial(&certificate),
            not_before: system_time(certificate.validity().not_before),
            not_after: system_time(certificate.validity().not_after),
            der: der.clone().into_owned(),
            ..Self::empty()
        };
        identity.collect_names(&certificate)?;
        if let [uri] = identity.uri_sans.as_slice() {
            identity.spiffe = uri.parse().ok();
        }
        Ok(identity)
    }

    /// The certificate as PEM: `Cert=` of `x-forwarded-client-cert` is this text, percent-encoded.
    pub fn pem(&self) -> String {
        crate::pem::encode("CERTIFICATE", &self.der)
    }

    /// The certificate and all that were sent behind it: `Chain=`.
    pub fn chain_pem(&self) -> String {
        crate::pem::encode_certificates([&self.der].into_iter().chain(&self.issuers))
    }

    /// The names by which a server shows it: the DNS names, or the common name of one that has no alternative names at all.
    pub(super) fn server_names(self) -> Vec<String> {
        let has_none = self.uri_sans.is_empty() && self.email_sans.is_empty() && self.ip_sans.is_empty();
        match self.common_name() {
            Some(name) if has_none && self.dns_sans.is_empty() => vec![name],
            _ => self.dns_sans,
        }
    }

    fn common_name(&self) -> Option<String> {
        let (_, certificate) = x509_parser::parse_x509_certificate(&self.der).ok()?;
        certificate.subject().iter_common_name().next()?.as_str().ok().map(str::to_owned)
    }

    fn collect_names(&mut self, certificate: &X509Certificate<'_>) -> Result<(), InvalidCertificate> {
        for extension in certificate.extensions() {
            let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else { continue };
            for name in &names.general_names {
                match name {
                    GeneralName::URI(text) => self.uri_sans.push(clean(text)?),
                    GeneralName::DNSName(text) => self.dns_sans.push(clean(text)?),
                    GeneralName::RFC822Name(text) => self.email_sans.push(clean(text)?),
                    GeneralName::IPAddress(octets) => self.ip_sans.push(address(octets)?),
                    GeneralName::Invalid(..) => return Err(InvalidCertificate("a subject alternative name is malformed".to_owned())),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    pub(crate) fn empty() -> Self {
        Self {
            spiffe: None,
            uri_sans: Vec::new(),
            dns_sans: Vec::new(),
            email_sans: Vec::new(),
            ip_sans: Vec::new(),
            subject: String::new(),
            issuer: String::new(),
            fingerprint: String::new(),
            serial: String::new(),
            not_before: UNIX_EPOCH,
            not_after: UNIX_EPOCH,
            der: CertificateDer::from(Vec::new()),
            issuers: Vec::new(),
        }
    }
}

/// A NUL or a control character in a name once made `good.example\0.evil` pass for `good.example`.
fn clean(name: &str) -> Result<String, InvalidCertificate> {
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(InvalidCertificate("a subject alternative name is empty or holds a NUL, control or non-ASCII character".to_owned()));
    }
    Ok(name.to_owned())
}

fn address(octets: &[u8]) -> Result<IpAddr, InvalidCertificate> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    let v6 = <[u8; 16]>::try_from(octets).map(IpAddr::from);
    v4.or(v6).map_err(|_| InvalidCertificate("an IP subject alternative name has a wrong length".to_owned()))
}

pub(crate) fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = time.timestamp();
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    time.unwrap_or(UNIX_EPOCH)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn serial(certificate: &X509Certificate<'_>) -> String {
    let octets = certificate.raw_serial();
    let start = octets.iter().position(|b| *b != 0).unwrap_or(octets.len().saturating_sub(1));
    hex(octets.get(start..).unwrap_or_default())
}

/// The name in RFC 2253 form: last part first, special characters escaped, multi-valued parts joined by `+`.
fn rfc2253(name: &X509Name<'_>) -> String {
    let mut parts: Vec<String> = name.iter_rdn().map(|part| part.iter().map(attribute).collect::<Vec<_>>().join("+")).collect();
    parts.reverse();
    parts.join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type().to_id_string();
    let short = match oid.as_str() {
        "2.5.4.3" => "CN",
        "2.5.4.4" => "SN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "street",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.12" => "title",
        "2.5.4.17" => "postalCode",
        "2.5.4.42" => "GN",
        "1.2.840.113549.1.9.1" => "emailAddress",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        other => other,
    };
    match attribute.as_str() {
        Ok(value) => format!("{short}={}", escape(value)),
        Err(_) => format!("{short}=#{}", hex(attribute.attr_value().data).to_uppercase()),
    }
}

/// RFC 2253 2.4, with octets outside printable ASCII as `\XX`.
fn escape(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    let last = value.len().saturating_sub(1);
    for (index, byte) in value.bytes().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => {
                text.push('\\');
                text.push(char::from(byte));
            }
            b'#' if index == 0 => text.push_str("\\#"),
            b' ' if index == 0 || index == last => text.push_str("\\ "),
            0x20..=0x7e => text.push(char::from(byte)),
            _ => {
                let _ = write!(text, "\\{byte:02X}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, CustomExtension, DnType, KeyPair, SanType};

    fn certificate(change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn the_subject_reads_as_envoy_prints_it() {
        let der = certificate(|p| {
            p.distinguished_name.push(DnType::CountryName, "DE");
            p.distinguished_name.push(DnType::OrganizationName, "Sails, Inc.");
            p.distinguished_name.push(DnType::CommonName, " #Bö\"t ");
        });
        let identity = PeerIdentity::from_der(&der).unwrap();
        assert_eq!(identity.subject, r#"CN=\ #B\C3\B6\"t\ ,O=Sails\, Inc.,C=DE"#);
        assert_eq!(identity.fingerprint, hex(&Sha256::digest(&der)));
        assert_eq!(identity.fingerprint.len(), 64);
        assert_eq!(PeerIdentity::from_der(&certificate(|_| {})).unwrap().subject, "");
    }

    #[test]
    fn names_are_collected_by_kind() {
        let der = certificate(|p| {
            p.subject_alt_names = vec![
                SanType::URI("spiffe://td/ns/a/sa/b".try_into().unwrap()),
                SanType::DnsName("a.example".try_into().unwrap()),
                SanType::IpAddress("::1".parse().unwrap()),
                SanType::Rfc822Name("a@example".try_into().unwrap()),
            ];
        });
        let identity = PeerIdentity::from_der(&der).unwrap();
        assert_eq!(identity.spiffe.unwrap().service_account(), "b");
        assert_eq!(identity.dns_sans, ["a.example"]);
        assert_eq!(identity.email_sans, ["a@example"]);
        assert_eq!(identity.ip_sans, ["::1".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn a_nul_in_a_name_makes_the_certificate_invalid() {
        let mut san = vec![0x30, 19, 0x86, 17];
        san.extend_from_slice(b"spiffe://td/\0/x/y");
        let der = certificate(|p| p.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 17], san)]);
        let error = PeerIdentity::from_der(&der).unwrap_err();
        assert!(error.to_string().contains("NUL"), "{error}");
    }

    #[test]
    fn two_uri_names_are_no_spiffe_identity() {
        let der = certificate(|p| {
            let uri = |t: &str| SanType::URI(t.try_into().unwrap());
            p.subject_alt_names = vec![uri("spiffe://td/ns/a/sa/b"), uri("spiffe://td/ns/a/sa/c")];
        });
        let identity = PeerIdentity::from_der(&der).unwrap();
        assert_eq!((identity.spiffe, identity.uri_sans.len()), (None, 2));
    }
}
