//! Files that the configuration names: certificates, and discovered resources by path.
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lateen_snapshot::bootstrap::{Discovered, DiscoveredFile, DynamicSource, InvalidBootstrap};
use lateen_snapshot::compile::{FileStamp, Rejected, SecretSource, Since, Update, Wanted, file_and_name, in_file};
use lateen_xds::resource::name_inside;
use lateen_xds::types;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Main;

/// How often files are looked at. Kubernetes replaces mounted secrets by swapping a link, which events miss easily.
const INTERVAL: Duration = Duration::from_secs(1);

/// Reloads what changed.
pub(super) async fn run(main: Arc<Main>) {
    let mut discovered: HashMap<(String, &'static str), Last> = HashMap::new();
    let mut changes = main.wanted();
    let mut before = Arc::<Wanted>::default();
    loop {
        certificates(&main);
        changes.mark_unchanged();
        let wanted = main.compiler().wanted();
        let files = files(&main, &wanted);
        discovered.retain(|(path, type_url), _| files.iter().any(|file| file.path == *path && file.type_url == *type_url));
        for file in files {
            let now = FileStamp::of(Path::new(&file.path));
            let last = discovered.entry((file.path.clone(), file.type_url)).or_default();
            if !last.is_due(&now, file.is_anew(&wanted, &before)) {
                continue;
            }
            let (stamp, found) = DiscoveredFile::read(Path::new(&file.path));
            // What was written meanwhile may be half of it.
            if FileStamp::of(Path::new(&file.path)) == now {
                // Of what is in a file only that is kept that was wanted when it was read.
                file.take(&main, &wanted, found, &stamp, last);
                last.read = Some(stamp);
            }
        }
        before = wanted;
        next(&mut changes, &before).await;
    }
}

/// What is known of a file of resources.
#[derive(Default)]
struct Last {
    /// How it was when it was read.
    read: Option<FileStamp>,
    /// How it was when it was looked at last, and since when it is so.
    seen: Option<(FileStamp, Instant)>,
    /// Of the resources that it had when it could be read last.
    names: Vec<String>,
    /// Why it could not be read now.
    failure: Option<String>,
}

impl Last {
    /// Whether it is to be read now. Envoy sees only files that are moved into place; one that is written under its name is read too,
    /// but not before it is the same for a while: half of a list would take away what the other half has.
    fn is_due(&mut self, now: &FileStamp, is_anew: bool) -> bool {
        let since = match &self.seen {
            Some((seen, since)) if seen == now => *since,
            _ => Instant::now(),
        };
        self.seen = Some((now.clone(), since));
        match &self.read {
            None => true,
            Some(read) if read == now => is_anew,
            Some(read) => now.replaces(read) || since.elapsed() >= INTERVAL,
        }
    }

    /// Whether it is to be told why the file could not be read or used as it was then. Where reading itself fails it is tried again
    /// and again; another version is told of also where it is broken in the same way.
    fn is_news(&self, failure: &str, stamp: &FileStamp) -> bool {
        let is_another = stamp.is_there() && self.read.as_ref() != Some(stamp);
        is_another || self.failure.as_deref() != Some(failure)
    }
}

/// Waits until files are to be looked at again: at once where something in one came to be wanted.
async fn next(changes: &mut watch::Receiver<Arc<Wanted>>, before: &Wanted) {
    let moment = tokio::time::sleep(INTERVAL);
    tokio::pin!(moment);
    loop {
        tokio::select! {
            () = &mut moment => return,
            changed = changes.changed() => {
                let wanted = changes.borrow_and_update().clone();
                let is_in_file = |name: &Arc<str>| file_and_name(name).0.is_some();
                let mut names = wanted.routes.beside(&before.routes).chain(wanted.endpoints.beside(&before.endpoints));
                if names.any(is_in_file) {
                    return;
                }
                if changed.is_err() {
                    return moment.await;
                }
            }
        }
    }
}

fn certificates(main: &Main) {
    let read = main.compiler().files();
    let mut stamps = HashMap::new();
    let (mut changed, mut has_changed) = (BTreeSet::new(), false);
    for (path, then) in &read {
        let now = stamps.entry(path).or_insert_with(|| FileStamp::of(path));
        if then.is_outdated_by(now) {
            changed.insert(path.as_path());
        }
        has_changed |= then.is_there() && then.is_outdated_by(now);
    }
    if has_changed {
        tracing::info!(files = ?changed, "certificate files changed");
    }
    if !changed.is_empty() {
        main.reload_files(|path| changed.contains(path));
    }
}

/// A file of discovered resources.
struct File {
    path: String,
    type_url: &'static str,
    source: SecretSource,
}

/// Those that the bootstrap names, and those that something in use refers to.
fn files(main: &Main, wanted: &Wanted) -> Vec<File> {
    let mut files: Vec<File> = Vec::new();
    let mut add = |path: &str, type_url, source| {
        if !files.iter().any(|file| file.path == path && file.type_url == type_url) {
            files.push(File { path: path.to_owned(), type_url, source });
        }
    };
    // Clusters first: listeners refer to them.
    for (source, type_url) in [(&main.bootstrap.clusters, types::CLUSTER), (&main.bootstrap.listeners, types::LISTENER)] {
        if let Some(DynamicSource::Path(path)) = source {
            add(path, type_url, SecretSource::Ads);
        }
    }
    for (names, type_url) in [(&wanted.endpoints, types::ENDPOINT), (&wanted.routes, types::ROUTE)] {
        for path in names.iter().filter_map(|name| file_and_name(name).0) {
            add(path, type_url, SecretSource::Path(path.to_owned()));
        }
    }
    for key in wanted.secrets.iter() {
        if let SecretSource::Path(path) = &key.source {
            add(path, types::SECRET, key.source.clone());
        }
    }
    files
}

impl File {
    /// Whether something in it came to be wanted.
    fn is_anew(&self, wanted: &Wanted, before: &Wanted) -> bool {
        let has = |name: &Arc<str>| file_and_name(name).0 == Some(&self.path);
        match self.type_url {
            types::SECRET => wanted.secrets.beside(&before.secrets).any(|key| key.source == self.source),
            types::ROUTE => wanted.routes.beside(&before.routes).any(has),
            types::ENDPOINT => wanted.endpoints.beside(&before.endpoints).any(has),
            _ => false,
        }
    }

    /// What is wanted of it, where who waits goes on as soon as it was read (Envoy `onConfigUpdateFailed`).
    fn awaited(&self, wanted: &Wanted) -> Vec<String> {
        let of_file = |names: &Since<Arc<str>>| {
            names.iter().filter(|name| file_and_name(name).0 == Some(&self.path)).map(ToString::to_string).collect()
        };
        match self.type_url {
            types::ROUTE => of_file(&wanted.routes),
            types::ENDPOINT => of_file(&wanted.endpoints),
            types::SECRET => wanted.secrets.iter().filter(|key| key.source == self.source).map(|key| key.name.to_string()).collect(),
            _ => Vec::new(),
        }
    }

    /// What the compiler knows a resource by.
    fn name_of(&self, body: &lateen_proto::Any) -> String {
        let name = name_inside(body).unwrap_or_default();
        if matches!(self.type_url, types::ROUTE | types::ENDPOINT) { in_file(&self.path, &name) } else { name }
    }

    /// Applies its resources, and keeps their names, so that the next version can leave some out.
    fn take(&self, main: &Main, wanted: &Wanted, found: Result<DiscoveredFile, InvalidBootstrap>, stamp: &FileStamp, last: &mut Last) {
        let mut awaited = self.awaited(wanted);
        let file = match found {
            Ok(file) => file,
            Err(e) => {
                let failure = e.to_string();
                if last.is_news(&failure, stamp) {
                    tracing::error!("{failure}; what was read before stays in use");
                }
                last.failure = Some(failure);
                return main.refuse(&self.source, self.type_url, &awaited);
            }
        };
        let update =
            |found: &Discovered| Update { name: self.name_of(&found.body), version: found.version.clone(), body: found.body.clone() };
        let updates: Vec<Update> = file.resources.iter().map(update).collect();
        let names: Vec<String> = updates.iter().map(|u| u.name.clone()).collect();
        let there: HashSet<&str> = names.iter().map(String::as_str).collect();
        let removed: Vec<String> = std::mem::take(&mut last.names).into_iter().filter(|name| !there.contains(&**name)).collect();
        self.tell(&file, &names, &main.take(&self.source, self.type_url, updates, &removed));
        awaited.retain(|name| !there.contains(&**name));
        for name in &awaited {
            tracing::error!("{}: has no {} of the name `{}`", self.path, types::short_name(self.type_url), file_and_name(name).1);
        }
        if !awaited.is_empty() {
            main.refuse(&self.source, self.type_url, &awaited);
        }
        (last.names, last.failure) = (names, None);
    }

    /// Says of refused resources where in the file what is wrong stands. Of two that have one name it is the first.
    fn tell(&self, file: &DiscoveredFile, names: &[String], rejected: &[Rejected]) {
        if rejected.is_empty() {
            return;
        }
        let places: HashMap<&str, usize> = names.iter().enumerate().rev().map(|(index, name)| (file_and_name(name).1, index)).collect();
        let placed: Vec<_> = rejected.iter().filter_map(|r| Some((r, *places.get(&*r.name)?))).collect();
        let wrong: Vec<_> = placed.iter().map(|(r, index)| (*index, &*r.reason)).collect();
        for ((Rejected { name, reason }, _), line) in placed.iter().zip(file.lines_of(&wrong)) {
            let line = line.map(|line| format!("{line}:")).unwrap_or_default();
            tracing::error!("{}:{line} {name}: {reason}; what was read before stays in use", self.path);
        }
    }
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
