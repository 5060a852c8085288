//! Several files of a watched folder changed as one: the writer leaves a mark while it writes, the reader waits.
//!
//! Without it a reader may see a rule before what the rule refers to, and act on that.
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The mark's name; hidden, so that it is no configuration itself.
const MARK: &str = ".lateen-writing";
/// A mark older than this was left by a writer that died.
const STALE: Duration = Duration::from_secs(5);

/// A change under way; it is complete when this is dropped.
#[derive(Debug)]
#[must_use = "the batch ends when this is dropped"]
pub struct Batch(PathBuf);

impl Batch {
    /// Marks `folder` as being written.
    ///
    /// # Errors
    /// When the mark cannot be written.
    pub fn begin(folder: &Path) -> io::Result<Self> {
        let mark = folder.join(MARK);
        fs::write(&mark, b"")?;
        Ok(Self(mark))
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        // A mark that stays is stale in a few seconds.
        let _ = fs::remove_file(&self.0);
    }
}

/// Whether somebody is writing several files of `folder`.
pub fn under_way(folder: &Path) -> bool {
    let age = fs::metadata(folder.join(MARK)).and_then(|m| m.modified()).map(|at| at.elapsed().unwrap_or_default());
    age.is_ok_and(|age| age < STALE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_being_written_until_the_batch_is_dropped() {
        let folder = std::env::temp_dir().join(format!("lateen-batch-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        assert!(!under_way(&folder));
        let batch = Batch::begin(&folder).unwrap();
        assert!(under_way(&folder));
        drop(batch);
        assert!(!under_way(&folder));
        fs::remove_dir_all(&folder).unwrap();
    }
}
