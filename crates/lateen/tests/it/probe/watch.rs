//! Asks again and again over one connection and prints a line whenever the answering version, or a failure, is another than before.
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::connect;

/// Between two requests: how exactly a change is dated.
const PAUSE: Duration = Duration::from_millis(5);

pub(crate) fn run(address: &str) -> anyhow::Result<()> {
    let mut connection = None;
    let mut last = String::new();
    loop {
        let seen = match ask(&mut connection, address) {
            Ok(seen) => seen,
            Err(error) => {
                connection = None;
                format!("failed: {error:#}")
            }
        };
        if seen != last {
            println!("{seen}");
            std::io::stdout().flush()?;
            last = seen;
        }
        std::thread::sleep(PAUSE);
    }
}

fn ask(connection: &mut Option<BufReader<TcpStream>>, address: &str) -> anyhow::Result<String> {
    if connection.is_none() {
        *connection = Some(BufReader::new(connect(address)?));
    }
    let stream = connection.as_mut().context("a connection")?;
    stream.get_mut().write_all(format!("GET / HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut status = String::new();
    ensure!(stream.read_line(&mut status)? > 0, "closed");
    let status = status.split_ascii_whitespace().nth(1).unwrap_or_default().to_owned();
    let (mut chain, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        ensure!(stream.read_line(&mut line)? > 0, "closed within the head");
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse()?,
            "x-app-chain" => chain = value.to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(if status == "200" { chain } else { format!("failed: status {status}") })
}
