//! One WebSocket message there and back, by hand (RFC 6455).
use std::io::{Read, Write};

use anyhow::ensure;

use super::connect;

const KEY: [u8; 4] = [7, 11, 13, 17];

pub(crate) fn run(address: &str, host: &str, text: &str) -> anyhow::Result<()> {
    let mut stream = connect(address)?;
    // The key is the RFC's own example, and so is the answer to it.
    let upgrade = format!(
        "GET /ws HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(upgrade.as_bytes())?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        ensure!(stream.read(&mut byte)? == 1, "closed after {:?}", String::from_utf8_lossy(&head));
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    ensure!(head.starts_with("http/1.1 101"), "no upgrade: {head}");
    ensure!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "a wrong accept key: {head}");
    for round in 0..3 {
        let message = format!("{text} {round}");
        ensure!(message.len() < 126, "too long for one short frame");
        let masked = message.bytes().enumerate().map(|(i, b)| b ^ KEY[i % 4]);
        let frame: Vec<u8> = [0x81, 0x80 | message.len() as u8].into_iter().chain(KEY).chain(masked).collect();
        stream.write_all(&frame)?;
        let mut answer = [0; 2];
        stream.read_exact(&mut answer)?;
        ensure!(answer[0] == 0x81 && answer[1] < 126, "not one short text frame: {answer:?}");
        let mut payload = vec![0; answer[1].into()];
        stream.read_exact(&mut payload)?;
        println!("{}", String::from_utf8_lossy(&payload));
    }
    Ok(())
}
