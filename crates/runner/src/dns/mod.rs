//! Names inside the mesh: a small DNS server on the bridge's address, over UDP and TCP.
//!
//! Names of the cluster's domain are answered from a [`zone::Zone`]; any other goes to a [`Forwarder`]
//! (the host's own resolver) with a bound on how many wait and for how long.
pub mod message;
pub mod zone;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use message::{Code, Query};
use zone::{Answer, Zone};

/// Resolves names that are not the mesh's.
pub trait Forwarder: Clone + Send + Sync + 'static {
    /// All addresses of `name`; empty when it does not exist; `None` when nobody could be asked.
    fn resolve(&self, name: String) -> impl Future<Output = Option<Vec<IpAddr>>> + Send;
}

/// The zone that the server answers from, replaced as a whole when services change.
pub type SharedZone = Arc<RwLock<Arc<Zone>>>;

const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);
const TCP_IDLE: Duration = Duration::from_secs(10);
const IN_FLIGHT: usize = 256;
/// Seconds an answer may be kept: names change as pods come and go.
const TTL: u32 = 5;

/// Serves until dropped; the sockets are bound by the caller.
pub async fn serve<F: Forwarder>(udp: UdpSocket, tcp: TcpListener, zone: SharedZone, forwarder: F) {
    let limit = Arc::new(Semaphore::new(IN_FLIGHT));
    tokio::join!(serve_udp(udp, zone.clone(), forwarder.clone(), limit.clone()), serve_tcp(tcp, zone, forwarder, limit));
}

async fn serve_udp<F: Forwarder>(socket: UdpSocket, zone: SharedZone, forwarder: F, limit: Arc<Semaphore>) {
    let socket = Arc::new(socket);
    let mut buffer = [0u8; 4096];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            // A port-unreachable of an earlier answer; the next receive works.
            continue;
        };
        let Ok(permit) = limit.clone().try_acquire_owned() else { continue };
        let (bytes, socket, zone, forwarder) = (buffer[..length].to_vec(), socket.clone(), zone.clone(), forwarder.clone());
        tokio::spawn(async move {
            if let Some(answer) = answer(&bytes, &zone, &forwarder, false).await {
                let _ = socket.send_to(&answer, from).await;
            }
            drop(permit);
        });
    }
}

async fn serve_tcp<F: Forwarder>(listener: TcpListener, zone: SharedZone, forwarder: F, limit: Arc<Semaphore>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(permit) = limit.clone().try_acquire_owned() else { continue };
        let (zone, forwarder) = (zone.clone(), forwarder.clone());
        tokio::spawn(async move {
            let _ = converse(stream, &zone, &forwarder).await;
            drop(permit);
        });
    }
}

async fn converse<F: Forwarder>(mut stream: TcpStream, zone: &SharedZone, forwarder: &F) -> std::io::Result<()> {
    loop {
        let read = async {
            let length = stream.read_u16().await?;
            let mut bytes = vec![0; length.into()];
            stream.read_exact(&mut bytes).await?;
            Ok::<_, std::io::Error>(bytes)
        };
        let bytes = tokio::time::timeout(TCP_IDLE, read).await??;
        let Some(reply) = answer(&bytes, zone, forwarder, true).await else { return Ok(()) };
        tokio::time::timeout(TCP_IDLE, async {
            stream.write_u16(reply.len() as u16).await?;
            stream.write_all(&reply).await
        })
        .await??;
    }
}

async fn answer<F: Forwarder>(bytes: &[u8], zone: &SharedZone, forwarder: &F, tcp: bool) -> Option<Vec<u8>> {
    let query = match Query::parse(bytes) {
        Ok(query) => query,
        Err(reply) => return reply,
    };
    let limit = if tcp { usize::from(u16::MAX) } else { query.udp_limit() };
    let current = zone.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    let (code, found) = match current.lookup(query.name()) {
        Answer::Found(addresses) => (Code::Ok, addresses),
        Answer::NoSuchName => (Code::NoSuchName, Vec::new()),
        Answer::Alias(target) => forwarded(forwarder, target).await,
        Answer::NotOurs => forwarded(forwarder, query.name().to_owned()).await,
    };
    Some(query.reply(code, &found, TTL, limit))
}

async fn forwarded<F: Forwarder>(forwarder: &F, name: String) -> (Code, Vec<IpAddr>) {
    match tokio::time::timeout(FORWARD_TIMEOUT, forwarder.resolve(name)).await {
        Ok(Some(found)) if found.is_empty() => (Code::NoSuchName, found),
        Ok(Some(found)) => (Code::Ok, found),
        Ok(None) | Err(_) => (Code::Failed, Vec::new()),
    }
}

/// The pod's `resolv.conf`, as Kubernetes writes it.
pub fn resolv_conf(server: IpAddr, namespace: &str, domain: &str) -> String {
    format!("nameserver {server}\nsearch {namespace}.svc.{domain} svc.{domain} {domain}\noptions ndots:5 timeout:2\n")
}

/// Where the server listens.
pub fn address(server: IpAddr) -> SocketAddr {
    SocketAddr::new(server, 53)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Outside;
    impl Forwarder for Outside {
        async fn resolve(&self, name: String) -> Option<Vec<IpAddr>> {
            match name.as_str() {
                "example.com" => Some(vec!["93.184.216.34".parse().unwrap()]),
                "slow.example" => std::future::pending().await,
                _ => Some(vec![]),
            }
        }
    }

    async fn ask(name: &str) -> (u8, usize) {
        let mut zone = Zone::new("cluster.local");
        zone.add("reviews.default.svc.cluster.local", ["10.96.0.2".parse().unwrap()]);
        let zone: SharedZone = Arc::new(RwLock::new(Arc::new(zone)));
        let reply = answer(&message::tests::query(name, 1), &zone, &Outside, false).await.unwrap();
        (reply[3] & 15, usize::from(reply[7]))
    }

    #[tokio::test(start_paused = true)]
    async fn own_names_and_outside_names_and_silence() {
        assert_eq!(ask("reviews.default.svc.cluster.local").await, (0, 1));
        assert_eq!(ask("ratings.default.svc.cluster.local").await, (3, 0));
        assert_eq!(ask("example.com").await, (0, 1));
        assert_eq!(ask("no.example").await, (3, 0));
        assert_eq!(ask("slow.example").await, (2, 0));
    }
}
