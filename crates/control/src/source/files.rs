//! Folders of YAML and JSON, watched.
//!
//! An editor may save in several writes, a tool may delete and create, a user may save a mistake.
//! None of that may take away what works: as long as a file has errors, the resources it held when
//! it was last in order stay in force unless the file still defines them itself. A folder whose files
//! change together ([`lateen_core::generation`], as Kubernetes mounts a ConfigMap) is read as of one moment.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::future::Future;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use lateen_core::generation;
use lateen_model::load::is_configuration;
use lateen_model::yaml::Position;
use lateen_model::{AnyResource, Diagnostic, Limits, ResourceKey, ResourceSet, Severity, parse_in};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use super::{Source, State};

/// How often file times and sizes are compared when the system reports changes by itself: only a
/// safeguard against reports that got lost.
const SAFEGUARD: Duration = Duration::from_secs(15);
/// The same when it does not (network file systems, exhausted inotify watches).
const POLLING: Duration = Duration::from_secs(1);
/// A file that became empty is believed after this long: many programs empty a file before they write it.
const EMPTY_GRACE: Duration = Duration::from_secs(1);
/// Files read and folders descended at most; more is a wrong folder, not a mesh.
const MAX_FILES: usize = 20_000;
const MAX_DEPTH: usize = 16;
/// A folder that is replaced while it is read is read again so often at once, and then after a pause.
const MAX_LOOKS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(10);

/// A source that reads files and folders.
pub struct Files {
    paths: Vec<PathBuf>,
    namespace: String,
    limits: Limits,
    files: BTreeMap<PathBuf, File>,
    dirty: Arc<Notify>,
    watcher: Option<RecommendedWatcher>,
    /// What the last look saw, to notice changes nobody reports.
    stamps: HashMap<PathBuf, Stamp>,
    /// A load has to follow at this time even if nothing changes.
    again_at: Option<Instant>,
}

/// Enough to see that a file changed without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    size: u64,
}

/// A file that was found.
#[derive(Clone, Debug)]
struct Found {
    stamp: Stamp,
    /// Where it stands, which is not where it is named in a folder of generations.
    at: PathBuf,
}

/// What a look at the folders shows.
#[derive(Default)]
struct Listing {
    /// By the name that people know.
    files: BTreeMap<PathBuf, Found>,
    unreadable: Vec<(PathBuf, std::io::Error)>,
    /// Folders of generations, each with the one that was listed.
    generations: Vec<(PathBuf, PathBuf)>,
}

#[derive(Default)]
struct File {
    stamp: Option<Stamp>,
    /// What the file says now, as far as it can be read.
    fresh: BTreeMap<ResourceKey, AnyResource>,
    /// What it said before its present errors, and does not say any more.
    kept: BTreeMap<ResourceKey, AnyResource>,
    diagnostics: Vec<Diagnostic>,
    empty_since: Option<Instant>,
}

impl Files {
    /// Watches `paths`, files or folders. Resources without a namespace go to `namespace`.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>, namespace: impl Into<String>, limits: Limits) -> Self {
        let paths: Vec<PathBuf> = paths.into_iter().collect();
        let dirty = Arc::new(Notify::new());
        let watcher = watch(&paths, dirty.clone());
        Self { paths, namespace: namespace.into(), limits, files: BTreeMap::new(), dirty, watcher, stamps: HashMap::new(), again_at: None }
    }

    /// Whether any file differs from what the last load saw.
    fn differs(&self) -> bool {
        let found = self.list().files;
        found.len() != self.stamps.len() || found.iter().any(|(path, file)| self.stamps.get(path) != Some(&file.stamp))
    }

    /// Every configuration file below the paths.
    fn list(&self) -> Listing {
        let mut listing = Listing::default();
        for path in &self.paths {
            listing.descend(path, path, 0);
        }
        listing
    }

    fn read(&mut self, path: &Path, Found { stamp, at }: &Found) {
        let name: Arc<str> = path.to_string_lossy().into();
        let file = self.files.entry(path.to_owned()).or_default();
        let bytes = match read_bounded(at, self.limits.max_file_bytes) {
            Ok(bytes) => bytes,
            Err(error) => return file.failed(unreadable_file(&name, &error)),
        };
        if bytes.is_empty() && !(file.fresh.is_empty() && file.kept.is_empty()) {
            let since = *file.empty_since.get_or_insert_with(Instant::now);
            if since.elapsed() < EMPTY_GRACE {
                self.again_at = Some(since + EMPTY_GRACE);
                return;
            }
        }
        file.empty_since = None;
        file.stamp = Some(*stamp);
        let parsed = parse_in(&name, &bytes, &self.namespace, &self.limits);
        let mut diagnostics = parsed.diagnostics;
        let mut fresh = BTreeMap::new();
        for resource in parsed.resources {
            let key = resource.key();
            if let Some(first) = fresh.insert(key.clone(), resource) {
                // The first of two stays, as everywhere; put it back and report the second.
                if let Some(second) = fresh.insert(key, first.clone()) {
                    let message = format!("is defined already at line {} of this file; this one is left out", first.origin().line());
                    diagnostics.push(second.report(Severity::Error, "", message).with_suggestion("rename or remove one of them"));
                }
            }
        }
        file.update(fresh, diagnostics);
    }
}

impl File {
    /// Takes over what was read. With errors in the file, what it held before and does not define
    /// any more stays in force.
    fn update(&mut self, fresh: BTreeMap<ResourceKey, AnyResource>, diagnostics: Vec<Diagnostic>) {
        let mut before = std::mem::take(&mut self.kept);
        before.append(&mut self.fresh);
        if diagnostics.iter().any(Diagnostic::is_error) {
            before.retain(|key, _| !fresh.contains_key(key));
            self.kept = before;
        }
        self.fresh = fresh;
        self.diagnostics = diagnostics;
    }

    fn failed(&mut self, diagnostic: Diagnostic) {
        self.stamp = None;
        self.diagnostics = vec![diagnostic];
    }
}

impl Source for Files {
    fn name(&self) -> String {
        let paths: Vec<String> = self.paths.iter().map(|p| p.display().to_string()).collect();
        format!("files {}", paths.join(", "))
    }

    fn changed(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            loop {
                let look = if self.watcher.is_some() { SAFEGUARD } else { POLLING };
                let wait = self.again_at.map_or(look, |at| at.saturating_duration_since(Instant::now()).min(look));
                tokio::select! {
                    () = self.dirty.notified() => return,
                    () = tokio::time::sleep(wait) => {
                        let due = self.again_at.is_some_and(|at| at <= Instant::now());
                        if due {
                            // Told once: a caller that gathers changes would never see the end of them.
                            self.again_at = None;
                        }
                        if due || self.differs() {
                            return;
                        }
                    }
                }
            }
        })
    }

    fn load(&mut self) -> Option<State> {
        if self.watcher.is_none() {
            // The folder may not have existed before.
            self.watcher = watch(&self.paths, self.dirty.clone());
        }
        self.again_at = None;
        for look in 1..=MAX_LOOKS {
            let listing = self.list();
            let diagnostics = self.take(&listing);
            // A writer that never rests must not keep its folder from ever being read.
            if !listing.has_moved() || (look == MAX_LOOKS && !listing.is_gone()) {
                return Some(self.state(diagnostics));
            }
        }
        self.again_at = Some(Instant::now() + PAUSE);
        None
    }
}

impl Files {
    /// Reads what is listed and forgets what is not; returns what is wrong with the listing itself.
    fn take(&mut self, listing: &Listing) -> Vec<Diagnostic> {
        let Listing { files: found, unreadable, .. } = listing;
        let mut diagnostics = Vec::new();
        if found.len() > MAX_FILES {
            let name: Arc<str> = self.name().into();
            let message = format!("{} files; only the first {MAX_FILES} are read", found.len());
            diagnostics.push(Diagnostic::new(Severity::Error, &name, Position::default(), message));
        }
        for (path, error) in unreadable {
            diagnostics.push(unreadable_file(&path.to_string_lossy().into(), error));
        }
        // A folder that cannot be listed has not lost its files: they stay as they were.
        self.files.retain(|path, _| found.contains_key(path) || unreadable.iter().any(|(gone, _)| path.starts_with(gone)));
        for (path, file) in found.iter().take(MAX_FILES) {
            // Equal time and size can hide a change made within the clock's grain: recent files are read again.
            let settled = file.stamp.modified.and_then(|m| m.elapsed().ok()).is_some_and(|age| age > Duration::from_secs(2));
            let known = self.files.get(path).is_some_and(|f| f.stamp == Some(file.stamp));
            if !(known && settled) {
                self.read(path, file);
            }
        }
        self.stamps = found.iter().map(|(path, file)| (path.clone(), file.stamp)).collect();
        diagnostics
    }
}

impl Files {
    fn state(&self, mut diagnostics: Vec<Diagnostic>) -> State {
        let mut resources = ResourceSet::new();
        let mut duplicates = Vec::new();
        for file in self.files.values() {
            duplicates.extend(file.fresh.values().filter_map(|r| resources.insert_new(r.clone()).err()).map(|d| *d));
            diagnostics.extend(file.diagnostics.iter().cloned());
        }
        // What only survives gives way to what any file says now, silently: it may have moved there.
        for (path, file) in &self.files {
            let mut names = BTreeSet::new();
            for resource in file.kept.values() {
                if resources.insert_new(resource.clone()).is_ok() {
                    names.insert(resource.id().to_string());
                }
            }
            if !names.is_empty() {
                let list: Vec<String> = names.into_iter().collect();
                let message = format!("still in force from before the file had errors: {}", list.join(", "));
                let name: Arc<str> = path.to_string_lossy().into();
                diagnostics.push(Diagnostic::new(Severity::Warning, &name, Position::default(), message));
            }
        }
        diagnostics.extend(duplicates);
        State { resources, diagnostics, ..State::default() }
    }
}

/// Asks the system to report changes; `None` when it will not.
fn watch(paths: &[PathBuf], dirty: Arc<Notify>) -> Option<RecommendedWatcher> {
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reads are reported too, and our own would keep us busy for ever.
        let of_no_matter = |e: &notify::Event| e.kind.is_access() || (!e.paths.is_empty() && e.paths.iter().all(|p| is_preparation(p)));
        if !event.as_ref().is_ok_and(of_no_matter) {
            dirty.notify_one();
        }
    });
    let mut watcher = watcher.inspect_err(|error| tracing::warn!(%error, "files are polled instead of watched")).ok()?;
    for path in paths {
        // A single file is watched through its folder: an atomic rename replaces the file itself.
        let (target, mode) = match path.parent() {
            Some(folder) if path.is_file() && !folder.as_os_str().is_empty() => (folder, RecursiveMode::NonRecursive),
            _ if path.is_file() => (Path::new("."), RecursiveMode::NonRecursive),
            _ => (path.as_path(), RecursiveMode::Recursive),
        };
        if let Err(error) = watcher.watch(target, mode) {
            tracing::warn!(%error, path = %target.display(), "files are polled instead of watched");
            return None;
        }
    }
    Some(watcher)
}

impl Listing {
    /// Adds what is at `at`, which people know as `path`; at depth 0 what the user named.
    fn descend(&mut self, path: &Path, at: &Path, depth: usize) {
        let metadata = match fs::metadata(at) {
            Ok(metadata) => metadata,
            // Deleted between listing and looking; only a path the user named must exist.
            Err(error) if depth > 0 && error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => return self.unreadable.push((path.to_owned(), error)),
        };
        if metadata.is_file() {
            if depth == 0 || is_configuration(path) {
                let stamp = Stamp { modified: metadata.modified().ok(), size: metadata.len() };
                self.files.insert(path.to_owned(), Found { stamp, at: at.to_owned() });
            }
            return;
        }
        if !metadata.is_dir() || depth >= MAX_DEPTH || self.files.len() > MAX_FILES {
            return;
        }
        let generation = generation::current(at);
        let entries = match fs::read_dir(generation.as_deref().unwrap_or(at)) {
            Ok(entries) => entries.filter_map(Result::ok).collect(),
            // Replaced meanwhile: another look follows.
            Err(error) if generation.is_some() && error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return self.unreadable.push((path.to_owned(), error)),
        };
        self.generations.extend(generation.map(|generation| (at.to_owned(), generation)));
        for entry in entries {
            if !entry.file_name().to_string_lossy().starts_with('.') {
                self.descend(&path.join(entry.file_name()), &entry.path(), depth + 1);
            }
        }
    }

    /// Whether a folder was replaced since it was listed: kubelet then removes what was listed, file by file.
    fn has_moved(&self) -> bool {
        self.generations.iter().any(|(folder, listed)| generation::current(folder).as_ref() != Some(listed))
    }

    /// Whether a generation was removed since it was listed, so that not all of it may have been read.
    fn is_gone(&self) -> bool {
        self.generations.iter().any(|(_, listed)| !listed.exists())
    }
}

/// Whether a path lies in a generation: what happens there counts when the link to it changes.
fn is_preparation(path: &Path) -> bool {
    let mut names = path.components().filter_map(|c| if let Component::Normal(name) = c { name.to_str() } else { None });
    names.any(|name| name.starts_with("..") && name != generation::LINK)
}

/// One byte beyond the limit is enough for the parser to refuse the file with its own message.
fn read_bounded(path: &Path, max: usize) -> std::io::Result<Vec<u8>> {
    let file = fs::File::open(path)?;
    let size = file.metadata()?.len();
    if size > max as u64 {
        return Err(std::io::Error::other(format!("it has {size} bytes and at most {max} are read; split it into smaller files")));
    }
    let mut bytes = Vec::new();
    file.take(max as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn unreadable_file(name: &Arc<str>, error: &std::io::Error) -> Diagnostic {
    Diagnostic::new(Severity::Error, name, Position::default(), format!("cannot be read: {error}"))
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
