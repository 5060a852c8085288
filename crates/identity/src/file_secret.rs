//! Secrets that the agent beside a proxy reads from files. Their names say which, as Istio's control plane makes them
//! (`pkg/security`, `SdsCertificateConfig`): `file-cert:CHAIN~KEY`, `file-root:ROOTS`, `file-root:system`.
//!
//! Who configures the proxy so names any file that its process may read. What is read is only used if it is PEM of the kind
//! that is wanted, and nothing of it is ever quoted.
use std::path::{Path, PathBuf};

use lateen_core::file_stamp::FileStamp;
use rustls_pki_types::CertificateDer;

use crate::pem::{self, InvalidPem};
use crate::secrets::{InvalidSecrets, PrivateKey, certified_key};

const CERTIFICATE: &str = "file-cert:";
const ROOTS: &str = "file-root:";
/// Stands for the operating system's roots in place of a path.
const SYSTEM: &str = "system";
/// Between the paths of a name; no path can have it.
const SEPARATOR: char = '~';

/// Where systems keep the roots that they trust; the first that is there counts (Istio `GetOSRootFilePath`).
const SYSTEM_ROOTS: [&str; 8] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/usr/local/etc/ssl/cert.pem",
    "/etc/ssl/certs/ca-certificates",
];

/// The files of one secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileSecret {
    Certificate { chain: PathBuf, key: PathBuf },
    Roots(PathBuf),
    SystemRoots,
}

/// What they hold.
#[derive(Debug)]
pub enum Content {
    /// A chain with the key of its leaf.
    Certificate(Vec<CertificateDer<'static>>, PrivateKey),
    Roots(Vec<CertificateDer<'static>>),
}

/// What came of reading the files of a secret.
#[derive(Debug)]
pub struct Reading {
    pub content: Result<Content, InvalidFileSecret>,
    /// As they were then.
    pub files: Vec<(PathBuf, FileStamp)>,
}

/// Why there is no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFileSecret {
    #[error("`{0}` names no files: a path is neither empty nor has it a `~`; name others in the Gateway or DestinationRule")]
    Name(String),
    #[error("{0}; mend the file, or name another in the Gateway or DestinationRule: it is used as soon as it can be")]
    File(#[from] InvalidPem),
    #[error("`{chain}` and `{key}` make no certificate: {reason}; write what belongs together into them")]
    Pair { chain: String, key: String, reason: InvalidSecrets },
    #[error("there are no roots of the operating system, in none of {0}; install them (ca-certificates), or name a file in caCertificates")]
    NoSystemRoots(String),
}

/// Whether a name is of a secret in files, be it a good one or not.
pub fn is_name_of_files(name: &str) -> bool {
    name.starts_with(CERTIFICATE) || name.starts_with(ROOTS)
}

impl FileSecret {
    /// `None` for a name that is not of files.
    ///
    /// # Errors
    /// When the name is of files, but cannot be understood.
    pub fn named(name: &str) -> Option<Result<Self, InvalidFileSecret>> {
        let path = |text: &str| (!text.is_empty() && !text.contains(SEPARATOR)).then(|| PathBuf::from(text));
        let found = if let Some(pair) = name.strip_prefix(CERTIFICATE) {
            let (chain, key) = pair.split_once(SEPARATOR).unwrap_or_default();
            path(chain).zip(path(key)).map(|(chain, key)| Self::Certificate { chain, key })
        } else {
            match name.strip_prefix(ROOTS)? {
                SYSTEM => Some(Self::SystemRoots),
                other => path(other).map(Self::Roots),
            }
        };
        Some(found.ok_or_else(|| InvalidFileSecret::Name(name.to_owned())))
    }

    /// Reads the files, and checks that what they hold can be used. To be done again when one is outdated.
    pub fn read(&self) -> Reading {
        let mut files = Vec::new();
        let mut read = |path: &Path| {
            let (stamp, content) = pem::read_stamped(path);
            files.push((path.to_owned(), stamp));
            content
        };
        let content = match self {
            Self::Certificate { chain, key } => certificate((chain, read(chain)), (key, read(key))),
            Self::Roots(path) => roots(path, read(path)),
            Self::SystemRoots => match SYSTEM_ROOTS.iter().map(Path::new).find(|path| path.exists()) {
                Some(path) => roots(path, read(path)),
                None => {
                    files.extend(SYSTEM_ROOTS.map(|path| (PathBuf::from(path), FileStamp::unread())));
                    Err(InvalidFileSecret::NoSystemRoots(SYSTEM_ROOTS.join(", ")))
                }
            },
        };
        Reading { content, files }
    }
}

/// A file, and what came of reading it.
type Read<'a> = (&'a Path, Result<Vec<u8>, InvalidPem>);

fn certificate((chain, its_text): Read<'_>, (key, key_text): Read<'_>) -> Result<Content, InvalidFileSecret> {
    let certificates = pem::certificates(&its_text?, &chain.display().to_string())?;
    let private = PrivateKey::from_pem(&key_text?, &key.display().to_string())?;
    // While one of the two is replaced, the other is of before.
    certified_key(certificates.clone(), &private).map_err(|reason| InvalidFileSecret::Pair {
        chain: chain.display().to_string(),
        key: key.display().to_string(),
        reason,
    })?;
    Ok(Content::Certificate(certificates, private))
}

/// Of a bundle that others made a root that cannot be used is left out, as Istio's agent does, and not all the others with it.
fn roots(path: &Path, text: Result<Vec<u8>, InvalidPem>) -> Result<Content, InvalidFileSecret> {
    let pem::Roots { usable, unusable } = pem::roots(&text?, &path.display().to_string())?;
    if unusable > 0 {
        tracing::warn!(file = %path.display(), unusable, "roots that cannot be used are left out");
    }
    Ok(Content::Roots(usable))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Option<Result<FileSecret, InvalidFileSecret>> {
        FileSecret::named(name)
    }

    #[test]
    fn names_are_understood_as_istios_agent_does() {
        let pair = FileSecret::Certificate { chain: "/a/tls.crt".into(), key: "b/tls.key".into() };
        assert_eq!(named("file-cert:/a/tls.crt~b/tls.key"), Some(Ok(pair)));
        assert_eq!(named("file-root:/a/ca.crt"), Some(Ok(FileSecret::Roots("/a/ca.crt".into()))));
        assert_eq!(named("file-root:system"), Some(Ok(FileSecret::SystemRoots)));
        for other in ["default", "ROOTCA", "kubernetes://file-cert:a~b", "/a/ca.crt"] {
            assert_eq!(named(other), None, "{other}");
            assert!(!is_name_of_files(other), "{other}");
        }
        for bad in
            ["file-cert:", "file-cert:a", "file-cert:~", "file-cert:a~", "file-cert:~b", "file-cert:a~b~c", "file-root:", "file-root:a~b"]
        {
            assert!(is_name_of_files(bad) && matches!(named(bad), Some(Err(InvalidFileSecret::Name(_)))), "{bad}");
        }
    }

    fn pair(name: &str) -> [String; 2] {
        let key = rcgen::KeyPair::generate().unwrap();
        [rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap().pem(), key.serialize_pem()]
    }

    #[test]
    fn what_cannot_be_used_is_told_with_the_file_and_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let secret = FileSecret::Certificate { chain: path("crt"), key: path("key") };
        let told = || secret.read().content.unwrap_err().to_string();
        let (crt, key) = (path("crt").display().to_string(), path("key").display().to_string());
        assert!(told().starts_with(&format!("{crt}: cannot be read: No such file")) && told().contains("name another in the Gateway"));
        let ([chain, its_key], [_, other_key]) = (pair("a"), pair("b"));
        std::fs::write(path("crt"), chain).unwrap();
        assert!(told().starts_with(&format!("{key}: cannot be read")));
        std::fs::write(path("key"), other_key).unwrap();
        assert!(told().contains(&format!("`{crt}` and `{key}` make no certificate: the private key does not belong")), "{}", told());
        std::fs::write(path("key"), its_key).unwrap();
        assert!(matches!(secret.read().content.unwrap(), Content::Certificate(chain, _) if chain.len() == 1));
        assert_eq!(
            FileSecret::Roots(path("key")).read().content.unwrap_err(),
            InvalidFileSecret::File(InvalidPem {
                origin: key,
                reason: "holds no usable CERTIFICATE section (it holds PRIVATE KEY)".to_owned(),
            })
        );
    }

    #[test]
    fn what_is_no_file_or_too_large_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let told = |path: &Path| FileSecret::Roots(path.to_owned()).read().content.unwrap_err().to_string();
        assert!(told(folder.path()).contains("is no file"));
        // It has no size and no end.
        assert!(told(Path::new("/dev/zero")).contains("is no file"));
        let large = folder.path().join("large");
        std::fs::File::create(&large).unwrap().set_len(pem::MAX_PEM_BYTES + 1).unwrap();
        assert!(told(&large).contains("bytes large"));
    }

    #[test]
    fn a_root_that_cannot_be_used_does_not_take_the_others_with_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let ([good, _], [other, _], bad) = (pair("a"), pair("b"), pem::encode("CERTIFICATE", b"garbage"));
        let (begin, base64) = ("-----BEGIN CERTIFICATE-----\n", "-----BEGIN CERTIFICATE-----\n####\n-----END CERTIFICATE-----\n");
        // No end, no base64, no beginning, and no certificate.
        for damaged in [begin, &bad[..bad.len() / 2], base64, "-----BEGIN CERTIFICATE\nAAAA\n-----END CERTIFICATE-----\n", &bad] {
            std::fs::write(file.path(), format!("{damaged}\n# a remark\n{good}{damaged}\n{other}{damaged}")).unwrap();
            let content = FileSecret::Roots(file.path().to_owned()).read().content;
            assert!(matches!(&content, Ok(Content::Roots(roots)) if roots.len() == 2), "{damaged}: {content:?}");
        }
        std::fs::write(file.path(), bad).unwrap();
        assert!(FileSecret::Roots(file.path().to_owned()).read().content.is_err());
    }
}
