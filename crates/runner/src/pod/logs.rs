//! What a container prints: two files of bounded size, and whoever follows.
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::sync::broadcast;

/// A file grows to this size; then it becomes the older one and a new one begins.
const FILE_LIMIT: u64 = 4 << 20;
/// A follower that is so many pieces behind misses the rest of them.
const PIECES_KEPT: usize = 64;

/// The log of one container: the current run and the one before.
#[derive(Debug)]
pub struct Log {
    folder: PathBuf,
    name: String,
    file: File,
    written: u64,
    follow: broadcast::Sender<Bytes>,
}

impl Log {
    /// Opens an empty log.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn create(folder: &Path, name: &str) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let file = File::create(folder.join(name))?;
        Ok(Self { folder: folder.to_owned(), name: name.to_owned(), file, written: 0, follow: broadcast::channel(PIECES_KEPT).0 })
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.folder.join(format!("{}{suffix}", self.name))
    }

    /// Appends what was read from the container. A full disk loses log lines, not the container.
    pub fn append(&mut self, bytes: &[u8]) {
        if self.written >= FILE_LIMIT {
            let _ = self.rotate(".older");
        }
        if self.file.write_all(bytes).is_ok() {
            self.written += bytes.len() as u64;
        }
        if self.follow.receiver_count() > 0 {
            let _ = self.follow.send(Bytes::copy_from_slice(bytes));
        }
    }

    fn rotate(&mut self, suffix: &str) -> io::Result<()> {
        fs::rename(self.path(""), self.path(suffix))?;
        self.file = File::create(self.path(""))?;
        self.written = 0;
        Ok(())
    }

    /// A new run begins: what there is becomes the previous run's.
    pub fn next_run(&mut self) {
        let _ = fs::remove_file(self.path(".older"));
        let _ = self.rotate(".previous");
    }

    /// Everything kept of this run, or the end of the previous one; only the last `tail` lines when given.
    pub fn read(&self, previous: bool, tail: Option<usize>) -> Vec<u8> {
        let files: &[&str] = if previous { &[".previous"] } else { &[".older", ""] };
        let mut bytes = Vec::new();
        for suffix in files {
            if let Ok(mut file) = File::open(self.path(suffix)) {
                let _ = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes));
            }
        }
        match tail {
            Some(lines) => last_lines(&bytes, lines).to_vec(),
            None => bytes,
        }
    }

    /// Whether there was a run before this one.
    pub fn has_previous(&self) -> bool {
        self.path(".previous").exists()
    }

    /// What comes from now on.
    pub fn follow(&self) -> broadcast::Receiver<Bytes> {
        self.follow.subscribe()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        for suffix in ["", ".older", ".previous"] {
            let _ = fs::remove_file(self.path(suffix));
        }
    }
}

fn last_lines(bytes: &[u8], lines: usize) -> &[u8] {
    if lines == 0 {
        return &[];
    }
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let mut ends = body.iter().enumerate().rev().filter(|(_, b)| **b == b'\n').map(|(at, _)| at + 1);
    ends.nth(lines - 1).map_or(bytes, |start| &bytes[start..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_bounded_and_keeps_its_newest_part() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::create(folder.path(), "app").unwrap();
        let line = vec![b'x'; 64 * 1024];
        for _ in 0..200 {
            log.append(&line);
        }
        log.append(b"\nlast\n");
        let size = log.read(false, None).len() as u64;
        assert!(size <= 2 * (FILE_LIMIT + 64 * 1024) && size > FILE_LIMIT, "{size}");
        assert_eq!(log.read(false, Some(1)), b"last\n");
    }

    #[tokio::test]
    async fn runs_are_kept_apart_and_followers_see_what_comes() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::create(folder.path(), "app").unwrap();
        log.append(b"one\n");
        assert!(!log.has_previous());
        log.next_run();
        let mut follower = log.follow();
        log.append(b"two\nthree\n");
        assert_eq!(log.read(true, None), b"one\n");
        assert_eq!(log.read(false, Some(5)), b"two\nthree\n");
        assert_eq!(log.read(false, Some(0)), b"");
        assert_eq!(follower.recv().await.unwrap(), "two\nthree\n");
        drop(log);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
