//! The sockets of the admin server and its companions: bound, or inherited from the process before; handed to the next.
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;

use anyhow::Context;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;

use crate::restart::Inherited;

/// What there is to hand over, and how to stop accepting.
pub(crate) struct Ports {
    sockets: Vec<(String, OwnedFd)>,
    open: watch::Sender<bool>,
}

impl Default for Ports {
    fn default() -> Self {
        Self { sockets: Vec::new(), open: watch::channel(true).0 }
    }
}

impl Ports {
    /// Duplicates of the sockets, by name.
    pub(crate) fn duplicates(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        self.sockets.iter().map(|(name, socket)| Ok((name.clone(), socket.try_clone()?))).collect()
    }

    /// Accepts nothing from now on; who is connected is still answered.
    pub(crate) fn close(&self) {
        self.open.send_replace(false);
    }

    /// False once [`Self::close`] was called.
    pub(super) fn open(&self) -> watch::Receiver<bool> {
        self.open.subscribe()
    }

    fn keep(&mut self, name: &str, socket: &impl AsFd) -> io::Result<()> {
        self.sockets.push((name.to_owned(), socket.as_fd().try_clone_to_owned()?));
        Ok(())
    }

    /// The listener of an address, and whether it was the process before's, which accepts as well until it is told to leave.
    pub(super) fn tcp(&mut self, name: &str, address: SocketAddr, inherited: Option<&Inherited>) -> anyhow::Result<(TcpListener, bool)> {
        let found = inherited.and_then(|i| i.take_port(name)).map(std::net::TcpListener::from);
        let found = found.filter(|socket| socket.local_addr().is_ok_and(|at| is_same(at, address)));
        let is_inherited = found.is_some();
        let bind = || std::net::TcpListener::bind(address);
        let socket = found
            .map_or_else(bind, Ok)
            .with_context(|| format!("the {name} port {address} cannot be opened; is another proxy running?"))?;
        socket.set_nonblocking(true)?;
        self.keep(name, &socket)?;
        Ok((TcpListener::from_std(socket)?, is_inherited))
    }

    /// The same for a path.
    pub(super) fn unix(&mut self, name: &str, path: &str, inherited: Option<&Inherited>) -> anyhow::Result<(UnixListener, bool)> {
        let found = inherited.and_then(|i| i.take_port(name)).map(std::os::unix::net::UnixListener::from);
        let at_path =
            |socket: &std::os::unix::net::UnixListener| socket.local_addr().is_ok_and(|at| at.as_pathname() == Some(path.as_ref()));
        let found = found.filter(at_path);
        let is_inherited = found.is_some();
        let bind = || {
            remove_stale(path);
            std::os::unix::net::UnixListener::bind(path)
        };
        let socket = found.map_or_else(bind, Ok).with_context(|| format!("{name} socket {path}"))?;
        socket.set_nonblocking(true)?;
        self.keep(name, &socket)?;
        Ok((UnixListener::from_std(socket)?, is_inherited))
    }
}

/// Whether a socket is where the configuration wants one; any port will do for 0.
fn is_same(at: SocketAddr, wanted: SocketAddr) -> bool {
    at == wanted || (wanted.port() == 0 && at.ip() == wanted.ip())
}

/// A socket left by a process that was killed would make the next one fail.
fn remove_stale(path: &str) {
    if std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
        let _ = std::fs::remove_file(path);
    }
}
