//! Joining two connections until both directions have ended or neither moved for long.
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// A connection that carries nothing for so long is closed.
const IDLE: Duration = Duration::from_secs(3600);
const BUFFER: usize = 16 * 1024;

/// Copies both ways; an end in one direction is passed on and the other goes on.
///
/// # Errors
/// The first failed read or write, or an idle hour.
pub async fn join(mut a: TcpStream, mut b: TcpStream) -> io::Result<()> {
    let _ = (a.set_nodelay(true), b.set_nodelay(true));
    let (mut a_in, mut a_out) = a.split();
    let (mut b_in, mut b_out) = b.split();
    let moved = AtomicBool::new(false);
    let both = async { tokio::try_join!(one_way(&mut a_in, &mut b_out, &moved), one_way(&mut b_in, &mut a_out, &moved)).map(drop) };
    let watch = async {
        loop {
            tokio::time::sleep(IDLE).await;
            if !moved.swap(false, Ordering::Relaxed) {
                return Err(io::Error::from(io::ErrorKind::TimedOut));
            }
        }
    };
    tokio::select! { done = both => done, idle = watch => idle }
}

async fn one_way(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin), moved: &AtomicBool) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        moved.store(true, Ordering::Relaxed);
        to.write_all(&buffer[..length]).await?;
    }
}
