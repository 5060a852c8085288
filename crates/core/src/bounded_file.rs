//! Files that configuration names, read whole.
use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

/// What a file holds, at most `most` bytes.
///
/// # Errors
/// When it cannot be read, holds more, or is no regular file: a pipe or a device may have no end.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    let found = std::fs::metadata(path)?;
    if !found.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "is no file"));
    }
    let too_large = |size: u64| Error::new(ErrorKind::FileTooLarge, format!("is {size} bytes large; at most {most} are read"));
    if found.len() > most {
        return Err(too_large(found.len()));
    }
    let mut content = Vec::new();
    // It may grow meanwhile.
    let read = std::fs::File::open(path)?.take(most + 1).read_to_end(&mut content)? as u64;
    if read > most { Err(too_large(read)) } else { Ok(content) }
}

#[cfg(test)]
mod tests {
    use super::*;

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
