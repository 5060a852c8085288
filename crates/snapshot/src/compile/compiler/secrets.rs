//! Secrets: taken, made from the workload's identity, read from files, and put into what uses them.
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use lateen_core::file_stamp::FileStamp;
use lateen_identity::WorkloadSecrets;

use super::entry::{decode, same_name};
use super::{Compiler, Rejected, SecretProto, Update};
use crate::compile::invalid::{Invalid, Result};
use crate::compile::secret::{Kept, KnownSecret, SecretKey, SecretKind, Unusable};
use crate::compile::source::SecretSource;
use crate::compile::tls::Waiting;

/// What came of a secret in the TLS configurations that use it.
struct Refreshed {
    /// The last that could not be made.
    result: Result<()>,
    /// One at least could.
    is_of_use: bool,
    /// One that could not had been made before.
    was_of_use: bool,
}

impl Compiler {
    pub(super) fn take_secret(&mut self, update: &Update, source: &SecretSource) -> Result<()> {
        let proto: SecretProto = decode(&update.body)?;
        same_name(&proto.name, &update.name)?;
        let key = SecretKey { source: source.clone(), name: update.name.as_str().into() };
        // Where nothing waits for it, it goes into what uses it, and all else is as it was.
        self.settled &= self.wanted.secrets.contains(&key);
        self.put_secret(&key, Kept::of(proto, update.version.as_str().into())?)
    }

    /// Puts a secret to use. One that comes again unchanged changes nothing: peers resume their sessions (Envoy `SdsApi`). One that
    /// is of no use where the one before was is not kept: what comes next would be put together with it, and be of no use either.
    fn put_secret(&mut self, key: &SecretKey, secret: Kept) -> Result<()> {
        let kind = secret.kind();
        let taken_for: Vec<SecretKind> = self.all_tls().filter_map(|w| w.takes(key)).collect();
        if let [other, ..] = taken_for[..]
            && !taken_for.contains(&kind)
        {
            return Err(Invalid::field(kind.field(), format!("is of no use: the secret is wanted as {}", other.field())));
        }
        let before = self.secrets.put(key, secret);
        if before.as_ref().is_some_and(|before| self.secrets.is_in_use_as(key, before)) {
            self.secrets.note_in_use(key);
            return Ok(());
        }
        let Refreshed { result, is_of_use, was_of_use } = self.refresh_tls(key);
        if let Some(before) = before.filter(|_| was_of_use && !is_of_use) {
            self.secrets.put(key, before);
        } else if result.is_ok() {
            self.secrets.note_in_use(key);
        }
        result
    }

    /// Makes every TLS configuration again that uses the secret. One that fails keeps its last.
    fn refresh_tls(&self, key: &SecretKey) -> Refreshed {
        let mut refreshed = Refreshed { result: Ok(()), is_of_use: false, was_of_use: false };
        for waiting in self.all_tls().filter(|w| w.needs(key)) {
            match waiting.refresh(&self.secrets) {
                Ok(made) => refreshed.is_of_use |= made,
                Err(invalid) => {
                    refreshed.was_of_use |= waiting.is_ready();
                    refreshed.result = Err(invalid);
                }
            }
        }
        refreshed
    }

    pub(super) fn all_tls(&self) -> impl Iterator<Item = &Waiting> {
        self.tls_since().map(|(waiting, _)| waiting)
    }

    /// Each with when the resource came that has it.
    fn tls_since(&self) -> impl Iterator<Item = (&Waiting, SystemTime)> {
        let listeners = self.listeners.values().flat_map(|e| e.versions.all()).map(|v| (&v.value.uses, &v.record));
        let clusters = self.clusters.values().flat_map(|e| e.versions.all()).map(|v| (&v.value.uses, &v.record));
        let all = listeners.chain(clusters).flat_map(|(uses, record)| uses.tls.iter().map(|waiting| (waiting, record.updated)));
        all.filter(|(waiting, _)| waiting.is_alive())
    }

    /// The workload's own certificate and roots, as secrets `default` and `ROOTCA` of `source`.
    ///
    /// # Errors
    /// When a TLS configuration cannot be made with them; the others are in use.
    pub fn set_identity(&mut self, source: &SecretSource, identity: &WorkloadSecrets, now: Instant) -> std::result::Result<(), Invalid> {
        self.settled = false;
        self.secrets.is_own(source);
        let key = |name: &str| SecretKey { source: source.clone(), name: name.into() };
        let results = Kept::of_identity(identity).map(|(name, secret)| self.put_secret(&key(name), secret));
        self.settle(now);
        results.into_iter().collect()
    }

    /// Secrets of the workload's own agent: of those whose names are of files, the files are read, and again when they change or
    /// come to be there (Istio `security/pkg/nodeagent/cache/secretcache.go`). Returns those that failed, which are waited for.
    pub fn read_files(&mut self, source: &SecretSource, names: &[Arc<str>], now: Instant) -> Vec<Rejected> {
        let keys = names.iter().map(|name| SecretKey { source: source.clone(), name: Arc::clone(name) });
        let read: Vec<_> = keys.filter_map(|key| self.secrets.read_named(&key).map(|read| (key, read))).collect();
        self.put_read(read, now)
    }

    /// The files that secrets are read from, as they were then.
    pub fn files(&self) -> BTreeSet<(PathBuf, FileStamp)> {
        self.secrets.files().cloned().collect()
    }

    /// Reads secrets in changed files again. Returns those that failed, and not as before; they keep
    /// their last value.
    pub fn reload_files(&mut self, changed: impl Fn(&Path) -> bool, now: Instant) -> Vec<Rejected> {
        let read = self.secrets.reload(changed);
        self.put_read(read, now)
    }

    fn put_read(&mut self, read: Vec<(SecretKey, Result<Kept>)>, now: Instant) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        let mut is_news = false;
        for (key, read) in read {
            is_news |= read.is_ok();
            // Told once of each version: where reading itself fails, it is tried again and again.
            if let Err(invalid) = read.and_then(|secret| self.put_secret(&key, secret))
                && self.secrets.note_unusable(&key, &invalid)
            {
                rejected.push(Rejected { name: key.name.to_string(), reason: invalid.to_string() });
            }
        }
        if is_news || !rejected.is_empty() {
            self.settled = false;
            self.settle(now);
        }
        rejected
    }

    /// Why the files that one of these is read from cannot be used, if they cannot.
    pub(super) fn unusable<'a>(&self, mut tls: impl Iterator<Item = &'a Waiting>) -> Option<&Unusable> {
        tls.find_map(|waiting| waiting.secrets().find_map(|key| self.secrets.unusable(key)))
    }

    /// The secrets known, for the admin pages.
    pub fn secrets(&self) -> impl Iterator<Item = (&SecretKey, &KnownSecret)> {
        self.secrets.all()
    }

    /// The secrets that have not arrived, each with when the first resource came that is to have it, for the admin pages.
    pub fn awaited_secrets(&self) -> BTreeMap<&SecretKey, SystemTime> {
        let mut awaited = BTreeMap::new();
        for (waiting, since) in self.tls_since() {
            for key in waiting.secrets().filter(|key| !self.secrets.knows(key)) {
                let first = awaited.entry(key).or_insert(since);
                *first = since.min(*first);
            }
        }
        awaited
    }
}
