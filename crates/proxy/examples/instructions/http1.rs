//! A caller that sends one request at a time, and a service that answers each at once.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, ensure};

use crate::WAIT;

/// What a browser sends, with what a mesh adds.
pub(crate) const HEADERS: [(&str, &str); 11] = [
    ("user-agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"),
    ("accept", "application/json, text/plain, */*"),
    ("accept-encoding", "gzip, deflate, br"),
    ("accept-language", "en-US,en;q=0.9"),
    ("authorization", "Bearer eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6Ikphc29uIn0"),
    ("cookie", "session=eyJ1c2VyIjoiamFzb24ifQ.ZqF3dg.6m5tVtX1h8oJ; region=eu-west-1"),
    ("x-request-id", "7b1c0c6a-53f5-4a0e-9d3e-0c7d3c1c8f11"),
    ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ("content-type", "application/json"),
    ("cache-control", "no-cache"),
    ("end-user", "jason"),
];
pub(crate) const PATH: &str = "/api/v1/products/0/reviews?page=2&sort=asc";
pub(crate) const BODY: [u8; 1024] = [b'x'; 1024];

/// Answers every request with 1 KiB, on as many connections as come.
pub(crate) fn answer(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
}

fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut answer = b"HTTP/1.1 200 OK\r\nserver: app\r\ndate: Mon, 02 Jan 2023 03:04:05 GMT\r\ncontent-type: application/json\r\ncontent-length: 1024\r\netag: \"63b2\"\r\ncache-control: no-store\r\n\r\n".to_vec();
    answer.extend_from_slice(&BODY);
    let mut buffer = [0; 16 * 1024];
    let mut held = 0;
    loop {
        held += match stream.read(buffer.get_mut(held..).unwrap_or_default())? {
            0 => return Ok(()),
            n => n,
        };
        if buffer.get(..held).is_some_and(|head| head.ends_with(b"\r\n\r\n")) {
            held = 0;
            stream.write_all(&answer)?;
        }
    }
}

/// Sends `requests` on one connection, to every host in turn.
pub(crate) fn call(proxy: SocketAddr, requests: usize, hosts: usize) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(proxy)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(WAIT))?;
    let mut headers = String::new();
    for (name, value) in HEADERS {
        headers += &format!("{name}: {value}\r\n");
    }
    let mut buffer = [0; 16 * 1024];
    for i in 0..requests {
        let host = crate::config::host((i * 389) % hosts);
        let canary = if i % 10 == 0 { "x-canary: true\r\n" } else { "" };
        stream.write_all(format!("GET {PATH} HTTP/1.1\r\nhost: {host}\r\n{headers}{canary}\r\n").as_bytes())?;
        let mut held = 0;
        while !buffer.get(..held).is_some_and(|answer| answer.ends_with(&BODY)) {
            held += match stream.read(buffer.get_mut(held..).unwrap_or_default())? {
                0 => anyhow::bail!("the proxy closed the connection at request {i}"),
                n => n,
            };
        }
        let answer = std::str::from_utf8(buffer.get(..held).context("no answer")?)?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "request {i}: {}", answer.lines().next().unwrap_or_default());
    }
    Ok(())
}
