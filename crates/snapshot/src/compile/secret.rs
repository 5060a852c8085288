//! Secrets: certificates and validation contexts by name, and the files they were read from.
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use lateen_identity::tls::params::{certificate_pin, key_pin};
use lateen_identity::tls::{ClientAuth, SanKind, SanMatcher, Trust, Verification};
use lateen_identity::{PrivateKey, WorkloadSecrets, pem};
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::extensions::transport_sockets::tls::v3 as proto;
use proto::certificate_validation_context::TrustChainVerification;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};

use super::common::data;
use super::file_stamp::FileStamp;
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use super::source::SecretSource;
use super::tls::{Given, san, san_of};

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

/// What is demanded of a peer, as one message says it.
#[derive(Clone, Debug, Default)]
pub struct Validation {
    roots: Option<Vec<CertificateDer<'static>>>,
    sans: Vec<SanMatcher>,
    key_pins: Vec<[u8; 32]>,
    certificate_pins: Vec<[u8; 32]>,
    revocation_lists: Vec<CertificateRevocationListDer<'static>>,
    leaf_only: bool,
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
            }
            all.sans.extend(part.sans.iter().cloned());
            all.key_pins.extend(&part.key_pins);
            all.certificate_pins.extend(&part.certificate_pins);
            all.revocation_lists.extend(part.revocation_lists.iter().cloned());
            all.leaf_only |= part.leaf_only;
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
        let trust = match self.roots {
            Some(roots) if !self.accept_untrusted => Trust::Roots(roots),
            _ => Trust::Anyone,
        };
        // Names without roots prove nothing: making the configuration then fails, as Envoy's does.
        Verification {
            trust,
            san_matchers: self.sans,
            key_pins: self.key_pins,
            certificate_pins: self.certificate_pins,
            revocation_lists: self.revocation_lists,
            revocation_leaf_only: self.leaf_only,
            check_host,
        }
    }
}

/// What a name stands for at the moment.
#[derive(Clone, Debug)]
pub enum SecretValue {
    Certificate(Arc<Certificate>),
    Validation(Arc<Validation>),
}

/// A secret that is known, and since when.
#[derive(Debug)]
pub struct KnownSecret {
    pub value: SecretValue,
    /// Empty for one that nobody numbered.
    pub version: Arc<str>,
    pub updated: SystemTime,
}

impl KnownSecret {
    fn now(value: SecretValue, version: Arc<str>) -> Self {
        Self { value, version, updated: SystemTime::now() }
    }
}

/// All secrets known, and those that were read from files and can be read again.
#[derive(Debug, Default)]
pub(crate) struct Secrets {
    values: HashMap<SecretKey, KnownSecret>,
    from_files: HashMap<SecretKey, FromFiles>,
    /// Contents in files that TLS contexts brought so far: the number of one that is gone is never that of another.
    numbered: u64,
    /// Where the workload's own identity is.
    identities: BTreeSet<SecretSource>,
}

/// A secret, and the files that it came from, if it did.
#[derive(Debug)]
pub(crate) struct Kept {
    known: KnownSecret,
    from_files: Option<FromFiles>,
}

impl Kept {
    /// Of a message, whose files are read.
    pub(crate) fn of(secret: proto::Secret, version: Arc<str>) -> Result<Self> {
        let (value, files) = open(secret.clone())?;
        Ok(Self { known: KnownSecret::now(value, version), from_files: (!files.is_empty()).then_some(FromFiles { secret, files }) })
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
#[derive(Debug)]
struct FromFiles {
    secret: proto::Secret,
    files: Vec<ReadFile>,
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
        let unasked = |source: &SecretSource| *source == SecretSource::Static || self.identities.contains(source);
        let keep = |key: &SecretKey| unasked(&key.source) || wanted(key);
        self.values.retain(|key, _| keep(key));
        self.from_files.retain(|key, _| keep(key));
    }

    pub(crate) fn remove(&mut self, key: &SecretKey) {
        self.values.remove(key);
        self.from_files.remove(key);
    }

    /// Keeps a secret; back comes the one before.
    pub(crate) fn put(&mut self, key: &SecretKey, secret: Kept) -> Option<Kept> {
        let files_before = match secret.from_files {
            Some(from_files) => self.from_files.insert(key.clone(), from_files),
            None => self.from_files.remove(key),
        };
        let known = self.values.insert(key.clone(), secret.known)?;
        Some(Kept { known, from_files: files_before })
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
        let (value, files) = open(secret.clone()).map_err(Invalid::without_first_segment)?;
        if files.is_empty() {
            return pick(value).map(Given::Inline).ok_or_else(|| Invalid::new("is of the wrong kind"));
        }
        let known = self.from_files.iter().find(|(k, f)| matches!(k.source, SecretSource::Files) && f.secret == secret);
        let key = match known {
            Some((key, _)) => key.clone(),
            None => {
                let names: Vec<String> = files.iter().map(|(file, _)| file.display().to_string()).collect();
                let key = SecretKey { source: SecretSource::Files, name: format!("{}#{}", names.join(","), self.numbered).into() };
                self.numbered += 1;
                self.from_files.insert(key.clone(), FromFiles { secret, files });
                key
            }
        };
        self.values.insert(key.clone(), KnownSecret::now(value, Arc::default()));
        Ok(Given::Discovered(key))
    }

    /// Every file that a secret was read from, as it was then.
    pub(crate) fn files(&self) -> impl Iterator<Item = &ReadFile> {
        self.from_files.values().flat_map(|from| &from.files)
    }

    /// Reads the secrets in these files again.
    pub(crate) fn reload(&mut self, changed: impl Fn(&Path) -> bool) -> Vec<(SecretKey, Result<Kept>)> {
        let mut results = Vec::new();
        for (key, from) in self.from_files.iter_mut().filter(|(_, from)| from.files.iter().any(|(file, _)| changed(file))) {
            // What cannot be used is not read again either until it changes.
            from.files.iter_mut().for_each(|(file, stamp)| *stamp = FileStamp::of(file));
            let version = self.values.get(key).map(|known| Arc::clone(&known.version)).unwrap_or_default();
            results.push((key.clone(), Kept::of(from.secret.clone(), version)));
        }
        results
    }
}

/// What a secret holds, and the files that it came from.
fn open(secret: proto::Secret) -> Result<(SecretValue, Vec<ReadFile>)> {
    let mut files = Vec::new();
    let value = match secret.r#type {
        Some(proto::secret::Type::TlsCertificate(c)) => {
            SecretValue::Certificate(Arc::new(certificate(c, &mut files).within("tls_certificate")?))
        }
        Some(proto::secret::Type::ValidationContext(v)) => {
            SecretValue::Validation(Arc::new(validation(v, &mut files).within("validation_context")?))
        }
        Some(proto::secret::Type::SessionTicketKeys(_)) => return Err(Invalid::unsupported("session_ticket_keys")),
        Some(proto::secret::Type::GenericSecret(_)) => return Err(Invalid::unsupported("generic_secret")),
        None => return Err(Invalid::new("is empty; give tls_certificate or validation_context")),
    };
    Ok((value, files))
}

/// The bytes of a source, remembering a file.
fn read(source: Option<core::DataSource>, files: &mut Vec<ReadFile>, field: &str) -> Result<Vec<u8>> {
    let source = source.ok_or_else(|| Invalid::new("is missing")).within(field)?;
    if let Some(core::data_source::Specifier::Filename(name)) = &source.specifier {
        let path = PathBuf::from(name);
        files.push((path.clone(), FileStamp::of(&path)));
    }
    data(source).within(field)
}

fn certificate(value: proto::TlsCertificate, files: &mut Vec<ReadFile>) -> Result<Certificate> {
    let proto::TlsCertificate {
        certificate_chain,
        private_key,
        pkcs12,
        watched_directory,
        private_key_provider,
        password,
        ocsp_staple,
        signed_certificate_timestamp,
        tls_params,
    } = value;
    harmless!(watched_directory, signed_certificate_timestamp);
    refuse!(pkcs12, private_key_provider, password, ocsp_staple, tls_params);
    let chain = read(certificate_chain, files, "certificate_chain")?;
    let key = read(private_key, files, "private_key")?;
    let chain = pem::certificates(&chain, "certificate_chain").map_err(|e| Invalid::new(e.to_string()))?;
    let key = PrivateKey::from_pem(&key, "private_key").map_err(|e| Invalid::new(e.to_string()))?;
    let key = lateen_identity::secrets::certified_key(chain, &key).map_err(|e| Invalid::new(e.to_string()))?;
    Ok(Certificate { key: Arc::new(key) })
}

fn validation(value: proto::CertificateValidationContext, files: &mut Vec<ReadFile>) -> Result<Validation> {
    let proto::CertificateValidationContext {
        trusted_ca,
        ca_certificate_provider_instance,
        system_root_certs,
        watched_directory,
        verify_certificate_spki,
        verify_certificate_hash,
        match_typed_subject_alt_names,
        match_subject_alt_names,
        require_signed_certificate_timestamp,
        crl,
        allow_expired_certificate,
        trust_chain_verification,
        custom_validator_config,
        only_verify_leaf_cert_crl,
        max_verify_depth,
        suppress_client_ca_list,
    } = value;
    harmless!(watched_directory, suppress_client_ca_list);
    refuse!(ca_certificate_provider_instance, require_signed_certificate_timestamp, allow_expired_certificate, max_verify_depth);
    refuse!(system_root_certs);
    if let Some(config) = &custom_validator_config {
        // Istio's SPIFFE validator maps trust domains to roots; with one of them the plain check is not the same.
        return Err(Invalid::field("custom_validator_config", format!("{} is not supported", config.name)));
    }
    let roots = trusted_ca.map(|ca| read(Some(ca), files, "trusted_ca")).transpose()?;
    let roots = roots.map(|r| pem::certificates(&r, "trusted_ca").map_err(|e| Invalid::new(e.to_string()))).transpose()?;
    let lists = crl.map(|c| read(Some(c), files, "crl")).transpose()?;
    let lists = lists.map(|l| pem::revocation_lists(&l, "crl").map_err(|e| Invalid::new(e.to_string()))).transpose()?;
    let mut sans = Vec::new();
    for (index, matcher) in match_typed_subject_alt_names.into_iter().enumerate() {
        sans.push(san(matcher).within_item("match_typed_subject_alt_names", index)?);
    }
    for (index, matcher) in match_subject_alt_names.into_iter().enumerate() {
        // The older form looks at every kind of name.
        for kind in [SanKind::Uri, SanKind::Dns, SanKind::Email, SanKind::Ip] {
            sans.push(san_of(kind, matcher.clone()).within_item("match_subject_alt_names", index)?);
        }
    }
    let pins =
        |texts: Vec<String>, read: fn(&str) -> std::result::Result<[u8; 32], lateen_identity::tls::InvalidTlsParams>, field: &str| {
            texts
                .iter()
                .enumerate()
                .map(|(i, t)| read(t).map_err(|e| Invalid::new(e.to_string())).within_item(field, i))
                .collect::<Result<Vec<_>>>()
        };
    let accept_untrusted = trust_chain_verification == TrustChainVerification::AcceptUntrusted as i32;
    Ok(Validation {
        roots,
        sans,
        key_pins: pins(verify_certificate_spki, key_pin, "verify_certificate_spki")?,
        certificate_pins: pins(verify_certificate_hash, certificate_pin, "verify_certificate_hash")?,
        revocation_lists: lists.unwrap_or_default(),
        leaf_only: only_verify_leaf_cert_crl,
        accept_untrusted,
    })
}
