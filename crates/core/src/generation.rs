//! A folder whose files change together: a reader sees all of a change or nothing of it.
//!
//! Each change stands in a hidden folder of its own, and the link [`LINK`] names the one that counts, as kubelet
//! writes a ConfigMap into a pod (Kubernetes, `pkg/volume/util/atomic_writer.go`). Without it a reader may see a
//! rule before what the rule refers to, and act on that.
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// The link to the files that count.
pub const LINK: &str = "..data";

/// Where the files of `folder` stand now; `None` for a folder that holds its files itself.
pub fn current(folder: &Path) -> Option<PathBuf> {
    let target = fs::read_link(folder.join(LINK)).ok()?;
    Some(folder.join(target))
}

/// The one who writes such a folder.
#[derive(Debug)]
pub struct Writer {
    folder: PathBuf,
    /// Counts up with each change; 0 before the first.
    number: u64,
    files: BTreeMap<String, String>,
}

impl Writer {
    /// Writes `folder`, which exists and belongs to this writer alone.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), number: 0, files: BTreeMap::new() }
    }

    /// Makes `files`, content by name, all that the folder holds. Says whether that changed anything.
    ///
    /// # Errors
    /// The file system's; then readers still see the files before.
    pub fn publish(&mut self, files: BTreeMap<String, String>) -> io::Result<bool> {
        if self.number > 0 && self.files == files {
            return Ok(false);
        }
        let (before, next) = (self.generation(self.number), self.generation(self.number + 1));
        remove(&next)?;
        fs::create_dir(&next)?;
        for (name, text) in &files {
            let is_same = self.files.get(name) == Some(text);
            // What did not change keeps its time of change too, and need not be read again.
            if !(is_same && fs::hard_link(before.join(name), next.join(name)).is_ok()) {
                fs::write(next.join(name), text)?;
            }
        }
        let link = self.folder.join("..new");
        remove(&link)?;
        symlink(next.file_name().unwrap_or_default(), &link)?;
        fs::rename(link, self.folder.join(LINK))?;
        self.number += 1;
        self.files = files;
        if let Err(error) = self.remove_old() {
            tracing::warn!(%error, "an old copy of {} stays", self.folder.display());
        }
        Ok(true)
    }

    /// The generation before may still be read; the one before that has been replaced for a while.
    fn remove_old(&self) -> io::Result<()> {
        let Some(old) = self.number.checked_sub(2).filter(|n| *n > 0) else { return Ok(()) };
        // In one step too: a reader must not take what is left for all there was.
        let going = self.folder.join("..going");
        remove(&going)?;
        fs::rename(self.generation(old), &going)?;
        remove(&going)
    }

    fn generation(&self, number: u64) -> PathBuf {
        self.folder.join(format!("..{number}"))
    }
}

/// Removes a link or folder that need not exist.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        all.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    fn seen(folder: &Path) -> BTreeMap<String, String> {
        let now = current(folder).expect("a generation");
        let entries = fs::read_dir(now).unwrap().map(Result::unwrap);
        entries.map(|e| (e.file_name().into_string().unwrap(), fs::read_to_string(e.path()).unwrap())).collect()
    }

    #[test]
    fn each_change_is_there_whole_and_old_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(current(folder.path()), None);
        let mut writer = Writer::new(folder.path());
        let first = files(&[("a", "1"), ("b", "1")]);
        assert!(writer.publish(first.clone()).unwrap());
        assert!(!writer.publish(first.clone()).unwrap(), "nothing changed");
        let reading = current(folder.path()).unwrap();
        let modified = |folder: &Path| fs::metadata(folder.join("a")).unwrap().modified().unwrap();
        let before = modified(&reading);
        for round in ["2", "3", "4"] {
            let next = files(&[("a", "1"), ("c", round)]);
            writer.publish(next.clone()).unwrap();
            assert_eq!(seen(folder.path()), next);
            // Who began to read before this change can still finish.
            assert_eq!(reading.join("b").exists(), round == "2");
        }
        assert_eq!(modified(&current(folder.path()).unwrap()), before, "what did not change looks unchanged");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "the link and two generations");
    }

    #[test]
    fn what_an_interrupted_change_left_does_not_matter() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("..1")).unwrap();
        fs::write(folder.path().join("..1/stale"), "x").unwrap();
        symlink("..1", folder.path().join("..new")).unwrap();
        let one = files(&[("a", "1")]);
        Writer::new(folder.path()).publish(one.clone()).unwrap();
        assert_eq!(seen(folder.path()), one);
    }
}
