//! The way out: connections of the pods to the outside, redirected here, joined to sockets made in the host's network.
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot, watch};

use super::copy;
use super::link::{self, Ask, Tell};
use crate::dns::Forwarder;

/// The process outside answers within its own ten seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
const MOST_CONNECTIONS: usize = 4096;

/// Who waits for the answer of which number.
type Waiting = HashMap<u64, oneshot::Sender<(Tell, Option<OwnedFd>)>>;

/// The mesh's end of the line to the process outside.
#[derive(Clone, Debug)]
pub struct Outside {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    line: AsyncFd<OwnedFd>,
    waiting: Mutex<Waiting>,
    next: AtomicU64,
    stops: watch::Sender<u32>,
}

impl Outside {
    /// Takes the line over and reads it until its end.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub fn new(line: OwnedFd) -> io::Result<Self> {
        nix::fcntl::fcntl(&line, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        let shared = Shared { line: watched(line)?, waiting: Mutex::default(), next: AtomicU64::new(1), stops: watch::channel(0).0 };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// How often the process outside has said to stop.
    pub fn stops(&self) -> watch::Receiver<u32> {
        self.shared.stops.subscribe()
    }

    /// Hands answers to those who wait; returns when the process outside is gone.
    pub async fn run(&self) {
        loop {
            let received = self.shared.line.async_io(Interest::READABLE, |fd| link::receive::<Tell>(fd.as_fd())).await;
            let (tell, descriptor) = match received {
                Ok(Some(message)) => message,
                Ok(None) => return,
                Err(e) if e.kind() == io::ErrorKind::InvalidData => continue,
                Err(_) => return,
            };
            let id = match &tell {
                Tell::Connected { id } | Tell::Failed { id, .. } | Tell::Resolved { id, .. } => *id,
                Tell::Stop => {
                    self.shared.stops.send_modify(|n| *n += 1);
                    continue;
                }
            };
            if let Some(waiter) = self.waiting().remove(&id) {
                let _ = waiter.send((tell, descriptor));
            }
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, make: impl FnOnce(u64) -> Ask) -> io::Result<(Tell, Option<OwnedFd>)> {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let ask = make(id);
        let (sender, receiver) = oneshot::channel();
        self.waiting().insert(id, sender);
        let exchange = async {
            self.shared.line.async_io(Interest::WRITABLE, |fd| link::send(fd.as_fd(), &ask, None)).await?;
            receiver.await.map_err(io::Error::other)
        };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, exchange).await;
        self.waiting().remove(&id);
        answer?
    }

    /// Connects in the host's network.
    ///
    /// # Errors
    /// The host's; `PermissionDenied` for its loopback.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        match self.ask(|id| Ask::Connect { id, to }).await? {
            (Tell::Connected { .. }, Some(descriptor)) => {
                let stream = std::net::TcpStream::from(descriptor);
                stream.set_nonblocking(true)?;
                TcpStream::from_std(stream)
            }
            (Tell::Failed { errno, .. }, _) => Err(io::Error::from_raw_os_error(errno)),
            _ => Err(io::Error::other("the process outside gave no socket")),
        }
    }
}

#[allow(unsafe_code)]
fn watched(line: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the AsyncFd owns the descriptor and drops its registration before closing it.
    Ok(unsafe { AsyncFd::register(line) }?)
}

impl Forwarder for Outside {
    async fn resolve(&self, name: String) -> Option<Vec<IpAddr>> {
        match self.ask(|id| Ask::Resolve { id, name }).await {
            Ok((Tell::Resolved { addresses, .. }, _)) => Some(addresses),
            _ => None,
        }
    }
}

/// Where a redirected connection was going.
fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    if stream.local_addr()?.is_ipv4() {
        let found = getsockopt(stream, sockopt::OriginalDst)?;
        Ok(SocketAddr::from((Ipv4Addr::from_bits(u32::from_be(found.sin_addr.s_addr)), u16::from_be(found.sin_port))))
    } else {
        let found = getsockopt(stream, sockopt::Ip6tOriginalDst)?;
        Ok(SocketAddr::from((Ipv6Addr::from(found.sin6_addr.s6_addr), u16::from_be(found.sin6_port))))
    }
}

/// Joins every redirected connection to one made outside; a pod sees a reset when there is none to be had.
pub async fn serve(listener: TcpListener, outside: Outside) {
    let limit = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(permit) = limit.clone().try_acquire_owned() else { continue };
        let outside = outside.clone();
        tokio::spawn(async move {
            if let Err(e) = relay(stream, &outside).await {
                tracing::debug!("egress: {e}");
            }
            drop(permit);
        });
    }
}

async fn relay(stream: TcpStream, outside: &Outside) -> io::Result<()> {
    let to = original_destination(&stream)?;
    match outside.connect(to).await {
        Ok(upstream) => copy::join(stream, upstream).await,
        Err(e) => {
            // Close with a reset: an orderly end would look like a server that accepted and had nothing to say.
            let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            Err(io::Error::new(e.kind(), format!("{to}: {e}")))
        }
    }
}
