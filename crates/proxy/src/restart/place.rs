//! Where a process waits for its successor: a Unix domain socket named by base id and epoch.
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Envoy's `--socket-path`: a path, or with `@` in front a name in the abstract namespace, which leaves no file behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketPath {
    Abstract(String),
    Path(PathBuf),
}

impl SocketPath {
    pub fn parse(text: &str) -> Self {
        match text.strip_prefix('@') {
            Some(name) => Self::Abstract(name.to_owned()),
            None => Self::Path(text.into()),
        }
    }
}

/// Base ids that are chosen stay short enough to type.
const MOST_BASE_ID: u32 = 999_999;
const TRIES: usize = 64;

/// One process' socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub path: SocketPath,
    /// Of the file, where there is one.
    pub mode: u32,
    /// Tells proxies of one machine apart.
    pub base_id: u32,
    /// How many restarts there were.
    pub epoch: u64,
}

impl Place {
    /// Of the process before.
    pub(super) fn parent(&self) -> Option<Self> {
        Some(Self { epoch: self.epoch.checked_sub(1)?, ..self.clone() })
    }

    fn name(&self, stem: &str) -> String {
        format!("{stem}_{}_{}", self.base_id, self.epoch)
    }

    fn file(&self) -> Option<PathBuf> {
        match &self.path {
            SocketPath::Abstract(_) => None,
            SocketPath::Path(path) => Some(self.name(&path.to_string_lossy()).into()),
        }
    }

    fn address(&self) -> io::Result<SocketAddrUnix> {
        Ok(match &self.path {
            SocketPath::Abstract(name) => SocketAddrUnix::new_abstract_name(self.name(name).as_bytes())?,
            SocketPath::Path(path) => SocketAddrUnix::new(self.name(&path.to_string_lossy()))?,
        })
    }

    /// Takes the place.
    ///
    /// # Errors
    /// When another process has it (`AddrInUse`), or the name cannot be had.
    pub fn bind(&self) -> io::Result<Bound> {
        let address = self.address()?;
        let socket = socket()?;
        if let Some(file) = self.file() {
            self.remove_stale(&file);
        }
        rustix::net::bind(&socket, &address)?;
        let bound = Bound { socket, file: self.file() };
        if let Some(file) = &bound.file {
            std::fs::set_permissions(file, PermissionsExt::from_mode(self.mode))?;
        }
        rustix::net::listen(&bound.socket, 8)?;
        Ok(bound)
    }

    /// Takes a place that nobody has, with a base id of its own (Envoy `--use-dynamic-base-id`).
    ///
    /// # Errors
    /// When none can be had.
    pub fn bind_any(mut self) -> io::Result<(Self, Bound)> {
        let mut last = io::Error::other("no base id is free");
        for _ in 0..TRIES {
            self.base_id = rand::random_range(1..=MOST_BASE_ID);
            match self.bind() {
                Ok(bound) => return Ok((self, bound)),
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    /// The file of a process that was killed is in the way of the next; that of one that lives is not touched.
    fn remove_stale(&self, file: &PathBuf) {
        let is_socket = std::fs::symlink_metadata(file).is_ok_and(|m| m.file_type().is_socket());
        if is_socket && self.connect().is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
            let _ = std::fs::remove_file(file);
        }
    }

    /// Connects to the process that waits here.
    pub(super) fn connect(&self) -> io::Result<UnixStream> {
        let socket = socket()?;
        rustix::net::connect(&socket, &self.address()?)?;
        Ok(socket.into())
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.path {
            SocketPath::Abstract(name) => write!(f, "@{}", self.name(name)),
            SocketPath::Path(path) => f.write_str(&self.name(&path.to_string_lossy())),
        }
    }
}

/// Messages, whole or not at all, and no wait in a call.
fn socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?)
}

/// A place that was taken; its file goes with it.
#[derive(Debug)]
pub struct Bound {
    pub(super) socket: OwnedFd,
    file: Option<PathBuf>,
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            let _ = std::fs::remove_file(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(path: SocketPath) -> Place {
        Place { path, mode: 0o600, base_id: std::process::id(), epoch: 3 }
    }

    #[test]
    fn a_place_is_taken_once_and_free_again_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        for path in [SocketPath::parse("@lateen-test-place"), SocketPath::parse(folder.path().join("s").to_str().unwrap())] {
            let place = place(path);
            let bound = place.bind().unwrap();
            assert_eq!(place.bind().unwrap_err().kind(), io::ErrorKind::AddrInUse, "{place}");
            assert!(place.connect().is_ok());
            if let Some(file) = &bound.file {
                assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
            }
            drop(bound);
            assert!(place.connect().is_err());
            drop(place.bind().unwrap());
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "a file was left");
    }

    #[test]
    fn the_file_of_a_killed_process_is_in_nobodys_way() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(SocketPath::Path(folder.path().join("s")));
        let mut killed = place.bind().unwrap();
        // The descriptor closes, the file stays.
        killed.file = None;
        drop(killed);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        drop(place.bind().unwrap());
    }

    #[test]
    fn names_tell_base_ids_and_epochs_apart() {
        let place = place(SocketPath::parse("@x"));
        assert_eq!(place.to_string(), format!("@x_{}_3", std::process::id()));
        assert_eq!(place.parent().unwrap().epoch, 2);
        assert_eq!(Place { epoch: 0, ..place }.parent(), None);
    }
}
