//! Files and folders to one set of resources.
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::diagnostic::{Diagnostic, Severity};
use crate::parse::{Parsed, Reading};
use crate::set::ResourceSet;
use crate::yaml::{Limits, Position};

/// What a set of paths gave.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    pub resources: ResourceSet,
    /// In the order of files; duplicates last.
    pub diagnostics: Vec<Diagnostic>,
    /// Every file that was read, sorted, for watching.
    pub files: Vec<PathBuf>,
}

impl Loaded {
    /// Whether anything was left out.
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }
}

/// Files that one load may read, and folders it may go down. More is a wrong folder, not a mesh.
const MAX_FILES: usize = 20_000;
const MAX_FOLDER_DEPTH: usize = 16;

/// Reads files, and folders with everything below that ends in `.yaml`, `.yml` or `.json`. Names that start with a dot
/// are left out. Resources without a namespace go to `namespace`. The rest of the folder survives any bad file.
pub fn load_paths<P: AsRef<Path>>(paths: &[P], namespace: &str, limits: &Limits) -> Loaded {
    let mut reading = Reading::new(namespace);
    let mut files = Vec::new();
    for path in paths {
        collect(path.as_ref(), 0, &mut files, &mut reading);
    }
    files.sort();
    files.dedup();
    if files.len() > MAX_FILES {
        let name: Arc<str> = paths.first().map_or("", |path| path.as_ref().to_str().unwrap_or_default()).into();
        let message = format!("{} files; only the first {MAX_FILES} are read", files.len());
        reading.report(Diagnostic::new(Severity::Error, &name, Position::default(), message));
        files.truncate(MAX_FILES);
    }
    for file in &files {
        let name: Arc<str> = Arc::from(file.to_string_lossy());
        match read_bounded(file, limits.max_file_bytes) {
            Ok(bytes) => reading.file(&name, &bytes, limits),
            Err(error) => reading.report(unreadable(&name, &error)),
        }
    }
    let parsed = reading.finish();
    let (resources, diagnostics) = gather(parsed);
    Loaded { resources, diagnostics, files }
}

/// Puts parsed resources into a set; of two with the same name the first stays and the second is reported.
pub fn gather(parsed: Parsed) -> (ResourceSet, Vec<Diagnostic>) {
    let mut resources = ResourceSet::new();
    let mut diagnostics = parsed.diagnostics;
    for resource in parsed.resources {
        if let Err(duplicate) = resources.insert_new(resource) {
            diagnostics.push(*duplicate);
        }
    }
    (resources, diagnostics)
}

fn unreadable(name: &Arc<str>, error: &std::io::Error) -> Diagnostic {
    Diagnostic::new(Severity::Error, name, Position::default(), format!("cannot be read: {error}"))
}

/// One byte beyond the limit is enough for the reader to refuse the file with its own message about the size.
fn read_bounded(path: &Path, max: usize) -> std::io::Result<Vec<u8>> {
    let file = fs::File::open(path)?;
    let size = file.metadata()?.len();
    let mut bytes = Vec::new();
    if size > max as u64 {
        return Err(std::io::Error::other(format!("it has {size} bytes and at most {max} are read; split it into smaller files")));
    }
    file.take(max as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn collect(path: &Path, depth: usize, files: &mut Vec<PathBuf>, reading: &mut Reading<'_>) {
    let report = |reading: &mut Reading<'_>, error: &std::io::Error| reading.report(unreadable(&Arc::from(path.to_string_lossy()), error));
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => return report(reading, &error),
    };
    if !metadata.is_dir() {
        // A pipe or device could block the reader or never end.
        if metadata.is_file() {
            files.push(path.to_owned());
        } else {
            report(reading, &std::io::Error::other("it is not a regular file"));
        }
        return;
    }
    if depth >= MAX_FOLDER_DEPTH {
        return report(reading, &std::io::Error::other(format!("folders are nested more than {MAX_FOLDER_DEPTH} deep")));
    }
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) => return report(reading, &error),
    };
    for entry in entries.filter_map(Result::ok) {
        let below = entry.path();
        // A link to a folder can lead back up; kubectl does not follow it either.
        if below.is_dir() && entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
            continue;
        }
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if !hidden && (below.is_dir() || is_configuration(&below)) {
            collect(&below, depth + 1, files, reading);
        }
    }
}

/// Whether a file's name says that it holds configuration.
pub fn is_configuration(path: &Path) -> bool {
    path.extension().and_then(|extension| extension.to_str()).is_some_and(|extension| matches!(extension, "yaml" | "yml" | "json"))
}
