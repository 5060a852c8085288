//! What a stream's client is served: the workload's identity, and what files hold that the names it asks for say.
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use bytes::Bytes;
use lateen_core::file_stamp::{FileStamp, is_another_version};
use lateen_proto::envoy::config::core::v3::{DataSource, data_source};
use lateen_proto::envoy::extensions::transport_sockets::tls::v3::{CertificateValidationContext, Secret, TlsCertificate, secret};

use super::{DEFAULT_SECRET, ROOT_SECRET};
use crate::file_secret::{Content, FileSecret, InvalidFileSecret, Reading};
use crate::pem;
use crate::secrets::WorkloadSecrets;
use crate::tls::peer::sha256_hex;

/// What there is to serve at the moment.
#[derive(Clone, Copy, Debug)]
pub struct Served<'a> {
    /// `None` until there is one.
    pub identity: Option<&'a WorkloadSecrets>,
    pub files: &'a Files,
}

/// A secret in the form in which it is sent.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    /// Changes with the content, and says nothing about a key.
    pub(super) version: String,
    pub(super) secret: Secret,
}

impl Served<'_> {
    pub(super) fn secret(&self, name: &str) -> Option<Sent> {
        match name {
            DEFAULT_SECRET => self.identity.map(|identity| {
                let content = certificate(identity.chain_pem(), identity.key().to_pem());
                sent(name, identity.leaf().fingerprint.clone(), content)
            }),
            // Its own version: a new leaf must not make proxies rebuild their trust.
            ROOT_SECRET => self.identity.map(|identity| trust(name, identity.roots_pem())),
            _ => self.files.0.get(name)?.last_good.clone(),
        }
    }
}

fn sent(name: &str, version: String, content: secret::Type) -> Sent {
    Sent { version, secret: Secret { name: name.to_owned(), r#type: Some(content) } }
}

fn inline(text: String) -> Option<DataSource> {
    Some(DataSource { specifier: Some(data_source::Specifier::InlineBytes(Bytes::from(text))), ..DataSource::default() })
}

fn certificate(chain: String, key: String) -> secret::Type {
    let content = TlsCertificate { certificate_chain: inline(chain), private_key: inline(key), ..TlsCertificate::default() };
    secret::Type::TlsCertificate(content)
}

fn trust(name: &str, roots: String) -> Sent {
    let version = sha256_hex(roots.as_bytes());
    sent(name, version, secret::Type::ValidationContext(CertificateValidationContext { trusted_ca: inline(roots), ..Default::default() }))
}

/// The secrets in files that a client asked for, by name.
#[derive(Debug, Default)]
pub struct Files(BTreeMap<String, Watched>);

#[derive(Debug)]
struct Watched {
    secret: FileSecret,
    /// The files as they were when they were read last.
    read: Vec<(PathBuf, FileStamp)>,
    last_good: Option<Sent>,
    /// Why they could not be used then.
    unusable: Option<InvalidFileSecret>,
}

impl Files {
    /// Reads what these names newly say, and forgets the others. Names that are not of files are no matter.
    pub fn follow(&mut self, names: &BTreeSet<String>) {
        self.0.retain(|name, _| names.contains(name));
        for name in names.iter().filter(|name| !self.0.contains_key(*name)).cloned().collect::<Vec<_>>() {
            match FileSecret::named(&name) {
                None => {}
                Some(Err(error)) => tracing::warn!("a secret cannot be served: {error}"),
                Some(Ok(secret)) => {
                    let mut watched = Watched { secret, read: Vec::new(), last_good: None, unusable: None };
                    watched.read(&name);
                    self.0.insert(name, watched);
                }
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads again what has changed, or was not there before, or could not be read. What goes, or cannot be used, leaves what was read last.
    pub fn look_again(&mut self) {
        for (name, watched) in &mut self.0 {
            if watched.read.iter().any(|(path, then)| then.is_outdated_by(&FileStamp::of(path))) {
                watched.read(name);
            }
        }
    }

    /// Why a secret cannot be served as its files are.
    pub fn unusable(&self, name: &str) -> Option<&InvalidFileSecret> {
        self.0.get(name)?.unusable.as_ref()
    }
}

impl Watched {
    fn read(&mut self, name: &str) {
        let Reading { content, files } = self.secret.read();
        if is_another_version(&files, &self.read) {
            self.unusable = None;
        }
        self.read = files;
        match content {
            Ok(content) => {
                self.unusable = None;
                self.last_good = Some(resource(name, &content));
            }
            // Told once of each version: where reading itself fails, it is tried again and again.
            Err(error) if self.unusable.as_ref() == Some(&error) => {}
            Err(error) => {
                let last_is_served = self.last_good.is_some();
                tracing::warn!(last_is_served, "a secret in files cannot be used: {error}");
                self.unusable = Some(error);
            }
        }
    }
}

fn resource(name: &str, content: &Content) -> Sent {
    match content {
        Content::Roots(roots) => trust(name, pem::encode_certificates(roots)),
        Content::Certificate(chain, key) => {
            let chain = pem::encode_certificates(chain);
            sent(name, sha256_hex(chain.as_bytes()), certificate(chain, key.to_pem()))
        }
    }
}
