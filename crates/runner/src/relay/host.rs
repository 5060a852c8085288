//! The process outside: connects and resolves in the host's network for the mesh, and ends with it.
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::link::{self, Ask, Tell};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Each waits on a thread of its own; beyond this number an ask fails at once.
const MOST_AT_ONCE: usize = 128;
/// A waiting thread makes two calls into the resolver or the kernel; it needs no more stack.
const STACK: usize = 256 * 1024;

/// Whether the mesh may connect to `address` outside: never to the host's own loopback, where it trusts whoever calls.
pub fn allowed(address: IpAddr) -> bool {
    let address = address.to_canonical();
    !(address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

/// Serves until the mesh's end of the line closes.
///
/// # Errors
/// When the line breaks.
pub fn serve(line: OwnedFd) -> io::Result<()> {
    let line = Arc::new(line);
    let busy = Arc::new(AtomicUsize::new(0));
    loop {
        let ask = match link::receive::<Ask>(line.as_fd()) {
            Ok(Some((ask, _))) => ask,
            Ok(None) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(e) => return Err(e),
        };
        let id = match ask {
            Ask::Connect { id, .. } | Ask::Resolve { id, .. } => id,
        };
        let (their_line, slot) = (line.clone(), Slot::take(&busy));
        let serve_one = move || {
            let _slot = slot;
            answer(&their_line, ask);
        };
        let full = busy.load(Ordering::Relaxed) > MOST_AT_ONCE;
        if full || std::thread::Builder::new().stack_size(STACK).spawn(serve_one).is_err() {
            link::send(line.as_fd(), &Tell::Failed { id, errno: libc::EAGAIN }, None)?;
        }
    }
}

/// Counts a waiting thread for as long as it lives.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn answer(line: &OwnedFd, ask: Ask) {
    // A send fails when the mesh is gone; then nobody waits for the answer.
    let _ = match ask {
        Ask::Connect { id, to } => match connect(to) {
            Ok(stream) => link::send(line.as_fd(), &Tell::Connected { id }, Some(stream.as_fd())),
            Err(e) => link::send(line.as_fd(), &Tell::Failed { id, errno: e.raw_os_error().unwrap_or(libc::ETIMEDOUT) }, None),
        },
        Ask::Resolve { id, name } => {
            let tell = match (name.as_str(), 0).to_socket_addrs() {
                Ok(found) => Tell::Resolved { id, addresses: outside(found) },
                // getaddrinfo says only in words whether the name does not exist or nobody could be asked.
                Err(e) if e.to_string().contains("emporary") => Tell::Failed { id, errno: libc::EAGAIN },
                Err(_) => Tell::Resolved { id, addresses: Vec::new() },
            };
            link::send(line.as_fd(), &tell, None)
        }
    };
}

fn outside(found: impl Iterator<Item = SocketAddr>) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = found.map(|a| a.ip()).filter(|a| allowed(*a)).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    if !allowed(to.ip()) {
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    TcpStream::connect_timeout(&to, CONNECT_TIMEOUT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_in_any_disguise_is_out_of_bounds() {
        for bad in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", "224.0.0.1"] {
            assert!(!allowed(bad.parse().unwrap()), "{bad}");
        }
        assert!(allowed("93.184.216.34".parse().unwrap()));
        assert_eq!(connect("127.0.0.1:1".parse().unwrap()).unwrap_err().raw_os_error(), Some(libc::EACCES));
    }

    #[test]
    fn asks_are_answered_and_the_end_of_the_line_ends_the_service() {
        let (ours, theirs) = link::pair().unwrap();
        let server = std::thread::spawn(move || serve(theirs));
        link::send(ours.as_fd(), &Ask::Connect { id: 3, to: "127.0.0.1:80".parse().unwrap() }, None).unwrap();
        let (tell, _) = link::receive::<Tell>(ours.as_fd()).unwrap().unwrap();
        assert_eq!(tell, Tell::Failed { id: 3, errno: libc::EACCES });
        link::send(ours.as_fd(), &Ask::Resolve { id: 4, name: "localhost".into() }, None).unwrap();
        let (tell, _) = link::receive::<Tell>(ours.as_fd()).unwrap().unwrap();
        assert_eq!(tell, Tell::Resolved { id: 4, addresses: vec![] }, "the host's loopback is nobody's address in the mesh");
        drop(ours);
        server.join().unwrap().unwrap();
    }
}
