//! Plain TCP: every line comes back with the service's name in front; with `--server-first` it greets first.
use crate::state::{Received, State};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// A line longer than this comes back in pieces.
const MAX_LINE: u64 = 64 * 1024;
/// A silent connection is closed after this long.
const IDLE: Duration = Duration::from_secs(3600);

/// Serves one connection to its end.
pub(crate) async fn serve(stream: TcpStream, state: Rc<State>) {
    let _ = stream.set_nodelay(true);
    let number = state.received(Received { protocol: "tcp", method: String::new(), path: String::new(), headers: BTreeMap::new() });
    if state.misbehaves().is_some() {
        return;
    }
    if let Err(error) = talk(stream, &state, number).await {
        tracing::debug!(%error, "connection ended");
    }
}

async fn talk(mut stream: TcpStream, state: &State, number: u64) -> std::io::Result<()> {
    let options = &state.options;
    let who = format!("{} {} from '{}'", options.name, options.version, state.pod);
    let (read, mut write) = stream.split();
    if options.server_first {
        write.write_all(format!("220 {who} ready, connection {number}\n").as_bytes()).await?;
    }
    let mut read = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        let got = tokio::time::timeout(IDLE, (&mut read).take(MAX_LINE).read_until(b'\n', &mut line)).await??;
        if got == 0 {
            return write.shutdown().await;
        }
        state.wait().await;
        let mut answer = format!("{who}: ").into_bytes();
        answer.extend_from_slice(&line);
        write.write_all(&answer).await?;
    }
}
