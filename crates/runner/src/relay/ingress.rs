//! The way in: ports published on the host, joined to a service of the mesh.
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::copy;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const MOST_CONNECTIONS: usize = 4096;

/// Where a published port leads at present: the ready endpoints, taken in turn.
#[derive(Clone, Debug, Default)]
pub struct Targets {
    inner: Arc<RwLock<(Vec<SocketAddr>, usize)>>,
}

impl Targets {
    /// Replaces the endpoints.
    pub fn set(&self, endpoints: Vec<SocketAddr>) {
        let mut inner = self.inner.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        inner.0 = endpoints;
    }

    fn next(&self) -> Option<SocketAddr> {
        let mut inner = self.inner.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let turn = inner.1;
        inner.1 = turn.wrapping_add(1);
        let count = inner.0.len();
        inner.0.get(turn.checked_rem(count)?).copied()
    }
}

/// Joins every connection to the published port to an endpoint; closes it when there is none.
pub async fn serve(listener: TcpListener, targets: Targets) {
    let limit = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(permit) = limit.clone().try_acquire_owned() else { continue };
        let targets = targets.clone();
        tokio::spawn(async move {
            let _ = forward(stream, &targets).await;
            drop(permit);
        });
    }
}

async fn forward(stream: TcpStream, targets: &Targets) -> io::Result<()> {
    let Some(to) = targets.next() else {
        let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        return Ok(());
    };
    let upstream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(to)).await??;
    copy::join(stream, upstream).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_take_turns_and_none_is_none() {
        let targets = Targets::default();
        assert_eq!(targets.next(), None);
        let [a, b]: [SocketAddr; 2] = ["10.0.0.1:80".parse().unwrap(), "10.0.0.2:80".parse().unwrap()];
        targets.set(vec![a, b]);
        let taken: Vec<_> = (0..3).filter_map(|_| targets.next()).collect();
        assert!(taken == [a, b, a] || taken == [b, a, b]);
    }
}
