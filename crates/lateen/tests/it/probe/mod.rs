//! Clients that run within pods: this test program, started by `lateen exec POD -- THIS __probe WHAT …`.
mod grpc;
mod talk;
mod watch;
mod websocket;
mod wire;

use std::process::ExitCode;

/// Runs the probe that `words` name; prints what it found.
pub(crate) fn run(words: &[String]) -> ExitCode {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["talk", address, lines @ ..] => talk::run(address, lines),
        ["websocket", address, host, text] => websocket::run(address, host, text),
        ["grpc", url, method, options @ ..] => grpc::run(url, method, options),
        ["watch", address] => watch::run(address),
        ["wire", port, marker, seconds] => wire::run(port, marker, seconds),
        _ => Err(anyhow::anyhow!("no such probe: {words:?}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Connects by name or address, IPv4 or IPv6.
fn connect(address: &str) -> anyhow::Result<std::net::TcpStream> {
    let limit = std::time::Duration::from_secs(10);
    let stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
