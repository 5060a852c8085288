//! What tells that a file changed.
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// How a file was at a moment. To be taken before the file is read: what changes while it is read is then seen to have changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileStamp(Option<Found>);

/// Resolved through links, so that a swapped link shows: so Kubernetes replaces mounted secrets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    at: PathBuf,
    modified: SystemTime,
    /// Seconds and nanoseconds. Tells what `modified` does not: who may read it, and contents written with the time of others.
    changed: (i64, i64),
    bytes: u64,
    inode: u64,
}

impl FileStamp {
    pub fn of(path: &Path) -> Self {
        let found = || {
            let at = std::fs::canonicalize(path).ok()?;
            let metadata = std::fs::metadata(&at).ok()?;
            let changed = (metadata.ctime(), metadata.ctime_nsec());
            Some(Found { modified: metadata.modified().ok()?, changed, bytes: metadata.len(), inode: metadata.ino(), at })
        };
        Self(found())
    }

    /// Whether it is another file than the one before: by a rename or a swapped link it is there at once as a whole, while one
    /// that is written in place is seen half written too.
    pub fn replaces(&self, before: &Self) -> bool {
        let (Some(now), Some(then)) = (&self.0, &before.0) else { return false };
        (&now.at, now.inode) != (&then.at, then.inode)
    }

    /// As of a file that is not there: whatever is found later is yet to be read.
    pub const fn unread() -> Self {
        Self(None)
    }

    /// Whether there was a file, and it could be read.
    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Whether the file is to be read again that was like this when it was read last: it is there, and another. While it is not
    /// there is nothing to read.
    pub fn is_outdated_by(&self, now: &Self) -> bool {
        now.is_there() && self != now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_is_read_again_when_it_is_there_and_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let gone = FileStamp::of(&path);
        assert!(!gone.is_there() && !gone.is_outdated_by(&gone));
        std::fs::write(&path, "a").unwrap();
        let first = FileStamp::of(&path);
        assert!(gone.is_outdated_by(&first) && FileStamp::unread().is_outdated_by(&first));
        assert!(!first.is_outdated_by(&FileStamp::of(&path)) && !first.is_outdated_by(&gone));
        // Nothing of it changes but who may read it.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        assert!(first.is_outdated_by(&FileStamp::of(&path)));
    }
}
