//! One question to one server: over UDP, and over TCP where the answer is too long or that is wished.
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};

use super::message::{Query, Reply};

/// Asks; whoever calls sets the limit in time.
pub(super) async fn ask(server: SocketAddr, query: &Query, tcp: bool, payload: u16, mark: Option<u32>) -> io::Result<Reply> {
    if !tcp {
        match over_udp(server, query, payload, mark).await? {
            Reply::Truncated => {}
            reply => return Ok(reply),
        }
    }
    over_tcp(server, query, mark).await
}

/// Over a socket of its own: the port that an answer must come to is as hard to guess as the number in it.
async fn over_udp(server: SocketAddr, query: &Query, payload: u16, mark: Option<u32>) -> io::Result<Reply> {
    let raw = raw(server, Type::DGRAM, Protocol::UDP, mark)?;
    let any: SocketAddr = if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    raw.bind(&any.into())?;
    let socket = UdpSocket::from_std(raw.into())?;
    socket.connect(server).await?;
    socket.send(&query.bytes).await?;
    let mut buffer = vec![0; payload.max(512).into()];
    loop {
        let length = socket.recv(&mut buffer).await?;
        match query.read(buffer.get(..length).unwrap_or_default()) {
            // Late, or forged: the true one may still come.
            Reply::Foreign => {}
            reply => return Ok(reply),
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &Query, mark: Option<u32>) -> io::Result<Reply> {
    let socket = TcpSocket::from_std_stream(raw(server, Type::STREAM, Protocol::TCP, mark)?.into());
    let mut stream = socket.connect(server).await?;
    let mut message = u16::try_from(query.bytes.len()).map_err(io::Error::other)?.to_be_bytes().to_vec();
    message.extend_from_slice(&query.bytes);
    stream.write_all(&message).await?;
    let mut answer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut answer).await?;
    match query.read(&answer) {
        Reply::Foreign | Reply::Truncated => Err(io::Error::new(io::ErrorKind::InvalidData, "no answer to the question")),
        reply => Ok(reply),
    }
}

/// Marked like every connection of ours, so that rules that capture the workload's traffic let it pass.
fn raw(server: SocketAddr, kind: Type, protocol: Protocol, mark: Option<u32>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(server), kind.nonblocking().cloexec(), Some(protocol))?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    Ok(socket)
}
