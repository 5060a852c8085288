//! Several addresses of one host: tried in order, the next one as soon as the one before is late or has failed
//! (RFC 8305; Envoy `additional_addresses`).
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

/// How long one address may keep the others waiting; Envoy's value.
const HEAD_START: Duration = Duration::from_millis(300);

/// The first connection that is made; the others are given up.
///
/// # Errors
/// The last failure, when no address can be reached.
pub(super) async fn first<T, F>(addresses: &[SocketAddr], connect: impl Fn(SocketAddr) -> F) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let mut left = addresses.iter();
    let mut running = FuturesUnordered::new();
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        match left.next() {
            Some(address) => running.push(connect(*address)),
            None if running.is_empty() => return Err(failure),
            None => {}
        }
        let outcome = if left.len() == 0 {
            running.next().await
        } else {
            // A timeout is no failure: the attempt goes on beside the next.
            tokio::time::timeout(HEAD_START, running.next()).await.ok().flatten()
        };
        match outcome {
            Some(Ok(connection)) => return Ok(connection),
            Some(Err(error)) => failure = error,
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::time::Instant;

    use super::*;

    /// Attempts by last digit of the port: 1 refuses at once, 2 takes for ever, 3 succeeds after 50 ms.
    async fn run(ports: &[u16]) -> (io::Result<u16>, Vec<(u16, u128)>) {
        let (start, tried) = (Instant::now(), RefCell::new(Vec::new()));
        let addresses: Vec<SocketAddr> = ports.iter().map(|p| ([127, 0, 0, 1], *p).into()).collect();
        let result = first(&addresses, |address| {
            tried.borrow_mut().push((address.port(), start.elapsed().as_millis()));
            async move {
                match address.port() % 10 {
                    1 => Err(io::ErrorKind::ConnectionRefused.into()),
                    2 => std::future::pending().await,
                    _ => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        Ok(address.port())
                    }
                }
            }
        })
        .await;
        (result, tried.into_inner())
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_address_does_not_hold_up_the_next() {
        let (result, tried) = run(&[12, 13, 23]).await;
        assert_eq!(result.unwrap(), 13);
        assert_eq!(tried, [(12, 0), (13, 300)]);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_failure_the_next_is_tried_at_once() {
        let (result, tried) = run(&[11, 21, 13]).await;
        assert_eq!(result.unwrap(), 13);
        assert_eq!(tried, [(11, 0), (21, 0), (13, 0)]);
    }

    #[tokio::test(start_paused = true)]
    async fn without_any_connection_the_last_failure_is_told() {
        assert_eq!(run(&[11, 21]).await.0.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
