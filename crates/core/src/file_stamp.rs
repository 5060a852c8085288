//! What tells that a file changed.
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How a file was at a moment. To be taken before the file is read: what changes while it is read is then seen to have changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileStamp(Option<Found>);

/// Resolved through links, so that a swapped link shows: so Kubernetes replaces mounted secrets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    at: PathBuf,
    /// Seconds and nanoseconds, as the next.
    modified: (i64, i64),
    /// Tells what `modified` does not: who may read it, and contents written with the time of others.
    changed: (i64, i64),
    bytes: u64,
    inode: u64,
}

impl FileStamp {
    pub fn of(path: &Path) -> Self {
        let found = || {
            let at = std::fs::canonicalize(path).ok()?;
            let metadata = std::fs::metadata(&at).ok()?;
            let (modified, changed) = ((metadata.mtime(), metadata.mtime_nsec()), (metadata.ctime(), metadata.ctime_nsec()));
            Some(Found { modified, changed, bytes: metadata.len(), inode: metadata.ino(), at })
        };
        Self(found())
    }

    /// Whether it took the place of the one before as a whole, by a rename or a swapped link. One that is written in place is seen
    /// half written too, and so is one that is removed and written anew: while somebody writes, both times are those of the last
    /// write. What is done to a file that has been written, as by a rename, changes the second alone.
    pub fn replaces(&self, before: &Self) -> bool {
        let (Some(now), Some(then)) = (&self.0, &before.0) else { return false };
        let is_moved = now.inode != then.inode && now.bytes > 0 && now.changed > now.modified;
        now.at != then.at || is_moved
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

/// Whether one of these files is there as it was not before: another version was read, and not the same one tried again.
pub fn is_another_version(now: &[(PathBuf, FileStamp)], before: &[(PathBuf, FileStamp)]) -> bool {
    now.iter().any(|file| file.1.is_there() && !before.contains(file))
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

    #[test]
    fn only_what_is_whole_at_once_replaces_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let [path, other] = ["a", "b"].map(|name| folder.path().join(name));
        let replaces = |before: &FileStamp| FileStamp::of(&path).replaces(before);
        // The clock of files stands still for some milliseconds.
        let tick = || std::thread::sleep(std::time::Duration::from_millis(30));
        std::fs::write(&path, "first").unwrap();
        let first = FileStamp::of(&path);
        std::fs::write(&path, "second").unwrap();
        assert!(!replaces(&first), "written in place");
        // Kept beside, so that no other file gets its inode.
        std::fs::rename(&path, &other).unwrap();
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(!replaces(&first), "nothing is written yet");
        std::fs::write(&path, "half").unwrap();
        assert!(!replaces(&first), "somebody may write on");
        tick();
        let half = FileStamp::of(&path);
        std::fs::rename(&other, &path).unwrap();
        assert!(replaces(&half), "moved there");
        let link = folder.path().join("link");
        std::fs::write(&other, "third").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let before = FileStamp::of(&link);
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&other, &link).unwrap();
        assert!(FileStamp::of(&link).replaces(&before), "a link that is swapped");
    }
}
