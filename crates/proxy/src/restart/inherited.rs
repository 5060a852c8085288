//! The listening sockets that came from the process before.
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::message::{MOST_SOCKETS_ALTOGETHER, SocketName};

/// What was not taken yet. Emptied once the new process serves: what it has no listener for is closed.
#[derive(Default)]
pub(crate) struct Inherited(Mutex<HashMap<SocketName, OwnedFd>>);

impl Inherited {
    fn sockets(&self) -> MutexGuard<'_, HashMap<SocketName, OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, name: SocketName, socket: OwnedFd) -> io::Result<()> {
        let mut sockets = self.sockets();
        if sockets.len() >= MOST_SOCKETS_ALTOGETHER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("more than {MOST_SOCKETS_ALTOGETHER} listening sockets")));
        }
        sockets.insert(name, socket);
        Ok(())
    }

    /// A worker's share of the sockets of an address: each of them is some worker's, or what waits in it would be stranded.
    pub(crate) fn take(&self, address: SocketAddr, worker: usize, workers: usize) -> Vec<TcpListener> {
        let workers = workers.max(1);
        let is_mine = |name: &SocketName| matches!(name, SocketName::Listener { address: of, number } if *of == address && *number as usize % workers == worker);
        let mut sockets = self.sockets();
        let mut mine: Vec<SocketName> = sockets.keys().filter(|name| is_mine(name)).cloned().collect();
        mine.sort_by_key(|name| if let SocketName::Listener { number, .. } = name { *number } else { 0 });
        mine.iter().filter_map(|name| sockets.remove(name)).map(TcpListener::from).collect()
    }

    /// The socket of a port that is not a listener's.
    pub(crate) fn take_port(&self, name: &str) -> Option<OwnedFd> {
        self.sockets().remove(&SocketName::Port { name: name.to_owned() })
    }

    pub(super) fn clear(&self) {
        self.sockets().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_socket_is_one_workers() {
        for (before, after) in [(4, 1), (4, 3), (2, 2), (1, 3)] {
            let inherited = Inherited::default();
            let address: SocketAddr = "127.0.0.1:80".parse().unwrap();
            let mut ports = Vec::new();
            for number in 0..before {
                let socket = TcpListener::bind("127.0.0.1:0").unwrap();
                ports.push(socket.local_addr().unwrap());
                inherited.add(SocketName::Listener { address, number }, socket.into()).unwrap();
            }
            let mut taken: Vec<SocketAddr> = Vec::new();
            for worker in 0..after {
                let mine = inherited.take(address, worker, after);
                assert_eq!(mine.len(), (before as usize + after - 1 - worker) / after, "{before} to {after}: worker {worker}");
                taken.extend(mine.iter().map(|l| l.local_addr().unwrap()));
            }
            taken.sort();
            ports.sort();
            assert_eq!(taken, ports);
        }
    }

    #[test]
    fn ports_are_found_by_name_and_what_nobody_wants_is_closed() {
        let inherited = Inherited::default();
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = socket.local_addr().unwrap();
        inherited.add(SocketName::Port { name: "admin".into() }, socket.into()).unwrap();
        assert!(inherited.take_port("health").is_none());
        assert!(std::net::TcpStream::connect(at).is_ok());
        inherited.clear();
        assert!(std::net::TcpStream::connect(at).is_err());
        assert!(inherited.take_port("admin").is_none());
    }
}
