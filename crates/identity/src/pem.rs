//! Reading and writing PEM with errors that name the source and say what was found instead.
use base64::Engine;
use lateen_core::bounded_file;
use lateen_core::file_stamp::FileStamp;
use rustls_pki_types::pem::{PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use std::io::ErrorKind;
use std::path::Path;

/// PEM files larger than this are refused: the largest public trust bundles are below 1 MiB.
pub const MAX_PEM_BYTES: u64 = 4 << 20;

/// A PEM text that does not hold what was asked for. Never quotes the content, which may be a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {reason}")]
pub struct InvalidPem {
    /// A file path or the name of a configuration field.
    pub origin: String,
    pub reason: String,
}

impl InvalidPem {
    pub(crate) fn new(origin: &str, reason: impl Into<String>) -> Self {
        Self { origin: origin.to_owned(), reason: reason.into() }
    }
}

/// All certificates of `pem`, in order; other sections are skipped.
///
/// # Errors
/// When there is none, or a section is damaged. `origin` is named in the error.
pub fn certificates(pem: &[u8], origin: &str) -> Result<Vec<CertificateDer<'static>>, InvalidPem> {
    let found = collect::<CertificateDer<'static>>(pem, origin)?;
    if found.is_empty() {
        return Err(InvalidPem::new(origin, format!("holds no CERTIFICATE section{}", instead(pem))));
    }
    for (index, certificate) in found.iter().enumerate() {
        if let Err(cause) = x509_parser::parse_x509_certificate(certificate) {
            return Err(InvalidPem::new(origin, format!("certificate {} is not valid X.509: {cause}", index + 1)));
        }
    }
    Ok(found)
}

/// Certificates to trust, of which some may be unusable.
#[derive(Debug)]
pub struct Roots {
    pub usable: Vec<CertificateDer<'static>>,
    /// How many are not.
    pub unusable: usize,
}

/// The certificates of `pem` that can be trusted. Each section is looked at for itself: a damaged one takes no other with it.
///
/// # Errors
/// When there is none. `origin` is named in the error.
pub fn roots(pem: &[u8], origin: &str) -> Result<Roots, InvalidPem> {
    let (mut usable, mut unusable) = (Vec::new(), 0);
    for section in sections(pem).flat_map(CertificateDer::pem_slice_iter) {
        match section {
            Ok(root) if x509_parser::parse_x509_certificate(&root).is_ok() && webpki::anchor_from_trusted_cert(&root).is_ok() => {
                usable.push(root);
            }
            _ => unusable += 1,
        }
    }
    if usable.is_empty() {
        return Err(InvalidPem::new(origin, format!("holds no usable CERTIFICATE section{}", instead(pem))));
    }
    Ok(Roots { usable, unusable })
}

/// The text from each line that begins a section to the next such line.
fn sections(pem: &[u8]) -> impl Iterator<Item = &[u8]> {
    let begins = |at: &usize| {
        pem[*at..].starts_with(b"-----BEGIN ") && matches!(at.checked_sub(1).map(|before| pem[before]), None | Some(b'\n' | b'\r'))
    };
    let mut starts = (0..pem.len()).filter(begins).peekable();
    std::iter::from_fn(move || {
        let start = starts.next()?;
        Some(&pem[start..starts.peek().copied().unwrap_or(pem.len())])
    })
}

/// All certificate revocation lists of `pem`.
///
/// # Errors
/// When there is none, or a section is damaged.
pub fn revocation_lists(pem: &[u8], origin: &str) -> Result<Vec<CertificateRevocationListDer<'static>>, InvalidPem> {
    let found = revocation_lists_among(pem, origin)?;
    if found.is_empty() {
        return Err(InvalidPem::new(origin, format!("holds no X509 CRL section{}", instead(pem))));
    }
    Ok(found)
}

/// As [`revocation_lists`], of a text in which there may be none.
///
/// # Errors
/// When a section is damaged.
pub fn revocation_lists_among(pem: &[u8], origin: &str) -> Result<Vec<CertificateRevocationListDer<'static>>, InvalidPem> {
    collect(pem, origin)
}

/// The first private key of `pem`: PKCS#8, PKCS#1 (RSA) or SEC1 (EC), not encrypted.
///
/// # Errors
/// When there is none, it is encrypted, or the section is damaged.
pub fn private_key(pem: &[u8], origin: &str) -> Result<PrivateKeyDer<'static>, InvalidPem> {
    match collect::<PrivateKeyDer<'static>>(pem, origin)?.into_iter().next() {
        Some(key) => Ok(key),
        None if contains(pem, b"ENCRYPTED") => {
            Err(InvalidPem::new(origin, "the private key is encrypted; store it decrypted (`openssl pkey -in KEY -out PLAIN`)"))
        }
        None => Err(InvalidPem::new(origin, format!("holds no PRIVATE KEY section{}", instead(pem)))),
    }
}

/// Reads a file for one of the functions above. What is no file is refused, as a pipe or a device has no end, and so is an
/// oversized one.
///
/// # Errors
/// When it cannot be read or exceeds [`MAX_PEM_BYTES`].
pub fn read_file(path: &Path) -> Result<Vec<u8>, InvalidPem> {
    read_stamped(path).1
}

/// [`read_file`], and how the file was then ([`bounded_file::read_stamped`]).
pub fn read_stamped(path: &Path) -> (FileStamp, Result<Vec<u8>, InvalidPem>) {
    let origin = path.display().to_string();
    let (stamp, content) = bounded_file::read_stamped(path, MAX_PEM_BYTES);
    let content = content.map_err(|cause| match cause.kind() {
        ErrorKind::InvalidInput | ErrorKind::FileTooLarge => InvalidPem::new(&origin, cause.to_string()),
        _ => InvalidPem::new(&origin, format!("cannot be read: {cause}")),
    });
    (stamp, content)
}

/// One PEM section with 64-column lines and a final line feed.
pub fn encode(label: &str, der: &[u8]) -> String {
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = String::with_capacity(body.len() + body.len() / 64 + 2 * label.len() + 40);
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

/// The certificates as PEM, one section after the other.
pub fn encode_certificates<'a>(certificates: impl IntoIterator<Item = &'a CertificateDer<'static>>) -> String {
    certificates.into_iter().map(|c| encode("CERTIFICATE", c)).collect()
}

fn collect<T: PemObject>(pem: &[u8], origin: &str) -> Result<Vec<T>, InvalidPem> {
    T::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|cause| InvalidPem::new(origin, describe(&cause)))
}

/// Our own words: the library's errors quote lines, and a line may be part of a key.
fn describe(cause: &rustls_pki_types::pem::Error) -> &'static str {
    use rustls_pki_types::pem::Error;
    match cause {
        Error::MissingSectionEnd { .. } => "a PEM section has no END line",
        Error::IllegalSectionStart { .. } => "a PEM BEGIN line is malformed",
        Error::Base64Decode(_) => "a PEM section is not valid base64",
        Error::Io(_) => "the PEM text cannot be read",
        _ => "the PEM text is damaged",
    }
}

/// What sections there are, for the "holds no X" errors.
fn instead(pem: &[u8]) -> String {
    if pem.iter().all(u8::is_ascii_whitespace) {
        return " (it is empty)".to_owned();
    }
    let kinds: Vec<&str> =
        <(SectionKind, Vec<u8>)>::pem_slice_iter(pem).filter_map(Result::ok).map(|(kind, _)| label(kind)).take(4).collect();
    if kinds.is_empty() { " (it is not PEM text)".to_owned() } else { format!(" (it holds {})", kinds.join(", ")) }
}

fn label(kind: SectionKind) -> &'static str {
    match kind {
        SectionKind::Certificate => "CERTIFICATE",
        SectionKind::PublicKey => "PUBLIC KEY",
        SectionKind::RsaPrivateKey | SectionKind::PrivateKey | SectionKind::EcPrivateKey => "PRIVATE KEY",
        SectionKind::Crl => "X509 CRL",
        SectionKind::Csr => "CERTIFICATE REQUEST",
        _ => "another kind of section",
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_origin_and_what_was_found() {
        let key = encode("PRIVATE KEY", b"not really a key");
        let error = certificates(key.as_bytes(), "cert-chain.pem").unwrap_err();
        assert_eq!(error.to_string(), "cert-chain.pem: holds no CERTIFICATE section (it holds PRIVATE KEY)");
        let error = certificates(b"  \n", "a").unwrap_err();
        assert_eq!(error.to_string(), "a: holds no CERTIFICATE section (it is empty)");
        let error = private_key(encode("ENCRYPTED PRIVATE KEY", b"x").as_bytes(), "k").unwrap_err();
        assert!(error.to_string().contains("is encrypted"), "{error}");
    }

    #[test]
    fn damaged_sections_are_refused_without_quoting_them() {
        for text in ["-----BEGIN PRIVATE KEY-----\nc2VjcmV0", "-----BEGIN PRIVATE KEY-----\n!!c2VjcmV0!!\n-----END PRIVATE KEY-----\n"] {
            let error = private_key(text.as_bytes(), "k").unwrap_err();
            assert!(!format!("{error} {error:?}").contains("c2VjcmV0"), "{error:?}");
        }
        let error = certificates(encode("CERTIFICATE", b"garbage").as_bytes(), "c").unwrap_err();
        assert!(error.to_string().contains("certificate 1 is not valid X.509"), "{error}");
    }

    #[test]
    fn encoding_wraps_lines_and_reads_back() {
        let text = encode("X509 CRL", &[7; 100]);
        assert!(text.lines().all(|l| l.len() <= 64));
        assert_eq!(revocation_lists(text.as_bytes(), "x").unwrap()[0].as_ref(), &[7; 100]);
    }
}
