//! The demo's eye inside the mesh: reads every sidecar's statistics once a second and prints the edges.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use super::edges::{self, Edges};

/// A sidecar that does not answer in this time is left out of this look.
const PATIENCE: Duration = Duration::from_millis(800);
/// No honest page is larger.
const LARGEST_PAGE: u64 = 8 << 20;

/// Prints one JSON line a second until nobody reads it.
pub(super) fn run(targets: &[SocketAddr]) -> anyhow::Result<ExitCode> {
    loop {
        let mut seen = Edges::new();
        for target in targets {
            if let Ok(page) = page(*target) {
                edges::add_page(&mut seen, &page);
            }
        }
        let mut out = std::io::stdout().lock();
        if writeln!(out, "{}", edges::to_json(&seen)).and_then(|()| out.flush()).is_err() {
            return Ok(ExitCode::SUCCESS);
        }
        drop(out);
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn page(target: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET /stats/prometheus HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.take(LARGEST_PAGE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
