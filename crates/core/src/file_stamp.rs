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
    bytes: u64,
    inode: u64,
}

impl FileStamp {
    pub fn of(path: &Path) -> Self {
        let found = || {
            let at = std::fs::canonicalize(path).ok()?;
            let metadata = std::fs::metadata(&at).ok()?;
            Some(Found { modified: metadata.modified().ok()?, bytes: metadata.len(), inode: metadata.ino(), at })
        };
        Self(found())
    }

    /// Whether it is another file than the one before: by a rename or a swapped link it is there at once as a whole, while one
    /// that is written in place is seen half written too.
    pub fn replaces(&self, before: &Self) -> bool {
        let (Some(now), Some(then)) = (&self.0, &before.0) else { return false };
        (&now.at, now.inode) != (&then.at, then.inode)
    }

    /// Whether there was a file.
    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }
}
