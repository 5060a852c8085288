//! Files that configuration names, read whole.
use std::fs::{File, Metadata, OpenOptions};
use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::file_stamp::FileStamp;

/// What a file holds, at most `most` bytes.
///
/// # Errors
/// When it cannot be read, holds more, or is no regular file: a pipe or a device may have no end.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    // Even to open a device may do something.
    must_be_file(&std::fs::metadata(path)?)?;
    let file = open(path)?;
    let size = file.metadata()?.len();
    if size > most {
        return Err(too_large(size, most));
    }
    // It may grow meanwhile.
    bounded(file, most)
}

/// What is there by now, which may be another than before: a pipe is not waited for.
fn open(path: &Path) -> Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    must_be_file(&file.metadata()?)?;
    Ok(file)
}

fn must_be_file(found: &Metadata) -> Result<()> {
    if found.is_file() { Ok(()) } else { Err(Error::new(ErrorKind::InvalidInput, "is no file")) }
}

fn bounded(file: File, most: u64) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let read = file.take(most + 1).read_to_end(&mut content)? as u64;
    if read > most { Err(too_large(read, most)) } else { Ok(content) }
}

fn too_large(size: u64, most: u64) -> Error {
    Error::new(ErrorKind::FileTooLarge, format!("is {size} bytes large; at most {most} are read"))
}

/// As [`read`], of a file, a pipe or a device that somebody is there to vouch for: whoever started the program named it.
///
/// # Errors
/// When it cannot be read, or holds more.
pub fn read_any(path: &Path, most: u64) -> Result<Vec<u8>> {
    bounded(File::open(path)?, most)
}

/// [`read`], and how the file was before. Where it failed for a reason that may pass with nothing changed about the file, as when
/// descriptors run out, it counts as unread.
pub fn read_stamped(path: &Path, most: u64) -> (FileStamp, Result<Vec<u8>>) {
    let stamp = FileStamp::of(path);
    match read(path, most) {
        Err(cause) if !matches!(cause.kind(), ErrorKind::InvalidInput | ErrorKind::FileTooLarge) => (FileStamp::unread(), Err(cause)),
        settled => (stamp, settled),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_that_comes_in_place_of_a_file_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert_eq!(open(&path).unwrap_err().to_string(), "is no file");
        // Where it is named for just that, it is read to its end.
        for (text, told) in [("abcd", None), ("abcde", Some("is 5 bytes large; at most 4 are read"))] {
            let reading = path.clone();
            let reader = std::thread::spawn(move || read_any(&reading, 4));
            std::fs::write(&path, text).unwrap();
            assert_eq!(reader.join().unwrap().err().map(|error| error.to_string()).as_deref(), told);
        }
    }

    #[test]
    fn what_could_not_be_read_is_yet_to_be_read() {
        let outdated = |path: &Path| {
            let (stamp, content) = read_stamped(path, 3);
            (stamp.is_outdated_by(&FileStamp::of(path)), content.is_err())
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(outdated(file.path()), (false, false));
        std::fs::write(file.path(), "abcd").unwrap();
        assert_eq!(outdated(file.path()), (false, true), "as long as it is too large");
        // A file that is there, and whose beginning nobody can read.
        assert_eq!(outdated(Path::new("/proc/self/mem")), (true, true));
        assert_eq!(outdated(Path::new("/nowhere")), (false, true), "until it is there");
    }

    #[test]
    fn what_is_no_file_or_too_large_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let told = |path: &Path| read(path, 3).unwrap_err().to_string();
        assert_eq!(told(folder.path()), "is no file");
        // It has no size and no end.
        assert_eq!(told(Path::new("/dev/zero")), "is no file");
        let path = folder.path().join("a");
        std::fs::write(&path, "abcd").unwrap();
        assert_eq!(told(&path), "is 4 bytes large; at most 3 are read");
        // Its size is said to be nothing.
        assert_eq!(told(Path::new("/proc/self/stat")), "is 4 bytes large; at most 3 are read");
        assert_eq!(read(&path, 4).unwrap(), b"abcd");
    }
}
