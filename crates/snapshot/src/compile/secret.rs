//! Secrets: certificates and validation contexts by name, and the files they were read from.
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use lateen_core::file_stamp::{FileStamp, is_another_version};
use lateen_identity::file_secret::{self, FileSecret, Reading};
use lateen_identity::tls::{ClientAuth, SanMatcher, Trust, Verification};
use lateen_identity::{PrivateKey, WorkloadSecrets};
use lateen_proto::envoy::extensions::transport_sockets::tls::v3 as proto;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};

use self::message::open;
use super::invalid::{Invalid, Result};
use super::source::SecretSource;
use super::tls::Given;

mod message;

/// A secret by where it comes from and its name there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretKey {
    pub source: SecretSource,
    pub name: Arc<str>,
}

/// A certificate with its key.
#[derive(Debug)]
pub struct Certificate {
    pub key: Arc<rustls::sign::CertifiedKey>,
}

impl Certificate {
    fn new(chain: Vec<CertificateDer<'static>>, key: &PrivateKey) -> Result<Self> {
        let key = lateen_identity::secrets::certified_key(chain, key).map_err(|e| Invalid::new(e.to_string()))?;
        Ok(Self { key: Arc::new(key) })
    }
}

/// The key belongs to the chain: where that is the same, so is the key.
impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.key.cert == other.key.cert
    }
}

/// What is demanded of a peer, as one message says it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Validation {
    roots: Option<Vec<CertificateDer<'static>>>,
    /// Revocation lists that stand among the roots.
    lists_among_roots: Vec<CertificateRevocationListDer<'static>>,
    sans: Vec<SanMatcher>,
    key_pins: Vec<[u8; 32]>,
    certificate_pins: Vec<[u8; 32]>,
    revocation_lists: Vec<CertificateRevocationListDer<'static>>,
    leaf_only: bool,
    most_above: Option<usize>,
    accept_untrusted: bool,
}

impl Validation {
    /// Trust in these roots alone.
    pub fn roots(roots: Vec<CertificateDer<'static>>) -> Self {
        Self { roots: Some(roots), ..Self::default() }
    }

    /// The trusted roots, for the admin page.
    pub fn trusted(&self) -> &[CertificateDer<'static>] {
        self.roots.as_deref().unwrap_or_default()
    }

    /// Protobuf's merge: later single values replace, lists are appended.
    pub(crate) fn merged<'a>(parts: impl Iterator<Item = &'a Self>) -> Self {
        parts.fold(Self::default(), |mut all, part| {
            if part.roots.is_some() {
                all.roots.clone_from(&part.roots);
                all.lists_among_roots.clone_from(&part.lists_among_roots);
            }
            all.sans.extend(part.sans.iter().cloned());
            all.key_pins.extend(&part.key_pins);
            all.certificate_pins.extend(&part.certificate_pins);
            all.revocation_lists.extend(part.revocation_lists.iter().cloned());
            all.leaf_only |= part.leaf_only;
            all.most_above = part.most_above.or(all.most_above);
            all.accept_untrusted |= part.accept_untrusted;
            all
        })
    }

    /// Whether callers are asked for a certificate where the listener itself does not demand one. Names and pins do: who
    /// shows none cannot match. Trust alone only looks at what is shown (Envoy
    /// `source/common/tls/cert_validator/default_validator.cc`, `initializeSslContexts`).
    pub(crate) fn asks(&self) -> ClientAuth {
        let particular = !(self.sans.is_empty() && self.key_pins.is_empty() && self.certificate_pins.is_empty());
        match self {
            _ if self.accept_untrusted => ClientAuth::Optional,
            _ if particular => ClientAuth::Required,
            _ if self.roots.is_some() => ClientAuth::Optional,
            _ => ClientAuth::None,
        }
    }

    pub(crate) fn verification(self, check_host: bool) -> Verification {
        let mut revocation_lists = self.revocation_lists;
        let trust = match self.roots {
            Some(roots) if !self.accept_untrusted => {
                revocation_lists.extend(self.lists_among_roots);
                Trust::Roots(roots)
            }
            _ => Trust::Anyone,
        };
        // Names without roots prove nothing: making the configuration then fails, as Envoy's does.
        Verification {
            trust,
            san_matchers: self.sans,
            key_pins: self.key_pins,
            certificate_pins: self.certificate_pins,
            revocation_lists,
            revocation_leaf_only: self.leaf_only,
            most_above: self.most_above,
            check_host,
        }
    }
}

/// What a name stands for at the moment.
#[derive(Clone, Debug, PartialEq)]
pub enum SecretValue {
    Certificate(Arc<Certificate>),
    Validation(Arc<Validation>),
}

impl SecretValue {
    pub(crate) fn kind(&self) -> SecretKind {
        match self {
            Self::Certificate(_) => SecretKind::Certificate,
            Self::Validation(_) => SecretKind::Validation,
        }
    }
}

/// What a secret is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SecretKind {
    Certificate,
    Validation,
}

impl SecretKind {
    /// As the field of the message that has it.
    pub(crate) fn field(self) -> &'static str {
        match self {
            Self::Certificate => "tls_certificate",
            Self::Validation => "validation_context",
        }
    }
}

/// A secret that is known, and since when.
#[derive(Debug)]
pub struct KnownSecret {
    pub value: SecretValue,
    /// Empty for one that nobody numbered.
    pub version: Arc<str>,
    pub updated: SystemTime,
    /// All that uses it was made with it, as far as the rest was there.
    is_in_use: bool,
}

impl KnownSecret {
    fn now(value: SecretValue, version: Arc<str>) -> Self {
        Self { value, version, updated: SystemTime::now(), is_in_use: false }
    }
}

/// All secrets known, and those that were read from files and can be read again.
#[derive(Debug, Default)]
pub(crate) struct Secrets {
    values: HashMap<SecretKey, KnownSecret>,
    /// Also those that could not be read yet.
    from_files: HashMap<SecretKey, FromFiles>,
    /// Why files could not be used as they were when they were read last, and since when they are so.
    unusable: HashMap<SecretKey, Unusable>,
    /// Contents in files that TLS contexts brought so far: the number of one that is gone is never that of another.
    numbered: u64,
    /// Where the workload's own identity is.
    identities: BTreeSet<SecretSource>,
}

/// Why a secret in files is as it was before, or is not there.
#[derive(Debug)]
pub(crate) struct Unusable {
    pub(crate) reason: String,
    pub(crate) at: SystemTime,
}

/// A secret, and the files that it came from, if it did.
#[derive(Debug)]
pub(crate) struct Kept {
    known: KnownSecret,
    from_files: Option<FromFiles>,
}

impl Kept {
    pub(crate) fn kind(&self) -> SecretKind {
        self.known.value.kind()
    }

    /// Of a message, whose files are read.
    pub(crate) fn of(secret: proto::Secret, version: Arc<str>) -> Result<Self> {
        let (value, files) = open(secret.clone());
        let from_files = (!files.is_empty()).then_some(FromFiles { content: Content::Message(Box::new(secret)), files });
        Ok(Self { known: KnownSecret::now(value?, version), from_files })
    }

    /// The workload's own certificate and roots, by their names.
    pub(crate) fn of_identity(identity: &WorkloadSecrets) -> [(&'static str, Self); 2] {
        let certificate = SecretValue::Certificate(Arc::new(Certificate { key: identity.certified_key() }));
        let roots = SecretValue::Validation(Arc::new(Validation::roots(identity.roots().to_vec())));
        [("default", certificate), ("ROOTCA", roots)]
            .map(|(name, value)| (name, Self { known: KnownSecret::now(value, Arc::default()), from_files: None }))
    }
}

/// A secret whose content is in files.
#[derive(Clone, Debug)]
struct FromFiles {
    content: Content,
    /// As they were when they were read last, be it to any use or not.
    files: Vec<ReadFile>,
}

impl FromFiles {
    fn read(content: Content) -> (Result<SecretValue>, Self) {
        let (value, files) = match &content {
            Content::Message(secret) => open((**secret).clone()),
            Content::Named(secret) => {
                let Reading { content, files } = secret.read();
                (content.map_err(|e| Invalid::new(e.to_string())).and_then(in_files), files)
            }
        };
        (value, Self { content, files })
    }
}

fn in_files(content: file_secret::Content) -> Result<SecretValue> {
    Ok(match content {
        file_secret::Content::Certificate(chain, key) => SecretValue::Certificate(Arc::new(Certificate::new(chain, &key)?)),
        file_secret::Content::Roots(roots) => SecretValue::Validation(Arc::new(Validation::roots(roots))),
    })
}

/// What says which files.
#[derive(Clone, Debug)]
enum Content {
    Message(Box<proto::Secret>),
    /// The name of the secret.
    Named(FileSecret),
}

/// A file, and how it was when it was read.
type ReadFile = (PathBuf, FileStamp);

impl Secrets {
    pub(crate) fn certificate(&self, key: &SecretKey) -> Option<Arc<Certificate>> {
        match &self.values.get(key)?.value {
            SecretValue::Certificate(certificate) => Some(certificate.clone()),
            SecretValue::Validation(_) => None,
        }
    }

    pub(crate) fn validation(&self, key: &SecretKey) -> Option<Arc<Validation>> {
        match &self.values.get(key)?.value {
            SecretValue::Validation(validation) => Some(validation.clone()),
            SecretValue::Certificate(_) => None,
        }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (&SecretKey, &KnownSecret)> {
        self.values.iter()
    }

    pub(crate) fn knows(&self, key: &SecretKey) -> bool {
        self.values.contains_key(key)
    }

    /// Forgets everything that is neither wanted nor of a source that gives it unasked: who wants that later is not told again.
    pub(crate) fn keep(&mut self, wanted: impl Fn(&SecretKey) -> bool) {
        let own = |key: &SecretKey| self.identities.contains(&key.source) && !file_secret::is_name_of_files(&key.name);
        let keep = |key: &SecretKey| key.source == SecretSource::Static || own(key) || wanted(key);
        self.values.retain(|key, _| keep(key));
        self.from_files.retain(|key, _| keep(key));
        self.unusable.retain(|key, _| keep(key));
    }

    pub(crate) fn remove(&mut self, key: &SecretKey) {
        self.values.remove(key);
        self.from_files.remove(key);
        self.unusable.remove(key);
    }

    /// Reads the files that the name of a secret says, and reads them again from now on when they change or come to be there;
    /// `None` for a name that is not of files.
    pub(crate) fn read_named(&mut self, key: &SecretKey) -> Option<Result<Kept>> {
        let secret = match FileSecret::named(&key.name)? {
            Ok(secret) => secret,
            Err(e) => return Some(Err(Invalid::new(e.to_string()))),
        };
        let (value, from_files) = FromFiles::read(Content::Named(secret));
        if self.from_files.get(key).is_some_and(|before| is_another_version(&from_files.files, &before.files)) {
            self.unusable.remove(key);
        }
        let kept = |value| Kept { known: KnownSecret::now(value, Arc::default()), from_files: Some(from_files.clone()) };
        let read = value.map(kept);
        if read.is_err() {
            self.from_files.insert(key.clone(), from_files);
        }
        Some(read)
    }

    /// A secret in files could not be read, or nothing be made with it. Says whether that is news.
    pub(crate) fn note_unusable(&mut self, key: &SecretKey, invalid: &Invalid) -> bool {
        let reason = invalid.to_string();
        let is_news = self.unusable(key).is_none_or(|known| known.reason != reason);
        if is_news {
            self.unusable.insert(key.clone(), Unusable { reason, at: SystemTime::now() });
        }
        is_news
    }

    pub(crate) fn unusable(&self, key: &SecretKey) -> Option<&Unusable> {
        self.unusable.get(key)
    }

    /// Keeps a secret; back comes the one before.
    pub(crate) fn put(&mut self, key: &SecretKey, secret: Kept) -> Option<Kept> {
        let files_before = match secret.from_files {
            Some(from_files) => self.from_files.insert(key.clone(), from_files),
            None => self.from_files.remove(key),
        };
        self.unusable.remove(key);
        let known = self.values.insert(key.clone(), secret.known)?;
        Some(Kept { known, from_files: files_before })
    }

    /// Whether a secret is what it was before, which all that uses it was made with: then sessions need not end.
    pub(crate) fn is_in_use_as(&self, key: &SecretKey, before: &Kept) -> bool {
        before.known.is_in_use && self.values.get(key).is_some_and(|now| now.value == before.known.value)
    }

    /// All that uses it was made with it.
    pub(crate) fn note_in_use(&mut self, key: &SecretKey) {
        if let Some(known) = self.values.get_mut(key) {
            known.is_in_use = true;
        }
    }

    /// This source gives its secrets unasked.
    pub(crate) fn is_own(&mut self, source: &SecretSource) {
        self.identities.insert(source.clone());
    }

    /// A certificate inside a TLS context. One in files is kept as a secret of its own, so that it can be read again.
    pub(crate) fn inline_certificate(&mut self, value: proto::TlsCertificate) -> Result<Given<Certificate>> {
        self.inline(proto::secret::Type::TlsCertificate(value), |value| match value {
            SecretValue::Certificate(certificate) => Some(certificate),
            SecretValue::Validation(_) => None,
        })
    }

    /// A validation context inside a TLS context.
    pub(crate) fn inline_validation(&mut self, value: proto::CertificateValidationContext) -> Result<Given<Validation>> {
        self.inline(proto::secret::Type::ValidationContext(value), |value| match value {
            SecretValue::Validation(validation) => Some(validation),
            SecretValue::Certificate(_) => None,
        })
    }

    fn inline<T>(&mut self, content: proto::secret::Type, pick: fn(SecretValue) -> Option<Arc<T>>) -> Result<Given<T>> {
        let secret = proto::Secret { name: String::new(), r#type: Some(content) };
        let (value, files) = open(secret.clone());
        let value = value.map_err(Invalid::without_first_segment)?;
        if files.is_empty() {
            return pick(value).map(Given::Inline).ok_or_else(|| Invalid::new("is of the wrong kind"));
        }
        let is_same = |from: &FromFiles| matches!(&from.content, Content::Message(other) if **other == secret);
        let known = self.from_files.iter().find(|(k, f)| matches!(k.source, SecretSource::Files) && is_same(f));
        let key = match known {
            Some((key, _)) => key.clone(),
            None => {
                let names: Vec<String> = files.iter().map(|(file, _)| file.display().to_string()).collect();
                let key = SecretKey { source: SecretSource::Files, name: format!("{}#{}", names.join(","), self.numbered).into() };
                self.numbered += 1;
                self.from_files.insert(key.clone(), FromFiles { content: Content::Message(Box::new(secret)), files });
                key
            }
        };
        self.unusable.remove(&key);
        self.put_inline(&key, value);
        Ok(Given::Discovered(key))
    }

    /// What the context that is being made has in files. Nothing else was made with one that is new; others that have a known one
    /// were made with what it was before.
    fn put_inline(&mut self, key: &SecretKey, value: SecretValue) {
        let is_new = match self.values.get(key) {
            Some(known) if known.value == value => return,
            known => known.is_none(),
        };
        self.values.insert(key.clone(), KnownSecret { is_in_use: is_new, ..KnownSecret::now(value, Arc::default()) });
    }

    /// Every file that a secret is read from, as it was then.
    pub(crate) fn files(&self) -> impl Iterator<Item = &ReadFile> {
        self.from_files.values().flat_map(|from| &from.files)
    }

    /// Reads the secrets in these files again.
    pub(crate) fn reload(&mut self, changed: impl Fn(&Path) -> bool) -> Vec<(SecretKey, Result<Kept>)> {
        let mut results = Vec::new();
        for (key, from) in self.from_files.iter_mut().filter(|(_, from)| from.files.iter().any(|(file, _)| changed(file))) {
            let (value, read) = FromFiles::read(from.content.clone());
            // Why another version cannot be used is news also where it is for the same reason.
            if is_another_version(&read.files, &from.files) {
                self.unusable.remove(key);
            }
            // What cannot be used is not read again either until it changes.
            *from = read;
            let version = self.values.get(key).map(|known| Arc::clone(&known.version)).unwrap_or_default();
            let kept = |value| Kept { known: KnownSecret::now(value, version), from_files: Some(from.clone()) };
            results.push((key.clone(), value.map(kept)));
        }
        results
    }
}
